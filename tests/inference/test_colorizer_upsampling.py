"""colorizer.py at full resolution: colours end at edges, lines stay black, strips and sizes do not show."""

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import COLORIZER_KINDS, Constant, lightness, midtones, noise_image, small_colorizer
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from imaging import color
from inference.colorizer import Colorizer, enlarge, local_gain, resample, resize, strips

UPSAMPLINGS = ["bicubic", "guided"]
SIZE = 32  # px, at which the stubs work
Lab = tuple[int, int, int]
SKIN, NAVY, LEAF, WALL, BLUE, YELLOW = (
    (72, 16, 20), (22, 4, -28), (45, -35, 35), (85, 2, 10), (30, 20, -50), (85, 0, 70),
)  # fmt: skip
PAIRS = {"skin-navy": (SKIN, NAVY), "leaf-wall": (LEAF, WALL)}
FACTOR = 4  # by which the image is larger than what the network sees
gray_input = pytest.mark.parametrize(("x_kind", "y_kind"), [("L", "Lab"), ("gray", "rgb")])


class Fixed(nn.Module):
    """A generator that has one answer."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.y = y

    def forward(self, x: Tensor) -> Tensor:
        return self.y.expand(x.size(0), -1, -1, -1)


class Paint(nn.Module):
    """A generator that paints a sketch in one colour, and may forget the lines."""

    def __init__(self, rgb: tuple[float, float, float], forgets: bool) -> None:
        super().__init__()
        self.rgb, self.forgets = torch.tensor(rgb).view(1, 3, 1, 1), forgets

    def forward(self, x: Tensor) -> Tensor:
        lines = torch.ones_like(x) if self.forgets else (x + 1) / 2
        return self.rgb * lines * 2 - 1


class Stub(nn.Module):
    """A generator for L -> Lab: the input's own L after a change of it, in L units, and one ab."""

    def __init__(self, change: Callable[[Tensor], Tensor], ab: float = 0.1) -> None:
        super().__init__()
        self.change, self.ab = change, ab

    def forward(self, x: Tensor) -> Tensor:
        changed = self.change((x + 1) * 50)
        return torch.cat([changed / 50 - 1, torch.full_like(x, self.ab), torch.full_like(x, -self.ab)], 1)


def two_colours(left: Lab, right: Lab, slant: float, ink: int = 0) -> Tensor:
    """Return (1, 3, H, H): an edge off the small image's grid, with a black line of `ink` px along it."""
    side = SIZE * FACTOR
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    at = (SIZE - 3) / 2 * FACTOR + 1 + slant * (y - side / 2)
    beyond = x + 0.5 - at  # px
    rgb = [color.to_uint8(color.lab_to_rgb(torch.tensor(lab).view(1, 3, 1, 1))) for lab in (left, right)]
    image = torch.where(beyond < 0, *rgb)
    return torch.where(beyond.abs() < ink / 2, torch.zeros_like(image), image)


def colourise(truth: Tensor, x_kind: str, y_kind: str, upsampling: str, noise: float = 0.0) -> Tensor:
    """Return the gray version of a picture given the true colours of the small picture, `noise` in levels."""
    gray = color.show_input(truth, x_kind)[:, :1]
    rng = torch.Generator().manual_seed(0)
    gray = (gray + noise * torch.randn(gray.shape, generator=rng)).round().clamp(0, 255).to(torch.uint8)
    colorizer = Colorizer(nn.Identity(), x_kind, y_kind, SIZE, 8)
    y = color.encode(resample(color.rgb01(truth), SIZE, SIZE).clamp(0, 1), y_kind)
    if y_kind == "Lab":
        y = torch.cat([color.encode(colorizer.shrink(gray)[0], "L"), y[:, 1:]], 1)  # nothing to restore
    colorizer.generator, colorizer.upsampling = Fixed(y), upsampling
    return colorizer(gray)


def ciede2000(a: Tensor, b: Tensor) -> np.ndarray:
    """Return the difference of two pictures (1, 3, H, W), as (H, W)."""
    return deltaE_ciede2000(*(rgb2lab(color.rgb01(x)[0].permute(1, 2, 0).double().numpy()) for x in (a, b)))


def bleeding(truth: Tensor, x_kind: str, y_kind: str) -> list[float]:
    """Return px per row that are off by more than 5, and the sum of differences: bicubic's, then guided's."""
    found = []
    for upsampling in UPSAMPLINGS:
        off = ciede2000(colourise(truth, x_kind, y_kind, upsampling), truth)
        found += [float((off > 5).sum(1).mean()), float(off.sum(1).mean())]
    return found


@gray_input
@pytest.mark.parametrize("slant", [0.0, 0.3])
def test_colours_end_at_an_edge_and_at_ink(slant: float, x_kind: str, y_kind: str) -> None:
    for pair in ("skin-navy", "leaf-wall"):
        bicubic, _, guided, _ = bleeding(two_colours(*PAIRS[pair], slant), x_kind, y_kind)
        assert guided <= 1  # px
        assert bicubic > 0.7 * FACTOR
        broad = two_colours(*PAIRS[pair], 0.3, ink=2 * FACTOR)
        bicubic, plain, guided, total = bleeding(broad, x_kind, y_kind)
        assert guided < 0.1
        assert bicubic > 0.2 * FACTOR
        assert total < 0.8 * plain
    bicubic, plain, guided, total = bleeding(two_colours(BLUE, YELLOW, slant), x_kind, y_kind)
    limit = 0.1 if x_kind == "gray" else 0.8  # what mixes in RGB is a straight line in luma, not in L
    assert guided < limit * bicubic
    assert total < 0.6 * plain


@gray_input
def test_an_edge_of_equal_lightness_is_no_worse_than_bicubic(x_kind: str, y_kind: str) -> None:
    truth = two_colours((60, 45, 20), (60, -35, 25), 0.3)
    assert np.ptp(lightness(truth)) < 0.3
    bicubic, plain, guided, total = bleeding(truth, x_kind, y_kind)
    assert guided <= bicubic
    assert total <= plain * 1.001


@pytest.mark.parametrize(("x_kind", "y_kind"), [("L", "ab"), ("gray", "rgb")])
def test_noise_of_the_guide_stays_out_of_flat_colour(x_kind: str, y_kind: str) -> None:
    truth = two_colours(LEAF, WALL, 0.0)
    guided, plain = (color.rgb01(colourise(truth, x_kind, y_kind, way, noise=5.0)) for way in ("guided", "bicubic"))
    ab = [color.rgb_to_lab(rgb)[:, 1:] for rgb in (guided, plain, color.rgb01(truth))]
    edge = int((SIZE - 3) / 2 * FACTOR) + 1
    far = torch.cat([torch.arange(edge - 4 * FACTOR), torch.arange(edge + 5 * FACTOR, SIZE * FACTOR)])
    assert torch.equal(guided[..., far], plain[..., far])  # 4 small px off nothing knows of the edge
    near = slice(edge - 3 * FACTOR, edge + 4 * FACTOR)
    leaked, bled = ((image - ab[2])[..., near].square().mean().sqrt() for image in ab[:2])
    assert leaked < 0.45 * bled


@pytest.mark.parametrize("levels", [3.0, 20.0])
def test_noise_of_guide_and_colour_that_agrees_by_chance_leaks_little(levels: float) -> None:
    rng, side = torch.Generator().manual_seed(0), SIZE * FACTOR
    gray = (128 + levels * torch.randn(1, 1, side, side, generator=rng)).clamp(0, 255) / 255
    y = (torch.tensor([20.0, 30.0]).view(1, 2, 1, 1) + 3 * torch.randn(1, 2, SIZE, SIZE, generator=rng)) / 110
    colorizer, ab = Colorizer(Fixed(y), "L", "ab", SIZE, 8), {}
    for colorizer.upsampling in UPSAMPLINGS:
        ab[colorizer.upsampling] = color.rgb_to_lab(colorizer(gray))[:, 1:]
    assert 0 < float((ab["guided"] - ab["bicubic"]).std()) < 0.0025 * levels  # units of ab


def halftone(tone: Tensor, period: float) -> Tensor:
    """Return gray (1, 1, H, W) in [0, 1] as a screen of dots at 45 degrees; paper and ink are free of them."""
    fine = F.interpolate(tone, scale_factor=3, mode="nearest")
    y, x = torch.meshgrid(*((torch.arange(side) + 0.5) / 3 for side in fine.shape[2:]), indexing="ij")
    wave = [torch.cos(2 * math.pi * diagonal / math.sqrt(2) / period) for diagonal in (x + y, x - y)]
    screen = (wave[0] + wave[1]).flatten().argsort().argsort().view_as(x) / x.numel()
    return F.avg_pool2d((screen < fine).to(torch.float32), 3)


@pytest.mark.parametrize("period", [3.0, 5.0, 7.0])
def test_colours_do_not_follow_the_dots_of_screentone(period: float) -> None:
    factor, side = 6, SIZE * 6
    y, x = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    regions = (x > 0.5 + 0.2 * torch.sin(5 * y)).to(torch.float32) + 2 * (y > 0.6)
    tone = torch.tensor([0.3, 0.55, 1.0, 0.7])[regions.long()][None, None]
    chroma = torch.tensor([[0.1, -0.05, -0.1], [-0.1, 0.06, 0.05], [0.0, 0.0, 0.0], [0.12, -0.02, -0.12]])
    truth = chroma[regions.long()].permute(2, 0, 1)[None]
    page = halftone(tone + 0.08 * torch.sin(9 * x + 7 * y), period)
    seen = resample(torch.cat([page.expand(-1, 3, -1, -1), truth], 1), SIZE, SIZE)
    colorizer = Colorizer(Fixed((seen[:, :3] + seen[:, 3:]) * 2 - 1), "gray", "rgb", SIZE, 8)
    expected, off = color.clip_gamut(truth - color.luma(truth) + page, page), {}
    for colorizer.upsampling in UPSAMPLINGS:
        off[colorizer.upsampling] = float((colorizer(page) - expected).square().sum(1).sqrt().mean())
    assert off["guided"] < 1.15 * off["bicubic"], (factor, off)


def test_gain_is_a_weighted_regression_in_windows() -> None:
    rng = np.random.default_rng(0)
    guide, planes = rng.random((6, 7)), rng.random((2, 6, 7))
    planes[0] += 3 * guide
    gains = np.zeros((2, 6, 7))
    for i, j in np.ndindex(6, 7):
        window = np.s_[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
        g, colours = guide[window].ravel(), [plane[window].ravel() for plane in planes]
        slopes = np.array([np.polyfit(g, c, 1)[0] for c in colours])
        fit = (slopes**2).sum() * g.var() / sum(c.var() for c in colours)  # R^2 of both
        gains[:, i, j] = slopes * g.var() / (g.var() + 0.04**2) * fit**2
    expected = np.stack(
        [[[gain[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].mean() for j in range(7)] for i in range(6)]
         for gain in gains]
    )  # fmt: skip
    got = local_gain(torch.from_numpy(guide)[None, None].float(), torch.from_numpy(planes)[None].float())
    np.testing.assert_allclose(got[0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(7, 9), (1, 5), (50, 1)])
@pytest.mark.parametrize("target", [(61, 5), (64, 300)])
def test_enlarge_is_bicubic_interpolation_row_by_row(shape: tuple[int, int], target: tuple[int, int]) -> None:
    maps = noise_image(2, 5, *shape, dtype=torch.float32)
    expected = F.interpolate(maps, target, mode="bicubic", antialias=True)
    whole = enlarge(maps, 0, target[0], *target)
    edge = 2 * target[0] // shape[0] if shape[0] > 1 else 0  # rows where torch leaves pixels out, not repeats
    inner = slice(edge, target[0] - edge)
    torch.testing.assert_close(whole[:, :, inner], expected[:, :, inner], atol=1e-5, rtol=0)
    assert (whole - expected).abs().max() < 0.2
    rows = [enlarge(maps, top, 1, *target) for top in range(target[0])]
    torch.testing.assert_close(torch.cat(rows, 2), whole, atol=1e-6, rtol=0)


def test_colours_that_are_finer_than_the_picture_are_averaged() -> None:
    gray = torch.full((1, 1, 16, 20), 120, dtype=torch.uint8)
    seen, _ = Colorizer(nn.Identity(), "L", "ab", SIZE * 2, 8).shrink(gray)
    fine = (noise_image(1, 2, *seen.shape[2:], dtype=torch.float32) - 0.5) * 0.4
    out = Colorizer(Fixed(fine), "L", "ab", SIZE * 2, 1)(color.rgb01(gray))
    torch.testing.assert_close(color.rgb_to_lab(out)[:, 1:] / 110, resize(fine, 16, 20), atol=1e-3, rtol=0)


def lines(width: int) -> Tensor:
    """Return sketches (FACTOR, 1, H, H) of a black line at each offset from the grid, every other slanted."""
    side = SIZE * FACTOR
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    at = [SIZE // 2 * FACTOR + i + 0.3 * (i % 2) * (y - side / 2) for i in range(FACTOR)]
    inked = torch.stack([(x >= a) & (x < a + width) for a in at]).unsqueeze(1)
    return (~inked).to(torch.uint8) * 255


@pytest.mark.parametrize("width", [1, 4, 8])
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_white_lines_on_black_get_no_rims(width: int, upsampling: str) -> None:
    colorizer = Colorizer(Paint((0.46, 0.46, 0.46), True), "sketch", "rgb", SIZE, 8)
    colorizer.upsampling = upsampling
    out = colorizer(255 - lines(width))
    assert (out.int() - 117).abs().max() <= 1  # what the network paints; black rims had 3 to 9


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_white_shapes_on_black_get_no_rims(upsampling: str) -> None:
    sketch = torch.zeros(1, 1, SIZE * FACTOR, SIZE * FACTOR, dtype=torch.uint8)
    sketch[..., 40:90, 50:110] = 255
    colorizer = Colorizer(Paint((0.46, 0.46, 0.46), True), "sketch", "rgb", SIZE, 8)
    colorizer.upsampling = upsampling
    assert (colorizer(sketch).int() - 117).abs().max() <= 1


def test_black_lines_on_gray_stay_black() -> None:
    """As of a night scene, on paper of 45 %."""
    sketch = (lines(2).float() / 255 * 115).to(torch.uint8)
    out = Colorizer(Paint((0.8, 0.6, 0.4), True), "sketch", "rgb", SIZE, 8)(sketch)
    assert out[(sketch == 0).expand_as(out)].max() <= 24
    assert out[(sketch == 115).expand_as(out)].float().mean() > 120


@pytest.mark.parametrize(("x_kind", "width"), [("sketch", 1), ("line", 2)])
@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_lines_stay_black_and_leave_paint_clean(x_kind: str, width: int, forgets: bool, upsampling: str) -> None:
    paint, sketch = (0.8, 0.6, 0.4), lines(width)
    colorizer = Colorizer(Paint(paint, forgets), x_kind, "rgb", SIZE, 8)
    colorizer.upsampling = upsampling
    out = colorizer(sketch).float()
    off = out - torch.tensor(paint).view(1, 3, 1, 1) * 255
    distant = F.max_pool2d(255.0 - sketch, [1, 10 * FACTOR + 1], 1, [0, 5 * FACTOR]) == 0
    inked, distant = (sketch == 0).expand_as(out), distant.expand_as(out)
    assert out[inked].max() <= 8
    assert off[distant].abs().max() <= 1
    if forgets or upsampling == "guided":  # to bicubic a line is broad and gray
        assert off[~inked].max() <= 3  # halo
        assert off[~inked].min() > -15  # smudge


@pytest.mark.parametrize("shape", [(1, 3, 150, 97), (1, 1, 20, 25)], ids=str)
def test_lab_of_a_picture_in_order_keeps_its_full_lightness(shape: tuple[int, ...]) -> None:
    image = noise_image(*shape)
    out = Colorizer(Stub(lambda old: old), "L", "Lab", 32, 8)(image)
    assert np.abs(lightness(out) - lightness(image)).max() < 0.6
    assert (out.amax(1).int() - out.amin(1).int()).float().mean() > 5


def test_lab_that_is_brightened_keeps_its_detail() -> None:
    image = midtones(1, 1, 250, 250)  # noise that the network cannot see at 64 px
    out = Colorizer(Stub(lambda old: old + 20), "L", "Lab", 64, 8)(image)  # fading undone
    np.testing.assert_allclose(lightness(out) - lightness(image), 20, atol=0.7)


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("tone", [0, 255])
def test_lab_that_is_repaired_stays_repaired(factor: int, tone: int) -> None:
    size, ground = 96, 120
    clean = torch.full((1, 1, size * factor, size * factor), ground, dtype=torch.uint8)
    torn = clean.clone()
    torn[:, :, :, 40 * factor : 43 * factor] = tone  # a scratch of 3 px where the network works
    even = float(lightness(clean).mean())
    out = Colorizer(Stub(lambda old: torch.full_like(old, even)), "L", "Lab", size, 8)(torn)
    assert np.abs(lightness(torn) - even).max() > 40
    left = np.abs(lightness(out) - even)
    middle = 41 * factor + factor // 2
    assert left[..., middle].max() < 2  # gone
    assert left.max() < 12  # a trace at its edges, which full resolution has sharper
    assert left[..., : 20 * factor].max() < 1  # and nothing happened elsewhere
    assert left[..., 60 * factor :].max() < 1


@pytest.mark.parametrize(("x_kind", "y_kind"), COLORIZER_KINDS)
def test_strips_do_not_show(x_kind: str, y_kind: str) -> None:
    colorizer = small_colorizer(x_kind, y_kind)
    for shape in ((1, 3, 37, 53), (3, 1, 50, 21)):
        colorizer.strip, image = 10**9, noise_image(*shape, dtype=torch.float32)
        whole = colorizer(image)
        for colorizer.strip in (1, 7 * shape[3]):
            torch.testing.assert_close(colorizer(image), whole, atol=1e-6, rtol=0)


class Memory(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}  # place -> bytes
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.alive:
                storage = tensor.untyped_storage()
                self.alive[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage.data_ptr(), None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


def test_memory_beside_the_result_does_not_grow_with_the_image() -> None:
    colorizer, peaks = Colorizer(Constant(3, 0.1), "gray", "rgb", 16, 8), {}
    for side, colorizer.strip in ((200, 2**11), (400, 2**11), (400, 2**30)):
        image = torch.full((1, 3, side, side), 99, dtype=torch.uint8)
        with Memory() as memory:
            colorizer(image)
        peaks[side, colorizer.strip] = memory.peak
    image_and_result, rows = 2 * 3 * (400**2 - 200**2), 6 * 16 * 4 * (400 - 200)  # bytes
    assert peaks[400, 2**11] - peaks[200, 2**11] < image_and_result + rows
    assert peaks[400, 2**30] > 8 * peaks[400, 2**11]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("x_kind", "y_kind"), COLORIZER_KINDS)
def test_strips_do_not_show_on_a_gpu(x_kind: str, y_kind: str) -> None:
    colorizer = small_colorizer(x_kind, y_kind).cuda()
    image = noise_image(2, 3, 150, 97, dtype=torch.float32).cuda()
    assert len(strips(image, 97 * 2)) == math.ceil(150 / 16)  # sixteen rows at a time
    whole = colorizer(image)
    colorizer.strip = 1
    torch.testing.assert_close(colorizer(image), whole, atol=1e-4, rtol=0)
