"""Colourise image files with an exported generator.

    python colorize.py photo.jpg folder/                       # with pretrained/photo.ts, into out/
    python colorize.py scans/ --model runs/coco/generator.ts --out coloured/ --format png
    python colorize.py scans/ --run runs/coco --epoch 50       # without exporting
    python colorize.py photo.jpg --hints points.json           # with colours of your own
    python colorize.py scans/ --palette reference.jpg          # one mood for all
    python colorize.py page.png --panels                       # panel by panel
    python colorize.py 'pages/**/*.tif' --keep-coloured --compare
    find scans -name '*.jpg' -print0 | python colorize.py -
    python colorize.py scans/ --shard 3/16                     # the third of 16 processes, anywhere
    python colorize.py scans/ --engine ray --workers 8         # on all that Ray has, see requirements-scale.txt

Names, folders, sizes, 16-bit depth, transparency, frames, pages and metadata are kept. Each file is answered by
a line on stdout, of JSON with --json or where that is no terminal; what failed is listed at the end on stderr.
What is already in the output folder is skipped, so that an interrupted call can be repeated.

Exit code: 0 all done, 1 some files failed, 2 a mistake in the call, and nothing was begun.

Hints are points, {"photo.jpg": [{"x": 410, "y": 220, "radius": 8, "color": "#a03c28"}]}, in px of the upright
picture; or a PNG with transparency, of the picture's size; or a folder of such, named like their pictures.

From Python, `colorize` below does the same for one image in memory.
"""

import errno
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext, redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from config import UserError
from runtime.cli import BestEpochOption, DeviceOption, RunOption, command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage
    from torch import Tensor

    from imaging.pixels import Frame
    from inference.hint_files import Point
    from inference.pipeline import Job
    from inference.runner import Runner

JOBS = min(8, len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
PALETTE_SIDE = 512  # px, short side at which colours of --palette are counted
LOADING = threading.Lock()  # threads that need the same model load it once


def colorize(
    image: "str | Path | bytes | PILImage | NDArray[Any]",
    model: str | Path | None = None,
    device: str = "auto",
    hints: "Sequence[Point] | NDArray[np.uint8] | None" = None,
) -> "bytes | PILImage | NDArray[Any]":
    """Return the colour version of an image, of the kind that was given. Nothing is written.

    Args:
        image: a path or bytes: an image file, also an animation or a document of pages; or a PIL image; or an
            array (H, W) or (H, W, 1|3|4) in sRGB, uint8, uint16, or float32 or float64 in [0, 1].
        model: a generator.ts, or the name of one in pretrained/. It is loaded once for all calls and threads.
        device: auto, cpu, cuda, cuda:1 or mps.
        hints: colours of a user: points (x, y, "#rrggbb"), perhaps with a radius, in px of the upright image; or
            a layer (H, W, 4) uint8 of colour and opacity.

    Returns:
        - For a path or bytes, the bytes of a file of the same format, or PNG where that cannot be written.
          So depth, transparency, frames and metadata are kept, and the caller decides where they go.
        - For a PIL image, an upright RGB or RGBA image in sRGB, of 8 bits and without metadata.
        - For an array, (H, W, 3) of the same dtype, or (H, W, 4) with its alpha. Where a model of line art
          has laid transparency over white paper, the result is opaque.

    Raises:
        UserError: not such an image, or a damaged one; no such model or device; hints outside the image, or
            for a model that takes none.
    """
    import numpy as np
    from PIL import Image

    from imaging.decoders import named, to_frame
    from imaging.files import FORMATS, read_frames, scan, write_frames
    from imaging.pixels import to_8_bits
    from inference.checkpoint import find_model

    path = find_model(model).absolute()
    with LOADING:
        runner = _load(path, path.stat().st_mtime_ns if path.is_file() else 0, device)

    def colourise(frame: "Frame") -> "Frame":
        return runner.colourise(frame, None if hints is None else _layer(hints, *frame.pixels.shape[:2]))

    if isinstance(image, str | Path | bytes):
        found = scan(Path("image"), image) if isinstance(image, bytes) else scan(Path(image))
        suffix = next((suffix for suffix, form in FORMATS.items() if form == found.form), ".png")
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder, f"colour{suffix}")
            write_frames(result, map(colourise, read_frames(found)), found)
            return result.read_bytes()
    if isinstance(image, Image.Image):
        with named("the PIL image"):
            colour = colourise(to_frame(image))
        layers = [colour.pixels] if colour.alpha is None else [colour.pixels, colour.alpha]
        return Image.fromarray(to_8_bits(np.dstack(layers)))
    if not isinstance(image, np.ndarray):
        raise UserError(f"an image is a path, bytes, a PIL image or an array, got {type(image).__name__}")
    return _colorize_array(colourise, image)


def _layer(hints: "Sequence[Point] | NDArray[np.uint8]", height: int, width: int) -> "NDArray[np.uint8]":
    import numpy as np

    from inference.hint_files import Point, draw_points, parse_points

    if not isinstance(hints, np.ndarray):
        given = [dict(zip(Point._fields, one, strict=False)) if isinstance(one, tuple | list) else one for one in hints]
        return draw_points(parse_points(given, "hints"), height, width)
    if hints.shape != (height, width, 4) or hints.dtype != np.uint8:
        raise UserError(f"a layer of hints is ({height}, {width}, 4) uint8, got {hints.shape} {hints.dtype}")
    return hints


def _colorize_array(colourise: "Callable[[Frame], Frame]", image: "NDArray[Any]") -> "NDArray[Any]":
    import numpy as np

    from imaging.pixels import Frame

    if image.ndim not in (2, 3) or image.size == 0 or image.shape[2:] not in ((), (1,), (3,), (4,)):
        raise UserError(f"an array is (H, W) or (H, W, 1, 3 or 4) and not empty, got {image.shape}")
    if image.dtype not in (np.uint8, np.uint16, np.float32, np.float64):
        raise UserError(f"an array is uint8, uint16, float32 or float64, got {image.dtype}")
    white = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    if not 0 <= image.min() <= image.max() <= white:  # also true of NaN
        raise UserError(f"floating point is in [0, 1], got {image.min():.4g} to {image.max():.4g}")
    layers = np.array(image.reshape(*image.shape[:2], -1))  # a copy: torch needs ordinary strides
    alpha = layers[..., 3] if layers.shape[2] == 4 else None
    colour = colourise(Frame(layers[..., :3], alpha))
    if alpha is None:
        return colour.pixels
    return np.dstack([colour.pixels, np.full_like(alpha, white) if colour.alpha is None else alpha])


@lru_cache(maxsize=2)
def _load(path: Path, changed: int, device: str) -> "Runner":
    from inference.runner import Runner
    from runtime.device import pick_device

    return Runner(path, pick_device(device))


def read_palette(path: Path) -> "Tensor":
    """Return the palette (4) of a picture, of what is not wholly transparent in it. Raises UserError."""
    import torch

    from imaging.color import palette_of
    from imaging.files import read_frames
    from imaging.metadata import Scan

    with closing(read_frames(Scan(path), PALETTE_SIDE)) as frames:
        frame = next(frames)
    step = max(1, min(frame.pixels.shape[:2]) // PALETTE_SIDE)
    pixels = frame.pixels[::step, ::step].reshape(-1, 1, 3)
    if frame.alpha is not None:
        pixels = pixels[frame.alpha[::step, ::step].flatten() > 0]
    if not len(pixels):
        raise UserError(f"{path} is wholly transparent: a palette needs a picture with colours")
    return palette_of(torch.from_numpy(pixels).permute(2, 0, 1)[None])


def find_checkpoint(run: Path, epoch: str | None) -> Path:
    """Return the file of one epoch of a run: by default the best scored, else the last. Raises UserError."""
    from evaluation.best_epoch import best_or_last, choose_epochs
    from runtime.run_folder import epoch_path

    number = best_or_last(run)[0] if epoch is None else choose_epochs(run, epoch, all_epochs=False)[0]
    return epoch_path(run, number)


def report(jobs: Iterable["Job"], total: int, out: Path, as_json: bool, table: TextIO) -> list["Job"]:
    """Write a line per job to `table` as it ends, and a summary to stderr; returns the jobs."""
    from tqdm import tqdm

    from runtime.progress import track, write

    finished, began = [], time.monotonic()
    for job in track(jobs, "colourising", total):
        try:
            tqdm.write(json.dumps(job.record()) if as_json else str(job), file=table)
            table.flush()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EINVAL):  # not the end of `| head`, which Windows calls EINVAL
                write(f"the lines about files cannot be written ({error.strerror}); the files can", "stderr")
            os.dup2(os.open(os.devnull, os.O_WRONLY), table.fileno())
        if job.bug and not any(other.bug for other in finished):
            write(job.bug, "stderr")  # once: the next ones are often the same
        job.scan = None  # the metadata of a file can be larger than its pixels
        finished.append(job)
    counts = Counter(job.status for job in finished)
    done = ", ".join(f"{counts[name]} {name}" for name in ("done", "kept", "skipped", "failed") if counts[name])
    files = "1 file" if total == 1 else f"{total} files"
    write(f"{files}: {done or 'none in this share'}; {time.monotonic() - began:.1f} s, in {out}/", "stderr")
    for job in finished:
        if job.status == "failed":
            write(f"not done: {job.reason}", "stderr")
    return finished


def main(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="FILE|FOLDER|PATTERN|-...", help="What to colourise; -: names on stdin."),
    ],
    model: Annotated[
        Path | None,
        typer.Option(metavar="FILE|NAME", help="A generator.ts; default: photo, which comes along."),
    ] = None,
    run: RunOption = None,
    epoch: BestEpochOption = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = Path("out"),
    format_: Annotated[
        str | None, typer.Option("--format", metavar="png|jpg|webp|tif", help="Default: that of each input.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
    keep_coloured: Annotated[
        bool,
        typer.Option("--keep-coloured", "--keep-colored", help="Pass pictures that have colours through as they are."),
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also write input and result side by side, as STEM_compare.")
    ] = False,
    size: Annotated[
        int | None, typer.Option(min=16, metavar="PX", help="Short side at which the network works.")
    ] = None,
    strength: Annotated[float | None, typer.Option(min=0, max=100, help="Of colours; 1 as predicted")] = None,
    upsampling: Annotated[str | None, typer.Option(metavar="guided|bicubic", help="How colours are enlarged.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.05, max=2, help="Low: vivid; high: safe and grayish.")
    ] = None,
    hints: Annotated[
        Path | None, typer.Option(metavar="JSON|PNG|DIR", help="Colours of your own, points or painted.")
    ] = None,
    palette: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture whose colours, in mean and spread, the results get.")
    ] = None,
    panels: Annotated[bool, typer.Option("--panels", help="Colour comic pages panel by panel.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that read, and as many that write; default: one per core, at most 8."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Every N-th file, from the I-th on: for N processes anywhere.")
    ] = None,
    engine: Annotated[str | None, typer.Option(metavar="ray", help="Distribute the files over Ray's workers.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Of --engine ray; default: one per GPU, or core.")] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="A line of JSON per file, as where stdout is no terminal.")
    ] = False,
    device: DeviceOption = "auto",
) -> list[Path]:
    """Colourise files; returns the results that now exist. Exits with 1 if some files fail."""
    from imaging.files import FORMS
    from inference.checkpoint import find_model
    from inference.colorizer import Colorizer
    from inference.hint_files import Hints
    from inference.pipeline import Pipeline
    from inference.runner import Runner
    from inference.tasks import make_output_folder, plan_tasks, take_shard
    from runtime.device import computed_in, keep_freed_memory, pick_device
    from runtime.progress import write

    if run is None and epoch is not None:
        raise UserError("--epoch is of a run: name it with --run")
    if run is not None and model is not None:
        raise UserError("--model and --run name two models; give one of them")
    format_ = {"jpeg": "jpg", "tiff": "tif"}.get(format_ or "", format_)
    for name, value, known in (("format", format_, FORMS), ("upsampling", upsampling, Colorizer.UPSAMPLINGS)):
        if value is not None and value not in known:
            raise UserError(f"no {name} {value}: use one of {' '.join(known)}")
    if engine not in (None, "ray") or (workers and not engine):
        raise UserError(f"no engine {engine}: use ray" if engine else "--workers is of --engine ray")
    on, out = pick_device(device if engine is None else "cpu"), Path(out)
    keep_freed_memory()
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    left_out: list[str] = []
    tasks = every = plan_tasks([Path(path) for path in given], out, format_, compare, overwrite, left_out)
    if shard is not None:
        tasks = take_shard(every, shard)
    path = find_model(model) if run is None else find_checkpoint(Path(run), epoch)
    settings = {"size": size, "strength": strength, "upsampling": upsampling, "temperature": temperature}
    settings |= {"path": path, "panels": panels, "palette": read_palette(Path(palette)) if palette else None}
    runner = Runner(device=on, **settings)
    layers = Hints(hints, [task.path for task in every]) if hints else None
    if hints and not runner.record.recipe.hints:
        raise UserError(f"{runner.path} takes no hints: it is of recipe {runner.record.recipe.name}")
    make_output_folder(out)
    precision = computed_in(runner.record.precision, runner.device)
    where = str(runner.device) if precision == runner.record.precision else f"{runner.device}, in {precision}"
    write(f"model {path}: {runner.record}; on {engine or where}", "stderr")
    options = {
        "threads": jobs or (JOBS if engine is None else 1),
        "overwrite": overwrite,
        "keep_coloured": keep_coloured,
        "hints": layers,
    }
    if engine is None:
        found = Pipeline(runner, **options).run(tasks)
    else:
        from inference.ray_batch import colour_files

        found = colour_files(tasks, workers, device, settings, options)
    table, is_seen = sys.stdout, sys.stdout.isatty()
    with redirect_stdout(sys.stderr) if engine and not is_seen else nullcontext():  # Ray has remarks of its own
        finished = report(found, len(tasks), out, json_ or not is_seen, table)
    for sentence in left_out:
        write(sentence, "stderr")
    if any(job.status == "failed" for job in finished):
        raise SystemExit(1)
    return [job.task.output for job in finished]


if __name__ == "__main__":
    command(main)
