"""What a long stage says while it works: lines that arrive at once, and how much time is left."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
FIRST_LINE_S, LINE_INTERVAL_S = 8.0, 60.0  # until the first line, and between later ones


silent = False  # of the processes of a run one speaks


def be_silent() -> None:
    """Say nothing from now on, in this process."""
    global silent
    silent = True


def say(text: str) -> None:
    """Print to stdout, above any progress bar and at once; a reader that has gone ends nothing."""
    if not silent:
        write(text, "stdout")


def write(text: str, stream: str) -> None:
    """Print to sys.stdout or sys.stderr, above any progress bar and at once; a reader that has gone ends nothing."""
    try:
        tqdm.write(text, file=getattr(sys, stream))
        getattr(sys, stream).flush()
    except OSError:  # as of `| head`: what is said from now on has no reader
        setattr(sys, stream, open(os.devnull, "w"))


def duration(seconds: float) -> str:
    """Return a time in words: "40 s", "21 min", "3.5 h" or "14 days"."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.1f} {unit}" if unit == "h" else f"{max(1, round(seconds / length))} {unit}"
    return f"{round(seconds / 86400)} days"


class Clock:
    """Tells when the next line is due: the first soon, later ones now and then."""

    def __init__(self) -> None:
        self.said, self.wait = time.monotonic(), FIRST_LINE_S

    def due(self) -> bool:
        """Tell whether a line is due; if so, the next one is due in LINE_INTERVAL_S."""
        now = time.monotonic()
        if now - self.said < self.wait:
            return False
        self.said, self.wait = now, LINE_INTERVAL_S
        return True


def track(items: Iterable[T], title: str, total: int, start: int = 0, lines: bool = True) -> Iterator[T]:
    """Yield items under a progress bar; where stderr is no terminal, perhaps with a line now and then instead.

    Args:
        total, start: how many items there are, and how many of them were done before.
    """
    if sys.stderr.isatty() and not silent:
        yield from tqdm(items, title, total, initial=start, leave=False)
        return
    if not lines or silent:
        yield from items
        return
    clock, began = Clock(), time.monotonic()
    for done, item in enumerate(items):
        if done and clock.due():
            left = (time.monotonic() - began) / done * (total - done)
            write(f"{title}: {done:,} of {total:,}, about {duration(left)} left", "stderr")
        yield item
