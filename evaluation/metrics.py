"""Metrics that compare images without a network. Each one says its source, unit, range and direction.

A metric takes two batches, the ground truth and a network's outputs, and returns one number per image. What
several metrics need of a batch (Lab, local sums) is computed once and kept with it: the ground truth is
converted once for the outputs of all epochs.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imaging import color, pixels

MAX_PSNR_DB = 100.0  # of identical images it is infinite, and so would be every mean
K1, K2 = 0.01, 0.03  # of SSIM
WINDOW = 7  # px, side of the uniform window of SSIM
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, finest first
SIGMA, TAPS = 1.5, 11  # px, of the Gaussian window of MS-SSIM
# px: the windows do not fit into smaller images
MIN_SIZE = {"ssim": WINDOW, "s0_ssim": WINDOW, "ms_ssim": TAPS * 2 ** (len(SCALE_WEIGHTS) - 1)}


class Pictures:
    """A batch of images, and what metrics need of them: computed when it is first asked for, then kept."""

    def __init__(self, rgb: Tensor, labels: Tensor | None = None, precision: torch.dtype = torch.float32) -> None:
        """Take (N, 3, H, W) uint8 sRGB or (N, 1, H, W) gray; classes (N,) int64; the dtype of local sums."""
        self.rgb, self.labels, self.precision = rgb, labels, precision
        self.kept: dict[str, Any] = {}

    def keep(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returned the first time for this name.

        functools.cached_property would do, but before Python 3.12 it lets one thread at a time compute.
        """
        if name not in self.kept:
            self.kept[name] = compute()
        return self.kept[name]

    @property
    def lab(self) -> Tensor:
        """CIELAB, (N, 3, H, W) float32."""
        return self.keep("lab", lambda: color.rgb_to_lab(color.rgb01(self.rgb)))

    @property
    def centred(self) -> Tensor:
        """Levels in [-128, 127], (N, 1|3, H, W): the sums of their squares are exact in float32."""
        return self.keep("centred", lambda: self.rgb.to(self.precision).sub_(128.0))

    @property
    def squares(self) -> Tensor:
        """Squares of the centred levels, (N, 1|3, H, W)."""
        return self.keep("squares", self.centred.square)

    @property
    def means(self) -> Tensor:
        """Means of the centred levels in the windows of SSIM, (N, 1|3, H-6, W-6)."""
        return self.keep("means", lambda: window_sums(self.centred).div_(WINDOW**2))

    @property
    def colorfulness(self) -> Tensor:
        """What pixels.colorfulness returns of each image, (N,) float64."""

        def compute() -> Tensor:
            images = self.rgb.permute(0, 2, 3, 1).cpu().numpy()  # (N, H, W, 3)
            values = [pixels.colorfulness(image) for image in images]
            return torch.tensor(values, dtype=torch.float64, device=self.rgb.device)

        return self.keep("colorfulness", compute)

    @property
    def gray(self) -> "Pictures":
        """The images in gray (N, 1, H, W), rounded as by Pillow's convert("L"); for the s0 metrics."""

        def compute() -> Pictures:
            red, green, blue = self.rgb.int().split(1, 1)
            gray = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16
            return Pictures(gray.to(torch.uint8), precision=torch.float64)  # as the range may be tiny

        return self.keep("gray", compute)


Metric = Callable[[Pictures, Pictures], Tensor]  # (ground truth, output) -> (N,) float64


def psnr_db(target: Pictures, output: Pictures, data_range: Tensor | float = 255.0) -> Tensor:
    """Return the peak signal-to-noise ratio of RGB in dB, at most 100; higher is better.

    Source: as scikit-image's peak_signal_noise_ratio.
    """
    mse = (target.centred - output.centred).square_().mean((1, 2, 3)).double()
    return (10.0 * torch.log10(data_range**2 / mse)).clamp(max=MAX_PSNR_DB)


def window_sums(x: Tensor) -> Tensor:
    """Return the sums of all 7 x 7 windows, (N, C, H, W) -> (N, C, H-6, W-6), by shifted additions."""
    for dim in (-2, -1):
        n = x.shape[dim]
        pairs = x.narrow(dim, 0, n - 1) + x.narrow(dim, 1, n - 1)
        total = pairs.narrow(dim, 0, n - 6) + pairs.narrow(dim, 2, n - 6)
        x = total.add_(pairs.narrow(dim, 4, n - 6)).add_(x.narrow(dim, 6, n - 6))
    return x


def ssim(target: Pictures, output: Pictures, data_range: Tensor | float = 255.0) -> Tensor:
    """Return the structural similarity of RGB, mean of the channels, in [-1, 1]; higher is better.

    Source: Wang et al. 2004, as in scikit-image with its defaults (7 x 7 uniform window, sample covariance).
    """
    level = torch.as_tensor(data_range, device=target.rgb.device).view(-1, 1, 1, 1).to(target.precision)
    c1, c2 = (K1 * level) ** 2, (K2 * level) ** 2
    n, c3 = WINDOW**2, c2 * (WINDOW**2 - 1)
    x, y = target.means, output.means
    squares = window_sums(target.squares + output.squares)
    products = window_sums(target.centred * output.centred)
    covariance = products.addcmul_(x, y, value=-n).mul_(2.0).add_(c3)
    variances = squares.addcmul_(x, x, value=-n).addcmul_(y, y, value=-n).add_(c3)
    x, y = x + 128.0, y + 128.0
    similarity = torch.addcmul(c1, x, y, value=2.0).mul_(covariance)
    energy = torch.addcmul(c1, x, x).addcmul_(y, y).mul_(variances)
    return similarity.div_(energy).mean((1, 2, 3)).double()


def ms_ssim(target: Pictures, output: Pictures) -> Tensor:
    """Return the multi-scale structural similarity of RGB, in [0, 1]; higher is better. Needs 176 px.

    Source: Wang, Simoncelli and Bovik 2003, as in torchmetrics with its defaults.
    """
    x, y = target.rgb.float(), output.rgb.float()
    result = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for weight in SCALE_WEIGHTS[:-1]:
        contrast = gaussian_ssim(x, y)[1].mean((1, 2, 3), dtype=torch.float64)
        result = result * contrast.clamp(min=0.0) ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    x, y = (F.pad(v, [TAPS // 2] * 4, mode="reflect") for v in (x, y))  # as torchmetrics does
    similarity = gaussian_ssim(x, y)[0].mean((1, 2, 3), dtype=torch.float64)
    return result * similarity.clamp(min=0.0) ** SCALE_WEIGHTS[-1]


def gaussian_ssim(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the SSIM maps of (N, 3, H, W) levels with Gaussian windows, and their contrast terms."""
    taps = torch.exp(-0.5 * ((torch.arange(TAPS, device=x.device) - TAPS // 2) / SIGMA) ** 2)
    filters = [band(taps / taps.sum(), side) for side in x.shape[2:]]
    mean_x, mean_y, squares, products = (filters[0] @ v @ filters[1].T for v in (x, y, x.square() + y.square(), x * y))
    c1, c2 = (K1 * 255.0) ** 2, (K2 * 255.0) ** 2
    xy, both = mean_x * mean_y, mean_x.square() + mean_y.square()
    contrast = (2.0 * (products - xy) + c2) / (squares - both + c2)
    return contrast * (2.0 * xy + c1) / (both + c1), contrast


def band(taps: Tensor, side: int) -> Tensor:
    """Return the matrix (side - K + 1, side) that convolves a column with K taps."""
    rows = side - len(taps) + 1
    offsets = torch.arange(side, device=taps.device) - torch.arange(rows, device=taps.device).view(-1, 1)
    inside = (offsets >= 0) & (offsets < len(taps))
    return taps[offsets.clamp(0, len(taps) - 1)] * inside


def ab_mse(target: Pictures, output: Pictures) -> Tensor:
    """Return the mean squared error of a and b, in Lab units squared; lower is better.

    Divide by 255^2 for the scale of systems that keep ab as (ab + 128) / 255.
    """
    return (target.lab[:, 1:] - output.lab[:, 1:]).square_().mean((1, 2, 3)).double()


def ciede2000(target: Pictures, output: Pictures) -> Tensor:
    """Return the mean colour difference Delta E 2000; 1 is just noticeable, lower is better.

    Source: Sharma, Wu and Dalal, "The CIEDE2000 color-difference formula", 2005, with kL = kC = kH = 1.
    """
    of, found = output.kept.get("ciede2000", (None, None))
    if of is not target:
        found = _ciede2000(target, output)
        output.kept["ciede2000"] = target, found
    return found


def _ciede2000(target: Pictures, output: Pictures) -> Tensor:
    l1, a1, b1 = target.lab.unbind(1)
    l2, a2, b2 = output.lab.unbind(1)
    power = ((torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2.0) ** 7
    stretch = 1.5 - 0.5 * torch.sqrt(power / (power + 25.0**7))  # 1 + G
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = torch.atan2(b1, a1), torch.atan2(b2, a2)
    turn = h2 - h1
    apart = turn.abs() > math.pi
    hue = (h1 + h2) / 2.0 + math.pi * (apart & (c1 * c2 > 0))  # of the shorter way round
    dh = 2.0 * torch.sqrt(c1 * c2) * torch.sin(turn / 2.0) * torch.where(apart, -1.0, 1.0)
    l_mean, c_mean = ((l1 + l2) / 2.0 - 50.0).square(), (c1 + c2) / 2.0
    t = 1.0 - 0.17 * torch.cos(hue - math.pi / 6.0) + 0.24 * torch.cos(2.0 * hue)
    t = t + 0.32 * torch.cos(3.0 * hue + math.pi / 30.0) - 0.20 * torch.cos(4.0 * hue - math.pi * 0.35)
    dl = (l2 - l1) / (1.0 + 0.015 * l_mean / torch.sqrt(20.0 + l_mean))
    dc = (c2 - c1) / (1.0 + 0.045 * c_mean)
    dh = dh / (1.0 + 0.015 * c_mean * t)
    degrees = torch.rad2deg(hue) % 360.0
    power = c_mean**7
    rotation = torch.sin(math.pi / 3.0 * torch.exp(-(((degrees - 275.0) / 25.0) ** 2)))
    rotation = -2.0 * torch.sqrt(power / (power + 25.0**7)) * rotation
    squared = dl.square() + dc.square() + dh.square() + rotation * dc * dh
    return squared.clamp(min=0.0).sqrt().mean((1, 2), dtype=torch.float64)


def colorfulness(target: Pictures, output: Pictures) -> Tensor:
    """Return the output's colourfulness: 0 gray, 59 quite colourful, 109 extreme; best as the ground truth's.

    Source: Hasler and Suesstrunk, "Measuring colourfulness in natural images", 2003, M^(3).
    """
    return output.colorfulness


def colorfulness_truth(target: Pictures, output: Pictures) -> Tensor:
    """Return the ground truth's colourfulness."""
    return target.colorfulness


def colorfulness_error(target: Pictures, output: Pictures) -> Tensor:
    """Return the absolute difference of the colourfulness to the ground truth's; lower is better."""
    return (output.colorfulness - target.colorfulness).abs()


def color_error(target: Pictures, output: Pictures) -> Tensor:
    """Return CIEDE2000 plus half the colourfulness error; lower is better.

    CIEDE2000 alone prefers brown to a vivid guess. docs/scores.md compares both with LPIPS over the epochs of runs.
    """
    return ciede2000(target, output) + colorfulness_error(target, output) / 2.0


def s0_range(target: Pictures) -> Tensor:
    """Return the range of every gray target (N,), at least 1: the data range of the s0 metrics."""
    low, high = target.gray.rgb.flatten(1).aminmax(dim=1)
    return (high.double() - low.double()).clamp(min=1.0)


def s0_psnr_db(target: Pictures, output: Pictures) -> Tensor:
    """Return the PSNR of the images in gray, in dB, as the anime sketch system defines it; higher is better.

    The data range is that of each gray target, and colour has no influence: compare it with the published
    figures of that system, and do not choose a colouriser by it.
    """
    return psnr_db(target.gray, output.gray, s0_range(target))


def s0_ssim(target: Pictures, output: Pictures) -> Tensor:
    """Return the SSIM of the images in gray, with the data range of s0_psnr_db; higher is better."""
    return ssim(target.gray, output.gray, s0_range(target))


# name in the score files -> metric; also the ground truth's colourfulness, to compare colorfulness with
PER_IMAGE: dict[str, Metric] = {
    "psnr_db": psnr_db, "ssim": ssim, "ms_ssim": ms_ssim, "ab_mse": ab_mse, "ciede2000": ciede2000,
    "colorfulness": colorfulness, "colorfulness_error": colorfulness_error,
    "color_error": color_error,
    "colorfulness_truth": colorfulness_truth, "s0_psnr_db": s0_psnr_db, "s0_ssim": s0_ssim,
}  # fmt: skip
