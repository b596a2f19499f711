"""Curves of a run: losses over steps, scores over epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from atomic import replacing

matplotlib.use("agg")


def plot_losses(path: Path, records: Sequence[Mapping[str, float]]) -> None:
    """Draw every G_ and D_ term of log.jsonl over steps: raw, and averaged over a tenth of the records."""
    names = list(
        dict.fromkeys(name for record in records for name in record if name.startswith(("G_", "D_")))
    )
    figure = Figure(figsize=(4 * len(names), 3.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        values = np.array([record[name] for record in records if name in record])  # a stage has its own terms
        steps = [record["steps"] for record in records if name in record]
        window = max(1, len(values) // 10)
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        axis.plot(steps, values, color="0.8", label="raw")
        axis.plot(steps[window - 1 :], smooth, color="C0", label=f"mean of {window}")
        axis.set(title=name, xlabel="step")
        axis.legend(fontsize="small")
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
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (name, values) in zip(axes, scores.items(), strict=False):
        axis.plot(epochs, values, "o-", label="ours")
        for i, (label, value) in enumerate(floors.get(name, {}).items()):
            axis.axhline(value, linestyle="--", color=f"C{i + 1}", label=label)
        axis.set(title=name, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize="small")
    for axis in list(figure.axes)[len(scores) :]:
        axis.remove()
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
