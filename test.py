"""Render the test split with saved epochs: input, output and truth as PNGs of one name.

    python test.py                                   # newest run, last epoch
    python test.py --all-epochs --run runs/coco
    python test.py --epoch 50 --data other_photos/

Writes inputs/STEM.png, targets/STEM.png and outputs/epoch_0050/STEM.png in the run folder.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import checkpoint
import color
from checkpoint import choose_epochs, pick_device, read_run
from config import CACHE, RUNS, AllEpochsOption, DataOption, DeviceOption, EpochOption, RunOption, command
from data import ImageSet, open_split
from images import write_image

BATCH = 16  # images per forward


def render_epoch(run: Path, epoch: int, data: str | None, device: torch.device) -> Path:
    """Render the test split with one saved epoch; returns the folder of its outputs.

    Args:
        data: another data set than the run's own; its pictures replace those rendered before.
    """
    images = open_split(read_run(run), data, "test", CACHE)
    size = read_run(run)["recipe"]["size"]
    write_references(run, images, size, read_run(run)["recipe"]["input"])
    colorizer = checkpoint.load_colorizer(run, epoch, device)
    folder = run / "outputs" / checkpoint.epoch_path(run, epoch).stem
    starts = range(0, len(images), BATCH)
    with ThreadPoolExecutor() as pool:  # PNGs are written beside the network
        for start in tqdm(starts, folder.name, unit_scale=BATCH, leave=False, disable=None):
            ids = range(start, min(start + BATCH, len(images)))
            source, _ = images.gather(ids, size)
            ours = colorizer(source.to(device)).cpu()
            list(pool.map(write_image, [folder / f"{images.stems[i]}.png" for i in ids], to_arrays(ours)))
    return folder


def write_references(run: Path, images: ImageSet, size: int, kind: str) -> None:
    """Write inputs/ and targets/, once per data set; outputs of another data set are deleted."""
    stamp = run / "targets" / ".fingerprint"
    if stamp.exists() and stamp.read_text() == images.key:
        return
    for name in ("inputs", "targets", "outputs"):
        shutil.rmtree(run / name, ignore_errors=True)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(images), BATCH):
            ids = range(start, min(start + BATCH, len(images)))
            source, target = images.gather(ids, size)
            for name, pictures in (("inputs", color.show_input(source, kind)), ("targets", target)):
                list(
                    pool.map(
                        write_image, [run / name / f"{images.stems[i]}.png" for i in ids], to_arrays(pictures)
                    )
                )
    stamp.write_text(images.key)


def to_arrays(batch: Tensor) -> list:
    """Return (N, 3, H, W) uint8 as a list of (H, W, 3) arrays."""
    return list(batch.permute(0, 2, 3, 1).numpy())


def main(
    run: RunOption = None,
    epoch: EpochOption = None,
    all_epochs: AllEpochsOption = False,
    data: DataOption = None,
    device: DeviceOption = "auto",
) -> list[Path]:
    """Render one or all saved epochs; returns the output folders."""
    on = pick_device(device)
    folder = run or checkpoint.newest_run(RUNS)
    epochs = choose_epochs(folder, epoch, all_epochs)
    outputs = [render_epoch(folder, number, data, on) for number in epochs]
    for output in outputs:
        print(f"rendered {output}")
    for sentence in open_split(read_run(folder), data, "test", CACHE).bad:
        print(f"skipped {sentence}")
    print(f"score them with: python eval.py --all-epochs --run {folder}")
    return outputs


if __name__ == "__main__":
    command(main)
