"""Data sets that are read as a stream of shards, and fit no disk: `pipe:COMMAND` or an URL, with {00000..00099}.

WebDataset opens them and reads their files. What has to be known before training comes from the head of a stream, its
first images, which are kept below cache/: some of them are held out, all others are trained on with the rest.
"""

import hashlib
import io
import json
import random
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from config import UserError
from dataset.cache import META, making
from dataset.shards import MANIFEST, Manifest, expand_braces, is_foreign
from dataset.sources import Blob, images_among
from runtime import distributed
from runtime.atomic import write_text, writing
from runtime.progress import say, write
from runtime.weights import file_hash

HEAD = 2048  # images at the beginning of a stream that are kept
HEAD_TAR = "head.tar"
BUFFER = 1024  # images, still encoded, among which the order is shuffled
TAR_NAME = re.compile(r"[^/\s'\"]+\.tar\b")  # in an URL, or a command
HELD_OUT = ("val/", "valid/", "validation/", "test/", "testing/")  # folders of shards that are not trained on
HELD_OUT_SHARDS = ("val-", "test-")  # names of packed shards that have nothing else
BROKEN = (OSError, EOFError, ValueError, tarfile.TarError)  # of a shard that cannot be read, or not to its end


@dataclass(frozen=True)
class Stream:
    """The shards of a stream, and what of them is trained on."""

    urls: tuple[str, ...]
    count: int  # images of an epoch, of all processes together
    held: frozenset[str]  # names of images that are not trained on
    said: list[str] = field(default_factory=list, compare=False)  # problems

    def images(self, seed: int, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Blob]:
        """Yield one process's images of an epoch, in an order that depends on seed, epoch, rank and world alone.

        Shards are dealt to the processes; of those that are left over each reads all and takes every world-th image.
        What of a shard cannot be read is left out, and said once.
        """
        order = np.random.default_rng([seed, epoch]).permutation(len(self.urls))
        urls, left = [self.urls[i] for i in order], len(self.urls) % world
        if left and not rank:
            problem = f"{len(urls)} shards are no multiple of {world} processes"
            self.tell(f"{problem}: each reads {left} of them, and uses its share of their pictures")
        dealt, shared = urls[: len(urls) - left], urls[len(urls) - left :]
        mine = chain(self._read(dealt[rank::world]), islice(self._read(shared), rank, None, world))
        noise = random.Random(f"{seed} {epoch} {rank}")
        yield from _webdataset("filters").shuffle(BUFFER, initial=BUFFER, rng=noise)(mine)

    def _read(self, urls: Sequence[str]) -> Iterator[Blob]:
        """Yield the images of some shards that are trained on."""
        for url in urls:
            for blob in read_shard(url, self.leave_out):
                if blob.name not in self.held and not blob.name.startswith(HELD_OUT):
                    yield blob

    def leave_out(self, problem: str) -> None:
        """Say once what is wrong with a shard, which is read as far as it goes."""
        self.tell(f"left out: {problem}")

    def tell(self, problem: str) -> None:
        """Print a problem, once; every process has its own."""
        if problem not in self.said:
            write(problem, "stdout" if distributed.rank() == 0 else "stderr")
            self.said.append(problem)


def _webdataset(module: str) -> ModuleType:
    try:
        return import_module(f"webdataset.{module}")
    except ImportError:
        raise UserError("a stream of shards needs webdataset: pip install -r requirements-scale.txt") from None


def read_shard(url: str, report: Callable[[str], None]) -> Iterator[Blob]:
    """Yield the images of one shard; what cannot be read of it is left out, and reported in words."""
    gopen, stream, why = _webdataset("gopen"), None, ""
    try:
        stream = gopen.gopen(url)
        gopen.set_options(stream, ignore_errors=True)  # until its end: a failing command's last output is not lost
        with tarfile.open(fileobj=stream, mode="r|*") as archive:
            for member in archive:
                if member.isreg() and images_among([name := member.name.removeprefix("./")], Path(url), []):
                    content = np.frombuffer(archive.extractfile(member).read(), np.uint8)
                    yield Blob(Path(url), name, 0, len(content), content)
                archive.members = []  # or it keeps all
            if any(archive.fileobj.read(tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
                why = "it is damaged in the middle"
    except BROKEN as error:
        why = " ".join(str(error).split())
    try:
        if stream is not None:
            while stream.read(2**20):  # the padding; a command that is not read to its end fails
                pass
            gopen.set_options(stream, ignore_errors=False)
            stream.close()  # tells whether a command has failed, which is then the reason
    except OSError as error:
        why = " ".join(str(error).split())
    if why:
        report(f"what cannot be read of {url} ({why})")


def take_head(data: str, cache: Path) -> tuple[Path, int | None]:
    """Return a tar of the first images of a stream, and how many the stream has, None if these are not all.

    They are read once, and kept in the cache with their hash; where that differs they are read again.

    Raises UserError where not one can be read, or a shard that lacks some leaves fewer than HEAD: it may be there the
    next time, and is not to be missing for ever.
    """
    folder = cache / f"stream-{hashlib.sha256(data.encode()).hexdigest()[:16]}"
    if (meta := _read_head(folder)) is None:
        with making(folder) as partial:
            if (meta := _read_head(folder)) is None:  # else another process was faster
                meta = _write_head(data, partial)
    return folder / HEAD_TAR, meta["images"]


def _read_head(folder: Path) -> dict[str, Any] | None:
    """Return what is known of a head; None where it is not there, or damaged."""
    with suppress(OSError, ValueError, KeyError):
        meta = json.loads((folder / META).read_text())
        if meta["hash"] == file_hash(folder / HEAD_TAR):
            return meta
    return None


def _write_head(data: str, folder: Path) -> dict[str, Any]:
    urls, problems = expand_braces(data), []
    images = chain.from_iterable(read_shard(url, problems.append) for url in urls)
    taken = 0
    with writing(folder / HEAD_TAR), tarfile.open(folder / HEAD_TAR, "w") as archive:
        for blob in islice(images, HEAD):
            member = tarfile.TarInfo(blob.name)
            member.size = blob.stop
            archive.addfile(member, io.BytesIO(blob.content()))
            taken += 1
    if not taken:
        raise UserError(f"no image in the stream {data}{'; '.join(['', *problems[:1]])}")
    if problems and taken < HEAD:
        raise UserError(f"the stream {data} lacks {problems[0]}: try again, or leave that shard out")
    for problem in problems:
        say(f"left out: {problem}")
    images = taken if taken < HEAD else None
    meta = {"data": data, "images": images, "hash": file_hash(folder / HEAD_TAR)}
    write_text(folder / META, json.dumps(meta))
    return meta


def _listed_images(urls: list[str]) -> int | None:
    """Return how many images to train on the manifests beside the shards list, None where one says nothing of them."""
    manifests, count = {}, 0
    for url in urls:
        where, name = TAR_NAME.sub(MANIFEST, url), TAR_NAME.findall(url)[-1:]
        if where not in manifests:
            manifests[where] = _read_counts(where)
        if not name or name[0] not in manifests[where]:
            return None
        count += 0 if name[0].startswith(HELD_OUT_SHARDS) else manifests[where][name[0]]
    return count


def _read_counts(where: str) -> dict[str, int]:
    """Return how many images each shard of a manifest has; nothing where there is none.

    Raises UserError where it is damaged.
    """
    try:
        with _webdataset("gopen").gopen(where) as file:
            content = file.read()
    except BROKEN:
        return {}
    if not content.lstrip().startswith(b"{") or is_foreign(content):  # whatever else a server answers
        return {}
    return {shard.name: shard.images for shard in Manifest.parse(content, where).shards}


def open_stream(data: str, limit: int, held: Iterable[str], cache: Path) -> Stream:
    """Return a stream to train on.

    Args:
        limit: images of an epoch; 0: all that the stream has.
        held: names of the images of its head that are held out.

    Raises UserError where it is not known how many images it has.
    """
    names, (_, images) = frozenset(held), take_head(data, cache)
    if not limit and images is None:
        images = _listed_images(expand_braces(data))
    if not limit and images is None:
        problem = "a stream does not tell how long it is: say with --limit N how many pictures an epoch has"
        raise UserError(f"{problem}, or put the {MANIFEST} of data.py --pack beside its shards")
    return Stream(tuple(expand_braces(data)), limit or max(1, images - len(names)), names)
