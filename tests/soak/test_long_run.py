"""A training that saves and renders again and again keeps its memory, its file handles and its threads.

python -m pytest -n 0 -m soak -s tests/soak/test_long_run.py # 30 minutes, or SOAK_MINUTES; prints what it measured

All is measured within the training process, each time that it has saved and rendered an epoch: 30 times, so once a
minute in half an hour. The first third is left out, in which libraries are loaded and memory gets to its peak.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from config import ROOT
from runtime.run_folder import read_records

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
SAVES, LIMIT = 30, 64  # checkpoints, and pictures of each split: rendering must leave time for training
# of the memory, by a straight line through the last two thirds: it was seen to grow by 30 of 800 MB up to the 14th save
# and to stay there
MAX_GROWTH = 0.03
RUN, MEASURED = Path("run"), Path("measured.jsonl")
TRAIN = ["--resume", "--recipe", "coco", "--data", "demo", "--size", 32, "--limit", LIMIT, "--batch-size", 16]
TRAIN += [word for each in ("ngf=4", "ndf=4", "ema=0.9", "samples=4") for word in ("--set", each)]
PROGRAM = """
import json, os, time
from pathlib import Path
import test, train
from runtime import cli
real = train.save_samples
def save_samples(run, *args):
    found = real(run, *args)
    test.main(run=run, device="cpu")  # the last epoch
    status = dict(line.split(":\\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\\t" in line)
    with open("measured.jsonl", "a") as file:
        fields = {"memory_mb": int(status["VmRSS"].split()[0]) / 1024, "threads": int(status["Threads"])}
        print(json.dumps({"at": time.time(), **fields, "files": len(os.listdir("/proc/self/fd"))}), file=file)
    return found
train.save_samples = save_samples
cli.command(train.main)
"""
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux"),
]


def start(*args: object) -> subprocess.Popen[str]:
    call = [sys.executable, "-c", PROGRAM, *map(str, TRAIN), "--run", str(RUN), "--device", "cpu", *map(str, args)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(call, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_memory_files_and_threads_stay() -> None:
    first = start("--epochs", 4, "--set", "save_every=4")
    said, _ = first.communicate()
    assert first.returncode == 0, said
    record = read_records(RUN / "log.jsonl")[-1]
    seconds = LIMIT / record["images_per_s"]  # of an epoch
    MEASURED.unlink()
    every = max(1, round(60 * MINUTES / SAVES / seconds))
    process = start("--epochs", 10**6, "--set", f"save_every={every}")
    while not MEASURED.exists():  # from its first save on
        assert process.poll() is None, process.communicate()[0]
        time.sleep(1)
    try:
        process.wait(60 * MINUTES)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, said

    found = [json.loads(line) for line in MEASURED.read_text().splitlines()]
    late = found[len(found) // 3 :]
    assert len(late) >= 6, found
    minutes = np.array([each["at"] - late[0]["at"] for each in late]) / 60
    memory = np.array([each["memory_mb"] for each in late])
    slope = float(np.polyfit(minutes, memory, 1)[0])  # MB a minute
    print(f"\n{MINUTES:g} minutes, {len(found)} checkpoints, each rendered; of the last {len(late)}:")
    print(f"memory {memory.min():.1f} to {memory.max():.1f} MB, {slope:+.3f} MB a minute")
    print("at each:", *(round(each["memory_mb"]) for each in found))
    for name in ("files", "threads"):
        print(f"{name} {min(each[name] for each in late)} to {max(each[name] for each in late)}")
        middle, last = late[: len(late) // 2], late[len(late) // 2 :]
        assert min(each[name] for each in last) <= max(each[name] for each in middle)  # one more at times is no leak
    assert slope * minutes[-1] < MAX_GROWTH * memory.mean()
