"""bench.py: both sides on the same files, with equal scores, and one JSON object at the end."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export import make_run

import export
from config import DEMO
from evaluation import metrics
from evaluation.metrics import PER_IMAGE, Pictures
from imaging.files import read_image
from inference import exporters
from tools import bench
from tools.bench import METRICS, bench_generator, bench_scoring, plain_scores, write_pairs


@pytest.mark.parametrize("images", [1, 8])
def test_the_last_line_is_one_json_object(images: int, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench.main(images=images, size=32, repeats=2)
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == result
    assert (result["bench"], result["images"], result["size"]) == ("scoring", images, 32)
    assert len(result["ours"]) == len(result["plain"]) == 2
    ratios = [plain / ours for ours, plain in zip(result["ours"], result["plain"], strict=True)]
    assert result["ratio"] == pytest.approx(np.median(ratios))
    assert 0 <= result["largest_difference"] < 1e-4
    assert set(result) >= {"cores", "machine", "python", "torch", "numpy", "scikit-image", "pillow"}
    assert lines[-3].startswith(f"{images} pairs of 32 px: ours ")
    assert lines[-2].startswith(f"{result['ratio']:.1f} times faster; scores differ by ")
    assert not list(Path().glob("*.png"))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("factor", [1.001, 0.999])
def test_scores_that_differ_are_refused(name: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real = PER_IMAGE[name]

    def off(target: Pictures, output: Pictures) -> torch.Tensor:
        found = real(target, output)
        found[0] *= factor  # of one picture alone
        return found

    monkeypatch.setitem(metrics.PER_IMAGE, name, off)
    with pytest.raises(
        ValueError, match=r"^the two sides' scores differ by \S+, so their times do not compare$"
    ):
        bench.main(images=3, size=32, repeats=1)


def test_a_score_that_is_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        metrics.PER_IMAGE, "ssim", lambda target, _: torch.full((len(target.rgb),), torch.nan)
    )
    with pytest.raises(ValueError, match="so their times do not compare"):
        bench.main(images=2, size=32, repeats=1)


def test_pairs_are_as_many_as_asked_for_and_different() -> None:
    images = write_pairs(Path("bench"), DEMO, 5, 32)
    assert images.stems == [f"0000{i}" for i in range(5)]
    for i, stem in enumerate(images.stems):
        truth, output = (read_image(Path("bench", side, f"{stem}.png")) for side in ("targets", "outputs"))
        assert truth.shape == output.shape == (32, 32, 3)
        np.testing.assert_array_equal(truth, images.gather([i], 32)[1][0].permute(1, 2, 0).numpy())
        assert np.abs(truth.astype(int) - output).mean() > 1
        expected = [PER_IMAGE[name](*pair).item() for pair in [sides(truth, output)] for name in METRICS]
        found = plain_scores(Path(f"bench/targets/{stem}.png"), Path(f"bench/outputs/{stem}.png"))
        assert found == pytest.approx(expected, rel=1e-4)


def sides(*arrays: np.ndarray) -> list[Pictures]:
    return [Pictures(torch.from_numpy(array).permute(2, 0, 1)[None]) for array in arrays]


def test_more_pictures_than_there_are_come_again(pictures: Path) -> None:
    images = write_pairs(Path("bench"), str(pictures), 20, 32)  # of 16
    assert len(images) == len(list(Path("bench/outputs").glob("*.png"))) == 20


def test_both_sides_are_timed_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_pairs(Path("bench"), DEMO, 18, 32)
    calls: list[Path] = []
    real = plain_scores
    monkeypatch.setattr(bench, "plain_scores", lambda *pair: calls.append(pair[0]) or real(*pair))
    result = bench_scoring(Path("bench"), images, 32, 3)
    assert len(calls) == 16 + 18 * 3  # the warm-up of a loop in Python may be short
    assert len(result["ours"]) == len(result["plain"]) == 3


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small generator.ts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporters, "SIZES", ((19, 34),))
        patch.setattr(exporters, "BATCHES", (1,))
        return export.main(run=make_run(tmp_path_factory.mktemp("bench") / "run", "demo"), device="cpu")


def test_a_generators_last_line_is_one_json_object(
    generator: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.SIDES == (256, 1024, 2048)
    monkeypatch.setattr(bench, "SIDES", (20, 33))
    result = bench.main(model=generator, device="cpu", repeats=3)
    *said, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == result
    assert (result["bench"], result["device"]) == ("generator", "cpu")
    conditions = {"cores", "machine", "python", "torch", "numpy", "scikit-image", "pillow"}
    assert set(result) == {"bench", "device", *conditions, "20_px_ms", "33_px_ms"}
    for side, line in zip((20, 33), said, strict=True):
        ms = result[f"{side}_px_ms"]
        assert set(ms) == {"exported", "half"}
        assert all(len(times) == 3 and 0 < min(times) < max(times) < 60_000 for times in ms.values())
        middle = {name: f"{sorted(times)[1]:.1f}" for name, times in ms.items()}
        assert line == f"{side} x {side} px: exported {middle['exported']} ms, half {middle['half']} ms"


def test_each_precision_is_timed_as_often_on_pictures_of_each_side(
    generator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def infer(model: torch.jit.ScriptModule, image: torch.Tensor) -> torch.Tensor:
        calls.append((model.precision.dtype, image.dtype, tuple(image.shape)))
        time.sleep(0.002)
        return image

    monkeypatch.setattr(bench, "infer", infer)
    monkeypatch.setattr(bench, "SIDES", (20, 33))
    found = bench_generator(generator, torch.device("cpu"), 2)
    once = [
        [(precision, torch.uint8, (1, 3, side, side)) for precision in (torch.float32, torch.bfloat16)]
        for side in (20, 33)
    ]
    assert calls == once[0] * 4 + once[1] * 4  # in turn, twice to warm up
    assert all(2 <= ms < 1000 for times in found.values() for ms in [*times["exported"], *times["half"]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_generator_is_timed_on_a_gpu(generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SIDES", (64,))
    result = bench.main(model=generator, device="cuda", repeats=2)
    assert result["device"] == torch.cuda.get_device_name()
    assert len(result["64_px_ms"]["half"]) == 2


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"^no model no\.ts; write one with: python export\.py$"):
        bench.main(model=Path("no.ts"), device="cpu")
