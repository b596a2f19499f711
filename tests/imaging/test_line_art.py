"""line_art.py: ink where colours change, none elsewhere; the blur is SciPy's."""

import numpy as np
import pytest
import torch
from torch import Tensor

from imaging import color
from imaging.line_art import gaussian_blur, line_art

NOISE = torch.Generator().manual_seed(0)
IMAGE = torch.randint(0, 256, (2, 3, 33, 47), dtype=torch.uint8, generator=NOISE)


def halves(left: list[int], right: list[int]) -> Tensor:
    """Return (1, 3, 40, 40) uint8, left and right half of one colour each."""
    image = torch.tensor(left, dtype=torch.uint8).view(1, 3, 1, 1).repeat(1, 1, 40, 40)
    image[:, :, :, 20:] = torch.tensor(right, dtype=torch.uint8).view(1, 3, 1, 1)
    return image


@pytest.mark.parametrize(
    ("left", "right"),
    [([0, 0, 0], [255, 255, 255]), ([60, 70, 80], [120, 110, 140]), ([8, 8, 8], [60, 30, 20])],
)
def test_line_art_inks_edges_only(left: list[int], right: list[int]) -> None:
    lines = line_art(halves(left, right))
    assert lines.shape == (1, 3, 40, 40)
    assert lines.dtype == torch.uint8
    assert torch.equal(lines.amax(1), lines.amin(1))
    assert lines[..., 17:23].amin(-1).max() < 100  # ink in every row
    assert lines[..., :14].min() == lines[..., 26:].min() == 255
    for flat in (left, right, [3, 0, 3]):
        assert line_art(halves(flat, flat)).min() == 255


def test_line_art_inks_an_edge_between_equally_light_colours() -> None:
    lab = torch.tensor([[60.0, 20.0, 0.0], [60.0, -20.0, 0.0]]).T.reshape(1, 3, 1, 2)
    left, right = color.to_uint8(color.lab_to_rgb(lab))[0, :, 0].T.tolist()
    image = halves(left, right)
    lightness = color.encode(image, "L")
    assert lightness.max() - lightness.min() < 0.01
    assert line_art(image)[..., 17:23].amin(-1).max() < 100


def test_line_art_takes_float_and_any_memory_layout() -> None:
    expected = line_art(IMAGE)
    assert torch.equal(line_art(IMAGE.contiguous(memory_format=torch.channels_last)), expected)
    assert (line_art(IMAGE.float() / 255).int() - expected.int()).abs().max() <= 1


def test_gaussian_blur_matches_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    image = torch.rand(1, 2, 30, 41)
    expected = gaussian_filter(image.numpy(), 1.5, mode="nearest", radius=5, axes=(2, 3))
    np.testing.assert_allclose(gaussian_blur(image, 1.5).numpy(), expected, atol=1e-5)
