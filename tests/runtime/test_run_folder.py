"""run_folder.py: the files of a run, its epochs, its record, and which run is the newest."""

import errno
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from config import ROOT, Recipe, UserError
from runtime import atomic, run_folder
from runtime.locks import LOCK
from runtime.run_folder import RunRecord, epoch_path, newest_run, previous_state_path, read_run, state_path, write_run

RUN = Path("runs/x")
RECORD = RunRecord(recipe=Recipe("x", size=32), data="demo", fingerprints={}, mean_ab=(1.0, 2.0))


def test_saved_epochs_are_in_numerical_order() -> None:
    for epoch in (5, 20, 9999, 12345, 100):
        atomic.save(epoch_path(RUN, epoch), {})
    for name in ("state.pt", "epoch_x.pt", "epoch_0007.pt.tmp"):
        (RUN / "checkpoints" / name).touch()
    assert run_folder.saved_epochs(RUN) == [5, 20, 100, 9999, 12345]
    assert epoch_path(RUN, 5) == RUN / "checkpoints/epoch_0005.pt"


def test_a_stamp_tells_checkpoints_apart_by_what_is_in_them() -> None:
    path = epoch_path(RUN, 5)
    atomic.save(path, {"weights": torch.zeros(4)})
    first = run_folder.stamp(RUN, 5, "key")
    assert first.startswith("key ")
    os.utime(path, (1, 1))  # a copy of the run is scored as the run is
    assert run_folder.stamp(RUN, 5, "key") == first
    atomic.save(path, {"weights": torch.tensor([0.0, 0.0, 1.0, 0.0])})  # of the same length
    assert run_folder.stamp(RUN, 5, "key") != first
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match=r"epoch_0005\.pt is not a checkpoint"):
        run_folder.stamp(RUN, 5, "key")


def test_newest_run() -> None:
    with pytest.raises(UserError, match=r"no run in runs/; train one first"):
        newest_run()
    for i, name in enumerate(["b", "c", "a"]):
        path = Path("runs", name, "recipe.json")
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (i, i))
    Path("runs/empty").mkdir()
    assert newest_run() == Path("runs/a")


def test_a_record_comes_back_and_one_of_an_older_version_is_filled_in() -> None:
    write_run(RUN, RECORD)
    assert read_run(RUN) == RECORD
    older = asdict(RECORD)
    for key in ("git", "overrides", "resumed"):
        del older[key]
    del older["recipe"]["ema"]
    atomic.write_json(RUN / "recipe.json", older)
    assert read_run(RUN) == RECORD


def test_a_missing_or_damaged_record_is_refused() -> None:
    with pytest.raises(UserError, match=r"runs/x is not a run folder"):
        read_run(RUN)
    RUN.mkdir(parents=True)
    for content in (b"", b"{", b"[]", b'{"recipe": {}}', b'{"data": "demo"}', b"\xff\xfe"):
        (RUN / "recipe.json").write_bytes(content)
        with pytest.raises(UserError, match=r"^runs/x/recipe.json is damaged"):
            read_run(RUN)
    for mean_ab in (None, [1.0], ["a", "b"], 1.0):
        atomic.write_json(RUN / "recipe.json", {**asdict(RECORD), "mean_ab": mean_ab})
        with pytest.raises(UserError, match=r"^runs/x/recipe.json is damaged"):
            read_run(RUN)
    record = asdict(RECORD)
    record["recipe"]["sharpness"] = 3
    atomic.write_json(RUN / "recipe.json", record)
    with pytest.raises(UserError, match="sharpness"):
        read_run(RUN)


HOLD = """
import sys
from pathlib import Path
from runtime.run_folder import owned
with owned(Path(sys.argv[1])):
    Path(sys.argv[1], "checkpoints").mkdir()
    Path(sys.argv[1], "checkpoints", ".state.pt.1234.tmp").touch()
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_a_run_folder_has_one_owner_until_that_ends_however_it_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call, pipes = [sys.executable, "-c", HOLD, str(tmp_path / RUN)], {"stdin": subprocess.PIPE, "text": True}
    with subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, **pipes) as process:
        assert process.stdout.readline() == "mine\n"
        told = rf"^runs/x is trained by {re.escape(platform.node())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d: wait for"
        with pytest.raises(UserError, match=told), run_folder.owned(RUN):
            pytest.fail("two owners")
        process.kill()
    with run_folder.owned(RUN):
        assert {path.name for path in RUN.rglob("*")} == {"checkpoints", LOCK}  # nothing half written
    assert "was killed; taken over" in capsys.readouterr().out
    assert [path.name for path in RUN.rglob("*")] == ["checkpoints"]
    with run_folder.owned(RUN):
        pass
    assert capsys.readouterr().out == ""


def test_what_others_are_writing_beside_a_training_stays_for_a_day() -> None:
    RUN.mkdir(parents=True)
    names = [f".{name}.{age}.tmp" for name in ("generator.ts", "log.jsonl") for age in ("new", "old")]
    for name in names:
        (RUN / name).touch()
        if "old" in name:
            os.utime(RUN / name, (1, 1))
    with run_folder.owned(RUN):
        assert {path.name for path in RUN.iterdir()} == {".generator.ts.new.tmp", LOCK}


def test_a_run_is_rendered_by_one_process_beside_its_training() -> None:
    half = RUN / "outputs" / "epoch_0001" / ".a.png.12.tmp"
    half.parent.mkdir(parents=True)
    half.touch()
    with run_folder.rendering(RUN):
        assert not half.exists()
        half.touch()
        with run_folder.owned(RUN):
            assert half.exists()
            told = rf"^runs/x is rendered or scored by {re.escape(platform.node())} since 20.*: wait for its end"
            with pytest.raises(UserError, match=told), run_folder.rendering(RUN):
                pytest.fail("two owners")
    (RUN / run_folder.RENDER_LOCK).touch()  # of a process that was killed
    with run_folder.owned(RUN):
        assert not half.exists()
    assert [path.name for path in RUN.iterdir()] == ["outputs"]


def test_a_full_disk_names_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    def node() -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_folder.platform, "node", node)
    with pytest.raises(OSError, match=r"No space left on device.*\.lock"), run_folder.owned(RUN):
        pytest.fail("owned")
    assert not RUN.exists()


def test_a_folder_in_which_nothing_was_written_does_not_stay() -> None:
    with pytest.raises(UserError, match="no weights"), run_folder.owned(RUN):
        raise UserError("no weights")
    assert list(Path().iterdir()) == []


def states() -> dict[str, int]:
    """Return which epoch each file of checkpoints/ holds; 0: it is damaged."""
    found = {}
    for path in (RUN / "checkpoints").iterdir():
        try:
            found[path.name] = atomic.load(path)["epoch"]
        except UserError:
            found[path.name] = 0
    return found


def save_state(epoch: int, die_before: Path | None = None) -> None:
    """Save a state, in a process that is killed before it puts something in the place of `die_before`."""
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if target == die_before:
            os.rename(source, target.parent / f".{state_path(RUN).name}.12.tmp")
            raise SystemExit
        real(source, target)

    with pytest.MonkeyPatch.context() as patch, suppress(SystemExit):
        patch.setattr(os, "replace", replace)
        atomic.save(state_path(RUN), {"epoch": epoch}, previous_state_path(RUN))


def test_whenever_a_save_is_cut_off_a_state_stays(capsys: pytest.CaptureFixture[str]) -> None:
    save_state(1)
    save_state(2)
    state_path(RUN).write_bytes(b"damaged")
    with run_folder.owned(RUN):
        assert run_folder.load_state(RUN, is_owner=False) == {"epoch": 1}
        assert states() == {"state.pt": 0, "state_previous.pt": 1}
        assert run_folder.load_state(RUN) == {"epoch": 1}
        assert states() == {"state_previous.pt": 1}  # the damaged one will not take its place
        save_state(3, die_before=state_path(RUN))
    with run_folder.owned(RUN):
        assert states() == {"state.pt": 3, "state_previous.pt": 1}
        save_state(4, die_before=state_path(RUN))
        assert states() == {".state.pt.12.tmp": 4, "state_previous.pt": 3}
        Path(RUN, "checkpoints/.state.pt.34.tmp").write_bytes(b"half")
    with run_folder.owned(RUN):
        assert states() == {"state.pt": 4, "state_previous.pt": 3}
        Path(RUN, "checkpoints/.state.pt.56.tmp").write_bytes(state_path(RUN).read_bytes())
    with run_folder.owned(RUN):
        assert states() == {"state.pt": 4, "state_previous.pt": 3}
    assert capsys.readouterr().out.count("going on from state_previous.pt") == 2
