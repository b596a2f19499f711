"""stats.py: textbook intervals, parity with SciPy, and the same answer every time."""

import itertools
from math import sqrt

import numpy as np
import pytest
import scipy.stats

from evaluation import scores
from evaluation.scores import bootstrap, resampled_means, standard_error, summarise, wilson


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [
        (81, 263, (0.2553, 0.3662)),  # Newcombe 1998, table I, method 3
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (20, 20, (0.8389, 1.0)),
    ],
)
def test_wilson_is_that_of_the_textbook(successes: int, n: int, expected: tuple[float, float]) -> None:
    assert wilson(successes, n) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(3, 7), (50, 114), (1, 1)])
def test_wilson_by_hand(successes: int, n: int) -> None:
    z, p = 1.959964, successes / n
    middle, half = p + z**2 / (2 * n), z * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-6)


def test_standard_error_by_hand() -> None:
    scores = np.array([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    assert standard_error(scores).tolist() == pytest.approx([sqrt(7 / 3), 0.0])  # variance 14 / 2
    assert standard_error(scores) == pytest.approx(scipy.stats.sem(scores))


def test_bootstrap_draws_every_picture_equally_often() -> None:
    means = np.stack(list(resampled_means(np.eye(4))))  # shares of the four pictures in each draw
    assert means.shape == (scores.RESAMPLES, 4)
    assert means.sum(1) == pytest.approx(np.ones(scores.RESAMPLES))  # as many as there are, with replacement
    assert means.mean(0) == pytest.approx([0.25] * 4, abs=0.02)
    kinds = {tuple(sorted(row)) for row in means.tolist()}
    assert (0.0, 0.0, 0.0, 1.0) in kinds
    assert len({tuple(row) for row in means.tolist()}) == 35  # all multisets of 4 out of 4


def test_bootstrap_of_a_case_that_can_be_counted() -> None:
    scores = np.array([0.0, 1.0, 5.0, 30.0])
    means = np.array([np.mean(draw) for draw in itertools.product(scores, repeat=4)])  # all 256
    exact = np.quantile(means, [0.025, 0.975])
    low, high = bootstrap(scores[:, None])
    assert (low[0], high[0]) == pytest.approx(exact, abs=0.6)
    assert bootstrap(np.array([[0.0], [1.0]])) == ([0.0], [1.0])  # means 0, 1/2 and 1, a quarter of them 0


def test_bootstrap_matches_scipy() -> None:
    scores = np.random.default_rng(3).gamma(2.0, 3.0, 60)
    options = {"method": "percentile", "n_resamples": 20_000, "rng": np.random.default_rng(4)}
    expected = scipy.stats.bootstrap((scores,), np.mean, confidence_level=0.95, **options)
    low, high = bootstrap(scores[:, None])
    error = scipy.stats.sem(scores)
    assert low[0] == pytest.approx(expected.confidence_interval.low, abs=0.12 * error)
    assert high[0] == pytest.approx(expected.confidence_interval.high, abs=0.12 * error)


def test_intervals_contain_the_truth_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "RESAMPLES", 400)
    samples = np.random.default_rng(0).normal(10, 2, (40, 300))  # 300 samples of 40, each a column
    low, high = bootstrap(samples)
    assert 0.90 <= ((low <= 10) & (high >= 10)).mean() <= 0.98


def test_bootstrap_is_the_same_every_time() -> None:
    scores = np.random.default_rng(0).normal(0, 1, (30, 2))
    np.random.seed(1)  # noqa: NPY002
    first = bootstrap(scores)
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(bootstrap(scores), first)
    alone = [ends[0] for ends in bootstrap(scores[:, :1])]
    assert alone == pytest.approx([ends[0] for ends in first], rel=1e-12)  # whatever stands beside


def test_summary_of_columns() -> None:
    rng = np.random.default_rng(0)
    columns = {"psnr_db": rng.normal(20, 3, 50), "ssim": rng.random(50), "top1": (rng.random(50) < 0.7) * 1.0}
    row = summarise(columns)
    assert list(row) == [f"{name}{end}" for name in columns for end in ("", "_se", "_low", "_high")]
    for name, values in columns.items():
        assert row[name] == pytest.approx(values.mean())
        assert row[f"{name}_se"] == pytest.approx(scipy.stats.sem(values))
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
        assert type(row[f"{name}_low"]) is type(row[f"{name}_se"]) is type(row[name]) is float
    assert (row["ssim_low"], row["ssim_high"]) == pytest.approx(
        tuple(float(end[0]) for end in bootstrap(columns["ssim"][:, None]))
    )
    assert (row["top1_low"], row["top1_high"]) == wilson(int(columns["top1"].sum()), 50)


def test_hits_and_misses_get_wilsons_interval_even_where_all_are_hits() -> None:
    row = summarise({"top5": np.ones(10), "psnr_db": np.ones(10)})
    assert (row["top5_low"], row["top5_high"]) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert (row["psnr_db_low"], row["psnr_db_high"]) == (1.0, 1.0)


def test_a_single_picture_has_a_mean_alone() -> None:
    assert summarise({"psnr_db": np.array([21.0]), "top1": np.array([1.0])}) == {"psnr_db": 21.0, "top1": 1.0}


def test_no_difference_at_all_is_exactly_nothing() -> None:
    scores = np.random.default_rng(0).normal(20, 3, 25)
    row = summarise({"difference": scores - scores})
    assert set(row.values()) == {0.0}
