"""What colorizer.html offers beside spots: paste, zoom, the eyedropper, a palette, words for those who do not see."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from driver import by_python, center, download, drag, drop, pixels, place, ready, set_color, spots, wait_until
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow  # to write the network as ONNX takes a quarter of a minute
SHOWN = "([x, y, side]) => stage.colorAt(x, y, side)"
PASTE = """content => {
    const carried = new DataTransfer();
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
    carried.items.add(new File([bytes], 'image.png', { type: 'image/png' }));
    document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: carried, bubbles: true }));
}"""


def code(page: "Page") -> np.ndarray:
    """Return the colour of the spot that was placed last, (3) int."""
    ((*_, spot),) = spots(page).values()
    return np.array([*bytes.fromhex(spot["color"][1:])], int)


def test_what_is_pasted_is_coloured_and_named_apart(page: "Page", photographs: list[Path]) -> None:
    content = base64.b64encode(photographs[0].read_bytes()).decode()
    for _ in range(2):
        page.evaluate(PASTE, content)
        ready(page)
    assert [item.get_attribute("title") for item in page.locator(".item").all()] == ["image.png", "image_2.png"]
    assert np.ptp(pixels(download(page)).astype(int), axis=2).max() > 20


@pytest.mark.parametrize("percent", [pytest.param(50, marks=pytest.mark.soak), 150])
def test_a_new_spot_keeps_the_colour_that_is_there_at_any_strength(
    page: "Page", model: Path, photographs: list[Path], percent: int
) -> None:
    path = photographs[9]
    drop(page, [path])
    ready(page)
    coloured = by_python(model, path)[::40, ::40].astype(int)
    y, x = (40 * int(at) for at in np.unravel_index(abs(np.ptp(coloured, axis=2) - 40).argmin(), coloured.shape[:2]))
    plain = np.array(page.evaluate(SHOWN, [x, y, 1]))
    page.locator("#strength").fill(str(percent))
    ready(page)
    strong = np.array(page.evaluate(SHOWN, [x, y, 1]))
    assert np.abs(strong - plain).max() > 8
    page.mouse.click(*place(page, (x + 0.5) / 480, (y + 0.5) / 640))
    ready(page)
    assert np.abs(code(page) - plain).max() <= 5  # 8 bits of a weak colour
    assert np.abs(np.array(page.evaluate(SHOWN, [x, y, 1])) - strong).max() <= 12


def test_a_picked_colour_looks_as_it_did_where_it_was_picked(
    page: "Page", model: Path, photographs: list[Path]
) -> None:
    drop(page, [photographs[9], photographs[2]])
    ready(page)
    page.locator("#strength").fill("60")
    ready(page)
    page.mouse.click(*place(page, 0.5, 0.5))
    ready(page)
    ((spot,),) = spots(page).values()
    page.locator("#dropper").click()
    page.keyboard.press("PageDown")
    ready(page)
    picked = page.evaluate(SHOWN, [48, 48, 1])  # of 96 x 96 px
    page.locator("#split").fill("0")
    page.mouse.click(*place(page, 48.5 / 96, 48.5 / 96))
    ready(page)
    found = np.array(page.evaluate(SHOWN, [spot["x"], spot["y"], 1]))
    lab = page.evaluate("([one, other]) => [labOf(one), labOf(other)]", [picked, found.tolist()])
    assert np.abs(np.subtract(*lab))[1:].max() <= 6  # its hue and saturation, at the lightness that is there


def test_the_eyedropper_reads_the_closer_look(page: "Page") -> None:
    rows, columns = np.indices((1200, 1600))
    board = np.where(((rows + columns) % 2)[..., None], [200, 40, 40], [40, 40, 200]).astype(np.uint8)
    Image.fromarray(board).save("board.png")
    drop(page, [Path("board.png")])
    ready(page)
    page.locator("#split").fill("100")  # all of it as it was
    for _ in range(8):
        page.locator("#in").click()
    page.locator("#before .detail").wait_for()
    ready(page)
    for x in (800, 801):
        assert page.evaluate(SHOWN, [x, 600, 0]) == board[600, x].tolist()
    page.locator("#fit").click()
    page.locator("#strength").fill("90")
    ready(page)
    assert page.evaluate(SHOWN, [800, 600, 0]) != board[600, 800].tolist()  # a preview mixes them


def test_wheel_and_drag_move_the_view_and_place_nothing(page: "Page", photographs: list[Path]) -> None:
    drop(page, photographs[9:])
    ready(page)
    whole, (x, y) = page.locator("#zoom").text_content(), map(round, place(page, 0.5, 0.5))
    at = "([clientX, clientY]) => stage.toPicture({ clientX, clientY })"
    below = page.evaluate(at, [x, y])
    page.mouse.move(x, y)
    page.mouse.wheel(0, -900)
    wait_until(page, f"document.querySelector('#zoom').textContent !== '{whole}'")
    assert page.evaluate(at, [x, y]) == pytest.approx(below)  # what is under the pointer stays there
    drag(page, (x, y), (x - 60, y - 40))
    assert page.evaluate(at, [x - 60, y - 40]) == pytest.approx(below)
    assert page.locator(".spot").count() == 0
    page.keyboard.press("0")
    page.locator("#fit").click()
    assert page.locator("#zoom").text_content() == whole


def test_a_palette_colour_is_removed_by_mouse_keyboard_and_finger(
    open_page: "Callable[..., Page]", html: Path, photographs: list[Path]
) -> None:
    page = open_page(html.as_uri(), has_touch=True)
    drop(page, photographs[4:5])
    ready(page)
    page.mouse.click(*place(page, 0.3, 0.5))
    kept = page.locator("#palette .swatch[data-hex]")
    for color in ("#a03c28", "#2850a0", "#3c8c3c"):
        set_color(page, color)
        page.locator("#palette .add").click()
    assert kept.count() == 3
    kept.nth(2).click(button="right")
    assert kept.count() == 2
    kept.nth(1).press("Delete")
    assert kept.count() == 1
    (x, y), screen = center(page, "#palette .swatch[data-hex]"), page.context.new_cdp_session(page)
    screen.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    kept.wait_for(state="detached")
    screen.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.evaluate("new Promise((done) => setTimeout(done, 200))")  # in which that is no click
    assert page.evaluate("localStorage.getItem('tinct-palette')") == "[]"
    page.locator("#palette .add").tap()  # and this is one
    assert kept.count() == 1
    kept.press("Delete")
    assert page.evaluate("document.activeElement.className") == "swatch add"  # the focus is not lost


def test_a_name_that_fits_two_pictures_or_comes_twice_gives_spots_to_none(
    page: "Page", photographs: list[Path]
) -> None:
    shutil.copyfile(photographs[0], "a.png")
    Image.open(photographs[1]).save("a.bmp")
    drop(page, [Path("a.png"), Path("a.bmp")])
    ready(page)
    one = [{"x": 1, "y": 2, "radius": 3, "color": "#a03c28"}]
    for content, words in (
        ({"a": one}, "a may be a.png or a.bmp; name it with its ending"),
        ({"a.png": one, "scans/a.png": one}, "a.png has spots twice"),
    ):
        Path("spots.json").write_text(json.dumps(content))
        drop(page, [Path("spots.json")])
        page.locator("#status", has_text=words).wait_for()
        assert page.locator(".spot").count() == 0


def test_words_tell_what_is_shown_and_how_far_it_is(page: "Page", photographs: list[Path]) -> None:
    said = "window.said = []; new MutationObserver(() => said.push(document.querySelector('#status').textContent))"
    page.evaluate(f"() => {{ {said}.observe(document.querySelector('#status'), {{ childList: true }}) }}")
    drop(page, photographs[:3])
    ready(page)
    assert [words for words in page.evaluate("said") if "coloured" in words][-1] == "2 of 3 pictures coloured"
    assert page.locator("#before").get_attribute("aria-label") == "p0.png as it was"
    assert page.locator("#after").get_attribute("aria-label") == "p0.png in colour"
    assert page.get_by_role("button", name="p1.png, coloured").count() == 1
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, select, canvas[tabindex]')].filter(each => "
        "each.getClientRects().length && !each.ariaLabel && !each.textContent.trim() && !each.labels?.length"
        " && !each.getAttribute('aria-labelledby')).map(each => each.outerHTML)"
    )
    assert nameless == []


def test_a_long_sentence_is_read_in_full_on_a_phone(
    open_page: "Callable[..., Page]", html: Path, photographs: list[Path]
) -> None:
    page = open_page(html.as_uri(), viewport={"width": 360, "height": 740})
    drop(page, photographs[:1])
    ready(page)
    page.evaluate(
        "tell('The page has renamed scan_2.jpg: rename the file too, or colorize.py does not find its spots.')"
    )
    height, line = page.evaluate("[$('status').scrollHeight, parseFloat(getComputedStyle($('status')).lineHeight)]")
    assert height > 1.5 * line
    assert page.evaluate("$('status').scrollWidth <= $('status').clientWidth")
    assert page.locator("#status").bounding_box()["height"] >= height - 1
