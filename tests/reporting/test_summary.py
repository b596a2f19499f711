"""What is said of a run: its best epoch, its scores, its recipe, how to repeat it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scored_run import WHY, make_record, make_row, make_scores

from config import RECIPES, make_recipe, parse_settings
from evaluation.compare import Entry
from evaluation.scores import Row, Score, ScoreFile
from models import fit_networks
from reporting import summary


@pytest.fixture
def scores() -> ScoreFile:
    return make_scores()


def test_why_the_best_epoch_is_best(scores: ScoreFile) -> None:
    assert summary.headline(scores) == "Epoch 10 is best"
    assert summary.best_words(scores, "ciede2000") == [
        "CIEDE2000 4.40 (3.40 to 5.40; lower is better) at epoch 10, over 5 pictures, on which it was also chosen.",
        "Epoch 10 is better than gray (12.00) and mean ab (4.50).",
        "The last epoch, 15, has 5.70.",
        "The epoch is chosen by CIEDE2000, the metric of the recipe.",
        "Best by other metrics: epoch 10 (PSNR (dB)).",
        "CIEDE2000 rewards caution, such as brown: colourfulness is 20.00, that of the truth 30.00.",
    ]


def test_the_default_metric_is_said_to_be_one(scores: ScoreFile) -> None:
    assert "The epoch is chosen by CIEDE2000, the default when it was scored." in summary.best_words(scores, "auto")
    for row in scores.rows.values():
        row.scores["color_error"] = row.scores["lpips_alex"] = row.scores["ciede2000"]
    scores = replace(scores, metric="color_error", best={**scores.best, "color_error": "epoch_0010"})
    sentences = summary.best_words(scores, "auto")
    assert "The epoch is chosen by colour error, the default where LPIPS AlexNet is not computed." in sentences
    scores = replace(scores, metric="lpips_alex", best={**scores.best, "lpips_alex": "epoch_0010"})
    sentences = summary.best_words(scores, "auto")
    assert sentences[0].startswith("LPIPS AlexNet 4.40 (3.40 to 5.40; lower is better) at epoch 10")
    assert "The epoch is chosen by LPIPS AlexNet, the default." in sentences
    assert not any("caution" in sentence for sentence in sentences)  # it sees a lack of colour


def test_epochs_that_cannot_be_told_from_the_best_are_named(scores: ScoreFile) -> None:
    assert not any("chance" in sentence for sentence in summary.best_words(scores))
    for ties, which in ((["epoch_0005"], "epoch 5"), (["epoch_0005", "epoch_0015"], "epochs 5 and 15")):
        tied = replace(scores, ties=ties)
        (sentence,) = (s for s in summary.best_words(tied) if "chance" in s)
        assert f"from {which} is" in sentence
        assert summary.headline(tied) == "Epoch 10 has the best mean"


def test_a_headline_admits_that_a_baseline_is_not_beaten(scores: ScoreFile) -> None:
    tied = replace(scores, ties=["mean_ab", "epoch_0015"])
    assert summary.headline(tied) == "No epoch is shown to beat the mean colour"
    assert summary.best_words(tied)[1:5] == [
        "Picture by picture, a difference from mean ab (4.50) is not shown: it may be chance.",
        "Epoch 10 is better than gray (12.00).",
        "The last epoch, 15, has 5.70.",
        "Picture by picture, a difference from epoch 15 is not shown: it may be chance.",
    ]
    scores.rows["mean_ab"].scores["ciede2000"] = Score(3.0)
    assert summary.headline(scores) == "No epoch beats the mean colour yet"
    assert summary.best_words(scores)[1:3] == [
        "Epoch 10 is worse than mean ab (3.00).",
        "Epoch 10 is better than gray (12.00).",
    ]
    scores.rows["gray"].scores["ciede2000"] = Score(4.4)  # as good
    assert summary.headline(scores) == "No epoch beats gray yet"
    assert summary.why_best(scores).startswith("No epoch beats gray yet: ciede2000 of epoch 10 is 4.4 (")
    for row in scores.rows.values():
        row.scores["s0_ssim"] = Score(0.9)  # which does not see colour, and which gray has by itself
    blind = replace(scores, metric="s0_ssim", best={**scores.best, "s0_ssim": "epoch_0005"})
    assert summary.headline(blind) == "Epoch 5 is best"


def test_one_epoch_alone_is_not_called_best_nor_one_by_a_metric_that_is_unavailable(
    scores: ScoreFile,
) -> None:
    alone = make_scores(epochs=[15])
    alone.rows["mean_ab"].scores["ciede2000"] = Score(6.0)
    assert summary.headline(alone) == "Epoch 15, the only one scored"
    assert "chosen" not in " ".join(summary.best_words(alone))
    assert "chosen" not in summary.why_best(alone)
    without = replace(scores, metric="fid")
    assert summary.headline(without) == "No epoch is named best"
    assert summary.best_words(without, "fid") == [
        f"The epoch is chosen by FID (the metric of the recipe), which is {WHY}.",
        "Best by other metrics: epoch 10 (PSNR (dB), CIEDE2000).",
    ]


def test_reasons_are_given_once(scores: ScoreFile) -> None:
    row = scores.rows["epoch_0005"]
    del row.scores["psnr_db"]
    row.missing["psnr_db"] = WHY
    assert summary.missing_words(scores) == [
        "LPIPS AlexNet is unavailable: no weights of AlexNet.",
        f"FID and PSNR (dB) of epoch 5 are {WHY}.",
    ]


def test_numbers_have_four_digits_and_one_form_per_metric(scores: ScoreFile) -> None:
    rows = {
        "gray": make_row({"psnr_db": [1234.5], "ssim": [0.91234], "kid": [0.01234], "fid": [9.876]}),
        "epoch_0005": make_row({"psnr_db": [2.0], "fid": [38.1]}, 5),
    }
    scores = replace(scores, rows=rows)
    shown = [summary.mean_text(scores, m, rows["gray"]) for m in ("psnr_db", "ssim", "kid", "fid", "top1")]
    assert shown == ["1,234", "0.912", "0.0123", "9.88", ""]
    assert summary.mean_text(scores, "psnr_db", rows["epoch_0005"]) == "2"
    assert summary.interval_text(scores, "fid", rows["gray"]) == "8.88 to 10.88"
    assert summary.interval_text(scores, "top1", rows["gray"]) == ""
    rows["gray"].scores["fid"] = Score(9.876)
    assert summary.interval_text(scores, "fid", rows["gray"]) == ""


def test_references_are_baselines_upper_bounds_and_the_truths_colourfulness(scores: ScoreFile) -> None:
    assert summary.references(scores, "ciede2000") == {"gray": 12.0, "mean_ab": 4.5, "jpeg90": 0.5}
    assert summary.references(scores, "colorfulness") == {
        "gray": 0.0, "mean_ab": 9.0, "jpeg90": 29.0, "truth": 30.0
    }  # fmt: skip
    assert summary.references(scores, "fid") == {}
    for name, row in [*scores.rows.items(), ("truth", Row(None, {}, 5))]:
        row.scores |= {"top1": Score(0.9), "s0_ssim": Score(0.8)}
        scores.rows[name] = row
    assert [*summary.references(scores, "top1")] == ["gray", "mean_ab", "jpeg90", "truth"]
    assert [*summary.references(scores, "s0_ssim")] == ["gray", "mean_ab"]  # it does not see colour


def test_the_table_shows_every_row_and_marks_the_best(scores: ScoreFile) -> None:
    lines = [line.split() for line in summary.score_table(scores).splitlines()]
    assert lines[:7] == [
        ["psnr_db", "ciede2000", "colorful"],
        ["gray", "15", "12", "0"],
        ["mean_ab", "16", "4.5", "9"],
        ["jpeg90", "39", "0.5", "29"],
        ["epoch_0005", "19", "7", "20"],
        ["epoch_0010", "26.8*", "4.4*", "20"],
        ["epoch_0015", "23.9", "5.7", "20"],
    ]
    assert [" ".join(line) for line in lines[7:]] == [
        "5 images, colourfulness of the truth 30",
        "not computed: lpips_alex fid (report.html says why; --metric NAME asks for one)",
        summary.why_best(scores),
    ]


def test_the_best_epoch_in_one_line(scores: ScoreFile) -> None:
    assert summary.why_best(scores) == (
        "Epoch 10 is best: ciede2000 of epoch 10 is 4.4 (lower is better; 95 % interval 3.4 to 5.4; "
        "best of 3 epochs, chosen on the images that score it); gray 12, mean_ab 4.5, jpeg90 0.5"
    )
    scores.rows["epoch_0010"].scores["ciede2000"] = Score(4.4)  # of a single image
    assert "is 4.4 (lower is better; best of 3 epochs" in summary.why_best(scores)
    assert summary.why_best(replace(scores, metric="fid")) == f"no best epoch by fid: {WHY}"
    assert summary.why_best(replace(scores, metric="kid")) == "no best epoch by kid: not scored"


def test_recipe_in_words() -> None:
    assert " ".join(summary.recipe_words(make_record(size=64, epochs=15))) == (
        "Recipe coco (photo in Lab, pix2pix): lightness to colour (a and b of Lab) at 64 px. "
        "Networks: generator unet, 54,409,856 parameters; discriminator patch30, 2,765,633 parameters. "
        "Loss: 1 x GAN (vanilla) + 100 x L1. "
        "Epochs: 15. 16 pictures a step, Adam at 0.0002, constant. "
        "Data: of mine, 1,234 to train on and 5 to validate; seed 42."
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_told(name: str) -> None:
    text = " ".join(summary.recipe_words(make_record(name)))
    assert f"Recipe {name} (" in text
    assert "Loss: " in text
    assert ("no discriminator" in text) == (make_recipe(name, {}).discriminator == "none")
    assert ("damaged: blur (30 %), grain (50 %)" in text) == (name == "restore")


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("restore", {"size": 128, "pretrained": False, "lr": 1e-3, "schedule": "linear"}),
        ("manga-att", {"attention": 32}),
        ("demo", {"depth": 4, "load_size": 160}),
    ],
)
def test_the_command_makes_the_same_recipe_again(name: str, changes: dict[str, Any], recorded: bool) -> None:
    record = make_record(name, **changes)
    record = record if recorded else replace(record, overrides=None)  # as an earlier version wrote it
    lines = summary.commands(Path("run"), record).split(" \\\n")
    given = [line.strip().removeprefix("--set ") for line in lines if "--set" in line]
    assert fit_networks(make_recipe(name, parse_settings(given))) == record.recipe
    assert {setting.partition("=")[0] for setting in given} >= changes.keys()
    assert not recorded or len(given) == len(changes)


def test_a_run_of_a_recipe_that_is_gone_can_be_told() -> None:
    record = make_record(size=64)
    record = replace(record, recipe=replace(record.recipe, name="old"), overrides=None)
    assert summary.recipe_words(record)[0] == "Recipe old: lightness to colour (a and b of Lab) at 64 px."
    assert "--recipe old" in summary.commands(Path("run"), record)


def test_commands() -> None:
    record = replace(make_record(size=64, epochs=15), weights="/weights here")
    record = replace(record, recipe=replace(record.recipe, epochs=20))  # a resume went on for longer
    assert summary.commands(Path("my run"), record).splitlines() == [
        "# Tinct 0.2.0, Python 3.11.7, commit c0ffee",
        "pip install torch==2.15.0 numpy==2.4.6",
        "python train.py --recipe coco \\",
        "    --data '/photos/of mine' \\",
        "    --weights '/weights here' \\",
        "    --set size=64 \\",
        "    --set epochs=20 \\",
        "    --run 'my run'",
        "python eval.py --all-epochs --run 'my run'",
    ]


def test_training_in_words() -> None:
    record = replace(make_record(batch_size=8), images={"train": 100})
    records = [
        {"epoch": 1, "steps": 100, "images_per_s": 8.0, "device": "Xeon, threads: 2"},
        {"epoch": 2, "steps": 150, "images_per_s": 16.0, "device": "H100"},  # went on elsewhere
        {"epoch": 2, "steps": 200, "images_per_s": 16.0, "device": "H100"},
    ]
    assert summary.training_words(record, records) == [
        "2 epochs took 2 min on Xeon, threads: 2 and H100, without loading and saving.",
        "The network was shown 1,600 pictures, 10.7 a second.",
    ]
    few = replace(record, images={"train": 3})  # fewer than a batch
    old = [{"epoch": 1, "steps": 100, "images_per_s": 8.0}]  # of a version that recorded no device
    assert summary.training_words(few, old) == [
        "1 epoch took 38 s, without loading and saving.",
        "The network was shown 300 pictures, 8 a second.",
    ]
    two = [{**entry, "images": 1600} for entry in old]  # of two processes
    assert summary.training_words(record, two)[1] == "The network was shown 1,600 pictures, 8 a second."
    assert summary.training_words(record, []) == []


def test_commands_that_use_a_run() -> None:
    lines = summary.use_commands(Path("my run"), make_record(epochs=15), 10).splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "python export.py --run 'my run' --epoch 10",
        "python colorize.py photos/ --model 'my run/generator.ts' --out coloured/",
        "python train.py --resume --run 'my run' --epochs 30",
    ]


def test_a_side_in_words() -> None:
    side = [Entry(f"a{i}", 10, None, "", "") for i in (1, 2, 3)]
    assert summary.side_words(side[:1]) == "a1, epoch 10"
    assert summary.side_words(side) == "a1, a2 and a3, epoch 10"
    assert summary.side_words([side[0], side[1]._replace(epoch=5)]) == "a1 epoch 10 and a2 epoch 5"
