"""Fixtures: a scored run, a report, and a browser, the last two shared by all tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scored_run import edit, make_run

from reporting.page import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a scored run that a test may change."""
    return make_run(tmp_path / "my run")


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a scored run that no test changes; its data have a name that looks like code."""
    run = make_run(tmp_path_factory.mktemp("report") / "my run")
    edit(run / "recipe.json", lambda record: record.update(data="/a</script><b>&amp;{{data}}{% raw %}"))
    return write_report(run)


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """Yield a headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the report needs playwright to be tested")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser to open the report in: none of {' '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()
