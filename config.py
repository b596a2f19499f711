"""Recipes, default values, and which values fit together.

    python train.py --list-recipes
    python train.py --recipe coco --set lambda_l1=50     # any field of Recipe can be set
    python train.py --recipe coco --dry-run              # prints the resolved recipe

A recipe is a frozen dataclass. RECIPES holds, for each published system, the values that differ from its
defaults. What depends on a network, such as the sizes that it takes, is checked by `models.fit_networks`.
This module imports nothing of the project, and no torch.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

VERSION = "0.2.0"
RUNS = Path("runs")  # one folder per training run
CACHE = Path("cache")  # decoded images and downloaded data sets; safe to delete at any time
ROOT = Path(__file__).resolve().parent
DEMO = "demo"  # name of the embedded data set, and of the recipe for it

# metric -> which direction is better
METRICS = {
    "psnr_db": "higher", "ssim": "higher", "ms_ssim": "higher", "ab_mse": "lower", "ciede2000": "lower",
    "colorfulness": "closest to the truth", "colorfulness_error": "lower", "color_error": "lower",
    "lpips_alex": "lower", "lpips_vgg": "lower", "top1": "higher", "top5": "higher",
    "fid": "lower", "kid": "lower", "frechet_lite0": "lower", "s0_psnr_db": "higher", "s0_ssim": "higher",
}  # fmt: skip
# degradations of the input, in the order in which they are applied: lens, film, years in a drawer, scan
DEGRADATIONS = ("blur", "grain", "fading", "blotches", "stripes", "scratches", "jpeg")
DRAWN_INPUTS = ("sketch", "line", "gray+line")  # inputs that are, or may be, line art
CHOICES = {
    "input": ("L", "gray", "sketch", "line", "gray+line"), "output": ("ab", "rgb", "Lab"), "fit": ("crop", "squash"),
    "pair": ("auto", "none", "AB", "BA"), "norm_d": ("batch", "instance", "none"), "norm_stats": ("running", "batch"),
    "init": ("normal", "default", "kaiming"), "schedule": ("constant", "linear", "cosine"),
    "gan_mode": ("vanilla", "lsgan", "hinge"), "precision": ("auto", "fp32", "bf16", "fp16"),
    "memory_format": ("auto", "contiguous", "channels_last"), "compile": ("auto", "true", "false"),
    "on_nan": ("stop", "skip"), "metric": ("auto", *METRICS),
}  # fmt: skip
# ranges of numbers; those not named here are at least 0
BELOW_ONE = {"val_fraction", "dropout", "beta1", "beta2", "ema", "momentum", "label_smoothing", "warmup"}
UP_TO_ONE = {"flip", "line_share", "label_real", "anime_share"}
UP_TO_ONE |= {f"{name}{end}" for name in DEGRADATIONS for end in ("", "_p")}
POSITIVE = {"size", "ngf", "ndf", "batch_size", "epochs", "save_every", "log_every", "samples", "lr", "label_real"}


class UserError(ValueError):
    """A mistake of the user, told in one sentence: what was wrong, what was found, and what mends it.

    `runtime.cli.command` prints it and exits with 2. Any other exception is a bug and keeps its traceback.
    """


R = TypeVar("R", bound="AnyRecipe")


class AnyRecipe:
    """What the recipes of a colouriser and of a classifier share: checks of single fields, and records."""

    def __post_init__(self) -> None:
        for key, kind in get_type_hints(type(self)).items():
            value = getattr(self, key)
            if kind is float and isinstance(value, int):
                value = float(value)
                object.__setattr__(self, key, value)
            require(isinstance(value, kind), key, self, kind.__name__)
            if key in CHOICES:
                require(value in CHOICES[key], key, self, f"one of {' '.join(CHOICES[key])}")
            if key in BELOW_ONE:
                require(0 <= value < 1, key, self, "in [0, 1)")
            if key in UP_TO_ONE:
                require(0 <= value <= 1, key, self, "in [0, 1]")
            if key in POSITIVE:
                require(0 < value < math.inf, key, self, "greater than 0")
            if kind in (int, float):
                require(0 <= value < math.inf, key, self, "at least 0")
        if self.load_size == 0:
            object.__setattr__(self, "load_size", self.size)
        require(self.load_size >= self.size, "load_size", self, f"at least size ({self.size})")

    @classmethod
    def from_record(cls: type[R], record: Mapping[str, Any]) -> R:
        """Build a recipe from what a run's record or a checkpoint holds; new fields get their defaults.

        Raises UserError on a field that this version does not know, or a value out of range.
        """
        known = {field.name for field in fields(cls)}
        odd = (record.keys() - known) | ({"name"} & known - record.keys())  # name alone has no default
        if odd:
            raise UserError(f"a recipe of another version of this project: see its field {min(odd)}")
        return cls(**record)


@dataclass(frozen=True)
class Recipe(AnyRecipe):
    """Everything that decides what a training run computes. Raises UserError on a value out of range."""

    name: str
    # images
    input: str = "L"  # L (lightness) | gray (luma) | line (drawn) | gray+line: 1 channel; sketch: 3 channels
    output: str = "ab"  # ab (2 channels of Lab) | rgb (3 channels) | Lab (3 channels, lightness restored)
    size: int = 256  # px, side of the square training crops
    load_size: int = 0  # px, short side after loading, from which `size` is cropped; 0 = size
    test_size: int = 0  # px, side of held-out squares; 0 = size
    work_size: int = 0  # px, short side at which the generator works in use; 0 = test_size
    fit: str = "crop"  # crop: resize the short side, crop a square | squash: resize to the square
    pair: str = "auto"  # two pictures side by side: AB colour left | BA colour right | none | auto: look
    pair_folders: str = ""  # COLOUR/SKETCH, names of the folders of pairs; "": known names are looked for
    flip: float = 0.0  # probability of a horizontal flip, training only
    hints: bool = False  # the network takes hints, a few patches of true colours, beside its input
    line_share: float = 0.5  # probability of line art where input is gray+line
    val_fraction: float = 0.1  # share held out where the data has no val folder
    limit: int = 0  # images of each split at most, chosen by a hash of their names; 0 = all
    min_colorfulness: float = 0.0  # what has less (15 is slightly), toned and spot-coloured ones are left out
    # degradation of the input: strength in [0, 1], and the probability that a picture gets it
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
    depth: int = 0  # downsampling steps of the U-Net; 0 = as many as `size` allows, at most 8
    dropout: float = 0.0  # on the three innermost decoder blocks of a U-Net
    attention: int = 0  # px, side of the feature map with self-attention (unet-att*); 0 = the innermost
    pretrained: bool = False  # start the encoder of resunet*, resnet, lite-unet from ImageNet weights
    norm_d: str = "batch"  # normalisation in the discriminator: batch | instance | none
    spectral_norm: bool = False  # on the discriminator's convolutions
    norm_stats: str = "running"  # BatchNorm at test time: running statistics | batch (pix2pix's test mode)
    init: str = "default"  # default: PyTorch's | normal: N(0, 0.02), pix2pix's own | kaiming: fan out
    # optimisation
    epochs: int = 50  # passes over the training images
    half_epochs: int = 0  # the first of them, in which pictures have half their size: quick, and coarse
    pretrain_epochs: int = 0  # the first of them, which train the generator alone, without the GAN term
    pretrain_lr: float = 0.0  # learning rate in them, constant; 0 = lr. Adam starts anew afterwards
    batch_size: int = 16  # images per step
    lr: float = 2e-4  # Adam's learning rate
    lr_d: float = 0.0  # learning rate of the discriminator; 0 = lr
    lr_encoder: float = 0.0  # learning rate of a pretrained encoder; 0 = lr
    weight_decay: float = 0.0  # decoupled from the learning rate, as in AdamW
    warmup: float = 0.0  # share of the steps in which the learning rate rises to lr; with schedule cosine
    beta1: float = 0.5  # Adam's decay of the mean
    beta2: float = 0.999  # Adam's decay of the square
    schedule: str = "constant"  # constant | linear: constant for half of the GAN epochs, then to 0 | cosine
    gan_mode: str = "vanilla"  # vanilla (BCE) | lsgan (MSE) | hinge
    label_real: float = 1.0  # label of a real image; 0.9 smooths the labels (vanilla, lsgan)
    lambda_gan: float = 1.0  # weights of the terms of the generator's loss; 0 = not computed
    lambda_l1: float = 100.0
    lambda_mse: float = 0.0
    lambda_class: float = 0.0  # cross-entropy over bins of ab, weighted by rarity (lite-unet)
    lambda_lpips: float = 0.0  # LPIPS through AlexNet
    lambda_perceptual: float = 0.0  # (1 - anime_share) x VGG-16 + anime_share x Danbooru ResNet-50
    anime_share: float = 0.0
    ema: float = 0.0  # decay per step of the averaged generator that is saved for use; 0 = off
    precision: str = "auto"  # auto | fp32 | bf16 | fp16 (CUDA, with gradient scaling)
    memory_format: str = "auto"  # of images in memory: contiguous | channels_last | auto: what is faster here
    on_nan: str = "stop"  # where a loss is not finite: stop | skip, which leaves out the updates of that step
    compile: str = (
        "auto"  # torch.compile, which takes a minute or more at the start: true | false | auto: where it pays
    )
    seed: int = 42  # of weights, shuffling, cropping, flipping, degradations and dropout
    # intervals
    save_every: int = 5  # epochs between checkpoints
    log_every: int = 50  # steps between status lines
    samples: int = 6  # validation images on each sample sheet
    # evaluation
    metric: str = "auto"  # of METRICS, chooses the best epoch; auto: lpips_alex if computed, else color_error

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_size == 0:
            object.__setattr__(self, "test_size", self.size)
        if self.work_size == 0:
            object.__setattr__(self, "work_size", self.test_size)
        both = self.pair_folders.split("/")
        fit = not self.pair_folders or (len(both) == 2 and all(both) and both[0] != both[1])
        require(fit, "pair_folders", self, "COLOUR/SKETCH, the names of two folders")
        if self.output != "rgb":  # both keep the input's lightness, which line art and luma do not have
            require(self.input == "L", "output", self, f"rgb where input is {self.input}")
        most, reason = 0, "as there is no discriminator"
        if self.is_adversarial:
            most, reason = self.epochs, "the epochs in all (--set pretrain_epochs=...)"
        weights = {key: value for key, value in vars(self).items() if key.startswith("lambda_")}
        other = any(value for key, value in weights.items() if key != "lambda_gan")
        some = other or (self.is_adversarial and not self.pretrain_epochs)
        require(some, "lambda_l1", self, "greater than 0 where no other term trains the generator")
        require(self.pretrain_epochs <= most, "pretrain_epochs", self, f"at most {most}, {reason}")
        require(self.half_epochs <= self.epochs, "half_epochs", self, f"at most {self.epochs}, the epochs in all")

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Recipe":
        """Build a recipe as AnyRecipe does, from any version's record: `compile` was a bool."""
        as_text = {"compile": str(record["compile"]).lower()} if "compile" in record else {}
        return super().from_record({**record, **as_text})

    @property
    def system(self) -> str:
        """What the recipe of this name reproduces."""
        return RECIPES.get(self.name, {}).get("system", "")

    @property
    def stages(self) -> str:
        """The epochs in words, and what is other in the first of them."""
        half = f", the first {self.half_epochs} at {self.size // 2} px" if self.half_epochs else ""
        alone = f", the first {self.pretrain_epochs} without the discriminator" if self.pretrain_epochs else ""
        return f"{self.epochs}{half}{alone}"

    @property
    def is_adversarial(self) -> bool:
        """Whether a discriminator takes part in the training."""
        return self.discriminator != "none" and self.lambda_gan > 0

    @property
    def term_weights(self) -> dict[str, float]:
        """Loss terms that are computed: name -> weight. G_ trains the generator, D_ the discriminator."""
        adversarial = float(self.is_adversarial)
        weights = {
            "G_gan": self.lambda_gan * adversarial, "G_l1": self.lambda_l1, "G_mse": self.lambda_mse,
            "G_class": self.lambda_class, "G_lpips": self.lambda_lpips,
            "G_perceptual": self.lambda_perceptual * (1 - self.anime_share),
            "G_anime": self.lambda_perceptual * self.anime_share,
            "D_real": 0.5 * adversarial, "D_fake": 0.5 * adversarial,
        }  # fmt: skip
        return {name: weight for name, weight in weights.items() if weight > 0}

    @property
    def degradations(self) -> dict[str, tuple[float, float]]:
        """Degradations that the input gets: name -> strength, probability; in the order of application."""
        found = {name: (getattr(self, name), getattr(self, f"{name}_p")) for name in DEGRADATIONS}
        return {name: value for name, value in found.items() if value[1] > 0}


@dataclass(frozen=True)
class ClassifierRecipe(AnyRecipe):
    """Everything that decides how train_classifier.py trains. Raises UserError on a value out of range."""

    network: str = "resnet18"  # one of torchvision's classification networks
    pretrained: bool = False  # start from torchvision's published weights, except the last layer
    # images
    size: int = 224  # px, side of the square that the network sees; 32 for pictures as small as CIFAR's
    load_size: int = 0  # px, short side after loading, from which `size` is cropped; 0 = size
    fit: str = "crop"  # crop: resize the short side, crop a square | squash: resize to the square
    flip: float = 0.5  # probability of a horizontal flip, training only
    val_fraction: float = 0.1  # share held out where the data has no val folder
    limit: int = 0  # images of each split at most, chosen by a hash of their names; 0 = all
    # optimisation: SGD with Nesterov momentum; linear warm-up of the learning rate, then cosine decay
    epochs: int = 10  # passes over the training images
    batch_size: int = 128  # images per step
    lr: float = 0.0  # the highest learning rate; 0 = 0.1, or 0.01 where pretrained
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1  # share of the target that is spread over all classes
    warmup: float = 0.2  # share of all steps
    precision: str = "auto"  # auto | fp32 | bf16 | fp16 (CUDA, with gradient scaling)
    on_nan: str = "stop"  # where the loss is not finite: stop | skip, which leaves out the update of that step
    seed: int = 42  # of weights, shuffling, cropping, flipping and dropout
    # intervals
    save_every: int = 1  # epochs between checkpoints
    log_every: int = 50  # steps between status lines

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", self.lr or (0.01 if self.pretrained else 0.1))
        super().__post_init__()


def require(ok: bool, key: str, recipe: AnyRecipe, wanted: str) -> None:
    """Raise UserError that names a field of a recipe, what it must be and what it is, unless `ok`."""
    if not ok:
        raise UserError(f"{key} must be {wanted}, got {getattr(recipe, key)!r}")


# Each published system: what it changes of the defaults above. L and ab are scaled to [-1, 1] in all of them.
# fmt: off
RECIPES: dict[str, dict[str, Any]] = {
    # The embedded scenes; minutes on two CPU cores.
    "demo": dict(system="embedded scenes", size=128, flip=0.5,
        generator="unet", discriminator="patch30", ngf=16, ndf=8, depth=5, lambda_gan=0.05,
        epochs=15, half_epochs=6, pretrain_epochs=13, batch_size=4, lr=3e-3, schedule="linear", ema=0.99,
        log_every=100),
    # Published: 950 epochs, images squashed to the square; flips from epoch 350 on, and of validation images.
    "coco": dict(system="photo in Lab, pix2pix", flip=0.5,
        generator="unet", discriminator="patch30", dropout=0.5, epochs=950, save_every=25),
    # Published: fastai's decoder; its code detached the generated image, so no GAN gradient reached G.
    "coco-resnet": dict(system="photo, U-ResNet, COCO", flip=0.5, min_colorfulness=10.0,
        generator="resunet", discriminator="patch15", pretrained=True, epochs=120, pretrain_epochs=20, batch_size=4),
    # The same system on group portraits; its pictures were resized to the square, ours are cropped.
    "groups": dict(system="photo, U-ResNet, portraits", flip=0.5, min_colorfulness=10.0,
        generator="resunet", discriminator="patch15", pretrained=True, epochs=120, pretrain_epochs=20, batch_size=4),
    # Published: 150 epochs, a checkpoint every 10, no augmentation; its resume began at epoch 1 again.
    "anime": dict(system="anime sketch, pix2pix", input="sketch", output="rgb",
        generator="unet-reflect", discriminator="patch26", dropout=0.5, epochs=150, save_every=10),
    # Published with anime_share 0, 0.1 and 1; the best pictures came from 0 with both additions.
    "manga": dict(system="manga page", input="gray", output="rgb",
        generator="unet-bn", discriminator="patch15-bias", dropout=0.5,
        lambda_gan=0.01, lambda_l1=1.0, lambda_perceptual=0.1),
    # Published: attention over the single pixel of the bottleneck, which --set attention=32 mends.
    "manga-att": dict(system="manga page, attention", input="gray", output="rgb",
        generator="unet-att", discriminator="patch15-bias", dropout=0.5,
        lambda_gan=0.01, lambda_l1=1.0, lambda_perceptual=0.1),
    # Published: the code computed the Danbooru term without gradient; here it reaches the generator.
    "manga-ext": dict(system="manga page, extractor", input="gray", output="rgb",
        generator="unet-ext", discriminator="patch15-bias", dropout=0.5,
        lambda_gan=0.01, lambda_l1=1.0, lambda_perceptual=0.1, anime_share=0.1),
    "manga-att-ext": dict(system="manga page, both", input="gray", output="rgb",
        generator="unet-att-ext", discriminator="patch15-bias", dropout=0.5,
        lambda_gan=0.01, lambda_l1=1.0, lambda_perceptual=0.1, anime_share=0.1),
    # Published, and so for all of the framework's: 5 epochs by default, batches of 100, a constant learning
    # rate, random crops of varying scale, ab in [0, 1]; with a discriminator, its loss not halved.
    "places-resnet": dict(system="framework, ResNet", size=224, load_size=256, flip=0.5,
        generator="resnet", discriminator="none", lambda_l1=0, lambda_mse=1, lr=1e-3, beta1=0.9, schedule="linear"),
    "unet32": dict(system="framework, U-Net 32 px", size=32, flip=0.5,
        generator="unet32", discriminator="none", lambda_l1=0, lambda_mse=1, lr=1e-3, beta1=0.9, schedule="linear"),
    "unet224": dict(system="framework, U-Net 224 px", size=224, load_size=256, flip=0.5,
        generator="unet224", discriminator="none", lambda_l1=0, lambda_mse=1, lr=1e-3, beta1=0.9, schedule="linear"),
    # Published: L1 on the discriminator's output and two sigmoids; the paper it names puts L1 on the image.
    # With 2e-4 for both, 2 epochs of 5,000 CIFAR-10 pictures scored below one mean colour; so they beat it.
    "nazerigan32": dict(system="framework, GAN 32 px", size=32, flip=0.5,
        generator="unet32", discriminator="image32", label_real=0.9, lr=1e-3, lr_d=1e-5, schedule="linear", ema=0.99),
    "nazerigan224": dict(system="framework, GAN 224 px", size=224, load_size=256, flip=0.5,
        generator="unet224", discriminator="image224", label_real=0.9),
    # Published: G saw 100 x gray, here L as everywhere; a last BatchNorm was counted but never called.
    "cgan": dict(system="framework, conditional GAN", output="rgb", size=224, load_size=256, flip=0.5,
        generator="convgen", discriminator="image-rgb", init="kaiming", label_real=0.9),
    # The colouriser that comes along: pretrained/README.md.
    "photo": dict(system="photo in Lab, hints", size=160, load_size=208, test_size=256, flip=0.5, hints=True,
        batch_size=32, min_colorfulness=5.0, generator="lite-unet", discriminator="none", pretrained=True,
        lambda_l1=10.0, lambda_class=0.3, lambda_lpips=3.0, epochs=6, lr=1.5e-3, lr_encoder=2e-4,
        beta1=0.9, weight_decay=0.05, schedule="cosine", warmup=0.01, ema=0.995, save_every=1,
        scratches_p=0.08, stripes_p=0.03, blotches_p=0.08, fading_p=0.25, blur_p=0.15, grain_p=0.15, jpeg_p=0.1),
    # Named by the U-ResNet's authors as future work: a degraded input, L restored beside ab. A U-Net of
    # pix2pix checkers the lightness, as nothing but transposed convolutions reaches its full resolution.
    "restore": dict(system="old photo, restored", output="Lab", flip=0.5, min_colorfulness=10.0,
        generator="resunet", discriminator="patch15", pretrained=True, epochs=120, pretrain_epochs=20, batch_size=4,
        scratches_p=0.5, stripes_p=0.2, blotches_p=0.4, fading_p=0.5, blur_p=0.3, grain_p=0.5, jpeg_p=0.3),
}
# fmt: on


def closest(name: str, names: Sequence[str]) -> str:
    """Return the end of an error message: the nearest known name and the list of all."""
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return (f"; did you mean {near[0]}?" if near else "") + f" (known: {' '.join(sorted(names))})"


def known_recipe(name: str) -> str:
    """Return the name of a recipe. Raises UserError on an unknown one, naming the closest."""
    if name not in RECIPES:
        raise UserError(f"no recipe {name}{closest(name, list(RECIPES))}")
    return name


def make_recipe(name: str, overrides: Mapping[str, Any]) -> Recipe:
    """Build a recipe by name. `overrides` maps fields, as from parse_settings, to values; None is left out.

    Raises UserError on an unknown recipe (naming the closest), or a value out of range.
    """
    values = {key: value for key, value in RECIPES[known_recipe(name)].items() if key != "system"}
    given = {key: value for key, value in overrides.items() if value is not None}
    return Recipe(name=name, **values | settle(name, given) | given)


def settle(name: str, given: Mapping[str, Any]) -> dict[str, int]:
    """Return the fields of a known recipe that follow from those given, in the recipe's own proportions."""
    named, found = RECIPES[name], {}
    for follower in ("load_size", "test_size", "work_size", "half_epochs", "pretrain_epochs"):
        key = "epochs" if follower.endswith("epochs") else "size"
        if key in given and follower in named and follower not in given:
            found[follower] = round(given[key] * named[follower] / named.get(key, getattr(Recipe, key)))
    if "size" in given and "half_epochs" in named and "half_epochs" not in given:
        found["half_epochs"] = 0  # its half may be no size that the networks take
    return found


def parse_settings(settings: Sequence[str], recipe: type[AnyRecipe] = Recipe) -> dict[str, Any]:
    """Turn ["lr=1e-3", "pretrained=true"] into typed values of a recipe's fields, all but its name.

    Raises UserError on no "=", an unknown field (naming the closest), or text that is not of its type.
    """
    truth = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    kinds = {key: kind for key, kind in get_type_hints(recipe).items() if key != "name"}
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set takes key=value, got {setting!r}")
        key = key.replace("colour", "color")  # both spellings
        if key != "pair_folders":  # which names folders
            text = text.replace("colour", "color").replace("grey", "gray")
        if key not in kinds:
            raise UserError(f"no recipe field {key}{closest(key, list(kinds))}")
        kind = kinds[key]
        try:
            values[key] = truth[text.lower()] if kind is bool else kind(text.lower() if key == "compile" else text)
        except (ValueError, KeyError):
            raise UserError(f"{key} takes a value of type {kind.__name__}, got {text!r}") from None
    return values
