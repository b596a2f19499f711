"""What several test files use."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from config import ROOT, Recipe
from imaging import color
from models import DISCRIMINATORS, GENERATORS, FrozenFeatures, fit_networks
from runtime import atomic, run_folder
from training.gan import Batch

CPU = torch.device("cpu")
# options of train.main for a network that trains within a second
TINY = {"size": 32, "batch_size": 4, "set_": ["ngf=4", "ndf=4", "log_every=1", "samples=2"], "device": "cpu"}
NETWORKS = {**GENERATORS, **DISCRIMINATORS}
X_Y_CHANNELS = {  # of the published networks
    "unet-reflect": (3, 3), "unet-bn": (1, 3), "unet-att": (1, 3), "unet-ext": (1, 3), "unet-att-ext": (1, 3),
    "convgen": (1, 3), "patch26": (3, 3), "patch15-bias": (1, 3), "image-rgb": (1, 3),
}  # fmt: skip


class Glance(FrozenFeatures):
    """Stands for the Danbooru network: the mean colour, over and over."""

    WIDTH = 512

    def __init__(self) -> None:
        super().__init__(nn.Identity(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def forward(self, rgb01: Tensor) -> list[Tensor]:
        return [self.normalise(rgb01).mean((2, 3)).repeat(1, 171)[:, :512]]


def build_network(
    name: str, width: int = 4, depth: int = 4, dropout: float = 0.5, attention_depth: int = 0
) -> nn.Module:
    """Build a network with its published channels and seeded weights."""
    torch.manual_seed(0)
    network, channels = NETWORKS[name], X_Y_CHANNELS.get(name, (1, 2))
    if name in DISCRIMINATORS or network.halvings:
        return network.build(*channels, width)
    return network.build(*channels, width, depth=depth, dropout=dropout, attention_depth=attention_depth)


def network_inputs(name: str, size: int = 0, images: int = 2) -> tuple[Tensor, ...]:
    """Return what a network takes: x, and y for a discriminator."""
    noise, side = torch.Generator().manual_seed(1), size or max(64, NETWORKS[name].smallest)
    channels = X_Y_CHANNELS.get(name, (1, 2))[: 1 if name in GENERATORS else 2]
    return tuple(torch.rand(images, count, side, side, generator=noise) * 2 - 1 for count in channels)


def saved_weights(run: Path, epoch: int) -> dict[str, Tensor]:
    """Return the weights of one saved epoch of a colouriser or of a classifier."""
    payload = atomic.load(run_folder.epoch_path(run, epoch))
    return payload["generator"] if "generator" in payload else payload["state"]


def same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Tell whether two state dicts are the same bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run_stage(name: str, *args: object) -> int:
    """Run a stage as a command, within this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
        try:
            runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


class MeanColor(FrozenFeatures):
    """An extractor that sees a picture's local mean colour; `dead` forgets where it came from."""

    def __init__(self, dead: bool = False) -> None:
        super().__init__(nn.AvgPool2d(4), (0.0,) * 3, (1.0,) * 3)
        self.dead = dead

    def forward(self, rgb01: Tensor) -> list[Tensor]:
        seen = self.body(self.normalise(rgb01))
        return [seen.detach() if self.dead else seen]


def tiny_recipe(**fields: Any) -> Recipe:
    """Return a recipe of small networks at 32 px."""
    return fit_networks(Recipe("x", **{"size": 32, "ngf": 4, "ndf": 4, "seed": 7, **fields}))


def noise_batch(recipe: Recipe, seed: int = 0, images: int = 2) -> Batch:
    """Return a batch of random pictures."""
    noise, shape = torch.Generator().manual_seed(seed), (images, 3, recipe.size, recipe.size)
    source, target = (torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8) for _ in range(2))
    return Batch(color.encode(source, recipe.input), color.encode(target, recipe.output), target)
