"""serve.py under load: eight clients, some more that do not wait, and slow ones; nothing is lost, memory is flat.

SECONDS_OF_LOAD=300 python -m pytest -n 0 -m soak -s tests/soak/test_serve_load.py   # prints counts, p50, p95, memory
"""

import collections
import io
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from helpers import make_run
from PIL import Image

import export
from config import ROOT
from dataset import scenes
from inference import exporters

httpx = pytest.importorskip("httpx", reason="serve.py is asked through httpx")
pytest.importorskip("uvicorn", reason="serve.py needs requirements-web.txt")
SECONDS = float(os.environ.get("SECONDS_OF_LOAD", 300))
CLIENTS, HASTY, SLOW = 8, 4, 20  # who wait for their turn, go away when told to come again, or send a byte a second
GROWTH = 20.0  # MB that memory may grow by from the second quarter of the time to the last
pytestmark = [pytest.mark.soak, pytest.mark.skipif(sys.platform != "linux", reason="reads memory as Linux tells it")]


def encode(picture: Image.Image, form: str) -> bytes:
    """Return an image file."""
    encoded = io.BytesIO()
    picture.save(encoded, form)
    return encoded.getvalue()


def corpus() -> list[tuple[bytes, int]]:
    """Return files and the status that each is answered with: pictures of several sizes, and what is none."""
    drawn = [Image.fromarray(np.ascontiguousarray(scenes.draw(i, 256)[0])) for i in range(4)]
    sizes = [(64, 48), (300, 200), (640, 480), (1200, 900)]
    forms = ["PNG", "JPEG", "WEBP", "JPEG"]
    pictures = [encode(each.resize(size), form) for each, size, form in zip(drawn, sizes, forms, strict=True)]
    bad = [b"no picture", pictures[0][: len(pictures[0]) // 2], b"\xff\xd8\xff" + bytes(500)]
    return [*((each, 200) for each in pictures), *((each, 422) for each in bad)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Yield the address of a serve.py with a tiny model, and the number of its process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporters, "SIZES", ((19, 34),))
        patch.setattr(exporters, "BATCHES", (1,))
        path = export.main(run=make_run(tmp_path / "run", "coco", size=32, depth=3), device="cpu")
    call = [sys.executable, ROOT / "serve.py", "--model", path, "--port", "0", "--device", "cpu"]
    process = subprocess.Popen([*map(str, call)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield re.search(r"http\S+", process.stdout.readline())[0], process.pid
    process.terminate()
    assert re.fullmatch("model .*\n", process.communicate()[1])  # no traceback, no warning


@dataclass
class Tally:
    """What all clients saw."""

    files: list[tuple[bytes, int]]
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    seconds: list[float] = field(default_factory=list)  # until a picture was there, of clients that wait
    wrong: list[str] = field(default_factory=list)
    answers: dict[int, bytes] = field(default_factory=dict)  # of each file, what came first
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, address: str, chance: random.Random, patient: bool) -> None:
        """Send one file until it is answered, or once, and look at the answer."""
        number, start = chance.randrange(len(self.files)), time.monotonic()
        content, expected = self.files[number]
        while True:
            try:
                answer = httpx.post(f"{address}colorize", content=content, timeout=120)
            except httpx.HTTPError as error:
                return self.wrong.append(f"no answer: {error!r}")
            with self.lock:
                self.statuses[answer.status_code] += 1
            if answer.status_code != 429:
                break
            if not patient:
                return time.sleep(0.2)
            time.sleep(float(answer.headers["Retry-After"]))
        with self.lock:
            if answer.status_code != expected:
                self.wrong.append(f"file {number}: {answer.status_code} {answer.text[:200]}")
            elif answer.content != self.answers.setdefault(number, answer.content):
                self.wrong.append(f"file {number}: another answer than before")
            elif patient and expected == 200:
                self.seconds.append(time.monotonic() - start)


def dribble(address: str, stop: threading.Event) -> None:
    """Be a slow client: announce a large body, and send a byte of it a second, again and again."""
    parts = urlsplit(address)
    head = f"POST /colorize HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: 1000000\r\n\r\n"
    while not stop.is_set():
        # it is told that it is too slow, and its connection ends
        with socket.create_connection((parts.hostname, parts.port)) as line, suppress(OSError):
            line.sendall(head.encode())
            while not stop.wait(1.0):
                line.sendall(b"x")


def resident_mb(process: int) -> float:
    """Return the memory of a process in MB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_nothing_is_lost_and_memory_is_flat(server: tuple[str, int]) -> None:
    address, process = server
    tally, stop = Tally(corpus()), threading.Event()

    def client(number: int) -> None:
        chance = random.Random(number)
        while not stop.is_set():
            tally.ask(address, chance, patient=number < CLIENTS)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS + HASTY)]
    threads += [threading.Thread(target=dribble, args=(address, stop)) for _ in range(SLOW)]
    for thread in threads:
        thread.start()
    memory, end = [], time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, SECONDS / 20))
        memory.append(resident_mb(process))
    stop.set()
    for thread in threads:
        thread.join()
    quarter = len(memory) // 4
    slope = np.polyfit(np.linspace(0, SECONDS / 60, len(memory))[quarter:], memory[quarter:], 1)[0]
    growth = np.median(memory[-quarter:]) - np.median(memory[quarter : 2 * quarter])
    p50, p95 = np.percentile(tally.seconds, [50, 95])
    print(f"{SECONDS:.0f} s: {dict(sorted(tally.statuses.items()))}, p50 {p50:.2f} s, p95 {p95:.2f} s")
    print(f"memory {memory[-1]:.0f} MB, {slope:+.2f} MB per minute behind the first quarter")
    assert tally.wrong == []
    assert set(tally.statuses) == {200, 422, 429}
    assert httpx.get(f"{address}health").json()["waiting"] == 0
    assert growth < GROWTH
