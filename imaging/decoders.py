"""Encoded images -> frames: by Pillow; above 8 bits per channel, which it would cut, by libpng and tifffile,
and by tifffile where a TIFF is compressed as Pillow does not know it (JPEG 2000, JPEG XL, WebP, LERC).

Pillow refuses large pictures and long PNG texts by limits that hold for the whole program
(Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK). Raising them would raise them for every program that
imports Tinct. Therefore `open_image` calls Pillow's plugins without the limits, and check_size refuses. Only
the frames of an animated GIF or PNG stay within Pillow's guard, as it checks them while it composes them.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, BinaryIO

import imagecodecs
import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile, PngStream, putchunk
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, TiffFile, TiffPage

from config import UserError
from imaging.orientation import orientation, upright
from imaging.pixels import Depth, Frame, check_size, strips, to_16_bits

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"pHYs")  # chunks that say something beside the pixels
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}  # brands; those of AVIF are others
MAX_TEXT = 2**24  # bytes of an inflated PNG text or profile
PILLOWS = (  # compressions of 8 bits per channel that every Pillow reads
    COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.ADOBE_DEFLATE,
    COMPRESSION.PACKBITS, COMPRESSION.DEFLATE, COMPRESSION.LZMA,
)  # fmt: skip
SRGB = imagecodecs.cms_profile("srgb")
INTEGERS = (  # fields of a page to which a damaged file can give a tuple or bytes
    "imagewidth", "imagelength", "tilewidth", "tilelength", "imagedepth", "samplesperpixel", "bitspersample",
    "photometric",
)  # fmt: skip


@contextmanager
def guarded() -> Iterator[None]:
    """Turn whatever a library raises about a bad file into a UserError without the file's name.

    A damaged header ends in IndexError, struct.error, SyntaxError, zlib.error, OverflowError and many more,
    so every exception is caught. Therefore none of our own code may stand inside. `named` adds the name.
    """
    try:
        yield
    except MemoryError:
        raise
    except NotImplementedError as error:
        raise UserError(f"a kind of image that cannot be read ({error})") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"more pixels than Pillow reads in this format ({error})") from error
    except Exception as error:
        raise UserError(getattr(error, "strerror", None) or f"damaged image ({error})") from error


@contextmanager
def named(name: object) -> Iterator[None]:
    """Put a file's name before each UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image as Image.open does, without its guard against large pictures; pixels come with load().

    Raises UserError, without a file's name, where no plugin knows the format, or one finds the file damaged.
    """
    Image.preinit()  # the common formats are tried first
    Image.init()
    with guarded():
        head = file.read(64)
    start = head[:16]
    if start[4:8] == b"ftyp" and not HEIC.isdisjoint(head[i : i + 4] for i in range(8, 64, 4)):
        return _open_heic(file)
    for form in Image.ID:
        factory, accepts = Image.OPEN[form]
        read = OWN.get(form, factory)
        # by these errors a plugin says that the file is of another format
        with guarded(), suppress(SyntaxError, IndexError, TypeError, struct.error):
            accepted = not accepts or accepts(start)
            if accepted and not isinstance(accepted, str):  # a text says that Pillow is built without it
                file.seek(0)
                return read(file, "")
    jpeg_xl = start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL "))
    raise UserError("a JPEG XL image, which cannot be read" if jpeg_xl else "not an image that can be read")


def _open_heic(file: BinaryIO) -> Image.Image:
    """Open a HEIC image by pillow-heif. Raises UserError where that is not installed, or finds it damaged."""
    try:
        from pillow_heif import HeifImageFile  # optional
    except ImportError:
        raise UserError("a HEIC image: it can be read after pip install pillow-heif") from None
    with guarded():
        file.seek(0)
        return HeifImageFile(file, "")


class _Chunks(PngStream):
    """The chunks of a PNG; a text or a profile may inflate to MAX_TEXT bytes."""

    def call(self, cid: bytes, pos: int, length: int) -> bytes:
        """Read a chunk; Pillow raises ValueError where it inflates to more than MAX_TEXT_CHUNK."""
        try:
            return super().call(cid, pos, length)
        except ValueError:
            if cid not in (b"iCCP", b"zTXt", b"iTXt"):
                raise
        self.fp.seek(pos)
        chunk = self.fp.read(length)
        key, _, rest = chunk.partition(b"\0")
        # in iTXt the text follows two flags, a language and a translated keyword, else one flag
        deflated = rest[2:].split(b"\0", 2)[-1] if cid == b"iTXt" else rest[1:]
        inflater = zlib.decompressobj()
        text = inflater.decompress(deflated, MAX_TEXT)
        if inflater.unconsumed_tail:
            raise ValueError(f"a text of more than {MAX_TEXT} bytes")
        if cid == b"iCCP" or key == b"XML:com.adobe.xmp":
            self.im_info["icc_profile" if cid == b"iCCP" else "xmp"] = text
        else:
            self.check_text_memory(len(text))
            coding = "utf-8" if cid == b"iTXt" else "latin-1"
            self.im_text[key.decode("latin-1")] = text.decode(coding, "replace")
        return chunk


class Png(PngImageFile):
    """Pillow's PNG reader with our chunks."""

    @property
    def is_deep(self) -> bool:
        """Does it have 16 bits per channel? Known until it is loaded; of an animation Pillow reads 8."""
        return not self.is_animated and self.png.im_rawmode.endswith(";16B")

    @property
    def png(self) -> PngStream | None:
        """Return the stream of chunks, None after the last."""
        return self._chunks

    @png.setter
    def png(self, stream: PngStream | None) -> None:
        self._chunks = stream and _Chunks(stream.fp)


class _Tiff(TiffImageFile):
    """Pillow's TIFF reader; its load_prepare checks the size where there is no picture yet."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.core.new(self.mode, self._tile_size)
        super().load_prepare()


class _WebpBytes(io.BytesIO):
    """A WebP that gives all its bytes or at most 16; Pillow checks the size if it gets 30 at once."""

    def read(self, size: int = -1) -> bytes:
        return super().read(min(size, 16))


# instead of the plugins that Pillow registers
OWN = {"PNG": Png, "TIFF": _Tiff, "WEBP": lambda file, name: WebPImageFile(_WebpBytes(file.read()), name)}


def hidden(image: Image.Image) -> bool:
    """Is the first picture of an animated PNG one that only programs without animation show?"""
    return getattr(image, "default_image", False) is True  # a PNG's text of that name is no bool


def walk(image: Image.Image, count: int) -> Iterator[Image.Image]:
    """Yield an image at each of its first frames, decoded."""
    for index in range(hidden(image), hidden(image) + count):
        with guarded():
            image.seek(index)
        check_size(*image.size)  # a frame of a GIF can be larger than its screen
        with guarded():
            image.load()
        yield image


def to_frame(image: Image.Image) -> Frame:
    """Return a Pillow image as a frame: uint16 for gray of 16 bits, of 32 bits or of floats, else uint8.

    Raises UserError, without a file's name, where its pixels cannot be decoded or are not finite.
    """
    with guarded():
        image.load()
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return upright(_to_srgb(image), orientation(image))
    with guarded():
        values = np.asarray(image)
    white = 65535 if image.mode.startswith("I;16") or image.format == "PPM" else None  # Pillow scales PGM
    pixels = _deep_to_srgb(to_16_bits(values, white)[..., None], image.info.get("icc_profile"))
    return upright(Frame(pixels, None), orientation(image))


def _to_srgb(image: Image.Image) -> Frame:
    """Return 8 bits per channel in sRGB; an embedded profile is applied where it fits."""
    mode = {"L": "L", "LA": "L", "La": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    profile = None if image.mode in ("YCbCr", "LAB", "HSV") else image.info.get("icc_profile")
    with guarded():
        transparent = image.has_transparency_data
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    alpha = np.empty(pixels.shape[:2], np.uint8) if transparent else None
    for rows in strips(image.height, image.width):
        is_all = rows.stop - rows.start == image.height
        with guarded():  # crop and convert copy, which takes longer than to decode a JPEG
            part = image if is_all else image.crop((0, rows.start, image.width, rows.stop))
            if alpha is not None:
                part = part.convert(f"{mode}A")
                alpha[rows] = part.getchannel("A")
            part = part if part.mode == mode else part.convert(mode)
        managed = _apply_profile(np.asarray(part), profile) if profile else None
        with guarded():
            if managed is not None:
                pixels[rows] = managed
            else:
                pixels[rows] = part if mode == "RGB" else part.convert("RGB")
    return Frame(pixels, alpha)


def _apply_profile(values: Depth, profile: object) -> Depth | None:
    """Return sRGB (H, W, 3) from (H, W) gray, (H, W, 3) RGB or (H, W, 4) CMYK in a profile's colours.

    None where the profile is broken or of another mode: it says nothing about the colours.
    """
    if not isinstance(profile, bytes):
        return None
    space = {1: "gray", 3: "rgb", 4: "cmyk"}[values.shape[2] if values.ndim == 3 else 1]
    options = {"colorspace": space, "outcolorspace": "rgb"}
    if values.dtype == np.uint16:  # lcms's fast tables are off by up to 5,000 of 65,535, but by 1 of 255
        options["flags"] = imagecodecs.CMS.FLAGS.NOOPTIMIZE
    try:
        return imagecodecs.cms_transform(np.ascontiguousarray(values), profile, SRGB, **options)
    except imagecodecs.CmsError:
        return None


def _deep_to_srgb(pixels: Depth, profile: object) -> Depth:
    """Bring gray or RGB (H, W, 1|3) to sRGB (H, W, 3)."""
    managed = _apply_profile(pixels[..., 0] if pixels.shape[2] == 1 else pixels, profile)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)) if managed is None else managed


def read_deep_png(image: Png) -> Frame:
    """Decode a PNG of 16 bits per channel by libpng."""
    with guarded():
        image.fp.seek(0)
        values = imagecodecs.png_decode(image.fp.read())
    values = values.reshape(*values.shape[:2], -1)  # (H, W, 1-4)
    colours = 1 if values.shape[2] < 3 else 3
    alpha = values[..., colours] if values.shape[2] > colours else None
    pixels = _deep_to_srgb(values[..., :colours], image.info.get("icc_profile"))
    return upright(Frame(pixels, alpha), orientation(without_pixels(image.fp)))


def png_chunks(file: IO[bytes], kinds: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and contents of a PNG's chunks of some kinds; others are passed over."""
    file.seek(len(PNG_START))
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name in kinds:
            yield name, file.read(length)
            length = 0
        file.seek(length + 4, io.SEEK_CUR)  # a checksum follows


def without_pixels(file: IO[bytes]) -> PngImageFile:
    """Return a loaded picture of 1 x 1 px with all notes of a PNG, also those that stand after its pixels."""
    header, pixel = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0), zlib.compress(b"\0\0")
    copy = io.BytesIO()
    copy.write(PNG_START)
    for chunk in [(b"IHDR", header), *png_chunks(file, PNG_NOTES), (b"IDAT", pixel), (b"IEND",)]:
        putchunk(copy, *chunk)
    copy.seek(0)
    with guarded():
        image = Png(copy)
        image.load()
    return image


def tiff_pages(tiff: TiffFile) -> list[TiffPage]:
    """Return the pages but for previews and masks, which stand only where there is nothing else."""
    with guarded():
        everything = list(tiff.pages)
        pages = [page for page in everything if not (page.is_reduced or page.is_mask)] or everything
    if not pages:
        raise UserError("it has no pages")
    for page in pages:
        for name in INTEGERS:
            if not isinstance(getattr(page, name), int):
                raise UserError(f"damaged image ({name} is no integer)")
        check_size(page.imagewidth, page.imagelength)
        check_size(page.tilewidth or 1, page.tilelength or 1)  # a damaged file's tile can be larger than it
    return pages


def check_last_page(tiff: TiffFile) -> None:
    """Raise UserError where a page should follow the last: that a file is cut off, tifffile logs only."""
    with guarded():
        tiff.filehandle.seek(tiff.pages.next_page_offset)
        pointer = tiff.filehandle.read(tiff.tiff.offsetsize)
    if int.from_bytes(pointer, "little" if tiff.byteorder == "<" else "big") >= tiff.filehandle.size:
        raise UserError("it is cut off, and pages are missing")


def read_page(page: TiffPage) -> Frame | None:
    """Decode a gray or RGB page by tifffile where Pillow would fail or cut it to 8 bits; None for all others."""
    deep = page.bitspersample in range(9, 65)
    strange = page.bitspersample == 8 and page.compression not in PILLOWS
    if not (deep or strange) or page.photometric > PHOTOMETRIC.RGB:
        return None
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    colours = 3 if page.photometric == PHOTOMETRIC.RGB else 1
    extra = samples - colours
    kind = page.dtype.kind if page.dtype else "unknown"
    if page.imagedepth > 1 or not 0 <= extra <= colours or kind not in "uif":
        raise UserError(f"a kind of image that cannot be read ({samples} samples of {page.dtype} per pixel)")
    with guarded():
        profile, turn = page.iccprofile, page.tags.valueof(ExifTags.Base.Orientation, 1)
        values, planes = page.asarray(), page.shaped[0]  # planes: samples, or 1 where they stand together
    if values.size != height * width * samples:
        raise UserError(f"damaged image ({values.size} values for {width} x {height} pixels)")
    values = np.moveaxis(values.reshape(planes, height, width, -1), 0, 2).reshape(height, width, samples)
    white = 2**page.bitspersample - 1 if kind == "u" and page.bitspersample <= 16 else None
    plain = kind == "u" and page.bitspersample == 8  # stays as it is
    kinds = (page.extrasamples or (EXTRASAMPLE.UNASSALPHA,) * extra)[:extra]
    which = next((i for i, meaning in enumerate(kinds) if meaning), None)  # 0 may mean anything
    alpha = None if which is None else values[..., colours + which]
    pixels = values[..., :colours]
    if not plain:
        alpha = None if alpha is None else to_16_bits(alpha, white)
        pixels = to_16_bits(pixels, white)
    del values  # floats are twice as large
    pixels = ~pixels if page.photometric == PHOTOMETRIC.MINISWHITE else pixels
    if alpha is not None and kinds[which] == EXTRASAMPLE.ASSOCALPHA:  # it was multiplied into the pixels
        for rows in strips(height, width):
            full = np.iinfo(pixels.dtype).max
            divided = pixels[rows] * (full / np.maximum(alpha[rows, :, None], 1))
            pixels[rows] = divided.round().clip(0, full)
    return upright(Frame(_deep_to_srgb(pixels, profile), alpha), turn)
