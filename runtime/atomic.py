"""Files that appear complete or not at all: any file, JSON, and checkpoints of torch."""

import errno
import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import UserError

if TYPE_CHECKING:
    import torch


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what is written there takes its place when the block succeeds.

    Raises:
        OSError: `path` cannot be written, which it names; or the block's own, of another file.
    """
    unique = f"{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}"  # a long name leaves no room for more
    temporary = path.with_name(f".{path.name[:40]}.{unique}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        # a library's error has no number; a full disk names no file
        if error.errno is None or not temporary.is_relative_to(str(error.filename or temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # or the failure to tidy up would hide why the block failed
            temporary.unlink(missing_ok=True)


def write_json(path: Path, payload: Any) -> None:
    """Write JSON, complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(payload, indent=1) + "\n")


def save(path: Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint, complete or not at all."""
    import torch  # seconds, which callers that write no checkpoint save

    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(payload, file)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(errno.EIO, f"could not be written ({error})", str(path)) from error


def load(path: Path, device: "torch.device | str" = "cpu") -> dict[str, Any]:
    """Read a checkpoint; never runs code from the file.

    Raises:
        UserError: missing, or not a checkpoint.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    import torch

    payload = None
    if zipfile.is_zipfile(path):  # what torch.save writes; its reader of older files fails in many ways
        with suppress(RuntimeError, ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, pickle.PickleError):
            payload = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(payload, dict):
        raise UserError(f"{path} is not a checkpoint of this project, or it is damaged")
    return payload
