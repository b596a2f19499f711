"""The classifier as a user trains it: a whole run folder, an exact resume, one sentence per mistake."""

import csv
import io
import json
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import train_classifier
from config import CACHE, ROOT
from data import Loading, load_images, training_order
from dataset.folders import list_items
from evaluation import classifier
from evaluation.classifier import load_classifier, read_scores
from runtime import atomic, run_folder
from runtime.weights import load_weights

CPU = torch.device("cpu")
TINY = {
    "network": "shufflenet_v2_x0_5", "size": 32, "batch_size": 4, "device": "cpu", "set_": ["log_every=1"],
}  # fmt: skip


def weights(run: Path, epoch: int) -> dict[str, Tensor]:
    return atomic.load(run_folder.epoch_path(run, epoch))["state"]


def assert_same_weights(first: Path, second: Path, epoch: int) -> None:
    one, other = weights(first, epoch), weights(second, epoch)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def log_of(run: Path) -> list[dict[str, Any]]:
    speed = ("images_per_s", "data_wait_percent", "memory_mb")
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in speed} for record in records]


def record_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "classifier.json").read_text())


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test that does not look at them the drawing of losses."""
    monkeypatch.setattr(train_classifier, "plot_losses", lambda *_: None)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int, number: int = signal.SIGINT) -> None:
    """Let the process send itself a signal in the middle of a training step."""
    real, done = train_classifier.train_step, []

    def step(*args: Any) -> Tensor:
        done.append(1)
        if len(done) == steps:
            signal.raise_signal(number)
        return real(*args)

    monkeypatch.setattr(train_classifier, "train_step", step)


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder of two saved epochs, its pictures cut out of larger ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        settings = {**TINY, "set_": ["log_every=1", "load_size=40"]}
        return train_classifier.main(data=str(pictures), epochs=2, **settings).resolve()


def test_run_folder_holds_what_the_design_says(trained: Path, pictures: Path) -> None:
    assert trained.name == "classifier"
    assert run_folder.saved_epochs(trained) == [1, 2]
    for name in ("checkpoints/state.pt", "losses.png"):
        assert (trained / name).stat().st_size > 0
    record = record_of(trained)
    assert record["images"] == {"train": 12, "val": 4}
    assert record["classes"] == ["a", "b"]
    assert record["data"] == str(pictures.resolve())
    assert (record["recipe"]["size"], record["recipe"]["load_size"], record["recipe"]["seed"]) == (32, 40, 42)
    assert record["loading"]["load_size"] == 40
    assert {"git", "versions", "fingerprints", "weights"} <= record.keys()
    assert [(r["epoch"], r["steps"]) for r in log_of(trained)] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 4),
        (2, 5),
        (2, 6),
    ]
    assert {"C_loss", "lr"} <= log_of(trained)[0].keys()
    assert not (trained / "recipe.json").exists()
    with pytest.raises(ValueError, match="no run in"):
        run_folder.newest_run(trained.parent)  # no stage takes it for a colouriser


def test_scores_are_those_of_the_saved_classifier(trained: Path, pictures: Path) -> None:
    with open(trained / "scores.csv", newline="") as file:
        assert next(csv.reader(file)) == list(classifier.SCORES)
    (first, second) = read_scores(trained)
    assert (first["epoch"], second["epoch"], first["images"]) == (1, 2, 4)
    built = load_classifier(run_folder.epoch_path(trained, 2), CPU)
    right = []
    for path in sorted((pictures / "val").rglob("p*")):
        with Image.open(path) as image:
            short, (width, height) = min(image.size), image.size
            scaled = image.convert("RGB").resize(
                (round(40 * width / short), round(40 * height / short)), Image.Resampling.BICUBIC
            )
        left, top = (scaled.width - 40) // 2, (scaled.height - 40) // 2
        square = np.asarray(scaled.crop((left, top, left + 40, top + 40)))
        logits = built(torch.from_numpy(square.copy()).permute(2, 0, 1)[None])
        right.append(int(logits.argmax()) == ["a", "b"].index(path.parent.name))
    assert second["top1"] == np.mean(right)
    assert second["top5"] == 1.0  # of two classes
    assert second["top1_low"] < second["top1"] < second["top1_high"] or second["top1"] in (0, 1)


def test_the_steps_show_each_picture_with_its_class(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = train_classifier.train_step, []

    def step(training: Any, image: Tensor, label: Tensor, smoothing: float) -> Tensor:
        assert image.shape == (4, 3, 64, 64)
        assert image.dtype == torch.uint8
        assert smoothing == 0.25
        rate = training.optimizer.param_groups[0]["lr"]
        seen.append((rate, [hash(picture.numpy().tobytes()) for picture in image], label.tolist()))
        return real(training, image, label, smoothing)

    monkeypatch.setattr(train_classifier, "train_step", step)
    monkeypatch.setattr(train_classifier, "plot_losses", lambda *_: None)
    settings = ["flip=0", "fit=squash", "label_smoothing=0.25", "lr=0.05"]
    run = train_classifier.main(data=str(pictures), epochs=2, **{**TINY, "size": 64, "set_": settings})
    first, second = (
        {key: value for _, keys, labels in steps for key, value in zip(keys, labels, strict=True)}
        for steps in (seen[:3], seen[3:])
    )
    assert first == second  # whatever the order, the same pictures in the same classes
    assert sorted(first.values()) == [0] * 6 + [1] * 6
    recipe = train_classifier.ClassifierRecipe(**record_of(run)["recipe"])
    assert [rate for rate, *_ in seen] == [train_classifier.learning_rate(recipe, 6, i) for i in range(6)]


@pytest.mark.usefixtures("no_curves")
def test_the_steps_show_random_cuts_and_flips(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = train_classifier.train_step, []

    def step(training: Any, image: Tensor, *rest: Any) -> Tensor:
        seen.append(image.clone())
        return real(training, image, *rest)

    monkeypatch.setattr(train_classifier, "train_step", step)
    settings = {**TINY, "set_": ["load_size=48", "flip=0.5", "seed=3"]}
    record = record_of(train_classifier.main(data=str(pictures), epochs=1, **settings))
    items = list_items(str(pictures), record["recipe"], CACHE)["train"]
    images = load_images(items, Loading(**record["loading"]), CACHE, "train")
    expected = [
        images.gather(ids, 32, *cut)[1] for ids, *cut in training_order(12, 4, flip=0.5, seed=3, epoch=1)
    ]
    assert len(seen) == 3
    assert all(map(torch.equal, seen, expected))


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize(
    ("network", "stop", "settings"),
    [
        *[("shufflenet_v2_x0_5", stop, ["load_size=36"]) for stop in (1, 3, 5)],  # 3 steps an epoch
        ("squeezenet1_1", 2, ["precision=bf16"]),  # with dropout
        ("squeezenet1_1", 4, ["save_every=5", "momentum=0"]),
    ],
)
def test_resume_equals_uninterrupted(pictures: Path, network: str, stop: int, settings: list[str]) -> None:
    options = {**TINY, "network": network, "set_": [*TINY["set_"], *settings], "epochs": 2}
    whole = train_classifier.main(data=str(pictures), run=Path("whole"), **options)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, stop)
        with pytest.raises(SystemExit) as stopped:
            train_classifier.main(data=str(pictures), run=Path("parts"), **options)
    assert stopped.value.code == 128 + signal.SIGINT
    parts = train_classifier.main(run=Path("parts"), resume=True, device="cpu")
    assert_same_weights(whole, parts, 2)
    assert log_of(whole) == log_of(parts)  # the history has neither a gap nor a repetition
    assert read_scores(whole) == read_scores(parts)


@pytest.mark.usefixtures("no_curves")
def test_ctrl_c_says_how_to_go_on(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_after(monkeypatch, 2, signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        train_classifier.main(data=str(pictures), run=Path("my run"), **TINY)
    assert stopped.value.code == 128 + signal.SIGTERM
    command = "python classifier.py --resume --run 'my run'"
    assert capsys.readouterr().out.splitlines()[-1] == f"stopped in epoch 1; go on with: {command}"
    assert atomic.load(run_folder.state_path(Path("my run")))["steps"] == 2


@pytest.mark.usefixtures("no_curves")
def test_seed_decides_everything(pictures: Path) -> None:
    first, again, other = (
        train_classifier.main(data=str(pictures), run=Path(name), epochs=1, seed=seed, **TINY)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert_same_weights(first, again, 1)
    assert any(not torch.equal(v, weights(other, 1)[k]) for k, v in weights(first, 1).items())


@pytest.mark.usefixtures("no_curves")
def test_more_epochs_on_resume(pictures: Path) -> None:
    run = train_classifier.main(data=str(pictures), epochs=1, **TINY)
    train_classifier.main(run=run, resume=True, epochs=3, device="cpu", set_=["save_every=2"])
    assert run_folder.saved_epochs(run) == [1, 2, 3]  # the last is always saved
    assert [row["epoch"] for row in read_scores(run)] == [1, 2, 3]
    record = record_of(run)
    assert (record["recipe"]["epochs"], len(record["resumed"])) == (3, 1)
    best = train_classifier.best_scores(run)
    assert best["top1"] == max(row["top1"] for row in read_scores(run))


@pytest.mark.usefixtures("no_curves")
def test_a_run_that_saved_nothing_begins_again(pictures: Path) -> None:
    whole = train_classifier.main(data=str(pictures), run=Path("whole"), epochs=1, **TINY)
    Path("parts").mkdir()
    (Path("parts") / "classifier.json").write_bytes((whole / "classifier.json").read_bytes())
    parts = train_classifier.main(run=Path("parts"), resume=True, device="cpu")
    assert_same_weights(whole, parts, 1)


@pytest.mark.usefixtures("no_curves")
def test_fine_tuning_starts_from_published_weights(pictures: Path, weights_folder: Path) -> None:
    options = {**TINY, "network": "resnet18", "pretrained": True, "set_": ["lr=1e-9", "precision=fp32"]}
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(SystemExit):
            train_classifier.main(
                data=str(pictures), run=Path("tuned"), weights=weights_folder, epochs=1, **options
            )
    assert record_of(Path("tuned"))["weights"] == str(weights_folder.resolve())
    published = load_weights("resnet18", weights_folder)
    tuned = atomic.load(run_folder.state_path(Path("tuned")))["network"]
    assert tuned["fc.weight"].shape == (2, 512)
    torch.testing.assert_close(tuned["layer4.0.conv1.weight"], published["layer4.0.conv1.weight"])
    run_folder.state_path(Path("tuned")).unlink()
    again = train_classifier.main(run=Path("tuned"), resume=True, device="cpu")  # knows where they are
    torch.testing.assert_close(weights(again, 1)["conv1.weight"], published["conv1.weight"])


def test_published_weights_that_are_missing_are_found_before_any_work(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    sentence = r"^no resnet50-\w+\.pth in empty: it is published at https://.* --weights DIR.* --pretrained$"
    options = {**TINY, "network": "resnet50", "pretrained": True, "weights": Path("empty")}
    with pytest.raises(ValueError, match=sentence):
        train_classifier.main(data=str(pictures), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.usefixtures("no_curves")
def test_a_packed_set_with_labels_and_a_test_split(pictures: Path) -> None:
    files = []
    for level in range(24):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (255 * (level % 2), 10 * level, 0)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    np.savez(
        "set.npz", data=np.frombuffer(b"".join(files), np.uint8), offsets=np.cumsum([0, *map(len, files)]),
        labels=np.arange(24) % 2, classes=np.array(["dark", "red"]), is_test=np.arange(24) >= 20,
    )  # fmt: skip
    run = train_classifier.main(data="set.npz", epochs=1, **{**TINY, "set_": ["val_fraction=0.3"]})
    record = record_of(run)
    assert record["classes"] == ["dark", "red"]
    assert sum(record["images"].values()) == 20  # the test pictures are for eval.py
    assert load_classifier(run, CPU).classes == ["dark", "red"]


@pytest.mark.usefixtures("no_curves")
def test_nonfinite_loss_stops_and_keeps_the_checkpoint(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_classifier.main(data=str(pictures), epochs=1, **TINY)
    before = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    monkeypatch.setattr(train_classifier, "train_step", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(ValueError, match="C_loss not finite by step 4; nothing was overwritten"):
        train_classifier.main(run=run, resume=True, epochs=2, device="cpu")
    assert {path: path.read_bytes() for path in (run / "checkpoints").iterdir()} == before
    assert [row["epoch"] for row in read_scores(run)] == [1]


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("interrupted", [False, True])
def test_nonfinite_weights_are_never_saved(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    def step(training: Any, *_: Any) -> Tensor:
        next(training.classifier.parameters()).data.fill_(float("inf"))
        if interrupted:
            signal.raise_signal(signal.SIGINT)
        return torch.tensor(1.0)

    monkeypatch.setattr(train_classifier, "train_step", step)
    with pytest.raises(ValueError, match="the classifier has weights that are not finite; nothing was over"):
        train_classifier.main(data=str(pictures), epochs=1, **TINY)
    assert not Path("runs/classifier/checkpoints").exists()
    assert not Path("runs/classifier/scores.csv").exists()


@pytest.mark.usefixtures("no_curves")
def test_bad_files_are_listed(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        for path in sorted((pictures / split).rglob("p*")):
            copy = Path("data", split, path.parent.name, path.name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    Path("data/train/a/broken.jpg").write_bytes(b"not a picture")
    train_classifier.main(data="data", epochs=1, **TINY)
    assert "\nskipped data/train/a/broken.jpg: not an image" in capsys.readouterr().out
    for path in Path("data/train").rglob("p*"):
        path.write_bytes(b"" if path.name != "p00.PNG" else path.read_bytes())
    with pytest.raises(ValueError, match=r"^only one training picture of data can be read: data/train/a"):
        train_classifier.main(data="data", epochs=1, run=Path("other"), **TINY)


def test_dry_run_writes_nothing(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_classifier.main(data=str(pictures), dry_run=True, **TINY)
    printed = capsys.readouterr().out
    assert "12 to train, 4 to validate, 2 classes" in printed
    assert "shufflenet_v2_x0_5 at 32 px, 343,842 parameters, from scratch" in printed
    assert "batch_size = 4" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"data": None}, r"^a classifier needs --data PATH\|NAME"),
        ({"data": "nowhere"}, "^no folder nowhere"),
        ({"data": "demo"}, "^the pictures have no class folders"),
        ({"network": "resnet81"}, r"^no network resnet81; did you mean resnet18\?"),
        ({"network": "alexnet"}, r"^alexnet cannot work on 32 px"),
        ({"batch_size": 1}, r"^shufflenet_v2_x0_5 cannot work on 32 px in batches of 1"),
        ({"size": 40, "set_": ["load_size=32"]}, r"^load_size must be at least size \(40\), got 32"),
        ({"set_": ["ngf=3"]}, "^no recipe field ngf"),
        ({"set_": ["lr=fast"]}, "^lr takes a value of type float"),
        ({"set_": ["precision=fp16"]}, "^precision fp16 needs CUDA"),
        ({"device": "tpu"}, "^no device tpu"),
        ({"run": Path("other")}, "^other is not empty and not a run"),
        ({"run": Path("other"), "resume": True}, "^other is not a classifier's run"),
        ({"resume": True}, "^runs/classifier is not a classifier's run"),
    ],
)
def test_mistakes_are_found_before_any_work(
    pictures: Path, options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=sentence):
        train_classifier.main(**{"data": str(pictures), **TINY, **options})
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"data": "x"}, "already holds a classifier; go on with --resume, or name another folder with --run"),
        (
            {"resume": True, "data": "elsewhere"},
            "was trained with data .*; a resume cannot make it elsewhere",
        ),
        (
            {"resume": True, "network": "vgg16"},
            "trained with network shuffle.*; a resume cannot make it vgg16",
        ),
        ({"resume": True, "pretrained": True}, "with pretrained False; a resume cannot make it True"),
        ({"resume": True, "size": 40}, "trained with size 32; a resume cannot make it 40"),
        ({"resume": True, "epochs": 1}, "has 2 epochs already; --epochs 1 would be fewer"),
    ],
)
def test_a_run_is_never_mixed_with_another(trained: Path, options: dict[str, Any], sentence: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    with pytest.raises(ValueError, match=sentence):
        train_classifier.main(run=trained, **options)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


@pytest.mark.usefixtures("no_curves")
def test_a_resume_whose_data_or_state_is_gone(pictures: Path) -> None:
    for name in ("a", "b"):
        for i in range(4):
            path = Path("data", name, f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(path)
    run = train_classifier.main(data="data", epochs=1, **TINY)
    Path("data/b").rename("data/c")
    with pytest.raises(ValueError, match=r"^the classes of .*data have changed since this run began, .* b$"):
        train_classifier.main(run=run, resume=True, epochs=2, device="cpu")
    Path("data/c").rename("data/b")
    record = record_of(run)
    atomic.write_json(run / "classifier.json", {**record, "recipe": {**record["recipe"], "new": 1}})
    with pytest.raises(ValueError, match=r"classifier\.json has other fields than this version"):
        train_classifier.main(run=run, resume=True, epochs=2, device="cpu")
    atomic.write_json(run / "classifier.json", record)
    run_folder.state_path(run).unlink()
    with pytest.raises(ValueError, match=r"state\.pt is missing: .* can be used, but not trained on$"):
        train_classifier.main(run=run, resume=True, epochs=2, device="cpu")


def run_cli(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """Run classifier.py as a command, within this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["classifier.py", *args])
    try:
        runpy.run_path(str(ROOT / "classifier.py"), run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "a classifier needs --data PATH|NAME: a folder of pictures per class, or cifar10"),
        (["--data", "one"], "one has one class alone, a: a classifier needs two or more"),
        (["--data", "flat"], "the pictures have no class folders: a classifier takes folder/CLASS/picture, "
         "with train/ and val/ above or not"),
        (["--data", "val"], "class c of val is in the validation pictures alone: give it more pictures, or "
         "leave it out"),
        (["--data", "one", "--set", "size=0"], "size must be greater than 0, got 0"),
    ],
)  # fmt: skip
def test_command_line_mistake_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], sentence: str
) -> None:
    names = ("one/a/0.png", "one/a/1.png", "flat/0.png", "flat/1.png")
    for name in (*names, "val/train/a/0.png", "val/train/b/0.png", "val/val/c/0.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(name)
    assert run_cli(monkeypatch, *args) == 2
    assert capsys.readouterr().err.splitlines() == [f"classifier.py: {sentence}"]
    assert not Path("runs").exists()
