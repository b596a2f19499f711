"""Compare two epochs, of one run or of two, image by image: is one better, and can it be chance?"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from config import METRICS, UserError
from evaluation.scores import (
    FOLDER_METRICS,
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
    for folder in (run, other):
        read_run(folder)
    names = scored_epoch(*ours), scored_epoch(*theirs)
    require_two(run, other, names)
    stored = read_scores(run), read_scores(other)
    odd = differences(stored[0].protocol, stored[1].protocol)
    if odd and not force:
        remedy = "score both again in one way, or compare them anyway with --force"
        raise UserError(f"{run} and {other} were not scored alike: {'; '.join(odd)}; {remedy}")
    one, stems = read_per_image(run, stored[0], names[:1])
    two, others = read_per_image(other, stored[1], names[1:])
    shared = sorted(set(stems) & set(others))
    if not shared:
        raise UserError("the two have no picture in common, so there is nothing to compare")
    metrics = paired(pick(one[names[0]], stems, shared), pick(two[names[1]], others, shared))
    sides = [f"{folder.resolve().name} {name}" for folder, name in zip((run, other), names, strict=True)]
    found = Comparison(sides, [identify(scores.protocol) for scores in stored], odd, metrics)
    print_comparison(found, stored[0].rows[names[0]], stored[1].rows[names[1]])
    assumed = ", equal names taken for equal pictures" if odd else ""
    print(f"{len(shared)} pictures in common, compared one by one{assumed}")
    records = {
        metric: {"ours": a, "theirs": b, **score_record("difference", difference), "images": images}
        for metric, (a, b, difference, images) in metrics.items()
    }
    write_json(run / "comparison.json", {**vars(found), "metrics": records})
    return found


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
    """Raise UserError where both sides are the same epoch, or two runs have the same name."""
    same = run.resolve() == other.resolve()
    if same and names[0] == names[1]:
        raise UserError(f"{names[0]} of {run} would be compared with itself; name another with --against")
    if not same and run.resolve().name == other.resolve().name:
        raise UserError(f"{run} and {other} have one name; rename one, so that they can be told apart")


def pick(columns: Mapping[str, Scores], stems: list[str], wanted: list[str]) -> dict[str, Scores]:
    """Return the scores of the wanted images, in their order."""
    indices = {stem: i for i, stem in enumerate(stems)}
    order = [indices[stem] for stem in wanted]
    return {metric: values[order] for metric, values in columns.items()}


def paired(ours: Mapping[str, Scores], theirs: Mapping[str, Scores]) -> dict[str, Difference]:
    """Return for every shared metric both means, and the mean difference with its 95 % interval."""
    found = {}
    for metric in [name for name in METRICS if name in ours and name in theirs]:
        a, b = ours[metric], theirs[metric]
        difference = summarise({"difference": a - b})["difference"]
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
    for metric in FOLDER_METRICS:
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
