"""colorizer.html in a browser: it colours as Python does, and does what it offers without a request."""

import base64
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from driver import apart, by_python, center, download, drag, drop, pixels, place, ready, set_color, spots, wait_until
from PIL import Image

import colorize

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow  # to write the network as ONNX takes a quarter of a minute
Open = Callable[..., "Page"]


def test_ten_pictures_are_coloured_as_python_colours_them(page: "Page", model: Path, photographs: list[Path]) -> None:
    page.set_input_files("#files", photographs)
    ready(page)
    with zipfile.ZipFile(io.BytesIO(download(page, "#download-all"))) as found:
        assert found.testzip() is None
        assert found.namelist() == [f"{path.stem}_colour.png" for path in photographs]
        differences = {
            path.name: apart(pixels(found.read(name)), by_python(model, path))
            for name, path in zip(found.namelist(), photographs, strict=True)
        }
    gray = np.array(Image.open(photographs[0]).convert("RGB"))
    assert apart(by_python(model, photographs[0]), gray) > 40  # there is something to agree on
    assert max(differences.values()) <= 2, differences


@pytest.mark.parametrize("width", [pytest.param(360, marks=pytest.mark.soak), 1280])
def test_a_spot_is_placed_moved_resized_undone_and_removed(
    open_page: Open, html: Path, width: int, model: Path, photographs: list[Path]
) -> None:
    page, path = open_page(html.as_uri(), viewport={"width": width, "height": 800}), photographs[4]  # 601 x 400 px
    drop(page, [path, *photographs[:2]])
    ready(page)
    assert page.locator(".item").count() == 3
    plain = download(page)
    assert apart(pixels(plain), by_python(model, path)) <= 2

    drag(page, center(page, "#grip"), place(page, 0.25, 0.9))
    assert 20 <= int(page.locator("#split").input_value()) <= 30
    page.mouse.click(*place(page, 0.6, 0.5))
    set_color(page, "160, 60, 40")
    ready(page)
    placed = spots(page)
    (spot,) = placed[path.name]
    assert (spot["color"], abs(spot["x"] - 361) <= 3, abs(spot["y"] - 200) <= 3) == ("#a03c28", True, True)
    red = download(page)
    assert apart(pixels(red), by_python(model, path, placed[path.name])) <= 2
    assert apart(pixels(red), pixels(plain)) > 20

    drag(page, center(page, ".spot"), place(page, 0.8, 0.25))
    page.mouse.wheel(0, -200)  # over the spot
    ready(page)
    (moved,) = spots(page)[path.name]
    assert (abs(moved["x"] - 481) <= 3, abs(moved["y"] - 100) <= 3) == (True, True)
    assert moved["radius"] > 1.2 * spot["radius"]
    assert apart(pixels(download(page)), by_python(model, path, [moved])) <= 2

    for _ in range(2):  # the wheel, the drag
        page.locator("#undo").click()
    ready(page)
    assert (spots(page), download(page)) == (placed, red)
    for _ in range(2):  # the colour, the spot
        page.locator("#undo").click()
    ready(page)
    assert page.locator(".spot").count() == 0
    assert download(page) == plain
    for _ in range(2):
        page.locator("#redo").click()
    ready(page)
    assert download(page) == red

    page.locator(".spot").click(button="right")
    ready(page)
    assert page.locator(".spot").count() == 0
    assert download(page) == plain


WATCH = """() => {
    window.shown = [];
    const canvas = document.querySelector('#after canvas');
    const note = (state) => window.shown.push([state, canvas.toDataURL()]);
    new MutationObserver(() => note(document.querySelector('#stage').dataset.state))
        .observe(document.querySelector('#stage'), { attributes: true, attributeFilter: ['data-state'] });
}"""


def test_a_changed_spot_is_shown_as_a_draft_first(page: "Page", model: Path, photographs: list[Path]) -> None:
    path = photographs[9]  # 640 x 480 px
    drop(page, [path])
    ready(page)
    page.mouse.click(*place(page, 0.6, 0.5))
    ready(page)
    page.evaluate(WATCH)
    set_color(page, "160, 60, 40")
    ready(page)
    shown = page.evaluate("window.shown")
    assert [state for state, _ in shown] == ["working", "draft", "ready"]
    before, drafted, final = (pixels(base64.b64decode(url.partition(",")[2])).astype(int) for _, url in shown)
    assert drafted.size < final.size
    spot = [each[round(0.5 * each.shape[0]), round(0.6 * each.shape[1])].tolist() for each in (before, drafted, final)]
    old, draft, new = (np.array(lab) for lab in page.evaluate("spot => spot.map(labOf)", spot))
    assert np.abs(new - old)[1:].max() > 20  # units of Lab
    assert np.abs(new - draft)[1:].max() <= 4
    assert apart(pixels(download(page)), by_python(model, path, spots(page)[path.name])) <= 2
    page.evaluate("window.shown.length = 0")
    page.locator("#undo").click()
    page.locator("#redo").click()
    ready(page)
    assert apart(pixels(download(page)), by_python(model, path, spots(page)[path.name])) <= 2


HOLD = """name => {
    window.asked = [];
    const real = engine.call.bind(engine);
    const released = new Promise((done) => (window.release = done));
    engine.call = async (call, given) => {
        if (call === name) {
            document.body.dataset.held = name;
            await released;
        }
        asked.push(`${call} ${given.picture.key}`);
        return real(call, given);
    };
}"""


def test_likely_colours_come_before_the_exact_look_and_move_nothing(page: "Page", photographs: list[Path]) -> None:
    drop(page, photographs[4:5])
    ready(page)
    page.evaluate(HOLD, "suggest")
    page.mouse.click(*place(page, 0.3, 0.5))
    page.locator("#stage[data-state=draft]").wait_for()
    before = center(page, "#gamut")
    page.evaluate("release()")
    ready(page)
    assert page.evaluate("asked.slice(0, 3)") == ["view 1", "suggest 1", "view 1"]
    assert page.locator("#likely .swatch").first.is_visible()
    assert center(page, "#gamut") == before


def test_what_is_undone_during_a_drag_leaves_no_drag_behind(page: "Page", photographs: list[Path]) -> None:
    drop(page, photographs[4:5])
    ready(page)
    page.mouse.click(*place(page, 0.3, 0.5))
    ready(page)
    likely = page.locator("#likely").inner_html()
    page.mouse.move(*center(page, ".spot"))
    page.mouse.down()
    page.mouse.move(*place(page, 0.8, 0.2), steps=4)
    ready(page, "draft")
    page.keyboard.press("Control+z")
    ready(page)
    assert page.locator("#likely").inner_html() == likely
    page.keyboard.press("Control+z")
    assert page.locator(".spot").count() == 0
    page.mouse.up()
    page.mouse.click(*place(page, 0.6, 0.5))
    ready(page)
    assert page.locator(".spot").count() == 1
    page.mouse.up()
    drag(page, center(page, ".spot"), place(page, 0.8, 0.2))
    ready(page)
    moved = page.locator("#likely").inner_html()
    page.keyboard.press("Control+z")
    ready(page)
    assert page.locator("#likely").inner_html() != moved


def test_a_click_on_a_picture_that_is_not_drawn_yet_places_no_spot(page: "Page", photographs: list[Path]) -> None:
    page.evaluate(HOLD, "view")
    drop(page, photographs[4:5])
    page.locator("body[data-held=view]").wait_for()
    page.mouse.click(*place(page, 0.3, 0.5))
    assert page.locator(".spot").count() == 0
    page.evaluate("release()")
    ready(page)
    page.mouse.click(*place(page, 0.3, 0.5))
    assert page.locator(".spot").count() == 1


def test_a_picture_closed_while_it_is_read_or_before_it_is_saved_is_left_out(
    page: "Page", photographs: list[Path]
) -> None:
    page.evaluate(HOLD, "open")
    drop(page, photographs[:3])
    page.locator(".item").first.press("Delete")
    page.evaluate("release()")
    ready(page)
    assert "view 1" not in page.evaluate("asked")
    page.evaluate(HOLD, "save")
    with page.expect_download() as waited:
        page.locator("#download-all").click()
        page.locator(".item").last.press("Delete")
        page.evaluate("release()")
    with zipfile.ZipFile(waited.value.path()) as found:
        assert found.namelist() == ["p1_colour.png"]


def test_a_file_that_was_moved_is_not_called_damaged(page: "Page", photographs: list[Path]) -> None:
    page.evaluate(HOLD, "open")
    moved = Path("moved.png").resolve()
    shutil.copyfile(photographs[0], moved)
    page.set_input_files("#files", moved)
    moved.unlink()
    page.evaluate("release()")
    ready(page, "failed")
    assert "changed or removed" in page.locator("#problem").inner_text()


def test_after_an_error_that_nobody_expected_another_worker_is_made(page: "Page", photographs: list[Path]) -> None:
    drop(page, photographs[:1])
    ready(page)
    page.evaluate("window.former = engine.worker")
    sentence = page.evaluate("engine.call('none', {}).catch((error) => error.message)")
    assert "could not be coloured" in sentence
    page.locator("#strength").fill("80")
    ready(page)
    assert page.evaluate("engine.worker !== former")


def test_a_low_window_scrolls_past_the_picture(open_page: Open, html: Path) -> None:
    page = open_page(html.as_uri(), viewport={"width": 700, "height": 400})
    position = "getComputedStyle(document.getElementById('work')).position"
    assert page.evaluate(position) == "static"
    page.set_viewport_size({"width": 700, "height": 740})
    assert page.evaluate(position) == "sticky"


def test_many_turns_of_the_wheel_are_one_step_back(page: "Page", photographs: list[Path]) -> None:
    drop(page, photographs[:1])
    ready(page)
    page.mouse.click(*place(page, 0.7, 0.5))
    ready(page)
    before = spots(page)
    turn = "spot => spot.dispatchEvent(new WheelEvent('wheel', { deltaY: -60, bubbles: true, cancelable: true }))"
    page.locator(".spot").evaluate(f"spot => {{ for (let i = 0; i < 5; i++) ({turn})(spot); }}")  # at one time
    page.locator("#undo").click()
    ready(page)
    assert spots(page) == before


def test_spots_go_to_colorize_and_come_back(page: "Page", html: Path, model: Path, photographs: list[Path]) -> None:
    two = [photographs[0], photographs[4]]
    page.set_input_files("#files", two)
    ready(page)
    for across, color in ((0.3, "#2850a0"), (0.7, "#a03c28")):
        page.mouse.click(*place(page, across, 0.5))
        set_color(page, color)
    page.keyboard.press("PageDown")
    ready(page)
    page.mouse.click(*place(page, 0.5, 0.5))
    set_color(page, "#3c8c3c")
    ready(page)
    given = spots(page)
    assert [len(given[path.name]) for path in two] == [2, 1]
    Path("spots.json").write_text(json.dumps(given))
    with zipfile.ZipFile(io.BytesIO(download(page, "#download-all"))) as found:
        from_page = {name: pixels(found.read(name)) for name in found.namelist()}

    results = colorize.main(two, model=model, hints=Path("spots.json"), out=Path("by python"), device="cpu")
    assert len(results) == 2
    for path, result in zip(two, results, strict=True):
        assert apart(pixels(result.read_bytes()), from_page[f"{path.stem}_colour.png"]) <= 2

    page.goto(html.as_uri())
    drop(page, two)
    ready(page)
    drop(page, [Path("spots.json")])
    ready(page)
    assert spots(page) == given
    with zipfile.ZipFile(io.BytesIO(download(page, "#download-all"))) as found:
        assert all((pixels(found.read(name)) == from_page[name]).all() for name in found.namelist())


NO_SPOTS = {
    "[": "not JSON",
    '{"p0.png": [{"x": 1}]}': "no x, y and radius",
    '{"p0.png": [{"x": 1, "y": 2, "color": "red"}]}': "no color",
    '{"p0.png": [{"x": 900, "y": 2, "color": "#a03c28"}]}': "outside",
    '{"other.png": []}': "other pictures",
    "3": "other pictures",
}  # what a file holds, and what the page says


def test_spots_that_cannot_be_meant_are_one_sentence(page: "Page", photographs: list[Path]) -> None:
    drop(page, photographs[:1])
    ready(page)
    for content, words in NO_SPOTS.items():
        Path("spots.json").write_text(content)
        drop(page, [Path("spots.json")])
        page.locator("#status", has_text=words).wait_for()
        assert page.locator(".spot").count() == 0


def test_strength_is_what_python_calls_so(page: "Page", model: Path, photographs: list[Path]) -> None:
    page.set_input_files("#files", photographs[:1])
    ready(page)
    page.locator("#strength").fill("50")
    ready(page)
    assert apart(pixels(download(page)), by_python(model, photographs[0], strength=0.5)) <= 2
    page.locator("#strength").fill("0")
    ready(page)
    assert np.ptp(pixels(download(page)).astype(int), axis=2).max() <= 1
    page.locator("#undo").click()
    assert page.locator("#strength").input_value() == "50"


def test_the_keyboard_does_what_the_mouse_does(page: "Page", photographs: list[Path]) -> None:
    drop(page, [photographs[4], photographs[0]])
    ready(page)
    page.locator("#stage").focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    (first,) = spots(page)["p4.png"]
    page.locator(".spot").focus()
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("+")
    (second,) = spots(page)["p4.png"]
    assert (second["x"] < first["x"] - 5, second["y"] < first["y"]) == (True, True)
    assert second["radius"] > first["radius"]
    page.locator(".spot").focus()
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert spots(page)["p4.png"] == [first]
    page.keyboard.press("Control+Shift+z")
    (third,) = spots(page)["p4.png"]
    assert third["x"] == second["x"]
    page.locator(".spot").focus()
    page.keyboard.press("Delete")
    assert page.locator(".spot").count() == 0
    page.keyboard.press("PageDown")
    ready(page)
    assert page.locator(".item[aria-current=true]").get_attribute("title") == "p0.png"
    page.keyboard.press("PageUp")
    page.keyboard.press("Control+z")
    assert page.locator(".spot").count() == 1


def test_a_typed_colour_belongs_to_its_spot_and_is_undone_at_once(page: "Page", photographs: list[Path]) -> None:
    drop(page, photographs[4:5])
    ready(page)
    page.mouse.click(*place(page, 0.3, 0.5))
    ready(page)
    before = spots(page)
    page.mouse.click(*center(page, ".spot"))
    set_color(page, "#a32")
    assert spots(page)["p4.png"][0]["color"] == "#aa3322"
    page.mouse.click(*center(page, ".spot"))
    set_color(page, "#2850a0")
    page.keyboard.press("Control+z")  # without a click before
    assert spots(page)["p4.png"][0]["color"] == "#aa3322"
    page.keyboard.press("Control+z")
    assert spots(page) == before

    page.mouse.click(*center(page, ".spot"))
    page.locator("#code").fill("#2850a0")  # without Enter
    page.mouse.click(*place(page, 0.7, 0.5))
    first, second = spots(page)["p4.png"]
    assert (first["color"], second["color"] == "#2850a0") == ("#2850a0", False)
    page.locator("#code").fill("#3c8c3c")
    page.locator(".spot").first.click()
    assert [spot["color"] for spot in spots(page)["p4.png"]] == ["#2850a0", "#3c8c3c"]
    page.locator("#code").fill("reddish")
    page.locator("#code").press("Enter")
    assert "#a03c28" in page.locator("#code-problem").inner_text()
    assert [spot["color"] for spot in spots(page)["p4.png"]] == ["#2850a0", "#3c8c3c"]


def test_colours_come_from_the_network_the_gamut_a_palette_and_another_picture(
    page: "Page", photographs: list[Path]
) -> None:
    drop(page, [photographs[4], photographs[2]])
    ready(page)
    page.mouse.click(*place(page, 0.3, 0.5))
    page.locator("#likely .swatch").first.wait_for()
    likely = page.locator("#likely .swatch").first.get_attribute("data-hex")
    page.locator("#likely .swatch").first.click()
    assert spots(page)["p4.png"][0]["color"] == likely
    page.locator("#palette .add").click()
    drag(page, center(page, "#gamut"), center(page, "#gamut"))
    other = spots(page)["p4.png"][0]["color"]
    assert other != likely
    page.locator(f"#palette .swatch[data-hex='{likely}']").click()
    assert spots(page)["p4.png"][0]["color"] == likely
    page.reload()
    drop(page, [photographs[4], photographs[2]])
    ready(page)
    page.mouse.click(*place(page, 0.3, 0.5))
    assert page.locator(f"#palette .swatch[data-hex='{likely}']").count() == 1  # the browser kept it
    page.locator("#dropper").click()
    page.keyboard.press("PageDown")
    ready(page)
    page.mouse.click(*place(page, 0.2, 0.6))
    assert page.locator(".item[aria-current=true]").get_attribute("title") == "p4.png"
    with Image.open(photographs[2]) as picture:
        wanted = picture.convert("RGB").getpixel((19, 57))
    found = bytes.fromhex(spots(page)["p4.png"][0]["color"][1:])
    assert apart(np.array([*found]), np.array(wanted)) <= 40  # a preview is enlarged


LAYOUT = """() => {
    const bad = [];
    const seen = element => element.getClientRects().length && !element.closest('.sr, dialog:not([open])')
        && getComputedStyle(element).visibility === 'visible' && getComputedStyle(element).opacity > 0.9;
    const numbers = color => color.match(/[\\d.]+/g).map(Number);
    const light = rgb => rgb.slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    for (const element of document.querySelectorAll('body *')) {
        if (!seen(element)) continue;
        const { left, right } = element.getBoundingClientRect();
        const name = element.id || element.className || element.textContent.slice(0, 30);
        const free = element.closest('#stage, #queue');
        if (!free && (left < -0.5 || right > innerWidth + 0.5)) bad.push(`${name} is cut off`);
        const wide = element.scrollWidth > element.clientWidth + 1 && element.clientWidth;
        if (!free && wide && element.matches('button, h1, h2, h3, label')) bad.push(`the text of ${name} is cut off`);
        const text = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!text || free || element.matches(':disabled, script, style')) continue;
        let ground = element;
        const isClear = one => (numbers(getComputedStyle(one).backgroundColor)[3] ?? 1) === 0;
        while (isClear(ground)) ground = ground.parentElement;
        const [one, other] = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor]
            .map(color => light(numbers(color)) + 0.05);
        const contrast = Math.max(one, other) / Math.min(one, other);
        if (contrast < 4.5) bad.push(`${name} has a contrast of ${contrast.toFixed(1)}`);
    }
    if (document.documentElement.scrollWidth > innerWidth) bad.push('the page is wider than the window');
    return bad;
}"""


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (360, "dark"),
        (1280, "light"),
        pytest.param(360, "light", marks=pytest.mark.soak),
        pytest.param(1280, "dark", marks=pytest.mark.soak),
    ],
)
def test_nothing_is_cut_off_or_faint(
    open_page: Open, html: Path, photographs: list[Path], width: int, scheme: str
) -> None:
    page = open_page(html.as_uri(), viewport={"width": width, "height": 740}, color_scheme=scheme)
    assert page.evaluate(LAYOUT) == []
    drop(page, photographs[:3])
    ready(page)
    assert page.evaluate(LAYOUT) == []
    page.mouse.click(*place(page, 0.7, 0.5))
    page.locator("#likely .swatch").first.wait_for()
    assert page.evaluate(LAYOUT) == []
    page.locator("#about-open").click()
    assert page.evaluate(LAYOUT) == []


def test_fingers_place_move_remove_and_zoom(open_page: Open, html: Path, photographs: list[Path]) -> None:
    page = open_page(html.as_uri(), viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.locator("#camera").is_visible()
    drop(page, photographs[4:5])
    ready(page)
    page.touchscreen.tap(*place(page, 0.7, 0.5))
    set_color(page, "#a03c28")
    ready(page)
    (spot,) = spots(page)["p4.png"]
    page.locator("#stage").scroll_into_view_if_needed()
    screen = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        fingers = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        screen.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})

    touch("touchStart", center(page, ".spot"))
    touch("touchMove", place(page, 0.5, 0.4))
    touch("touchMove", place(page, 0.4, 0.3))
    touch("touchEnd")
    (moved,) = spots(page)["p4.png"]
    assert moved["x"] < spot["x"] - 100
    whole = page.locator("#zoom").text_content()
    middle = place(page, 0.5, 0.5)
    touch("touchStart", (middle[0] - 20, middle[1]), (middle[0] + 20, middle[1]))
    touch("touchMove", (middle[0] - 60, middle[1]), (middle[0] + 60, middle[1]))
    touch("touchEnd")
    assert page.locator("#zoom").text_content() != whole
    assert page.locator(".spot").count() == 1  # two fingers place none
    page.locator("#fit").tap()
    assert page.locator("#zoom").text_content() == whole
    touch("touchStart", center(page, ".spot"))
    page.locator(".spot").wait_for(state="detached")  # a long press
    touch("touchEnd")


def test_a_closer_look_is_drawn_closely(open_page: Open, html: Path, model: Path, photographs: list[Path]) -> None:
    page = open_page(html.as_uri(), viewport={"width": 500, "height": 600})
    drop(page, photographs[9:])  # 640 x 480 px
    ready(page)
    assert page.locator("#after .detail").is_hidden()
    assert int(page.locator("#zoom").text_content().split()[0]) < 80
    for _ in range(3):
        page.locator("#in").click()
    page.locator("#after .detail").wait_for()
    ready(page)
    # in the end there is a px for each of the picture
    wait_until(page, "document.querySelector('#after .detail').width === stage.visible.width")
    page.locator("#fit").click()
    page.locator("#strength").fill("60")
    ready(page)
    assert page.locator("#after .detail").is_hidden()


FAIL = """([name, key, sentence]) => {
    const real = engine.call.bind(engine);
    engine.call = (asked, given) =>
        asked === name && given.picture.key === key ? Promise.reject(new Error(sentence)) : real(asked, given);
    window.mend = () => void (engine.call = real);
}"""


def test_of_many_pictures_those_that_can_be_saved_are(page: "Page", photographs: list[Path]) -> None:
    drop(page, photographs[:3])
    ready(page)
    page.evaluate(FAIL, ["save", 2, "There is not enough memory for it."])
    with zipfile.ZipFile(io.BytesIO(download(page, "#download-all"))) as found:
        assert found.namelist() == ["p0_colour.png", "p2_colour.png"]
    words = "Not saved: p1.png (There is not enough memory for it.)"
    page.locator("#status", has_text=words).wait_for()  # and stays until something is done
    page.locator("#fit").click()
    page.locator("#strength").fill("90")
    ready(page)
    page.locator("#status", has_text="p0.png").wait_for()


def test_what_failed_once_can_be_tried_again(page: "Page", photographs: list[Path]) -> None:
    drop(page, photographs[:1])
    ready(page)
    page.mouse.click(*place(page, 0.6, 0.5))
    ready(page)
    page.evaluate(FAIL, ["view", 1, "The worker is gone."])
    page.locator("#strength").fill("80")
    ready(page, "failed")
    assert "The worker is gone." in page.locator("#problem").inner_text()
    assert page.locator("#download").is_disabled()
    page.evaluate("mend()")
    page.locator("#retry").click()
    ready(page)
    assert page.locator("#problem").is_hidden()
    assert (page.locator(".spot").count(), page.locator("#strength").input_value()) == (1, "80")
    page.evaluate(FAIL, ["view", 1, "The worker is gone."])
    page.locator("#strength").fill("70")
    ready(page, "failed")
    page.evaluate("mend()")
    page.locator("#undo").click()  # another change tries too
    ready(page)


def test_a_picture_with_spots_is_closed_on_a_second_thought(page: "Page", photographs: list[Path]) -> None:
    drop(page, photographs[:2])
    ready(page)
    page.mouse.click(*place(page, 0.6, 0.5))
    ready(page)
    asked = page.evaluate(
        "() => { window.asked = []; window.confirm = words => !window.asked.push(words); return asked }"
    )
    page.locator(".item").first.press("Delete")
    assert page.locator(".item").count() == 2
    assert page.evaluate("asked") == [*asked, "Close p0.png, and lose its 1 spot?"]
    page.locator(".item").last.press("Delete")
    assert page.locator(".item").count() == 1


def test_equal_names_are_told_apart(page: "Page", photographs: list[Path]) -> None:
    for _ in range(2):
        drop(page, photographs[:1])
        ready(page)
    assert [item.get_attribute("title") for item in page.locator(".item").all()] == ["p0.png", "p0_2.png"]
    page.keyboard.press("PageDown")
    ready(page)
    page.mouse.click(*place(page, 0.6, 0.5))
    ready(page)
    assert list(spots(page)) == ["p0_2.png"]
    assert "renamed p0_2.png" in page.locator("#status").inner_text()


def test_spots_for_several_pictures_are_all_loaded_or_none(page: "Page", photographs: list[Path]) -> None:
    drop(page, photographs[:2])
    ready(page)
    good = {"x": 1, "y": 2, "radius": 3, "color": "#a03c28"}
    Path("spots.json").write_text(json.dumps({"p0.png": [good], "p1.png": [{**good, "x": -1}]}))
    drop(page, [Path("spots.json")])
    page.locator("#status", has_text="p1.png, spot 1 lies outside the picture").wait_for()
    assert page.locator(".spot").count() == 0


@pytest.mark.parametrize("together", [False, True])
def test_spots_outside_a_picture_are_left_out_whether_it_is_read_yet_or_not(
    page: "Page", photographs: list[Path], together: bool
) -> None:
    good = {"x": 1, "y": 2, "radius": 3, "color": "#a03c28"}
    Path("spots.json").write_text(json.dumps({"p2.png": [good, {**good, "y": 999}]}))
    if not together:
        drop(page, photographs[2:3])
        ready(page)
    drop(page, [*(photographs[2:3] if together else []), Path("spots.json")])
    page.locator("#status", has_text="p2.png: 1 of 2 spots lie outside the picture and are left out").wait_for()
    ready(page)
    assert spots(page) == {"p2.png": [good]}


def test_what_is_transparent_is_white_in_a_jpeg(page: "Page") -> None:
    clear = Image.new("RGBA", (60, 40), (60, 60, 60, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 30, 40))
    clear.save("clear.png")
    drop(page, [Path("clear.png")])
    ready(page)
    page.locator("#type").select_option("image/jpeg")
    found = pixels(download(page))
    assert found[:, :22].min() > 245
    assert found[:, 38:].max() < 160


def test_a_large_upright_scan_is_coloured_as_python_colours_it(
    page: "Page", model: Path, tmp_path: Path, photographs: list[Path]
) -> None:
    """More than one strip, a look at a smaller copy, EXIF, and a spot."""
    with Image.open(photographs[2]) as picture:
        large = picture.convert("RGB").resize((1500, 1100), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    large.save("large.png", exif=exif)
    large.transpose(Image.Transpose.ROTATE_270).save("upright.png")
    drop(page, [Path("large.png")])
    ready(page)
    page.mouse.click(*place(page, 0.6, 0.9))
    set_color(page, "#a03c28")
    ready(page)
    (given,) = spots(page).values()
    assert given[0]["y"] > 1300
    assert apart(pixels(download(page)), by_python(model, Path("upright.png"), given)) <= 2


def test_the_policy_of_the_page_forbids_every_request(browser: "Browser", html: Path) -> None:
    context = browser.new_context()
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.goto(html.as_uri())
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    assert any("Content Security Policy" in text for text in said), said
    context.close()


def test_what_is_no_picture_is_one_sentence_and_the_others_are_coloured(page: "Page", photographs: list[Path]) -> None:
    Path("none.png").write_bytes(b"no picture")
    Path("half.png").write_bytes(photographs[4].read_bytes()[:60])
    Image.new("1", (10_100, 10_000)).save("huge.png")
    Path("note.txt").write_text("a note")
    drop(page, [*map(Path, ("none.png", "half.png", "huge.png")), photographs[0]])
    ready(page, "failed")
    sentences = [item.get_attribute("title") for item in page.locator(".item").all()]
    for sentence, words in zip(sentences, ("no picture", "no picture", "100 megapixels"), strict=False):
        assert words in sentence
    assert sentences[3] == "p0.png"
    assert "no picture" in page.locator("#problem").inner_text()
    assert "3 of 4 could not be coloured" in page.locator("#status").inner_text()
    page.mouse.click(*center(page, "#stage"))  # nothing to be done here
    assert page.locator(".spot").count() == 0
    page.locator(".item").last.click()
    ready(page)
    assert len(download(page)) > 1000
    page.set_input_files("#files", "note.txt")
    page.locator("#status", has_text="no picture").wait_for()


def test_an_old_browser_is_told_so(open_page: Open, html: Path, photographs: list[Path]) -> None:
    page = open_page(html.as_uri(), script="WebAssembly.validate = () => false")
    drop(page, photographs[:1])
    assert page.locator("#drop [role=alert]").is_visible()
    assert "no WebAssembly SIMD" in page.get_by_role("alert").inner_text()
    page = open_page(html.as_uri(), script="delete window.DecompressionStream")
    assert "no DecompressionStream" in page.get_by_role("alert").inner_text()
