from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sagan.config import Config, override
from sagan.presets import PRESETS

collect_ignore = ["benchmarks"]  # run where they are named: python -m pytest tests/benchmarks


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Of this process and of those that it starts. Small tensors gain nothing from threads, and tests that run side by
    side lose much: threads that wait for one another keep their cores busy."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference statistics, computed once for all tests of a session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the format of the official file, of a size that hands variation on from layer to layer."""
    from sagan.metrics import inception  # torch-fidelity takes a second to import

    file = tmp_path_factory.mktemp("inception") / inception.OFFICIAL_FILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        network_type = inception.FeatureExtractorInceptionV3
        patch.setattr(network_type, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = network_type("random", ["2048"], verbose=False)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), file)
    return file


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
            "optim.ttur": True,
            "optim.batch_size": 4,
            "optim.steps": 6,
            "optim.ema_start": 2,
            "eval.every": 3,
            "eval.num_samples": 36,
            "eval.standing_images": 8,
            "eval.endpoint": 1,
        },
    )
