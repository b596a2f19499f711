"""How fast is Tinct? Two ways in one run, warmed up, the median of several; the last line is a JSON object.

    python -m tools.bench                                  # scoring, on the embedded scenes
    python -m tools.bench --data photos/ --images 512
    python -m tools.bench --model runs/coco/generator.ts   # one picture through generator.ts, on --device

Scoring: PSNR, SSIM, the error of ab and the colourfulness of one epoch's outputs, as eval.py computes them,
against a plain loop that opens two files with Pillow and calls scikit-image, one pair after the other.

Generator: one uint8 image in the device's memory, from call to result, in the network's own precision and in
the device's half precision, at several sizes.
"""

import json
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from config import CACHE, DEMO, Recipe, UserError
from runtime.cli import DataOption, DeviceOption, command
from runtime.run_folder import library_versions

if TYPE_CHECKING:
    import torch

    from data import ImageSet
    from imaging.pixels import Array

COMPARED = ("psnr_db", "ssim", "ab_mse", "colorfulness", "colorfulness_truth")
TOLERANCE = 1e-4  # relative to the score where that is above 1
SEED = 0
WARM_UP = 16  # pairs, of the plain loop
SIDES = (256, 1024, 2048)  # px, of the images that a generator colours


def plain_scores(target: Path, output: Path) -> list[float]:
    """Score one pair as scripts in this field do; returns the values of COMPARED."""
    import numpy as np
    from PIL import Image
    from skimage.color import rgb2lab
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    truth, ours = (np.asarray(Image.open(path).convert("RGB")) for path in (target, output))
    return [
        peak_signal_noise_ratio(truth, ours, data_range=255),
        structural_similarity(truth, ours, data_range=255, channel_axis=2),
        ((rgb2lab(truth)[..., 1:] - rgb2lab(ours)[..., 1:]) ** 2).mean(),
        plain_colorfulness(ours),
        plain_colorfulness(truth),
    ]


def plain_colorfulness(image: "Array") -> float:
    """Return the colourfulness of an image (H, W, 3), by the formula of its authors."""
    red, green, blue = (image[..., channel].astype(float) for channel in range(3))
    rg, yb = red - green, 0.5 * (red + green) - blue
    return (rg.var() + yb.var()) ** 0.5 + 0.3 * (rg.mean() ** 2 + yb.mean() ** 2) ** 0.5


def write_pairs(folder: Path, data: str, count: int, size: int) -> "ImageSet":
    """Write targets/ and outputs/, the same in other colours and with noise; returns the targets decoded."""
    import numpy as np
    from tqdm import tqdm

    from data import Loading, load_images
    from dataset.folders import list_items
    from imaging.files import write_image

    splits = list_items(data, Recipe(DEMO), CACHE)
    items = splits["train"] + splits["val"]
    loading = Loading(size, "crop", "none", False)
    images = load_images((items * -(-count // len(items)))[:count], loading, folder / "cache", "bench")
    images = replace(images, stems=[f"{i:05d}" for i in range(len(images))])
    rng = np.random.default_rng(SEED)
    for i, stem in enumerate(tqdm(images.stems, "writing", leave=False, disable=None)):
        truth = images.gather([i], size)[1][0].permute(1, 2, 0).numpy()  # (size, size, 3)
        output = truth[..., rng.permutation(3)] * 0.3 + truth * 0.7 + rng.normal(0, 3, truth.shape)
        write_image(folder / "targets" / f"{stem}.png", truth)
        write_image(folder / "outputs" / f"{stem}.png", output.clip(0, 255).astype(np.uint8))
    return images


def bench_scoring(folder: Path, images: "ImageSet", size: int, repeats: int) -> dict[str, Any]:
    """Time both ways on the same files in turn. Raises UserError where their scores differ."""
    import numpy as np
    import torch

    from evaluation.deep_metrics import MetricSet
    from evaluation.metrics import PER_IMAGE
    from evaluation.scoring import score_pictures

    metrics = MetricSet(torch.device("cpu"), {name: PER_IMAGE[name] for name in COMPARED})
    pairs = [(folder / "targets" / f"{s}.png", folder / "outputs" / f"{s}.png") for s in images.stems]
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for repeat in range(repeats + 1):  # the first is the warm-up
        started = time.perf_counter()
        scores, _ = score_pictures({"o": folder / "outputs"}, images, size, metrics)
        between = time.perf_counter()
        plain = np.array([plain_scores(*pair) for pair in pairs[: None if repeat else WARM_UP]])
        if repeat:
            seconds["ours"].append(between - started)
            seconds["plain"].append(time.perf_counter() - between)
    ours = np.stack([scores["o"][name] for name in COMPARED], 1)
    apart = float((np.abs(ours - plain) / np.maximum(1, np.abs(plain))).max())
    if not apart <= TOLERANCE:
        raise UserError(f"the two sides' scores differ by {apart:.2g}, so their times do not compare")
    ratios = [p / o for o, p in zip(seconds["ours"], seconds["plain"], strict=True)]
    return {**seconds, "largest_difference": apart, "ratio": statistics.median(ratios)}


def bench_generator(path: Path, device: "torch.device", repeats: int) -> dict[str, Any]:
    """Time generator.ts on square images, in its own and in half precision in turn; returns ms."""
    import torch

    from inference.checkpoint import infer, load_exported

    half = torch.bfloat16 if device.type == "cpu" else torch.float16  # fp16 is slow on most CPUs
    models = {name: load_exported(path, device)[0] for name in ("exported", "half")}
    models["half"].to(half)
    found: dict[str, Any] = {}
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


def main(
    data: DataOption = DEMO,
    images: Annotated[int, typer.Option(min=1, help="Pairs of pictures to score.")] = 2048,
    size: Annotated[int, typer.Option(min=7, help="Their side, px.")] = 256,
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="Time this generator.ts instead.")] = None,
    device: DeviceOption = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="Of which the median is taken.")] = 3,
) -> dict[str, Any]:
    """Time the scoring of one epoch, or a generator.ts; returns what is printed."""
    import torch

    versions = library_versions(("torch", "numpy", "scikit-image", "pillow"))
    conditions = {"cores": torch.get_num_threads(), "machine": platform.processor() or platform.machine(), **versions}
    if model is not None:
        from runtime.device import pick_device

        on = pick_device(device)
        times = bench_generator(Path(model), on, repeats)
        name = torch.cuda.get_device_name(on) if on.type == "cuda" else on.type
        result = {"bench": "generator", "device": name, **conditions, **times}
    else:
        with tempfile.TemporaryDirectory() as folder:
            pictures = write_pairs(Path(folder), str(data), images, size)
            times = bench_scoring(Path(folder), pictures, size, repeats)
        result = {"bench": "scoring", "images": len(pictures), "size": size, **conditions, **times}
        ours, plain = (statistics.median(times[side]) for side in ("ours", "plain"))
        print(f"{len(pictures)} pairs of {size} px: ours {ours:.2f} s, plain loop {plain:.2f} s")
        print(f"{times['ratio']:.1f} times faster; scores differ by {times['largest_difference']:.1e} at most")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    command(main)
