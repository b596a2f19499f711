"""What a run is about to do, settled and checked before any work, and what recipe.json records of it."""

import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from config import DEMO, RECIPES, ROOT, RUNS, Recipe, UserError, make_recipe
from data import ImageSet, Loading, mean_ab
from dataset.folders import Item
from models import build_generator, count_parameters, fit_networks, needs_two_images
from runtime.run_folder import (
    RunRecord,
    library_versions,
    newest_run,
    read_run,
    saved_epochs,
    state_path,
    write_run,
)
from training.gan import Training, term_weights

# what a resume may change
RESUMABLE = {"epochs", "save_every", "log_every", "lr", "lr_d", "precision", "compile"}


def recipe_table() -> str:
    """Return one line per recipe: its system, what it maps, its networks, losses and size."""
    rows = [("recipe", "system", "input -> output", "generator", "parameters", "discriminator", "loss", "px")]
    for name in RECIPES:
        recipe = fit_networks(make_recipe(name, {}))
        with torch.device("meta"):  # counts without drawing weights
            count = f"{count_parameters(build_generator(recipe)):,}"
        terms = [f"{weight:g} {term[2:]}" for term, weight in term_weights(recipe).items() if term[0] == "G"]
        maps = f"{recipe.input} -> {recipe.output}"
        cells = (recipe.generator, count, recipe.discriminator, " + ".join(terms), str(recipe.size))
        rows.append((name, recipe.system, maps, *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def resolve(
    recipe: str | None, data: str | None, run: Path | None, overrides: dict[str, Any], writes: bool = True
) -> tuple[Recipe, str, Path]:
    """Settle recipe, data and folder of a new run; `writes`: the folder must be free.

    Raises:
        UserError: what was given does not fit together, or the folder is taken.
    """
    made = fit_networks(make_recipe(recipe or DEMO, overrides))
    if data is None and made.name != DEMO:
        raise UserError(f"recipe {made.name} needs --data PATH (or --data {DEMO})")
    folder = Path(run or RUNS / made.name)
    if not writes:
        return made, str(data or DEMO), folder
    if (folder / "recipe.json").exists():
        name = read_run(folder).recipe.name
        hint = "go on with --resume, or name another folder with --run"
        raise UserError(f"{folder} already holds a run of recipe {name}; {hint}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty and not a run; name another folder with --run")
    return made, str(data or DEMO), folder


def resolve_resumed(
    recipe: str | None, data: str | None, run: Path | None, overrides: dict[str, Any]
) -> tuple[Recipe, str, Path]:
    """Settle recipe, data and folder of a run that goes on; it brings its own.

    Raises:
        UserError: no such run, or what was given is not what it was trained with.
    """
    folder = Path(run) if run else RUNS / recipe if recipe else newest_run(RUNS)
    stored = read_run(folder)
    kept = stored.recipe
    changes = {key: value for key, value in overrides.items() if value is not None}
    given = {"recipe": recipe or kept.name, "data": remembered(data or stored.data)}
    trained = {"recipe": kept.name, "data": stored.data}
    for key, value in {**given, **changes}.items():
        before = trained.get(key) or getattr(kept, key)
        if key not in RESUMABLE and value != before:
            raise UserError(f"{folder} was trained with {key} {before}; a resume cannot make it {value}")
    done = saved_epochs(folder)
    if done and not state_path(folder).exists():
        raise UserError(f"{state_path(folder)} is missing: {folder} can be used, but not trained on")
    if done and changes.get("epochs", done[-1]) < done[-1]:
        raise UserError(
            f"{folder} has {done[-1]} epochs already; --epochs {changes['epochs']} would be fewer"
        )
    return fit_networks(replace(kept, **changes)), stored.data, folder


def require_batch(recipe: Recipe, images: int) -> None:
    """Raise UserError where BatchNorm would be trained on a single value, for want of pictures."""
    if images == 1 and needs_two_images(recipe):
        raise UserError("1 training picture is too few for this network at this size; give it more")


def remembered(data: str) -> str:
    """Return how a run stores the name of its data: absolute, so that stages may run anywhere."""
    return str(Path(data).resolve()) if Path(data).exists() and data != DEMO else data


def describe(
    recipe: Recipe,
    data: str,
    run: Path,
    items: dict[str, list[Item]],
    loading: Loading,
    training: Training,
    hardware: str,
) -> str:
    """Return what is resolved, one line each."""
    kind = {"AB": "pairs, colour left", "BA": "pairs, colour right", "none": "pictures"}[loading.pair]
    if loading.sketch and loading.pair == "none" and data != DEMO:
        kind = "sketch and colour files" if items["train"][0].source else "pictures, lines drawn from them"
    classes = len({item.label for item in items["train"]} - {""})
    if classes > 1:
        kind += f", {classes} classes"
    judge = "none: the generator learns alone"
    if training.discriminator is not None:
        judge = f"{recipe.discriminator}, {count_parameters(training.discriminator):,} parameters"
    lines = {
        "run": run,
        "data": f"{data}: {len(items['train'])} to train, {len(items['val'])} to validate ({kind})",
        "recipe": f"{recipe.name}, {recipe.input} -> {recipe.output} at {recipe.size} px",
        "epochs": recipe.epochs
        if not recipe.pretrain_epochs
        else f"{recipe.epochs}, the first {recipe.pretrain_epochs} without the discriminator",
        "generator": f"{recipe.generator}, {count_parameters(training.generator):,} parameters to train",
        "discriminator": judge,
        "device": hardware,
    }
    return "\n".join(f"{key:<14} {value}" for key, value in lines.items())


def git_hash() -> str | None:
    """Return the commit of this code, None where it is no git checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def provenance(images: dict[str, ImageSet]) -> dict[str, Any]:
    """Return what a run was made with: data, versions, commit."""
    libraries = ("torch", "torchvision", "numpy", "pillow", "scikit-image")
    return {
        "images": {name: len(split) for name, split in images.items()},
        "fingerprints": {name: split.key for name, split in images.items()},
        "versions": library_versions(libraries),
        "git": git_hash(),
    }


def write_record(
    folder: Path,
    recipe: Recipe,
    data: str,
    loading: Loading,
    images: dict[str, ImageSet],
    training: Training,
    weights: Path | None,
    overrides: dict[str, Any],
    resume: bool,
) -> None:
    """Write recipe.json; a resume is added to what the run began with."""
    made_with = provenance(images)
    if resume:
        stored = read_run(folder)
        if stored.fingerprints != made_with["fingerprints"]:
            print("the images have changed since this run began: it goes on with those there are now")
        record = replace(stored, recipe=recipe, resumed=[*stored.resumed, made_with])
    else:
        networks = {"generator": training.generator, "discriminator": training.discriminator}
        record = RunRecord(
            recipe, remembered(data), asdict(loading),
            mean_ab=mean_ab(images["train"], recipe.size),
            weights=str(weights.resolve()) if weights else None,
            parameters={name: count_parameters(n) for name, n in networks.items() if n is not None},
            overrides=overrides,
            **made_with,
        )  # fmt: skip
    write_run(folder, record)
