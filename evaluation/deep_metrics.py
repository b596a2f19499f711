"""Metrics that look through a network: LPIPS, FID and KID, and how well a classifier recognises.

Weights come through features.find_weights; where they are missing there is a reason, never a number.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from cleanfid import fid as clean_fid
from cleanfid.inception_torchscript import InceptionV3W
from numpy.typing import NDArray
from torch import Tensor

from config import METRICS, UserError
from data import ImageSet
from evaluation.classifier import Classifier, label_ids, load_classifier, pick_checkpoint, topk_correct
from evaluation.metrics import MIN_SIZE, PER_IMAGE, Metric, Pictures
from runtime.weights import file_hash, find_weights, load_weights, weights_hash

# metric -> a key of features.WEIGHTS
WEIGHTS = {"lpips_alex": "alexnet", "lpips_vgg": "vgg16", "fid": "inception", "kid": "inception"}
DEEP_MIN_SIZE = {"lpips_alex": 31, "lpips_vgg": 16}  # px, below which the network has nothing left to pool
FEWEST = {"fid": 256, "kid": 32}  # images; with fewer, noise outweighs the differences they should show
USUAL_FID_IMAGES = 2048  # as many as the Inception network has features
FILES = 128  # decoded at a time for FID

Features = NDArray[np.float32]  # (N, D)


class LPIPS:
    """Learned perceptual image patch similarity: distance of AlexNet's or VGG-16's features, lower is better.

    0 for equal pictures, seldom above 1. Linear heads of version 0.1, as they come with torchmetrics.
    Source: Zhang et al., "The unreasonable effectiveness of deep features", arXiv 1801.03924.
    """

    def __init__(self, net: str, folder: Path | None, device: torch.device, download: bool) -> None:
        """Load `net` (alex or vgg). Raises UserError where its weights cannot be had."""
        from torchmetrics.functional.image.lpips import _LPIPS  # the network alone, without its download

        self.name = f"lpips_{net}"
        state = load_weights(WEIGHTS[self.name], folder, download=download)
        self.network = _LPIPS(net=net, pnet_rand=True).to(device)
        body = self.network.net
        body.load_state_dict(
            {name: state["features." + name.split(".", 1)[1]] for name in body.state_dict()}
        )  # slice1.0.weight <- features.0.weight

    def features(self, pictures: Pictures) -> list[Tensor]:
        """Return five layers (N, C, h, w), of unit length at every place; kept with the pictures."""

        def compute() -> list[Tensor]:
            x = self.network.scaling_layer(pictures.rgb / 127.5 - 1.0)
            layers = self.network.net(x)
            return [layer / (layer.square().sum(1, keepdim=True) + 1e-8).sqrt() for layer in layers]

        return pictures.keep(self.name, compute)

    def __call__(self, target: Pictures, output: Pictures) -> Tensor:
        """Return the distance of each pair (N,)."""
        pairs = zip(self.network.lins, self.features(target), self.features(output), strict=True)
        layers = [lin((a - b).square()).mean((1, 2, 3)) for lin, a, b in pairs]  # each (N,)
        return torch.stack(layers).sum(0).double()


class Recognised:
    """Whether a classifier finds the true class in its k first guesses, 0 or 1; higher is better.

    Source: Zhang, Isola and Efros, "Colorful image colorization", arXiv 1603.08511 (semantic
    interpretability); the pictures' classes are those of their folders.
    """

    def __init__(self, classifier: Classifier, k: int) -> None:
        self.classifier, self.k = classifier, k

    def __call__(self, target: Pictures, output: Pictures) -> Tensor:
        """Return 1.0 or 0.0 for each output (N,); the target carries the classes."""
        logits = output.keep("logits", lambda: self.classifier(output.rgb))  # (N, C)
        return topk_correct(logits, target.labels, self.k).double()


class Inception:
    """Folders of pictures -> Inception's features, as clean-fid computes them.

    Source: Parmar, Zhang and Zhu, "On aliased resizing and surprising subtleties in GAN evaluation",
    arXiv 2104.11222.
    """

    def __init__(self, folder: Path | None, device: torch.device, download: bool) -> None:
        """Load the network. Raises UserError where its weights cannot be had."""
        path = find_weights("inception", folder, download=download)
        self.network, self.device = InceptionV3W(str(path.parent), download=False).to(device), device

    def features(self, files: Sequence[Path]) -> Features:
        """Return (N, 2048) float32, in a temporary file and not in memory."""
        rows: Features | None = None
        for start in range(0, len(files), FILES):
            names = [str(path) for path in files[start : start + FILES]]
            found = clean_fid.get_files_features(
                names, self.network, num_workers=0, batch_size=32, device=self.device, verbose=False
            )
            if rows is None:
                with tempfile.TemporaryFile() as file:
                    rows = np.memmap(file, np.float32, "w+", shape=(len(files), found.shape[1]))
            rows[start : start + FILES] = found
        if rows is None:
            raise UserError("no picture to compute features of")
        return rows


def moments(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean (D,) and sample covariance (D, D) of (N, D) features, a part of the rows at a time."""
    mean = features.mean(0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), FILES):
        offsets = features[start : start + FILES] - mean
        covariance += offsets.T @ offsets
    return mean, covariance / (len(features) - 1)


class FID:
    """Frechet Inception distance to the truth, from 0, lower is better; biased upwards on few pictures.

    Source: Heusel et al., arXiv 1706.08500; the distance is clean-fid's.
    """

    def __init__(self) -> None:
        self.truth: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def __call__(self, targets: Features, outputs: Features) -> float | str:
        """Return the distance, or a sentence why there is none; the targets' moments are computed once."""
        self.truth = self.truth or moments(targets)
        try:
            return max(0.0, float(clean_fid.frechet_distance(*self.truth, *moments(outputs))))
        except ValueError as error:  # of the square root of a matrix
            return f"unavailable: the features' covariances have no distance ({error}); test on more images"


def kid(targets: Features, outputs: Features) -> float | str:
    """Return the kernel Inception distance, about 0 for equal distributions, lower is better; unbiased.

    Source: Binkowski et al., arXiv 1801.01401; the distance is clean-fid's, its random subsets made the same
    every time.
    """
    before = np.random.get_state()  # noqa: NPY002 - clean-fid draws from numpy's global generator
    try:
        np.random.seed(0)  # noqa: NPY002
        return clean_fid.kernel_distance(targets, outputs)
    finally:
        np.random.set_state(before)  # noqa: NPY002


NEEDS_CLASSIFIER = (
    "unavailable: it needs a classifier of these pictures' classes; train one with python classifier.py "
    "and name its run with --classifier"
)

FolderMetric = Callable[[Features, Features], float | str]


@dataclass
class Judges:
    """Every metric that can be computed, ready to use, and a sentence for every other one."""

    device: torch.device
    per_image: dict[str, Metric] = field(default_factory=dict)
    of_truth: dict[str, Metric] = field(default_factory=dict)  # those of which the truth's own score is news
    per_folder: dict[str, FolderMetric] = field(default_factory=dict)
    inception: Inception | None = None
    labels: Tensor | None = None  # (N,) int64, the pictures' classes, for the classifier
    missing: dict[str, str] = field(default_factory=dict)  # metric -> "unavailable: ..."
    hashes: dict[str, str] = field(default_factory=dict)  # network -> SHA-256 of its weights
    notes: list[str] = field(default_factory=list)


def open_judges(
    asked: Sequence[str],
    images: ImageSet,
    size: int,
    classifier: Path | None,
    weights: Path | None,
    device: torch.device,
) -> Judges:
    """Load what metrics need.

    Args:
        asked: metrics whose networks are downloaded where they are not there already.
        size: px, side of the pictures.
        classifier: a run of classifier.py.
        weights: folder of weight files; None = torch.hub's cache.

    Raises:
        UserError: the classifier cannot be used on these pictures.
    """
    judges = Judges(device)
    if classifier is not None:
        add_classifier(judges, images, classifier, device)
    for name in METRICS:
        reason = too_few(name, len(images), size)
        if reason is None:
            reason = add_metric(judges, name, weights, device, download=name in asked)
        if reason is not None:
            judges.missing[name] = reason
    if "colorfulness" in judges.per_image:
        judges.per_image["colorfulness_truth"] = PER_IMAGE["colorfulness_truth"]
    if "fid" in judges.per_folder and len(images) < USUAL_FID_IMAGES:
        judges.notes.append(
            f"fid of {len(images):,} images is biased upwards: compare it with fid of as many images only "
            f"({USUAL_FID_IMAGES:,} are the least that is usual)"
        )
    return judges


def too_few(name: str, count: int, size: int) -> str | None:
    """Return why a metric does not apply to so many pictures of such a size, None where it does."""
    least = {**MIN_SIZE, **DEEP_MIN_SIZE}.get(name, 1)
    if size < least:
        return f"unavailable: pictures of {size} px, at least {least} are needed"
    if count < FEWEST.get(name, 1):
        return f"unavailable: {count} test images, at least {FEWEST[name]} are needed; test on more"
    return None


def add_metric(
    judges: Judges, name: str, weights: Path | None, device: torch.device, download: bool
) -> str | None:
    """Make a metric ready; returns why that is impossible, None where it was done."""
    if name in PER_IMAGE:
        judges.per_image[name] = PER_IMAGE[name]
    elif name in ("top1", "top5"):
        return None if name in judges.per_image else NEEDS_CLASSIFIER
    else:
        try:
            if name.startswith("lpips_"):
                judges.per_image[name] = LPIPS(name.removeprefix("lpips_"), weights, device, download)
            else:
                judges.inception = judges.inception or Inception(weights, device, download)
                judges.per_folder[name] = {"fid": FID(), "kid": kid}[name]
        except ValueError as error:
            fetch = "" if download or weights else f"; or have it downloaded: --metric {name}"
            return f"unavailable: {error}{fetch}"
        network = WEIGHTS[name]
        judges.hashes[network] = weights_hash(network, weights)
    return None


def add_classifier(judges: Judges, images: ImageSet, classifier: Path, device: torch.device) -> None:
    """Make top1 and top5 ready. Raises UserError where the classifier does not know the classes."""
    network = load_classifier(classifier, device)
    judges.labels = torch.tensor(label_ids(images.labels, network.classes))
    judges.hashes["classifier"] = file_hash(pick_checkpoint(classifier))
    judges.of_truth = {"top1": Recognised(network, 1), "top5": Recognised(network, 5)}
    judges.per_image |= judges.of_truth
