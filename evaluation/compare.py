"""Two epochs, or two runs, compared picture by picture: by how much is one better, and is that sure?"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from config import METRICS, UserError
from evaluation.scores import (
    FOLDER_METRICS,
    PerImage,
    Row,
    Score,
    Scores,
    choose_epochs,
    differences,
    identify,
    is_current,
    read_per_image,
    read_scores,
    score_record,
    summarise,
)
from runtime.atomic import write_json
from runtime.run_folder import epoch_path, read_run

Side = tuple[Path, str | int | None]  # run, and epoch: a number, "best", or None for the best


class Difference(NamedTuple):
    """One metric of two epochs, over the images that both have."""

    ours: float
    theirs: float
    difference: Score  # ours - theirs, image by image
    images: int


@dataclass
class Comparison:
    """What comparison.json holds: two epochs, and every metric that both have."""

    sides: list[str]  # "RUN epoch_0005", ours and theirs
    protocols: list[str]  # what `identify` returns of both
    not_alike: list[str]  # what the protocols differ in
    metrics: dict[str, Difference]


def parse_opponent(text: str, run: Path) -> Side:
    """Return the run and epoch that RUN, RUN:N or N stands for; a lone number is an epoch of `run`."""
    if re.fullmatch(r"\d+", text) and not Path(text).exists():
        return run, text
    found = re.fullmatch(r"(.+):(\d+|best)", text)
    return (Path(found[1]), found[2]) if found else (Path(text), None)


def scored_epoch(run: Path, epoch: str | int | None) -> str:
    """Return the row of an epoch. Raises UserError where it is not scored, or no longer as it was."""
    rows = read_scores(run).rows
    number = choose_epochs(run, "best" if epoch is None else epoch, all_epochs=False)[0]
    name = epoch_path(run, number).stem
    if name not in rows or not is_current(run, rows[name]):
        raise UserError(
            f"epoch {number} of {run} is not scored: python eval.py --epoch {number} --run {quote(str(run))}"
        )
    return name


def require_two(run: Path, other: Path, names: tuple[str, str]) -> None:
    """Raise UserError where two sides are one, or have one name."""
    same = run.resolve() == other.resolve()
    if same and names[0] == names[1]:
        raise UserError(f"{names[0]} of {run} would be compared with itself; name another with --against")
    if not same and run.resolve().name == other.resolve().name:
        raise UserError(f"{run} and {other} have one name; rename one, so that they can be told apart")


def compare(ours: Side, theirs: Side, force: bool) -> Comparison:
    """Print every shared metric of two scored epochs with the interval of their difference; returns that.

    It is written into our run's comparison.json, too.

    Args:
        force: print different protocols instead of refusing them.

    Raises:
        UserError: one is not scored, they cannot be told apart, or they were scored in different ways.
    """
    (run, _), (other, _) = ours, theirs
    for folder in (run, other):
        read_run(folder)
    names = scored_epoch(*ours), scored_epoch(*theirs)
    require_two(run, other, names)
    stored = read_scores(run), read_scores(other)
    odd = differences(stored[0].protocol, stored[1].protocol)
    if odd and not force:
        remedy = "score both again in one way, or compare them anyway with --force"
        raise UserError(f"{run} and {other} were not scored alike: {'; '.join(odd)}; {remedy}")
    sides = read_per_image(run, stored[0], names[:1]), read_per_image(other, stored[1], names[1:])
    columns = [pick_pictures(side, name, sides) for side, name in zip(sides, names, strict=True)]
    found = Comparison(
        [f"{folder.resolve().name} {name}" for folder, name in zip((run, other), names, strict=True)],
        [identify(scores.protocol) for scores in stored],
        odd,
        paired(*columns),
    )
    print_comparison(found, *(scores.rows[name] for scores, name in zip(stored, names, strict=True)))
    write_json(run / "comparison.json", comparison_record(found))
    return found


def pick_pictures(
    side: tuple[PerImage, list[str]], name: str, sides: Sequence[tuple[PerImage, list[str]]]
) -> dict[str, Scores]:
    """Return a row's scores of the pictures that both sides have, in one order. Raises UserError if none."""
    shared = sorted(set(sides[0][1]) & set(sides[1][1]))
    if not shared:
        raise UserError("the two have no picture in common, so there is nothing to compare")
    places = {stem: i for i, stem in enumerate(side[1])}
    order = [places[stem] for stem in shared]
    return {metric: values[order] for metric, values in side[0][name].items()}


def paired(ours: Mapping[str, Scores], theirs: Mapping[str, Scores]) -> dict[str, Difference]:
    """Return for every shared metric both means, and the mean difference with its 95 % interval."""
    found = {}
    for metric in [name for name in METRICS if name in ours and name in theirs]:
        a, b = ours[metric], theirs[metric]
        difference = summarise({"difference": a - b})["difference"]
        found[metric] = Difference(float(a.mean()), float(b.mean()), difference, len(a))
    return found


def comparison_record(found: Comparison) -> dict[str, object]:
    """Return a comparison in the form of comparison.json."""
    metrics = {
        metric: {
            "ours": row.ours,
            "theirs": row.theirs,
            **score_record("difference", row.difference),
            "images": row.images,
        }
        for metric, row in found.metrics.items()
    }
    return {**vars(found), "metrics": metrics}


def print_comparison(found: Comparison, ours: Row, theirs: Row) -> None:
    """Print one line per metric, and which side is better where the interval leaves no doubt."""
    for phrase in found.not_alike:
        print(f"not alike: {phrase}")
    print(f"A: {found.sides[0]}\nB: {found.sides[1]}")
    print(f"{'':<20}{'A':>10}{'B':>10}{'A - B':>10}   95 % interval")
    for metric, (a, b, difference, _) in found.metrics.items():
        line = f"{metric:<20}{a:>10.4g}{b:>10.4g}{difference.mean:>10.3g}"
        low, high = difference.low, difference.high
        print(line if low is None else f"{line}   {low:.3g} to {high:.3g}, {verdict(metric, low, high)}")
    for metric in FOLDER_METRICS:
        if metric in ours.scores and metric in theirs.scores:
            a, b = ours.scores[metric].mean, theirs.scores[metric].mean
            print(f"{metric:<20}{a:>10.4g}{b:>10.4g}{a - b:>10.3g}   of folders: no interval")
    images = next((row.images for row in found.metrics.values()), 0)
    assumed = ", equal names taken for equal pictures" if found.not_alike else ""
    print(f"{images} pictures in common, compared one by one{assumed}")


def verdict(metric: str, low: float, high: float) -> str:
    """Return which side an interval of A - B shows to be better."""
    if low <= 0 <= high:
        return "no difference shown"
    if METRICS[metric] not in ("higher", "lower") or metric.startswith("s0_"):
        return "they differ"
    return "A is better" if (low > 0) == (METRICS[metric] == "higher") else "B is better"
