"""Curves show what was measured."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure
from PIL import Image
from scored_run import make_scores

from evaluation.scores import Score
from reporting import curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PATH = Path("x.png")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect the figures that are written."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k))
    return figures


def lines(axis: "Axes") -> dict[str, tuple[list[float], list[float]]]:
    """Return label -> x, y of every line."""
    return {str(line.get_label()): tuple(np.asarray(v).tolist() for v in line.get_data()) for line in axis.lines}


def records(count: int) -> list[dict[str, float]]:
    return [{"steps": 10 * i, "lr": 1.0, "G_l1": 1.0 / i, "D_real": float(i % 3)} for i in range(1, count + 1)]


def draw(
    means: list[float], references: dict[str, float], intervals: Any = None, best: int | None = None
) -> curves.Drawing:
    """Draw scores of the epochs 5, 10, 15 ..."""
    ends = intervals or [(None, None)] * len(means)
    scores = {5 * (i + 1): Score(mean, None, *ends[i]) for i, mean in enumerate(means)}
    return curves.score_svg("psnr_db", scores, references, best, 'psnr <by> "epoch" & more')


@pytest.mark.parametrize(("count", "window"), [(1, 1), (30, 3)])
def test_losses_are_drawn_raw_and_averaged_over_their_own_steps(drawn: list[Figure], count: int, window: int) -> None:
    history = [{"steps": 5, "G_l1": 1.0}, *records(count)]  # D_real begins later
    curves.plot_losses(PATH, history)
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes] == ["G_l1", "D_real"]
    steps, values = [record["steps"] for record in records(count)], [r["D_real"] for r in records(count)]
    means = [np.mean(values[i - window + 1 : i + 1]) for i in range(window - 1, count)]
    assert lines(axes[0])["raw"][0] == [5, *steps]
    got = lines(axes[1])
    assert got["raw"] == (steps, values)
    assert got[f"mean of {window}"][0] == steps[window - 1 :]
    assert got[f"mean of {window}"][1] == pytest.approx(means)


def test_scores_are_drawn_with_their_references(drawn: list[Figure]) -> None:
    curves.plot_scores(PATH, make_scores())
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes] == ["psnr_db", "ciede2000"]
    got = lines(axes[-1])
    assert got.pop("ours") == ([5, 10, 15], [7.0, 4.4, 5.7])
    assert {label: y for label, (_, y) in got.items()} == {
        "gray": [12.0, 12.0],
        "mean_ab": [4.5, 4.5],
        "jpeg90": [0.5, 0.5],
    }


def test_intervals_and_the_best_epoch_are_drawn(drawn: list[Figure]) -> None:
    draw([2.0, 2.5, 3.5], {"gray": 2.2}, [(1.0, 3.0), (None, None), (2.0, 5.0)], best=15)
    (axis,) = drawn[0].axes
    assert lines(axis)["best"] == ([15], [3.5])
    (filled,) = axis.collections
    corners = {tuple(corner) for corner in filled.get_paths()[0].vertices.tolist()}
    assert corners == {(5.0, 1.0), (5.0, 3.0), (15.0, 2.0), (15.0, 5.0)}
    low, high = axis.get_ylim()
    assert low < 1.0
    assert high > 5.0


def test_the_interval_of_one_epoch_is_a_bar(drawn: list[Figure]) -> None:
    draw([2.0], {}, [(1.0, 3.0)])
    bar = drawn[0].axes[0].collections[-1]
    assert [path.vertices.tolist() for path in bar.get_paths()] == [[[5, 1], [5, 3]]]


@pytest.mark.parametrize(
    ("values", "references", "seen"),
    [
        ([2.0, 3.0], {"gray": 1.5, "jpeg": 90.0}, {"gray"}),
        ([2.0, 3.0], {"gray": 50.0, "jpeg": 90.0}, {"gray"}),  # the nearest is seen, however far off
        ([2.0, 3.0], {"gray": 1.0, "jpeg": 4.0}, {"gray", "jpeg"}),
        ([2.0], {"gray": 1.0, "jpeg": 90.0}, {"gray", "jpeg"}),  # one epoch has no scale of its own
        ([2.0, 2.0], {}, set()),
    ],
)
def test_references_leave_our_curve_its_room(
    drawn: list[Figure], values: list[float], references: dict[str, float], seen: set[str]
) -> None:
    draw(values, references)
    (axis,) = drawn[0].axes
    low, high = axis.get_ylim()
    assert low < min(values) <= max(values) < high
    assert {name for name, value in references.items() if low <= value <= high} == seen
    names = [text.get_text() for text in axis.texts]
    expected = {n if n in seen else f"{n} {v:.3g} " + "\u2191" for n, v in references.items()}
    assert sorted(names) == sorted(expected)


def test_a_label_stands_at_its_line_and_close_lines_share_one(drawn: list[Figure]) -> None:
    references = {"gray": 1.0, "mean ab": 1.02, "JPEG 90": 4.0, "truth": 4.0, "a": 2.0, "b": 2.3, "c": 2.4, "d": 90.0}
    draw([2.0, 3.0], references)
    (axis,) = drawn[0].axes
    low, high = axis.get_ylim()
    heights = {text.get_text(): text.get_position()[1] for text in axis.texts}
    assert {*heights} == {"gray, mean ab", "JPEG 90, truth", "a, b, c", "d 90 ↑"}
    for names in list(heights)[:-1]:
        for name in names.split(", "):
            line = (references[name] - low) / (high - low)
            assert abs(heights[names] - line) < 0.1, name
    assert min(np.diff(sorted(heights.values()))) > 0.08  # none covers another
    assert heights["d 90 ↑"] > 1


def test_a_drawing_is_whole_in_itself_and_the_same_every_time() -> None:
    drawing, again = (draw([1.0, 2.0], {"a <b>": 1.5}) for _ in range(2))
    assert drawing == again
    root = ElementTree.fromstring(f"<svg>{drawing.content}</svg>")
    assert re.fullmatch(r"0 0 [\d.]+ [\d.]+", drawing.view_box)
    assert drawing.label == 'psnr <by> "epoch" & more'
    assert "http" not in drawing.content
    assert curves.INK not in drawing.content
    assert "currentColor" in drawing.content
    assert "font-family" not in drawing.content
    assert "a <b>" in [element.text for element in root.iter("text")]
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) > 2
    assert all(str(name).startswith("score-psnr_db-") for name in ids)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawing.content)) == set(ids)


def test_a_long_log_makes_a_small_drawing(drawn: list[Figure]) -> None:
    drawing = curves.loss_svg(records(20_000), "D_real")
    assert len(drawing.content) < 30_000
    (axis,) = drawn[0].axes
    steps, values = lines(axis)["raw"]
    assert (len(steps), steps[0], steps[-1]) == (200, 10, 200_000)
    assert values == [float(step // 10 % 3) for step in steps]
    assert drawing.label == "D_real over steps: first 1, last 2, least 0"


def test_files_are_whole_or_not_at_all_and_the_style_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    style = [rcParams[key] for key in curves.STYLE]
    curves.plot_losses(PATH, records(5))
    assert [rcParams[key] for key in curves.STYLE] == style != [*curves.STYLE.values()]
    before = PATH.read_bytes()
    with Image.open(PATH) as image:
        assert image.format == "PNG"
        assert image.width > image.height > 100

    def fail(self: Figure, file: Any, **_: Any) -> None:
        file.write_bytes(b"half") if isinstance(file, Path) else file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="no space left"):
        curves.plot_losses(PATH, records(6))
    assert PATH.read_bytes() == before
    assert list(Path().iterdir()) == [PATH]
