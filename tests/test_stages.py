"""Systems from files to generator.ts, as commands; on real photographs where there are some."""

import io
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from PIL import Image

from config import ROOT
from imaging.files import find_images

SHARED = ROOT.parent / "shared" / "data"  # real pictures, on developers' machines only
TINY = ["--epochs", "1", "--size", "32", "--batch-size", "4", "--set", "ngf=4", "--set", "ndf=4"]


def run_process(name: str, *args: object, cwd: Path) -> str:
    """Run one script as a user would; returns what it printed."""
    command = [sys.executable, ROOT / f"{name}.py", *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def run_here(name: str, *args: object, cwd: Path, expect: int = 0) -> str:
    """Run one script within this process, which spares it the seconds that importing torch takes."""
    code, said = 0, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
        try:
            runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
    assert code == expect, said.getvalue()
    return said.getvalue()


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("coco", []),  # its first and its last stage in processes of their own
        ("anime", ["--size", "64"]),
        ("restore", [f"--set={field}" for field in ("generator=unet", "pretrained=no", "pretrain_epochs=0")]),
        ("nazerigan32", ["--set", "load_size=36"]),
        (
            "manga-att",
            ["--size", "64", "--set", "depth=4", "--set", "attention=16", "--set", "lambda_perceptual=0"],
        ),
    ],
)
def test_from_folder_to_coloured_files(recipe: str, more: list[str], pictures: Path, tmp_path: Path) -> None:
    first_and_last = run_process if recipe == "coco" else run_here
    first_and_last("train", "--recipe", recipe, "--data", pictures, *TINY, *more, cwd=tmp_path)
    run_here("test", "--all-epochs", cwd=tmp_path)
    assert "by ciede2000 (lower)" in run_here("eval", "--all-epochs", cwd=tmp_path)
    run_here("export", cwd=tmp_path)
    first_and_last("colorize", pictures / "val", "--out", "out", cwd=tmp_path)
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
        ("train", ["--recipe", "manga-at", "--data", "x"], "no recipe manga-at; did you mean manga-att?"),
        ("train", ["--set", "attention=3"], "attention must be 0 for generator unet, got 3"),
        ("train", ["--epochs", "0"], "Invalid value for '--epochs'"),
        ("train", ["--no-such-option"], "No such option: --no-such-option"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    stage: str, args: list[str], sentence: str, tmp_path: Path
) -> None:
    lines = run_here(stage, *args, cwd=tmp_path, expect=2).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{stage}.py: ")
    assert sentence in lines[0]
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="the development pictures are not on this machine")
@pytest.mark.parametrize(
    ("recipe", "folder", "size"), [("coco", "photos/val", 32), ("anime", "anime/val", 64)]
)
def test_real_pictures(recipe: str, folder: str, size: int, tmp_path: Path) -> None:
    run_here("train", "--recipe", recipe, "--data", SHARED / folder, *TINY, "--size", size, cwd=tmp_path)
    run_here("export", cwd=tmp_path)
    old = sorted((SHARED / "oldphotos").glob("*.jpg"))[:3]
    run_here("colorize", *old, "--out", "out", cwd=tmp_path)
    for path in old:
        with Image.open(path) as before, Image.open(tmp_path / "out" / path.name) as after:
            assert before.size == after.size
