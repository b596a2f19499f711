"""gan.py: every kind of discriminator and none, two stages, all terms, and pretrained weights."""

import io
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_gan import TERMS, batch, bits, build, changed, floats, step, tiny, weights
from torch import Tensor, nn

from config import CHOICES, Recipe
from imaging import color
from models import DISCRIMINATORS, NORMS, FrozenFeatures
from training import gan
from training.gan import generator_terms, load_pretrained, term_weights


def state_bits(network: nn.Module) -> list[bytes | str]:
    return bits(network.state_dict())


@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize("norm_d", CHOICES["norm_d"])
@pytest.mark.parametrize("name", [name for name in DISCRIMINATORS if name not in ("image224", "image-rgb")])
def test_every_kind_of_discriminator_trains_and_resumes(name: str, norm_d: str, spectral: bool) -> None:
    size = 64 if name == "patch26" else 32
    recipe = tiny(discriminator=name, norm_d=norm_d, spectral_norm=spectral, size=size)
    training = build(recipe)
    start = weights(training.discriminator)
    norms = {type(module) for module in training.discriminator.modules()} & set(NORMS.values())
    assert norms == {NORMS[norm_d]} - {None}
    terms = step(training, recipe)
    assert set(terms) == TERMS
    assert all(value.isfinite() for value in terms.values())
    assert sum(changed(training.discriminator, start)) > len(start) - (2 if norm_d == "instance" else 1)
    saved = deepcopy(training.state_dict())
    last = step(training, recipe, 1)
    resumed = build(replace(recipe, seed=8))
    resumed.load_state_dict(saved)
    assert bits(step(resumed, recipe, 1)) == bits(last)
    assert state_bits(resumed.discriminator) == state_bits(training.discriminator)


@pytest.mark.parametrize("init", CHOICES["init"])
def test_spectral_norm_bounds_what_is_used(init: str) -> None:
    recipe = tiny(spectral_norm=True, init=init, lr_d=1e-2)
    training = build(recipe)
    for _ in range(25):
        step(training, recipe)
    convolutions = [m for m in training.discriminator.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 5
    for conv in convolutions:
        largest = torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2).item()
        assert largest == pytest.approx(1.0, abs=0.1)
    plain = build(tiny(init="default"))
    sizes = [torch.linalg.matrix_norm(m.weight.detach().flatten(1), 2).item()
             for m in plain.discriminator.modules() if isinstance(m, nn.Conv2d)]  # fmt: skip
    assert max(abs(size - 1) for size in sizes) > 0.15  # the bound is no accident
    training.check_finite()


def test_a_generator_alone_has_no_discriminator_anywhere() -> None:
    recipe = tiny(discriminator="none", lambda_mse=1.0, ema=0.9)
    training = build(recipe)
    assert training.discriminator is None
    assert training.optimizer_d is None
    start = weights(training.generator)
    assert set(step(training, recipe)) == {"G_l1", "G_mse"}
    assert all(changed(training.generator, start))
    training.check_finite()
    saved = deepcopy(training.state_dict())
    assert not {"discriminator", "optimizer_d"} & saved.keys()
    training.epoch, training.step, training.steps = 3, 2, 9
    file = io.BytesIO()
    torch.save(training.state_dict(), file)
    file.seek(0)
    last = step(training, recipe, 1)
    resumed = build(replace(recipe, seed=8))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.progress() == {"epoch": 3, "step": 2, "steps": 9}
    assert bits(step(resumed, recipe, 1)) == bits(last)
    assert state_bits(resumed.generator_for_use()) == state_bits(training.generator_for_use())


@pytest.mark.parametrize(("given", "wanted"), [("none", "patch30"), ("patch30", "patch15-bias")])
def test_a_state_of_other_networks_is_refused(given: str, wanted: str) -> None:
    state = build(tiny(discriminator=given)).state_dict()
    with pytest.raises(ValueError, match=r"^state\.pt does not fit the networks of this recipe$"):
        build(tiny(discriminator=wanted)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"^state\.pt is not a training state in the format tinct-state-2$"):
        build(tiny()).load_state_dict({**state, "format": "tinct-state-1"})


@pytest.mark.parametrize(("lr_d", "moved"), [(0.0, 2e-4), (7e-3, 7e-3)])
def test_lr_d_is_the_discriminators_own(lr_d: float, moved: float) -> None:
    recipe = tiny(lr_d=lr_d)
    training = build(recipe)
    training.set_learning_rate(recipe, 10)
    starts = [weights(network) for network in (training.generator, training.discriminator)]
    step(training, recipe)  # Adam's first step is of its full size
    sizes = [
        max(
            float((now - then).detach().abs().max())
            for now, then in zip(network.parameters(), start, strict=True)
        )
        for network, start in zip((training.generator, training.discriminator), starts, strict=True)
    ]
    assert sizes == [pytest.approx(2e-4, rel=0.05), pytest.approx(moved, rel=0.05)]


def test_in_the_first_stage_the_generator_learns_alone() -> None:
    recipe = tiny(pretrain_epochs=2, epochs=4)
    training = build(recipe)
    judge, start = state_bits(training.discriminator), weights(training.generator)
    training.discriminator.forward = None  # not even asked
    for training.epoch in (1, 2):
        assert not training.is_adversarial(recipe)
        assert set(step(training, recipe, training.epoch)) == {"G_l1"}
    del training.discriminator.forward
    assert state_bits(training.discriminator) == judge
    assert not training.optimizer_d.state
    assert all(changed(training.generator, start))
    training.epoch = 3
    assert training.is_adversarial(recipe)
    assert set(step(training, recipe)) == TERMS
    assert state_bits(training.discriminator) != judge


def test_a_network_that_is_all_stage_one_never_meets_its_discriminator() -> None:
    recipe = tiny(pretrain_epochs=4, epochs=4)
    training = build(recipe)
    for training.epoch in range(1, 5):
        assert not training.is_adversarial(recipe)


def test_without_its_weight_the_adversarial_term_is_not_computed() -> None:
    recipe = tiny(lambda_gan=0.0)
    training = build(recipe)
    assert training.discriminator is None
    assert set(step(training, recipe)) == {"G_l1"}


def test_weights_of_terms() -> None:
    assert term_weights(tiny()) == {"G_gan": 1.0, "G_l1": 100.0, "D_real": 0.5, "D_fake": 0.5}
    fields = {"lambda_l1": 0.0, "lambda_mse": 2.0, "lambda_perceptual": 0.5, "anime_share": 0.2}
    assert term_weights(tiny(discriminator="none", lambda_gan=3.0, **fields)) == {
        "G_mse": 2.0, "G_perceptual": pytest.approx(0.4), "G_anime": pytest.approx(0.1)
    }  # fmt: skip
    assert "G_perceptual" not in term_weights(tiny(lambda_perceptual=0.5, anime_share=1.0))


def test_the_label_of_the_recipe_reaches_both_networks() -> None:
    for share, smoothed in ((1.0, False), (0.9, True)):
        recipe = tiny(label_real=share, dropout=0.0)
        training, given = build(recipe), batch(recipe)
        with torch.no_grad():
            real = deepcopy(training.discriminator)(given.x, given.y)
        terms = step(training, recipe)
        expected = nn.BCEWithLogitsLoss()(real, torch.full_like(real, 0.9 if smoothed else 1.0))
        torch.testing.assert_close(terms["D_real"], expected)


class Mean(FrozenFeatures):
    """An extractor that sees a picture's local mean colour."""

    def __init__(self) -> None:
        super().__init__(nn.AvgPool2d(4), (0.0,) * 3, (1.0,) * 3)

    def forward(self, rgb01: Tensor) -> list[Tensor]:
        return [self.body(self.normalise(rgb01))]


@pytest.mark.parametrize(("given", "answer"), [("L", "ab"), ("L", "Lab"), ("gray", "rgb"), ("sketch", "rgb")])
def test_perceptual_terms_compare_colour_images(given: str, answer: str) -> None:
    recipe = tiny(input=given, output=answer, lambda_perceptual=1.0, anime_share=0.5, discriminator="none")
    training, pictures = build(recipe), batch(recipe)
    training.extractors = {"G_perceptual": Mean(), "G_anime": Mean()}
    amp = torch.autocast("cpu", enabled=False)
    perfect = generator_terms(training, pictures, pictures.y, recipe, amp)
    assert set(perfect) == {"G_l1", "G_perceptual", "G_anime"}
    assert all(value < 1e-6 for value in perfect.values())  # the truth's own ab on the truth's own L
    fake = torch.zeros_like(pictures.y).requires_grad_()
    terms = generator_terms(training, pictures, fake, recipe, amp)
    if answer == "ab":
        lab = color.rgb_to_lab(color.rgb01(pictures.target)) * torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
        shown = color.lab_to_rgb(lab)
    else:
        shown = color.decode(fake.detach(), answer, torch.zeros(0))
    expected = gan.perceptual_loss(Mean(), shown, color.rgb01(pictures.target))
    torch.testing.assert_close(terms["G_perceptual"], expected)
    assert torch.autograd.grad(terms["G_anime"], fake)[0].abs().sum() > 0


@pytest.mark.parametrize("extractors", [("G_perceptual",), ("G_perceptual", "G_anime")])
def test_perceptual_terms_train_the_generator(extractors: tuple[str, ...]) -> None:
    share = 0.5 if len(extractors) == 2 else 0.0
    recipe = tiny(lambda_perceptual=1.0, anime_share=share, lambda_l1=0.0, lambda_gan=0.0)
    training = build(recipe)
    training.extractors = {name: Mean() for name in extractors}
    start = weights(training.generator)
    terms = step(training, recipe)
    assert set(terms) == {*extractors}
    assert all(changed(training.generator, start))
    assert "extractors" not in training.state_dict()


def test_init_kaiming_reaches_both_networks() -> None:
    training = build(tiny(init="kaiming", ngf=16, ndf=16))
    for network in (training.generator, training.discriminator):
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        for conv in convolutions:
            if conv.weight.numel() > 1000:
                std = math.sqrt(2 / (conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels))
                assert conv.weight.std().item() == pytest.approx(std, rel=0.1)
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert all((m.weight == 1).all() for m in norms)


def encoder_recipe(**fields: Any) -> Recipe:
    return tiny(**{"generator": "resunet", "pretrained": True, "discriminator": "none", **fields})


def test_pretrained_weights_are_loaded_afresh_only(weights_folder: Path) -> None:
    recipe = encoder_recipe()
    training = build(recipe)
    start = state_bits(training.generator)
    load_pretrained(training, recipe, weights_folder, fresh=False)  # a state restores it
    assert state_bits(training.generator) == start
    load_pretrained(training, recipe, weights_folder, fresh=True)
    published = torch.load(next(weights_folder.glob("resnet18-*")), weights_only=True)
    encoder = training.generator.encoder
    assert torch.equal(encoder.layers[3][1].conv2.weight, published["layer4.1.conv2.weight"])
    assert torch.equal(encoder.conv1.weight, published["conv1.weight"].sum(1, keepdim=True))
    assert training.extractors == {}


def test_the_average_starts_from_the_pretrained_weights(weights_folder: Path) -> None:
    recipe = encoder_recipe(ema=0.9)
    training = build(recipe)
    load_pretrained(training, recipe, weights_folder, fresh=True)
    step(training, recipe)
    torch.testing.assert_close(floats(training.generator_for_use()), floats(training.generator))


def test_nothing_is_looked_for_where_nothing_is_asked_for(tmp_path: Path) -> None:
    recipe = tiny()
    training = build(recipe)
    load_pretrained(training, recipe, tmp_path / "nowhere", fresh=True)
    assert training.extractors == {}
    recipe = encoder_recipe(pretrained=False)
    load_pretrained(build(recipe), recipe, tmp_path / "nowhere", fresh=True)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("share", "terms"), [(0.0, {"G_perceptual"}), (0.1, {"G_perceptual", "G_anime"}), (1.0, {"G_anime"})]
)
def test_extractors_of_losses_are_loaded_always(
    share: float, terms: set[str], fresh: bool, weights_folder: Path
) -> None:
    recipe = tiny(lambda_perceptual=0.1, anime_share=share)
    training = build(recipe)
    load_pretrained(training, recipe, weights_folder, fresh)
    assert set(training.extractors) == terms
    file = {"G_perceptual": "vgg16-*", "G_anime": "danbooru-*"}
    for term, extractor in training.extractors.items():
        published = torch.load(next(weights_folder.glob(file[term])), weights_only=True)
        first = published["features.0.weight" if term == "G_perceptual" else "0.0.weight"]
        assert torch.equal(next(extractor.parameters()), first)


def test_an_extractor_inside_the_generator_is_loaded_and_left_alone(weights_folder: Path) -> None:
    recipe = tiny(
        input="gray", output="rgb", generator="unet-ext", depth=3, size=16, discriminator="none", ema=0.5
    )
    training = build(recipe)
    load_pretrained(training, recipe, weights_folder, fresh=True)
    published = torch.load(next(weights_folder.glob("danbooru-*")), weights_only=True)
    before = state_bits(training.generator.extractor)
    assert torch.equal(training.generator.extractor.head[1].weight, published["1.4.weight"])
    trained = {id(p) for group in training.optimizer_g.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in training.generator.extractor.parameters()}
    for seed in (0, 1):
        step(training, recipe, seed)
    assert state_bits(training.generator.extractor) == before
    averaged, published_ = (n.extractor.state_dict() for n in (training.ema.module, training.generator))
    for key, value in averaged.items():
        torch.testing.assert_close(value, published_[key])


def test_a_state_without_gradient_scaling_can_go_on_with_it() -> None:
    recipe = tiny()
    state = build(recipe).state_dict()
    assert state["scaler"] == {}
    other = build(recipe)
    other.scaler = torch.amp.GradScaler("cpu")
    other.load_state_dict(state)
    assert other.scaler.is_enabled()
