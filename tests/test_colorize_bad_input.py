"""colorize.py among bad files, in bad places, with little memory: what can be done is, the rest is named."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import frame_of, gray, results, run_stage, save_picture, write_model
from image_samples import png_header
from numpy.typing import NDArray
from PIL import Image

from config import ROOT


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "generator.ts")


def command_line(*arguments: Any, before: tuple[str, ...] = (), **how: Any) -> Any:
    """Run colorize.py in a process of its own, behind other words of Python's command line."""
    command = [sys.executable, *before, ROOT / "colorize.py", *arguments, "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    how |= {"text": True, "capture_output": True, "env": environment, "timeout": 300}  # a pipe can block
    return subprocess.run(list(map(str, command)), **how)


def records(printed: str) -> dict[str, dict[str, Any]]:
    """Return the lines of JSON that stdout holds, by the names of files without their first folder."""
    return {line["file"].partition("/")[2]: line for line in map(json.loads, printed.splitlines())}


def cut(name: str, values: NDArray) -> None:
    """Write a picture, and take its second half away."""
    path = save_picture(name, values)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


GOOD = {  # name -> height, width
    "good.png": (40, 56), "album/good.tif": (40, 56), "album/deep.png": (33, 20), "one.jpg": (1, 1),
    "tall.png": (5000, 1), "wide.jpg": (2, 30_000), "two\nlines.png": (20, 20), "фото 写真 é.png": (20, 21),
}  # fmt: skip
TEXT = rb"no\bpicture" * 20
BAD: dict[str, tuple[Callable[[str], Any], str]] = {  # name -> how it is made, what is said
    "cut.jpg": (lambda name: cut(name, gray(0, 200, 200)), "truncated"),
    "cut.tif": (lambda name: cut(name, gray(0, 99, 99, np.uint16)), "damaged"),
    "empty.jpg": (lambda name: Path(name).write_bytes(b""), "not an image that can be read"),
    "text\nof two lines.png": (lambda name: Path(name).write_bytes(TEXT), "not an image that can be read"),
    "bomb.png": (lambda name: Path(name).write_bytes(png_header(100_000, 100_000)), "decompression bomb"),
    "nan.tif": (lambda name: save_picture(name, np.full((9, 9), np.nan, np.float32)), "NaN"),
    "complex.tif": (lambda name: save_picture(name, np.ones((9, 9), np.complex64)), "cannot be read"),
    "loop.png": (lambda name: Path(name).symlink_to("loop.png"), "Too many levels of symbolic links"),
    "nowhere.png": (lambda name: Path(name).symlink_to("missing.png"), "no such file"),
    "pipe.png": (os.mkfifo, "not an image that can be read"),
}
if sys.platform == "linux":
    BAD["unreadable.png"] = (lambda name: Path(name).symlink_to("/proc/self/mem"), "Input/output error")
    BAD["caf\udce9.png"] = (lambda name: Path(name).write_bytes(TEXT), "not an image")  # no Unicode
    GOOD["album/caf\udce9.png"] = (9, 9)


def test_of_a_folder_of_bad_files_each_is_answered_and_the_good_are_coloured(model: Path) -> None:
    for i, (name, shape) in enumerate(GOOD.items()):
        save_picture(f"scans/{name}", gray(i, *shape, dtype=np.uint16 if "deep" in name else np.uint8))
    os.chdir("scans")
    for name, (make, _) in BAD.items():
        make(name)
    os.chdir("..")
    Path("scans/album/parent").symlink_to("..")
    Path("scans/.hidden.png").write_bytes(TEXT)
    before = {path: path.lstat().st_mtime_ns for path in Path("scans").rglob("*")}
    done = command_line("scans", "--model", model, "--jobs", 2)
    assert before == {path: path.lstat().st_mtime_ns for path in Path("scans").rglob("*")}
    assert done.returncode == 1
    lines = records(done.stdout)
    assert list(lines) == sorted([*GOOD, *BAD])
    header, summary, *failed, link = done.stderr.splitlines()
    assert header.startswith(f"model {model}: recipe coco, ")
    assert link == "left out: scans/album/parent, as it is scans, which is searched already"
    assert summary.startswith(f"{len(lines)} files: {len(GOOD)} done, {len(BAD)} failed; ")
    for name, line in lines.items():
        assert (line["status"], line["output"]) == ("done" if name in GOOD else "failed", f"out/{name}")
        if name in BAD:
            shown = " ".join(f"scans/{name}".split())
            assert line["reason"].startswith(f"{shown}: ")
            assert BAD[name][1] in line["reason"]
            assert len(line["reason"]) < len(shown) + 200
    assert len(failed) == len(BAD)  # a line each, and no traceback
    assert all(line.startswith("not done: scans/") for line in failed)
    assert results() == sorted(Path(name).name for name in GOOD)
    for name, shape in GOOD.items():
        frame, given = frame_of(f"out/{name}"), frame_of(f"scans/{name}").pixels
        assert (frame.pixels.shape, frame.pixels.dtype) == ((*shape, 3), given.dtype), name
        assert np.abs(frame.pixels.mean(2) - given.mean(2)).mean() < 0.1 * np.iinfo(given.dtype).max


def test_a_name_as_long_as_names_can_be(model: Path) -> None:
    name = f"{'n' * (os.pathconf('.', 'PC_NAME_MAX') - 4)}.png"
    save_picture(name, gray(0))
    assert run_stage("colorize", name, "--model", model) == 0
    assert frame_of(f"out/{name}").pixels.shape == (40, 56, 3)


@pytest.mark.slow
def test_a_limit_of_file_size_in_place_of_a_full_disk(model: Path) -> None:
    large, small = (
        ("b.png", "d.jpg", "f.tif", "h.webp", "j.gif"),
        ("a.png", "c.jpg", "e.tif", "g.webp", "i.gif"),
    )
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (500, 500), np.uint8)
    for name in (*large, *small):
        save_picture(f"p/{name}", noise if name in large else gray(0))
    first, *rest = (Image.fromarray(np.roll(noise, i, 0)[:200, :200]) for i in range(5))
    first.save("p/l_film.png", save_all=True, append_images=rest, duration=50)
    colours = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(50, 0).repeat(50, 1)
    save_picture("p/m_kept.png", colours ^ (noise[:400, :400, None] & 7))
    limits = (resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    options = {"preexec_fn": lambda: resource.setrlimit(*limits)}
    done = command_line("p", "--model", model, "--jobs", 2, "--keep-coloured", **options)
    assert done.returncode == 1, done.stderr
    lines, failed = records(done.stdout), {*large, "l_film.png", "m_kept.png"}
    assert {name for name, line in lines.items() if line["status"] == "failed"} == failed
    for name in failed:
        assert name in lines[name]["reason"]
        assert "File too large" in lines[name]["reason"]
    assert results() == sorted(small)
    assert all(frame_of(f"out/{name}").pixels.shape == (40, 56, 3) for name in small)
    assert len(done.stderr.splitlines()) == 2 + len(failed)  # header, summary


MEASURED = """
import atexit, runpy, sys
status = open("/proc/self/status")
atexit.register(lambda: print("peak", status.read().split("VmHWM:")[1].split()[0], file=sys.stderr))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_memory_does_not_grow_with_the_number_of_pictures(model: Path) -> None:
    def peak(count: int) -> int:
        """Return the most bytes that the command line held while it coloured copies of two pictures."""
        for i in range(count):
            Path(f"p{count}").mkdir(exist_ok=True)
            os.link(f"{i % 2}.jpg", f"p{count}/{i:02d}.jpg")
        arguments = (f"p{count}", "--model", model, "--jobs", 1, "--out", f"out{count}")
        done = command_line(*arguments, before=("-c", MEASURED))
        assert [line["status"] for line in records(done.stdout).values()] == ["done"] * count
        return 1024 * int(done.stderr.split("peak")[1])

    for i in range(2):  # of two shapes, one after the other: no batches, which few pictures would not fill
        save_picture(f"{i}.jpg", gray(0, 700 + i, 900), quality=80)
    few, many = peak(20), peak(80)  # few enough to end soon, enough to fill the queues
    assert many - few < 30 * 3 * 700 * 900, (few, many)  # half the bytes of 60 results
