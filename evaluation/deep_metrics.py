"""Metrics that use a network: LPIPS, Frechet distances, KID, a classifier's accuracy; which metrics there are.

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
from scipy.stats import norm
from torch import Tensor

from config import METRICS, UserError
from data import ImageSet
from evaluation.classifier import (
    IMAGENET,
    Classifier,
    imagenet_lite0,
    imagenet_name,
    label_ids,
    load_classifier,
    pick_checkpoint,
    topk_correct,
)  # fmt: skip
from evaluation.metrics import MIN_SIZE, PER_IMAGE, Metric, Pictures
from evaluation.scores import CONFIDENCE, SEED, Score
from imaging.files import read_image
from models import LiteClassifier, LPIPSFeatures
from runtime.progress import track
from runtime.weights import file_hash, find_weights, load_weights

# metric -> its network, a key of weights.WEIGHTS
NETWORKS = {
    "lpips_alex": "alexnet", "lpips_vgg": "vgg16", "fid": "inception", "kid": "inception", "frechet_lite0": "lite0",
}  # fmt: skip
DEEP_MIN_SIZE = {"lpips_alex": 31, "lpips_vgg": 16}  # px: smaller images have no pixel left after pooling
MIN_IMAGES = {"fid": 256, "kid": 32, "frechet_lite0": 32}  # fewer show noise
BATCH = 32  # images per forward of Lite0
FILES = 128  # decoded at a time for features
RESAMPLES = 20  # for the standard error of a Frechet distance

Features = NDArray[np.float32]  # (N, D)
FolderMetric = Callable[[Features, Features], Score]  # (ground truth, outputs) -> score; may be NaN


class LPIPS:
    """Learned perceptual image patch similarity, a distance of AlexNet's or VGG-16's features.

    0 for equal images, seldom above 1; lower is better. Linear layers of version 0.1, as in torchmetrics.
    Source: Zhang et al., "The unreasonable effectiveness of deep features", arXiv 1801.03924.
    """

    def __init__(self, net: str, folder: Path | None, device: torch.device, download: bool) -> None:
        """Load `net` (alex or vgg). Raises UserError where its weights cannot be had."""
        self.name = f"lpips_{net}"
        weights = load_weights(NETWORKS[self.name], folder, download=download)  # first: the network takes seconds
        self.network = LPIPSFeatures(net)
        self.network.load_published(weights)
        self.network.to(device)

    def __call__(self, target: Pictures, output: Pictures) -> Tensor:
        """Return the distance of each pair (N,)."""
        sides = (side.keep(self.name, partial(self.network, side.rgb / 255.0)) for side in (target, output))
        layers = [(a - b).square().mean((1, 2, 3)) for a, b in zip(*sides, strict=True)]  # each (N,)
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
        starts = range(0, len(files), FILES)
        for start in track(starts, "features", len(starts)):
            names = [str(path) for path in files[start : start + FILES]]
            rows[start : start + FILES] = get_files_features(
                names, self.network, num_workers=0, batch_size=32, device=self.device, verbose=False
            )
        return rows


class Lite0:
    """Image files -> the features before EfficientNet-Lite0's classes, of images resized to 224 px."""

    dimensions = LiteClassifier.WIDTH

    def __init__(self, folder: Path | None, device: torch.device, download: bool) -> None:
        """Load the network. Raises UserError where its weights cannot be had."""
        self.classifier, self.device = imagenet_lite0(folder, device, download), device

    @torch.inference_mode()
    def features(self, files: Sequence[Path]) -> Features:
        """Return (N, 1280) float32."""
        rows = np.empty((len(files), self.dimensions), np.float32)
        starts = range(0, len(files), BATCH)
        for start in track(starts, "features", len(starts)):
            images = [torch.from_numpy(read_image(path)) for path in files[start : start + BATCH]]  # of one size
            x = self.classifier.prepare(torch.stack(images).permute(0, 3, 1, 2).to(self.device))
            rows[start : start + BATCH] = self.classifier.network.features(x).float().cpu().numpy()
        return rows


def moments(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and sample covariance of features (N, D); reads a part of the rows at a time."""
    mean = features.mean(0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), FILES):
        offsets = features[start : start + FILES] - mean
        covariance += offsets.T @ offsets
    return mean, covariance / (len(features) - 1)


def fid(targets: Features, outputs: Features) -> Score:
    """Return the Frechet Inception distance, from 0, lower is better; NaN where it cannot be computed.

    It is biased upwards on few images. Source: Heusel et al., arXiv 1706.08500; the distance is clean-fid's.
    """
    from cleanfid.fid import frechet_distance

    both = *moments(targets), *moments(outputs)
    try:
        return Score(float(np.maximum(frechet_distance(*both), 0.0)))  # NaN stays NaN
    except ValueError:  # the product of the covariances has no real square root
        return Score(math.nan)


def frechet(targets: Features, outputs: Features) -> float:
    """Return the Frechet distance of two Gaussians with the means and sample covariances of features (N, D).

    The trace of the root of the product of two covariances is the sum of the singular values of A B^T / (N - 1),
    where A and B are features less their means; triangular factors of A^T and B^T have the same and are smaller.
    """
    sides = [features.astype(np.float64) for features in (targets, outputs)]
    means = [side.mean(0) for side in sides]
    a, b = (side - mean for side, mean in zip(sides, means, strict=True))
    if len(a) > a.shape[1]:
        a, b = (np.linalg.qr(side, "r") for side in (a, b))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    spread = (np.square(a).sum() + np.square(b).sum() - 2 * cross) / (len(targets) - 1)
    return float(np.square(means[0] - means[1]).sum() + spread)


def frechet_lite0(targets: Features, outputs: Features) -> Score:
    """Return the Frechet distance of Lite0's features, lower is better, with a normal interval by bootstrap.

    It is biased upwards on few images. It is not FID, which takes Inception's features. Source of the distance:
    Heusel et al., arXiv 1706.08500.
    """
    rng, count = np.random.default_rng(SEED), len(targets)
    draws = (rng.integers(count, size=count) for _ in range(RESAMPLES))
    error = float(np.std([frechet(targets[ids], outputs[ids]) for ids in draws], ddof=1))
    found = frechet(targets, outputs)
    reach = float(norm.ppf((1 + CONFIDENCE) / 2)) * error
    return Score(found, error, max(0.0, found - reach), found + reach)


def kid(targets: Features, outputs: Features) -> Score:
    """Return the kernel Inception distance, about 0 for equal distributions, lower is better; unbiased.

    Source: Binkowski et al., arXiv 1801.01401; the distance is clean-fid's, always of the same subsets.
    """
    from cleanfid.fid import kernel_distance

    before = np.random.get_state()  # noqa: NPY002 - clean-fid draws from NumPy's global generator
    try:
        np.random.seed(0)  # noqa: NPY002
        return Score(float(kernel_distance(targets, outputs)))
    finally:
        np.random.set_state(before)  # noqa: NPY002


DISTANCES = {"fid": (Inception, fid), "kid": (Inception, kid), "frechet_lite0": (Lite0, frechet_lite0)}


@dataclass
class MetricSet:
    """Every metric that is available here, ready to use, and for every other one the reason why it is not."""

    device: torch.device
    per_image: dict[str, Metric] = field(default_factory=dict)
    of_truth: dict[str, Metric] = field(default_factory=dict)  # by which the ground truth is scored, too
    per_folder: dict[str, FolderMetric] = field(default_factory=dict)
    extractors: dict[str, Inception | Lite0] = field(default_factory=dict)  # network -> features for per_folder
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
        classifier: a run of train_classifier.py, or imagenet-lite0.
        folder: of weight files; None = torch.hub's cache.

    Raises:
        UserError: a required metric is not available, or the classifier does not know the images' classes.
    """
    metrics = MetricSet(device)
    if classifier is not None:
        add_classifier(metrics, images, classifier, folder)
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
    for name in metrics.per_folder.keys() & {"fid", "frechet_lite0"}:
        least = metrics.extractors[NETWORKS[name]].dimensions
        if len(images) < least:
            metrics.notes.append(
                f"{name} of {len(images):,} images is biased upwards: compare it with {name} of as many images only "
                f"({least:,} are the least that is usual)"
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
            raise UserError(f"it needs a classifier of these pictures' classes; {hint}, or {IMAGENET}")
        return
    if name not in NETWORKS:
        raise NotImplementedError(f"{name} is in config.METRICS, but nothing computes it; see docs/design.md")
    try:
        if name in DISTANCES:
            build, distance = DISTANCES[name]
            if NETWORKS[name] not in metrics.extractors:
                metrics.extractors[NETWORKS[name]] = build(folder, metrics.device, download)
            metrics.per_folder[name] = distance
        else:
            metrics.per_image[name] = LPIPS(name.removeprefix("lpips_"), folder, metrics.device, download)
    except UserError as error:
        hint = "" if download or folder else f"; or have it downloaded: --metric {name}"
        raise UserError(f"{error}{hint}") from None
    metrics.weights[NETWORKS[name]] = file_hash(find_weights(NETWORKS[name], folder, download=False))


def add_classifier(metrics: MetricSet, images: ImageSet, classifier: Path, folder: Path | None) -> None:
    """Make top1 and top5 available. Raises UserError where the classifier does not know the classes."""
    labels = images.labels
    if str(classifier) == IMAGENET:
        network, file = imagenet_lite0(folder, metrics.device), find_weights("lite0", folder)
        names = {label: imagenet_name(label, network.classes) for label in {*labels}}
        labels = [names[label] for label in labels]
    else:
        network, file = load_classifier(classifier, metrics.device), pick_checkpoint(classifier)
    metrics.labels = torch.tensor(label_ids(labels, network.classes))
    metrics.weights["classifier"] = file_hash(file)
    metrics.of_truth = {"top1": TopK(network, 1), "top5": TopK(network, 5)}
    metrics.per_image |= metrics.of_truth
