"""colorize.py: one call for many files; what it prints, where results go, and how it ends."""

import io
import json
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from test_pipeline import StandIn, chroma, frame_of, gray, save, write_model

import colorize
import export
from config import ROOT
from imaging.files import FORMS, scan
from inference import pipeline, runner
from runtime import cli


@pytest.fixture(scope="session")
def model(trained: Path) -> Path:
    """Return an exported generator."""
    return export.main(run=trained, out=trained.parent / "model.ts", device="cpu")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Return a folder with gray scans of several sizes and formats, two levels deep."""
    for name, (height, width) in {
        "one.png": (37, 50),
        "album/two.JPG": (80, 33),
        "album/three.tif": (1, 1),
    }.items():
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width), np.uint8)).save(path)
    return tmp_path / "scans"


def call(*arguments: Any, monkeypatch: pytest.MonkeyPatch, stdin: bytes = b"") -> int:
    """Go through the command line, in this process; returns the exit code."""
    monkeypatch.setattr("sys.argv", ["colorize.py", *map(str, arguments)])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
    try:
        cli.command(colorize.main)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def command_line(*arguments: Any, **how: Any) -> subprocess.CompletedProcess[str]:
    """Go through the real command line."""
    return subprocess.run(
        [sys.executable, str(ROOT / "colorize.py"), *map(str, arguments)],
        text=True,
        capture_output=True,
        **how,
    )


def records(printed: str) -> list[dict[str, Any]]:
    """Return what stdout said, which is JSON and nothing else."""
    return [json.loads(line) for line in printed.splitlines()]


# results


def test_keeps_names_folders_and_sizes(model: Path, scans: Path) -> None:
    written = colorize.main([scans], model=model, out=Path("out"), device="cpu")
    assert [path.as_posix() for path in written] == [
        "out/album/three.tif",
        "out/album/two.JPG",
        "out/one.png",
    ]
    for path in written:
        with Image.open(path) as ours, Image.open(scans / path.relative_to("out")) as scan:
            assert (ours.size, ours.mode, ours.format) == (scan.size, "RGB", scan.format)
    assert chroma(frame_of("out/one.png").pixels) > 0


def test_names_may_be_plain_strings(model: Path, scans: Path) -> None:
    written = colorize.main(["scans/one.png"], model=str(model), out="other", device="cpu")
    assert written == [Path("other/one.png")]


def test_a_single_input_needs_no_list(model: Path, scans: Path) -> None:
    assert colorize.main("scans/one.png", model=model, device="cpu") == [Path("out/one.png")]
    assert len(colorize.main(scans, model=model, device="cpu")) == 3


def test_results_go_into_out_where_no_folder_is_named(model: Path, scans: Path) -> None:
    assert colorize.main([scans / "one.png"], model=model, device="cpu") == [Path("out/one.png")]


def test_model_is_by_default_that_of_the_newest_run(scans: Path) -> None:
    with pytest.raises(ValueError, match="no run in runs/"):
        colorize.main([scans], device="cpu")
    for name in ("old", "new"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no model runs/new/generator.ts; write one with: python export.py"):
        colorize.main([scans], device="cpu")
    write_model(Path("runs/new/generator.ts"))
    assert len(colorize.main([scans], device="cpu")) == 3


# what it says


def test_stdout_is_a_line_of_json_per_file_and_stderr_a_summary(
    model: Path, scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (scans / "broken.jpg").write_bytes(b"")
    save("out/one.png", gray(0))
    colour = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    save("scans/colour.png", colour.repeat(8, 0).repeat(8, 1))
    assert call(scans, "--model", model, "--keep-coloured", "--jobs", 2, monkeypatch=monkeypatch) == 1
    said = capsys.readouterr()
    lines = records(said.out)
    assert [(line["file"], line["status"]) for line in lines] == [
        (str(scans / "album/three.tif"), "done"),
        (str(scans / "album/two.JPG"), "done"),
        (str(scans / "broken.jpg"), "failed"),
        (str(scans / "colour.png"), "kept"),
        (str(scans / "one.png"), "skipped"),
    ]
    reason = f"{scans / 'broken.jpg'}: not an image that can be read"
    assert lines[2] == {
        "file": str(scans / "broken.jpg"),
        "output": "out/broken.jpg",
        "status": "failed",
        "reason": reason,
        "frames": 0,
        "seconds": lines[2]["seconds"],
    }
    summary, failed = said.err.splitlines()
    assert summary.startswith("5 files: 2 done, 1 kept, 1 skipped, 1 failed; ")
    assert summary.endswith(" s, in out/")
    assert failed == f"not done: {reason}"
    assert not Path("out/broken.jpg").exists()


def test_every_line_goes_out_at_once(model: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe(io.StringIO):
        seen: ClassVar[list[int]] = []

        def flush(self) -> None:
            self.seen.append(self.getvalue().count("\n"))

    monkeypatch.setattr("sys.stdout", Pipe())
    colorize.main([scans], model=model, device="cpu")
    assert {1, 2, 3} <= set(Pipe.seen)


@pytest.mark.parametrize("error", [RuntimeError("the network fell over"), RuntimeError(), MemoryError()])
def test_whatever_fails_is_named_at_the_end(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def paint(self: StandIn, pictures: list[Any]) -> list[Any]:
        raise error

    monkeypatch.setattr(colorize, "Painter", lambda *_, **__: StandIn())
    monkeypatch.setattr(StandIn, "paint", paint)
    save("a/one.png", gray(0))
    save("a/two.png", gray(0))
    assert call("a", "--model", "any.ts", monkeypatch=monkeypatch) == 1
    said = capsys.readouterr()
    assert [line["status"] for line in records(said.out)] == ["failed", "failed"]
    first, second = said.err.splitlines()[1:]
    assert first.startswith("not done: ")
    assert "a/one.png" in first
    assert "a/two.png" in second
    assert (str(error) or type(error).__name__) in first


def test_notes_of_finished_files_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[weakref.ref] = []

    def watched(path: Path) -> Any:
        found = scan(path)
        notes.append(weakref.ref(found.notes))
        return found

    monkeypatch.setattr(pipeline, "scan", watched)
    monkeypatch.setattr(colorize, "Painter", lambda *_, **__: StandIn())
    for i in range(40):
        save(f"p/{i:02}.png", gray(0))
    held: list[int] = []
    monkeypatch.setattr(
        colorize.tqdm, "write", lambda *_, **__: held.append(sum(bool(note()) for note in notes))
    )
    assert len(colorize.main([Path("p")], model=Path("any.ts"), jobs=1)) == 40
    assert max(held) < 20  # those under way


def test_the_real_command_line(model: Path, scans: Path) -> None:
    good = command_line("scans/album", "--model", model, "--device", "cpu")
    assert good.returncode == 0
    assert [line["status"] for line in records(good.stdout)] == ["done", "done"]
    assert all(line["seconds"] > 0 and line["frames"] == 1 for line in records(good.stdout))
    (summary,) = good.stderr.splitlines()
    assert summary.startswith("2 files: 2 done; ")
    mistake = command_line("scans/none.png", "--model", model)
    assert (mistake.returncode, mistake.stdout) == (2, "")
    assert mistake.stderr == "colorize.py: no file or folder scans/none.png\n"


def test_a_list_on_standard_input(model: Path, scans: Path) -> None:
    listed = "scans/one.png\nscans/missing.png\nscans/album/two.JPG\n"
    done = command_line("-", "--model", model, "--format", "png", input=listed)
    assert done.returncode == 1
    assert [(line["output"], line["status"]) for line in records(done.stdout)] == [
        ("out/scans/one.png", "done"),
        ("out/scans/missing.png", "failed"),
        ("out/scans/album/two.png", "done"),
    ]
    assert "not done: scans/missing.png: no such file" in done.stderr


@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_a_list_in_this_process(
    end: bytes, model: Path, scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = b"scans/one.png" + end + b"scans/album/two.JPG" + end
    assert call("-", "--model", model, monkeypatch=monkeypatch, stdin=listed) == 0
    assert Path("out/scans/album/two.JPG").exists()
    assert len(records(capsys.readouterr().out)) == 2


# what is there is left alone


def test_a_call_can_be_repeated(
    model: Path, scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def statuses(*options: str) -> list[str]:
        assert call(scans, "--model", model, *options, monkeypatch=monkeypatch) == 0
        return [line["status"] for line in records(capsys.readouterr().out)]

    assert statuses() == ["done"] * 3
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.*")}
    assert statuses() == ["skipped"] * 3
    Path("out/one.png").unlink()
    assert statuses() == ["skipped", "skipped", "done"]
    assert statuses("--overwrite") == ["done"] * 3
    assert all(path.stat().st_mtime_ns > before[path] for path in before)


# options


@pytest.mark.parametrize("form", FORMS)
def test_a_format_for_all(form: str, model: Path, scans: Path) -> None:
    written = colorize.main([scans], model=model, format_=form, device="cpu")
    expected = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tif": "TIFF"}[form]
    for path in written:
        assert path.suffix == f".{form}"
        with Image.open(path) as image:
            assert image.format == expected


def test_sheets_are_twice_as_wide(model: Path, scans: Path) -> None:
    colorize.main([scans], model=model, compare=True, device="cpu")
    sheet, given, result = (
        frame_of(name).pixels for name in ("out/one_compare.png", "scans/one.png", "out/one.png")
    )
    assert np.array_equal(sheet, np.concatenate([given, result], 1))
    assert sheet.shape == (37, 100, 3)


def test_options_reach_the_model(
    scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, made = write_model(Path("model.ts")), []

    class Watched(runner.Painter):
        def __init__(self, *arguments: Any, **attributes: Any) -> None:
            super().__init__(*arguments, **attributes)
            made.append(self.model)

    monkeypatch.setattr(colorize, "Painter", Watched)
    options = ["--size", 48, "--strength", 0.5, "--upsampling", "bicubic"]
    assert call(scans, "--model", path, monkeypatch=monkeypatch) == 0
    assert call(scans, "--model", path, *options, "--out", "other", monkeypatch=monkeypatch) == 0
    assert [(one.size, one.strength, one.upsampling) for one in made] == [
        (32, 1.0, "guided"),
        (48, 0.5, "bicubic"),
    ]


def test_options_change_the_pictures() -> None:
    path = write_model(Path("model.ts"))
    save("x.png", gray(0, 90, 130))
    pictures = {}
    for name, how in {
        "plain": {},
        "size": {"size": 64},
        "upsampling": {"upsampling": "bicubic"},
        "muted": {"strength": 0.5},
        "gray": {"strength": 0.0},
    }.items():
        colorize.main(["x.png"], model=path, out=name, device="cpu", **how)
        pictures[name] = frame_of(f"{name}/x.png").pixels
    assert len({picture.tobytes() for picture in pictures.values()}) == 5
    assert chroma(pictures["gray"]) < 1
    assert 0.3 < chroma(pictures["muted"]) / chroma(pictures["plain"]) < 0.8


# mistakes in the call


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.jpg"], "no file or folder missing.jpg"),
        (["scans/*.webp"], "no file matches scans/*.webp"),
        (["empty"], "no image in empty: looked for"),
        (["-"], "no file name on standard input"),
        (["scans", "--out", "scans"], "would overwrite an input; name another --out"),
        (
            ["scans", "--out", "scans/one.png"],
            "scans/one.png cannot be written to (File exists); name another",
        ),
        (["scans", "--out", "scans/one.png/x"], "cannot be written to (Not a directory); name another --out"),
        (["scans", "--format", "gif"], "no format gif: use one of png jpg webp tif"),
        (["scans", "--format", "JPG"], "no format JPG: use one of png jpg webp tif"),
        (["scans", "--upsampling", "nearest"], "no upsampling nearest: use one of guided bicubic"),
        (["scans", "--size", "8"], "--size"),
        (["scans", "--size", "large"], "--size"),
        (["scans", "--strength", "-1"], "--strength"),
        (["scans", "--strength", "101"], "--strength"),
        (["scans", "--jobs", "0"], "--jobs"),
        (["scans", "--device", "tpu"], "tpu"),
        (["scans", "--modle", "x"], "--modle"),
        ([], "FILE|FOLDER|PATTERN"),
        (["scans", "--model", "none.ts"], "no model none.ts; write one with: python export.py"),
        (["scans", "--model", "scans/one.png"], "scans/one.png is not a TorchScript file, or it is damaged"),
        (["scans", "--model", "scans"], "no model scans; write one with: python export.py"),
    ],
)
def test_mistakes_are_found_before_any_work(
    model: Path,
    scans: Path,
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("empty").mkdir()
    before = sorted(Path().rglob("*"))
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(model)]
    assert call(*arguments, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("colorize.py: ")
    assert said.err.count("\n") == 1
    assert sentence in said.err
    assert sorted(Path().rglob("*")) == before


def test_no_run_is_said_in_a_sentence(
    scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(scans, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "no run in runs/" in said.err
    assert said.err.count("\n") == 1
    assert not Path("out").exists()


def test_no_output_replaces_any_input(model: Path, scans: Path) -> None:
    original = save("scans/album/one.png", gray(0))
    before = original.read_bytes()
    with pytest.raises(ValueError, match="may be an original"):
        colorize.main([scans], model=model, out=scans / "album", overwrite=True, device="cpu")
    assert original.read_bytes() == before
    colorize.main([scans], model=model, out=scans / "album", device="cpu")  # taken for a former result
    assert original.read_bytes() == before


def test_two_files_of_one_name_are_one_failure(
    model: Path, scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save("more/one.png", gray(0, 90))
    assert call("scans", "more", "--model", model, monkeypatch=monkeypatch) == 1
    said = capsys.readouterr()
    assert [line["status"] for line in records(said.out)] == ["done", "done", "done", "failed"]
    assert said.err.splitlines()[1:] == [
        "not done: more/one.png: scans/one.png becomes out/one.png too; colourise it with another --out"
    ]
    assert frame_of("out/one.png").pixels.shape == (37, 50, 3)


# starting


def test_starting_does_not_import_torchvision() -> None:
    code = "import sys, colorize; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_an_interrupted_call_leaves_whole_files(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(StandIn):
        def paint(self, pictures: list[Any]) -> list[Any]:
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().paint(pictures)

    for i in range(6):
        save(f"p/{i}.png", gray(i, 40 + i))
    monkeypatch.setattr(colorize, "Painter", lambda *_, **__: Interrupted())
    assert call("p", "--model", "any.ts", monkeypatch=monkeypatch) == cli.INTERRUPTED
    assert capsys.readouterr().err.strip() == "colorize.py: interrupted; what was saved before is kept"
    assert sorted(path.name for path in Path("out").iterdir()) == ["0.png", "1.png", "2.png"]
    monkeypatch.setattr(colorize, "Painter", runner.Painter)
    colorize.main(["p"], model=model, device="cpu")
    assert len(list(Path("out").iterdir())) == 6
