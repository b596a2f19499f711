"""Image -> number. Every function says its source, unit, range and which way is better.

Pictures are (H, W, 3) uint8 sRGB arrays; `target` is the truth, `output` what a network made of its input.
"""

import http.client
from pathlib import Path

import numpy as np
import torch
from cleanfid import fid as clean_fid
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import color
from images import Array, colorfulness

HIGHEST_PSNR_DB = 100.0  # identical pictures have infinite PSNR, which would swallow every mean
FEWEST_FID_IMAGES = 256  # with fewer, the bias (of order 1/N) outweighs the differences it should show
# metric -> which way is better
DIRECTIONS = {
    "psnr_db": "higher",
    "ssim": "higher",
    "ab_mse": "lower",
    "colorfulness": "closest to the truth",
    "s0_psnr_db": "higher",
    "s0_ssim": "higher",
    "fid": "lower",
}


def psnr_db(target: Array, output: Array) -> float:
    """Return peak signal-to-noise ratio on RGB in dB, at most 100; higher is better. Source: scikit-image."""
    if np.array_equal(target, output):
        return HIGHEST_PSNR_DB
    return float(min(peak_signal_noise_ratio(target, output, data_range=255), HIGHEST_PSNR_DB))


def ssim(target: Array, output: Array) -> float:
    """Return structural similarity on RGB, mean of channels, up to 1; higher is better.

    Source: Wang et al. 2004, as in scikit-image with its defaults (7x7 uniform window).
    """
    return float(structural_similarity(target, output, data_range=255, channel_axis=2))


def ab_mse(target: Array, output: Array) -> float:
    """Return the mean squared error of a and b, in Lab units squared; lower is better.

    Divide by 255^2 for the scale of systems that keep ab as (ab + 128) / 255.
    """
    pair = torch.from_numpy(np.stack([target, output])).permute(0, 3, 1, 2)  # (2, 3, H, W)
    ab = color.rgb_to_lab(color.rgb01(pair))[:, 1:]
    return float(((ab[0] - ab[1]) ** 2).mean())


def s0_gray(target: Array, output: Array) -> tuple[float, float]:
    """Return PSNR in dB and SSIM of the gray versions, as the anime sketch system defines them.

    The data range is that of each gray target, and colour plays no part: compare these with its published
    figures only, never to choose a colouriser. Higher is better.
    """
    gray_target, gray_output = (np.asarray(Image.fromarray(image).convert("L")) for image in (target, output))
    data_range = max(1, int(gray_target.max()) - int(gray_target.min()))
    similarity = structural_similarity(gray_target, gray_output, data_range=data_range)
    if np.array_equal(gray_target, gray_output):
        return HIGHEST_PSNR_DB, float(similarity)
    ratio = peak_signal_noise_ratio(gray_target, gray_output, data_range=data_range)
    return float(min(ratio, HIGHEST_PSNR_DB)), float(similarity)


def score(target: Array, output: Array) -> dict[str, float]:
    """Return every per-picture metric by name."""
    s0_psnr_db, s0_ssim = s0_gray(target, output)
    return {
        "psnr_db": psnr_db(target, output),
        "ssim": ssim(target, output),
        "ab_mse": ab_mse(target, output),
        "colorfulness": colorfulness(output),
        "colorfulness_truth": colorfulness(target),
        "s0_psnr_db": s0_psnr_db,
        "s0_ssim": s0_ssim,
    }


def fid(outputs: Path, targets: Path, images: int, device: torch.device) -> float | str:
    """Return the Frechet Inception distance of two folders, lower is better; or a sentence why there is none.

    Source: Heusel et al., arXiv 1706.08500; computed by clean-fid (Parmar et al., arXiv 2104.11222).
    """
    if images < FEWEST_FID_IMAGES:
        return f"unavailable: {images} test images, at least {FEWEST_FID_IMAGES} are needed; test on more"
    try:
        return float(
            clean_fid.compute_fid(
                str(outputs),
                str(targets),
                num_workers=0,
                device=device,
                verbose=False,
                use_dataparallel=False,
            )
        )
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())[:100]
        return (
            f"unavailable: no Inception weights ({reason}); put inception-2015-12-05.pt, "
            "published with NVIDIA's StyleGAN2-ADA metrics, whole into /tmp"
        )
