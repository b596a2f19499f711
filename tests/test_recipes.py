"""Recipes of every kind, shrunk: from pictures to a reloaded generator.ts; all loss terms have an effect."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from helpers import CPU, noise_batch, small_recipe

import export
import test as test_stage
import train
from config import make_recipe
from inference import checkpoint
from models import fit_networks
from runtime import run_folder
from training.gan import audit, build_gan, generate, generator_terms, load_pretrained, total, train_step

# one of each pair of networks and set of loss terms; the last holds a ResNet-50
KINDS = ("coco", "photo", "restore", "anime", "places-resnet", "nazerigan224", "cgan", "manga-att-ext")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_from_pictures_to_generator_ts(name: str, pictures: Path, weights_folder: Path, tmp_path: Path) -> None:
    recipe, run = small_recipe(name, limit=6), tmp_path / "run"
    options = {"run": run, "weights": weights_folder, "device": "cpu"}
    idle = ("name", "epochs") if recipe.is_adversarial else ("name", "epochs", "ndf")  # which a recipe may not set
    settings = [f"{key}={value}" for key, value in asdict(recipe).items() if key not in idle]
    epochs = 1 + recipe.pretrain_epochs
    train.main(recipe=name, data=str(pictures), epochs=epochs, set_=settings, **options)
    train.main(epochs=3, resume=True, **options)
    assert run_folder.saved_epochs(run)[-1] == 3
    (folder,) = test_stage.main(run=run, device="cpu")
    assert len(list(folder.glob("*.png"))) == 4
    model, _ = checkpoint.load_exported(export.main(run=run, device="cpu"), CPU)
    eager = checkpoint.load_colorizer(run, 3, CPU)
    for shape in ((2, 3, 50, 71), (1, 1, 1, 1), (1, 3, 9, 90)):
        image = torch.randint(0, 256, shape, dtype=torch.uint8)
        assert model(image).shape == (shape[0], 3, *shape[2:])
        assert int((model(image).int() - eager(image).int()).abs().max()) <= 1


@pytest.mark.parametrize("name", [*KINDS[:-1], "manga-att", pytest.param(KINDS[-1], marks=pytest.mark.slow)])
def test_every_term_reaches_its_network_and_every_parameter_gets_a_gradient(name: str, weights_folder: Path) -> None:
    attention = {"attention": 32} if name == "manga-att" else {}
    recipe = small_recipe(name, batch_size=2, **attention)
    networks, batch = build_gan(recipe, CPU, "fp32"), noise_batch(recipe)
    load_pretrained(networks, recipe, weights_folder, fresh=True)
    found = audit(networks, batch, recipe)
    assert found.keys() == recipe.term_weights.keys()
    assert [term for term, audited in found.items() if not audited.is_alive] == []
    train_step(networks, batch, recipe, recipe.is_adversarial)  # attention's weight is 0 before
    terms = generator_terms(networks, batch, *generate(networks, batch.x), recipe, recipe.is_adversarial)
    total(terms, recipe.term_weights).backward()
    for key, parameter in networks.generator.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert bool(torch.isfinite(parameter.grad).all()), key
            assert parameter.grad.abs().sum() > 0, key
        else:
            assert key.startswith("extractor."), key


def test_a_recipe_is_kept_whole_in_its_run(pictures: Path, tmp_path: Path) -> None:
    options = {"epochs": 1, "batch_size": 4, "set_": ["ngf=4"], "device": "cpu"}
    run = train.main(recipe="unet32", data=str(pictures), run=tmp_path / "run", **options)
    wanted = fit_networks(make_recipe("unet32", {"epochs": 1, "batch_size": 4, "ngf": 4}))
    assert run_folder.read_run(run).recipe == wanted
