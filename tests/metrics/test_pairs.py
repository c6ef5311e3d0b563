from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from sagan.metrics import pairs
from sagan.metrics.pairs import _largest, between, within


def pair(rng: torch.Generator, n: int = 700, m: int = 900) -> tuple[Tensor, Tensor]:
    generated = torch.randn(n, 12, generator=rng, dtype=torch.float64) * 0.8 + 0.3
    return generated, torch.randn(m, 12, generator=rng, dtype=torch.float64)


def scores(generated: Tensor, real: Tensor) -> dict[str, float]:
    return between(generated, real, within(real))


def by_definition(generated: Tensor, real: Tensor) -> float:
    """The kernel distance with all matrices stored, in float64."""

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return (one.double() @ other.double().T / one.shape[1] + 1) ** 3

    def off_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    inside = off_diagonal(kernel(generated, generated)) + off_diagonal(kernel(real, real))
    return float(inside - 2 * kernel(generated, real).mean())


def test_kernel_distance_of_subsets_equals_torch_fidelity(rng: torch.Generator) -> None:
    generated, real = pair(rng)
    published = kid_features_to_metric(generated, real, kid_subsets=10, kid_subset_size=100, rng_seed=5, verbose=False)
    draw = np.random.RandomState(5)
    values = []
    for _ in range(10):
        rows, others = (torch.from_numpy(draw.choice(len(x), 100, replace=False)) for x in (generated, real))
        values.append(scores(generated[rows], real[others])["kid"])
    assert np.mean(values) == pytest.approx(published["kernel_inception_distance_mean"], rel=1e-6)
    assert np.std(values) == pytest.approx(published["kernel_inception_distance_std"], rel=1e-6)


def test_kernel_distance_equals_the_sum_over_all_pairs_also_in_float32(rng: torch.Generator) -> None:
    generated, real = pair(rng, 1100, 1300)
    assert scores(generated, real)["kid"] == pytest.approx(by_definition(generated, real), rel=1e-9)
    generated, real = generated.float().relu(), real.float().relu()
    assert scores(generated, real)["kid"] == pytest.approx(by_definition(generated, real), rel=1e-5)


def test_precision_and_recall_equal_torch_fidelity(rng: torch.Generator) -> None:
    generated, real = pair(rng)
    published = prc_features_to_metric(generated, real, prc_neighborhood=3, verbose=False)
    found = scores(generated, real)
    assert 0.1 < found["recall"] < 0.9 and 0.1 < found["precision"] < 0.99
    assert {name: found[name] for name in ("precision", "recall")} == pytest.approx(
        {name: published[name] for name in ("precision", "recall")}, rel=1e-6
    )


def test_density_and_coverage_equal_their_definition(rng: torch.Generator) -> None:
    generated, real = pair(rng)
    radii = torch.cdist(real, real).sort(1).values[:, 5]
    inside = torch.cdist(generated, real) <= radii
    found = scores(generated, real)
    assert found["density"] == pytest.approx(float(inside.double().sum(1).mean() / 5))
    assert found["coverage"] == pytest.approx(float(inside.any(0).double().mean()))


def test_block_size_changes_nothing(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    generated, real = pair(rng)
    found = scores(generated, real)
    monkeypatch.setattr(pairs, "_ROWS", 37)
    assert scores(generated, real) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("columns", [6, 119, 120, 257, 1000])
def test_largest_values_are_those_of_topk(columns: int, rng: torch.Generator) -> None:
    values = torch.randint(50, (200, columns), generator=rng).float()  # with ties
    values[0] = 1
    assert torch.equal(_largest(values, 6), values.topk(6).values)


def test_features_far_from_the_origin_have_the_neighbours_of_the_same_ones_at_it(rng: torch.Generator) -> None:
    generated, real = (features.float() for features in pair(rng))
    moved = scores(generated + 1000, real + 1000)
    expected = scores((generated + 1000).double() - 1000, (real + 1000).double() - 1000)
    del moved["kid"], expected["kid"]  # which depends on the origin
    assert moved == pytest.approx(expected, abs=0.002)
