"""decoders.py: every kind of file becomes frames in its own depth; a bad file is named, a bug stays a bug."""

import io
import itertools
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from image_samples import (
    ALPHA,
    DEEP,
    DEEP_ALPHA,
    GREEN_CALLED_RED,
    RGB,
    SRGB,
    chunk,
    exif_of,
    png_header,
    read_all,
    read_one,
    save_png,
)
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image, ImageCms

from config import UserError
from imaging import decoders, pixels
from imaging.decoders import to_frame
from imaging.files import read_frames, read_image, scan, write_frames
from imaging.pixels import flatten

UPRIGHT: dict[int, Callable[[NDArray], NDArray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Good files cause no warnings, of ours or of the libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# more than 8 bits per channel


@pytest.mark.parametrize("colours", [1, 3])
def test_16_bit_png_is_read_exactly(colours: int) -> None:
    for alpha in ([], [DEEP_ALPHA[..., None]]):
        save_png("x.png", np.concatenate([DEEP[..., :colours], *alpha], 2).squeeze())
        frame = read_one("x.png")
        assert np.array_equal(frame.pixels, np.broadcast_to(DEEP[..., :colours], DEEP.shape))
        assert np.array_equal(frame.alpha, DEEP_ALPHA) if alpha else frame.alpha is None
    save_png("x.png", DEEP, (b"tRNS", struct.pack(">3H", *DEEP[3, 4])))  # a transparent colour
    hit = (DEEP == DEEP[3, 4]).all(2)
    assert np.array_equal(read_one("x.png").alpha, np.where(hit, 0, 65535))


@pytest.mark.parametrize(
    "options",
    [
        *({"compression": name} for name in (None, "lzw", "zlib", "zstd", "packbits")),
        *({"compression": "lzw", "byteorder": ">", "tile": tile} for tile in (None, (16, 16))),
        {"compression": "zlib", "rowsperstrip": 5, "byteorder": ">"},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "compression": "lzw", "tile": (16, 16)},
    ],
)
@pytest.mark.parametrize("values", [RGB, DEEP], ids=["8", "16"])
def test_rgb_tiff_is_read_exactly(options: dict[str, Any], values: NDArray) -> None:
    stored = values.transpose(2, 0, 1) if "planarconfig" in options else values
    tifffile.imwrite("x.tif", stored, photometric="rgb", **options)
    frame = read_one("x.tif")
    assert np.array_equal(frame.pixels, values)
    assert frame.alpha is None


@pytest.mark.parametrize("compression", ["jpeg2000", "jpegxl", "webp", "lerc", "zstd", "png"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_8_bit_tiff_that_pillow_cannot_read_is_read_exactly(compression: str, channels: int) -> None:
    if (compression, channels) == ("webp", 1):
        pytest.skip("WebP has no gray")
    alpha = np.full(RGB.shape[:2], 200, np.uint8)
    values = np.dstack([RGB, alpha])[..., :channels].squeeze()
    extra = {"extrasamples": ["UNASSALPHA"]} if channels == 4 else {}
    kind = "minisblack" if channels == 1 else "rgb"
    tifffile.imwrite("x.tif", values, photometric=kind, compression=compression, **extra)
    frame = read_one("x.tif")
    assert frame.pixels.dtype == np.uint8
    assert np.array_equal(frame.pixels, RGB if channels > 1 else RGB[..., :1].repeat(3, 2))
    assert np.array_equal(frame.alpha, alpha) if channels == 4 else frame.alpha is None


@pytest.mark.parametrize(("kind", "shown"), [("UNASSALPHA", True), ("UNSPECIFIED", False)])
@pytest.mark.parametrize("colours", [1, 3])
def test_alpha_of_a_16_bit_tiff(kind: str, shown: bool, colours: int) -> None:
    values = np.concatenate([DEEP[..., :colours], DEEP_ALPHA[..., None]], 2)
    options = {"extrasamples": [kind], "planarconfig": "contig", "compression": "lzw"}
    tifffile.imwrite("x.tif", values, photometric="rgb" if colours == 3 else "minisblack", **options)
    frame = read_one("x.tif")
    assert np.array_equal(frame.pixels, np.broadcast_to(DEEP[..., :colours], DEEP.shape))
    assert np.array_equal(frame.alpha, DEEP_ALPHA) if shown else frame.alpha is None


def test_multiplied_alpha_of_a_16_bit_tiff_is_divided_out() -> None:
    alpha = np.where(DEEP_ALPHA < 9000, 0, DEEP_ALPHA)
    multiplied = (DEEP * (alpha[..., None] / 65535)).round().astype(np.uint16)
    tifffile.imwrite("x.tif", np.dstack([multiplied, alpha]), photometric="rgb", extrasamples=["ASSOCALPHA"])
    frame = read_one("x.tif")
    assert np.array_equal(frame.alpha, alpha)
    assert np.abs(frame.pixels.astype(int) - DEEP)[alpha > 0].max() <= 4
    assert not frame.pixels[alpha == 0].any()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 1, 65535]], np.uint16), [0, 1, 65535]),
        (np.array([[0, 100, 255]], np.int32), [0, 25700, 65535]),  # a peak within 8 bits: 255 is white
        (np.array([[0, 300, 65535]], np.int32), [0, 300, 65535]),
        (np.array([[0, 2**31, 2**32 - 1]], np.uint32), [0, 32768, 65535]),
        (np.array([[0, -7, 300]], np.int16), [0, 0, 300]),
        (np.array([[0, 0.4, 1.0]], np.float32), [0, 26214, 65535]),
        (np.array([[-3.0, 102.0, 255.0]], np.float32), [0, 26214, 65535]),
        (np.array([[0, 0.5, 1.0]], np.float16), [0, 32768, 65535]),
        (np.zeros((1, 3), np.float32), [0, 0, 0]),
    ],
    ids=lambda value: f"{value.dtype}-{value.max():.0f}" if isinstance(value, np.ndarray) else "",
)
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_gray_numbers_of_every_kind(values: NDArray, expected: list[int], photometric: str) -> None:
    tifffile.imwrite("x.tif", values, photometric=photometric)
    frame = read_one("x.tif")
    assert frame.pixels.dtype == np.uint16
    wanted = np.array(expected) if photometric == "minisblack" else 65535 - np.array(expected)
    assert frame.pixels[0].tolist() == [[value] * 3 for value in wanted.tolist()]
    assert np.array_equal(read_image(Path("x.tif")), flatten(frame))


def test_12_bits_fill_the_whole_range() -> None:
    packed = np.frombuffer(int("000800fff000", 16).to_bytes(6, "big"), np.uint8)
    tifffile.imwrite("x.tif", packed[None], photometric="minisblack", metadata=None)
    with tifffile.TiffFile("x.tif", mode="r+") as tiff:
        tiff.pages[0].tags[256].overwrite(4)  # width
        tiff.pages[0].tags[258].overwrite(12)  # bits per sample
    assert read_one("x.tif").pixels[0, :, 0].tolist() == [0, round(0x800 * 65535 / 4095), 65535, 0]


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_dark_16_bit_gray_stays_dark_and_exact(name: str) -> None:
    values = np.arange(200, dtype=np.uint16).reshape(10, 20)  # of 65535, not of 255
    Image.fromarray(values).save(name)
    frame = read_one(name)
    assert frame.pixels.dtype == np.uint16
    assert np.array_equal(frame.pixels, values[..., None].repeat(3, 2))
    assert read_image(Path(name)).max() <= 1


# modes of 8 bits

RED = Image.new("RGB", (4, 4), "red")
PALETTE, CLEAR = RED.quantize(4), Image.new("RGBA", (4, 4), (255, 0, 0, 77))
CMYK_RED, GRAY = Image.new("CMYK", (4, 4), (0, 255, 255, 0)), Image.new("L", (4, 4), 90)


@pytest.mark.parametrize(
    ("image", "name", "options", "pixel", "alpha"),
    [
        (CLEAR, "x.png", {}, (255, 0, 0), 77),
        (CLEAR, "x.tif", {}, (255, 0, 0), 77),
        (CLEAR, "x.webp", {"lossless": True}, (255, 0, 0), 77),
        (Image.new("LA", (4, 4), (90, 51)), "x.png", {}, (90, 90, 90), 51),
        (Image.new("LA", (4, 4), (90, 51)), "x.tif", {}, (90, 90, 90), 51),
        (PALETTE, "x.png", {"transparency": 0}, (255, 0, 0), 0),
        (PALETTE, "x.gif", {"transparency": 0}, (255, 0, 0), 0),
        (PALETTE, "x.png", {}, (255, 0, 0), None),
        (RED, "x.png", {"transparency": (255, 0, 0)}, (255, 0, 0), 0),
        (GRAY, "x.png", {"transparency": 91}, (90, 90, 90), 255),
        (Image.new("1", (4, 4), 1), "x.png", {}, (255, 255, 255), None),
        (Image.new("1", (4, 4), 0), "x.tif", {"compression": "group4"}, (0, 0, 0), None),
        (GRAY, "x.jp2", {}, (90, 90, 90), None),
        (CMYK_RED, "x.tif", {}, (255, 0, 0), None),
        (CMYK_RED, "x.jpg", {"quality": 100}, (255, 0, 0), None),
        (Image.new("PA", (4, 4)), "x.tif", {}, (0, 0, 0), 0),
        (Image.new("YCbCr", (8, 8), (76, 85, 255)), "x.tif", {"compression": "jpeg"}, (254, 0, 0), None),
        (Image.new("RGB", (4, 4), (254, 0, 0)), "x.tga", {}, (254, 0, 0), None),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else value if value in ("x.png",) else "",
)
def test_modes(
    image: Image.Image, name: str, options: dict[str, Any], pixel: tuple[int, ...], alpha: int | None
) -> None:
    image.save(name, **options)
    frame = read_one(name)
    assert frame.pixels.dtype == np.uint8
    assert np.abs(frame.pixels.astype(int) - pixel).max() <= 1
    assert frame.alpha is None if alpha is None else (frame.alpha == alpha).all()
    assert np.array_equal(read_image(Path(name)), flatten(frame))


@pytest.mark.parametrize("kind", ["cmyk", "ycck"])
def test_inverted_jpegs_of_adobe(kind: str) -> None:
    inks = np.empty((16, 16, 4), np.uint8)
    inks[:] = 200, 0, 0, 30
    data = imagecodecs.jpeg8_encode(255 - inks, level=100, colorspace="cmyk", outcolorspace=kind)
    assert b"Adobe" in data
    expected = [round((255 - ink) * (255 - 30) / 255) for ink in (200, 0, 0)]
    assert np.abs(read_image(Path("x.jpg"), data).astype(int) - expected).max() <= 3


def test_lab_tiff() -> None:
    red = np.empty((4, 4, 3), np.uint8)
    red[:] = round(54.3 * 2.55), 81, 70  # sRGB's red seen under D50
    tifffile.imwrite("x.tif", red, photometric="cielab")
    assert np.abs(read_one("x.tif").pixels.astype(int) - [255, 0, 0]).max() <= 6


def in_mode(mode: str) -> Image.Image:
    """Return an image in one of Pillow's modes."""
    image = Image.fromarray(RGB)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    if mode in ("LA", "RGBa"):
        image.putalpha(Image.fromarray(RGB[..., 2]))
    return image.convert(mode)


@pytest.mark.parametrize("mode", "1 L LA P PA RGB RGBA RGBa CMYK YCbCr LAB I F".split())
def test_strips_leave_no_seams(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = in_mode(mode)
    image.info["icc_profile"] = GREEN_CALLED_RED
    whole = to_frame(image)
    monkeypatch.setattr(pixels, "STRIP", 5 * 32)
    cut = to_frame(image)
    assert np.array_equal(cut.pixels, whole.pixels)
    assert (cut.alpha is None) == (whole.alpha is None) == (mode not in ("LA", "PA", "RGBA", "RGBa"))
    assert cut.alpha is None or np.array_equal(cut.alpha, whole.alpha)


# colour profiles


def cmyk_profile() -> bytes:
    """Return a profile in which cyan ink is red, and every other ink is as white as paper."""
    corners = [(54, 81, 70) if inks[0] else (100, 0, 0) for inks in itertools.product((0, 1), repeat=4)]
    table = bytes(value for L, a, b in corners for value in (round(L * 2.55), a + 128, b + 128))
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    body = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * ramp + table + 3 * ramp
    header = struct.pack(">I4sI4s4s4s", 144 + len(body), b"", 0x02100000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(body)) + body


@pytest.mark.parametrize("name", ["x.tif", "x.jpg"])
def test_a_cmyk_profile_is_applied(name: str) -> None:
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(name, icc_profile=cmyk_profile())
    red, green, blue = read_one(name).pixels.reshape(-1, 3).T  # how light depends on the version of lcms
    assert min(red) > 120
    assert max(*green, *blue) < 15
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(name)
    assert np.abs(read_one(name).pixels.astype(int) - [0, 255, 255]).max() <= 6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("alpha", [False, True])
def test_an_rgb_profile_is_applied_in_the_depth_of_the_picture(dtype: type, ending: str, alpha: bool) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (24, 32, 3 + alpha)).astype(dtype)
    if ending == "tif":
        extra = {"extrasamples": ["UNASSALPHA"] * alpha}
        tifffile.imwrite("x.tif", values, photometric="rgb", iccprofile=GREEN_CALLED_RED, **extra)
    else:
        save_png("x.png", values, (b"iCCP", b"p\0\0" + zlib.compress(GREEN_CALLED_RED)))
    frame = read_one(f"x.{ending}")
    assert frame.pixels.dtype == dtype
    assert np.abs(frame.pixels.astype(int) - values[..., [1, 0, 2]]).max() <= 1  # exact, and not in 8 bits
    assert frame.alpha is None if not alpha else np.array_equal(frame.alpha, values[..., 3])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_gray_profile_is_as_exact_as_its_formula(dtype: type) -> None:
    top = np.iinfo(dtype).max
    values = np.arange(top // 5, top + 1).astype(dtype)[None]
    linear = values / top
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * top
    profile = imagecodecs.cms_profile("gray", gamma=1.0)
    tifffile.imwrite("x.tif", values, photometric="minisblack", iccprofile=profile)
    assert np.abs(read_one("x.tif").pixels - srgb[..., None]).max() < 2  # with lcms's tables, 16 bits: 2,482
    image = Image.fromarray(values)
    if dtype == np.uint8:
        image.putalpha(200)
    image.info["icc_profile"] = profile
    assert np.abs(to_frame(image).pixels - srgb[..., None]).max() < 2


@pytest.mark.parametrize(
    "profile",
    [b"no profile", SRGB[:200], imagecodecs.cms_profile("gray", gamma=1.0)],
    ids=["none", "cut off", "gray"],  # not their bytes, of which one is the time
)
def test_a_broken_or_mismatching_profile_is_left_out(profile: bytes) -> None:
    for values in (RGB, DEEP):
        tifffile.imwrite("x.tif", values, photometric="rgb", iccprofile=profile)
        save_png("x.png", values, (b"iCCP", b"p\0\0" + zlib.compress(profile)))
        assert np.array_equal(read_one("x.tif").pixels, values)
        assert np.array_equal(read_one("x.png").pixels, values)
    tifffile.imwrite("x.tif", DEEP[..., 0], photometric="minisblack", iccprofile=SRGB)
    assert np.array_equal(read_one("x.tif").pixels, DEEP[..., :1].repeat(3, 2))
    save_png("x.png", RGB, (b"iCCP", b"p\0\0" + zlib.compress(SRGB)))
    assert np.abs(read_one("x.png").pixels.astype(int) - RGB).max() <= 1  # nothing to do


# orientation


@pytest.mark.parametrize("turn", UPRIGHT)
@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif", "x.jpg", "deep.png", "deep.tif"])
def test_orientation(turn: int, name: str) -> None:
    values, alpha = (DEEP, DEEP_ALPHA) if "deep" in name else (RGB, ALPHA)
    layers = np.dstack([values, alpha])
    if name == "deep.png":
        save_png(name, layers, (b"eXIf", exif_of(turn).tobytes()[6:]))
    elif name == "deep.tif":
        tag = [(274, "H", 1, turn, True)]
        tifffile.imwrite(name, layers, photometric="rgb", extrasamples=["UNASSALPHA"], extratags=tag)
    elif name == "x.jpg":
        Image.fromarray(RGB).save(name, exif=exif_of(turn), quality=95)
        values, alpha = np.asarray(Image.open(name).copy()), None
    else:
        Image.fromarray(layers).save(name, exif=exif_of(turn), lossless=True, exact=True)
    frame = read_one(name)
    assert np.array_equal(frame.pixels, UPRIGHT[turn](values))
    assert alpha is None or np.array_equal(frame.alpha, UPRIGHT[turn](alpha))
    write_frames(Path(f"out_{name}"), [frame], scan(Path(name)))
    assert read_one(f"out_{name}").pixels.shape == frame.pixels.shape  # not turned twice
    with Image.open(f"out_{name}") as image:
        assert image.getexif().get(274, 1) == 1


# limits that hold for the whole program

FORMATS = ["x.png", "x.jpg", "x.webp", "x.tif", "lzw.tif", "x.gif", "x.bmp", "x.avif", "x.jp2", "x.ppm"]
FILMS = ["film.gif", "film.png", "film.webp", "film.tif"]
KINDS = [*FORMATS, *FILMS, "deep.png", "deep.tif"]


def encoded(name: str) -> bytes:
    """Return the bytes of a good file of 128 x 96 px."""
    large = np.kron(RGB, np.ones((4, 4, 1), np.uint8))
    if name == "deep.png":
        return imagecodecs.png_encode(large.astype(np.uint16) * 257)
    file = io.BytesIO()
    if name == "deep.tif":
        tifffile.imwrite(file, large.astype(np.uint16) * 257, photometric="rgb", compression="lzw")
        return file.getvalue()
    frames = [Image.fromarray(np.roll(large, 8 * k, 0)) for k in range(3)]
    more = {"save_all": True, "append_images": frames[1:], "duration": 50} if name in FILMS else {}
    more |= {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
    frames[0].save(file, Image.registered_extensions()[Path(name).suffix], **more)
    return file.getvalue()


@pytest.mark.parametrize("name", [name for name in KINDS if name != "film.gif"])
def test_large_images_are_read_while_pillow_keeps_its_guard(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(name)
    expected = read_all(name, data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # of the program around us
    monkeypatch.setattr(pixels, "STRIP", 500)
    frames = read_frames(scan(Path(name), data))
    for frame, other in zip(frames, expected, strict=True):
        assert np.array_equal(frame.pixels, other.pixels)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(io.BytesIO(encoded("x.png")))
    assert np.array_equal(read_image(Path(name), data), flatten(expected[0]))
    monkeypatch.setattr(pixels, "MAX_PIXELS", 10_000)
    for read in (scan, read_image):
        with pytest.raises(UserError, match=rf"^{name}: more than .* decompression bomb"):
            read(Path(name), data)


@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (8, 2), (16, 2)])
def test_a_decompression_bomb_is_refused_before_it_goes_off(bits: int, colour: int) -> None:
    data = png_header(100_000, 100_000, bits, colour)
    for read in (scan, read_image):
        with pytest.raises(UserError, match=r"^set.tar:x.png: more than 500 million pixels"):
            read(Path("set.tar:x.png"), data)
    assert scan(Path("x.png"), png_header(22_300, 22_300, bits, colour)).size == (22_300, 22_300)
    tifffile.imwrite("x.tif", RGB.astype(f"u{max(1, bits // 8)}"), photometric="rgb")
    with tifffile.TiffFile("x.tif", mode="r+") as tiff:
        for tag in (256, 257):
            tiff.pages[0].tags[tag].overwrite(60_000)
    for read in (scan, read_image):
        with pytest.raises(UserError, match=r"^x.tif: more than 500 million pixels"):
            read(Path("x.tif"))


def test_a_frame_that_grows_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("x.gif").open("wb") as file:
        file.write(b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0x70, 0, 0))
        for side in (10, 40):
            file.writelines(GifImagePlugin.getdata(Image.new("P", (side, side)), include_color_table=True))
        file.write(b";")
    assert [frame.pixels.shape for frame in read_all("x.gif")] == [(10, 10, 3), (40, 40, 3)]
    assert scan(Path("x.gif")).size == (40, 40)
    monkeypatch.setattr(pixels, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match=r"^x.gif: more than"):
        scan(Path("x.gif"))


@pytest.mark.parametrize(("kind", "late"), [(b"zTXt", False), (b"iTXt", True)])
def test_a_png_may_have_longer_texts_than_pillow_takes(kind: bytes, late: bool) -> None:
    for size, fits in ((1_200_000, True), (17_000_000, False)):
        text = zlib.compress(b"a" * size)
        body = b"Title\0" + (b"\0" + text if kind == b"zTXt" else b"\1\0de\0Titel\0" + text)
        data = imagecodecs.png_encode(RGB)
        where = len(data) - 12 if late else 33
        data = data[:where] + chunk(kind, body) + data[where:]
        if fits:
            assert np.array_equal(read_image(Path("x.png"), data), RGB)
            assert scan(Path("x.png"), data).notes.text == (("Title", "a" * size),)
        else:
            with pytest.raises(UserError, match=r"^x.png: damaged image \(a text of more than"):
                scan(Path("x.png"), data)


def test_a_png_may_have_a_longer_profile_than_pillow_takes() -> None:
    for values in (RGB, DEEP):
        profile = GREEN_CALLED_RED + bytes(1_500_000)
        save_png("x.png", values, (b"iCCP", b"p\0\0" + zlib.compress(profile)))
        pixels = read_one("x.png").pixels.astype(int)
        assert np.abs(pixels - values[..., [1, 0, 2]]).max() <= 1


# files that cannot be read


@pytest.mark.parametrize(
    ("name", "module", "ours"),
    [
        *((name, decoders, "upright") for name in ("x.png", "x.tif", "film.gif", "deep.png", "deep.tif")),
        *((name, decoders, ours) for name in ("x.png", "x.tif", "film.gif") for ours in ("open_image", "OWN")),
        ("deep.tif", np, "moveaxis"),
    ],
)
def test_a_bug_of_ours_is_not_called_damage(
    name: str, module: ModuleType, ours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise IndexError("ours")  # as Pillow's plugins raise it

    data = encoded(name)
    monkeypatch.setattr(module, ours, SimpleNamespace(get=broken) if ours == "OWN" else broken)
    for read in (read_image, read_all):
        with pytest.raises(IndexError, match=r"^ours$"):
            read(Path(name), data)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused(name: str, share: float) -> None:
    data = encoded(name)
    warnings.simplefilter("ignore", UserWarning)  # Pillow's, on a cut TIFF
    with pytest.raises(UserError, match=rf"^cut {name}: "):
        read_all(Path(f"cut {name}"), data[: int(len(data) * share)])


@pytest.mark.parametrize("name", KINDS)
def test_damaged_bytes_end_in_a_sentence_or_a_picture(name: str) -> None:
    data, rng = encoded(name), np.random.default_rng(0)
    warnings.simplefilter("ignore")
    messages: list[str] = []
    for _ in range(20):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(0, min(len(data), 400), 3)] = rng.choice([0, 1, 127, 128, 255], 3)
        for read in (read_all, read_image):
            try:
                assert len(read(Path("bad"), damaged.tobytes()))
            except UserError as error:
                messages.append(str(error))
    assert messages
    assert all(message.startswith("bad: ") for message in messages)


@pytest.mark.parametrize("tag", [256, 257, 258, 262, 274, 277, 282, 296, 322, 338])
@pytest.mark.parametrize("wrong", [("s", 3, b"7 "), ("B", 3, b"\1\2\3"), ("d", 2, (2.0, 3.0))])
def test_tags_of_a_strange_type_end_in_a_sentence_or_a_picture(tag: int, wrong: tuple[str, int, Any]) -> None:
    dtype, _, value = wrong
    for values in (RGB, DEEP):
        options = {"tile": (16, 16), "resolution": (300, 300), "resolutionunit": 2, "metadata": None}
        extra = [(274, *(wrong if tag == 274 else ("H", 1, 6)), True)]
        layers = np.dstack([values, values[..., 0]])
        tifffile.imwrite("x.tif", layers, photometric="rgb", extrasamples=[2], extratags=extra, **options)
        if tag != 274:
            with tifffile.TiffFile("x.tif", mode="r+") as tiff:
                tiff.pages[0].tags[tag].overwrite(value, dtype=dtype)
        for read in (read_all, read_image):
            with suppress(UserError):
                assert len(read(Path("x.tif")))


def test_texts_of_a_png_are_not_taken_for_what_pillow_knows() -> None:
    names = b"dpi loop duration default_image photoshop comment xmp icc_profile aspect gamma".split()
    save_png("x.png", RGB, *((b"tEXt", name + b"\0some text") for name in names))
    found = scan(Path("x.png"))
    assert (found.notes.dpi, found.notes.iptc) == (None, b"")
    assert np.array_equal(read_one("x.png").pixels, RGB)


@pytest.mark.parametrize("content", [b"", b"a text", b"II*\0", b"II*\0\x08\0\0\0", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image(content: bytes) -> None:
    for read in (scan, read_image):
        with pytest.raises(UserError, match=r"^x: (not an image that can|damaged image \(|it has no pages)"):
            read(Path("x"), content)


@pytest.mark.usefixtures("time_limit")
def test_places_where_no_file_is() -> None:
    Path("folder.jpg").mkdir()
    Path("loop.jpg").symlink_to("loop.jpg")
    Path("nowhere.jpg").symlink_to("missing")
    os.mkfifo("pipe.jpg")  # who waits for it waits for ever
    for name, cause in {
        "missing.jpg": "no such file",
        "nowhere.jpg": "no such file",
        "folder.jpg": "not an image that can be read",
        "pipe.jpg": "not an image that can be read",
        "loop.jpg": os.strerror(40),
        "x" * 300: os.strerror(36),
        "folder.jpg/x.jpg": "no such file",
    }.items():
        for read in (scan, read_image):
            with pytest.raises(UserError, match=f"^{name}: {cause}$"):
                read(Path(name))


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (np.zeros((4, 4, 6), np.uint16), {"photometric": "minisblack", "planarconfig": "contig"}),
        (np.zeros((4, 4, 8), np.uint16), {"photometric": "rgb", "planarconfig": "contig"}),
        (np.zeros((4, 4), np.complex64), {"photometric": "minisblack"}),
        (np.zeros((3, 4, 4), np.uint16), {"photometric": "minisblack", "volumetric": True}),
        (np.zeros((4, 4, 3), np.uint16), {"photometric": "cielab"}),
        (np.full((4, 4, 3), np.nan, np.float32), {"photometric": "rgb"}),
    ],
    ids=["bands", "inks", "complex", "volume", "lab", "nan"],
)
def test_kinds_that_are_no_pictures(values: NDArray, options: dict[str, Any]) -> None:
    tifffile.imwrite("x.tif", values, **options)
    with pytest.raises(UserError, match=r"^x.tif: (a kind of image that|not an image|it holds NaN)"):
        read_all("x.tif")


@pytest.mark.usefixtures("time_limit")
def test_pages_that_go_round_in_circles_end() -> None:
    with tifffile.TiffWriter("x.tif") as writer:
        writer.write(RGB, photometric="rgb")
        writer.write(RGB, photometric="rgb")
    data = bytearray(Path("x.tif").read_bytes())
    with tifffile.TiffFile("x.tif") as tiff:
        first, second = (page.offset for page in tiff.pages)
    entries = struct.unpack_from("<H", data, second)[0]
    struct.pack_into("<I", data, second + 2 + 12 * entries, first)
    assert len(read_all("x.tif", bytes(data))) == 2


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_tiff_whose_last_pages_are_missing_is_refused(bigtiff: bool, byteorder: str) -> None:
    with tifffile.TiffWriter("x.tif", bigtiff=bigtiff, byteorder=byteorder) as writer:
        for _ in range(3):
            writer.write(RGB, photometric="rgb")
    with tifffile.TiffFile("x.tif") as tiff:
        last = tiff.pages[2].offset
    with pytest.raises(UserError, match=r"^cut.tif: .*pages are missing"):
        scan(Path("cut.tif"), Path("x.tif").read_bytes()[:last])


@pytest.mark.parametrize("name", ["x.png", "deep.png"])
def test_no_memory_is_not_called_damage(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    data = encoded(name)
    found = scan(Path(name), data)
    monkeypatch.setattr(imagecodecs, "png_decode", no_memory)
    monkeypatch.setattr(Image.Image, "tobytes", no_memory)
    with pytest.raises(MemoryError):
        next(read_frames(found))
