"""colorizer.py: any size, batch and dtype; lightness and lines of the full-size input are kept."""

import copy
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.color import rgb2lab
from torch import Tensor, nn

import models
from imaging import color
from inference.colorizer import Colorizer, check_image, mirror, resample, resize, use_batch_statistics
from models import FrozenFeatures, UNet

KINDS = [  # all that a recipe can ask for
    ("L", "ab"), ("L", "Lab"), ("L", "rgb"), ("gray", "rgb"), ("line", "rgb"), ("gray+line", "rgb"),
    ("sketch", "rgb"),
]  # fmt: skip
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES = [torch.uint8, torch.uint16, *FLOATS]
SHAPES = [(1, 1, 1, 1), (1, 3, 1, 500), (2, 1, 37, 251), (1, 3, 500, 1), (3, 3, 33, 32), (2, 3, 70, 50)]
kinds = pytest.mark.parametrize(("x_kind", "y_kind"), KINDS)


class Constant(nn.Module):
    """A generator that predicts one value everywhere and remembers what it saw."""

    def __init__(self, channels: int, value: float) -> None:
        super().__init__()
        self.channels, self.value = channels, value
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x.new_full((x.size(0), self.channels, x.size(2), x.size(3)), self.value)


def build(x_kind: str, y_kind: str, size: int = 32, dropout: float = 0.5) -> Colorizer:
    """Return a Colorizer with a small seeded network of strong colours."""
    torch.manual_seed(3)
    generator = UNet(color.CHANNELS[x_kind], color.CHANNELS[y_kind], ngf=4, depth=3, dropout=dropout)
    with torch.no_grad():
        generator.last[0].weight.mul_(8.0)
    return Colorizer(generator, x_kind, y_kind, size, 8).eval()


def picture(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    return image.to(dtype) if dtype.is_floating_point else (image * torch.iinfo(dtype).max).to(dtype)


def lightness(image: Tensor) -> np.ndarray:
    """Return L (N, H, W) by scikit-image."""
    return rgb2lab(color.rgb01(image).permute(0, 2, 3, 1).double().numpy())[..., 0]


@kinds
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_size_batch_and_dtype(
    x_kind: str, y_kind: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    image = picture(*shape, dtype=dtype)
    before = image.clone()
    with torch.no_grad():
        out = build(x_kind, y_kind)(image)
    assert out.shape == (shape[0], 3, *shape[2:])
    assert out.dtype == dtype
    assert torch.equal(image, before)
    if dtype.is_floating_point:
        assert out.isfinite().all()
        assert out.min() >= 0
        assert out.max() <= 1


@kinds
def test_dtypes_agree_and_images_of_a_batch_do_not_mix(x_kind: str, y_kind: str) -> None:
    colorizer, image = build(x_kind, y_kind), picture(3, 3, 41, 50)
    with torch.no_grad():
        out = colorizer(image)
        as_float = color.to_uint8(colorizer(image.double() / 255))
        alone = torch.cat([colorizer(one[None]) for one in image])
    assert (out.int() - as_float.int()).abs().max() <= 1
    assert (out.int() - alone.int()).abs().max() <= 1


@kinds
def test_one_channel_is_a_gray_picture(x_kind: str, y_kind: str) -> None:
    colorizer, gray = build(x_kind, y_kind), picture(1, 1, 40, 30)
    with torch.no_grad():
        assert torch.equal(colorizer(gray), colorizer(gray.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.uint8, 0.6), (torch.uint16, 0.02), (torch.float32, 0.02), (torch.float64, 0.02)],
    ids=str,
)
@pytest.mark.parametrize("autocast", [False, True])
def test_lightness_is_the_inputs_at_full_resolution(
    dtype: torch.dtype, tolerance: float, autocast: bool
) -> None:
    image = picture(2, 3, 150, 97, dtype=dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = build("L", "ab")(image)
    assert np.abs(lightness(out) - lightness(image)).max() < tolerance
    rgb = color.rgb01(out)
    assert (rgb.amax(1) - rgb.amin(1)).mean() > 2 / 255  # it did add colour


def test_at_its_own_size_it_is_the_generator() -> None:
    colorizer, image = build("L", "ab"), picture(2, 3, 32, 32)
    with torch.no_grad():
        y = colorizer.generator(color.encode(image, "L"))
        expected = color.to_uint8(color.join_lab(color.rgb_to_lab(color.rgb01(image))[:, :1], y))
        assert torch.equal(colorizer(image), expected)
        sketcher = build("sketch", "rgb")
        rgb = (sketcher.generator(color.encode(image, "sketch")) + 1) / 2
        assert torch.equal(sketcher(image), color.to_uint8(rgb))


def moderate(*shape: int) -> Tensor:
    """Return a picture of midtones, to which any colour can be added within gamut."""
    return (110 + 40 * torch.rand(shape, generator=torch.Generator().manual_seed(2))).to(torch.uint8)


@pytest.mark.parametrize("x_kind", ["L", "gray"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 117])
def test_rgb_keeps_the_lightness_or_luma_it_was_given(x_kind: str, channels: int, side: int) -> None:
    class Tint(nn.Module):
        """Gray, and a little of a colour that changes from left to right."""

        def forward(self, x: Tensor) -> Tensor:
            tint = torch.linspace(-0.2, 0.2, x.size(3)).expand_as(x)
            return torch.cat([x * 0 + tint, x * 0 - 0.1, x * 0 - tint], 1)

    image = moderate(2, channels, side, side + 9)
    out = Colorizer(Tint(), x_kind, "rgb", 32, 8)(image)
    if x_kind == "L":
        kept = color.encode(out, "L") - color.encode(image, "L")
    else:
        kept = color.luma(color.rgb01(out)) - color.luma(color.rgb01(image))
    assert kept.abs().max() < 0.01  # of rounding; the other plane is off by 0.05
    assert (out.amax(1).int() - out.amin(1).int()).float().mean() > 20  # and there is colour


def test_gray_input_loses_the_colour_of_a_colour_picture() -> None:
    image, colorizer = picture(1, 3, 50, 70), build("gray", "rgb")
    luma = color.luma(color.rgb01(image))
    with torch.no_grad():
        expected = colorizer(luma)
        torch.testing.assert_close(colorizer(color.rgb01(image)), expected, atol=1e-5, rtol=0)
        for kind in ("line", "gray+line"):
            colorizer = build(kind, "rgb")
            torch.testing.assert_close(colorizer(color.rgb01(image)), colorizer(luma), atol=1e-5, rtol=0)


def test_a_gray_prediction_returns_the_gray_picture() -> None:
    image = picture(2, 3, 45, 80)
    out = Colorizer(Constant(2, 0.0), "L", "ab", 32, 8)(image)
    assert torch.equal(out, color.show_input(image, "L"))


@pytest.mark.parametrize(
    ("height", "width", "small"),
    [
        (32, 32, (32, 32)),
        (64, 64, (32, 32)),
        (128, 64, (64, 32)),
        (60, 90, (32, 48)),
        (100, 300, (21, 64)),  # the long side is twice `size` at most
        (37, 501, (5, 64)),
        (500, 1, (64, 1)),
        (1, 1, (32, 32)),
        (16, 20, (32, 40)),
    ],
)
def test_the_network_sees_the_aspect_kept(height: int, width: int, small: tuple[int, int]) -> None:
    generator = Constant(2, 0.1)
    colorizer = Colorizer(generator, "L", "ab", 32, 8)
    assert colorizer.shrink(torch.rand(1, 3, height, width)).shape[2:] == small
    colorizer(picture(1, 3, height, width))
    assert generator.seen[0].shape == (1, 1, *(-(-side // 8) * 8 for side in small))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 64), (1, 1), (9, 15)])
def test_predict_cuts_out_what_it_mirrored(height: int, width: int) -> None:
    x = torch.rand(2, 3, height, width)
    assert torch.equal(Colorizer(nn.Identity(), "sketch", "rgb", 32, 8).predict(x), x)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 17, 250])
@pytest.mark.parametrize(("multiple", "least"), [(4, 1), (8, 1), (256, 1), (8, 24), (8, 30), (16, 16)])
def test_mirror_is_numpys_symmetric_padding(length: int, multiple: int, least: int) -> None:
    missing = -max(length, least) % multiple + max(0, least - length)
    expected = np.pad(np.arange(length), (missing // 2, missing - missing // 2), "symmetric")
    assert mirror(length, multiple, least, torch.device("cpu")).tolist() == expected.tolist()
    assert len(expected) >= least
    assert len(expected) % multiple == 0


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (40, 90), (1, 1)])
def test_no_side_is_shorter_than_the_network_takes(shape: tuple[int, int]) -> None:
    generator = Constant(2, 0.1)
    out = Colorizer(generator, "L", "ab", 32, 8, 30)(picture(1, 3, *shape))
    assert out.shape[2:] == shape
    assert min(generator.seen[0].shape[2:]) >= 32


def test_resample_keeps_the_same_size_and_flat_areas() -> None:
    image = picture(1, 3, 20, 30, dtype=torch.float32)
    assert torch.equal(resample(image, 20, 30), image)
    torch.testing.assert_close(
        resample(torch.full((1, 2, 20, 30), 0.3), 41, 7), torch.full((1, 2, 41, 7), 0.3)
    )


def test_fine_texture_is_averaged_for_the_network() -> None:
    fine = picture(1, 3, 128, 128, dtype=torch.float32)  # noise of deviation 0.29
    assert Colorizer(Constant(2, 0.0), "L", "ab", 32, 8).shrink(fine).std() < 0.12


def test_use_batch_statistics_normalises_by_the_batch() -> None:
    image = picture(2, 3, 32, 32)
    colorizer = build("L", "ab", dropout=0.0)
    with torch.no_grad():
        running = colorizer(image)
        expected = build("L", "ab", dropout=0.0).train()(image)
        colorizer.apply(use_batch_statistics)
        assert torch.equal(colorizer(image), expected)
        assert not torch.equal(running, expected)
        dropping = build("L", "ab").apply(use_batch_statistics)
        assert torch.equal(dropping(image), dropping(image))  # dropout stays off


class Mean(FrozenFeatures):
    """Stands for the Danbooru network: statistics of the picture, normalised."""

    WIDTH = 512

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(3), (0.0,) * 3, (1.0,) * 3)
        self.body.running_mean = torch.tensor([0.1, 0.2, 0.3])
        self.train(False)

    def forward(self, rgb01: Tensor) -> list[Tensor]:
        return [self.body(self.normalise(rgb01)).mean((2, 3)).repeat(1, 171)[:, :512]]


def test_a_frozen_extractor_keeps_its_running_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "DanbooruFeatures", Mean)
    torch.manual_seed(0)
    generator = models.GENERATORS["unet-ext"].build(1, 3, 4, depth=3, dropout=0.0)
    before = {key: value.clone() for key, value in generator.extractor.state_dict().items()}
    colorizer, image = Colorizer(generator, "gray", "rgb", 32, 8).eval(), picture(2, 1, 32, 32)
    seen = generator.extractor(color.rgb01(image))[0]
    running = colorizer(image)
    colorizer.apply(use_batch_statistics)
    assert not torch.equal(colorizer(image), running)  # the U-Net's own did change
    assert generator.extractor.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in generator.extractor.state_dict().items())
    assert torch.equal(generator.extractor(color.rgb01(image))[0], seen)
    torch.testing.assert_close(torch.jit.script(colorizer)(image), colorizer(image))


@kinds
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_scripted_is_eager(x_kind: str, y_kind: str, batch_statistics: bool) -> None:
    colorizer = build(x_kind, y_kind)
    if batch_statistics:
        colorizer.apply(use_batch_statistics)
    scripted = torch.jit.script(colorizer)
    with torch.no_grad():
        for shape in ((2, 1, 37, 61), (1, 3, 1, 1), (1, 3, 64, 64)):
            for dtype in (torch.uint8, torch.float32):
                image = picture(*shape, dtype=dtype)
                torch.testing.assert_close(scripted(image), colorizer(image), atol=1e-5, rtol=0)


def test_a_strong_reduction_is_averaged_first_and_looks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp, interpolate, scales = torch.linspace(0, 1, 4000).expand(1, 3, 2000, 4000), F.interpolate, []

    def noted(image: Tensor, size: list[int], **options: Any) -> Tensor:
        scales.extend(before / after for before, after in zip(image.shape[2:], size, strict=True))
        return interpolate(image, size, **options)

    monkeypatch.setattr(F, "interpolate", noted)
    small = resample(ramp, 16, 32)  # 125 times smaller
    assert small.shape == (1, 3, 16, 32)
    assert max(scales) < 47  # what CUDA's filter has room for
    torch.testing.assert_close(small[0, 0, 8], torch.linspace(0, 1, 65)[1::2], atol=0.01, rtol=0)


def both(colorizer: Colorizer) -> list[nn.Module]:
    return [colorizer, torch.jit.script(colorizer)]


def reloaded(colorizer: Colorizer) -> torch.jit.ScriptModule:
    torch.jit.script(colorizer).save(Path("model.ts"))
    return torch.jit.load(Path("model.ts"))


def saturation(image: Tensor) -> Tensor:
    """Return max - min of R, G, B in levels of 255, (N, H, W)."""
    rgb = color.rgb01(image) * 255
    return rgb.amax(1) - rgb.amin(1)


@kinds
def test_16_bits_are_the_float_result_rounded(x_kind: str, y_kind: str) -> None:
    image = picture(2, 3, 41, 50, dtype=torch.uint16)
    with torch.no_grad():
        for module in both(build(x_kind, y_kind)):
            expected = (module(image.to(torch.float32) / 65535) * 65535).round()
            assert torch.equal(module(image).to(torch.float32), expected)


def test_16_bit_lightness_stays_16_bit_lightness() -> None:
    ramp = torch.linspace(9000, 60000, 4096).round().to(torch.uint16).expand(1, 1, 64, -1)
    out = Colorizer(Constant(2, 0.02), "L", "ab", 32, 8)(ramp)
    levels = [int(out[0, channel].to(torch.int32).unique().numel()) for channel in range(3)]
    assert min(levels) > 4000  # 200 of them are what 8 bits would leave
    kept = color.encode(out, "L") - color.encode(ramp, "L")  # in [-1, 1]
    print(f"\n{levels} levels of 4096, L off by {50 * float(kept.abs().max()):.1e}", end="")
    assert kept.abs().max() < 2e-5
    assert (saturation(out) > 1).all()
    exact = Colorizer(Constant(2, 0.02), "L", "ab", 32, 8)(color.rgb01(ramp).double())
    assert np.abs(lightness(exact) - lightness(ramp)).max() < 1e-2  # of two matrices with rounded digits


@kinds
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats_are_clipped_computed_in_float32_and_rounded_once(
    x_kind: str, y_kind: str, dtype: torch.dtype
) -> None:
    colorizer, image = build(x_kind, y_kind), (picture(1, 3, 40, 30, dtype=torch.float64) * 3 - 1).to(dtype)
    image[:, :, 3, 4], image[:, :, 5, 6] = -torch.inf, torch.inf
    with torch.no_grad():
        out = colorizer(image)
        assert torch.equal(out, colorizer(image.clamp(0, 1)))
        assert torch.equal(out, colorizer(image.float()).to(dtype))


@kinds
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_in_floating_point_stays_nan_and_no_other_image_has_it(
    x_kind: str, y_kind: str, dtype: torch.dtype
) -> None:
    image = picture(2, 3, 64, 48, dtype=dtype)
    clean = image[1:].clone()
    image[0, 1, 9, 9] = torch.nan
    with torch.no_grad():
        for module in both(build(x_kind, y_kind)):
            out = module(image)
            assert out[0, :, 9, 9].isnan().all()
            torch.testing.assert_close(out[1:], module(clean), atol=1e-2, rtol=0)


@kinds
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=str)
def test_integers_cannot_say_that_the_network_is_not_finite(
    x_kind: str, y_kind: str, value: float, dtype: torch.dtype
) -> None:
    colorizer = Colorizer(Constant(color.CHANNELS[y_kind], value), x_kind, y_kind, 32, 8)
    with pytest.raises(ValueError, match="output is not finite: use another precision, or another epoch"):
        colorizer(picture(1, 3, 40, 40, dtype=dtype))


@kinds
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats_say_that_the_network_is_nan(x_kind: str, y_kind: str, dtype: torch.dtype) -> None:
    colorizer = Colorizer(Constant(color.CHANNELS[y_kind], torch.nan), x_kind, y_kind, 32, 8)
    assert colorizer(picture(1, 3, 40, 40, dtype=dtype)).isnan().all()


class Broken(nn.Module):
    """A generator whose weights have diverged; scripted, where Constant is not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x / 0.0 * 0.0], 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_scripted_network_that_is_not_finite_is_an_error_too(dtype: torch.dtype) -> None:
    scripted = torch.jit.script(Colorizer(Broken(), "L", "ab", 32, 8))
    image = picture(1, 3, 40, 40, dtype=dtype)
    if dtype.is_floating_point:
        assert scripted(image).isnan().all()
    else:
        with pytest.raises(torch.jit.Error, match="the network's output is not finite"):
            scripted(image)


@kinds
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_precision_is_the_networks_alone(x_kind: str, y_kind: str, precision: torch.dtype) -> None:
    colorizer, image = build(x_kind, y_kind), picture(2, 3, 50, 70)
    with torch.no_grad():
        expected, results = colorizer(image), []
        for module in (
            copy.deepcopy(colorizer),
            torch.jit.script(copy.deepcopy(colorizer)),
            reloaded(colorizer),
        ):
            module.to(precision)
            results.append(module(image))
            assert results[-1].dtype == torch.uint8
            assert module(picture(1, 3, 9, 8, dtype=torch.float64)).dtype == torch.float64
            assert (results[-1].int() - expected.int()).float().abs().mean() < 2
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16], ids=str)
def test_the_rest_computes_in_float32(precision: torch.dtype) -> None:
    generator, image = Constant(2, 0.1), picture(1, 3, 150, 97, dtype=torch.uint16)
    out = Colorizer(generator, "L", "ab", 32, 8).to(precision)(image)
    assert generator.seen[0].dtype == precision
    assert np.abs(lightness(out) - lightness(image)).max() < 0.02


ATTRIBUTES = [("size", 64), ("strength", 0.3), ("upsampling", "bicubic"), ("strip", 1)]


@kinds
@pytest.mark.parametrize(("name", "value"), ATTRIBUTES)
def test_attributes_can_be_set_on_the_file(x_kind: str, y_kind: str, name: str, value: Any) -> None:
    colorizer, image = build(x_kind, y_kind), picture(1, 3, 70, 80, dtype=torch.float32)
    module = reloaded(colorizer)
    with torch.no_grad():
        before = module(image)
        for each in (colorizer, module):
            setattr(each, name, value)
        torch.testing.assert_close(module(image), colorizer(image), atol=1e-5, rtol=0)
        changed = (module(image) - before).abs().max()
    assert changed < 1e-6 if name == "strip" else changed > 0.01


def test_attributes_begin_as_the_contract_says() -> None:
    colorizer = build("L", "ab")
    assert (colorizer.size, colorizer.strength, colorizer.upsampling) == (32, 1.0, "guided")
    assert colorizer.strip == 2**18


@kinds
def test_strength_0_is_gray_1_unchanged_and_2_more_colourful(x_kind: str, y_kind: str) -> None:
    image = moderate(1, 3, 90, 70)
    y = 0.12 * (torch.rand(1, color.CHANNELS[y_kind], 1, 1, generator=torch.Generator().manual_seed(5)) - 0.5)

    class Tint(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1, keepdim=True) * (torch.tensor(1.0) if y.size(1) == 3 else 0.0) + y

    colorizer = Colorizer(Tint(), x_kind, y_kind, 32, 8)
    one = colorizer(image)
    found = {}
    for strength in (0.0, 1.0, 2.0):
        colorizer.strength = strength
        found[strength] = colorizer(image)
        by_luma = color.luma(found[strength].float()) - color.luma(one.float())
        off = np.abs(lightness(found[strength]) - lightness(one)) if x_kind == "L" else by_luma.abs()
        assert off.max() < 1
    assert torch.equal(found[1.0], one)
    assert saturation(found[0.0]).max() <= 1
    assert saturation(one).mean() > 2
    assert saturation(found[2.0]).mean() > 1.7 * saturation(one).mean()


@pytest.mark.parametrize("size", [32, 48, 256])
@pytest.mark.parametrize(
    "shape", [(300, 200), (77, 1000), (1999, 2000), (1, 1), (640, 427), (2, 1000), (999, 3)]
)
def test_the_network_never_sees_a_picture_squashed(size: int, shape: tuple[int, int]) -> None:
    short, long = sorted(shape)
    scale = min(size / short, 2 * size / long)
    seen = Colorizer(Constant(2, 0.1), "L", "ab", size, 8).shrink(torch.zeros(1, 1, *shape)).shape[2:]
    for got, side in zip(seen, shape, strict=True):
        assert got == 1 or abs(got - side * scale) <= 0.5
        assert got >= max(1, side * scale - 0.5)


@kinds
@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (30000, 2), (2, 30000)])
def test_a_strip_of_a_picture_works_and_is_fast(x_kind: str, y_kind: str, shape: tuple[int, int]) -> None:
    colorizer, image, began = build(x_kind, y_kind, size=256), picture(1, 3, *shape), time.perf_counter()
    with torch.no_grad():
        assert colorizer(image).shape == image.shape
    assert time.perf_counter() - began < 3  # s; it takes 0.01


SHAPE, DTYPE = "an image is (N, 1 or 3, H, W) and not empty", "floating point in [0, 1]; convert it first"
BAD_SHAPES = [
    (8, 8), (3, 8, 8), (1, 1, 3, 8, 8), (1, 2, 8, 8), (1, 4, 8, 8), (1, 8, 8, 3), (0, 3, 8, 8), (1, 3, 0, 8),
    (1, 3, 8, 0),
]  # fmt: skip
BAD_DTYPES = [torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64]
BAD_IMAGES = [
    *((torch.zeros(shape), SHAPE) for shape in BAD_SHAPES),
    *((torch.zeros(1, 3, 8, 8, dtype=dtype), DTYPE) for dtype in BAD_DTYPES),
]


@pytest.fixture(scope="module")
def scripted() -> torch.jit.ScriptModule:
    return torch.jit.script(build("L", "ab"))


@pytest.mark.parametrize(("image", "sentence"), BAD_IMAGES)
def test_what_is_no_image_is_named(image: Tensor, sentence: str, scripted: torch.jit.ScriptModule) -> None:
    for error, function in (
        (ValueError, check_image),
        (ValueError, build("L", "ab")),
        (torch.jit.Error, scripted),
    ):
        with pytest.raises(error, match=re.escape(sentence)):
            function(image)


def test_the_shape_that_was_found_is_named(scripted: torch.jit.ScriptModule) -> None:
    image = torch.zeros(5, 4, 7, 9)
    with pytest.raises(ValueError, match=r"got \[5, 4, 7, 9\]$"):
        check_image(image)
    with pytest.raises(torch.jit.Error, match=r"got \[5, 4, 7, 9\]"):
        scripted(image)


@kinds
def test_calls_may_overlap_and_repeat_bit_for_bit(x_kind: str, y_kind: str) -> None:
    images = [picture(1 + i % 2, 3, 60 + 9 * (i % 4), 50 + 7 * (i % 3)) for i in range(16)]
    colorizer = build(x_kind, y_kind)
    with torch.inference_mode():
        for module in (torch.jit.script(colorizer), colorizer):
            module.strip = 500

            def colourise(image: Tensor, module: nn.Module = module) -> Tensor:
                with torch.inference_mode():
                    return module(image)

            expected = [module(image) for image in images]
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(colourise, images * 2))
            assert all(torch.equal(a, b) for a, b in zip(found, expected * 2, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@kinds
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gpu_does_what_the_cpu_does(x_kind: str, y_kind: str, dtype: torch.dtype) -> None:
    colorizer, image = build(x_kind, y_kind), picture(2, 3, 61, 150, dtype=dtype)
    with torch.no_grad():
        expected = colorizer(image)
        for module in both(colorizer.cuda()):
            out = module(image.cuda())
            assert (out.dtype, out.device.type) == (dtype, "cuda")
            assert (color.rgb01(out.cpu()) - color.rgb01(expected)).abs().mean() < 0.5 / 255
            assert torch.equal(color.rgb01(module(image.cuda())), color.rgb01(out))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16], ids=str)
def test_a_gpu_takes_half_precision_large_reductions_and_long_strips(precision: torch.dtype) -> None:
    colorizer = build("L", "ab").cuda()
    with torch.no_grad():
        for shape in ((1, 3, 2, 30000), (1, 3, 3000, 4000), (3, 1, 70, 40)):
            image = picture(*shape).cuda()
            expected = colorizer(image)
            out = copy.deepcopy(colorizer).to(precision)(image)
            assert out.shape == expected.shape
            assert (out.int() - expected.int()).abs().float().mean() < 2


@pytest.mark.parametrize(("shape", "to"), [((500, 2), (64, 1)), ((64, 10), (50, 1)), ((2, 500), (1, 64))])
def test_resize_does_not_mind_where_channels_lie(shape: tuple[int, int], to: tuple[int, int]) -> None:
    image = torch.rand(2, 5, *shape, generator=torch.Generator().manual_seed(0))
    last = image.to(memory_format=torch.channels_last)
    assert (resize(last, *to) - resize(image, *to)).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(500, 1), (500, 2), (1, 500), (90, 60)])
@pytest.mark.parametrize(("x_kind", "y_kind"), [("L", "ab"), ("sketch", "rgb")])
def test_channels_may_lie_last(shape: tuple[int, int], x_kind: str, y_kind: str) -> None:
    model, image = build(x_kind, y_kind), picture(2, 3, *shape)
    last = image.to(memory_format=torch.channels_last)
    strided = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as a decoder gives it
    with torch.no_grad():
        expected = model(image).int()
        for other in (last, strided):
            assert (model(other).int() - expected).abs().max() <= 1
