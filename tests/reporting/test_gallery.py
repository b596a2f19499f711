"""gallery.py: which pictures a report shows, and that they fit into it."""

import base64
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_summary import CIEDE2000, EPOCHS, METRICS, STEMS, make_run

from evaluation.scores import read_scores
from imaging.files import write_image
from reporting import page as report_page


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def decode(uri: str) -> Image.Image:
    """Return the picture of a data URI."""
    kind, _, content = uri.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.mark.parametrize(
    ("count", "best", "chosen"),
    [
        (1, 1, [1]),
        (2, 1, [1, 2]),
        (10, 3, list(range(1, 11))),
        (19, 4, [1, 4, 5, 7, 9, 11, 13, 15, 17, 19]),
        (190, 190, [1, 22, 43, 64, 85, 106, 127, 148, 169, 190]),
        (190, 2, [1, 2, 43, 64, 85, 106, 127, 148, 169, 190]),
    ],
)
def test_epochs_are_even_with_both_ends_and_the_best(count: int, best: int, chosen: list[int]) -> None:
    assert report_page.choose_epochs(range(1, count + 1), best) == chosen


def test_a_best_epoch_without_pictures_is_not_chosen() -> None:
    assert report_page.choose_epochs(range(1, 100, 2), 50) == report_page.choose_epochs(range(1, 100, 2), 1)


@pytest.mark.parametrize(("metric", "sign"), [("ciede2000", 1), ("psnr_db", -1)])
def test_pictures_are_ranked_best_first(run: Path, metric: str, sign: int) -> None:
    scores = {**read_scores(run), "metric": metric}
    chosen = report_page.choose(run, scores)
    assert chosen is not None
    assert (chosen.metric, chosen.best, chosen.total) == (metric, 10, 5)
    assert chosen.stems == sorted(STEMS, key=lambda stem: CIEDE2000[stem][1])
    epoch = report_page.rank_stems(run, scores, metric, 5)
    assert epoch == sorted(STEMS, key=lambda stem: CIEDE2000[stem][0])


@pytest.mark.parametrize("metric", ["fid", "colorfulness", "lpips_alex", "unknown"])
def test_what_cannot_rank_a_picture_is_replaced(run: Path, metric: str) -> None:
    chosen = report_page.choose(run, {**read_scores(run), "metric": metric})
    assert chosen is not None
    assert chosen.metric == next(iter(METRICS))


def test_many_pictures_are_taken_evenly_by_rank(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", stems=[STEMS[0]], epochs=[10])
    lines = ["name,stem,ciede2000"]
    for i in range(600):
        lines.append(f"epoch_0010,p{i:03d},{(i * 7) % 600}")
        for folder in ("inputs", "targets", "outputs/epoch_0010"):
            os.link(run / folder / "plain.png", run / folder / f"p{i:03d}.png")
    (run / "scores_per_image.csv").write_text("\n".join([*lines, "epoch_0010,absent,0.5", ""]))
    chosen = report_page.choose(run, read_scores(run))
    assert chosen is not None
    ranks = [(int(stem[1:]) * 7) % 600 for stem in chosen.stems]
    assert (len(ranks), ranks[0], ranks[-1]) == (48, 0, 599)
    assert {12, 13} >= set(np.diff(ranks).tolist())
    sentence = report_page.gallery_words(run, read_scores(run), chosen)
    assert sentence == "48 of 600 pictures, evenly from best to worst by CIEDE2000 at epoch 10."


@pytest.mark.parametrize("fault", ["folder", "stale", "unstamped", "picture"])
def test_epochs_that_are_not_as_they_were_scored_are_left_out(run: Path, fault: str) -> None:
    folder = run / "outputs/epoch_0010"
    if fault == "folder":
        shutil.rmtree(folder)
    elif fault == "stale":
        (folder / ".stamp").write_text("key 11")
    else:
        (folder / (".stamp" if fault == "unstamped" else f"{STEMS[2]}.png")).unlink()
    pieces = report_page.gallery(run, read_scores(run))
    data = json.loads(pieces["data"])
    assert (data["epochs"], data["start"]) == ([5, 15], 1)
    assert "Epoch 10: the pictures are gone, or not those scored; python eval.py" in pieces["gallery"]


def test_a_row_without_a_stamp_vouches_for_no_picture(run: Path) -> None:
    scores = read_scores(run)
    for epoch in EPOCHS:
        del scores["rows"][f"epoch_{epoch:04d}"]["stamp"]
        (run / f"outputs/epoch_{epoch:04d}/.stamp").unlink()
    assert report_page.choose(run, scores) is None


@pytest.mark.parametrize("folder", ["inputs", "targets"])
def test_pictures_without_input_or_truth_are_left_out(run: Path, folder: str) -> None:
    (run / folder / "plain.png").unlink()
    chosen = report_page.choose(run, read_scores(run))
    assert chosen is not None
    assert sorted(chosen.stems) == sorted(STEMS[1:])
    shutil.rmtree(run / folder)
    pieces = report_page.gallery(run, read_scores(run))
    assert pieces["cards"] == ""
    assert json.loads(pieces["data"]) == {"pictures": []}
    assert "No picture belongs to these scores" in pieces["gallery"]


def test_small_pictures_are_kept_to_the_bit() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 20, 3), dtype=np.uint8)
    write_image(Path("a.png"), picture)
    uri, width, height = report_page.encode(Path("a.png"), *report_page.STEPS[0])
    assert (width, height) == (20, 32)
    assert np.array_equal(np.asarray(decode(uri)), picture)


@pytest.mark.parametrize(
    ("shape", "size"), [((600, 300), (128, 256)), ((100, 400), (256, 64)), ((1, 900), (256, 1))]
)
def test_large_pictures_are_shrunk(shape: tuple[int, int], size: tuple[int, int]) -> None:
    write_image(Path("a.png"), np.full((*shape, 3), (200, 100, 50), np.uint8))
    uri, *shown = report_page.encode(Path("a.png"), *report_page.STEPS[0])
    assert (tuple(shown), decode(uri).size) == (size, size)
    assert np.allclose(np.asarray(decode(uri).convert("RGB")), (200, 100, 50), atol=4)


def test_pictures_are_as_fine_as_the_budget_allows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [run / "inputs", run / "targets"]
    write_image(run / "inputs/plain.png", np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))
    write_image(run / "targets/plain.png", np.zeros((200, 200, 3), np.uint8))
    made = []
    for budget in (9_000_000, 12_000, 10):
        monkeypatch.setattr(report_page, "BUDGET", budget)
        made.append(report_page.encode_all(folders, ["plain"])[0])
    assert [pictures[0][1:] == pictures[1][1:] for pictures in made] == [True] * 3  # one size for all
    widths = [pictures[0][1] for pictures in made]
    assert widths[0] == 200 > widths[1] > widths[2] == report_page.STEPS[-1][0]
    assert 6_000 < sum(len(uri) for uri, _, _ in made[1]) <= 12_000
