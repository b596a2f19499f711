"""Score files of a run: means with their intervals, per-image scores, which epoch is best, two runs compared.

scores.json             protocol, best epochs, and a row per epoch, floor and ceiling
scores.csv              the same rows; a value that could not be computed is empty
scores_per_image.csv    one line per row and picture; both tables end in a number that stands for the protocol
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from config import METRICS, Recipe, UserError
from reporting.curves import plot_scores
from runtime import atomic, run_folder
from runtime.atomic import replacing
from runtime.run_folder import library_versions, read_run, saved_epochs, stamp

RESAMPLES = 2000  # of the bootstrap
CONFIDENCE = 0.95
SEED = 0  # of the resampling, so that one set of scores has one interval

Scores = NDArray[np.float64]


def resampled_means(scores: Scores) -> Iterator[Scores]:
    """Yield means (M,) of scores (N, M) over pictures drawn with replacement, the same ones every time."""
    rng = np.random.default_rng(SEED)
    n = len(scores)
    for _ in range(RESAMPLES):
        yield np.bincount(rng.integers(n, size=n), minlength=n) @ scores / n


def bootstrap(scores: Scores) -> tuple[Scores, Scores]:
    """Return the low and high ends (M,) of the means' 95 % intervals, from scores (N, M).

    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, percentile interval.
    """
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.stack(list(resampled_means(scores))), [tail, 1 - tail], axis=0)
    return low, high


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of successes. Source: Wilson 1927, computed by SciPy."""
    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def standard_error(scores: Scores) -> Scores:
    """Return the standard errors (M,) of the means of scores (N, M)."""
    return scores.std(0, ddof=1) / np.sqrt(len(scores))


def summarise(columns: dict[str, Scores]) -> dict[str, float]:
    """Return NAME, NAME_se, NAME_low and NAME_high for every column of per-image scores (N,).

    A column of hits and misses, top1 or top5, gets Wilson's interval, any other the bootstrap's. A single
    picture has a mean alone.
    """
    scores = np.stack(list(columns.values()), 1)  # (N, M)
    means = dict(zip(columns, scores.mean(0).tolist(), strict=True))
    if len(scores) < 2:
        return means
    low, high = bootstrap(scores)
    rows = {}
    for i, (name, error) in enumerate(zip(columns, standard_error(scores).tolist(), strict=True)):
        ends = (float(low[i]), float(high[i]))
        if name in ("top1", "top5"):
            ends = wilson(int(columns[name].sum()), len(scores))
        rows |= {name: means[name], f"{name}_se": error, f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return rows


LIBRARIES = ("torch", "torchvision", "numpy", "pillow", "scipy", "torchmetrics", "clean-fid")

Protocol = dict[str, Any]


def describe_protocol(
    recipe: Recipe, stems: Sequence[str], digests: Sequence[bytes], weights: Mapping[str, str]
) -> Protocol:
    """Return the manifest that every score file carries.

    Args:
        recipe: fields size, load_size and fit of config.Recipe.
        stems: names of the pictures, in order.
        digests: of the true pictures' pixels, in order.
        weights: network -> SHA-256 of its file, for every network that had a say.
    """
    return {
        "images": len(stems),
        "size": recipe.size,
        "file_list": hashlib.sha256("\n".join(stems).encode()).hexdigest(),
        "targets": hashlib.sha256(b"".join(digests)).hexdigest(),
        "resize": f"{recipe.fit} {recipe.load_size}:{recipe.size} px, bicubic, antialiased",
        "data_range": 255,
        "versions": library_versions(LIBRARIES),
        "weights": dict(weights),
    }


def identify(protocol: Protocol) -> str:
    """Return 12 digits that stand for a protocol in tables."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]


def differences(ours: Protocol, theirs: Protocol) -> list[str]:
    """Return what two protocols differ in, a phrase each; a network that only one asked is no difference."""
    shared = ours["weights"].keys() & theirs["weights"].keys()
    flat = [
        {
            **{key: value for key, value in protocol.items() if not isinstance(value, dict)},
            **protocol["versions"],
            **{f"weights of {name}": protocol["weights"][name] for name in shared},
        }
        for protocol in (ours, theirs)
    ]
    return [
        f"{key} {shorten(flat[0].get(key))} and {shorten(flat[1].get(key))}"
        for key in {**flat[0], **flat[1]}
        if flat[0].get(key) != flat[1].get(key)
    ]


def shorten(value: object) -> str:
    """Return a value to show; of a hash its first 12 digits."""
    text = str(value)
    return text[:12] if len(text) == 64 else text


FORMAT = "tinct-scores-1"
FLOORS = ("gray", "mean_ab")  # what a colouriser has to beat
CEILINGS = ("jpeg90", "truth")  # what none can: the truth as a JPEG of quality 90; itself, to be recognised

Row = dict[str, Any]  # metric -> mean, metric_se, metric_low, metric_high; or a sentence why there is none
PerImage = dict[str, dict[str, Scores]]  # row -> metric -> (N,)


def is_epoch(name: str) -> bool:
    """Tell the row of an epoch from those of floors and ceilings."""
    return name.startswith("epoch_")


def make_row(columns: dict[str, Scores], stems: Sequence[str], name: str) -> Row:
    """Return the means of a row's per-image scores. Raises UserError where one is not finite."""
    for metric, values in columns.items():
        broken = np.flatnonzero(~np.isfinite(values))
        if len(broken):
            raise UserError(f"{metric} of {name}/{stems[broken[0]]}.png is not finite; render it again")
    row: Row = summarise(columns)
    if "colorfulness_truth" in row:  # a number to compare with, not one to judge
        row = {key: value for key, value in row.items() if not key.startswith("colorfulness_truth_")}
    return {**row, "images": len(stems)}


def distance(metric: str, row: Row) -> float:
    """Return a number in the metric's unit that is the smaller, the better the row is."""
    if METRICS[metric] == "higher":
        return -row[metric]
    return row[metric] if METRICS[metric] == "lower" else abs(row[metric] - row[f"{metric}_truth"])


def best_epochs(rows: Mapping[str, Row]) -> dict[str, str]:
    """Return metric -> the epoch that is best by it, of metrics that every epoch has."""
    ours = {name: row for name, row in rows.items() if is_epoch(name)}
    return {
        metric: min(ours, key=lambda name: distance(metric, ours[name]))
        for metric in METRICS
        if ours and all(isinstance(row.get(metric), float) for row in ours.values())
    }


def undecided(per_image: PerImage, best: str | None, metric: str) -> list[str]:
    """Return the epochs whose difference from the best, picture by picture, is not shown to be one."""
    ours = {name: scores[metric] for name, scores in per_image.items() if is_epoch(name) and metric in scores}
    if best not in ours or METRICS[metric] not in ("higher", "lower") or len(ours[best]) < 2:
        return []
    intervals = {name: summarise({"": scores - ours[best]}) for name, scores in ours.items() if name != best}
    return [name for name, interval in intervals.items() if interval["_low"] <= 0 <= interval["_high"]]


def read_scores(run: Path) -> dict[str, Any]:
    """Return a run's scores.json. Raises UserError where it is missing, damaged or of another version."""
    path = run / "scores.json"
    if not path.exists():
        raise UserError(f"no scores in {run}: python eval.py --all-epochs --run {quote(str(run))}")
    try:
        stored = json.loads(path.read_text())
        kinds = {
            "metric": str, "best": dict, "ties": list, "directions": dict, "protocol": dict, "notes": list
        }  # fmt: skip
        sound = stored["format"] == FORMAT and all(isinstance(row, dict) for row in stored["rows"].values())
        sound = sound and all(isinstance(stored[key], kind) for key, kind in kinds.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{path} is damaged, or of another version; delete it and score again")
    return stored


def read_per_image(run: Path, names: Sequence[str]) -> tuple[PerImage, list[str]]:
    """Return the per-image scores of some rows, and the names of the pictures, which all rows share.

    Raises:
        UserError: they are missing or damaged.
    """
    path = run / "scores_per_image.csv"
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    stems: dict[str, list[str]] = {name: [] for name in names}
    protocols = set()
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                name, stem, identity = (line.pop(key) for key in ("name", "stem", "protocol"))
                if name in found:
                    stems[name].append(stem)
                    protocols.add(identity)
                    for metric in [metric for metric, cell in line.items() if cell]:
                        found[name].setdefault(metric, []).append(float(line[metric]))
        stored = read_scores(run)
        for name in names:
            counts = {len(values) for values in (stems[name], *found[name].values())}
            if counts != {stored["rows"][name]["images"]} or stems[name] != stems[names[0]]:
                raise UserError("pictures are missing")
        if protocols != {identify(stored["protocol"])}:
            raise UserError("they are of another evaluation")
        scores = {name: {metric: np.array(v) for metric, v in found[name].items()} for name in names}
        return scores, stems[names[0]]
    except (OSError, KeyError, IndexError, ValueError, TypeError, csv.Error):
        raise UserError(f"{path} is missing or damaged; score again with --all-epochs") from None


def earlier_scores(
    run: Path, rows: dict[str, Row], protocol: Protocol, scored: dict[str, Row], stored: dict[str, Any]
) -> PerImage:
    """Return the rows of epochs that are not scored now.

    Args:
        rows: those that scores.json held before.

    Raises:
        UserError: they were scored in another way, so that they cannot stand beside the new ones.
    """
    wanted = next(row for name, row in scored.items() if is_epoch(name))
    odd = differences(stored["protocol"], protocol) if rows else []
    other = bool(rows) and stored["protocol"]["weights"] != protocol["weights"]
    odd += ["other networks"] if other else []
    odd += ["other metrics"] if any(row.keys() != wanted.keys() for row in rows.values()) else []
    if odd:
        raise UserError(
            f"other epochs of {run} were scored with {'; '.join(odd)}: score all again with --all-epochs"
        )
    return read_per_image(run, list(rows))[0] if rows else {}


def earlier_rows(run: Path, epochs: list[int], key: str, stored: dict[str, Any]) -> dict[str, Row]:
    """Return the rows of saved epochs that are not scored now.

    Args:
        key: of the pictures that are scored now.
        stored: what scores.json holds.

    Raises:
        UserError: they are of other data or another checkpoint; nothing has been done yet.
    """
    others = {run_folder.epoch_path(run, n).stem: n for n in run_folder.saved_epochs(run) if n not in epochs}
    rows = {name: row for name, row in stored["rows"].items() if name in others}
    for name, row in rows.items():
        if row.get("stamp") != run_folder.stamp(run, others[name], key):
            raise UserError(
                f"epoch {others[name]} of {run} was scored on other data or has another checkpoint now: "
                "score all again with --all-epochs"
            )
    return rows


def write_scores(
    run: Path,
    rows: Mapping[str, Row],
    per_image: PerImage,
    stems: Sequence[str],
    protocol: Protocol,
    metric: str,
    notes: Sequence[str],
) -> None:
    """Write scores.json, both tables and curves.png."""
    fields = list(dict.fromkeys(key for row in rows.values() for key in row if key != "stamp"))
    identity = identify(protocol)
    with replacing(run / "scores.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *fields, "protocol"])
        for name, row in rows.items():
            cells = (row.get(field, "") for field in fields)
            writer.writerow([name, *("" if isinstance(cell, str) else cell for cell in cells), identity])
    columns = list(dict.fromkeys(column for scores in per_image.values() for column in scores))
    with (
        replacing(run / "scores_per_image.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["name", "stem", *columns, "protocol"])
        for name, scores in per_image.items():
            values = [scores[c].tolist() if c in scores else [""] * len(stems) for c in columns]
            writer.writerows([name, *line, identity] for line in zip(stems, *values, strict=True))
    best = best_epochs(rows)
    ties = undecided(per_image, best.get(metric), metric)
    payload = {"format": FORMAT, "metric": metric, "best": best, "ties": ties, "directions": METRICS}
    atomic.write_json(
        run / "scores.json", {**payload, "protocol": protocol, "notes": list(notes), "rows": rows}
    )
    ours = {name: row for name, row in rows.items() if is_epoch(name)}
    curves = {metric: [row[metric] for row in ours.values()] for metric in best}
    lines = {metric: references(metric, rows) for metric in best}
    plot_scores(run / "curves.png", [int(name.removeprefix("epoch_")) for name in ours], curves, lines)


def references(metric: str, rows: Mapping[str, Row]) -> dict[str, float]:
    """Return the floors and ceilings of a metric, by name."""
    found = {
        name: rows[name][metric]
        for name in (*FLOORS, *(CEILINGS if not metric.startswith("s0_") else ()))
        if isinstance(rows.get(name, {}).get(metric), float)
    }
    if metric == "colorfulness":
        found["truth"] = next(iter(rows.values()))["colorfulness_truth"]
    return found


def print_table(rows: Mapping[str, Row], metric: str) -> None:
    """Print one line per row, the best epoch of each metric marked with a star, and what is missing."""
    best = best_epochs(rows)
    shown = [m for m in METRICS if any(isinstance(row.get(m), float) for row in rows.values())]
    print(f"{'':<11}" + "".join(f"{name.replace('colorfulness', 'colorful'):>15}" for name in shown))
    for name, row in rows.items():
        cells = [
            f"{row[m]:.4g}" + ("*" if best.get(m) == name else " ") if isinstance(row.get(m), float) else "- "
            for m in shown
        ]
        print(f"{name:<11}" + "".join(f"{cell:>15}" for cell in cells))
    first = next(iter(rows.values()))
    truth = first.get("colorfulness_truth")
    print(
        f"{first['images']} images" + ("" if truth is None else f", colourfulness of the truth {truth:.4g}")
    )
    missing = {m: row[m] for row in rows.values() for m in METRICS if isinstance(row.get(m), str)}
    for name, reason in missing.items():
        print(f"{name} {reason}")
    print(why_best(rows, metric))


def why_best(rows: Mapping[str, Row], metric: str) -> str:
    """Return which epoch is best by a metric, with its interval and what it has to beat, as one sentence."""
    best = best_epochs(rows).get(metric)
    if best is None:
        reason = next(
            (row[metric] for row in rows.values() if isinstance(row.get(metric), str)), "not scored"
        )
        return f"no best epoch by {metric}: {reason}"
    row, number = rows[best], int(best.removeprefix("epoch_"))
    low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
    interval = "" if low is None else f", 95 % interval {low:.4g} to {high:.4g}"
    beside = ", ".join(f"{name} {value:.4g}" for name, value in references(metric, rows).items())
    scored = sum(map(is_epoch, rows))
    return (
        f"best of {scored} scored epoch{'s' * (scored > 1)} by {metric} ({METRICS[metric]}): "
        f"{number} with {row[metric]:.4g}{interval}; {beside}"
    )


def choose_epochs(run: Path, epoch: str | int | None, all_epochs: bool) -> list[int]:
    """Return the epochs that a stage works on: all, the one asked for (a number, or best), or the last.

    Raises:
        UserError: none is saved, or not the one asked for, or none is known to be the best.
    """
    read_run(run)
    epochs = saved_epochs(run)
    if not epochs:
        command = f"python train.py --resume --run {quote(str(run))}"
        raise UserError(f"no saved epoch in {run}; train on with: {command}")
    if all_epochs and epoch is not None:
        raise UserError("--all-epochs and --epoch ask for different things; give one of them")
    if epoch is None:
        return epochs if all_epochs else epochs[-1:]
    if str(epoch) == "best":
        return [best_epoch(run)]
    if not re.fullmatch(r"0*[1-9]\d*", str(epoch)):
        raise UserError(f"an epoch is a number from 1, or best; got {epoch}")
    if int(epoch) not in epochs:
        raise UserError(f"epoch {epoch} is not saved in {run}; saved: {' '.join(map(str, epochs))}")
    return [int(epoch)]


def best_epoch(run: Path) -> int:
    """Return the scored epoch that is best by the recipe's metric.

    Raises:
        UserError: there are no scores, or not by that metric, or the epoch was trained again since.
    """
    again = f"python eval.py --all-epochs --run {quote(str(run))}"
    if not (run / "scores.json").exists():
        raise UserError(f"no scores in {run}, so no best epoch; score first: {again}")
    try:
        scores = json.loads((run / "scores.json").read_text())
        metric, best, rows = scores["metric"], scores["best"], scores["rows"]
        if metric not in best:
            reason = next((row[metric] for row in rows.values() if metric in row), "not scored")
            raise UserError(f"no best epoch by {metric} in {run}: {reason}; score again: {again}")
        epoch = int(re.fullmatch(r"epoch_(\d+)", best[metric])[1])
        current = rows[best[metric]]["stamp"].endswith(stamp(run, epoch, ""))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{run / 'scores.json'} is damaged; delete it and score again: {again}") from None
    except FileNotFoundError:
        current = False
    if not current:
        raise UserError(f"the scores in {run} are older than its checkpoints; score again: {again}")
    return epoch
