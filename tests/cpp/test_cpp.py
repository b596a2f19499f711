"""cpp/: the program reads, colours and refuses as Python does; the README's snippets run."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

import export
from config import ROOT
from dataset import scenes
from imaging.files import read_image
from inference import checkpoint

CPP = ROOT / "cpp"
SNIPPETS = dict(re.findall(r"```(python|cpp|cmake)\n(.*?)```", (CPP / "README.md").read_text(), re.S))
KNOWN = '{"format": 1}'


class Echo(nn.Module):
    """Give the image back, so that pixels can be held against those of Python's reader."""

    def forward(self, image: Tensor) -> Tensor:
        if image.size(2) == 7:
            raise ValueError("seven rows are one too many")
        return image.expand(-1, 3, -1, -1)


def draw(height: int = 60, width: int = 91) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(scenes.draw(3, 512)[0][:height, :width]))


def with_alpha(picture: Image.Image) -> Image.Image:
    """Return a picture with every degree of transparency."""
    width, height = picture.size
    alpha = np.linspace(0, 255, height * width).reshape(height, width).round().astype(np.uint8)
    picture.putalpha(Image.fromarray(alpha))
    return picture


def turned(orientation: int, endian: str = "<") -> dict[str, Any]:
    """Return how to save a picture with an EXIF orientation, behind another entry."""
    exif = Image.Exif()
    exif[0x010E] = "a picture"
    exif[0x0112] = orientation
    exif.endian = endian
    return {"exif": exif.tobytes()}


def gamma(value: float) -> dict[str, Any]:
    info = PngInfo()
    info.add(b"gAMA", struct.pack(">I", round(value * 100_000)))
    return {"pnginfo": info}


PICTURES: dict[str, Callable[[], tuple[Image.Image, dict[str, Any]]]] = {  # and how they are saved
    "rgb.png": lambda: (draw(), {}),
    "gray.png": lambda: (draw().convert("L"), {}),
    "one bit.png": lambda: (draw().convert("1"), {}),
    "palette.png": lambda: (draw().quantize(13), {}),
    "palette, one clear.png": lambda: (draw().quantize(13), {"transparency": 5}),
    "alpha.png": lambda: (with_alpha(draw()), {}),
    "gray, alpha.png": lambda: (with_alpha(draw().convert("L")), {}),
    "one clear colour.png": lambda: (draw(), {"transparency": draw().getpixel((0, 0))}),
    "gamma.png": lambda: (draw(), gamma(1.0)),
    "turned.png": lambda: (draw(), turned(6)),
    "rgb.of.jpg": lambda: (draw(), {"quality": 90}),
    "progressive.JPEG": lambda: (draw(), {"format": "JPEG", "progressive": True, "subsampling": 0}),
    "gray.of.jpg": lambda: (draw().convert("L"), {}),
    "wrong name.png": lambda: (draw(), {"format": "JPEG"}),
    "1x1.png": lambda: (draw(1, 1), {}),
    "1x1.of.jpg": lambda: (draw(1, 1), {}),
    "37x501.png": lambda: (draw(37, 501), {}),
    "501x37.of.jpg": lambda: (draw(501, 37), {}),
    **{f"turned {i}{e}.jpg": lambda i=i, e=e: (draw(), turned(i, e)) for i in range(10) for e in "<>"},
}


def write_deep(path: Path, array: NDArray[np.uint16]) -> Path:
    """Write (H, W, 1..4) as a PNG of 16 bits, which Pillow does for gray alone."""
    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def read_deep(path: Path) -> NDArray[np.int64]:
    """Read a PNG of 16 bits that the program wrote, (H, W, 3): each row holds the difference to the last."""
    content = path.read_bytes()
    width, height, *kind = struct.unpack(">IIBBBBB", content[16:29])
    assert kind == [16, 2, 0, 0, 0]
    place, data = 33, b""
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        if content[place + 4 : place + 8] == b"IDAT":
            data += content[place + 8 : place + 8 + length]
        place += 12 + length
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + 6 * width)
    assert (rows[:, 0] == 2).all()
    return rows[:, 1:].cumsum(0, np.uint8).view(">u2").reshape(height, width, 3).astype(np.int64)


def read(path: Path) -> NDArray[np.int64]:
    """Read a PNG of 8 bits as it is, (H, W, 3)."""
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image).astype(np.int64)


def missing() -> str | None:
    """Return what a build lacks here, and what brings it."""
    compiler = next(filter(shutil.which, [os.environ.get("CXX", "c++"), "g++", "clang++"]), None)
    if not compiler or not shutil.which("cmake") or not (shutil.which("make") or shutil.which("ninja")):
        return "no cmake, make or C++ compiler: apt-get install cmake make g++"
    for header, package in (("png.h", "libpng-dev"), ("jpeglib.h", "libjpeg-dev")):
        source, command = f"#include <cstdio>\n#include <{header}>\n", [compiler, "-E", "-x", "c++", "-"]
        if subprocess.run(command, input=source.encode(), capture_output=True, check=False).returncode:
            return f"no {header}: apt-get install {package}"
    return None


def call(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program with one thread: on a busy machine threads wait for each other."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"cwd": cwd, "env": environment, "capture_output": True, "text": True, "timeout": 600}
    return subprocess.run(list(map(str, words)), check=False, **options)


def save(path: Path, network: nn.Module, metadata: str | None) -> Path:
    """Write TorchScript as export.py does, or without its metadata."""
    files = {} if metadata is None else {"tinct.json": metadata}
    torch.jit.script(network).save(path, _extra_files=files)
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of two programs: the README's own, and in `program` colorize."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "CMakeLists.txt").write_text(SNIPPETS["cmake"].replace("/path/to/tinct/cpp", str(CPP)))
    (folder / "main.cpp").write_text(SNIPPETS["cpp"])
    with ThreadPoolExecutor() as pool:
        list(pool.map(build, (folder, CPP), (folder / "build", folder / "build" / "program")))
    return folder / "build"


def build(source: Path, folder: Path) -> None:
    """Build a project as the README says."""
    for step in (["-S", source, "-B", folder, f"-DPYTHON={sys.executable}"], ["--build", folder]):
        done = call("cmake", *step)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout + done.stderr


@pytest.fixture(scope="session")
def program(built: Path) -> Path:
    """Return colorize."""
    return built / "program" / "colorize"


@pytest.fixture(scope="session")
def model(built: Path, trained: Path) -> Path:
    """Return an exported generator."""
    return export.main(run=trained, out=built / "model.ts", device="cpu")


@pytest.fixture(scope="session")
def echo(built: Path) -> Path:
    """Return a network that gives its images back."""
    return save(built / "echo.ts", Echo(), KNOWN)


@pytest.fixture(scope="session")
def gallery(program: Path, model: Path, echo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of all PICTURES, in `inputs`, and what the program makes of them with both networks."""
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "inputs").mkdir()
    for name, make in PICTURES.items():
        image, options = make()
        image.save(folder / "inputs" / name, **options)
    for network in (model, echo):
        files = [folder / "inputs" / name for name in PICTURES]
        done = call(program, "--model", network, "--out", folder / network.stem, "--threads", "1", *files)
        assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.mark.parametrize("name", PICTURES)
def test_reads_a_file_as_python_does(gallery: Path, name: str) -> None:
    given, found = gallery / "inputs" / name, gallery / "echo" / f"{Path(name).stem}.png"
    jpeg = given.read_bytes().startswith(b"\xff\xd8")  # two versions of libjpeg may round differently
    np.testing.assert_allclose(read(found), read_image(given).astype(int), rtol=0, atol=int(jpeg))


@pytest.mark.parametrize("name", PICTURES)
def test_colours_a_file_as_python_does(gallery: Path, model: Path, name: str) -> None:
    network, _ = checkpoint.load_exported(model, torch.device("cpu"))
    image = torch.from_numpy(read_image(gallery / "inputs" / name)).permute(2, 0, 1)[None]
    expected = checkpoint.infer(network, image)[0].permute(1, 2, 0).numpy().astype(int)
    found = read(gallery / "model" / f"{Path(name).stem}.png")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1)
    assert name != "gray.png" or np.ptp(found, axis=2).max() > 0  # there is colour


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_stay_16_bits(program: Path, echo: Path, channels: int) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (5, 300, channels)).astype(np.uint16)
    array[0, :, -1], array[1, :, -1] = 0, 65535  # alpha, if it is
    write_deep(Path("deep.png"), array)
    assert call(program, "--model", echo, "deep.png").returncode == 0
    colours = array.astype(np.int64)
    if channels in (2, 4):
        alpha, colours = colours[..., -1:], colours[..., :-1]
        colours = (colours * alpha + 65535 * (65535 - alpha) + 32767) // 65535
    np.testing.assert_array_equal(read_deep(Path("out/deep.png")), np.broadcast_to(colours, (5, 300, 3)))


def test_16_bits_are_coloured_as_16_bits(program: Path, model: Path) -> None:
    array = np.linspace(0, 65535, 40 * 50).reshape(40, 50, 1).astype(np.uint16)
    write_deep(Path("deep.png"), array)
    assert call(program, "--model", model, "deep.png").returncode == 0
    network, _ = checkpoint.load_exported(model, torch.device("cpu"))
    expected = checkpoint.infer(network, torch.from_numpy(array).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    np.testing.assert_allclose(read_deep(Path("out/deep.png")), expected.numpy().astype(int), rtol=0, atol=1)


def test_says_what_it_does(program: Path, model: Path) -> None:
    draw(40, 30).save("one.png")
    draw(20, 50).save("two.jpg")
    done = call(program, "--model", model, "--out", "a/b", "one.png", "two.jpg")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    _, record = checkpoint.load_exported(model, torch.device("cpu"))
    assert json.loads(lines[0].removeprefix("model: ")) == json.loads(record.to_json())
    assert re.fullmatch(r"one\.png -> a/b/one\.png 30x40 \d+\.\d{3} s", lines[1])
    assert re.fullmatch(r"two\.jpg -> a/b/two\.png 50x20 \d+\.\d{3} s", lines[2])
    assert re.fullmatch(r"coloured 2 of 2 images in \d+\.\d{3} s", lines[3])
    assert sorted(os.listdir("a/b")) == ["one.png", "two.png"]


def cut(path: Path, share: float) -> None:
    """Write the first part of a picture's file."""
    draw(200, 300).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * share)])


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing.png": (lambda path: None, "No such file or directory"),
    "folder.png": (Path.mkdir, "not a file"),
    "pipe.png": (os.mkfifo, "not a file"),
    "empty.jpg": (Path.touch, "neither PNG nor JPEG"),
    "text.png": (lambda path: path.write_text("hello, this is text"), "neither PNG nor JPEG"),
    "half.png": (lambda path: cut(path, 0.5), "damaged image (Read Error)"),
    "half a jpeg.jpg": (lambda path: cut(path, 0.5), "damaged image (Corrupt JPEG data: premature end"),
    "header.jpg": (lambda path: cut(path, 0.01), "damaged image ("),
    "cmyk.jpg": (lambda path: draw().convert("CMYK").save(path), "a CMYK JPEG; convert it to RGB first"),
    "seven rows.png": (lambda path: draw(7, 9).save(path), "seven rows are one too many"),
}


def test_bad_files_are_named_and_the_others_are_done(program: Path, echo: Path) -> None:
    draw().save("first.png")
    draw().save("last.jpg")
    for name, (write, _) in BAD.items():
        write(Path(name))
    done = call(program, "--model", echo, "first.png", *BAD, "last.jpg")
    assert done.returncode == 1
    for line, (name, (_, reason)) in zip(done.stderr.splitlines(), BAD.items(), strict=True):
        assert line.startswith(f"not done: {name}: {reason}")
    assert sorted(os.listdir("out")) == ["first.png", "last.png"]
    assert f"coloured 2 of {len(BAD) + 2} images in " in done.stdout


def test_a_picture_that_is_too_large_is_refused_undecoded(program: Path, echo: Path) -> None:
    header = struct.pack(">IIBBBBB", 25_000, 20_001, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    Path("bomb.png").write_bytes(content + struct.pack(">I", 0) + b"IDAT")
    done = call(program, "--model", echo, "bomb.png")
    assert (done.returncode, done.stderr) == (1, "not done: bomb.png: more than 500 million pixels\n")


def test_a_write_that_fails_leaves_what_was_there(program: Path, echo: Path) -> None:
    draw(300, 300).save("large.png")
    assert call(program, "--model", echo, "large.png").returncode == 0
    before = Path("out/large.png").read_bytes()
    small_files_only = "ulimit -f 8; trap '' XFSZ; exec \"$@\""
    done = call("sh", "-c", small_files_only, "sh", program, "--model", echo, "large.png")
    assert (done.returncode, done.stderr) == (1, "not done: large.png: cannot be written (Write Error)\n")
    assert os.listdir("out") == ["large.png"]
    assert Path("out/large.png").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("one.png", "no model given; add --model"),
        ("--model echo.ts", "no files given; name PNG or JPEG files"),
        ("--model echo.ts --size 9 one.png", "no option --size; see colorize --help"),
        ("--model echo.ts one.png --out", "--out needs a value; see colorize --help"),
        ("--model nothing.ts one.png", "no model nothing.ts; write one with: python export.py"),
        ("--model one.png one.png", "one.png is not a TorchScript file, or it is damaged"),
        ("--model bare.ts one.png", "bare.ts is a TorchScript file, but not one written by export.py"),
        ("--model old.ts one.png", "old.ts is of an older version of Tinct; export it again with this one"),
        ("--model new.ts one.png", "new.ts is of a newer version of Tinct, format 2, and this program knows"),
        ("--model echo.ts --device tpu one.png", "no device tpu: use cpu or cuda"),
        ("--model echo.ts --threads 0 one.png", "--threads is a number from 1, got 0"),
        ("--model echo.ts --threads 2x one.png", "--threads is a number from 1, got 2x"),
        ("--model echo.ts --out one.png/a one.png", "folder one.png/a cannot be made: Not a directory"),
        (
            "--model echo.ts one.png a/one.jpg",
            "one.png and a/one.jpg would both become out/one.png; colourise them with two --out",
        ),
        ("--model echo.ts -one.png", "no option -one.png; see colorize --help"),
        ("--model echo.ts --out a/.. one.png", "a/../one.png, the result of one.png, would overwrite an"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_work(
    program: Path, echo: Path, words: str, sentence: str
) -> None:
    Path("a").mkdir()
    draw().save("one.png")
    Path("echo.ts").symlink_to(echo)
    save(Path("bare.ts"), Echo(), None)
    save(Path("old.ts"), Echo(), '{"epoch": 2, "note": "\\"format\\": 1"}')
    save(Path("new.ts"), Echo(), '{"epoch": 1, "format": 2}')
    before = Path("one.png").read_bytes()
    done = call(program, *words.split())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"colorize: {sentence}")
    assert not Path("out").exists()
    assert Path("one.png").read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(program: Path, echo: Path) -> None:
    done = call(program, "--model", echo, "--device", "cuda", "one.png")
    assert done.returncode == 2
    assert "cuda asked for, but torch sees no CUDA device; use --device cpu" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives(gallery: Path, program: Path, model: Path) -> None:
    files = [gallery / "inputs" / name for name in PICTURES]
    assert call(program, "--model", model, "--device", "cuda", *files).returncode == 0
    for found in sorted(Path("out").iterdir()):
        np.testing.assert_allclose(read(found), read(gallery / "model" / found.name), rtol=0, atol=2)


@pytest.mark.skipif(sys.platform != "linux", reason="asks GCC's OpenMP, which torch uses on Linux")
@pytest.mark.parametrize(
    ("threads", "policy", "spins"),
    [("2", None, [None, "0"]), ("2", "active", ["30000000000"]), ("1", None, [None])],
)
def test_waiting_threads_sleep(
    program: Path,
    echo: Path,
    threads: str,
    policy: str | None,
    spins: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw().save("one.png")
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    done = call(program, "--model", echo, "--threads", threads, "one.png")
    assert done.returncode == 0
    assert "coloured 1 of 1 images" in done.stdout
    found = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    assert len(found) == len(spins)
    assert all(count is None or count == shown for count, shown in zip(spins, found, strict=True))


def test_help(program: Path) -> None:
    done = call(program, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("colorize --model FILE ")
    assert done.stdout.splitlines()[0] in (CPP / "README.md").read_text()


def test_the_two_snippets_of_the_readme_do_the_same(built: Path, model: Path) -> None:
    Path("generator.ts").symlink_to(model)
    ours = call(sys.executable, "-W", "ignore", "-c", SNIPPETS["python"])
    theirs = call(built / "mine")
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr) == (0, "")
    assert ours.stdout.splitlines()[1].startswith("[1, 3, 480, 640] ")
    assert theirs.stdout == ours.stdout


def test_a_file_named_twice_is_done_once_and_a_name_may_begin_with_a_dash(program: Path, echo: Path) -> None:
    draw().save("one.png")
    draw().save("-two.png")
    Path("a").mkdir()
    done = call(program, "--model", echo, "one.png", "a/../one.png", "--", "-two.png", "one.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert "coloured 2 of 2 images" in done.stdout
    assert sorted(path.name for path in Path("out").iterdir()) == ["-two.png", "one.png"]


@pytest.mark.parametrize("where", [["-DTORCH_DIR=/nowhere"], ["-DPYTHON=false"]])
def test_cmake_says_that_there_is_no_torch(where: list[str]) -> None:
    if reason := missing():
        pytest.skip(reason)
    there = call("cmake", "-S", CPP, "-B", "build", f"-DPYTHON={sys.executable}")
    assert f"torch: {Path(torch.__file__).parent}\n" in there.stdout
    done = call("cmake", "-S", CPP, "-B", "build", *where)  # what was found before does not count
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert f"'{where[0].split('=')[1]}'" in said
    assert "Give -DTORCH_DIR=/path/to/libtorch, or -DPYTHON=/path/to/python." in said
