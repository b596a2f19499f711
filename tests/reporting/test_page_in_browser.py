"""report.html in a browser: the gallery answers, everything is reached, text can be read."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from scored_run import CIEDE2000, COLOURS, EPOCHS, GIVEN, STEMS, TRUTH, make_run

from config import METRICS
from evaluation.compare import Comparison, Difference, Entry, write_comparison
from evaluation.scores import Score, identify, read_per_image, read_scores, write_scores
from reporting.page import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

BEST = sorted(STEMS, key=lambda stem: CIEDE2000[stem][1])  # first, at epoch 10


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: "Browser", report: Path) -> "Iterator[Page]":
    """Yield the report, open; what it complains of or asks the network for fails the test."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **getattr(request, "param", {})})
    opened, said, asked = context.new_page(), [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda sent: asked.append(sent.url))
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]


def order(page: "Page") -> list[str]:
    """Return the names of the cards from first to last."""
    return page.locator(".card h3").all_text_contents()


def sorted_by(epoch: int, key: str) -> list[str]:
    """Return the names in the order that the scores ask for."""
    column = EPOCHS.index(epoch)
    keys = {
        "best": lambda stem: CIEDE2000[stem][column],
        "worst": lambda stem: -CIEDE2000[stem][column],
        "changed": lambda stem: -abs(CIEDE2000[stem][column] - CIEDE2000[stem][column - 1]),
    }
    return sorted(STEMS, key=lambda stem: (keys[key](stem), stem))


def facts(page: "Page") -> dict[str, str]:
    """Return what every card says below its name."""
    return dict(zip(order(page), page.locator(".facts > span").all_inner_texts(), strict=True))


def box_of(element: "Locator") -> dict[str, float]:
    """Return x, y, width and height of what is on the page."""
    box = element.bounding_box()
    assert box is not None
    return dict(box)


def colours(card: "Locator", *places: float) -> list[tuple[int, ...]]:
    """Return what a screenshot of a card's viewer shows at these parts of its width."""
    return pixels(card.locator(".compare"), *places)


def pixels(element: "Locator", *places: float) -> list[tuple[int, ...]]:
    """Return what a screenshot shows at these parts of its width, a quarter down."""
    with Image.open(io.BytesIO(element.screenshot())) as image:
        picture = np.asarray(image.convert("RGB"))
    row = picture[picture.shape[0] // 4]
    return [tuple(row[round(place * (len(row) - 1))].tolist()) for place in places]


def test_the_slider_walks_through_the_epochs(page: "Page") -> None:
    slider, cards = page.locator("#epoch"), page.locator(".card")
    assert slider.get_attribute("aria-valuetext") == "epoch 10, CIEDE2000 4.40"
    images = page.locator(".three img:nth-child(1)").element_handles()
    slider.focus()
    for key, epoch in (("ArrowLeft", 5), ("End", 15), ("Home", 5), ("ArrowRight", 10)):
        page.keyboard.press(key)
        assert page.locator("#shown b").inner_text() == str(epoch)
        for i, stem in enumerate(BEST):
            alts = [image.get_attribute("alt") for image in cards.nth(i).locator("img").all()]
            assert alts.count(f"ours at epoch {epoch}, {stem}") == 2
        assert colours(cards.nth(4), 0.25, 0.75) == [COLOURS[epoch], TRUTH]
        assert pixels(cards.nth(4).locator(".three img").nth(1), 0.5) == [COLOURS[epoch]]
    box = box_of(slider)
    page.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    assert slider.get_attribute("aria-valuetext") == "epoch 15, CIEDE2000 5.70"
    assert colours(cards.nth(0), 0.25) == [COLOURS[15]]
    assert order(page) == BEST  # a picture stays where it is watched
    assert all(image.is_visible() for image in images)  # the same elements, not others in their place


def test_a_card_says_its_score_and_its_change(page: "Page") -> None:
    page.locator("#epoch").focus()
    page.keyboard.press("End")
    assert facts(page)["plain"] == "6.00 2.00 worse"
    assert facts(page)[STEMS[1]] == "2.00 5.50 better"
    page.locator("#metric").select_option("psnr_db")
    assert facts(page)["plain"] == "23.00 5.00 worse"
    page.locator("#epoch").focus()
    page.keyboard.press("Home")
    assert facts(page)["plain"] == "13.00"


def test_cards_are_sorted_by_their_scores(page: "Page") -> None:
    page.locator("#epoch").focus()
    for press, epoch in (("ArrowRight", 15), ("ArrowLeft", 10)):
        page.keyboard.press(press)
        for key in ("changed", "worst", "best"):
            page.locator("#order").select_option(key)
            assert order(page) == sorted_by(epoch, key)
            assert f"at epoch {epoch}, " in page.locator("#sorted").inner_text()
        page.locator("#epoch").focus()


def test_sorting_again_is_offered_where_the_epoch_has_changed(page: "Page") -> None:
    again = page.get_by_role("button", name="Sort at epoch")
    assert again.count() == 0
    page.locator("#epoch").focus()
    page.keyboard.press("Home")
    again.click()
    assert order(page) == sorted_by(5, "best")
    assert again.count() == 0
    page.locator("#order").select_option("changed")  # since which epoch?
    assert order(page) == sorted_by(5, "best")
    assert page.locator("#sorted").inner_text() == "Before epoch 5 there is none shown: the order is kept."


def test_the_divider_is_dragged_and_moved_by_keys(page: "Page") -> None:
    card = page.locator(".card").nth(1)
    viewer, divider = card.locator(".compare"), card.locator("input")
    viewer.scroll_into_view_if_needed()
    ours = COLOURS[10]
    assert colours(card, 0.1, 0.3, 0.7, 0.9) == [ours, ours, TRUTH, TRUTH]
    box = box_of(viewer)
    across, down = (lambda part: box["x"] + part * box["width"]), box["y"] + 0.3 * box["height"]
    page.mouse.move(across(0.5), down)
    page.mouse.down()
    page.mouse.move(across(0.6), down, steps=3)
    page.mouse.move(across(0.8), down + 400)  # outside of the picture, and still held
    assert colours(card, 0.1, 0.7, 0.9) == [ours, ours, TRUTH]
    page.mouse.up()
    page.mouse.move(across(0.2), down)  # let go
    assert divider.input_value() == "80"
    assert divider.evaluate("element => element === document.activeElement")
    for _ in range(3):
        page.keyboard.press("PageDown")
    page.keyboard.press("ArrowLeft")
    assert divider.get_attribute("aria-valuetext") == f"{divider.input_value()} % ours"
    part = int(divider.input_value()) / 100
    assert part < 0.55
    assert colours(card, part - 0.2, part + 0.2) == [ours, TRUTH]
    page.keyboard.press("Home")
    assert colours(card, 0.2, 0.8) == [TRUTH, TRUTH]
    assert page.locator(".card").nth(0).locator("input").input_value() == "50"  # the others stay
    page.locator("#side").select_option("input")
    assert colours(card, 0.2, 0.8) == [GIVEN, GIVEN]
    assert card.locator(".right").inner_text() == "input"


def test_a_card_can_be_shown_larger(page: "Page") -> None:
    card = page.locator(".card").nth(2)
    before = box_of(card.locator(".compare"))
    card.get_by_role("button", name="larger").click()
    after = box_of(card.locator(".compare"))
    assert after["width"] > 1.5 * before["width"]
    assert abs(after["width"] - after["height"]) < 1
    card.get_by_role("button", name="smaller").click()
    again = box_of(card.locator(".compare"))
    assert again["width"] == before["width"]


def test_play_walks_on_and_stops(page: "Page") -> None:
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Stop"
    page.locator("#shown b", has_text="15").wait_for()
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Play"


def test_every_control_is_reached_by_tab(page: "Page") -> None:
    page.locator("#gallery").evaluate("element => { element.tabIndex = -1; element.focus(); }")
    reached = []
    for _ in range(10):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached == ["SUMMARY", "metric", "order", "side", "epoch", "play", "BUTTON", "INPUT", "BUTTON", "INPUT"]
    handle = "getComputedStyle(document.querySelectorAll('.compare i')[1], '::after').outlineStyle"
    assert page.evaluate(handle) == "solid"  # the focus is seen


@pytest.mark.parametrize(
    "page", [{"viewport": {"width": 360, "height": 740}, "has_touch": True}], indirect=True, ids=["phone"]
)
def test_a_phone_shows_it_all(page: "Page") -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_text("Sort and compare").click()
    for name in ("metric", "order", "side", "epoch", "play"):
        control = page.locator(f"#{name}")
        control.scroll_into_view_if_needed()
        box = box_of(control)
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert box["height"] >= 24
        assert control.is_enabled()
    card = page.locator(".card").nth(3)
    card.locator(".compare").scroll_into_view_if_needed()
    box = box_of(card.locator(".compare"))
    assert box["width"] > 300
    page.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + 0.6 * box["height"])
    assert abs(int(card.locator("input").input_value()) - 25) <= 1
    page.locator("#epoch").focus()
    page.keyboard.press("End")
    assert page.locator("#epoch").evaluate("e => e.getBoundingClientRect().top") < 60  # it stays in sight


@pytest.fixture(scope="session")
def large_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a run with more pictures, epochs and metrics than a page shows, and a comparison."""
    run = make_run(tmp_path_factory.mktemp("large") / "run", [f"p{i:02d}" for i in range(50)], epochs=range(1, 21))
    scores = read_scores(run)
    for name, row in scores.rows.items():
        row.scores |= {m: Score(123.4 + (row.epoch or 0), 1.0, 120.1, 130.5) for m in METRICS if m not in row.scores}
        row.missing.clear()
        for metric in ("lpips_alex", "top1"):
            assert row.scores[metric].mean > 100, name
    names = [name for name in scores.rows if name != "truth"]
    write_scores(run, scores, *read_per_image(run, scores, names))
    entry = Entry("run", 10, "ciede2000", identify(scores.protocol), "key 10")
    metrics = {metric: Difference(123.4, 120.1, Score(3.3, 0.5, 2.2, 4.4), 50) for metric in METRICS}
    baselines = {name: dict.fromkeys(METRICS, 200.1) for name in ("gray", "mean_ab")}
    sides = [entry], [entry._replace(run="another run")]
    write_comparison(run, Comparison(*sides, [], 50, baselines, metrics))
    return write_report(run)


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_a_page_is_no_longer_and_no_wider_than_people_read(
    browser: "Browser", large_report: Path, width: int, height: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.goto(large_report.as_uri())
    size = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert size[0] <= width
    assert size[1] <= 12_000
    first = page.locator(".card .compare").first.bounding_box()
    assert first["y"] + first["height"] / 2 < height  # pictures first
    shown = page.locator(".card:visible")
    stems = shown.locator("h3").all_text_contents()
    count = 8 if width == 1280 else 5
    assert (len(stems), stems[0], stems[-1]) == (
        count,
        *[page.locator(".card h3").nth(i).text_content() for i in (0, 47)],
    )
    if width == 390:
        page.get_by_text("Sort and compare").click()
    page.locator("#order").select_option("worst")
    assert shown.count() == count
    worst = page.locator(".card h3").all_text_contents()[:count]
    assert shown.locator("h3").all_text_contents() == worst
    page.get_by_role("button", name="Show all 48 pictures").click()
    assert shown.count() == 48
    rows = page.locator("#rows tbody tr:visible")
    if width == 1280:
        assert rows.count() == 24
        assert page.get_by_role("button", name="Show all 20 epochs").count() == 0
    else:  # a row is a card, each number beside the name of its metric
        names = rows.locator("th").all_text_contents()
        assert names == ["gray", "mean ab", "epoch 1", "epoch 10", "epoch 20", "JPEG 90", "truth"]
        cell = page.locator("#rows tbody td").first
        assert "PSNR" in cell.evaluate("e => getComputedStyle(e, '::before').content")
        assert cell.evaluate("e => getComputedStyle(e).display") == "block"
        page.get_by_role("button", name="Show all 20 epochs").click()
        assert rows.count() == 24
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_without_javascript_nothing_is_hidden(browser: "Browser", large_report: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(large_report.as_uri())
    assert page.locator(".card:visible").count() == 48
    assert page.locator("#rows tbody tr:visible").count() == 24
    context.close()


CONTRASTS = """() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const ground = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return element.parentElement && colour === "rgba(0, 0, 0, 0)" ? ground(element.parentElement) : colour;
  };
  return [...document.querySelectorAll("body *")]
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
    .filter((e) => e.getClientRects().length && !e.closest(".compare, svg"))
    .map((e) => [light(getComputedStyle(e).color), light(ground(e)), e.outerHTML.slice(0, 80)])
    .map(([a, b, what]) => [Math.max(a, b) / Math.min(a, b), what]);
}"""


@pytest.mark.parametrize(
    "page", [{"color_scheme": "dark"}, {"color_scheme": "light"}], indirect=True, ids=["dark", "light"]
)
def test_text_is_read_in_dark_and_in_light(page: "Page", request: pytest.FixtureRequest) -> None:
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = request.node.callspec.id == "dark"
    assert (int(re.findall(r"\d+", ground)[0]) < 60) == dark
    ratios = page.evaluate(CONTRASTS)
    assert len(ratios) > 100
    assert min(ratios)[0] >= 4.5, min(ratios)
    ink = page.locator("#curves svg text").first.evaluate("e => getComputedStyle(e).fill")
    assert (int(re.findall(r"\d+", ink)[0]) > 150) == dark
