"""Score saved epochs against the truth, beside floors and ceilings, and name the best epoch per metric.

    python eval.py --all-epochs                           # newest run; renders what is missing
    python eval.py --epoch 50 --run runs/coco
    python eval.py --all-epochs --metric lpips_alex --metric fid      # fetches the networks they need
    python eval.py --all-epochs --classifier runs/classifier          # is it recognised?
    python eval.py --run runs/a --against runs/b          # best against best, picture by picture
    python eval.py --epoch 50 --against 25                # two epochs of one run

Floors, both given the truth's own lightness: `gray` has no colour, `mean_ab` the training set's mean ab.
Ceilings: `jpeg90`, the truth as a JPEG of quality 90; with a classifier, `truth` itself.
Writes scores.json, scores.csv, scores_per_image.csv, curves.png and report.html in the run folder.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from config import CACHE, METRICS, RUNS, UserError, closest
from data import open_split
from evaluation.compare import compare, parse_opponent
from evaluation.deep_metrics import open_judges
from evaluation.scores import Row, choose_epochs
from evaluation.scoring import evaluate
from runtime.cli import (
    AllEpochsOption,
    DataOption,
    DeviceOption,
    EpochOption,
    RunOption,
    WeightsOption,
    command,
)
from runtime.device import pick_device
from runtime.run_folder import pick_run, read_run

MetricOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A metric to insist on: its network is downloaded. Repeatable."),
]
ClassifierOption = Annotated[
    Path | None, typer.Option(metavar="RUN", help="A classifier's run: are the pictures recognised?")
]
AgainstOption = Annotated[
    str | None, typer.Option(metavar="RUN[:N]|N", help="Compare with another run, or another epoch.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Compare in spite of different protocols.")]


def main(
    run: RunOption = None,
    epoch: EpochOption = None,
    all_epochs: AllEpochsOption = False,
    data: DataOption = None,
    metric: MetricOption = None,
    classifier: ClassifierOption = None,
    weights: WeightsOption = None,
    against: AgainstOption = None,
    force: ForceOption = False,
    device: DeviceOption = "auto",
) -> dict[str, Row]:
    """Score one or all saved epochs, or compare two; returns name -> metrics."""
    on = pick_device(device)
    folder = pick_run(run, RUNS)
    for name in metric or []:
        if name not in METRICS:
            raise UserError(f"no metric {name}{closest(name, list(METRICS))}")
    if weights is not None and not Path(weights).is_dir():
        raise UserError(f"no folder {weights}: --weights takes the folder that holds the weight files")
    if against is not None:
        if all_epochs or data or metric or classifier or weights:
            raise UserError("--against compares what is scored already: with it, only --epoch and --force")
        return compare((folder, epoch), parse_opponent(against, folder), force)
    if force:
        raise UserError("--force is for comparing with --against RUN")
    epochs = choose_epochs(folder, epoch, all_epochs)
    images = open_split(read_run(folder), data, "test", CACHE)
    size = read_run(folder).recipe.size
    scorer = on if on.type == "cuda" else torch.device("cpu")  # MPS has no float64
    judges = open_judges(metric or [], images, size, classifier, Path(weights) if weights else None, scorer)
    for name in metric or []:
        if name in judges.missing:
            raise UserError(f"{name} {judges.missing[name]}")
    return evaluate(folder, epochs, images, judges, on)


if __name__ == "__main__":
    command(main)
