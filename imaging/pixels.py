"""Decoded images as arrays: frames of any depth, 8-bit images, resizing, colourfulness, contact sheets.

Whatever touches every pixel works in strips, so that a huge image is not held several times over.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from config import UserError
from imaging import color

GAP = 6  # px between the images of a contact sheet
MAX_PIXELS = 500_000_000  # of an image; a larger one is refused before it is decoded
STRIP = 2**21  # px converted at a time
COLOURED = 4.5  # units of Lab that a pixel is off a tint
SHARE = 0.1  # of the picture that has to be: a stamp, a note in red and a colour target have less

Array = NDArray[np.uint8]
Depth = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Frame:
    """One image of a file, upright and in sRGB."""

    pixels: Depth  # (H, W, 3) uint8 or uint16
    alpha: Depth | None  # (H, W) of the same dtype, not multiplied into the pixels; None: opaque


def check_size(width: int, height: int) -> None:
    """Raise UserError, without the file's name, where an image has no pixels or too many to be safe."""
    if min(width, height) < 1:
        raise UserError("it has no pixels")
    if width * height > MAX_PIXELS:
        limit = f"{MAX_PIXELS // 10**6} million pixels"
        raise UserError(f"more than {limit}, which is taken for a decompression bomb")


def flatten(frame: Frame) -> Array:
    """Return (H, W, 3) uint8, composited on white."""
    pixels = to_8_bits(frame.pixels)
    if frame.alpha is None:
        return pixels
    cover, out = to_8_bits(frame.alpha), np.empty_like(pixels)
    for rows in strips(*cover.shape):
        opaque = cover[rows, :, None].astype(np.uint16)
        out[rows] = (pixels[rows] * opaque + 255 * (255 - opaque) + 127) // 255
    return out


def strips(height: int, width: int) -> Iterator[slice]:
    """Return slices of rows, of about STRIP pixels each, that cover an image."""
    step = max(1, STRIP // width)
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def to_8_bits(array: Depth) -> Array:
    """Return uint16 rounded to uint8; uint8 is returned as it is."""
    if array.dtype == np.uint8:
        return array
    out = np.empty(array.shape, np.uint8)
    for rows in strips(*array.shape[:2]):
        out[rows] = np.add(array[rows], 128, dtype=np.uint32) // 257
    return out


def to_16_bits(values: NDArray, white: float | None = None) -> NDArray[np.uint16]:
    """Return numbers of any dtype, (H, W) or (H, W, C), scaled to [0, 65535], rounded and clipped.

    `white` becomes 65535. None: the smallest of 1 (floats only), 255 and 65535 that no value exceeds, or else
    the largest value. Raises UserError, without the file's name, where a value is NaN or infinite.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and white == 65535:
        return values.astype(np.uint16, copy=False)
    peak = values.max(initial=0)
    if not np.isfinite(values.min(initial=0)) or not np.isfinite(peak):
        raise UserError("it holds NaN or infinite values")
    if white is None:
        usual = (1.0, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
        white = next((most for most in usual if peak <= most), peak)
    out = np.empty(values.shape, np.uint16)
    for rows in strips(*values.shape[:2]):
        out[rows] = (values[rows] * (65535 / np.float64(white))).round().clip(0, 65535)
    return out


def colorfulness(image: Array) -> float:
    """Return how colourful (H, W, 3) uint8 is: 0 gray, 15 slightly, 59 quite, 109 extremely.

    Source: Hasler and Suesstrunk, "Measuring colourfulness in natural images", 2003, M^(3).
    """
    red, green, blue = image.astype(np.int16).transpose(2, 0, 1)
    planes = (red - green, red + green - 2 * blue)  # rg, and twice yb
    n, sums = red.size, np.array([plane.sum(dtype=np.int64) for plane in planes], float)
    squares = np.array([np.square(plane, dtype=np.int32).sum(dtype=np.int64) for plane in planes])
    mean, variance = sums / n * (1, 0.5), (squares - sums**2 / n) / n * (1, 0.25)
    return float(np.sqrt(variance.clip(0).sum()) + 0.3 * np.hypot(*mean))


def is_coloured(pixels: Depth, share: float = SHARE) -> bool:
    """Tell a picture with colours from a gray, sepia or yellowed one.

    A tint, a toning or old paper makes a and b smooth functions of L, and stains those of place. So a and b are
    fitted by polynomials, the second time without the pixels that are farthest off, and it is counted how many
    are off by more than COLOURED: more than `share` of all. Of 120 colour photographs 117 are told from
    29 of 30 old, sepia and yellowed ones, and from all of the 120 when they are made sepia, or gray with a red stamp.
    """
    step = max(1, max(pixels.shape[:2]) // 1024)
    planes = torch.from_numpy(np.array(pixels[::step, ::step])).permute(2, 0, 1)[None]
    rgb = F.avg_pool2d(color.rgb01(planes), min(4, *planes.shape[2:]))
    lab = color.rgb_to_lab(rgb)[0].to(torch.float64)  # (3, h, w)
    light, ab, off = lab[0] / 100, lab[1:].flatten(1).T, torch.zeros(lab[0].numel())
    down, across = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in light.shape)
    terms = [light**n for n in range(4)] + [light * down[:, None], light * across]
    terms = torch.stack(terms, 2).flatten(0, 1)  # (P, 6)
    for _ in range(2):
        near = off <= off.quantile(1 - SHARE)
        tint = torch.linalg.lstsq(terms[near], ab[near], driver="gelsd").solution
        off = (ab - terms @ tint).square().sum(1).sqrt()
    return float((off > COLOURED).double().mean()) > share


def interpolate(image: Tensor, height: int, width: int, mode: str, antialias: bool = False) -> Tensor:
    """Return F.interpolate of (N, C, H, W) to (N, C, height, width), also in scripts that an older torch loads.

    A script stores all branches of F.interpolate, and one of them needs torch 2.12.

    Args:
        mode: nearest, bilinear or bicubic; with antialias, bilinear or bicubic. Raises ValueError for others.
    """
    size = [height, width]
    if mode == "nearest" and not antialias:
        return torch.ops.aten.upsample_nearest2d(image, size)
    if mode == "bilinear" and not antialias:
        return torch.ops.aten.upsample_bilinear2d(image, size, False)
    if mode == "bicubic" and not antialias:
        return torch.ops.aten.upsample_bicubic2d(image, size, False)
    if mode == "bilinear":
        return torch.ops.aten._upsample_bilinear2d_aa(image, size, False)
    if mode == "bicubic" and antialias:
        return torch.ops.aten._upsample_bicubic2d_aa(image, size, False)
    raise ValueError("no interpolation " + mode + (", antialiased" if antialias else ", not antialiased"))


def resize(image: Array, height: int, width: int) -> Array:
    """Resize (H, W, C) uint8 with an antialiased bicubic filter."""
    if image.shape[:2] == (height, width):
        return image
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]  # (1, C, H, W)
    planes = interpolate(planes, height, width, "bicubic", antialias=True)[0]
    return np.ascontiguousarray(planes.permute(1, 2, 0).numpy())


def contact_sheet(rows: Sequence[Sequence[Array]], titles: Sequence[str]) -> Array:
    """Return images in rows under column titles, as (H, W, 3) uint8 on white."""
    cell_width = max(64, *(image.shape[1] for row in rows for image in row))  # room for a title
    heights = [max(image.shape[0] for image in row) for row in rows]
    top = header = 26
    width = len(titles) * (cell_width + GAP) + GAP
    sheet = Image.new("RGB", (width, header + sum(heights) + GAP * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (cell_width + GAP), 4), title, fill="black", font=font)
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            sheet.paste(Image.fromarray(image), (GAP + column * (cell_width + GAP), top))
        top += height + GAP
    return np.asarray(sheet)
