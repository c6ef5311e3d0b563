from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from sagan.metrics import neighbours as module
from sagan.metrics.neighbours import neighbours, squared_radii


def pair(rng: torch.Generator, n: int = 700, m: int = 900) -> tuple[Tensor, Tensor]:
    generated = torch.randn(n, 12, generator=rng, dtype=torch.float64) * 0.8 + 0.3
    return generated, torch.randn(m, 12, generator=rng, dtype=torch.float64)


def test_precision_and_recall_equal_torch_fidelity(rng: torch.Generator) -> None:
    generated, real = pair(rng)
    published = prc_features_to_metric(generated, real, prc_neighborhood=3, verbose=False)
    found = neighbours(generated, real)
    assert 0.1 < found.recall < 0.9 and 0.1 < found.precision < 0.99
    assert found.precision == pytest.approx(published["precision"], rel=1e-6)
    assert found.recall == pytest.approx(published["recall"], rel=1e-6)


def test_density_and_coverage_equal_their_definition(rng: torch.Generator) -> None:
    generated, real = pair(rng)
    radii = torch.cdist(real, real).sort(1).values[:, 5]
    inside = torch.cdist(generated, real) <= radii
    found = neighbours(generated, real)
    assert found.density == pytest.approx(float(inside.double().sum(1).mean() / 5))
    assert found.coverage == pytest.approx(float(inside.any(0).double().mean()))


def test_block_size_and_kept_radii_change_nothing(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    generated, real = pair(rng)
    whole = neighbours(generated, real)
    monkeypatch.setattr(module, "_ROWS", 37)
    assert neighbours(generated, real, squared_radii(real)) == whole


def test_dropping_half_the_modes_halves_coverage_and_spares_precision(rng: torch.Generator) -> None:
    modes = torch.tensor([[-50.0], [50.0]]).expand(2, 4)
    real = torch.randn(800, 4, generator=rng) + modes[torch.arange(800) % 2]
    found = neighbours(torch.randn(400, 4, generator=rng) + modes[0], real)
    assert found.precision > 0.9
    assert found.coverage < 0.52 and found.recall < 0.52
