"""What is wrong with the images of a data set, found before anybody trains on them: `python data.py --check DIR`.

Every image is decoded once. Found are files that cannot be read, images without colour, small ones, kinds of files
that training sees otherwise than a viewer does, images that are there twice or in two splits, and sketches that do
not lie on their images.
"""

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from config import DEMO, UserError
from dataset.folders import Item
from dataset.sources import Blob, Entry, read_content
from imaging.files import read_frames, scan
from imaging.line_art import line_art
from imaging.pixels import Array, Frame, flatten, is_coloured, resize
from runtime.atomic import replacing
from runtime.progress import track

PROBLEMS = {  # problem -> what it means
    "corrupt": "cannot be read",
    "gray": "have no colour, or one tint alone",
    "tiny": "are small",
    "odd": "are transparent, of several frames, 16 bits, CMYK or the like, which training sees otherwise",
    "duplicate": "hold the same bytes as another one of their split",
    "similar": "look like another one of their split",
    "leak": "are, or look like, one of the training images, and are to be held out",
    "misaligned": "have a sketch of another shape, or one that does not lie on its image",
}
TINY = 64  # px, short side below which an image has too little to learn from
ODD_ASPECT = 1.02  # a sketch's aspect / its colour image's; above, it is cut rather than stretched
MAX_BITS = 6  # of 128 of the perceptual hash, that two images alike differ in at most
MAX_COMPARED = 256  # images of an equal part of the hash that each is compared with; white borders may have all of them
FLAT = 3.0  # standard deviation of levels, below which an image is too even to have a hash
USUAL = {"RGB", "L"}  # modes of Pillow
SIDE = 128  # px, at which sketch and image are laid on one another
SHIFT = 3  # px of SIDE; a smaller one is within the width of a line
RELATED = 0.12  # correlation of a sketch with the lines of its image, wherever it lies; below, it shows something else


class Finding(NamedTuple):
    """A line of the table: a file, and what is wrong with it."""

    file: str
    split: str
    problem: str  # of PROBLEMS
    detail: str


@dataclass
class Inspection:
    """What is seen of one item."""

    name: str  # of its file
    split: str
    found: list[tuple[str, str]] = field(default_factory=list)  # problem, detail
    content: str = ""  # SHA-256 of the bytes
    hash: NDArray[np.uint64] | None = None  # (2): perceptual hash; None: damaged, or even


def check(splits: Mapping[str, Sequence[Item]], pair: str, least: int = TINY) -> tuple[int, list[Finding]]:
    """Return how many items there are, and what is wrong with them.

    Args:
        splits: name -> items; a test split that is the validation split is looked at once.
        pair: AB, BA or none; of images that are pairs side by side.
        least: px, the short side below which an image is tiny.

    Raises UserError for the drawn scenes of demo.
    """
    if any(isinstance(item.target, int) for items in splits.values() for item in items):
        raise UserError(f"the scenes of {DEMO} are drawn: there is nothing to check")
    todo = [(split, item) for split, items in splits.items() if not _is_val(splits, split) for item in items]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        inspections = [*track(pool.map(lambda one: inspect(*one, pair, least), todo), "checking", len(todo))]
    findings = [Finding(one.name, one.split, *problem) for one in inspections for problem in one.found]
    return len(todo), [*findings, *find_duplicates(inspections)]


def _is_val(splits: Mapping[str, Sequence[Item]], split: str) -> bool:
    return split == "test" and splits["test"] is splits.get("val")


def inspect(split: str, item: Item, pair: str, least: int = TINY) -> Inspection:
    """Decode one item and return what is seen of it."""
    seen = Inspection(str(item.target), split)
    try:
        frame, seen.content, odd = _open(item.target)
        sketch = None if item.source is None else flatten(_open(item.source)[0])
    except UserError as error:
        seen.found.append(("corrupt", " ".join(str(error).split())))
        return seen
    image = flatten(frame)
    if pair != "none" and sketch is None:
        halves = image[:, : image.shape[1] // 2], image[:, -(image.shape[1] // 2) :]
        image, sketch = halves if pair == "AB" else halves[::-1]
    if odd:
        seen.found.append(("odd", odd))
    if min(image.shape[:2]) < least:
        seen.found.append(("tiny", f"{image.shape[1]} x {image.shape[0]} px"))
    if min(image.shape[:2]) < 2:
        return seen
    if not is_coloured(image):
        seen.found.append(("gray", "gray, sepia or of one tint"))
    if sketch is not None and (problem := misaligned(image, sketch)):
        seen.found.append(("misaligned", problem))
    seen.hash = perceptual_hash(image)
    return seen


def _open(picture: Path | Blob | Entry) -> tuple[Frame, str, str]:
    """Return an image's first frame, the hash of its bytes, and what is odd about its kind, or ""."""
    if isinstance(picture, Entry):
        pixels = picture.read()
        return Frame(pixels, None), hashlib.sha256(pixels.tobytes()).hexdigest(), ""
    content = read_content(picture)
    found = scan(Path(str(picture)), content)
    frame = next(read_frames(found))
    odd = [] if (mode := _mode(content)) in USUAL else [mode]
    odd += ["16 bits"] if frame.pixels.dtype == np.uint16 else []
    odd += ["transparent"] if frame.alpha is not None and frame.alpha.min() < np.iinfo(frame.alpha.dtype).max else []
    odd += [f"{found.count} frames"] if found.count > 1 else []
    return frame, hashlib.sha256(content).hexdigest(), ", ".join(odd)


def _mode(content: bytes) -> str:
    """Return the mode that Pillow gives an image; of one that only other libraries read, RGB."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.mode
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return "RGB"


def perceptual_hash(image: Array) -> NDArray[np.uint64] | None:
    """Return 128 bits, as (2) uint64, that stay nearly the same when an image is scaled or compressed.

    Each says whether a cell of a small version is brighter than its neighbour, to the right and below. None where the
    image is too even to be told from others.

    Source: N. Krawetz, "Kind of like that", 2013, dHash.
    """
    luma = (image @ np.array([0.299, 0.587, 0.114], np.float32)).round().astype(np.uint8)[..., None]
    across, down = resize(luma, 8, 9)[..., 0].astype(int), resize(luma, 9, 8)[..., 0].astype(int)
    if across.std() < FLAT:
        return None
    bits = np.concatenate([(np.diff(across, axis=1) > 0).ravel(), (np.diff(down, axis=0) > 0).ravel()])
    return np.packbits(bits).view(np.uint64)


def near_pairs(hashes: NDArray[np.uint64], most: int = MAX_BITS) -> Iterator[tuple[int, int, int]]:
    """Yield (first, second, bits that differ) of all hashes (N, 2) that differ in at most `most` bits, 7 or fewer.

    Of eight parts of 16 bits two such hashes have at least one in common, so only those with an equal part are
    compared. A pair may come more than once. Of hashes that share a part with more than MAX_COMPARED others, as of
    pictures with white borders, each is compared with as many that are next to it when they are sorted from that part
    on: pairs are missed, but not every one of a picture that is there many times.
    """
    parts = hashes.view(np.uint16).T  # (8, N)
    for number, part in enumerate(parts):
        order = np.lexsort(np.roll(parts, -number, 0)[::-1])
        for group in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            for place in range(1, len(group)):
                before = group[max(0, place - MAX_COMPARED) : place]
                differ = np.unpackbits((hashes[before] ^ hashes[group[place]]).view(np.uint8), axis=1).sum(1)
                for other in np.flatnonzero(differ <= most):
                    yield *sorted((int(before[other]), int(group[place]))), int(differ[other])


def find_duplicates(inspections: Sequence[Inspection]) -> list[Finding]:
    """Return the images that are, or look like, an earlier one; of the same split, or of training."""
    first: dict[str, int] = {}  # content -> the first that holds it
    found: dict[tuple[int, bool], tuple[bool, int, int]] = {}  # image, whether it leaks -> differs, another, by bits
    hashed = [number for number, one in enumerate(inspections) if one.hash is not None]
    equal = ((first.setdefault(one.content, i), i, 0, False) for i, one in enumerate(inspections) if one.content)
    near = near_pairs(np.stack([inspections[number].hash for number in hashed])) if hashed else ()
    alike = ((hashed[one], hashed[other], bits, True) for one, other, bits in near)
    for earlier, later, bits, differs in chain(equal, alike):
        one, other = inspections[earlier].split, inspections[later].split
        leaks = one != other and "train" in (one, other)
        if earlier != later and (leaks or one == other):
            held, from_ = (later, earlier) if one == "train" or not leaks else (earlier, later)
            pair = (differs, from_, bits)
            found[held, leaks] = min(pair, found.get((held, leaks), pair))
    return [_duplicate(inspections, *key, *found[key]) for key in sorted(found)]


def _duplicate(
    inspections: Sequence[Inspection], image: int, leaks: bool, differs: bool, other: int, bits: int
) -> Finding:
    problem = "leak" if leaks else "similar" if differs else "duplicate"
    where = inspections[other].name
    detail = f"looks like {where}: {bits} of 128 bits differ" if differs else f"the same as {where}"
    return Finding(inspections[image].name, inspections[image].split, problem, detail)


def misaligned(image: Array, sketch: Array) -> str:
    """Return how a sketch (H, W, 3) does not lie on its image (H, W, 3), or ""."""
    ratio = sketch.shape[0] / sketch.shape[1] / (image.shape[0] / image.shape[1])
    if max(ratio, 1 / ratio) > ODD_ASPECT:
        sizes = (f"{each.shape[1]} x {each.shape[0]}" for each in (sketch, image))
        return "a sketch of {} px beside an image of {} px".format(*sizes)
    planes = torch.from_numpy(resize(image, SIDE, SIDE)).permute(2, 0, 1)[None]  # (1, 3, H, W)
    drawn = line_art(planes)[0, 0].numpy()
    spectra = [np.fft.rfft2(_ink(lines)) for lines in (drawn, resize(sketch, SIDE, SIDE).mean(2))]
    overlap = np.fft.irfft2(spectra[0] * spectra[1].conj(), (SIDE, SIDE))  # of every shift, correlation in [-1, 1]
    down, right = (int(place) for place in np.unravel_index(overlap.argmax(), overlap.shape))
    down, right = ((place + SIDE // 2) % SIDE - SIDE // 2 for place in (down, right))
    if overlap.max() < RELATED:
        return "a sketch that has little to do with its image"
    if max(abs(down), abs(right)) > SHIFT and overlap.max() > 1.5 * overlap[0, 0]:
        return f"a sketch that lies {100 * max(abs(down), abs(right)) / SIDE:.0f} % of a side beside its image"
    return ""


def _ink(lines: NDArray) -> NDArray[np.float64]:
    """Return where a drawing (H, W) in [0, 255] has ink, with mean 0 and norm 1; on dark paper light is ink."""
    ink = lines.mean() - lines.astype(np.float64)
    ink = -ink if np.median(lines) < 128 else ink
    return ink / max(float(np.linalg.norm(ink)), 1e-9)


def write_table(path: Path, findings: Sequence[Finding]) -> None:
    """Write findings as CSV, complete or not at all."""
    with replacing(path) as temporary, open(temporary, "w", newline="", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(Finding._fields)
        table.writerows(findings)


def summary(count: int, findings: Sequence[Finding]) -> list[str]:
    """Return one line per kind of problem, with the number of its files and the first of them."""
    counts = Counter(finding.problem for finding in findings)
    lines = [f"{count:,} images checked" + ("" if findings else ": nothing found")]
    for problem, meaning in PROBLEMS.items():
        if counts[problem]:
            first = next(finding for finding in findings if finding.problem == problem)
            lines.append(f"{problem:<11}{counts[problem]:>7,}  {meaning}; the first: {first.file}, {first.detail}")
    return lines
