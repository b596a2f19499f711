"""log.py: records that survive being cut off, means over an interval, and signals."""

import json
import signal
import threading
from pathlib import Path

import pytest
import torch

from training.gan import REMEDY
from training.loop import Log, noted_signals, peak_memory_mb

PATH = Path("log.jsonl")


def flush(log: Log) -> None:
    log.flush({"epoch": 2, "step": 3, "steps": 7}, 1e-3, torch.device("cpu"), REMEDY)


def terms(g: float, d: float) -> dict[str, torch.Tensor]:
    return {"G_l1": torch.tensor(g), "D_real": torch.tensor(d)}


def written() -> list[dict[str, float]]:
    return [json.loads(line) for line in PATH.read_text().splitlines()]


def write_records(*steps: int, tail: str = "") -> None:
    PATH.write_text("".join(json.dumps({"steps": step, "G_l1": 0.5}) + "\n" for step in steps) + tail)


def test_flush_writes_means_of_the_interval(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(PATH, 0)
    log.add(terms(1.0, 4.0), 16, 0.0)
    log.add(terms(3.0, 2.0), 8, 0.0)
    flush(log)
    (record,) = written()
    assert log.records == [record]
    expected = {
        "epoch": 2,
        "step": 3,
        "steps": 7,
        "G_l1": 2.0,
        "D_real": 3.0,
        "lr": 1e-3,
        "data_wait_percent": 0,
    }
    assert {key: record[key] for key in expected} == expected
    assert set(record) == {*expected, "images_per_s", "memory_mb"}
    assert record["images_per_s"] > 0
    said = capsys.readouterr().out
    assert said.startswith("epoch 2 step 7 | G_l1 2.0000 D_real 3.0000 | ")
    assert said.count("\n") == 1


def test_speed_and_wait_are_of_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    log = Log(PATH, 0)
    for images, waited, took in ((16, 1.0, 4.0), (16, 0.0, 8.0)):
        log.add(terms(0.0, 0.0), images, waited)
        now[0] += took
        flush(log)
    assert [record["images_per_s"] for record in written()] == [4.0, 2.0]
    assert [record["data_wait_percent"] for record in written()] == [25.0, 0.0]


def test_an_interval_begins_empty() -> None:
    log = Log(PATH, 0)
    flush(log)  # nothing to say
    assert written() == []
    for value in (1.0, 5.0):
        log.add(terms(value, value), 4, 0.0)
        flush(log)
    assert [record["G_l1"] for record in written()] == [1.0, 5.0]


def test_intervals_of_two_stages_have_their_own_terms() -> None:
    log = Log(PATH, 0)
    log.add({"G_l1": torch.tensor(2.0)}, 4, 0.0)
    flush(log)
    log.add(terms(1.0, 3.0), 4, 0.0)
    flush(log)
    losses = [
        {key: value for key, value in record.items() if key[:2] in ("G_", "D_")} for record in written()
    ]
    assert losses == [{"G_l1": 2.0}, {"G_l1": 1.0, "D_real": 3.0}]


@pytest.mark.parametrize(("steps", "kept"), [(0, []), (20, [10, 20]), (25, [10, 20]), (99, [10, 20, 30])])
def test_reopening_drops_later_records(steps: int, kept: list[int]) -> None:
    write_records(10, 20, 30)
    log = Log(PATH, steps)
    assert [record["steps"] for record in log.records] == kept
    assert written() == log.records


@pytest.mark.parametrize("tail", ['{"steps": 30, "G_', "{", "\0\0\0"])
def test_reopening_survives_a_last_line_that_was_cut_off(tail: str) -> None:
    write_records(10, 20, tail=tail)
    assert [record["steps"] for record in Log(PATH, 20).records] == [10, 20]
    assert [record["steps"] for record in written()] == [10, 20]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_advice(value: float) -> None:
    log = Log(PATH, 0)
    log.add(terms(1.0, value), 4, 0.0)
    message = r"^D_real not finite by step 7; nothing was overwritten: .*--set lr=.*--set precision=fp32$"
    with pytest.raises(ValueError, match=message):
        flush(log)
    assert written() == []


def test_peak_memory_is_plausible() -> None:
    assert 50 < peak_memory_mb(torch.device("cpu")) < 1e6


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_noted(number: signal.Signals) -> None:
    before = handlers()
    with noted_signals() as caught:
        assert caught == []
        assert set(handlers()).isdisjoint(before)
        signal.raise_signal(number)
        assert caught == [number]
    assert handlers() == before


def test_a_second_signal_stops_at_once() -> None:
    before = handlers()
    with pytest.raises(KeyboardInterrupt), noted_signals():  # noqa: PT012 - the second is what raises
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert handlers() == before


def test_handlers_are_restored_after_an_error() -> None:
    before = handlers()
    with pytest.raises(RuntimeError, match="a bug"), noted_signals():
        raise RuntimeError("a bug")
    assert handlers() == before


def test_other_threads_leave_handlers_alone() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with noted_signals() as caught:
            seen.append((caught, handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [([], before)]
