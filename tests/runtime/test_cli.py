"""The command line: a user's mistake ends in one sentence and exit code 2, a bug in its traceback."""

import os
import subprocess
import sys

import pytest
from helpers import run_stage

from config import ROOT, UserError
from runtime import cli, progress


def run_main(body: str, *arguments: str) -> None:
    """Run a small stage by cli.command, in this process."""
    space = {"cli": cli, "__name__": "stage", "UserError": UserError}
    exec(f"def main(number: int = 1, epochs: cli.EpochsOption = None) -> None:\n    {body}\n", space)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["folder/stage.py", *arguments])
        cli.command(space["main"])


def said(capsys: pytest.CaptureFixture[str], code: int, body: str, *arguments: str) -> str:
    """Return the one sentence with which a stage ends that exits with `code`."""
    with pytest.raises(SystemExit) as stopped:
        run_main(body, *arguments)
    out, error = capsys.readouterr()
    assert (stopped.value.code, out) == (code, "")
    assert error.startswith("stage.py: ")
    assert error.count("\n") == 1
    return error.removeprefix("stage.py: ").rstrip()


def test_a_mistake_is_told_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, 2, "raise UserError('two lines\\n  of it')") == "two lines of it"
    assert said(capsys, 2, "open('nothing.png')") == "nothing.png: No such file or directory"


def test_a_full_disk_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, 2, "raise OSError(28, 'No space left on device')")
    assert told.startswith("standard output, or a temporary file in ")
    assert told.endswith(": No space left on device")


def test_a_name_that_is_no_text_is_printed() -> None:
    body = "from runtime import cli; cli.command(lambda: print('caf\\udce9.png'))"
    done = subprocess.run([sys.executable, "-c", body], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "caf\\udce9.png\n"), done.stderr


@pytest.mark.parametrize("error", [ValueError, TypeError, OSError, KeyError])  # the OSError names no file
def test_a_bug_keeps_its_traceback(error: type[Exception]) -> None:
    with pytest.raises(error, match="a bug"):
        run_main(f"raise {error.__name__}('a bug')")


def test_a_wrong_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, named in (
        (["--nunber", "3"], "--nunber"), (["--number", "many"], "--number"), (["--epochs", "0"], "--epochs"),
        (["--epochs"], "--epochs"), (["--resume", "--number", "3"], "--resume"), (["extra"], "extra"),
    ):  # fmt: skip
        assert named in said(capsys, 2, "print('ran')", *arguments)  # typer's words change with its version


def test_an_interrupt_says_so_and_an_exit_code_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    signalled = "import signal; signal.signal(2, signal.default_int_handler); signal.raise_signal(2)"
    for body in ("raise KeyboardInterrupt", signalled):
        assert "interrupted" in said(capsys, 130, body)
    with pytest.raises(SystemExit) as stopped:
        run_main("raise SystemExit(1)")
    assert stopped.value.code == 1


def test_of_several_processes_that_are_interrupted_one_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "silent", True)
    with pytest.raises(SystemExit) as stopped:
        run_main("raise KeyboardInterrupt")
    assert (stopped.value.code, capsys.readouterr().err) == (130, "")
    assert said(capsys, 2, "raise UserError('a mistake')") == "a mistake"  # of the first that fails, whichever it is


def test_a_stage_that_one_process_does_is_not_for_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert "in one process: start it without torchrun" in said(capsys, 2, "print('ran')")


def test_a_stage_of_one_process_is_not_started_by_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert run_stage("colorize", "x.png") == 2
    assert "this stage works in one process: start it without torchrun" in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "1")  # the first has told it
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert run_stage("colorize", "x.png") == 2
    assert capsys.readouterr().err == ""


def without_openmp() -> dict[str, str]:
    """Return the environment without what tells OpenMP how long to spin."""
    return {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}


@pytest.mark.skipif(sys.platform != "linux", reason="asks GCC's OpenMP, which torch uses on Linux")
def test_openmp_is_told_how_long_to_spin_before_torch_loads() -> None:
    env = {**without_openmp(), "OMP_DISPLAY_ENV": "verbose"}
    command = [sys.executable, "-c", "import train, torch"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert "GOMP_SPINCOUNT = '4000'" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("told", "spins"),
    [
        ({"OMP_WAIT_POLICY": "active"}, "30000000000"), ({"OMP_WAIT_POLICY": "passive"}, "0"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
    ],
)  # fmt: skip
def test_what_openmp_was_told_already_is_kept(told: dict[str, str], spins: str) -> None:
    command = [sys.executable, "-c", "import os, train; print(os.environ['GOMP_SPINCOUNT'])"]
    done = subprocess.run(command, cwd=ROOT, env={**without_openmp(), **told}, capture_output=True, text=True)
    assert done.stdout == f"{spins}\n", done.stderr
