"""The command line of data.py: data sets are checked, and packed into shards, before anybody trains on them."""

from pathlib import Path
from typing import Annotated

import typer

from config import CACHE, UserError, make_recipe
from runtime import cli
from runtime.progress import say


def main(
    out: Annotated[Path | None, typer.Argument(metavar="DIR", help="Where --pack writes its shards.")] = None,
    check: Annotated[str | None, typer.Option(metavar="PATH|NAME", help="Data set whose files are looked at.")] = None,
    pack: Annotated[str | None, typer.Option(metavar="PATH|NAME", help="Data set to write as shards.")] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, metavar="PX", help="Short side: to which --pack shrinks, below which --check says tiny."),
    ] = None,
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard.")] = 256,
    table: Annotated[Path, typer.Option(metavar="CSV", help="Where --check lists what it found.")] = Path("check.csv"),
    pair: cli.PairOption = None,
    pair_folders: cli.PairFoldersOption = None,
) -> Path:
    """Check a data set, or pack it into shards; returns the table of what is wrong, or the folder of shards."""
    if (check is None) == (pack is None):
        raise UserError("say what to do: data.py --check photos/, or data.py --pack photos/ shards/")
    if (pack is None) != (out is None):
        raise UserError("--pack takes two folders: data.py --pack photos/ shards/; --check takes one")
    from dataset.shards import is_stream

    if is_stream(data := str(pack or check)):
        raise UserError(f"{data} is a stream, of which only the head is looked at: copy its shards to a disk first")
    if pack is not None:
        return pack_files(data, Path(out), size, shard_mb, pair_folders)
    return check_files(data, Path(table), size, pair, pair_folders)


def check_files(
    data: str, table: Path, size: int | None, pair: str | None, pair_folders: tuple[str, str] | None
) -> Path:
    """Look at every file of a data set, write what is wrong as CSV, and print a summary."""
    from dataset.check import TINY, check, summary, write_table
    from dataset.folders import find_pair, list_items

    looked_at = make_recipe("anime", {"pair": pair, "pair_folders": "/".join(pair_folders or ())})  # pairs may be there
    items = list_items(data, looked_at, CACHE)
    sides = find_pair(items["train"]) if looked_at.pair == "auto" else looked_at.pair
    count, findings = check(items, sides, size or TINY)
    write_table(table, findings)
    say("\n".join([*items.notes, *summary(count, findings), f"listed in {table}"]))
    return table


def pack_files(data: str, out: Path, size: int | None, shard_mb: int, pair_folders: tuple[str, str] | None) -> Path:
    """Write a data set as shards, and say how to train on them."""
    from dataset.folders import by_splits, open_tree
    from dataset.packing import pack

    notes: list[str] = []
    tree = by_splits(open_tree(data, CACHE, notes), pair_folders or ())
    manifest = pack(tree, out, size, shard_mb)
    images, mb = sum(shard.images for shard in manifest.shards), sum(shard.size for shard in manifest.shards) / 1e6
    say("\n".join([*notes, *manifest.bad]))
    say(f"{images:,} images in {len(manifest.shards)} shards of {mb:,.0f} MB: train on them with --data {out}")
    return out
