"""config.py: the recipes are what was published; what is asked for by name or by --set."""

import re
from dataclasses import asdict, fields
from typing import Any

import pytest
import torch

from config import RECIPES, ClassifierRecipe, Recipe, closest, make_recipe, parse_settings
from imaging import color
from inference import checkpoint
from models import DISCRIMINATORS, count_parameters

KNOWN = " ".join(sorted(RECIPES))
ADAM = {"lr": 2e-4, "lr_d": 0.0, "beta1": 0.5, "beta2": 0.999}
# what all published GANs share: BCE and 100 x L1, default initialisation
GAN = {
    **ADAM, "gan_mode": "vanilla", "label_real": 1.0, "lambda_gan": 1.0, "lambda_l1": 100.0,
    "lambda_mse": 0.0, "lambda_perceptual": 0.0, "ngf": 64, "ndf": 64, "norm_d": "batch", "init": "default",
    "spectral_norm": False, "pretrain_epochs": 0, "pretrained": False, "size": 256, "fit": "crop", "seed": 42,
}  # fmt: skip
PLAIN = {"schedule": "constant", "ema": 0.0}
UNET = {**PLAIN, "depth": 8, "dropout": 0.5, "batch_size": 16}
URESNET = {
    **GAN, **PLAIN, "input": "L", "output": "ab", "generator": "resunet", "discriminator": "patch15",
    "batch_size": 4, "epochs": 120, "pretrain_epochs": 20, "pretrained": True, "flip": 0.5,
    "min_colorfulness": 10.0,
}  # fmt: skip
MANGA = {
    **GAN, **UNET, "input": "gray", "output": "rgb", "discriminator": "patch15-bias", "epochs": 50,
    "flip": 0.0, "attention": 0, "lambda_gan": 0.01, "lambda_l1": 1.0, "lambda_perceptual": 0.1,
    "anime_share": 0.0,
}  # fmt: skip
# of the framework's, batch size, schedule and averaging are ours: it trained 5 epochs by default
FRAME = {**GAN, "input": "L", "output": "ab", "flip": 0.5, "dropout": 0.0}
PLACES, CIFAR = {**FRAME, "size": 224, "load_size": 256}, {**FRAME, "size": 32, "load_size": 32}
MSE = {
    "discriminator": "none", "lr": 1e-3, "beta1": 0.9, "lambda_l1": 0.0, "lambda_mse": 1.0,
}  # fmt: skip
PUBLISHED = {
    "coco": {
        **GAN, **UNET, "input": "L", "output": "ab", "generator": "unet", "discriminator": "patch30",
        "flip": 0.5, "epochs": 950,
    },
    "anime": {
        **GAN, **UNET, "input": "sketch", "output": "rgb", "generator": "unet-reflect",
        "discriminator": "patch26", "flip": 0.0, "epochs": 150, "save_every": 10,
    },
    "coco-resnet": URESNET,
    "groups": URESNET,
    "manga": {**MANGA, "generator": "unet-bn"},
    "manga-att": {**MANGA, "generator": "unet-att"},
    "manga-ext": {**MANGA, "generator": "unet-ext", "anime_share": 0.1},
    "manga-att-ext": {**MANGA, "generator": "unet-att-ext", "anime_share": 0.1},
    "places-resnet": {**PLACES, **MSE, "generator": "resnet"},
    "unet32": {**CIFAR, **MSE, "generator": "unet32"},
    "unet224": {**PLACES, **MSE, "generator": "unet224"},
    "nazerigan32": {**CIFAR, "generator": "unet32", "discriminator": "image32", "label_real": 0.9},
    "nazerigan224": {**PLACES, "generator": "unet224", "discriminator": "image224", "label_real": 0.9},
    "cgan": {
        **PLACES, "output": "rgb", "generator": "convgen", "discriminator": "image-rgb", "label_real": 0.9,
        "init": "kaiming",
    },
}  # fmt: skip
OURS = {"nazerigan32": {"lr", "lr_d"}}  # where a recipe departs from what was published, its comment says why
# parameters to train of the generator and of the discriminator, side of the logits
COUNTED = {
    "coco": (54_409_856, 2_765_633, 30),
    "anime": (54_414_531, 2_768_640, 26),
    "manga": (54_418_563, 2_767_553, 15),
    "manga-att": (54_418_563 + 328_321, 2_767_553, 15),
    "manga-ext": (58_612_867, 2_767_553, 15),
    "manga-att-ext": (59_924_868, 2_767_553, 15),
    "coco-resnet": (None, 2_765_633, 15),  # its decoder is ours
    "groups": (None, 2_765_633, 15),
    "places-resnet": (954_722, None, None),
    "unet32": (6_297_026, None, None),
    "unet224": (41_957_826, None, None),
    "nazerigan32": (6_297_026, 2_760_513, 1),
    "nazerigan224": (41_957_826, 15_350_593, 3),  # 7 px become 6, 5 and 3
    "cgan": (7_822_342, 16_758_848, 1),
}


def test_every_recipe_stands_for_something() -> None:
    assert len(RECIPES) == 16
    assert RECIPES.keys() == RECIPES.keys()
    assert RECIPES.keys() - {"demo", "restore"} == PUBLISHED.keys() == COUNTED.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_construct(name: str) -> None:
    recipe = make_recipe(name, {})
    assert recipe.name == name
    expected = {**RECIPES[name], "load_size": RECIPES[name].get("load_size") or recipe.size}
    assert {key: getattr(recipe, key) for key in expected} == expected
    assert Recipe(**asdict(recipe)) == recipe  # as a run stores it


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_as_published(name: str) -> None:
    recipe = asdict(make_recipe(name, {}))
    published = {key: value for key, value in PUBLISHED[name].items() if key not in OURS.get(name, ())}
    assert {key: recipe[key] for key in published} == published
    assert recipe["load_size"] == published.get("load_size", recipe["size"])
    assert not any(recipe[key] for key in recipe if key.endswith("_p"))  # none damages its input


def test_restore_damages_its_input_and_mends_lightness() -> None:
    recipe = asdict(make_recipe("restore", {}))
    assert (recipe["input"], recipe["output"], recipe["min_colorfulness"]) == ("L", "Lab", 10.0)
    assert all(0 < recipe[key] < 1 for key in recipe if key.endswith("_p"))
    assert sum(key.endswith("_p") for key in recipe) == 7


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_take_pictures_of_any_shape(name: str) -> None:
    colorizer = checkpoint.build_colorizer(asdict(make_recipe(name, {"ngf": 4}))).eval()
    for height, width in ((1, 1), (300, 500), (45, 448), (448, 45), (1, 300)):
        with torch.inference_mode():
            out = colorizer(torch.full((2, 3, height, width), 90, dtype=torch.uint8))
        assert (out.shape, out.dtype) == ((2, 3, height, width), torch.uint8)


@pytest.mark.parametrize("name", RECIPES)
def test_networks_of_recipes_at_full_size(name: str) -> None:
    recipe = make_recipe(name, {})
    counts = COUNTED.get(name, (None, None, None))
    x_channels, y_channels = color.CHANNELS[recipe.input], color.CHANNELS[recipe.output]
    with torch.device("meta"):  # shapes without numbers
        generator = checkpoint.build_colorizer(asdict(recipe)).generator
        x = torch.empty(2, x_channels, recipe.size, recipe.size)
        y = generator(x)
        assert y.shape == (2, y_channels, recipe.size, recipe.size)
        assert counts[0] in (None, count_parameters(generator))
        if recipe.discriminator == "none":
            return
        discriminator = DISCRIMINATORS[recipe.discriminator](
            x_channels, y_channels, recipe.ndf, norm=recipe.norm_d
        )
        logits = discriminator(x, y)
    assert counts[1] in (None, count_parameters(discriminator))
    assert logits.shape == (2, 1, *(2 * [counts[2] or logits.size(2)]))


def test_make_recipe_leaves_none_out() -> None:
    assert make_recipe("coco", {"epochs": None, "lr": 1e-3}) == Recipe("coco", **RECIPES["coco"], lr=1e-3)
    assert make_recipe("coco", {"epochs": 7}).epochs == 7


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("demos", {}, f"no recipe demos; did you mean demo? (known: {KNOWN})"),
        ("zzz", {}, f"no recipe zzz (known: {KNOWN})"),
        ("manga_att", {}, "no recipe manga_att; did you mean manga-att? (known: "),
        ("coco", {"lambda_L1": 3.0}, "no recipe field lambda_L1; did you mean lambda_l1? (known: "),
        ("coco", {"name": "other"}, "no recipe field name"),
        ("coco", {"size": 3}, "size must be at least 24 for patch30, got 3"),
        ("anime", {"size": 48}, "size must be at least 52 for patch26, got 48"),
        ("coco", {"size": 33, "depth": 3}, "depth must be 2 to 8"),
        ("manga", {"batch_size": 1}, "batch_size must be 2 or more, as BatchNorm meets a single pixel"),
        ("unet32", {"size": 40}, "size must be a multiple of 16 for unet32, got 40"),
        ("cgan", {"output": "ab", "input": "gray"}, "output must be rgb where input is gray, got 'ab'"),
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


def test_every_field_of_a_classifier_can_be_set() -> None:
    recipe = ClassifierRecipe()
    settings = [f"{field.name}={getattr(recipe, field.name)}" for field in fields(ClassifierRecipe)]
    assert ClassifierRecipe(**parse_settings(settings, ClassifierRecipe)) == recipe
    with pytest.raises(ValueError, match=r"^no recipe field netwerk; did you mean network\?"):
        parse_settings(["netwerk=vgg16"], ClassifierRecipe)


def test_zeros_of_a_classifier_are_settled() -> None:
    assert (ClassifierRecipe().lr, ClassifierRecipe(pretrained=True).lr) == (0.1, 0.01)
    assert ClassifierRecipe(pretrained=True, lr=1).lr == 1.0
    assert (ClassifierRecipe(size=32).load_size, ClassifierRecipe(size=32, load_size=36).load_size) == (
        32,
        36,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size must be greater than 0, got 0"),
        ({"size": "big"}, "size must be int, got 'big'"),
        ({"load_size": 100}, "load_size must be at least size (224), got 100"),
        ({"epochs": 0}, "epochs must be greater than 0"),
        ({"batch_size": -1}, "batch_size must be greater than 0"),
        ({"lr": -0.1}, "lr must be at least 0"),
        ({"lr": float("nan")}, "lr must be at least 0"),
        ({"lr": float("inf")}, "lr must be at least 0"),
        ({"weight_decay": -1}, "weight_decay must be at least 0"),
        ({"limit": -1}, "limit must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"flip": 1.5}, "flip must be in [0, 1]"),
        ({"momentum": 1}, "momentum must be in [0, 1)"),
        ({"warmup": 1.0}, "warmup must be in [0, 1)"),
        ({"label_smoothing": -0.1}, "label_smoothing must be in [0, 1)"),
        ({"val_fraction": 1.0}, "val_fraction must be in [0, 1)"),
        ({"fit": "stretch"}, "fit must be one of crop squash, got 'stretch'"),
        ({"precision": "fp8"}, "precision must be one of auto fp32 bf16 fp16"),
    ],
)
def test_classifier_recipes_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        ClassifierRecipe(**changes)
