"""locks.py: one owner at a time, and disks or systems on which nobody can be sure of that."""

import errno
import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataset import cache
from runtime import locks, run_folder
from runtime.locks import is_current, lock


@pytest.fixture(params=["disk", "Windows"])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Take locks away; returns whether the disk is asked for them."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    with monkeypatch.context() as patch:
        patch.setattr(locks, "warned", set())
        if request.param == "disk":
            patch.setattr(fcntl, "flock", refuse)
        else:
            patch.setattr(sys, "platform", "win32")
            patch.setitem(sys.modules, "fcntl", None)  # which cannot be imported there
        yield request.param == "disk"


def test_a_file_has_one_owner_or_several_that_share_it() -> None:
    with open("x", "w") as first, open("x") as second:
        assert lock(first)
        assert (lock(second), lock(second, shared=True)) == (False, False)
        assert lock(first, shared=True)
        assert (lock(second), lock(second, shared=True)) == (False, True)


def test_a_file_that_was_removed_is_no_longer_its_names() -> None:
    with open("x", "w") as file:
        assert is_current(file)
        Path("x").unlink()
        assert not is_current(file)
        Path("x").touch()
        assert not is_current(file)


def test_without_locks_work_goes_on_and_what_may_be_in_use_stays(
    no_locks: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_folder.owned(Path("run")), cache.making(Path("cache/x")) as partial:
        (partial / cache.META).write_text("{}")
        (partial / cache.PIXELS).write_bytes(bytes(100))
        cache.remove_leftovers(Path("cache"))
        assert partial.exists()
    assert Path("cache/x", cache.META).exists()
    assert not cache.make_room(Path("cache"), 50, 100)
    assert Path("cache/x", cache.PIXELS).exists()
    assert capsys.readouterr().out.count("is on a disk without locks: see that no other process works") == no_locks
    assert not Path("run").exists()


def test_without_locks_nobody_is_said_to_be_killed_and_his_files_stay(
    no_locks: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    half = [Path("run", name) for name in ("checkpoints/.state.pt.12.tmp", "outputs/epoch_0001/.a.png.12.tmp")]
    for path in half:
        path.parent.mkdir(parents=True)
        path.touch()
    Path("run", run_folder.LOCK).write_text("box since noon")  # who may be at work
    with run_folder.owned(Path("run")), run_folder.rendering(Path("run")):
        assert all(path.exists() for path in half)
    assert "killed" not in capsys.readouterr().out


def test_another_failure_is_not_taken_for_a_disk_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with open("x", "w") as file, pytest.raises(OSError, match="Input/output error"):
        lock(file)
