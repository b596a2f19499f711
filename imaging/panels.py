"""Cut a comic page into its panels, along the empty bands between them, and put them together again.

Source: Nagy and Seth, "Hierarchical representation of optically scanned documents", 1984
(recursive X-Y cuts).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imaging.pixels import resize, to_8_bits, to_16_bits

Pixels = NDArray[Any]  # (H, W, 3) uint8, uint16, or floating point in [0, 1]

WORK_SIDE = 800  # px, short side of the reduced page in which bands are looked for
MIN_BAND = 0.006  # of the reduced page's short side, the narrowest band that separates panels
MIN_PANEL = 0.15  # of the page's side, the smallest panel
TOLERANCE = 40  # gray levels by which paper may vary
FRAME = 0.5  # share of ink beside a band, on one side at least: a frame, or a panel that is dark up to its end
REACH = 5  # px of the reduced page, how far a frame may lie from the band
ROWS = 256  # px, of a panel that are joined at a time
EMPTY = 0.97  # share of a row or column that has to be paper: frames of other panels may cross it


class Panel(NamedTuple):
    """A cell of the page: cells cover it without overlap; the drawing lies in the inner rectangle. In px."""

    rows: slice
    columns: slice
    inner_rows: slice
    inner_columns: slice


def find_panels(page: Pixels) -> list[Panel]:
    """Return the panels of a page (H, W, 3); the whole page as the only one where no band divides it."""
    height, width = page.shape[:2]
    scale = max(1.0, min(height, width) / WORK_SIDE)
    bits = to_16_bits(page, white=1.0) if page.dtype.kind == "f" else page
    small = resize(to_8_bits(bits), max(1, round(height / scale)), max(1, round(width / scale)))
    gray = small.mean(2)
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    paper = np.abs(gray - np.median(border)) <= TOLERANCE
    least = max(2, round(MIN_BAND * min(gray.shape)))
    cells = _cut(paper, (0, gray.shape[0], 0, gray.shape[1]), (0, 0, 0, 0), least)
    factors = height / gray.shape[0], width / gray.shape[1]
    return [_enlarge(paper, *cell, factors, (height, width)) for cell in cells]


Sides = tuple[int, int, int, int]  # top, bottom, left, right


def join_panels(page: Pixels, parts: Sequence[Pixels], panels: Sequence[Panel]) -> Pixels:
    """Return a page (H, W, 3) whose panels are replaced by their colour versions.

    In the band around a panel its colours fade into the page as it was, so that nothing changes where two
    panels meet.
    """
    out, size = page.copy(), page.shape[:2]
    for part, (*cell, inner_rows, inner_columns) in zip(parts, panels, strict=True):
        ramps = [_ramp(*spans) for spans in zip(cell, (inner_rows, inner_columns), size, strict=True)]
        share = np.minimum(ramps[0][:, None], ramps[1])[..., None]
        there = out[cell[0], cell[1]]  # a view
        for top in range(0, len(there), ROWS):  # few at a time, as floats need four times the memory
            rows = there[top : top + ROWS]
            mixed = rows + share[top : top + ROWS] * (part[top : top + ROWS].astype(np.float32) - rows)
            rows[:] = mixed if page.dtype.kind == "f" else mixed.round()
    return out


def _ramp(cell: slice, inner: slice, length: int) -> NDArray[np.float32]:
    """Return the share of colour along one side: 1 within the panel, 0 where it meets another."""
    place = np.arange(cell.start, cell.stop, dtype=np.float32) + 0.5
    before = (place - cell.start) / max(1, inner.start - cell.start) if cell.start > 0 else 1.0
    after = (cell.stop - place) / max(1, cell.stop - inner.stop) if cell.stop < length else 1.0
    return np.clip(np.minimum(np.minimum(before, after), np.ones_like(place)), 0, 1)


def _cut(paper: NDArray[np.bool_], cell: Sides, margins: Sides, least: int) -> list[tuple[Sides, Sides]]:
    """Return the cells into which a cell falls apart, recursively; cuts run through the middle of a band.

    With each cell come its margins, the parts of bands that lie in it: 0 px where it was not cut.
    """
    for axis in (0, 1):
        start, end = cell[2 * axis : 2 * axis + 2]
        size = MIN_PANEL * paper.shape[axis]
        cuts = [(start, margins[2 * axis], margins[2 * axis])]  # place, and the margins before and after it
        for first, last in _bands(paper[cell[0] : cell[1], cell[2] : cell[3]].mean(1 - axis), least):
            middle = start + (first + last) // 2
            if middle - cuts[-1][0] >= size and end - middle >= size:
                cuts.append((middle, middle - start - first, start + last - middle))
        cuts.append((end, margins[2 * axis + 1], margins[2 * axis + 1]))
        if len(cuts) > 2:
            found = []
            for (a, _, after), (b, before, _) in pairwise(cuts):
                spans, edges = list(cell), list(margins)
                spans[2 * axis : 2 * axis + 2], edges[2 * axis : 2 * axis + 2] = (a, b), (after, before)
                found += _cut(paper, (*spans,), (*edges,), least)
            return found
    return [(cell, margins)]


def _bands(paper: NDArray[np.float64], least: int) -> list[tuple[int, int]]:
    """Return start and end of the bands of a cell, given the share of paper in each row or column.

    A band is at least `least` px wide, touches no end, and runs along a frame: white space inside a drawing
    does not.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], paper >= EMPTY, [False]]).astype(np.int8)))
    found = []
    for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if b - a >= least and a > 0 and b < len(paper):
            beside = np.concatenate([paper[max(0, a - REACH) : a], paper[b : b + REACH]])
            if 1 - beside.min() >= FRAME:
                found.append((a, b))
    return found


def _enlarge(
    paper: NDArray[np.bool_], cell: Sides, margins: Sides, factors: tuple[float, float], size: tuple[int, int]
) -> Panel:
    """Return a cell of the reduced page as a panel of the page, with the rectangle that holds ink.

    Its margins stay outside, whatever lies in them: a speck, or a balloon.
    """
    top, bottom, left, right = cell
    ink = ~paper[top:bottom, left:right]
    spans = []
    for axis, (start, end) in enumerate(((top, bottom), (left, right))):
        before, after = margins[2 * axis : 2 * axis + 2]
        found = np.flatnonzero(ink.any(1 - axis))
        first, last = (start + found[0], start + found[-1] + 1) if len(found) else (start, end)
        places = (start, end, max(first, start + before), min(last, end - after))
        spans.append([min(round(factors[axis] * place), size[axis]) for place in places])
    (t, b, inner_t, inner_b), (le, r, inner_l, inner_r) = spans
    return Panel(slice(t, b), slice(le, r), slice(inner_t, inner_b), slice(inner_l, inner_r))
