"""Train the classifier with which eval.py tells whether colourised pictures still look like what they show.

    python classifier.py --data cifar10 --network resnet18 --size 32 --epochs 10
    python classifier.py --data photos_by_class/ --network vgg16 --pretrained    # fine-tunes ImageNet's
    python classifier.py --resume --run runs/classifier    # goes on exactly where it stopped
    python classifier.py --data cifar10 --size 32 --dry-run

Any data set whose pictures lie in a folder per class, any of torchvision's classification networks. Every
save_every epochs the run folder gets a checkpoint, its scores on the validation pictures and loss curves.
"""

import threads  # noqa: F401  before torch

import time
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from tqdm import tqdm

import checkpoint
from checkpoint import pick_device
from cli import DataOption, DeviceOption, EpochsOption, RunOption, WeightsOption, command
from config import CACHE, RUNS, ClassifierRecipe, parse_settings
from data import ImageSet, Loading, load_images, steps_per_epoch, training_order
from features import load_weights
from folders import Item, list_items
from gan import REMEDY
from learning import Training, build_training, learning_rate, train_step, validate
from log import Log, noted_signals
from models import count_parameters
from plots import plot_losses
from preflight import provenance, remembered
from recognition import (
    RECORD,
    best_scores,
    find_classes,
    label_ids,
    load_pretrained,
    read_record,
    save_classifier,
    write_scores,
)

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
    """End an interval of the log. Raises ValueError where the loss is not finite."""
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
        write_scores(run, scores)
        plot_losses(run / "losses.png", log.records)
        print(f"epoch {done} | {in_words(scores)}", flush=True)
    training.epoch, training.step = done + 1, 0
    if due:
        save_state(run, training, log)


def save_state(run: Path, training: Training, log: Log) -> None:
    """Write all that a resume needs."""
    flush(log, training)
    training.check_finite()
    checkpoint.save(checkpoint.state_path(run), training.state_dict())
    log.clear()  # what saving took is no training time


def in_words(scores: dict[str, Any]) -> str:
    """Return one epoch's accuracy with its 95 % intervals."""
    parts = (
        f"{name} {100 * scores[name]:.1f} % "
        f"({100 * scores[f'{name}_low']:.1f} to {100 * scores[f'{name}_high']:.1f})"
        for name in ("top1", "top5")
    )
    return f"{' | '.join(parts)} of {scores['images']} pictures"


def resolve(
    data: str | None, run: Path | None, overrides: dict[str, Any], writes: bool
) -> tuple[ClassifierRecipe, str, Path]:
    """Settle recipe, data and folder of a new run; `writes`: the folder must be free.

    Raises:
        ValueError: a value out of range, no data, or the folder is taken.
    """
    made = ClassifierRecipe(**overrides)
    if data is None:
        raise ValueError("a classifier needs --data PATH|NAME: a folder of pictures per class, or cifar10")
    folder = Path(run or RUNS / "classifier")
    if writes and (folder / RECORD).exists():
        hint = "go on with --resume, or name another folder with --run"
        raise ValueError(f"{folder} already holds a classifier; {hint}")
    if writes and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty and not a run; name another folder with --run")
    return made, data, folder


def resolve_resumed(
    data: str | None, run: Path | None, overrides: dict[str, Any], writes: bool
) -> tuple[ClassifierRecipe, str, Path]:
    """Settle recipe, data and folder of a run that goes on, `writes` or not; it brings its own.

    Raises:
        ValueError: no such run, or what was given is not what it was trained with.
    """
    folder = Path(run or RUNS / "classifier")
    stored = read_record(folder)
    try:
        kept = ClassifierRecipe(**stored["recipe"])
    except TypeError:
        raise ValueError(f"{folder}/{RECORD} has other fields than this version; start another run") from None
    given = {"data": remembered(data or stored["data"]), **overrides}
    for key, value in given.items():
        before = stored["data"] if key == "data" else getattr(kept, key)
        if key not in RESUMABLE and value != before:
            raise ValueError(f"{folder} was trained with {key} {before}; a resume cannot make it {value}")
    done, state = checkpoint.saved_epochs(folder), checkpoint.state_path(folder)
    if done and not state.exists():
        raise ValueError(f"{state} is missing: {folder} can be used, but not trained on")
    if done and given.get("epochs", done[-1]) < done[-1]:
        raise ValueError(f"{folder} has {done[-1]} epochs already; --epochs {given['epochs']} would be fewer")
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
        ValueError: too few of them can be read.
    """
    for place in (run, CACHE):
        place.mkdir(parents=True, exist_ok=True)  # fails now rather than after decoding
    loading = Loading(recipe.load_size, recipe.fit, "none", False)
    images = {name: load_images(items[name], loading, CACHE, name) for name in ("train", "val")}
    if len(images["train"]) < 2:
        raise ValueError(f"only one training picture of {data} can be read: {images['train'].bad[0]}")
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
    checkpoint.write_json(run / RECORD, {**record, "recipe": asdict(recipe)})
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
    state = checkpoint.state_path(run)
    if weights is None and (run / RECORD).exists() and read_record(run)["weights"]:
        weights = Path(read_record(run)["weights"])
    if state.exists():
        training.load_state_dict(checkpoint.load(state))
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
    """Train a classifier; returns the run folder. Raises ValueError before any work if something is off."""
    options = {
        "network": network, "pretrained": pretrained or None, "size": size, "epochs": epochs, "seed": seed,
        "batch_size": batch_size, "limit": limit, **parse_settings(set_ or [], ClassifierRecipe),
    }  # fmt: skip
    given = {key: value for key, value in options.items() if value is not None}
    settle = resolve_resumed if resume else resolve
    made, where, folder = settle(data, run, given, writes=not dry_run)
    items = list_items(where, asdict(made), CACHE)
    classes = find_classes(items, where, read_record(folder)["classes"] if resume else None)
    training = build_training(made, classes, pick_device(device))
    print(describe(made, where, folder, items, training), flush=True)
    if dry_run:
        print("\n".join(f"  {key} = {value}" for key, value in asdict(made).items()))
        return folder
    restore(training, made, folder, weights)
    fit(training, made, folder, load_splits(made, where, folder, items, weights))
    best = best_scores(folder)
    print(f"trained {made.epochs} epochs; the best is {best['epoch']}: {in_words(best)}")
    print(f"score colourised pictures with it: python eval.py --classifier {quote(str(folder))}")
    return folder


if __name__ == "__main__":
    command(main)
