"""metrics.py: parity with scikit-image, hand-computed values, and what each metric can and cannot see."""

import urllib.error
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import color
import metrics
from images import Array, colorfulness, resize
from metrics import ab_mse, fid, psnr_db, s0_gray, score, ssim

CPU = torch.device("cpu")


def picture(seed: int = 0, low: int = 40, high: int = 200) -> Array:
    """Return a smooth colour picture."""
    return resize(np.random.default_rng(seed).integers(low, high, (6, 7, 3), np.uint8), 48, 56)


TARGET, OUTPUT = picture(0), picture(1)


def recoloured(image: Array, matrix: list[list[float]]) -> Array:
    """Return the picture with a 2x2 matrix applied to a and b, its lightness kept."""
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    y = torch.einsum("ij,njhw->nihw", torch.tensor(matrix), color.encode(planes, "ab"))
    lightness = (color.encode(planes, "L") + 1) * 50
    return color.to_uint8(color.join_lab(lightness, y))[0].permute(1, 2, 0).numpy()


def test_psnr_matches_scikit_image() -> None:
    assert psnr_db(TARGET, OUTPUT) == pytest.approx(peak_signal_noise_ratio(TARGET, OUTPUT), abs=1e-9)
    one_off = TARGET.copy()
    one_off[0, 0, 0] += 1  # 10 log10(255^2 * n) = 87.2 dB
    assert psnr_db(TARGET, one_off) == pytest.approx(10 * np.log10(255**2 * TARGET.size), abs=1e-6)


def test_psnr_of_levels_that_are_all_off_by_one() -> None:
    assert psnr_db(TARGET, TARGET + np.uint8(1)) == pytest.approx(20 * np.log10(255), abs=1e-9)


def test_ssim_matches_scikit_image_channel_by_channel() -> None:
    channels = [structural_similarity(TARGET[..., c], OUTPUT[..., c], data_range=255) for c in range(3)]
    assert ssim(TARGET, OUTPUT) == pytest.approx(np.mean(channels), abs=1e-9)


def test_ab_mse_matches_scikit_image() -> None:
    expected = ((rgb2lab(TARGET)[..., 1:] - rgb2lab(OUTPUT)[..., 1:]) ** 2).mean()
    assert ab_mse(TARGET, OUTPUT) == pytest.approx(expected, rel=1e-4)


def test_identical_pictures() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no division by zero on the way
        values = score(TARGET, TARGET)
    assert values["psnr_db"] == values["s0_psnr_db"] == 100.0
    assert values["ssim"] == values["s0_ssim"] == pytest.approx(1.0)
    assert values["ab_mse"] == 0.0
    assert values["colorfulness"] == values["colorfulness_truth"] > 10


def test_s0_gray_is_the_published_definition() -> None:
    target, output = (np.asarray(Image.fromarray(image).convert("L")) for image in (TARGET, OUTPUT))
    data_range = int(target.max()) - int(target.min())
    mse = ((target.astype(float) - output) ** 2).mean()
    expected = (
        10 * np.log10(data_range**2 / mse),
        structural_similarity(target, output, data_range=data_range),
    )
    assert data_range < 200
    assert s0_gray(TARGET, OUTPUT) == pytest.approx(expected, rel=1e-9)
    assert s0_gray(OUTPUT, TARGET) != pytest.approx(expected, rel=1e-3)  # the range is the target's


def test_s0_gray_of_a_flat_target_is_finite() -> None:
    flat = np.full((20, 20, 3), 77, np.uint8)
    assert np.isfinite(s0_gray(flat, OUTPUT[:20, :20])).all()
    assert s0_gray(flat, flat) == (100.0, 1.0)


def test_wrong_colours_show_in_colour_metrics_and_hardly_in_s0() -> None:
    near = score(TARGET, recoloured(TARGET, [[0.9, 0.0], [0.0, 0.9]]))
    far = score(TARGET, recoloured(TARGET, [[-1.0, 0.0], [0.0, -1.0]]))  # every hue its opposite
    assert far["ab_mse"] > 100 * near["ab_mse"] > 0
    assert far["psnr_db"] < near["psnr_db"] - 20
    assert far["ssim"] < near["ssim"] - 0.8
    assert min(near["s0_ssim"], far["s0_ssim"]) > 0.8


def test_score_calls_every_metric_on_the_right_picture() -> None:
    values = score(TARGET, OUTPUT)
    s0_psnr_db, s0_ssim = s0_gray(TARGET, OUTPUT)
    assert values == {
        "psnr_db": psnr_db(TARGET, OUTPUT),
        "ssim": ssim(TARGET, OUTPUT),
        "ab_mse": ab_mse(TARGET, OUTPUT),
        "colorfulness": colorfulness(OUTPUT),
        "colorfulness_truth": colorfulness(TARGET),
        "s0_psnr_db": s0_psnr_db,
        "s0_ssim": s0_ssim,
    }
    assert set(metrics.DIRECTIONS) == set(values) - {"colorfulness_truth"} | {"fid"}


def test_fid_of_too_few_images_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.clean_fid, "compute_fid", lambda *_, **__: pytest.fail("computed"))
    assert fid(Path("a"), Path("b"), 255, CPU) == (
        "unavailable: 255 test images, at least 256 are needed; test on more"
    )


def test_fid_without_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> float:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(metrics.clean_fid, "compute_fid", offline)
    reason = fid(Path("a"), Path("b"), 256, CPU)
    assert isinstance(reason, str)
    assert reason.startswith("unavailable: no Inception weights (<urlopen error no route to host>); put")


def test_fid_is_clean_fids(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def compute(first: str, second: str, **options: Any) -> np.float64:
        calls.append((first, second, options["num_workers"], options["device"]))
        return np.float64(12.5)

    monkeypatch.setattr(metrics.clean_fid, "compute_fid", compute)
    value = fid(Path("outputs"), Path("targets"), 256, CPU)
    assert (value, type(value)) == (12.5, float)
    assert calls == [("outputs", "targets", 0, CPU)]
