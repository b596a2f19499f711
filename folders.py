"""Which pictures a data set holds: files, pairs, splits.

A data set is a folder of pictures (any depth), of pictures side by side (colour and sketch, --pair), or of
two folders `targets/` and `inputs/` (or `color/` and `sketch/`) matched by stem; or `demo`, the embedded
scenes. Where it has `train/` and `val/` (and `test/`), they are the split; else a share is held out by a
hash of the name, so that adding files moves none from one side to the other.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import scenes
from images import Array, find_images, read_image

DEMO = "demo"
PAIR_FOLDERS = (("targets", "inputs"), ("color", "sketch"))  # (colour, sketch)


@dataclass(frozen=True)
class Item:
    """One picture of a data set: where its colour comes from, and its sketch where that has a file."""

    stem: str  # flat name without ending, unique
    target: Path | int  # file, or index of a demo scene
    source: Path | None = None


def list_items(data: str, val_fraction: float, seed: int) -> dict[str, list[Item]]:
    """Return the items of the splits train, val and test (val again, where the data has no test folder).

    Raises:
        ValueError: no such folder, no image, pairs without partners, or too few images to split.
    """
    if data == DEMO:
        items = [Item(f"scene_{i:04d}", i) for i in range(scenes.SCENES)]
        return _hash_split(items, Path(), val_fraction, seed)
    root = Path(data)
    if not root.is_dir():
        raise ValueError(f"no folder {data}: --data takes an image folder, or {DEMO}")
    if (root / "train").is_dir() and (root / "val").is_dir():
        splits = {name: _find_items(root / name) for name in ("train", "val")}
        test = root / "test"
        return {**splits, "test": _find_items(test) if test.is_dir() else splits["val"]}
    return _hash_split(_find_items(root), root, val_fraction, seed)


def _hash_split(items: list[Item], root: Path, val_fraction: float, seed: int) -> dict[str, list[Item]]:
    """Hold out the items whose hashed name falls below the fraction; the lowest where none does."""
    if len(items) < 2:
        raise ValueError(f"{len(items)} image is too few: one is needed to train and one to validate")

    def share(item: Item) -> float:
        name = item.stem if isinstance(item.target, int) else _name(item.target, root)
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    shares = [share(item) for item in items]
    limit = max(val_fraction, math.nextafter(min(shares), 1.0))  # at least one is held out
    val = [item for item, place in zip(items, shares, strict=True) if place < limit]
    train = [item for item, place in zip(items, shares, strict=True) if place >= limit]
    if not train:
        raise ValueError(f"val_fraction {val_fraction} leaves none of {len(items)} images for training")
    return {"train": train, "val": val, "test": val}


def _find_items(folder: Path) -> list[Item]:
    for colour, sketch in PAIR_FOLDERS:
        if (folder / colour).is_dir() and (folder / sketch).is_dir():
            return _match_stems(folder / colour, folder / sketch)
    paths = find_images(folder)
    stems = _unique_stems(paths, folder)
    return [Item(stem, path) for stem, path in zip(stems, paths, strict=True)]


def _match_stems(colour: Path, sketch: Path) -> list[Item]:
    targets, sources = find_images(colour), find_images(sketch)
    partners = dict(zip(_unique_stems(sources, sketch), sources, strict=True))
    stems = _unique_stems(targets, colour)
    alone = sorted(set(stems) ^ set(partners))
    if alone:
        raise ValueError(
            f"{len(alone)} images of {colour} and {sketch} have no partner, the first is {alone[0]}"
        )
    return [Item(stem, path, partners[stem]) for stem, path in zip(stems, targets, strict=True)]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _unique_stems(paths: list[Path], folder: Path) -> list[str]:
    """Return a flat name per file: its path without ending; with it, or a hash, where two are the same."""
    names = [_name(path, folder) for path in paths]
    flat = [name.replace("/", "__") for name in names]
    choices = (
        [str(Path(stem).with_suffix("")) for stem in flat],
        ["_".join(stem.rsplit(".", 1)) for stem in flat],
        [
            f"{stem}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
            for stem, name in zip(flat, names, strict=True)
        ],
    )
    stems = choices[0]
    for choice in choices[1:]:
        count = Counter(stems)
        stems = [stem if count[stem] == 1 else other for stem, other in zip(stems, choice, strict=True)]
    return stems


def find_pair(items: Sequence[Item]) -> str:
    """Tell whether pictures are pairs side by side: "AB" (colour left), "BA" (colour right) or "none".

    The first eight vote: AB or BA if about twice as wide as tall with one half alone gray; else none.

    Raises:
        ValueError: they disagree.
    """
    votes: Counter[str] = Counter()
    for item in items[:8]:
        if isinstance(item.target, int) or item.source is not None:
            return "none"
        with suppress(ValueError):  # an unreadable file has no vote
            votes.update(_vote(read_image(item.target)))
    if len(votes) > 1:
        counts = ", ".join(f"{number} {kind}" for kind, number in votes.most_common())
        raise ValueError(f"pairs or pictures? the first images look like {counts}; say --pair AB, BA or none")
    return next(iter(votes), "none")


def _vote(image: Array) -> list[str]:
    """Return [AB], [BA] or [none] for one picture, [] for one without any colour."""
    height, width = image.shape[:2]
    if not 1.8 <= width / height <= 2.2:
        return ["none"]
    channels = image.astype(np.int16)
    spread = channels.max(2) - channels.min(2)
    halves = spread[:, : width // 2], spread[:, width // 2 :]
    gray = tuple(bool(half.mean() < 4) for half in halves)  # of 255 levels; JPEG's chroma noise is below
    return {(True, True): [], (False, True): ["AB"], (True, False): ["BA"]}.get(gray, ["none"])
