"""Write a trained Colorizer for use elsewhere: as TorchScript (generator.ts), ONNX, or torch.export's pt2.

ONNX and pt2 take and give float32 (N, 3, H, W) in [0, 1] with any N, H and W; the attributes that a caller
may set on generator.ts are fixed there. Where an image is resized to a side of 1 px, ONNX takes its first
pixel, so that very narrow images differ.
"""

import copy
import importlib.util
import io
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_eval

from config import UserError
from imaging import color
from inference.checkpoint import METADATA, ExportRecord, build_colorizer, infer, load_exported
from inference.colorizer import (
    Colorizer,
    add_swing,
    average,
    count_parts,
    encode_hints,
    enlarge,
    pack,
    resize,
    split_swing,
    unpack,
    use_batch_statistics,
    weigh,
    with_swing,
)  # fmt: skip
from runtime.atomic import replacing
from runtime.device import computed_in
from runtime.progress import say

FORMATS = ("ts", "onnx", "pt2")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OPSET = 18  # of ONNX: the first whose Resize has antialiasing
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # needed to write and check ONNX
SIZES = ((37, 61), (256, 256), (480, 360))  # px, height and width of the images that are compared
BATCHES = (1, 3)
LEVELS = 255.0  # differences are given in levels of uint8
TOLERANCE = 1.0  # level

Function = Callable[..., Tensor]  # of images, and perhaps hints


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Fold every BatchNorm that follows a convolution into it, in place; returns the module.

    Pairs are neighbours in a Sequential, and convN and bnN as torchvision names them. A BatchNorm stays where
    it normalises by the batch, and where it follows an activation.
    """
    for parent in list(module.modules()):
        children = dict(parent.named_children())
        pairs = list(pairwise(children)) if isinstance(parent, nn.Sequential) else []
        pairs += [(name, name.replace("conv", "bn")) for name in children if name.startswith("conv")]
        for first, second in pairs:
            conv, norm = children[first], children.get(second)
            convolves = isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
            if convolves and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
                setattr(parent, first, fuse_conv_bn_eval(conv, norm, isinstance(conv, nn.ConvTranspose2d)))
                setattr(parent, second, nn.Identity())
    return module


def deployable(colorizer: Colorizer, precision: str, trainable: bool = False) -> Colorizer:
    """Return a copy to export, in a precision and channels_last; BatchNorm folded, unless `trainable`."""
    copied = copy.deepcopy(colorizer)
    folded = copied if trainable else fold_batch_norm(copied)
    return folded.to(PRECISIONS[precision]).to(memory_format=torch.channels_last)


def load_trained(path: Path) -> tuple[Colorizer, ExportRecord]:
    """Return the eager Colorizer of a generator.ts, on the CPU in fp32, and what the file says of itself.

    Raises:
        UserError: no such file, or weights that do not fit its recipe.
    """
    model, record = load_exported(path, torch.device("cpu"))
    state = model.state_dict()
    with torch.random.fork_rng(devices=[]):  # building draws random weights
        colorizer = build_colorizer(record.recipe).eval()
    if record.recipe.norm_stats == "batch":
        colorizer.apply(use_batch_statistics)
    if any("running_mean" in key for key in colorizer.state_dict().keys() - state.keys()):
        fold_batch_norm(colorizer)  # as at the export of the file
    try:
        colorizer.load_state_dict({key: state[key].float() for key in colorizer.state_dict() if key in state})
    except RuntimeError:
        raise UserError(f"{path} does not fit its recipe {record.recipe.name}: export its run again") from None
    if hasattr(colorizer.generator, "temperature"):
        colorizer.generator.temperature = float(model.generator.temperature)
    return colorizer.requires_grad_(False), record


class Traceable(nn.Module):
    """Colorizer.forward in a form that torch.export can trace for any height and width.

    A trace cannot hold a branch or a loop that depends on a size. So sizes are computed as tensors here and
    become integers only where an operation needs one; there are no strips and no checks of the image.
    """

    def __init__(self, colorizer: Colorizer) -> None:
        super().__init__()
        self.colorizer = colorizer

    def forward(self, image: Tensor, hints: Tensor | None = None) -> Tensor:
        """Colourise (N, 3, H, W) float32 in [0, 1] to the same, perhaps with hints (N, 4, H, W)."""
        c = self.colorizer
        height, width = (torch.scalar_tensor(side, dtype=torch.int64) for side in image.shape[2:])
        rows, columns = self.small_size(height, width)
        narrow = resize(with_swing(c.visible(image)), image.size(2), _length(columns))
        small, swing = split_swing(resize(add_swing(narrow), _length(rows), _length(columns)), image.size(3))
        x = color.encode(small, c.x_kind)
        if hints is None:
            y = self.predict(x, rows, columns)
        else:
            seen = encode_hints(average(weigh(hints), _length(rows), _length(columns)), c.y_kind)
            x = torch.cat([x, seen], 1)
            y = c.follow(x, self.predict(x, rows, columns))
        sides = _length(torch.minimum(height, rows)), _length(torch.minimum(width, columns))
        maps = c.prepare(small, swing, y, *sides)
        large = enlarge(pack(maps), 0, image.size(2), image.size(2), image.size(3))
        return c.join(image, unpack(large, maps))

    def small_size(self, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Return height and width of the small image, as Colorizer.small_size."""
        c = self.colorizer
        short, long = torch.minimum(height, width), torch.maximum(height, width)
        longest = torch.where(long > c.LONG * short, long.clamp(2 * c.size, c.MOST * c.size), 2 * c.size)
        fits = c.size * long <= longest * short
        part, whole = torch.where(fits, c.size, longest), torch.where(fits, short, long)
        rows, columns = (((2 * part * side + whole) // (2 * whole)).clamp(min=1) for side in (height, width))
        return rows, columns

    def predict(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Run the generator on x (N, C, rows, columns), all parts of it as one batch."""
        c, (down, across) = self.colorizer, (self.parts(side) for side in (rows, columns))
        x = x.index_select(2, down.into).index_select(3, across.into)
        x = x.unflatten(3, (across.count, across.side)).unflatten(2, (down.count, down.side))
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (N * parts, C, side, side)
        y = c.generator(x.to(c.precision.dtype)).to(torch.float32)
        y = y.unflatten(0, (-1, down.count, across.count)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return across.join(down.join(y, 2), 3)

    def parts(self, length: Tensor) -> "Parts":
        """Return how a side of the small image is cut into parts, and padded, as Colorizer.predict does it."""
        c = self.colorizer
        cut = length > c.LONG * c.size
        part = torch.where(cut, 2 * c.size, length)
        count = torch.where(cut, count_parts(length, c.size), 1)
        side = (part.clamp(min=c.least) + c.multiple - 1) // c.multiple * c.multiple
        before, gaps = (side - part) // 2, (count - 1).clamp(min=1)
        index = (torch.arange(_length(side)) - before).remainder(2 * part)
        index = torch.minimum(index, 2 * part - 1 - index)
        starts = torch.arange(_length(count)) * (length - part) // gaps
        into = (starts[:, None] + index).flatten()
        place, step = torch.arange(_length(length)), (length - part).to(torch.float32) / gaps
        off = place + 0.5 - c.size  # of the first centre
        first = torch.where(cut, (off / step.clamp(min=1.0)).floor().to(torch.int64), 0).clamp(min=0)
        first = torch.minimum(first, (count - 2).clamp(min=0))
        share = (0.5 + (off - first * step - step / 2.0) / max(1, c.size // 2)).clamp(0.0, 1.0)
        found = []
        for which in (first, torch.minimum(first + 1, count - 1)):
            inside = (place - starts[which]).clamp(min=0)
            found.append(which * side + before + torch.minimum(inside, part - 1))
        return Parts(_length(count), _length(side), into, found[0], found[1], torch.where(cut, share, 0.0))


class Parts(NamedTuple):
    """How a side of L px is cut into `count` parts of `side` px, and put together again."""

    count: int
    side: int
    into: Tensor  # (count * side) places in L
    first: Tensor  # (L) places in count * side
    second: Tensor  # (L) the same, of the part after it
    share: Tensor  # (L) of the second

    def join(self, y: Tensor, dim: int) -> Tensor:
        """Return parts, one after the other along a dimension of (N, C, H, W), as one."""
        share = self.share.view(-1, 1) if dim == 2 else self.share
        return y.index_select(dim, self.first) * (1.0 - share) + y.index_select(dim, self.second) * share


def _length(value: Tensor) -> int:
    """Return a tensor's number as a size; of the number, torch.export is told its range alone."""
    number = value.item()
    torch._check(number >= 1)
    torch._check(number <= 2**20)
    return number


def trace(colorizer: Colorizer) -> ExportedProgram:
    """Return a Colorizer on the CPU as a program of torch.export, for any batch, height and width."""
    example = (torch.rand(2, 3, 90, 140), torch.rand(2, 4, 90, 140))[: 1 + colorizer.takes_hints]
    sizes = tuple({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC} for _ in example)
    return torch.export.export(Traceable(colorizer), example, dynamic_shapes=sizes, strict=False)


def write_pt2(path: Path, colorizer: Colorizer, record: ExportRecord) -> None:
    """Write torch.export's format; a program for the CPU."""
    program = trace(colorizer)
    encoded = io.BytesIO()  # torch's own writer ends the process where a disk is full
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found")  # of weights that share storage
        torch.export.save(program, encoded, extra_files={METADATA: record.to_json()})
    path.write_bytes(encoded.getvalue())


def load_pt2(path: Path) -> Function:
    """Return the file of write_pt2 as a function of float32 tensors."""
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def require_onnx(form: str) -> None:
    """Raise UserError unless the packages are installed with which a format of export.py is written."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format {form} needs {' '.join(missing)}: pip install {' '.join(missing)}")


def write_onnx(path: Path, colorizer: Colorizer, record: ExportRecord) -> None:
    """Write ONNX, weights and metadata in one file; input `image`, perhaps `hints`, output `colour`."""
    image, hints = {0: "batch", 2: "height", 3: "width"}, {2: "height", 3: "width"}  # its batch is image's
    given = slice(1 + colorizer.takes_hints)
    program = torch.onnx.export(
        trace(colorizer), (), dynamo=True, opset_version=OPSET, verbose=False, dynamic_shapes=(image, hints)[given],
        input_names=["image", "hints"][given], output_names=["colour"],
    )  # fmt: skip
    program.model.metadata_props[METADATA] = record.to_json()
    program.save(path, external_data=False)


def load_onnx(path: Path) -> Function:
    """Return the file of write_onnx, run by onnxruntime on the CPU, as a function of float32 tensors."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*given: Tensor) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return run


def write_traced(path: Path, module: Colorizer, record: ExportRecord, form: str) -> None:
    """Write ONNX or pt2, load it again, and compare it with the eager module on the CPU."""
    write, load = {"onnx": (write_onnx, load_onnx), "pt2": (write_pt2, load_pt2)}[form]
    say(f"tracing the network for {form}: a minute or more, silent until it is done")
    try:
        write(path, module, record)
        loaded = load(path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # exporters and runtimes raise many types for what they do not support
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        words = f"{form} cannot express this network ({reason})"
        raise UserError(f"{words}; nothing was written; --format ts can") from error
    compare(f"eager, {form} on cpu", module, loaded, torch.device("cpu"), TOLERANCE)


def write_script(path: Path, module: Colorizer, record: ExportRecord, on: list[torch.device]) -> None:
    """Write TorchScript, load it again, and compare both with the eager module on each device."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # as in inference.checkpoint
        scripted = torch.jit.script(copy.deepcopy(module))  # a copy, as a script shares its parameters
        encoded = io.BytesIO()  # torch's own writer ends the process where a disk is full
        torch.jit.save(scripted, encoded, _extra_files={METADATA: record.to_json()})
    path.write_bytes(encoded.getvalue())
    for device in on:
        eager, loaded = copy.deepcopy(module).to(device), load_exported(path, device).module
        again = copy.deepcopy(eager).float() if computed_in(record.precision, device) == "fp32" else eager
        for kind, own, other in (("scripted", eager, scripted.to(device)), ("reloaded", again, loaded)):
            name, run = f"eager, {kind} on {device}", partial(infer, other)
            compare(name, own, run, device, TOLERANCE)
            compare_integers(name, own, run, device)


def write(
    path: Path, trained: Colorizer, record: ExportRecord, form: str, on: list[torch.device],
    trainable: bool = False,
) -> None:  # fmt: skip
    """Write a trained Colorizer in a format; prints how far each step is from the one before.

    Args:
        on: devices on which TorchScript is compared.
        trainable: keep BatchNorm.

    Raises:
        UserError: a step differs too much, or the format cannot express the network. Nothing is written.
    """
    if (form, record.precision) == ("onnx", "bf16"):
        raise UserError("onnx has no convolution in bf16 on a CPU, where files are compared: take --precision fp16")
    module = deployable(trained, record.precision, trainable)
    heads = [f"{f'{n} x {height} x {width}':>16}" for n, (height, width) in product(BATCHES, SIZES)]
    say(f"{'levels of 255: max (mean)':<28}" + "  ".join(heads))
    limit = TOLERANCE if record.precision == "fp32" else LEVELS
    compare(f"trained, {record.precision} on cpu", trained, module, torch.device("cpu"), limit)
    with replacing(path) as temporary:
        if form == "ts":
            write_script(temporary, module, record, on)
        else:
            write_traced(temporary, module, record, form)


def compare(name: str, one: Function, other: Function, device: torch.device, limit: float) -> None:
    """Print a row of differences on float images; UserError if any is above `limit` levels, or NaN."""
    noise, errors = torch.Generator().manual_seed(0), []
    takes_hints = getattr(one, "takes_hints", False)
    for batch, (height, width) in product(BATCHES, SIZES):
        image = torch.rand((batch, 3, height, width), generator=noise).to(device)
        given = [(image, hints.to(device)) for hints in example_hints(image)] if takes_hints else [(image,)]
        found = [(one(*each), other(*each)) for each in given]
        for first, second in found:
            if first.shape != second.shape:  # or one would be repeated to fit
                shapes = f"{[*first.shape]}, {[*second.shape]}"
                raise UserError(f"{name}: they differ in shape: {shapes}; nothing was written")
        apart = [(first - second).abs().cpu().double() for first, second in found]  # MPS has no float64
        errors.append(torch.cat(apart) * LEVELS)
    cells = [f"{f'{error.max():.3f} ({error.mean():.4f})':>16}" for error in errors]
    say(f"{name:<28}" + "  ".join(cells))
    worst = float(torch.stack([error.max() for error in errors]).max())  # NaN if any is
    if not worst <= limit:
        raise UserError(f"{name}: they differ by {worst:.3g} of 255 levels; nothing was written")


def example_hints(image: Tensor) -> list[Tensor]:
    """Return no hints for images (N, 3, H, W), and two: each (N, 4, H, W) in [0, 1]."""
    none = torch.zeros(len(image), 4, *image.shape[2:])
    some, (height, width) = none.clone(), image.shape[2:]
    for place, rgb in ((0.2, (0.8, 0.3, 0.2)), (0.6, (0.1, 0.4, 0.9))):
        top, left = int(place * height), int(place * width)
        some[:, :, top : top + height // 6, left : left + width // 6] = torch.tensor((*rgb, 1.0)).view(4, 1, 1)
    return [none, some]


def compare_integers(name: str, one: Function, other: Function, device: torch.device) -> None:
    """Raise UserError unless two functions agree within a level of uint8 on gray integer images."""
    ramp = torch.linspace(0.0, 255.0, 70).view(2, 1, 5, 7)
    for dtype, level in ((torch.uint8, 1), (torch.uint16, 257)):
        image = (ramp * level).to(dtype).to(device)
        first, second = one(image), other(image)
        if (second.dtype, second.shape) != (dtype, first.shape) or (first.int() - second.int()).abs().max() > level:
            raise UserError(f"{name}: they differ on {dtype} images; nothing was written")
