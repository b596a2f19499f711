"""report.html: one file that shows what came out of a run, to open, to keep and to send.

    python eval.py --all-epochs                      # scores all epochs, and writes it
    python eval.py --report-only --run runs/coco     # writes it again

It shows how the best epoch stands, images at several epochs, how to use the run, the scores with their curves, a
comparison where there is one, the training, and how to repeat it. This module collects what is shown as typed data;
page.html is the Jinja2 template that makes HTML of it. Images are inside the file, which loads nothing from
elsewhere, and no path names the home folder, so that the page can be sent to anybody.
"""

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from config import UserError
from data import evenly_spaced
from evaluation.best_epoch import clear_winners
from evaluation.compare import conditions, read_comparison, verdict
from evaluation.scores import FOLDER_METRICS, PerImage, Row, ScoreFile, read_per_image, read_scores
from imaging.files import read_image
from imaging.pixels import resize
from reporting import summary
from reporting.curves import Drawing, loss_names, loss_svg, score_svg
from reporting.summary import epoch_rows, mean_text, title
from runtime.atomic import replacing
from runtime.run_folder import LOG, STAMP, outputs_path, read_records, read_run

MAX_IMAGES, MAX_EPOCHS = 48, 10  # of the gallery
MAX_BYTES = 9_000_000  # of all images as data URIs; the rest of the page is well below a megabyte
STEPS = (  # px of the longer side, WebP quality: the first with which all images stay below MAX_BYTES is used
    (256, 88), (256, 78), (224, 72), (192, 70), (160, 65), (128, 60), (96, 50), (72, 40),
)  # fmt: skip
SMALL = 64  # px; images up to this size are lossless at the first step, and shown enlarged without smoothing
SIGNS = {"higher": -1, "lower": 1}  # factor that makes the best score the smallest
MAX_SPOKEN = 12  # epochs that the label of a curve names
MAX_CURVES = 3  # that are shown; the others are folded
HOMES = r"/home/[^/\s'\"<>]+|/Users/[^/\s'\"<>]+|/root|[A-Z]:\\Users\\[^\\\s'\"<>]+"  # of anybody


class Picture(NamedTuple):
    """An encoded image."""

    uri: str
    width: int  # px
    height: int  # px


class Card(NamedTuple):
    """One image of the gallery."""

    stem: str
    input: Picture
    ours: Picture
    truth: Picture
    is_small: bool  # so it is shown without smoothing


class Gallery(NamedTuple):
    """Images of several epochs, each beside its input and the ground truth."""

    text: str  # what is shown, and what cannot be
    epoch: int  # whose images the cards show
    metric: str  # by which the cards are ranked
    cards: list[Card]
    data: dict[str, Any]  # for the script


def without_home(value: Any) -> Any:
    """Return a text in which a home folder is called ~, also within the quotes of a shell; anything else as it is."""
    if type(value) is not str or value.startswith("data:"):  # Markup is ours, a data URI is an image
        return value
    pattern = rf"('?)(?<![\w.~-])(?:{re.escape(str(Path.home()))}|{HOMES})(?=[/\\\s'\"]|$)[/\\]?"
    return re.sub(pattern, r"~/\1", value)


def evenly(things: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` of the things, evenly spaced, both ends among them."""
    return [things[i] for i in evenly_spaced(len(things), most)]


def rank_stems(run: Path, stems: Sequence[str], values: NDArray[np.float64]) -> list[str]:
    """Return the names of images whose input and ground truth exist, the smallest of values (N,) first."""
    inputs, targets = ({path.stem for path in (run / n).glob("*.png")} for n in ("inputs", "targets"))
    return [stem for _, stem in sorted(zip(values.tolist(), stems, strict=True)) if stem in inputs & targets]


def is_rendered(run: Path, epoch: int, row: Row, stems: Sequence[str]) -> bool:
    """Return whether these images of an epoch exist and are those that were scored."""
    folder = outputs_path(run, epoch)
    stamp = folder / STAMP
    same = stamp.is_file() and stamp.read_text() == row.stamp
    return same and all((folder / f"{stem}.png").is_file() for stem in stems)


def spread_epochs(epochs: Sequence[int], best: int) -> list[int]:
    """Return at most MAX_EPOCHS epochs: evenly spaced, the first, the last and the best among them."""
    chosen = evenly(epochs, MAX_EPOCHS)
    if best in epochs and best not in chosen:
        chosen[chosen.index(min(chosen[1:-1], key=lambda epoch: abs(epoch - best)))] = best
    return sorted(chosen)


def encode(path: Path, side: int, quality: int) -> Picture:
    """Return a file as WebP in a data URI, its longer side at most `side` px; UserError if it is damaged."""
    try:
        image = read_image(path)
    except UserError as error:
        raise UserError(f"{error}; delete it, and eval.py renders it again") from None
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    lossless = max(height, width) <= SMALL and (side, quality) == STEPS[0]
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    file = io.BytesIO()
    shrunk = Image.fromarray(resize(image, height, width))
    shrunk.save(file, "WEBP", lossless=lossless, quality=quality, method=2)
    return Picture(f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}", width, height)


def encode_all(folders: Sequence[Path], stems: Sequence[str]) -> list[list[Picture]]:
    """Return every image of every folder, per stem, with the first of STEPS that keeps below MAX_BYTES."""
    for step in STEPS:
        pictures, room = [], MAX_BYTES
        for stem in stems:
            pictures.append([encode(folder / f"{stem}.png", *step) for folder in folders])
            room -= sum(len(picture.uri) for picture in pictures[-1])
            if room < 0 and step != STEPS[-1]:
                break
        else:
            break
    return pictures


def make_gallery(run: Path, scores: ScoreFile, found: PerImage, stems: Sequence[str]) -> Gallery:
    """Return the gallery of a run; without cards where no image belongs to the scores.

    Args:
        found, stems: the scores of single images, and their names.
    """
    rows, command = epoch_rows(scores), summary.score_command(run)
    per_image = {epoch: found[outputs_path(run, epoch).name] for epoch in rows}
    signs = {m: SIGNS[kind] for m, kind in scores.directions.items() if kind in SIGNS}
    signs = {metric: sign for metric, sign in signs.items() if metric in per_image[max(rows)] and shows(scores, metric)}
    metric = scores.metric if scores.metric in signs else next(iter(signs))
    best = summary.best_epoch(scores, metric) or max(rows)
    ranked = rank_stems(run, stems, signs[metric] * per_image[best][metric])
    chosen = evenly(ranked, MAX_IMAGES)
    rendered = [epoch for epoch, row in rows.items() if is_rendered(run, epoch, row, chosen)]
    if not chosen or not rendered:
        text = f"No picture belongs to these scores; render and score them with: {command}"
        return Gallery(text, 0, "", [], {"metrics": {}, "pictures": []})
    epochs = spread_epochs(rendered, best)
    start = epochs.index(best) if best in epochs else len(epochs) - 1

    text = f"{len(chosen)} of {len(ranked):,} scored pictures, evenly" if len(chosen) < len(ranked) else ""
    text = text or f"{len(chosen)} scored pictures,"
    text += f" from best to worst by {title(metric)} at epoch {best}"
    text += f"; {len(epochs)} of {len(rendered)} epochs." if len(epochs) < len(rendered) else "."
    lost = [epoch for epoch in rows if epoch not in rendered]
    if lost:
        text += f" Epoch{'s' * (len(lost) > 1)} {summary.listed(lost)}: "
        text += f"the pictures are gone, or not those scored; {command} renders them."

    cards, records = [], []
    folders = [run / "inputs", run / "targets", *(outputs_path(run, epoch) for epoch in epochs)]
    for stem, (given, truth, *ours) in zip(chosen, encode_all(folders, chosen), strict=True):
        i = stems.index(stem)
        values = {m: [float(per_image[epoch][m][i]) for epoch in epochs] for m in signs}
        uris = [picture.uri if n != start else None for n, picture in enumerate(ours)]  # on the card
        records.append({"stem": stem, "scores": values, "ours": uris})
        cards.append(Card(stem, given, ours[start], truth, max(given.width, given.height) <= SMALL))
    metrics = {}
    for m, sign in signs.items():
        means, decimals = [mean_text(scores, m, rows[n]) for n in epochs], summary.decimals(scores, m)
        metrics[m] = {"title": title(m), "sign": sign, "decimals": decimals, "means": means}
    data = {"epochs": epochs, "start": start, "metrics": metrics, "pictures": records}
    return Gallery(text, epochs[start], metric, cards, data)


def score_curve(scores: ScoreFile, metric: str) -> Drawing:
    """Return one metric over the epochs that have it."""
    ours = {epoch: row for epoch, row in epoch_rows(scores).items() if metric in row.scores}
    others = {title(name): mean for name, mean in summary.references(scores, metric).items()}
    best = summary.best_epoch(scores, metric)
    shown = evenly([*ours], MAX_SPOKEN)
    spoken = [f"epoch {epoch} {mean_text(scores, metric, ours[epoch])}" for epoch in shown]
    spoken += [f"{name} {summary.number_text(scores, metric, mean)}" for name, mean in others.items()]
    spoken += [f"best is epoch {best}"] if best is not None else []
    label = f"{title(metric)} by epoch, {summary.better(scores, metric)}: {', '.join(spoken)}"
    return score_svg(metric, {epoch: row.scores[metric] for epoch, row in ours.items()}, others, best, label)


def shows(scores: ScoreFile, metric: str) -> bool:
    """Tell whether a metric has a place in the report: color_error, the sum of two others, only where it chooses."""
    return metric != "color_error" or metric == scores.metric


def write_report(run: Path) -> Path:
    """Write a scored run's report.html; returns its path. Raises UserError where scores are damaged."""
    record, scores = read_run(run), read_scores(run)
    records, rows = read_records(run / LOG), summary.all_rows(scores)
    per_image, stems = read_per_image(run, scores, [name for name in scores.rows if name != "truth"])
    gallery = make_gallery(run, scores, per_image, stems)  # first, so that damage is found before anything is drawn
    known = [m for m in scores.directions if any(m in row.scores for row in rows.values())]
    metrics = [m for m in known if shows(scores, m)]
    drawn = [m for m in metrics if any(m in row.scores for row in epoch_rows(scores).values())]
    drawn.sort(key=lambda metric: metric != scores.metric)  # which is the first
    shown = {
        "run": run, "record": record, "scores": scores, "rows": rows, "metrics": metrics, "gallery": gallery,
        "curves": {metric: score_curve(scores, metric) for metric in drawn},
        "losses": {name: loss_svg(records, name) for name in loss_names(records)},
        "epoch": summary.best_epoch(scores, scores.metric) or max(epoch_rows(scores)),
        "winners": clear_winners(scores.rows, per_image), "comparison": read_comparison(run, scores),
        "training": summary.training_words(record, records),
    }  # fmt: skip
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=without_home,
    )  # fmt: skip
    environment.globals |= {
        "summary": summary, "folder_metrics": FOLDER_METRICS, "max_curves": MAX_CURVES, "conditions": conditions,
        "verdict": verdict,
    }  # fmt: skip
    text = environment.get_template("page.html").render(shown)
    content = text.encode(errors="replace")  # a file name may hold any bytes
    with replacing(run / "report.html", size=len(content)) as temporary:
        temporary.write_bytes(content)
    return run / "report.html"
