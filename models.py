"""Generators and discriminators of the published systems, from one set of blocks.

The dictionaries at the end name every network that a recipe can ask for. `python train.py --list-recipes`
counts their parameters.

Sources: Isola et al., "Image-to-image translation with conditional adversarial networks", arXiv 1611.07004,
and the systems named at each class.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from blocks import PixelShuffleUp, ResNetEncoder, SelfAttention, down, up
from features import DanbooruFeatures

DROPOUT_BLOCKS = 3  # innermost decoder blocks with dropout, pix2pix section 6.1


class UNet(nn.Module):
    """pix2pix's U-Net: `depth` halvings down to the bottleneck, as many doublings, skips by concatenation.

    Args:
        attention_depth: halvings before the self-attention; 0 = all of them, the bottleneck.
        bias: none | ends (the first, the innermost and the last convolution) | all.
        norm_all: BatchNorm after every convolution but the last; else not after the first and innermost.
        padding_mode: of the encoder's convolutions, zeros or reflect.
        bottleneck_slope: of the LeakyReLU after the innermost convolution; 0 makes it a ReLU.
        attention: add self-attention.
        extractor: join the features of a frozen Danbooru ResNet-50 to the bottleneck.

    Source: arXiv 1611.07004, section 6.1.1; attention and extractor from the manga system.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        ngf: int = 64,
        depth: int = 8,
        dropout: float = 0.5,
        attention_depth: int = 0,
        bias: str = "none",
        norm_all: bool = False,
        padding_mode: str = "zeros",
        bottleneck_slope: float = 0.2,
        attention: bool = False,
        extractor: bool = False,
    ) -> None:
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
            x = block(x)  # (N, ngf 2^i, H / 2^i, W / 2^i)
            if len(skips) > 0:
                x = torch.cat([x, skips.pop()], 1)  # (N, 2 ngf 2^i, H / 2^i, W / 2^i)
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
        skips.pop()
        for block in self.decoder:
            x = block(x)
            if len(skips) > 0:
                x = torch.cat([x, skips.pop()], 1)
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


class ResNetColorizer(nn.Module):
    """A ResNet-18 cut at 1/8 of the size, then 3x3 convolutions and nearest-neighbour doublings.

    Source: the framework of colourisers, after Iizuka et al., "Let there be Color!", 2016.
    """

    def __init__(self, in_channels: int, out_channels: int, ngf: int = 64) -> None:
        super().__init__()
        self.encoder = ResNetEncoder("resnet18", in_channels, 2)
        conv = partial(down, kernel=3, stride=1, bias=True, slope=0.0)
        self.decoder = nn.Sequential(
            conv(128, 2 * ngf), nn.Upsample(scale_factor=2.0), conv(2 * ngf, ngf), conv(ngf, ngf),
            nn.Upsample(scale_factor=2.0), conv(ngf, ngf // 2), nn.Conv2d(ngf // 2, out_channels, 3, 1, 1),
            nn.Upsample(scale_factor=2.0),
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
        skips.insert(0, x)
        y = skips.pop()  # (N, 512, H/32, W/32)
        for enlarge, join in zip(self.ups, self.joins):  # noqa: B905  scripts cannot say strict
            y = join(torch.cat([enlarge(y), skips.pop()], 1))  # (N, ngf 2^i, H / 2^i, W / 2^i)
        y = self.ups[4](y)  # (N, ngf, H, W)
        return self.last(torch.cat([y, skips.pop()], 1))  # (N, out, H, W)


class PatchDiscriminator(nn.Module):
    """PatchGAN: judges overlapping patches of cat(x, y), one logit each.

    Source: arXiv 1611.07004, section 6.1.2 (70 px patches).
    """

    def __init__(
        self,
        x_channels: int,
        y_channels: int,
        ndf: int = 64,
        norm: str = "batch",
        strides: tuple[int, ...] = (2, 2, 1),
        bias: str = "ends",
        padding: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        """Build the network.

        Args:
            norm: batch | instance | none; without BatchNorm every convolution has a bias.
            strides: of the three inner convolutions.
            bias: none | ends (the first and the last convolution) | all.
            padding: px, of the three inner convolutions; the first and last have 1.
        """
        super().__init__()
        ends = bias != "none" or norm != "batch"
        inner = bias == "all" or norm != "batch"
        layers = [down(x_channels + y_channels, ndf, bias=ends, norm="none", padding_mode=padding_mode)]
        for i, stride in enumerate(strides):
            before, after = ndf * 2**i, ndf * 2 ** (i + 1)
            layers.append(
                down(before, after, 4, stride, padding, bias=inner, norm=norm, padding_mode=padding_mode)
            )
        last = nn.Conv2d(ndf * 8, 1, 4, 1, 1, bias=ends, padding_mode=padding_mode)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return patch logits (N, 1, h, w) for x (N, Cx, H, W) and y (N, Cy, H, W)."""
        return self.layers(torch.cat([x, y], 1))  # (N, 1, 30, 30) for 256 px as in pix2pix


class ImageDiscriminator(nn.Module):
    """Judges cat(x, y) as a whole, or nearly: one logit at 32 px, 3x3 at 224 (after 7, 6 and 5 px).

    Source: Nazeri et al., arXiv 1803.05400, as built by the framework of colourisers.
    """

    def __init__(
        self,
        x_channels: int,
        y_channels: int,
        ndf: int = 64,
        norm: str = "batch",
        strides: tuple[int, ...] = (2, 2, 2, 2),
        last: int = 2,
    ) -> None:
        """Build the network; `last` is the kernel of the last convolution, px."""
        super().__init__()
        widths = [min(ndf * 2**i, ndf * 8) for i in range(len(strides))]
        pairs = zip(pairwise([x_channels + y_channels, *widths]), strides, strict=True)
        layers = [down(a, b, stride=stride, bias=True, norm=norm, norm_last=True) for (a, b), stride in pairs]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, last))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return logits (N, 1, h, w), (N, 1, 1, 1) at 32 px, for x (N, Cx, H, W) and y (N, Cy, H, W)."""
        return self.layers(torch.cat([x, y], 1))


class ColorDiscriminator(nn.Module):
    """Judges the colour image alone, whatever the generator was given; 224 px -> one logit.

    Source: the framework of colourisers, its conditional GAN.
    """

    def __init__(self, x_channels: int, y_channels: int, ndf: int = 64, norm: str = "batch") -> None:
        super().__init__()
        widths = [ndf * n for n in (1, 2, 4, 8, 8)]
        bias = norm != "batch"
        pairs = pairwise([y_channels, *widths])
        layers = [down(a, b, kernel=3, bias=bias, norm=norm, slope=0.1) for a, b in pairs]
        whole = "none" if norm == "instance" else norm  # one pixel cannot be instance-normalised
        layers.append(down(widths[-1], widths[-1], 7, 1, 0, bias=bias, norm=whole, slope=0.1))
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1, bias=False))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return logits (N, 1, h, w) for y (N, Cy, H, W); x is not looked at."""
        return self.layers(y)  # (N, 1, 1, 1) for 224 px


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _of_own_depth(network: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Let a network that has neither depth, dropout nor attention to choose be called like a U-Net."""
    return lambda in_channels, out_channels, ngf, **_: network(in_channels, out_channels, ngf)


_manga = partial(UNet, bias="all", norm_all=True)
_deep = (2, 2, 2, 2, 2, 1, 1)

# name -> callable(in_channels, out_channels, ngf, depth=, dropout=, attention_depth=)
GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "unet-reflect": partial(UNet, bias="ends", padding_mode="reflect", bottleneck_slope=0.0),
    "unet-bn": _manga,
    "unet-att": partial(_manga, attention=True),
    "unet-ext": partial(_manga, extractor=True),
    "unet-att-ext": partial(_manga, attention=True, extractor=True),
    "resunet": _of_own_depth(ResUNet),
    "resunet34": _of_own_depth(partial(ResUNet, encoder="resnet34")),
    "resnet": _of_own_depth(ResNetColorizer),
    "unet32": _of_own_depth(NormLastUNet),
    "unet224": _of_own_depth(partial(NormLastUNet, strides=_deep)),
    "convgen": _of_own_depth(ConvGenerator),
}

LEAST = {"unet224": 96}  # px, the shortest side a generator takes; others take one multiple of their halvings

# name -> callable(x_channels, y_channels, ndf, norm); patches are named by the side of their logits at 256 px
DISCRIMINATORS: dict[str, Callable[..., nn.Module]] = {
    "patch30": PatchDiscriminator,
    "patch26": partial(PatchDiscriminator, bias="none", padding=0, padding_mode="reflect"),
    "patch15": partial(PatchDiscriminator, strides=(2, 2, 2)),
    "patch15-bias": partial(PatchDiscriminator, strides=(2, 2, 2), bias="all"),
    "image32": ImageDiscriminator,
    "image224": partial(ImageDiscriminator, strides=_deep, last=3),
    "image-rgb": ColorDiscriminator,
}
