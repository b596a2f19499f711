"""The page says what the run's files say, and its gallery shows the images that were scored."""

import base64
import io
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scored_run import CIEDE2000, STEMS, edit, make_run, make_scores

from evaluation.compare import Comparison, Difference, Entry, write_comparison
from evaluation.scores import Score, ScoreFile, identify, make_row, read_per_image, read_scores, write_scores
from imaging.files import write_image
from reporting import page as report_page
from reporting.page import write_report

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


@pytest.fixture(scope="session")
def page(report: Path) -> str:
    return report.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def parsed(page: str) -> Parsed:
    return Parsed(page)


def data_of(page: str) -> dict[str, Any]:
    """Return what the page's script reads."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert match is not None
    return json.loads(match[1])


def gallery_of(run: Path, scores: ScoreFile | None = None) -> report_page.Gallery:
    """Return the gallery of a run, perhaps of changed scores."""
    scores = scores or read_scores(run)
    names = [name for name, row in scores.rows.items() if row.epoch is not None]
    return report_page.make_gallery(run, scores, *read_per_image(run, scores, names))


def decode(uri: str) -> Image.Image:
    """Return the image of a data URI."""
    kind, _, content = uri.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_the_page_says_what_the_files_say(parsed: Parsed) -> None:
    for said in (
        "my run", "Epoch 10 is best", "CIEDE2000 4.40 (3.40 to 5.40; lower is better) at epoch 10",
        "unet, 54,409,856 parameters",
        "FID of 5 images is biased <upwards>", "at least 256 are needed; test on more", "no weights of Alex",
        "5 scored pictures, from best to worst by CIEDE2000 at epoch 10", "--set size=64", "torch==2.15.0",
        "c0ffee", "dd44", "vgg weights", "G_l1", "D_real", "best mean at epoch 10: 4.40",
        "on which it was also chosen", "another seed may differ by more", "python export.py --run",
        "The network was shown 4,800 pictures", "15 epochs took 80 s on Xeon, threads: 2",
    ):  # fmt: skip
        assert said in parsed.text, said


def test_the_table_has_baselines_epochs_and_upper_bounds_in_order(page: str) -> None:
    table = " ".join(page[page.index("<table") : page.index("</table>")].split())
    rows = re.findall(r'<th scope="row">(.*?)</th>', table)
    assert rows == ["gray", "mean ab", "epoch 5", "epoch 10", "epoch 15", "JPEG 90", "truth"]
    assert re.findall(r'<th scope="col">(.*?) <abbr title="(.*?)">', table) == [
        ("PSNR (dB)", "higher is better"),
        ("CIEDE2000", "lower is better"),
        ("colourfulness", "best near the truth"),
    ]
    epoch = table[table.index("epoch 10") : table.index("epoch 15")]
    assert '<td data-metric="CIEDE2000 ↓">4.40<small>3.40 to 5.40</small></td>' in epoch
    assert re.findall(r"<td[^>]*>(.*?)</td>", table)[-1] == "30.00"  # of the truth, its colourfulness alone
    assert "<strong>" not in table  # epoch 10's lead over mean ab and over epoch 15 may be chance


def test_bold_is_an_epoch_whose_lead_is_no_chance(run: Path) -> None:
    scores = read_scores(run)
    names = [name for name in scores.rows if name != "truth"]
    per_image, stems = read_per_image(run, scores, names)
    for name, mean in (("mean_ab", 20.0), ("epoch_0005", 22.0), ("epoch_0010", 12.0), ("epoch_0015", 21.0)):
        per_image[name]["ciede2000"] = np.arange(5) + mean
        scores.rows[name].scores["ciede2000"] = make_row(name, per_image[name], stems).scores["ciede2000"]
    write_scores(run, scores, per_image, stems)
    page = write_report(run).read_text()
    assert "No epoch beats gray yet" in page  # whose 12.0 is less than 14.0
    assert "<strong>" not in page
    scores.rows["gray"].scores["ciede2000"] = Score(30.0)
    per_image["gray"]["ciede2000"] = np.full(5, 30.0)
    write_scores(run, scores, per_image, stems)
    assert re.findall("<strong>(.*?)<", write_report(run).read_text()) == ["14.00"]


def test_a_comparison_is_part_of_the_report(run: Path) -> None:
    entries = [Entry("my run", 10, "ciede2000", identify(read_scores(run).protocol), "key 10")]
    entries += [Entry("other <b>", 5, None, "p", "s")]
    metrics = {
        "ciede2000": Difference(4.4, 6.5, Score(-2.1, 0.2, -2.5, -1.7), 5),
        "fid": Difference(30, 40, Score(-10), 5),
    }
    found = Comparison(entries[:1], entries[1:], ["size 32 and 64"], 5, {"gray": {"ciede2000": 12.0}}, metrics)
    write_comparison(run, found)
    page = write_report(run).read_text()
    part = " ".join(page[page.index('<section id="against">') : page.index('<section id="curves">')].split())
    assert re.findall(r'<th scope="row">(.*?)</th>', part) == ["gray", "A", "B", "A &#8722; B"]
    assert '<strong>-2.10</strong><small>-2.50 to -1.70</small><small class="said">A is ahead</small>' in part
    assert '-10.000<small class="said">no interval</small>' in part
    for said in ("size 32 and 64", "these two runs; another seed may differ by more", "other &lt;b&gt;, epoch 5"):
        assert said in part
    assert "is better<" not in part
    several = Comparison([entries[0]] * 2, [entries[1]] * 2, [], 5, {}, metrics)
    write_comparison(run, several)
    page = write_report(run).read_text()
    for said in ("Two recipes", "A is better</small>", "2 runs against 2: the intervals are over runs"):
        assert said in page
    entries[0] = entries[0]._replace(stamp="key 99")  # of a checkpoint that is gone
    write_comparison(run, Comparison(entries[:1], entries[1:], [], 5, {}, metrics))
    assert 'id="against"' not in write_report(run).read_text()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no x.pth in /home/anna/.cache/torch", "no x.pth in ~/.cache/torch"),
        ("--data '/home/anna/of mine' --run /Users/anna/runs", "--data ~/'of mine' --run ~/runs"),
        ("/root/a, C:\\Users\\anna\\b", "~/a, ~/b"),
        ("/mnt/home/anna/x /mnt/root/y /rooted", "/mnt/home/anna/x /mnt/root/y /rooted"),
        ("of MINE/a", "of ~/a"),
    ],
)
def test_no_path_names_a_home_folder(text: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "my (home)"))
    assert report_page.without_home(text.replace("MINE", f"{tmp_path}/my (home)")) == shown


def test_the_whole_page_names_no_home_folder(run: Path) -> None:
    edit(run / "recipe.json", lambda record: record.update(data="/home/anna/photos", weights="/home/anna/w"))
    edit(run / "scores.json", lambda scores: scores["notes"].append("skipped /home/anna/photos/x.jpg: damaged"))
    page = write_report(run).read_text()
    assert "anna" not in page
    for said in ("--data ~/photos", "--weights ~/w", "skipped ~/photos/x.jpg: damaged"):
        assert said in page


def test_curves_say_their_values_and_follow_the_theme(page: str, parsed: Parsed) -> None:
    labels = [svg["aria-label"] for svg in parsed.all("svg")]
    assert [label.split()[0] for label in labels] == ["CIEDE2000", "PSNR", "colourfulness", "G_l1", "D_real"]
    assert labels[0] == (
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


def test_nothing_is_fetched_and_every_image_is_described(page: str, parsed: Parsed) -> None:
    for _, attributes in parsed.elements:
        for key in ("src", "href", "srcset", "action", "data"):
            assert re.match(r"data:|#|$", attributes.get(key, "")), attributes
    assert "http:" not in page
    assert "https:" not in page
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page
    shown = [image for image in parsed.all("img") if "src" in image]
    assert [image["alt"] for image in shown] == [
        f"{what}, {stem}" for stem in BEST for what in ("input", "ours at epoch 10", "truth")
    ]
    assert all("alt" in image for image in parsed.all("img"))


def test_names_are_neither_markup_nor_expressions(page: str, parsed: Parsed) -> None:
    assert [picture["stem"] for picture in data_of(page)["pictures"]] == BEST
    assert page.count("<script") == page.count("</script>") == 2
    assert not parsed.all("i")[1:]  # one in the template, none out of a name
    assert "--data '/a</script><b>&amp;{{data}}{% raw %}'" in parsed.text
    assert all(f" {stem}" in parsed.text for stem in STEMS)


@pytest.mark.slow
def test_a_report_is_the_same_every_time(report: Path) -> None:
    first = report.read_bytes()
    assert write_report(report.parent).read_bytes() == first


def test_what_is_missing_is_said_and_does_no_harm(run: Path) -> None:
    (run / "log.jsonl").unlink()
    shutil.rmtree(run / "outputs")
    page = write_report(run).read_text()
    for said in ("Epoch 10 is best", "log.jsonl, is not there", "No picture belongs to these scores"):
        assert said in page
    assert data_of(page)["pictures"] == []


def test_a_run_with_a_damaged_image_or_without_scores_is_left_as_it_was(run: Path) -> None:
    (run / "report.html").write_text("as before")
    image = (run / "inputs/plain.png").read_bytes()
    (run / "inputs/plain.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"inputs/plain\.png.*delete it, and eval\.py renders it again"):
        write_report(run)
    (run / "inputs/plain.png").write_bytes(image)
    (run / "scores_per_image.csv").unlink()
    with pytest.raises(ValueError, match=r"scores_per_image\.csv is missing or damaged; score again"):
        write_report(run)
    (run / "scores.json").unlink()
    with pytest.raises(ValueError, match=r"python eval\.py --all-epochs"):
        write_report(run)
    (run / "recipe.json").unlink()
    with pytest.raises(ValueError, match=r"it has no recipe\.json"):
        write_report(run)
    assert (run / "report.html").read_text() == "as before"


# Which images and epochs the gallery shows.


@pytest.mark.parametrize(
    ("count", "best", "chosen"),
    [
        (1, 1, [1]),
        (10, 3, list(range(1, 11))),
        (19, 4, [1, 4, 5, 7, 9, 11, 13, 15, 17, 19]),
        (190, 2, [1, 2, 43, 64, 85, 106, 127, 148, 169, 190]),
    ],
)
def test_epochs_are_even_with_both_ends_and_the_best(count: int, best: int, chosen: list[int]) -> None:
    assert report_page.spread_epochs(range(1, count + 1), best) == chosen


@pytest.mark.parametrize(
    ("metric", "ranked_by"),
    [("ciede2000", "CIEDE2000"), ("fid", "PSNR (dB)")],  # fid ranks no single image
)
def test_images_are_ranked_best_first(run: Path, metric: str, ranked_by: str) -> None:
    gallery = gallery_of(run, replace(read_scores(run), metric=metric))
    assert f"from best to worst by {ranked_by} at epoch 10" in gallery.text
    assert [card.stem for card in gallery.cards] == BEST


def test_one_image_of_one_epoch_is_enough(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", STEMS[:1], [15])
    data = gallery_of(run).data
    assert (len(data["pictures"]), data["epochs"]) == (1, [15])


def test_many_images_are_taken_evenly_by_rank(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", stems=[STEMS[0]], epochs=[10])
    stems = [f"p{i:03d}" for i in range(600)]
    for stem in stems:
        for folder in ("inputs", "targets", "outputs/epoch_0010"):
            os.link(run / folder / "plain.png", run / folder / f"{stem}.png")
    ranks = np.array([(i * 7) % 600 for i in range(600)], float)
    scores = make_scores(stems, [10])
    scores.rows["epoch_0010"].images = 601
    per_image = {"epoch_0010": {"ciede2000": np.append(ranks, 0.5)}}
    write_scores(run, scores, per_image, [*stems, "absent"])
    gallery = gallery_of(run)
    chosen = [int(ranks[int(card.stem[1:])]) for card in gallery.cards]
    assert (len(chosen), chosen[0], chosen[-1]) == (48, 0, 599)
    assert {12, 13} >= set(np.diff(chosen).tolist())
    assert gallery.text == "48 of 600 scored pictures, evenly from best to worst by CIEDE2000 at epoch 10."


@pytest.mark.parametrize("fault", ["folder", "stale", "unstamped", "picture"])
def test_epochs_that_are_not_as_they_were_scored_are_left_out(run: Path, fault: str) -> None:
    folder = run / "outputs/epoch_0010"
    if fault == "folder":
        shutil.rmtree(folder)
    elif fault == "stale":
        (folder / ".stamp").write_text("key 11")
    else:
        (folder / (".stamp" if fault == "unstamped" else f"{STEMS[2]}.png")).unlink()
    gallery = gallery_of(run)
    assert (gallery.data["epochs"], gallery.data["start"]) == ([5, 15], 1)
    assert "Epoch 10: the pictures are gone, or not those scored; python eval.py" in gallery.text


def test_images_without_input_or_ground_truth_are_left_out(run: Path) -> None:
    (run / "inputs/plain.png").unlink()
    (run / "targets" / f"{STEMS[4]}.png").unlink()
    gallery = gallery_of(run)
    assert sorted(card.stem for card in gallery.cards) == sorted(STEMS[1:4])
    shutil.rmtree(run / "inputs")
    assert not gallery_of(run).cards


def test_the_script_knows_every_score(run: Path) -> None:
    data = gallery_of(run).data
    assert data["metrics"]["psnr_db"]["sign"] == -data["metrics"]["ciede2000"]["sign"] == -1
    assert data["metrics"]["ciede2000"]["means"] == ["7.00", "4.40", "5.70"]
    for picture in data["pictures"]:
        assert picture["scores"]["ciede2000"] == list(CIEDE2000[picture["stem"]])
        assert [uri is None for uri in picture["ours"]] == [False, True, False]  # epoch 10 is on the card


def test_small_images_are_kept_to_the_bit() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 20, 3), dtype=np.uint8)
    write_image(Path("a.png"), image)
    uri, width, height = report_page.encode(Path("a.png"), *report_page.STEPS[0])
    assert (width, height) == (20, 32)
    assert np.array_equal(np.asarray(decode(uri)), image)


@pytest.mark.parametrize(("shape", "size"), [((600, 300), (128, 256)), ((100, 400), (256, 64)), ((1, 900), (256, 1))])
def test_large_images_are_shrunk(shape: tuple[int, int], size: tuple[int, int]) -> None:
    write_image(Path("a.png"), np.full((*shape, 3), (200, 100, 50), np.uint8))
    uri, *shown = report_page.encode(Path("a.png"), *report_page.STEPS[0])
    assert (tuple(shown), decode(uri).size) == (size, size)
    assert np.allclose(np.asarray(decode(uri).convert("RGB")), (200, 100, 50), atol=4)


def test_images_are_as_fine_as_the_page_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a/x.png", np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))
    write_image(tmp_path / "b/x.png", np.zeros((200, 200, 3), np.uint8))
    made = []
    for most in (9_000_000, 12_000, 10):
        monkeypatch.setattr(report_page, "MAX_BYTES", most)
        made.append(report_page.encode_all([tmp_path / "a", tmp_path / "b"], ["x"])[0])
    assert [one.width == other.width for one, other in made] == [True] * 3  # one size for all
    widths = [pictures[0].width for pictures in made]
    assert widths[0] == 200 > widths[1] > widths[2] == report_page.STEPS[-1][0]
    assert 6_000 < sum(len(picture.uri) for picture in made[1]) <= 12_000


@pytest.mark.slow
def test_ten_epochs_of_noise_fit(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    write_image(tmp_path / "noise.png", noise)
    folders = [tmp_path] * (2 + report_page.MAX_EPOCHS)
    pictures = report_page.encode_all(folders, ["noise"] * report_page.MAX_IMAGES)
    assert 5_000_000 < sum(len(picture.uri) for row in pictures for picture in row) < 9_000_000
