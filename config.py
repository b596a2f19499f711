"""Recipes, folder names and command-line options: the one home of every default.

    python train.py --recipe coco --set lambda_l1=50     # any field of Recipe can be set
    python train.py --recipe coco --dry-run              # prints what is resolved

A recipe is a frozen dataclass; RECIPES holds, for each published system, only what differs from it.
"""

import difflib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

VERSION = "0.1.0"
RUNS = Path("runs")  # one folder per training run
CACHE = Path("cache")  # decoded images, safe to delete at any time
ROOT = Path(__file__).resolve().parent
MULTIPLE = 16  # px; a size that can be halved less often would make the U-Net a shallow one
MAX_DEPTH = 8  # halvings in pix2pix's U-Net: 256 px -> 1 px

CHOICES = {
    "input": ("L", "sketch"),
    "output": ("ab", "rgb"),
    "generator": ("unet", "unet-reflect"),
    "discriminator": ("patch30", "patch26"),
    "fit": ("crop", "squash"),
    "pair": ("auto", "none", "AB", "BA"),
    "schedule": ("constant", "linear"),
    "gan_mode": ("vanilla", "lsgan", "hinge"),
    "norm_stats": ("running", "batch"),
    "init": ("normal", "default"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
}
SMALLEST = {"patch30": 24, "patch26": 52}  # px, below which a discriminator has no logits left
UNIT_INTERVAL = ("val_fraction", "dropout", "beta1", "beta2", "ema")
POSITIVE = ("size", "ngf", "ndf", "batch_size", "epochs", "save_every", "lr", "log_every", "samples")
NOT_NEGATIVE = ("load_size", "depth", "lambda_gan", "lambda_l1", "seed")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run computes. Raises ValueError on a value out of range."""

    name: str
    # images
    input: str = "L"  # what the generator sees: L (1 channel, lightness) | sketch (3 channels)
    output: str = "ab"  # what it predicts: ab (2 channels of Lab) | rgb (3 channels)
    size: int = 256  # px, side of the square the networks are trained on
    load_size: int = 0  # px, short side after loading, from which `size` is cropped; 0 = size
    fit: str = "crop"  # crop: resize the short side, crop a square | squash: resize to the square
    pair: str = "auto"  # two pictures side by side: AB colour left | BA colour right | none | auto: look
    flip: float = 0.0  # probability of a horizontal flip, training only
    val_fraction: float = 0.1  # share held out where the data has no val folder
    # networks
    generator: str = "unet"  # a key of models.GENERATORS
    discriminator: str = "patch30"  # a key of models.DISCRIMINATORS, named by its logits at 256 px
    ngf: int = 64  # channels after the generator's first convolution
    ndf: int = 64  # channels after the discriminator's first convolution
    depth: int = 0  # halvings in the U-Net; 0 = as many as `size` allows, at most 8
    dropout: float = 0.5  # on the three innermost decoder blocks
    norm_stats: str = "running"  # BatchNorm at test time: running statistics | batch (pix2pix's test mode)
    init: str = "normal"  # normal: N(0, 0.02), pix2pix's own | default: PyTorch's
    # optimisation
    epochs: int = 200  # passes over the training images
    batch_size: int = 16  # images per step
    lr: float = 2e-4  # Adam's step size, both networks
    beta1: float = 0.5  # Adam's decay of the mean
    beta2: float = 0.999  # Adam's decay of the square
    schedule: str = "constant"  # constant | linear: constant for half of the epochs, then down to 0
    gan_mode: str = "vanilla"  # vanilla (BCE) | lsgan (MSE) | hinge
    lambda_gan: float = 1.0  # weight of the adversarial term in the generator's loss
    lambda_l1: float = 100.0  # weight of the L1 term in the generator's loss
    ema: float = 0.0  # decay per step of the averaged generator that is saved for use; 0 = off
    precision: str = "auto"  # auto | fp32 | bf16 | fp16 (CUDA, with gradient scaling)
    compile: bool = False  # torch.compile both networks: about a minute to start, then faster
    seed: int = 42  # of weights, shuffling, cropping, flipping and dropout
    # intervals
    save_every: int = 5  # epochs between checkpoints
    log_every: int = 50  # steps between status lines
    samples: int = 6  # validation images on each sample sheet

    def __post_init__(self) -> None:
        for key, kind in get_type_hints(Recipe).items():
            if kind is float and isinstance(getattr(self, key), int):
                object.__setattr__(self, key, float(getattr(self, key)))
            if not isinstance(getattr(self, key), kind):
                raise ValueError(f"{key} must be {kind.__name__}, got {getattr(self, key)!r}")
        for key, choices in CHOICES.items():
            _require(getattr(self, key) in choices, key, self, f"one of {' '.join(choices)}")
        for key in UNIT_INTERVAL:
            _require(0 <= getattr(self, key) < 1, key, self, "in [0, 1)")
        _require(0 <= self.flip <= 1, "flip", self, "in [0, 1]")
        for key in POSITIVE:
            _require(0 < getattr(self, key) < math.inf, key, self, "greater than 0")
        for key in NOT_NEGATIVE:
            _require(0 <= getattr(self, key) < math.inf, key, self, "at least 0")
        smallest = SMALLEST[self.discriminator]
        _require(self.size >= smallest, "size", self, f"at least {smallest} for {self.discriminator}")
        if self.load_size == 0:
            object.__setattr__(self, "load_size", self.size)
        if self.depth == 0:
            _require(self.size % MULTIPLE == 0, "size", self, f"a multiple of {MULTIPLE} (or set depth)")
            object.__setattr__(self, "depth", _deepest(self.size))
        _require(self.load_size >= self.size, "load_size", self, f"at least size ({self.size})")
        deep_enough = 2 <= self.depth <= MAX_DEPTH and self.size % 2**self.depth == 0
        _require(deep_enough, "depth", self, f"2 to 8 with size a multiple of 2^depth (size is {self.size})")


def _require(ok: bool, key: str, recipe: Recipe, wanted: str) -> None:
    if not ok:
        raise ValueError(f"{key} must be {wanted}, got {getattr(recipe, key)!r}")


def _deepest(size: int) -> int:
    """Return how often size can be halved without a remainder, at most 8 times."""
    return next((n for n in range(MAX_DEPTH, 0, -1) if size % 2**n == 0), 0)


# What each published system changes of the defaults above.
RECIPES: dict[str, dict[str, Any]] = {
    # The embedded scenes, minutes on two CPU cores.
    "demo": dict(
        size=128, flip=0.5, ngf=32, ndf=16, depth=5, dropout=0.0, init="default", epochs=20, batch_size=8,
        lr=2e-3, schedule="linear", lambda_gan=0.05, ema=0.99, save_every=5, log_every=100,
    ),
    # Photo -> colour in Lab. Published: 950 epochs, images squashed to the square; flips from epoch 350 on.
    "coco": dict(flip=0.5, epochs=950, save_every=25, init="default"),
    # Sketch -> colour in RGB. Published: 150 epochs, a checkpoint every 10, no augmentation.
    "anime": dict(
        input="sketch", output="rgb", generator="unet-reflect", discriminator="patch26",
        epochs=150, save_every=10, init="default",
    ),
}  # fmt: skip


def closest(name: str, names: Sequence[str]) -> str:
    """Return the end of an error message: the nearest known name and the list of all."""
    near = difflib.get_close_matches(name, names, n=1)
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


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Turn ["lr=1e-3", "compile=true"] into typed values for make_recipe.

    Raises:
        ValueError: no "=", an unknown field (naming the closest), or text that is not of the field's type.
    """
    kinds = get_type_hints(Recipe)
    del kinds["name"]
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


# The command line: one option means the same in every stage.
DataOption = Annotated[str | None, typer.Option(metavar="PATH|NAME", help="Image folder, or demo.")]
RunOption = Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder.")]
EpochOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="One saved epoch; default: the last.")
]
AllEpochsOption = Annotated[bool, typer.Option("--all-epochs", help="Every saved epoch.")]
DeviceOption = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where the networks run.")]


UsageError = typer.BadParameter.__bases__[0]  # click's, wherever this version of typer keeps it


def command(main: Callable[..., object]) -> None:
    """Run a stage's main from the command line. A user's mistake ends in one sentence and exit code 2.

    A mistake is an unknown option, a ValueError that our own code raises, or a file that the system refuses;
    a ValueError out of a library is a bug and keeps its traceback.
    """
    app = typer.Typer(add_completion=False)
    app.command()(main)
    try:
        app(standalone_mode=False)
    except UsageError as error:
        _quit(error.format_message(), 2)
    except (ValueError, OSError) as error:
        frame = error.__traceback__
        while frame and frame.tb_next:
            frame = frame.tb_next
        ours = frame is not None and Path(frame.tb_frame.f_code.co_filename).resolve().parent == ROOT
        if not ours and getattr(error, "filename", None) is None:
            raise
        _quit(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        _quit("interrupted; what was saved before is kept", 130)


def _quit(sentence: str, code: int) -> None:
    print(f"{Path(sys.argv[0]).name}: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(code)
