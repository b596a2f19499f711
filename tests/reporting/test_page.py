"""report.py: the page says what the run's files say, and a browser shows it."""

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from test_summary import CIEDE2000, COLOURS, EPOCHS, GIVEN, STEMS, TRUTH, edit, make_run

from imaging.files import write_image
from reporting import page as report_page
from reporting.page import main, write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
BEST = sorted(STEMS, key=lambda stem: CIEDE2000[stem][1])  # first, at epoch 10


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and its text but for styles and scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] not in ("style", "script"):
            self.text += " " + " ".join(data.split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "my run")


def written(run: Path) -> tuple[str, Parsed]:
    """Return the page of a run, as text and parsed."""
    page = write_report(run).read_text(encoding="utf-8")
    return page, Parsed(page)


def data_of(page: str) -> dict[str, Any]:
    """Return what the page's script reads."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert match is not None
    return json.loads(match[1])


def test_the_page_says_what_the_files_say(run: Path) -> None:
    _, parsed = written(run)
    text = parsed.text
    for said in (
        "my run", "Epoch 10 is best", "4.40, 95 % interval 3.40 to 5.40", "unet, 54,409,856 parameters",
        "FID of 5 images is biased <upwards>", "at least 256 are needed; test on more", "no weights of Alex",
        "5 pictures, from best to worst by CIEDE2000 at epoch 10", "--set size=64", "torch==2.15.0",
        "c0ffee", "dd44", "vgg weights", "G_l1", "D_real", "best at epoch 10: 4.40",
    ):  # fmt: skip
        assert said in text, said


def test_the_table_has_floors_epochs_and_ceilings_in_order(run: Path) -> None:
    page, _ = written(run)
    table = page[page.index("<table") : page.index("</table>")]
    rows = re.findall(r'<th scope="row">(.*?)</th>', table)
    assert rows == ["gray", "mean ab", "epoch 5", "epoch 10", "epoch 15", "JPEG 90", "truth"]
    assert re.findall(r'<th scope="col">(.*?) <abbr title="(.*?)">', table) == [
        ("PSNR (dB)", "higher is better"),
        ("CIEDE2000", "lower is better"),
        ("colourfulness", "best near the truth"),
    ]
    epoch = table[table.index("epoch 10") : table.index("epoch 15")]
    assert '<strong>4.40<span class="spoken"> best</span></strong><small>3.40 to 5.40</small>' in epoch
    assert table.count("<strong>") == 2


def test_curves_say_their_values_and_follow_the_theme(run: Path) -> None:
    page, parsed = written(run)
    labels = [svg["aria-label"] for svg in parsed.all("svg")]
    assert [label.split(" ")[0] for label in labels] == [
        "PSNR",
        "CIEDE2000",
        "colourfulness",
        "G_l1",
        "D_real",
    ]
    assert labels[1] == (
        "CIEDE2000 by epoch, lower is better: epoch 5 7.00, epoch 10 4.40, epoch 15 5.70, "
        "gray 12.00, mean ab 4.50, JPEG 90 0.50, best is epoch 10"
    )
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    assert all("currentColor" in svg and "#000000" not in svg and len(svg) < 30_000 for svg in drawings)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    uses = [attributes["href"] for attributes in parsed.all("use")]
    assert uses
    assert {use.removeprefix("#") for use in uses} <= set(ids)


def test_nothing_is_fetched_and_every_picture_is_described(run: Path) -> None:
    page, parsed = written(run)
    for _, attributes in parsed.elements:
        for key in ("src", "href", "srcset", "action", "data"):
            assert re.match(r"data:|#|$", attributes.get(key, "")), attributes
    assert "http:" not in page
    assert "https:" not in page
    assert not re.search(r"url\((?!#)|@import", page)
    shown = [image for image in parsed.all("img") if "src" in image]
    assert [image["alt"] for image in shown] == [
        f"{what}, {stem}" for stem in BEST for what in ("input", "ours at epoch 10", "truth")
    ]
    assert all("alt" in image for image in parsed.all("img"))


def test_names_are_neither_markup_nor_markers(run: Path) -> None:
    edit(run / "recipe.json", lambda record: record.update(data="/a</script><b>&amp;{{data}}"))
    page, parsed = written(run)
    assert [picture["stem"] for picture in data_of(page)["pictures"]] == BEST
    assert page.count("<script") == page.count("</script>") == 2
    assert not parsed.all("i")[1:]  # one in the template, none out of a name
    assert "--data '/a</script><b>&amp;{{data}}'" in parsed.text
    assert all(f" {stem}" in parsed.text for stem in STEMS)


def test_a_report_is_the_same_every_time(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


@pytest.mark.parametrize("missing", ["log.jsonl", "outputs", "targets", "inputs"])
def test_what_is_missing_is_said_and_does_no_harm(run: Path, missing: str) -> None:
    shutil.rmtree(run / missing) if (run / missing).is_dir() else (run / missing).unlink()
    _, parsed = written(run)
    said = "log.jsonl, is not there" if missing == "log.jsonl" else "No picture belongs to these scores"
    assert said in parsed.text
    assert "Epoch 10 is best" in parsed.text


@pytest.mark.parametrize(("stems", "epochs"), [(STEMS[:1], (15,)), (STEMS[:1], EPOCHS), (STEMS, (15,))])
def test_one_picture_or_one_epoch_is_enough(tmp_path: Path, stems: Any, epochs: Any) -> None:
    page, parsed = written(make_run(tmp_path / "run", stems, epochs))
    assert len(data_of(page)["pictures"]) == len(stems)
    assert data_of(page)["epochs"] == list(epochs)
    assert len(parsed.all("svg")) == 5


def test_no_epoch_and_no_interval_are_enough(run: Path) -> None:
    def forget(scores: dict[str, Any]) -> None:
        for row in scores["rows"].values():
            for key in [key for key in row if key.endswith(("_low", "_high"))]:
                del row[key]

    edit(run / "scores.json", forget)
    assert "95 % interval 3" not in written(run)[1].text
    edit(run / "scores.json", lambda scores: [scores["rows"].pop(f"epoch_{epoch:04d}") for epoch in EPOCHS])
    assert "No epoch is named best" in written(run)[1].text


def test_ten_epochs_of_noise_stay_below_ten_megabytes(tmp_path: Path) -> None:
    stems = [f"p{i:02d}" for i in range(report_page.MOST_PICTURES)]
    run = make_run(tmp_path / "run", stems, epochs=[10])
    names = [f"epoch_{epoch:04d}" for epoch in range(1, 11)]
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    write_image(tmp_path / "noise.png", noise)
    for folder in ("inputs", "targets", *(f"outputs/{name}" for name in names)):
        (run / folder).mkdir(exist_ok=True)
        (run / folder / ".stamp").write_text("key 10")
        for stem in stems:
            (run / folder / f"{stem}.png").unlink(missing_ok=True)
            os.link(tmp_path / "noise.png", run / folder / f"{stem}.png")
    edit(run / "scores.json", lambda s: s["rows"].update({n: s["rows"]["epoch_0010"] for n in names}))
    path = write_report(run)
    assert 5_000_000 < path.stat().st_size < 10_000_000
    shown = data_of(path.read_text())
    assert (len(shown["pictures"]), shown["epochs"]) == (48, list(range(1, 11)))


def test_main_takes_the_newest_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "runs/old")
    new = make_run(tmp_path / "runs/new")
    os.utime(tmp_path / "runs/old/recipe.json", (0, 0))
    path = main()
    assert (path, path.resolve()) == (Path("runs/new/report.html"), new / "report.html")
    assert capsys.readouterr().out == f"report: {path}\n"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": "tinct-scores-0", "rows": {}}', "\0"])
def test_damaged_scores_are_said_to_be(run: Path, content: str) -> None:
    (run / "scores.json").write_text(content)
    with pytest.raises(ValueError, match=r"scores\.json is damaged, or of another version; .*score again"):
        main(run=run)


def test_a_run_without_scores_is_left_as_it_was(run: Path) -> None:
    before = write_report(run).read_bytes()
    (run / "scores.json").unlink()
    with pytest.raises(ValueError, match=r"python eval\.py --all-epochs"):
        main(run=run)
    (run / "recipe.json").unlink()
    with pytest.raises(ValueError, match=r"it has no recipe\.json"):
        main(run=run)
    assert (run / "report.html").read_bytes() == before


# In a browser.


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Yield a headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the report needs playwright to be tested")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser to open the report in: none of {' '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report that no test changes."""
    return write_report(make_run(tmp_path_factory.mktemp("report") / "run"))


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: "Browser", finished: Path) -> "Iterator[Page]":
    """Yield the report, open; what it complains of or asks the network for fails the test."""
    context = browser.new_context(
        **{"viewport": {"width": 1280, "height": 900}, **getattr(request, "param", {})}
    )
    opened, said, asked = context.new_page(), [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda sent: asked.append(sent.url))
    opened.goto(finished.as_uri())
    yield opened
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [finished.as_uri()]


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
    box = slider.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    assert slider.get_attribute("aria-valuetext") == "epoch 15, CIEDE2000 5.70"
    assert colours(cards.nth(0), 0.25) == [COLOURS[15]]
    assert order(page) == BEST  # a picture stays where it is watched
    assert all(image.is_visible() for image in images)  # the same elements, not others in their place


def test_a_card_says_its_score_and_its_change(page: "Page") -> None:
    page.locator("#epoch").focus()
    page.keyboard.press("End")
    texts = dict(zip(order(page), page.locator(".facts > span").all_inner_texts(), strict=True))
    assert texts["plain"] == "6.00 2.00 worse"
    assert texts[STEMS[1]] == "2.00 5.50 better"
    page.locator("#metric").select_option("psnr_db")
    texts = dict(zip(order(page), page.locator(".facts > span").all_inner_texts(), strict=True))
    assert texts["plain"] == "23.00 5.00 worse"
    page.locator("#epoch").focus()
    page.keyboard.press("Home")
    assert (
        dict(zip(order(page), page.locator(".facts > span").all_inner_texts(), strict=True))["plain"]
        == "13.00"
    )


@pytest.mark.parametrize("epoch", [10, 15])
@pytest.mark.parametrize("key", ["worst", "changed", "best"])
def test_cards_are_sorted_by_their_scores(page: "Page", key: str, epoch: int) -> None:
    if epoch == 15:
        page.locator("#epoch").focus()
        page.keyboard.press("End")
    page.locator("#order").select_option("changed" if key == "best" else key)
    page.locator("#order").select_option(key)
    assert order(page) == sorted_by(epoch, key)
    assert f"at epoch {epoch}, " in page.locator("#sorted").inner_text()


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
    box = viewer.bounding_box()
    assert box is not None
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
    before = card.locator(".compare").bounding_box()
    card.get_by_role("button", name="larger").click()
    after = card.locator(".compare").bounding_box()
    assert before is not None
    assert after is not None
    assert after["width"] > 1.5 * before["width"]
    assert abs(after["width"] - after["height"]) < 1
    card.get_by_role("button", name="smaller").click()
    again = card.locator(".compare").bounding_box()
    assert again is not None
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
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached == ["metric", "order", "side", "epoch", "play", "BUTTON", "INPUT", "BUTTON", "INPUT"]
    handle = "getComputedStyle(document.querySelectorAll('.compare i')[1], '::after').outlineStyle"
    assert page.evaluate(handle) == "solid"  # the focus is seen


@pytest.mark.parametrize(
    "page", [{"viewport": {"width": 360, "height": 740}, "has_touch": True}], indirect=True, ids=["phone"]
)
def test_a_phone_shows_it_all(page: "Page") -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for name in ("metric", "order", "side", "epoch", "play"):
        control = page.locator(f"#{name}")
        control.scroll_into_view_if_needed()
        box = control.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert box["height"] >= 24
        assert control.is_enabled()
    card = page.locator(".card").nth(3)
    card.locator(".compare").scroll_into_view_if_needed()
    box = card.locator(".compare").bounding_box()
    assert box is not None
    assert box["width"] > 300
    page.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + 0.6 * box["height"])
    assert abs(int(card.locator("input").input_value()) - 25) <= 1
    page.locator("#epoch").focus()
    page.keyboard.press("End")
    assert page.locator("#epoch").evaluate("e => e.getBoundingClientRect().top") < 60  # it stays in sight


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
