"""One page that shows what a run came to: report.html, whole in itself, to open, to keep and to send.

    python report.py                                 # newest run; eval.py writes it, too
    python report.py --run runs/coco

It holds the recipe, the scores and which epoch is best, curves, a gallery of the epochs, the losses, and
how to make the run again. report_page.html is what is filled in; nothing is fetched from elsewhere.
"""

import re
from html import escape
from pathlib import Path

import words
from atomic import replacing
from checkpoint import outputs_path, pick_run, read_run
from cli import RunOption, command
from config import ROOT, RUNS
from gallery import evenly, gallery
from log import read_records
from plots import loss_names, loss_svg, score_svg
from scores import FLOORS, is_epoch, read_scores
from words import Row, Scores, epoch_rows, number, shown, title

MOST_SPOKEN = 12  # epochs that the description of a curve names
ARROWS = {"higher": "\u2191", "lower": "\u2193", "closest to the truth": "\u2192"}
MARKER = re.compile(r"\{\{(\w+)\}\}")  # what is filled in


def all_rows(scores: Scores) -> dict[str, Row]:
    """Return floors, epochs and ceilings in this order, and the truth where something is known of it."""
    rows = scores["rows"]
    ours = {outputs_path(Path(), epoch).name: row for epoch, row in epoch_rows(scores).items()}
    floors = {name: rows[name] for name in FLOORS if name in rows}
    ceilings = {name: row for name, row in rows.items() if name not in floors and not is_epoch(name)}
    known = [number(row, "colorfulness_truth") for row in rows.values()]
    truth = {"colorfulness": next((value for value in known if value is not None), None)}
    if truth["colorfulness"] is not None:
        ceilings["truth"] = {**truth, **ceilings.get("truth", {})}
    return {**floors, **ours, **ceilings}


def table(scores: Scores) -> str:
    """Return the scores as an HTML table: rows of epochs between floors and ceilings."""
    rows, best = all_rows(scores), words.best_epochs(scores)
    metrics = [m for m in scores["directions"] if any(number(row, m) is not None for row in rows.values())]
    head = "".join(
        f'<th scope="col">{escape(title(m))} <abbr title="{words.BETTER.get(direction, "")}">'
        f"{ARROWS.get(direction, '')}</abbr></th>"
        for m, direction in scores["directions"].items() if m in metrics
    )  # fmt: skip
    body = ""
    for name, row in rows.items():
        kind = "ours" if is_epoch(name) else "reference"
        body += f'<tr class="{kind}"><th scope="row">{escape(title(name))}</th>'
        for metric in metrics:
            spread = words.interval(scores, metric, row)
            value = shown(scores, metric, row) or '<span title="not available">\u2013</span>'
            if is_epoch(name) and best.get(metric) == int(name[6:]):
                value = f'<strong>{value}<span class="spoken"> best</span></strong>'
            body += f"<td>{value}{f'<small>{spread}</small>' if spread else ''}</td>"
        body += "</tr>\n"
    return f"<table><thead><tr><td></td>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def curve(scores: Scores, metric: str) -> str:
    """Return one metric over the epochs as an HTML figure; empty where no epoch has it."""
    ours = {n: row for n, row in epoch_rows(scores).items() if number(row, metric) is not None}
    if not ours:
        return ""
    values = {epoch: number(row, metric) or 0.0 for epoch, row in ours.items()}
    others = {name: row for name, row in all_rows(scores).items() if not is_epoch(name)}
    if metric.startswith("s0_"):  # blind to colour, it puts the floors above the ceiling
        others.pop("jpeg90", None)
    floors = {title(name): number(row, metric) for name, row in others.items()}
    floors = {name: value for name, value in floors.items() if value is not None}
    ends = [(number(row, f"{metric}_low"), number(row, f"{metric}_high")) for row in ours.values()]
    best = words.best_epochs(scores).get(metric)
    better = words.BETTER.get(scores["directions"][metric], "")
    spoken = [f"epoch {epoch} {shown(scores, metric, ours[epoch])}" for epoch in evenly([*ours], MOST_SPOKEN)]
    spoken += [f"{title(name)} {shown(scores, metric, row)}" for name, row in others.items() if metric in row]
    spoken += [f"best is epoch {best}"] if best in ours else []
    text = f"{title(metric)} by epoch, {better}: {', '.join(spoken)}"
    drawn = score_svg(metric, [*values], [*values.values()], floors, ends, best, text)
    found = f"best at epoch {best}: {shown(scores, metric, ours[best])}" if best in ours else better
    images = next((row["images"] for row in ours.values() if isinstance(row.get("images"), int)), None)
    of = f" of {images:,} images" if metric in ("fid", "kid") and images else ""
    caption = f"<figcaption><b>{escape(title(metric))}</b>{of}, {better}<small>{found}</small></figcaption>"
    return f"<figure>{caption}{drawn}</figure>"


def losses(run: Path) -> str:
    """Return every loss term over the steps as HTML figures."""
    records = read_records(run / "log.jsonl")
    names = loss_names(records)
    if not names:
        return "<p>The log of the training, log.jsonl, is not there or says nothing of losses.</p>"
    figures = (
        f"<figure><figcaption><b>{escape(name)}</b></figcaption>{loss_svg(records, name)}</figure>"
        for name in names
    )
    return f'<div class="curves">{"".join(figures)}</div>'


def versions(record: Row, scores: Scores) -> str:
    """Return what the run was trained and scored with, as HTML: versions, and the protocol of the scores."""
    trained, scored = record.get("versions", {}), scores["protocol"].get("versions", {})
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(trained.get(name, "")))}</td>'
        f"<td>{escape(str(scored.get(name, '')))}</td></tr>"
        for name in {**trained, **scored}
    )
    facts = {key: value for key, value in scores["protocol"].items() if key not in ("versions", "weights")}
    facts |= {f"{name} weights": value for name, value in (scores["protocol"].get("weights") or {}).items()}
    facts |= {f"{name} pictures": value for name, value in record.get("fingerprints", {}).items()}
    facts |= {"commit": record["git"]} if record.get("git") else {}
    facts |= {"resumed": f"{len(record['resumed'])} times"} if record.get("resumed") else {}
    pairs = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in facts.items()
    )
    head = "".join(f'<th scope="col">{text}</th>' for text in ("version of", "trained with", "scored with"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table><dl>{pairs}</dl>"


def write_report(run: Path) -> Path:
    """Write report.html into a run folder that has been scored; returns its path.

    Raises:
        ValueError: no run folder, or its scores are missing or damaged.
    """
    record, scores = read_run(run), read_scores(run)
    headline, reasons = words.best_words(scores)
    notes = [*scores["notes"], *words.missing(scores)]
    pieces = {
        "title": escape(run.resolve().name),
        "headline": escape(headline),
        "reason": escape(reasons[0]),
        "reasons": escape(" ".join(reasons[1:])),
        "recipe": escape(" ".join(words.recipe_words(record))),
        "notes": "".join(f"<li>{escape(str(note))}</li>" for note in notes),
        "scores": table(scores),
        "curves": "".join(curve(scores, metric) for metric in scores["directions"]),
        "losses": losses(run),
        "versions": versions(record, scores),
        "commands": escape(words.commands(run, record)),
        **gallery(run, scores),
    }
    template = (ROOT / "report_page.html").read_text(encoding="utf-8")
    page = MARKER.sub(lambda match: pieces[match[1]], template)
    with replacing(run / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return run / "report.html"


def main(run: RunOption = None) -> Path:
    """Write the report of a scored run; returns its path."""
    path = write_report(pick_run(run, RUNS))
    print(f"report: {path}")
    return path


if __name__ == "__main__":
    command(main)
