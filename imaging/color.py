"""Colour in torch: sRGB <-> CIELAB, images <-> network tensors, gamut clipping.

Every function is batched, runs on any device, can be scripted, and computes in float32 also under autocast:
element-wise operations alone are used, no matrix product, which autocast would round to bfloat16.

Sources: IEC 61966-2-1 (sRGB), CIE 15 (Lab), D65 white and matrix as in scikit-image.
"""

from typing import Tuple  # noqa: UP035  TorchScript knows this alone

import torch
from torch import Tensor

# kind of network tensor -> its channels, see encode
CHANNELS = {"L": 1, "gray": 1, "line": 1, "gray+line": 1, "sketch": 3, "ab": 2, "rgb": 3, "Lab": 3}


def rgb01(image: Tensor) -> Tensor:
    """Return an image (N, 1|3, H, W) as float32 RGB (N, 3, H, W) in [0, 1]; one channel is repeated.

    uint8 is in [0, 255], uint16 in [0, 65535], and floating point is clipped to [0, 1].
    """
    if image.dtype == torch.uint8:
        rgb = image.to(torch.float32) / 255.0
    elif image.dtype == torch.uint16:
        rgb = image.to(torch.float32) / 65535.0
    else:
        rgb = image.to(torch.float32).clamp(0.0, 1.0)
    return rgb.expand(-1, 3, -1, -1)


def to_uint8(rgb: Tensor) -> Tensor:
    """Return RGB, clipped to [0, 1], as uint8, rounded to nearest."""
    return to_dtype(rgb, torch.uint8)


def to_dtype(rgb: Tensor, dtype: torch.dtype) -> Tensor:
    """Return RGB in [0, 1] in a dtype that rgb01 takes; uint8 and uint16 are rounded to nearest."""
    if dtype == torch.uint8 or dtype == torch.uint16:
        white = 255.0 if dtype == torch.uint8 else 65535.0
        return (rgb.clamp(0.0, 1.0) * white).round().to(dtype)
    return rgb.to(dtype)


def linear_rgb(rgb: Tensor) -> Tensor:
    """Return linear RGB of sRGB, both in [0, 1]."""
    upper = rgb.clamp(min=0.04045)  # where the linear segment ends; torch.where and ** take twice as long
    line = (rgb - upper).div_(12.92)
    return line.add_(upper.add_(0.055).div_(1.055).log_().mul_(2.4).exp_())  # into `line`: a gradient needs exp


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB (N, 3, H, W) in [0, 1] to CIELAB (D65, 2 degrees).

    Returns float32 of the same shape, L in [0, 100], a and b in [-108, 99].
    """
    linear = linear_rgb(rgb.to(torch.float32))
    x = _weighted(linear, 0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047)
    y = _weighted(linear, 0.212671, 0.715160, 0.072169)
    z = _weighted(linear, 0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883)
    fx, fy, fz = _lab_root(torch.stack([x, y, z], 1)).unbind(1)
    return torch.stack([(116.0 * fy).sub_(16.0), (fx - fy).mul_(500.0), (fy - fz).mul_(200.0)], 1)


def rgb_to_lightness(rgb: Tensor) -> Tensor:
    """Return only the L of rgb_to_lab, (N, 1, H, W) in [0, 100], at half its cost."""
    y = _weighted(linear_rgb(rgb.to(torch.float32)), 0.212671, 0.715160, 0.072169)
    return 116.0 * _lab_root(y.unsqueeze(1)) - 16.0


def _weighted(rgb: Tensor, red: float, green: float, blue: float) -> Tensor:
    """Return a weighted sum (N, H, W) of the channels; in place, as new memory takes most of the time."""
    return (rgb[:, 0] * red).add_(rgb[:, 1], alpha=green).add_(rgb[:, 2], alpha=blue)


def _lab_root(xyz: Tensor) -> Tensor:
    """Return Lab's f of XYZ relative to white: a cube root, linear below 0.008856."""
    upper = xyz.clamp(min=0.008856)
    line = (xyz - upper).mul_(7.787)
    return line.add_(upper.log_().div_(3.0).exp_())


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert CIELAB (N, 3, H, W), L in [0, 100], to float32 sRGB of the same shape in [0, 1].

    Colours outside sRGB are desaturated at the same L until they fit.
    """
    lightness, a, b = lab.to(torch.float32).unbind(1)
    fy = (lightness + 16.0) / 116.0
    f = torch.stack([fy + a / 500.0, fy, fy - b / 200.0], 1)
    xyz = torch.where(f > 0.2068966, f * f * f, (f - 16.0 / 116.0) / 7.787)
    x, y, z = xyz.unbind(1)  # the rows of the inverse matrix are scaled so that white is exactly (1, 1, 1)
    x, z = x * 0.95047, z * 1.08883
    red = 3.240457143 * x - 1.537140042 * y - 0.498532607 * z
    green = -0.969265039 * x + 1.876009528 * y + 0.041556363 * z
    blue = 0.055642126 * x - 0.204024787 * y + 1.057225293 * z
    linear = clip_gamut(torch.stack([red, green, blue], 1), y.unsqueeze(1))
    curve = 1.055 * linear.clamp(min=1e-6) ** (1.0 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curve, linear * 12.92)


def clip_gamut(linear: Tensor, luminance: Tensor) -> Tensor:
    """Bring linear RGB (N, 3, H, W) of any range into [0, 1]; `luminance` is its Y (N, 1, H, W).

    Colours outside the gamut move straight towards the gray of their luminance, which keeps L.
    """
    gray = luminance.clamp(0.0, 1.0)
    offset = linear - gray
    limit = torch.where(offset > 0, 1.0 - gray, gray)
    keep = (limit / offset.abs().clamp(min=1e-8)).amin(1, keepdim=True).clamp(max=1.0)  # (N, 1, H, W)
    return (gray + offset * keep).clamp(0.0, 1.0)


def luma(rgb: Tensor) -> Tensor:
    """Return the luma Y' (N, 1, H, W) of RGB (N, 3, H, W). Source: ITU-R BT.601."""
    return 0.299 * rgb[:, :1] + 0.587 * rgb[:, 1:2] + 0.114 * rgb[:, 2:]


def encode(image: Tensor, kind: str) -> Tensor:
    """Return an image, as rgb01 takes it, as a network tensor: float32 in [-1, 1].

    L -> (N, 1, H, W) = L/50 - 1; ab -> (N, 2, H, W) = ab/110; Lab -> (N, 3, H, W), both;
    gray, line, gray+line -> (N, 1, H, W), luma; sketch, rgb -> (N, 3, H, W).
    """
    rgb = rgb01(image)
    if kind == "L" or kind == "ab" or kind == "Lab":  # a script cannot look into a tuple of strings
        lab = rgb_to_lab(rgb)
        lightness = lab[:, :1] / 50.0 - 1.0  # (N, 1, H, W)
        ab = (lab[:, 1:] / 110.0).clamp(-1.0, 1.0)  # (N, 2, H, W); in sRGB from -107.9 to 98.3
        return lightness if kind == "L" else ab if kind == "ab" else torch.cat([lightness, ab], 1)
    if kind == "sketch" or kind == "rgb":
        return rgb * 2.0 - 1.0  # (N, 3, H, W)
    return luma(rgb) * 2.0 - 1.0  # (N, 1, H, W)


def decode(y: Tensor, kind: str, lightness: Tensor) -> Tensor:
    """Return a network's output (N, 2|3, H, W) in [-1, 1] as RGB (N, 3, H, W) in [0, 1]; differentiable.

    Its kind is ab, rgb or Lab; only ab needs the lightness (N, 1, H, W) in [0, 100].
    """
    y = y.to(torch.float32)
    if kind == "rgb":
        return ((y + 1.0) / 2.0).clamp(0.0, 1.0)
    if kind == "Lab":
        return join_lab(((y[:, :1] + 1.0) * 50.0).clamp(0.0, 100.0), y[:, 1:])
    return join_lab(lightness, y)


def join_lab(lightness: Tensor, y: Tensor) -> Tensor:
    """Return RGB in [0, 1] from L in [0, 100] (N, 1, H, W) and a network's ab/110 (N, 2, H, W)."""
    return lab_to_rgb(torch.cat([lightness, y.to(torch.float32) * 110.0], 1))  # (N, 3, H, W)


def recolor(image: Tensor, a: float, b: float) -> Tensor:
    """Return an image (N, 1|3, H, W) with its own L and the same a and b everywhere, as uint8."""
    lightness = rgb_to_lightness(rgb01(image))
    planes = [lightness, torch.full_like(lightness, a), torch.full_like(lightness, b)]
    return to_uint8(lab_to_rgb(torch.cat(planes, 1)))


def palette_of(image: Tensor) -> Tensor:
    """Return the means and standard deviations (4) of a/110 and b/110 of an image (1, 1|3, H, W)."""
    ab = encode(image, "ab")[0].flatten(1)  # (2, HW)
    return torch.cat([ab.mean(1), ab.std(1, correction=0)])


def fit_palette(ab: Tensor, palette: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """Return factor and offset, (N, 2, 1, 1), that give each image's colours the mean and deviation of a palette (4).

    Colours ab/110 (N, 2, H, W) become factor * ab + offset; they are spread or narrowed by 3 at most.
    Source: Reinhard et al., "Color transfer between images", 2001.
    """
    mean = ab.mean([2, 3], keepdim=True)
    spread = ((ab - mean) ** 2).mean([2, 3], keepdim=True).clamp(min=1e-6).sqrt()
    factor = (palette[2:].view(1, 2, 1, 1) / spread).clamp(1.0 / 3.0, 3.0)
    return factor, palette[:2].view(1, 2, 1, 1) - factor * mean


def show_input(source: Tensor, kind: str) -> Tensor:
    """Return a network's input, made of an image (N, 1|3, H, W), as (N, 3, H, W) uint8 to look at."""
    if kind == "L":
        return recolor(source, 0.0, 0.0)
    return to_uint8((encode(source, kind) + 1.0) / 2.0).expand(-1, 3, -1, -1)
