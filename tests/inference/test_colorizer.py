"""colorizer.py: any size, batch and dtype; lightness and luma of the full-size image are kept."""

import copy
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import COLORIZER_KINDS, CPU, Constant, lightness, midtones, noise_image, small_colorizer
from numpy.typing import NDArray
from torch import Tensor, nn

from imaging import color
from imaging.pixels import interpolate
from inference.checkpoint import infer
from inference.colorizer import (
    Colorizer,
    check_image,
    mirror,
    resample,
    resize,
    use_batch_statistics,
)

DTYPES = [torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = [(1, 1, 1, 1), (1, 3, 1, 500), (2, 1, 37, 251), (1, 3, 500, 1), (3, 3, 33, 32)]
kinds = pytest.mark.parametrize(("x_kind", "y_kind"), COLORIZER_KINDS)
two_kinds = pytest.mark.parametrize(("x_kind", "y_kind"), [("L", "Lab"), ("sketch", "rgb")])


def reloaded(colorizer: Colorizer) -> torch.jit.ScriptModule:
    torch.jit.script(colorizer).save(Path("model.ts"))
    return torch.jit.load(Path("model.ts"))


def saturation(image: Tensor) -> Tensor:
    """Return max - min of R, G, B in levels of 255, (N, H, W)."""
    rgb = color.rgb01(image) * 255
    return rgb.amax(1) - rgb.amin(1)


@kinds
def test_any_size_batch_and_dtype_and_all_agree(x_kind: str, y_kind: str) -> None:
    colorizer = small_colorizer(x_kind, y_kind)
    gray, rgb = noise_image(1, 1, 40, 30), noise_image(1, 3, 50, 70, dtype=torch.float32)
    assert torch.equal(colorizer(gray), colorizer(gray.expand(-1, 3, -1, -1)))
    if color.CHANNELS[x_kind] == 1 and x_kind != "L":  # sees no colour
        assert (colorizer(rgb) - colorizer(color.luma(rgb))).abs().max() <= 1e-5
    for shape in SHAPES:
        levels = noise_image(*shape)
        exact = colorizer(color.rgb01(levels)[:, : shape[1]].double())
        for dtype in DTYPES:
            high = 1 if dtype.is_floating_point else torch.iinfo(dtype).max
            image = (levels.double() / 255 * high).round(decimals=9).to(dtype)
            before = image.clone()
            out = colorizer(image)
            assert torch.equal(image, before)
            assert (out.shape, out.dtype) == ((shape[0], 3, *shape[2:]), dtype)
            found = out.double() / high
            assert 0 <= found.min() <= found.max() <= 1
            coarse = {torch.uint8: 0.6 / 255, torch.float16: 3e-2, torch.bfloat16: 0.2}.get(dtype, 1e-4)
            assert (found - exact).abs().max() < coarse, (shape, dtype)


@pytest.mark.parametrize("autocast", [False, True])
def test_lightness_is_the_images_at_full_resolution(autocast: bool) -> None:
    for dtype, tolerance in ((torch.uint8, 0.6), (torch.uint16, 0.02)):
        image = noise_image(2, 3, 150, 97, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = small_colorizer("L", "ab")(image)
        assert np.abs(lightness(out) - lightness(image)).max() < tolerance
        assert saturation(out).mean() > 2  # it did add colour


def test_at_its_own_size_it_is_the_generator() -> None:
    colorizer, image = small_colorizer("L", "ab"), noise_image(2, 3, 32, 32)
    y = colorizer.generator(color.encode(image, "L"))
    expected = color.to_uint8(color.join_lab(color.rgb_to_lab(color.rgb01(image))[:, :1], y))
    assert torch.equal(colorizer(image), expected)
    sketcher = small_colorizer("sketch", "rgb")
    rgb = (sketcher.generator(color.encode(image, "sketch")) + 1) / 2
    assert torch.equal(sketcher(image), color.to_uint8(rgb))


class Gradient(nn.Module):
    """Predicts gray, and a little of a colour that changes from left to right."""

    def forward(self, x: Tensor) -> Tensor:
        tint = torch.linspace(-0.2, 0.2, x.size(3)).expand_as(x)
        return torch.cat([x * 0 + tint, x * 0 - 0.1, x * 0 - tint], 1)


@pytest.mark.parametrize("x_kind", ["L", "gray"])
def test_rgb_keeps_the_lightness_or_luma_it_was_given(x_kind: str) -> None:
    image = midtones(2, 3, 117, 126)
    out = Colorizer(Gradient(), x_kind, "rgb", 32, 8)(image)
    if x_kind == "L":
        kept = color.encode(out, "L") - color.encode(image, "L")
    else:
        kept = color.luma(color.rgb01(out)) - color.luma(color.rgb01(image))
    assert kept.abs().max() < 0.01  # of rounding; the other plane is off by 0.05
    assert saturation(out).mean() > 20  # and there is colour


@pytest.mark.parametrize(
    ("size", "small"),
    [((32, 32), (32, 32)), ((128, 64), (64, 32)), ((60, 90), (32, 48)), ((100, 300), (21, 64)),
     ((100, 301), (32, 96)), ((1, 1), (32, 32)), ((16, 20), (32, 40))],
)  # fmt: skip
def test_the_network_sees_the_aspect_kept_and_no_side_too_short(size: tuple[int, int], small: tuple[int, int]) -> None:
    for least in (1, 30):
        generator = Constant(2, 0.1)
        colorizer = Colorizer(generator, "L", "ab", 32, 8, least)
        assert colorizer.shrink(torch.rand(1, 3, *size))[0].shape[2:] == small
        assert colorizer(noise_image(1, 3, *size)).shape[2:] == size
        assert generator.seen[0].shape[2:] == tuple(-(-max(side, least) // 8) * 8 for side in small)


@pytest.mark.parametrize(
    ("size", "small"),
    [((37, 501), (32, 433)), ((4000, 320), (400, 32)), ((500, 1), (500, 1)), ((1, 5000), (1, 1024)),
     ((100, 40000), (3, 1024))],
)  # fmt: skip
def test_a_long_strip_is_seen_in_parts_of_sensible_aspect(size: tuple[int, int], small: tuple[int, int]) -> None:
    generator = Constant(2, 0.1)
    colorizer = Colorizer(generator, "L", "ab", 32, 8)
    image = noise_image(1, 1, *size)
    assert colorizer.shrink(image)[0].shape[2:] == small
    assert colorizer(image).shape[2:] == size
    sides = sorted(generator.seen[0].shape[2:])
    assert sides == [-(-min(small) // 8) * 8, 64]  # px
    assert len(generator.seen[0]) <= max(small) / 40 + 1


class PartMean(nn.Module):
    """Predicts the mean of what it sees everywhere: each part gets another colour."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean([2, 3], keepdim=True).expand(-1, 2, x.size(2), x.size(3)) * 0.5


@pytest.mark.parametrize("lies", [False, True])
def test_colours_of_the_parts_of_a_strip_meet(lies: bool) -> None:
    image = torch.linspace(0, 255, 1200).view(1, 1, -1, 1).expand(1, 1, 1200, 90).to(torch.uint8)
    image = image.transpose(2, 3) if lies else image
    colorizer = Colorizer(PartMean(), "L", "ab", 32, 8)
    y = colorizer.predict(color.encode(colorizer.shrink(image)[0], "L"))
    y = y.transpose(2, 3) if lies else y
    along = y[0, 0, :, 16]
    assert along[-1] - along[0] > 0.6  # the ends differ
    assert 0 <= along.diff().min() <= along.diff().max() < 0.02  # and nowhere is there a step
    same = Colorizer(nn.Identity(), "sketch", "rgb", 32, 8)
    x = torch.rand(2, 3, 427, 20)
    x = x.transpose(2, 3) if lies else x
    torch.testing.assert_close(same.predict(x), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("length", [1, 7, 8, 250])
@pytest.mark.parametrize(("multiple", "least"), [(4, 1), (256, 1), (8, 30)])
def test_mirror_is_numpys_symmetric_padding_and_predict_undoes_it(length: int, multiple: int, least: int) -> None:
    missing = -max(length, least) % multiple + max(0, least - length)
    expected = np.pad(np.arange(length), (missing // 2, missing - missing // 2), "symmetric")
    assert mirror(length, multiple, least, CPU).tolist() == expected.tolist()
    x = torch.rand(2, 3, length, 5)
    assert torch.equal(Colorizer(nn.Identity(), "sketch", "rgb", 250, multiple, least).predict(x), x)


def test_a_strong_reduction_is_averaged_first_and_looks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp, scales = torch.linspace(0, 1, 4000).expand(1, 3, 2000, 4000), []

    def noted(image: Tensor, height: int, width: int, mode: str, antialias: bool) -> Tensor:
        scales.extend((image.size(2) / height, image.size(3) / width))
        return interpolate(image, height, width, mode, antialias)

    monkeypatch.setattr("inference.colorizer.interpolate", noted)
    small = resample(ramp, 16, 32)  # 125 times smaller
    assert max(scales) < 47  # what CUDA's filter can do
    torch.testing.assert_close(small[0, 0, 8], torch.linspace(0, 1, 65)[1::2], atol=0.01, rtol=0)


def test_use_batch_statistics_normalises_by_the_batch() -> None:
    image = noise_image(2, 3, 32, 32)
    colorizer = small_colorizer("L", "ab", dropout=0.0).requires_grad_(True)
    with torch.no_grad():
        expected = small_colorizer("L", "ab", dropout=0.0).train()(image)
        assert not torch.equal(colorizer(image), expected)
        assert torch.equal(colorizer.apply(use_batch_statistics)(image), expected)
    frozen = nn.BatchNorm2d(3).requires_grad_(False)  # of an extractor
    use_batch_statistics(frozen)
    assert frozen.running_mean is not None


@kinds
def test_scripted_is_eager(x_kind: str, y_kind: str) -> None:
    colorizer = small_colorizer(x_kind, y_kind)
    scripted = reloaded(colorizer)
    with torch.jit.optimized_execution(False):
        for shape, dtype in (((2, 1, 37, 61), torch.uint8), ((1, 3, 1, 1), torch.float32)):
            image = noise_image(*shape, dtype=dtype)
            torch.testing.assert_close(scripted(image), colorizer(image), atol=1e-5, rtol=0)
        image = noise_image(1, 3, 70, 80, dtype=torch.float32)
        for name, value in (("size", 64), ("upsampling", "bicubic"), ("strength", 0.3), ("strip", 200)):
            before = scripted(image)
            for module in (colorizer, scripted):  # on the file too
                setattr(module, name, value)
            torch.testing.assert_close(scripted(image), colorizer(image), atol=1e-5, rtol=0)
            changed = (scripted(image) - before).abs().max()
            assert changed < 1e-5 if name == "strip" else changed > 0.01


@kinds
def test_floats_are_clipped_and_nan_stays_where_it_is(x_kind: str, y_kind: str) -> None:
    colorizer = small_colorizer(x_kind, y_kind)
    image = noise_image(2, 3, 64, 48, dtype=torch.float64) * 2.4 - 1
    image[:, :, 3, 4], image[:, :, 5, 6] = -torch.inf, 1.5
    out = colorizer(image)
    assert torch.equal(out, colorizer(image.clamp(0, 1)))
    image[0, 1, 9, 9] = torch.nan
    found = colorizer(image)
    assert found[0, :, 9, 9].isnan().all()
    torch.testing.assert_close(found[1:], out[1:], atol=1e-2, rtol=0)


@two_kinds
def test_a_network_that_is_not_finite_is_an_error_in_integers(x_kind: str, y_kind: str) -> None:
    for value in (torch.nan, torch.inf):
        colorizer = Colorizer(Constant(color.CHANNELS[y_kind], value), x_kind, y_kind, 32, 8)
        for dtype in (torch.uint8, torch.uint16):
            with pytest.raises(ValueError, match="output is not finite: use another precision, or another"):
                colorizer(noise_image(1, 3, 40, 40, dtype=dtype))
        image = noise_image(1, 3, 40, 40, dtype=torch.float64)
        assert value == torch.inf or colorizer(image).isnan().all()


@two_kinds
def test_precision_is_the_networks_alone(x_kind: str, y_kind: str) -> None:
    colorizer, image = small_colorizer(x_kind, y_kind), noise_image(2, 3, 50, 70)
    expected, scripted = colorizer(image), reloaded(colorizer)
    for precision in (torch.float16, torch.bfloat16, torch.float64):
        with torch.jit.optimized_execution(False):
            results = [module.to(precision)(image) for module in map(copy.deepcopy, (colorizer, scripted))]
        assert torch.equal(*results)
        assert results[0].dtype == torch.uint8
        assert (results[0].int() - expected.int()).float().abs().mean() < 2
    generator, deep = Constant(2, 0.1), noise_image(1, 3, 150, 97, dtype=torch.uint16)
    out = Colorizer(generator, "L", "ab", 32, 8).half()(deep)
    assert generator.seen[0].dtype == torch.float16
    assert np.abs(lightness(out) - lightness(deep)).max() < 0.02


@kinds
def test_strength_0_is_gray_1_unchanged_and_2_more_colourful(x_kind: str, y_kind: str) -> None:
    image = midtones(1, 3, 90, 70)
    y = 0.12 * (torch.rand(1, color.CHANNELS[y_kind], 1, 1, generator=torch.Generator().manual_seed(5)) - 0.5)

    class Tint(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1, keepdim=True) * float(y.size(1) == 3) + y

    colorizer = Colorizer(Tint(), x_kind, y_kind, 32, 8)
    one, found = colorizer(image), {}
    for strength in (0.0, 1.0, 2.0):
        colorizer.strength = strength
        found[strength] = colorizer(image)
        by_luma = color.luma(found[strength].float()) - color.luma(one.float())
        off = np.abs(lightness(found[strength]) - lightness(one)) if x_kind == "L" else by_luma.abs()
        assert off.max() < 1
    assert torch.equal(found[1.0], one)
    assert saturation(found[0.0]).max() <= 1
    assert saturation(found[2.0]).mean() > 1.7 * saturation(one).mean() > 3.4


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 0), ("strip", 0), ("strength", -0.1), ("strength", 101.0), ("strength", float("nan")),
     ("upsampling", "nearest")],
)  # fmt: skip
def test_attributes_out_of_range_are_refused(name: str, value: Any) -> None:
    colorizer = small_colorizer("L", "ab")
    setattr(colorizer, name, value)
    with pytest.raises(ValueError, match=name):
        colorizer(noise_image(1, 3, 8, 8))


BAD_SHAPES = [(3, 8, 8), (1, 1, 3, 8, 8), (1, 8, 8, 3), (0, 3, 8, 8), (1, 3, 0, 8)]
BAD_DTYPES = [torch.bool, torch.int16, torch.int64, torch.complex64]


def test_what_is_no_image_is_named() -> None:
    scripted = torch.jit.script(small_colorizer("L", "ab"))
    bad = [(torch.zeros(shape), rf"not empty, got {re.escape(str(list(shape)))}") for shape in BAD_SHAPES]
    bad += [(torch.zeros(1, 3, 8, 8, dtype=dtype), "uint8, uint16, or floating point") for dtype in BAD_DTYPES]
    for image, words in bad:
        with pytest.raises(ValueError, match=words):
            check_image(image)
        with pytest.raises(torch.jit.Error, match=words):
            scripted(image)


def test_calls_may_overlap_and_repeat_bit_for_bit() -> None:
    images = [noise_image(1 + i % 2, 3, 60 + 9 * (i % 4), 50 + 7 * (i % 3)) for i in range(6)]
    colorizer = small_colorizer("L", "Lab")
    for module in (torch.jit.script(colorizer), colorizer):
        module.strip = 500

        def colourise(image: Tensor, module: nn.Module = module) -> Tensor:
            with torch.inference_mode(), torch.jit.optimized_execution(False):
                return module(image)

        expected = [colourise(image) for image in images]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(colourise, images * 2))
        assert all(torch.equal(a, b) for a, b in zip(found, expected * 2, strict=True))


def weights(before: int, after: int) -> NDArray:
    """Return the matrix (after, before) of antialiased bicubic resizing, as Pillow defines it."""
    wide, matrix = max(1.0, before / after), np.zeros((after, before))
    for i in range(after):
        centre = (i + 0.5) * before / after
        d = np.abs(np.arange(before) + 0.5 - centre) / wide
        row = np.where(d < 1, (1.5 * d - 2.5) * d * d + 1, np.where(d < 2, ((2.5 - 0.5 * d) * d - 4) * d + 2, 0))
        first, last = max(0, int(centre - 2 * wide + 0.5)), min(before, int(centre + 2 * wide + 0.5))
        matrix[i, first:last] = row[first:last] / row[first:last].sum()
    return matrix


SIDES = [(500, 1), (1, 500), (90, 60), (40, 2), (1, 1)]


@pytest.mark.parametrize("before", SIDES)
@pytest.mark.parametrize("after", [(60, 1), (1, 60), (1, 1), (500, 3), (33, 47)])
def test_resizing_is_what_its_formula_says(before: tuple[int, int], after: tuple[int, int]) -> None:
    for channels in (1, 2, 3):
        image = noise_image(2, channels, *before, dtype=torch.float32)
        rows, columns = (weights(a, b) for a, b in zip(before, after, strict=True))
        expected = np.einsum("ih,nchw,jw->ncij", rows, image.double().numpy(), columns)
        strided = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        for layout in (image, image.to(memory_format=torch.channels_last), strided):
            np.testing.assert_allclose(resize(layout, *after).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@kinds
def test_the_callers_default_dtype_changes_nothing(dtype: torch.dtype, x_kind: str, y_kind: str) -> None:
    colorizer, image = small_colorizer(x_kind, y_kind), noise_image(1, 3, 140, 37)
    scripted, expected = reloaded(colorizer), colorizer(image)
    torch.set_default_dtype(dtype)
    try:
        with torch.jit.optimized_execution(False):
            assert torch.equal(colorizer(image), expected)
            assert torch.equal(scripted(image), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@kinds
def test_the_result_has_a_gradient(x_kind: str, y_kind: str) -> None:
    colorizer = small_colorizer(x_kind, y_kind).requires_grad_(True)
    scripted = reloaded(colorizer)
    image = (noise_image(1, 3, 70, 20, dtype=torch.float32) * 0.4 + 0.3).requires_grad_(True)
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(2)) * 1e-3
    with torch.jit.optimized_execution(False):
        for module in (colorizer, scripted):
            out = module(image)
            found = torch.autograd.grad(out.mean(), [image, *module.generator.parameters()])
            assert all(gradient.isfinite().all() for gradient in found)
            assert all(gradient.abs().max() > 0 for gradient in found[:2])
            with torch.no_grad():  # a kink of ReLU or a clamp that is crossed costs a little
                step = (module(image + direction).double() - module(image - direction).double()).mean()
            assert abs(float(step - 2 * (found[0] * direction).sum())) < 0.1 * float(step.abs()) + 2e-7


def test_floats_that_cannot_be_meant_as_0_to_1_are_refused() -> None:
    colorizer = small_colorizer("L", "ab")
    for dtype in (torch.float16, torch.float32, torch.float64):
        image = noise_image(1, 3, 20, 30, dtype=torch.float32).to(dtype)
        colorizer(image * 1.4)  # what a resize overshoots
        for module, error in ((colorizer, ValueError), (torch.jit.script(colorizer), torch.jit.Error)):
            with pytest.raises(error, match=r"in \[0, 1\].*above 1.5: divide"):
                module(image * 255)


@pytest.mark.parametrize("shape", [(500, 1), (1, 500), (90, 60)])
@two_kinds
def test_channels_may_lie_last(shape: tuple[int, int], x_kind: str, y_kind: str) -> None:
    model, image = small_colorizer(x_kind, y_kind), noise_image(2, 3, *shape)
    expected, floats = model(image).int(), image.float() / 255
    last = floats.to(memory_format=torch.channels_last)
    assert (resize(last, *shape[::-1]) - resize(floats, *shape[::-1])).abs().max() < 1e-5
    strided = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as a decoder gives it
    alone = torch.cat([model(one[None]) for one in image]).int()  # images of a batch do not mix
    assert (alone - expected).abs().max() <= 1
    for other in (image.to(memory_format=torch.channels_last), strided):
        assert (model(other).int() - expected).abs().max() <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@kinds
def test_a_gpu_does_what_the_cpu_does(x_kind: str, y_kind: str) -> None:
    colorizer = small_colorizer(x_kind, y_kind)
    for dtype in DTYPES:
        image = noise_image(2, 3, 61, 150, dtype=dtype)
        expected = colorizer.cpu()(image)
        for module in (colorizer.cuda(), torch.jit.script(colorizer)):
            out = infer(module, image.cuda())
            assert (out.dtype, out.device.type) == (dtype, "cuda")
            assert (color.rgb01(out.cpu()) - color.rgb01(expected)).abs().mean() < 0.5 / 255
            for _ in range(3):  # as a service calls it, with TorchScript's optimisation; not the same to the bit
                again = module(image.cuda())
                assert (color.rgb01(again) - color.rgb01(out)).abs().max() < 1.5 / 255


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_takes_large_reductions_and_long_strips_in_half_precision() -> None:
    colorizer = small_colorizer("L", "ab").cuda()
    for shape in ((1, 3, 2, 30000), (1, 3, 3000, 4000)):
        image = noise_image(*shape).cuda()
        out = copy.deepcopy(colorizer).half()(image)
        assert (out.int() - colorizer(image).int()).abs().float().mean() < 2
