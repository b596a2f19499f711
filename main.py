"""Train, test, score, export and colourise in one go; on the embedded demo scenes unless told otherwise.

    python main.py                                   # the embedded scenes: minutes on two CPU cores, no download
    python main.py --data photos/                    # looks: pairs of drawings -> anime, photographs -> coco
    python main.py --recipe coco --data photos/ --quick

If the run exists, its training goes on where it stopped. Every option means the same as in the stages.
"""

from pathlib import Path
from shlex import quote
from typing import Any

from config import CACHE, DEMO, RUNS, Recipe, UserError, make_recipe
from runtime import cli
from runtime.progress import say

ROWS = 5  # test images on the contact sheet


def write_example(path: Path, kind: str) -> Path:
    """Write the photograph as a network input of `kind`; returns the file that holds it in colour."""
    import skimage
    import torch

    from imaging import color
    from imaging.files import read_image, write_image
    from imaging.line_art import line_art

    photo = Path(skimage.__file__).parent / "data" / "rocket.jpg"  # a real photograph
    tensor = torch.from_numpy(read_image(photo)).permute(2, 0, 1)[None]  # (1, 3, H, W)
    shown = line_art(tensor) if kind in ("sketch", "line") else color.show_input(tensor, kind)
    write_image(path, shown[0].permute(1, 2, 0).numpy())
    return photo


def find_recipe(data: str, pair: str | None = None, pair_folders: tuple[str, str] | None = None) -> str:
    """Return the recipe for a data set whose user named none: anime for pairs, else coco; says which."""
    from dataset.folders import find_pair, is_gray, list_items

    looked_at = make_recipe("anime", {"pair_folders": "/".join(pair_folders or ()), "pair": pair or "auto"})
    items = list_items(data, looked_at, CACHE)["train"]
    if isinstance(items[0].target, int):
        return DEMO
    side_by_side = find_pair(items) if looked_at.pair == "auto" else looked_at.pair
    pairs = items[0].source is not None or side_by_side != "none"
    if not pairs and is_gray([item.target for item in items]):
        problem = f"{data} holds pictures without colour, from which none can be learnt"
        raise UserError(f"{problem}; to colour them: python colorize.py {quote(data)}")
    # painted comics have as many flat areas, lines and colours as photographs: nothing cheap tells them apart
    name, seen, other = "coco", "colour pictures", "for drawings: --recipe anime, or manga"
    if pairs:
        name, seen, other = "anime", "pairs of a drawing and its colours", "--recipe NAME for another"
    say(f"{data} holds {seen}: recipe {name} ({other})")
    return name


def require_quick(run: Path, given: dict[str, Any]) -> None:
    """Raise UserError where a run was not begun with --quick, which its recipe shows; `given`: what the user set."""
    from models import quick_fields
    from runtime.run_folder import read_run
    from training.setup import RESUMABLE

    recipe = read_run(run).recipe
    fields = {key: value for key, value in quick_fields(recipe.name).items() if key not in RESUMABLE | given.keys()}
    if apart := [key for key, value in fields.items() if getattr(recipe, key) != value]:
        found = ", ".join(f"{key} {getattr(recipe, key)}, not {fields[key]}" for key in apart)
        raise UserError(f"{run} holds a run without --quick ({found}): leave --quick out, or name another --run")


def main(
    recipe: cli.RecipeOption = None,
    data: cli.DataOption = None,
    run: cli.RunOption = None,
    epochs: cli.EpochsOption = None,
    size: cli.SizeOption = None,
    batch_size: cli.BatchSizeOption = None,
    limit: cli.LimitOption = None,
    pair: cli.PairOption = None,
    pair_folders: cli.PairFoldersOption = None,
    set_: cli.SettingsOption = None,
    quick: cli.QuickOption = False,
    weights: cli.WeightsOption = None,
    cache_gb: cli.CacheOption = None,
    device: cli.DeviceOption = "auto",
) -> Path:
    """Run every stage; returns the contact sheet."""
    import colorize
    import eval as scoring
    import export
    import test
    import train
    from data import evenly_spaced
    from evaluation.best_epoch import best_epoch
    from imaging.files import find_images, read_image, write_image
    from imaging.pixels import contact_sheet, resize
    from runtime.run_folder import RECORD, outputs_path, read_run
    from training.setup import given_fields, remembered

    if recipe is None and data and not (run and Path(run, RECORD).exists()):
        recipe = find_recipe(str(data), pair, pair_folders)
    folder = Path(run or RUNS / f"{recipe or DEMO}{'-quick' * quick}")
    common = {"run": folder, "device": device}
    reading = {**common, "cache_gb": cache_gb}
    given = {"epochs": epochs, "size": size, "batch_size": batch_size, "limit": limit, "set_": set_}
    given |= {"pair": pair, "pair_folders": pair_folders}
    resume = (folder / RECORD).exists()
    if resume and quick:
        require_quick(folder, given_fields(Recipe, set_, size=size, batch_size=batch_size, limit=limit))
    if resume and data:
        known = read_run(folder).data
        if remembered(str(data)) != known and Path(known).exists():  # else it may have been moved
            raise UserError(f"{folder} was trained on {known}: for {data} name another folder with --run")
    if resume:
        say(f"{folder} holds a run: it goes on as it was begun; to begin another, name another folder with --run")
    train.main(recipe=recipe, data=data, weights=weights, resume=resume, quick=quick and not resume, **given, **reading)
    test.main(all_epochs=True, **reading)
    scoring.main(all_epochs=True, weights=weights, **reading)
    model = export.main(**common)
    example = folder / "photograph.png"
    photo = write_example(example, read_run(folder).recipe.input)
    coloured = colorize.main([example], model=model, out=folder / "colorized", overwrite=True, device=device)[0]
    folders = (folder / "inputs", outputs_path(folder, best_epoch(folder)), folder / "targets")
    names = [path.name for path in find_images(folder / "targets")]
    rows = [[read_image(where / names[i]) for where in folders] for i in evenly_spaced(len(names), ROWS)]
    shown = [read_image(path) for path in (example, coloured, photo)]
    width = rows[0][0].shape[1]
    height = round(width * shown[0].shape[0] / shown[0].shape[1])
    rows.append([resize(image, height, width) for image in shown])
    sheet = folder / "contact_sheet.png"
    write_image(sheet, contact_sheet(rows, ["input", "ours", "truth"]))
    say(f"\npicture  {sheet}\nreport   {folder / 'report.html'}\nmodel    {model}")
    return sheet


if __name__ == "__main__":
    cli.command(main)
