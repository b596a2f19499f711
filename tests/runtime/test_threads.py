"""Threads that wait sleep, in every stage."""

import ast
import os
import subprocess
import sys

import pytest
from test_repo import STAGES

from config import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="asks GCC's OpenMP, which torch uses on Linux")
@pytest.mark.parametrize(("policy", "spins"), [(None, "0"), ("active", "30000000000")])
def test_openmp_hears_of_it_before_torch_loads(policy: str | None, spins: str) -> None:
    env = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    env |= {"OMP_DISPLAY_ENV": "verbose", **({"OMP_WAIT_POLICY": policy} if policy else {})}
    done = subprocess.run(
        [sys.executable, "-c", "import colorize"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_every_stage_says_it_first(stage: str) -> None:
    tree = ast.parse((ROOT / f"{stage}.py").read_text())
    first = next(node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    assert isinstance(first, ast.Import)
    assert first.names[0].name == "threads"
