"""Colour hints to train with: a few patches of the true colours, as a user's clicks would give them.

Source: Zhang et al., "Real-time user-guided image colorization with learned deep priors", arXiv 1705.02999,
section 3.2: the number of hints is geometric, a patch has the mean colour of what it covers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN_HINTS = 7.0  # per picture; an eighth of the pictures gets none
MAX_SIDE = 9 / 256  # of a patch, relative to the picture


def draw_hints(y: Tensor, rng: torch.Generator) -> Tensor:
    """Return hints for a batch, placed uniformly.

    Args:
        y: (N, C, H, W) float32, the true colours as the network should answer them.
        rng: on the CPU.

    Returns:
        (N, C + 1, H, W) float32: the colours, 0 where there is no hint, then 1 where there is one.
    """
    count, _, height, width = y.shape
    numbers = torch.empty(count).geometric_(1 / (MEAN_HINTS + 1), generator=rng).int() - 1
    most = max(1, round(MAX_SIDE * min(height, width)))
    patches = []  # picture, top, left, side
    for i, number in enumerate(numbers.tolist()):
        sides = torch.randint(1, most + 1, (number,), generator=rng).tolist()
        places = torch.rand(number, 2, generator=rng).tolist()
        for side, (down, right) in zip(sides, places, strict=True):
            patches.append((i, int(down * (height - side + 1)), int(right * (width - side + 1)), side))
    return paint_means(y, patches, most)


def paint_means(y: Tensor, patches: list[tuple[int, int, int, int]], most: int) -> Tensor:
    """Return the mean of y in each patch, there; of two that overlap the later is seen.

    All at once, as each patch by itself would be five calls of a GPU.

    Args:
        y: (N, C, H, W) float32.
        patches: picture, top, left and side in px of each.
        most: the largest side that there may be, px.

    Returns:
        (N, C + 1, H, W) float32, as draw_hints.
    """
    count, channels, height, width = y.shape
    numbers = torch.tensor(patches, dtype=torch.long).view(-1, 4, 1, 1).to(y.device, non_blocking=True)
    picture, top, left, side = numbers.unbind(1)  # (K, 1, 1)
    offsets = torch.arange(most, device=y.device)
    within = (offsets[:, None] < side) & (offsets < side)  # (K, most, most)
    pixels = (picture * height + top + offsets[:, None]) * width + left + offsets
    pixels = pixels.where(within, count * height * width)  # one past the last, which nobody sees
    values = F.pad(y.movedim(1, -1).reshape(-1, channels), (0, 0, 0, 1))  # (N * H * W + 1, C)
    means = values[pixels].sum((1, 2)) / side[..., 0] ** 2  # (K, C)
    colors = F.pad(F.pad(means, (0, 1), value=1.0), (0, 0, 1, 0))  # the first is none
    patch = torch.arange(1, len(patches) + 1, device=y.device)[:, None, None].expand_as(pixels)
    seen = patch.new_zeros(len(values)).scatter_reduce_(0, pixels.flatten(), patch.flatten(), "amax")
    return colors[seen[:-1]].view(count, height, width, channels + 1).movedim(-1, 1).contiguous()
