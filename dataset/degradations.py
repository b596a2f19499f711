"""What time and scanners do to a photograph, drawn on batches on the device, and the input of a network.

Each degradation takes gray images (N, 1, H, W) in [0, 1], a strength in [0, 1] and a random generator, and
returns images of the same shape; lengths in px grow with the image. config.DEGRADATIONS gives their order.

Source of the idea: Wan et al., "Bringing old photos back to life", arXiv 2004.09484; of the JPEG table: ITU
T.81, table K.1.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config import Recipe
from imaging import color

Degradation = Callable[[Tensor, float, torch.Generator], Tensor]
THREADS = 6  # scratches on a picture at most
BANDS = 3  # stripes on a picture
# quantisation of the luminance of an 8 x 8 block at quality 50, rows of rising vertical frequency
JPEG_TABLE = [
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
]  # fmt: skip


def uniform(rng: torch.Generator, count: int, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return random numbers (count, *shape) in [low, high) on the generator's device."""
    return torch.rand((count, *shape), generator=rng, device=rng.device) * (high - low) + low


def blur(image: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Blur each picture by a Gaussian of up to 3 px at 256 px."""
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
    """Add noise of 1 and of 2 px, strongest in the midtones as on film."""
    fine = torch.randn(image.shape, generator=rng, device=image.device)
    half = (*image.shape[:2], (image.size(2) + 1) // 2, (image.size(3) + 1) // 2)
    coarse = torch.randn(half, generator=rng, device=image.device)
    coarse = F.interpolate(coarse, image.shape[2:], mode="bilinear")
    amount = uniform(rng, len(image), 1, 1, 1, low=0.02, high=0.2) * strength
    return image + amount * (fine + coarse) / 2 * (0.4 + 2.4 * image * (1 - image))


def fading(image: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Lift blacks, lower whites, bend midtones."""
    black = uniform(rng, len(image), 1, 1, 1, high=0.6 * strength)
    white = 1 - uniform(rng, len(image), 1, 1, 1, high=0.5 * strength)
    gamma = torch.exp(uniform(rng, len(image), 1, 1, 1, low=-strength, high=strength) * 0.7)
    return black + (white - black).clamp(min=0.2) * image**gamma


def blotches(image: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Stain patches of random outline, brighter or darker."""
    noise = sum(
        F.interpolate(
            torch.randn((len(image), 1, n, n), generator=rng, device=image.device),
            image.shape[2:],
            mode="bicubic",
        )
        * share
        for n, share in ((4, 0.7), (12, 0.4), (40, 0.2))
    )
    mask = torch.sigmoid((noise - uniform(rng, len(image), 1, 1, 1, low=0.6, high=1.2)) * 12)
    tone = uniform(rng, len(image), 1, 1, 1, low=-1.0, high=1.0)
    return image + 0.8 * strength * tone * mask


def stripes(image: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Change the exposure of bands that run from top to bottom."""
    x = torch.arange(image.size(3), device=image.device) / image.size(3)
    centre, width = (
        uniform(rng, len(image), BANDS, 1),
        uniform(rng, len(image), BANDS, 1, low=0.01, high=0.15),
    )
    tone = uniform(rng, len(image), BANDS, 1, low=-0.5, high=0.5) * strength
    bands = (torch.sigmoid((width / 2 - (x - centre).abs()) * 300) * tone).sum(1)  # (N, W)
    return image + bands[:, None, None]


def scratches(image: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Draw slightly bent threads, most of them upright, white or black."""
    count, height, width = len(image), image.size(2), image.size(3)
    y = torch.linspace(-0.5, 0.5, height, device=image.device)[:, None]
    x = torch.linspace(-0.5, 0.5, width, device=image.device)[None]
    angle = uniform(rng, count, THREADS, 1, 1, low=-1.0, high=1.0) ** 3 * math.pi / 2
    across, along = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()  # (N, K, H, W)
    bend = 0.02 * torch.sin(along * uniform(rng, count, THREADS, 1, 1, low=2.0, high=20.0))
    place = uniform(rng, count, THREADS, 1, 1, low=-0.5, high=0.5)
    thick = uniform(rng, count, THREADS, 1, 1, low=0.3, high=1.2) / 256
    middle, length = (
        uniform(rng, count, THREADS, 1, 1, low=-0.5, high=0.5),
        uniform(rng, count, THREADS, 1, 1, low=0.1),
    )
    inside = torch.sigmoid((length / 2 - (along - middle).abs()) * 60)
    drawn = uniform(rng, count, THREADS, 1, 1) < strength
    ink = torch.exp(-(((across - place - bend) / thick) ** 2)) * inside * drawn
    white = uniform(rng, count, THREADS, 1, 1) < 0.7
    opacity = (0.4 + 0.6 * strength) * uniform(rng, count, THREADS, 1, 1, low=0.4)
    for thread, tone in ((ink * opacity * white, 1.0), (ink * opacity * ~white, 0.0)):
        image = torch.lerp(image, torch.full_like(image, tone), thread.amax(1, keepdim=True))
    return image


def jpeg(image: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Quantise the cosine transform of blocks of 8 x 8 px, as JPEG does with luminance."""
    k = torch.arange(8, device=image.device)
    basis = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2  # (8, 8), rows of rising frequency
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
    """Return a random generator on a device that these numbers decide."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    return torch.Generator(device).manual_seed(seed)


def is_changed(recipe: Recipe) -> bool:
    """Tell whether a recipe's input is anything but the source pictures of its data set."""
    return recipe.input == "gray+line" or bool(recipe.degradations)


def make_input(source: Tensor, target: Tensor, recipe: Recipe, rng: torch.Generator) -> Tensor:
    """Return what a network is given of a batch: line art or gray as `line_share` has it, then damaged.

    Args:
        source, target: (N, 3, H, W) uint8, line art (where there is any) and colour.
        recipe: fields of config.Recipe.
        rng: on the batch's device.

    Returns:
        `source` itself where the recipe asks for neither, else (N, 1|3, H, W), uint8 or float in [0, 1].
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
    """Return make_input of held-out pictures as uint8: the same for each picture (by number) every time."""
    if not is_changed(recipe):
        return source
    rows = [
        make_input(source[i : i + 1], target[i : i + 1], recipe, seeded("cpu", recipe.seed, number))
        for i, number in enumerate(ids)
    ]
    return torch.cat([row if row.dtype == torch.uint8 else color.to_uint8(row) for row in rows])
