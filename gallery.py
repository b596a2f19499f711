"""The gallery of a report: which pictures of which epochs, encoded into the page within a budget of bytes.

A card shows input | ours | truth at one epoch; the page's script walks through the others, found in `data`.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import words
from checkpoint import STAMP, outputs_path
from images import read_image, resize
from scores import is_epoch
from words import Row, Scores, epoch_rows, listed, shown, title

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
    indices = np.linspace(0, len(things) - 1, min(len(things), most)).round().astype(int)
    return [things[i] for i in indices]


@dataclass(frozen=True)
class Chosen:
    """What the gallery shows."""

    metric: str  # by which pictures are ranked
    best: int  # epoch by whose scores they are
    epochs: list[int]
    stems: list[str]  # best first
    total: int  # pictures of which these are taken
    left_out: list[int]  # epochs whose pictures are gone, or not those that were scored


def choose(run: Path, scores: Scores) -> Chosen | None:
    """Choose epochs and pictures; None where no picture belongs to the scores."""
    ours, metric = epoch_rows(scores), gallery_metric(run, scores)
    if metric is None or not ours:
        return None
    best = words.best_epochs(scores).get(metric, max(ours))
    ranked = rank_stems(run, scores, metric, best)
    stems = evenly(ranked, MOST_PICTURES)
    complete = [epoch for epoch, row in ours.items() if is_rendered(run, epoch, row, stems)]
    if not stems or not complete:
        return None
    left_out = [epoch for epoch in ours if epoch not in complete]
    return Chosen(metric, best, choose_epochs(complete, best), stems, len(ranked), left_out)


def gallery_metric(run: Path, scores: Scores) -> str | None:
    """Return the recipe's metric if single pictures have it, else the first that they have."""
    has = next((values for name, _, values in words.picture_scores(run) if is_epoch(name)), {})
    ranking = [m for m, direction in scores["directions"].items() if m in has and direction in SIGNS]
    return scores["metric"] if scores["metric"] in ranking else next(iter(ranking), None)


def rank_stems(run: Path, scores: Scores, metric: str, epoch: int) -> list[str]:
    """Return the names of the pictures that are there, best first by one epoch's scores."""
    name, sign = outputs_path(run, epoch).name, SIGNS[scores["directions"][metric]]
    there = {path.stem for path in (run / "targets").glob("*.png")}
    there &= {path.stem for path in (run / "inputs").glob("*.png")}
    values = {
        stem: sign * scored[metric]
        for row, stem, scored in words.picture_scores(run)
        if row == name and stem in there and metric in scored
    }
    return sorted(values, key=lambda stem: (values[stem], stem))


def is_rendered(run: Path, epoch: int, row: Row, stems: Sequence[str]) -> bool:
    """Return whether these pictures of an epoch are there, and are those that were scored."""
    folder = outputs_path(run, epoch)
    stamp = folder / STAMP
    same = stamp.is_file() and stamp.read_text() == row.get("stamp")
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
        raise ValueError(f"{error}; delete it, and eval.py renders it again") from None
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


def gallery(run: Path, scores: Scores) -> dict[str, str]:
    """Return what the gallery is made of: a sentence, metrics to sort by, cards, and data for the script."""
    chosen = choose(run, scores)
    if chosen is None:
        why = f"No picture belongs to these scores; render and score them with: {words.remedy(run)}"
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


def gallery_data(run: Path, scores: Scores, chosen: Chosen, start: int) -> dict[str, Any]:
    """Return what the page's script knows: epochs, metrics, and every picture's scores at every epoch."""
    stems, names = {*chosen.stems}, [outputs_path(run, epoch).name for epoch in chosen.epochs]
    kept = {(name, stem): scored for name, stem, scored in words.picture_scores(run) if stem in stems}
    signs = {m: SIGNS[direction] for m, direction in scores["directions"].items() if direction in SIGNS}
    metrics = {
        m: {
            "title": title(m),
            "sign": sign,
            "decimals": words.decimals(scores, m),
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


def gallery_words(run: Path, scores: Scores, chosen: Chosen) -> str:
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
    return f"{some} {which}: the pictures are gone, or not those scored; {words.remedy(run)} renders them."


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
