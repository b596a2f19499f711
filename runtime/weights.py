"""Files of pretrained weights: by name, from a folder or through torch.hub's cache, never without a check.

Nothing is downloaded unless it is asked for (pretrained, lambda_perceptual, a generator with an extractor, a
metric by name). Files come through torch.hub as torchvision's own do, or from a folder (`--weights DIR`); in
both cases their SHA-256 must begin as their name or, behind a #, their address says.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from config import UserError

# name -> where it is published; torchvision's own addresses, which a test compares with it
WEIGHTS = {
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet34": "https://download.pytorch.org/models/resnet34-b627a593.pth",
    "vgg16": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "alexnet": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "danbooru": "https://github.com/RF5/danbooru-pretrained/releases/download/v0.1/resnet50-13306192.pth",
    # TorchScript, for FID; its name carries no hash
    "inception": "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt#f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
}


def load_weights(name: str, folder: Path | None, without: str = "", download: bool = True) -> dict[str, Tensor]:
    """Return a file of pretrained weights by name, from a folder or through torch.hub's cache.

    Args:
        name: a key of WEIGHTS, or one of torchvision's networks: then its own best weights.
        without: the option that avoids the need for it, for the error message.
        download: False: a file that is not there already is missing.

    Raises:
        UserError: the file is missing and cannot be downloaded, or it is not the published one.
    """
    return torch.load(find_weights(name, folder, without, download), map_location="cpu", weights_only=True)


def find_weights(name: str, folder: Path | None, without: str = "", download: bool = True) -> Path:
    """Return the path of the file that load_weights reads, checked; arguments and errors are the same."""
    url, _, digest = weights_url(name).partition("#")
    file = url.rsplit("/", 1)[1]
    digest = digest or file.rpartition("-")[2].partition(".")[0]
    hint = f"it is published at {url}; put it into a folder and name that with --weights DIR"
    hint += f", or do without: {without}" if without else ""
    path = (folder or Path(torch.hub.get_dir(), "checkpoints")) / file
    if not path.is_file():
        if folder is not None or not download:
            raise UserError(f"no {file} in {path.parent}: {hint}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{file} is needed and could not be downloaded ({error}): {hint}") from None
    if not file_hash(path).startswith(digest):
        raise UserError(f"{path} is not the published file, or it is damaged: {hint}")
    return path


def weights_url(name: str) -> str:
    """Return where a network's weights are published. Raises UserError where torchvision knows none."""
    if name in WEIGHTS:
        return WEIGHTS[name]
    from torchvision import models  # a second, which whatever needs no other network saves

    if name not in models.list_models(module=models):
        raise UserError(f"no published weights are known for {name}")
    return models.get_model_weights(name).DEFAULT.url


def file_hash(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
