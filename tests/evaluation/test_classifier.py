"""Preprocessing as torchvision's, ranks counted by hand, files that are refused in one sentence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import same_tensors
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import InterpolationMode, v2

from config import UserError
from dataset.folders import Item
from evaluation import classifier as classifiers
from evaluation.classifier import MEAN, STD, Accuracy, Classifier, topk_correct
from runtime import atomic, run_folder
from runtime.run_folder import CLASSIFIER_RECORD as RECORD
from runtime.weights import load_weights

CPU = torch.device("cpu")
SMALL = "shufflenet_v2_x0_5"


def pictures(count: int, height: int, width: int) -> Tensor:
    """Return random but smooth pictures (count, 3, height, width) uint8."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    fine = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * fine).round().to(torch.uint8)


def classifier(network: str = SMALL, classes: str = "ab", size: int = 32) -> Classifier:
    torch.manual_seed(1)
    return classifiers.build_classifier(network, list(classes), size)


def write_run(run: Path, top1: dict[int, float], saved: list[int]) -> Path:
    """Write a classifier's run folder with a score per epoch, and with the checkpoints of `saved`."""
    run.mkdir()
    record = {"recipe": {}, "data": "", "classes": [], "weights": None, "fingerprints": {}}
    (run / RECORD).write_text(json.dumps(record))
    for epoch, value in top1.items():
        classifiers.write_accuracy(run, row(epoch, value))
    for epoch in saved:
        atomic.save(run_folder.epoch_path(run, epoch), {})
    return run


def row(epoch: int, top1: float) -> Accuracy:
    return Accuracy(epoch, 1.25, top1, 0.5, 0.5, 1.0, 0.5, 0.5, 8)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (90, 60), (17, 24)])
def test_preprocessing_is_torchvisions(height: int, width: int) -> None:
    seen = Classifier("identity", nn.Identity(), ["a", "b"], 24)
    image = pictures(2, height, width)
    resize = v2.Resize((24, 24), InterpolationMode.BICUBIC, antialias=True)
    theirs = v2.Compose([resize, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    got = seen(image)
    assert (got.shape, got.dtype) == ((2, 3, 24, 24), torch.float32)
    torch.testing.assert_close(got, theirs(image), rtol=0, atol=1.1 / 255 / min(STD))  # which rounds twice


def test_what_overshoots_is_cut_off() -> None:
    seen = Classifier("identity", nn.Identity(), ["a", "b"], 24)
    image = torch.zeros(1, 3, 12, 12, dtype=torch.uint8)
    image[..., 6:] = 255
    rgb01 = seen(image) * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert rgb01.min() > -1e-6
    assert rgb01.max() < 1 + 1e-6


@pytest.mark.parametrize(
    ("network", "size", "batch", "sentence"),
    [
        ("resnet81", 32, 2, "no network resnet81; did you mean resnet18?"),
        ("fcn_resnet50", 32, 2, "no network fcn_resnet50"),  # torchvision's, but it classifies no picture
        ("vit_b_32", 48, 8, "vit_b_32 cannot work on 48 px ("),
        ("maxvit_t", 100, 8, "maxvit_t cannot work on 100 px ("),
        (SMALL, 32, 1, f"{SMALL} cannot work on 32 px in batches of 1 ("),
    ],
)
def test_networks_that_cannot_work_are_refused(network: str, size: int, batch: int, sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(sentence)) as caught:
        classifiers.build_classifier(network, ["a", "b"], size, batch)
    assert "\n" not in str(caught.value)


def test_trying_a_network_out_leaves_no_trace() -> None:
    built = classifier("resnet18")
    torch.manual_seed(1)
    theirs = models.resnet18(num_classes=2)
    for name, value in theirs.state_dict().items():
        assert torch.equal(built.network.state_dict()[name], value)  # running statistics, too
    assert next(built.parameters()).device == CPU


def test_second_outputs_are_left_out() -> None:
    built = classifier("googlenet", size=64).train()
    assert built(pictures(2, 64, 64)).shape == (2, 2)
    assert not any(name.startswith("aux") for name in built.network.state_dict())


@pytest.mark.parametrize("network", ["squeezenet1_1", "mobilenet_v3_small"])
def test_the_head_is_the_last_layer(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kaiming_normal_", "kaiming_uniform_", "trunc_normal_", "normal_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)  # what takes time
    published = {name: torch.ones_like(value) for name, value in models.get_model(network).state_dict().items()}
    built = classifier(network, "abc")  # published: 1,000 classes
    for value in built.network.state_dict().values():
        value.zero_()
    classifiers.load_pretrained(built, published)
    last = list(published)[-2:]
    assert [name for name, value in built.network.state_dict().items() if not value.all()] == last


def test_fine_tuning_starts_from_all_but_the_head(weights_folder: Path) -> None:
    built, state = classifier("resnet18"), load_weights("resnet18", weights_folder)
    head = {name: built.network.state_dict()[name].clone() for name in ("fc.weight", "fc.bias")}
    classifiers.load_pretrained(built, state)
    for name, value in built.network.state_dict().items():
        assert torch.equal(value, head[name] if name in head else state[name]), name
    assert not torch.equal(head["fc.weight"], state["fc.weight"][:2])


@pytest.mark.parametrize("kind", ["missing", "too many", "shape"])
def test_other_weights_are_refused_and_nothing_is_loaded(kind: str) -> None:
    built = classifier()
    before = {name: value.clone() for name, value in built.network.state_dict().items()}
    state, name = {key: value + 1 for key, value in before.items()}, "conv1.0.weight"
    odd = {"missing": {}, "too many": {**state, "conv9.0": state[name]}, "shape": {name: state[name][:, :1]}}
    first = "conv9.0" if kind == "too many" else name
    with pytest.raises(ValueError, match=rf"^the published weights of {SMALL} do not fit .* at {first}: "):
        classifiers.load_pretrained(built, {k: v for k, v in state.items() if k != name} | odd[kind])
    assert same_tensors(built.network.state_dict(), before)


def test_files_of_old_are_understood() -> None:
    built = Classifier("densenet", nn.Sequential(nn.BatchNorm2d(3), nn.Linear(3, 2)), ["a", "b"], 32)
    built.network.add_module("denselayer1", nn.Module())
    built.network.denselayer1.add_module("norm1", nn.BatchNorm2d(4))
    built.network.add_module("last", nn.Linear(4, 2))
    ours = built.network.state_dict()
    published = {
        name.replace("norm1.", "norm.1."): value + 1
        for name, value in ours.items()
        if "num_batches" not in name  # which old files do not count
    }
    published |= {"AuxLogits.fc.bias": torch.zeros(1), "aux1.fc.bias": torch.zeros(1)}
    classifiers.load_pretrained(built, published)
    assert built.network.denselayer1.norm1.weight.tolist() == [2.0] * 4
    assert built.network.denselayer1.norm1.num_batches_tracked == 0


def test_a_saved_classifier_answers_the_same() -> None:
    built = classifier(classes="abc").eval()
    classifiers.save_classifier(Path("run"), 7, built)
    path = Path("run/checkpoints/epoch_0007.pt")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    loaded = classifiers.load_classifier(path, CPU)
    assert torch.equal(torch.rand(1), expected)  # building drew from a generator of its own
    assert (loaded.name, loaded.classes, loaded.size) == (SMALL, ["a", "b", "c"], 32)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    image = pictures(2, 50, 40)
    assert torch.equal(loaded(image), built(image))


def test_the_best_epoch_is_loaded_of_equals_the_first() -> None:
    run = write_run(Path("run"), {1: 0.25, 2: 0.75, 3: 0.5, 4: 0.75}, [1, 2, 3, 4])
    assert classifiers.best_accuracy(run) == row(2, 0.75)
    assert classifiers.pick_checkpoint(run) == run / "checkpoints" / "epoch_0002.pt"
    classifiers.save_classifier(run, 2, classifier(classes="xyz"))
    assert classifiers.load_classifier(run, CPU).classes == ["x", "y", "z"]
    asked = run / "checkpoints/epoch_0003.pt"
    assert classifiers.pick_checkpoint(asked) == asked
    run_folder.epoch_path(run, 2).unlink()  # an epoch that is not saved does not count
    assert classifiers.pick_checkpoint(run).name == "epoch_0004.pt"


def test_scores_of_later_epochs_are_removed_and_the_file_keeps_its_form() -> None:
    run = write_run(Path("run"), {1: 0.25, 2: 0.75, 3: 0.5}, [])
    classifiers.write_accuracy(run, row(2, 0.125))
    assert classifiers.read_accuracies(run) == [row(1, 0.25), row(2, 0.125)]
    assert classifiers.read_accuracies(Path("nowhere")) == []
    assert (run / "scores.csv").read_text().splitlines() == [
        "epoch,val_loss,top1,top1_low,top1_high,top5,top5_low,top5_high,images",
        "1,1.25,0.25,0.5,0.5,1.0,0.5,0.5,8",
        "2,1.25,0.125,0.5,0.5,1.0,0.5,0.5,8",
    ]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda run: None, r"run is not a classifier's run: it has no classifier\.json"),
        (lambda run: atomic.write_json(run / "recipe.json", {}), r"^run is not a classifier's run"),
        (lambda run: atomic.write_json(run / RECORD, {}), r"^run/classifier\.json is damaged, or of"),
        (lambda run: atomic.write_json(run / RECORD, []), r"^run/classifier\.json is damaged, or of"),
        (lambda run: run.mkdir() or (run / RECORD).write_text("{"), r"^run/classifier\.json is damaged"),
        (lambda run: write_run(run, {}, [1]), r"^run has no saved epoch with a score; train on with: python"),
        (lambda run: write_run(run, {1: 0.5}, [2]), r"^run has no saved epoch with a score"),
        (lambda run: write_run(run, {2: 0.5}, [2]), r"epoch_0002\.pt is not a classifier in the format"),
    ],
)
def test_runs_that_are_none(make: Any, sentence: str) -> None:
    make(Path("run"))
    with pytest.raises(ValueError, match=sentence):
        classifiers.load_classifier(Path("run"), CPU)


@pytest.mark.parametrize("text", ["", "epoch,top1\n1,0.5\n", "\0\0", "name,psnr_db\ngray,20\n"])
def test_damaged_scores_are_one_sentence(text: str) -> None:
    run = write_run(Path("run"), {1: 0.5}, [1])
    (run / "scores.csv").write_text(text)
    with pytest.raises(ValueError, match=r"^run(/scores\.csv is damaged| has no saved epoch with a score)"):
        classifiers.load_classifier(run, CPU)


def test_damaged_checkpoints_are_one_sentence() -> None:
    classifiers.save_classifier(Path("run"), 1, classifier("squeezenet1_1"))
    path = Path("run/checkpoints/epoch_0001.pt")
    whole = atomic.load(path)
    for change in ({"state": {}}, {"network": "resnet81"}, {"classes": ["a"]}, {"size": None}):
        atomic.save(path, {**whole, **change})
        with pytest.raises(ValueError, match=r"epoch_0001\.pt is damaged"):
            classifiers.load_classifier(path, CPU)


def test_a_file_that_is_no_checkpoint() -> None:
    Path("x.pt").write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"^x\.pt is not a checkpoint of this project"):
        classifiers.load_classifier(Path("x.pt"), CPU)


def test_topk_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [3.0, -1.0, 2.0]])
    labels = torch.tensor([1, 2, 0, 1])
    assert topk_correct(logits, labels, 1).tolist() == [True, False, False, False]
    assert topk_correct(logits, labels, 2).tolist() == [True, True, False, False]
    assert topk_correct(logits, labels, 3).tolist() == [True] * 4
    assert topk_correct(logits, labels, 5).tolist() == [True] * 4  # no more can be named than there are


def test_topk_is_torchs_where_nothing_is_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 12, generator=generator)
    labels = torch.randint(0, 12, (200,), generator=generator)
    for k in (1, 5):
        expected = (logits.topk(k).indices == labels[:, None]).any(1)
        assert 10 < expected.sum() < 190
        assert torch.equal(topk_correct(logits, labels, k), expected)


def test_of_equal_logits_the_first_class_counts_as_likelier_and_nan_is_never_right() -> None:
    logits, labels = torch.zeros(4, 4), torch.arange(4)
    for k in range(1, 5):
        assert topk_correct(logits, labels, k).tolist() == [i < k for i in range(4)]
    nan = float("nan")
    logits = torch.tensor([[nan, nan, nan], [nan, 1.0, 0.0], [1.0, nan, 0.0]])
    assert topk_correct(logits, torch.tensor([0, 1, 1]), 1).tolist() == [False, False, False]


def test_label_ids() -> None:
    assert classifiers.label_ids(["b", "a", "b"], ["a", "b"]) == [1, 0, 1]
    with pytest.raises(ValueError, match=r"^no class c is known to the classifier; it knows a b$"):
        classifiers.label_ids(["b", "c", "d"], ["a", "b"])
    for labels in (["", ""], ["a", ""]):
        with pytest.raises(ValueError, match=r"^the pictures have no class folders: "):
            classifiers.label_ids(labels, ["a", "b"])


def items(train: str, val: str) -> dict[str, list[Item]]:
    """Return items of classes of one letter; a space stands for none."""
    return {
        name: [Item(f"{i}", Path(f"{i}.png"), None, letter.strip()) for i, letter in enumerate(letters)]
        for name, letters in (("train", train), ("val", val))
    }


def test_classes_are_found_in_order() -> None:
    assert classifiers.find_classes(items("bacb", "ab"), "set") == ["a", "b", "c"]
    assert classifiers.find_classes(items("bacb", "ab"), "set", ["a", "b", "c"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("train", "val", "sentence"),
    [
        ("  ", " ", "the pictures have no class folders"),
        ("ab", " ", "the pictures have no class folders"),
        ("aaa", "a", "set has one class alone, a: a classifier needs two or more"),
        ("ab", "abz", "class z of set is in the validation pictures alone"),
        ("abd", "a", "the classes of set have changed since this run began, the first is c"),
        ("abcd", "a", "the classes of set have changed since this run began, the first is d"),
    ],
)
def test_classes_that_cannot_be_learned(train: str, val: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + sentence):
        classifiers.find_classes(items(train, val), "set", ["a", "b", "c"])


def test_folders_are_named_like_imagenets_classes() -> None:
    known = ["tench", "great white shark", "crane", "crane"]
    for label, name in (
        ("n01440764_tench", "tench"), ("n01440764 tench", "tench"), ("Great_White_Shark", "great white shark"),
        ("tench", "tench"), ("unheard_of", "unheard_of"),
    ):  # fmt: skip
        assert classifiers.imagenet_name(label, known) == name
    with pytest.raises(UserError, match="class crane: ImageNet has 2 classes of this name"):
        classifiers.imagenet_name("crane", known)
    with pytest.raises(UserError, match="class n01440764: name its folder by the class too"):
        classifiers.imagenet_name("n01440764", known)
