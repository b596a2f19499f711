"""What is settled before a run, and what is recorded of it."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import train
from config import RECIPES, RUNS, make_recipe
from data import Loading
from dataset.folders import Item
from runtime import atomic, run_folder
from training import setup
from training.gan import build_training


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_new_run_takes_the_recipes_name() -> None:
    recipe, data, folder = setup.resolve("coco", "photos", None, {"size": 64})
    assert (recipe.size, data, folder) == (64, "photos", RUNS / "coco")
    assert setup.resolve(None, None, None, {})[1:] == ("demo", RUNS / "demo")


def test_a_resumed_run_brings_its_own(run: Path, pictures: Path) -> None:
    recipe, data, folder = setup.resolve_resumed(None, None, run, {"epochs": 5, "size": None})
    assert (recipe.size, recipe.epochs, data, folder) == (32, 5, str(pictures), run)
    assert setup.resolve_resumed("coco", str(pictures), run, {"size": 32})[0].epochs == 2


@pytest.mark.parametrize("content", [{"learning": 1}, {"size": "wide"}])
def test_a_record_of_another_version_is_refused(run: Path, content: dict[str, object]) -> None:
    record = run_folder.read_run(run)
    record["recipe"] |= content
    atomic.write_json(run / "recipe.json", record)
    with pytest.raises(ValueError, match=r"other fields|of another version|size must be int"):
        setup.resolve_resumed(None, None, run, {})


def test_without_its_state_a_run_is_not_begun_again(run: Path) -> None:
    run_folder.state_path(run).unlink()
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match=r"state\.pt is missing"):
        train.main(run=run, resume=True, device="cpu")
    assert {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()} == before


def test_a_state_that_is_another_kind_of_file_is_refused(run: Path) -> None:
    shutil.copy(run_folder.epoch_path(run, 2), run_folder.state_path(run))
    with pytest.raises(ValueError, match=r"not a training state"):
        train.main(run=run, resume=True, epochs=3, device="cpu")


def test_a_resume_adds_to_the_record(run: Path) -> None:
    first = run_folder.read_run(run)
    train.main(run=str(run), resume=True, epochs=3, device="cpu")
    record = json.loads((run / "recipe.json").read_text())
    assert {key: record[key] for key in first if key != "recipe"} == {
        k: v for k, v in first.items() if k != "recipe"
    }
    assert record["recipe"] == first["recipe"] | {"epochs": 3}
    assert [entry["images"] for entry in record["resumed"]] == [first["images"]]


def table() -> dict[str, list[str]]:
    """Return recipe -> the cells of its row."""
    rows = [re.split(r" {2,}", line) for line in setup.recipe_table().splitlines()]
    assert rows[0] == [
        "recipe",
        "system",
        "input -> output",
        "generator",
        "parameters",
        "discriminator",
        "loss",
        "px",
    ]
    return {row[0]: row for row in rows[1:]}


def test_recipe_table_names_all_sixteen() -> None:
    rows = table()
    assert list(rows) == list(RECIPES)
    assert len(rows) == 16
    assert {len(row) for row in rows.values()} == {8}
    for name, row in rows.items():
        recipe = make_recipe(name, {})
        assert row[1] == RECIPES[name]
        assert row[2] == f"{recipe.input} -> {recipe.output}"
        assert (row[3], row[5], row[7]) == (recipe.generator, recipe.discriminator, str(recipe.size))


@pytest.mark.parametrize(
    ("recipe", "parameters", "loss"),
    [
        ("coco", "54,409,856", "1 gan + 100 l1"),
        ("anime", "54,414,531", "1 gan + 100 l1"),
        ("manga", "54,418,563", "0.01 gan + 1 l1 + 0.1 perceptual"),
        ("manga-att-ext", "59,924,868", "0.01 gan + 1 l1 + 0.09 perceptual + 0.01 anime"),
        ("places-resnet", "954,722", "1 mse"),
        ("unet32", "6,297,026", "1 mse"),
        ("nazerigan224", "41,957,826", "1 gan + 100 l1"),
        ("cgan", "7,822,342", "1 gan + 100 l1"),
        ("groups", "14,339,458", "1 gan + 100 l1"),
    ],
)
def test_recipe_table_holds_published_counts(recipe: str, parameters: str, loss: str) -> None:
    row = table()[recipe]
    assert (row[4], row[6]) == (parameters, loss)


def described(
    recipe: str, loading: Loading | None = None, labels: str = "", **fields: object
) -> dict[str, str]:
    """Return what describe says of a shrunk recipe, by its first word."""
    made = make_recipe(recipe, {"size": 64, "load_size": 64, "ngf": 4, "ndf": 4, **fields})
    training = build_training(made, torch.device("cpu"), "fp32")
    items = [Item(Path(f"{i}.png"), f"{i}", label=label) for i, label in enumerate(labels or "x")]
    loading = loading or Loading(64, "crop", "none", False)
    text = setup.describe(
        made, "photos", Path("runs/x"), {"train": items, "val": items[:1]}, loading, training, "cpu, fp32"
    )
    return {line.split()[0]: line[15:] for line in text.splitlines()}


def test_description_of_two_networks() -> None:
    said = described("coco", epochs=3)
    assert list(said) == ["run", "data", "recipe", "epochs", "generator", "discriminator", "device"]
    assert said["recipe"] == "coco, L -> ab at 64 px"
    assert said["epochs"] == "3"
    assert re.fullmatch(r"unet, [\d,]+ parameters to train", said["generator"])
    assert re.fullmatch(r"patch30, [\d,]+ parameters", said["discriminator"])
    assert said["data"] == "photos: 1 to train, 1 to validate (pictures)"


def test_description_of_stages_and_classes() -> None:
    assert (
        described("coco", epochs=9, pretrain_epochs=4)["epochs"] == "9, the first 4 without the discriminator"
    )
    said = described("places-resnet", labels="abca")
    assert said["discriminator"] == "none: the generator learns alone"
    assert said["data"] == "photos: 4 to train, 1 to validate (pictures, 3 classes)"
    assert "classes" not in described("places-resnet", labels="aaa")["data"]


@pytest.mark.parametrize(
    ("pair", "sketch", "kind"),
    [
        ("AB", True, "pairs, colour left"), ("BA", True, "pairs, colour right"),
        ("none", True, "pictures, lines drawn from them"), ("none", False, "pictures"),
    ],
)  # fmt: skip
def test_description_of_loading(pair: str, sketch: bool, kind: str) -> None:
    said = described("anime", Loading(64, "crop", pair, sketch))
    assert said["data"].endswith(f"({kind})")


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", 1e-5), ("lr_d", 1e-5), ("precision", "fp32"), ("save_every", 3), ("log_every", 9)],
)
def test_what_a_resume_may_change(run: Path, key: str, value: object) -> None:
    recipe, _, _ = setup.resolve_resumed(None, None, run, {key: value})
    assert getattr(recipe, key) == value


@pytest.mark.parametrize(
    ("key", "value"),
    [("pretrain_epochs", 1), ("norm_d", "none"), ("lambda_mse", 1.0), ("attention", 8), ("init", "default")],
)
def test_what_a_resume_may_not_change(run: Path, key: str, value: object) -> None:
    before = run_folder.read_run(run)["recipe"][key]
    if before == value:
        value = "kaiming"
    with pytest.raises(
        ValueError, match=f"was trained with {key} {before}; a resume cannot make it {value}$"
    ):
        setup.resolve_resumed(None, None, run, {key: value})


def test_what_writes_nothing_needs_no_free_folder(trained: Path) -> None:
    made, data, folder = setup.resolve("coco", "photos", trained, {}, writes=False)
    assert (made.name, data, folder) == ("coco", "photos", trained)
    with pytest.raises(ValueError, match="already holds a run of recipe coco"):
        setup.resolve("coco", "photos", trained, {})


def test_one_picture_is_too_few_for_a_norm_of_one_pixel() -> None:
    recipe = make_recipe("manga", {"size": 64})
    setup.require_batch(recipe, 2)
    setup.require_batch(make_recipe("coco", {"size": 64}), 1)
    for lone in (recipe, make_recipe("cgan", {})):  # in the generator, in the discriminator
        with pytest.raises(ValueError, match="1 training picture is too few"):
            setup.require_batch(lone, 1)
