"""colorize.py: one call for many files, what it prints and how it ends; and one function for one image."""

import io
import json
import os
import re
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import tqdm
from helpers import (
    StandInRunner,
    chroma,
    frame_of,
    frames_of,
    gray,
    results,
    run_in_terminal,
    run_stage,
    save_picture,
    write_model,
)
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2lab

import colorize
from config import ROOT, UserError
from imaging.files import FORMS, scan
from inference import checkpoint, pipeline, runner
from inference.checkpoint import load_colorizer
from runtime import cli


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "generator.ts")


@pytest.fixture(scope="session")
def line_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "line.ts", "sketch", "rgb")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Return a folder with gray scans of several sizes and formats, two levels deep."""
    for name, shape in {"one.png": (37, 50), "album/two.JPG": (80, 33), "album/three.tif": (1, 1)}.items():
        save_picture(tmp_path / "scans" / name, gray(0, *shape))
    return tmp_path / "scans"


def records(printed: str) -> list[dict[str, Any]]:
    """Return what stdout said, which is JSON and nothing else."""
    return [json.loads(line) for line in printed.splitlines()]


def test_keeps_names_folders_sizes_and_formats(model: Path, scans: Path) -> None:
    written = colorize.main([scans], model=model, out=Path("out"), device="cpu")
    assert list(map(str, written)) == ["out/album/three.tif", "out/album/two.JPG", "out/one.png"]
    for path in written:
        with Image.open(path) as ours, Image.open(scans / path.relative_to("out")) as given:
            assert (ours.size, ours.mode, ours.format) == (given.size, "RGB", given.format)
    assert chroma(frame_of("out/one.png").pixels) > 0
    names = {"inputs": "scans/one.png", "model": str(model), "out": "other"}  # plain strings, and no list
    assert colorize.main(**names, device="cpu") == [Path("other/one.png")]


def test_model_is_by_default_the_one_for_photographs_and_others_have_names(
    scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "ROOT", Path())
    with pytest.raises(UserError, match=r"no model pretrained/photo.ts; .*python export.py"):
        colorize.main([scans], device="cpu")
    Path("pretrained").mkdir()
    write_model(Path("pretrained/photo.ts"))
    assert len(colorize.main([scans], device="cpu")) == 3
    assert colorize.colorize(gray(0), device="cpu").shape == (40, 56, 3)
    write_model(Path("pretrained/sketch.ts"), "sketch", "rgb")
    assert checkpoint.find_model("sketch") == Path("pretrained/sketch.ts")
    with pytest.raises(UserError, match=r"no model sketsh; did you mean sketch\? \(known: photo sketch\)"):
        colorize.main([scans], model="sketsh", device="cpu")
    write_model(Path("sketch"))
    assert checkpoint.find_model("sketch") == Path("sketch")  # a file of that name comes first


def test_stdout_is_a_line_of_json_per_file_and_stderr_a_summary(
    model: Path, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scans / "broken.jpg").write_bytes(b"")
    save_picture("out/one.png", gray(0))
    colours = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    save_picture("scans/colour.png", colours.repeat(8, 0).repeat(8, 1))
    assert run_stage("colorize", "scans", "--model", model, "--keep-coloured", "--jobs", 2, "--device", "cpu") == 1
    said = capsys.readouterr()
    lines = records(said.out)
    assert [(line["file"].removeprefix("scans/"), line["status"]) for line in lines] == [
        ("album/three.tif", "done"), ("album/two.JPG", "done"), ("broken.jpg", "failed"),
        ("colour.png", "kept"), ("one.png", "skipped"),
    ]  # fmt: skip
    header, summary, failed = said.err.splitlines()
    assert header == f"model {model}: recipe coco, epoch 1, fp32; on cpu"
    assert summary.startswith("5 files: 2 done, 1 kept, 1 skipped, 1 failed; ")
    assert failed == f"not done: {lines[2]['reason']}"
    assert lines[2]["reason"] == "scans/broken.jpg: not an image that can be read"


class Gone(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_files_are_coloured_though_nothing_can_be_said(
    model: Path, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scans / "broken.jpg").write_bytes(b"")
    monkeypatch.setattr("sys.stderr", Gone())
    assert run_stage("colorize", "scans", "--model", model) == 1
    assert results() == ["one.png", "three.tif", "two.JPG"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_below_the_lines_is_told_and_the_files_are_coloured(
    model: Path, scans: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        colorize.main([scans], model=model, device="cpu")
    assert capsys.readouterr().err.count("cannot be written (No space left on device); the files can") == 1
    assert results() == ["one.png", "three.tif", "two.JPG"]


def test_people_read_lines(
    model: Path, scans: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    (scans / "broken.jpg").write_bytes(b"")
    save_picture("out/one.png", gray(0))
    with pytest.raises(SystemExit):
        colorize.main([scans], model=model, device="cpu")
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{scans}/album/three.tif -> out/album/three.tif, \d+\.\d\d s", lines[0])
    assert lines[2] == f"failed: {scans}/broken.jpg: not an image that can be read"
    assert lines[3] == f"skipped: {scans}/one.png, as out/one.png is there (--overwrite replaces it)"
    colorize.main([scans / "one.png"], model=model, device="cpu", json_=True)
    assert records(capsys.readouterr().out)[0]["status"] == "skipped"


def test_without_a_terminal_stderr_says_what_is_left(
    model: Path, scans: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_LINE_S", "LINE_INTERVAL_S"):
        monkeypatch.setattr(f"runtime.progress.{name}", 0.0)
    colorize.main([scans], model=model, device="cpu")
    out, err = capsys.readouterr()
    assert [record["status"] for record in records(out)] == ["done"] * 3
    assert re.search(r"^colourising: 1 of 3, about .* left$", err, re.MULTILINE)


def test_a_run_is_coloured_with_as_it_is(scans: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(colorize.main([scans], run=trained, epoch="1", device="cpu")) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"model {trained}/checkpoints/epoch_0001.pt: recipe coco, epoch 1, fp32, trained on ")
    found = load_colorizer(trained, 1, torch.device("cpu"))
    expected = found(torch.from_numpy(frame_of(scans / "one.png").pixels).permute(2, 0, 1)[None])
    np.testing.assert_array_equal(frame_of("out/one.png").pixels, expected[0].permute(1, 2, 0).numpy())
    for options, words in (({"epoch": "1"}, "--epoch is of a run"), ({"run": trained, "model": "x.ts"}, "two models")):
        with pytest.raises(UserError, match=words):
            colorize.main([scans], device="cpu", **options)


def test_what_people_type_is_understood(model: Path, scans: Path) -> None:
    assert run_stage("colorize", scans / "one.png", "--model", model, "--format", "jpeg", "--keep-colored") == 0
    assert run_stage("colorize", scans / "one.png", "--model", model, "--format", "tiff") == 0
    assert results() == ["one.jpg", "one.tif"]


def test_every_line_goes_out_at_once(model: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe(io.StringIO):
        seen: ClassVar[list[int]] = []

        def flush(self) -> None:
            self.seen.append(self.getvalue().count("\n"))

    monkeypatch.setattr("sys.stdout", Pipe())
    colorize.main([scans], model=model, device="cpu")
    assert {1, 2, 3} <= set(Pipe.seen)


def test_a_bug_shows_its_traceback_once_and_stops_no_other_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(self: pipeline.Pipeline, job: pipeline.Job) -> None:
        if "good" not in job.task.path.name:
            _, _ = [1]
        job.status = "done"

    monkeypatch.setattr(runner, "Runner", lambda *_, **__: StandInRunner())
    monkeypatch.setattr(pipeline.Pipeline, "write", write)
    for name in ("bad", "good", "worse"):
        save_picture(f"a/{name}.png", gray(0))
    assert run_stage("colorize", "a", "--model", "any.ts") == 1
    said = capsys.readouterr()
    assert [line["status"] for line in records(said.out)] == ["failed", "done", "failed"]
    assert said.err.count("Traceback") == said.err.count("_, _ = [1]") == 1
    for name in ("bad", "worse"):
        assert f"not done: a/{name}.png: ValueError: not enough values to unpack" in said.err


def test_metadata_of_finished_files_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[weakref.ref] = []

    def watched(path: Path) -> Any:
        found = scan(path)
        notes.append(weakref.ref(found.notes))
        return found

    monkeypatch.setattr(pipeline, "scan", watched)
    monkeypatch.setattr(runner, "Runner", lambda *_, **__: StandInRunner())
    for i in range(40):
        save_picture(f"p/{i:02}.png", gray(0))
    held: list[int] = []
    monkeypatch.setattr(tqdm.tqdm, "write", lambda *_, **__: held.append(sum(bool(note()) for note in notes)))
    assert len(colorize.main([Path("p")], model=Path("any.ts"), jobs=1)) == 40
    assert max(held) < 20  # those under way


def test_a_call_can_be_repeated(model: Path, scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def statuses(*options: str) -> list[str]:
        assert run_stage("colorize", scans, "--model", model, *options) == 0
        return [line["status"] for line in records(capsys.readouterr().out)]

    assert statuses() == ["done"] * 3
    Path("out/one.png").unlink()
    assert statuses() == ["skipped", "skipped", "done"]
    Path("out/one.png").write_bytes(b"older")
    assert statuses("--overwrite") == ["done"] * 3
    assert frame_of("out/one.png").pixels.shape == (37, 50, 3)


def test_shards_of_a_call_write_every_file_once(model: Path, scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = [colorize.main([scans], model=model, shard=f"{i}/2", device="cpu") for i in (1, 2)]
    assert sorted(str(path) for part in written for path in part) == [
        "out/album/three.tif",
        "out/album/two.JPG",
        "out/one.png",
    ]
    assert {line["status"] for line in records(capsys.readouterr().out)} == {"done"}
    with pytest.raises(UserError, match="--shard"):
        colorize.main([scans], model=model, shard="3/2", device="cpu")


@pytest.mark.parametrize("form", FORMS)
def test_a_format_for_all(form: str, model: Path, scans: Path) -> None:
    for path in colorize.main([scans], model=model, format_=form, device="cpu"):
        assert path.suffix == f".{form}"
        assert scan(path).form == {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tif": "TIFF"}[form]


def test_options_change_the_pictures(model: Path) -> None:
    save_picture("x.png", gray(0, 90, 130))
    found = {}
    options = ["--size 64", "--upsampling bicubic", "--strength 0.5", "--strength 0", "--compare", ""]
    for option in options:
        words = ["x.png", "--model", model, "--out", option or "plain", "--device", "cpu", *option.split()]
        assert run_stage("colorize", *words) == 0
        found[option] = frame_of(Path(option or "plain", "x.png")).pixels
    assert len({picture.tobytes() for picture in found.values()}) == 5
    assert np.array_equal(found[""], found["--compare"])
    assert chroma(found["--strength 0"]) < 1
    assert 0.3 < chroma(found["--strength 0.5"]) / chroma(found[""]) < 0.8
    sheet = frame_of("--compare/x_compare.png").pixels
    assert np.array_equal(sheet, np.concatenate([frame_of("x.png").pixels, found[""]], 1))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("missing.jpg", "no file or folder missing.jpg"),
        ("scans/*.webp", "no file matches"),
        ("empty", "no image in empty"),
        ("scans --out scans", "would overwrite an input"),
        ("scans --out scans/one.png/x", "cannot be written to (Not a directory)"),
        ("scans --out /proc", "cannot be written to ("),  # is there, and not even root writes to it
        ("scans --format gif", "use one of png jpg webp tif"),
        ("scans --upsampling nearest", "use one of guided bicubic"),
        ("scans --size 8", "--size"),
        ("", "FILE|FOLDER|PATTERN"),
        ("scans --model none.ts", "no model none.ts"),
        ("scans --hints none.json", "none.json: No such file"),
        ("scans --hints none.png", "none.png: there is none; hints are points"),
        ("scans --hints empty", "no layer in empty"),
        ("scans --hints scans/one.png", "no transparency"),
        ("scans --palette none.jpg", "none.jpg: no such file"),
        ("scans --temperature 0.5", "has no temperature: it is of recipe coco"),
    ],
)
def test_mistakes_are_found_before_any_work(
    words: str, sentence: str, model: Path, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    before = sorted(Path().rglob("*"))
    assert run_stage("colorize", "--model", model, *words.split()) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("colorize.py: ")
    assert sentence in said.err
    assert sorted(Path().rglob("*")) == before


RED = {"x": 28, "y": 20, "radius": 9, "color": "#a02020"}


@pytest.fixture(scope="session")
def hint_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "hints.ts", hints=True)


def test_hints_are_points_a_layer_or_a_folder(hint_model: Path) -> None:
    for name in ("a", "b"):
        save_picture(f"p/{name}.png", np.full((40, 56), 120, np.uint8))
    layer = np.zeros((40, 56, 4), np.uint8)
    layer[14:27, 22:35] = (160, 32, 32, 255)
    Path("layers").mkdir()
    Image.fromarray(layer).save("layers/a.png")
    Path("points.json").write_text(json.dumps({"a.png": [RED]}))
    spots = {}
    for i, hints in enumerate(("", "points.json", "layers", "layers/a.png")):
        inputs = "p/a.png" if hints == "layers/a.png" else "p"
        given = ["--hints", hints] if hints else []
        where = ["--out", f"out{i}", "--device", "cpu"]
        assert run_stage("colorize", inputs, *given, "--model", hint_model, *where) == 0
        spots[hints] = frame_of(f"out{i}/a.png").pixels[20, 28].astype(int)
    assert np.array_equal(frame_of("out1/b.png").pixels, frame_of("out0/b.png").pixels)
    red = [spots[hints] for hints in ("points.json", "layers", "layers/a.png")]
    assert all(spot[0] > spot[1] + 60 for spot in red)
    assert spots[""][0] < spots[""][1] + 60


def test_a_picture_with_hints_is_coloured_though_it_has_colours(hint_model: Path) -> None:
    save_picture("p/a.png", np.dstack([gray(1), gray(2), gray(3)]))
    save_picture("p/b.png", np.dstack([gray(4), gray(5), gray(6)]))
    Path("points.json").write_text(json.dumps({"a": [RED]}))
    assert run_stage("colorize", "p", "--model", hint_model, "--hints", "points.json", "--keep-coloured") == 0
    assert not np.array_equal(frame_of("out/a.png").pixels, frame_of("p/a.png").pixels)
    assert np.array_equal(frame_of("out/b.png").pixels, frame_of("p/b.png").pixels)


def test_a_hint_outside_one_of_several_pictures_fails_that_one(
    hint_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        save_picture(f"p/{name}.png", gray(0))
    Path("points.json").write_text(json.dumps({"a": [{**RED, "x": 999}]}))
    assert run_stage("colorize", "p", "--model", hint_model, "--hints", "points.json") == 1
    assert "p/a.png: the hint at 999, 20 lies outside the picture of 56 x 40 px" in capsys.readouterr().err
    assert results() == ["b.png"]


def test_hints_for_a_model_without_them_are_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_picture("a.png", gray(0))
    Path("points.json").write_text(json.dumps([RED]))
    assert run_stage("colorize", "a.png", "--model", model, "--hints", "points.json") == 2
    assert "takes no hints: it is of recipe coco" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_palette_gives_all_pictures_the_colours_of_one(model: Path) -> None:
    for i in range(2):
        save_picture(f"p/{i}.png", gray(i))
    reference = np.zeros((30, 40, 4), np.uint8)
    reference[..., 2], reference[..., 3] = 255, 255
    reference[:10] = (255, 0, 0, 0)  # which nobody sees
    save_picture("blue.png", np.full((30, 40, 3), (90, 110, 170), np.uint8))
    Image.fromarray(reference).save("clear.png")
    found = colorize.read_palette(Path("clear.png"))
    blue = colorize.read_palette(Path("blue.png"))
    assert found[1] < blue[1] < -0.2
    assert run_stage("colorize", "p", "--model", model, "--palette", "blue.png") == 0
    for path in Path("out").glob("*.png"):
        ab = rgb2lab(frame_of(path).pixels)[..., 1:].mean((0, 1))
        assert np.abs(ab - 110 * blue[:2].numpy()).max() < 6
    reference[..., 3] = 0
    Image.fromarray(reference).save("clear.png")
    with pytest.raises(UserError, match=r"clear.png is wholly transparent"):
        colorize.read_palette(Path("clear.png"))


def test_panels_are_coloured_one_by_one(model: Path) -> None:
    page = np.full((200, 300), 255, np.uint8)
    for left in (10, 160):
        page[10:190, left : left + 130] = 0
        page[13:187, left + 3 : left + 127] = gray(left, 174, 124)
    save_picture("page.png", page)
    assert run_stage("colorize", "page.png", "--model", model, "--panels") == 0
    assert run_stage("colorize", "page.png", "--model", model, "--out", "whole") == 0
    first = Image.fromarray(page[:, :150])
    first.save("first.png")
    assert run_stage("colorize", "first.png", "--model", model) == 0
    panel, alone, whole = (
        frame_of(name).pixels.astype(int)[15:185, 15:135]
        for name in ("out/page.png", "out/first.png", "whole/page.png")
    )
    assert np.abs(panel - alone).max() <= 1
    assert np.abs(panel - whole).max() > 3


def test_an_interrupted_call_leaves_whole_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(StandInRunner):
        def run(self, pictures: list[Any], hints: Any = None) -> list[Any]:
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().run(pictures)

    for i in range(6):
        save_picture(f"p/{i}.png", gray(i, 40 + i))
    monkeypatch.setattr("inference.pipeline.BATCH", 1)
    monkeypatch.setattr(runner, "Runner", lambda *_, **__: Interrupted())
    assert run_stage("colorize", "p", "--model", "any.ts") == cli.INTERRUPTED
    assert "interrupted" in capsys.readouterr().err
    assert results() == ["0.png", "1.png", "2.png"]


# one image, from Python


LONE = """
import builtins
real, absent = builtins.__import__, ("data", "training", "evaluation", "reporting", "dataset", "torchvision")

def only_what_inference_needs(name, *arguments):
    if name.partition(".")[0] in absent:
        raise ImportError(f"{name} is not here")
    return real(name, *arguments)

builtins.__import__ = only_what_inference_needs
import colorize
colorize.command(colorize.main)
"""


def test_a_terminal_shows_a_line_per_file_under_a_bar_that_is_gone_at_the_end(model: Path) -> None:
    for name in ("a.png", "c.png"):
        save_picture(name, gray(0))
    Path("b.png").touch()
    command = [sys.executable, "-W", "ignore", ROOT / "colorize.py", "a.png", "b.png", "c.png", "--model", model]
    code, said = run_in_terminal(command, env={**os.environ, "COLUMNS": "90", "OMP_NUM_THREADS": "1"})
    assert code == 1
    assert re.search(r"colourising: +\d+%\|.*\| \d/3 \[", said)  # the bar is drawn
    screen = [
        line.rpartition("\r")[2] for line in said.replace("\r\n", "\n").removesuffix("\n").split("\n")
    ]  # as it stands at the end
    header, *lines = [re.sub(r"\d+\.\d+ s", "T", line) for line in screen]
    assert header.startswith(f"model {model}: ")
    assert sorted(lines[:3]) == ["a.png -> out/a.png, T", "c.png -> out/c.png, T", f"failed: {lines[-1][10:]}"]
    assert lines[3:] == ["3 files: 2 done, 1 failed; T, in out/", "not done: b.png: not an image that can be read"]


@pytest.mark.slow
def test_inference_needs_no_other_folder_and_no_torchvision(model: Path) -> None:
    save_picture("x.png", gray(0))
    command = [sys.executable, "-W", "ignore", "-c", LONE, "x.png", "--model", str(model)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, text=True, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert frame_of("out/x.png").pixels.shape == (40, 56, 3)


def expected(model: Path, pixels: NDArray) -> NDArray:
    return runner.Runner(model, torch.device("cpu")).run([pixels])[0]


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_files_and_bytes_become_bytes_of_the_same_format(name: str, model: Path) -> None:
    deep = name == "x.png"
    notes = {} if deep else {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x0e\0\x02\0\0\0\4abc\0\0\0\0\0"}
    path = save_picture(name, gray(0, dtype=np.uint16 if deep else np.uint8), **notes)
    before = path.read_bytes()
    results = {colorize.colorize(image, model, "cpu") for image in (name, path, before)}
    assert len(results) == 1
    assert (path.read_bytes(), list(Path().iterdir())) == (before, [path])  # nothing is written
    ours = expected(model, frame_of(name).pixels)
    path.write_bytes(results.pop())
    assert frame_of(name).pixels.dtype == ours.dtype
    assert np.abs(frame_of(name).pixels.astype(int) - ours).mean() < (1 if deep else 8)
    with Image.open(name) as image:
        assert deep or image.getexif()[0x010E] == "abc"


def test_animations_keep_their_frames_and_what_cannot_be_written_becomes_png(model: Path) -> None:
    first, second = map(Image.fromarray, (gray(0), gray(1)))
    first.save("x.gif", save_all=True, append_images=[second], duration=50)
    Path("y.gif").write_bytes(colorize.colorize("x.gif", model, "cpu"))
    assert scan(Path("y.gif")).durations == scan(Path("x.gif")).durations
    assert [chroma(frame.pixels) > 5 for frame in frames_of("y.gif")] == [True, True]
    first.save("x.jp2")
    assert colorize.colorize(Path("x.jp2"), model, "cpu").startswith(b"\x89PNG")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_a_pil_image_becomes_one(mode: str, model: Path) -> None:
    deep = mode == "I;16"
    image = Image.fromarray(gray(0, dtype=np.uint16 if deep else np.uint8))
    image = image if deep else image.convert(mode)
    before = image.tobytes()
    result = colorize.colorize(image, model, "cpu")
    assert isinstance(result, Image.Image)
    assert (result.mode, result.size) == ("RGBA" if "A" in mode else "RGB", image.size)
    assert chroma(np.asarray(result)[..., :3]) > 2
    assert (image.tobytes(), image.mode) == (before, mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gray(0)).save("x.png", exif=exif)
    with Image.open("x.png") as image:
        assert colorize.colorize(image, model, "cpu").size == (40, 56)  # upright


@pytest.mark.parametrize(
    ("kind", "dtype", "shape"),
    [
        ("L", np.uint8, ()), ("L", np.uint16, (1,)), ("L", np.float32, (3,)), ("L", np.float64, (4,)),
        ("sketch", np.uint8, (4,)), ("sketch", np.float32, (4,)), ("sketch", np.uint16, ()),
    ],
)  # fmt: skip
def test_an_array_becomes_one_of_its_dtype(
    kind: str, dtype: Any, shape: tuple[int, ...], model: Path, line_model: Path
) -> None:
    path = model if kind == "L" else line_model
    image = gray(0, dtype=np.uint16).repeat(*shape or (1,)).reshape(40, 56, *shape)
    if shape == (4,):
        image[..., 3] = gray(1, dtype=np.uint16)
    white = 1.0 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    image = (image / 65535 * white).astype(dtype)
    before = image.copy()
    result = colorize.colorize(image[::-1], path, "cpu")[::-1]  # strides may be negative
    assert (result.dtype, result.shape) == (dtype, (40, 56, 4 if shape == (4,) else 3))
    assert np.array_equal(image, before)
    if shape == (4,):
        opaque = np.full((40, 56), white, dtype)
        assert np.array_equal(result[..., 3], image[..., 3] if kind == "L" else opaque)
    else:
        ours = expected(path, image[::-1].reshape(40, 56, -1).copy())[::-1]
        assert np.abs(result / white - ours / white).max() < 1e-6
    assert np.ptp(result[..., :3] / white, axis=2).mean() > 0.02


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "got NoneType"),
        ("missing.png", "missing.png: no such file"),
        (Path("folder"), "folder"),
        (b"hello", "not an image"),
        (np.zeros((4, 5), np.float16), "got float16"),
        (np.zeros((4, 5, 2), np.uint8), r"got \(4, 5, 2\)"),
        (np.zeros((0, 5, 3), np.uint8), r"got \(0, 5, 3\)"),
        (np.full((4, 5), 255.0), "in .0, 1.* 255"),
        (np.full((4, 5), np.nan), "in .0, 1.*nan"),
        (Image.new("F", (4, 5), float("nan")), "NaN"),
    ],
)
def test_what_is_no_image_is_a_users_error(image: Any, words: str, model: Path) -> None:
    Path("folder").mkdir()
    with pytest.raises(UserError, match=words):
        colorize.colorize(image, model, "cpu")


def test_a_cut_file_or_a_bad_model_or_device_is_a_users_error(model: Path) -> None:
    path = save_picture("x.jpg", gray(0, 200, 200))
    path.write_bytes(path.read_bytes()[:900])
    with Image.open(path) as image:
        for given in (path, path.read_bytes(), image):
            with pytest.raises(UserError, match="truncated"):
                colorize.colorize(given, model, "cpu")
    for arguments in (("none.ts", "cpu"), (model, "tpu")):
        with pytest.raises(UserError, match=r"no model .*none\.ts|no device tpu"):
            colorize.colorize(gray(0), *arguments)


def test_a_model_is_loaded_once_by_all_threads_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, loaded, real = write_model(tmp_path / "m.ts"), [], runner.load_model
    monkeypatch.setattr(runner, "load_model", lambda *given: loaded.append(given) or real(*given))
    pictures = [gray(i) for i in range(4)]
    alone = [expected(path, picture[..., None]) for picture in pictures]
    loaded.clear()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda picture: colorize.colorize(picture, path, "cpu"), pictures))
    assert len(loaded) == 1
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found, alone, strict=True))
    os.utime(path, (9, 9))
    colorize.colorize(pictures[0], str(path), "cpu")
    assert len(loaded) == 2
