"""Setting up a run: what it is about to do is settled and checked before any work, and recorded."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from config import CACHE, DEMO, ROOT, RUNS, AnyRecipe, Recipe, UserError, make_recipe
from data import ImageSet, Loading, load_images
from dataset.folders import Item
from models import fit_networks, needs_two_images
from runtime import run_folder
from runtime.run_folder import R, Record, RunRecord, saved_epochs, state_path

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
        require_free(folder)
    return made, str(data or DEMO), folder


def resolve_resumed(
    recipe: str | None, data: str | None, run: Path | None, given: Mapping[str, Any]
) -> tuple[Recipe, RunRecord, Path]:
    """Settle the recipe of a run that goes on; returns what is stored of it and its folder, too.

    Raises:
        UserError: no such run, or what was given is not what it was trained with.
    """
    folder = Path(run) if run else RUNS / recipe if recipe else run_folder.newest_run()
    stored = run_folder.read_run(folder)
    name = {"name": recipe} if recipe else {}
    return fit_networks(resume_recipe(folder, stored, data, {**given, **name})), stored, folder


def require_free(folder: Path) -> None:
    """Raise UserError where a folder holds something, so that no new run can be written into it."""
    if (folder / run_folder.RECORD).exists() or (folder / run_folder.CLASSIFIER_RECORD).exists():
        hint = "go on with --resume, or name another folder with --run"
        raise UserError(f"{folder} already holds a run; {hint}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty and not a run; name another folder with --run")


def resume_recipe(folder: Path, stored: Record, data: str | None, given: Mapping[str, Any]) -> Any:
    """Return the recipe with which a run goes on: the stored one, with what a resume may change.

    Raises:
        UserError: something else was given than the run was trained with, or its state is missing.
    """
    asked = {"data": (stored.data, remembered(data or stored.data))}
    asked |= {key: (getattr(stored.recipe, key), value) for key, value in given.items()}
    for key, (before, now) in asked.items():
        if key not in RESUMABLE and now != before:
            key = "recipe" if key == "name" else key
            raise UserError(f"{folder} was trained with {key} {before}; a resume cannot make it {now}")
    done = saved_epochs(folder)
    if done and not state_path(folder).exists():
        raise UserError(f"{state_path(folder)} is missing: {folder} can be used, but not trained on")
    if done and given.get("epochs", done[-1]) < done[-1]:
        raise UserError(f"{folder} has {done[-1]} epochs already; --epochs {given['epochs']} would be fewer")
    return replace(stored.recipe, **given)


def remembered(data: str) -> str:
    """Return how a run stores the name of its data: absolute, so that stages may run anywhere."""
    return str(Path(data).resolve()) if Path(data).exists() and data != DEMO else data


def require_batch(recipe: Recipe, images: int) -> None:
    """Raise UserError where BatchNorm would be trained on a single value, for want of pictures."""
    if images == 1 and needs_two_images(recipe):
        raise UserError("1 training picture is too few for this network at this size; give it more")


def describe(
    recipe: Recipe, data: str, items: Mapping[str, list[Item]], loading: Loading, sizes: Mapping[str, int]
) -> dict[str, object]:
    """Return what is to be announced of a colouriser; `sizes`: network -> number of parameters."""
    kind = {"AB": "pairs, colour left", "BA": "pairs, colour right", "none": "pictures"}[loading.pair]
    if loading.sketch and loading.pair == "none" and data != DEMO:
        kind = "sketch and colour files" if items["train"][0].source else "pictures, lines drawn from them"
    classes = len({item.label for item in items["train"]} - {""})
    kind += f", {classes} classes" if classes > 1 else ""
    alone = f", the first {recipe.pretrain_epochs} without the discriminator"
    facts = {
        "data": f"{data}: {len(items['train'])} to train, {len(items['val'])} to validate ({kind})",
        "recipe": f"{recipe.name}, {recipe.input} -> {recipe.output} at {recipe.size} px",
        "epochs": f"{recipe.epochs}{alone if recipe.pretrain_epochs else ''}",
        "generator": f"{recipe.generator}, {sizes['generator']:,} parameters to train",
        "discriminator": "none: the generator learns alone",
    }
    if "discriminator" in sizes:
        facts["discriminator"] = f"{recipe.discriminator}, {sizes['discriminator']:,} parameters"
    return facts


def announce(recipe: AnyRecipe, facts: Mapping[str, object], all_fields: bool) -> None:
    """Print what is resolved, one line each."""
    print("\n".join(f"{name:<14} {value}" for name, value in facts.items()), flush=True)
    if all_fields:
        print("\n".join(f"  {key} = {value}" for key, value in asdict(recipe).items()))


def load_splits(run: Path, items: Mapping[str, list[Item]], loading: Loading) -> dict[str, ImageSet]:
    """Return the pictures to train and to validate on, decoded; makes the run folder and the cache."""
    for place in (run, CACHE):
        place.mkdir(parents=True, exist_ok=True)  # fails now rather than after decoding
    return {name: load_images(items[name], loading, CACHE, name) for name in ("train", "val")}


def provenance(images: Mapping[str, ImageSet]) -> dict[str, Any]:
    """Return with what a run was begun or resumed: pictures, versions, commit."""
    return {
        "images": {name: len(split) for name, split in images.items()},
        "fingerprints": {name: split.key for name, split in images.items()},
        "versions": run_folder.library_versions(LIBRARIES),
        "git": git_hash(),
    }


def git_hash() -> str | None:
    """Return the commit of this code, None where it is no git checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def record_fields(
    recipe: AnyRecipe, data: str, loading: Loading, images: Mapping[str, ImageSet], weights: Path | None
) -> dict[str, Any]:
    """Return what the record of every new run says."""
    folder = str(weights.resolve()) if weights else None
    shared = {"recipe": recipe, "data": remembered(data), "loading": asdict(loading), "weights": folder}
    return {**shared, **provenance(images)}


def resumed(stored: R, recipe: AnyRecipe, images: Mapping[str, ImageSet], **changes: Any) -> R:
    """Return the record of a run that goes on; says so where its pictures are not those it began with."""
    made_with = provenance(images)
    if stored.fingerprints != made_with["fingerprints"]:
        print("the images have changed since this run began: it goes on with those there are now")
    return replace(stored, recipe=recipe, resumed=[*stored.resumed, made_with], **changes)
