"""Scoring: files that agree with the pictures, what is kept and dropped, and what does not match."""

import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

import eval as evaluation
import train
from config import METRICS, ROOT
from data import ImageSet, open_split
from eval import main
from evaluation import scores, scoring
from evaluation.classifier import build_classifier, save_classifier
from evaluation.deep_metrics import LPIPS, Judges
from evaluation.metrics import PER_IMAGE, Pictures
from evaluation.render import recompress
from evaluation.scores import best_epochs, describe_protocol, identify
from evaluation.scoring import score_folders, score_pictures
from imaging import color
from imaging.files import read_image, write_image
from imaging.pixels import Array, colorfulness, resize
from runtime import atomic, run_folder, weights
from test import main as render

CPU = torch.device("cpu")
STEMS = ["a__p13", "a__p15", "b__p12", "b__p14"]
COMPUTED = [name for name in METRICS if name in PER_IMAGE and name != "ms_ssim"]  # of 32 px
BASE = ["gray", "mean_ab", "jpeg90"]
ALL = [*BASE, "epoch_0001", "epoch_0002"]


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail whatever downloads; torch.hub's cache is empty."""
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloaded"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "hub")


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Spare tests the drawing of curves and the report, most of their time; note the runs of reports."""
    reports: list[Path] = []
    monkeypatch.setattr(scores, "plot_scores", lambda *_: None)
    monkeypatch.setattr(evaluation, "write_report", lambda run: reports.append(run) or run / "report.html")
    return reports


@pytest.fixture(scope="module")
def scored(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return a run with both epochs scored and everything drawn, and its rows; not to be changed."""
    folder = tmp_path_factory.mktemp("scored")
    run = Path(shutil.copytree(trained, folder / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torch.hub, "get_dir", lambda: "hub")
        return run, main(run=run, all_epochs=True, device="cpu")


@pytest.fixture
def run(scored: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """Return a copy of the scored run that a test may change."""
    return Path(shutil.copytree(scored[0], tmp_path / "run"))


@pytest.fixture
def fresh(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained run, without scores, that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def load(path: Path) -> Tensor:
    """Return a picture as (1, 3, H, W) uint8."""
    return torch.from_numpy(read_image(path)).permute(2, 0, 1)[None]


def read_json(run: Path) -> dict[str, Any]:
    return json.loads((run / "scores.json").read_text())


def numbers(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return rows without the sentences why something is unavailable, which name folders."""
    sentence = "unavailable: "
    return {
        name: {key: value for key, value in row.items() if not str(value).startswith(sentence)}
        for name, row in rows.items()
    }


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def reference(target: Array, output: Array) -> dict[str, float]:
    """Return a pair's scores by scikit-image."""
    labs = rgb2lab(target), rgb2lab(output)
    grays = [np.asarray(Image.fromarray(image).convert("L")) for image in (target, output)]
    options = {"data_range": int(np.ptp(grays[0]))}
    colours = colorfulness(target), colorfulness(output)
    return {
        "psnr_db": peak_signal_noise_ratio(target, output),
        "ssim": structural_similarity(target, output, channel_axis=2),
        "ab_mse": ((labs[0][..., 1:] - labs[1][..., 1:]) ** 2).mean(),
        "ciede2000": deltaE_ciede2000(*labs).mean(),
        "colorfulness": colours[1],
        "colorfulness_truth": colours[0],
        "colorfulness_error": abs(colours[1] - colours[0]),
        "s0_psnr_db": peak_signal_noise_ratio(*grays, **options),
        "s0_ssim": structural_similarity(*grays, **options),
    }


def test_scores_are_those_of_scikit_image_on_the_written_pictures(
    scored: tuple[Path, dict[str, Any]],
) -> None:
    run, rows = scored
    assert list(rows) == ALL
    lines = read_table(run / "scores_per_image.csv")
    assert sorted((line["name"], line["stem"]) for line in lines) == [
        (n, s) for n in sorted(ALL) for s in STEMS
    ]
    for line in lines:
        name = f"{line['stem']}.png"
        expected = reference(
            read_image(run / "targets" / name), read_image(run / "outputs" / line["name"] / name)
        )
        for metric, value in expected.items():
            assert float(line[metric]) == pytest.approx(value, abs=1e-4, rel=1e-4), (metric, line)
    for name, row in rows.items():
        for metric in expected:
            values = [float(line[metric]) for line in lines if line["name"] == name]
            assert row[metric] == pytest.approx(np.mean(values))
            if metric != "colorfulness_truth":
                assert row[f"{metric}_se"] == pytest.approx(np.std(values, ddof=1) / 2, abs=1e-12)
                assert row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"]
        assert row["images"] == 4


def test_files_agree_with_what_is_returned(scored: tuple[Path, dict[str, Any]]) -> None:
    run, rows = scored
    stored = read_json(run)
    assert stored["rows"] == rows
    assert stored["best"] == best_epochs(rows)
    assert set(stored["best"]) == set(COMPUTED)
    assert (stored["metric"], stored["directions"]) == ("ciede2000", METRICS)
    table = {line["name"]: line for line in read_table(run / "scores.csv")}
    assert list(table) == list(rows)
    for name, row in rows.items():
        assert float(table[name]["ssim"]) == row["ssim"]
        assert float(table[name]["ciede2000_low"]) == row["ciede2000_low"]
        for metric in set(METRICS) - set(COMPUTED):
            assert table[name][metric] == ""  # unavailable is never a number
            assert row[metric].startswith("unavailable: ")
            assert f"{metric}_se" not in row
    assert set(read_table(run / "scores_per_image.csv")[0]) == {
        "name",
        "stem",
        "protocol",
        "colorfulness_truth",
        *COMPUTED,
    }
    for name in ("curves.png", "report.html"):
        assert (run / name).stat().st_size > 1000


def test_protocol_says_how_it_was_scored(scored: tuple[Path, dict[str, Any]]) -> None:
    stored, recipe = read_json(scored[0])["protocol"], run_folder.read_run(scored[0]).recipe
    assert (stored["images"], stored["size"], stored["weights"]) == (4, 32, {})
    assert stored["resize"] == "crop 32:32 px, bicubic, antialiased"
    assert stored.keys() == describe_protocol(recipe, STEMS, [], {}).keys()
    assert stored["file_list"] == hashlib.sha256("\n".join(STEMS).encode()).hexdigest()
    assert len(stored["targets"]) == 64


def test_rows_carry_the_stamp_of_their_checkpoint(scored: tuple[Path, dict[str, Any]]) -> None:
    run, rows = scored
    key = (run / "targets" / run_folder.STAMP).read_text()
    for epoch in (1, 2):
        assert rows[f"epoch_000{epoch}"]["stamp"] == run_folder.stamp(run, epoch, key)
    assert rows["epoch_0001"]["stamp"] != rows["epoch_0002"]["stamp"]
    assert not any("stamp" in rows[name] for name in BASE)


def test_what_is_printed(run: Path, capsys: pytest.CaptureFixture[str], no_drawing: list[Path]) -> None:
    rows = main(run=run, all_epochs=True, device="cpu")
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ALL
    assert "fid unavailable: 4 test images, at least 256 are needed; test on more" in lines
    (line,) = (line for line in lines if line.startswith("lpips_alex unavailable: no alexnet-"))
    assert line.endswith("--weights DIR; or have it downloaded: --metric lpips_alex")
    best = int(best_epochs(rows)["ciede2000"].removeprefix("epoch_"))
    assert f"best of 2 scored epochs by ciede2000 (lower): {best} with " in printed
    assert lines[-1] == f"scores: {run / 'scores.csv'}, report: {run / 'report.html'}"
    assert "skipped" not in printed
    assert no_drawing == [run]


def test_floors_and_ceilings_are_of_the_truth(scored: tuple[Path, dict[str, Any]]) -> None:
    run, rows = scored
    mean = run_folder.read_run(run).mean_ab
    for stem in STEMS:
        name = f"{stem}.png"
        truth = color.rgb_to_lab(color.rgb01(load(run / "targets" / name)))
        for floor, ab in (("gray", (0.0, 0.0)), ("mean_ab", mean)):
            lab = color.rgb_to_lab(color.rgb01(load(run / "outputs" / floor / name)))
            shown = (truth[:, 0] - lab[:, 0]).abs().mean(), lab[:, 1:].mean((0, 2, 3))
            assert shown[0] < 1.0
            assert shown[1].tolist() == pytest.approx(ab, abs=1.5)
        Image.open(run / "targets" / name).save("truth.jpg", quality=90)
        np.testing.assert_array_equal(
            read_image(run / "outputs/jpeg90" / name), read_image(Path("truth.jpg"))
        )
    assert rows["gray"]["colorfulness"] < 1 < rows["mean_ab"]["colorfulness"] < rows["jpeg90"]["colorfulness"]
    for metric in ("psnr_db", "ssim", "ab_mse", "ciede2000", "colorfulness_error"):
        best = min(rows, key=lambda name: (-1 if METRICS[metric] == "higher" else 1) * rows[name][metric])
        assert best == "jpeg90"


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """Return a classifier that takes everything for an a."""
    torch.manual_seed(0)
    made = build_classifier("squeezenet1_1", ["a", "b", "c", "d", "e", "f"], 32)
    last = made.network.classifier[1]
    nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([5.0, 0.0, 4.0, 3.0, 2.0, 1.0])  # b is the last guess
    save_classifier(tmp_path / "classifier", 1, made)
    return tmp_path / "classifier/checkpoints/epoch_0001.pt"


def test_a_classifier_scores_the_truth_too(
    run: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = main(run=run, all_epochs=True, classifier=classifier, device="cpu")
    assert list(rows) == [*BASE, "truth", "epoch_0001", "epoch_0002"]
    for row in rows.values():
        assert (row["top1"], row["top5"]) == (0.5, 0.5)
        assert (row["top1_low"], row["top1_high"]) == pytest.approx((0.15004, 0.84996), abs=1e-4)  # Wilson
    assert "psnr_db" not in rows["truth"]  # which would be 100
    for line in read_table(run / "scores_per_image.csv"):
        assert float(line["top1"]) == float(line["top5"]) == (line["stem"][0] == "a")  # its own class
        assert (line["psnr_db"] == "") == (line["name"] == "truth")
    assert read_json(run)["protocol"]["weights"] == {"classifier": weights.file_hash(classifier)}
    assert read_json(run)["best"]["top1"] == "epoch_0001"
    printed = capsys.readouterr().out
    assert "top1 unavailable" not in printed
    assert "psnr_db unavailable" not in printed


def test_a_classifier_of_other_classes_is_refused_before_any_work(fresh: Path, tmp_path: Path) -> None:
    save_classifier(tmp_path / "c", 1, build_classifier("squeezenet1_1", ["cat", "dog"], 32))
    with pytest.raises(ValueError, match=r"^no class . is known to the classifier; it knows cat dog$"):
        main(run=fresh, classifier=tmp_path / "c/checkpoints/epoch_0001.pt", device="cpu")
    assert not (fresh / "outputs").exists()


def test_one_epoch_keeps_the_rows_of_the_others(run: Path) -> None:
    before, stored = read_json(run)["rows"], (run / "scores_per_image.csv").read_text()
    for epoch in (1, 2):
        assert numbers(main(run=run, epoch=epoch, device="cpu")) == numbers(before)
        assert (run / "scores_per_image.csv").read_text() == stored


OTHER = (
    r"^epoch {} of .*run was scored on other data or has another checkpoint now: score all again with --all"
)
MIXED = r"^other epochs of .*run were scored with {}: score all again with --all-epochs$"


def snapshot(run: Path) -> dict[Path, tuple[bytes, int]]:
    """Return every file of a run with its content and when it was written."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}


def test_scores_of_other_data_are_refused_before_anything_is_rendered(run: Path, pictures: Path) -> None:
    before, data = snapshot(run), str(pictures / "train")
    with pytest.raises(ValueError, match=OTHER.format(2)):
        main(run=run, epoch=1, data=data, device="cpu")
    assert snapshot(run) == before
    rows = main(run=run, all_epochs=True, data=data, device="cpu")
    assert list(rows) == ALL
    assert rows["epoch_0002"]["images"] == read_json(run)["protocol"]["images"] == 1  # held out
    assert {line["name"] for line in read_table(run / "scores_per_image.csv")} == set(rows)


def test_scores_of_other_versions_are_refused(run: Path) -> None:
    stored = read_json(run)
    stored["protocol"]["versions"]["torch"] = "1.0"
    atomic.write_json(run / "scores.json", stored)
    before = snapshot(run)
    with pytest.raises(ValueError, match=MIXED.format(r"torch 1\.0 and [\w.+]+")):
        main(run=run, epoch=1, device="cpu")
    assert snapshot(run) == before
    assert list(main(run=run, all_epochs=True, device="cpu")) == ALL
    assert read_json(run)["protocol"]["versions"]["torch"] != "1.0"


def test_scores_by_other_metrics_are_refused(run: Path, classifier: Path) -> None:
    before = (run / "scores.json").read_bytes()
    with pytest.raises(ValueError, match=MIXED.format("(other networks; )?other metrics")):
        main(run=run, epoch=1, classifier=classifier, device="cpu")
    assert (run / "scores.json").read_bytes() == before
    rows = main(run=run, all_epochs=True, classifier=classifier, device="cpu")
    assert list(rows) == [*BASE, "truth", "epoch_0001", "epoch_0002"]
    before = (run / "scores.json").read_bytes()
    with pytest.raises(ValueError, match=MIXED.format("(other networks; )?other metrics")):
        main(run=run, epoch=2, device="cpu")
    assert (run / "scores.json").read_bytes() == before
    assert list(main(run=run, all_epochs=True, device="cpu")) == ALL


def test_a_checkpoint_written_again_is_rendered_again(run: Path) -> None:
    first = read_json(run)["rows"]
    shutil.copy(run_folder.epoch_path(run, 2), run_folder.epoch_path(run, 1))
    before = snapshot(run)
    with pytest.raises(ValueError, match=OTHER.format(1)):
        main(run=run, epoch=2, device="cpu")
    assert snapshot(run) == before
    again = main(run=run, all_epochs=True, device="cpu")
    assert again["epoch_0001"]["psnr_db"] == first["epoch_0002"]["psnr_db"] != first["epoch_0001"]["psnr_db"]


def test_an_epoch_whose_own_checkpoint_was_written_again_is_scored_alone(run: Path) -> None:
    first = read_json(run)["rows"]
    shutil.copy(run_folder.epoch_path(run, 2), run_folder.epoch_path(run, 1))
    rows = main(run=run, epoch=1, device="cpu")
    assert rows["epoch_0001"]["psnr_db"] == rows["epoch_0002"]["psnr_db"] == first["epoch_0002"]["psnr_db"]


def test_rows_of_epochs_that_are_gone_are_not_kept(run: Path) -> None:
    run_folder.epoch_path(run, 1).unlink()
    assert list(main(run=run, device="cpu")) == [*BASE, "epoch_0002"]


def test_what_was_rendered_of_other_data_is_not_scored_as_the_runs_own(run: Path, pictures: Path) -> None:
    own = main(run=run, epoch=1, device="cpu")
    render(run=run, epoch=1, data=str(pictures / "train"), device="cpu")
    assert numbers(main(run=run, epoch=1, device="cpu")) == numbers(own)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("stamp", OTHER.format(2)),
        ("ms_ssim", MIXED.format("other metrics")),
        ("ssim_low", MIXED.format("other metrics")),
    ],
)
def test_a_row_that_lacks_something_is_refused(run: Path, missing: str, sentence: str) -> None:
    stored = read_json(run)
    del stored["rows"]["epoch_0002"][missing]
    atomic.write_json(run / "scores.json", stored)
    before = (run / "scores.json").read_bytes()
    with pytest.raises(ValueError, match=sentence):
        main(run=run, epoch=1, device="cpu")
    assert (run / "scores.json").read_bytes() == before
    assert missing in main(run=run, epoch=2, device="cpu")["epoch_0002"]


@pytest.mark.parametrize("content", ["", "{", '{"best": {}}'])
def test_damaged_scores_say_so(run: Path, content: str) -> None:
    (run / "scores.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"scores\.json is damaged, or of another version; delete it and score"
    ):
        main(run=run, epoch=1, device="cpu")


DAMAGE = {
    "text": lambda _: "hello",
    "cut within a line": lambda text: text[: text.rindex(",") - 30],
    "cut between lines": lambda text: "".join(text.splitlines(keepends=True)[:-2]),
}


@pytest.mark.parametrize("damage", ["missing", *DAMAGE])
def test_damaged_per_image_scores_are_mended_by_scoring_all(run: Path, damage: str) -> None:
    path, before = run / "scores_per_image.csv", read_json(run)["rows"]
    whole = path.read_text()
    path.unlink()
    if damage in DAMAGE:
        path.write_text(DAMAGE[damage](whole))
    with pytest.raises(
        ValueError, match=r"scores_per_image\.csv is missing or damaged; score again with --all-ep"
    ):
        main(run=run, epoch=1, device="cpu")
    assert numbers(main(run=run, all_epochs=True, device="cpu")) == numbers(before)
    assert path.read_text() == whole


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("restore", ["generator=unet", "pretrained=false", "pretrain_epochs=0", "fading_p=1"]),
        ("manga", ["input=gray+line", "lambda_perceptual=0", "depth=3"]),
        ("nazerigan32", ["load_size=36", "metric=ssim"]),
    ],
)
def test_other_systems_are_scored_against_the_truth(recipe: str, settings: list[str], pictures: Path) -> None:
    options = {**TINY, "set_": [*TINY["set_"], *settings]}
    run = train.main(recipe=recipe, data=str(pictures), run=Path("other"), epochs=1, **options)
    rows = main(run=run, device="cpu")
    assert list(rows) == [*BASE, "epoch_0001"]
    assert rows["gray"]["images"] == 4
    assert read_json(run)["metric"] == ("ssim" if recipe == "nazerigan32" else "ciede2000")
    for path in (run / "targets").glob("*.png"):  # the baselines are of the truth, not of a damaged input
        truth, gray = (color.encode(load(p), "L") for p in (path, run / "outputs/gray" / path.name))
        assert (truth - gray).abs().max() < 0.02


def test_a_truth_rendered_as_output_scores_perfectly(run: Path) -> None:
    for path in (run / "targets").glob("*.png"):
        write_image(run / "outputs/epoch_0001" / path.name, read_image(path))
    row = main(run=run, epoch=1, device="cpu")["epoch_0001"]
    assert (row["psnr_db"], row["ssim"], row["ab_mse"], row["ciede2000"]) == (
        100.0,
        pytest.approx(1.0),
        0.0,
        0.0,
    )
    assert row["colorfulness"] == row["colorfulness_truth"]


@pytest.mark.parametrize("folder", [*BASE, "epoch_0001"])
def test_missing_output_is_rendered_again(run: Path, folder: str) -> None:
    before, path = read_json(run)["rows"], run / "outputs" / folder / "a__p13.png"
    content = path.read_bytes()
    path.unlink()
    assert numbers(main(run=run, epoch=1, device="cpu")) == numbers(before)
    assert path.read_bytes() == content


def test_output_of_another_size_is_named(run: Path) -> None:
    write_image(run / "outputs/epoch_0001/a__p13.png", np.zeros((16, 24, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"epoch_0001/a__p13\.png is 24 x 16 px, not 32 x 32; delete it, and it is rend"
    ):
        main(run=run, epoch=1, device="cpu")


@pytest.mark.parametrize("folder", [*BASE, "epoch_0001"])
def test_output_without_a_target_is_named(run: Path, folder: str) -> None:
    for name in ("y", "x"):
        write_image(run / f"outputs/{folder}/{name}.png", np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(
        ValueError, match=rf"outputs/{folder}/x\.png belongs to no target \(2 such\); delete it$"
    ):
        main(run=run, epoch=1, device="cpu")


@pytest.mark.parametrize("part", ["inputs", "targets"])
@pytest.mark.parametrize("deleted", ["all", "one"])
def test_deleted_inputs_and_targets_are_rendered_again(run: Path, part: str, deleted: str) -> None:
    rows = read_json(run)["rows"]
    folders = [run / "inputs", run / "targets", *(run / "outputs" / name for name in [*BASE, "epoch_0001"])]
    before = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    if deleted == "all":
        shutil.rmtree(run / part)
    else:
        (run / part / "a__p13.png").unlink()
    assert numbers(main(run=run, epoch=1, device="cpu")) == numbers(rows)
    assert {path: path.read_bytes() for folder in folders for path in folder.iterdir()} == before


@pytest.mark.parametrize("part", ["inputs", "targets"])
def test_an_incomplete_folder_costs_no_outputs(run: Path, part: str) -> None:
    before = snapshot(run / "outputs")
    (run / part / "b__p14.png").unlink()
    main(run=run, epoch=1, device="cpu")
    assert snapshot(run / "outputs") == before


def test_pictures_that_could_not_be_read_are_named(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    (data / "val/a/broken.png").write_bytes(b"hello")
    rows = main(run=run, all_epochs=True, data=str(data), device="cpu")
    assert rows["gray"]["images"] == 4
    (note,) = (note for note in read_json(run)["notes"] if note.startswith("skipped "))
    assert "val/a/broken.png" in note
    assert note in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("folder", ["gray", "epoch_0001"])
def test_output_that_is_cut_off_is_named(run: Path, folder: str) -> None:
    path = run / "outputs" / folder / "b__p14.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"outputs/{folder}/b__p14\.png: damaged image"):
        main(run=run, epoch=1, device="cpu")


@pytest.mark.parametrize(
    ("epoch", "sentence"),
    [
        (7, r"epoch 7 is not saved in .*; saved: 1 2$"),
        ("0", r"an epoch is a number from 1, or best; got 0$"),
        ("soon", r"an epoch is a number from 1, or best; got soon$"),
        ("best", r"no scores in .*, so no best epoch; score first: python eval\.py --all-epochs --run "),
    ],
)
def test_epochs_that_cannot_be_scored(fresh: Path, epoch: str | int, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        main(run=fresh, epoch=epoch, device="cpu")
    assert not (fresh / "outputs").exists()


def test_the_best_epoch_can_be_scored_alone(run: Path) -> None:
    before = read_json(run)
    number = int(before["best"]["ciede2000"].removeprefix("epoch_"))
    run_folder.epoch_path(run, 3 - number).unlink()
    assert list(main(run=run, epoch="best", device="cpu")) == [*BASE, before["best"]["ciede2000"]]


def break_generator(run: Path, epoch: int) -> None:
    """Make one weight of a checkpoint NaN."""
    payload = atomic.load(run_folder.epoch_path(run, epoch))
    name = next(key for key in payload["generator"] if key.endswith("weight"))
    payload["generator"][name][0] = float("nan")
    atomic.save(run_folder.epoch_path(run, epoch), payload)


def test_a_generator_that_gives_nan_is_named(run: Path) -> None:
    break_generator(run, 2)
    before = (run / "scores.json").read_bytes()
    with pytest.raises(ValueError, match=r"a__p13 are not finite") as refused:
        main(run=run, all_epochs=True, device="cpu")
    assert re.search(r"epoch[_ ]0*2\b", str(refused.value))
    assert (run / "scores.json").read_bytes() == before


def test_an_unknown_metric_is_refused_with_the_closest_name(fresh: Path) -> None:
    with pytest.raises(ValueError, match=r"^no metric lpips_alx; did you mean lpips_alex\?"):
        main(run=fresh, metric=["psnr_db", "lpips_alx"], device="cpu")
    assert not (fresh / "outputs").exists()


def test_a_metric_that_was_asked_for_and_is_missing_fails_before_any_work(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses: list[str] = []

    def refuse(url: str, *_: Any, **__: Any) -> None:
        addresses.append(url)
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(
        ValueError, match=r"^lpips_alex unavailable: alexnet.* could not be downloaded \(no route"
    ):
        main(run=fresh, all_epochs=True, metric=["psnr_db", "lpips_alex"], device="cpu")
    assert addresses == [weights.WEIGHTS["alexnet"]]  # and no other
    assert not (fresh / "scores.json").exists()
    assert not (fresh / "outputs").exists()


def test_from_the_command_line_a_missing_metric_is_exit_code_2(run: Path, tmp_path: Path) -> None:
    (run / "scores.json").unlink()
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), "--run", str(run), "--metric", "ms_ssim", "--device", "cpu"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "TORCH_HOME": "hub"},
    )  # fmt: skip
    sentence = "ms_ssim unavailable: pictures of 32 px, at least 176 are needed"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"eval.py: {sentence}\n")
    assert not (run / "scores.json").exists()


@pytest.mark.parametrize(("device", "scorer"), [("mps", "cpu"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_mps_renders_but_the_cpu_scores(
    fresh: Path, device: str, scorer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.device] = []

    def note_scorer(*given: Any) -> Judges:
        seen.append(given[-1])
        return Judges(given[-1])

    monkeypatch.setattr(evaluation, "pick_device", lambda _: torch.device(device))
    monkeypatch.setattr(evaluation, "open_judges", note_scorer)
    monkeypatch.setattr(scoring, "evaluate", lambda *given: seen.append(given[-1]) or {})
    assert main(run=fresh) == {}
    assert seen == [torch.device(scorer), torch.device(device)]


@pytest.mark.parametrize("epoch", ["1", "best"])
def test_all_epochs_and_one_are_not_asked_for_together(fresh: Path, epoch: str) -> None:
    with pytest.raises(ValueError, match=r"^--all-epochs and --epoch ask for different things; give one of"):
        main(run=fresh, epoch=epoch, all_epochs=True, device="cpu")
    assert not (fresh / "outputs").exists()


@pytest.fixture
def quick_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare networks the drawing of weights that are then read from a file."""
    for name in ("normal_", "kaiming_normal_", "kaiming_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


@pytest.mark.usefixtures("quick_networks")
def test_a_folder_of_weights_makes_lpips_available(
    run: Path, weights_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = main(run=run, all_epochs=True, weights=weights_folder, device="cpu")
    stored, lines = read_json(run), read_table(run / "scores_per_image.csv")
    for net, name in (("alex", "alexnet"), ("vgg", "vgg16")):
        metric = f"lpips_{net}"
        (path,) = weights_folder.glob(f"{name}-*.pth")
        assert stored["protocol"]["weights"][name] == weights.file_hash(path)
        assert metric in stored["best"]
        assert rows["gray"][f"{metric}_low"] <= rows["gray"][metric] <= rows["gray"][f"{metric}_high"]
        assert f"{metric} unavailable" not in capsys.readouterr().out
        lpips = LPIPS(net, weights_folder, CPU, download=False)
        for line in lines[:1] + lines[-1:]:
            pair = (run / folder / f"{line['stem']}.png" for folder in ("targets", f"outputs/{line['name']}"))
            expected = lpips(*(Pictures(load(path)) for path in pair)).item()
            assert float(line[metric]) == pytest.approx(expected, rel=1e-4)


class FolderJudge:
    """Takes Inception's place: a file's feature is its mean level."""

    def __init__(self) -> None:
        self.asked: list[list[Path]] = []

    def features(self, files: list[Path]) -> np.ndarray:
        self.asked.append(list(files))
        return np.array([[read_image(path).mean()] for path in files], np.float32)


@pytest.mark.parametrize("first", [False, True])
def test_epochs_with_and_without_fid_are_not_mixed(
    run: Path, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = evaluation.open_judges

    def with_fid(*given: Any) -> Judges:
        judges = plain(*given)
        judges.inception, judges.per_folder = FolderJudge(), {"fid": lambda *_: 3.0, "kid": lambda *_: 1.0}
        judges.missing = {name: why for name, why in judges.missing.items() if name not in ("fid", "kid")}
        judges.hashes["inception"] = "0" * 64
        return judges

    monkeypatch.setattr(evaluation, "open_judges", with_fid if first else plain)
    main(run=run, all_epochs=True, device="cpu")
    monkeypatch.setattr(evaluation, "open_judges", plain if first else with_fid)
    with pytest.raises(ValueError, match=r"^other epochs of .*run were scored with "):
        main(run=run, epoch=1, device="cpu")


def test_folders_are_compared_with_the_truths(run: Path) -> None:
    images = open_split(run_folder.read_run(run), None, "test", Path("cache"))
    judge = FolderJudge()
    judges = Judges(CPU, per_folder={"fid": lambda a, b: float(np.abs(a - b).max())}, inception=judge)
    judges.missing = {"kid": "unavailable: why"}
    rows: dict[str, dict[str, Any]] = {"gray": {}, "truth": {}, "epoch_0001": {}}
    score_folders(run, rows, images, judges)
    assert rows["truth"] == {"kid": "unavailable: why"}
    for name in ("gray", "epoch_0001"):
        pairs = [
            [read_image(run / folder / f"{stem}.png").mean() for folder in ("targets", f"outputs/{name}")]
            for stem in images.stems
        ]
        assert rows[name] == {"fid": pytest.approx(np.abs(np.diff(pairs)).max()), "kid": "unavailable: why"}
    assert len(judge.asked) == 3  # the truth once


def image_set(count: int, size: int, folder: Path) -> ImageSet:
    """Return a split of random pictures, and write as many outputs."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    index = np.array([[i * size * size * 3, size, size] for i in range(count)], np.int64)
    stems = [f"p{i:03d}" for i in range(count)]
    for stem in stems:
        write_image(folder / f"{stem}.png", rng.integers(0, 256, (size, size, 3), np.uint8))
    return ImageSet(stems, [""] * count, pixels.reshape(-1), index, 3, [], 0, "key")


SIMPLE = Judges(CPU, {name: PER_IMAGE[name] for name in COMPUTED})


@pytest.mark.parametrize("pixels", [1, 3 * 16**2, 10**6])
def test_chunks_and_threads_do_not_change_scores(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = image_set(11, 16, Path("o"))
    folders = {"one": Path("o"), "other": Path("o")}
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(scoring, "CHUNK_PIXELS", {"cpu": 16**2})
    expected, _ = score_pictures(folders, images, 16, SIMPLE)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(scoring, "CHUNK_PIXELS", {"cpu": pixels})
    found, others = score_pictures(folders, images, 16, SIMPLE)
    for name in folders:
        for metric in COMPUTED:
            assert found[name][metric].tolist() == pytest.approx(expected[name][metric].tolist(), rel=1e-9)
            assert found[name][metric].shape == (11,)
    assert len(others) == -(-11 // max(1, pixels // 16**2))
    order = np.random.default_rng(1).permutation(11)
    shuffled = dataclasses.replace(images, stems=[images.stems[i] for i in order], index=images.index[order])
    found, _ = score_pictures(folders, shuffled, 16, SIMPLE)
    for metric in COMPUTED:
        expected_values = expected["one"][metric][order].tolist()
        assert found["one"][metric].tolist() == pytest.approx(expected_values, rel=1e-9)


def test_the_digest_of_the_truth_does_not_depend_on_how_it_was_cut_into_chunks(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_json(run)["protocol"]
    monkeypatch.setattr(scoring, "CHUNK_PIXELS", {"cpu": 1})
    main(run=run, all_epochs=True, device="cpu")
    assert read_json(run)["protocol"] == before


def torch_threads() -> tuple[int, int]:
    """Return how many threads torch takes here, and in a thread that is started now."""
    with ThreadPoolExecutor(1) as pool:
        return torch.get_num_threads(), pool.submit(torch.get_num_threads).result()


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("damaged", [False, True])
def test_torch_gets_its_threads_back(damaged: bool) -> None:
    images = image_set(3, 16, Path("o"))
    assert torch_threads() == (2, 2)
    if damaged:
        Path("o/p001.png").write_bytes(b"hello")
        with pytest.raises(ValueError, match=r"^o/p001\.png: not an image"):
            score_pictures({"o": Path("o")}, images, 16, SIMPLE)
    else:
        score_pictures({"o": Path("o")}, images, 16, SIMPLE)
    assert torch_threads() == (2, 2)


@pytest.mark.parametrize(("device", "workers"), [("cpu", 7), ("cuda", 2)])
def test_a_gpu_is_shared_by_two_threads(device: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    with scoring.one_thread_each(torch.device(device)) as pool:
        assert pool._max_workers == workers


@pytest.mark.parametrize("count", [8, 64])
def test_what_is_in_memory_does_not_grow_with_the_number_of_images(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, alive, peak = threading.Lock(), [0], [0]

    class Counted(Pictures):
        """Counts the pictures that are held."""

        def __init__(self, rgb: Tensor, labels: Tensor | None = None) -> None:
            super().__init__(rgb, labels)
            self.change(len(rgb))
            weakref.finalize(self, self.change, -len(rgb))

        @staticmethod
        def change(by: int) -> None:
            with lock:
                alive[0] += by
                peak[0] = max(peak[0], alive[0])

    monkeypatch.setattr(evaluation, "Pictures", Counted)
    monkeypatch.setattr(scoring, "CHUNK_PIXELS", {"cpu": 2 * 16**2})
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    judges = Judges(CPU, {name: PER_IMAGE[name] for name in ("psnr_db", "ab_mse")})
    score_pictures({"a": Path("o"), "b": Path("o")}, image_set(count, 16, Path("o")), 16, judges)
    # two threads, each with two true pictures and two outputs, and the outputs before while new ones are made
    assert 4 <= peak[0] <= 2 * (2 + 2 + 2)
    assert alive[0] == 0


def test_comparing_from_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = main(run=run, epoch=1, against="2", device="cpu")
    stored = read_json(run)["rows"]
    for metric in COMPUTED:
        assert rows[metric]["ours"] == pytest.approx(stored["epoch_0001"][metric])
        assert rows[metric]["theirs"] == pytest.approx(stored["epoch_0002"][metric])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["A: run epoch_0001", "B: run epoch_0002"]
    assert lines[-1] == "4 pictures in common, compared one by one"
    other = Path(shutil.copytree(run, run.parent / "other"))
    again = main(run=run, epoch=1, against=f"{other}:2", device="cpu")
    assert again == rows
    with pytest.raises(ValueError, match="would be compared with itself"):
        main(run=run, epoch=1, against="1", device="cpu")
    stored, path = read_json(other), other / "scores_per_image.csv"
    before = identify(stored["protocol"])
    stored["protocol"]["versions"]["torch"] = "1.0"
    atomic.write_json(other / "scores.json", stored)
    path.write_text(path.read_text().replace(before, identify(stored["protocol"])))
    with pytest.raises(ValueError, match=r"were not scored alike: torch [\w.+]+ and 1\.0; .*--force$"):
        main(run=run, against=str(other), device="cpu")
    capsys.readouterr()
    assert main(run=run, epoch=1, against=f"{other}:2", force=True, device="cpu") == rows
    assert capsys.readouterr().out.endswith("compared one by one, equal names taken for equal pictures\n")


def test_recompressed_pictures_are_those_of_jpeg_files() -> None:
    ramp = np.arange(27, dtype=np.uint8).reshape(3, 3, 3) * np.uint8(9)
    pictures = [
        resize(ramp, 37, 22),
        np.repeat(np.arange(37 * 22, dtype=np.uint8).reshape(37, 22, 1), 3, 2),
    ]
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # (2, 3, 37, 22)
    before = batch.clone()
    errors = []
    for quality in (90, 20):
        found = recompress(batch, quality)
        assert (found.shape, found.dtype) == (batch.shape, torch.uint8)
        for picture, planes in zip(pictures, found, strict=True):
            Image.fromarray(picture).save("x.jpg", quality=quality)
            np.testing.assert_array_equal(planes.permute(1, 2, 0).numpy(), read_image(Path("x.jpg")))
        errors.append((found.int() - batch.int()).abs().float().mean().item())
    assert 0 < errors[0] < errors[1]
    assert torch.equal(batch, before)
