"""Fixtures: every test works in a folder of its own; a folder of small pictures; one tiny trained run."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers import TINY
from PIL import Image
from torch import Tensor

import models
import train
from dataset import scenes
from runtime import weights

torch.set_num_threads(
    1
)  # tiny networks gain nothing from more, and on a busy machine threads wait for each other


def stand_in(name: str) -> dict[str, Tensor]:
    """Return random weights under the names of a published file."""
    torch.manual_seed(0)
    if name in ("vgg16", "alexnet"):  # without their classifiers, half a gigabyte of them
        with torch.device("meta"):
            shapes = {k: v.shape for k, v in torchvision.models.get_model(name).features.state_dict().items()}
        numbers = 0.05 * torch.randn(max(shape.numel() for shape in shapes.values()))  # shared: stored once
        return {f"features.{k}": numbers[: shape.numel()].view(shape) for k, shape in shapes.items()}
    if name == "danbooru":
        extractor = models.DanbooruFeatures()
        head = {
            key.replace("1.", "4.").replace("0.", "2."): v for key, v in extractor.head.state_dict().items()
        }
        body = extractor.body.state_dict()
        return {**{f"0.{k}": v for k, v in body.items()}, **{f"1.{k}": v for k, v in head.items()}}
    return torchvision.models.get_model(name).state_dict()


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return files of random numbers under the published weights' names, shapes and keys."""
    folder, files = tmp_path_factory.mktemp("weights"), {}
    for name in weights.WEIGHTS.keys() - {"inception"}:  # a program, not a list of tensors
        torch.save(stand_in(name), folder / name)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        files[name] = (folder / name).rename(folder / f"{name}-{digest[:8]}.pth")
    return files


@pytest.fixture
def weights_folder(stand_ins: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of stand-ins; while it is in use, features.WEIGHTS knows them by their own hashes."""
    for name, path in stand_ins.items():
        monkeypatch.setitem(weights.WEIGHTS, name, f"https://example.org/{path.name}")
    return next(iter(stand_ins.values())).parent


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep runs/ and cache/ out of the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 12 training and 4 validation pictures, of several shapes, formats and depths."""
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
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        return train.main(recipe="coco", data=str(pictures), epochs=2, save_every=1, **TINY).resolve()
