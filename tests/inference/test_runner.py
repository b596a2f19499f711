"""painter.py: pictures in batches, and what happens where memory does not suffice."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_export import make_run
from torch import Tensor, nn

import export
from config import VERSION
from inference import checkpoint, exporters, runner
from inference.checkpoint import infer, load_exported
from inference.runner import Painter, Pixels, is_out_of_memory, one_line

CPU = torch.device("cpu")
FP32, FP16 = torch.float32, torch.float16
HALVED = "out of memory with {} pictures at a time: going on with {}"
TO_FP16 = "out of memory with one picture: going on in fp16"
TO_CPU = "a picture does not fit into the memory of cuda:0: colouring it on the CPU, which is slower"
OVERFLOW = "a picture overflows in fp16: colouring it on the CPU, which is slower"
NO_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB in all")
SCRIPTED = "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript:\n"
CUDA_ERROR = (
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously "
    "reported at some other API call, so the stacktrace below might be incorrect.\n"
    "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\nDevice-side assertion tracking was not enabled."
)


class StandInDevice(str):
    """Stands for an accelerator: torch takes it for the CPU, everybody else reads its name."""

    name: str

    def __new__(cls, name: str) -> "StandInDevice":
        device = super().__new__(cls, "cpu")
        device.name = name
        return device

    @property
    def type(self) -> str:
        return self.name.partition(":")[0]

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return self.name


class StandInMemory:
    """Stands for the memory of an accelerator, in place of checkpoint.infer; notes what was run on what."""

    def __init__(self, painter: Painter, fp32: int, fp16: int = 0, error: Exception = NO_MEMORY) -> None:
        self.painter, self.fits, self.error = runner, {FP32: fp32, FP16: fp16}, error
        self.calls: list[tuple[str, torch.dtype, int]] = []

    def __call__(self, model: torch.jit.ScriptModule, images: Tensor) -> Tensor:
        here, precision = model is self.painter.model, model.precision.dtype
        self.calls.append(("device" if here else "cpu", precision, len(images)))
        assert len(self.calls) < 50, "it goes on and on"
        if here and len(images) > self.fits[precision]:
            raise self.error
        return infer(model, images)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a generator.ts."""
    return export_small(tmp_path_factory.mktemp("painter") / "run")


def export_small(run: Path) -> Path:
    """Return a generator.ts that was compared on one size only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporters, "SIZES", ((19, 34),))
        patch.setattr(exporters, "BATCHES", (1,))
        return export.main(run=make_run(run, "coco"), device="cpu")


def draw(count: int, height: int = 30, width: int = 41, dtype: Any = np.uint8) -> list[Pixels]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, np.iinfo(dtype).max, (count, height, width, 3), dtype, endpoint=True))


def singly(path: Path, pictures: list[Pixels], half: bool = False, **attributes: Any) -> list[Pixels]:
    """Colour pictures one by one, without a painter."""
    model, _ = load_exported(path, CPU)
    for name, value in attributes.items():
        setattr(model, name, value)
    if half:
        model.half()
    colours = [model(torch.from_numpy(picture).permute(2, 0, 1)[None]) for picture in pictures]
    return [colour[0].permute(1, 2, 0).numpy() for colour in colours]


def assert_same(found: list[Pixels], expected: list[Pixels]) -> None:
    """Compare pictures within a level of uint8, or what that is in uint16, in their order."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        level = np.iinfo(theirs.dtype).max // 255
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= level
    assert not any((a == b).all() for a, b in pairwise(expected))  # order shows


def on_device(
    monkeypatch: pytest.MonkeyPatch, path: Path, fp32: int, fp16: int = 0, error: Exception = NO_MEMORY,
    name: str = "cuda:0", **attributes: Any,
) -> tuple[Painter, StandInMemory]:  # fmt: skip
    """Return a painter on a stand-in for an accelerator that holds so many pictures."""
    painting = Painter(path, StandInDevice(name), **attributes)
    memory = StandInMemory(painting, fp32, fp16, error)
    monkeypatch.setattr(runner, "infer", memory)
    return painting, memory


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_batch_is_what_the_model_gives_for_each_picture(model: Path, count: int, dtype: Any) -> None:
    pictures = draw(count, dtype=dtype)
    before = [picture.copy() for picture in pictures]
    assert_same(Painter(model, CPU).paint(pictures), singly(model, pictures))
    assert all((a == b).all() for a, b in zip(pictures, before, strict=True))


def test_attributes_are_set_and_none_leaves_them(model: Path) -> None:
    pictures = draw(2, 90, 70)
    for attributes in ({"size": 32}, {"strength": 0.5}, {"upsampling": "bicubic"}):
        painting = Painter(model, CPU, **{"size": None, "strength": None, "upsampling": None, **attributes})
        assert_same(painting.paint(pictures), singly(model, pictures, **attributes))
        assert (painting.paint(pictures)[0] != singly(model, pictures)[0]).any()
    plain = Painter(model, CPU, size=None, strength=None, upsampling=None)
    assert (plain.model.size, plain.model.strength, plain.model.upsampling) == (64, 1.0, "guided")
    assert plain.metadata["recipe"]["name"] == "coco"


def test_one_picture_is_not_copied(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(runner, "infer", lambda _, images: seen.append(images.data_ptr()) or images)
    (picture,) = draw(1)
    Painter(model, CPU).paint([picture])
    assert seen == [picture.ctypes.data]


def test_a_picture_need_not_lie_in_one_piece(model: Path) -> None:
    (whole,) = draw(1, 60, 50)
    for picture in (whole[5:40, 7:30], whole.transpose(1, 0, 2)):
        assert_same(Painter(model, CPU).paint([picture]), singly(model, [picture.copy()]))


def test_a_batch_is_halved_until_it_fits(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    painting, memory = on_device(monkeypatch, model, fp32=2)
    pictures = draw(9)
    assert_same(painting.paint(pictures), singly(model, pictures))
    assert memory.calls == [("device", FP32, n) for n in (9, 4, 2, 2, 2, 2, 1)]
    assert capsys.readouterr().err.splitlines() == [HALVED.format(9, 4), HALVED.format(4, 2)]
    memory.calls.clear()
    assert_same(painting.paint(pictures[:5]), singly(model, pictures[:5]))
    assert memory.calls == [("device", FP32, n) for n in (2, 2, 1)]  # what fitted, at once
    assert capsys.readouterr().err == ""


def test_what_fits_is_counted_in_pixels(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painting, memory = on_device(monkeypatch, model, fp32=2)
    painting.paint(draw(4, 30, 40))
    memory.calls.clear()
    memory.fits[FP32] = 99
    for height, width, counts in ((15, 20, (8, 4)), (15, 80, (2, 2)), (60, 40, (1, 1)), (90, 80, (1, 1))):
        pictures = draw(sum(counts), height, width)
        assert_same(painting.paint(pictures), singly(model, pictures))
        assert memory.calls == [("device", FP32, n) for n in counts]
        memory.calls.clear()


def test_then_the_network_goes_over_to_fp16(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    painting, memory = on_device(monkeypatch, model, fp32=0, fp16=1)
    pictures = draw(3)
    assert_same(painting.paint(pictures), singly(model, pictures, half=True))
    assert memory.calls == [("device", FP32, 3), ("device", FP32, 1), *[("device", FP16, 1)] * 3]
    assert painting.half
    assert capsys.readouterr().err.splitlines() == [HALVED.format(3, 1), TO_FP16]
    memory.calls.clear()
    assert_same(painting.paint(pictures), singly(model, pictures, half=True))
    assert memory.calls == [("device", FP16, 1)] * 3
    assert capsys.readouterr().err == ""


def test_then_pictures_are_coloured_on_the_cpu(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    painting, memory = on_device(monkeypatch, model, fp32=0, fp16=0)
    pictures = draw(4)
    assert_same(painting.paint(pictures), singly(model, pictures))
    assert memory.calls == [
        *[("device", FP32, n) for n in (4, 2, 1)],
        *[("device", FP16, 1), ("cpu", FP32, 1)] * 4,
    ]
    said = [HALVED.format(4, 2), HALVED.format(2, 1), TO_FP16, TO_CPU]
    assert capsys.readouterr().err.splitlines() == said
    painting.paint(pictures)
    assert capsys.readouterr().err == ""  # each was said once


def test_a_small_picture_after_a_large_one_stays_on_the_device(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painting, memory = on_device(monkeypatch, model, fp32=0, fp16=0)
    painting.paint(draw(1))
    memory.calls.clear()
    memory.fits[FP16] = 1
    small = draw(2, 20, 20)
    assert_same(painting.paint(small), singly(model, small, half=True))
    assert {place for place, _, _ in memory.calls} == {"device"}


def test_attributes_are_those_of_both_copies(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attributes = {"size": 32, "strength": 1.5, "upsampling": "bicubic"}
    painting, _ = on_device(monkeypatch, model, fp32=0, fp16=0, **attributes)
    pictures = draw(2, 90, 70)
    assert_same(painting.paint(pictures), singly(model, pictures, **attributes))
    for copy in (painting.model, painting.on_cpu):
        assert {name: getattr(copy, name) for name in attributes} == attributes
    assert painting.on_cpu is painting.on_cpu


def test_another_accelerator_than_cuda_has_no_fp16(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    painting, memory = on_device(monkeypatch, model, 0, error=RuntimeError("MPS out of memory"), name="mps")
    pictures = draw(2)
    assert_same(painting.paint(pictures), singly(model, pictures))
    assert memory.calls == [("device", FP32, 2), *[("device", FP32, 1), ("cpu", FP32, 1)] * 2]
    assert capsys.readouterr().err.splitlines() == [HALVED.format(2, 1), TO_CPU.replace("cuda:0", "mps")]


def too_large() -> Exception:
    """Return what torch raises where the CPU's memory does not suffice."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError(f"{SCRIPTED}RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB.\n"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
        too_large(),
    ],
    ids=["typed", "scripted", "driver", "cublas", "python", "cpu"],
)
def test_every_way_of_saying_it_is_understood(
    error: Exception, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_out_of_memory(error)
    painting, memory = on_device(monkeypatch, model, fp32=1, error=error)
    pictures = draw(2)
    assert_same(painting.paint(pictures), singly(model, pictures))
    assert memory.calls == [("device", FP32, n) for n in (2, 1, 1)]


@pytest.mark.parametrize("error", [MemoryError(), too_large()], ids=["python", "torch"])
def test_a_cpu_without_memory_passes_it_up(
    error: Exception, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    painting = Painter(model, CPU)
    memory = StandInMemory(painting, fp32=0, error=error)
    monkeypatch.setattr(runner, "infer", memory)
    with pytest.raises(MemoryError, match=r"^not enough memory for a picture of this size$"):
        painting.paint(draw(2))
    assert memory.calls == [("device", FP32, n) for n in (2, 1)]
    assert capsys.readouterr().err.splitlines() == [HALVED.format(2, 1)]
    memory.fits[FP32] = 9
    pictures = draw(2)
    assert_same(painting.paint(pictures), singly(model, pictures))  # the next is not lost


def test_a_cpu_that_stands_in_without_memory_passes_it_up_too(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(*_: Any) -> Tensor:
        raise too_large()

    painting = Painter(model, StandInDevice("cuda:0"))
    monkeypatch.setattr(runner, "infer", stand_in)
    with pytest.raises(MemoryError, match=r"^not enough memory for a picture of this size$"):
        painting.paint(draw(1))


class Refusing(nn.Module):
    """Raises as Colorizer does where its network fails, unless it runs in fp32 and `only_half`."""

    def __init__(self, only_half: bool) -> None:
        super().__init__()
        self.only_half = only_half
        self.register_buffer("precision", torch.zeros(0))

    def forward(self, image: Tensor) -> Tensor:
        if self.precision.dtype == torch.float16 or not self.only_half:
            raise ValueError("the network's output is not finite: use another precision")
        return image


@pytest.fixture(params=[True, False], ids=["only-half", "always"])
def refusing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, bool]]:
    """Return a TorchScript file that raises, and whether in fp16 only."""
    path = tmp_path / "refusing.ts"
    told = {"format": checkpoint.EXPORT_FORMAT, "version": VERSION, "recipe": {"input": "L"}}
    torch.jit.script(Refusing(request.param)).save(path, _extra_files={"tinct.json": json.dumps(told)})
    return path, request.param


def test_what_a_script_raises_ends_in_one_line(refusing: tuple[Path, bool]) -> None:
    path, only_half = refusing
    painting = Painter(path, CPU)
    if only_half:
        painting.model.half()
    sentence = r"^the network's output is not finite: use another precision$"
    with pytest.raises(RuntimeError, match=sentence):
        painting.paint(draw(2))


def test_what_overflows_in_fp16_goes_to_the_cpu(
    refusing: tuple[Path, bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, only_half = refusing
    painting, memory = on_device(monkeypatch, path, fp32=0, fp16=9)
    pictures = draw(2)
    if only_half:
        assert_same(painting.paint(pictures), pictures)
    else:
        with pytest.raises(RuntimeError, match=r"^the network's output is not finite: use another \w+$"):
            painting.paint(pictures)
    assert memory.calls[:4] == [
        ("device", FP32, 2),
        ("device", FP32, 1),
        ("device", FP16, 1),
        ("cpu", FP32, 1),
    ]
    assert capsys.readouterr().err.splitlines() == [HALVED.format(2, 1), TO_FP16, OVERFLOW]


def test_an_overflow_in_a_batch_does_not_halve_it(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = RuntimeError("the network's output is not finite: use another precision, or another epoch")
    painting, memory = on_device(monkeypatch, model, fp32=0, fp16=9)
    painting.paint(draw(1))
    memory.fits[FP16], memory.error = 0, error
    memory.calls.clear()
    capsys.readouterr()
    pictures = draw(3)
    assert_same(painting.paint(pictures), singly(model, pictures))
    assert memory.calls == [("device", FP16, 3), ("cpu", FP32, 3)]
    assert capsys.readouterr().err.splitlines() == [OVERFLOW]


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (f"{SCRIPTED}  File 'x.py', line 3\n    <--- HERE\nRuntimeError: sizes differ: 3 and 4\n",
         "sizes differ: 3 and 4"),
        (f"{SCRIPTED}    <--- HERE\nbuiltins.ValueError: an image is 4-D\n", "an image is 4-D"),
        ("Given groups=1, expected 3 channels", "Given groups=1, expected 3 channels"),
        (CUDA_ERROR, "CUDA error: an illegal memory access was encountered"),
        (f"{SCRIPTED}    <--- HERE\nRuntimeError: {CUDA_ERROR}\n",
         "CUDA error: an illegal memory access was encountered"),
        ("", "RuntimeError"),
        (" \n", "RuntimeError"),
    ],
)  # fmt: skip
def test_another_error_is_said_in_one_line(
    said: str, line: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert one_line(RuntimeError(said)) == line
    assert not is_out_of_memory(RuntimeError(said))
    painting, memory = on_device(monkeypatch, model, 0, error=RuntimeError(said))
    with pytest.raises(RuntimeError) as caught:
        painting.paint(draw(2))
    assert str(caught.value) == line
    assert caught.value.__cause__ is memory.error
    assert len(memory.calls) == 1  # and nothing is tried again
    assert capsys.readouterr().err == ""


def test_a_model_that_does_not_fit_works_on_the_cpu(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, device: Any) -> Any:
        if device.type == "cuda":
            raise NO_MEMORY
        return load_exported(path, device)

    monkeypatch.setattr(runner, "load_exported", full)
    painting, pictures = Painter(model, StandInDevice("cuda:0"), strength=0.5), draw(2)
    assert painting.device == CPU
    said = "the model does not fit into the memory of cuda:0: colouring on the CPU, which is slower\n"
    assert capsys.readouterr().err == said
    assert_same(painting.paint(pictures), singly(model, pictures, strength=0.5))


def test_a_file_that_is_no_generator_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.ts").write_bytes(b"hello")
    with pytest.raises(ValueError, match="is not a TorchScript file"):
        Painter(tmp_path / "x.ts", CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_gpu_paints_as_the_cpu_does(model: Path, dtype: Any) -> None:
    pictures = draw(3, 120, 90, dtype)
    assert_same(Painter(model, torch.device("cuda")).paint(pictures), singly(model, pictures))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fits", [(2, 2), (0, 1), (0, 0)])
def test_a_gpu_without_memory_takes_every_step(
    fits: tuple[int, int], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painting = Painter(model, torch.device("cuda"))
    monkeypatch.setattr(runner, "infer", StandInMemory(painting, *fits))
    pictures = draw(5, 120, 90)
    assert_same(painting.paint(pictures), singly(model, pictures))
    assert painting.half == (fits[0] == 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_own_memory_runs_out(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    painting = Painter(model, torch.device("cuda"))
    pictures = draw(2, 3000, 2500)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**25 / total)  # less than one of them takes
    try:
        found = painting.paint(pictures)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_same(found, singly(model, pictures))
    assert capsys.readouterr().err.splitlines()[:2] == [HALVED.format(2, 1), TO_FP16]
