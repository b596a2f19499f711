"""The run folder: where its files lie, and what is recorded of how it was made.

runs/NAME/recipe.json                     the resolved recipe, data, versions (or classifier.json)
runs/NAME/log.jsonl                       one record per status line
runs/NAME/checkpoints/epoch_0005.pt       generator for use
runs/NAME/checkpoints/state.pt            all that an exact resume needs; state_previous.pt, what it was before
runs/NAME/samples/epoch_0005.png
runs/NAME/{inputs,targets}/STEM.png  outputs/epoch_0005/STEM.png
runs/NAME/scores.json scores.csv scores_per_image.csv comparison.json curves.png losses.png
runs/NAME/report.html generator.ts
runs/NAME/.lock                           held by the process that trains it
"""

import hashlib
import json
import os
import platform
import re
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from config import DEMO, RUNS, VERSION, AnyRecipe, ClassifierRecipe, Recipe, UserError
from runtime import atomic
from runtime.atomic import write_json, writing
from runtime.locks import LOCK, is_current, lock
from runtime.progress import say

R = TypeVar("R", bound="Record")

RENDER_LOCK = ".render.lock"  # of who renders or scores a run, which may be beside its training
RECORD, CLASSIFIER_RECORD, LOG = "recipe.json", "classifier.json", "log.jsonl"
CURVES = "losses.png"
LEFT_S = 86_400.0  # s after which a half-written file is left over: no export or scoring takes so long
STAMP = ".stamp"  # file in a folder of rendered pictures that says what they were rendered from


@dataclass(frozen=True)
class Record:
    """How a run was made. Fields with a default are not in every version's files."""

    recipe: AnyRecipe
    data: str  # absolute path, or a name
    fingerprints: dict[str, str]  # split -> hash of its files and of how they were loaded
    loading: dict[str, Any] = field(default_factory=dict)  # fields of data.Loading
    images: dict[str, int] = field(default_factory=dict)  # split -> number of pictures
    versions: dict[str, str] = field(default_factory=dict)  # library -> version
    git: str | None = None  # commit of the code
    weights: str | None = None  # folder of weight files
    memory_format: str = "channels_last"  # of images in memory, in which a resume goes on
    processes: int = 1  # of the last start, each with the recipe's batch_size
    resumed: list[dict[str, Any]] = field(default_factory=list)  # data and versions of each resume


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """What recipe.json holds: of a colouriser."""

    recipe: Recipe
    compiled: bool = False  # whether its networks went through torch.compile, as they do in a resume
    mean_ab: tuple[float, float]  # of the training pictures, in Lab units
    parameters: dict[str, int] = field(default_factory=dict)  # network -> trainable parameters
    overrides: dict[str, Any] | None = None  # recipe fields that the user set; None: not recorded
    init: str | None = None  # trained generator whose weights it began with

    @property
    def trained_on(self) -> str:
        """What a model of this run has seen, and what it began with, in words, without paths."""
        if self.data == DEMO and not self.init:
            return "drawn scenes alone: expect wrong colours on photographs"
        count = f", {self.images['train']:,} pictures" if "train" in self.images else ""
        return f"{Path(self.data).name}{count}{f', from {Path(self.init).name}' if self.init else ''}"

    def __post_init__(self) -> None:
        a, b = self.mean_ab  # JSON has lists alone
        object.__setattr__(self, "mean_ab", (float(a), float(b)))


@dataclass(frozen=True, kw_only=True)
class ClassifierRecord(Record):
    """What classifier.json holds."""

    recipe: ClassifierRecipe
    classes: list[str]


def read_run(run: Path) -> RunRecord:
    """Return a run's recipe.json. Raises UserError where it is missing or damaged."""
    return _read(run / RECORD, RunRecord, Recipe, f"{run} is not a run folder: it has no {RECORD}")


def read_classifier_run(run: Path) -> ClassifierRecord:
    """Return a classifier's classifier.json. Raises UserError where it is missing or damaged."""
    missing = f"{run} is not a classifier's run: it has no {CLASSIFIER_RECORD}"
    missing += "; train one with: python train_classifier.py --data PATH"
    return _read(run / CLASSIFIER_RECORD, ClassifierRecord, ClassifierRecipe, missing)


def _read(path: Path, kind: type[R], recipe: type[AnyRecipe], missing: str) -> R:
    if not path.is_file():
        raise UserError(missing)
    try:
        payload = json.loads(path.read_text())
        return kind(**{**payload, "recipe": recipe.from_record(payload["recipe"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged, or of another version of this project ({error})") from None


def write_run(run: Path, record: Record) -> None:
    """Write recipe.json or classifier.json."""
    name = RECORD if isinstance(record, RunRecord) else CLASSIFIER_RECORD
    write_json(run / name, asdict(record))


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of this project, of Python and of the installed libraries `names`."""
    versions = {name: metadata.version(name) for name in names}
    return {"tinct": VERSION, "python": platform.python_version(), **versions}


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log.jsonl; lines that a killed run left half written are left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError):
            records.append(json.loads(line))
    return records


def epoch_path(run: Path, epoch: int) -> Path:
    """Return the file of one saved epoch."""
    return run / "checkpoints" / f"epoch_{epoch:04d}.pt"


def outputs_path(run: Path, epoch: int) -> Path:
    """Return the folder of one epoch's rendered pictures."""
    return run / "outputs" / epoch_path(run, epoch).stem


def state_path(run: Path) -> Path:
    """Return the file that a resume reads."""
    return run / "checkpoints" / "state.pt"


def previous_state_path(run: Path) -> Path:
    """Return the file of the state that was saved before the last."""
    return run / "checkpoints" / "state_previous.pt"


def has_state(run: Path) -> bool:
    """Tell whether there is a state from which a run can go on."""
    return state_path(run).exists() or previous_state_path(run).exists()


def load_state(run: Path, is_owner: bool = True) -> dict[str, Any]:
    """Return the last state that was saved, or the one before it where that is damaged; says which.

    An owner removes a damaged one then: the next save would put it in the place of the one before it, which is good.

    Raises UserError where none can be read.
    """
    path, previous = state_path(run), previous_state_path(run)
    try:
        return atomic.load(path)
    except UserError as error:
        if not previous.exists():
            raise
        state = atomic.load(previous)
        say(f"{error}: going on from {previous.name}, which was saved before it")
    if is_owner:
        path.unlink(missing_ok=True)
    return state


@contextmanager
def owned(run: Path) -> Iterator[None]:
    """Keep a run folder, which is made, for this process alone; removes what a killed owner left half written.

    The lock is the kernel's, so it ends with its process, however that ends, and holds between containers.

    Raises:
        UserError: another process has it.
    """
    made = [place for place in (run, *run.parents) if not place.exists()]
    run.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(run / LOCK, f"{run} is trained") as (before, certain):
            if before and certain:
                say(f"{run}: its last owner, {before}, was killed; taken over")
            if certain:
                _tidy(run)
            with suppress(UserError), rendering(run):  # what a killed one left is removed
                pass
            yield
    finally:
        for place in made:
            with suppress(OSError):  # not empty: something was written
                place.rmdir()


@contextmanager
def rendering(run: Path) -> Iterator[None]:
    """Keep what is rendered of a run for this process alone; removes what a killed one left half written.

    Raises:
        UserError: another process renders or scores it.
    """
    with _locked(run / RENDER_LOCK, f"{run} is rendered or scored") as (_, certain):
        for left in run.glob("outputs/*/.*.tmp") if certain else ():
            left.unlink(missing_ok=True)
        yield


def _tidy(run: Path) -> None:
    """Remove what a killed owner left half written; a state that is whole is put where none is.

    What others write beside a training, as scores or an export, is removed when it is a day old.
    """
    ours = tuple(f".{name}." for name in (RECORD, CLASSIFIER_RECORD, LOG, CURVES))
    for left in [*run.glob(".*.tmp"), *run.glob("checkpoints/.*.tmp"), *run.glob("samples/.*.tmp")]:
        with suppress(FileNotFoundError):
            if left.parent == run and not left.name.startswith(ours) and time.time() - left.stat().st_mtime < LEFT_S:
                continue
        if left.name.startswith(f".{state_path(run).name}.") and not state_path(run).exists():
            with suppress(UserError):
                atomic.load(left)
                os.replace(left, state_path(run))
        left.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, what: str) -> Iterator[tuple[str, bool]]:
    """Hold a lock, whose file says who has it and is removed at the end.

    Yields the owner before, who was killed, or "", and whether that is certain: on a disk without locks he may live.
    """
    while True:
        with open(path, "a+") as file:
            file.seek(0)
            if not lock(file):
                owner = file.read() or "another process"
                raise UserError(f"{what} by {owner}: wait for its end, or name another with --run")
            if not is_current(file):
                continue
            before = file.read()
            try:
                with writing(path):
                    file.truncate(0)
                    file.write(f"{platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
                    file.flush()
                yield before, lock(file, certain=True)
            finally:
                with suppress(OSError):
                    file.truncate(0)  # or one that cannot be removed while it is open would tell of a killed owner
                with suppress(PermissionError):
                    path.unlink(missing_ok=True)
            return


def saved_epochs(run: Path) -> list[int]:
    """Return the epochs that have a checkpoint, in order."""
    names = [re.fullmatch(r"epoch_(\d+)\.pt", path.name) for path in (run / "checkpoints").glob("epoch_*.pt")]
    return sorted(int(match[1]) for match in names if match)


def stamp(run: Path, epoch: int, key: str) -> str:
    """Return a text that tells whether rendered pictures are still those of this checkpoint and data set.

    Raises UserError where the checkpoint is damaged.
    """
    path = epoch_path(run, epoch)
    try:
        with zipfile.ZipFile(path) as file:  # every tensor's checksum stands in its directory
            parts = [(part.filename, part.CRC, part.file_size) for part in file.infolist()]
    except zipfile.BadZipFile:
        raise UserError(f"{path} is not a checkpoint of this project, or it is damaged") from None
    return f"{key} {hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def newest_run() -> Path:
    """Return the run folder that was last trained. Raises UserError where there is none."""
    found = sorted(RUNS.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"no run in {RUNS}/; train one first: python train.py --recipe demo")
    return found[-1].parent
