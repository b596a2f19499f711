"""Metadata of image files: read, cleaned of what no longer holds after colouring, written to another format.

Kept are EXIF (author, dates, camera, place), XMP, IPTC, the resolution, comments and PNG texts, as far as the
output's format can hold them. Left out is what describes the old pixels (orientation, size, colour space,
thumbnails), makers' notes, which contain previews and file offsets, and what is too broken to write again.
"""

import io
import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from tifffile import TiffFile, TiffPage

from imaging.decoders import PNG_NOTES, guarded, png_chunks, without_pixels

MAX_SEGMENT = 65_000  # bytes in a segment of a JPEG, with room for its name
COMMENT = "Comment"  # the PNG keyword for the comment of another format
BYTE, ASCII, SHORT, LONG, LONG8 = 1, 2, 3, 4, 16  # data types of TIFF
XMP, IPTC = 700, 33723  # tags of TIFF
IPTC_IN_JPEG = 0x0404  # number of a Photoshop resource

DESCRIPTIVE = (  # tags of the main directory; the others describe how the pixels are stored
    *(Base.DocumentName, Base.ImageDescription, Base.Make, Base.Model, Base.Software, Base.DateTime),
    *(Base.Artist, Base.HostComputer, Base.Copyright, Base.Rating, Base.RatingPercent),
    *(Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject),
)
GROUPS = (IFD.Exif, IFD.GPSInfo)  # directories that are kept, but for what is stale
STALE = {Base.ExifImageWidth, Base.ExifImageHeight, Base.ColorSpace, Base.Gamma, IFD.MakerNote, IFD.Interop}
STALE_XMP = (
    rb"tiff:(?:Orientation|ImageWidth|ImageLength)|photoshop:(?:ColorMode|ICCProfile)"
    rb"|exif:(?:PixelXDimension|PixelYDimension|ColorSpace)"
)
XMP_FIELD = re.compile(rb"\s(?:%b)=(?:\"[^\"]*\"|'[^']*')|<(%b)>[^<]*</\1>" % (STALE_XMP, STALE_XMP))


@dataclass(frozen=True)
class Notes:
    """The metadata of a file or page; fields are empty where it has none."""

    exif: bytes = b""  # a TIFF header and its directories
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None  # horizontal, vertical
    text: tuple[tuple[str, str], ...] = ()  # pairs of keyword and text
    iptc: bytes = b""  # records of the Information Interchange Model

    @property
    def comment(self) -> bytes:
        """Return the comment in UTF-8."""
        return dict(self.text).get(COMMENT, "").encode()


@dataclass(frozen=True)
class Scan:
    """What is known of a file before its pixels are read; by default, that it has one frame."""

    path: Path
    form: str = ""  # Pillow's name of the format
    count: int = 1  # frames of an animation, or pages of a TIFF
    size: tuple[int, int] = (1, 1)  # width and height in px as stored, of the largest page
    durations: tuple[float, ...] = ()  # ms, of each frame of an animation; else empty
    loop: int = 0  # how often an animation is played; 0: without end
    notes: Notes = Notes()
    others: tuple[Notes, ...] = ()  # of the pages of a TIFF after the first
    content: bytes | None = field(default=None, repr=False)  # the file, where `path` is only a name

    @property
    def pixels(self) -> int:
        """Return the number of pixels of the largest frame."""
        return math.prod(self.size)


def info_of(image: Image.Image, key: str, kind: Any, otherwise: Any) -> Any:
    """Return an entry of Pillow's image.info, where a PNG's text of the same keyword may stand instead."""
    value = image.info.get(key)
    return value if isinstance(value, kind) else otherwise


def read_notes(image: Image.Image) -> Notes:
    """Return the metadata of an opened file that is no TIFF; pixels are not decoded."""
    if isinstance(image, PngImageFile):
        image = without_pixels(image.fp)
    with guarded():
        text = {key: str(value) for key, value in getattr(image, "text", {}).items()}
    comment = info_of(image, "comment", str | bytes, "")
    if isinstance(comment, bytes):
        try:
            comment = comment.decode()
        except UnicodeDecodeError:
            comment = comment.decode("latin-1")
    text.setdefault(COMMENT, comment)
    again = ("Raw profile", "XML:com.adobe.xmp")  # EXIF and XMP as texts
    kept = tuple((key, value) for key, value in text.items() if value and not key.startswith(again))
    dpi = info_of(image, "dpi", tuple, (0, 0))
    iptc = info_of(image, "photoshop", dict, {}).get(IPTC_IN_JPEG, b"")
    return Notes(_clean_exif(image.getexif), _clean_xmp(image.info.get("xmp")), _clean_dpi(*dpi), kept, iptc)


def read_tiff_notes(page: TiffPage) -> Notes:
    """Return the metadata of one page of a TIFF."""
    with guarded():
        codes = (Base.ResolutionUnit, Base.XResolution, Base.YResolution, XMP)
        unit, *ratios, xmp = [page.tags.valueof(code) for code in codes]
        iptc, file = page.tags.get(IPTC), page.parent.filehandle
        file.seek(iptc.valueoffset if iptc else 0)
        records = file.read(iptc.valuebytecount if iptc else 0)  # its bytes, of whatever type
    scale = 2.54 if unit == 3 else 1.0 if unit in (2, None) else 0.0  # per centimetre, per inch
    whole = all(isinstance(ratio, tuple) and len(ratio) == 2 and ratio[1] for ratio in ratios)
    dpi = [scale * above / below for above, below in ratios] if whole else (0, 0)
    return Notes(_clean_exif(lambda: _tiff_exif(page)), _clean_xmp(xmp), _clean_dpi(*dpi), iptc=records)


def save_options(notes: Notes, form: str) -> dict[str, Any]:
    """Return options for Pillow's `save` that write metadata into a format."""
    options: dict[str, Any] = {"dpi": notes.dpi, "xmp": notes.xmp, "exif": notes.exif}
    if form == "JPEG":
        options |= {"exif": notes.exif and b"Exif\0\0" + notes.exif, "comment": notes.comment}
        options = {key: value for key, value in options.items() if key == "dpi" or len(value) < MAX_SEGMENT}
        if 0 < len(notes.iptc) < MAX_SEGMENT:
            padded = notes.iptc + b"\0" * (len(notes.iptc) % 2)
            resource = struct.pack(">4sHHI", b"8BIM", IPTC_IN_JPEG, 0, len(notes.iptc)) + padded
            content = b"Photoshop 3.0\0" + resource
            options["extra"] = struct.pack(">HH", 0xFFED, 2 + len(content)) + content
    return {key: value for key, value in options.items() if value}


def png_notes(notes: Notes) -> list[tuple[bytes, bytes]]:
    """Return metadata as chunks of a PNG, name and contents."""
    info, file = PngInfo(), io.BytesIO()
    for key, value in notes.text:
        info.add_text(key, value)
    if notes.xmp:
        info.add_itxt("XML:com.adobe.xmp", notes.xmp.decode(errors="replace"))
    Image.new("L", (1, 1)).save(file, "PNG", pnginfo=info, **save_options(notes, "PNG"))
    return list(png_chunks(file, PNG_NOTES))


def tiff_tags(notes: Notes, first: bool = True) -> list[tuple[int, int, int, Any, bool]]:
    """Return metadata as tifffile's `extratags` of a page; after the first, call `append_directories`."""
    exif = Image.Exif()
    exif.load(notes.exif)
    values = {tag: exif[tag] for tag in DESCRIPTIVE if tag in exif}
    values |= {tag: value for tag, value in ((XMP, notes.xmp), (IPTC, notes.iptc)) if value}
    if notes.comment:
        values.setdefault(Base.ImageDescription, notes.comment.decode("latin-1"))
    tags = []
    for tag, value in values.items():
        if isinstance(value, str | bytes):
            content = value if isinstance(value, bytes) else _raw(value).encode()
            tags.append((tag, ASCII if isinstance(value, str) else BYTE, len(content), content, True))
        elif value in range(2**16):
            tags.append((tag, SHORT, 1, int(value), True))
    # tifffile refuses tags that point to directories: unused tags beside them keep the place
    return tags + [(group - 1, LONG, 1, 0, True) for group in _directories(exif) if first]


def append_directories(path: Path, notes: Notes) -> None:
    """Append the EXIF and GPS directories to a TIFF that was written with `tiff_tags`."""
    exif = Image.Exif()
    exif.load(notes.exif)
    with TiffFile(path, mode="r+") as tiff:
        file, big = tiff.filehandle, tiff.is_bigtiff
        for group, values in _directories(exif).items():
            offset = file.seek(0, io.SEEK_END)
            start = b"II+\0" + bytes(12) if big else b"II*\0" + bytes(4)
            directory = ImageFileDirectory_v2(start, group=group)
            directory.update(values)
            file.write(directory.tobytes(offset))
            file.seek(tiff.pages.first.tags[group - 1].offset)
            file.write(struct.pack("<HHQQ" if big else "<HHII", group, LONG8 if big else LONG, 1, offset))


def _directories(exif: Image.Exif) -> dict[int, dict[int, Any]]:
    """Return the EXIF and GPS directories that are not empty, without stale tags."""
    found = {}
    for group in GROUPS:
        found[group] = {tag: _raw(value) for tag, value in exif.get_ifd(group).items() if tag not in STALE}
    return {group: values for group, values in found.items() if values}


def _tiff_exif(page: TiffPage) -> Image.Exif:
    exif = Image.Exif()
    exif.endian, exif.bigtiff = page.parent.byteorder, page.parent.is_bigtiff
    exif.load_from_fp(page.parent.filehandle, page.offset)
    if page.is_ome or page.is_imagej or page.is_shaped:
        del exif[Base.ImageDescription]  # it only lists axes and dtypes
    if page.is_shaped and not re.match(r"shape=|\{\"shape\"", page.description):  # tifffile's comes second
        exif[Base.ImageDescription] = page.description.encode().decode("latin-1")
    return exif


def _clean_exif(read: Callable[[], Image.Exif]) -> bytes:
    """Return EXIF with descriptive tags alone; nothing where it cannot be read, or not be written again."""
    try:  # Pillow's parser raises almost anything; what it has parsed, `exif` keeps
        exif = read()
        values = {tag: exif[tag] for tag in DESCRIPTIVE if tag in exif}
        for group in GROUPS:
            exif.get_ifd(group)
    except Exception:
        return b""
    clean, directories = Image.Exif(), _directories(exif)
    clean.update({tag: _raw(value) for tag, value in values.items()})
    for group, entries in directories.items():
        clean.get_ifd(group).update(entries)
    try:  # its writer does, too, where a tag is of another type than its number promises
        return clean.tobytes()[len(b"Exif\0\0") :] if clean or directories else b""
    except Exception:
        return b""


class _Text(str):
    """A text that is written as the bytes it was read from: Pillow reads Latin-1 and writes only ASCII."""

    def encode(self, *_: str) -> bytes:
        return super().encode("latin-1", "replace")


def _raw(value: Any) -> Any:
    return _Text(value) if isinstance(value, str) else value


def _clean_xmp(xmp: object) -> bytes:
    xmp = xmp.encode() if isinstance(xmp, str) else xmp if isinstance(xmp, bytes) else b""
    before, _, rest = xmp.partition(b"<xmp:Thumbnails")
    _, end, after = rest.rpartition(b"</xmp:Thumbnails>")
    return XMP_FIELD.sub(b"", before + after if end else xmp)


def _clean_dpi(across: float, down: float) -> tuple[float, float] | None:
    """Return a resolution rounded so that every format can hold it, None where it makes no sense."""
    across, down = round(float(across), 2), round(float(down), 2)
    return (across, down) if 1 <= across < 2**16 and 1 <= down < 2**16 else None
