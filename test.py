"""Render the test split with saved epochs: input, output and ground truth as PNGs of one name.

    python test.py                                   # newest run, last epoch
    python test.py --all-epochs --run runs/coco
    python test.py --epoch 50 --data other_photos/

Writes inputs/STEM.png, targets/STEM.png and outputs/epoch_0050/STEM.png into the run folder.
"""

from contextlib import nullcontext
from pathlib import Path

from config import CACHE
from runtime.cli import AllEpochsOption, CacheOption, DataOption, DeviceOption, EpochOption, RunOption, command


def main(
    run: RunOption = None,
    epoch: EpochOption = None,
    all_epochs: AllEpochsOption = False,
    data: DataOption = None,
    cache_gb: CacheOption = None,
    device: DeviceOption = "auto",
) -> list[Path]:
    """Render one or all saved epochs; returns the output folders."""
    from data import open_split
    from evaluation.best_epoch import choose_epochs
    from evaluation.render import render_epoch
    from reporting.summary import model_words
    from runtime import distributed
    from runtime.device import keep_freed_memory, pick_device
    from runtime.progress import say
    from runtime.run_folder import newest_run, read_run, rendering

    on = pick_device(device)
    keep_freed_memory()
    folder = Path(run or newest_run())
    epochs = choose_epochs(folder, epoch, all_epochs)
    record = read_run(folder)
    say(f"rendering {folder}: {model_words(record, epochs, on)}")
    with distributed.in_turn():
        images = open_split(record, data, "test", CACHE, cache_gb)
    distributed.require_same({"run": str(folder), "epochs": epochs, "pictures": images.key})
    with nullcontext() if distributed.rank() else rendering(folder):
        outputs = [render_epoch(folder, number, images, on) for number in epochs]
    for output in outputs:
        say(f"rendered {len(images)} images into {output}")
    for sentence in images.bad:
        say(f"skipped {sentence}")
    return outputs


if __name__ == "__main__":
    command(main, shared=True)
