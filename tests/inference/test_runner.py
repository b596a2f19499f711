"""runner.py: pictures in batches, and what happens where memory is not enough."""

from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, StandInRunner, small_model, write_model
from torch import Tensor, nn

from config import UserError
from imaging.pixels import Frame
from inference import runner
from inference.checkpoint import METADATA, infer, infer_each, load_exported
from inference.runner import Pixels, Runner, is_out_of_memory, one_line

FP32, FP16 = torch.float32, torch.float16
HALVED = "out of memory with {} pictures at a time: going on with {}"
TO_FP16 = "out of memory with one picture: going on in fp16"
TO_CPU = "a picture does not fit into the memory of cuda:0: colouring it on the CPU, which is slower"
OVERFLOW = "a picture overflows in fp16: colouring it on the CPU, which is slower"
NO_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB in all")
NOT_FINITE = "the network's output is not finite: use another precision, or another epoch"
SCRIPTED = "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript:\n"


class StandInDevice(str):
    """In place of an accelerator: torch takes it for the CPU, everybody else reads its name."""

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
    """In place of `infer_each`, with the memory of an accelerator; notes what was run where."""

    def __init__(self, owner: Runner, fp32: int, fp16: int = 0, error: Exception = NO_MEMORY) -> None:
        self.owner, self.fits, self.error = owner, {FP32: fp32, FP16: fp16}, error
        self.calls: list[tuple[str, torch.dtype, int]] = []

    def __call__(self, model: nn.Module, images: list[Tensor], hints: list[Tensor | None]) -> list[Tensor]:
        here, precision = model is self.owner.model, model.precision.dtype
        self.calls.append(("device" if here else "cpu", precision, len(images)))
        assert len(self.calls) < 50, "it goes on and on"
        if here and len(images) > self.fits[precision]:
            raise self.error
        return infer_each(model, images, hints)


OnDevice = Callable[..., tuple[Runner, StandInMemory]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("runner") / "model.ts")


@pytest.fixture
def on_device(model: Path, monkeypatch: pytest.MonkeyPatch) -> OnDevice:
    """Return what makes a Runner on a stand-in for an accelerator that holds so many pictures."""

    def make(
        fp32: int, fp16: int = 0, error: Exception = NO_MEMORY, name: str = "cuda:0", path: Path = model
    ) -> tuple[Runner, StandInMemory]:
        made = Runner(path, StandInDevice(name))
        memory = StandInMemory(made, fp32, fp16, error)
        monkeypatch.setattr(runner, "infer_each", memory)
        return made, memory

    return make


def draw(count: int, height: int = 30, width: int = 41, dtype: Any = np.uint8) -> list[Pixels]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, np.iinfo(dtype).max, (count, height, width, 3), dtype, endpoint=True))


def singly(path: Path, pictures: list[Pixels], half: bool = False, **attributes: Any) -> list[Pixels]:
    """Colour pictures one by one, without a Runner."""
    module = load_exported(path, CPU).module
    for name, value in attributes.items():
        setattr(module, name, value)
    if half:
        module.half()
    colours = [infer(module, torch.from_numpy(picture).permute(2, 0, 1)[None]) for picture in pictures]
    return [colour[0].permute(1, 2, 0).numpy() for colour in colours]


def assert_same(found: list[Pixels], expected: list[Pixels]) -> None:
    """Compare pictures in their order, within a level of uint8."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        level = np.iinfo(theirs.dtype).max // 255
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= level
    assert not any(np.array_equal(a, b) for a, b in pairwise(expected))  # or a wrong order would not show


@pytest.mark.parametrize(("count", "dtype"), [(0, np.uint8), (1, np.uint16), (5, np.uint8), (5, np.uint16)])
def test_a_batch_is_what_the_model_gives_for_each_picture(model: Path, count: int, dtype: Any) -> None:
    pictures = draw(count, dtype=dtype)
    before = [picture.copy() for picture in pictures]
    assert_same(Runner(model, CPU).run(pictures), singly(model, pictures))
    assert all((a == b).all() for a, b in zip(pictures, before, strict=True))


@pytest.mark.parametrize("scripted", [False, True])
def test_pictures_that_the_network_sees_at_one_size_go_through_it_together(scripted: bool, tmp_path: Path) -> None:
    made, pictures, passes = Runner(write_model(tmp_path / "model.ts", hints=True), CPU), [], []
    if not scripted:
        made.model = small_model(hints=True)[0]
        made.model.generator.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    sizes = [(60, 80), (120, 160), (64, 86), (80, 60), (33, 200), (90, 120)]  # seen at 32 x 43, but for two
    for i, (height, width) in enumerate(sizes):
        pictures += draw(1, height, width, dtype=np.uint16 if i == 2 else np.uint8)
    layers = [None, np.zeros((120, 160, 4), np.uint8), None, None, None, None]
    layers[1][40:80, 30:90] = (200, 30, 30, 255)
    alone = [made.run([picture], [layer])[0] for picture, layer in zip(pictures, layers, strict=True)]
    passes.clear()
    assert_same(made.run(pictures, layers), alone)
    if not scripted:
        assert sorted(passes) == [1, 4, 4]  # the long one in four parts
    assert (alone[1] != made.run(pictures)[1]).any()


def test_networks_that_normalise_by_the_batch_colour_one_picture_at_a_time(on_device: OnDevice, tmp_path: Path) -> None:
    recipe = asdict(replace(small_model()[1], norm_stats="batch"))
    made, memory = on_device(fp32=9, path=write_model(tmp_path / "model.ts", recipe=recipe))
    made.run(draw(3))
    assert memory.calls == [("device", FP32, 1)] * 3


def test_settings_are_those_of_the_module_and_none_leaves_them(model: Path) -> None:
    pictures = draw(2, 90, 70)
    settings = {"size": 64, "strength": 0.5, "upsampling": "bicubic"}
    assert_same(Runner(model, CPU, **settings).run(pictures), singly(model, pictures, **settings))
    plain = Runner(model, CPU, size=None, strength=None, upsampling=None)
    assert (plain.model.size, plain.model.strength, plain.model.upsampling) == (32, 1.0, "guided")
    with pytest.raises(TypeError, match="strenght"):
        Runner(model, CPU, strenght=0.5)


@pytest.mark.parametrize("kind", ["L", "sketch"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_transparency_is_paper_to_line_art_and_white_elsewhere(kind: str, dtype: Any) -> None:
    made = StandInRunner(kind)
    white = 1.0 if dtype == np.float32 else np.iinfo(dtype).max
    alpha = (np.linspace(0, 1, 7)[None].repeat(5, 0) * white).astype(dtype)
    pixels = np.full((5, 7, 3), white / 4).astype(dtype)
    seen = made.prepare(Frame(pixels, alpha))
    assert seen.pixels.dtype == dtype
    if kind == "L":
        assert (seen.pixels[:, 0] == white).all()
        assert (seen.pixels[:, 1:] == pixels[:, 1:]).all()
        assert seen.alpha is alpha
    else:
        share = (alpha / white)[..., None]
        assert np.abs(seen.pixels - (pixels * share + white * (1 - share))).max() <= max(0.51, white * 1e-5)
        assert seen.alpha is None
    assert made.prepare(Frame(pixels, None)).pixels is pixels


def test_a_batch_is_halved_until_it_fits(on_device: OnDevice, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, memory = on_device(fp32=2)
    pictures = draw(9)  # of which a batch has BATCH at most
    assert_same(made.run(pictures), singly(model, pictures))
    assert memory.calls == [("device", FP32, n) for n in (8, 4, 2, 2, 2, 2, 1)]
    assert capsys.readouterr().err.splitlines() == [HALVED.format(8, 4), HALVED.format(4, 2)]
    memory.fits[FP32] = 99
    for height, width, counts in ((15, 41, (4, 1)), (60, 41, (1, 1))):
        memory.calls.clear()  # what did not fit is remembered, in pixels
        made.run(draw(sum(counts), height, width))
        assert memory.calls == [("device", FP32, n) for n in counts]
    assert capsys.readouterr().err == ""


def test_then_fp16_then_the_cpu(on_device: OnDevice, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, memory = on_device(fp32=0, fp16=1)
    pictures = draw(2)
    assert_same(made.run(pictures), singly(model, pictures, half=True))
    assert memory.calls == [("device", FP32, 2), ("device", FP32, 1), *[("device", FP16, 1)] * 2]
    memory.calls.clear()
    memory.fits[FP16] = 0
    assert_same(made.run(pictures), singly(model, pictures))
    assert memory.calls == [("device", FP16, 1), ("cpu", FP32, 1)] * 2
    assert capsys.readouterr().err.splitlines() == [HALVED.format(2, 1), TO_FP16, TO_CPU]
    made.run(pictures)
    assert capsys.readouterr().err == ""  # each was said once
    memory.fits[FP16] = 1
    memory.calls.clear()
    small = draw(2, 20, 20)
    assert_same(made.run(small), singly(model, small, half=True))
    assert {place for place, _, _ in memory.calls} == {"device"}  # to which smaller pictures return


def test_what_is_set_later_reaches_the_cpu_too(on_device: OnDevice, model: Path) -> None:
    made, _ = on_device(fp32=0, fp16=0)
    pictures = draw(2)
    for strength in (0.5, 1.5):  # before the first picture, and when the CPU has its model already
        made.set("strength", strength)
        assert_same(made.run(pictures), singly(model, pictures, strength=strength))


def test_another_accelerator_than_cuda_has_no_fp16(on_device: OnDevice) -> None:
    made, memory = on_device(0, error=RuntimeError("MPS out of memory"), name="mps")
    made.run(draw(2))
    assert memory.calls == [("device", FP32, 2), *[("device", FP32, 1), ("cpu", FP32, 1)] * 2]


def too_large() -> Exception:
    """Return what torch raises where the CPU's memory is not enough."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError(f"{SCRIPTED}RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB.\n"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
        too_large(),
    ],
    ids=["typed", "scripted", "cublas", "python", "cpu"],
)
def test_errors_about_memory_are_recognised(error: Exception, on_device: OnDevice, model: Path) -> None:
    assert is_out_of_memory(error)
    made, memory = on_device(fp32=1, error=error)
    assert_same(made.run(draw(2)), singly(model, draw(2)))
    assert memory.calls == [("device", FP32, n) for n in (2, 1, 1)]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_cpu_without_memory_is_a_memory_error(
    device: str, on_device: OnDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Tensor:
        raise too_large()

    made, memory = on_device(fp32=9, name=device)
    monkeypatch.setattr(runner, "infer_each", full)
    with pytest.raises(MemoryError, match="not enough memory for a picture"):
        made.run(draw(2))
    monkeypatch.setattr(runner, "infer_each", memory)
    assert len(made.run(draw(2))) == 2  # the next pictures are not lost


class Refusing(nn.Module):
    """Raises as Colorizer does where its network overflows; in fp32 too, unless `only_half`."""

    def __init__(self, only_half: bool) -> None:
        super().__init__()
        self.only_half = only_half
        self.register_buffer("precision", torch.zeros(0))

    def forward(self, image: Tensor) -> Tensor:
        if self.precision.dtype == torch.float16 or not self.only_half:
            raise ValueError("the network's output is not finite: use another precision, or another epoch")
        return image


@pytest.mark.parametrize("only_half", [True, False])
def test_what_overflows_in_fp16_is_coloured_on_the_cpu(
    only_half: bool, model: Path, on_device: OnDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {METADATA: ""}
    torch.jit.load(model, _extra_files=files)
    torch.jit.script(Refusing(only_half)).save(tmp_path / "x.ts", _extra_files=files)
    made, memory = on_device(fp32=0, fp16=9, path=tmp_path / "x.ts")
    if only_half:
        assert_same(made.run(draw(2)), draw(2))
        assert_same(made.run(draw(3, 10, 10)), draw(3, 10, 10))  # of which several fit into a batch
    else:
        with pytest.raises(UserError, match=f"^{NOT_FINITE}$"):
            made.run(draw(2))
    steps = [("device", FP32, 2), ("device", FP32, 1), ("device", FP16, 1), ("cpu", FP32, 1)]
    assert memory.calls[:4] == steps
    assert capsys.readouterr().err.splitlines() == [HALVED.format(2, 1), TO_FP16, OVERFLOW]


CUDA_ERROR = "CUDA error: an illegal memory access was encountered\nFor debugging consider passing X=1\n"


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (f"{SCRIPTED}  File 'x.py'\n    <--- HERE\nRuntimeError: sizes differ: 3\n", "sizes differ: 3"),
        (f"{SCRIPTED}    <--- HERE\nbuiltins.ValueError: an image is 4-D\n", "an image is 4-D"),
        (CUDA_ERROR, "CUDA error: an illegal memory access was encountered"),
        (f"{SCRIPTED}RuntimeError: {CUDA_ERROR}", "CUDA error: an illegal memory access was encountered"),
        (" \n", "RuntimeError"),
    ],
)
def test_another_error_is_raised_in_one_line_at_once(said: str, line: str, on_device: OnDevice) -> None:
    error = RuntimeError(said)
    assert one_line(error) == line
    assert not is_out_of_memory(error)
    made, memory = on_device(0, error=error)
    with pytest.raises(RuntimeError) as caught:
        made.run(draw(2))
    assert (type(caught.value), str(caught.value), caught.value.__cause__) == (RuntimeError, line, error)
    assert len(memory.calls) == 1


def test_a_model_that_does_not_fit_works_on_the_cpu(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, device: Any) -> Any:
        if device.type == "cuda":
            raise NO_MEMORY
        return load_exported(path, device)

    monkeypatch.setattr(runner, "load_model", full)
    made, pictures = Runner(model, StandInDevice("cuda:0"), strength=0.5), draw(2)
    assert made.device == CPU
    assert "does not fit into the memory of cuda:0" in capsys.readouterr().err
    assert_same(made.run(pictures), singly(model, pictures, strength=0.5))


def test_threads_may_share_a_runner(on_device: OnDevice, model: Path) -> None:
    made, _ = on_device(fp32=0, fp16=0)  # every picture changes its state
    pictures, found = draw(6), {}
    threads = [Thread(target=lambda i=i: found.update({i: made.run([pictures[i]])[0]})) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same([found[i] for i in range(6)], singly(model, pictures))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_memory_of_a_gpu_runs_out(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Runner(model, torch.device("cuda"))
    pictures = draw(2, 3000, 2500)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**25 / total)  # less than one of them takes
    try:
        found = made.run(pictures)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_same(found, singly(model, pictures))
    assert capsys.readouterr().err.splitlines()[:2] == [HALVED.format(2, 1), TO_FP16]
