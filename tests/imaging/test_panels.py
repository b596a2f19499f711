"""panels.py: pages are cut where there are gutters alone, and put together without a trace."""

from typing import Any

import numpy as np
import pytest

from imaging.panels import Panel, find_panels, join_panels
from imaging.pixels import Array


def page(frames: list[tuple[int, int, int, int]], paper: int = 255, noise: int = 0) -> Array:
    """Return a page of 600 x 400 px with framed panels (top, bottom, left, right) full of strokes."""
    rng = np.random.default_rng(0)
    out = np.full((600, 400, 3), paper, np.uint8)
    for top, bottom, left, right in frames:
        out[top:bottom, left:right] = 255 - paper
        inner = rng.integers(0, 256, (bottom - top - 6, right - left - 6, 1), np.uint8)
        out[top + 3 : bottom - 3, left + 3 : right - 3] = inner
    return np.clip(out + rng.integers(-noise, noise + 1, out.shape), 0, 255).astype(np.uint8)


FOUR = [(20, 280, 20, 380), (300, 580, 20, 190), (300, 430, 210, 380), (450, 580, 210, 380)]


@pytest.mark.parametrize(("paper", "noise"), [(255, 0), (0, 0), (240, 12)])
def test_framed_panels_are_found(paper: int, noise: int) -> None:
    panels = find_panels(page(FOUR, paper, noise))
    found = sorted((p.inner_rows.start, p.inner_rows.stop, p.inner_columns.start, p.inner_columns.stop) for p in panels)
    assert len(found) == 4
    assert np.abs(np.array(found) - np.array(sorted(FOUR))).max() <= 2
    cover = np.zeros((600, 400), int)
    for rows, columns, *_ in panels:
        cover[rows, columns] += 1
    assert (cover == 1).all()


def test_panels_of_a_large_page_are_found_in_a_small_copy() -> None:
    large = page(FOUR).repeat(5, 0).repeat(5, 1)  # 3,000 x 2,000 px
    panels = find_panels(large)
    found = sorted((p.inner_rows.start, p.inner_rows.stop, p.inner_columns.start, p.inner_columns.stop) for p in panels)
    assert np.abs(np.array(found) - 5 * np.array(sorted(FOUR))).max() <= 15
    assert sum((p.rows.stop - p.rows.start) * (p.columns.stop - p.columns.start) for p in panels) == large[..., 0].size


def test_what_lies_in_a_gutter_makes_no_seam() -> None:
    image = page(FOUR)
    image[288:292, 100:104] = 0  # a speck, where the cut runs
    panels = find_panels(image)
    assert len(panels) == 4
    parts = [np.full_like(image[p.rows, p.columns], 255 * (i % 2)) for i, p in enumerate(panels)]
    out = join_panels(np.full_like(image, 128), parts, panels).astype(int)
    assert np.abs(np.diff(out[281:300, 100:104].mean((1, 2)))).max() < 0.15 * 255


def sketch() -> Array:
    """Return thin strokes on paper, with white space between them."""
    out = np.full((600, 400, 3), 255, np.uint8)
    for top in (50, 300, 550):
        out[top : top + 2, 100:300:5] = 0
    out[50:550, 100:102] = 0
    return out


@pytest.mark.parametrize("image", [sketch(), page([(10, 590, 10, 390)]), np.full((40, 30, 3), 255, np.uint8)])
def test_a_page_without_gutters_is_one_panel(image: Array) -> None:
    (panel,) = find_panels(image)
    assert (panel.rows, panel.columns) == (slice(0, image.shape[0]), slice(0, image.shape[1]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_panels_are_joined_without_a_seam(dtype: Any) -> None:
    white = 1.0 if dtype == np.float32 else np.iinfo(dtype).max
    image = (page(FOUR) / 255 * white).astype(dtype)
    panels = find_panels(image)
    assert len(panels) == 4
    same = join_panels(image, [image[p.rows, p.columns] for p in panels], panels)
    assert same.dtype == dtype
    assert np.abs(same.astype(float) - image).max() <= 1e-6 * white
    parts = [np.full_like(image[p.rows, p.columns], white * (i + 1) / 5) for i, p in enumerate(panels)]
    out = join_panels(image, parts, panels).astype(float)
    for part, (_, _, rows, columns) in zip(parts, panels, strict=True):
        assert np.abs(out[rows, columns] - part.flat[0]).max() <= 1e-6 * white  # a panel is all colour
    steps = np.abs(np.diff(out[282:299, 100:110].mean((1, 2))))
    assert steps.max() < 0.15 * white  # the gutter goes over from one to the other in small steps


def test_a_panel_at_the_edge_of_the_page_is_coloured_up_to_it() -> None:
    image = np.full((10, 10, 3), 200, np.uint8)
    whole = Panel(slice(0, 10), slice(0, 10), slice(3, 6), slice(3, 6))
    assert (join_panels(image, [np.zeros_like(image)], [whole]) == 0).all()
