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

import threads  # noqa: F401  before torch

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import checkpoint
import color
from checkpoint import choose_epochs, pick_device, pick_run, read_run
from cli import AllEpochsOption, DataOption, DeviceOption, EpochOption, RunOption, WeightsOption, command
from compare import compare, parse_opponent
from config import CACHE, RUNS, Recipe, closest
from data import ImageSet, open_split
from images import read_image
from judges import Judges, open_judges
from metrics import DIRECTIONS, Pictures
from protocol import describe_protocol
from report import write_report
from scores import (
    CEILINGS,
    FLOORS,
    PerImage,
    Row,
    earlier_rows,
    earlier_scores,
    is_epoch,
    make_row,
    print_table,
    read_scores,
    write_scores,
)
from test import batched, render_epoch, save_all, write_references

QUALITY = 90  # of the JPEG that is a ceiling
CHUNK_PIXELS = {"cpu": 2**17, "cuda": 2**21}  # scored at a time by a thread; more leave the CPU's cache


def recompress(pictures: Tensor, quality: int) -> Tensor:
    """Return (N, 3, H, W) uint8 pictures as they come back from JPEG files of a quality in [1, 95]."""
    results = []
    for picture in pictures.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        results.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(results).permute(0, 3, 1, 2)


def stems(folder: Path) -> set[str]:
    """Return the names without ending of a folder's PNGs."""
    return {path.stem for path in folder.glob("*.png")}


def read_stamp(folder: Path) -> str:
    """Return what a folder of pictures was rendered from, empty if it does not say."""
    path = folder / checkpoint.STAMP
    return path.read_text() if path.exists() else ""


def render_missing(run: Path, epochs: list[int], images: ImageSet, device: torch.device) -> None:
    """Render what is missing of epochs, floors and ceilings, or is of other data or another checkpoint."""
    record = read_run(run)
    write_references(run, images, record["recipe"])
    for folder in (run / "outputs").glob("*"):
        odd = sorted(stems(folder) - set(images.stems))
        if odd:
            raise ValueError(f"{folder / odd[0]}.png belongs to no target ({len(odd)} such); delete it")
    for epoch in epochs:
        folder = checkpoint.outputs_path(run, epoch)
        current = read_stamp(folder) == checkpoint.stamp(run, epoch, images.key)
        if not current or stems(folder) != set(images.stems):
            render_epoch(run, epoch, images, device)
    painters: dict[str, Callable[[Tensor], Tensor]] = {
        "gray": partial(color.recolor, a=0.0, b=0.0),
        "mean_ab": lambda target: color.recolor(target, *record["mean_ab"]),
        "jpeg90": partial(recompress, quality=QUALITY),
    }
    for name, paint in painters.items():
        folder = run / "outputs" / name
        if read_stamp(folder) == images.key and stems(folder) == set(images.stems):
            continue
        with ThreadPoolExecutor() as pool:
            for ids in batched(len(images)):
                _, target = images.gather(ids, record["recipe"]["size"])
                save_all(pool, folder, [images.stems[i] for i in ids], paint(target))
        (folder / checkpoint.STAMP).write_text(images.key)


def read_outputs(folder: Path, names: Sequence[str], size: int) -> Tensor:
    """Return rendered pictures (N, 3, size, size) uint8.

    Raises:
        ValueError: one is damaged, or of another size than its target.
    """
    pictures = []
    for name in names:
        try:
            picture = read_image(folder / f"{name}.png")
        except ValueError as error:
            raise ValueError(f"{error}; delete it, and it is rendered again") from None
        if picture.shape[:2] != (size, size):
            found = f"{picture.shape[1]} x {picture.shape[0]}"
            raise ValueError(
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
            rows[name] |= {key: metric(truth, features) for key, metric in judges.per_folder.items()}
    for row in rows.values():
        row |= judges.missing


def evaluate(
    run: Path, epochs: list[int], images: ImageSet, judges: Judges, device: torch.device
) -> dict[str, Row]:
    """Score epochs, floors and ceilings of a run, write all score files and the report; returns the rows."""
    recipe = read_run(run)["recipe"]
    stored = read_scores(run) if (run / "scores.json").exists() else {"rows": {}}
    kept = earlier_rows(run, epochs, images.key, stored)
    render_missing(run, epochs, images, device)
    numbers = {checkpoint.epoch_path(run, epoch).stem: epoch for epoch in epochs}
    names = [*FLOORS, *(c for c in CEILINGS if c != "truth" or judges.of_truth), *numbers]
    folders = {name: run / "outputs" / name for name in names}
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):  # equal everywhere
        per_image, digests = score_pictures(folders, images, recipe["size"], judges)
        rows = {name: make_row(per_image[name], images.stems, name) for name in names}
        score_folders(run, rows, images, judges)
    for name, epoch in numbers.items():
        rows[name]["stamp"] = checkpoint.stamp(run, epoch, images.key)
    protocol = describe_protocol(recipe, images.stems, digests, judges.hashes)
    rows, per_image = rows | kept, per_image | earlier_scores(run, kept, protocol, rows, stored)
    order = sorted(rows, key=lambda name: (is_epoch(name), is_epoch(name) and int(name[6:])))
    rows, per_image = {name: rows[name] for name in order}, {name: per_image[name] for name in order}
    metric = recipe.get("metric", Recipe.metric)
    notes = [*judges.notes, *(f"skipped {sentence}" for sentence in images.bad)]
    write_scores(run, rows, per_image, images.stems, protocol, metric, notes)
    print_table(rows, metric)
    for note in notes:
        print(note)
    print(f"scores: {run / 'scores.csv'}, report: {write_report(run)}")
    return rows


MetricOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A metric to insist on: its network is downloaded. Repeatable."),
]
ClassifierOption = Annotated[
    Path | None, typer.Option(metavar="RUN", help="A classifier's run: are the pictures recognised?")
]
AgainstOption = Annotated[
    str | None, typer.Option(metavar="RUN[:N]|N", help="Compare with another run, or another epoch.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Compare in spite of different protocols.")]


def main(
    run: RunOption = None,
    epoch: EpochOption = None,
    all_epochs: AllEpochsOption = False,
    data: DataOption = None,
    metric: MetricOption = None,
    classifier: ClassifierOption = None,
    weights: WeightsOption = None,
    against: AgainstOption = None,
    force: ForceOption = False,
    device: DeviceOption = "auto",
) -> dict[str, Row]:
    """Score one or all saved epochs, or compare two; returns name -> metrics."""
    on = pick_device(device)
    folder = pick_run(run, RUNS)
    for name in metric or []:
        if name not in DIRECTIONS:
            raise ValueError(f"no metric {name}{closest(name, list(DIRECTIONS))}")
    if weights is not None and not Path(weights).is_dir():
        raise ValueError(f"no folder {weights}: --weights takes the folder that holds the weight files")
    if against is not None:
        if all_epochs or data or metric or classifier or weights:
            raise ValueError("--against compares what is scored already: with it, only --epoch and --force")
        return compare((folder, epoch), parse_opponent(against, folder), force)
    if force:
        raise ValueError("--force is for comparing with --against RUN")
    epochs = choose_epochs(folder, epoch, all_epochs)
    images = open_split(read_run(folder), data, "test", CACHE)
    size = read_run(folder)["recipe"]["size"]
    scorer = on if on.type == "cuda" else torch.device("cpu")  # MPS has no float64
    judges = open_judges(metric or [], images, size, classifier, Path(weights) if weights else None, scorer)
    for name in metric or []:
        if name in judges.missing:
            raise ValueError(f"{name} {judges.missing[name]}")
    return evaluate(folder, epochs, images, judges, on)


if __name__ == "__main__":
    command(main)
