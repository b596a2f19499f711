"""Write generator.ts: one TorchScript file that turns any image into a colour image, with torch alone.

    python export.py                                 # newest run, last epoch
    python export.py --run runs/coco --epoch best    # by the recipe's metric, as eval.py found it
    python export.py --precision bf16                # half the size, faster where the machine has it
    python export.py --format onnx                   # or pt2, torch.export's

    model = torch.jit.load("generator.ts")
    colour = model(image)      # uint8, uint16 or float (N, 1|3, H, W) -> same dtype (N, 3, H, W)

BatchNorm is folded into the convolutions before it. Nothing is written unless eager, scripted and reloaded
modules agree, on images of three sizes in two batches, on every device there is; the table of differences is
printed.
"""

import threads  # noqa: F401  before torch

import copy
import io
import json
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import checkpoint
import interchange
from atomic import replacing
from checkpoint import EXPORT_FORMAT, choose_epochs, infer, load_exported, pick_device, pick_run, read_run
from cli import DeviceOption, EpochOption, RunOption, command
from colorizer import Colorizer
from config import RUNS, VERSION
from scores import read_scores, why_best

SIZES = ((37, 61), (256, 256), (480, 360))  # px, height and width of the images that are compared
BATCHES = (1, 3)
LEVELS = 255.0  # differences are told in levels of uint8
TOLERANCE = 1.0  # level
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FORMATS = ("ts", "onnx", "pt2")

Function = Callable[[Tensor], Tensor]


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Fold every BatchNorm that follows a convolution into it, in place; returns the module.

    Found are neighbours in a Sequential, and convN beside bnN as torchvision names them. A BatchNorm that
    normalises by the batch stays, and so does one after an activation.
    """
    for parent in list(module.modules()):
        children = dict(parent.named_children())
        pairs = list(pairwise(children)) if isinstance(parent, nn.Sequential) else []
        pairs += [(name, name.replace("conv", "bn")) for name in children if name.startswith("conv")]
        for first, second in pairs:
            conv, norm = children[first], children.get(second)
            convolves = isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
            if convolves and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
                transposed = isinstance(conv, nn.ConvTranspose2d)
                setattr(parent, first, fuse_conv_bn_eval(conv, norm, transpose=transposed))
                setattr(parent, second, nn.Identity())
    return module


def deployable(colorizer: Colorizer, precision: str) -> Colorizer:
    """Return a copy to export: BatchNorm folded, weights of a precision, laid out channels last."""
    folded = fold_batch_norm(copy.deepcopy(colorizer)).to(PRECISIONS[precision])
    return folded.to(memory_format=torch.channels_last)


def differences(one: Function, other: Function, device: torch.device) -> list[tuple[float, float]]:
    """Return the largest and the mean difference of two functions, in levels, for each batch and size."""
    rng = torch.Generator().manual_seed(0)
    results = []
    for batch, (height, width) in product(BATCHES, SIZES):
        image = torch.rand((batch, 3, height, width), generator=rng).to(device)
        error = (one(image) - other(image)).abs().cpu().to(torch.float64) * LEVELS  # MPS has no float64
        results.append((float(error.max()), float(error.mean())))
    return results


def compare(name: str, one: Function, other: Function, device: torch.device, limit: float) -> None:
    """Print one line of the parity table.

    Raises:
        ValueError: the functions differ by more than `limit` levels, or one gives what is not a number.
    """
    results = differences(one, other, device)
    cells = "  ".join(f"{f'{largest:.3f} ({mean:.4f})':>16}" for largest, mean in results)
    print(f"{name:<28}{cells}")
    worst = float(torch.tensor(results)[:, 0].max())  # NaN where any is
    if not worst <= limit:
        raise ValueError(f"{name.strip()}: they differ by {worst:.3g} of 255 levels; nothing was written")


def compare_integers(name: str, one: Function, other: Function, device: torch.device) -> None:
    """Raise ValueError unless two functions agree within a level of uint8 on gray integer images."""
    ramp = torch.linspace(0.0, 1.0, 70).view(2, 1, 5, 7)
    for dtype, high, limit in ((torch.uint8, 255, 1), (torch.uint16, 65535, 257)):
        image = (ramp * high).to(dtype).to(device)
        first, second = one(image), other(image)
        same = second.dtype == dtype and second.shape == (2, 3, 5, 7)
        if not same or (first.to(torch.int32) - second.to(torch.int32)).abs().max() > limit:
            raise ValueError(f"{name.strip()}: they differ on {dtype} images; nothing was written")


def print_header() -> None:
    """Print the head of the parity table."""
    heads = [f"{batch} x {height} x {width}" for batch, (height, width) in product(BATCHES, SIZES)]
    print(f"{'levels of 255: max (mean)':<28}" + "  ".join(f"{head:>16}" for head in heads))


def devices(name: str) -> list[torch.device]:
    """Return the device asked for; for auto, the CPU and every kind of accelerator there is."""
    if name != "auto":
        return [pick_device(name)]
    return [torch.device("cpu"), *({pick_device("auto")} - {torch.device("cpu")})]


def write_script(path: Path, module: Colorizer, metadata: dict[str, Any], on: list[torch.device]) -> None:
    """Write TorchScript and hold it against the eager module, as it is and loaded again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, and asked for
        scripted = torch.jit.script(copy.deepcopy(module))  # a script shares its parameters
        encoded = io.BytesIO()  # torch's own writer ends the process where a disk is full
        torch.jit.save(scripted, encoded, _extra_files={"tinct.json": json.dumps(metadata)})
    path.write_bytes(encoded.getvalue())
    for device in on:
        eager = copy.deepcopy(module).to(device)
        for kind, other in (("scripted", scripted.to(device)), ("reloaded", load_exported(path, device)[0])):
            name, run = f"eager, {kind} on {device}", partial(infer, other)
            compare(name, eager, run, device, TOLERANCE)
            compare_integers(name, eager, run, device)


def write_traced(path: Path, module: Colorizer, metadata: dict[str, Any], form: str) -> None:
    """Write ONNX or pt2, from the CPU, and hold it against the eager module.

    Raises:
        ValueError: the format cannot express this network, or the difference is too large.
    """
    save, load = {
        "onnx": (interchange.write_onnx, interchange.load_onnx),
        "pt2": (interchange.write_pt2, interchange.load_pt2),
    }[form]
    try:
        save(path, module, metadata)
        loaded = load(path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever the exporters and runtimes raise where they know no way
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"{form} cannot express this network ({reason}); nothing was written; --format ts can"
        ) from error
    compare(f"eager, {form} on cpu", module, loaded, torch.device("cpu"), TOLERANCE)


def write(
    path: Path, trained: Colorizer, metadata: dict[str, Any], form: str, on: list[torch.device]
) -> None:
    """Write a trained Colorizer in a format, and print how far each step is from the one before."""
    precision = metadata["precision"]
    module = deployable(trained, precision)
    print_header()
    limit = TOLERANCE if precision == "fp32" else LEVELS
    compare(f"trained, {precision} on cpu", trained, module, torch.device("cpu"), limit)
    with replacing(path) as temporary:
        if form == "ts":
            write_script(temporary, module, metadata, on)
        else:
            write_traced(temporary, module, metadata, form)


def main(
    run: RunOption = None,
    epoch: EpochOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: generator.ts in the run; or .onnx, .pt2.")
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="fp32|fp16|bf16", help="Of the network; colours are computed in fp32.")
    ] = "fp32",
    format_: Annotated[str, typer.Option("--format", metavar="ts|onnx|pt2", help="What to write.")] = "ts",
    device: DeviceOption = "auto",
) -> Path:
    """Export one saved epoch; returns the file. The differences are checked on `device`; auto: on all."""
    for name, value, known in (("precision", precision, PRECISIONS), ("format", format_, FORMATS)):
        if value not in known:
            raise ValueError(f"no {name} {value}: use one of {' '.join(known)}")
    if format_ == "onnx":
        interchange.require_onnx()
    on = devices(device)
    folder = pick_run(run, RUNS)
    number = choose_epochs(folder, epoch, all_epochs=False)[0]
    if epoch == "best":
        scores = read_scores(folder)
        print(why_best(scores["rows"], scores["metric"]))
    path = Path(out or folder / f"generator.{format_}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file with --out")
    metadata = {
        "format": EXPORT_FORMAT, "version": VERSION, "epoch": number, "precision": precision,
        "recipe": read_run(folder)["recipe"], "torch": torch.__version__,
    }  # fmt: skip
    trained = checkpoint.load_colorizer(folder, number, torch.device("cpu"))
    write(path, trained, metadata, format_, on)
    print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
    if format_ == "ts":
        print(f"use it with: python colorize.py photo.jpg --model {path}")
    return path


if __name__ == "__main__":
    command(main)
