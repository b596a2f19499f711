"""Scoring: files that agree with the pictures, what is kept and removed, and what does not match."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import MeanLevel, make_run, run_stage
from PIL import Image
from scored_run import edit
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from config import METRICS
from eval import main, one_each
from evaluation import deep_metrics, scores, scoring
from evaluation.classifier import build_classifier, save_classifier
from evaluation.deep_metrics import LPIPS, MetricSet
from evaluation.metrics import PER_IMAGE, Pictures
from evaluation.scores import Score, ScoreFile, read_scores
from imaging import color
from imaging.files import read_image, write_image
from imaging.pixels import Array, colorfulness
from reporting import curves, page
from runtime import atomic, device, distributed, run_folder, weights
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
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare tests long intervals and the drawing of curves and the report, most of their time."""
    monkeypatch.setattr(scores, "RESAMPLES", 100)
    monkeypatch.setattr(curves, "plot_scores", lambda *_: None)
    monkeypatch.setattr(page, "write_report", lambda run: run / "report.html")


@pytest.fixture(scope="module")
def scored(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with both epochs scored and everything drawn; not to be changed."""
    folder = tmp_path_factory.mktemp("scored")
    run = Path(shutil.copytree(trained, folder / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torch.hub, "get_dir", lambda: "hub")
        patch.setattr(scores, "RESAMPLES", 100)
        main(run=run, all_epochs=True, device="cpu")
    return run


@pytest.fixture
def run(scored: Path, tmp_path: Path) -> Path:
    """Return a copy of the scored run that a test may change."""
    return Path(shutil.copytree(scored, tmp_path / "run"))


@pytest.fixture
def fresh(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained run, without scores, that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def load(path: Path) -> Tensor:
    """Return a picture as (1, 3, H, W) uint8."""
    return torch.from_numpy(read_image(path)).permute(2, 0, 1)[None]


def read_json(run: Path) -> dict[str, Any]:
    return json.loads((run / "scores.json").read_text())


def numbers(scores: ScoreFile) -> dict[str, Any]:
    """Return rows without the reasons why metrics are missing, which name folders."""
    return {name: (row.scores, row.images, row.stamp) for name, row in scores.rows.items()}


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
        "color_error": deltaE_ciede2000(*labs).mean() + abs(colours[1] - colours[0]) / 2,
        "s0_psnr_db": peak_signal_noise_ratio(*grays, **options),
        "s0_ssim": structural_similarity(*grays, **options),
    }


def test_scores_are_those_of_scikit_image_on_the_written_pictures(scored: Path) -> None:
    rows = read_scores(scored).rows
    assert list(rows) == ALL
    lines = read_table(scored / "scores_per_image.csv")
    assert sorted((line["name"], line["stem"]) for line in lines) == [(n, s) for n in sorted(ALL) for s in STEMS]
    for line in lines:
        name = f"{line['stem']}.png"
        paths = scored / "targets" / name, scored / "outputs" / line["name"] / name
        for metric, value in reference(*map(read_image, paths)).items():
            assert float(line[metric]) == pytest.approx(value, abs=1e-4, rel=1e-4), (metric, line)
    for name, row in rows.items():
        for metric in COMPUTED:
            values = [float(line[metric]) for line in lines if line["name"] == name]
            mean, se, low, high = row.scores[metric]
            assert (mean, se) == pytest.approx((np.mean(values), np.std(values, ddof=1) / 2))
            assert low <= mean <= high
        assert row.images == 4


def test_files_agree_with_what_is_returned_and_the_report_can_be_written_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, scores = read_json(run), read_scores(run)
    assert set(stored["best"]) == set(COMPUTED)
    assert (stored["metric"], stored["directions"]) == ("color_error", METRICS)
    for name, row in stored["rows"].items():
        for metric in set(METRICS) - set(COMPUTED):  # unavailable is never a number
            assert row[metric].startswith("unavailable: ")
            assert f"{metric}_se" not in row
        assert ("stamp" in row) == (name not in BASE)
    assert read_table(run / "scores_per_image.csv")[0].keys() == {
        "name", "stem", "protocol", "colorfulness_truth", *COMPUTED
    }  # fmt: skip
    for name in ("curves.png", "report.html"):
        assert (run / name).stat().st_size > 1000
        (run / name).unlink()
    before = snapshot(run)
    assert main(run=run, report_only=True) == scores
    assert snapshot(run) == before
    assert "report.html" in capsys.readouterr().out


def test_protocol_and_stamps_say_what_was_scored(scored: Path) -> None:
    scores, recipe = read_scores(scored), run_folder.read_run(scored).recipe
    protocol = scores.protocol
    assert (protocol["images"], protocol["size"], protocol["weights"]) == (4, recipe.size, {})
    assert protocol["resize"] == "crop 32:32 px, bicubic, antialiased"
    key = (scored / "targets" / run_folder.STAMP).read_text()
    stamps = [run_folder.stamp(scored, epoch, key) for epoch in (1, 2)]
    assert [row.stamp for row in scores.rows.values()] == ["", "", "", *stamps]
    assert stamps[0] != stamps[1]


def test_what_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = main(run=run, all_epochs=True, device="cpu")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"scoring {run}: recipe coco, epochs 1 2, trained on ")
    assert [line.split()[0] for line in lines[2:7]] == ALL
    (absent,) = (line for line in lines if line.startswith("not computed: "))
    assert {"fid", "lpips_alex"} < set(absent.split())
    best = scores.rows[scores.best["color_error"]].epoch
    assert any(f": color_error of epoch {best} is " in line and "chosen on the images that" in line for line in lines)
    assert str(run / "scores.csv") in lines[-1]
    assert str(run / "report.html") in lines[-1]


def test_baselines_and_the_upper_bound_are_of_the_ground_truth(scored: Path) -> None:
    mean = run_folder.read_run(scored).mean_ab
    for stem in STEMS:
        name = f"{stem}.png"
        truth = color.rgb_to_lab(color.rgb01(load(scored / "targets" / name)))
        for baseline, ab in (("gray", (0.0, 0.0)), ("mean_ab", mean)):
            lab = color.rgb_to_lab(color.rgb01(load(scored / "outputs" / baseline / name)))
            assert (truth[:, 0] - lab[:, 0]).abs().mean() < 1.0
            assert lab[:, 1:].mean((0, 2, 3)).tolist() == pytest.approx(ab, abs=1.5)
        Image.open(scored / "targets" / name).save("truth.jpg", quality=90)
        jpeg = read_image(scored / "outputs/jpeg90" / name)
        np.testing.assert_array_equal(jpeg, read_image(Path("truth.jpg")))
    rows = read_scores(scored).rows
    colourful = [rows[name].scores["colorfulness"].mean for name in ("gray", "mean_ab", "jpeg90")]
    assert colourful == sorted(colourful)
    assert colourful[0] < 1
    for metric in ("psnr_db", "ssim", "ab_mse", "ciede2000", "colorfulness_error"):
        sign = -1 if METRICS[metric] == "higher" else 1
        assert min(rows, key=lambda name: sign * rows[name].scores[metric].mean) == "jpeg90"


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


def test_with_a_classifier_the_ground_truth_is_scored_too(run: Path, classifier: Path) -> None:
    scores = main(run=run, all_epochs=True, classifier=str(classifier), device="cpu")
    assert list(scores.rows) == [*BASE, "truth", "epoch_0001", "epoch_0002"]
    for row in scores.rows.values():
        assert (row.scores["top1"].mean, row.scores["top5"].mean) == (0.5, 0.5)
        assert row.scores["top1"][2:] == pytest.approx((0.15004, 0.84996), abs=1e-4)  # Wilson
    assert "psnr_db" not in scores.rows["truth"].scores  # which would be 100
    for line in read_table(run / "scores_per_image.csv"):
        assert float(line["top1"]) == float(line["top5"]) == (line["stem"][0] == "a")  # its own class
        assert (line["psnr_db"] == "") == (line["name"] == "truth")
    assert scores.protocol["weights"] == {"classifier": weights.file_hash(classifier)}
    assert scores.best["top1"] == "epoch_0001"


def test_one_epoch_keeps_the_rows_of_the_others(run: Path) -> None:
    before, stored = numbers(read_scores(run)), (run / "scores_per_image.csv").read_text()
    for epoch in (1, 2):
        assert numbers(main(run=run, epoch=epoch, device="cpu")) == before
        assert (run / "scores_per_image.csv").read_text() == stored


OTHER = r"epoch {} of .*run was scored on other data or has another checkpoint now: .*--all-epochs"
MIXED = "other epochs of .*run were scored with {}: score all again with --all-epochs"


def snapshot(run: Path) -> dict[Path, tuple[bytes, int]]:
    """Return every file of a run with its content and when it was written."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}


def test_scores_of_other_data_are_refused_before_anything_is_rendered(run: Path, pictures: Path) -> None:
    before, data = snapshot(run), str(pictures / "train")
    with pytest.raises(ValueError, match=OTHER.format(2)):
        main(run=run, epoch=1, data=data, device="cpu")
    assert snapshot(run) == before
    scores = main(run=run, all_epochs=True, data=data, device="cpu")
    assert list(scores.rows) == ALL
    assert scores.rows["epoch_0002"].images == scores.protocol["images"] == 1  # held out
    assert {line["name"] for line in read_table(run / "scores_per_image.csv")} == set(ALL)


def test_scores_of_other_versions_are_refused(run: Path) -> None:
    stored = read_json(run)
    stored["protocol"]["versions"]["torch"] = "1.0"
    atomic.write_json(run / "scores.json", stored)
    before = snapshot(run)
    with pytest.raises(ValueError, match=MIXED.format(r"torch 1\.0 and [\w.+]+")):
        main(run=run, epoch=1, device="cpu")
    assert snapshot(run) == before
    scores = main(run=run, all_epochs=True, device="cpu")
    assert scores.protocol["versions"]["torch"] != "1.0"


def test_a_checkpoint_written_again_is_rendered_again(run: Path) -> None:
    first = read_scores(run).rows["epoch_0002"].scores
    assert read_scores(run).rows["epoch_0001"].scores != first
    shutil.copy(run_folder.epoch_path(run, 2), run_folder.epoch_path(run, 1))
    before = snapshot(run)
    with pytest.raises(ValueError, match=OTHER.format(1)):
        main(run=run, epoch=2, device="cpu")
    assert snapshot(run) == before
    # the one whose row it is can be scored alone
    assert main(run=run, epoch=1, device="cpu").rows["epoch_0001"].scores == first


def test_what_was_rendered_of_other_data_is_not_scored_as_the_runs_own(run: Path, pictures: Path) -> None:
    own = numbers(read_scores(run))
    render(run=run, epoch=1, data=str(pictures / "train"), device="cpu")
    assert numbers(main(run=run, epoch=1, device="cpu")) == own


@pytest.mark.parametrize(
    ("missing", "sentence"), [("stamp", OTHER.format(2)), ("ssim_low", MIXED.format("other metrics"))]
)
def test_a_row_that_lacks_something_is_refused(run: Path, missing: str, sentence: str) -> None:
    stored = read_json(run)
    del stored["rows"]["epoch_0002"][missing]
    atomic.write_json(run / "scores.json", stored)
    before = (run / "scores.json").read_bytes()
    with pytest.raises(ValueError, match=sentence):
        main(run=run, epoch=1, device="cpu")
    assert (run / "scores.json").read_bytes() == before
    main(run=run, epoch=2, device="cpu")
    assert missing in read_json(run)["rows"]["epoch_0002"]


def test_damaged_scores_say_so_and_damaged_tables_are_mended_by_scoring_all(run: Path) -> None:
    path, before = run / "scores_per_image.csv", numbers(read_scores(run))
    whole = path.read_text()
    path.write_text(whole[: whole.rindex(",") - 30])
    with pytest.raises(ValueError, match=r"scores_per_image\.csv is missing or damaged.*--all-epochs"):
        main(run=run, epoch=1, device="cpu")
    assert numbers(main(run=run, all_epochs=True, device="cpu")) == before
    assert path.read_text() == whole
    (run / "scores.json").write_text("{")
    with pytest.raises(ValueError, match=r"scores\.json is damaged.*delete it"):
        main(run=run, epoch=1, device="cpu")


def test_other_systems_are_scored_against_the_truth(pictures: Path) -> None:
    degraded = {"generator": "unet", "pretrained": False, "fading_p": 1.0, "metric": "ssim"}
    run = make_run(Path("other"), "restore", **degraded, size=32, load_size=32, depth=4)
    scores = main(run=run, data=str(pictures), device="cpu")
    assert list(scores.rows) == [*BASE, "epoch_0001"]
    assert scores.rows["gray"].images == 4
    assert scores.metric == "ssim"
    for path in (run / "targets").glob("*.png"):  # the baselines are of the truth, not of a damaged input
        truth, gray = (color.encode(load(p), "L") for p in (path, run / "outputs/gray" / path.name))
        assert (truth - gray).abs().max() < 0.02


def test_a_truth_rendered_as_output_scores_perfectly(run: Path) -> None:
    for path in (run / "targets").glob("*.png"):
        write_image(run / "outputs/epoch_0001" / path.name, read_image(path))
    found = main(run=run, epoch=1, device="cpu").rows["epoch_0001"].scores
    assert (found["psnr_db"].mean, found["ab_mse"].mean, found["ciede2000"].mean) == (100.0, 0.0, 0.0)
    assert found["ssim"].mean == pytest.approx(1.0)
    assert found["colorfulness"].mean == found["colorfulness_truth"].mean


def test_what_is_lost_is_rendered_again(run: Path) -> None:
    before = numbers(read_scores(run))
    files = {path: path.read_bytes() for path in run.rglob("outputs/*/*.png")}
    for lost in ("outputs/jpeg90", "outputs/epoch_0001", "targets"):
        (run / lost / "a__p13.png").unlink()
    assert numbers(main(run=run, epoch=1, device="cpu")) == before
    assert {path: path.read_bytes() for path in run.rglob("outputs/*/*.png")} == files
    assert (run / "targets/a__p13.png").exists()


def test_output_without_a_target_is_named(run: Path) -> None:
    for name in ("y", "x"):
        write_image(run / f"outputs/mean_ab/{name}.png", np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"outputs/mean_ab/x\.png belongs to no target \(2 such\)"):
        main(run=run, epoch=1, device="cpu")


def test_pictures_that_could_not_be_read_are_named(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    (data / "val/a/broken.png").write_bytes(b"hello")
    scores = main(run=run, all_epochs=True, data=str(data), device="cpu")
    assert scores.rows["gray"].images == 4
    (note,) = (note for note in scores.notes if note.startswith("skipped "))
    assert "val/a/broken.png" in note
    assert note in capsys.readouterr().out.splitlines()


def test_the_best_epoch_can_be_scored_alone_and_rows_of_epochs_that_are_gone_are_not_kept(run: Path) -> None:
    best = read_scores(run).best["color_error"]
    run_folder.epoch_path(run, 3 - int(best[6:])).unlink()
    assert list(main(run=run, epoch="best", device="cpu").rows) == [*BASE, best]


def test_a_metric_that_was_asked_for_and_is_missing_fails_before_any_work(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses: list[str] = []

    def refuse(url: str, *_: Any, **__: Any) -> None:
        addresses.append(url)
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(ValueError, match=r"lpips_alex unavailable: .* could not be downloaded"):
        main(run=fresh, all_epochs=True, metric=["psnr_db", "lpips_alex"], device="cpu")
    assert addresses == [url.partition("#")[0] for url in weights.WEIGHTS["alexnet"]]  # and no other
    assert not (fresh / "scores.json").exists()
    assert not (fresh / "outputs").exists()


@pytest.mark.parametrize(("name", "scorer"), [("mps", "cpu"), ("cuda", "cuda")])
def test_mps_renders_but_the_cpu_scores(fresh: Path, name: str, scorer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def note(run: Path, epochs: list[int], images: object, metrics: MetricSet, on: torch.device) -> None:
        raise RuntimeError(f"{metrics.device.type} scores, {on.type} renders")

    monkeypatch.setattr(device, "pick_device", torch.device)
    monkeypatch.setattr(deep_metrics, "load_metrics", lambda images, size, on, *_: MetricSet(on))
    monkeypatch.setattr(scoring, "evaluate", note)
    with pytest.raises(RuntimeError, match=f"{scorer} scores, {name} renders"):
        main(run=fresh, device=name)


def test_a_folder_of_weights_makes_lpips_available(
    fresh: Path, weights_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda tensor, *_, **__: tensor)  # what takes time
    run, scores = fresh, main(run=str(fresh), epoch=1, weights=str(weights_folder), device="cpu")
    lines = read_table(run / "scores_per_image.csv")
    for net, name in (("alex", "alexnet"), ("vgg", "vgg16")):
        metric = f"lpips_{net}"
        (path,) = weights_folder.glob(f"{name}-*.pth")
        assert scores.protocol["weights"][name] == weights.file_hash(path)
        assert scores.metric == "lpips_alex"  # of auto, where it is there
        assert metric in scores.best
        lpips = LPIPS(net, weights_folder, CPU, download=False)
        for line in lines[:1] + lines[-1:]:
            pair = (run / folder / f"{line['stem']}.png" for folder in ("targets", f"outputs/{line['name']}"))
            expected = lpips(*(Pictures(load(path)) for path in pair)).item()
            assert float(line[metric]) == pytest.approx(expected, rel=1e-4)


def test_epochs_with_and_without_fid_are_not_mixed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = deep_metrics.load_metrics

    def with_fid(*given: Any) -> MetricSet:
        metrics = plain(*given)
        metrics.extractors["inception"] = MeanLevel()
        metrics.per_folder |= {"fid": lambda *_: Score(3.0), "kid": lambda *_: Score(1.0)}
        metrics.missing = {name: why for name, why in metrics.missing.items() if name not in ("fid", "kid")}
        metrics.weights["inception"] = "0" * 64
        return metrics

    monkeypatch.setattr(deep_metrics, "load_metrics", with_fid)
    main(run=run, all_epochs=True, device="cpu")
    assert read_json(run)["rows"]["gray"]["fid"] == 3.0
    monkeypatch.setattr(deep_metrics, "load_metrics", plain)
    with pytest.raises(ValueError, match=MIXED.format("other networks")):
        main(run=run, epoch=1, device="cpu")


def test_comparing_from_the_command(run: Path) -> None:
    found = main(run=run, epoch=1, against="2", device="cpu")
    rows = read_scores(run).rows
    for metric in COMPUTED:
        assert found.metrics[metric].ours == pytest.approx(rows["epoch_0001"].scores[metric].mean)
        assert found.metrics[metric].theirs == pytest.approx(rows["epoch_0002"].scores[metric].mean)
    other = Path(shutil.copytree(run, run.parent / "other"))
    assert main(run=run, epoch=1, against=f"{other}:2", device="cpu").metrics == found.metrics


def test_of_several_processes_one_compares_and_writes_the_report(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(run)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert main(run=run, report_only=True) is None
    assert main(run=run, epoch=1, against="2") is None
    assert snapshot(run) == before


def test_several_runs_are_compared_from_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run, *(Path(shutil.copytree(run, run.parent / name)) for name in ("a2", "b1", "b2"))]
    for seed, folder in enumerate(runs):
        edit(folder / "recipe.json", lambda record, seed=seed: record["recipe"].update(seed=seed))
    assert (
        run_stage("eval", "--run", *runs[:2], "--epoch", 1, "--against", *(f"{folder}:2" for folder in runs[2:])) == 0
    )
    said = capsys.readouterr().out
    assert f"A: {run.name} epoch 1, a2 epoch 1" in said
    assert "B: b1 epoch 2, b2 epoch 2" in said
    assert "2 runs against 2: the intervals are over runs" in said
    assert str(run / "report.html") in said
    assert (run / "comparison.json").exists()
    assert run_stage("eval", "--run", *runs[:2], "--all-epochs") == 2
    assert "several runs are for comparing with --against" in capsys.readouterr().err


def test_values_that_follow_an_option_are_its_own() -> None:
    words = "--epoch 5 --run a b --force --against c:1 d --device cpu".split()
    assert one_each(words) == "--epoch 5 --run a --run b --force --against c:1 --against d --device cpu".split()
    assert one_each(["--run=a", "b", "-x", "y"]) == ["--run=a", "--run", "b", "-x", "y"]
    assert one_each(["stray", "--all-epochs", "too"]) == ["stray", "--all-epochs", "too"]  # typer refuses these


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"report_only": True, "all_epochs": True}, "--report-only writes a report of what is scored"),
        ({"report_only": True, "epoch": 1}, "--report-only"),
        ({"report_only": True, "against": "2"}, "--report-only"),
        ({"against": "2", "data": "x"}, "--against compares what is scored already"),
        ({"against": "2", "metric": ["ssim"]}, "--against"),
        ({"force": True}, "--force is for comparing"),
        ({"metric": ["psnr_db", "lpips_alx"]}, r"no metric lpips_alx; did you mean lpips_alex\?"),
        ({"weights": Path("gone")}, "no folder gone: --weights takes the folder that holds"),
    ],
)
def test_options_that_make_no_sense_together_or_alone(scored: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        main(run=scored, **options)
