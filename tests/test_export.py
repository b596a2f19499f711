"""export.py: generator.ts equals eager, says what it is, runs with torch alone, and is never half written."""

import dataclasses
import importlib.util
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CPU, gray, make_run, save_picture, saved_weights
from torch import nn

import export
from config import ROOT, VERSION, UserError
from evaluation import best_epoch, scores
from inference import checkpoint, exporters, web
from inference.checkpoint import load_exported
from reporting import summary
from runtime import device
from runtime.atomic import load, save
from runtime.cli import command
from runtime.device import computed_in
from runtime.run_folder import epoch_path, read_run

README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
BARE = """
import json, sys, torch
torch.set_num_threads(1)
files = {"tinct.json": ""}
model = torch.jit.load(sys.argv[2], _extra_files=files)
for shape in [(1, 1, 1, 1), (1, 3, 37, 251), (2, 1, 60, 9)]:
    for dtype, high in {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}.items():
        image = (torch.rand(shape) * high).to(dtype)
        colour = model(image)
        assert colour.dtype == dtype and colour.shape == (shape[0], 3, *shape[2:]), (dtype, colour.shape)
gray = torch.randint(0, 256, (1, 1, 90, 70), dtype=torch.uint8)
print(json.dumps([json.loads(files["tinct.json"]), gray.tolist(), model(gray).tolist()]))
for name, value in (("size", model.size // 2), ("upsampling", "bicubic"), ("strength", 0.0)):
    before = model(gray)
    setattr(model, name, value)
    assert not torch.equal(model(gray), before), name
try:
    model(gray.int())
except torch.jit.Error as error:
    assert "an image is uint8, uint16, or floating point" in str(error)
else:
    raise AssertionError("it took an int32 image")
loaded = [str(getattr(module, "__file__", "")) for module in list(sys.modules.values())]
ours = [file for file in loaded if file.startswith(sys.argv[1]) and not file.startswith(sys.prefix)]
assert not ours, ours
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run with epochs 1 and 2 that differ; exports compare on one small size."""
    monkeypatch.setattr(exporters, "SIZES", ((19, 34),))
    monkeypatch.setattr(exporters, "BATCHES", (2,))
    folder = make_run(tmp_path / "run", "coco", size=32, depth=3)
    payload = load(epoch_path(folder, 1))
    payload["generator"]["last.0.weight"] *= 2
    save(epoch_path(folder, 2), {**payload, "epoch": 2})
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Return what is in a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("epoch", "precision", "limit"), [(None, "fp32", 0), ("1", "fp16", 4), ("1", "bf16", 20)])
def test_the_file_equals_eager_and_says_what_it_is(run: Path, epoch: str | None, precision: str, limit: int) -> None:
    path = export.main(run=run, epoch=epoch, precision=precision, device="cpu")
    assert path == run / "generator.ts"
    model, record = load_exported(path, CPU)
    told = {checkpoint.METADATA: ""}
    torch.jit.load(path, _extra_files=told)
    assert json.loads(told[checkpoint.METADATA]) == json.loads(record.to_json())
    assert (record.format, record.version, record.torch) == (2, VERSION, torch.__version__)
    assert (record.epoch, record.precision) == (int(epoch or 2), precision)
    assert record.recipe == read_run(run).recipe
    assert {parameter.dtype for parameter in model.parameters()} == {exporters.PRECISIONS[computed_in(precision, CPU)]}
    image = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    eager = checkpoint.load_colorizer(run, record.epoch, CPU)
    assert (model(image).int() - eager(image).int()).abs().max() <= limit


def test_the_best_epoch_is_exported_and_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="no scores in "):
        export.main(run=run, epoch="best", device="cpu")
    assert not (run / "generator.ts").exists()
    monkeypatch.setattr(best_epoch, "best_epoch", lambda _: 1)  # not the last
    monkeypatch.setattr(scores, "read_scores", lambda _: "the scores")
    monkeypatch.setattr(summary, "why_best", lambda scores: f"best by {scores}")
    path = export.main(run=run, epoch="best", device="cpu")
    assert load_exported(path, CPU).record.epoch == 1
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [f"exporting {run}: {load_exported(path, CPU).record}; compared on cpu", "best by the scores"]


def test_by_default_the_best_scored_epoch_is_exported_else_the_last(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_exported(export.main(run=run, device="cpu"), CPU).record.epoch == 2
    assert "(the last: none is scored)" in capsys.readouterr().out
    (run / "scores.json").write_text("{}")
    monkeypatch.setattr(best_epoch, "best_epoch", lambda _: 1)
    record = load_exported(export.main(run=run, device="cpu"), CPU).record
    assert record.epoch == 1
    said = capsys.readouterr().out
    assert f"exporting {run}: recipe coco, epoch 1, fp32, trained on {record.trained_on} (the best scored); " in said
    assert record.trained_on == "drawn scenes alone: expect wrong colours on photographs"


def test_the_mean_of_epochs_is_exported(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = export.main(run=trained, average="1-2", out=Path("mean.ts"), trainable=True, device="cpu")
    model, record = load_exported(path, CPU)
    assert (record.epoch, record.averaged) == (2, "1-2")
    assert f"exporting {trained}: recipe coco, mean of epochs 1-2, fp32, trained on" in capsys.readouterr().out
    first, second = (saved_weights(trained, epoch) for epoch in (1, 2))
    found = {key: value for key, value in model.generator.state_dict().items() if value.is_floating_point()}
    assert all(torch.allclose(found[key], (first[key] + second[key]) / 2, atol=1e-6) for key in found)
    assert any((first[key] != second[key]).any() for key in found)
    again = export.main(model=path, out=Path("again.ts"), device="cpu")
    assert load_exported(again, CPU).record.averaged == "1-2"
    for given in ("2-2", "1", "7-9", "2-1"):
        with pytest.raises(UserError, match=rf"^--average is FIRST-LAST, with two saved epochs .* got {given}$"):
            export.main(run=trained, average=given, device="cpu")
    with pytest.raises(UserError, match=r"^--average and --epoch name two sets of weights"):
        export.main(run=trained, average="1-2", epoch="1", device="cpu")


def test_weights_of_another_file_are_mixed_in(trained: Path) -> None:
    given = {"device": "cpu", "trainable": True}
    other = export.main(run=trained, epoch="1", out=Path("other.ts"), **given)
    path = export.main(run=trained, epoch="2", mix=f"{other}=0.25", out=Path("mixed.ts"), **given)
    model, record = load_exported(path, CPU)
    assert record.trained_on.endswith(", mixed with 25% of other.ts")
    first, second = (saved_weights(trained, epoch) for epoch in (1, 2))
    found = {key: value for key, value in model.generator.state_dict().items() if value.is_floating_point()}
    assert all(torch.allclose(found[key], 0.25 * first[key] + 0.75 * second[key], atol=1e-6) for key in found)
    folded = export.main(run=trained, epoch="1", out=Path("folded.ts"), device="cpu")
    for mix, words in (
        (f"{folded}=0.3", r"folded\.ts does not fit: --mix takes the same network, exported with --trainable"),
        ("other.ts", "--mix is FILE=SHARE"), ("other.ts=1.5", "--mix is FILE=SHARE"), ("none.ts=0.5", "no model"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            export.main(run=trained, epoch="2", mix=mix, **given)


def test_batch_statistics_are_exported(tmp_path: Path, run: Path) -> None:
    folder = make_run(tmp_path / "batch", "coco", size=32, depth=3, norm_stats="batch")
    model, record = load_exported(export.main(run=folder, device="cpu"), CPU)
    assert record.recipe.norm_stats == "batch"
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert not torch.equal(model(image)[:1], model(image[:1]))  # what stands beside a picture changes it


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 0), ("bf16", 1)])
def test_a_generator_ts_is_exported_again(
    run: Path, capsys: pytest.CaptureFixture[str], precision: str, limit: int
) -> None:
    first = export.main(run=run, precision=precision, device="cpu")
    second = export.main(model=first, out=run / "again.ts", device="cpu")
    one, other = load_exported(first, CPU), load_exported(second, CPU)
    assert other.record == dataclasses.replace(one.record, precision="fp32")
    image = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    apart = (one.module.float()(image).int() - other.module(image).int()).abs()
    assert apart.max() <= limit
    assert f"exporting {first}: {other.record}; compared on cpu" in capsys.readouterr().out
    before = first.read_bytes()
    with pytest.raises(UserError, match=r"generator\.ts is the model itself: name another file with --out"):
        export.main(model=first, device="cpu")
    assert first.read_bytes() == before


def test_model_and_run_name_two_models_and_a_damaged_model_none(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "bad.ts").write_bytes(b"no model")
    before = files(run)
    for options, words in (
        (["--run", run, "--model", run / "bad.ts"], "--model and --run name two models"),
        (["--epoch", "1", "--model", run / "bad.ts"], "--model and --run name two models"),
        (["--model", run / "bad.ts"], "not a TorchScript file"),
        (["--model", run / "none.ts"], "no model"),
    ):
        assert call(monkeypatch, *options, "--device", "cpu") == 2
        said = capsys.readouterr().err
        assert (words in said, said.count("\n")) == (True, 1), said
    assert files(run) == before


def test_a_page_takes_models_of_lightness_to_ab_alone(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript", reason="colorizer.html needs onnx and onnxscript")
    manga = make_run(tmp_path / "manga", "manga")
    assert call(monkeypatch, "--run", manga, "--format", "html") == 2
    assert "python serve.py --model FILE" in capsys.readouterr().err
    colorizer = checkpoint.build_colorizer(read_run(run).recipe)
    with monkeypatch.context() as patch:
        patch.setattr(web, "MAX_NETWORK", 1000)  # which is told before minutes of work
        with pytest.raises(UserError, match=r"the network has .*: python serve\.py --model FILE"):
            web.write_network(colorizer)
    monkeypatch.setattr(web, "fetch_runtime", lambda: dict.fromkeys(web.RUNTIME_FILES, b"x"))
    monkeypatch.setattr(web, "write_network", lambda _: b"network")
    path = export.main(run=run, format_="html", device="cpu")
    assert (path, path.stat().st_size < 300_000) == (Path("colorizer.html"), True)
    text = path.read_text()
    assert "connect-src 'none'" in text
    assert "{{" not in text
    path.unlink()
    monkeypatch.setattr(web, "MAX_PAGE", 1000)
    with pytest.raises(UserError, match="use a smaller network"):
        export.main(run=run, format_="html", device="cpu")
    assert not path.exists()


def test_the_table_has_a_row_per_comparison_and_a_column_per_shape(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporters, "SIZES", ((37, 61), (19, 34)))
    monkeypatch.setattr(exporters, "BATCHES", (1, 3))
    monkeypatch.setattr(device, "pick_device", lambda name: torch.device("cpu:0"))  # beside "cpu"
    path = export.main(run=str(run), out=str(run / "x.ts"))
    _, *table, wrote, use = capsys.readouterr().out.splitlines()
    names = [f"eager, {kind} on {on}" for on in ("cpu", "cpu:0") for kind in ("scripted", "reloaded")]
    expected = ["levels of 255: max (mean)", "trained, fp32 on cpu", *names]
    assert [line[:28].strip() for line in table] == expected
    heads = [table[0][28 + 18 * i :][:16].strip() for i in range(4)]
    assert heads == ["1 x 37 x 61", "1 x 19 x 34", "3 x 37 x 61", "3 x 19 x 34"]
    assert {len(line) for line in table} == {28 + 4 * 18 - 2}
    assert f"wrote {path}, " in wrote
    assert f"python colorize.py photo.jpg --model {path}" in use


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "fp8"], "use one of fp32 fp16 bf16"),
        (["--format", "html", "--precision", "fp16"], "not of --format html"),
        (["--format", "html", "--trainable"], "not of --format html"),
        (["--format", "tflite"], "use one of ts onnx pt2"),
        (["--device", "tpu"], "no device tpu"),
        (["--out", "."], "is a folder; name a file with --out"),
        (["--epoch", "7"], "epoch 7 is not saved"),
        (["--format", "onnx"], "needs onnx onnxscript: pip install onnx onnxscript"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_work(
    options: list[str],
    words: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "onnx" in options:
        there = {"onnx": None, "onnxscript": None, "onnxruntime": object()}
        monkeypatch.setattr(importlib.util, "find_spec", there.get)
    before = files(run)
    assert call(monkeypatch, "--run", run, *options) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert words in said.err
    assert files(run) == before


def call(monkeypatch: pytest.MonkeyPatch, *options: object) -> object:
    """Run the command; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, options)])
    with pytest.raises(SystemExit) as stopped:
        command(export.main)
    return stopped.value.code


@pytest.mark.skipif(sys.platform != "linux", reason="limits a file's size as Linux does")
@pytest.mark.parametrize("form", ["ts", "pt2", "html"])
def test_a_full_disk_ends_in_a_sentence(
    form: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    program = torch.export.export(nn.Conv2d(3, 9, 3), (torch.rand(1, 3, 8, 8),))
    monkeypatch.setattr(exporters, "trace", lambda _: program)  # of a Colorizer it would take long
    monkeypatch.setattr(exporters, "require_onnx", lambda _: None)
    monkeypatch.setattr(web, "fetch_runtime", lambda: dict.fromkeys(web.RUNTIME_FILES, b"x"))
    monkeypatch.setattr(web, "write_network", lambda _: b"network")
    before, limits = files(run), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        code = call(monkeypatch, "--run", run, "--device", "cpu", "--format", form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    said = capsys.readouterr().err
    assert (code, said.count("\n")) == (2, 1)
    assert "File too large" in said
    assert files(run) == before
    assert not Path("colorizer.html").exists()


@pytest.mark.parametrize("name", ["coco", pytest.param("restore", marks=pytest.mark.slow)])
def test_a_process_with_torch_alone_runs_the_file(name: str, run: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path / name, name)
    path = export.main(run=folder, device="cpu")
    command = [sys.executable, "-W", "ignore", "-I", "-c", BARE, str(ROOT), str(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    told, *images = json.loads(done.stdout)
    gray, colour = (torch.tensor(image, dtype=torch.uint8) for image in images)
    assert told["recipe"]["name"] == name
    eager = checkpoint.load_colorizer(folder, 1, CPU)(gray)
    assert (colour.int() - eager.int()).abs().max() <= 1
    assert (colour.int() - gray.int()).abs().max() > 4  # it has colour


def test_the_snippet_of_the_readme_colours_a_picture() -> None:
    (snippet,) = README
    assert snippet.index('os.environ.setdefault("OMP_WAIT_POLICY", "passive")') < snippet.index("import torch")
    Path("pretrained").symlink_to(ROOT / "pretrained")
    save_picture("old_photo.jpg", gray(1, 90, 120))
    check = "assert colour.shape == (1, 3, 90, 120) and colour.dtype == torch.uint8\n"
    check += "assert (colour[:, 0] != colour[:, 2]).any()"
    call = [sys.executable, "-W", "ignore", "-c", snippet + check]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
