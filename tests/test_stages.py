"""Systems from files to coloured files, as commands; on real photographs where there are some."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import run_stage
from PIL import Image

from config import ROOT
from imaging.files import find_images

SHARED = ROOT.parent / "shared" / "data"  # real pictures, on developers' machines only
TINY = ["--epochs", "1", "--size", "32", "--batch-size", "4", "--set", "ngf=4", "--set", "ndf=4"]


def run_process(name: str, *args: object) -> int:
    """Run one stage in a process of its own, as a user would."""
    return subprocess.run([sys.executable, ROOT / f"{name}.py", *map(str, args)], check=False).returncode


@pytest.mark.slow  # test_main.py has a run of all stages that is always tested
@pytest.mark.parametrize(
    ("recipe", "size", "folder"),
    [("coco", 32, ""), ("anime", 64, ""), ("coco", 32, "photos/val"), ("anime", 64, "anime/val")],
)
def test_from_folder_to_coloured_files(
    recipe: str, size: int, folder: str, pictures: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))  # where LPIPS was fetched, it is taken
    if folder and not SHARED.is_dir():
        pytest.skip("the development pictures are not on this machine")
    data = SHARED / folder if folder else pictures
    given = sorted((SHARED / "oldphotos").glob("*.jpg"))[:3] if folder else find_images(pictures / "val")
    first_and_last = run_process if (recipe, folder) == ("coco", "") else run_stage  # one as a user starts it
    assert first_and_last("train", "--recipe", recipe, "--data", data, *TINY, "--size", size) == 0
    assert run_stage("test", "--all-epochs") == 0
    assert run_stage("eval", "--all-epochs") == 0
    assert "color_error of epoch" in capsys.readouterr().out
    assert run_stage("export") == 0
    assert first_and_last("colorize", *given, "--run", f"runs/{recipe}", "--out", "out") == 0
    for path in given:
        with Image.open(path) as before, Image.open(Path("out", path.name)) as after:
            assert before.size == after.size
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "cache", "out"}


@pytest.mark.parametrize(
    ("stage", "args", "words"),
    [
        ("test", [], "no run in runs/; train one first"),
        ("eval", ["--run", "nowhere"], "nowhere is not a run folder"),
        ("export", ["--epoch", "3", "--run", "nowhere"], "nowhere is not a run folder"),
        ("colorize", ["photo.jpg"], "no file or folder photo.jpg"),
        ("main", ["--recipe", "coco"], "recipe coco needs --data"),
        ("train", ["--epochs", "0"], "--epochs"),
        ("train_classifier", [], "a classifier needs --data"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    stage: str, args: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(stage, *args) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"{stage}.py: ")
    assert words in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == []
