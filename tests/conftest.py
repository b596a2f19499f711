"""Fixtures: every test works in a folder of its own; a folder of small pictures; one tiny trained run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import scenes
import train

torch.set_num_threads(
    1
)  # tiny networks gain nothing from more, and on a busy machine threads wait for each other

TINY = {"size": 32, "batch_size": 4, "set_": ["ngf=4", "ndf=4", "log_every=1", "samples=2"], "device": "cpu"}


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
