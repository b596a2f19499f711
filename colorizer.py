"""The deployable network: an image of any size in, the colour image of the same size out.

Training samples, test.py, colorize.py and generator.ts all run this one forward, eager or scripted.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import color


class Colorizer(nn.Module):
    """Colourise images of any size.

    The network sees the picture with its short side at `size` px (the long side at most twice that),
    mirrored out to the next multiple that its halvings need; aspect ratio is kept. What it predicts is
    enlarged to the input's size:

    - output ab: joined with the input's own full-resolution lightness;
    - output Lab: the restored lightness is given the input's finer detail, except where it was mended;
    - output rgb from L or gray: given the input's own full-resolution lightness or luma;
    - output rgb from line art: multiplied by what the full-resolution lines have over the reduced ones, so
      lines stay sharp.

    Attributes a caller may set: `size` (px).
    """

    def __init__(
        self, generator: nn.Module, x_kind: str, y_kind: str, size: int, multiple: int, least: int = 1
    ) -> None:
        """Wrap a generator.

        Args:
            generator: maps (N, Cx, H, W) to (N, Cy, H, W), both in [-1, 1].
            x_kind, y_kind: what the generator takes and gives; see color.encode.
            size: px, short side at which the network works.
            multiple: px, the network takes sides that are multiples of this.
            least: px, and no shorter than this.
        """
        super().__init__()
        self.generator = generator
        self.x_kind = x_kind
        self.y_kind = y_kind
        self.size = size
        self.multiple = multiple
        self.least = least

    def forward(self, image: Tensor) -> Tensor:
        """Colourise a batch.

        Args:
            image: (N, 1|3, H, W), uint8 in [0, 255] or floating point in [0, 1]; any N, H, W >= 1.

        Returns:
            (N, 3, H, W), same dtype and range.
        """
        rgb = color.rgb01(image)  # (N, 3, H, W)
        if self.x_kind != "L" and self.x_kind != "sketch":
            rgb = color.luma(rgb).expand(-1, 3, -1, -1)
        small = self.shrink(rgb)  # (N, 3, h, w)
        y = self.predict(color.encode(small, self.x_kind)).to(torch.float32)  # (N, 2|3, h, w)
        out = self.join(rgb, small, y)
        if image.dtype == torch.uint8:
            return color.to_uint8(out)
        return out.to(image.dtype)

    def join(self, rgb: Tensor, small: Tensor, y: Tensor) -> Tensor:
        """Bring a prediction to full resolution: (N, 3, H, W) in [0, 1].

        Args:
            rgb: (N, 3, H, W) the input, small: (N, 3, h, w) what the network saw of it, both in [0, 1].
            y: (N, 2|3, h, w) the prediction.
        """
        height, width = rgb.size(2), rgb.size(3)
        if self.y_kind == "rgb":
            out = ((resample(y, height, width) + 1.0) / 2.0).clamp(0.0, 1.0)
            if self.x_kind == "L":
                return color.join_lab(color.rgb_to_lab(rgb)[:, :1], color.rgb_to_lab(out)[:, 1:] / 110.0)
            if self.x_kind == "gray":
                return (out + color.luma(rgb) - color.luma(out)).clamp(0.0, 1.0)
            blurred = resample(small, height, width).mean(1, keepdim=True).clamp(0.0, 1.0)
            return (out * (rgb.mean(1, keepdim=True) + 0.1) / (blurred + 0.1)).clamp(0.0, 1.0)
        lightness = color.rgb_to_lab(rgb)[:, :1]  # (N, 1, H, W)
        if self.y_kind == "Lab":
            seen = color.rgb_to_lab(small)[:, :1]  # (N, 1, h, w)
            restored = (y[:, :1] + 1.0) * 50.0
            change = restored - seen
            mended = change - F.avg_pool2d(change, 17, 1, 8, count_include_pad=False)  # not the fading
            keep = resample(torch.exp(-((mended / 4.0) ** 2)), height, width).clamp(0.0, 1.0)
            detail = lightness - resample(seen, height, width)  # what the network could not see
            lightness = (resample(restored, height, width) + keep * detail).clamp(0.0, 100.0)
        return color.join_lab(lightness, resample(y[:, -2:], height, width))

    def shrink(self, rgb: Tensor) -> Tensor:
        """Bring the short side to `size` px, or the long side to twice that if it would be longer."""
        height, width = rgb.size(2), rgb.size(3)
        scale = min(self.size / min(height, width), 2.0 * self.size / max(height, width))
        small = resample(rgb, max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        return small.clamp(0.0, 1.0)

    def predict(self, x: Tensor) -> Tensor:
        """Run the generator on x (N, C, h, w) of any size, mirrored out to what its halvings need."""
        height, width = x.size(2), x.size(3)
        rows = mirror(height, self.multiple, self.least, x.device)
        columns = mirror(width, self.multiple, self.least, x.device)
        y = self.generator(x.index_select(2, rows).index_select(3, columns))
        top = (rows.size(0) - height) // 2
        left = (columns.size(0) - width) // 2
        return y[:, :, top : top + height, left : left + width]


def resample(image: Tensor, height: int, width: int) -> Tensor:
    """Resize (N, C, H, W) with an antialiased bicubic filter; may overshoot; the same size stays.

    CUDA's filter has room for reductions to about 1/47; beyond 1/16 pixels are averaged in blocks first.
    """
    if image.size(2) == height and image.size(3) == width:
        return image
    rows, columns = image.size(2) // (16 * height), image.size(3) // (16 * width)
    if rows > 1 or columns > 1:
        block = [max(1, rows), max(1, columns)]
        image = F.avg_pool2d(image, block, ceil_mode=True, count_include_pad=False)
    return F.interpolate(image, [height, width], mode="bicubic", antialias=True)


def mirror(length: int, multiple: int, least: int, device: torch.device) -> Tensor:
    """Return indices that extend 0..length-1 on both sides by reflection to the next multiple >= least."""
    total = (max(length, least) + multiple - 1) // multiple * multiple
    index = torch.remainder(torch.arange(total, device=device) - (total - length) // 2, 2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


def use_batch_statistics(module: nn.Module) -> None:
    """Let one module, for `apply`, normalise by the batch at hand instead of by running statistics."""
    if isinstance(module, nn.BatchNorm2d) and module.weight.requires_grad:  # not in a frozen extractor
        module.track_running_stats = False
        module.running_mean = None
        module.running_var = None
