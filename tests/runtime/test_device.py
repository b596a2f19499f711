"""device.py: the device asked for, or a sentence that says why not."""

import json
import re
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from config import UserError, make_recipe
from models import count_channels, fit_networks, meta_generator
from runtime import device
from runtime import device as devices
from runtime.device import (
    MIN_COMPILED_STEPS,
    can_compile,
    computed_in,
    device_name,
    pays_to_compile,
    pick_device,
    pick_precision,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_takes_the_best(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto") == torch.device(device)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cpu:x", "no device cpu:x"),
        ("cuda:2", "cuda:2 .* 2 CUDA devices; use --device cpu"),
        ("mps", "mps .*; use --device cpu"),
    ],
)
def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match=words):
        pick_device(name)


def test_a_device_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert device_name(torch.device("cuda:1")) == "card 1"
    assert re.fullmatch(rf"\S.*, threads: {torch.get_num_threads()}", device_name(torch.device("cpu")))


@pytest.mark.parametrize(("feature", "auto"), [("avx2", "fp32"), ("amx_bf16", "bf16"), ("avx512_bf16", "bf16")])
def test_precision_is_what_the_hardware_multiplies(monkeypatch: pytest.MonkeyPatch, feature: str, auto: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True})
    cpu = torch.device("cpu")
    assert pick_precision("auto", cpu) == auto
    assert [pick_precision(precision, cpu) for precision in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert [computed_in(precision, cpu) for precision in ("fp32", "bf16", "fp16")] == ["fp32", auto, "fp32"]
    assert computed_in("fp16", torch.device("cuda")) == pick_precision("fp16", torch.device("cuda")) == "fp16"
    with pytest.raises(UserError, match="precision fp16 needs CUDA"):
        pick_precision("fp16", cpu)


def test_compiling_pays_in_long_runs_on_hardware_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(device, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(device, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    (tmp_path / "Python.h").touch()
    long, cpu = MIN_COMPILED_STEPS, torch.device("cpu")
    assert [pays_to_compile(torch.device("cuda"), "fp32", steps) for steps in (long, long - 1)] == [True, False]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert [pays_to_compile(cpu, precision, long) for precision in ("bf16", "fp32")] == [True, False]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert not pays_to_compile(cpu, "bf16", long)  # which it emulates


@pytest.mark.parametrize("missing", ["compiler", "headers", "triton", "units", None])
def test_compiling_needs_a_compiler_headers_and_triton(
    missing: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if missing == "compiler" else f"/bin/{name}")
    monkeypatch.setattr(device, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(device, "find_spec", lambda name: None if missing == "triton" else object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1) if missing == "units" else (7, 0))
    if missing != "headers":
        (tmp_path / "Python.h").touch()
    assert can_compile(torch.device("cuda")) == (missing is None)
    assert can_compile(torch.device("cpu")) == (missing not in ("compiler", "headers"))


def test_the_faster_memory_format_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def faster(convolution: nn.Module, shape: torch.Size, precision: str) -> str:
        tried.append((*shape,))
        return "channels_last"

    monkeypatch.setattr(devices, "_faster_format", faster)
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 2, 1))
    given = network, (2, 1, 16, 16), CPU, "fp32", tmp_path
    for _ in range(2):
        assert devices.pick_format(*given) == "channels_last"
    assert tried == [(2, 8, 14, 14)]  # of the largest, and once
    path = tmp_path / devices.FORMATS_FILE
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), "contiguous")))
    assert devices.pick_format(*given) == "contiguous"
    path.write_text("{")  # damaged: tried again
    assert devices.pick_format(*given) == "channels_last"
    assert devices.pick_format(network, (2, 1, 16, 16), torch.device("cuda"), "bf16", tmp_path) == "channels_last"


def test_trying_memory_formats_leaves_random_numbers_alone(tmp_path: Path) -> None:
    recipe = fit_networks(make_recipe("demo", {"size": 32, "ngf": 4}))
    before = torch.get_rng_state()
    shape = (2, count_channels(recipe)[0], 32, 32)
    assert devices.pick_format(meta_generator(recipe), shape, CPU, "fp32", tmp_path) in devices.FORMATS
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(devices.platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_freed_memory_is_used_again() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.ones(2**23)  # 32 MiB, 8,192 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert devices.keep_freed_memory()
    faults()
    assert faults() < 8192


def test_the_header_names_threads_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    name = devices.device_name(CPU)
    assert devices.machine_words(CPU, True) == f"{name}, spinning 7 times before they sleep, oneDNN, freed memory kept"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert devices.machine_words(CPU, False) == f"{name}, no oneDNN"
