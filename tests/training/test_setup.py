"""What is settled before a run, and what is recorded of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import train
from config import RECIPES, RUNS, UserError, make_recipe
from data import Loading
from dataset.folders import Item
from models import fit_networks, recipe_table
from runtime import run_folder
from runtime.run_folder import read_run
from training import setup

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_new_run_takes_the_recipes_name() -> None:
    recipe, data, folder = setup.resolve("coco", "photos", None, {"size": 64})
    assert (recipe.size, data, folder) == (64, "photos", RUNS / "coco")
    assert setup.resolve(None, None, None, {})[1:] == ("demo", RUNS / "demo")


def test_a_resumed_run_brings_its_own(run: Path, pictures: Path) -> None:
    recipe, stored, folder = setup.resolve_resumed(None, None, run, {"epochs": 5})
    assert (recipe.size, recipe.epochs, stored.data, folder) == (32, 5, str(pictures), run)
    assert setup.resolve_resumed("coco", str(pictures), run, {"size": 32})[0].epochs == 2


def test_a_resume_adds_to_the_record(run: Path) -> None:
    first = read_run(run)
    train.main(run=str(run), resume=True, epochs=3, device="cpu")
    record = read_run(run)
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


def test_the_recipe_table_has_a_row_per_recipe_with_published_counts() -> None:
    lines = recipe_table().splitlines()
    assert [line.split()[0] for line in lines] == ["recipe", *RECIPES]
    for name, cells in {
        "coco": ("photo in Lab, pix2pix", "L -> ab", "54,409,856", "patch30", "1 gan + 100 l1", "256"),
        "manga-att-ext": ("59,924,868", "0.01 gan + 1 l1 + 0.09 perceptual + 0.01 anime"),
        "places-resnet": ("954,722", "none", "1 mse", "224"),
        "cgan": ("7,822,342", "L -> rgb", "convgen", "image-rgb"),
    }.items():
        (row,) = (line for line in lines if line.split()[0] == name)
        assert all(cell in row for cell in cells), row


def described(
    recipe: str, loading: Loading | None = None, labels: str = "x", **fields: Any
) -> dict[str, Any]:
    """Return what is announced of a recipe at 64 px."""
    made = fit_networks(make_recipe(recipe, {"size": 64, "load_size": 64, **fields}))
    items = [Item(Path(f"{i}.png"), f"{i}", label=label) for i, label in enumerate(labels)]
    sizes = {"generator": 1000} | ({"discriminator": 2000} if made.is_adversarial else {})
    splits = {"train": items, "val": items[:1]}
    return setup.describe(made, "photos", splits, loading or Loading(64, "crop", "none", False), sizes)


def test_what_is_announced() -> None:
    said = described("coco", epochs=3)
    assert said["recipe"] == "coco, L -> ab at 64 px"
    assert said["epochs"] == "3"
    assert (said["generator"], said["discriminator"]) == (
        "unet, 1,000 parameters to train", "patch30, 2,000 parameters"
    )  # fmt: skip
    assert said["data"] == "photos: 1 to train, 1 to validate (pictures)"
    assert "the first 4 without" in described("coco", epochs=9, pretrain_epochs=4)["epochs"]
    said = described("places-resnet", labels="abca")
    assert "none" in said["discriminator"]
    assert said["data"] == "photos: 4 to train, 1 to validate (pictures, 3 classes)"
    assert "classes" not in described("places-resnet", labels="aaa")["data"]


@pytest.mark.parametrize(
    ("pair", "sketch", "kind"),
    [
        ("AB", True, "pairs, colour left"), ("BA", True, "pairs, colour right"),
        ("none", True, "pictures, lines drawn from them"), ("none", False, "pictures"),
    ],
)  # fmt: skip
def test_how_pictures_are_loaded_is_announced(pair: str, sketch: bool, kind: str) -> None:
    assert described("anime", Loading(64, "crop", pair, sketch))["data"].endswith(f"({kind})")


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", 1e-5), ("lr_d", 1e-5), ("precision", "fp32"), ("save_every", 3), ("log_every", 9)],
)
def test_what_a_resume_may_change(run: Path, key: str, value: object) -> None:
    recipe, _, _ = setup.resolve_resumed(None, None, run, {key: value})
    assert getattr(recipe, key) == value


@pytest.mark.parametrize(
    ("recipe", "data", "given", "key"),
    [
        ("anime", None, {}, "recipe"), (None, "elsewhere", {}, "data"), (None, None, {"size": 64}, "size"),
        (None, None, {"pretrain_epochs": 1}, "pretrain_epochs"), (None, None, {"norm_d": "none"}, "norm_d"),
        (None, None, {"lambda_mse": 1.0}, "lambda_mse"), (None, None, {"attention": 8}, "attention"),
        (None, None, {"init": "kaiming"}, "init"),
    ],
)  # fmt: skip
def test_what_a_resume_may_not_change(
    trained: Path, recipe: str | None, data: str | None, given: dict[str, Any], key: str
) -> None:
    with pytest.raises(UserError, match=f"was trained with {key} .*; a resume cannot make it "):
        setup.resolve_resumed(recipe, data, trained, given)


def test_what_writes_nothing_needs_no_free_folder(trained: Path) -> None:
    made, data, folder = setup.resolve("coco", "photos", trained, {}, writes=False)
    assert (made.name, data, folder) == ("coco", "photos", trained)
    with pytest.raises(UserError, match=r"already holds a run; .*--resume"):
        setup.resolve("coco", "photos", trained, {})


def test_one_picture_is_too_few_for_a_norm_of_one_pixel() -> None:
    setup.require_batch(fit_networks(make_recipe("coco", {"size": 64})), 1)
    for name in ("manga", "cgan"):  # in the generator, in the discriminator
        recipe = fit_networks(make_recipe(name, {} if name == "cgan" else {"size": 64}))
        setup.require_batch(recipe, 2)
        with pytest.raises(UserError, match="1 training picture is too few"):
            setup.require_batch(recipe, 1)
