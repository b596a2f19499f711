"""The classifier with which eval.py tells whether a colourised image still shows what it showed.

train_classifier.py trains it. Its run folder holds checkpoints/epoch_0005.pt, one per saved epoch, and
scores.csv with the accuracy of each on the validation images. The epoch with the best top-1 is used.

Source: Zhang, Isola and Efros, "Colorful image colorization", arXiv 1603.08511, section 3.1: accuracy of a
classifier on colourised images.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import UserError, closest
from dataset.folders import Item
from evaluation.scores import write_csv
from models import LiteClassifier
from runtime import atomic
from runtime.run_folder import epoch_path, read_classifier_run, saved_epochs
from runtime.weights import load_weights

FORMAT = "tinct-classifier-1"
IMAGENET = "imagenet-lite0"  # the name of the one classifier that needs no training
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB in [0, 1]
MANY = 100  # classes that a message names


class Accuracy(NamedTuple):
    """One epoch on the validation images: a line of scores.csv. Shares are in [0, 1]."""

    epoch: int
    val_loss: float  # cross-entropy
    top1: float
    top1_low: float  # ends of the 95 % interval
    top1_high: float
    top5: float
    top5_low: float
    top5_high: float
    images: int


class Classifier(nn.Module):
    """Images of any size -> logits of the classes."""

    def __init__(
        self, name: str, network: nn.Module, classes: Sequence[str], size: int,
        mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD,
    ) -> None:  # fmt: skip
        """Wrap a network that takes squares of `size` px, normalised by mean and std of RGB in [0, 1]."""
        super().__init__()
        self.name, self.classes, self.size = name, list(classes), size
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def prepare(self, image: Tensor) -> Tensor:
        """Return (N, 3, H, W) uint8 as what the network takes, (N, 3, size, size) float32."""
        x, square = image.float(), (self.size, self.size)
        if x.shape[2:] != square:
            x = F.interpolate(x, square, mode="bicubic", antialias=True).clamp(0, 255)
        return (x - self.mean) / self.std

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, 3, H, W) uint8 to logits (N, C) float32."""
        return self.network(self.prepare(image)).float()  # (N, C)


def build_classifier(network: str, classes: Sequence[str], size: int, batch: int = 2) -> Classifier:
    """Build an untrained classifier.

    Args:
        network: one of torchvision's classification networks.
        size: px, side of the square that it sees.
        batch: images per step; BatchNorm may need two.

    Raises:
        UserError: no such network, or it does not work on images or batches as small as these.
    """
    from torchvision import models  # a second, which programs without a classifier save

    known = models.list_models(module=models)
    if network not in known:
        raise UserError(f"no network {network}{closest(network, known)}")
    options: dict[str, Any] = {}
    if network in ("googlenet", "inception_v3"):  # whose second outputs serve training from scratch
        options = {"aux_logits": False, "transform_input": True, "init_weights": True}
    elif network.startswith("vit_"):
        options = {"image_size": size}
    elif network.startswith("maxvit_"):
        options = {"input_size": (size, size)}
    try:
        built = models.get_model(network, num_classes=len(classes), **options)
        shapes = {name: value.to("meta") for name, value in built.state_dict().items()}
        nothing = torch.zeros(min(batch, 2), 3, size, size, device="meta")
        torch.func.functional_call(built, shapes, nothing)  # computes shapes alone
    except (AssertionError, RuntimeError, ValueError) as error:  # torchvision has no common error
        reason = str(error).partition("\n")[0].rstrip(".")
        few = "" if batch > 1 else " in batches of 1"
        hint = "try another --size, --batch-size or --network"
        raise UserError(f"{network} cannot work on {size} px{few} ({reason}); {hint}") from None
    return Classifier(network, built, classes, size)


def load_pretrained(classifier: Classifier, state: Mapping[str, Tensor]) -> None:
    """Load torchvision's published weights, except the last layer's, whose shapes depend on the classes.

    Raises:
        UserError: a tensor of another layer is missing, unknown, or of another shape.
    """
    ours = classifier.network.state_dict()
    layers = [name for name, m in classifier.network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    last = {name: value for name, value in ours.items() if name.startswith(f"{layers[-1]}.")}
    # the names of DenseNet's layers when its weights were published
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")
    theirs = {old.sub(r"\1", name): value for name, value in state.items() if name[:3].lower() != "aux"}
    counts = {name: value for name, value in ours.items() if name.endswith("num_batches_tracked")}
    mixed = {**counts, **theirs, **last}  # old files have no counts
    odd = {(name, value.shape) for name, value in ours.items()}
    odd ^= {(name, value.shape) for name, value in mixed.items()}
    if odd:
        raise UserError(
            f"the published weights of {classifier.name} do not fit at {classifier.size} px, the first at "
            f"{min(odd)[0]}: train from scratch, or at the size that they were published for"
        )
    classifier.network.load_state_dict(mixed)


def save_classifier(run: Path, epoch: int, classifier: Classifier) -> None:
    """Write one epoch's checkpoint."""
    built = {"network": classifier.name, "size": classifier.size, "classes": classifier.classes}
    payload = {"format": FORMAT, "epoch": epoch, **built, "state": classifier.network.state_dict()}
    atomic.save(epoch_path(run, epoch), payload)


def imagenet_lite0(folder: Path | None, device: torch.device, download: bool = True) -> Classifier:
    """Return EfficientNet-Lite0 with its published weights. Raises UserError where they cannot be had.

    Its classes have torchvision's names of ImageNet's classes.
    """
    from torchvision.models import get_model_weights  # a second, which programs without a classifier save

    network = LiteClassifier()
    network.load_published(load_weights("lite0", folder, download=download))
    classes = get_model_weights("resnet18").DEFAULT.meta["categories"]
    found = Classifier(IMAGENET, network, classes, 224, LiteClassifier.MEAN, LiteClassifier.STD)
    found.eval().requires_grad_(False)
    return found.to(device, memory_format=torch.channels_last)


def load_classifier(path: Path, device: torch.device) -> Classifier:
    """Return a trained classifier in evaluation mode.

    Args:
        path: a classifier's run folder, of which the best epoch is taken, or one of its checkpoints.

    Raises:
        UserError: missing, damaged, or not a classifier of this project.
    """
    file = pick_checkpoint(path)
    payload = atomic.load(file)
    if payload.get("format") != FORMAT:
        hint = "train one with train_classifier.py"
        raise UserError(f"{file} is not a classifier in the format {FORMAT}; {hint}")
    try:
        with torch.random.fork_rng(devices=[]):  # building draws random weights
            classifier = build_classifier(payload["network"], payload["classes"], payload["size"])
        classifier.network.load_state_dict(payload["state"])
    except (KeyError, TypeError, RuntimeError, ValueError):
        raise UserError(f"{file} is damaged: its weights do not fit its network") from None
    classifier.eval().requires_grad_(False)
    return classifier.to(device, memory_format=torch.channels_last)


def pick_checkpoint(path: Path) -> Path:
    """Return the file that load_classifier reads: `path` itself, or the best epoch's of a run folder.

    Raises:
        UserError: no such file or folder, or a folder without a scored epoch of a classifier.
    """
    return path if path.is_file() else epoch_path(path, best_accuracy(path).epoch)


def best_accuracy(run: Path) -> Accuracy:
    """Return the scores of the saved epoch with the best top-1; of equal ones the earliest.

    Raises:
        UserError: not a classifier's run, or none of its saved epochs has a score.
    """
    read_classifier_run(run)
    saved = saved_epochs(run)
    found = [accuracy for accuracy in read_accuracies(run) if accuracy.epoch in saved]
    if not found:
        command = f"python train_classifier.py --resume --run {quote(str(run))}"
        raise UserError(f"{run} has no saved epoch with a score; train on with: {command}")
    return max(found, key=lambda accuracy: accuracy.top1)


def read_accuracies(run: Path) -> list[Accuracy]:
    """Return the lines of scores.csv; none where there is no such file. Raises UserError if it is damaged."""
    path = run / "scores.csv"
    if not path.is_file():
        return []
    kinds = Accuracy.__annotations__
    try:
        with open(path, newline="") as file:
            return [Accuracy(*(kinds[key](row[key]) for key in kinds)) for row in csv.DictReader(file)]
    except (csv.Error, KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged, or not a classifier's: it needs {' '.join(kinds)}") from None


def write_accuracy(run: Path, accuracy: Accuracy) -> None:
    """Add an epoch to scores.csv; later epochs, which an interrupted run may have left, are removed."""
    earlier = [other for other in read_accuracies(run) if other.epoch < accuracy.epoch]
    write_csv(run / "scores.csv", Accuracy._fields, [row._asdict() for row in (*earlier, accuracy)])


def topk_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Tell for each image whether the true class is among the k most likely: all C where there are fewer than k.

    Of classes with equal logits the first is more likely. An image with a NaN is wrong. Takes logits (N, C)
    float and labels (N,) int64; returns (N,) bool.
    """
    count = logits.size(1)
    true = logits.gather(1, labels[:, None])  # (N, 1)
    later = torch.arange(count, device=logits.device) > labels[:, None]  # (N, C)
    beaten = ((logits < true) | ((logits == true) & later)).sum(1)
    return beaten >= count - k


def find_classes(items: Mapping[str, Sequence[Item]], data: str, known: Sequence[str] | None = None) -> list[str]:
    """Return the names of a data set's classes, in order; in a resumed run they must be those `known`.

    Raises UserError on no folder per class, a single class, one without training images, or others than `known`.
    """
    train, val = ([item.label for item in items[split]] for split in ("train", "val"))
    classes = sorted(set(train))
    label_ids([*train, *val], sorted({*train, *val}))
    if len(classes) < 2:
        raise UserError(f"{data} has one class alone, {classes[0]}: a classifier needs two or more")
    missing = sorted(set(val) - set(train))
    if missing:
        hint = "give it more pictures, or leave it out"
        raise UserError(f"class {missing[0]} of {data} is in the validation pictures alone: {hint}")
    if known is not None and classes != list(known):
        odd = sorted({*classes} ^ {*known})[0]
        raise UserError(f"the classes of {data} have changed since this run began, the first is {odd}")
    return classes


def label_ids(labels: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the index of every label among the classes. Raises UserError where one is empty, or no class."""
    if not all(labels):
        raise UserError(
            "the pictures have no class folders: a classifier takes folder/CLASS/picture, "
            "with train/ and val/ above or not"
        )
    indices = {name: i for i, name in enumerate(classes)}
    for label in labels:
        if label not in indices:
            known = " ".join(classes[:MANY]) + (f" and {len(classes) - MANY} more" if len(classes) > MANY else "")
            raise UserError(f"no class {label} is known to the classifier; it knows {known}")
    return [indices[label] for label in labels]


def imagenet_name(label: str, classes: Sequence[str]) -> str:
    """Return a folder's name as ImageNet's class: "n01440764_tench", "great_white_shark" or as it is.

    Raises UserError on a name that two classes have, and on a number of WordNet alone.
    """
    if re.fullmatch(r"n\d{8}", label):
        raise UserError(
            f"class {label}: name its folder by the class too, as n01440764_tench; a number alone is not known"
        )
    name = re.sub(r"^n\d{8}[_ ]", "", label).replace("_", " ").lower()
    found = [known for known in classes if known.lower() == name]
    if len(found) > 1:
        raise UserError(f"class {label}: ImageNet has {len(found)} classes of this name; leave its pictures out")
    return found[0] if found else label
