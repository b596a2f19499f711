"""Colourise image files with an exported generator.

    python colorize.py photo.jpg folder/                       # newest run's generator.ts, into out/
    python colorize.py scans/ --model runs/coco/generator.ts --out coloured/ --format png
    python colorize.py 'pages/**/*.tif' --keep-coloured --compare
    find scans -name '*.jpg' -print0 | python colorize.py -

Names, folders, sizes, 16-bit depth, transparency, frames, pages and metadata are kept. Each file is answered
by a line of JSON on stdout; what failed is listed at the end on stderr. What is already in the output folder
is skipped, so that an interrupted call can be repeated.

Exit code: 0 all done, 1 some files failed, 2 a mistake in the call, and nothing was begun.
"""

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from config import RUNS, UserError
from imaging.files import FORMS
from inference.pipeline import Conveyor, Job, Options
from inference.runner import Painter
from inference.tasks import plan_tasks
from runtime.cli import DeviceOption, command
from runtime.device import pick_device
from runtime.run_folder import newest_run

JOBS = min(8, len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
UPSAMPLING = ("guided", "bicubic")


def prepare_folder(out: Path) -> None:
    """Make the output folder, and see that it can be written to. Raises UserError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"{out} cannot be written to ({error.strerror}); name another --out") from None


def report(jobs: Iterable[Job], total: int, out: Path) -> list[Job]:
    """Print a line per job as it ends, and in the end how many ended how; returns the jobs."""
    finished, began = [], time.monotonic()
    for job in tqdm(jobs, "colourising", total, unit="file", leave=False, disable=None):
        tqdm.write(json.dumps(job.record()), file=sys.stdout)
        sys.stdout.flush()  # to a pipe, too
        job.scan = job.future = None  # a file's notes can be larger than its pixels
        finished.append(job)
    counts = Counter(job.status for job in finished)
    done = ", ".join(
        f"{counts[status]} {status}" for status in ("done", "kept", "skipped", "failed") if counts[status]
    )
    files = "1 file" if total == 1 else f"{total} files"
    print(f"{files}: {done}; {time.monotonic() - began:.1f} s, in {out}/", file=sys.stderr)
    for job in finished:
        if job.status == "failed":
            print(f"not done: {job.reason}", file=sys.stderr)
    return finished


def main(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="FILE|FOLDER|PATTERN|-...", help="What to colourise; -: names on stdin."),
    ],
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="An exported generator.ts.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = Path("out"),
    format_: Annotated[
        str | None, typer.Option("--format", metavar="png|jpg|webp|tif", help="Default: that of each input.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
    keep_coloured: Annotated[
        bool, typer.Option("--keep-coloured", help="Pass pictures that have colours through as they are.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also write input and result side by side, as STEM_compare.")
    ] = False,
    size: Annotated[
        int | None, typer.Option(min=16, metavar="PX", help="Short side at which the network works.")
    ] = None,
    strength: Annotated[float | None, typer.Option(min=0, max=100, help="Of colours; 1 as predicted")] = None,
    upsampling: Annotated[str | None, typer.Option(metavar="guided|bicubic", help="Of the colours.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Threads that decode, and that encode.")] = JOBS,
    device: DeviceOption = "auto",
) -> list[Path]:
    """Colourise files; returns the results that now exist. Exits with 1 if some files fail."""
    for name, value, known in (("format", format_, FORMS), ("upsampling", upsampling, UPSAMPLING)):
        if value is not None and value not in known:
            raise UserError(f"no {name} {value}: use one of {' '.join(known)}")
    on, out = pick_device(device), Path(out)
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    tasks = plan_tasks([Path(path) for path in given], out, format_, compare, overwrite)
    path = Path(model or newest_run(RUNS) / "generator.ts")
    painter = Painter(path, on, size=size, strength=strength, upsampling=upsampling)
    prepare_folder(out)
    conveyor = Conveyor(painter, Options(overwrite, keep_coloured), jobs)
    finished = report(conveyor.run(tasks), len(tasks), out)
    if any(job.status == "failed" for job in finished):
        raise SystemExit(1)
    return [job.task.output for job in finished]


if __name__ == "__main__":
    command(main)
