"""Pictures that are rendered beside the outputs, and colours that are not finite."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.render import check_finite, recompress
from imaging.files import read_image
from imaging.pixels import resize


@pytest.mark.parametrize(("value", "first"), [(float("nan"), 0), (float("inf"), 1), (-float("inf"), 2)])
def test_the_first_image_whose_colours_are_not_finite_is_named(value: float, first: int) -> None:
    rgb, names = torch.zeros(3, 3, 8, 8), ["a", "b", "c"]
    check_finite(rgb, names)
    rgb[first::2, 1, 3, 4] = value
    with pytest.raises(ValueError, match=f"colours of {names[first]} are not finite"):
        check_finite(rgb, names)


def test_recompressed_images_are_those_of_jpeg_files() -> None:
    ramp = np.arange(27, dtype=np.uint8).reshape(3, 3, 3) * np.uint8(9)
    gray = np.repeat(np.arange(37 * 22, dtype=np.uint8).reshape(37, 22, 1), 3, 2)
    pictures = [resize(ramp, 37, 22), gray]
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # (2, 3, 37, 22)
    errors = []
    for quality in (90, 20):
        found = recompress(batch, quality)
        assert (found.shape, found.dtype) == (batch.shape, torch.uint8)
        for picture, planes in zip(pictures, found, strict=True):
            Image.fromarray(picture).save("x.jpg", quality=quality)
            np.testing.assert_array_equal(planes.permute(1, 2, 0).numpy(), read_image(Path("x.jpg")))
        errors.append((found.int() - batch.int()).abs().float().mean().item())
    assert 0 < errors[0] < errors[1]
