"""Scoring of rendered images: chunks, threads and memory, damaged outputs, metrics of whole folders."""

import dataclasses
import hashlib
import math
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import MeanLevel
from torch import Tensor

from data import ImageSet
from evaluation import scoring
from evaluation.deep_metrics import MetricSet
from evaluation.metrics import PER_IMAGE, Pictures
from evaluation.scores import Row, Score
from evaluation.scoring import score_folders, score_pictures
from imaging.files import read_image, write_image

CPU = torch.device("cpu")
SIMPLE = MetricSet(CPU, {name: metric for name, metric in PER_IMAGE.items() if name != "ms_ssim"})


def image_set(count: int, size: int, folder: Path) -> ImageSet:
    """Return a split of random images, and write as many outputs."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    index = np.array([[i * size * size * 3, size, size] for i in range(count)], np.int64)
    stems = [f"p{i:03d}" for i in range(count)]
    for stem in stems:
        write_image(folder / f"{stem}.png", rng.integers(0, 256, (size, size, 3), np.uint8))
    return ImageSet(stems, [""] * count, pixels.reshape(-1), index, 3, [], 0, "key")


def set_work(monkeypatch: pytest.MonkeyPatch, pixels: int, threads: int) -> None:
    monkeypatch.setattr(scoring, "CHUNK_PIXELS", {"cpu": pixels})
    monkeypatch.setattr(scoring, "THREADS", {"cpu": threads})


@pytest.mark.parametrize(("pixels", "threads"), [(1, 4), (3 * 16**2, 4), (10**6, 1)])
def test_chunks_and_threads_do_not_change_scores(pixels: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = image_set(11, 16, Path("o"))
    folders = {"one": Path("o"), "other": Path("o")}
    set_work(monkeypatch, 16**2, 1)
    expected, digests = score_pictures(folders, images, 16, SIMPLE)
    set_work(monkeypatch, pixels, threads)
    found, others = score_pictures(folders, images, 16, SIMPLE)
    assert b"".join(others) == b"".join(digests)
    assert len(others) == -(-11 // max(1, pixels // 16**2))
    for name in folders:
        for metric in SIMPLE.per_image:
            assert found[name][metric].shape == (11,)
            assert found[name][metric].tolist() == pytest.approx(expected[name][metric].tolist(), rel=1e-9)


def test_scores_belong_to_their_images() -> None:
    images = image_set(5, 16, Path("o"))
    expected, digests = score_pictures({"o": Path("o")}, images, 16, SIMPLE)
    order = [3, 0, 4, 1, 2]
    shuffled = dataclasses.replace(images, stems=[images.stems[i] for i in order], index=images.index[order])
    found, _ = score_pictures({"o": Path("o")}, shuffled, 16, SIMPLE)
    for metric in SIMPLE.per_image:
        assert found["o"][metric].tolist() == pytest.approx(expected["o"][metric][order].tolist(), rel=1e-9)
    targets, _ = images.gather(list(range(5)), 16)
    hashes = [hashlib.sha256(target.contiguous().numpy()).digest() for target in targets]
    assert b"".join(digests) == b"".join(hashes)
    output = torch.from_numpy(read_image(Path("o/p001.png"))).permute(2, 0, 1)[None]
    for name, metric in SIMPLE.per_image.items():
        alone = metric(Pictures(targets[1:2].contiguous()), Pictures(output.contiguous())).item()
        assert expected["o"][name][1] == pytest.approx(alone, rel=1e-9)


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_a_bad_output_is_named_and_torch_gets_its_threads_back() -> None:
    images = image_set(3, 16, Path("o"))
    score_pictures({"o": Path("o")}, images, 16, SIMPLE)
    assert torch.get_num_threads() == 2
    Path("o/p001.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"o/p001\.png: not an image.*delete it"):
        score_pictures({"o": Path("o")}, images, 16, SIMPLE)
    with ThreadPoolExecutor(1) as pool:
        assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 2
    write_image(Path("o/p001.png"), np.zeros((16, 16, 3), np.uint8))
    write_image(Path("o/p002.png"), np.zeros((16, 24, 3), np.uint8))
    with pytest.raises(ValueError, match=r"o/p002\.png is 24 x 16 px, not 16 x 16; delete it"):
        score_pictures({"o": Path("o")}, images, 16, SIMPLE)


@pytest.mark.parametrize("count", [8, 32])
def test_what_is_in_memory_does_not_grow_with_the_number_of_images(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, alive, peak = threading.Lock(), [0], [0]

    class Counted(Pictures):
        """Counts the images that are held."""

        def __init__(self, rgb: Tensor, labels: Tensor | None = None) -> None:
            super().__init__(rgb, labels)
            self.change(len(rgb))
            weakref.finalize(self, self.change, -len(rgb))

        @staticmethod
        def change(by: int) -> None:
            with lock:
                alive[0] += by
                peak[0] = max(peak[0], alive[0])

    monkeypatch.setattr(scoring, "Pictures", Counted)
    set_work(monkeypatch, 2 * 16**2, 2)
    metrics = MetricSet(CPU, {name: PER_IMAGE[name] for name in ("psnr_db", "ab_mse")})
    score_pictures({"a": Path("o"), "b": Path("o")}, image_set(count, 16, Path("o")), 16, metrics)
    # two threads, each with two targets and two outputs, and the outputs before while new ones are made
    assert 4 <= peak[0] <= 2 * (2 + 2 + 2)
    assert alive[0] == 0


def test_folders_are_compared_with_the_targets() -> None:
    images = image_set(4, 16, Path("run/targets"))
    rng = np.random.default_rng(1)
    for name in ("gray", "epoch_0001"):
        for stem in images.stems:
            write_image(Path(f"run/outputs/{name}/{stem}.png"), rng.integers(0, 256, (16, 16, 3), np.uint8))
    distances = {"fid": lambda a, b: Score(float(np.abs(a - b).max())), "kid": lambda a, b: Score(math.nan)}
    metrics = MetricSet(CPU, per_folder=distances, extractors={"inception": MeanLevel()})
    metrics.missing = {"top1": "unavailable: why"}
    rows = {name: Row(None, {}, 4) for name in ("gray", "truth", "epoch_0001")}
    score_folders(Path("run"), rows, images, metrics)
    assert (rows["truth"].scores, rows["truth"].missing) == ({}, metrics.missing)
    for name in ("gray", "epoch_0001"):
        means = [
            [read_image(Path("run", folder, f"{stem}.png")).mean() for stem in images.stems]
            for folder in ("targets", f"outputs/{name}")
        ]
        expected = np.abs(np.diff(means, axis=0)).max()
        assert rows[name].scores == {"fid": Score(pytest.approx(expected, abs=1e-4))}
        assert rows[name].missing.keys() == {"kid", "top1"}  # NaN is never a number
