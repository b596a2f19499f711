"""device.py: the device asked for, or a sentence that says why not."""

import re

import pytest
import torch

from config import UserError
from runtime.device import device_name, pick_device, pick_precision


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
    assert pick_precision("fp16", torch.device("cuda")) == "fp16"
    with pytest.raises(UserError, match="precision fp16 needs CUDA"):
        pick_precision("fp16", cpu)
