"""Everything in one go."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import config
import main
from dataset import scenes
from imaging import color
from imaging.files import read_image
from inference import checkpoint
from runtime import run_folder


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the demo recipe a matter of seconds."""
    monkeypatch.setattr(scenes, "SCENES", 24)
    tiny = dict(size=32, ngf=4, ndf=4, epochs=2, save_every=1, val_fraction=0.4, batch_size=4)
    monkeypatch.setitem(config.RECIPES, "demo", tiny)


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test that does not look at them curves and report."""
    monkeypatch.setattr("scores.plot_scores", lambda *_: None)
    monkeypatch.setattr("reporting.curves.plot_losses", lambda *_: None)
    monkeypatch.setattr("eval.write_report", lambda run: run / "report.html")


def test_every_stage_leaves_its_files(small_demo: None, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = main.main(device="cpu")
    run = Path("runs/demo")
    assert sheet == run / "contact_sheet.png"
    for name in (
        "scores.csv",
        "scores.json",
        "scores_per_image.csv",
        "report.html",
        "curves.png",
        "losses.png",
        "generator.ts",
        "colorized/photograph.png",
    ):
        assert (run / name).stat().st_size > 0
    assert read_image(run / "colorized/photograph.png").shape == (427, 640, 3)
    assert read_image(sheet).shape[0] > 6 * 20  # five scenes and the photograph under a header
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "picture  runs/demo/contact_sheet.png",
        "report   runs/demo/report.html",
        "model    runs/demo/generator.ts",
    ]


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("best", [1, 2])
def test_the_best_epoch_is_exported_and_shown(
    small_demo: None, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    shown: list[Path] = []
    real = main.sheet_rows
    monkeypatch.setattr(
        main,
        "sheet_rows",
        lambda run, outputs, example: shown.append(outputs) or real(run, outputs, example),
    )
    monkeypatch.setattr("scores.best_epochs", lambda _: {"ciede2000": f"epoch_000{best}"})
    main.main(device="cpu")
    _, metadata = checkpoint.load_exported(Path("runs/demo/generator.ts"), torch.device("cpu"))
    assert metadata["epoch"] == best
    assert shown == [Path(f"runs/demo/outputs/epoch_000{best}")]


@pytest.mark.usefixtures("no_drawing")
def test_called_again_it_goes_on(small_demo: None) -> None:
    main.main(device="cpu", epochs=1)
    before = os.stat(run_folder.epoch_path(Path("runs/demo"), 1)).st_mtime_ns
    main.main(device="cpu", epochs=2)
    assert os.stat(run_folder.epoch_path(Path("runs/demo"), 1)).st_mtime_ns == before
    assert run_folder.saved_epochs(Path("runs/demo")) == [1, 2]


class Stop(Exception):
    """Ends a pipeline where a test has seen enough."""


def test_training_is_given_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def note(**options: object) -> None:
        given.append(options)
        raise Stop

    monkeypatch.setattr(main.train, "main", note)
    options = {"recipe": "coco-resnet", "data": "photos", "epochs": 3, "weights": Path("w"), "device": "cpu"}
    with pytest.raises(Stop):
        main.main(**options)
    assert given == [{**options, "run": Path("runs/coco-resnet"), "resume": False}]


@pytest.mark.usefixtures("no_drawing")
def test_scoring_is_given_the_weights(small_demo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def note(**options: object) -> None:
        given.append(options)
        raise Stop

    monkeypatch.setattr(main.evaluation, "main", note)
    with pytest.raises(Stop):
        main.main(weights=Path("w"), device="cpu")
    assert given == [{"run": Path("runs/demo"), "all_epochs": True, "weights": Path("w"), "device": "cpu"}]


@pytest.mark.parametrize("kind", ["L", "gray", "line", "gray+line", "sketch"])
def test_the_photograph_is_an_input_of_its_kind(kind: str, tmp_path: Path) -> None:
    path, photo = main.write_example(tmp_path, kind)
    shown, tensor = read_image(path), torch.from_numpy(photo).permute(2, 0, 1)[None]
    assert shown.shape == photo.shape
    assert np.ptp(shown.astype(int), axis=2).max() <= 1
    if kind in ("sketch", "line"):
        assert (shown > 250).mean() > 0.5  # paper
        assert shown.min() < 60  # ink
    elif kind == "L":
        seen = color.encode(torch.from_numpy(shown).permute(2, 0, 1)[None], "L")
        assert (seen - color.encode(tensor, "L")).abs().max() < 0.02
    else:
        luma = color.luma(color.rgb01(tensor))[0, 0].numpy() * 255
        assert np.abs(shown[..., 0] - luma).max() < 0.51
