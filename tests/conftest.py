"""Fixtures: every test works in a folder of its own; a folder of small pictures; one tiny trained run.

Heavy packages are imported inside the fixtures: pytest's first process only deals out the tests, and needs none.
"""

import hashlib
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime import cli  # noqa: F401  which tells OpenMP how long to spin, before torch is loaded

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from torch import Tensor

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")


def stand_in(name: str) -> "dict[str, Tensor]":
    """Return random weights with the names and shapes of a published file; they share a few numbers."""
    import torch
    import torchvision

    import models

    with torch.device("meta"):
        if name == "danbooru":
            extractor = models.DanbooruFeatures()
            head = {"0": "2", "1": "4"}  # places in the published file
            shapes = {f"0.{key}": value for key, value in extractor.body.state_dict().items()}
            shapes |= {f"1.{head[key[0]]}{key[1:]}": v for key, v in extractor.head.state_dict().items()}
        elif name == "lite0":
            shapes = models.LiteClassifier().state_dict()  # in the order of the published file
        else:
            network = torchvision.models.get_model(name)
            shapes = network.state_dict()
            if name in ("vgg16", "alexnet"):  # without their classifiers, half a gigabyte of them
                shapes = {f"features.{key}": value for key, value in network.features.state_dict().items()}
    torch.manual_seed(0)
    most = max(value.numel() for value in shapes.values())
    numbers = (0.05 if name in ("vgg16", "alexnet") else 0.02) * torch.randn(most)  # stored once
    around_one = 1 + numbers.abs()
    found = {}
    for key, value in shapes.items():
        scale = value.ndim == 1 and key.endswith(("weight", "running_var"))
        found[key] = (around_one if scale else numbers)[: value.numel()].view(value.shape).to(value.dtype)
    return found


@pytest.fixture(autouse=True)
def compared_on_few_images(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare exported files on two images and not on six, but where the comparison itself is tested."""
    if request.path.name != "test_exporters.py":
        monkeypatch.setattr("inference.exporters.SIZES", ((37, 61),))


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return files of random numbers under the published weights' names, shapes and keys."""
    import torch

    from runtime import weights

    folder, files = tmp_path_factory.mktemp("weights"), {}
    for name in weights.WEIGHTS.keys() - {"inception"}:  # a program, not a list of tensors
        torch.save(stand_in(name), folder / name)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        files[name] = (folder / name).rename(folder / f"{name}-{digest[:8]}.pth")
    return files


@pytest.fixture
def weights_folder(stand_ins: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of stand-ins, which WEIGHTS then names; the Danbooru network looks at 64 px."""
    from runtime.weights import WEIGHTS

    monkeypatch.setattr("models.DanbooruFeatures.SIZE", 64)
    for name, path in stand_ins.items():
        monkeypatch.setitem(WEIGHTS, name, (f"https://example.org/{path.name}",))
    return next(iter(stand_ins.values())).parent


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep runs/ and cache/ out of the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread: tiny networks gain nothing from more, and on a busy machine threads wait."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def one_memory_format() -> Iterator[None]:
    """Let no training try which memory format is faster: what comes out depends on how busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.setup.pick_format", lambda *_: "contiguous")
        yield


@pytest.fixture
def time_limit() -> Iterator[None]:
    """Let a test that would never end fail after two minutes, and the others go on."""

    def give_up(*_: object) -> None:
        pytest.fail("it takes for ever")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test that does not look at them the drawing of losses, half of a tiny run's time."""
    monkeypatch.setattr("reporting.curves.plot_losses", lambda *_: None)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 12 training and 4 validation pictures, of several shapes, formats and depths."""
    import numpy as np
    from PIL import Image

    from dataset import scenes

    root = tmp_path_factory.mktemp("pictures")
    for i in range(16):
        folder = root / ("train" if i < 12 else "val") / ("a" if i % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        picture = scenes.draw(i, 64)[0][: 64 - i, : 40 + i]
        Image.fromarray(np.ascontiguousarray(picture)).save(folder / f"p{i:02d}.{'jpg' if i % 3 else 'PNG'}")
    return root


@pytest.fixture(scope="session")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder of two saved epochs of a tiny photo colouriser."""
    from helpers import TINY

    import train

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        return train.main(recipe="coco", data=str(pictures), epochs=2, save_every=1, **TINY).resolve()


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """Yield a headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pages need playwright to be tested")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser to open a page in: none of {' '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started:
        # WebAssembly is compiled once, quickly: to optimise it takes longer than it saves on a few pictures
        options = ["--no-sandbox", "--js-flags=--no-wasm-tier-up,--no-wasm-dynamic-tiering"]
        opened = started.chromium.launch(executable_path=found, args=options)
        yield opened
        opened.close()
