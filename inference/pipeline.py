"""Many files through one network: decoded in threads, coloured in batches, encoded in threads."""

import shutil
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, islice
from time import monotonic
from typing import Any

import numpy as np

from config import UserError
from imaging.files import FORMATS, check_frames, read_frames, scan, write_frames
from imaging.metadata import Scan
from imaging.pixels import Array, Frame, is_coloured
from inference.hint_files import Hints
from inference.runner import BATCH, Pixels, Runner
from inference.tasks import Task
from runtime.atomic import replacing

BATCH_PIXELS = 2**24  # of all pictures of a batch
QUEUED_PIXELS = 2**26  # of pictures that are decoded, or not yet written, before decoding waits
WIDE = 8_000  # px; two pictures of this width side by side are about the widest WebP


@dataclass
class Job:
    """A task under way: what was read, and what became of it."""

    task: Task
    status: str = ""  # done | kept | skipped | failed
    reason: str = ""  # of a failure
    bug: str = ""  # traceback, where this project is at fault and not the file
    seconds: float = 0.0  # of decoding, colouring and encoding
    scan: Scan | None = None
    frame: Frame | None = None  # of a file with one frame: as read, later in colour
    hints: Array | None = None  # (H, W, 4) uint8
    given: Pixels | None = None  # the input of the network, kept where a sheet will show it

    def attempt(self, step: Callable[["Job"], None]) -> "Job":
        """Do a step of the job, whose error fails this job alone; returns the job."""
        began = monotonic()
        try:
            step(self)
        except Exception as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, OSError) and error.filename:
                reason = f"{error.filename}: {error.strerror}"
            elif not isinstance(error, UserError | MemoryError):
                reason, self.bug = f"{type(error).__name__}: {error}", traceback.format_exc()
            sentence = reason if reason.startswith(str(self.task.path)) else f"{self.task.path}: {reason}"
            self.status, self.reason = "failed", " ".join(sentence.split())
            self.frame = self.given = self.hints = None
        self.seconds += monotonic() - began
        return self

    def take(self, colour: Pixels) -> None:
        """Replace the pixels that were read by their colour version."""
        self.given = self.frame.pixels if self.task.sheet else None
        self.frame = Frame(colour, self.frame.alpha)

    def __str__(self) -> str:
        """Return what is printed for people."""
        if self.status == "failed":
            return f"failed: {self.reason}"
        if self.status == "skipped":
            return f"skipped: {self.task.path}, as {self.task.output} is there (--overwrite replaces it)"
        frames = f", {self.scan.count} frames" if self.scan and self.scan.count > 1 else ""
        kept = ", as it is" if self.status == "kept" else ""
        return f"{self.task.path} -> {self.task.output}{kept}{frames}, {self.seconds:.2f} s"

    def record(self) -> dict[str, Any]:
        """Return what is printed as JSON."""
        line = {"file": str(self.task.path), "output": str(self.task.output), "status": self.status}
        line |= {"reason": self.reason} if self.reason else {}
        return {**line, "frames": self.scan.count if self.scan else 0, "seconds": round(self.seconds, 3)}


def in_threads(pool: ThreadPoolExecutor, step: Callable[[Job], None], jobs: Iterable[Job], limit: int) -> Iterator[Job]:
    """Let threads do a step of each job; yields the jobs in order.

    At most `limit` jobs, and about QUEUED_PIXELS, are taken from `jobs` and not yet yielded.
    """
    queue: deque[tuple[Future[Job], int]] = deque()
    for job in jobs:
        pixels = job.scan.pixels if job.scan else 0
        while queue and (len(queue) >= limit or pixels + sum(px for _, px in queue) > QUEUED_PIXELS):
            yield queue.popleft()[0].result()
        queue.append((pool.submit(job.attempt, step), pixels))
    while queue:
        yield queue.popleft()[0].result()


@dataclass
class Pipeline:
    """Colourise files: decode in threads, run the network in batches, encode in threads."""

    runner: Runner
    threads: int  # that decode, and as many that encode
    overwrite: bool = False  # results that exist
    keep_coloured: bool = False  # pictures that have colours are passed through as they are
    hints: Hints | None = None

    def run(self, tasks: Iterable[Task]) -> Iterator[Job]:
        """Yield every task as a finished job, in order."""
        with ThreadPoolExecutor(self.threads) as readers, ThreadPoolExecutor(self.threads) as writers:
            opened = (Job(task).attempt(self.look) for task in tasks)
            read = in_threads(readers, self.read, opened, BATCH + self.threads)
            coloured = (job for batch in batches(read) for job in self.colour(batch))
            yield from in_threads(writers, self.write, coloured, 2 * self.threads)

    def look(self, job: Job) -> None:
        """Read a file's header; refuse what cannot be written, and skip what exists."""
        if job.task.problem:
            raise UserError(job.task.problem)
        wanted = [path for path in (job.task.output, job.task.sheet) if path]
        if all(path.is_file() for path in wanted) and not self.overwrite:
            job.status = "skipped"
            return
        job.scan = scan(job.task.path)
        check_frames(job.scan, job.task.output)
        if job.task.sheet:
            size = list(job.scan.size)
            size[sheet_axis(*size)] *= 2
            check_frames(replace(job.scan, size=tuple(size), count=1, durations=()), job.task.sheet)

    def read(self, job: Job) -> None:
        """Decode a file of one frame."""
        if not job.status and job.scan.count == 1:
            frame = next(read_frames(job.scan))
            job.frame = self.runner.prepare(frame)
            job.hints = self.layer(job, job.frame)
            if self.keep_coloured and job.hints is None and is_coloured(job.frame.pixels):
                job.status, job.frame = "kept", frame

    def layer(self, job: Job, frame: Frame) -> Array | None:
        """Return the hints for a frame of a job."""
        return self.hints.layer(job.task.path, *frame.pixels.shape[:2]) if self.hints else None

    def colour(self, batch: list[Job]) -> list[Job]:
        """Colour jobs of one frame, or colour and write one job of many frames; returns the jobs."""
        if batch[0].status:
            return batch
        if batch[0].frame is None:
            return [batch[0].attempt(self.write_many)]
        began = monotonic()
        try:
            colours = self.runner.run([job.frame.pixels for job in batch], [job.hints for job in batch])
        except Exception:  # of one picture, or of all: each is tried alone, and says so
            return [job.attempt(self.colour_one) for job in batch]
        for job, colour in zip(batch, colours, strict=True):
            job.take(colour)
            job.seconds += (monotonic() - began) / len(batch)
        return batch

    def colour_one(self, job: Job) -> None:
        """Colour a job of one frame by itself."""
        job.take(*self.runner.run([job.frame.pixels], [job.hints]))

    def write_many(self, job: Job) -> None:
        """Colour and write a file of several frames, one by one."""
        write_frames(job.task.output, self.coloured_frames(job), job.scan)
        self.write_sheet(job)
        job.frame = job.given = None
        job.status = "done"

    def coloured_frames(self, job: Job) -> Iterator[Frame]:
        """Yield the frames of a file in colour; the job keeps the first for its sheet."""
        for frame in read_frames(job.scan):
            seen = self.runner.prepare(frame)
            layer = self.layer(job, seen)
            keep = self.keep_coloured and layer is None and is_coloured(seen.pixels)
            colour = seen.pixels if keep else self.runner.run([seen.pixels], [layer])[0]
            if job.task.sheet and job.frame is None:
                job.frame = seen
                job.take(colour)
            yield frame if keep else Frame(colour, seen.alpha)

    def write(self, job: Job) -> None:
        """Write a job of one frame, and release its pixels."""
        if job.frame:
            output = job.task.output
            self.write_sheet(job)  # first: if it fails, there is no result that a next call would skip
            forms = [FORMATS.get(path.suffix.lower()) for path in (job.task.path, output)]
            if job.status == "kept" and forms[0] == forms[1]:
                with replacing(output) as temporary:
                    shutil.copyfile(job.task.path, temporary)
            else:
                write_frames(output, [job.frame], job.scan)
            job.status = job.status or "done"
        job.frame = job.given = job.hints = None

    def write_sheet(self, job: Job) -> None:
        """Write input and result side by side, if a sheet is asked for."""
        if job.task.sheet:
            given, colour = job.given, job.frame.pixels
            if given is None:  # it was kept
                given = colour = self.runner.prepare(job.frame).pixels
            height, width, _ = colour.shape
            both = np.concatenate([given, colour], 1 - sheet_axis(width, height))
            write_frames(job.task.sheet, [Frame(both, None)], replace(job.scan, count=1, durations=()))


def sheet_axis(width: int, height: int) -> int:
    """Return 0 if input and result stand side by side, 1 if they are so wide that they are stacked."""
    return int(width > max(height, WIDE))


def batches(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """Group neighbours, but for those that are large, need no network, or have many frames."""
    for _, group in groupby(jobs, batch_key):
        while batch := list(islice(group, BATCH)):
            yield batch


def batch_key(job: Job) -> object:
    """Return what the jobs of a batch share: None, or of a job for itself an object of its own."""
    alone = job.status or job.frame is None or BATCH * job.frame.pixels[..., 0].size > BATCH_PIXELS
    return object() if alone else None
