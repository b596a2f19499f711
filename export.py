"""Write generator.ts: one TorchScript file that turns any image into a colour image, with torch alone.

    python export.py                                 # newest run, its best scored epoch, else the last
    python export.py --run runs/coco --epoch best    # by the recipe's metric, as eval.py found it
    python export.py --precision bf16                # half the size, faster where the machine has it
    python export.py --format onnx                   # or pt2, torch.export's

    model = torch.jit.load("generator.ts")
    colour = model(image)      # uint8, uint16 or float (N, 1|3, H, W) -> same dtype (N, 3, H, W)

BatchNorm is folded into the convolutions before it. Nothing is written unless eager, scripted and reloaded modules
agree, on images of three sizes in two batches, on the CPU and on `device`; the table of differences is printed.
"""

from pathlib import Path
from typing import Annotated

import typer

from config import UserError
from runtime.cli import BestEpochOption, DeviceOption, RunOption, command


def main(
    run: RunOption = None,
    epoch: BestEpochOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: generator.ts in the run; or .onnx, .pt2.")
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="fp32|fp16|bf16", help="Of the network; colours are computed in fp32.")
    ] = "fp32",
    format_: Annotated[str, typer.Option("--format", metavar="ts|onnx|pt2", help="What to write.")] = "ts",
    trainable: Annotated[
        bool, typer.Option("--trainable", help="Keep BatchNorm, so that train.py --init takes the file.")
    ] = False,
    device: DeviceOption = "auto",
) -> Path:
    """Export one saved epoch; returns the file. The differences are checked on the CPU and on `device`."""
    import torch

    from evaluation.best_epoch import best_or_last, choose_epochs
    from evaluation.scores import read_scores
    from inference import checkpoint, exporters
    from reporting.summary import why_best
    from runtime.device import pick_device
    from runtime.run_folder import newest_run, read_run

    choices = ("precision", precision, exporters.PRECISIONS), ("format", format_, exporters.FORMATS)
    for name, value, known in choices:
        if value not in known:
            raise UserError(f"no {name} {value}: use one of {' '.join(known)}")
    if format_ == "onnx":
        exporters.require_onnx()
    cpu = torch.device("cpu")
    devices = list(dict.fromkeys([cpu, pick_device(device)]))
    folder = Path(run or newest_run())
    number, why = best_or_last(folder) if epoch is None else (choose_epochs(folder, epoch, all_epochs=False)[0], "")
    run_record = read_run(folder)
    record = checkpoint.ExportRecord(run_record.recipe, number, precision, trained_on=run_record.trained_on)
    path = Path(out or folder / f"generator.{format_}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file with --out")
    print(f"exporting {folder}: {record}{f' ({why})' if why else ''}")
    if epoch == "best":
        print(why_best(read_scores(folder)))
    exporters.write(path, checkpoint.load_colorizer(folder, number, cpu), record, format_, devices, trainable)
    print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
    if format_ == "ts":
        print(f"use it with: python colorize.py photo.jpg --model {path}")
    return path


if __name__ == "__main__":
    command(main)
