"""Compare two epochs, image by image, or two recipes by several runs of each: is one better, and can it be chance?

An interval over images tells what other images would change. It does not tell what another seed would: that
takes several runs per side, and an interval over them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from config import METRICS, UserError
from evaluation import scores
from evaluation.best_epoch import choose_epochs
from evaluation.scores import BASELINES, CONFIDENCE, FOLDER_METRICS, PerImage, Score, ScoreFile, Scores
from runtime.atomic import write_json
from runtime.progress import say
from runtime.run_folder import epoch_path, read_run

Side = tuple[Path, str | int | None]  # run, and epoch: a number, "best", or None for the best
FORMAT = "tinct-comparison-1"
FREE = ("seed", "save_every", "log_every", "samples")  # fields in which the runs of one side may differ
SEVERAL = "--run A1 A2 A3 --against B1 B2 B3"  # what to ask for to compare recipes and not runs


class Entry(NamedTuple):
    """One scored epoch that is compared."""

    run: str  # name of its folder
    epoch: int
    chosen_by: str | None  # metric by which it is the best of several epochs on these images; None: it was named
    protocol: str  # what `identify` returns
    stamp: str  # of its checkpoint and data


class Difference(NamedTuple):
    """One metric of both sides, over the images that all have."""

    ours: float  # mean over images, and over runs
    theirs: float
    difference: Score  # ours - theirs; its interval is over images, or over runs where there are several
    images: int


@dataclass
class Comparison:
    """What comparison.json holds."""

    ours: list[Entry]
    theirs: list[Entry]
    not_alike: list[str]  # what protocols, or recipes of one side, differ in
    images: int  # in common
    baselines: dict[str, dict[str, float]]  # gray and mean_ab -> metric -> mean over these images
    metrics: dict[str, Difference]  # every metric that all epochs have

    @property
    def is_over_runs(self) -> bool:
        """Whether the intervals are over runs; otherwise they are over images, of one run per side."""
        return len(self.ours) > 1


class Scored(NamedTuple):
    """A scored epoch with its run's scores."""

    run: Path
    name: str  # of the row
    entry: Entry
    stored: ScoreFile


def parse_opponent(text: str, run: Path) -> Side:
    """Return the run and epoch that RUN, RUN:N or N stands for; a lone number is an epoch of `run`."""
    if re.fullmatch(r"\d+", text) and not Path(text).exists():
        return run, text
    found = re.fullmatch(r"(.+):(\d+|best)", text)
    return (Path(found[1]), found[2]) if found else (Path(text), None)


def compare(ours: Sequence[Side], theirs: Sequence[Side], force: bool) -> Comparison:
    """Print every shared metric of two sides with the interval of their difference; returns that.

    One run per side is compared image by image; of several runs per side the means are. Also writes it into our
    first run's comparison.json.

    Args:
        force: print what is not alike instead of refusing it.

    Raises:
        UserError: one is not scored, they cannot be told apart, or they were not trained or scored alike.
    """
    sides = [[scored_epoch(*side) for side in found] for found in (ours, theirs)]
    require_sides(*sides)
    every = [*sides[0], *sides[1]]
    odd = protocol_differences(every) + recipe_differences(sides[0]) + recipe_differences(sides[1])
    if odd and not force:
        remedy = "score them again in one way, or compare them anyway with --force"
        raise UserError(f"{listed_runs(every)} are not alike: {'; '.join(odd)}; {remedy}")
    columns, count = shared_images(every)
    known = {key: columns[0][key] for key in BASELINES if key in columns[0]}
    baselines = {key: {metric: float(v.mean()) for metric, v in found.items()} for key, found in known.items()}
    own = [found[one.name] for found, one in zip(columns, every, strict=True)]
    parts = own[: len(ours)], own[len(ours) :]
    metrics = over_runs(*parts) if len(ours) > 1 else paired(parts[0][0], parts[1][0])
    metrics |= of_folders(*sides)
    metrics = {metric: metrics[metric] for metric in METRICS if metric in metrics}
    entries = [[one.entry for one in side] for side in sides]
    found = Comparison(*entries, odd, count, baselines, metrics)
    say("\n".join(comparison_lines(found)))
    write_comparison(every[0].run, found)
    return found


def scored_epoch(run: Path, epoch: str | int | None) -> Scored:
    """Return an epoch with all scores of its run. Raises UserError where it is not scored as it is now."""
    asked = "best" if epoch is None else epoch
    (number,) = choose_epochs(run, asked, all_epochs=False)
    name, stored = epoch_path(run, number).stem, scores.read_scores(run)
    if name not in stored.rows or not scores.is_current(run, stored.rows[name]):
        command = f"python eval.py --epoch {number} --run {quote(str(run))}"
        raise UserError(f"epoch {number} of {run} is not scored: {command}")
    several = sum(row.epoch is not None for row in stored.rows.values()) > 1
    chosen_by = stored.metric if asked == "best" and several else None
    identity = scores.identify(stored.protocol)
    entry = Entry(run.resolve().name, number, chosen_by, identity, stored.rows[name].stamp)
    return Scored(run, name, entry, stored)


def require_sides(ours: Sequence[Scored], theirs: Sequence[Scored]) -> None:
    """Raise UserError where sides cannot be compared, or their epochs cannot be told apart."""
    several = len(ours) > 1 or len(theirs) > 1
    if several and min(len(ours), len(theirs)) < 2:
        raise UserError(f"an interval over runs takes two or more on each side: {SEVERAL}; or give one on each")
    for one, other in combinations([*ours, *theirs], 2):
        if one.run.resolve() == other.run.resolve():
            if one.name == other.name:
                raise UserError(f"{one.name} of {one.run} would be compared with itself; name another with --against")
            if several:
                raise UserError(f"{one.run} is named twice: a training counts once; give another run")
        elif one.entry.run == other.entry.run:
            raise UserError(f"{one.run} and {other.run} have one name; rename one, so that they can be told apart")


def protocol_differences(every: Sequence[Scored]) -> list[str]:
    """Return how epochs were scored in other ways than the first."""
    found = []
    for other in every[1:]:
        prefix = f"{other.entry.run}: " if len(every) > 2 else ""
        found += [f"{prefix}{odd}" for odd in scores.differences(every[0].stored.protocol, other.stored.protocol)]
    return found


def recipe_differences(side: Sequence[Scored]) -> list[str]:
    """Return what makes the runs of one side no repetitions: other settings or pictures, or one seed."""
    found = []
    for one, other in combinations(side, 2):
        first, second = read_run(one.run), read_run(other.run)
        ours, theirs = asdict(first.recipe), asdict(second.recipe)
        for recipe, run in ((ours, first), (theirs, second)):
            recipe["batch_size"] *= run.processes
        names = f"{one.entry.run} and {other.entry.run} of one side have"
        if ours["seed"] == theirs["seed"]:
            found.append(f"{names} the same seed, {ours['seed']}")
        changed = [key for key in ours if key not in FREE and ours[key] != theirs[key]]
        found += [f"{names} {key} {ours[key]} and {theirs[key]}" for key in changed]
        if first.fingerprints.get("train") != second.fingerprints.get("train"):
            found.append(f"{names} other training pictures")
        if first.init != second.init:
            found.append(f"{names} begun with other weights, {first.init or 'none'} and {second.init or 'none'}")
    return found


def listed_runs(every: Sequence[Scored]) -> str:
    """Return "runs/a, runs/b and runs/c"."""
    *first, last = (str(one.run) for one in every)
    return f"{', '.join(first)} and {last}"


def shared_images(every: Sequence[Scored]) -> tuple[list[PerImage], int]:
    """Return per epoch the scores of it and of the baselines, of the images that all have, and their number.

    Raises UserError where there is no such image.
    """
    found = []
    for one in every:
        known = [name for name in BASELINES if name in one.stored.rows]
        found.append(scores.read_per_image(one.run, one.stored, [one.name, *known]))
    shared = sorted(set.intersection(*(set(stems) for _, stems in found)))
    if not shared:
        raise UserError("they have no picture in common, so there is nothing to compare")
    columns = []
    for per_image, stems in found:
        place = {stem: i for i, stem in enumerate(stems)}
        at = np.array([place[stem] for stem in shared])
        columns.append({name: pick(values, at) for name, values in per_image.items()})
    return columns, len(shared)


def pick(columns: Mapping[str, Scores], places: NDArray[np.intp]) -> dict[str, Scores]:
    """Return the scores of the images at these places, in their order."""
    return {metric: values[places] for metric, values in columns.items()}


def paired(ours: Mapping[str, Scores], theirs: Mapping[str, Scores]) -> dict[str, Difference]:
    """Return for every shared metric both means, and the mean difference with its 95 % interval over images."""
    found = {}
    for metric in [name for name in METRICS if name in ours and name in theirs]:
        a, b = ours[metric], theirs[metric]
        difference = scores.summarise({"difference": a - b})["difference"]
        found[metric] = Difference(float(a.mean()), float(b.mean()), difference, len(a))
    return found


def over_runs(ours: Sequence[Mapping[str, Scores]], theirs: Sequence[Mapping[str, Scores]]) -> dict[str, Difference]:
    """Return for every metric that all runs have both means, and their difference with its interval over runs."""
    found = {}
    for metric in [name for name in METRICS if all(name in run for run in [*ours, *theirs])]:
        a, b = (np.array([run[metric].mean() for run in side]) for side in (ours, theirs))
        found[metric] = Difference(float(a.mean()), float(b.mean()), welch(a, b), len(ours[0][metric]))
    return found


def of_folders(ours: Sequence[Scored], theirs: Sequence[Scored]) -> dict[str, Difference]:
    """Return the distances of whole folders, with intervals where there are several runs."""
    found = {}
    sides = [[one.stored.rows[one.name] for one in side] for side in (ours, theirs)]
    for metric in FOLDER_METRICS:
        if all(metric in row.scores for row in [*sides[0], *sides[1]]):
            a, b = (np.array([row.scores[metric].mean for row in side]) for side in sides)
            difference = welch(a, b) if len(a) > 1 else Score(float(a[0] - b[0]))
            found[metric] = Difference(float(a.mean()), float(b.mean()), difference, sides[0][0].images)
    return found


def welch(ours: Scores, theirs: Scores) -> Score:
    """Return the difference of the means of two samples (N,) and (M,) with its 95 % interval; N, M >= 2.

    Without an interval where neither sample varies, of which nothing follows for other runs.

    Source: Welch, "The generalization of 'Student's' problem when several different population variances are
    involved", Biometrika 34, 1947.
    """
    from scipy.special import stdtrit  # seconds, which a program that compares nothing saves

    mean = float(ours.mean() - theirs.mean())
    parts = [(values.var(ddof=1) / len(values), len(values) - 1) for values in (ours, theirs)]
    squared = sum(part for part, _ in parts)
    if squared == 0:
        return Score(mean)
    freedom = squared**2 / sum(part**2 / degrees for part, degrees in parts)
    error = float(np.sqrt(squared))
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Score(mean, error, mean - half, mean + half)


def comparison_lines(found: Comparison) -> list[str]:
    """Return what is printed: a line per metric, what its interval shows, and what the intervals are over."""
    names = [", ".join(f"{entry.run} epoch {entry.epoch}" for entry in side) for side in (found.ours, found.theirs)]
    titles = "".join(f"{name:>10}" for name in (*found.baselines, "A", "B", "A - B"))
    lines = [*(f"not alike: {phrase}" for phrase in found.not_alike), f"A: {names[0]}", f"B: {names[1]}"]
    lines.append(f"{'':<20}{titles}   95 % interval")
    for metric, (a, b, (mean, _, low, high), _) in found.metrics.items():
        cells = [f"{row[metric]:.4g}" if metric in row else "-" for row in found.baselines.values()]
        cells += [f"{a:.4g}", f"{b:.4g}", f"{mean:.3g}"]
        said = "no interval"
        if low is not None:
            said = f"{low:.3g} to {high:.3g}, {verdict(metric, low, high, found.is_over_runs)}"
        lines.append(f"{metric:<20}{''.join(f'{cell:>10}' for cell in cells)}   {said}")
    return [*lines, *conditions(found)]


def conditions(found: Comparison) -> list[str]:
    """Return in sentences what the intervals are over, and how the epochs were chosen."""
    assumed = ", equal names taken for equal pictures" if found.not_alike else ""
    common = f"{found.images:,} pictures in common{assumed}"
    if found.is_over_runs:
        count = f"{len(found.ours)} runs against {len(found.theirs)}"
        lines = [f"{common}. {count}: the intervals are over runs (Welch), for these pictures."]
    else:
        kind = "epochs of one run" if found.ours[0].run == found.theirs[0].run else "runs"
        lines = [
            f"{common}, compared one by one: the intervals are over pictures.",
            f"This is about these two {kind}; another seed may differ by more. "
            f"To compare recipes: python eval.py {SEVERAL}",
        ]
    chosen = dict.fromkeys(entry.chosen_by for entry in [*found.ours, *found.theirs] if entry.chosen_by)
    if chosen:
        by = " and ".join(chosen)
        lines.append(f"The best epochs were chosen on these pictures too, by {by}: their scores are a little too good.")
    return lines


def verdict(metric: str, low: float, high: float, over_runs: bool) -> str:
    """Return what the interval of A - B shows: of recipes over several runs; else of these two runs alone."""
    if low <= 0 <= high:
        return "no difference shown"
    if METRICS[metric] not in ("higher", "lower") or metric.startswith("s0_"):
        return "they differ"
    ahead = "A" if (low > 0) == (METRICS[metric] == "higher") else "B"
    return f"{ahead} is better" if over_runs else f"{ahead} is ahead"


def write_comparison(run: Path, found: Comparison) -> None:
    """Write comparison.json."""
    record: dict[str, Any] = {"format": FORMAT, **vars(found)}
    for side in ("ours", "theirs"):
        record[side] = [entry._asdict() for entry in record[side]]
    record["metrics"] = {
        metric: {"ours": a, "theirs": b, **scores.score_record("difference", difference), "images": images}
        for metric, (a, b, difference, images) in found.metrics.items()
    }
    write_json(run / "comparison.json", record)


def read_comparison(run: Path, stored: ScoreFile) -> Comparison | None:
    """Return a run's comparison.json; None where there is none, or of another version, or of earlier scores."""
    path = run / "comparison.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    if record.pop("format", None) != FORMAT:
        return None
    for side in ("ours", "theirs"):
        record[side] = [Entry(**entry) for entry in record[side]]
    for metric, cells in record["metrics"].items():
        difference = Score(*(cells.get(f"difference{end}") for end in scores.ENDS))
        record["metrics"][metric] = Difference(cells["ours"], cells["theirs"], difference, cells["images"])
    found, ours = Comparison(**record), record["ours"][0]
    row = stored.rows.get(epoch_path(run, ours.epoch).stem)
    same = row is not None and (row.stamp, scores.identify(stored.protocol)) == (ours.stamp, ours.protocol)
    return found if same else None
