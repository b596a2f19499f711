"""What several test files use: small networks, models, runs and pictures, and stand-ins."""

import json
import os
import runpy
import signal
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor, nn

from config import ROOT, Recipe, make_recipe
from dataset.hints import draw_hints
from imaging import color
from imaging.files import RESULTS, read_frames, read_image, scan
from imaging.pixels import Array, Frame
from inference import checkpoint
from inference.checkpoint import METADATA, ExportRecord
from inference.colorizer import Colorizer
from inference.runner import Pixels, Runner
from models import DISCRIMINATORS, GENERATORS, FrozenFeatures, UNet, count_channels, fit_networks
from runtime import atomic, run_folder
from runtime.run_folder import RunRecord, read_records, write_run
from training.gan import Batch

CPU = torch.device("cpu")
# options of train.main for a network that trains within a second
TINY = {"size": 32, "batch_size": 4, "set_": ["ngf=4", "ndf=4", "log_every=1", "samples=2"], "device": "cpu"}
NETWORKS = {**GENERATORS, **DISCRIMINATORS}
X_Y_CHANNELS = {  # of the published networks
    "unet-reflect": (3, 3), "unet-bn": (1, 3), "unet-att": (1, 3), "unet-ext": (1, 3), "unet-att-ext": (1, 3),
    "convgen": (1, 3), "patch26": (3, 3), "patch15-bias": (1, 3), "image-rgb": (1, 3),
}  # fmt: skip


class Glance(FrozenFeatures):
    """Stands for the Danbooru network: the mean colour, over and over."""

    WIDTH = 512

    def __init__(self) -> None:
        super().__init__(nn.Identity(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def forward(self, rgb01: Tensor) -> list[Tensor]:
        return [self.normalise(rgb01).mean((2, 3)).repeat(1, 171)[:, :512]]


def build_network(
    name: str, width: int = 4, depth: int = 4, dropout: float = 0.5, attention_depth: int = 0
) -> nn.Module:
    """Build a network with its published channels and seeded weights."""
    torch.manual_seed(0)
    network, channels = NETWORKS[name], X_Y_CHANNELS.get(name, (1, 2))
    if name in DISCRIMINATORS or network.halvings:
        return network.build(*channels, width)
    return network.build(*channels, width, depth=depth, dropout=dropout, attention_depth=attention_depth)


def network_inputs(name: str, size: int = 0, images: int = 2) -> tuple[Tensor, ...]:
    """Return what a network takes: x, and y for a discriminator."""
    noise, side = torch.Generator().manual_seed(1), size or max(64, NETWORKS[name].smallest)
    channels = X_Y_CHANNELS.get(name, (1, 2))[: 1 if name in GENERATORS else 2]
    return tuple(torch.rand(images, count, side, side, generator=noise) * 2 - 1 for count in channels)


def saved_weights(run: Path, epoch: int) -> dict[str, Tensor]:
    """Return the weights of one saved epoch of a colouriser or of a classifier."""
    payload = atomic.load(run_folder.epoch_path(run, epoch))
    return payload["generator"] if "generator" in payload else payload["state"]


def same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Tell whether two state dicts are the same bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def log_of(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run's log, without what depends on the machine."""
    speed = ("images_per_s", "data_wait_percent", "memory_mb", "device")
    return [{k: v for k, v in record.items() if k not in speed} for record in read_records(run / "log.jsonl")]


def times_of(run: Path) -> dict[Path, int]:
    """Return when each file of a run was written."""
    return {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def stop_in(module: ModuleType, steps: int, stage: Callable[[], object]) -> None:
    """Run a stage whose process gets a signal in the middle of a module's train_step, and stops after it."""
    real, done = module.train_step, []

    def step(*args: Any, **options: Any) -> Any:
        done.append(1)
        if len(done) == steps:
            signal.raise_signal(signal.SIGTERM)
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_step", step)
        with pytest.raises(SystemExit) as stopped:
            stage()
    assert stopped.value.code == 128 + signal.SIGTERM


def run_stage(name: str, *args: object) -> int:
    """Run a stage as a command, within this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
        try:
            runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


class MeanColor(FrozenFeatures):
    """An extractor that sees a picture's local mean colour; `dead` forgets where it came from."""

    def __init__(self, dead: bool = False) -> None:
        super().__init__(nn.AvgPool2d(4), (0.0,) * 3, (1.0,) * 3)
        self.dead = dead

    def forward(self, rgb01: Tensor) -> list[Tensor]:
        seen = self.body(self.normalise(rgb01))
        return [seen.detach() if self.dead else seen]


def tiny_recipe(**fields: Any) -> Recipe:
    """Return a recipe of small networks at 32 px."""
    return fit_networks(Recipe("x", **{"size": 32, "ngf": 4, "ndf": 4, "seed": 7, **fields}))


def noise_batch(recipe: Recipe, seed: int = 0, images: int = 2) -> Batch:
    """Return a batch of random pictures."""
    noise, shape = torch.Generator().manual_seed(seed), (images, 3, recipe.size, recipe.size)
    source, target = (torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8) for _ in range(2))
    x, y = color.encode(source, recipe.input), color.encode(target, recipe.output)
    if recipe.hints:
        x = torch.cat([x, draw_hints(y, noise)], 1)
    return Batch(x, y, target)


def gray(seed: int, height: int = 40, width: int = 56, dtype: Any = np.uint8) -> NDArray:
    """Return a smooth gray picture (H, W) with all tones."""
    rng, top = np.random.default_rng(seed), np.iinfo(dtype).max
    small = torch.from_numpy(rng.random((1, 1, 6, 6)))
    values = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")[0, 0].numpy()
    values = (values - values.min()) / max(float(np.ptp(values)), 1e-9)
    return (values * top).round().astype(dtype)


def save_picture(name: str | Path, values: NDArray, **options: Any) -> Path:
    """Write a picture of any depth, with its folders."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        channels = values.shape[2] if values.ndim == 3 else 1
        extra = {"extrasamples": ["UNASSALPHA"]} if channels in (2, 4) else {}
        kind = "rgb" if channels > 2 else "minisblack"
        tifffile.imwrite(path, values, photometric=kind, **extra, **options)
    elif values.dtype == np.uint16:
        path.write_bytes(imagecodecs.png_encode(values))
    else:
        Image.fromarray(values).save(path, **options)
    return path


def frames_of(name: str | Path) -> list[Frame]:
    """Return the frames of a file."""
    return list(read_frames(scan(Path(name))))


def frame_of(name: str | Path) -> Frame:
    """Return the frame of a file that has one."""
    (frame,) = frames_of(name)
    return frame


def chroma(pixels: Pixels) -> float:
    """Return how far a picture is from gray, of 255, on average."""
    return float(np.ptp(pixels.astype(float), axis=2).mean() * 255 / np.iinfo(pixels.dtype).max)


def small_model(x_kind: str = "L", y_kind: str = "ab", hints: bool = False) -> tuple[Colorizer, Recipe]:
    """Return a model of random weights, always the same, that works at 32 px."""
    torch.manual_seed(3)
    recipe = Recipe("coco", input=x_kind, output=y_kind, size=32, hints=hints)
    generator = UNet(*count_channels(recipe), ngf=4, depth=3, dropout=0.0)
    return Colorizer(generator, x_kind, y_kind, 32, 8, 1, hints).eval(), recipe


def ask_for_an_unknown_operator(path: Path) -> None:
    """Change a script so that it calls what no torch has, as one of a newer torch may."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data.replace(b"torch.sub(", b"torch.subtract_all("))


def write_model(path: Path, x_kind: str = "L", y_kind: str = "ab", hints: bool = False, **fields: Any) -> Path:
    """Write small_model as a generator.ts; `fields` replace those of tinct.json."""
    module, recipe = small_model(x_kind, y_kind, hints)
    told = json.dumps({**asdict(ExportRecord(recipe, 1, "fp32")), **fields})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(module).save(path, _extra_files={METADATA: told})
    return path


class StandInRunner(Runner):
    """In place of a network: makes pictures red, and fails on pictures whose first value is `bad`."""

    def __init__(self, kind: str = "L", bad: int = -1) -> None:
        recipe = Recipe("x", input=kind, output="ab" if kind == "L" else "rgb")
        self.path, self.device, self.record = Path("generator.ts"), CPU, ExportRecord(recipe, 1, "fp32")
        self.bad = bad
        self.calls: list[list[Pixels]] = []

    def run(self, pictures: Sequence[Pixels], hints: Sequence[Array | None] | None = None) -> list[Pixels]:
        self.calls.append([picture.copy() for picture in pictures])
        if any(picture[0, 0, 0] == self.bad for picture in pictures):
            raise RuntimeError("the network\n  fell over")
        return [self.coloured(picture) for picture in pictures]

    @staticmethod
    def coloured(picture: Pixels) -> Pixels:
        out = picture.copy()
        out[..., 0] = np.iinfo(out.dtype).max
        return out

    def sizes(self) -> list[int]:
        """Return how many pictures each call had."""
        return [len(call) for call in self.calls]


def randomise(network: nn.Module) -> nn.Module:
    """Give BatchNorms the statistics of a trained network, and attention a weight; returns the network."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0.0, 0.3, generator=noise)
                module.running_var.uniform_(0.5, 2.0, generator=noise)
                module.weight.uniform_(0.3, 1.2, generator=noise)
                module.bias.normal_(0.0, 0.3, generator=noise)
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    return network


def small_recipe(name: str, **fields: Any) -> Recipe:
    """Return a recipe with the smallest networks and images that it allows."""
    sizes = {"unet32": 32, "nazerigan32": 32, "unet224": 96, "nazerigan224": 160, "cgan": 224}
    size = sizes.get(name, 64)
    small = {"size": size, "load_size": size, "ngf": 4, "ndf": 4, "batch_size": 6, "samples": 2, "epochs": 2}
    if make_recipe(name, {}).generator.startswith("unet") and size == 64:
        small["depth"] = 4  # 4 px at the bottleneck, where attention works
    if make_recipe(name, {}).pretrain_epochs:
        small["pretrain_epochs"] = 1
    return fit_networks(make_recipe(name, {**small, **fields}))


def make_run(folder: Path, name: str, **fields: Any) -> Path:
    """Write a run of a small version of a recipe with one saved epoch of random weights."""
    recipe = small_recipe(name, **fields)
    torch.manual_seed(0)
    generator = randomise(checkpoint.build_colorizer(recipe).generator)
    checkpoint.save_generator(folder, 1, recipe, generator)
    write_run(folder, RunRecord(recipe=recipe, data="demo", fingerprints={}, mean_ab=(0.0, 0.0)))
    return folder


COLORIZER_KINDS = [  # input and output of all Colorizers that a recipe can ask for
    ("L", "ab"), ("L", "Lab"), ("L", "rgb"), ("gray", "rgb"), ("line", "rgb"), ("gray+line", "rgb"),
    ("sketch", "rgb"),
]  # fmt: skip


class Constant(nn.Module):
    """A generator that predicts one value everywhere, and remembers what it saw."""

    def __init__(self, channels: int, value: float) -> None:
        super().__init__()
        self.channels, self.value = channels, value
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x.new_full((x.size(0), self.channels, x.size(2), x.size(3)), self.value)


def small_colorizer(x_kind: str, y_kind: str, size: int = 32, dropout: float = 0.5) -> Colorizer:
    """Return a Colorizer with a small seeded network of strong colours."""
    torch.manual_seed(3)
    generator = UNet(color.CHANNELS[x_kind], color.CHANNELS[y_kind], ngf=4, depth=3, dropout=dropout)
    with torch.no_grad():
        generator.last[0].weight.mul_(8.0)
    return Colorizer(generator, x_kind, y_kind, size, 8).eval().requires_grad_(False)


def noise_image(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Return a random image of any dtype."""
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    return image.to(dtype) if dtype.is_floating_point else (image * torch.iinfo(dtype).max).to(dtype)


def midtones(*shape: int) -> Tensor:
    """Return a random image of midtones, to which any colour can be added within gamut."""
    return (110 + 40 * torch.rand(shape, generator=torch.Generator().manual_seed(2))).to(torch.uint8)


def lightness(image: Tensor) -> NDArray:
    """Return L (N, H, W) of an image by scikit-image."""
    return rgb2lab(color.rgb01(image).permute(0, 2, 3, 1).double().numpy())[..., 0]


class MeanLevel:
    """Takes Inception's place: a file's feature is its mean level."""

    def features(self, files: list[Path]) -> NDArray:
        return np.array([[read_image(path).mean()] for path in files], np.float32)


def results() -> list[str]:
    """Return the names of the files below out/, half-written ones, too, but for the mark of a folder of results."""
    return sorted(path.name for path in Path("out").rglob("*") if path.is_file() and path.name != RESULTS)


def run_in_terminal(command: Sequence[str | Path], **options: Any) -> tuple[int, str]:
    """Run a program whose stdout and stderr are one terminal; returns its exit code and all that it wrote."""
    import fcntl  # which Windows has not, nor the others
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))  # without a size tqdm draws nothing
    with subprocess.Popen(list(map(str, command)), stdout=theirs, stderr=theirs, **options) as process:
        os.close(theirs)
        said = b""
        with suppress(OSError):  # Linux's way to say that nobody holds the other side
            while piece := os.read(ours, 4096):
                said += piece
    os.close(ours)
    return process.returncode, said.decode()
