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

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Annotated

import torch
import typer

from config import CACHE, RUNS, Recipe, parse_settings
from data import ImageSet, find_loading, load_images, steps_per_epoch, training_batches
from dataset.folders import list_items, pick
from runtime import atomic, run_folder
from runtime.cli import (
    DataOption,
    DeviceOption,
    EpochsOption,
    RecipeOption,
    RunOption,
    WeightsOption,
    command,
)
from runtime.device import pick_device, pick_precision
from runtime.run_folder import read_run
from training.gan import Training, audit, build_training, failures, load_pretrained, make_batch, term_weights
from training.gan import table as audit_table
from training.loop import Log, finish_epoch, noted_signals, save_state, train_epoch
from training.setup import describe, recipe_table, require_batch, resolve, resolve_resumed, write_record


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
    """Train a colouriser; returns the run folder. Raises UserError before any work if something is off."""
    if list_recipes:
        print(recipe_table())
        return RUNS
    options = {
        "epochs": epochs, "size": size, "batch_size": batch_size, "limit": limit, "save_every": save_every,
        "gan_mode": gan_mode, "pair": pair, "seed": seed, **parse_settings(set_ or []),
    }  # fmt: skip
    if resume:
        made, where, folder = resolve_resumed(recipe, data, run, options)
        weights = weights or read_run(folder).weights
    else:
        made, where, folder = resolve(recipe, data, run, options, writes=not (dry_run or audited))
    on = pick_device(device)
    precision = pick_precision(made.precision, on)
    items = list_items(where, made, CACHE)
    loading = find_loading(made, items["train"])
    torch.backends.cudnn.benchmark = True  # every batch has one shape
    training = build_training(made, on, precision)
    print(describe(made, where, folder, items, loading, training, f"{on}, {precision}"), flush=True)
    if dry_run:
        print("\n".join(f"  {key} = {value}" for key, value in asdict(made).items()))
        return folder
    state = run_folder.state_path(folder)
    restored = resume and state.exists()
    weights = Path(weights) if weights else None
    load_pretrained(training, made, weights, fresh=not restored)
    if restored:
        training.load_state_dict(atomic.load(state))
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
    overrides = {key: value for key, value in options.items() if value is not None}
    write_record(folder, made, where, loading, images, training, weights, overrides, resume)
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
