"""plots.py: what is drawn is what was measured."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from reporting import curves

PATH = Path("x.png")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect the figures that are written."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k))
    return figures


def lines(axis: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Return label -> x, y of every line."""
    return {
        str(line.get_label()): tuple(np.asarray(v).tolist() for v in line.get_data()) for line in axis.lines
    }


def records(count: int) -> list[dict[str, float]]:
    return [
        {"steps": 10 * i, "lr": 1.0, "G_l1": 1.0 / i, "D_real": float(i % 3)} for i in range(1, count + 1)
    ]


@pytest.mark.parametrize(("count", "window"), [(1, 1), (9, 1), (30, 3)])
def test_plot_losses(drawn: list[Figure], count: int, window: int) -> None:
    curves.plot_losses(PATH, records(count))
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes] == ["G_l1", "D_real"]
    steps = [record["steps"] for record in records(count)]
    for axis in axes:
        values = [record[axis.get_title()] for record in records(count)]
        means = [np.mean(values[i - window + 1 : i + 1]) for i in range(window - 1, count)]
        got = lines(axis)
        assert got["raw"] == (steps, values)
        assert got[f"mean of {window}"][0] == steps[window - 1 :]
        assert got[f"mean of {window}"][1] == pytest.approx(means)


def test_terms_of_one_stage_are_drawn_where_they_were(drawn: list[Figure]) -> None:
    first = [{"steps": i, "lr": 1.0, "G_l1": 9.0 - i} for i in range(1, 4)]
    second = [{"steps": i, "lr": 1.0, "G_l1": 9.0 - i, "G_gan": i / 2, "D_fake": 0.5} for i in (4, 5)]
    curves.plot_losses(PATH, [*first, *second])
    axes = {axis.get_title(): lines(axis)["raw"] for axis in drawn[0].axes}
    assert axes == {
        "G_l1": ([1, 2, 3, 4, 5], [8.0, 7.0, 6.0, 5.0, 4.0]),
        "G_gan": ([4, 5], [2.0, 2.5]),
        "D_fake": ([4, 5], [0.5, 0.5]),
    }


def test_a_stage_is_smoothed_over_its_own_records(drawn: list[Figure]) -> None:
    history = [
        {"steps": i, "G_l1": float(i), **({"G_gan": float(i)} if i > 30 else {})} for i in range(1, 51)
    ]
    curves.plot_losses(PATH, history)
    long, short = (lines(axis) for axis in drawn[0].axes)
    assert long["mean of 5"][0] == list(range(5, 51))
    assert short["mean of 2"] == (list(range(32, 51)), [i - 0.5 for i in range(32, 51)])


@pytest.mark.parametrize(("names", "rows"), [("a", 1), ("abcd", 1), ("abcde", 2)])
def test_plot_scores(drawn: list[Figure], names: str, rows: int) -> None:
    epochs = [5, 10, 15]
    scores = {name: [float(ord(name)), 2.0, 3.5] for name in names}
    curves.plot_scores(PATH, epochs, scores, {"a": {"gray": 1.5, "mean colour": 2.5}})
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes] == list(names)
    assert len({round(axis.get_position().y0, 2) for axis in axes}) == rows
    for axis in axes:
        got = lines(axis)
        assert got.pop("ours") == (epochs, scores[axis.get_title()])
        floors = {label: y for label, (_, y) in got.items()}
        assert floors == ({"gray": [1.5, 1.5], "mean colour": [2.5, 2.5]} if axis.get_title() == "a" else {})


def test_intervals_and_the_best_epoch_are_drawn(drawn: list[Figure]) -> None:
    band = [(1.0, 3.0), (None, None), (2.0, 5.0)]
    curves.score_svg("a", [5, 10, 15], [2.0, 2.5, 3.5], {"gray": 2.2}, band, best=15)
    (axis,) = drawn[0].axes
    assert lines(axis)["best"] == ([15], [3.5])
    (filled,) = axis.collections
    corners = {tuple(corner) for corner in filled.get_paths()[0].vertices.tolist()}
    assert corners == {(5.0, 1.0), (5.0, 3.0), (15.0, 2.0), (15.0, 5.0)}
    low, high = axis.get_ylim()
    assert low < 1.0
    assert high > 5.0


def test_the_interval_of_one_epoch_is_a_bar(drawn: list[Figure]) -> None:
    curves.score_svg("a", [5], [2.0], {}, [(1.0, 3.0)])
    bar = drawn[0].axes[0].collections[-1]
    assert [path.vertices.tolist() for path in bar.get_paths()] == [[[5, 1], [5, 3]]]


@pytest.mark.parametrize(
    ("values", "floors", "seen"),
    [
        ([2.0, 3.0], {"gray": 1.5, "jpeg": 90.0}, {"gray"}),
        ([2.0, 3.0], {"gray": 50.0, "jpeg": 90.0}, {"gray"}),  # the nearest is seen, however far off
        ([2.0, 3.0], {"gray": 1.0, "jpeg": 4.0}, {"gray", "jpeg"}),
        ([2.0], {"gray": 1.0, "jpeg": 90.0}, {"gray", "jpeg"}),  # one epoch has no scale of its own
        ([2.0, 2.0], {}, set()),
    ],
)
def test_floors_leave_our_curve_its_room(
    drawn: list[Figure], values: list[float], floors: dict[str, float], seen: set[str]
) -> None:
    curves.score_svg("a", [5, 10][: len(values)], values, floors)
    (axis,) = drawn[0].axes
    low, high = axis.get_ylim()
    assert low < min(values) <= max(values) < high
    assert {name for name, value in floors.items() if low <= value <= high} == seen
    names = [text.get_text() for text in axis.texts]
    expected = {n if n in seen else f"{n} {v:.3g} " + "\u2191" for n, v in floors.items()}
    assert sorted(names) == sorted(expected)


def test_names_of_lines_do_not_cover_each_other(drawn: list[Figure]) -> None:
    floors = {"gray": 1.0, "mean ab": 1.001, "JPEG 90": 4.0, "truth": 4.0}
    curves.score_svg("a", [5, 10], [2.0, 3.0], floors)
    heights = sorted(text.get_position()[1] for text in drawn[0].axes[0].texts)
    assert min(np.diff(heights)) > 0.08
    assert heights[0] >= 0
    assert heights[-1] <= 1


def test_an_svg_is_whole_in_itself_and_the_same_every_time() -> None:
    words = 'psnr <by> "epoch" & more'
    made = [curves.score_svg("psnr", [5, 10], [1.0, 2.0], {"a <b>": 1.5}, words=words) for _ in range(2)]
    assert made[0] == made[1]
    root = ElementTree.fromstring(made[0])
    assert (root.get("role"), root.get("aria-label")) == ("img", words)
    assert "http" not in made[0]
    assert curves.INK not in made[0]
    assert "currentColor" in made[0]
    assert "font-family" not in made[0]
    assert "a <b>" in [element.text for element in root.iter("text")]
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) > 2
    assert all(str(name).startswith("score-psnr-") for name in ids)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', made[0])) == set(ids)


def test_a_long_log_makes_a_small_svg(drawn: list[Figure]) -> None:
    many = records(20_000)
    svg = curves.loss_svg(many, "D_real")
    assert len(svg) < 30_000
    (axis,) = drawn[0].axes
    steps, values = lines(axis)["raw"]
    assert (len(steps), steps[0], steps[-1]) == (200, 10, 200_000)
    assert values == [float(step // 10 % 3) for step in steps]
    assert 'aria-label="D_real over steps: first 1, last 2, least 0"' in svg


def test_files_are_pictures_and_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    curves.plot_losses(PATH, records(5))
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
