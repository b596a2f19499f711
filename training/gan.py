"""The two networks of a GAN under training: losses, optimisers, one step, and the audit of the losses.

A run has up to two stages: for the first pretrain_epochs the generator learns alone, from every term but the
adversarial one, by Adam at a constant pretrain_lr; then Adam starts anew, and both networks train, at lr and
lr_d under `schedule`. Without a discriminator there is one stage, scheduled, of the generator alone.

Sources: Isola et al., arXiv 1611.07004 (the step, BCE + L1); Mao et al., "Least squares GAN", arXiv
1611.04076; Lim and Ye, "Geometric GAN", arXiv 1705.02894 (hinge); Salimans et al., arXiv 1606.03498 (label
smoothing); Johnson et al., "Perceptual losses", arXiv 1603.08155; Zhang, Isola and Efros, "Colorful image
colorization", arXiv 1603.08511 (cross-entropy over bins of colour, weighted by rarity).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import models
from config import Recipe
from data import ImageSet, evenly_spaced
from dataset.degradations import make_input, seeded
from dataset.hints import draw_hints
from imaging import color
from runtime import distributed
from runtime.device import FORMATS, Scaler, autocast
from runtime.weights import load_weights
from training.loop import State

FORMAT = "tinct-state-2"
PIXEL = {"G_l1": F.l1_loss, "G_mse": F.mse_loss}  # term -> loss between the generated and the true image
# term -> its extractor, the file of its weights, and the option that avoids the need for it
PERCEPTUAL = {
    "G_lpips": (partial(models.LPIPSFeatures, "alex"), "alexnet", "--set lambda_lpips=0"),
    "G_perceptual": (models.VGGFeatures, "vgg16", "--set lambda_perceptual=0"),
    "G_anime": (models.DanbooruFeatures, "danbooru", "--set anime_share=0"),
}
HINTS = 1  # tells the random numbers of hints from those of degradations
UNIFORM = 0.5  # share of the uniform distribution that is mixed into the colours' own before it is inverted
MAX_RARITY = 20.0  # the largest weight of a colour, where the mean over pixels is 1


def gan_loss(logits: Tensor, real: bool, gan_mode: str, label_real: float = 1.0) -> Tensor:
    """Return the adversarial loss of logits, of any shape, against the label `real`: a float32 scalar.

    Args:
        gan_mode: vanilla (BCE with logits) | lsgan (MSE) | hinge (the discriminator's half; no labels).
        label_real: the label of a real image; below 1 it is smoothed.
    """
    logits = logits.float()
    if gan_mode == "hinge":
        return F.relu(1.0 - logits if real else 1.0 + logits).mean()
    label = torch.full_like(logits, label_real if real else 0.0)
    if gan_mode == "lsgan":
        return F.mse_loss(logits, label)
    return F.binary_cross_entropy_with_logits(logits, label)


def adversarial_loss(fake_logits: Tensor, gan_mode: str, label_real: float = 1.0) -> Tensor:
    """Return the generator's half of the adversarial loss: low where its images are taken for real."""
    if gan_mode == "hinge":
        return -fake_logits.float().mean()
    return gan_loss(fake_logits, True, gan_mode, label_real)


def perceptual_loss(extractor: nn.Module, fake_rgb: Tensor, real_rgb: Tensor) -> Tensor:
    """Return the MSE between the features of generated and true images, summed over the extractor's layers.

    Of LPIPSFeatures that is LPIPS.

    Args:
        fake_rgb, real_rgb: (N, 3, H, W) in [0, 1]; no gradient goes back to real_rgb.
    """
    with torch.no_grad():
        real = extractor(real_rgb)
    pairs = zip(extractor(fake_rgb), real, strict=True)
    return torch.stack([F.mse_loss(ours.float(), truth.float()) for ours, truth in pairs]).sum()


class ClassLoss(nn.Module):
    """Cross-entropy over the 256 colours of a LiteUNet, in which rare colours weigh more.

    The true colour of a pixel is shared among the four bins around it, so that their mean is that colour, or the
    nearest within the grid of bins.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rarity", torch.ones(models.AB_SIDE**2))

    def fit(self, images: ImageSet, size: int, most: int = 2048) -> None:
        """Weigh colours by how rare they are in the centres of at most `most` evenly spaced images."""
        shares = torch.zeros(models.AB_SIDE**2, dtype=torch.float64)
        for i in evenly_spaced(len(images), most):
            ab = color.encode(images.gather([i], size)[1], "ab")
            bins, weights = soft_bins(F.avg_pool2d(ab, 4))
            shares.index_add_(0, bins.flatten(), weights.flatten().double())
        shares = shares / shares.sum()
        rarity = 1 / ((1 - UNIFORM) * shares + UNIFORM / (shares > 1e-6).sum())
        rarity = (rarity / (shares * rarity).sum()).clamp(max=MAX_RARITY)
        self.rarity.copy_(rarity)

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss of logits (N, 256, H/4, W/4) for true colours ab/110 (N, 2, H, W), a scalar."""
        bins, weights = soft_bins(F.avg_pool2d(y, 4))  # (N, 4, H/4, W/4)
        found = F.log_softmax(logits.float(), 1).gather(1, bins)
        rarity = (weights * self.rarity[bins]).sum(1)  # (N, H/4, W/4)
        return -((weights * found).sum(1) * rarity).sum() / rarity.sum()


def soft_bins(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four bins around each colour, and its share of each.

    Args:
        y: (N, 2, H, W), ab/110.

    Returns:
        bins (N, 4, H, W) int64 and weights (N, 4, H, W), whose sum is 1.
    """
    pairs = zip(y.float().unbind(1), models.AB_FIRST, strict=True)
    place = torch.stack([(plane * 110 - first) / models.AB_STEP for plane, first in pairs], 1)
    place = place.clamp(0, models.AB_SIDE - 1.001)
    low = place.floor()
    (a, b), (right, up) = low.long().unbind(1), (place - low).unbind(1)
    bins = torch.stack([(a + i) * models.AB_SIDE + b + j for i in (0, 1) for j in (0, 1)], 1)
    weights = torch.stack([x * y for x in (1 - right, right) for y in (1 - up, up)], 1)
    return bins, weights


def total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of all terms. Raises KeyError for a term without a weight."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


class WithLogits(nn.Module):
    """A generator and its logits in one call, so that DDP can stand around it."""

    def __init__(self, generator: nn.Module, with_logits: bool) -> None:
        """`with_logits`: there is a loss on the logits of a LiteUNet, which are returned too."""
        super().__init__()
        self.generator, self.with_logits = generator, with_logits

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the generator makes of x, (N, Cy, S, S), and its logits where there is a loss on them."""
        if not isinstance(self.generator, models.LiteUNet):
            return self.generator(x), None
        logits = self.generator.logits(x)
        with torch.autocast(x.device.type, enabled=False):  # similarities need float32
            return self.generator.readout(logits.float(), x), logits if self.with_logits else None


@dataclass
class Gan:
    """The networks under training, and what trains them."""

    generator: nn.Module
    discriminator: nn.Module | None
    optimizer_g: torch.optim.Adam
    optimizer_d: torch.optim.Adam | None
    ema: AveragedModel | None
    scaler: torch.amp.GradScaler
    amp: torch.autocast  # in which the networks compute
    memory_format: str  # of runtime.device.FORMATS
    compiled: bool
    class_loss: ClassLoss | None = None
    extractors: dict[str, nn.Module] = field(default_factory=dict)  # loss term -> frozen, so not saved

    def __post_init__(self) -> None:
        # what a step calls where it wants gradients: the networks, or DDP around them
        self.generator_ddp: nn.Module = WithLogits(self.generator, self.class_loss is not None)
        self.discriminator_ddp = self.discriminator
        for network in filter(None, (self.generator_ddp, self.discriminator_ddp) if self.compiled else ()):
            network.compile()

    def share(self) -> None:
        """Let gradients be means over all processes; the networks, which their states fill, stay as they are."""
        self.generator_ddp = distributed.averaging(self.generator_ddp)
        self.discriminator_ddp = self.discriminator_ddp and distributed.averaging(self.discriminator_ddp)

    def state(self) -> State:
        """Return the state of a training that begins."""
        names = ("generator", "discriminator", "optimizer_g", "optimizer_d", "ema", "scaler", "class_loss")
        parts = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return State(FORMAT, parts, next(self.generator.parameters()).device, compiled=self.compiled)

    def parameters(self) -> dict[str, int]:
        """Return network -> number of parameters to train."""
        found = {"generator": self.generator, "discriminator": self.discriminator}
        return {name: models.count_parameters(part) for name, part in found.items() if part is not None}


def ema_decay(decay: float, steps: int) -> float:
    """Return the decay of the averaged generator after some steps: less in the first ones, or a short run is lost.

    Source: TensorFlow's ExponentialMovingAverage with num_updates.
    """
    return min(decay, (1 + steps) / (10 + steps))


def build_gan(
    recipe: Recipe, device: torch.device, precision: str, memory_format: str = "contiguous", compiled: bool = False
) -> Gan:
    """Build and initialise networks and optimisers from the recipe's seed.

    `memory_format`: one of runtime.device.FORMATS, or auto, where it is not settled: nothing is trained.
    """
    torch.manual_seed(recipe.seed)
    generator, discriminator = models.build_generator(recipe), models.build_discriminator(recipe)
    optimizers: dict[nn.Module | None, torch.optim.Adam] = {}
    for network in filter(None, (generator, discriminator)):
        if recipe.init in models.INITS:
            network.apply(models.INITS[recipe.init])
        if recipe.spectral_norm and network is discriminator:
            network.apply(models.add_spectral_norm)
        network.to(device, memory_format=FORMATS.get(memory_format))
        optimizers[network] = build_optimizer(network, recipe, device)
    ema = None
    if recipe.ema > 0:
        ema = AveragedModel(generator, use_buffers=True)  # a step says how it is averaged
    optimizer_g, optimizer_d = optimizers[generator], optimizers.get(discriminator)
    scaler = Scaler(device, precision, recipe.on_nan == "skip")
    class_loss = ClassLoss().to(device) if "G_class" in recipe.term_weights else None
    amp = autocast(device, precision)
    return Gan(
        generator, discriminator, optimizer_g, optimizer_d, ema, scaler, amp, memory_format, compiled, class_loss
    )


def build_optimizer(network: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Adam:
    """Return Adam over what is trained of a network; a generator's encoder may have its own learning rate."""
    encoder = network.encoder if recipe.lr_encoder and hasattr(network, "encoder") else nn.Module()
    slow = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    apart = {id(parameter) for parameter in slow}
    rest = [p for p in network.parameters() if p.requires_grad and id(p) not in apart]
    groups = [{"params": rest}, {"params": slow}] if slow else [{"params": rest}]
    decay: dict[str, Any] = {}
    if recipe.weight_decay:
        decay = {"weight_decay": recipe.weight_decay, "decoupled_weight_decay": True}
    betas, fused = (recipe.beta1, recipe.beta2), device.type in ("cpu", "cuda")
    return torch.optim.Adam(groups, recipe.lr, betas, fused=fused, **decay)


def needs_published(recipe: Recipe) -> bool:
    """Tell whether a run of `recipe` reads published weights at all."""
    extracts = models.GENERATORS[recipe.generator].extractor
    return recipe.pretrained or extracts or any(term in recipe.term_weights for term in PERCEPTUAL)


def load_pretrained(gan: Gan, recipe: Recipe, folder: Path | None, fresh: bool) -> None:
    """Load the published weights that a recipe asks for: nothing is downloaded for one that does not.

    Args:
        folder: with the weight files; None = torch.hub's cache, filled by download.
        fresh: False where a state restores the generator.

    Raises:
        UserError: a file is missing and cannot be had.
    """
    generator = gan.generator
    if fresh and recipe.pretrained:
        name = generator.encoder.name
        generator.encoder.load_pretrained(load_weights(name, folder, "--set pretrained=false"))
    if fresh and models.GENERATORS[recipe.generator].extractor:
        generator.extractor.load_published(load_weights("danbooru", folder, "--set generator=unet-att"))
    device = next(generator.parameters()).device
    for term, (build, name, without) in PERCEPTUAL.items():
        if term in recipe.term_weights:
            gan.extractors[term] = build().to(device, memory_format=FORMATS[gan.memory_format])
            gan.extractors[term].load_published(load_weights(name, folder, without))


@dataclass(frozen=True)
class Batch:
    """What one step trains on, on the device."""

    x: Tensor  # (N, Cx, S, S) float32 in [-1, 1], what the generator sees
    y: Tensor  # (N, Cy, S, S) float32 in [-1, 1], what it should give
    target: Tensor  # (N, 3, S, S) uint8, the colour image, for losses on RGB


def halve(pictures: Tensor) -> Tensor:
    """Return (N, 3, S, S) uint8 pictures at half their size, each pixel the mean of four."""
    return F.avg_pool2d(pictures.float(), 2).round().to(torch.uint8)


def make_batch(
    source: Tensor, target: Tensor, recipe: Recipe, device: torch.device, step: int, halved: bool = False
) -> Batch:
    """Bring (N, 3, S, S) uint8 pictures to the device, as what the networks take at this step of the run.

    `halved`: at half their size, S/2.
    """
    photograph = source is target
    target = target.to(device, non_blocking=True)
    source = target if photograph else source.to(device, non_blocking=True)
    if halved:
        target = halve(target)
        source = target if photograph else halve(source)
    given = make_input(source, target, recipe, seeded(device, recipe.seed, step))
    if given is target and recipe.input == "L" and recipe.output == "ab":  # one conversion for both
        x, y = color.encode(target, "Lab").split([1, 2], 1)
    else:
        x, y = color.encode(given, recipe.input), color.encode(target, recipe.output)
    if recipe.hints:
        x = torch.cat([x, draw_hints(y, seeded("cpu", recipe.seed, step, HINTS))], 1)
    return Batch(x, y, target)


def discriminator_terms(gan: Gan, batch: Batch, fake: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """Return the discriminator's loss terms, unweighted; no gradient goes back to `fake` (N, Cy, S, S)."""
    with gan.amp:
        real_logits = gan.discriminator_ddp(batch.x, batch.y)  # (N, 1, h, w)
        fake_logits = gan.discriminator_ddp(batch.x, fake.detach())
    real = gan_loss(real_logits, True, recipe.gan_mode, recipe.label_real)
    return {"D_real": real, "D_fake": gan_loss(fake_logits, False, recipe.gan_mode)}


def generate(gan: Gan, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return what the generator makes of x, (N, Cy, S, S), and its logits where there is a loss on them."""
    with gan.amp:
        return gan.generator_ddp(x)


def generator_terms(
    gan: Gan, batch: Batch, fake: Tensor, logits: Tensor | None, recipe: Recipe, adversarial: bool
) -> dict[str, Tensor]:
    """Return the generator's loss terms, unweighted, with or without that of the discriminator."""
    terms = {}
    if gan.class_loss is not None and logits is not None:
        terms["G_class"] = gan.class_loss(logits, batch.y) + 0.0 * fake.sum()  # DDP: every weight has a gradient
    if adversarial:
        with gan.amp:
            fake_logits = gan.discriminator(batch.x, fake)  # (N, 1, h, w)
        terms["G_gan"] = adversarial_loss(fake_logits, recipe.gan_mode, recipe.label_real)
    for name, loss in PIXEL.items():
        if name in recipe.term_weights:
            terms[name] = loss(fake.float(), batch.y)
    if gan.extractors:
        real_rgb = color.rgb01(batch.target)  # (N, 3, S, S)
        fake_rgb = color.decode(fake, recipe.output, color.rgb_to_lab(real_rgb)[:, :1])
        for name, extractor in gan.extractors.items():
            with gan.amp:
                terms[name] = perceptual_loss(extractor, fake_rgb, real_rgb)
    return terms


def train_step(gan: Gan, batch: Batch, recipe: Recipe, adversarial: bool) -> dict[str, Tensor]:
    """Update D, if it takes part, then G; returns every loss term, an unweighted scalar on the device.

    `adversarial` says whether it does: False in the first stage, and where there is no discriminator.
    """
    weights, d_terms = recipe.term_weights, {}
    fake, logits = generate(gan, batch.x)

    if adversarial:
        gan.discriminator.requires_grad_(True)
        d_terms = discriminator_terms(gan, batch, fake, recipe)
        gan.scaler.scale(total(d_terms, weights)).backward()
        gan.scaler.step(gan.optimizer_d)
        gan.optimizer_d.zero_grad()
        gan.discriminator.requires_grad_(False)  # saves its weight gradients, a ninth of the step's work

    g_terms = generator_terms(gan, batch, fake, logits, recipe, adversarial)
    gan.scaler.scale(total(g_terms, weights)).backward()
    gan.scaler.step(gan.optimizer_g)
    gan.optimizer_g.zero_grad()

    gan.scaler.update()
    distributed.average_buffers(gan.generator, gan.discriminator)
    if gan.ema is not None:
        gan.ema.multi_avg_fn = get_ema_multi_avg_fn(ema_decay(recipe.ema, int(gan.ema.n_averaged)))
        gan.ema.update_parameters(gan.generator)
    return {name: value.detach() for name, value in {**g_terms, **d_terms}.items()}


def schedule(gan: Gan, recipe: Recipe, state: State, steps_per_epoch: int) -> bool:
    """Set the learning rates of the step that comes; returns whether the discriminator takes part in it."""
    first_stage = state.epoch <= recipe.pretrain_epochs
    if state.epoch == recipe.pretrain_epochs + 1 and state.step == 0:
        gan.optimizer_g.state.clear()  # Adam starts anew with the second stage
    steps = (state.epoch - 1) * steps_per_epoch + state.step  # as if there had always been as many processes
    done = steps / steps_per_epoch - recipe.pretrain_epochs  # epochs of the second stage
    progress = done / max(1, recipe.epochs - recipe.pretrain_epochs)
    factor = 1.0
    if recipe.schedule == "linear":
        factor = min(1.0, 2.0 * (1.0 - progress))
    if recipe.schedule == "cosine":
        progress += 0.5 / (steps_per_epoch * recipe.epochs)  # the first step is not for nothing
        factor = min(1.0, progress / recipe.warmup if recipe.warmup else 1.0)
        factor *= (1 + math.cos(math.pi * min(1.0, progress))) / 2
    lr_g = (recipe.pretrain_lr or recipe.lr) if first_stage else recipe.lr * factor
    for group, share in zip(gan.optimizer_g.param_groups, (1.0, recipe.lr_encoder / recipe.lr), strict=False):
        group["lr"] = lr_g * share
    if gan.optimizer_d is not None:
        gan.optimizer_d.param_groups[0]["lr"] = (recipe.lr_d or recipe.lr) * factor
    return recipe.is_adversarial and not first_stage


class Audited(NamedTuple):
    """A loss term's value, and the norm of its gradient at the last and at the first layer of its network."""

    value: float
    last: float
    first: float

    @property
    def is_alive(self) -> bool:
        """Whether all are finite, and neither gradient is zero."""
        return all(map(math.isfinite, self)) and min(self.last, self.first) > 0


def audit(gan: Gan, batch: Batch, recipe: Recipe) -> dict[str, Audited]:
    """Look at every loss term of both stages, in float32: G_ in the generator, D_ in the discriminator."""
    gan = replace(gan, amp=autocast(batch.x.device, "fp32"))
    fake, logits = generate(gan, batch.x)
    terms = generator_terms(gan, batch, fake, logits, recipe, recipe.is_adversarial)
    if recipe.is_adversarial:
        terms |= discriminator_terms(gan, batch, fake, recipe)

    def norms(name: str, value: Tensor) -> list[float]:
        network = gan.generator if name.startswith("G_") else gan.discriminator
        weights = [weight for weight in network.parameters() if weight.requires_grad and weight.dim() > 1]
        if not value.requires_grad:
            return [0.0, 0.0]
        ends = weights[-1], weights[0]
        found = torch.autograd.grad(value, ends, retain_graph=True, allow_unused=True)
        return [0.0 if grad is None else float(grad.norm()) for grad in found]

    return {name: Audited(float(value.detach()), *norms(name, value)) for name, value in terms.items()}
