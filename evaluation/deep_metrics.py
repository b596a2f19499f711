"""Metrics that use a network: LPIPS, FID, KID, a classifier's accuracy; and which metrics are available.

Weights come through runtime.weights. Where they are missing there is a reason, never a number.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from config import METRICS, UserError
from data import ImageSet
from evaluation.classifier import Classifier, label_ids, load_classifier, pick_checkpoint, topk_correct
from evaluation.metrics import MIN_SIZE, PER_IMAGE, Metric, Pictures
from models import LPIPSFeatures
from runtime.weights import file_hash, find_weights, load_weights

# metric -> its network, a key of weights.WEIGHTS
NETWORKS = {"lpips_alex": "alexnet", "lpips_vgg": "vgg16", "fid": "inception", "kid": "inception"}
DEEP_MIN_SIZE = {"lpips_alex": 31, "lpips_vgg": 16}  # px: smaller images have no pixel left after pooling
MIN_IMAGES = {"fid": 256, "kid": 32}  # with fewer, noise is larger than the differences between epochs
FILES = 128  # decoded at a time for FID

Features = NDArray[np.float32]  # (N, D)
FolderMetric = Callable[[Features, Features], float]  # (ground truth, outputs) -> number; may be NaN


class LPIPS:
    """Learned perceptual image patch similarity, a distance of AlexNet's or VGG-16's features.

    0 for equal images, seldom above 1; lower is better. Linear layers of version 0.1, as in torchmetrics.
    Source: Zhang et al., "The unreasonable effectiveness of deep features", arXiv 1801.03924.
    """

    def __init__(self, net: str, folder: Path | None, device: torch.device, download: bool) -> None:
        """Load `net` (alex or vgg). Raises UserError where its weights cannot be had."""
        self.name = f"lpips_{net}"
        self.network = LPIPSFeatures(net)
        self.network.load_published(load_weights(NETWORKS[self.name], folder, download=download))
        self.network.to(device)

    def __call__(self, target: Pictures, output: Pictures) -> Tensor:
        """Return the distance of each pair (N,)."""
        sides = (side.keep(self.name, partial(self.network, side.rgb / 255.0)) for side in (target, output))
        layers = [(a - b).square().sum(1).mean((1, 2)) / a.size(1) for a, b in zip(*sides, strict=True)]  # each (N,)
        return torch.stack(layers).sum(0).double()


class TopK:
    """Whether the true class is among the k most likely ones of a classifier, 0 or 1; higher is better.

    Source: Zhang, Isola and Efros, "Colorful image colorization", arXiv 1603.08511 (semantic
    interpretability); the classes are those of the folders.
    """

    def __init__(self, classifier: Classifier, k: int) -> None:
        self.classifier, self.k = classifier, k

    def __call__(self, target: Pictures, output: Pictures) -> Tensor:
        """Return 1.0 or 0.0 for each output (N,); `target` has the labels."""
        logits = output.keep("logits", lambda: self.classifier(output.rgb))  # (N, C)
        return topk_correct(logits, target.labels, self.k).double()


class Inception:
    """Image files -> Inception's features, as clean-fid computes them.

    Source: Parmar, Zhang and Zhu, "On aliased resizing and surprising subtleties in GAN evaluation",
    arXiv 2104.11222.
    """

    dimensions = 2048  # of the features; the covariance of fewer images than that is singular

    def __init__(self, folder: Path | None, device: torch.device, download: bool) -> None:
        """Load the network. Raises UserError where its weights cannot be had."""
        from cleanfid.inception_torchscript import InceptionV3W  # seconds, which other metrics save

        path = find_weights("inception", folder, download=download)
        self.network, self.device = InceptionV3W(str(path.parent), download=False).to(device), device

    def features(self, files: Sequence[Path]) -> Features:
        """Return (N, 2048) float32, in a temporary file and not in memory."""
        from cleanfid.fid import get_files_features

        with tempfile.TemporaryFile() as file:
            rows = np.memmap(file, np.float32, "w+", shape=(len(files), self.dimensions))
        for start in range(0, len(files), FILES):
            names = [str(path) for path in files[start : start + FILES]]
            rows[start : start + FILES] = get_files_features(
                names, self.network, num_workers=0, batch_size=32, device=self.device, verbose=False
            )
        return rows


def moments(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and sample covariance of features (N, D); reads a part of the rows at a time."""
    mean = features.mean(0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), FILES):
        offsets = features[start : start + FILES] - mean
        covariance += offsets.T @ offsets
    return mean, covariance / (len(features) - 1)


def fid(targets: Features, outputs: Features) -> float:
    """Return the Frechet Inception distance, from 0, lower is better; NaN where it cannot be computed.

    It is biased upwards on few images. Source: Heusel et al., arXiv 1706.08500; the distance is clean-fid's.
    """
    from cleanfid.fid import frechet_distance

    both = *moments(targets), *moments(outputs)
    try:
        return float(np.maximum(frechet_distance(*both), 0.0))  # NaN stays NaN
    except ValueError:  # the product of the covariances has no real square root
        return math.nan


def kid(targets: Features, outputs: Features) -> float:
    """Return the kernel Inception distance, about 0 for equal distributions, lower is better; unbiased.

    Source: Binkowski et al., arXiv 1801.01401; the distance is clean-fid's, always of the same subsets.
    """
    from cleanfid.fid import kernel_distance

    before = np.random.get_state()  # noqa: NPY002 - clean-fid draws from NumPy's global generator
    try:
        np.random.seed(0)  # noqa: NPY002
        return kernel_distance(targets, outputs)
    finally:
        np.random.set_state(before)  # noqa: NPY002


@dataclass
class MetricSet:
    """Every metric that is available here, ready to use, and for every other one the reason why it is not."""

    device: torch.device
    per_image: dict[str, Metric] = field(default_factory=dict)
    of_truth: dict[str, Metric] = field(default_factory=dict)  # by which the ground truth is scored, too
    per_folder: dict[str, FolderMetric] = field(default_factory=dict)
    inception: Inception | None = None
    labels: Tensor | None = None  # (N,) int64, the images' classes, for the classifier
    missing: dict[str, str] = field(default_factory=dict)  # metric -> "unavailable: ..."
    weights: dict[str, str] = field(default_factory=dict)  # network -> SHA-256 of its file
    notes: list[str] = field(default_factory=list)


def load_metrics(
    images: ImageSet,
    size: int,
    device: torch.device,
    required: Sequence[str] = (),
    classifier: Path | None = None,
    folder: Path | None = None,
) -> MetricSet:
    """Load every metric that is available.

    Args:
        images: to be scored; their number and classes decide, too.
        size: px, side of the images.
        required: metrics whose networks are downloaded unless they are there already.
        classifier: a run of train_classifier.py.
        folder: of weight files; None = torch.hub's cache.

    Raises:
        UserError: a required metric is not available, or the classifier does not know the images' classes.
    """
    metrics = MetricSet(device)
    if classifier is not None:
        add_classifier(metrics, images, classifier)
    for name in METRICS:
        least, fewest = (MIN_SIZE | DEEP_MIN_SIZE).get(name, 1), MIN_IMAGES.get(name, 1)
        try:
            if size < least:
                raise UserError(f"pictures of {size} px, at least {least} are needed")
            if len(images) < fewest:
                raise UserError(f"{len(images)} test images, at least {fewest} are needed; test on more")
            add_metric(metrics, name, folder, download=name in required)
        except UserError as error:
            metrics.missing[name] = f"unavailable: {error}"
            if name in required:
                raise UserError(f"{name} {metrics.missing[name]}") from None
    metrics.per_image["colorfulness_truth"] = PER_IMAGE["colorfulness_truth"]
    if "fid" in metrics.per_folder and len(images) < Inception.dimensions:
        metrics.notes.append(
            f"fid of {len(images):,} images is biased upwards: compare it with fid of as many images only "
            f"({Inception.dimensions:,} are the least that is usual)"
        )
    return metrics


def add_metric(metrics: MetricSet, name: str, folder: Path | None, download: bool) -> None:
    """Make a metric available. Raises UserError where its network or a classifier is missing."""
    if name in PER_IMAGE:
        metrics.per_image[name] = PER_IMAGE[name]
        return
    if name in ("top1", "top5"):
        if name not in metrics.per_image:
            hint = "train one with python train_classifier.py and name its run with --classifier"
            raise UserError(f"it needs a classifier of these pictures' classes; {hint}")
        return
    if name not in NETWORKS:
        raise NotImplementedError(f"{name} is in config.METRICS, but nothing computes it; see docs/design.md")
    try:
        if name in ("fid", "kid"):
            metrics.inception = metrics.inception or Inception(folder, metrics.device, download)
            metrics.per_folder[name] = fid if name == "fid" else kid
        else:
            metrics.per_image[name] = LPIPS(name.removeprefix("lpips_"), folder, metrics.device, download)
    except UserError as error:
        hint = "" if download or folder else f"; or have it downloaded: --metric {name}"
        raise UserError(f"{error}{hint}") from None
    metrics.weights[NETWORKS[name]] = file_hash(find_weights(NETWORKS[name], folder, download=False))


def add_classifier(metrics: MetricSet, images: ImageSet, classifier: Path) -> None:
    """Make top1 and top5 available. Raises UserError where the classifier does not know the classes."""
    network = load_classifier(classifier, metrics.device)
    metrics.labels = torch.tensor(label_ids(images.labels, network.classes))
    metrics.weights["classifier"] = file_hash(pick_checkpoint(classifier))
    metrics.of_truth = {"top1": TopK(network, 1), "top5": TopK(network, 5)}
    metrics.per_image |= metrics.of_truth
