"""Every recipe, shrunk, from pictures to a reloaded generator.ts; its loss terms all reach their networks."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import export
import test as test_stage
import train
from config import RECIPES, Recipe, make_recipe
from imaging import color
from inference import checkpoint
from runtime import run_folder
from training import gan
from training.gan import (
    Batch,
    Training,
    audit,
    build_training,
    failures,
    generator_terms,
    load_pretrained,
    term_weights,
    train_step,
)

CPU = torch.device("cpu")
AMP = torch.autocast("cpu", enabled=False)
SIZES = {"unet32": 32, "nazerigan32": 32, "unet224": 96, "nazerigan224": 160, "cgan": 224}  # others 64 px
TRAINED = {**{name: {} for name in RECIPES}, "manga-att-32": {"attention": 32}}  # and one with a field set


def shrunk(name: str) -> dict[str, Any]:
    """Return what makes a recipe small; the U-Nets keep 4 px at the bottleneck, where attention works."""
    size = SIZES.get(name, 64)
    fields = {"size": size, "load_size": size, "ngf": 4, "ndf": 4, "batch_size": 6, "samples": 2, "epochs": 2}
    if make_recipe(name, {}).generator.startswith("unet") and "32" not in name and "224" not in name:
        fields["depth"] = 4
    if make_recipe(name, {}).generator.endswith("-ext"):  # which works at 360 px, whatever the size
        fields |= {"batch_size": 2, "limit": 4}
    if RECIPES[name].get("pretrain_epochs"):
        fields["pretrain_epochs"] = 1
    return fields


def prepare(name: str, weights: Path) -> tuple[Recipe, Training, Batch]:
    """Build a shrunk recipe's training, and a batch of noise."""
    base = name.removesuffix("-32") if name not in RECIPES else name
    recipe = make_recipe(base, {**shrunk(base), "precision": "fp32", "batch_size": 2, **TRAINED[name]})
    training = build_training(recipe, CPU, "fp32")
    load_pretrained(training, recipe, weights, fresh=True)
    noise = torch.Generator().manual_seed(0)
    shape = (2, 3, recipe.size, recipe.size)
    source, target = (torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8) for _ in range(2))
    batch = Batch(color.encode(source, recipe.input), color.encode(target, recipe.output), target)
    return recipe, training, batch


def test_each_recipe_says_what_it_stands_for() -> None:
    assert RECIPES.keys() == RECIPES.keys()
    assert len(RECIPES) == 16


@pytest.mark.parametrize("name", RECIPES)
def test_from_pictures_to_generator_ts(
    name: str, pictures: Path, weights_folder: Path, tmp_path: Path
) -> None:
    settings = [f"{key}={value}" for key, value in shrunk(name).items() if key != "epochs"]
    run = tmp_path / "run"
    options = {"run": run, "weights": weights_folder, "device": "cpu", "set_": settings}
    train.main(recipe=name, data=str(pictures), epochs=1, save_every=1, **options)
    train.main(run=run, epochs=2, weights=weights_folder, device="cpu", resume=True)
    assert run_folder.saved_epochs(run) == [1, 2]
    (folder,) = test_stage.main(run=run, device="cpu")
    assert len(list(folder.glob("*.png"))) == 4
    model, _ = checkpoint.load_exported(export.main(run=run, device="cpu"), CPU)
    image = torch.randint(0, 256, (2, 3, 50, 71), dtype=torch.uint8)
    eager = checkpoint.load_colorizer(run, 2, CPU)
    assert model(image).shape == (2, 3, 50, 71)
    assert int((model(image).int() - eager(image).int()).abs().max()) <= 1


@pytest.mark.parametrize("name", TRAINED)
def test_audit_passes_and_every_parameter_gets_a_gradient(name: str, weights_folder: Path) -> None:
    recipe, training, batch = prepare(name, weights_folder)
    results = audit(training, batch, recipe)
    assert results.keys() == term_weights(recipe).keys()
    assert failures(results, term_weights(recipe)) == []
    train_step(training, batch, recipe, AMP)  # attention's weight is 0 before
    fake = training.generator(batch.x)
    terms = generator_terms(training, batch, fake, recipe, AMP)
    gan.total(terms, term_weights(recipe)).backward()
    for key, parameter in training.generator.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert bool(torch.isfinite(parameter.grad).all()), key
            assert parameter.grad.abs().sum() > 0, key
        else:
            assert key.startswith("extractor."), key


def test_a_recipe_is_kept_whole_in_its_run(pictures: Path, tmp_path: Path) -> None:
    run = train.main(
        recipe="unet32", data=str(pictures), run=tmp_path / "run", epochs=1, batch_size=4, device="cpu",
        set_=["ngf=4"],
    )  # fmt: skip
    stored = run_folder.read_run(run)["recipe"]
    assert stored == asdict(make_recipe("unet32", {"epochs": 1, "batch_size": 4, "ngf": 4}))
