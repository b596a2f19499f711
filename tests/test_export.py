"""generator.ts: equal to eager, alone with torch, half as large where asked, never half written."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from test_models import build, inputs
from test_recipes import shrunk
from torch import Tensor, nn

import export
from config import RECIPES, ROOT, VERSION, make_recipe
from evaluation import scores
from inference import checkpoint, exporters
from inference.colorizer import Colorizer, use_batch_statistics
from models import GENERATORS
from runtime import atomic, run_folder
from runtime.cli import command

CPU = torch.device("cpu")
EXTRACTORS = ("manga-ext", "manga-att-ext")  # a ResNet-50 at 360 px, which takes its time
TWINS = ("coco", "groups", "nazerigan32", "nazerigan224")  # differ from another recipe in training alone
KINDS = tuple(name for name in RECIPES if name not in (*EXTRACTORS, *TWINS))
BARE = """
import json, sys, traceback, torch
torch.set_num_threads(1)
HIGH = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1, torch.float64: 1}

def check(path, shapes):
    files = {"tinct.json": ""}
    model = torch.jit.load(path, _extra_files=files)
    for shape in shapes:
        levels = torch.randint(0, 256, shape)
        found = {}
        for dtype, high in HIGH.items():
            image = (levels.double() / 255 * high).to(dtype)
            given = image.clone()
            colour = model(image)
            assert torch.equal(image, given), dtype
            assert colour.dtype == dtype and colour.shape == (shape[0], 3, *shape[2:]), (dtype, colour.shape)
            found[dtype] = colour.double() * (255 / high)
            assert 0 <= found[dtype].min() and found[dtype].max() <= 255, dtype
        exact = found[torch.float64]
        assert all((colour - exact).abs().max() < 0.6 for colour in found.values()), shape
    gray = torch.randint(0, 256, (1, 1, 90, 70), dtype=torch.uint8)
    colour = model(gray)
    assert torch.equal(colour, model(gray.expand(-1, 3, -1, -1)))
    said = {"metadata": json.loads(files["tinct.json"]), "gray": gray.tolist(), "colour": colour.tolist()}
    for name, value in (("size", model.size // 2), ("upsampling", "bicubic"), ("strength", 0.0)):
        before = colour
        setattr(model, name, value)
        colour = model(gray)
        assert not torch.equal(colour, before), name
    assert (colour.amax(1).int() - colour.amin(1).int()).max() <= 1  # gray, but for rounding
    try:
        model(gray.int())
    except torch.jit.Error as error:
        assert "an image is uint8, uint16, or floating point" in str(error)
    else:
        raise AssertionError("it took an int32 image")
    return said

for path, shapes in json.loads(sys.argv[2]).items():
    try:
        print(json.dumps(check(path, shapes)))
    except Exception:
        sys.exit(path + traceback.format_exc())
files = [str(getattr(module, "__file__", "")) for module in list(sys.modules.values())]
assert not [file for file in files if file.rpartition("/")[0] == sys.argv[1]]
"""


def randomise(network: nn.Module) -> nn.Module:
    """Give BatchNorms the statistics of a trained network, and attention a weight; returns the network."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0.0, 0.3, generator=noise)
                module.running_var.uniform_(0.5, 2.0, generator=noise)
                module.weight.uniform_(0.3, 1.2, generator=noise)
                module.bias.normal_(0.0, 0.3, generator=noise)
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    return network


def make_run(folder: Path, name: str, **fields: Any) -> Path:
    """Write a run of a small version of a recipe with one saved epoch of random weights."""
    recipe = asdict(make_recipe(name, {**shrunk(name), **fields}))
    torch.manual_seed(0)
    generator = randomise(checkpoint.build_colorizer(recipe).generator)
    checkpoint.save_generator(folder, 1, recipe, generator)
    atomic.write_json(folder / "recipe.json", {key: {} for key in run_folder.RECORD} | {"recipe": recipe})
    return folder


def norms(network: nn.Module) -> int:
    """Return the number of BatchNorms."""
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def files(folder: Path) -> dict[str, bytes]:
    """Return what is in a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare on one small size only, where the comparison is not what is tested."""
    monkeypatch.setattr(exporters, "SIZES", ((19, 34),))
    monkeypatch.setattr(exporters, "BATCHES", (2,))


@pytest.fixture
def run(trained: Path, tmp_path: Path, quick: None) -> Path:
    """Return a copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_exported_file_equals_eager_and_says_what_it_is(run: Path) -> None:
    path = export.main(run=run, epoch=1, device="cpu")
    model, metadata = checkpoint.load_exported(path, CPU)
    assert path == run / "generator.ts"
    assert (metadata["epoch"], metadata["recipe"]["size"]) == (1, 32)
    image = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    eager = checkpoint.load_colorizer(run, 1, CPU)
    assert torch.equal(model(image), eager(image))


def score(run: Path, best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write scores by which an epoch is the best, and no curves."""
    monkeypatch.setattr(scores, "plot_scores", lambda *_: None)
    rows = {
        f"epoch_{n:04d}": {"ssim": 0.5 + (n == best), "stamp": run_folder.stamp(run, n, "key")}
        for n in (1, 2)
    }
    scores.write_scores(run, {"gray": {"ssim": 0.25}, **rows}, {}, [], {}, "ssim", [])


@pytest.mark.parametrize("best", [1, 2])
def test_the_best_epoch_is_exported_and_named(
    run: Path, best: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    score(run, best, monkeypatch)
    _, metadata = checkpoint.load_exported(export.main(run=run, epoch="best", device="cpu"), CPU)
    assert metadata["epoch"] == best
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"best of 2 scored epochs by ssim (higher): {best} with 1.5; gray 0.25"


def test_no_best_epoch_writes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"^no scores in .*, so no best epoch; score first: python eval"):
        export.main(run=run, epoch="best", device="cpu")
    score(run, 1, monkeypatch)
    run_folder.epoch_path(run, 1).write_bytes(run_folder.epoch_path(run, 2).read_bytes())
    with pytest.raises(ValueError, match="are older than its checkpoints"):
        export.main(run=run, epoch="best", device="cpu")
    assert capsys.readouterr().out == ""
    assert not (run / "generator.ts").exists()


def test_another_epoch_is_not_called_the_best(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    score(run, 1, monkeypatch)
    _, metadata = checkpoint.load_exported(export.main(run=run, epoch="2", device="cpu"), CPU)
    assert metadata["epoch"] == 2
    assert "best" not in capsys.readouterr().out


def test_working_size_can_be_set_after_loading(run: Path) -> None:
    model, _ = checkpoint.load_exported(export.main(run=run, device="cpu"), CPU)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    small = model(image)
    model.size = 64
    assert not torch.equal(model(image), small)


def test_a_difference_writes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = torch.jit.script(exporters.deployable(checkpoint.load_colorizer(run, 1, CPU), "fp32"))
    monkeypatch.setattr(torch.jit, "script", lambda _: other)
    with pytest.raises(ValueError, match=r"^eager, scripted on cpu: they differ by .*; nothing was written"):
        export.main(run=run, epoch=2, device="cpu")
    assert not list(run.glob("*generator.ts*"))


def test_batch_statistics_are_exported(run: Path) -> None:
    payload = atomic.load(run_folder.epoch_path(run, 2))
    payload["recipe"]["norm_stats"] = "batch"
    atomic.save(run_folder.epoch_path(run, 2), payload)
    record = run_folder.read_run(run)
    record["recipe"]["norm_stats"] = "batch"
    atomic.write_json(run / "recipe.json", record)
    model, metadata = checkpoint.load_exported(export.main(run=run, device="cpu"), CPU)
    assert metadata["recipe"]["norm_stats"] == "batch"
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert not torch.equal(model(image)[:1], model(image[:1]))  # what stands beside a picture changes it


def test_the_module_to_deploy_shares_nothing_with_the_trained_one(run: Path) -> None:
    trained = checkpoint.load_colorizer(run, 2, CPU)
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    module = exporters.deployable(trained, "bf16")
    ours = {tensor.data_ptr() for tensor in trained.state_dict().values()}
    assert not ours & {tensor.data_ptr() for tensor in module.state_dict().values()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


@pytest.mark.parametrize("broken", ["nan", "level", "type"])
def test_what_differs_is_refused(broken: str) -> None:
    def one(image: Tensor) -> Tensor:
        return image.expand(-1, 3, -1, -1)

    def other(image: Tensor) -> Tensor:
        image = one(image)
        if not image.is_floating_point():
            return image.to(torch.int32) if broken == "type" else image
        worse = {"nan": float("nan"), "level": 1.1 / 255, "type": 0.0}[broken]
        return image + worse if len(image) == 3 else image

    compare = exporters.compare_integers if broken == "type" else partial(exporters.compare, limit=1.0)
    with pytest.raises(ValueError, match=r"^x: they differ .*nothing was written$"):
        compare("x", one, other, CPU)
    exporters.compare("x", one, one, CPU, 0.0)
    exporters.compare_integers("x", one, one, CPU)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "no model"), (b"hello", "is not a TorchScript file"), (b"", "is not a TorchScript")],
)
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "model.ts"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        checkpoint.load_exported(path, CPU)


def test_torchscript_of_somebody_else(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.ReLU()).save(tmp_path / "other.ts")
    with pytest.raises(ValueError, match=r"not one written by export\.py"):
        checkpoint.load_exported(tmp_path / "other.ts", CPU)


@pytest.mark.parametrize("name", GENERATORS)
def test_folding_leaves_the_output_as_it_is(name: str) -> None:
    generator = randomise(build(name)).eval()
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    folded = exporters.deployable(Colorizer(generator, "L", "ab", 64, 16).eval(), "fp32").generator
    (x,) = inputs(name, 96)
    with torch.inference_mode():
        expected, found = generator(x), folded(x)
    assert (found - expected).abs().max() <= 1e-4
    assert expected.std() > 0.02  # it depends on the picture
    assert norms(generator) > 4
    assert norms(folded) == (norms(generator) if name in ("unet32", "unet224") else 0)  # after activations
    assert before.keys() == generator.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())


@pytest.mark.parametrize(("name", "left"), [("unet", 5), ("resunet", 29), ("unet-ext", 7)])
def test_statistics_of_the_batch_are_not_folded(name: str, left: int) -> None:
    generator = randomise(build(name))
    generator.apply(use_batch_statistics).eval()
    folded = exporters.deployable(Colorizer(generator, "L", "ab", 64, 16).eval(), "fp32").generator
    assert norms(folded) == left  # of unet-ext: all but the frozen extractor's
    (x,) = inputs(name)
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), generator(x), atol=1e-4, rtol=0)
        assert not torch.allclose(folded(x)[:1], folded(x[:1]), atol=1e-3)


class Named(nn.Module):
    """Layers named as torchvision's, some without a partner."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn3 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.mix, self.mix_bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix_bn(self.mix(self.bn3(self.conv2(self.bn1(self.conv1(x))))))


@pytest.mark.parametrize(
    ("network", "left"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), 1),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)), 1),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), 1),
        (nn.Sequential(nn.Sequential(nn.ConvTranspose2d(3, 5, 3, bias=False), nn.BatchNorm2d(5))), 0),
        (Named(), 2),
    ],
)
def test_only_what_follows_a_convolution_is_folded(network: nn.Module, left: int) -> None:
    x = torch.rand(2, 3, 9, 11)
    with torch.inference_mode():
        expected = randomise(network).eval()(x)
        torch.testing.assert_close(exporters.fold_batch_norm(network)(x), expected, atol=1e-5, rtol=0)
    assert norms(network) == left


@pytest.mark.parametrize(
    ("precision", "dtype_of_weights", "most"), [("fp16", torch.float16, 4), ("bf16", torch.bfloat16, 20)]
)
def test_half_precision_halves_the_file_and_keeps_the_picture(
    precision: str,
    dtype_of_weights: torch.dtype,
    most: int,
    tmp_path: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run(tmp_path / "run", "coco", ngf=32)
    trained = checkpoint.load_colorizer(run, 1, CPU)
    trained.generator.last[0].weight.mul_(2.0)  # colours so strong that a level is not all that it loses
    monkeypatch.setattr(checkpoint, "load_colorizer", lambda *_: trained)
    whole = export.main(run=run, out=tmp_path / "whole.ts", device="cpu")
    half = export.main(run=run, out=tmp_path / "half.ts", precision=precision, device="cpu")
    assert 0.4 < half.stat().st_size / whole.stat().st_size < 0.6
    (full, told), (model, metadata) = (checkpoint.load_exported(path, CPU) for path in (whole, half))
    assert (told.pop("precision"), metadata.pop("precision")) == ("fp32", precision)
    assert told == metadata
    assert {parameter.dtype for parameter in model.parameters()} == {dtype_of_weights}
    image = torch.rand(2, 3, 60, 81, generator=torch.Generator().manual_seed(0))
    for dtype, high in ((torch.uint8, 255), (torch.uint16, 65535), (torch.float32, 1), (torch.float64, 1)):
        given = (image * high).to(dtype)
        colour, expected = model(given), full(given)
        assert colour.dtype == dtype
        levels = (colour.double() - expected.double()).abs() * (255 / high)
        assert levels.max() <= most
        assert levels.mean() < most / 16
    assert (full(image) - image).abs().mean() > 4 / 255  # there is colour to lose
    assert not torch.equal(model(image), full(image))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["manga-att-ext", "resnet", "cgan", "unet224"])
def test_every_kind_of_network_works_in_half_precision(name: str, precision: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "places-resnet" if name == "resnet" else name)
    trained = checkpoint.load_colorizer(run, 1, CPU)
    image = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    difference = exporters.deployable(trained, precision)(image) - trained(image)
    assert difference.abs().mean() < 2 / 255


@pytest.mark.parametrize(("name", "layer"), [("coco", "encoder.1.0"), ("places-resnet", "decoder.6")])
def test_a_network_that_overflows_is_refused(
    name: str, layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", name)
    trained = checkpoint.load_colorizer(run, 1, CPU)
    trained.generator.get_submodule(layer).weight.mul_(1e7)  # of a U-Net in its midst, or before no tanh
    assert trained(torch.rand(1, 3, 20, 30)).isfinite().all()
    monkeypatch.setattr(checkpoint, "load_colorizer", lambda *_: trained)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"^trained, fp16 on cpu: .* nothing was written$"):
        export.main(run=run, precision="fp16", device="cpu")
    assert files(tmp_path) == before


def test_a_late_nan_is_not_called_a_small_difference() -> None:
    def other(image: Tensor) -> Tensor:
        return image * float("nan") if len(image) == 3 else image

    with pytest.raises(ValueError, match=r"nan|not a number|not finite"):
        exporters.compare("x", lambda image: image, other, CPU, 1.0)


class StandInForMPS:
    """Stands for a tensor where there is no float64: what counts in it is to be brought to the CPU first."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __sub__(self, other: "StandInForMPS") -> "StandInForMPS":
        return StandInForMPS(self.values - other.values)

    def abs(self) -> "StandInForMPS":
        return StandInForMPS(self.values.abs())

    def cpu(self) -> Tensor:
        return self.values

    def to(self, *_: Any) -> None:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")


def test_differences_need_no_float64_on_the_device() -> None:
    found = exporters.differences(StandInForMPS, lambda image: StandInForMPS(image + 1 / 255), CPU)
    assert found == [pytest.approx((1, 1), abs=1e-4)] * 6


def test_the_table_has_a_row_per_comparison_and_a_column_per_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", "demo", size=32)
    monkeypatch.setattr(exporters, "devices", lambda name: [CPU, torch.device("cpu:0")])
    path = export.main(run=run)
    *table, wrote, use = capsys.readouterr().out.splitlines()
    pairs = [f"eager, {kind} on {device}" for device in ("cpu", "cpu:0") for kind in ("scripted", "reloaded")]
    assert [line[:28].strip() for line in table] == [
        "levels of 255: max (mean)",
        "trained, fp32 on cpu",
        *pairs,
    ]
    heads = [f"{n} x {h} x {w}" for n in (1, 3) for h, w in ((37, 61), (256, 256), (480, 360))]
    assert [table[0][28 + 18 * i :][:16].strip() for i in range(6)] == heads
    for line in table[1:]:
        cells = [line[28 + 18 * i :][:18].split() for i in range(6)]
        assert len(line) == len(table[0])
        assert all(0 <= float(mean.strip("()")) <= float(largest) <= 1 for largest, mean in cells)
    assert wrote == f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB"
    assert use == f"use it with: python colorize.py photo.jpg --model {path}"


def test_differences_are_the_largest_and_the_mean_of_each_shape() -> None:
    def other(image: Tensor) -> Tensor:
        image = image.clone()
        image[-1, 0, 0, 0] += len(image) / 255  # of one value alone
        return image

    found = exporters.differences(lambda image: image, other, CPU)
    for (largest, mean), (n, (height, width)) in zip(
        found, product(exporters.BATCHES, exporters.SIZES), strict=True
    ):
        assert largest == pytest.approx(n, rel=1e-3)
        assert mean == pytest.approx(1 / (3 * height * width), rel=1e-3)


def test_auto_compares_on_the_cpu_and_on_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in ("cpu", "cuda", "mps"):
        there = torch.device(found)
        monkeypatch.setattr(
            export, "pick_device", lambda name, there=there: there if name == "auto" else torch.device(name)
        )
        assert exporters.devices("auto") == ([CPU] if found == "cpu" else [CPU, there])
        assert exporters.devices("cpu") == [CPU]
    assert exporters.devices("cuda:1") == [torch.device("cuda:1")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", exporters.PRECISIONS)
def test_a_gpu_has_rows_of_its_own(
    precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = export.main(run=make_run(tmp_path / "run", "coco"), precision=precision)
    assert "eager, reloaded on cuda" in capsys.readouterr().out
    model, _ = checkpoint.load_exported(path, torch.device("cuda"))
    image = torch.randint(0, 256, (2, 3, 70, 50), dtype=torch.uint8)
    on_cpu = checkpoint.load_exported(path, CPU)[0](image)
    assert (model(image.cuda()).cpu().int() - on_cpu.int()).abs().max() <= (1 if precision == "fp32" else 4)


def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run export.py as from a command line that has a mistake; returns the sentence."""
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command(export.main)
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    return said.err.strip()


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--precision", "fp8", "no precision fp8: use one of fp32 fp16 bf16"),
        ("--precision", "half", "no precision half: use one of fp32 fp16 bf16"),
        ("--format", "tflite", "no format tflite: use one of ts onnx pt2"),
        ("--device", "tpu", "no device tpu: use auto, cpu, cuda or mps"),
    ],
)
def test_an_unknown_value_ends_in_a_sentence(
    option: str,
    value: str,
    sentence: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = files(trained)
    assert say(monkeypatch, capsys, "--run", str(trained), option, value) == f"export.py: {sentence}"
    assert files(trained) == before


@pytest.mark.parametrize("missing", [["onnxruntime"], ["onnx", "onnxscript"]])
def test_missing_packages_are_named_before_any_work(
    missing: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find_spec(name: str) -> object:
        return None if name in missing else object()

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    names = " ".join(missing)
    said = say(monkeypatch, capsys, "--run", "no/such/run", "--format", "onnx")
    assert said == f"export.py: --format onnx needs {names}: pip install {names}"


class Branching(nn.Module):
    """A network whose way depends on the picture, which no exporter but TorchScript's can follow."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.expand(-1, 2, -1, -1)
        return y * 0.5 if bool(x.mean() > 0.25) else y


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_what_a_format_cannot_express_is_refused(
    form: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branching = Colorizer(Branching(), "L", "ab", 32, 8).eval()
    monkeypatch.setattr(checkpoint, "load_colorizer", lambda *_: branching)
    monkeypatch.setattr(exporters, "require_onnx", lambda: None)  # it does not come to that
    before = files(run)
    sentence = rf"^{form} cannot express this network \(.+\); nothing was written; --format ts can$"
    with pytest.raises(ValueError, match=sentence) as caught:
        export.main(run=run, format_=form, device="cpu")
    assert "\n" not in str(caught.value)
    assert files(run) == before
    path = export.main(run=run, device="cpu")  # as it says
    assert path.exists()


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_another_format_that_differs_is_not_written(
    form: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporters, "require_onnx", lambda: None)
    monkeypatch.setattr(exporters, f"write_{form}", lambda path, *_: path.write_bytes(b"x"))
    monkeypatch.setattr(exporters, f"load_{form}", lambda path: lambda image: image)
    before = files(run)
    with pytest.raises(ValueError, match=rf"^eager, {form} on cpu: they differ by .* nothing was written$"):
        export.main(run=run, format_=form, device="cpu")
    assert files(run) == before


@pytest.mark.skipif(sys.platform != "linux", reason="limits a file's size as Linux does")
@pytest.mark.parametrize("form", ["ts", "pt2"])
def test_a_full_disk_ends_in_a_sentence(form: str, run: Path) -> None:
    before = files(run)
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import export; from cli import command; export.SIZES, export.BATCHES = ((19, 34),), (1,);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000)); command(export.main)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, "--run", run, "--device", "cpu", "--format", form],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert files(run) == before


def test_weights_lie_channels_last_on_disk_too(tmp_path: Path, quick: None) -> None:
    path = export.main(run=make_run(tmp_path / "run", "coco"), device="cpu")
    kernels = [p for p in checkpoint.load_exported(path, CPU)[0].parameters() if p.dim() == 4]
    assert len(kernels) == 8
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert not any(kernel.is_contiguous() for kernel in kernels[1:])  # the first has one channel: it is both


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_metadata_says_what_the_file_is(precision: str, run: Path) -> None:
    _, metadata = checkpoint.load_exported(
        export.main(run=run, epoch="1", precision=precision, device="cpu"), CPU
    )
    assert metadata == {
        "format": checkpoint.EXPORT_FORMAT,
        "version": VERSION,
        "epoch": 1,
        "precision": precision,
        "recipe": run_folder.read_run(run)["recipe"],
        "torch": torch.__version__,
    }


@pytest.mark.parametrize("names", [KINDS, (*TWINS, *EXTRACTORS)], ids=["kinds", "others"])
def test_a_bare_process_with_torch_alone_runs_every_recipe(
    names: list[str], tmp_path: Path, quick: None
) -> None:
    shapes = [(1, 1, 1, 1), (1, 3, 37, 251), (2, 1, 60, 9), (3, 3, 21, 33)]
    runs = {make_run(tmp_path / name, name): shapes[: 2 if name in EXTRACTORS else 4] for name in names}
    todo = {str(export.main(run=run, device="cpu")): shapes for run, shapes in runs.items()}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", BARE, str(ROOT), json.dumps(todo)],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        said = json.loads(line)
        assert said["metadata"]["recipe"]["name"] == name
        gray, colour = (torch.tensor(said[key], dtype=torch.uint8) for key in ("gray", "colour"))
        eager = checkpoint.load_colorizer(tmp_path / name, 1, CPU)(gray)
        assert (colour.int() - eager.int()).abs().max() <= 1
        assert (colour.int() - gray.int()).abs().max() > 4  # it has colour


@pytest.fixture
def executor() -> Iterator[None]:
    """Put TorchScript's executor back, should a test fail to."""
    optimised = torch._C._get_graph_executor_optimize()
    yield
    torch._C._set_graph_executor_optimize(optimised)


class Witness(nn.Module):
    """Tells how it is run."""

    def forward(self, image: Tensor) -> Tensor:
        if len(image) == 0:
            raise ValueError("nothing to see")
        optimised = torch._C._get_graph_executor_optimize()
        return image.new_tensor([optimised, torch.is_inference_mode_enabled()])


@pytest.mark.parametrize("optimised", [True, False])
def test_infer_puts_the_executor_back(optimised: bool, executor: None) -> None:
    torch._C._set_graph_executor_optimize(optimised)
    assert checkpoint.infer(Witness(), torch.zeros(1)).tolist() == [0, 1]
    assert torch._C._get_graph_executor_optimize() == optimised
    with pytest.raises(ValueError, match="nothing to see"):
        checkpoint.infer(Witness(), torch.zeros(0))
    assert torch._C._get_graph_executor_optimize() == optimised
    assert not torch.is_inference_mode_enabled()


def test_infer_does_not_profile(run: Path, executor: None) -> None:
    path = export.main(run=run, device="cpu")
    image = torch.randint(0, 256, (1, 3, 40, 30), dtype=torch.uint8)
    colours = []
    for call, profiles in ((checkpoint.infer, False), (lambda model, image: model(image), True)):
        model, _ = checkpoint.load_exported(path, CPU)
        colours.append(call(model, image))
        assert ("prim::profile" in str(torch.jit.last_executed_optimized_graph())) == profiles
    assert torch.equal(*colours)


def test_infer_works_in_threads(run: Path, executor: None) -> None:
    model, _ = checkpoint.load_exported(export.main(run=run, device="cpu"), CPU)
    images = [torch.randint(0, 256, (1, 3, 20 + i, 40), dtype=torch.uint8) for i in range(12)]
    expected = [model(image) for image in images]
    settings = []

    def work(image: Tensor) -> Tensor:
        colour = checkpoint.infer(model, image)
        settings.append(torch._C._get_graph_executor_optimize())
        return colour

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, images))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert settings == [True] * 12
    assert torch._C._get_graph_executor_optimize()
