"""Score saved epochs against the truth, beside floors and ceilings, and name the best epoch per metric.

    python eval.py --all-epochs                           # newest run; renders what is missing
    python eval.py --epoch 50 --run runs/coco
    python eval.py --all-epochs --metric lpips_alex --metric fid      # fetches the networks they need
    python eval.py --all-epochs --classifier runs/classifier          # is it recognised?
    python eval.py --run runs/a --against runs/b          # best against best, picture by picture
    python eval.py --epoch 50 --against 25                # two epochs of one run

Floors, both given the truth's own lightness: `gray` has no colour, `mean_ab` the training set's mean ab.
Ceilings: `jpeg90`, the truth as a JPEG of quality 90; with a classifier, `truth` itself.
Writes scores.json, scores.csv, scores_per_image.csv, curves.png and report.html in the run folder.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config import UserError
from data import ImageSet
from evaluation.deep_metrics import Judges
from evaluation.metrics import Pictures
from evaluation.render import render_missing
from evaluation.scores import (
    BASELINES,
    UPPER_BOUNDS,
    PerImage,
    Row,
    Score,
    ScoreFile,
    describe_protocol,
    earlier_rows,
    make_row,
    make_score_file,
    read_per_image,
    read_scores,
    require_alike,
    write_scores,
)
from imaging.files import read_image
from runtime import run_folder
from runtime.run_folder import read_run

CHUNK_PIXELS = {"cpu": 2**17, "cuda": 2**21}  # scored at a time by a thread; more leave the CPU's cache


def read_outputs(folder: Path, names: Sequence[str], size: int) -> Tensor:
    """Return rendered pictures (N, 3, size, size) uint8.

    Raises:
        UserError: one is damaged, or of another size than its target.
    """
    pictures = []
    for name in names:
        try:
            picture = read_image(folder / f"{name}.png")
        except ValueError as error:
            raise UserError(f"{error}; delete it, and it is rendered again") from None
        if picture.shape[:2] != (size, size):
            found = f"{picture.shape[1]} x {picture.shape[0]}"
            raise UserError(
                f"{folder / name}.png is {found} px, not {size} x {size}; delete it, and it is rendered again"
            )
        pictures.append(torch.from_numpy(picture))
    return torch.stack(pictures).permute(0, 3, 1, 2).contiguous()


def score_chunk(
    ids: list[int], folders: dict[str, Path], images: ImageSet, size: int, judges: Judges
) -> tuple[bytes, dict[str, dict[str, list[float]]]]:
    """Return a digest of some true pictures, and row -> metric -> the scores of what was made of them."""
    _, rgb = images.gather(ids, size)
    digest = b"".join(hashlib.sha256(picture.contiguous().numpy()).digest() for picture in rgb)
    labels = None if judges.labels is None else judges.labels[ids].to(judges.device)
    target = Pictures(rgb.contiguous().to(judges.device), labels)
    scores = {}
    with torch.inference_mode():
        for name, folder in folders.items():
            output, metrics = target, judges.of_truth
            if name != "truth":
                rgb = read_outputs(folder, [images.stems[i] for i in ids], size)
                output, metrics = Pictures(rgb.to(judges.device)), judges.per_image
            scores[name] = {key: metric(target, output).tolist() for key, metric in metrics.items()}
    return digest, scores


@contextmanager
def one_thread_each(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads that share the cores, of which torch must not start more in each on the CPU.

    On CUDA two: one reads files while the other computes, and what both hold fits a small card.
    """
    before = torch.get_num_threads()
    limit = {"initializer": torch.set_num_threads, "initargs": (1,)} if device.type == "cpu" else {}
    with ThreadPoolExecutor(os.cpu_count() if device.type == "cpu" else 2, **limit) as pool:
        try:
            yield pool
        finally:
            torch.set_num_threads(before)


def score_pictures(
    folders: dict[str, Path], images: ImageSet, size: int, judges: Judges
) -> tuple[PerImage, list[bytes]]:
    """Return the per-image scores of folders of outputs, by row, and digests of the truth.

    Every true picture is read, converted and looked at once for all rows; what is held at a time does not
    depend on the number of pictures.
    """
    count = max(1, CHUNK_PIXELS[judges.device.type] // size**2)
    chunks = [list(range(i, min(i + count, len(images)))) for i in range(0, len(images), count)]
    work = partial(score_chunk, folders=folders, images=images, size=size, judges=judges)
    parts, digests = [], []
    with one_thread_each(judges.device) as pool:
        bar = tqdm(pool.map(work, chunks), "scoring", len(chunks), leave=False, disable=None)
        for digest, scores in bar:
            digests.append(digest)
            parts.append(scores)
    join = np.concatenate
    return {n: {m: join([part[n][m] for part in parts]) for m in parts[0][n]} for n in folders}, digests


def score_folders(run: Path, rows: dict[str, Row], images: ImageSet, judges: Judges) -> None:
    """Add to every row what compares a whole folder with the targets, FID and KID, or why it cannot."""
    if judges.inception is not None:
        truth = judges.inception.features([run / "targets" / f"{stem}.png" for stem in images.stems])
        names = [name for name in rows if name != "truth"]
        for name in tqdm(names, "features", leave=False, disable=None):
            files = [run / "outputs" / name / f"{stem}.png" for stem in images.stems]
            features = judges.inception.features(files)
            for metric, compare in judges.per_folder.items():
                found = compare(truth, features)
                if isinstance(found, str):
                    rows[name].missing[metric] = found
                else:
                    rows[name].scores[metric] = Score(found)
    for row in rows.values():
        row.missing |= judges.missing


def evaluate(
    run: Path, epochs: list[int], images: ImageSet, judges: Judges, device: torch.device
) -> ScoreFile:
    """Score epochs, baselines and upper bounds of a run, and write the score files; returns the scores."""
    recipe = read_run(run).recipe
    stored = read_scores(run) if (run / "scores.json").exists() else None
    kept = earlier_rows(run, stored, epochs, images.key) if stored else {}
    render_missing(run, epochs, images, device)
    numbers = {run_folder.epoch_path(run, epoch).stem: epoch for epoch in epochs}
    names = [*BASELINES, *(name for name in UPPER_BOUNDS if name != "truth" or judges.of_truth), *numbers]
    folders = {name: run / "outputs" / name for name in names}
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):  # equal everywhere
        per_image, digests = score_pictures(folders, images, recipe.size, judges)
        rows = {name: make_row(name, per_image[name], images.stems) for name in names}
        score_folders(run, rows, images, judges)
    for name, epoch in numbers.items():
        rows[name].stamp = run_folder.stamp(run, epoch, images.key)
    protocol = describe_protocol(recipe, images.stems, digests, judges.hashes)
    if stored and kept:
        require_alike(run, kept, stored.protocol, rows[names[-1]], protocol)
        per_image |= read_per_image(run, stored, list(kept))[0]
    rows = dict(sorted({**rows, **kept}.items(), key=lambda item: item[1].epoch or 0))
    per_image = {name: per_image[name] for name in rows}
    notes = [*judges.notes, *(f"skipped {sentence}" for sentence in images.bad)]
    scores = make_score_file(rows, per_image, protocol, recipe.metric, notes)
    write_scores(run, scores, per_image, images.stems)
    return scores
