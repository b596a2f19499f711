"""Items of a data set -> decoded pixels -> batches of uint8 tensors; as a command, data sets before training.

    python data.py --check photos/                       # what is wrong with its files -> check.csv
    python data.py --pack photos/ shards/ --size 256     # tar files of 256 MB each, and a manifest

Each split is decoded once, into a memory-mapped file below cache/. Pixels become floats on the device.
"""

if __name__ == "__main__":  # before torch is imported, so that --help answers at once
    from dataset.prepare import main
    from runtime.cli import command

    command(main)
    raise SystemExit

import atexit
import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from config import DRAWN_INPUTS, AnyRecipe, Recipe, UserError
from dataset import cache as caches
from dataset import scenes
from dataset.check import ODD_ASPECT
from dataset.degradations import make_fixed_input
from dataset.folders import Item, NoFolders, find_pair, list_items, read_picture, to_bytes
from dataset.shards import is_pattern
from dataset.sources import Blob
from dataset.streams import Stream
from imaging import color
from imaging.line_art import line_art
from imaging.pixels import Array, colorfulness, is_coloured, resize
from runtime.atomic import writing
from runtime.progress import track
from runtime.run_folder import RunRecord
from runtime.weights import file_hash

Corners = NDArray[np.float64]  # (N, 2) in [0, 1): positions of crops from top (left) to bottom (right)
T = TypeVar("T")
Flips = NDArray[np.bool_]  # (N,): which crops are mirrored left to right
MAX_ASPECT = 3  # long side / short side; what is longer is cropped around the centre
VERSION = 4  # of the cached pixels; raise it when decoding changes by more than a rounding
GRAY_RULE = 2  # what min_colorfulness leaves out; raise it when that changes
SIGNAL_SECONDS = 0.2  # between two looks for a signal
EXIT_SECONDS = 3.0  # the longest wait, as the process ends, for threads that make batches
WAITS = (1.0, 10.0, 60.0, 300.0)  # s, after which a stream that gave nothing is read again
CHUNK = 64  # images that are decoded before they are written; bounds the memory
MANY_SCENES = 100  # from so many on, scenes are drawn by processes, which take half a second to start


@dataclass(frozen=True)
class Loading:
    """How files become pixels. See the fields of the same names in config.Recipe."""

    load_size: int
    fit: str
    pair: str  # settled: AB | BA | none
    sketch: bool  # keep a sketch beside each colour image
    min_colorfulness: float = 0.0


@dataclass(frozen=True)
class ImageSet:
    """A decoded split: (H, W, C) uint8 images, one after the other; C = 6: the colour, then its sketch."""

    stems: list[str]
    labels: list[str]  # class names, empty where there are none
    pixels: NDArray[np.uint8]  # memory-mapped, flat
    index: NDArray[np.int64]  # (N, 3): offset, height, width
    channels: int
    bad: list[str]  # one sentence per file that cannot be read
    gray: int  # images left out because of min_colorfulness
    key: str  # hash of what the files hold and of how they were loaded, wherever they lie
    cut: list[str] = field(default_factory=list)  # stems of sketches of another shape than their colour image
    hashes: list[str] = field(default_factory=list)  # of what the images' files hold
    decode: Callable[[int], Array] | None = None  # gives image i where there is no room for pixels
    stream: Stream | None = None  # which is trained on in place of these images, its head
    loading: Loading | None = None  # of the images of a stream

    def __len__(self) -> int:
        return len(self.stems)

    @property
    def per_epoch(self) -> int:
        """Images of an epoch, of all processes together."""
        return self.stream.count if self.stream else len(self)

    @property
    def long(self) -> list[str]:
        """Stems of images that are as long as they may be, or were longer and are cut."""
        short, side = self.index[:, 1:].min(1), self.index[:, 1:].max(1)
        return [self.stems[i] for i in np.flatnonzero(side == MAX_ASPECT * short)]

    def picture(self, i: int) -> Array:
        """Return image i as (H, W, 3|6) uint8."""
        if self.decode is not None:
            return self.decode(i)
        offset, height, width = (int(value) for value in self.index[i])
        shape = (height, width, self.channels)
        return self.pixels[offset : offset + height * width * self.channels].reshape(shape)

    def pictures(self, ids: Sequence[int]) -> Iterator[Array]:
        """Yield images as `picture` does; those that have to be decoded in threads."""
        if self.decode is None or len(ids) == 1:
            yield from map(self.picture, ids)
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield from pool.map(self.picture, ids)

    def gather(
        self, ids: Sequence[int], size: int, corners: Corners | None = None, flips: Flips | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return square crops of the images `ids`, by default their centres, as a batch.

        Returns:
            source and target, each (N, 3, size, size) uint8; the same tensor where there are no sketches.
        """
        return cut_squares(self.pictures(ids), (len(ids), size, size, self.channels), corners, flips)

    def gather_fixed(self, ids: list[int], recipe: Recipe) -> tuple[Tensor, Tensor]:
        """Return fixed inputs (N, 1|3, S, S) and targets (N, 3, S, S), uint8, of the centres of images."""
        source, target = self.gather(ids, recipe.test_size)
        return make_fixed_input(source, target, recipe, ids), target


def cut_squares(
    pictures: Iterable[Array], shape: tuple[int, int, int, int], corners: Corners | None, flips: Flips | None
) -> tuple[Tensor, Tensor]:
    """Return square crops as `gather` does; `shape`: (N, size, size, 3|6)."""
    size, out = shape[1], np.empty(shape, np.uint8)
    for row, picture in enumerate(pictures):
        spare = np.array(picture.shape[:2]) - size
        top, left = spare // 2 if corners is None else (corners[row] * (spare + 1)).astype(int)
        square = picture[top : top + size, left : left + size]
        out[row] = square[:, ::-1] if flips is not None and flips[row] else square
    tensor = torch.from_numpy(out).permute(0, 3, 1, 2)  # (N, 3|6, size, size)
    target = tensor[:, :3]
    return (tensor[:, 3:] if shape[3] == 6 else target), target


def evenly_spaced(count: int, most: int) -> list[int]:
    """Return at most `most` evenly spaced indices of `count` things, the first and the last among them."""
    return np.linspace(0, count - 1, min(count, most)).astype(int).tolist()


def training_batches(
    images: ImageSet, batch_size: int, size: int, flip: float, seed: int, epoch: int, start: int = 0,
    rank: int = 0, world: int = 1, signals: Sequence[int] = (),
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Yield source and target of an epoch's batches, shuffled, cropped and flipped, from step `start` on.

    `signals`: a list to which signals are added as they come; once it holds one, no further batch is waited for.
    """
    if images.stream is not None:
        yield from ahead(stream_batches(images, batch_size, size, flip, seed, epoch, start, rank, world), signals)
        return
    order = training_order(len(images), batch_size, flip, seed, epoch, start, rank, world)
    batches = (images.gather(ids, size, corners, flips) for ids, corners, flips in order)
    yield from batches if images.decode is None else ahead(batches, signals)


def ahead(items: Iterator[T], signals: Sequence[int] = ()) -> Iterator[T]:
    """Yield items that a thread makes: the next one while the caller works with one.

    Nobody waits for an item that is no longer wanted, as of a stream that has stalled. `signals` is a list to which
    signals are added as they come: once it holds one, the wait ends, and the items do.
    """
    coming = _make_next(items)
    while True:
        while not signals and not wait([coming], SIGNAL_SECONDS).done:
            pass
        if not coming.done() or (item := coming.result()) is None:
            return
        coming = _make_next(items)
        yield item


_threads: list[threading.Thread] = []  # that make items


def _make_next(items: Iterator[T]) -> "Future[T | None]":
    """Let a thread make the next item, None at the end; no executor, which waits for it however long it takes."""
    coming: Future[T | None] = Future()

    def make() -> None:
        try:
            coming.set_result(next(items, None))
        except BaseException as error:
            coming.set_exception(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    _threads[:] = [*filter(threading.Thread.is_alive, _threads), thread]
    return coming


@atexit.register
def _wait_for_threads() -> None:
    """Wait a little: Python ends such threads as it ends, and one within torch then aborts the process, by SIGABRT."""
    end = time.monotonic() + EXIT_SECONDS
    for thread in _threads:
        thread.join(max(0.0, end - time.monotonic()))


def stream_batches(
    images: ImageSet, batch_size: int, size: int, flip: float, seed: int, epoch: int, start: int = 0,
    rank: int = 0, world: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Yield source and target of the batches of an epoch of a stream, as many for each process.

    They depend on seed, epoch, rank and world alone; before step `start` images are decoded in vain. A process whose
    shards end too early begins them again.
    """
    noise = np.random.default_rng([seed, epoch, rank])
    pictures = _stream_pictures(images, seed, epoch, rank, world)
    for step in range(steps_per_epoch(images.per_epoch, batch_size * world)):
        batch = [*islice(pictures, min(batch_size, images.per_epoch))]
        corners, flips = noise.random((len(batch), 2)), noise.random(len(batch)) < flip
        if step >= start:
            yield cut_squares(batch, (len(batch), size, size, images.channels), corners, flips)


def _stream_pictures(images: ImageSet, seed: int, epoch: int, rank: int, world: int) -> Iterator[Array]:
    """Yield the decoded images of a stream for ever; those that cannot be read, or are near gray, are left out.

    Raises UserError where not one can be used, nor some time later.
    """
    stream, loading, waits = images.stream, images.loading, [*WAITS]

    def attempt(blob: Blob) -> Array | None:
        try:
            picture = decode(Item(blob.name, blob), loading)
        except UserError as error:
            stream.tell(f"skipped {error}")
            return None
        return None if is_near_gray(picture, loading.min_colorfulness) else picture

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while True:
            usable, blobs = False, stream.images(seed, epoch, rank, world)
            while chunk := [*islice(blobs, CHUNK)]:
                for picture in pool.map(attempt, chunk):
                    if picture is not None:
                        usable, waits = True, [*WAITS]
                        yield picture
            if usable:
                stream.tell("a process has fewer pictures than its part of an epoch: it reads its shards again")
            elif not waits:
                last = f": {stream.said[-1]}" if stream.said else ""
                raise UserError(f"none of the images of the stream {stream.urls[0]} ... can be used{last}")
            else:  # as while a network is down
                time.sleep(waits.pop(0))


def training_order(
    images: int, batch_size: int, flip: float, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1
) -> Iterator[tuple[list[int], Corners, Flips]]:
    """Yield the ids, corners and flips of each batch of one of `world` processes in an epoch, from step `start` on.

    All random numbers depend on (seed, epoch) alone, so that a resumed epoch continues exactly. A last batch
    that is not full is left out, unless it is the only one. `world` processes get equal parts of a batch of
    world x batch_size, so that together they see what one process with that batch sees.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(images)
    corners = rng.random((images, 2))
    flips = rng.random(images) < flip
    for step in range(start, steps_per_epoch(images, batch_size * world)):
        ids = order[(step * world + rank) * batch_size : (step * world + rank + 1) * batch_size]
        yield ids.tolist(), corners[ids], flips[ids]


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of batches that training_order yields."""
    return max(1, images // batch_size)


def decode(item: Item, loading: Loading, cut: set[str] | None = None) -> Array:
    """Read one item as (H, W, 3) uint8, or (H, W, 6) where its sketch follows the colour.

    A sketch of another shape is cut around its centre, and its stem is added to `cut`.

    Raises UserError, which names the file, where it cannot be read, or is a pair of odd width.
    """
    if isinstance(item.target, int):
        return layers(scenes.draw(item.target, loading.load_size), loading)
    least = loading.load_size if loading.pair == "none" else 0  # of a pair side by side, the width must be even
    colour = read_picture(item.target, least)
    sketch = None if item.source is None else read_picture(item.source, least)
    if sketch is None and loading.pair != "none":
        width = colour.shape[1]
        if width % 2:
            raise UserError(f"{item.target}: a pair needs an even width, this one is {width} px wide")
        left, right = np.split(colour, 2, 1)
        colour, sketch = (left, right) if loading.pair == "AB" else (right, left)
    aspect = colour.shape[0] / colour.shape[1]
    colour = fit_image(colour, loading.load_size, loading.fit)
    if not loading.sketch:
        return colour
    if sketch is None:
        planes = torch.from_numpy(colour).permute(2, 0, 1)[None]  # (1, 3, H, W)
        drawn = line_art(planes)[0].permute(1, 2, 0).numpy()
    else:
        ratio = sketch.shape[0] / sketch.shape[1] / aspect
        if max(ratio, 1 / ratio) > ODD_ASPECT:
            sketch = crop_to(sketch, aspect)
            if cut is not None:
                cut.add(item.stem)
        drawn = resize(fit_image(sketch, loading.load_size, loading.fit), *colour.shape[:2])
    return np.concatenate([colour, drawn], 2)


def layers(scene: tuple[Array, Array], loading: Loading) -> Array:
    """Return of a drawn scene, colour and sketch (H, W, 3), what `decode` returns."""
    return np.concatenate(scene, 2) if loading.sketch else scene[0]


def crop_to(image: Array, aspect: float) -> Array:
    """Return the largest part of an image (H, W, 3), around its centre, of an aspect height / width."""
    height, width = image.shape[:2]
    rows, columns = min(height, max(1, round(width * aspect))), min(width, max(1, round(height / aspect)))
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[top : top + rows, left : left + columns]


def fit_image(image: Array, load_size: int, fit: str) -> Array:
    """Resize (H, W, 3) uint8: to a square (squash), or its short side to load_size px (crop)."""
    if fit == "squash":
        return resize(image, load_size, load_size)
    short = min(image.shape[:2])
    limit = MAX_ASPECT * short
    top, left = (max(0, side - limit) // 2 for side in image.shape[:2])
    image, scale = image[top : top + limit, left : left + limit], load_size / short
    return resize(image, *(max(load_size, round(side * scale)) for side in image.shape[:2]))


def find_loading(recipe: Recipe, items: Sequence[Item]) -> Loading:
    """Return how a recipe loads items; pair=auto is settled by looking at them.

    Raises UserError where pairs are asked for and there are none, or where the images disagree.
    """
    pair, sketch = recipe.pair, recipe.input in DRAWN_INPUTS
    if pair in ("AB", "BA") and (isinstance(items[0].target, int) or items[0].source):
        raise UserError(f"--pair {pair}, but this data holds no pairs side by side; leave it out")
    if pair == "auto":  # drawings come as pairs, photographs do not
        pair = "none" if recipe.input == "L" else find_pair(items)
    return Loading(recipe.load_size, recipe.fit, pair, sketch, recipe.min_colorfulness)


def held_out(loading: Loading, recipe: AnyRecipe) -> Loading:
    """Return how images are loaded that are not trained on: large enough for the recipe's test_size."""
    least = recipe.test_size if isinstance(recipe, Recipe) else 0
    return replace(loading, load_size=max(loading.load_size, least))


def open_split(record: RunRecord, data: str | None, split: str, cache: Path, cache_gb: float | None = None) -> ImageSet:
    """Return a decoded split of a run's own data, wherever it lies now, or of other `data`, all of it."""
    recipe, place = record.recipe, str(data or record.data)
    if data and not _holds_own(record, place, cache, cache_gb):  # limits of the training do not apply
        recipe = replace(recipe, limit=0, min_colorfulness=0.0)
        try:
            items = list_items(place, recipe, cache)[split]
        except NoFolders:  # other data need not have pairs in the folders that the run's own had
            items = list_items(place, replace(recipe, pair_folders=""), cache)[split]
        return load_images(items, held_out(find_loading(recipe, items), recipe), cache, split, cache_gb)
    require_place(place)
    return load_images(list_items(place, recipe, cache)[split], _own_loading(record), cache, split, cache_gb)


def require_place(data: str) -> None:
    """Raise UserError where the data of a run, as its record names it, is no longer there."""
    if Path(data).is_absolute() and not Path(data).exists() and not is_pattern(data):
        raise UserError(f"no {data}, on which the run was trained; where it was moved, say its new place with --data")


def _own_loading(record: RunRecord) -> Loading:
    """Return how a run loads images that are not trained on. Raises UserError."""
    try:
        return held_out(Loading(**record.loading), record.recipe)
    except TypeError as error:
        raise UserError(f"recipe.json is damaged, or of another version ({error})") from None


def _holds_own(record: RunRecord, data: str, cache: Path, cache_gb: float | None) -> bool:
    """Tell whether a data set holds the images that a run has validated on."""
    marks = (record.fingerprints, *(one.get("fingerprints", {}) for one in record.resumed))
    known = {found["val"] for found in marks if "val" in found}
    with suppress(UserError):  # other data need not have pairs in the folders that the run's own had
        items = list_items(data, record.recipe, cache)["val"]
        enough = bool(known) and len(items) >= record.images.get("val", 0)
        return enough and load_images(items, _own_loading(record), cache, "val", cache_gb).key in known
    return False


def load_images(
    items: Sequence[Item], loading: Loading, cache: Path, label: str, cache_gb: float | None = None
) -> ImageSet:
    """Return a decoded split, from the cache if it is there. Files that cannot be read are listed in `bad`.

    Args:
        cache_gb: 10^9 bytes that all decoded splits in the cache may take. Of one that finds no room it is only kept
            what there is in it, and its images are decoded whenever they are needed. None: there is no limit.

    Raises UserError where not one image can be used.
    """
    most = math.inf if cache_gb is None else cache_gb * caches.GB
    folder = cache / cache_key(items, loading)
    caches.remove_leftovers(cache)
    while (found := caches.open_cache(folder, most)) is None:
        with caches.making(folder) as partial:
            if caches.open_cache(folder, most) is None:  # else another process was faster
                _fill_cache(folder, partial, items, loading, label, most)
    meta, pixels = found
    index, kept = np.array(meta.pop("index"), np.int64).reshape(-1, 3), meta.pop("kept")
    images = ImageSet(**meta, index=index, pixels=pixels, channels=6 if loading.sketch else 3)
    return images if pixels.size else replace(images, decode=lambda i: decode(items[kept[i]], loading))


def cache_key(items: Sequence[Item], loading: Loading) -> str:
    """Return a hash that changes with the place, name, size or time of any file, and with how files are loaded."""
    digest = hashlib.sha256(_how(loading))
    stats: dict[Path, os.stat_result] = {}  # an archive is looked at once, not once per image
    for item in items:
        for picture in (item.target, item.source):
            path = picture.archive if isinstance(picture, Blob) else picture
            if isinstance(path, Path):
                digest.update(os.fsencode(os.path.realpath(path)))  # which a link to itself does not stop
                with suppress(OSError):  # a link that leads nowhere, which decode will name
                    stats[path] = stats.get(path) or path.stat()
                    digest.update(f" {stats[path].st_size} {stats[path].st_mtime_ns}".encode())
        digest.update(to_bytes(f"{item.stem} {getattr(item.target, 'name', '')}"))
    if items and isinstance(items[0].target, int):
        digest.update(f"scenes {scenes.VERSION}".encode())
    return digest.hexdigest()[:16]


def _how(loading: Loading) -> bytes:
    """Return what the pixels of a file depend on beside the file."""
    rule = f" gray {GRAY_RULE}" if loading.min_colorfulness else ""
    return f"{(VERSION, loading)!r}{rule}".encode()


def content_hashes(item: Item) -> list[str]:
    """Return hashes of what an item's two files hold; of a scene or a named data set's image, what they are called."""
    parts = []
    for picture in (item.target, item.source):
        if isinstance(picture, Path):
            parts.append(file_hash(picture))
        elif isinstance(picture, Blob):
            parts.append(hashlib.sha256(picture.content()).hexdigest())
        else:
            parts.append(f"{picture} {scenes.VERSION if isinstance(picture, int) else ''}")
    return parts


def _fill_cache(folder: Path, partial: Path, items: Sequence[Item], loading: Loading, label: str, most: float) -> None:
    """Decode all items into `partial`, a new cache folder; without pixels where these are more than `most` bytes."""
    meta: dict[str, Any] = {"stems": [], "labels": [], "index": [], "kept": [], "hashes": [], "bad": [], "gray": 0}
    size, cut, digest, written = 0, set(), hashlib.sha256(_how(loading)), hashlib.sha256()
    in_cache, refused = most > 0, 0
    number = 0

    def expected() -> int:
        return size * len(items) // (number + 1)

    with writing(folder / caches.PIXELS, partial, expected), open(partial / caches.PIXELS, "wb") as file:
        for number, (item, picture, content) in enumerate(_decode_all(items, loading, label, cut)):
            digest.update(" ".join([item.stem, *content]).encode())
            if isinstance(picture, UserError):
                meta["bad"].append(str(picture))
            elif picture is None:
                meta["gray"] += 1
            else:
                if in_cache:
                    data = np.ascontiguousarray(picture).data
                    written.update(data)
                    file.write(data)
                meta["stems"].append(item.stem)
                meta["labels"].append(item.label)
                meta["index"].append([size, *picture.shape[:2]])
                meta["kept"].append(number)
                meta["hashes"].append(hashlib.sha256(content[0].encode()).hexdigest()[:16])
                size += picture.size
            due = (number + 1) % CHUNK == 0 or number + 1 == len(items)  # all caches are looked at for it
            needed = max(size, expected() * 4 // 5)  # a set that is far too large drives no other cache out
            if in_cache and due and most < math.inf and not caches.make_room(folder.parent, needed, most):
                in_cache, refused = False, needed
                file.truncate(0)
    if not size:
        first = f"the first: {meta['bad'][0]}" if meta["bad"] else "all are near-gray (min_colorfulness)"
        raise UserError(f"none of the {len(items)} {label} images can be used; {first}")
    meta |= {"key": digest.hexdigest()[:16], "cut": [stem for stem in meta["stems"] if stem in cut]}
    meta |= {"size": max(size, refused), "pixels": written.hexdigest() if in_cache else None}
    if not in_cache:
        (partial / caches.PIXELS).unlink()
    with writing(folder / caches.META, partial):
        (partial / caches.META).write_text(json.dumps(meta))


def is_near_gray(picture: Array, least: float) -> bool:
    """Tell whether (H, W, 3 or more) is less colourful than `least`, or gray with a tint or a stamp; never for 0."""
    rgb = picture[..., :3]
    return bool(least) and (colorfulness(rgb) < least or not is_coloured(rgb))


def _decode_all(
    items: Sequence[Item], loading: Loading, label: str, cut: set[str]
) -> Iterator[tuple[Item, Array | UserError | None, list[str]]]:
    """Yield each item with its pixels, or what is wrong with its file, and its content_hashes; in order.

    Near-gray pictures are None where `loading` wants none. Files are decoded in parallel. Stems of sketches that were
    cut are added to `cut`.
    """

    def judged(item: Item, picture: Array) -> tuple[Item, Array | UserError | None, list[str]]:
        return item, None if is_near_gray(picture, loading.min_colorfulness) else picture, content_hashes(item)

    def attempt(item: Item) -> tuple[Item, Array | UserError | None, list[str]]:
        try:
            return judged(item, decode(item, loading, cut))
        except UserError as error:
            return item, error, ["bad"]

    numbers = [item.target for item in items if isinstance(item.target, int)]
    if len(numbers) == len(items) >= MANY_SCENES:
        drawn = zip(items, scenes.draw_all(numbers, loading.load_size), strict=True)
        found = (judged(item, layers(scene, loading)) for item, scene in drawn)
        yield from track(found, f"drawing {label}", len(items))
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunks = (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
        yield from track(
            (found for chunk in chunks for found in pool.map(attempt, chunk)), f"decoding {label}", len(items)
        )


def mean_ab(images: ImageSet, size: int, limit: int = 2048) -> tuple[float, float]:
    """Return the mean a and b, in Lab units, of the centres of at most `limit` evenly spaced images."""
    ids = evenly_spaced(len(images), limit)
    sums = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(ids), 16):
        _, target = images.gather(ids[start : start + 16], size)
        sums += color.rgb_to_lab(color.rgb01(target))[:, 1:].mean((2, 3)).sum(0, dtype=torch.float64)
    a, b = (sums / len(ids)).tolist()
    return a, b
