from __future__ import annotations

import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from sagan.metrics.inception_score import inception_score


@pytest.mark.parametrize(("n", "splits"), [(1000, 10), (1003, 10), (500, 1)])
def test_score_equals_torch_fidelity(n: int, splits: int, rng: torch.Generator) -> None:
    logits = 3 * torch.randn(n, 20, generator=rng)
    published = isc_features_to_metric(logits, splits=splits)
    mean, spread = inception_score(logits, splits=splits)
    assert mean == pytest.approx(published["inception_score_mean"], rel=1e-6)
    assert spread == pytest.approx(published["inception_score_std"], rel=1e-6, abs=1e-12)
