"""Folders of decoded images below cache/: each is made by one process, appears whole, and is checked when it is opened.

A folder is made as NAME.tmp under a lock of the system (flock). The lock ends with the process that holds it, however
that ends, and containers that share a disk see one another's, where numbers of processes would be taken for each other.
What is in use is held by a second kind of lock, so that only what nobody uses is removed to make room.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from runtime.locks import LOCK, is_current, lock
from runtime.progress import say

META, PIXELS, PARTIAL = "meta.json", "pixels.bin", ".tmp"
GB = 1e9  # bytes


def open_cache(folder: Path, most: float) -> tuple[dict[str, Any], NDArray[np.uint8]] | None:
    """Return what meta.json holds, and the pixels, memory-mapped, flat; no pixels where they have no room.

    As long as the pixels are mapped, `make_room` leaves them alone.

    Args:
        most: bytes that all caches may take.

    Returns None where there is no such cache, or it is not what was written, as after a crash of the machine, or where
    it lacks pixels for which there is room by now.
    """
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        meta = json.loads((folder / META).read_text())
        wanted, size = meta.pop("pixels"), meta.pop("size")
        if wanted is None:
            return None if make_room(folder.parent, size, most) else (meta, np.empty(0, np.uint8))
        with open(folder / PIXELS, "rb") as file:
            lock(file, shared=True, wait=True)
            pixels = np.memmap(file, np.uint8, mode="r")  # keeps the file open, and so its lock
        if hashlib.sha256(pixels).hexdigest() == wanted:  # of what is mapped: another process may put a new one there
            with suppress(OSError):  # of a cache of another user, or on a disk that is only read
                os.utime(folder / META)  # when it was last opened
            return meta, pixels
        say(f"{folder} is damaged: its pictures are decoded anew")
    return None


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Yield an empty folder in which to make a cache; once it holds META it takes the place of `folder`.

    Only one process is in the block of one folder; others wait for it. So look in the block whether there is still
    something to do. On a disk without locks each makes its own.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    held = _claim(partial, folder)
    alone = lock(held, certain=True)
    if not alone:
        held.close()
        shutil.rmtree(partial, ignore_errors=True)
        partial = folder.with_name(f"{folder.name}.{secrets.token_hex(8)}{PARTIAL}")
        held = _claim(partial, folder)
    try:
        for path in partial.iterdir():  # of a process that was killed
            if path.name != LOCK:
                path.unlink()
        yield partial
        if (partial / META).exists():
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one
            try:
                os.replace(partial, folder)
            except OSError:
                if alone:
                    raise
                shutil.rmtree(partial)  # another process was faster
        else:
            shutil.rmtree(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        held.close()


def _claim(partial: Path, folder: Path) -> BinaryIO:
    """Return the lock of a folder that is to be made, when no other process has it."""
    waited = False
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        try:
            held = open(partial / LOCK, "wb")
        except FileNotFoundError:  # another process has just finished
            continue
        if not lock(held):
            if not waited:
                say(f"waiting for another process, which is making {folder}")
            waited = lock(held, wait=True)
        if is_current(held):
            return held
        held.close()


def remove_leftovers(cache: Path) -> None:
    """Remove what killed processes left half made; what a living one is making stays."""
    for partial in cache.glob(f"*{PARTIAL}"):
        with suppress(OSError), open(partial / LOCK, "ab") as held:
            if lock(held, certain=True) and is_current(held):  # or it was made anew since
                shutil.rmtree(partial, ignore_errors=True)


def make_room(cache: Path, needed: int, most: float) -> bool:
    """Tell whether `needed` bytes of pixels fit beside the other caches into `most` bytes.

    Caches that nobody uses are removed for it, those first that were not opened for longest.
    """
    sizes, ages = {}, {}  # bytes, and times of the last opening, by folder
    for path in cache.glob(f"*/{PIXELS}"):
        if path.parent.suffix != PARTIAL:
            with suppress(FileNotFoundError):  # another process has just removed it
                sizes[path.parent] = path.stat().st_size
                ages[path.parent] = 0.0  # without META, of a process that was killed while it removed it
                ages[path.parent] = (path.parent / META).stat().st_mtime
    used = sum(sizes.values())
    if needed > most:
        return False
    for folder in sorted(ages, key=ages.__getitem__):
        if used + needed <= most:
            break
        with suppress(OSError), open(folder / PIXELS, "rb+") as file:  # of another user, it stays
            if lock(file, certain=True):
                shutil.rmtree(folder)
                used -= sizes[folder]
    return used + needed <= most
