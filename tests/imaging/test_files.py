"""files.py: what a file holds comes back out of it, in its depth, with its transparency, frames and notes."""

import io
import itertools
import math
import os
import signal
import struct
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image, ImageCms

from imaging import pixels
from imaging.files import (
    FORMATS,
    FORMS,
    check_frames,
    output_suffix,
    read_frames,
    read_image,
    scan,
    write_frames,
)
from imaging.metadata import Notes, Scan
from imaging.pixels import Frame

GRID = np.add.outer(np.arange(24), 2 * np.arange(32))[..., None] * [2, 1, 3]
RGB = (GRID % 256).astype(np.uint8)  # (24, 32, 3)
DEEP = (GRID * 641 % 65536).astype(np.uint16)
ALPHA = (GRID[..., 1] * 2 % 256).astype(np.uint8)
DEEP_ALPHA = (GRID[..., 1] * 521 % 65536).astype(np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREEN_CALLED_RED = SRGB.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")
UPRIGHT = {
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
    """A user who colours good files sees nothing of ours or of the libraries on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def scan_of(count: int = 1, form: str = "PNG", **fields: Any) -> Scan:
    """Return what scan would, of a file of 32 x 24 px that need not exist."""
    return replace(Scan(Path("source.png"), form, count, (32, 24), (), 0, Notes()), **fields)


def read_all(name: str | Path) -> list[Frame]:
    """Read a file's frames, and see that they are as promised."""
    found = scan(Path(name))
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


def save_png(name: str, values: NDArray, *chunks: tuple[bytes, bytes]) -> None:
    """Write a PNG of any depth by libpng, with more chunks after its header."""
    data = imagecodecs.png_encode(np.ascontiguousarray(values))
    more = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    Path(name).write_bytes(data[:33] + more + data[33:])


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


# depth


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
def test_16_bit_png_is_read_exactly(colours: int, alpha: bool) -> None:
    parts = [DEEP[..., :colours]] + [DEEP_ALPHA[..., None]] * alpha
    save_png("x.png", np.concatenate(parts, 2).squeeze())
    frame = read_one("x.png")
    assert np.array_equal(frame.pixels, np.broadcast_to(DEEP[..., :colours], DEEP.shape))
    assert frame.alpha is None if not alpha else np.array_equal(frame.alpha, DEEP_ALPHA)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "packbits"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    "layout", [{}, {"planarconfig": "separate"}, {"tile": (16, 16)}, {"rowsperstrip": 5}]
)
def test_16_bit_rgb_tiff_is_read_exactly(
    compression: str | None, byteorder: str, layout: dict[str, Any]
) -> None:
    values = DEEP.transpose(2, 0, 1) if "planarconfig" in layout else DEEP
    tifffile.imwrite(
        "x.tif", values, photometric="rgb", compression=compression, byteorder=byteorder, **layout
    )
    frame = read_one("x.tif")
    assert np.array_equal(frame.pixels, DEEP)
    assert frame.alpha is None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("UNASSALPHA", True), ("UNSPECIFIED", False)],
)
@pytest.mark.parametrize("colours", [1, 3])
def test_alpha_of_a_16_bit_tiff(kind: str, expected: bool, colours: int) -> None:
    values = np.concatenate([DEEP[..., :colours], DEEP_ALPHA[..., None]], 2)
    photometric = "rgb" if colours == 3 else "minisblack"
    tifffile.imwrite(
        "x.tif",
        values,
        photometric=photometric,
        extrasamples=[kind],
        planarconfig="contig",
        compression="lzw",
    )
    frame = read_one("x.tif")
    assert np.array_equal(frame.pixels, np.broadcast_to(DEEP[..., :colours], DEEP.shape))
    assert (frame.alpha is not None) == expected
    assert not expected or np.array_equal(frame.alpha, DEEP_ALPHA)


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
        (np.array([[0, 1 / 3, 1.0]], np.float64), [0, 21845, 65535]),
        (np.zeros((1, 3), np.float32), [0, 0, 0]),
    ],
    ids=lambda value: f"{value.dtype}-{value.max():.0f}" if isinstance(value, np.ndarray) else "",
)
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_gray_numbers_of_every_kind(values: NDArray, expected: list[int], photometric: str) -> None:
    tifffile.imwrite("x.tif", values, photometric=photometric)
    pixels = read_one("x.tif").pixels
    assert pixels.dtype == np.uint16
    wanted = np.array(expected) if photometric == "minisblack" else 65535 - np.array(expected)
    assert pixels[0].tolist() == [[value] * 3 for value in wanted.tolist()]


def test_12_bits_fill_the_whole_range() -> None:
    packed = np.frombuffer(int("000800fff000", 16).to_bytes(6, "big"), np.uint8)
    tifffile.imwrite("x.tif", packed[None], photometric="minisblack", metadata=None)
    with tifffile.TiffFile("x.tif", mode="r+") as tiff:
        tiff.pages[0].tags[256].overwrite(4)  # width
        tiff.pages[0].tags[258].overwrite(12)  # bits per sample
    assert read_one("x.tif").pixels[0, :, 0].tolist() == [0, round(0x800 * 65535 / 4095), 65535, 0]


def test_float_rgb_keeps_what_8_bits_would_lose() -> None:
    values = np.linspace(0, 1, 24 * 32 * 3, dtype=np.float32).reshape(24, 32, 3)
    tifffile.imwrite("x.tif", values, photometric="rgb")
    assert np.array_equal(read_one("x.tif").pixels, (values.astype(np.float64) * 65535).round())


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_dark_16_bit_gray_stays_dark_and_exact(name: str) -> None:
    values = np.arange(200, dtype=np.uint16).reshape(10, 20)  # of 65535, not of 255
    Image.fromarray(values).save(name)
    frame = read_one(name)
    assert frame.pixels.dtype == np.uint16
    assert np.array_equal(frame.pixels, values[..., None].repeat(3, 2))


def test_a_transparent_colour_of_a_16_bit_png() -> None:
    save_png("x.png", DEEP, (b"tRNS", struct.pack(">3H", *DEEP[3, 4])))
    frame = read_one("x.png")
    assert frame.alpha is not None
    hit = (DEEP == DEEP[3, 4]).all(2)
    assert np.array_equal(frame.alpha, np.where(hit, 0, 65535))


# modes of 8 bits


@pytest.mark.parametrize(
    ("make", "name", "options", "pixel", "alpha"),
    [
        (lambda: Image.new("RGBA", (4, 4), (255, 0, 0, 77)), "x.png", {}, (255, 0, 0), 77),
        (lambda: Image.new("RGBA", (4, 4), (255, 0, 0, 77)), "x.tif", {}, (255, 0, 0), 77),
        (lambda: Image.new("RGBA", (4, 4), (255, 0, 0, 77)), "x.webp", {"lossless": True}, (255, 0, 0), 77),
        (lambda: Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "x.png", {}, (255, 0, 0), 0),
        (lambda: Image.new("LA", (4, 4), (90, 51)), "x.png", {}, (90, 90, 90), 51),
        (lambda: Image.new("LA", (4, 4), (90, 51)), "x.tif", {}, (90, 90, 90), 51),
        (lambda: Image.new("RGB", (4, 4), "red").quantize(4), "x.png", {"transparency": 0}, (255, 0, 0), 0),
        (lambda: Image.new("RGB", (4, 4), "red").quantize(4), "x.gif", {"transparency": 0}, (255, 0, 0), 0),
        (lambda: Image.new("RGB", (4, 4), "red").quantize(4), "x.png", {}, (255, 0, 0), None),
        (lambda: Image.new("RGB", (4, 4), "red"), "x.png", {"transparency": (255, 0, 0)}, (255, 0, 0), 0),
        (lambda: Image.new("L", (4, 4), 90), "x.png", {"transparency": 91}, (90, 90, 90), 255),
        (lambda: Image.new("1", (4, 4), 1), "x.png", {}, (255, 255, 255), None),
        (lambda: Image.new("1", (4, 4), 0), "x.tif", {"compression": "group4"}, (0, 0, 0), None),
        (lambda: Image.new("1", (4, 4), 1), "x.bmp", {}, (255, 255, 255), None),
        (lambda: Image.new("L", (4, 4), 90), "x.pgm", {}, (90, 90, 90), None),
        (lambda: Image.new("L", (4, 4), 90), "x.jp2", {}, (90, 90, 90), None),
        (lambda: Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "x.tif", {}, (255, 0, 0), None),
        (lambda: Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "x.jpg", {"quality": 100}, (255, 0, 0), None),
        (lambda: Image.new("PA", (4, 4)), "x.tif", {}, (0, 0, 0), 0),
        (
            lambda: Image.new("YCbCr", (8, 8), (76, 85, 255)),
            "x.tif",
            {"compression": "jpeg"},
            (254, 0, 0),
            None,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_modes(
    make: Callable[[], Image.Image],
    name: str,
    options: dict[str, Any],
    pixel: tuple[int, ...],
    alpha: int | None,
) -> None:
    make().save(name, **options)
    frame = read_one(name)
    assert frame.pixels.dtype == np.uint8
    assert np.abs(frame.pixels.astype(int) - pixel).max() <= 1
    assert frame.alpha is None if alpha is None else (frame.alpha == alpha).all()


@pytest.mark.parametrize(
    "name", ["x.png", "x.tif", "x.webp", "x.avif", "x.gif", "x.bmp", "x.ppm", "x.jp2", "x.jpg"]
)
def test_what_a_training_picture_would_be_is_what_a_frame_is(name: str) -> None:
    smooth = pixels.resize(RGB[:3, :3], 24, 32)
    Image.fromarray(smooth).save(name)
    frame = read_one(name)
    assert np.array_equal(frame.pixels, read_image(Path(name)))
    assert np.abs(frame.pixels.astype(int) - smooth).mean() < 12


@pytest.mark.parametrize("kind", ["cmyk", "ycck"])
def test_inverted_jpegs_of_adobe(kind: str) -> None:
    inks = np.empty((16, 16, 4), np.uint8)
    inks[:] = 200, 0, 0, 30
    data = imagecodecs.jpeg8_encode(255 - inks, level=100, colorspace="cmyk", outcolorspace=kind)
    assert b"Adobe" in data
    Path("x.jpg").write_bytes(data)
    expected = [round((255 - ink) * (255 - 30) / 255) for ink in (200, 0, 0)]
    assert np.abs(read_one("x.jpg").pixels.astype(int) - expected).max() <= 3


def test_lab_tiff() -> None:
    red = np.empty((4, 4, 3), np.uint8)
    red[:] = round(54.3 * 2.55), 81, 70  # sRGB's red seen under D50
    tifffile.imwrite("x.tif", red, photometric="cielab")
    assert np.abs(read_one("x.tif").pixels.astype(int) - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_planar_tiff_of_8_bits(compression: str | None) -> None:
    values = RGB.transpose(2, 0, 1)
    tifffile.imwrite("x.tif", values, photometric="rgb", planarconfig="separate", compression=compression)
    assert np.array_equal(read_one("x.tif").pixels, RGB)


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
    top = np.iinfo(dtype).max
    rng = np.random.default_rng(0)
    values = rng.integers(0, top + 1, (24, 32, 3 + alpha)).astype(dtype)
    if ending == "tif":
        extra = {"extrasamples": ["UNASSALPHA"] * alpha}
        tifffile.imwrite("x.tif", values, photometric="rgb", iccprofile=GREEN_CALLED_RED, **extra)
    else:
        save_png("x.png", values, (b"iCCP", b"p\0\0" + zlib.compress(GREEN_CALLED_RED)))
    frame = read_one(f"x.{ending}")
    assert frame.pixels.dtype == dtype
    assert np.abs(frame.pixels.astype(int) - values[..., [1, 0, 2]]).max() <= 1  # exact, and not in 8 bits
    assert frame.alpha is None if not alpha else np.array_equal(frame.alpha, values[..., 3])


def test_a_16_bit_profile_is_as_exact_as_its_formula() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    linear = values / 65535
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 65535
    tifffile.imwrite(
        "x.tif", values, photometric="minisblack", iccprofile=imagecodecs.cms_profile("gray", gamma=1.0)
    )
    assert np.abs(read_one("x.tif").pixels - srgb[..., None]).max() < 2  # lcms's fast way: 2,482


@pytest.mark.parametrize("profile", [b"no profile", SRGB[:200], imagecodecs.cms_profile("gray", gamma=1.0)])
def test_a_broken_or_mismatching_profile_is_left_out(profile: bytes) -> None:
    tifffile.imwrite("x.tif", DEEP, photometric="rgb", iccprofile=profile)
    save_png("x.png", RGB, (b"iCCP", b"p\0\0" + zlib.compress(profile)))
    assert np.array_equal(read_one("x.tif").pixels, DEEP)
    assert np.array_equal(read_one("x.png").pixels, RGB)


def test_a_gray_picture_with_an_rgb_profile() -> None:
    tifffile.imwrite("x.tif", DEEP[..., 0], photometric="minisblack", iccprofile=SRGB)
    assert np.array_equal(read_one("x.tif").pixels, DEEP[..., :1].repeat(3, 2))


# orientation


@pytest.mark.parametrize("turn", UPRIGHT)
@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif", "x.jpg", "deep.png", "deep.tif"])
def test_orientation(turn: int, name: str) -> None:
    pixels, alpha = (DEEP, DEEP_ALPHA) if "deep" in name else (RGB, ALPHA)
    layers = np.dstack([pixels, alpha])
    if name == "deep.png":
        save_png(name, layers, (b"eXIf", exif_of(turn).tobytes()[6:]))
    elif name == "deep.tif":
        tag = [(274, "H", 1, turn, True)]
        tifffile.imwrite(name, layers, photometric="rgb", extrasamples=["UNASSALPHA"], extratags=tag)
    else:
        options = (
            {"lossless": True, "exact": True}
            if name == "x.webp"
            else {"quality": 95}
            if name == "x.jpg"
            else {}
        )
        Image.fromarray(layers if name != "x.jpg" else RGB).save(name, exif=exif_of(turn), **options)
    frame = read_one(name)
    if name == "x.jpg":
        plain = np.asarray(Image.open(name).copy())
        assert np.array_equal(frame.pixels, UPRIGHT[turn](plain))
    else:
        assert np.array_equal(frame.pixels, UPRIGHT[turn](pixels))
        assert np.array_equal(frame.alpha, UPRIGHT[turn](alpha))
    write_frames(Path(f"out_{name}"), [frame], scan(Path(name)))
    again = scan(Path(f"out_{name}"))
    assert next(read_frames(again)).pixels.shape == frame.pixels.shape  # not turned twice
    with Image.open(f"out_{name}") as image:
        assert image.getexif().get(274, 1) == 1


# animations and pages


def film(count: int = 5) -> list[Image.Image]:
    """Return frames on which a square of few colours moves."""
    frames = []
    for k in range(count):
        frame = Image.new("RGB", (40, 30), (10, 60, 200))
        frame.paste((255, 40 * k, 0), (4 * k, 3 * k, 4 * k + 9, 3 * k + 7))
        frames.append(frame)
    return frames


DURATIONS = (40, 90, 200, 60, 1000)


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "avif"])
def test_every_frame_is_as_a_viewer_shows_it(ending: str) -> None:
    first, *rest = film()
    options = {"lossless": True} if ending == "webp" else {}
    first.save(f"x.{ending}", save_all=True, append_images=rest, duration=list(DURATIONS), loop=3, **options)
    found = scan(Path(f"x.{ending}"))
    assert (found.count, found.durations) == (5, DURATIONS)
    assert found.loop == {"gif": 4, "avif": 0}.get(
        ending, 3
    )  # a GIF repeats what it showed; AVIF tells nobody
    for frame, expected in zip(read_all(f"x.{ending}"), film(), strict=True):
        error = np.abs(frame.pixels.astype(int) - np.asarray(expected))
        assert error.mean() < 8 if ending == "avif" else error.max() == 0
        assert frame.alpha is None or (frame.alpha == 255).all()


@pytest.mark.parametrize("source", ["gif", "webp", "png"])
@pytest.mark.parametrize("target", ["gif", "webp", "png", "avif", "tif"])
@pytest.mark.parametrize("loop", [0, 1, 3])
def test_an_animation_becomes_another(source: str, target: str, loop: int) -> None:
    first, *rest = film()
    repeat = {} if (source, loop) == ("gif", 1) else {"loop": loop - 1 if source == "gif" and loop else loop}
    first.save(
        f"x.{source}", save_all=True, append_images=rest, duration=list(DURATIONS), lossless=True, **repeat
    )
    found = scan(Path(f"x.{source}"))
    assert found.loop == loop
    write_frames(Path(f"out.{target}"), read_frames(found), found)
    out = scan(Path(f"out.{target}"))
    assert out.count == 5
    if target != "tif":
        assert out.durations == DURATIONS
        assert out.loop == (0 if target == "avif" else loop)
    for frame, expected in zip(read_all(f"out.{target}"), film(), strict=True):
        error = np.abs(frame.pixels.astype(int) - np.asarray(expected))
        assert error.max() == 0 if target in ("gif", "png", "tif") else error.mean() < 4


def test_transparency_of_an_animation_survives_disposal() -> None:
    frames = []
    for k in range(3):
        frame = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
        frame.paste((255, 0, 60 * k, 255), (10 * k, 5, 10 * k + 10, 25))
        frames.append(frame)
    frames[0].save("x.png", save_all=True, append_images=frames[1:], duration=50, disposal=1)
    for target in ("gif", "webp", "png"):
        found = scan(Path("x.png"))
        write_frames(Path(f"out.{target}"), read_frames(found), found)
        for frame, expected in zip(read_all(f"out.{target}"), frames, strict=True):
            wanted = np.asarray(expected)
            assert np.array_equal(frame.alpha, wanted[..., 3])
            shown = wanted[..., 3] > 0
            assert np.abs(frame.pixels[shown].astype(int) - wanted[..., :3][shown]).mean() < 4


def test_a_picture_for_programs_without_animation_is_no_frame() -> None:
    first, *rest = film(3)
    cover = Image.new("RGB", first.size, "white")
    cover.save(
        "x.png", save_all=True, append_images=[first, *rest], default_image=True, duration=[50, 60, 70]
    )
    assert scan(Path("x.png")).durations == (50, 60, 70)
    for frame, expected in zip(read_all("x.png"), film(3), strict=True):
        assert np.array_equal(frame.pixels, np.asarray(expected))


def test_a_duration_that_is_no_whole_number_stays() -> None:
    thirtieth = 1000 / 30
    write_frames(Path("x.png"), [Frame(RGB, None)] * 2, scan_of(2, durations=(thirtieth, 70_123.0)))
    assert scan(Path("x.png")).durations == pytest.approx((thirtieth, 70_123.0), rel=1e-4)
    assert scan(Path("x.png")).durations[0] == thirtieth


def pages() -> list[NDArray]:
    """Return pages of several sizes, depths and kinds."""
    return [
        RGB,
        DEEP[:10],
        RGB[:7, :9, 0],
        DEEP[:, :5, 0],
        np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),
    ]


@pytest.mark.parametrize("bigtiff", [False, True])
def test_pages_of_different_size_and_depth(bigtiff: bool) -> None:
    with tifffile.TiffWriter("x.tif", bigtiff=bigtiff) as writer:
        for page in pages():
            writer.write(page, photometric="rgb" if page.ndim == 3 else "minisblack", compression="lzw")
    found = scan(Path("x.tif"))
    assert (found.form, found.count, found.size, found.durations) == ("TIFF", 5, (32, 24), ())
    write_frames(Path("out.tif"), read_frames(found), found)
    for name in ("x.tif", "out.tif"):
        for frame, page in zip(read_all(name), pages(), strict=True):
            colour = page if page.ndim == 3 else page[..., None].repeat(3, 2)
            expected = (colour.astype(np.float64) * 65535).round() if page.dtype == np.float32 else colour
            assert frame.pixels.dtype == (np.uint8 if page.dtype == np.uint8 else np.uint16)
            assert np.array_equal(frame.pixels, expected)


def test_pages_that_pillow_writes() -> None:
    kinds = [Image.fromarray(RGB).convert(mode) for mode in ("1", "P", "CMYK", "RGBA", "L")]
    kinds[0].save("x.tif", save_all=True, append_images=kinds[1:])
    for frame, kind in zip(read_all("x.tif"), kinds, strict=True):
        assert np.array_equal(frame.pixels, np.asarray(kind.convert("RGB")))
        assert (frame.alpha is not None) == (kind.mode == "RGBA")


def test_previews_and_masks_in_a_tiff_are_no_pages() -> None:
    with tifffile.TiffWriter("x.tif") as writer:
        for kind, page in ((1, RGB[::4, ::4]), (0, RGB), (4, RGB[..., 0] > 99), (2, DEEP)):
            writer.write(page, photometric="rgb" if page.ndim == 3 else "minisblack", subfiletype=kind)
    assert [frame.pixels.shape for frame in read_all("x.tif")] == [RGB.shape, DEEP.shape]
    tifffile.imwrite("x.tif", RGB, photometric="rgb", subfiletype=1)
    assert np.array_equal(read_one("x.tif").pixels, RGB)  # better than nothing


def test_a_phones_several_pictures_are_one() -> None:
    Image.fromarray(RGB).save(
        "x.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], quality=95
    )
    found = scan(Path("x.jpg"))
    assert (found.form, found.count, found.size) == ("JPEG", 1, (32, 24))
    frame = read_one("x.jpg")
    assert frame.pixels.shape == RGB.shape
    write_frames(Path("out.jpg"), [frame], found)
    with Image.open("out.jpg") as image:
        assert image.format == "JPEG"
        assert b"MPF" not in Path("out.jpg").read_bytes()


def live_memory_while_reading(path: Path) -> list[int]:
    """Return how many frames were alive each time that one came."""
    alive: list[weakref.ref[NDArray]] = []
    counts = []
    for frame in read_frames(scan(path)):
        alive.append(weakref.ref(frame.pixels))
        counts.append(sum(one() is not None for one in alive))
    return counts


@pytest.mark.parametrize("name", ["x.tif", "deep.tif", "x.gif", "x.webp", "x.png"])
def test_reading_holds_no_frame_that_was_taken(name: str) -> None:
    if name == "deep.tif":
        tifffile.imwrite(name, np.stack([DEEP] * 50), photometric="rgb")
    else:
        frames = [Image.fromarray(np.roll(RGB, k, 0)) for k in range(50)]
        frames[0].save(name, save_all=True, append_images=frames[1:], duration=20)
    counts = live_memory_while_reading(Path(name))
    assert len(counts) == 50
    assert max(counts) <= 2  # this one, and the loop variable's last


# names


@pytest.mark.parametrize(
    ("suffix", "form", "expected"),
    [
        (".JPG", None, ".JPG"),
        (".jpeg", None, ".jpeg"),
        (".png", None, ".png"),
        (".Tiff", None, ".Tiff"),
        (".gif", None, ".gif"),
        (".webp", None, ".webp"),
        (".avif", None, ".avif"),
        (".bmp", None, ".bmp"),
        (".ppm", None, ".ppm"),
        (".pgm", None, ".png"),
        (".pbm", None, ".png"),
        (".jp2", None, ".png"),
        (".xyz", None, ".png"),
        ("", None, ".png"),
        (".JPG", "jpg", ".jpg"),
        (".JPG", "tif", ".tif"),
        (".jp2", "webp", ".webp"),
        (".gif", "png", ".png"),
    ],
)
def test_output_suffix(suffix: str, form: str | None, expected: str) -> None:
    assert output_suffix(suffix, form) == expected


def test_output_suffix_refuses_what_cannot_be_asked_for() -> None:
    assert all(f".{form}" in FORMATS for form in FORMS)
    with pytest.raises(ValueError, match="no image format 'psd': use one of png jpg webp tif"):
        output_suffix(".png", "psd")


@pytest.mark.parametrize(
    ("fields", "target", "sentence"),
    [
        ({"form": "GIF", "count": 12}, "x.jpg", "source.png: 12 frames do not fit into one .jpg"),
        ({"form": "GIF", "count": 12}, "x.bmp", "12 frames do not fit into one .bmp"),
        ({"form": "TIFF", "count": 3}, "x.png", "source.png: 3 pages do not fit into one .png; use tif"),
        ({"form": "TIFF", "count": 3}, "x.jpg", "3 pages do not fit into one .jpg"),
        (
            {"size": (20, 70_000)},
            "x.jpg",
            "source.png: 70000 pixels a side are too many for JPEG; use png or tif",
        ),
        ({"size": (17_000, 5)}, "x.webp", "17000 pixels a side are too many for WEBP"),
        ({}, "x.psd", "x.psd: no image format to write has the ending '.psd'"),
        ({}, "x", "x: no image format to write has the ending ''"),
    ],
)
def test_what_a_format_cannot_hold_is_known_before_work(
    fields: dict[str, Any], target: str, sentence: str
) -> None:
    found = scan_of(**fields)
    with pytest.raises(ValueError, match=sentence):
        check_frames(found, Path(target))
    with pytest.raises(ValueError, match=sentence):
        write_frames(Path(target), iter([]), found)
    assert not Path(target).exists()


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ({"form": "GIF", "count": 12}, "x.tif"),
        ({"form": "GIF", "count": 12}, "x.WEBP"),
        ({"form": "TIFF", "count": 3}, "x.TIFF"),
        ({"form": "TIFF", "count": 1}, "x.jpg"),
        ({"size": (20, 70_000)}, "x.png"),
    ],
)
def test_what_a_format_can_hold(fields: dict[str, Any], target: str) -> None:
    check_frames(scan_of(**fields), Path(target))


# files that cannot be read


def encoded(name: str) -> bytes:
    """Return the bytes of a good file."""
    large = np.kron(RGB, np.ones((4, 4, 1), np.uint8))
    if name.startswith("deep"):
        deep = large.astype(np.uint16) * 257
        if name.endswith("png"):
            return imagecodecs.png_encode(deep)
        file = io.BytesIO()
        tifffile.imwrite(file, deep, photometric="rgb", compression="lzw")
        return file.getvalue()
    frames = [Image.fromarray(np.roll(large, 8 * k, 0)) for k in range(3)]
    more = {"save_all": True, "append_images": frames[1:], "duration": 50} if name.startswith("film") else {}
    frames[0].save(name, **more)
    return Path(name).read_bytes()


ENDINGS = ["jpg", "png", "gif", "tif", "webp", "jp2", "bmp", "avif", "ppm"]
KINDS = (
    [f"x.{e}" for e in ENDINGS]
    + [f"film.{e}" for e in ("gif", "png", "webp", "tif")]
    + ["deep.png", "deep.tif"]
)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0, 0.02, 0.1, 0.5, 0.9])
def test_truncated_files_are_refused(name: str, share: float) -> None:
    data, path = encoded(name), Path(f"cut_{name}")
    path.write_bytes(data[: int(len(data) * share)])
    warnings.simplefilter("ignore", UserWarning)  # Pillow's, on a cut TIFF
    with pytest.raises(ValueError, match=rf"^cut_{name}: "):
        read_all(path)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_bytes_end_in_a_sentence_or_a_picture(name: str) -> None:
    data, path, rng = encoded(name), Path(f"bad_{name}"), np.random.default_rng(0)
    warnings.simplefilter("ignore")
    messages: list[str] = []
    for _ in range(25):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(0, min(len(data), 400), 3)] = rng.choice([0, 1, 127, 128, 255], 3)
        path.write_bytes(damaged.tobytes())
        try:
            assert read_all(path)
        except ValueError as error:
            messages.append(str(error))
    assert messages
    assert all(message.startswith(f"{path}: ") for message in messages)


@pytest.mark.parametrize("name", ["x.jpg", "x.tif", "x.png"])
@pytest.mark.parametrize(
    "content", [b"", b"this is a text", b"II*\0", b"II*\0\x08\0\0\0", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_image(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"^{name}: (not an image that can be read|damaged image \(|it has no pages)"
    ):
        scan(Path(name))


def test_places_where_no_file_is() -> None:
    Path("folder.jpg").mkdir()
    Path("loop.jpg").symlink_to("loop.jpg")
    Path("nowhere.jpg").symlink_to("missing")
    for name, cause in {
        "missing.jpg": "no such file",
        "nowhere.jpg": "no such file",
        "folder.jpg": "not an image that can be read",
        "loop.jpg": os.strerror(40),
        "x" * 300: os.strerror(36),
        "folder.jpg/x.jpg": "no such file",
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: {cause}$"):
            scan(Path(name))


def test_a_pipe_is_not_waited_for() -> None:
    os.mkfifo("pipe.jpg")
    signal.alarm(10)
    with pytest.raises(ValueError, match=r"^pipe.jpg: not an image that can be read$"):
        scan(Path("pipe.jpg"))
    signal.alarm(0)


def test_a_file_that_goes_while_it_is_read_is_named() -> None:
    Image.fromarray(RGB).save("x.png")
    found = scan(Path("x.png"))
    Path("x.png").unlink()
    with pytest.raises(ValueError, match=r"^x.png: no such file$"):
        next(read_frames(found))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3)])
def test_values_that_are_not_finite_are_refused(value: float, shape: tuple[int, ...]) -> None:
    values = np.full(shape, 0.5, np.float32)
    values[2, 1] = value
    tifffile.imwrite("x.tif", values, photometric="rgb" if len(shape) == 3 else "minisblack")
    with pytest.raises(ValueError, match=r"^x.tif: .*NaN or infinite"):
        read_all("x.tif")


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (np.zeros((4, 4, 6), np.uint16), {"photometric": "minisblack", "planarconfig": "contig"}),
        (np.zeros((4, 4, 8), np.uint16), {"photometric": "rgb", "planarconfig": "contig"}),
        (np.zeros((4, 4), np.complex64), {"photometric": "minisblack"}),
        (np.zeros((3, 4, 4), np.uint16), {"photometric": "minisblack", "volumetric": True}),
        (np.zeros((4, 4, 3), np.uint16), {"photometric": "cielab"}),
    ],
    ids=["bands", "inks", "complex", "volume", "lab"],
)
def test_kinds_that_are_no_pictures(values: NDArray, options: dict[str, Any]) -> None:
    tifffile.imwrite("x.tif", values, **options)
    with pytest.raises(ValueError, match=r"^x.tif: (a kind of image that cannot be read|not an image)"):
        read_all("x.tif")


def test_pages_that_go_round_in_circles_end() -> None:
    with tifffile.TiffWriter("x.tif") as writer:
        writer.write(RGB, photometric="rgb")
        writer.write(RGB, photometric="rgb")
    data = bytearray(Path("x.tif").read_bytes())
    with tifffile.TiffFile("x.tif") as tiff:
        first, second = (page.offset for page in tiff.pages)
    entries = struct.unpack_from("<H", data, second)[0]
    struct.pack_into("<I", data, second + 2 + 12 * entries, first)
    Path("x.tif").write_bytes(data)
    signal.alarm(10)
    assert len(read_all("x.tif")) == 2
    signal.alarm(0)


def test_no_memory_is_not_called_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    save_png("x.png", DEEP)
    found = scan(Path("x.png"))

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(imagecodecs, "png_decode", no_memory)
    with pytest.raises(MemoryError):
        next(read_frames(found))


# size


def png_header(width: int, height: int, bits: int, colour: int) -> bytes:
    """Return a whole PNG whose header promises more pixels than it has."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return file.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + file.getvalue()[33:]


@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (8, 2), (16, 2)])
def test_a_decompression_bomb_is_refused_before_it_goes_off(bits: int, colour: int) -> None:
    Path("x.png").write_bytes(png_header(100_000, 100_000, bits, colour))
    with pytest.raises(ValueError, match=r"^x.png: more than 500 million pixels, .* a decompression bomb$"):
        scan(Path("x.png"))
    with pytest.raises(ValueError, match=r"^x.png: more than 500 million pixels"):
        read_image(Path("x.png"))


def test_a_tiff_that_promises_too_much_is_refused() -> None:
    for page in (RGB, DEEP):
        tifffile.imwrite("x.tif", page, photometric="rgb")
        with tifffile.TiffFile("x.tif", mode="r+") as tiff:
            tiff.pages[0].tags[256].overwrite(60_000)
            tiff.pages[0].tags[257].overwrite(60_000)
        with pytest.raises(ValueError, match=r"^x.tif: more than 500 million pixels"):
            scan(Path("x.tif"))


@pytest.mark.parametrize("size", [(20_000, 10_000), (22_000, 22_000)])
def test_large_scans_are_welcome(size: tuple[int, int]) -> None:
    for bits in (1, 8):
        Path("x.png").write_bytes(png_header(*size, bits, 0))
        assert scan(Path("x.png")).pixels == math.prod(
            size
        )  # without Pillow's warning, which is an error here


def test_a_frame_that_grows_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("x.gif").open("wb") as file:
        file.write(b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0x70, 0, 0))
        for side in (10, 40):
            file.writelines(GifImagePlugin.getdata(Image.new("P", (side, side)), include_color_table=True))
        file.write(b";")
    assert [frame.pixels.shape for frame in read_all("x.gif")] == [(10, 10, 3), (40, 40, 3)]
    monkeypatch.setattr(pixels, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"^x.gif: more than"):
        scan(Path("x.gif"))


# writing, whole or not at all


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("contiguous", [False, True])
def test_png_and_tiff_are_exact(ending: str, deep: bool, alpha: bool, contiguous: bool) -> None:
    pixels, cover = (DEEP, DEEP_ALPHA) if deep else (RGB, ALPHA)
    if not contiguous:
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)  # as torch gives it
    path = Path(f"deep/er/x.{ending}")
    write_frames(path, [Frame(pixels, cover if alpha else None)], scan_of())
    frame = read_one(path)
    assert frame.pixels.dtype == pixels.dtype
    assert np.array_equal(frame.pixels, pixels)
    assert frame.alpha is None if not alpha else np.array_equal(frame.alpha, cover)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("ending", ["png", "tif", "gif", "webp", "avif"])
def test_nothing_is_left_when_the_frames_break_off(ending: str) -> None:
    path = Path(f"x.{ending}")
    path.write_bytes(b"old")

    def broken() -> Iterator[Frame]:
        yield Frame(RGB, None)
        yield Frame(RGB, None)
        raise RuntimeError("no more colours")

    with pytest.raises(RuntimeError, match="no more colours"):
        write_frames(path, broken(), scan_of(4, durations=(50,) * 4))
    assert path.read_bytes() == b"old"
    assert list(Path().iterdir()) == [path]


@pytest.mark.parametrize("ending", ["png", "tif", "gif", "webp", "avif"])
@pytest.mark.parametrize("given", [0, 1, 3])
def test_too_few_or_too_many_frames_are_refused(ending: str, given: int) -> None:
    with pytest.raises(ValueError, match=r"got \d of the 2 frames of source.png"):
        write_frames(Path(f"x.{ending}"), [Frame(RGB, None)] * given, scan_of(2))
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("ending", ["png", "gif", "webp", "avif"])
def test_frames_of_different_size_are_pages(ending: str) -> None:
    frames = [Frame(RGB, None), Frame(RGB[:9], None)]
    with pytest.raises(ValueError, match=r"^source.png: its frames differ in size"):
        write_frames(Path(f"x.{ending}"), frames, scan_of(2))
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif", "gif", "bmp", "avif", "ppm"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_full_disk_names_the_file_and_leaves_nothing(ending: str, count: int) -> None:
    if count > 1 and ending in ("jpg", "bmp", "ppm"):
        return
    resource = pytest.importorskip("resource")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (9000, hard)
    )  # what a write beyond says differs from ENOSPC only
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            write_frames(
                Path(f"x.{ending}"), [Frame(noise, None)] * count, scan_of(count, durations=(50,) * count)
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.filename == f"x.{ending}"
    assert list(Path().iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_named() -> None:
    Path("taken").write_text("a file")
    with pytest.raises(OSError, match=r"taken/x.png") as raised:
        write_frames(Path("taken/x.png"), [Frame(RGB, None)], scan_of())
    assert raised.value.filename == "taken/x.png"
    Path("x.png").mkdir()
    with pytest.raises(OSError, match=r"x.png") as raised:
        write_frames(Path("x.png"), [Frame(RGB, None)], scan_of())
    assert raised.value.filename == "x.png"
    assert sorted(path.name for path in Path().iterdir()) == ["taken", "x.png"]
