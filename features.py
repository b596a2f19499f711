"""Frozen feature extractors, and the files of pretrained weights that they and ResNet encoders start from.

Nothing is downloaded unless it is asked for (pretrained, lambda_perceptual, a generator with an
extractor). Files come through torch.hub as torchvision's own do, or from a folder (`--weights DIR`); either
way the start of their SHA-256 must be the one that their name or, behind a #, their address carries.

Sources: Simonyan and Zisserman, arXiv 1409.1556 (VGG-16); Baas, "Danbooru2018 pretrained resnet models for
PyTorch", 2019 (ResNet-50, 6,000 tags).
"""

import hashlib
import itertools
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def load_weights(
    name: str, folder: Path | None, without: str = "", download: bool = True
) -> dict[str, Tensor]:
    """Return a file of pretrained weights by name, from a folder or through torch.hub's cache.

    Args:
        name: a key of WEIGHTS, or one of torchvision's networks: then its own best weights.
        without: the option that does without it, for the error's sentence.
        download: False: what is not there already is missing.

    Raises:
        ValueError: missing and not to be had, or not the published file; says where to get it.
    """
    path = find_weights(name, folder, without, download)
    return torch.load(path, map_location="cpu", weights_only=True)


def weights_hash(name: str, folder: Path | None) -> str:
    """Return the SHA-256 of the file that load_weights reads. Raises ValueError where it is not there."""
    return file_hash(find_weights(name, folder, download=False))


def find_weights(name: str, folder: Path | None, without: str = "", download: bool = True) -> Path:
    """Return the checked file of load_weights, which see."""
    url, _, digest = weights_url(name).partition("#")
    file = url.rsplit("/", 1)[1]
    digest = digest or _hash_of(file)
    hint = f"it is published at {url}; put it into a folder and name that with --weights DIR"
    hint += f", or do without: {without}" if without else ""
    path = (folder or Path(torch.hub.get_dir(), "checkpoints")) / file
    if not path.is_file():
        if folder is not None or not download:
            raise ValueError(f"no {file} in {path.parent}: {hint}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{file} is needed and could not be downloaded ({error}): {hint}") from None
    if not file_hash(path).startswith(digest):
        raise ValueError(f"{path} is not the published file, or it is damaged: {hint}")
    return path


def weights_url(name: str) -> str:
    """Return where a network's weights are published. Raises ValueError where torchvision knows none."""
    if name in WEIGHTS:
        return WEIGHTS[name]
    from torchvision import models  # a second, which whatever needs no other network saves

    if name not in models.list_models(module=models):
        raise ValueError(f"no published weights are known for {name}")
    return models.get_model_weights(name).DEFAULT.url


def _hash_of(file: str) -> str:
    """Return the start of the SHA-256 in a name such as vgg16-397923af.pth."""
    found = re.search(r"-([0-9a-f]{8,})\.", file)
    if found is None:
        raise ValueError(f"{file} carries no hash in its name")
    return found[1]


def file_hash(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


class FrozenFeatures(nn.Module):
    """An extractor that is never trained: no gradient for its weights, BatchNorm on running statistics."""

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenFeatures":
        """Stay in evaluation mode, whatever holds this module."""
        return super().train(False)

    def normalise(self, rgb01: Tensor) -> Tensor:
        """Return (N, 1|3, H, W) in [0, 1] as (N, 3, H, W), less the training set's mean, over its std."""
        return (rgb01.expand(-1, 3, -1, -1) - self.mean) / self.std


class VGGFeatures(FrozenFeatures):
    """ImageNet VGG-16 up to features[15]: relu1_2, relu2_2 and relu3_3."""

    TAPS = (3, 8, 15)  # indices into torchvision's `features`

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        widths = (3, 64, 64, 128, 128, 256, 256, 256)
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            pool = [nn.MaxPool2d(2)] if i in (2, 4) else []
            layers += [*pool, nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        super().__init__(nn.Sequential(*layers), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def forward(self, rgb01: Tensor) -> list[Tensor]:
        """Map (N, 1|3, H, W) in [0, 1] to (N, 64, H, W), (N, 128, H/2, W/2) and (N, 256, H/4, W/4)."""
        x = self.normalise(rgb01)
        found: list[Tensor] = []
        for i, layer in enumerate(self.body):
            x = layer(x)
            if i in self.TAPS:
                found.append(x)
        return found

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Take the layers that are used from torchvision's state dict."""
        names = self.body.state_dict()
        self.body.load_state_dict({name: state[f"features.{name}"] for name in names})


class DanbooruFeatures(FrozenFeatures):
    """ResNet-50 that tags anime pictures, up to the 512 features before its tags."""

    WIDTH = 512

    def __init__(self) -> None:
        import torchvision  # a second, which whatever needs no ResNet saves

        resnet = torchvision.models.resnet50()
        body = nn.Sequential(*list(resnet.children())[:-2])
        super().__init__(body, (0.7137, 0.6628, 0.6519), (0.2970, 0.3017, 0.2979))
        self.head = nn.Sequential(nn.BatchNorm1d(4096), nn.Linear(4096, self.WIDTH), nn.ReLU())
        self.head.requires_grad_(False)
        self.train(False)

    def forward(self, rgb01: Tensor) -> list[Tensor]:
        """Map (N, 1|3, H, W) in [0, 1] to one tensor (N, 512)."""
        # 360 px is what it was trained on
        x = F.interpolate(rgb01.to(torch.float32), [360, 360], mode="bilinear", antialias=True)
        x = self.body(self.normalise(x.to(rgb01.dtype)))  # (N, 2048, 12, 12)
        return [self.head(torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1))]  # (N, 512)

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Take the layers that are used from the published state dict: a fastai body (0) and head (1)."""
        self.body.load_state_dict({name: state[f"0.{name}"] for name in self.body.state_dict()})
        places = {"0": "2", "1": "4"}  # BatchNorm and Linear, after two poolings and a dropout
        names = {name: f"1.{places[name[0]]}{name[1:]}" for name in self.head.state_dict()}
        self.head.load_state_dict({name: state[theirs] for name, theirs in names.items()})
