"""The command line of data.py: data sets are checked, and packed into shards, before anybody trains on them.

python data.py --check photos/                # what is wrong with its files -> check.csv
"""

from pathlib import Path
from typing import Annotated

import typer

from config import CACHE, UserError, make_recipe
from runtime import cli


def main(
    check: Annotated[str | None, typer.Option(metavar="PATH|NAME", help="Data set whose files are looked at.")] = None,
    table: Annotated[Path, typer.Option(metavar="CSV", help="Where --check lists what it found.")] = Path("check.csv"),
    size: Annotated[int | None, typer.Option(min=1, metavar="PX", help="Short side; tiny is below.")] = None,
    pair_folders: cli.PairFoldersOption = None,
) -> Path:
    """Check a data set; returns the table of what is wrong with its files."""
    if check is None:
        raise UserError("nothing to do: name a data set, as in python data.py --check photos/")
    return check_files(check, table, size, pair_folders)


def check_files(data: str, table: Path, size: int | None, pair_folders: tuple[str, str] | None) -> Path:
    """Look at every file of a data set, write what is wrong as CSV, and print a summary."""
    from dataset.check import TINY, check, summary, write_table
    from dataset.folders import find_pair, list_items

    looked_at = make_recipe("anime", {"pair_folders": "/".join(pair_folders or ())})  # of pairs, which may be there
    items = list_items(data, looked_at, CACHE)
    count, findings = check(items, find_pair(items["train"]), size or TINY)
    write_table(table, findings)
    print("\n".join([*items.notes, *summary(count, findings), f"listed in {table}"]))
    return table
