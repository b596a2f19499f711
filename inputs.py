"""What colorize.py is asked to colourise: files, folders, patterns and lists -> where each result goes."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from glob import has_magic
from itertools import takewhile
from pathlib import Path

from files import output_suffix
from images import find_images


@dataclass(frozen=True)
class Task:
    """One input file, its result, and what stands in the way, if anything does."""

    path: Path
    output: Path
    sheet: Path | None = None  # where input and result go side by side
    problem: str = ""


def plan_tasks(
    inputs: list[Path], out: Path, form: str | None = None, compare: bool = False, overwrite: bool = False
) -> list[Task]:
    """Return one task per input file, in order; folders are searched through and their structure is kept.

    A task whose output belongs to an earlier one, or that a list names and nobody finds, has a problem. What
    a folder, pattern or list holds of the output folder itself are taken for former results and left out.

    Args:
        inputs: files, folders, patterns such as scans/**/*.jpg, or "-" for a list on stdin.
        form: ending of the results without a dot; None: that of the input.
        compare: whether each result gets a sheet, STEM_compare.
        overwrite: whether results that exist will be replaced.

    Raises:
        ValueError: an input is missing, a pattern matches nothing, or a result would overwrite an input.
    """
    tasks: list[Task] = []
    owners: dict[Path, Path] = {}  # result -> its input
    seen: set[tuple[str, Path]] = set()
    former: list[Path] = []
    for given, (path, name, problem) in ((one, found) for one in inputs for found in expand(one)):
        if path != given and out.is_dir() and is_inside(path, out) and not is_inside(given, out):
            former.append(path)
            continue
        output = out / name.with_suffix(output_suffix(name.suffix, form))
        if (os.path.realpath(path), output) in seen:
            continue  # named twice
        seen.add((os.path.realpath(path), output))
        results = [output, *([output.with_stem(f"{output.stem}_compare")] if compare else [])]
        taken = next((result for result in results if result in owners), None)
        if taken:
            problem = f"{path}: {owners[taken]} becomes {taken} too; colourise it in another call"
        else:
            owners |= dict.fromkeys(results, path)
        tasks.append(Task(path, output, results[1] if compare else None, problem))
    if former:
        print(f"left out: {len(former)} files in {out}, the output folder", file=sys.stderr)
    refuse_overwriting(owners, [*(task.path for task in tasks), *former * overwrite])
    return tasks


def refuse_overwriting(owners: dict[Path, Path], originals: list[Path]) -> None:
    """Raise ValueError where a result, a key of owners, is one of the originals, by whatever name."""
    real = {os.path.realpath(path) for path in originals}
    for result, path in owners.items():
        if os.path.realpath(result) in real:
            raise ValueError(f"{result}, the result of {path}, would overwrite an input; name another --out")


def expand(given: Path) -> Iterator[tuple[Path, Path, str]]:
    """Yield what one argument stands for: a file, its name below the output folder, and a problem or ""."""
    if str(given) == "-":
        yield from listed_files()
    elif given.is_dir():
        yield from ((path, path.relative_to(given), "") for path in find_images(given))
    elif given.exists() or given.is_symlink():  # a link to nowhere is an input that cannot be read
        yield given, Path(given.name), ""
    elif has_magic(str(given)):
        yield from matching_files(given)
    else:
        raise ValueError(f"no file or folder {given}")


def is_inside(path: Path, folder: Path) -> bool:
    """Tell whether a path lies in a folder, or is it; links are followed, broken ones too."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def matching_files(pattern: Path) -> Iterator[tuple[Path, Path, str]]:
    """Yield the files that a pattern matches, with their folders below its fixed part."""
    fixed = Path(*list(takewhile(lambda part: not has_magic(part), pattern.parts)))
    try:  # Path's ** follows no links, which can lead round in circles
        rest = pattern.relative_to(fixed) / ("*" if pattern.name == "**" else "")
        matches = sorted(fixed.glob(str(rest)))
    except ValueError as error:
        raise ValueError(f"no pattern {pattern}: {error}") from None
    shown = [m for m in matches if not any(part.startswith(".") for part in m.relative_to(fixed).parts)]
    files = [match for match in shown if not match.is_dir() and not through_link(match, fixed)]
    if not files:
        raise ValueError(f"no file matches {pattern}")
    yield from ((path, path.relative_to(fixed), "") for path in files)


def through_link(path: Path, fixed: Path) -> bool:
    """Tell whether a folder between `fixed` and a file is a link, which can lead round in a circle."""
    return any(parent.is_symlink() for parent in path.parents if parent != fixed and fixed in parent.parents)


def listed_files() -> Iterator[tuple[Path, Path, str]]:
    """Yield the files that stdin names: one a line, or with a NUL after each, as find -print0 writes them."""
    content = sys.stdin.buffer.read()
    names = content.split(b"\0") if b"\0" in content else content.splitlines()
    if not any(names):
        raise ValueError("no file name on standard input")
    for path in (Path(os.fsdecode(name)) for name in names if name):
        inside = not path.is_absolute() and ".." not in path.parts
        problem = f"{path}: a folder, to be named as an argument" if os.path.isdir(path) else ""
        if not problem and not os.path.isfile(path) and not os.path.islink(path):
            problem = f"{path}: no such file"
        yield path, path if inside else Path(path.name), problem
