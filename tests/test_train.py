"""Training as a user runs it: resume is exact, bad input ends in a sentence, nothing is lost."""

import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY
from PIL import Image
from torch import Tensor

import train
from config import RECIPES, ROOT, make_recipe
from imaging import color
from runtime import atomic, run_folder
from training import gan


def weights(run: Path, epoch: int) -> dict[str, Tensor]:
    return atomic.load(run_folder.epoch_path(run, epoch))["generator"]


def assert_same_weights(first: Path, second: Path, epoch: int) -> None:
    one, other = weights(first, epoch), weights(second, epoch)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test that does not look at them the drawing of losses, half of a tiny run's time."""
    monkeypatch.setattr(train, "plot_losses", lambda *_: None)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int, number: int = signal.SIGINT) -> None:
    """Let the process send itself a signal in the middle of a training step."""
    real, done = gan.train_step, []

    def step(*args: Any) -> dict[str, Tensor]:
        done.append(1)
        if len(done) == steps:
            signal.raise_signal(number)
        return real(*args)

    monkeypatch.setattr(train, "train_step", step)


STAGES = ["pretrain_epochs=1", "pretrain_lr=1e-3"]


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize(
    ("recipe", "stop", "settings"),
    [
        *[("coco", stop, ["ema=0.9", "schedule=linear"]) for stop in (1, 3, 5)],
        *[("coco", stop, ["precision=bf16", "dropout=0.5"]) for stop in (2, 3)],
        *[
            ("coco", stop, STAGES) for stop in (2, 3, 4)
        ],  # 3 steps an epoch: before, at and after the boundary
        (
            "coco",
            3,
            [*STAGES, "schedule=linear", "ema=0.9", "lr_d=1e-3", "spectral_norm=true", "norm_d=none"],
        ),
        ("coco", 4, ["discriminator=none", "lambda_mse=1", "schedule=linear"]),
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
    assert_same_weights(whole, parts, 2)
    speed = ("images_per_s", "data_wait_percent", "memory_mb")
    losses = [
        [{k: v for k, v in record.items() if k not in speed} for record in log_of(r)] for r in (whole, parts)
    ]
    assert losses[0] == losses[1]  # the history has neither a gap nor a repetition


@pytest.mark.usefixtures("no_curves")
def test_a_run_that_ended_with_its_first_stage_goes_on_into_the_second(pictures: Path) -> None:
    options = {"recipe": "coco", "data": str(pictures), **TINY, "set_": [*TINY["set_"], *STAGES]}
    whole = train.main(run=Path("whole"), epochs=2, **options)
    parts = train.main(run=Path("parts"), epochs=1, **options)
    judge = atomic.load(run_folder.state_path(parts))["discriminator"]
    untrained = gan.build_training(make_recipe("coco", run_folder.read_run(parts)["recipe"] | {"name": None}),
                                   torch.device("cpu"), "fp32").discriminator.state_dict()  # fmt: skip
    assert all(torch.equal(value, untrained[key]) for key, value in judge.items())
    train.main(run=parts, resume=True, epochs=2, device="cpu")
    assert_same_weights(whole, parts, 2)
    both = [atomic.load(run_folder.state_path(run)) for run in (whole, parts)]
    for name in ("discriminator", "generator"):
        assert all(torch.equal(value, both[1][name][key]) for key, value in both[0][name].items())
    assert any(not torch.equal(value, untrained[key]) for key, value in both[0]["discriminator"].items())


@pytest.mark.usefixtures("no_curves")
def test_adam_starts_anew_with_the_second_stage_alone(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = gan.train_step, []

    def step(training: gan.Training, *args: Any) -> dict[str, Tensor]:
        states = training.optimizer_g.state.values()
        rate = training.optimizer_g.param_groups[0]["lr"]
        seen.append((training.epoch, max((int(state["step"]) for state in states), default=0), rate))
        return real(training, *args)

    monkeypatch.setattr(train, "train_step", step)
    settings = [*TINY["set_"], "pretrain_epochs=2", "pretrain_lr=1e-3"]
    train.main(recipe="coco", data=str(pictures), epochs=4, **{**TINY, "set_": settings})
    first = [(1 + i // 3, i, 1e-3) for i in range(6)]
    assert seen == [*first, *((3 + i // 3, i, 2e-4) for i in range(6))]


def test_records_are_of_one_stage_each(pictures: Path) -> None:
    settings = ["ngf=4", "ndf=4", "pretrain_epochs=1", "log_every=2"]  # 3 steps an epoch
    run = train.main(recipe="coco", data=str(pictures), epochs=2, **{**TINY, "set_": settings})
    found = [(r["steps"], [k for k in r if k[:2] in ("G_", "D_")]) for r in log_of(run)]
    assert found == [
        (2, ["G_l1"]), (3, ["G_l1"]), *((steps, ["G_gan", "G_l1", "D_real", "D_fake"]) for steps in (4, 6)),
    ]  # fmt: skip
    assert (run / "losses.png").stat().st_size > 0


def test_a_generator_alone_leaves_a_whole_run(pictures: Path) -> None:
    run = train.main(
        recipe="unet32", data=str(pictures), epochs=1, batch_size=4, device="cpu", set_=["ngf=4"]
    )
    assert run_folder.saved_epochs(run) == [1]
    assert not {"discriminator", "optimizer_d"} & atomic.load(run_folder.state_path(run)).keys()
    assert [k for k in log_of(run)[0] if k[:2] in ("G_", "D_")] == ["G_mse"]


@pytest.mark.usefixtures("no_curves")
def test_killed_run_goes_on_from_its_last_checkpoint(pictures: Path) -> None:
    options = {**TINY, "recipe": "coco", "data": str(pictures), "save_every": 1}
    whole = train.main(run=Path("whole"), epochs=3, **options)
    parts = train.main(run=Path("parts"), epochs=3, **options)
    run_folder.epoch_path(parts, 3).unlink()  # as if killed in epoch 2, its steps logged but nothing saved
    first = train.main(run=Path("first"), epochs=1, **options)
    os.replace(run_folder.state_path(first), run_folder.state_path(parts))
    assert_same_weights(whole, train.main(run=parts, resume=True, device="cpu"), 3)
    assert [record["steps"] for record in log_of(parts)] == [record["steps"] for record in log_of(whole)]


@pytest.mark.usefixtures("no_curves")
def test_how_often_samples_are_drawn_changes_no_weight(pictures: Path) -> None:
    often, seldom = (
        train.main(recipe="coco", data=str(pictures), run=name, epochs=2, save_every=every, **TINY)
        for name, every in (("often", 1), ("seldom", 2))
    )
    assert_same_weights(often, seldom, 2)


@pytest.mark.usefixtures("no_curves")
def test_more_epochs_on_resume(pictures: Path) -> None:
    run = train.main(recipe="coco", data=str(pictures), epochs=1, **TINY)
    train.main(run=run, resume=True, epochs=2, device="cpu")
    assert run_folder.saved_epochs(run) == [1, 2]
    assert run_folder.read_run(run)["recipe"]["epochs"] == 2


def test_run_folder_holds_what_the_design_says(trained: Path) -> None:
    assert run_folder.saved_epochs(trained) == [1, 2]
    for name in ("checkpoints/state.pt", "samples/epoch_0002.png", "losses.png"):
        assert (trained / name).stat().st_size > 0
    record = run_folder.read_run(trained)
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


@pytest.mark.usefixtures("no_curves")
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
    before = run_folder.state_path(run).read_bytes()
    real = gan.train_step

    def broken(*args: Any) -> dict[str, Tensor]:
        return {**real(*args), "G_l1": torch.tensor(float("nan"))}

    monkeypatch.setattr(train, "train_step", broken)
    with pytest.raises(ValueError, match="G_l1 not finite by step 4; nothing was overwritten"):
        train.main(run=run, resume=True, epochs=2, device="cpu")
    assert run_folder.state_path(run).read_bytes() == before
    assert run_folder.saved_epochs(run) == [1]


@pytest.mark.parametrize(
    ("given", "answer"), [("L", "ab"), ("L", "Lab"), ("L", "rgb"), ("gray", "rgb"), ("sketch", "rgb")]
)
@pytest.mark.parametrize("drawn", [False, True])
def test_a_batch_is_what_the_networks_take(given: str, answer: str, drawn: bool) -> None:
    recipe = make_recipe("coco", {"size": 32, "input": given, "output": answer})
    target = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    source = 255 - target if drawn else target
    batch = gan.make_batch(source, target, recipe, torch.device("cpu"), 3)
    assert torch.equal(batch.x, color.encode(source, given))
    assert torch.equal(batch.y, color.encode(target, answer))
    assert batch.target is target


def test_damage_is_of_the_input_alone_and_another_at_each_step() -> None:
    recipe = make_recipe("restore", {"size": 32, "grain_p": 1.0})
    target = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    first, again, later = (gan.make_batch(target, target, recipe, torch.device("cpu"), i) for i in (5, 5, 6))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, later.x)
    for batch in (first, later):
        assert torch.equal(batch.y, color.encode(target, "Lab"))
        assert not torch.equal(batch.x, batch.y[:, :1])


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
    assert run_folder.read_run(run)["images"]["train"] == 12


def test_pairs_are_seen_and_their_sketches_used(pictures: Path, tmp_path: Path) -> None:
    for i in range(6):
        colour = np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
        sketch = np.full((64, 64, 3), 255 - i, np.uint8)
        (tmp_path / "pairs").mkdir(exist_ok=True)
        Image.fromarray(np.concatenate([sketch, colour], 1)).save(tmp_path / "pairs" / f"{i}.png")
    run = train.main(recipe="anime", data="pairs", epochs=1, **{**TINY, "size": 64})
    assert run_folder.read_run(run)["loading"]["pair"] == "BA"


def test_compiled_step_is_the_same_function(pictures: Path) -> None:
    recipe = make_recipe("coco", {"size": 32, "ngf": 4, "ndf": 4, "dropout": 0.0})
    target = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    batch = gan.Batch(color.encode(target, "L"), color.encode(target, "ab"), target)
    amp = torch.autocast("cpu", enabled=False)
    terms = []
    for compiled in (False, True):
        training = gan.build_training(recipe, torch.device("cpu"), "fp32")
        if compiled:
            training.generator.compile(backend="aot_eager")  # the graph without the minute of C++ compilation
            training.discriminator.compile(backend="aot_eager")
        terms.append([gan.train_step(training, batch, recipe, amp) for _ in range(2)][-1])
    for name, value in terms[0].items():
        torch.testing.assert_close(value, terms[1][name], rtol=1e-4, atol=1e-5)


def run_cli(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """Run train.py as a command, within this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["train.py", *args])
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_command_line_mistake_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_cli(monkeypatch, "--recipe", "cocoa") == 2
    assert capsys.readouterr().err.splitlines() == [
        f"train.py: no recipe cocoa; did you mean coco? (known: {' '.join(sorted(RECIPES))})",
    ]
    assert list(tmp_path.iterdir()) == []


def test_list_recipes_prints_all_and_stops(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_cli(monkeypatch, "--list-recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["recipe", *RECIPES]
    assert len(lines) == 17
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
    monkeypatch.setattr(train, "load_pretrained", lambda *args, fresh: asked.append((args[2], fresh)))
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
    assert run_folder.read_run(run)["images"] == {"train": 9, "val": 4}


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
