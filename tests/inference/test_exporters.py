"""interchange.py: ONNX and pt2 files do what the eager module does, at any batch, height and width."""

import importlib.util
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from test_export import CPU, KINDS, make_run
from torch import Tensor
from torch.export import ExportedProgram

import export
from config import RECIPES
from inference import checkpoint, exporters
from inference.colorizer import Colorizer
from runtime import run_folder

SHAPES = [  # without (2, 90, 140), the example's
    (1, 1, 1), (2, 1, 50), (1, 50, 1), (3, 37, 61), (1, 61, 37), (1, 150, 200), (1, 200, 150),
    (2, 6, 900), (2, 900, 6),
]  # fmt: skip
VARIANTS = {  # recipes with a field set
    "manga-att-32": ("manga-att", {"attention": 32}),
    "restore-34": ("restore", {"generator": "resunet34"}),
    "anime-line": ("anime", {"input": "gray+line"}),
    "anime-batch": ("anime", {"norm_stats": "batch"}),
}
NAMES = (*RECIPES, *VARIANTS)
DEFAULT = [  # of each class of networks one; to trace takes seconds, to make ONNX of it several
    ("coco", "pt2"), ("coco", "onnx"), ("restore", "pt2"), ("restore", "onnx"), ("unet32", "pt2"),
    ("cgan", "pt2"),
]  # fmt: skip
OTHERS = [(name, form) for name in NAMES for form in ("pt2", "onnx") if (name, form) not in DEFAULT]
SLOW = [pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS]
WRITE = {"pt2": exporters.write_pt2, "onnx": exporters.write_onnx}
LOAD = {"pt2": exporters.load_pt2, "onnx": exporters.load_onnx}
METADATA = {"format": checkpoint.EXPORT_FORMAT, "recipe": {"name": "caf\N{LATIN SMALL LETTER E WITH ACUTE}"}}


def write_run(folder: Path, name: str) -> Path:
    """Write the run of a small version of a recipe, or of a variant of one."""
    recipe, fields = VARIANTS.get(name, (name, {}))
    return make_run(folder, recipe, **fields)


def load_eager(run: Path, precision: str = "fp32") -> Colorizer:
    return exporters.deployable(checkpoint.load_colorizer(run, 1, CPU), precision)


@lru_cache(maxsize=1)
def trace(folder: Path) -> tuple[Colorizer, ExportedProgram]:
    """Return a run's eager module and its trace, which both formats are made of."""
    module = load_eager(folder)
    return module, exporters.trace(module)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what gives a run's folder by name."""
    root = tmp_path_factory.mktemp("runs")
    return lambda name: root / name if (root / name).exists() else write_run(root / name, name)


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


@pytest.mark.parametrize(("name", "form"), [*DEFAULT, *SLOW])
def test_a_file_agrees_with_eager_at_any_shape(
    name: str, form: str, runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(form)
    module, program = trace(runs(name))
    monkeypatch.setattr(exporters, "trace", lambda _: program)
    path = tmp_path / f"x.{form}"
    WRITE[form](path, module, METADATA)
    assert list(tmp_path.iterdir()) == [path]  # the weights are inside
    assert_agrees(LOAD[form](path), module, ((1, 50, 1), (2, 900, 6)) if form == "onnx" else ())  # 1 px wide
    if form == "onnx":
        check_onnx(path)


def check_onnx(path: Path) -> None:
    """Look at what a program that reads ONNX finds in a file."""
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map[exporters.METADATA]) == METADATA
    ends = [*session.get_inputs(), *session.get_outputs()]
    assert [(end.name, end.type) for end in ends] == [(n, "tensor(float)") for n in ("image", "colour")]
    assert ends[0].shape[1] == 3
    assert all(isinstance(ends[0].shape[axis], str) for axis in (0, 2, 3))  # any
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == exporters.OPSET


@pytest.mark.parametrize("name", [*KINDS, "manga-att-32", "anime-line", "anime-batch"])
def test_traceable_does_what_the_colorizer_does(name: str, runs: Callable[[str], Path]) -> None:
    module = load_eager(runs(name))
    assert_agrees(exporters.Traceable(module), module)


@pytest.mark.parametrize("size", [16, 50, 97])
def test_traceable_follows_the_working_size(size: int, runs: Callable[[str], Path]) -> None:
    module = load_eager(runs("coco"))
    module.size = size
    assert_agrees(exporters.Traceable(module), module)


@pytest.mark.parametrize(
    ("name", "precision", "form"),
    [
        ("anime-batch", "fp32", "pt2"),
        pytest.param("anime-batch", "fp32", "onnx", marks=pytest.mark.slow),
        pytest.param("coco", "fp16", "pt2", marks=pytest.mark.slow),
        pytest.param("coco", "fp16", "onnx", marks=pytest.mark.slow),
        pytest.param("coco", "bf16", "pt2", marks=pytest.mark.slow),
        pytest.param("coco", "bf16", "onnx", marks=pytest.mark.slow),
    ],
)
def test_statistics_of_the_batch_and_half_precision_agree_or_end_in_the_sentence(
    name: str, precision: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(form)
    monkeypatch.setattr(exporters, "SIZES", ((19, 34),))
    run, out, said = write_run(tmp_path / "run", name), tmp_path / "out" / f"x.{form}", ""
    try:
        export.main(run=run, format_=form, precision=precision, out=out, device="cpu")
    except ValueError as error:
        said = str(error)
    if (form, precision) == ("onnx", "bf16"):  # for which onnxruntime has no convolution on the CPU
        assert said.startswith("onnx cannot express this network (")
        assert said.endswith("; nothing was written; --format ts can")
        assert "\n" not in said
        assert not list(out.parent.iterdir())
        return
    assert said == ""
    image = torch.rand(2, 3, 40, 70, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = load_eager(run, precision)(image)
        assert (LOAD[form](out)(image) - expected).abs().max() * 255 <= 1
    if form == "pt2":
        told = {exporters.METADATA: ""}
        torch.export.load(out, extra_files=told)
        assert json.loads(told[exporters.METADATA]) == {
            "format": checkpoint.EXPORT_FORMAT, "version": export.VERSION, "epoch": 1,
            "precision": precision, "recipe": run_folder.read_run(run)["recipe"],
            "torch": torch.__version__,
        }  # fmt: skip


@pytest.mark.parametrize("missing", [[], ["onnx"], ["onnxscript", "onnxruntime"], list(exporters.PACKAGES)])
def test_require_onnx_names_what_is_missing(missing: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> Any:
        return None if name in missing else object()

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    if not missing:
        exporters.require_onnx()
        return
    names = " ".join(missing)
    with pytest.raises(ValueError, match=rf"^--format onnx needs {names}: pip install {names}$"):
        exporters.require_onnx()
