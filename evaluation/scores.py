"""Scores of a run: means with intervals, and the files that hold them.

    scores.json             protocol, best epochs, and one row per epoch, baseline and upper bound
    scores.csv              the same rows; a score that is not available is an empty cell
    scores_per_image.csv    one line per row and image; in both tables the last column identifies the protocol

The keys of a row in both score files: METRIC, METRIC_se, METRIC_low and METRIC_high, with a sentence as
METRIC's value where it is not available; colorfulness_truth, images, stamp. `Row` is what the code uses.
"""

import csv
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from config import Recipe, UserError
from runtime import run_folder
from runtime.atomic import replacing, write_json
from runtime.run_folder import library_versions, saved_epochs

FORMAT = "tinct-scores-1"
RESAMPLES = 2000  # of the bootstrap
CONFIDENCE = 0.95
SEED = 0  # of the resampling, so that the same scores always have the same interval
BASELINES = ("gray", "mean_ab")  # must be beaten: no colour; the mean a and b of the training images
UPPER_BOUNDS = ("jpeg90", "truth")  # cannot be beaten: the ground truth as a JPEG of quality 90; itself
FOLDER_METRICS = ("fid", "kid", "frechet_lite0")  # of a whole folder of images
TRUTH_COLORFULNESS = "colorfulness_truth"  # what colorfulness is compared with
ENDS = ("", "_se", "_low", "_high")  # of the keys in score files that hold a Score
# libraries that decide what a score is
LIBRARIES = ("torch", "torchvision", "numpy", "pillow", "scipy", "torchmetrics", "clean-fid")

Scores = NDArray[np.float64]
PerImage = dict[str, dict[str, Scores]]  # row -> metric -> (N,)
Protocol = dict[str, Any]  # what `describe_protocol` returns


class Score(NamedTuple):
    """A mean over images, its standard error, and the ends of its 95 % interval.

    The last three are None where there is a single image, or no score of single images.
    """

    mean: float
    se: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass
class Row:
    """The scores of one epoch, baseline or upper bound."""

    epoch: int | None  # None: a baseline or an upper bound
    scores: dict[str, Score]  # metric, or colorfulness_truth -> score
    images: int
    missing: dict[str, str] = field(default_factory=dict)  # metric -> why it is not available
    stamp: str = ""  # of the checkpoint and the data, see run_folder.stamp


@dataclass
class ScoreFile:
    """What scores.json holds."""

    metric: str  # by which the best epoch is chosen: the recipe's, or what its auto has become
    best: dict[str, str]  # metric -> row of the epoch that is best by it
    ties: list[str]  # epochs and baselines whose difference from the best epoch may be chance
    directions: dict[str, str]  # metric -> higher | lower | closest to the truth
    protocol: Protocol
    notes: list[str]
    rows: dict[str, Row]


def bootstrap(scores: Scores) -> tuple[Scores, Scores]:
    """Return the low and high ends (M,) of the 95 % intervals of the means of scores (N, M).

    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, percentile interval.
    """
    rng = np.random.default_rng(SEED)
    n = len(scores)
    # images drawn with replacement, counted: (N,) @ (N, M)
    means = [np.bincount(rng.integers(n, size=n), minlength=n) @ scores / n for _ in range(RESAMPLES)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of successes. Source: Wilson 1927, computed by SciPy."""
    from scipy.stats import binomtest  # seconds, which a program that scores nothing saves

    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def summarise(columns: Mapping[str, Scores]) -> dict[str, Score]:
    """Return the mean of every column of per-image scores (N,), with standard error and interval.

    top1 and top5, which are 0 or 1 for each image, get Wilson's interval, every other column the bootstrap's.
    A single image has a mean alone.
    """
    scores = np.stack(list(columns.values()), 1)  # (N, M)
    means = scores.mean(0).tolist()
    if len(scores) < 2:
        return {name: Score(mean) for name, mean in zip(columns, means, strict=True)}
    errors = (scores.std(0, ddof=1) / np.sqrt(len(scores))).tolist()
    lows, highs = (ends.tolist() for ends in bootstrap(scores))
    found = {}
    for name, *values in zip(columns, means, errors, lows, highs, strict=True):
        found[name] = Score(*values)
        if name in ("top1", "top5"):
            found[name] = Score(*values[:2], *wilson(int(columns[name].sum()), len(scores)))
    return found


def describe_protocol(
    recipe: Recipe, stems: Sequence[str], digests: Sequence[bytes], weights: Mapping[str, str]
) -> Protocol:
    """Return everything that makes scores comparable; each score file carries it.

    Args:
        stems, digests: names of the images and hashes of the targets' pixels, in order.
        weights: network -> SHA-256 of its file, for every network that a metric uses.
    """
    return {
        "images": len(stems),
        "size": recipe.test_size,
        "file_list": hashlib.sha256("\n".join(stems).encode()).hexdigest(),
        "targets": hashlib.sha256(b"".join(digests)).hexdigest(),
        "resize": f"{recipe.fit} {max(recipe.load_size, recipe.test_size)}:{recipe.test_size} px, bicubic, antialiased",
        "data_range": 255,
        "versions": library_versions(LIBRARIES),
        "weights": dict(weights),
    }


def identify(protocol: Protocol) -> str:
    """Return 12 hexadecimal digits that identify a protocol in tables."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]


def differences(ours: Protocol, theirs: Protocol) -> list[str]:
    """Return what two protocols differ in, a phrase each; a network that one side alone uses is left out."""
    shared = ours["weights"].keys() & theirs["weights"].keys()
    flat = []
    for protocol in (ours, theirs):
        plain = {key: value for key, value in protocol.items() if not isinstance(value, dict)}
        networks = {f"weights of {name}": protocol["weights"][name] for name in shared}
        flat.append({**plain, **protocol["versions"], **networks})
    phrases = []
    for key in {**flat[0], **flat[1]}:
        texts = [str(values.get(key)) for values in flat]
        if texts[0] != texts[1]:
            short = [text[:12] if len(text) == 64 else text for text in texts]  # of a SHA-256
            phrases.append(f"{key} {' and '.join(short)}")
    return phrases


def epoch_number(name: str) -> int | None:
    """Return the epoch of a row's name; None for a baseline or an upper bound."""
    found = re.fullmatch(r"epoch_(\d+)", name)
    return int(found[1]) if found else None


def make_row(name: str, columns: Mapping[str, Scores], stems: Sequence[str]) -> Row:
    """Return a row from per-image scores (N,)."""
    for metric, values in columns.items():
        for i in np.flatnonzero(~np.isfinite(values)):  # of 8-bit images every score is finite
            raise FloatingPointError(f"{metric} of {name}/{stems[i]}.png is {values[i]}")
    scores = summarise(columns)
    if TRUTH_COLORFULNESS in scores:  # the same in every row, so its interval says nothing
        scores[TRUTH_COLORFULNESS] = Score(scores[TRUTH_COLORFULNESS].mean)
    return Row(epoch_number(name), scores, len(stems))


def score_record(name: str, score: Score) -> dict[str, float]:
    """Return a score in the form of the score files."""
    return {f"{name}{end}": value for end, value in zip(ENDS, score, strict=True) if value is not None}


def row_record(row: Row) -> dict[str, Any]:
    """Return a row in the form of the score files."""
    cells: dict[str, Any] = {}
    for metric, score in row.scores.items():
        cells |= score_record(metric, score)
    whole = {metric: cells.pop(metric) for metric in FOLDER_METRICS if metric in cells}
    stamp = {"stamp": row.stamp} if row.stamp else {}
    return {**cells, "images": row.images, **whole, **row.missing, **stamp}


def parse_row(name: str, record: Mapping[str, Any]) -> Row:
    """Return the row that `row_record` made a record of; KeyError, TypeError or ValueError if damaged."""
    row = Row(epoch_number(name), {}, int(record["images"]), stamp=str(record.get("stamp", "")))
    ends = {f"{key}{end}" for key in record for end in ENDS[1:]}
    for key in [key for key in record if key not in {"images", "stamp", *ends}]:
        if isinstance(record[key], str):
            row.missing[key] = record[key]
            continue
        score = Score(*(record.get(f"{key}{end}") for end in ENDS))
        if not all(math.isfinite(value) for value in score if value is not None) or score.mean is None:
            raise ValueError(f"{key} is {score}")
        row.scores[key] = score
    return row


def read_scores(run: Path) -> ScoreFile:
    """Return a run's scores.json. Raises UserError where it is missing, damaged or of another version."""
    path = run / "scores.json"
    if not path.exists():
        raise UserError(f"no scores in {run}: python eval.py --all-epochs --run {quote(str(run))}")
    try:
        stored = json.loads(path.read_text())
        sound = stored.pop("format") == FORMAT
        stored["rows"] = {name: parse_row(name, record) for name, record in stored["rows"].items()}
        scores = ScoreFile(**stored)
        sound = sound and all(metric in scores.rows[name].scores for metric, name in scores.best.items())
        sound = sound and all(isinstance(scores.protocol[key], dict) for key in ("versions", "weights"))
        kinds = {"metric": str, "ties": list, "directions": dict, "notes": list}
        sound = sound and all(isinstance(getattr(scores, key), kind) for key, kind in kinds.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{path} is damaged, or of another version; delete it and score again")
    return scores


def read_per_image(run: Path, scores: ScoreFile, names: Sequence[str]) -> tuple[PerImage, list[str]]:
    """Return the per-image scores of some rows, and the names of the images, which all rows share.

    Raises UserError where they are missing, damaged, or of another evaluation than `scores`.
    """
    path = run / "scores_per_image.csv"
    stems: dict[str, list[str]] = {name: [] for name in names}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    protocols = set()
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                name, stem, identity = (line.pop(key) for key in ("name", "stem", "protocol"))
                if name in found:
                    protocols.add(identity)
                    stems[name].append(stem)
                    for metric in [metric for metric, cell in line.items() if cell]:
                        found[name].setdefault(metric, []).append(float(line[metric]))
        sound = protocols == {identify(scores.protocol)}
        for name in names:
            counts = {len(values) for values in (stems[name], *found[name].values())}
            sound = sound and counts == {scores.rows[name].images} and stems[name] == stems[names[0]]
    except (OSError, KeyError, ValueError, TypeError, csv.Error):
        sound = False
    if not sound:
        raise UserError(f"{path} is missing or damaged; score again with --all-epochs")
    return {name: {key: np.array(v) for key, v in found[name].items()} for name in names}, stems[names[0]]


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Mapping[str, object]]) -> None:
    """Write a table, complete or not at all; what a line lacks is an empty cell."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(lines)


def write_scores(run: Path, scores: ScoreFile, per_image: PerImage, stems: Sequence[str]) -> None:
    """Write scores.json, scores.csv and scores_per_image.csv."""
    identity = identify(scores.protocol)
    records = {name: row_record(row) for name, row in scores.rows.items()}
    keys = dict.fromkeys(key for record in records.values() for key in record if key != "stamp")
    lines = []
    for name, record in records.items():
        numbers = {key: value for key, value in record.items() if not isinstance(value, str)}
        lines.append({"name": name, **numbers, "protocol": identity})
    write_csv(run / "scores.csv", ["name", *keys, "protocol"], lines)
    metrics = dict.fromkeys(metric for columns in per_image.values() for metric in columns)
    images = (
        dict(zip(["name", "stem", "protocol", *columns], [name, stem, identity, *cells], strict=True))
        for name, columns in per_image.items()
        for stem, *cells in zip(stems, *(values.tolist() for values in columns.values()), strict=True)
    )
    write_csv(run / "scores_per_image.csv", ["name", "stem", *metrics, "protocol"], images)
    write_json(run / "scores.json", {"format": FORMAT, **vars(scores), "rows": records})


def is_current(run: Path, row: Row) -> bool:
    """Tell whether an epoch's checkpoint is there and is still the one that was scored."""
    saved = row.epoch in saved_epochs(run)
    return saved and row.stamp.endswith(run_folder.stamp(run, row.epoch, ""))


def earlier_rows(run: Path, scores: ScoreFile, epochs: Sequence[int], key: str) -> dict[str, Row]:
    """Return the stored rows of saved epochs that are not scored now, with the images of this key.

    Raises UserError where one is of other data or another checkpoint; nothing has been done yet.
    """
    others = set(saved_epochs(run)) - set(epochs)
    rows = {name: row for name, row in scores.rows.items() if row.epoch in others}
    for row in rows.values():
        if not is_current(run, row) or not row.stamp.startswith(f"{key} "):
            raise UserError(
                f"epoch {row.epoch} of {run} was scored on other data or has another checkpoint now: "
                "score all again with --all-epochs"
            )
    return rows


def require_alike(run: Path, earlier: Mapping[str, Row], before: Protocol, new: Row, now: Protocol) -> None:
    """Raise UserError where earlier rows and an epoch's new one, of two protocols, were not scored alike."""
    odd = differences(before, now)
    odd += ["other networks"] if before["weights"] != now["weights"] else []
    wanted = row_record(new).keys()
    odd += ["other metrics"] if any(row_record(row).keys() != wanted for row in earlier.values()) else []
    if odd:
        raise UserError(f"other epochs of {run} were scored with {'; '.join(odd)}: score all again with --all-epochs")
