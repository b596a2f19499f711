"""Several processes at one run, by torchrun: the same training, one voice, one saved state, whatever ends them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import log_of, run_stage, same_tensors, saved_weights, times_of

from config import ROOT, UserError
from data import training_order
from dataset.folders import open_tree
from dataset.packing import pack
from runtime import atomic, distributed
from runtime.run_folder import epoch_path, read_records, read_run, saved_epochs, state_path

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
SMALL = ["--recipe", "coco", "--size", 32, "--batch-size", 2, "--device", "cpu", "--set", "compile=false"]
SMALL += [word for each in ("ngf=4", "ndf=4", "samples=2", "log_every=1") for word in ("--set", each)]
LOG = Path("run/log.jsonl")
STARTED: list[subprocess.Popen[str]] = []
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")


def start(*args: object, processes: int = 2, options: tuple[object, ...] = ("--standalone",)) -> subprocess.Popen[str]:
    """Start a program in several processes."""
    call = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", processes, *options, "--", *args]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pipes["start_new_session"] = True  # a group of their own, as a terminal gives a command
    STARTED.append(subprocess.Popen([str(word) for word in call], env=ENV, **pipes))
    return STARTED[-1]


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """End what a test that failed has left at work."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.terminate()  # torchrun ends its processes with it
            process.communicate()
    STARTED.clear()


def train(data: Path, *args: object, **options: Any) -> subprocess.Popen[str]:
    return start(ROOT / "train.py", "--data", data, "--run", "run", *SMALL, *args, **options)


def finish(process: subprocess.Popen[str], seconds: int = 300) -> tuple[int, str, str]:
    """Return exit code, output and errors of a process that ends within so many seconds."""
    out, error = process.communicate(timeout=seconds)
    return process.returncode, out, error


def written(epoch: int) -> int:
    """Return when a saved epoch of the run was written."""
    return epoch_path(Path("run"), epoch).stat().st_mtime_ns


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a condition while a process runs."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


NO_DISTRIBUTED = """
import sys
import torch
torch.distributed.is_available = lambda: False
sys.modules["torch.distributed.rendezvous"] = None
from runtime import device, distributed
print(distributed.rank(), distributed.world(), distributed.gather(3))
"""


def test_a_torch_without_distributed_does_for_one_process() -> None:
    done = subprocess.run([sys.executable, "-c", NO_DISTRIBUTED], env=ENV, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0 1 [3]\n"), done.stderr


LEAVE = """
from contextlib import suppress
from pathlib import Path
import torch
from runtime import distributed

def step():
    distributed.averaging(torch.nn.Linear(2, 2))(torch.ones(1, 2)).sum().backward()

def threads():
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has just ended
            names.append(path.read_text())
    return [name for name in names if "gloo" in name]

with distributed.joined():
    step()
    assert threads()
assert not threads(), threads()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed in /proc")
def test_who_leaves_the_others_has_no_thread_of_theirs_which_might_abort_it_at_its_end() -> None:
    Path("leave.py").write_text(LEAVE)
    code, _, error = finish(start("leave.py"))
    assert code == 0, error


# What a process sees


@pytest.mark.parametrize("images", [8, 37])
def test_processes_share_the_batches_of_one(images: int) -> None:
    whole = list(training_order(images, 8, 0.5, 7, 3))
    parts = [list(training_order(images, 4, 0.5, 7, 3, 0, rank, 2)) for rank in (0, 1)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == images // 8
    for (ids, corners, flips), *shares in zip(whole, *parts, strict=True):
        assert ids == [i for share in shares for i in share[0]]
        for all_of, at in ((corners, 1), (flips, 2)):
            assert all_of.tolist() == [each for share in shares for each in share[at].tolist()]
    assert list(training_order(images, 4, 0.5, 7, 3, 1, 1, 2)).__len__() == images // 8 - 1  # from step 1 on


# The step


def steps(norm: str, count: int, *options: str) -> list[dict[str, Any]]:
    """Return what tests/steps.py makes alone and in two processes."""
    given = (norm, count, *options)
    subprocess.run([sys.executable, ROOT / "tests/steps.py", "one.pt", *map(str, given)], env=ENV, check=True)
    code, _, error = finish(start(ROOT / "tests/steps.py", "two.pt", *given))
    assert code == 0, error
    assert "Warning" not in error
    return [atomic.load(Path(name)) for name in ("one.pt", "two.pt")]


@pytest.mark.parametrize(
    "options", [(), pytest.param(("compiled",), marks=pytest.mark.soak)], ids=["eager", "compiled"]
)
def test_two_processes_take_the_steps_of_one(options: tuple[str, ...]) -> None:
    one, two = steps("none", 10, *options)
    for name in ("generator", "discriminator", "ema", "classifier"):
        for key, value in one[name].items():
            torch.testing.assert_close(value, two[name][key], rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.tensor(one["losses"]), torch.tensor(two["losses"]), rtol=0, atol=1e-4)


@pytest.mark.soak
def test_with_batchnorm_the_losses_of_two_processes_run_along_those_of_one() -> None:
    one, two = (torch.tensor(found["losses"]).view(10, 10, -1).mean(1) for found in steps("batch", 102))  # (10, terms)
    torch.testing.assert_close(one, two, rtol=0.02, atol=0.01)


# A run


def test_a_signal_stops_both_with_one_state_and_a_resume_is_exact(pictures: Path) -> None:
    """12 pictures, 3 steps an epoch of 2 x 2; dropout and degradations, which each process draws for itself."""
    given = ["--epochs", 2, "--set", "save_every=1", "--set", "dropout=0.5", "--set", "grain_p=0.5", "--set", "ema=0.9"]
    code, out, error = finish(train(pictures, *given))
    assert code == 0, error
    assert out.count("2, batches of 2 each") == 1
    assert [record["steps"] for record in read_records(LOG)] == list(range(1, 7))
    shutil.move("run", "whole")
    process = train(pictures, *given[2:], "--epochs", 10**6)
    until(lambda: len(read_records(LOG)) > 1, process)
    process.send_signal(signal.SIGTERM)
    code, out, error = finish(process)
    assert (code != 0, out.count("go on with: python train.py --resume --run run")) == (True, 1), error
    steps = atomic.load(state_path(Path("run")))["steps"]
    assert steps > 1
    code, _, error = finish(train(pictures, *given[2:], "--epochs", 2 + steps // 3, "--resume"))
    assert code == 0, error
    assert saved_epochs(Path("run"))[:2] == [1, 2]
    assert same_tensors(saved_weights(Path("whole"), 2), saved_weights(Path("run"), 2))
    assert log_of(Path("run"))[:6] == log_of(Path("whole"))


@pytest.mark.soak
def test_ctrl_c_which_a_terminal_sends_to_all_leaves_one_state(pictures: Path) -> None:
    process = train(pictures, "--epochs", 10**6)
    until(lambda: len(read_records(LOG)) > 1, process)
    os.killpg(process.pid, signal.SIGINT)
    code, out, error = finish(process)
    assert (code != 0, out.count("go on with: python train.py --resume --run run")) == (True, 1), error
    steps = atomic.load(state_path(Path("run")))["steps"]
    assert [record["steps"] for record in read_records(LOG)] == list(range(1, steps + 1))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_gpus_train_one_run_and_go_on(pictures: Path) -> None:
    on_gpu = ["--device", "cuda", "--set", "save_every=1"]
    for given, epoch in (([], 1), (["--resume"], 2)):
        code, out, error = finish(train(pictures, *on_gpu, "--epochs", epoch, *given))
        assert (code, out.count("2, batches of 2 each")) == (0, 1), error
    assert saved_epochs(Path("run")) == [1, 2]
    assert all(weight.isfinite().all() for weight in saved_weights(Path("run"), 2).values())


@pytest.mark.slow
def test_with_as_many_pictures_per_step_another_number_of_processes_goes_on(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [word for word in SMALL if word not in ("--batch-size", 2)]
    given = ["--data", pictures, "--run", "run", *small, "--epochs", 2]
    process = start(ROOT / "train.py", *given, "--global-batch", 4, "--set", "save_every=1")
    assert finish(process)[0] == 0
    state = atomic.load(state_path(Path("run")))
    assert (state["batch"], len(state["others"])) == (4, 1)
    atomic.save(state_path(Path("run")), {**state, "epoch": 2, "step": 1, "steps": 4})  # stopped amid an epoch
    call = ["--resume", "--run", "run", "--device", "cpu"]
    assert run_stage("train", *call) == 2
    told = (
        "stopped within epoch 2, at 4 pictures per step of all processes, now 2: finish the epoch with --global-batch"
    )
    assert told in capsys.readouterr().err
    assert run_stage("train", *call, "--global-batch", 4) == 0
    record = read_run(Path("run"))
    assert (record.recipe.batch_size, record.processes) == (4, 1)
    assert [record["steps"] for record in read_records(LOG)][-2:] == [5, 6]


@pytest.mark.soak
def test_two_train_on_shards_that_a_server_sends(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")
    monkeypatch.setattr("dataset.packing.MB", 8_000)  # bytes
    pack(open_tree(str(pictures), Path("cache"), []), Path("shards"), None, 1)
    asked: list[str] = []

    class Server(SimpleHTTPRequestHandler):
        def log_message(self, form: str, *words: Any) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory="shards")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shards = sorted(path.name for path in Path("shards").glob("train-*.tar"))
        assert len(shards) > 3
        pattern = f"http://127.0.0.1:{server.server_port}/train-{{00000..{len(shards) - 1:05d}}}.tar"
        code, out, error = finish(train(pattern, "--epochs", 2, "--set", "val_fraction=0.3"))
        server.shutdown()
    assert (code, out.count("2, batches of 2 each")) == (0, 1), error
    assert set(asked) >= {f"/{name}" for name in shards}
    steps = [record["steps"] for record in read_records(LOG)]
    assert steps == list(range(1, len(steps) + 1))
    assert saved_epochs(Path("run")) == [2]


@pytest.mark.slow
def test_a_classifier_is_trained_and_pictures_are_rendered_and_scored_by_two(pictures: Path, trained: Path) -> None:
    options = ["--size", 32, "--batch-size", 4, "--epochs", 1, "--device", "cpu"]
    data = ["--data", pictures, "--network", "shufflenet_v2_x0_5"]
    code, out, error = finish(start(ROOT / "train_classifier.py", *data, *options))
    assert (code, out.count("of 4 pictures")) == (0, 2), error
    shutil.copytree(trained, "one")
    shutil.copytree(trained, "two")
    given = ("--data", pictures / "train", "--all-epochs", "--device", "cpu")  # several batches
    assert run_stage("eval", "--run", "one", *given) == 0
    code, out, error = finish(start(ROOT / "test.py", "--run", "two", *given))
    assert (code, out.count("rendered")) == (0, 2), error
    code, out, error = finish(start(ROOT / "eval.py", "--run", "two", *given))
    assert (code, out.count("scores: ")) == (0, 1), error
    for name in ("scores.csv", "scores_per_image.csv"):
        assert Path("one", name).read_text() == Path("two", name).read_text()


# What goes wrong


PROGRAM = """
import os
from pathlib import Path
from config import UserError
from runtime import cli
def main() -> None:
    from runtime import distributed
    if distributed.rank() or {both}:
        Path("failed").touch()
        {body}
    distributed.wait()
cli.command(main, shared=True)
"""
UNEQUAL = "distributed.require_same({'lr': distributed.rank()})"


@pytest.mark.parametrize(
    ("both", "body", "said", "restarts"),
    [
        pytest.param(False, "raise ValueError('a bug')", "ValueError: a bug", 1, marks=pytest.mark.slow),
        pytest.param(
            False, "os.kill(os.getpid(), 9)", "another process of this run was killed", 0, marks=pytest.mark.slow
        ),
        pytest.param(True, "raise UserError('a mistake')", "x.py: a mistake", 0, marks=pytest.mark.soak),
        pytest.param(True, UNEQUAL, "process 1 has lr 1, process 0 has 0: start", 0, marks=pytest.mark.soak),
    ],
)
def test_the_first_that_fails_alone_says_why(both: bool, body: str, said: str, restarts: int) -> None:
    Path("x.py").write_text(PROGRAM.format(both=both, body=body))
    # until torchrun looks again the process that is left has the time to speak before it is ended too
    interval = 15 if "kill" in body else 5  # s; it looks at any time, and to notice a loss takes longer
    options = ("--standalone", "--monitor-interval", interval, "--max-restarts", restarts)
    code, _, error = finish(start("x.py", options=options))
    assert time.time() - Path("failed").stat().st_mtime < 30  # s from the failure to the end of all
    assert code != 0
    assert error.count(said) == 1 + restarts
    assert "gloo" not in error


@pytest.mark.parametrize(("machine", "process", "speaks"), [(0, 1, True), (0, 2, False), (1, 0, True), (1, 1, False)])
def test_where_process_0_is_gone_one_of_each_machine_says_so(
    machine: int, process: int, speaks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in of a store that ended with process 0."""

    class Gone:
        def add(self, *_: object) -> int:
            raise torch.distributed.DistNetworkError("connection reset")

    module = sys.modules["torch.distributed.rendezvous"]  # torch.distributed has a function of this name
    monkeypatch.setattr(module, "rendezvous", lambda *_, **__: iter([(Gone(), 0, 4)]))
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setenv("GROUP_RANK", str(machine))
    monkeypatch.setenv("LOCAL_RANK", str(process))
    with pytest.raises(UserError if speaks else SystemExit) as raised, distributed.joined():
        raise torch.distributed.DistNetworkError("connection closed")
    assert ("process 0 is gone" in str(raised.value)) == speaks


FAULTY = """
import os, runpy, sys
from training import gan
real, seen = gan.train_step, []
def step(*args, **more):
    seen.append(args)
    if os.environ["RANK"] == "1" and len(seen) == 4 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        {fault}
    return real(*args, **more)
gan.train_step = step
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_training_of_which_one_process_is_killed_goes_on_by_itself(pictures: Path) -> None:
    Path("x.py").write_text(FAULTY.format(fault="os.kill(os.getpid(), 9)"))
    given = ["--data", pictures, "--run-dir", "run", *SMALL, "--set", "save_every=1", "--epochs", 3, "--resume"]
    options = ("--standalone", "--max-restarts", 1)
    code, out, error = finish(start("x.py", ROOT / "train.py", *given, options=options))
    assert (code, out.count("goes on")) == (0, 1), error
    assert [record["steps"] for record in read_records(LOG)] == list(range(1, 10))


@pytest.mark.soak
def test_a_training_of_which_one_process_fails_ends_soon_and_goes_on(pictures: Path) -> None:
    Path("x.py").write_text(FAULTY.format(fault="raise ValueError('a fault of one process')"))
    given = ["--data", pictures, "--run-dir", "run", *SMALL, "--set", "save_every=1"]
    process = start("x.py", ROOT / "train.py", *given, "--epochs", 10**6)
    until(lambda: len(read_records(LOG)) > 2, process)
    code, _, error = finish(process, seconds=30)
    assert code != 0
    assert error.count("ValueError: a fault of one process") == 1, error
    epochs = max(saved_epochs(Path("run"))) + 1
    code, out, error = finish(start(ROOT / "train.py", *given, "--resume", "--epochs", epochs))
    assert code == 0, error
    assert "goes on" in out
    assert [record["steps"] for record in read_records(LOG)] == list(range(1, 3 * epochs + 1))


UNLIKE = """
import os, runpy, sys
sys.argv = sys.argv[1 : len(sys.argv) - int(os.environ["RANK"])]  # the second process lacks the last word
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_run_that_one_process_resumes_and_another_begins_is_left_alone(pictures: Path, trained: Path) -> None:
    shutil.copytree(trained, "run")
    Path("x.py").write_text(UNLIKE)
    before = times_of(Path("run"))
    given = ["--run-dir", "run", "--recipe", "coco", "--data", pictures, "--size", 32, "--batch-size", 4, "--epochs", 3]
    settings = [
        word for each in ("ngf=4", "ndf=4", "samples=2", "save_every=1", "log_every=1") for word in ("--set", each)
    ]
    code, _, error = finish(start("x.py", ROOT / "train.py", *given, *settings, "--device", "cpu", "--resume"))
    assert (code, error.count("process 1 has resume False, process 0 has True: start all with the same")) == (1, 1), (
        error
    )
    assert times_of(Path("run")) == before
    call = ("x.py", ROOT / "test.py", "--run-dir", "run", "--device", "cpu", "--all-epochs")
    code, _, error = finish(start(*call))
    assert (code, error.count("process 1 has epochs [2], process 0 has [1, 2]: start all")) == (1, 1), error
    assert error.count("exitcode  : 2") > 0
    assert not Path("run/outputs").exists()


@pytest.mark.soak
def test_a_mistake_is_one_sentence(pictures: Path) -> None:
    code, _, error = finish(start(ROOT / "train.py", "--data", pictures, *SMALL, "--batch-size", 8))
    assert (code, error.count("12 training pictures are too few for 2")) == (1, 1), error
    assert not Path("runs/coco/recipe.json").exists()


# Two machines


@pytest.mark.soak
def test_a_machine_that_is_lost_and_comes_back_costs_the_steps_since_the_last_state(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two agents on loopback; one is killed with its process, and started again."""
    monkeypatch.setitem(ENV, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # docs/scale.md says why
    options = ["--nnodes", 2, "--max-restarts", 3, "--rdzv-backend", "c10d", "--rdzv-endpoint"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        options.append(f"localhost:{free.getsockname()[1]}")
    call = ["--resume", "--epochs", 12, "--set", "save_every=1"]

    def join(is_host: int) -> subprocess.Popen[str]:
        return train(
            pictures, *call, processes=1, options=(*options, "--rdzv-conf", f"is_host={is_host},join_timeout=86400")
        )

    first, second = join(1), join(0)
    until(lambda: len(saved_epochs(Path("run"))) > 1, first)
    children = subprocess.run(["pgrep", "-P", str(second.pid)], capture_output=True, text=True, check=True).stdout
    for number in (second.pid, *map(int, children.split())):
        os.kill(number, signal.SIGKILL)
    second.communicate()
    begun = atomic.load(state_path(Path("run")))["epoch"]
    before = {epoch: written(epoch) for epoch in range(1, begun)}
    assert 1 < begun < 12
    third = join(0)
    for process in (first, third):
        code, _, error = finish(process)
        assert code == 0, error
    assert {epoch: written(epoch) for epoch in before} == before  # what was saved is not trained again
    assert saved_epochs(Path("run")) == list(range(1, 13))
    assert [record["steps"] for record in read_records(LOG)] == list(range(1, 37))
