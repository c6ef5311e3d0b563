from __future__ import annotations

import sys

import pytest
import torch
from card import IS_CARD


@pytest.fixture(scope="session", autouse=True)
def needs_a_card() -> None:
    if IS_CARD and not torch.cuda.is_available():
        pytest.skip("needs a CUDA card; DEVICE=cpu rehearses these tests on the CPU")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is told when it happens: the time may be over before all tests are."""
    if report.failed:
        print(f"\n{report.nodeid}\n{report.longreprtext}", file=sys.stderr, flush=True)
