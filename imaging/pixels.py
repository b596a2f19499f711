"""Image files <-> arrays: any file that Pillow opens becomes sRGB uint8 (H, W, 3), and back.

Reading applies the EXIF orientation and the ICC profile, lays transparency over white and brings every mode
(palette, CMYK, 1 bit, 16 bit, float) to 8 bits per channel, in strips, so that a huge picture is not held
several times over. A file that cannot be read raises ValueError with the path and cause.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from config import UserError

GAP = 6  # px between the pictures of a contact sheet
MAX_PIXELS = 500_000_000  # of a picture; more are refused before they are decoded, as a decompression bomb
STRIP = 2**21  # px converted at a time

Array = NDArray[np.uint8]
Depth = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Frame:
    """A picture, upright and in sRGB."""

    pixels: Depth  # (H, W, 3) uint8 or uint16
    alpha: Depth | None  # (H, W) of the same type, not multiplied into the pixels; None: no transparency


def check_size(width: int, height: int) -> None:
    """Refuse a picture for its size in pixels, before it is decoded. Raises UserError without its name."""
    if min(width, height) < 1:
        raise UserError("it has no pixels")
    if width * height > MAX_PIXELS:
        limit = f"{MAX_PIXELS // 10**6} million pixels"
        raise UserError(f"more than {limit}, which is taken for a decompression bomb")


def upright(frame: Frame, turn: int) -> Frame:
    """Turn a frame upright from an EXIF orientation in [1, 8]; any other number is taken for 1."""
    alpha = None if frame.alpha is None else _turned(frame.alpha, turn)
    return Frame(_turned(frame.pixels, turn), alpha)


def _turned(array: NDArray, turn: int) -> NDArray:
    if turn in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        array = array[::-1]
    if turn in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def flatten(frame: Frame) -> Array:
    """Return (H, W, 3) uint8 with transparency laid over white."""
    pixels = to_8_bits(frame.pixels)
    if frame.alpha is None:
        return pixels
    cover, out = to_8_bits(frame.alpha), np.empty_like(pixels)
    for rows in strips(*cover.shape):
        opaque = cover[rows, :, None].astype(np.uint16)
        out[rows] = (pixels[rows] * opaque + 255 * (255 - opaque) + 127) // 255
    return out


def strips(height: int, width: int) -> Iterator[slice]:
    """Cut a picture into slices of rows of about STRIP pixels."""
    step = max(1, STRIP // width)
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def to_8_bits(array: Depth) -> Array:
    """Round uint16 to uint8; uint8 is returned as it is."""
    if array.dtype == np.uint8:
        return array
    out = np.empty(array.shape, np.uint8)
    for rows in strips(*array.shape[:2]):
        out[rows] = np.add(array[rows], 128, dtype=np.uint32) // 257
    return out


def to_16_bits(values: NDArray, full: float | None = None) -> NDArray[np.uint16]:
    """Scale numbers of any kind to 0..65535; what lies outside is clipped.

    Args:
        full: the number that is white. None: the smallest of 1 (floats only), 255 and 65535 that the picture
            does not exceed, or else its largest number.

    Raises UserError where it holds NaN or infinite numbers.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and full == 65535:
        return values.astype(np.uint16, copy=False)
    peak = values.max(initial=0)
    if not np.isfinite(values.min(initial=0)) or not np.isfinite(peak):
        raise UserError("it holds NaN or infinite values")
    if full is None:
        whites = (1.0, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
        full = next((white for white in whites if peak <= white), peak)
    out = np.empty(values.shape, np.uint16)
    for rows in strips(*values.shape[:2]):
        out[rows] = (values[rows] * (65535 / np.float64(full))).round().clip(0, 65535)
    return out


def colorfulness(image: Array) -> float:
    """Return colourfulness: 0 gray, 15 slight, 59 quite colourful, 109 extreme; best close to the truth's.

    Source: Hasler and Suesstrunk, "Measuring colourfulness in natural images", 2003, M^(3).
    """
    red, green, blue = image.astype(np.int16).transpose(2, 0, 1)
    planes = (red - green, red + green - 2 * blue)  # rg, and twice yb
    n, sums = red.size, np.array([plane.sum(dtype=np.int64) for plane in planes], float)
    squares = np.array([np.square(plane, dtype=np.int32).sum(dtype=np.int64) for plane in planes])
    mean, variance = sums / n * (1, 0.5), (squares - sums**2 / n) / n * (1, 0.25)
    return float(np.sqrt(variance.clip(0).sum()) + 0.3 * np.hypot(*mean))


def resize(image: Array, height: int, width: int) -> Array:
    """Resize (H, W, C) uint8 with an antialiased bicubic filter."""
    if image.shape[:2] == (height, width):
        return image
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]  # (1, C, H, W)
    planes = F.interpolate(planes, (height, width), mode="bicubic", antialias=True)[0]
    return np.ascontiguousarray(planes.permute(1, 2, 0).numpy())


def contact_sheet(rows: Sequence[Sequence[Array]], titles: Sequence[str]) -> Array:
    """Lay equally tall pictures out in rows under column titles; returns (H, W, 3) uint8 on white."""
    cell_width = max(64, *(picture.shape[1] for row in rows for picture in row))  # room for a title
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    top = header = 26
    width = len(titles) * (cell_width + GAP) + GAP
    sheet = Image.new("RGB", (width, header + sum(heights) + GAP * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (cell_width + GAP), 4), title, fill="black", font=font)
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (GAP + column * (cell_width + GAP), top))
        top += height + GAP
    return np.asarray(sheet)
