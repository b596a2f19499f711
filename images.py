"""Image files <-> arrays: any file that Pillow opens becomes sRGB uint8 (H, W, 3), and back.

Reading applies the EXIF orientation and the ICC profile, lays transparency over white and brings every mode
(palette, CMYK, 1 bit, 16 bit, float) to 8 bits per channel. A file that cannot be read raises ValueError
with the path and cause.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

from atomic import replacing

EXTENSIONS = frozenset(".jpg .jpeg .png .webp .bmp .tif .tiff .gif .ppm .pgm .jp2 .avif".split())
GAP = 6  # px between the pictures of a contact sheet

Array = NDArray[np.uint8]


def find_images(folder: Path) -> list[Path]:
    """Return all image files below a folder, sorted; hidden files and folders are left out.

    Raises:
        ValueError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: give the folder that holds the images")
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [name for name in names if not name.startswith(".")]
        found += [Path(parent, name) for name in shown if Path(name).suffix.lower() in EXTENSIONS]
    if not found:
        raise ValueError(f"no image in {folder}: looked for {' '.join(sorted(EXTENSIONS))}")
    return sorted(found, key=Path.as_posix)


def read_image(path: Path, content: bytes | None = None) -> Array:
    """Read one image file as sRGB (H, W, 3) uint8.

    Args:
        content: the file's bytes, where `path` only says what to call it.

    Raises:
        ValueError: missing, unreadable, truncated, too large to be safe, or not an image; names the file.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            image.load()
            return to_array(image)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not an image that can be read") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path}: damaged image ({error})") from None


def to_array(image: Image.Image) -> Array:
    """Return a loaded Pillow image as upright sRGB (H, W, 3) uint8."""
    return np.array(_to_srgb(ImageOps.exif_transpose(image)))


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


def _to_srgb(image: Image.Image) -> Image.Image:
    """Return an RGB picture, through the embedded profile where it fits the mode."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _to_8_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        profile = image.info.get("icc_profile")
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image).convert("RGB")
        image.info["icc_profile"] = profile
    elif image.mode in ("1", "P"):
        image = image.convert("RGB")
    return _apply_profile(image).convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit and float grays to 0..255; float is taken as [0, 1] unless it exceeds 1."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite values")
    peak = values.max(initial=0.0)
    if image.mode == "F":
        scale = 255.0 if peak <= 1.0 else 1.0
    else:
        scale = 1 / 257 if image.mode.startswith("I;16") or peak > 255.0 else 1.0
    return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))


def _apply_profile(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK", "L"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image  # a profile that is broken or of another mode says nothing about the colours
    return image if converted is None else converted


def write_image(path: Path, image: Array) -> None:
    """Write (H, W, 3) uint8 in the format of the name's ending, complete or not at all."""
    form = Image.registered_extensions().get(path.suffix.lower())
    if form not in Image.SAVE:
        raise ValueError(f"{path}: no image format has the ending {path.suffix!r}")
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {"compress_level": 1}}.get(form, {})
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format=form, **options)


def recompress(pictures: Tensor, quality: int) -> Tensor:
    """Return (N, 3, H, W) uint8 pictures as they come back from JPEG files of a quality in [1, 95]."""
    results = []
    for picture in pictures.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        results.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(results).permute(0, 3, 1, 2)


def resize(image: Array, height: int, width: int) -> Array:
    """Resize (H, W, C) uint8 with an antialiased bicubic filter."""
    if image.shape[:2] == (height, width):
        return image
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]  # (1, C, H, W)
    planes = F.interpolate(planes, (height, width), mode="bicubic", antialias=True)
    return np.ascontiguousarray(planes[0].permute(1, 2, 0).numpy())


def contact_sheet(rows: Sequence[Sequence[Array]], titles: Sequence[str]) -> Array:
    """Lay equally tall pictures out in rows under column titles; returns (H, W, 3) uint8 on white."""
    cell_width = max(64, *(picture.shape[1] for row in rows for picture in row))  # room for a title
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    header = 26
    width = len(titles) * (cell_width + GAP) + GAP
    sheet = Image.new("RGB", (width, header + sum(heights) + GAP * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(16)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (cell_width + GAP), 4), title, fill="black", font=font)
    top = header
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (GAP + column * (cell_width + GAP), top))
        top += height + GAP
    return np.asarray(sheet)
