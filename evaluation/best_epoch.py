"""Which saved epoch is best, by which metric, and which epochs a stage works on."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

from config import METRICS, UserError
from evaluation import scores
from evaluation.scores import BASELINES, PerImage, Protocol, Row, ScoreFile, epoch_number
from runtime.run_folder import read_run, saved_epochs

# By which the best epoch is chosen, unless the recipe says: the first that all epochs have.
AUTO = ("lpips_alex", "color_error")


def choose_epochs(run: Path, epoch: str | int | None, all_epochs: bool) -> list[int]:
    """Return the epochs that a stage works on: all, the one asked for (a number, or best), or the last.

    Raises UserError where none is saved, or not the one asked for, or none is known to be the best.
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
    """Return the scored epoch that is best by the metric of the scores, which `make_score_file` settles.

    Raises UserError where there are no scores, or not by that metric, or the epoch was trained again since.
    """
    stored = scores.read_scores(run)
    metric, again = stored.metric, f"score again: python eval.py --all-epochs --run {quote(str(run))}"
    if metric not in stored.best:
        reasons = (row.missing[metric] for row in stored.rows.values() if metric in row.missing)
        raise UserError(f"no best epoch by {metric} in {run}: {next(reasons, 'not scored')}; {again}")
    row = stored.rows[stored.best[metric]]
    if row.epoch is None or not scores.is_current(run, row):
        raise UserError(f"the scores in {run} are older than its checkpoints; {again}")
    return row.epoch


def best_or_last(run: Path) -> tuple[int, str]:
    """Return the best scored epoch, or the last one where none is known to be best, and which of the two it is.

    Raises UserError where none is saved.
    """
    last = choose_epochs(run, None, all_epochs=False)[0]
    if not (run / "scores.json").exists():
        return last, "the last: none is scored"
    try:
        return best_epoch(run), "the best scored"
    except UserError as error:
        return last, f"the last: {error}"


def distance(metric: str, row: Row) -> float:
    """Return a number in the metric's unit that is the smaller, the better the row is."""
    mean = row.scores[metric].mean
    if METRICS[metric] == "higher":
        return -mean
    return mean if METRICS[metric] == "lower" else abs(mean - row.scores[scores.TRUTH_COLORFULNESS].mean)


def best_epochs(rows: Mapping[str, Row]) -> dict[str, str]:
    """Return metric -> row of the best epoch, for each metric that all epochs have."""
    ours = {name: row for name, row in rows.items() if row.epoch is not None}
    return {
        metric: min(ours, key=lambda name: distance(metric, ours[name]))
        for metric in METRICS
        if ours and all(metric in row.scores for row in ours.values())
    }


def tied_rows(per_image: PerImage, best: str | None, metric: str) -> list[str]:
    """Return the epochs and baselines whose mean difference from the best epoch, image by image, may be chance."""
    rows = {
        name: found[metric]
        for name, found in per_image.items()
        if metric in found and (epoch_number(name) or name in BASELINES)
    }
    if best not in rows or METRICS[metric] not in ("higher", "lower") or len(rows[best]) < 2:
        return []
    found = scores.summarise({name: values - rows[best] for name, values in rows.items()})
    return [name for name, score in found.items() if name != best and score.low <= 0 <= score.high]


def unbeaten(metric: str, name: str, rows: Mapping[str, Row]) -> list[str]:
    """Return the baselines that are as good as this row by a metric, or better."""
    known = [baseline for baseline in BASELINES if baseline in rows and metric in rows[baseline].scores]
    return [baseline for baseline in known if distance(metric, rows[name]) >= distance(metric, rows[baseline])]


def clear_winners(rows: Mapping[str, Row], per_image: PerImage) -> dict[str, str]:
    """Return metric -> best epoch, where its lead over every other epoch and over the baselines is no chance.

    Args:
        per_image: scores of all epochs and baselines. A metric without scores of single images has no winner.
    """
    epochs = [name for name, row in rows.items() if row.epoch is not None]
    return {
        metric: name
        for metric, name in best_epochs(rows).items()
        if len(epochs) > 1
        and METRICS[metric] in ("higher", "lower")
        and len(per_image[name].get(metric, ())) > 1
        and not unbeaten(metric, name, rows)
        and not tied_rows(per_image, name, metric)
    }


def make_score_file(
    rows: dict[str, Row], per_image: PerImage, protocol: Protocol, metric: str, notes: Sequence[str]
) -> ScoreFile:
    """Return rows together with the best epochs, and with the rows that may be as good by `metric`.

    Args:
        metric: the recipe's; auto is lpips_alex where all epochs have it, else color_error.
    """
    best = best_epochs(rows)
    if metric == "auto":
        metric = next((name for name in AUTO if name in best), AUTO[-1])
    ties = tied_rows(per_image, best.get(metric), metric)
    return ScoreFile(metric, best, ties, dict(METRICS), protocol, list(notes), rows)
