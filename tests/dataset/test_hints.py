"""hints.py: as many hints as asked for, of the true colours, where they say they are."""

import pytest
import torch
import torch.nn.functional as F

from dataset.degradations import seeded
from dataset.hints import draw_hints, paint_means


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


@pytest.mark.parametrize("count", [0, 1, 40])
def test_each_patch_has_its_mean_and_the_later_is_seen(count: int) -> None:
    rng = torch.Generator().manual_seed(count)
    y = torch.rand(3, 2, 12, 9, generator=rng)
    drawn = torch.rand(count, 4, generator=rng) * torch.tensor([3, 8, 5, 5])
    patches = [(i, top, left, 1 + side) for i, top, left, side in drawn.int().tolist()]  # which overlap, where 40
    expected = torch.zeros(3, 3, 12, 9)
    for i, top, left, side in patches:
        rows, columns = slice(top, top + side), slice(left, left + side)
        expected[i, :2, rows, columns] = y[i, :, rows, columns].mean((1, 2), keepdim=True)
        expected[i, 2, rows, columns] = 1.0
    torch.testing.assert_close(paint_means(y, patches, 5), expected)


def test_hints_are_seven_on_average_of_the_published_sizes_and_anywhere() -> None:
    y = torch.zeros(400, 1, 256, 256)
    there = draw_hints(y, seeded("cpu", 5))[:, 1]
    area = sum(side**2 for side in range(1, 10)) / 9  # of a patch of 1 to 9 px, mean
    assert float(there.flatten(1).sum(1).mean()) == pytest.approx(7 * area, rel=0.2)  # hardly any overlap
    lone = F.avg_pool2d(there[:, None], 10, 1) == 1
    assert not lone.any()  # none is larger than 9 px, but where two touch
    rows, columns = torch.nonzero(there)[:, 1:].double().unbind(1)
    for place in (rows, columns):
        assert float(place.mean()) == pytest.approx(127.5, abs=8)
        assert float(place.std()) == pytest.approx(256 / 12**0.5, rel=0.05)


def test_the_same_seed_draws_the_same_hints() -> None:
    y = torch.rand(4, 2, 32, 32)
    assert torch.equal(draw_hints(y, seeded("cpu", 3, 4)), draw_hints(y, seeded("cpu", 3, 4)))
    assert not torch.equal(draw_hints(y, seeded("cpu", 3, 4)), draw_hints(y, seeded("cpu", 3, 5)))
