"""hints.py: as many hints as asked for, of the true colours, where they say they are."""

import torch

from dataset.degradations import seeded
from dataset.hints import draw_hints


def test_hints_hold_the_mean_of_what_they_cover_and_nothing_elsewhere() -> None:
    y = torch.rand(200, 2, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    hints = draw_hints(y, seeded("cpu", 0))
    assert hints.shape == (200, 3, 64, 48)
    there = hints[:, 2:]
    assert set(there.unique().tolist()) == {0.0, 1.0}
    assert (hints[:, :2] * (1 - there)).abs().max() == 0
    flat = draw_hints(torch.full((50, 3, 32, 32), 0.25), seeded("cpu", 1))
    assert torch.equal(flat[:, :3], 0.25 * flat[:, 3:].expand(-1, 3, -1, -1))
    without = float((there.flatten(1).sum(1) == 0).float().mean())
    assert 0.05 < without < 0.25  # an eighth
    lone = there[(there.flatten(1).sum(1) == 1)]  # a single pixel is the true colour of that pixel
    for i in range(len(y)):
        if there[i].sum() == 1:
            row, column = (int(n) for n in there[i, 0].nonzero()[0])
            assert torch.allclose(hints[i, :2, row, column], y[i, :, row, column])
    assert len(lone) > 0


def test_the_same_seed_draws_the_same_hints() -> None:
    y = torch.rand(4, 2, 32, 32)
    assert torch.equal(draw_hints(y, seeded("cpu", 3, 4)), draw_hints(y, seeded("cpu", 3, 4)))
    assert not torch.equal(draw_hints(y, seeded("cpu", 3, 4)), draw_hints(y, seeded("cpu", 3, 5)))
