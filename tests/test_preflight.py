"""What is settled before a run, and what is recorded of it."""

import json
import shutil
from pathlib import Path

import pytest

import checkpoint
import preflight
import train
from config import RUNS


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_new_run_takes_the_recipes_name() -> None:
    recipe, data, folder = preflight.resolve("coco", "photos", None, {"size": 64})
    assert (recipe.size, data, folder) == (64, "photos", RUNS / "coco")
    assert preflight.resolve(None, None, None, {})[1:] == ("demo", RUNS / "demo")


def test_a_resumed_run_brings_its_own(run: Path, pictures: Path) -> None:
    recipe, data, folder = preflight.resolve_resumed(None, None, run, {"epochs": 5, "size": None})
    assert (recipe.size, recipe.epochs, data, folder) == (32, 5, str(pictures), run)
    assert preflight.resolve_resumed("coco", str(pictures), run, {"size": 32})[0].epochs == 2


@pytest.mark.parametrize("content", [{"learning": 1}, {"size": "wide"}])
def test_a_record_of_another_version_is_refused(run: Path, content: dict[str, object]) -> None:
    record = checkpoint.read_run(run)
    record["recipe"] |= content
    checkpoint.write_json(run / "recipe.json", record)
    with pytest.raises(ValueError, match=r"other fields|of another version|size must be int"):
        preflight.resolve_resumed(None, None, run, {})


def test_without_its_state_a_run_is_not_begun_again(run: Path) -> None:
    checkpoint.state_path(run).unlink()
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match=r"state\.pt is missing"):
        train.main(run=run, resume=True, device="cpu")
    assert {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()} == before


def test_a_state_that_is_another_kind_of_file_is_refused(run: Path) -> None:
    shutil.copy(checkpoint.epoch_path(run, 2), checkpoint.state_path(run))
    with pytest.raises(ValueError, match=r"not a training state"):
        train.main(run=run, resume=True, epochs=3, device="cpu")


def test_a_resume_adds_to_the_record(run: Path) -> None:
    first = checkpoint.read_run(run)
    train.main(run=str(run), resume=True, epochs=3, device="cpu")
    record = json.loads((run / "recipe.json").read_text())
    assert {key: record[key] for key in first if key != "recipe"} == {
        k: v for k, v in first.items() if k != "recipe"
    }
    assert record["recipe"] == first["recipe"] | {"epochs": 3}
    assert [entry["images"] for entry in record["resumed"]] == [first["images"]]
