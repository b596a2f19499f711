"""Generators and discriminators of the published systems, from one set of blocks; frozen feature extractors.

GENERATORS and DISCRIMINATORS at the end name every network that a recipe can ask for, with the sizes that it
takes; `python train.py --list-recipes` counts their parameters.

Sources: Isola et al., "Image-to-image translation with conditional adversarial networks", arXiv 1611.07004,
and the systems named at each class.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from config import RECIPES, Recipe, UserError, closest, make_recipe, require
from imaging.color import CHANNELS
from imaging.pixels import interpolate

NORMS = {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d, "none": None}


def down(
    in_channels: int, out_channels: int, kernel: int = 4, stride: int = 2, padding: int = 1, bias: bool = False,
    norm: str = "batch", slope: float = 0.2, norm_last: bool = False, padding_mode: str = "zeros",
) -> nn.Sequential:  # fmt: skip
    """Convolve, normalise, LeakyReLU (`norm_last`: normalise after it); by default halves H and W.

    A convolution whose output is not batch-normalised before the LeakyReLU should have a bias.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=bias, padding_mode=padding_mode)
    norms, act = [NORMS[norm](out_channels)] if NORMS[norm] else [], nn.LeakyReLU(slope)
    return nn.Sequential(conv, act, *norms) if norm_last else nn.Sequential(conv, *norms, act)


def up(
    in_channels: int, out_channels: int, kernel: int = 4, stride: int = 2, output_padding: int = 0,
    bias: bool = False, norm_last: bool = False, dropout: float = 0.0,
) -> nn.Sequential:  # fmt: skip
    """Transposed convolution, BatchNorm, ReLU (`norm_last`: before BatchNorm), dropout; doubles H and W.

    Dropout before or after the ReLU is the same function, so one order serves all systems.
    """
    conv = nn.ConvTranspose2d(in_channels, out_channels, kernel, stride, 1, output_padding, bias=bias)
    norm, act = nn.BatchNorm2d(out_channels), nn.ReLU()
    drop = [nn.Dropout(dropout)] if dropout > 0 else []
    return nn.Sequential(conv, *((act, norm) if norm_last else (norm, act)), *drop)


class SelfAttention(nn.Module):
    """Self-attention over all positions, added to its input with a weight that starts at 0.

    Source: Zhang et al., "Self-attention GAN", arXiv 1805.08318, section 3. A single position attends to
    itself alone, so query and key have no effect at 1 x 1 px.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, max(1, channels // 8), 1)
        self.key = nn.Conv2d(channels, max(1, channels // 8), 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        query, key = self.query(x).flatten(2), self.key(x).flatten(2)  # (N, C/8, HW)
        weights = torch.softmax(query.transpose(1, 2) @ key, 2)  # (N, HW, HW), over the keys
        attended = self.value(x).flatten(2) @ weights.transpose(1, 2)  # (N, C, HW)
        return x + self.gamma * attended.view(x.shape)


class ResNetEncoder(nn.Module):
    """The first stages of a torchvision ResNet, on 1 or 3 channels. Source: He et al., arXiv 1512.03385."""

    def __init__(self, name: str, in_channels: int, stages: int) -> None:
        super().__init__()
        import torchvision  # a second, which colorize.py and the other networks save

        body = torchvision.models.get_model(name)
        self.name = name
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1, self.relu, self.maxpool = body.bn1, body.relu, body.maxpool
        self.layers = nn.ModuleList([body.layer1, body.layer2, body.layer3, body.layer4][:stages])
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the stem's features (N, 64, H/2, W/2) and each stage's, (N, 64, H/4, W/4) and on."""
        features = [self.relu(self.bn1(self.conv1(x)))]
        x = self.maxpool(features[0])
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features

    def load_pretrained(self, state: Mapping[str, Tensor]) -> None:
        """Take ImageNet weights in torchvision's names; for 1 channel the first layer's sum over RGB."""
        names = {re.sub(r"^layer(\d)", lambda m: f"layers.{int(m[1]) - 1}", key): key for key in state}
        wanted = {key: state[names[key]] for key in self.state_dict() if key in names}
        if self.conv1.in_channels == 1:
            wanted["conv1.weight"] = wanted["conv1.weight"].sum(1, keepdim=True)
        self.load_state_dict(wanted)


class PixelShuffleUp(nn.Module):
    """Double H and W: a 1x1 convolution to four times the channels, ReLU, pixel shuffle.

    Source: Aitken et al., "Checkerboard artifact free sub-pixel convolution", arXiv 1707.02937 (ICNR).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_channels, 4 * out_channels, 1), nn.ReLU(), nn.PixelShuffle(2))
        self.icnr_()

    def icnr_(self) -> None:
        """Give the four pixels that come from one the same weights, so that nothing checkers at the start."""
        with torch.no_grad():
            for parameter in self.layers[0].parameters():
                parameter.copy_(parameter[::4].repeat_interleave(4, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, 2H, 2W)."""
        return self.layers(x)


def init_normal(module: nn.Module) -> None:
    """Initialise one module for `apply`: convolutions N(0, 0.02), BatchNorm scale N(1, 0.02), biases 0.

    Source: arXiv 1611.07004, section 6.2, and its public code.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
        mean = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
        nn.init.normal_(module.weight, mean, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, PixelShuffleUp):  # comes after its own convolution
        module.icnr_()


def init_kaiming(module: nn.Module) -> None:
    """Initialise one module for `apply`: convolutions N(0, sqrt(2 / (kernel area x out channels)))."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, 0.0, (2.0 / fan) ** 0.5)
    elif isinstance(module, PixelShuffleUp):
        module.icnr_()


def add_spectral_norm(module: nn.Module) -> None:
    """Bound a convolution's largest singular value by 1, for `apply`. Source: arXiv 1802.05957."""
    if isinstance(module, nn.Conv2d):
        spectral_norm(module)


INITS = {"normal": init_normal, "kaiming": init_kaiming}  # default: PyTorch's own


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
        for i, (before, after) in enumerate(pairwise(widths)):
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
        self.body.load_state_dict({name: state[f"features.{name}"] for name in self.body.state_dict()})


class LPIPSFeatures(FrozenFeatures):
    """Features of AlexNet (`alex`) or VGG-16 (`vgg`) whose mean squared differences, summed, are LPIPS.

    Version 0.1, with torchmetrics' linear layers. Source: Zhang et al., "The unreasonable effectiveness of
    deep features", arXiv 1801.03924.
    """

    TAPS: ClassVar = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}  # of torchvision's `features`

    def __init__(self, net: str) -> None:
        import torchvision  # a second, which whatever needs no LPIPS saves

        with torch.device("meta"):  # without the classifier, half a gigabyte
            body = torchvision.models.get_model({"alex": "alexnet", "vgg": "vgg16"}[net]).features
        body = nn.Sequential(*body[: self.TAPS[net][-1] + 1]).to_empty(device="cpu")
        super().__init__(body, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self.net = net

    def forward(self, rgb01: Tensor) -> list[Tensor]:
        """Map (N, 1|3, H, W) in [0, 1] to five layers (N, C, h, w)."""
        x = self.normalise(rgb01)
        found: list[Tensor] = []
        for i, layer in enumerate(self.body):
            x = layer(x)
            if i in self.TAPS[self.net]:
                length = (x.float().square().sum(1, keepdim=True) + 1e-8).sqrt()
                found.append(x / length * getattr(self, f"scale{len(found)}"))
        return found

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Take torchvision's features; the linear layers come with torchmetrics."""
        import torchmetrics

        self.body.load_state_dict({name: state[f"features.{name}"] for name in self.body.state_dict()})
        folder = Path(torchmetrics.__file__).parent / "functional/image/lpips_models"
        lins = torch.load(folder / f"{self.net}.pth", map_location="cpu", weights_only=True)
        for i, weight in enumerate(lins.values()):  # (1, C, 1, 1)
            scale = (weight.clamp(min=0) * weight.size(1)).sqrt()
            self.register_buffer(f"scale{i}", scale.to(self.mean.device), persistent=False)


class DanbooruFeatures(FrozenFeatures):
    """ResNet-50 that tags anime pictures, up to the 512 features before its tags."""

    WIDTH = 512
    SIZE: Final = 360  # px, of the square that it was trained on

    def __init__(self) -> None:
        import torchvision  # a second, which whatever needs no ResNet saves

        resnet = torchvision.models.resnet50()
        body = nn.Sequential(*list(resnet.children())[:-2])
        super().__init__(body, (0.7137, 0.6628, 0.6519), (0.2970, 0.3017, 0.2979))
        head = nn.Sequential(nn.BatchNorm1d(4096), nn.Linear(4096, self.WIDTH), nn.ReLU())
        self.head = head.eval().requires_grad_(False)

    def forward(self, rgb01: Tensor) -> list[Tensor]:
        """Map (N, 1|3, H, W) in [0, 1] to one tensor (N, 512)."""
        x = interpolate(rgb01.float(), self.SIZE, self.SIZE, "bilinear", antialias=True)
        x = self.body(self.normalise(x.to(rgb01.dtype)))  # (N, 2048, 12, 12)
        return [self.head(torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1))]  # (N, 512)

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Take the layers that are used from the published state dict: a fastai body (0) and head (1)."""
        self.body.load_state_dict({name: state[f"0.{name}"] for name in self.body.state_dict()})
        places = {"0": "2", "1": "4"}  # BatchNorm and Linear, after two poolings and a dropout
        names = {name: f"1.{places[name[0]]}{name[1:]}" for name in self.head.state_dict()}
        self.head.load_state_dict({name: state[theirs] for name, theirs in names.items()})


MULTIPLE = 16  # px; a size that can be halved less often would make the U-Net a shallow one
MAX_DEPTH = 8  # halvings in pix2pix's U-Net: 256 px -> 1 px
DROPOUT_BLOCKS = 3  # innermost decoder blocks with dropout, pix2pix section 6.1


class UNet(nn.Module):
    """pix2pix's U-Net: `depth` halvings down to the bottleneck, as many doublings, skips by concatenation.

    Args:
        attention, attention_depth: self-attention after so many halvings; 0 = at the bottleneck.
        bias: none | ends (the first, the innermost and the last convolution) | all.
        norm_all: BatchNorm after every convolution but the last; else not after the first and innermost.
        padding_mode: of the encoder's convolutions, zeros or reflect.
        bottleneck_slope: of the LeakyReLU after the innermost convolution; 0 makes it a ReLU.
        extractor: join the features of a frozen Danbooru ResNet-50 to the bottleneck.

    Source: arXiv 1611.07004, section 6.1.1; attention and extractor from the manga system.
    """

    def __init__(
        self, in_channels: int, out_channels: int, ngf: int = 64, depth: int = 8, dropout: float = 0.5,
        attention_depth: int = 0, bias: str = "none", norm_all: bool = False, padding_mode: str = "zeros",
        bottleneck_slope: float = 0.2, attention: bool = False, extractor: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [min(ngf * 2**i, ngf * 8) for i in range(depth)]  # after each halving
        self.encoder = nn.ModuleList()
        for i, (before, width) in enumerate(pairwise([in_channels, *widths])):
            end = i in (0, depth - 1)
            block = down(
                before, width, bias=bias == "all" or (bias == "ends" and end),
                norm="batch" if norm_all or not end else "none",
                slope=bottleneck_slope if i == depth - 1 else 0.2, padding_mode=padding_mode,
            )  # fmt: skip
            if attention and i + 1 == attention_depth < depth:
                block.append(SelfAttention(width))
            self.encoder.append(block)
        self.extractor = DanbooruFeatures() if extractor else None
        inner = widths[-1] + (DanbooruFeatures.WIDTH if extractor else 0)
        innermost = attention and attention_depth in (0, depth)
        self.attention = SelfAttention(inner) if innermost else nn.Identity()
        self.decoder = nn.ModuleList()
        for i in range(depth - 1, 0, -1):
            joined = inner if i == depth - 1 else 2 * widths[i]
            rate = dropout if depth - 1 - i < DROPOUT_BLOCKS else 0.0
            self.decoder.append(up(joined, widths[i - 1], bias=bias == "all", dropout=rate))
        last = nn.ConvTranspose2d(2 * widths[0], out_channels, 4, 2, 1, bias=bias != "none")
        self.last = nn.Sequential(last, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, in, H, W) to (N, out, H, W) in [-1, 1]; H and W are multiples of 2^depth."""
        image = x
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(x)  # (N, ngf 2^i, H / 2^i, W / 2^i)
            skips.append(x)
        skips.pop()
        if self.extractor is not None:
            seen = self.extractor((image + 1.0) / 2.0)[0][:, :, None, None]  # (N, 512, 1, 1)
            x = torch.cat([x, seen.to(x.dtype).expand(-1, -1, x.size(2), x.size(3))], 1)
        x = self.attention(x)  # (N, 8 ngf [+ 512], H / 2^depth, W / 2^depth)
        for block in self.decoder:
            x = torch.cat([block(x), skips.pop()], 1)  # (N, 2 ngf 2^i, H / 2^i, W / 2^i)
        return self.last(x)  # (N, out, H, W)


class NormLastUNet(nn.Module):
    """U-Net with BatchNorm after every activation and a 1x1 convolution at its end.

    Source: Nazeri et al., arXiv 1803.05400, as built by the framework of colourisers for 32 and 224 px. Its
    convolutions of stride 1 are 4x4 too, so that 7 px become 6 and 5, not 5 and 3 as in the paper.
    """

    def __init__(
        self, in_channels: int, out_channels: int, ngf: int = 64, strides: tuple[int, ...] = (2, 2, 2, 2)
    ) -> None:
        super().__init__()
        widths = [min(ngf * 2**i, ngf * 8) for i in range(len(strides))]
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for (before, width), stride in zip(pairwise([in_channels, *widths]), strides, strict=True):
            self.encoder.append(down(before, width, stride=stride, bias=True, norm_last=True))
        joined = widths[-1]
        for width, stride in zip([*widths[-2::-1], ngf], reversed(strides), strict=True):
            self.decoder.append(up(joined, width, stride=stride, bias=True, norm_last=True))
            joined = 2 * width
        self.last = nn.Sequential(nn.Conv2d(ngf, out_channels, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, in, H, W) to (N, out, H, W) in [-1, 1]; H and W are multiples of 2^(strides of 2)."""
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        x = skips.pop()
        for i, block in enumerate(self.decoder):
            x = block(x if i == 0 else torch.cat([x, skips.pop()], 1))
        return self.last(x)  # (N, out, H, W)


class ConvGenerator(nn.Module):
    """Encoder and decoder of 3x3 convolutions with skips by addition.

    Source: the framework of colourisers, its conditional GAN. Its count of 7,822,342 parameters holds a last
    BatchNorm that its code never called; ours is called, before the tanh.
    """

    def __init__(self, in_channels: int, out_channels: int, ngf: int = 64) -> None:
        super().__init__()
        widths = [ngf * n for n in (1, 2, 4, 8, 8)]
        halvings, doublings = pairwise([in_channels, *widths]), pairwise(widths[::-1])
        self.encoder = nn.ModuleList([down(a, b, kernel=3, slope=0.1) for a, b in halvings])
        self.decoder = nn.ModuleList([up(a, b, kernel=3, output_padding=1) for a, b in doublings])
        last = up(ngf, out_channels, kernel=3, output_padding=1)
        self.last = nn.Sequential(*last[:2], nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, in, H, W) to (N, out, H, W) in [-1, 1]; H and W are multiples of 32."""
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(x)  # (N, ngf 2^i, H / 2^i, W / 2^i)
            skips.append(x)
        skips.pop()
        for block in self.decoder:
            x = block(x) + skips.pop()  # (N, ngf 2^i, H / 2^i, W / 2^i)
        return self.last(x)  # (N, out, H, W)


class Double(nn.Module):
    """Twice the size, each pixel repeated; nn.Upsample without what interpolate avoids."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 2 H, 2 W)."""
        return interpolate(x, 2 * x.size(2), 2 * x.size(3), "nearest")


class ResNetColorizer(nn.Module):
    """A ResNet-18 cut at 1/8 of the size, then 3x3 convolutions and nearest-neighbour doublings.

    Source: the framework of colourisers, after Iizuka et al., "Let there be Color!", 2016.
    """

    def __init__(self, in_channels: int, out_channels: int, ngf: int = 64) -> None:
        super().__init__()
        self.encoder = ResNetEncoder("resnet18", in_channels, 2)
        conv = partial(down, kernel=3, stride=1, bias=True, slope=0.0)
        self.decoder = nn.Sequential(
            conv(128, 2 * ngf), Double(), conv(2 * ngf, ngf), conv(ngf, ngf),
            Double(), conv(ngf, ngf // 2), nn.Conv2d(ngf // 2, out_channels, 3, 1, 1),
            Double(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, in, H, W) to (N, out, H, W), unbounded; H and W are multiples of 8."""
        return self.decoder(self.encoder(x)[2])  # (N, out, H, W)


class ResUNet(nn.Module):
    """U-Net on a ResNet's stages, doubling by pixel shuffle, joined with the input itself at the end.

    The U-ResNet system's network without fastai: the same encoder, upsampling and last cross-concatenation,
    with a decoder of 4, 2, 1 and 1 times ngf channels where fastai's is wider (31,099,672 parameters).
    """

    def __init__(self, in_channels: int, out_channels: int, ngf: int = 64, encoder: str = "resnet18") -> None:
        super().__init__()
        self.encoder = ResNetEncoder(encoder, in_channels, 4)
        conv = partial(down, kernel=3, stride=1, slope=0.0)
        self.ups, self.joins = nn.ModuleList(), nn.ModuleList()
        width = 512
        for skip, out in zip((256, 128, 64, 64), (4 * ngf, 2 * ngf, ngf, ngf), strict=True):
            self.ups.append(PixelShuffleUp(width, width // 2))
            self.joins.append(nn.Sequential(conv(width // 2 + skip, out), conv(out, out)))
            width = out
        self.ups.append(PixelShuffleUp(ngf, ngf))
        self.last = nn.Sequential(conv(ngf + in_channels, ngf), nn.Conv2d(ngf, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, in, H, W) to (N, out, H, W), unbounded; H and W are multiples of 32."""
        skips = self.encoder(x)  # 1/2, 1/4, 1/8, 1/16, 1/32
        y = skips.pop()  # (N, 512, H/32, W/32)
        for enlarge, join in zip(self.ups, self.joins):  # noqa: B905  scripts cannot say strict
            y = join(torch.cat([enlarge(y), skips.pop()], 1))  # (N, ngf 2^i, H / 2^i, W / 2^i)
        return self.last(torch.cat([self.ups[4](y), x], 1))  # (N, ngf + in, H, W) -> (N, out, H, W)


# EfficientNet-Lite0 up to each halving: (repeats, channels, kernel, stride of the first block, expansion)
LITE_STAGES = (
    [(1, 16, 3, 1, 1)],
    [(2, 24, 3, 2, 6)],
    [(2, 40, 5, 2, 6)],
    [(3, 80, 3, 2, 6), (3, 112, 5, 1, 6)],
    [(4, 192, 5, 2, 6), (1, 320, 3, 1, 6)],
)


def lite_conv(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> list[nn.Module]:
    """Return a convolution, BatchNorm and ReLU6, padded as TensorFlow's SAME pads even sides."""
    pads = [nn.ZeroPad2d([(kernel - 2) // 2, (kernel - 1) // 2] * 2)] if stride == 2 else []
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, 0 if pads else kernel // 2, groups=groups, bias=False)
    norm = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01)
    return [*pads, conv, norm, *([nn.ReLU6()] if act else [])]


class LiteBlock(nn.Module):
    """An inverted residual: widen, convolve each channel by itself, narrow. Source: arXiv 1801.04381."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        widen = lite_conv(in_channels, inner) if expansion > 1 else []
        each = lite_conv(inner, inner, kernel, stride, inner)
        self.layers = nn.Sequential(*widen, *each, *lite_conv(inner, out_channels, act=False))
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H / stride, W / stride)."""
        y = self.layers(x)
        return x + y if self.adds else y


class LiteEncoder(nn.Module):
    """EfficientNet-Lite0 without its head, 2.96 M parameters. Source: Tan and Le, arXiv 1905.11946.

    Its input is gray in [-1, 1], which its published weights know as three equal channels, and perhaps other
    channels, whose weights begin at zero.
    """

    name = "lite0"

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*lite_conv(in_channels, 32, 3, 2))
        self.stages = nn.ModuleList()
        width = 32
        for stage in LITE_STAGES:
            blocks = nn.Sequential()
            for repeats, channels, kernel, stride, expansion in stage:
                for i in range(repeats):
                    blocks.append(LiteBlock(width, channels, kernel, 1 if i else stride, expansion))
                    width = channels
            self.stages.append(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return features of 1/2, 1/4, 1/8, 1/16 and 1/32 of the size: 16, 24, 40, 112 and 320 channels."""
        x = self.stem(x)
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def load_pretrained(self, state: Mapping[str, Tensor]) -> None:
        """Take the published ImageNet weights, whose names differ and whose order is the same."""
        ours = self.state_dict()
        taken = dict(zip(ours, state.values(), strict=False))  # the head comes last
        first, gray = next(iter(ours)), next(iter(state.values())).sum(1, keepdim=True)
        taken[first] = F.pad(gray, [0, 0, 0, 0, 0, ours[first].size(1) - 1])  # (32, in, 3, 3)
        self.load_state_dict(taken)


class LiteClassifier(nn.Module):
    """EfficientNet-Lite0 with its head, which names 1,000 classes of ImageNet; 4.65 M parameters."""

    WIDTH = 1280
    CLASSES = 1000
    MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of RGB in [0, 1], as it was trained

    def __init__(self) -> None:
        super().__init__()
        self.encoder = LiteEncoder(3)
        self.head = nn.Sequential(*lite_conv(320, self.WIDTH))
        self.last = nn.Linear(self.WIDTH, self.CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """Map normalised RGB (N, 3, H, W) to features (N, 1280)."""
        return self.head(self.encoder(x)[-1]).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised RGB (N, 3, H, W) to logits (N, 1000)."""
        return self.last(self.features(x))

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Take the published weights, whose names differ and whose order is the same."""
        self.load_state_dict(dict(zip(self.state_dict(), state.values(), strict=True)))


AB_STEP, AB_SIDE = 12.0, 16  # Lab units between bins of colour, and bins on a side; 256 in all
AB_FIRST = (-84.0, -96.0)  # a and b of the first bin; the last has 96 and 84


class HintAttention(nn.Module):
    """Corrects a prediction by its error at hints, wherever the picture is similar.

    Queries are pixels; keys are cells of 8 x 8 px with a hint, values the error of the prediction there. A pixel and a
    key are similar in the scores of their colours, in their lightness and in their place. The correction is the
    posterior mean of a Gaussian process whose covariance is that similarity: hints that are similar are explained
    together, so that a large one counts about like a small one; most pixels follow none.

    Sources: Yun et al., "iColoriT", arXiv 2207.06831 (attention to hints); Rasmussen and Williams, "Gaussian processes
    for machine learning", 2006, eq. 2.23; Schulz, "Iterative Berechnung der reziproken Matrix", 1933 (ONNX has no
    solver).
    """

    CHANNELS: Final = 32  # of the description of a pixel
    MAX_KEYS: Final = 128  # of more hinted cells small hints, and then some everywhere, are taken
    # of 1 - cosine of descriptions, and of squared differences; chosen as pretrained/README.md says, as those that were
    # learnt by L1 were narrower than what PSNR asks for
    COLOR_WEIGHT: Final = 1.0
    LIGHTNESS_WEIGHT: Final = 1.4
    PLACE_WEIGHT: Final = 0.27
    FINE_SHARE: Final = 0.15  # of the variance, is common only to what is FINE_FACTOR times as near
    FINE_FACTOR: Final = 16.0
    NOISE_VARIANCE: Final = 0.1  # of hints
    DOUBLINGS: Final = 13  # of a series that leaves at most 3e-6 of its start, for MAX_KEYS equal keys

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.describe = nn.Conv2d(classes, self.CHANNELS, 1)

    def forward(self, y: Tensor, logits: Tensor, light: Tensor, hints: Tensor) -> Tensor:
        """Return y corrected, float32 in [-1, 1].

        Args:
            y: (N, 2, h, w) in [-1, 1], h and w multiples of 2, the prediction.
            logits: (N, K, h, w), of which it was made.
            light: (N, 1, 4 h, 4 w) in [-1, 1].
            hints: (N, 3, 4 h, 4 w): colours in [-1, 1], 0 where there is no hint, and 1 where there is one.
        """
        height, width, y = y.size(2), y.size(3), y.to(torch.float32)
        small = F.avg_pool2d(torch.cat([hints, light], 1).to(torch.float32), 4)
        given, cover, light = small.split([2, 1, 1], 1)
        described = F.normalize(self.describe(logits).to(torch.float32), dim=1)
        sides = [torch.scalar_tensor(side, dtype=torch.float32, device=y.device) for side in (height, width)]
        short = torch.minimum(sides[0], sides[1])
        row = torch.arange(height, dtype=torch.float32, device=y.device) / short
        column = torch.arange(width, dtype=torch.float32, device=y.device) / short
        place = [row.view(1, 1, -1, 1).expand_as(light), column.view(1, 1, 1, -1).expand_as(light)]
        pixels = torch.cat([described, light, place[0], place[1]], 1)  # (N, D, h, w)

        cells = F.avg_pool2d(torch.cat([pixels * cover, y * cover, given, cover], 1), 2)
        index = self.choose(cells[:, -1:]).unsqueeze(1).expand(-1, cells.size(1), -1)
        keys = F.pad(cells.flatten(2), [0, self.MAX_KEYS]).gather(2, index)  # (N, D + 5, MAX_KEYS)
        there = (keys[:, -1:] > 0.0).to(torch.float32)
        keys, seen, wanted = (keys[:, :-1] / keys[:, -1:].clamp(min=1e-6)).split([pixels.size(1), 2, 2], 1)

        covariance = self.similarity(keys, keys) * there * there.transpose(1, 2)
        weights = self.solve(covariance, (wanted - seen) * there)
        more = torch.bmm(weights, self.similarity(keys, pixels.flatten(2)))
        return (y + more.view_as(y)).clamp(-1.0, 1.0)

    def choose(self, cover: Tensor) -> Tensor:
        """Return the places (N, MAX_KEYS) of keys in the flattened cells; `cover` (N, 1, h, w) is above 0 at hints.

        Where there are fewer, the rest are cells without a hint, or past the last cell.
        """
        hinted = (cover > 0.0).to(torch.float32)
        is_small = (F.avg_pool2d(hinted, 5, 1, 2) < 0.4).to(torch.float32)
        spread = torch.arange(cover.size(2) * cover.size(3), dtype=torch.float32, device=cover.device) * 0.618034
        score = hinted.flatten(1) * (1.0 + is_small.flatten(1) + spread.frac())  # neighbours come far apart
        return F.pad(score, [0, self.MAX_KEYS]).topk(self.MAX_KEYS, 1)[1]

    def solve(self, covariance: Tensor, errors: Tensor) -> Tensor:
        """Return weights of keys (N, 2, K), by which (covariance + noise) times weights is the errors.

        In use it is the inverse as a series of powers; each step doubles the number of terms. It is summed in float64,
        which autocast and TF32 do not touch, as squaring also doubles the rounding errors. Conjugate gradients that
        stop early amplify those of the prediction. In training it is a solver: with gradients it is 10 times as fast.

        Args:
            covariance: (N, K, K), of keys, from 0 to 1, and 0 for those that are not there.
            errors: (N, 2, K), 0 for those that are not there.
        """
        kind = torch.float32 if errors.device.type == "mps" else torch.float64  # MPS has no other
        identity = torch.eye(errors.size(2), dtype=kind, device=errors.device)
        matrix, weights = covariance.to(kind) + self.NOISE_VARIANCE * identity, errors.to(kind)
        if self.training:
            return torch.linalg.solve(matrix, weights.transpose(1, 2)).transpose(1, 2).to(errors.dtype)
        bound = matrix.sum(2).amax(1).view(-1, 1, 1)  # no eigenvalue is larger, and none below the noise
        scale = 2.0 / (bound + self.NOISE_VARIANCE)
        rest, weights = identity - scale * matrix, scale * weights
        for _ in range(self.DOUBLINGS):
            weights = weights + torch.bmm(weights, rest)
            rest = torch.bmm(rest, rest)
        return weights.to(errors.dtype)

    def similarity(self, one: Tensor, other: Tensor) -> Tensor:
        """Return how similar pixels (N, D, A) and (N, D, B) are, (N, A, B), about in [0, 1]."""
        channels = self.CHANNELS
        cosine = torch.bmm(one[:, :channels].transpose(1, 2), other[:, :channels])
        distance = self.COLOR_WEIGHT * (1.0 - cosine)
        for i in range(3):  # lightness, row, column
            apart = one[:, channels + i].unsqueeze(2) - other[:, channels + i].unsqueeze(1)
            distance = distance + (self.LIGHTNESS_WEIGHT if i == 0 else self.PLACE_WEIGHT) * apart * apart
        wide, fine = torch.exp(-distance), torch.exp(-self.FINE_FACTOR * distance)
        return wide + self.FINE_SHARE * (fine - wide)


class LiteUNet(nn.Module):
    """A U-Net on EfficientNet-Lite0 that answers at 1/4 of the size, which is then enlarged.

    Of ab it predicts how likely each of 256 colours is; the answer is their mean, sharpened by `temperature`:
    near 0 the likeliest colour, at 1 the mean of all, which is grayish where several are possible.

    Hints reach each block of the decoder, too: on their way through the encoder much of their colour is lost. Of output
    ab, HintAttention then corrects similar pixels by the error that remains at the hints.

    Source: Zhang, Isola and Efros, "Colorful image colorization", arXiv 1603.08511 (annealed mean).
    """

    def __init__(self, in_channels: int, out_channels: int, ngf: int = 64) -> None:
        super().__init__()
        self.encoder = LiteEncoder(in_channels)
        self.decoder = nn.ModuleList()
        self.hints = out_channels + 1 if in_channels > out_channels + 1 else 0  # without them there are at most 3
        width = 320
        for skip, out in zip((112, 40, 24), (2 * ngf, 3 * ngf // 2, ngf), strict=True):
            conv = nn.Conv2d(width + skip + self.hints, out, 3, 1, 1, bias=False)
            self.decoder.append(nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU()))
            width = out
        self.doubled = Double()
        self.is_ab = out_channels == 2
        last = nn.Conv2d(width, AB_SIDE**2 if self.is_ab else out_channels, 1)
        self.attention = HintAttention(AB_SIDE**2) if self.is_ab and self.hints else None
        self.last = last  # after it: the audit of losses looks at the last weights, which all terms reach
        self.temperature = 0.5
        self.register_buffer("colors", bin_colors(), persistent=False)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Take older weights too: the decoder does not see the hints that it did not see, attention is untrained."""
        for i, block in enumerate(self.decoder):
            key, wanted = f"{prefix}decoder.{i}.0.weight", block[0].in_channels
            if key in state and state[key].size(1) == wanted - self.hints:
                state[key] = F.pad(state[key], [0, 0, 0, 0, 0, self.hints])  # (out, in, 3, 3)
        if self.attention is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # the same, however often they are loaded
                untrained = HintAttention(self.attention.describe.in_channels)
            for key, value in untrained.state_dict(prefix=f"{prefix}attention.").items():
                state.setdefault(key, value)
            state.pop(f"{prefix}attention.scales", None)  # were learnt
        super()._load_from_state_dict(state, prefix, *rest)

    def logits(self, x: Tensor) -> Tensor:
        """Map x (N, in, H, W) to the last layer (N, 256|out, H/4, W/4); H and W are multiples of 32."""
        features = self.encoder(x)
        y = features.pop()
        stride = 32
        for block in self.decoder:
            stride = stride // 2
            parts = [self.doubled(y), features.pop()]
            if self.hints > 0:
                parts.append(pool_hints(x[:, -self.hints :], stride))
            y = block(torch.cat(parts, 1))
        return self.last(y)

    def readout(self, logits: Tensor, x: Tensor) -> Tensor:
        """Return the answer (N, 2|out, H, W) in [-1, 1] that the last layer (N, 256|out, H/4, W/4) gives for x."""
        if self.is_ab:
            if self.temperature <= 0.0:
                raise ValueError("temperature is greater than 0")
            y = F.conv2d(torch.softmax(logits / self.temperature, 1), self.colors)
        else:
            y = torch.tanh(logits)
        if self.attention is not None:
            y = self.attention(y, logits, x[:, :1], x[:, -self.hints :]).to(logits.dtype)
        return interpolate(y, 4 * y.size(2), 4 * y.size(3), "bicubic").clamp(-1.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, in, H, W) to (N, out, H, W) in [-1, 1]; H and W are multiples of 32."""
        return self.readout(self.logits(x), x)


def pool_hints(hints: Tensor, side: int) -> Tensor:
    """Average hints (N, C + 1, H, W) over blocks of `side` px: the mean colour of those there are, and 1 for any."""
    mean = F.avg_pool2d(hints, side)
    cover = mean[:, -1:]
    return torch.cat([mean[:, :-1] / cover.clamp(min=1.0 / (side * side)), (cover > 0.0).to(hints.dtype)], 1)


def bin_colors() -> Tensor:
    """Return ab/110 of the bins as the kernel of a 1x1 convolution, (2, 256, 1, 1); b varies fastest."""
    a, b = (first + AB_STEP * torch.arange(AB_SIDE) for first in AB_FIRST)
    return torch.stack(torch.meshgrid(a, b, indexing="ij")).view(2, -1, 1, 1) / 110.0


class Discriminator(nn.Module):
    """Convolutions of cat(x, y), or of y alone, that end in logits: real or generated?"""

    def __init__(self, layers: list[nn.Module], sees_x: bool = True) -> None:
        super().__init__()
        self.layers, self.sees_x = nn.Sequential(*layers), sees_x

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return logits (N, 1, h, w) for x (N, Cx, H, W) and y (N, Cy, H, W)."""
        return self.layers(torch.cat([x, y], 1) if self.sees_x else y)


def patch_discriminator(
    x_channels: int, y_channels: int, ndf: int = 64, norm: str = "batch",
    strides: tuple[int, ...] = (2, 2, 1), bias: str = "ends", padding: int = 1, padding_mode: str = "zeros",
) -> Discriminator:  # fmt: skip
    """Build a PatchGAN: one logit for each of the overlapping patches, 30 x 30 at 256 px as in pix2pix.

    Args:
        norm: batch | instance | none; without BatchNorm every convolution has a bias.
        strides: of the three inner convolutions.
        bias: none | ends (the first and the last convolution) | all.
        padding: px, of the three inner convolutions; the first and last have 1.

    Source: arXiv 1611.07004, section 6.1.2 (70 px patches).
    """
    ends, inner = bias != "none" or norm != "batch", bias == "all" or norm != "batch"
    layers = [down(x_channels + y_channels, ndf, bias=ends, norm="none", padding_mode=padding_mode)]
    for i, stride in enumerate(strides):
        sizes = (ndf * 2**i, ndf * 2 ** (i + 1), 4, stride, padding)
        layers.append(down(*sizes, bias=inner, norm=norm, padding_mode=padding_mode))
    last = nn.Conv2d(ndf * 8, 1, 4, 1, 1, bias=ends, padding_mode=padding_mode)
    return Discriminator([*layers, last])


def image_discriminator(
    x_channels: int, y_channels: int, ndf: int = 64, norm: str = "batch",
    strides: tuple[int, ...] = (2, 2, 2, 2), last: int = 2,
) -> Discriminator:  # fmt: skip
    """Build one that sees the image as a whole, or nearly: 1 logit at 32 px, 3 x 3 at 224 (after 7, 6, 5 px).

    `last` is the side of the last convolution's kernel, in px.
    Source: Nazeri et al., arXiv 1803.05400, as built by the framework of colourisers.
    """
    widths = [min(ndf * 2**i, ndf * 8) for i in range(len(strides))]
    pairs = zip(pairwise([x_channels + y_channels, *widths]), strides, strict=True)
    layers = [down(a, b, stride=stride, bias=True, norm=norm, norm_last=True) for (a, b), stride in pairs]
    return Discriminator([*layers, nn.Conv2d(widths[-1], 1, last)])


def color_discriminator(x_channels: int, y_channels: int, ndf: int = 64, norm: str = "batch") -> Discriminator:
    """Build one that sees the colour image y alone, whatever the generator was given: 1 logit at 224 px.

    Source: the framework of colourisers, its conditional GAN.
    """
    pairs = pairwise([y_channels, *(ndf * n for n in (1, 2, 4, 8, 8))])
    conv = partial(down, bias=norm != "batch", slope=0.1)
    layers = [conv(a, b, kernel=3, norm=norm) for a, b in pairs]
    whole = "none" if norm == "instance" else norm  # one pixel cannot be instance-normalised
    layers.append(conv(8 * ndf, 8 * ndf, 7, 1, 0, norm=whole))
    return Discriminator([*layers, nn.Conv2d(8 * ndf, 1, 1, bias=False)], sees_x=False)


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@dataclass(frozen=True)
class Network:
    """A generator or discriminator that a recipe can name: how it is built, and what it can do."""

    build: Callable[..., nn.Module]
    halvings: int = 0  # how often it halves a side; 0: as a recipe's `depth` says (U-Nets)
    smallest: int = 1  # px, the shortest side that it takes
    attention: bool = False  # has self-attention, whose place a recipe chooses
    extractor: bool = False  # holds the frozen Danbooru ResNet-50
    encoder: bool = False  # starts with a network that has published weights
    bins: bool = False  # predicts how likely each colour is, where it answers with ab


_manga = partial(UNet, bias="all", norm_all=True)
_reflect = partial(UNet, bias="ends", padding_mode="reflect", bottleneck_slope=0.0)
_deep = (2, 2, 2, 2, 2, 1, 1)
_patch26 = partial(patch_discriminator, bias="none", padding=0, padding_mode="reflect")

# U-Nets of pix2pix: build(in_channels, out_channels, ngf, depth=, dropout=, attention_depth=).
# All others: build(in_channels, out_channels, ngf).
GENERATORS: dict[str, Network] = {
    "unet": Network(UNet),
    "unet-reflect": Network(_reflect),
    "unet-bn": Network(_manga),
    "unet-att": Network(partial(_manga, attention=True), attention=True),
    "unet-ext": Network(partial(_manga, extractor=True), extractor=True),
    "unet-att-ext": Network(partial(_manga, attention=True, extractor=True), attention=True, extractor=True),
    "resunet": Network(ResUNet, halvings=5, encoder=True),
    "resunet34": Network(partial(ResUNet, encoder="resnet34"), halvings=5, encoder=True),
    "resnet": Network(ResNetColorizer, halvings=3, encoder=True),
    "unet32": Network(NormLastUNet, halvings=4),
    "unet224": Network(partial(NormLastUNet, strides=_deep), halvings=5, smallest=96),
    "convgen": Network(ConvGenerator, halvings=5),
    "lite-unet": Network(LiteUNet, halvings=5, encoder=True, bins=True),
}

# build(x_channels, y_channels, ndf, norm); patches are named by the side of their logits at 256 px
DISCRIMINATORS: dict[str, Network] = {
    "patch30": Network(patch_discriminator, smallest=24),
    "patch26": Network(_patch26, smallest=52),
    "patch15": Network(partial(patch_discriminator, strides=(2, 2, 2)), smallest=32),
    "patch15-bias": Network(partial(patch_discriminator, strides=(2, 2, 2), bias="all"), smallest=32),
    "image32": Network(image_discriminator, smallest=32),
    "image224": Network(partial(image_discriminator, strides=_deep, last=3), smallest=160),
    "image-rgb": Network(color_discriminator, smallest=193),
}


def count_channels(recipe: Recipe) -> tuple[int, int]:
    """Return the channels of the generator's input and output; hints are colours and where they are."""
    out = CHANNELS[recipe.output]
    return CHANNELS[recipe.input] + (out + 1 if recipe.hints else 0), out


def fit_networks(recipe: Recipe) -> Recipe:
    """Return a recipe whose networks exist and take its size, with `depth` 0 replaced by a number.

    Raises UserError on an unknown network, or a size, depth or option that it does not take.
    """
    for kind, known in (("generator", GENERATORS), ("discriminator", {**DISCRIMINATORS, "none": None})):
        name = getattr(recipe, kind)
        if name not in known:
            raise UserError(f"no {kind} {name}{closest(name, list(known))}")
        smallest = known[name].smallest if known[name] else 1
        near = f"(the nearest that fits is {nearest_size(recipe)})"
        require(recipe.size >= smallest, "size", recipe, f"at least {smallest} for {name} {near}")
    recipe = replace(recipe, depth=_fit_depth(recipe))
    _require_half(recipe)
    network = GENERATORS[recipe.generator]
    sides = [recipe.size >> n for n in range(1, recipe.depth + 1)] if network.attention else []
    wanted = f"0 or one of {' '.join(map(str, sides))} px" if sides else f"0 for generator {recipe.generator}"
    require(recipe.attention in (0, *sides), "attention", recipe, wanted)
    require(network.encoder or not recipe.pretrained, "pretrained", recipe, f"false for {recipe.generator}")
    binned = network.bins and recipe.output == "ab"
    require(binned or not recipe.lambda_class, "lambda_class", recipe, "0 but for lite-unet with output ab")
    reason = "as BatchNorm meets a single pixel at this size"
    if recipe.batch_size == 1:
        require(not needs_two_images(recipe), "batch_size", recipe, f"2 or more, {reason}")
    if recipe.norm_stats == "batch":
        require(not needs_two_images(recipe, testing=True), "norm_stats", recipe, f"running, {reason}")
    return recipe


def _require_half(recipe: Recipe) -> None:
    """Raise UserError where the first epochs have pictures of half the size, and the networks do not take those."""
    half, step, least = recipe.size // 2, 2**recipe.depth, smallest_size(recipe)
    reason = f"as these networks take no {half} px (at least {least}, a multiple of {step})"
    require(
        not recipe.half_epochs or (half % step == 0 and half >= least),
        "half_epochs",
        recipe,
        f"0 at {recipe.size} px, {reason}",
    )


def smallest_size(recipe: Recipe) -> int:
    """Return the least size that a recipe's networks, which are known, take."""
    networks = (GENERATORS[recipe.generator], DISCRIMINATORS.get(recipe.discriminator))
    return max(network.smallest for network in networks if network)


def nearest_size(recipe: Recipe) -> int:
    """Return the size nearest to a recipe's that its networks, which are known, take."""
    halvings = GENERATORS[recipe.generator].halvings or recipe.depth
    step = 2**halvings if halvings else MULTIPLE
    return step * max(round(recipe.size / step), -(-smallest_size(recipe) // step))


def quick_fields(name: str) -> dict[str, int]:
    """Return fields with which a known recipe shows in minutes whether pictures load and where colours begin."""
    recipe = make_recipe(name, {})
    network = GENERATORS[recipe.generator]
    size = nearest_size(replace(recipe, size=min(recipe.size, 64), load_size=0, test_size=0, work_size=0))
    slow = network.extractor or recipe.anime_share > 0  # a ResNet-50 looks at every picture at 360 px
    keys = ("ngf", "ndf") if recipe.is_adversarial else ("ngf",)
    widths = {key: min(16, getattr(recipe, key)) for key in keys}
    batch = min(8, recipe.batch_size)
    fields = {"size": size, "epochs": 10, "limit": 30 if slow else 300, "batch_size": batch, "save_every": 5}
    return fields if network.encoder else {**fields, **widths}


def _fit_depth(recipe: Recipe) -> int:
    """Return the generator's number of downsampling steps; check that the size can be halved so often."""
    own, near = GENERATORS[recipe.generator].halvings, f"(the nearest that fits is {nearest_size(recipe)})"
    if own:
        require(recipe.depth in (0, own), "depth", recipe, f"0 or {own} for {recipe.generator}")
        require(recipe.size % 2**own == 0, "size", recipe, f"a multiple of {2**own} for {recipe.generator} {near}")
        return own
    depth = recipe.depth
    if depth == 0:
        require(recipe.size % MULTIPLE == 0, "size", recipe, f"a multiple of {MULTIPLE} {near}")
        depth = next(n for n in range(MAX_DEPTH, 0, -1) if recipe.size % 2**n == 0)
    require(2 <= depth <= MAX_DEPTH, "depth", recipe, f"2 to {MAX_DEPTH}")
    require(recipe.size % 2**depth == 0, "size", recipe, f"a multiple of {2**depth} at depth {depth} {near}")
    return depth


def needs_two_images(recipe: Recipe, testing: bool = False) -> bool:
    """Tell whether a BatchNorm meets a single pixel, of which a lone image has no statistics.

    Both networks are asked, or the generator alone (`testing`).
    """
    side = recipe.size // 2 if recipe.half_epochs and not testing else recipe.size
    shape = (side, side)
    with torch.device("meta"):  # shapes without numbers
        x, y = (torch.empty(1, count, *shape) for count in count_channels(recipe))
        generator = build_generator(recipe)
        discriminator = None if testing else build_discriminator(recipe)
        try:
            generator(x)
            if discriminator is not None:
                discriminator(x, y)
        except ValueError:  # batch_norm: "Expected more than 1 value per channel when training"
            return True
    return False


def build_generator(recipe: Recipe) -> nn.Module:
    """Build the untrained generator of a recipe that went through fit_networks.

    It maps (N, Cx, H, W) to (N, Cy, H, W), see count_channels; H and W are multiples of 2^depth px.
    """
    network = GENERATORS[recipe.generator]
    sizes = *count_channels(recipe), recipe.ngf
    if network.halvings:
        return network.build(*sizes)
    attention_depth = (recipe.size // recipe.attention).bit_length() - 1 if recipe.attention else 0
    options = {"depth": recipe.depth, "dropout": recipe.dropout, "attention_depth": attention_depth}
    return network.build(*sizes, **options)


def meta_generator(recipe: Recipe) -> nn.Module:
    """Build the generator of a recipe on the meta device: shapes without numbers."""
    with torch.device("meta"):
        return build_generator(recipe)


def build_discriminator(recipe: Recipe) -> nn.Module | None:
    """Build the untrained discriminator of a recipe; None where none takes part in the training."""
    if not recipe.is_adversarial:
        return None
    channels = count_channels(recipe)
    return DISCRIMINATORS[recipe.discriminator].build(*channels, recipe.ndf, norm=recipe.norm_d)


def recipe_table() -> str:
    """Return one line per recipe: its system, what it maps, its networks, losses and size."""
    rows = [("recipe", "system", "input -> output", "generator", "parameters", "discriminator", "loss", "px")]
    for name in RECIPES:
        recipe = fit_networks(make_recipe(name, {}))
        with torch.device("meta"):  # counts without drawing weights
            count = f"{count_parameters(build_generator(recipe)):,}"
        terms = [f"{weight:g} {term[2:]}" for term, weight in recipe.term_weights.items() if term[0] == "G"]
        start = (name, recipe.system, f"{recipe.input} -> {recipe.output}", recipe.generator, count)
        rows.append((*start, recipe.discriminator, " + ".join(terms), str(recipe.size)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
