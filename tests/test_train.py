"""Training as a user runs it: resume is exact, bad input ends in a sentence, nothing is lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPU, TINY, log_of, run_stage, same_tensors, saved_weights, stop_in, times_of
from torch import Tensor

import export
import models
import test as tester
import train
from config import RECIPES, ROOT, UserError
from runtime import atomic, run_folder
from runtime.locks import LOCK
from runtime.run_folder import read_records, read_run, saved_epochs, state_path
from training import gan, loop, setup

pytestmark = pytest.mark.usefixtures("no_curves")  # but the `trained` run has them
STAGES = ["pretrain_epochs=1", "pretrain_lr=1e-3"]
ALL = ["schedule=linear", "ema=0.9", "lr_d=1e-3", "spectral_norm=true", "norm_d=none", "dropout=0.5"]


@pytest.fixture
def run(trained: Path) -> Path:
    """Return a copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained, "run"))


@pytest.mark.parametrize(
    ("recipe", "stop", "settings"),
    [
        ("coco", 2, ["precision=bf16", "dropout=0.5"]),
        ("coco", 3, [*STAGES, *ALL]),  # 3 steps an epoch: at the boundary
        ("restore", 4, ["generator=unet", "pretrained=false", "pretrain_epochs=0", "load_size=40"]),
        *(pytest.param("coco", stop, [*STAGES, *ALL], marks=pytest.mark.slow) for stop in (2, 4)),
        *(pytest.param("coco", stop, ALL, marks=pytest.mark.slow) for stop in (1, 5)),
        pytest.param("manga", 4, ["input=gray+line", "lambda_perceptual=0", "depth=3"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_resume_equals_uninterrupted(pictures: Path, recipe: str, stop: int, settings: list[str]) -> None:
    given = {"recipe": recipe, "data": str(pictures), "epochs": 2}
    options = {**TINY, **given, "set_": [*TINY["set_"], *settings]}
    whole, parts = train.main(run=Path("whole"), **options), Path("parts")
    stop_in(gan, stop, lambda: train.main(run=parts, **options))
    train.main(run=parts, resume=True, device="cpu")
    assert same_tensors(saved_weights(whole, 2), saved_weights(parts, 2))
    assert log_of(whole) == log_of(parts)  # the history has neither a gap nor a repetition
    first, second = (atomic.load(state_path(run)) for run in (whole, parts))
    assert same_tensors(first["discriminator"], second["discriminator"])
    averaged = {f"module.{name}": value for name, value in saved_weights(whole, 2).items()}
    assert "ema" not in first or same_tensors(averaged | {"n_averaged": first["ema"]["n_averaged"]}, first["ema"])


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


def test_records_are_of_one_stage_each_and_batches_are_degraded_anew_in_every_step(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = gan.make_batch, []
    monkeypatch.setattr(gan, "make_batch", lambda *args: seen.append(args[4]) or real(*args))
    settings = ["ngf=4", "ndf=4", *STAGES, "log_every=2"]  # 3 steps an epoch
    run = train.main(recipe="coco", data=str(pictures), epochs=2, **{**TINY, "set_": settings})
    assert seen == list(range(6))
    found = [(r["steps"], r["lr"], [k for k in r if k[:2] in ("G_", "D_")]) for r in log_of(run)]
    both = ["G_gan", "G_l1", "D_real", "D_fake"]
    assert found == [(2, 1e-3, ["G_l1"]), (3, 1e-3, ["G_l1"]), (4, 2e-4, both), (6, 2e-4, both)]


def test_the_first_epochs_see_pictures_of_half_the_size(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = gan.train_step, []
    monkeypatch.setattr(gan, "train_step", lambda g, b, *a, **k: seen.append(b.y.shape[-1]) or real(g, b, *a, **k))
    settings = ["ngf=4", "ndf=4", "size=64", "depth=3", "half_epochs=1"]  # 3 steps an epoch
    given = {"recipe": "coco", "data": str(pictures), "epochs": 2}
    run = train.main(run=Path("run"), **given, **{**TINY, "set_": settings})
    size = read_run(run).recipe.size
    assert seen == [size // 2] * 3 + [size] * 3
    parts = Path("parts")
    stop_in(gan, 2, lambda: train.main(run=parts, **given, **{**TINY, "set_": settings}))
    train.main(run=parts, resume=True, device="cpu")
    assert same_tensors(saved_weights(run, 2), saved_weights(parts, 2))


def test_killed_run_goes_on_from_its_last_checkpoint(trained: Path, run: Path, pictures: Path) -> None:
    first = train.main(recipe="coco", data=str(pictures), run=Path("first"), epochs=1, **TINY)
    run_folder.epoch_path(run, 2).unlink()  # as if killed in epoch 2, its steps logged but nothing saved
    os.replace(state_path(first), state_path(run))
    train.main(run=run, resume=True, device="cpu")
    assert same_tensors(saved_weights(trained, 2), saved_weights(run, 2))
    assert log_of(run) == log_of(trained)


def test_a_kill_within_a_long_epoch_costs_little(
    pictures: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_INTERVAL_S", 0.0)
    real, done, run = gan.train_step, [], Path("run")

    def step(*args: Any, **options: Any) -> Any:
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt  # nothing is saved after it
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(gan, "train_step", step)
        with pytest.raises(KeyboardInterrupt):
            train.main(run=run, recipe="coco", data=str(pictures), epochs=2, **TINY)
    assert not saved_epochs(run)
    state = atomic.load(state_path(run))
    assert (state["epoch"], state["step"], state["steps"]) == (1, 2, 2)
    train.main(run=run, resume=True, device="cpu")
    assert same_tensors(saved_weights(trained, 2), saved_weights(run, 2))


@pytest.mark.parametrize("damage", ["half", "bit", "gone"])
def test_a_damaged_state_gives_way_to_the_one_before(
    trained: Path, run: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, path = state_path(run).read_bytes(), state_path(run)
    place = len(whole) // 2  # amid the weights
    changed = {"half": whole[:place], "bit": whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]}
    path.write_bytes(changed[damage]) if damage in changed else path.unlink()
    train.main(run=run, resume=True, device="cpu")
    assert "going on from state_previous.pt, which was saved before it" in capsys.readouterr().out
    assert same_tensors(saved_weights(trained, 2), saved_weights(run, 2))
    assert log_of(run) == log_of(trained)
    run_folder.previous_state_path(run).write_bytes(b"x")
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"state_previous\.pt is not a checkpoint"):
        train.main(run=run, resume=True, epochs=3, device="cpu")


def test_a_run_that_is_killed_before_its_first_state_loses_nothing(pictures: Path, trained: Path) -> None:
    settings = ["generator=lite-unet", "lambda_class=1", "discriminator=none", "samples=2"]
    options = {**TINY, "recipe": "coco", "data": str(pictures), "epochs": 1, "set_": settings}
    whole, parts = train.main(run=Path("whole"), **options), train.main(run=Path("parts"), **options)
    tuned = train.main(run=Path("tuned"), recipe="coco", data=str(pictures), epochs=1, init=str(trained), **TINY)
    weights = saved_weights(tuned, 1)
    for folder in (parts, tuned):
        shutil.rmtree(folder / "checkpoints")
        train.main(run=folder, resume=True, device="cpu")
    assert same_tensors(saved_weights(whole, 1), saved_weights(parts, 1))
    assert same_tensors(weights, saved_weights(tuned, 1))


def test_a_run_that_is_killed_while_it_saves_its_first_epoch_goes_on(
    pictures: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "save_samples", die)  # behind the epoch's file, before its state
        with pytest.raises(KeyboardInterrupt):
            train.main(recipe="coco", data=str(pictures), run=Path("parts"), epochs=2, save_every=1, **TINY)
    assert run_folder.saved_epochs(Path("parts")) == [1]
    train.main(run=Path("parts"), resume=True, device="cpu")
    assert same_tensors(saved_weights(trained, 2), saved_weights(Path("parts"), 2))
    assert log_of(Path("parts")) == log_of(trained)


def test_a_reader_that_goes_away_costs_no_step(pictures: Path, tmp_path: Path) -> None:
    options = ["--recipe", "coco", "--data", pictures, "--size", 32, "--batch-size", 4, "--epochs", 10**6]
    options += ["--device", "cpu", *(word for each in ("ngf=4", "ndf=4", "compile=false") for word in ("--set", each))]
    call = [sys.executable, ROOT / "train.py", *map(str, options), "--set", "log_every=1", "--set", "save_every=1000"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(call, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # before the first word
        log = tmp_path / "runs/coco/log.jsonl"
        while process.poll() is None and len(read_records(log)) < 3:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert (process.returncode, said) == (128 + signal.SIGTERM, "")
    assert atomic.load(state_path(Path("runs/coco")))["steps"] >= 3


def test_one_command_begins_a_run_and_goes_on_with_it(pictures: Path, trained: Path) -> None:
    given = {"recipe": "coco", "data": str(pictures), "run": Path("run"), "epochs": 2, "save_every": 1, **TINY}
    stop_in(gan, 4, lambda: train.main(resume=True, init=str(trained), **given))
    assert read_run(Path("run")).init == str(trained)
    assert not read_run(Path("run")).resumed
    train.main(resume=True, init=str(trained), **given)
    assert len(read_run(Path("run")).resumed) == 1
    with pytest.raises(UserError, match=r"^rum is not a run folder"):  # a wrong name, and nothing to begin with
        train.main(resume=True, run=Path("rum"))


def test_one_process_trains_a_run(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = times_of(run)
    with run_folder.owned(run), pytest.raises(UserError, match=rf"^{run} is trained by \S+ since 20\d\d-"):
        train.main(run=run, resume=True, epochs=3, device="cpu")
    assert times_of(run) == before
    Path("new").mkdir()
    Path("new", LOCK).write_text("box since noon")  # of a process that was killed while it decoded
    train.main(run=Path("new"), recipe="coco", data=str(pictures), epochs=1, **TINY)
    assert "its last owner, box since noon, was killed; taken over" in capsys.readouterr().out
    Path("newer").mkdir()
    for left in (run_folder.RENDER_LOCK, ".recipe.json.0123.tmp"):  # of one that was killed while it wrote its record
        Path("newer", left).touch()
    train.main(run=Path("newer"), recipe="coco", data=str(pictures), epochs=1, **TINY)
    assert not [*Path("newer").glob(".*")]


@pytest.mark.parametrize(
    ("resume", "words"), [(False, "already holds a run"), (True, "has just been trained by another")]
)
def test_a_run_that_another_process_writes_meanwhile_is_left_alone(
    trained: Path, pictures: Path, resume: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {}
    if resume:
        shutil.copytree(trained, "run")

    def meanwhile(self: setup.Setup, *_: object) -> str:
        if not resume:
            shutil.copytree(trained, "run")
        record = read_run(Path("run"))
        run_folder.write_run(Path("run"), replace(record, resumed=[{"images": record.images}]))
        before.update(times_of(Path("run")))
        return "contiguous"

    monkeypatch.setattr(setup.Setup, "settle_format", meanwhile)
    given = {"resume": True} if resume else {"recipe": "coco", "data": str(pictures), **TINY}
    with pytest.raises(UserError, match=words):
        train.main(run=Path("run"), epochs=3, **{**given, "device": "cpu"})
    assert times_of(Path("run")) == before


def test_what_is_ended_while_it_decodes_leaves_no_folder(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "load_images", lambda *_: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, lambda *_: None)  # or pytest would end with a code that has no such handler
        with pytest.raises(SystemExit) as stopped:
            train.main(recipe="coco", data=str(pictures), **TINY)
        assert stopped.value.code == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not Path("runs").exists()


def test_a_resume_keeps_the_batch_of_all_processes(run: Path) -> None:
    before = (run / "recipe.json").read_bytes()
    with pytest.raises(UserError, match=r"was trained with 4 pictures per step of all processes; .* cannot make it 8"):
        train.main(run=run, resume=True, epochs=3, global_batch=8, device="cpu")
    assert (run / "recipe.json").read_bytes() == before
    train.main(run=run, resume=True, epochs=3, global_batch=4, device="cpu")
    assert atomic.load(state_path(run))["batch"] == 4


def test_a_resume_with_other_batches_of_all_processes_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = atomic.load(state_path(run))
    atomic.save(state_path(run), {**state, "batch": 8})  # as two processes leave it
    train.main(run=run, resume=True, epochs=3, device="cpu")
    assert "8 pictures per step before, 4 now; --global-batch 8 keeps it" in capsys.readouterr().out


def test_a_run_inside_its_own_data_does_not_grow(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(pictures, "data")
    monkeypatch.chdir("data")
    for folder in ("train", "val"):
        for path in Path(folder).rglob("*.*"):
            path.rename(path.name)
    run = train.main(recipe="coco", data=".", epochs=1, **TINY)
    tester.main(run=run, device="cpu")
    train.main(run=run, resume=True, epochs=2, device="cpu")
    record = read_run(run)
    assert sum(record.images.values()) == 16
    assert [entry["fingerprints"] for entry in record.resumed] == [record.fingerprints]


def test_the_seed_decides_every_weight_and_how_often_samples_are_drawn_none(trained: Path, pictures: Path) -> None:
    options = {"recipe": "coco", "data": str(pictures), "epochs": 2, "save_every": 2, **TINY}
    seldom, other = (train.main(run=Path(str(seed)), seed=seed, **options) for seed in (42, 43))
    assert same_tensors(saved_weights(trained, 2), saved_weights(seldom, 2))
    assert not same_tensors(saved_weights(trained, 2), saved_weights(other, 2))


def test_run_folder_holds_what_the_design_says(trained: Path) -> None:
    assert run_folder.saved_epochs(trained) == [1, 2]
    for name in ("checkpoints/state.pt", "samples/epoch_0002.png", "losses.png"):
        assert (trained / name).stat().st_size > 0
    record = read_run(trained)
    assert (record.images, record.recipe.seed) == ({"train": 12, "val": 4}, 42)
    assert record.versions["torch"] == torch.__version__.partition("+")[0]
    records = read_records(trained / "log.jsonl")
    assert len(records) == 6  # 3 steps of 4 images in each of 2 epochs, one record each
    terms = {"epoch", "G_gan", "G_l1", "D_real", "D_fake", "images_per_s", "data_wait_percent", "memory_mb"}
    assert terms <= records[0].keys()


def test_nonfinite_loss_stops_and_keeps_the_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = state_path(run).read_bytes(), gan.train_step

    def broken(*args: Any, **options: Any) -> dict[str, Tensor]:
        return {**real(*args, **options), "G_l1": torch.tensor(float("nan"))}

    monkeypatch.setattr(gan, "train_step", broken)
    with pytest.raises(UserError, match="G_l1 not finite by step 7; nothing was overwritten"):
        train.main(run=run, resume=True, epochs=3, device="cpu")
    assert state_path(run).read_bytes() == before
    assert run_folder.saved_epochs(run) == [1, 2]


def test_a_step_that_is_not_finite_can_be_skipped(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = gan.make_batch, []

    def broken(*args: Any) -> gan.Batch:
        seen.append(1)
        batch = real(*args)
        return replace(batch, x=batch.x * float("nan")) if len(seen) in (2, 4) else batch

    monkeypatch.setattr(gan, "make_batch", broken)
    options = {**TINY, "recipe": "coco", "data": str(pictures), "epochs": 2, "set_": [*TINY["set_"], "ema=0.9"]}
    options["set_"] = [each.replace("log_every=1", "log_every=3") for each in options["set_"]]
    with pytest.raises(UserError, match=r"not finite by step 3; nothing was overwritten"):
        train.main(run=Path("stopped"), **options)
    seen.clear()
    run = train.main(run=Path("skipped"), on_nan="skip", **options)
    assert [record["skipped"] for record in read_records(run / "log.jsonl")] == [1, 1]
    state = atomic.load(state_path(run))
    assert all(value.isfinite().all() for name in ("generator", "ema") for value in state[name].values())
    assert max(float(part["step"]) for part in state["optimizer_g"]["state"].values()) == 4


def test_skipping_costs_no_bit_where_all_is_finite(pictures: Path, trained: Path) -> None:
    run = train.main(recipe="coco", data=str(pictures), epochs=2, save_every=1, on_nan="skip", **TINY)
    assert same_tensors(saved_weights(trained, 2), saved_weights(run, 2))
    assert log_of(run) == log_of(trained)


def test_a_generator_that_answers_every_picture_alike_is_named(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "MIN_LEARNED_STEPS", 1)
    train.main(recipe="coco", data=str(pictures), epochs=1, **TINY)
    assert "alike" not in capsys.readouterr().out
    settings = [*TINY["set_"], "lr=1e-12", "init=kaiming"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.INITS, "kaiming", lambda module: [p.data.zero_() for p in module.parameters()])
        train.main(recipe="coco", data=str(pictures), run=Path("x"), epochs=1, **{**TINY, "set_": settings})
    assert "epoch 1: the generator gives every picture the same colours" in capsys.readouterr().out


def test_list_recipes_has_a_row_per_recipe_with_published_counts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_stage("train", "--list-recipes") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert [*rows] == ["recipe", *RECIPES]
    for name, cells in {
        "coco": ("photo in Lab, pix2pix", "L -> ab", "54,409,856", "patch30", "1 gan + 100 l1", "256"),
        "manga-att-ext": ("59,924,868", "0.01 gan + 1 l1 + 0.09 perceptual + 0.01 anime"),
        "places-resnet": ("954,722", "none", "1 mse", "224"),
        "cgan": ("7,822,342", "L -> rgb", "convgen", "image-rgb"),
    }.items():
        assert all(cell in rows[name] for cell in cells), rows[name]
    assert list(tmp_path.iterdir()) == []


def test_published_weights_that_are_missing_are_found_before_any_work(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    wanted = r"^no resnet18-\w+\.pth in empty: it is published at https://.* --weights"
    with pytest.raises(UserError, match=wanted):
        train.main(recipe="coco-resnet", data=str(pictures), weights="empty", **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(("recipe", "used"), [("coco", False), ("manga", True), ("photo", True), ("manga-ext", True)])
def test_weights_that_training_does_not_read_are_named(
    recipe: str, used: bool, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("w").mkdir()
    train.main(recipe=recipe, data=str(pictures), weights="w", dry_run=True, device="cpu")
    said = "weights        w: not used, as this recipe reads none; eval.py --weights reads those of LPIPS"
    assert (said in capsys.readouterr().out.splitlines()) is not used


def test_a_resume_keeps_the_memory_format(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.setup.pick_format", lambda *_: "channels_last")
    run = train.main(recipe="coco", data=str(pictures), epochs=1, **TINY)
    assert read_run(run).memory_format == "channels_last"
    monkeypatch.setattr("training.setup.pick_format", lambda *_: "contiguous")
    train.main(run=run, resume=True, epochs=2, device="cpu")
    assert capsys.readouterr().out.count(", channels_last\n") == 2


def test_a_resume_compiles_as_its_run_did(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network, **_: compiled.append(network))
    monkeypatch.setattr("training.setup.pays_to_compile", lambda *_: True)
    monkeypatch.setattr("training.setup.can_compile", lambda _: True)
    run = train.main(recipe="coco", data=str(pictures), epochs=1, **TINY)
    assert read_run(run).compiled
    assert len(compiled) == 2  # generator and discriminator
    monkeypatch.setattr("training.setup.pays_to_compile", lambda *_: False)
    train.main(run=run, resume=True, epochs=2, device="cpu")
    assert len(compiled) == 4
    train.main(run=run, resume=True, audited=True, device="cpu")  # which looks at gradients that are not kept then
    assert len(compiled) == 4
    assert capsys.readouterr().out.count(", contiguous, compiled: the first step takes minutes") == 2


def test_a_resume_needs_the_weights_of_its_losses_alone(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    Path("w").mkdir()
    monkeypatch.setattr(gan, "load_pretrained", lambda *args, fresh: asked.append((args[2], fresh)))
    run = train.main(recipe="coco", data=str(pictures), epochs=1, weights="w", **TINY)
    train.main(run=run, resume=True, epochs=2, device="cpu")
    assert [fresh for _, fresh in asked] == [True, False]
    assert [Path(folder).resolve() for folder, _ in asked] == [Path("w").resolve()] * 2  # the run remembers


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"recipe": "coco"}, "recipe coco needs --data"),
        ({"recipe": "coco", "data": "nowhere"}, "no folder nowhere"),
        ({"recipe": "coco", "data": "empty"}, "no image in empty"),
        ({"set_": ["lambda_11=3"]}, "no recipe field lambda_11; did you mean lambda_l1"),
        ({"size": 100, "set_": ["depth=4"]}, "size must be a multiple of 16 at depth 4"),
        ({"gan_mode": "wgan"}, "gan_mode must be one of"),
        ({"device": "tpu"}, "no device tpu"),
        ({"set_": ["precision=fp16"], "device": "cpu"}, "precision fp16 needs CUDA"),
        ({"weights": Path("no/such/folder")}, "no folder no/such/folder: --weights takes the folder"),
        ({"set_": ["pair_folders=A"]}, "pair_folders must be COLOUR/SKETCH"),
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recipe": "coco", "data": "x"}, r"already holds a run; .*--resume"),
        ({"resume": True, "epochs": 1}, "has 2 epochs already"),
        ({"recipe": "anime", "resume": True}, "was trained with recipe coco; a resume cannot make it anime"),
    ],
)
def test_a_run_is_never_mixed_with_another(trained: Path, options: dict[str, Any], words: str) -> None:
    before = times_of(trained)
    with pytest.raises(UserError, match=words):
        train.main(run=trained, **options)
    assert times_of(trained) == before


def test_without_its_state_or_with_another_file_a_run_does_not_go_on(run: Path) -> None:
    state_path(run).unlink()
    run_folder.previous_state_path(run).unlink()
    before = times_of(run)
    with pytest.raises(UserError, match=r"state\.pt is missing"):
        train.main(run=run, resume=True, device="cpu")
    assert times_of(run) == before
    shutil.copy(run_folder.epoch_path(run, 2), state_path(run))
    with pytest.raises(UserError, match="not a training state"):
        train.main(run=run, resume=True, epochs=3, device="cpu")


def test_dry_run_writes_nothing(
    trained: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train.main(recipe="coco", data=str(pictures), dry_run=True, **TINY)
    assert folder == Path("runs/coco")
    printed = capsys.readouterr().out
    assert "12 to train, 4 to validate" in printed
    assert "ngf = 4" in printed
    assert train.main(dry_run=True) == Path("runs/demo")
    assert train.main(run=trained, dry_run=True) == trained  # which need not be free
    assert "goes on" not in capsys.readouterr().out
    train.main(run=trained, resume=True, dry_run=True, data=str(pictures))
    assert f"goes on        after epoch {saved_epochs(trained)[-1]} of" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^no nowhere\.ts: --init takes"):
        train.main(dry_run=True, init="nowhere.ts")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_pairs_are_named_and_announced(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("before", "After"):
        shutil.copytree(pictures / "train", Path("data", folder))
    call = ("train", "--recipe", "anime", "--data", "data", "--size", "64", "--dry-run", "--device", "cpu")
    assert run_stage(*call) == 2
    assert "--pair-folders COLOUR SKETCH" in capsys.readouterr().err
    assert run_stage(*call, "--pair-folders", "after", "before") == 0
    assert "(pairs, colour in After/, sketches in before/)" in capsys.readouterr().out


# --init


def begin(pictures: Path, init: str | Path, run: str = "tuned", **options: Any) -> Path:
    settings = [*TINY["set_"], "lr=1e-12", "dropout=0", *options.pop("set_", [])]
    given = {**TINY, "recipe": "coco", "data": str(pictures), "run": Path(run), "epochs": 1, **options}
    return train.main(**{**given, "set_": settings}, init=str(init))


def test_the_header_says_which_fields_followed_another(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    off = ["lambda_lpips=0", "pretrained=false", "metric=ciede2000"]
    train.main(recipe="photo", data=str(pictures), size=64, set_=off, dry_run=True, device="cpu")
    assert re.search(r"^settled +load_size 83, test_size 102$", capsys.readouterr().out, re.M)
    for split in ("train", "val"):
        shutil.copytree(pictures, tmp_path / "split" / split)
    given = {"recipe": "coco", "data": str(tmp_path / "split"), "dry_run": True, "device": "cpu"}
    with pytest.raises(UserError, match=r"^val_fraction has no effect here: the data has a folder val/"):
        train.main(**given, set_=["val_fraction=0.3"])


def test_a_run_starts_from_another_runs_epoch(pictures: Path, trained: Path) -> None:
    for init, epoch in ((trained, 2), (f"{trained}:1", 1)):
        run = begin(pictures, init, f"from-{epoch}")
        theirs, ours = saved_weights(trained, epoch), saved_weights(run, 1)
        weights = [name for name in theirs if name.endswith("weight")]
        assert all(torch.allclose(theirs[name], ours[name], atol=1e-9) for name in weights)
        assert read_run(run).init == f"{trained.resolve()}{f':{epoch}' if ':' in str(init) else ''}"


def test_the_network_of_photo_is_fine_tuned_from_a_file(pictures: Path) -> None:
    tiny = {"data": str(pictures), "device": "cpu", "epochs": 1}
    small = ["ngf=8", "size=32", "load_size=32", "batch_size=4", "pretrained=false", "lambda_lpips=0"]
    first = train.main(recipe="photo", run=Path("first"), set_=small, **tiny)
    export.main(run=first, out=Path("photo.ts"), trainable=True, precision="fp16", device="cpu")
    tuned = train.main(recipe="photo", run=Path("tuned"), set_=[*small, "lr=1e-12"], init="photo.ts", **tiny)
    theirs, ours = saved_weights(first, 1), saved_weights(tuned, 1)
    weights = [name for name in theirs if name.endswith("weight")]
    assert all(torch.allclose(theirs[name], ours[name], atol=1e-3) for name in weights)


def test_a_run_starts_from_a_network_that_normalises_by_the_batch(pictures: Path) -> None:
    batch = ["norm_stats=batch", "epochs=1"]
    first = train.main(
        **{**TINY, "run": Path("first"), "set_": [*TINY["set_"], *batch], "data": str(pictures), "recipe": "coco"}
    )
    export.main(run=first, out=Path("batch.ts"), trainable=True, device="cpu")
    for init in ("first", "batch.ts", "first/checkpoints/epoch_0001.pt"):
        ours = saved_weights(begin(pictures, init, f"from-{Path(init).name}", set_=batch), 1)
        theirs = saved_weights(first, 1)
        assert all(torch.allclose(theirs[name], ours[name], atol=1e-9) for name in theirs if name.endswith("weight"))


def test_a_model_says_what_it_was_started_from(pictures: Path, trained: Path) -> None:
    run = read_run(begin(pictures, str(trained), "fine"))
    assert run.trained_on == f"{pictures.name}, 12 pictures, from {trained.name}"


def test_quick_takes_the_batch_of_all_processes(pictures: Path) -> None:
    options = {"recipe": "unet32", "data": str(pictures), "epochs": 1, "device": "cpu"}
    run = train.main(**options, quick=True, global_batch=4)
    assert read_run(run).recipe.batch_size == 4
    with pytest.raises(UserError, match="give one of them"):
        train.main(**options, quick=True, global_batch=4, batch_size=2, run=Path("other"))


def test_a_run_starts_from_an_exported_file_that_can_be_trained_on(pictures: Path, trained: Path) -> None:
    for trainable in (True, False):
        export.main(run=trained, out=Path(f"{trainable}.ts"), trainable=trainable, device="cpu")
    ours, theirs = saved_weights(begin(pictures, "True.ts"), 1), saved_weights(trained, 2)
    assert all(torch.allclose(theirs[name], ours[name], atol=1e-9) for name in theirs if name.endswith("weight"))
    with pytest.raises(UserError, match=r"^False.ts cannot be trained on: export its run with --trainable, or name"):
        begin(pictures, "False.ts", "other")
    assert not Path("other").exists()


def test_what_cannot_be_started_from_is_named_before_any_work(pictures: Path, trained: Path) -> None:
    Path("x.ts").write_bytes(b"x")
    for init, sentence in (
        ("nothing:3", "no nothing: --init takes a generator.ts, or a run's folder"),
        ("x.ts", "x.ts is not a TorchScript file, or it is damaged"),
        (f"{trained}:9", "epoch 9 is not saved"),
    ):
        with pytest.raises(UserError, match=sentence):
            begin(pictures, init)
    fits = rf"^{trained} holds another network \(generator unet, not .* ngf 4, not 64.*\): it fits --recipe coco$"
    with pytest.raises(UserError, match=fits):
        train.main(recipe="unet32", data=str(pictures), run=Path("tuned"), device="cpu", init=str(trained))
    wider = rf"^{trained} holds another network \(ngf 4, not 8\): it fits --set ngf=4$"
    with pytest.raises(UserError, match=wider):
        begin(pictures, trained, set_=["ngf=8"])
    with pytest.raises(
        UserError, match=r"checkpoints holds checkpoints of a run, no published weights: .* --init RUN$"
    ):
        begin(pictures, trained, weights=trained / "checkpoints")
    with pytest.raises(UserError, match=r"^--init begins a new run"):
        train.main(resume=True, run=trained, init=str(trained))
    assert not Path("tuned").exists()
