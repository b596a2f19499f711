"""compare.py: two epochs or runs, picture by picture, and when that is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import METRICS
from evaluation import scores
from evaluation.compare import compare, paired, parse_opponent, scored_epoch, verdict
from evaluation.scores import identify, make_row, summarise, write_scores
from runtime import atomic, run_folder

RECORD = {
    "recipe": {"input": "L", "size": 32, "limit": 0, "attention": 0},
    "data": "demo",
    "loading": {},
    "fingerprints": {},
    "mean_ab": [0, 0],
}
STEMS = [f"p{i:02d}" for i in range(20)]
PROTOCOL = {"images": 20, "size": 32, "versions": {"torch": "2.15.0"}, "weights": {"alexnet": "a" * 64}}


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "plot_scores", lambda *_: None)


def make_run(
    name: str,
    stems: list[str] = STEMS,
    psnr_db: tuple[float, ...] = (20.0, 21.0),
    protocol: dict[str, Any] = PROTOCOL,
    seed: int = 0,
) -> Path:
    """Write a run whose epochs 5, 10 ... have about these PSNR; the highest is the best by CIEDE2000, too."""
    run = Path("runs", name)
    atomic.write_json(run / "recipe.json", RECORD)
    per_image, rows = {}, {}
    for i, mean in enumerate(psnr_db, 1):
        rng = np.random.default_rng(seed)  # hard pictures are hard in every epoch
        noise = {stem: rng.normal(0, 3) for stem in sorted({*STEMS, *stems})}
        own = np.random.default_rng([seed, i]).normal(0, 0.2, len(stems))
        values = mean + np.array([noise[stem] for stem in stems]) + own
        columns = {"psnr_db": values, "ciede2000": 40 - values, "colorfulness": 30 + values}
        epoch = f"epoch_{5 * i:04d}"
        atomic.save(run_folder.epoch_path(run, 5 * i), {"epoch": i})
        stamp = run_folder.stamp(run, 5 * i, "key")
        per_image[epoch], rows[epoch] = columns, make_row(columns, stems, epoch) | {"stamp": stamp}
        rows[epoch]["colorfulness_truth"] = 60.0
    write_scores(run, rows, per_image, stems, protocol, "ciede2000", [])
    return run


def edit(run: Path, **changes: Any) -> None:
    stored = json.loads((run / "scores.json").read_text())
    atomic.write_json(run / "scores.json", {**stored, **changes})


def test_two_epochs_of_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("x")
    rows = compare((run, 5), (run, 10), force=False)
    found, _ = scores.read_per_image(run, ["epoch_0005", "epoch_0010"])
    ours, theirs = found["epoch_0005"], found["epoch_0010"]
    assert list(rows) == ["psnr_db", "ciede2000", "colorfulness"]
    for metric, row in rows.items():
        expected = summarise({"difference": ours[metric] - theirs[metric]})
        means = {"ours": float(ours[metric].mean()), "theirs": float(theirs[metric].mean())}
        assert row == {**means, **expected, "images": 20}
    assert rows["psnr_db"]["difference"] == pytest.approx(-1, abs=0.2)
    assert (
        rows["psnr_db"]["difference_high"] - rows["psnr_db"]["difference_low"] < 0.5
    )  # of pairs: 0.2, not 3
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["A: x epoch_0005", "B: x epoch_0010"]
    assert [line.split()[0] for line in printed[3:-1]] == list(rows)
    assert printed[-1] == "20 pictures in common, compared one by one"
    assert printed[3].endswith(", B is better")
    assert printed[4].endswith(", B is better")  # lower
    assert printed[5].endswith(", they differ")
    stored = json.loads((run / "comparison.json").read_text())
    sides = {"sides": ["x epoch_0005", "x epoch_0010"], "protocols": [identify(PROTOCOL)] * 2}
    assert stored == {**sides, "not_alike": [], "metrics": rows}


def test_the_other_way_round_is_the_same_with_its_sign_changed() -> None:
    run = make_run("x")
    one, other = compare((run, 5), (run, 10), False), compare((run, 10), (run, 5), False)
    for metric in one:
        assert one[metric]["difference"] == pytest.approx(-other[metric]["difference"])
        assert one[metric]["difference_low"] == pytest.approx(-other[metric]["difference_high"])


def test_best_against_best_is_the_default() -> None:
    ours, theirs = make_run("a"), make_run("b", psnr_db=(23.0, 20.0))
    rows = compare((ours, None), (theirs, None), force=False)
    assert json.loads((ours / "comparison.json").read_text())["sides"] == ["a epoch_0010", "b epoch_0005"]
    assert rows == compare((ours, "best"), (theirs, 5), force=False)
    assert not (theirs / "comparison.json").exists()
    assert rows["psnr_db"]["difference_high"] < 0


def test_an_epoch_and_its_copy_do_not_differ_at_all() -> None:
    ours, theirs = make_run("a"), make_run("b")
    for row in compare((ours, 10), (theirs, 10), force=False).values():
        assert [row[f"difference{end}"] for end in ("", "_se", "_low", "_high")] == [0.0] * 4
        assert row["ours"] == row["theirs"]


def test_pictures_are_matched_by_name_and_not_by_place() -> None:
    ours, theirs = (
        make_run("a"),
        make_run("b", stems=STEMS[::-1], protocol={**PROTOCOL, "file_list": "f" * 64}),
    )
    with pytest.raises(ValueError, match="file_list None and ffffffffffff"):
        compare((ours, 5), (theirs, 5), force=False)
    row = compare((ours, 5), (theirs, 5), force=True)["psnr_db"]
    assert row["difference_high"] - row["difference_low"] < 0.5


def test_different_protocols_are_refused_with_the_differences_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = {**PROTOCOL, "size": 64, "versions": {"torch": "2.16.0"}, "weights": {"alexnet": "b" * 64}}
    ours, theirs = make_run("a"), make_run("b", protocol=other)
    named = ["size 32 and 64", "torch 2.15.0 and 2.16.0", "weights of alexnet aaaaaaaaaaaa and bbbbbbbbbbbb"]
    with pytest.raises(ValueError, match=r"^runs/a and runs/b were not scored alike: .*--force$") as refused:
        compare((ours, 5), (theirs, 5), force=False)
    assert "; ".join(named) in str(refused.value)
    assert capsys.readouterr().out == ""
    assert not (ours / "comparison.json").exists()
    compare((ours, 5), (theirs, 5), force=True)
    assert capsys.readouterr().out.splitlines()[:3] == [f"not alike: {phrase}" for phrase in named]
    assert json.loads((ours / "comparison.json").read_text())["not_alike"] == named


def test_under_force_the_shared_pictures_alone_are_compared() -> None:
    protocol = {**PROTOCOL, "images": 15}
    ours, theirs = make_run("a"), make_run("b", stems=[*STEMS[8:], "q1", "q2", "q3"], protocol=protocol)
    rows = compare((ours, 5), (theirs, 5), force=True)
    assert rows["psnr_db"]["images"] == 12
    found, _ = scores.read_per_image(ours, ["epoch_0005"])
    assert rows["psnr_db"]["ours"] == pytest.approx(found["epoch_0005"]["psnr_db"][8:].mean())


def test_no_picture_in_common() -> None:
    ours, theirs = make_run("a"), make_run("b", stems=["q1", "q2"])
    with pytest.raises(ValueError, match=r"^the two have no picture in common"):
        compare((ours, 5), (theirs, 5), force=True)


def test_one_picture_has_a_difference_without_interval(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = make_run("a", stems=["p00"]), make_run("b", stems=["p00"], seed=1)
    row = compare((ours, 5), (theirs, 5), force=False)["psnr_db"]
    assert set(row) == {"ours", "theirs", "difference", "images"}
    assert "interval" not in capsys.readouterr().out.splitlines()[-1]


def test_an_epoch_is_not_compared_with_itself() -> None:
    run = make_run("x")
    for theirs in ((run, 10), (Path("runs/../runs/x").resolve(), None)):
        with pytest.raises(
            ValueError, match=r"^epoch_0010 of runs/x would be compared with itself; .*--against"
        ):
            compare((run, "best"), theirs, force=True)


def test_two_runs_of_one_name() -> None:
    ours, theirs = make_run("x"), make_run("old/x")
    with pytest.raises(ValueError, match=r"^runs/x and runs/old/x have one name; rename one"):
        compare((ours, 5), (theirs, 5), force=True)


def test_what_is_not_scored() -> None:
    ours, theirs = make_run("a"), make_run("b")
    atomic.save(run_folder.epoch_path(theirs, 15), {})
    with pytest.raises(
        ValueError, match=r"^epoch 15 of runs/b is not scored: python eval\.py --epoch 15 --run runs/b$"
    ):
        compare((ours, 5), (theirs, 15), force=False)
    with pytest.raises(ValueError, match=r"^epoch 7 is not saved in runs/b; saved: 5 10 15$"):
        compare((ours, 5), (theirs, 7), force=False)
    with pytest.raises(ValueError, match=r"^gone is not a run folder"):
        compare((ours, 5), (Path("gone"), None), force=False)
    (theirs / "scores.json").unlink()
    with pytest.raises(ValueError, match=r"^no scores in runs/b: python eval\.py --all-epochs --run runs/b$"):
        compare((ours, 5), (theirs, 5), force=False)


def test_what_was_trained_again_since() -> None:
    run = make_run("x")
    atomic.save(run_folder.epoch_path(run, 5), {"epoch": 99})
    with pytest.raises(ValueError, match=r"^epoch 5 of runs/x is not scored"):
        scored_epoch(run, 5)
    assert scored_epoch(run, 10) == "epoch_0010"


@pytest.mark.parametrize("damage", ["stamp", "protocol"])
def test_scores_that_lack_something_are_damaged(damage: str) -> None:
    ours, theirs = make_run("a"), make_run("b")
    stored = json.loads((theirs / "scores.json").read_text())
    del (stored["rows"]["epoch_0005"] if damage == "stamp" else stored)[damage]
    atomic.write_json(theirs / "scores.json", stored)
    with pytest.raises(ValueError, match=r"damaged|not scored"):
        compare((ours, 5), (theirs, 5), force=False)


def test_damaged_scores_are_named() -> None:
    ours, theirs = make_run("a"), make_run("b")
    (theirs / "scores_per_image.csv").write_text("name,stem\n")
    with pytest.raises(ValueError, match=r"^runs/b/scores_per_image\.csv is missing or damaged"):
        compare((ours, 5), (theirs, 5), force=False)
    (theirs / "scores.json").write_text("{")
    with pytest.raises(ValueError, match=r"^runs/b/scores\.json is damaged"):
        compare((ours, 5), (theirs, 5), force=False)


def test_per_image_scores_that_were_cut_off_are_not_compared() -> None:
    ours, theirs = make_run("a"), make_run("b", psnr_db=(20.0,))
    path = theirs / "scores_per_image.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-7]))
    with pytest.raises(ValueError, match=r"^runs/b/scores_per_image\.csv is missing or damaged"):
        compare((ours, 5), (theirs, 5), force=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("25", (Path("runs/x"), "25")),
        ("0025", (Path("runs/x"), "0025")),
        ("runs/b", (Path("runs/b"), None)),
        ("runs/b:25", (Path("runs/b"), "25")),
        ("b:c:25", (Path("b:c"), "25")),
        ("12:25", (Path("12"), "25")),
        ("runs/b:best", (Path("runs/b"), "best")),
        ("b:c", (Path("b:c"), None)),
        (":25", (Path(":25"), None)),
    ],
)
def test_an_opponent_is_a_run_an_epoch_or_both(text: str, expected: tuple[Path, str | None]) -> None:
    assert parse_opponent(text, Path("runs/x")) == expected


def test_a_folder_named_by_digits_is_a_folder() -> None:
    Path("25").mkdir()
    assert parse_opponent("25", Path("runs/x")) == (Path("25"), None)
    assert parse_opponent("26", Path("runs/x")) == (Path("runs/x"), "26")


def test_metrics_of_one_side_alone_are_left_out() -> None:
    one, other = np.array([1.0, 2.0]), np.array([1.0, 4.0])
    rows = paired({"ssim": one, "psnr_db": one, "colorfulness_truth": one}, {"ssim": other, "kid": other})
    assert list(rows) == ["ssim"]
    assert (rows["ssim"]["ours"], rows["ssim"]["theirs"], rows["ssim"]["difference"]) == (1.5, 2.5, -1.0)


@pytest.mark.parametrize(
    ("metric", "low", "high", "expected"),
    [
        ("psnr_db", 0.1, 0.2, "A is better"), ("psnr_db", -0.2, -0.1, "B is better"),
        ("ab_mse", 0.1, 0.2, "B is better"), ("ab_mse", -0.2, -0.1, "A is better"),
        ("psnr_db", -0.1, 0.2, "no difference shown"), ("ab_mse", 0.0, 0.0, "no difference shown"),
        ("top1", 0.0, 0.2, "no difference shown"), ("colorfulness", 0.1, 0.2, "they differ"),
    ],
)  # fmt: skip
def test_verdicts(metric: str, low: float, high: float, expected: str) -> None:
    assert verdict(metric, low, high) == expected
    assert metric in METRICS
