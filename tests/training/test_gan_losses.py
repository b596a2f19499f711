"""Loss terms against values computed by hand, and the direction of their gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import CHOICES
from models import FrozenFeatures
from training.gan import PIXEL, adversarial_loss, gan_loss, perceptual_loss, total

LOGITS = [-2.0, 0.5, 3.0]
MODES = CHOICES["gan_mode"]


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


EXPECTED = {  # (mode, verdict) -> loss of LOGITS, by the formulas of the papers
    ("vanilla", True): mean([softplus(-v) for v in LOGITS]),
    ("vanilla", False): mean([softplus(v) for v in LOGITS]),
    ("lsgan", True): mean([(v - 1) ** 2 for v in LOGITS]),
    ("lsgan", False): mean([v**2 for v in LOGITS]),
    ("hinge", True): mean([max(0.0, 1 - v) for v in LOGITS]),
    ("hinge", False): mean([max(0.0, 1 + v) for v in LOGITS]),
}


def patch(values: list[float], grad: bool = False) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1).requires_grad_(grad)


@pytest.mark.parametrize(("mode", "real"), EXPECTED)
def test_gan_loss_values(mode: str, real: bool) -> None:
    loss = gan_loss(patch(LOGITS), real, mode)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(EXPECTED[mode, real], rel=1e-6)
    assert gan_loss(torch.tensor([1e4]), False, "vanilla").item() == pytest.approx(1e4)  # large logits


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("vanilla", EXPECTED["vanilla", True]), ("lsgan", EXPECTED["lsgan", True]), ("hinge", -mean(LOGITS))],
)
def test_adversarial_loss(mode: str, expected: float) -> None:
    logits = patch(LOGITS, grad=True)
    loss = adversarial_loss(logits, mode)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert (logits.grad[..., :2] < 0).all()  # descent raises the logits: fools the discriminator


def test_a_smoothed_label_is_that_of_real_images_alone() -> None:
    logits, label = patch(LOGITS), 0.9
    vanilla = nn.BCELoss()(logits.sigmoid(), torch.full_like(logits, label)).item()
    expected = {"vanilla": vanilla, "lsgan": mean([(v - label) ** 2 for v in LOGITS])}
    expected["hinge"] = EXPECTED["hinge", True]  # which has no labels
    for mode in MODES:
        assert gan_loss(logits, True, mode, label).item() == pytest.approx(expected[mode], rel=1e-5)
        assert gan_loss(logits, False, mode, label).item() == pytest.approx(EXPECTED[mode, False], rel=1e-6)
        fooled = -mean(LOGITS) if mode == "hinge" else expected[mode]
        assert adversarial_loss(logits, mode, label).item() == pytest.approx(fooled, rel=1e-5)


def test_pixel_terms() -> None:
    fake = torch.tensor([[0.5, -1.0], [0.0, 0.25]]).view(1, 2, 1, 2)
    y = torch.tensor([[0.0, 0.0], [1.0, 0.25]]).view(1, 2, 1, 2)
    found = {name: loss(fake, y).item() for name, loss in PIXEL.items()}
    assert found == pytest.approx({"G_l1": 2.5 / 4, "G_mse": (0.25 + 1 + 1) / 4})


class Taps(FrozenFeatures):
    """An extractor of two layers, seeded."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)]), (0.5,) * 3, (0.2,) * 3)

    def forward(self, rgb01: Tensor) -> list[Tensor]:
        first = self.body[0](self.normalise(rgb01))
        return [first, self.body[1](first.relu())]


def pictures() -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(0)
    return tuple(torch.rand(2, 3, 9, 9, generator=noise).requires_grad_() for _ in range(2))


def test_perceptual_loss_is_the_sum_of_all_taps_in_float32() -> None:
    extractor, (fake, real) = Taps(), pictures()
    with torch.no_grad():
        pairs = list(zip(extractor(fake), extractor(real), strict=True))
        expected = sum(F.mse_loss(a, b).item() for a, b in pairs)
    loss = perceptual_loss(extractor, fake, real)
    assert (len(pairs), loss.shape) == (2, ())
    assert loss.item() == pytest.approx(expected)
    assert perceptual_loss(extractor, real, real).item() == 0.0
    with torch.autocast("cpu", torch.bfloat16):
        assert extractor(fake)[0].dtype == torch.bfloat16
        half = perceptual_loss(extractor, fake, real)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(expected, rel=0.05)


def test_perceptual_gradient_reaches_the_generated_image_alone() -> None:
    extractor, (fake, real) = Taps(), pictures()
    perceptual_loss(extractor, fake, real).backward()
    assert (fake.grad.abs().sum((1, 2, 3)) > 0).all()
    assert real.grad is None
    assert all(parameter.grad is None for parameter in extractor.parameters())
    with torch.no_grad():
        closer = fake - 1e-3 * fake.grad
        assert perceptual_loss(extractor, closer, real) < perceptual_loss(extractor, fake, real)


def test_total_weighs_every_term() -> None:
    terms = {"G_gan": torch.tensor(2.0), "G_l1": torch.tensor(0.25)}
    assert total(terms, {"G_gan": 1.0, "G_l1": 100.0, "unused": 7.0}).item() == 27.0
    with pytest.raises(KeyError, match="G_l1"):
        total(terms, {"G_gan": 1.0})
