"""The two sides of tools.bench, each in a process of its own: Tinct, and the same work written the published way.

    python -m tools.workers MODE SIDE '{"recipe": "coco", ...}'    # started by tools.bench

A worker gets ready, prints a line of JSON, and does its work once per line on standard input, which it
answers by a line of JSON with the seconds, page faults and peak memory. A process each, because what the
allocator and OpenMP are told holds for a whole process.

The published way is eager PyTorch in fp32: Pillow and scikit-image per picture in a DataLoader, Adam as it comes,
each loss read at each step, one picture after the other. Our code here, run with the published settings.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from config import Recipe

Work = Callable[[], object]
Spec = dict[str, Any]  # what tools.bench asks for


def the_recipe(spec: Spec) -> "Recipe":
    """Return the recipe that a step, or the loading of pictures, is measured with."""
    from config import make_recipe
    from models import fit_networks

    return fit_networks(make_recipe(spec["recipe"], {"size": spec["size"], "batch_size": spec["batch"]}))


def our_step(spec: Spec) -> tuple[Work, Spec]:
    """Train on a batch of uint8 pictures, as train.py does; in fp32 where spec has `fp32`."""
    import tempfile

    import torch

    from models import count_channels, meta_generator
    from runtime.device import (
        MIN_COMPILED_STEPS,
        keep_freed_memory,
        pays_to_compile,
        pick_device,
        pick_format,
        pick_precision,
    )
    from training.gan import build_gan, make_batch, train_step

    keep_freed_memory()
    recipe, device = the_recipe(spec), pick_device(spec["device"])
    precision = "fp32" if spec.get("fp32") else pick_precision(recipe.precision, device)
    shape = (2, count_channels(recipe)[0], recipe.size, recipe.size)
    with tempfile.TemporaryDirectory() as cache:
        memory_format = pick_format(meta_generator(recipe), shape, device, precision, Path(cache))
    compiled = pays_to_compile(device, precision, MIN_COMPILED_STEPS)  # as in a long run
    gan = build_gan(recipe, device, precision, memory_format, compiled)
    pictures = torch.randint(0, 256, (recipe.batch_size, 3, recipe.size, recipe.size), dtype=torch.uint8)
    sketches = pictures if recipe.input == "L" else pictures.clone()

    def work() -> float:
        batch = make_batch(sketches, pictures, recipe, device, 1)
        return sum(train_step(gan, batch, recipe, recipe.is_adversarial).values()).item()

    return work, {"precision": precision, "memory_format": memory_format, "compiled": compiled}


def plain_step(spec: Spec) -> tuple[Work, Spec]:
    """Train on a batch of floats that a loader has made, D before G, each loss read at once."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from models import build_discriminator, build_generator, count_channels

    recipe, device = the_recipe(spec), torch.device(spec["device"])
    torch.manual_seed(0)
    step = published_step(build_generator(recipe).to(device), build_discriminator(recipe).to(device), recipe)
    x, y = (2 * torch.rand(recipe.batch_size, c, recipe.size, recipe.size) - 1 for c in count_channels(recipe))

    with FlopCounterMode(display=False) as counter:
        step(x.to(device), y.to(device))
    facts = {"precision": "fp32", "memory_format": "contiguous", "compiled": False, "flop": counter.get_total_flops()}
    return lambda: step(x.to(device), y.to(device)), facts


def published_step(
    generator: "nn.Module", discriminator: "nn.Module", recipe: "Recipe"
) -> "Callable[[Tensor, Tensor], dict[str, float]]":
    """Return pix2pix's step: of x and y, both (N, C, S, S) in [-1, 1], it gives the losses before it."""
    import torch
    from torch import nn

    betas = (recipe.beta1, recipe.beta2)
    adam_g, adam_d = (torch.optim.Adam(net.parameters(), recipe.lr, betas) for net in (generator, discriminator))
    gan_loss, l1_loss = nn.BCEWithLogitsLoss(), nn.L1Loss()

    def step(x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
        fake = generator(x)
        discriminator.requires_grad_(True)
        adam_d.zero_grad()
        logits = discriminator(x, fake.detach())
        d_fake = gan_loss(logits, torch.zeros_like(logits))
        logits = discriminator(x, y)
        d_real = gan_loss(logits, torch.ones_like(logits))
        (0.5 * (d_fake + d_real)).backward()
        adam_d.step()
        discriminator.requires_grad_(False)
        adam_g.zero_grad()
        logits = discriminator(x, fake)
        gan, l1 = gan_loss(logits, torch.ones_like(logits)), l1_loss(fake, y)
        (recipe.lambda_gan * gan + recipe.lambda_l1 * l1).backward()
        adam_g.step()
        return {"D_fake": d_fake.item(), "D_real": d_real.item(), "G_gan": gan.item(), "G_l1": l1.item()}

    return step


def multiply(spec: Spec) -> tuple[Work, Spec]:
    """Multiply two square matrices in a precision: what this machine can do at most."""
    import torch

    from runtime.device import pick_device

    device, side = pick_device(spec["device"]), spec["side"]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[spec["precision"]]
    a, b = torch.rand(2, side, side, dtype=torch.float32, device=device).to(dtype)
    return lambda: (a @ b)[0, 0].item(), {"flop": 2 * side**3}


def our_loading(spec: Spec) -> tuple[Work, Spec]:
    """Give every picture of a folder to the step once, as L and ab on the device; `again`: they are decoded already."""
    import shutil

    from data import find_loading, load_images, training_batches
    from dataset.folders import list_items
    from runtime.device import keep_freed_memory, pick_device
    from training.gan import make_batch

    keep_freed_memory()
    recipe, device, cache = the_recipe(spec), pick_device(spec["device"]), Path(spec["folder"]).parent / "cache"
    items = list_items(spec["folder"], recipe, cache)["train"]

    def work() -> None:
        if not spec.get("again"):
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir()
        images = load_images(items, find_loading(recipe, items), cache, "train")
        for step, pictures in enumerate(training_batches(images, recipe.batch_size, recipe.size, 0.5, 0, 1)):
            make_batch(*pictures, recipe, device, step).x.sum().item()

    return work, {"images": len(items)}


def plain_loading(spec: Spec) -> tuple[Work, Spec]:
    """Give every picture of a folder to the step once, through Pillow, scikit-image and a DataLoader."""
    import numpy as np
    import torch
    from PIL import Image
    from skimage.color import rgb2lab
    from torch.utils.data import DataLoader, Dataset

    from dataset.folders import list_items

    recipe = the_recipe(spec)
    paths = [item.target for item in list_items(spec["folder"], recipe, Path(spec["folder"]).parent)["train"]]

    class Photographs(Dataset[tuple[torch.Tensor, torch.Tensor]]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
            image = Image.open(paths[i]).convert("RGB").resize((recipe.size, recipe.size), Image.Resampling.BICUBIC)
            if np.random.default_rng().random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            lab = torch.from_numpy(rgb2lab(np.asarray(image)).astype(np.float32)).permute(2, 0, 1)
            return lab[:1] / 50 - 1, lab[1:] / 110

    def work() -> None:
        workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        for x, _ in DataLoader(Photographs(), recipe.batch_size, True, num_workers=workers, drop_last=True):
            x.to(spec["device"]).sum().item()

    return work, {"images": len(paths)}


def our_colouring(spec: Spec) -> tuple[Work, Spec]:
    """Colour every file of a folder, as colorize.py does."""
    import torch

    from colorize import JOBS
    from inference.pipeline import BATCH, Pipeline
    from inference.runner import Runner
    from inference.tasks import Task
    from runtime.device import pick_device

    runner = Runner(Path(spec["model"]), pick_device(spec["device"]))
    out = Path(spec["folder"]).parent / "ours"
    paths = sorted(Path(spec["folder"]).iterdir())
    network = {}  # pictures in a batch -> seconds per picture
    with torch.inference_mode():
        for count in (1, BATCH):
            small, seconds = torch.rand(count, 1, 256, 256, device=runner.device), []
            for _ in range(8):
                started = time.perf_counter()
                runner.model.generator(small).sum().item()
                seconds.append((time.perf_counter() - started) / count)
            network[count] = min(seconds)

    def work() -> None:
        tasks = [Task(path, out / path.name) for path in paths]
        failed = [job.reason for job in Pipeline(runner, JOBS, overwrite=True).run(tasks) if job.status != "done"]
        if failed:
            raise RuntimeError(failed[0])

    return work, {"images": len(paths), "network_seconds": network[1], "network_batch_seconds": network[BATCH]}


def plain_colouring(spec: Spec) -> tuple[Work, Spec]:
    """Colour every file of a folder, one after the other, in Lab with scikit-image."""
    import numpy as np
    import torch
    from PIL import Image
    from skimage.color import lab2rgb, rgb2lab

    from inference.checkpoint import load_exported

    generator = load_exported(Path(spec["model"]), torch.device(spec["device"])).module.generator
    out = Path(spec["folder"]).parent / "plain"
    out.mkdir(exist_ok=True)
    paths = sorted(Path(spec["folder"]).iterdir())

    def work() -> None:
        for path in paths:
            image = Image.open(path).convert("RGB")
            small = rgb2lab(np.asarray(image.resize((256, 256), Image.Resampling.BICUBIC)))[..., :1]
            x = torch.from_numpy(small.astype(np.float32)).permute(2, 0, 1)[None] / 50 - 1
            with torch.no_grad():
                y = generator(x.to(spec["device"])) * 110
            ab = torch.nn.functional.interpolate(y, (image.height, image.width), mode="bilinear").cpu()
            lightness = rgb2lab(np.asarray(image))[..., :1]
            lab = np.concatenate([lightness, ab[0].permute(1, 2, 0).numpy()], 2)
            Image.fromarray((lab2rgb(lab) * 255).round().astype(np.uint8)).save(out / path.name)

    return work, {"images": len(paths)}


WORK = {
    ("step", "ours"): our_step, ("step", "plain"): plain_step, ("step", "ceiling"): multiply,
    ("data", "ours"): our_loading, ("data", "plain"): plain_loading,
    ("infer", "ours"): our_colouring, ("infer", "plain"): plain_colouring,
}  # fmt: skip


def main() -> None:
    """Answer each line on standard input with what one repetition took."""
    mode, side, spec = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    if side != "plain":
        import runtime.cli  # noqa: F401  what the stages tell OpenMP, before torch
    work, facts = WORK[mode, side](json.loads(spec))
    print(json.dumps(facts), file=answers, flush=True)
    for _ in sys.stdin:
        faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        work()
        seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
        answer = {"seconds": seconds, "page_faults": used.ru_minflt - faults, "memory_mb": used.ru_maxrss / 1024}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
