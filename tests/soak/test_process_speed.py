"""How many pictures a second training takes with one core, two, and two processes: figures of this machine.

python -m pytest -n 0 -m soak -s tests/soak/test_process_speed.py      # prints a table
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from config import ROOT
from runtime.run_folder import LOG, read_records

TRAIN = [ROOT / "train.py", "--recipe", "coco", "--data", "demo", "--limit", 80, "--size", 64, "--epochs", 2]
TRAIN += ["--device", "cpu", "--global-batch", 16, "--set", "ngf=32", "--set", "log_every=5", "--run-dir"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--"]
KINDS: dict[str, tuple[list[object], int]] = {
    "1 process, 1 thread": ([], 1), "1 process, 2 threads": ([], 2), "2 processes, 1 thread each": (TORCHRUN, 1),
}  # fmt: skip


@pytest.mark.soak
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")
def test_pictures_a_second_with_cores_and_processes() -> None:
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(3):
        for kind, (launcher, threads) in KINDS.items():
            run = Path(f"{kind} {repeat}")
            call = [sys.executable, *launcher, *TRAIN, run]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            subprocess.run([str(word) for word in call], check=True, capture_output=True, env=environment)
            records = [record for record in read_records(run / LOG) if record["epoch"] > 1]  # the first ones warm up
            assert records
            rates[kind].append(sum(record["images_per_s"] for record in records) / len(records))
    print(f"\ncoco at 64 px, ngf 32, 16 pictures a step, {os.cpu_count()} cores, medians of 3 (least to most)")
    for kind, found in rates.items():
        least, middle, most = sorted(found)
        print(f"{kind:<28}{middle:8.1f} pictures/s ({least:.1f} to {most:.1f})")
