from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports.statistics import (
    Estimate,
    estimate,
    holm,
    p_value,
    paired_difference,
    probability_of_improvement,
    seeds_needed,
)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_cover_the_truth_in_95_percent_of_2000_studies(n: int) -> None:
    rng = np.random.default_rng(20)
    baseline, variant = rng.normal(20, 3, (2, 2000, n))
    luck = rng.normal(0, 5, (2000, n))  # of a seed, in both arms
    covered = 0
    for first, second in zip(baseline + luck, variant + luck - 2, strict=True):
        found = paired_difference(dict(enumerate(second)), dict(enumerate(first)))
        assert found is not None and found.half_width is not None
        covered += abs(found.mean + 2) <= found.half_width
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


def test_paired_difference_and_p_equal_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 6))
    expected = stats.ttest_rel(one, other)
    interval = expected.confidence_interval(0.95)
    found = paired_difference(dict(enumerate(one)), dict(enumerate(other)))
    assert found is not None and found.half_width is not None
    assert p_value(found) == pytest.approx(expected.pvalue)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(tuple(interval))


def test_only_seeds_that_both_arms_finished_are_paired() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 7: 100.0}, {0: 2.0, 1: 4.0, 3: -50.0})
    assert found is not None
    assert (found.mean, found.n) == (-1.5, 2)


def test_one_seed_has_no_interval_and_no_test() -> None:
    found = estimate([3.5])
    assert found == Estimate(3.5, None, None, 1)
    assert p_value(found) is None and seeds_needed(found) is None and not found.excludes_zero
    assert estimate([]) is None
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_two_pairs_have_an_interval_but_no_p() -> None:
    found = estimate([1.0, 1.2])
    assert found is not None and found.half_width is not None and p_value(found) is None


def test_holm_multiplies_step_by_step_and_never_decreases() -> None:
    # By hand: 3 x 0.01; 2 x 0.03; max(0.06, 1 x 0.04).
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_probability_of_improvement_is_the_mann_whitney_statistic() -> None:
    rng = np.random.default_rng(1)
    variant, baseline = rng.integers(0, 6, (2, 8)).astype(float)
    expected = stats.mannwhitneyu(baseline, variant).statistic / 64
    assert probability_of_improvement(list(variant), list(baseline)) == pytest.approx(expected)
    assert probability_of_improvement([], [1.0]) is None


@pytest.mark.parametrize("effect, n", [(0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5)])
def test_seeds_needed_equals_the_tables_of_the_paired_t_test(effect: float, n: int) -> None:
    # Two-sided, alpha 0.05, power 0.8: the sample sizes that power tables and G*Power give.
    assert seeds_needed(Estimate(-effect, 1.0, 1.0, 3)) == n


def test_a_difference_too_small_for_any_budget_needs_no_stated_number_of_seeds() -> None:
    assert seeds_needed(Estimate(0.001, 1.0, 1.0, 3)) is None
    assert seeds_needed(Estimate(0.0, 1.0, 1.0, 3)) is None
