"""The two networks of a pix2pix-style GAN, their optimisers, and one step of training.

Training has up to two stages: for the first pretrain_epochs the generator learns alone, from every term but
the adversarial one, by Adam at a constant pretrain_lr; then Adam starts anew, and both networks train, at lr
and lr_d under `schedule`. Without a discriminator there is one stage, scheduled, of the generator alone.

Source: Isola et al., "Image-to-image translation with conditional adversarial networks", arXiv 1611.07004.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import checkpoint
import color
import losses
from blocks import INITS, add_spectral_norm
from config import Recipe
from features import DanbooruFeatures, VGGFeatures, load_weights
from models import DISCRIMINATORS

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
            **checkpoint.rng_state(),
        }

    def progress(self) -> dict[str, int]:
        """Return epoch, step and steps."""
        return {"epoch": self.epoch, "step": self.step, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what state_dict returned. Raises ValueError if it does not fit these networks."""
        if state.get("format") != FORMAT:
            raise ValueError(f"state.pt is not a training state in the format {FORMAT}")
        try:
            for name, part in self.parts().items():
                if name != "scaler" or state[name]:  # one that was off has no state
                    part.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError):
            raise ValueError("state.pt does not fit the networks of this recipe") from None
        self.epoch, self.step, self.steps = state["epoch"], state["step"], state["steps"]
        checkpoint.restore_rng(state)

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
        """Raise ValueError if a weight of either network is not finite, before it is saved."""
        for name in ("generator", "discriminator"):
            network = getattr(self, name)
            if network and not all(torch.isfinite(p).all() for p in network.state_dict().values()):
                raise ValueError(
                    f"the {name} has weights that are not finite; nothing was overwritten: {REMEDY}"
                )

    def generator_for_use(self) -> nn.Module:
        """Return the averaged generator where averaging is on, else the trained one."""
        return self.generator if self.ema is None else self.ema.module


def build_training(recipe: Recipe, device: torch.device, precision: str) -> Training:
    """Build and initialise networks and optimisers from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    generator = checkpoint.build_colorizer(asdict(recipe)).generator
    discriminator = None
    if "D_real" in term_weights(recipe):
        channels = color.CHANNELS[recipe.input], color.CHANNELS[recipe.output]
        discriminator = DISCRIMINATORS[recipe.discriminator](*channels, recipe.ndf, norm=recipe.norm_d)
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
        ValueError: a file is missing and cannot be had.
    """
    generator = training.generator
    if fresh and recipe.pretrained:
        generator.encoder.load_pretrained(
            load_weights(generator.encoder.name, folder, "--set pretrained=false")
        )
    if fresh and recipe.generator.endswith("-ext"):
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


def pick_precision(precision: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16; auto takes what the hardware multiplies fastest.

    Raises:
        ValueError: fp16 anywhere but on CUDA, where alone gradients are scaled.
    """
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision fp16 needs CUDA, this is {device.type}; use bf16, fp32 or auto")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    features = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if features.get("amx_bf16") or features.get("avx512_bf16") else "fp32"


def term_weights(recipe: Recipe) -> dict[str, float]:
    """Return the weight of every loss term that a recipe has."""
    adversarial = recipe.discriminator != "none" and recipe.lambda_gan > 0
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
    return losses.discriminator_losses(real_logits, fake_logits, recipe.gan_mode, recipe.label_real)


def generator_terms(
    training: Training, batch: Batch, fake: Tensor, recipe: Recipe, amp: torch.autocast
) -> dict[str, Tensor]:
    """Return the generator's loss terms of this epoch's stage, unweighted."""
    wanted = term_weights(recipe)
    terms = {}
    if training.is_adversarial(recipe):
        with amp:
            fake_logits = training.discriminator(batch.x, fake)  # (N, 1, h, w)
        terms["G_gan"] = losses.adversarial_loss(fake_logits, recipe.gan_mode, recipe.label_real)
    for name, loss in losses.PIXEL.items():
        if name in wanted:
            terms[name] = loss(fake.float(), batch.y)
    if training.extractors:
        real_rgb = color.rgb01(batch.target)  # (N, 3, S, S)
        fake_rgb = color.decode(fake, recipe.output, color.rgb_to_lab(real_rgb)[:, :1])
        for name, extractor in training.extractors.items():
            with amp:
                terms[name] = losses.perceptual_loss(extractor, fake_rgb, real_rgb)
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
        scaler.scale(losses.total(d_terms, weights)).backward()
        scaler.step(training.optimizer_d)
        training.optimizer_d.zero_grad()
        discriminator.requires_grad_(False)  # saves its weight gradients, a ninth of the step's work

    g_terms = generator_terms(training, batch, fake, recipe, amp)
    scaler.scale(losses.total(g_terms, weights)).backward()
    scaler.step(training.optimizer_g)
    training.optimizer_g.zero_grad()

    scaler.update()
    if training.ema is not None:
        training.ema.update_parameters(generator)
    return {name: value.detach() for name, value in {**g_terms, **d_terms}.items()}
