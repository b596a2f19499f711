"""features.py: torchvision's features, frozen for good; weights from a folder or a stubbed download."""

import hashlib
import pickle
import re
import warnings
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from models import GENERATORS, DanbooruFeatures, FrozenFeatures, VGGFeatures
from runtime import weights
from runtime.weights import WEIGHTS, file_hash, find_weights, load_weights, weights_hash, weights_url

ADDRESSES = dict(WEIGHTS)  # before a fixture names stand-ins


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Return uniform noise in [0, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def random_batchnorm(network: nn.Module) -> None:
    """Give every BatchNorm statistics that are not the initial, so that a key mixed up shows."""
    for i, module in enumerate(network.modules()):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean = noise(module.num_features, seed=i) - 0.5
            module.running_var = noise(module.num_features, seed=i + 1) + 0.5
            module.weight.data = noise(module.num_features, seed=i + 2) + 0.5
            module.bias.data = noise(module.num_features, seed=i + 3) - 0.5


@pytest.fixture(scope="module")
def vgg() -> nn.Sequential:
    """Return torchvision's VGG-16 up to features[16], with seeded weights."""
    torch.manual_seed(0)
    with torch.device("meta"):  # the classifier alone is half a gigabyte
        body = torchvision.models.vgg16().features[:17]
    body.to_empty(device="cpu")
    for parameter in body.parameters():
        nn.init.normal_(parameter, 0.0, (2 / max(1, parameter[0].numel())) ** 0.5 / 2)
    return body.eval()


@pytest.fixture(scope="module")
def danbooru() -> DanbooruFeatures:
    torch.manual_seed(0)
    extractor = DanbooruFeatures()
    random_batchnorm(extractor)
    return extractor


@pytest.mark.parametrize("channels", [1, 3])
def test_vgg_is_torchvisions_at_three_places(vgg: nn.Sequential, channels: int) -> None:
    extractor, image = VGGFeatures(), noise(2, channels, 24, 40)
    state = {f"features.{key}": value for key, value in vgg.state_dict().items()}
    extractor.load_published({**state, "classifier.0.weight": torch.zeros(1)})
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x, expected = (image.expand(-1, 3, -1, -1) - mean) / std, []
    for i, layer in enumerate(vgg):
        x = layer(x)
        if i in (3, 8, 15):
            expected.append(x.clone())
    got = extractor(image)
    assert [tuple(f.shape) for f in got] == [(2, 64, 24, 40), (2, 128, 12, 20), (2, 256, 6, 10)]
    for ours, theirs in zip(got, expected, strict=True):
        assert theirs.std() > 0.05
        torch.testing.assert_close(ours, theirs)


def published(extractor: DanbooruFeatures) -> dict[str, Tensor]:
    """Return an extractor's weights in the published layout: a fastai body and head, and the tags."""
    names = {"0.": "1.2.", "1.": "1.4."}  # BatchNorm1d(4096) and Linear(4096, 512)
    head = {names[key[:2]] + key[2:]: value for key, value in extractor.head.state_dict().items()}
    body = {f"0.{key}": value for key, value in extractor.body.state_dict().items()}
    return {**body, **head, "1.6.weight": torch.zeros(512), "1.8.weight": torch.zeros(6000, 512)}


def test_danbooru_is_a_resnet50_with_both_poolings(danbooru: DanbooruFeatures) -> None:
    state, image = published(danbooru), noise(2, 3, 90, 70)
    assert state["1.2.running_mean"].shape == (4096,)
    assert state["1.4.weight"].shape == (512, 4096)
    extractor = DanbooruFeatures()
    extractor.load_published(state)
    resnet = torchvision.models.resnet50()
    random_batchnorm(resnet)
    layers = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")
    for i, layer in enumerate(layers[:-2]):
        prefix = f"0.{i}."
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        getattr(resnet, layer).load_state_dict(part)
    resnet.eval()
    mean = torch.tensor([0.7137, 0.6628, 0.6519]).view(3, 1, 1)
    std = torch.tensor([0.2970, 0.3017, 0.2979]).view(3, 1, 1)
    x = (F.interpolate(image, [360, 360], mode="bilinear", antialias=True) - mean) / std
    with torch.no_grad():
        for layer in layers[:-2]:
            x = getattr(resnet, layer)(x)
        assert x.shape == (2, 2048, 12, 12)
        x = torch.cat([x.flatten(2).max(2).values, x.flatten(2).mean(2)], 1)  # fastai's order: max first
        x = (x - state["1.2.running_mean"]) / (state["1.2.running_var"] + 1e-5).sqrt()
        x = x * state["1.2.weight"] + state["1.2.bias"]
        expected = F.relu(x @ state["1.4.weight"].T + state["1.4.bias"])
        (got,) = extractor(image)
        assert got.shape == (2, DanbooruFeatures.WIDTH)
        assert expected.std() > 0.05
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)
        (gray,) = extractor(image[:, :1])
        torch.testing.assert_close(gray, extractor(image[:, :1].repeat(1, 3, 1, 1))[0])


@pytest.mark.parametrize("missing", ["0.0.weight", "1.2.bias", "1.4.weight"])
def test_incomplete_danbooru_weights_are_refused(danbooru: DanbooruFeatures, missing: str) -> None:
    state = published(danbooru)
    del state[missing]
    with pytest.raises(KeyError, match=re.escape(missing)):
        DanbooruFeatures().load_published(state)


class Small(FrozenFeatures):
    """An extractor of one layer."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (0.5,) * 3, (0.5,) * 3)

    def forward(self, rgb01: Tensor) -> list[Tensor]:
        return [self.body(self.normalise(rgb01))]


@pytest.mark.parametrize("kind", ["small", "vgg", "danbooru"])
def test_extractors_stay_frozen(kind: str, danbooru: DanbooruFeatures) -> None:
    extractor = {"small": Small, "vgg": VGGFeatures, "danbooru": lambda: danbooru}[kind]()
    holder = nn.Sequential(extractor, nn.BatchNorm2d(3)).train()
    assert holder[1].training
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert not {"mean", "std"} & extractor.state_dict().keys()  # constants, not weights
    before = {key: value.clone() for key, value in extractor.state_dict().items()}
    image = noise(1, 3, 32, 32).requires_grad_()
    sum(f.square().mean() for f in extractor(image)).backward()
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in extractor.parameters())
    after = extractor.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_the_extractor_inside_a_generator_is_scripted_as_it_is() -> None:
    torch.manual_seed(0)
    generator = GENERATORS["unet-ext"](1, 3, 4, depth=3).eval()
    random_batchnorm(generator.extractor)
    x = noise(1, 1, 32, 32) * 2 - 1
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = generator(x)
        torch.testing.assert_close(torch.jit.script(generator)(x), expected)
        generator.extractor.head[1].bias.add_(5.0)
        assert not torch.allclose(generator(x), expected)  # what it sees matters


def test_published_files_carry_their_hash() -> None:
    assert set(WEIGHTS) >= {"resnet18", "resnet34", "vgg16", "alexnet", "danbooru"}
    for url in WEIGHTS.values():
        assert re.fullmatch(r"https://[\w./-]+(-[0-9a-f]{8}\.pth|#[0-9a-f]{64})", url)


def test_a_name_without_hash_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(WEIGHTS, "vgg16", "https://example.org/vgg16.pth")
    (tmp_path / "vgg16.pth").write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"^vgg16\.pth carries no hash in its name$"):
        load_weights("vgg16", tmp_path)


@pytest.fixture
def published_file(monkeypatch: pytest.MonkeyPatch) -> tuple[str, bytes]:
    """Let resnet18 be published as a small file; returns its name and content."""
    torch.save({"weight": torch.arange(3.0)}, "small.pth")
    content = Path("small.pth").read_bytes()
    Path("small.pth").unlink()
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(WEIGHTS, "resnet18", f"https://example.org/models/{name}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(Path("hub").absolute()))
    return name, content


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let every download fail; returns the calls."""
    calls = []

    def fail(*args: Any, **_: Any) -> None:
        calls.append(args)
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return calls


PLACE = r"it is published at https://example\.org/models/{}"
REMEDY = "put it into a folder and name that with --weights DIR"


def sentence(start: str, name: str) -> str:
    return f"^{start}: {PLACE.format(re.escape(name))}; {REMEDY}$"


def test_weights_in_a_folder_are_read_without_a_download(
    published_file: tuple[str, bytes], no_network: list[Any], tmp_path: Path
) -> None:
    (tmp_path / published_file[0]).write_bytes(published_file[1])
    assert load_weights("resnet18", tmp_path)["weight"].tolist() == [0, 1, 2]
    assert no_network == []


def test_weights_in_the_cache_are_read_without_a_download(
    published_file: tuple[str, bytes], no_network: list[Any]
) -> None:
    path = Path("hub/checkpoints", published_file[0])
    path.parent.mkdir(parents=True)
    path.write_bytes(published_file[1])
    assert load_weights("resnet18", None)["weight"].tolist() == [0, 1, 2]
    assert no_network == []


def test_weights_are_downloaded_once_into_the_cache(
    published_file: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content = published_file
    calls = []

    def download(url: str, path: str, hash_prefix: str) -> None:
        calls.append((url, Path(path), hash_prefix))
        Path(path).write_bytes(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert load_weights("resnet18", None)["weight"].tolist() == [0, 1, 2]
    place = Path("hub/checkpoints", name).absolute()
    assert calls == [(f"https://example.org/models/{name}", place, name[9:17])]


def test_a_folder_without_the_file(
    published_file: tuple[str, bytes], no_network: list[Any], tmp_path: Path
) -> None:
    name = published_file[0]
    with pytest.raises(ValueError, match=sentence(f"no {name} in {re.escape(str(tmp_path))}", name)):
        load_weights("resnet18", tmp_path)
    assert no_network == []  # asked for a folder, nothing is fetched behind the user's back


def test_nothing_is_downloaded_where_it_must_not_be(
    published_file: tuple[str, bytes], no_network: list[Any]
) -> None:
    name = published_file[0]
    start = f"no {re.escape(name)} in {re.escape(str(Path('hub/checkpoints').absolute()))}"
    for look in (load_weights, find_weights):
        with pytest.raises(ValueError, match=sentence(start, name)):
            look("resnet18", None, download=False)
    with pytest.raises(ValueError, match=sentence(start, name)):
        weights_hash("resnet18", None)
    assert no_network == []
    Path("hub/checkpoints").mkdir(parents=True)
    Path("hub/checkpoints", name).write_bytes(published_file[1])
    assert load_weights("resnet18", None, download=False)["weight"].tolist() == [0, 1, 2]


def test_the_hash_is_of_the_file_that_is_read(published_file: tuple[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / published_file[0]
    path.write_bytes(published_file[1])
    assert find_weights("resnet18", tmp_path) == path
    assert weights_hash("resnet18", tmp_path) == hashlib.sha256(published_file[1]).hexdigest()
    big = tmp_path / "big"
    big.write_bytes(bytes(2**20 + 1))  # more than is read at once
    assert file_hash(big) == hashlib.sha256(bytes(2**20 + 1)).hexdigest()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_another_file_of_that_name(
    published_file: tuple[str, bytes], no_network: list[Any], tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / published_file[0]
    path.write_bytes(content)
    start = f"{re.escape(str(path))} is not the published file, or it is damaged"
    with pytest.raises(ValueError, match=sentence(start, path.name)):
        load_weights("resnet18", tmp_path)


@pytest.mark.parametrize(
    "error", [URLError("no route to host"), RuntimeError("invalid hash value"), TimeoutError("timed out")]
)
def test_no_network(
    published_file: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    name = published_file[0]
    start = rf"{re.escape(name)} is needed and could not be downloaded \({re.escape(str(error))}\)"
    with pytest.raises(ValueError, match=sentence(start, name)):
        load_weights("resnet18", None)
    assert not list(Path("hub").rglob("*.pth"))


def test_no_code_runs_from_a_weight_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.mkdir, (tmp_path / "exploded",)

    torch.save({"weight": Bomb()}, tmp_path / "bomb.pth")
    digest = hashlib.sha256((tmp_path / "bomb.pth").read_bytes()).hexdigest()
    (tmp_path / "bomb.pth").rename(tmp_path / f"bomb-{digest[:8]}.pth")
    monkeypatch.setitem(WEIGHTS, "vgg16", f"https://example.org/bomb-{digest[:8]}.pth")
    with pytest.raises(pickle.UnpicklingError, match=r"Weights only load failed"):
        load_weights("vgg16", tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_stand_ins_have_the_published_layout(weights_folder: Path) -> None:
    for name, build in (("vgg16", VGGFeatures), ("danbooru", DanbooruFeatures)):
        build().load_published(load_weights(name, weights_folder))
    for name, count in (("vgg16", 13), ("alexnet", 5)):  # convolutions
        state = load_weights(name, weights_folder)
        with torch.device("meta"):
            theirs = torchvision.models.get_model(name).features.state_dict()
        assert {key: value.shape for key, value in state.items()} == {
            f"features.{key}": value.shape for key, value in theirs.items()
        }
        assert len(state) == 2 * count
    assert weights.WEIGHTS["vgg16"].startswith("https://example.org/")


def test_addresses_are_torchvisions_own() -> None:
    for name in ADDRESSES.keys() & set(torchvision.models.list_models()):
        assert ADDRESSES[name] == torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    assert ADDRESSES.keys() >= {"resnet18", "resnet34", "vgg16", "alexnet"}


def test_other_networks_have_torchvisions_best_weights() -> None:
    for name in ("resnet50", "vgg11_bn"):
        assert name not in WEIGHTS
        assert weights_url(name) == torchvision.models.get_model_weights(name).DEFAULT.url
    with pytest.raises(ValueError, match=r"^no published weights are known for resnet1$"):
        weights_url("resnet1")


def test_other_networks_weights_are_checked_too(tmp_path: Path) -> None:
    file = weights_url("resnet50").rsplit("/", 1)[1]
    with pytest.raises(ValueError, match=rf"^no {file} in .*: it is published at https://.*{file}; put it"):
        load_weights("resnet50", tmp_path, "leave out --pretrained")
    (tmp_path / file).write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"is not the published file.*do without: leave out --pretrained$"):
        load_weights("resnet50", tmp_path, "leave out --pretrained")


def test_files_in_the_format_of_2019_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"features.0.weight": torch.rand(3)}  # as VGG-16 and the Danbooru network were published
    torch.save(state, tmp_path / "x", _use_new_zipfile_serialization=False)
    name = f"vgg16-{hashlib.sha256((tmp_path / 'x').read_bytes()).hexdigest()[:8]}.pth"
    (tmp_path / "x").rename(tmp_path / name)
    monkeypatch.setitem(WEIGHTS, "vgg16", f"https://example.org/{name}")
    torch.testing.assert_close(load_weights("vgg16", tmp_path), state)
