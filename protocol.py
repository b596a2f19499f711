"""How scores were made: what has to be equal for two of them to be compared."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from config import VERSION

LIBRARIES = ("torch", "torchvision", "numpy", "pillow", "scipy", "torchmetrics", "clean-fid")

Protocol = dict[str, Any]


def describe_protocol(
    recipe: Mapping[str, Any], stems: Sequence[str], digests: Sequence[bytes], weights: Mapping[str, str]
) -> Protocol:
    """Return the manifest that every score file carries.

    Args:
        recipe: fields size, load_size and fit of config.Recipe.
        stems: names of the pictures, in order.
        digests: of the true pictures' pixels, in order.
        weights: network -> SHA-256 of its file, for every network that had a say.
    """
    return {
        "images": len(stems),
        "size": recipe["size"],
        "file_list": hashlib.sha256("\n".join(stems).encode()).hexdigest(),
        "targets": hashlib.sha256(b"".join(digests)).hexdigest(),
        "resize": f"{recipe['fit']} {recipe['load_size']}:{recipe['size']} px, bicubic, antialiased",
        "data_range": 255,
        "versions": {
            "tinct": VERSION,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in LIBRARIES},
        },
        "weights": dict(weights),
    }


def identify(protocol: Protocol) -> str:
    """Return 12 digits that stand for a protocol in tables."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]


def differences(ours: Protocol, theirs: Protocol) -> list[str]:
    """Return what two protocols differ in, a phrase each; a network that only one asked is no difference."""
    shared = ours["weights"].keys() & theirs["weights"].keys()
    flat = [
        {
            **{key: value for key, value in protocol.items() if not isinstance(value, dict)},
            **protocol["versions"],
            **{f"weights of {name}": protocol["weights"][name] for name in shared},
        }
        for protocol in (ours, theirs)
    ]
    return [
        f"{key} {shorten(flat[0].get(key))} and {shorten(flat[1].get(key))}"
        for key in {**flat[0], **flat[1]}
        if flat[0].get(key) != flat[1].get(key)
    ]


def shorten(value: object) -> str:
    """Return a value to show; of a hash its first 12 digits."""
    text = str(value)
    return text[:12] if len(text) == 64 else text
