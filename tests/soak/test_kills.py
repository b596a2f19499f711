"""A training is killed again and again, at moments that chance chooses, and ends with the bits of one that was not.

python -m pytest -n 0 -m soak -s tests/soak/test_kills.py      # prints kills, resumes and how many bytes were compared
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import log_of

from config import ROOT
from runtime import atomic
from runtime.run_folder import RECORD, epoch_path, has_state, load_state, read_records, saved_epochs, state_path

EPOCHS = 40  # of a second or so
TRAIN = ["train.py", "--resume", "--recipe", "coco", "--data", "demo", "--epochs", EPOCHS, "--size", 32]
TRAIN += ["--limit", 160, "--device", "cpu", "--global-batch", 40]
TRAIN += [word for each in ("ngf=4", "ndf=4", "samples=2", "save_every=1", "log_every=1") for word in ("--set", each)]
TRAIN += [word for each in ("dropout=0.5", "ema=0.9", "grain_p=0.5") for word in ("--set", each)]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--"]
MIN_COMPARED = 10_000_000  # bytes of all epochs and the last state
pytestmark = pytest.mark.soak


def start(*args: object, launcher: tuple[object, ...] = ()) -> subprocess.Popen[str]:
    call = [sys.executable, *map(str, launcher), str(ROOT / str(args[0])), *map(str, args[1:])]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(call, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill(process: subprocess.Popen[str], when: Callable[[], bool]) -> bool:
    """Send SIGKILL to a process and its children while `when` holds; False where it ended before."""
    while True:
        while not when():
            if process.poll() is not None:
                assert process.returncode == 0, process.communicate()[0]
                return False
            time.sleep(0.001)
        send(process, signal.SIGSTOP)
        if when():  # it still does, as nothing moves
            send(process, signal.SIGKILL)
            process.communicate()
            return True
        send(process, signal.SIGCONT)


def send(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to a process and then to its children."""
    os.kill(process.pid, number)
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
    for child in map(int, found.split()):
        with suppress(ProcessLookupError):
            os.kill(child, number)


def moments(run: Path, chance: random.Random) -> Iterator[tuple[str, str, Callable[[], bool]]]:
    """Yield what is to be killed, amid which kind of work, and when that is; each time in another kind."""
    log = run / "log.jsonl"
    while True:
        shutil.rmtree("cache", ignore_errors=True)
        yield "train", "decoding", lambda: any(Path("cache").glob("*tmp"))  # while decoding
        target = len(read_records(log)) + chance.randint(1, 8)
        yield "train", "steps", lambda target=target: len(read_records(log)) >= target  # amid an epoch
        target = max(saved_epochs(run), default=0) + chance.randint(1, 3)
        pattern = chance.choice(["checkpoints/.state*", "checkpoints/.epoch*", "samples/.*"])
        yield (
            "train",
            "saving",
            lambda target=target, pattern=pattern: (  # while saving
                max(saved_epochs(run), default=0) >= target and any(run.glob(pattern))
            ),
        )
        count = chance.randint(0, 12)
        yield "test", "rendering", lambda count=count: len([*run.glob("outputs/*/*.png")]) > count  # while rendering


def finish(process: subprocess.Popen[str]) -> None:
    said = process.communicate()[0]
    assert process.returncode == 0, said


def tensors(payload: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested dictionaries and lists, in order."""
    if isinstance(payload, torch.Tensor):
        yield payload
    elif isinstance(payload, dict | list):
        for part in payload.values() if isinstance(payload, dict) else payload:
            yield from tensors(part)


def same_run(whole: Path, parts: Path) -> int:
    """Check that two runs are the same, bit for bit; returns how many bytes of tensors were compared."""
    assert saved_epochs(whole) == saved_epochs(parts) == list(range(1, EPOCHS + 1))
    assert log_of(whole) == log_of(parts)
    assert [*parts.glob("checkpoints/.*"), *parts.glob("samples/.*"), *parts.glob(".*")] == []  # nothing half written
    compared = 0
    for name in (*(epoch_path(whole, epoch).name for epoch in saved_epochs(whole)), state_path(whole).name):
        pair = (tensors(atomic.load(run / "checkpoints" / name)) for run in (whole, parts))
        for one, other in zip(*pair, strict=True):
            assert torch.equal(one, other), name
            compared += one.nbytes
    return compared


def saved(run: Path) -> dict[int, int]:
    """Return when each epoch was written that lies before the saved state."""
    if not has_state(run):
        return {}
    begun = load_state(run, is_owner=False)["epoch"]
    return {epoch: epoch_path(run, epoch).stat().st_mtime_ns for epoch in saved_epochs(run) if epoch < begun}


def killed(kills: int, launcher: tuple[object, ...], wanted: tuple[str, ...]) -> tuple[Counter[str], int]:
    """Kill a training at most so many times, and compare it with one that was left alone.

    Returns the kills by the kind of work, and how many bytes were compared.
    """
    whole, parts, done, resumes, chance = Path("whole"), Path("parts"), Counter(), 0, random.Random(1)
    before: dict[int, int] = {}
    finish(start(*TRAIN, "--run-dir", whole, launcher=launcher))
    began = time.monotonic()
    for stage, kind, when in moments(parts, chance):
        if done.total() == kills:
            break
        if stage not in wanted or (stage == "test" and not saved_epochs(parts)):
            continue
        if stage == "test":
            call = ("test.py", "--run-dir", parts, "--device", "cpu")
            for path in parts.glob("outputs/*/*"):
                path.unlink()
        else:
            call = (*TRAIN, "--run-dir", parts)
            resumes += (parts / RECORD).exists()
        done[kind] += kill(start(*call, launcher=launcher), when)
        after = saved(parts)
        assert before.items() <= after.items()  # no epoch that was saved is trained again
        before = after
    resumes += (parts / RECORD).exists()
    finish(start(*TRAIN, "--run-dir", parts, launcher=launcher))
    assert before.items() <= saved(parts).items()
    compared = same_run(whole, parts)
    seconds = time.monotonic() - began
    print(f"\nkills {dict(done)} and {resumes} resumes in {seconds:.0f} s; {compared:,} bytes are the same")
    return done, compared


def test_twenty_kills() -> None:
    kills, compared = killed(20, (), ("train", "test"))
    assert kills.total() == 20
    assert all(kills[kind] for kind in ("decoding", "steps", "saving", "rendering"))
    assert compared > MIN_COMPARED
    for run in ("whole", "parts"):
        finish(start("test.py", "--run-dir", run, "--device", "cpu"))
    pictures = [sorted(Path(run, "outputs", f"epoch_{EPOCHS:04d}").glob("*.png")) for run in ("whole", "parts")]
    assert len(pictures[0]) == len(pictures[1]) > 100
    assert all(one.read_bytes() == two.read_bytes() for one, two in zip(*pictures, strict=True))


def test_five_kills_of_two_processes() -> None:
    kills, compared = killed(5, tuple(TORCHRUN), ("train",))
    assert kills.total() == 5
    assert compared > MIN_COMPARED
