"""Render images of a data set into a run folder: inputs, ground truth, the outputs of epochs and baselines.

    inputs/STEM.png  targets/STEM.png  outputs/{epoch_0050,gray,mean_ab,jpeg90}/STEM.png

A file .stamp beside the PNGs says of which data and of which checkpoint they are.
"""

import io
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from config import Recipe, UserError
from data import ImageSet
from imaging import color
from imaging.files import write_image
from inference.checkpoint import load_colorizer
from runtime import distributed
from runtime.atomic import write_text
from runtime.progress import track
from runtime.run_folder import STAMP, outputs_path, read_run, stamp

BATCH = 16  # images per forward
JPEG_QUALITY = 90  # of the upper bound jpeg90

Draw = Callable[[list[int]], Tensor]  # numbers of N images -> (N, 3, H, W) uint8


def render_epoch(run: Path, epoch: int, images: ImageSet, device: torch.device) -> Path:
    """Render a test split with one saved epoch; returns the folder of its outputs. Several processes share the work.

    Outputs of other data than `images` are deleted first, because their names may be the same.
    """
    recipe = read_run(run).recipe
    colorizer = load_colorizer(run, epoch, device)
    write_references(run, images, recipe)
    folder = outputs_path(run, epoch)

    def draw(ids: list[int]) -> Tensor:
        source, _ = images.gather_fixed(ids, recipe)
        rgb = colorizer(color.rgb01(source.to(device)))  # (N, 3, S, S) float
        check_finite(rgb, [f"{folder.name}/{images.stems[i]}" for i in ids])
        return color.to_uint8(rgb).cpu()

    write_pictures(folder, images, draw, stamp(run, epoch, images.key))
    return folder


def check_finite(rgb: Tensor, names: list[str]) -> None:
    """Raise UserError naming the first image whose colours (N, 3, H, W) are not finite."""
    broken = (~torch.isfinite(rgb)).flatten(1).any(1).nonzero()
    if len(broken):
        raise UserError(f"the colours of {names[int(broken[0])]} are not finite; use another epoch")


def write_references(run: Path, images: ImageSet, recipe: Recipe) -> None:
    """Write inputs/ and targets/ unless they are there; what was rendered of other data is deleted."""
    mark = run / "targets" / STAMP
    stamps = [path.read_text() for path in (mark, *run.glob(f"outputs/*/{STAMP}")) if path.exists()]
    same = {text.split(" ")[0] for text in stamps} == {images.key}
    folders = [run / "inputs", run / "targets"]
    whole = all((folder / f"{stem}.png").exists() for folder in folders for stem in images.stems)
    if distributed.gather(same and whole and mark.exists())[0]:  # as one sees it, before any changes it
        return
    if not distributed.rank():
        for folder in folders if same else [*folders, run / "outputs"]:
            shutil.rmtree(folder, ignore_errors=True)
    distributed.wait()

    def show(ids: list[int]) -> Tensor:
        return color.show_input(images.gather_fixed(ids, recipe)[0], recipe.input)

    write_pictures(folders[0], images, show)
    write_pictures(folders[1], images, lambda ids: images.gather(ids, recipe.test_size)[1], images.key)


def write_pictures(folder: Path, images: ImageSet, draw: Draw, mark: str = "") -> None:
    """Write STEM.png for every image, then .stamp if there is a mark; PNGs are compressed in threads beside `draw`."""
    with ThreadPoolExecutor() as pool:
        starts = range(BATCH * distributed.rank(), len(images), BATCH * distributed.world())
        for start in track(starts, folder.name, len(starts)):
            ids = list(range(start, min(start + BATCH, len(images))))
            arrays = draw(ids).permute(0, 2, 3, 1).numpy()  # (N, H, W, 3)
            list(pool.map(write_image, [folder / f"{images.stems[i]}.png" for i in ids], arrays))
    distributed.wait()
    if mark and not distributed.rank():
        write_text(folder / STAMP, mark)


def recompress(pictures: Tensor, quality: int) -> Tensor:
    """Return (N, 3, H, W) uint8 images as they come back from JPEG files of a quality in [1, 95]."""
    results = []
    for picture in pictures.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        results.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(results).permute(0, 3, 1, 2)


def is_rendered(folder: Path, mark: str, images: ImageSet) -> bool:
    """Tell whether a folder holds exactly these images, rendered of what `mark` stands for."""
    same = (folder / STAMP).exists() and (folder / STAMP).read_text() == mark
    whole = same and {path.stem for path in folder.glob("*.png")} == set(images.stems)
    return distributed.gather(whole)[0]  # as one sees it, before any changes it


def render_missing(run: Path, epochs: list[int], images: ImageSet, device: torch.device) -> None:
    """Render epochs, baselines and the upper bound, unless they are there and up to date.

    Raises UserError where a folder of outputs holds images that are not in the data set.
    """
    record = read_run(run)
    write_references(run, images, record.recipe)
    for folder in (run / "outputs").glob("*"):
        odd = sorted({path.stem for path in folder.glob("*.png")} - set(images.stems))
        if odd:
            raise UserError(f"{folder / odd[0]}.png belongs to no target ({len(odd)} such); delete it")
    for epoch in epochs:
        if not is_rendered(outputs_path(run, epoch), stamp(run, epoch, images.key), images):
            render_epoch(run, epoch, images, device)

    def truth(ids: list[int]) -> Tensor:
        return images.gather(ids, record.recipe.test_size)[1]

    draws: dict[str, Draw] = {
        "gray": lambda ids: color.recolor(truth(ids), 0.0, 0.0),
        "mean_ab": lambda ids: color.recolor(truth(ids), *record.mean_ab),
        "jpeg90": lambda ids: recompress(truth(ids), JPEG_QUALITY),
    }
    for name, draw in draws.items():
        folder = run / "outputs" / name
        if not is_rendered(folder, images.key, images):
            write_pictures(folder, images, draw, images.key)
