"""Collects the rows of all benchmarks and writes them to `results.md` at the end. Nothing fails on time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks.results import Results

FILE = Path(__file__).with_name("results.md")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Of this process, until a benchmark takes more; launches share the cores as those of users."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def results() -> Iterator[Results]:
    results = Results()
    yield results
    FILE.write_text(results.markdown())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FILE.exists():
        terminalreporter.write_sep("=", str(FILE))
        terminalreporter.write(FILE.read_text())
