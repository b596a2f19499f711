"""The classifier: its step, its scores, and training as a user runs it."""

import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import CPU, log_of, same_tensors, saved_weights, stop_in, times_of
from torch import Tensor, nn

import train_classifier
from config import CACHE, ClassifierRecipe, UserError
from data import ImageSet, Loading, load_images, training_order
from dataset.folders import list_items
from evaluation.classifier import Accuracy, Classifier, read_accuracies
from runtime import atomic, run_folder
from runtime.run_folder import read_classifier_run, state_path
from runtime.weights import load_weights
from train_classifier import Training, build_training, learning_rate, train_step, validate
from training import setup

SMALL = "shufflenet_v2_x0_5"
RECIPE = ClassifierRecipe(network=SMALL, size=32, batch_size=8, epochs=2, lr=0.01)
TINY = {"network": SMALL, "size": 32, "batch_size": 4, "device": "cpu", "set_": ["log_every=1"]}
pytestmark = pytest.mark.usefixtures("no_curves")  # but the `trained` run has them


def build(precision: str = "fp32", **changes: Any) -> Training:
    return build_training(replace(RECIPE, **changes), ["a", "b", "c"], CPU, precision)


def batch() -> tuple[Tensor, Tensor]:
    """Return random pictures (8, 3, 32, 32) uint8 and classes (8,)."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return image, torch.arange(8) % 3


def weights(training: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.classifier.network.state_dict().items()}


# The step


def test_the_learning_rate_by_hand() -> None:
    recipe = ClassifierRecipe(lr=0.4, warmup=0.25)
    rates = [learning_rate(recipe, 8, done) for done in range(8)]
    assert rates[:2] == pytest.approx([0.1, 0.3])  # a quarter and three quarters of the way up
    cosines = [0.2 * (1 + math.cos(math.pi * part / 12)) for part in (1, 3, 5, 7, 9, 11)]
    assert rates[2:] == pytest.approx(cosines)
    assert learning_rate(ClassifierRecipe(lr=0.4, warmup=0), 1, 0) == pytest.approx(0.2)
    assert all(0 < learning_rate(recipe, 1000, done) <= 0.4 for done in range(1000))


def test_a_step_is_nesterovs_on_the_cross_entropy() -> None:
    training, (image, label) = build(weight_decay=0.01, label_smoothing=0.3), batch()
    other = build(weight_decay=0.01).classifier
    optimizer = torch.optim.SGD(other.parameters(), 0.01, 0.9, weight_decay=0.01, nesterov=True)
    for _ in range(2):
        loss = train_step(training, image, label)
        wanted = 0.7 * F.one_hot(label, 3) + 0.3 / 3
        expected = -(wanted * other(image).log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(loss, expected.detach())
        assert not loss.requires_grad
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
    for name, value in weights(training).items():
        torch.testing.assert_close(value, other.network.state_dict()[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_one_batch_is_learned_by_heart(precision: str) -> None:
    training = build(precision, label_smoothing=0.0)  # at 0.05 the loss is chaotic, at 0.01 it is not
    losses = [float(train_step(training, *batch())) for _ in range(30)]
    assert losses[0] > 0.5
    assert losses[-1] < 0.01


def test_a_first_step_that_is_skipped_leaves_no_momentum() -> None:
    """torch's fused SGD would leave memory that nobody has filled. With fp16 the first steps are skipped."""
    (skipping, plain), (image, label) = (build(on_nan="skip") for _ in range(2)), batch()
    spoilt = [torch.full((2**20,), math.nan) for _ in range(8)]  # memory that comes next
    del spoilt
    train_step(skipping, image * math.nan, label)
    for _ in range(2):
        losses = [train_step(training, image, label) for training in (skipping, plain)]
    assert torch.equal(*losses)
    for ours, theirs in zip(skipping.classifier.parameters(), plain.classifier.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_one_batch_is_learned_by_heart_on_a_gpu(precision: str) -> None:
    recipe = replace(RECIPE, label_smoothing=0.0)
    training = build_training(recipe, ["a", "b", "c"], torch.device("cuda"), precision)
    losses = [float(train_step(training, *(part.cuda() for part in batch()))) for _ in range(60)]
    assert losses[-1] < 0.1 < losses[0]


# Scores


class Red(nn.Module):
    """Takes a picture's class from its red level, and the likelihood of the others from their distance."""

    def forward(self, x: Tensor) -> Tensor:
        level = x[:, :1].mean((2, 3)) * 0.229 + 0.485  # (N, 1) in [0, 1]
        return -(255 * level - torch.arange(6.0)).abs()  # (N, 6)


def numbered(levels: list[int], height: int = 8, width: int = 8) -> ImageSet:
    """Return pictures of one red level each."""
    pixels = np.zeros((len(levels), height, width, 3), np.uint8)
    pixels[..., 0] = np.array(levels)[:, None, None]
    index = np.array([[i * height * width * 3, height, width] for i in range(len(levels))])
    names = [str(level) for level in levels]
    return ImageSet(names, names, pixels.ravel(), index, 3, [], 0, "key")


def test_scores_by_hand() -> None:
    recipe = replace(RECIPE, size=8, load_size=8, batch_size=4)
    seen = Classifier("red", Red(), list("abcdef"), 8)
    levels, labels = [0, 1, 2, 3, 4, 5, 0, 0, 0, 5], torch.tensor([0, 1, 2, 3, 4, 5, 1, 4, 5, 0])
    scores = validate(seen, recipe, numbered(levels), labels, 3)
    assert seen.training  # as before
    # Wilson for 6 of 10 at z = 1.959964: centre (0.6 + z^2/20) / (1 + z^2/10), and its half width
    z = 1.959963984540054
    half = z * math.sqrt(0.6 * 0.4 / 10 + z**2 / 400) / (1 + z**2 / 10)
    centre = (0.6 + z**2 / 20) / (1 + z**2 / 10)
    logits = -(torch.tensor(levels)[:, None] - torch.arange(6.0)).abs()
    assert scores == pytest.approx(
        Accuracy(
            epoch=3, images=10, val_loss=float(F.cross_entropy(logits, labels)),
            top1=0.6, top1_low=centre - half, top1_high=centre + half,
            top5=0.8, top5_low=0.490162, top5_high=0.943318,
        ),
        abs=1e-5,
    )  # fmt: skip


def test_the_whole_centre_square_is_scored() -> None:
    shown = []

    class Watched(Classifier):
        def forward(self, image: Tensor) -> Tensor:
            shown.append(tuple(image.shape))
            return super().forward(image)

    recipe = replace(RECIPE, size=8, load_size=12, batch_size=4)
    watched = Watched("red", Red(), list("abcdef"), 8)
    validate(watched, recipe, numbered([0] * 6, 12, 20), torch.zeros(6, dtype=torch.long), 1)
    assert shown == [(4, 3, 12, 12), (2, 3, 12, 12)]  # which the classifier makes smaller, as it will then


def test_scoring_changes_nothing_and_draws_nothing() -> None:
    training, twin = build(network="squeezenet1_1"), build(network="squeezenet1_1")
    images = numbered([1, 2, 3], 32, 32)
    for each in (training, twin):
        torch.manual_seed(3)
        train_step(each, *batch())
        if each is training:
            validate(each.classifier, RECIPE, images, torch.tensor([0, 1, 2]), 1)
        train_step(each, *batch())
    assert same_tensors(weights(training), weights(twin))


# Runs


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
    record = read_classifier_run(trained)
    assert (record.images, record.classes) == ({"train": 12, "val": 4}, ["a", "b"])
    assert record.data == str(pictures.resolve())
    assert (record.recipe.size, record.recipe.load_size, record.recipe.seed) == (32, 40, 42)
    assert (record.loading["load_size"], record.weights) == (40, None)
    assert set(record.fingerprints) == {"train", "val"}
    assert "torch" in record.versions
    assert [(r["epoch"], r["steps"]) for r in log_of(trained)] == [(1 + i // 3, i + 1) for i in range(6)]
    assert {"C_loss", "lr"} <= log_of(trained)[0].keys()
    assert not (trained / "recipe.json").exists()  # no stage takes it for a colouriser


def test_the_steps_show_random_cuts_and_flips_with_their_classes(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = train_classifier.train_step, []

    def step(training: Training, image: Tensor, label: Tensor) -> Tensor:
        assert training.loss.label_smoothing == 0.25
        seen.append((image.clone(), label.tolist(), training.optimizer.param_groups[0]["lr"]))
        return real(training, image, label)

    monkeypatch.setattr(train_classifier, "train_step", step)
    settings = {**TINY, "set_": ["load_size=48", "flip=0.5", "seed=3", "label_smoothing=0.25"]}
    record = read_classifier_run(train_classifier.main(data=str(pictures), epochs=1, **settings))
    items = list_items(str(pictures), record.recipe, CACHE)["train"]
    images = load_images(items, Loading(**record.loading), CACHE, "train")
    expected = list(training_order(12, 4, flip=0.5, seed=3, epoch=1))
    assert len(seen) == len(expected) == 3
    for i, ((image, label, rate), (ids, *cut)) in enumerate(zip(seen, expected, strict=True)):
        assert torch.equal(image, images.gather(ids, 32, *cut)[1])
        assert label == [["a", "b"].index(images.labels[which]) for which in ids]
        assert rate == learning_rate(record.recipe, 3, i)


@pytest.mark.parametrize(
    ("network", "stop", "settings"),
    [
        ("squeezenet1_1", 4, ["save_every=5", "load_size=36", "precision=fp32"]),  # with dropout
        pytest.param(SMALL, 1, ["load_size=36"], marks=pytest.mark.slow),  # with BatchNorm
        pytest.param(SMALL, 3, ["momentum=0"], marks=pytest.mark.slow),  # the last step of an epoch
        pytest.param("squeezenet1_1", 2, ["precision=bf16"], marks=pytest.mark.slow),
    ],
)
def test_resume_equals_uninterrupted(pictures: Path, network: str, stop: int, settings: list[str]) -> None:
    given = {"network": network, "data": str(pictures), "epochs": 2}
    options = {**TINY, **given, "set_": [*TINY["set_"], *settings]}
    whole, parts = train_classifier.main(run=Path("whole"), **options), Path("parts")
    stop_in(train_classifier, stop, lambda: train_classifier.main(run=parts, **options))
    assert atomic.load(state_path(parts))["steps"] == stop
    train_classifier.main(run=parts, resume=True, device="cpu")
    assert same_tensors(saved_weights(whole, 2), saved_weights(parts, 2))
    assert log_of(whole) == log_of(parts)  # the history has neither a gap nor a repetition
    assert read_accuracies(whole) == read_accuracies(parts)


def test_more_epochs_on_resume(trained: Path) -> None:
    run = Path(shutil.copytree(trained, "run"))
    train_classifier.main(run=run, resume=True, epochs=4, device="cpu", set_=["save_every=3"])
    assert run_folder.saved_epochs(run) == [1, 2, 3, 4]  # the last is always saved
    assert [row.epoch for row in read_accuracies(run)] == [1, 2, 3, 4]
    record = read_classifier_run(run)
    assert (record.recipe.epochs, len(record.resumed)) == (4, 1)


def test_a_run_that_saved_nothing_begins_again(trained: Path) -> None:
    Path("parts").mkdir()
    (Path("parts") / "classifier.json").write_bytes((trained / "classifier.json").read_bytes())
    parts = train_classifier.main(run=Path("parts"), resume=True, device="cpu")
    assert same_tensors(saved_weights(trained, 2), saved_weights(parts, 2))


@pytest.mark.slow
def test_fine_tuning_starts_from_published_weights(pictures: Path, weights_folder: Path) -> None:
    given = {"data": str(pictures), "run": Path("tuned"), "network": "resnet18", "pretrained": True}
    settings = {"set_": ["lr=1e-9", "precision=fp32"], "epochs": 1, "weights": weights_folder}
    stop_in(train_classifier, 2, lambda: train_classifier.main(**{**TINY, **given, **settings}))
    assert read_classifier_run(Path("tuned")).weights == str(weights_folder.resolve())
    published = load_weights("resnet18", weights_folder)
    tuned = atomic.load(state_path(Path("tuned")))["network"]
    assert tuned["fc.weight"].shape == (2, 512)
    torch.testing.assert_close(tuned["layer4.0.conv1.weight"], published["layer4.0.conv1.weight"])
    state_path(Path("tuned")).unlink()
    again = train_classifier.main(run=Path("tuned"), resume=True, device="cpu")  # knows where they are
    torch.testing.assert_close(saved_weights(again, 1)["conv1.weight"], published["conv1.weight"])


def test_weights_that_nothing_reads_are_refused(pictures: Path) -> None:
    Path("w").mkdir()
    with pytest.raises(UserError, match=r"^--weights has no effect here: it needs --pretrained"):
        train_classifier.main(**{**TINY, "data": str(pictures), "weights": Path("w")})


def test_what_is_not_finite_is_never_saved(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(training: Training, *_: Any) -> Tensor:
        next(training.classifier.parameters()).data.fill_(math.inf)
        return torch.tensor(1.0)

    def broken_and_stopped(*args: Any) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return broken(*args)

    run = Path(shutil.copytree(trained, "run"))
    before = {path: path.read_bytes() for path in [*(run / "checkpoints").iterdir(), run / "scores.csv"]}
    for step, words in (
        (broken, "weights that are not finite; nothing was overwritten"),
        (broken_and_stopped, "weights that are not finite; nothing was overwritten"),
        (lambda *_: torch.tensor(math.nan), "C_loss not finite by step 7; nothing was overwritten"),
    ):
        monkeypatch.setattr(train_classifier, "train_step", step)
        with pytest.raises(UserError, match=words):
            train_classifier.main(run=run, resume=True, epochs=3, device="cpu")
    assert {path: path.read_bytes() for path in before} == before


def test_bad_files_are_listed(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(pictures, "data")
    Path("data/train/a/broken.jpg").write_bytes(b"not a picture")
    train_classifier.main(data="data", epochs=1, **TINY)
    assert "\nskipped data/train/a/broken.jpg: not an image" in capsys.readouterr().out
    for path in Path("data/train").rglob("p*"):
        path.write_bytes(b"" if path.name != "p00.PNG" else path.read_bytes())
    with pytest.raises(UserError, match=r"^only one training picture of data can be read: data/train/a"):
        train_classifier.main(data="data", epochs=1, run=Path("other"), **TINY)


def test_dry_run_writes_nothing(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_classifier.main(data=str(pictures), dry_run=True, **TINY)
    printed = capsys.readouterr().out
    assert "12 to train, 4 to validate, 2 classes" in printed
    assert "shufflenet_v2_x0_5 at 32 px, 343,842 parameters, from scratch" in printed
    assert "batch_size = 4" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": None}, r"^a classifier needs --data PATH\|NAME"),
        ({"data": "demo"}, "^the pictures have no class folders"),
        ({"network": "resnet81"}, r"^no network resnet81; did you mean resnet18\?"),
        ({"network": "alexnet"}, r"^alexnet cannot work on 32 px"),
        ({"batch_size": 1}, r"^shufflenet_v2_x0_5 cannot work on 32 px in batches of 1"),
        ({"set_": ["ngf=3"]}, "^no recipe field ngf"),
        ({"network": "resnet18", "pretrained": True, "weights": "other"}, r"^no resnet18-\w+\.pth in "),
        ({"set_": ["precision=fp16"]}, "^precision fp16 needs CUDA"),
        ({"weights": "nowhere"}, "^no folder nowhere: --weights takes the folder"),
        ({"run": Path("other")}, "^other is not empty and not a run"),
        ({"resume": True, "data": None}, "^runs/classifier is not a classifier's run"),
    ],
)
def test_mistakes_are_found_before_any_work(
    pictures: Path, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match=words):
        train_classifier.main(**{"data": str(pictures), **TINY, **options})
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": "x"}, "already holds a run; go on with --resume, or name another folder with --run"),
        ({"resume": True, "data": "elsewhere"}, "no folder elsewhere"),
        ({"resume": True, "pretrained": True}, "with pretrained False; a resume cannot make it True"),
        ({"resume": True, "epochs": 1}, "has 2 epochs already; --epochs 1 would be fewer"),
    ],
)
def test_a_run_is_never_mixed_with_another(trained: Path, options: dict[str, Any], words: str) -> None:
    before = times_of(trained)
    with pytest.raises(UserError, match=words):
        train_classifier.main(run=trained, **options)
    assert times_of(trained) == before


def test_a_run_that_another_process_began_meanwhile_is_left_alone(
    trained: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup.Setup, "settle_format", lambda *_: shutil.copytree(trained, "run") and "contiguous")
    with pytest.raises(UserError, match="run already holds a run"):
        train_classifier.main(data=str(pictures), run=Path("run"), epochs=1, **TINY)
    assert read_classifier_run(Path("run")) == read_classifier_run(trained)


def test_a_resume_whose_classes_have_changed(pictures: Path) -> None:
    shutil.copytree(pictures, "data")
    run = train_classifier.main(data="data", epochs=1, **TINY)
    for split in ("train", "val"):
        Path("data", split, "b").rename(Path("data", split, "c"))
    with pytest.raises(UserError, match=r"^the classes of .*data have changed since this run began, .* b$"):
        train_classifier.main(run=run, resume=True, epochs=2, device="cpu")
