"""Setting up a run: what it is about to do is settled and checked before any work, and recorded."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from config import CACHE, DEMO, ROOT, RUNS, AnyRecipe, R, Recipe, UserError, make_recipe
from data import ImageSet, Loading, load_images, mean_ab
from dataset.folders import Item
from models import count_parameters, fit_networks, needs_two_images
from runtime.run_folder import (
    RECORD,
    RunRecord,
    library_versions,
    newest_run,
    read_run,
    saved_epochs,
    state_path,
)
from training.gan import Gan

# what a resume may change
RESUMABLE = {"epochs", "save_every", "log_every", "lr", "lr_d", "precision", "compile"}
LIBRARIES = ("torch", "torchvision", "numpy", "pillow", "scikit-image")


def resolve(
    recipe: str | None, data: str | None, run: Path | None, given: Mapping[str, Any], writes: bool = True
) -> tuple[Recipe, str, Path]:
    """Settle recipe, data and folder of a new run.

    Args:
        given: recipe fields that the user set.
        writes: the folder must be free.

    Raises:
        UserError: what was given does not fit together, or the folder is taken.
    """
    made = fit_networks(make_recipe(recipe or DEMO, given))
    if data is None and made.name != DEMO:
        raise UserError(f"recipe {made.name} needs --data PATH (or --data {DEMO})")
    folder = Path(run or RUNS / made.name)
    if writes:
        taken = (folder / RECORD).exists()
        require_free(folder, f"a run of recipe {read_run(folder).recipe.name}" if taken else None)
    return made, str(data or DEMO), folder


def resolve_resumed(
    recipe: str | None, data: str | None, run: Path | None, given: Mapping[str, Any]
) -> tuple[Recipe, str, Path]:
    """Settle recipe, data and folder of a run that goes on; it brings its own.

    Raises:
        UserError: no such run, or what was given is not what it was trained with.
    """
    folder = Path(run) if run else RUNS / recipe if recipe else newest_run(RUNS)
    stored = read_run(folder)
    if recipe not in (None, stored.recipe.name):
        raise UserError(
            f"{folder} was trained with recipe {stored.recipe.name}; a resume cannot make it {recipe}"
        )
    made = resume_recipe(folder, stored.recipe, data, stored.data, given)
    return fit_networks(made), stored.data, folder


def require_free(folder: Path, content: str | None) -> None:
    """Raise UserError where a new run cannot be written into a folder; `content`: what it holds, if a run."""
    if content:
        hint = "go on with --resume, or name another folder with --run"
        raise UserError(f"{folder} already holds {content}; {hint}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty and not a run; name another folder with --run")


def resume_recipe(folder: Path, kept: R, data: str | None, kept_data: str, given: Mapping[str, Any]) -> R:
    """Return the recipe with which a run goes on: the stored one, with what a resume may change.

    Raises:
        UserError: something else was given than the run was trained with, or its state is missing.
    """
    asked = {"data": (kept_data, remembered(data or kept_data))}
    asked |= {key: (getattr(kept, key), value) for key, value in given.items() if key not in RESUMABLE}
    for key, (before, now) in asked.items():
        if now != before:
            raise UserError(f"{folder} was trained with {key} {before}; a resume cannot make it {now}")
    done = saved_epochs(folder)
    if done and not state_path(folder).exists():
        raise UserError(f"{state_path(folder)} is missing: {folder} can be used, but not trained on")
    if done and given.get("epochs", done[-1]) < done[-1]:
        raise UserError(f"{folder} has {done[-1]} epochs already; --epochs {given['epochs']} would be fewer")
    return replace(kept, **given)


def remembered(data: str) -> str:
    """Return how a run stores the name of its data: absolute, so that stages may run anywhere."""
    return str(Path(data).resolve()) if Path(data).exists() and data != DEMO else data


def require_batch(recipe: Recipe, images: int) -> None:
    """Raise UserError where BatchNorm would be trained on a single value, for want of pictures."""
    if images == 1 and needs_two_images(recipe):
        raise UserError("1 training picture is too few for this network at this size; give it more")


def describe(
    recipe: Recipe, data: str, run: Path, items: Mapping[str, list[Item]], loading: Loading, gan: Gan, on: str
) -> str:
    """Return what is resolved, one line each; `on`: device and precision."""
    kind = {"AB": "pairs, colour left", "BA": "pairs, colour right", "none": "pictures"}[loading.pair]
    if loading.sketch and loading.pair == "none" and data != DEMO:
        kind = "sketch and colour files" if items["train"][0].source else "pictures, lines drawn from them"
    classes = len({item.label for item in items["train"]} - {""})
    kind += f", {classes} classes" if classes > 1 else ""
    alone = (
        f", the first {recipe.pretrain_epochs} without the discriminator" if recipe.pretrain_epochs else ""
    )
    discriminator = "none: the generator learns alone"
    if gan.discriminator is not None:
        discriminator = f"{recipe.discriminator}, {count_parameters(gan.discriminator):,} parameters"
    return in_lines(
        run=run,
        data=f"{data}: {len(items['train'])} to train, {len(items['val'])} to validate ({kind})",
        recipe=f"{recipe.name}, {recipe.input} -> {recipe.output} at {recipe.size} px",
        epochs=f"{recipe.epochs}{alone}",
        generator=f"{recipe.generator}, {count_parameters(gan.generator):,} parameters to train",
        discriminator=discriminator,
        device=on,
    )


def in_lines(**facts: object) -> str:
    """Return a name and a value per line."""
    return "\n".join(f"{name:<14} {value}" for name, value in facts.items())


def recipe_lines(recipe: AnyRecipe) -> str:
    """Return all fields of a recipe, one per line."""
    return "\n".join(f"  {key} = {value}" for key, value in asdict(recipe).items())


def load_splits(run: Path, items: Mapping[str, list[Item]], loading: Loading) -> dict[str, ImageSet]:
    """Return the pictures to train and to validate on, decoded; makes the run folder and the cache.

    Raises:
        UserError: none of a split can be read.
        OSError: a folder cannot be made.
    """
    for place in (run, CACHE):
        place.mkdir(parents=True, exist_ok=True)  # fails now rather than after decoding
    return {name: load_images(items[name], loading, CACHE, name) for name in ("train", "val")}


def provenance(images: Mapping[str, ImageSet]) -> dict[str, Any]:
    """Return with what a run was begun or resumed: pictures, versions, commit."""
    return {
        "images": {name: len(split) for name, split in images.items()},
        "fingerprints": {name: split.key for name, split in images.items()},
        "versions": library_versions(LIBRARIES),
        "git": git_hash(),
    }


def git_hash() -> str | None:
    """Return the commit of this code, None where it is no git checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def add_resume(
    before: list[dict[str, Any]], fingerprints: Mapping[str, str], images: Mapping[str, ImageSet]
) -> list[dict[str, Any]]:
    """Return the resumes of a run and this one; says so where the pictures are not those it began with."""
    made_with = provenance(images)
    if fingerprints != made_with["fingerprints"]:
        print("the images have changed since this run began: it goes on with those there are now")
    return [*before, made_with]


def new_record(
    recipe: Recipe,
    data: str,
    loading: Loading,
    images: Mapping[str, ImageSet],
    gan: Gan,
    weights: Path | None,
    given: Mapping[str, Any],
) -> RunRecord:
    """Return what recipe.json says of a run that begins."""
    networks = {"generator": gan.generator, "discriminator": gan.discriminator}
    return RunRecord(
        recipe, remembered(data), asdict(loading),
        mean_ab=mean_ab(images["train"], recipe.size),
        weights=str(weights.resolve()) if weights else None,
        parameters={name: count_parameters(n) for name, n in networks.items() if n is not None},
        overrides=dict(given),
        **provenance(images),
    )  # fmt: skip


def resumed_record(
    stored: RunRecord, recipe: Recipe, images: Mapping[str, ImageSet], given: Mapping[str, Any]
) -> RunRecord:
    """Return what recipe.json says of a run that goes on: what it began with, and this resume."""
    overrides = None if stored.overrides is None else {**stored.overrides, **given}
    resumed = add_resume(stored.resumed, stored.fingerprints, images)
    return replace(stored, recipe=recipe, overrides=overrides, resumed=resumed)
