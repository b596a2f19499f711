"""The audit: a loss term whose gradient never arrives is named, and the command fails without a trace."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import CPU, MeanColor, noise_batch, run_stage, times_of, tiny_recipe
from torch import Tensor

import train
from config import RECIPES, Recipe
from training import gan
from training.gan import Audited, Gan, audit, build_gan


def audited(recipe: Recipe, change: Callable[[Gan], None] = lambda _: None) -> dict[str, Audited]:
    """Audit a recipe after a change of its networks."""
    networks = build_gan(recipe, CPU, "bf16")  # the audit is in float32 all the same
    change(networks)
    return audit(networks, noise_batch(recipe), recipe)


def dead(found: dict[str, Audited]) -> list[str]:
    return [name for name, term in found.items() if not term.is_alive]


def rewire(patch: pytest.MonkeyPatch, name: str, how: Callable[[Tensor], Tensor]) -> None:
    """Let a function of gan.py return something made of its result."""
    real = getattr(gan, name)

    def changed(*args: object) -> object:
        found = real(*args)
        return {k: how(v) for k, v in found.items()} if isinstance(found, dict) else how(found)

    patch.setattr(gan, name, changed)


@pytest.mark.parametrize(
    "fields",
    [
        {"gan_mode": "hinge", "spectral_norm": True}, {"discriminator": "none"},
        {"pretrain_epochs": 50, "input": "gray", "output": "rgb"},
    ],
)  # fmt: skip
def test_healthy_recipes_pass(fields: dict[str, object]) -> None:
    recipe = tiny_recipe(lambda_mse=1.0, **fields)
    found = audited(recipe)
    assert found.keys() == recipe.term_weights.keys()  # the terms of both stages, whatever comes first
    assert dead(found) == []


def test_norms_are_those_of_autograd() -> None:
    recipe = tiny_recipe(dropout=0.0)
    found, networks, batch = audited(recipe), build_gan(recipe, CPU, "fp32"), noise_batch(recipe)
    gan.PIXEL["G_l1"](networks.generator(batch.x), batch.y).backward()
    ends = networks.generator.last[0].weight, networks.generator.encoder[0][0].weight
    assert found["G_l1"][1:] == tuple(pytest.approx(end.grad.norm().item(), rel=1e-4) for end in ends)


@pytest.mark.parametrize(
    ("function", "change", "named"),
    [
        ("adversarial_loss", Tensor.detach, ["G_gan"]),
        ("discriminator_terms", Tensor.detach, ["D_real", "D_fake"]),
        ("adversarial_loss", lambda loss: loss * math.nan, ["G_gan"]),
        ("adversarial_loss", lambda loss: loss + torch.sqrt(loss * 0.0), ["G_gan"]),  # its gradient is NaN
    ],
)
def test_a_term_without_a_finite_gradient_is_named(
    monkeypatch: pytest.MonkeyPatch, function: str, change: Callable[[Tensor], Tensor], named: list[str]
) -> None:
    rewire(monkeypatch, function, change)
    assert dead(audited(tiny_recipe())) == named


def test_an_extractor_without_gradient_is_named() -> None:
    recipe = tiny_recipe(lambda_perceptual=1.0, anime_share=0.5)

    def install(networks: Gan, dead: bool) -> None:
        networks.extractors = {"G_perceptual": MeanColor(), "G_anime": MeanColor(dead)}

    assert dead(audited(recipe, lambda g: install(g, dead=True))) == ["G_anime"]  # as the manga system had it
    assert dead(audited(recipe, lambda g: install(g, dead=False))) == []


def test_a_term_that_reaches_the_last_layer_only_is_named() -> None:
    def cut(networks: Gan) -> None:
        networks.generator.last.register_forward_pre_hook(lambda _, args: (args[0].detach(),))

    assert dead(audited(tiny_recipe(), cut)) == ["G_gan", "G_l1"]


def test_every_number_of_a_term_counts() -> None:
    assert Audited(0.0, 1.0, 1.0).is_alive  # a value of 0 is allowed
    for i, broken in ((0, math.nan), (1, 0.0), (1, math.inf), (2, 0.0), (2, math.nan)):
        assert not Audited(*(broken if j == i else 1.0 for j in range(3))).is_alive


def audit_command(pictures: Path, *more: str) -> int:
    """Run train.py --audit as a command; returns its exit code."""
    settings = ["--size", "32", "--batch-size", "4", "--set", "ngf=4", "--set", "ndf=4", *more]
    return run_stage("train", "--recipe", "coco", "--data", pictures, "--device", "cpu", "--audit", *settings)


def test_the_command_passes_or_names_a_term(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit_command(pictures, "--set", "pretrain_epochs=5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "audit passed: every term reaches its network"
    assert [line.split()[0] for line in lines[-6:-1]] == ["term", "G_gan", "G_l1", "D_real", "D_fake"]
    assert [line.split()[1] for line in lines[-5:-1]] == ["1", "100", "0.5", "0.5"]  # weights
    rewire(monkeypatch, "adversarial_loss", Tensor.detach)
    assert audit_command(pictures) == 1
    assert "audit failed: no finite, nonzero gradient from G_gan\n" in capsys.readouterr().out
    monkeypatch.setitem(RECIPES, "coco", {"lambda_perceptual": 1.0})
    monkeypatch.setattr(gan, "load_pretrained", lambda *_, **__: None)  # so a term is never computed
    assert audit_command(pictures) == 1
    assert "gradient from G_gan G_perceptual\n" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]  # decoded pictures, no run


def test_an_audit_of_a_run_changes_nothing_in_it(trained: Path) -> None:
    before = times_of(trained)
    assert train.main(run=trained, resume=True, audited=True, device="cpu") == trained
    assert times_of(trained) == before
