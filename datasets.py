"""Where pictures come from besides plain files: .tar and .npz archives read in place, torchvision by name.

Every source becomes a tree, {"train/dog/0001.jpg": picture}, as a folder does; folders.py makes splits, pairs
and labels of the names.

The packed .npz form holds `data` (uint8, all JPEG or PNG files back to back), `offsets` (N + 1, where each
begins) and, if there are any, `labels` (N), `classes` (names) and `is_test` (N, bool):

    np.savez("set.npz", data=np.frombuffer(b"".join(files), "u1"), offsets=np.cumsum([0, *map(len, files)]))
"""

import inspect
import re
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from numpy.typing import NDArray

from images import EXTENSIONS, Array, read_image, to_array

# Our split -> what torchvision's data sets may call it, the first that they know.
SPLITS = {
    "train": ("train", "train-standard", "trainval"),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}


@dataclass(frozen=True)
class Blob:
    """An encoded picture inside an archive that is mapped into memory."""

    archive: Path
    name: str
    start: int  # bytes
    stop: int
    data: NDArray[np.uint8] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"

    def read(self) -> Array:
        """Return the picture as sRGB (H, W, 3) uint8. Raises ValueError where it cannot be decoded."""
        return read_image(Path(str(self)), self.data[self.start : self.stop].tobytes())


@dataclass(frozen=True)
class Entry:
    """A picture of a torchvision data set."""

    name: str
    index: int
    dataset: Any = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name}[{self.index}]"

    def read(self) -> Array:
        """Return the picture as sRGB (H, W, 3) uint8. Raises ValueError where it is none."""
        try:
            return to_array(self.dataset[self.index][0])
        except (AttributeError, TypeError, OSError, ValueError) as error:
            raise ValueError(f"{self}: not a picture that can be read ({error})") from None


def open_archive(path: Path) -> dict[str, Blob]:
    """Return the pictures of a .tar or .npz file by name.

    Raises:
        ValueError: another kind of file, damaged, or without pictures.
    """
    openers = {".tar": _open_tar, ".npz": _open_npz}
    if path.suffix.lower() not in openers:
        raise ValueError(f"{path} is neither a folder nor a .tar or .npz file; unpack it and name its folder")
    try:
        found = openers[path.suffix.lower()](path)
    except (tarfile.TarError, zipfile.BadZipFile, KeyError, OSError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as {path.suffix} ({error}); unpack it, or pack it anew"
        ) from None
    if not found:
        raise ValueError(f"no image in {path}: looked for {' '.join(sorted(EXTENSIONS))}")
    return found


def _open_tar(path: Path) -> dict[str, Blob]:
    """Index an uncompressed tar; a folder that holds everything is left out of the names."""
    data = np.memmap(path, np.uint8, mode="r")
    with tarfile.open(path, "r:") as archive:
        members = [(member.name.removeprefix("./"), member) for member in archive if member.isfile()]
    shown = [
        (name, member)
        for name, member in members
        if Path(name).suffix.lower() in EXTENSIONS and not re.search(r"(^|/)\.", name)
    ]
    tops = {name.split("/", 1)[0] if "/" in name else "" for name, _ in shown}
    cut = len(f"{tops.pop()}/") if len(tops) == 1 and not tops & {"", *SPLITS} else 0
    return {
        name[cut:]: Blob(path, name, member.offset_data, member.offset_data + member.size, data)
        for name, member in sorted(shown, key=lambda pair: pair[0])
    }


def _open_npz(path: Path) -> dict[str, Blob]:
    with np.load(path) as packed:
        arrays = {name: packed[name] for name in packed.files}
    data, offsets = arrays["data"], arrays["offsets"]
    count = len(offsets) - 1
    whole = data.dtype == np.uint8 and count >= 0 and bool((np.diff(offsets) >= 0).all())
    if (
        not whole
        or offsets[-1] > len(data)
        or any(len(arrays.get(n, offsets[1:])) != count for n in ("labels", "is_test"))
    ):
        raise ValueError(f"{path} is damaged: its offsets, labels and data do not belong together")
    classes, labels = arrays.get("classes"), arrays.get("labels")
    found = {}
    for i in range(count):
        split = ("test/" if arrays["is_test"][i] else "train/") if "is_test" in arrays else ""
        kind = "" if labels is None else _folder_name(labels[i] if classes is None else classes[labels[i]])
        name = f"{split}{kind and kind + '/'}{i:06d}.jpg"
        found[name] = Blob(path, name, int(offsets[i]), int(offsets[i + 1]), data)
    return found


def _folder_name(label: Any) -> str:
    """Return a class's name without slashes; some data sets give several names, of which the first counts."""
    first = label[0] if isinstance(label, tuple) else label
    return str(first).strip("/").replace("/", "-")


def find_named(name: str) -> str | None:
    """Return torchvision's own spelling of a data set's name, None where it has no such set."""
    plain = {re.sub("[-_]", "", known.lower()): known for known in torchvision.datasets.__all__}
    return plain.get(re.sub("[-_]", "", name.lower()))


def open_named(name: str, folder: Path) -> dict[str, Entry]:
    """Return the pictures of one of torchvision's data sets by name; downloads it into `folder` if need be.

    Raises:
        ValueError: it needs more than a name, or it is not there and cannot be downloaded.
    """
    known = find_named(name)
    build = getattr(torchvision.datasets, known or "")
    parameters = inspect.signature(build).parameters
    required = {key for key, value in parameters.items() if value.default is value.empty}
    if not required <= {"root", "kwargs"}:
        raise ValueError(
            f"{known} needs {' '.join(sorted(required - {'root'}))}; unpack it and name its folder"
        )
    options: dict[str, Any] = {"root": str(folder)} if "root" in parameters else {}
    if "small" in parameters:
        options["small"] = True  # Places365 at 256 px instead of its originals
    if "train" in parameters:
        splits = {
            "train/": _build(known, {**options, "train": True}),
            "test/": _build(known, {**options, "train": False}),
        }
    elif "split" in parameters:
        tried = {
            f"{ours}/": [_build(known, {**options, "split": theirs}) for theirs in names]
            for ours, names in SPLITS.items()
        }
        splits = {ours: next(filter(None, found)) for ours, found in tried.items() if any(found)}
    else:
        splits = {"": _build(known, options)}
    tree = {}
    for prefix, dataset in splits.items():
        for i, label in enumerate(_labels(dataset)):
            tree[f"{prefix}{label and label + '/'}{i:06d}"] = Entry(f"{known}/{prefix}", i, dataset)
    return tree


def _build(known: str, options: dict[str, Any]) -> Any:
    """Return a data set, from disk or downloaded; None where it has no such split."""
    build = getattr(torchvision.datasets, known)
    downloads = (False, True) if "download" in inspect.signature(build).parameters else (None,)
    reason: Exception | None = None
    for download in downloads:
        try:
            return build(**options) if download is None else build(**options, download=download)
        except ValueError:  # torchvision's word for a split that it does not know
            return None
        except (RuntimeError, OSError) as error:
            reason = error
    raise ValueError(
        f"{known} is not in {options.get('root')} and could not be downloaded ({reason}); put there what "
        f"torchvision.datasets.{known} keeps, or unpack it elsewhere and name its folder with --data"
    )


def _labels(dataset: Any) -> list[str]:
    """Return each picture's class name, empty where the data set does not list them."""
    values = next(
        (getattr(dataset, key) for key in ("targets", "labels", "_labels") if hasattr(dataset, key)), None
    )
    if values is None and hasattr(dataset, "_samples"):
        values = [label for _, label in dataset._samples]
    if values is None or len(values) != len(dataset):
        return [""] * len(dataset)
    classes = getattr(dataset, "classes", None)
    return [_folder_name(classes[int(value)] if classes else value) for value in values]
