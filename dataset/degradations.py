"""Synthetic degradations of old photographs, computed in batches on the device, and the network's input.

Every degradation takes gray images (N, 1, H, W) float32 in [0, 1], a strength in [0, 1] and a random
generator on their device, and returns images of the same shape, which may lie slightly outside [0, 1]. Sizes
in px grow with the image. They are applied in the order of config.DEGRADATIONS.

Source: Wan et al., "Bringing old photos back to life", arXiv 2004.09484, for the idea of training on such
images; ITU T.81, table K.1, for the JPEG table.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config import Recipe
from imaging import color

Degradation = Callable[[Tensor, float, torch.Generator], Tensor]
MAX_SCRATCHES = 6  # per image
STRIPES = 3  # per image
# quantisation steps for the luminance of an 8 x 8 block at quality 50; vertical frequency rises with the row
JPEG_TABLE = [
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
]  # fmt: skip


def uniform(rng: torch.Generator, count: int, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return uniform random numbers (count, *shape) float32 in [low, high), on the generator's device."""
    return torch.rand((count, *shape), generator=rng, device=rng.device) * (high - low) + low


def blur(image: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Blur with a Gaussian; its standard deviation is up to 3 px in an image 256 px high."""
    largest = 3.0 * strength * image.size(2) / 256
    sigma = uniform(rng, len(image), 1, low=0.2, high=max(0.21, largest))
    radius = max(1, math.ceil(3 * largest))
    offsets = torch.arange(-radius, radius + 1, device=image.device)
    weights = torch.softmax(-0.5 * (offsets / sigma) ** 2, 1)  # (N, K)
    planes = F.pad(image.transpose(0, 1), [radius] * 4, mode="replicate")  # (1, N, H + 2r, W + 2r)
    for shape in ((-1, 1, 1, offsets.numel()), (-1, 1, offsets.numel(), 1)):
        planes = F.conv2d(planes, weights.view(shape), groups=len(image))
    return planes.transpose(0, 1)


def grain(image: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Add Gaussian noise with grains of 1 and of 2 px. Like film grain, it is strongest in the midtones."""
    fine = torch.randn(image.shape, generator=rng, device=image.device)
    half = (*image.shape[:2], (image.size(2) + 1) // 2, (image.size(3) + 1) // 2)
    coarse = torch.randn(half, generator=rng, device=image.device)
    coarse = F.interpolate(coarse, image.shape[2:], mode="bilinear")
    amount = uniform(rng, len(image), 1, 1, 1, low=0.02, high=0.2) * strength
    return image + amount * (fine + coarse) / 2 * (0.4 + 2.4 * image * (1 - image))


def fading(image: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Reduce the contrast: raise black, lower white, and apply a random gamma."""
    black = uniform(rng, len(image), 1, 1, 1, high=0.6 * strength)
    white = 1 - uniform(rng, len(image), 1, 1, 1, high=0.5 * strength)
    gamma = torch.exp(uniform(rng, len(image), 1, 1, 1, low=-strength, high=strength) * 0.7)
    return black + (white - black).clamp(min=0.2) * image**gamma


def blotches(image: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Make patches of random outline brighter or darker."""
    noise = torch.zeros_like(image)
    for cells, share in ((4, 0.7), (12, 0.4), (40, 0.2)):
        grid = torch.randn((len(image), 1, cells, cells), generator=rng, device=image.device)
        noise += F.interpolate(grid, image.shape[2:], mode="bicubic") * share
    mask = torch.sigmoid((noise - uniform(rng, len(image), 1, 1, 1, low=0.6, high=1.2)) * 12)
    tone = uniform(rng, len(image), 1, 1, 1, low=-1.0, high=1.0)
    return image + 0.8 * strength * tone * mask


def stripes(image: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Change the brightness of vertical bands."""
    x = torch.arange(image.size(3), device=image.device) / image.size(3)
    draw = partial(uniform, rng, len(image), STRIPES, 1)
    centre, width = draw(), draw(low=0.01, high=0.15)
    tone = draw(low=-0.5, high=0.5) * strength
    bands = (torch.sigmoid((width / 2 - (x - centre).abs()) * 300) * tone).sum(1)  # (N, W)
    return image + bands[:, None, None]


def scratches(image: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Draw thin, slightly curved lines, white or black. Most of them are almost vertical."""
    draw = partial(uniform, rng, len(image), MAX_SCRATCHES, 1, 1)  # one number per scratch
    y = torch.linspace(-0.5, 0.5, image.size(2), device=image.device)[:, None]
    x = torch.linspace(-0.5, 0.5, image.size(3), device=image.device)[None]
    angle = draw(low=-1.0, high=1.0) ** 3 * math.pi / 2
    across, along = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()  # (N, K, H, W)
    bend = 0.02 * torch.sin(along * draw(low=2.0, high=20.0))
    place, thick = draw(low=-0.5, high=0.5), draw(low=0.3, high=1.2) / 256
    middle, length = draw(low=-0.5, high=0.5), draw(low=0.1)
    inside = torch.sigmoid((length / 2 - (along - middle).abs()) * 60)
    drawn = draw() < strength
    ink = torch.exp(-(((across - place - bend) / thick) ** 2)) * inside * drawn
    white = draw() < 0.7
    opacity = (0.4 + 0.6 * strength) * draw(low=0.4)
    for cover, tone in ((ink * opacity * white, 1.0), (ink * opacity * ~white, 0.0)):  # (N, K, H, W)
        image = torch.lerp(image, torch.full_like(image, tone), cover.amax(1, keepdim=True))
    return image


def jpeg(image: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Quantise the cosine transform of 8 x 8 px blocks, as JPEG does with luminance."""
    k = torch.arange(8, device=image.device)
    basis = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2  # (8, 8); frequency rises with the row
    basis[0] /= math.sqrt(2)
    height, width = image.size(2), image.size(3)
    padded = F.pad(image * 255 - 128, [0, -width % 8, 0, -height % 8], mode="replicate")
    rows, columns = padded.size(2) // 8, padded.size(3) // 8
    blocks = padded.view(-1, rows, 8, columns, 8).transpose(2, 3)  # (N, rows, columns, 8, 8)
    table = torch.tensor(JPEG_TABLE, device=image.device, dtype=torch.float32)
    step = table * uniform(rng, len(image), 1, 1, 1, 1, low=0.2, high=6.2) * max(strength, 1e-3)
    coefficients = ((basis @ blocks @ basis.T) / step).round() * step
    decoded = (basis.T @ coefficients @ basis).transpose(2, 3).reshape(padded.shape)
    return (decoded[:, :, :height, :width] + 128) / 255


DEGRADATIONS: dict[str, Degradation] = {
    "blur": blur, "grain": grain, "fading": fading, "blotches": blotches,
    "stripes": stripes, "scratches": scratches, "jpeg": jpeg,
}  # fmt: skip


def seeded(device: torch.device | str, *numbers: int) -> torch.Generator:
    """Return a random generator on a device. The numbers alone decide what it returns."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    return torch.Generator(device).manual_seed(seed)


def make_input(source: Tensor, target: Tensor, recipe: Recipe, rng: torch.Generator) -> Tensor:
    """Return the network's input for a batch: line art or gray (by `line_share`), then degraded.

    Args:
        source, target: (N, 3, H, W) uint8, line art (where there is any) and colour.
        rng: on the batch's device.

    Returns:
        `source` itself if the recipe changes nothing; (N, 3, H, W) uint8 if it only mixes line art with gray;
        else (N, 1, H, W) float32 in [0, 1].
    """
    if recipe.input == "gray+line":
        source = torch.where(uniform(rng, len(source), 1, 1, 1) < recipe.line_share, source, target)
    if not recipe.degradations:
        return source
    if recipe.input == "L":
        source = color.recolor(source, 0.0, 0.0)
    image = color.luma(color.rgb01(source))  # (N, 1, H, W)
    for name, (strength, probability) in recipe.degradations.items():
        hit = uniform(rng, len(image), 1, 1, 1) < probability
        image = torch.where(hit, DEGRADATIONS[name](image, strength, rng).clamp(0.0, 1.0), image)
    return image


def make_fixed_input(source: Tensor, target: Tensor, recipe: Recipe, ids: list[int]) -> Tensor:
    """Return make_input as uint8, with a generator for each image, seeded by its number in `ids` (N).

    So the images that are looked at or scored have the same inputs every time. Where the network keeps the
    lightness of its input, they are not degraded: nobody would be asked to mend it.
    """
    if recipe.output == "ab" or (recipe.input != "gray+line" and not recipe.degradations):
        return source
    images = zip(source.split(1), target.split(1), ids, strict=True)
    rows = (make_input(x, y, recipe, seeded("cpu", recipe.seed, number)) for x, y, number in images)
    return torch.cat([row if row.dtype == torch.uint8 else color.to_uint8(row) for row in rows])
