"""images.py: every kind of file becomes sRGB, every bad one a sentence; writing is whole or not at all."""

import errno
import io
import os
import re
import signal
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

from imaging import pixels
from imaging.decoders import to_frame
from imaging.files import (
    EXTENSIONS,
    FORMATS,
    find_images,
    read_image,
    scan,
    write_image,
)
from imaging.pixels import (
    GAP,
    Array,
    Frame,
    colorfulness,
    contact_sheet,
    flatten,
    resize,
    to_8_bits,
    to_16_bits,
    upright,
)

RAMP = (np.add.outer(np.arange(24), 2 * np.arange(32))[..., None] * [2, 1, 3] % 256).astype(np.uint8)
RED, GREEN, WHITE, BLACK = [255, 0, 0], [0, 255, 0], [255, 255, 255], [0, 0, 0]


def flat(*colour: int, mode: str = "RGB") -> Image.Image:
    """Return a 4x4 picture of one colour."""
    return Image.new(mode, (4, 4), colour if len(colour) > 1 else colour[0])


def read_back(image: Image.Image, name: str, **options: Any) -> Array:
    """Save a picture and read it."""
    image.save(name, **options)
    out = read_image(Path(name))
    assert out.dtype == np.uint8
    assert out.shape[2:] == (3,)
    return out


def green_called_red() -> bytes:
    """Return the sRGB profile with its red and green primaries swapped: its red is sRGB's green."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert profile.count(b"rXYZ") == profile.count(b"gXYZ") == 1
    return profile.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm", "gif", "webp", "jpg", "jp2", "avif"])
def test_formats(ending: str) -> None:
    options = {"lossless": True} if ending == "webp" else {"quality": 95} if ending in ("jpg", "avif") else {}
    smooth = resize(RAMP[:3, :3], 24, 32)
    tolerance = {"jpg": 40, "avif": 40, "gif": 60, "jp2": 2}.get(ending, 0)
    assert f".{ending}" in EXTENSIONS
    assert set(FORMATS) <= EXTENSIONS  # what can be written is found in folders
    out = read_back(Image.fromarray(smooth), f"x.{ending}", **options)
    assert np.abs(out.astype(int) - smooth).max() <= tolerance


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, RAMP),
        (2, RAMP[:, ::-1]),
        (3, RAMP[::-1, ::-1]),
        (4, RAMP[::-1]),
        (5, RAMP.swapaxes(0, 1)),
        (6, np.rot90(RAMP, -1)),
        (7, RAMP[::-1, ::-1].swapaxes(0, 1)),
        (8, np.rot90(RAMP, 1)),
    ],
)
def test_exif_orientation(orientation: int, upright: Array) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    assert np.array_equal(read_back(Image.fromarray(RAMP), "x.png", exif=exif), upright)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_icc_profile_is_applied(mode: str) -> None:
    image = flat(*RED).convert(mode)
    if mode == "P":
        image = flat(*RED).quantize(4)
    out = read_back(image, "x.png", icc_profile=green_called_red())
    assert np.abs(out.astype(int) - GREEN).max() <= 2


@pytest.mark.parametrize("profile", [b"no profile", green_called_red()[:200]])
def test_a_broken_icc_profile_is_left_out(profile: bytes) -> None:
    assert (read_back(flat(*RED), "x.png", icc_profile=profile) == RED).all()


def test_an_srgb_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    out = read_back(Image.fromarray(RAMP), "x.png", icc_profile=profile)
    assert np.abs(out.astype(int) - RAMP).max() <= 1


@pytest.mark.parametrize(
    ("image", "name", "options", "expected"),
    [
        (flat(255, 0, 0, 0, mode="RGBA"), "x.png", {}, WHITE),
        (flat(255, 0, 0, 255, mode="RGBA"), "x.png", {}, RED),
        (flat(255, 0, 0, 127, mode="RGBA"), "x.webp", {"lossless": True}, [255, 128, 128]),
        (flat(0, 51, mode="LA"), "x.png", {}, [204, 204, 204]),
        (flat(*RED).quantize(4), "x.png", {}, RED),
        (flat(*RED).quantize(4), "x.png", {"transparency": 0}, WHITE),
        (flat(*RED), "x.png", {"transparency": tuple(RED)}, WHITE),
        (flat(90, mode="L"), "x.png", {}, [90, 90, 90]),
        (flat(1, mode="1"), "x.png", {}, WHITE),
        (flat(0, mode="1"), "x.tif", {}, BLACK),
        (flat(0, 255, 255, 0, mode="CMYK"), "x.tif", {}, RED),
        (flat(0, 0, 0, 255, mode="CMYK"), "x.tif", {}, BLACK),
        (flat(65535, mode="I;16"), "x.png", {}, WHITE),
        (flat(257 * 100, mode="I;16"), "x.tif", {}, [100, 100, 100]),
        (flat(200, mode="I"), "x.tif", {}, [200, 200, 200]),
        (flat(257 * 200, mode="I"), "x.tif", {}, [200, 200, 200]),
        (flat(0.4, mode="F"), "x.tif", {}, [102, 102, 102]),
        (flat(1.0, mode="F"), "x.tif", {}, WHITE),
        (flat(102.0, mode="F"), "x.tif", {}, [102, 102, 102]),
        (flat(-3.0, mode="F"), "x.tif", {}, BLACK),
    ],
    ids=lambda value: f"{value.mode}{value.getpixel((0, 0))}" if isinstance(value, Image.Image) else "",
)
def test_modes(image: Image.Image, name: str, options: dict[str, Any], expected: list[int]) -> None:
    assert read_back(image, name, **options).tolist() == [[expected] * 4] * 4


def test_dark_16_bit_gray_stays_dark() -> None:
    image = Image.fromarray(np.full((4, 4), 200, np.uint16))  # 200 of 65535, not of 255
    assert read_back(image, "x.png").max() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    Image.fromarray(np.array([[0.5, value]], np.float32)).save("x.tif")
    with pytest.raises(ValueError, match=r"^x.tif: .*NaN"):
        read_image(Path("x.tif"))


def encoded(ending: str) -> bytes:
    Image.fromarray(np.repeat(np.repeat(RAMP, 4, 0), 4, 1)).save(f"whole.{ending}")
    return Path(f"whole.{ending}").read_bytes()


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "tif", "webp", "jp2", "bmp", "avif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(ending: str, share: float) -> None:
    data, path = encoded(ending), Path(f"cut.{ending}")
    path.write_bytes(data[: int(len(data) * share)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, on a cut TIFF
        with pytest.raises(ValueError, match=rf"^cut.{ending}: "):
            read_image(path)


@pytest.mark.parametrize("ending", ["jpg", "png", "avif"])
def test_damaged_bytes_end_in_a_sentence_or_a_picture(ending: str) -> None:
    data, path, rng = encoded(ending), Path(f"x.{ending}"), np.random.default_rng(0)
    messages: list[str] = []
    for _ in range(60):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(0, min(len(data), 400), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            assert read_image(path).shape[2] == 3
        except ValueError as error:
            messages.append(str(error))
    assert messages
    assert all(message.startswith(f"{path}: ") for message in messages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an image that can be read"),
        (b"this is a text", "not an image that can be read"),
        (None, "no such file"),
    ],
)
def test_what_is_no_image(content: bytes | None, message: str) -> None:
    path = Path("x.jpg")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^x.jpg: {message}"):
        read_image(path)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_bytes_are_read_as_their_file_is(ending: str) -> None:
    content = encoded(ending)
    assert np.array_equal(read_image(Path("anything"), content), read_image(Path(f"whole.{ending}")))
    assert not Path("anything").exists()


def test_bytes_that_are_no_image_are_called_by_the_name_given() -> None:
    whole = encoded("png")
    Path("whole.png").rename("x.png")  # which is not what is read
    for content in (b"", b"this is a text", whole[:20]):
        with pytest.raises(ValueError, match=r"^x\.png: (not an image that can be read|damaged image \()"):
            read_image(Path("x.png"), content)
    with pytest.raises(ValueError, match=r"^set\.tar:x\.png: damaged image \("):
        read_image(Path("set.tar:x.png"), whole[: len(whole) // 2])


def test_to_array_turns_any_loaded_picture_upright_and_to_srgb() -> None:
    assert np.array_equal(flatten(to_frame(Image.fromarray(RAMP))), RAMP)
    assert flatten(to_frame(flat(90, mode="L"))).tolist() == [[[90, 90, 90]] * 4] * 4
    exif = Image.Exif()
    exif[274] = 6
    file = io.BytesIO()
    Image.fromarray(RAMP).save(file, "PNG", exif=exif, icc_profile=green_called_red())
    with Image.open(file) as image:
        out = flatten(to_frame(image))
    plain = flatten(to_frame(Image.fromarray(np.rot90(RAMP, -1))))
    assert out.shape == plain.shape
    assert np.abs(out.astype(int) - plain).max() > 50  # the profile was applied


def png_header(width: int, height: int) -> bytes:
    """Return a gray PNG whose header promises more pixels than it has."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return file.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + file.getvalue()[33:]


@pytest.mark.parametrize("size", [(100_000, 100_000), (22_400, 22_400)])
def test_decompression_bomb_is_refused(size: tuple[int, int]) -> None:
    Path("x.png").write_bytes(png_header(*size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what is refused anyway
        with pytest.raises(ValueError, match=r"^x.png: more than 500 million pixels, .*decompression bomb"):
            read_image(Path("x.png"))
        with pytest.raises(ValueError, match=r"^set.tar:x.png: more than 500 million pixels"):
            read_image(Path("set.tar:x.png"), png_header(*size))


def test_a_large_scan_is_no_bomb() -> None:
    Path("x.png").write_bytes(png_header(22_300, 22_300))  # 497 million; Pillow's own limits are 89 and 179
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scan(Path("x.png")).size == (22_300, 22_300)


def test_the_limit_is_that_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RAMP).save("x.png")
    monkeypatch.setattr(pixels, "MAX_PIXELS", RAMP[..., 0].size)
    assert np.array_equal(read_image(Path("x.png")), RAMP)
    monkeypatch.setattr(pixels, "MAX_PIXELS", RAMP[..., 0].size - 1)
    with pytest.raises(ValueError, match=r"^x.png: .*decompression bomb"):
        read_image(Path("x.png"))


def test_places_where_no_file_is() -> None:
    Path("folder.jpg").mkdir()
    Path("loop.jpg").symlink_to("loop.jpg")
    os.mkfifo("pipe.jpg")  # who waits for it waits for ever
    signal.alarm(10)
    for name in ("folder.jpg", "pipe.jpg"):
        with pytest.raises(ValueError, match=f"^{name}: not an image that can be read$"):
            read_image(Path(name))
    signal.alarm(0)
    with pytest.raises(ValueError, match=f"^loop.jpg: {os.strerror(errno.ELOOP)}$"):
        read_image(Path("loop.jpg"))


def test_no_memory_is_not_called_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RAMP).save("x.png")

    def no_memory(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", no_memory)
    with pytest.raises(MemoryError):
        read_image(Path("x.png"))


def test_a_broken_exif_block_says_nothing() -> None:
    for name in ("x.png", "x.webp", "x.jpg"):
        Image.fromarray(RAMP).save(name, exif=b"Exif\0\0this is no TIFF header")
        assert read_image(Path(name)).shape == RAMP.shape


@pytest.mark.parametrize("turn", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK"])
def test_tiffs_that_pillow_would_map_into_memory_are_turned(mode: str, turn: int) -> None:
    image = Image.fromarray(RAMP).convert(mode)
    image.save("x.tif")  # not compressed
    plain = read_image(Path("x.tif"))
    exif = Image.Exif()
    exif[274] = turn
    image.save("x.tif", exif=exif)
    assert np.array_equal(read_image(Path("x.tif")), upright(Frame(plain, None), turn).pixels)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "I", "F"]
)
def test_strips_leave_no_seams(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(RAMP)
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
        )
        image = ImageCms.applyTransform(image, to_lab)
    elif mode in ("LA", "RGBa"):
        image.putalpha(Image.fromarray(RAMP[..., 2]))
        image = image.convert(mode)
    else:
        image = image.convert(mode)
    image.info["icc_profile"] = green_called_red()
    whole = to_frame(image)
    monkeypatch.setattr(pixels, "STRIP", 5 * 32)
    cut = to_frame(image)
    assert np.array_equal(cut.pixels, whole.pixels)
    assert (cut.alpha is None) == (whole.alpha is None) == (mode not in ("LA", "PA", "RGBA", "RGBa"))
    assert cut.alpha is None or np.array_equal(cut.alpha, whole.alpha)
    assert np.array_equal(flatten(cut), flatten(whole))


def test_transparency_is_straight_and_profiles_do_not_touch_it() -> None:
    image = flat(255, 0, 0, 77, mode="RGBA")
    image.info["icc_profile"] = green_called_red()
    frame = to_frame(image)
    assert frame.alpha is not None
    assert frame.alpha.tolist() == [[77] * 4] * 4
    assert np.abs(frame.pixels.astype(int) - GREEN).max() <= 2


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_gray_profile_fits_gray_with_transparency_too(mode: str) -> None:
    image = Image.new("L", (4, 4), 55)
    if mode == "LA":
        image.putalpha(200)
    image.info["icc_profile"] = imagecodecs.cms_profile("gray", gamma=1.0)
    linear = 55 / 255
    srgb = (1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(to_frame(image).pixels - srgb).max() < 2


def test_16_bits_become_the_nearest_8() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(to_8_bits(values), np.round(values / 257))
    assert to_8_bits(RAMP) is RAMP


@pytest.mark.parametrize(
    ("values", "full", "expected"),
    [
        ([0, 7, 65535], 65535, [0, 7, 65535]),
        ([0, 1023], 1023, [0, 65535]),
        ([0, 255], None, [0, 65535]),
        ([0, 256], None, [0, 256]),
        ([0, 65536, 131072], None, [0, 32768, 65535]),
        ([-5, 10], None, [0, 2570]),
        ([0.0, 0.5], None, [0, 32768]),
        ([0.0, 1.5], None, [0, 386]),
        ([0.0, 300.0], None, [0, 300]),
    ],
)
def test_numbers_of_any_kind_become_16_bits(
    values: list[float], full: float | None, expected: list[int]
) -> None:
    assert to_16_bits(np.array([values]), full).tolist() == [expected]
    assert to_16_bits(np.array([values]), full).dtype == np.uint16


def test_numbers_of_the_other_byte_order_are_read() -> None:
    assert to_16_bits(np.array([[1, 258]], ">u2"), 65535).tolist() == [[1, 258]]


def test_dark_16_bit_pgm_stays_dark() -> None:
    Path("x.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">2H", 200, 100))
    assert read_image(Path("x.pgm")).max() <= 1


def test_lab_is_read() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    smooth = Image.fromarray(resize(RAMP[:3, :3], 24, 32))
    image = ImageCms.applyTransform(smooth, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    assert np.abs(read_back(image, "x.tif").astype(int) - np.asarray(smooth)).mean() < 3


def test_find_images() -> None:
    shown = ["B.JPG", "a.jpeg", "a/x.Png", "a/b/c.tIf", "b.webp", "z.avif"]
    for name in [*shown, ".hidden.png", ".cache/x.png", "a/.trash/y.png", "notes.txt", "png", "x.png.txt"]:
        path = Path("root", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = find_images(Path("root"))
    assert [path.relative_to("root").as_posix() for path in found] == sorted(shown)


def test_find_images_errors() -> None:
    with pytest.raises(ValueError, match="no folder nowhere"):
        find_images(Path("nowhere"))
    Path("empty").mkdir()
    Path("empty/readme.txt").touch()
    with pytest.raises(ValueError, match=r"no image in empty: looked for .*\.png"):
        find_images(Path("empty"))


def test_a_folder_that_cannot_be_read_is_no_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def stand_in(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    for folder in ("root/locked", "root/open"):
        Path(folder).mkdir(parents=True)
        Path(folder, "x.png").touch()
    monkeypatch.setattr(os, "scandir", stand_in)  # root may read all
    with pytest.raises(PermissionError, match=r"Permission denied: 'root/locked'"):
        find_images(Path("root"))
    closed: list[OSError] = []
    assert find_images(Path("root"), closed) == [Path("root/open/x.png")]
    assert [error.filename for error in closed] == ["root/locked"]
    with pytest.raises(PermissionError, match=r"'root/locked'"):
        find_images(Path("root/locked"), [])


@pytest.mark.parametrize("name", ["x.png", "deep/er/x.PNG", "x.bmp", "x.tif"])
def test_write_image_round_trip(name: str) -> None:
    write_image(Path(name), RAMP)
    assert np.array_equal(read_image(Path(name)), RAMP)
    assert [path.name for path in Path(name).parent.iterdir()] == [Path(name).name]


@pytest.mark.parametrize("ending", [".xyz", "", ".psd"])  # Pillow reads .psd but cannot write it
def test_write_image_refuses_unknown_endings(ending: str) -> None:
    with pytest.raises(ValueError, match=f"^x{re.escape(ending)}: no image format .*{ending!r}"):
        write_image(Path(f"x{ending}"), RAMP)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(("height", "width"), [(12, 16), (50, 10), (48, 64)])
def test_resize_is_pillows_bicubic(height: int, width: int) -> None:
    smooth = np.array(Image.fromarray(RAMP[:6, :8]).resize((32, 24), Image.Resampling.BICUBIC))
    expected = np.asarray(Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC))
    out = resize(smooth, height, width)
    assert out.shape == (height, width, 3)
    assert np.abs(out.astype(int) - expected).max() <= 1


def test_resize_leaves_the_same_size_alone() -> None:
    assert resize(RAMP, 24, 32) is RAMP


def test_contact_sheet_places_every_picture() -> None:
    rows = [[RAMP, RAMP[:, :10]], [RAMP[:5], 255 - RAMP[:5]]]
    sheet = contact_sheet(rows, ["input", "truth"])
    assert sheet.shape == (26 + 24 + 5 + 2 * GAP, 2 * (64 + GAP) + GAP, 3)
    tops = (26, 26 + 24 + GAP)
    for row, top in zip(rows, tops, strict=True):
        for column, picture in enumerate(row):
            left = GAP + column * (64 + GAP)
            height, width = picture.shape[:2]
            assert np.array_equal(sheet[top : top + height, left : left + width], picture)
    assert sheet[:26].min() < 100  # titles
    assert sheet[26:, :GAP].min() == 255


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[90, 90, 90], [200, 200, 200]], 0.0),
        ([[255, 0, 0], [255, 0, 0]], 0.3 * np.hypot(255, 127.5)),
        # rg = 100, -100 (std 100, mean 0); yb = 50, 50 (std 0, mean 50)
        ([[100, 0, 0], [0, 100, 0]], 100 + 0.3 * 50),
        # rg = 0, 60 (std 30, mean 30); yb = -80, 30 (std 55, mean -25)
        ([[0, 0, 80], [60, 0, 0]], np.hypot(30, 55) + 0.3 * np.hypot(30, 25)),
    ],
)
def test_colorfulness_by_hand(rows: list[list[int]], expected: float) -> None:
    image = np.array(rows, np.uint8)[:, None].repeat(5, 1)
    assert colorfulness(image) == pytest.approx(expected, abs=1e-9)


def test_colorfulness_of_noise_is_that_of_its_formula() -> None:
    red, green, blue = (np.random.default_rng(i).integers(0, 256, (40, 50)).astype(float) for i in range(3))
    rg, yb = red - green, 0.5 * (red + green) - blue
    expected = np.sqrt(rg.var() + yb.var()) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
    image = np.stack([red, green, blue], 2).astype(np.uint8)
    assert colorfulness(image) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ([255, 255, 0], 255),
        ([0, 0, 255], 255),
        ([255, 0, 255], np.hypot(255, 127.5)),
        ([255] * 3, 0),
        ([0] * 3, 0),
    ],
)
def test_colorfulness_of_flat_extremes_does_not_overflow(colour: list[int], expected: float) -> None:
    image = np.tile(np.array(colour, np.uint8), (300, 400, 1))
    assert colorfulness(image) == pytest.approx(0.3 * expected, abs=1e-9)


@pytest.mark.parametrize("colour", [[255, 255, 0], [255, 250, 0], [77, 0, 3]])
def test_colorfulness_of_a_flat_photograph_of_12_megapixels(colour: list[int]) -> None:
    image = np.broadcast_to(np.array(colour, np.uint8), (3001, 3999, 3))
    red, green, blue = colour
    expected = 0.3 * np.hypot(red - green, (red + green) / 2 - blue)
    assert colorfulness(image) == pytest.approx(expected, abs=1e-2)  # a spread of nothing, but for rounding


def test_a_variance_that_rounding_makes_negative_is_none() -> None:
    image = np.broadcast_to(np.array([194, 0, 97], np.uint8), (1999, 1501, 3))
    assert colorfulness(image) == pytest.approx(0.3 * 194)


def test_colorfulness_of_a_large_picture_of_opposites_does_not_overflow() -> None:
    image = np.zeros((1200, 1000, 3), np.uint8)
    image[:600, :, :2], image[600:, :, 2] = 255, 255  # yellow and blue: yb = 255, -255
    assert colorfulness(image) == pytest.approx(255.0)
    assert colorfulness(image[::2, ::-1]) == pytest.approx(255.0)  # views, as ImageSet cuts them
