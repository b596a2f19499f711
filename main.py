"""Train, test, score, export and colourise in one go; on the embedded demo scenes unless told otherwise.

    python main.py                                   # minutes on two CPU cores, no download
    python main.py --recipe coco --data photos/

Called again, it goes on with the run it finds.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import skimage
import typer

import colorize
import eval as evaluation
import export
import test
import train
from config import RUNS, DataOption, DeviceOption, RunOption, command
from images import Array, contact_sheet, find_images, read_image, resize, write_image

PHOTO = "rocket.jpg"  # a real photograph inside scikit-image
ROWS = 5  # test pictures on the contact sheet


def sheet_rows(run: Path, outputs: Path, photo: Path, coloured: Path) -> list[list[Array]]:
    """Return input | ours | truth of a few test pictures and of the photograph."""
    names = [path.name for path in find_images(run / "targets")]
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(ROWS, len(names))).astype(int)]
    rows = [
        [read_image(folder / name) for folder in (run / "inputs", outputs, run / "targets")]
        for name in chosen
    ]
    width = rows[0][0].shape[1]
    pictures = [read_image(path) for path in (photo, coloured)]
    height = round(width * pictures[0].shape[0] / pictures[0].shape[1])
    truth, ours = (resize(picture, height, width) for picture in pictures)
    gray = np.repeat(truth.mean(2, keepdims=True).round().astype(np.uint8), 3, axis=2)
    return [*rows, [gray, ours, truth]]


def main(
    recipe: Annotated[str, typer.Option(metavar="NAME", help="demo, coco or anime.")] = "demo",
    data: DataOption = None,
    run: RunOption = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    device: DeviceOption = "auto",
) -> Path:
    """Run every stage; returns the contact sheet."""
    folder = run or RUNS / recipe
    resume = (folder / "recipe.json").exists()
    train.main(recipe=recipe, data=data, run=folder, epochs=epochs, device=device, resume=resume)
    outputs = test.main(run=folder, all_epochs=True, device=device)
    evaluation.main(run=folder, all_epochs=True, device=device)
    model = export.main(run=folder, device=device)
    photo = Path(skimage.__file__).parent / "data" / PHOTO
    coloured = colorize.main([photo], model=model, out=folder / "colorized", device=device)[0]
    sheet = folder / "contact_sheet.png"
    write_image(
        sheet, contact_sheet(sheet_rows(folder, outputs[-1], photo, coloured), ["input", "ours", "truth"])
    )
    print(f"\npicture  {sheet}\nscores   {folder / 'scores.csv'}\nmodel    {model}")
    return sheet


if __name__ == "__main__":
    command(main)
