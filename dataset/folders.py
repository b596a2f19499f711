"""Which pictures a data set holds: their names, splits, pairs and labels.

A data set is a folder of pictures (any depth), of pictures side by side (colour and sketch, --pair), or of
two folders `targets/` and `inputs/` (or `color/` and `sketch/`) matched by stem; or an archive that holds
the same; or a torchvision data set by name; or `demo`, the embedded scenes. Where it has `train/` and `val/`
or `test/`, they are the split; else a share is held out by a hash of the name, so that adding files moves
none from one side to the other. The first folder below that is a picture's label.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import DEMO, AnyRecipe, UserError
from dataset import scenes
from dataset.sources import Blob, Entry, find_named, open_archive, open_named
from imaging.files import find_images, read_image
from imaging.pixels import Array

SALT = 42  # of the hash that holds pictures out
PAIR_FOLDERS = (("targets", "inputs"), ("color", "sketch"))  # (colour, sketch)

Picture = Path | int | Blob | Entry  # file, index of a demo scene, or a place in an archive or data set
Tree = dict[str, Picture]  # name, with folders -> picture, in order


@dataclass(frozen=True)
class Item:
    """One picture of a data set: where its colour comes from, and its sketch where that has a file."""

    stem: str  # flat name without ending, unique
    target: Picture
    source: Picture | None = None
    label: str = ""  # name of its class, empty where there are none
    name: str = ""  # within the data set; decides on which side of a split it falls


def read_picture(picture: Path | Blob | Entry) -> Array:
    """Return a picture as sRGB (H, W, 3) uint8. Raises UserError naming it where it cannot be read."""
    return read_image(picture) if isinstance(picture, Path) else picture.read()


def list_items(data: str, recipe: AnyRecipe, cache: Path) -> dict[str, list[Item]]:
    """Return the items of the splits train, val and test (val again, where the data has no test pictures).

    Args:
        data: folder, .tar or .npz file, demo, or a torchvision data set.
        recipe: fields val_fraction and limit of config.Recipe. The seed has no say, so that runs of other
            seeds, and classifiers, hold out the same pictures.
        cache: where a data set by name is downloaded to.

    Raises:
        UserError: no such data, no image, pairs without partners, or too few images to split.
    """
    tree = open_tree(data, cache)
    parts = {
        split: {
            name.split("/", 1)[1]: picture for name, picture in tree.items() if name.startswith(f"{split}/")
        }
        for split in ("train", "val", "test")
    }
    if not parts["train"] or not (parts["val"] or parts["test"]):
        parts = {"train": parts["train"] if len(parts["train"]) == len(tree) else tree}
    where = {split: f"{data}/{split}" if len(parts) > 1 else data for split in parts}
    splits = {split: find_items(part, where[split]) for split, part in parts.items() if part}
    if "val" not in splits:
        splits["train"], splits["val"] = hold_out(splits["train"], recipe.val_fraction, SALT)
    splits = {split: pick(items, recipe.limit, SALT) for split, items in splits.items()}
    return {"test": splits["val"], **splits}


def open_tree(data: str, cache: Path) -> Tree:
    """Return every picture of a data set by name. Raises UserError where there is none."""
    root = Path(data)
    if data == DEMO:
        return {f"scene_{i:04d}": i for i in range(scenes.SCENES)}
    if root.is_dir():
        return {path.relative_to(root).as_posix(): path for path in find_images(root)}
    if root.is_file():
        return dict(open_archive(root))
    if find_named(data):
        return dict(open_named(data, cache / "datasets"))
    raise UserError(
        f"no folder {data}: --data takes an image folder, a .tar or .npz file, {DEMO}, "
        "or a torchvision data set such as cifar10"
    )


def share(item: Item, salt: object) -> float:
    """Return a number in [0, 1) that depends on an item's name and the salt alone."""
    digest = hashlib.sha256(f"{salt}/{item.name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hold_out(items: list[Item], val_fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Return train and val: held out is whose share falls below the fraction; the lowest where none does."""
    if len(items) < 2:
        raise UserError(f"{len(items)} image is too few: one is needed to train and one to validate")
    shares = [share(item, seed) for item in items]
    limit = max(val_fraction, math.nextafter(min(shares), 1.0))  # at least one is held out
    val = [item for item, place in zip(items, shares, strict=True) if place < limit]
    train = [item for item, place in zip(items, shares, strict=True) if place >= limit]
    if not train:
        raise UserError(f"val_fraction {val_fraction} leaves none of {len(items)} images for training")
    return train, val


def pick(items: list[Item], limit: int, seed: int) -> list[Item]:
    """Return at most `limit` items, chosen by their share and so from all over; 0 = all."""
    if not limit or len(items) <= limit:
        return items
    chosen = {item.stem for item in sorted(items, key=lambda item: share(item, f"limit/{seed}"))[:limit]}
    return [item for item in items if item.stem in chosen]


def find_items(tree: Tree, where: str) -> list[Item]:
    """Return one split's items: pairs by stem where it has a folder for each half, else single pictures.

    Raises:
        UserError: pictures without a partner.
    """
    for colour, sketch in PAIR_FOLDERS:
        halves = [
            {name[len(half) + 1 :]: picture for name, picture in tree.items() if name.startswith(f"{half}/")}
            for half in (colour, sketch)
        ]
        if all(halves):
            return _match_stems(*halves, where)
    stems = unique_stems(list(tree))
    return [
        Item(stem, picture, None, name.split("/", 1)[0] if "/" in name else "", name)
        for stem, (name, picture) in zip(stems, tree.items(), strict=True)
    ]


def _match_stems(colour: Tree, sketch: Tree, where: str) -> list[Item]:
    partners = dict(zip(unique_stems(list(sketch)), sketch.values(), strict=True))
    stems = unique_stems(list(colour))
    alone = sorted(set(stems) ^ set(partners))
    if alone:
        raise UserError(f"{len(alone)} pictures in {where} have no partner of their name, first {alone[0]}")
    return [
        Item(stem, picture, partners[stem], "", name)
        for stem, (name, picture) in zip(stems, colour.items(), strict=True)
    ]


def unique_stems(names: list[str]) -> list[str]:
    """Return a flat name per file: its path without ending; with it, or a hash, where two are the same."""
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
        UserError: they disagree.
    """
    votes: Counter[str] = Counter()
    for item in items[:8]:
        if isinstance(item.target, int) or item.source is not None:
            return "none"
        with suppress(ValueError):  # an unreadable file has no vote
            votes.update(_vote(read_picture(item.target)))
    if len(votes) > 1:
        counts = ", ".join(f"{number} {kind}" for kind, number in votes.most_common())
        raise UserError(f"pairs or pictures? the first images look like {counts}; say --pair AB, BA or none")
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
