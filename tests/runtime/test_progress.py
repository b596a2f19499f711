"""Progress: times in words, lines where there is no terminal, and a reader that goes away."""

import io
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from config import ROOT
from runtime import progress
from runtime.progress import duration, say, track

SECONDS = {
    0.2: "1 s",
    40: "40 s",
    89.9: "90 s",
    91: "2 min",
    1260: "21 min",
    12600: "3.5 h",
    172700: "48.0 h",
    1.2e6: "14 days",
}


@pytest.mark.parametrize(("seconds", "words"), SECONDS.items())
def test_times_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_without_a_terminal_a_line_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = count(step=1)  # each look at the clock takes a second
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    assert list(track(range(100), "scoring", 100)) == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("scoring: 7 of 100, about ")
    assert 2 <= len(lines) <= 4


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(track("ab", "scoring", 2)) == ["a", "b"]
    assert "scoring" in capsys.readouterr().err


def test_items_are_not_read_ahead() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise AssertionError("nobody asked for a second one")

    assert next(track(items(), "x", 2)) == 1


PROGRAM = """
import sys
from pathlib import Path
from config import UserError
from runtime import cli, progress
progress.FIRST_LINE_S = progress.LINE_INTERVAL_S = 0.0
def main() -> None:
    for i in progress.track(range(10000), "decoding", 10000):
        progress.say("a line that nobody reads")
    Path(sys.argv[1]).touch()
    raise UserError("a mistake")
cli.command(lambda name: main())
"""


def test_a_reader_that_goes_away_ends_nothing() -> None:
    """As with `2>&1 | head -1`."""
    call, pipes = [sys.executable, "-c", PROGRAM, str(Path("done").absolute())], {"stdout": subprocess.PIPE}
    with subprocess.Popen(call, cwd=ROOT, stderr=subprocess.STDOUT, **pipes) as process:
        process.stdout.readline()
        process.stdout.close()
        process.wait()
    assert (process.returncode, Path("done").exists()) == (2, True)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_were_closed_before_the_start_end_nothing(closed: str) -> None:
    call = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", PROGRAM, str(Path("done").absolute())]
    assert subprocess.run(call, cwd=ROOT, capture_output=True).returncode == 2
    assert Path("done").exists()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_is_said_arrives_at_once(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = io.BytesIO()
    monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BufferedWriter(kept)))  # as a pipe, it keeps what it is given
    say("a line") if stream == "stdout" else progress.write("a line", stream)
    assert kept.getvalue() == b"a line\n"
