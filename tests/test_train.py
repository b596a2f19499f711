"""Training as a user runs it: resume is exact, bad input ends in a sentence, nothing is lost."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, TINY, run_stage, same_tensors, saved_weights
from PIL import Image
from torch import Tensor

import train
from config import RECIPES, UserError
from runtime import atomic, run_folder
from runtime.run_folder import read_run, state_path
from training import gan

pytestmark = pytest.mark.usefixtures("no_curves")  # but the `trained` run has them


def log_of(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run's log, without what depends on the machine."""
    speed = ("images_per_s", "data_wait_percent", "memory_mb")
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in speed} for record in records]


def files_of(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the process send itself a signal in the middle of a training step."""
    real, done = gan.train_step, []

    def step(*args: Any, **options: Any) -> dict[str, Tensor]:
        done.append(1)
        if len(done) == steps:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **options)

    monkeypatch.setattr(gan, "train_step", step)


STAGES = ["pretrain_epochs=1", "pretrain_lr=1e-3"]
ALL = ["schedule=linear", "ema=0.9", "lr_d=1e-3", "spectral_norm=true", "norm_d=none", "dropout=0.5"]


@pytest.mark.parametrize(
    ("recipe", "stop", "settings"),
    [
        ("coco", 2, ["precision=bf16", "dropout=0.5"]),
        *(("coco", stop, [*STAGES, *ALL]) for stop in (2, 3, 4)),  # 3 steps an epoch: around the boundary
        ("coco", 4, ["discriminator=none", "lambda_mse=1", "schedule=linear"]),
        pytest.param("coco", 1, ALL, marks=pytest.mark.slow),
        pytest.param("coco", 5, ALL, marks=pytest.mark.slow),
        pytest.param("coco", 3, ["precision=bf16", "dropout=0.5"], marks=pytest.mark.slow),
        ("restore", 4, ["generator=unet", "pretrained=false", "pretrain_epochs=0"]),
        ("manga", 4, ["input=gray+line", "lambda_perceptual=0", "load_size=40", "depth=3"]),
    ],
    ids=str,
)
def test_resume_equals_uninterrupted(pictures: Path, recipe: str, stop: int, settings: list[str]) -> None:
    options = {
        **TINY,
        "set_": [*TINY["set_"], *settings],
        "epochs": 2,
        "recipe": recipe,
        "data": str(pictures),
    }
    whole = train.main(run=Path("whole"), **options)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, stop)
        with pytest.raises(SystemExit) as stopped:
            train.main(run=Path("parts"), **options)
    assert stopped.value.code == 128 + signal.SIGINT
    parts = train.main(run=Path("parts"), resume=True, device="cpu")
    assert same_tensors(saved_weights(whole, 2), saved_weights(parts, 2))
    assert log_of(whole) == log_of(parts)  # the history has neither a gap nor a repetition
    discriminators = [atomic.load(state_path(run)).get("discriminator", {}) for run in (whole, parts)]
    assert same_tensors(*discriminators)


def test_a_run_that_ended_with_its_first_stage_goes_on_into_the_second(pictures: Path) -> None:
    options = {"recipe": "coco", "data": str(pictures), **TINY, "set_": [*TINY["set_"], *STAGES]}
    whole = train.main(run=Path("whole"), epochs=2, **options)
    parts = train.main(run=Path("parts"), epochs=1, **options)
    untrained = gan.build_gan(read_run(parts).recipe, CPU, "fp32").discriminator.state_dict()
    assert same_tensors(atomic.load(state_path(parts))["discriminator"], untrained)
    train.main(run=parts, resume=True, epochs=2, device="cpu")
    assert run_folder.saved_epochs(parts) == [1, 2]
    first, second = (atomic.load(state_path(run)) for run in (whole, parts))
    assert all(same_tensors(first[name], second[name]) for name in ("generator", "discriminator"))
    assert not same_tensors(first["discriminator"], untrained)


def test_batches_are_degraded_anew_in_every_step_of_the_run(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = gan.make_batch, []
    monkeypatch.setattr(gan, "make_batch", lambda *args: seen.append(args[-1]) or real(*args))
    train.main(recipe="coco", data=str(pictures), epochs=2, **TINY)
    assert seen == list(range(6))


def test_records_are_of_one_stage_each(pictures: Path) -> None:
    settings = ["ngf=4", "ndf=4", *STAGES, "log_every=2"]  # 3 steps an epoch
    run = train.main(recipe="coco", data=str(pictures), epochs=2, **{**TINY, "set_": settings})
    found = [(r["steps"], r["lr"], [k for k in r if k[:2] in ("G_", "D_")]) for r in log_of(run)]
    both = ["G_gan", "G_l1", "D_real", "D_fake"]
    assert found == [(2, 1e-3, ["G_l1"]), (3, 1e-3, ["G_l1"]), (4, 2e-4, both), (6, 2e-4, both)]


def test_killed_run_goes_on_from_its_last_checkpoint(pictures: Path) -> None:
    options = {**TINY, "recipe": "coco", "data": str(pictures), "save_every": 1}
    whole = train.main(run=Path("whole"), epochs=3, **options)
    parts = train.main(run=Path("parts"), epochs=3, **options)
    run_folder.epoch_path(parts, 3).unlink()  # as if killed in epoch 2, its steps logged but nothing saved
    first = train.main(run=Path("first"), epochs=1, **options)
    os.replace(run_folder.state_path(first), run_folder.state_path(parts))
    train.main(run=parts, resume=True, device="cpu")
    assert same_tensors(saved_weights(whole, 3), saved_weights(parts, 3))
    assert [record["steps"] for record in log_of(parts)] == [record["steps"] for record in log_of(whole)]


def test_how_often_samples_are_drawn_changes_no_weight(pictures: Path) -> None:
    often, seldom = (
        train.main(recipe="coco", data=str(pictures), run=name, epochs=2, save_every=every, **TINY)
        for name, every in (("often", 1), ("seldom", 2))
    )
    assert same_tensors(saved_weights(often, 2), saved_weights(seldom, 2))


def test_more_epochs_on_resume(pictures: Path) -> None:
    run = train.main(recipe="coco", data=str(pictures), epochs=1, **TINY)
    train.main(run=run, resume=True, epochs=2, device="cpu")
    assert run_folder.saved_epochs(run) == [1, 2]
    assert read_run(run).recipe.epochs == 2


def test_run_folder_holds_what_the_design_says(trained: Path) -> None:
    assert run_folder.saved_epochs(trained) == [1, 2]
    for name in ("checkpoints/state.pt", "samples/epoch_0002.png", "losses.png"):
        assert (trained / name).stat().st_size > 0
    record = read_run(trained)
    assert record.images == {"train": 12, "val": 4}
    assert record.recipe.seed == 42
    assert record.versions["torch"] == torch.__version__.partition("+")[0]
    assert len(log_of(trained)) == 6  # 3 steps of 4 images in each of 2 epochs, one record each
    terms = {"epoch", "G_gan", "G_l1", "D_real", "D_fake", "images_per_s", "data_wait_percent", "memory_mb"}
    assert terms <= json.loads((trained / "log.jsonl").read_text().splitlines()[0]).keys()


def test_seed_decides_everything(pictures: Path) -> None:
    first, again, other = (
        train.main(recipe="coco", data=str(pictures), run=Path(name), epochs=1, seed=seed, **TINY)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert same_tensors(saved_weights(first, 1), saved_weights(again, 1))
    assert not same_tensors(saved_weights(first, 1), saved_weights(other, 1))


def test_nonfinite_loss_stops_and_keeps_the_checkpoint(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train.main(recipe="coco", data=str(pictures), epochs=1, **TINY)
    before = run_folder.state_path(run).read_bytes()
    real = gan.train_step

    def broken(*args: Any, **options: Any) -> dict[str, Tensor]:
        return {**real(*args, **options), "G_l1": torch.tensor(float("nan"))}

    monkeypatch.setattr(gan, "train_step", broken)
    with pytest.raises(UserError, match="G_l1 not finite by step 4; nothing was overwritten"):
        train.main(run=run, resume=True, epochs=2, device="cpu")
    assert run_folder.state_path(run).read_bytes() == before
    assert run_folder.saved_epochs(run) == [1]


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
    assert read_run(run).images["train"] == 12


def test_pairs_are_seen_and_their_sketches_used(pictures: Path, tmp_path: Path) -> None:
    for i in range(6):
        colour = np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
        sketch = np.full((64, 64, 3), 255 - i, np.uint8)
        (tmp_path / "pairs").mkdir(exist_ok=True)
        Image.fromarray(np.concatenate([sketch, colour], 1)).save(tmp_path / "pairs" / f"{i}.png")
    run = train.main(recipe="anime", data="pairs", epochs=1, **{**TINY, "size": 64})
    assert read_run(run).loading["pair"] == "BA"


def test_a_mistake_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_stage("train", "--recipe", "cocoa") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: no recipe cocoa; did you mean coco?")
    assert list(tmp_path.iterdir()) == []


def test_list_recipes_prints_all_and_stops(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_stage("train", "--list-recipes") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["recipe", *RECIPES]
    assert list(tmp_path.iterdir()) == []


def test_published_weights_that_are_missing_are_found_before_any_work(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"^no resnet18-\w+\.pth in empty: it is published at https://.* --weights"
    ):
        train.main(recipe="coco-resnet", data=str(pictures), weights=Path("empty"), **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_resume_needs_the_weights_of_its_losses_alone(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(gan, "load_pretrained", lambda *args, fresh: asked.append((args[2], fresh)))
    run = train.main(recipe="coco", data=str(pictures), epochs=1, weights=Path("w"), **TINY)
    train.main(run=run, resume=True, epochs=2, device="cpu")
    assert [fresh for _, fresh in asked] == [True, False]
    assert [Path(folder).resolve() for folder, _ in asked] == [Path("w").resolve()] * 2  # the run remembers


def test_pictures_left_out_are_counted(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        for i, path in enumerate(sorted((pictures / split).rglob("p*"))):
            copy = Path("data", split, f"{i}.png")
            copy.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).convert("L" if split == "train" and i < 3 else "RGB").save(copy)
    options = {**TINY, "set_": [*TINY["set_"], "min_colorfulness=1"]}
    run = train.main(recipe="coco", data="data", epochs=1, **options)
    said = capsys.readouterr().out.splitlines()
    assert "left 3 near-gray pictures out of train (min_colorfulness)" in said
    assert not any("out of val" in line for line in said)
    assert read_run(run).images == {"train": 9, "val": 4}


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
        ({"set_": ["attention=8"]}, "attention must be 0 for generator unet"),
        ({"set_": ["discriminator=none", "pretrain_epochs=1"]}, "pretrain_epochs must be at most 0"),
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
    with pytest.raises(UserError, match=sentence):
        train.main(**options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "other"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent() -> None:
    with pytest.raises(UserError, match="torch sees 0 CUDA devices"):
        train.main(device="cuda")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recipe": "coco", "data": "x"}, "already holds a run"),
        ({"resume": True, "epochs": 1}, "has 2 epochs already"),
        ({"recipe": "anime", "resume": True}, "was trained with recipe coco; a resume cannot make it anime"),
    ],
)
def test_a_run_is_never_mixed_with_another(trained: Path, options: dict[str, Any], words: str) -> None:
    before = files_of(trained)
    with pytest.raises(UserError, match=words):
        train.main(run=trained, **options)
    assert files_of(trained) == before


def test_without_its_state_or_with_another_file_a_run_does_not_go_on(trained: Path) -> None:
    run = Path(shutil.copytree(trained, "run"))
    state_path(run).unlink()
    before = files_of(run)
    with pytest.raises(UserError, match=r"state\.pt is missing"):
        train.main(run=run, resume=True, device="cpu")
    assert files_of(run) == before
    shutil.copy(run_folder.epoch_path(run, 2), state_path(run))
    with pytest.raises(UserError, match="not a training state"):
        train.main(run=run, resume=True, epochs=3, device="cpu")


def test_dry_run_writes_nothing(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(recipe="coco", data=str(pictures), dry_run=True, **TINY)
    printed = capsys.readouterr().out
    assert "12 to train, 4 to validate" in printed
    assert "ngf = 4" in printed
    assert list(tmp_path.iterdir()) == []
