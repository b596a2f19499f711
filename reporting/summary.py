"""What the files of a run say, in plain words: which epoch is best and why, its recipe, how to repeat it.

Returns text; page.py makes HTML of it.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from shlex import quote
from typing import Any

from config import DEGRADATIONS, METRICS, Recipe, UserError, make_recipe
from evaluation.scores import (
    BASELINES,
    TRUTH_COLORFULNESS,
    UPPER_BOUNDS,
    Row,
    ScoreFile,
    distance,
    epoch_number,
)
from runtime.run_folder import RunRecord

NAMES = {
    "psnr_db": "PSNR (dB)", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "ab_mse": "ab MSE",
    "ciede2000": "CIEDE2000", "colorfulness": "colourfulness", "colorfulness_error": "colourfulness error",
    "s0_psnr_db": "gray PSNR (dB)", "s0_ssim": "gray SSIM", "lpips_alex": "LPIPS AlexNet",
    "lpips_vgg": "LPIPS VGG-16", "top1": "top-1", "top5": "top-5", "fid": "FID", "kid": "KID",
    "gray": "gray", "mean_ab": "mean ab", "jpeg90": "JPEG 90", "truth": "truth",
}  # fmt: skip
BETTER = {
    "higher": "higher is better",
    "lower": "lower is better",
    "closest to the truth": "best near the truth",
}
GIVEN = {"L": "lightness", "line": "line art", "gray+line": "gray or line art", "sketch": "sketches"}
MADE = {"ab": "colour (a and b of Lab)", "rgb": "RGB", "Lab": "lightness and colour (Lab)"}


def remedy(run: Path) -> str:
    """Return the command that writes the scores."""
    return f"python eval.py --all-epochs --run {quote(str(run))}"


def picture_scores(run: Path) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield row name, stem and scores, picture by picture. Raises UserError where they are damaged."""
    path = run / "scores_per_image.csv"
    if not path.is_file():
        raise UserError(f"{run} has no scores_per_image.csv; write it with: {remedy(run)}")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file, strict=True):
                name, stem, _ = line.pop("name"), line.pop("stem"), line.pop("protocol", None)
                values = {metric: float(cell) for metric, cell in line.items() if cell != ""}
                yield name, stem, {metric: value for metric, value in values.items() if math.isfinite(value)}
    except (csv.Error, KeyError, TypeError, ValueError):  # a short line is filled up with None
        raise UserError(f"{path} is damaged; score again with: {remedy(run)}") from None


def epoch_rows(scores: ScoreFile) -> dict[int, Row]:
    """Return epoch -> its row, in order."""
    rows = {row.epoch: row for row in scores.rows.values() if row.epoch is not None}
    return dict(sorted(rows.items()))


def best_numbers(scores: ScoreFile) -> dict[str, int]:
    """Return metric -> the epoch that is best by it."""
    numbers = {metric: epoch_number(name) for metric, name in scores.best.items()}
    return {metric: epoch for metric, epoch in numbers.items() if epoch is not None}


def decimals(scores: ScoreFile, metric: str) -> int:
    """Return how many decimals a metric is shown with: about four digits of its largest value."""
    values = (abs(row.scores[metric].mean) for row in scores.rows.values() if metric in row.scores)
    largest = max(values, default=0.0)
    magnitude = math.floor(math.log10(largest)) if largest else 0
    return max(0, 3 - max(0, magnitude)) if magnitude >= -1 else 2 - magnitude


def shown(scores: ScoreFile, metric: str, row: Row) -> str:
    """Return a mean as text; empty where there is none."""
    return f"{row.scores[metric].mean:,.{decimals(scores, metric)}f}" if metric in row.scores else ""


def interval(scores: ScoreFile, metric: str, row: Row) -> str:
    """Return "11.90 to 12.80", empty where there is no interval."""
    if metric not in row.scores or row.scores[metric].low is None:
        return ""
    _, _, low, high = row.scores[metric]
    digits = decimals(scores, metric)
    return f"{low:,.{digits}f} to {high:,.{digits}f}"


def title(name: str) -> str:
    """Return the name of a metric or of a row as it is printed."""
    epoch = epoch_number(name)
    return NAMES.get(name, name) if epoch is None else f"epoch {epoch}"


def listed(words: Sequence[object]) -> str:
    """Return "5, 10 and 15"."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def best_words(scores: ScoreFile) -> tuple[str, list[str]]:
    """Return a headline that names the best epoch, and the sentences that say why it is."""
    metric, best = scores.metric, best_numbers(scores)
    ours = epoch_rows(scores)
    others: dict[int, list[str]] = {}
    for key, epoch in best.items():
        if key != metric and not key.startswith("s0_"):  # gray scores never choose a colouriser
            others.setdefault(epoch, []).append(title(key))
    by_others = "; ".join(f"epoch {epoch} ({', '.join(names)})" for epoch, names in sorted(others.items()))
    rest = [f"Best by other metrics: {by_others}."] if by_others else []
    if metric not in best:
        why = next((row.missing[metric] for row in ours.values() if metric in row.missing), "not computed")
        return "No epoch is named best", [
            f"The recipe chooses by {title(metric)}, which is {why.rstrip('.')}.", *rest
        ]  # fmt: skip
    row = ours[best[metric]]
    headline = (
        f"Epoch {best[metric]} is best" if len(ours) > 1 else f"Epoch {best[metric]}, the only one scored"
    )
    spread = interval(scores, metric, row)
    value = shown(scores, metric, row) + (f", 95 % interval {spread}" if spread else "")
    direction = BETTER.get(scores.directions.get(metric, ""), "of no known direction")
    reason = f"{title(metric)}, the metric of the recipe ({direction}): {value}"
    return headline, [
        f"{reason}, over {row.images:,} pictures.",
        *comparisons(scores, metric, best[metric]),
        *rest,
    ]


def comparisons(scores: ScoreFile, metric: str, best: int) -> list[str]:
    """Return how the best epoch stands to the baselines, the last epoch, and those it cannot be told from."""
    ours, row, sentences = epoch_rows(scores), epoch_rows(scores)[best], []
    for word in ("better", "worse"):
        names = [
            f"{title(name)} ({shown(scores, metric, other)})"
            for name, other in scores.rows.items()
            if name in BASELINES and metric in other.scores
            and (distance(metric, row) < distance(metric, other)) == (word == "better")
        ]  # fmt: skip
        if names:
            sentences.append(f"It is {word} than {listed(names)}.")
    last = max(ours)
    if last != best and shown(scores, metric, ours[last]):
        sentences.append(f"The last epoch, {last}, has {shown(scores, metric, ours[last])}.")
    if scores.ties:
        near = [epoch_number(name) for name in scores.ties]
        which = f"epoch{'s' * (len(near) > 1)} {listed(near)}"
        sentences.append(f"Picture by picture, a difference from {which} is not shown: it may be chance.")
    return sentences


def missing(scores: ScoreFile) -> list[str]:
    """Return one sentence for each reason why a metric is unavailable, with the rows that lack it."""
    lacking: dict[str, dict[str, list[str]]] = {}  # reason -> metric -> rows
    for name, row in scores.rows.items():
        for metric, reason in row.missing.items():
            lacking.setdefault(reason, {}).setdefault(metric, []).append(title(name))
    sentences = []
    for reason, metrics in lacking.items():
        names = [
            title(m) + ("" if len(rows) == len(scores.rows) else f" of {listed(rows)}")
            for m, rows in metrics.items()
        ]
        sentences.append(f"{listed(names)} {'are' if len(names) > 1 else 'is'} {reason.rstrip('.')}.")
    return sentences


def references(metric: str, rows: Mapping[str, Row]) -> dict[str, float]:
    """Return the means of the baselines and upper bounds, by name."""
    bounds = () if metric.startswith("s0_") else UPPER_BOUNDS  # s0 is blind to colour
    names = [name for name in (*BASELINES, *bounds) if name in rows and metric in rows[name].scores]
    found = {name: rows[name].scores[metric].mean for name in names}
    if metric == "colorfulness":
        found["truth"] = next(iter(rows.values())).scores[TRUTH_COLORFULNESS].mean
    return found


def print_table(scores: ScoreFile) -> None:
    """Print one line per row, the best epoch of each metric marked with a star, and what is missing."""
    rows = scores.rows
    shown = [metric for metric in METRICS if any(metric in row.scores for row in rows.values())]
    print(f"{'':<11}" + "".join(f"{name.replace('colorfulness', 'colorful'):>15}" for name in shown))
    for name, row in rows.items():
        cells = [
            f"{row.scores[metric].mean:.4g}" + ("*" if scores.best.get(metric) == name else " ")
            if metric in row.scores
            else "- "
            for metric in shown
        ]
        print(f"{name:<11}" + "".join(f"{cell:>15}" for cell in cells))
    first = next(iter(rows.values()))
    truth = first.scores.get(TRUTH_COLORFULNESS)
    print(f"{first.images} images" + (f", colourfulness of the truth {truth.mean:.4g}" if truth else ""))
    missing = {metric: reason for row in rows.values() for metric, reason in row.missing.items()}
    for name in [name for name in METRICS if name in missing]:
        print(f"{name} {missing[name]}")
    print(why_best(scores))


def why_best(scores: ScoreFile) -> str:
    """Return which epoch is best by the recipe's metric, with its interval and what it has to beat."""
    metric, rows = scores.metric, scores.rows
    best = scores.best.get(metric)
    if best is None:
        reasons = (row.missing[metric] for row in rows.values() if metric in row.missing)
        return f"no best epoch by {metric}: {next(reasons, 'not scored')}"
    mean, _, low, high = rows[best].scores[metric]
    interval = "" if low is None else f", 95 % interval {low:.4g} to {high:.4g}"
    beside = ", ".join(f"{name} {value:.4g}" for name, value in references(metric, rows).items())
    scored = len(epoch_rows(scores))
    return (
        f"best of {scored} scored epoch{'s' * (scored > 1)} by {metric} ({METRICS[metric]}): "
        f"{rows[best].epoch} with {mean:.4g}{interval}; {beside}"
    )


def recipe_words(record: RunRecord) -> list[str]:
    """Return a recipe in sentences: what it maps, its networks, its loss, its training, its data."""
    r, counts = asdict(record.recipe), record.parameters
    system = f" ({record.recipe.system})" if record.recipe.system else ""
    sizes = {name: f", {count:,} parameters" for name, count in counts.items()}
    adversarial = r["discriminator"] != "none" and r["lambda_gan"] > 0
    judge = f"discriminator {r['discriminator']}{sizes.get('discriminator', '')}"
    weights = {
        f"GAN ({r['gan_mode']})": r["lambda_gan"] if adversarial else 0.0, "L1": r["lambda_l1"],
        "MSE": r["lambda_mse"], "VGG-16 features": r["lambda_perceptual"] * (1 - r["anime_share"]),
        "Danbooru features": r["lambda_perceptual"] * r["anime_share"],
    }  # fmt: skip
    alone = f", the first {r['pretrain_epochs']} without the discriminator" if r["pretrain_epochs"] else ""
    rate = f"{r['lr']:g}" + (f" ({r['lr_d']:g} for the discriminator)" if adversarial and r["lr_d"] else "")
    images = record.images
    counted = " and ".join(
        f"{images[split]:,} {aim}" for split, aim in (("train", "to train on"), ("val", "to validate"))
        if split in images
    )  # fmt: skip
    damage = [f"{name} ({100 * r[f'{name}_p']:g} %)" for name in DEGRADATIONS if r[f"{name}_p"] > 0]
    maps = f"{GIVEN.get(r['input'], r['input'])} to {MADE.get(r['output'], r['output'])} at {r['size']} px"
    networks = f"generator {r['generator']}{sizes.get('generator', '')}"
    return [
        f"Recipe {r['name']}{system}: {maps}.",
        f"Networks: {networks}; {judge if adversarial else 'no discriminator'}.",
        f"Loss: {' + '.join(f'{weight:g} x {name}' for name, weight in weights.items() if weight > 0)}.",
        f"{r['epochs']} epochs{alone}, {r['batch_size']} pictures a step, Adam at {rate}, {r['schedule']}.",
        *([f"The input is damaged: {listed(damage)} of the pictures."] if damage else []),
        f"Data: {Path(str(record.data)).name}{', ' if counted else ''}{counted}; seed {r['seed']}.",
    ]


def settings(recipe: Mapping[str, Any]) -> list[str]:
    """Return the fewest key=value that, given with --set, turn the recipe's defaults into this one."""
    known = {field.name for field in fields(Recipe)} - {"name"}
    given = {key: value for key, value in recipe.items() if key in known}

    def build(values: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return asdict(make_recipe(recipe["name"], values))
        except (ValueError, KeyError, TypeError):
            return None

    plain, wanted = build({}) or {}, build(given)
    needed = {key: value for key, value in given.items() if key not in plain or plain[key] != value}
    for key in list(needed):  # what follows from other fields, as the depth from the size, need not be said
        fewer = {other: value for other, value in needed.items() if other != key}
        needed = fewer if wanted is not None and build(fewer) == wanted else needed
    return [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in needed.items()
    ]


def commands(run: Path, record: RunRecord) -> str:
    """Return the shell commands that make the run again."""
    recipe, versions = asdict(record.recipe), dict(record.versions)
    python, tinct = versions.pop("python", None), versions.pop("tinct", None)
    pins = " ".join(f"{name}=={str(version).partition('+')[0]}" for name, version in versions.items())
    options = [f"--data {quote(str(record.data))}"]
    options += [f"--weights {quote(record.weights)}"] if record.weights else []
    options += [f"--set {quote(setting)}" for setting in settings(asdict(record.recipe))]
    train = " \\\n    ".join(
        [f"python train.py --recipe {quote(recipe['name'])}", *options, f"--run {quote(str(run))}"]
    )
    made_with = [f"Tinct {tinct}"] * bool(tinct) + [f"Python {python}"] * bool(python)
    made_with += [f"commit {record.git}"] * bool(record.git)
    lines = [f"# {', '.join(made_with)}"] * bool(made_with) + [f"pip install {pins}"] * bool(pins)
    return "\n".join([*lines, train, remedy(run)])
