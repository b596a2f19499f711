"""Per-image scores -> means with what can be said of their precision."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

RESAMPLES = 2000  # of the bootstrap
CONFIDENCE = 0.95
SEED = 0  # of the resampling, so that one set of scores has one interval

Scores = NDArray[np.float64]


def resampled_means(scores: Scores) -> Iterator[Scores]:
    """Yield means (M,) of scores (N, M) over pictures drawn with replacement, the same ones every time."""
    rng = np.random.default_rng(SEED)
    n = len(scores)
    for _ in range(RESAMPLES):
        yield np.bincount(rng.integers(n, size=n), minlength=n) @ scores / n


def bootstrap(scores: Scores) -> tuple[Scores, Scores]:
    """Return the low and high ends (M,) of the means' 95 % intervals, from scores (N, M).

    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, percentile interval.
    """
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.stack(list(resampled_means(scores))), [tail, 1 - tail], axis=0)
    return low, high


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of successes. Source: Wilson 1927, computed by SciPy."""
    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def standard_error(scores: Scores) -> Scores:
    """Return the standard errors (M,) of the means of scores (N, M)."""
    return scores.std(0, ddof=1) / np.sqrt(len(scores))


def summarise(columns: dict[str, Scores]) -> dict[str, float]:
    """Return NAME, NAME_se, NAME_low and NAME_high for every column of per-image scores (N,).

    A column of hits and misses, top1 or top5, gets Wilson's interval, any other the bootstrap's. A single
    picture has a mean alone.
    """
    scores = np.stack(list(columns.values()), 1)  # (N, M)
    means = dict(zip(columns, scores.mean(0).tolist(), strict=True))
    if len(scores) < 2:
        return means
    low, high = bootstrap(scores)
    rows = {}
    for i, (name, error) in enumerate(zip(columns, standard_error(scores).tolist(), strict=True)):
        ends = (float(low[i]), float(high[i]))
        if name in ("top1", "top5"):
            ends = wilson(int(columns[name].sum()), len(scores))
        rows |= {name: means[name], f"{name}_se": error, f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return rows
