from __future__ import annotations

import pytest
import torch
from card import IS_CARD


@pytest.fixture(scope="session", autouse=True)
def needs_a_card() -> None:
    if IS_CARD and not torch.cuda.is_available():
        pytest.skip("needs a CUDA card; DEVICE=cpu rehearses these tests on the CPU")
