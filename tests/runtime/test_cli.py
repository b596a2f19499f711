"""The command line: a user's mistake ends in one sentence and exit code 2, a bug in its traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from config import ROOT
from runtime import cli

STAGES = sorted(path.stem for path in ROOT.glob("*.py") if "\ndef main(" in path.read_text())


def run_main(body: str, *arguments: str) -> None:
    """Run a small stage by cli.command, in this process."""
    Path("stage.py").write_text(
        "def main(number: int = 1, epochs: cli.EpochsOption = None, run: cli.RunOption = None,\n"
        f"         epoch: cli.EpochOption = None) -> None:\n    {body}\n"
    )
    space = {"cli": cli, "__name__": "stage", "Path": Path}
    exec(compile(Path("stage.py").read_text(), "stage.py", "exec"), space)
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


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("from config import UserError; raise UserError('size must be 4, got 3')", "size must be 4, got 3"),
        ("from config import UserError; raise UserError('two lines\\n  of it')", "two lines of it"),
        ("open('nothing.png')", "nothing.png: No such file or directory"),
        ("Path('nothing').read_text()", "nothing: No such file or directory"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(
    body: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, 2, body) == sentence


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("raise ValueError('too many values to unpack')", ValueError),  # our own code, but not on purpose
        ("import json; json.loads('{')", ValueError),
        ("raise TypeError('a bug')", TypeError),
        ("raise OSError('of no file')", OSError),
        ("raise KeyError('a bug')", KeyError),
    ],
)
def test_a_bug_keeps_its_traceback(body: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_main(body)


def test_a_bug_in_a_stage_is_shown_with_exit_code_1() -> None:
    Path("stage.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom runtime.cli import command\n"
        "def main() -> None:\n    first, second = (1, 2, 3)\ncommand(main)\n"
    )
    done = subprocess.run([sys.executable, "stage.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: too many values to unpack" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--nunber", "3"), "--nunber"), (("--number", "many"), "--number"), (("--epochs", "0"), "--epochs"),
        (("--epochs",), "--epochs"), (("--resume", "--number", "3"), "--resume"), (("extra",), "extra"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(
    arguments: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in said(capsys, 2, "print('ran')", *arguments)  # typer's words change with its version


@pytest.mark.parametrize(
    "body",
    [
        "raise KeyboardInterrupt",
        "import signal; signal.signal(2, signal.default_int_handler); signal.raise_signal(2)",
    ],
)
def test_an_interrupt_says_so(body: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "interrupted" in said(capsys, 130, body)


def test_an_exit_code_of_main_is_kept() -> None:
    with pytest.raises(SystemExit) as stopped:
        run_main("raise SystemExit(1)")
    assert stopped.value.code == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "1 None None None"),
        (("--number", "3", "--run", "runs/a", "--epoch", "best"), "3 None runs/a best"),
        (("--epochs", "7", "--epoch", "5"), "1 7 None 5"),
    ],
)
def test_options_reach_main(
    arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_main("print(number, epochs, run, epoch)", *arguments)
    assert capsys.readouterr().out.split() == expected.split()


@pytest.mark.parametrize("stage", STAGES)
def test_help_loads_nothing_heavy(stage: str) -> None:
    """What a stage imports at its top is all that --help waits for."""
    heavy = "{'torch', 'numpy', 'PIL', 'matplotlib', 'scipy', 'tifffile', 'jinja2'}"
    code = f"import sys, {stage}; found = {heavy} & set(sys.modules); print(*found); sys.exit(bool(found))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{stage} imports {done.stdout}{done.stderr}"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks GCC's OpenMP, which torch uses on Linux")
@pytest.mark.parametrize(("policy", "spins"), [(None, "0"), ("active", "30000000000")])
def test_openmp_is_told_not_to_spin_before_torch_loads(policy: str | None, spins: str) -> None:
    env = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    env |= {"OMP_DISPLAY_ENV": "verbose", **({"OMP_WAIT_POLICY": policy} if policy else {})}
    code = "import train, torch"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
