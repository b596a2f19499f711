"""Many files through one network: decoded in threads, coloured in batches, encoded in threads."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from config import UserError
from imaging import color
from imaging.files import FORMATS, check_frames, read_frames, scan, write_frames
from imaging.metadata import Scan
from imaging.pixels import Frame
from inference.runner import Painter, Pixels
from inference.tasks import Task
from runtime.atomic import replacing

BATCH = 8  # pictures of one shape per forward
BATCH_PIXELS = 2**24  # in all of them
HELD_PIXELS = 2**26  # of pictures that are decoded, or not yet written, before decoding waits
WIDE = 8_000  # px; two of them side by side are about what a WebP can hold
COLOURED = 4.5  # units of Lab; photographs have 5 and more, 29 of 30 old ones, sepia and yellowed, less
LINE_ART = ("sketch", "line", "gray+line")  # inputs of models for which a transparent page is white paper


@dataclass(frozen=True)
class Options:
    """What to do with files."""

    overwrite: bool = False
    keep_coloured: bool = False


@dataclass
class Job:
    """A task under way: what was read of it, and what became of it."""

    task: Task
    status: str = ""  # done | kept | skipped | failed
    reason: str = ""
    seconds: float = 0.0  # of decoding, colouring and encoding
    scan: Scan | None = None
    frame: Frame | None = None  # of a file with one frame; as read, then in colour
    given: Pixels | None = None  # what it was before, where a sheet will show it
    future: Future[None] | None = None  # of what a thread does with it

    def attempt(self, step: Callable[..., None], *arguments: Any) -> None:
        """Do a step of the job; what it raises is this file's failure and nobody else's."""
        began = time.monotonic()
        try:
            step(self, *arguments)
        except Exception as error:  # libraries find many words for what a file can hold
            reason = str(error) or type(error).__name__
            if isinstance(error, OSError) and error.filename:
                reason = f"{error.filename}: {error.strerror}"
            sentence = reason if reason.startswith(str(self.task.path)) else f"{self.task.path}: {reason}"
            self.status, self.reason = "failed", " ".join(sentence.split())
            self.frame = self.given = None
        self.seconds += time.monotonic() - began

    def take(self, colour: Pixels) -> None:
        """Put a colour version in the place of what was read, which is kept for a sheet alone."""
        assert self.frame is not None
        self.given = self.frame.pixels if self.task.sheet else None
        self.frame = Frame(colour, self.frame.alpha)

    def record(self) -> dict[str, Any]:
        """Return what is printed as JSON."""
        line = {"file": str(self.task.path), "output": str(self.task.output), "status": self.status}
        line |= {"reason": self.reason} if self.reason else {}
        return {**line, "frames": self.scan.count if self.scan else 0, "seconds": round(self.seconds, 3)}


class Held:
    """Jobs that threads work on, in order: not too many at a time, and not too many pixels."""

    def __init__(self, pool: ThreadPoolExecutor, most: int) -> None:
        self.pool, self.most = pool, most
        self.jobs: deque[Job] = deque()

    def add(self, job: Job, step: Callable[..., None], *arguments: Any) -> Iterator[Job]:
        """Let a thread do a step of a job; yield those that had to be finished to make room."""
        pixels = job.scan.pixels if job.scan else 0
        while self.jobs and (
            len(self.jobs) >= self.most
            or pixels + sum(held.scan.pixels for held in self.jobs if held.scan) > HELD_PIXELS
        ):
            yield self.next()
        job.future = self.pool.submit(job.attempt, step, *arguments)
        self.jobs.append(job)

    def next(self) -> Job:
        """Return the oldest job when its thread is done with it."""
        job = self.jobs.popleft()
        assert job.future is not None
        job.future.result()
        return job

    def rest(self) -> Iterator[Job]:
        """Yield all that are left."""
        while self.jobs:
            yield self.next()


class Conveyor:
    """Files on their way: decoded in threads, coloured in batches, encoded in threads."""

    def __init__(self, painter: Painter, options: Options, jobs: int) -> None:
        self.painter, self.options, self.jobs = painter, options, jobs
        self.on_paper = painter.metadata["recipe"]["input"] in LINE_ART

    def run(self, tasks: list[Task]) -> Iterator[Job]:
        """Yield every task as a finished job, in order."""
        with ThreadPoolExecutor(self.jobs) as readers, ThreadPoolExecutor(self.jobs) as writers:
            encoding = Held(writers, 2 * self.jobs)
            for batch in batches(self.decoded(tasks, Held(readers, 2 * self.jobs))):
                self.colour(batch)
                for job in batch:
                    yield from encoding.add(job, self.write)
            yield from encoding.rest()

    def decoded(self, tasks: list[Task], decoding: Held) -> Iterator[Job]:
        """Yield jobs in order, opened and, where they hold one frame, decoded."""
        for task in tasks:
            job = Job(task)
            job.attempt(self.open)
            yield from decoding.add(job, self.read)
        yield from decoding.rest()

    def open(self, job: Job) -> None:
        """Look at a file's header."""
        if job.task.problem:
            raise UserError(job.task.problem)
        wanted = [path for path in (job.task.output, job.task.sheet) if path]
        if all(path.is_file() for path in wanted) and not self.options.overwrite:
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
        if not job.status and job.scan and job.scan.count == 1:
            frame = next(read_frames(job.scan))
            job.frame = self.given(frame)
            if self.keeps(job.frame):
                job.status, job.frame = "kept", frame

    def keeps(self, given: Frame) -> bool:
        """Tell whether a picture, as the model would see it, is to be passed through as it is."""
        return self.options.keep_coloured and is_coloured(given.pixels)

    def given(self, frame: Frame) -> Frame:
        """Return a frame as the model should see it: white where it is transparent, wholly or paper."""
        if frame.alpha is None:
            return frame
        top = np.iinfo(frame.pixels.dtype).max
        if not self.on_paper:
            return replace(frame, pixels=np.where(frame.alpha[..., None] == 0, top, frame.pixels))
        share = frame.alpha[..., None] / np.float32(top)
        return Frame((frame.pixels * share + top * (1 - share)).round().astype(frame.pixels.dtype), None)

    def colour(self, batch: list[Job]) -> None:
        """Colour jobs of one shape, or write one job of many frames."""
        if batch[0].status or not batch[0].scan:
            return
        if batch[0].frame is None:
            batch[0].attempt(self.write_many)
            return
        began = time.monotonic()
        try:
            colours = self.painter.paint([job.frame.pixels for job in batch if job.frame])
        except (RuntimeError, MemoryError):
            for job in batch:  # one of them, and then it says so
                job.attempt(self.colour_one)
            return
        for job, colour in zip(batch, colours, strict=True):
            job.take(colour)
            job.seconds += (time.monotonic() - began) / len(batch)

    def colour_one(self, job: Job) -> None:
        """Colour one job."""
        assert job.frame is not None
        job.take(self.painter.paint([job.frame.pixels])[0])

    def write_many(self, job: Job) -> None:
        """Colour and write a file of several frames, one by one."""
        assert job.scan is not None
        write_frames(job.task.output, self.coloured_frames(job), job.scan)
        self.write_sheet(job)
        job.frame = job.given = None
        job.status = "done"

    def coloured_frames(self, job: Job) -> Iterator[Frame]:
        """Yield the frames of a file in colour; the first goes onto its sheet."""
        assert job.scan is not None
        for frame in read_frames(job.scan):
            given = self.given(frame)
            keep = self.keeps(given)
            colour = given.pixels if keep else self.painter.paint([given.pixels])[0]
            if job.task.sheet and job.frame is None:
                job.frame = given
                job.take(colour)
            yield frame if keep else Frame(colour, given.alpha)

    def write(self, job: Job) -> None:
        """Write a job of one frame, and forget its pixels."""
        if job.frame and job.scan and job.status in ("", "kept"):
            output = job.task.output
            self.write_sheet(job)  # first: where it fails there is no result that a next call would skip
            forms = [FORMATS.get(path.suffix.lower()) for path in (job.task.path, output)]
            if job.status == "kept" and forms[0] == forms[1]:
                with replacing(output) as temporary:
                    shutil.copyfile(job.task.path, temporary)
            else:
                write_frames(output, [job.frame], job.scan)
            job.status = job.status or "done"
        job.frame = job.given = None

    def write_sheet(self, job: Job) -> None:
        """Write input and result side by side, where a sheet is asked for."""
        if job.task.sheet and job.frame and job.scan:
            given, colour = job.given, job.frame.pixels
            if given is None:  # it was kept
                given = colour = self.given(job.frame).pixels
            height, width, _ = colour.shape
            both = np.concatenate([given, colour], 1 - sheet_axis(width, height))
            write_frames(job.task.sheet, [Frame(both, None)], replace(job.scan, count=1, durations=()))


def sheet_axis(width: int, height: int) -> int:
    """Return 0 where input and result go side by side, 1 where they are so wide that one goes below."""
    return int(width > max(height, WIDE))


def batches(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """Group neighbours of one shape; what needs no network, or many frames, stays alone."""
    batch: list[Job] = []
    for job in jobs:
        if batch and not (same_shape(batch[0], job) and len(batch) < BATCH):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def same_shape(one: Job, other: Job) -> bool:
    """Tell whether two jobs can be coloured in one batch."""
    if one.status or other.status or one.frame is None or other.frame is None:
        return False
    a, b = one.frame.pixels, other.frame.pixels
    return a.shape == b.shape and a.dtype == b.dtype and BATCH * a.shape[0] * a.shape[1] <= BATCH_PIXELS


def is_coloured(pixels: Pixels) -> bool:
    """Tell a picture with colours from a gray, sepia or yellowed one.

    What counts is how far a and b are, as a root of mean squares, from any smooth function of L, which is all
    that a tint, a toning or old paper adds.
    """
    step = max(1, max(pixels.shape[:2]) // 1024)
    planes = torch.from_numpy(np.ascontiguousarray(pixels[::step, ::step])).permute(2, 0, 1)[None]
    rgb = F.avg_pool2d(color.rgb01(planes), min(4, *planes.shape[2:]))
    lightness, a, b = color.rgb_to_lab(rgb)[0].flatten(1).to(torch.float64)
    powers = torch.stack([(lightness / 100) ** n for n in range(4)], 1)
    ab = torch.stack([a, b], 1)
    tint = powers @ torch.linalg.lstsq(powers, ab, driver="gelsd").solution
    return float((ab - tint).square().sum(1).mean().sqrt()) > COLOURED
