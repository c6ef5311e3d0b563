"""The test behind every claim, against closed forms, scipy's Dunnett test and simulated studies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from reports import statistics
from reports.statistics import compare, estimate, minimum_detectable_effect, pair, pooled_sd


def baseline_pairs(count: int) -> list[statistics.Contrast]:
    return [pair(f"v{k}", "v0") for k in range(1, count)]


def test_an_estimate_is_the_t_interval_of_the_values_or_of_their_logs() -> None:
    values = [3.0, 5.0, 4.0, 9.0]
    plain, log = estimate(values), estimate(values, log=True)
    assert plain is not None and log is not None
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (plain.mean, plain.low, plain.high) == pytest.approx((np.mean(values), *expected))
    logs = np.log(values)
    expected = np.exp(stats.t.interval(0.95, 3, logs.mean(), stats.sem(logs)))
    assert (log.mean, log.low, log.high) == pytest.approx((stats.gmean(values), *expected))
    assert estimate([]) is None and estimate([2.0], log=True) == statistics.Estimate(2.0, None, None, None, 1)


def test_with_a_pooled_variance_it_is_dunnetts_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def pooled(variances: np.ndarray, sizes: tuple[int, ...], weights: np.ndarray) -> np.ndarray:
        n = np.array(sizes, dtype=float)
        return np.sqrt(np.outer(variances @ (n - 1) / (n - 1).sum(), (weights**2 / n).sum(1)))

    monkeypatch.setattr(statistics, "standard_errors", pooled)
    statistics._null.cache_clear()
    rng = np.random.default_rng(5)
    groups = {f"v{k}": rng.normal(0.8 * k, 1, 4).tolist() for k in range(4)}
    gaps = compare(groups, baseline_pairs(4))
    theirs = stats.dunnett(*list(groups.values())[1:], control=groups["v0"], random_state=np.random.default_rng(0))
    interval = theirs.confidence_interval(0.95)
    statistics._null.cache_clear()
    for place, gap in enumerate(gaps):
        assert gap is not None and gap.p is not None
        assert gap.p == pytest.approx(theirs.pvalue[place], abs=0.005)
        assert (gap.low, gap.high) == pytest.approx((interval.low[place], interval.high[place]), abs=0.05)


def error_rate(sizes: tuple[int, ...], sds: list[float], studies: int = 20_000) -> float:
    """Share of studies without any difference in which some comparison with the first variant is claimed."""
    rng = np.random.default_rng(23)
    n, sd = np.array(sizes), np.array(sds)
    weights = np.eye(len(sizes))[1:] - np.eye(len(sizes))[0]
    means = rng.normal(size=(studies, n.size)) * sd / np.sqrt(n)
    variances = rng.chisquare(n - 1, size=(studies, n.size)) / (n - 1) * sd**2
    errors = statistics.standard_errors(variances, n, weights)
    critical = statistics._critical(statistics._null(sizes, statistics._key(weights)))
    return float((np.abs(means @ weights.T) > critical * errors).any(1).mean())


DESIGNS = [(3,) * 4, (3,) * 8, (5,) * 4, (8,) * 4, (6, 3, 3, 3)]


@pytest.mark.parametrize("sizes", DESIGNS, ids=str)
def test_a_false_claim_is_made_in_5_percent_of_studies_and_in_7_where_one_variant_is_noisy(
    sizes: tuple[int, ...],
) -> None:
    # 20,000 studies know a rate of 5 % to 0.15 %; an interval misses as often as a claim is false.
    others = [1.0] * (len(sizes) - 1)
    assert error_rate(sizes, [1.0, *others]) == pytest.approx(0.05, abs=0.01)
    assert error_rate(sizes, [3.0, *others]) < 0.075
    assert error_rate(sizes, [1.0, 3.0, *others[1:]]) < 0.075


def test_the_minimum_detectable_effect_is_found_in_four_of_five_studies() -> None:
    sizes = {f"v{k}": 5 for k in range(4)}
    effect = minimum_detectable_effect(sizes, baseline_pairs(4))
    assert effect is not None
    rng, found = np.random.default_rng(2), 0
    for _ in range(1000):
        groups = {name: rng.normal(0, 1, n) for name, n in sizes.items()}
        groups["v1"] = groups["v1"] + effect
        (gap, *_) = compare({name: own.tolist() for name, own in groups.items()}, baseline_pairs(4))
        found += gap is not None and gap.shown
    assert found / 1000 == pytest.approx(0.8, abs=0.05)
    assert minimum_detectable_effect({"v0": 1, "v1": 1}, baseline_pairs(2)) is None


def test_ratios_do_not_depend_on_the_unit_of_the_score() -> None:
    groups = {"v0": [4.0, 5.0, 6.0], "v1": [2.0, 3.0, 2.5]}
    (gap,) = compare(groups, baseline_pairs(2), log=True)
    (scaled,) = compare({name: [100 * value for value in own] for name, own in groups.items()}, baseline_pairs(2), True)
    assert gap is not None and scaled is not None
    assert (gap.value, gap.p) == pytest.approx((scaled.value, scaled.p))
    assert math.exp(gap.value) == pytest.approx(stats.gmean(groups["v1"]) / stats.gmean(groups["v0"]))


def test_what_has_one_seed_is_shown_and_not_tested() -> None:
    groups = {"v0": [4.0, 5.0, 6.0], "v1": [1.0], "v2": [9.0, 8.0, 9.5]}
    lonely, tested, absent = compare(groups, [pair("v1", "v0"), pair("v2", "v0"), pair("v3", "v0")])
    assert lonely is not None and (lonely.value, lonely.p, lonely.n) == (-4.0, None, 1)
    assert tested is not None and tested.p is not None and absent is None


@pytest.mark.parametrize("low, shown", [(4.0, False), (3.0, True)])
def test_scores_without_any_spread_differ_or_do_not(low: float, shown: bool) -> None:
    (gap,) = compare({"v0": [4.0, 4.0, 4.0], "v1": [low] * 3}, baseline_pairs(2))
    assert gap is not None and gap.shown is shown


def test_the_pooled_sd_is_within_variants() -> None:
    assert pooled_sd([[1.0, 3.0], [11.0, 13.0], [5.0]]) == pytest.approx(math.sqrt(2))
    assert pooled_sd([[1.0]]) is None


@pytest.mark.parametrize("preset, metric", [("embedded", "nothing"), ("nothing", "relation_error")])
def test_the_noise_of_what_was_never_measured_is_unknown(preset: str, metric: str) -> None:
    assert statistics.shipped_noise(preset, metric) is None


@pytest.mark.parametrize("values, expected", [([1, 2], 1.0), ([5, 6], 0.0), ([3, 4], 0.5)])
def test_the_probability_of_improvement_counts_pairs_of_runs(values: list[float], expected: float) -> None:
    assert statistics.probability_of_improvement(values, [3, 4]) == expected
