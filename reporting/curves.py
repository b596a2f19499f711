"""Curves of a run: losses over steps, scores over epochs; as PNG files, or as SVG to put into a page.

The SVG has no ink of its own: axes and text take the colour of the text around them, in dark and in light.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data import evenly_spaced
from evaluation.scores import ScoreFile
from reporting.summary import epoch_rows, references
from runtime.atomic import replacing

matplotlib.use("agg")

INK = "#010203"  # axes, text and dashed lines: black on paper, and what `currentColor` replaces in an SVG
OURS = "#c8501e"  # as far from white as from black (4.5 : 1), so it is read on both
STYLE: dict[str, Any] = {
    **{key: INK for key in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")},
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "tinct",
}
WIDE, TALL = 3.4, 2.3  # inches, of one panel in a page
MOST_POINTS = 200  # of a loss curve in a page: more would be heavy, and finer than a screen
ROOM = 3  # a panel may be that many times as tall as our curve, to show how far off the dashed lines are
LINE_HEIGHT = 0.09  # of a panel: names of dashed lines are kept that far apart

Band = Sequence[tuple[float | None, float | None]]  # low and high of each epoch's interval, if it has one


def loss_names(records: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the loss terms of log.jsonl (G_, D_, a classifier's C_) in the order in which they appear."""
    names = (name for record in records for name in record)
    return list(dict.fromkeys(name for name in names if name.startswith(("G_", "D_", "C_"))))


def plot_losses(path: Path, records: Sequence[Mapping[str, float]]) -> None:
    """Draw every G_ and D_ term of log.jsonl over steps: raw, and averaged over a tenth of the records."""
    names = loss_names(records)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4 * len(names), 3.2), layout="constrained")
        for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            draw_losses(axis, records, name)
            axis.set_title(name)
        _write(figure, path)


def plot_scores(
    path: Path,
    epochs: Sequence[int],
    scores: Mapping[str, Sequence[float]],
    floors: Mapping[str, Mapping[str, float]],
) -> None:
    """Draw one panel per metric over epochs.

    Args:
        scores: metric -> one value per epoch.
        floors: metric -> name -> a value that does not depend on the epoch, drawn as a dashed line.
    """
    columns = min(4, len(scores))
    rows = -(-len(scores) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for axis, (name, values) in zip(axes, scores.items(), strict=False):
            draw_scores(axis, epochs, values, floors.get(name, {}))
            axis.set_title(name)
        for axis in list(figure.axes)[len(scores) :]:
            axis.remove()
        _write(figure, path)


def plot_run(run: Path, scores: ScoreFile) -> None:
    """Draw curves.png: every metric that all scored epochs have, with baselines and upper bounds."""
    ours = epoch_rows(scores)
    values = {metric: [row.scores[metric].mean for row in ours.values()] for metric in scores.best}
    lines = {metric: references(metric, scores.rows) for metric in scores.best}
    plot_scores(run / "curves.png", [*ours], values, lines)


def loss_svg(records: Sequence[Mapping[str, float]], name: str) -> str:
    """Return one loss term over steps as an SVG element."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, TALL), layout="constrained")
        draw_losses(figure.subplots(), records, name, MOST_POINTS)
        values = [record[name] for record in records if name in record]
        words = f"{name} over steps: first {values[0]:.4g}, last {values[-1]:.4g}, least {min(values):.4g}"
        return _svg(figure, f"loss-{name}", words)


def score_svg(
    name: str,
    epochs: Sequence[int],
    values: Sequence[float],
    floors: Mapping[str, float],
    band: Band = (),
    best: int | None = None,
    words: str = "",
) -> str:
    """Return one metric over epochs as an SVG element.

    Args:
        name: of the metric; it makes the ids unique within a page.
        floors: name -> a value that does not depend on the epoch, drawn as a dashed line.
        band: one interval per epoch, or none at all.
        best: the epoch that is marked.
        words: what the picture shows, for those who do not see it.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, TALL), layout="constrained")
        draw_scores(figure.subplots(), epochs, values, floors, band, best)
        return _svg(figure, f"score-{name}", words)


def draw_losses(
    axis: Axes, records: Sequence[Mapping[str, float]], name: str, most: int | None = None
) -> None:
    """Draw one loss term, raw and averaged; `most`: thin both out to that many points."""
    values = np.array([record[name] for record in records if name in record])  # a stage has its own terms
    steps = np.array([record["steps"] for record in records if name in record])
    window = max(1, len(values) // 10)
    smooth = np.convolve(values, np.ones(window) / window, "valid")
    raw, mean = (evenly_spaced(len(points), most or len(points)) for points in (values, smooth))
    axis.plot(steps[raw], values[raw], color=INK, alpha=0.3, linewidth=0.8, label="raw")
    label = f"mean of {window}"
    axis.plot(steps[window - 1 :][mean], smooth[mean], color=OURS, linewidth=1.4, label=label)
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(nbins=6)
    axis.legend(fontsize="small", frameon=False)


def draw_scores(
    axis: Axes,
    epochs: Sequence[int],
    values: Sequence[float],
    floors: Mapping[str, float],
    band: Band = (),
    best: int | None = None,
) -> None:
    """Draw one metric over epochs: ours with its interval, and what it is to be compared with."""
    known = [(epoch, *ends) for epoch, ends in zip(epochs, band, strict=False) if None not in ends]
    if known:
        at, low, high = zip(*known, strict=True)
        # one epoch has no width to fill: a bar stands for the band
        axis.fill_between(at, low, high, color=OURS, alpha=0.2, linewidth=0)
        if len(known) == 1:
            axis.vlines(at, low, high, color=OURS, alpha=0.5, linewidth=2)
    axis.plot(epochs, values, "o-", color=OURS, markersize=3, linewidth=1.4, label="ours")
    if best in epochs:
        value = values[list(epochs).index(best)]
        axis.plot([best], [value], "o", color=OURS, markersize=9, fillstyle="none", label="best")
    for label, value in floors.items():
        axis.axhline(value, linestyle="--", color=INK, alpha=0.6, linewidth=0.8, label=label)
    ends = [end for _, low, high in known for end in (low, high)]
    axis.set_ylim(*_limits([*values, *ends], list(floors.values())))
    _name_lines(axis, floors)
    axis.set_xlabel("epoch")
    axis.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    axis.yaxis.get_major_locator().set_params(nbins=5)


def _limits(ours: list[float], floors: list[float]) -> tuple[float, float]:
    """Return the ends of a y axis that show ours well; of the floors only those that leave it room."""
    low, high = min(ours), max(ours)
    most = ROOM * (high - low)
    for i, value in enumerate(sorted(floors, key=lambda value: max(low - value, value - high))):
        wider = min(low, value), max(high, value)
        if i == 0 or most == 0 or wider[1] - wider[0] <= most:  # beside nothing a curve says little
            low, high = wider
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - margin, high + margin


def _name_lines(axis: Axes, floors: Mapping[str, float]) -> None:
    """Write each dashed line's name at its right end; of one outside the panel also its value."""
    low, high = axis.get_ylim()
    lowest = -LINE_HEIGHT * sum(value < low for value in floors.values())
    highest = 1.0 + LINE_HEIGHT * sum(value > high for value in floors.values())
    for i, (label, value) in enumerate(sorted(floors.items(), key=lambda item: item[1])):
        outside = int(value > high) - int(value < low)
        wanted = outside * math.inf if outside else (value - low) / (high - low)
        height = min(max(wanted, lowest), highest - (len(floors) - 1 - i) * LINE_HEIGHT)
        text = f"{label} {value:.3g} {'↑' if outside > 0 else '↓'}" if outside else label
        axis.text(1.02, height, text, transform=axis.transAxes, va="center", fontsize="small")
        lowest = height + LINE_HEIGHT


def _write(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def _svg(figure: Figure, name: str, words: str) -> str:
    """Return a figure as an SVG element without fonts, colours of ink, date and foreign addresses."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = text[text.index(">", text.index("<svg")) + 1 :]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)  # ids belong to the whole page
    text = re.sub(r"font-family: [^;\"]*; |transform=\"rotate\(-0 [^\"]*\"", "", text)
    text = re.sub(r"\n\s*", "\n", text.replace(INK, "currentColor").replace("xlink:href", "href"))
    looks = 'stroke-linejoin="round" stroke-linecap="butt"'  # matplotlib says it in a style for everything
    return f'<svg {box[0]} {looks} role="img" aria-label="{escape(words)}">{text.strip()}'
