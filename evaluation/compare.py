"""Compare two epochs, of one run or of two, image by image: is one better, and can it be chance?"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from config import METRICS, UserError
from evaluation import scores
from evaluation.best_epoch import choose_epochs
from evaluation.scores import Row, Score, ScoreFile, Scores
from runtime.atomic import write_json
from runtime.run_folder import epoch_path

Side = tuple[Path, str | int | None]  # run, and epoch: a number, "best", or None for the best


class Difference(NamedTuple):
    """One metric of two epochs, over the images that both have."""

    ours: float
    theirs: float
    difference: Score  # ours - theirs, image by image
    images: int


@dataclass
class Comparison:
    """What comparison.json holds."""

    sides: list[str]  # "RUN epoch_0005", ours and theirs
    protocols: list[str]  # what `identify` returns of both
    not_alike: list[str]  # what the protocols differ in
    metrics: dict[str, Difference]  # every metric that both epochs have


def parse_opponent(text: str, run: Path) -> Side:
    """Return the run and epoch that RUN, RUN:N or N stands for; a lone number is an epoch of `run`."""
    if re.fullmatch(r"\d+", text) and not Path(text).exists():
        return run, text
    found = re.fullmatch(r"(.+):(\d+|best)", text)
    return (Path(found[1]), found[2]) if found else (Path(text), None)


def compare(ours: Side, theirs: Side, force: bool) -> Comparison:
    """Print every shared metric of two scored epochs with the interval of their difference; returns that.

    Also writes it into our run's comparison.json.

    Args:
        force: print different protocols instead of refusing them.

    Raises:
        UserError: one is not scored, they cannot be told apart, or they were scored in different ways.
    """
    (run, _), (other, _) = ours, theirs
    (name, stored), (opponent, others) = scored_epoch(*ours), scored_epoch(*theirs)
    if run.resolve() == other.resolve():
        if name == opponent:
            raise UserError(f"{name} of {run} would be compared with itself; name another with --against")
    elif run.resolve().name == other.resolve().name:
        raise UserError(f"{run} and {other} have one name; rename one, so that they can be told apart")
    odd = scores.differences(stored.protocol, others.protocol)
    if odd and not force:
        remedy = "score both again in one way, or compare them anyway with --force"
        raise UserError(f"{run} and {other} were not scored alike: {'; '.join(odd)}; {remedy}")
    one, stems = scores.read_per_image(run, stored, [name])
    two, their_stems = scores.read_per_image(other, others, [opponent])
    shared, at, theirs_at = np.intersect1d(stems, their_stems, return_indices=True)
    if not len(shared):
        raise UserError("the two have no picture in common, so there is nothing to compare")
    metrics = paired(pick(one[name], at), pick(two[opponent], theirs_at))
    sides = [f"{folder.resolve().name} {epoch}" for folder, epoch in ((run, name), (other, opponent))]
    protocols = [scores.identify(side.protocol) for side in (stored, others)]
    found = Comparison(sides, protocols, odd, metrics)
    print_comparison(found, stored.rows[name], others.rows[opponent])
    assumed = ", equal names taken for equal pictures" if odd else ""
    print(f"{len(shared)} pictures in common, compared one by one{assumed}")
    records = {
        metric: {"ours": a, "theirs": b, **scores.score_record("difference", difference), "images": images}
        for metric, (a, b, difference, images) in metrics.items()
    }
    write_json(run / "comparison.json", {**vars(found), "metrics": records})
    return found


def scored_epoch(run: Path, epoch: str | int | None) -> tuple[str, ScoreFile]:
    """Return the row of an epoch, and all scores. Raises UserError where it is not scored as it is now."""
    (number,) = choose_epochs(run, "best" if epoch is None else epoch, all_epochs=False)
    name, stored = epoch_path(run, number).stem, scores.read_scores(run)
    if name not in stored.rows or not scores.is_current(run, stored.rows[name]):
        command = f"python eval.py --epoch {number} --run {quote(str(run))}"
        raise UserError(f"epoch {number} of {run} is not scored: {command}")
    return name, stored


def pick(columns: Mapping[str, Scores], places: NDArray[np.intp]) -> dict[str, Scores]:
    """Return the scores of the images at these places, in their order."""
    return {metric: values[places] for metric, values in columns.items()}


def paired(ours: Mapping[str, Scores], theirs: Mapping[str, Scores]) -> dict[str, Difference]:
    """Return for every shared metric both means, and the mean difference with its 95 % interval."""
    found = {}
    for metric in [name for name in METRICS if name in ours and name in theirs]:
        a, b = ours[metric], theirs[metric]
        difference = scores.summarise({"difference": a - b})["difference"]
        found[metric] = Difference(float(a.mean()), float(b.mean()), difference, len(a))
    return found


def print_comparison(found: Comparison, ours: Row, theirs: Row) -> None:
    """Print one line per metric, and which side is better where the interval does not contain 0."""
    for phrase in found.not_alike:
        print(f"not alike: {phrase}")
    print(f"A: {found.sides[0]}\nB: {found.sides[1]}")
    print(f"{'':<20}{'A':>10}{'B':>10}{'A - B':>10}   95 % interval")
    for metric, (a, b, (mean, _, low, high), _) in found.metrics.items():
        line = f"{metric:<20}{a:>10.4g}{b:>10.4g}{mean:>10.3g}"
        print(line if low is None else f"{line}   {low:.3g} to {high:.3g}, {verdict(metric, low, high)}")
    for metric in scores.FOLDER_METRICS:
        if metric in ours.scores and metric in theirs.scores:
            a, b = ours.scores[metric].mean, theirs.scores[metric].mean
            print(f"{metric:<20}{a:>10.4g}{b:>10.4g}{a - b:>10.3g}   of folders: no interval")


def verdict(metric: str, low: float, high: float) -> str:
    """Return which side is better by the interval of A - B."""
    if low <= 0 <= high:
        return "no difference shown"
    if METRICS[metric] not in ("higher", "lower") or metric.startswith("s0_"):
        return "they differ"
    return "A is better" if (low > 0) == (METRICS[metric] == "higher") else "B is better"
