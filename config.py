"""Recipes and folder names: the one home of every default.

    python train.py --list-recipes
    python train.py --recipe coco --set lambda_l1=50     # any field of Recipe can be set
    python train.py --recipe coco --dry-run              # prints what is resolved

A recipe is a frozen dataclass; RECIPES holds, for each published system, what differs from its defaults.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from checks import CHOICES, check

VERSION = "0.2.0"
RUNS = Path("runs")  # one folder per training run
CACHE = Path("cache")  # decoded images and downloaded data sets, safe to delete at any time
ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run computes. Raises ValueError on a value out of range."""

    name: str
    # images
    input: str = "L"  # L (lightness) | gray (luma) | line (drawn) | gray+line: 1 channel; sketch: 3 channels
    output: str = "ab"  # ab (2 channels of Lab) | rgb (3 channels) | Lab (3 channels, lightness restored)
    size: int = 256  # px, side of the square the networks are trained on
    load_size: int = 0  # px, short side after loading, from which `size` is cropped; 0 = size
    fit: str = "crop"  # crop: resize the short side, crop a square | squash: resize to the square
    pair: str = "auto"  # two pictures side by side: AB colour left | BA colour right | none | auto: look
    flip: float = 0.0  # probability of a horizontal flip, training only
    line_share: float = 0.5  # probability of line art where input is gray+line
    val_fraction: float = 0.1  # share held out where the data has no val folder
    limit: int = 0  # images of each split at most, chosen by a hash of their names; 0 = all
    min_colorfulness: float = 0.0  # pictures below are left out as near-gray (15 is slightly colourful)
    # damage of the input: strength in [0, 1], and the probability with which a picture gets it
    scratches: float = 0.5  # bright and dark threads
    scratches_p: float = 0.0
    stripes: float = 0.5  # vertical bands of another exposure
    stripes_p: float = 0.0
    blotches: float = 0.5  # stains
    blotches_p: float = 0.0
    fading: float = 0.5  # contrast lost, blacks lifted or whites darkened
    fading_p: float = 0.0
    blur: float = 0.5  # out of focus
    blur_p: float = 0.0
    grain: float = 0.5  # film noise
    grain_p: float = 0.0
    jpeg: float = 0.5  # blocks of 8 x 8 px, coarsely quantised
    jpeg_p: float = 0.0
    # networks
    generator: str = "unet"  # a key of models.GENERATORS
    discriminator: str = "patch30"  # a key of models.DISCRIMINATORS | none, as with lambda_gan 0
    ngf: int = 64  # channels after the generator's first convolution; of a resunet, of its last blocks
    ndf: int = 64  # channels after the discriminator's first convolution
    depth: int = 0  # halvings in the U-Net; 0 = as many as `size` allows, at most 8
    dropout: float = 0.5  # on the three innermost decoder blocks
    attention: int = 0  # px, side of the feature map with self-attention (unet-att*); 0 = the innermost
    pretrained: bool = False  # start the encoder of resunet* and resnet from ImageNet weights
    norm_d: str = "batch"  # of the discriminator: batch | instance | none
    spectral_norm: bool = False  # of the discriminator's convolutions
    norm_stats: str = "running"  # BatchNorm at test time: running statistics | batch (pix2pix's test mode)
    init: str = "normal"  # normal: N(0, 0.02), pix2pix's own | default: PyTorch's | kaiming: fan out
    # optimisation
    epochs: int = 200  # passes over the training images
    pretrain_epochs: int = 0  # of these, the first that train the generator alone, without the GAN term
    pretrain_lr: float = 0.0  # Adam's step size in them, constant; 0 = lr. Adam starts anew afterwards
    batch_size: int = 16  # images per step
    lr: float = 2e-4  # Adam's step size
    lr_d: float = 0.0  # the discriminator's own; 0 = lr
    beta1: float = 0.5  # Adam's decay of the mean
    beta2: float = 0.999  # Adam's decay of the square
    schedule: str = "constant"  # constant | linear: constant for half of the GAN epochs, then down to 0
    gan_mode: str = "vanilla"  # vanilla (BCE) | lsgan (MSE) | hinge
    label_real: float = 1.0  # what a real image is labelled; 0.9 smooths the labels (vanilla, lsgan)
    lambda_gan: float = 1.0  # weights of the terms of the generator's loss; 0 = not computed
    lambda_l1: float = 100.0
    lambda_mse: float = 0.0
    lambda_perceptual: float = 0.0  # (1 - anime_share) x VGG-16 + anime_share x Danbooru ResNet-50
    anime_share: float = 0.0
    ema: float = 0.0  # decay per step of the averaged generator that is saved for use; 0 = off
    precision: str = "auto"  # auto | fp32 | bf16 | fp16 (CUDA, with gradient scaling)
    compile: bool = False  # torch.compile both networks: about a minute to start, then faster
    seed: int = 42  # of weights, shuffling, cropping, flipping, damage and dropout
    # intervals
    save_every: int = 5  # epochs between checkpoints
    log_every: int = 50  # steps between status lines
    samples: int = 6  # validation images on each sample sheet
    # evaluation
    metric: str = "ciede2000"  # a key of metrics.DIRECTIONS, by which the best epoch is chosen

    def __post_init__(self) -> None:
        check(self, get_type_hints(Recipe))


@dataclass(frozen=True)
class ClassifierRecipe:
    """Everything that decides how classifier.py trains. Raises ValueError on a value out of range."""

    network: str = "resnet18"  # one of torchvision's classification networks
    pretrained: bool = False  # start from torchvision's published weights, all but the last layer
    # images
    size: int = 224  # px, side of the square that the network sees; 32 for pictures as small as CIFAR's
    load_size: int = 0  # px, short side after loading, from which `size` is cropped; 0 = size
    fit: str = "crop"  # crop: resize the short side, crop a square | squash: resize to the square
    flip: float = 0.5  # probability of a horizontal flip, training only
    val_fraction: float = 0.1  # share held out where the data has no val folder
    limit: int = 0  # images of each split at most, chosen by a hash of their names; 0 = all
    # optimisation: SGD with Nesterov momentum; lr rises for `warmup` of all steps, then falls as a cosine
    epochs: int = 10  # passes over the training images
    batch_size: int = 128  # images per step
    lr: float = 0.0  # the highest step size; 0 = 0.1, or 0.01 where pretrained
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1  # share of the target that is spread over all classes
    warmup: float = 0.2  # share of all steps
    precision: str = "auto"  # auto | fp32 | bf16 | fp16 (CUDA, with gradient scaling)
    seed: int = 42  # of weights, shuffling, cropping, flipping and dropout
    # intervals
    save_every: int = 1  # epochs between checkpoints
    log_every: int = 50  # steps between status lines

    def __post_init__(self) -> None:
        _check_classifier(self)


def _check_classifier(recipe: ClassifierRecipe) -> None:
    """Settle the fields whose 0 means "as fits", and check all of them."""

    def require(ok: bool, key: str, wanted: str) -> None:
        if not ok:
            raise ValueError(f"{key} must be {wanted}, got {getattr(recipe, key)!r}")

    for key, kind in get_type_hints(ClassifierRecipe).items():
        if kind is float and isinstance(getattr(recipe, key), int):
            object.__setattr__(recipe, key, float(getattr(recipe, key)))
        require(isinstance(getattr(recipe, key), kind), key, kind.__name__)
    for key, choices in {"fit": CHOICES["fit"], "precision": CHOICES["precision"]}.items():
        require(getattr(recipe, key) in choices, key, f"one of {' '.join(choices)}")
    for key in ("size", "epochs", "batch_size", "save_every", "log_every"):
        require(getattr(recipe, key) > 0, key, "greater than 0")
    for key in ("load_size", "limit", "lr", "weight_decay", "seed"):
        require(0 <= getattr(recipe, key) < math.inf, key, "at least 0")
    for key in ("val_fraction", "momentum", "label_smoothing", "warmup"):
        require(0 <= getattr(recipe, key) < 1, key, "in [0, 1)")
    require(0 <= recipe.flip <= 1, "flip", "in [0, 1]")
    object.__setattr__(recipe, "load_size", recipe.load_size or recipe.size)
    object.__setattr__(recipe, "lr", recipe.lr or (0.01 if recipe.pretrained else 0.1))
    require(recipe.load_size >= recipe.size, "load_size", f"at least size ({recipe.size})")


_URESNET = dict(
    generator="resunet", discriminator="patch15", pretrained=True, flip=0.5, min_colorfulness=10.0,
    epochs=120, pretrain_epochs=20, batch_size=4, init="default", dropout=0.0,
)  # fmt: skip
_MANGA = dict(
    input="gray", output="rgb", discriminator="patch15-bias", lambda_gan=0.01, lambda_l1=1.0,
    lambda_perceptual=0.1, epochs=50, init="default",
)  # fmt: skip
_PLACES = dict(size=224, load_size=256, flip=0.5, epochs=50, init="default", dropout=0.0)
_CIFAR = {**_PLACES, "size": 32, "load_size": 0}
_REGRESSION = dict(
    discriminator="none", lambda_l1=0.0, lambda_mse=1.0, lr=1e-3, beta1=0.9, schedule="linear",
)  # fmt: skip

# What each published system changes of the defaults above. L and ab are scaled to [-1, 1] in all of them.
RECIPES: dict[str, dict[str, Any]] = {
    # The embedded scenes, minutes on two CPU cores.
    "demo": dict(
        size=128, flip=0.5, ngf=32, ndf=16, depth=5, dropout=0.0, init="default", epochs=20, batch_size=8,
        lr=2e-3, schedule="linear", lambda_gan=0.05, ema=0.99, save_every=5, log_every=100,
    ),
    # Published: 950 epochs, images squashed to the square; flips from epoch 350 on, and of validation images.
    "coco": dict(flip=0.5, epochs=950, save_every=25, init="default"),
    # Published: fastai's decoder; its code detached the generated image, so no GAN gradient reached G.
    "coco-resnet": _URESNET,
    # The same system on group portraits; its pictures were resized to the square, ours are cropped.
    "groups": _URESNET,
    # Published: 150 epochs, a checkpoint every 10, no augmentation; its resume began at epoch 1 again.
    "anime": dict(
        input="sketch", output="rgb", generator="unet-reflect", discriminator="patch26",
        epochs=150, save_every=10, init="default",
    ),
    # Published with anime_share 0, 0.1 and 1; the best pictures came from 0 with both additions.
    "manga": dict(_MANGA, generator="unet-bn"),
    # Published: attention over the single pixel of the bottleneck, which --set attention=32 mends.
    "manga-att": dict(_MANGA, generator="unet-att"),
    # Published: the code computed the Danbooru term without gradient; here it reaches the generator.
    "manga-ext": dict(_MANGA, generator="unet-ext", anime_share=0.1),
    "manga-att-ext": dict(_MANGA, generator="unet-att-ext", anime_share=0.1),
    # Published, and so for all of the framework's: 5 epochs by default, batches of 100, a constant step size,
    # random crops of varying scale, ab in [0, 1]; with a discriminator, its loss not halved.
    "places-resnet": dict(_PLACES, **_REGRESSION, generator="resnet"),
    "unet32": dict(_CIFAR, **_REGRESSION, generator="unet32"),
    "unet224": dict(_PLACES, **_REGRESSION, generator="unet224"),
    # Published: L1 on the discriminator's output and two sigmoids; the paper it names puts L1 on the image.
    # With 2e-4 for both, 2 epochs of 5,000 CIFAR-10 pictures scored below one mean colour; so they beat it.
    "nazerigan32": dict(
        _CIFAR, generator="unet32", discriminator="image32", label_real=0.9, lr=1e-3, lr_d=1e-5,
        schedule="linear", ema=0.99,
    ),
    "nazerigan224": dict(_PLACES, generator="unet224", discriminator="image224", label_real=0.9),
    # Published: G saw 100 x gray, here L as everywhere; a last BatchNorm was counted but never called.
    "cgan": dict(
        _PLACES, output="rgb", generator="convgen", discriminator="image-rgb", label_real=0.9, init="kaiming",
    ),
    # Named by the U-ResNet's authors as future work: damage on the input, L restored beside ab. A U-Net of
    # pix2pix checkers the lightness, as nothing but transposed convolutions reaches its full resolution.
    "restore": dict(
        _URESNET, output="Lab", scratches_p=0.5, stripes_p=0.2, blotches_p=0.4, fading_p=0.5, blur_p=0.3,
        grain_p=0.5, jpeg_p=0.3,
    ),
}  # fmt: skip
SYSTEMS = {  # recipe -> what it stands for
    "demo": "embedded scenes",
    "coco": "photo in Lab, pix2pix",
    "coco-resnet": "photo, U-ResNet, COCO",
    "groups": "photo, U-ResNet, portraits",
    "anime": "anime sketch, pix2pix",
    "manga": "manga page",
    "manga-att": "manga page, attention",
    "manga-ext": "manga page, extractor",
    "manga-att-ext": "manga page, both",
    "places-resnet": "framework, ResNet",
    "unet32": "framework, U-Net 32 px",
    "unet224": "framework, U-Net 224 px",
    "nazerigan32": "framework, GAN 32 px",
    "nazerigan224": "framework, GAN 224 px",
    "cgan": "framework, conditional GAN",
    "restore": "old photo, restored",
}


def closest(name: str, names: Sequence[str]) -> str:
    """Return the end of an error message: the nearest known name and the list of all."""
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return (f"; did you mean {near[0]}?" if near else "") + f" (known: {' '.join(sorted(names))})"


def make_recipe(name: str, overrides: dict[str, Any]) -> Recipe:
    """Build a recipe by name. `overrides` maps field names to values; None values are left out.

    Raises:
        ValueError: unknown recipe or field (naming the closest), or a value out of range.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe {name}{closest(name, list(RECIPES))}")
    given = {key: value for key, value in overrides.items() if value is not None}
    known = [field.name for field in fields(Recipe) if field.name != "name"]
    for key in given:
        if key not in known:
            raise ValueError(f"no recipe field {key}{closest(key, known)}")
    return Recipe(name=name, **{**RECIPES[name], **given})


def parse_settings(settings: Sequence[str], recipe: type = Recipe) -> dict[str, Any]:
    """Turn ["lr=1e-3", "compile=true"] into typed values of a recipe's fields, all but its name.

    Raises:
        ValueError: no "=", an unknown field (naming the closest), or text that is not of the field's type.
    """
    kinds = get_type_hints(recipe)
    kinds.pop("name", None)
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, got {setting!r}")
        if key not in kinds:
            raise ValueError(f"no recipe field {key}{closest(key, list(kinds))}")
        values[key] = _parse(key, text, kinds[key])
    return values


def _parse(key: str, text: str, kind: type) -> Any:
    truth = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    try:
        return truth[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise ValueError(f"{key} takes a value of type {kind.__name__}, got {text!r}") from None
