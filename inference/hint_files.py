"""Colour hints of a user -> a layer (H, W, 4) of colour and opacity, which Colorizer takes beside the image.

Hints come as points, in JSON:

    [{"x": 410, "y": 220, "radius": 8, "color": "#a03c28"}]             for the only picture
    {"a.jpg": [{"x": 410, ...}], "scans/b.tif": [...]}                  for several, by name or path

with x and y in px of the upright picture, where 0 is the first column or row; or as a painted layer: a PNG with
transparency and the size of the picture, or a folder of such, each named like its picture, in folders like its.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import UserError
from imaging.files import EXTENSIONS, read_frames, scan, search
from imaging.pixels import Array, to_8_bits

RADIUS = 4.0  # px, of a point that does not say
MOST = 1e6  # px, beyond any picture


class Point(NamedTuple):
    """A spot of one colour."""

    x: float  # px, the column; whole numbers are the middles of pixels
    y: float  # px, the row
    color: str  # "#rrggbb"
    radius: float = RADIUS  # px


def draw_points(points: Sequence[Point], height: int, width: int) -> Array:
    """Return points as discs on a transparent layer (H, W, 4) uint8; later ones lie above earlier ones.

    Raises:
        UserError: a point lies outside the picture.
    """
    layer = np.zeros((height, width, 4), np.uint8)
    for x, y, color, radius in points:
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"the hint at {x:g}, {y:g} lies outside the picture of {width} x {height} px")
        top, left = max(0, math.floor(y - radius)), max(0, math.floor(x - radius))
        rows = np.arange(top, min(height, math.ceil(y + radius) + 1))[:, None]
        columns = np.arange(left, min(width, math.ceil(x + radius) + 1))
        inside = np.hypot(rows - y, columns - x) <= radius
        inside |= (rows == int(y)) & (columns == int(x))  # a small one still has a pixel
        layer[rows[0, 0] : rows[-1, 0] + 1, columns[0] : columns[-1] + 1][inside] = [
            *bytes.fromhex(color[1:]),
            255,
        ]
    return layer


def parse_points(content: Any, where: str) -> list[Point]:
    """Return points as JSON gives them: a list of objects. Raises UserError where they are something else."""
    if not isinstance(content, list):
        raise UserError(f"{where}: hints are a list of points, got {type(content).__name__}")
    return [_parse_point(entry, f"{where}, hint {i + 1}") for i, entry in enumerate(content)]


def _parse_point(entry: Any, where: str) -> Point:
    if isinstance(entry, dict) and "colour" in entry:
        entry = {"color" if key == "colour" else key: value for key, value in entry.items()}
    if not isinstance(entry, dict) or not {"x", "y", "color"} <= entry.keys() <= set(Point._fields):
        raise UserError(f'{where}: a point has x, y, color and perhaps radius, as in {{"x": 10, "y": 20, ...}}')
    numbers = [entry["x"], entry["y"], entry.get("radius", RADIUS)]
    if not all(isinstance(n, Real) and not isinstance(n, bool) and -MOST < n < MOST for n in numbers):
        raise UserError(f"{where}: x, y and radius are numbers of px")
    if numbers[2] <= 0:
        raise UserError(f"{where}: radius is greater than 0")
    if not re.fullmatch("#[0-9a-fA-F]{6}", str(entry["color"])):
        raise UserError(f'{where}: color is written as "#rrggbb", got {entry["color"]!r}')
    return Point(float(numbers[0]), float(numbers[1]), entry["color"], float(numbers[2]))


class Hints:
    """The hints of all pictures of a call."""

    def __init__(self, path: Path, pictures: Sequence[Path]) -> None:
        """Read a JSON file; of a layer, or a folder of layers, see which picture each is for.

        Args:
            pictures: the inputs.

        Raises:
            UserError: no such file, not as it should be, without any hints, or for no picture among the inputs.
        """
        self.found: dict[Path, list[Point] | Path] = {}  # picture -> points, or the file of its layer
        self.last: tuple[Path, Array] | None = None  # layer, which all pages of a document take
        fitting: dict[str, list[Path]] = defaultdict(list)
        for picture in pictures:
            for name in _names(picture):
                fitting[name].append(picture)
        for name, hints in _entries(path):
            where = f"{path}, {name}" if name else str(path)
            found = fitting[name] if name else pictures
            if not found:
                raise UserError(f"{where}: hints for a picture that is not among the inputs")
            if len(found) > 1:
                remedy = "name it by more of its path" if name else "name the picture that they are for"
                if hints == path:
                    remedy = "put it into a folder, named like its picture, and give that folder"
                raise UserError(f"{where}: hints for one picture, but {len(found)} fit; {remedy}")
            if found[0] in self.found:
                raise UserError(f"{where}: {found[0]} has hints already, by another name; put them together")
            self.found[found[0]] = hints if isinstance(hints, Path) else parse_points(hints, where)

    def layer(self, picture: Path, height: int, width: int) -> Array | None:
        """Return the hints of a picture, or of each of its pages, as (H, W, 4) uint8; None where it has none.

        Raises:
            UserError: a point outside the picture, or a layer of another size or without transparency.
        """
        hints = self.found.get(picture)
        if not isinstance(hints, Path):
            return draw_points(hints, height, width) if hints else None
        last = self.last  # threads share it
        if last is None or last[0] != hints:
            self.last = last = hints, _read_layer(hints)
        layer = last[1]
        if layer.shape[:2] != (height, width):
            raise UserError(f"{hints} has {layer.shape[1]} x {layer.shape[0]} px, its picture {width} x {height}")
        return layer


def _entries(path: Path) -> list[tuple[str, Any]]:
    """Return what a file or folder of hints holds: what it calls a picture, and its points, or the file of its layer.

    The name is empty where there is one picture. Raises UserError.
    """
    if path.is_dir():
        layers = search(path, products=True).images
        if not layers:
            raise UserError(f"no layer in {path}: it holds a PNG with transparency for each picture, named like it")
        return [(file.relative_to(path).with_suffix("").as_posix(), file) for file in layers]
    if path.suffix.lower() == ".json":
        content = _read_json(path)
        if content == {}:
            raise UserError(f"{path} holds no hints")
        return list(content.items()) if isinstance(content, dict) else [("", content)]
    if not path.is_file() or path.suffix.lower() not in EXTENSIONS:
        forms = "points in a .json file, a picture with transparency, or a folder of such"
        raise UserError(f"{path}: {'this is none' if path.exists() else 'there is none'}; hints are {forms}")
    _read_layer(path)  # before any work
    return [("", path)]


def _read_layer(path: Path) -> Array:
    """Return a painted layer (H, W, 4) uint8. Raises UserError where it has no transparency."""
    with closing(read_frames(scan(path))) as frames:
        frame = next(frames)
    if frame.alpha is None:
        raise UserError(f"{path} has no transparency: paint hints on a transparent layer")
    return np.dstack([to_8_bits(frame.pixels), to_8_bits(frame.alpha)])


def _names(picture: Path) -> set[str]:
    """Return what hints may call a picture: any end of its path, with or without the last suffix."""
    ends = ["/".join(picture.parts[-n:]) for n in range(1, len(picture.parts) + 1)]
    return {*ends, *(end.removesuffix(picture.suffix) for end in ends), str(picture)}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8
        raise UserError(f"{path} is not JSON ({error})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON. Raises ValueError where a key stands in it twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice beside {next(iter(found))}")
    return found
