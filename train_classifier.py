"""Train the classifier with which eval.py tells whether colourised pictures still look like what they show.

    python train_classifier.py --data cifar10 --network resnet18 --size 32 --epochs 10
    python train_classifier.py --data photos_by_class/ --network vgg16 --pretrained    # fine-tunes ImageNet's
    python train_classifier.py --resume --run runs/classifier    # goes on exactly where it stopped
    python train_classifier.py --data cifar10 --size 32 --dry-run

Any data set whose pictures lie in a folder per class, any of torchvision's classification networks. Every
save_every epochs the run folder gets a checkpoint, its scores on the validation pictures and loss curves.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from config import CACHE, RUNS, ClassifierRecipe, UserError
from runtime import cli

if TYPE_CHECKING:
    import torch

    from data import ImageSet
    from dataset.folders import Splits
    from evaluation.classifier import Accuracy, Classifier
    from training.loop import State
    from training.setup import Setup

FORMAT = "tinct-classifier-state-1"


@dataclass
class Training:
    """The classifier under training, and what trains it."""

    classifier: "Classifier"
    loss: "torch.nn.CrossEntropyLoss"  # with smoothed labels
    optimizer: "torch.optim.SGD"
    scaler: "torch.amp.GradScaler"
    amp: "torch.autocast"  # in which the network computes
    memory_format: str = "auto"  # of runtime.device.FORMATS, once it is settled

    def __post_init__(self) -> None:
        # what a step calls: the classifier, or DDP around it
        self.classifier_ddp: torch.nn.Module = self.classifier


def build_training(recipe: ClassifierRecipe, classes: list[str], device: "torch.device", precision: str) -> Training:
    """Build classifier and optimiser from the recipe's seed."""
    import torch

    from evaluation.classifier import build_classifier
    from runtime.device import Scaler, autocast

    torch.manual_seed(recipe.seed)
    classifier = build_classifier(recipe.network, classes, recipe.size, recipe.batch_size)
    classifier.to(device)
    optimizer = torch.optim.SGD(
        classifier.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0, fused=device.type in ("cpu", "cuda"),
    )  # fmt: skip
    if recipe.momentum:  # where a scaler skips the first step, torch 2.14's fused SGD leaves it as memory comes
        for parameter in classifier.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    scaler = Scaler(device, precision, recipe.on_nan == "skip")
    loss = torch.nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    return Training(classifier, loss, optimizer, scaler, autocast(device, precision))


def learning_rate(recipe: ClassifierRecipe, steps: int, done: int) -> float:
    """Return the learning rate after `done` of `steps` steps: linear warm-up, then cosine decay."""
    progress = (done + 0.5) / steps
    if progress < recipe.warmup:
        return recipe.lr * progress / recipe.warmup
    return recipe.lr * (1 + math.cos(math.pi * (progress - recipe.warmup) / (1 - recipe.warmup))) / 2


def train_step(training: Training, image: "torch.Tensor", label: "torch.Tensor") -> "torch.Tensor":
    """Update the classifier on one batch; returns the loss, a detached scalar on the device.

    Args:
        image: (N, 3, S, S) uint8, on the device.
        label: (N,) int64, on the device.
    """
    from runtime import distributed

    with training.amp:
        logits = training.classifier_ddp(image)  # (N, C)
    loss = training.loss(logits, label)
    training.scaler.scale(loss).backward()
    training.scaler.step(training.optimizer)
    training.optimizer.zero_grad()
    training.scaler.update()
    distributed.average_buffers(training.classifier)
    return loss.detach()


def validate(
    classifier: "Classifier", recipe: ClassifierRecipe, images: "ImageSet", labels: "torch.Tensor", epoch: int
) -> "Accuracy":
    """Return the scores of the pictures' centre squares, in full precision, as eval.py asks."""
    import torch

    from evaluation.classifier import Accuracy, topk_correct
    from evaluation.scores import wilson
    from runtime import distributed
    from runtime.progress import track

    count, device = len(images), classifier.mean.device
    sums = [torch.zeros(3, device=device)]
    classifier.eval()
    with torch.no_grad():
        batches = torch.arange(count)[distributed.rank() :: distributed.world()].split(recipe.batch_size)
        for ids in track(batches, "validating", len(batches)):
            image = images.gather(ids.tolist(), recipe.load_size)[1].to(device, non_blocking=True)
            label = labels[ids].to(device, non_blocking=True)
            logits = classifier(image)  # (N, C)
            loss = torch.nn.functional.cross_entropy(logits, label, reduction="sum")
            sums.append(torch.stack([loss, *(topk_correct(logits, label, k).sum() for k in (1, 5))]))
    classifier.train()
    loss, *correct = distributed.add(torch.stack(sums).sum(0)).tolist()
    top1, top5 = ((hits / count, *wilson(int(hits), count)) for hits in correct)
    return Accuracy(epoch, loss / count, *top1, *top5, count)


def in_words(scores: "Accuracy") -> str:
    """Return one epoch's accuracy with its 95 % intervals."""
    top1 = f"top1 {100 * scores.top1:.1f} % ({100 * scores.top1_low:.1f} to {100 * scores.top1_high:.1f})"
    top5 = f"top5 {100 * scores.top5:.1f} % ({100 * scores.top5_low:.1f} to {100 * scores.top5_high:.1f})"
    return f"{top1} | {top5} of {scores.images} pictures"


def main(
    data: cli.DataOption = None,
    run: cli.RunOption = None,
    network: Annotated[str | None, typer.Option(metavar="NAME", help="One of torchvision's.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Fine-tune published weights.")] = False,
    size: Annotated[int | None, typer.Option(min=1, help="Side of what the network sees, px.")] = None,
    epochs: cli.EpochsOption = None,
    batch_size: cli.BatchSizeOption = None,
    global_batch: cli.GlobalBatchOption = None,
    limit: cli.LimitOption = None,
    seed: cli.SeedOption = None,
    on_nan: cli.OnNanOption = None,
    set_: cli.SettingsOption = None,
    weights: cli.WeightsOption = None,
    cache_gb: cli.CacheOption = None,
    device: cli.DeviceOption = "auto",
    resume: cli.ResumeOption = False,
    dry_run: cli.DryRunOption = False,
) -> Path:
    """Train a classifier; returns the run folder. Raises UserError before any work if something is off."""
    from dataset.folders import list_items
    from evaluation import classifier as classifiers
    from models import count_parameters
    from runtime import distributed, run_folder
    from runtime.device import FORMATS, keep_freed_memory, machine_words, pick_device, pick_precision
    from runtime.weights import require_folder
    from training import setup

    given = setup.given_fields(
        ClassifierRecipe, set_, network=network, pretrained=pretrained or None, size=size, epochs=epochs,
        seed=seed, batch_size=batch_size, limit=limit, on_nan=on_nan,
    )  # fmt: skip
    folder, weights = Path(run or RUNS / "classifier"), require_folder(weights)
    stored = setup.find_stored(folder, run_folder.ClassifierRecord, data) if resume else None
    if weights and not (stored.recipe if stored else ClassifierRecipe(**given)).pretrained:
        raise UserError("--weights has no effect here: it needs --pretrained; leave it out")
    if stored is not None:
        plan = setup.go_on(folder, stored, None, data, given, weights)
    elif data is None:
        raise UserError("a classifier needs --data PATH|NAME: a folder of pictures per class, or cifar10")
    else:
        plan = setup.Setup(folder, ClassifierRecipe(**given), data, given, weights)
    plan = setup.complete(plan, global_batch, writes=not dry_run)
    made, data, on = plan.recipe, plan.data, pick_device(device)
    precision = pick_precision(made.precision, on)
    with distributed.in_turn():
        items = list_items(data, made, CACHE)
    classes = classifiers.find_classes(items, data, stored and stored.classes)
    keeps_memory = keep_freed_memory()
    training = build_training(made, classes, on, precision)
    if not dry_run:
        shapes = copy.deepcopy(training.classifier.network).to("meta")
        training.memory_format = plan.settle_format(shapes, 3, on, precision)
        training.classifier.to(memory_format=FORMATS[training.memory_format])
    classifier, start = training.classifier, "published weights" if made.pretrained else "scratch"
    count = f"{data}: {len(items['train'])} to train, {len(items['val'])} to validate, {len(classes)} classes"
    layout = f"{made.network} at {made.size} px, {count_parameters(classifier):,} parameters, from {start}"
    facts = {
        "data": count,
        "network": layout,
        "epochs": made.epochs,
        "device": f"{on}, {precision}, {training.memory_format}",
        "machine": machine_words(on, keeps_memory),
    }
    plan.announce(facts, dry_run, items.notes)
    if dry_run:
        return folder
    with plan.owned():
        return run_training(plan, training, items, on, cache_gb)


def restore(plan: "Setup", training: Training, on: "torch.device") -> "State":
    """Return the state of a run that begins or goes on, with the weights that its network has there."""
    from evaluation.classifier import load_pretrained
    from runtime import distributed
    from runtime.weights import load_weights
    from training.loop import State

    made, network = plan.recipe, training.classifier.network
    parts = {"network": network, "optimizer": training.optimizer, "scaler": training.scaler}
    state = State(FORMAT, parts, on, made.batch_size * distributed.world())
    distributed.vary_seed(made.seed)
    plan.restore(state, is_owner=not distributed.rank())
    if made.pretrained and not plan.has_state:
        with distributed.in_turn():
            published = load_weights(made.network, plan.weights, "leave out --pretrained")
        load_pretrained(training.classifier, published)
    return state


def run_training(
    plan: "Setup", training: Training, items: "Splits", on: "torch.device", cache_gb: float | None
) -> Path:
    """Train a run that begins or goes on, whose folder is ours, to its last epoch; returns the folder."""
    import torch
    from torch import Tensor

    from data import Loading, ahead, steps_per_epoch, training_order
    from evaluation import classifier as classifiers
    from reporting.curves import plot_losses
    from runtime import distributed, run_folder
    from runtime.progress import say
    from training import setup
    from training.loop import fit, keep_finite

    made, folder, classifier = plan.recipe, plan.folder, training.classifier
    rank, world, state = distributed.rank(), distributed.world(), restore(plan, training, on)
    loading = Loading(made.load_size, made.fit, "none", False)
    images = plan.load_splits(items, loading, cache_gb)
    if len(images["train"]) < 2:
        raise UserError(f"only one training picture of {plan.data} can be read: {images['train'].bad[0]}")
    setup.require_batch(made, len(images["train"]))
    if plan.stored is not None:
        plan.record_resume(images)
    else:
        own = {"classes": classifier.classes, "memory_format": training.memory_format}
        plan.record(run_folder.ClassifierRecord, loading, images, **own)
    labels = {n: torch.tensor(classifiers.label_ids(split.labels, classifier.classes)) for n, split in images.items()}
    steps = steps_per_epoch(len(images["train"]), state.batch)
    training.classifier_ddp = distributed.averaging(classifier)

    def batches(epoch: int, start: int, signals: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        shown = images["train"]
        order = training_order(len(shown), made.batch_size, made.flip, made.seed, epoch, start, rank, world)
        found = ((shown.gather(ids, made.size, *how)[1], labels["train"][ids]) for ids, *how in order)
        return found if shown.decode is None else ahead(found, signals)

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        done = (state.epoch - 1) * steps + state.step  # as if there had always been as many processes
        training.optimizer.param_groups[0]["lr"] = learning_rate(made, made.epochs * steps, done)
        image, label = (part.to(on, non_blocking=True) for part in batch)
        with keep_finite(made.on_nan == "skip", classifier):
            return {"C_loss": train_step(training, image, label)}

    def save(epoch: int) -> None:
        scores = validate(classifier, made, images["val"], labels["val"], epoch)
        if not rank:
            classifiers.save_classifier(folder, epoch, classifier)
            classifiers.write_accuracy(folder, scores)
            say(f"epoch {epoch} | {in_words(scores)}")

    def show(epoch: int) -> None:
        if not rank:
            plot_losses(folder / run_folder.CURVES, run_folder.read_records(folder / run_folder.LOG))

    fit(folder, made, state, images, batches, step, save, show, "python train_classifier.py")
    best = classifiers.best_accuracy(folder)
    say(f"trained {made.epochs} epochs; the best is {best.epoch}: {in_words(best)}")
    say(f"score colourised pictures with it: python eval.py --classifier {quote(str(folder))}")
    return folder


if __name__ == "__main__":
    cli.command(main, shared=True)
