"""Run an exported generator on pictures, within the memory that there is."""

import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from config import DRAWN_INPUTS, UserError
from imaging.panels import find_panels, join_panels
from imaging.pixels import Array, Frame
from inference.checkpoint import EXPORT_FORMAT, infer_each, load_model
from runtime.progress import write

Pixels = NDArray[Any]  # (H, W, 3) uint8, uint16, or floating point in [0, 1]
NOT_FINITE = "output is not finite"  # part of what Colorizer raises
BATCH = 8  # pictures in memory that the network sees at once, where it sees them at one size


@dataclass(eq=False)
class Runner:
    """Colourise pictures in batches.

    Where a GPU's memory is not enough, the batch is halved, then the network runs in fp16, then the picture
    is coloured on the CPU. Each of these is said once on stderr. Threads may share a Runner; they take turns.
    """

    path: Path  # of a generator.ts, or a checkpoint of a run
    device: torch.device
    size: int | None = None  # it and what follows: attributes of Colorizer to set; None leaves one as exported
    strength: float | None = None
    upsampling: str | None = None
    temperature: float | None = None
    palette: Tensor | None = None  # (4), see imaging.color.palette_of
    panels: bool = False  # cut pages into their panels, and colourise these one by one

    def __post_init__(self) -> None:
        """Load the generator.

        Raises:
            UserError: there is none that this version reads, or it has no such attribute.
        """
        self.max_pixels = sys.maxsize  # of a batch of several; becomes less where memory runs out
        self.half = False
        self.said: set[str] = set()
        self.lock = threading.Lock()
        try:
            self.model, self.record = load_model(self.path, self.device)
        except Exception as error:
            if self.device.type == "cpu" or not is_out_of_memory(error):
                raise
            self._say(f"the model does not fit into the memory of {self.device}: colouring on the CPU, which is slower")
            self.device = torch.device("cpu")
            self.model, self.record = load_model(self.path, self.device)
        for name in ("size", "strength", "upsampling", "temperature", "palette"):
            if (value := getattr(self, name)) is not None:
                self.set(name, value)

    def set(self, name: str, value: int | float | str | Tensor) -> None:
        """Set an attribute of Colorizer for all pictures that come. Raises UserError where the model has none."""
        owner = self.model.generator if name == "temperature" else self.model
        rgb_has_none = name in ("palette", "temperature") and self.record.recipe.output == "rgb"
        if not hasattr(owner, name) or rgb_has_none:
            old = self.record.format < EXPORT_FORMAT and not rgb_has_none and name != "temperature"
            why = "an older version wrote it" if old else f"it is of recipe {self.record.recipe.name}"
            raise UserError(f"{self.path} has no {name}: {why}")
        setattr(owner, name, value.to(self.device) if isinstance(value, Tensor) else value)
        setattr(self, name, value)
        if "on_cpu" in vars(self):
            self.on_cpu.set(name, value)

    def prepare(self, frame: Frame) -> Frame:
        """Return a frame as the model should see it.

        For a model of line art, transparency is laid over white paper, and is gone. For any other, only what
        is wholly transparent becomes white, and transparency stays.
        """
        if frame.alpha is None:
            return frame
        white = np.iinfo(frame.pixels.dtype).max if frame.pixels.dtype.kind == "u" else 1.0
        if self.record.recipe.input not in DRAWN_INPUTS:
            return replace(frame, pixels=np.where(frame.alpha[..., None] == 0, white, frame.pixels))
        share = frame.alpha[..., None] / np.float32(white)
        flat = frame.pixels * share + white * (1 - share)
        return Frame((flat.round() if white > 1 else flat).astype(frame.pixels.dtype), None)

    def colourise(self, frame: Frame, hints: Array | None = None) -> Frame:
        """Return the colour version of one frame. Raises as `run`."""
        seen = self.prepare(frame)
        return Frame(self.run([seen.pixels], [hints])[0], seen.alpha)

    def run(self, pictures: Sequence[Pixels], hints: Sequence[Array | None] | None = None) -> list[Pixels]:
        """Return the colour versions of pictures of any shapes and dtypes, in batches that fit into memory.

        Args:
            hints: of each picture, None or (H, W, 4) uint8, colour and opacity; see Colorizer.

        Raises:
            UserError: the network's output is not finite, or hints for a model that takes none.
            MemoryError: a single picture does not fit into the CPU's memory.
            RuntimeError: the network failed; the message is one line.
        """
        layers = [None] * len(pictures) if hints is None else list(hints)
        if any(layer is not None for layer in layers) and not self.record.recipe.hints:
            raise UserError(f"{self.path} takes no hints: it is of recipe {self.record.recipe.name}")
        if self.panels:
            return [self._run_panels(page, layer) for page, layer in zip(pictures, layers, strict=True)]
        return self._run(pictures, layers)

    def _run_panels(self, page: Pixels, layer: Array | None) -> Pixels:
        """Colourise a page panel by panel."""
        panels = find_panels(page)
        if len(panels) == 1:
            return self._run([page], [layer])[0]
        there = [None if layer is None else layer[rows, columns] for rows, columns, *_ in panels]
        return join_panels(page, self._run([page[rows, columns] for rows, columns, *_ in panels], there), panels)

    def _run(self, pictures: Sequence[Pixels], layers: Sequence[Array | None]) -> list[Pixels]:
        images = [torch.from_numpy(picture).permute(2, 0, 1)[None] for picture in pictures]
        hints = [None if a is None else _as_dtype(a, b.dtype) for a, b in zip(layers, pictures, strict=True)]
        results: list[Pixels] = []
        with self.lock:
            while len(results) < len(images):
                done = len(results)
                end = done + self._count([image[0, 0].numel() for image in images[done:]])
                colours = self._attempt(images[done:end], hints[done:end])
                if colours is not None:
                    results += [colour[0].permute(1, 2, 0).numpy() for colour in colours]
        return results

    def _count(self, pixels: Sequence[int]) -> int:
        """Return how many pictures of so many px make the next batch."""
        if self.record.recipe.norm_stats == "batch":  # there the pictures of a batch change one another
            return 1
        return max(1, sum(total <= self.max_pixels for total in accumulate(pixels[:BATCH])))

    def _attempt(self, images: list[Tensor], layers: list[Tensor | None]) -> list[Tensor] | None:
        """Colourise images (1, 3, H, W) on the CPU to the same; None: they did not fit, try again with less."""
        try:
            hints = [None if layer is None else layer.to(self.device) for layer in layers]
            return [colour.cpu() for colour in infer_each(self.model, [im.to(self.device) for im in images], hints)]
        except Exception as error:  # TorchScript's is no RuntimeError
            not_finite = NOT_FINITE in str(error)
            overflow = self.half and not_finite
            if not overflow and not is_out_of_memory(error):
                raise (UserError if not_finite else RuntimeError)(one_line(error)) from error
        if len(images) > 1 and not overflow:
            half = len(images) // 2
            self.max_pixels = sum(image[0, 0].numel() for image in images[:half])
            self._say(f"out of memory with {len(images)} pictures at a time: going on with {half}")
            return None
        if self.device.type == "cuda" and not self.half:
            self.model.half()
            self.half = True
            self._say("out of memory with one picture: going on in fp16")
            return None
        if self.device.type == "cpu":
            raise MemoryError("not enough memory for a picture of this size")
        why = "overflows in fp16" if overflow else f"does not fit into the memory of {self.device}"
        self._say(f"a picture {why}: colouring it on the CPU, which is slower")
        pairs = zip(images, layers, strict=True)
        return [colour for image, layer in pairs for colour in self.on_cpu._attempt([image], [layer])]

    @cached_property
    def on_cpu(self) -> "Runner":
        """Return a Runner of the same generator on the CPU, in the precision that was exported."""
        return replace(self, device=torch.device("cpu"))

    def _say(self, sentence: str) -> None:
        if sentence not in self.said:
            write(sentence, "stderr")
        self.said.add(sentence)


def _as_dtype(layer: Array, dtype: np.dtype[Any]) -> Tensor:
    """Return hints (H, W, 4) uint8 as (1, 4, H, W) of the dtype of an image."""
    planes = torch.from_numpy(np.ascontiguousarray(layer)).permute(2, 0, 1)[None]
    if dtype == np.uint8:
        return planes
    if dtype == np.uint16:
        return (planes.to(torch.int32) * 257).to(torch.uint16)
    return planes.to(torch.float64 if dtype == np.float64 else torch.float32) / 255


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error is about memory; TorchScript's have lost their type, so words decide."""
    words = ("out of memory", "can't allocate memory", "cannot allocate memory", "_alloc_failed")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def one_line(error: Exception) -> str:
    """Return one line of an error: its first, or the message behind the traces of TorchScript."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [re.match(r"[\w.]*Error: (.+)", line) for line in lines if "TorchScript" in str(error)]
    return next((match[1] for match in said if match), next(iter(lines), type(error).__name__))
