"""judges.py: which metrics there are, why the others are not, and what may be downloaded."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from config import METRICS
from data import ImageSet
from evaluation import deep_metrics
from evaluation.classifier import build_classifier, save_classifier
from evaluation.deep_metrics import FEWEST, NEEDS_CLASSIFIER, Judges, open_judges
from evaluation.metrics import MIN_SIZE, PER_IMAGE, Pictures
from runtime import weights

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
SMALL = {name for name in PER_IMAGE if name != "ms_ssim"}  # what pictures of 32 px have without a network


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Note what would be downloaded, and have nothing in torch.hub's cache."""
    asked: list[str] = []

    def refuse(url: str, *_: Any, **__: Any) -> None:
        asked.append(url.rsplit("/", 1)[1].split("#")[0])
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return asked


def image_set(count: int = 4, labels: str = "ab") -> ImageSet:
    """Return a split of nothing but names and labels."""
    names = [labels[i % len(labels)] if labels else "" for i in range(count)]
    nothing = np.zeros(0, np.uint8), np.zeros((0, 3), np.int64)
    return ImageSet([f"p{i}" for i in range(count)], names, *nothing, 3, [], 0, "key")


def judge(
    size: int = 32, asked: tuple[str, ...] = (), images: ImageSet | None = None, **given: Any
) -> Judges:
    options = {"classifier": None, "weights": None, **given}
    return open_judges(list(asked), images or image_set(), size, device=CPU, **options)


def test_every_metric_is_there_or_says_why_not(no_network: list[str]) -> None:
    found = judge(images=image_set(300))
    assert set(found.per_image) == SMALL
    assert set(found.missing) == set(METRICS) - SMALL
    assert all(reason.startswith("unavailable: ") for reason in found.missing.values())
    for metric, network in deep_metrics.WEIGHTS.items():
        url = weights.WEIGHTS[network].partition("#")[0]
        file = url.rsplit("/", 1)[1]
        assert found.missing[metric].startswith(f"unavailable: no {file} in ")
        assert f"published at {url}" in found.missing[metric]
        assert "--weights DIR" in found.missing[metric]  # the remedies: put it there, or have it downloaded
        assert found.missing[metric].endswith(f"; or have it downloaded: --metric {metric}")
    assert (found.missing["top1"], found.missing["top5"]) == (NEEDS_CLASSIFIER, NEEDS_CLASSIFIER)
    assert (found.labels, found.inception, found.hashes, found.notes) == (None, None, {}, [])
    assert no_network == []  # nobody asked


@pytest.mark.parametrize("metric", deep_metrics.WEIGHTS)
def test_only_what_is_asked_for_is_downloaded(metric: str, no_network: list[str]) -> None:
    found = judge(asked=(metric, "psnr_db"), images=image_set(300))
    url = weights.WEIGHTS[deep_metrics.WEIGHTS[metric]].partition("#")[0]
    assert no_network == [url.rsplit("/", 1)[1]]
    assert "could not be downloaded (no route to host)" in found.missing[metric]
    assert "--metric" not in found.missing[metric]  # as that is what was tried
    assert set(found.per_image) == SMALL  # the others are computed as before


def test_a_folder_of_weights_is_taken_instead(no_network: list[str], tmp_path: Path) -> None:
    tmp_path.joinpath("weights").mkdir()
    found = judge(asked=("fid",), images=image_set(300), weights=tmp_path / "weights")
    assert found.missing["fid"].startswith(
        f"unavailable: no inception-2015-12-05.pt in {tmp_path / 'weights'}"
    )
    assert no_network == []


@pytest.fixture
def quick_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare networks the drawing of weights that are then read from a file."""
    for name in ("normal_", "kaiming_normal_", "kaiming_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


@pytest.mark.usefixtures("quick_networks")
def test_lpips_with_weights(weights_folder: Path, no_network: list[str]) -> None:
    found = judge(weights=weights_folder)
    assert set(found.per_image) == SMALL | {"lpips_alex", "lpips_vgg"}
    assert found.hashes == {
        name: hashlib.sha256(next(weights_folder.glob(f"{name}-*.pth")).read_bytes()).hexdigest()
        for name in ("alexnet", "vgg16")
    }
    pictures = Pictures(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    for metric in ("lpips_alex", "lpips_vgg"):
        assert found.per_image[metric](pictures, pictures).tolist() == [0.0, 0.0]
    assert no_network == []


@pytest.mark.usefixtures("quick_networks")
@pytest.mark.parametrize(
    ("metric", "least"), [*MIN_SIZE.items(), *deep_metrics.MIN_SIZE.items()], ids=lambda value: str(value)
)
def test_sizes_at_and_below_the_limit(metric: str, least: int, weights_folder: Path) -> None:
    found = judge(least, weights=weights_folder if metric.startswith("lpips") else None)
    pictures = [Pictures(torch.randint(0, 256, (1, 3, least, least), dtype=torch.uint8)) for _ in range(2)]
    assert torch.isfinite(found.per_image[metric](*pictures)).all()
    assert (
        judge(least - 1).missing[metric]
        == f"unavailable: pictures of {least - 1} px, at least {least} are needed"
    )


class FakeInception:
    """Takes the place of a network that is 90 MB large."""

    def __init__(self, folder: Path | None, device: torch.device, download: bool) -> None:
        self.given = (folder, device, download)


@pytest.fixture
def inception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_metrics, "Inception", FakeInception)
    monkeypatch.setattr(weights, "weights_hash", lambda name, folder: f"hash of {name}")


@pytest.mark.usefixtures("inception")
@pytest.mark.parametrize(("metric", "fewest"), FEWEST.items())
def test_numbers_of_images_at_and_below_the_limit(metric: str, fewest: int) -> None:
    found = judge(images=image_set(fewest))
    assert metric in found.per_folder
    assert found.hashes == {"inception": "hash of inception"}
    few = judge(images=image_set(fewest - 1))
    assert metric not in few.per_folder
    assert few.missing[metric] == (
        f"unavailable: {fewest - 1} test images, at least {fewest} are needed; test on more"
    )


@pytest.mark.usefixtures("inception")
def test_fid_and_kid_share_a_network_and_few_images_are_noted() -> None:
    found = judge(images=image_set(300))
    assert list(found.per_folder) == ["fid", "kid"]
    assert isinstance(found.per_folder["fid"], deep_metrics.FID)
    assert found.per_folder["kid"] is deep_metrics.kid
    assert isinstance(found.inception, FakeInception)
    (note,) = found.notes
    assert note.startswith("fid of 300 images is biased upwards: compare it with fid of as many images only")
    assert "2,048" in note
    assert judge(images=image_set(2048)).notes == []


@pytest.mark.usefixtures("inception")
def test_every_evaluation_has_a_truth_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (judge(images=image_set(300)).per_folder["fid"] for _ in range(2))
    asked: list[int] = []
    moments = deep_metrics.moments
    monkeypatch.setattr(deep_metrics, "moments", lambda rows: asked.append(id(rows)) or moments(rows))
    truth, others = np.float32(RNG.normal(size=(20, 3))), np.float32(RNG.normal(size=(2, 20, 3)))
    for output in others:
        assert first(truth, output) > 0
    assert len(asked) == 3
    assert asked.count(id(truth)) == 1
    assert second(others[0], others[0]) == pytest.approx(0, abs=1e-6)


@pytest.mark.usefixtures("inception")
def test_features_without_a_distance_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> float:
        raise ValueError("Imaginary component 0.1")

    monkeypatch.setattr(deep_metrics.clean_fid, "frechet_distance", refuse)
    rows = np.float32(RNG.normal(size=(20, 3)))
    sentence = judge(images=image_set(300)).per_folder["fid"](rows, rows)
    assert str(sentence).startswith("unavailable: ")
    assert "Imaginary component 0.1" in str(sentence)


def test_judges_know_where_they_compute() -> None:
    assert judge().device == CPU
    assert open_judges([], image_set(), 32, None, None, torch.device("meta")).device == torch.device("meta")


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """Return a checkpoint of a tiny classifier of a, b and c."""
    torch.manual_seed(0)
    made = build_classifier("squeezenet1_1", ["a", "b", "c"], 32)
    save_classifier(tmp_path / "classifier", 3, made)
    return tmp_path / "classifier/checkpoints/epoch_0003.pt"


def test_a_classifier_judges_the_truth_too(classifier: Path) -> None:
    found = judge(classifier=classifier, images=image_set(5, "cab"))
    assert found.labels is not None
    assert found.labels.tolist() == [2, 0, 1, 2, 0]  # places among its own classes, not the pictures'
    assert set(found.of_truth) == {"top1", "top5"}
    assert set(found.per_image) == SMALL | {"top1", "top5"}
    assert found.hashes == {"classifier": hashlib.sha256(classifier.read_bytes()).hexdigest()}
    assert not {"top1", "top5"} & set(found.missing)
    network = found.per_image["top1"].classifier
    assert isinstance(network, nn.Module)
    assert not network.training


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("ad", "no class d is known to the classifier; it knows a b c"),
        ("", "the pictures have no class folders"),
    ],
)
def test_pictures_that_the_classifier_cannot_know(labels: str, sentence: str, classifier: Path) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        judge(classifier=classifier, images=image_set(4, labels))


def test_a_classifier_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone is not a classifier's run"):
        judge(classifier=tmp_path / "gone")
