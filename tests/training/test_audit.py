"""audit.py: a loss term whose gradient never arrives is named, and the command fails without a trace."""

import math
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import TINY
from torch import Tensor, nn

import train
from config import RECIPES, ROOT, Recipe
from imaging import color
from models import FrozenFeatures
from training import gan
from training.gan import Batch, Training, audit, build_training, end_weights, failures, table, term_weights

CPU = torch.device("cpu")
AMP = torch.autocast("cpu", enabled=False)
Results = dict[str, tuple[float, float, float]]


class Mean(FrozenFeatures):
    """An extractor that sees a picture's local mean colour; `dead` forgets where it came from."""

    def __init__(self, dead: bool = False) -> None:
        super().__init__(nn.AvgPool2d(4), (0.0,) * 3, (1.0,) * 3)
        self.dead = dead

    def forward(self, rgb01: Tensor) -> list[Tensor]:
        seen = self.body(self.normalise(rgb01))
        return [seen.detach() if self.dead else seen]


def named(results: dict[str, tuple[float, float, float]], *missing: str) -> list[str]:
    """Return the failures of results whose terms all have a weight, and of terms that are not among them."""
    return failures(results, dict.fromkeys([*results, *missing], 1.0))


def test_a_term_with_a_weight_that_is_never_computed_is_named() -> None:
    assert named({"G_l1": (1.0, 1.0, 1.0)}, "G_anime") == ["G_anime"]


def tiny(**fields: object) -> Recipe:
    return Recipe("x", **{"size": 32, "ngf": 4, "ndf": 4, "lambda_mse": 1.0, **fields})


def batch(recipe: Recipe) -> Batch:
    noise = torch.Generator().manual_seed(0)
    source, target = (
        torch.randint(0, 256, (2, 3, 32, 32), generator=noise, dtype=torch.uint8) for _ in range(2)
    )
    return Batch(color.encode(source, recipe.input), color.encode(target, recipe.output), target)


def run(recipe: Recipe, change: Callable[[Training], None] = lambda _: None) -> Results:
    """Audit a recipe after a change of its training."""
    training = build_training(recipe, CPU, "fp32")
    change(training)
    return audit(training, batch(recipe), recipe)


def rewire(patch: pytest.MonkeyPatch, name: str, how: Callable[[Tensor], Tensor]) -> None:
    """Let a function of losses.py return something made of its result."""
    real = getattr(gan, name)

    def changed(*args: object) -> object:
        found = real(*args)
        return {k: how(v) for k, v in found.items()} if isinstance(found, dict) else how(found)

    patch.setattr(gan, name, changed)


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"gan_mode": "lsgan"}, {"gan_mode": "hinge"}, {"discriminator": "none"}, {"spectral_norm": True},
        {"pretrain_epochs": 200}, {"pretrain_epochs": 3}, {"input": "gray", "output": "rgb"},
    ],
)  # fmt: skip
def test_healthy_recipes_pass(fields: dict[str, object]) -> None:
    recipe = tiny(**fields)
    results = run(recipe)
    assert results.keys() == term_weights(recipe).keys()  # the terms of both stages, whatever comes first
    assert named(results) == []
    for value, *norms in results.values():
        assert math.isfinite(value)
        assert min(norms) > 0


def test_norms_are_those_of_autograd() -> None:
    recipe = tiny(dropout=0.0)
    results, training, given = run(recipe), build_training(recipe, CPU, "fp32"), batch(recipe)
    gan.PIXEL["G_l1"](training.generator(given.x), given.y).backward()
    ends = training.generator.last[0].weight, training.generator.encoder[0][0].weight
    assert [id(weight) for weight in end_weights(training.generator)] == [id(end) for end in ends]
    assert results["G_l1"][1:] == tuple(pytest.approx(end.grad.norm().item(), rel=1e-4) for end in ends)


@pytest.mark.parametrize(
    ("function", "dead"), [("adversarial_loss", ["G_gan"]), ("discriminator_losses", ["D_real", "D_fake"])]
)
def test_a_detached_term_is_named(monkeypatch: pytest.MonkeyPatch, function: str, dead: list[str]) -> None:
    rewire(monkeypatch, function, Tensor.detach)
    results = run(tiny())
    assert named(results) == dead
    assert results[dead[0]][1:] == (0.0, 0.0)


def test_a_detached_image_is_named_as_the_published_system_had_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def detach(training: Training) -> None:  # the U-ResNet system: G's own turn saw a detached fake
        real = training.discriminator.forward
        training.discriminator.forward = lambda x, y: real(x, y.detach())

    assert named(run(tiny(), detach)) == ["G_gan"]


def test_an_extractor_without_gradient_is_named() -> None:
    recipe = tiny(lambda_perceptual=1.0, anime_share=0.5)

    def install(training: Training, dead: bool) -> None:
        training.extractors = {"G_perceptual": Mean(), "G_anime": Mean(dead)}

    assert named(run(recipe, lambda t: install(t, dead=True))) == ["G_anime"]  # as the manga system had it
    assert named(run(recipe, lambda t: install(t, dead=False))) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_term_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    rewire(monkeypatch, "adversarial_loss", lambda loss: loss * value)
    results = run(tiny())
    assert named(results) == ["G_gan"]
    assert not math.isfinite(results["G_gan"][0])


def test_a_finite_term_with_a_nan_gradient_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rewire(monkeypatch, "adversarial_loss", lambda loss: loss + torch.sqrt(loss * 0.0))
    results = run(tiny())
    assert math.isfinite(results["G_gan"][0])
    assert named(results) == ["G_gan"]


def test_a_term_that_reaches_the_last_layer_only_is_named() -> None:
    def cut(training: Training) -> None:
        training.generator.last.register_forward_pre_hook(lambda _, args: (args[0].detach(),))

    assert named(run(tiny(), cut)) == ["G_gan", "G_l1", "G_mse"]


def test_failures_look_at_every_number() -> None:
    good = (1.0, 0.5, 0.5)
    assert named({"good": good, "zero": (0.0, 1.0, 1.0)}) == []  # a value of 0 is allowed
    for i, broken in ((0, math.nan), (1, 0.0), (1, math.inf), (2, 0.0), (2, math.nan)):
        assert named({"good": good, "bad": tuple(broken if j == i else 1.0 for j in range(3))}) == ["bad"]


def test_table_has_a_line_per_term() -> None:
    lines = table({"G_l1": (0.25, 1e-3, 2e-3)}, {"G_l1": 100.0, "unused": 1.0}).splitlines()
    assert lines[0].split() == ["term", "weight", "value", "|grad|", "last", "|grad|", "first"]
    assert lines[1].split() == ["G_l1", "100", "0.25", "0.001", "0.002"]
    assert len(lines) == 2


def audit_command(pictures: Path, *more: str) -> int:
    """Run train.py --audit as a command; returns its exit code."""
    source = ["--recipe", "coco", "--data", str(pictures)]
    settings = ["--size", "32", "--batch-size", "4", "--set", "ngf=4", "--set", "ndf=4", *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *source, "--device", "cpu", "--audit", *settings])
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def test_command_passes(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit_command(pictures, "--set", "pretrain_epochs=5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "audit passed: every term reaches its network"
    assert [line.split()[0] for line in lines[-5:-1]] == ["G_gan", "G_l1", "D_real", "D_fake"]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]  # decoded pictures, no run


def test_command_fails_with_the_term_named(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rewire(monkeypatch, "adversarial_loss", Tensor.detach)
    assert audit_command(pictures) == 1
    assert "audit failed: no finite, nonzero gradient from G_gan\n" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_audit_of_a_run_changes_nothing_in_it(trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert train.main(run=trained, resume=True, audited=True, device="cpu") == trained
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_the_audit_is_of_the_terms_that_train(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    assert audit.__globals__["generator_terms"] is gan.generator_terms
    assert audit.__globals__["discriminator_terms"] is gan.discriminator_terms
    rewire(monkeypatch, "perceptual_loss", Tensor.detach)
    monkeypatch.setitem(RECIPES, "coco", {"lambda_perceptual": 1.0})
    monkeypatch.setattr(
        train, "load_pretrained", lambda training, *_, **__: training.extractors.update(G_perceptual=Mean())
    )
    with pytest.raises(SystemExit) as stopped:
        train.main(recipe="coco", data=str(pictures), audited=True, **TINY)
    assert stopped.value.code == 1
