"""Colour hints to train with: a few patches of the true colours, as a user's clicks would give them.

Source: Zhang et al., "Real-time user-guided image colorization with learned deep priors", arXiv 1705.02999,
section 3.2: the number of hints is geometric, a patch has the mean colour of what it covers.
"""

import torch
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
    count, channels, height, width = y.shape
    hints = y.new_zeros(count, channels + 1, height, width)
    numbers = torch.empty(count).geometric_(1 / (MEAN_HINTS + 1), generator=rng).int() - 1
    most = max(1, round(MAX_SIDE * min(height, width)))
    for i, number in enumerate(numbers.tolist()):
        sides = torch.randint(1, most + 1, (number,), generator=rng).tolist()
        places = torch.rand(number, 2, generator=rng).tolist()
        for side, (down, right) in zip(sides, places, strict=True):
            top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
            rows, columns = slice(top, top + side), slice(left, left + side)
            hints[i, :channels, rows, columns] = y[i, :, rows, columns].mean((1, 2), keepdim=True)
            hints[i, channels, rows, columns] = 1.0
    return hints
