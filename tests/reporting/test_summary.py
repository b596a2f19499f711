"""words.py: what a run's files say, and what it says of files that are missing or damaged."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import RECIPES, make_recipe, parse_settings
from evaluation.scores import FORMAT, read_scores
from imaging.files import write_image
from reporting import summary

STEMS = ("plain", "a\"b<i>'&", "ünï 色", "<!--<script>", "{{data}}")
EPOCHS = (5, 10, 15)
METRICS = {
    "psnr_db": "higher", "ciede2000": "lower", "colorfulness": "closest to the truth",
    "lpips_alex": "lower", "fid": "lower",
}  # fmt: skip
WHY = "unavailable: 5 test images, at least 256 are needed; test on more"
# One column per epoch: the order of the pictures is another one at every epoch, and by every measure.
CIEDE2000 = {
    "plain": (9.0, 4.0, 6.0), STEMS[1]: (8.0, 7.5, 2.0), STEMS[2]: (7.0, 1.0, 5.5), STEMS[3]: (6.0, 6.5, 7.0),
    STEMS[4]: (5.0, 3.0, 8.0),
}  # fmt: skip
COLOURS = {5: (200, 40, 40), 10: (40, 40, 200), 15: (200, 200, 40)}  # of all pictures of an epoch
TRUTH, GIVEN = (40, 160, 40), (128, 128, 128)


def picture_row(stem: str, column: int) -> dict[str, float]:
    """Return the scores of one picture at one epoch."""
    ciede2000 = CIEDE2000.get(stem, (5.0, 4.0, 6.0))[column]
    return {"psnr_db": 40 - 3 * ciede2000 + (column == 2), "ciede2000": ciede2000, "colorfulness": 20.0}


def epoch_row(rows: Sequence[Mapping[str, float]], **others: Any) -> dict[str, Any]:
    """Return the means of pictures as a row of scores.json, with an interval of +- 1."""
    means = {metric: float(np.mean([row[metric] for row in rows])) for metric in rows[0]}
    ends = {f"{m}_{end}": means[m] + side for m in means for end, side in (("low", -1), ("high", 1))}
    return {**means, **ends, "colorfulness_truth": 30.0, "images": len(rows), **others}


def make_run(
    folder: Path, stems: Sequence[str] = STEMS, epochs: Sequence[int] = EPOCHS, side: int = 24, **recipe: Any
) -> Path:
    """Write a run folder of flat pictures, as the stages leave it, without any training."""
    chosen = make_recipe("coco", {"size": 64, "epochs": 15, **recipe})
    record = {
        "data": "/photos/of mine", "loading": {}, "fingerprints": {"train": "aa11", "val": "bb22"},
        "mean_ab": [0.0, 0.0], "images": {"train": 1234, "val": 5}, "git": "c0ffee", "weights": None,
        "versions": {"tinct": "0.2.0", "python": "3.11.7", "torch": "2.15.0+cpu", "numpy": "2.4.6"},
        "parameters": {"generator": 54409856, "discriminator": 2765633}, "recipe": asdict(chosen),
    }  # fmt: skip
    pages = {"inputs": GIVEN, "targets": TRUTH}
    pages |= {f"outputs/epoch_{epoch:04d}": COLOURS[epoch] for epoch in epochs}
    for name, colour in pages.items():
        for stem in stems:
            picture = np.full((side, side, 3), colour, np.uint8)
            write_image(folder / name / f"{stem}.png", picture)
    rows: dict[str, Any] = {"gray": epoch_row([{"psnr_db": 15.0, "ciede2000": 12.0, "colorfulness": 0.0}])}
    rows["mean_ab"] = epoch_row([{"psnr_db": 16.0, "ciede2000": 4.5, "colorfulness": 9.0}])
    rows["jpeg90"] = epoch_row([{"psnr_db": 39.0, "ciede2000": 0.5, "colorfulness": 29.0}])
    lines = []
    for epoch in epochs:
        name, column = f"epoch_{epoch:04d}", EPOCHS.index(epoch)
        (folder / "outputs" / name / ".stamp").write_text(f"key {epoch}")
        pictures = {stem: picture_row(stem, column) for stem in stems}
        rows[name] = epoch_row([*pictures.values()], stamp=f"key {epoch}")
        lines += [[name, stem, *map(repr, row.values()), ""] for stem, row in pictures.items()]
    for row in rows.values():
        row |= {"lpips_alex": "unavailable: no weights of AlexNet", "fid": WHY}
    scores = {
        "format": FORMAT, "metric": "ciede2000", "directions": METRICS, "rows": rows,
        "best": {m: f"epoch_{10 if 10 in epochs else epochs[-1]:04d}" for m in ("psnr_db", "ciede2000")},
        "protocol": {"file_list": "dd44", "versions": {"tinct": "0.2.0"}, "weights": {"vgg": "ee"}},
        "ties": [],
        "notes": ["FID of 5 images is biased <upwards>"],
    }  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(record))
    (folder / "scores.json").write_text(json.dumps(scores))
    with open(folder / "scores_per_image.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["name", "stem", "psnr_db", "ciede2000", "colorfulness", "lpips_alex"], *lines]
        )
    records = [{"epoch": 1, "steps": 10 * i, "G_l1": 1 / i, "D_real": 0.5} for i in range(1, 31)]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def edit(path: Path, change: Any) -> None:
    """Rewrite a JSON file through `change`, which alters what it holds."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "my run")


def test_why_the_best_epoch_is_best(run: Path) -> None:
    headline, sentences = summary.best_words(read_scores(run))
    assert headline == "Epoch 10 is best"
    assert sentences == [
        "CIEDE2000, the metric of the recipe (lower is better): 4.40, 95 % interval 3.40 to 5.40, "
        "over 5 pictures.",
        "It is better than gray (12.00) and mean ab (4.50).",
        "The last epoch, 15, has 5.70.",
        "Best by other metrics: epoch 10 (PSNR (dB)).",
    ]


@pytest.mark.parametrize(
    ("ties", "which"), [(["epoch_0005"], "epoch 5"), (["epoch_0005", "epoch_0015"], "epochs 5 and 15")]
)
def test_epochs_that_cannot_be_told_from_the_best_are_named(run: Path, ties: list[str], which: str) -> None:
    scores = read_scores(run) | {"ties": ties}
    sentence = f"Picture by picture, a difference from {which} is not shown: it may be chance."
    assert sentence in summary.best_words(scores)[1]
    assert not any("may be chance" in text for text in summary.best_words(scores | {"ties": []})[1])


def test_an_epoch_below_the_baselines_is_said_to_be(run: Path) -> None:
    scores = read_scores(run)
    scores["rows"]["mean_ab"]["ciede2000"] = 3.0
    sentences = summary.best_words(scores)[1]
    assert sentences[1:3] == ["It is better than gray (12.00).", "It is worse than mean ab (3.00)."]


def test_no_epoch_is_best_by_a_metric_that_is_unavailable(run: Path) -> None:
    scores = {**read_scores(run), "metric": "fid"}
    headline, sentences = summary.best_words(scores)
    assert headline == "No epoch is named best"
    assert sentences == [
        f"The recipe chooses by FID, which is {WHY}.",
        "Best by other metrics: epoch 10 (PSNR (dB), CIEDE2000).",
    ]


def test_one_epoch_alone_is_not_called_best(tmp_path: Path) -> None:
    headline, _ = summary.best_words(read_scores(make_run(tmp_path / "run", epochs=[15])))
    assert headline == "Epoch 15, the only one scored"


def test_reasons_are_given_once(run: Path) -> None:
    scores = read_scores(run)
    scores["rows"]["epoch_0005"]["psnr_db"] = WHY
    assert summary.missing(scores) == [
        "LPIPS AlexNet is unavailable: no weights of AlexNet.",
        f"FID and PSNR (dB) of epoch 5 are {WHY}.",
    ]


def test_numbers_have_four_digits_and_one_form_per_metric() -> None:
    rows = {
        "gray": {"a": 1234.5, "b": 0.91234, "c": 0.01234, "d": 9.876},
        "epoch_0005": {"a": 2.0, "d": 38.1},
    }
    scores = {"rows": rows, "directions": {}}
    assert [summary.shown(scores, metric, rows["gray"]) for metric in "abcde"] == [
        "1,234", "0.912", "0.0123", "9.88", "",
    ]  # fmt: skip
    assert summary.shown(scores, "a", rows["epoch_0005"]) == "2"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "unavailable: why", None])
def test_what_is_no_number_is_none(value: Any) -> None:
    assert summary.number({"fid": value}, "fid") is None


def test_recipe_in_words(run: Path) -> None:
    record = json.loads((run / "recipe.json").read_text())
    assert " ".join(summary.recipe_words(record)) == (
        "Recipe coco (photo in Lab, pix2pix): lightness to colour (a and b of Lab) at 64 px. "
        "Networks: generator unet, 54,409,856 parameters; discriminator patch30, 2,765,633 parameters. "
        "Loss: 1 x GAN (vanilla) + 100 x L1. "
        "15 epochs, 16 pictures a step, Adam at 0.0002, constant. "
        "Data: of mine, 1,234 to train on and 5 to validate; seed 42."
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_told(name: str) -> None:
    text = " ".join(summary.recipe_words({"recipe": asdict(make_recipe(name, {})), "data": "demo"}))
    assert f"Recipe {name} (" in text
    assert "Loss: " in text
    assert ("no discriminator" in text) == (make_recipe(name, {}).discriminator == "none")
    assert ("damaged: scratches (50 %)" in text) == (name == "restore")


def test_a_recipe_of_another_version_is_told_with_defaults() -> None:
    record = {
        "recipe": {"name": "old", "input": "L", "size": 64, "limit": 0, "attention": 0},
        "data": "photos",
    }
    assert summary.recipe_words(record)[0] == "Recipe old: lightness to colour (a and b of Lab) at 64 px."
    assert summary.settings({**record["recipe"], "gone": 1}) == [
        "input=L",
        "size=64",
        "limit=0",
        "attention=0",
    ]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("coco", {}),
        ("coco", {"size": 64, "ngf": 32, "epochs": 3}),
        ("restore", {"size": 128, "pretrained": False, "lr": 1e-3, "schedule": "linear"}),
        ("manga-att", {"attention": 32}),
        ("demo", {"depth": 4, "load_size": 160}),
    ],
)
def test_settings_make_the_same_recipe_again(name: str, changes: dict[str, Any]) -> None:
    recipe = make_recipe(name, changes)
    settings = summary.settings(asdict(recipe))
    assert make_recipe(name, parse_settings(settings)) == recipe
    assert {setting.partition("=")[0] for setting in settings} == changes.keys()


def test_commands(run: Path) -> None:
    record = json.loads((run / "recipe.json").read_text())
    assert summary.commands(Path("my run"), {**record, "weights": "/weights here"}).splitlines() == [
        "# Tinct 0.2.0, Python 3.11.7, commit c0ffee",
        "pip install torch==2.15.0 numpy==2.4.6",
        "python train.py --recipe coco \\",
        "    --data '/photos/of mine' \\",
        "    --weights '/weights here' \\",
        "    --set size=64 \\",
        "    --set epochs=15 \\",
        "    --run 'my run'",
        "python eval.py --all-epochs --run 'my run'",
    ]


def test_missing_picture_scores_say_how_to_write_them(run: Path) -> None:
    (run / "scores_per_image.csv").unlink()
    with pytest.raises(
        ValueError, match=r"has no scores_per_image\.csv; .* python eval\.py --all-epochs --run '.*my run'"
    ):
        next(summary.picture_scores(run))


@pytest.mark.parametrize(
    "content",
    [
        b"name,psnr_db\nepoch_0005,1\n",
        b"name,stem,psnr_db\nepoch_0005,a,many\n",
        b"name,stem,psnr_db,ssim\nepoch_0005,a,1\n",
        b"name,stem,psnr_db\nepoch_0005,a,1,2\n",
        b'name,stem,psnr_db\nepoch_0005,"a,1\n',
        b"name,stem,psnr_db\nepoch_0005,\xff,1\n",
    ],
)
def test_damaged_picture_scores_are_said_to_be(run: Path, content: bytes) -> None:
    (run / "scores_per_image.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"scores_per_image\.csv is damaged; score again with: "):
        list(summary.picture_scores(run))


def test_picture_scores_leave_out_what_is_no_number(run: Path) -> None:
    (run / "scores_per_image.csv").write_text("name,stem,a,b,c\nepoch_0005,x,1.5,,nan\n")
    assert list(summary.picture_scores(run)) == [("epoch_0005", "x", {"a": 1.5})]
