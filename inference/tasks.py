"""What colorize.py is asked to colourise: files, folders, patterns and lists -> where each result goes."""

import os
import re
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path

from config import UserError
from imaging.files import RESULTS, Found, is_shown, output_suffix, search
from runtime.atomic import MAX_NAME, bounded


@dataclass(frozen=True)
class Task:
    """One input file, its result, and what stands in the way, if anything does."""

    path: Path
    output: Path
    sheet: Path | None = None  # where input and result go side by side
    problem: str = ""


def plan_tasks(
    inputs: list[Path], out: Path, form: str | None = None, compare: bool = False, overwrite: bool = False,
    notes: list[str] | None = None,
) -> list[Task]:  # fmt: skip
    """Return one task per input file, in order; folders are searched through and their structure is kept.

    A task whose output belongs to an earlier one, or that a list names and nobody finds, has a problem. What
    a folder, pattern or list holds of the output folder itself are taken for former results and left out.

    Args:
        inputs: files, folders, patterns such as scans/**/*.jpg, or "-" for a list on stdin.
        form: ending of the results without a dot; None: that of the input.
        compare: whether each result gets a sheet, STEM_compare.
        overwrite: whether results that exist will be replaced.
        notes: gets a sentence for each kind of file that is left out.

    Raises:
        UserError: an input is missing, a pattern matches nothing, or a result would overwrite an input.
    """
    tasks: list[Task] = []
    owners: dict[str, tuple[Path, Path]] = {}  # name -> result, and its input
    seen: set[tuple[str, Path]] = set()
    former: list[Path] = []
    notes = [] if notes is None else notes
    for given, (path, name, problem) in ((one, found) for one in inputs for found in expand(one, notes)):
        if path != given and out.is_dir() and is_inside(path, out) and not is_inside(given, out):
            former.append(path)
            continue
        output, sheet = (out / result_name(name, form, end) for end in ("", "_compare"))
        if (os.path.realpath(path), output) in seen:
            continue  # named twice
        seen.add((os.path.realpath(path), output))
        results = [output, sheet] if compare else [output]
        taken = next((result for result in results if key(result) in owners), None)
        if taken and not problem:
            problem = f"{path}: {owners[key(taken)][1]} becomes {taken} too; colourise it with another --out"
        elif not problem:
            owners |= {key(result): (result, path) for result in results}
        tasks.append(Task(path, output, sheet if compare else None, problem))
    if former:
        notes.append(f"left out: {len(former)} files in {out}, the output folder")
    refuse_overwriting(owners.values(), [task.path for task in tasks], former * overwrite, out)
    return tasks


def make_output_folder(out: Path) -> None:
    """Make the folder for results; one without files is marked, so that no later search takes them for originals.

    Raises UserError where it cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
        if os.access(out, os.R_OK) and not any(is_shown(name) for name in os.listdir(out)):
            (out / RESULTS).write_text("The pictures in this folder were made by colorize.py.\n")
    except OSError as error:
        raise UserError(f"{out} cannot be written to ({error.strerror}); name another --out") from None


def take_shard(tasks: list[Task], shard: str) -> list[Task]:
    """Return the I-th of N equal parts of all tasks, every N-th one. Raises UserError where `shard` is not I/N."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", shard)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard is I/N with I from 1 to N, such as 1/4, got {shard}")
    return tasks[int(found[1]) - 1 :: int(found[2])]


def result_name(name: Path, form: str | None, end: str) -> Path:
    """Return a result's name: an input's with `end` and the ending of its format, no longer than names may be."""
    suffix = output_suffix(name.suffix, form)
    return name.with_name(bounded(f"{name.stem}{end}", MAX_NAME - len(os.fsencode(suffix))) + suffix)


def key(result: Path) -> str:
    """Return what a disk may take for a result's name; most of macOS's know no case."""
    return unicodedata.normalize("NFC", str(result).casefold()) if sys.platform == "darwin" else str(result)


def identity(path: Path) -> object:
    """Return what tells files apart, by whatever names they go; of one that is not there, its place."""
    real = os.path.realpath(path)  # "new/.." is no folder yet
    try:
        found = os.stat(real)
    except OSError:
        return real
    return found.st_dev, found.st_ino


def refuse_overwriting(results: Iterable[tuple[Path, Path]], inputs: list[Path], former: list[Path], out: Path) -> None:
    """Raise UserError where a result, given with its input, is an input or one of what was left out."""
    may_be = f"is there and may be an original, as {out} lies among the inputs; delete it, or"
    known = dict.fromkeys(map(identity, former), may_be)
    known |= dict.fromkeys(map(identity, inputs), "would overwrite an input;")
    for result, path in results:
        if why := known.get(identity(result)):
            raise UserError(f"{result}, the result of {path}, {why} name another --out")


def expand(given: Path, notes: list[str]) -> Iterator[tuple[Path, Path, str]]:
    """Yield what one argument stands for: a file, its name below the output folder, and a problem or "".

    What is left out is added to `notes`, a sentence each.
    """
    if str(given) == "-":
        yield from listed_files()
    elif given.is_dir():
        found = search(given)
        found.require()
        notes += found.left_out
        yield from ((path, path.relative_to(given), "") for path in found.images)
        yield from closed_folders(found)
    elif given.exists() or given.is_symlink():  # a link to nowhere is an input that cannot be read
        yield given, Path(given.name), ""
    elif has_magic(str(given)):
        yield from matching_files(given, notes)
    else:
        raise UserError(f"no file or folder {given}")


def is_inside(path: Path, folder: Path) -> bool:
    """Tell whether a path lies in a folder, or is it; links are followed, broken ones too."""
    real = Path(os.path.realpath(path))
    return identity(folder) in map(identity, (real, *real.parents))


def closed_folders(found: Found) -> Iterator[tuple[Path, Path, str]]:
    """Yield folders that cannot be read as files with a problem."""
    for folder, reason in ((Path(error.filename), error.strerror) for error in found.closed):
        yield folder, folder.relative_to(found.folder), f"{folder}: the folder cannot be read ({reason})"


def matching_files(pattern: Path, notes: list[str]) -> Iterator[tuple[Path, Path, str]]:
    """Yield the files that a pattern matches, with their folders below its fixed part.

    A folder whose own name is like a pattern, as in "[Group] Title/*.jpg", is taken for itself.
    """
    fixed, *rest = Path(pattern.anchor), *pattern.relative_to(pattern.anchor).parts
    while rest and (not has_magic(rest[0]) or ("[" in rest[0] and (fixed / rest[0]).is_dir())):
        fixed /= rest.pop(0)
    matches: list[Path] = []
    if fixed.is_dir():
        named = not all(map(has_magic, rest[:-1]))  # folders behind those of any name: runs and results, too
        found = search(fixed, lambda folder: fits(folder.relative_to(fixed).parts, rest, begun=True), named)
        notes += found.notes
        files = sorted([*found.images, *found.others], key=Path.as_posix)
        matches = [path for path in files if fits(path.relative_to(fixed).parts, rest)]
        yield from closed_folders(found)
    if not matches:
        quoting = "; [ begins a choice of letters: write [[] for the letter itself" if "[" in str(pattern) else ""
        raise UserError("; ".join([f"no file matches {pattern}{quoting}", *notes]))
    yield from ((path, path.relative_to(fixed), "") for path in matches)


def fits(parts: Sequence[str], pattern: Sequence[str], begun: bool = False) -> bool:
    """Tell whether a path matches a pattern, in which ** is any number of folders.

    begun: whether it, or something below it, may do so.
    """
    if not parts:
        return begun or all(part == "**" for part in pattern)
    if not pattern:
        return False
    if pattern[0] == "**":
        return fits(parts[1:], pattern, begun) or fits(parts, pattern[1:], begun)
    return fnmatchcase(parts[0], pattern[0]) and fits(parts[1:], pattern[1:], begun)


def listed_files() -> Iterator[tuple[Path, Path, str]]:
    """Yield the files that stdin names: one a line, or with a NUL after each, as find -print0 writes them."""
    content = sys.stdin.buffer.read()
    names = content.split(b"\0") if b"\0" in content else content.splitlines()
    if not any(names):
        raise UserError("no file name on standard input")
    for path in (Path(os.fsdecode(name)) for name in names if name):
        inside = not path.is_absolute() and ".." not in path.parts
        problem = f"{path}: a folder, to be named as an argument" if os.path.isdir(path) else ""
        if not problem and not os.path.isfile(path) and not os.path.islink(path):
            problem = f"{path}: no such file"
        yield path, path if inside else Path(path.name), problem
