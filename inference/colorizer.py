"""The deployable network: an image of any size in, the colour image of the same size out.

Training samples, test.py, colorize.py and generator.ts all run this one forward, eager or scripted.

Sources: He, Sun, Tang, "Guided image filtering", 2013, eq. 5 (colour as a local linear function of a guide);
Aiazzi, Baronti, Selva, "Improving component substitution pansharpening through multivariate regression of
MS+Pan data", 2007 (such a function applied to the detail that the small image lost).
"""

from typing import List, Tuple  # noqa: UP035  TorchScript's names

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imaging import color

STRIP = 2**18  # px joined at a time: what a CPU's caches hold. Four times as many take 1.25 times as long


class Colorizer(nn.Module):
    """Colourise images of any size; what export.py writes as generator.ts.

    The contract:

    - In: (N, 1|3, H, W), any N, H, W >= 1; uint8 in [0, 255], uint16 in [0, 65535], or floating point in
      [0, 1] (what lies outside is clipped). One channel is gray; colours are sRGB, of which only a model of
      input `sketch` sees more than the lightness or luma.
    - Out: (N, 3, H, W) of the same dtype and range on the same device. All but the network computes in
      float32, so that 16-bit lightness stays 16-bit lightness.
    - Device: that of the module (`.to("cuda")`), where the image must be too. `.half()` and
      `.to(torch.bfloat16)` set the precision of the network alone.
    - Batch: its images do not influence one another, unless the recipe says norm_stats=batch.
    - Threads: calls may overlap as long as no attribute is set meanwhile.
    - Determinism: nothing is random. On a CPU, one machine and number of threads gives the same bits for the
      same call; on CUDA torch.backends.cudnn.deterministic does, and allow_tf32 decides whether fp32 is full.
    - Memory: beside image and result a fixed amount per pixel of a strip, and 6 x `size` floats per row.
    - Raises ValueError (torch.jit.Error from the file) for another shape or dtype, for attributes out of
      range, and where the network's output is not finite and the dtype cannot say so. In floating point, NaN
      comes out as NaN.

    The network sees the picture with its short side at `size` px (the long side at most twice that), mirrored
    out to the next multiple that its halvings need; aspect ratio is kept. What it predicts is enlarged:

    - output ab: joined with the input's own full-resolution lightness;
    - output Lab: the restored lightness is given the input's finer detail, except where it was mended;
    - output rgb from L or gray: given the input's own full-resolution lightness or luma;
    - output rgb from line art: the full-resolution lines are multiplied in where the small ones were lighter.

    Attributes that a caller may set, on the file too:
        size: int, px, the short side at which the network works; larger sees finer things and costs more.
        strength: float, 1 as predicted, 0 gray, above 1 more colourful; at most 100.
        upsampling: str, "guided" (colours follow the edges of the full-resolution guide) or "bicubic".
        strip: int, px that are joined at a time; on a GPU 16 times as many.
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
        self.strength = 1.0
        self.upsampling = "guided"
        self.strip = STRIP
        self.luma = y_kind == "rgb" and x_kind != "L"  # the guide is luma, not L
        self.ink = self.luma and x_kind != "gray"  # and dark in it are lines
        self.register_buffer("precision", torch.zeros(0), persistent=False)  # its dtype is the network's

    def forward(self, image: Tensor) -> Tensor:
        """Colourise a batch.

        Args:
            image: (N, 1|3, H, W), uint8, uint16 or floating point in [0, 1]; any N, H, W >= 1.

        Returns:
            (N, 3, H, W), same dtype and range.

        Raises:
            ValueError: another shape or dtype, or the network's output is not finite.
        """
        check_image(image)
        self.check_settings()
        small = self.shrink(image)  # (N, 3, h, w)
        y = self.predict(color.encode(small, self.x_kind))  # (N, 2|3, h, w)
        height, width = image.size(2), image.size(3)
        if not image.is_floating_point() and not bool(torch.isfinite(y).all()):
            raise ValueError("the network's output is not finite: use another precision, or another epoch")
        maps = self.prepare(small, y, min(height, y.size(2)), min(width, y.size(3)))  # (N, M, h, w)
        out = torch.empty([image.size(0), 3, height, width], dtype=image.dtype, device=image.device)
        for top, bottom in strips(image, self.strip):
            rgb = self.join(image[:, :, top:bottom], maps, top, height)
            out[:, :, top:bottom] = color.to_dtype(rgb, image.dtype)
        return out

    def check_settings(self) -> None:
        """Raise ValueError unless the attributes that a caller may set have values that mean something."""
        if self.size < 1 or self.strip < 1:
            raise ValueError("size and strip are px, at least 1")
        if not 0.0 <= self.strength <= 100.0:  # NaN is not
            raise ValueError("strength is from 0 to 100; 1 is as predicted")
        if self.upsampling != "guided" and self.upsampling != "bicubic":
            raise ValueError("upsampling is guided or bicubic")

    def given(self, image: Tensor) -> Tensor:
        """Return what the model reads, (N, 3, H, W) in [0, 1]: luma, unless it takes L or a sketch."""
        rgb = color.rgb01(image)
        if self.x_kind == "L" or self.x_kind == "sketch":
            return rgb
        return color.luma(rgb).expand(-1, 3, -1, -1)

    def shrink(self, image: Tensor) -> Tensor:
        """Bring the short side to `size` px, or the long side to twice that if it would be longer.

        Width first and in strips: so the filter works anyway, and a large image is not copied as floats.
        """
        height, width = image.size(2), image.size(3)
        divisor = max(2 * min(height, width), max(height, width))
        rows = max(1, (4 * self.size * height + divisor) // (2 * divisor))  # rounded to nearest
        columns = max(1, (4 * self.size * width + divisor) // (2 * divisor))
        narrow = torch.empty([image.size(0), 3, height, columns], device=image.device)  # (N, 3, H, w)
        for top, bottom in strips(image, self.strip):
            narrow[:, :, top:bottom] = resample(self.given(image[:, :, top:bottom]), bottom - top, columns)
        return resample(narrow, rows, columns).clamp(0.0, 1.0)

    def predict(self, x: Tensor) -> Tensor:
        """Run the generator on x (N, C, h, w), mirrored out to what its halvings need; returns float32."""
        height, width = x.size(2), x.size(3)
        rows = mirror(height, self.multiple, self.least, x.device)
        columns = mirror(width, self.multiple, self.least, x.device)
        x = x.index_select(2, rows).index_select(3, columns)
        y = self.generator(x.to(self.precision.dtype))
        top = (rows.size(0) - height) // 2
        left = (columns.size(0) - width) // 2
        return y[:, :, top : top + height, left : left + width].to(torch.float32)

    def prepare(self, small: Tensor, y: Tensor, rows: int, columns: int) -> Tensor:
        """Return what full resolution needs of a prediction, as maps to enlarge together.

        Args:
            small: (N, 3, h, w) in [0, 1], what the network saw.
            y: (N, 2|3, h, w) in [-1, 1], the prediction.
            rows, columns: px, of the maps: those of the prediction, or of the image where that is smaller.

        Returns:
            (N, 2C + 1, rows, columns): C planes of colour, their gain per unit of the guide, and the guide
            (L/100 or luma). For output Lab another two: where to keep detail, and the L/100 that was seen.
        """
        guide = color.luma(small) if self.luma else color.rgb_to_lightness(small) / 100.0
        extra = guide[:, :0]
        if self.y_kind == "rgb":
            rgb = ((y + 1.0) / 2.0).clamp(0.0, 1.0)
            gray = color.luma(rgb)
            planes = (rgb - gray) * self.strength
            if self.ink:
                planes = planes + gray
            elif not self.luma:
                planes = color.rgb_to_lab(rgb)[:, 1:] * (self.strength / 110.0)
        else:
            planes = y[:, -2:] * self.strength
        if self.y_kind == "Lab":
            restored = (y[:, :1] + 1.0) / 2.0
            change = (restored - guide) * 25.0
            mended = change - F.avg_pool2d(change, 17, 1, 8, count_include_pad=False)  # not the fading
            extra = torch.cat([torch.exp(-(mended**2)), guide], 1)
            guide = restored
        n = planes.size(1)
        maps = resize(torch.cat([planes, guide, extra], 1), rows, columns)
        gain = torch.zeros_like(maps[:, :n])
        if self.upsampling == "guided":
            gain = local_gain(maps[:, n : n + 1], maps[:, :n])
        return torch.cat([maps[:, :n], gain, maps[:, n:]], 1)

    def join(self, image: Tensor, maps: Tensor, top: int, height: int) -> Tensor:
        """Give rows of an image their colours: (N, 3, rows, W) in [0, 1].

        Args:
            image: (N, 1|3, rows, W), the rows from `top` on, of `height` in all.
            maps: (N, M, h, w), of prepare.
        """
        maps = enlarge(maps, top, image.size(2), height, image.size(3))  # (N, M, rows, W)
        n = 3 if self.luma else 2
        planes, gain, low = maps[:, :n], maps[:, n : 2 * n], maps[:, 2 * n : 2 * n + 1]
        given = self.given(image)
        guide = color.luma(given) if self.luma else color.rgb_to_lightness(given) / 100.0
        if self.y_kind == "Lab":
            detail = guide - maps[:, 2 * n + 2 : 2 * n + 3]  # what the network could not see
            guide = (low + maps[:, 2 * n + 1 : 2 * n + 2].clamp(0.0, 1.0) * detail).clamp(0.0, 1.0)
        if self.ink:  # multiplied in where it is darker than the small image, or thin lines would be lost
            lines = (guide + 0.02) / (low.clamp(0.0, 1.0) + 0.02)
            return torch.minimum(planes + gain * (guide - low), planes * lines).clamp(0.0, 1.0)
        planes = planes + gain * (guide - low)
        if self.luma:
            return color.clip_gamut(planes + guide, guide)
        return color.join_lab(guide * 100.0, planes)


def check_image(image: Tensor) -> None:
    """Raise ValueError unless an image is (N, 1|3, H, W), not empty, of a dtype that Colorizer takes."""
    if image.dim() != 4 or (image.size(1) != 1 and image.size(1) != 3) or image.numel() == 0:
        raise ValueError(f"an image is (N, 1 or 3, H, W) and not empty, got {list(image.shape)}")
    if not (image.dtype == torch.uint8 or image.dtype == torch.uint16 or image.is_floating_point()):
        raise ValueError("an image is uint8, uint16, or floating point in [0, 1]; convert it first")


def strips(image: Tensor, pixels: int) -> List[Tuple[int, int]]:  # noqa: UP006
    """Return the first and last row + 1 of strips of an image (N, C, H, W) with about so many pixels."""
    height = image.size(2)
    if image.is_cuda:
        pixels *= 16
    rows = max(1, pixels // (image.size(0) * image.size(3)))
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def local_gain(guide: Tensor, planes: Tensor) -> Tensor:
    """Return how much planes (N, C, h, w) change per unit of the guide (N, 1, h, w), around each pixel.

    A linear regression in windows of 3 x 3 px, weighted by how well it fits (the square of R^2), and averaged
    over the windows that a pixel lies in. Against bicubic enlargement by 4 and 8, the true colours of 40
    photographs lose 2 and 6 % of their error, those of 35 comics 13 %; without the weights, the guided filter
    itself, and joint bilateral upsampling were all worse than bicubic on photographs, by 9 % to 112 % at 4.
    """
    n = planes.size(1)
    moments = torch.cat([guide, planes, guide * guide, guide * planes, planes * planes], 1)
    moments = F.avg_pool2d(moments, 3, 1, 1, count_include_pad=False)  # (N, 2 + 3C, h, w)
    mean, means = moments[:, :1], moments[:, 1 : n + 1]
    variance = (moments[:, n + 1 : n + 2] - mean * mean).clamp(min=0.0)
    covariance = moments[:, n + 2 : 2 * n + 2] - mean * means
    variances = (moments[:, 2 * n + 2 :] - means * means).clamp(min=0.0).sum(1, keepdim=True)
    fit = (covariance * covariance).sum(1, keepdim=True) / (variance * variances).clamp(min=1e-12)
    noise = 0.0016  # 4 units of L, squared
    gain = covariance / (variance + noise) * fit.clamp(max=1.0) ** 2
    return F.avg_pool2d(gain, 3, 1, 1, count_include_pad=False)


def enlarge(maps: Tensor, top: int, rows: int, height: int, width: int) -> Tensor:
    """Return rows top .. top + rows of maps (N, C, h, w) enlarged to (N, C, height, width) by bicubic.

    Rows are weighed here, where they are few columns wide, since F.interpolate knows no part of an image.
    Source: Keys, "Cubic convolution interpolation for digital image processing", 1981, eq. 15.
    """
    y = (torch.arange(rows, device=maps.device) + (top + 0.5)) * (maps.size(2) / height) - 0.5
    first = y.floor() - 1.0
    enlarged = torch.zeros_like(maps[:, :, :1])
    for tap in range(4):
        d = (y - first - tap).abs()  # px
        weight = torch.where(d <= 1.0, (1.5 * d - 2.5) * d * d + 1.0, ((2.5 - 0.5 * d) * d - 4.0) * d + 2.0)
        index = (first + tap).clamp(0, maps.size(2) - 1).to(torch.int64)
        enlarged = enlarged + maps.index_select(2, index) * weight.view(1, 1, -1, 1)  # (N, C, rows, w)
    return resize(enlarged, rows, width)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize (N, C, H, W) with an antialiased bicubic filter; may overshoot; the same size stays.

    Contiguous, since torch 2.15 on the CPU is wrong where channels lie last and one column comes out.
    """
    return F.interpolate(image.contiguous(), [height, width], mode="bicubic", antialias=True)


def resample(image: Tensor, height: int, width: int) -> Tensor:
    """Resize an image of any size; does what resize does where it can.

    CUDA's filter has room for reductions to about 1/47; beyond 1/16 pixels are averaged in blocks first.
    """
    rows, columns = image.size(2) // (16 * height), image.size(3) // (16 * width)
    if rows > 1 or columns > 1:
        block = [max(1, rows), max(1, columns)]
        image = F.avg_pool2d(image, block, ceil_mode=True, count_include_pad=False)
    return resize(image, height, width)


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
