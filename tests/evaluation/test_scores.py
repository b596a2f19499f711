"""Intervals, protocols, score files in their old form, which epoch is best, and what is damaged."""

import csv
import functools
import hashlib
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from config import METRICS, VERSION, Recipe
from evaluation import best_epoch, scores
from evaluation.scores import PerImage, Protocol, Row, Score, ScoreFile
from runtime import atomic

RUN = Path("runs/x")
STEMS = ["a", "b,c", 'd"e', "f g", "ü"]  # names that a CSV has to quote
NONE = "unavailable: 5 test images, at least 256 are needed; test on more"
RECIPE = Recipe("x", size=32, load_size=36)
PROTOCOL = scores.describe_protocol(RECIPE, STEMS, [b"1", b"2"], {"alexnet": "a" * 64})


def test_wilson_is_that_of_the_textbook() -> None:
    # Newcombe 1998, table I, method 3
    assert scores.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert scores.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_bootstrap_of_a_case_that_can_be_counted() -> None:
    values = np.array([0.0, 1.0, 5.0, 30.0])
    means = np.array([np.mean(draw) for draw in itertools.product(values, repeat=4)])  # all 256
    exact = np.quantile(means, [0.025, 0.975])
    low, high = scores.bootstrap(values[:, None])
    assert (low[0], high[0]) == pytest.approx(exact, abs=0.6)
    assert scores.bootstrap(np.array([[0.0], [1.0]])) == ([0.0], [1.0])  # of the means a quarter is 0


def test_bootstrap_matches_scipy() -> None:
    values = np.random.default_rng(1).gamma(2, 3, 60)
    low, high = scores.bootstrap(values[:, None])
    expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    error = scipy.stats.sem(values)
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=0.12 * error)


def test_bootstrap_is_the_same_every_time_and_for_every_column() -> None:
    values = np.random.default_rng(0).normal(0, 1, (30, 2))
    first = scores.bootstrap(values)
    np.testing.assert_array_equal(scores.bootstrap(values), first)
    alone = [ends[0] for ends in scores.bootstrap(values[:, :1])]
    assert alone == pytest.approx([ends[0] for ends in first], rel=1e-12)


def test_summary_of_columns() -> None:
    rng = np.random.default_rng(0)
    columns = {"psnr_db": rng.normal(20, 3, 50), "top1": (rng.random(50) < 0.7) * 1.0, "top5": np.ones(50)}
    found = scores.summarise(columns)
    for name, values in columns.items():
        assert found[name].mean == pytest.approx(values.mean())
        assert found[name].se == pytest.approx(scipy.stats.sem(values))
        assert all(type(value) is float for value in found[name])
    low, high = scores.bootstrap(columns["psnr_db"][:, None])
    assert found["psnr_db"][2:] == pytest.approx((low[0], high[0]))
    for name in ("top1", "top5"):  # shares of hits, even if all are hits
        assert found[name][2:] == scores.wilson(int(columns[name].sum()), 50)
    assert scores.summarise({"psnr_db": np.array([21.0]), "top1": np.array([1.0])}) == {
        "psnr_db": Score(21.0), "top1": Score(1.0),
    }  # fmt: skip
    assert scores.summarise({"": np.zeros(25)})[""] == (0.0, 0.0, 0.0, 0.0)


def describe(**changes: Any) -> Protocol:
    given = {"recipe": RECIPE, "stems": STEMS, "digests": [b"1", b"2"], "weights": {"alexnet": "a" * 64}}
    return scores.describe_protocol(**{**given, **changes})


def test_protocol() -> None:
    protocol = describe(stems=["a", "b", "c"])
    versions = protocol.pop("versions")
    assert versions.keys() == {"tinct", "python", *scores.LIBRARIES}
    assert versions["tinct"] == VERSION
    assert {"torch", "numpy", "pillow", "scipy", "torchmetrics", "clean-fid"} <= set(scores.LIBRARIES)
    assert protocol == {
        "images": 3,
        "size": 32,
        "file_list": hashlib.sha256(b"a\nb\nc").hexdigest(),
        "targets": hashlib.sha256(b"12").hexdigest(),
        "resize": "crop 36:32 px, bicubic, antialiased",
        "data_range": 255,
        "weights": {"alexnet": "a" * 64},
    }


HASHES = "[0-9a-f]{12} and [0-9a-f]{12}"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"recipe": Recipe("x", size=16, load_size=36)}, ["size 32 and 16", "resize crop 36:32 .* and .*"]),
        ({"recipe": Recipe("x", size=32, load_size=36, fit="squash")}, ["resize crop .* and squash .*"]),
        ({"stems": ["a", "b"]}, ["images 5 and 2", f"file_list {HASHES}"]),
        ({"stems": STEMS[::-1]}, [f"file_list {HASHES}"]),
        ({"digests": [b"1", b"3"]}, [f"targets {HASHES}"]),
        ({"weights": {"alexnet": "b" * 64}}, ["weights of alexnet a{12} and b{12}"]),
        ({"weights": {"vgg16": "b" * 64}}, []),  # a network that only one side used is no difference
    ],
)
def test_differences_are_named(changes: dict[str, Any], named: list[str]) -> None:
    found = scores.differences(describe(), describe(**changes))
    assert len(found) == len(named) == len(scores.differences(describe(**changes), describe()))
    for phrase, pattern in zip(found, named, strict=True):
        assert re.fullmatch(pattern, phrase)
    assert scores.identify(dict(reversed(describe().items()))) == scores.identify(describe())
    if changes:
        assert scores.identify(describe(**changes)) != scores.identify(describe())


def test_other_versions_are_differences() -> None:
    ours, theirs = describe(), describe()
    theirs["versions"] = {**theirs["versions"], "torch": "2.0"}
    scipy_version = theirs["versions"].pop("scipy")
    torch_version = ours["versions"]["torch"]
    expected = [f"torch {torch_version} and 2.0", f"scipy {scipy_version} and None"]
    assert scores.differences(ours, theirs) == expected


def columns(seed: int, n: int = len(STEMS)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = ("psnr_db", "ssim", "ciede2000", "colorfulness", "colorfulness_truth")
    hits = {"top1": rng.integers(0, 2, n).astype(float)}
    return {name: rng.normal(20, 3, n) for name in names} | hits


NAMES = ("gray", "mean_ab", "jpeg90", "epoch_0005", "epoch_0010")
PER_IMAGE: PerImage = {name: columns(i) for i, name in enumerate(NAMES)}


@functools.cache
def table() -> dict[str, Row]:
    """Return rows that no test changes."""
    rows = {name: scores.make_row(name, PER_IMAGE[name], STEMS) for name in NAMES}
    for name, row in rows.items():
        row.missing = {"fid": NONE}
        row.scores["kid"] = Score(0.5)
        row.stamp = f"key of {name}" if row.epoch else ""
    return rows


def write(rows: dict[str, Row] | None = None, per_image: PerImage = PER_IMAGE) -> ScoreFile:
    made = best_epoch.make_score_file(rows or table(), per_image, PROTOCOL, "ciede2000", ["a note"])
    scores.write_scores(RUN, made, per_image, STEMS)
    return made


def test_a_row_holds_means_errors_and_intervals() -> None:
    made = columns(0)
    row = scores.make_row("epoch_0005", made, STEMS)
    assert (row.epoch, row.images, row.missing, row.stamp) == (5, 5, {}, "")
    summary = scores.summarise(made)
    truth = summary.pop("colorfulness_truth")
    assert row.scores == summary | {"colorfulness_truth": Score(truth.mean)}
    assert scores.make_row("gray", {"ssim": np.array([0.5])}, ["a"]) == Row(None, {"ssim": Score(0.5)}, 1)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_score_that_is_not_finite_is_a_bug_and_is_named(value: float) -> None:
    made = columns(0)
    made["ssim"][3] = value
    with pytest.raises(FloatingPointError, match=r"ssim of epoch_0005/f g\.png"):
        scores.make_row("epoch_0005", made, STEMS)


@pytest.mark.parametrize("metric", METRICS)
def test_the_best_epoch_follows_the_direction(metric: str) -> None:
    def row(value: float, epoch: int | None = None) -> Row:
        return Row(epoch, {metric: Score(value), "colorfulness_truth": Score(40.0)}, 1)

    values = {"higher": (3.0, 9.0, 5.0), "lower": (9.0, 3.0, 5.0), "closest to the truth": (20.0, 43.0, 50.0)}
    rows = {f"epoch_000{i}": row(v, i) for i, v in enumerate(values[METRICS[metric]], 1)}
    best = best_epoch.best_epochs({"gray": row(40.0), "jpeg90": row(1e9), **rows, "truth": row(-1e9)})
    assert best == {metric: "epoch_0002"}  # baselines and upper bounds are no epochs
    assert best_epoch.distance(metric, rows["epoch_0002"]) < best_epoch.distance(metric, rows["epoch_0001"])


def test_of_equal_epochs_the_first_is_best_and_every_epoch_must_have_the_metric() -> None:
    rows = {f"epoch_000{i}": Row(i, {"ssim": Score(0.5)}, 4) for i in (1, 2, 3)}
    rows["epoch_0003"].scores["fid"] = Score(3.0)
    rows["epoch_0002"].missing["fid"] = NONE
    assert best_epoch.best_epochs(rows) == {"ssim": "epoch_0001"}
    assert best_epoch.best_epochs({"gray": Row(None, {"ssim": Score(0.5)}, 4)}) == {}


def test_epochs_and_baselines_are_tied_where_their_paired_interval_contains_zero() -> None:
    rng = np.random.default_rng(0)
    best = rng.normal(10, 5, 40)  # images differ far more than epochs do
    near, far = best + rng.normal(0, 0.1, 40), best + 0.5 + rng.normal(0, 0.1, 40)
    near += best.mean() - near.mean()
    per_image = {
        name: {"ciede2000": values, "colorfulness": values}
        for name, values in {
            "gray": best, "jpeg90": best, "epoch_0001": near, "epoch_0002": best, "epoch_0003": far
        }.items()
    }  # fmt: skip
    assert best_epoch.tied_rows(per_image, "epoch_0002", "ciede2000") == ["gray", "epoch_0001"]
    assert best_epoch.tied_rows(per_image, "epoch_0002", "colorfulness") == []  # no direction is better
    assert best_epoch.tied_rows(per_image, None, "ciede2000") == []
    single = {name: {"ciede2000": found["ciede2000"][:1]} for name, found in per_image.items()}
    assert best_epoch.tied_rows(single, "epoch_0002", "ciede2000") == []


def test_a_winner_leads_over_every_other_epoch_and_over_the_baselines() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(10, 5, 40)
    means = {"gray": 3.0, "mean_ab": 2.0, "jpeg90": -5.0, "epoch_0001": 1.0, "epoch_0002": 0.0}

    def winners(metric: str = "ciede2000", count: int = 40, **changes: float | None) -> dict[str, str]:
        """Return the winners where scores of rows are so far above those of epoch 2, with a little noise."""
        far = {name: mean for name, mean in {**means, **changes}.items() if mean is not None}
        known = {"colorfulness_truth": truth[:count]}
        values = {name: (truth + mean + rng.normal(0, 0.1, 40))[:count] for name, mean in far.items()}
        per_image = {name: {metric: found, **known} for name, found in values.items()}
        rows = {name: scores.make_row(name, found, [str(i) for i in range(40)]) for name, found in per_image.items()}
        return best_epoch.clear_winners(rows, per_image)

    assert winners() == {"ciede2000": "epoch_0002"}
    assert winners(epoch_0001=0.0) == {}  # the other epoch may be as good
    assert winners(gray=-1.0) == winners(mean_ab=0.0) == {}  # better than the epoch, or as good
    assert winners(epoch_0001=None) == {}  # one epoch alone wins nothing
    assert winners(count=1) == winners("colorfulness") == {}
    assert winners("psnr_db", epoch_0001=-1.0, gray=-2.0, mean_ab=-2.0) == {"psnr_db": "epoch_0002"}


# what the first version of this format wrote
OLD = {
    "format": "tinct-scores-1", "metric": "ciede2000",
    "best": {"psnr_db": "epoch_0005", "top1": "epoch_0005"}, "ties": [], "directions": METRICS,
    "protocol": PROTOCOL, "notes": ["skipped x.png: damaged"],
    "rows": {
        "gray": {
            "top1": 0.5, "top1_se": 0.1, "top1_low": 0.25, "top1_high": 0.75,
            "psnr_db": 20.5, "psnr_db_se": 0.5, "psnr_db_low": 19.5, "psnr_db_high": 21.5,
            "colorfulness_truth": 31.5, "images": 5, "kid": 0.25, "fid": NONE,
        },
        "truth": {"top1": 1.0, "top1_se": 0.0, "top1_low": 0.75, "top1_high": 1.0, "images": 5, "fid": NONE},
        "epoch_0005": {
            "top1": 0.5, "top1_se": 0.1, "top1_low": 0.25, "top1_high": 0.75,
            "psnr_db": 20.5, "psnr_db_se": 0.5, "psnr_db_low": 19.5, "psnr_db_high": 21.5,
            "colorfulness_truth": 31.5, "images": 5, "kid": 0.25, "fid": NONE, "stamp": "key 5",
        },
    },
}  # fmt: skip


def test_old_score_files_are_read_and_written_again_to_the_letter() -> None:
    atomic.write_json(RUN / "scores.json", OLD)
    before = (RUN / "scores.json").read_bytes()
    found = scores.read_scores(RUN)
    row = found.rows["epoch_0005"]
    assert (row.epoch, row.images, row.stamp, row.missing) == (5, 5, "key 5", {"fid": NONE})
    assert row.scores["psnr_db"] == Score(20.5, 0.5, 19.5, 21.5)
    assert row.scores["kid"] == Score(0.25)
    assert row.scores["colorfulness_truth"] == Score(31.5)
    assert (found.rows["truth"].epoch, found.rows["truth"].stamp) == (None, "")
    scores.write_scores(RUN, found, {}, [])
    assert (RUN / "scores.json").read_bytes() == before
    assert (RUN / "scores.csv").read_text().splitlines()[:2] == [
        "name,top1,top1_se,top1_low,top1_high,psnr_db,psnr_db_se,psnr_db_low,psnr_db_high,"
        "colorfulness_truth,images,kid,fid,protocol",
        f"gray,0.5,0.1,0.25,0.75,20.5,0.5,19.5,21.5,31.5,5,0.25,,{scores.identify(PROTOCOL)}",
    ]


def test_the_three_files_agree() -> None:
    made = write()
    assert scores.read_scores(RUN) == made
    assert (made.metric, made.best, made.notes) == (
        "ciede2000",
        best_epoch.best_epochs(made.rows),
        ["a note"],
    )
    stored = json.loads((RUN / "scores.json").read_text())
    assert list(stored["rows"]) == list(NAMES)
    with open(RUN / "scores.csv", newline="") as file:
        cells = {line.pop("name"): line for line in csv.DictReader(file)}
    assert list(cells) == list(NAMES)
    for name, record in stored["rows"].items():
        assert cells[name].pop("protocol") == scores.identify(PROTOCOL)
        assert cells[name].keys() == stored["rows"]["gray"].keys()  # without the stamp
        assert cells[name].pop("fid") == ""  # unavailable is never a number
        assert all(float(cell) == record[key] for key, cell in cells[name].items())
    again, stems = scores.read_per_image(RUN, made, list(NAMES))
    assert stems == STEMS
    for name, columns in PER_IMAGE.items():
        assert {k: v.tolist() for k, v in again[name].items()} == {k: v.tolist() for k, v in columns.items()}
    assert {path.name for path in RUN.iterdir()} == {"scores.json", "scores.csv", "scores_per_image.csv"}


def test_rows_of_other_metrics_leave_their_cells_empty() -> None:
    truth = {"top1": PER_IMAGE["gray"]["top1"]}
    made = write({**table(), "truth": scores.make_row("truth", truth, STEMS)}, {**PER_IMAGE, "truth": truth})
    found, _ = scores.read_per_image(RUN, made, ["truth", "epoch_0005"])
    assert list(found["truth"]) == ["top1"]
    assert set(found["epoch_0005"]) == set(PER_IMAGE["gray"])


def change(key: str, value: Any) -> bytes:
    return json.dumps({**OLD, key: value}).encode()


DAMAGED = [
    b"", b"{", b"[]", b"null", b'{"rows": {}}', b"\xff\xfe", change("format", "tinct-scores-0"),
    change("rows", []), change("rows", {"gray": 3}), change("rows", {"gray": {"ssim": 0.5}}),
    change("rows", {"gray": {"ssim": None, "images": 5}}),
    change("rows", {"gray": {"ssim": math.nan, "images": 5}}), change("metric", ["ssim"]),
    change("best", {"psnr_db": "epoch_0010"}), change("best", {"ssim": "epoch_0005"}),
    change("best", {"psnr_db": 10}), change("protocol", {}), change("notes", "none"), change("another", 1),
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_scores_say_so(content: bytes) -> None:
    RUN.mkdir(parents=True)
    (RUN / "scores.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"scores\.json is damaged.* delete it and score again"):
        scores.read_scores(RUN)


DAMAGE = {
    "missing": lambda _: None,
    "no header": lambda text: text.partition("\n")[2],
    "another column": lambda text: text.replace("stem", "stam", 1),
    "no number": lambda text: text.replace("epoch_0005,a,", "epoch_0005,a,twenty", 1),
    "another image": lambda text: text.replace("epoch_0005,a,", "epoch_0005,z,", 1),
    "a lost cell": lambda text: text.replace("epoch_0005,a,", "epoch_0005,", 1),
    "a lost row": lambda text: text.replace("epoch_0010", "epoch_0011"),
    "a lost line": lambda text: text[: text.rstrip().rfind("\n") + 1],
    "a cut line": lambda text: text[: text.rstrip().rfind("\n") + 12],
    "another evaluation": lambda text: text.replace(scores.identify(PROTOCOL), "deadbeefdead"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_per_image_scores_say_so(damage: str) -> None:
    made, path = write(), RUN / "scores_per_image.csv"
    text = path.read_bytes().decode()
    damaged = DAMAGE[damage](text)
    assert damaged != text
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged.encode())
    with pytest.raises(ValueError, match=r"scores_per_image\.csv is missing or damaged; score again"):
        scores.read_per_image(RUN, made, ["epoch_0005", "epoch_0010"])
