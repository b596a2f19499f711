"""Recipes are what was published; a value out of range and an unknown name are refused in one sentence."""

import math
import re
from dataclasses import asdict
from typing import Any, get_type_hints

import pytest

from config import (
    CHOICES,
    DEGRADATIONS,
    RECIPES,
    ClassifierRecipe,
    Recipe,
    UserError,
    make_recipe,
    parse_settings,
    settle,
)
from models import fit_networks

KINDS = get_type_hints(Recipe)
NUMBERS = [key for key, kind in KINDS.items() if kind in (int, float)]
ALONE = {"discriminator": "none"}
# what all published GANs share: BCE and 100 x L1, default initialisation
GAN = {
    "lr": 2e-4, "lr_d": 0.0, "beta1": 0.5, "beta2": 0.999, "gan_mode": "vanilla", "label_real": 1.0,
    "lambda_gan": 1.0, "lambda_l1": 100.0, "lambda_mse": 0.0, "lambda_perceptual": 0.0, "ngf": 64, "ndf": 64,
    "norm_d": "batch", "init": "default", "spectral_norm": False, "pretrain_epochs": 0, "pretrained": False,
    "size": 256, "fit": "crop", "seed": 42,
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
MSE = {"discriminator": "none", "lr": 1e-3, "beta1": 0.9, "lambda_l1": 0.0, "lambda_mse": 1.0}
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


def test_every_recipe_is_compared_with_its_publication() -> None:
    assert RECIPES.keys() - {"demo", "restore", "photo"} == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_as_published(name: str) -> None:
    recipe = asdict(fit_networks(make_recipe(name, {})))
    published = {key: value for key, value in PUBLISHED[name].items() if key not in OURS.get(name, ())}
    assert {key: recipe[key] for key in published} == published
    assert recipe["load_size"] == published.get("load_size", recipe["size"])
    assert not any(recipe[key] for key in recipe if key.endswith("_p"))  # none degrades its input


def test_restore_degrades_its_input_and_mends_lightness() -> None:
    recipe = make_recipe("restore", {})
    assert (recipe.input, recipe.output, recipe.min_colorfulness) == ("L", "Lab", 10.0)
    assert list(recipe.degradations) == list(DEGRADATIONS)
    assert all(0 < probability < 1 for _, probability in recipe.degradations.values())
    some = make_recipe("coco", {"jpeg_p": 0.25, "blur_p": 1}).degradations
    assert list(some.items()) == [("blur", (0.5, 1)), ("jpeg", (0.5, 0.25))]


def test_weights_of_loss_terms() -> None:
    assert Recipe("x").term_weights == {"G_gan": 1.0, "G_l1": 100.0, "D_real": 0.5, "D_fake": 0.5}
    fields = {"lambda_l1": 0.0, "lambda_mse": 2.0, "lambda_perceptual": 0.5, "anime_share": 0.2}
    assert Recipe("x", lambda_gan=3.0, **fields, **ALONE).term_weights == {
        "G_mse": 2.0, "G_perceptual": pytest.approx(0.4), "G_anime": pytest.approx(0.1)
    }  # fmt: skip
    assert "G_perceptual" not in Recipe("x", lambda_perceptual=0.5, anime_share=1.0).term_weights
    assert Recipe("x", lambda_gan=0.0).term_weights == {"G_l1": 100.0}


def test_a_recipe_comes_back_from_its_record() -> None:
    recipe = make_recipe("coco", {"size": 64, "lr": 1})
    record = asdict(recipe)
    assert Recipe.from_record(record) == recipe
    assert type(record["lr"]) is float
    del record["seed"], record["metric"]  # as an older version wrote it
    assert Recipe.from_record(record) == recipe
    assert Recipe.from_record({**record, "compile": True}).compile == "true"
    classifier = ClassifierRecipe(size=32)
    assert ClassifierRecipe.from_record(asdict(classifier)) == classifier
    for odd, field in (({**record, "learning": 1}, "learning"), ({**record, "name": None}, "name")):
        with pytest.raises(UserError, match=field):
            Recipe.from_record(odd)
    with pytest.raises(UserError, match="name"):
        Recipe.from_record({"size": 64})


def test_make_recipe() -> None:
    recipe = make_recipe("coco", {"epochs": None, "lr": 1e-3})  # None: not given
    assert (recipe.epochs, recipe.lr, recipe.generator) == (950, 1e-3, "unet")
    assert (recipe.system, Recipe("mine").system) == ("photo in Lab, pix2pix", "")
    for name, message in (
        ("demos", "no recipe demos; did you mean demo? (known: "),
        ("zzz", "no recipe zzz (known: "),
        ("manga_att", "no recipe manga_att; did you mean manga-att? (known: "),
    ):
        with pytest.raises(UserError, match="^" + re.escape(message)):
            make_recipe(name, {})


def refusal(**given: Any) -> str:
    """Return the sentence with which a recipe with these fields is refused; it ends in the value found."""
    with pytest.raises(UserError, match=r"^\w+ must be .*, got ") as caught:
        Recipe("x", **given)
    message = str(caught.value)
    assert message.endswith(f", got {given[message.split()[0]]!r}")
    return message


def test_numbers_are_in_range_and_finite() -> None:
    for key in NUMBERS:
        values = [-1, math.nan, math.inf] if KINDS[key] is float else [-1]
        for value in values:
            assert refusal(**{key: KINDS[key](value)}).startswith(f"{key} must be ")


def test_unknown_choices_are_refused_with_a_list_of_all() -> None:
    for key in KINDS.keys() & CHOICES.keys():
        assert f"one of {' '.join(CHOICES[key])}," in refusal(**{key: "nonsense"})


def test_shares_reach_1_and_no_further() -> None:
    for key in ("flip", "line_share", "label_real", "anime_share", "jpeg", "jpeg_p", "blur", "blur_p"):
        assert getattr(Recipe("x", **{key: 1}), key) == 1.0
        assert "in [0, 1]" in refusal(**{key: 1.01})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        *(({key: 1.0}, "in [0, 1)") for key in ("val_fraction", "dropout", "beta1", "beta2", "ema")),
        *(({key: 0}, "greater than 0") for key in ("size", "ngf", "ndf", "batch_size", "epochs", "samples")),
        *(({key: 0}, "greater than 0") for key in ("save_every", "log_every")),
        *(({key: 0.0}, "greater than 0") for key in ("lr", "label_real")),
        ({"load_size": 255}, "at least size (256)"), ({"size": 256.5}, "int"), ({"size": "256"}, "int"),
        ({"lr": "fast"}, "float"), ({"input": 3}, "str"), ({"pretrained": 1}, "bool"),
        ({"compile": "maybe"}, "one of auto true false"),
        *(({"output": y, "input": x}, f"rgb where input is {x}")
          for x in CHOICES["input"] if x != "L" for y in ("ab", "Lab")),
        ({"lambda_l1": 0.0, "lambda_gan": 0.0}, "greater than 0 where no other term trains the generator"),
        ({"lambda_l1": 0.0, **ALONE}, "greater than 0 where no other term trains the generator"),
        ({"lambda_l1": 0.0, "pretrain_epochs": 1}, "greater than 0 where no other term trains the generator"),
        ({"pretrain_epochs": 4, "epochs": 3}, "at most 3, the epochs in all"),
        ({"half_epochs": 4, "epochs": 3}, "at most 3, the epochs in all"),
        ({"pretrain_epochs": 1, **ALONE}, "at most 0, as there is no discriminator"),
    ],
)  # fmt: skip
def test_refused(given: dict[str, Any], wanted: str) -> None:
    assert f"{next(iter(given))} must be {wanted}" in refusal(**given)


@pytest.mark.parametrize(
    "given",
    [
        *({"output": y} for y in CHOICES["output"]),
        *({"input": x, "output": "rgb"} for x in CHOICES["input"]),
        {"lambda_l1": 0.0}, {"lambda_gan": 0.0}, {"pretrain_epochs": 50},
        {"lambda_l1": 0.0, "lambda_mse": 1.0, **ALONE}, {"lambda_l1": 0.0, "lambda_perceptual": 1.0, **ALONE},
        {"min_colorfulness": 0.0, "limit": 0, "seed": 0, "pretrain_lr": 0.0, "lr_d": 0.0},
    ],
)  # fmt: skip
def test_accepted(given: dict[str, Any]) -> None:
    recipe = Recipe("x", **given)
    assert {key: getattr(recipe, key) for key in given} == given


def test_parse_settings_types() -> None:
    values = parse_settings(["lr=1e-3", "size=64", "pretrained=True", "input=sketch", "ema=0"])
    assert values == {"lr": 1e-3, "size": 64, "pretrained": True, "input": "sketch", "ema": 0.0}
    assert [type(value) for value in values.values()] == [float, int, bool, str, float]
    for text, truth in (("yes", True), ("1", True), ("FALSE", False), ("no", False)):
        assert parse_settings([f"pretrained={text}"]) == {"pretrained": truth}
    british = ["min_colourfulness=3", "metric=colourfulness_error", "input=grey+line", "pair_folders=Colour/grey"]
    american = {"min_colorfulness": 3.0, "metric": "colorfulness_error", "input": "gray+line"}
    assert parse_settings(british) == {**american, "pair_folders": "Colour/grey"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr", "--set takes key=value, got 'lr'"), ("learning_rat=1", "no recipe field learning_rat"),
        ("sizes=1", "no recipe field sizes; did you mean size?"), ("name=x", "no recipe field name"),
        ("lambda_L1=3", "no recipe field lambda_L1; did you mean lambda_l1? (known: "),
        ("size=64.5", "size takes a value of type int, got '64.5'"),
        ("lr=fast", "lr takes a value of type float, got 'fast'"),
        ("pretrained=maybe", "pretrained takes a value of type bool, got 'maybe'"),
        ("epochs=", "epochs takes a value of type int, got ''"),
    ],
)  # fmt: skip
def test_parse_settings_errors(setting: str, message: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(message)):
        parse_settings([setting])


@pytest.mark.parametrize("kind", [Recipe, ClassifierRecipe])
def test_every_field_can_be_set(kind: type[Recipe] | type[ClassifierRecipe]) -> None:
    name = {"name": "x"} if kind is Recipe else {}
    recipe = kind(**name)
    settings = [f"{key}={value}" for key, value in asdict(recipe).items() if key != "name"]
    assert kind(**name, **parse_settings(settings, kind)) == recipe
    with pytest.raises(UserError, match=r"^no recipe field sizze; did you mean size\?"):
        parse_settings(["sizze=1"], kind)


def test_zeros_of_a_classifier_are_settled() -> None:
    assert (ClassifierRecipe().lr, ClassifierRecipe(pretrained=True).lr) == (0.1, 0.01)
    assert ClassifierRecipe(pretrained=True, lr=1).lr == 1.0
    assert [ClassifierRecipe(size=32, load_size=side).load_size for side in (0, 36)] == [32, 36]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size must be greater than 0"), ({"size": "big"}, "size must be int"),
        ({"load_size": 100}, "load_size must be at least size"), ({"lr": math.nan}, "lr must be"),
        ({"weight_decay": -1}, "weight_decay must be at least 0"), ({"momentum": 1}, "momentum must be in"),
        ({"warmup": 1.0}, "warmup must be in"), ({"label_smoothing": -0.1}, "label_smoothing must be in"),
        ({"fit": "stretch"}, "fit must be one of crop squash"),
        ({"precision": "fp8"}, "precision must be one of auto fp32 bf16 fp16"),
    ],
)  # fmt: skip
def test_classifier_recipes_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(message)):
        ClassifierRecipe(**changes)


def test_fields_follow_those_given_in_the_recipes_proportions() -> None:
    assert settle("unet224", {"size": 112}) == {"load_size": 128}
    assert settle("photo", {"size": 64}) == {"load_size": 83, "test_size": 102}
    assert settle("photo", {"size": 64, "test_size": 64}) == {"load_size": 83}
    assert settle("groups", {"epochs": 6}) == {"pretrain_epochs": 1}
    assert settle("groups", {"epochs": 6, "pretrain_epochs": 3}) == settle("coco", {"size": 64, "epochs": 2}) == {}
    assert make_recipe("unet224", {"size": 112}).load_size == 128
    assert settle("demo", {"epochs": 3}) == {"half_epochs": 1, "pretrain_epochs": 3}
    assert settle("demo", {"size": 96}) == {"half_epochs": 0}  # a size whose half may not fit
