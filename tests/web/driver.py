"""What a person does on the page, and what Python makes of the same picture."""

import base64
import io
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from inference.checkpoint import infer, load_exported
from inference.hint_files import Point, draw_points

if TYPE_CHECKING:
    from playwright.sync_api import Page

DROP = """files => {
    const carried = new DataTransfer();
    for (const [name, content] of files) {
        const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
        carried.items.add(new File([bytes], name, { type: name.endsWith('.json') ? 'application/json' : 'image/png' }));
    }
    for (const type of ['dragover', 'drop']) {
        document.body.dispatchEvent(new DragEvent(type, { dataTransfer: carried, bubbles: true, cancelable: true }));
    }
}"""


def drop(page: "Page", paths: list[Path]) -> None:
    """Drop files onto the page."""
    page.evaluate(DROP, [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths])


def ready(page: "Page", state: str = "ready") -> None:
    """Wait until the picture that is looked at is shown as it is now, and no other waits."""
    page.locator(f"#stage[data-state={state}]").wait_for()
    page.locator("body[data-working=false]").wait_for()


def wait_until(page: "Page", expression: str) -> None:
    """Wait until something is so; page.wait_for_function evaluates text, which the page's policy forbids."""
    end = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def place(page: "Page", across: float, down: float) -> tuple[float, float]:
    """Return where on the screen a place of the picture is, given in parts of its sides."""
    box = page.locator("#after canvas").first.bounding_box()
    return box["x"] + across * box["width"], box["y"] + down * box["height"]


def drag(page: "Page", start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag with the mouse."""
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=4)
    page.mouse.up()


def center(page: "Page", selector: str) -> tuple[float, float]:
    """Return the middle of an element on the screen."""
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def set_color(page: "Page", code: str) -> None:
    """Type a colour for the spot that is selected."""
    page.locator("#code").fill(code)
    page.locator("#code").press("Enter")


def download(page: "Page", button: str = "#download") -> bytes:
    """Return what a button downloads."""
    with page.expect_download() as waited:
        page.locator(button).click()
    return Path(waited.value.path()).read_bytes()


def spots(page: "Page") -> dict[str, list[dict[str, Any]]]:
    """Return the spots of all pictures, as the page saves them."""
    return json.loads(download(page, "#save-hints"))


def pixels(content: bytes) -> np.ndarray:
    """Return a picture as (H, W, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def by_python(model: Path, path: Path, given: list[dict[str, Any]] | None = None, strength: float = 1.0) -> np.ndarray:
    """Return what generator.ts makes of a picture with spots as a hint file has them, (H, W, 3) uint8."""
    module, _ = load_exported(model, torch.device("cpu"))
    module.strength = strength
    picture = np.array(Image.open(path).convert("RGB"))
    layer = draw_points([Point(**spot) for spot in given or []], *picture.shape[:2])
    planes = [torch.from_numpy(array).permute(2, 0, 1)[None] for array in (picture, layer)]
    return infer(module, *planes)[0].permute(1, 2, 0).numpy()


def apart(one: np.ndarray, other: np.ndarray) -> int:
    """Return the largest difference of two pictures, in levels of 255."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())
