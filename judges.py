"""Which metrics an evaluation computes, and why it cannot compute the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import features
import perceptual
from data import ImageSet
from metrics import DIRECTIONS, LEAST, PER_IMAGE, Metric
from perceptual import FEWEST, LPIPS, USUAL_FID_IMAGES, Inception, Recognised
from recognition import label_ids, load_classifier, pick_checkpoint

NEEDS_CLASSIFIER = (
    "unavailable: it needs a classifier of these pictures' classes; train one with python classifier.py "
    "and name its run with --classifier"
)

FolderMetric = Callable[[perceptual.Features, perceptual.Features], float | str]


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
        ValueError: the classifier cannot be used on these pictures.
    """
    judges = Judges(device)
    if classifier is not None:
        add_classifier(judges, images, classifier, device)
    for name in DIRECTIONS:
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
    least = {**LEAST, **perceptual.LEAST}.get(name, 1)
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
                judges.per_folder[name] = {"fid": perceptual.FID(), "kid": perceptual.kid}[name]
        except ValueError as error:
            fetch = "" if download or weights else f"; or have it downloaded: --metric {name}"
            return f"unavailable: {error}{fetch}"
        network = perceptual.WEIGHTS[name]
        judges.hashes[network] = features.weights_hash(network, weights)
    return None


def add_classifier(judges: Judges, images: ImageSet, classifier: Path, device: torch.device) -> None:
    """Make top1 and top5 ready. Raises ValueError where the classifier does not know the classes."""
    network = load_classifier(classifier, device)
    judges.labels = torch.tensor(label_ids(images.labels, network.classes))
    judges.hashes["classifier"] = features.file_hash(pick_checkpoint(classifier))
    judges.of_truth = {"top1": Recognised(network, 1), "top5": Recognised(network, 5)}
    judges.per_image |= judges.of_truth
