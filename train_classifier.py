"""Train the classifier with which eval.py tells whether colourised pictures still look like what they show.

    python classifier.py --data cifar10 --network resnet18 --size 32 --epochs 10
    python classifier.py --data photos_by_class/ --network vgg16 --pretrained    # fine-tunes ImageNet's
    python classifier.py --resume --run runs/classifier    # goes on exactly where it stopped
    python classifier.py --data cifar10 --size 32 --dry-run

Any data set whose pictures lie in a folder per class, any of torchvision's classification networks. Every
save_every epochs the run folder gets a checkpoint, its scores on the validation pictures and loss curves.
"""

import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from tqdm import tqdm

from config import CACHE, RUNS, ClassifierRecipe, UserError, parse_settings
from data import ImageSet, Loading, load_images, steps_per_epoch, training_order
from dataset.folders import Item, list_items
from evaluation.classifier import (
    RECORD,
    Accuracy,
    Classifier,
    best_accuracy,
    build_classifier,
    find_classes,
    label_ids,
    load_pretrained,
    read_record,
    save_classifier,
    topk_correct,
    write_accuracy,
)
from evaluation.scores import wilson
from models import count_parameters
from reporting.curves import plot_losses
from runtime import atomic, run_folder
from runtime.cli import DataOption, DeviceOption, EpochsOption, RunOption, WeightsOption, command
from runtime.device import pick_device, pick_precision, restore_rng, rng_state
from runtime.weights import load_weights
from training.gan import REMEDY
from training.loop import Log, noted_signals
from training.setup import provenance, remembered

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
            **rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what state_dict returned. Raises UserError if it does not fit this classifier."""
        if state.get("format") != FORMAT:
            raise UserError(f"state.pt is not a training state in the format {FORMAT}")
        try:
            self.classifier.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:  # one that was off has no state
                self.scaler.load_state_dict(state["scaler"])
        except (KeyError, RuntimeError, ValueError):
            raise UserError("state.pt does not fit this classifier") from None
        self.epoch, self.step, self.steps = state["epoch"], state["step"], state["steps"]
        restore_rng(state)

    def check_finite(self) -> None:
        """Raise UserError if a weight is not finite, before it is saved."""
        if not all(torch.isfinite(value).all() for value in self.classifier.network.state_dict().values()):
            raise UserError(
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
def validate(training: Training, recipe: ClassifierRecipe, images: ImageSet, labels: Tensor) -> Accuracy:
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
    count = len(images)
    loss, *correct = torch.stack(sums).sum(0).tolist()
    top1, top5 = ((hits / count, *wilson(int(hits), count)) for hits in correct)
    return Accuracy(training.epoch, loss / count, *top1, *top5, count)


RESUMABLE = {"epochs", "save_every", "log_every", "lr", "precision"}  # what a resume may change


def train_epoch(
    training: Training,
    recipe: ClassifierRecipe,
    images: ImageSet,
    labels: Tensor,
    log: Log,
    caught: list[int],
) -> None:
    """Train from training.step to the end of its epoch, or until a signal is caught."""
    steps = steps_per_epoch(len(images), recipe.batch_size)
    title = f"epoch {training.epoch}/{recipe.epochs}"
    bar = tqdm(total=steps, initial=training.step, desc=title, leave=False, disable=None)
    order = (len(images), recipe.batch_size, recipe.flip, recipe.seed, training.epoch, training.step)
    started = time.perf_counter()
    for ids, corners, flips in training_order(*order):
        _, image = images.gather(ids, recipe.size, corners, flips)  # (N, 3, S, S) uint8
        waited = time.perf_counter() - started
        batch = (part.to(training.device, non_blocking=True) for part in (image, labels[ids]))
        rate = learning_rate(recipe, recipe.epochs * steps, training.steps)
        training.optimizer.param_groups[0]["lr"] = rate
        log.add({"C_loss": train_step(training, *batch, recipe.label_smoothing)}, len(ids), waited)
        training.step, training.steps = training.step + 1, training.steps + 1
        bar.update()
        if training.steps % recipe.log_every == 0:
            flush(log, training)
        if caught:
            break
        started = time.perf_counter()
    bar.close()


def flush(log: Log, training: Training) -> None:
    """End an interval of the log. Raises UserError where the loss is not finite."""
    log.flush(training.progress(), training.optimizer.param_groups[0]["lr"], training.device, REMEDY)


def finish_epoch(
    run: Path, recipe: ClassifierRecipe, training: Training, log: Log, val: ImageSet, labels: Tensor
) -> None:
    """Go on to the next epoch, saving what save_every asks for."""
    done = training.epoch
    due = done % recipe.save_every == 0 or done == recipe.epochs
    if due:
        flush(log, training)
        training.check_finite()
        scores = validate(training, recipe, val, labels)
        save_classifier(run, done, training.classifier)
        write_accuracy(run, scores)
        plot_losses(run / "losses.png", log.records)
        print(f"epoch {done} | {in_words(scores)}", flush=True)
    training.epoch, training.step = done + 1, 0
    if due:
        save_state(run, training, log)


def save_state(run: Path, training: Training, log: Log) -> None:
    """Write all that a resume needs."""
    flush(log, training)
    training.check_finite()
    atomic.save(run_folder.state_path(run), training.state_dict())
    log.clear()  # what saving took is no training time


def in_words(scores: Accuracy) -> str:
    """Return one epoch's accuracy with its 95 % intervals."""
    top1 = f"top1 {100 * scores.top1:.1f} % ({100 * scores.top1_low:.1f} to {100 * scores.top1_high:.1f})"
    top5 = f"top5 {100 * scores.top5:.1f} % ({100 * scores.top5_low:.1f} to {100 * scores.top5_high:.1f})"
    return f"{top1} | {top5} of {scores.images} pictures"


def resolve(
    data: str | None, run: Path | None, overrides: dict[str, Any], writes: bool
) -> tuple[ClassifierRecipe, str, Path]:
    """Settle recipe, data and folder of a new run; `writes`: the folder must be free.

    Raises:
        UserError: a value out of range, no data, or the folder is taken.
    """
    made = ClassifierRecipe(**overrides)
    if data is None:
        raise UserError("a classifier needs --data PATH|NAME: a folder of pictures per class, or cifar10")
    folder = Path(run or RUNS / "classifier")
    if writes and (folder / RECORD).exists():
        hint = "go on with --resume, or name another folder with --run"
        raise UserError(f"{folder} already holds a classifier; {hint}")
    if writes and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty and not a run; name another folder with --run")
    return made, data, folder


def resolve_resumed(
    data: str | None, run: Path | None, overrides: dict[str, Any], writes: bool
) -> tuple[ClassifierRecipe, str, Path]:
    """Settle recipe, data and folder of a run that goes on, `writes` or not; it brings its own.

    Raises:
        UserError: no such run, or what was given is not what it was trained with.
    """
    folder = Path(run or RUNS / "classifier")
    stored = read_record(folder)
    try:
        kept = ClassifierRecipe(**stored["recipe"])
    except TypeError:
        raise UserError(f"{folder}/{RECORD} has other fields than this version; start another run") from None
    given = {"data": remembered(data or stored["data"]), **overrides}
    for key, value in given.items():
        before = stored["data"] if key == "data" else getattr(kept, key)
        if key not in RESUMABLE and value != before:
            raise UserError(f"{folder} was trained with {key} {before}; a resume cannot make it {value}")
    done, state = run_folder.saved_epochs(folder), run_folder.state_path(folder)
    if done and not state.exists():
        raise UserError(f"{state} is missing: {folder} can be used, but not trained on")
    if done and given.get("epochs", done[-1]) < done[-1]:
        raise UserError(f"{folder} has {done[-1]} epochs already; --epochs {given['epochs']} would be fewer")
    return replace(kept, **overrides), stored["data"], folder


def describe(
    recipe: ClassifierRecipe, data: str, run: Path, items: dict[str, list[Item]], training: Training
) -> str:
    """Return what is resolved, one line each."""
    start = "published weights" if recipe.pretrained else "scratch"
    count, classes = count_parameters(training.classifier), len(training.classifier.classes)
    lines = {
        "run": run,
        "data": f"{data}: {len(items['train'])} to train, {len(items['val'])} to validate, {classes} classes",
        "network": f"{recipe.network} at {recipe.size} px, {count:,} parameters, from {start}",
        "epochs": recipe.epochs,
        "device": f"{training.device}, {training.precision}",
    }
    return "\n".join(f"{key:<14} {value}" for key, value in lines.items())


def load_splits(
    recipe: ClassifierRecipe, data: str, run: Path, items: dict[str, list[Item]], weights: Path | None
) -> dict[str, ImageSet]:
    """Return the pictures to train and to validate on, decoded, and record in classifier.json what they are.

    Raises:
        UserError: too few of them can be read.
    """
    for place in (run, CACHE):
        place.mkdir(parents=True, exist_ok=True)  # fails now rather than after decoding
    loading = Loading(recipe.load_size, recipe.fit, "none", False)
    images = {name: load_images(items[name], loading, CACHE, name) for name in ("train", "val")}
    if len(images["train"]) < 2:
        raise UserError(f"only one training picture of {data} can be read: {images['train'].bad[0]}")
    made_with = provenance(images)
    if (run / RECORD).exists():  # a resume is added to what the run began with
        record = read_record(run)
        if record["fingerprints"] != made_with["fingerprints"]:
            print("the images have changed since this run began: it goes on with those there are now")
        record["resumed"] = [*record.get("resumed", []), made_with]
    else:
        record = {"data": remembered(data), "loading": asdict(loading), **made_with}
        record["classes"] = sorted({item.label for item in items["train"]})
        record["weights"] = str(weights.resolve()) if weights else None
    atomic.write_json(run / RECORD, {**record, "recipe": asdict(recipe)})
    return images


def fit(training: Training, recipe: ClassifierRecipe, run: Path, images: dict[str, ImageSet]) -> None:
    """Train to the last epoch. Raises SystemExit, with everything saved, on Ctrl-C."""
    log = Log(run / "log.jsonl", training.steps)
    classes = training.classifier.classes
    labels = {name: torch.tensor(label_ids(split.labels, classes)) for name, split in images.items()}
    steps = steps_per_epoch(len(images["train"]), recipe.batch_size)
    torch.backends.cudnn.benchmark = True  # every batch has one shape
    with noted_signals() as caught:
        while training.epoch <= recipe.epochs and not caught:
            train_epoch(training, recipe, images["train"], labels["train"], log, caught)
            if training.step >= steps:
                finish_epoch(run, recipe, training, log, images["val"], labels["val"])
        if caught:
            save_state(run, training, log)
    for sentence in [sentence for split in images.values() for sentence in split.bad]:
        print(f"skipped {sentence}")
    if training.epoch <= recipe.epochs:
        command = f"python classifier.py --resume --run {quote(str(run))}"
        print(f"stopped in epoch {training.epoch}; go on with: {command}")
        raise SystemExit(128 + caught[0])


def restore(training: Training, recipe: ClassifierRecipe, run: Path, weights: Path | None) -> None:
    """Load the state of a run that goes on, or the published weights that a new one asks for."""
    state = run_folder.state_path(run)
    if weights is None and (run / RECORD).exists() and read_record(run)["weights"]:
        weights = Path(read_record(run)["weights"])
    if state.exists():
        training.load_state_dict(atomic.load(state))
    elif recipe.pretrained:
        load_pretrained(training.classifier, load_weights(recipe.network, weights, "leave out --pretrained"))


def main(
    data: DataOption = None,
    run: RunOption = None,
    network: Annotated[str | None, typer.Option(metavar="NAME", help="One of torchvision's.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Fine-tune published weights.")] = False,
    size: Annotated[int | None, typer.Option(min=1, help="Side of what the network sees, px.")] = None,
    epochs: EpochsOption = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per step.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Images of each split at most; 0: all.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any field.")] = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what is resolved, and stop.")] = False,
) -> Path:
    """Train a classifier; returns the run folder. Raises UserError before any work if something is off."""
    options = {
        "network": network, "pretrained": pretrained or None, "size": size, "epochs": epochs, "seed": seed,
        "batch_size": batch_size, "limit": limit, **parse_settings(set_ or [], ClassifierRecipe),
    }  # fmt: skip
    given = {key: value for key, value in options.items() if value is not None}
    settle = resolve_resumed if resume else resolve
    made, where, folder = settle(data, run, given, writes=not dry_run)
    items = list_items(where, made, CACHE)
    classes = find_classes(items, where, read_record(folder)["classes"] if resume else None)
    training = build_training(made, classes, pick_device(device))
    print(describe(made, where, folder, items, training), flush=True)
    if dry_run:
        print("\n".join(f"  {key} = {value}" for key, value in asdict(made).items()))
        return folder
    restore(training, made, folder, weights)
    fit(training, made, folder, load_splits(made, where, folder, items, weights))
    best = best_accuracy(folder)
    print(f"trained {made.epochs} epochs; the best is {best.epoch}: {in_words(best)}")
    print(f"score colourised pictures with it: python eval.py --classifier {quote(str(folder))}")
    return folder


if __name__ == "__main__":
    command(main)
