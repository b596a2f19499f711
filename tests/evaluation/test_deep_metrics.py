"""LPIPS, FID and KID as in torchmetrics and clean-fid, on stand-ins for their networks; what is missing."""

import functools
import hashlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from cleanfid import fid as clean_fid
from cleanfid.features import build_feature_extractor
from cleanfid.inception_torchscript import InceptionV3W
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

from config import METRICS, ROOT
from data import ImageSet
from evaluation import deep_metrics
from evaluation.classifier import Classifier, build_classifier, save_classifier
from evaluation.deep_metrics import (
    LPIPS,
    Inception,
    Lite0,
    MetricSet,
    TopK,
    fid,
    frechet,
    frechet_lite0,
    kid,
    load_metrics,
    moments,
)  # fmt: skip
from evaluation.metrics import MIN_SIZE, PER_IMAGE, Pictures
from imaging.files import read_image, write_image
from imaging.pixels import resize
from models import LiteClassifier
from runtime import weights

CPU = torch.device("cpu")
NETS = ("alex", pytest.param("vgg", marks=pytest.mark.slow))
SMALL = {name for name in PER_IMAGE if name != "ms_ssim"}  # what images of 32 px have without a network


def noise(seed: int, n: int, height: int, width: int) -> Tensor:
    """Return (N, 3, H, W) uint8."""
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.manual_seed(seed))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put whole stand-ins for torchvision's AlexNet and VGG-16 where torchvision and torchmetrics look."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "checkpoints").mkdir()
    rng = torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "get_dir", lambda: str(folder))
        for name in ("alexnet", "vgg16"):
            with torch.device("meta"):
                shapes = {k: v.shape for k, v in torchvision.models.get_model(name).state_dict().items()}
            used = {key: shape.numel() for key, shape in shapes.items() if key.startswith("features")}
            numbers = 0.05 * torch.randn(max(used.values()), generator=rng)  # shared: stored once
            state = {
                key: numbers[: used[key]].view(shape) if key in used else torch.zeros(1).expand(shape)
                for key, shape in shapes.items()
            }
            path = folder / "checkpoints" / weights.file_name(weights.WEIGHTS[name][0])
            torch.save(state, path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            patch.setitem(weights.WEIGHTS, name, (f"https://example.org/{path.name}#{digest}",))
        yield


@pytest.fixture(scope="module")
def lpips(hub: None) -> Callable[[str], LPIPS]:
    """Return a function that loads LPIPS of a network, once."""
    return functools.cache(lambda net: LPIPS(net, None, CPU, download=False))


@pytest.fixture
def torchmetrics_lpips(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare torchmetrics the drawing of weights that it then reads from the file."""
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda tensor, **_: tensor)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloaded"))


@pytest.mark.usefixtures("torchmetrics_lpips")
@pytest.mark.parametrize("net", NETS)
def test_lpips_matches_torchmetrics(net: str, lpips: Callable[[str], LPIPS]) -> None:
    target, output = noise(0, 3, 45, 38), noise(1, 3, 45, 38)
    output[1] = target[1]  # equal
    output[2] = (0.9 * target[2] + 0.1 * output[2]).to(torch.uint8)  # near
    pair = (image / 127.5 - 1 for image in (output, target))
    expected = learned_perceptual_image_patch_similarity(*pair, net_type=net, reduction="none")
    found = lpips(net)(Pictures(target), Pictures(output))
    assert (found.shape, found.dtype) == ((3,), torch.float64)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert found[1] == 0 < found[2] < found[0]


@pytest.mark.parametrize("net", NETS)
def test_lpips_works_down_to_the_least_size(net: str, lpips: Callable[[str], LPIPS]) -> None:
    side = deep_metrics.DEEP_MIN_SIZE[f"lpips_{net}"]
    pair = [Pictures(noise(seed, 1, side, side)) for seed in range(2)]
    assert 0 < lpips(net)(*pair).item() < 10
    with pytest.raises(RuntimeError, match="too small"):
        lpips(net)(*(Pictures(noise(seed, 1, side - 1, 64)) for seed in range(2)))


@pytest.mark.slow
def test_what_one_network_has_seen_is_not_taken_for_the_others(lpips: Callable[[str], LPIPS]) -> None:
    target, output = Pictures(noise(0, 1, 32, 32)), Pictures(noise(1, 1, 32, 32))
    first, second = (lpips(net)(target, output).item() for net in ("alex", "vgg"))
    assert first != second
    assert [lpips(net)(target, output).item() for net in ("alex", "vgg")] == [first, second]


class Few(nn.Module):
    """Twelve features: what a few random filters answer on average, as (N, 12)."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.randn(12, 3, 9, 9, generator=torch.manual_seed(0))
        self.register_buffer("weights", weights / weights.flatten(1).norm(dim=1).view(-1, 1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, 3, 299, 299) in [0, 255] to features."""
        return nn.functional.conv2d(image / 255, self.weights, stride=8).abs().mean((2, 3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two folders of 16 pictures of one name each; the second's are of weaker colours."""
    root = tmp_path_factory.mktemp("folders")
    for i in range(16):
        small = noise(i, 1, 5, 6)[0].permute(1, 2, 0).contiguous().numpy()
        picture = resize(small, 44, 60).astype(float)
        weaker = 0.6 * picture + 0.4 * picture.mean(2, keepdims=True)
        for name, image in (("a", picture), ("b", weaker)):
            write_image(root / name / f"{i:02d}.png", image.astype(np.uint8))
    return root / "a", root / "b"


def few() -> Inception:
    """Return Inception's reading of files with another, smaller network."""
    inception = Inception.__new__(Inception)
    inception.network, inception.device, inception.dimensions = Few(), CPU, 12
    return inception


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def test_fid_and_kid_match_clean_fid(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_metrics, "FILES", 7)  # of 16
    options = {"num_workers": 0, "device": CPU, "verbose": False}
    names = [str(folder) for folder in folders]
    model = Few()
    expected = clean_fid.compare_folders(*names, model, "clean", **options)
    targets, outputs = (few().features(files(folder)) for folder in folders)
    assert fid(targets, outputs).mean == pytest.approx(expected, rel=1e-6)
    assert fid(outputs, targets).mean == pytest.approx(expected, rel=1e-6)
    assert expected > 1e-3
    reference = [clean_fid.get_folder_features(name, model, **options) for name in names]
    np.random.seed(0)  # noqa: NPY002
    expected = clean_fid.kernel_distance(*reference)
    assert kid(targets, outputs).mean == pytest.approx(expected, rel=1e-4)
    assert expected > 0


def test_fid_of_a_folder_with_itself_is_nothing(folders: tuple[Path, Path]) -> None:
    found = few().features(files(folders[0]))
    assert fid(found, found).mean == pytest.approx(0, abs=1e-6)
    assert fid(found, found + 2.0).mean == pytest.approx(4.0 * 12, rel=1e-5)  # squared distance of the means
    assert abs(kid(found, found).mean) < kid(found, few().features(files(folders[1]))).mean


@pytest.mark.parametrize("count", [40, 200])  # fewer and more than the features
def test_frechet_distance_is_clean_fids(count: int) -> None:
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(60, 60))
    targets, outputs = (rng.normal(size=(count, 60)) @ mixed + shift for shift in (0, 0.3))
    expected = clean_fid.frechet_distance(*moments(targets), *moments(outputs))
    assert frechet(targets, outputs) == pytest.approx(expected, rel=1e-4)
    assert frechet(targets, targets) == pytest.approx(0, abs=1e-6)
    assert frechet(targets, targets + 2.0) == pytest.approx(4.0 * 60)


def test_frechet_distance_has_an_interval() -> None:
    rng = np.random.default_rng(1)
    targets, outputs = (rng.normal(shift, 1, (300, 8)).astype(np.float32) for shift in (0, 0.5))
    score = frechet_lite0(targets, outputs)
    assert score == frechet_lite0(targets, outputs)  # the same draws every time
    assert score.low < score.mean < score.high
    again = [frechet(*(rng.normal(shift, 1, (300, 8)) for shift in (0, 0.5))) for _ in range(40)]
    assert score.se == pytest.approx(np.std(again), rel=0.5)


def test_lite0_sees_files_at_224_px(weights_folder: Path, folders: tuple[Path, Path]) -> None:
    paths = files(folders[0])[:2]
    found = Lite0(weights_folder, CPU, download=False).features(paths)
    network = LiteClassifier()
    network.load_published(weights.load_weights("lite0", weights_folder))
    images = [torch.from_numpy(read_image(path)).permute(2, 0, 1)[None].float() for path in paths]
    large = [F.interpolate(image, (224, 224), mode="bicubic", antialias=True).clamp(0, 255) for image in images]
    with torch.inference_mode():
        expected = network.eval().features((torch.cat(large) - 127) / 128)
    assert found.shape == (2, 1280)
    torch.testing.assert_close(torch.from_numpy(found), expected)


def test_features_without_a_distance_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> float:
        raise ValueError("Imaginary component 0.1")

    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    monkeypatch.setattr(clean_fid, "frechet_distance", refuse)
    assert np.isnan(fid(rows, rows).mean)
    monkeypatch.setattr(clean_fid, "frechet_distance", lambda *_: np.nan)
    assert np.isnan(fid(rows, rows).mean)
    monkeypatch.setattr(clean_fid, "frechet_distance", lambda *_: -1e-9)
    assert fid(rows, rows).mean == 0.0


def test_kid_is_always_the_same_and_leaves_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    few_draws = functools.partial(clean_fid.kernel_distance, num_subsets=3, max_subset_size=20)
    monkeypatch.setattr(clean_fid, "kernel_distance", few_draws)
    rng = np.random.default_rng(0)
    targets, outputs = (rng.normal(shift, 1, (60, 4)).astype(np.float32) for shift in (0, 0.1))
    assert few_draws(targets, outputs) != few_draws(targets, outputs)  # by itself it is not
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first = kid(targets, outputs).mean
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    np.random.seed(8)  # noqa: NPY002
    assert kid(targets, outputs).mean == first


@pytest.mark.parametrize("n", [2, 129])
def test_moments_are_those_of_numpy(n: int) -> None:
    rows = np.random.default_rng(0).normal(5, 2, (n, 6)).astype(np.float32)
    mean, covariance = deep_metrics.moments(rows)
    rows = rows.astype(np.float64)
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(rows, rowvar=False), rtol=1e-6, atol=1e-9)


class Layers(nn.Module):
    """Stands in for what is inside Inception's file."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, 299, 299) in [-1, 1] to (N, 2048)."""
        return self.pool(x).flatten(1).repeat(1, 43)[:, :2048]  # (N, 48) over and over


class Program(nn.Module):
    """Stands in for Inception's file."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture
def inception_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a stand-in for Inception's file; weights.WEIGHTS names it by its hash."""
    path = tmp_path / "weights" / "inception-2015-12-05.pt"
    path.parent.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(Program()).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(weights.WEIGHTS, "inception", (f"https://example.org/{path.name}#{digest}",))
    return path.parent


def test_inception_sees_what_clean_fid_sees(
    inception_folder: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = files(folders[0])[:3]
    found = Inception(inception_folder, CPU, download=False).features(paths)
    assert found.shape == (3, 2048)
    loaded = InceptionV3W(str(inception_folder), download=False)
    monkeypatch.setattr("cleanfid.features.InceptionV3W", lambda *_, **__: loaded)
    reference = build_feature_extractor("clean", CPU, use_dataparallel=False)
    expected = clean_fid.get_files_features([*map(str, paths)], reference, 0, 32, CPU, verbose=False)
    np.testing.assert_array_equal(found, expected)


def test_topk_is_whether_the_class_is_among_the_first_k() -> None:
    class Reader(nn.Module):
        """Reads its six logits off the first pixels of a picture's first row."""

        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0, 0, :6]

    classifier = Classifier("reader", Reader(), list("abcdef"), 6)
    rgb = torch.zeros(3, 3, 6, 6, dtype=torch.uint8)
    rgb[:, 0, 0] = torch.tensor([[90, 80, 70, 60, 50, 40], [40, 50, 60, 70, 80, 90], [0, 9, 8, 7, 6, 5]])
    target, output = Pictures(255 - rgb, torch.tensor([0, 1, 0])), Pictures(rgb)
    top1, top5 = TopK(classifier, 1), TopK(classifier, 5)
    assert top1(target, output).tolist() == [1.0, 0.0, 0.0]
    assert top5(target, output).tolist() == [1.0, 1.0, 0.0]
    assert TopK(classifier, 1)(target, target).tolist() == [0.0, 0.0, 1.0]
    assert top1(target, output).dtype == torch.float64


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
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


def load(size: int = 32, count: int = 4, labels: str = "ab", **given: Any) -> MetricSet:
    return load_metrics(image_set(count, labels), size, CPU, **given)


def file_of(metric: str) -> str:
    return weights.file_name(weights.WEIGHTS[deep_metrics.NETWORKS[metric]][0])


def test_every_metric_is_there_or_says_why_not(asked: list[str]) -> None:
    found = load(count=300)
    assert set(found.per_image) == SMALL
    assert set(found.missing) == set(METRICS) - SMALL
    assert all(reason.startswith("unavailable: ") for reason in found.missing.values())
    for metric in deep_metrics.NETWORKS:  # the remedies: put the file there, or have it downloaded
        for word in (f"no {file_of(metric)} in ", "--weights DIR", f"--metric {metric}"):
            assert word in found.missing[metric]
    assert "--classifier" in found.missing["top1"] == found.missing["top5"]
    assert (found.labels, found.extractors, found.weights, found.notes) == (None, {}, {}, [])
    assert asked == []


@pytest.mark.usefixtures("asked")
def test_a_metric_that_nothing_computes_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "niqe", "lower")
    with pytest.raises(NotImplementedError, match="niqe is in config"):
        load()


@pytest.mark.parametrize("metric", deep_metrics.NETWORKS)
def test_only_what_is_required_is_downloaded(metric: str, asked: list[str]) -> None:
    with pytest.raises(ValueError, match=f"^{metric} unavailable: .*no route to host") as refused:
        load(count=300, required=[metric, "psnr_db"])
    assert asked == [weights.file_name(url) for url in weights.WEIGHTS[deep_metrics.NETWORKS[metric]]]
    assert "--metric" not in str(refused.value)  # as that is what was tried


def test_a_folder_of_weights_is_used_instead(asked: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^fid unavailable: no {file_of('fid')} in {tmp_path}"):
        load(count=300, required=["fid"], folder=tmp_path)
    assert asked == []


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(("metric", "least"), (MIN_SIZE | deep_metrics.DEEP_MIN_SIZE).items())
def test_sizes_at_and_below_the_limit(metric: str, least: int) -> None:
    assert f"at least {least} are needed" in load(least - 1).missing[metric]
    if metric in MIN_SIZE:  # the others need weights
        pictures = [Pictures(noise(seed, 1, least, least)) for seed in range(2)]
        assert torch.isfinite(load(least).per_image[metric](*pictures)).all()


class FakeInception:
    """Takes the place of a network that is 90 MB large."""

    dimensions = 2048

    def __init__(self, folder: Path | None, device: torch.device, download: bool) -> None:
        self.given = (folder, device, download)


@pytest.fixture
def inception(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    for metric, (_, distance) in deep_metrics.DISTANCES.items():
        monkeypatch.setitem(deep_metrics.DISTANCES, metric, (FakeInception, distance))
    monkeypatch.setattr(deep_metrics, "find_weights", lambda name, *_, **__: name)
    monkeypatch.setattr(deep_metrics, "file_hash", lambda name: f"hash of {name}")


@pytest.mark.usefixtures("inception")
@pytest.mark.parametrize(("metric", "fewest"), deep_metrics.MIN_IMAGES.items())
def test_numbers_of_images_at_and_below_the_limit(metric: str, fewest: int) -> None:
    found = load(count=fewest)
    assert metric in found.per_folder
    assert isinstance(found.extractors[deep_metrics.NETWORKS[metric]], FakeInception)
    assert found.weights == {network: f"hash of {network}" for network in found.extractors}
    few = load(count=fewest - 1)
    assert metric not in few.per_folder
    assert f"{fewest - 1} test images, at least {fewest} are needed" in few.missing[metric]


@pytest.mark.usefixtures("inception")
def test_fid_of_few_images_is_noted() -> None:
    found = load(count=300)
    assert found.per_folder == {"fid": fid, "kid": kid, "frechet_lite0": frechet_lite0}
    for metric, note in zip(("fid", "frechet_lite0"), sorted(found.notes), strict=True):
        assert f"{metric} of 300 images is biased upwards" in note
        assert "2,048" in note
    assert load(count=2048).notes == []


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """Return a checkpoint of a tiny classifier of a, b and c."""
    save_classifier(tmp_path / "classifier", 3, build_classifier("squeezenet1_1", ["a", "b", "c"], 32))
    return tmp_path / "classifier/checkpoints/epoch_0003.pt"


@pytest.mark.usefixtures("asked")
def test_with_a_classifier_the_ground_truth_is_scored_too(classifier: Path) -> None:
    found = load(count=5, labels="cab", classifier=classifier)
    assert found.labels is not None
    assert found.labels.tolist() == [2, 0, 1, 2, 0]  # among its own classes, not the images'
    assert set(found.of_truth) == {"top1", "top5"}
    assert set(found.per_image) == SMALL | {"top1", "top5"}
    assert found.weights == {"classifier": hashlib.sha256(classifier.read_bytes()).hexdigest()}
    assert not {"top1", "top5"} & set(found.missing)
    assert not found.per_image["top1"].classifier.training


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [("ad", "no class d is known to the classifier; it knows a b c"), ("", "no class folders")],
)
def test_images_that_the_classifier_cannot_know(labels: str, sentence: str, classifier: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        load(labels=labels, classifier=classifier)


WEIGHTS = dict(weights.WEIGHTS)  # before a stand-in replaces one
PUBLISHED = {"alex": (0.7219, 0.1376), "vgg": (0.5686, 0.4217)}  # ex_ref.png against ex_p0.png and ex_p1.png


@pytest.mark.slow
@pytest.mark.parametrize(("net", "expected"), PUBLISHED.items())
def test_lpips_of_its_authors_pictures(
    net: str, expected: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Needs runs/weights (train.py --fetch-weights) and the pictures imgs/ex_*.png of PerceptualSimilarity."""
    folder, pictures = ROOT / "runs" / "weights", ROOT / "runs" / "lpips"
    if not (pictures.is_dir() and folder.is_dir()):
        pytest.skip(f"needs {pictures} and {folder}")
    monkeypatch.setattr(weights, "WEIGHTS", WEIGHTS)
    metric = LPIPS(net, folder, CPU, download=False)
    arrays = [read_image(pictures / f"ex_{name}.png") for name in ("ref", "p0", "p1")]
    truth, *others = (Pictures(torch.from_numpy(array).permute(2, 0, 1)[None]) for array in arrays)
    with torch.inference_mode():
        found = [metric(truth, other).item() for other in others]
    assert found == pytest.approx(expected, abs=5e-5)
