from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from sagan.metrics import frechet
from sagan.metrics.frechet import (
    fit,
    fit_in_parts,
    frechet_distance,
    frechet_distance_few,
    frechet_extrapolated,
    frechet_standard_error,
    halves,
    rooted,
)


def sample(n: int, d: int, rng: torch.Generator, *, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Correlated, non-negative features, as a ReLU network gives them."""
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / d**0.5
    return (scale * torch.randn(n, d, generator=rng, dtype=torch.float64) @ mixing + shift).relu()


def distance(real: Tensor, generated: Tensor) -> float:
    return frechet_distance(rooted(fit(real)), fit(generated))


def published(real: Tensor, generated: Tensor) -> float:
    one, other = fid_features_to_statistics(generated), fid_features_to_statistics(real)
    return fid_statistics_to_metric(one, other, False)["frechet_inception_distance"]


@pytest.mark.parametrize("d", [16, 128])
def test_distance_equals_torch_fidelity(d: int, rng: torch.Generator) -> None:
    real, generated = sample(1500, d, rng), sample(900, d, rng, shift=0.1, scale=1.2)
    assert distance(real, generated) == pytest.approx(published(real, generated), rel=1e-6)


def test_parts_give_the_mean_and_covariance_of_the_whole_also_far_from_zero(rng: torch.Generator) -> None:
    features = sample(1000, 16, rng).float() + 1000
    found, expected = fit_in_parts(iter(features.split(70))), fit(features)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.cov, expected.cov, rtol=1e-9, atol=1e-9)


def test_products_in_strips_give_the_covariance_and_the_distance(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, generated = sample(300, 50, rng), sample(200, 50, rng, shift=0.1)
    expected = distance(real, generated)
    monkeypatch.setattr(frechet, "_STRIP", 16)
    torch.testing.assert_close(fit(real).cov, real.T.cov())
    assert distance(real, generated) == pytest.approx(expected, rel=1e-9)


def test_float32_features_give_the_distance_of_their_float64_copies(rng: torch.Generator) -> None:
    real, generated = sample(6000, 32, rng).float(), sample(5000, 32, rng, shift=0.3).float()
    assert distance(real, generated) == pytest.approx(distance(real.double(), generated.double()), rel=1e-12)


def test_distance_of_a_set_to_itself_is_zero(rng: torch.Generator) -> None:
    features = sample(300, 64, rng)
    assert abs(distance(features, features)) < 1e-9
    assert abs(frechet_distance_few(features, features)) < 1e-9


@pytest.mark.parametrize(("n", "m"), [(500, 40), (40, 500), (40, 30), (500, 400)])
def test_route_for_few_samples_equals_the_eigenvalue_route(n: int, m: int, rng: torch.Generator) -> None:
    real, generated = sample(n, 64, rng), sample(m, 64, rng, shift=0.2)
    assert frechet_distance_few(real, generated) == pytest.approx(distance(real, generated), abs=1e-5)


def test_standard_error_is_the_spread_over_repeated_samples_with_the_same_labels(rng: torch.Generator) -> None:
    labels = torch.arange(400) % 3
    offsets = torch.tensor([0.0, 1.0, 4.0])[:, None].double()  # classes far apart: their shares must not count
    real = rooted(fit(sample(6000, 8, rng) + offsets[torch.arange(6000) % 3]))
    draws = [sample(400, 8, rng, shift=0.3) + offsets[labels] for _ in range(200)]
    spread = torch.tensor([frechet_distance(real, fit(draw)) for draw in draws]).std()
    predicted = torch.tensor([frechet_standard_error(real, fit(draw), draw, labels) for draw in draws]).mean()
    assert float(predicted / spread) == pytest.approx(1, abs=0.15)  # the spread itself is known to 5 %


def test_standard_error_of_a_collapsed_generator_is_zero(rng: torch.Generator) -> None:
    same = torch.ones(50, 8, dtype=torch.float64)
    real = rooted(fit(sample(500, 8, rng)))
    assert frechet_standard_error(real, fit(same), same, torch.zeros(50)) == pytest.approx(0, abs=1e-9)


def test_extrapolation_is_less_biased_than_the_plain_distance(rng: torch.Generator) -> None:
    real = rooted(fit(sample(20_000, 16, rng)))
    truth = frechet_distance(real, fit(sample(200_000, 16, rng, shift=0.1)))
    draws = [sample(200, 16, rng, shift=0.1) for _ in range(60)]
    plain = torch.tensor([frechet_distance(real, fit(draw)) for draw in draws]).mean()
    labels = torch.zeros(200)
    extrapolated = [frechet_extrapolated(real, frechet_distance(real, fit(draw)), draw, labels) for draw in draws]
    assert abs(torch.tensor(extrapolated).mean() - truth) < 0.25 * abs(plain - truth)


def test_halves_share_every_class_evenly_and_hold_each_row_once(rng: torch.Generator) -> None:
    labels = torch.randint(7, (101,), generator=rng)
    one, other = halves(labels)
    assert torch.cat([one, other]).sort().values.tolist() == list(range(101))
    difference = torch.bincount(labels[one], minlength=7) - torch.bincount(labels[other], minlength=7)
    assert int(difference.abs().max()) <= 1
