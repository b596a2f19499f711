"""Colourising files with an exported generator."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import colorize
import export
from config import ROOT


@pytest.fixture(scope="session")
def model(trained: Path) -> Path:
    """Return an exported generator."""
    return export.main(run=trained, out=trained.parent / "model.ts", device="cpu")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Return a folder with gray scans of several sizes and formats, two levels deep."""
    for name, (height, width) in {
        "one.png": (37, 50),
        "album/two.JPG": (80, 33),
        "album/three.tif": (1, 1),
    }.items():
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width), np.uint8)).save(path)
    return tmp_path / "scans"


def test_keeps_names_folders_and_sizes(model: Path, scans: Path) -> None:
    written = colorize.main([scans], model=model, out=Path("out"), device="cpu")
    assert sorted(path.as_posix() for path in written) == [
        "out/album/three.tif",
        "out/album/two.JPG",
        "out/one.png",
    ]
    for path in written:
        with Image.open(path) as ours, Image.open(scans / path.relative_to("out")) as scan:
            assert (ours.size, ours.mode, ours.format) == (scan.size, "RGB", scan.format)
    assert np.ptp(np.asarray(Image.open("out/one.png")).astype(int), axis=2).max() > 0  # it has colour


def test_a_bad_file_is_listed_and_the_others_are_done(
    model: Path, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scans / "broken.jpg").write_bytes(b"")
    with pytest.raises(SystemExit) as stopped:
        colorize.main([scans], model=model, out=Path("out"), device="cpu")
    assert stopped.value.code == 1
    assert len([path for path in Path("out").rglob("*") if path.is_file()]) == 3
    said = capsys.readouterr()
    assert "coloured 3 of 4 images" in said.out
    assert "not done: " in said.err
    assert "broken.jpg" in said.err


@pytest.mark.parametrize(
    ("inputs", "out", "sentence"),
    [
        (["missing.jpg"], "out", "no file or folder missing.jpg"),
        (["scans", "scans/one.png"], "out", "would both become out/one.png"),
        (["scans"], "scans", "would overwrite an input"),
        (["empty"], "out", "no image in empty"),
    ],
)
def test_mistakes_are_found_before_any_work(
    model: Path, scans: Path, tmp_path: Path, inputs: list[str], out: str, sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=sentence):
        colorize.main([Path(name) for name in inputs], model=model, out=Path(out), device="cpu")
    assert not Path("out").exists()


def test_no_output_replaces_any_input(model: Path, scans: Path) -> None:
    original = scans / "album" / "one.png"
    original.write_bytes((scans / "one.png").read_bytes())
    before = original.read_bytes()
    with pytest.raises(ValueError, match="would overwrite an input"):
        colorize.main([scans], model=model, out=scans / "album", device="cpu")
    assert original.read_bytes() == before


def test_nothing_but_bad_files_is_exit_code_2(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"text")
    with pytest.raises(SystemExit) as stopped:
        colorize.main(["bad.jpg"], model=str(model), out="out", device="cpu")  # names may be plain strings
    assert stopped.value.code == 2


def test_model_defaults_to_the_newest_run(scans: Path, trained: Path) -> None:
    with pytest.raises(ValueError, match="no run in runs/"):
        colorize.main([scans], device="cpu")


def test_starting_does_not_import_torchvision() -> None:
    code = "import sys, colorize; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
