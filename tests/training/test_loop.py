"""The loop: states, records that survive being cut off, signals, and what is saved when."""

import json
import math
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU
from torch import Tensor, nn

from config import AnyRecipe, ClassifierRecipe, Recipe, UserError
from data import ImageSet
from runtime import atomic, distributed
from runtime.device import device_name
from training.loop import Log, State, Status, fit, noted_signals, peak_memory_mb

PATH = Path("log.jsonl")


def state(**progress: int) -> State:
    """Return the state of a network of two weights."""
    torch.manual_seed(0)
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, 0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return State("kind-1", {"network": network, "optimizer": optimizer, "scaler": scaler}, CPU, **progress)


def terms(g: float, d: float) -> dict[str, Tensor]:
    return {"G_l1": torch.tensor(g), "D_real": torch.tensor(d)}


def written(path: Path = PATH) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# States


def test_a_state_comes_back_with_torchs_generator() -> None:
    first, second = state(epoch=3, step=2, steps=7), state()
    first.parts["network"](torch.ones(1, 1)).sum().backward()
    first.parts["optimizer"].step()
    torch.manual_seed(5)
    atomic.save(Path("state.pt"), first.state_dict())
    drawn = torch.rand(3)
    second.load_state_dict(atomic.load(Path("state.pt")))
    assert torch.equal(torch.rand(3), drawn)
    assert second.progress == {"epoch": 3, "step": 2, "steps": 7}
    assert torch.equal(second.parts["network"].weight, first.parts["network"].weight)
    assert second.parts["optimizer"].state_dict()["state"].keys() == {0, 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other-1"}, "not a training state in the format kind-1"),
        ({"network": {}}, "does not fit"),
        ({"network": nn.Linear(2, 1).state_dict()}, "does not fit"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "does not fit"),
    ],
)
def test_states_that_do_not_fit(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=rf"^state\.pt .*{words}"):
        state().load_state_dict({**state().state_dict(), **change})


def test_moments_of_another_shape_are_told_before_a_step_fails() -> None:
    first = state()
    first.parts["network"](torch.ones(1, 1)).sum().backward()
    first.parts["optimizer"].step()
    saved = first.state_dict()
    state().load_state_dict(saved)
    saved["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(1, 3)
    with pytest.raises(UserError, match=r"^state\.pt does not fit .*--init\)$"):
        state().load_state_dict(saved)


def test_weights_and_buffers_that_are_not_finite_are_found() -> None:
    good = state()
    good.parts["network"] = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    good.check_finite()
    for name in ("0.bias", "1.running_mean"):
        value = good.parts["network"].state_dict()[name]
        value.fill_(math.nan)
        with pytest.raises(UserError, match=r"the network has weights that are not finite.*--set lr="):
            good.check_finite()
        value.zero_()


# The log


def test_a_record_has_the_means_of_its_interval(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    log = Log(PATH, state(epoch=2, step=3, steps=7))
    log.flush()  # nothing to say
    assert written() == []
    log.add({"G_l1": torch.tensor(1.0)}, 16, 1.0)
    log.add({"G_l1": torch.tensor(3.0)}, 8, 0.0)
    now[0] += 4.0
    log.flush()
    log.add(terms(1.0, 3.0), 16, 0.0)  # another stage
    now[0] += 8.0
    log.flush()
    first, second = written()
    expected = {"epoch": 2, "step": 3, "steps": 7, "G_l1": 2.0, "lr": 1e-3}
    expected |= {"images": first["images"], "images_per_s": 6.0, "data_wait_percent": 25.0}
    assert first == {**expected, "memory_mb": first["memory_mb"], "device": device_name(CPU)}
    assert (second["G_l1"], second["D_real"]) == (1.0, 3.0)
    assert second["images"] == 16
    assert (second["images_per_s"], second["data_wait_percent"]) == (2.0, 0.0)
    assert capsys.readouterr().out == ""


def watch(
    recipe: AnyRecipe, images: int, seconds: list[float], patch: pytest.MonkeyPatch, compiled: bool = False,
    epoch: int = 1, steps: int = 0,
) -> None:  # fmt: skip
    """Let a Status see steps that take so long each."""
    now = [100.0]
    patch.setattr("time.monotonic", lambda: now[0])
    made = state(epoch=epoch, step=0, steps=steps, compiled=compiled)
    status = Status(made, recipe, steps=images // recipe.batch_size, images=images)
    for i, took in enumerate(seconds):
        now[0] += took
        made.step, made.steps = made.step + 1, made.steps + 1
        status.add(terms(1.0, float(i)))


def test_status_lines_come_by_time_and_say_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch(Recipe("x", epochs=3, batch_size=4), 120, [5.0, *[2.0] * 39], monkeypatch)  # the first step is slower
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "3 epochs of 120 pictures: about 3 min here; Ctrl-C keeps what is done"  # 84 steps of 2 s
    assert said[1] == "epoch 1/3 | L1 1 D-real 1 | 1.3 images/s | 3 min left"  # 3 steps, in 9 s
    assert said[2] == "epoch 1/3 | L1 1 D-real 17.5 | 2.0 images/s | 2 min left"  # the next 60 s: steps 4 to 33
    assert len(said) == 3


def test_a_resume_says_how_long_the_rest_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe("x", epochs=40, batch_size=4)
    watch(recipe, 120, [60.0] * 10, monkeypatch, epoch=31, steps=900)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("the rest of 40 epochs of 120 pictures, from epoch 31 on: about 5.0 h here")
    assert "--quick" not in first
    watch(recipe, 120, [60.0] * 10, monkeypatch)
    assert capsys.readouterr().out.splitlines()[0].endswith("--quick")


def test_steps_on_halved_pictures_count_as_half(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch(Recipe("x", epochs=4, half_epochs=2, batch_size=4), 120, [1.0] * 10, monkeypatch)  # 30 steps an epoch
    whole, halves = 60 * 2, 60 - 10  # s that are left
    minutes = round((whole + halves) / 60)
    assert capsys.readouterr().out.startswith(f"4 epochs of 120 pictures: about {minutes} min here")


def test_steps_of_the_generator_alone_count_as_two_thirds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch(Recipe("x", epochs=4, pretrain_epochs=3, batch_size=4), 120, [0.66] * 10, monkeypatch)  # 30 steps an epoch
    assert capsys.readouterr().out.startswith("4 epochs of 120 pictures: about 83 s here")  # 80 * 0.66 + 30
    watch(Recipe("x", epochs=4, pretrain_epochs=3, half_epochs=1, batch_size=4), 120, [0.33] * 10, monkeypatch)
    assert capsys.readouterr().out.startswith("4 epochs of 120 pictures: about 76 s here")  # 20 * 0.33 + 60 * 0.66 + 30


def test_a_slow_first_step_is_told_of_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch(Recipe("x", epochs=2, batch_size=4), 120, [16.0], monkeypatch)
    said = capsys.readouterr().out.splitlines()
    whole, look = (
        "2 epochs of 120 pictures: about 16 min here",
        "for a first look in minutes: --quick",
    )
    assert said == [f"{whole}, if all steps are like the first; Ctrl-C keeps what is done; {look}"]
    watch(ClassifierRecipe(epochs=2, batch_size=4), 120, [16.0, 4.0], monkeypatch)  # which has no --quick
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == f"{whole}, if all steps are like the first; Ctrl-C keeps what is done"
    assert second == "2 epochs of 120 pictures: about 4 min here; Ctrl-C keeps what is done"
    watch(Recipe("x", epochs=2, batch_size=4), 120, [160.0], monkeypatch, compiled=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("fields", "real", "fake", "told"),
    [
        ({}, 0.01, 0.01, True), ({}, 0.01, 0.2, False), ({"label_real": 0.9}, 0.33, 0.01, True),
        ({"label_real": 0.9}, 0.5, 0.01, False), ({"gan_mode": "hinge"}, 0.0, 0.0, True),
    ],
)  # fmt: skip
def test_a_discriminator_that_has_won_for_long_is_named(
    fields: dict[str, Any], real: float, fake: float, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    status = Status(state(), Recipe("x", **fields), steps=1000, images=10)
    seen = {"D_real": torch.tensor(real), "D_fake": torch.tensor(fake)}
    for _ in range(2):
        status.add(seen)
    for _ in range(6):
        status.done, status.sums = status.done + 1, seen
        status.say()
    lines = capsys.readouterr().out.splitlines()
    assert [i for i, line in enumerate(lines) if "the discriminator has won: " in line] == ([4, 5] if told else [])


def test_what_is_left_counts_steps_of_the_size_that_is_now(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in (30, 4000):  # in one process, or before a resume with as many pictures per step as an epoch has
        watch(Recipe("x", epochs=3, batch_size=4), 120, [2.0] * 39, monkeypatch, epoch=2, steps=steps)
    said = capsys.readouterr().out.splitlines()
    assert said[: len(said) // 2] == said[len(said) // 2 :]
    assert said[1].endswith("images/s | 2 min left")  # 56 steps of 2 s


def test_a_plan_of_days_says_so_after_ten_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch(Recipe("x", epochs=950, batch_size=1), 1485, [0.75] * 10, monkeypatch)
    line = "950 epochs of 1,485 pictures: about 12 days here; Ctrl-C keeps what is done; "
    line += "for a first look in minutes: --quick"
    assert capsys.readouterr().out.splitlines() == [line]


@pytest.mark.parametrize(
    ("steps", "kept", "tail"), [(0, [], ""), (20, [10, 20], '{"steps": 30, "G_'), (25, [10, 20], "\0\0\0")]
)
def test_reopening_drops_later_records_and_a_line_that_was_cut_off(steps: int, kept: list[int], tail: str) -> None:
    lines = [json.dumps({"steps": step, "G_l1": 0.5}) + "\n" for step in (10, 20, 30)]
    PATH.write_text("".join(lines) + tail)
    Log(PATH, state(steps=steps))
    assert [record["steps"] for record in written()] == kept


def test_a_loss_that_is_not_finite_stops_with_advice() -> None:
    log = Log(PATH, state(steps=7))
    log.add(terms(1.0, math.inf), 4, 0.0)
    with pytest.raises(UserError, match=r"^D_real not finite by step 7; .*--set lr="):
        log.flush()
    assert written() == []


def test_a_step_that_is_skipped_is_not_in_the_means() -> None:
    log = Log(PATH, state(steps=7), skip=True)
    for g, d in ((1.0, 2.0), (3.0, 4.0), (5.0, math.nan)):
        log.add(terms(g, d), 4, 0.0)
    log.flush()
    (record,) = written()
    assert (record["G_l1"], record["D_real"], record["skipped"]) == (pytest.approx(2.0), pytest.approx(3.0), 1)
    log.add(terms(math.inf, 1.0), 4, 0.0)
    with pytest.raises(UserError, match=r"not finite by step 7"):  # nothing but such steps
        log.flush()


def test_one_process_whose_losses_are_not_finite_spoils_the_steps_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    other = [False, True, False]  # the flags of another process
    monkeypatch.setattr(distributed, "gather", lambda own: [own, other])
    log = Log(PATH, state(steps=7), skip=True)
    for g in (1.0, 3.0, 5.0):
        log.add(terms(g, 1.0), 4, 0.0)
    log.flush()
    assert written()[0]["skipped"] == 2
    other[1] = False
    for g in (1.0, 3.0, 5.0):
        log.add(terms(g, 1.0), 4, 0.0)
    with pytest.raises(UserError, match=r"not finite by step 7"):
        log.flush()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="asks Linux")
def test_a_full_disk_names_the_log() -> None:
    log = Log(PATH, state())
    PATH.unlink()
    PATH.symlink_to("/dev/full")
    log.add(terms(1.0, 2.0), 4, 0.0)
    with pytest.raises(OSError, match="No space left on device") as raised:
        log.flush()
    assert raised.value.filename == str(PATH)


def test_peak_memory_is_plausible() -> None:
    assert 50 < peak_memory_mb(CPU) < 1e6


# Signals


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_first_signal_is_noted_and_a_second_or_an_error_stops_at_once() -> None:
    before = handlers()
    with noted_signals() as caught:
        assert caught == []
        assert set(handlers()).isdisjoint(before)
        signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGINT]
    assert handlers() == before
    with pytest.raises(KeyboardInterrupt), noted_signals():  # noqa: PT012 - the second is what raises
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert handlers() == before
    with pytest.raises(RuntimeError, match="a bug"), noted_signals():
        raise RuntimeError("a bug")
    assert handlers() == before


def test_a_hangup_is_noted_unless_nohup_asks_for_the_contrary() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with noted_signals() as caught:
            for number in (
                signal.SIGHUP,
                signal.SIGHUP,
                signal.SIGTERM,
            ):  # a closed terminal sends two
                signal.raise_signal(number)
        assert caught == [signal.SIGHUP, signal.SIGHUP, signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with noted_signals() as caught:
            signal.raise_signal(signal.SIGHUP)
        assert caught == []
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_other_threads_leave_handlers_alone() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with noted_signals() as caught:
            seen.append((caught, handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [([], before)]


# The loop itself

RECIPE = ClassifierRecipe(size=8, batch_size=4, epochs=5, save_every=2, log_every=100)
IMAGES = ImageSet(
    [str(i) for i in range(12)], [""] * 12, np.zeros(0, np.uint8), np.zeros((12, 3), np.int64), 3, [], 0, ""
)


def run_loop(seen: list[Any], stop: int = 0, last_of_stage: int = 0, **changes: Any) -> State:
    """Run the loop with steps that do nothing but note themselves; a signal comes in step `stop`."""
    current = state()
    images = replace(IMAGES, **changes)

    def batches(epoch: int, start: int, signals: list[int]) -> Iterator[tuple[int, int]]:
        yield from ((epoch, step) for step in range(start, 3))

    def step(batch: tuple[int, int]) -> dict[str, Tensor]:
        seen.append(batch)
        if current.steps + 1 == stop:
            signal.raise_signal(signal.SIGTERM)
        return {"G_l1": torch.tensor(1.0)}

    def save(epoch: int) -> None:
        seen.append(("saved", epoch))

    def show(epoch: int) -> str:
        assert atomic.load(Path("checkpoints/state.pt"))["epoch"] == epoch + 1  # nothing is lost where it fails
        seen.append(("shown", epoch))
        return "all is gray" if epoch == 2 else ""

    if Path("checkpoints/state.pt").exists():
        current.load_state_dict(atomic.load(Path("checkpoints/state.pt")))
    fit(Path(), RECIPE, current, {"train": images}, batches, step, save, show, "python stage.py", last_of_stage)
    return current


def test_every_epoch_is_trained_and_saved_when_due() -> None:
    seen: list[Any] = []
    assert run_loop(seen).progress == {"epoch": 6, "step": 0, "steps": 15}
    assert [step for step in seen if isinstance(step[0], int)] == [(e, s) for e in range(1, 6) for s in range(3)]
    told = [step for step in seen if not isinstance(step[0], int)]
    assert told == [(what, epoch) for epoch in (2, 4, 5) for what in ("saved", "shown")]
    assert [(record["epoch"], record["steps"]) for record in written()] == [(2, 6), (4, 12), (5, 15)]
    assert atomic.load(Path("checkpoints/state.pt"))["epoch"] == 6


def test_what_is_wrong_with_an_epoch_stands_on_the_status_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.loop.Clock.due", lambda _: True)
    run_loop([])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line[:9] for line in lines if line.endswith(" | all is gray")] == ["epoch 3/5"] * 3 + ["epoch 4/5"] * 3


def test_a_record_ends_with_a_stage() -> None:
    run_loop([], last_of_stage=1)
    assert [record["steps"] for record in written()] == [3, 6, 12, 15]


@pytest.mark.parametrize("stop", [1, 3, 6])  # within an epoch, at its end, and where it is saved
def test_a_stopped_run_says_how_to_go_on_and_goes_on_there(stop: int, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    with pytest.raises(SystemExit) as stopped:
        run_loop(seen, stop)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "go on with: python stage.py --resume --run ." in capsys.readouterr().out
    run_loop(seen)
    assert [step for step in seen if isinstance(step[0], int)] == [(e, s) for e in range(1, 6) for s in range(3)]
    assert sorted(step[1] for step in seen if step[0] == "saved") == [2, 4, 5]


def test_pictures_left_out_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    run_loop([], bad=["x.png: not an image"], gray=3)
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [
        "skipped x.png: not an image",
        "left 3 near-gray pictures out of train (min_colorfulness)",
    ]
