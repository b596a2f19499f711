"""Losses by name. Functions return unweighted terms; total() adds them up with a recipe's weights.

Sources: Isola et al., arXiv 1611.07004 (BCE + L1); Mao et al., "Least squares GAN", arXiv 1611.04076;
Lim and Ye, "Geometric GAN", arXiv 1705.02894 (hinge); Salimans et al., arXiv 1606.03498 (label smoothing);
Johnson et al., "Perceptual losses", arXiv 1603.08155.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXEL = {"G_l1": F.l1_loss, "G_mse": F.mse_loss}  # term -> loss between what was generated and the truth


def gan_loss(logits: Tensor, real: bool, gan_mode: str, label_real: float = 1.0) -> Tensor:
    """Return how far a discriminator's logits (any shape) are from the verdict `real`, as a scalar.

    gan_mode: vanilla (BCE with logits) | lsgan (MSE) | hinge (the discriminator's half, without labels).
    label_real: what counts as real; below 1 the labels are smoothed.
    """
    logits = logits.float()
    if gan_mode == "hinge":
        return F.relu(1.0 - logits if real else 1.0 + logits).mean()
    verdict = torch.full_like(logits, label_real if real else 0.0)
    if gan_mode == "lsgan":
        return F.mse_loss(logits, verdict)
    return F.binary_cross_entropy_with_logits(logits, verdict)


def discriminator_losses(
    real_logits: Tensor, fake_logits: Tensor, gan_mode: str, label_real: float = 1.0
) -> dict[str, Tensor]:
    """Return D_real and D_fake; the discriminator minimises half of their sum."""
    return {
        "D_real": gan_loss(real_logits, True, gan_mode, label_real),
        "D_fake": gan_loss(fake_logits, False, gan_mode),
    }


def adversarial_loss(fake_logits: Tensor, gan_mode: str, label_real: float = 1.0) -> Tensor:
    """Return how far the discriminator is from taking the generated images for real: the generator's half."""
    if gan_mode == "hinge":
        return -fake_logits.float().mean()
    return gan_loss(fake_logits, True, gan_mode, label_real)


def perceptual_loss(extractor: nn.Module, fake_rgb: Tensor, real_rgb: Tensor) -> Tensor:
    """Return the sum over an extractor's features of the MSE between generated and true images.

    fake_rgb, real_rgb: (N, 3, H, W) in [0, 1]. No gradient is kept for the true ones.
    """
    with torch.no_grad():
        real = extractor(real_rgb)
    pairs = zip(extractor(fake_rgb), real, strict=True)
    return torch.stack([F.mse_loss(ours.float(), truth.float()) for ours, truth in pairs]).sum()


def total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of all terms. Raises KeyError for a term without a weight."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()
