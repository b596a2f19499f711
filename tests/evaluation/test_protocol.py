"""protocol.py: everything that makes two scores incomparable is in the manifest, and is named."""

import hashlib
import re
from importlib import metadata
from typing import Any

import pytest

from config import VERSION
from evaluation.scores import LIBRARIES, Protocol, describe_protocol, differences, identify, shorten

RECIPE = {"size": 32, "load_size": 36, "fit": "crop"}
STEMS, DIGESTS = ["a", "b", "c"], [b"1", b"2"]


def describe(**changes: Any) -> Protocol:
    given = {
        "recipe": RECIPE,
        "stems": STEMS,
        "digests": DIGESTS,
        "weights": {"alexnet": "a" * 64},
        **changes,
    }
    return describe_protocol(**given)


def test_manifest() -> None:
    protocol = describe()
    assert protocol["versions"].pop("python").count(".") == 2
    assert protocol == {
        "images": 3,
        "size": 32,
        "file_list": hashlib.sha256(b"a\nb\nc").hexdigest(),
        "targets": hashlib.sha256(b"12").hexdigest(),
        "resize": "crop 36:32 px, bicubic, antialiased",
        "data_range": 255,
        "versions": {"tinct": VERSION, **{name: metadata.version(name) for name in LIBRARIES}},
        "weights": {"alexnet": "a" * 64},
    }
    assert {"torch", "numpy", "pillow", "scipy", "torchmetrics", "clean-fid"} <= set(LIBRARIES)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        (
            {"recipe": {**RECIPE, "size": 16}},
            ["size 32 and 16", "resize crop 36:32 px.* and crop 36:16 px.*"],
        ),
        ({"recipe": {**RECIPE, "fit": "squash"}}, ["resize crop .* and squash .*"]),
        ({"stems": ["a", "b"]}, ["images 3 and 2", r"file_list [0-9a-f]{12} and [0-9a-f]{12}"]),
        ({"stems": ["a", "c", "b"]}, [r"file_list [0-9a-f]{12} and [0-9a-f]{12}"]),
        ({"digests": [b"1", b"3"]}, [r"targets [0-9a-f]{12} and [0-9a-f]{12}"]),
        ({"weights": {"alexnet": "b" * 64}}, ["weights of alexnet a{12} and b{12}"]),
        ({"weights": {}}, []),  # a network that only one asked is no difference
        ({"weights": {"vgg16": "b" * 64}}, []),
    ],
)
def test_differences_are_named(changes: dict[str, Any], named: list[str]) -> None:
    found = differences(describe(), describe(**changes))
    assert len(found) == len(named)
    for phrase, pattern in zip(found, named, strict=True):
        assert re.fullmatch(pattern, phrase)
    assert len(differences(describe(**changes), describe())) == len(named)


def test_versions_are_differences() -> None:
    ours, theirs = describe(), describe()
    theirs["versions"] = {**theirs["versions"], "torch": "2.0"}
    del theirs["versions"]["scipy"]
    scipy = metadata.version("scipy")
    assert differences(ours, theirs) == [
        f"torch {ours['versions']['torch']} and 2.0",
        f"scipy {scipy} and None",
    ]


def test_only_hashes_are_shortened() -> None:
    assert [shorten(value) for value in ("f" * 64, "f" * 63, 255, None)] == [
        "f" * 12,
        "f" * 63,
        "255",
        "None",
    ]


def test_an_identity_changes_with_anything() -> None:
    given = [describe(), describe(stems=["a"]), describe(digests=[b"1"]), describe(weights={})]
    found = [identify(protocol) for protocol in given]
    assert len(set(found)) == len(given)
    assert all(re.fullmatch("[0-9a-f]{12}", identity) for identity in found)
    assert identify(dict(reversed(describe().items()))) == found[0]  # whatever the order
