from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sagan.config import Config, override
from sagan.presets import PRESETS

collect_ignore = ["benchmarks"]  # run where they are named: python -m pytest tests/benchmarks


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors gain nothing from threads, and tests that run side by side lose much."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference statistics, computed once for all tests of a session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny() -> Config:
    """A run of six steps at 32 px with attention, scored twice: a second or two."""
    return override(
        PRESETS["embedded"],
        {
            "data.resolution": 32,
            "model.width_g": 4,
            "model.width_d": 4,
            "model.z_dim": 8,
            "model.attention.at": [8],
            "optim.batch_size": 4,
            "optim.steps": 6,
            "optim.ema_start": 2,
            "eval.every": 3,
            "eval.num_samples": 36,
            "eval.standing_batches": 2,
        },
    )
