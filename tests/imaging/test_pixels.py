"""pixels.py: depth, transparency, orientation, resizing, colourfulness, contact sheets."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from image_samples import RGB
from numpy.typing import NDArray
from PIL import Image

from dataset import scenes
from imaging import pixels
from imaging.pixels import (
    GAP,
    Frame,
    check_size,
    colorfulness,
    contact_sheet,
    flatten,
    interpolate,
    is_coloured,
    resize,
    to_8_bits,
    to_16_bits,
)


@pytest.mark.parametrize("size", [(100_000, 100_000), (22_400, 22_400), (0, 5), (5, 0)])
def test_sizes_that_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"no pixels|more than 500 million pixels"):
        check_size(*size)
    check_size(22_300, 22_300)  # 497 million


def test_16_bits_become_the_nearest_8() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(to_8_bits(values), np.round(values / 257))
    assert to_8_bits(RGB) is RGB


@pytest.mark.parametrize(
    ("values", "white", "expected"),
    [
        ([0, 7, 65535], 65535, [0, 7, 65535]),
        ([0, 1023], 1023, [0, 65535]),
        ([0, 256], None, [0, 256]),
        ([-5, 10], None, [0, 2570]),
        ([0.0, 0.5], None, [0, 32768]),
        ([0.0, 1.5], None, [0, 386]),
    ],
)
def test_numbers_of_any_kind_become_16_bits(values: list[float], white: float | None, expected: list[int]) -> None:
    out = to_16_bits(np.array([values]), white)
    assert out.tolist() == [expected]
    assert out.dtype == np.uint16
    assert to_16_bits(np.array([[1, 258]], ">u2"), 65535).tolist() == [[1, 258]]  # of the other byte order


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        to_16_bits(np.array([[0.5, value]]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_flatten_composites_on_white(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "STRIP", 3)
    top = np.iinfo(dtype).max
    red = np.zeros((5, 4, 3), dtype)
    red[..., 0] = top
    alpha = np.array([0, top // 5, top // 2, top], dtype)[None].repeat(5, 0)
    expected = [[255, 255, 255], [255, 204, 204], [255, 128, 128], [255, 0, 0]]
    assert flatten(Frame(red, alpha)).tolist() == [expected] * 5
    assert flatten(Frame(red, None)).tolist() == [[[255, 0, 0]] * 4] * 5


@pytest.mark.parametrize(("height", "width"), [(12, 16), (50, 10), (48, 64)])
def test_resize_is_pillows_bicubic(height: int, width: int) -> None:
    smooth = np.array(Image.fromarray(RGB[:6, :8]).resize((32, 24), Image.Resampling.BICUBIC))
    expected = np.asarray(Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC))
    out = resize(smooth, height, width)
    assert out.shape == (height, width, 3)
    assert np.abs(out.astype(int) - expected).max() <= 1
    assert resize(RGB, 24, 32) is RGB


def test_contact_sheet_places_every_image() -> None:
    rows = [[RGB, RGB[:, :10]], [RGB[:5], 255 - RGB[:5]]]
    sheet = contact_sheet(rows, ["input", "truth"])
    assert sheet.shape == (26 + 24 + 5 + 2 * GAP, 2 * (64 + GAP) + GAP, 3)
    for row, top in zip(rows, (26, 26 + 24 + GAP), strict=True):
        for column, image in enumerate(row):
            left = GAP + column * (64 + GAP)
            height, width = image.shape[:2]
            assert np.array_equal(sheet[top : top + height, left : left + width], image)
    assert sheet[:26].min() < 100  # titles
    assert sheet[26:, :GAP].min() == 255


def formula(image: NDArray) -> float:
    """Return colourfulness as its authors write it, in float64."""
    red, green, blue = image.astype(float).transpose(2, 0, 1)
    rg, yb = red - green, 0.5 * (red + green) - blue
    return float(np.sqrt(rg.var() + yb.var()) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2))


NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
OPPOSITES = np.zeros((240, 200, 3), np.uint8)
OPPOSITES[:120, :, :2], OPPOSITES[120:, :, 2] = 255, 255  # yellow and blue: yb = 255, -255


@pytest.mark.parametrize(
    "image",
    [
        NOISE,
        np.array([[[100, 0, 0], [0, 100, 0]]], np.uint8),
        np.array([[[90, 90, 90], [200, 200, 200]]], np.uint8),
        OPPOSITES,  # a sum that 32 bits cannot hold
        OPPOSITES[::2, ::-1],  # a view, as ImageSet cuts them
        np.full((401, 301, 3), (255, 250, 0), np.uint8),  # whose spread is nothing, but for rounding
    ],
    ids=["noise", "two", "gray", "opposites", "view", "flat"],
)
def test_colorfulness_is_that_of_its_formula(image: NDArray) -> None:
    assert colorfulness(image) == pytest.approx(formula(image), abs=1e-9 if image.std((0, 1)).any() else 1e-2)


def scene(index: int) -> NDArray:
    return np.ascontiguousarray(scenes.draw(index, 128)[0])


UNCOLOURED = {
    "gray": lambda luma: luma * [1, 1, 1],
    "sepia": lambda luma: luma * [1.07, 0.81, 0.5],
    "yellowed": lambda luma: luma * [1, 0.93, 0.76],
    "cyanotype": lambda luma: 255 * (luma / 255) ** [1.8, 1.1, 0.8],
    "stained": lambda luma: luma * np.linspace(1, 0.93, 128)[:, None, None] ** [0, 1, 3],
    "noisy": lambda luma: luma + np.random.default_rng(0).normal(0, 4, (128, 128, 3)),
    "paper": lambda _: np.full((128, 128, 3), (240, 225, 190)),
}


def test_what_counts_as_colours() -> None:
    assert not is_coloured(np.full((1, 1, 3), 99, np.uint8))
    hues = np.random.default_rng(0).integers(0, 256, (9, 1, 3), np.uint8).repeat(500, 0)  # 4500 x 1 px
    assert is_coloured(hues)
    assert is_coloured(hues.transpose(1, 0, 2))
    for index, dtype, scale in ((0, np.uint8, 1), (1, np.uint16, 257), (2, np.uint8, 1)):
        assert is_coloured(scene(index).astype(dtype) * dtype(scale))
        faded = (scene(index) @ [0.299, 0.587, 0.114])[..., None]
        for kind, make in UNCOLOURED.items():
            made = make(faded).clip(0, 255).round().astype(dtype) * dtype(scale)
            assert not is_coloured(made), kind


@pytest.mark.parametrize("kind", UNCOLOURED)
def test_a_stamp_or_a_colour_target_on_a_page_is_no_colour_of_the_page(kind: str) -> None:
    faded = (scene(0) @ [0.299, 0.587, 0.114])[..., None]
    page = UNCOLOURED[kind](faded).clip(0, 255).round().astype(np.uint8)
    stamped, measured, painted = page.copy(), page.copy(), page.copy()
    stamped[8:17, 8:16] = (220, 20, 30)  # 0.4 % of it
    measured[-8:] = np.random.default_rng(0).integers(0, 256, (16, 3)).repeat(8, 0)  # patches of 8 px, 6 %
    painted[64:, 40:100] = painted[64:, 40:100] * np.array([0.3, 0.6, 0.9])  # 23 %: a coat
    assert not is_coloured(stamped)
    assert not is_coloured(measured)
    assert is_coloured(painted) or kind == "paper"  # of two tones each can be a function of L


@pytest.mark.parametrize(
    ("mode", "antialias"),
    [("nearest", False), ("bilinear", False), ("bicubic", False), ("bilinear", True), ("bicubic", True)],
)
@pytest.mark.parametrize("size", [(5, 9), (40, 31)])
def test_interpolate_is_torchs_also_in_a_script(mode: str, antialias: bool, size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, 20, 17, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(image, size, mode=mode, antialias=antialias)
    for function in (interpolate, torch.jit.script(interpolate)):
        assert torch.equal(function(image, *size, mode, antialias), expected)


@pytest.mark.parametrize(("mode", "antialias"), [("nearest", True), ("area", False)])
def test_other_interpolations_are_refused(mode: str, antialias: bool) -> None:
    with pytest.raises(ValueError, match=f"no interpolation {mode}"):
        interpolate(torch.zeros(1, 1, 4, 4), 2, 2, mode, antialias)
