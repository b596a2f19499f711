"""color.py: parity with scikit-image, exact round trips, gamut, scripting."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import lab2rgb, rgb2lab
from torch import Tensor

from config import CHOICES
from imaging import color, line_art

INPUTS, OUTPUTS = CHOICES["input"], CHOICES["output"]
Function = Callable[..., Tensor]


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return uniform noise in [0, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def last(image: Tensor) -> np.ndarray:
    """Return (N, C, H, W) as float64 (N, H, W, C) for scikit-image."""
    return image.permute(0, 2, 3, 1).double().numpy()


def lightness_of(image: Tensor) -> Tensor:
    """Return L (N, 1, H, W) in [0, 100]."""
    return color.rgb_to_lab(color.rgb01(image))[:, :1]


def wild_lab() -> Tensor:
    """Return Lab colours of which most lie outside sRGB."""
    scale = torch.tensor([100.0, 256.0, 256.0]).view(1, 3, 1, 1)
    return noise(1, 3, 200, 200) * scale - torch.tensor([0.0, 128.0, 128.0]).view(1, 3, 1, 1)


def test_lab_matches_scikit_image() -> None:
    rgb = noise(2, 3, 150, 150)
    rgb[0, :, :20] *= 0.05  # the linear foot of both curves
    rgb[1, :, 0], rgb[1, :, 1] = 0, 1
    lab, lightness = color.rgb_to_lab(rgb), color.rgb_to_lightness(rgb)
    assert lab.shape == (2, 3, 150, 150)
    np.testing.assert_allclose(last(lab), rgb2lab(last(rgb)), atol=1e-3)
    assert torch.equal(lightness, lab[:, :1])
    assert lightness[1, 0, 0].abs().max() < 1e-4
    assert (lightness[1, 0, 1] - 100).abs().max() < 1e-4
    exact = torch.from_numpy(rgb2lab(last(rgb))).permute(0, 3, 1, 2)
    np.testing.assert_allclose(last(color.lab_to_rgb(exact)), lab2rgb(last(exact)), atol=1e-3)
    for convert, image in ((color.rgb_to_lab, rgb), (color.rgb_to_lightness, rgb), (color.lab_to_rgb, lab)):
        assert torch.equal(convert(image.half()), convert(image.half().float()))


def test_16_bit_grays_survive_lightness() -> None:
    gray = torch.arange(2**16).to(torch.uint16).view(1, 1, 256, 256)
    lightness = color.rgb_to_lightness(color.rgb01(gray))
    assert (lightness.flatten().diff() > 0).all()  # strictly: no two of 65536 levels fall together
    back = color.to_dtype(color.join_lab(lightness, torch.zeros(1, 2, 256, 256)), torch.uint16)
    off = (back.to(torch.int32) - gray.to(torch.int32)).abs()
    assert off.max() <= 1


def every_colour(step: int) -> Tensor:
    """Return every so many of the 2^24 colours, (1, 3, 1, N) uint8."""
    index = torch.arange(0, 2**24, step).view(1, 1, 1, -1)
    return torch.cat([index >> 16, (index >> 8) & 255, index & 255], 1).to(torch.uint8)


@pytest.mark.parametrize("step", [61, pytest.param(1, marks=pytest.mark.slow)])
def test_all_colours_survive_lab(step: int) -> None:
    for image in every_colour(step).split(2**20, 3):
        assert torch.equal(color.to_uint8(color.lab_to_rgb(color.rgb_to_lab(color.rgb01(image)))), image)


def test_colours_out_of_gamut_keep_lightness_and_as_much_colour_as_fits() -> None:
    lab = wild_lab()
    rgb = color.lab_to_rgb(lab)
    assert rgb.min() >= 0
    assert rgb.max() <= 1
    back = rgb2lab(last(rgb))
    np.testing.assert_allclose(back[..., 0], last(lab)[..., 0], atol=0.02)
    cut = np.abs(back[..., 1:] - last(lab)[..., 1:]).max(-1) > 1
    assert cut.mean() > 0.5
    edge = torch.minimum(rgb.amin(1), 1 - rgb.amax(1))[torch.from_numpy(cut)]
    assert edge.max() < 1e-3  # desaturated to the gamut's border, not further


def test_clip_gamut_moves_straight_towards_gray() -> None:
    linear, gray = torch.tensor([1.4, 0.2, -0.3]).view(1, 3, 1, 1), torch.full((1, 1, 1, 1), 0.4)
    keep = min(0.6 / 1.0, 0.4 / 0.7)  # the first border on the way out
    torch.testing.assert_close(color.clip_gamut(linear, gray), 0.4 + (linear - 0.4) * keep)


IMAGE = (noise(2, 3, 24, 31) * 255).to(torch.uint8)
CALLS: list[tuple[Function, tuple[Any, ...]]] = [
    (color.rgb01, (IMAGE,)),
    (color.to_uint8, (noise(2, 3, 8, 8) * 1.2,)),
    (color.linear_rgb, (noise(1, 3, 16, 16),)),
    (color.rgb_to_lab, (noise(1, 3, 64, 64),)),
    (color.rgb_to_lightness, (noise(1, 3, 64, 64),)),
    *((color.to_dtype, (noise(2, 3, 8, 8) * 1.2, dtype)) for dtype in (torch.uint8, torch.uint16)),
    (color.lab_to_rgb, (wild_lab(),)),
    *((color.encode, (IMAGE, kind)) for kind in color.CHANNELS),
    *((color.show_input, (IMAGE, kind)) for kind in INPUTS),
    *((color.decode, (color.encode(IMAGE, kind), kind, lightness_of(IMAGE))) for kind in OUTPUTS),
    (color.luma, (noise(2, 3, 8, 8),)),
    (color.join_lab, (noise(2, 1, 8, 8) * 100, noise(2, 2, 8, 8) * 2 - 1)),
    (color.recolor, (IMAGE, 20.0, -30.0)),
    (line_art.gaussian_blur, (noise(2, 3, 24, 31), 1.3)),
    (line_art.line_art, (IMAGE,)),
]


@pytest.mark.parametrize(("function", "arguments"), CALLS, ids=lambda value: getattr(value, "__name__", ""))
def test_autocast_and_scripting_change_nothing(function: Function, arguments: tuple[Any, ...]) -> None:
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    before, expected = [tensor.clone() for tensor in tensors], function(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(function(*arguments), expected)
    torch.testing.assert_close(torch.jit.script(function)(*arguments), expected, atol=1e-6, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))  # steps are done in place


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", sorted({*INPUTS, *OUTPUTS}))
def test_encode_shapes_and_ranges(kind: str, channels: int) -> None:
    x = color.encode(IMAGE[:, :channels], kind)
    assert x.shape == (2, color.CHANNELS[kind], 24, 31)
    assert x.dtype == torch.float32
    assert x.abs().max() <= 1


def test_encode_values() -> None:
    corners = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0]], dtype=torch.uint8).T.view(1, 3, 1, 3)
    red = rgb2lab(np.array([[[1.0, 0.0, 0.0]]]))[0, 0]
    expected = {
        "L": [[-1, 1, red[0] / 50 - 1]],
        "ab": [[0, 0, red[1] / 110], [0, 0, red[2] / 110]],
        "Lab": [[-1, 1, red[0] / 50 - 1], [0, 0, red[1] / 110], [0, 0, red[2] / 110]],
        **{kind: [[-1, 1, 2 * 0.299 - 1]] for kind in ("gray", "line", "gray+line")},
        "rgb": [[-1, 1, 1], [-1, 1, -1], [-1, 1, -1]],
        "sketch": [[-1, 1, 1], [-1, 1, -1], [-1, 1, -1]],
    }
    for kind, values in expected.items():
        got = color.encode(corners, kind)[0, :, 0]
        torch.testing.assert_close(got, torch.tensor(values, dtype=torch.float32), atol=1e-3, rtol=0)


def test_luma_is_that_of_bt_601() -> None:
    primaries = torch.eye(3).view(3, 3, 1, 1)  # a red, a green and a blue picture
    torch.testing.assert_close(color.luma(primaries).flatten(), torch.tensor([0.299, 0.587, 0.114]))
    ours = (color.luma(color.rgb01(IMAGE))[0, 0] * 255).numpy()
    pillow = np.asarray(Image.fromarray(IMAGE[0].permute(1, 2, 0).numpy()).convert("L")).astype(float)
    assert np.abs(ours - pillow).max() < 0.51


@pytest.mark.parametrize("kind", OUTPUTS)
def test_decode_undoes_encode(kind: str) -> None:
    image = every_colour(61)
    lightness = lightness_of(image) if kind == "ab" else torch.zeros(0)  # looked at for ab alone
    back = color.to_uint8(color.decode(color.encode(image, kind), kind, lightness))
    assert (back.int() - image.int()).abs().max() <= 1


@pytest.mark.parametrize("kind", OUTPUTS)
def test_decode_is_differentiable_and_stays_in_range(kind: str) -> None:
    y = (noise(2, color.CHANNELS[kind], 9, 9) * 3 - 1.5).requires_grad_()  # a network without tanh overshoots
    rgb = color.decode(y.to(torch.bfloat16), kind, lightness_of(IMAGE)[:, :, :9, :9])
    assert rgb.dtype == torch.float32
    assert rgb.shape == (2, 3, 9, 9)
    assert rgb.min() >= 0
    assert rgb.max() <= 1
    rgb.square().mean().backward()
    assert y.grad.isfinite().all()
    assert (y.grad != 0).float().mean() > 0.3
    corners = torch.cartesian_prod(*[torch.tensor([0, 255], dtype=torch.uint8)] * 3).T.view(1, 3, 2, 4)
    y = color.encode(corners, kind).requires_grad_()  # where roots have an infinite slope
    color.decode(y, kind, lightness_of(corners)).square().sum().backward()
    assert y.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=str)
def test_every_level_survives_rgb01_and_to_dtype(dtype: torch.dtype) -> None:
    most = torch.iinfo(dtype).max
    levels = torch.arange(most + 1).to(dtype).view(1, 1, 1, -1)
    rgb = color.rgb01(levels)
    assert (rgb.min(), rgb.max(), rgb.dtype) == (0, 1, torch.float32)
    back = color.to_dtype(rgb, dtype)
    assert back.dtype == dtype
    assert torch.equal(back, levels.expand(-1, 3, -1, -1))
    assert torch.equal(color.to_dtype(color.rgb01(levels.double() / most), dtype), back)
    between = torch.tensor([-0.1, 0.45 / most, 0.55 / most, 1 - 0.45 / most, 2.0])
    assert color.to_dtype(between, dtype).tolist() == [0, 0, 1, most, most]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_floats_keep_their_dtype_and_nan(dtype: torch.dtype) -> None:
    rgb = noise(1, 3, 9, 9)
    rgb[0, 0, 0, 0] = torch.nan
    back = color.to_dtype(rgb, dtype)
    assert back.dtype == dtype
    torch.testing.assert_close(back, rgb.to(dtype), rtol=0, atol=0, equal_nan=True)
    wild = torch.tensor([-torch.inf, -0.5, 0.25, 1.5, torch.inf, torch.nan], dtype=dtype).view(1, 1, 1, 6)
    expected = torch.tensor([0, 0, 0.25, 1, 1, torch.nan])
    torch.testing.assert_close(color.rgb01(wild)[0, 2, 0], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_recolor_keeps_lightness_and_takes_the_colour(channels: int) -> None:
    image = (80 + 40 * noise(2, channels, 12, 15)).to(torch.uint8)
    out = color.recolor(image, 5.0, -8.0)
    assert out.dtype == torch.uint8
    assert out.shape == (2, 3, 12, 15)
    lab, own = color.rgb_to_lab(color.rgb01(out)), color.rgb_to_lab(color.rgb01(image))
    assert (lab[:, :1] - own[:, :1]).abs().max() < 0.5
    torch.testing.assert_close(lab[:, 1:].mean((0, 2, 3)), torch.tensor([5.0, -8.0]), atol=0.2, rtol=0)


def test_show_input() -> None:
    gray = color.show_input(IMAGE, "L")
    assert (gray.amax(1).int() - gray.amin(1).int()).max() <= 1  # the matrices' white is 1e-4 off
    assert (color.encode(gray, "L") - color.encode(IMAGE, "L")).abs().max() < 0.01
    assert torch.equal(color.show_input(IMAGE, "sketch"), IMAGE)
    for kind in INPUTS:
        shown = color.show_input(IMAGE, kind)
        assert shown.dtype == torch.uint8
        assert shown.shape == IMAGE.shape == color.show_input(IMAGE[:, :1], kind).shape
    shown = color.show_input(IMAGE, "line")
    assert torch.equal(color.show_input(shown, "gray"), shown)  # what is shown is seen the same
    assert (shown / 255 - color.luma(color.rgb01(IMAGE))).abs().max() < 0.51 / 255
