"""folders.py: which files a data set holds, how they are split and paired."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scenes
from folders import DEMO, Item, find_pair, list_items

RNG = np.random.default_rng(0)


def touch(*names: str) -> None:
    """Make empty files below data/; only their names matter."""
    for name in names:
        path = Path("data", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def stems(items: list[Item]) -> list[str]:
    return [item.stem for item in items]


def everything(val_fraction: float = 0.3, seed: int = 42) -> list[Item]:
    splits = list_items("data", val_fraction, seed)
    assert splits["test"] == splits["val"]
    return splits["train"] + splits["val"]


def numbered(count: int, ending: str = "jpg") -> list[str]:
    return [f"p{i:03d}.{ending}" for i in range(count)]


@pytest.mark.parametrize("test_folder", [False, True])
def test_split_by_folders(test_folder: bool) -> None:
    touch("train/a.png", "train/deep/b.png", "val/c.png", *(["test/d.png"] if test_folder else []))
    splits = list_items("data", 0.5, 0)
    assert {name: stems(items) for name, items in splits.items()} == {
        "train": ["a", "deep__b"],
        "val": ["c"],
        "test": ["d"] if test_folder else ["c"],
    }
    assert splits["train"][1].target == Path("data/train/deep/b.png")


def test_hash_split_is_a_partition_of_about_the_right_size() -> None:
    touch(*numbered(200))
    splits = list_items("data", 0.3, 42)
    assert sorted(stems(splits["train"] + splits["val"])) == [f"p{i:03d}" for i in range(200)]
    assert 40 <= len(splits["val"]) <= 80
    assert splits["test"] == splits["val"]
    assert splits == list_items("data", 0.3, 42)


def test_hash_split_depends_on_the_seed() -> None:
    touch(*numbered(50))
    assert stems(list_items("data", 0.3, 1)["val"]) != stems(list_items("data", 0.3, 2)["val"])


@pytest.mark.parametrize(
    "added",
    [[f"q{i:03d}.jpg" for i in range(60)], [f"sub/p{i:03d}.jpg" for i in range(40)], numbered(40, "png")],
    ids=["new names", "same names in a folder", "same names with another ending"],
)
def test_adding_files_moves_none_to_the_other_side(added: list[str]) -> None:
    touch(*numbered(40))
    before = list_items("data", 0.3, 42)
    touch(*added)
    after = list_items("data", 0.3, 42)
    for name in ("train", "val"):
        assert {item.target for item in before[name]} <= {item.target for item in after[name]}


def test_hash_split_always_holds_one_out() -> None:
    touch(*numbered(5))
    splits = list_items("data", 0.0, 42)
    assert (len(splits["train"]), len(splits["val"])) == (4, 1)


def test_hash_split_takes_time_in_proportion_to_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, own = [], Item.__hash__
    monkeypatch.setattr(Item, "__hash__", lambda item: calls.append(1) or own(item))
    list_items(DEMO, 0.1, 42)
    assert len(calls) <= 4 * scenes.SCENES  # it was len(train) * len(val): minutes for 100,000 images


@pytest.mark.parametrize(
    ("names", "val_fraction", "message"),
    [
        (["a.png"], 0.1, "1 image is too few: one is needed to train and one to validate"),
        (["a.png", "b.png"], 0.9999, "val_fraction 0.9999 leaves none of 2 images for training"),
        (["readme.txt"], 0.1, "no image in data"),
        (["train/a.png", "val/readme.txt"], 0.1, "no image in data/val"),
    ],
)
def test_list_items_errors(names: list[str], val_fraction: float, message: str) -> None:
    touch(*names)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        list_items("data", val_fraction, 42)


def test_a_missing_folder_names_the_alternative() -> None:
    with pytest.raises(ValueError, match="no folder nowhere: --data takes an image folder, or demo"):
        list_items("nowhere", 0.1, 42)


def test_demo() -> None:
    splits = list_items(DEMO, 0.1, 42)
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
    item = list_items("data", 0.1, 42)["train"][1]
    train = Path("data/train")
    assert item == Item("n__b", train / colour / "n/b.jpg", train / sketch / "n/b.png")


@pytest.mark.parametrize("alone", ["targets/c.png", "inputs/c.png"])
def test_paired_folders_name_a_missing_partner(alone: str) -> None:
    touch("targets/a.png", "targets/b.png", "inputs/a.png", "inputs/b.png", alone)
    with pytest.raises(ValueError, match=r"^1 images of data/targets and data/inputs have no partner, .* c$"):
        list_items("data", 0.1, 42)


def halves(kind: str, i: int, side: int = 40) -> np.ndarray:
    """Return one picture: c(olour) or g(ray) halves, left to right."""
    parts = []
    for letter in kind:
        part = RNG.integers(0, 256, (side // 8, side // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        parts.append(part if letter == "c" else part[..., :1].repeat(3, 2))
    return np.concatenate(parts, 1)


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize(
    ("kinds", "pair"),
    [
        (["cg"] * 4, "AB"),
        (["gc"] * 4, "BA"),
        (["cc"] * 4, "none"),  # ordinary pictures, twice as wide as tall
        (["gg"] * 4, "none"),
        (["cg", "gg", "cg"], "AB"),  # a page without colour has no vote
        (["c"] * 3, "none"),
        (["ccc"], "none"),
        ([], "none"),
    ],
)
def test_find_pair(kinds: list[str], pair: str, ending: str) -> None:
    items = []
    for i, kind in enumerate(kinds):
        path = Path(f"p{i}.{ending}")
        Image.fromarray(halves(kind, i)).save(path)
        items.append(Item(path.stem, path))
    assert find_pair(items) == pair


@pytest.mark.parametrize("kinds", [["cg", "cg", "gc"], ["cg", "cg", "cc"], ["cg", "c"]])
def test_find_pair_asks_where_pictures_disagree(kinds: list[str]) -> None:
    items = []
    for i, kind in enumerate(kinds):
        Image.fromarray(halves(kind, i)).save(f"p{i}.png")
        items.append(Item(f"p{i}", Path(f"p{i}.png")))
    with pytest.raises(ValueError, match=r"^pairs or pictures\? .* 1 .*; say --pair AB, BA or none$"):
        find_pair(items)


def test_find_pair_passes_over_unreadable_files() -> None:
    Path("bad.png").write_bytes(b"")
    Image.fromarray(halves("cg", 0)).save("good.png")
    bad, good = Item("bad", Path("bad.png")), Item("good", Path("good.png"))
    assert find_pair([bad, good]) == "AB"
    assert find_pair([bad]) == "none"


def test_find_pair_leaves_demo_and_paired_folders_alone() -> None:
    Image.fromarray(halves("cg", 0)).save("a.png")
    assert find_pair([Item("scene_0000", 0)]) == "none"
    assert find_pair([Item("a", Path("a.png"), Path("a.png"))]) == "none"
