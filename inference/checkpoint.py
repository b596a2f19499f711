"""A trained generator <-> a file: the checkpoints of a run, and the exported generator.ts."""

import json
import re
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from config import VERSION, Recipe, UserError
from inference.colorizer import Colorizer, use_batch_statistics
from models import GENERATORS, build_generator
from runtime.atomic import load, save
from runtime.device import computed_in
from runtime.run_folder import epoch_path, read_run

FORMAT = "tinct-generator-2"
EXPORT_FORMAT = 2  # of generator.ts; to be raised when its forward or its attributes change: 2 takes hints
READABLE = (1, 2)  # formats of generator.ts that `infer` can run
METADATA = "tinct.json"  # the file inside an exported file that holds an ExportRecord


@dataclass(frozen=True)
class ExportRecord:
    """What an exported file says of itself: the content of METADATA."""

    recipe: Recipe
    epoch: int
    precision: str  # of the network: fp32 | fp16 | bf16
    format: int = EXPORT_FORMAT
    version: str = VERSION  # of this project
    torch: str = torch.__version__  # that wrote the file
    trained_on: str = ""  # data set, see RunRecord.trained_on; earlier files do not say

    def __str__(self) -> str:
        """Say what is about to run."""
        seen = f", trained on {self.trained_on}" if self.trained_on else ""
        return f"recipe {self.recipe.name}, epoch {self.epoch}, {self.precision}{seen}"

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps(asdict(self))


class Exported(NamedTuple):
    """A trained generator in memory."""

    module: nn.Module  # a Colorizer, scripted where it comes from an exported file, to be run by `infer`
    record: ExportRecord


def build_colorizer(recipe: Recipe) -> Colorizer:
    """Build the untrained Colorizer of a recipe that went through models.fit_networks."""
    generator, least = build_generator(recipe), GENERATORS[recipe.generator].smallest
    return Colorizer(generator, recipe.input, recipe.output, recipe.work_size, 2**recipe.depth, least, recipe.hints)


def save_generator(run: Path, epoch: int, recipe: Recipe, generator: nn.Module) -> None:
    """Write the generator of one epoch, with the recipe that rebuilds it."""
    origin = {"format": FORMAT, "epoch": epoch, "recipe": asdict(recipe)}
    save(epoch_path(run, epoch), {**origin, "generator": generator.state_dict()})


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
    with torch.random.fork_rng(devices=[]):  # building draws random weights; a training run must not notice
        colorizer = build_colorizer(recipe)
    try:
        colorizer.generator.load_state_dict(payload["generator"])
    except RuntimeError:
        raise UserError(f"{path} is damaged: its weights do not fit its recipe") from None
    if recipe.norm_stats == "batch":
        colorizer.apply(use_batch_statistics)
    return colorizer.eval().requires_grad_(False).to(device)


def load_model(path: Path, device: torch.device) -> Exported:
    """Return the generator of an exported generator.ts, or of one of a run's checkpoints. Raises UserError."""
    match = re.fullmatch(r"epoch_(\d+)\.pt", path.name)
    if not match:
        return load_exported(path, device)
    run, epoch = path.parent.parent, int(match[1])
    record = read_run(run)
    told = ExportRecord(record.recipe, epoch, "fp32", trained_on=record.trained_on)
    return Exported(load_colorizer(run, epoch, device), told)


def load_exported(path: Path, device: torch.device) -> Exported:
    """Return an exported generator.ts; of fp16, or of bf16 without its instructions, a CPU computes it in fp32.

    Raises:
        UserError: missing, not TorchScript, not written by export.py, or of another format.
    """
    if not path.is_file():
        raise UserError(f"no model {path}; write one with: python export.py")
    files = {METADATA: "{}"}
    try:
        # opened first: where reading is forbidden, torch does not name the file
        with path.open("rb"), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that TorchScript is deprecated
            module = torch.jit.load(path, map_location="cpu", _extra_files=files)
    except (RuntimeError, ValueError):
        raise UserError(f"{path} is not a TorchScript file, or it is damaged") from None
    try:
        told = json.loads(files[METADATA])
        form, version, recipe = int(told.get("format", 0)), str(told["version"]), dict(told["recipe"])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is a TorchScript file, but not one written by export.py") from None
    if form not in READABLE:
        age = f"the newer version {version}" if form > EXPORT_FORMAT else "an older version"
        raise UserError(f"{path} is of {age} of this project; export it again with this one")
    known = {field.name for field in fields(Recipe)}  # another version of the same format may have more
    try:
        recipe = Recipe.from_record({key: value for key, value in recipe.items() if key in known})
        seen = str(told.get("trained_on", ""))
        record = ExportRecord(recipe, told["epoch"], told["precision"], form, version, told["torch"], seen)
    except (KeyError, UserError) as error:
        raise UserError(f"{path} is not as export.py writes it: {error}") from None
    if computed_in(record.precision, device) == "fp32":
        module.float()
    return Exported(module.eval().to(device), record)


def infer(model: nn.Module, image: Tensor, hints: Tensor | None = None) -> Tensor:
    """Run an exported generator on (N, 1|3, H, W), perhaps with hints (N, 4, H, W); see Colorizer.forward.

    Without TorchScript's optimisation, whose profiling doubles the time of the first image.
    """
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        return model(image) if hints is None else model(image, hints)
