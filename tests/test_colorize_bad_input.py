"""colorize.py among bad files, in bad places, with bad models: what can be done is, the rest is named."""

import os
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from helpers import frame_of, frames_of, gray, write_model
from helpers import save_picture as save
from numpy.typing import NDArray
from PIL import Image
from test_colorize import call, command_line, records

from config import ROOT
from inference.checkpoint import EXPORT_FORMAT

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
no_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")

MEASURED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    with open("/proc/self/status") as file:
        print("peak", file.read().split("VmHWM:")[1].split()[0], file=sys.stderr)
"""
LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "generator.ts")


def png_header(width: int, height: int) -> bytes:
    """Return a whole PNG whose header promises more pixels than it has."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(b"\0\0")
    chunks = (header, pixels, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def cut(name: str, values: NDArray, share: float = 0.5, **options: Any) -> None:
    """Write a picture, and take its end away."""
    path = save(name, values, **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


GOOD = {  # name -> height, width
    "good.png": (40, 56),
    "good.jpg": (56, 40),
    "album/good.tif": (40, 56),
    "album/deep.png": (33, 20),
    "one.png": (1, 1),
    "one.jpg": (1, 1),
    "tall.png": (5000, 1),
    "wide.png": (2, 30_000),
    "wide.jpg": (2, 30_000),
    "two\nlines.png": (20, 20),
    "фото 写真 é.png": (20, 21),
}
TEXT = rb"no\bpicture" * 20
BAD: dict[str, tuple[Callable[[str], Any], str]] = {  # name -> how it is made, what is said
    "cut.jpg": (lambda name: cut(name, gray(0, 200, 200)), "truncated"),
    "cut.png": (
        lambda name: cut(name, np.random.default_rng(0).integers(0, 255, (99, 99), np.uint8)),
        "damaged",
    ),
    "cut.tif": (lambda name: cut(name, gray(0, 99, 99, np.uint16)), "damaged"),
    "empty.jpg": (lambda name: Path(name).write_bytes(b""), "not an image that can be read"),
    "text.jpg": (lambda name: Path(name).write_bytes(TEXT), "not an image that can be read"),
    "text\nof two lines.png": (lambda name: Path(name).write_bytes(TEXT), "not an image that can be read"),
    "bomb.png": (lambda name: Path(name).write_bytes(png_header(100_000, 100_000)), "a decompression bomb"),
    "no_pixels.png": (
        lambda name: Path(name).write_bytes(png_header(0, 9)),
        "damaged|not an image|no pixels",
    ),
    "nan.tif": (lambda name: save(name, np.full((9, 9), np.nan, np.float32)), "NaN"),
    "complex.tif": (lambda name: save(name, np.ones((9, 9), np.complex64)), "cannot be read"),
    "bands.tif": (
        lambda name: tifffile.imwrite(
            name, np.ones((9, 9, 5), np.uint16), photometric="minisblack", planarconfig="contig"
        ),
        "cannot be read",
    ),
    "loop.png": (lambda name: Path(name).symlink_to("loop.png"), "Too many levels of symbolic links"),
    "nowhere.png": (lambda name: Path(name).symlink_to("missing.png"), "no such file"),
    "pipe.png": (os.mkfifo, "not an image that can be read"),
}
if sys.platform == "linux":
    BAD["unreadable.png"] = (lambda name: Path(name).symlink_to("/proc/self/mem"), "Input/output error")
if os.geteuid() != 0:
    BAD["forbidden.png"] = (lambda name: save(name, gray(0)).chmod(0), "Permission denied")


def make_corpus(folder: Path) -> None:
    """Fill a folder with good pictures and bad files."""
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        for i, (name, shape) in enumerate(GOOD.items()):
            save(name, gray(i, *shape, dtype=np.uint16 if "deep" in name else np.uint8))
        for name, (make, _) in BAD.items():
            make(name)
        Path("album/parent").symlink_to("..")
        Path(".hidden.png").write_bytes(TEXT)
        Path("notes.txt").write_bytes(TEXT)
    finally:
        os.chdir(before)


def content(folder: Path) -> dict[str, Any]:
    """Return what a folder holds, without following links."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)
        else path.lstat().st_mtime_ns
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with scans/, good and bad."""
    root = tmp_path_factory.mktemp("corpus")
    make_corpus(root / "scans")
    return root


@pytest.fixture(scope="module")
def answer(corpus: Path, model: Path) -> subprocess.CompletedProcess[str]:
    """Return what the command line makes of all of it."""
    before = content(corpus / "scans")
    done = command_line("scans", "--model", model, "--jobs", 2, cwd=corpus, timeout=120)
    assert content(corpus / "scans") == before
    return done


def test_every_file_of_a_bad_folder_is_answered(answer: subprocess.CompletedProcess[str]) -> None:
    assert answer.returncode == 1
    lines = records(answer.stdout)
    assert [line["file"] for line in lines] == [
        f"scans/{name}" for name in sorted([*GOOD, *BAD], key=lambda name: f"scans/{name}")
    ]
    for line in lines:
        name = line["file"].removeprefix("scans/")
        assert line["output"] == f"out/{name}"
        assert line["status"] == ("done" if name in GOOD else "failed"), line
        assert line["seconds"] >= 0


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_its_reason(name: str, answer: subprocess.CompletedProcess[str]) -> None:
    (line,) = (line for line in records(answer.stdout) if line["file"] == f"scans/{name}")
    shown = " ".join(f"scans/{name}".split())
    assert line["reason"].startswith(f"{shown}: ")
    assert any(cause in line["reason"] for cause in BAD[name][1].split("|")), line["reason"]
    assert len(line["reason"]) < len(shown) + 200
    assert answer.stderr.splitlines().count(f"not done: {line['reason']}") == 1


def test_stderr_is_a_summary_and_a_line_per_bad_file(answer: subprocess.CompletedProcess[str]) -> None:
    summary, *failed = answer.stderr.splitlines()
    total = len(GOOD) + len(BAD)
    assert summary.startswith(f"{total} files: {len(GOOD)} done, {len(BAD)} failed; ")
    assert len(failed) == len(BAD)
    assert all(line.startswith("not done: scans/") for line in failed)


def test_good_and_tiny_files_are_coloured(answer: subprocess.CompletedProcess[str], corpus: Path) -> None:
    for name, shape in GOOD.items():
        frame = frame_of(corpus / "out" / name)
        assert frame.pixels.shape == (*shape, 3), name
        assert frame.pixels.dtype == (np.uint16 if "deep" in name else np.uint8)
        given = frame_of(corpus / "scans" / name).pixels
        assert np.abs(frame.pixels.mean(2) - given.mean(2)).mean() < 0.1 * np.iinfo(given.dtype).max


def test_nothing_but_results_is_left(answer: subprocess.CompletedProcess[str], corpus: Path) -> None:
    left = {str(path.relative_to(corpus / "out")) for path in (corpus / "out").rglob("*")}
    assert left == {*GOOD, "album"}
    assert sorted(path.name for path in corpus.iterdir()) == ["out", "scans"]


@linux
def test_a_name_that_is_no_unicode(model: Path) -> None:
    Path("p").mkdir()
    for name in (b"p/caf\xe9.png", b"p/caf\xe9s.png"):
        Image.fromarray(gray(0)).save(os.fsdecode(name))
    Path(os.fsdecode(b"p/caf\xe9s.png")).write_bytes(TEXT)
    done = command_line("p", "--model", model)
    assert done.returncode == 1
    good, bad = records(done.stdout)
    assert os.fsencode(good["output"]) == b"out/caf\xe9.png"
    assert os.path.exists(b"out/caf\xe9.png")
    assert os.fsencode(bad["file"]) == b"p/caf\xe9s.png"
    assert len(done.stderr.splitlines()) == 2


def test_a_name_as_long_as_names_can_be(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{'n' * (os.pathconf('.', 'PC_NAME_MAX') - 4)}.png"
    save(name, gray(0))
    assert call(name, "--model", model, monkeypatch=monkeypatch) == 0
    assert frame_of(f"out/{name}").pixels.shape == (40, 56, 3)


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.png", "x.tif"])
def test_a_film_that_breaks_off_leaves_nothing(
    name: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, 60, 60), np.uint8)
    first, *rest = map(Image.fromarray, noise)
    first.save(name, save_all=True, append_images=rest, duration=50, lossless=True)
    assert len(frames_of(name)) == 4
    Path(name).write_bytes(Path(name).read_bytes()[: Path(name).stat().st_size * 3 // 4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(name, "--model", model, "--compare", monkeypatch=monkeypatch) == 1
    said = capsys.readouterr()
    (line,) = records(said.out)
    assert line["reason"].startswith(f"{name}: ")
    assert len(said.err.splitlines()) == 2
    assert list(Path("out").iterdir()) == []


# the place


def assert_refused(
    place: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """See that a call whose results cannot be written ends before it begins."""
    save("x.png", gray(0))
    assert call("x.png", "--model", model, "--out", place, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"colorize.py: {place} cannot be written to (")
    assert said.err.endswith("); name another --out\n")
    assert said.err.count("\n") == 1


@linux
@pytest.mark.parametrize("place", ["/proc", "/proc/out", "/sys/out"])
def test_a_place_for_nobodys_files(
    place: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(place, model, monkeypatch, capsys)


@no_root
@pytest.mark.parametrize("place", ["out", "out/deeper"])
def test_a_folder_that_may_not_be_written_to(
    place: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir(mode=0o555)
    assert_refused(place, model, monkeypatch, capsys)


def mounted(options: str, *arguments: Any, after: str = "") -> subprocess.CompletedProcess[str]:
    """Go through the command line with a file system of its own on out/, which nobody else sees."""
    Path("out").mkdir()
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o {options} tmpfs out"
    if not shutil.which("unshare") or subprocess.run([*alone, mount], capture_output=True).returncode:
        pytest.skip("needs unshare and the right to mount")
    program = [sys.executable, str(ROOT / "colorize.py"), *map(str, arguments)]
    script = f'{mount} && "$@"; code=$?; {after or ":"}; exit $code'
    return subprocess.run([*alone, script, "sh", *program], capture_output=True, text=True, timeout=60)


def test_a_read_only_file_system(model: Path) -> None:
    save("x.png", gray(0))
    done = mounted("ro", "x.png", "--model", model)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "colorize.py: out cannot be written to (Read-only file system); name another --out\n"
    )


LARGE = ("b.png", "d.jpg", "f.tif", "h.webp", "j.gif")
SMALL = ("a.png", "c.jpg", "e.tif", "g.webp", "i.gif", "k.png")


def save_large_and_small() -> None:
    """Make pictures in p/ of which the results have more, or less, than 100 kB."""
    noise = np.random.default_rng(0).integers(0, 256, (500, 500), np.uint8)
    for name in LARGE:
        Image.fromarray(noise).save(f"p/{name}")
    for name in SMALL:
        save(f"p/{name}", gray(0)) if name[2:] == "tif" else Image.fromarray(gray(0)).save(f"p/{name}")
    first, *rest = (Image.fromarray(np.roll(noise, i, 0)[:200, :200]) for i in range(5))
    first.save("p/l_film.png", save_all=True, append_images=rest, duration=50)
    colours = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    Image.fromarray(
        np.kron(colours[:8, :8], np.ones((50, 50, 1), np.uint8)) ^ (noise[:400, :400, None] & 7)
    ).save("p/m_kept.png")


def assert_small_ones_are_done(done: subprocess.CompletedProcess[str], out: Path, reason: str) -> None:
    """See that what did not fit is named, and that what fitted is whole."""
    assert done.returncode == 1, done.stderr
    statuses = {Path(line["file"]).name: line["status"] for line in records(done.stdout)}
    failed = {*LARGE, "l_film.png", "m_kept.png"}
    assert statuses == {name: "failed" if name in failed else "done" for name in statuses}
    assert statuses.keys() == {*SMALL, *failed}
    for line in records(done.stdout):
        if line["status"] == "failed":
            assert reason in line["reason"]
            assert Path(line["file"]).name in line["reason"]
    assert sorted(path.name for path in out.iterdir()) == sorted(SMALL)
    for name in SMALL:
        assert frame_of(out / name).pixels.shape == (40, 56, 3)
    named = done.stderr.splitlines()[1:]
    assert len(named) == len(failed)
    assert all(any(name in line for line in named) for name in failed)


def test_a_full_disk(model: Path) -> None:
    Path("p").mkdir()
    save_large_and_small()
    arguments = ["p", "--model", model, "--jobs", 1, "--keep-coloured"]
    done = mounted("size=160k", *arguments, after="cp -R out kept")
    assert_small_ones_are_done(done, Path("kept"), "No space left on device")


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_limit_of_file_size_in_place_of_a_full_disk(model: Path) -> None:
    Path("p").mkdir()
    save_large_and_small()
    arguments = ["p", "--model", str(model), "--jobs", "2", "--keep-coloured"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "100000", str(ROOT / "colorize.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert_small_ones_are_done(done, Path("out"), "File too large")


# the model


def save_module(path: Path, files: dict[str, str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Identity()).save(path, _extra_files=files)


def damage(path: Path) -> None:
    """Overwrite a file's middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)


MODELS: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "another": (
        lambda path, _: save_module(path, {}),
        "is a TorchScript file, but not one written by export.py",
    ),
    "nonsense": (lambda path, _: save_module(path, {"tinct.json": "{"}), "not one written by export.py"),
    "text": (lambda path, _: path.write_text("no model"), "is not a TorchScript file, or it is damaged"),
    "empty": (lambda path, _: path.write_bytes(b""), "is not a TorchScript file, or it is damaged"),
    "short": (lambda path, good: path.write_bytes(good.read_bytes()[:9000]), "or it is damaged"),
    "damaged": (lambda path, good: damage(shutil.copyfile(good, path)), "or it is damaged"),
    "weights": (lambda path, _: torch.save({"a": torch.zeros(1)}, path), "is not a TorchScript file"),
    "older": (
        lambda path, _: save_module(path, {"tinct.json": '{"version": "0.3", "recipe": {"input": "L"}}'}),
        "is of an older version of this project; export it again with this one",
    ),
    "newer": (
        lambda path, _: write_model(path, format=EXPORT_FORMAT + 1, version="9.1"),
        "is of the newer version 9.1 of this project; export it again with this one",
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_is_none_of_ours_is_named(
    kind: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save("x.png", gray(0))
    make, sentence = MODELS[kind]
    make(Path("other.ts"), model)
    assert call("x.png", "--model", "other.ts", monkeypatch=monkeypatch) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("colorize.py: other.ts ")
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert not Path("out").exists()


# memory


def peak(count: int, model: Path) -> int:
    """Return the most bytes that the command line held while it coloured copies of two pictures."""
    for i in range(count):
        Path(f"p{count}").mkdir(exist_ok=True)
        os.link(f"{i % 2}.jpg", f"p{count}/{i:02d}.jpg")
    command = [str(ROOT / "colorize.py"), f"p{count}", "--model", str(model), "--jobs", "1"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command, "--out", f"out{count}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line["status"] for line in records(done.stdout)] == ["done"] * count
    return 1024 * int(done.stderr.split("peak")[1])


@linux
def test_memory_does_not_grow_with_the_number_of_pictures(model: Path) -> None:
    for i in range(2):  # of two shapes, one after the other: no batches, which few pictures would not fill
        save(f"{i}.jpg", gray(0, 700 + i, 900), quality=80)
    assert peak(60, model) - peak(6, model) < 16 * 3 * 700 * 900  # bytes; 54 results would be 100 MB
