"""A run folder of flat images with known scores, written as the stages write it, but without any training."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from config import METRICS, make_recipe
from evaluation.scores import TRUTH_COLORFULNESS, Row, Score, ScoreFile, write_scores
from imaging.files import write_image
from models import fit_networks
from runtime.run_folder import STAMP, RunRecord, epoch_path, outputs_path, write_run

STEMS = ("plain", "a\"b<i>'&", "ünï 色", "<!--<script>", "{{data}}")
EPOCHS = (5, 10, 15)
WHY = "unavailable: 5 test images, at least 256 are needed; test on more"
# one column per epoch: the images have another order at every epoch
CIEDE2000 = {
    "plain": (9.0, 4.0, 6.0), STEMS[1]: (8.0, 7.5, 2.0), STEMS[2]: (7.0, 1.0, 5.5), STEMS[3]: (6.0, 6.5, 7.0),
    STEMS[4]: (5.0, 3.0, 8.0),
}  # fmt: skip
COLOURS = {5: (200, 40, 40), 10: (40, 40, 200), 15: (200, 200, 40)}  # of all images of an epoch
TRUTH, GIVEN = (40, 160, 40), (128, 128, 128)


def make_row(columns: Mapping[str, Sequence[float]], epoch: int | None = None) -> Row:
    """Return the means of scores, each with an interval of +- 1; LPIPS and FID are missing."""
    means = {metric: float(np.mean(values)) for metric, values in columns.items()}
    scores = {metric: Score(mean, 0.5, mean - 1, mean + 1) for metric, mean in means.items()}
    missing = {"lpips_alex": "unavailable: no weights of AlexNet", "fid": WHY}
    stamp = f"key {epoch}" if epoch else ""
    return Row(epoch, scores | {TRUTH_COLORFULNESS: Score(30.0)}, 5, missing, stamp)


def make_columns(stems: Sequence[str], epoch: int) -> dict[str, np.ndarray]:
    """Return the scores (N,) of every image at one epoch."""
    column = EPOCHS.index(epoch) if epoch in EPOCHS else 0
    ciede2000 = np.array([CIEDE2000.get(stem, (5.0, 4.0, 6.0))[column] for stem in stems])
    return {
        "psnr_db": 40 - 3 * ciede2000 + (column == 2),
        "ciede2000": ciede2000,
        "colorfulness": np.full(len(stems), 20.0),
    }


def make_scores(stems: Sequence[str] = STEMS, epochs: Sequence[int] = EPOCHS) -> ScoreFile:
    """Return the scores of three baselines and upper bounds, and of some epochs."""
    rows = {
        name: make_row({"psnr_db": [psnr_db], "ciede2000": [ciede2000], "colorfulness": [colorfulness]})
        for name, psnr_db, ciede2000, colorfulness in (
            ("gray", 15.0, 12.0, 0.0), ("mean_ab", 16.0, 4.5, 9.0), ("jpeg90", 39.0, 0.5, 29.0)
        )
    }  # fmt: skip
    rows |= {epoch_path(Path(), n).stem: make_row(make_columns(stems, n), n) for n in epochs}
    best = epoch_path(Path(), 10 if 10 in epochs else epochs[-1]).stem
    protocol = {"file_list": "dd44", "versions": {"tinct": "0.2.0"}, "weights": {"vgg": "ee"}}
    return ScoreFile(
        "ciede2000", {"psnr_db": best, "ciede2000": best}, [], dict(METRICS), protocol,
        ["FID of 5 images is biased <upwards>"], rows,
    )  # fmt: skip


def make_record(name: str = "coco", **overrides: Any) -> RunRecord:
    """Return what recipe.json holds."""
    return RunRecord(
        recipe=fit_networks(make_recipe(name, overrides)), data="/photos/of mine",
        fingerprints={"train": "aa11", "val": "bb22"}, mean_ab=(0.0, 0.0), images={"train": 1234, "val": 5},
        versions={"tinct": "0.2.0", "python": "3.11.7", "torch": "2.15.0+cpu", "numpy": "2.4.6"},
        git="c0ffee", parameters={"generator": 54409856, "discriminator": 2765633}, overrides=overrides,
    )  # fmt: skip


def make_run(run: Path, stems: Sequence[str] = STEMS, epochs: Sequence[int] = EPOCHS, side: int = 24) -> Path:
    """Write a run folder of flat images of `side` px."""
    write_run(run, make_record(size=64, epochs=15))
    folders = {run / "inputs": GIVEN, run / "targets": TRUTH}
    folders |= {outputs_path(run, epoch): COLOURS.get(epoch, GIVEN) for epoch in epochs}
    for folder, colour in folders.items():
        for stem in stems:
            write_image(folder / f"{stem}.png", np.full((side, side, 3), colour, np.uint8))
    for epoch in epochs:
        (outputs_path(run, epoch) / STAMP).write_text(f"key {epoch}")
    scores, per_image = make_scores(stems, epochs), {}
    for name, row in scores.rows.items():
        row.images = len(stems)
        known = {metric: np.full(len(stems), row.scores[metric].mean) for metric in ("psnr_db", "ciede2000")}
        per_image[name] = known if row.epoch is None else make_columns(stems, row.epoch)
    write_scores(run, scores, per_image, stems)
    speed = {"images_per_s": 60.0, "device": "Xeon, threads: 2"}
    records = [{"epoch": (i + 1) // 2, "steps": 10 * i, "G_l1": 1 / i, "D_real": 0.5, **speed} for i in range(1, 31)]
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Rewrite a JSON file through `change`, which alters what it holds."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
