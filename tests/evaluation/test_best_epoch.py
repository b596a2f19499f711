"""Which epochs a stage works on, and which one is the best."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from config import METRICS, Recipe, UserError
from evaluation.best_epoch import best_epoch, choose_epochs
from evaluation.scores import Row, Score, ScoreFile, write_scores
from runtime import atomic, run_folder
from runtime.run_folder import RunRecord, epoch_path, write_run

RUN = Path("runs/x")
AGAIN = r"python eval\.py --all-epochs --run runs/x"
ROWS = ["epoch_0005", "epoch_0010", "epoch_0015"]


def save_epochs(*epochs: int) -> None:
    """Write a run with empty checkpoints."""
    write_run(RUN, RunRecord(recipe=Recipe("x"), data="demo", fingerprints={}, mean_ab=(0.0, 0.0)))
    for epoch in epochs:
        atomic.save(epoch_path(RUN, epoch), {})


def write_best(metric: str = "ssim") -> None:
    """Save epochs 5, 10 and 15, and scores by which 10 is the best by ssim, and 5 by psnr_db."""
    save_epochs(5, 10, 15)
    rows = {}
    for name in ROWS:
        scores = {"ssim": Score(0.5), "psnr_db": Score(20.0)}
        stamp = run_folder.stamp(RUN, int(name[-4:]), "key")
        rows[name] = Row(int(name[-4:]), scores, 3, missing={"fid": "unavailable: no pictures"}, stamp=stamp)
    best = {"ssim": "epoch_0010", "psnr_db": "epoch_0005"}
    protocol = {"versions": {}, "weights": {}}
    write_scores(RUN, ScoreFile(metric, best, [], dict(METRICS), protocol, [], rows), {}, [])


@pytest.mark.parametrize(
    ("epoch", "all_epochs", "chosen"),
    [(None, False, [15]), (5, False, [5]), ("0010", False, [10]), (None, True, [5, 10, 15]),
     ("best", False, [10])],
)  # fmt: skip
def test_choose_epochs(epoch: Any, all_epochs: bool, chosen: list[int]) -> None:
    write_best()
    assert choose_epochs(RUN, epoch, all_epochs) == chosen


@pytest.mark.parametrize("epoch", ["0", -5, "5.0", "", "Best", " 5"])
def test_what_is_no_epoch(epoch: str | int) -> None:
    save_epochs(5)
    with pytest.raises(UserError, match=rf"an epoch is a number from 1, or best; got {epoch}$"):
        choose_epochs(RUN, epoch, False)


def test_epochs_that_cannot_be_chosen() -> None:
    save_epochs()
    with pytest.raises(UserError, match=r"no saved epoch in runs/x; .*train.py --resume --run runs/x"):
        choose_epochs(RUN, None, False)
    save_epochs(10, 5)
    with pytest.raises(UserError, match=r"epoch 7 is not saved in runs/x; saved: 5 10"):
        choose_epochs(RUN, 7, False)
    with pytest.raises(UserError, match="--all-epochs and --epoch"):
        choose_epochs(RUN, 5, True)
    with pytest.raises(UserError, match=rf"no scores in runs/x: {AGAIN}"):
        choose_epochs(RUN, "best", False)


@pytest.mark.parametrize(("metric", "reason"), [("fid", "unavailable: no pictures"), ("lpips_alex", "not scored")])
def test_no_best_epoch_by_a_metric_that_is_missing(metric: str, reason: str) -> None:
    write_best(metric)
    with pytest.raises(UserError, match=rf"no best epoch by {metric} in runs/x: {reason}; .*{AGAIN}"):
        best_epoch(RUN)


@pytest.mark.parametrize("change", ["weights", "gone"])
def test_scores_that_are_older_than_the_best_checkpoint(change: str) -> None:
    write_best("psnr_db")
    os.utime(epoch_path(RUN, 5), (1, 1))  # as in a copy of the run
    assert best_epoch(RUN) == 5
    if change == "gone":
        epoch_path(RUN, 5).unlink()
    else:
        atomic.save(epoch_path(RUN, 5), {"weights": torch.ones(3)})
    with pytest.raises(UserError, match=rf"scores in runs/x are older than its checkpoints; .*{AGAIN}"):
        best_epoch(RUN)
