"""Tests of scenes.py: deterministic, aligned, varied, and lightness alone does not tell the colour."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab

from dataset.scenes import SCENES, draw


@pytest.fixture(scope="module")
def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw(index, 64) for index in range(60)]


@pytest.fixture(scope="module")
def labs(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return np.stack([rgb2lab(colour) for colour, _ in pairs])


@pytest.mark.parametrize("size", [1, 33, 64, 200])
def test_shapes_and_types(size: int) -> None:
    for image in draw(SCENES - 1, size):
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8


def test_same_bytes_twice_and_in_threads(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda index: draw(index, 64), range(16)))
    for first, second in zip(pairs, again, strict=False):
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("index", range(4))
def test_same_composition_at_two_sizes(index: int) -> None:
    small, large = draw(index, 128)[0], draw(index, 256)[0]
    reduced = np.asarray(Image.fromarray(large).reduce(2), np.float32)
    other = np.float32(draw(index + 100, 128)[0])
    assert np.abs(reduced - small).mean() < 4
    assert np.abs(other - small).mean() > 16


def test_sketch_is_gray_ink_on_white_paper(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for _, sketch in pairs:
        assert np.array_equal(sketch[..., 0], sketch[..., 1])
        assert np.array_equal(sketch[..., 0], sketch[..., 2])
        assert 0.3 < (sketch > 240).mean() < 0.99
        assert sketch.min() < 100
    assert np.mean([(sketch > 200).mean() for _, sketch in pairs]) > 0.6


def test_ink_lies_on_edges_of_the_colour(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    on, off = [], []
    for colour, sketch in pairs:
        edges = sum(np.abs(part).sum(-1) for part in np.gradient(np.float32(colour), axis=(0, 1)))
        on.append(edges[sketch[..., 0] < 128].mean())
        off.append(edges[sketch[..., 0] > 250].mean())
    assert np.mean(on) > 2.5 * np.mean(off)


def test_scenes_differ(labs: np.ndarray) -> None:
    small = labs.reshape(60, 8, 8, 8, 8, 3).mean((2, 4)).reshape(60, -1)
    apart = np.abs(small[:, None] - small[None]).mean(-1) + 100 * np.eye(60)
    assert apart.min() > 3
    assert (labs.mean((1, 2)).std(0) > (8, 4, 8)).all()


def test_colourful_and_lightness_does_not_tell_the_colour(labs: np.ndarray) -> None:
    lightness, ab = labs[..., 0].ravel(), labs[..., 1:].reshape(-1, 2)
    assert 22 < np.hypot(*ab.T).mean() < 45
    assert np.abs(ab.mean(0)).max() < 18
    for low in (20, 40, 60):
        inside = (lightness >= low) & (lightness < low + 20)
        assert inside.mean() > 0.08
        assert ab[inside].std(0).min() > 10


def test_all_hours_and_families_are_drawn() -> None:
    lightness = [rgb2lab(draw(index, 16)[0])[..., 0].mean() for index in range(80)]
    assert min(lightness) < 35
    assert max(lightness) > 70
