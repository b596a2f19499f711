"""The other two formats of an exported generator: ONNX, and torch.export's pt2.

Both take and give float32 (N, 3, H, W) in [0, 1] with any N, H and W; what a caller may set on generator.ts
is fixed here. ONNX takes the first pixel where it resizes to a side of 1 px, so that strips of which the
network sees no more come out otherwise.
"""

import importlib.util
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import color
from colorizer import Colorizer, resize

OPSET = 18  # of ONNX: the first whose Resize knows antialiasing
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # what writing and checking ONNX takes
METADATA = "tinct.json"


class Traceable(nn.Module):
    """A Colorizer's forward as torch.export can follow it.

    The sizes at which the network works are tensors until they are needed, so that no branch depends on them;
    there are no strips, and no check of values.
    """

    def __init__(self, colorizer: Colorizer) -> None:
        super().__init__()
        self.colorizer = colorizer

    def forward(self, image: Tensor) -> Tensor:
        """Colourise (N, 3, H, W) float32 in [0, 1] to the same."""
        c = self.colorizer
        height, width = (torch.scalar_tensor(side, dtype=torch.int64) for side in image.shape[2:])
        divisor = torch.maximum(2 * torch.minimum(height, width), torch.maximum(height, width))
        rows = ((4 * c.size * height + divisor) // (2 * divisor)).clamp(min=1)
        columns = ((4 * c.size * width + divisor) // (2 * divisor)).clamp(min=1)
        small = resize(c.given(image), _length(rows), _length(columns)).clamp(0.0, 1.0)
        y = self.predict(color.encode(small, c.x_kind), rows, columns)
        sides = _length(torch.minimum(height, rows)), _length(torch.minimum(width, columns))
        return c.join(image, c.prepare(small, y, *sides), 0, image.size(2))

    def predict(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Run the generator on x (N, C, rows, columns), mirrored out to what its halvings need."""
        c = self.colorizer
        (into_rows, from_rows), (into_columns, from_columns) = self.indices(rows), self.indices(columns)
        x = x.index_select(2, into_rows).index_select(3, into_columns)
        y = c.generator(x.to(c.precision.dtype)).to(torch.float32)
        return y.index_select(2, from_rows).index_select(3, from_columns)

    def indices(self, length: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices that mirror a side out (see colorizer.mirror), and those that cut it out."""
        multiple = self.colorizer.multiple
        blocks = (length.clamp(min=self.colorizer.least) + multiple - 1) // multiple
        before = (blocks * multiple - length) // 2
        index = (torch.arange(_length(blocks) * multiple) - before).remainder(2 * length)
        return torch.minimum(index, 2 * length - 1 - index), torch.arange(_length(length)) + before


def _length(value: Tensor) -> int:
    """Return a tensor's number as a size that torch.export knows nothing of but that it is one."""
    number = value.item()
    torch._check(number >= 1)
    torch._check(number <= 2**20)
    return number


def trace(colorizer: Colorizer) -> ExportedProgram:
    """Return a Colorizer on the CPU as a program of torch.export's, with any batch, height and width."""
    free = torch.export.Dim.DYNAMIC
    example = torch.rand(2, 3, 90, 140)
    sizes = ({0: free, 2: free, 3: free},)
    return torch.export.export(Traceable(colorizer), (example,), dynamic_shapes=sizes, strict=False)


def write_pt2(path: Path, colorizer: Colorizer, metadata: dict[str, Any]) -> None:
    """Write torch.export's format; a program for the CPU."""
    encoded = io.BytesIO()  # torch's own writer ends the process where a disk is full
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found")  # weights that share storage
        torch.export.save(trace(colorizer), encoded, extra_files={METADATA: json.dumps(metadata)})
    path.write_bytes(encoded.getvalue())


def load_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    """Return what write_pt2 wrote, as a function of (N, 3, H, W) float32."""
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def require_onnx() -> None:
    """Raise ValueError unless the packages that ONNX takes are installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx needs {' '.join(missing)}: pip install {' '.join(missing)}")


def write_onnx(path: Path, colorizer: Colorizer, metadata: dict[str, Any]) -> None:
    """Write ONNX, weights and metadata in the one file; input `image`, output `colour`."""
    program = torch.onnx.export(
        trace(colorizer), (), dynamo=True, opset_version=OPSET, verbose=False,
        input_names=["image"], output_names=["colour"],
    )  # fmt: skip
    assert program is not None
    program.model.metadata_props[METADATA] = json.dumps(metadata)
    program.save(path, external_data=False)


def load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Return what write_onnx wrote, run by onnxruntime on the CPU, as a function of (N, 3, H, W) float32."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
