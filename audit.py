"""Loss audit: does every term of a recipe's loss reach the network that it should train?

    python train.py --recipe manga --data panels/ --audit

Two published systems trained for weeks with a term whose gradient never arrived.
"""

import math

import torch
from torch import Tensor, nn

from config import Recipe
from gan import Batch, Training, discriminator_terms, generator_terms


def end_weights(network: nn.Module) -> list[nn.Parameter]:
    """Return the trained weights of a network's last and first layer."""
    weights = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
    return [weights[-1], weights[0]]


def audit(training: Training, batch: Batch, recipe: Recipe) -> dict[str, tuple[float, float, float]]:
    """Return every term's value, and the norm of its gradient at the last and at the first layer.

    The terms of both stages are looked at, in float32; G_ terms at the generator, D_ at the discriminator.
    """
    training.epoch = recipe.pretrain_epochs + 1
    plain = torch.autocast(batch.x.device.type, enabled=False)
    fake = training.generator(batch.x)  # (N, Cy, S, S)
    terms = generator_terms(training, batch, fake, recipe, plain)
    if training.is_adversarial(recipe):
        terms |= discriminator_terms(training, batch, fake, recipe, plain)

    def norms(name: str, value: Tensor) -> list[float]:
        network = training.generator if name.startswith("G_") else training.discriminator
        if not value.requires_grad:
            return [0.0, 0.0]
        found = torch.autograd.grad(value, end_weights(network), retain_graph=True, allow_unused=True)
        return [0.0 if grad is None else float(grad.norm()) for grad in found]

    return {name: (float(value.detach()), *norms(name, value)) for name, value in terms.items()}


def failures(results: dict[str, tuple[float, float, float]], weights: dict[str, float]) -> list[str]:
    """Return the terms that have a weight but no value, or whose value or gradient is zero or not finite."""
    alive = [
        name
        for name, (value, *norms) in results.items()
        if math.isfinite(value) and all(0 < norm < math.inf for norm in norms)
    ]
    return [name for name in weights if name not in alive]


def table(results: dict[str, tuple[float, float, float]], weights: dict[str, float]) -> str:
    """Return one line per term."""
    lines = [f"{'term':<14}{'weight':>10}{'value':>14}{'|grad| last':>14}{'|grad| first':>14}"]
    for name, numbers in results.items():
        lines.append(f"{name:<14}{weights[name]:>10.4g}" + "".join(f"{n:>14.4g}" for n in numbers))
    return "\n".join(lines)
