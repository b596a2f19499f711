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
from checkpoint import choose_epochs, pick_device, pick_run, read_run
from cli import AllEpochsOption, DataOption, DeviceOption, EpochOption, RunOption, command
from config import CACHE, RUNS
from data import ImageSet, open_split
from images import read_image, write_image
from metrics import DIRECTIONS, fid, score
from plots import plot_scores
from test import render_epoch

BASELINES = ("gray", "mean_ab")
Row = dict[str, Any]  # metric -> mean over the images, or a sentence why there is none


def stems(folder: Path) -> set[str]:
    """Return the names without ending of a folder's PNGs."""
    return {path.stem for path in folder.glob("*.png")}


def render_missing(run: Path, epochs: list[int], images: ImageSet, device: torch.device) -> None:
    """Render epochs and baselines whose pictures are missing, or of other data or another checkpoint."""
    for epoch in epochs:
        folder = checkpoint.outputs_path(run, epoch)
        current = read_stamp(folder) == checkpoint.stamp(run, epoch, images.key)
        if not current or stems(folder) != stems(run / "targets"):
            render_epoch(run, epoch, images, device)
    mean_ab = read_run(run)["mean_ab"]
    for name, (a, b) in zip(BASELINES, ((0.0, 0.0), mean_ab), strict=True):
        for stem in sorted(stems(run / "targets") - stems(run / "outputs" / name)):
            target = torch.from_numpy(read_image(run / "targets" / f"{stem}.png")).permute(2, 0, 1)[None]
            picture = color.recolor(target, a, b)[0].permute(1, 2, 0).numpy()
            write_image(run / "outputs" / name / f"{stem}.png", picture)


def read_stamp(folder: Path) -> str:
    """Return what a folder of pictures was rendered from, empty if it does not say."""
    path = folder / checkpoint.STAMP
    return path.read_text() if path.exists() else ""


def score_folder(run: Path, name: str) -> Row:
    """Return the mean of every per-picture metric over one folder of outputs.

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
    return {**means, "images": len(names)}


def add_fid(run: Path, rows: dict[str, Row], device: torch.device) -> None:
    """Add FID to every row; the reason why there is none is found once."""
    value: float | str = 0.0
    for name, row in rows.items():
        if isinstance(value, float):
            value = fid(run / "outputs" / name, run / "targets", row["images"], device)
        row["fid"] = value


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
    columns = [*rows[BASELINES[0]]]
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


def earlier_rows(run: Path, epochs: list[int], key: str) -> dict[str, Row]:
    """Return the rows of scores.json for saved epochs that are not scored now, where they are still valid."""
    path = run / "scores.json"
    if not path.exists():
        return {}
    try:
        stored = {name: {**row} for name, row in json.loads(path.read_text())["rows"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged; delete it and score again") from None
    others = {checkpoint.epoch_path(run, n).stem: n for n in checkpoint.saved_epochs(run) if n not in epochs}
    return {
        name: stored[name]
        for name, epoch in others.items()
        if stored.get(name, {}).get("stamp") == checkpoint.stamp(run, epoch, key)
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
    folder = pick_run(run, RUNS)
    epochs = choose_epochs(folder, epoch, all_epochs)
    images = open_split(read_run(folder), data, "test", CACHE)
    render_missing(folder, epochs, images, on)
    scored = {name: score_folder(folder, name) for name in BASELINES}
    for number in epochs:
        name = checkpoint.epoch_path(folder, number).stem
        scored[name] = score_folder(folder, name) | {"stamp": checkpoint.stamp(folder, number, images.key)}
    add_fid(folder, scored, on)
    ours = {**earlier_rows(folder, epochs, images.key), **scored}
    rows = {name: ours[name] for name in [*BASELINES, *sorted(ours.keys() - {*BASELINES})]}
    write_scores(folder, rows)
    print_table(rows)
    print(f"scores: {folder / 'scores.csv'}, curves: {folder / 'curves.png'}")
    return rows


if __name__ == "__main__":
    command(main)
