"""cpp/: the program reads, colours and refuses as Python does; the README's snippets run.

The program is built once for all tests, in under half a minute of one core.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from helpers import CPU, ask_for_an_unknown_operator, run_in_terminal, small_model, write_model
from image_samples import png_header
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from config import ROOT
from dataset import scenes
from imaging.files import read_image
from inference.checkpoint import METADATA, ExportRecord, infer, load_exported
from inference.exporters import PRECISIONS, write_onnx
from runtime.device import computed_in

CPP = ROOT / "cpp"
SNIPPETS = dict(re.findall(r"```(python|cpp|cmake)\n(.*?)```", (CPP / "README.md").read_text(), re.S))
pytestmark = pytest.mark.slow  # compiling takes half a minute


class Echo(nn.Module):
    """Gives the image back, so that pixels can be compared with those of Python's reader."""

    def forward(self, image: Tensor) -> Tensor:
        if image.size(2) == 7:
            raise ValueError("seven rows are one too many")
        return image.expand(-1, 3, -1, -1)


scene = cache(lambda: scenes.draw(3, 512)[0])


def draw(height: int = 60, width: int = 91) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(scene()[:height, :width]))


def with_alpha(picture: Image.Image) -> Image.Image:
    """Return a picture with every degree of transparency."""
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    return picture


def turned(orientation: int) -> dict[str, Any]:
    """Return how to save a picture with an EXIF orientation, behind another entry, in either byte order."""
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a picture", orientation
    exif.endian = "<>"[orientation % 2]
    return {"exif": exif.tobytes()}


PICTURES: dict[str, Callable[[], tuple[Image.Image, dict[str, Any]]]] = {  # and how they are saved
    "rgb.png": lambda: (draw(), {}),
    "gray.png": lambda: (draw().convert("L"), {}),
    "one bit.png": lambda: (draw().convert("1"), {}),
    "palette.png": lambda: (draw().quantize(13), {}),
    "palette, one clear.png": lambda: (draw().quantize(13), {"transparency": 5}),
    "alpha.png": lambda: (with_alpha(draw()), {}),
    "gray, alpha.png": lambda: (with_alpha(draw().convert("L")), {}),
    "one clear colour.png": lambda: (draw(), {"transparency": draw().getpixel((0, 0))}),
    "turned.png": lambda: (draw(), turned(6)),
    "progressive.JPEG": lambda: (draw(), {"format": "JPEG", "progressive": True, "subsampling": 0}),
    "gray.of.jpg": lambda: (draw().convert("L"), {}),
    "wrong name.png": lambda: (draw(), {"format": "JPEG"}),
    "1x1.png": lambda: (draw(1, 1), {}),
    "37x501.of.jpg": lambda: (draw(37, 501), {}),
    **{f"turned {i}.jpg": lambda i=i: (draw(), turned(i)) for i in range(10)},
}


def read(path: Path) -> NDArray[np.int64]:
    """Read a PNG that the program wrote, (H, W, 3) of 8 or 16 bits."""
    return imagecodecs.png_decode(path.read_bytes()).astype(np.int64)


def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program with one thread: on a busy machine threads wait for each other."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 600}  # a pipe can block
    return subprocess.run(list(map(str, words)), **options)


def build(source: Path, folder: Path, where: str = f"-DPYTHON={sys.executable}") -> Path:
    """Build a project as its README says; returns the folder."""
    if not shutil.which("cmake"):
        pytest.skip("no cmake: apt-get install cmake make g++")
    done = call("cmake", "-S", source, "-B", folder, where)
    if re.search("is missing: |No CMAKE_CXX_COMPILER|CMAKE_MAKE_PROGRAM is not set", done.stderr):
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    done = call("cmake", "--build", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr
    return folder


def save(path: Path, told: str | None) -> Path:
    """Write an Echo as TorchScript, with or without metadata."""
    torch.jit.script(Echo()).save(path, _extra_files={} if told is None else {METADATA: told})
    return path


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(CPP, tmp_path_factory.mktemp("cpp")) / "colorize"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.ts")


@pytest.fixture(scope="session")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that takes hints."""
    return write_model(tmp_path_factory.mktemp("model") / "guided.ts", hints=True)


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "echo.ts", '{"format": 1}')


def complaints(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a program said on stderr beside its first and last line."""
    told = re.compile(r"model |\d+ files?: ")
    return "".join(line for line in done.stderr.splitlines(keepends=True) if not told.match(line))


def test_reads_and_colours_files_as_python_does(program: Path, echo: Path, model: Path) -> None:
    Path("inputs").mkdir()
    for name, make in PICTURES.items():
        image, options = make()
        image.save(f"inputs/{name}", **options)
    files = [Path("inputs", name) for name in PICTURES]
    for network in (echo, model):
        done = call(program, "--model", network, "--out", network.stem, "--threads", "1", *files)
        assert (done.returncode, complaints(done)) == (0, "")
    module = load_exported(model, CPU).module
    for path in files:
        given = read_image(path)
        jpeg = path.read_bytes().startswith(b"\xff\xd8")  # two versions of libjpeg may round differently
        echoed, coloured = (read(Path(folder, f"{path.stem}.png")) for folder in ("echo", "model"))
        np.testing.assert_allclose(echoed, given.astype(int), rtol=0, atol=int(jpeg), err_msg=path.name)
        expected = infer(module, torch.from_numpy(given).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
        np.testing.assert_allclose(coloured, expected.int().numpy(), rtol=0, atol=1, err_msg=path.name)
    assert np.ptp(read(Path("model/gray.png")), axis=2).max() > 0  # there is colour


def test_16_bits_stay_16_bits(program: Path, echo: Path, model: Path) -> None:
    arrays = {n: np.random.default_rng(n).integers(0, 65536, (5, 300, n), np.uint16) for n in (1, 2, 3, 4)}
    for channels, array in arrays.items():
        array[0, :, -1], array[1, :, -1] = 0, 65535  # alpha, if it is
        Path(f"{channels}.png").write_bytes(imagecodecs.png_encode(array))
    assert call(program, "--model", echo, *(f"{channels}.png" for channels in arrays)).returncode == 0
    for channels, array in arrays.items():
        colours = array.astype(np.int64)
        if channels in (2, 4):
            alpha, colours = colours[..., -1:], colours[..., :-1]
            colours = (colours * alpha + 65535 * (65535 - alpha) + 32767) // 65535
        echoed = read(Path(f"out/{channels}.png"))
        np.testing.assert_array_equal(echoed, np.broadcast_to(colours, (5, 300, 3)))
    assert call(program, "--model", model, "1.png").returncode == 0
    image = torch.from_numpy(arrays[1]).permute(2, 0, 1)[None]
    expected = infer(load_exported(model, CPU).module, image)[0].permute(1, 2, 0).int().numpy()
    np.testing.assert_allclose(read(Path("out/1.png")), expected, rtol=0, atol=1)


def test_hints_are_painted_layers(program: Path, guided: Path) -> None:
    image, layer = np.asarray(draw(60, 90)), np.zeros((60, 90, 4), np.uint8)
    layer[10:22, 20:32] = 200, 40, 60, 255
    layer[40:50, 60:80] = 30, 80, 220, 128
    Path("layers").mkdir()
    Image.fromarray(image).save("one.png")
    Image.fromarray(layer).save("layers/one.png")
    Path("deep.png").write_bytes(imagecodecs.png_encode(image.astype(np.uint16) * 257))
    Path("layers/deep.png").write_bytes(imagecodecs.png_encode(layer.astype(np.uint16) * 257))
    module = load_exported(guided, CPU).module
    planes, painted = (torch.from_numpy(array).permute(2, 0, 1)[None] for array in (image.copy(), layer))
    bare, hinted = (infer(module, planes, hints)[0].permute(1, 2, 0).int().numpy() for hints in (None, painted))
    assert np.abs(bare - hinted).max() > 20
    cases = {"layers": hinted, "layers/one.png": hinted, "layers/deep.png": hinted, "": bare}
    for hints, expected in cases.items():
        given = ["--hints", hints] if hints else []
        done = call(program, "--model", guided, *given, "one.png")
        assert (done.returncode, complaints(done)) == (0, "")
        np.testing.assert_allclose(read(Path("out/one.png")), expected, rtol=0, atol=1)
    assert call(program, "--model", guided, "--hints", "layers", "one.png", "deep.png").returncode == 0
    np.testing.assert_allclose(read(Path("out/deep.png")) // 257, hinted, rtol=0, atol=1)


def test_hints_that_do_not_fit_are_named(program: Path, guided: Path, model: Path) -> None:
    draw(60, 90).save("one.png")
    with_alpha(draw(60, 91)).save("wide.png")
    Path("empty").mkdir()
    for network, hints, code, sentence in (
        (guided, "wide.png", 1, "not done: one.png: wide.png has 91 x 60 px, its picture 90 x 60"),
        (guided, "one.png", 1, "not done: one.png: one.png: no transparency: paint hints on a transparent layer"),
        (guided, "nothing.png", 2, "colorize: no hints nothing.png; name a PNG or a folder"),
        (guided, "empty", 2, "colorize: no file in empty is named like a picture, NAME.png"),
        (model, "wide.png", 2, f"colorize: {model} takes no hints: use a model of a recipe with hints"),
    ):
        done = call(program, "--model", network, "--hints", hints, "one.png")
        assert (done.returncode, complaints(done).count("\n")) == (code, 1), hints
        assert complaints(done).startswith(sentence)
    done = call(program, "--model", guided, "--hints", "wide.png", "one.png", "wide.png")
    assert complaints(done).startswith("colorize: wide.png: hints for one picture, but 2 are named; name a folder")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_a_cpu_emulates_is_computed_in_fp32(program: Path, tmp_path: Path, precision: str) -> None:
    draw(60, 90).save("one.png")
    path = write_model(tmp_path / "half.ts", precision=precision)
    module = torch.jit.load(path).to(PRECISIONS[precision])
    module.save(path, _extra_files={METADATA: json.dumps(asdict(load_exported(path, CPU).record))})
    done = call(program, "--model", path, "one.png")
    assert done.returncode == 0
    computed = computed_in(precision, CPU)
    assert done.stderr.splitlines()[0].endswith("on cpu, in fp32" if computed == "fp32" else "on cpu")
    found = load_exported(path, CPU).module
    assert {parameter.dtype for parameter in found.parameters()} == {PRECISIONS[computed]}
    expected = infer(found, torch.from_numpy(read_image(Path("one.png"))).permute(2, 0, 1)[None])[0]
    np.testing.assert_allclose(read(Path("out/one.png")), expected.permute(1, 2, 0).int().numpy(), rtol=0, atol=1)


def test_says_what_it_does(program: Path, model: Path) -> None:
    Path("a").mkdir()
    draw(40, 30).save("one.png")
    draw(20, 50).save("-two.jpg")
    done = call(program, "--model", model, "--out", "a/b", "one.png", "a/../one.png", "--", "-two.jpg")
    assert (done.returncode, complaints(done)) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]  # a file that is named twice is done once
    assert [(line["file"], line["output"], line["status"]) for line in lines] == [
        ("one.png", "a/b/one.png", "done"), ("-two.jpg", "a/b/-two.png", "done"),
    ]  # fmt: skip
    header, summary = done.stderr.splitlines()
    assert header == f"model {model}: recipe coco, epoch 1, fp32; on cpu"
    assert re.fullmatch(r"2 files: 2 done; \d+\.\d{3} s, in a/b/", summary)
    assert sorted(os.listdir("a/b")) == ["-two.png", ".colorized", "one.png"]
    mean = call(program, "--model", write_model(Path("mean.ts"), averaged="3-20"), "--out", "c", "one.png")
    assert mean.stderr.splitlines()[0] == "model mean.ts: recipe coco, mean of epochs 3-20, fp32; on cpu"
    usage = call(program, "--help")
    assert (usage.returncode, usage.stderr) == (0, "")
    assert usage.stdout.splitlines()[0] in (CPP / "README.md").read_text()


def test_people_read_a_numbered_line_per_file(program: Path, model: Path) -> None:
    draw(40, 30).save("one.png")
    Path("two.png").touch()
    code, said = run_in_terminal([program, "--model", model, "one.png", "two.png"])
    lines = said.splitlines()
    assert code == 1
    assert re.fullmatch(r"\[1/2\] one\.png -> out/one\.png, 30 x 40 px, \d+\.\d{3} s", lines[1])
    assert lines[2] == "[2/2] not done: two.png: neither PNG nor JPEG"
    assert re.fullmatch(r"2 files: 1 done, 1 failed; \d+\.\d{3} s, in out/", lines[3])


def test_names_that_are_no_text_and_a_reader_that_goes_away(program: Path, model: Path) -> None:
    names = [
        b"caf\xe9 \xc3\xa9.png",
        b"\xed\xa0\x80\xf0\x9f\x98\x80.png",
        251 * b"x" + b".png",
    ]  # the second begins with half a surrogate pair, the third is as long as a name can be
    for name in names:
        draw(20, 30).save("x.png")
        os.rename("x.png", name)
    done = call(program, "--model", model, *map(os.fsdecode, names))
    assert done.returncode == 0, done.stderr
    assert [os.fsencode(json.loads(line)["file"]) for line in done.stdout.splitlines()] == names
    left = subprocess.Popen(
        [program, "--model", model, "--out", "left", *names], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    left.stdout.close()
    assert left.wait(600) == 0
    assert len([*Path("left").glob("*.png")]) == 3


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
    "half.png": (lambda path: cut(path, 0.5), "damaged image (Read Error)"),
    "half a jpeg.jpg": (lambda path: cut(path, 0.5), "damaged image (Corrupt JPEG data: premature end"),
    "header.jpg": (lambda path: cut(path, 0.01), "damaged image ("),
    "cmyk.jpg": (lambda path: draw().convert("CMYK").save(path), "a CMYK JPEG; convert it to RGB first"),
    "seven rows.png": (lambda path: draw(7, 9).save(path), "seven rows are one too many"),
    "bomb.png": (lambda path: path.write_bytes(png_header(25_000, 20_001)), "more than 500 million pixels"),
}


def test_bad_files_are_named_and_the_others_are_done(program: Path, echo: Path) -> None:
    draw().save("first.png")
    draw().save("last.jpg")
    for name, (write, _) in BAD.items():
        write(Path(name))
    done = call(program, "--model", echo, "first.png", *BAD, "last.jpg")
    assert done.returncode == 1
    for line, (name, (_, reason)) in zip(complaints(done).splitlines(), BAD.items(), strict=True):
        assert line.startswith(f"not done: {name}: {reason}")
    assert sorted(os.listdir("out")) == [".colorized", "first.png", "last.png"]
    assert f"{len(BAD) + 2} files: 2 done, {len(BAD)} failed; " in done.stderr


def test_a_write_that_fails_leaves_what_was_there(program: Path, echo: Path) -> None:
    draw(300, 300).save("large.png")
    Path("out").mkdir()
    Path("out/large.png").write_bytes(b"older")
    small_files_only = "ulimit -f 8; trap '' XFSZ; exec \"$@\""
    done = call("sh", "-c", small_files_only, "sh", program, "--model", echo, "large.png")
    assert (done.returncode, complaints(done)) == (1, "not done: large.png: cannot be written (Write Error)\n")
    assert os.listdir("out") == ["large.png"]
    assert Path("out/large.png").read_bytes() == b"older"


MISTAKES = {
    "one.png": "no model given; add --model",
    "--model echo.ts": "no files given",
    "--model echo.ts --size 9 one.png": "no option --size",
    "--model echo.ts one.png --out": "--out needs a value",
    "--model nothing.ts one.png": "no model nothing.ts; write one with: python export.py",
    "--model one.png one.png": "one.png is not a TorchScript file",
    "--model newer.ts one.png": "newer.ts needs an operator that this torch lacks",
    "--model bare.ts one.png": "bare.ts is a TorchScript file, but not one written by export.py",
    "--model old.ts one.png": "old.ts is of an older version of Tinct; export it again",
    "--model new.ts one.png": "new.ts is of a newer version of Tinct, format 3, and this program knows",
    "--model echo.ts --device tpu one.png": "no device tpu: use cpu or cuda",
    "--model echo.ts --threads 2x one.png": "--threads is a number from 1, got 2x",
    "--model echo.ts --out one.png/a one.png": "folder one.png/a cannot be made: Not a directory",
    "--model echo.ts one.png a/one.jpg": "one.png and a/one.jpg would both become out/one.png",
    "--model echo.ts --out a/.. one.png": "a/../one.png, the result of one.png, would overwrite an",
}
if not torch.cuda.is_available():
    MISTAKES["--model echo.ts --device cuda one.png"] = "cuda asked for, but torch sees no CUDA device"


def test_a_mistake_is_one_sentence_before_any_work(program: Path, echo: Path) -> None:
    Path("a").mkdir()
    draw().save("one.png")
    Path("echo.ts").symlink_to(echo)
    save(Path("bare.ts"), None)
    save(Path("old.ts"), '{"epoch": 2, "note": "\\"format\\": 1"}')
    save(Path("new.ts"), '{"epoch": 1, "format": 3}')
    ask_for_an_unknown_operator(write_model(Path("newer.ts")))
    before = Path("one.png").read_bytes()
    for words, sentence in MISTAKES.items():
        done = call(program, *words.split())
        assert (done.returncode, complaints(done).count("\n")) == (2, 1), words
        assert complaints(done).startswith(f"colorize: {sentence}")
    assert not Path("out").exists()
    assert Path("one.png").read_bytes() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives(program: Path, model: Path) -> None:
    draw(300, 200).save("x.png")
    for device in ("cpu", "cuda"):
        assert call(program, "--model", model, "--device", device, "--out", device, "x.png").returncode == 0
    np.testing.assert_allclose(read(Path("cuda/x.png")), read(Path("cpu/x.png")), rtol=0, atol=2)


@pytest.mark.skipif(sys.platform != "linux", reason="asks GCC's OpenMP, which torch uses on Linux")
def test_waiting_threads_sleep(program: Path, echo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw().save("one.png")
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):  # runtime/cli.py sets both
        monkeypatch.delenv(name, raising=False)

    def spins(threads: int) -> list[str]:
        """Return what OpenMP says each time that it starts."""
        done = call(program, "--model", echo, "--threads", str(threads), "one.png")
        assert "1 file: 1 done; " in done.stderr
        return re.findall(r"GOMP_SPINCOUNT = '(\d+)'", complaints(done))

    _, last = spins(2)  # the program starts itself again
    assert last == "4000"
    assert len(spins(1)) == 1
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert spins(2) == ["30000000000"]


def test_the_two_snippets_of_the_readme_do_the_same(model: Path) -> None:
    Path("CMakeLists.txt").write_text(SNIPPETS["cmake"].replace("/path/to/tinct/cpp", str(CPP)))
    Path("main.cpp").write_text(SNIPPETS["cpp"])
    mine = build(Path.cwd(), Path.cwd() / "build") / "mine"
    Path("generator.ts").symlink_to(model)
    ours, theirs = call(sys.executable, "-W", "ignore", "-c", SNIPPETS["python"]), call(mine)
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr) == (0, "")
    assert ours.stdout.splitlines()[1].startswith("[1, 3, 480, 640] ")
    assert theirs.stdout == ours.stdout


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
def test_cmake_says_which_torch_it_takes_and_that_there_is_none() -> None:
    torch_folder = Path(torch.__file__).parent
    for folder, where in (("other", f"-DTORCH_DIR={torch_folder}"), ("build", f"-DPYTHON={sys.executable}")):
        assert f"torch: {torch_folder}\n" in call("cmake", "-S", CPP, "-B", folder, where).stdout
    for where in ("-DPYTHON=false", "-DTORCH_DIR=/nowhere"):  # what was found before does not count
        done = call("cmake", "-S", CPP, "-B", "build", where)
        assert done.returncode == 1
        said = " ".join(complaints(done).split())
        assert f"'{where.partition('=')[2]}'" in said
        assert "Give -DTORCH_DIR=/path/to/libtorch, or -DPYTHON=/path/to/python." in said


@pytest.fixture(scope="session")
def onnx_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return colorize_onnx, built with the layout of ONNX Runtime's release archive: pip's library, headers here."""
    onnxruntime = pytest.importorskip("onnxruntime")
    found = [Path(p) for p in (os.environ.get("ORT_INCLUDE"), "/usr/include/onnxruntime") if p]
    headers = next((folder for folder in found if (folder / "onnxruntime_cxx_api.h").exists()), None)
    if headers is None:
        pytest.skip("no headers of ONNX Runtime: libonnxruntime-dev, or their folder in ORT_INCLUDE")
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    folder = tmp_path_factory.mktemp("onnxruntime")
    (folder / "lib").mkdir()
    (folder / "include").symlink_to(headers)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(library)
    return build(CPP / "onnx", folder / "build", f"-DORT_DIR={folder}") / "colorize_onnx"


FORMULA = """<ir_version: 10, opset_import: ["": 20]>
formula (float[n, 3, h, w] image{input}) => (float[n, 3, h, w] colour)
<int64[1] first = {{-1}}, int64[1] last = {{-9999}}, int64[1] channel = {{1}}, int64[1] column = {{3}},
float[1, 3, 1, 1] shares = {{1, 0.5, 0.25}}, float one = {{1}}> {{
    turned = Slice (image, first, last, column, first)
    squared = Mul (turned, turned)
    result = Mul (squared, shares)
    {output}
}}"""
HINTED = """opposite = Sub (one, result)
    seen = ReduceSum (hints, channel)
    colour = Add (opposite, seen)"""


def test_the_onnx_program_feeds_a_model_and_says_what_is_wrong(onnx_program: Path) -> None:
    """The model is a formula in which scale, channels, rows and hints that are not 0 would show."""
    from onnx import parser, save_model

    draw(61, 140).save("photo.ppm")
    given = read_image(Path("photo.ppm"))[:, ::-1] / 255
    result = given**2 * (1, 0.5, 0.25)
    for name, inputs, output, expected in (
        ("plain", "", "colour = Identity (result)", result),
        ("hinted", ", float[n, 4, h, w] hints", HINTED, 1 - result),
    ):
        save_model(parser.parse_model(FORMULA.format(input=inputs, output=output)), f"{name}.onnx")
        done = call(onnx_program, f"{name}.onnx", "photo.ppm", f"{name}.ppm")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        np.testing.assert_allclose(read_image(Path(f"{name}.ppm")).astype(int), expected * 255, rtol=0, atol=1)
    for words, said in (
        (("plain.onnx", "photo.ppm"), "usage: colorize_onnx generator.onnx photo.ppm coloured.ppm\n"),
        (("plain.onnx", "plain.onnx", "x"), "plain.onnx: not a binary PPM of 8 bits (no comments)\n"),
        (("plain.onnx", "photo.ppm", "no/x.ppm"), "no/x.ppm: cannot be written\n"),
    ):
        done = call(onnx_program, *words)
        assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.soak  # to write this network takes a minute; tests/web compares ONNX with Python, too, hints and all
def test_the_onnx_program_does_what_the_python_one_does(onnx_program: Path, guided: Path) -> None:
    draw(61, 140).save("photo.ppm")
    given = torch.from_numpy(read_image(Path("photo.ppm"))).permute(2, 0, 1)[None]
    colorizer, recipe = small_model(hints=True)
    write_onnx(Path("generator.onnx"), colorizer, ExportRecord(recipe, 1, "fp32"))
    expected = infer(load_exported(guided, CPU).module, given)[0].permute(1, 2, 0).int().numpy()
    assert np.ptp(expected, axis=2).max() > 0  # there is colour
    done = call(onnx_program, "generator.onnx", "photo.ppm", "coloured.ppm")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_allclose(read_image(Path("coloured.ppm")).astype(int), expected, rtol=0, atol=1)
