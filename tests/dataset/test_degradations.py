"""dataset/degradations.py: what each one does, parity with SciPy and Pillow, and the network's input."""

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

import config
from config import Recipe
from dataset import degradations, scenes
from dataset.degradations import DEGRADATIONS, JPEG_TABLE, make_fixed_input, make_input, seeded
from imaging import color

NAMES = list(DEGRADATIONS)


def smooth(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return gray pictures (N, 1, H, W) in [0, 1] with something at every tone."""
    coarse = torch.rand((count, 1, 5, 5), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def photo(height: int = 64, width: int = 64) -> Tensor:
    """Return the gray version (1, 1, H, W) in [0, 1] of a scene."""
    image = scenes.draw(5, max(height, width))[0][:height, :width]
    return torch.from_numpy(np.asarray(Image.fromarray(image).convert("L")) / 255).float()[None, None]


def colours(count: int, size: int = 8, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=rng, dtype=torch.uint8)


def recipe(**changes: Any) -> Recipe:
    return Recipe("x", **{"output": "rgb", **changes})


def hit(given: Tensor, plain: Tensor) -> Tensor:
    """Return which pictures (N,) were changed at all."""
    return (given - plain).abs().amax((1, 2, 3)) > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_each_keeps_shape_and_takes_every_size(name: str) -> None:
    for shape, strength in (((1, 1), 0.0), ((1, 40), 1.0), ((33, 47), 0.0), ((33, 47), 1.0)):
        image = smooth(3, *shape)
        before = image.clone()
        out = DEGRADATIONS[name](image, strength, seeded("cpu", 1))
        assert (out.shape, out.dtype) == (image.shape, torch.float32)
        assert torch.isfinite(out).all()
        assert torch.equal(image, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_each_works_on_the_gpu() -> None:
    image = smooth(3, 64, 64).cuda()
    for name in NAMES:
        out = DEGRADATIONS[name](image, 1.0, seeded("cuda", 1))
        assert out.device.type == "cuda", name
        assert torch.allclose(out, DEGRADATIONS[name](image, 1.0, seeded("cuda", 1)), atol=1e-5), name
    source = colours(3).cuda()
    every = recipe(**{f"{name}_p": 0.5 for name in NAMES})
    assert make_input(source, source, every, seeded("cuda", 1)).device.type == "cuda"


@pytest.mark.parametrize("name", NAMES)
def test_each_depends_on_the_generator_alone(name: str) -> None:
    image = smooth(4, 64, 64)
    first = DEGRADATIONS[name](image, 0.7, seeded("cpu", 1))
    torch.manual_seed(5)  # global state must not matter
    assert torch.equal(first, DEGRADATIONS[name](image, 0.7, seeded("cpu", 1)))
    assert not torch.equal(first, DEGRADATIONS[name](image, 0.7, seeded("cpu", 2)))
    same = DEGRADATIONS[name](image[:1].expand(4, -1, -1, -1), 0.7, seeded("cpu", 1))
    assert len({part.numpy().tobytes() for part in same}) == 4  # each picture of a batch its own


@pytest.mark.parametrize("name", NAMES)
def test_strength_scales_the_effect(name: str) -> None:
    image = smooth(16, 96, 96)
    effect = [
        float((DEGRADATIONS[name](image, strength, seeded("cpu", 1)).clamp(0, 1) - image).abs().mean())
        for strength in (0.0, 0.2, 0.6, 1.0)
    ]
    assert effect == sorted(effect)
    assert effect[0] < 0.01
    assert effect[3] > 1.9 * effect[1]
    assert effect[3] > 5e-4


@pytest.mark.parametrize("name", ["fading", "blotches", "stripes"])
def test_lengths_grow_with_the_image(name: str) -> None:
    small, large = smooth(8, 64, 64), smooth(8, 256, 256)  # the same picture, four times as large
    change = DEGRADATIONS[name](large, 0.8, seeded("cpu", 3)) - large
    expected = torch.nn.functional.avg_pool2d(change, 4)
    assert (DEGRADATIONS[name](small, 0.8, seeded("cpu", 3)) - small - expected).abs().mean() < 0.01


@pytest.mark.parametrize("size", [64, 256])
def test_blur_is_scipys_gaussian(size: int) -> None:
    image, largest = torch.cat([photo(size, size)] * 6), 3.0 * 0.9 * size / 256
    sigma = 0.2 + torch.rand((6, 1), generator=seeded("cpu", 4)) * (largest - 0.2)  # what blur draws
    out = DEGRADATIONS["blur"](image, 0.9, seeded("cpu", 4))
    for part, plain, s in zip(out, image, sigma.flatten().tolist(), strict=True):
        expected = gaussian_filter(plain[0].numpy(), s, mode="nearest", radius=math.ceil(3 * largest))
        assert np.abs(part[0].numpy() - expected).max() < 1e-5
    assert sigma.max() > 2 * sigma.min()


def saved(image: Tensor, table: list[int]) -> Tensor:
    """Return a gray picture (1, 1, H, W) after Pillow's JPEG with this quantisation table."""
    file = io.BytesIO()
    levels = color.to_uint8(image)[0, 0].numpy()
    Image.fromarray(levels).save(file, "JPEG", qtables=[table], subsampling=0)
    return torch.from_numpy(np.array(Image.open(file))).float()[None, None] / 255


def test_jpeg_table_is_pillows_at_quality_50() -> None:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG", quality=50)
    assert [level for row in JPEG_TABLE for level in row] == list(Image.open(file).quantization[0])


@pytest.mark.parametrize(("shape", "scale"), [((64, 64), 0.5), ((33, 47), 2.0)])
def test_jpeg_is_pillows_within_its_rounding(
    shape: tuple[int, int], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = [[round(level * scale) for level in row] for row in JPEG_TABLE]
    monkeypatch.setattr(degradations, "JPEG_TABLE", table)
    monkeypatch.setattr(degradations, "uniform", lambda *_, **__: torch.tensor(1.0))
    image = color.to_uint8(photo(*shape)).float() / 255
    theirs = saved(image, [level for row in table for level in row])
    apart = 255 * (DEGRADATIONS["jpeg"](image, 1.0, seeded("cpu", 0)).clamp(0, 1) - theirs).abs()
    assert (theirs - image).abs().mean() * 255 > 1  # there is something to agree about
    blocks = torch.nn.functional.max_pool2d(apart, 8, ceil_mode=True)
    assert (blocks < 0.7).float().mean() > 0.7  # Pillow's are whole levels
    assert apart.max() < 15  # elsewhere a coefficient lay halfway, and was rounded the other way


def test_grain_is_strongest_in_the_midtones_and_leaves_the_mean() -> None:
    spread = []
    for tone in (0.0, 0.5, 1.0):
        change = DEGRADATIONS["grain"](torch.full((16, 1, 64, 64), tone), 1.0, seeded("cpu", 0)) - tone
        spread.append(float(change.std()))
        assert abs(float(change.mean())) < 0.005
    assert abs(float((change[..., 1:] * change[..., :-1]).mean())) > 0.1 * spread[2] ** 2  # of 2 px too
    assert spread[1] == pytest.approx(2.5 * spread[0], rel=0.01)
    assert spread[2] == pytest.approx(spread[0], rel=0.01)


def test_fading_keeps_the_order_of_tones_and_takes_contrast() -> None:
    ramp = torch.linspace(0, 1, 101).expand(64, 1, 1, -1)
    out = DEGRADATIONS["fading"](ramp, 1.0, seeded("cpu", 0))
    assert (out.diff(dim=3) >= 0).all()
    black, white = out[..., 0], out[..., -1]
    assert black.min() >= 0
    assert 0.2 < black.max() <= 0.6
    assert 0.5 <= white.min() < 0.8
    assert (white - black).min() >= 0.2 - 1e-6
    middle = (out[..., 50] - black) / (white - black)
    assert middle.min() < 0.4 < 0.6 < middle.max()


def test_blotches_are_patches_brighter_or_darker() -> None:
    change = DEGRADATIONS["blotches"](torch.full((64, 1, 64, 64), 0.5), 1.0, seeded("cpu", 0)) - 0.5
    stained = change.abs() > 0.02
    assert 0.03 < stained.float().mean() < 0.4
    assert change.max() > 0.3
    assert change.min() < -0.3
    for part in change:  # one tone per picture
        assert part.min() > -1e-6 or part.max() < 1e-6


def test_stripes_run_from_top_to_bottom() -> None:
    image = smooth(16, 48, 64)
    change = DEGRADATIONS["stripes"](image, 1.0, seeded("cpu", 0)) - image
    assert (change - change[:, :, :1]).abs().max() < 1e-6
    assert change.max() > 0.1
    assert change.min() < -0.1
    touched = (change[:, 0, 0].abs() > 0.02).float().mean(1)
    assert 0 < touched.mean() < 0.5


def test_scratches_are_thin_and_white_or_black() -> None:
    image = torch.full((12, 1, 256, 256), 0.5)
    out = DEGRADATIONS["scratches"](image, 1.0, seeded("cpu", 0))
    assert 0 <= out.min() < 0.1
    assert 0.9 < out.max() <= 1
    touched = ((out - image).abs() > 0.05).float().mean((1, 2, 3))
    assert 0.005 < touched.mean() < 0.06
    upright = ((out - image).abs() > 0.05).any(2).float().mean()  # columns and rows that a thread crosses
    level = ((out - image).abs() > 0.05).any(3).float().mean()
    assert upright < level


@pytest.mark.parametrize("kind", ["L", "gray", "line", "sketch"])
def test_without_degradations_the_input_is_the_source(kind: str) -> None:
    source, target = colours(3), colours(3, seed=1)
    plain = recipe(input=kind, **dict.fromkeys(NAMES, 1.0))  # strengths without probabilities
    assert make_input(source, target, plain, seeded("cpu", 0)) is source
    assert make_fixed_input(source, target, plain, [0, 1, 2]) is source


@pytest.mark.parametrize(("kind", "name"), [("L", name) for name in NAMES] + [("sketch", "fading")])
def test_probability_1_changes_every_input_and_no_target(name: str, kind: str) -> None:
    source, target = (torch.cat([(255 * smooth(4, 96, 96, i)).to(torch.uint8)] * 3, 1) for i in range(2))
    before = source.clone(), target.clone()
    out = make_input(source, target, recipe(input=kind, **{name: 1.0, f"{name}_p": 1.0}), seeded("cpu", 0))
    assert (out.shape, out.dtype) == ((4, 1, 96, 96), torch.float32)
    assert 0 <= out.min() <= out.max() <= 1
    assert hit(out, color.luma(color.rgb01(source))).all()
    assert torch.equal(source, before[0])
    assert torch.equal(target, before[1])
    assert color.encode(out, kind).shape == (4, color.CHANNELS[kind], 96, 96)


def test_probability_is_kept() -> None:
    source = colours(600)
    plain = color.luma(color.rgb01(source))
    for p in (0.1, 0.5, 0.9):
        out = make_input(source, source, recipe(input="gray", fading=1.0, fading_p=p), seeded("cpu", 0))
        assert abs(float(hit(out, plain).float().mean()) - p) < 4 * math.sqrt(p * (1 - p) / 600)
        assert torch.equal(out[~hit(out, plain)], plain[~hit(out, plain)])


def test_degradations_are_independent_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(config.DEGRADATIONS) == NAMES
    calls: list[tuple[str, float]] = []

    def add(name: str, value: float) -> degradations.Degradation:
        return lambda image, strength, rng: calls.append((name, strength)) or image + value

    for i, name in enumerate(NAMES):
        monkeypatch.setitem(degradations.DEGRADATIONS, name, add(name, 2.0**i / 256))
    strengths = {name: 0.1 * i for i, name in enumerate(NAMES)}
    half = recipe(input="gray", **strengths, **{f"{name}_p": 0.5 for name in NAMES})
    black = torch.zeros(4000, 3, 1, 1, dtype=torch.uint8)
    out = make_input(black, black, half, seeded("cpu", 0))
    assert calls == list(strengths.items())
    counts = torch.bincount((256 * out.flatten()).round().long(), minlength=128)
    assert counts.numel() == 128  # all combinations
    assert 10 < counts.min() < counts.max() < 60  # 31 expected of each


@pytest.mark.parametrize("kind", ["L", "gray"])
def test_images_that_are_not_hit_look_to_the_network_as_always(kind: str) -> None:
    source = colours(40, 16)
    half = recipe(input=kind, fading=1.0, fading_p=0.5)
    out = color.encode(make_input(source, source, half, seeded("cpu", 0)), kind)
    plain = color.encode(source, kind)
    apart = (out - plain).abs().amax((1, 2, 3))
    assert 8 < int((apart < 0.01).sum()) < 32  # half a level of 255 at most, from recolouring to gray
    assert int(((apart >= 0.01) & (apart < 0.05)).sum()) == 0


@pytest.mark.parametrize(("share", "degraded"), [(0.0, False), (0.5, False), (0.5, True), (1.0, True)])
def test_line_art_and_gray_mix_per_picture(share: float, degraded: bool) -> None:
    lines = torch.zeros(400, 3, 8, 8, dtype=torch.uint8)
    target = torch.full_like(lines, 255)
    mixed = recipe(input="gray+line", line_share=share, stripes=0.0, stripes_p=float(degraded))
    out = make_input(lines, target, mixed, seeded("cpu", 0))
    assert out.shape == ((400, 1, 8, 8) if degraded else (400, 3, 8, 8))
    is_line = out.amax((1, 2, 3)) == 0
    assert (is_line | (out.amin((1, 2, 3)) == out.max())).all()  # wholly the one or the other
    assert abs(float(is_line.float().mean()) - share) < 4 * math.sqrt(share * (1 - share) / 400) + 1e-9
    assert lines.max() == 0
    assert target.min() == 255


def test_seeded_generators_differ_in_every_number() -> None:
    numbers = ((1,), (2,), (1, 2), (2, 1))
    assert len({float(torch.rand(1, generator=seeded("cpu", *some))) for some in numbers}) == 4


@pytest.mark.parametrize(
    ("changes", "channels"),
    [({"input": "L", "grain_p": 0.7, "scratches_p": 0.7}, 1), ({"input": "gray+line"}, 3)],
)
def test_a_fixed_input_depends_on_the_number_of_the_picture_alone(changes: dict[str, Any], channels: int) -> None:
    source = colours(1, 32).expand(8, -1, -1, -1)  # eight times the same
    made, all_ids = recipe(**changes), list(range(8))
    whole = make_fixed_input(source, 255 - source, made, all_ids)
    assert (whole.shape, whole.dtype) == ((8, channels, 32, 32), torch.uint8)
    assert len({part.numpy().tobytes() for part in whole}) > 1
    torch.manual_seed(0)  # global state must not matter
    for ids in ([3], [5, 1, 3, 5], all_ids[::-1]):
        part = source[: len(ids)]
        assert torch.equal(make_fixed_input(part, 255 - part, made, ids), whole[ids])
    assert not torch.equal(make_fixed_input(source, 255 - source, replace(made, seed=1), all_ids), whole)
