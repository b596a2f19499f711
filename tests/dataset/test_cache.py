"""dataset/cache.py through data.load_images: made once, whole, checked, held while in use, removed to make room."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data
from config import ROOT, UserError
from data import ImageSet, Loading, load_images, training_batches
from dataset import cache as caches
from dataset.folders import Item
from imaging.pixels import Array

CACHE = Path("cache")
PHOTO = Loading(load_size=16, fit="crop", pair="none", sketch=False)
MB = 1e-3  # GB


def write_set(count: int = 5, side: int = 20) -> list[Item]:
    items = []
    for i in range(count):
        path = Path("data", f"p{i}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (side, side, 3), np.uint8)).save(path)
        items.append(Item(path.stem, path))
    return items


def load(items: list[Item], loading: Loading = PHOTO, cache_gb: float | None = None) -> ImageSet:
    return load_images(items, loading, CACHE, "train", cache_gb)


def pixels(images: ImageSet) -> list[list[int]]:
    return [images.picture(i).ravel().tolist() for i in range(len(images))]


def folders() -> list[str]:
    """Return what lies in the cache: `whole` with pixels, `listed` without, else its name."""
    kinds = {True: "whole", False: "listed"}
    made = [path for path in CACHE.iterdir() if (path / "meta.json").exists()]
    return sorted(
        [kinds[(path / "pixels.bin").exists()] for path in made] + [p.name for p in {*CACHE.iterdir()} - {*made}]
    )


def test_two_at_once_decode_once(monkeypatch: pytest.MonkeyPatch, time_limit: None) -> None:
    """Threads have one process number, as the processes of two containers may have."""
    items, counted, both = write_set(), [], threading.Event()

    def slow(item: Item, loading: Loading, cut: set[str]) -> Array:
        counted.append(item.stem)
        both.wait(1)  # until the other has begun, too; one that waits for its turn never sets it
        return data.decode_file(item, loading, cut)

    monkeypatch.setattr(data, "decode_file", data.decode, raising=False)
    monkeypatch.setattr(data, "decode", slow)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(load, [items, items])
    assert sorted(counted) == [item.stem for item in items]
    assert pixels(one) == pixels(other) == [data.decode_file(item, PHOTO).ravel().tolist() for item in items]
    assert folders() == ["whole"]


def test_two_at_once_on_a_disk_without_locks_do_not_hurt_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    items, both = write_set(), threading.Barrier(2, timeout=20)

    def slow(item: Item, loading: Loading, cut: set[str]) -> Array:
        if item is items[0]:
            both.wait()  # each is making it
        return data.decode_file(item, loading, cut)

    monkeypatch.setattr(data, "decode_file", data.decode, raising=False)
    monkeypatch.setattr(data, "decode", slow)
    monkeypatch.setattr(caches, "lock", lambda file, certain=False, **how: not certain)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(load, [items, items])
    assert pixels(one) == pixels(other) == [data.decode_file(item, PHOTO).ravel().tolist() for item in items]
    monkeypatch.setattr(data, "decode", data.decode_file)
    seen = pixels(one)  # which may lie in the files that are spoilt now
    spoil(next(path for path in CACHE.iterdir() if (path / "meta.json").exists()), "black")
    assert pixels(load(items)) == seen
    assert folders()[0] == "whole"


def spoil(folder: Path, how: str) -> None:
    path = folder / "pixels.bin"
    if how == "black":
        with open(path, "rb+") as file:
            file.seek(1000)
            file.write(bytes(500))
    elif how == "short":
        os.truncate(path, path.stat().st_size - 1)
    elif how == "gone":
        path.unlink()
    elif how == "torn":
        (folder / "meta.json").write_text((folder / "meta.json").read_text()[:80])
    else:  # of an earlier version
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({key: meta[key] for key in ("stems", "index", "bad")}))


@pytest.mark.parametrize("how", ["black", "short", "gone", "torn", "older"])
def test_a_damaged_cache_is_made_anew(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    items = write_set()
    before = load(items)
    expected, key = pixels(before), before.key
    (folder,) = CACHE.iterdir()
    spoil(folder, how)
    after = load(items)
    assert (pixels(after), after.key) == (expected, key)
    assert ("is damaged" in capsys.readouterr().out) == (how in ("black", "short"))
    assert folders() == ["whole"]


KILLED = """
import os, signal, sys
import data
real = data.decode
def decode(item, loading, cut):
    if item.stem == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(item, loading, cut)
data.decode = decode
from test_cache import load, write_set
load(write_set(70))
"""


@pytest.mark.parametrize("stem", ["p0", "p66"])
def test_what_a_killed_process_leaves_is_removed_and_made_anew(stem: str) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    done = subprocess.run([sys.executable, "-c", KILLED, stem], env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = CACHE.iterdir()
    assert left.suffix == ".tmp"
    shutil.copytree(left, left.with_name("other.123.tmp"))  # of another set, or an earlier version
    items = write_set(70)
    for item in items:
        os.utime(item.target, (1, 1))
    images = load(items)
    assert pixels(images) == [data.decode(item, PHOTO).ravel().tolist() for item in items]
    assert folders() == ["whole"]


def test_what_a_living_process_is_making_stays() -> None:
    with caches.making(CACHE / "other") as partial:
        (partial / "pixels.bin").write_bytes(b"half")
        load(write_set())
        assert (partial / "pixels.bin").read_bytes() == b"half"
        assert folders() == ["other.tmp", "whole"]
    assert folders() == ["whole"]  # nothing was made


def test_without_a_cache_every_batch_is_the_same() -> None:
    items = write_set(9)
    items[4].target.write_bytes(b"no image")
    sketches = replace(PHOTO, load_size=18, sketch=True)
    for loading in (PHOTO, sketches):
        stored, decoded = load(items, loading), load(items[:], loading, cache_gb=None)
        shutil.rmtree(CACHE)
        decoded = load(items, loading, cache_gb=0)
        assert folders() == ["listed"]
        assert decoded.pixels.size == 0
        facts = [(s.stems, s.labels, s.bad, s.gray, s.key, s.hashes, s.index.tolist()) for s in (stored, decoded)]
        assert facts[0] == facts[1]
        for start in (0, 1):
            batches = [list(training_batches(images, 3, 16, 0.5, 1, 2, start)) for images in (stored, decoded)]
            assert len(batches[0]) == len(batches[1]) == 2 - start
            for one, other in zip(*batches, strict=True):
                assert all(map(lambda a, b: bool((a == b).all()), one, other))


def test_a_file_that_was_damaged_since_is_named_when_there_is_no_cache() -> None:
    items = write_set(4)
    images = load(items, cache_gb=0)
    items[2].target.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"data/p2.png"):
        list(training_batches(images, 2, 16, 0.5, 1, 1))


def test_the_oldest_caches_that_nobody_uses_make_room() -> None:
    items = write_set(4)
    sizes = [PHOTO, *(replace(PHOTO, load_size=side) for side in (17, 18, 19))]
    one = sum(len(p) for p in pixels(load(items, sizes[3]))) / 1e9  # GB, of the largest
    shutil.rmtree(CACHE)
    for age, loading in enumerate(sizes[:3]):
        load(items, loading, 3 * one)
        for path in CACHE.glob("*/meta.json"):
            os.utime(path, (path.stat().st_mtime - 100 * (3 - age),) * 2)
    first = CACHE / data.cache_key(items, sizes[0])
    used = load(items, sizes[0], 3 * one)  # opened again, and in use
    load(items, sizes[3], 3 * one)
    assert not (CACHE / data.cache_key(items, sizes[1])).exists()
    assert folders() == ["whole"] * 3
    os.utime(first / "meta.json", (1, 1))
    last = load(items, replace(PHOTO, load_size=15), 1.2 * one)
    assert last.pixels.size == 0  # what is in use leaves no room
    assert folders() == ["listed", "whole"]
    del used
    assert load(items, replace(PHOTO, load_size=15), 1.2 * one).pixels.size
    assert folders() == ["whole"]


def test_a_cache_that_is_half_removed_makes_room_first() -> None:
    items = write_set(4)
    size = sum(map(len, pixels(load(items)))) / 1e9  # GB
    (half,) = CACHE.iterdir()
    (half / "meta.json").unlink()  # by a process that was killed while it made room
    assert load(items, replace(PHOTO, load_size=15), 1.2 * size).pixels.size
    assert folders() == ["whole"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EROFS])
def test_a_cache_that_may_not_be_changed_is_used_as_it_is_and_stays(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = write_set(4)
    expected = pixels(load(items))

    def refuse(path: Path, *_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    size = sum(map(len, expected)) / 1e9
    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", refuse)
        patch.setattr(data, "decode", None)  # nothing is decoded again
        assert pixels(load(items)) == pixels(load(items, cache_gb=2 * size)) == expected
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        assert not caches.make_room(CACHE, 100, size * 1e9)  # and it is no error
    assert folders() == ["whole"]
    assert "damaged" not in capsys.readouterr().out


def test_room_is_looked_for_once_per_chunk_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    items, asked = write_set(9), []
    monkeypatch.setattr(data, "CHUNK", 4)
    monkeypatch.setattr(caches, "make_room", lambda cache, needed, most: asked.append(needed) or True)
    load(items, cache_gb=1)
    assert asked == [count * 16 * 16 * 3 * part // 10 for count, part in ((9, 8), (8, 10), (9, 10))]


def test_a_set_that_will_not_fit_drives_no_other_cache_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CHUNK", 4)
    few, many = write_set(4), write_set(12)
    size = sum(map(len, pixels(load(few)))) / 1e9
    assert not load(many, replace(PHOTO, load_size=15), 1.5 * size).pixels.size  # its first four would fit
    assert folders() == ["listed", "whole"]


def test_a_set_whose_first_pictures_are_large_is_decoded_every_time_and_ends(
    monkeypatch: pytest.MonkeyPatch, time_limit: None
) -> None:
    monkeypatch.setattr(data, "CHUNK", 4)
    items = write_set(12)
    for item in items[:4]:
        wide = np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8)
        Image.fromarray(wide).save(item.target)
    size = sum(map(len, pixels(load(items)))) / 1e9
    shutil.rmtree(CACHE)
    assert not load(items, cache_gb=1.1 * size).pixels.size  # the first four tell of much more
    assert folders() == ["listed"]
    assert load(items, cache_gb=2 * size).pixels.size


def test_a_split_that_is_larger_than_the_limit_is_decoded_every_time() -> None:
    items = write_set(4)
    images = load(items, cache_gb=2 * 16 * 16 * 3 / 1e9)  # two of four
    assert images.pixels.size == 0
    assert pixels(images) == [data.decode(item, PHOTO).ravel().tolist() for item in items]
    assert folders() == ["listed"]
    assert load(items).pixels.size  # without a limit
