"""learning.py: every weight learns, one batch can be learned by heart, and scores are counted right."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train_classifier
from config import ClassifierRecipe
from data import ImageSet
from evaluation.classifier import Classifier
from runtime import atomic
from train_classifier import Training, build_training, learning_rate, train_step, validate

CPU = torch.device("cpu")
RECIPE = ClassifierRecipe(
    network="shufflenet_v2_x0_5", size=32, batch_size=8, epochs=2, lr=0.05, precision="fp32"
)


def build(**changes: Any) -> Training:
    return build_training(replace(RECIPE, **changes), ["a", "b", "c"], CPU)


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    """Return random pictures (count, 3, 32, 32) uint8 and classes (count,)."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return image, torch.arange(count) % 3


def weights(training: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.classifier.network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_step_size_by_hand() -> None:
    recipe = ClassifierRecipe(lr=0.4, warmup=0.25)
    rates = [learning_rate(recipe, 8, done) for done in range(8)]
    assert rates[:2] == pytest.approx([0.1, 0.3])  # a quarter and three quarters of the way up
    falling = [
        0.2 * (1 + math.cos(math.pi * part)) for part in (1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12)
    ]
    assert rates[2:] == pytest.approx(falling)
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert learning_rate(ClassifierRecipe(lr=0.4, warmup=0), 1, 0) == pytest.approx(0.2)
    assert all(0 < learning_rate(recipe, 1000, done) <= 0.4 for done in range(1000))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_step_is_nesterovs_on_the_cross_entropy(smoothing: float) -> None:
    training, (image, label) = build(weight_decay=0.01), batch()
    torch.manual_seed(RECIPE.seed)
    other = build(weight_decay=0.01).classifier
    optimizer = torch.optim.SGD(other.parameters(), 0.05, 0.9, weight_decay=0.01, nesterov=True)
    for _ in range(3):
        loss = train_step(training, image, label, smoothing)
        logits = other(image).log_softmax(1)
        wanted = (1 - smoothing) * F.one_hot(label, 3) + smoothing / 3
        expected = -(wanted * logits).sum(1).mean()
        torch.testing.assert_close(loss, expected.detach())
        assert not loss.requires_grad
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
    for name, value in weights(training).items():
        torch.testing.assert_close(value, other.network.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_gradients_reach_every_parameter() -> None:
    training, (image, label) = build(momentum=0.0, weight_decay=0.0), batch()
    before = {name: value.clone() for name, value in training.classifier.named_parameters()}
    training.optimizer.param_groups[0]["lr"] = 1.0
    train_step(training, image, label, 0.1)
    for name, value in training.classifier.named_parameters():
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_batch_is_learned_by_heart(precision: str) -> None:
    training, (image, label) = build(precision=precision), batch()
    losses = [float(train_step(training, image, label, 0.0)) for _ in range(40)]
    assert losses[0] > 0.8
    assert losses[-1] < 0.1


def test_the_seed_decides_the_weights() -> None:
    assert same(weights(build()), weights(build()))
    assert not same(weights(build()), weights(build(seed=1)))


def test_a_state_restores_everything() -> None:
    training, other = build(network="squeezenet1_1"), build(network="squeezenet1_1", seed=1)
    training.epoch, training.step, training.steps = 3, 2, 7
    train_step(training, *batch(), 0.1)
    atomic.save(Path("state.pt"), training.state_dict())
    expected = [float(train_step(training, *batch(), 0.1)) for _ in range(3)]  # with dropout
    other.load_state_dict(atomic.load(Path("state.pt")))
    assert other.progress() == {"epoch": 3, "step": 2, "steps": 7}
    assert [float(train_step(other, *batch(), 0.1)) for _ in range(3)] == expected
    assert same(weights(training), weights(other))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "tinct-state-2"}, r"^state\.pt is not a training state in the format tinct-classifier"),
        ({"network": {}}, r"^state\.pt does not fit this classifier$"),
        ({"optimizer": {"state": {}, "param_groups": []}}, r"^state\.pt does not fit this classifier$"),
    ],
)
def test_states_that_do_not_fit(change: dict[str, Any], sentence: str) -> None:
    training = build()
    with pytest.raises(ValueError, match=sentence):
        training.load_state_dict({**training.state_dict(), **change})


def test_weights_that_are_not_finite_are_found() -> None:
    training = build()
    training.check_finite()
    training.classifier.network.fc.bias.data[1] = math.nan
    with pytest.raises(
        ValueError, match=r"^the classifier has weights that are not finite; nothing was over"
    ):
        training.check_finite()


class Red(nn.Module):
    """Takes a picture's class from its red level, and the likelihood of the others from their distance."""

    def forward(self, x: Tensor) -> Tensor:
        level = x[:, :1].mean((2, 3)) * 0.229 + 0.485  # (N, 1) in [0, 1]
        return -(255 * level - torch.arange(6.0)).abs()  # (N, 6)


def numbered(levels: list[int], height: int = 8, width: int = 8) -> ImageSet:
    """Return pictures of one red level each."""
    pixels = np.zeros((len(levels), height, width, 3), np.uint8)
    pixels[..., 0] = np.array(levels)[:, None, None]
    index = np.array([[i * height * width * 3, height, width] for i in range(len(levels))])
    names = [str(level) for level in levels]
    return ImageSet(names, names, pixels.ravel(), index, 3, [], 0, "key")


def test_scores_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPE, size=8, load_size=8, batch_size=4)
    seen = Classifier("red", Red(), list("abcdef"), 8)
    training = Training(seen, None, None, CPU, "fp32", epoch=3)
    levels, labels = [0, 1, 2, 3, 4, 5, 0, 0, 0, 5], torch.tensor([0, 1, 2, 3, 4, 5, 1, 4, 5, 0])
    scores = validate(training, recipe, numbered(levels), labels)
    assert seen.training  # as before
    # Wilson for 6 of 10 at z = 1.959964: centre (0.6 + z^2/20) / (1 + z^2/10), and its half width
    z = 1.959963984540054
    half = z * math.sqrt(0.6 * 0.4 / 10 + z**2 / 400) / (1 + z**2 / 10)
    centre = (0.6 + z**2 / 20) / (1 + z**2 / 10)
    logits = -(torch.tensor(levels)[:, None] - torch.arange(6.0)).abs()
    assert scores == pytest.approx(
        {
            "epoch": 3, "images": 10, "val_loss": float(F.cross_entropy(logits, labels)),
            "top1": 0.6, "top1_low": centre - half, "top1_high": centre + half,
            "top5": 0.8, "top5_low": 0.490162, "top5_high": 0.943318,
        },
        abs=1e-5,
    )  # fmt: skip


def test_the_whole_centre_square_is_scored() -> None:
    shown = []

    class Watched(Classifier):
        def forward(self, image: Tensor) -> Tensor:
            shown.append(tuple(image.shape))
            return super().forward(image)

    recipe = replace(RECIPE, size=8, load_size=12, batch_size=4)
    training = Training(Watched("red", Red(), list("abcdef"), 8), None, None, CPU, "fp32")
    validate(training, recipe, numbered([0] * 6, 12, 20), torch.zeros(6, dtype=torch.long))
    assert shown == [(4, 3, 12, 12), (2, 3, 12, 12)]  # which the classifier makes smaller, as it will then


def test_scoring_changes_nothing_and_draws_nothing() -> None:
    training, twin = build(network="squeezenet1_1"), build(network="squeezenet1_1")
    images = numbered([1, 2, 3], 32, 32)
    for each in (training, twin):
        torch.manual_seed(3)
        train_step(each, *batch(), 0.1)
        if each is training:
            validate(each, RECIPE, images, torch.tensor([0, 1, 2]))
        train_step(each, *batch(), 0.1)
    assert same(weights(training), weights(twin))


def test_precision_fp16_needs_cuda() -> None:
    assert train_classifier.pick_precision("fp32", CPU) == "fp32"
    with pytest.raises(ValueError, match=r"^precision fp16 needs CUDA"):
        build(precision="fp16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_one_batch_is_learned_by_heart_on_a_gpu(precision: str) -> None:
    training = build_training(replace(RECIPE, precision=precision), ["a", "b", "c"], torch.device("cuda"))
    image, label = (part.cuda() for part in batch())
    losses = [float(train_step(training, image, label, 0.0)) for _ in range(60)]
    assert losses[-1] < 0.1 < losses[0]
