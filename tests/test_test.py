"""Rendering saved epochs."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_run
from PIL import Image

import test as test_stage
from imaging import color
from imaging.files import read_image
from inference import checkpoint
from runtime import atomic, run_folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_renders_every_epoch_with_the_names_of_the_files(run: Path) -> None:
    outputs = test_stage.main(run=run, all_epochs=True, device="cpu")
    assert [folder.name for folder in outputs] == ["epoch_0001", "epoch_0002"]
    names = {"b__p12.png", "a__p13.png", "b__p14.png", "a__p15.png"}
    for folder in (run / "inputs", run / "targets", *outputs):
        assert {path.name for path in folder.glob("*.png")} == names
    written = {path: path.stat().st_mtime_ns for path in (run / "targets").iterdir()}
    (last,) = test_stage.main(run=run, device="cpu")
    assert last.name == "epoch_0002"
    assert {path: path.stat().st_mtime_ns for path in (run / "targets").iterdir()} == written  # kept


def test_outputs_are_what_the_network_makes_of_the_targets(run: Path) -> None:
    (folder,) = test_stage.main(run=run, epoch=1, device="cpu")
    target = read_image(run / "targets" / "a__p13.png")
    assert target.shape == (32, 32, 3)
    colorizer = checkpoint.load_colorizer(run, 1, torch.device("cpu"))
    expected = colorizer(torch.from_numpy(target).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(read_image(folder / "a__p13.png"), expected)
    shown = read_image(run / "inputs" / "a__p13.png").astype(int)
    assert np.ptp(shown, axis=2).max() <= 1  # the input of a photo colouriser is gray


def colourise(run: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what the network makes of a rendered input, and what was rendered as its output."""
    shown = torch.from_numpy(read_image(run / "inputs" / name)).permute(2, 0, 1)[None]
    colorizer = checkpoint.load_colorizer(run, 1, torch.device("cpu"))
    ours = colorizer(shown)[0].permute(1, 2, 0).numpy()
    return ours.astype(int), read_image(run / "outputs/epoch_0001" / name).astype(int)


def test_damaged_inputs_are_shown_damaged_and_the_same_every_time(pictures: Path) -> None:
    degraded = {"generator": "unet", "pretrained": False, "grain_p": 1.0, "fading_p": 1.0, "depth": 4}
    run, data = make_run(Path("other"), "restore", **degraded, size=32, load_size=32), str(pictures)
    test_stage.main(run=run, data=data, device="cpu")
    before = {path: path.read_bytes() for path in (run / "inputs").glob("*.png")}
    for path in before:
        shown = read_image(path).astype(int)
        assert np.ptp(shown, axis=2).max() <= 1
        target = torch.from_numpy(read_image(run / "targets" / path.name)).permute(2, 0, 1)[None]
        gray = color.show_input(target, "L")[0].permute(1, 2, 0).numpy()
        assert np.abs(shown - gray).mean() > 3
        ours, rendered = colourise(run, path.name)
        assert np.abs(ours - rendered).max() <= 8  # an input's L is rounded to a level in inputs/
        assert np.abs(ours - rendered).mean() < 1
    shutil.rmtree(run / "targets")
    test_stage.main(run=run, data=data, device="cpu")
    assert {path: path.read_bytes() for path in before} == before


def test_inputs_are_what_the_network_saw(pictures: Path) -> None:
    mixed = {"input": "gray+line", "lambda_perceptual": 0.0, "line_share": 0.5, "depth": 3}
    run = make_run(Path("other"), "manga", **mixed, size=32, load_size=32)
    test_stage.main(run=run, data=str(pictures), device="cpu")
    drawn = []
    for path in sorted((run / "inputs").glob("*.png")):
        ours, rendered = colourise(run, path.name)
        assert np.abs(ours - rendered).max() <= 1  # alone and in a batch
        target = torch.from_numpy(read_image(run / "targets" / path.name)).permute(2, 0, 1)[None]
        luma = color.show_input(target, "gray")[0].permute(1, 2, 0).numpy()
        drawn.append(not np.array_equal(read_image(path), luma))
    assert len(drawn) == 4
    assert set(drawn) == {False, True}


def test_other_data_replaces_what_was_rendered(run: Path, pictures: Path) -> None:
    test_stage.main(run=run, epoch=1, device="cpu")
    test_stage.main(run=run, epoch=2, data=str(pictures / "train"), device="cpu")
    assert not (run / "outputs" / "epoch_0001").exists()
    rendered = {path.stem for path in (run / "outputs" / "epoch_0002").glob("*.png")}
    assert rendered
    assert rendered == {path.stem for path in (run / "targets").glob("*.png")}
    assert rendered <= {f"{'a' if i % 2 else 'b'}__p{i:02d}" for i in range(12)}


@pytest.mark.parametrize("lost", ["targets", "inputs/a__p13.png"])
def test_lost_inputs_and_targets_are_rendered_again(run: Path, lost: str) -> None:
    test_stage.main(run=run, epoch=1, device="cpu")
    folders = [run / "inputs", run / "targets", run / "outputs/epoch_0001"]
    before = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    written = {path: path.stat().st_mtime_ns for path in folders[2].iterdir()}
    assert len(before) == 3 * 4 + 2
    if (run / lost).is_dir():
        shutil.rmtree(run / lost)
    else:
        (run / lost).unlink()
    test_stage.main(run=run, epoch=2, device="cpu")
    assert {path: path.read_bytes() for folder in folders for path in folder.iterdir()} == before
    assert {path: path.stat().st_mtime_ns for path in folders[2].iterdir()} == written  # kept


@pytest.mark.parametrize("options", [{"epoch": 7}, {"epoch": "best"}, {"data": "gone"}])
def test_what_cannot_be_rendered(run: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"epoch 7 is not saved|no scores in|no folder gone"):
        test_stage.main(run=run, device="cpu", **options)
    assert not (run / "outputs").exists()


def test_checkpoint_that_is_none(run: Path) -> None:
    run_folder.epoch_path(run, 2).write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=r"epoch_0002\.pt is not a checkpoint"):
        test_stage.main(run=run, device="cpu")
    assert not (run / "outputs" / "epoch_0002").exists()


def test_a_generator_that_gives_nan_is_not_taken_for_rendered(run: Path) -> None:
    test_stage.main(run=run, epoch=2, device="cpu")
    payload = atomic.load(run_folder.epoch_path(run, 2))
    name = next(key for key in payload["generator"] if key.endswith("weight"))
    payload["generator"][name][:] = float("nan")
    atomic.save(run_folder.epoch_path(run, 2), payload)
    with pytest.raises(ValueError, match="colours of epoch_0002/a__p13 are not finite; use another epoch"):
        test_stage.main(run=run, all_epochs=True, device="cpu")
    stamp = (run / "outputs/epoch_0002" / run_folder.STAMP).read_text()
    key = (run / "targets" / run_folder.STAMP).read_text()
    assert stamp != run_folder.stamp(run, 2, key)
    assert (run / "outputs/epoch_0001" / run_folder.STAMP).read_text() == run_folder.stamp(run, 1, key)


def test_other_data_is_rendered_whole(tmp_path: Path) -> None:
    run = make_run(Path("other"), "coco", size=32, load_size=32, depth=4, min_colorfulness=1.0, limit=2)
    for split, count in (("train", 2), ("val", 3)):
        for i in range(count):
            path = tmp_path / "gray" / split / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (50 * i, 50 * i, 50 * i)).save(path)
    (folder,) = test_stage.main(run=run, data="gray", device="cpu")
    assert sorted(path.name for path in folder.glob("*.png")) == ["0.png", "1.png", "2.png"]
