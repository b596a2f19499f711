"""The house keeps its plan: who imports whom, how long files are, what the README promises."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from config import ROOT

STAGES = {"train", "test", "eval", "export", "colorize", "classifier", "bench", "main"}
MODULES = {path.stem: path for path in ROOT.glob("*.py")}
LONGEST = {"models": 400}  # lines; every other file 300


def imports(path: Path) -> set[str]:
    """Return the names of our own modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found & set(MODULES)


ALLOWED = {
    "atomic": set(),
    "audit": {"config", "gan"},
    "blocks": set(),
    "checkpoint": {"atomic", "color", "colorizer", "models"},
    "checks": set(),
    "cli": {"config"},
    "conveyor": {"atomic", "color", "files", "inputs", "painter"},
    "color": set(),
    "colorizer": {"color"},
    "compare": {"checkpoint", "metrics", "protocol", "scores", "stats"},
    "config": {"checks"},
    "damage": {"color"},
    "data": {"color", "damage", "datasets", "folders", "images", "scenes"},
    "datasets": {"images"},
    "features": set(),
    "files": {"atomic", "images", "metadata", "writers"},
    "folders": {"datasets", "images", "scenes"},
    "gan": {"blocks", "checkpoint", "color", "config", "features", "losses", "models"},
    "images": {"atomic"},
    "gallery": {"checkpoint", "images", "scores", "words"},
    "inputs": {"files", "images"},
    "interchange": {"color", "colorizer"},
    "judges": {"data", "features", "metrics", "perceptual", "recognition"},
    "learning": {"checkpoint", "config", "data", "gan", "recognition", "stats"},
    "log": {"atomic"},
    "losses": set(),
    "metadata": set(),
    "metrics": {"color", "images"},
    "models": {"blocks", "features"},
    "painter": {"checkpoint"},
    "perceptual": {"features", "metrics", "recognition"},
    "plots": {"atomic"},
    "preflight": {"checks", "checkpoint", "config", "data", "folders", "gan", "models"},
    "protocol": {"config"},
    "recognition": {"atomic", "checkpoint", "config", "folders"},
    "report": {"atomic", "checkpoint", "cli", "config", "gallery", "log", "plots", "scores", "words"},
    "scenes": set(),
    "scores": {"atomic", "checkpoint", "metrics", "plots", "protocol", "stats"},
    "stats": set(),
    "threads": set(),
    "words": {"config", "scores"},
    "writers": {"images", "metadata"},
}


def test_every_module_is_a_stage_or_in_the_table() -> None:
    assert ALLOWED.keys() | STAGES == MODULES.keys()
    assert not ALLOWED.keys() & STAGES


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_follow_the_design(name: str) -> None:
    found = imports(MODULES[name])
    if name in ALLOWED:
        assert found <= ALLOWED[name]
    else:
        assert name in STAGES
        exceptions = {"main": STAGES - {"main"}, "eval": {"test"}, "bench": {"eval"}}.get(name, set())
        assert found & STAGES <= exceptions


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_and_functions_are_short(name: str) -> None:
    source = MODULES[name].read_text()
    assert len(source.splitlines()) <= LONGEST.get(name, 300)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < (100 if (name, node.name) == ("train", "main") else 40), (
                node.name
            )
            assert node.returns is not None or node.name == "__init__", f"{node.name} has no return type"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_file_has_a_docstring_and_a_test(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name].read_text()))
    assert (ROOT / "tests" / f"test_{name}.py").exists()


def test_torch_jit_is_touched_in_two_files_only() -> None:
    users = {
        name
        for name, path in MODULES.items()
        if "torch.jit." in re.sub(r'""".*?"""', "", path.read_text(), flags=re.S)
    }
    assert users == {"export", "checkpoint"}


def test_readme_shows_the_commands_that_ci_runs() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    (command,) = (line for line in ci.splitlines() if "pytest" in line)
    assert command in readme.splitlines()
    for name in re.findall(r"python (\w+)\.py", readme):
        assert name in MODULES


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_no_large_or_generated_file_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        path = ROOT / line
        assert path.suffix not in {".pt", ".ts", ".npy", ".bin", ".pyc"}
        assert not path.exists() or path.stat().st_size < 600_000, line
