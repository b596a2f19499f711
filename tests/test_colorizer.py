"""colorizer.py: any size, batch and dtype; lightness and lines of the full-size input are kept."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from torch import Tensor, nn

import color
from colorizer import Colorizer, mirror, resample, use_batch_statistics
from models import UNet

KINDS = [("L", "ab"), ("sketch", "rgb")]
DTYPES = [torch.uint8, torch.float16, torch.float32, torch.float64]
SHAPES = [(1, 1, 1, 1), (1, 3, 1, 500), (2, 1, 37, 501), (1, 3, 500, 1), (3, 3, 33, 32), (2, 3, 70, 50)]
kinds = pytest.mark.parametrize(("x_kind", "y_kind"), KINDS)


class Constant(nn.Module):
    """A generator that predicts one value everywhere and remembers what it saw."""

    def __init__(self, channels: int, value: float) -> None:
        super().__init__()
        self.channels, self.value = channels, value
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x.new_full((x.size(0), self.channels, x.size(2), x.size(3)), self.value)


def build(x_kind: str, y_kind: str, size: int = 32, dropout: float = 0.5) -> Colorizer:
    """Return a Colorizer with a small seeded network of strong colours."""
    torch.manual_seed(3)
    generator = UNet(color.CHANNELS[x_kind], color.CHANNELS[y_kind], ngf=4, depth=3, dropout=dropout)
    with torch.no_grad():
        generator.last[0].weight.mul_(8.0)
    return Colorizer(generator, x_kind, y_kind, size, 8).eval()


def picture(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    return (image * 255).to(torch.uint8) if dtype == torch.uint8 else image.to(dtype)


def lightness(image: Tensor) -> np.ndarray:
    """Return L (N, H, W) by scikit-image."""
    return rgb2lab(color.rgb01(image).permute(0, 2, 3, 1).double().numpy())[..., 0]


@kinds
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_size_batch_and_dtype(
    x_kind: str, y_kind: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    image = picture(*shape, dtype=dtype)
    before = image.clone()
    with torch.no_grad():
        out = build(x_kind, y_kind)(image)
    assert out.shape == (shape[0], 3, *shape[2:])
    assert out.dtype == dtype
    assert torch.equal(image, before)
    if dtype != torch.uint8:
        assert out.isfinite().all()
        assert out.min() >= 0
        assert out.max() <= 1


@kinds
def test_dtypes_agree_and_images_of_a_batch_do_not_mix(x_kind: str, y_kind: str) -> None:
    colorizer, image = build(x_kind, y_kind), picture(3, 3, 41, 50)
    with torch.no_grad():
        out = colorizer(image)
        as_float = color.to_uint8(colorizer(image.double() / 255))
        alone = torch.cat([colorizer(one[None]) for one in image])
    assert (out.int() - as_float.int()).abs().max() <= 1
    assert (out.int() - alone.int()).abs().max() <= 1


@kinds
def test_one_channel_is_a_gray_picture(x_kind: str, y_kind: str) -> None:
    colorizer, gray = build(x_kind, y_kind), picture(1, 1, 40, 30)
    with torch.no_grad():
        assert torch.equal(colorizer(gray), colorizer(gray.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.uint8, 0.6), (torch.float32, 0.02), (torch.float64, 0.02)], ids=str
)
@pytest.mark.parametrize("autocast", [False, True])
def test_lightness_is_the_inputs_at_full_resolution(
    dtype: torch.dtype, tolerance: float, autocast: bool
) -> None:
    image = picture(2, 3, 150, 97, dtype=dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = build("L", "ab")(image)
    assert np.abs(lightness(out) - lightness(image)).max() < tolerance
    spread = out.amax(1) - out.amin(1)
    assert spread.double().mean() > (2 if dtype == torch.uint8 else 2 / 255)  # it did add colour


def test_at_its_own_size_it_is_the_generator() -> None:
    colorizer, image = build("L", "ab"), picture(2, 3, 32, 32)
    with torch.no_grad():
        y = colorizer.generator(color.encode(image, "L"))
        expected = color.to_uint8(color.join_lab(color.rgb_to_lab(color.rgb01(image))[:, :1], y))
        assert torch.equal(colorizer(image), expected)
        sketcher = build("sketch", "rgb")
        rgb = (sketcher.generator(color.encode(image, "sketch")) + 1) / 2
        assert torch.equal(sketcher(image), color.to_uint8(rgb))


def test_a_gray_prediction_returns_the_gray_picture() -> None:
    image = picture(2, 3, 45, 80)
    out = Colorizer(Constant(2, 0.0), "L", "ab", 32, 8)(image)
    assert torch.equal(out, color.show_input(image, "L"))


@pytest.mark.parametrize(
    ("height", "width", "small"),
    [
        (32, 32, (32, 32)),
        (64, 64, (32, 32)),
        (128, 64, (64, 32)),
        (60, 90, (32, 48)),
        (100, 300, (21, 64)),  # the long side is twice `size` at most
        (37, 501, (5, 64)),
        (500, 1, (64, 1)),
        (1, 1, (32, 32)),
        (16, 20, (32, 40)),
    ],
)
def test_the_network_sees_the_aspect_kept(height: int, width: int, small: tuple[int, int]) -> None:
    generator = Constant(2, 0.1)
    colorizer = Colorizer(generator, "L", "ab", 32, 8)
    assert colorizer.shrink(torch.rand(1, 3, height, width)).shape[2:] == small
    colorizer(picture(1, 3, height, width))
    assert generator.seen[0].shape == (1, 1, *(-(-side // 8) * 8 for side in small))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 64), (1, 1), (9, 15)])
def test_predict_cuts_out_what_it_mirrored(height: int, width: int) -> None:
    x = torch.rand(2, 3, height, width)
    assert torch.equal(Colorizer(nn.Identity(), "sketch", "rgb", 32, 8).predict(x), x)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 17, 250])
@pytest.mark.parametrize("multiple", [4, 8, 256])
def test_mirror_is_numpys_symmetric_padding(length: int, multiple: int) -> None:
    missing = -length % multiple
    expected = np.pad(np.arange(length), (missing // 2, missing - missing // 2), "symmetric")
    assert mirror(length, multiple, torch.device("cpu")).tolist() == expected.tolist()


def test_resample_keeps_the_same_size_and_flat_areas() -> None:
    image = picture(1, 3, 20, 30, dtype=torch.float32)
    assert resample(image, 20, 30) is image
    torch.testing.assert_close(
        resample(torch.full((1, 2, 20, 30), 0.3), 41, 7), torch.full((1, 2, 41, 7), 0.3)
    )


def test_fine_texture_is_averaged_for_the_network() -> None:
    fine = picture(1, 3, 128, 128, dtype=torch.float32)  # noise of deviation 0.29
    assert Colorizer(Constant(2, 0.0), "L", "ab", 32, 8).shrink(fine).std() < 0.12


def test_lines_of_a_sketch_stay_dark_and_thin_at_four_times_the_working_size() -> None:
    sketch = torch.full((1, 3, 128, 128), 255, dtype=torch.uint8)
    sketch[:, :, 61] = 0
    out = Colorizer(Constant(3, 0.6), "sketch", "rgb", 32, 8)(sketch).int()  # 0.6 in [-1, 1] is level 204
    assert out[:, :, 61].max() < 50
    assert (out[:, :, :55] - 204).abs().max() <= 6
    assert (out[:, :, 67:] - 204).abs().max() <= 6
    assert out[:, :, 60].min() > 190
    assert out[:, :, 62].min() > 190


def test_use_batch_statistics_normalises_by_the_batch() -> None:
    image = picture(2, 3, 32, 32)
    colorizer = build("L", "ab", dropout=0.0)
    with torch.no_grad():
        running = colorizer(image)
        expected = build("L", "ab", dropout=0.0).train()(image)
        colorizer.apply(use_batch_statistics)
        assert torch.equal(colorizer(image), expected)
        assert not torch.equal(running, expected)
        dropping = build("L", "ab").apply(use_batch_statistics)
        assert torch.equal(dropping(image), dropping(image))  # dropout stays off


@kinds
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_scripted_is_eager(x_kind: str, y_kind: str, batch_statistics: bool) -> None:
    colorizer = build(x_kind, y_kind)
    if batch_statistics:
        colorizer.apply(use_batch_statistics)
    scripted = torch.jit.script(colorizer)
    with torch.no_grad():
        for shape in ((2, 1, 37, 61), (1, 3, 1, 1), (1, 3, 64, 64)):
            for dtype in (torch.uint8, torch.float32):
                image = picture(*shape, dtype=dtype)
                torch.testing.assert_close(scripted(image), colorizer(image), atol=1e-5, rtol=0)


def test_size_can_be_set_on_the_scripted_module() -> None:
    colorizer, image = build("L", "ab"), picture(1, 3, 64, 64)
    scripted = torch.jit.script(colorizer)
    with torch.no_grad():
        small = scripted(image)
        colorizer.size = scripted.size = 64
        assert torch.equal(scripted(image), colorizer(image))
        assert not torch.equal(scripted(image), small)
