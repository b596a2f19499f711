"""The two networks of a pix2pix-style GAN, their optimisers, and one step of training.

Source: Isola et al., "Image-to-image translation with conditional adversarial networks", arXiv 1611.07004.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import checkpoint
import color
import losses
from config import Recipe
from models import DISCRIMINATORS, init_normal

FORMAT = "tinct-state-1"
REMEDY = "train with a smaller step size (--set lr=...) or with --set precision=fp32"


@dataclass
class Training:
    """All that changes while training, and so all that a resume restores."""

    generator: nn.Module
    discriminator: nn.Module
    optimizer_g: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer
    ema: AveragedModel | None
    scaler: torch.amp.GradScaler
    epoch: int = 1  # the one under way, from 1
    step: int = 0  # batches done in this epoch
    steps: int = 0  # batches done in all

    def parts(self) -> dict[str, Any]:
        """Return everything with a state_dict, by name."""
        names = ("generator", "discriminator", "optimizer_g", "optimizer_d", "ema", "scaler")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return what state.pt holds."""
        state = {name: part.state_dict() for name, part in self.parts().items()}
        cuda_rng = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "format": FORMAT,
            **state,
            **self.progress(),
            "rng": torch.get_rng_state(),
            "cuda_rng": cuda_rng,
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
                part.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError):
            raise ValueError("state.pt does not fit the networks of this recipe") from None
        self.epoch, self.step, self.steps = state["epoch"], state["step"], state["steps"]
        torch.set_rng_state(state["rng"].cpu())
        if len(state["cuda_rng"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([rng.cpu() for rng in state["cuda_rng"]])

    def set_learning_rate(self, recipe: Recipe, progress: float) -> None:
        """Set both optimisers' step size; progress is the share of all steps done, in [0, 1)."""
        factor = min(1.0, 2.0 * (1.0 - progress)) if recipe.schedule == "linear" else 1.0
        for optimizer in (self.optimizer_g, self.optimizer_d):
            optimizer.param_groups[0]["lr"] = recipe.lr * factor

    def check_finite(self) -> None:
        """Raise ValueError if a weight of either network is not finite, before it is saved."""
        for name in ("generator", "discriminator"):
            if not all(torch.isfinite(p).all() for p in getattr(self, name).state_dict().values()):
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
    channels = color.CHANNELS[recipe.input] + color.CHANNELS[recipe.output]
    discriminator = DISCRIMINATORS[recipe.discriminator](channels, recipe.ndf)
    for network in (generator, discriminator):
        if recipe.init == "normal":
            network.apply(init_normal)
        network.to(device, memory_format=torch.channels_last)
        if recipe.compile:
            network.compile()
    ema = None
    if recipe.ema > 0:
        ema = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
    fused = device.type in ("cpu", "cuda")
    optimizer_g, optimizer_d = (
        torch.optim.Adam(network.parameters(), recipe.lr, (recipe.beta1, recipe.beta2), fused=fused)
        for network in (generator, discriminator)
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return Training(generator, discriminator, optimizer_g, optimizer_d, ema, scaler)


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


def train_step(
    training: Training, x: Tensor, y: Tensor, recipe: Recipe, amp: torch.autocast
) -> dict[str, Tensor]:
    """Update D, then G, on one batch.

    Args:
        x: (N, Cx, H, W), y: (N, Cy, H, W), float32 in [-1, 1] on the device.

    Returns:
        Every loss term, unweighted, as a detached scalar on the device.
    """
    generator, discriminator, scaler = training.generator, training.discriminator, training.scaler
    with amp:
        fake = generator(x)  # (N, Cy, H, W)

    discriminator.requires_grad_(True)
    with amp:
        real_logits, fake_logits = discriminator(x, y), discriminator(x, fake.detach())  # (N, 1, h, w)
    d_terms = losses.discriminator_losses(real_logits, fake_logits, recipe.gan_mode)
    scaler.scale(losses.total(d_terms, {"D_real": 0.5, "D_fake": 0.5})).backward()
    scaler.step(training.optimizer_d)
    training.optimizer_d.zero_grad()

    discriminator.requires_grad_(False)  # saves its weight gradients, a ninth of the step's work
    with amp:
        fake_logits = discriminator(x, fake)  # (N, 1, h, w)
    g_terms = losses.generator_losses(fake_logits, fake, y, recipe.gan_mode)
    scaler.scale(losses.total(g_terms, {"G_gan": recipe.lambda_gan, "G_l1": recipe.lambda_l1})).backward()
    scaler.step(training.optimizer_g)
    training.optimizer_g.zero_grad()

    scaler.update()
    if training.ema is not None:
        training.ema.update_parameters(generator)
    return {name: value.detach() for name, value in {**g_terms, **d_terms}.items()}
