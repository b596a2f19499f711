"""Losses by name. Functions return unweighted terms; total() adds them up with a recipe's weights.

Sources: Isola et al., arXiv 1611.07004 (BCE + L1); Mao et al., "Least squares GAN", arXiv 1611.04076;
Lim and Ye, "Geometric GAN", arXiv 1705.02894 (hinge).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def gan_loss(logits: Tensor, real: bool, gan_mode: str) -> Tensor:
    """Return how far patch logits (any shape) are from the verdict `real`, as a scalar.

    gan_mode: vanilla (BCE with logits) | lsgan (MSE) | hinge (the discriminator's half).
    """
    logits = logits.float()
    if gan_mode == "hinge":
        return F.relu(1.0 - logits if real else 1.0 + logits).mean()
    verdict = torch.full_like(logits, float(real))
    if gan_mode == "lsgan":
        return F.mse_loss(logits, verdict)
    return F.binary_cross_entropy_with_logits(logits, verdict)


def discriminator_losses(real_logits: Tensor, fake_logits: Tensor, gan_mode: str) -> dict[str, Tensor]:
    """Return D_real and D_fake; the discriminator minimises half of their sum."""
    return {"D_real": gan_loss(real_logits, True, gan_mode), "D_fake": gan_loss(fake_logits, False, gan_mode)}


def generator_losses(fake_logits: Tensor, fake: Tensor, y: Tensor, gan_mode: str) -> dict[str, Tensor]:
    """Return G_gan and G_l1 of the generated y, fake (N, C, H, W), against the true y."""
    adversarial = (
        -fake_logits.float().mean() if gan_mode == "hinge" else gan_loss(fake_logits, True, gan_mode)
    )
    return {"G_gan": adversarial, "G_l1": F.l1_loss(fake.float(), y)}


def total(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Return the weighted sum of all terms. Raises KeyError for a term without a weight."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()
