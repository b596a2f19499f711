"""Files that appear complete or not at all: any file, JSON, and checkpoints of torch."""

import errno
import io
import json
import os
import pickle
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from config import UserError

if TYPE_CHECKING:
    import torch

MAX_NAME = 255  # bytes of a file's name
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a write, which name no file
MAX_STEM = 120  # of a name that we derive: encrypted disks take 143, and an ending is still to come


@contextmanager
def replacing(path: Path, previous: Path | None = None, size: int = 0) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what is written there takes its place when the block succeeds.

    The file that was at `path` is kept as `previous`, if that is given. `size`: how many bytes it will have, if known.

    Raises:
        OSError: `path` cannot be written, which it names; or the block's own, of another file.
    """
    # a long name leaves no room for more; two containers may have equal numbers of processes
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        with writing(path, temporary, lambda: size):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # or the failure to tidy up would hide why the block failed
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, place: Path | None = None, size: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Let an OSError of the block name the file `path`, which is written at `place`, unless it is another file's.

    Of a full disk it says how much room there is, and what is missing where the file's `size`, in bytes, is known then.
    """
    place = place or path
    try:
        yield
    except OSError as error:
        names = [str(name) for name in (error.filename, error.filename2) if name] or [
            str(place)
        ]  # a full disk's has none
        if error.errno is None or not any(place.is_relative_to(name) for name in names):  # a library's has no number
            raise
        room = room_left(place, size()) if error.errno == errno.ENOSPC else ""  # a quota's nobody tells
        raise OSError(error.errno, f"{error.strerror}{room}", str(path)) from error


def room_left(place: Path, size: int) -> str:
    """Return, in words, how much a full disk holds of the file or folder `place`, and how much it lacks of `size`."""
    try:
        free = shutil.disk_usage(place.parent).free
        files = place.rglob("*") if place.is_dir() else [place] if place.exists() else []
        written = sum(file.stat().st_size for file in files)
    except OSError:
        return ""
    if size > written + free:
        return f": {(size - written - free) / 1e6:,.1f} of {size / 1e6:,.1f} MB are missing"
    return f": {free / 1e6:,.1f} MB are free, with {written / 1e6:,.1f} MB of this written"


def bounded(stem: str, most: int = MAX_STEM) -> str:
    """Return a name of at most `most` bytes: of a longer one the end, behind a hash of it all."""
    encoded = os.fsencode(stem)
    if len(encoded) <= most:
        return stem
    return f"{zlib.crc32(encoded):08x}_{encoded[9 - most :].decode(errors='ignore')}"


def write_text(path: Path, text: str) -> None:
    """Write a text, complete or not at all."""
    with replacing(path, size=len(text.encode())) as temporary, open(temporary, "w") as file:
        file.write(text)
        _flush(file)


def write_json(path: Path, payload: Any) -> None:
    """Write JSON, complete or not at all."""
    write_text(path, json.dumps(payload, indent=1) + "\n")


def save(path: Path, payload: dict[str, Any], previous: Path | None = None) -> None:
    """Write a checkpoint, complete or not at all; the one that was there is kept as `previous`, if that is given."""
    import torch  # seconds, which callers that write no checkpoint save

    with replacing(path, previous, count_bytes(payload)) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(payload, file)
        except RuntimeError as error:  # torch closes its file after a failure, and stumbles over what is missing there
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        _flush(file)


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())  # or a power cut could leave the new name with nothing behind it


def count_bytes(payload: Any) -> int:
    """Return how many bytes the tensors in nested dictionaries and lists take."""
    if isinstance(payload, Mapping | list):
        return sum(count_bytes(part) for part in (payload.values() if isinstance(payload, Mapping) else payload))
    return getattr(payload, "nbytes", 0)


def load(path: Path, device: "torch.device | str" = "cpu") -> dict[str, Any]:
    """Read a checkpoint; never runs code from the file.

    Raises:
        UserError: missing, or not a checkpoint.
        OSError: it cannot be read, which says nothing of what is in it.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    import torch

    payload, content = None, io.BytesIO(path.read_bytes())  # it may be far away: it is read once
    with suppress(RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile, pickle.PickleError, zlib.error):
        with zipfile.ZipFile(content) as file:  # what torch.save writes; its reader of older files fails in many ways
            damaged = file.testzip()  # torch's own reader checks no checksum of a tensor
        if damaged is None:
            content.seek(0)
            payload = torch.load(content, map_location=device, weights_only=True)
    if not isinstance(payload, dict):
        raise UserError(f"{path} is not a checkpoint of this project, or it is damaged")
    return payload
