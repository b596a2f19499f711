"""Curves of a run: losses over steps and scores over epochs, as PNG files and as SVG for the report.

The SVG drawings have no text or axis colour of their own: they take it from the page, so they can be read on
a light and on a dark ground. Figures are made without pyplot, so no backend is chosen and no window opened.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data import evenly_spaced
from evaluation.scores import Score, ScoreFile
from reporting.summary import epoch_rows, references
from runtime.atomic import replacing

INK = "#010203"  # axes, text and dashed lines: near black in a PNG, replaced by `currentColor` in an SVG
OURS = "#c8501e"  # contrast of 4.5 : 1 to both white and black
STYLE: dict[str, Any] = {
    **{key: INK for key in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")},
    "axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "savefig.dpi": 90,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "svg.fonttype": "none", "svg.hashsalt": "tinct",
}  # fmt: skip
PANEL = (3.4, 2.3)  # inches, width and height of an SVG drawing
MAX_POINTS = 200  # of a loss curve in an SVG: a page of long curves would be large, and no screen shows more
MAX_STRETCH = 3  # dashed lines may make the y axis that many times as long as our curve needs
LABEL_HEIGHT = 0.09  # of a panel: lines that are closer have one label


class Drawing(NamedTuple):
    """The inside of an SVG element."""

    label: str  # what it shows, for readers who cannot see it
    view_box: str  # the element's attribute viewBox
    content: str  # SVG, safe to put into a page; its ids begin with the name of the drawing


def loss_names(records: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the loss terms of log.jsonl (G_, D_, a classifier's C_) in the order in which they appear."""
    names = (name for record in records for name in record)
    return list(dict.fromkeys(name for name in names if name.startswith(("G_", "D_", "C_"))))


def plot_losses(path: Path, records: Sequence[Mapping[str, float]]) -> None:
    """Draw every loss term of log.jsonl over the steps into a PNG file: one panel per term."""
    names = loss_names(records)
    width = 4 * len(names)  # inches
    with _figure(width, 3.2, layout=None) as figure, replacing(path) as temporary:
        # fixed margins: to lay it out takes longer than to draw it, and it is drawn after every epoch
        figure.subplots_adjust(left=0.65 / width, right=1 - 0.2 / width, bottom=0.14, top=0.9, wspace=0.22)
        for i, name in enumerate(names, 1):
            axis = figure.add_subplot(1, len(names), i, title=name)
            draw_losses(axis, records, name, len(records))
        figure.savefig(temporary, format="png")


def plot_scores(path: Path, scores: ScoreFile) -> None:
    """Draw every metric that all epochs have over the epochs into a PNG file: one panel per metric."""
    columns = min(4, len(scores.best))
    lines = -(-len(scores.best) // columns)
    with _figure(4 * columns, 3 * lines) as figure, replacing(path) as temporary:
        for i, metric in enumerate(scores.best, 1):
            axis = figure.add_subplot(lines, columns, i, title=metric)
            means = {epoch: Score(row.scores[metric].mean) for epoch, row in epoch_rows(scores).items()}
            draw_scores(axis, means, references(scores, metric))
        figure.savefig(temporary, format="png")


def loss_svg(records: Sequence[Mapping[str, float]], name: str) -> Drawing:
    """Return one loss term over the steps."""
    values = [record[name] for record in records if name in record]
    label = f"{name} over steps: first {values[0]:.4g}, last {values[-1]:.4g}, least {min(values):.4g}"
    with _figure(*PANEL) as figure:
        draw_losses(figure.subplots(), records, name, MAX_POINTS)
        return _svg(figure, f"loss-{name}", label)


def score_svg(
    metric: str, scores: Mapping[int, Score], references: Mapping[str, float], best: int | None, label: str
) -> Drawing:
    """Return one metric over the epochs, see `draw_scores`; `label` says it in words."""
    with _figure(*PANEL) as figure:
        draw_scores(figure.subplots(), scores, references, best)
        return _svg(figure, f"score-{metric}", label)


def draw_losses(axis: Axes, records: Sequence[Mapping[str, float]], name: str, max_points: int) -> None:
    """Draw one loss term, raw and averaged over a tenth of its records; at most max_points of each line."""
    values = np.array([record[name] for record in records if name in record])
    steps = np.array([record["steps"] for record in records if name in record])
    window = max(1, len(values) // 10)
    smooth = np.convolve(values, np.ones(window) / window, "valid")
    raw, mean = (evenly_spaced(len(points), max_points) for points in (values, smooth))
    axis.plot(steps[raw], values[raw], color=INK, alpha=0.3, linewidth=0.8, label="raw")
    ends = steps[window - 1 :]  # of the windows
    axis.plot(ends[mean], smooth[mean], color=OURS, linewidth=1.4, label=f"mean of {window}")
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(nbins=6)
    axis.legend(fontsize="small", frameon=False)


def draw_scores(
    axis: Axes, scores: Mapping[int, Score], references: Mapping[str, float], best: int | None = None
) -> None:
    """Draw the scores of epochs with their intervals.

    Args:
        scores: epoch -> score, in the order of the epochs.
        references: label -> a value that does not depend on the epoch, drawn as a dashed line.
        best: the epoch to mark.
    """
    known = {epoch: (score.low, score.high) for epoch, score in scores.items() if score.low is not None}
    if known:
        low, high = zip(*known.values(), strict=True)
        axis.fill_between([*known], low, high, color=OURS, alpha=0.2, linewidth=0)
        if len(known) == 1:  # the area of a single epoch has no width
            axis.vlines([*known], low, high, color=OURS, alpha=0.5, linewidth=2)
    means = [score.mean for score in scores.values()]
    axis.plot([*scores], means, "o-", color=OURS, markersize=3, linewidth=1.4, label="ours")
    if best in scores:
        mean = scores[best].mean
        axis.plot([best], [mean], "o", color=OURS, markersize=9, fillstyle="none", label="best")
    for label, value in references.items():
        axis.axhline(value, linestyle="--", color=INK, alpha=0.6, linewidth=0.8, label=label)
    ends = [end for interval in known.values() for end in interval]
    axis.set_ylim(*_y_limits([*means, *ends], [*references.values()]))
    _label_references(axis, references)
    axis.set_xlabel("epoch")
    axis.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    axis.yaxis.get_major_locator().set_params(nbins=5)


def _y_limits(ours: Sequence[float], references: Sequence[float]) -> tuple[float, float]:
    """Return the ends of a y axis that shows all of ours.

    The nearest reference is always shown, the others as long as they do not press our curve flat.
    """
    low, high = min(ours), max(ours)
    longest = MAX_STRETCH * (high - low)
    for i, value in enumerate(sorted(references, key=lambda value: max(low - value, value - high))):
        wider = min(low, value), max(high, value)
        if i == 0 or longest == 0 or wider[1] - wider[0] <= longest:
            low, high = wider
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - margin, high + margin


def _label_references(axis: Axes, references: Mapping[str, float]) -> None:
    """Write the label of each dashed line at its right end; lines too close for two labels share one.

    A line outside the axis is named above or below it, with its value.
    """
    low, high = axis.get_ylim()
    ordered = sorted(references.items(), key=lambda item: item[1])
    groups: list[list[tuple[float, str]]] = []  # of height as a part of the axis, and label; from the lowest up
    for label, value in ordered:
        if low <= value <= high:
            group = [((value - low) / (high - low), label)]
            while groups and _middle(group) - _middle(groups[-1]) < LABEL_HEIGHT:
                group = groups.pop() + group
            groups.append(group)
    texts = [(_middle(group), ", ".join(label for _, label in group)) for group in groups]
    below = [f"{label} {value:.3g} ↓" for label, value in reversed(ordered) if value < low]
    above = [f"{label} {value:.3g} ↑" for label, value in ordered if value > high]
    texts += [(-LABEL_HEIGHT * i, text) for i, text in enumerate(below, 1)]
    texts += [(1 + LABEL_HEIGHT * i, text) for i, text in enumerate(above, 1)]
    for height, text in texts:
        axis.text(1.02, height, text, transform=axis.transAxes, va="center", fontsize="small")


def _middle(group: Sequence[tuple[float, str]]) -> float:
    return sum(height for height, _ in group) / len(group)


@contextmanager
def _figure(width: float, height: float, layout: str | None = "constrained") -> Iterator[Figure]:
    """Yield an empty figure of this size in inches. Our style holds within the block alone.

    `layout`: as matplotlib's; None: the caller sets the margins.
    """
    with rc_context(STYLE):
        yield Figure(figsize=(width, height), layout=layout)


def _svg(figure: Figure, name: str, label: str) -> Drawing:
    """Return a figure as SVG without fonts, ink colour, date and addresses; `name` starts every id."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    view_box = re.findall(r'viewBox="([^"]*)"', text)[0]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]*; |transform=\"rotate\(-0 [^\"]*\"", "", text)
    text = re.sub(r"\n\s*", "\n", text.replace(INK, "currentColor").replace("xlink:href", "href"))
    return Drawing(label, view_box, text.strip())
