"""Files that appear complete or not at all."""

import errno
from pathlib import Path

import pytest

from runtime.atomic import replacing


def test_a_finished_block_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


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
    assert list(tmp_path.iterdir()) == []
