"""The command line: one option means the same in every stage, and a mistake ends in one sentence."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from config import ROOT

RecipeOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="See python train.py --list-recipes. Default: demo.")
]
DataOption = Annotated[
    str | None,
    typer.Option(metavar="PATH|NAME", help="Image folder, .tar, .npz, demo, or a torchvision data set."),
]
RunOption = Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder.")]
EpochsOption = Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")]
EpochOption = Annotated[
    str | None,
    typer.Option(metavar="N|best", help="One saved epoch; best: by the recipe's metric. Default: the last."),
]
AllEpochsOption = Annotated[bool, typer.Option("--all-epochs", help="Every saved epoch.")]
DeviceOption = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where the networks run.")]
WeightsOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of pretrained weight files; default: downloaded.")
]
UsageError = typer.BadParameter.__bases__[0]  # click's, wherever this version of typer keeps it

INTERRUPTED = 130  # what typer returns for Ctrl-C


def command(main: Callable[..., object]) -> None:
    """Run a stage's main from the command line. A user's mistake ends in one sentence and exit code 2.

    A mistake is an unknown option, a ValueError that our own code raises, or a file that the system refuses;
    a ValueError out of a library is a bug and keeps its traceback.
    """
    app = typer.Typer(add_completion=False)
    app.command()(main)
    try:
        if app(standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt
    except UsageError as error:
        _quit(error.format_message(), 2)
    except (ValueError, OSError) as error:
        frame = error.__traceback__
        while frame and frame.tb_next:
            frame = frame.tb_next
        ours = frame is not None and Path(frame.tb_frame.f_code.co_filename).resolve().parent == ROOT
        if not ours and getattr(error, "filename", None) is None:
            raise
        named = isinstance(error, OSError) and error.filename
        _quit(f"{error.filename}: {error.strerror}" if named else str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        _quit("interrupted; what was saved before is kept", INTERRUPTED)


def _quit(sentence: str, code: int) -> None:
    print(f"{Path(sys.argv[0]).name}: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(code)
