"""What networks are built of: convolution blocks, self-attention, encoders, and ways to initialise them.

Sources: Isola et al., arXiv 1611.07004, unless a class names its own.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

NORMS = {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d, "none": None}


def down(
    in_channels: int,
    out_channels: int,
    kernel: int = 4,
    stride: int = 2,
    padding: int = 1,
    bias: bool = False,
    norm: str = "batch",
    slope: float = 0.2,
    norm_last: bool = False,
    padding_mode: str = "zeros",
) -> nn.Sequential:
    """Convolve, normalise, LeakyReLU (`norm_last`: normalise after it); by default halves H and W.

    A convolution whose output is not batch-normalised before the LeakyReLU should have a bias.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=bias, padding_mode=padding_mode)
    build_norm, act = NORMS[norm], nn.LeakyReLU(slope)
    if build_norm is None:
        return nn.Sequential(conv, act)
    layers = [conv, build_norm(out_channels), act]
    return nn.Sequential(conv, act, layers[1]) if norm_last else nn.Sequential(*layers)


def up(
    in_channels: int,
    out_channels: int,
    kernel: int = 4,
    stride: int = 2,
    output_padding: int = 0,
    bias: bool = False,
    norm_last: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Transposed convolution, BatchNorm, ReLU (`norm_last`: before BatchNorm), dropout; doubles H and W.

    Dropout before or after the ReLU is the same function, so one order serves all systems.
    """
    conv = nn.ConvTranspose2d(in_channels, out_channels, kernel, stride, 1, output_padding, bias=bias)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]
    if norm_last:
        layers[1:] = reversed(layers[1:])
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout > 0 else []))


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
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 4 * out_channels, 1), nn.ReLU(), nn.PixelShuffle(2)
        )
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
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    elif isinstance(module, PixelShuffleUp):  # comes after its own convolution
        module.icnr_()
        return
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


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
