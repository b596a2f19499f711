"""Weight files: from a folder, the cache or a stubbed download; any but the published file is refused."""

import hashlib
import pickle
import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision

from config import UserError
from runtime.weights import WEIGHTS, file_hash, find_weights, load_weights, weights_hash, weights_url

ADDRESSES = dict(WEIGHTS)  # before a fixture names stand-ins


def test_published_files_carry_their_hash() -> None:
    assert set(WEIGHTS) >= {"resnet18", "resnet34", "vgg16", "alexnet", "danbooru"}
    for url in WEIGHTS.values():
        assert re.fullmatch(r"https://[\w./-]+(-[0-9a-f]{8}\.pth|#[0-9a-f]{64})", url)


def test_a_name_without_hash_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(WEIGHTS, "vgg16", "https://example.org/vgg16.pth")
    (tmp_path / "vgg16.pth").write_bytes(b"anything")
    with pytest.raises(ValueError, match="carries no hash"):
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


def sentence(start: str, name: str) -> str:
    """Return the pattern of an error that says where a file is published and what to do with it."""
    return rf"^{re.escape(start)}.*: .*https://example\.org/models/{re.escape(name)}.* --weights DIR"


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
    with pytest.raises(UserError, match=sentence(f"no {name} in {tmp_path}", name)):
        load_weights("resnet18", tmp_path)
    assert no_network == []  # asked for a folder, nothing is fetched behind the user's back


def test_nothing_is_downloaded_where_it_must_not_be(
    published_file: tuple[str, bytes], no_network: list[Any]
) -> None:
    name = published_file[0]
    start = f"no {name} in {Path('hub/checkpoints').absolute()}"
    for look in (load_weights, find_weights):
        with pytest.raises(UserError, match=sentence(start, name)):
            look("resnet18", None, download=False)
    with pytest.raises(UserError, match=sentence(start, name)):
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
    start = f"{path} is not the published file, or it is damaged"
    with pytest.raises(UserError, match=sentence(start, path.name)):
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
    start = f"{name} is needed and could not be downloaded ({error})"
    with pytest.raises(UserError, match=sentence(start, name)):
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


def test_addresses_are_torchvisions_own() -> None:
    for name in ADDRESSES.keys() & set(torchvision.models.list_models()):
        assert ADDRESSES[name] == torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    assert ADDRESSES.keys() >= {"resnet18", "resnet34", "vgg16", "alexnet"}


def test_other_networks_have_torchvisions_best_weights() -> None:
    for name in ("resnet50", "vgg11_bn"):
        assert name not in WEIGHTS
        assert weights_url(name) == torchvision.models.get_model_weights(name).DEFAULT.url
    with pytest.raises(UserError, match=r"^no published weights are known for resnet1$"):
        weights_url("resnet1")


def test_other_networks_weights_are_checked_too(tmp_path: Path) -> None:
    file = weights_url("resnet50").rsplit("/", 1)[1]
    with pytest.raises(UserError, match=rf"^no {file} in .*: it is published at https://.*{file}; put it"):
        load_weights("resnet50", tmp_path, "leave out --pretrained")
    (tmp_path / file).write_bytes(b"anything")
    with pytest.raises(UserError, match=r"is not the published file.*do without: leave out --pretrained$"):
        load_weights("resnet50", tmp_path, "leave out --pretrained")


def test_files_in_the_format_of_2019_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"features.0.weight": torch.rand(3)}  # as VGG-16 and the Danbooru network were published
    torch.save(state, tmp_path / "x", _use_new_zipfile_serialization=False)
    name = f"vgg16-{hashlib.sha256((tmp_path / 'x').read_bytes()).hexdigest()[:8]}.pth"
    (tmp_path / "x").rename(tmp_path / name)
    monkeypatch.setitem(WEIGHTS, "vgg16", f"https://example.org/{name}")
    torch.testing.assert_close(load_weights("vgg16", tmp_path), state)
