"""Write generator.ts: one TorchScript file that turns any image into a colour image, with torch alone.

    python export.py                                 # newest run, its best scored epoch, else the last
    python export.py --run runs/coco --epoch best    # by the recipe's metric, as eval.py found it
    python export.py --run runs/coco --average 3-6   # the mean of these epochs' weights: often better than each
    python export.py --mix pretrained/photo.ts=0.3   # 30 % of its weights: what a fine-tuning forgot
    python export.py --precision bf16                # half the size, faster where the machine has it
    python export.py --format onnx                   # or pt2, torch.export's
    python export.py --format html                   # colorizer.html: a page that colours without Python or network
    python export.py --model old.ts --format onnx    # from a generator.ts instead of a run

    model = torch.jit.load("generator.ts")
    colour = model(image)      # uint8, uint16 or float (N, 1|3, H, W) -> same dtype (N, 3, H, W)

BatchNorm is folded into the convolutions before it. Nothing is written unless eager, scripted and reloaded modules
agree, on images of three sizes in two batches, on the CPU and on `device`; the table of differences is printed.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from config import UserError
from runtime.cli import BestEpochOption, DeviceOption, RunOption, command

if TYPE_CHECKING:
    from inference.checkpoint import ExportRecord
    from inference.colorizer import Colorizer


def load_epoch(
    run: Path | None, epoch: str | None, average: str | None, precision: str, devices: str
) -> "tuple[Path, Colorizer, ExportRecord]":
    """Return a run's folder, the Colorizer of one saved epoch, or of the mean of some, and what a file says of it."""
    import torch

    from evaluation.best_epoch import best_or_last, choose_epochs
    from evaluation.scores import read_scores
    from inference.checkpoint import ExportRecord, average_generators, build_trained, load_colorizer
    from reporting.summary import why_best
    from runtime.progress import say
    from runtime.run_folder import epoch_path, newest_run, read_run, saved_epochs

    folder, cpu = Path(run or newest_run()), torch.device("cpu")
    if average is not None:
        found = re.fullmatch(r"(\d+)-(\d+)", average)
        numbers = [n for n in saved_epochs(folder) if found and int(found[1]) <= n <= int(found[2])]
        if len(numbers) < 2:
            raise UserError(
                f"--average is FIRST-LAST, with two saved epochs of {folder} or more between, got {average}"
            )
        run_record, paths = read_run(folder), [epoch_path(folder, number) for number in numbers]
        seen = run_record.trained_on
        record = ExportRecord(run_record.recipe, numbers[-1], precision, trained_on=seen, averaged=average)
        say(f"exporting {folder}: {record}; compared on {devices}")
        return folder, build_trained(*average_generators(paths), paths[-1], cpu), record
    number, why = best_or_last(folder) if epoch is None else (choose_epochs(folder, epoch, all_epochs=False)[0], "")
    run_record = read_run(folder)
    record = ExportRecord(run_record.recipe, number, precision, trained_on=run_record.trained_on)
    say(f"exporting {folder}: {record}{f' ({why})' if why else ''}; compared on {devices}")
    if epoch == "best":
        say(why_best(read_scores(folder)))
    return folder, load_colorizer(folder, number, cpu), record


def main(
    run: RunOption = None,
    epoch: BestEpochOption = None,
    average: Annotated[
        str | None, typer.Option(metavar="N-M", help="Instead of an epoch: the mean of the weights of N to M.")
    ] = None,
    mix: Annotated[
        str | None, typer.Option(metavar="FILE=SHARE", help="Mix in weights of a generator.ts, say photo.ts=0.3.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A generator.ts instead of a run; of html, default: photo.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Default: generator.ts, .onnx, .pt2 beside the model; colorizer.html here."),
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="fp32|fp16|bf16", help="Of the network; colours are computed in fp32.")
    ] = "fp32",
    format_: Annotated[str, typer.Option("--format", metavar="ts|onnx|pt2|html", help="What to write.")] = "ts",
    trainable: Annotated[
        bool, typer.Option("--trainable", help="Keep BatchNorm, so that train.py --init takes the file.")
    ] = False,
    device: DeviceOption = "auto",
) -> Path:
    """Export one saved epoch; returns the file. The differences are checked on the CPU and on `device`."""
    import torch

    from inference import checkpoint, exporters
    from inference.web import write_page
    from runtime.device import pick_device
    from runtime.progress import say

    choices = ("precision", precision, exporters.PRECISIONS), ("format", format_, (*exporters.FORMATS, "html"))
    for name, value, known in choices:
        if value not in known:
            raise UserError(f"no {name} {value}: use one of {' '.join(known)}")
    if out is not None and Path(out).is_dir():
        raise UserError(f"{out} is a folder; name a file with --out")
    if format_ in ("onnx", "html"):
        exporters.require_onnx(format_)
    if trainable and format_ in ("onnx", "pt2"):
        raise UserError(f"--trainable is of --format ts: train.py --init reads no {format_}")
    if format_ == "html" and (precision != "fp32" or trainable):
        raise UserError("--precision and --trainable are not of --format html, whose network is stored as fp16")
    if average is not None and epoch is not None:
        raise UserError("--average and --epoch name two sets of weights; give one of them")
    if model is not None and (run, epoch, average) != (None, None, None):
        raise UserError("--model and --run name two models; give one of them")
    if format_ == "html" and run is epoch is average is None:
        model = checkpoint.find_model(model)
    cpu = torch.device("cpu")
    devices = list(dict.fromkeys([cpu, pick_device(device)]))
    if model is None:
        place, colorizer, record = load_epoch(run, epoch, average, precision, " and ".join(map(str, devices)))
    else:
        source = checkpoint.find_model(model)
        colorizer, record = exporters.load_trained(source)
        record = replace(record, precision=precision, format=checkpoint.EXPORT_FORMAT, torch=torch.__version__)
        place = source.parent
        say(f"exporting {source}: {record}; compared on {' and '.join(map(str, devices))}")
    if mix is not None:
        other, _, given = mix.rpartition("=")
        if not re.fullmatch(r"0?\.\d+", given):
            raise UserError(f"--mix is FILE=SHARE, the share between 0 and 1 like 0.3, got {mix}")
        checkpoint.mix_weights(colorizer.generator, Path(other), float(given))
        mixed = f"mixed with {float(given):.0%} of {Path(other).name}"
        record = replace(record, trained_on=f"{record.trained_on}, {mixed}")
        say(mixed)
    path = Path(out or ("colorizer.html" if format_ == "html" else place / f"generator.{format_}"))
    if model is not None and not out and path.exists() and path.samefile(source):
        raise UserError(f"{path} is the model itself: name another file with --out")
    if format_ == "html":
        write_page(path, colorizer, record)
    else:
        exporters.write(path, colorizer, record, format_, devices, trainable)
    say(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
    hints = {
        "ts": f"use it with: python colorize.py photo.jpg --model {path}",
        "html": "open it with Chromium, Chrome, Edge or Firefox",
    }
    if format_ in hints:
        say(hints[format_])
    return path


if __name__ == "__main__":
    command(main)
