"""scores.py: three files that agree, the best epoch by any metric, and what is damaged."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import METRICS
from evaluation import scores
from evaluation.scores import (
    FORMAT,
    PerImage,
    Row,
    best_epochs,
    bootstrap,
    distance,
    identify,
    is_epoch,
    make_row,
    print_table,
    read_per_image,
    read_scores,
    references,
    undecided,
    why_best,
    wilson,
    write_scores,
)

RUN = Path("runs/x")
STEMS = ["a", "b,c", 'd"e', "f g", "ü"]  # names that a CSV has to quote
MISSING = {"fid": "unavailable: 5 test images, at least 256 are needed; test on more"}
Kept = list[tuple[Any, ...]]


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """Note what would be drawn."""
    calls: Kept = []
    monkeypatch.setattr(scores, "plot_scores", lambda *given: calls.append(given))
    RUN.mkdir(parents=True)
    return calls


def columns(seed: int, n: int = len(STEMS)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = ("psnr_db", "ssim", "ciede2000", "colorfulness", "colorfulness_truth")
    hits = {"top1": rng.integers(0, 2, n).astype(float)}
    return {name: rng.normal(20, 3, n) for name in names} | hits


def table(*names: str) -> tuple[dict[str, Row], PerImage]:
    """Return rows and per-image scores of made-up outputs."""
    per_image = {name: columns(i) for i, name in enumerate(names)}
    return {name: make_row(per_image[name], STEMS, name) | MISSING for name in names}, per_image


ROWS, PER_PICTURE = table("gray", "mean_ab", "jpeg90", "epoch_0005", "epoch_0010")
ROWS["epoch_0005"]["stamp"] = ROWS["epoch_0010"]["stamp"] = "key 1 2"


def write(rows: dict[str, Row] = ROWS, per_image: PerImage = PER_PICTURE, metric: str = "ciede2000") -> None:
    write_scores(RUN, rows, per_image, STEMS, {"images": 5}, metric, ["a note"])


def test_a_row_holds_means_errors_and_intervals() -> None:
    made = columns(0)
    row = make_row(made, STEMS, "gray")
    assert row["images"] == 5
    for name in ("psnr_db", "ssim", "ciede2000", "colorfulness"):
        low, high = bootstrap(made[name][:, None])
        assert row[name] == pytest.approx(made[name].mean())
        assert row[f"{name}_se"] == pytest.approx(made[name].std(ddof=1) / math.sqrt(5))
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low[0], high[0]))
    assert (row["top1_low"], row["top1_high"]) == wilson(int(made["top1"].sum()), 5)
    assert [key for key in row if key.startswith("colorfulness_truth")] == ["colorfulness_truth"]
    assert make_row({"ssim": np.array([0.5])}, ["a"], "gray") == {"ssim": 0.5, "images": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_named(value: float) -> None:
    made = columns(0)
    made["ssim"][3] = value
    with pytest.raises(ValueError, match=r"^ssim of epoch_0005/f g\.png is not finite"):
        make_row(made, STEMS, "epoch_0005")


def test_epochs_are_told_from_floors_and_ceilings() -> None:
    names = [*scores.FLOORS, *scores.CEILINGS, "epoch_0005", "epoch_12345"]
    assert [name for name in names if is_epoch(name)] == ["epoch_0005", "epoch_12345"]


@pytest.mark.parametrize("metric", METRICS)
def test_the_best_epoch_follows_the_direction(metric: str) -> None:
    def row(value: float) -> Row:
        return {metric: value, "colorfulness_truth": 40.0}

    values = {"higher": (3.0, 9.0, 5.0), "lower": (9.0, 3.0, 5.0), "closest to the truth": (20.0, 43.0, 50.0)}
    rows = {f"epoch_000{i}": row(v) for i, v in enumerate(values[METRICS[metric]], 1)}
    best = best_epochs({"gray": row(40.0), "jpeg90": row(1e9), **rows, "truth": row(-1e9)})
    assert best == {metric: "epoch_0002"}  # floors and ceilings are no epochs
    assert distance(metric, rows["epoch_0002"]) < distance(metric, rows["epoch_0001"])


def test_of_equal_epochs_the_first_is_best() -> None:
    assert best_epochs({f"epoch_000{i}": {"ssim": 0.5} for i in (1, 2, 3)}) == {"ssim": "epoch_0001"}


def test_a_metric_that_an_epoch_lacks_has_no_best() -> None:
    rows: dict[str, Row] = {
        "epoch_0001": {"fid": 3.0, "ssim": 0.5},
        "epoch_0002": {"fid": "unavailable: why", "ssim": 0.4},
    }
    assert best_epochs(rows) == {"ssim": "epoch_0001"}
    assert best_epochs({"gray": {"ssim": 0.5}}) == {}


def test_the_three_files_agree(drawn: Kept) -> None:
    write()
    stored = json.loads((RUN / "scores.json").read_text())
    assert stored == read_scores(RUN)
    assert stored["rows"] == ROWS
    assert list(stored["rows"]) == list(ROWS)
    assert (stored["format"], stored["metric"], stored["notes"]) == (FORMAT, "ciede2000", ["a note"])
    assert (stored["best"], stored["directions"]) == (best_epochs(ROWS), METRICS)
    assert stored["protocol"] == {"images": 5}
    with open(RUN / "scores.csv", newline="") as file:
        cells = {line.pop("name"): line for line in csv.DictReader(file)}
    assert list(cells) == list(ROWS)
    for name, row in ROWS.items():
        assert cells[name].pop("protocol") == identify({"images": 5})
        assert set(cells[name]) == set(ROWS["gray"]) - {"stamp"}
        assert cells[name]["fid"] == ""  # unavailable is never a number
        for key, cell in cells[name].items():
            assert key == "fid" or float(cell) == row[key]
    again, stems = read_per_image(RUN, list(ROWS))
    assert stems == STEMS
    for name, made in PER_PICTURE.items():
        assert {key: values.tolist() for key, values in again[name].items()} == {
            key: values.tolist() for key, values in made.items()
        }
    assert {path.name for path in RUN.iterdir()} == {"scores.json", "scores.csv", "scores_per_image.csv"}
    path, epochs, curves, lines = drawn[0]
    assert (path, epochs, list(curves)) == (RUN / "curves.png", [5, 10], list(best_epochs(ROWS)))
    assert curves["psnr_db"] == [ROWS[name]["psnr_db"] for name in ("epoch_0005", "epoch_0010")]
    assert lines["psnr_db"] == {name: ROWS[name]["psnr_db"] for name in ("gray", "mean_ab", "jpeg90")}


def test_rows_of_other_metrics_leave_their_cells_empty() -> None:
    truth = {"top1": PER_PICTURE["gray"]["top1"]}
    rows = {**ROWS, "truth": make_row(truth, STEMS, "truth") | MISSING}
    write(rows, {**PER_PICTURE, "truth": truth})
    with open(RUN / "scores_per_image.csv", newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["name"] == "truth"]
    assert [(line["stem"], float(line["top1"])) for line in lines] == list(
        zip(STEMS, truth["top1"], strict=True)
    )
    assert {line["psnr_db"] for line in lines} == {""}
    found, _ = read_per_image(RUN, ["truth", "epoch_0005"])
    assert list(found["truth"]) == ["top1"]
    assert set(found["epoch_0005"]) == set(PER_PICTURE["gray"])


def test_references_are_floors_ceilings_and_the_truths_colourfulness() -> None:
    names = ("gray", "mean_ab", "jpeg90")
    assert references("ssim", ROWS) == {name: ROWS[name]["ssim"] for name in names}
    truth = {"truth": ROWS["gray"]["colorfulness_truth"]}
    assert references("colorfulness", ROWS) == {name: ROWS[name]["colorfulness"] for name in names} | truth
    assert references("top1", {**ROWS, "truth": {"top1": 0.9}})["truth"] == 0.9
    assert references("fid", ROWS) == {}


def test_no_scores_says_how_to_get_them() -> None:
    with pytest.raises(ValueError, match=r"^no scores in runs/x: python eval\.py --all-epochs --run runs/x$"):
        read_scores(RUN)


DAMAGED = [
    "", "{", "[]", "null", '{"rows": {}}', '{"format": "tinct-scores-0", "rows": {}}', b"\xff\xfe",
    '{"format": "tinct-scores-1", "rows": []}', '{"format": "tinct-scores-1", "rows": {"gray": 3}}',
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_scores_say_so(content: str | bytes) -> None:
    (RUN / "scores.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        ValueError, match=r"^runs/x/scores\.json is damaged, or of another version; delete it and"
    ):
        read_scores(RUN)


def test_half_written_scores_are_damaged() -> None:
    write()
    whole = (RUN / "scores.json").read_bytes()
    for size in range(0, len(whole) - 2, 97):
        (RUN / "scores.json").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged"):
            read_scores(RUN)


def no_stem(text: str) -> str:
    return text.replace("stem", "stam", 1)


DAMAGE = {
    "empty": lambda _: "",
    "no header": lambda text: text.partition("\n")[2],
    "another column": no_stem,
    "no number": lambda text: text.replace("epoch_0005,a,", "epoch_0005,a,twenty", 1),
    "a lost cell": lambda text: text.replace("epoch_0005,a,", "epoch_0005,", 1),
    "a lost row": lambda text: text.replace("epoch_0010", "epoch_0011"),
    "a lost line": lambda text: text[: text.rstrip().rfind("\n") + 1],
    "a cut line": lambda text: text[: text.rstrip().rfind("\n") + 12],
    "binary": lambda _: "\0\1\2",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_per_image_scores_say_so(damage: str) -> None:
    write()
    path = RUN / "scores_per_image.csv"
    text = path.read_bytes().decode()
    assert DAMAGE[damage](text) != text
    path.write_bytes(DAMAGE[damage](text).encode())
    with pytest.raises(ValueError, match=r"^runs/x/scores_per_image\.csv is missing or damaged; score again"):
        read_per_image(RUN, ["epoch_0005", "epoch_0010"])


@pytest.mark.parametrize("damage", ["a lost line", "a cut line"])
def test_a_row_that_has_lost_pictures_is_damaged_even_alone(damage: str) -> None:
    write()
    path = RUN / "scores_per_image.csv"
    path.write_bytes(DAMAGE[damage](path.read_bytes().decode()).encode())
    with pytest.raises(ValueError, match=r"scores_per_image\.csv is missing or damaged"):
        read_per_image(RUN, ["epoch_0010"])


def test_missing_per_image_scores_say_so() -> None:
    with pytest.raises(ValueError, match=r"^runs/x/scores_per_image\.csv is missing or damaged; score again"):
        read_per_image(RUN, ["epoch_0005"])


def test_the_table_shows_every_row_and_marks_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(ROWS, "psnr_db")
    lines = capsys.readouterr().out.splitlines()
    shown = ("psnr_db", "ssim", "ciede2000", "colorful", "top1")
    assert lines[0].split() == list(shown)
    best = best_epochs(ROWS)
    for line, (name, row) in zip(lines[1:], ROWS.items(), strict=False):
        cells = line.split()
        assert cells[0] == name
        for cell, metric in zip(
            cells[1:], ("psnr_db", "ssim", "ciede2000", "colorfulness", "top1"), strict=True
        ):
            assert cell == f"{row[metric]:.4g}" + ("*" if best[metric] == name else "")
    assert lines[6] == f"5 images, colourfulness of the truth {ROWS['gray']['colorfulness_truth']:.4g}"
    assert lines[7] == f"fid {MISSING['fid']}"
    assert lines[8] == why_best(ROWS, "psnr_db")
    assert len(lines) == 9


def test_why_an_epoch_is_best() -> None:
    spread = {"ciede2000_low": 6.2, "ciede2000_high": 8.7}
    rows: dict[str, Row] = {"gray": {"ciede2000": 12.0}, "mean_ab": {"ciede2000": 11.34567}}
    rows |= {"epoch_0005": {"ciede2000": 9.0}, "epoch_0010": {"ciede2000": 7.5, **spread}}
    rows |= {"jpeg90": {"ciede2000": 1.5}}
    assert why_best(rows, "ciede2000") == (
        "best of 2 scored epochs by ciede2000 (lower): 10 with 7.5, 95 % interval 6.2 to 8.7; "
        "gray 12, mean_ab 11.35, jpeg90 1.5"
    )
    rows["epoch_0010"] = {"ciede2000": 7.5}  # of a single picture
    assert "10 with 7.5; gray 12" in why_best(rows, "ciede2000")


def test_why_no_epoch_is_best() -> None:
    assert why_best(ROWS, "fid") == f"no best epoch by fid: {MISSING['fid']}"
    assert why_best(ROWS, "kid") == "no best epoch by kid: not scored"


def test_epochs_are_tied_where_their_paired_interval_holds_zero() -> None:
    rng = np.random.default_rng(0)
    best = rng.normal(10, 5, 40)  # pictures differ far more than epochs do
    near, far = best + rng.normal(0, 0.1, 40), best + 0.5 + rng.normal(0, 0.1, 40)
    near += best.mean() - near.mean()
    per_image = {
        name: {"ciede2000": values, "colorfulness": values}
        for name, values in {"gray": best, "epoch_0001": near, "epoch_0002": best, "epoch_0003": far}.items()
    }
    assert undecided(per_image, "epoch_0002", "ciede2000") == ["epoch_0001"]
    assert undecided(per_image, "epoch_0002", "colorfulness") == []  # neither more nor less is better
    assert undecided(per_image, None, "ciede2000") == []
    single = {name: {"ciede2000": scores["ciede2000"][:1]} for name, scores in per_image.items()}
    assert undecided(single, "epoch_0002", "ciede2000") == []


def test_per_image_scores_of_another_evaluation_are_refused() -> None:
    write()
    path = RUN / "scores_per_image.csv"
    path.write_text(path.read_text().replace(identify({"images": 5}), "deadbeefdead"))
    with pytest.raises(ValueError, match=r"scores_per_image\.csv is missing or damaged"):
        read_per_image(RUN, ["epoch_0005"])
