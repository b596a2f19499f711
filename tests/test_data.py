"""data.py: decoding, the cache, exact cuts, and an order that depends on seed and epoch alone."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor

import data
from config import ROOT, Recipe, UserError
from data import (
    ImageSet,
    Loading,
    ahead,
    cache_key,
    decode,
    evenly_spaced,
    find_loading,
    fit_image,
    load_images,
    mean_ab,
    training_batches,
    training_order,
)
from dataset import scenes
from dataset.degradations import make_fixed_input
from dataset.folders import Item, list_items, read_picture
from imaging import line_art
from imaging.files import read_frames, scan
from imaging.pixels import Array, colorfulness, flatten, resize
from runtime.run_folder import RunRecord
from training.loop import noted_signals

CACHE = Path("cache")
PHOTO = Loading(load_size=16, fit="crop", pair="none", sketch=False)


def picture(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(name: str, image: Array) -> Item:
    """Write a picture losslessly and return it as an item."""
    path = Path("data", name)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path)
    return Item(path.stem, path)


def recipe(**changes: Any) -> Recipe:
    """Return a recipe of pictures of 16 px."""
    output = "ab" if changes.get("input", "L") == "L" else "rgb"
    return Recipe("x", **{"size": 16, "val_fraction": 0.3, "output": output, **changes})


def record(made: Recipe, where: str) -> RunRecord:
    return RunRecord(recipe=made, data=where, loading=asdict(PHOTO), fingerprints={}, mean_ab=(0.0, 0.0))


def packed(items: list[Item]) -> list[Item]:
    """Return the same items out of an archive."""
    with tarfile.open("set.tar", "w") as tar:
        for item in items:
            tar.add(item.target, item.target.name)
    splits = list_items("set.tar", recipe(), CACHE)
    return sorted(splits["train"] + splits["val"], key=lambda item: item.name)


def write_set(count: int = 5) -> list[Item]:
    return [write(f"p{i}.png", picture(16 + i, 20, i)) for i in range(count)]


def in_memory(pictures: list[Array]) -> ImageSet:
    """Return a decoded split without files."""
    sizes = np.array([p.size for p in pictures])
    index = [[end - p.size, *p.shape[:2]] for end, p in zip(sizes.cumsum(), pictures, strict=True)]
    pixels = np.concatenate([p.ravel() for p in pictures])
    names = [f"p{i}" for i in range(len(pictures))]
    labels = [""] * len(pictures)
    return ImageSet(names, labels, pixels, np.array(index), pictures[0].shape[2], [], 0, "key")


def numbered(count: int, side: int = 12) -> ImageSet:
    """Return pictures whose red level is their number, and green and blue the row and column."""
    rows, columns = np.mgrid[:side, :side].astype(np.uint8)
    return in_memory([np.stack([np.full_like(rows, i), rows, columns], 2) for i in range(count)])


def epoch(images: ImageSet, seed: int = 1, number: int = 1, start: int = 0, flip: float = 0.5) -> list[Tensor]:
    """Return the targets of one epoch's batches of 4 cuts of 8 px."""
    return [target for _, target in training_batches(images, 4, 8, flip, seed, number, start)]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize(
    ("height", "width", "fit", "shape"),
    [
        (40, 60, "crop", (16, 24)), (1, 1, "crop", (16, 16)), (1, 90, "squash", (16, 16)),
        (200, 17, "crop", (48, 16)),  # cut to three times the short side
    ],
)  # fmt: skip
def test_fit_image(height: int, width: int, fit: str, shape: tuple[int, int]) -> None:
    out = fit_image(picture(height, width), 16, fit)
    assert (out.shape, out.dtype) == ((*shape, 3), np.uint8)


def test_decode_draws_the_lines_of_a_photo() -> None:
    item = write("a.png", picture(20, 30))
    out = decode(item, replace(PHOTO, sketch=True))
    assert out.shape == (16, 24, 6)
    assert np.array_equal(out[..., :3], decode(item, PHOTO))
    drawn = line_art.line_art(torch.from_numpy(out[..., :3].copy()).permute(2, 0, 1)[None])
    assert np.array_equal(out[..., 3:], drawn[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("pair", "sides"), [("AB", (0, 1)), ("BA", (1, 0))])
def test_decode_splits_pairs_of_even_width(pair: str, sides: tuple[int, int]) -> None:
    halves, loading = (picture(16, 16, 1), picture(16, 16, 2)), replace(PHOTO, pair=pair)
    item = write("a.png", np.concatenate(halves, 1))
    out = decode(item, replace(loading, sketch=True))
    assert np.array_equal(out, np.concatenate([halves[side] for side in sides], 2))
    assert np.array_equal(decode(item, loading), halves[sides[0]])
    for width in (1, 31):
        with pytest.raises(UserError, match=rf"a.png: a pair .* {width} px wide"):
            decode(write("a.png", picture(16, width)), loading)


def test_decode_brings_a_partner_file_to_the_same_size() -> None:
    colour, sketch = write("colour.png", picture(32, 48)), write("sketch.png", picture(64, 96, 1))
    out = decode(Item("x", colour.target, sketch.target), replace(PHOTO, sketch=True, pair="AB"))
    assert np.array_equal(out[..., :3], resize(picture(32, 48), 16, 24))
    assert np.array_equal(out[..., 3:], resize(picture(64, 96, 1), 16, 24))


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (64, 97)])
def test_a_sketch_of_another_shape_is_cut_and_not_stretched(shape: tuple[int, int]) -> None:
    height, width = shape
    sketch, cut = picture(height, width, 1), set()
    item = Item("x", write("colour.png", picture(32, 48)).target, write("sketch.png", sketch).target)
    out = decode(item, replace(PHOTO, sketch=True), cut)
    rows, columns = min(height, round(width * 32 / 48)), min(width, round(height * 48 / 32))
    top, left = (height - rows) // 2, (width - columns) // 2
    part = sketch if shape == (64, 97) else sketch[top : top + rows, left : left + columns]
    assert np.array_equal(out[..., 3:], resize(fit_image(part, 16, "crop"), 16, 24))
    assert cut == (set() if shape == (64, 97) else {"x"})  # a pixel is a rounding
    images = load_images([item], replace(PHOTO, sketch=True), CACHE, "train")
    assert images.cut == sorted(cut)


def test_the_key_is_what_files_hold_wherever_they_lie() -> None:
    items = write_set()
    key = load_images(items, PHOTO, CACHE, "train").key
    Path("data").rename("moved")
    moved = [replace(item, target=Path("moved", item.target.name)) for item in items]
    for item in moved:
        os.utime(item.target, (1, 1))
    assert load_images(moved, PHOTO, CACHE, "train").key == key
    Image.fromarray(255 - picture(16, 20)).save(moved[0].target)
    os.utime(moved[0].target, (2, 2))
    assert len({key, *(load_images(some, PHOTO, CACHE, "train").key for some in (moved, moved[1:], moved[::-1]))}) == 4
    assert load_images(moved, replace(PHOTO, fit="squash"), CACHE, "train").key != key


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="asks Linux")
def test_a_full_disk_names_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    items = write_set()
    real = open
    monkeypatch.setattr("builtins.open", lambda path, mode: real("/dev/full" if "pixels" in str(path) else path, mode))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(OSError, match=r"No space left on device: \d\.\d of \d\.\d MB are missing") as raised:
        load_images(items, PHOTO, CACHE, "train")
    assert str(raised.value.filename).startswith("cache/")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no such names")
def test_names_that_are_no_text_are_loaded() -> None:
    for name in (b"caf\xe9.png", b"bad\xe9.png"):
        write(os.fsdecode(name), picture(16, 16))
    Path(os.fsdecode(b"data/bad\xe9.png")).write_bytes(b"")
    write_set()
    splits = list_items("data", recipe(), CACHE)
    images = load_images(splits["train"] + splits["val"], PHOTO, CACHE, "train")
    assert (len(images), len(images.bad)) == (6, 1)


@pytest.mark.parametrize("sketch", [True, False])
def test_many_scenes_are_drawn_as_few_are(sketch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Item(f"{i}", i) for i in range(5)]
    few, many = [], []
    for found, most in ((few, 6), (many, 5)):
        monkeypatch.setattr("data.MANY_SCENES", most)
        found += data._decode_all(items, Loading(16, "crop", "none", sketch, 0), "train", set())
    assert [(item, hashes) for item, _, hashes in few] == [(item, hashes) for item, _, hashes in many]
    assert all(np.array_equal(a, b) for (_, a, _), (_, b, _) in zip(few, many, strict=True))


def test_decode_draws_demo_scenes() -> None:
    colour, sketch = scenes.draw(3, 32)
    loading = Loading(32, "crop", "none", sketch=True)
    assert np.array_equal(decode(Item("scene_0003", 3), loading), np.concatenate([colour, sketch], 2))
    assert np.array_equal(decode(Item("scene_0003", 3), replace(loading, sketch=False)), colour)


def test_gather_cuts_centres_corners_and_flips_exactly() -> None:
    pictures = [picture(16, 24, 0), picture(21, 16, 1)]
    images = in_memory(pictures)
    _, centre = images.gather([1, 0], 16)
    assert centre.shape == (2, 3, 16, 16)
    assert centre.dtype == torch.uint8
    assert np.array_equal(centre[0].permute(1, 2, 0), pictures[1][2:18])
    assert np.array_equal(centre[1].permute(1, 2, 0), pictures[0][:, 4:20])
    corners = np.array([[0.0, 0.0], [0.999, 0.999], [0.5, 0.0]])
    source, target = images.gather([0, 0, 1], 16, corners, np.array([False, True, False]))
    assert np.array_equal(target[0].permute(1, 2, 0), pictures[0][:, :16])
    assert np.array_equal(target[1].permute(1, 2, 0), pictures[0][:, 8:][:, ::-1])
    assert np.array_equal(target[2].permute(1, 2, 0), pictures[1][3:19])
    assert source is target


def test_source_and_target_are_cut_alike() -> None:
    colour = [picture(14, 20, i) for i in range(8)]
    images = in_memory([np.concatenate([c, 255 - c], 2) for c in colour])
    batches = list(training_batches(images, 4, 8, 0.5, 1, 1))
    assert len(batches) == 2
    for source, target in batches:
        assert source.shape == target.shape == (4, 3, 8, 8)
        assert torch.equal(source, 255 - target)


def stalling(stalled: threading.Event, number: int = 0) -> Iterator[str]:
    """Yield one item, and then wait, as for a download that has stalled; `number`: of a signal that comes then."""
    yield "first"
    if number:
        os.kill(os.getpid(), number)
    stalled.wait()
    yield "second"


def test_nobody_waits_for_an_item_that_is_not_wanted(time_limit: None) -> None:
    stalled = threading.Event()
    for item in ahead(stalling(stalled)):
        assert item == "first"
        break
    assert not stalled.is_set()
    stalled.set()
    assert list(ahead(stalling(stalled))) == ["first", "second"]


def test_a_thread_within_torch_does_not_abort_the_process_that_ends() -> None:
    """Each of four threads is within torch for half a second, in which the process ends; one never ends."""
    program = """
import threading, time, torch
import data
from data import ahead

def items():
    yield "first"
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        torch.stack([torch.zeros(3, 16, 16)] * 4).float().permute(0, 2, 3, 1).contiguous()

def stalling():
    yield "first"
    threading.Event().wait()

data.EXIT_SECONDS = 2.0
kept = [ahead(made) for made in (stalling(), items(), items(), items(), items())]
assert [next(made) for made in kept] == ["first"] * 5
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.fixture
def heard() -> Iterator[None]:
    """Let SIGHUP be heard also where the tests run under nohup, which has it ignored."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait_for_an_item(number: int, time_limit: None, heard: None) -> None:
    stalled = threading.Event()
    with noted_signals() as caught:
        assert list(ahead(stalling(stalled, number), caught)) == ["first"]
    assert caught == [number]
    with noted_signals() as caught:
        threading.Timer(0.5, stalled.set).start()
        assert list(ahead(stalling(stalled, number))) == ["first", "second"]  # other processes wait for it
    assert caught == [number]


def test_an_error_of_a_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(ahead(1 // number for number in (1, 0)))


def test_training_batches_show_every_picture_once() -> None:
    numbers = [batch[:, 0, 0, 0].tolist() for batch in epoch(numbered(11))]
    assert [len(batch) for batch in numbers] == [4, 4]  # a last batch that is not full is left out
    seen = numbers[0] + numbers[1]
    assert len(set(seen)) == 8
    assert seen != sorted(seen)
    (batch,) = epoch(numbered(3))  # unless it is the only one
    assert sorted(batch[:, 0, 0, 0].tolist()) == [0, 1, 2]
    assert [data.steps_per_epoch(count, 4) for count in (3, 4, 7, 8)] == [1, 1, 1, 2]


def test_training_batches_depend_on_seed_and_epoch_alone_and_go_on_where_they_stopped() -> None:
    images = numbered(24)
    reference = epoch(images)
    np.random.seed(0)  # noqa: NPY002 - global state must not matter
    torch.manual_seed(0)
    assert same(reference, epoch(images))
    assert not same(reference, epoch(images, seed=2))
    assert not same(reference, epoch(images, number=2))
    for start in (1, 5, 6):
        assert same(reference[start:], epoch(images, start=start))


@pytest.mark.parametrize(("flip", "low", "high"), [(0.0, 0, 0), (0.5, 40, 80), (1.0, 120, 120)])
def test_flips_and_corners_are_spread(flip: float, low: int, high: int) -> None:
    targets = torch.cat(epoch(numbered(120), flip=flip))
    columns = targets[:, 2].int()
    mirrored = columns[:, 0, 0] > columns[:, 0, -1]
    assert low <= int(mirrored.sum()) <= high
    assert set(targets[:, 1, 0, 0].tolist()) == set(range(5))  # tops of 8 px cuts of 12 px
    assert set(columns.amin((1, 2)).tolist()) == set(range(5))


def test_batches_are_cut_in_the_training_order() -> None:
    images = numbered(11)
    order = list(training_order(11, 4, 0.5, 1, 3))
    assert same([images.gather(ids, 8, *cut)[1] for ids, *cut in order], epoch(images, number=3))
    rng = np.random.default_rng([1, 3])  # permutation, corners, flips: changing this would break a resume
    ids, corners, flips = rng.permutation(11), rng.random((11, 2)), rng.random(11) < 0.5
    assert [batch for batch, *_ in order] == [ids[:4].tolist(), ids[4:8].tolist()]
    for batch, its_corners, its_flips in order:
        assert np.array_equal(its_corners, corners[batch])
        assert np.array_equal(its_flips, flips[batch])


@pytest.mark.parametrize("sketch", [False, True])
def test_load_images_is_what_decode_returns_and_decodes_once(sketch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    items, loading = write_set(), replace(PHOTO, sketch=sketch)
    images = load_images(items, loading, CACHE, "train")
    assert images.stems == [item.stem for item in items]
    assert (images.bad, images.channels, len(images)) == ([], 6 if sketch else 3, 5)
    assert isinstance(images.pixels, np.memmap)
    assert all(np.array_equal(images.picture(i), decode(item, loading)) for i, item in enumerate(items))
    monkeypatch.delattr(data, "decode")
    again = load_images(items, loading, CACHE, "train")
    assert again.key == images.key
    assert np.array_equal(again.pixels, images.pixels)
    monkeypatch.setattr(data, "decode", decode, raising=False)
    write("p2.png", 255 - picture(18, 20, 2))
    changed = load_images(items, loading, CACHE, "train")
    assert changed.key != images.key
    assert np.array_equal(changed.picture(2), decode(items[2], loading))


def test_cache_key_sees_files_order_names_and_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    items = write_set(3)
    others = [items[:2], items[::-1], [Item("scene_0001", 1)]]
    others += [[replace(items[0], **change), *items[1:]] for change in ({"stem": "x"}, {"source": Path(".")})]
    keys = [cache_key(some, PHOTO) for some in (items, *others)]
    changes: list[dict[str, Any]] = [{"load_size": 17}, {"fit": "squash"}, {"pair": "AB"}, {"sketch": True}]
    for change in (*changes, {"min_colorfulness": 1.0}):
        keys.append(cache_key(items, replace(PHOTO, **change)))
    monkeypatch.setattr(scenes, "VERSION", scenes.VERSION + 1)
    keys.append(cache_key([Item("scene_0001", 1)], PHOTO))
    stat = os.stat(items[0].target)
    os.utime(items[0].target, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    keys.append(cache_key(items, PHOTO))
    assert len(set(keys)) == len(keys)
    assert cache_key(items, PHOTO) == keys[-1]


def test_bad_files_are_skipped_and_reported() -> None:
    items = [replace(item, label=label) for item, label in zip(write_set(3), ("cat", "bad", ""), strict=True)]
    items[1].target.write_bytes(b"")
    for _ in range(2):  # decoded, then cached
        images = load_images(items, PHOTO, CACHE, "train")
        assert (images.stems, images.labels, images.gray) == (["p0", "p2"], ["cat", ""], 0)
        (sentence,) = images.bad
        assert "data/p1.png" in sentence
        assert np.array_equal(images.picture(1), decode(items[2], PHOTO))


def test_a_link_that_leads_nowhere_is_a_bad_file_like_others() -> None:
    items = [*write_set(3), *(Item(name, Path(f"data/{name}.png")) for name in ("p8", "p9"))]
    os.symlink("p8.png", items[-2].target)  # which leads to itself
    os.symlink("nowhere.png", items[-1].target)
    images = load_images(items, PHOTO, CACHE, "train")
    assert (len(images), images.bad[1:]) == (3, ["data/p9.png: no such file"])
    assert images.bad[0].startswith("data/p8.png: ")


@pytest.mark.parametrize("bug", [ValueError, MemoryError, KeyboardInterrupt])
def test_what_is_not_the_files_fault_ends_the_loading_and_leaves_nothing_behind(
    bug: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = write_set(data.CHUNK + 6)

    def fail(item: Item, loading: Loading, cut: set[str]) -> Array:
        if item.stem == "p66":  # of the second chunk
            raise bug("not the file's fault")
        return decode(item, loading)

    monkeypatch.setattr(data, "decode", fail)
    with pytest.raises(bug, match="not the file's fault") as caught:
        load_images(items, PHOTO, CACHE, "train")
    assert caught.type is bug
    assert caught.traceback[-1].name == "fail"
    assert list(CACHE.iterdir()) == []
    monkeypatch.setattr(data, "decode", decode)
    assert len(load_images(items, PHOTO, CACHE, "train")) == data.CHUNK + 6


def test_open_split_loads_what_a_run_remembers() -> None:
    write_set(12)
    made = recipe(seed=7)
    run = record(made, "data")
    splits = list_items("data", made, CACHE)
    for split in ("train", "val"):
        images = data.open_split(run, None, split, CACHE)
        assert images.stems == [item.stem for item in splits[split]]
    Path("data").rename("moved")
    assert data.open_split(run, "moved", "val", CACHE).stems == images.stems
    with pytest.raises(UserError, match="other"):
        data.open_split(replace(run, data="moved", loading={"other": 1}), None, "val", CACHE)


def test_a_run_knows_its_own_pictures_where_they_have_moved() -> None:
    for i in range(12):
        write(f"p{i}.png", picture(16, 20, i))
    made = recipe(limit=9, min_colorfulness=1.0)
    run = replace(record(made, str(Path("data").resolve())), images={"val": 1})
    images = data.open_split(run, None, "val", CACHE)
    run = replace(run, fingerprints={"val": images.key})
    Path("data").rename("moved")
    again = data.open_split(run, "moved", "val", CACHE)
    assert (again.stems, again.key) == (images.stems, images.key)
    write("more.png", picture(16, 20, 99))
    Path("moved").rename("data/again")
    assert len(data.open_split(run, "data", "val", CACHE)) > 0  # other data, all of it
    with pytest.raises(UserError, match=r"^no .*/nowhere, on which the run was trained; .* its new place with --data$"):
        data.open_split(replace(run, data=str(Path("nowhere").resolve())), None, "val", CACHE)


def test_open_split_of_other_data_looks_at_it_anew() -> None:
    pair = np.concatenate([picture(16, 16), picture(16, 16, 1)[..., :1].repeat(3, 2)], 1)
    for i in range(4):
        write(f"p{i}.png", pair)
    images = data.open_split(record(recipe(input="sketch", limit=1), "nowhere"), "data", "val", CACHE)
    assert np.array_equal(images.picture(0), np.concatenate([pair[:, :16], pair[:, 16:]], 2))


def test_open_split_of_other_data_looks_for_the_runs_own_folders_first() -> None:
    colours = picture(16, 16)
    for i in range(2):
        for folder, image in (("after", colours), ("before", colours[..., :1].repeat(3, 2))):
            Path("data", folder).mkdir(parents=True, exist_ok=True)
            write(f"{folder}/p{i}.png", image)
    of_drawings = recipe(input="sketch", pair_folders="after/before", limit=1)
    images = data.open_split(record(of_drawings, "nowhere"), "data", "val", CACHE)
    assert images.channels == 6
    assert np.array_equal(images.picture(0)[..., :3], colours)
    other = record(replace(of_drawings, pair_folders="x/y"), "nowhere")
    with pytest.raises(UserError, match="say --pair-folders"):  # it has neither these nor known ones
        data.open_split(other, "data", "val", CACHE)
    shutil.move("data", "old")
    for folder, name in (("after", "color"), ("before", "sketch")):
        shutil.move(f"old/{folder}", f"data/{name}")
    assert data.open_split(other, "data", "val", CACHE).channels == 6


def faded(image: Array, keep: float) -> Array:
    """Return a picture with a share of its colour."""
    gray = image.mean(2, keepdims=True)
    return (gray + keep * (image - gray)).round().astype(np.uint8)


def test_near_gray_pictures_are_left_out_and_counted() -> None:
    noise = picture(16, 20)
    items = [write(f"p{i}.png", faded(noise, keep)) for i, keep in enumerate((0.0, 1.0, 0.05, 0.9, 0.0))]
    least = colorfulness(noise) / 2
    for _ in range(2):  # decoded, then cached
        images = load_images(items, replace(PHOTO, min_colorfulness=least), CACHE, "train")
        assert (images.stems, images.gray, images.bad) == (["p1", "p3"], 3, [])
        assert np.array_equal(images.picture(1), decode(items[3], PHOTO))
    assert (len(load_images(items, PHOTO, CACHE, "train")), images.channels) == (5, 3)


def test_tinted_and_stamped_pictures_are_left_out_as_near_gray() -> None:
    scene = scenes.draw(2, 64)[0]
    gray = scene.mean(2, keepdims=True).repeat(3, 2)
    stamped = gray.copy()
    stamped[8:14, 8:14] = (220, 20, 30)  # 0.9 %
    pictures = {"colour": scene, "sepia": gray * [1, 0.8, 0.5], "stamped": stamped}
    assert all(colorfulness(made.astype(np.uint8)) > 10 for made in pictures.values())
    items = [write(f"{name}.png", made.round().astype(np.uint8)) for name, made in pictures.items()]
    images = load_images(items, replace(PHOTO, min_colorfulness=10.0), CACHE, "train")
    assert (images.stems, images.gray) == (["colour"], 2)
    assert len(load_images(items, PHOTO, CACHE, "train")) == 3


def test_scenes_that_processes_draw_are_judged_too() -> None:
    items = [Item(f"scene{i}", i) for i in range(data.MANY_SCENES)]
    found = load_images(items, replace(PHOTO, min_colorfulness=90.0), CACHE, "train")
    assert 0 < found.gray < len(items)
    few = load_images(items[:20], replace(PHOTO, min_colorfulness=90.0), CACHE, "train")
    assert few.stems == found.stems[: len(few)]


def test_the_rule_for_gray_is_in_the_keys_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    items = write_set(3)
    before = [cache_key(items, replace(PHOTO, min_colorfulness=least)) for least in (0.0, 1.0)]
    monkeypatch.setattr(data, "GRAY_RULE", data.GRAY_RULE + 1)
    after = [cache_key(items, replace(PHOTO, min_colorfulness=least)) for least in (0.0, 1.0)]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_near_gray_is_judged_by_the_colour_half() -> None:
    colourful, gray = picture(16, 16), faded(picture(16, 16, 1), 0.0)
    pairs = {"a.png": (colourful, gray), "b.png": (gray, colourful)}
    items = [write(name, np.concatenate(pair, 1)) for name, pair in pairs.items()]
    loading = replace(PHOTO, pair="AB", sketch=True, min_colorfulness=10.0)
    assert load_images(items, loading, CACHE, "train").stems == ["a"]


@pytest.mark.parametrize(("content", "reason"), [(None, "min_colorfulness"), (b"", "data/p0.png")])
def test_no_image_that_can_be_used_is_one_sentence(content: bytes | None, reason: str) -> None:
    items = [write(f"p{i}.png", faded(picture(16, 16, i), 0.0)) for i in range(3)]
    for item in items if content is not None else ():
        item.target.write_bytes(content)
    with pytest.raises(UserError, match=rf"none of the 3 train images .*{reason}"):
        load_images(items, replace(PHOTO, min_colorfulness=10.0), CACHE, "train")
    assert list(CACHE.iterdir()) == []


def test_an_archive_is_decoded_as_its_folder_is() -> None:
    items = write_set()
    ours = load_images(packed(items), PHOTO, CACHE, "train")
    theirs = load_images(items, PHOTO, CACHE, "train")
    assert ours.key == theirs.key  # whose files hold the same
    assert (ours.stems, ours.index.tolist()) == (theirs.stems, theirs.index.tolist())
    assert np.array_equal(ours.pixels, theirs.pixels)


@pytest.mark.parametrize("archived", [False, True])
def test_files_of_more_than_8_bits_are_trained_on_as_they_are_coloured(archived: bool) -> None:
    levels = picture(16, 24).astype(np.float32)
    deep = (levels * 257).astype(np.uint16)
    Path("data").mkdir()
    tifffile.imwrite("data/float.tif", levels / 255, photometric="rgb")
    tifffile.imwrite("data/deep.tif", deep, photometric="rgb")
    Path("data/deep.png").write_bytes(imagecodecs.png_encode(deep))
    Image.fromarray(deep[..., 0]).save("data/gray.png")
    items = [Item(path.name, path) for path in sorted(Path("data").iterdir())]
    images = load_images(packed(items) if archived else items, PHOTO, CACHE, "train")
    assert images.bad == []
    coloured = {path.name: next(read_frames(scan(path))) for path in Path("data").iterdir()}
    for i, item in enumerate(items):
        assert np.array_equal(images.picture(i), flatten(coloured[item.stem]))
        gray = item.stem == "gray.png"
        assert np.array_equal(images.picture(i), picture(16, 24)[..., :1].repeat(3, 2) if gray else levels)


def test_cache_key_sees_an_archives_time_and_size() -> None:
    items = packed(write_set())
    keys = [cache_key(items, PHOTO), cache_key(items[1:], PHOTO)]
    stat = os.stat("set.tar")
    os.utime("set.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    keys.append(cache_key(items, PHOTO))
    with open("set.tar", "ab") as file:
        file.write(bytes(512))
    os.utime("set.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    keys.append(cache_key(items, PHOTO))
    assert len(set(keys)) == len(keys)
    assert cache_key(items, PHOTO) == keys[-1]


@pytest.mark.parametrize(
    ("changes", "pair", "sketch"),
    [
        ({"input": "gray"}, "AB", False),
        ({"input": "gray+line"}, "AB", True),
        ({"input": "L"}, "none", False),  # photographs are no pairs, and nobody looks
        ({"input": "L", "pair": "BA"}, "BA", False),
        ({"input": "line", "pair": "none"}, "none", True),
    ],
)
def test_what_a_recipe_loads_of_pairs(changes: dict[str, Any], pair: str, sketch: bool) -> None:
    colour, drawing = picture(16, 16), picture(16, 16, 1)[..., :1].repeat(3, 2)
    items = [write(f"p{i}.png", np.concatenate([colour, drawing], 1)) for i in range(2)]
    loading = find_loading(recipe(**changes, min_colorfulness=3.0), items)
    assert loading == Loading(16, "crop", pair, sketch, 3.0)
    out = decode(items[0], loading)
    if pair == "AB":
        assert np.array_equal(out, np.concatenate([colour, drawing], 2) if sketch else colour)
    if changes["input"] == "line":
        whole = torch.from_numpy(read_picture(items[0].target)).permute(2, 0, 1)[None]
        assert np.array_equal(out[..., 3:], line_art.line_art(whole)[0].permute(1, 2, 0).numpy())


def test_pairs_that_are_not_there_are_one_sentence() -> None:
    for item in (Item("scene_0000", 0), Item("a", Path("a.png"), Path("b.png"))):
        with pytest.raises(UserError, match="--pair AB, but"):
            find_loading(recipe(input="sketch", pair="AB"), [item])


def test_gather_fixed_is_the_centre_and_its_fixed_input() -> None:
    images = in_memory([np.concatenate([picture(16, 20, i), picture(16, 20, 9 - i)], 2) for i in range(3)])
    source, target = images.gather([2, 0], 16)
    for made in (recipe(input="sketch"), recipe(input="gray+line", grain_p=1.0)):
        given, truth = images.gather_fixed([2, 0], made)
        assert torch.equal(given, make_fixed_input(source, target, made, [2, 0]))
        assert torch.equal(truth, target)


@pytest.mark.parametrize(("count", "limit", "used"), [(1, 9, [0]), (21, 99, range(21)), (5, 3, [0, 2, 4])])
def test_mean_ab_is_scikit_images_of_evenly_spaced_pictures(count: int, limit: int, used: Sequence[int]) -> None:
    pictures = [np.minimum(picture(16, 20, i) // 2 + 6 * i, 255).astype(np.uint8) for i in range(count)]
    expected = np.mean([rgb2lab(pictures[i][:, 2:18])[..., 1:].mean((0, 1)) for i in used], 0)
    assert mean_ab(in_memory(pictures), 16, limit) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(0, 4, []), (1, 4, [0]), (3, 4, [0, 1, 2]), (5, 3, [0, 2, 4]), (6, 4, [0, 1, 3, 5]), (9, 1, [0])],
)
def test_evenly_spaced_keeps_both_ends_and_rounds_down(count: int, most: int, expected: list[int]) -> None:
    assert evenly_spaced(count, most) == expected


def test_the_key_does_not_depend_on_how_a_path_is_written() -> None:
    item = write("p.png", picture(16, 16))
    assert not item.target.is_absolute()
    assert cache_key([item], PHOTO) == cache_key([replace(item, target=item.target.resolve())], PHOTO)
