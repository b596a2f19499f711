"""The images of a data set: their names, splits, pairs and labels.

A data set is a folder of images (any depth), of pairs side by side in one image (colour and sketch, --pair),
or of two folders `targets/` and `inputs/` (or `color/` and `sketch/`) matched by stem; or an archive with the
same inside; or a torchvision data set by name; or `demo`, the embedded scenes. Folders `train/` and `val/` or
`test/` are used as the splits. Without them a share is held out by a hash of the name, so that new files do
not move old ones to the other split. The first folder below the split is the label.
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

SALT = "42"  # of the hash that decides which images are held out
PAIR_FOLDERS = (("targets", "inputs"), ("color", "sketch"))  # (colour, sketch)

Picture = Path | int | Blob | Entry  # file, number of a demo scene, image in an archive or data set
Tree = dict[str, Picture]  # name with folders -> image, in order


@dataclass(frozen=True)
class Item:
    """One image of a data set."""

    stem: str  # flat name without ending, unique
    target: Picture  # in colour; or both halves of a pair side by side
    source: Picture | None = None  # the sketch, where it is a file of its own
    label: str = ""  # name of its class, empty where there are none
    name: str = ""  # within the split; decides whether it is held out


def read_picture(picture: Path | Blob | Entry) -> Array:
    """Return an image as sRGB (H, W, 3) uint8. Raises UserError, which names it, where it cannot be read."""
    return read_image(picture) if isinstance(picture, Path) else picture.read()


def list_items(data: str, recipe: AnyRecipe, cache: Path) -> dict[str, list[Item]]:
    """Return the items of the splits train, val and test; without test images, test is val.

    Args:
        data: folder, .tar or .npz file, demo, or name of a torchvision data set.
        recipe: uses val_fraction and limit, not seed: runs of other seeds hold out the same images.
        cache: folder to which a data set by name is downloaded.

    Raises UserError on no such data, no image, pairs without partners, or too few images to split.
    """
    tree = open_tree(data, cache)
    parts = {split: _below(tree, split) for split in ("train", "val", "test")}
    if not parts["train"] or not (parts["val"] or parts["test"]):
        parts = {"train": parts["train"] if len(parts["train"]) == len(tree) else tree}
    where = {split: f"{data}/{split}" if len(parts) > 1 else data for split in parts}
    splits = {split: find_items(part, where[split]) for split, part in parts.items() if part}
    if "val" not in splits:
        splits["train"], splits["val"] = hold_out(splits["train"], recipe.val_fraction)
    splits = {split: pick(items, recipe.limit) for split, items in splits.items()}
    return {"test": splits["val"], **splits}


def _below(tree: Tree, folder: str) -> Tree:
    """Return the images of a folder by their names in it."""
    return {name[len(folder) + 1 :]: image for name, image in tree.items() if name.startswith(f"{folder}/")}


def open_tree(data: str, cache: Path) -> Tree:
    """Return all images of a data set by their names. Raises UserError where there are none."""
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


def share(item: Item, salt: str) -> float:
    """Return a number in [0, 1) that depends on an item's name and the salt alone."""
    digest = hashlib.sha256(f"{salt}/{item.name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hold_out(items: list[Item], val_fraction: float) -> tuple[list[Item], list[Item]]:
    """Return train and val. Val gets the items whose share is below val_fraction, but at least one."""
    if len(items) < 2:
        raise UserError(f"{len(items)} image is too few: one is needed to train and one to validate")
    shares = [share(item, SALT) for item in items]
    limit = max(val_fraction, math.nextafter(min(shares), 1.0))  # at least one is held out
    val = [item for item, place in zip(items, shares, strict=True) if place < limit]
    train = [item for item, place in zip(items, shares, strict=True) if place >= limit]
    if not train:
        raise UserError(f"val_fraction {val_fraction} leaves none of {len(items)} images for training")
    return train, val


def pick(items: list[Item], limit: int) -> list[Item]:
    """Return at most `limit` items, chosen by a hash of their names, in order; 0 = all."""
    if not limit or len(items) <= limit:
        return items
    chosen = {item.stem for item in sorted(items, key=lambda item: share(item, f"limit/{SALT}"))[:limit]}
    return [item for item in items if item.stem in chosen]


def find_items(tree: Tree, where: str) -> list[Item]:
    """Return the items of a split: pairs by stem if it has two such folders, else single images.

    Raises UserError where an image has no partner.
    """
    for colour, sketch in PAIR_FOLDERS:
        halves = _below(tree, colour), _below(tree, sketch)
        if all(halves):
            return _match_stems(*halves, where)
    return [
        Item(stem, picture, None, name.split("/", 1)[0] if "/" in name else "", name)
        for stem, (name, picture) in zip(unique_stems([*tree]), tree.items(), strict=True)
    ]


def _match_stems(colour: Tree, sketch: Tree, where: str) -> list[Item]:
    names = dict(zip(unique_stems([*colour]), colour, strict=True))
    partners = dict(zip(unique_stems([*sketch]), sketch, strict=True))
    alone = sorted(names.keys() ^ partners.keys())
    if alone:
        raise UserError(f"{len(alone)} pictures in {where} have no partner of their name, first {alone[0]}")
    return [Item(stem, colour[name], sketch[partners[stem]], "", name) for stem, name in names.items()]


def unique_stems(names: list[str]) -> list[str]:
    """Return a flat name per file: its path without ending; with ending, then with a hash, if not unique."""
    flat = [name.replace("/", "__") for name in names]
    stems = [str(Path(name).with_suffix("")) for name in flat]
    with_ending = ["_".join(name.rsplit(".", 1)) for name in flat]
    digests = (hashlib.sha256(name.encode()).hexdigest() for name in names)
    with_hash = [f"{name}_{digest[:8]}" for name, digest in zip(flat, digests, strict=True)]
    for others in (with_ending, with_hash):
        count = Counter(stems)
        stems = [stem if count[stem] == 1 else other for stem, other in zip(stems, others, strict=True)]
    return stems


def find_pair(items: Sequence[Item]) -> str:
    """Return whether images are pairs side by side: "AB" (colour left), "BA" (colour right) or "none".

    Looks at the first eight. A pair is about twice as wide as tall, and exactly one of its halves is gray.
    Raises UserError where they disagree.
    """
    found: Counter[str] = Counter()
    for item in items[:8]:
        if isinstance(item.target, int) or item.source is not None:
            return "none"
        with suppress(UserError):  # load_images will list it
            found.update(_pair_kind(read_picture(item.target)))
    if len(found) > 1:
        counts = ", ".join(f"{number} {kind}" for kind, number in found.most_common())
        raise UserError(f"pairs or pictures? the first images look like {counts}; say --pair AB, BA or none")
    return next(iter(found), "none")


def _pair_kind(image: Array) -> list[str]:
    """Return [AB], [BA] or [none] for one image; [] for one without colour, which says nothing."""
    height, width = image.shape[:2]
    if not 1.8 <= width / height <= 2.2:
        return ["none"]
    spread = np.ptp(image, 2)
    halves = spread[:, : width // 2], spread[:, width // 2 :]
    gray = tuple(bool(half.mean() < 4) for half in halves)  # of 255 levels; JPEG's chroma noise is below
    return {(True, True): [], (False, True): ["AB"], (True, False): ["BA"]}.get(gray, ["none"])
