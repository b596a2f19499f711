"""Render the test split with saved epochs: input, output and truth as PNGs of one name.

    python test.py                                   # newest run, last epoch
    python test.py --all-epochs --run runs/coco
    python test.py --epoch 50 --data other_photos/

Writes inputs/STEM.png, targets/STEM.png and outputs/epoch_0050/STEM.png in the run folder.
"""

import io
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from config import Recipe, UserError
from data import ImageSet
from imaging import color
from imaging.files import write_image
from inference import checkpoint
from runtime import run_folder
from runtime.run_folder import read_run

BATCH = 16  # images per forward
REFERENCES = ("inputs", "targets")


def render_epoch(run: Path, epoch: int, images: ImageSet, device: torch.device) -> Path:
    """Render a test split with one saved epoch; returns the folder of its outputs.

    Outputs of another data set than `images` are deleted first, since names alone would not tell them apart.
    """
    recipe = read_run(run).recipe
    colorizer = checkpoint.load_colorizer(run, epoch, device)
    write_references(run, images, recipe)
    folder = run_folder.outputs_path(run, epoch)
    with ThreadPoolExecutor() as pool:  # PNGs are written beside the network
        for ids in tqdm(list(batched(len(images))), folder.name, leave=False, disable=None):
            source, _ = images.gather_fixed(ids, recipe)
            rgb = colorizer(color.rgb01(source.to(device)))
            stems = [images.stems[i] for i in ids]
            check_finite(rgb, [f"{folder.name}/{stem}" for stem in stems])
            save_all(pool, folder, stems, color.to_uint8(rgb).cpu())
    (folder / run_folder.STAMP).write_text(run_folder.stamp(run, epoch, images.key))
    return folder


def check_finite(rgb: Tensor, names: list[str]) -> None:
    """Raise UserError naming the first picture whose colours (N, 3, H, W) are not finite."""
    broken = (~torch.isfinite(rgb)).flatten(1).any(1).nonzero()
    if len(broken):
        raise UserError(f"the colours of {names[int(broken[0])]} are not finite; use another epoch")


def write_references(run: Path, images: ImageSet, recipe: Recipe) -> None:
    """Write inputs/ and targets/, once per data set; what was rendered of another one is deleted."""
    stamp = run / "targets" / run_folder.STAMP
    outputs = run.glob(f"outputs/*/{run_folder.STAMP}")
    stamps = [path.read_text() for path in (stamp, *outputs) if path.exists()]
    same = bool(stamps) and {text.split(" ")[0] for text in stamps} == {images.key}
    whole = all((run / part / f"{stem}.png").exists() for part in REFERENCES for stem in images.stems)
    if same and whole and stamp.exists():
        return
    for name in REFERENCES if same else (*REFERENCES, "outputs"):
        shutil.rmtree(run / name, ignore_errors=True)
    with ThreadPoolExecutor() as pool:
        for ids in batched(len(images)):
            source, target = images.gather_fixed(ids, recipe)
            stems = [images.stems[i] for i in ids]
            save_all(pool, run / "inputs", stems, color.show_input(source, recipe.input))
            save_all(pool, run / "targets", stems, target)
    stamp.write_text(images.key)


def batched(count: int) -> Iterator[list[int]]:
    """Yield 0..count-1 in lists of at most BATCH."""
    for start in range(0, count, BATCH):
        yield list(range(start, min(start + BATCH, count)))


def save_all(pool: ThreadPoolExecutor, folder: Path, stems: list[str], pictures: Tensor) -> None:
    """Write (N, 3, H, W) uint8 pictures as PNGs."""
    arrays = list(pictures.permute(0, 2, 3, 1).numpy())
    list(pool.map(write_image, [folder / f"{stem}.png" for stem in stems], arrays))


QUALITY = 90  # of the JPEG that is a ceiling


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
    path = folder / run_folder.STAMP
    return path.read_text() if path.exists() else ""


def render_missing(run: Path, epochs: list[int], images: ImageSet, device: torch.device) -> None:
    """Render what is missing of epochs, floors and ceilings, or is of other data or another checkpoint."""
    record = read_run(run)
    write_references(run, images, record.recipe)
    for folder in (run / "outputs").glob("*"):
        odd = sorted(stems(folder) - set(images.stems))
        if odd:
            raise UserError(f"{folder / odd[0]}.png belongs to no target ({len(odd)} such); delete it")
    for epoch in epochs:
        folder = run_folder.outputs_path(run, epoch)
        current = read_stamp(folder) == run_folder.stamp(run, epoch, images.key)
        if not current or stems(folder) != set(images.stems):
            render_epoch(run, epoch, images, device)
    painters: dict[str, Callable[[Tensor], Tensor]] = {
        "gray": partial(color.recolor, a=0.0, b=0.0),
        "mean_ab": lambda target: color.recolor(target, *record.mean_ab),
        "jpeg90": partial(recompress, quality=QUALITY),
    }
    for name, paint in painters.items():
        folder = run / "outputs" / name
        if read_stamp(folder) == images.key and stems(folder) == set(images.stems):
            continue
        with ThreadPoolExecutor() as pool:
            for ids in batched(len(images)):
                _, target = images.gather(ids, record.recipe.size)
                save_all(pool, folder, [images.stems[i] for i in ids], paint(target))
        (folder / run_folder.STAMP).write_text(images.key)
