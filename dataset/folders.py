"""The images of a data set: their names, splits, pairs and labels.

A data set is a folder of images (any depth), of pairs side by side in one image (colour and sketch, --pair), or of
two folders of pairs that are matched by stem; or an archive, or shards, with the same inside; or a torchvision data
set by name; or `demo`, the embedded scenes. Folders `train/` and `val/` or `test/` are used as the splits. Without them
a share is held out by a hash of the name, so that new files do not move old ones to the other split. The first
folder below the split is the label.

Folders of pairs are known by their names (color and sketch, targets and inputs, ...) in any case, in the singular
and plural, beside each other (train/color, comic1/color), above the splits (color/train, pix2pix) or in their names
(trainA, CycleGAN). Which of A and B is in colour their images tell. Of other names --pair-folders says it.
"""

import hashlib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice
from pathlib import Path

import numpy as np

from config import DEMO, AnyRecipe, Recipe, UserError
from dataset import scenes
from dataset.shards import find_shards, is_stream, open_shards
from dataset.sources import Blob, Entry, find_named, open_archive, open_named
from dataset.streams import Stream, open_stream, take_head
from imaging.files import find_images, read_image, search
from imaging.pixels import Array
from runtime.atomic import MAX_STEM, bounded

SALT = "42"  # of the hash that decides which images are held out
# names of folders, without case, marks, plural and British u
SPLITS = {"training": "train", "train": "train", "validation": "val", "valid": "val", "val": "val",
          "testing": "test", "test": "test"}  # fmt: skip
COLOUR = {"color", "colored", "colorized", "colorimage", "target", "groundtruth", "gt", "truth", "rgb"}
SKETCH = {"sketch", "lineart", "line", "linedrawing", "drawing", "outline", "edge", "edgemap", "input", "source",
          "gray", "grey", "grayscale", "greyscale", "bw", "mono", "monochrome"}  # fmt: skip
LETTERS = {"a", "b"}  # of CycleGAN and pix2pix
MARGIN = 16  # px on each side, or more: JPEG mixes colours of two halves there, and scans have edges
TINT = 16  # of 255 levels between an image's channels, beside what its paper has; JPEG's noise is below
COLOURED = 0.02  # share of the pixels beyond TINT that makes a colour picture: a stamp has less
MAX_ALIKE = 8  # pairs of folders that are looked at
MAX_BESIDE = 16  # folders; where more lie beside each other they are classes
LOOK = 256  # px, short side at which it is looked at whether a picture is gray

Picture = Path | int | Blob | Entry  # file, number of a demo scene, image in an archive or data set
Tree = dict[str, Picture]  # name with folders -> image, in order
Halves = tuple[str, str]  # folders of pairs: colour, sketch


@dataclass(frozen=True)
class Item:
    """One image of a data set."""

    stem: str  # flat name without ending, unique
    target: Picture  # in colour; or both halves of a pair side by side
    source: Picture | None = None  # the sketch, where it is a file of its own
    label: str = ""  # name of its class, empty where there are none
    name: str = ""  # within the split; decides whether it is held out


def read_picture(picture: Path | Blob | Entry, least: int = 0) -> Array:
    """Return an image as sRGB (H, W, 3) uint8, perhaps smaller: `least` as in imaging.files.read_image.

    Raises UserError, which names it, where it cannot be read.
    """
    return read_image(picture, least=least) if isinstance(picture, Path) else picture.read(least)


class NoFolders(UserError):
    """The data has no folders of the names of --pair-folders."""


class Splits(dict[str, list[Item]]):
    """The items of the splits train, val and test, and how they were understood."""

    halves: Halves | None = None  # the folders of pairs, colour and sketch
    has_val: bool = False  # whether the data has a folder for validation; else some images are held out
    notes: Sequence[str] = ()  # what was left out, a sentence each
    stream: Stream | None = None  # trained on in place of `train`, which is its head


def list_items(data: str, recipe: AnyRecipe, cache: Path) -> Splits:
    """Return the items of the splits train, val and test; without test images, test is val.

    Args:
        data: folder, .tar or .npz file, shards, demo, or name of a torchvision data set.
        recipe: uses val_fraction, limit and pair_folders, not seed: runs of other seeds hold out the same images.
        cache: folder to which a data set by name is downloaded.

    Raises UserError on no such data, no image, pairs without partners, folders that may be pairs, or too few
    images to split.
    """
    notes: list[str] = []
    given = recipe.pair_folders.split("/") if isinstance(recipe, Recipe) and recipe.pair_folders else []
    tree = by_splits(unwrapped(open_tree(data, cache, notes), given), given)
    parts = {split: _below(tree, split) for split in ("train", "val", "test")}
    if not parts["train"] or not (parts["val"] or parts["test"]):
        parts = {"train": parts["train"] if len(parts["train"]) == len(tree) else tree}
    if beside := len(tree) - sum(map(len, parts.values())):
        notes.append(f"left out: {beside} pictures of {data} that lie beside {', '.join(s for s in parts if parts[s])}")
    where = {split: f"{data}/{split}" if len(parts) > 1 else data for split in parts}
    halves = find_halves(parts["train"], where["train"], recipe, given, notes)
    if halves and (beside := sum(name.split("/", 1)[0] not in halves for name in parts["train"])):
        notes.append(f"left out: {beside} pictures of {where['train']} that lie beside {' and '.join(halves)}")
    items = {split: find_items(part, where[split], halves) for split, part in parts.items() if part}
    splits = Splits(items)
    splits.halves, splits.has_val, splits.notes = halves, "val" in items, notes
    if not splits.has_val:
        splits["train"], splits["val"] = hold_out(splits["train"], recipe.val_fraction)
    splits.update({split: pick(found, recipe.limit) for split, found in splits.items()})
    splits.setdefault("test", splits["val"])
    if is_stream(data):
        splits.stream = _find_stream(data, recipe, splits, cache)
    return splits


def _find_stream(data: str, recipe: AnyRecipe, splits: Splits, cache: Path) -> Stream:
    if splits.halves or not isinstance(recipe, Recipe):
        what = "pairs in two folders" if splits.halves else "classes"
        raise UserError(f"{data} is a stream, from which {what} cannot be learnt: copy its shards to a disk")
    held = [item.target.name for name in ("val", "test") for item in splits[name]]
    return open_stream(data, recipe.limit, held, cache)


def _below(tree: Tree, folder: str) -> Tree:
    """Return the images of a folder by their names in it."""
    return {name[len(folder) + 1 :]: image for name, image in tree.items() if name.startswith(f"{folder}/")}


def open_tree(data: str, cache: Path, notes: list[str]) -> Tree:
    """Return all images of a data set by their names; what is left out is added to `notes`, a sentence each.

    Raises UserError where there are none.
    """
    root = Path(data)
    if data == DEMO:
        return {f"scene_{i:04d}": i for i in range(scenes.SCENES)}
    if is_stream(data):
        return dict(open_archive(take_head(data, cache)[0], notes))
    if (shards := find_shards(data)) is not None:
        return dict(open_shards(data, shards, cache, notes))
    if root.is_dir():
        found = search(root)
        notes += found.left_out
        notes += [f"left out: {error.filename}, which cannot be read ({error.strerror})" for error in found.closed]
        images = found.images or find_images(root)  # which says why there are none
        return {path.relative_to(root).as_posix(): path for path in images}
    if root.is_file():
        return dict(open_archive(root, notes))
    if find_named(data):
        return dict(open_named(data, cache / "datasets"))
    raise UserError(
        f"no folder {data}: --data takes an image folder, a .tar or .npz file, shards, {DEMO}, "
        "or a torchvision data set such as cifar10"
    )


# layouts


@lru_cache(maxsize=2**16)  # a million pictures lie in few folders
def plain(folder: str) -> str:
    """Return what a folder's name means: without case, marks, plural and British u."""
    name = re.sub(r"[\W_]+", "", folder.casefold()).replace("colour", "color")
    return re.sub(r"(?<=ch)es$|(?<=[^s])s$", "", name)


def unwrapped(tree: Tree, given: Sequence[str]) -> Tree:
    """Return a tree in which halves of pairs lie above all folders but splits, and in no folder around all.

    So set/color/x becomes color/x, and comic1/color/x color/comic1/x, where comic1 has sketches, too.
    `given`: folders of pairs, besides those that are known.
    """
    known = COLOUR | SKETCH | {*map(plain, given)}
    inside: dict[str, set[str]] = defaultdict(set)  # folder -> what the folders in it are called
    for name in tree:
        folders = name.split("/")[:-1]
        for i, folder in enumerate(folders):
            inside["/".join(folders[:i])].add(plain(folder))
    if len(inside[""]) == 1 and all("/" in name for name in tree):
        (top,) = {name.split("/", 1)[0] for name in tree}
        if plain(top) not in known | {*SPLITS} and inside[top] & (known | LETTERS | {*SPLITS}):
            return unwrapped({name.split("/", 1)[1]: picture for name, picture in tree.items()}, given)

    def lifted(name: str) -> str:
        *folders, file = name.split("/")
        first = bool(folders) and plain(folders[0]) in SPLITS  # stays first
        for i in range(first, len(folders)):
            here = inside["/".join(folders[:i])]
            if plain(folders[i]) in known and _are_halves(here, given):
                return "/".join([*folders[:first], folders[i], *folders[first:i], *folders[i + 1 :], file])
        return name

    renamed = {lifted(name): picture for name, picture in tree.items()}
    return renamed if len(renamed) == len(tree) else tree


def _are_halves(folders: set[str], given: Sequence[str]) -> bool:
    """Tell whether folders that lie beside each other, by their plain names, hold both halves of pairs."""
    return bool(folders & COLOUR and folders & SKETCH) or (bool(given) and folders >= {*map(plain, given)})


def by_splits(tree: Tree, given: Sequence[str]) -> Tree:
    """Return a tree in which splits are the first folders, called train, val and test, and halves of pairs the second.

    So color/train/x and train_color/x become train/color/x, but only where there is another half, too.
    `given`: folders of pairs, besides those that are known.
    """
    known = COLOUR | SKETCH | LETTERS | {*map(plain, given)}
    read = {name: _read_folders(name, known) for name in tree}
    halves = {plain(half) for _, half, _ in read.values() if half}
    whole = all(split for split, _, _ in read.values())  # A and B may be two classes of many
    are_pairs = len(halves) > 1 and (whole or not halves <= LETTERS)
    renamed = {
        name if found[1] and not are_pairs else "/".join(filter(None, found)): tree[name]
        for name, found in read.items()
    }
    return renamed if len(renamed) == len(tree) else tree


def _read_folders(name: str, known: set[str]) -> tuple[str, str, str]:
    """Return what the first folders of a name say: split and half, or "", and the rest of the name."""
    first, *rest = name.split("/")
    if not rest:
        return "", "", name
    for word, split in SPLITS.items():  # train, trainA and A_train
        found = re.fullmatch(f"(.*){word}(.*)", plain(first))
        half = found[1] + found[2] if found and not (found[1] and found[2]) else None
        if half == "" or half in known:
            return split, half, "/".join(rest)
    if len(rest) > 1 and plain(first) in known and plain(rest[0]) in SPLITS:
        return SPLITS[plain(rest[0])], first, "/".join(rest[1:])
    return "", "", name


def find_halves(tree: Tree, where: str, recipe: AnyRecipe, given: Sequence[str], notes: list[str]) -> Halves | None:
    """Return the folders of pairs, colour and sketch: those of --pair-folders, or known names, or A and B.

    None: there are none; where photographs may be pairs `notes` gets a sentence.

    Raises UserError where the two are not there, or where folders may be pairs.
    """
    tops = sorted({name.split("/", 1)[0] for name in tree if "/" in name})
    if given:
        found = [next((top for top in tops if plain(top) == plain(name)), "") for name in given]
        if not all(found):
            held = f"it holds {', '.join(tops[:9])}" if tops else "it holds no folders"
            raise NoFolders(f"no folders {given[0]} and {given[1]} in {where}: {held}; correct --pair-folders")
        return found[0], found[1]
    if isinstance(recipe, Recipe) and recipe.pair == "none":
        return None
    colour, sketch = ([top for top in tops if plain(top) in names] for names in (COLOUR, SKETCH))
    if colour and sketch:
        if len(colour + sketch) > 2:
            problem = f"{', '.join(colour + sketch)} in {where} may all be halves of pairs"
            raise UserError(f"{problem}; say which are, with --pair-folders COLOUR SKETCH")
        return colour[0], sketch[0]
    if not isinstance(recipe, Recipe):
        return None
    halves = _look_at_halves(tree, tops, where, recipe) if len(tops) == 2 else None
    if halves is None and (found := _find_unknown_pairs(tree, where)):
        if recipe.input != "L":
            raise UserError(f"{found}: if they are pairs, say --pair-folders COLOUR SKETCH, else --pair none")
        notes.append(f"{found}: all are taken for pictures; if they are pairs, say --pair-folders COLOUR SKETCH")
    return halves


def _find_unknown_pairs(tree: Tree, where: str) -> str:
    """Return a sentence where folders beside each other hold equal names, some gray and some in colour; else "".

    At any depth. Looks at no more than MAX_ALIKE pairs of folders.
    """
    inside: dict[str, dict[str, list[str]]] = {}  # folder -> folder in it -> names of images
    for name in tree:
        folders = name.split("/")[:-1]
        for i, folder in enumerate(folders):
            inside.setdefault("/".join(folders[:i]), {}).setdefault(folder, []).append(name)
    few = ((parent, below) for parent, below in inside.items() if 1 < len(below) <= MAX_BESIDE)
    alike = (
        (parent, one, other, below)
        for parent, below in few
        for (one, stems), (other, others) in combinations(_stems_below(parent, below).items(), 2)
        if len(stems & others) > 1 and 2 * len(stems & others) >= min(len(stems), len(others))
    )
    for parent, one, other, below in islice(alike, MAX_ALIKE):
        gray = {folder: is_gray([tree[name] for name in below[folder]]) for folder in (one, other)}
        if {*gray.values()} == {True, False}:
            drawn, colour = sorted(gray, key=gray.__getitem__, reverse=True)
            place = f"{where}/{parent}" if parent else where
            return f"{colour} (in colour) and {drawn} (gray) in {place} hold images of equal names"
    return ""


def _stems_below(parent: str, below: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Return what the images in folders are called, without endings, by folder."""
    start = len(parent) + bool(parent)
    return {
        folder: {name[start + len(folder) + 1 :].rsplit(".", 1)[0] for name in names} for folder, names in below.items()
    }


def _look_at_halves(tree: Tree, tops: list[str], where: str, recipe: Recipe) -> Halves | None:
    """Return A and B, if one of them is gray, as colour and sketch; UserError where other folders may be pairs."""
    halves = [_below(tree, top) for top in tops]
    one, other = ({*unique_stems([*half])} for half in halves)
    shared, letters = len(one & other), {*map(plain, tops)} == LETTERS
    if shared < 2 and not letters:
        return None
    gray = [is_gray([*half.values()]) for half in halves]
    if letters and {*gray} == {True, False}:
        return tops[gray.index(False)], tops[gray.index(True)]
    drawn = recipe.input != "L"  # photographs come in classes, and these may be numbered alike
    if shared > 1 and ({*gray} == {True, False} or (one == other and (letters or drawn))):
        problem = f"{tops[0]} and {tops[1]} in {where} hold {shared} images of equal names"
        raise UserError(f"{problem}: if they are pairs, say --pair-folders COLOUR SKETCH, else --pair none")
    return None


def is_gray(images: Sequence[Picture]) -> bool | None:
    """Tell whether most of the first eight images are gray. None: not one can be read."""
    found = []
    for image in images[:8]:
        with suppress(UserError):  # load_images will list it
            found.append(lacks_colour(read_picture(image, LOOK)))
    return 2 * sum(found) > len(found) if found else None


def lacks_colour(image: Array) -> bool:
    """Tell whether (H, W, 3) is gray, or has no other tint than its paper, but for a stamp perhaps."""
    height, width = image.shape[:2]
    top, left = (min(max(side // 16, MARGIN), side // 4) for side in image.shape[:2])
    inner = image[top : height - top, left : width - left].astype(np.float32)
    light, tint = inner.max(2, keepdims=True), inner[..., 1:] - inner[..., :1]  # (h, w, 1), (h, w, 2)
    paper = np.median(tint, (0, 1)) / max(1.0, np.median(light))  # per level of lightness, as ink darkens it
    off = np.abs(tint - paper * light).max(2)
    return bool((off > TINT).mean() < COLOURED)


def share(item: Item, salt: str) -> float:
    """Return a number in [0, 1) that depends on an item's name and the salt alone."""
    digest = hashlib.sha256(to_bytes(f"{salt}/{item.name}")).digest()
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


def find_items(tree: Tree, where: str, halves: Halves | None = None) -> list[Item]:
    """Return the items of a split: pairs by stem of the two folders `halves`, or else single images.

    Raises UserError where an image has no partner.
    """
    if halves:
        tops = {plain(name.split("/", 1)[0]): name.split("/", 1)[0] for name in tree if "/" in name}
        colour, sketch = (_below(tree, tops.get(plain(half), half)) for half in halves)
        if not colour and not sketch:
            raise UserError(f"no folders {halves[0]} and {halves[1]} in {where}, as there are in train")
        return _match_stems(colour, sketch, where, halves)
    return [
        Item(stem, picture, None, name.split("/", 1)[0] if "/" in name else "", name)
        for stem, (name, picture) in zip(unique_stems([*tree]), tree.items(), strict=True)
    ]


def _match_stems(colour: Tree, sketch: Tree, where: str, halves: Halves) -> list[Item]:
    names = dict(zip(unique_stems([*colour]), colour, strict=True))
    partners = dict(zip(unique_stems([*sketch]), sketch, strict=True))
    alone = sorted(names.keys() ^ partners.keys())
    if alone:
        folders = f"{len(names)} in {halves[0]} and {len(partners)} in {halves[1]}"
        pictures = "1 picture" if len(alone) == 1 else f"{len(alone)} pictures"
        problem = f"{pictures} in {where} ({folders}) have no partner of their name, first {alone[0]}"
        raise UserError(f"{problem}; give both of a pair one name, or say --pair none if they are no pairs")
    return [Item(stem, colour[name], sketch[partners[stem]], "", name) for stem, name in names.items()]


def to_bytes(name: str) -> bytes:
    """Return the bytes of a file's name, which need not be UTF-8."""
    return name.encode(errors="surrogateescape")


def unique_stems(names: list[str]) -> list[str]:
    """Return a flat name per file: its path without ending; with ending, then with a hash, if not unique.

    It is text of at most MAX_STEM bytes, and unique where a disk knows no case, too.
    """
    flat = [to_bytes(name.replace("/", "__")).decode(errors="replace") for name in names]
    stems = [bounded(str(Path(name).with_suffix(""))) for name in flat]
    with_ending = [bounded("_".join(name.rsplit(".", 1))) for name in flat]
    digests = (hashlib.sha256(to_bytes(name)).hexdigest()[:8] for name in names)
    with_hash = [f"{bounded(name, MAX_STEM - 9)}_{digest}" for name, digest in zip(flat, digests, strict=True)]
    for others in (with_ending, with_hash):
        count = Counter(map(_without_case, stems))
        stems = [stem if count[_without_case(stem)] == 1 else other for stem, other in zip(stems, others, strict=True)]
    return stems


def _without_case(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


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
    gray = tuple(map(lacks_colour, (image[:, : width // 2], image[:, width // 2 :])))
    return {(True, True): [], (False, True): ["AB"], (True, False): ["BA"]}.get(gray, ["none"])
