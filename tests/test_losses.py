"""losses.py: every term against hand-computed values, and the way it pulls."""

import math

import pytest
import torch
from torch import Tensor

import config
from losses import discriminator_losses, gan_loss, generator_losses, total

LOGITS = [-2.0, 0.5, 3.0]
MODES = config.CHOICES["gan_mode"]


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


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_config_is_tested(mode: str) -> None:
    assert {(mode, True), (mode, False)} <= set(EXPECTED)


@pytest.mark.parametrize("mode", MODES)
def test_gan_loss_is_computed_in_float32(mode: str) -> None:
    half = torch.linspace(-3, 3, 50).to(torch.bfloat16)
    loss = gan_loss(half, True, mode)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, gan_loss(half.float(), True, mode))


def test_vanilla_loss_survives_large_logits() -> None:
    assert gan_loss(torch.tensor([1e4]), False, "vanilla").item() == pytest.approx(1e4)


@pytest.mark.parametrize("mode", MODES)
def test_discriminator_pulls_real_up_and_fake_down(mode: str) -> None:
    real, fake = patch([0.3, -0.2], grad=True), patch([0.1, 0.4], grad=True)
    terms = discriminator_losses(real, fake, mode)
    assert list(terms) == ["D_real", "D_fake"]
    assert terms["D_real"].item() == pytest.approx(gan_loss(real, True, mode).item())
    assert terms["D_fake"].item() == pytest.approx(gan_loss(fake, False, mode).item())
    total(terms, {"D_real": 0.5, "D_fake": 0.5}).backward()
    assert (real.grad < 0).all()  # gradient descent raises the logits of real pairs
    assert (fake.grad > 0).all()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("vanilla", EXPECTED["vanilla", True]), ("lsgan", EXPECTED["lsgan", True]), ("hinge", -mean(LOGITS))],
)
def test_generator_losses(mode: str, expected: float) -> None:
    logits = patch(LOGITS, grad=True)
    fake = torch.tensor([[0.5, -1.0], [0.0, 0.25]]).view(1, 2, 1, 2).requires_grad_()
    y = torch.tensor([[0.0, 0.0], [1.0, 0.25]]).view(1, 2, 1, 2)
    terms = generator_losses(logits, fake, y, mode)
    assert list(terms) == ["G_gan", "G_l1"]
    assert terms["G_gan"].item() == pytest.approx(expected, rel=1e-6)
    assert terms["G_l1"].item() == pytest.approx((0.5 + 1 + 1 + 0) / 4)
    terms["G_gan"].backward()
    assert (logits.grad[..., :2] < 0).all()  # descent raises the logits: fools the discriminator
    terms["G_l1"].backward()
    assert torch.equal(fake.grad.sign(), (fake.detach() - y).sign())


def test_generator_l1_of_half_precision_is_float32() -> None:
    fake = torch.full((1, 1, 1, 1), 0.1, dtype=torch.bfloat16)
    loss = generator_losses(patch(LOGITS), fake, torch.zeros(1, 1, 1, 1), "vanilla")["G_l1"]
    assert loss.dtype == torch.float32
    assert loss.item() == fake.float().item()


def test_total_weighs_every_term() -> None:
    terms = {"G_gan": torch.tensor(2.0), "G_l1": torch.tensor(0.25)}
    assert total(terms, {"G_gan": 1.0, "G_l1": 100.0, "unused": 7.0}).item() == 27.0
    with pytest.raises(KeyError, match="G_l1"):
        total(terms, {"G_gan": 1.0})
