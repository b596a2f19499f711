"""dataset/check.py: each kind of fault is found in a set made with it, and in no other file; the table and summary."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_stage
from PIL import Image

from dataset import scenes
from dataset.check import MAX_BITS, Finding, check, misaligned, near_pairs, perceptual_hash
from dataset.folders import Item
from imaging.line_art import line_art
from imaging.pixels import Array, resize

SIDE = 96  # px


def scene(seed: int, side: int = SIDE) -> Array:
    return scenes.draw(seed, side)[0]


def drawn(image: Array) -> Array:
    """Return line art drawn from an image."""
    return line_art(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


def write(name: str, image: Array, **options: int) -> Item:
    path = Path("set", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return Item(path.stem, path)


def problems(findings: list[Finding]) -> dict[str, set[str]]:
    """Return the problems of each file, by its name without folders."""
    found: dict[str, set[str]] = {}
    for finding in findings:
        found.setdefault(Path(finding.file).name, set()).add(finding.problem)
    return found


def test_each_fault_is_found_and_named_and_good_files_are_not() -> None:
    train = [write(f"good{i}.png", scene(i)) for i in range(12)]
    gray = scene(20).mean(2).astype(np.uint8)
    train += [
        write("gray.png", gray), write("tiny.png", scene(21, 32)), write("again.png", scene(0)),
        write("copy.jpg", resize(scene(1), 80, 80), quality=60),
        write("alpha.png", np.dstack([scene(22), np.full((SIDE, SIDE), 99, np.uint8)])), write("bad.png", scene(23)),
        write("deep.png", np.tile(np.arange(SIDE, dtype=np.uint16) * 600, (SIDE, 1))),
    ]  # fmt: skip
    Image.fromarray(scene(24)).convert("CMYK").save("set/cmyk.jpg")
    train.append(Item("cmyk", Path("set/cmyk.jpg")))
    Path("set/bad.png").write_bytes(Path("set/bad.png").read_bytes()[:900])
    val = [write("val/leak.jpg", scene(2), quality=50), write("val/own.png", scene(30))]
    count, findings = check({"train": train, "val": val, "test": val}, "none")
    assert count == len(train) + len(val)  # test is val, and looked at once
    assert problems(findings) == {
        "gray.png": {"gray"}, "tiny.png": {"tiny"}, "again.png": {"duplicate"}, "copy.jpg": {"similar"},
        "alpha.png": {"odd"}, "bad.png": {"corrupt"}, "leak.jpg": {"leak"}, "cmyk.jpg": {"odd"},
        "deep.png": {"odd", "gray"},
    }  # fmt: skip
    by_file = {Path(finding.file).name: finding for finding in findings}
    assert by_file["leak.jpg"].split == "val"
    assert "set/good2.png" in by_file["leak.jpg"].detail
    assert "the same as set/good0.png" in by_file["again.png"].detail


def test_a_duplicate_in_a_held_out_split_is_named_there_even_if_its_split_comes_first() -> None:
    one, other = write("val/a.png", scene(0)), write("train/b.png", scene(0))
    _, findings = check({"val": [one], "train": [other]}, "none")
    assert [(finding.file, finding.problem) for finding in findings] == [("set/val/a.png", "leak")]


@pytest.mark.parametrize("side_by_side", [True, False])
def test_sketches_that_do_not_lie_on_their_pictures_are_found(side_by_side: bool) -> None:
    image = scene(0, 128)
    lines = drawn(image)
    sketches = {"good": lines, "shifted": np.roll(lines, 16, 1), "other": drawn(scene(9, 128)), "chalk": 255 - lines}
    items = []
    for name, sketch in sketches.items():
        pair = write(f"{name}.png", np.concatenate([image, sketch], 1) if side_by_side else image)
        items.append(pair if side_by_side else Item(name, pair.target, write(f"s/{name}.png", sketch).target))
    _, findings = check({"train": items}, "AB" if side_by_side else "none")
    found = {Path(finding.file).stem for finding in findings if finding.problem == "misaligned"}
    assert found == {"shifted", "other"}
    assert "of another shape" not in misaligned(image, lines)
    assert "64 x 128" in misaligned(image, lines[:, :64])


def test_near_pairs_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (60, 2), np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.permutation(64)[:count]) for count in range(12)]
    near = np.array([[value[0] ^ np.uint64(flip), value[1]] for value, flip in zip(hashes, flips, strict=False)])
    every = np.concatenate([hashes, near])
    bits = np.unpackbits(every.view(np.uint8), axis=1).astype(int)
    expected = {
        (i, j, int((bits[i] != bits[j]).sum()))
        for j in range(len(every)) for i in range(j) if (bits[i] != bits[j]).sum() <= MAX_BITS
    }  # fmt: skip
    assert len(expected) == MAX_BITS + 1
    assert set(near_pairs(every)) == expected


def test_hashes_that_all_share_a_part_are_each_compared_with_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of pictures with white borders do."""
    hashes = np.random.default_rng(0).integers(0, 2**64, (2000, 2), np.uint64)
    hashes[:, 0] &= np.uint64(2**32 - 1)  # two parts of eight
    again = np.arange(0, 2000, 100)
    every, compared, real = np.concatenate([hashes, hashes[again]]), [], np.unpackbits
    monkeypatch.setattr("dataset.check.MAX_COMPARED", 16, raising=False)
    monkeypatch.setattr(np, "unpackbits", lambda rows, axis: compared.append(len(rows)) or real(rows, axis=axis))
    pairs = {*near_pairs(every)}
    assert sum(compared) < 3 * 16 * len(every)  # of two million
    assert pairs == {(int(one), 2000 + place, 0) for place, one in enumerate(again)}


def test_the_hash_survives_scaling_and_jpeg_and_tells_pictures_apart() -> None:
    hashes = np.stack([perceptual_hash(scene(i)) for i in range(40)])
    assert list(near_pairs(hashes)) == []
    half = np.stack([perceptual_hash(resize(scene(i), 48, 48)) for i in range(40)])
    differ = np.unpackbits((hashes ^ half).view(np.uint8), axis=1).sum(1)
    assert np.median(differ) <= MAX_BITS
    assert perceptual_hash(np.full((40, 40, 3), 200, np.uint8)) is None


def test_the_command_writes_a_table_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        write(f"p{i}.png", scene(i))
    write("gray.png", scene(5).mean(2).astype(np.uint8))
    write("tiny.png", scene(6, 40))
    Path("set/bad.jpg").write_bytes(b"no image")
    assert run_stage("data", "--check", "set") == 0
    out = capsys.readouterr().out
    rows = list(csv.DictReader(open("check.csv")))
    assert Counter(row["problem"] for row in rows) == {"gray": 1, "tiny": 1, "corrupt": 1}
    assert {row["file"] for row in rows} == {"set/gray.png", "set/tiny.png", "set/bad.jpg"}
    assert "7 images checked" in out
    assert "set/bad.jpg" in out
    assert run_stage("data", "--check", "set", "--size", "100", "--table", "t/all.csv") == 0
    assert Counter(row["problem"] for row in csv.DictReader(open("t/all.csv")))["tiny"] == 6


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "say what to do"),
        (["--check", "set", "out"], "--pack takes two folders"),
        (["--check", "nowhere"], "no folder nowhere"),
        (["--check", "demo"], "nothing to check"),
    ],
)
def test_mistakes_are_one_sentence(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stage("data", *args) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("data.py: ")
    assert words in error
    assert error.count("\n") == 1
