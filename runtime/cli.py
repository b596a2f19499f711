"""The command line: one option means the same in every stage, and a mistake ends in one sentence.

Every stage imports this module before torch, and tells GCC's OpenMP how long a thread spins before it sleeps
while it waits for others. Long is fast alone, and very slow beside another busy process: left alone, a picture
of 256 px took 531 ms instead of 21 there. 4,000 turns are nearly as good as any number alone, and beside others
nearly as good as none. Other kinds of OpenMP sleep at once. What is set already is kept.
"""

import io
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from config import UserError
from runtime.atomic import FULL_DISK_ERRORS

RecipeOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="See train.py --list-recipes. Default: demo; main.py looks at --data."),
]
DataOption = Annotated[
    str | None,
    typer.Option(metavar="PATH|NAME", help="Image folder, .tar, .npz, shards, demo, or a torchvision data set."),
]
RunOption = Annotated[
    Path | None,
    typer.Option("--run", "--run-dir", metavar="DIR", help="Run folder; default: the newest; new ones: runs/RECIPE."),
]
EpochsOption = Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")]
EpochOption = Annotated[
    str | None,
    typer.Option(metavar="N|best", help="One saved epoch; best: by the recipe's metric. Default: the last."),
]
BestEpochOption = Annotated[
    str | None, typer.Option(metavar="N|best", help="One saved epoch. Default: the best scored, else the last.")
]
AllEpochsOption = Annotated[bool, typer.Option("--all-epochs", help="Every saved epoch.")]
SizeOption = Annotated[int | None, typer.Option(min=4, help="Side of the training squares, px.")]
PairOption = Annotated[
    str | None, typer.Option(metavar="AB|BA|none|auto", help="Pairs in one image: colour left (AB) or right.")
]
PairFoldersOption = Annotated[
    tuple[str, str] | None,
    typer.Option(metavar="COLOUR SKETCH", help="Names of the two folders of pairs, if not found by themselves."),
]
BatchSizeOption = Annotated[int | None, typer.Option(min=1, help="Images per step, of each process.")]
CacheOption = Annotated[
    float | None,
    typer.Option("--cache-gb", min=0, help="Limit of the decoded images in cache/, 10^9 bytes; 0: decode every time."),
]
GlobalBatchOption = Annotated[
    int | None, typer.Option(min=1, help="Images per step of all processes together, instead of each.")
]
LimitOption = Annotated[int | None, typer.Option(min=0, help="Images of each split at most; 0: all.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Of everything random.")]
OnNanOption = Annotated[
    str | None, typer.Option(metavar="stop|skip", help="Where a loss is not finite: stop, or leave that step out.")
]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any recipe field; repeatable.")
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="A first look in minutes, in runs/RECIPE-quick: small and short.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on where the run stopped; with --data, begin it if there is none.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what is resolved, and stop.")]
DeviceOption = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where the networks run.")]
WeightsOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of pretrained weight files; default: downloaded.")
]
UsageError = typer.BadParameter.__bases__[0]  # click's, wherever this version of typer keeps it

SPINS = {"ACTIVE": "30000000000", "PASSIVE": "0"}  # of OMP_WAIT_POLICY, as GCC's OpenMP has them
os.environ.setdefault("GOMP_SPINCOUNT", SPINS.get(os.environ.get("OMP_WAIT_POLICY", "").upper(), "4000"))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

INTERRUPTED = 130  # what typer returns for Ctrl-C


def command(main: Callable[..., object], shared: bool = False) -> None:
    """Run a stage's main from the command line. A user's mistake ends in one sentence and exit code 2.

    Where `shared`, several processes that torchrun started do the stage's work together.

    A mistake is an unknown option, a UserError, or a file that the system refuses (an OSError that names it).
    Every other exception is a bug and keeps its traceback.
    """
    # remarks about odd metadata in image files, among which our own messages would be lost
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before the start, as with >&-
            setattr(sys, name, open(os.devnull, "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    app = typer.Typer(add_completion=False)
    app.command(help=(sys.modules["__main__"].__doc__ or "").partition("\n\n")[0])(main)
    try:
        with processes(shared):
            if app(standalone_mode=False) == INTERRUPTED:
                raise KeyboardInterrupt
    except UsageError as error:
        _quit(error.format_message(), 2)
    except UserError as error:
        _quit(str(error), 2)
    except OSError as error:
        if error.filename is None and error.errno not in FULL_DISK_ERRORS:
            raise
        place = error.filename or f"standard output, or a temporary file in {tempfile.gettempdir()}"
        _quit(f"{place}: {error.strerror}", 2)
    except (KeyboardInterrupt, typer.Abort):
        from runtime import progress

        if progress.silent:  # of several processes, all of which Ctrl-C ends, one says so
            sys.exit(INTERRUPTED)
        _quit("interrupted; what was saved before is kept", INTERRUPTED)


def processes(shared: bool) -> AbstractContextManager[None]:
    """Return a context that joins this process to others, if torchrun started it. Raises UserError unless `shared`."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return nullcontext()
    if not shared and os.environ.get("LOCAL_RANK") not in (None, "0"):
        time.sleep(10)  # one tells it; torchrun ends it with the others as soon as one of them ends
        raise SystemExit(2)
    if not shared:
        raise UserError("this stage works in one process: start it without torchrun")
    from runtime import distributed  # which imports torch

    return distributed.joined()


def _quit(sentence: str, code: int) -> None:
    from runtime import progress  # not needed by --help

    progress.write(f"{Path(sys.argv[0]).name}: {' '.join(sentence.split())}", "stderr")
    sys.exit(code)
