"""What a picture shows, by a network that classifier.py trained: does a colourised picture still look it?

A classifier's run folder holds checkpoints/epoch_0005.pt, one per saved epoch, and scores.csv, which says how
often each was right about the validation pictures. The best of them is the classifier.

Source: Zhang, Isola and Efros, "Colorful image colorization", arXiv 1603.08511, section 3.1: accuracy of a
classifier on colourised pictures.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import UserError, closest
from dataset.folders import Item
from runtime import atomic, run_folder
from runtime.atomic import replacing

FORMAT = "tinct-classifier-1"
RECORD = "classifier.json"  # in a run folder; recipe.json is a colouriser's
SCORES = (
    "epoch", "val_loss", "top1", "top1_low", "top1_high", "top5", "top5_low", "top5_high", "images",
)  # fmt: skip
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB in [0, 1]
# Their second outputs help training from scratch alone, and are left out.
BRANCHED = {"aux_logits": False, "transform_input": True, "init_weights": True}


class Classifier(nn.Module):
    """Pictures of any size -> a number per class, the greater the likelier."""

    def __init__(self, name: str, network: nn.Module, classes: Sequence[str], size: int) -> None:
        """Wrap a network of torchvision's.

        Args:
            size: px, side of the square that the network sees.
        """
        super().__init__()
        self.name, self.classes, self.size = name, list(classes), size
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, 3, H, W) uint8 to logits (N, C) float32."""
        x = image.float()
        if x.shape[2:] != (self.size, self.size):
            square = (self.size, self.size)
            x = F.interpolate(x, square, mode="bicubic", antialias=True).clamp(0, 255)
        return self.network((x - self.mean) / self.std).float()  # (N, C)


def build_classifier(network: str, classes: Sequence[str], size: int, batch: int = 2) -> Classifier:
    """Build an untrained classifier.

    Args:
        network: one of torchvision's classification networks.
        size: px, side of the square that it sees.
        batch: pictures per step; BatchNorm may need two.

    Raises:
        UserError: no such network, or none for pictures so small or batches so short.
    """
    from torchvision import models  # a second, which whatever classifies nothing saves

    known = models.list_models(module=models)
    if network not in known:
        raise UserError(f"no network {network}{closest(network, known)}")
    options: dict[str, Any] = BRANCHED if network in ("googlenet", "inception_v3") else {}
    if network.startswith("vit_"):
        options = {"image_size": size}
    if network.startswith("maxvit_"):
        options = {"input_size": (size, size)}
    try:
        built = models.get_model(network, num_classes=len(classes), **options)
        shapes = {name: value.to("meta") for name, value in built.state_dict().items()}
        nothing = torch.zeros(min(batch, 2), 3, size, size, device="meta")
        torch.func.functional_call(built, shapes, nothing)  # shapes alone, so at once
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        few = "" if batch > 1 else " in batches of 1"
        hint = "try another --size, --batch-size or --network"
        raise UserError(f"{network} cannot work on {size} px{few} ({reason}); {hint}") from None
    return Classifier(network, built, classes, size)


def head_names(network: nn.Module) -> set[str]:
    """Return the names of the last layer's tensors, which depend on what the classes are."""
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return {name for name in network.state_dict() if name.startswith(f"{layers[-1]}.")}


def load_pretrained(classifier: Classifier, state: Mapping[str, Tensor]) -> None:
    """Take all but the last layer from torchvision's published weights.

    Raises:
        UserError: another tensor than those of the last layer is missing, too many, or of another shape.
    """
    ours, head = classifier.network.state_dict(), head_names(classifier.network)
    # DenseNet's layers were called so when its weights were published
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")
    theirs = {old.sub(r"\1", name): value for name, value in state.items()}
    theirs = {name: value for name, value in theirs.items() if not name.lower().startswith("aux")}
    kept = head | {name for name in ours.keys() - theirs.keys() if name.endswith("num_batches_tracked")}
    odd = (ours.keys() ^ theirs.keys()) - kept
    odd |= {name for name in ours.keys() & theirs.keys() - head if ours[name].shape != theirs[name].shape}
    if odd:
        hint = "train from scratch, or at the size that they were published for"
        raise UserError(
            f"the published weights of {classifier.name} do not fit at {classifier.size} px, "
            f"the first at {min(odd)}: {hint}"
        )
    classifier.network.load_state_dict(
        {name: value if name in kept else theirs[name] for name, value in ours.items()}
    )


def save_classifier(run: Path, epoch: int, classifier: Classifier) -> None:
    """Write one epoch's checkpoint."""
    payload = {
        "format": FORMAT,
        "epoch": epoch,
        "network": classifier.name,
        "size": classifier.size,
        "classes": classifier.classes,
        "state": classifier.network.state_dict(),
    }
    atomic.save(run_folder.epoch_path(run, epoch), payload)


def load_classifier(path: Path, device: torch.device) -> Classifier:
    """Return a trained classifier, ready for use.

    Args:
        path: a classifier's run folder, of which the best epoch is taken, or one of its checkpoints.

    Raises:
        UserError: missing, damaged, or not a classifier of this project.
    """
    file = pick_checkpoint(path)
    payload = atomic.load(file)
    if payload.get("format") != FORMAT:
        raise UserError(f"{file} is not a classifier in the format {FORMAT}; train one with classifier.py")
    try:
        with torch.random.fork_rng(devices=[]):  # building draws weights; nobody else must notice
            classifier = build_classifier(payload["network"], payload["classes"], payload["size"])
        classifier.network.load_state_dict(payload["state"])
    except (KeyError, TypeError, RuntimeError, ValueError):
        raise UserError(f"{file} is damaged: its weights do not fit its network") from None
    classifier.eval().requires_grad_(False)
    return classifier.to(device, memory_format=torch.channels_last)


def pick_checkpoint(path: Path) -> Path:
    """Return the file that load_classifier reads: of a run, the saved epoch with the best top-1.

    Raises:
        UserError: no such file or folder, or a folder that holds no scored epoch of a classifier.
    """
    return path if path.is_file() else run_folder.epoch_path(path, best_scores(path)["epoch"])


def best_scores(run: Path) -> dict[str, Any]:
    """Return the scores of the saved epoch with the best top-1, of equals the earliest.

    Raises:
        UserError: not a classifier's run, or none of its saved epochs has a score.
    """
    read_record(run)
    saved = run_folder.saved_epochs(run)
    rows = [row for row in read_scores(run) if row["epoch"] in saved]
    if not rows:
        command = f"python classifier.py --resume --run {quote(str(run))}"
        raise UserError(f"{run} has no saved epoch with a score; train on with: {command}")
    return min(rows, key=lambda row: (-row["top1"], row["epoch"]))


def read_record(run: Path) -> dict[str, Any]:
    """Return a classifier's classifier.json. Raises UserError where it is missing or damaged."""
    path = run / RECORD
    if not path.is_file():
        command = "python classifier.py --data PATH"
        raise UserError(f"{run} is not a classifier's run: it has no {RECORD}; train one with: {command}")
    try:
        record = json.loads(path.read_text())
    except ValueError:
        record = None
    wanted = {"recipe", "data", "classes", "weights", "fingerprints"}
    if not isinstance(record, dict) or not record.keys() >= wanted:
        raise UserError(f"{path} is damaged, or of another version: it lacks {' '.join(sorted(wanted))}")
    return record


def read_scores(run: Path) -> list[dict[str, Any]]:
    """Return scores.csv, a dictionary per epoch; empty where there is none. Raises UserError if damaged."""
    path = run / "scores.csv"
    if not path.is_file():
        return []
    whole = {"epoch", "images"}
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
            return [{key: (int if key in whole else float)(row[key]) for key in SCORES} for row in rows]
    except (csv.Error, KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged, or not a classifier's: it needs {' '.join(SCORES)}") from None


def write_scores(run: Path, row: dict[str, Any]) -> None:
    """Put one epoch into scores.csv; later ones, left by a run that was cut off, are dropped."""
    earlier = [other for other in read_scores(run) if other["epoch"] < row["epoch"]]
    with replacing(run / "scores.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, SCORES)
        writer.writeheader()
        writer.writerows([*earlier, row])


def topk_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Tell of each picture whether its class is among the k likeliest.

    Of equal logits the class that comes first counts as likelier; a NaN counts against being right.

    Args:
        logits: (N, C) float.
        labels: (N,) int64, the true classes.
        k: how many may be named; all C where there are fewer.

    Returns:
        (N,) bool.
    """
    count = logits.size(1)
    true = logits.gather(1, labels[:, None])  # (N, 1)
    later = torch.arange(count, device=logits.device) > labels[:, None]  # (N, C)
    beaten = ((logits < true) | ((logits == true) & later)).sum(1)
    return beaten >= count - k


def find_classes(
    items: Mapping[str, Sequence[Item]], data: str, known: Sequence[str] | None = None
) -> list[str]:
    """Return the names of a data set's classes, in order.

    Args:
        known: those of a run that goes on; they must be the same.

    Raises:
        UserError: no folder per class, one class alone, one without training pictures, or other classes.
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
    """Return every label's place among the classes.

    Raises:
        UserError: pictures without a label, or with one that is no class.
    """
    if not all(labels):
        raise UserError(
            "the pictures have no class folders: a classifier takes folder/CLASS/picture, "
            "with train/ and val/ above or not"
        )
    places = {name: i for i, name in enumerate(classes)}
    unknown = next((label for label in labels if label not in places), None)
    if unknown is not None:
        raise UserError(f"no class {unknown} is known to the classifier; it knows {' '.join(classes)}")
    return [places[label] for label in labels]
