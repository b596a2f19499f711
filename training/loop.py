"""The training loop of colouriser and classifier: epochs, saving, the log, signals.

A run can be stopped in any step, by Ctrl-C or SIGTERM, and ends with the same bits when it is resumed:
everything random depends on the seed, the epoch and the step, or on torch's generators, which state.pt holds.
"""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor, nn

from config import AnyRecipe, Recipe, UserError
from data import ImageSet, steps_per_epoch
from runtime import atomic, distributed
from runtime.atomic import write_text, writing
from runtime.device import device_name, restore_rng, rng_state
from runtime.progress import Clock, duration, say, track
from runtime.run_folder import LOG, previous_state_path, read_records, state_path

Save = Callable[[int], None]  # finished epoch
Show = Callable[[int], str | None]  # finished epoch -> what is wrong with what it shows
TITLES = {  # of loss terms
    "G_gan": "GAN", "G_l1": "L1", "G_mse": "MSE", "G_class": "classes", "G_lpips": "LPIPS", "G_perceptual": "VGG",
    "G_anime": "Danbooru", "D_real": "D-real", "D_fake": "D-fake", "C_loss": "loss",
}  # fmt: skip
FINITE_SHARE = "finite"  # of the steps in an interval: those whose losses are all finite
# a discriminator whose losses are so close to their least, for so many status lines, has won: it teaches no more
MAX_WON_LOSS, MIN_WON_LINES = 0.05, 5
ALONE = 0.66  # of a step's time, where the discriminator takes no part; of coco-resnet and the demo at 128 px
SLOW_S = 5.0  # a first step that takes longer tells how long the others will
LONG_S = 900.0  # a training that lasts longer is said to have a shorter way
SAVE_INTERVAL_S = 1800.0  # within an epoch, so that a kill costs no more
REMEDY = "train with a smaller learning rate (--set lr=...) or with --set precision=fp32"


@dataclass
class State:
    """How far a training has come, and all that changes on the way: what state.pt holds."""

    format: str  # what state.pt calls itself
    parts: dict[str, Any]  # name in state.pt -> network, optimiser, scaler: whatever has a state_dict
    device: torch.device
    batch: int = 0  # pictures per step of all processes
    epoch: int = 1  # the one under way, from 1
    step: int = 0  # batches done in this epoch
    steps: int = 0  # batches done in all
    processes: int = 1  # that were at work when it was saved
    compiled: bool = False  # whether the networks are, so that a first step takes minutes

    @property
    def progress(self) -> dict[str, int]:
        """Epoch, step and steps."""
        return {"epoch": self.epoch, "step": self.step, "steps": self.steps}

    def state_dict(self) -> dict[str, Any]:
        """Return what state.pt holds; in every process, as each has random generators of its own."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        own, *others = distributed.gather(rng_state())
        return {"format": self.format, **states, **self.progress, "batch": self.batch, **own, "others": others}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what state_dict returned. Raises UserError if it does not fit these networks."""
        if state.get("format") != self.format:
            raise UserError(f"state.pt is not a training state in the format {self.format}")
        try:
            for name, part in self.parts.items():
                if name != "scaler" or state[name]:  # one that was off has no state
                    part.load_state_dict(state[name])
                if isinstance(part, torch.optim.Optimizer):
                    require_shapes(part)
        except (KeyError, RuntimeError, ValueError):
            problem = "state.pt does not fit the networks of this recipe, or those of this version"
            raise UserError(f"{problem}: its weights can begin another run (train.py --init)") from None
        self.epoch, self.step, self.steps = state["epoch"], state["step"], state["steps"]
        before = state.get("batch", self.batch)
        if self.step and before != self.batch:
            problem = f"it stopped within epoch {self.epoch}, at {before} pictures per step of all processes"
            raise UserError(f"{problem}, now {self.batch}: finish the epoch with --global-batch {before}")
        rank, others = distributed.rank(), state.get("others", [])
        self.processes = 1 + len(others)
        if rank <= len(others):
            restore_rng([state, *others][rank])
        else:  # there are more processes than before
            distributed.vary_seed(self.steps)

    def check_finite(self) -> None:
        """Raise UserError if a network has a weight that is not finite, before it is saved."""
        for name, part in self.parts.items():
            values = part.state_dict().values() if isinstance(part, nn.Module) else ()
            if not all(torch.isfinite(value).all() for value in values):
                problem = f"the {name} has weights that are not finite; nothing was overwritten"
                raise UserError(f"{problem}: {REMEDY}")


def require_shapes(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError where moments do not have the shapes of their weights, which torch does not check."""
    for weight, moments in optimizer.state.items():
        for value in moments.values():
            if isinstance(value, Tensor) and value.shape not in ((), weight.shape):
                raise ValueError(f"a moment {[*value.shape]} of a weight {[*weight.shape]}")


class Log:
    """Sums losses up on the device and, once per interval, turns them into a record."""

    def __init__(self, path: Path, state: State, skip: bool = False) -> None:
        """Open the log; records of later steps, left by a run that was cut off, are dropped.

        `skip`: a step with a loss that is not finite is not counted, unless an interval has no other. Of several
        processes those whose own losses were finite are in the means of a step that all leave out.
        """
        self.skip, self.path, self.state, self.device_name = skip, path, state, device_name(state.device)
        if not distributed.rank():
            kept = [record for record in read_records(path) if record["steps"] <= state.steps]
            write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.clear()

    def clear(self) -> None:
        """Begin an interval."""
        self.sums: dict[str, Tensor] = {}
        self.finite: list[Tensor] = []  # of each step, whether it counts
        self.steps, self.images, self.waited, self.started = 0, 0, 0.0, time.perf_counter()

    def add(self, terms: Mapping[str, Tensor], images: int, waited: float) -> None:
        """Count one step: its loss terms, its images, and the seconds spent waiting for them."""
        if self.skip:
            finite = torch.stack([*terms.values()]).isfinite().all()
            terms = {name: value.where(finite, 0.0) for name, value in terms.items()} | {FINITE_SHARE: finite.float()}
            self.finite.append(finite)
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps, self.images, self.waited = self.steps + 1, self.images + images, self.waited + waited

    def flush(self) -> None:
        """End the interval: append the record. Raises UserError if a loss is not finite."""
        if not self.steps:
            return
        sums = distributed.add(torch.stack(list(self.sums.values())))
        values = (sums / (self.steps * distributed.world())).tolist()  # which waits for the device
        means, done = dict(zip(self.sums, values, strict=True)), self.state.progress
        if self.skip:
            share = means.pop(FINITE_SHARE)
            every = distributed.gather(torch.stack(self.finite).tolist())
            skipped = sum(not all(flags) for flags in zip(*every, strict=True))  # one process's gradients spoil all
            means = {name: value / share if skipped < self.steps else math.nan for name, value in means.items()}
            means |= {"skipped": skipped} if skipped else {}
        broken = " ".join(name for name, value in means.items() if not math.isfinite(value))
        if broken:
            raise UserError(f"{broken} not finite by step {done['steps']}; nothing was overwritten: {REMEDY}")
        seconds = time.perf_counter() - self.started
        rate, wait = self.images / seconds, 100 * self.waited / seconds
        memory_mb = peak_memory_mb(self.state.device)
        speed = {"images_per_s": rate, "data_wait_percent": wait, "memory_mb": memory_mb}
        speed["device"] = self.device_name
        parts = self.state.parts.values()
        optimizer = next(part for part in parts if isinstance(part, torch.optim.Optimizer))  # a GAN's: of G
        speed["images"] = self.images  # of the interval, of all processes
        record = {**done, **means, "lr": optimizer.param_groups[0]["lr"], **speed}
        if not distributed.rank():
            with writing(self.path), open(self.path, "a") as file:
                file.write(json.dumps(record) + "\n")
        self.clear()


class Status:
    """Says now and then how a training goes and how long it will take; first what the whole of it takes here."""

    PLAN_STEPS = 10  # steps after which the time is told

    def __init__(self, state: State, recipe: AnyRecipe, steps: int, images: int) -> None:
        """`steps`: per epoch; `images`: to train on."""
        self.state, self.recipe, self.steps, self.images = state, recipe, steps, images
        self.count = min(images, state.batch or recipe.batch_size)  # per step
        self.half = steps * getattr(recipe, "half_epochs", 0)  # steps on a quarter of the pixels
        self.alone = steps * getattr(recipe, "pretrain_epochs", 0)  # steps of the generator alone
        self.clock, self.done, self.planned, self.won, self.problem = Clock(), 0, False, 0, ""
        self.clear()

    def clear(self) -> None:
        """Begin an interval."""
        self.sums: dict[str, Tensor] = {}
        self.first, self.began = self.done, time.monotonic()

    def work(self, steps: int) -> float:
        """Return how many whole steps the first `steps` of the run are worth.

        One on halved pictures has a quarter of the pixels and counts as a half: the demo's takes 0.6 of the time.
        One of the generator alone counts as ALONE.
        """
        halved, alone, both = (min(steps, most) for most in (self.half, self.alone, min(self.half, self.alone)))
        return steps - 0.5 * halved - (1 - ALONE) * (alone - 0.5 * both)

    @property
    def seconds_left(self) -> float:
        """How long the rest takes at the speed since the first step, which is slower than others; or at its own."""
        # not State.steps: before a resume they may have been larger or smaller
        now, end = (self.state.epoch - 1) * self.steps + self.state.step, self.steps * self.recipe.epochs
        others = self.done > 1
        worth = self.work(now) - self.work(now - self.done + others)
        return (time.monotonic() - (self.warm if others else self.began)) / worth * (self.work(end) - self.work(now))

    def add(self, terms: Mapping[str, Tensor], waited: float = 0.0) -> None:
        """Count one step with its loss terms, and the seconds spent waiting for its pictures; says what is due."""
        self.done += 1
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        if self.done == 1:
            self.began, self.warm = self.began + waited, time.monotonic()
            if self.state.device.type == "cpu" and not self.state.compiled and self.warm - self.began > SLOW_S:
                self.plan(", if all steps are like the first")
            return
        due = self.clock.due()
        if not self.planned and (due or self.done == self.PLAN_STEPS):
            self.planned = True
            self.plan("")
        if due:
            self.say()

    def plan(self, condition: str) -> None:
        """Say how long the whole of it takes."""
        left = self.seconds_left
        is_long = left > LONG_S and isinstance(self.recipe, Recipe)
        look = "; for a first look in minutes: --quick" if is_long else ""
        whole = f"{self.recipe.epochs} epochs of {self.images:,} pictures"
        if self.state.steps > self.done:  # others were taken before this start
            whole, look = f"the rest of {whole}, from epoch {self.state.epoch} on", ""
        say(f"{whole}: about {duration(left)} here{condition}; Ctrl-C keeps what is done{look}")

    def say(self) -> None:
        """Print the means since the last line."""
        count, rate = self.done - self.first, self.count / (time.monotonic() - self.began)
        means = {name: float(value) / count for name, value in self.sums.items()}
        terms = " ".join(f"{TITLES.get(name, name)} {value:.3g}" for name, value in means.items())
        words = f"{rate * count:.1f} images/s | {duration(self.seconds_left)} left"
        self.won = self.won + 1 if self.is_winning(means) else 0
        if self.won >= MIN_WON_LINES:
            words += " | the discriminator has won: begin anew with a smaller lr_d, or label_real=0.9"
        words += f" | {self.problem}" if self.problem else ""
        say(f"epoch {self.state.epoch}/{self.recipe.epochs} | {terms} | {words}")
        self.clear()

    def is_winning(self, means: Mapping[str, float]) -> bool:
        """Tell whether the discriminator's losses are almost the least that its labels allow."""
        if not {"D_real", "D_fake"} <= means.keys():
            return False
        label, least = self.recipe.label_real, 0.0
        if self.recipe.gan_mode == "vanilla" and label < 1:  # the entropy of a smoothed label
            least = -label * math.log(label) - (1 - label) * math.log(1 - label)
        return max(means["D_real"] - least, means["D_fake"]) < MAX_WON_LOSS


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MB: of the GPU where the networks are on one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return math.nan
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def keep_finite(skip: bool, *networks: nn.Module | None) -> Iterator[None]:
    """Where `skip`, undo what the step within does to statistics of BatchNorm if they are not finite after it."""
    buffers = [each for network in networks if skip and network is not None for each in network.buffers()]
    before = [each.clone() for each in buffers]
    yield
    for each, old in zip(buffers, before, strict=True):
        each.copy_(each.where(each.isfinite().all(), old))


@contextmanager
def handled(handler: Callable[[int, object], None], *names: str) -> Iterator[None]:
    """Let a function handle signals, in the main thread; no other may set handlers.

    SIGHUP, which comes when a terminal closes, stays ignored where it is: nohup asks for it.
    """
    in_main, previous = threading.current_thread() is threading.main_thread(), {}
    for number in (getattr(signal, name) for name in names if in_main and hasattr(signal, name)):
        if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:  # Windows has none
            previous[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Yield a list to which Ctrl-C, SIGTERM and SIGHUP add their number; Ctrl-C after another stops at once.

    A terminal that closes sends SIGHUP twice, which must not cost what is being saved. Under torchrun nothing stops at
    once: it sends one signal for each that it gets, and kills what does not end in time.
    """
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        if caught and number == signal.SIGINT and not distributed.is_joined():
            raise KeyboardInterrupt
        caught.append(number)

    with handled(note, "SIGINT", "SIGTERM", "SIGHUP"):
        yield caught


def fit(
    run: Path, recipe: AnyRecipe, state: State, images: Mapping[str, ImageSet],
    batches: Callable[[int, int, list[int]], Iterator[Any]],
    step: Callable[[Any], Mapping[str, Tensor]],
    save: Save, show: Show,
    command: str, last_of_stage: int = 0,
) -> None:  # fmt: skip
    """Train to the last epoch, or until a signal comes; state.pt is written every save_every epochs.

    Args:
        run: folder for log.jsonl and state.pt.
        images: split -> its pictures; "train" is trained on.
        batches: epoch, first step and the signals that have come, which end a wait -> that epoch's batches from there.
        step: updates the networks on a batch; returns its loss terms, detached scalars on the device.
        save: writes what is for use, before state.pt.
        show: writes what is to look at, after it, so that nothing is lost where it fails; what it returns stands on
            the status lines until the next time. A kill before its end loses what that epoch shows.
        command: what the user runs to resume.
        last_of_stage: epoch after which the loss terms change, so that no record is of both; 0 = none.

    Raises:
        UserError: a loss or a weight is not finite.
        SystemExit: a signal came; everything is saved.
    """
    log = Log(run / LOG, state, recipe.on_nan == "skip")
    count = images["train"].per_epoch
    steps = steps_per_epoch(count, recipe.batch_size * distributed.world())
    saver = Saver(run, log)
    status, agreed, stop = Status(state, recipe, steps, count), distributed.Agreed(), 0
    torch.backends.cudnn.benchmark = True  # every batch has one shape
    with noted_signals() as caught:
        while state.epoch <= recipe.epochs and not stop:
            title = f"epoch {state.epoch}/{recipe.epochs}"
            todo = batches(state.epoch, state.step, [] if distributed.world() > 1 else caught)  # all take as many steps
            started = time.perf_counter()
            for batch in track(_saved_if_it_fails(todo, run, log), title, steps, state.step, lines=False):
                waited = time.perf_counter() - started
                terms = step(batch)
                log.add(terms, status.count, waited)
                state.step, state.steps = state.step + 1, state.steps + 1
                status.add(terms, waited)
                if state.steps % recipe.log_every == 0:
                    log.flush()
                stop, due = divmod(agreed(2 * sum(caught[:1]) + saver.is_due), 2)
                if stop:
                    break
                saver.save(bool(due))
                started = time.perf_counter()
            if state.step >= steps:
                _finish_epoch(run, recipe, log, save, show, last_of_stage, status)
            stop = stop or agreed(2 * sum(caught[:1])) // 2
        agreed.finish()
        if stop:
            _save_state(run, log)
    _say_left_out(images)
    if state.epoch <= recipe.epochs:
        say(f"stopped in epoch {state.epoch}; go on with: {command} --resume --run {quote(str(run))}")
        raise SystemExit(128 + stop)


def _saved_if_it_fails(batches: Iterator[Any], run: Path, log: Log) -> Iterator[Any]:
    """Yield batches; where no more can be read, save what was learnt, if no other process would have to join in."""
    try:
        yield from batches
    except (UserError, OSError):
        if distributed.world() == 1:
            _save_state(run, log)
        raise


class Saver:
    """Saves the state before the first step, and within an epoch now and then."""

    def __init__(self, run: Path, log: Log) -> None:
        self.run, self.log, self.at, self.steps = run, log, time.monotonic(), log.state.steps
        if not self.steps:  # or a kill while the first epoch is saved would leave an epoch and no state to go on from
            _save_state(run, log)

    @property
    def is_due(self) -> bool:
        """Tell whether it is time, by the clock of this process."""
        return time.monotonic() - self.at > SAVE_INTERVAL_S

    def save(self, due: bool) -> None:
        """Save where all processes say so, unless that was done a step ago: their answer comes late, and twice."""
        if due and self.log.state.steps > self.steps + 1:
            _save_state(self.run, self.log)
            self.at, self.steps = time.monotonic(), self.log.state.steps


def _say_left_out(images: Mapping[str, ImageSet]) -> None:
    """Say at the end, where it is seen, which pictures were not trained on."""
    for name, split in images.items():
        for sentence in split.bad:
            say(f"skipped {sentence}")
        if split.gray:
            say(f"left {split.gray} near-gray pictures out of {name} (min_colorfulness)")


def _finish_epoch(
    run: Path, recipe: AnyRecipe, log: Log, save: Save, show: Show, last_of_stage: int, status: Status
) -> None:
    """Go on to the next epoch, saving what save_every asks for."""
    state, done = log.state, log.state.epoch
    due = done % recipe.save_every == 0 or done == recipe.epochs
    if due or done == last_of_stage:
        log.flush()
    if due:
        state.check_finite()
        save(done)
    state.epoch, state.step = done + 1, 0
    if due:
        _save_state(run, log)
        status.problem = show(done) or ""
        log.clear()  # what this took is no training time either


def _save_state(run: Path, log: Log) -> None:
    """Write all that a resume needs."""
    log.flush()
    log.state.check_finite()
    state = log.state.state_dict()
    if not distributed.rank():
        with writing(log.path), open(log.path, "a") as file:
            os.fsync(file.fileno())  # or after a power cut the log could lack steps that the state has
        atomic.save(state_path(run), state, previous_state_path(run))
    distributed.wait()  # or torchrun would take the end of one for the end of all
    log.clear()  # what saving took is no training time
