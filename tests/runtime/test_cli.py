"""cli.py: a user's mistake ends in one sentence and exit code 2, a bug in its traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

import config

STAGE = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import cli
cli.ROOT = {folder}
def main(
    number: int = 1, epochs: cli.EpochsOption = None, run: cli.RunOption = None, epoch: cli.EpochOption = None
) -> None:
    {body}
cli.command(main)
"""


def run_stage(
    body: str, ours: bool = True, arguments: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a small stage by cli.command; `ours` declares its folder to be the project's."""
    folder = "Path(__file__).resolve().parent" if ours else "cli.ROOT"
    Path("stage.py").write_text(STAGE.format(root=str(config.ROOT), folder=folder, body=body))
    return subprocess.run(
        [sys.executable, "stage.py", *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('size must be 4, got 3')", "size must be 4, got 3"),
        ("raise ValueError('two lines\\n  of it')", "two lines of it"),
        ("open('nothing.png')", "nothing.png: No such file or directory"),
        ("Path('nothing').read_text()", "nothing: No such file or directory"),
    ],
)
def test_command_says_a_users_mistake_in_one_sentence(body: str, message: str) -> None:
    done = run_stage(body)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"stage.py: {message}\n")


@pytest.mark.parametrize(
    ("body", "ours", "error"),
    [
        ("json.loads('{')", True, "JSONDecodeError"),  # a ValueError, but raised inside the json library
        ("raise ValueError('mine')", False, "ValueError"),  # our own, but not from the project's folder
        ("raise TypeError('a bug')", True, "TypeError"),
    ],
)
def test_command_lets_bugs_through_with_a_traceback(body: str, ours: bool, error: str) -> None:
    done = run_stage(body, ours)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert error in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--nunber", "3"), "--nunber"),
        (("--number", "many"), "--number"),
        (("--epochs", "0"), "--epochs"),
        (("--epochs",), "--epochs"),
        (("--resume", "--number", "3"), "--resume"),
        (("extra",), "extra"),
    ],
)
def test_command_says_a_wrong_option_in_one_sentence(arguments: tuple[str, ...], named: str) -> None:
    done = run_stage("print('ran')", arguments=arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("stage.py: ")  # typer's own words, which change with its version
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


HANDLED = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a job in the background ignores it


@pytest.mark.parametrize(
    "body", ["raise KeyboardInterrupt", f"{HANDLED}; os.kill(os.getpid(), signal.SIGINT)"]
)
def test_command_says_that_it_was_interrupted(body: str) -> None:
    done = run_stage(body)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip() == "stage.py: interrupted; what was saved before is kept"


def test_command_keeps_the_code_that_main_exits_with() -> None:
    assert run_stage("raise SystemExit(1)").returncode == 1


def test_command_runs_main() -> None:
    done = run_stage("print(number, epochs, repr(run))", arguments=("--number", "3", "--run", "runs/a"))
    assert (done.returncode, done.stdout) == (0, "3 None PosixPath('runs/a')\n")
    done = run_stage("print(number, epochs, run)")
    assert (done.returncode, done.stdout) == (0, "1 None None\n")


@pytest.mark.parametrize("epoch", ["5", "best", "soon"])
def test_an_epoch_is_passed_on_as_text(epoch: str) -> None:
    done = run_stage("print(repr(epoch))", arguments=("--epoch", epoch))
    assert (done.returncode, done.stdout) == (0, f"{epoch!r}\n")


def test_help_names_every_shared_option() -> None:
    done = run_stage("print('ran')", arguments=("--help",))
    assert done.returncode == 0
    assert "Passes over the training images." in done.stdout
    assert "DIR" in done.stdout
    assert "N|best" in done.stdout
