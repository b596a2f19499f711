"""What a run says while it trains: status lines, log.jsonl, and a polite end on Ctrl-C."""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from atomic import replacing

if sys.platform != "win32":
    import resource


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log.jsonl; lines that a killed run left half written are left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError):
            records.append(json.loads(line))
    return records


class Log:
    """Sums losses up on the device and, once per interval, turns them into a status line and a record."""

    def __init__(self, path: Path, steps: int) -> None:
        """Open the log; records after `steps`, left by a run that was cut off, are dropped."""
        self.path = path
        self.records = [record for record in read_records(path) if record["steps"] <= steps]
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in self.records))
        self.clear()

    def clear(self) -> None:
        """Begin an interval."""
        self.sums: dict[str, Tensor] = {}
        self.steps, self.images, self.waited, self.started = 0, 0, 0.0, time.perf_counter()

    def add(self, terms: dict[str, Tensor], images: int, waited: float) -> None:
        """Count one step: its loss terms, its images, and the seconds spent waiting for them."""
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps, self.images, self.waited = self.steps + 1, self.images + images, self.waited + waited

    def flush(self, progress: dict[str, int], lr: float, device: torch.device, remedy: str) -> None:
        """End the interval: print a line, append the record.

        Args:
            progress: epoch, step in it, and steps in all.
            lr: the step size now.
            device: whose memory is reported.
            remedy: what to do where a loss is not finite.

        Raises:
            ValueError: a loss is not finite.
        """
        if not self.steps:
            return
        values = (torch.stack(list(self.sums.values())) / self.steps).tolist()  # the one wait for the device
        means = dict(zip(self.sums, values, strict=True))
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            names = " ".join(broken)
            raise ValueError(
                f"{names} not finite by step {progress['steps']}; nothing was overwritten: {remedy}"
            )
        seconds = time.perf_counter() - self.started
        record = {
            **progress,
            **means,
            "lr": lr,
            "images_per_s": self.images / seconds,
            "data_wait_percent": 100 * self.waited / seconds,
            "memory_mb": peak_memory_mb(device),
        }
        self.records.append(record)
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        terms = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        speed = f"{record['images_per_s']:.1f} images/s | data wait {record['data_wait_percent']:.1f} %"
        where = f"epoch {progress['epoch']} step {progress['steps']}"
        tqdm.write(f"{where} | {terms} | {speed} | {record['memory_mb']:.0f} MB")
        self.clear()


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MB: of the GPU where the networks are on one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Yield a list to which Ctrl-C and SIGTERM add their number; a second one stops at once."""
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may set handlers
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
