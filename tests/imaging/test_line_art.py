"""line_art.py: ink where colours change, none elsewhere; the blur is SciPy's."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, maximum_filter, zoom
from skimage.morphology import skeletonize
from torch import Tensor

from dataset import scenes
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


def line_width(lines: Tensor) -> float:
    """Return the median width in px of the lines of a picture (1, 3, H, W), at half their darkness."""
    ink = zoom(1 - lines[0, 0].numpy() / 255, 4, order=3)
    drawn = (ink > 0.5 * maximum_filter(ink, 17)) & (ink > 0.15)
    return float(np.median(2 * distance_transform_edt(drawn)[skeletonize(drawn)]) / 4)


@pytest.mark.parametrize("size", [128, 256, 512])
def test_lines_are_as_thin_as_a_pen_draws_them(size: int) -> None:
    picture = torch.from_numpy(scenes.draw(3, size)[0]).permute(2, 0, 1)[None]
    assert 0.8 <= line_width(line_art(picture)) < 1.7  # px; scans of inked drawings have 1.0 to 1.7


def test_the_line_at_an_edge_is_a_line_and_no_band() -> None:
    for right in ([255, 255, 255], [120, 110, 140]):
        ink = 1 - line_art(halves([20, 20, 20], right))[0, 0] / 255
        assert 0.7 < ink.sum(1).max() < 2.1  # px of black in a row
