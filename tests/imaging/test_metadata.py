"""metadata.py: what a file says goes along; what would be untrue of the coloured file does not."""

import struct
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from image_samples import RGB, SRGB, chunk, scan_of
from PIL import Image, IptcImagePlugin, PngImagePlugin

from imaging import metadata
from imaging.files import read_frames, scan, write_frames
from imaging.metadata import Notes, tiff_tags
from imaging.pixels import Frame

ARTIST, DATE, ORIENTATION, EXIF, GPS, IFD1 = 315, 306, 274, 0x8769, 0x8825, -1
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:title="Porch" '
    b"exif:PixelXDimension='32' photoshop:ICCProfile=\"Dot Gain\"><tiff:Orientation>6</tiff:Orientation>"
    b"<xmp:Thumbnails><rdf:Alt><rdf:li>THUMBNAIL</rdf:li></rdf:Alt></xmp:Thumbnails>"
    b"<dc:creator>Ada</dc:creator></rdf:Description></x:xmpmeta>"
)

PAIRS = [  # every format is read, and written from another and from itself
    ("x.jpg", "out.png"), ("x.png", "out.jpg"), ("x.webp", "out.tif"), ("x.tif", "out.webp"),
    ("x.avif", "out.avif"), ("x.tif", "out.tif"), ("x.jpg", "out.jpg"), ("x.png", "out.tif"),
]  # fmt: skip


def full_exif(thumbnail: bool = True) -> bytes:
    """Return EXIF as a camera writes it: author, date, place, sizes, a maker's note and a thumbnail."""
    exif = Image.Exif()
    exif[ARTIST] = "Ada"
    exif[DATE] = "1955:11:05 06:00:00"
    exif[ORIENTATION] = 6
    exif[256] = 32  # width
    exif.get_ifd(EXIF).update({36867: "1955:11:05 06:15:00", 33434: 0.004, 37500: b"MAKER", 40961: 65535})
    exif.get_ifd(EXIF).update({40962: 32, 40963: 24})
    exif.get_ifd(GPS).update({1: "N", 2: (34.0, 8.0, 16.5)})
    data = bytearray(exif.tobytes())
    if thumbnail:  # a second directory: that it is a JPEG, where it lies and how long it is
        entries = struct.unpack_from(">H", data, 14)[0]
        struct.pack_into(">I", data, 16 + 12 * entries, len(data) - 6)
        fields = struct.pack(">HHII", 513, 4, 1, len(data) - 6 + 30) + struct.pack(">HHII", 514, 4, 1, 9)
        data += struct.pack(">H", 2) + fields + bytes(4) + b"THUMBNAIL"
    return bytes(data)


def convert(source: str, target: str) -> bytes:
    """Read a file and write what it holds under another name."""
    found = scan(Path(source))
    write_frames(Path(target), read_frames(found), found)
    return Path(target).read_bytes()


def save(name: str, **options: Any) -> None:
    Image.fromarray(RGB).save(name, **options)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_exif_goes_along_without_what_is_stale(source: str, target: str) -> None:
    save(source, exif=full_exif(thumbnail=source != "x.tif"), icc_profile=SRGB)
    data = convert(source, target)
    assert b"THUMBNAIL" not in data
    assert b"MAKER" not in data
    with Image.open(target) as image:
        image.load()
        exif = image.getexif()
        assert exif[ARTIST] == "Ada"
        assert exif[DATE] == "1955:11:05 06:00:00"
        assert exif.get(ORIENTATION, 1) == 1
        assert exif.get(256, image.width) == image.width  # a TIFF has one
        assert set(exif.get_ifd(EXIF)) == {36867, 33434}
        assert exif.get_ifd(EXIF)[36867] == "1955:11:05 06:15:00"
        assert float(exif.get_ifd(EXIF)[33434]) == 0.004
        assert exif.get_ifd(GPS)[2] == (34.0, 8.0, 16.5)
        assert not exif.get_ifd(IFD1)
        assert image.size == (24, 32)  # which is upright
        assert "icc_profile" not in image.info  # pixels are in sRGB


@pytest.mark.parametrize("target", ["out.jpg", "out.png", "out.webp", "out.tif", "out.avif"])
@pytest.mark.parametrize("name", ["Zoë".encode(), "Zoë".encode("latin-1")])
def test_names_that_are_not_english_go_along(target: str, name: bytes) -> None:
    exif = Image.Exif()
    exif[ARTIST] = name
    save("x.jpg", exif=exif)
    assert name + b"\0" in Path("x.jpg").read_bytes()
    assert name + b"\0" in convert("x.jpg", target)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_xmp_goes_along_without_what_is_stale(source: str, target: str) -> None:
    if source == "x.png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        save(source, pnginfo=info)
    elif source == "x.tif":
        save(source, tiffinfo={700: XMP})
    else:
        save(source, xmp=XMP)
    convert(source, target)
    xmp = scan(Path(target)).notes.xmp
    assert b'dc:title="Porch"' in xmp
    assert b"<dc:creator>Ada</dc:creator>" in xmp
    for stale in (b"Orientation", b"Thumbnail", b"THUMBNAIL", b"PixelX", b"ICCProfile"):
        assert stale not in xmp
    assert xmp.startswith(b"<x:xmpmeta")
    assert xmp.endswith(b"</rdf:Description></x:xmpmeta>")


@pytest.mark.usefixtures("time_limit")  # a pattern that goes back over all it has seen would take hours
def test_xmp_full_of_traps_does_not_take_for_ever() -> None:
    for piece in (b"<xmp:Thumbnails>", b"<tiff:Orientation>", b' tiff:Orientation="'):
        save("x.webp", xmp=piece * (2_000_000 // len(piece)))
        assert len(scan(Path("x.webp")).notes.xmp) <= 2_000_000


@pytest.mark.parametrize(
    ("source", "target"),
    [("x.jpg", "out.bmp"), ("x.bmp", "out.png"), ("x.png", "out.tif"), ("x.tif", "out.jpg")],
)
def test_resolution_goes_along(source: str, target: str) -> None:
    save(source, dpi=(600, 300))
    convert(source, target)
    with Image.open(target) as image:
        assert image.info["dpi"] == pytest.approx((600, 300), abs=0.02)


@pytest.mark.parametrize(
    ("unit", "resolution", "dpi"),
    [(2, (300, 150), (300, 150)), (3, (100, 50), (254, 127)), (1, (300, 300), None), (2, (0, 0), None)],
)
def test_resolution_of_a_tiff(unit: int, resolution: tuple[int, int], dpi: tuple[int, int] | None) -> None:
    tifffile.imwrite("x.tif", RGB, photometric="rgb", resolution=resolution, resolutionunit=unit)
    assert scan(Path("x.tif")).notes.dpi == dpi
    for senseless in (0.1, 99_999):
        save("x.png", dpi=(senseless, senseless))
        assert scan(Path("x.png")).notes.dpi is None


@pytest.mark.filterwarnings("ignore:Metadata Warning")
def test_tags_of_a_strange_type_do_not_cost_the_picture() -> None:
    extra = [(700, "H", 3, (1, 2, 3), True), (ARTIST, "H", 2, (7, 8), True)]
    deep = RGB.astype(np.uint16)
    tifffile.imwrite("x.tif", deep, photometric="rgb", resolution=(300, 300), metadata=None, extratags=extra)
    with tifffile.TiffFile("x.tif", mode="r+") as tiff:
        tiff.pages[0].tags[282].overwrite(300, dtype="H")
        tiff.pages[0].tags[296].overwrite((2, 2), dtype="H")
    found = scan(Path("x.tif"))
    assert (found.notes.xmp, found.notes.dpi) == (b"", None)
    (frame,) = read_frames(found)
    assert np.array_equal(frame.pixels, deep)
    convert("x.tif", "out.tif")


def test_texts_of_a_png_go_along_wherever_they_stand() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "Veranda")
    info.add_text("Description", "é" * 3000, zip=True)
    info.add_itxt("Author", "日本", "ja", "作者")
    info.add_text("Raw profile type exif", "\nexif\n 4\n4d4d\n")
    save("x.png", pnginfo=info)
    data = Path("x.png").read_bytes()
    Path("x.png").write_bytes(data[:-12] + chunk(b"tEXt", b"Source\0attic") + data[-12:])
    convert("x.png", "out.png")
    with Image.open("out.png") as image:
        wanted = {"Title": "Veranda", "Description": "é" * 3000, "Author": "日本", "Source": "attic"}
        assert dict(image.text) == wanted


@pytest.mark.parametrize(("source", "coding"), [("x.jpg", "latin-1"), ("x.png", ""), ("x.gif", "utf-8")])
@pytest.mark.parametrize("target", ["out.jpg", "out.png", "out.gif", "out.tif"])
def test_comments_go_along(source: str, coding: str, target: str) -> None:
    comment = "Grüße und " * 100 + "Küsse"
    if source == "x.png":
        info = PngImagePlugin.PngInfo()
        info.add_text("Comment", comment)
        save(source, pnginfo=info)
    else:
        save(source, comment=comment.encode(coding))
    convert(source, target)
    notes = scan(Path(target)).notes
    if target == "out.tif":
        with tifffile.TiffFile(target) as tiff:
            assert tiff.pages[0].tags.valueof(270) in (comment, comment.encode())
    else:
        assert notes.comment.decode() == comment


@pytest.mark.parametrize("rating", [("H", 1, 4), ("2I", 1, (4, 1))])
def test_tags_of_a_tiff_go_along(rating: tuple[Any, ...]) -> None:
    extra = [(ARTIST, "s", 0, "Ada", True), (33432, "s", 0, b"\xa9 1955", True), (18246, *rating, True)]
    tifffile.imwrite(
        "x.tif", RGB, photometric="rgb", description="a porch", datetime="1955:11:05 06:00:00",
        metadata=None, extratags=[*extra, (40091, "B", 4, b"T\0i\0", True)],
    )  # fmt: skip
    for target in ("out.tif", "out.jpg"):
        convert("x.tif", target)
        with Image.open(target) as image:
            exif = image.getexif()
            found = [exif[tag] for tag in (ARTIST, 270, DATE, 18246)]
            assert found == ["Ada", "a porch", "1955:11:05 06:00:00", 4]
            assert exif[33432] == "© 1955"
            assert exif[40091] == b"T\0i\0"


@pytest.mark.parametrize("kind", ["shaped", "imagej", "ome"])
def test_a_description_that_lists_axes_is_left_out(kind: str) -> None:
    tifffile.imwrite("x.tif", RGB, imagej=kind == "imagej", ome=kind == "ome", photometric="rgb")
    with tifffile.TiffFile("x.tif") as tiff:
        assert tiff.pages[0].description
    convert("x.tif", "out.tif")
    with tifffile.TiffFile("out.tif") as tiff:
        assert tiff.pages[0].description == ""
    if kind == "shaped":  # a description of the user's stands beside that
        tifffile.imwrite("x.tif", RGB, photometric="rgb", description="café".encode())
        convert("x.tif", "out.tif")
        with tifffile.TiffFile("out.tif") as tiff:
            assert not tiff.pages.first.is_shaped
            assert tiff.pages.first.description == "café"


@pytest.mark.parametrize(
    "block", [b"garbage, and more of it", b"MM\0\x2a\0\0\0\x08\0\x05", b"II\x2a\0\xff\xff\xff\x7f"]
)
@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp"])
def test_broken_exif_is_left_out(block: bytes, name: str) -> None:
    save(name, exif=b"Exif\0\0" + block)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's
        found = scan(Path(name))
        (frame,) = read_frames(found)
    assert found.notes.exif == b""
    assert frame.pixels.shape == RGB.shape


def test_exif_that_cannot_be_written_again_is_left_out() -> None:
    exif = Image.Exif()
    exif[18246] = b"no number"
    exif[ARTIST] = "Ada"
    data = bytearray(exif.tobytes())
    at = data.index(struct.pack(">H", 18246))
    struct.pack_into(">HHI", data, at, 18246, 2, 9)  # a rating that is a text
    save("x.png", exif=bytes(data))
    notes = scan(Path("x.png")).notes
    assert notes.exif == b"" or b"Ada" in notes.exif
    convert("x.png", "out.tif")


@pytest.mark.parametrize("ours", ["_raw", "_directories"])
def test_a_bug_of_ours_is_not_called_broken_exif(ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("ours")

    save("x.jpg", exif=full_exif())
    monkeypatch.setattr(metadata, ours, broken)
    with pytest.raises(IndexError, match=r"^ours$"):
        scan(Path("x.jpg"))


def test_what_is_too_long_for_a_jpeg_is_left_out_of_it() -> None:
    long = b"<x:xmpmeta>" + b" " * 70_000 + b"</x:xmpmeta>"
    exif = Image.Exif()
    exif[270] = b"words " * 12_000
    exif[ARTIST] = "Ada"
    save("x.webp", xmp=long, exif=exif.tobytes())
    convert("x.webp", "out.jpg")
    convert("x.webp", "out.png")
    assert scan(Path("out.jpg")).notes == Notes()
    assert scan(Path("out.png")).notes.xmp == long
    assert len(scan(Path("out.png")).notes.exif) > 70_000
    notes = Notes(iptc=bytes(70_000))
    for name, kept in (("out.jpg", b""), ("out.tif", notes.iptc)):
        write_frames(Path(name), [Frame(RGB, None)], scan_of(notes=notes))
        assert scan(Path(name)).notes.iptc == kept


def test_a_file_without_notes_gets_none() -> None:
    for name in ("x.png", "x.jpg", "x.webp", "x.tif", "x.gif", "x.avif", "x.bmp", "x.ppm"):
        save(name)
        notes = scan(Path(name)).notes
        assert replace(notes, dpi=None) == Notes(), name  # BMP, and some JPEGs of Pillow's, have a resolution
        convert(name, "out.png")
        data = Path("out.png").read_bytes()
        assert not any(kind in data for kind in (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"iCCP"))
    assert tiff_tags(Notes()) == []


def test_every_page_of_a_tiff_keeps_its_notes() -> None:
    with tifffile.TiffWriter("x.tif") as writer:
        for i in range(3):
            dpi = {"resolution": (100 * i, 100 * i), "resolutionunit": "INCH"} if i else {}
            writer.write(np.full((9, 9), 50 * i, np.uint8), description=f"page {i}", metadata=None, **dpi)
    convert("x.tif", "y.tif")
    found = scan(Path("y.tif"))
    assert [notes.dpi for notes in (found.notes, *found.others)] == [None, (100, 100), (200, 200)]
    with tifffile.TiffFile("y.tif") as tiff:
        assert [page.description for page in tiff.pages] == ["page 0", "page 1", "page 2"]
    notes = Notes(exif=full_exif()[6:], dpi=(300.0, 300.0))  # of an animation: on the first page alone
    write_frames(Path("z.tif"), [Frame(RGB, None)] * 2, scan_of(2, notes=notes))
    with tifffile.TiffFile("z.tif") as tiff:
        assert [page.tags.valueof(ARTIST) for page in tiff.pages] == ["Ada", None]
        assert [page.tags.valueof(282) for page in tiff.pages] == [(300, 1)] * 2
        assert list(tiff.pages[0].tags[EXIF].value) == ["ExposureTime", "DateTimeOriginal"]


def jpeg_resource(records: bytes) -> bytes:
    """Return IPTC as other programs write it: behind another resource."""
    other = b"8BIM" + struct.pack(">HHI", 0x0425, 0, 16) + bytes(16)
    body = b"Photoshop 3.0\0" + other + b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(records)) + records
    return b"\xff\xed" + struct.pack(">H", 2 + len(body)) + body


@pytest.mark.parametrize("source", ["x.jpg", "bytes.tif", "longs.tif"])
@pytest.mark.parametrize("target", ["y.jpg", "y.tif"])
def test_iptc_goes_along(source: str, target: str) -> None:
    entries = ((120, b"A street, 1915"), (80, b"A. Nonymous"), (5, b"Saratoga"))
    records = b"".join(struct.pack(">BBBH", 0x1C, 2, number, len(text)) + text for number, text in entries)
    records += b"\0" * (-len(records) % 4)
    if source == "x.jpg":
        Image.fromarray(RGB).save(source, extra=jpeg_resource(records))
    else:
        longs = np.frombuffer(records, "<u4")
        value = (7, len(records), records) if source == "bytes.tif" else (4, len(longs), longs)
        tags = [(33723, *value, True)]
        tifffile.imwrite(source, RGB, photometric="rgb", metadata=None, byteorder="<", extratags=tags)
    convert(source, target)
    assert scan(Path(target)).notes.iptc == records
    with Image.open(target) as image:
        found = IptcImagePlugin.getiptcinfo(image)
    assert found is not None
    assert found[2, 120] == b"A street, 1915"
