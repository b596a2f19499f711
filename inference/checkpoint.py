"""A trained generator <-> a file: checkpoints of a run, and the exported generator.ts."""

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config import Recipe, UserError
from inference.colorizer import Colorizer, use_batch_statistics
from models import GENERATORS, build_generator
from runtime.atomic import load, save
from runtime.run_folder import epoch_path

FORMAT = "tinct-generator-2"
EXPORT_FORMAT = 1  # of generator.ts: raised when what its forward takes, gives or is set by changes


def build_colorizer(recipe: Recipe) -> Colorizer:
    """Build the untrained Colorizer of a recipe that went through models.fit_networks."""
    least = GENERATORS[recipe.generator].smallest
    generator = build_generator(recipe)
    return Colorizer(generator, recipe.input, recipe.output, recipe.size, 2**recipe.depth, least)


def save_generator(run: Path, epoch: int, recipe: Recipe, generator: nn.Module) -> None:
    """Write the generator of one epoch, with the recipe that rebuilds it."""
    payload = {
        "format": FORMAT,
        "epoch": epoch,
        "recipe": asdict(recipe),
        "generator": generator.state_dict(),
    }
    save(epoch_path(run, epoch), payload)


def load_colorizer(run: Path, epoch: int, device: torch.device) -> Colorizer:
    """Return the Colorizer of one saved epoch, ready for inference.

    Raises:
        UserError: missing, damaged, or not a generator of this project.
    """
    path = epoch_path(run, epoch)
    payload = load(path)
    if payload.get("format") != FORMAT:
        raise UserError(f"{path} is not a generator in the format {FORMAT}")
    recipe = Recipe.from_record(payload["recipe"])
    with torch.random.fork_rng(devices=[]):  # building draws weights; a training run must not notice
        colorizer = build_colorizer(recipe)
    try:
        colorizer.generator.load_state_dict(payload["generator"])
    except RuntimeError:
        raise UserError(f"{path} is damaged: its weights do not fit its recipe") from None
    if recipe.norm_stats == "batch":
        colorizer.apply(use_batch_statistics)
    return colorizer.eval().requires_grad_(False).to(device)


def load_exported(path: Path, device: torch.device) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """Return an exported generator.ts and its metadata.

    Raises:
        UserError: missing, not TorchScript, not written by export.py, or by a newer one.
    """
    if not path.is_file():
        raise UserError(f"no model {path}; write one with: python export.py")
    files = {"tinct.json": ""}
    try:
        with path.open("rb"), warnings.catch_warnings():  # torch does not say what forbids to open a file
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, and asked for
            model = torch.jit.load(path, map_location="cpu", _extra_files=files)
    except (RuntimeError, ValueError):
        raise UserError(f"{path} is not a TorchScript file, or it is damaged") from None
    try:
        metadata = json.loads(files["tinct.json"])
        metadata["recipe"]["input"], metadata["version"]
        written = int(metadata.get("format", 0))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is a TorchScript file, but not one written by export.py") from None
    if written != EXPORT_FORMAT:
        age = f"the newer version {metadata['version']}" if written > EXPORT_FORMAT else "an older version"
        raise UserError(f"{path} is of {age} of this project; export it again with this one")
    return model.eval().to(device), metadata


def infer(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Run an exported generator, without the profiling that makes the first image take twice as long."""
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        return model(image)
