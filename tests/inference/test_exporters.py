"""exporters.py: each file does what the eager module does; what differs or cannot be expressed is refused."""

import dataclasses
import zipfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPU, Glance, noise_image, randomise, small_model
from torch import Tensor, nn

import models
from config import Recipe, UserError
from imaging import color
from inference import exporters
from inference.checkpoint import METADATA, ExportRecord, build_colorizer, load_exported
from inference.colorizer import Colorizer, use_batch_statistics
from models import fit_networks

SHAPES = [  # without (2, 90, 140), the example's
    (1, 1, 1), (2, 1, 50), (1, 50, 1), (3, 37, 61), (1, 150, 200), (2, 6, 900), (2, 900, 6),
]  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {  # of networks, and of input and output
    "unet": {},
    "resunet": {"output": "Lab"},
    "convgen": {"output": "rgb"},
    "unet-reflect": {"input": "sketch", "norm_stats": "batch"},
    "unet-att-ext": {"input": "gray+line", "attention": 16},
    "unet32": {"upsampling": "bicubic"},
}
# every layer is in one of them; each takes a minute or more, so that .ci/run tries the last alone
IN_ONNX = [*(pytest.param(name, marks=pytest.mark.soak) for name in ("resunet", "unet-reflect"))]
IN_ONNX += [pytest.param("unet-att-ext", marks=pytest.mark.slow)]
WRITE = {"pt2": exporters.write_pt2, "onnx": exporters.write_onnx}
LOAD = {"pt2": exporters.load_pt2, "onnx": exporters.load_onnx}
RECORD = ExportRecord(Recipe("caf\N{LATIN SMALL LETTER E WITH ACUTE}"), 1, "fp32")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare on one small size only, where the comparison is not what is tested."""
    monkeypatch.setattr(exporters, "SIZES", ((19, 34),))
    monkeypatch.setattr(exporters, "BATCHES", (2,))


@pytest.fixture(autouse=True)
def glance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a small network stand for the Danbooru network."""
    monkeypatch.setattr(models, "DanbooruFeatures", Glance)


def small(generator: str, **fields: Any) -> Recipe:
    """Return the recipe of a small generator."""
    fields = {"input": "gray", "output": "rgb"} | fields if generator.startswith("unet-") else fields
    fields |= {"depth": 4} if generator.startswith("unet") else {}
    return fit_networks(Recipe("x", size=64, ngf=4, generator=generator, **fields))


def build(generator: str, upsampling: str = "guided", **fields: Any) -> Colorizer:
    """Return a trained Colorizer of a small generator: with random statistics."""
    recipe = small(generator, **fields)
    torch.manual_seed(0)
    colorizer = build_colorizer(recipe).eval()
    randomise(colorizer.generator)
    colorizer.upsampling = upsampling
    if recipe.norm_stats == "batch":
        colorizer.apply(use_batch_statistics)
    return colorizer.requires_grad_(False)


def norms(network: nn.Module) -> int:
    """Return the number of BatchNorms."""
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


# generator.ts, read again


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", ["unet", "unet-reflect"])  # with statistics of the batch: unet-reflect
def test_a_generator_ts_becomes_the_colorizer_that_it_was(
    name: str, trainable: bool, quick: None, tmp_path: Path
) -> None:
    colorizer, path = build(name, **KINDS[name]), tmp_path / "generator.ts"
    told = ExportRecord(small(name, **KINDS[name]), 7, "fp32")
    exporters.write(path, colorizer, told, "ts", [CPU], trainable)
    before = torch.random.get_rng_state()
    found, record = exporters.load_trained(path)
    assert torch.equal(torch.random.get_rng_state(), before)  # a network is built, and draws nothing of others
    assert record == told
    assert (norms(found.generator) > 0) == (trainable or name == "unet-reflect")
    assert not any(parameter.requires_grad for parameter in found.parameters())
    image = noise_image(2, 3, 40, 60)
    assert (found(image).int() - colorizer(image).int()).abs().max() <= 1


def test_a_generator_ts_keeps_its_temperature(quick: None, tmp_path: Path) -> None:
    colorizer, path = build("lite-unet"), tmp_path / "generator.ts"
    colorizer.generator.temperature = 0.07  # is not among the weights
    exporters.write(path, colorizer, ExportRecord(small("lite-unet"), 1, "fp32"), "ts", [CPU])
    assert exporters.load_trained(path)[0].generator.temperature == 0.07


def test_a_generator_ts_that_does_not_fit_its_recipe_is_refused(quick: None, tmp_path: Path) -> None:
    path, wider = tmp_path / "generator.ts", dataclasses.replace(small("unet"), ngf=8)
    exporters.write(path, build("unet"), ExportRecord(wider, 1, "fp32"), "ts", [CPU])
    with pytest.raises(UserError, match="does not fit its recipe x"):
        exporters.load_trained(path)
    with pytest.raises(UserError, match="no model"):
        exporters.load_trained(tmp_path / "none.ts")


# the module that is deployed


@pytest.mark.parametrize("name", [*KINDS, "resnet"])
def test_folding_and_half_precision_leave_the_output_as_it_is(name: str) -> None:
    colorizer = build(name, **KINDS.get(name, {}))
    generator = colorizer.generator
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    folded = exporters.deployable(colorizer, "fp32").generator
    noise, channels = torch.Generator().manual_seed(0), color.CHANNELS[colorizer.x_kind]
    x = torch.rand(2, channels, 64, 64, generator=noise) * 2 - 1
    with torch.inference_mode():
        expected, found = generator(x), folded(x)
        assert (found - expected).abs().max() <= 1e-4
        for precision in ("fp16", "bf16"):
            half = exporters.deployable(colorizer, precision).generator(x.to(exporters.PRECISIONS[precision]))
            assert (half - expected).abs().mean() < 2 / 127.5
    assert expected.std() > 0.02  # it depends on the picture
    assert norms(generator) > 4
    # what follows an activation stays, and what normalises by the batch
    assert norms(folded) == (norms(generator) if name in ("unet32", "unet-reflect") else 0)
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())
    ours, theirs = ({p.data_ptr() for p in network.parameters()} for network in (generator, folded))
    assert not ours & theirs
    kernels = [p for p in folded.parameters() if p.dim() == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


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
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), 2),
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


# differences


def identity(image: Tensor) -> Tensor:
    return image.expand(-1, 3, -1, -1)


@pytest.mark.parametrize("broken", ["nan", "level", "type", "shape", "shape of integers"])
def test_what_differs_is_refused(broken: str) -> None:
    def one(image: Tensor) -> Tensor:
        return identity(image[:, :1])

    def other(image: Tensor) -> Tensor:
        if "shape" in broken:
            return image[:, :1]  # which broadcasts to what is equal
        image = one(image)
        if broken == "type":
            return image.to(torch.int32)
        worse = {"nan": float("nan"), "level": 1.1 / 255}[broken]
        return image + worse if len(image) == 3 else image  # in the last batches alone

    integers = broken in ("type", "shape of integers")
    compare = exporters.compare_integers if integers else partial(exporters.compare, limit=1.0)
    with pytest.raises(UserError, match=r"^x: they differ .*nothing was written$"):
        compare("x", one, other, CPU)
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
    for i, (n, (height, width)) in enumerate(product(exporters.BATCHES, exporters.SIZES)):
        assert float(cells[2 * i]) == n
        assert float(cells[2 * i + 1].strip("()")) == pytest.approx(1 / (3 * height * width), abs=1e-4)


# what is written


class Branching(nn.Module):
    """A network whose way depends on the picture, which no exporter but TorchScript's can follow."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.expand(-1, 2, -1, -1)
        return y * 0.5 if bool(x.mean() > 0.25) else y


def test_what_a_format_cannot_express_is_refused(quick: None, tmp_path: Path) -> None:
    branching = Colorizer(Branching(), "L", "ab", 32, 8).eval()
    path = tmp_path / "x"
    path.write_bytes(b"older")
    words = r"^pt2 cannot express this network \(.+\); nothing was written; --format ts can$"
    with pytest.raises(UserError, match=words):
        exporters.write(path, branching, RECORD, "pt2", [CPU])
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == {path: b"older"}
    exporters.write(path, branching, RECORD, "ts", [CPU])  # as it says
    assert load_exported(path, CPU).record == RECORD


@pytest.mark.parametrize("form", ["onnx", "ts"])
def test_a_file_that_differs_is_not_written(
    form: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colorizer, other = build("unet"), build("unet32")
    if form == "ts":
        scripted = torch.jit.script(other)
        monkeypatch.setattr(torch.jit, "script", lambda _: scripted)
    else:
        monkeypatch.setattr(exporters, "write_onnx", lambda path, *_: path.write_bytes(b"x"))
        monkeypatch.setattr(exporters, "load_onnx", lambda path: other)
    with pytest.raises(UserError, match=r"^eager, \w+ on cpu: they differ by .* nothing was written$"):
        exporters.write(tmp_path / "x", colorizer, RECORD, form, [CPU])
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_overflows_in_fp16_is_refused(quick: None, tmp_path: Path) -> None:
    trained = build("unet")
    trained.generator.get_submodule("encoder.1.0").weight.mul_(1e7)
    assert trained(torch.rand(1, 3, 20, 30)).isfinite().all()
    record = ExportRecord(Recipe("x"), 1, "fp16")
    with pytest.raises(UserError, match=r"^trained, fp16 on cpu: .* nothing was written$"):
        exporters.write(tmp_path / "x.ts", trained, record, "ts", [CPU])
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_fp16_is_compared_with_what_a_cpu_computes(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporters, "TOLERANCE", 1e-3)  # level; computed in fp16, it differs by more
    exporters.write(tmp_path / "x.ts", build("resunet"), ExportRecord(Recipe("x"), 1, "fp16"), "ts", [CPU])
    assert (tmp_path / "x.ts").is_file()  # it is only written where they agree


# ONNX and pt2


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


@pytest.mark.parametrize("name", KINDS)
def test_traceable_does_what_the_colorizer_does(name: str) -> None:
    module = exporters.deployable(build(name, **KINDS[name]), "fp32")
    for module.size in (16, 64, 97) if name == "unet" else (64,):
        assert_agrees(exporters.Traceable(module), module)


@pytest.mark.parametrize("name", ["unet", "lite-unet"])
@pytest.mark.parametrize("shape", [(2, 70, 91), (1, 300, 60)])
def test_traceable_follows_hints_as_the_colorizer_does(name: str, shape: tuple[int, int, int]) -> None:
    module = small_model(hints=True)[0] if name == "unet" else build(name, hints=True)
    traceable, image = exporters.Traceable(module), noise_image(shape[0], 3, *shape[1:]).float() / 255
    none, some = exporters.example_hints(image)
    assert (traceable(image, none) - module(image)).abs().max() * 255 <= 1
    assert (traceable(image, some) - module(image, some)).abs().max() * 255 <= 1
    assert (module(image, some) - module(image)).abs().max() * 255 > 20


def test_a_pt2_file_agrees_with_eager_at_any_shape(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Colorizer(nn.Conv2d(1, 3, 3, padding=1), "gray", "rgb", 32, 8).eval().requires_grad_(False)
    path = tmp_path / "x.pt2"
    exporters.write_pt2(path, module, RECORD)
    assert_agrees(exporters.load_pt2(path), module)
    with zipfile.ZipFile(path) as archive:
        (told,) = (archive.read(name) for name in archive.namelist() if name.endswith(METADATA))
    assert told.decode() == RECORD.to_json()


@pytest.mark.parametrize("name", IN_ONNX)
def test_every_kind_of_layer_can_be_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in exporters.PACKAGES:
        pytest.importorskip(package)
    fields = {"upsampling": "bicubic"} if name == "unet-att-ext" else {}  # the guide is most of a graph
    trained = build(name, **{**fields, **KINDS[name]})
    if name == "resunet":  # of each stage one block: the others are the same again
        layers = trained.generator.encoder.layers
        for i, layer in enumerate(layers):
            layers[i] = layer[:1]
    module = exporters.deployable(trained, "fp32")
    program = exporters.trace(module)
    monkeypatch.setattr(exporters, "trace", lambda _: program)
    forms: dict[str, Any] = {"onnx": ((1, 50, 1), (2, 900, 6))}  # but for shapes where it makes a side of 1 px
    if name == "resunet":  # one does for pt2, which is the program that ONNX is made from
        forms["pt2"] = ()
    for form, but in forms.items():
        folder = tmp_path / form
        folder.mkdir()
        WRITE[form](folder / "x", module, RECORD)
        assert list(folder.iterdir()) == [folder / "x"]  # the weights are inside
        assert_agrees(LOAD[form](folder / "x"), module, but)
    check_onnx(tmp_path / "onnx" / "x")


def check_onnx(path: Path) -> None:
    """Look at what a program that reads ONNX finds in a file."""
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map[METADATA] == RECORD.to_json()
    ends = [*session.get_inputs(), *session.get_outputs()]
    assert [(end.name, end.type) for end in ends] == [(n, "tensor(float)") for n in ("image", "colour")]
    assert [end.shape for end in ends] == [["batch", 3, "height", "width"]] * 2
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == exporters.OPSET


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        pytest.param("pt2", "bf16", marks=pytest.mark.soak), pytest.param("onnx", "fp16", marks=pytest.mark.soak),
        ("onnx", "bf16"),
    ],
)  # fmt: skip
def test_half_precision_agrees_or_is_refused(form: str, precision: str, tmp_path: Path, quick: None) -> None:
    for package in exporters.PACKAGES if form == "onnx" else ():
        pytest.importorskip(package)
    torch.manual_seed(0)
    trained = Colorizer(nn.Conv2d(1, 3, 3, padding=1), "gray", "rgb", 32, 8).eval().requires_grad_(False)
    path, record = tmp_path / "x", ExportRecord(Recipe("x"), 1, precision)
    if (form, precision) == ("onnx", "bf16"):
        with pytest.raises(UserError, match="onnx has no convolution in bf16"):
            exporters.write(path, trained, record, form, [CPU])
        return
    exporters.write(path, trained, record, form, [CPU])
    assert_agrees(LOAD[form](path), exporters.deployable(trained, precision), ((1, 50, 1), (2, 900, 6)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", exporters.PRECISIONS)
def test_a_gpu_has_rows_of_its_own(precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = ExportRecord(Recipe("x"), 1, precision)
    exporters.write(tmp_path / "x.ts", build("unet"), record, "ts", [CPU, torch.device("cuda")])
    assert "eager, reloaded on cuda" in capsys.readouterr().out
    image: Any = torch.randint(0, 256, (2, 3, 70, 50), dtype=torch.uint8)
    on_gpu = load_exported(tmp_path / "x.ts", torch.device("cuda")).module(image.cuda())
    on_cpu = load_exported(tmp_path / "x.ts", CPU).module(image)
    assert (on_gpu.cpu().int() - on_cpu.int()).abs().max() <= (1 if precision == "fp32" else 4)
