"""A run in plain text: its best epoch and how that stands, a comparison, the recipe, how to use and repeat the run.

`eval.py` prints the score table, and `reporting.page` puts the sentences into report.html.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from config import RECIPES, Recipe, make_recipe
from evaluation.best_epoch import AUTO, distance, unbeaten
from evaluation.compare import Entry
from evaluation.scores import BASELINES, TRUTH_COLORFULNESS, Row, ScoreFile, epoch_number
from runtime.progress import duration
from runtime.run_folder import RunRecord

NAMES = {  # of metrics, and of rows
    "psnr_db": "PSNR (dB)", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "ab_mse": "ab MSE",
    "ciede2000": "CIEDE2000", "colorfulness": "colourfulness", "colorfulness_error": "colourfulness error",
    "color_error": "colour error",
    "s0_psnr_db": "gray PSNR (dB)", "s0_ssim": "gray SSIM", "lpips_alex": "LPIPS AlexNet",
    "lpips_vgg": "LPIPS VGG-16", "top1": "top-1", "top5": "top-5", "fid": "FID", "kid": "KID",
    "frechet_lite0": "Frechet Lite0",
    "gray": "gray", "mean_ab": "mean ab", "jpeg90": "JPEG 90", "truth": "truth",
}  # fmt: skip
TERMS = {
    "G_l1": "L1", "G_mse": "MSE", "G_class": "classes of colour", "G_lpips": "LPIPS AlexNet",
    "G_perceptual": "VGG-16 features", "G_anime": "Danbooru features",
}  # fmt: skip
BETTER = {"higher": "higher is better", "lower": "lower is better", "closest to the truth": "best near the truth"}
BEATEN = {"gray": "gray", "mean_ab": "the mean colour"}
ERRORS = ("psnr_db", "ssim", "ms_ssim", "ab_mse", "ciede2000")  # by which a brown picture is never far off
INPUTS = {"L": "lightness", "line": "line art", "gray+line": "gray or line art", "sketch": "sketches"}
OUTPUTS = {"ab": "colour (a and b of Lab)", "rgb": "RGB", "Lab": "lightness and colour (Lab)"}


def score_command(run: Path) -> str:
    """Return the command that scores every epoch of a run."""
    return f"python eval.py --all-epochs --run {quote(str(run))}"


def model_words(record: RunRecord, epochs: Sequence[int], device: torch.device) -> str:
    """Return what is about to run: recipe, epochs, what they were trained on, device."""
    several = f"epochs {' '.join(map(str, epochs))}" if len(epochs) > 1 else f"epoch {epochs[0]}"
    return f"recipe {record.recipe.name}, {several}, trained on {record.trained_on}; on {device}"


def title(name: str) -> str:
    """Return the name of a metric or of a row for people to read."""
    epoch = epoch_number(name)
    return NAMES.get(name, name) if epoch is None else f"epoch {epoch}"


def listed(words: Sequence[object]) -> str:
    """Return "5, 10 and 15"."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def epoch_rows(scores: ScoreFile) -> dict[int, Row]:
    """Return epoch -> its row, in the order of the epochs."""
    rows = {row.epoch: row for row in scores.rows.values() if row.epoch is not None}
    return dict(sorted(rows.items()))


def best_epoch(scores: ScoreFile, metric: str) -> int | None:
    """Return the epoch that is best by a metric; None where not all epochs have it."""
    return scores.rows[scores.best[metric]].epoch if metric in scores.best else None


def better(scores: ScoreFile, metric: str) -> str:
    """Return in words which scores of a metric are better."""
    return BETTER.get(scores.directions[metric], "of no known direction")


def all_rows(scores: ScoreFile) -> dict[str, Row]:
    """Return baselines, epochs, upper bounds and, if its colourfulness is known, the ground truth."""
    baselines, epochs, bounds = {}, {}, {}
    for name, row in scores.rows.items():
        kind = baselines if name in BASELINES else bounds if row.epoch is None else epochs
        kind[name] = row
    first = next(iter(scores.rows.values()))
    if TRUTH_COLORFULNESS in first.scores:
        truth = bounds.get("truth", Row(None, {}, first.images))
        known = {"colorfulness": first.scores[TRUTH_COLORFULNESS], **truth.scores}
        bounds["truth"] = replace(truth, scores=known)
    return {**baselines, **epochs, **bounds}


def references(scores: ScoreFile, metric: str) -> dict[str, float]:
    """Return the values that the epochs are compared with: name of a baseline or an upper bound -> mean."""
    rows = {name: row for name, row in all_rows(scores).items() if row.epoch is None and metric in row.scores}
    if metric.startswith("s0_"):  # gray metrics do not see colour, and put the baselines above a JPEG
        rows = {name: row for name, row in rows.items() if name in BASELINES}
    return {name: row.scores[metric].mean for name, row in rows.items()}


def decimals(scores: ScoreFile, metric: str) -> int:
    """Return how many decimals a metric is shown with: about four digits of its largest mean."""
    means = (abs(row.scores[metric].mean) for row in scores.rows.values() if metric in row.scores)
    largest = max(means, default=0.0)
    magnitude = math.floor(math.log10(largest)) if largest else 0
    return max(0, 3 - max(0, magnitude)) if magnitude >= -1 else 2 - magnitude


def number_text(scores: ScoreFile, metric: str, value: float) -> str:
    """Return a value of a metric, with as many decimals as all values of that metric have."""
    return f"{value:,.{decimals(scores, metric)}f}"


def mean_text(scores: ScoreFile, metric: str, row: Row) -> str:
    """Return the mean of a row; empty where it is not available."""
    return number_text(scores, metric, row.scores[metric].mean) if metric in row.scores else ""


def interval_text(scores: ScoreFile, metric: str, row: Row) -> str:
    """Return the 95 % interval of a row's mean, as "11.90 to 12.80"; empty where there is none."""
    score = row.scores.get(metric)
    if score is None or score.low is None:
        return ""
    return f"{number_text(scores, metric, score.low)} to {number_text(scores, metric, score.high)}"


def why_not(scores: ScoreFile, metric: str) -> str | None:
    """Return why a metric is not available, None where no row says it."""
    reasons = [row.missing[metric] for row in scores.rows.values() if metric in row.missing]
    return reasons[-1] if reasons else None


def score_table(scores: ScoreFile) -> str:
    """Return the table that eval.py prints: one line per row, a star at the best epoch of each metric."""
    rows = scores.rows
    metrics = [metric for metric in scores.directions if any(metric in row.scores for row in rows.values())]
    lines = [" " * 11 + "".join(f"{name.replace('colorfulness', 'colorful'):>15}" for name in metrics)]
    for name, row in rows.items():
        stars = {metric: "*" if scores.best.get(metric) == name else " " for metric in metrics}
        cells = (f"{row.scores[m].mean:.4g}{stars[m]}" if m in row.scores else "- " for m in metrics)
        lines.append(f"{name:<11}" + "".join(f"{cell:>15}" for cell in cells))
    truth = references(scores, "colorfulness").get("truth")
    images = f"{next(iter(rows.values())).images} images"
    lines.append(images + (f", colourfulness of the truth {truth:.4g}" if truth is not None else ""))
    absent = [metric for metric in scores.directions if why_not(scores, metric)]
    if absent:
        lines.append(f"not computed: {' '.join(absent)} (report.html says why; --metric NAME asks for one)")
    return "\n".join([*lines, why_best(scores)])


def headline(scores: ScoreFile) -> str:
    """Return how the best epoch stands: beside the baselines first, then beside the other epochs."""
    metric = scores.metric
    name = scores.best.get(metric)
    if name is None:
        return "No epoch is named best"
    if worse := [] if metric.startswith("s0_") else unbeaten(metric, name, scores.rows):  # s0_ does not see colour
        return f"No epoch beats {BEATEN[worse[0]]} yet"
    if tied := [row for row in scores.ties if row in BASELINES]:
        return f"No epoch is shown to beat {BEATEN[tied[0]]}"
    epoch = epoch_number(name)
    if len(epoch_rows(scores)) == 1:
        return f"Epoch {epoch}, the only one scored"
    return f"Epoch {epoch} has the best mean" if scores.ties else f"Epoch {epoch} is best"


def why_best(scores: ScoreFile) -> str:
    """Return how the best epoch stands, its score with interval, baselines and upper bounds, in one line."""
    metric = scores.metric
    if metric not in scores.best:
        return f"no best epoch by {metric}: {why_not(scores, metric) or 'not scored'}"
    row, count = scores.rows[scores.best[metric]], len(epoch_rows(scores))
    mean, _, low, high = row.scores[metric]
    said = [better(scores, metric)] + ([] if low is None else [f"95 % interval {low:.4g} to {high:.4g}"])
    said += [f"best of {count} epochs, chosen on the images that score it"] if count > 1 else []
    beside = ", ".join(f"{name} {value:.4g}" for name, value in references(scores, metric).items())
    return f"{headline(scores)}: {metric} of epoch {row.epoch} is {mean:.4g} ({'; '.join(said)}); {beside}"


def best_words(scores: ScoreFile, asked: str = "auto") -> list[str]:
    """Return the score of the best epoch in a sentence, and in others how it was chosen and what it stands beside.

    Args:
        asked: the recipe's metric, which may be auto.
    """
    metric, epoch, ours = scores.metric, best_epoch(scores, scores.metric), epoch_rows(scores)
    if asked != "auto":
        by = "the metric of the recipe"
    elif metric not in AUTO:
        by = "the default when it was scored"
    else:
        by = "the default" if metric == AUTO[0] else f"the default where {title(AUTO[0])} is not computed"
    others: dict[int | None, list[str]] = {}
    for key in scores.best:
        if key not in (metric, "color_error") and not key.startswith("s0_"):  # gray metrics do not see colour
            others.setdefault(best_epoch(scores, key), []).append(title(key))
    by_others = "; ".join(f"epoch {n} ({', '.join(names)})" for n, names in sorted(others.items()))
    rest = [f"Best by other metrics: {by_others}."] if by_others else []
    if epoch is None:
        why = (why_not(scores, metric) or "not computed").rstrip(".")
        return [f"The epoch is chosen by {title(metric)} ({by}), which is {why}.", *rest]
    row = ours[epoch]
    interval = interval_text(scores, metric, row)
    said = (
        f"{title(metric)} {mean_text(scores, metric, row)} ({interval + '; ' * bool(interval)}{better(scores, metric)})"
    )
    said += f" at epoch {epoch}, over {row.images:,} pictures"
    if len(ours) == 1:
        return [f"{said}.", *beside_others(scores, metric, epoch), *rest, *caution(scores, metric, row)]
    chosen = f"The epoch is chosen by {title(metric)}, {by}."
    others = beside_others(scores, metric, epoch)
    return [f"{said}, on which it was also chosen.", *others, chosen, *rest, *caution(scores, metric, row)]


def beside_others(scores: ScoreFile, metric: str, best: int) -> list[str]:
    """Return how the best epoch compares with the baselines, the last epoch and what is tied with it."""
    ours = epoch_rows(scores)
    beside: dict[str, list[str]] = {"worse": [], "like": [], "better": []}  # what is not beaten is said first
    for name in BASELINES:
        row = scores.rows.get(name)
        if row is not None and metric in row.scores:
            word = "better" if distance(metric, ours[best]) < distance(metric, row) else "worse"
            word = "like" if name in scores.ties else word
            beside[word].append(f"{title(name)} ({mean_text(scores, metric, row)})")
    chance = "Picture by picture, a difference from {} is not shown: it may be chance."
    sentences = [
        chance.format(listed(names)) if word == "like" else f"Epoch {best} is {word} than {listed(names)}."
        for word, names in beside.items()
        if names
    ]
    last = max(ours)
    if last != best and metric in ours[last].scores:
        sentences.append(f"The last epoch, {last}, has {mean_text(scores, metric, ours[last])}.")
    epochs = [number for name in scores.ties if (number := epoch_number(name)) is not None]
    if epochs:
        sentences.append(chance.format(f"epoch{'s' * (len(epochs) > 1)} {listed(epochs)}"))
    return sentences


def caution(scores: ScoreFile, metric: str, row: Row) -> list[str]:
    """Return what an error by which an epoch was chosen does not see: how much colour there is."""
    ours, truth = row.scores.get("colorfulness"), row.scores.get(TRUTH_COLORFULNESS)
    if metric not in ERRORS or ours is None or truth is None:
        return []
    texts = [number_text(scores, "colorfulness", value.mean) for value in (ours, truth)]
    return [
        f"{title(metric)} rewards caution, such as brown: colourfulness is {texts[0]}, that of the truth {texts[1]}."
    ]


def missing_words(scores: ScoreFile) -> list[str]:
    """Return one sentence for each reason why metrics are not available, with the rows that lack them."""
    lacking: dict[str, dict[str, list[str]]] = {}  # reason -> metric -> rows
    for name, row in scores.rows.items():
        for metric in scores.directions:
            if metric in row.missing:
                lacking.setdefault(row.missing[metric], {}).setdefault(metric, []).append(title(name))
    sentences, everywhere = [], len(scores.rows)
    for reason, metrics in lacking.items():
        names = [title(m) + (f" of {listed(r)}" if len(r) < everywhere else "") for m, r in metrics.items()]
        sentences.append(f"{listed(names)} {'are' if len(names) > 1 else 'is'} {reason.rstrip('.')}.")
    return sentences


def recipe_words(record: RunRecord) -> list[str]:
    """Return a recipe in sentences: input and output, networks, loss, training, degradations, data."""
    r = record.recipe
    system = f" ({r.system})" if r.system else ""
    maps = f"{INPUTS.get(r.input, r.input)} to {OUTPUTS.get(r.output, r.output)} at {r.size} px"
    maps += f", scored at {r.test_size} px" if r.test_size != r.size else ""
    maps += f", at work at {r.work_size} px" if r.work_size not in (r.size, r.test_size) else ""
    counts = {name: f", {count:,} parameters" for name, count in record.parameters.items()}
    discriminator = f"discriminator {r.discriminator}{counts.get('discriminator', '')}"
    names = {**TERMS, "G_gan": f"GAN ({r.gan_mode})"}
    losses = [f"{weight:g} x {names[term]}" for term, weight in r.term_weights.items() if term.startswith("G_")]
    rate = f"{r.lr:g}" + (f" ({r.lr_d:g} for the discriminator)" if r.is_adversarial and r.lr_d else "")
    degraded = [f"{name} ({100 * chance:g} %)" for name, (_, chance) in r.degradations.items()]
    aims = {"train": "to train on", "val": "to validate"}
    counted = " and ".join(f"{record.images[s]:,} {aim}" for s, aim in aims.items() if s in record.images)
    return [
        f"Recipe {r.name}{system}: {maps}.",
        f"Networks: generator {r.generator}{counts.get('generator', '')}; "
        f"{discriminator if r.is_adversarial else 'no discriminator'}.",
        f"Loss: {' + '.join(losses)}.",
        f"Epochs: {r.stages}. {r.batch_size * record.processes} pictures a step, Adam at {rate}, {r.schedule}.",
        *([f"The input is damaged: {listed(degraded)} of the pictures."] if degraded else []),
        f"Data: {Path(record.data).name}{', ' if counted else ''}{counted}; seed {r.seed}.",
    ]


def training_words(record: RunRecord, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what log.jsonl says of the training: how long, on what device, how many pictures; empty without a log."""
    if not records:
        return []
    count = min(record.images.get("train", record.recipe.batch_size), record.recipe.batch_size)  # pictures per step
    steps = [0, *(entry["steps"] for entry in records)]
    by_steps = [count * (after - before) for before, after in pairwise(steps)]  # for old logs
    shown = [entry.get("images", images) for entry, images in zip(records, by_steps, strict=True)]
    seconds = sum(n / entry["images_per_s"] for n, entry in zip(shown, records, strict=True))
    devices = dict.fromkeys(entry["device"] for entry in records if "device" in entry)
    on = f" on {listed([*devices])}" if devices else ""
    plural = "s" * (records[-1]["epoch"] > 1)
    return [
        f"{records[-1]['epoch']} epoch{plural} took {duration(seconds)}{on}, without loading and saving.",
        f"The network was shown {sum(shown):,} pictures, {sum(shown) / seconds:.3g} a second.",
    ]


def use_commands(run: Path, record: RunRecord, epoch: int) -> str:
    """Return the shell commands that make something of an epoch of a run."""
    folder, model = quote(str(run)), quote(str(run / "generator.ts"))
    return "\n".join(
        [
            "# one file with this epoch in it, for Python and C++",
            f"python export.py --run {folder} --epoch {epoch}",
            "# colour files and folders with that",
            f"python colorize.py photos/ --model {model} --out coloured/",
            "# or train for longer",
            f"python train.py --resume --run {folder} --epochs {2 * record.recipe.epochs}",
        ]
    )


def side_words(side: Sequence[Entry]) -> str:
    """Return the runs and epochs of one side of a comparison."""
    epochs = dict.fromkeys(entry.epoch for entry in side)
    if len(epochs) == 1:
        return f"{listed([entry.run for entry in side])}, epoch {side[0].epoch}"
    return listed([f"{entry.run} epoch {entry.epoch}" for entry in side])


def commands(run: Path, record: RunRecord) -> str:
    """Return the shell commands that repeat the run."""
    name, fields, changed = record.recipe.name, asdict(record.recipe), record.overrides
    if changed is None:  # an earlier version's: all that differ, such as a load_size that follows from size
        plain = asdict(make_recipe(name, {}) if name in RECIPES else Recipe(name))
        changed = [key for key, value in fields.items() if value != plain[key]]
    versions = dict(record.versions)
    python, tinct = versions.pop("python", None), versions.pop("tinct", None)
    pins = " ".join(f"{name}=={str(version).partition('+')[0]}" for name, version in versions.items())
    options = [f"--data {quote(record.data)}"]
    options += [f"--weights {quote(record.weights)}"] if record.weights else []
    for key in changed:
        value = str(fields[key]).lower() if isinstance(fields[key], bool) else fields[key]
        options.append(f"--set {quote(f'{key}={value}')}")
    train = [f"python train.py --recipe {quote(name)}", *options, f"--run {quote(str(run))}"]
    sources = (("Tinct", tinct), ("Python", python), ("commit", record.git))
    made_with = [f"{source} {version}" for source, version in sources if version]
    lines = [f"# {', '.join(made_with)}"] * bool(made_with) + [f"pip install {pins}"] * bool(pins)
    return "\n".join([*lines, " \\\n    ".join(train), score_command(run)])
