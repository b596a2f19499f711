"""How fast is Tinct? Against the published way, in one run, in turn; medians of several; the last line is JSON.

    python -m tools.bench step                  # a training step of recipe coco, 256 px, batch 16
    python -m tools.bench step --recipe demo --size 128 --batch 8
    python -m tools.bench data                  # pictures per second: first epoch, later ones
    python -m tools.bench infer                 # photographs of 1024 x 768 px, from file to file
    python -m tools.bench infer --model generator.ts    # one picture in memory, at several sizes
    python -m tools.bench eval                  # scoring an epoch
    python -m tools.bench demo                  # the README's first command, and how good it is
    python -m tools.bench step --quick          # any of them in two minutes

What the two sides of step, data and infer are stands in tools/workers.py. Each is a process of its own, and while
one works the other waits. The scores of eval are those of eval.py against a plain loop that opens two files with
Pillow and calls scikit-image, one pair after the other.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from config import CACHE, DEMO, ROOT, Recipe, UserError
from runtime.cli import DataOption, DeviceOption, command
from runtime.run_folder import library_versions

if TYPE_CHECKING:
    import torch

    from data import ImageSet
    from evaluation.scores import ScoreFile
    from imaging.pixels import Array

COMPARED = ("psnr_db", "ssim", "ab_mse", "colorfulness", "colorfulness_truth")
TOLERANCE = 1e-4  # relative to the score where that is above 1
SEED = 0
WARM_UP = 16  # pairs, of the plain loop
SIDES = (256, 1024, 2048)  # px, of the images that a generator colours
MATRIX = 4096  # rows and columns, of the multiplication that is the machine's ceiling
PHOTOGRAPH = (768, 1024)  # px, height and width


class Mode(str, Enum):
    """What is measured."""

    step = "step"
    data = "data"
    infer = "infer"
    eval = "eval"
    demo = "demo"


class Worker:
    """One side, in a process of its own. Raises RuntimeError where it ends before its time."""

    def __init__(self, mode: str, side: str, spec: dict[str, Any]) -> None:
        """Start it, with OpenMP as it comes for the plain side, and wait until it is ready."""
        plain = side == "plain"
        env = {k: v for k, v in os.environ.items() if not (plain and k in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))}
        call = [sys.executable, "-W", "ignore", "-m", "tools.workers", mode, side, json.dumps(spec)]
        self.process = subprocess.Popen(
            call, cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.facts = self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the worker's next line."""
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"a side of the benchmark ended: {' '.join(map(str, self.process.args[4:7]))}")
        return json.loads(line)

    def work(self) -> dict[str, float]:
        """Let it work once; returns seconds, page faults and peak memory."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()


def in_turn(mode: str, sides: dict[str, tuple[str, dict[str, Any]]], repeats: int, warm_up: int) -> dict[str, Any]:
    """Let several sides work in turn; returns their facts, and lists of what each repetition took.

    Args:
        sides: name -> side of tools.workers, and what it is asked for.
    """
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(mode, *side)) for name, side in sides.items()}
        found: dict[str, Any] = {name: {**worker.facts, "runs": []} for name, worker in workers.items()}
        for repeat in range(warm_up + repeats):
            for name, worker in workers.items():
                taken = worker.work()
                if repeat >= warm_up:
                    found[name]["runs"].append(taken)
    for side in found.values():
        runs = side.pop("runs")
        side |= {key: [round(run[key], 5) for run in runs] for key in runs[0]}
        side["median_seconds"] = statistics.median(side["seconds"])
    return found


def bench_step(recipe: str, size: int, batch: int, device: str, repeats: int) -> dict[str, Any]:
    """Time a training step: ours as it is settled here, ours in fp32, and the published way."""
    spec = {"recipe": recipe, "size": size, "batch": batch, "device": device}
    sides = {"plain": ("plain", spec), "ours fp32": ("ours", {**spec, "fp32": True}), "ours": ("ours", spec)}
    found = in_turn("step", sides, repeats, 2)
    precisions = {side["precision"] for side in found.values()}
    asked = {p: ("ceiling", {"device": device, "side": MATRIX, "precision": p}) for p in sorted(precisions)}
    most = {p: side["flop"] / min(side["seconds"]) for p, side in in_turn("step", asked, 3, 1).items()}
    for name, side in found.items():
        seconds = side["median_seconds"]
        side |= {"images_per_s": batch / seconds, "gflop_per_s": found["plain"]["flop"] / seconds / 1e9}
        side["share_of_ceiling"] = 1e9 * side["gflop_per_s"] / most[side["precision"]]
        ms = [1000 * each for each in side["seconds"]]
        computed = f"{side['precision']} {side['memory_format']}" + " compiled" * side["compiled"]
        times = f"{statistics.median(ms):.0f} ms ({min(ms):.0f} to {max(ms):.0f}), {side['images_per_s']:.2f} images/s"
        share = f"{side['gflop_per_s']:.0f} GFLOP/s, {100 * side['share_of_ceiling']:.0f} % of what matrices get"
        print(f"{name}, {computed}: {times}, {share}, {statistics.median(side['page_faults']):.0f} page faults")
    ratios = {name: found["plain"]["median_seconds"] / side["median_seconds"] for name, side in found.items()}
    print(", ".join(f"{name} {ratio:.2f} times as fast" for name, ratio in ratios.items() if name != "plain"))
    ceilings = {precision: value / 1e9 for precision, value in most.items()}
    return {**spec, "sides": found, "ratios": ratios, "ceiling_gflop_per_s": ceilings}


def bench_data(recipe: str, size: int, batch: int, device: str, repeats: int, images: int) -> dict[str, Any]:
    """Time an epoch's pictures from file to device: ours decoding them, ours later, and the published way."""
    with tempfile.TemporaryDirectory() as folder:
        photographs = write_photographs(Path(folder) / "photographs", images, (480, 640))
        spec = {"recipe": recipe, "size": size, "batch": batch, "device": device, "folder": str(photographs)}
        again = {**spec, "again": True}
        sides = {"plain": ("plain", spec), "first epoch": ("ours", spec), "later": ("ours", again)}
        found = in_turn("data", sides, repeats, 1)
    return {**spec, "sides": found, **per_image(found)}


def bench_files(device: str, repeats: int, images: int) -> dict[str, Any]:
    """Time colouring photographs from file to file with the network of recipe coco, untrained."""
    with tempfile.TemporaryDirectory() as folder:
        photographs = write_photographs(Path(folder) / "photographs", images, PHOTOGRAPH)
        model = write_untrained(Path(folder) / "generator.ts")
        spec = {"device": device, "folder": str(photographs), "model": str(model)}
        found = in_turn("infer", {"plain": ("plain", spec), "ours": ("ours", spec)}, repeats, 1)
    ours = found["ours"]
    ours["beside_the_network_ms"] = 1000 * (ours["median_seconds"] / ours["images"] - ours["network_seconds"])
    ours["network_idle_share"] = 1 - ours["network_batch_seconds"] * ours["images"] / ours["median_seconds"]
    alone = f"{1000 * ours['network_seconds']:.0f} ms, in batches {1000 * ours['network_batch_seconds']:.0f} ms"
    print(f"the network alone: {alone} per picture; idle {100 * ours['network_idle_share']:.0f} %")
    return {"device": device, "sides": found, **per_image(found)}


def per_image(found: dict[str, Any]) -> dict[str, float]:
    """Print the speed of each side; returns how many times as fast as the plain one the others are."""
    for name, side in found.items():
        ms = [1000 * seconds / side["images"] for seconds in side["seconds"]]
        each = f"{statistics.median(ms):.1f} ms per picture ({min(ms):.1f} to {max(ms):.1f})"
        print(f"{name:<12}{1000 / statistics.median(ms):8.1f} pictures/s, {each}")
    plain = found["plain"]["median_seconds"]
    ratios = {f"{name} ratio": plain / side["median_seconds"] for name, side in found.items() if name != "plain"}
    print(", ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    return ratios


def write_photographs(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Write JPEG files of drawn scenes with noise, of a height and width in px; returns the folder."""
    import numpy as np

    from dataset import scenes
    from imaging.files import write_image
    from imaging.pixels import resize

    rng = np.random.default_rng(SEED)
    drawn = [resize(scenes.draw(i, 256)[0], *size) for i in range(min(8, count))]
    for i in range(count):
        noisy = drawn[i % len(drawn)] + rng.normal(0, 6, (*size, 3))
        write_image(folder / f"{i:05d}.jpg", noisy.clip(0, 255).astype(np.uint8))
    return folder


def write_untrained(path: Path) -> Path:
    """Write a generator.ts of recipe coco with random weights."""
    from config import make_recipe
    from inference.checkpoint import ExportRecord
    from inference.colorizer import Colorizer
    from inference.exporters import deployable, write_script
    from models import build_generator, fit_networks

    recipe = fit_networks(make_recipe("coco", {}))
    colorizer = Colorizer(build_generator(recipe), recipe.input, recipe.output, recipe.size, 2**recipe.depth, 1)
    write_script(path, deployable(colorizer.eval(), "fp32"), ExportRecord(recipe, 1, "fp32"), [])
    return path


def bench_demo(device: str, quick: bool) -> dict[str, Any]:
    """Time the README's first command, and see how good what it trains is."""
    from evaluation.scores import read_scores

    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, str(ROOT / "main.py"), "--device", device, *["--quick"] * quick]
        started = time.perf_counter()
        subprocess.run(call, cwd=folder, check=True, stdout=sys.stderr)
        seconds = time.perf_counter() - started
        found = quality(read_scores(Path(folder, "runs", DEMO)))
    gain, share = found.values()
    print(f"{seconds:.0f} s; {gain:.2f} dB above gray, {100 * share:.0f} % of the truth's colourfulness")
    return {"seconds": seconds, **found}


def quality(scores: "ScoreFile") -> dict[str, float]:
    """Return how far a run's best epoch by PSNR is above gray, in dB, and its share of the truth's colourfulness."""
    from evaluation.scores import TRUTH_COLORFULNESS

    best, gray = (scores.rows[name].scores for name in (scores.best["psnr_db"], "gray"))
    return {
        "psnr_db_above_gray": best["psnr_db"].mean - gray["psnr_db"].mean,
        "share_of_colorfulness": best["colorfulness"].mean / best[TRUTH_COLORFULNESS].mean,
    }


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


def bench_scores(data: str, images: int, size: int, repeats: int) -> dict[str, Any]:
    """Time the scoring of one epoch."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_pairs(Path(folder), data, images, size)
        times = bench_scoring(Path(folder), pictures, size, repeats)
    ours, plain = (statistics.median(times[side]) for side in ("ours", "plain"))
    print(f"{len(pictures)} pairs of {size} px: ours {ours:.2f} s, plain loop {plain:.2f} s")
    print(f"{times['ratio']:.1f} times faster; scores differ by {times['largest_difference']:.1e} at most")
    return {"images": len(pictures), "size": size, **times}


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


def conditions(device: "torch.device") -> dict[str, Any]:
    """Return on what a figure was measured."""
    import torch

    from runtime.device import device_name

    found = torch.cpu.get_capabilities()
    known = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if found.get(name)]
    versions = library_versions(("torch", "numpy", "scikit-image", "pillow"))
    cpu = device_name(torch.device("cpu"))
    return {"machine": cpu, "device": device_name(device), "instructions": known, **versions}


def main(
    mode: Annotated[Mode, typer.Argument(help="What is measured.")],
    recipe: Annotated[str, typer.Option(metavar="NAME", help="Of step and data.")] = "coco",
    data: DataOption = DEMO,
    images: Annotated[int | None, typer.Option(min=1, help="Pictures of data, infer, eval.")] = None,
    size: Annotated[int, typer.Option(min=7, help="Their side, px.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per step.")] = 16,
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="A generator.ts to time, in infer.")] = None,
    device: DeviceOption = "auto",
    repeats: Annotated[int | None, typer.Option(min=1, help="Of which the median is taken.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Less work: about two minutes.")] = False,
) -> dict[str, Any]:
    """Time a part of Tinct against the published way; returns what is printed."""
    from runtime.device import pick_device

    on = pick_device(device)
    repeats = repeats or (3 if quick or mode != Mode.step else 10)
    if mode == Mode.step:
        times = bench_step(recipe, size, min(batch, 4) if quick else batch, on.type, repeats)
    elif mode == Mode.data:
        times = bench_data(recipe, size, batch, on.type, repeats, images or (128 if quick else 512))
    elif mode == Mode.infer and model is None:
        times = bench_files(on.type, repeats, images or (16 if quick else 64))
    elif mode == Mode.infer:
        times = bench_generator(model, on, repeats)
    elif mode == Mode.eval:
        times = bench_scores(str(data), images or (256 if quick else 2048), size, repeats)
    else:
        times = bench_demo(on.type, quick)
    result = {"bench": mode.value, **conditions(on), **times}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    command(main)
