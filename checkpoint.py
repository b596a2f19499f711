"""The run folder: where files lie, written whole or not at all, and what they are loaded back into.

runs/NAME/recipe.json                     resolved options, versions, data
runs/NAME/log.jsonl                       one record per status line
runs/NAME/checkpoints/epoch_0005.pt       generator for use
runs/NAME/checkpoints/state.pt            all that an exact resume needs
runs/NAME/samples/epoch_0005.png
runs/NAME/{inputs,targets}/STEM.png  outputs/epoch_0005/STEM.png
runs/NAME/scores.json scores.csv scores_per_image.csv comparison.json curves.png losses.png
runs/NAME/report.html generator.ts
"""

import contextlib
import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import nn

import color
from atomic import replacing
from colorizer import Colorizer, use_batch_statistics
from models import GENERATORS, LEAST

FORMAT = "tinct-generator-2"
EXPORT_FORMAT = 1  # of generator.ts: raised when what its forward takes, gives or is set by changes
STAMP = ".stamp"  # file in a folder of rendered pictures that says what they were rendered from
RECORD = {"recipe", "data", "loading", "fingerprints", "mean_ab"}  # what recipe.json must hold
FIELDS = {"input", "size", "limit", "attention"}  # and its recipe, among others


def pick_device(name: str) -> torch.device:
    """Return the device called auto, cpu, cuda, cuda:1 or mps.

    Raises:
        ValueError: unknown name, or not available on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"no device {name}: use auto, cpu, cuda or mps")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{name} asked for, but torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("mps asked for, but torch does not see it on this machine; use --device cpu")
    return device


def write_json(path: Path, payload: Any) -> None:
    """Write JSON, complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(payload, indent=1) + "\n")


def save(path: Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint, complete or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(payload, file)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(f"{path} could not be written: {error}") from error


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; never runs code from the file.

    Raises:
        ValueError: missing, or not a checkpoint.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint {path}")
    payload = None
    if zipfile.is_zipfile(path):  # what torch.save writes; its reader of older files fails in many ways
        damaged = (
            RuntimeError,
            ValueError,
            EOFError,
            OSError,
            KeyError,
            zipfile.BadZipFile,
            pickle.PickleError,
        )
        with contextlib.suppress(*damaged):
            payload = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(payload, dict):
        raise ValueError(f"{path} is not a checkpoint of this project, or it is damaged")
    return payload


def rng_state() -> dict[str, Any]:
    """Return where torch's random numbers stand, on the CPU and on every GPU, for a state to hold."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"rng": torch.get_rng_state(), "cuda_rng": cuda}


def restore_rng(state: Mapping[str, Any]) -> None:
    """Restore what rng_state returned; of the GPUs, where there are as many now."""
    torch.set_rng_state(state["rng"].cpu())
    if len(state["cuda_rng"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([rng.cpu() for rng in state["cuda_rng"]])


def epoch_path(run: Path, epoch: int) -> Path:
    """Return the file of one saved epoch."""
    return run / "checkpoints" / f"epoch_{epoch:04d}.pt"


def outputs_path(run: Path, epoch: int) -> Path:
    """Return the folder of one epoch's rendered pictures."""
    return run / "outputs" / epoch_path(run, epoch).stem


def stamp(run: Path, epoch: int, key: str) -> str:
    """Return what tells whether rendered pictures are still those of this checkpoint and data set.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    path = epoch_path(run, epoch)
    try:
        with zipfile.ZipFile(path) as file:  # every tensor's checksum stands in its directory
            parts = [(part.filename, part.CRC, part.file_size) for part in file.infolist()]
    except zipfile.BadZipFile:
        raise ValueError(f"{path} is not a checkpoint of this project, or it is damaged") from None
    return f"{key} {hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def state_path(run: Path) -> Path:
    """Return the file that a resume reads."""
    return run / "checkpoints" / "state.pt"


def saved_epochs(run: Path) -> list[int]:
    """Return the epochs that have a checkpoint, in order."""
    names = [re.fullmatch(r"epoch_(\d+)\.pt", path.name) for path in (run / "checkpoints").glob("epoch_*.pt")]
    return sorted(int(match[1]) for match in names if match)


def choose_epochs(run: Path, epoch: str | int | None, all_epochs: bool) -> list[int]:
    """Return the epochs that a stage works on: all, the one asked for (a number, or best), or the last.

    Raises:
        ValueError: none is saved, or not the one asked for, or none is known to be the best.
    """
    read_run(run)
    epochs = saved_epochs(run)
    if not epochs:
        command = f"python train.py --resume --run {quote(str(run))}"
        raise ValueError(f"no saved epoch in {run}; train on with: {command}")
    if all_epochs and epoch is not None:
        raise ValueError("--all-epochs and --epoch ask for different things; give one of them")
    if epoch is None:
        return epochs if all_epochs else epochs[-1:]
    if str(epoch) == "best":
        return [best_epoch(run)]
    if not re.fullmatch(r"0*[1-9]\d*", str(epoch)):
        raise ValueError(f"an epoch is a number from 1, or best; got {epoch}")
    if int(epoch) not in epochs:
        raise ValueError(f"epoch {epoch} is not saved in {run}; saved: {' '.join(map(str, epochs))}")
    return [int(epoch)]


def best_epoch(run: Path) -> int:
    """Return the scored epoch that is best by the recipe's metric.

    Raises:
        ValueError: there are no scores, or not by that metric, or the epoch was trained again since.
    """
    again = f"python eval.py --all-epochs --run {quote(str(run))}"
    if not (run / "scores.json").exists():
        raise ValueError(f"no scores in {run}, so no best epoch; score first: {again}")
    try:
        scores = json.loads((run / "scores.json").read_text())
        metric, best, rows = scores["metric"], scores["best"], scores["rows"]
        if metric not in best:
            reason = next((row[metric] for row in rows.values() if metric in row), "not scored")
            raise ValueError(f"no best epoch by {metric} in {run}: {reason}; score again: {again}")
        epoch = int(re.fullmatch(r"epoch_(\d+)", best[metric])[1])
        current = rows[best[metric]]["stamp"].endswith(stamp(run, epoch, ""))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{run / 'scores.json'} is damaged; delete it and score again: {again}") from None
    except FileNotFoundError:
        current = False
    if not current:
        raise ValueError(f"the scores in {run} are older than its checkpoints; score again: {again}")
    return epoch


def pick_run(run: Path | str | None, runs: Path) -> Path:
    """Return the run asked for, else the newest_run."""
    return newest_run(runs) if run is None else Path(run)


def newest_run(runs: Path) -> Path:
    """Return the run folder that was last trained. Raises ValueError where there is none."""
    found = sorted(runs.glob("*/recipe.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(f"no run in {runs}/; train one first: python train.py --recipe demo")
    return found[-1].parent


def read_run(run: Path) -> dict[str, Any]:
    """Return a run's recipe.json. Raises ValueError where it is missing or damaged."""
    path = run / "recipe.json"
    if not path.is_file():
        raise ValueError(f"{run} is not a run folder: it has no recipe.json")
    try:
        payload = json.loads(path.read_text())
    except ValueError:
        payload = None
    if (
        not isinstance(payload, dict)
        or not payload.keys() >= RECORD
        or not payload["recipe"].keys() >= FIELDS
    ):
        raise ValueError(f"{path} is damaged, or of another version: it lacks {' '.join(sorted(RECORD))}")
    return payload


def build_colorizer(recipe: Mapping[str, Any]) -> Colorizer:
    """Build an untrained Colorizer from a recipe's fields."""
    channels = color.CHANNELS[recipe["input"]], color.CHANNELS[recipe["output"]]
    size, depth, attention = recipe["size"], recipe["depth"], recipe["attention"]
    generator = GENERATORS[recipe["generator"]](
        *channels, recipe["ngf"], depth=depth, dropout=recipe["dropout"],
        attention_depth=(size // attention).bit_length() - 1 if attention else 0,
    )  # fmt: skip
    least = LEAST.get(recipe["generator"], 1)
    return Colorizer(generator, recipe["input"], recipe["output"], size, 2**depth, least)


def save_generator(run: Path, epoch: int, recipe: Mapping[str, Any], generator: nn.Module) -> None:
    """Write the generator of one epoch, with the recipe that rebuilds it."""
    payload = {"format": FORMAT, "epoch": epoch, "recipe": dict(recipe), "generator": generator.state_dict()}
    save(epoch_path(run, epoch), payload)


def load_colorizer(run: Path, epoch: int, device: torch.device) -> Colorizer:
    """Return the Colorizer of one saved epoch, ready for inference.

    Raises:
        ValueError: missing, damaged, or not a generator of this project.
    """
    path = epoch_path(run, epoch)
    payload = load(path)
    if payload.get("format") != FORMAT:
        raise ValueError(f"{path} is not a generator in the format {FORMAT}")
    with torch.random.fork_rng(devices=[]):  # building draws weights; a training run must not notice
        colorizer = build_colorizer(payload["recipe"])
    try:
        colorizer.generator.load_state_dict(payload["generator"])
    except RuntimeError:
        raise ValueError(f"{path} is damaged: its weights do not fit its recipe") from None
    if payload["recipe"]["norm_stats"] == "batch":
        colorizer.apply(use_batch_statistics)
    return colorizer.eval().requires_grad_(False).to(device)


def load_exported(path: Path, device: torch.device) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """Return an exported generator.ts and its metadata.

    Raises:
        ValueError: missing, not TorchScript, not written by export.py, or by a newer one.
    """
    if not path.is_file():
        raise ValueError(f"no model {path}; write one with: python export.py")
    files = {"tinct.json": ""}
    try:
        with path.open("rb"), warnings.catch_warnings():  # torch does not say what forbids to open a file
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, and asked for
            model = torch.jit.load(path, map_location="cpu", _extra_files=files)
    except (RuntimeError, ValueError):
        raise ValueError(f"{path} is not a TorchScript file, or it is damaged") from None
    try:
        metadata = json.loads(files["tinct.json"])
        metadata["recipe"]["input"], metadata["version"]
        written = int(metadata.get("format", 0))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path} is a TorchScript file, but not one written by export.py") from None
    if written != EXPORT_FORMAT:
        age = f"the newer version {metadata['version']}" if written > EXPORT_FORMAT else "an older version"
        raise ValueError(f"{path} is of {age} of this project; export it again with this one")
    return model.eval().to(device), metadata


def infer(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Run an exported generator, without the profiling that makes the first image take twice as long."""
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        return model(image)
