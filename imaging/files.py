"""Image files as people keep them: depth, transparency, frames and metadata, read whole and written back.

    found = scan(Path("film.gif"))                             # ValueError where it is no image
    frames = (colour(frame) for frame in read_frames(found))   # one at a time
    write_frames(Path("out/film.gif"), frames, found)          # whole, or not at all

Pillow would cut 16 bits per channel to 8, except in gray pictures; libpng and tifffile read those.
"""

import io
import logging
import math
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from tifffile import EXTRASAMPLE, PHOTOMETRIC, TiffFile, TiffPage

from config import UserError
from imaging.encoders import check_side, write
from imaging.metadata import Scan, png_chunks, read_notes, read_tiff_notes, without_pixels
from imaging.pixels import LARGEST, Array, Frame, check_size, flatten, strips, to_16_bits, upright
from runtime.atomic import replacing

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .avif .tif .tiff .gif .bmp .pbm .pgm .ppm .jp2 .tga".split()
)

Image.MAX_IMAGE_PIXELS = None  # check_size refuses; Pillow would warn of every large scan


def find_images(folder: Path, closed: list[OSError] | None = None) -> list[Path]:
    """Return all image files below a folder, sorted; hidden files and folders are left out.

    Args:
        closed: gets an error for each folder below that cannot be read, with its name; None: it is raised.

    Raises:
        UserError: no such folder, or no image in it.
        OSError: it, or one below it, cannot be read.
    """

    def refused(error: OSError) -> None:
        if closed is None or error.filename == str(folder):
            raise error
        closed.append(error)

    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give the folder that holds the images")
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refused):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [name for name in names if not name.startswith(".")]
        found += [Path(parent, name) for name in shown if Path(name).suffix.lower() in EXTENSIONS]
    if not found and not closed:
        raise UserError(f"no image in {folder}: looked for {' '.join(sorted(EXTENSIONS))}")
    return sorted(found, key=Path.as_posix)


def read_image(path: Path, content: bytes | None = None) -> Array:
    """Read one image file as sRGB (H, W, 3) uint8.

    Args:
        content: the file's bytes, where `path` only says what to call it.

    Raises:
        UserError: missing, unreadable, truncated, too large to be safe, or not an image; names the file.
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
        raise UserError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an image that can be read") from None
    except Image.DecompressionBombError:
        limit = f"{LARGEST // 10**6} million pixels"
        raise UserError(f"{path}: more than {limit}, which is taken for a decompression bomb") from None
    except NotImplementedError as error:
        raise UserError(f"{path}: a kind of image that cannot be read ({error})") from None
    except Exception as error:  # a header full of nonsense ends in IndexError, struct.error and many more
        cause = error.strerror if isinstance(error, OSError) else None
        raise UserError(f"{path}: {cause or f'damaged image ({error})'}") from None


def regular(path: Path) -> Path:
    """Return the path of an ordinary file; to open a pipe would be to wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnidentifiedImageError
    return path


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
        raise UserError(f"{path}: no image format has the ending {path.suffix!r}")
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {"compress_level": 1}}.get(form, {})
    encoded = io.BytesIO()  # to a file, Pillow takes a full disk for success
    Image.fromarray(image).save(encoded, format=form, **options)
    with replacing(path) as temporary:
        temporary.write_bytes(encoded.getvalue())


FORMS = ("png", "jpg", "webp", "tif")  # what a user can ask for
FORMATS = {  # endings that can be written, and Pillow's names of their formats
    **{".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".apng": "PNG"},
    **{".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF", ".bmp": "BMP", ".ppm": "PPM"},
    ".avif": "AVIF",
}
MOVING = ("GIF", "PNG", "WEBP", "AVIF")  # formats that hold an animation; a TIFF holds pages
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _only_cut_files_matter(record: logging.LogRecord) -> bool:
    """Make an error of what tifffile logs where pages are missing; all else about a file is said by us."""
    if "invalid page offset" in record.getMessage():
        raise UserError("it is cut off, and pages are missing")
    return False


logging.getLogger("tifffile").addFilter(_only_cut_files_matter)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def scan(path: Path) -> Scan:
    """Look into a file; only an animation is decoded, as its durations are not known otherwise.

    Raises:
        UserError: missing, unreadable, too large or not an image; names the file.
    """
    with reading(path), regular(path).open("rb") as file:
        if file.read(4) in TIFF_STARTS:
            return _scan_tiff(path)
    with opened(path) as image:
        notes, form = read_notes(image), image.format
        if form == "MPO":  # a phone's; its other pictures are previews, or what the left eye sees
            form = "JPEG"
        if form not in MOVING or image.n_frames - _hidden(image) == 1:
            return Scan(path, form, 1, image.size, (), 0, notes)
        loop = image.info.get("loop", 0)
        if form == "GIF":
            loop = loop + 1 if loop else int("loop" not in image.info)  # a GIF counts repetitions
        durations = tuple(float(picture.info.get("duration", 0)) for picture in _walk(image))
        return Scan(path, form, len(durations), image.size, durations, loop, notes)


def _hidden(image: Image.Image) -> bool:
    """Is the first picture of an animated PNG one that only programs without animation show?"""
    return getattr(image, "default_image", False)


def _walk(image: Image.Image) -> Iterator[Image.Image]:
    """Yield an animation at each of its frames, decoded."""
    for index in range(_hidden(image), image.n_frames):
        image.seek(index)
        check_size(*image.size)  # a frame of a GIF can be larger than its screen
        image.load()
        yield image


def _scan_tiff(path: Path) -> Scan:
    with TiffFile(path) as tiff:
        pages = _pages(tiff)
        for page in pages:
            _check_page(page)
        size = max(((page.imagewidth, page.imagelength) for page in pages), key=math.prod)
        notes, *others = map(read_tiff_notes, pages)
        return Scan(path, "TIFF", len(pages), size, (), 0, notes, tuple(others))


def _pages(tiff: TiffFile) -> list[TiffPage]:
    """Return the pages without their previews and masks."""
    if not len(tiff.pages):
        raise UserError("it has no pages")
    pages = [page for page in tiff.pages if not (page.is_reduced or page.is_mask)]
    return pages or list(tiff.pages)


def _check_page(page: TiffPage) -> None:
    check_size(page.imagewidth, page.imagelength)
    check_size(page.tilewidth or 1, page.tilelength or 1)  # a damaged file's one tile can be larger than it


def read_frames(scan: Scan) -> Iterator[Frame]:
    """Yield a file's frames or pages, one at a time.

    Raises:
        UserError: damaged or truncated, or a kind of image that cannot be read; names the file.
    """
    if scan.form == "TIFF":
        yield from _read_pages(scan.path)
    elif scan.count == 1:
        yield _read_still(scan)
    else:
        with opened(scan.path) as image:
            yield from map(to_frame, _walk(image))


def _read_still(scan: Scan) -> Frame:
    with opened(scan.path) as image:
        header = next(png_chunks(image.fp, (b"IHDR",)))[1] if scan.form == "PNG" else b""
        if header[8:9] != b"\x10":  # 16 bits per channel
            return to_frame(image)
        values = imagecodecs.png_decode(scan.path.read_bytes())
        values = values.reshape(*values.shape[:2], -1)  # (H, W, 1-4)
        colours = 1 if values.shape[2] < 3 else 3
        alpha = values[..., colours] if values.shape[2] > colours else None
        frame = Frame(values[..., :colours], alpha)
        return upright(
            _deep_to_srgb(frame, image.info.get("icc_profile")), orientation(without_pixels(image.fp))
        )


def _read_pages(path: Path) -> Iterator[Frame]:
    with reading(path), ExitStack() as stack:
        tiff, image = stack.enter_context(TiffFile(path)), None
        for page in _pages(tiff):
            if page.bitspersample in range(9, 65) and page.photometric <= PHOTOMETRIC.RGB:
                yield _read_deep_page(page)
            else:
                image = image or Image.open(stack.enter_context(path.open("rb")))  # as images.opened does
                image.seek(page.index)
                yield to_frame(image)


def _read_deep_page(page: TiffPage) -> Frame:
    """Decode a gray or RGB page of more than 8 bits per channel."""
    colours = 3 if page.photometric == PHOTOMETRIC.RGB else 1
    extra = page.samplesperpixel - colours
    kind = page.dtype.kind if page.dtype else "unknown"
    if page.imagedepth > 1 or not 0 <= extra <= colours or kind not in "uif":
        raise NotImplementedError(f"{page.samplesperpixel} samples of {page.dtype} per pixel")
    values = page.asarray()
    values = np.moveaxis(values, 0, -1) if page.planarconfig == 2 and values.ndim == 3 else values
    values = values.reshape(page.imagelength, page.imagewidth, -1)
    white = 2**page.bitspersample - 1 if kind == "u" and page.bitspersample <= 16 else None
    kinds = page.extrasamples or (EXTRASAMPLE.UNASSALPHA,) * extra
    which = next((i for i, meaning in enumerate(kinds) if meaning), None)  # 0 may mean anything
    alpha = None if which is None else to_16_bits(values[..., colours + which], white)
    pixels = to_16_bits(values[..., :colours], white)
    del values  # floats are twice as large
    pixels = ~pixels if page.photometric == PHOTOMETRIC.MINISWHITE else pixels
    premultiplied = which is not None and kinds[which] == EXTRASAMPLE.ASSOCALPHA
    frame = _deep_to_srgb(Frame(pixels, alpha), page.iccprofile, premultiplied)
    return upright(frame, page.tags.valueof(274, 1))


def _deep_to_srgb(frame: Frame, profile: bytes | None, premultiplied: bool = False) -> Frame:
    """Bring gray or RGB (H, W, 1 or 3) uint16 to sRGB (H, W, 3)."""
    pixels = np.empty((*frame.pixels.shape[:2], 3), np.uint16)
    for rows in strips(*pixels.shape[:2]):
        part = frame.pixels[rows]
        if premultiplied and frame.alpha is not None:
            part = part * (65535 / np.maximum(frame.alpha[rows, :, None], 1))
            part = part.round().clip(0, 65535).astype(np.uint16)
        pixels[rows] = _apply_profile(part, profile) if profile else part
    return Frame(pixels, frame.alpha)


def _apply_profile(part: NDArray[np.uint16], profile: bytes) -> NDArray[np.uint16]:
    """Return (H, W, 3) in sRGB; a profile that is broken or of another mode is left out, as in images.py."""
    gray = part.shape[2] == 1
    given = np.ascontiguousarray(part[..., 0] if gray else part)
    flags = imagecodecs.CMS.FLAGS.NOOPTIMIZE  # its fast tables are off by up to 5,000 of 65,535
    try:
        space = "gray" if gray else "rgb"
        return imagecodecs.cms_transform(
            given, profile, SRGB, colorspace=space, outcolorspace="rgb", flags=flags
        )
    except imagecodecs.CmsError:
        return part


def output_suffix(suffix: str, form: str | None = None) -> str:
    """Return the ending of a result: as asked, else that of the input where it can be coloured, else .png.

    Args:
        suffix: of the input; its spelling is kept.
        form: one of FORMS.

    Raises:
        UserError: form is not one of FORMS.
    """
    if form is None:
        return suffix if suffix.lower() in FORMATS else ".png"
    if form not in FORMS:
        raise UserError(f"no image format {form!r}: use one of {' '.join(FORMS)}")
    return f".{form}"


def check_frames(scan: Scan, path: Path) -> None:
    """Raise UserError where the format of a name's ending cannot hold what a file holds."""
    Image.init()
    form = FORMATS.get(path.suffix.lower())
    if form not in Image.SAVE:
        raise UserError(f"{path}: no image format to write has the ending {path.suffix!r}")
    if scan.count > 1 and form != "TIFF" and (scan.form == "TIFF" or form not in MOVING):
        many, room = ("pages", "tif") if scan.form == "TIFF" else ("frames", "gif, png, webp or tif")
        raise UserError(f"{scan.path}: {scan.count} {many} do not fit into one {path.suffix}; use {room}")
    check_side(max(scan.size), form, scan)


def write_frames(path: Path, frames: Iterable[Frame], scan: Scan) -> None:
    """Write frames in the format of the name's ending, complete or not at all, with the notes of a scan.

    Frames are taken one by one. What a format cannot hold is rounded (16 bits to 8), laid over white
    (transparency) or left out (notes).

    Raises:
        UserError: the format cannot hold the frames, or their number is not the scan's.
        OSError: the disk is full, or the place cannot be written to; names the file.
    """
    check_frames(scan, path)
    with replacing(path) as temporary:
        written = write(temporary, FORMATS[path.suffix.lower()], frames, scan)
        if written != scan.count:
            raise UserError(f"{path}: got {written} of the {scan.count} frames of {scan.path}")
