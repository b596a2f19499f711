"""models.py: the published networks layer by layer, parity with a plain re-implementation, gradients."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import config
from models import DISCRIMINATORS, GENERATORS, count_parameters, init_normal

NETWORKS = [*GENERATORS, *DISCRIMINATORS]
CHANNELS = {"unet": (1, 2), "unet-reflect": (3, 3), "patch30": (1, 2), "patch26": (3, 3)}  # as published


def build(name: str, width: int = 4, depth: int = 5, dropout: float = 0.5) -> nn.Module:
    """Build a network with its published channels and seeded weights."""
    torch.manual_seed(0)
    if name in GENERATORS:
        return GENERATORS[name](*CHANNELS[name], width, depth, dropout)
    return DISCRIMINATORS[name](sum(CHANNELS[name]), width)


def inputs(name: str, size: int = 64) -> tuple[Tensor, ...]:
    """Return what the network takes: x, and y for a discriminator."""
    noise = torch.Generator().manual_seed(1)
    count = 1 if name in GENERATORS else 2
    return tuple(torch.rand(2, c, size, size, generator=noise) * 2 - 1 for c in CHANNELS[name][:count])


def convolutions(network: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]


def test_config_offers_these_networks() -> None:
    assert set(config.CHOICES["generator"]) == set(GENERATORS)
    assert set(config.CHOICES["discriminator"]) == set(DISCRIMINATORS)


@pytest.mark.parametrize(
    ("name", "parameters", "shape"),
    [
        ("unet", 54_409_856, (2, 2, 256, 256)),
        ("unet-reflect", 54_414_531, (2, 3, 256, 256)),
        ("patch30", 2_765_633, (2, 1, 30, 30)),
        ("patch26", 2_768_640, (2, 1, 26, 26)),
    ],
)
def test_published_sizes(name: str, parameters: int, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = build(name, width=64, depth=8)
        out = network(*(torch.empty(2, c, 256, 256) for c in CHANNELS[name][: 1 + (name in DISCRIMINATORS)]))
    assert count_parameters(network) == parameters
    assert out.shape == shape


def test_count_parameters_leaves_frozen_ones_out() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).requires_grad_(False))
    assert count_parameters(network) == 8


@pytest.mark.parametrize("depth", range(2, 9))
@pytest.mark.parametrize("name", GENERATORS)
def test_every_depth_takes_its_smallest_size(name: str, depth: int) -> None:
    generator = build(name, depth=depth)
    (x,) = inputs(name, size=2**depth)
    out = generator(x)
    assert out.shape == (2, CHANNELS[name][1], 2**depth, 2**depth)
    assert out.abs().max() <= 1
    kernels = [tuple(conv.kernel_size) + tuple(conv.stride) for conv in convolutions(generator)]
    assert kernels == [(4, 4, 2, 2)] * 2 * depth


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_a_recipe_that_is_accepted_has_logits(name: str, size: int) -> None:
    try:
        config.Recipe("x", size=size, discriminator=name)
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
def test_gradient_reaches_every_parameter(name: str) -> None:
    network = build(name)
    network(*inputs(name)).square().mean().backward()
    dead = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize("name", NETWORKS)
def test_scripted_is_eager(name: str) -> None:
    network = build(name).eval()
    arguments = inputs(name)
    torch.testing.assert_close(torch.jit.script(network)(*arguments), network(*arguments))


@pytest.mark.parametrize(
    ("name", "biased"),
    [("unet", []), ("unet-reflect", [0, 7, 15]), ("patch30", [0, 4]), ("patch26", [])],
)
def test_biases_are_only_where_published(name: str, biased: list[int]) -> None:
    bias = [i for i, conv in enumerate(convolutions(build(name, depth=8))) if conv.bias is not None]
    assert bias == biased


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_details(name: str) -> None:
    generator = build(name, depth=8)
    padding = [conv.padding_mode for conv in convolutions(generator)]
    assert padding == ["reflect" if name == "unet-reflect" else "zeros"] * 8 + ["zeros"] * 8
    dropout = [[m.p for m in block if isinstance(m, nn.Dropout)] for block in generator.decoder]
    assert dropout == [[0.5]] * 3 + [[]] * 4
    slopes = [m.negative_slope for m in generator.modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.2] * 7 + [0.0 if name == "unet-reflect" else 0.2]
    normed = [any(isinstance(m, nn.BatchNorm2d) for m in block) for block in generator.encoder]
    assert normed == [False] + [True] * 6


def conv(x: Tensor, weights: Iterator[Tensor], stride: int, pad: int, reflect: bool, bias: bool) -> Tensor:
    weight = next(weights)
    x = F.pad(x, [pad] * 4, mode="reflect" if reflect else "constant")
    return F.conv2d(x, weight, next(weights) if bias else None, stride)


def norm(x: Tensor, weights: Iterator[Tensor]) -> Tensor:
    """Normalise by the batch; skips the state's running statistics."""
    scale, shift, _, _, _ = (next(weights) for _ in range(5))
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def plain_unet(x: Tensor, weights: Iterator[Tensor], depth: int, reflect: bool) -> Tensor:
    """Run the published U-Net while training: weights in order of layers; reflect is the sketch system."""
    skips: list[Tensor] = []
    for level in range(depth):
        edge = level in (0, depth - 1)
        x = conv(x, weights, 2, 1, reflect, bias=reflect and edge)
        if not edge:
            x = norm(x, weights)
        x = F.relu(x) if reflect and level == depth - 1 else F.leaky_relu(x, 0.2)
        skips.append(x)
    skips.pop()
    for level in range(depth - 1):
        x = norm(F.conv_transpose2d(x, next(weights), stride=2, padding=1), weights)
        if level < 3 and not reflect:
            x = F.dropout(x, 0.5)  # the photograph system drops before the ReLU, the sketch system after
        x = F.relu(x)
        if level < 3 and reflect:
            x = F.dropout(x, 0.5)
        x = torch.cat([x, skips.pop()], 1)
    weight = next(weights)
    return torch.tanh(F.conv_transpose2d(x, weight, next(weights) if reflect else None, stride=2, padding=1))


def plain_patch(xy: Tensor, weights: Iterator[Tensor], ours26: bool) -> Tensor:
    xy = F.leaky_relu(conv(xy, weights, 2, 1, ours26, bias=not ours26), 0.2)
    for stride in (2, 2, 1):
        xy = conv(xy, weights, stride, 0 if ours26 else 1, ours26, bias=False)
        xy = F.leaky_relu(norm(xy, weights), 0.2)
    return conv(xy, weights, 1, 1, ours26, bias=not ours26)


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_matches_a_plain_implementation(name: str) -> None:
    depth = 6
    network = build(name, depth=depth)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)  # no bias or scale left at 0 or 1
    state = [value.clone() for value in network.state_dict().values()]
    weights, arguments = iter(state), inputs(name)
    torch.manual_seed(5)
    got = network(*arguments)
    torch.manual_seed(5)  # the same dropout masks
    if name in GENERATORS:
        expected = plain_unet(arguments[0], weights, depth, name == "unet-reflect")
    else:
        expected = plain_patch(torch.cat(arguments, 1), weights, name == "patch26")
    assert next(weights, None) is None
    assert expected.std() > 0.05
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_dropout_of_zero_is_left_out() -> None:
    generator = build("unet", dropout=0.0)
    assert not any(isinstance(m, nn.Dropout) for m in generator.modules())


@pytest.mark.parametrize("name", ["unet-reflect", "patch30"])
def test_init_normal_statistics(name: str) -> None:
    network = build(name, width=16).apply(init_normal)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            weight, centre = module.weight, 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
            error = 5 * 0.02 / weight.numel() ** 0.5
            assert abs(weight.mean() - centre) < error
            assert abs(weight.std() - 0.02) < error
            assert module.bias is None or not module.bias.any()


def test_init_normal_leaves_other_modules_alone() -> None:
    linear = nn.Linear(4, 4)
    before = linear.weight.clone()
    linear.apply(init_normal)
    assert torch.equal(linear.weight, before)
