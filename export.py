"""Write generator.ts: one TorchScript file that turns any image into a colour image, with torch alone.

    python export.py                                 # newest run, last epoch
    python export.py --run runs/coco --epoch 50 --out coco.ts
    python export.py --epoch best                    # by the recipe's metric, as eval.py found it

    model = torch.jit.load("generator.ts")
    colour = model(image)      # uint8 or float (N, 1|3, H, W) -> same dtype (N, 3, H, W)

The file is written only if eager, scripted and reloaded modules agree on images of several sizes.
"""

import copy
import json
import warnings
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

import checkpoint
from atomic import replacing
from checkpoint import choose_epochs, load_exported, pick_device, pick_run, read_run
from cli import DeviceOption, EpochOption, RunOption, command
from config import RUNS, VERSION
from scores import read_scores, why_best

SHAPES = ((1, 3, 256, 256), (2, 1, 37, 61), (1, 3, 1, 1), (3, 3, 90, 240))  # checked at export
TOLERANCE = 1 / 255  # one level of uint8


def difference(eager: nn.Module, other: nn.Module, device: torch.device) -> list[float]:
    """Return the largest difference of two modules' float outputs, in [0, 1], for each shape."""
    rng = torch.Generator().manual_seed(0)
    results = []
    for shape in SHAPES:
        image = torch.rand(shape, generator=rng).to(device)
        results.append(float((eager(image) - other(image)).abs().max()))
        levels: Tensor = (image * 255).to(torch.uint8)
        if (eager(levels).int() - other(levels).int()).abs().max() > 1:
            raise ValueError(
                f"uint8 outputs differ by more than one level at shape {shape}; nothing was written"
            )
    return results


def check(name: str, eager: nn.Module, other: nn.Module, device: torch.device) -> None:
    """Print how far a module is from the eager one. Raises ValueError if by more than one level of uint8."""
    results = difference(eager, other, device)
    cells = "  ".join(f"{'x'.join(map(str, s))} {r:.1e}" for s, r in zip(SHAPES, results, strict=True))
    print(f"eager - {name:<10} largest difference of 1.0: {cells}")
    if not all(result <= TOLERANCE for result in results):  # NaN is not
        raise ValueError(f"eager and {name} outputs differ by {max(results):.2g}; nothing was written")


def main(
    run: RunOption = None,
    epoch: EpochOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: generator.ts in the run.")
    ] = None,
    device: DeviceOption = "auto",
) -> Path:
    """Export one saved epoch; returns the file."""
    on = pick_device(device)
    folder = pick_run(run, RUNS)
    number = choose_epochs(folder, epoch, all_epochs=False)[0]
    if epoch == "best":
        scores = read_scores(folder)
        print(why_best(scores["rows"], scores["metric"]))
    path = Path(out or folder / "generator.ts")
    colorizer = checkpoint.load_colorizer(folder, number, on)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, and asked for
        scripted = torch.jit.script(copy.deepcopy(colorizer))  # a script shares its parameters
    check("scripted", colorizer, scripted, on)
    record = read_run(folder)
    metadata = {"version": VERSION, "epoch": number, "recipe": record["recipe"], "torch": torch.__version__}
    with replacing(path) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            scripted.to("cpu").save(temporary, _extra_files={"tinct.json": json.dumps(metadata)})
        check("reloaded", colorizer, load_exported(temporary, on)[0], on)
    print(f"wrote {path}; use it with: python colorize.py photo.jpg --model {path}")
    return path


if __name__ == "__main__":
    command(main)
