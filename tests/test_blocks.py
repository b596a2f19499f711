"""blocks.py: attention, ICNR and encoders against plain or trusted ones; initialisation and spectral norm."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from config import CHOICES
from models import (
    GENERATORS,
    INITS,
    PixelShuffleUp,
    ResNetEncoder,
    SelfAttention,
    add_spectral_norm,
    down,
    init_kaiming,
    init_normal,
    up,
)


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Return normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kinds(block: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in block]


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, ["Conv2d", "BatchNorm2d", "LeakyReLU"]),
        ({"norm_last": True}, ["Conv2d", "LeakyReLU", "BatchNorm2d"]),
        ({"norm": "instance"}, ["Conv2d", "InstanceNorm2d", "LeakyReLU"]),
        ({"norm": "none"}, ["Conv2d", "LeakyReLU"]),
    ],
)
def test_down(options: dict[str, object], layers: list[str]) -> None:
    block = down(3, 5, **options)
    assert kinds(block) == layers
    assert block(noise(2, 3, 8, 12)).shape == (2, 5, 4, 6)
    assert block[0].bias is None
    reflecting = down(3, 5, kernel=3, stride=1, bias=True, slope=0.1, padding_mode="reflect", **options)
    assert reflecting(noise(2, 3, 8, 12)).shape == (2, 5, 8, 12)
    assert (reflecting[0].padding_mode, reflecting[0].bias.shape) == ("reflect", (5,))
    assert next(layer for layer in reflecting if isinstance(layer, nn.LeakyReLU)).negative_slope == 0.1


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, ["ConvTranspose2d", "BatchNorm2d", "ReLU"]),
        ({"norm_last": True}, ["ConvTranspose2d", "ReLU", "BatchNorm2d"]),
        ({"dropout": 0.5}, ["ConvTranspose2d", "BatchNorm2d", "ReLU", "Dropout"]),
    ],
)
def test_up(options: dict[str, object], layers: list[str]) -> None:
    block = up(3, 5, **options)
    assert kinds(block) == layers
    assert block(noise(2, 3, 4, 6)).shape == (2, 5, 8, 12)
    assert block[0].bias is None
    other = up(3, 5, kernel=3, output_padding=1, bias=True, **options)
    assert other(noise(2, 3, 4, 6)).shape == (2, 5, 8, 12)
    assert other[0].bias is not None


def attention(channels: int, gamma: float) -> SelfAttention:
    torch.manual_seed(0)
    module = SelfAttention(channels)
    with torch.no_grad():
        for conv in (module.query, module.key):
            conv.weight.mul_(4.0)  # so that the softmax is far from flat
        module.gamma.fill_(gamma)
    return module


@pytest.mark.parametrize("channels", [4, 16])
def test_attention_is_a_loop_over_all_positions(channels: int) -> None:
    module, x = attention(channels, 0.7), noise(2, channels, 3, 5)
    query, key, value = (layer(x).flatten(2) for layer in (module.query, module.key, module.value))
    assert query.shape == key.shape == (2, max(1, channels // 8), 15)
    expected, peaks = x.clone(), []
    for n in range(2):
        for i in range(15):  # where the answer goes
            scores = torch.stack([query[n, :, i] @ key[n, :, j] for j in range(15)])
            weights = scores.exp() / scores.exp().sum()
            peaks.append(float(weights.detach().max()))
            answer = sum(weights[j] * value[n, :, j] for j in range(15))
            expected[n, :, i // 5, i % 5] += 0.7 * answer
    assert max(peaks) > 0.2  # 0.067 where all are equal
    torch.testing.assert_close(module(x), expected)


def test_attention_is_torchs_without_its_scale() -> None:
    module, x = attention(16, 1.0), noise(2, 16, 6, 4)
    rows = [layer(x).flatten(2).transpose(1, 2) for layer in (module.query, module.key, module.value)]
    attended = F.scaled_dot_product_attention(*rows, scale=1.0).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(module(x), x + attended)


def test_attention_starts_as_identity_and_its_weight_learns_first() -> None:
    torch.manual_seed(0)
    module, x = SelfAttention(8), noise(2, 8, 4, 4)
    assert torch.equal(module(x), x)
    module(x).square().sum().backward()
    assert module.gamma.grad.abs() > 0
    assert not any(p.grad.any() for name, p in module.named_parameters() if name != "gamma")


def test_gradient_reaches_query_and_key_once_gamma_has_moved() -> None:
    module = attention(8, 0.1)
    module(noise(2, 8, 4, 4)).square().sum().backward()
    # softmax is blind to what all its scores share: the key's bias moves them all alike
    dead = [name for name, p in module.named_parameters() if p.grad.abs().max() < 1e-5]
    assert dead == ["key.bias"]


def test_at_one_pixel_query_and_key_have_no_effect() -> None:
    module, x = attention(8, 0.7), noise(3, 8, 1, 1)
    before = module(x)
    before.square().sum().backward()
    for conv in (module.query, module.key):
        assert not conv.weight.grad.any()
        with torch.no_grad():
            conv.weight.copy_(noise(*conv.weight.shape) * 100)
    assert torch.equal(module(x), before)
    assert not torch.equal(module(x.repeat(1, 1, 2, 2) * noise(1, 8, 2, 2)), x.repeat(1, 1, 2, 2))
    with torch.no_grad():
        module.value.weight.mul_(2.0)
    assert not torch.equal(module(x), before)


def checkers(image: Tensor) -> float:
    """Return by how much the four pixels of a 2x2 block differ at most."""
    blocks = F.pixel_unshuffle(image, 2).unflatten(1, (-1, 4))  # (N, C, 4, H/2, W/2)
    return float((blocks.amax(2) - blocks.amin(2)).detach().max())


@pytest.mark.parametrize("init", [None, init_normal, init_kaiming], ids=str)
def test_pixel_shuffle_starts_without_checkers(init: Callable[[nn.Module], None] | None) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 6, 1), PixelShuffleUp(6, 5))
    if init is not None:
        block.apply(init)
    out = block(noise(2, 3, 4, 7))
    assert out.shape == (2, 5, 8, 14)
    assert out.max() > 0
    assert checkers(out) == 0.0
    conv = block[1].layers[0]
    rows = conv.weight[::4, :, 0, 0]  # one row per output channel
    assert len(rows.flatten().unique()) == rows.numel()  # and those differ
    expected = F.relu(F.conv2d(block[0](noise(2, 3, 4, 7)), conv.weight[::4], conv.bias[::4]))
    torch.testing.assert_close(out, F.interpolate(expected, scale_factor=2.0))
    nn.init.normal_(conv.weight)
    assert checkers(block(noise(2, 3, 4, 7) * 100)) > 0.1  # the measure sees what ICNR prevents


@pytest.mark.parametrize("init", [None, *INITS])
def test_every_pixel_shuffle_of_a_network_starts_so(init: str | None) -> None:
    torch.manual_seed(0)
    network = GENERATORS["resunet"](1, 2, 4)
    if init is not None:
        network.apply(INITS[init])
    shuffles = [module for module in network.modules() if isinstance(module, PixelShuffleUp)]
    assert len(shuffles) == 5
    for module in shuffles:
        weight = module.layers[0].weight
        assert torch.equal(weight, weight[::4].repeat_interleave(4, 0))


def warmed_up(name: str) -> nn.Module:
    """Return torchvision's network with seeded weights and running statistics that are not the initial."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name)
    network.train()(noise(4, 3, 64, 64))
    return network.eval()


def stages_of(network: nn.Module, x: Tensor) -> list[Tensor]:
    features = [network.relu(network.bn1(network.conv1(x)))]
    x = network.maxpool(features[0])
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = layer(x)
        features.append(x)
    return features


@pytest.mark.parametrize(("name", "stages"), [("resnet18", 2), ("resnet18", 4), ("resnet34", 4)])
def test_encoder_with_published_weights_is_torchvisions(name: str, stages: int) -> None:
    network = warmed_up(name)
    encoder, x = ResNetEncoder(name, 3, stages).eval(), noise(2, 3, 64, 96)
    encoder.load_pretrained(network.state_dict())
    got, expected = encoder(x), stages_of(network, x)[: stages + 1]
    assert [tuple(f.shape[1:]) for f in got] == [
        (64, 32, 48), (64, 16, 24), (128, 8, 12), (256, 4, 6), (512, 2, 3)
    ][: stages + 1]  # fmt: skip
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_one_channel_sees_what_three_equal_ones_do() -> None:
    state, gray = warmed_up("resnet18").state_dict(), noise(2, 1, 64, 64)
    one, three = (ResNetEncoder("resnet18", channels, 4).eval() for channels in (1, 3))
    for encoder in (one, three):
        encoder.load_pretrained(state)
    for ours, theirs in zip(one(gray), three(gray.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_incomplete_weights_are_refused() -> None:
    state = warmed_up("resnet18").state_dict()
    del state["layer2.0.conv1.weight"]
    with pytest.raises(RuntimeError, match=r"layers\.1\.0\.conv1\.weight"):
        ResNetEncoder("resnet18", 3, 2).load_pretrained(state)


def test_inits_are_those_of_the_recipes() -> None:
    assert {*INITS, "default"} == set(CHOICES["init"])


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 64, 4), nn.BatchNorm2d(64), nn.ConvTranspose2d(64, 32, 3), nn.Linear(8, 8),
        nn.Conv2d(32, 8, 1, bias=False),
    )  # fmt: skip


def deviates(weight: Tensor, mean: float, std: float) -> bool:
    """Tell whether a weight is no sample of this normal distribution, by 5 standard errors."""
    error = 5 * std / weight.numel() ** 0.5
    return bool(abs(weight.mean() - mean) > error or abs(weight.std() - std) > error)


def test_init_normal() -> None:
    network, fresh = layers().apply(init_normal), layers()
    for module in network:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            assert not deviates(module.weight, float(isinstance(module, nn.BatchNorm2d)), 0.02)
            assert module.bias is None or not module.bias.any()
    assert torch.equal(network[3].weight, fresh[3].weight)


def test_init_kaiming() -> None:
    network, fresh = layers().apply(init_kaiming), layers()
    for i, fan in ((0, 4 * 4 * 64), (2, 3 * 3 * 32), (4, 8)):  # kernel area x out channels
        assert not deviates(network[i].weight, 0.0, (2 / fan) ** 0.5)
    for i in (1, 3):
        assert torch.equal(network[i].weight, fresh[i].weight)
    assert torch.equal(network[0].bias, fresh[0].bias)


def test_spectral_norm_bounds_convolutions_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 4), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, bias=False))
    nn.init.normal_(network[0].weight, 0.0, 3.0)
    network.apply(add_spectral_norm)
    for _ in range(30):
        network(noise(2, 3, 12, 12))  # one step of power iteration each
    for i in (0, 2):
        largest = torch.linalg.matrix_norm(network[i].weight.flatten(1), 2)
        assert largest.item() == pytest.approx(1.0, abs=0.01)
    assert not hasattr(network[1], "parametrizations")
