"""Line art drawn from colour images, where a data set has none.

Source: Winnemoeller, Kyprianidis, Olsen, "XDoG: an eXtended difference-of-Gaussians compendium", 2012.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from imaging import color


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur each channel; sigma in px, borders replicated. In float64, which autocast does not touch."""
    radius = max(1, math.ceil(3.0 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum()
    planes = image.to(torch.float64).flatten(0, 1).unsqueeze(1)  # (N*C, 1, H, W)
    planes = F.pad(planes, [radius, radius, radius, radius], mode="replicate")
    planes = F.conv2d(planes, weights.view(1, 1, 1, -1))
    planes = F.conv2d(planes, weights.view(1, 1, -1, 1))
    return planes.view(image.shape).to(torch.float32)


def line_art(image: Tensor) -> Tensor:
    """Return line art of colour images (N, 3, H, W): black lines on white, gray, as uint8 of the same shape.

    A difference of Gaussians with a soft threshold, per colour channel and relative to the local brightness:
    plain XDoG fills dark areas with black, and lines of the gray image miss edges between colours of equal
    lightness. Eq. 2-5 of the source, divided by the wider Gaussian.
    """
    rgb = color.rgb01(image)
    fine = gaussian_blur(rgb, 0.7)  # about the width of a line
    wide = gaussian_blur(rgb, 3.0 * 0.7)
    # 0.06 suppresses noise in dark areas
    ratio = ((fine + 0.06) / (wide + 0.06)).amin(1, keepdim=True)  # (N, 1, H, W)
    ink = torch.tanh(((0.95 - ratio) / 0.08).clamp(min=0.0))  # from 0.95 on, the result is white
    return color.to_uint8(1.0 - ink).expand(-1, 3, -1, -1)
