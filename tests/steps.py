"""A program for test_distributed.py: steps of a small GAN or classifier, alone or in several processes.

    python steps.py OUT batch|none STEPS [compiled]

Every process takes its share of the same batches of 8; the first writes the networks and the losses. `none` leaves
BatchNorm out, so that a step over several processes is the step of one. `compiled` takes the graph alone, without C++.
"""

import sys
from functools import partialmethod
from pathlib import Path

import torch
from helpers import CPU, noise_batch, tiny_recipe
from torch import nn

from config import ClassifierRecipe
from models import NORMS
from runtime import atomic, distributed
from runtime.cli import processes
from train_classifier import build_training
from train_classifier import train_step as classifier_step
from training.gan import Batch, build_gan, train_step

BATCH, LR = 8, 1e-4


def gan_steps(steps: int, compiled: bool) -> dict[str, object]:
    """Train a GAN; returns its networks and the losses of each step, means over the processes."""
    recipe = tiny_recipe(ema=0.9, lr=LR, depth=3, lambda_gan=1.0, lambda_l1=10.0)
    gan, losses = build_gan(recipe, CPU, "fp32", compiled=compiled), []
    gan.share()
    share = BATCH // distributed.world()
    own = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    for i in range(steps):
        whole = noise_batch(recipe, i % 20, BATCH)
        batch = Batch(whole.x[own], whole.y[own], whole.target[own])
        terms = train_step(gan, batch, recipe, adversarial=i > 1)  # the first two alone
        if i > 1:
            losses.append((distributed.add(torch.stack([*terms.values()])) / distributed.world()).tolist())
    networks = {name: getattr(gan, name).state_dict() for name in ("generator", "discriminator", "ema")}
    return {"losses": losses, **networks}


def classifier_steps(steps: int) -> dict[str, object]:
    """Train a classifier; returns it."""
    training = build_training(ClassifierRecipe("shufflenet_v2_x0_5", size=32, lr=0.01), list("abc"), CPU, "fp32")
    training.classifier_ddp = distributed.averaging(training.classifier)
    share = BATCH // distributed.world()
    own = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    for i in range(steps):
        noise = torch.Generator().manual_seed(i)
        image = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=noise)
        classifier_step(training, image[own], (torch.arange(BATCH) % 3)[own])
    return {"classifier": training.classifier.network.state_dict()}


if __name__ == "__main__":
    out, norm, steps, compiled = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), len(sys.argv) > 4
    nn.Module.compile = partialmethod(nn.Module.compile, backend="aot_eager")
    if norm == "none":
        nn.BatchNorm2d = NORMS["batch"] = lambda *_, **__: nn.Identity()
    with processes(True):
        found = gan_steps(steps, compiled) | classifier_steps(steps if norm == "none" else 1)
        parts = [found["generator"], found["ema"], found["discriminator"], found["classifier"]]
        sums = [float(value.double().sum()) for part in parts for value in part.values()]
        distributed.require_same({"networks": sums})  # bit for bit
        if not distributed.rank():
            atomic.save(out, found)
