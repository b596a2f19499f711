"""What is settled before a run, and what is recorded of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import train
from config import UserError, make_recipe
from data import Loading
from dataset.folders import Item
from models import fit_networks
from runtime import run_folder
from runtime.run_folder import read_run
from training import setup

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_resume_adds_to_the_record(run: Path) -> None:
    first = read_run(run)
    train.main(run=str(run), resume=True, epochs=3, device="cpu")
    record = read_run(run)
    assert run_folder.saved_epochs(run) == [1, 2, 3]
    assert record.recipe.epochs == 3
    assert (record.data, record.mean_ab, record.versions) == (first.data, first.mean_ab, first.versions)
    assert [entry["images"] for entry in record.resumed] == [first.images]
    assert first.overrides == {"epochs": 2, "size": 32, "batch_size": 4, "save_every": 1, "ngf": 4, "ndf": 4,
                               "log_every": 1, "samples": 2}  # fmt: skip
    assert record.overrides == {**first.overrides, "epochs": 3}
    assert fit_networks(make_recipe("coco", record.overrides)) == record.recipe


def test_a_run_of_an_older_version_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((run / "recipe.json").read_text())
    del record["overrides"], record["recipe"]["metric"], record["recipe"]["spectral_norm"]  # newer fields
    record["fingerprints"]["train"] = "other"
    (run / "recipe.json").write_text(json.dumps(record))
    train.main(run=run, resume=True, epochs=3, device="cpu")
    assert read_run(run).overrides is None  # of what was not recorded nothing is known
    assert run_folder.saved_epochs(run) == [1, 2, 3]
    assert "the images have changed" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "value"), [("lr_d", 1e-5), ("precision", "fp32"), ("save_every", 3)])
def test_what_a_resume_may_change(trained: Path, pictures: Path, key: str, value: object) -> None:
    plan = setup.go_on(trained, read_run(trained), "coco", str(pictures), {"size": 32, key: value}, None)
    assert (plan.folder, plan.data, plan.recipe.epochs) == (trained, str(pictures), 2)
    assert getattr(plan.recipe, key) == value


@pytest.mark.parametrize(
    ("name", "data", "given", "key"),
    [
        ("anime", None, {}, "recipe"), (None, "elsewhere", {}, "data"), (None, None, {"size": 64}, "size"),
        (None, None, {"pretrain_epochs": 1}, "pretrain_epochs"), (None, None, {"norm_d": "none"}, "norm_d"),
    ],
)  # fmt: skip
def test_what_a_resume_may_not_change(
    trained: Path, name: str | None, data: str | None, given: dict[str, Any], key: str
) -> None:
    with pytest.raises(UserError, match=f"was trained with {key} .*; a resume cannot make it "):
        setup.go_on(trained, read_run(trained), name, data, given, None)


def described(recipe: str, loading: Loading | None = None, labels: str = "x", **fields: Any) -> dict[str, Any]:
    """Return what is announced of a recipe at 64 px."""
    made = fit_networks(make_recipe(recipe, {"size": 64, "load_size": 64, **fields}))
    items = [Item(Path(f"{i}.png"), f"{i}", label=label) for i, label in enumerate(labels)]
    sizes = {"generator": 1000} | ({"discriminator": 2000} if made.is_adversarial else {})
    splits = {"train": items, "val": items[:1]}
    return setup.describe(made, "photos", splits, loading or Loading(64, "crop", "none", False), sizes)


def test_what_is_announced() -> None:
    said = described("coco", epochs=3)
    assert (said["recipe"], said["epochs"]) == ("coco, L -> ab at 64 px", "3")
    assert said["generator"] == "unet, 1,000 parameters to train"
    assert said["discriminator"] == "patch30, 2,000 parameters"
    assert said["data"] == "photos: 1 to train, 1 to validate (pictures)"
    assert "the first 4 without" in described("coco", epochs=9, pretrain_epochs=4)["epochs"]
    said = described("places-resnet", labels="abca")
    assert "none" in said["discriminator"]
    assert said["data"] == "photos: 4 to train, 1 to validate (pictures, 3 classes)"
    for pair, kind in {
        "AB": "pairs, colour left", "BA": "pairs, colour right", "none": "pictures, lines drawn from them"
    }.items():  # fmt: skip
        assert described("anime", Loading(64, "crop", pair, True))["data"].endswith(f"({kind})")


def test_one_picture_is_too_few_for_a_norm_of_one_pixel() -> None:
    setup.require_batch(fit_networks(make_recipe("coco", {"size": 64})), 1)
    for name in ("manga", "cgan"):  # in the generator, in the discriminator
        recipe = fit_networks(make_recipe(name, {} if name == "cgan" else {"size": 64}))
        setup.require_batch(recipe, 2)
        with pytest.raises(UserError, match="1 training picture is too few"):
            setup.require_batch(recipe, 1)
