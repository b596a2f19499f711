"""Train a colouriser on a folder of images.

    python train.py                                        # recipe demo, its own scenes
    python train.py --recipe coco --data photos/           # photo -> colour in Lab
    python train.py --recipe anime --data panels/          # sketch -> colour, lines drawn if there are none
    python train.py --recipe unet32 --data cifar10         # a torchvision data set by name
    python train.py --resume --run runs/coco               # goes on exactly where it stopped
    python train.py --list-recipes
    python train.py --recipe manga --data pages/ --audit   # does every loss term reach its network?

Every save_every epochs the run folder gets a generator, a resumable state, a sample sheet and loss curves.
"""

import threads  # noqa: F401  before torch

import time
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from tqdm import tqdm

import checkpoint
import color
from audit import audit, failures
from audit import table as audit_table
from checkpoint import pick_device, read_run
from cli import DataOption, DeviceOption, EpochsOption, RecipeOption, RunOption, WeightsOption, command
from config import CACHE, RUNS, Recipe, parse_settings
from damage import make_input, seeded
from data import ImageSet, find_loading, load_images, steps_per_epoch, training_batches
from folders import list_items, pick
from gan import (
    REMEDY,
    Batch,
    Training,
    build_training,
    load_pretrained,
    pick_precision,
    term_weights,
    train_step,
)
from images import contact_sheet, write_image
from log import Log, noted_signals
from plots import plot_losses
from preflight import describe, recipe_table, require_batch, resolve, resolve_resumed, write_record


def finish_epoch(
    run: Path, recipe: Recipe, training: Training, log: Log, val: ImageSet, device: torch.device
) -> None:
    """Go on to the next epoch, saving what save_every asks for."""
    done = training.epoch
    due = done % recipe.save_every == 0 or done == recipe.epochs
    if due or done == recipe.pretrain_epochs:  # the terms change with the stage
        flush(log, training)
    if due:
        training.check_finite()
        checkpoint.save_generator(run, done, asdict(recipe), training.generator_for_use())
        save_samples(run, recipe, done, val, device)
        plot_losses(run / "losses.png", log.records)
    training.epoch, training.step = done + 1, 0
    if due:
        save_state(run, training, log)


def flush(log: Log, training: Training) -> None:
    """End an interval of the log. Raises ValueError where a loss is not finite."""
    device = next(training.generator.parameters()).device
    log.flush(training.progress(), training.optimizer_g.param_groups[0]["lr"], device, REMEDY)


def save_state(run: Path, training: Training, log: Log) -> None:
    """Write all that a resume needs."""
    flush(log, training)
    training.check_finite()
    checkpoint.save(checkpoint.state_path(run), training.state_dict())
    log.clear()  # what saving took is no training time


def save_samples(run: Path, recipe: Recipe, epoch: int, images: ImageSet, device: torch.device) -> None:
    """Write input | ours | truth of the same few validation images at every save."""
    ids = np.linspace(0, len(images) - 1, min(recipe.samples, len(images))).astype(int).tolist()
    source, target = images.gather_fixed(ids, asdict(recipe))
    ours = checkpoint.load_colorizer(run, epoch, device)(source.to(device)).cpu()
    columns = (color.show_input(source, recipe.input), ours, target)
    rows = [[picture.permute(1, 2, 0).numpy() for picture in row] for row in zip(*columns, strict=True)]
    write_image(run / "samples" / f"epoch_{epoch:04d}.png", contact_sheet(rows, ["input", "ours", "truth"]))


def make_batch(source: Tensor, target: Tensor, recipe: Recipe, device: torch.device, step: int) -> Batch:
    """Bring (N, 3, S, S) uint8 pictures to the device, as what the networks take at this step of the run."""
    photograph = source is target
    target = target.to(device, non_blocking=True)
    source = target if photograph else source.to(device, non_blocking=True)
    given = make_input(source, target, asdict(recipe), seeded(device, recipe.seed, step))
    if given is target and recipe.input == "L" and recipe.output == "ab":  # one conversion for both
        return Batch(*color.encode(target, "Lab").split([1, 2], 1), target)
    return Batch(color.encode(given, recipe.input), color.encode(target, recipe.output), target)


def train_epoch(
    training: Training,
    recipe: Recipe,
    images: ImageSet,
    device: torch.device,
    amp: torch.autocast,
    log: Log,
    caught: list[int],
) -> None:
    """Train from training.step to the end of its epoch, or until a signal is caught."""
    steps = steps_per_epoch(len(images), recipe.batch_size)
    batches = training_batches(
        images, recipe.batch_size, recipe.size, recipe.flip, recipe.seed, training.epoch, training.step
    )
    title = f"epoch {training.epoch}/{recipe.epochs}"
    bar = tqdm(total=steps, initial=training.step, desc=title, leave=False, disable=None)
    started = time.perf_counter()
    if training.epoch == recipe.pretrain_epochs + 1 and training.step == 0:
        training.optimizer_g.state.clear()  # Adam starts anew
    for source, target in batches:
        waited = time.perf_counter() - started
        batch = make_batch(source, target, recipe, device, training.steps)
        training.set_learning_rate(recipe, steps)
        log.add(train_step(training, batch, recipe, amp), len(batch.x), waited)
        training.step, training.steps = training.step + 1, training.steps + 1
        bar.update()
        if training.steps % recipe.log_every == 0:
            flush(log, training)
        if caught:
            break
        started = time.perf_counter()
    bar.close()


def print_audit(training: Training, recipe: Recipe, images: ImageSet, device: torch.device) -> None:
    """Print the loss audit of the first batch; exits with 1 if a term does not reach its network."""
    require_batch(recipe, len(images))
    batches = training_batches(images, recipe.batch_size, recipe.size, recipe.flip, recipe.seed, 1)
    results = audit(training, make_batch(*next(batches), recipe, device, 0), recipe)
    print(audit_table(results, term_weights(recipe)))
    dead = failures(results, term_weights(recipe))
    if dead:
        print(f"audit failed: no finite, nonzero gradient from {' '.join(dead)}")
        raise SystemExit(1)
    print("audit passed: every term reaches its network")


def main(
    recipe: RecipeOption = None,
    data: DataOption = None,
    run: RunOption = None,
    epochs: EpochsOption = None,
    size: Annotated[int | None, typer.Option(min=4, help="Side of the training squares, px.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per step.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Images of each split at most; 0: all.")] = None,
    save_every: Annotated[int | None, typer.Option(min=1, help="Epochs between checkpoints.")] = None,
    gan_mode: Annotated[
        str | None, typer.Option(metavar="vanilla|lsgan|hinge", help="Adversarial loss.")
    ] = None,
    pair: Annotated[
        str | None, typer.Option(metavar="AB|BA|none|auto", help="Colour left (AB) or right.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any recipe field.")
    ] = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what is resolved, and stop.")] = False,
    audited: Annotated[
        bool, typer.Option("--audit", help="Check that each loss term reaches its network, and stop.")
    ] = False,
    list_recipes: Annotated[bool, typer.Option("--list-recipes", help="Print all, and stop.")] = False,
) -> Path:
    """Train a colouriser; returns the run folder. Raises ValueError before any work if something is off."""
    if list_recipes:
        print(recipe_table())
        return RUNS
    options = {
        "epochs": epochs, "size": size, "batch_size": batch_size, "limit": limit, "save_every": save_every,
        "gan_mode": gan_mode, "pair": pair, "seed": seed, **parse_settings(set_ or []),
    }  # fmt: skip
    if resume:
        made, where, folder = resolve_resumed(recipe, data, run, options)
        weights = weights or read_run(folder).get("weights")
    else:
        made, where, folder = resolve(recipe, data, run, options, writes=not (dry_run or audited))
    on = pick_device(device)
    precision = pick_precision(made.precision, on)
    items = list_items(where, asdict(made), CACHE)
    loading = find_loading(asdict(made), items["train"])
    torch.backends.cudnn.benchmark = True  # every batch has one shape
    training = build_training(made, on, precision)
    print(describe(made, where, folder, items, loading, training, f"{on}, {precision}"), flush=True)
    if dry_run:
        print("\n".join(f"  {key} = {value}" for key, value in asdict(made).items()))
        return folder
    state = checkpoint.state_path(folder)
    restored = resume and state.exists()
    weights = Path(weights) if weights else None
    load_pretrained(training, made, weights, fresh=not restored)
    if restored:
        training.load_state_dict(checkpoint.load(state))
    amp = torch.autocast(
        on.type, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision), precision != "fp32"
    )
    if audited:
        few = pick(items["train"], 4 * made.batch_size, made.seed)
        print_audit(training, made, load_images(few, loading, CACHE, "train"), on)
        return folder
    for place in (folder, CACHE):
        place.mkdir(parents=True, exist_ok=True)  # fails now rather than after decoding

    images = {name: load_images(items[name], loading, CACHE, name) for name in ("train", "val")}
    require_batch(made, len(images["train"]))
    write_record(folder, made, where, loading, images, training, weights, resume)
    log = Log(folder / "log.jsonl", training.steps)
    steps = steps_per_epoch(len(images["train"]), made.batch_size)
    with noted_signals() as caught:
        while training.epoch <= made.epochs and not caught:
            train_epoch(training, made, images["train"], on, amp, log, caught)
            if training.step >= steps:
                finish_epoch(folder, made, training, log, images["val"], on)
        if caught:
            save_state(folder, training, log)
    for name, split in images.items():
        for sentence in split.bad:
            print(f"skipped {sentence}")
        if split.gray:
            print(f"left {split.gray} near-gray pictures out of {name} (min_colorfulness)")
    name = quote(str(folder))
    if training.epoch <= made.epochs:
        print(f"stopped in epoch {training.epoch}; go on with: python train.py --resume --run {name}")
        raise SystemExit(128 + caught[0])
    print(f"trained {made.epochs} epochs; see which is best: python eval.py --all-epochs --run {name}")
    return folder


if __name__ == "__main__":
    command(main)
