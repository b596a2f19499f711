"""Score saved epochs against the truth, beside two baselines, and name the best epoch per metric.

    python eval.py --all-epochs                      # newest run; renders what is missing
    python eval.py --epoch 50 --run runs/coco

Baselines, both given the truth's own lightness: `gray` has no colour, `mean_ab` the training set's mean ab.
Writes scores.csv, scores.json and curves.png in the run folder.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import checkpoint
import color
from atomic import replacing
from checkpoint import choose_epochs, pick_device, read_run
from config import RUNS, AllEpochsOption, DataOption, DeviceOption, EpochOption, RunOption, command
from images import read_image, write_image
from metrics import DIRECTIONS, fid, score
from plots import plot_scores
from test import render_epoch

BASELINES = ("gray", "mean_ab")
Row = dict[str, Any]  # metric -> mean over the images, or a sentence why there is none


def stems(folder: Path) -> set[str]:
    """Return the names without ending of a folder's PNGs."""
    return {path.stem for path in folder.glob("*.png")}


def render_missing(run: Path, epochs: list[int], data: str | None, device: torch.device) -> None:
    """Render the epochs whose outputs are not complete, and the baselines."""
    for epoch in epochs:
        folder = run / "outputs" / checkpoint.epoch_path(run, epoch).stem
        if data is not None or not stems(run / "targets") or stems(folder) != stems(run / "targets"):
            render_epoch(run, epoch, data, device)
    mean_ab = read_run(run)["mean_ab"]
    for name, (a, b) in zip(BASELINES, ((0.0, 0.0), mean_ab), strict=True):
        for stem in sorted(stems(run / "targets") - stems(run / "outputs" / name)):
            target = torch.from_numpy(read_image(run / "targets" / f"{stem}.png")).permute(2, 0, 1)[None]
            picture = color.recolor(target, a, b)[0].permute(1, 2, 0).numpy()
            write_image(run / "outputs" / name / f"{stem}.png", picture)


def score_folder(run: Path, name: str, device: torch.device) -> Row:
    """Return the mean of every metric over one folder of outputs.

    Raises:
        ValueError: outputs and targets do not match.
    """
    folder, targets = run / "outputs" / name, run / "targets"
    names = sorted(stems(targets))
    if stems(folder) != stems(targets):
        odd = sorted(stems(folder) ^ stems(targets))
        raise ValueError(
            f"{folder} and {targets} differ in {len(odd)} names, the first is {odd[0]}; render it again"
        )
    rows = []
    for stem in tqdm(names, name, leave=False, disable=None):
        target, output = read_image(targets / f"{stem}.png"), read_image(folder / f"{stem}.png")
        if target.shape != output.shape:
            raise ValueError(f"{folder / stem}.png is {output.shape[:2]}, its target {target.shape[:2]}")
        rows.append(score(target, output))
    means = {metric: float(np.mean([row[metric] for row in rows])) for metric in rows[0]}
    return {**means, "fid": fid(folder, targets, len(names), device), "images": len(names)}


def best_epochs(rows: dict[str, Row]) -> dict[str, str]:
    """Return metric -> the epoch that is best by it, baselines left out."""
    ours = {name: row for name, row in rows.items() if name not in BASELINES}

    def distance(metric: str, row: Row) -> float:
        if DIRECTIONS[metric] == "higher":
            return -row[metric]
        return row[metric] if DIRECTIONS[metric] == "lower" else abs(row[metric] - row[f"{metric}_truth"])

    return {
        metric: min(ours, key=lambda name: distance(metric, ours[name]))
        for metric in DIRECTIONS
        if all(isinstance(row[metric], float) for row in ours.values())
    }


def print_table(rows: dict[str, Row]) -> None:
    """Print one line per epoch and baseline, the best of each metric marked with a star."""
    best = best_epochs(rows)
    print(f"{'':<12}" + "".join(f"{metric:>15}" for metric in DIRECTIONS))
    for name, row in rows.items():
        cells = [
            f"{row[metric]:.4g}" + ("*" if best.get(metric) == name else " ")
            if isinstance(row[metric], float)
            else "unavailable "
            for metric in DIRECTIONS
        ]
        print(f"{name:<12}" + "".join(f"{cell:>15}" for cell in cells))
    first = next(iter(rows.values()))
    print(f"{'truth':<12}" + " " * 45 + f"{first['colorfulness_truth']:>14.4g}   ({first['images']} images)")
    for metric, name in best.items():
        print(f"best {metric} ({DIRECTIONS[metric]}): {name}")
    for metric in DIRECTIONS:
        if isinstance(first[metric], str):
            print(f"{metric} {first[metric]}")


def write_scores(run: Path, rows: dict[str, Row]) -> None:
    """Write scores.json, scores.csv (an unavailable value is empty) and curves.png."""
    checkpoint.write_json(
        run / "scores.json", {"directions": DIRECTIONS, "best": best_epochs(rows), "rows": rows}
    )
    columns = list(next(iter(rows.values())))
    with replacing(run / "scores.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *columns])
        for name, row in rows.items():
            writer.writerow([name, *("" if isinstance(row[c], str) else row[c] for c in columns)])
    ours = {name: row for name, row in rows.items() if name not in BASELINES}
    curves = {m: [row[m] for row in ours.values()] for m in best_epochs(rows)}
    floors = {
        m: {name: rows[name][m] for name in BASELINES if isinstance(rows[name][m], float)} for m in curves
    }
    floors["colorfulness"]["truth"] = rows[BASELINES[0]]["colorfulness_truth"]
    plot_scores(run / "curves.png", [int(name.removeprefix("epoch_")) for name in ours], curves, floors)


def earlier_rows(run: Path, epochs: list[int]) -> dict[str, Row]:
    """Return the rows of scores.json for saved epochs that are not scored now, of the same pictures."""
    path = run / "scores.json"
    if not path.exists():
        return {}
    names = {checkpoint.epoch_path(run, epoch).stem for epoch in epochs}
    rows = json.loads(path.read_text())["rows"]
    return {
        name: row
        for name, row in rows.items()
        if name not in names and stems(run / "outputs" / name) == stems(run / "targets")
    }


def main(
    run: RunOption = None,
    epoch: EpochOption = None,
    all_epochs: AllEpochsOption = False,
    data: DataOption = None,
    device: DeviceOption = "auto",
) -> dict[str, Row]:
    """Score one or all saved epochs and the baselines; returns name -> metrics."""
    on = pick_device(device)
    folder = run or checkpoint.newest_run(RUNS)
    epochs = choose_epochs(folder, epoch, all_epochs)
    render_missing(folder, epochs, data, on)
    names = [*BASELINES, *(checkpoint.epoch_path(folder, number).stem for number in epochs)]
    scored = {name: score_folder(folder, name, on) for name in names}
    others = earlier_rows(folder, epochs)
    rows = {
        name: {**others, **scored}[name] for name in [*BASELINES, *sorted({*others, *names} - {*BASELINES})]
    }
    write_scores(folder, rows)
    print_table(rows)
    print(f"scores: {folder / 'scores.csv'}, curves: {folder / 'curves.png'}")
    return rows


if __name__ == "__main__":
    command(main)
