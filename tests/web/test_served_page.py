"""The page that serve.py shows, in a browser: one picture and one spot give what the API gives."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from driver import apart, by_python, download, drop, pixels, place, ready, set_color, spots
from PIL import Image

from config import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Page

httpx = pytest.importorskip("httpx", reason="serve.py is asked through httpx")
pytest.importorskip("uvicorn", reason="serve.py needs requirements-web.txt")


@pytest.fixture
def serve(model: Path) -> Iterator[Callable[..., str]]:
    """Yield a function that starts serve.py with options and returns the address that it prints."""
    started = []

    def start(*options: str) -> str:
        call = [sys.executable, ROOT / "serve.py", "--model", model, "--port", "0", "--device", "cpu", *options]
        started.append(subprocess.Popen([*map(str, call)], stdout=subprocess.PIPE, text=True))
        return re.search(r"http\S+", started[-1].stdout.readline())[0]

    yield start
    for process in started:
        process.terminate()
        process.communicate()


@pytest.mark.parametrize("options", [(), ("--token",)])
def test_the_page_gives_what_the_api_gives(
    serve: Callable[..., str],
    open_page: "Callable[..., Page]",
    model: Path,
    photographs: list[Path],
    options: tuple[str, ...],
) -> None:
    address, path = serve(*options), photographs[0]
    page = open_page(address)
    assert ("token=" in address) == bool(options)
    assert httpx.get(address.partition("?")[0]).status_code == (401 if options else 200)
    drop(page, [path])
    ready(page)
    page.mouse.click(*place(page, 0.7, 0.5))
    set_color(page, "#a03c28")
    ready(page)
    given = spots(page)[path.name]
    found = download(page)
    base, _, query = address.partition("?")
    headers = {"X-Hints": json.dumps(given)}
    if query:
        headers["Authorization"] = f"Bearer {query.removeprefix('token=')}"
    answer = httpx.post(f"{base}colorize", content=path.read_bytes(), headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    assert found == answer.content
    assert apart(pixels(found), by_python(model, path, given)) <= 1
    page.locator("#undo").click()
    page.locator("#strength").fill("0")
    ready(page)
    assert np.ptp(pixels(download(page)).astype(int), axis=2).max() <= 1
    Path("none.png").write_bytes(b"no picture")
    drop(page, [Path("none.png")])
    page.locator(".item").last.click()
    ready(page, "failed")
    assert "not an image" in page.locator("#problem").inner_text()


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_examples_of_the_documentation_do_what_they_say(serve: Callable[..., str], photographs: list[Path]) -> None:
    text, address = (ROOT / "docs" / "web.md").read_text(), serve()
    blocks = re.findall(r"```(sh|python)\n(.*?)```", text.replace("http://127.0.0.1:8765/", address), flags=re.S)
    shell = [line for kind, block in blocks for line in block.splitlines() if kind == "sh" and "curl" in line]
    python = [block for kind, block in blocks if kind == "python"]
    assert (len(shell), len(python)) == (2, 1)
    with Image.open(photographs[9]) as picture:
        picture.convert("L").save("old.jpg", quality=95)
    results = []
    for line in shell:
        subprocess.run(["bash", "-c", line], check=True)
        results.append(pixels(Path("colour.jpg").read_bytes()))
        Path("colour.jpg").unlink()
    assert apart(*results) > 20  # strength, and a spot
    subprocess.run([sys.executable, "-c", python[0]], check=True)
    with Image.open("colour.png") as result:
        assert (result.format, result.size) == ("PNG", (480, 640))


def test_a_large_picture_takes_spots_to_its_last_row_and_a_tiff_is_shown(
    serve: Callable[..., str], open_page: "Callable[..., Page]", model: Path, photographs: list[Path]
) -> None:
    with Image.open(photographs[2]) as picture:
        large = picture.convert("RGB").resize((1500, 1000), Image.Resampling.BICUBIC)
    large.save("large.png")
    large.resize((150, 100)).save("small.tif")
    large.resize((150, 100)).save("pages.tif", save_all=True, append_images=[large.resize((60, 80))])
    page = open_page(serve())
    drop(page, [Path("large.png"), Path("pages.tif"), Path("small.tif")])
    ready(page)
    page.mouse.click(*place(page, 0.5, 0.5))
    set_color(page, "#a03c28")
    assert page.locator("#likely-row").is_hidden()
    page.locator(".spot").focus()
    for _ in range(40):
        page.keyboard.press("Shift+ArrowDown")
    ready(page)
    (given,) = spots(page).values()
    assert given[0]["y"] == 999
    assert apart(pixels(download(page)), by_python(model, Path("large.png"), given)) <= 1
    page.locator(".item").last.click()
    ready(page)
    assert apart(pixels(download(page)), by_python(model, Path("small.tif"))) <= 1
    page.locator(".item").nth(1).click()
    ready(page)


SPOT = {"x": 30, "y": 20, "radius": 4, "color": "#a03c28"}


def test_another_model_can_be_chosen(
    serve: Callable[..., str], open_page: "Callable[..., Page]", model: Path, photographs: list[Path]
) -> None:
    for name in ("first", "second"):
        shutil.copyfile(model, f"{name}.ts")
    page = open_page(serve("--model", str(Path("first.ts").resolve())))
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url))
    drop(page, photographs[:1])
    ready(page)
    assert page.locator("#model option").all_inner_texts() == ["first", "second"]
    page.locator("#model").select_option("second")
    ready(page)
    assert ["model=second" in url for url in asked if "colorize?" in url] == [False, True]

    page.mouse.click(*place(page, 0.6, 0.5))
    ready(page)
    page.locator("#dropper").click()
    page.evaluate("config.models[0].hints = false")  # as a model of another recipe has it
    page.locator("#model").select_option("first")
    page.locator("#status", has_text="takes no colour spots; they are kept").wait_for()
    ready(page)
    assert page.locator(".spot").count() == 0
    page.mouse.click(*place(page, 0.3, 0.5))  # picks no colour for a spot that is not seen
    page.locator("#undo").click()
    page.locator("#status", has_text="was of a spot: choose a model that takes spots first").wait_for()
    Path("spots.json").write_text(json.dumps({photographs[0].name: [SPOT, SPOT]}))
    drop(page, [Path("spots.json")])
    page.locator("#status", has_text="takes no colour spots; they are kept").wait_for()
    page.locator("#model").select_option("second")
    ready(page)
    assert page.locator(".spot").count() == 2
    page.locator("#undo").click()
    assert page.locator(".spot").count() == 1


WATCH = """
const real = window.fetch;
window.sent = []; // the sizes of the pictures that the page sends
window.fetch = (url, given) => {
    sent.push(createImageBitmap(given.body).then(({ width, height }) => [width, height]));
    return real(url, given);
};
"""


def test_for_a_look_a_preview_is_sent_on_a_dense_screen_too(
    serve: Callable[..., str], open_page: "Callable[..., Page]", photographs: list[Path]
) -> None:
    with Image.open(photographs[2]) as picture:
        picture.convert("RGB").resize((2000, 1500), Image.Resampling.BICUBIC).save("large.png")
    page = open_page(serve(), WATCH, device_scale_factor=2, viewport={"width": 1600, "height": 1100})
    drop(page, [Path("large.png")])
    ready(page)
    width, height = page.evaluate("sent[0]")
    assert 1.2e6 < width * height < 1.4e6
    page.locator("#after .detail").wait_for()  # the file itself, a moment later
    assert page.evaluate("sent.at(-1)") == [2000, 1500]
