"""Fixtures: a scored run, and a report that all tests share."""

from pathlib import Path

import pytest
from scored_run import edit, make_run

from reporting.page import write_report


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
