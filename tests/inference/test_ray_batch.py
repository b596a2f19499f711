"""ray_batch.py: every file once, whatever becomes of a worker; mistakes in a sentence. On a real Ray, where it is."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import CPU, gray, run_stage, save_picture, write_model

from config import ROOT, UserError
from inference import ray_batch
from inference.pipeline import Job, Pipeline
from inference.runner import Runner
from inference.tasks import plan_tasks
from runtime.run_folder import read_records

FILES = 300
BROKEN = range(0, FILES, 10)  # every tenth


def write_scans(count: int = FILES) -> Path:
    """Write gray pictures, of which every tenth is broken."""
    content = save_picture("scans/p000.png", gray(0)).read_bytes()
    for i in range(count):
        Path(f"scans/p{i:03d}.png").write_bytes(content[:60] if i in BROKEN else content)
    return write_model(Path("generator.ts"))


def processes_below(parent: int) -> dict[int, str]:
    """Return the names of all processes that a process has started, and those have."""
    found: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            above = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if above == parent:
                name = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found |= {int(path.name): name, **processes_below(int(path.name))}
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return found


def test_a_share_without_files_starts_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    assert list(ray_batch.colour_files([], None, "auto", {}, {})) == []


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_every_file_is_written_once_though_a_worker_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install -r requirements-scale.txt")
    model = write_scans()
    command = [sys.executable, ROOT / "colorize.py", "scans", "--model", model, "--engine", "ray", "--workers", "2"]
    command += ["--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "120"}
    killed, times = "", {}
    with open("table.jsonl", "wb") as table, open("said.txt", "wb") as said:
        running = subprocess.Popen(list(map(str, command)), stdout=table, stderr=said, env=environment)
        while running.poll() is None:
            done = list(Path("out").glob("*.png"))
            if not killed and len(done) >= 20:
                times = {path: path.stat().st_mtime_ns for path in done}
                workers = {pid: name for pid, name in processes_below(running.pid).items() if "MapWorker" in name}
                pid, killed = next((pid, name) for pid, name in workers.items() if name.startswith("ray::"))
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
    assert killed, Path("said.txt").read_text()
    assert running.returncode == 1, Path("said.txt").read_text()
    lines = read_records(Path("table.jsonl"))
    assert Counter(line["file"] for line in lines) == {f"scans/p{i:03d}.png": 1 for i in range(FILES)}
    failed = {line["file"]: line["reason"] for line in lines if line["status"] == "failed"}
    assert set(failed) == {f"scans/p{i:03d}.png" for i in BROKEN}
    assert {line["status"] for line in lines} == {"done", "failed"}
    written = {path.name for path in Path("out").glob("[!.]*")}  # but for what the killed worker left
    assert written == {f"p{i:03d}.png" for i in range(FILES) if i not in BROKEN}
    assert {path: path.stat().st_mtime_ns for path in times} == times  # not a second time
    assert all(name in Path("said.txt").read_text() for name in failed)


@pytest.mark.parametrize(
    ("resources", "workers", "device", "expected"),
    [
        ({"CPU": 2}, None, "auto", ("CPU", 2)), ({"CPU": 8, "GPU": 2}, None, "auto", ("GPU", 2)),
        ({"CPU": 8, "GPU": 2}, 4, "cpu", ("CPU", 4)), ({"CPU": 8, "GPU": 4}, 3, "cuda", ("GPU", 3)),
    ],
)  # fmt: skip
def test_a_worker_has_a_gpu_or_a_core(
    resources: dict[str, float], workers: int | None, device: str, expected: tuple[str, int]
) -> None:
    assert ray_batch._share(resources, workers, device) == expected


@pytest.mark.parametrize(
    ("resources", "workers", "device", "words"),
    [
        ({"CPU": 2}, 3, "auto", "Ray has 2 CPUs here, too few for 3 workers"),
        ({"CPU": 2}, None, "cuda", "Ray has 0 GPUs"),
        ({"CPU": 2}, 1, "mps", "not on mps"),
    ],
)
def test_workers_that_ray_has_no_room_for_are_one_sentence(
    resources: dict[str, float], workers: int | None, device: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        ray_batch._share(resources, workers, device)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--engine", "ray"], "pip install -r requirements-scale.txt"),
        (["--engine", "dask"], "no engine dask"),
        (["--workers", "2"], "--workers is of --engine ray"),
    ],
)
def test_mistakes_are_one_sentence(
    args: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    model = write_scans(2)
    assert run_stage("colorize", "scans", "--model", model, *args) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert words in error.splitlines()[-1]


class RayError(Exception):
    """Stands for ray.exceptions.RayError, as the next two for what their names say."""


class RayTaskError(RayError):
    pass


class OutOfMemoryError(RayError):
    pass


def colour_with_stand_in(monkeypatch: pytest.MonkeyPatch, start: Exception | None, work: Exception | None) -> int:
    """Run colorize.py on a stand-in of Ray, which cannot be reached, or whose workers fail at their first file."""

    def fail(error: Exception | None) -> None:
        if error:
            raise error

    def run(*_: object) -> Iterator[Job]:
        print("(raylet) a remark of Ray's own")
        fail(work)
        yield from Pipeline(Runner(Path("generator.ts"), CPU), 1).run(plan_tasks([Path("scans")], Path("out")))

    ray = SimpleNamespace(
        is_initialized=lambda: False, init=lambda **_: fail(start), shutdown=lambda: None,
        cluster_resources=lambda: {"CPU": 2},
        exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, OutOfMemoryError=OutOfMemoryError),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(ray_batch, "_run", run)
    return run_stage("colorize", "scans", "--model", write_scans(2), "--engine", "ray")


@pytest.mark.parametrize(
    ("start", "work", "words"),
    [
        (ConnectionError("Could not find any running Ray instance"), None, "any running Ray instance): start it with"),
        (RuntimeError("Version mismatch"), None, "Ray cannot be reached (Version mismatch)"),
        (RayError("InvalidAuthToken"), None, "Ray cannot be reached (InvalidAuthToken)"),
        (None, OutOfMemoryError("a task was killed"), "want of memory, or they could not start (a task was killed)"),
    ],
)
def test_a_ray_that_does_not_answer_or_has_no_memory_is_one_sentence(
    start: Exception | None,
    work: Exception | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert colour_with_stand_in(monkeypatch, start, work) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert words in error.splitlines()[-1]


def test_a_bug_in_a_worker_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RayTaskError, match="ZeroDivisionError"):
        colour_with_stand_in(monkeypatch, None, RayTaskError("ZeroDivisionError: division by zero"))


def test_what_ray_prints_is_not_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert colour_with_stand_in(monkeypatch, None, None) == 1  # of two files one is broken
    out, error = capsys.readouterr()
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["failed", "done"]
    assert "(raylet)" in error


def test_a_worker_colours_what_it_is_given_and_reports_it_without_pixels() -> None:
    model, here = write_scans(12), Path.cwd()
    tasks = plan_tasks([Path("scans")], Path("out"))
    worker = ray_batch.Worker(str(here), {"path": model, "device": CPU}, {"threads": 1})
    answer = worker({"task": np.array([pickle.dumps(task) for task in tasks], object)})
    jobs = [pickle.loads(job) for job in answer["job"]]
    assert [job.task for job in jobs] == tasks
    assert [job.status for job in jobs] == ["failed", *["done"] * 9, "failed", "done"]
    assert [job.record()["frames"] for job in jobs[1:3]] == [1, 1]
    assert max(map(len, answer["job"])) < 2_000
    assert json.dumps([job.record() for job in jobs])
