"""models.py: every network computes what a plain re-implementation of the published one does."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from helpers import NETWORKS, Glance, build_network, network_inputs
from torch import Tensor, nn

import models
from models import GENERATORS

UNETS = [name for name, network in GENERATORS.items() if not network.halvings]


def conv(
    x: Tensor, weights: Iterator[Tensor], stride: int = 2, pad: int = 1, reflect: bool = False,
    bias: bool = False,
) -> Tensor:  # fmt: skip
    weight = next(weights)
    x = F.pad(x, [pad] * 4, mode="reflect" if reflect else "constant")
    return F.conv2d(x, weight, next(weights) if bias else None, stride)


def conv_up(x: Tensor, weights: Iterator[Tensor], stride: int = 2, extra: int = 0, bias: bool = False) -> Tensor:
    weight = next(weights)
    shift = next(weights) if bias else None
    return F.conv_transpose2d(x, weight, shift, stride, padding=1, output_padding=extra)


def norm(x: Tensor, weights: Iterator[Tensor], eps: float = 1e-5) -> Tensor:
    """Normalise by the batch; skips the state's running statistics."""
    scale, shift, _, _, _ = (next(weights) for _ in range(5))
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + eps).sqrt() * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def plain_attention(x: Tensor, weights: Iterator[Tensor]) -> Tensor:
    gamma, maps = next(weights), []
    for _ in range(3):  # query, key, value
        weight = next(weights)
        maps.append(F.conv2d(x, weight, next(weights)).flatten(2).transpose(1, 2))
    attended = F.scaled_dot_product_attention(*maps, scale=1.0)
    return x + gamma * attended.transpose(1, 2).reshape(x.shape)


def plain_unet(name: str, image: Tensor, weights: Iterator[Tensor], depth: int = 5) -> Tensor:
    """Run a published U-Net while training: weights in order of layers, dropout in three doublings."""
    reflect, manga, skips, x = name == "unet-reflect", name in UNETS[2:], [], image
    for level in range(depth):
        edge = level in (0, depth - 1)
        x = conv(x, weights, reflect=reflect, bias=manga or (reflect and edge))
        if manga or not edge:
            x = norm(x, weights)
        x = F.relu(x) if reflect and level == depth - 1 else F.leaky_relu(x, 0.2)
        skips.append(x)
    skips.pop()
    if "-ext" in name:
        mean = (image.mean((2, 3)) + 1) / 2
        x = torch.cat([x, mean.repeat(1, 512)[:, :512, None, None].expand(-1, -1, *x.shape[2:])], 1)
    if "-att" in name:
        x = plain_attention(x, weights)
    for level in range(depth - 1):
        x = norm(conv_up(x, weights, bias=manga), weights)
        if level < 3 and not reflect:
            x = F.dropout(x, 0.5)  # the photograph system drops before the ReLU, the sketch system after
        x = F.relu(x)
        if level < 3 and reflect:
            x = F.dropout(x, 0.5)
        x = torch.cat([x, skips.pop()], 1)
    return torch.tanh(conv_up(x, weights, bias=reflect or manga))


def plain_norm_last(x: Tensor, weights: Iterator[Tensor], strides: list[int]) -> Tensor:
    skips = []
    for stride in strides:
        x = norm(F.leaky_relu(conv(x, weights, stride, bias=True), 0.2), weights)
        skips.append(x)
    for stride in reversed(strides):
        skips.pop()
        x = norm(F.relu(conv_up(x, weights, stride, bias=True)), weights)
        if skips:
            x = torch.cat([x, skips[-1]], 1)
    return torch.tanh(conv(x, weights, 1, 0, bias=True))


def plain_convgen(x: Tensor, weights: Iterator[Tensor]) -> Tensor:
    skips = []
    for _ in range(5):
        x = F.leaky_relu(norm(conv(x, weights), weights), 0.1)
        skips.append(x)
    for skip in skips[-2::-1]:
        x = F.relu(norm(conv_up(x, weights, extra=1), weights)) + skip
    return torch.tanh(norm(conv_up(x, weights, extra=1), weights))


def nearest(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def plain_resnet(x: Tensor, weights: Iterator[Tensor]) -> Tensor:
    """Run the decoder on the features at 1/8 of the size."""
    x = nearest(F.relu(norm(conv(x, weights, 1, bias=True), weights)))
    x = F.relu(norm(conv(x, weights, 1, bias=True), weights))
    x = nearest(F.relu(norm(conv(x, weights, 1, bias=True), weights)))
    x = F.relu(norm(conv(x, weights, 1, bias=True), weights))
    return nearest(conv(x, weights, 1, bias=True))


def plain_resunet(features: list[Tensor], weights: Iterator[Tensor]) -> Tensor:
    """Run the decoder on the input and the features of all stages."""
    state = list(weights)
    shuffles, rest = iter(state[:10]), iter(state[10:])  # five enlargements, a weight and a bias each
    x = features.pop()
    for left in (4, 3, 2, 1, 0):
        x = F.pixel_shuffle(F.relu(conv(x, shuffles, 1, 0, bias=True)), 2)
        x = torch.cat([x, features.pop()], 1)
        for _ in range(2 if left else 1):
            x = F.relu(norm(conv(x, rest, 1), rest))
    x = conv(x, rest, 1, 0, bias=True)
    assert next(rest, None) is None
    return x


# EfficientNet-Lite0's table: repeats, channels, kernel, stride, expansion; taps after its halvings
LITE0 = [
    (1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6), (3, 80, 3, 2, 6), (3, 112, 5, 1, 6), (4, 192, 5, 2, 6),
    (1, 320, 3, 1, 6),
]  # fmt: skip


def conv_same(x: Tensor, weights: Iterator[Tensor], stride: int = 1, act: bool = True) -> Tensor:
    """Convolve, by itself each channel that has a kernel of its own, padded as TensorFlow's SAME; normalise."""
    weight = next(weights)
    pads = []
    for side in (x.size(3), x.size(2)):
        total = max(0, (-(-side // stride) - 1) * stride + weight.size(2) - side)
        pads += [total // 2, total - total // 2]
    y = norm(F.conv2d(F.pad(x, pads), weight, None, stride, groups=x.size(1) // weight.size(1)), weights, 1e-3)
    return y.clamp(0, 6) if act else y


def plain_lite(x: Tensor, weights: Iterator[Tensor]) -> Tensor:
    x, taps, number = conv_same(x, weights, 2), {}, 0
    for repeats, channels, _, stride, expansion in LITE0:
        for i in range(repeats):
            y = conv_same(x, weights) if expansion > 1 else x
            y = conv_same(conv_same(y, weights, 1 if i else stride), weights, act=False)
            x = x + y if i else y
            assert x.size(1) == channels
            taps[number], number = x, number + 1
    for tap in (10, 4, 2):
        x = F.relu(
            norm(
                conv(torch.cat([x.repeat_interleave(2, 2).repeat_interleave(2, 3), taps[tap]], 1), weights, 1), weights
            )
        )
    share = (conv(x, weights, 1, 0, bias=True) / 0.5).softmax(1)  # (N, 256, h, w)
    bins = torch.tensor([[-84 + 12 * (i // 16), -96 + 12 * (i % 16)] for i in range(256)]) / 110
    y = torch.einsum("nkhw,kc->nchw", share, bins)
    return F.interpolate(y, scale_factor=4, mode="bicubic").clamp(-1, 1)


def plain_patch(xy: Tensor, weights: Iterator[Tensor], name: str) -> Tensor:
    reflect = name == "patch26"
    xy = F.leaky_relu(conv(xy, weights, reflect=reflect, bias=not reflect), 0.2)
    for stride in (2, 2, 2 if "15" in name else 1):
        xy = conv(xy, weights, stride, 0 if reflect else 1, reflect, bias=name == "patch15-bias")
        xy = F.leaky_relu(norm(xy, weights), 0.2)
    return conv(xy, weights, 1, 1, reflect, bias=not reflect)


def plain_image(xy: Tensor, weights: Iterator[Tensor], strides: list[int]) -> Tensor:
    for stride in strides:
        xy = norm(F.leaky_relu(conv(xy, weights, stride, bias=True), 0.2), weights)
    return conv(xy, weights, 1, 0, bias=True)


def plain_rgb(y: Tensor, weights: Iterator[Tensor]) -> Tensor:
    for _ in range(5):
        y = F.leaky_relu(norm(conv(y, weights), weights), 0.1)
    y = F.leaky_relu(norm(conv(y, weights, 1, 0), weights), 0.1)
    return conv(y, weights, 1, 0)


DEEP = [2, 2, 2, 2, 2, 1, 1]


def plain(name: str, network: nn.Module, arguments: tuple[Tensor, ...], weights: Iterator[Tensor]) -> Tensor:
    x, xy = arguments[0], torch.cat(arguments, 1)
    if name in UNETS:
        return plain_unet(name, x, weights)
    if name.startswith("res"):  # test_models.py has the encoder's parity
        features = network.encoder(x)
        for _ in network.encoder.state_dict():
            next(weights)
        return plain_resnet(features[2], weights) if name == "resnet" else plain_resunet([x, *features], weights)
    if name.startswith("unet"):
        return plain_norm_last(x, weights, DEEP if name == "unet224" else [2] * 4)
    if name == "lite-unet":
        return plain_lite(x, weights)
    if name == "convgen":
        return plain_convgen(x, weights)
    if name == "image-rgb":
        return plain_rgb(arguments[1], weights)
    if name.startswith("image"):
        return plain_image(xy, weights, DEEP if name == "image224" else [2] * 4)
    return plain_patch(xy, weights, name)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "resunet34"])
def test_forward_matches_a_plain_implementation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "DanbooruFeatures", Glance)
    network = build_network(name, depth=5)
    for parameter in network.parameters():  # no bias, scale or gamma left at 0 or 1
        nn.init.normal_(parameter, 0.05, 0.2)
    state = [value.clone() for value in network.state_dict().values()]
    weights, arguments = iter(state), network_inputs(name)
    torch.manual_seed(5)
    got = network(*arguments)
    torch.manual_seed(5)  # the same dropout masks
    expected = plain(name, network, arguments, weights)
    assert next(weights, None) is None
    assert expected.std() > 0.01
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)
