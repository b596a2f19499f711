"""Images that tests of reading and writing use."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.files import read_frames, scan
from imaging.metadata import Scan
from imaging.pixels import Frame, resize

GRID = np.add.outer(np.arange(24), 2 * np.arange(32))[..., None] * [2, 1, 3]
RGB = (GRID % 256).astype(np.uint8)  # (24, 32, 3)
DEEP = (GRID * 641 % 65536).astype(np.uint16)
ALPHA = (GRID[..., 1] * 2 % 256).astype(np.uint8)
DEEP_ALPHA = (GRID[..., 1] * 521 % 65536).astype(np.uint16)
SMOOTH = resize(RGB[:3, :3], 24, 32)
SRGB = imagecodecs.cms_profile("srgb")
GREEN_CALLED_RED = SRGB.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")


def scan_of(count: int = 1, **fields: Any) -> Scan:
    """Return what scan would, of a file of 32 x 24 px that need not exist."""
    return replace(Scan(Path("source.png"), "PNG", count, (32, 24)), **fields)


def read_all(name: str | Path, content: bytes | None = None) -> list[Frame]:
    """Read a file's frames, and see that they are as promised."""
    found = scan(Path(name), content)
    frames = list(read_frames(found))
    assert len(frames) == found.count
    for frame in frames:
        assert frame.pixels.dtype in (np.uint8, np.uint16)
        assert frame.pixels.shape[2:] == (3,)
        assert frame.pixels.flags.c_contiguous
        if frame.alpha is not None:
            assert (frame.alpha.shape, frame.alpha.dtype) == (frame.pixels.shape[:2], frame.pixels.dtype)
    return frames


def read_one(name: str | Path) -> Frame:
    """Read a file of one frame."""
    (frame,) = read_all(name)
    return frame


def exif_of(orientation: int) -> Image.Exif:
    """Return EXIF that says nothing but an orientation."""
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def save_png(name: str, values: NDArray, *chunks: tuple[bytes, bytes]) -> None:
    """Write a PNG of any depth by libpng, with more chunks after its header."""
    data = imagecodecs.png_encode(np.ascontiguousarray(values))
    Path(name).write_bytes(data[:33] + b"".join(chunk(*one) for one in chunks) + data[33:])


def png_header(width: int, height: int, bits: int = 8, colour: int = 0) -> bytes:
    """Return a whole PNG whose header promises more pixels than it has."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = imagecodecs.png_encode(np.zeros((1, 1), np.uint8))
    return data[:8] + header + data[33:]
