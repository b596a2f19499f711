"""Colourise image files with an exported generator.

    python colorize.py photo.jpg folder/                       # newest run's generator.ts, into out/
    python colorize.py scans/ --model runs/coco/generator.ts --out coloured/

Names, folder structure and sizes are kept. Files that cannot be read are listed at the end.
"""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from checkpoint import load_exported, newest_run, pick_device
from cli import DeviceOption, command
from config import RUNS
from images import Array, find_images, read_image, write_image


def plan_outputs(inputs: list[Path], out: Path) -> dict[Path, Path]:
    """Return output file -> input file, folders searched through and their structure kept.

    Raises:
        ValueError: an input is missing, two would get one output, or one would be overwritten.
    """
    plan: dict[Path, Path] = {}
    for given in inputs:
        if not given.exists():
            raise ValueError(f"no file or folder {given}")
        for path in find_images(given) if given.is_dir() else [given]:
            output = out / (path.relative_to(given) if given.is_dir() else path.name)
            if output in plan:
                raise ValueError(
                    f"{plan[output]} and {path} would both become {output}; colourise them in two calls"
                )
            plan[output] = path
    originals = {path.resolve() for path in plan.values()}
    for output, path in plan.items():
        if output.resolve() in originals:
            raise ValueError(f"{output}, the result of {path}, would overwrite an input; name another --out")
    return plan


def colorize_image(model: torch.nn.Module, image: Array, device: torch.device) -> Array:
    """Return the colour version of one picture, (H, W, 3) uint8 to the same."""
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)  # (1, 3, H, W)
    with torch.inference_mode():
        return model(tensor)[0].permute(1, 2, 0).cpu().numpy()


def main(
    inputs: Annotated[list[Path], typer.Argument(metavar="FILE|FOLDER...", help="Images to colourise.")],
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="An exported generator.ts.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = Path("out"),
    device: DeviceOption = "auto",
) -> list[Path]:
    """Colourise files and folders; returns the files written. Exits with 1 if some fail, 2 if all do."""
    on = pick_device(device)
    plan = plan_outputs([Path(path) for path in inputs], Path(out))
    exported, _ = load_exported(Path(model or newest_run(RUNS) / "generator.ts"), on)
    Path(out).mkdir(parents=True, exist_ok=True)
    failed = []
    for output, path in tqdm(plan.items(), "colourising", unit="image", leave=False, disable=None):
        try:
            write_image(output, colorize_image(exported, read_image(path), on))
        except ValueError as error:
            failed.append(str(error))
    print(f"coloured {len(plan) - len(failed)} of {len(plan)} images, in {out}/")
    for sentence in failed:
        print(f"not done: {sentence}", file=sys.stderr)
    if failed:
        raise SystemExit(2 if len(failed) == len(plan) else 1)
    return list(plan)


if __name__ == "__main__":
    command(main)
