"""How many files a second colorize.py colours alone and with one and two workers of Ray: figures of this machine.

python -m pytest -n 0 -m soak -s tests/soak/test_ray_speed.py      # prints a table; docs/scale.md has one
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import gray, make_run, save_picture

from config import ROOT, make_recipe

FILES, HEIGHT, WIDTH = 100, 480, 640
KINDS: dict[str, list[object]] = {
    "plain": [],
    "1 worker": ["--engine", "ray", "--workers", 1],
    "2 workers": ["--engine", "ray", "--workers", 2],
}


@pytest.mark.soak
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two cores")
def test_files_a_second_alone_and_with_workers() -> None:
    ray = pytest.importorskip("ray", reason="needs Ray: pip install -r requirements-scale.txt")
    for i in range(FILES):
        save_picture(f"scans/p{i:03d}.jpg", gray(i, HEIGHT, WIDTH))
    full = make_recipe("photo", {})
    run = make_run(Path("run"), "photo", **{name: getattr(full, name) for name in ("size", "load_size", "ngf")})
    print(f"\n{FILES} files of {WIDTH} x {HEIGHT} px, recipe photo, Ray {ray.__version__}, {os.cpu_count()} cores")
    for kind, options in KINDS.items():
        out = Path(kind.replace(" ", "_"))
        call = [sys.executable, ROOT / "colorize.py", "scans", "--run", run, "--out", out, *options]
        began = time.monotonic()
        subprocess.run([str(word) for word in call], check=True, capture_output=True)
        seconds = time.monotonic() - began
        assert len([*out.glob("[!.]*")]) == FILES
        print(f"{kind:<10}{seconds:8.1f} s{FILES / seconds:8.2f} files/s, from command to end")
