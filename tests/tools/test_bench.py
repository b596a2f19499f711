"""Both sides of a benchmark on the same files, with equal scores, and one JSON object at the end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU, write_model
from scored_run import make_scores

from config import DEMO
from evaluation import metrics
from evaluation.metrics import PER_IMAGE, Pictures
from imaging.files import read_image
from runtime.device import device_name
from tools import bench
from tools.bench import COMPARED, Mode, plain_scores, write_pairs

CONDITIONS = {"machine", "device", "instructions", "tinct", "python", "torch", "numpy", "scikit-image", "pillow"}


def test_the_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    result = bench.main(Mode.eval, images=4, size=32, repeats=2)
    *_, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == result
    assert (result["bench"], result["images"], result["size"]) == ("eval", 4, 32)
    assert len(result["ours"]) == len(result["plain"]) == 2
    ratios = [plain / ours for ours, plain in zip(result["ours"], result["plain"], strict=True)]
    assert result["ratio"] == pytest.approx(np.median(ratios))
    assert 0 <= result["largest_difference"] < 1e-4
    assert set(result) >= CONDITIONS
    assert not list(Path().glob("*.png"))


@pytest.mark.parametrize(("name", "factor"), [("ab_mse", 1.001), ("ssim", float("nan"))])
def test_scores_that_differ_are_refused(name: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real = PER_IMAGE[name]

    def off(target: Pictures, output: Pictures) -> torch.Tensor:
        found = real(target, output)
        found[0] *= factor  # of one image alone
        return found

    monkeypatch.setitem(metrics.PER_IMAGE, name, off)
    with pytest.raises(ValueError, match=r"scores differ by .*times do not compare"):
        bench.main(Mode.eval, images=3, size=32, repeats=1)


def test_pairs_are_as_many_as_asked_for_and_different(pictures: Path) -> None:
    images = write_pairs(Path("bench"), DEMO, 3, 32)
    assert images.stems == [f"0000{i}" for i in range(3)]
    for i, stem in enumerate(images.stems):
        paths = [Path("bench", side, f"{stem}.png") for side in ("targets", "outputs")]
        truth, output = map(read_image, paths)
        assert truth.shape == output.shape == (32, 32, 3)
        np.testing.assert_array_equal(truth, images.gather([i], 32)[1][0].permute(1, 2, 0).numpy())
        assert np.abs(truth.astype(int) - output).mean() > 1
        pair = [Pictures(torch.from_numpy(image).permute(2, 0, 1)[None]) for image in (truth, output)]
        expected = [PER_IMAGE[name](*pair).item() for name in COMPARED]
        assert plain_scores(*paths) == pytest.approx(expected, rel=1e-4)
    assert len(write_pairs(Path("more"), str(pictures), 20, 32)) == 20  # of 16: some come again


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a small generator.ts, to be timed on small images."""
    monkeypatch.setattr(bench, "SIDES", (20, 33))
    return write_model(Path("generator.ts"))


def test_a_generators_last_line_is_one_json_object(generator: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench.main(Mode.infer, model=generator, device="cpu", repeats=3)
    *said, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == result
    assert (result["bench"], result["device"]) == ("infer", device_name(CPU))
    assert set(result) == {"bench", *CONDITIONS, "20_px_ms", "33_px_ms"}
    for side, line in zip((20, 33), said, strict=True):
        ms = result[f"{side}_px_ms"]
        assert set(ms) == {"exported", "half"}
        assert all(len(times) == 3 and min(times) > 0 for times in ms.values())
        assert f"exported {sorted(ms['exported'])[1]:.1f} ms, half {sorted(ms['half'])[1]:.1f} ms" in line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_generator_is_timed_on_a_gpu(generator: Path) -> None:
    result = bench.main(Mode.infer, model=generator, device="cuda", repeats=2)
    assert result["device"] == torch.cuda.get_device_name()
    assert len(result["33_px_ms"]["half"]) == 2


@pytest.mark.slow
def test_both_sides_of_a_step_take_turns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MATRIX", 256)
    result = bench.main(Mode.step, recipe="demo", size=32, batch=2, device="cpu", repeats=2)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    sides = result["sides"]
    assert set(sides) == {"plain", "ours fp32", "ours"}
    assert all(len(side["seconds"]) == len(side["page_faults"]) == 2 for side in sides.values())
    assert sides["ours fp32"]["precision"] == sides["plain"]["precision"] == "fp32"
    # the same networks: D forward 3 times and backward, G forward and backward, on 2 pictures
    assert sides["plain"]["flop"] == pytest.approx(5561647104 / 64, rel=0.1)  # of 8 pictures of 128 px
    assert 0 < sides["ours"]["share_of_ceiling"]


@pytest.mark.soak
def test_both_sides_load_and_colour_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "write_untrained", write_model)  # a small one
    loaded = bench.main(Mode.data, recipe="demo", size=32, batch=2, device="cpu", repeats=1, images=8)
    assert {side["images"] for side in loaded["sides"].values()} == {loaded["sides"]["plain"]["images"]}
    assert loaded["later ratio"] > 1
    coloured = bench.main(Mode.infer, device="cpu", repeats=1, images=2)
    assert coloured["sides"]["ours"]["images"] == 2
    assert coloured["ours ratio"] > 0


def test_the_demo_is_judged_by_its_best_epoch() -> None:
    scores = make_scores()
    found = bench.quality(scores)
    best, gray = scores.rows["epoch_0010"].scores, scores.rows["gray"].scores
    assert found["psnr_db_above_gray"] == best["psnr_db"].mean - gray["psnr_db"].mean > 0
    assert found["share_of_colorfulness"] == pytest.approx(20 / 30)


def test_a_side_that_ends_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"a side of the benchmark ended: .*step ours"):
        bench.Worker("step", "ours", {"recipe": "no such"})
