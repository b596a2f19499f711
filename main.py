"""Train, test, score, export and colourise in one go; on the embedded demo scenes unless told otherwise.

    python main.py                                   # minutes on two CPU cores, no download
    python main.py --recipe coco --data photos/

Called again, it goes on with the run it finds.
"""

from pathlib import Path

import skimage
import torch

import colorize
import eval as evaluation
import export
import test
import train
from config import DEMO, RUNS
from data import evenly_spaced
from evaluation.scores import best_epoch
from imaging import color
from imaging.files import find_images, read_image, write_image
from imaging.pixels import Array, contact_sheet, resize
from runtime.cli import (
    DataOption,
    DeviceOption,
    EpochsOption,
    RecipeOption,
    RunOption,
    WeightsOption,
    command,
)
from runtime.run_folder import outputs_path, read_run

PHOTO = "rocket.jpg"  # a real photograph inside scikit-image
ROWS = 5  # test pictures on the contact sheet


def write_example(folder: Path, kind: str) -> tuple[Path, Array]:
    """Write the photograph as an input of `kind`; returns the file and the photograph itself."""
    photo = read_image(Path(skimage.__file__).parent / "data" / PHOTO)
    tensor = torch.from_numpy(photo).permute(2, 0, 1)[None]  # (1, 3, H, W)
    shown = color.line_art(tensor) if kind in ("sketch", "line") else color.show_input(tensor, kind)
    path = folder / "photograph.png"
    write_image(path, shown[0].permute(1, 2, 0).numpy())
    return path, photo


def sheet_rows(run: Path, outputs: Path, example: tuple[Array, Array, Array]) -> list[list[Array]]:
    """Return input | ours | truth of a few test pictures and of the photograph."""
    names = [path.name for path in find_images(run / "targets")]
    chosen = [names[i] for i in evenly_spaced(len(names), ROWS)]
    rows = [
        [read_image(folder / name) for folder in (run / "inputs", outputs, run / "targets")]
        for name in chosen
    ]
    width = rows[0][0].shape[1]
    height = round(width * example[0].shape[0] / example[0].shape[1])
    return [*rows, [resize(picture, height, width) for picture in example]]


def main(
    recipe: RecipeOption = None,
    data: DataOption = None,
    run: RunOption = None,
    epochs: EpochsOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
) -> Path:
    """Run every stage; returns the contact sheet."""
    folder = Path(run or RUNS / (recipe or DEMO))
    resume = (folder / "recipe.json").exists()
    train.main(
        recipe=recipe, data=data, run=folder, epochs=epochs, weights=weights, device=device, resume=resume
    )
    test.main(run=folder, all_epochs=True, device=device)
    evaluation.main(run=folder, all_epochs=True, weights=weights, device=device)
    model = export.main(run=folder, epoch="best", device=device)
    outputs = outputs_path(folder, best_epoch(folder))
    shown, photo = write_example(folder, read_run(folder).recipe.input)
    coloured = colorize.main([shown], model=model, out=folder / "colorized", device=device)[0]
    sheet = folder / "contact_sheet.png"
    example = read_image(shown), read_image(coloured), photo
    write_image(sheet, contact_sheet(sheet_rows(folder, outputs, example), ["input", "ours", "truth"]))
    print(f"\npicture  {sheet}\nreport   {folder / 'report.html'}\nmodel    {model}")
    return sheet


if __name__ == "__main__":
    command(main)
