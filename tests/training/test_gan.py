"""One step of both networks, stages, every kind of discriminator, exact resume, pretrained weights."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, MeanColor, noise_batch, tiny_recipe
from torch import Tensor, nn

import models
from config import CHOICES, Recipe
from data import ImageSet
from dataset import degradations
from imaging import color
from models import DISCRIMINATORS, NORMS
from runtime import atomic
from runtime.weights import load_weights
from tools.workers import published_step
from training import gan
from training.gan import (
    Batch,
    ClassLoss,
    Gan,
    build_gan,
    generator_terms,
    load_pretrained,
    make_batch,
    perceptual_loss,
    schedule,
    soft_bins,
    train_step,
)

TERMS = {"G_gan", "G_l1", "D_real", "D_fake"}


def build(recipe: Recipe, precision: str = "fp32") -> Gan:
    return build_gan(recipe, CPU, precision)


def step(networks: Gan, recipe: Recipe, seed: int = 0) -> dict[str, Tensor]:
    return train_step(networks, noise_batch(recipe, seed), recipe, recipe.is_adversarial)


def weights(network: nn.Module) -> list[Tensor]:
    """Return copies of all parameters."""
    return [parameter.detach().clone() for parameter in network.parameters()]


def floats(network: nn.Module) -> list[Tensor]:
    """Return weights and running statistics."""
    return [value.clone() for value in network.state_dict().values() if value.is_floating_point()]


def convolutions(network: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]


def changed(network: nn.Module, before: list[Tensor]) -> list[bool]:
    return [not torch.equal(now, then) for now, then in zip(network.parameters(), before, strict=True)]


def bits(state: Any) -> list[bytes | str]:
    """Return a nested state_dict as bytes, to compare exactly."""
    if isinstance(state, Tensor):
        return [state.contiguous().flatten().view(torch.uint8).numpy().tobytes()]
    if isinstance(state, dict):
        return [part for key, value in state.items() for part in [str(key), *bits(value)]]
    if isinstance(state, list | tuple):
        return [part for value in state for part in bits(value)]
    return [repr(state)]


def before_each_update(networks: Gan, look: Callable[[str], None]) -> None:
    """Call look("d") and look("g") when all gradients of a half are there, just before its update."""
    for name in "dg":
        optimizer = getattr(networks, f"optimizer_{name}")
        optimizer.register_step_pre_hook(lambda *_, name=name: look(name))


def grad_norms(network: nn.Module) -> list[float]:
    return [0.0 if p.grad is None else float(p.grad.norm()) for p in network.parameters()]


# The step


def test_halves_come_in_order_and_leave_the_other_network_alone() -> None:
    recipe = tiny_recipe()
    networks = build(recipe)
    start = {"d": weights(networks.discriminator), "g": weights(networks.generator)}
    order, after_d = [], {}

    def look(half: str) -> None:
        order.append(half)
        assert not any(changed(networks.generator, start["g"]))
        if half == "d":
            assert not any(changed(networks.discriminator, start["d"]))
        else:
            assert all(changed(networks.discriminator, start["d"]))
            after_d["d"] = weights(networks.discriminator)

    before_each_update(networks, look)
    terms = step(networks, recipe)
    assert order == ["d", "g"]
    assert all(changed(networks.generator, start["g"]))
    assert not any(changed(networks.discriminator, after_d["d"]))
    assert set(terms) == TERMS
    assert not any(value.requires_grad or value.ndim for value in terms.values())
    assert not any(grad_norms(networks.generator) + grad_norms(networks.discriminator))  # none left over


@pytest.mark.parametrize("mode", CHOICES["gan_mode"])
def test_gradients_reach_every_parameter_of_their_own_network(mode: str) -> None:
    recipe, seen = tiny_recipe(gan_mode=mode), {}
    networks = build(recipe)

    def look(half: str) -> None:
        seen[half] = grad_norms(networks.discriminator), grad_norms(networks.generator)

    before_each_update(networks, look)
    step(networks, recipe)
    # hinge: real and fake pull D's last bias equally, to opposite sides
    assert all(norm > 0 for norm in seen["d"][0][: -1 if mode == "hinge" else None])
    assert not any(seen["d"][1])  # the fake is detached
    assert all(norm > 0 for norm in seen["g"][1])
    assert not any(seen["g"][0])


def test_terms_and_the_discriminators_gradient_are_the_losses_of_the_batch() -> None:
    recipe = tiny_recipe(dropout=0.0, label_real=0.9)
    networks, batch, grads = build(recipe), noise_batch(recipe), []
    generator, discriminator = deepcopy(networks.generator), deepcopy(networks.discriminator)
    networks.optimizer_d.register_step_pre_hook(
        lambda *_: grads.extend(p.grad.clone() for p in networks.discriminator.parameters())
    )

    def loss(logits: Tensor, label: float) -> Tensor:
        return nn.BCEWithLogitsLoss()(logits, torch.full_like(logits, label))

    terms, fake = step(networks, recipe), generator(batch.x).detach()
    real_loss = loss(discriminator(batch.x, batch.y), 0.9)
    fake_loss = loss(discriminator(batch.x, fake), 0.0)
    (0.5 * (real_loss + fake_loss)).backward()
    torch.testing.assert_close(grads, [p.grad for p in discriminator.parameters()], atol=1e-6, rtol=1e-3)
    with torch.no_grad():
        later = networks.discriminator(batch.x, fake)  # the generator meets the discriminator's new weights
    for name, value in {"D_real": real_loss, "D_fake": fake_loss, "G_gan": loss(later, 0.9)}.items():
        torch.testing.assert_close(terms[name], value.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(terms["G_l1"], (fake - batch.y).abs().mean())


def test_steps_are_the_published_ones() -> None:
    recipe = tiny_recipe(lambda_gan=0.5)
    ours, theirs = build(recipe), build(recipe)
    published = published_step(theirs.generator, theirs.discriminator, recipe)
    batch = noise_batch(recipe, 0)
    for _ in range(3):
        expected = published(batch.x, batch.y)
        found = {name: value.item() for name, value in step(ours, recipe).items()}
        assert found == pytest.approx(expected, rel=1e-4)


def test_one_batch_can_be_learned() -> None:
    recipe = tiny_recipe(lr=1e-2, ngf=8)
    networks = build(recipe)
    history = [float(step(networks, recipe)["G_l1"]) for _ in range(25)]
    assert sum(history[-5:]) / 5 < 0.6 * history[0]


def test_a_step_in_bf16_keeps_losses_and_weights_in_float32() -> None:
    recipe = tiny_recipe()
    expected, half = step(build(recipe), recipe), build(recipe, "bf16")
    terms = step(half, recipe)
    for name in TERMS:
        assert terms[name].dtype == torch.float32
        torch.testing.assert_close(terms[name], expected[name], atol=0.02, rtol=0)
        assert not torch.equal(terms[name], expected[name])
    assert {p.dtype for p in half.generator.parameters()} == {torch.float32}


@pytest.mark.parametrize("lambda_class", [0.0, 0.3])
def test_attention_to_hints_is_in_float32_whatever_the_precision(lambda_class: float) -> None:
    fields = {"generator": "lite-unet", "discriminator": "none", "hints": True, "lambda_class": lambda_class}
    recipe = tiny_recipe(input="L", output="ab", **fields)
    networks, seen = build(recipe, "bf16"), []
    networks.generator.attention.register_forward_hook(lambda _, given, y: seen.append((given[1].dtype, y.dtype)))
    target = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for number in range(3):
        terms = train_step(networks, make_batch(target, target, recipe, CPU, number), recipe, False)
        assert all(value.isfinite() for value in terms.values())
    assert seen == 3 * [(torch.float32, torch.float32)]
    assert all(parameter.isfinite().all() for parameter in networks.generator.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{}, {"generator": "lite-unet", "discriminator": "none", "lambda_class": 0.1}], ids=["unet", "lite-unet"]
)
def test_compiled_step_is_the_same_function(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the graph alone, without minutes of C++ compilation."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    recipe, terms = tiny_recipe(**fields), []
    for compiled in (False, True):
        networks = build_gan(recipe, CPU, "fp32", compiled=compiled)
        terms.append([step(networks, recipe) for _ in range(2)][-1])
    for name, value in terms[0].items():
        torch.testing.assert_close(value, terms[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_on_cuda(precision: str) -> None:
    cuda, recipe = torch.device("cuda"), tiny_recipe()
    networks, batch = build_gan(recipe, cuda, precision), noise_batch(recipe)
    start = weights(networks.generator)
    on_device = Batch(batch.x.to(cuda), batch.y.to(cuda), batch.target.to(cuda))
    for _ in range(20):  # a scaler may leave out its first steps
        terms = train_step(networks, on_device, recipe, True)
    assert all(value.isfinite() for value in terms.values())
    assert all(changed(networks.generator, start))


# Batches


@pytest.mark.parametrize(
    ("given", "answer"), [("L", "ab"), ("L", "Lab"), ("L", "rgb"), ("gray", "rgb"), ("sketch", "rgb")]
)
@pytest.mark.parametrize("drawn", [False, True])
def test_a_batch_is_what_the_networks_take(given: str, answer: str, drawn: bool) -> None:
    recipe = tiny_recipe(input=given, output=answer)
    target = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    source = 255 - target if drawn else target
    batch = make_batch(source, target, recipe, CPU, 3)
    assert torch.equal(batch.x, color.encode(source, given))
    assert torch.equal(batch.y, color.encode(target, answer))
    assert batch.target is target


def test_degradations_are_of_the_input_alone_and_others_at_each_step() -> None:
    recipe = tiny_recipe(output="Lab", grain_p=1.0)
    target = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    first, again, later = (make_batch(target, target, recipe, CPU, i) for i in (5, 5, 6))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, later.x)
    assert set(recipe.degradations) <= set(degradations.DEGRADATIONS)
    for batch in (first, later):
        assert torch.equal(batch.y, color.encode(target, "Lab"))
        assert not torch.equal(batch.x, batch.y[:, :1])


# Building, learning rates, stages


def test_networks_follow_the_recipe() -> None:
    networks = build(tiny_recipe(lr=3e-4, beta1=0.4, beta2=0.9, init="normal"))
    for optimizer in (networks.optimizer_g, networks.optimizer_d):
        group = optimizer.param_groups[0]
        assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.4, 0.9), 0)
    for network in (networks.generator, networks.discriminator):
        big = torch.cat([p.flatten() for p in network.parameters() if p.ndim == 4])
        assert big.std().item() == pytest.approx(0.02, rel=0.1)
    kaiming = build(tiny_recipe(init="kaiming", ngf=16))
    for conv in convolutions(kaiming.generator):
        fan = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels
        assert conv.weight.numel() < 1000 or conv.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.1)


def rates(networks: Gan) -> list[float]:
    optimizers = filter(None, (networks.optimizer_g, networks.optimizer_d))
    return [optimizer.param_groups[0]["lr"] for optimizer in optimizers]


@pytest.mark.parametrize(
    ("name", "factors", "lr_d"), [("constant", [1, 1, 1, 1, 1], 0.0), ("linear", [1, 1, 1, 0.5, 0.02], 3e-4)]
)
def test_learning_rates_of_one_stage(name: str, factors: list[float], lr_d: float) -> None:
    recipe = tiny_recipe(schedule=name, lr=1e-3, lr_d=lr_d, epochs=100)
    alone = replace(recipe, discriminator="none")
    networks, generator = build(recipe), build(alone)
    state = networks.state()
    for progress, factor in zip((0, 25, 50, 75, 99), factors, strict=True):
        state.epoch, state.steps = progress + 1, 7 * progress
        assert schedule(networks, recipe, state, 7)
        assert rates(networks) == pytest.approx([1e-3 * factor, (lr_d or 1e-3) * factor])
        assert not schedule(generator, alone, state, 7)
        assert rates(generator) == pytest.approx([1e-3 * factor])


@pytest.mark.parametrize("pretrain_lr", [0.0, 5e-3])
def test_learning_rates_of_two_stages_and_adam_starts_anew(pretrain_lr: float) -> None:
    fields = {"lr": 1e-3, "lr_d": 4e-4, "epochs": 14, "pretrain_epochs": 4, "pretrain_lr": pretrain_lr}
    recipe = tiny_recipe(schedule="linear", **fields)
    networks = build(recipe)
    state = networks.state()
    networks.optimizer_g.state[next(networks.generator.parameters())] = {"step": 1}
    for epoch in range(1, 15):  # the schedule is that of the ten epochs with the discriminator
        factor = min(1.0, (15 - epoch) / 5)
        state.epoch, state.steps = epoch, 3 * (epoch - 1)
        assert schedule(networks, recipe, state, 3) == (epoch > 4)
        assert bool(networks.optimizer_g.state) == (epoch <= 4)
        lr_g, lr_d = rates(networks)
        assert lr_g == pytest.approx((pretrain_lr or 1e-3) if epoch <= 4 else 1e-3 * factor)
        assert epoch <= 4 or lr_d == pytest.approx(4e-4 * factor)
    networks.optimizer_g.state[next(networks.generator.parameters())] = {"step": 1}
    state.epoch, state.step = 5, 1
    schedule(networks, recipe, state, 3)
    assert networks.optimizer_g.state  # anew once, not in every step


def test_in_the_first_stage_the_generator_learns_alone() -> None:
    recipe = tiny_recipe(pretrain_epochs=2, epochs=4)
    networks = build(recipe)
    before, start = bits(networks.discriminator.state_dict()), weights(networks.generator)
    networks.discriminator.forward = None  # not even asked
    assert set(train_step(networks, noise_batch(recipe), recipe, False)) == {"G_l1"}
    del networks.discriminator.forward
    assert bits(networks.discriminator.state_dict()) == before
    assert not networks.optimizer_d.state
    assert all(changed(networks.generator, start))
    assert set(step(networks, recipe)) == TERMS
    assert bits(networks.discriminator.state_dict()) != before


def test_the_averaged_generator_follows_slowly_and_faster_in_the_first_steps() -> None:
    recipe = tiny_recipe(ema=0.25)
    networks = build(recipe)
    expected: list[Tensor] = []
    for i in range(4):
        step(networks, recipe, i)
        now = floats(networks.generator)
        decay = (None, 2 / 11, 3 / 12, 0.25)[i]
        expected = [decay * e + (1 - decay) * n for e, n in zip(expected, now, strict=True)] if i else now
    assert all(changed(networks.generator, weights(networks.ema.module)))
    torch.testing.assert_close(floats(networks.ema.module), expected)  # BatchNorm's statistics included


# States


KINDS = [
    {"ema": 0.9, "dropout": 0.5}, {"discriminator": "none", "lambda_mse": 1.0, "ema": 0.9},
    {"discriminator": "patch30", "norm_d": "batch", "spectral_norm": True},
    {"discriminator": "patch26", "norm_d": "none", "size": 64},
    {"discriminator": "patch15", "norm_d": "instance", "spectral_norm": True},
    {"discriminator": "patch15-bias", "norm_d": "batch"},
    {"discriminator": "image32", "norm_d": "instance"},
    {"discriminator": "image32", "norm_d": "none", "spectral_norm": True},
    {"generator": "lite-unet", "discriminator": "none", "hints": True, "lambda_class": 0.1, "weight_decay": 0.01,
     "lr_encoder": 1e-4, "schedule": "cosine", "warmup": 0.1, "size": 64},
]  # fmt: skip


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_every_kind_trains_and_goes_on_bitwise(fields: dict[str, Any]) -> None:
    recipe = tiny_recipe(**fields)
    networks = build(recipe)
    state, start = networks.state(), weights(networks.generator)
    if networks.discriminator is not None:
        norms = {type(module) for module in networks.discriminator.modules()} & set(NORMS.values())
        assert norms == {NORMS[recipe.norm_d]} - {None}
        bounded = {hasattr(conv, "parametrizations") for conv in convolutions(networks.discriminator)}
        assert bounded == {recipe.spectral_norm}
        judged = weights(networks.discriminator)
    terms = step(networks, recipe)
    assert set(terms) == set(recipe.term_weights)
    assert all(value.isfinite() for value in terms.values())
    assert all(changed(networks.generator, start))
    if networks.discriminator is not None:
        assert sum(changed(networks.discriminator, judged)) >= len(judged) - 1
    state.epoch, state.step, state.steps = 2, 1, 3
    atomic.save(Path("state.pt"), state.state_dict())
    last = [step(networks, recipe, seed) for seed in (1, 2)]
    resumed = build(replace(recipe, seed=8))
    again = resumed.state()
    again.load_state_dict(atomic.load(Path("state.pt")))
    assert again.progress == {"epoch": 2, "step": 1, "steps": 3}
    assert bits([step(resumed, recipe, seed) for seed in (1, 2)]) == bits(last)
    assert bits(again.state_dict()) == bits(state.state_dict())


def test_every_discriminator_is_tested() -> None:
    used = {fields["discriminator"] for fields in KINDS if "discriminator" in fields}
    assert used | {"image224", "image-rgb"} == {*DISCRIMINATORS, "none"}  # test_recipes.py trains these two


def test_a_state_without_gradient_scaling_can_go_on_with_it() -> None:
    state = build(tiny_recipe()).state().state_dict()
    assert state["scaler"] == {}
    other = build(tiny_recipe())
    other.scaler = torch.amp.GradScaler("cpu")
    other.state().load_state_dict(state)
    assert other.scaler.is_enabled()


# Perceptual terms and pretrained weights


@pytest.mark.parametrize(("given", "answer"), [("L", "ab"), ("L", "Lab"), ("gray", "rgb"), ("sketch", "rgb")])
def test_perceptual_terms_compare_colour_images(given: str, answer: str) -> None:
    recipe = tiny_recipe(input=given, output=answer, lambda_perceptual=1.0, anime_share=0.5, discriminator="none")
    networks, pictures = build(recipe), noise_batch(recipe)
    networks.extractors = {"G_perceptual": MeanColor(), "G_anime": MeanColor()}
    perfect = generator_terms(networks, pictures, pictures.y, None, recipe, False)
    assert set(perfect) == {"G_l1", "G_perceptual", "G_anime"}
    assert all(value < 1e-6 for value in perfect.values())  # the truth's own ab on the truth's own L
    fake = torch.zeros_like(pictures.y).requires_grad_()
    terms = generator_terms(networks, pictures, fake, None, recipe, False)
    if answer == "ab":
        lab = color.rgb_to_lab(color.rgb01(pictures.target)) * torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
        shown = color.lab_to_rgb(lab)
    else:
        shown = color.decode(fake.detach(), answer, torch.zeros(0))
    expected = gan.perceptual_loss(MeanColor(), shown, color.rgb01(pictures.target))
    torch.testing.assert_close(terms["G_perceptual"], expected)
    assert torch.autograd.grad(terms["G_anime"], fake)[0].abs().sum() > 0


def test_pretrained_weights_are_loaded_afresh_only(weights_folder: Path) -> None:
    recipe = tiny_recipe(generator="resnet", pretrained=True, discriminator="none", ema=0.9)
    networks = build(recipe)
    start = bits(networks.generator.state_dict())
    load_pretrained(networks, recipe, weights_folder, fresh=False)  # a state restores it
    assert bits(networks.generator.state_dict()) == start
    load_pretrained(networks, recipe, weights_folder, fresh=True)
    published = torch.load(next(weights_folder.glob("resnet18-*")), weights_only=True)
    encoder = networks.generator.encoder
    assert torch.equal(encoder.layers[1][1].conv2.weight, published["layer2.1.conv2.weight"])
    assert torch.equal(encoder.conv1.weight, published["conv1.weight"].sum(1, keepdim=True))
    assert networks.extractors == {}
    step(networks, recipe)
    torch.testing.assert_close(floats(networks.ema.module), floats(networks.generator))


def test_extractors_of_losses_are_loaded_for_a_resume_too(weights_folder: Path) -> None:
    recipe = tiny_recipe(lambda_perceptual=0.1, anime_share=0.1)
    networks = build(recipe)
    load_pretrained(networks, recipe, weights_folder, fresh=False)
    files = {"G_perceptual": ("vgg16-*", "features.0.weight"), "G_anime": ("danbooru-*", "0.0.weight")}
    assert list(networks.extractors) == list(files)
    assert "extractors" not in networks.state().state_dict()  # frozen, so not saved
    for term, (file, key) in files.items():
        published = torch.load(next(weights_folder.glob(file)), weights_only=True)
        assert torch.equal(next(networks.extractors[term].parameters()), published[key])


@pytest.mark.slow
def test_an_extractor_inside_the_generator_is_loaded_and_left_alone(weights_folder: Path) -> None:
    fields = {"generator": "unet-ext", "depth": 3, "size": 16, "discriminator": "none", "ema": 0.5}
    recipe = tiny_recipe(input="gray", output="rgb", **fields)
    networks = build(recipe)
    load_pretrained(networks, recipe, weights_folder, fresh=True)
    published = torch.load(next(weights_folder.glob("danbooru-*")), weights_only=True)
    extractor = networks.generator.extractor
    before = bits(extractor.state_dict())
    assert torch.equal(extractor.head[1].weight, published["1.4.weight"])
    trained = {id(p) for group in networks.optimizer_g.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in extractor.parameters()}
    step(networks, recipe)
    assert bits(extractor.state_dict()) == before
    for key, value in networks.ema.module.extractor.state_dict().items():
        torch.testing.assert_close(value, extractor.state_dict()[key])


# Classes of colour


def test_the_bins_around_a_colour_have_it_as_their_mean() -> None:
    y = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.7  # within the bins
    bins, shares = soft_bins(y)
    assert bins.shape == shares.shape == (2, 4, 8, 8)
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 8, 8))
    colors = models.bin_colors().flatten(1)  # (2, 256)
    mean = (colors[:, bins] * shares).sum(2).transpose(0, 1)
    torch.testing.assert_close(mean, y, atol=2e-5, rtol=0)
    far, _ = soft_bins(torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]).view(1, 2, 1, 2))
    assert far.min() >= 0
    assert far.max() <= 255


def test_class_loss_is_least_for_the_true_colour_and_weighs_rare_ones_more() -> None:
    loss, y = ClassLoss(), torch.full((1, 2, 8, 8), 24 / 110)  # a bin's own colour: a = b = 24
    right = torch.zeros(1, 256, 2, 2)
    bins, shares = soft_bins(y[..., :2, :2])
    right.scatter_add_(1, bins, 20 * shares)
    assert loss(right, y) < 0.01 < loss(torch.zeros(1, 256, 2, 2), y)
    gray, red = np.full((8, 32, 32, 3), 128, np.uint8), np.full((1, 32, 32, 3), (200, 60, 60), np.uint8)
    pictures = np.concatenate([gray, red])
    index = np.array([[i * 32 * 32 * 3, 32, 32] for i in range(9)], np.int64)
    images = ImageSet(list("abcdefghi"), [""] * 9, pictures.ravel(), index, 3, [], 0, "key")
    loss.fit(images, 32)
    found = []
    for picture in (gray[0], red[0]):
        bins, shares = soft_bins(color.encode(torch.from_numpy(picture).permute(2, 0, 1)[None], "ab"))
        found.append(bins[0, shares[0, :, 0, 0].argmax(), 0, 0])
    common, rare = found
    assert loss.rarity[rare] > 2 * loss.rarity[common]
    assert loss.rarity.max() <= 20


def test_a_readout_is_sharper_at_a_lower_temperature() -> None:
    network = models.LiteUNet(1, 2, 8)
    logits = torch.zeros(1, 256, 2, 2)
    logits[:, 3], logits[:, 200] = 2.0, 1.0
    found = []
    for network.temperature in (0.05, 10.0):
        found.append(network.readout(logits, torch.zeros(1, 1, 8, 8))[0, :, 0, 0])
    torch.testing.assert_close(found[0], models.bin_colors().flatten(1)[:, 3], atol=1e-4, rtol=0)
    assert found[1].abs().max() < 0.1  # about the mean of all


def test_lpips_as_a_loss_is_torchmetrics(weights_folder: Path) -> None:
    from torchmetrics.functional.image.lpips import _LPIPS

    for net, name in (("alex", "alexnet"), ("vgg", "vgg16")):
        state, ours = load_weights(name, weights_folder), models.LPIPSFeatures(net)
        ours.load_published(state)
        theirs = _LPIPS(net=net, pnet_rand=True)
        names = theirs.net.state_dict()
        theirs.net.load_state_dict({key: state[f"features.{key.split('.', 1)[1]}"] for key in names})
        fake, real = torch.rand(2, 2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
        expected = theirs(fake * 2 - 1, real * 2 - 1).mean()
        torch.testing.assert_close(perceptual_loss(ours, fake, real), expected, rtol=1e-5, atol=1e-7)
