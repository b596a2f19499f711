"""Data sets of many tar files: `shards/train-{00000..00099}.tar`, or a folder that `python data.py --pack` has written.

Shards are read in place like one archive. Where their files lie is found once and kept below cache/. A manifest beside
them says how many images each holds, and its hash.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

from config import UserError
from dataset.sources import Blob, images_among, index_tar, top_folder
from runtime.atomic import write_json, write_text
from runtime.progress import track
from runtime.weights import file_hash

MANIFEST, FORMAT = "manifest.json", "tinct-shards-1"
REMEDY = "pack it anew with python data.py --pack, or take the manifest away"


@dataclass(frozen=True)
class Shard:
    """One tar file, as the manifest lists it."""

    name: str  # of the file
    images: int
    size: int  # bytes
    sha256: str
    taken: int = 0  # images of the data set it was made of, with those that could not be read


@dataclass
class Manifest:
    """What is written beside shards."""

    source: str = ""  # hash of what was packed, and how
    complete: bool = False
    shards: list[Shard] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)  # a sentence per file that was left out

    def write(self, folder: Path) -> None:
        """Write the manifest, complete or not at all."""
        write_json(folder / MANIFEST, {"format": FORMAT, **asdict(self)})

    @classmethod
    def parse(cls, text: str | bytes, where: str) -> "Manifest":
        """Return a manifest from its JSON. Raises UserError where it is none."""
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT:
                raise ValueError("another format")
            return cls(**{**content, "shards": [Shard(**shard) for shard in content["shards"]]})
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{where} is damaged, or no manifest of shards ({error}); take it away") from None


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder; None where there is none. Raises UserError where it is damaged."""
    path = folder / MANIFEST
    text = path.read_bytes() if path.is_file() else None
    return None if text is None or is_foreign(text) else Manifest.parse(text, str(path))


def is_foreign(text: bytes) -> bool:
    """Tell whether what a file called manifest.json holds is whole, and of another program."""
    try:
        content = json.loads(text)
    except ValueError:
        return False
    return not isinstance(content, dict) or not str(content.get("format")).startswith(FORMAT[:-1])


def whole_manifest(folder: Path) -> Manifest | None:
    """Return what read_manifest does; UserError, too, where the shards are not packed to their end."""
    manifest = read_manifest(folder)
    if manifest and not manifest.complete:
        raise UserError(f"{folder} is not packed to its end: repeat the command that packed it")
    return manifest


def expand_braces(pattern: str) -> list[str]:
    """Return what a pattern with {000..099} or {a,b} stands for, in order; without such, the pattern itself."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    choices = found[1].split(",")
    if span:
        choices = [f"{number:0{len(span[1])}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [whole for choice in choices for whole in expand_braces(before + choice + after)]


def is_stream(data: str) -> bool:
    """Tell whether a data set is read as a stream: pipe:COMMAND, or an URL."""
    return re.match(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://", data) is not None


def is_pattern(data: str) -> bool:
    """Tell whether the name of a data set is a pattern of shards on this disk."""
    return "{" in data and not is_stream(data) and not Path(data).exists()


def find_shards(data: str) -> list[Path] | None:
    """Return the shards that a pattern or a packed folder stands for; None: it is neither.

    Raises UserError where one is not there, or they are not packed to the end.
    """
    root = Path(data)
    manifest = whole_manifest(root) if root.is_dir() else None
    if manifest is None and not is_pattern(data):
        return None
    paths = [root / shard.name for shard in manifest.shards] if manifest else list(map(Path, expand_braces(data)))
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        first = f"{len(missing)} of {len(paths)} are not there, first {missing[0]}" if missing else "it names none"
        raise UserError(f"no shards {data}: {first}")
    return paths


def open_shards(data: str, paths: Sequence[Path], cache: Path, notes: list[str]) -> dict[str, Blob]:
    """Return the images of shards by name, in order of their names; what is left out is added to `notes`.

    Raises UserError where a shard is damaged, does not fit its manifest, or holds the name of another's image.
    """
    manifests = {folder: whole_manifest(folder) for folder in dict.fromkeys(path.parent for path in paths)}
    found: dict[str, Blob] = {}
    for path in track(paths, "looking into shards", len(paths)):
        for name, span in _index(path, manifests[path.parent], cache).items():
            if name in found and images_among([name], path, []):  # a README in each is no fault
                raise UserError(f"{found[name].archive} and {path} both hold {name}")
            found[name] = Blob(path, name, *span, None)
    shown = images_among(found, Path(data), notes)
    if not shown:
        raise UserError(f"no image in {data}")
    if not any(manifests.values()):
        cut = len(top_folder(shown))
        return {name[cut:]: found[name] for name in shown}
    notes += chain.from_iterable(manifest.bad for manifest in manifests.values() if manifest)
    return {name: found[name] for name in shown}


def _index(path: Path, manifest: Manifest | None, cache: Path) -> dict[str, tuple[int, int]]:
    """Return where the files of a shard begin and end; looked up in the cache if it is there.

    A shard is compared with its manifest's hash and count once, when it is indexed. Raises UserError as open_shards
    does.
    """
    status, listed = path.stat(), None
    if manifest:
        listed = next((shard for shard in manifest.shards if shard.name == path.name), None)
        if listed is None:
            raise UserError(f"{path} does not stand in {path.parent / MANIFEST}: {REMEDY}")
        if listed.size != status.st_size:
            problem = f"it has {status.st_size:,} bytes instead of {listed.size:,}"
            raise UserError(f"{path} does not fit {path.parent / MANIFEST}: {problem}; {REMEDY}")
    facts = (os.fsencode(path.resolve()), status.st_size, status.st_mtime_ns, listed and (listed.sha256, listed.images))
    stored = cache / "shards" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.json"
    try:
        return json.loads(stored.read_text())
    except (OSError, ValueError):  # not there, or damaged
        pass
    if listed and file_hash(path) != listed.sha256:
        raise UserError(f"{path} does not fit {path.parent / MANIFEST}: it is damaged; {REMEDY}")
    try:
        spans = index_tar(path)
    except UserError as error:
        raise UserError(f"{path} cannot be read as a shard ({error}); leave it out, or pack it anew") from None
    count = len(images_among(spans, path, []))
    if listed and count != listed.images:
        problem = f"it holds {count:,} images instead of {listed.images:,}"
        raise UserError(f"{path} does not fit {path.parent / MANIFEST}: {problem}; {REMEDY}")
    write_text(stored, json.dumps(spans))
    return spans
