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
    sigma = 0.5  # px, of the finer Gaussian: lines of about 1 px, as a pen's are at the size of training
    threshold = 0.96  # of the finer over the wider Gaussian; at or above it the result is white
    softness = 0.08  # how far below the threshold white turns to black
    noise = 0.06  # of white; added to both Gaussians, it suppresses noise in dark areas
    rgb = color.rgb01(image)
    fine, wide = gaussian_blur(rgb, sigma), gaussian_blur(rgb, 2.0 * sigma)
    ratio = ((fine + noise) / (wide + noise)).amin(1, keepdim=True)  # (N, 1, H, W)
    ink = torch.tanh(((threshold - ratio) / softness).clamp(min=0.0))
    return color.to_uint8(1.0 - ink).expand(-1, 3, -1, -1)
