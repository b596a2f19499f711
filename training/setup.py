"""Setting up a run: what it is about to do is settled and checked before any work, and recorded."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import nn

from config import CACHE, DEGRADATIONS, DEMO, ROOT, AnyRecipe, ClassifierRecipe, Recipe, UserError, parse_settings
from data import MAX_ASPECT, ImageSet, Loading, evenly_spaced, held_out, load_images, require_place, steps_per_epoch
from dataset.folders import Splits
from dataset.shards import is_pattern
from imaging.pixels import is_coloured
from models import GENERATORS, fit_networks, needs_two_images
from runtime import distributed, run_folder
from runtime.device import can_compile, pays_to_compile, pick_format
from runtime.locks import LOCK
from runtime.progress import say
from runtime.run_folder import ClassifierRecord, Record, RunRecord, has_state, load_state, saved_epochs, state_path
from training.loop import State, handled

# what a resume may change
RESUMABLE = {"epochs", "save_every", "log_every", "lr", "lr_d", "precision", "memory_format", "compile", "on_nan"}
STAMP = 0.02  # of a picture: a stamp, or a note in red, has less colour
MAX_LOOKED_AT = 64  # training pictures of which it is checked whether they have colours
LIBRARIES = ("torch", "torchvision", "numpy", "pillow", "scikit-image")
Stored = RunRecord | ClassifierRecord


@dataclass(frozen=True)
class Setup:
    """What is settled of a run that begins or goes on."""

    folder: Path
    recipe: Recipe | ClassifierRecipe
    data: str  # path or name
    given: Mapping[str, Any]  # recipe fields that the user set
    weights: Path | None  # folder of weight files
    stored: Stored | None = None  # of a run that goes on
    global_batch: int | None = None  # pictures per step of all processes, where the user set it

    @property
    def has_state(self) -> bool:
        """Whether the run goes on from a saved state."""
        return self.stored is not None and has_state(self.folder)

    def announce(self, facts: Mapping[str, object], all_fields: bool, notes: Sequence[str] = ()) -> None:
        """Print what is resolved, one line each, and what was left out of the data."""
        if distributed.is_joined():
            facts = {**facts, "processes": f"{distributed.world()}, batches of {self.recipe.batch_size} each"}
        if self.has_state:
            last = max(saved_epochs(self.folder), default=0)
            facts = {"goes on": f"after epoch {last} of {self.recipe.epochs}", **facts}
        lines = [f"{name:<14} {value}" for name, value in {"run": self.folder, **facts}.items()]
        lines += [f"  {key} = {value}" for key, value in asdict(self.recipe).items() if all_fields]
        lines += notes
        say("\n".join(lines))

    def settle_format(self, network: nn.Module, channels: int, device: torch.device, precision: str) -> str:
        """Return the memory format: the one asked for, else that of the run that goes on, else what is faster here.

        All processes have that of the first, as machines may differ in what is faster.

        Args:
            network: the one that computes most, on the meta device.
            channels: of its input.

        Raises UserError where a process goes on and another begins, or where they differ in folder, device or recipe.
        """
        facts = {"resume": self.stored is not None, "run folder": str(self.folder.absolute()), "device": device.type}
        distributed.require_same({**facts, "precision": precision, **asdict(self.recipe)})
        found = getattr(self.recipe, "memory_format", "auto")
        if found == "auto" and self.stored is not None:
            found = self.stored.memory_format
        shape = (2, channels, self.recipe.size, self.recipe.size)
        with distributed.in_turn():
            if found == "auto":
                found = pick_format(network, shape, device, precision, CACHE)
        return distributed.gather(found)[0]

    def settle_compile(self, images: int, device: torch.device, precision: str) -> bool:
        """Return whether the networks are compiled: as asked for, else as in the run that goes on, else if it pays.

        All processes do as the first. `images`: to train on.
        """
        if self.recipe.compile != "auto":
            return self.recipe.compile == "true"
        if self.stored is not None and self.stored.compiled and not can_compile(device):
            say("this run was compiled, which is not possible here: it goes on without")
        if self.stored is not None:
            return distributed.gather(self.stored.compiled and can_compile(device))[0]
        steps = self.recipe.epochs * steps_per_epoch(images, self.recipe.batch_size * distributed.world())
        return distributed.gather(pays_to_compile(device, precision, steps))[0]

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keep the run folder for this run alone, in all its processes.

        SIGTERM and SIGHUP end a single process as an error does, so that no folder stays in which nothing was written.

        Raises UserError where another process has it, or has written into it since this run was settled.
        """

        def leave(number: int, _: object) -> None:
            raise SystemExit(128 + number)

        signals = () if distributed.is_joined() else ("SIGTERM", "SIGHUP")  # one would wait for the others first
        with handled(leave, *signals), nullcontext() if distributed.rank() else run_folder.owned(self.folder):
            if not distributed.rank() and self.stored is None:
                require_free(self.folder)
            elif not distributed.rank() and read_stored(self.folder, type(self.stored)) != self.stored:
                raise UserError(f"{self.folder} has just been trained by another process: start again")
            distributed.wait()  # for what an owner puts in order there
            yield

    def restore(self, state: State, init: str | None = None, is_owner: bool = False) -> None:
        """Fill the state of a run that goes on with what was saved, if anything was.

        Args:
            init: what a run that begins starts from.
            is_owner: this process has the run folder, so it may remove a damaged state.

        Raises:
            UserError: no saved state can be read or it does not fit, or processes do not stand at the same step.
        """
        goes_on = self.has_state
        if goes_on:
            saved = load_state(self.folder, is_owner)
            before = saved.get("batch", self.stored.recipe.batch_size)
            if self.global_batch not in (None, before):
                problem = f"{self.folder} was trained with {before} pictures per step of all processes"
                raise UserError(f"{problem}; a resume cannot make it {self.global_batch}")
            state.load_state_dict(saved)
            if before != state.batch:
                say(f"{before} pictures per step before, {state.batch} now; --global-batch {before} keeps it")
        distributed.require_same({**state.progress, "batch": state.batch, "init": init, "saved state": goes_on})

    def load_splits(self, items: Splits, loading: Loading, cache_gb: float | None = None) -> dict[str, ImageSet]:
        """Return the pictures to train and to validate on, decoded; says what is wrong with them.

        Makes the run folder and the cache; for `cache_gb` see data.load_images.
        """
        for place in (self.folder, CACHE):
            place.mkdir(parents=True, exist_ok=True)  # fails now rather than after decoding
        loadings = {"train": loading, "val": held_out(loading, self.recipe)}
        with distributed.in_turn():
            images = {name: load_images(items[name], each, CACHE, name, cache_gb) for name, each in loadings.items()}
        facts: dict[str, Any] = {f"pictures of {name}": split.key for name, split in images.items()}
        if items.stream:  # their heads are the same, the rest need not be
            facts |= {f"shard {i}": url for i, url in enumerate(items.stream.urls)}  # the first that differs is named
            facts |= {"number of shards": len(items.stream.urls), "pictures in an epoch": items.stream.count}
        distributed.require_same({**asdict(self.recipe), **facts})
        if items.stream:
            images["train"] = replace(images["train"], stream=items.stream, loading=loading)
        for name, split in images.items():
            if split.cut:
                message = f"{len(split.cut)} sketches of {name} have another shape than their pictures"
                message = f"{message} and are cut around their centres: {listed(split.cut)}"
                say(message if 4 * len(split.cut) < len(split) else f"WARNING: {message}; are these pairs?")
            if long := split.long:
                used = f"of pictures longer than {MAX_ASPECT}:1 the middle alone is used, so cut strips up"
                say(f"{used}; {len(long)} of {name} are so long, or just {MAX_ASPECT}:1: {listed(long)}")
        if self.data != DEMO:
            say(f"{'checked':<14} {faults(images)}{'' if items.stream else f'; more: {self._check_command()}'}")
        return images

    def _check_command(self) -> str:
        """Return the command that looks at all of the data."""
        words = ["python data.py --check", quote(self.data)]
        if isinstance(self.recipe, Recipe) and self.recipe.pair != "auto":
            words.append(f"--pair {self.recipe.pair}")
        if isinstance(self.recipe, Recipe) and self.recipe.pair_folders:
            words.append(f"--pair-folders {' '.join(map(quote, self.recipe.pair_folders.split('/')))}")
        return " ".join(words)

    def record(self, kind: type[Record], loading: Loading, images: Mapping[str, ImageSet], **own: Any) -> None:
        """Write the record of a new run; `own` has the fields of its kind beside those of Record."""
        weights = str(self.weights.resolve()) if self.weights else None
        shared: dict[str, Any] = {"recipe": self.recipe, "data": remembered(self.data), "weights": weights}
        shared |= {"processes": distributed.world(), "loading": asdict(loading)}
        made = kind(**shared, **own, **provenance(images))
        if not distributed.rank():
            run_folder.write_run(self.folder, made)

    def record_resume(self, images: Mapping[str, ImageSet]) -> None:
        """Add a resume to the record; says so where the pictures are not those that the run began with.

        Raises UserError where other data was given that does not hold the same pictures.
        """
        found = provenance(images)
        known = [self.stored.fingerprints, *(entry.get("fingerprints") for entry in self.stored.resumed)]
        if found["fingerprints"] not in known and self.data != self.stored.data:
            trained = f"{self.stored.data}, with which {self.folder} was trained"
            hint = (
                f"to train on others name another folder with --run, and --init {self.folder} to start from its weights"
            )
            raise UserError(f"{self.data} does not hold the images of {trained}; {hint}")
        if found["fingerprints"] != self.stored.fingerprints:
            say("the images have changed since this run began: it goes on with those there are now")
        changes = {"recipe": self.recipe, "data": self.data, "resumed": [*self.stored.resumed, found]}
        changes["processes"] = distributed.world()
        if isinstance(self.stored, RunRecord) and self.stored.overrides is not None:
            changes["overrides"] = {**self.stored.overrides, **self.given}
        if not distributed.rank():
            run_folder.write_run(self.folder, replace(self.stored, **changes))


def given_fields(recipe: type[AnyRecipe], settings: list[str] | None, **options: Any) -> dict[str, Any]:
    """Return the fields of a recipe that the user set, by options of their names or by --set."""
    found = {**options, **parse_settings(settings or [], recipe)}
    return {key: value for key, value in found.items() if value is not None}


def require_effect(recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Raise UserError where the user set a field that changes nothing in this recipe.

    Args:
        recipe: one that went through fit_networks.
        given: fields that the user set, with their values.
    """
    network, adversarial = GENERATORS[recipe.generator], recipe.is_adversarial
    needed = {name: (adversarial, "a discriminator") for name in ("ndf", "norm_d", "spectral_norm", "lr_d", "gan_mode")}
    needed |= {name: (recipe.degradations.get(name), f"{name}_p above 0") for name in DEGRADATIONS}
    needed |= {
        "label_real": (adversarial and recipe.gan_mode != "hinge", "a discriminator with gan_mode vanilla or lsgan"),
        "lambda_gan": (recipe.discriminator != "none", "a discriminator"),
        "pretrain_lr": (recipe.pretrain_epochs, "pretrain_epochs above 0"),
        "warmup": (recipe.schedule == "cosine", "schedule cosine"),
        "anime_share": (recipe.lambda_perceptual, "lambda_perceptual above 0"),
        "line_share": (recipe.input == "gray+line", "input gray+line"),
        "lr_encoder": (network.encoder, "a generator with a pretrained encoder"),
        "dropout": (not network.halvings, "a U-Net of pix2pix as generator"),
    }
    for name, (has_effect, need) in needed.items():
        if name in given and given[name] != getattr(Recipe("x"), name) and not has_effect:
            raise UserError(f"{name} {given[name]} has no effect here: it needs {need}; leave it out")


def require_held_out(items: Splits, given: Mapping[str, Any]) -> None:
    """Raise UserError where the user set val_fraction of data that has a folder for validation."""
    if items.has_val and given.get("val_fraction", Recipe.val_fraction) != Recipe.val_fraction:
        raise UserError("val_fraction has no effect here: the data has a folder val/; leave it out")


def find_stored(folder: Path, kind: type[Stored], data: str | None) -> Stored | None:
    """Return the record of a run that is to go on; None where there is no run, and data with which one can begin.

    So one command begins a run and, after every end, goes on with it. Raises UserError where there is neither.
    """
    name = run_folder.RECORD if kind is RunRecord else run_folder.CLASSIFIER_RECORD
    return None if data and not (folder / name).exists() else read_stored(folder, kind)


def read_stored(folder: Path, kind: type[Stored]) -> Stored:
    """Return the record of a run of this kind. Raises UserError where it is missing or damaged."""
    return run_folder.read_run(folder) if kind is RunRecord else run_folder.read_classifier_run(folder)


def complete(plan: Setup, global_batch: int | None, writes: bool) -> Setup:
    """Return a plan with the share of this process of `global_batch`, if that is given.

    Raises UserError where it cannot be shared or, where the plan `writes`, the folder of a new run is not free.
    """
    if writes and plan.stored is None and not distributed.rank():
        require_free(plan.folder)
    if not global_batch:
        return plan
    if "batch_size" in plan.given:
        raise UserError("--batch-size is of each process and --global-batch of all: give one of them")
    each, left = divmod(global_batch, distributed.world())
    if left or not each:
        raise UserError(f"--global-batch {global_batch} cannot be shared among {distributed.world()} processes")
    recipe, given = replace(plan.recipe, batch_size=each), {**plan.given, "batch_size": each}
    recipe = fit_networks(recipe) if isinstance(recipe, Recipe) else recipe  # which knows batches that are too small
    return replace(plan, recipe=recipe, given=given, global_batch=global_batch)


def require_free(folder: Path) -> None:
    """Raise UserError where a folder holds something, so that no new run can be written into it."""
    if (folder / run_folder.RECORD).exists() or (folder / run_folder.CLASSIFIER_RECORD).exists():
        hint = "go on with --resume, or name another folder with --run"
        raise UserError(f"{folder} already holds a run; {hint}")
    left = (LOCK, run_folder.RENDER_LOCK)  # of a process that was killed before it had written its record
    if folder.exists() and not (
        folder.is_dir() and all(path.name in left or path.match(".*.tmp") for path in folder.iterdir())
    ):
        raise UserError(f"{folder} is not empty and not a run; name another folder with --run")


def go_on(
    run: Path, stored: Stored, name: str | None, data: str | None, given: dict[str, Any], weights: Path | None
) -> Setup:
    """Settle a run that goes on: as it is stored, but for what a resume may change.

    Raises:
        UserError: something else was given than the run was trained with, or its state or data is missing.
    """
    data = remembered(data) if data else stored.data  # record_resume finds out whether it holds the same
    require_place(data)
    asked = {key: (getattr(stored.recipe, key), value) for key, value in given.items()}
    asked |= {"recipe": (stored.recipe.name, name)} if name else {}
    for key, (before, now) in asked.items():
        if key not in RESUMABLE and now != before:
            raise UserError(f"{run} was trained with {key} {before}; a resume cannot make it {now}")
    done = saved_epochs(run)
    if done and not has_state(run):
        raise UserError(f"{state_path(run)} is missing: {run} can be used, but not trained on")
    if done and given.get("epochs", done[-1]) < done[-1]:
        raise UserError(f"{run} has {done[-1]} epochs already; --epochs {given['epochs']} would be fewer")
    recipe = replace(stored.recipe, **given)
    recipe = fit_networks(recipe) if isinstance(recipe, Recipe) else recipe
    weights = weights or (Path(stored.weights) if stored.weights else None)
    return Setup(run, recipe, data, given, weights, stored)


def remembered(data: str) -> str:
    """Return how a run stores the name of its data: absolute, so that stages may run anywhere."""
    on_disk = (Path(data).exists() or is_pattern(data)) and data != DEMO
    return str(Path(data).resolve()) if on_disk else data


def faults(images: Mapping[str, ImageSet]) -> str:
    """Return what is wrong with the files of the splits train and val, as far as decoding them has shown."""
    splits = images.values()
    counts = {
        "cannot be read": sum(len(split.bad) for split in splits),
        "are left out as near-gray": sum(split.gray for split in splits),
        "are there twice": sum(len(split.hashes) - len({*split.hashes}) for split in splits),
        "to validate on are trained on, too": len({*images["train"].hashes} & {*images["val"].hashes}),
    }
    found = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
    return f"{sum(map(len, splits))} pictures: {found or 'nothing found'}"


def require_colour(images: ImageSet) -> None:
    """Look at some of the pictures to train on, and say so where many have little colour.

    Raises UserError where none has more than a stamp.
    """
    ids = evenly_spaced(len(images), MAX_LOOKED_AT)
    pictures = {images.stems[i]: images.picture(i)[..., :3] for i in ids}
    gray = [stem for stem, picture in pictures.items() if not is_coloured(picture)]
    if len(gray) == len(ids) and not any(is_coloured(picture, STAMP) for picture in pictures.values()):
        problem = f"no colour in the {len(ids)} training pictures looked at"
        raise UserError(f"{problem}: there is nothing to learn from them; colorize.py colours such pictures")
    if len(gray) > len(ids) / 4:
        problem = f"{len(gray)} of {len(ids)} training pictures looked at have little or no colour"
        advice = "little can be learnt from them"
        if len(gray) < len(ids):
            advice = "take them out, as --set min_colorfulness=15 does, also with spots of colour"
        say(f"WARNING: {problem}: {listed(gray)}; {advice}")


def listed(names: Sequence[str]) -> str:
    """Return the first few of some names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def require_batch(recipe: AnyRecipe, images: int) -> None:
    """Raise UserError where a process has no full batch, or BatchNorm would be trained on a single value."""
    world = distributed.world()
    if world > 1 and images < world * recipe.batch_size:
        problem = f"{images} training pictures are too few for {world} processes with batches of {recipe.batch_size}"
        raise UserError(f"{problem}: take a smaller --batch-size, or fewer processes")
    if images == 1 and isinstance(recipe, Recipe) and needs_two_images(recipe):
        raise UserError("1 training picture is too few for this network at this size; give it more")


def require_order(state: State, is_stream: bool) -> None:
    """Raise UserError where a stream would go on within an epoch in another order than it began."""
    if is_stream and state.step and state.processes != distributed.world():
        problem = f"it stopped within epoch {state.epoch} of a stream, which {state.processes} processes shared"
        raise UserError(f"{problem}: finish that epoch with as many, as others would see it in another order")


def describe(recipe: Recipe, data: str, items: Splits, loading: Loading, sizes: Mapping[str, int]) -> dict[str, object]:
    """Return what is to be announced of a colouriser; `sizes`: network -> number of parameters."""
    kind = {"AB": "pairs, colour left", "BA": "pairs, colour right", "none": "pictures"}[loading.pair]
    if loading.sketch and loading.pair == "none" and data != DEMO:
        kind = "pictures, lines drawn from them"
    if items.halves:
        colour, sketch = items.halves
        kind = f"pairs, colour in {colour}/, sketches in {sketch}/"
        kind = kind if loading.sketch else f"pictures in {colour}/; those in {sketch}/ are not needed"
    classes = len({item.label for item in items["train"]} - {""})
    kind += f", {classes} classes" if classes > 1 else ""
    kind += "; val/ is used" if items.has_val else ""
    count = len(items["train"])
    if items.stream:
        count, kind = items.stream.count, f"{kind}, a stream of {len(items.stream.urls)} shards"
    discriminator = "none: the generator learns alone"
    if "discriminator" in sizes:
        discriminator = f"{recipe.discriminator}, {sizes['discriminator']:,} parameters"
    return {
        "data": f"{data}: {count} to train, {len(items['val'])} to validate ({kind})",
        "recipe": f"{recipe.name}, {recipe.input} -> {recipe.output} at {recipe.size} px",
        "epochs": recipe.stages,
        "generator": f"{recipe.generator}, {sizes['generator']:,} parameters to train",
        "discriminator": discriminator,
    }


def provenance(images: Mapping[str, ImageSet]) -> dict[str, Any]:
    """Return with what a run was begun or resumed: pictures, versions, commit of this code."""
    commit = None
    if (ROOT / ".git").exists() and shutil.which("git"):
        call = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "images": {name: split.per_epoch for name, split in images.items()},
        "fingerprints": {name: split.key for name, split in images.items()},
        "versions": run_folder.library_versions(LIBRARIES),
        "git": commit or None,
    }
