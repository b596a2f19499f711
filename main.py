"""Train, test, score, export and colourise in one go; on the embedded demo scenes unless told otherwise.

    python main.py                                   # minutes on two CPU cores, no download
    python main.py --recipe coco --data photos/

If the run exists, its training goes on where it stopped. Every option means the same as in the stages.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from config import DEMO, RUNS
from runtime.cli import (
    DataOption,
    DeviceOption,
    EpochsOption,
    RecipeOption,
    RunOption,
    WeightsOption,
    command,
)

if TYPE_CHECKING:
    from imaging.pixels import Array

PHOTO = "rocket.jpg"  # a real photograph inside scikit-image
ROWS = 5  # test images on the contact sheet


def write_example(folder: Path, kind: str) -> "tuple[Path, Array]":
    """Write the photograph as a network input of `kind`; returns the file, and the photograph in colour."""
    import skimage
    import torch

    from imaging import color
    from imaging.files import read_image, write_image

    photo = read_image(Path(skimage.__file__).parent / "data" / PHOTO)
    tensor = torch.from_numpy(photo).permute(2, 0, 1)[None]  # (1, 3, H, W)
    shown = color.line_art(tensor) if kind in ("sketch", "line") else color.show_input(tensor, kind)
    path = folder / "photograph.png"
    write_image(path, shown[0].permute(1, 2, 0).numpy())
    return path, photo


def main(
    recipe: RecipeOption = None,
    data: DataOption = None,
    run: RunOption = None,
    epochs: EpochsOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
) -> Path:
    """Run every stage; returns the contact sheet."""
    import colorize
    import eval as scoring
    import export
    import test
    import train
    from data import evenly_spaced
    from evaluation.scores import best_epoch
    from imaging.files import find_images, read_image, write_image
    from imaging.pixels import contact_sheet, resize
    from runtime.run_folder import outputs_path, read_run

    folder = Path(run or RUNS / (recipe or DEMO))
    resume = (folder / "recipe.json").exists()
    train.main(
        recipe=recipe, data=data, run=folder, epochs=epochs, weights=weights, device=device, resume=resume
    )
    test.main(run=folder, all_epochs=True, device=device)
    scoring.main(run=folder, all_epochs=True, weights=weights, device=device)
    model = export.main(run=folder, epoch="best", device=device)
    example, photo = write_example(folder, read_run(folder).recipe.input)
    coloured = colorize.main([example], model=model, out=folder / "colorized", device=device)[0]
    folders = (folder / "inputs", outputs_path(folder, best_epoch(folder)), folder / "targets")
    names = [path.name for path in find_images(folder / "targets")]
    rows = [[read_image(where / names[i]) for where in folders] for i in evenly_spaced(len(names), ROWS)]
    width = rows[0][0].shape[1]
    height = round(width * photo.shape[0] / photo.shape[1])
    rows.append(
        [resize(image, height, width) for image in (read_image(example), read_image(coloured), photo)]
    )
    sheet = folder / "contact_sheet.png"
    write_image(sheet, contact_sheet(rows, ["input", "ours", "truth"]))
    print(f"\npicture  {sheet}\nreport   {folder / 'report.html'}\nmodel    {model}")
    return sheet


if __name__ == "__main__":
    command(main)
