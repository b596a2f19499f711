"""One page that shows what a run came to: report.html, whole in itself, to open, to keep and to send.

    python eval.py --all-epochs                      # scores, and writes it
    python eval.py --report-only --run runs/coco     # writes it again

It holds the recipe, the scores and which epoch is best, curves, a gallery of the epochs, the losses, and
how to make the run again. report_page.html is what is filled in; nothing is fetched from elsewhere.
"""

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from config import ROOT, UserError
from data import evenly_spaced
from evaluation.scores import (
    BASELINES,
    TRUTH_COLORFULNESS,
    Row,
    Score,
    ScoreFile,
    epoch_number,
    read_scores,
)
from imaging.files import read_image
from imaging.pixels import resize
from reporting import summary
from reporting.curves import loss_names, loss_svg, score_svg
from reporting.summary import epoch_rows, listed, shown, title
from runtime.atomic import replacing
from runtime.run_folder import STAMP, RunRecord, outputs_path, read_records, read_run

MOST_PICTURES, MOST_EPOCHS = 48, 10
BUDGET = 9_000_000  # characters of all pictures; the rest of the page stays well below a million
STEPS = (  # px of the longest side, WebP quality: the first at which all pictures are within the budget
    (256, 88), (256, 78), (224, 72), (192, 70), (160, 65), (128, 60), (96, 50), (72, 40),
)  # fmt: skip
SMALL = 64  # px; pictures up to here are kept without loss where the budget allows, and shown as pixels
SIGNS = {"higher": -1, "lower": 1}  # what makes the best score the least

Picture = tuple[str, int, int]  # data URI, width, height


def evenly(things: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` of the things, evenly spaced, both ends among them."""
    return [things[i] for i in evenly_spaced(len(things), most)]


@dataclass(frozen=True)
class Chosen:
    """What the gallery shows."""

    metric: str  # by which pictures are ranked
    best: int  # epoch by whose scores they are
    epochs: list[int]
    stems: list[str]  # best first
    total: int  # pictures of which these are taken
    left_out: list[int]  # epochs whose pictures are gone, or not those that were scored


def choose(run: Path, scores: ScoreFile) -> Chosen | None:
    """Choose epochs and pictures; None where no picture belongs to the scores."""
    ours, metric = epoch_rows(scores), gallery_metric(run, scores)
    if metric is None or not ours:
        return None
    best = summary.best_numbers(scores).get(metric, max(ours))
    ranked = rank_stems(run, scores, metric, best)
    stems = evenly(ranked, MOST_PICTURES)
    complete = [epoch for epoch, row in ours.items() if is_rendered(run, epoch, row, stems)]
    if not stems or not complete:
        return None
    left_out = [epoch for epoch in ours if epoch not in complete]
    return Chosen(metric, best, choose_epochs(complete, best), stems, len(ranked), left_out)


def gallery_metric(run: Path, scores: ScoreFile) -> str | None:
    """Return the recipe's metric if single pictures have it, else the first that they have."""
    has = next((values for name, _, values in summary.picture_scores(run) if epoch_number(name)), {})
    ranking = [m for m, direction in scores.directions.items() if m in has and direction in SIGNS]
    return scores.metric if scores.metric in ranking else next(iter(ranking), None)


def rank_stems(run: Path, scores: ScoreFile, metric: str, epoch: int) -> list[str]:
    """Return the names of the pictures that are there, best first by one epoch's scores."""
    name, sign = outputs_path(run, epoch).name, SIGNS[scores.directions[metric]]
    there = {path.stem for path in (run / "targets").glob("*.png")}
    there &= {path.stem for path in (run / "inputs").glob("*.png")}
    values = {
        stem: sign * scored[metric]
        for row, stem, scored in summary.picture_scores(run)
        if row == name and stem in there and metric in scored
    }
    return sorted(values, key=lambda stem: (values[stem], stem))


def is_rendered(run: Path, epoch: int, row: Row, stems: Sequence[str]) -> bool:
    """Return whether these pictures of an epoch are there, and are those that were scored."""
    folder = outputs_path(run, epoch)
    stamp = folder / STAMP
    same = stamp.is_file() and stamp.read_text() == row.stamp
    return same and all((folder / f"{stem}.png").is_file() for stem in stems)


def choose_epochs(epochs: Sequence[int], best: int) -> list[int]:
    """Return the epochs of the gallery: evenly spaced, the first, the last and the best among them."""
    chosen = evenly(epochs, MOST_EPOCHS)
    if best in epochs and best not in chosen:
        chosen[chosen.index(min(chosen[1:-1], key=lambda epoch: abs(epoch - best)))] = best
    return sorted(chosen)


def encode(path: Path, side: int, quality: int) -> Picture:
    """Return a picture as a data URI, its width and its height, the longer at most `side`."""
    try:
        picture = read_image(path)
    except ValueError as error:
        raise UserError(f"{error}; delete it, and eval.py renders it again") from None
    height, width = picture.shape[:2]
    scale = min(1.0, side / max(height, width))
    lossless = max(height, width) <= SMALL and (side, quality) == STEPS[0]
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    file = io.BytesIO()
    shrunk = Image.fromarray(resize(picture, height, width))
    shrunk.save(file, "WEBP", lossless=lossless, quality=quality, method=2)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}", width, height


def encode_all(folders: Sequence[Path], stems: Sequence[str]) -> list[list[Picture]]:
    """Return every picture of every folder, encoded as finely as the budget allows."""
    for step in STEPS:
        pictures, room = [], BUDGET
        for stem in stems:
            pictures.append([encode(folder / f"{stem}.png", *step) for folder in folders])
            room -= sum(len(uri) for uri, _, _ in pictures[-1])
            if room < 0 and step != STEPS[-1]:
                break
        else:
            break
    return pictures


def gallery(run: Path, scores: ScoreFile) -> dict[str, str]:
    """Return what the gallery is made of: a sentence, metrics to sort by, cards, and data for the script."""
    chosen = choose(run, scores)
    if chosen is None:
        why = f"No picture belongs to these scores; render and score them with: {summary.remedy(run)}"
        return {"gallery": escape(why), "sorts": "", "cards": "", "data": '{"pictures": []}'}
    folders = [run / "inputs", run / "targets", *(outputs_path(run, epoch) for epoch in chosen.epochs)]
    pictures = encode_all(folders, chosen.stems)
    start = chosen.epochs.index(chosen.best) if chosen.best in chosen.epochs else len(chosen.epochs) - 1
    data = gallery_data(run, scores, chosen, start)
    cards = []
    for entry, (given, truth, *ours) in zip(data["pictures"], pictures, strict=True):
        entry["ours"] = [uri if i != start else None for i, (uri, _, _) in enumerate(ours)]  # on its card
        cards.append(card(entry["stem"], chosen.epochs[start], (given, ours[start], truth)))
    options = [
        f'<option value="{escape(m)}"{" selected" * (m == chosen.metric)}>{escape(title(m))}</option>'
        for m in data["metrics"]
    ]
    return {
        "gallery": escape(gallery_words(run, scores, chosen)),
        "sorts": "".join(options),
        "cards": "".join(cards),
        "data": json.dumps(data).replace("<", "\\u003c"),  # a name cannot end the script
    }


def gallery_data(run: Path, scores: ScoreFile, chosen: Chosen, start: int) -> dict[str, Any]:
    """Return what the page's script knows: epochs, metrics, and every picture's scores at every epoch."""
    stems, names = {*chosen.stems}, [outputs_path(run, epoch).name for epoch in chosen.epochs]
    kept = {(name, stem): scored for name, stem, scored in summary.picture_scores(run) if stem in stems}
    signs = {m: SIGNS[direction] for m, direction in scores.directions.items() if direction in SIGNS}
    metrics = {
        m: {
            "title": title(m),
            "sign": sign,
            "decimals": summary.decimals(scores, m),
            "means": [shown(scores, m, epoch_rows(scores)[epoch]) for epoch in chosen.epochs],
        }
        for m, sign in signs.items()
        if any(m in scored for scored in kept.values())
    }
    pictures = [
        {"stem": stem, "scores": {m: [kept.get((name, stem), {}).get(m) for name in names] for m in metrics}}
        for stem in chosen.stems
    ]
    return {"epochs": chosen.epochs, "start": start, "metrics": metrics, "pictures": pictures}


def gallery_words(run: Path, scores: ScoreFile, chosen: Chosen) -> str:
    """Return which pictures and epochs the gallery shows, and which it cannot show."""
    count, epochs = len(chosen.stems), len(epoch_rows(scores))
    by = f"from best to worst by {title(chosen.metric)} at epoch {chosen.best}"
    some = (
        f"{count:,} of {chosen.total:,} pictures, evenly {by}"
        if count < chosen.total
        else f"{count} pictures, {by}"
    )
    rest = epochs - len(chosen.left_out)
    some += f"; {len(chosen.epochs)} of {rest} epochs." if len(chosen.epochs) < rest else "."
    if not chosen.left_out:
        return some
    which = f"Epoch{'s' * (len(chosen.left_out) > 1)} {listed(chosen.left_out)}"
    return f"{some} {which}: the pictures are gone, or not those scored; {summary.remedy(run)} renders them."


def card(stem: str, epoch: int, pictures: Sequence[Picture]) -> str:
    """Return one picture of the gallery as HTML: input, ours at one epoch, truth."""
    figures = ""
    for caption, (uri, width, height) in zip(("input", "ours", "truth"), pictures, strict=True):
        alt = f"ours at epoch {epoch}, {stem}" if caption == "ours" else f"{caption}, {stem}"
        figures += (
            f'<figure><img src="{uri}" width="{width}" height="{height}" alt="{escape(alt)}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    small = " small" if max(pictures[0][1:]) <= SMALL else ""
    return f'<li class="card{small}"><h3>{escape(stem)}</h3><div class="three">{figures}</div></li>\n'


MOST_SPOKEN = 12  # epochs that the description of a curve names
ARROWS = {"higher": "\u2191", "lower": "\u2193", "closest to the truth": "\u2192"}
MARKER = re.compile(r"\{\{(\w+)\}\}")  # what is filled in


def all_rows(scores: ScoreFile) -> dict[str, Row]:
    """Return baselines, epochs, upper bounds, and the truth if its colourfulness is known; in this order."""
    baselines = {name: row for name, row in scores.rows.items() if name in BASELINES}
    ours = {outputs_path(Path(), epoch).name: row for epoch, row in epoch_rows(scores).items()}
    others = {name: row for name, row in scores.rows.items() if name not in baselines | ours}
    for row in scores.rows.values():
        if TRUTH_COLORFULNESS in row.scores:
            truth = others.get("truth", Row(None, {}, row.images))
            known = {"colorfulness": Score(row.scores[TRUTH_COLORFULNESS].mean), **truth.scores}
            others["truth"] = replace(truth, scores=known)
            break
    return {**baselines, **ours, **others}


def table(scores: ScoreFile) -> str:
    """Return the scores as an HTML table: rows of epochs between baselines and upper bounds."""
    rows, best = all_rows(scores), summary.best_numbers(scores)
    metrics = [m for m in scores.directions if any(m in row.scores for row in rows.values())]
    head = "".join(
        f'<th scope="col">{escape(title(m))} <abbr title="{summary.BETTER.get(direction, "")}">'
        f"{ARROWS.get(direction, '')}</abbr></th>"
        for m, direction in scores.directions.items() if m in metrics
    )  # fmt: skip
    body = ""
    for name, row in rows.items():
        kind = "reference" if row.epoch is None else "ours"
        body += f'<tr class="{kind}"><th scope="row">{escape(title(name))}</th>'
        for metric in metrics:
            spread = summary.interval(scores, metric, row)
            value = shown(scores, metric, row) or '<span title="not available">\u2013</span>'
            if row.epoch is not None and best.get(metric) == row.epoch:
                value = f'<strong>{value}<span class="spoken"> best</span></strong>'
            body += f"<td>{value}{f'<small>{spread}</small>' if spread else ''}</td>"
        body += "</tr>\n"
    return f"<table><thead><tr><td></td>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def curve(scores: ScoreFile, metric: str) -> str:
    """Return one metric over the epochs as an HTML figure; empty where no epoch has it."""
    ours = {n: row for n, row in epoch_rows(scores).items() if metric in row.scores}
    if not ours:
        return ""
    values = {epoch: row.scores[metric].mean for epoch, row in ours.items()}
    others = {n: row for n, row in all_rows(scores).items() if row.epoch is None and metric in row.scores}
    if metric.startswith("s0_"):  # blind to colour, it puts the baselines above the upper bound
        others.pop("jpeg90", None)
    lines = {title(name): row.scores[metric].mean for name, row in others.items()}
    ends = [(row.scores[metric].low, row.scores[metric].high) for row in ours.values()]
    best = summary.best_numbers(scores).get(metric)
    better = summary.BETTER.get(scores.directions[metric], "")
    spoken = [f"epoch {epoch} {shown(scores, metric, ours[epoch])}" for epoch in evenly([*ours], MOST_SPOKEN)]
    spoken += [f"{title(name)} {shown(scores, metric, row)}" for name, row in others.items()]
    spoken += [f"best is epoch {best}"] if best in ours else []
    text = f"{title(metric)} by epoch, {better}: {', '.join(spoken)}"
    drawn = score_svg(metric, [*values], [*values.values()], lines, ends, best, text)
    found = f"best at epoch {best}: {shown(scores, metric, ours[best])}" if best in ours else better
    images = next(iter(ours.values())).images
    of = f" of {images:,} images" if metric in ("fid", "kid") else ""
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


def versions(record: RunRecord, scores: ScoreFile) -> str:
    """Return what the run was trained and scored with, as HTML: versions, and the protocol of the scores."""
    trained, scored = record.versions, scores.protocol.get("versions", {})
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(trained.get(name, "")))}</td>'
        f"<td>{escape(str(scored.get(name, '')))}</td></tr>"
        for name in {**trained, **scored}
    )
    facts = {key: value for key, value in scores.protocol.items() if key not in ("versions", "weights")}
    facts |= {f"{name} weights": value for name, value in (scores.protocol.get("weights") or {}).items()}
    facts |= {f"{name} pictures": value for name, value in record.fingerprints.items()}
    facts |= {"commit": record.git} if record.git else {}
    facts |= {"resumed": f"{len(record.resumed)} times"} if record.resumed else {}
    pairs = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in facts.items()
    )
    head = "".join(f'<th scope="col">{text}</th>' for text in ("version of", "trained with", "scored with"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table><dl>{pairs}</dl>"


def write_report(run: Path) -> Path:
    """Write report.html into a run folder that has been scored; returns its path.

    Raises:
        UserError: no run folder, or its scores are missing or damaged.
    """
    record, scores = read_run(run), read_scores(run)
    headline, reasons = summary.best_words(scores)
    notes = [*scores.notes, *summary.missing(scores)]
    pieces = {
        "title": escape(run.resolve().name),
        "headline": escape(headline),
        "reason": escape(reasons[0]),
        "reasons": escape(" ".join(reasons[1:])),
        "recipe": escape(" ".join(summary.recipe_words(record))),
        "notes": "".join(f"<li>{escape(str(note))}</li>" for note in notes),
        "scores": table(scores),
        "curves": "".join(curve(scores, metric) for metric in scores.directions),
        "losses": losses(run),
        "versions": versions(record, scores),
        "commands": escape(summary.commands(run, record)),
        **gallery(run, scores),
    }
    template = (ROOT / "reporting" / "page.html").read_text(encoding="utf-8")
    page = MARKER.sub(lambda match: pieces[match[1]], template)
    with replacing(run / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return run / "report.html"
