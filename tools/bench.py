"""How fast? Both sides in one run, warmed up, the median of several; the last line is one JSON object.

    python bench.py                                  # scoring, on the embedded scenes
    python bench.py --data photos/ --images 512
    python bench.py --model runs/coco/generator.ts   # one picture through generator.ts, --device cpu or cuda

Scoring: PSNR, SSIM, error of ab and colourfulness of one epoch's outputs, as eval.py computes them, beside a
plain loop that opens two files with Pillow and asks scikit-image, one pair after the other in one process.

Generator: one uint8 picture in the device's memory, from call to result, in the network's own precision and
in the half precision of the device, at several sizes.
"""

import json
import platform
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from skimage.color import rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tqdm import tqdm

from config import CACHE, DEMO, Recipe, UserError
from data import ImageSet, Loading, load_images
from dataset.folders import list_items
from evaluation.deep_metrics import MetricSet
from evaluation.metrics import PER_IMAGE
from evaluation.scoring import score_pictures
from imaging.files import write_image
from imaging.pixels import Array
from inference.checkpoint import infer, load_exported
from runtime.cli import DataOption, DeviceOption, command
from runtime.device import pick_device

METRICS = ("psnr_db", "ssim", "ab_mse", "colorfulness", "colorfulness_truth")
TOLERANCE = 1e-4  # relative to the metric where that is above 1
SEED = 0
SIDES = (256, 1024, 2048)  # px, of the pictures that a generator colours
HALF = {"cpu": torch.bfloat16, "cuda": torch.float16, "mps": torch.float16}  # fp16 is slow on most CPUs


def plain_scores(target: Path, output: Path) -> list[float]:
    """Score one pair as a script in this field does; METRICS' values."""
    truth, ours = (np.asarray(Image.open(path).convert("RGB")) for path in (target, output))
    return [
        peak_signal_noise_ratio(truth, ours, data_range=255),
        structural_similarity(truth, ours, data_range=255, channel_axis=2),
        ((rgb2lab(truth)[..., 1:] - rgb2lab(ours)[..., 1:]) ** 2).mean(),
        plain_colorfulness(ours),
        plain_colorfulness(truth),
    ]


def plain_colorfulness(image: Array) -> float:
    """Return colourfulness as its authors write it down."""
    red, green, blue = (image[..., channel].astype(float) for channel in range(3))
    rg, yb = red - green, 0.5 * (red + green) - blue
    return np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())


def write_pairs(folder: Path, data: str, count: int, size: int) -> ImageSet:
    """Write targets/ and outputs/, the same in other colours and with noise; returns the targets decoded."""
    splits = list_items(data, Recipe(DEMO), CACHE)
    items = splits["train"] + splits["val"]
    loading = Loading(size, "crop", "none", False)
    images = load_images((items * -(-count // len(items)))[:count], loading, folder / "cache", "bench")
    rng = np.random.default_rng(SEED)
    for i in tqdm(range(len(images)), "writing", leave=False, disable=None):
        truth = images.gather([i], size)[1][0].permute(1, 2, 0).numpy()
        output = truth[..., rng.permutation(3)] * 0.3 + truth * 0.7 + rng.normal(0, 3, truth.shape)
        write_image(folder / "targets" / f"{i:05d}.png", truth)
        write_image(folder / "outputs" / f"{i:05d}.png", output.clip(0, 255).astype(np.uint8))
    images.stems[:] = [f"{i:05d}" for i in range(len(images))]
    return images


def bench_scoring(folder: Path, images: ImageSet, size: int, repeats: int) -> dict[str, object]:
    """Time both sides on the same files in turn. Raises UserError where their scores differ."""
    metrics = MetricSet(torch.device("cpu"), {name: PER_IMAGE[name] for name in METRICS})
    pairs = [(folder / "targets" / f"{s}.png", folder / "outputs" / f"{s}.png") for s in images.stems]
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for repeat in range(repeats + 1):  # the first is the warm-up
        started = time.perf_counter()
        scores, _ = score_pictures({"o": folder / "outputs"}, images, size, metrics)
        between = time.perf_counter()
        plain = np.array([plain_scores(*pair) for pair in pairs[: len(pairs) if repeat else 16]])
        if repeat:
            seconds["ours"].append(between - started)
            seconds["plain"].append(time.perf_counter() - between)
    ours = np.stack([scores["o"][name] for name in METRICS], 1)
    apart = float((np.abs(ours - plain) / np.maximum(1, np.abs(plain))).max())
    if not apart <= TOLERANCE:
        raise UserError(f"the two sides' scores differ by {apart:.2g}, so their times do not compare")
    ratios = [p / o for o, p in zip(seconds["ours"], seconds["plain"], strict=True)]
    return {**seconds, "largest_difference": apart, "ratio": statistics.median(ratios)}


def bench_generator(path: Path, device: torch.device, repeats: int) -> dict[str, object]:
    """Time generator.ts on square pictures, in its own and in half precision in turn; ms, all and medians."""
    models = {name: load_exported(path, device)[0] for name in ("exported", "half")}
    models["half"].to(HALF[device.type])
    found: dict[str, object] = {}
    for side in SIDES:
        image = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, device=device)
        ms: dict[str, list[float]] = {name: [] for name in models}
        for repeat in range(repeats + 2):  # two to warm up
            for name, model in models.items():
                started = time.perf_counter()
                infer(model, image).flatten()[0].item()  # waits for the device
                if repeat > 1:
                    ms[name].append((time.perf_counter() - started) * 1000)
        found[f"{side}_px_ms"] = ms
        cells = ", ".join(f"{name} {statistics.median(times):.1f} ms" for name, times in ms.items())
        print(f"{side} x {side} px: {cells}")
    return found


def conditions() -> dict[str, object]:
    """Return what a time depends on, to stand beside it."""
    versions = {name: metadata.version(name) for name in ("torch", "numpy", "scikit-image", "pillow")}
    machine = platform.processor() or platform.machine()
    python = platform.python_version()
    return {"cores": torch.get_num_threads(), "machine": machine, "python": python, **versions}


def main(
    data: DataOption = DEMO,
    images: Annotated[int, typer.Option(min=1, help="Pairs of pictures to score.")] = 2048,
    size: Annotated[int, typer.Option(min=7, help="Their side, px.")] = 256,
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Time this generator.ts instead.")
    ] = None,
    device: DeviceOption = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="Of which the median is taken.")] = 3,
) -> dict[str, object]:
    """Time the scoring of one epoch, or a generator.ts; returns what is printed."""
    if model is not None:
        on = pick_device(device)
        times = bench_generator(Path(model), on, repeats)
        name = torch.cuda.get_device_name(on) if on.type == "cuda" else on.type
        result: dict[str, object] = {"bench": "generator", "device": name, **conditions(), **times}
    else:
        with tempfile.TemporaryDirectory() as folder:
            pictures = write_pairs(Path(folder), str(data), images, size)
            times = bench_scoring(Path(folder), pictures, size, repeats)
        result = {"bench": "scoring", "images": len(pictures), "size": size, **conditions(), **times}
        ours, plain = (statistics.median(times[side]) for side in ("ours", "plain"))
        print(f"{len(pictures)} pairs of {size} px: ours {ours:.2f} s, plain loop {plain:.2f} s")
        print(
            f"{times['ratio']:.1f} times faster; scores differ by {times['largest_difference']:.1e} at most"
        )
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    command(main)
