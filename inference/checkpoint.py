"""A trained generator <-> a file: the checkpoints of a run, and the exported generator.ts."""

import json
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from config import ROOT, VERSION, Recipe, UserError, closest
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
    averaged: str = ""  # "3-6" where the weights are the mean of those epochs, of which `epoch` is the last

    def __str__(self) -> str:
        """Say what is about to run."""
        seen = f", trained on {self.trained_on}" if self.trained_on else ""
        epoch = f"mean of epochs {self.averaged}" if self.averaged else f"epoch {self.epoch}"
        return f"recipe {self.recipe.name}, {epoch}, {self.precision}{seen}"

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


def read_generator(path: Path) -> tuple[Recipe, dict[str, Tensor]]:
    """Return recipe and weights of a checkpoint that save_generator wrote. Raises UserError."""
    payload = load(path)
    if payload.get("format") != FORMAT:
        raise UserError(f"{path} is not a generator in the format {FORMAT}")
    return Recipe.from_record(payload["recipe"]), payload["generator"]


def load_colorizer(run: Path, epoch: int, device: torch.device) -> Colorizer:
    """Return the Colorizer of one saved epoch, ready for inference.

    Raises:
        UserError: missing, damaged, or not a generator of this project.
    """
    path = epoch_path(run, epoch)
    return build_trained(*read_generator(path), path, device)


def average_generators(paths: Sequence[Path]) -> tuple[Recipe, dict[str, Tensor]]:
    """Return recipe and mean weights of checkpoints of one run. Raises UserError.

    Source: Izmailov et al., "Averaging weights leads to wider optima and better generalization", arXiv 1803.05407.
    Running statistics of BatchNorm are averaged, too.
    """
    recipe, total = read_generator(paths[0])
    kinds = {key: value.dtype for key, value in total.items()}
    total = {key: value.double() for key, value in total.items()}
    for path in paths[1:]:
        for key, value in read_generator(path)[1].items():
            total[key] += value
    return recipe, {key: (value / len(paths)).to(kinds[key]) for key, value in total.items()}


def mix_weights(generator: nn.Module, path: Path, share: float) -> None:
    """Replace a share of a generator's weights by those of an exported file of the same network, in place.

    What the file lacks stays as it is, so that a part that is new in the network need not be in it. Raises UserError.
    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903.
    """
    own, other = generator.state_dict(), load_exported(path, torch.device("cpu"))[0].generator.state_dict()
    odd = [key for key, value in own.items() if key in other and other[key].shape != value.shape]
    if odd or not own.keys() & other.keys() or any("running_mean" in key for key in own.keys() - other.keys()):
        raise UserError(f"{path} does not fit: --mix takes the same network, exported with --trainable")
    for key in own.keys() & other.keys():
        if own[key].is_floating_point():
            own[key].lerp_(other[key].to(own[key]), share)


def build_trained(recipe: Recipe, state: Mapping[str, Tensor], path: Path, device: torch.device) -> Colorizer:
    """Return the Colorizer of weights from a file, ready for inference. Raises UserError where they do not fit."""
    with torch.random.fork_rng(devices=[]):  # building draws random weights; a training run must not notice
        colorizer = build_colorizer(recipe)
    try:
        colorizer.generator.load_state_dict(state)
    except RuntimeError:
        raise UserError(f"{path} is damaged: its weights do not fit its recipe") from None
    if recipe.norm_stats == "batch":
        colorizer.apply(use_batch_statistics)
    return colorizer.eval().requires_grad_(False).to(device)


def find_model(model: str | Path | None) -> Path:
    """Return the file that --model stands for: a path, or the name of one in pretrained/; default: photo.

    Raises UserError for a name that is neither.
    """
    folder, name = ROOT / "pretrained", str(model or "photo")
    if model is not None and (Path(model).exists() or Path(model).name != name or Path(model).suffix):
        return Path(model)
    known = [path.stem for path in sorted(folder.glob("*.ts"))]
    if model is not None and name not in known and known:
        raise UserError(f"no model {name}{closest(name, known)}; or give a file")
    return folder / f"{name}.ts"


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
            warnings.filterwarnings("ignore", "`torch.jit")  # deprecated; its category differs from torch to torch
            module = torch.jit.load(path, map_location="cpu", _extra_files=files)
    except (RuntimeError, ValueError) as error:
        if "Unknown builtin op" in str(error):
            problem = f"written with torch {read_record(path).torch}, needs an operator that {torch.__version__} lacks"
            remedy = "update torch, or export its run again with this one: python export.py --run RUN"
            raise UserError(f"{path}, {problem}: {remedy}") from None
        raise UserError(f"{path} is not a TorchScript file, or it is damaged") from None
    record = _parse_record(path, files[METADATA])
    if computed_in(record.precision, device) == "fp32":
        module.float()
    return Exported(module.eval().to(device), record)


def read_record(path: Path) -> ExportRecord:
    """Return what an exported file says of itself, without loading it. Raises UserError as load_exported does."""
    try:
        with zipfile.ZipFile(path) as file:
            told = next((file.read(name) for name in file.namelist() if name.endswith(f"/extra/{METADATA}")), b"{}")
    except zipfile.BadZipFile:
        raise UserError(f"{path} is not a TorchScript file, or it is damaged") from None
    return _parse_record(path, told)


def _parse_record(path: Path, content: str | bytes) -> ExportRecord:
    try:
        told = json.loads(content)
        form, version, recipe = int(told.get("format", 0)), str(told["version"]), dict(told["recipe"])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is a TorchScript file, but not one written by export.py") from None
    if form not in READABLE:
        age = f"the newer version {version}" if form > EXPORT_FORMAT else "an older version"
        raise UserError(f"{path} is of {age} of this project; export it again with this one")
    known = {field.name for field in fields(Recipe)}  # another version of the same format may have more
    try:
        recipe = Recipe.from_record({key: value for key, value in recipe.items() if key in known})
        more = [str(told.get(key, "")) for key in ("trained_on", "averaged")]
        return ExportRecord(recipe, told["epoch"], told["precision"], form, version, told["torch"], *more)
    except (KeyError, UserError) as error:
        raise UserError(f"{path} is not as export.py writes it: {error}") from None


def infer(model: nn.Module, image: Tensor, hints: Tensor | None = None) -> Tensor:
    """Run an exported generator on (N, 1|3, H, W), perhaps with hints (N, 4, H, W); see Colorizer.forward.

    Without TorchScript's optimisation, whose profiling doubles the time of the first image.
    """
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        return model(image) if hints is None else model(image, hints)


def infer_each(model: nn.Module, images: Sequence[Tensor], hints: Sequence[Tensor | None]) -> list[Tensor]:
    """Run an exported generator on images (1, 1|3, H, W) of any sizes, each with its hints (1, 4, H, W) or None.

    Images that the network sees at one size go through it together. A file of an older version has no methods
    for that, and takes one after the other.
    """
    if len(images) == 1 or not hasattr(model, "look"):
        return [infer(model, image, layer) for image, layer in zip(images, hints, strict=True)]
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        seen = [model.look(image, layer) for image, layer in zip(images, hints, strict=True)]
        results: dict[int, Tensor] = {}
        for shape in {x.shape for x, _, _ in seen}:
            here = [i for i, (x, _, _) in enumerate(seen) if x.shape == shape]
            predicted = model.predict(torch.cat([seen[i][0] for i in here])).split(1)
            results |= {i: model.paint(images[i], *seen[i][1:], y) for i, y in zip(here, predicted, strict=True)}
    return [results[i] for i in range(len(images))]
