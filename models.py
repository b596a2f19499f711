"""Generators and discriminators of the published systems, from one set of blocks.

The dictionaries at the end name every network that a recipe can ask for. Parameter counts at ngf = ndf = 64,
depth 8: unet 54,409,856 (L -> ab), unet-reflect 54,414,531 (RGB -> RGB), patch30 2,765,633 (3 channels),
patch26 2,768,640 (6 channels).

Sources: Isola et al., "Image-to-image translation with conditional adversarial networks", arXiv 1611.07004,
and the two systems that train it on photographs in Lab and on anime sketches.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

DROPOUT_BLOCKS = 3  # innermost decoder blocks with dropout, pix2pix section 6.1


def down(in_channels: int, out_channels: int, norm: bool, bias: bool, padding_mode: str) -> nn.Sequential:
    """Halve: conv 4x4 stride 2, BatchNorm, LeakyReLU; (N, in, H, W) -> (N, out, H/2, W/2)."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, 4, 2, 1, bias=bias, padding_mode=padding_mode)
    ]
    if norm:
        layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers, nn.LeakyReLU(0.2))


def up(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """Double: transposed conv 4x4 stride 2, BatchNorm, ReLU, dropout; (N, in, H, W) -> (N, out, 2H, 2W).

    Dropout before or after the ReLU is the same function, so one order serves both systems.
    """
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]
    if dropout > 0:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """pix2pix's U-Net: `depth` halvings down to the bottleneck, as many doublings, skips by concatenation.

    Source: arXiv 1611.07004, section 6.1.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        ngf: int = 64,
        depth: int = 8,
        dropout: float = 0.5,
        bias: bool = False,
        padding_mode: str = "zeros",
        bottleneck_slope: float = 0.2,
    ) -> None:
        """Build the network.

        Args:
            bias: on the first, the innermost and the last convolution; the others have BatchNorm instead.
            padding_mode: of the encoder's convolutions, zeros or reflect.
            bottleneck_slope: of the LeakyReLU after the innermost convolution; 0 makes it a ReLU.
        """
        super().__init__()
        widths = [min(ngf * 2**i, ngf * 8) for i in range(depth)]  # after each halving
        self.encoder = nn.ModuleList([down(in_channels, widths[0], False, bias, padding_mode)])
        for i in range(1, depth - 1):
            self.encoder.append(down(widths[i - 1], widths[i], True, False, padding_mode))
        inner = nn.Conv2d(widths[-2], widths[-1], 4, 2, 1, bias=bias, padding_mode=padding_mode)
        self.bottleneck = nn.Sequential(inner, nn.LeakyReLU(bottleneck_slope))
        self.decoder = nn.ModuleList([up(widths[-1], widths[-2], dropout)])
        for i in range(depth - 2, 0, -1):
            rate = dropout if depth - 1 - i < DROPOUT_BLOCKS else 0.0
            self.decoder.append(up(2 * widths[i], widths[i - 1], rate))
        self.last = nn.Sequential(
            nn.ConvTranspose2d(2 * widths[0], out_channels, 4, 2, 1, bias=bias), nn.Tanh()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, in, H, W) to (N, out, H, W) in [-1, 1]; H and W are multiples of 2^depth."""
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(x)  # (N, ngf 2^i, H / 2^i, W / 2^i)
            skips.append(x)
        x = self.bottleneck(x)  # (N, 8 ngf, H / 2^depth, W / 2^depth)
        for block in self.decoder:
            x = torch.cat([block(x), skips.pop()], 1)  # (N, 2 ngf 2^i, H / 2^i, W / 2^i)
        return self.last(x)  # (N, out, H, W)


class PatchDiscriminator(nn.Module):
    """PatchGAN: judges overlapping patches of cat(x, y), one logit each.

    Source: arXiv 1611.07004, section 6.1.2 (70 px patches).
    """

    def __init__(
        self,
        in_channels: int,
        ndf: int = 64,
        bias: bool = True,
        padding: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        """Build the network.

        Args:
            bias: on the first and the last convolution; the others have BatchNorm instead.
            padding: px, of the three inner convolutions; the first and last have 1.
        """
        super().__init__()
        layers: list[nn.Module] = [down(in_channels, ndf, False, bias, padding_mode)]
        for i, stride in enumerate((2, 2, 1)):
            conv = nn.Conv2d(
                ndf * 2**i, ndf * 2 ** (i + 1), 4, stride, padding, bias=False, padding_mode=padding_mode
            )
            layers += [conv, nn.BatchNorm2d(ndf * 2 ** (i + 1)), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(ndf * 8, 1, 4, 1, 1, bias=bias, padding_mode=padding_mode))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return patch logits (N, 1, h, w) for x (N, Cx, H, W) and y (N, Cy, H, W)."""
        return self.layers(torch.cat([x, y], 1))  # 256 px: (N, 1, 30, 30) as pix2pix, (N, 1, 26, 26) unpadded


def init_normal(module: nn.Module) -> None:
    """Initialise one module for `apply`: convolutions N(0, 0.02), BatchNorm scale N(1, 0.02), biases 0.

    Source: arXiv 1611.07004, section 6.2, and its public code.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


# name -> callable(in_channels, out_channels, ngf, depth, dropout)
GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "unet-reflect": partial(UNet, bias=True, padding_mode="reflect", bottleneck_slope=0.0),
}

# name -> callable(in_channels of x and y together, ndf); named by the side of their logits at 256 px
DISCRIMINATORS: dict[str, Callable[..., nn.Module]] = {
    "patch30": PatchDiscriminator,
    "patch26": partial(PatchDiscriminator, bias=False, padding=0, padding_mode="reflect"),
}
