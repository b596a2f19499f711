"""Packing a data set into shards, tar files of some size each: `python data.py --pack DIR shards/ --size 256`.

Images are written in an order that a hash of their names gives, so that a shard holds a bit of everything. Each shard
appears whole, then the manifest is written with it, so that a call that was cut off goes on where it stopped, and the
files are the same as of one that was not.
"""

import hashlib
import io
import math
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from PIL import Image

from config import DEMO, UserError
from dataset.folders import SPLITS, Picture, read_picture, to_bytes
from dataset.shards import MANIFEST, Manifest, Shard, read_manifest
from dataset.sources import Blob, Entry, read_content
from imaging.encoders import QUALITY
from imaging.pixels import Array, resize
from runtime.atomic import replacing
from runtime.locks import LOCK, is_current, lock
from runtime.progress import say, track
from runtime.weights import file_hash

CHUNK = 64  # images that are encoded before they are written; bounds the memory
MB = 10**6  # bytes

Encoded = tuple[str, bytes | UserError]  # name in the shard, and bytes or what is wrong with the file


def pack(tree: Mapping[str, Picture], out: Path, size: int | None, shard_mb: int) -> Manifest:
    """Write the images of a data set as shards below `out`, and return their manifest.

    Shards that are there are compared with the manifest's hashes; damaged and missing ones are written anew.

    Args:
        tree: name with folders -> image; names become those in the shards.
        size: px to which the short sides of larger images are shrunk; None: files are copied as they are.
        shard_mb: 10^6 bytes, about, of each shard.

    Raises UserError where `out` holds shards of something else, or of another program, or another process packs there.
    """
    if any(isinstance(picture, int) for picture in tree.values()):
        raise UserError(f"the scenes of {DEMO} are drawn: there is nothing to pack")
    groups: dict[str, list[str]] = {}
    for name in sorted(tree, key=lambda name: hashlib.sha256(to_bytes(name)).digest()):
        top = name.split("/", 1)[0]
        groups.setdefault(top if top in {*SPLITS.values()} else "train", []).append(name)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / LOCK, "wb") as held:
        if not (lock(held) and is_current(held)):
            raise UserError(f"another process is packing into {out}, or has just ended: wait for it, and try again")
        try:
            for path in out.glob(".*.tmp"):  # of a process that was killed
                path.unlink()
            manifest = _begin(tree, out, size, shard_mb)
            _mend(tree, groups, out, size, manifest)
            if not manifest.complete:
                _write_groups(tree, groups, out, size, shard_mb * MB, manifest)
        finally:
            (out / LOCK).unlink()
    return manifest


def _begin(tree: Mapping[str, Picture], out: Path, size: int | None, shard_mb: int) -> Manifest:
    """Return the manifest of the shards that are there already, or an empty one."""
    digest = hashlib.sha256(repr((size, shard_mb)).encode())
    for name, picture in sorted(tree.items()):
        size_bytes = picture.stop - picture.start if isinstance(picture, Blob) else 0
        with suppress(OSError):  # a link that leads nowhere, which encode will name
            size_bytes = picture.stat().st_size if isinstance(picture, Path) else size_bytes
        digest.update(to_bytes(f"{name} {size_bytes}\n"))
    source = digest.hexdigest()[:16]
    manifest = read_manifest(out)
    if manifest is None:
        others = sorted(out.glob("*.tar"))
        if (out / MANIFEST).exists():
            raise UserError(f"{out / MANIFEST} is of another program: name an empty folder")
        if others:
            raise UserError(f"{others[0]} is there, and no {MANIFEST} that says of what: name an empty folder")
        manifest = Manifest(source)
        manifest.write(out)  # before the first shard, or a call that goes on would not know that as its own
    if manifest.source != source:
        raise UserError(f"{out} holds shards of other images, or of another --size or --shard-mb: name an empty folder")
    return manifest


def _write_groups(
    tree: Mapping[str, Picture], groups: Mapping[str, Sequence[str]], out: Path, size: int | None, most: int,
    manifest: Manifest,
) -> None:  # fmt: skip
    """Write what is not there yet of the shards of each group, of about `most` bytes each, and the manifest."""
    stems = Counter(map(_stem, tree))
    for group, names in sorted(groups.items()):
        done = [shard for shard in manifest.shards if shard.name.startswith(f"{group}-")]
        rest = names[sum(shard.taken for shard in done) :]
        files = _encode_all(tree, rest, size, stems)
        shown = track(files, f"packing {group}", len(names), len(names) - len(rest))
        _write_shards(group, len(done), shown, out, most, manifest)
    manifest.complete = True
    manifest.write(out)


def _encode_all(
    tree: Mapping[str, Picture], names: Sequence[str], size: int | None, stems: Mapping[str, int]
) -> Iterator[Encoded]:
    """Yield the files to write, in order; they are made in parallel."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(names), CHUNK):
            yield from pool.map(lambda name: encode(name, tree, size, stems), names[start : start + CHUNK])


def encode(name: str, tree: Mapping[str, Picture], size: int | None, stems: Mapping[str, int]) -> Encoded:
    """Return a file's name in the shard and its bytes, shrunk to `size` px where it is larger; see `pack`.

    What was PNG stays PNG, all else becomes JPEG. `stems`: how many names of the tree are the same but for the ending.
    """
    picture = tree[name]
    try:
        if size is None and isinstance(picture, Path | Blob):
            return name, read_content(picture)
        image = read_picture(picture)
        if (size is None or min(image.shape[:2]) <= size) and isinstance(picture, Path | Blob):
            return name, read_content(picture)
    except UserError as error:
        return name, error
    suffix = ".png" if isinstance(picture, Entry) or name.lower().endswith(".png") else ".jpg"
    kept = Path(name).suffix.lower() in (".jpg", ".jpeg", ".png")
    renamed = name if kept else _free_stem(name, stems) + suffix
    file = io.BytesIO()
    options = QUALITY["JPEG"] if suffix == ".jpg" else {}
    Image.fromarray(image if size is None else shrink(image, size)).save(file, "JPEG" if options else "PNG", **options)
    return renamed, file.getvalue()


def _stem(name: str) -> str:
    return str(Path(name).with_suffix(""))


def _free_stem(name: str, stems: Mapping[str, int]) -> str:
    """Return what a file with another ending is called: its name without ending, or all of it if others have that.

    No two names of a tree become one. It does not depend on which files are written first.
    """
    if stems[_stem(name)] == 1:
        return _stem(name)
    while name in stems:  # a.bmp, beside a.png and a.bmp.png
        name += "_"
    return name


def shrink(image: Array, size: int) -> Array:
    """Return an image (H, W, 3) with a short side of at most `size` px. An even width, as pairs have, stays even."""
    height, width, _ = image.shape
    scale = min(1.0, size / min(height, width))
    step = 2 if width % 2 == 0 and size > 1 else 1
    return resize(image, max(1, round(height * scale)), max(step, step * round(width * scale / step)))


def _write_shards(group: str, number: int, files: Iterator[Encoded], out: Path, most: int, manifest: Manifest) -> None:
    """Write files into shards of about `most` bytes each, from `number` on; the manifest is written with each."""
    while True:
        path = out / f"{group}-{number:05d}.tar"
        shard, ended = _write_shard(path, files, most, manifest.bad)
        if shard.images:
            manifest.shards.append(shard)
            number += 1
        else:
            path.unlink()
        manifest.bad = list(dict.fromkeys(manifest.bad))  # files that a call before this one could not read either
        manifest.write(out)
        if ended:
            return


def _write_shard(path: Path, files: Iterator[Encoded], most: float, bad: list[str]) -> tuple[Shard, bool]:
    """Write files into one shard until it has `most` bytes; returns what it is, and whether the files have ended."""
    images, taken, ended = 0, 0, False
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                while archive.offset < most:
                    name, content = next(files, ("", b""))
                    if not name:
                        ended = True
                        break
                    taken += 1
                    if isinstance(content, UserError):
                        bad.append(f"left out of the shards: {' '.join(str(content).split())}")
                        continue
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
                    images += 1
            file.flush()
            os.fsync(file.fileno())  # before the manifest lists it
        return Shard(path.name, images, temporary.stat().st_size, file_hash(temporary), taken), ended


def _mend(
    tree: Mapping[str, Picture], groups: Mapping[str, Sequence[str]], out: Path, size: int | None, manifest: Manifest
) -> None:
    """Write those shards anew that are not what the manifest says. Raises UserError where it does not say of what."""
    ends = dict.fromkeys(groups, 0)
    stems = Counter(map(_stem, tree))
    for i, shard in enumerate(track(manifest.shards, "checking shards", len(manifest.shards))):
        group, path = shard.name.rpartition("-")[0], out / shard.name
        start = ends[group]
        ends[group] += shard.taken
        if path.is_file() and path.stat().st_size == shard.size and file_hash(path) == shard.sha256:
            continue
        if not shard.taken:
            raise UserError(f"{path} is missing or damaged, and of an earlier version: remove {out}, and pack anew")
        say(f"{path} is missing or damaged: it is written anew")
        files, bad = _encode_all(tree, groups[group][start : ends[group]], size, stems), list[str]()
        made, _ = _write_shard(path, files, math.inf, bad)
        if made.images != shard.images:
            path.unlink()
            problem = f"{path} had {shard.images} images, of which {made.images} can be read now; {' '.join(bad[:1])}"
            raise UserError(f"{problem}; put them back, or remove {out} and pack anew")
        manifest.shards[i] = made
        manifest.write(out)
