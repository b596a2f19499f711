"""Where and how the networks run: device, precision, memory, and the state of torch's random number generators."""

import copy
import ctypes
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path
from typing import Any

import torch
from torch import nn

from config import UserError
from runtime import distributed
from runtime.atomic import write_json

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}  # of tensors in memory
FORMATS_FILE = "memory_formats.json"  # in the cache: what pick_format found
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
MIN_COMPILED_STEPS = 5000  # fewer do not win back what torch.compile takes


def pick_device(name: str) -> torch.device:
    """Return the device called auto, cpu, cuda, cuda:1 or mps.

    Raises:
        UserError: unknown name, or not available on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"no device {name}: use auto, cpu, cuda or mps")
    device = torch.device(name)
    if name == "cuda" and distributed.is_joined():
        device = torch.device(name, distributed.local_rank())
    kind = device.type.upper()
    seen = {"CUDA": torch.cuda.device_count(), "MPS": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= seen.get(kind, 1):
        raise UserError(f"{device} asked for, but torch sees {seen[kind]} {kind} devices; use --device cpu")
    if device.type == "cuda" and distributed.is_joined():
        torch.cuda.set_device(device)  # or nccl would take the first for all
    return device


def device_name(device: torch.device) -> str:
    """Return what people call a device: the name of the GPU, or that of the CPU and how many threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    information = Path("/proc/cpuinfo")  # on Linux, where platform.processor() says no more than x86_64
    text = information.read_text() if information.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, threads: {torch.get_num_threads()}"


def rng_state() -> dict[str, Any]:
    """Return where torch's random numbers stand, on the CPU and on every GPU, for a state to hold."""
    return {"rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all()}


def restore_rng(state: Mapping[str, Any]) -> None:
    """Restore what rng_state returned; of the GPUs, where there are as many now."""
    torch.set_rng_state(state["rng"].cpu())
    if len(state["cuda_rng"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([rng.cpu() for rng in state["cuda_rng"]])


def pick_precision(precision: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16; auto takes what the hardware multiplies fastest.

    Raises:
        UserError: fp16 anywhere but on CUDA, where alone gradients are scaled.
    """
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"precision fp16 needs CUDA, this is {device.type}; use bf16, fp32 or auto")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    features = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if features.get("amx_bf16") or features.get("avx512_bf16") else "fp32"


def computed_in(precision: str, device: torch.device) -> str:
    """Return the precision in which a network that is stored in one is run: fp32 where a CPU emulates that one."""
    emulated = device.type == "cpu" and precision not in ("fp32", pick_precision("auto", device))
    return "fp32" if emulated else precision


def keep_freed_memory() -> bool:
    """Let glibc keep large blocks that are freed, for the training step or the batch that asks for them again.

    Left alone it gives each back to the system, which clears it anew: 4,000 to 10,000 page faults a step.
    The memory of the process stays at its peak. Returns False for other C libraries, which are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # in bytes; some versions take no more than 32 MB, and where it stays low, the other makes it worse
    raised = libc.mallopt(M_MMAP_THRESHOLD, 2**30) or libc.mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(raised and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def machine_words(device: torch.device, keeps_memory: bool) -> str:
    """Return what a run uses, for its header: the GPU; or the CPU, its threads, how they wait, oneDNN and memory.

    Args:
        keeps_memory: what keep_freed_memory returned.
    """
    words = [device_name(device)]
    if device.type == "cpu":
        spins = os.environ.get("GOMP_SPINCOUNT")  # set by runtime/cli.py; GCC's OpenMP alone reads it
        words += [f"spinning {spins} times before they sleep"] * bool(spins)
        words.append("oneDNN" if torch.backends.mkldnn.is_available() else "no oneDNN")
    words += ["freed memory kept"] * keeps_memory
    return ", ".join(words)


def can_compile(device: torch.device) -> bool:
    """Tell whether torch.compile has what it needs: a C++ compiler, Python's headers, and Triton on a GPU for it."""
    if shutil.which(os.environ.get("CXX", "g++")) is None or not Path(get_path("include"), "Python.h").is_file():
        return False
    if device.type != "cuda":
        return True
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (7, 0)


def pays_to_compile(device: torch.device, precision: str, steps: int) -> bool:
    """Tell whether torch.compile is possible, and wins back the minute or more that it takes.

    It does in a long run on CUDA, and on a CPU with units for bf16; in fp32 on a CPU without them it gained nothing.
    """
    has_units = precision != "fp32" and precision == pick_precision("auto", device)
    gains = device.type == "cuda" or (device.type == "cpu" and has_units)
    return gains and steps >= MIN_COMPILED_STEPS and can_compile(device)


def pick_format(network: nn.Module, shape: Sequence[int], device: torch.device, precision: str, cache: Path) -> str:
    """Return the one of FORMATS in which a network is trained fastest on this machine.

    On a CPU its largest convolution is tried in both, in under two seconds, and the result is kept in the
    cache: fp32 without AVX-512 is faster contiguous, bf16 on AMX is faster channels_last.

    Args:
        network: on the meta device.
        shape: of its input, (N, C, H, W).
        precision: as pick_precision returned it.
    """
    if device.type != "cpu":
        return "channels_last"
    convolution, shape = largest_convolution(network, shape)
    key = f"{device_name(device)}, torch {torch.__version__}, {precision}, {convolution} of {(*shape,)}"
    path = cache / FORMATS_FILE
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    if known.get(key) not in FORMATS:
        known[key] = _faster_format(convolution, shape, precision)
        write_json(path, known)
    return known[key]


def largest_convolution(network: nn.Module, shape: Sequence[int]) -> tuple[nn.Module, torch.Size]:
    """Return the convolution of a network on the meta device that multiplies most, and the shape of its input."""
    found: list[tuple[int, nn.Module, torch.Size]] = []

    def note(module: nn.Module, given: tuple[torch.Tensor], result: torch.Tensor) -> None:
        pixels = given[0] if isinstance(module, nn.ConvTranspose2d) else result
        found.append((module.weight.numel() * pixels[0, 0].numel(), module, given[0].shape))

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    with torch.no_grad():
        network(torch.empty(shape, device="meta"))
    for hook in hooks:
        hook.remove()
    _, module, given = max(found, key=lambda entry: entry[0])
    return module, given


def _faster_format(convolution: nn.Module, shape: Sequence[int], precision: str) -> str:
    """Return the one of FORMATS in which a convolution is faster forward and backward: the best of three, in turn."""
    best = dict.fromkeys(FORMATS, float("inf"))
    for _ in range(4):  # the first is the warm-up
        for name, memory_format in FORMATS.items():
            made = copy.deepcopy(convolution).to_empty(device="cpu").to(memory_format=memory_format)
            with torch.no_grad():  # no random numbers: those of the run stay as they are
                for parameter in made.parameters():
                    parameter.fill_(0.01)
            x = torch.ones(*shape).to(memory_format=memory_format).requires_grad_()
            started = time.perf_counter()
            with autocast(x.device, precision):
                result = made(x)
            result.backward(torch.ones_like(result))
            best[name] = min(best[name], time.perf_counter() - started)
    return min(best, key=best.__getitem__)


class Scaler(torch.amp.GradScaler):
    """Scales the gradients of fp16. An optimiser's step whose gradients are not finite is left out, without a wait.

    Where `skip`, so it is at any precision, at a scale that stays 1.
    """

    def __init__(self, device: torch.device, precision: str, skip: bool = False) -> None:
        self.is_fixed = skip and precision != "fp16"
        super().__init__(device.type, 1.0 if self.is_fixed else 2.0**16, enabled=precision == "fp16" or skip)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """Set the scale of the next step."""
        super().update(1.0 if self.is_fixed else new_scale)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which networks compute at a precision that pick_precision returned."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype, precision != "fp32")
