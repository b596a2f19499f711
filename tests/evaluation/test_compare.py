"""Two epochs or runs, image by image, and when they are not compared."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

from config import Recipe, UserError
from evaluation import best_epoch, scores
from evaluation.compare import compare, paired, parse_opponent, read_comparison, verdict, welch
from evaluation.scores import Score, identify, read_per_image, read_scores
from runtime import atomic
from runtime.run_folder import RunRecord, epoch_path, stamp, write_run

STEMS = [f"p{i:02d}" for i in range(20)]
PROTOCOL = {"images": 20, "size": 32, "versions": {"torch": "2.15.0"}, "weights": {"alexnet": "a" * 64}}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare intervals most of their time."""
    monkeypatch.setattr(scores, "RESAMPLES", 100)


def make_run(
    name: str,
    stems: list[str] = STEMS,
    psnr_db: tuple[float, ...] = (20.0, 21.0),
    protocol: dict[str, Any] = PROTOCOL,
    seed: int = 0,
    recipe: dict[str, Any] | None = None,
    **record: Any,
) -> Path:
    """Write a run whose epochs 5, 10 ... have about these PSNR; the highest is the best by CIEDE2000, too."""
    run = Path("runs", name)
    given = {"data": "demo", "fingerprints": {}, "mean_ab": (0.0, 0.0), **record}
    write_run(run, RunRecord(recipe=Recipe("x", **(recipe or {})), **given))
    gray = {"psnr_db": np.arange(len(stems), dtype=float), "ciede2000": np.full(len(stems), 12.0)}
    per_image, rows = {"gray": gray}, {"gray": scores.make_row("gray", gray, stems)}
    for i, mean in enumerate(psnr_db, 1):
        rng = np.random.default_rng(seed)  # a difficult image is difficult in every epoch
        noise = {stem: rng.normal(0, 3) for stem in sorted({*STEMS, *stems})}
        own = np.random.default_rng([seed, i]).normal(0, 0.2, len(stems))
        values = mean + np.array([noise[stem] for stem in stems]) + own
        columns = {"psnr_db": values, "ciede2000": 40 - values, "colorfulness": 30 + values}
        epoch = f"epoch_{5 * i:04d}"
        atomic.save(epoch_path(run, 5 * i), {"epoch": i})
        per_image[epoch], rows[epoch] = columns, scores.make_row(epoch, columns, stems)
        rows[epoch].stamp = stamp(run, 5 * i, "key")
        rows[epoch].scores |= {"colorfulness_truth": Score(60.0), "fid": Score(3.0 + i)}
    made = best_epoch.make_score_file(rows, per_image, protocol, "ciede2000", [])
    scores.write_scores(run, made, per_image, stems)
    return run


def stored(run: Path) -> dict[str, Any]:
    return json.loads((run / "comparison.json").read_text())


def test_two_epochs_of_one_run_and_the_form_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("x")
    found = compare([(run, 5)], [(run, 10)], force=False)
    per_image, _ = read_per_image(run, read_scores(run), ["epoch_0005", "epoch_0010"])
    ours, theirs = per_image["epoch_0005"], per_image["epoch_0010"]
    assert list(found.metrics) == ["psnr_db", "ciede2000", "colorfulness", "fid"]
    assert found.metrics["fid"] == (4.0, 5.0, Score(-1.0), 20)
    for metric in ("psnr_db", "ciede2000", "colorfulness"):
        row = found.metrics[metric]
        expected = scores.summarise({"": ours[metric] - theirs[metric]})[""]
        assert row == (float(ours[metric].mean()), float(theirs[metric].mean()), expected, 20)
    difference = found.metrics["psnr_db"].difference
    assert difference.mean == pytest.approx(-1, abs=0.2)
    assert difference.high - difference.low < 0.5  # of pairs, whose noise is 0.2, and not of images, 3
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["A: x epoch 5", "B: x epoch 10"]
    assert printed[2].split() == ["gray", "A", "B", "A", "-", "B", "95", "%", "interval"]
    assert [line.split()[0] for line in printed[3:7]] == [*found.metrics]
    assert [line.rsplit(", ")[-1] for line in printed[3:6]] == ["B is ahead", "B is ahead", "they differ"]
    assert printed[3].split()[1] == "9.5"  # gray
    assert printed[6].split() == ["fid", "-", "4", "5", "-1", "no", "interval"]
    assert printed[7].startswith("20 pictures in common, compared one by one: the intervals are over pictures.")
    assert "these two epochs of one run; another seed may differ by more" in printed[8]
    assert printed[9:] == []  # both epochs were named, none was chosen
    mean, se, low, high = found.metrics["psnr_db"].difference
    record = stored(run)
    assert record["metrics"]["psnr_db"] == {
        "ours": found.metrics["psnr_db"].ours, "theirs": found.metrics["psnr_db"].theirs, "difference": mean,
        "difference_se": se, "difference_low": low, "difference_high": high, "images": 20,
    }  # fmt: skip
    sides = [
        {"run": "x", "epoch": n, "chosen_by": None, "protocol": identify(PROTOCOL), "stamp": stamp(run, n, "key")}
        for n in (5, 10)
    ]
    assert {key: value for key, value in record.items() if key != "metrics"} == {
        "format": "tinct-comparison-1", "ours": sides[:1], "theirs": sides[1:], "not_alike": [], "images": 20,
        "baselines": {"gray": {"psnr_db": 9.5, "ciede2000": 12.0}},
    }  # fmt: skip
    assert read_comparison(run, read_scores(run)) == found


def test_a_comparison_of_earlier_scores_or_of_another_version_is_not_shown() -> None:
    run = make_run("x")
    assert read_comparison(run, read_scores(run)) is None
    found = compare([(run, 5)], [(run, 10)], force=False)
    later = read_scores(run)
    later.rows["epoch_0005"].stamp = "key other"  # trained again and scored
    assert read_comparison(run, later) is None
    assert read_comparison(run, replace(read_scores(run), protocol={**PROTOCOL, "size": 64})) is None
    assert read_comparison(run, read_scores(run)) == found
    atomic.write_json(run / "comparison.json", {"sides": ["x epoch_0005", "x epoch_0010"]})
    assert read_comparison(run, read_scores(run)) is None


def test_best_against_best_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = make_run("a"), make_run("b", psnr_db=(23.0, 20.0))
    found = compare([(ours, None)], [(theirs, None)], force=False)
    assert [(e.run, e.epoch, e.chosen_by) for e in (*found.ours, *found.theirs)] == [
        ("a", 10, "ciede2000"), ("b", 5, "ciede2000")
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "these two runs; another seed may differ by more" in said
    assert "is better" not in said
    assert "best epochs were chosen on these pictures too, by ciede2000" in said
    assert found.metrics == compare([(ours, "best")], [(theirs, 5)], force=False).metrics
    assert not (theirs / "comparison.json").exists()
    assert found.metrics["psnr_db"].difference.high < 0


def test_an_epoch_and_its_copy_do_not_differ_at_all() -> None:
    ours, theirs = make_run("a"), make_run("b")
    for metric, row in compare([(ours, 10)], [(theirs, 10)], force=False).metrics.items():
        assert row.difference == ((0.0, None, None, None) if metric == "fid" else (0.0, 0.0, 0.0, 0.0))
        assert row.ours == row.theirs


def test_images_are_matched_by_name_and_not_by_place() -> None:
    protocol = {**PROTOCOL, "file_list": "f" * 64}
    ours, theirs = make_run("a"), make_run("b", stems=STEMS[::-1], protocol=protocol)
    with pytest.raises(ValueError, match="file_list None and ffffffffffff"):
        compare([(ours, 5)], [(theirs, 5)], force=False)
    difference = compare([(ours, 5)], [(theirs, 5)], force=True).metrics["psnr_db"].difference
    assert difference.high - difference.low < 0.5


def test_different_protocols_are_refused_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    other = {**PROTOCOL, "size": 64, "versions": {"torch": "2.16.0"}, "weights": {"alexnet": "b" * 64}}
    ours, theirs = make_run("a"), make_run("b", protocol=other)
    named = ["size 32 and 64", "torch 2.15.0 and 2.16.0", "weights of alexnet aaaaaaaaaaaa and bbbbbbbbbbbb"]
    with pytest.raises(ValueError, match=r"runs/a and runs/b are not alike: .*--force") as refused:
        compare([(ours, 5)], [(theirs, 5)], force=False)
    assert "; ".join(named) in str(refused.value)
    assert capsys.readouterr().out == ""
    assert not (ours / "comparison.json").exists()
    compare([(ours, 5)], [(theirs, 5)], force=True)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == [f"not alike: {phrase}" for phrase in named]
    assert "equal names taken for equal pictures" in "".join(printed)
    assert stored(ours)["not_alike"] == named


def test_under_force_the_shared_images_alone_are_compared() -> None:
    protocol = {**PROTOCOL, "images": 15}
    ours, theirs = make_run("a"), make_run("b", stems=[*STEMS[8:], "q1", "q2", "q3"], protocol=protocol)
    row = compare([(ours, 5)], [(theirs, 5)], force=True).metrics["psnr_db"]
    assert row.images == 12
    found, _ = read_per_image(ours, read_scores(ours), ["epoch_0005"])
    assert row.ours == pytest.approx(found["epoch_0005"]["psnr_db"][8:].mean())
    with pytest.raises(ValueError, match="no picture in common"):
        compare([(ours, 5)], [(make_run("c", stems=["q1", "q2"]), 5)], force=True)


def test_one_image_has_a_difference_without_interval() -> None:
    ours, theirs = make_run("a", stems=["p00"]), make_run("b", stems=["p00"], seed=1)
    difference = compare([(ours, 5)], [(theirs, 5)], force=False).metrics["psnr_db"].difference
    assert difference == Score(difference.mean)
    assert set(stored(ours)["metrics"]["psnr_db"]) == {"ours", "theirs", "difference", "images"}


def test_sides_that_cannot_be_told_apart() -> None:
    run, namesake = make_run("x"), make_run("old/x")
    for theirs in ((run, 10), (Path("runs/../runs/x").resolve(), None)):
        with pytest.raises(ValueError, match="epoch_0010 of runs/x would be compared with itself"):
            compare([(run, "best")], [theirs], force=True)
    with pytest.raises(ValueError, match="runs/x and runs/old/x have one name"):
        compare([(run, 5)], [(namesake, 5)], force=True)


def test_what_is_not_scored() -> None:
    ours, theirs = make_run("a"), make_run("b")
    atomic.save(epoch_path(theirs, 15), {})
    with pytest.raises(ValueError, match=r"epoch 15 of runs/b is not scored: .*--epoch 15 --run runs/b"):
        compare([(ours, 5)], [(theirs, 15)], force=False)
    atomic.save(epoch_path(theirs, 10), {"epoch": 99})  # trained again since
    with pytest.raises(ValueError, match="epoch 10 of runs/b is not scored"):
        compare([(ours, 5)], [(theirs, 10)], force=False)
    with pytest.raises(ValueError, match="gone is not a run folder"):
        compare([(ours, 5)], [(Path("gone"), None)], force=False)
    (theirs / "scores.json").unlink()
    with pytest.raises(ValueError, match="no scores in runs/b"):
        compare([(ours, 5)], [(theirs, 5)], force=False)


def test_damaged_scores_are_named() -> None:
    ours, theirs = make_run("a"), make_run("b", psnr_db=(20.0,))
    path = theirs / "scores_per_image.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-7]))
    with pytest.raises(ValueError, match=r"runs/b/scores_per_image\.csv is missing or damaged"):
        compare([(ours, 5)], [(theirs, 5)], force=False)
    (theirs / "scores.json").write_text("{")
    with pytest.raises(ValueError, match=r"runs/b/scores\.json is damaged"):
        compare([(ours, 5)], [(theirs, 5)], force=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("25", (Path("runs/x"), "25")), ("runs/b", (Path("runs/b"), None)), ("12:25", (Path("12"), "25")),
        ("b:c:25", (Path("b:c"), "25")), ("runs/b:best", (Path("runs/b"), "best")),
        ("b:c", (Path("b:c"), None)), (":25", (Path(":25"), None)),
    ],
)  # fmt: skip
def test_an_opponent_is_a_run_an_epoch_or_both(text: str, expected: tuple[Path, str | None]) -> None:
    assert parse_opponent(text, Path("runs/x")) == expected
    Path("25").mkdir()
    assert parse_opponent("25", Path("runs/x")) == (Path("25"), None)  # a folder of that name


def test_metrics_of_one_side_alone_are_left_out_and_shares_are_bootstrapped() -> None:
    one, other = np.array([1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])
    found = paired({"top1": one, "psnr_db": one, "colorfulness_truth": one}, {"top1": other, "kid": other})
    assert list(found) == ["top1"]
    assert found["top1"].difference.low < 0 < found["top1"].difference.mean  # a difference is no share


@pytest.mark.parametrize(
    ("metric", "low", "high", "expected"),
    [
        ("psnr_db", 0.1, 0.2, "A is better"), ("psnr_db", -0.2, -0.1, "B is better"),
        ("ab_mse", 0.1, 0.2, "B is better"), ("ab_mse", -0.2, -0.1, "A is better"),
        ("psnr_db", -0.1, 0.2, "no difference shown"), ("top1", 0.0, 0.2, "no difference shown"),
        ("colorfulness", 0.1, 0.2, "they differ"), ("s0_ssim", 0.1, 0.2, "they differ"),
    ],
)  # fmt: skip
def test_verdicts(metric: str, low: float, high: float, expected: str) -> None:
    assert verdict(metric, low, high, over_runs=True) == expected
    assert verdict(metric, low, high, over_runs=False) == expected.replace("better", "ahead")


# Several runs per side.


def make_side(name: str, *psnr_db: float) -> list[tuple[Path, None]]:
    """Write one run of one epoch per mean PSNR; what one image adds is the same in all runs, as in real ones."""
    recipes = [{"seed": i} for i in range(len(psnr_db))]
    return [(make_run(f"{name}{i}", psnr_db=(psnr_db[i],), recipe=recipes[i]), None) for i in range(len(psnr_db))]


def test_two_seeds_of_one_recipe_do_not_make_one_side_better(capsys: pytest.CaptureFixture[str]) -> None:
    """Each pair of runs differs image by image far beyond chance; over runs nothing is shown."""
    ours, theirs = make_side("a", 20.0, 21.5, 23.0), make_side("b", 20.7, 22.2, 23.9)
    alone = compare(ours[:1], theirs[:1], force=False).metrics["psnr_db"].difference
    assert alone.high < -0.3
    assert "is better" not in capsys.readouterr().out
    found = compare(ours, theirs, force=False)
    assert found.is_over_runs
    difference = found.metrics["psnr_db"].difference
    assert difference.low < -2 < 0 < 1 < difference.high
    said = capsys.readouterr().out
    assert "no difference shown" in said
    assert "is better" not in said
    assert "3 runs against 3: the intervals are over runs" in said
    assert "another seed" not in said
    assert read_comparison(ours[0][0], read_scores(ours[0][0])) == found


def test_recipes_that_differ_more_than_their_runs_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(make_side("a", 20.0, 20.5, 21.0), make_side("b", 25.0, 25.4), force=False)
    assert "B is better" in capsys.readouterr().out
    row = found.metrics["psnr_db"]
    assert (row.ours, row.theirs) == pytest.approx((20.5, 25.2), abs=0.8)
    assert row.difference.high < 0
    assert found.metrics["fid"] == (4.0, 4.0, Score(0.0), 20)  # of equal values nothing follows for other runs


def test_the_interval_over_runs_is_welchs() -> None:
    ours, theirs = np.array([19.8, 20.4, 17.6, 17.8]), np.array([28.2, 26.6, 20.1, 23.3, 25.2])
    expected = ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert welch(ours, theirs)[2:] == pytest.approx((expected.low, expected.high))
    assert welch(ours, theirs)[:2] == pytest.approx((-5.78, np.sqrt(ours.var(ddof=1) / 4 + theirs.var(ddof=1) / 5)))
    assert welch(np.ones(2), np.full(3, 2.0)) == Score(-1.0)  # neither varies: no interval


def test_sides_that_are_no_several_trainings_are_refused() -> None:
    ours, theirs = make_side("a", 20.0, 21.0), make_side("b", 20.0, 21.0)
    with pytest.raises(UserError, match=r"two or more on each side: --run A1 A2 A3 --against B1 B2 B3"):
        compare(ours, theirs[:1], force=False)
    for again in ([theirs[0], (theirs[0][0], 5)], [theirs[0], ours[0]]):
        with pytest.raises(UserError, match="would be compared with itself"):
            compare(ours, again, force=False)
    twice = (make_run("two", recipe={"seed": 7}), 5)
    with pytest.raises(UserError, match="runs/two is named twice"):
        compare(ours, [twice, (twice[0], 10)], force=False)
    copied = (make_run("b2", psnr_db=(22.0,), recipe={"seed": 1, "log_every": 7}), None)
    with pytest.raises(UserError, match=r"b1 and b2 of one side have the same seed, 1; .*--force"):
        compare(ours, [theirs[1], copied], force=False)
    shared = make_run("b4", psnr_db=(22.0,), recipe={"seed": 4, "batch_size": 8}, processes=4), None  # 16 are default
    with pytest.raises(UserError, match="b1 and b4 of one side have batch_size 16 and 32"):
        compare(ours, [theirs[1], shared], force=False)
    longer = (make_run("b3", psnr_db=(22.0,), recipe={"seed": 3, "epochs": 7}), None)
    with pytest.raises(UserError, match=r"b1 and b3 of one side have epochs \d+ and 7"):
        compare(ours, [theirs[1], longer], force=False)
    assert compare(ours, [theirs[1], longer], force=True).not_alike
    apart = {
        "other training pictures": {"fingerprints": {"train": "other"}},
        r"begun with other weights, none and photo\.ts": {"init": "photo.ts"},
    }
    for seed, (problem, record) in enumerate(apart.items(), 5):
        run = make_run(f"b{seed}", psnr_db=(22.0,), recipe={"seed": seed}, **record)
        with pytest.raises(UserError, match=f"b1 and b{seed} of one side have {problem}"):
            compare(ours, [theirs[1], (run, None)], force=False)
    other = (make_run("b4", psnr_db=(22.0,), recipe={"seed": 4}, protocol={**PROTOCOL, "size": 64}), None)
    with pytest.raises(UserError, match="runs/a0, runs/a1, runs/b1 and runs/b4 are not alike: b4: size 32 and 64"):
        compare(ours, [theirs[1], other], force=False)
