"""The project keeps its design: layers, docstrings, lengths, quick starts, and what the README promises."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from config import ROOT

STAGES = ("train", "test", "eval", "export", "colorize", "train_classifier")
# lowest first: a file imports from the entries before its own, or from its own folder
LAYERS = (
    "config", "runtime", "imaging", "models", "inference", "dataset", "data", "training", "evaluation",
    "reporting", *STAGES, "tools", "serve", "main",
)  # fmt: skip
MAY_NOT = {("evaluation", "training")} | {(a, b) for a in STAGES for b in STAGES if a != b}
FOLDERS = [name for name in LAYERS if (ROOT / name).is_dir()]
FILES = sorted(
    [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)
MAX_LINES = 60  # of a function
HEAVY = {"torch", "torchvision", "numpy", "PIL", "matplotlib", "scipy", "skimage", "cleanfid", "jinja2"}


def name_of(path: Path) -> str:
    """Return a file's name below the root, without its ending."""
    return path.relative_to(ROOT).with_suffix("").as_posix()


def layer(module: str) -> str:
    """Return the entry of LAYERS that a module belongs to."""
    return module.split("/")[0].split(".")[0]


def imported(path: Path) -> set[str]:
    """Return the layers that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {layer(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(layer(node.module))
    return found & set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_from_lower_layers_or_its_own_folder(path: Path) -> None:
    own = layer(name_of(path))
    for other in imported(path) - {own}:
        assert LAYERS.index(other) < LAYERS.index(own), f"{name_of(path)} imports {other}"
        assert (own, other) not in MAY_NOT, f"{name_of(path)} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_say_what_they_are_and_functions_are_short_and_typed(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert path.stem != "__init__" or len(tree.body) == 1  # the docstring alone
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.name == "main" or node.end_lineno - node.lineno < MAX_LINES, node.name
            assert node.returns is not None or node.name == "__init__", f"{node.name} has no return type"


def test_torch_jit_is_touched_in_inference_alone() -> None:
    code = {path: re.sub(r'""".*?"""', "", path.read_text(), flags=re.S) for path in FILES}
    assert {layer(name_of(path)) for path in FILES if "torch.jit." in code[path]} == {"inference"}


HELP = """
import contextlib, io, runpy, sys
for name in sys.argv[1:]:
    before = set(sys.modules)
    sys.argv = [f"{name}.py", "--help"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(sys.argv[0], run_name="__main__")
    print(name, *{module.partition(".")[0] for module in set(sys.modules) - before})
"""


def test_help_imports_nothing_that_takes_long() -> None:
    call = [sys.executable, "-c", HELP, *STAGES, "data", "main", "serve", "tools/bench"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == len(call) - 3
    assert "typer" in lines[0]
    # of dataset/, data.py imports its command line, which imports nothing heavy itself
    light = ("config", "runtime", "dataset", *STAGES)
    slow = {*HEAVY, *(name for name in LAYERS if name not in light)}
    assert [line for line in lines if slow & set(line.split()[1:])] == []


def test_an_import_changes_nothing_for_the_program_around_it() -> None:
    """At a module's top stand definitions, and no statement that calls or sets what others see."""
    changes = []
    for path in FILES:
        for node in ast.parse(path.read_text()).body[1:]:  # behind the docstring
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            foreign = any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets)
            if isinstance(node, ast.Expr | ast.With | ast.For | ast.Try) or foreign:
                changes.append(ast.unparse(node))
            if isinstance(node, ast.If):
                assert ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
    # which runtime/cli.py documents
    ours = ["os.environ.setdefault('GOMP_SPINCOUNT'", "os.environ.setdefault('OMP_WAIT_POLICY'"]
    assert [change.partition(",")[0] for change in changes] == ours


IMPORTS = """
import importlib, logging, os, sys, warnings
import torch
from PIL import Image, ImageFile, PngImagePlugin
Image.init()
def state():
    loggers = {"root": logging.root, **logging.root.manager.loggerDict}
    used = {name: (log.filters, log.handlers) for name, log in loggers.items() if hasattr(log, "filters")}
    return {
        "warnings": list(warnings.filters),
        **{f"logger {name}": repr(parts) for name, parts in used.items() if any(parts)},
        "Pillow's limits": (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK),
        "Pillow's plugins": (repr(Image.OPEN), repr(Image.SAVE), ImageFile.LOAD_TRUNCATED_IMAGES),
        "torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.backends.cudnn.benchmark),
        "environment": {**os.environ, "GOMP_SPINCOUNT": "", "OMP_WAIT_POLICY": ""},  # see runtime/cli.py
    }
for name in sys.argv[1].split():
    importlib.import_module(name)
before = state()
for name in sys.argv[2].split():
    importlib.import_module(name)
    after = state()
    for what in before | after:
        if before.get(what) != after.get(what):
            print(f"{name} changes {what}")
    before = after
"""


@pytest.mark.slow
def test_an_import_leaves_pillow_filters_loggers_torch_and_the_environment_alone() -> None:
    nodes = [node for path in FILES for node in ast.parse(path.read_text()).body]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    foreign = " ".join(sorted(name for name in names if layer(name) not in LAYERS))
    ours = " ".join(name_of(path).replace("/", ".") for path in FILES if path.stem != "__init__")
    call = [sys.executable, "-c", IMPORTS, foreign, ours]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == []


def test_readme_shows_the_commands_that_ci_runs() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    (command,) = re.findall(r"^python3 -m venv.*pytest$", readme, re.M)
    install, test = command.rsplit(" && ", 1)
    lines = ci.splitlines()
    assert lines.index(install) < lines.index(test)


def test_the_tree_in_design_md_is_the_tree() -> None:
    folder, named = "", set()
    for line in (ROOT / "docs" / "design.md").read_text().split("```")[1].splitlines():
        first, *others = line.split() or [""]
        if line.startswith("  "):
            named.add(folder + first)
        elif first.endswith("/"):
            folder = first
        else:
            named |= {word for word in (first, *others) if word.endswith(".py")}
    assert named == {f"{name_of(path)}.py" for path in FILES if path.stem != "__init__"}


PAGES = [path.relative_to(ROOT).as_posix() for path in sorted([*ROOT.glob("*/*.md"), ROOT / "README.md"])]
PAGES.remove("docs/design.md")  # whose names the test above looks at


@pytest.mark.parametrize("name", PAGES)
def test_files_that_a_readme_names_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    modules = re.findall(r"python -m (\w+\.\w+)", text)
    named = [f"{module.replace('.', '/')}.py" for module in modules]
    named += re.findall(r"python (\w+\.py)", text) + re.findall(r"`([\w/]+\.(?:py|html|cpp|ts))`", text)
    made = {"generator.ts", "report.html", "colorizer.html"}  # by a run
    assert [path for path in named if not (ROOT / path).exists() and path not in made] == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_no_large_or_generated_file_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        path = ROOT / line
        assert path.suffix not in {".pt", ".npy", ".bin", ".pyc"}
        most = 10_000_000 if line.startswith("pretrained/") else 600_000  # bytes
        assert not path.exists() or path.stat().st_size < most, line
