"""generator.ts: equal to eager, alone with torch, never half written."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import checkpoint
import export
import scores

CPU = torch.device("cpu")
BARE = """
import json, sys, torch
files = {"tinct.json": ""}
model = torch.jit.load(sys.argv[1], _extra_files=files)
for shape in ((1, 3, 1, 1), (1, 1, 37, 501), (2, 3, 300, 200)):
    image = (torch.rand(shape) * 255).to(torch.uint8)
    colour = model(image)
    assert colour.dtype == torch.uint8 and colour.shape == (shape[0], 3, *shape[2:]), colour.shape
    colour = model(image.double() / 255)
    assert colour.dtype == torch.float64 and 0 <= colour.min() and colour.max() <= 1
assert not {"color", "colorizer", "models"} & set(sys.modules)
print(json.loads(files["tinct.json"])["recipe"]["name"])
"""


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_exported_file_equals_eager_and_says_what_it_is(run: Path) -> None:
    path = export.main(run=run, epoch=1, device="cpu")
    model, metadata = checkpoint.load_exported(path, CPU)
    assert path == run / "generator.ts"
    assert (metadata["epoch"], metadata["recipe"]["size"]) == (1, 32)
    image = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    eager = checkpoint.load_colorizer(run, 1, CPU)
    assert torch.equal(model(image), eager(image))


def score(run: Path, best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write scores by which an epoch is the best, and no curves."""
    monkeypatch.setattr(scores, "plot_scores", lambda *_: None)
    rows = {
        f"epoch_{n:04d}": {"ssim": 0.5 + (n == best), "stamp": checkpoint.stamp(run, n, "key")}
        for n in (1, 2)
    }
    scores.write_scores(run, {"gray": {"ssim": 0.25}, **rows}, {}, [], {}, "ssim", [])


@pytest.mark.parametrize("best", [1, 2])
def test_the_best_epoch_is_exported_and_named(
    run: Path, best: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    score(run, best, monkeypatch)
    _, metadata = checkpoint.load_exported(export.main(run=run, epoch="best", device="cpu"), CPU)
    assert metadata["epoch"] == best
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"best of 2 scored epochs by ssim (higher): {best} with 1.5; gray 0.25"


def test_no_best_epoch_writes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"^no scores in .*, so no best epoch; score first: python eval"):
        export.main(run=run, epoch="best", device="cpu")
    score(run, 1, monkeypatch)
    checkpoint.epoch_path(run, 1).write_bytes(checkpoint.epoch_path(run, 2).read_bytes())
    with pytest.raises(ValueError, match="are older than its checkpoints"):
        export.main(run=run, epoch="best", device="cpu")
    assert capsys.readouterr().out == ""
    assert not (run / "generator.ts").exists()


def test_another_epoch_is_not_called_the_best(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    score(run, 1, monkeypatch)
    _, metadata = checkpoint.load_exported(export.main(run=run, epoch="2", device="cpu"), CPU)
    assert metadata["epoch"] == 2
    assert "best" not in capsys.readouterr().out


def test_a_bare_process_with_torch_alone_runs_it(run: Path, tmp_path: Path) -> None:
    path = export.main(run=run, device="cpu")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BARE, path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "coco", "")


def test_working_size_can_be_set_after_loading(run: Path) -> None:
    model, _ = checkpoint.load_exported(export.main(run=run, device="cpu"), CPU)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    small = model(image)
    model.size = 64
    assert not torch.equal(model(image), small)


def test_a_difference_writes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, other = torch.jit.script, export.deployable(checkpoint.load_colorizer(run, 1, CPU), "fp32")
    monkeypatch.setattr(torch.jit, "script", lambda _: real(other))
    with pytest.raises(ValueError, match=r"^eager, scripted on cpu: they differ by .*; nothing was written"):
        export.main(run=run, epoch=2, device="cpu")
    assert not list(run.glob("*generator.ts*"))


def test_batch_statistics_are_exported(run: Path) -> None:
    payload = checkpoint.load(checkpoint.epoch_path(run, 2))
    payload["recipe"]["norm_stats"] = "batch"
    checkpoint.save(checkpoint.epoch_path(run, 2), payload)
    record = checkpoint.read_run(run)
    record["recipe"]["norm_stats"] = "batch"
    checkpoint.write_json(run / "recipe.json", record)
    model, metadata = checkpoint.load_exported(export.main(run=run, device="cpu"), CPU)
    assert metadata["recipe"]["norm_stats"] == "batch"
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert not torch.equal(model(image)[:1], model(image[:1]))  # what stands beside a picture changes it


def test_the_module_to_deploy_shares_nothing_with_the_trained_one(run: Path) -> None:
    trained = checkpoint.load_colorizer(run, 2, CPU)
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    module = export.deployable(trained, "bf16")
    ours = {tensor.data_ptr() for tensor in trained.state_dict().values()}
    assert not ours & {tensor.data_ptr() for tensor in module.state_dict().values()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


@pytest.mark.parametrize("broken", ["nan", "level", "type"])
def test_what_differs_is_refused(broken: str) -> None:
    def one(image: Tensor) -> Tensor:
        return image.expand(-1, 3, -1, -1)

    def other(image: Tensor) -> Tensor:
        image = one(image)
        if not image.is_floating_point():
            return image.to(torch.int32) if broken == "type" else image
        worse = {"nan": float("nan"), "level": 1.1 / 255, "type": 0.0}[broken]
        return image + worse if len(image) == 3 else image

    compare = export.compare_integers if broken == "type" else partial(export.compare, limit=1.0)
    with pytest.raises(ValueError, match=r"^x: they differ .*nothing was written$"):
        compare("x", one, other, CPU)
    export.compare("x", one, one, CPU, 0.0)
    export.compare_integers("x", one, one, CPU)


def test_metadata_is_json(run: Path) -> None:
    _, metadata = checkpoint.load_exported(export.main(run=run, device="cpu"), CPU)
    assert json.loads(json.dumps(metadata)) == metadata


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "no model"), (b"hello", "is not a TorchScript file"), (b"", "is not a TorchScript")],
)
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "model.ts"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        checkpoint.load_exported(path, CPU)


def test_torchscript_of_somebody_else(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.ReLU()).save(tmp_path / "other.ts")
    with pytest.raises(ValueError, match=r"not one written by export\.py"):
        checkpoint.load_exported(tmp_path / "other.ts", CPU)
