"""Run an exported generator on pictures, within the memory that there is."""

import re
import sys
import threading
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from config import DRAWN_INPUTS, UserError
from imaging.panels import find_panels, join_panels
from imaging.pixels import Array, Frame
from inference.checkpoint import infer, load_model

Pixels = NDArray[Any]  # (H, W, 3) uint8, uint16, or floating point in [0, 1]
NOT_FINITE = "output is not finite"  # part of what Colorizer raises


@dataclass(eq=False)
class Runner:
    """Colourise pictures of one size in batches.

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
        self.max_pixels = sys.maxsize  # of a batch; becomes less where memory runs out
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
                self._set(name, value)

    def _set(self, name: str, value: int | float | str | Tensor) -> None:
        owner = self.model.generator if name == "temperature" else self.model
        if not hasattr(owner, name) or (name == "palette" and self.record.recipe.output == "rgb"):
            raise UserError(f"{self.path} has no {name}: it is of recipe {self.record.recipe.name}")
        setattr(owner, name, value.to(self.device) if isinstance(value, Tensor) else value)

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
        return Frame(self.run([seen.pixels], hints)[0], seen.alpha)

    def run(self, pictures: list[Pixels], hints: Array | None = None) -> list[Pixels]:
        """Return the colour versions of pictures of one shape and dtype, in batches that fit into memory.

        Args:
            hints: (H, W, 4) uint8, colour and opacity, for each of the pictures; see Colorizer.

        Raises:
            UserError: the network's output is not finite, or hints for a model that takes none.
            MemoryError: a single picture does not fit into the CPU's memory.
            RuntimeError: the network failed; the message is one line.
        """
        if hints is not None and not self.record.recipe.hints:
            raise UserError(f"{self.path} takes no hints: it is of recipe {self.record.recipe.name}")
        if self.panels:
            return [self._run_panels(page, hints) for page in pictures]
        return self._run(pictures, hints)

    def _run_panels(self, page: Pixels, hints: Array | None) -> Pixels:
        """Colourise a page panel by panel."""
        panels = find_panels(page)
        parts = []
        for rows, columns, *_ in panels:
            there = None if hints is None else hints[rows, columns]
            parts += self._run([page[rows, columns]], there)
        return join_panels(page, parts, panels)

    def _run(self, pictures: list[Pixels], hints: Array | None) -> list[Pixels]:
        results: list[Pixels] = []
        layer = None if hints is None else _as_dtype(hints, pictures[0].dtype)
        with self.lock:
            while len(results) < len(pictures):
                height, width, _ = pictures[0].shape
                part = pictures[len(results) :][: max(1, self.max_pixels // (height * width))]
                stacked = part[0][None] if len(part) == 1 else np.stack(part)  # (N, H, W, 3)
                colours = self._attempt(torch.from_numpy(stacked).permute(0, 3, 1, 2), layer)
                if colours is not None:
                    results += list(colours.permute(0, 2, 3, 1).numpy())
        return results

    def _attempt(self, batch: Tensor, layer: Tensor | None) -> Tensor | None:
        """Colourise (N, 3, H, W) on the CPU to the same; None: it did not fit, try again with less."""
        try:
            hints = None if layer is None else layer.expand(len(batch), -1, -1, -1).to(self.device)
            return infer(self.model, batch.to(self.device), hints).cpu()
        except Exception as error:  # TorchScript's is no RuntimeError
            not_finite = NOT_FINITE in str(error)
            overflow = self.half and not_finite
            if not overflow and not is_out_of_memory(error):
                raise (UserError if not_finite else RuntimeError)(one_line(error)) from error
        if len(batch) > 1 and not overflow:
            half = len(batch) // 2
            self.max_pixels = half * batch.size(2) * batch.size(3)
            self._say(f"out of memory with {len(batch)} pictures at a time: going on with {half}")
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
        return torch.cat([self.on_cpu._attempt(picture, layer) for picture in batch.split(1)])

    @cached_property
    def on_cpu(self) -> "Runner":
        """Return a Runner of the same generator on the CPU, in the precision that was exported."""
        return replace(self, device=torch.device("cpu"))

    def _say(self, sentence: str) -> None:
        if sentence not in self.said:
            print(sentence, file=sys.stderr)
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
