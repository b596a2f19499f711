"""Networks and their blocks: published counts and shapes, details of layers, gradients, scripting, sizes."""

import io
import re
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import NETWORKS, X_Y_CHANNELS, Glance, build_network, network_inputs
from torch import Tensor, nn

import models
from config import CHOICES, DEGRADATIONS, RECIPES, Recipe, UserError, make_recipe
from dataset import degradations
from imaging import color
from models import (
    DISCRIMINATORS,
    GENERATORS,
    INITS,
    NORMS,
    DanbooruFeatures,
    FrozenFeatures,
    HintAttention,
    LiteUNet,
    PixelShuffleUp,
    ResNetEncoder,
    SelfAttention,
    VGGFeatures,
    add_spectral_norm,
    build_discriminator,
    build_generator,
    count_parameters,
    fit_networks,
    init_kaiming,
    init_normal,
    needs_two_images,
    pool_hints,
    quick_fields,
)

PUBLISHED = {  # name -> px, parameters, shape of what comes out of one batch of 2
    "unet": (256, 54_409_856, (2, 2, 256, 256)),
    "unet-reflect": (256, 54_414_531, (2, 3, 256, 256)),
    "unet-bn": (256, 54_418_563, (2, 3, 256, 256)),
    "unet-att": (256, 54_746_884, (2, 3, 256, 256)),
    "unet-ext": (256, 58_612_867, (2, 3, 256, 256)),
    "unet-att-ext": (256, 59_924_868, (2, 3, 256, 256)),
    "resunet": (256, 14_339_458, (2, 2, 256, 256)),  # our own count
    "resunet34": (256, 24_447_618, (2, 2, 256, 256)),  # our own count
    "resnet": (224, 954_722, (2, 2, 224, 224)),
    "unet32": (32, 6_297_026, (2, 2, 32, 32)),
    "unet224": (224, 41_957_826, (2, 2, 224, 224)),
    "lite-unet": (224, 3_687_424, (2, 2, 224, 224)),  # our own count; 2,958,272 of them the encoder's
    "convgen": (224, 7_822_342, (2, 3, 224, 224)),
    "patch30": (256, 2_765_633, (2, 1, 30, 30)),
    "patch26": (256, 2_768_640, (2, 1, 26, 26)),
    "patch15": (256, 2_765_633, (2, 1, 15, 15)),
    "patch15-bias": (256, 2_767_553, (2, 1, 15, 15)),
    "image32": (32, 2_760_513, (2, 1, 1, 1)),
    "image224": (224, 15_350_593, (2, 1, 3, 3)),
    "image-rgb": (224, 16_758_848, (2, 1, 1, 1)),
}
SMALLER = [name for name in NETWORKS if name != "resunet34"]  # which is a resunet, and takes as long again
UNETS = [name for name, network in GENERATORS.items() if not network.halvings]
HALVINGS = {name: GENERATORS[name].halvings for name in SMALLER if name in GENERATORS and name not in UNETS}
PLAIN_UNETS = [name for name in UNETS if not GENERATORS[name].extractor]
ALONE = {"discriminator": "none"}


@pytest.fixture
def small_extractor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test the ResNet-50."""
    monkeypatch.setattr(models, "DanbooruFeatures", Glance)


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Return normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def convolutions(network: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]


# Networks


def test_every_name_is_known_where_it_is_used() -> None:
    assert set(PUBLISHED) == set(NETWORKS)
    assert set(CHOICES["norm_d"]) == set(NORMS)
    assert set(CHOICES["init"]) == {*INITS, "default"}
    assert {*CHOICES["input"], *CHOICES["output"]} == set(color.CHANNELS)
    assert list(DEGRADATIONS) == list(degradations.DEGRADATIONS)


@pytest.mark.parametrize("name", NETWORKS)
def test_published_counts_and_shapes(name: str) -> None:
    size, parameters, shape = PUBLISHED[name]
    with torch.device("meta"):
        network = build_network(name, width=64, depth=8)
        given = X_Y_CHANNELS.get(name, (1, 2))[: 1 + (name in DISCRIMINATORS)]
        out = network(*(torch.empty(2, channels, size, size) for channels in given))
    assert count_parameters(network) == parameters
    assert out.shape == shape


@pytest.mark.parametrize("depth", [2, 8])
@pytest.mark.parametrize("name", PLAIN_UNETS)
def test_every_depth_takes_its_smallest_size(name: str, depth: int) -> None:
    out = build_network(name, depth=depth)(*network_inputs(name, size=2**depth))
    assert out.shape == (2, X_Y_CHANNELS.get(name, (1, 2))[1], 2**depth, 2**depth)
    assert out.abs().max() <= 1


@pytest.mark.parametrize("name", [name for name in SMALLER if name in GENERATORS])
def test_the_smallest_size_and_the_halvings_are_those_of_the_network(name: str, small_extractor: None) -> None:
    generator, step = build_network(name), 2 ** HALVINGS.get(name, 4)
    least = max(step, GENERATORS[name].smallest)
    for height, width in ((least, 2 * least), (least + step, least)):
        x = network_inputs(name, 2 * least)[0][:, :, :height, :width]
        assert generator(x).shape[2:] == (height, width)
    if GENERATORS[name].smallest > 1:
        with pytest.raises(RuntimeError):
            generator(*network_inputs(name, least - step))
    between = least + step // 2
    try:
        shape = generator(*network_inputs(name, between)).shape[2:]
    except RuntimeError:
        return
    assert shape != (between, between)  # a side in between does not come back


@pytest.mark.parametrize("norm", CHOICES["norm_d"])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_discriminator_has_one_logit_at_its_smallest_size(name: str, norm: str) -> None:
    network = DISCRIMINATORS[name].build(*X_Y_CHANNELS.get(name, (1, 2)), 4, norm)
    size = DISCRIMINATORS[name].smallest
    assert network(*network_inputs(name, size)).shape == (2, 1, 1, 1)
    with pytest.raises((RuntimeError, ValueError)):
        network(*network_inputs(name, size - 1))
    found = {type(module) for module in network.modules()} & {nn.BatchNorm2d, nn.InstanceNorm2d}
    assert found == {"batch": {nn.BatchNorm2d}, "instance": {nn.InstanceNorm2d}, "none": set()}[norm]
    if norm != "batch":  # whose shift is a bias
        biased = [conv.bias is not None for conv in convolutions(network)]
        assert all(biased[:-1])
        assert biased[-1] == (name != "image-rgb")


@pytest.mark.parametrize("name", SMALLER)
def test_gradient_reaches_every_parameter(name: str, small_extractor: None) -> None:
    network = build_network(name)
    for module in network.modules():
        if isinstance(module, SelfAttention):
            nn.init.ones_(module.gamma)  # starts at 0, which query, key and value wait for
    network(*network_inputs(name)).square().mean().backward()
    trained = {key: p.grad for key, p in network.named_parameters() if p.requires_grad}
    assert [key for key, grad in trained.items() if grad is None or not grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", ["unet", "unet-att-ext", *HALVINGS, "patch26", "image32", "image-rgb"])
def test_scripted_is_eager_and_loads_in_the_oldest_torch(name: str, small_extractor: None) -> None:
    network, arguments = build_network(name).eval(), network_inputs(name)
    script = torch.jit.script(network)
    torch.testing.assert_close(script(*arguments), network(*arguments))
    assert newer_functions(script) == []


@pytest.mark.slow
def test_the_published_extractor_loads_in_the_oldest_torch() -> None:
    assert newer_functions(torch.jit.script(models.DanbooruFeatures())) == []


def newer_functions(script: torch.jit.ScriptModule) -> list[str]:
    """Return where a script holds F.interpolate, one branch of which needs torch 2.12: requirements.txt allows 2.11."""
    written = io.BytesIO()
    torch.jit.save(script, written)
    with zipfile.ZipFile(written) as archive:
        found = [name for name in archive.namelist() if b"def interpolate(" in archive.read(name)]
    return [name for name in found if "/nn/functional" in name]


@pytest.mark.parametrize(
    ("name", "attention_depth", "place", "channels"),
    [
        ("unet-att", 0, "attention", 32), ("unet-att", 4, "attention", 32), ("unet-att", 1, "encoder.0.3", 4),
        ("unet-att-ext", 0, "attention", 32 + 512), ("unet-att-ext", 3, "encoder.2.3", 16),
    ],
)  # fmt: skip
def test_attention_stands_after_as_many_halvings(
    name: str, attention_depth: int, place: str, channels: int, small_extractor: None
) -> None:
    generator, seen = build_network(name, attention_depth=attention_depth), []
    found = {key: m.value.in_channels for key, m in generator.named_modules() if isinstance(m, SelfAttention)}
    assert found == {place: channels}
    generator.get_submodule(place).register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    generator(*network_inputs(name, 64))
    assert seen == [(2, channels, *[64 >> (attention_depth or 4)] * 2)]


# What a recipe can ask of them


def fitted(**given: Any) -> Recipe:
    return fit_networks(Recipe("x", **given))


@pytest.mark.parametrize(
    ("given", "depth"),
    [
        ({}, 8), ({"size": 128}, 7), ({"size": 96}, 5), ({"size": 512}, 8), ({"size": 64, "depth": 3}, 3),
        *(({"generator": name, "depth": depth}, n) for name, n in HALVINGS.items() for depth in (0, n)),
    ],
)  # fmt: skip
def test_depth_is_settled(given: dict[str, Any], depth: int) -> None:
    recipe = fitted(**given)
    assert recipe.depth == depth
    assert fit_networks(recipe) == recipe  # as it is stored


LONE = "as BatchNorm meets a single pixel at this size"
# whose innermost feature map is one pixel that is normalised
ONE_PIXEL = [
    *({"generator": name, "size": 16, **ALONE} for name in PLAIN_UNETS[2:]),
    {"generator": "unet32", "size": 16, **ALONE}, {"generator": "unet224", "size": 96, **ALONE},
    {"generator": "convgen", "size": 32, **ALONE}, {"generator": "resnet", "size": 8, **ALONE},
    {"generator": "resunet", "size": 32, **ALONE}, {"discriminator": "image-rgb", "size": 224, "depth": 3},
]  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_a_size_or_names_one_that_it_takes(name: str) -> None:
    for size in (4, 30, 32, 50, 64, 96, 100, 128, 200, 224, 256, 300, 1000):
        for epochs in (1, 2, 5, 21):
            given = {"size": size, "epochs": epochs, "limit": 1}
            try:
                found = fit_networks(make_recipe(name, given))
            except UserError as error:
                named = re.search(rf"the nearest that fits is (\d+)\), got {size}$", str(error))
                found = fit_networks(make_recipe(name, {**given, "size": int(named[1])}))
            assert found.pretrain_epochs <= found.epochs == epochs


@pytest.mark.parametrize("name", RECIPES)
def test_quick_is_a_small_valid_recipe(name: str) -> None:
    plain, given = fit_networks(make_recipe(name, {})), quick_fields(name)
    quick = fit_networks(make_recipe(name, given))
    assert quick.size <= plain.size
    assert quick.epochs * quick.limit * quick.size**2 <= 3000 * 224**2  # a few minutes of any CPU
    assert (quick.pretrain_epochs > 0) == (plain.pretrain_epochs > 0)
    assert (quick.generator, quick.term_weights) == (plain.generator, plain.term_weights)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"depth": 1}, "2 to 8"),
        ({"depth": 9, "size": 512}, "2 to 8"),
        ({"size": 96, "depth": 6}, "a multiple of 64 at depth 6 (the nearest that fits is 128)"),
        ({"size": 250}, "a multiple of 16 (the nearest that fits is 256)"),
        *(({"depth": n + 1, "generator": g}, f"0 or {n} for {g}") for g, n in HALVINGS.items()),
        *(({"size": 256 + 2**n // 2, "generator": g}, f"a multiple of {2**n}") for g, n in HALVINGS.items()),
        *(({"size": d.smallest - 1, "discriminator": n}, f"at least {d.smallest} for {n}")
          for n, d in DISCRIMINATORS.items()),
        ({"size": 64, "generator": "unet224", **ALONE}, "at least 96 for unet224"),
        ({"attention": 32}, "0 for generator unet"), ({"attention": 32, "generator": "resunet"}, "0 for"),
        ({"attention": 256, "generator": "unet-att"}, "0 or one of 128 64 32 16 8 4 2 1 px"),
        ({"attention": 5, "generator": "unet-att-ext", "size": 96}, "0 or one of 48 24 12 6 3 px"),
        ({"attention": 2, "generator": "unet-att", "size": 64, "depth": 4}, "0 or one of 32 16 8 4 px"),
        ({"half_epochs": 1}, "0 at 256 px, as these networks take no 128 px (at least 24, a multiple of 256)"),
        ({"half_epochs": 2, "size": 40, "depth": 3}, "0 at 40 px, as these networks take no 20 px"),
        *(({"pretrained": True, "generator": g}, f"false for {g}") for g in (*UNETS, "unet224", "convgen")),
        *(({"batch_size": 1, **given}, f"2 or more, {LONE}") for given in ONE_PIXEL),
        ({"batch_size": 1, "half_epochs": 1, "generator": "unet32", "size": 32, **ALONE}, f"2 or more, {LONE}"),
        *(({"norm_stats": "batch", **given}, f"running, {LONE}") for given in ONE_PIXEL[:2]),
        ({"batch_size": 1, "generator": "unet-att-ext"}, f"2 or more, {LONE}"),
    ],
)  # fmt: skip
def test_what_networks_do_not_take_is_refused(given: dict[str, Any], wanted: str) -> None:
    key, value = next(iter(given.items()))
    with pytest.raises(UserError) as caught:
        fitted(**given)
    assert str(caught.value).startswith(f"{key} must be {wanted}")
    assert str(caught.value).endswith(f", got {value!r}")


@pytest.mark.parametrize(("kind", "near"), [("generator", "unet"), ("discriminator", "patch30")])
def test_an_unknown_network_is_refused_with_a_list_of_all(kind: str, near: str) -> None:
    with pytest.raises(UserError, match=rf"^no {kind} {near}x; did you mean {near}\? \(known: .*{near}"):
        fitted(**{kind: f"{near}x"})


@pytest.mark.parametrize(
    "given",
    [
        {"attention": 1, "generator": "unet-att"}, {"attention": 128, "generator": "unet-att"},
        *({"pretrained": True, "generator": g} for g in ("resunet", "resunet34", "resnet")),
        {"half_epochs": 3, "depth": 7}, {"half_epochs": 1, "generator": "resunet", "size": 128},
        {"generator": "unet-bn", "batch_size": 1, "depth": 7}, {"generator": "unet", "norm_stats": "batch"},
        {"generator": "unet-bn", "norm_stats": "batch", "depth": 7}, {"batch_size": 1, "norm_stats": "batch"},
        {"discriminator": "image-rgb", "size": 256, "batch_size": 1},
        {"discriminator": "image-rgb", "size": 224, "batch_size": 1, "norm_d": "none"},
        {"discriminator": "image-rgb", "size": 224, "norm_stats": "batch", "pretrain_epochs": 2},
    ],
)  # fmt: skip
def test_what_networks_take_is_accepted(given: dict[str, Any]) -> None:
    recipe = fitted(**given)
    assert {key: getattr(recipe, key) for key in given} == given


@pytest.mark.parametrize("given", ONE_PIXEL)
def test_a_single_pixel_is_normalised_over_two_images_alone(given: dict[str, Any]) -> None:
    recipe = fitted(**given, ngf=4, ndf=4)
    assert needs_two_images(recipe)
    assert needs_two_images(recipe, testing=True) == (given != ONE_PIXEL[-1])
    generator, discriminator = build_generator(recipe), build_discriminator(recipe)
    for images in (1, 2):
        x, y = (torch.zeros(images, n, recipe.size, recipe.size) for n in (1, 2))
        try:
            generator(x)
            assert discriminator is None or discriminator(x, y) is not None
        except ValueError:
            assert images == 1
        else:
            assert images == 2


# Blocks


def attention(channels: int, gamma: float) -> SelfAttention:
    torch.manual_seed(0)
    module = SelfAttention(channels)
    with torch.no_grad():
        for conv in (module.query, module.key):
            conv.weight.mul_(4.0)  # so that the softmax is far from flat
        module.gamma.fill_(gamma)
    return module


def test_attention_is_torchs_without_its_scale() -> None:
    module, x = attention(16, 0.7), noise(2, 16, 6, 4)
    rows = [layer(x).flatten(2).transpose(1, 2) for layer in (module.query, module.key, module.value)]
    attended = F.scaled_dot_product_attention(*rows, scale=1.0).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(module(x), x + 0.7 * attended)
    assert torch.softmax(rows[0] @ rows[1].transpose(1, 2), 2).max() > 0.2  # 0.04 where all are equal


def test_attention_starts_as_identity_and_its_weight_learns_first() -> None:
    torch.manual_seed(0)
    module, x = SelfAttention(8), noise(2, 8, 4, 4)
    assert torch.equal(module(x), x)
    module(x).square().sum().backward()
    assert module.gamma.grad.abs() > 0
    assert not any(p.grad.any() for name, p in module.named_parameters() if name != "gamma")
    module = attention(8, 0.1)
    module(x).square().sum().backward()
    # softmax is blind to what all its scores share: the key's bias moves them all alike
    assert [name for name, p in module.named_parameters() if p.grad.abs().max() < 1e-5] == ["key.bias"]


def checkers(image: Tensor) -> float:
    """Return by how much the four pixels of a 2x2 block differ at most."""
    blocks = F.pixel_unshuffle(image, 2).unflatten(1, (-1, 4))  # (N, C, 4, H/2, W/2)
    return float((blocks.amax(2) - blocks.amin(2)).detach().max())


@pytest.mark.parametrize("init", [None, init_normal, init_kaiming])
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


def warmed_up(name: str) -> nn.Module:
    """Return torchvision's network with seeded weights and running statistics that are not the initial."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name)
    network.train()(noise(4, 3, 64, 64))
    return network.eval()


def test_encoder_with_published_weights_is_torchvisions() -> None:
    network, x = warmed_up("resnet18"), noise(2, 3, 64, 96)
    encoder = ResNetEncoder("resnet18", 3, 4).eval()
    encoder.load_pretrained(network.state_dict())
    theirs = [network.relu(network.bn1(network.conv1(x)))]
    pooled = network.maxpool(theirs[0])
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        pooled = layer(pooled)
        theirs.append(pooled)
    assert all(map(torch.equal, encoder(x), theirs))
    assert len(encoder(x)) == len(theirs) == 5
    partly = network.state_dict()
    del partly["layer2.0.conv1.weight"]
    with pytest.raises(RuntimeError, match=r"layers\.1\.0\.conv1\.weight"):
        encoder.load_pretrained(partly)


def test_one_channel_sees_what_three_equal_ones_do() -> None:
    state, gray = warmed_up("resnet18").state_dict(), noise(2, 1, 64, 64)
    one, three = (ResNetEncoder("resnet18", channels, 4).eval() for channels in (1, 3))
    for encoder in (one, three):
        encoder.load_pretrained(state)
    for ours, theirs in zip(one(gray), three(gray.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


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


def test_inits() -> None:
    normal, kaiming, fresh = layers().apply(init_normal), layers().apply(init_kaiming), layers()
    for module in normal:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            assert not deviates(module.weight, float(isinstance(module, nn.BatchNorm2d)), 0.02)
            assert module.bias is None or not module.bias.any()
    for i, fan in ((0, 4 * 4 * 64), (2, 3 * 3 * 32), (4, 8)):  # kernel area x out channels
        assert not deviates(kaiming[i].weight, 0.0, (2 / fan) ** 0.5)
    assert torch.equal(normal[3].weight, fresh[3].weight)
    assert torch.equal(kaiming[1].weight, fresh[1].weight)
    assert torch.equal(kaiming[0].bias, fresh[0].bias)


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


# Frozen extractors


def random_batchnorm(network: nn.Module) -> None:
    """Give every BatchNorm statistics that are not the initial, so that a key mixed up shows."""
    for i, module in enumerate(network.modules()):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean = torch.sigmoid(noise(module.num_features, seed=i)) - 0.5
            module.running_var = torch.sigmoid(noise(module.num_features, seed=i + 1)) + 0.5
            module.weight.data = torch.sigmoid(noise(module.num_features, seed=i + 2)) + 0.5
            module.bias.data = torch.sigmoid(noise(module.num_features, seed=i + 3)) - 0.5


def test_vgg_is_torchvisions_at_three_places() -> None:
    with torch.device("meta"):  # the classifier alone is half a gigabyte
        body = torchvision.models.vgg16().features[:16]
    body.to_empty(device="cpu").eval()
    torch.manual_seed(0)
    for parameter in body.parameters():
        nn.init.normal_(parameter, 0.0, (2 / max(1, parameter[0].numel())) ** 0.5 / 2)
    extractor, image = VGGFeatures(), noise(2, 1, 24, 40).sigmoid()
    extractor.load_published({f"features.{key}": value for key, value in body.state_dict().items()})
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x, expected = (image.expand(-1, 3, -1, -1) - mean.view(3, 1, 1)) / std.view(3, 1, 1), []
    for i, layer in enumerate(body):
        x = layer(x)
        if i in (3, 8, 15):
            expected.append(x.clone())
    got = extractor(image)
    assert [tuple(f.shape) for f in got] == [(2, 64, 24, 40), (2, 128, 12, 20), (2, 256, 6, 10)]
    for ours, theirs in zip(got, expected, strict=True):
        assert theirs.std() > 0.05
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_danbooru_is_a_resnet50_with_both_poolings() -> None:
    danbooru = DanbooruFeatures()
    random_batchnorm(danbooru)
    names = {"0.": "1.2.", "1.": "1.4."}  # as published: BatchNorm1d(4096) and Linear(4096, 512) of the head
    state = {f"0.{key}": value for key, value in danbooru.body.state_dict().items()}
    state |= {names[key[:2]] + key[2:]: value for key, value in danbooru.head.state_dict().items()}
    extractor, image = DanbooruFeatures(), noise(1, 3, 90, 70).sigmoid()
    extractor.load_published({**state, "1.8.weight": torch.zeros(6000, 512)})  # and the tags
    resnet = torchvision.models.resnet50().eval()
    body = nn.Sequential(*list(resnet.children())[:-2])
    body.load_state_dict({key[2:]: value for key, value in state.items() if key.startswith("0.")})
    mean, std = torch.tensor([0.7137, 0.6628, 0.6519]), torch.tensor([0.2970, 0.3017, 0.2979])
    x = F.interpolate(image, [360, 360], mode="bilinear", antialias=True)
    with torch.no_grad():
        x = body((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        assert x.shape == (1, 2048, 12, 12)
        x = torch.cat([x.flatten(2).max(2).values, x.flatten(2).mean(2)], 1)  # fastai's order: max first
        x = (x - state["1.2.running_mean"]) / (state["1.2.running_var"] + 1e-5).sqrt()
        x = x * state["1.2.weight"] + state["1.2.bias"]
        expected = F.relu(x @ state["1.4.weight"].T + state["1.4.bias"])
        (got,) = extractor(image)
    assert got.shape == (1, DanbooruFeatures.WIDTH)
    assert expected.std() > 0.05
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)
    for missing in ("0.0.weight", "1.2.bias", "1.4.weight"):
        with pytest.raises(KeyError, match=missing.replace(".", r"\.")):
            extractor.load_published({key: value for key, value in state.items() if key != missing})


def test_extractors_stay_frozen() -> None:
    for extractor in (Glance(), VGGFeatures()):
        holder = nn.Sequential(extractor, nn.BatchNorm2d(3)).train()
        assert holder[1].training
        assert not any(module.training for module in extractor.modules())
        assert not any(parameter.requires_grad for parameter in extractor.parameters())
        assert not {"mean", "std"} & extractor.state_dict().keys()  # constants, not weights
        before = {key: value.clone() for key, value in extractor.state_dict().items()}
        image = noise(1, 3, 32, 32).sigmoid().requires_grad_()
        sum(f.square().mean() for f in extractor(image)).backward()
        assert image.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in extractor.parameters())
        assert all(torch.equal(value, extractor.state_dict()[key]) for key, value in before.items())
    assert issubclass(Glance, FrozenFeatures)


@pytest.mark.slow
def test_the_extractor_inside_a_generator_is_scripted_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DanbooruFeatures, "SIZE", 64)
    generator, x = build_network("unet-ext", depth=3).eval(), network_inputs("unet-ext", 32, 1)[0]
    random_batchnorm(generator.extractor)
    with torch.no_grad():
        expected = generator(x)
        torch.testing.assert_close(torch.jit.script(generator)(x), expected)
        generator.extractor.head[1].bias.add_(5.0)
        assert not torch.equal(generator(x), expected)  # its features are seen


def test_hints_reach_the_decoder_beside_the_encoder() -> None:
    torch.manual_seed(0)
    network = LiteUNet(4, 2, 8).eval()
    with torch.no_grad():
        first = next(network.encoder.parameters())
        first[:, 1:] = 0  # through the encoder nothing is seen of them
        network.attention = None
        x = torch.rand(1, 4, 64, 64)
        x[:, 1:] = 0
        hinted = x.clone()
        hinted[:, 1:, 10:12, 20:22] = torch.tensor([0.4, -0.2, 1.0]).view(3, 1, 1)
        changed = (network(hinted) - network(x)).abs().amax((0, 1))
    assert changed[11, 21] > 0
    assert changed[-8:, -8:].max() == 0  # far away
    for channels, out, hints in ((1, 2, 0), (3, 2, 0), (3, 3, 0), (4, 2, 3), (7, 3, 4)):
        assert LiteUNet(channels, out, 8).hints == hints


def test_weights_of_before_the_decoder_saw_hints_load_and_give_what_they_gave() -> None:
    torch.manual_seed(0)
    network, old, x = LiteUNet(4, 2, 8).eval(), LiteUNet(4, 2, 8).eval(), torch.rand(1, 4, 64, 64)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    seen = re.compile(r"decoder\.\d\.0\.weight")
    blind = {key: value[:, :-3] if seen.fullmatch(key) else value for key, value in state.items()}
    assert sum(blind[key].shape != state[key].shape for key in state) == 3
    fresh = LiteUNet(4, 2, 8).eval()
    fresh.load_state_dict({**state, "attention.scales": torch.ones(3)})  # of weights whose widths were learnt
    blind = {key: value for key, value in blind.items() if not key.startswith("attention.")}
    with torch.no_grad():
        before = network(x)
        assert torch.equal(fresh(x), before)
        network.load_state_dict(blind)
        assert not torch.equal(network(x), before)
        again = LiteUNet(4, 2, 8).eval()
        again.load_state_dict(blind)
        assert torch.equal(again(x), network(x))  # what is untrained is the same each time
        old.hints, old.attention = 0, None  # as the network was
        for block in old.decoder:
            conv = block[0]
            block[0] = nn.Conv2d(conv.in_channels - 3, conv.out_channels, 3, 1, 1, bias=False)
        old.load_state_dict(blind)
        torch.testing.assert_close(network.logits(x), old.logits(x), atol=1e-5, rtol=0)
        x[:, 1:] = 0  # to hints there is attention now
        torch.testing.assert_close(network(x), old(x), atol=1e-6, rtol=0)
    with pytest.raises(RuntimeError, match="size mismatch"):
        network.load_state_dict({**blind, "decoder.1.0.weight": torch.zeros(1, 1, 3, 3)})


def attend(attention: HintAttention, light: Tensor, hints: Tensor) -> Tensor:
    """Return what is added to a prediction 0 for a picture whose pixels differ in lightness and place alone."""
    zero = torch.zeros(1, 2, light.size(2) // 4, light.size(3) // 4)
    with torch.no_grad():
        return attention(zero, torch.ones(1, 5, *zero.shape[2:]), light, hints)


def test_attention_corrects_what_is_alike_and_near() -> None:
    torch.manual_seed(0)
    attention, light, hints = HintAttention(5), torch.zeros(1, 1, 64, 128), torch.zeros(1, 3, 64, 128)
    light[:, :, 32:] = 0.8
    assert attend(attention, light, hints).abs().max() == 0
    hints[:, :, 8:12, 16:20] = torch.tensor([0.5, -0.25, 1.0]).view(3, 1, 1)
    more = attend(attention, light, hints)
    torch.testing.assert_close(more[0, :, 2, 4], torch.tensor([0.5, -0.25]) / 1.1, atol=1e-3, rtol=0)  # and noise
    torch.testing.assert_close(more[:, 1], -more[:, 0] / 2, atol=1e-6, rtol=0)
    a = more[0, 0]
    assert a[2, 4] > a[2, 8] > a[2, 16] > a[2, 31] > 0  # the nearer, the more
    assert a[6, 4] > 2.5 * a[10, 4] > 0  # the more, the more alike
    attention.COLOR_WEIGHT = 0.0  # then a description does not count
    torch.testing.assert_close(attend(attention, light, hints), more, atol=1e-5, rtol=0)
    features = torch.ones(1, 5, 16, 32)
    features[:, :3, :, 16:] = -4
    zero = torch.zeros(1, 2, 16, 32)
    attention.COLOR_WEIGHT = 1.0
    with torch.no_grad():
        described = attention(zero, features, light, hints)[0, 0]
    torch.testing.assert_close(described[:, :16], a[:, :16], atol=1e-5, rtol=0)
    assert (described[:, 16:] < 0.9 * a[:, 16:]).all()


@pytest.mark.parametrize(("keys", "apart"), [(1, 1.0), (10, 1.0), (128, 1.0), (128, 0.02), (128, 0.0)])
def test_the_weights_of_keys_are_in_use_those_of_training(keys: int, apart: float) -> None:
    """Random keys, a third of them not there, and random errors; compared is what the weights explain."""
    rng = torch.Generator().manual_seed(keys)
    attention, places = HintAttention(5), torch.rand(2, 35, keys, generator=rng)
    places[:, :32] = F.normalize(places[:, :32] - 0.5, dim=1)
    places = places[:, :, :1] + apart * (places - places[:, :, :1])
    there = (torch.rand(2, 1, keys, generator=rng) > 0.3).float()
    there[:, :, 0] = 1
    errors = torch.randn(2, 2, keys, generator=rng) * there
    with torch.no_grad():
        covariance = attention.similarity(places, places) * there * there.transpose(1, 2)
        trained, used = (attention.train(mode).solve(covariance, errors) for mode in (True, False))
    for weights in (trained, used):
        assert (weights * (1 - there)).abs().max() == 0
    difference = (used - trained) @ covariance
    assert difference.abs().max() <= 1e-5 * errors.abs().max()
    left = errors - trained @ covariance - attention.NOISE_VARIANCE * trained
    assert left.abs().max() < 2e-6 * trained.abs().max()  # which are rounded to float32


def test_a_large_hint_counts_no_more_than_a_small_one_far_away() -> None:
    torch.manual_seed(0)
    attention, light = HintAttention(5), torch.zeros(1, 1, 128, 256)
    color = torch.tensor([0.5, -0.25, 1.0]).view(3, 1, 1)
    small, large = torch.zeros(1, 3, 128, 256), torch.zeros(1, 3, 128, 256)
    small[:, :, 40:44, 40:44], large[:, :, 16:64, 16:64] = color, color  # in one cell, and in 36
    one, many = (attend(attention, light, hints)[0, 0, :, 56:] for hints in (small, large))
    assert one.max() < 0.25
    assert ((many - one).abs() < 0.3 * one.max()).all()


def test_of_very_many_hints_some_are_seen_everywhere() -> None:
    """384 x 384 px are 2,304 cells; the upper half is red, the lower green."""
    torch.manual_seed(0)
    attention, hints = HintAttention(5), torch.ones(1, 3, 384, 384)
    hints[:, 0], hints[:, 1] = torch.where(torch.arange(384) < 192, 0.5, -0.5)[:, None], 0.1
    attention.PLACE_WEIGHT = 36.0
    more = attend(attention, torch.zeros(1, 1, 384, 384), hints)[0, 0]
    assert (more[:40] > 0.05).all()
    assert (more[-40:] < -0.05).all()


@pytest.mark.parametrize(("row", "column"), [(132, 3), (180, 77), (201, 250), (255, 130)])
def test_a_dot_is_seen_beside_a_painted_half(row: int, column: int) -> None:
    torch.manual_seed(0)
    attention, light, hints = HintAttention(5), torch.zeros(1, 1, 256, 256), torch.zeros(1, 3, 256, 256)
    hints[:, :, :96] = torch.tensor([0.5, 0.1, 1.0]).view(3, 1, 1)  # 384 cells
    light[:, :, 112:] = 0.9
    before = attend(attention, light, hints)[0, 0]
    hints[:, :, row, column] = torch.tensor([-0.5, 0.1, 1.0])
    after = attend(attention, light, hints)[0, 0]
    assert before[row // 4, column // 4] > 0
    assert after[row // 4, column // 4] < -0.3


def test_rounding_is_not_amplified_by_hints_that_disagree() -> None:
    torch.manual_seed(0)
    attention, y, light = HintAttention(5).eval(), torch.rand(1, 2, 64, 64) - 0.5, torch.rand(1, 1, 256, 256)
    logits, hints = 1 + torch.randn(1, 5, 64, 64), torch.ones(1, 3, 256, 256)
    hints[:, :2] = torch.rand(1, 2, 256, 256) - 0.5
    with torch.no_grad():
        exact, rounded = (attention(y + 1e-6 * noise, logits, light, hints) for noise in (0.0, torch.randn_like(y)))
        with torch.autocast("cpu", torch.bfloat16):
            coarse = attention(y, logits, light, hints)
    assert (exact - y).abs().max() > 0.1
    assert (exact - rounded).abs().max() < 1e-4
    assert (exact - coarse).abs().mean() < 0.05


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_attention_in_a_network(size: tuple[int, int]) -> None:
    """Scripted it is the same, pictures of a batch do not mix, and gradients are finite (no hint, few, all)."""
    torch.manual_seed(0)
    network, x = LiteUNet(4, 2, 8).eval(), torch.rand(3, 4, *size) - 0.5
    x[0, 1:] = 0
    x[1, 1:] *= (torch.rand(size) > 0.98).float()
    x[:, 3:] = (x[:, 3:] != 0).float()
    with torch.no_grad():
        found, changed = network(x), x.clone()
        changed[2, 1] *= -1
        torch.testing.assert_close(network(changed)[:2], found[:2], atol=1e-6, rtol=0)
        torch.testing.assert_close(network(x[1:2]), found[1:2], atol=1e-5, rtol=0)
        plain = network.readout(network.logits(x), torch.zeros_like(x))
        assert torch.equal(plain[0], found[0])
        assert (plain - found)[1].abs().max() > 0.05
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated
            torch.testing.assert_close(torch.jit.script(network)(x), found, atol=1e-6, rtol=0)
    network.train()(x).square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())
    assert network.attention.describe.weight.grad.abs().max() > 0
    assert LiteUNet(7, 3, 8).attention is None  # of drawings, and of L, which a hint does not know
    assert LiteUNet(1, 2, 8).attention is None


def test_hints_are_reduced_to_their_mean_colour_and_a_mark() -> None:
    hints = torch.zeros(1, 3, 8, 8)
    hints[:, :, 1:3, 2:4] = torch.tensor([0.4, -0.2, 1.0]).view(3, 1, 1)
    hints[:, :, 1, 7], hints[:, :, 2, 7] = torch.tensor([0.1, 0.1, 1.0]), torch.tensor([0.3, 0.1, 1.0])
    found = pool_hints(hints, 4)
    wanted = torch.zeros(1, 3, 2, 2)
    wanted[0, :, 0] = torch.tensor([[0.4, 0.2], [-0.2, 0.1], [1, 1]])
    torch.testing.assert_close(found, wanted)


def test_a_published_encoder_sees_gray_as_three_equal_channels_and_hints_not_yet() -> None:
    torch.manual_seed(0)
    published = models.LiteClassifier().eval()
    for module in published.modules():  # or nothing would depend on the statistics
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    renamed = {f"layer{i}": value for i, value in enumerate(published.state_dict().values())}
    again, encoder = models.LiteClassifier().eval(), models.LiteEncoder(4).eval()
    again.load_published(renamed)
    encoder.load_pretrained(renamed)
    gray, hints = torch.rand(2, 1, 64, 64) * 2 - 1, torch.rand(2, 3, 64, 64)
    rgb = gray.expand(-1, 3, -1, -1)
    assert torch.equal(again(rgb), published(rgb))
    pairs = zip(encoder(torch.cat([gray, hints], 1)), published.encoder(rgb), strict=True)
    assert all(torch.allclose(ours, theirs, atol=1e-4) for ours, theirs in pairs)
    with pytest.raises(ValueError, match="zip"):
        again.load_published({**renamed, "more": torch.zeros(1)})
