"""exporters.py: each file does what the eager module does; what differs or cannot be expressed is refused."""

import json
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPU, Glance, make_run, randomise
from torch import Tensor, nn
from torch.export import ExportedProgram

import models
from config import RECIPES, Recipe, UserError
from inference import checkpoint, exporters
from inference.checkpoint import METADATA, ExportRecord, build_colorizer, load_exported
from inference.colorizer import Colorizer, use_batch_statistics
from models import GENERATORS, fit_networks

SHAPES = [  # without (2, 90, 140), the example's
    (1, 1, 1), (2, 1, 50), (1, 50, 1), (3, 37, 61), (1, 61, 37), (1, 150, 200), (2, 6, 900), (2, 900, 6),
]  # fmt: skip
VARIANTS = {  # recipes with a field set
    "manga-att-32": ("manga-att", {"attention": 32}),
    "restore-34": ("restore", {"generator": "resunet34"}),
    "anime-line": ("anime", {"input": "gray+line"}),
    "anime-batch": ("anime", {"norm_stats": "batch"}),
}
EXTRACTORS = ("manga-ext", "manga-att-ext")  # a ResNet-50 at 360 px
WRITE = {"pt2": exporters.write_pt2, "onnx": exporters.write_onnx}
LOAD = {"pt2": exporters.load_pt2, "onnx": exporters.load_onnx}
RECORD = ExportRecord(Recipe("caf\N{LATIN SMALL LETTER E WITH ACUTE}"), 1, "fp32")
slow = pytest.mark.slow


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare on one small size only, where the comparison is not what is tested."""
    monkeypatch.setattr(exporters, "SIZES", ((19, 34),))
    monkeypatch.setattr(exporters, "BATCHES", (2,))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what gives the run of a small recipe or variant by name."""
    root = tmp_path_factory.mktemp("runs")

    def find(name: str) -> Path:
        recipe, fields = VARIANTS.get(name, (name, {}))
        return root / name if (root / name).exists() else make_run(root / name, recipe, **fields)

    return find


def load_eager(run: Path, precision: str = "fp32") -> Colorizer:
    return exporters.deployable(checkpoint.load_colorizer(run, 1, CPU), precision)


@lru_cache(maxsize=1)
def trace(folder: Path) -> tuple[Colorizer, ExportedProgram]:
    """Return a run's eager module and its trace, which both formats are made of."""
    module = load_eager(folder)
    return module, exporters.trace(module)


def norms(network: nn.Module) -> int:
    """Return the number of BatchNorms."""
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def build(generator: str, **fields: Any) -> Colorizer:
    """Return a Colorizer of a small generator with random statistics, on one channel."""
    kinds = ("gray", "rgb") if generator.startswith("unet-") else ("L", "ab")
    fields |= {"depth": 4} if generator.startswith("unet") and generator != "unet224" else {}
    size = 96 if generator == "unet224" else 64
    recipe = Recipe("x", input=kinds[0], output=kinds[1], size=size, ngf=4, generator=generator, **fields)
    torch.manual_seed(0)
    colorizer = build_colorizer(fit_networks(recipe)).eval()
    randomise(colorizer.generator)
    return colorizer.requires_grad_(False)


# the module that is deployed


@pytest.mark.parametrize("name", GENERATORS)
def test_folding_leaves_the_output_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "DanbooruFeatures", Glance)
    colorizer = build(name)
    generator = colorizer.generator
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    folded = exporters.deployable(colorizer, "fp32").generator
    x = torch.rand(2, 1, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        expected, found = generator(x), folded(x)
    assert (found - expected).abs().max() <= 1e-4
    assert expected.std() > 0.02  # it depends on the picture
    assert norms(generator) > 4
    assert norms(folded) == (norms(generator) if name in ("unet32", "unet224") else 0)  # after activations
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())
    ours, theirs = ({p.data_ptr() for p in network.parameters()} for network in (generator, folded))
    assert not ours & theirs
    kernels = [p for p in folded.parameters() if p.dim() == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("name", ["unet", "resunet"])
def test_statistics_of_the_batch_are_not_folded(name: str) -> None:
    colorizer = build(name).requires_grad_(True).apply(use_batch_statistics)
    generator, folded = colorizer.generator, exporters.deployable(colorizer, "fp32").generator
    assert norms(folded) == norms(generator)
    x = torch.rand(2, 1, 64, 64)
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


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["unet", "unet-att-ext", "resnet", "convgen", "unet224"])
def test_every_kind_of_network_works_in_half_precision(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "DanbooruFeatures", Glance)
    trained = build(name)
    image = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = exporters.deployable(trained, precision)(image) - trained(image)
    assert difference.abs().mean() < 2 / 255


# differences


def identity(image: Tensor) -> Tensor:
    return image.expand(-1, 3, -1, -1)


@pytest.mark.parametrize("broken", ["nan", "level", "type"])
def test_what_differs_is_refused(broken: str) -> None:
    def other(image: Tensor) -> Tensor:
        image = identity(image)
        if not image.is_floating_point():
            return image.to(torch.int32) if broken == "type" else image
        worse = {"nan": float("nan"), "level": 1.1 / 255, "type": 0.0}[broken]
        return image + worse if len(image) == 3 else image  # in the last batches alone

    compare = exporters.compare_integers if broken == "type" else partial(exporters.compare, limit=1.0)
    with pytest.raises(UserError, match=r"^x: they differ .*nothing was written$"):
        compare("x", identity, other, CPU)
    exporters.compare("x", identity, identity, CPU, 0.0)
    exporters.compare_integers("x", identity, identity, CPU)


def test_the_table_shows_the_largest_and_the_mean_difference_of_each_shape(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def other(image: Tensor) -> Tensor:
        image = image.clone()
        image[-1, 0, 0, 0] += len(image) / 255  # of one value alone
        return image

    exporters.compare("x", identity, other, CPU, 3.1)
    cells = capsys.readouterr().out[28:].split()
    shapes = list(product(exporters.BATCHES, exporters.SIZES))
    for i, (n, (height, width)) in enumerate(shapes):
        assert float(cells[2 * i]) == n
        assert float(cells[2 * i + 1].strip("()")) == pytest.approx(1 / (3 * height * width), abs=1e-4)


# what is written


class Branching(nn.Module):
    """A network whose way depends on the picture, which no exporter but TorchScript's can follow."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.expand(-1, 2, -1, -1)
        return y * 0.5 if bool(x.mean() > 0.25) else y


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_what_a_format_cannot_express_is_refused(form: str, quick: None, tmp_path: Path) -> None:
    branching = Colorizer(Branching(), "L", "ab", 32, 8).eval()
    path = tmp_path / "x"
    path.write_bytes(b"older")
    words = rf"^{form} cannot express this network \(.+\); nothing was written; --format ts can$"
    with pytest.raises(UserError, match=words):
        exporters.write(path, branching, RECORD, form, [CPU])
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == {path: b"older"}
    exporters.write(path, branching, RECORD, "ts", [CPU])  # as it says
    assert load_exported(path, CPU).record == RECORD


@pytest.mark.parametrize("form", ["onnx", "pt2", "ts"])
def test_a_file_that_differs_is_not_written(
    form: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colorizer, other = build("unet"), build("resnet")
    if form == "ts":
        scripted = torch.jit.script(other)
        monkeypatch.setattr(torch.jit, "script", lambda _: scripted)
    else:
        monkeypatch.setattr(exporters, f"write_{form}", lambda path, *_: path.write_bytes(b"x"))
        monkeypatch.setattr(exporters, f"load_{form}", lambda path: lambda image: image)
    with pytest.raises(UserError, match=r"^eager, \w+ on cpu: they differ by .* nothing was written$"):
        exporters.write(tmp_path / "x", colorizer, RECORD, form, [CPU])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layer", ["unet/encoder.1.0", "resnet/decoder.6"])
def test_a_network_that_overflows_in_fp16_is_refused(layer: str, quick: None, tmp_path: Path) -> None:
    name, where = layer.split("/")  # of a U-Net in its middle, or where no tanh follows
    trained = build(name)
    trained.generator.get_submodule(where).weight.mul_(1e7)
    assert trained(torch.rand(1, 3, 20, 30)).isfinite().all()
    record = ExportRecord(Recipe("x"), 1, "fp16")
    with pytest.raises(UserError, match=r"^trained, fp16 on cpu: .* nothing was written$"):
        exporters.write(tmp_path / "x.ts", trained, record, "ts", [CPU])
    assert list(tmp_path.iterdir()) == []


# ONNX and pt2


def need(form: str) -> None:
    """Skip where a format's packages are missing."""
    for package in exporters.PACKAGES if form == "onnx" else ():
        pytest.importorskip(package)


def assert_agrees(
    found: Callable[[Tensor], Tensor], module: Colorizer, but: tuple[tuple[int, int, int], ...] = ()
) -> None:
    """Compare within a level of 255 at every shape but some."""
    noise = torch.Generator().manual_seed(0)
    for n, height, width in (shape for shape in SHAPES if shape not in but):
        image = torch.rand(n, 3, height, width, generator=noise)
        with torch.inference_mode():
            ours, theirs = found(image), module(image)
        assert (ours.shape, ours.dtype) == (image.shape, torch.float32)
        assert (ours - theirs).abs().max() * 255 <= 1, (n, height, width)
        assert (theirs - image).abs().max() * 255 > 1  # there is something to agree on


DEFAULT = [("coco", "pt2")]  # it takes 10 seconds, and ONNX as many more
OTHERS = [pair for pair in product((*RECIPES, *VARIANTS), ("pt2", "onnx")) if pair not in DEFAULT]


@pytest.mark.parametrize(("name", "form"), [*DEFAULT, *(pytest.param(*pair, marks=slow) for pair in OTHERS)])
def test_a_file_agrees_with_eager_at_any_shape(
    name: str, form: str, runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(form)
    module, program = trace(runs(name))
    monkeypatch.setattr(exporters, "trace", lambda _: program)
    path = tmp_path / f"x.{form}"
    WRITE[form](path, module, RECORD)
    assert list(tmp_path.iterdir()) == [path]  # the weights are inside
    assert_agrees(LOAD[form](path), module, ((1, 50, 1), (2, 900, 6)) if form == "onnx" else ())  # 1 px wide
    if form == "onnx":
        check_onnx(path)
    else:
        files = {METADATA: ""}
        torch.export.load(path, extra_files=files)
        assert json.loads(files[METADATA]) == json.loads(RECORD.to_json())


def check_onnx(path: Path) -> None:
    """Look at what a program that reads ONNX finds in a file."""
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map[METADATA] == RECORD.to_json()
    ends = [*session.get_inputs(), *session.get_outputs()]
    assert [(end.name, end.type) for end in ends] == [(n, "tensor(float)") for n in ("image", "colour")]
    assert ends[0].shape[1] == 3
    assert all(isinstance(ends[0].shape[axis], str) for axis in (0, 2, 3))  # any
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == exporters.OPSET


FEW = ("coco", "restore", "anime", "anime-line", "anime-batch", "manga-att", "cgan", "unet32")
MANY = [name for name in (*RECIPES, *VARIANTS) if name not in (*FEW, *EXTRACTORS)]


@pytest.mark.parametrize("name", [*FEW, *(pytest.param(name, marks=slow) for name in MANY)])
def test_traceable_does_what_the_colorizer_does(name: str, runs: Callable[[str], Path]) -> None:
    module = load_eager(runs(name))
    assert_agrees(exporters.Traceable(module), module)
    for size in (16, 97) if name == "coco" else ():
        module.size = size
        assert_agrees(exporters.Traceable(module), module)


@slow
@pytest.mark.parametrize("form", ["pt2", "onnx"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_agrees_or_is_refused(
    precision: str, form: str, runs: Callable[[str], Path], tmp_path: Path, quick: None
) -> None:
    need(form)
    trained = checkpoint.load_colorizer(runs("coco"), 1, CPU)
    path, record = tmp_path / "x", ExportRecord(Recipe("x"), 1, precision)
    if (form, precision) == ("onnx", "bf16"):  # for which onnxruntime has no convolution on the CPU
        with pytest.raises(UserError, match="onnx cannot express this network"):
            exporters.write(path, trained, record, form, [CPU])
        return
    exporters.write(path, trained, record, form, [CPU])
    image = torch.rand(2, 3, 40, 70, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = exporters.deployable(trained, precision)(image)
        assert (LOAD[form](path)(image) - expected).abs().max() * 255 <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", exporters.PRECISIONS)
def test_a_gpu_has_rows_of_its_own(
    precision: str, runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = checkpoint.load_colorizer(runs("coco"), 1, CPU)
    record = ExportRecord(Recipe("x"), 1, precision)
    exporters.write(tmp_path / "x.ts", trained, record, "ts", [CPU, torch.device("cuda")])
    assert "eager, reloaded on cuda" in capsys.readouterr().out
    image: Any = torch.randint(0, 256, (2, 3, 70, 50), dtype=torch.uint8)
    on_gpu = load_exported(tmp_path / "x.ts", torch.device("cuda")).module(image.cuda())
    on_cpu = load_exported(tmp_path / "x.ts", CPU).module(image)
    assert (on_gpu.cpu().int() - on_cpu.int()).abs().max() <= (1 if precision == "fp32" else 4)
