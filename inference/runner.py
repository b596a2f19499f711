"""Run an exported generator on pictures, with what memory there is."""

import re
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inference.checkpoint import infer, load_exported

Pixels = NDArray[Any]  # (H, W, 3) uint8 or uint16
NOT_FINITE = "output is not finite"  # in what Colorizer raises


class Painter:
    """Colourise pictures of one size in batches.

    Where a GPU's memory does not suffice the batch is halved, then the network goes over to fp16, then the
    picture is coloured on the CPU. Each of these is said once on stderr.
    """

    def __init__(self, path: Path, device: torch.device, **attributes: Any) -> None:
        """Load a generator.

        Args:
            path: a generator.ts.
            attributes: of Colorizer to set, as size=512; None leaves one as exported.

        Raises:
            UserError: no generator.ts that this version reads.
        """
        self.path = path
        self.device = device
        self.attributes = {name: value for name, value in attributes.items() if value is not None}
        self.most_pixels = sys.maxsize  # of a batch, that has been seen to fit
        self.half = False
        self.said: set[str] = set()
        try:
            self.model, self.metadata = self._load(device)
        except Exception as error:
            if device.type == "cpu" or not is_out_of_memory(error):
                raise
            self._say(
                f"the model does not fit into the memory of {device}: colouring on the CPU, which is slower"
            )
            self.device = torch.device("cpu")
            self.model, self.metadata = self._load(self.device)

    def _load(self, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
        model, metadata = load_exported(self.path, device)
        for name, value in self.attributes.items():
            setattr(model, name, value)
        return model, metadata

    def paint(self, pictures: list[Pixels]) -> list[Pixels]:
        """Return the colour versions of pictures of one shape and dtype, in as many steps as memory asks for.

        Raises:
            MemoryError: not even one of them fits into the CPU's memory.
            RuntimeError: the network failed; says how in a line.
        """
        results: list[Pixels] = []
        while len(results) < len(pictures):
            height, width, _ = pictures[0].shape
            part = pictures[len(results) :][: max(1, self.most_pixels // (height * width))]
            stacked = part[0][None] if len(part) == 1 else np.stack(part)  # (N, H, W, 3); one is not copied
            colours = self._attempt(torch.from_numpy(stacked).permute(0, 3, 1, 2))
            if colours is not None:
                results += list(colours.permute(0, 2, 3, 1).numpy())
        return results

    def _attempt(self, batch: Tensor) -> Tensor | None:
        """Colourise (N, 3, H, W) on the CPU to the same; None: did not fit, and less is to be tried."""
        try:
            return infer(self.model, batch.to(self.device)).cpu()
        except Exception as error:  # TorchScript's is no RuntimeError
            overflow = self.half and NOT_FINITE in str(error)
            if not overflow and not is_out_of_memory(error):
                raise RuntimeError(one_line(error)) from error
        if len(batch) > 1 and not overflow:
            half = len(batch) // 2
            self.most_pixels = half * batch.size(2) * batch.size(3)
            self._say(f"out of memory with {len(batch)} pictures at a time: going on with {half}")
            return None
        if self.device.type == "cuda" and not self.half:
            self.model.half()
            self.half = True
            self._say("out of memory with one picture: going on in fp16")
            return None
        if self.device.type != "cpu":
            why = "overflows in fp16" if overflow else f"does not fit into the memory of {self.device}"
            self._say(f"a picture {why}: colouring it on the CPU, which is slower")
            try:
                return infer(self.on_cpu, batch)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise RuntimeError(one_line(error)) from error
        raise MemoryError("not enough memory for a picture of this size")

    @cached_property
    def on_cpu(self) -> nn.Module:
        """Return the generator on the CPU, as exported."""
        return self._load(torch.device("cpu"))[0]

    def _say(self, sentence: str) -> None:
        if sentence not in self.said:
            print(sentence, file=sys.stderr)
        self.said.add(sentence)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error of torch's, or of TorchScript's, which has lost its type, is about memory."""
    words = ("out of memory", "can't allocate memory", "cannot allocate memory", "_alloc_failed")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def one_line(error: Exception) -> str:
    """Return what an error says in a line: its first, or behind a traceback of TorchScript's the error's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [re.match(r"[\w.]*Error: (.+)", line) for line in lines if "TorchScript" in str(error)]
    return next((match[1] for match in said if match), next(iter(lines), type(error).__name__))
