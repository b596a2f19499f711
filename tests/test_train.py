"""Training as a user runs it: resume is exact, bad input ends in a sentence, nothing is lost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from torch import Tensor

import checkpoint
import gan
import train
from config import ROOT, make_recipe


def weights(run: Path, epoch: int) -> dict[str, Tensor]:
    return checkpoint.load(checkpoint.epoch_path(run, epoch))["generator"]


def assert_same_weights(first: Path, second: Path, epoch: int) -> None:
    one, other = weights(first, epoch), weights(second, epoch)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int, number: int = signal.SIGINT) -> None:
    """Let the process send itself a signal in the middle of a training step."""
    real, done = gan.train_step, []

    def step(*args: Any) -> dict[str, Tensor]:
        done.append(1)
        if len(done) == steps:
            signal.raise_signal(number)
        return real(*args)

    monkeypatch.setattr(train, "train_step", step)


@pytest.mark.parametrize("stop", [1, 2, 3, 5])  # 3 steps an epoch: within, at the end of, and into the second
@pytest.mark.parametrize("settings", [["ema=0.9", "schedule=linear"], ["precision=bf16", "dropout=0.5"]])
def test_resume_equals_uninterrupted(pictures: Path, stop: int, settings: list[str]) -> None:
    options = {
        **TINY,
        "set_": [*TINY["set_"], *settings],
        "epochs": 2,
        "recipe": "coco",
        "data": str(pictures),
    }
    whole = train.main(run=Path("whole"), **options)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, stop)
        with pytest.raises(SystemExit) as stopped:
            train.main(run=Path("parts"), **options)
    assert stopped.value.code == 128 + signal.SIGINT
    parts = train.main(run=Path("parts"), resume=True, device="cpu")
    assert_same_weights(whole, parts, 2)
    keep = ("steps", "G_l1", "G_gan", "D_real", "D_fake", "lr")
    losses = [[{key: record[key] for key in keep} for record in log_of(run)] for run in (whole, parts)]
    assert losses[0] == losses[1]  # the history has neither a gap nor a repetition


def test_killed_run_goes_on_from_its_last_checkpoint(pictures: Path) -> None:
    options = {**TINY, "recipe": "coco", "data": str(pictures), "save_every": 1}
    whole = train.main(run=Path("whole"), epochs=3, **options)
    parts = train.main(run=Path("parts"), epochs=3, **options)
    checkpoint.epoch_path(parts, 3).unlink()  # as if killed in epoch 2, its steps logged but nothing saved
    first = train.main(run=Path("first"), epochs=1, **options)
    os.replace(checkpoint.state_path(first), checkpoint.state_path(parts))
    assert_same_weights(whole, train.main(run=parts, resume=True, device="cpu"), 3)
    assert [record["steps"] for record in log_of(parts)] == [record["steps"] for record in log_of(whole)]


def test_how_often_samples_are_drawn_changes_no_weight(pictures: Path) -> None:
    often, seldom = (
        train.main(recipe="coco", data=str(pictures), run=name, epochs=2, save_every=every, **TINY)
        for name, every in (("often", 1), ("seldom", 2))
    )
    assert_same_weights(often, seldom, 2)


def test_more_epochs_on_resume(pictures: Path) -> None:
    run = train.main(recipe="coco", data=str(pictures), epochs=1, **TINY)
    train.main(run=run, resume=True, epochs=2, device="cpu")
    assert checkpoint.saved_epochs(run) == [1, 2]
    assert checkpoint.read_run(run)["recipe"]["epochs"] == 2


def test_run_folder_holds_what_the_design_says(trained: Path) -> None:
    assert checkpoint.saved_epochs(trained) == [1, 2]
    for name in ("checkpoints/state.pt", "samples/epoch_0002.png", "losses.png"):
        assert (trained / name).stat().st_size > 0
    record = checkpoint.read_run(trained)
    assert record["images"] == {"train": 12, "val": 4}
    assert record["recipe"]["seed"] == 42
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert len(log_of(trained)) == 6  # 3 steps of 4 images in each of 2 epochs, one record each
    assert {
        "epoch",
        "G_gan",
        "G_l1",
        "D_real",
        "D_fake",
        "images_per_s",
        "data_wait_percent",
        "memory_mb",
    } <= set(log_of(trained)[0])


def test_seed_decides_everything(pictures: Path) -> None:
    first, again, other = (
        train.main(recipe="coco", data=str(pictures), run=Path(name), epochs=1, seed=seed, **TINY)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert_same_weights(first, again, 1)
    assert any(not torch.equal(v, weights(other, 1)[k]) for k, v in weights(first, 1).items())


def test_nonfinite_loss_stops_and_keeps_the_checkpoint(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train.main(recipe="coco", data=str(pictures), epochs=1, **TINY)
    before = checkpoint.state_path(run).read_bytes()
    real = gan.train_step

    def broken(*args: Any) -> dict[str, Tensor]:
        return {**real(*args), "G_l1": torch.tensor(float("nan"))}

    monkeypatch.setattr(train, "train_step", broken)
    with pytest.raises(ValueError, match="G_l1 not finite by step 4; nothing was overwritten"):
        train.main(run=run, resume=True, epochs=2, device="cpu")
    assert checkpoint.state_path(run).read_bytes() == before
    assert checkpoint.saved_epochs(run) == [1]


def test_bad_file_is_skipped_and_listed(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for i, path in enumerate(sorted((pictures / split).rglob("p*"))):
            (tmp_path / "data" / split / f"{i}{path.suffix}").write_bytes(path.read_bytes())
    (tmp_path / "data" / "train" / "broken.jpg").write_bytes(b"not a picture")
    run = train.main(recipe="coco", data="data", epochs=1, **TINY)
    assert "skipped data/train/broken.jpg: not an image" in capsys.readouterr().out.splitlines()[-2]
    assert checkpoint.read_run(run)["images"]["train"] == 12


def test_pairs_are_seen_and_their_sketches_used(pictures: Path, tmp_path: Path) -> None:
    for i in range(6):
        colour = np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
        sketch = np.full((64, 64, 3), 255 - i, np.uint8)
        (tmp_path / "pairs").mkdir(exist_ok=True)
        Image.fromarray(np.concatenate([sketch, colour], 1)).save(tmp_path / "pairs" / f"{i}.png")
    run = train.main(recipe="anime", data="pairs", epochs=1, **{**TINY, "size": 64})
    assert checkpoint.read_run(run)["loading"]["pair"] == "BA"


def test_compiled_step_is_the_same_function(pictures: Path) -> None:
    recipe = make_recipe("coco", {"size": 32, "ngf": 4, "ndf": 4, "dropout": 0.0})
    x, y = torch.rand(2, 1, 32, 32), torch.rand(2, 2, 32, 32)
    amp = torch.autocast("cpu", enabled=False)
    terms = []
    for compiled in (False, True):
        training = gan.build_training(recipe, torch.device("cpu"), "fp32")
        if compiled:
            training.generator.compile(backend="aot_eager")  # the graph without the minute of C++ compilation
            training.discriminator.compile(backend="aot_eager")
        terms.append([gan.train_step(training, x, y, recipe, amp) for _ in range(2)][-1])
    for name, value in terms[0].items():
        torch.testing.assert_close(value, terms[1][name], rtol=1e-4, atol=1e-5)


def run_cli(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "train.py", *args], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_command_line_mistake_is_one_sentence(tmp_path: Path) -> None:
    done = run_cli("--recipe", "cocoa", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "train.py: no recipe cocoa; did you mean coco? (known: anime coco demo)",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"recipe": "coco"}, "recipe coco needs --data"),
        ({"recipe": "coco", "data": "nowhere"}, "no folder nowhere"),
        ({"recipe": "coco", "data": "empty"}, "no image in empty"),
        ({"set_": ["lambda_11=3"]}, "no recipe field lambda_11; did you mean lambda_l1"),
        ({"set_": ["lr=fast"]}, "lr takes a value of type float"),
        ({"set_": ["lr"]}, "--set takes key=value"),
        ({"size": 100, "set_": ["depth=4"]}, "depth must be"),
        ({"gan_mode": "wgan"}, "gan_mode must be one of"),
        ({"device": "tpu"}, "no device tpu"),
        ({"set_": ["precision=fp16"], "device": "cpu"}, "precision fp16 needs CUDA"),
        ({"run": Path("other")}, "other is not empty and not a run"),
        ({"run": Path("nothing"), "resume": True}, "nothing is not a run folder"),
        ({"resume": True}, "no run in runs/"),
    ],
)
def test_mistakes_are_found_before_any_work(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=sentence):
        train.main(**options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "other"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent() -> None:
    with pytest.raises(ValueError, match="torch sees 0 CUDA devices"):
        train.main(device="cuda")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"recipe": "coco", "data": "x"}, "already holds a run of recipe coco"),
        ({"recipe": "anime", "resume": True}, "was trained with recipe coco; a resume cannot make it anime"),
        (
            {"resume": True, "data": "elsewhere"},
            "was trained with data .*; a resume cannot make it .*elsewhere",
        ),
        ({"resume": True, "epochs": 1}, "has 2 epochs already"),
        ({"resume": True, "size": 64}, "trained with size 32; a resume cannot make it 64"),
    ],
)
def test_a_run_is_never_mixed_with_another(trained: Path, options: dict[str, Any], sentence: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    with pytest.raises(ValueError, match=sentence):
        train.main(run=trained, **options)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_dry_run_writes_nothing(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(recipe="coco", data=str(pictures), dry_run=True, **TINY)
    printed = capsys.readouterr().out
    assert "12 to train, 4 to validate" in printed
    assert "ngf = 4" in printed
    assert list(tmp_path.iterdir()) == []
