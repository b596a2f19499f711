"""hint_files.py: points and painted layers become layers; every mistake is one sentence."""

import json
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from config import UserError
from inference.hint_files import Hints, Point, draw_points

A, B = Path("scans/a.jpg"), Path("b.png")
RED = {"x": 3, "y": 2, "color": "#ff0000"}


def written(content: Any, name: str = "points.json") -> Path:
    path = Path(name)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_points_are_discs_and_a_small_one_still_has_a_pixel() -> None:
    layer = draw_points([Point(10, 20, "#ff8000", 5), Point(30.4, 39.9, "#0000ff", 0.1)], 40, 50)
    assert (layer.shape, layer.dtype) == ((40, 50, 4), np.uint8)
    rows, columns = np.nonzero(layer[..., 3])
    there = {(int(y), int(x)) for y, x in zip(rows, columns, strict=True)}
    disc = {(y, x) for y in range(40) for x in range(50) if (y - 20) ** 2 + (x - 10) ** 2 <= 25}
    assert there == disc | {(39, 30)}
    assert layer[20, 10].tolist() == [255, 128, 0, 255]
    assert layer[39, 30].tolist() == [0, 0, 255, 255]


def test_hints_find_their_picture() -> None:
    hints = Hints(written({"a.jpg": [RED], "b": [{**RED, "radius": 1}]}), [A, B])
    assert hints.layer(A, 9, 9)[2, 3].tolist() == [255, 0, 0, 255]
    assert int(hints.layer(B, 9, 9)[..., 3].astype(bool).sum()) == 5
    assert Hints(written([RED]), [A]).layer(A, 9, 9) is not None
    assert Hints(written({"scans/a.jpg": [RED]}), [A, B]).layer(B, 9, 9) is None


def test_a_layer_is_taken_as_it_is_painted() -> None:
    painted = np.zeros((6, 8, 4), np.uint8)
    painted[2:4, 3:5] = (10, 200, 30, 128)
    Path("layers").mkdir()
    for path in (Path("one.png"), Path("layers/a.png")):
        Image.fromarray(painted).save(path)
    assert np.array_equal(Hints(Path("one.png"), [A]).layer(A, 6, 8), painted)
    folder = Hints(Path("layers"), [A, B])
    assert np.array_equal(folder.layer(A, 6, 8), painted)
    assert folder.layer(B, 6, 8) is None
    with pytest.raises(UserError, match=r"8 x 6 px.*9 x 6"):
        folder.layer(A, 6, 9)
    with pytest.raises(UserError, match=r"2 fit; put it into a folder, named like its picture"):
        Hints(Path("one.png"), [A, B])
    Image.fromarray(255 - painted).save("one.png")  # painted anew, for another call of the same process
    assert np.array_equal(Hints(Path("one.png"), [A]).layer(A, 6, 8), 255 - painted)
    Image.fromarray(painted[..., :3]).save("one.png")
    with pytest.raises(UserError, match="no transparency"):
        Hints(Path("one.png"), [A])


def test_layers_lie_in_folders_like_those_of_their_pictures() -> None:
    pictures = [Path("scans/a/1.jpg"), Path("scans/b/1.jpg")]
    for folder, value in (("a", 10), ("b", 20)):
        Path("layers", folder).mkdir(parents=True)
        Image.fromarray(np.full((3, 4, 4), value, np.uint8)).save(f"layers/{folder}/1.png")
    Path("layers/._a.png").write_bytes(b"of a desktop")
    hints = Hints(Path("layers"), pictures)
    assert [int(hints.layer(picture, 3, 4).max()) for picture in pictures] == [10, 20]


def test_ten_thousand_layers_find_their_pictures_in_no_time() -> None:
    pictures = [Path(f"scans/of/many/{i:05d}.jpg") for i in range(10_000)]
    path, began = written({picture.name: [RED] for picture in pictures}), process_time()
    assert len(Hints(path, pictures).found) == 10_000
    assert process_time() - began < 10


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        (3, "list of points"),
        ({"a.jpg": {"x": 1}}, "list of points"),
        ([3], "x, y, color"),
        ([{"x": 1, "y": 2}], "x, y, color"),
        ([{**RED, "size": 3}], "x, y, color"),
        ([{**RED, "x": "3"}], "numbers"),
        ([{**RED, "y": True}], "numbers"),
        ([{**RED, "x": float("nan")}], "numbers"),
        ([{**RED, "radius": 0}], "radius"),
        ([{**RED, "color": "red"}], "#rrggbb"),
        ({"c.jpg": [RED]}, "c.jpg.*not among the inputs"),
        ({}, "holds no hints"),
        ("[" * 100_000, "not JSON"),
        ('{"a.jpg": [], "a.jpg": []}', "not JSON .*twice"),
        ({"a.jpg": [RED], "scans/a.jpg": [RED]}, "has hints already"),
    ],
)
def test_what_is_no_hint_is_refused_in_a_sentence(content: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        Hints(written(content), [A])
    assert "points.json" in str(caught.value)


def test_hints_for_one_of_several_pictures_must_name_it() -> None:
    with pytest.raises(UserError, match="name the picture"):
        Hints(written([RED]), [A, B])
    with pytest.raises(UserError, match="more of its path"):
        Hints(written({"a": [RED]}), [A, Path("other/a.png")])
    with pytest.raises(FileNotFoundError):
        Hints(Path("none.json"), [A])


def test_what_is_no_file_of_hints_is_refused_before_any_work() -> None:
    Path("layers").mkdir()
    Path("layers/a.psd").write_bytes(b"")
    Path("points.txt").write_text("[]")
    for name, words in (
        ("layers", "no layer in layers"),
        ("none.png", "there is none"),
        ("points.txt", "this is none"),
    ):
        with pytest.raises(UserError, match=words):
            Hints(Path(name), [A, B])


def test_json_may_begin_with_a_mark_of_its_encoding() -> None:
    Path("points.json").write_text(json.dumps([RED]), encoding="utf-8-sig")
    assert Hints(Path("points.json"), [A]).layer(A, 9, 9) is not None


@pytest.mark.parametrize(("x", "y"), [(-1, 0), (0, -0.1), (9, 0), (0, 6.0)])
def test_a_point_outside_the_picture_is_refused(x: float, y: float) -> None:
    with pytest.raises(UserError, match="outside the picture of 9 x 6 px"):
        draw_points([Point(x, y, "#000000")], 6, 9)
