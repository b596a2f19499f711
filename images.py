"""Image files <-> arrays: any file that Pillow opens becomes sRGB uint8 (H, W, 3), and back.

Reading applies the EXIF orientation and the ICC profile, lays transparency over white and brings every mode
(palette, CMYK, 1 bit, 16 bit, float) to 8 bits per channel, in strips, so that a huge picture is not held
several times over. A file that cannot be read raises ValueError with the path and cause.
"""

import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageDraw, ImageFont, UnidentifiedImageError

from atomic import replacing

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .avif .tif .tiff .gif .bmp .pbm .pgm .ppm .jp2 .tga".split()
)
GAP = 6  # px between the pictures of a contact sheet
LARGEST = 500_000_000  # px; a picture of more is refused before it is decoded, as a decompression bomb
STRIP = 2**21  # px converted at a time

Array = NDArray[np.uint8]
Depth = NDArray[np.uint8] | NDArray[np.uint16]

Image.MAX_IMAGE_PIXELS = None  # check_size refuses; Pillow would warn of every large scan


@dataclass(frozen=True)
class Frame:
    """A picture, upright and in sRGB."""

    pixels: Depth  # (H, W, 3) uint8 or uint16
    alpha: Depth | None  # (H, W) of the same type, not multiplied into the pixels; None: no transparency


def find_images(folder: Path, closed: list[OSError] | None = None) -> list[Path]:
    """Return all image files below a folder, sorted; hidden files and folders are left out.

    Args:
        closed: gets an error for each folder below that cannot be read, with its name; None: it is raised.

    Raises:
        ValueError: no such folder, or no image in it.
        OSError: it, or one below it, cannot be read.
    """

    def refused(error: OSError) -> None:
        if closed is None or error.filename == str(folder):
            raise error
        closed.append(error)

    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: give the folder that holds the images")
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refused):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [name for name in names if not name.startswith(".")]
        found += [Path(parent, name) for name in shown if Path(name).suffix.lower() in EXTENSIONS]
    if not found and not closed:
        raise ValueError(f"no image in {folder}: looked for {' '.join(sorted(EXTENSIONS))}")
    return sorted(found, key=Path.as_posix)


def read_image(path: Path, content: bytes | None = None) -> Array:
    """Read one image file as sRGB (H, W, 3) uint8.

    Args:
        content: the file's bytes, where `path` only says what to call it.

    Raises:
        ValueError: missing, unreadable, truncated, too large to be safe, or not an image; names the file.
    """
    with opened(path, content) as image:
        return to_array(image)


@contextmanager
def opened(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image file; whatever goes wrong with it until it is closed is a ValueError that names it."""
    with reading(path):
        file = regular(path).open("rb") if content is None else io.BytesIO(content)
        with file, Image.open(file) as image:  # by name, Pillow maps a TIFF, and turns mapped ones wrongly
            check_size(*image.size)
            yield image


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what decoders make of a bad file into a ValueError that names the file and the cause."""
    try:
        yield
    except MemoryError:
        raise
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not an image that can be read") from None
    except Image.DecompressionBombError:
        limit = f"{LARGEST // 10**6} million pixels"
        raise ValueError(f"{path}: more than {limit}, which is taken for a decompression bomb") from None
    except NotImplementedError as error:
        raise ValueError(f"{path}: a kind of image that cannot be read ({error})") from None
    except Exception as error:  # a header full of nonsense ends in IndexError, struct.error and many more
        cause = error.strerror if isinstance(error, OSError) else None
        raise ValueError(f"{path}: {cause or f'damaged image ({error})'}") from None


def regular(path: Path) -> Path:
    """Return the path of an ordinary file; to open a pipe would be to wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnidentifiedImageError
    return path


def check_size(width: int, height: int) -> None:
    """Refuse a picture for its size alone, before it is decoded."""
    if min(width, height) < 1:
        raise ValueError("it has no pixels")
    if width * height > LARGEST:
        raise Image.DecompressionBombError


def to_array(image: Image.Image) -> Array:
    """Return a Pillow image as upright sRGB (H, W, 3) uint8, transparency laid over white."""
    return flatten(to_frame(image))


def to_frame(image: Image.Image) -> Frame:
    """Return a Pillow image as a frame: uint16 for gray of 16 bits, of 32 bits or of floats, else uint8."""
    image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        full = 65535 if image.mode.startswith("I;16") or image.format == "PPM" else None  # Pillow scales PGM
        gray = to_16_bits(np.asarray(image), full)
        frame = Frame(gray[..., None].repeat(3, 2), None)
    else:
        frame = _to_srgb(image)
    return upright(frame, orientation(image))


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded picture, 1 (upright) where there is none."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block says nothing; what it raises is Pillow's parser's choice
        return 1


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

    Raises ValueError where it holds NaN or infinite numbers.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and full == 65535:
        return values.astype(np.uint16, copy=False)
    peak = values.max(initial=0)
    if not np.isfinite(values.min(initial=0)) or not np.isfinite(peak):
        raise ValueError("it holds NaN or infinite values")
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


def _to_srgb(image: Image.Image) -> Frame:
    """Return sRGB; the embedded profile is applied where it fits."""
    mode = {"L": "L", "LA": "L", "La": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    profile = _profile_transform(image, mode)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    alpha = np.empty(pixels.shape[:2], np.uint8) if image.has_transparency_data else None
    for rows in strips(image.height, image.width):
        part = image.crop((0, rows.start, image.width, rows.stop))
        if alpha is not None:
            part = part.convert(f"{mode}A")
            alpha[rows] = part.getchannel("A")
        part = part.convert(mode)
        pixels[rows] = ImageCms.applyTransform(part, profile) if profile else part.convert("RGB")
    return Frame(pixels, alpha)


def _profile_transform(image: Image.Image, mode: str) -> ImageCms.ImageCmsTransform | None:
    profile = image.info.get("icc_profile")
    if not profile or image.mode in ("YCbCr", "LAB", "HSV"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None  # a profile that is broken or of another mode says nothing about the colours


def write_image(path: Path, image: Array) -> None:
    """Write (H, W, 3) uint8 in the format of the name's ending, complete or not at all."""
    form = Image.registered_extensions().get(path.suffix.lower())
    if form not in Image.SAVE:
        raise ValueError(f"{path}: no image format has the ending {path.suffix!r}")
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {"compress_level": 1}}.get(form, {})
    encoded = io.BytesIO()  # to a file, Pillow takes a full disk for success
    Image.fromarray(image).save(encoded, format=form, **options)
    with replacing(path) as temporary:
        temporary.write_bytes(encoded.getvalue())


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
