"""Parity with scikit-image and torchmetrics, and what each metric can and cannot see."""

import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from config import METRICS
from evaluation import metrics
from evaluation.deep_metrics import NETWORKS
from evaluation.metrics import MIN_SIZE, PER_IMAGE, Pictures, ciede2000, ssim
from imaging import color, pixels
from imaging.pixels import Array, resize

# Sharma, Wu and Dalal 2005, table 1: L a b, L a b, Delta E
SHARMA = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425 / 50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412 / 50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000 / 50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669 / 50 -1 2 50 0 0 2.3669
50 2.4900 -0.0010 50 -2.4900 0.0009 7.1792 / 50 2.4900 -0.0010 50 -2.4900 0.0010 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0011 7.2195 / 50 2.4900 -0.0010 50 -2.4900 0.0012 7.2195
50 -0.0010 2.4900 50 0.0009 -2.4900 4.8045 / 50 -0.0010 2.4900 50 0.0010 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0011 -2.4900 4.7461 / 50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492 / 50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030 / 50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000 / 50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000 / 50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def picture(seed: int = 0, low: int = 40, high: int = 200, shape: tuple[int, int] = (48, 56)) -> Array:
    """Return a smooth colour picture."""
    return resize(np.random.default_rng(seed).integers(low, high, (6, 7, 3), np.uint8), *shape)


def noise(seed: int, low: int, high: int, shape: tuple[int, int] = (48, 56)) -> Array:
    """Return a picture of independent levels in [low, high)."""
    return np.random.default_rng(seed).integers(low, high, (*shape, 3), np.uint8)


def planes(*pictures: Array) -> Tensor:
    """Return pictures (H, W, 3) as one batch (N, 3, H, W)."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def batch(*pictures: Array) -> Pictures:
    return Pictures(planes(*pictures))


def value(metric: str, target: Array, output: Array) -> float:
    """Return a metric of one pair."""
    (result,) = PER_IMAGE[metric](batch(target), batch(output)).tolist()
    return result


def recoloured(image: Array, matrix: list[list[float]]) -> Array:
    """Return the picture with a 2x2 matrix applied to a and b, its lightness kept."""
    y = torch.einsum("ij,njhw->nihw", torch.tensor(matrix), color.encode(planes(image), "ab"))
    lightness = (color.encode(planes(image), "L") + 1) * 50
    return color.to_uint8(color.join_lab(lightness, y))[0].permute(1, 2, 0).numpy()


TARGET, OUTPUT = picture(0), picture(1)
LARGE = {"shape": (180, 200)}  # px, enough for every metric
# name -> target and output, of many kinds; neither side is a multiple of anything
PAIRS = {
    "smooth": (TARGET, OUTPUT),
    "noise": (noise(0, 0, 256), noise(1, 0, 256)),
    "near": (TARGET, TARGET + np.uint8(1)),
    "negative": (noise(0, 0, 256), 255 - noise(0, 0, 256)),
    "dark": (noise(0, 0, 30), noise(1, 0, 30)),
    "bright": (noise(0, 230, 256), noise(1, 200, 256)),
    "black and white": (np.zeros_like(TARGET), np.full_like(TARGET, 255)),
    "flat": (np.full_like(TARGET, 77), TARGET),
    "gray": (np.repeat(TARGET[..., :1], 3, 2), TARGET),
    "narrow": (picture(2, shape=(91, 7)), picture(3, shape=(91, 7))),
    "smallest": (noise(4, 0, 256, (7, 7)), noise(5, 0, 256, (7, 7))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_psnr_and_ssim_match_scikit_image(name: str) -> None:
    target, output = PAIRS[name]
    expected = peak_signal_noise_ratio(target, output, data_range=255)
    assert value("psnr_db", target, output) == pytest.approx(expected, abs=1e-5)
    expected = structural_similarity(target, output, data_range=255, channel_axis=2)
    assert value("ssim", target, output) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("level", [0, 1, 128, 254])
@pytest.mark.parametrize("metric", ["ssim", "s0_ssim"])
def test_ssim_of_low_contrast_matches_scikit_image(metric: str, level: int) -> None:
    shape = (16, 16)
    target, other = noise(0, level, level + 2, shape), noise(1, level, level + 2, shape)
    for output in (np.full_like(target, level), other, noise(2, 0, 256, shape)):
        pair, options = (target, output), {"data_range": 255, "channel_axis": 2}
        if metric == "s0_ssim":  # where the constants that steady the fraction are smallest
            pair = tuple(np.asarray(Image.fromarray(image).convert("L")) for image in pair)
            options = {"data_range": max(1, int(np.ptp(pair[0])))}
        expected = structural_similarity(*pair, **options)
        assert value(metric, target, output) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_colour_errors_match_scikit_image(name: str) -> None:
    target, output = (rgb2lab(image) for image in PAIRS[name])
    expected = ((target[..., 1:] - output[..., 1:]) ** 2).mean()
    assert value("ab_mse", *PAIRS[name]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    expected = deltaE_ciede2000(target, output).mean()
    assert value("ciede2000", *PAIRS[name]) == pytest.approx(expected, abs=1e-4)


def test_ciede2000_is_that_of_its_authors() -> None:
    table = np.array([line.split() for line in re.split(r"[/\n]", SHARMA.strip())], float)
    assert table.shape == (34, 7)
    sides = []
    for lab in (table[:, :3], table[:, 3:6]):
        side = Pictures(torch.zeros(34, 3, 1, 1, dtype=torch.uint8))
        side.kept["lab"] = torch.from_numpy(lab)[..., None, None]  # (34, 3, 1, 1) float64
        sides.append(side)
    turned = table[:, 6].copy()
    turned[13] = 4.7461  # of pair 14, half a turn apart, where a rounding error says which is the shorter way
    for pair in (sides, sides[::-1]):
        found = ciede2000(*pair).numpy()
        odd = np.minimum(np.abs(found - table[:, 6]), np.abs(found - turned))
        assert odd.max() < 6e-5  # published to 4 digits


def test_ciede2000_of_single_colours_matches_scikit_image() -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (2, 20_000, 3), np.uint8)
    colours[0, :2000] = colours[0, :2000, :1]  # gray against any colour
    colours[:, 1000:3000] = colours[:, 1000:3000, :1]  # gray against gray
    colours[1, 4000:8000] = 255 - colours[0, 4000:8000]  # about half a turn of hue
    near = colours[0, 8000:].astype(int) + rng.integers(-3, 4, colours[0, 8000:].shape)
    colours[1, 8000:] = near.clip(0, 255)
    target, output = (Pictures(torch.from_numpy(side)[..., None, None]) for side in colours)
    expected = deltaE_ciede2000(*(rgb2lab(side[:, None])[:, 0] for side in colours))
    hues = [np.arctan2(*rgb2lab(side[:, None])[:, 0, :0:-1].T) for side in colours]
    assert (np.abs(hues[0] - hues[1]) > np.pi).sum() > 500  # the shorter way goes through 0
    odd = np.abs(ciede2000(target, output).numpy() - expected) / expected.clip(1)
    assert odd.max() < 2e-3  # next to half a turn, a rounding error decides which way the mean hue lies
    assert np.quantile(odd, 0.999) < 1e-4


def test_ms_ssim_matches_torchmetrics() -> None:
    shape = (177, 183)
    pictures = [*(picture(seed, shape=shape) for seed in range(2)), noise(0, 0, 256, shape)]
    for output in pictures[1:]:
        expected = multiscale_structural_similarity_index_measure(
            planes(output).double(), planes(pictures[0]).double(), data_range=255.0
        )
        assert value("ms_ssim", pictures[0], output) == pytest.approx(float(expected), abs=1e-5)
    # fine structure reversed, coarse kept: a fractional power of a negative number would be NaN
    grain = (np.indices(shape).sum(0) % 2 * 40).astype(np.uint8)[..., None]
    assert value("ms_ssim", pictures[0] + grain, pictures[0] + 40 - grain) == 0.0
    assert value("ssim", pictures[0] + grain, pictures[0] + 40 - grain) < 0


def test_least_sizes_are_those_of_the_references() -> None:
    small = noise(0, 0, 256, (MIN_SIZE["ssim"] - 1, 40))
    with pytest.raises(ValueError, match="win_size exceeds image extent"):
        structural_similarity(small, small, channel_axis=2)
    for metric in ("ssim", "s0_ssim"):  # which load_metrics does not ask for
        assert not np.isfinite(value(metric, small, small))
    x = torch.rand(1, 3, MIN_SIZE["ms_ssim"] - 1, 200)
    with pytest.raises(ValueError, match="height must be larger than"):
        multiscale_structural_similarity_index_measure(x, x, data_range=1.0)
    assert (MIN_SIZE["ssim"], MIN_SIZE["s0_ssim"], MIN_SIZE["ms_ssim"]) == (7, 7, 176)


def test_identical_pictures() -> None:
    same = picture(**LARGE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no division by zero on the way
        values = {name: value(name, same, same.copy()) for name in PER_IMAGE}
    assert values["psnr_db"] == values["s0_psnr_db"] == 100.0
    assert [values[name] for name in ("ssim", "s0_ssim", "ms_ssim")] == pytest.approx([1.0] * 3, abs=1e-6)
    assert values["ab_mse"] == values["ciede2000"] == values["colorfulness_error"] == 0.0
    assert values["colorfulness"] == values["colorfulness_truth"] > 10


@pytest.mark.parametrize("metric", PER_IMAGE)
def test_a_pictures_score_does_not_depend_on_its_neighbours(metric: str) -> None:
    targets = [picture(0, **LARGE), picture(1, 0, 20, **LARGE), np.full_like(picture(0, **LARGE), 90)]
    outputs = [picture(3, **LARGE), noise(0, 0, 40, **LARGE), noise(1, 0, 256, **LARGE)]
    together = PER_IMAGE[metric](batch(*targets), batch(*outputs))
    alone = [value(metric, *pair) for pair in zip(targets, outputs, strict=True)]
    assert (together.shape, together.dtype) == ((3,), torch.float64)
    assert together.tolist() == pytest.approx(alone, rel=1e-9)
    assert len(set(alone)) == 3
    backwards = PER_IMAGE[metric](batch(*targets[::-1]), batch(*outputs[::-1]))
    assert backwards.tolist() == pytest.approx(alone[::-1], rel=1e-9)


def test_gray_is_rounded_as_pillow_does() -> None:
    green, blue = np.meshgrid(np.arange(256), np.arange(256))
    for red in range(0, 256, 5):
        colours = np.stack([np.full_like(green, red), green, blue], 2).astype(np.uint8)
        expected = np.asarray(Image.fromarray(colours).convert("L"))
        np.testing.assert_array_equal(batch(colours).gray.rgb[0, 0].numpy(), expected)


def s0_gray(target: Array, output: Array) -> tuple[float, float]:
    """Return PSNR and SSIM as the anime sketch system's own script computes them."""
    target, output = (np.asarray(Image.fromarray(image).convert("L")) for image in (target, output))
    data_range = int(target.max()) - int(target.min())
    mse = ((target.astype(float) - output) ** 2).mean()
    return 10 * np.log10(data_range**2 / mse), structural_similarity(target, output, data_range=data_range)


def test_s0_gray_is_the_published_definition() -> None:
    pairs = [(TARGET, OUTPUT), (OUTPUT, TARGET), (picture(2, 100, 150), picture(3))]
    targets, outputs = (batch(*side) for side in zip(*pairs, strict=True))
    results = [metrics.s0_psnr_db(targets, outputs).tolist(), metrics.s0_ssim(targets, outputs).tolist()]
    expected = [s0_gray(*pair) for pair in pairs]  # a range for each, and that of the target
    assert results[0] == pytest.approx([pair[0] for pair in expected], abs=1e-9)
    assert results[1] == pytest.approx([pair[1] for pair in expected], abs=2e-5)
    assert abs(results[0][0] - results[0][1]) > 0.01


def test_s0_gray_of_a_flat_target_is_finite() -> None:
    flat = np.full((20, 20, 3), 77, np.uint8)
    for metric in ("s0_psnr_db", "s0_ssim"):
        assert np.isfinite(value(metric, flat, OUTPUT[:20, :20]))
    assert (value("s0_psnr_db", flat, flat), value("s0_ssim", flat, flat)) == (100.0, pytest.approx(1.0))


def better(metric: str, one: float, other: float) -> bool:
    """Tell whether a score is better than another."""
    return one > other if METRICS[metric] == "higher" else one < other


@pytest.mark.parametrize("turn", [[[0.0, -1.0], [1.0, 0.0]], [[-1.0, 0.0], [0.0, -1.0]]], ids=["quarter", "half"])
def test_wrong_hues_show_in_colour_metrics_and_hardly_in_s0(turn: list[list[float]]) -> None:
    target = picture(0, **LARGE)
    near, far = recoloured(target, [[0.9, 0.0], [0.0, 0.9]]), recoloured(target, turn)
    for metric in ("psnr_db", "ssim", "ms_ssim", "ab_mse", "ciede2000"):
        assert better(metric, value(metric, target, near), value(metric, target, far)), metric
    assert value("ab_mse", target, far) > 100 * value("ab_mse", target, near) > 0
    assert value("ciede2000", target, far) > 5 * value("ciede2000", target, near) > 0
    assert min(value("s0_ssim", target, wrong) for wrong in (near, far)) > 0.8


def test_colours_swapped_between_pictures_show_in_every_colour_metric() -> None:
    originals = [picture(0, **LARGE), recoloured(picture(1, **LARGE), [[0.3, 0.0], [0.0, 0.3]])]
    truth = planes(*originals)
    lightness, ab = (color.encode(truth, "L") + 1) * 50, color.encode(truth, "ab")
    right, wrong = (Pictures(color.to_uint8(color.join_lab(lightness, y))) for y in (0.9 * ab, 0.9 * ab.flip(0)))
    for metric in ("psnr_db", "ssim", "ms_ssim", "ab_mse", "ciede2000", "colorfulness_error"):
        scores = [PER_IMAGE[metric](Pictures(truth), pictures).tolist() for pictures in (right, wrong)]
        assert all(better(metric, *pair) for pair in zip(*scores, strict=True)), metric
    gray, colour = (
        metric(Pictures(truth), right) - metric(Pictures(truth), wrong) for metric in (metrics.s0_ssim, ssim)
    )
    assert gray.abs().max() < 0.2 < colour.min()


def test_colourfulness_is_the_outputs_and_its_error_goes_either_way() -> None:
    pictures = [TARGET, OUTPUT, np.repeat(TARGET[..., :1], 3, 2)]
    known = [pixels.colorfulness(image) for image in pictures]
    assert known[2] == 0 < min(known[:2])
    target, output = batch(*pictures), batch(*pictures[::-1])
    assert metrics.colorfulness(target, output).tolist() == known[::-1]
    assert metrics.colorfulness_truth(target, output).tolist() == known
    error = [known[0] - known[2], 0.0, known[0] - known[2]]
    assert metrics.colorfulness_error(target, output).tolist() == error


def test_a_value_is_kept_with_its_batch() -> None:
    pictures = batch(TARGET)
    assert [pictures.keep("x", lambda: 1), pictures.keep("x", lambda: 2), pictures.keep("y", lambda: 3)] == [
        1, 1, 3
    ]  # fmt: skip
    assert batch(TARGET).keep("x", lambda: 4) == 4
    assert pictures.lab is pictures.lab


def test_every_metric_has_a_home_and_a_direction() -> None:
    assert set(METRICS) == PER_IMAGE.keys() - {"colorfulness_truth"} | {"top1", "top5", *NETWORKS}
    assert set(METRICS.values()) == {"higher", "lower", "closest to the truth"}
    for metric in PER_IMAGE.keys() & METRICS.keys() - {"colorfulness"}:
        same = value(metric, picture(**LARGE), picture(**LARGE))
        assert better(metric, same, value(metric, picture(**LARGE), picture(1, **LARGE))), metric


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("metric", PER_IMAGE)
def test_cuda_computes_what_the_cpu_does(metric: str) -> None:
    target, output = (
        planes(picture(0, **LARGE), noise(0, 0, 256, **LARGE)),
        planes(picture(1, **LARGE), picture(2, **LARGE)),
    )
    expected = PER_IMAGE[metric](Pictures(target), Pictures(output))
    found = PER_IMAGE[metric](Pictures(target.cuda()), Pictures(output.cuda()))
    assert found.is_cuda
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-4)
