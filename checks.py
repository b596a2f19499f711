"""What values a recipe's fields can have, alone and together. A recipe that passes can be trained."""

import math
from collections.abc import Mapping
from typing import Any

MULTIPLE = 16  # px; a size that can be halved less often would make the U-Net a shallow one
MAX_DEPTH = 8  # halvings in pix2pix's U-Net: 256 px -> 1 px

# These names and numbers mirror models.py and metrics.py, which need torch; tests hold them equal.
# How often the generators that are no U-Net of pix2pix's halve; theirs is the recipe's depth.
HALVINGS = {"resunet": 5, "resunet34": 5, "resnet": 3, "unet32": 4, "unet224": 5, "convgen": 5}
UNETS = ("unet", "unet-reflect", "unet-bn", "unet-att", "unet-ext", "unet-att-ext")
# px, below which a network has nothing left to convolve
SMALLEST = {
    "patch30": 24, "patch26": 52, "patch15": 32, "patch15-bias": 32,
    "image32": 32, "image224": 160, "image-rgb": 193, "unet224": 96,
}  # fmt: skip
CHOICES = {
    "input": ("L", "gray", "sketch", "line", "gray+line"),
    "output": ("ab", "rgb", "Lab"),
    "generator": (*UNETS, *HALVINGS),
    "discriminator": (*(name for name in SMALLEST if name not in HALVINGS), "none"),
    "norm_d": ("batch", "instance", "none"),
    "fit": ("crop", "squash"),
    "pair": ("auto", "none", "AB", "BA"),
    "schedule": ("constant", "linear"),
    "gan_mode": ("vanilla", "lsgan", "hinge"),
    "norm_stats": ("running", "batch"),
    "init": ("normal", "default", "kaiming"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "metric": (
        "psnr_db", "ssim", "ms_ssim", "ab_mse", "ciede2000", "colorfulness", "colorfulness_error",
        "lpips_alex", "lpips_vgg", "top1", "top5", "fid", "kid", "s0_psnr_db", "s0_ssim",
    ),
}  # fmt: skip
DAMAGES = ("scratches", "stripes", "blotches", "fading", "blur", "grain", "jpeg")
BELOW_ONE = ("val_fraction", "dropout", "beta1", "beta2", "ema")
UP_TO_ONE = ("flip", "line_share", "label_real", "anime_share", *DAMAGES, *(f"{d}_p" for d in DAMAGES))
POSITIVE = (
    "size", "ngf", "ndf", "batch_size", "epochs", "save_every", "lr", "log_every", "samples", "label_real",
)  # fmt: skip
NOT_NEGATIVE = (
    "load_size", "limit", "min_colorfulness", "depth", "attention", "pretrain_epochs", "pretrain_lr", "lr_d",
    "lambda_gan", "lambda_l1", "lambda_mse", "lambda_perceptual", "seed",
)  # fmt: skip


def check(recipe: Any, kinds: Mapping[str, type]) -> None:
    """Settle the fields of a config.Recipe whose 0 means "as fits", and check all of them.

    Args:
        kinds: field name -> type; a whole number is taken for a float.

    Raises:
        ValueError: a value out of range, or two that do not fit together; names the field and the value.
    """
    for key, kind in kinds.items():
        if kind is float and isinstance(getattr(recipe, key), int):
            object.__setattr__(recipe, key, float(getattr(recipe, key)))
        if not isinstance(getattr(recipe, key), kind):
            raise ValueError(f"{key} must be {kind.__name__}, got {getattr(recipe, key)!r}")
    for key, choices in CHOICES.items():
        _require(getattr(recipe, key) in choices, key, recipe, f"one of {' '.join(choices)}")
    for key in BELOW_ONE:
        _require(0 <= getattr(recipe, key) < 1, key, recipe, "in [0, 1)")
    for key in UP_TO_ONE:
        _require(0 <= getattr(recipe, key) <= 1, key, recipe, "in [0, 1]")
    for key in POSITIVE:
        _require(0 < getattr(recipe, key) < math.inf, key, recipe, "greater than 0")
    for key in NOT_NEGATIVE:
        _require(0 <= getattr(recipe, key) < math.inf, key, recipe, "at least 0")
    if recipe.load_size == 0:
        object.__setattr__(recipe, "load_size", recipe.size)
    _require(recipe.load_size >= recipe.size, "load_size", recipe, f"at least size ({recipe.size})")
    for key in ("generator", "discriminator"):
        smallest = SMALLEST.get(getattr(recipe, key), 1)
        _require(recipe.size >= smallest, "size", recipe, f"at least {smallest} for {getattr(recipe, key)}")
    _settle_depth(recipe)
    _check_networks(recipe)
    _check_losses(recipe)


def _require(ok: bool, key: str, recipe: Any, wanted: str) -> None:
    if not ok:
        raise ValueError(f"{key} must be {wanted}, got {getattr(recipe, key)!r}")


def _settle_depth(recipe: Any) -> None:
    """Resolve depth 0, and check that the size can be halved that often."""
    own = HALVINGS.get(recipe.generator)
    if own is not None:
        _require(recipe.depth in (0, own), "depth", recipe, f"0 or {own} for {recipe.generator}")
        _require(recipe.size % 2**own == 0, "size", recipe, f"a multiple of {2**own} for {recipe.generator}")
        object.__setattr__(recipe, "depth", own)
        return
    if recipe.depth == 0:
        _require(recipe.size % MULTIPLE == 0, "size", recipe, f"a multiple of {MULTIPLE} (or set depth)")
        deepest = next(n for n in range(MAX_DEPTH, 0, -1) if recipe.size % 2**n == 0)
        object.__setattr__(recipe, "depth", deepest)
    fits = 2 <= recipe.depth <= MAX_DEPTH and recipe.size % 2**recipe.depth == 0
    _require(fits, "depth", recipe, f"2 to 8 with size a multiple of 2^depth (size is {recipe.size})")


def _check_networks(recipe: Any) -> None:
    if recipe.output != "rgb":  # both keep the input's lightness, which line art and luma do not have
        _require(recipe.input == "L", "output", recipe, f"rgb where input is {recipe.input}")
    sides = [recipe.size >> n for n in range(1, recipe.depth + 1)] if "-att" in recipe.generator else []
    _require(
        recipe.attention in (0, *sides), "attention", recipe,
        f"0 or one of {' '.join(map(str, sides))} px" if sides else f"0 for generator {recipe.generator}",
    )  # fmt: skip
    encoder = recipe.generator in ("resunet", "resunet34", "resnet")
    _require(encoder or not recipe.pretrained, "pretrained", recipe, f"false for {recipe.generator}")
    lone = recipe.batch_size == 1 and needs_two_images(recipe)
    _require(not lone, "batch_size", recipe, "2 or more, as BatchNorm meets a single pixel at this size")
    stats = recipe.norm_stats != "batch" or not _meets_one_pixel(recipe)
    _require(stats, "norm_stats", recipe, "running, as BatchNorm meets a single pixel at this size")


def needs_two_images(recipe: Any) -> bool:
    """Tell whether some BatchNorm of either network sees one pixel, which a single image cannot train."""
    judged = recipe.discriminator == "image-rgb" and recipe.norm_d == "batch" and recipe.size <= 224
    return judged or _meets_one_pixel(recipe)


def _meets_one_pixel(recipe: Any) -> bool:
    """Tell whether the generator's innermost BatchNorm sees one pixel."""
    side = recipe.size >> recipe.depth
    if recipe.generator == "unet224":
        side -= 2  # by its two convolutions of stride 1
    return side == 1 and recipe.generator not in ("unet", "unet-reflect")  # no BatchNorm at their innermost


def _check_losses(recipe: Any) -> None:
    alone = recipe.discriminator == "none" or recipe.lambda_gan == 0
    weights = (recipe.lambda_l1, recipe.lambda_mse, recipe.lambda_perceptual)
    some = any(weights) or (not (alone or recipe.pretrain_epochs) and recipe.lambda_gan > 0)
    _require(some, "lambda_l1", recipe, "greater than 0 where no other term trains the generator")
    most = 0 if alone else recipe.epochs
    wanted = f"at most {most}" + (
        ", as there is no discriminator" if alone else ", the epochs in all (--set pretrain_epochs=...)"
    )
    _require(recipe.pretrain_epochs <= most, "pretrain_epochs", recipe, wanted)
