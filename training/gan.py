"""Losses by name. Functions return unweighted terms; total() adds them up with a recipe's weights.

Sources: Isola et al., arXiv 1611.07004 (BCE + L1); Mao et al., "Least squares GAN", arXiv 1611.04076;
Lim and Ye, "Geometric GAN", arXiv 1705.02894 (hinge); Salimans et al., arXiv 1606.03498 (label smoothing);
Johnson et al., "Perceptual losses", arXiv 1603.08155.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from config import Recipe, UserError
from dataset.degradations import make_input, seeded
from imaging import color
from models import (
    GENERATORS,
    INITS,
    DanbooruFeatures,
    VGGFeatures,
    add_spectral_norm,
    build_discriminator,
    build_generator,
)
from runtime.device import restore_rng, rng_state
from runtime.weights import load_weights

PIXEL = {"G_l1": F.l1_loss, "G_mse": F.mse_loss}  # term -> loss between what was generated and the truth


def gan_loss(logits: Tensor, real: bool, gan_mode: str, label_real: float = 1.0) -> Tensor:
    """Return how far a discriminator's logits (any shape) are from the verdict `real`, as a scalar.

    gan_mode: vanilla (BCE with logits) | lsgan (MSE) | hinge (the discriminator's half, without labels).
    label_real: what counts as real; below 1 the labels are smoothed.
    """
    logits = logits.float()
    if gan_mode == "hinge":
        return F.relu(1.0 - logits if real else 1.0 + logits).mean()
    verdict = torch.full_like(logits, label_real if real else 0.0)
    if gan_mode == "lsgan":
        return F.mse_loss(logits, verdict)
    return F.binary_cross_entropy_with_logits(logits, verdict)


def discriminator_losses(
    real_logits: Tensor, fake_logits: Tensor, gan_mode: str, label_real: float = 1.0
) -> dict[str, Tensor]:
    """Return D_real and D_fake; the discriminator minimises half of their sum."""
    return {
        "D_real": gan_loss(real_logits, True, gan_mode, label_real),
        "D_fake": gan_loss(fake_logits, False, gan_mode),
    }


def adversarial_loss(fake_logits: Tensor, gan_mode: str, label_real: float = 1.0) -> Tensor:
    """Return how far the discriminator is from taking the generated images for real: the generator's half."""
    if gan_mode == "hinge":
        return -fake_logits.float().mean()
    return gan_loss(fake_logits, True, gan_mode, label_real)


def perceptual_loss(extractor: nn.Module, fake_rgb: Tensor, real_rgb: Tensor) -> Tensor:
    """Return the sum over an extractor's features of the MSE between generated and true images.

    fake_rgb, real_rgb: (N, 3, H, W) in [0, 1]. No gradient is kept for the true ones.
    """
    with torch.no_grad():
        real = extractor(real_rgb)
    pairs = zip(extractor(fake_rgb), real, strict=True)
    return torch.stack([F.mse_loss(ours.float(), truth.float()) for ours, truth in pairs]).sum()


def total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of all terms. Raises KeyError for a term without a weight."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


FORMAT = "tinct-state-2"
REMEDY = "train with a smaller step size (--set lr=...) or with --set precision=fp32"


@dataclass
class Training:
    """All that changes while training, and so all that a resume restores."""

    generator: nn.Module
    discriminator: nn.Module | None
    optimizer_g: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer | None
    ema: AveragedModel | None
    scaler: torch.amp.GradScaler
    epoch: int = 1  # the one under way, from 1
    step: int = 0  # batches done in this epoch
    steps: int = 0  # batches done in all
    extractors: dict[str, nn.Module] = field(default_factory=dict)  # loss term -> frozen, so not saved

    def parts(self) -> dict[str, Any]:
        """Return everything with a state_dict, by name."""
        names = ("generator", "discriminator", "optimizer_g", "optimizer_d", "ema", "scaler")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return what state.pt holds."""
        state = {name: part.state_dict() for name, part in self.parts().items()}
        return {
            "format": FORMAT,
            **state,
            **self.progress(),
            **rng_state(),
        }

    def progress(self) -> dict[str, int]:
        """Return epoch, step and steps."""
        return {"epoch": self.epoch, "step": self.step, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what state_dict returned. Raises UserError if it does not fit these networks."""
        if state.get("format") != FORMAT:
            raise UserError(f"state.pt is not a training state in the format {FORMAT}")
        try:
            for name, part in self.parts().items():
                if name != "scaler" or state[name]:  # one that was off has no state
                    part.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError):
            raise UserError("state.pt does not fit the networks of this recipe") from None
        self.epoch, self.step, self.steps = state["epoch"], state["step"], state["steps"]
        restore_rng(state)

    def set_learning_rate(self, recipe: Recipe, steps_per_epoch: int) -> None:
        """Set the step sizes of the stage that the run is in."""
        done = self.steps / steps_per_epoch - recipe.pretrain_epochs  # epochs of the scheduled stage
        progress = done / max(1, recipe.epochs - recipe.pretrain_epochs)
        factor = min(1.0, 2.0 * (1.0 - progress)) if recipe.schedule == "linear" else 1.0
        alone = self.epoch <= recipe.pretrain_epochs
        lr_g = (recipe.pretrain_lr or recipe.lr) if alone else recipe.lr * factor
        self.optimizer_g.param_groups[0]["lr"] = lr_g
        if self.optimizer_d is not None:
            self.optimizer_d.param_groups[0]["lr"] = (recipe.lr_d or recipe.lr) * factor

    def is_adversarial(self, recipe: Recipe) -> bool:
        """Tell whether the discriminator takes part in this epoch."""
        return self.discriminator is not None and self.epoch > recipe.pretrain_epochs

    def check_finite(self) -> None:
        """Raise UserError if a weight of either network is not finite, before it is saved."""
        for name in ("generator", "discriminator"):
            network = getattr(self, name)
            if network and not all(torch.isfinite(p).all() for p in network.state_dict().values()):
                raise UserError(
                    f"the {name} has weights that are not finite; nothing was overwritten: {REMEDY}"
                )

    def generator_for_use(self) -> nn.Module:
        """Return the averaged generator where averaging is on, else the trained one."""
        return self.generator if self.ema is None else self.ema.module


def build_training(recipe: Recipe, device: torch.device, precision: str) -> Training:
    """Build and initialise networks and optimisers from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    generator = build_generator(recipe)
    discriminator = build_discriminator(recipe)
    for network in filter(None, (generator, discriminator)):
        if recipe.init in INITS:
            network.apply(INITS[recipe.init])
        if recipe.spectral_norm and network is discriminator:
            network.apply(add_spectral_norm)
        network.to(device, memory_format=torch.channels_last)
        if recipe.compile:
            network.compile()
    ema = None
    if recipe.ema > 0:
        ema = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
    optimizer_g = build_optimizer(generator, recipe, device)
    optimizer_d = None if discriminator is None else build_optimizer(discriminator, recipe, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return Training(generator, discriminator, optimizer_g, optimizer_d, ema, scaler)


def build_optimizer(network: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Adam:
    """Return Adam over what is trained of a network."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    fused = device.type in ("cpu", "cuda")
    return torch.optim.Adam(trained, recipe.lr, (recipe.beta1, recipe.beta2), fused=fused)


def load_pretrained(training: Training, recipe: Recipe, folder: Path | None, fresh: bool) -> None:
    """Load the published weights that a recipe asks for: nothing is downloaded for one that does not.

    Args:
        folder: with the weight files; None = torch.hub's cache, filled by download.
        fresh: False where a state restores the generator.

    Raises:
        UserError: a file is missing and cannot be had.
    """
    generator = training.generator
    if fresh and recipe.pretrained:
        generator.encoder.load_pretrained(
            load_weights(generator.encoder.name, folder, "--set pretrained=false")
        )
    if fresh and GENERATORS[recipe.generator].extractor:
        generator.extractor.load_published(load_weights("danbooru", folder, "--set generator=unet-att"))
    sources = {
        "G_perceptual": (VGGFeatures, "vgg16", "--set lambda_perceptual=0"),
        "G_anime": (DanbooruFeatures, "danbooru", "--set anime_share=0"),
    }
    device = next(generator.parameters()).device
    for term in [term for term in sources if term in term_weights(recipe)]:
        build, name, without = sources[term]
        extractor = build()
        extractor.load_published(load_weights(name, folder, without))
        training.extractors[term] = extractor.to(device, memory_format=torch.channels_last)


def term_weights(recipe: Recipe) -> dict[str, float]:
    """Return the weight of every loss term that a recipe has."""
    adversarial = recipe.is_adversarial
    weights = {
        "G_gan": recipe.lambda_gan if adversarial else 0.0,
        "G_l1": recipe.lambda_l1,
        "G_mse": recipe.lambda_mse,
        "G_perceptual": recipe.lambda_perceptual * (1 - recipe.anime_share),
        "G_anime": recipe.lambda_perceptual * recipe.anime_share,
        "D_real": 0.5 if adversarial else 0.0,
        "D_fake": 0.5 if adversarial else 0.0,
    }
    return {name: weight for name, weight in weights.items() if weight > 0}


@dataclass(frozen=True)
class Batch:
    """What one step trains on, on the device."""

    x: Tensor  # (N, Cx, S, S) float32 in [-1, 1], what the generator sees
    y: Tensor  # (N, Cy, S, S) float32 in [-1, 1], what it should answer
    target: Tensor  # (N, 3, S, S) uint8, the colour image, for losses on RGB


def discriminator_terms(
    training: Training, batch: Batch, fake: Tensor, recipe: Recipe, amp: torch.autocast
) -> dict[str, Tensor]:
    """Return the discriminator's loss terms, unweighted; no gradient goes back to `fake` (N, Cy, S, S)."""
    with amp:
        real_logits = training.discriminator(batch.x, batch.y)  # (N, 1, h, w)
        fake_logits = training.discriminator(batch.x, fake.detach())
    return discriminator_losses(real_logits, fake_logits, recipe.gan_mode, recipe.label_real)


def generator_terms(
    training: Training, batch: Batch, fake: Tensor, recipe: Recipe, amp: torch.autocast
) -> dict[str, Tensor]:
    """Return the generator's loss terms of this epoch's stage, unweighted."""
    wanted = term_weights(recipe)
    terms = {}
    if training.is_adversarial(recipe):
        with amp:
            fake_logits = training.discriminator(batch.x, fake)  # (N, 1, h, w)
        terms["G_gan"] = adversarial_loss(fake_logits, recipe.gan_mode, recipe.label_real)
    for name, loss in PIXEL.items():
        if name in wanted:
            terms[name] = loss(fake.float(), batch.y)
    if training.extractors:
        real_rgb = color.rgb01(batch.target)  # (N, 3, S, S)
        fake_rgb = color.decode(fake, recipe.output, color.rgb_to_lab(real_rgb)[:, :1])
        for name, extractor in training.extractors.items():
            with amp:
                terms[name] = perceptual_loss(extractor, fake_rgb, real_rgb)
    return terms


def train_step(training: Training, batch: Batch, recipe: Recipe, amp: torch.autocast) -> dict[str, Tensor]:
    """Update D, where it takes part, then G, on one batch.

    Returns:
        Every loss term, unweighted, as a detached scalar on the device.
    """
    generator, discriminator, scaler = training.generator, training.discriminator, training.scaler
    weights, d_terms = term_weights(recipe), {}
    with amp:
        fake = generator(batch.x)  # (N, Cy, S, S)

    if training.is_adversarial(recipe):
        discriminator.requires_grad_(True)
        d_terms = discriminator_terms(training, batch, fake, recipe, amp)
        scaler.scale(total(d_terms, weights)).backward()
        scaler.step(training.optimizer_d)
        training.optimizer_d.zero_grad()
        discriminator.requires_grad_(False)  # saves its weight gradients, a ninth of the step's work

    g_terms = generator_terms(training, batch, fake, recipe, amp)
    scaler.scale(total(g_terms, weights)).backward()
    scaler.step(training.optimizer_g)
    training.optimizer_g.zero_grad()

    scaler.update()
    if training.ema is not None:
        training.ema.update_parameters(generator)
    return {name: value.detach() for name, value in {**g_terms, **d_terms}.items()}


def end_weights(network: nn.Module) -> list[nn.Parameter]:
    """Return the trained weights of a network's last and first layer."""
    weights = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
    return [weights[-1], weights[0]]


def audit(training: Training, batch: Batch, recipe: Recipe) -> dict[str, tuple[float, float, float]]:
    """Return every term's value, and the norm of its gradient at the last and at the first layer.

    The terms of both stages are looked at, in float32; G_ terms at the generator, D_ at the discriminator.
    """
    training.epoch = recipe.pretrain_epochs + 1
    plain = torch.autocast(batch.x.device.type, enabled=False)
    fake = training.generator(batch.x)  # (N, Cy, S, S)
    terms = generator_terms(training, batch, fake, recipe, plain)
    if training.is_adversarial(recipe):
        terms |= discriminator_terms(training, batch, fake, recipe, plain)

    def norms(name: str, value: Tensor) -> list[float]:
        network = training.generator if name.startswith("G_") else training.discriminator
        if not value.requires_grad:
            return [0.0, 0.0]
        found = torch.autograd.grad(value, end_weights(network), retain_graph=True, allow_unused=True)
        return [0.0 if grad is None else float(grad.norm()) for grad in found]

    return {name: (float(value.detach()), *norms(name, value)) for name, value in terms.items()}


def failures(results: dict[str, tuple[float, float, float]], weights: dict[str, float]) -> list[str]:
    """Return the terms that have a weight but no value, or whose value or gradient is zero or not finite."""
    alive = [
        name
        for name, (value, *norms) in results.items()
        if math.isfinite(value) and all(0 < norm < math.inf for norm in norms)
    ]
    return [name for name in weights if name not in alive]


def table(results: dict[str, tuple[float, float, float]], weights: dict[str, float]) -> str:
    """Return one line per term."""
    lines = [f"{'term':<14}{'weight':>10}{'value':>14}{'|grad| last':>14}{'|grad| first':>14}"]
    for name, numbers in results.items():
        lines.append(f"{name:<14}{weights[name]:>10.4g}" + "".join(f"{n:>14.4g}" for n in numbers))
    return "\n".join(lines)


def make_batch(source: Tensor, target: Tensor, recipe: Recipe, device: torch.device, step: int) -> Batch:
    """Bring (N, 3, S, S) uint8 pictures to the device, as what the networks take at this step of the run."""
    photograph = source is target
    target = target.to(device, non_blocking=True)
    source = target if photograph else source.to(device, non_blocking=True)
    given = make_input(source, target, recipe, seeded(device, recipe.seed, step))
    if given is target and recipe.input == "L" and recipe.output == "ab":  # one conversion for both
        return Batch(*color.encode(target, "Lab").split([1, 2], 1), target)
    return Batch(color.encode(given, recipe.input), color.encode(target, recipe.output), target)
