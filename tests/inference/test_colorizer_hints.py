"""colorizer.py: what a user says of the colours: hints, a palette, the temperature."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU, make_run, small_model
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor

from config import UserError
from imaging import color
from inference.checkpoint import load_colorizer
from inference.colorizer import Colorizer
from inference.runner import Runner
from models import LiteUNet
from runtime.run_folder import epoch_path

SPOT = (0.70, 0.35, 0.30)
PLACES = [
    (200, 260, 100, 130), (200, 260, 3, 3), (200, 260, 196, 256), (260, 200, 30, 170), (60, 400, 30, 200),
    (24, 20, 12, 10),
]  # fmt: skip


def painted(
    shape: tuple[int, int], row: int, column: int, radius: int = 14, dtype: torch.dtype = torch.uint8
) -> Tensor:
    """Return a layer (1, 4, H, W) with an opaque disc of SPOT."""
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in shape), indexing="ij")
    cover = ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2).float()
    return color.to_dtype(torch.stack([*(cover * value for value in SPOT), cover])[None], dtype)


def off(found: Tensor, lightness: float, row: int, column: int) -> float:
    """Return how far a pixel is from the colour of SPOT at a lightness, in CIEDE2000."""
    a, b = rgb2lab(np.array(SPOT))[1:]
    pixel = color.rgb01(found.detach())[0, :, row, column].double().numpy()
    return float(deltaE_ciede2000(rgb2lab(pixel), np.array([lightness, a, b])))


@pytest.mark.parametrize(("height", "width", "row", "column"), PLACES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_a_spot_has_the_colour_of_its_hint(height: int, width: int, row: int, column: int, dtype: torch.dtype) -> None:
    model, _ = small_model(hints=True)
    image = color.to_dtype(torch.full((1, 1, height, width), 0.5), dtype)
    lightness = float(rgb2lab(np.full(3, 0.5))[0])
    plain = model(image)
    assert torch.equal(plain, model(image, torch.zeros(1, 4, height, width, dtype=dtype)))  # no hint
    assert off(plain, lightness, row, column) > 8
    assert off(model(image, painted((height, width), row, column, dtype=dtype)), lightness, row, column) < 5


def test_a_large_image_takes_its_hints_in_strips() -> None:
    model, _ = small_model(hints=True)
    image, hints = torch.rand(1, 3, 300, 220), painted((300, 220), 150, 110, dtype=torch.float32)
    whole = model(image, hints)
    model.strip = 220 * 7
    assert (model(image, hints) - whole).abs().max() < 1e-4


def test_the_palette_moves_what_is_predicted_and_leaves_hints_alone() -> None:
    model, _ = small_model(hints=True)
    reference = torch.zeros(1, 3, 40, 40)
    reference[:, 0] = torch.linspace(0.2, 0.6, 40)
    model.palette = color.palette_of(reference)
    x = model.look(torch.rand(1, 3, 90, 120))[0]
    ab = model.predict(x)[0].flatten(1)
    torch.testing.assert_close(ab.mean(1), model.palette[:2], atol=1e-4, rtol=0)
    gray, hints = torch.full((1, 1, 90, 120), 0.5), painted((90, 120), 45, 60, dtype=torch.float32)
    assert off(model(gray, hints), float(rgb2lab(np.full(3, 0.5))[0]), 45, 60) < 5


def test_what_a_hint_spreads_is_not_moved_by_the_palette() -> None:
    torch.manual_seed(0)
    model = Colorizer(LiteUNet(4, 2, 8).eval(), "L", "ab", 64, 32, takes_hints=True).requires_grad_(False)
    image, hints = torch.full((1, 1, 64, 96), 0.5), painted((64, 96), 30, 40, 4, torch.float32)
    model.palette = torch.tensor([-0.02, -0.4, 0.001, 0.001])
    plain, hinted = (model.predict(model.look(image, layer)[0]) for layer in (None, hints))
    wanted = color.encode(torch.tensor(SPOT).view(1, 3, 1, 1), "ab").view(2)
    torch.testing.assert_close(plain[0, :, 30, 52], model.palette[:2], atol=0.01, rtol=0)
    torch.testing.assert_close(hinted[0, :, 30, 40], wanted, atol=0.01, rtol=0)
    assert (hinted[0, :, 30, 52] - wanted).norm() < 0.25 * (plain[0, :, 30, 52] - wanted).norm()  # beside the spot


def test_a_hint_changes_no_other_picture_of_its_batch() -> None:
    """Nor where a palette takes colours beyond the range in which networks answer."""
    model, _ = small_model(hints=True)
    model.palette = torch.tensor([1.2, -1.2, 0.4, 0.4])
    x = model.look(torch.rand(2, 3, 90, 120))[0]
    alone = model.predict(x[:1])
    assert alone.abs().max() > 1.1
    x[1, -3:, 4:8, 6:10] = torch.tensor([0.2, 0.3, 1.0]).view(3, 1, 1)
    both = model.predict(x)
    torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=0)
    x[1, -3:] = 0
    assert (both[1] - model.predict(x)[1]).abs().max() > 0.1


def test_of_a_soft_brush_only_what_can_be_seen_is_a_hint() -> None:
    model, _ = small_model(hints=True)
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(43.0), indexing="ij")
    cover = torch.exp(-((rows - 16) ** 2 + (columns - 20) ** 2) / 50)
    layer = color.to_dtype(torch.stack([*(torch.full_like(cover, value) for value in SPOT), cover])[None], torch.uint8)
    image = torch.zeros(1, 1, 32, 43, dtype=torch.uint8)  # of the size at which the network works
    seen = model.shrink_hints(layer, image, model.look(image)[0][:, :1])[0, -1]
    assert seen[16, 20] == 1
    assert torch.equal(seen.bool(), cover >= 0.1)
    assert cover.min() > 0


@pytest.mark.parametrize(
    ("hints", "words"),
    [
        (torch.zeros(1, 3, 40, 50), "hints are"),
        (torch.zeros(1, 4, 40, 50, dtype=torch.uint8), "hints are"),
        (torch.zeros(1, 4, 40, 51), "number and the size"),
        (torch.zeros(2, 4, 40, 50), "number and the size"),
        (torch.full((1, 4, 40, 50), 200.0), "above 1.5"),
    ],
)
def test_what_is_no_layer_of_hints_is_refused(hints: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_model(hints=True)[0](torch.rand(1, 3, 40, 50), hints)
    with pytest.raises(ValueError, match="takes no hints"):
        small_model()[0](torch.rand(1, 3, 40, 50), torch.zeros(1, 4, 40, 50))


def test_the_temperature_is_that_of_a_network_that_predicts_probabilities() -> None:
    fields = {"size": 64, "load_size": 64, "test_size": 64, "ngf": 8, "hints": False, "lambda_class": 0.0}
    runs = {output: make_run(Path(output), "photo", **fields, output=output) for output in ("ab", "rgb")}
    calm, wild = (Runner(epoch_path(runs["ab"], 1), CPU, temperature=value).model for value in (1.0, 0.1))
    image = torch.rand(1, 1, 40, 50)
    assert spread(wild, image) > spread(calm, image)
    with pytest.raises(UserError, match="has no temperature: it is of recipe photo"):
        Runner(epoch_path(runs["rgb"], 1), CPU, temperature=0.5)
    model = load_colorizer(runs["ab"], 1, CPU)
    for temperature in (0.0, -1.0):
        model.generator.temperature = temperature
        with pytest.raises(ValueError, match="greater than 0"):
            model(image)


def spread(model: Colorizer, image: Tensor) -> float:
    return float(color.encode(model(image), "ab").abs().mean())
