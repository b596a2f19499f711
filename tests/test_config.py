"""config.py: what a recipe refuses, what it resolves, what the command line says."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import config
from config import RECIPES, Recipe, closest, make_recipe, parse_settings

KINDS = {key: kind for key, kind in get_type_hints(Recipe).items() if key != "name"}
NUMBERS = [key for key, kind in KINDS.items() if kind in (int, float)]
STAGE = """
import json, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import config
config.ROOT = {folder}
def main(number: int = 1) -> None:
    {body}
config.command(main)
"""


@pytest.mark.parametrize("key", NUMBERS)
def test_recipe_refuses_negative_numbers(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key} must be .*, got -1"):
        Recipe("x", **{key: KINDS[key](-1)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", [key for key in NUMBERS if KINDS[key] is float])
def test_recipe_refuses_what_is_not_finite(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{key} must be .*, got {value}"):
        Recipe("x", **{key: value})


@pytest.mark.parametrize("key", [key for key, kind in KINDS.items() if kind is str])
def test_recipe_refuses_unknown_choices(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key} must be one of \w.*, got 'nonsense'"):
        Recipe("x", **{key: "nonsense"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(({key: 1.0}, "in [0, 1), got 1.0") for key in ("val_fraction", "dropout", "beta1", "beta2", "ema")),
        ({"flip": 1.01}, "in [0, 1], got 1.01"),
        *(({key: 0}, "greater than 0, got 0") for key in ("size", "ngf", "ndf", "batch_size", "epochs")),
        *(({key: 0}, "greater than 0, got 0") for key in ("save_every", "lr", "log_every", "samples")),
        ({"load_size": 255}, "at least size (256), got 255"),
        ({"depth": 1}, "2 to 8 with size a multiple of 2^depth (size is 256), got 1"),
        ({"depth": 9, "size": 512}, "got 9"),
        ({"depth": 6, "size": 96}, "(size is 96), got 6"),
        ({"size": 250}, "a multiple of 16 (or set depth), got 250"),
        ({"size": 256.5}, "int, got 256.5"),
        ({"size": "256"}, "int, got '256'"),
        ({"lr": "fast"}, "float, got 'fast'"),
        ({"compile": 1}, "bool, got 1"),
        ({"input": 3}, "str, got 3"),
    ],
)
def test_recipe_refuses(given: dict[str, Any], message: str) -> None:
    key = next(iter(given))
    with pytest.raises(ValueError, match=rf"^{key} must be .*{re.escape(message)}"):
        Recipe("x", **given)


@pytest.mark.parametrize(
    ("given", "depth", "load_size"),
    [
        ({}, 8, 256),
        ({"size": 128}, 7, 128),
        ({"size": 96}, 5, 96),
        ({"size": 512, "load_size": 600}, 8, 600),
        ({"size": 64, "depth": 3}, 3, 64),
    ],
)
def test_recipe_resolves_depth_and_load_size(given: dict[str, Any], depth: int, load_size: int) -> None:
    recipe = Recipe("x", **given)
    assert (recipe.depth, recipe.load_size) == (depth, load_size)


def test_recipe_takes_whole_numbers_as_float_and_a_certain_flip() -> None:
    recipe = Recipe("x", lr=1, flip=1)
    assert (recipe.lr, recipe.flip) == (1.0, 1.0)
    assert type(recipe.lr) is type(recipe.flip) is float


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_construct(name: str) -> None:
    recipe = make_recipe(name, {})
    assert recipe.name == name
    assert {key: getattr(recipe, key) for key in RECIPES[name]} == RECIPES[name]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("anime", dict(input="sketch", output="rgb", flip=0, epochs=150, save_every=10)),
        ("coco", dict(input="L", output="ab", flip=0.5, epochs=950)),
    ],
)
def test_published_recipes(name: str, published: dict[str, Any]) -> None:
    published |= dict(size=256, batch_size=16, lr=2e-4, beta1=0.5, beta2=0.999, lambda_gan=1, lambda_l1=100)
    published |= dict(gan_mode="vanilla", schedule="constant", ema=0, init="default", ngf=64, ndf=64, depth=8)
    recipe = make_recipe(name, {})
    assert {key: getattr(recipe, key) for key in published} == published


def test_make_recipe_leaves_none_out() -> None:
    assert make_recipe("coco", {"epochs": None, "lr": 1e-3}) == Recipe("coco", **RECIPES["coco"], lr=1e-3)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("demos", {}, "no recipe demos; did you mean demo? (known: anime coco demo)"),
        ("zzz", {}, "no recipe zzz (known: anime coco demo)"),
        ("coco", {"lambda_L1": 3.0}, "no recipe field lambda_L1; did you mean lambda_l1? (known: "),
        ("coco", {"name": "other"}, "no recipe field name"),
        ("coco", {"size": 3}, "size must be at least 24 for patch30, got 3"),
        ("anime", {"size": 48}, "size must be at least 52 for patch26, got 48"),
        ("coco", {"size": 33, "depth": 3}, "depth must be 2 to 8"),
    ],
)
def test_make_recipe_errors(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        make_recipe(name, overrides)


def test_closest_names_only_what_is_near() -> None:
    assert closest("epoch", ["seed", "epochs"]) == "; did you mean epochs? (known: epochs seed)"
    assert closest("qqq", ["seed", "epochs"]) == " (known: epochs seed)"


def test_parse_settings_types() -> None:
    settings = ["lr=1e-3", "size=64", "compile=True", "input=sketch", "ema=0"]
    values = parse_settings(settings)
    assert values == {"lr": 1e-3, "size": 64, "compile": True, "input": "sketch", "ema": 0.0}
    assert [type(value) for value in values.values()] == [float, int, bool, str, float]


@pytest.mark.parametrize(("text", "truth"), [("yes", True), ("1", True), ("FALSE", False), ("no", False)])
def test_parse_settings_truth(text: str, truth: bool) -> None:
    assert parse_settings([f"compile={text}"]) == {"compile": truth}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr", "--set takes key=value, got 'lr'"),
        ("learning_rat=1", "no recipe field learning_rat"),
        ("sizes=1", "no recipe field sizes; did you mean size?"),
        ("name=x", "no recipe field name"),
        ("size=64.5", "size takes a value of type int, got '64.5'"),
        ("lr=fast", "lr takes a value of type float, got 'fast'"),
        ("compile=maybe", "compile takes a value of type bool, got 'maybe'"),
        ("epochs=", "epochs takes a value of type int, got ''"),
    ],
)
def test_parse_settings_errors(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        parse_settings([setting])


def test_every_field_can_be_set() -> None:
    recipe = Recipe("x")
    names = [field.name for field in fields(Recipe) if field.name != "name"]
    values = parse_settings([f"{name}={getattr(recipe, name)}" for name in names])
    assert Recipe("x", **values) == recipe


def run_stage(body: str, ours: bool) -> subprocess.CompletedProcess[str]:
    """Run a small stage through config.command; `ours` declares its folder to be the project's."""
    folder = "Path(__file__).resolve().parent" if ours else "config.ROOT"
    Path("stage.py").write_text(STAGE.format(root=str(config.ROOT), folder=folder, body=body))
    return subprocess.run([sys.executable, "stage.py"], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('size must be 4, got 3')", "size must be 4, got 3"),
        ("open('nothing.png')", "[Errno 2] No such file or directory: 'nothing.png'"),
    ],
)
def test_command_says_a_users_mistake_in_one_sentence(body: str, message: str) -> None:
    done = run_stage(body, ours=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"stage.py: {message}\n")


@pytest.mark.parametrize(
    ("body", "ours", "error"),
    [
        ("json.loads('{')", True, "JSONDecodeError"),  # a ValueError, but raised inside the json library
        ("raise ValueError('mine')", False, "ValueError"),  # our own, but not from the project's folder
        ("raise TypeError('a bug')", True, "TypeError"),
    ],
)
def test_command_lets_bugs_through_with_a_traceback(body: str, ours: bool, error: str) -> None:
    done = run_stage(body, ours)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert error in done.stderr


def test_command_runs_main() -> None:
    done = run_stage("print('number', number)", ours=True)
    assert (done.returncode, done.stdout) == (0, "number 1\n")
