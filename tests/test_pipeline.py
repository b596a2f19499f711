"""Both systems from files to generator.ts, as commands; on real photographs where there are some."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from config import ROOT
from images import find_images

SHARED = ROOT.parent / "shared" / "data"  # real pictures, on developers' machines only
TINY = ["--epochs", "1", "--size", "32", "--batch-size", "4", "--set", "ngf=4", "--set", "ndf=4"]


def run_stage(name: str, *args: object, cwd: Path, expect: int = 0) -> str:
    """Run one script as a user would; returns what it printed."""
    command = [sys.executable, ROOT / f"{name}.py", *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("recipe", ["coco", "anime"])
def test_from_folder_to_coloured_files(recipe: str, pictures: Path, tmp_path: Path) -> None:
    size = ["--size", "64"] if recipe == "anime" else []
    run_stage("train", "--recipe", recipe, "--data", pictures, *TINY, *size, cwd=tmp_path)
    run_stage("test", "--all-epochs", cwd=tmp_path)
    assert "best psnr_db" in run_stage("eval", "--all-epochs", cwd=tmp_path)
    run_stage("export", cwd=tmp_path)
    run_stage("colorize", pictures / "val", "--out", "out", cwd=tmp_path)
    for path in find_images(pictures / "val"):
        with (
            Image.open(path) as before,
            Image.open(tmp_path / "out" / path.relative_to(pictures / "val")) as after,
        ):
            assert before.size == after.size
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"runs", "cache", "out"}


@pytest.mark.parametrize(
    ("stage", "args", "sentence"),
    [
        ("test", [], "no run in runs/; train one first"),
        ("eval", ["--run", "nowhere"], "nowhere is not a run folder"),
        ("export", ["--epoch", "3", "--run", "nowhere"], "nowhere is not a run folder"),
        ("colorize", ["photo.jpg"], "no file or folder photo.jpg"),
        ("main", ["--recipe", "coco"], "recipe coco needs --data"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    stage: str, args: list[str], sentence: str, tmp_path: Path
) -> None:
    lines = run_stage(stage, *args, cwd=tmp_path, expect=2).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{stage}.py: ")
    assert sentence in lines[0]
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="the development pictures are not on this machine")
@pytest.mark.parametrize(
    ("recipe", "folder", "size"), [("coco", "photos/val", 32), ("anime", "anime/val", 64)]
)
def test_real_pictures(recipe: str, folder: str, size: int, tmp_path: Path) -> None:
    run_stage("train", "--recipe", recipe, "--data", SHARED / folder, *TINY, "--size", size, cwd=tmp_path)
    run_stage("export", cwd=tmp_path)
    old = sorted((SHARED / "oldphotos").glob("*.jpg"))[:3]
    run_stage("colorize", *old, "--out", "out", cwd=tmp_path)
    for path in old:
        with Image.open(path) as before, Image.open(tmp_path / "out" / path.name) as after:
            assert before.size == after.size
