"""How a classifier learns: all that changes, one step, and how often it is right about held-out pictures."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import checkpoint
from config import ClassifierRecipe
from data import ImageSet
from gan import REMEDY, pick_precision
from recognition import Classifier, build_classifier, topk_correct
from stats import wilson

FORMAT = "tinct-classifier-state-1"


@dataclass
class Training:
    """All that changes while training, and so all that a resume restores; and where and how it runs."""

    classifier: Classifier
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    device: torch.device
    precision: str  # fp32 | bf16 | fp16
    epoch: int = 1  # the one under way, from 1
    step: int = 0  # batches done in this epoch
    steps: int = 0  # batches done in all

    def progress(self) -> dict[str, int]:
        """Return epoch, step and steps."""
        return {"epoch": self.epoch, "step": self.step, "steps": self.steps}

    def state_dict(self) -> dict[str, Any]:
        """Return what state.pt holds."""
        return {
            "format": FORMAT,
            "network": self.classifier.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **self.progress(),
            **checkpoint.rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what state_dict returned. Raises ValueError if it does not fit this classifier."""
        if state.get("format") != FORMAT:
            raise ValueError(f"state.pt is not a training state in the format {FORMAT}")
        try:
            self.classifier.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:  # one that was off has no state
                self.scaler.load_state_dict(state["scaler"])
        except (KeyError, RuntimeError, ValueError):
            raise ValueError("state.pt does not fit this classifier") from None
        self.epoch, self.step, self.steps = state["epoch"], state["step"], state["steps"]
        checkpoint.restore_rng(state)

    def check_finite(self) -> None:
        """Raise ValueError if a weight is not finite, before it is saved."""
        if not all(torch.isfinite(value).all() for value in self.classifier.network.state_dict().values()):
            raise ValueError(
                f"the classifier has weights that are not finite; nothing was overwritten: {REMEDY}"
            )


def build_training(recipe: ClassifierRecipe, classes: list[str], device: torch.device) -> Training:
    """Build classifier and optimiser from the recipe's seed."""
    precision = pick_precision(recipe.precision, device)
    torch.manual_seed(recipe.seed)
    classifier = build_classifier(recipe.network, classes, recipe.size, recipe.batch_size)
    classifier.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        classifier.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0, fused=device.type in ("cpu", "cuda"),
    )  # fmt: skip
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return Training(classifier, optimizer, scaler, device, precision)


def learning_rate(recipe: ClassifierRecipe, steps: int, done: int) -> float:
    """Return the step size after `done` of `steps` steps: up in a line, down as half a cosine."""
    progress = (done + 0.5) / steps
    if progress < recipe.warmup:
        return recipe.lr * progress / recipe.warmup
    return recipe.lr * (1 + math.cos(math.pi * (progress - recipe.warmup) / (1 - recipe.warmup))) / 2


def train_step(training: Training, image: Tensor, label: Tensor, smoothing: float) -> Tensor:
    """Update the classifier on one batch.

    Args:
        image: (N, 3, S, S) uint8, on the device.
        label: (N,) int64, on the device.
        smoothing: share of the target that is spread over all classes.

    Returns:
        the loss, a detached scalar on the device.
    """
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(training.precision)
    with torch.autocast(training.device.type, kind, training.precision != "fp32"):
        logits = training.classifier(image)  # (N, C)
    loss = F.cross_entropy(logits, label, label_smoothing=smoothing)
    training.scaler.scale(loss).backward()
    training.scaler.step(training.optimizer)
    training.optimizer.zero_grad()
    training.scaler.update()
    return loss.detach()


@torch.no_grad()
def validate(
    training: Training, recipe: ClassifierRecipe, images: ImageSet, labels: Tensor
) -> dict[str, float]:
    """Return the scores of the pictures' centre squares, in full precision, as eval.py asks."""
    training.classifier.eval()
    sums = []
    for start in range(0, len(images), recipe.batch_size):
        ids = list(range(start, min(start + recipe.batch_size, len(images))))
        _, image = images.gather(ids, recipe.load_size)
        logits = training.classifier(image.to(training.device, non_blocking=True))  # (N, C)
        label = labels[ids].to(training.device, non_blocking=True)
        loss = F.cross_entropy(logits, label, reduction="sum")
        sums.append(torch.stack([loss, *(topk_correct(logits, label, k).sum() for k in (1, 5))]))
    training.classifier.train()
    loss, *correct = torch.stack(sums).sum(0).tolist()
    scores = {"epoch": training.epoch, "val_loss": loss / len(images), "images": len(images)}
    for name, count in zip(("top1", "top5"), correct, strict=True):
        low, high = wilson(int(count), len(images))
        scores |= {name: count / len(images), f"{name}_low": low, f"{name}_high": high}
    return scores
