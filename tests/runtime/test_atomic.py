"""Files that appear complete or not at all."""

import errno
import io
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from config import UserError
from runtime.atomic import bounded, load, replacing, save, write_json, write_text, writing


def test_a_finished_block_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_processes_of_equal_numbers_do_not_share_a_temporary_file() -> None:
    path = Path("x")
    with replacing(path) as one, replacing(path) as other:  # in one process
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert list(Path().iterdir()) == [path]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def fail(error: OSError) -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(OSError, match="No space left") as raised:
        fail(OSError(errno.ENOSPC, "No space left on device"))
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError) as raised:
        fail(FileNotFoundError(errno.ENOENT, "No such file", "read.png"))  # not of what is written
    assert raised.value.filename == "read.png"
    with pytest.raises(IsADirectoryError) as raised:
        fail(IsADirectoryError(errno.EISDIR, "Is a directory", str(tmp_path)))  # a folder above it
    assert raised.value.filename == str(tmp_path / "file")
    (tmp_path / "taken").touch()
    with pytest.raises(FileExistsError) as raised:
        replacing(tmp_path / "taken" / "file").__enter__()
    assert raised.value.filename == str(tmp_path / "taken" / "file")
    (tmp_path / "taken").unlink()
    with pytest.raises(OSError, match=r"^image file is truncated$"):
        fail(OSError("image file is truncated"))  # a library's
    assert list(tmp_path.iterdir()) == []  # whatever it was, nothing half written stays


def test_a_text_is_on_the_disk_before_it_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (done.append(name), real(*args))[1])
    write_json(Path("recipe.json"), {"name": "coco"})
    assert done == ["fsync", "replace"]


def test_a_full_disk_names_a_file_that_grows() -> None:
    for error, named in ((OSError(errno.ENOSPC, "No space left on device"), "log.jsonl"), (OSError("odd"), None)):
        with pytest.raises(OSError) as raised, writing(Path("log.jsonl")):  # noqa: PT011 - told by what it names
            raise error
        assert raised.value.filename == named
    with pytest.raises(OSError, match="No space") as raised, writing(Path("copy"), Path("copy.tmp")):
        raise OSError(errno.ENOSPC, "No space left on device", "read.png", None, "copy.tmp")  # shutil's
    assert raised.value.filename == "copy"
    with pytest.raises(OSError, match="other"), writing(Path("log.jsonl")):
        raise OSError(errno.ENOSPC, "No space left on device", "other")


def test_a_long_name_is_cut_and_stays_unique_and_text() -> None:
    assert bounded("short") == "short"
    names = [f"{head}{'é' * 100}" for head in ("a", "b", "ab", "\udce9")]
    found = [bounded(name) for name in names]
    assert len(set(found)) == len(names)
    for name in found:
        assert 110 < len(name.encode()) <= 120  # no half of a letter, no byte that is no text
        assert name.endswith("é" * 50)
    assert len(bounded("x" * 300, 200)) == 200


PAYLOAD = {"weights": torch.arange(5.0), "nested": {"epoch": 3, "names": ["a", "b"]}}
NO_CHECKPOINT = r"^x.pt is not a checkpoint of this project, or it is damaged$"


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/x.pt"
    save(path, PAYLOAD)
    back = load(path)
    assert torch.equal(back["weights"], PAYLOAD["weights"])
    assert back["nested"] == PAYLOAD["nested"]
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(UserError, match=r"^no checkpoint gone.pt$"):
        load(Path("gone.pt"))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="asks Linux")
def test_a_checkpoint_is_read_once() -> None:
    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    save(Path("x.pt"), {"weights": torch.arange(1_000_000.0)})
    before = bytes_read()
    load(Path("x.pt"))
    assert bytes_read() - before < 1.5 * Path("x.pt").stat().st_size


class FullDisk(io.BytesIO):
    """A file for which there is no room."""

    def write(self, content: Any) -> int:
        if self.tell() + len(content) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


def test_a_checkpoint_on_a_full_disk_ends_in_the_systems_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.open", lambda *_: FullDisk())
    with pytest.raises(OSError, match="No space left on device") as raised:
        save(Path("x.pt"), {"weights": torch.zeros(1000)})
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "x.pt")


def test_a_full_disk_says_how_much_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=500_000))
    full = OSError(errno.ENOSPC, "No space left on device")
    payload = {"weights": torch.zeros(1_000_000), "others": [{"rng": torch.zeros(500_000)}]}  # 6 MB
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda *_: FullDisk())
        with pytest.raises(OSError, match="No space") as raised:
            save(tmp_path / "x.pt", payload)
        assert raised.value.strerror == "No space left on device: 5.5 of 6.0 MB are missing"
        with pytest.raises(OSError, match="No space") as raised:
            write_text(tmp_path / "report.html", "é" * 300_000)
        assert raised.value.strerror == "No space left on device: 0.1 of 0.6 MB are missing"
    with pytest.raises(OSError, match="No space") as raised, replacing(tmp_path / "x.png") as temporary:  # noqa: PT012
        temporary.write_bytes(bytes(300_000))
        raise full
    assert raised.value.strerror == "No space left on device: 0.5 MB are free, with 0.3 MB of this written"
    with pytest.raises(OSError, match=r"^\[Errno \d+\] quota: '") as raised, writing(tmp_path / "x.png"):
        raise OSError(errno.EDQUOT, "quota")  # what is free is not ours
    with pytest.raises(OSError, match="No space") as raised, writing(tmp_path / "gone" / "log.jsonl"):
        raise full
    assert raised.value.filename == str(tmp_path / "gone" / "log.jsonl")


@pytest.mark.parametrize("write", [save, write_json])
def test_writing_is_whole_or_not_at_all(write: Any) -> None:
    path = Path("x.file")
    write(path, {"epoch": 1})
    before = path.read_bytes()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        write(path, {"a": list(range(1000)), "b": lambda: None})
    assert path.read_bytes() == before
    assert list(Path().iterdir()) == [path]


class Bomb:
    """Touches a file when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_what_is_no_checkpoint_is_refused_and_runs_no_code() -> None:
    save(Path("whole.pt"), PAYLOAD)
    torch.save([1, 2], "list.pt")
    torch.save({"weights": Bomb()}, "bomb.pt")
    whole, listed, bomb = (Path(name).read_bytes() for name in ("whole.pt", "list.pt", "bomb.pt"))
    pickled = pickle.dumps({"weights": Bomb()})
    for content in (b"", b"hello", b"PK\x03\x04", whole[: len(whole) // 2], listed, bomb, pickled):
        Path("x.pt").write_bytes(content)
        with pytest.raises(UserError, match=NO_CHECKPOINT):
            load(Path("x.pt"))
        assert not Path("exploded").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_bytes_end_in_one_sentence_or_none() -> None:
    save(Path("x.pt"), PAYLOAD)
    whole, rng, said = np.frombuffer(Path("x.pt").read_bytes(), np.uint8), np.random.default_rng(0), set()
    for _ in range(100):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
        Path("x.pt").write_bytes(damaged.tobytes())
        try:
            load(Path("x.pt"))
        except UserError as error:
            said.add(str(error))
    assert said == {NO_CHECKPOINT.strip("^$")}
