"""What a reviewer asks of a table: intervals, paired differences, corrected p-values. Training seeds are the unit.

Pure functions of finite numbers; nothing here knows of a store or a figure.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats

Key = TypeVar("Key")


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds. One seed has no spread, so `sd` (ddof 1) and `half_width` are None there."""

    mean: float
    sd: float | None
    half_width: float | None  # of the t interval
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.half_width is not None and abs(self.mean) > self.half_width


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate | None:
    """Mean and t interval; None for no values. The t interval assumes roughly normal seeds and holds at small n."""
    array = np.asarray(values, dtype=float)
    assert np.isfinite(array).all(), "drop missing values first, and show how many"
    n = array.size
    if n == 0:
        return None
    if n == 1:
        return Estimate(float(array[0]), None, None, 1)
    sd = float(array.std(ddof=1))
    half_width = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return Estimate(float(array.mean()), sd, half_width, n)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """Variant minus baseline over the seeds that both have; what a seed does to both arms cancels."""
    shared = sorted(values.keys() & baseline.keys())
    return estimate([values[seed] - baseline[seed] for seed in shared])


def p_value(difference: Estimate) -> float | None:
    """Two-sided paired t test of "no difference"; None below three pairs, where it has next to no power."""
    if difference.sd is None or difference.n < 3:
        return None
    if difference.sd == 0:
        return 1.0 if difference.mean == 0 else 0.0
    t = difference.mean / (difference.sd / math.sqrt(difference.n))
    return float(2 * stats.t.sf(abs(t), difference.n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979), in the order given: a claim over k comparisons keeps its error rate."""
    order = np.argsort(p_values)
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def corrected(differences: Mapping[Key, Estimate | None]) -> dict[Key, float]:
    """Holm-corrected p-values of the differences that can be tested, as one family."""
    found = {key: p for key, gap in differences.items() if gap is not None and (p := p_value(gap)) is not None}
    return dict(zip(found, holm(list(found.values())), strict=True))


def probability_of_improvement(values: Sequence[float], baseline: Sequence[float]) -> float | None:
    """P(a run of the variant scores below a run of the baseline), ties half, over all pairs of runs.

    Agarwal et al. 2021 (Deep RL at the Edge of the Statistical Precipice), section 4.3, for scores where lower is
    better. None where either side is empty.
    """
    if not len(values) or not len(baseline):
        return None
    gap = np.subtract.outer(np.asarray(values, dtype=float), np.asarray(baseline, dtype=float))
    return float((gap < 0).mean() + (gap == 0).mean() / 2)


def seeds_needed(difference: Estimate, power: float = 0.8, alpha: float = 0.05, limit: int = 1000) -> int | None:
    """Fewest pairs with which a paired t test finds a difference of this size and spread with this power.

    Takes the observed effect for the true one, so it is a planning figure. None where there is no spread to go by
    or more than `limit` would be needed.
    """
    if difference.sd is None or difference.mean == 0:
        return None
    if difference.sd == 0:
        return 2
    effect = abs(difference.mean) / difference.sd

    def reached(n: int) -> bool:
        # The chance of a significant result in the wrong direction is left out: it only matters for hopeless n.
        threshold = stats.t.ppf(1 - alpha / 2, n - 1)
        return bool(stats.nct.sf(threshold, n - 1, effect * math.sqrt(n)) >= power)

    found = bisect.bisect_left(range(2, limit + 1), True, key=reached) + 2  # power grows with n
    return found if found <= limit else None
