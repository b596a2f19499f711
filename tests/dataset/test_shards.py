"""Shards: packed and read in place they are the folder they came from, cut off or not; what is damaged is named."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, run_stage, same_tensors, saved_weights
from PIL import Image

import train
from config import ROOT, Recipe, UserError, make_recipe
from data import find_loading, load_images
from dataset import scenes, shards
from dataset.folders import list_items, open_tree, read_picture
from dataset.packing import pack, shrink
from dataset.shards import MANIFEST, expand_braces, read_manifest
from runtime.weights import file_hash

CACHE = Path("cache")
RECIPE = Recipe("x", size=16, val_fraction=0.3)


def write_set(count: int = 30, root: str = "photos", pairs: bool = False) -> Path:
    """Write a folder of scenes in two classes and formats, or of pairs in two folders."""
    for i in range(count):
        colour, sketch = scenes.draw(i, 48)
        both = {"color": colour, "sketch": sketch} if pairs else {("cat", "dog")[i % 2]: colour}
        for folder, image in both.items():
            path = Path(root, folder, f"p{i:02d}.{'png' if i % 3 else 'jpg'}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[: 48 - i % 5]).save(path)
    return Path(root)


def packed(root: str = "photos", out: str = "shards", size: int | None = None, most: int = 20_000) -> list[Path]:
    """Pack a folder into shards of about `most` bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataset.packing.MB", most)
        pack(open_tree(root, CACHE, []), Path(out), size, 1)
    return sorted(Path(out).glob("*.tar"))


def hashes(folder: str) -> dict[str, str]:
    return {path.name: file_hash(path) for path in Path(folder).iterdir()}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("plain.tar", ["plain.tar"]),
        ("{3..1}", []),
    ],
)
def test_braces_are_expanded_as_a_shell_does(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize("pairs", [False, True])
def test_shards_are_the_folder_they_came_from(pairs: bool) -> None:
    root = write_set(pairs=pairs)
    found = packed()
    assert len(found) > 3
    recipe = make_recipe("anime", {"size": 16, "val_fraction": 0.3}) if pairs else RECIPE
    pattern = f"shards/train-{{00000..{len(found) - 1:05d}}}.tar"
    of_folder, *others = (list_items(data, recipe, CACHE) for data in (str(root), "shards", pattern))
    for items in others:
        assert (items.halves, items.has_val) == (of_folder.halves, of_folder.has_val)
        for split in ("train", "val"):
            names = [[(item.stem, item.label, item.name) for item in each[split]] for each in (of_folder, items)]
            assert names[0] == names[1]
            loading = find_loading(recipe, items[split])
            one, other = (load_images(each[split], loading, CACHE, split) for each in (of_folder, items))
            assert (one.key, one.stems) == (other.key, other.stems)  # so a run may go on with either
            assert np.array_equal(one.pixels, other.pixels)


def test_splits_have_shards_of_their_own() -> None:
    for split in ("train", "valid"):
        write_set(5, f"photos/{split}")
    assert run_stage("data", "--pack", "photos", "shards") == 0
    assert sorted(path.name for path in Path("shards").iterdir()) == [
        "manifest.json",
        "train-00000.tar",
        "val-00000.tar",
    ]
    items = list_items("shards", RECIPE, CACHE)
    assert (items.has_val, len(items["train"]), len(items["val"])) == (True, 5, 5)
    (only,) = (list_items("shards/{train,val}-00000.tar", RECIPE, CACHE),)
    assert [item.name for item in only["val"]] == [item.name for item in items["val"]]


def test_large_pictures_are_shrunk_and_small_ones_copied(capsys: pytest.CaptureFixture[str]) -> None:
    root = write_set(6)
    Image.fromarray(scenes.draw(9, 200)[0][:, :150]).save(root / "big.webp", lossless=True)
    Image.fromarray(scenes.draw(10, 200)[0][:100]).save(root / "wide.png")
    (root / "bad.jpg").write_bytes(b"no image")
    assert run_stage("data", "--pack", "photos", "shards", "--size", "64") == 0
    said = capsys.readouterr().out
    assert "8 images in 1 shards" in said
    assert "photos/bad.jpg" in said
    tree = open_tree("shards", CACHE, notes := [])
    assert any("photos/bad.jpg" in note for note in notes)  # whoever trains is told, too
    assert tree.keys() == {*(p.relative_to(root).as_posix() for p in root.rglob("p*.*")), "big.jpg", "wide.png"}
    assert read_picture(tree["big.jpg"]).shape == (85, 64, 3)
    assert np.array_equal(read_picture(tree["wide.png"]), shrink(read_picture(root / "wide.png"), 64))
    assert tree["cat/p00.jpg"].content() == (root / "cat/p00.jpg").read_bytes()


def test_pictures_that_differ_in_their_endings_alone_stay_apart() -> None:
    names = ["a.bmp", "a.tiff", "a.webp", "b.webp", "c.png", "c.bmp", "c.bmp.png", "c.bmp.tiff", "d/a.bmp"]
    for i, name in enumerate(names):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((80, 80, 3), 20 * i, np.uint8)).save(Path("photos", name))
    (shard,) = packed(size=64)
    with tarfile.open(shard) as archive:
        members = archive.getnames()
    assert len({*members}) == len(members) == len(names)
    tree = open_tree("shards", CACHE, [])
    levels = {name: round(read_picture(picture).mean() / 20) for name, picture in tree.items()}
    assert sorted(levels.values()) == [*range(len(names))]  # each is there
    assert {"a.bmp.jpg", "a.tiff.jpg", "a.webp.jpg", "b.jpg", "c.png", "c.bmp.png", "d/a.jpg"} < {*tree}


def test_pairs_of_other_formats_stay_pairs() -> None:
    for i in range(4):
        for folder, image in zip(("color", "sketch"), scenes.draw(i, 80), strict=True):
            path = Path("photos", folder, f"p{i}.{'bmp' if folder == 'color' else 'png'}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    packed(size=64)
    items = list_items("shards", make_recipe("anime", {"size": 16, "val_fraction": 0.3}), CACHE)
    assert items.halves == ("color", "sketch")
    assert {item.stem for item in items["train"] + items["val"]} == {"p0", "p1", "p2", "p3"}


@pytest.mark.parametrize(("width", "shrunk"), [(200, 128), (201, 129), (202, 130)])
def test_an_even_width_stays_even(width: int, shrunk: int) -> None:
    assert shrink(np.zeros((100, width, 3), np.uint8), 64).shape == (64, shrunk, 3)


KILLED = """
import os, signal, sys
from pathlib import Path
from dataset import packing
from dataset.folders import open_tree
real, written = packing.file_hash, []
def file_hash(path):
    written.append(path)
    if len(written) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path)
packing.file_hash, packing.MB = file_hash, 20_000
packing.pack(open_tree("photos", Path("cache"), []), Path("shards"), 32, 1)
"""


@pytest.mark.parametrize("shard", ["1", "3"])
def test_packing_goes_on_where_it_was_killed_and_ends_with_the_same_files(shard: str) -> None:
    write_set()
    Path("photos/bad.jpg").write_bytes(b"no image")
    os.symlink("nowhere.jpg", "photos/gone.jpg")
    packed(out="whole", size=32)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, shard], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not read_manifest(Path("shards")).complete
    with pytest.raises(UserError, match="not packed to its end"):
        list_items("shards", RECIPE, CACHE)
    packed(size=32)
    assert hashes("shards") == hashes("whole")
    before = {path: path.stat().st_mtime_ns for path in Path("shards").iterdir() if path.suffix == ".tar"}
    packed(size=32)  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_files_that_cannot_be_read_are_listed_once_however_often_packing_is_cut_off() -> None:
    write_set()
    for split in ("test", "train"):  # in this order, a shard of the first is never written
        Path("photos", split).mkdir()
    for folder in ("cat", "dog"):
        Path("photos", folder).rename(Path("photos/train", folder))
    Path("photos/test/bad.jpg").write_bytes(b"no image")
    packed(out="whole", size=32)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, "3"], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    packed(size=32)
    assert hashes("shards") == hashes("whole")
    assert len(read_manifest(Path("shards")).bad) == 1


def test_packing_mends_what_is_damaged_or_missing(capsys: pytest.CaptureFixture[str]) -> None:
    write_set()
    Path("photos/bad.jpg").write_bytes(b"no image")
    paths = packed(size=32)
    assert len(paths) > 2
    before = hashes("shards")
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:2000] + bytes(100) + content[2100:])  # of the same size
    paths[0].unlink()
    whole = paths[2].stat().st_mtime_ns
    packed(size=32)
    assert hashes("shards") == before
    assert paths[2].stat().st_mtime_ns == whole
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if "written anew" in line] == [*map(str, paths[:2])]
    name = tarfile.open(paths[0]).getnames()[0]
    size = Path("photos", name).stat().st_size
    Path("photos", name).write_bytes(bytes(size))  # which could be read before
    paths[0].unlink()
    with pytest.raises(
        UserError,
        match=r"train-00000.tar had \d+ images, of which \d+ can be read now; .*not an image.*; put them back",
    ):
        packed(size=32)


def test_the_manifest_counts_and_hashes() -> None:
    write_set()
    paths = packed()
    manifest = read_manifest(Path("shards"))
    assert [(shard.name, shard.size, shard.sha256) for shard in manifest.shards] == [
        (path.name, path.stat().st_size, file_hash(path)) for path in paths
    ]
    assert [shard.images for shard in manifest.shards] == [len(tarfile.open(path).getnames()) for path in paths]
    assert sum(shard.images for shard in manifest.shards) == 30


def test_shards_are_looked_into_once(monkeypatch: pytest.MonkeyPatch) -> None:
    write_set()
    paths, seen = packed(), []
    real = shards.index_tar
    monkeypatch.setattr(shards, "index_tar", lambda path: seen.append(path) or real(path))
    first = open_tree("shards", CACHE, [])
    assert seen == paths
    again = open_tree("shards", CACHE, [])
    assert seen == paths
    assert [(name, image, image.content()) for name, image in first.items()] == [
        (name, image, image.content()) for name, image in again.items()
    ]
    next((CACHE / "shards").iterdir()).write_text("{")  # damaged: looked into anew
    open_tree("shards", CACHE, [])
    assert len(seen) == len(paths) + 1


def refusal(data: str) -> str:
    with pytest.raises(UserError) as caught:
        list_items(data, RECIPE, CACHE)
    return str(caught.value)


def test_what_does_not_fit_is_one_sentence() -> None:
    write_set()
    paths = packed()
    pattern = f"shards/train-{{00000..{len(paths) - 1:05d}}}.tar"
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:2000] + bytes(100) + content[2100:])  # in the middle, of the same size
    assert "shards/train-00001.tar does not fit shards/manifest.json: it is damaged" in refusal("shards")
    assert "it is damaged" in refusal(pattern)
    paths[1].write_bytes(content[:-512])
    assert "bytes instead of" in refusal("shards")
    paths[1].unlink()
    assert "1 of" in refusal("shards")
    assert "first shards/train-00001.tar" in refusal(pattern)
    paths[1].write_bytes(content)
    paths[1].with_name("other.tar").write_bytes(content)
    assert "shards/other.tar does not stand in shards/manifest.json" in refusal("shards/{train-00000,other}.tar")
    assert "not there" in refusal("nowhere/{0..3}.tar")
    assert "names none" in refusal("nowhere/{3..0}.tar")
    Path("shards/manifest.json").unlink()
    assert "both hold" in refusal("shards/{train-00001,other}.tar")
    paths[1].write_bytes(content[:512] + b"x" + content[513 : len(content) // 2])
    assert "shards/train-00001.tar cannot be read as a shard" in refusal(pattern)
    Path("shards/manifest.json").write_text('{"format": "tinct-shards-9"}')
    assert "shards/manifest.json is damaged" in refusal("shards")


def test_a_manifest_of_another_count_is_one_sentence() -> None:
    write_set()
    packed()
    open_tree("shards", CACHE, [])  # which keeps where the files lie
    manifest = json.loads(Path("shards/manifest.json").read_text())
    manifest["shards"][1]["images"] += 1
    Path("shards/manifest.json").write_text(json.dumps(manifest))
    count = manifest["shards"][1]["images"]
    said = f"shards/train-00001.tar does not fit shards/manifest.json: it holds {count - 1} images instead of {count}"
    assert said in refusal("shards")


def test_shards_may_hold_equal_files_that_are_no_images() -> None:
    for i in range(2):
        with tarfile.open(f"s{i}.tar", "w") as archive:
            for path in (Path("README.txt"), *write_set(4, f"set{i}").rglob("*.*")):
                path.touch()
                archive.add(path)
    tree = open_tree("s{0..1}.tar", CACHE, notes := [])
    assert len(tree) == 8
    assert any(".txt" in note for note in notes)


def test_a_manifest_of_another_program_says_nothing() -> None:
    folder = write_set(4)
    for content in ('{"name": "an app"}', '[{"src": "p0.png"}]'):
        (folder / MANIFEST).write_text(content)
        splits = list_items(str(folder), RECIPE, CACHE)
        assert len(splits["train"]) + len(splits["val"]) == 4
        with pytest.raises(UserError, match="is of another program: name an empty folder"):
            packed(out=str(folder))


def test_packing_refuses_what_would_mix_two_sets() -> None:
    write_set()
    packed()
    with pytest.raises(UserError, match="other images"):
        packed(size=20)
    write_set(3, "others")
    with pytest.raises(UserError, match="other images"):
        packed("others")
    manifest = json.loads(Path("shards/manifest.json").read_text())
    manifest["shards"][0]["taken"] = 0  # as earlier versions wrote it
    Path("shards/manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    Path("shards/train-00000.tar").unlink()
    with pytest.raises(UserError, match=r"train-00000.tar is missing or damaged, and of an earlier version"):
        packed()
    with pytest.raises(UserError, match="drawn"):
        packed("demo", "new")


def test_packing_leaves_the_shards_of_other_programs_alone() -> None:
    write_set()
    other = Path("shards/train-00000.tar")
    other.parent.mkdir()
    other.write_bytes(b"of another program")
    with pytest.raises(UserError, match=r"shards/train-00000.tar is there, and no manifest.json"):
        packed()
    assert {path.name: path.read_bytes() for path in other.parent.iterdir()} == {other.name: b"of another program"}


@pytest.mark.usefixtures("no_curves")
def test_training_on_shards_is_training_on_their_folder(pictures: Path) -> None:
    names = ",".join(path.stem for path in packed(str(pictures), most=10_000))
    options = {"recipe": "coco", "epochs": 1, "save_every": 1, **TINY}
    sets = [(str(pictures), None), ("shards", None), (f"shards/{{{names}}}.tar", 0.0)]
    runs = [train.main(data=data, run=Path(f"run{gb}{len(data)}"), cache_gb=gb, **options) for data, gb in sets]
    first, *others = (saved_weights(run, 1) for run in runs)
    assert all(same_tensors(first, other) for other in others)
    ends = [train.main(run=run, resume=True, epochs=2, device="cpu") for run in runs[::2]]
    assert same_tensors(*(saved_weights(run, 2) for run in ends))


WATCHED = """
import data, train
from runtime import cli, distributed
batches, order, stems = data.training_batches, data.training_order, []
def training_batches(images, *given):
    stems[:] = images.stems
    return batches(images, *given)
def training_order(count, batch_size, flip, seed, epoch, *given):
    for ids, *rest in order(count, batch_size, flip, seed, epoch, *given):
        with open(f"seen.{epoch}.{distributed.rank()}", "a") as file:
            file.writelines(f"{stems[i]}\\n" for i in ids)
        yield ids, *rest
data.training_batches, data.training_order = training_batches, training_order
cli.command(train.main, shared=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
def test_two_processes_that_train_on_shards_see_each_picture_once_an_epoch(pictures: Path) -> None:
    assert len(packed(str(pictures), most=10_000)) > 2
    Path("watched.py").write_text(WATCHED)
    call = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--", "watched.py"]
    call += ["--data", "shards", "--recipe", "coco", "--size", "32", "--batch-size", "2", "--epochs", "2"]
    call += ["--device", "cpu", "--set", "ngf=4", "--set", "ndf=4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = Counter(item.stem for item in list_items("shards", RECIPE, CACHE)["train"])
    assert len(wanted) == 12
    for epoch in (1, 2):
        seen = [Path(f"seen.{epoch}.{rank}").read_text().split() for rank in (0, 1)]
        assert len(seen[0]) == len(seen[1]) == 6
        assert Counter(seen[0] + seen[1]) == wanted
