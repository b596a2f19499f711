"""Fixtures: a model of recipe `photo` without training, pictures, and colorizer.html of that model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import export
import models
from config import ROOT, UserError, make_recipe
from dataset import scenes
from inference import checkpoint, exporters, web
from models import fit_networks

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE = 60_000  # ms; the runtime is compiled at the first picture, and other programs may be busy


@contextmanager
def shallow() -> Iterator[pytest.MonkeyPatch]:
    """Leave the network of `photo` one block of each kind, which is exported in half the time."""
    with pytest.MonkeyPatch.context() as patch:
        stages = [[(1, *kind) for _, *kind in stage] for stage in models.LITE_STAGES]
        patch.setattr(models, "LITE_STAGES", stages)
        yield patch


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a generator.ts with random weights, whose colours are strong."""
    recipe = fit_networks(make_recipe("photo", {"size": 64, "test_size": 64, "ngf": 16}))
    path = tmp_path_factory.mktemp("model") / "generator.ts"
    with shallow() as patch:
        torch.manual_seed(3)
        colorizer = checkpoint.build_colorizer(recipe).eval()
        with torch.no_grad():
            for module in colorizer.modules():  # else BatchNorm that saw nothing lets every signal die
                if isinstance(module, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            colorizer.generator.last.weight *= 2  # whatever the seed
        patch.setattr(exporters, "SIZES", ((40, 60),))
        patch.setattr(exporters, "BATCHES", (1,))
        record = checkpoint.ExportRecord(recipe, 1, "fp16", trained_on="nothing")
        exporters.write(path, colorizer.requires_grad_(False), record, "ts", [torch.device("cpu")])
    return path


@pytest.fixture(scope="session")
def html(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return colorizer.html; skips where ONNX Runtime's package is neither in cache/ nor to be downloaded."""
    pytest.importorskip("onnxscript", reason="colorizer.html needs onnx and onnxscript")
    with shallow() as patch:
        patch.setattr(web, "CACHE", ROOT / "cache")
        try:
            web.fetch_runtime()
        except UserError as error:
            pytest.skip(f"colorizer.html needs ONNX Runtime Web: {error}")
        patch.chdir(tmp_path_factory.mktemp("html"))
        return export.main(format_="html", model=model).resolve()


@pytest.fixture
def open_page(browser: "Browser") -> "Iterator[Callable[..., Page]]":
    """Yield a function that opens a page at an address; what it complains of or asks elsewhere fails the test."""
    contexts, said, asked, own = [], [], [], []

    def opened(url: str, script: str = "", **options: Any) -> "Page":
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        context.add_init_script(script)
        page = context.new_page()
        # where the server says that a file is no picture, the browser says so on its own
        page.on("console", lambda message: "status of 422" in message.text or said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda sent: asked.append(sent.url))
        page.on("dialog", lambda dialog: dialog.accept())  # spots would be lost
        page.goto(url)
        own.append(url.partition("?")[0])
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    foreign = [url for url in asked if not url.startswith(("data:", "blob:", *own))]
    assert foreign == []


@pytest.fixture
def page(open_page: "Callable[..., Page]", html: Path) -> "Page":
    """Return colorizer.html, open at 1280 x 800 px."""
    return open_page(html.as_uri())


SHAPES = [(90, 140), (140, 90), (96, 96), (61, 37), (400, 601), (33, 260), (700, 120), (1, 1), (5, 300), (640, 480)]


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return ten pictures, gray and coloured, of many shapes: PNG, as every decoder reads the same from it."""
    folder, paths = tmp_path_factory.mktemp("photographs"), []
    for i, (height, width) in enumerate(SHAPES):
        drawn = Image.fromarray(np.ascontiguousarray(scenes.draw(i, 256)[0]))
        picture = drawn.resize((width, height), Image.Resampling.BICUBIC)
        paths.append(folder / f"p{i}.png")
        (picture if i % 3 == 2 else picture.convert("L")).save(paths[-1])
    return paths
