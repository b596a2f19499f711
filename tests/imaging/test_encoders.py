"""encoders.py: each format as other programs read it, and no more frames in memory than one."""

import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from image_samples import ALPHA, DEEP, DEEP_ALPHA, RGB, SMOOTH, read_all, read_one, scan_of
from numpy.typing import NDArray
from PIL import Image

from imaging import encoders
from imaging.files import check_frames, scan, write_frames
from imaging.metadata import Notes
from imaging.pixels import Frame, resize


def write(name: str, *frames: Frame, **fields: Any) -> None:
    """Write frames under a name."""
    write_frames(Path(name), iter(frames), scan_of(len(frames), **fields))


@pytest.mark.parametrize("ending", ["tif", "png", "gif", "webp", "avif"])
def test_no_frame_is_kept(ending: str) -> None:
    made: list[weakref.ref[NDArray]] = []

    def make(number: int) -> Frame:
        assert not any(one() is not None for one in made)
        pixels = np.roll(RGB, number, 1)
        made.append(weakref.ref(pixels))
        return Frame(pixels, None)

    write_frames(Path(f"x.{ending}"), map(make, range(10)), scan_of(10))
    assert scan(Path(f"x.{ending}")).count == len(made) == 10


@pytest.mark.parametrize("ending", ["tif", "png"])
def test_memory_does_not_grow_with_the_number_of_frames(ending: str) -> None:
    rng = np.random.default_rng(0)

    def peak(count: int) -> int:
        noise = (Frame(rng.integers(0, 256, (200, 300, 3), np.uint8), None) for _ in range(count))
        tracemalloc.start()
        write_frames(Path(f"x.{ending}"), noise, scan_of(count))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(2)  # what is loaded once
    assert peak(12) < peak(4) + 200 * 300 * 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("alpha", [False, True])
def test_png_as_libpng_and_pillow_read_it(dtype: type, alpha: bool) -> None:
    pixels, cover = (RGB, ALPHA) if dtype == np.uint8 else (DEEP, DEEP_ALPHA)
    pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)  # as torch gives it
    write("x.png", Frame(pixels, cover if alpha else None))
    data = Path("x.png").read_bytes()
    assert (data[24], data[25]) == (8 * np.dtype(dtype).itemsize, 6 if alpha else 2)  # bits, kind of colour
    wanted = np.dstack([pixels, cover]) if alpha else pixels
    assert np.array_equal(imagecodecs.png_decode(data), wanted)
    with Image.open("x.png") as image:
        image.load()  # checks the checksums
        assert image.mode == ("RGBA" if alpha else "RGB")


@pytest.mark.parametrize("alpha", [False, True])
def test_animated_png_as_another_decoder_reads_it(alpha: bool) -> None:
    frames = [Frame(np.roll(RGB, k, 0), np.roll(ALPHA, k, 1) if alpha else None) for k in range(4)]
    write("x.png", *frames, loop=7, durations=(10.0, 20.0, 30.0, 40.0))
    out = imagecodecs.apng_decode(Path("x.png").read_bytes())
    assert out.shape == (4, 24, 32, 4)
    for picture, frame in zip(out, frames, strict=True):
        assert np.array_equal(picture[..., :3], frame.pixels)
        assert np.array_equal(picture[..., 3], frame.alpha) if alpha else (picture[..., 3] == 255).all()
    found = scan(Path("x.png"))
    assert (found.loop, found.durations) == (7, (10.0, 20.0, 30.0, 40.0))


def test_an_animation_may_become_transparent_later() -> None:
    for name in ("x.png", "x.webp", "x.avif"):
        write(name, Frame(RGB, None), Frame(RGB, np.zeros_like(ALPHA)))
        first, second = read_all(name)
        assert first.alpha is None or (first.alpha == 255).all()
        assert second.alpha is not None
        assert not second.alpha.any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("alpha", [False, True])
def test_tiff_as_tifffile_and_pillow_read_it(dtype: type, alpha: bool) -> None:
    pixels, cover = (RGB, ALPHA) if dtype == np.uint8 else (DEEP, DEEP_ALPHA)
    pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)  # as torch gives it
    frames = [Frame(pixels, cover if alpha else None), Frame(pixels[:5, :7], None)]
    write("x.tif", *frames, notes=Notes(dpi=(300.0, 240.0)))
    with tifffile.TiffFile("x.tif") as tiff:
        assert not tiff.is_bigtiff
        first, second = tiff.pages
        wanted = np.dstack([pixels, cover]) if alpha else pixels
        assert np.array_equal(first.asarray(), wanted)
        assert np.array_equal(second.asarray(), pixels[:5, :7])
        assert (first.compression.name, first.extrasamples) == ("ADOBE_DEFLATE", (2,) if alpha else ())
        assert "Software" not in first.tags
    with Image.open("x.tif") as image:
        assert (image.n_frames, image.info["dpi"]) == (2, (300.0, 240.0))
        image.load()


def test_a_tiff_beyond_4_gigabytes_has_room(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[36867] = "1955:11:05 06:00:00"
    notes = Notes(exif=exif.tobytes()[6:])
    for size, start in (((32, 24), b"II*\0"), ((30_000, 30_000), b"II+\0")):
        write("x.tif", Frame(RGB, None), size=size, notes=notes)
        assert Path("x.tif").read_bytes()[:4] == start
        frame = read_one("x.tif")
        assert np.array_equal(frame.pixels, RGB)
        with Image.open("x.tif") as image:
            assert image.getexif().get_ifd(0x8769) == {36867: "1955:11:05 06:00:00"}


def test_jpeg_is_of_quality_95_without_subsampling() -> None:
    write("x.jpg", Frame(SMOOTH, None))
    Image.fromarray(SMOOTH).save("y.jpg", quality=95, subsampling=0)
    assert Path("x.jpg").read_bytes() == Path("y.jpg").read_bytes()


@pytest.mark.parametrize("ending", ["jpg", "bmp", "ppm"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparency_is_laid_over_white_where_a_format_has_none(ending: str, dtype: type) -> None:
    top = np.iinfo(dtype).max
    pixels = np.zeros((16, 48, 3), dtype)
    pixels[..., 0] = top
    alpha = np.repeat(np.array([0, top // 5, top], dtype), 16)[None].repeat(16, 0)
    write(f"x.{ending}", Frame(pixels, alpha), size=(48, 16))
    frame = read_one(f"x.{ending}")
    assert frame.alpha is None
    for left, colour in ((0, [255, 255, 255]), (16, [255, 204, 204]), (32, [255, 0, 0])):
        assert np.abs(frame.pixels[:, left : left + 16].astype(int) - colour).max() <= 3


def test_16_bits_are_rounded_to_8() -> None:
    gray = np.array([[0, 128, 129, 257, 385, 386, 65406, 65407, 65535]], np.uint16)
    for ending in ("bmp", "ppm", "gif"):
        write(f"x.{ending}", Frame(gray[..., None].repeat(3, 2), None), size=(9, 1))
        assert read_one(f"x.{ending}").pixels[0, :, 0].tolist() == [0, 0, 1, 1, 1, 2, 254, 255, 255]


@pytest.mark.parametrize("ending", ["webp", "avif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_webp_and_avif_are_close_and_keep_alpha(ending: str, dtype: type) -> None:
    scale = np.iinfo(dtype).max // 255
    write(f"x.{ending}", Frame(SMOOTH.astype(dtype) * dtype(scale), ALPHA.astype(dtype) * dtype(scale)))
    frame = read_one(f"x.{ending}")
    assert frame.alpha is not None
    assert np.abs(frame.alpha.astype(int) - ALPHA).max() <= (0 if ending == "webp" else 8)
    opaque = ALPHA > 100
    assert np.abs(frame.pixels.astype(int) - SMOOTH)[opaque].mean() < 2.5


def few_colours(count: int) -> NDArray[np.uint8]:
    """Return a picture of so many colours."""
    palette = np.unique(np.random.default_rng(0).integers(0, 256**3, 2 * count))[:count]
    numbers = palette[np.arange(24 * 32).reshape(24, 32) % count]
    return np.stack([numbers // 65536, numbers // 256 % 256, numbers % 256], 2).astype(np.uint8)


def test_a_gif_of_few_colours_is_exact() -> None:
    close = np.random.default_rng(0).integers(90, 97, (24, 32, 3)).astype(np.uint8)
    close[..., 1:] //= 2  # so that they are fewer than 256
    for pixels in (close, few_colours(200)):
        write("x.gif", Frame(pixels, None))
        frame = read_one("x.gif")
        assert np.array_equal(frame.pixels, pixels)
        assert frame.alpha is None
    write("x.gif", Frame(few_colours(200), ALPHA))
    frame = read_one("x.gif")
    assert np.array_equal(frame.alpha, np.where(ALPHA < 128, 0, 255))
    assert np.array_equal(frame.pixels[ALPHA >= 128], few_colours(200)[ALPHA >= 128])


@pytest.mark.parametrize("counted", [2**22, 100])
def test_a_gif_of_many_colours_is_close(counted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "PALETTE_PIXELS", counted)  # of a larger frame, some pixels decide
    large = resize(RGB[:5, :6], 100, 120)
    write("x.gif", Frame(large, None), size=(120, 100))
    frame = read_one("x.gif")
    assert len(np.unique(frame.pixels.reshape(-1, 3), axis=0)) <= 256
    assert np.abs(frame.pixels.astype(int) - large).mean() < 6


def test_each_frame_of_a_gif_has_its_own_colours() -> None:
    frames = [few_colours(250), 255 - few_colours(250)]
    write("x.gif", *(Frame(pixels, None) for pixels in frames), durations=(20.0, 1234.0))
    for frame, pixels in zip(read_all("x.gif"), frames, strict=True):
        assert np.array_equal(frame.pixels, pixels)
    assert scan(Path("x.gif")).durations == (20.0, 1230.0)  # hundredths of a second


@pytest.mark.parametrize(("ending", "side"), [("jpg", 65_501), ("webp", 16_384), ("gif", 65_536)])
def test_a_frame_longer_than_the_scan_said_is_refused(ending: str, side: int) -> None:
    with pytest.raises(ValueError, match=rf"^source.png: {side} pixels a side are too many for"):
        write(f"x.{ending}", Frame(np.zeros((1, side, 3), np.uint8), None))
    write(f"x.{ending}", Frame(np.zeros((1, side - 1, 3), np.uint8), None))
    assert scan(Path(f"x.{ending}")).size == (side - 1, 1)


def test_a_format_that_this_pillow_cannot_write(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.SAVE, "AVIF")
    with pytest.raises(ValueError, match=r"^x.avif: no image format to write has the ending '.avif'"):
        check_frames(scan_of(), Path("x.avif"))
