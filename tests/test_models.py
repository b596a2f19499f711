"""models.py: published counts and shapes, details of layers, gradients, scripting."""

import pytest
import torch
from torch import Tensor, nn

import models
from config import CHOICES, Recipe
from models import DISCRIMINATORS, GENERATORS, FrozenFeatures, SelfAttention, count_parameters

NETWORKS = [*GENERATORS, *DISCRIMINATORS]
PUBLISHED = {  # name -> channels, px, parameters, shape of what comes out of one batch of 2
    "unet": (1, 2, 256, 54_409_856, (2, 2, 256, 256)),
    "unet-reflect": (3, 3, 256, 54_414_531, (2, 3, 256, 256)),
    "unet-bn": (1, 3, 256, 54_418_563, (2, 3, 256, 256)),
    "unet-att": (1, 3, 256, 54_746_884, (2, 3, 256, 256)),
    "unet-ext": (1, 3, 256, 58_612_867, (2, 3, 256, 256)),
    "unet-att-ext": (1, 3, 256, 59_924_868, (2, 3, 256, 256)),
    "resunet": (1, 2, 256, 14_339_458, (2, 2, 256, 256)),  # our own count
    "resunet34": (1, 2, 256, 24_447_618, (2, 2, 256, 256)),  # our own count
    "resnet": (1, 2, 224, 954_722, (2, 2, 224, 224)),
    "unet32": (1, 2, 32, 6_297_026, (2, 2, 32, 32)),
    "unet224": (1, 2, 224, 41_957_826, (2, 2, 224, 224)),
    "convgen": (1, 3, 224, 7_822_342, (2, 3, 224, 224)),
    "patch30": (1, 2, 256, 2_765_633, (2, 1, 30, 30)),
    "patch26": (3, 3, 256, 2_768_640, (2, 1, 26, 26)),
    "patch15": (1, 2, 256, 2_765_633, (2, 1, 15, 15)),
    "patch15-bias": (1, 3, 256, 2_767_553, (2, 1, 15, 15)),
    "image32": (1, 2, 32, 2_760_513, (2, 1, 1, 1)),
    "image224": (1, 2, 224, 15_350_593, (2, 1, 3, 3)),
    "image-rgb": (1, 3, 224, 16_758_848, (2, 1, 1, 1)),
}
CHANNELS = {name: row[:2] for name, row in PUBLISHED.items()}
HALVINGS = {name: network.halvings for name, network in GENERATORS.items() if network.halvings}
SMALLEST = {n: net.smallest for n, net in {**GENERATORS, **DISCRIMINATORS}.items() if net.smallest > 1}
LEAST = {name: network.smallest for name, network in GENERATORS.items() if network.smallest > 1}
SIZES = {name: max(64, network.smallest) for name, network in {**GENERATORS, **DISCRIMINATORS}.items()}


class Glance(FrozenFeatures):
    """Stands for the Danbooru network: the mean colour, over and over."""

    WIDTH = 512

    def __init__(self) -> None:
        super().__init__(nn.Identity(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def forward(self, rgb01: Tensor) -> list[Tensor]:
        return [self.normalise(rgb01).mean((2, 3)).repeat(1, 171)[:, :512]]


@pytest.fixture
def small_extractor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the tests a ResNet-50 at 360 px."""
    monkeypatch.setattr(models, "DanbooruFeatures", Glance)


def build(
    name: str, width: int = 4, depth: int = 4, dropout: float = 0.5, attention_depth: int = 0
) -> nn.Module:
    """Build a network with its published channels and seeded weights."""
    torch.manual_seed(0)
    if name in GENERATORS:
        options = {"depth": depth, "dropout": dropout, "attention_depth": attention_depth}
        network = GENERATORS[name]
        return network.build(*CHANNELS[name], width, **({} if network.halvings else options))
    return DISCRIMINATORS[name].build(*CHANNELS[name], width)


def inputs(name: str, size: int = 0, images: int = 2) -> tuple[Tensor, ...]:
    """Return what the network takes: x, and y for a discriminator."""
    noise, side = torch.Generator().manual_seed(1), size or SIZES[name]
    count = 1 if name in GENERATORS else 2
    return tuple(torch.rand(images, c, side, side, generator=noise) * 2 - 1 for c in CHANNELS[name][:count])


def convolutions(network: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]


def test_every_network_is_tested() -> None:
    assert set(PUBLISHED) == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_published_counts_and_shapes(name: str) -> None:
    *_, size, parameters, shape = PUBLISHED[name]
    with torch.device("meta"):
        network = build(name, width=64, depth=8)
        given = CHANNELS[name][: 1 + (name in DISCRIMINATORS)]
        out = network(*(torch.empty(2, channels, size, size) for channels in given))
    assert count_parameters(network) == parameters
    assert out.shape == shape


def test_count_parameters_leaves_frozen_ones_out() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).requires_grad_(False))
    assert count_parameters(network) == 8


@pytest.mark.parametrize("depth", range(2, 9))
@pytest.mark.parametrize("name", ["unet", "unet-reflect", "unet-bn", "unet-att"])
def test_every_depth_takes_its_smallest_size(name: str, depth: int) -> None:
    generator = build(name, depth=depth)
    (x,) = inputs(name, size=2**depth)
    out = generator(x)
    assert out.shape == (2, CHANNELS[name][1], 2**depth, 2**depth)
    assert out.abs().max() <= 1
    kernels = [tuple(conv.kernel_size) + tuple(conv.stride) for conv in convolutions(generator)]
    assert [kernel for kernel in kernels if kernel[0] > 1] == [(4, 4, 2, 2)] * 2 * depth


@pytest.mark.parametrize("name", GENERATORS)
def test_least_is_the_shortest_side_a_generator_takes(name: str, small_extractor: None) -> None:
    generator, step = build(name), 2 ** HALVINGS.get(name, 4)
    least = max(step, LEAST.get(name, 1))
    for shape in ((least, 2 * least), (2 * least, least)):
        x = inputs(name, 2 * least)[0][:, :, : shape[0], : shape[1]]
        assert generator(x).shape[2:] == shape
    if name in LEAST:
        with pytest.raises(RuntimeError):
            generator(inputs(name, least - step)[0])


@pytest.mark.parametrize("name", HALVINGS)
def test_halvings_are_those_of_the_network(name: str) -> None:
    generator, step = build(name), 2 ** HALVINGS[name]
    smallest = max(step, SMALLEST.get(name, 0))
    for size in (smallest, smallest + step):
        assert generator(*inputs(name, size)).shape == (2, CHANNELS[name][1], size, size)
    try:
        shape = generator(*inputs(name, smallest + step // 2)).shape[2:]
    except RuntimeError:
        return
    assert shape != (smallest + step // 2,) * 2  # a side in between does not come back


@pytest.mark.parametrize("norm", CHOICES["norm_d"])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_smallest_size_has_logits_with_every_norm(name: str, norm: str) -> None:
    network = DISCRIMINATORS[name](*CHANNELS[name], 4, norm)
    assert network(*inputs(name, SMALLEST[name])).shape == (2, 1, 1, 1)
    found = {type(module) for module in network.modules()} & {nn.BatchNorm2d, nn.InstanceNorm2d}
    assert found == {"batch": {nn.BatchNorm2d}, "instance": {nn.InstanceNorm2d}, "none": set()}[norm]
    if norm != "batch":  # whose shift is a bias
        biased = [conv.bias is not None for conv in convolutions(network)]
        assert all(biased[:-1])
        assert biased[-1] == (name != "image-rgb")


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("size", [16, 32, 48, 64, 96, 160, 192, 224])
def test_a_recipe_that_is_accepted_has_logits(name: str, size: int) -> None:
    try:
        Recipe("x", size=size, discriminator=name)
    except ValueError:
        accepted = False
    else:
        accepted = True
    try:
        built = build(name)(*inputs(name, size)).numel() > 0
    except RuntimeError:
        built = False
    assert built or not accepted, f"size {size} is accepted, but {name} has no logits there"


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_reaches_every_parameter(name: str, small_extractor: None) -> None:
    network = build(name)
    for module in network.modules():
        if isinstance(module, SelfAttention):
            nn.init.ones_(module.gamma)  # starts at 0, which query, key and value wait for
    network(*inputs(name)).square().mean().backward()
    trained = {key: p.grad for key, p in network.named_parameters() if p.requires_grad}
    dead = [key for key, grad in trained.items() if grad is None or not grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize("name", NETWORKS)
def test_scripted_is_eager(name: str, small_extractor: None) -> None:
    network = build(name).eval()
    arguments = inputs(name)
    torch.testing.assert_close(torch.jit.script(network)(*arguments), network(*arguments))


@pytest.mark.parametrize(
    ("name", "biased"),
    [
        ("unet", []), ("unet-reflect", [0, 7, 15]), ("unet-bn", range(16)), ("patch30", [0, 4]),
        ("patch26", []), ("patch15", [0, 4]), ("patch15-bias", range(5)), ("image32", range(5)),
        ("image224", range(8)), ("image-rgb", []), ("convgen", []), ("unet32", range(9)),
        ("unet224", range(15)),
    ],
)  # fmt: skip
def test_biases_are_only_where_published(name: str, biased: list[int]) -> None:
    bias = [i for i, conv in enumerate(convolutions(build(name, depth=8))) if conv.bias is not None]
    assert bias == list(biased)


@pytest.mark.parametrize("name", ["unet", "unet-reflect", "unet-bn"])
def test_generator_details(name: str) -> None:
    generator = build(name, depth=8)
    padding = [conv.padding_mode for conv in convolutions(generator)]
    assert padding == ["reflect" if name == "unet-reflect" else "zeros"] * 8 + ["zeros"] * 8
    dropout = [[m.p for m in block if isinstance(m, nn.Dropout)] for block in generator.decoder]
    assert dropout == [[0.5]] * 3 + [[]] * 4
    slopes = [m.negative_slope for m in generator.modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.2] * 7 + [0.0 if name == "unet-reflect" else 0.2]
    normed = [any(isinstance(m, nn.BatchNorm2d) for m in block) for block in generator.encoder]
    end = name == "unet-bn"
    assert normed == [end, *[True] * 6, end]


def test_dropout_of_zero_is_left_out() -> None:
    generator = build("unet", dropout=0.0)
    assert not any(isinstance(m, nn.Dropout) for m in generator.modules())


@pytest.mark.parametrize(
    ("name", "attention_depth", "place", "channels"),
    [
        ("unet-att", 0, "attention", 32), ("unet-att", 4, "attention", 32), ("unet-att", 1, "encoder.0.3", 4),
        ("unet-att", 3, "encoder.2.3", 16), ("unet-att-ext", 0, "attention", 32 + 512),
        ("unet-att-ext", 3, "encoder.2.3", 16), ("unet-bn", 0, None, 0), ("unet-ext", 2, None, 0),
    ],
)  # fmt: skip
def test_attention_stands_after_as_many_halvings(
    name: str, attention_depth: int, place: str | None, channels: int, small_extractor: None
) -> None:
    generator = build(name, attention_depth=attention_depth)
    found = {key: m.value.in_channels for key, m in generator.named_modules() if isinstance(m, SelfAttention)}
    assert found == ({} if place is None else {place: channels})
    seen = []
    if place is not None:
        generator.get_submodule(place).register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
        generator(*inputs(name, 64))
        assert seen == [(2, channels, *[64 >> (attention_depth or 4)] * 2)]


def test_a_colour_discriminator_does_not_look_at_x() -> None:
    network, (x, y) = build("image-rgb").eval(), inputs("image-rgb")
    assert torch.equal(network(x, y), network(-x, y))
    assert not torch.equal(network(x, y), network(x, -y))
