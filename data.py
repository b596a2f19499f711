"""Items of a data set -> decoded pixels -> batches of uint8 tensors.

Decoding happens once: every split becomes one memory-mapped file of uint8 pixels below cache/. Nothing is
float before it is on the device.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from config import DRAWN_INPUTS, Recipe, UserError
from dataset import scenes
from dataset.degradations import make_fixed_input
from dataset.folders import Item, find_pair, list_items, read_picture
from dataset.sources import Blob
from imaging import color
from imaging.pixels import Array, colorfulness, resize
from runtime.run_folder import RunRecord

MAX_ASPECT = 3  # a long side beyond this many short sides is cut off around the centre
VERSION = 2  # of the cache's contents; raise it when decoding changes


@dataclass(frozen=True)
class Loading:
    """How files become pixels; see the fields of the same names in config.Recipe."""

    load_size: int
    fit: str
    pair: str
    sketch: bool  # keep a sketch beside each colour picture
    min_colorfulness: float = 0.0


@dataclass(frozen=True)
class ImageSet:
    """One split, decoded; (H, W, C) pictures back to back, C = 6 where a sketch follows the colour."""

    stems: list[str]
    labels: list[str]  # class names, empty where there are none
    pixels: NDArray[np.uint8]  # memory-mapped, flat
    index: NDArray[np.int64]  # (N, 3): offset, height, width
    channels: int
    bad: list[str]  # one sentence per file that could not be read
    gray: int  # pictures left out as near-gray
    key: str  # fingerprint of the files and of how they were loaded

    def __len__(self) -> int:
        return len(self.stems)

    def picture(self, i: int) -> Array:
        """Return picture i as (H, W, 3|6) uint8."""
        offset, height, width = (int(value) for value in self.index[i])
        return self.pixels[offset : offset + height * width * self.channels].reshape(
            height, width, self.channels
        )

    def gather(
        self,
        ids: Sequence[int],
        size: int,
        corners: NDArray[np.float64] | None = None,
        flips: NDArray[np.bool_] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cut squares out of pictures.

        Args:
            ids: which pictures.
            size: px, side of the squares.
            corners: (len(ids), 2) in [0, 1), where from top (left) to bottom (right) to cut; None = centre.
            flips: (len(ids),) which to mirror left to right; None = none.

        Returns:
            source and target, each (N, 3, size, size) uint8; the same tensor where there are no sketches.
        """
        out = np.empty((len(ids), size, size, self.channels), np.uint8)
        for row, i in enumerate(ids):
            picture = self.picture(i)
            spare = np.array(picture.shape[:2]) - size
            top, left = spare // 2 if corners is None else (corners[row] * (spare + 1)).astype(int)
            square = picture[top : top + size, left : left + size]
            out[row] = square[:, ::-1] if flips is not None and flips[row] else square
        tensor = torch.from_numpy(out).permute(0, 3, 1, 2)  # (N, 3|6, size, size)
        target = tensor[:, :3]
        return (tensor[:, 3:] if self.channels == 6 else target), target

    def gather_fixed(self, ids: list[int], recipe: Recipe) -> tuple[Tensor, Tensor]:
        """Cut the centre squares of pictures to look at or to score; their inputs are the same every time.

        Returns:
            what the network is given (N, 1|3, S, S) and target (N, 3, S, S), uint8.
        """
        source, target = self.gather(ids, recipe.size)
        return make_fixed_input(source, target, recipe, ids), target


def evenly_spaced(count: int, most: int) -> list[int]:
    """Return indices of at most `most` of `count` things, evenly spaced, both ends among them."""
    return np.linspace(0, count - 1, min(count, most)).astype(int).tolist()


def training_batches(
    images: ImageSet, batch_size: int, size: int, flip: float, seed: int, epoch: int, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled, randomly cropped and flipped batches of one epoch, from step `start` on."""
    for ids, corners, flips in training_order(len(images), batch_size, flip, seed, epoch, start):
        yield images.gather(ids, size, corners, flips)


def training_order(
    images: int, batch_size: int, flip: float, seed: int, epoch: int, start: int = 0
) -> Iterator[tuple[list[int], NDArray[np.float64], NDArray[np.bool_]]]:
    """Yield what ImageSet.gather takes for each batch of one epoch, from step `start` on.

    Everything random depends on (seed, epoch) alone, so that a resumed epoch goes on exactly where it
    stopped. A last batch that is not full is left out, unless it is the only one.

    Returns:
        which pictures (N), their corners (N, 2) in [0, 1) and flips (N,).
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(images)
    corners = rng.random((images, 2))
    flips = rng.random(images) < flip
    for step in range(start, steps_per_epoch(images, batch_size)):
        ids = order[step * batch_size : (step + 1) * batch_size]
        yield ids.tolist(), corners[ids], flips[ids]


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of batches that training_order yields."""
    return max(1, images // batch_size)


def decode(item: Item, loading: Loading) -> Array:
    """Read one item as (H, W, 3) uint8, or (H, W, 6) where its sketch follows the colour.

    Raises:
        UserError: a file that cannot be read, or a pair of odd width; names the file.
    """
    if isinstance(item.target, int):
        colour, sketch = scenes.draw(item.target, loading.load_size)
        return np.concatenate([colour, sketch], 2) if loading.sketch else colour
    colour = read_picture(item.target)
    sketch = None if item.source is None else read_picture(item.source)
    if sketch is None and loading.pair != "none":
        half, odd = divmod(colour.shape[1], 2)
        if odd or not half:
            raise UserError(
                f"{item.target}: a pair needs an even width, this one is {colour.shape[1]} px wide"
            )
        left, right = colour[:, :half], colour[:, half:]
        colour, sketch = (left, right) if loading.pair == "AB" else (right, left)
    colour = fit_image(colour, loading.load_size, loading.fit)
    if not loading.sketch:
        return colour
    if sketch is None:
        planes = torch.from_numpy(colour).permute(2, 0, 1)[None]  # (1, 3, H, W)
        drawn = color.line_art(planes)[0].permute(1, 2, 0).numpy()
    else:
        drawn = resize(fit_image(sketch, loading.load_size, loading.fit), *colour.shape[:2])
    return np.concatenate([colour, drawn], 2)


def fit_image(image: Array, load_size: int, fit: str) -> Array:
    """Resize to a square (squash), or the short side to load_size, the long one cut to MAX_ASPECT (crop)."""
    if fit == "squash":
        return resize(image, load_size, load_size)
    height, width = image.shape[:2]
    limit = MAX_ASPECT * min(height, width)
    top, left = max(0, height - limit) // 2, max(0, width - limit) // 2
    image = image[top : top + limit, left : left + limit]
    scale = load_size / min(height, width)
    return resize(image, *(max(load_size, round(side * scale)) for side in image.shape[:2]))


def load_images(items: Sequence[Item], loading: Loading, cache: Path, label: str) -> ImageSet:
    """Return one split decoded, from the cache where it is there, else decoding it now in parallel.

    Raises:
        UserError: not one image could be read.
    """
    key = fingerprint(items, loading)
    folder = cache / key
    if not folder.is_dir():
        _fill_cache(folder, items, loading, label)
    meta = json.loads((folder / "meta.json").read_text())
    pixels = np.memmap(folder / "pixels.bin", np.uint8, mode="r")
    index = np.array(meta["index"], np.int64).reshape(-1, 3)
    channels = 6 if loading.sketch else 3
    return ImageSet(meta["stems"], meta["labels"], pixels, index, channels, meta["bad"], meta["gray"], key)


def find_loading(recipe: Recipe, items: Sequence[Item]) -> Loading:
    """Return how a recipe loads items; resolves pair=auto by looking."""
    if recipe.pair in ("AB", "BA") and (isinstance(items[0].target, int) or items[0].source):
        raise UserError(f"--pair {recipe['pair']}, but this data holds no pairs side by side; leave it out")
    sketch = recipe.input in DRAWN_INPUTS
    drawn = recipe.input != "L"  # drawings come as pairs, photographs do not
    pair = find_pair(items) if recipe.pair == "auto" and drawn else recipe.pair
    pair = "none" if pair == "auto" else pair
    return Loading(recipe.load_size, recipe.fit, pair, sketch, recipe.min_colorfulness)


def open_split(record: RunRecord, data: str | None, split: str, cache: Path) -> ImageSet:
    """Return a split of the data that a run remembers in recipe.json, or of another data set."""
    recipe = record.recipe
    if data:  # all of it was asked for by name
        recipe = replace(recipe, limit=0, min_colorfulness=0.0)
    items = list_items(str(data or record.data), recipe, cache)
    loading = find_loading(recipe, items[split]) if data else Loading(**record.loading)
    return load_images(items[split], loading, cache, split)


def fingerprint(items: Sequence[Item], loading: Loading) -> str:
    """Return a hash that changes with any file's name, size or time, and with how files are loaded."""
    digest = hashlib.sha256(repr((VERSION, loading)).encode())
    stats = {}  # of an archive once, not per picture
    for item in items:
        for picture in (item.target, item.source):
            path = picture.archive if isinstance(picture, Blob) else picture
            if isinstance(path, Path):
                stats[path] = stats.get(path) or path.stat()
                digest.update(f"{path.resolve()} {stats[path].st_size} {stats[path].st_mtime_ns}".encode())
        digest.update(f"{item.stem} {getattr(item.target, 'name', '')}".encode())
    if items and isinstance(items[0].target, int):
        digest.update(Path(scenes.__file__).read_bytes())
    return digest.hexdigest()[:16]


def _fill_cache(folder: Path, items: Sequence[Item], loading: Loading, label: str) -> None:
    """Decode all items into a new cache folder; appears whole or not at all."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    partial.mkdir(parents=True, exist_ok=True)
    meta: dict[str, Any] = {"stems": [], "labels": [], "index": [], "bad": [], "gray": 0}
    offset = 0
    try:
        with open(partial / "pixels.bin", "wb") as file:
            for item, picture in _decode_all(items, loading, label):
                if isinstance(picture, ValueError):
                    meta["bad"].append(str(picture))
                elif loading.min_colorfulness and colorfulness(picture[:, :, :3]) < loading.min_colorfulness:
                    meta["gray"] += 1
                else:
                    file.write(np.ascontiguousarray(picture).data)
                    meta["stems"].append(item.stem)
                    meta["labels"].append(item.label)
                    meta["index"].append([offset, *picture.shape[:2]])
                    offset += picture.size
        if not offset:
            first = f"the first: {meta['bad'][0]}" if meta["bad"] else "all are below min_colorfulness"
            raise UserError(f"none of the {len(items)} {label} images can be used; {first}")
        (partial / "meta.json").write_text(json.dumps(meta))
        if not folder.is_dir():
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode_all(
    items: Sequence[Item], loading: Loading, label: str
) -> Iterator[tuple[Item, Array | ValueError]]:
    """Yield every item with its pixels, or with what is wrong with it, decoded in parallel and in order."""

    def attempt(item: Item) -> Array | ValueError:
        try:
            return decode(item, loading)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        starts = range(0, len(items), 64)  # a chunk at a time, which bounds what waits in memory
        for start in tqdm(starts, f"decoding {label}", unit="x64", leave=False, disable=None):
            chunk = items[start : start + 64]
            yield from zip(chunk, pool.map(attempt, chunk), strict=True)


def mean_ab(images: ImageSet, size: int, limit: int = 2048) -> tuple[float, float]:
    """Return the mean a and b, in Lab units, of at most `limit` evenly chosen pictures' centres."""
    ids = evenly_spaced(len(images), limit)
    sums = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(ids), 16):
        _, target = images.gather(ids[start : start + 16], size)
        sums += color.rgb_to_lab(color.rgb01(target))[:, 1:].mean((2, 3)).sum(0, dtype=torch.float64)
    a, b = (sums / len(ids)).tolist()
    return a, b
