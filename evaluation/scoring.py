"""Score rendered images: every metric of every image, on all cores; then the rows and files of a run."""

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import UserError
from data import ImageSet
from evaluation import scores
from evaluation.best_epoch import make_score_file
from evaluation.deep_metrics import NETWORKS, MetricSet
from evaluation.metrics import Pictures
from evaluation.render import render_missing
from evaluation.scores import PerImage, Row, ScoreFile
from imaging.files import read_image
from runtime import distributed
from runtime.progress import track
from runtime.run_folder import epoch_path, read_run, stamp

CHUNK_PIXELS = {"cpu": 2**17, "cuda": 2**21}  # scored at a time by a thread; more do not fit the CPU's cache
# On CUDA one thread reads files while the other computes, and what both hold fits into a small card.
THREADS = {"cpu": os.cpu_count() or 1, "cuda": 2}
NO_DISTANCE = "unavailable: the features have no such distance; test on more images"


def evaluate(
    run: Path, epochs: list[int], images: ImageSet, metrics: MetricSet, device: torch.device
) -> ScoreFile | None:
    """Score epochs, baselines and upper bounds of a run, and write the score files; returns the scores.

    Rows of other epochs are kept. Images are rendered on `device` unless they are there. Several processes share
    what is done image by image, and the first does the rest: in the others, None is returned.
    """
    recipe = read_run(run).recipe
    stored = scores.read_scores(run) if (run / "scores.json").exists() else None
    kept = scores.earlier_rows(run, stored, epochs, images.key) if stored else {}
    render_missing(run, epochs, images, device)
    stamps = {epoch_path(run, epoch).stem: stamp(run, epoch, images.key) for epoch in epochs}
    bounds = [name for name in scores.UPPER_BOUNDS if name != "truth" or metrics.of_truth]
    folders = {name: run / "outputs" / name for name in (*scores.BASELINES, *bounds, *stamps)}
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):  # equal everywhere
        per_image, digests = score_pictures(folders, images, recipe.test_size, metrics)
        if distributed.rank():
            return None
        rows = {name: scores.make_row(name, per_image[name], images.stems) for name in folders}
        score_folders(run, rows, images, metrics)
    for name, text in stamps.items():
        rows[name].stamp = text
    protocol = scores.describe_protocol(recipe, images.stems, digests, metrics.weights)
    if stored and kept:
        scores.require_alike(run, kept, stored.protocol, rows[[*stamps][-1]], protocol)
        per_image |= scores.read_per_image(run, stored, list(kept))[0]
    rows = dict(sorted({**rows, **kept}.items(), key=lambda item: item[1].epoch or 0))
    per_image = {name: per_image[name] for name in rows}
    notes = [*metrics.notes, *(f"skipped {sentence}" for sentence in images.bad)]
    found = make_score_file(rows, per_image, protocol, recipe.metric, notes)
    scores.write_scores(run, found, per_image, images.stems)
    return found


def score_pictures(
    folders: dict[str, Path], images: ImageSet, size: int, metrics: MetricSet
) -> tuple[PerImage, list[bytes]]:
    """Score folders of outputs image by image.

    Every target is decoded and converted once for all folders. The memory that is needed does not depend on
    the number of images.

    Args:
        folders: row -> folder of STEM.png; the row "truth" is the ground truth itself and reads no folder.
        size: px, side of the images.

    Returns:
        the scores, and digests of the targets' pixels, in order.
    """
    count = max(1, CHUNK_PIXELS[metrics.device.type] // size**2)
    chunks = [list(range(i, min(i + count, len(images)))) for i in range(0, len(images), count)]
    threads = torch.get_num_threads()  # one per worker on the CPU, so that they do not outnumber the cores
    limit = {"initializer": torch.set_num_threads, "initargs": (1,)} if metrics.device.type == "cpu" else {}
    try:
        with ThreadPoolExecutor(THREADS[metrics.device.type], **limit) as pool:
            own = chunks[distributed.rank() :: distributed.world()]
            work = pool.map(lambda ids: score_chunk(ids, folders, images, size, metrics), own)
            scored = distributed.gather(list(track(work, "scoring", len(own))))
    finally:
        torch.set_num_threads(threads)
    # back in the order of images: the first chunk of each process, the second of each, ...
    digests, parts = zip(*(each for row in zip_longest(*scored) for each in row if each is not None), strict=True)
    per_image = {
        name: {metric: np.concatenate([part[name][metric] for part in parts]) for metric in parts[0][name]}
        for name in folders
    }
    return per_image, list(digests)


def score_chunk(
    ids: list[int], folders: dict[str, Path], images: ImageSet, size: int, metrics: MetricSet
) -> tuple[bytes, dict[str, dict[str, list[float]]]]:
    """Return a digest of some targets, and row -> metric -> one score per output."""
    _, rgb = images.gather(ids, size)  # (N, 3, size, size) uint8
    digest = b"".join(hashlib.sha256(target.contiguous().numpy()).digest() for target in rgb)
    labels = None if metrics.labels is None else metrics.labels[ids].to(metrics.device)
    target = Pictures(rgb.contiguous().to(metrics.device), labels)
    found = {}
    with torch.inference_mode():
        for name, folder in folders.items():
            output, wanted = target, metrics.of_truth
            if name != "truth":
                rgb = read_outputs(folder, [images.stems[i] for i in ids], size)
                output, wanted = Pictures(rgb.to(metrics.device)), metrics.per_image
            found[name] = {key: metric(target, output).tolist() for key, metric in wanted.items()}
    return digest, found


def read_outputs(folder: Path, stems: Sequence[str], size: int) -> Tensor:
    """Return rendered images (N, 3, size, size) uint8. Raises UserError where one is not such an image."""
    pictures = []
    for stem in stems:
        path = folder / f"{stem}.png"
        try:
            picture = read_image(path)
            height, width, _ = picture.shape
            if (height, width) != (size, size):
                raise UserError(f"{path} is {width} x {height} px, not {size} x {size}")
        except UserError as error:
            raise UserError(f"{error}; delete it, and it is rendered again") from None
        pictures.append(torch.from_numpy(picture))
    return torch.stack(pictures).permute(0, 3, 1, 2).contiguous()


def score_folders(run: Path, rows: dict[str, Row], images: ImageSet, metrics: MetricSet) -> None:
    """Add to every row the distances of whole folders, and why other metrics are missing."""
    for network, extractor in metrics.extractors.items():
        truth = extractor.features([run / "targets" / f"{stem}.png" for stem in images.stems])
        for name in (name for name in rows if name != "truth"):
            files = [run / "outputs" / name / f"{stem}.png" for stem in images.stems]
            features = extractor.features(files)
            for metric in [metric for metric in metrics.per_folder if NETWORKS[metric] == network]:
                found = metrics.per_folder[metric](truth, features)
                if math.isfinite(found.mean):
                    rows[name].scores[metric] = found
                else:
                    rows[name].missing[metric] = NO_DISTANCE
    for row in rows.values():
        row.missing |= metrics.missing
