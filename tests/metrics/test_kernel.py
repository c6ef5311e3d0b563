from __future__ import annotations

import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from sagan.metrics.kernel import kernel_distance, kernel_distance_subsets, mean_of_pairs


def test_subset_protocol_equals_torch_fidelity(rng: torch.Generator) -> None:
    generated = torch.randn(300, 32, generator=rng, dtype=torch.float64) + 0.3
    real = torch.randn(400, 32, generator=rng, dtype=torch.float64)
    published = kid_features_to_metric(generated, real, kid_subsets=10, kid_subset_size=100, rng_seed=5, verbose=False)
    mean, spread = kernel_distance_subsets(generated, real, subsets=10, size=100, seed=5)
    assert mean == pytest.approx(published["kernel_inception_distance_mean"], rel=1e-6)
    assert spread == pytest.approx(published["kernel_inception_distance_std"], rel=1e-6)


def test_blockwise_distance_equals_the_sum_over_all_pairs(rng: torch.Generator) -> None:
    generated = torch.randn(1100, 8, generator=rng, dtype=torch.float64) + 0.2
    real = torch.randn(1300, 8, generator=rng, dtype=torch.float64)

    def kernel(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one @ other.T / 8 + 1) ** 3

    def off_diagonal(k: torch.Tensor) -> torch.Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    inside = off_diagonal(kernel(generated, generated)) + off_diagonal(kernel(real, real))
    expected = inside - 2 * kernel(generated, real).mean()
    assert kernel_distance(generated, real) == pytest.approx(float(expected), rel=1e-9)
    assert kernel_distance(generated, real, mean_of_pairs(real)) == kernel_distance(generated, real)


def test_distance_between_samples_of_one_law_is_zero_on_average(rng: torch.Generator) -> None:
    values = torch.tensor(
        [kernel_distance(torch.randn(60, 8, generator=rng), torch.randn(90, 8, generator=rng)) for _ in range(300)]
    )
    assert abs(values.mean()) < 3 * values.std() / 300**0.5
