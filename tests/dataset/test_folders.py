"""dataset/folders.py: which pictures a data set holds, how they are split, labelled, limited and paired."""

import os
import re
import shutil
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from config import DEMO, ClassifierRecipe, Recipe, UserError
from dataset import scenes
from dataset.folders import (
    SALT,
    Item,
    find_items,
    find_pair,
    list_items,
    open_tree,
    read_picture,
    share,
)
from dataset.sources import Blob

RNG = np.random.default_rng(0)
CACHE = Path("cache")


def touch(*names: str) -> None:
    """Make empty files below data/; only their names matter."""
    for name in names:
        path = Path("data", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def stems(items: list[Item]) -> list[str]:
    return [item.stem for item in items]


def listed(data: str = "data", **changes: Any) -> dict[str, list[Item]]:
    return list_items(data, Recipe("x", **{"val_fraction": 0.3, **changes}), CACHE)


def everything() -> list[Item]:
    splits = listed()
    assert splits["test"] == splits["val"]
    return splits["train"] + splits["val"]


def numbered(count: int, ending: str = "jpg") -> list[str]:
    return [f"p{i:03d}.{ending}" for i in range(count)]


@pytest.mark.parametrize("test_folder", [False, True])
def test_split_by_folders(test_folder: bool) -> None:
    touch("train/a.png", "train/deep/b.png", "val/c.png", *(["test/d.png"] if test_folder else []))
    splits = listed()
    assert {name: stems(items) for name, items in splits.items()} == {
        "train": ["a", "deep__b"],
        "val": ["c"],
        "test": ["d"] if test_folder else ["c"],
    }
    assert splits["train"][1].target == Path("data/train/deep/b.png")


def test_hash_split_is_a_partition_of_about_the_right_size_and_the_same_for_every_seed() -> None:
    touch(*numbered(200))
    splits = listed(seed=1)
    assert sorted(stems(splits["train"] + splits["val"])) == [f"p{i:03d}" for i in range(200)]
    assert 40 <= len(splits["val"]) <= 80
    assert splits["test"] == splits["val"]
    assert splits == listed(seed=1) == listed(seed=42)
    # held out is whose hash with 42 falls below the fraction: changing this would mix train with val
    shares = {name: sha256(f"42/{name}".encode()).digest() for name in numbered(200)}
    low = [name for name, digest in shares.items() if int.from_bytes(digest[:8], "big") < 0.3 * 2**64]
    assert stems(splits["val"]) == [name.removesuffix(".jpg") for name in low]


@pytest.mark.parametrize(
    "added",
    [[f"q{i:03d}.jpg" for i in range(60)], [f"sub/p{i:03d}.jpg" for i in range(40)], numbered(40, "png")],
    ids=["new names", "same names in a folder", "same names with another ending"],
)
def test_adding_files_moves_none_to_the_other_side(added: list[str]) -> None:
    touch(*numbered(40))
    before = listed()
    touch(*added)
    after = listed()
    for name in ("train", "val"):
        assert {item.target for item in before[name]} <= {item.target for item in after[name]}


def test_hash_split_always_holds_one_out() -> None:
    touch(*numbered(5))
    splits = listed(val_fraction=0.0)
    assert splits["val"] == [min(splits["train"] + splits["val"], key=lambda item: share(item, SALT))]
    assert len(splits["train"]) == 4


@pytest.mark.parametrize(
    ("names", "val_fraction", "message"),
    [
        (["a.png"], 0.1, "1 image is too few"),
        (["a.png", "b.png"], 0.9999, "val_fraction 0.9999 leaves none of 2"),
        (["readme.txt"], 0.1, "no image in data"),
        (["train/a.png", "val/readme.txt"], 0.1, "1 image is too few"),
    ],
)
def test_list_items_errors(names: list[str], val_fraction: float, message: str) -> None:
    touch(*names)
    with pytest.raises(UserError, match=message):
        listed(val_fraction=val_fraction)


def test_a_missing_folder_names_the_alternatives() -> None:
    with pytest.raises(UserError, match=r"no folder nowhere.* demo"):
        listed("nowhere")


def test_labels_are_the_first_folders_below_the_split() -> None:
    touch("train/cat/a.png", "train/dog/deep/b.png", "train/c.png", "test/dog/d.png", "val/cat/e.png")
    splits = listed()
    labels = {item.stem: item.label for items in splits.values() for item in items}
    assert labels == {"cat__a": "cat", "dog__deep__b": "dog", "c": "", "dog__d": "dog", "cat__e": "cat"}


def test_val_is_held_out_of_train_where_there_is_a_test_folder() -> None:
    touch(*(f"train/{kind}/{name}" for kind in ("cat", "dog") for name in numbered(20)), "test/cat/x.png")
    splits = listed()
    assert stems(splits["test"]) == ["cat__x"]
    assert len(splits["train"] + splits["val"]) == 40
    assert 4 <= len(splits["val"]) <= 20
    assert all(item.target.parts[1] == "train" for item in splits["train"] + splits["val"])
    assert {item.label for item in splits["val"]} == {"cat", "dog"}


def test_train_alone_is_the_data_set() -> None:
    touch(*(f"train/cat/{name}" for name in numbered(20)), "val/readme.txt")
    splits = listed()
    assert splits["test"] == splits["val"]
    assert {item.label for item in splits["train"] + splits["val"]} == {"cat"}
    assert sorted(stems(splits["train"] + splits["val"])) == [f"cat__p{i:03d}" for i in range(20)]


@pytest.mark.parametrize("names", [["val/a.png", "val/b.png"], ["train/a.png", "other/b.png"]])
def test_folders_that_make_no_split_are_labels(names: list[str]) -> None:
    touch(*names)
    assert {item.label for item in everything()} == {name.split("/")[0] for name in names}


@pytest.mark.parametrize("where", [".", "train"])
def test_limit_takes_the_same_few_and_grows(where: str) -> None:
    kinds = (f"{where}/{kind}/{name}" for kind in "abcd" for name in numbered(50))
    touch(*kinds, "test/a/x.png", "val/b/y.png")
    everything = listed()
    previous: dict[str, set[str]] = {split: set() for split in everything}
    for limit in (1, 3, 40):
        splits = listed(limit=limit, seed=limit)
        assert splits == listed(limit=limit)
        for split, items in splits.items():
            assert len(items) == min(limit, len(everything[split]))
            assert items == [item for item in everything[split] if item in items]  # in their order
            assert previous[split] <= set(stems(items))
            previous[split] = set(stems(items))
    counts = Counter(item.label for item in listed(limit=40)["train"])
    assert min(counts[kind] for kind in "abcd") >= 3  # of 10 expected
    assert listed(limit=10**6) == listed(limit=0) == everything


def test_limit_takes_the_lowest_of_a_hash_of_its_own() -> None:
    touch(*(f"{split}/{name}" for split in ("train", "val") for name in numbered(40)))
    digests = {name: sha256(f"limit/42/{name}".encode()).digest() for name in numbered(40)}
    lowest = sorted(sorted(digests, key=digests.__getitem__)[:9])
    assert stems(listed(limit=9, seed=1)["train"]) == [name.removesuffix(".jpg") for name in lowest]


def test_demo() -> None:
    splits = listed(DEMO, val_fraction=0.1)
    items = splits["train"] + splits["val"]
    assert sorted(item.target for item in items) == list(range(scenes.SCENES))
    assert all(item.stem == f"scene_{item.target:04d}" and item.source is None for item in items)
    assert 0.05 < len(splits["val"]) / scenes.SCENES < 0.15


@pytest.mark.parametrize(
    "names",
    [
        ["a/x.png", "b/x.png"],
        ["x.jpg", "x.png", "y.png"],
        ["x.jpg", "x.png", "x_jpg.png"],
        ["a/x.png", "a__x.png"],
        ["x.tar.png", "x.png"],
    ],
)
def test_every_image_has_a_name_of_its_own(names: list[str]) -> None:
    touch(*names)
    items = everything()
    assert len({item.stem for item in items}) == len({item.target for item in items}) == len(names)
    assert not any("/" in item.stem for item in items)


@pytest.mark.parametrize(("colour", "sketch"), [("targets", "inputs"), ("color", "sketch")])
def test_paired_folders_match_by_stem(colour: str, sketch: str) -> None:
    for side in ("train", "val"):
        touch(f"{side}/{colour}/a.jpg", f"{side}/{colour}/n/b.jpg")
        touch(f"{side}/{sketch}/n/b.png", f"{side}/{sketch}/a.png")
    item = listed()["train"][1]
    train = Path("data/train")
    assert item == Item("n__b", train / colour / "n/b.jpg", train / sketch / "n/b.png", "", "n/b.jpg")


LAYOUTS = {  # folders of colour and of sketches, for one split or {split}
    **{f"{a} {b}": (b, a) for a, b in (
        ("sketch", "colour"), ("Sketch", "Color"), ("input", "target"), ("lineart", "color"), ("Line Art", "Colours"),
        ("LINE_ARTS", "colored"), ("edges", "rgb"), ("grey", "colour"), ("inputs", "targets"),
        ("source", "ground_truth"),
    )},
    "split above": ("{split}/Color", "{split}/Sketches"), "split below": ("color/{split}", "sketch/{split}"),
    "pix2pix": ("B/{split}", "A/{split}"), "CycleGAN": ("{split}B", "{split}A"), "letters": ("b", "a"),
    "in the name": ("{split}_colour", "{split}_lines"), "behind": ("color_{split}", "sketch_{split}"),
}  # fmt: skip


def write_halves(colour: str, sketch: str, names: list[str]) -> None:
    """Write pictures of noise, and gray ones of the same names."""
    for folder, kind in ((colour, "c"), (sketch, "g")):
        for name in names:
            path = Path("data", folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(halves(kind)).save(path)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("split", ["val", "Valid", "validation"])
def test_layouts_of_pairs_are_known(name: str, split: str) -> None:
    colour, sketch = LAYOUTS[name]
    if "{split}" in colour:
        write_halves(colour.format(split="train"), sketch.format(split="train"), ["a.png", "b.png"])
        write_halves(colour.format(split=split), sketch.format(split=split), ["c.png"])
    else:
        write_halves(colour, sketch, ["a.png", "b.png", "c.png"])
    splits = listed(input="sketch", output="rgb")
    assert sorted(stems(splits["train"] + splits["val"])) == ["a", "b", "c"]
    if "{split}" in colour:
        assert (splits.has_val, stems(splits["val"]), splits["test"]) == (True, ["c"], splits["val"])
    for item in splits["train"] + splits["val"]:
        where = item.target.parent.relative_to("data").as_posix()
        assert where in (colour, colour.format(split="train"), colour.format(split=split))
        assert item.source.name == item.target.name
        assert not np.ptp(read_picture(item.source), 2).any()
        assert np.ptp(read_picture(item.target), 2).any()
        assert item.label == ""


@pytest.mark.parametrize(
    "comics", [["set"], ["comic1", "comic2"], ["all/comic1", "all/comic2"], ["train/c1", "train/c2"]]
)
@pytest.mark.parametrize(
    ("colour", "sketch", "given"), [("Color", "sketches", ""), ("after", "before", "after/before")]
)
def test_pairs_below_other_folders_are_found(comics: list[str], colour: str, sketch: str, given: str) -> None:
    for comic in comics:
        write_halves(f"{comic}/{colour}", f"{comic}/{sketch}", ["a.png", "b.png", "c.png"])
    splits = listed(input="sketch", output="rgb", pair_folders=given)
    assert splits.halves == (colour, sketch)
    items = splits["train"] + splits["val"]
    assert len(items) == 3 * len(comics)
    for item in items:
        assert item.source.parent == item.target.parent.parent / sketch
        assert item.source.name == item.target.name


def test_splits_in_a_single_folder_are_used() -> None:
    touch("set/train/a.png", "set/train/b.png", "set/val/c.png")
    splits = listed()
    assert (splits.has_val, stems(splits["train"]), stems(splits["val"])) == (True, ["a", "b"], ["c"])


def test_what_lies_beside_splits_and_pairs_is_counted() -> None:
    touch("train/a.png", "train/b.png", "val/c.png", "extra/d.png", "e.png")
    assert listed().notes == ["left out: 2 pictures of data that lie beside train, val"]
    shutil.rmtree("data")
    write_halves("color", "sketch", ["a.png", "b.png", "c.png"])
    touch("mask/a.png", "d.png")
    assert listed().notes == ["left out: 2 pictures of data that lie beside color and sketch"]


def test_folders_that_may_be_pairs_are_asked_about() -> None:
    write_halves("after", "before", ["x.png", "y.png"])
    asks = r"^after and before in data hold 2 images of equal names: .* --pair-folders COLOUR SKETCH, else --pair none$"
    for recipe in ({}, {"input": "sketch", "output": "rgb"}):
        with pytest.raises(UserError, match=asks):
            listed(**recipe)
        assert {item.label for item in listed(**recipe, pair="none")["train"]} <= {"after", "before"}
        splits = listed(**recipe, pair_folders="After/before")
        assert splits.halves == ("after", "before")
        assert {item.source.parent.name for item in splits["train"] + splits["val"]} == {"before"}
    with pytest.raises(UserError, match=r"^no folders sketches and after in data: it holds after, before; correct"):
        listed(pair_folders="sketches/after")
    assert len(list_items("data", ClassifierRecipe(val_fraction=0.3), CACHE)["train"]) > 1  # which has no pairs


@pytest.mark.parametrize("books", [[""], ["one/", "two/"]])
def test_more_folders_and_nested_ones_that_may_be_pairs_are_asked_about(books: list[str]) -> None:
    for book in books:
        write_halves(f"{book}done", f"{book}raw", [f"{book.strip('/')}{i}.png" for i in range(5)])
        shutil.copytree(f"data/{book}done", f"data/{book}extra")
    splits = listed(pair_folders="done/raw")
    assert {item.source.parent.name for item in splits["train"] + splits["val"]} == {"raw"}
    assert len(splits["train"] + splits["val"]) == 5 * len(books)
    assert listed(pair="none").notes == []
    next(Path(f"data/{books[0]}raw").iterdir()).unlink()  # one has no partner
    place = f"data/{books[0]}".rstrip("/")
    found = rf"^(done|extra) \(in colour\) and raw \(gray\) in {place} hold images of equal names"
    with pytest.raises(UserError, match=rf"{found}: if .*--pair-folders COLOUR SKETCH, else --pair none$"):
        listed(input="sketch", output="rgb")
    (note,) = listed().notes  # photographs come in classes
    assert re.search(rf"{found}: all are taken for pictures; if they are pairs, say --pair-folders", note)
    for book in books:  # of another volume the pages may be numbered on
        for number, path in enumerate([*Path(f"data/{book}raw").iterdir()]):
            path.rename(path.with_name(f"page{number}.png"))
    assert listed().notes == []


def test_classes_are_no_pairs() -> None:
    write_halves("cat", "drawing", [f"{i}.png" for i in range(3)])
    shutil.copytree("data/cat", "data/dog")
    assert {item.label for item in everything()} == {"cat", "dog", "drawing"}
    shutil.rmtree("data/drawing")
    assert {item.label for item in everything()} == {"cat", "dog"}  # photographs, numbered alike
    with pytest.raises(UserError, match="--pair-folders"):  # for a model of drawings they may be pairs
        listed(input="sketch", output="rgb")
    Path("data").rename("other")
    touch(*(f"{letter}/{split}/{letter}.png" for letter in "abc" for split in ("train", "val")))
    assert {item.label for item in everything()} == {"a", "b", "c"}


def test_halves_that_do_not_fit_are_named() -> None:
    write_halves("train/color", "train/sketch", ["a.png", "b.png"])
    touch("val/c.png")
    with pytest.raises(UserError, match="no folders color and sketch in data/val"):
        listed()
    touch("train/lines/a.png")
    with pytest.raises(UserError, match=r"color, lines, sketch in data/train may all .*--pair-folders"):
        listed()
    write_halves("other/b", "other/a", ["a.png", "b.png"])
    Path("data/other/a/a.png").rename("data/other/a/z.png")
    asks = r"2 pictures in data/other \(2 in b and 2 in a\) have no partner of their name, first a; .* --pair none"
    with pytest.raises(UserError, match=asks):
        list_items("data/other", Recipe("x"), CACHE)
    found = list_items("data/other", Recipe("x", pair="none"), CACHE)
    assert sum(len(found[split]) for split in ("train", "val")) == 4  # no pairs, whatever the folders are called


def test_what_is_left_out_is_noted_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    touch("a.png", "b.png", "c.jxl", "locked/d.png", "@eaDir/a.png")
    Path("more").mkdir()
    Path("more/val.png").touch()
    Path("data/linked").symlink_to("../more")
    real = os.scandir

    def stand_in(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", stand_in)  # root may read all
    splits = listed()
    assert sorted(stems(splits["train"] + splits["val"])) == ["a", "b", "linked__val"]
    assert splits.notes == [
        "left out: files in data that are not read: 1 .jxl",
        "left out: data/locked, which cannot be read (Permission denied)",
    ]


def test_a_val_folder_that_is_a_link_is_the_val_folder() -> None:
    touch("train/a.png", "train/b.png")
    Path("held").mkdir()
    Path("held/c.png").touch()
    Path("data/val").symlink_to("../held")
    assert stems(listed()["val"]) == ["c"]


def test_own_runs_are_no_data() -> None:
    touch(*numbered(9), "runs/x/recipe.json", "runs/x/log.jsonl", "runs/x/targets/c.png")
    assert len(everything()) == 9
    assert listed().notes == ["left out: data/runs/x, as it is a run of this project"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no such names")
def test_names_that_are_no_text_are_names() -> None:
    for name in (b"data/a.png", b"data/caf\xe9.png", b"data/caf\xe8.png"):
        touch(os.fsdecode(name)[5:])
    found = stems(everything())
    assert len({*found}) == 3
    for stem in found:
        stem.encode()  # raises where it is no text
    assert sum(stem.startswith("caf\ufffd.png_") for stem in found) == 2


def test_stems_are_short_and_unique_on_disks_without_case() -> None:
    folder = "/".join(["x" * 60] * 4)
    touch(f"{folder}/a.png", f"{folder}/b.png", "A.png", "a.png", "B.png")
    found = stems(everything())
    assert len({stem.lower() for stem in found}) == 5
    assert max(len(stem.encode()) for stem in found) <= 120
    assert "B" in found
    Path("data", "é" * 100).mkdir()
    touch(f"{'é' * 100}/a.png")
    assert max(len(stem.encode()) for stem in stems(everything())) <= 120


@pytest.mark.parametrize("alone", ["targets/c.png", "inputs/c.png"])
def test_paired_folders_name_a_missing_partner(alone: str) -> None:
    touch("targets/a.png", "targets/b.png", "inputs/a.png", "inputs/b.png", alone)
    with pytest.raises(UserError, match=r"^1 picture in data .* no partner .* first c;"):
        listed()


def test_pairs_are_split_and_limited_together() -> None:
    touch(*(f"{half}/{name}" for half in ("color", "sketch") for name in numbered(30)))
    for split, items in listed(limit=5).items():
        assert len(items) == 5, split
        for item in items:
            assert item.target.name == item.source.name
            assert (item.target.parent.name, item.source.parent.name) == ("color", "sketch")


def test_open_tree_of_each_kind() -> None:
    touch("b.png", "a/c.png")
    assert open_tree("data", CACHE, []) == {"a/c.png": Path("data/a/c.png"), "b.png": Path("data/b.png")}
    assert open_tree(DEMO, CACHE, [])["scene_0007"] == 7
    Path("demo").mkdir()
    assert open_tree(DEMO, CACHE, [])["scene_0007"] == 7  # the name is taken


def test_a_picture_is_read_from_a_file_or_from_an_archive() -> None:
    Image.fromarray(halves("cg")).save("a.png")
    content = np.frombuffer(b"..." + Path("a.png").read_bytes(), np.uint8)
    blob = Blob(Path("set.tar"), "a.png", 3, len(content), content)
    assert np.array_equal(read_picture(Path("a.png")), read_picture(blob))
    assert find_pair([Item("a", blob)]) == "AB"
    assert find_items({"x/a.png": blob}, "set.tar") == [Item("x__a", blob, None, "x", "x/a.png")]


def halves(kind: str, side: int = 40) -> np.ndarray:
    """Return one picture: c(olour) or g(ray) halves, left to right."""
    parts = []
    for letter in kind:
        part = RNG.integers(0, 256, (side // 8, side // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        parts.append(part if letter == "c" else part[..., :1].repeat(3, 2))
    return np.concatenate(parts, 1)


def written(kinds: list[str], ending: str = "png") -> list[Item]:
    """Write pictures of these kinds; returns their items."""
    for i, kind in enumerate(kinds):
        Image.fromarray(halves(kind)).save(f"p{i}.{ending}")
    return [Item(f"p{i}", Path(f"p{i}.{ending}")) for i in range(len(kinds))]


@pytest.mark.parametrize(
    ("kinds", "pair", "ending"),
    [
        (["cg"] * 4, "AB", "png"), (["cg"] * 4, "AB", "jpg"), (["gc"] * 4, "BA", "jpg"),
        (["cc"] * 4, "none", "png"),  # ordinary pictures, twice as wide as tall
        (["gg"] * 4, "none", "png"), (["ccc"], "none", "png"), ([], "none", "png"),
        (["cg", "gg", "cg"], "AB", "png"),  # a page without colour says nothing
    ],
)  # fmt: skip
def test_find_pair(kinds: list[str], pair: str, ending: str) -> None:
    assert find_pair(written(kinds, ending)) == pair


def paper(side: int = 64) -> np.ndarray:
    """Return lines on yellowed paper, with a small red stamp."""
    out = np.full((side, side, 3), (250, 236, 205), np.uint8)
    out[::8] = (70, 62, 50)
    out[10:14, 10:15] = (200, 30, 30)
    return out


def page(side: int = 64) -> np.ndarray:
    """Return lines on white paper, of which few are filled with a colour."""
    out = np.full((side, side, 3), 255, np.uint8)
    out[::8] = 20
    out[17:23, 20:45] = (40, 110, 220)
    return out


def test_pairs_are_seen_though_their_sketches_are_yellowed_and_their_colours_few() -> None:
    for i in range(4):
        Image.fromarray(np.concatenate([page(), paper()], 1)).save(f"p{i}.png")
        for name, half in (("A", page()), ("B", paper())):
            Path("data", name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(half).save(f"data/{name}/{i}.png")
    assert find_pair([Item(f"p{i}", Path(f"p{i}.png")) for i in range(4)]) == "AB"
    assert listed(input="sketch", output="rgb").halves == ("A", "B")


@pytest.mark.parametrize("kinds", [["cg", "cg", "gc"], ["cg", "cg", "cc"], ["cg", "c"]])
def test_find_pair_asks_where_pictures_disagree(kinds: list[str]) -> None:
    with pytest.raises(UserError, match="say --pair AB, BA or none"):
        find_pair(written(kinds))


def test_find_pair_passes_over_unreadable_files_and_leaves_demo_and_paired_folders_alone() -> None:
    Path("bad.png").write_bytes(b"")
    (item,), bad = written(["cg"]), Item("bad", Path("bad.png"))
    assert find_pair([bad, item]) == "AB"
    for other in (bad, Item("scene_0000", 0), Item("a", item.target, item.target)):
        assert find_pair([other]) == "none"
