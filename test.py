"""Render the test split with saved epochs: input, output and truth as PNGs of one name.

    python test.py                                   # newest run, last epoch
    python test.py --all-epochs --run runs/coco
    python test.py --epoch 50 --data other_photos/

Writes inputs/STEM.png, targets/STEM.png and outputs/epoch_0050/STEM.png in the run folder.
"""

import threads  # noqa: F401  before torch

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import checkpoint
import color
from checkpoint import choose_epochs, pick_device, pick_run, read_run
from cli import AllEpochsOption, DataOption, DeviceOption, EpochOption, RunOption, command
from config import CACHE, RUNS
from data import ImageSet, open_split
from images import write_image

BATCH = 16  # images per forward
REFERENCES = ("inputs", "targets")


def render_epoch(run: Path, epoch: int, images: ImageSet, device: torch.device) -> Path:
    """Render a test split with one saved epoch; returns the folder of its outputs.

    Outputs of another data set than `images` are deleted first, since names alone would not tell them apart.
    """
    recipe = read_run(run)["recipe"]
    colorizer = checkpoint.load_colorizer(run, epoch, device)
    write_references(run, images, recipe)
    folder = checkpoint.outputs_path(run, epoch)
    with ThreadPoolExecutor() as pool:  # PNGs are written beside the network
        for ids in tqdm(list(batched(len(images))), folder.name, leave=False, disable=None):
            source, _ = images.gather_fixed(ids, recipe)
            rgb = colorizer(color.rgb01(source.to(device)))
            stems = [images.stems[i] for i in ids]
            check_finite(rgb, [f"{folder.name}/{stem}" for stem in stems])
            save_all(pool, folder, stems, color.to_uint8(rgb).cpu())
    (folder / checkpoint.STAMP).write_text(checkpoint.stamp(run, epoch, images.key))
    return folder


def check_finite(rgb: Tensor, names: list[str]) -> None:
    """Raise ValueError naming the first picture whose colours (N, 3, H, W) are not finite."""
    broken = (~torch.isfinite(rgb)).flatten(1).any(1).nonzero()
    if len(broken):
        raise ValueError(f"the colours of {names[int(broken[0])]} are not finite; use another epoch")


def write_references(run: Path, images: ImageSet, recipe: Mapping[str, Any]) -> None:
    """Write inputs/ and targets/, once per data set; what was rendered of another one is deleted."""
    stamp = run / "targets" / checkpoint.STAMP
    outputs = run.glob(f"outputs/*/{checkpoint.STAMP}")
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
            save_all(pool, run / "inputs", stems, color.show_input(source, recipe["input"]))
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


def main(
    run: RunOption = None,
    epoch: EpochOption = None,
    all_epochs: AllEpochsOption = False,
    data: DataOption = None,
    device: DeviceOption = "auto",
) -> list[Path]:
    """Render one or all saved epochs; returns the output folders."""
    on = pick_device(device)
    folder = pick_run(run, RUNS)
    epochs = choose_epochs(folder, epoch, all_epochs)
    images = open_split(read_run(folder), data, "test", CACHE)
    outputs = [render_epoch(folder, number, images, on) for number in epochs]
    for output in outputs:
        print(f"rendered {len(images)} images into {output}")
    for sentence in images.bad:
        print(f"skipped {sentence}")
    return outputs


if __name__ == "__main__":
    command(main)
