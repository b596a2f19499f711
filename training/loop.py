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

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from config import Recipe, UserError
from data import ImageSet, evenly_spaced, steps_per_epoch, training_batches
from imaging import color
from imaging.files import write_image
from imaging.pixels import contact_sheet
from inference import checkpoint
from reporting.curves import plot_losses
from runtime import atomic, run_folder
from runtime.atomic import replacing
from runtime.run_folder import read_records
from training.gan import REMEDY, Training, make_batch, train_step

if sys.platform != "win32":
    import resource


class Log:
    """Sums losses up on the device and, once per interval, turns them into a status line and a record."""

    def __init__(self, path: Path, steps: int) -> None:
        """Open the log; records after `steps`, left by a run that was cut off, are dropped."""
        self.path = path
        self.records = [record for record in read_records(path) if record["steps"] <= steps]
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in self.records))
        self.clear()

    def clear(self) -> None:
        """Begin an interval."""
        self.sums: dict[str, Tensor] = {}
        self.steps, self.images, self.waited, self.started = 0, 0, 0.0, time.perf_counter()

    def add(self, terms: dict[str, Tensor], images: int, waited: float) -> None:
        """Count one step: its loss terms, its images, and the seconds spent waiting for them."""
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps, self.images, self.waited = self.steps + 1, self.images + images, self.waited + waited

    def flush(self, progress: dict[str, int], lr: float, device: torch.device, remedy: str) -> None:
        """End the interval: print a line, append the record.

        Args:
            progress: epoch, step in it, and steps in all.
            lr: the step size now.
            device: whose memory is reported.
            remedy: what to do where a loss is not finite.

        Raises:
            UserError: a loss is not finite.
        """
        if not self.steps:
            return
        values = (torch.stack(list(self.sums.values())) / self.steps).tolist()  # the one wait for the device
        means = dict(zip(self.sums, values, strict=True))
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            names = " ".join(broken)
            raise UserError(
                f"{names} not finite by step {progress['steps']}; nothing was overwritten: {remedy}"
            )
        seconds = time.perf_counter() - self.started
        record = {
            **progress,
            **means,
            "lr": lr,
            "images_per_s": self.images / seconds,
            "data_wait_percent": 100 * self.waited / seconds,
            "memory_mb": peak_memory_mb(device),
        }
        self.records.append(record)
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        terms = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        speed = f"{record['images_per_s']:.1f} images/s | data wait {record['data_wait_percent']:.1f} %"
        where = f"epoch {progress['epoch']} step {progress['steps']}"
        tqdm.write(f"{where} | {terms} | {speed} | {record['memory_mb']:.0f} MB")
        self.clear()


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MB: of the GPU where the networks are on one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Yield a list to which Ctrl-C and SIGTERM add their number; a second one stops at once."""
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may set handlers
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
        checkpoint.save_generator(run, done, recipe, training.generator_for_use())
        save_samples(run, recipe, done, val, device)
        plot_losses(run / "losses.png", log.records)
    training.epoch, training.step = done + 1, 0
    if due:
        save_state(run, training, log)


def flush(log: Log, training: Training) -> None:
    """End an interval of the log. Raises UserError where a loss is not finite."""
    device = next(training.generator.parameters()).device
    log.flush(training.progress(), training.optimizer_g.param_groups[0]["lr"], device, REMEDY)


def save_state(run: Path, training: Training, log: Log) -> None:
    """Write all that a resume needs."""
    flush(log, training)
    training.check_finite()
    atomic.save(run_folder.state_path(run), training.state_dict())
    log.clear()  # what saving took is no training time


def save_samples(run: Path, recipe: Recipe, epoch: int, images: ImageSet, device: torch.device) -> None:
    """Write input | ours | truth of the same few validation images at every save."""
    ids = evenly_spaced(len(images), recipe.samples)
    source, target = images.gather_fixed(ids, recipe)
    ours = checkpoint.load_colorizer(run, epoch, device)(source.to(device)).cpu()
    columns = (color.show_input(source, recipe.input), ours, target)
    rows = [[picture.permute(1, 2, 0).numpy() for picture in row] for row in zip(*columns, strict=True)]
    write_image(run / "samples" / f"epoch_{epoch:04d}.png", contact_sheet(rows, ["input", "ours", "truth"]))


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
