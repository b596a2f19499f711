"""The page in web/ as one HTML file: with a network and ONNX Runtime inside it, or for serve.py.

The network alone becomes ONNX: what lies around it (lightness, resizing, hints, the enlargement of the colours)
is written again in web/colorizer.js, since a traced Colorizer would hold a photograph of 12 megapixels as floats
several times. Weights are stored as fp16 and computed as fp32.
"""

import base64
import copy
import gzip
import hashlib
import json
import math
import re
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from config import CACHE, ROOT, UserError
from imaging.color import CHANNELS
from inference.checkpoint import ExportRecord
from inference.colorizer import Colorizer
from inference.exporters import OPSET, fold_batch_norm
from models import LiteUNet
from runtime.atomic import replacing
from runtime.weights import fetch, file_hash, file_name

if TYPE_CHECKING:
    import onnx

SOURCES = ROOT / "web"
WORKER = ("color.js", "colorizer.js", "worker.js")
PAGE = ("color.js", "engine.js", "zip.js", "picker.js", "stage.js", "app.js")
RUNTIME = (  # MIT; its SHA-256 is pinned
    "https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-1.30.0.tgz"
    "#d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
)
RUNTIME_FILES = {  # of the package: its script, what that imports, and the program for processors without a GPU
    "runtime": "package/dist/ort.wasm.min.js",
    "loader": "package/dist/ort-wasm-simd-threaded.mjs",
    "wasm": "package/dist/ort-wasm-simd-threaded.wasm",
}
MAX_NETWORK, MAX_PAGE = 10_000_000, 25_000_000  # bytes, of its weights and of all
TOLERANCE = 0.01  # of ab/110, that is 1 unit of Lab: between the network in torch and in ONNX with fp16 weights


class Network(nn.Module):
    """The generator, and what it knows of other colours: x -> y, and of `lite-unet` the shares of its bins."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map x (N, C, h, w) to y (N, 2, h, w) in [-1, 1] and perhaps logits (N, 256, h/4, w/4)."""
        if not has_bins(self.generator):
            return (self.generator(x),)
        logits = self.generator.logits(x)
        return self.generator.readout(logits, x), logits


def has_bins(generator: nn.Module) -> bool:
    """Tell whether a generator says how likely each colour is."""
    return isinstance(generator, LiteUNet) and generator.is_ab


def write_network(colorizer: Colorizer) -> bytes:
    """Return the network as ONNX with fp16 weights; input `x`, outputs `y` and perhaps `logits`; see Network.

    Raises:
        UserError: ONNX cannot express it, differs from torch, or it is too large for a page.
    """
    import onnx

    weights = 2 * sum(weight.numel() for weight in colorizer.generator.parameters())
    if weights > MAX_NETWORK:
        size = f"{weights / 1e6:.0f} MB, and a page takes {MAX_NETWORK / 1e6:.0f}"
        raise UserError(f"the network has {size}; open it with: python serve.py --model FILE")
    module = Network(fold_batch_norm(copy.deepcopy(colorizer.generator))).eval()
    channels, step = CHANNELS[colorizer.x_kind] + 3 * colorizer.takes_hints, colorizer.multiple
    example = 2.0 * torch.rand(2, channels, 96, 160, generator=torch.Generator().manual_seed(0)) - 1.0
    if colorizer.takes_hints:
        example[:, -1] = (example[:, -1] > 0.8).float()  # hints at a tenth of the pixels
        example[:, -3:-1] *= example[:, -1:]
    sides = {2: step * Dim("rows", min=1, max=999), 3: step * Dim("columns", min=1, max=999)}
    names = ["y", "logits"][: 1 + has_bins(module.generator)]
    try:
        program = torch.export.export(module, (example,), dynamic_shapes=({0: Dim("batch"), **sides},))
        written = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, verbose=False, input_names=["x"], output_names=names
        )
    except Exception as error:  # exporters raise many types for what they do not support
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"onnx cannot express this network ({reason}); serve.py takes any generator.ts") from error
    model = written.model_proto
    store_as_half(model.graph)
    encoded = model.SerializeToString()
    onnx.checker.check_model(encoded)
    check_network(module, encoded, example[:, :, :64, :96])
    return encoded


def store_as_half(graph: "onnx.GraphProto") -> None:
    """Store weights of a graph as fp16, in place; they are made fp32 again when it is loaded."""
    import onnx
    from onnx import numpy_helper

    casts = []
    for weight in graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or math.prod(weight.dims) < 256:
            continue
        name, values = weight.name, numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array(values.astype("float16"), f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.FLOAT))
    for i, cast in enumerate(casts):
        graph.node.insert(i, cast)


def check_network(module: nn.Module, encoded: bytes, x: Tensor) -> None:
    """Raise UserError where the network in ONNX and in torch differ on x by more than fp16 weights explain."""
    import onnxruntime

    found = onnxruntime.InferenceSession(encoded, providers=["CPUExecutionProvider"]).run(["y"], {"x": x.numpy()})[0]
    apart = float((module(x)[0] - torch.from_numpy(found)).abs().max())
    if not apart <= TOLERANCE:
        raise UserError(f"torch and onnx differ by {apart * 110:.3g} units of Lab; nothing was written")


def fetch_runtime() -> dict[str, bytes]:
    """Return the files of ONNX Runtime Web by their names in RUNTIME_FILES, from cache/ or its package.

    Raises:
        UserError: it can neither be found nor downloaded, or is not the published one.
    """
    place = CACHE / "onnxruntime"
    path, (url, _, digest) = place / file_name(RUNTIME), RUNTIME.partition("#")
    if path.is_file() and file_hash(path) != digest:
        raise UserError(f"{path} is not the published file, or it is damaged; delete it and try again")
    try:
        path = path if path.is_file() else fetch(RUNTIME, place)
    except OSError as error:
        raise UserError(f"{path.name} could not be downloaded ({error}): put {url} into {place}") from None
    with tarfile.open(path) as package:
        return {name: package.extractfile(member).read() for name, member in RUNTIME_FILES.items()}


def source(*names: str) -> str:
    """Return files of web/, one after the other."""
    return "".join((SOURCES / name).read_text(encoding="utf-8") for name in names)


def build_page(config: dict[str, Any], data: dict[str, str], connect: str) -> str:
    """Return the page as HTML.

    Args:
        config: what web/app.js reads as `config`.
        data: texts that the page carries, by the id of their element.
        connect: where the page may connect to, as a Content-Security-Policy has it.
    """
    style, script = source("style.css"), '"use strict";\n' + source(*PAGE)
    hashes = {text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)}
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes[script]}' blob: 'wasm-unsafe-eval'; worker-src blob:; "
        f"style-src 'sha256-{hashes[style]}'; img-src data: blob:; connect-src {connect}; "
        "base-uri 'none'; form-action 'none'"
    )
    licences = f"Tinct: {(ROOT / 'LICENSE').read_text(encoding='utf-8')}"
    if data:
        licences += "\n\n" + source("onnxruntime-licence.txt")
    texts = {"config": json.dumps(config), **data}
    carried = [f'<script type="text/plain" id="{name}">{_closed(text)}</script>' for name, text in texts.items()]
    parts = {
        "POLICY": policy, "STYLE": style, "DATA": "\n".join(carried), "SCRIPT": script,
        "LICENCES": "".join(f"<p>{text}</p>" for text in licences.split("\n\n")),
    }  # fmt: skip
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], source("index.html"))


def _closed(text: str) -> str:
    """Return JSON or JavaScript that does not end the element of HTML in which it stands."""
    return re.sub("<(?=/script|!--)", r"\\u003c", text, flags=re.I)


def write_page(path: Path, colorizer: Colorizer, record: ExportRecord) -> None:
    """Write colorizer.html: the page, the network of a trained Colorizer, and what runs it.

    Raises:
        UserError: not a model that maps lightness to ab, one that is too large, or no runtime.
    """
    recipe = record.recipe
    if (recipe.input, recipe.output) != ("L", "ab"):
        raise UserError(
            f"a page takes models of lightness to ab, and {recipe.name} maps {recipe.input} to {recipe.output}; "
            "open it with: python serve.py --model FILE"
        )
    files = fetch_runtime()
    config = {
        "server": False, "size": colorizer.size, "multiple": colorizer.multiple, "least": colorizer.least,
        "hints": colorizer.takes_hints, "suggests": has_bins(colorizer.generator), "said": f"Model: {record}.",
    }  # fmt: skip
    data = {
        "runtime": files["runtime"].decode(), "loader": files["loader"].decode(), "worker": source(*WORKER),
        "wasm": pack(files["wasm"]), "network": pack(write_network(colorizer)),
    }  # fmt: skip
    page = build_page(config, data, "'none'").encode()
    if len(page) > MAX_PAGE:
        raise UserError(f"the page has {len(page) / 1e6:.0f} MB, more than {MAX_PAGE / 1e6:.0f}: use a smaller network")
    with replacing(path) as temporary:
        temporary.write_bytes(page)


def pack(content: bytes) -> str:
    """Return bytes as web/worker.js unpacks them: gzip, in base64."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()
