"""Everything in one go."""

from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

import config
import main
import models
from config import UserError
from dataset import scenes
from imaging import color
from imaging.files import read_image, write_image
from inference import checkpoint
from runtime.run_folder import RunRecord, write_run


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a demo that took seconds, in which epoch 1 of 2 was called the best."""
    folder = tmp_path_factory.mktemp("demo")
    tiny = dict(size=32, ngf=4, depth=2, discriminator="none", epochs=2, save_every=1, val_fraction=0.4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(scenes, "SCENES", 16)
        patch.setitem(config.RECIPES, "demo", tiny)
        patch.setattr("evaluation.best_epoch.best_epochs", lambda _: {"color_error": "epoch_0001"})
        assert main.main(device="cpu") == Path("runs/demo/contact_sheet.png")
    return folder / "runs/demo"


def test_every_stage_leaves_its_files_and_the_best_epoch_is_exported_and_shown(demo: Path) -> None:
    for name in (
        "scores.csv", "scores.json", "scores_per_image.csv", "report.html", "curves.png", "losses.png",
    ):  # fmt: skip
        assert (demo / name).stat().st_size > 0
    assert read_image(demo / "colorized/photograph.png").shape == (427, 640, 3)
    _, record = checkpoint.load_exported(demo / "generator.ts", torch.device("cpu"))
    assert record.epoch == 1
    name = min(path.name for path in (demo / "targets").glob("*.png"))
    sheet, ours = read_image(demo / "contact_sheet.png"), read_image(demo / "outputs/epoch_0001" / name)
    assert sheet.shape[0] > 6 * 20  # five scenes and the photograph
    windows = np.lib.stride_tricks.sliding_window_view(sheet, ours.shape)
    assert (windows == ours).all((-3, -2, -1)).any()


@pytest.mark.parametrize("begun", [False, True])
def test_stages_are_given_the_options(monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    given: dict[str, dict[str, object]] = {}

    def stop(**options: object) -> NoReturn:
        given["eval"] = options
        raise InterruptedError

    monkeypatch.setattr("train.main", lambda **options: given.update(train=options))
    monkeypatch.setattr("test.main", lambda **options: given.update(test=options))
    monkeypatch.setattr("eval.main", stop)
    options = {"recipe": "coco-resnet", "data": "photos", "epochs": 3, "weights": Path("w"), "device": "cpu"}
    rest = {"size": 64, "batch_size": 2, "limit": 9, "set_": ["ngf=4"], "pair_folders": None, "cache_gb": 0.0}
    rest["pair"] = "none"
    run = Path("runs/coco-resnet" if begun else "runs/coco-resnet-quick")
    run.mkdir(parents=True)
    if begun:
        made = config.make_recipe("coco-resnet", {})
        write_run(run, RunRecord(recipe=made, data="photos", fingerprints={}, mean_ab=(0, 0)))
    with pytest.raises(InterruptedError):
        main.main(**options, **rest, quick=not begun)
    assert given == {
        "train": {**options, **rest, "run": run, "resume": begun, "quick": not begun},
        "test": {"run": run, "all_epochs": True, "device": "cpu", "cache_gb": 0.0},
        "eval": {"run": run, "all_epochs": True, "weights": Path("w"), "device": "cpu", "cache_gb": 0.0},
    }


def test_a_first_look_is_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[bool] = []

    def stop(**options: bool) -> NoReturn:
        begun.append(options["resume"] and not options["quick"])
        assert options["run"] == Path("runs/coco" if options["resume"] else "runs/coco-quick")
        raise InterruptedError

    monkeypatch.setattr("train.main", stop)
    run, fields = Path("runs/coco"), models.quick_fields("coco")
    run.mkdir(parents=True)
    recipe = config.make_recipe("coco", {**fields, "ngf": 4})
    write_run(run, RunRecord(recipe=recipe, data="photos", fingerprints={}, mean_ab=(0, 0)))
    for epochs in (None, 20):  # the same command again, and for longer
        with pytest.raises(InterruptedError):
            main.main(recipe="coco", data="photos", run=run, quick=True, set_=["ngf=4"], epochs=epochs)
    assert begun == [True, True]
    with pytest.raises(UserError, match=r"^runs/coco holds a run without --quick \(ngf 4, not 16\): leave --quick out"):
        main.main(recipe="coco", data="photos", run=run, quick=True)
    with pytest.raises(InterruptedError):
        main.main(recipe="coco", data="photos", quick=True)  # in runs/coco-quick
    assert begun == [True, True, False]


def test_a_second_folder_is_no_resume_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(**_: object) -> NoReturn:
        raise InterruptedError

    monkeypatch.setattr("train.main", stop)
    for name in ("one", "two"):
        Path(name).mkdir()
    record = RunRecord(
        recipe=config.make_recipe("coco", {}), data=str(Path("one").absolute()), fingerprints={}, mean_ab=(0, 0)
    )
    write_run(Path("runs/coco"), record)
    with pytest.raises(UserError, match=r"^runs/coco was trained on .*one: for two name another folder with --run"):
        main.main(recipe="coco", data="two")
    with pytest.raises(InterruptedError):
        main.main(recipe="coco", data="one")
    Path("one").rename("moved")
    with pytest.raises(InterruptedError):
        main.main(recipe="coco", data="moved")


def test_without_a_recipe_the_pictures_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colours, lines = scenes.draw(1, 64)
    for name, picture in (("photos/a", colours), ("pairs/a", np.hstack([colours, lines]))):
        for i in range(3):
            write_image(tmp_path / f"{name}{i}.png", picture)
    for folder, name, other in (
        ("photos", "coco", "for drawings: --recipe anime, or manga"),
        ("pairs", "anime", "--recipe NAME for another"),
    ):
        assert main.find_recipe(str(tmp_path / folder)) == name
        assert f": recipe {name} ({other})" in capsys.readouterr().out
    assert main.find_recipe(str(tmp_path / "pairs"), pair="none") == "coco"
    Image.new("L", (64, 64), 90).save(tmp_path / "photos/gray.png")
    assert main.find_recipe(str(tmp_path / "photos")) == "coco"  # most have colours
    for path in (tmp_path / "photos").iterdir():
        with Image.open(path) as picture:
            picture.convert("L").save(path)
    with pytest.raises(UserError, match=r"without colour, .*; to colour them: python colorize\.py .*photos"):
        main.find_recipe(str(tmp_path / "photos"))


def test_a_new_run_of_a_name_looks_at_the_pictures_and_one_that_is_there_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(**options: object) -> NoReturn:
        given.append(options["recipe"])
        raise InterruptedError

    for i in range(3):
        write_image(tmp_path / f"photos/{i}.png", scenes.draw(i, 64)[0])
    given: list[object] = []
    monkeypatch.setattr("train.main", stop)
    run = tmp_path / "mine"
    for _ in range(2):
        with pytest.raises(InterruptedError):
            main.main(data=str(tmp_path / "photos"), run=run)
        record = {"data": str(tmp_path / "photos"), "fingerprints": {}, "mean_ab": (0, 0)}
        write_run(run, RunRecord(recipe=config.make_recipe("coco", {}), **record))
    assert given == ["coco", None]


@pytest.mark.parametrize("kind", ["L", "gray", "line", "gray+line", "sketch"])
def test_the_photograph_is_an_input_of_its_kind(kind: str, tmp_path: Path) -> None:
    photo = read_image(main.write_example(tmp_path / "x.png", kind))
    shown, tensor = read_image(tmp_path / "x.png"), torch.from_numpy(photo).permute(2, 0, 1)[None]
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
