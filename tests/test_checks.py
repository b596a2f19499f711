"""checks.py: what a recipe's fields can be, in one sentence each; what passes can be built and trained."""

import re
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn

import models
from config import CHOICES, DEGRADATIONS, Recipe
from dataset import degradations
from imaging import color
from models import DISCRIMINATORS, GENERATORS
from training import gan
from training.gan import Batch, build_training, train_step

HALVINGS = {name: network.halvings for name, network in GENERATORS.items() if network.halvings}
UNETS = [name for name in GENERATORS if name not in HALVINGS]
NETWORKS = {**GENERATORS, **DISCRIMINATORS}
SMALLEST = {name: network.smallest for name, network in NETWORKS.items() if network.smallest > 1}
KINDS = {key: kind for key, kind in get_type_hints(Recipe).items() if key != "name"}
NUMBERS = [key for key, kind in KINDS.items() if kind in (int, float)]
CPU = torch.device("cpu")
PLAIN = [name for name in UNETS if not name.endswith("-ext")]  # an extractor works at 360 px, and is slow
ALONE = {"discriminator": "none"}
LONE = "as BatchNorm meets a single pixel at this size"
LINES = [kind for kind in CHOICES["input"] if kind != "L"]


def sentence(**given: Any) -> str:
    """Return what a recipe with these fields is refused with: one sentence that ends in the value found."""
    with pytest.raises(ValueError, match=r"^\w+ must be .*, got ") as caught:
        Recipe("x", **given)
    message = str(caught.value)
    key = message.split()[0]
    assert "\n" not in message
    if key in given:
        assert message.endswith(f", got {given[key]!r}")
    return message


@pytest.mark.parametrize("key", NUMBERS)
def test_negative_numbers_are_refused(key: str) -> None:
    assert re.match(rf"{key} must be .*, got -1", sentence(**{key: KINDS[key](-1)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", [key for key in NUMBERS if KINDS[key] is float])
def test_what_is_not_finite_is_refused(key: str, value: float) -> None:
    assert re.match(rf"{key} must be .*, got {value}", sentence(**{key: value}))


@pytest.mark.parametrize("key", [key for key, kind in KINDS.items() if kind is str])
def test_unknown_choices_are_refused_with_a_list_of_all(key: str) -> None:
    assert sentence(**{key: "nonsense"}) == f"{key} must be one of {' '.join(CHOICES[key])}, got 'nonsense'"


@pytest.mark.parametrize("key", [key for key, kind in KINDS.items() if kind is bool])
def test_truths_are_no_numbers(key: str) -> None:
    assert sentence(**{key: 1}) == f"{key} must be bool, got 1"


@pytest.mark.parametrize("key", ["flip", "line_share", "label_real", "anime_share", *DEGRADATIONS])
def test_shares_reach_1_and_no_further(key: str) -> None:
    assert getattr(Recipe("x", **{key: 1}), key) == 1.0
    assert sentence(**{key: 1.01}) == f"{key} must be in [0, 1], got 1.01"
    if key in DEGRADATIONS:
        assert sentence(**{f"{key}_p": 1.01}) == f"{key}_p must be in [0, 1], got 1.01"


RANGES = [
    *(({key: 1.0}, "in [0, 1)") for key in ("val_fraction", "dropout", "beta1", "beta2", "ema")),
    *(({key: 0}, "greater than 0") for key in ("size", "ngf", "ndf", "batch_size", "epochs")),
    *(({key: 0}, "greater than 0") for key in ("save_every", "log_every", "samples")),
    ({"lr": 0.0}, "greater than 0"),
    ({"load_size": 255}, "at least size (256)"),
    ({"size": 256.5}, "int"),
    ({"size": "256"}, "int"),
    ({"lr": "fast"}, "float"),
    ({"input": 3}, "str"),
]
SIZES = [
    ({"depth": 1}, "2 to 8 with size a multiple of 2^depth (size is 256)"),
    ({"depth": 9, "size": 512}, "2 to 8 with size a multiple of 2^depth (size is 512)"),
    ({"depth": 6, "size": 96}, "2 to 8 with size a multiple of 2^depth (size is 96)"),
    ({"size": 250}, "a multiple of 16 (or set depth)"),
    *(({"depth": n + i, "generator": g}, f"0 or {n} for {g}") for g, n in HALVINGS.items() for i in (-1, 1)),
    *(
        ({"size": 256 + 2**n // 2, "generator": g}, f"a multiple of {2**n} for {g}")
        for g, n in HALVINGS.items()
    ),
    *(
        ({"size": n - 1, "discriminator": d}, f"at least {n} for {d}")
        for d, n in SMALLEST.items()
        if d != "unet224"
    ),
    ({"size": 64, "generator": "unet224", **ALONE}, "at least 96 for unet224"),
]
NETWORKS = [
    *(({"output": y, "input": x}, f"rgb where input is {x}") for x in LINES for y in ("ab", "Lab")),
    ({"attention": 32}, "0 for generator unet"),
    ({"attention": 32, "generator": "resunet"}, "0 for generator resunet"),
    ({"attention": 256, "generator": "unet-att"}, "0 or one of 128 64 32 16 8 4 2 1 px"),
    ({"attention": 5, "generator": "unet-att-ext", "size": 96}, "0 or one of 48 24 12 6 3 px"),
    ({"attention": 2, "generator": "unet-att", "size": 64, "depth": 4}, "0 or one of 32 16 8 4 px"),
    *(
        ({"pretrained": True, "generator": g}, f"false for {g}")
        for g in (*UNETS, "unet32", "unet224", "convgen")
    ),
    *(({"batch_size": 1, "generator": g}, f"2 or more, {LONE}") for g in UNETS[2:]),
    *(({"norm_stats": "batch", "generator": g}, f"running, {LONE}") for g in UNETS[2:]),
]
LOSSES = [
    ({"lambda_l1": 0.0, "lambda_gan": 0.0}, "greater than 0 where no other term trains the generator"),
    ({"lambda_l1": 0.0, **ALONE}, "greater than 0 where no other term trains the generator"),
    ({"lambda_l1": 0.0, "pretrain_epochs": 1}, "greater than 0 where no other term trains the generator"),
    ({"pretrain_epochs": 201}, "at most 200, the epochs in all (--set pretrain_epochs=...)"),
    ({"pretrain_epochs": 4, "epochs": 3}, "at most 3, the epochs in all (--set pretrain_epochs=...)"),
    ({"pretrain_epochs": 1, **ALONE}, "at most 0, as there is no discriminator"),
]


@pytest.mark.parametrize(("given", "message"), [*RANGES, *SIZES, *NETWORKS, *LOSSES])
def test_refused(given: dict[str, Any], message: str) -> None:
    key, value = next(iter(given.items()))
    assert sentence(**given) == f"{key} must be {message}, got {value!r}"


@pytest.mark.parametrize(
    "given",
    [
        *({"output": y} for y in CHOICES["output"]),
        *({"input": x, "output": "rgb"} for x in CHOICES["input"]),
        *({"attention": 2**n, "generator": "unet-att"} for n in range(8)),
        *({"pretrained": True, "generator": g} for g in ("resunet", "resunet34", "resnet")),
        {"generator": "unet-bn", "batch_size": 1, "depth": 7},
        {"generator": "unet-bn", "batch_size": 1, "size": 96},
        {"generator": "unet-bn", "norm_stats": "batch", "depth": 7},
        {"generator": "unet", "norm_stats": "batch", "batch_size": 1},
        {"lambda_l1": 0.0},
        {"lambda_l1": 0.0, "lambda_mse": 1.0, **ALONE},
        {"lambda_l1": 0.0, "lambda_perceptual": 1.0, **ALONE},
        {"lambda_gan": 0.0},
        {"pretrain_epochs": 200},
        {"min_colorfulness": 0.0, "limit": 0, "seed": 0, "pretrain_lr": 0.0, "lr_d": 0.0},
    ],
)
def test_accepted(given: dict[str, Any]) -> None:
    recipe = Recipe("x", **given)
    assert {key: getattr(recipe, key) for key in given} == given


@pytest.mark.parametrize(
    ("given", "depth", "load_size"),
    [
        ({}, 8, 256),
        ({"size": 128}, 7, 128),
        ({"size": 96}, 5, 96),
        ({"size": 512, "load_size": 600}, 8, 600),
        ({"size": 64, "depth": 3}, 3, 64),
        *(({"generator": g, "depth": d}, n, 256) for g, n in HALVINGS.items() for d in (0, n)),
    ],
)
def test_depth_and_load_size_are_settled(given: dict[str, Any], depth: int, load_size: int) -> None:
    recipe = Recipe("x", **given)
    assert (recipe.depth, recipe.load_size) == (depth, load_size)
    assert Recipe("x", **{**given, "depth": depth, "load_size": load_size}) == recipe  # as it is stored


def test_whole_numbers_are_taken_for_floats() -> None:
    recipe = Recipe("x", lr=1, flip=1)
    assert (recipe.lr, recipe.flip) == (1.0, 1.0)
    assert type(recipe.lr) is type(recipe.flip) is float


def test_choices_are_what_there_is() -> None:
    assert CHOICES["generator"] == tuple(GENERATORS)
    assert set(HALVINGS) | set(UNETS) == set(GENERATORS)
    assert CHOICES["discriminator"] == (*DISCRIMINATORS, "none")
    assert set(CHOICES["norm_d"]) == set(models.NORMS)
    assert set(CHOICES["init"]) == {*models.INITS, "default"}
    assert {*CHOICES["input"], *CHOICES["output"]} == set(color.CHANNELS)
    assert set(DEGRADATIONS) == set(degradations.DEGRADATIONS)
    verdicts = {float(gan.gan_loss(torch.full((4,), 3.0), False, mode)) for mode in CHOICES["gan_mode"]}
    assert len(verdicts) == len(CHOICES["gan_mode"])  # a loss of its own each


def generator(name: str, depth: int = 0) -> nn.Module:
    torch.manual_seed(0)
    return GENERATORS[name](1, 2, 4, depth=depth, dropout=0.0, attention_depth=0).eval()


def sides(network: nn.Module, size: int) -> set[int]:
    """Return the sides of all feature maps that a network makes of a square."""
    found: set[int] = set()

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            found.add(output.size(3))

    for module in network.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        assert network(torch.zeros(1, 1, size, size)).shape == (1, 2, size, size)
    return found


@pytest.mark.parametrize("name", HALVINGS)
def test_halvings_are_those_of_the_network(name: str) -> None:
    n = HALVINGS[name]
    found = sides(generator(name), 224)
    assert {224 >> i for i in range(n + 1)} <= found
    assert min(found) > 224 >> (n + 1)  # unet224's last two, of stride 1, take a pixel each


@pytest.mark.parametrize("depth", [2, 5, 8])
@pytest.mark.parametrize("name", [name for name in UNETS if not name.endswith("-ext")])
def test_halvings_of_a_u_net_are_its_depth(name: str, depth: int) -> None:
    assert min(sides(generator(name, depth), 2**depth)) == 1


@pytest.mark.parametrize("name", HALVINGS)
def test_sizes_that_cannot_be_halved_so_often_do_not_work(name: str) -> None:
    size = 224 + 2 ** HALVINGS[name] // 2
    assert sentence(size=size, generator=name).startswith("size must be a multiple of")
    with pytest.raises((RuntimeError, AssertionError)):  # the skips differ, or the output does
        sides(generator(name), size)


def logits(name: str, size: int) -> Tensor:
    x, y = torch.zeros(2, 1, size, size), torch.zeros(2, 2, size, size)
    return DISCRIMINATORS[name](1, 2, 4, norm="batch")(x, y)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_smallest_sizes_of_discriminators(name: str) -> None:
    size = SMALLEST[name]
    assert logits(name, size).numel() > 0
    for less in (1, 8, 16):
        with pytest.raises(RuntimeError):
            assert logits(name, size - less).numel() > 0, "no logits"


def test_image_rgb_works_at_its_smallest_size() -> None:
    assert logits("image-rgb", SMALLEST["image-rgb"]).shape == (2, 1, 1, 1)
    with pytest.raises(RuntimeError):
        logits("image-rgb", 192)  # the next that convgen takes


def test_smallest_size_of_unet224() -> None:
    sides(generator("unet224"), SMALLEST["unet224"])
    with pytest.raises(RuntimeError):
        sides(generator("unet224"), SMALLEST["unet224"] - 32)


def trains(**given: Any) -> bool:
    """Take one step of training as a recipe has it; tell whether every loss term is finite."""
    recipe = Recipe("x", **{"ngf": 4, "ndf": 4, "precision": "fp32", **given})
    image = torch.randint(0, 256, (recipe.batch_size, 3, recipe.size, recipe.size), dtype=torch.uint8)
    batch = Batch(color.encode(image, recipe.input), color.encode(image, recipe.output), image)
    terms = train_step(
        build_training(recipe, CPU, "fp32"), batch, recipe, torch.autocast("cpu", enabled=False)
    )
    return all(bool(torch.isfinite(value)) for value in terms.values())


@pytest.mark.parametrize("norm_d", CHOICES["norm_d"])
@pytest.mark.parametrize("name", [name for name in DISCRIMINATORS if name != "image-rgb"])
def test_smallest_sizes_train_even_one_by_one(name: str, norm_d: str) -> None:
    assert trains(size=SMALLEST[name], depth=2, discriminator=name, norm_d=norm_d, batch_size=1)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("name", [name for name in UNETS if not name.endswith("-ext")])
def test_a_single_pixel_is_refused_where_it_cannot_be_normalised(name: str, batch_size: int) -> None:
    given = {"generator": name, "size": 16, "batch_size": batch_size, **ALONE}
    if name in UNETS[:2] or batch_size == 2:
        assert trains(**given)
    else:
        assert sentence(**given).startswith("batch_size must be 2 or more")
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            generator(name, 4).train()(torch.zeros(1, 1, 16, 16))


# whose innermost feature map is one pixel too, and normalised
ONE_PIXEL = [
    {"generator": "unet32", "size": 16, **ALONE},
    {"generator": "unet224", "size": 96, **ALONE},
    {"generator": "convgen", "size": 32, **ALONE},
    {"generator": "resnet", "size": 8, **ALONE},
    {"generator": "resunet", "size": 32, **ALONE},
    {"discriminator": "image-rgb", "size": 224, "depth": 3},
]


@pytest.mark.parametrize("given", ONE_PIXEL)
def test_a_single_pixel_trains_two_by_two(given: dict[str, Any]) -> None:
    assert trains(**given, batch_size=2)


@pytest.mark.parametrize("given", ONE_PIXEL)
def test_a_single_pixel_of_any_network_is_refused_one_by_one(given: dict[str, Any]) -> None:
    assert sentence(**given, batch_size=1)


@pytest.mark.parametrize("given", ONE_PIXEL[:-1])
def test_a_single_pixel_of_any_generator_is_refused_by_batch_statistics(given: dict[str, Any]) -> None:
    assert sentence(**given, norm_stats="batch")
