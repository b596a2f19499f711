"""Images in .tar and .npz archives, read in place, and torchvision's data sets by name.

Every source becomes a dictionary like {"train/dog/0001.jpg": image}, as a folder does. folders.py derives
splits, pairs and labels from the names.

A packed .npz holds `data` (uint8, all JPEG or PNG files one after the other), `offsets` (N + 1, where each
file begins) and optionally `labels` (N), `classes` (names) and `is_test` (N, bool):

    np.savez("set.npz", data=np.frombuffer(b"".join(files), "u1"), offsets=np.cumsum([0, *map(len, files)]))
"""

import inspect
import posixpath
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from config import UserError
from imaging.decoders import guarded, named, to_frame
from imaging.files import EXTENSIONS, count_endings, is_shown, read_image
from imaging.pixels import Array, flatten

# our split -> its names in torchvision's data sets; the first that a data set knows is used
TRAIN, VAL = ("train", "train-standard", "trainval"), ("val", "valid", "validation")
SPLITS = {"train": TRAIN, "val": VAL, "test": ("test",)}
BASES = {"DatasetFolder", "ImageFolder", "VisionDataset", "wrap_dataset_for_transforms_v2"}  # no data sets


@dataclass(frozen=True)
class Blob:
    """An encoded image inside an archive that is mapped into memory."""

    archive: Path
    name: str
    start: int  # bytes
    stop: int
    data: NDArray[np.uint8] | None = field(repr=False, compare=False)  # all of the archive; None: mapped when needed

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"

    def content(self) -> bytes:
        """Return the bytes of the encoded image."""
        data = map_file(self.archive) if self.data is None else self.data
        return data[self.start : self.stop].tobytes()

    def read(self, least: int = 0) -> Array:
        """Return the image as imaging.files.read_image does. Raises UserError where it cannot be decoded."""
        return read_image(Path(str(self)), self.content(), least)


def read_content(picture: Path | Blob) -> bytes:
    """Return the bytes of an encoded image, a file or in an archive. Raises UserError where they cannot be read."""
    if isinstance(picture, Blob):
        return picture.content()
    try:
        return picture.read_bytes()
    except OSError as error:
        raise UserError(f"{picture}: {error.strerror}") from None


def map_file(path: Path) -> NDArray[np.uint8]:
    """Return a file's bytes, memory-mapped."""
    status = path.stat()
    return _map_file(path, (status.st_dev, status.st_ino, status.st_mtime_ns))


@lru_cache(maxsize=256)  # each keeps a file open, and a process may open about a thousand
def _map_file(path: Path, _: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return the bytes of the file that has this path and these numbers now."""
    return np.memmap(path, np.uint8, mode="r")


@dataclass(frozen=True)
class Entry:
    """An image of a torchvision data set."""

    name: str
    index: int
    dataset: Any = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name}[{self.index}]"

    def read(self, _: int = 0) -> Array:
        """Return the image as sRGB (H, W, 3) uint8. Raises UserError where it is none."""
        with named(self):
            with guarded():  # torchvision's own code: what it raises on a damaged file varies
                image = self.dataset[self.index][0]
            if not isinstance(image, Image.Image):
                raise UserError(f"not an image that can be read ({type(image).__name__})")
            return flatten(to_frame(image))


def open_archive(path: Path, notes: list[str] | None = None) -> dict[str, Blob]:
    """Return the images of a .tar or .npz file by name; what is left out of it is added to `notes`.

    Raises UserError where it is neither, or damaged.
    """
    read = {".tar": _read_tar, ".npz": _read_npz}.get(path.suffix.lower())
    if read is None:
        raise UserError(f"{path} is neither a folder nor a .tar or .npz file; unpack it and name its folder")
    try:
        found = read(path, [] if notes is None else notes)
    except UserError as error:
        reason = f"{path} cannot be read as {path.suffix} ({error})"
        raise UserError(f"{reason}; unpack it, or pack it anew") from None
    if not found:
        raise UserError(f"no image in {path}: looked for {' '.join(sorted(EXTENSIONS))}")
    return found


def images_among(names: Iterable[str], where: Path, notes: list[str]) -> list[str]:
    """Return the names of images, sorted; a sentence about the others is added to `notes`."""
    everything = sorted(name for name in names if all(map(is_shown, name.split("/"))))
    shown = [name for name in everything if Path(name).suffix.lower() in EXTENSIONS]
    notes += count_endings(where, map(Path, {*everything} - {*shown}))
    return shown


def top_folder(names: Iterable[str]) -> str:
    """Return the single folder at the top of all names, with its slash; "" where there is none, or it is a split."""
    tops = {name.split("/", 1)[0] if "/" in name else "" for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and not tops & {"", *SPLITS} else ""


def _read_tar(path: Path, notes: list[str]) -> dict[str, Blob]:
    """Index an uncompressed tar. A single folder at the top that is no split is left out of the names."""
    spans, data = index_tar(path), np.memmap(path, np.uint8, mode="r")
    shown = images_among(spans, path, notes)
    cut = len(top_folder(shown))
    return {name[cut:]: Blob(path, name, *spans[name], data) for name in shown}


def index_tar(path: Path) -> dict[str, tuple[int, int]]:
    """Return where the files of an uncompressed tar begin and end, in bytes, by their names. Raises UserError."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = list(archive)
            end = archive.offset
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(str(error)) from None
    with open(path, "rb") as file:
        file.seek(end)
        rest = file.read(512)  # zeros, or nothing where the closing blocks are missing
    if 0 < len(rest) < 512 or any(rest):  # tarfile takes a damaged header for the end
        raise UserError("it is cut short or damaged behind its last whole file")
    files = {file.name: (file.offset_data, file.offset_data + file.size) for file in members if file.isfile()}
    for link in members:  # tar writes a second name of a file as a link
        if link.islnk() or link.issym():
            target = link.linkname if link.islnk() else posixpath.join(posixpath.dirname(link.name), link.linkname)
            known = files.get(target) or files.get(posixpath.normpath(target))
            files |= {link.name: known} if known else {}
    return {name.removeprefix("./"): span for name, span in files.items()}


def _read_npz(path: Path, _: list[str]) -> dict[str, Blob]:
    arrays = _load_arrays(path)
    for name in ("data", "offsets"):
        _require(name in arrays, f"it has no array {name!r}")
    data, offsets = arrays["data"], arrays["offsets"]
    _require(data.dtype == np.uint8 and data.ndim == 1, "data is not a flat array of bytes")
    listed = offsets.dtype.kind in "iu" and offsets.ndim == 1 and len(offsets) > 0
    _require(listed, "offsets are not a list of whole numbers")
    spans, count = offsets.astype(np.int64), len(offsets) - 1
    within = 0 <= spans[0] and spans[-1] <= len(data) and bool((np.diff(spans) >= 0).all())
    _require(within, "offsets do not rise within data")
    for name in ("labels", "is_test"):
        _require(name not in arrays or arrays[name].shape == (count,), f"{name} are not one per image")
    classes = _class_names(arrays, count)
    found = {}
    for i in range(count):
        split = ("test/" if arrays["is_test"][i] else "train/") if "is_test" in arrays else ""
        name = f"{split}{classes[i] and classes[i] + '/'}{i:06d}.jpg"
        found[name] = Blob(path, name, int(spans[i]), int(spans[i + 1]), data)
    return found


def _load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        packed = np.load(path)
        if isinstance(packed, np.lib.npyio.NpzFile):
            with packed:
                return {name: packed[name] for name in packed.files}
    except (zipfile.BadZipFile, zlib.error, LookupError, TypeError, ValueError, OSError, EOFError,
            RuntimeError) as error:  # fmt: skip
        raise UserError(str(error)) from None
    raise UserError("it holds one array, not several by name")


def _class_names(arrays: dict[str, NDArray[Any]], count: int) -> list[str]:
    """Return the class of each image, empty where there are none."""
    if "labels" not in arrays:
        return [""] * count
    labels, classes = arrays["labels"], arrays.get("classes")
    if classes is not None:
        numbers = classes.ndim == 1 and labels.dtype.kind in "iu"
        within = numbers and bool(((labels >= 0) & (labels < len(classes))).all())
        _require(within, "labels are not indices of classes")
        labels = classes[labels]
    return [_folder_name(label) for label in labels]


def _require(ok: bool, reason: str) -> None:
    if not ok:
        raise UserError(reason)


def _folder_name(label: Any) -> str:
    """Return the name of a class without slashes; of several names, which some data sets give, the first."""
    return str(label[0] if isinstance(label, tuple) else label).strip("/").replace("/", "-")


def find_named(name: str) -> str | None:
    """Return torchvision's spelling of a data set's name, None where it has no such data set."""
    import torchvision  # takes a second, and only data sets by name need it

    plain = {re.sub("[-_]", "", known.lower()): known for known in {*torchvision.datasets.__all__} - BASES}
    return plain.get(re.sub("[-_]", "", name.lower()))


def open_named(name: str, folder: Path) -> dict[str, Entry]:
    """Return the images of a torchvision data set by name; it is downloaded into `folder` if need be.

    Raises UserError where it needs more than a name, or is not there and cannot be downloaded.
    """
    import torchvision

    known = str(find_named(name))
    splits = _open_splits(known, getattr(torchvision.datasets, known), folder)
    return {
        f"{prefix}{label and label + '/'}{i:06d}": Entry(f"{known}/{prefix}", i, dataset)
        for prefix, dataset in splits.items()
        for i, label in enumerate(_labels(dataset))
    }


def _open_splits(known: str, build: Callable[..., Any], folder: Path) -> dict[str, Any]:
    """Return the data sets of "train/", "val/" and "test/"; of "" where it has no splits."""
    parameters = inspect.signature(build).parameters
    required = {key for key, value in parameters.items() if value.default is value.empty} - {"root", "kwargs"}
    if required:
        raise UserError(f"{known} needs {' '.join(sorted(required))}; unpack it and name its folder")
    options: dict[str, Any] = {"root": str(folder)} if "root" in parameters else {}
    if "small" in parameters:
        options["small"] = True  # Places365 at 256 px instead of its originals
    if known == "Imagenette":
        options["size"] = "320px"  # a fifth of the download
    if "train" in parameters:
        sides = {"train/": True, "test/": False}
        return {name: _build(known, build, {**options, "train": side}) for name, side in sides.items()}
    if "split" not in parameters:
        return {"": _build(known, build, options)}
    splits = {}
    for ours, names in SPLITS.items():
        tried = (_build(known, build, {**options, "split": theirs}) for theirs in names)
        splits[f"{ours}/"] = next((dataset for dataset in tried if dataset is not None), None)
    if splits["train/"] is None:
        raise UserError(f"{known} has no split for training; unpack it and name its folder")
    return {name: dataset for name, dataset in splits.items() if dataset is not None}


def _build(known: str, build: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Return a data set, downloaded if need be; None where it has no such split."""
    loads = "download" in inspect.signature(build).parameters
    reasons: list[Exception] = []
    for choice in [{"download": True}, {"download": False}] if loads else [{}]:  # a download keeps files
        try:
            return build(**options, **choice)
        except (ImportError, NotImplementedError) as error:
            problem = f"torchvision cannot open {known} here ({error}); unpack it and name its folder"
            raise UserError(problem) from None
        except (ValueError, RuntimeError, OSError) as error:
            if "Unknown value" in str(error):  # torchvision's message for a split that it does not have
                return None
            reasons.append(error)
    found = "could not be downloaded" if loads else "is never downloaded"
    raise UserError(
        f"{known} is not in {options.get('root')} and {found} ({reasons[0]}); put there what "
        f"torchvision.datasets.{known} keeps, or unpack it elsewhere and name its folder with --data"
    )


def _labels(dataset: Any) -> list[str]:
    """Return the class name of each image, empty where the data set does not list them."""
    listed = [getattr(dataset, key, None) for key in ("targets", "labels", "_labels")]
    listed.append([label for _, label in getattr(dataset, "_samples", [])])
    values = next(value for value in listed if value is not None)
    whole = [value for value in values if isinstance(value, int | np.integer | torch.Tensor)]
    if len(whole) != len(dataset):  # no labels, or something else: some data sets list annotation files there
        return [""] * len(dataset)
    classes = getattr(dataset, "classes", None)
    return [_folder_name(classes[int(value)] if classes else int(value)) for value in whole]
