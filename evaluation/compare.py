"""Two epochs, or two runs, compared picture by picture: by how much is one better, and is that sure?"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

from config import METRICS, UserError
from evaluation.scores import (
    PerImage,
    Row,
    Scores,
    choose_epochs,
    differences,
    identify,
    read_per_image,
    read_scores,
    summarise,
)
from runtime import atomic, run_folder
from runtime.run_folder import read_run

Side = tuple[Path, str | int | None]  # run, and epoch: a number, "best", or None for the best


def parse_opponent(text: str, run: Path) -> Side:
    """Return the run and epoch that RUN, RUN:N or N stands for; a lone number is an epoch of `run`."""
    if re.fullmatch(r"\d+", text) and not Path(text).exists():
        return run, text
    found = re.fullmatch(r"(.+):(\d+|best)", text)
    return (Path(found[1]), found[2]) if found else (Path(text), None)


def scored_epoch(run: Path, epoch: str | int | None) -> str:
    """Return the row of an epoch. Raises UserError where it is not scored, or no longer as it was."""
    stored = read_scores(run)
    number = choose_epochs(run, "best" if epoch is None else epoch, all_epochs=False)[0]
    name = run_folder.epoch_path(run, number).stem
    row = stored["rows"].get(name)
    if row is None or not row.get("stamp", "").endswith(run_folder.stamp(run, number, "")):
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


def compare(ours: Side, theirs: Side, force: bool) -> dict[str, Row]:
    """Print every shared metric of two scored epochs with the interval of their difference; returns that.

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
    both = read_scores(run), read_scores(other)
    odd = differences(both[0]["protocol"], both[1]["protocol"])
    if odd and not force:
        remedy = "score both again in one way, or compare them anyway with --force"
        raise UserError(f"{run} and {other} were not scored alike: {'; '.join(odd)}; {remedy}")
    for phrase in odd:
        print(f"not alike: {phrase}")
    sides = (read_per_image(run, names[:1]), read_per_image(other, names[1:]))
    rows = paired(*(pick_pictures(side, name, sides) for side, name in zip(sides, names, strict=True)))
    title = [f"{folder.resolve().name} {name}" for folder, name in zip((run, other), names, strict=True)]
    print_comparison(rows, title)
    print_folder_metrics(*(stored["rows"][name] for stored, name in zip(both, names, strict=True)))
    assumed = ", equal names taken for equal pictures" if odd else ""
    print(f"{len(set(sides[0][1]) & set(sides[1][1]))} pictures in common, compared one by one{assumed}")
    protocols = [identify(stored["protocol"]) for stored in both]
    record = {"sides": title, "protocols": protocols, "not_alike": odd, "metrics": rows}
    atomic.write_json(run / "comparison.json", record)
    return rows


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


def paired(ours: Mapping[str, Scores], theirs: Mapping[str, Scores]) -> dict[str, Row]:
    """Return for every shared metric both means, and the mean difference with its 95 % interval."""
    rows = {}
    for metric in [name for name in METRICS if name in ours and name in theirs]:
        a, b = ours[metric], theirs[metric]
        summary = summarise({"difference": a - b})
        rows[metric] = {"ours": float(a.mean()), "theirs": float(b.mean()), **summary, "images": len(a)}
    return rows


def print_comparison(rows: Mapping[str, Row], title: list[str]) -> None:
    """Print one line per metric, and which side is better where the interval leaves no doubt."""
    print(f"A: {title[0]}\nB: {title[1]}")
    print(f"{'':<20}{'A':>10}{'B':>10}{'A - B':>10}   95 % interval")
    for metric, row in rows.items():
        low, high = row.get("difference_low"), row.get("difference_high")
        line = f"{metric:<20}{row['ours']:>10.4g}{row['theirs']:>10.4g}{row['difference']:>10.3g}"
        print(line if low is None else f"{line}   {low:.3g} to {high:.3g}, {verdict(metric, low, high)}")


def print_folder_metrics(ours: Row, theirs: Row) -> None:
    """Print FID and KID, which no picture has alone, where both sides have them."""
    for metric in ("fid", "kid"):
        a, b = ours.get(metric), theirs.get(metric)
        if isinstance(a, float) and isinstance(b, float):
            print(f"{metric:<20}{a:>10.4g}{b:>10.4g}{a - b:>10.3g}   of folders: no interval")


def verdict(metric: str, low: float, high: float) -> str:
    """Return which side an interval of A - B shows to be better."""
    if low <= 0 <= high:
        return "no difference shown"
    if METRICS[metric] not in ("higher", "lower") or metric.startswith("s0_"):
        return "they differ"
    return "A is better" if (low > 0) == (METRICS[metric] == "higher") else "B is better"
