"""Scoring: the table, the baselines, and what does not match."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

import checkpoint
import color
import train
from eval import best_epochs, main
from images import read_image, write_image
from test import main as render


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test that does not look at them the drawing of scores, half of its time."""
    monkeypatch.setattr("eval.plot_scores", lambda *_: None)


def load(path: Path) -> Tensor:
    """Return a picture as (1, 3, H, W) uint8."""
    return torch.from_numpy(read_image(path)).permute(2, 0, 1)[None]


def test_scores_all_epochs_and_baselines(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = main(run=run, all_epochs=True, device="cpu")
    assert list(rows) == ["gray", "mean_ab", "epoch_0001", "epoch_0002"]
    pairs = [
        (read_image(path), read_image(run / "outputs/epoch_0002" / path.name))
        for path in sorted((run / "targets").glob("*.png"))
    ]
    expected = np.mean([peak_signal_noise_ratio(*pair, data_range=255) for pair in pairs])
    assert rows["epoch_0002"]["psnr_db"] == pytest.approx(expected)
    assert rows["gray"]["colorfulness"] < 1 < rows["gray"]["colorfulness_truth"]
    assert rows["gray"]["colorfulness"] < rows["mean_ab"]["colorfulness"]
    printed = capsys.readouterr().out
    assert "best ab_mse (lower): epoch_000" in printed
    assert "fid unavailable: 4 test images" in printed
    assert (run / "curves.png").stat().st_size > 1000


@pytest.mark.usefixtures("no_curves")
def test_files_agree_with_what_is_returned(run: Path) -> None:
    rows = main(run=run, all_epochs=True, device="cpu")
    with open(run / "scores.csv", newline="") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    stored = json.loads((run / "scores.json").read_text())
    assert stored["rows"] == rows
    assert stored["best"] == best_epochs(rows)
    assert list(table) == list(rows)
    for name, row in rows.items():
        assert float(table[name]["ssim"]) == row["ssim"]
        assert table[name]["fid"] == ""  # unavailable is never a number


@pytest.mark.usefixtures("no_curves")
def test_one_epoch_keeps_the_rows_of_the_others(run: Path) -> None:
    both = main(run=run, all_epochs=True, device="cpu")
    assert main(run=run, epoch=1, device="cpu") == both


@pytest.mark.usefixtures("no_curves")
def test_other_data_drops_the_rows_of_the_first(run: Path, pictures: Path) -> None:
    main(run=run, all_epochs=True, device="cpu")
    rows = main(run=run, epoch=1, data=str(pictures / "train"), device="cpu")
    assert list(rows) == ["gray", "mean_ab", "epoch_0001"]


@pytest.mark.usefixtures("no_curves")
def test_a_checkpoint_written_again_is_rendered_again(run: Path) -> None:
    first = main(run=run, all_epochs=True, device="cpu")
    os.replace(checkpoint.epoch_path(run, 2), checkpoint.epoch_path(run, 1))
    again = main(run=run, all_epochs=True, device="cpu")
    assert again["epoch_0001"]["psnr_db"] == first["epoch_0002"]["psnr_db"] != first["epoch_0001"]["psnr_db"]


@pytest.mark.usefixtures("no_curves")
def test_what_was_rendered_of_other_data_is_not_scored_as_the_runs_own(run: Path, pictures: Path) -> None:
    own = main(run=run, epoch=1, device="cpu")
    render(run=run, epoch=1, data=str(pictures / "train"), device="cpu")
    assert main(run=run, epoch=1, device="cpu") == own


@pytest.mark.usefixtures("no_curves")
def test_a_row_that_does_not_say_of_which_checkpoint_it_is_is_dropped(run: Path) -> None:
    main(run=run, all_epochs=True, device="cpu")
    stored = json.loads((run / "scores.json").read_text())
    del stored["rows"]["epoch_0002"]["stamp"]
    checkpoint.write_json(run / "scores.json", stored)
    assert list(main(run=run, epoch=1, device="cpu")) == ["gray", "mean_ab", "epoch_0001"]


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("content", ["", "{", '{"best": {}}'])
def test_damaged_scores_say_so(run: Path, content: str) -> None:
    (run / "scores.json").write_text(content)
    with pytest.raises(ValueError, match=r"scores\.json is damaged; delete it and score again$"):
        main(run=run, epoch=1, device="cpu")


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("restore", ["generator=unet", "pretrained=false", "pretrain_epochs=0", "fading_p=1"]),
        ("manga", ["input=gray+line", "lambda_perceptual=0", "depth=3"]),
        ("nazerigan32", ["load_size=36"]),
    ],
)
def test_other_systems_are_scored_against_the_truth(recipe: str, settings: list[str], pictures: Path) -> None:
    options = {**TINY, "set_": [*TINY["set_"], *settings]}
    run = train.main(recipe=recipe, data=str(pictures), run=Path("other"), epochs=1, **options)
    rows = main(run=run, device="cpu")
    assert list(rows) == ["gray", "mean_ab", "epoch_0001"]
    assert rows["gray"]["images"] == 4
    for path in (run / "targets").glob("*.png"):  # the baselines are of the truth, not of a damaged input
        truth, gray = (color.encode(load(p), "L") for p in (path, run / "outputs/gray" / path.name))
        assert (truth - gray).abs().max() < 0.02


def test_best_epoch_follows_the_direction() -> None:
    base = {"psnr_db": 20.0, "ssim": 0.5, "ab_mse": 9.0, "colorfulness": 30.0, "colorfulness_truth": 40.0}
    base |= {"s0_psnr_db": 20.0, "s0_ssim": 0.5, "fid": "unavailable: why"}
    better = base | {"psnr_db": 21.0, "ab_mse": 8.0, "colorfulness": 45.0}
    best = best_epochs({"gray": base | {"psnr_db": 99.0}, "epoch_0001": base, "epoch_0002": better})
    assert {best["psnr_db"], best["ab_mse"], best["colorfulness"]} == {"epoch_0002"}
    assert best["ssim"] == "epoch_0001"
    assert "fid" not in best


@pytest.mark.usefixtures("no_curves")
def test_a_truth_rendered_as_output_scores_perfectly(run: Path) -> None:
    main(run=run, epoch=1, device="cpu")
    for path in (run / "targets").glob("*.png"):
        write_image(run / "outputs/epoch_0001" / path.name, read_image(path))
    row = main(run=run, epoch=1, device="cpu")["epoch_0001"]
    assert (row["psnr_db"], row["ssim"], row["ab_mse"]) == (100.0, pytest.approx(1.0), 0.0)
    assert row["colorfulness"] == row["colorfulness_truth"]


@pytest.mark.usefixtures("no_curves")
def test_missing_output_is_rendered_again(run: Path) -> None:
    before = main(run=run, epoch=1, device="cpu")
    (run / "outputs/epoch_0001/a__p13.png").unlink()
    assert main(run=run, epoch=1, device="cpu") == before


@pytest.mark.usefixtures("no_curves")
def test_output_of_another_size_is_named(run: Path) -> None:
    main(run=run, epoch=1, device="cpu")
    write_image(run / "outputs/epoch_0001/a__p13.png", np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"epoch_0001/a__p13\.png is \(16, 16\), its target \(32, 32\)"):
        main(run=run, epoch=1, device="cpu")
