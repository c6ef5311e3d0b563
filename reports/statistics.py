"""Means with intervals, comparisons of variants, and their power. The unit is a training seed.

Pure functions of finite numbers, except `shipped_noise`; nothing here knows of a store or a figure, so `ablations` may
import this module, too.

One test gives every p-value and interval: |contrast of means| / standard error, for all comparisons of a study
together. The variance is pooled over the variants, as in Dunnett's test (1955). The critical value is that of the
largest statistic of studies without any difference, by seeded simulation, so it holds for any n and any contrasts. With
equal n and one baseline the pooled form equals `scipy.stats.dunnett` (tests/reports/test_statistics.py).

A pooled variance is wrong where one variant is noisier than the others. Standard errors therefore use each variant's
own variance as well, and grow where a single variant has most of a contrast's (`standard_errors`). Measured on 40,000
simulated studies per row, comparisons with a baseline, in per cent, in brackets Dunnett's test as it is: the chance of
any false claim with equal sds, and with the baseline's or one variant's sd three times the others'; then the power for
one true effect of 2 and of 3 sd over seeds.

    variants, n    equal   baseline x3   variant x3      2 sd         3 sd
    4, 3             5.0    6.9 (13.5)    5.1  (9.5)   31.1 (40.1)  62.0 (77.2)
    8, 3             4.8    6.8 (21.3)    4.5 (11.6)   24.4 (35.6)  53.7 (76.5)
    4, 5             5.2    5.3 (12.5)    4.0  (8.4)   66.5 (70.8)  95.9 (97.6)
    8, 5             5.0    4.9 (21.3)    3.6 (11.1)   57.6 (66.1)  92.6 (97.1)
    4, 8             5.0    4.2 (12.2)    3.2  (7.8)   92.0 (93.1)  99.9  (100)
    8, 8             4.6    2.9 (21.2)    2.5 (10.6)   86.4 (90.0)  99.8 (99.9)
    4, 2             5.2    9.9 (12.5)    6.6  (9.1)   16.0 (19.2)  32.8 (41.8)

So with three seeds or more the chance of a false claim is 5 % +- 1 with equal sds and at most 7 % with unequal ones;
with two it is up to 9.9 %. With three seeds the correction costs much power, from five on little. An interval misses as
often as the test makes a false claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from reports.metrics import metric

SIGNIFICANT = 0.05  # chance of any false claim among a study's comparisons
POWER = 0.8
_OWN = 0.6  # weight of a variant's own variance beside the pooled one: chosen by simulation, as the limits are
_DRAWS = 50_000  # the error rate at 5 % is then known to 0.1 %

Array = NDArray[np.float64]
Contrast = Mapping[str, float]  # weights of the variants' means, adding up to 0; a pair is {variant: 1, reference: -1}


def on_log_scale(key: str, scores: Iterable[float] = ()) -> bool:
    """Whether these scores of a metric are compared by their logarithms, as ratios: the metric is (reports/metrics.py),
    and none of them is 0 or less."""
    return metric(key).ratio and all(score > 0 for score in scores)


def lower_is_better(key: str) -> bool | None:
    """The better direction of a metric; None where neither is."""
    return metric(key).lower


def run_score(key: str, values: Sequence[float]) -> float:
    """The score of a run from its last evaluations: their mean, geometric where the metric is compared as a ratio."""
    array = np.asarray(values, dtype=float)
    if len(array) == 1:
        return float(array[0])  # the exponential of a logarithm has other last digits
    return float(np.exp(np.log(array).mean()) if on_log_scale(key, array) else array.mean())


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds with its own 95 % t interval, from `low` to `high`; one seed has no `sd` and no interval.

    With `log`, the geometric mean, the interval of the mean log turned back (so it is asymmetric and above 0), and the
    sd of the log (ddof 1).
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int


def estimate(values: Sequence[float], log: bool = False) -> Estimate | None:
    """The mean with its interval; None for no values. `log` needs values above 0. The interval assumes normal seeds."""
    array = np.asarray(values, dtype=float)
    assert np.isfinite(array).all(), "drop missing values first, and show how many"
    n = array.size
    if n == 0:
        return None
    array = np.log(array) if log else array
    back = math.exp if log else float
    mean = float(array.mean())
    if n == 1:
        return Estimate(back(mean), None, None, None, 1)
    sd = float(array.std(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return Estimate(back(mean), sd, back(mean - half), back(mean + half), n)


@dataclass(frozen=True)
class Gap:
    """One comparison: the contrast of means, its simultaneous 95 % interval and its adjusted p-value.

    With `log` all three are of the mean log: exp of them is a ratio. `low`, `high` and `p` are None where a variant
    has one seed. `n` is the number of seeds of the side that has fewer.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    log: bool = False

    @property
    def shown(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT

    def verdict(self, lower_is_better: bool | None) -> str:
        """By the one test of a study whose seeds are a list; lower or higher where neither direction is better."""
        if not self.shown:
            return "undecided"
        if lower_is_better is None:
            return "lower" if self.value < 0 else "higher"
        return "better" if (self.value < 0) == lower_is_better else "worse"


def compare(
    values: Mapping[str, Sequence[float]], contrasts: Sequence[Contrast], log: bool = False
) -> list[Gap | None]:
    """Every contrast of the variants' means, tested as one family; None where a variant of it has no values.

    A variant with one seed is shown and not tested: one seed gives no estimate of the spread over seeds.

    `values` maps a variant to its seeds' scores, above 0 with `log`. Variants outside the contrasts add to the pooled
    variance alone.
    """
    found = {name: np.log(own) if log else np.asarray(own, dtype=float) for name, own in values.items() if len(own)}
    fewest = [min(found[name].size if name in found else 0 for name in contrast) for contrast in contrasts]
    weights = _matrix([contrast for contrast, n in zip(contrasts, fewest, strict=True) if n > 1], list(found))
    sizes = tuple(own.size for own in found.values())
    variances = np.array([[own.var(ddof=1) if own.size > 1 else 0.0 for own in found.values()]])
    errors = iter(standard_errors(variances, np.array(sizes), weights)[0] if len(weights) else ())
    gaps: list[Gap | None] = []
    for contrast, n in zip(contrasts, fewest, strict=True):
        if n == 0:
            gaps.append(None)
            continue
        gap = Gap(
            float(sum(weight * found[name].mean() for name, weight in contrast.items())), None, None, None, n, log
        )
        if n > 1:
            error, null = float(next(errors)), _null(sizes, _key(weights))
            half = _critical(null) * error
            gap = replace(gap, low=gap.value - half, high=gap.value + half, p=_p(gap.value, error, null))
        gaps.append(gap)
    return gaps


def pair(variant: str, reference: str) -> Contrast:
    """The contrast "variant minus reference"."""
    return {variant: 1.0, reference: -1.0}


def pooled_sd(values: Sequence[Sequence[float]], log: bool = False) -> float | None:
    """Sd over seeds within a variant, pooled over variants, of the logs with `log`; None where none has two seeds."""
    groups = [np.log(own) if log else np.asarray(own, dtype=float) for own in values if len(own) > 1]
    freedom = sum(own.size - 1 for own in groups)
    return math.sqrt(sum(float(own.var(ddof=1)) * (own.size - 1) for own in groups) / freedom) if freedom else None


def minimum_detectable_effect(sizes: Mapping[str, int], contrasts: Sequence[Contrast]) -> float | None:
    """The smallest true effect that every one of the contrasts shows with 80 % power, in sds over seeds.

    Each contrast in turn has the effect, while the others have none; `sizes` maps a variant to its number of seeds.
    Found by simulating the same test with equal variances. Contrasts of a variant with one seed are left out; None
    where none is left.
    """
    sizes = {name: n for name, n in sizes.items() if n}
    usable = [contrast for contrast in contrasts if all(sizes.get(name, 0) > 1 for name in contrast)]
    numbers = tuple(sizes.values())
    if not usable:
        return None
    return _minimum_detectable_effect(numbers, _key(_matrix(usable, list(sizes))))


def effect_of_power(power: Callable[[float], float], start: float, xtol: float) -> float:
    """The effect that is shown with 80 % power, searched from `start` up to a million times it."""
    high = start
    while power(high) < POWER and high < 1e6 * start:
        high *= 2
    if high >= 1e6 * start:
        return high
    return float(optimize.brentq(lambda effect: POWER - power(effect), 0.0, high, xtol=xtol))


def changed(size: float, log: bool) -> str:
    """A difference in words: "lowered by 45 % or raised by 82 %, or more" for a distance of logs."""
    if not log:
        return f"changed by {size:.2g} or more"
    return f"lowered by {-100 * math.expm1(-size):.0f} % or raised by {100 * math.expm1(min(size, 20)):.0f} %, or more"


def probability_of_improvement(values: Sequence[float], baseline: Sequence[float]) -> float | None:
    """P(a run of the variant scores below a run of the baseline), ties half, over all pairs of runs.

    Agarwal et al. 2021 (Deep RL at the Edge of the Statistical Precipice), section 4.3, for scores where lower is
    better. None where either side is empty.
    """
    if not len(values) or not len(baseline):
        return None
    gap = np.subtract.outer(np.asarray(values, dtype=float), np.asarray(baseline, dtype=float))
    return float((gap < 0).mean() + (gap == 0).mean() / 2)


def shipped_noise(preset: str, metric: str) -> float | None:
    """Sd over seeds of the log of a metric at a preset, from reports/noise.yaml; None where it has none."""
    from ruamel.yaml import YAML

    text = files("reports").joinpath("noise.yaml").read_text(encoding="utf-8")
    found = YAML(typ="safe", pure=True).load(text)
    entry = found.get(preset, {}).get(metric)
    return None if entry is None else float(entry["sd_of_log"])


def standard_errors(variances: Array, sizes: NDArray[np.integer], weights: Array) -> Array:
    """Standard errors of contrasts, [N, contrasts], from variances [N, variants], sizes [variants] or [N, variants].

    A variant's variance is taken as _OWN of its own and the rest of the pooled one, in the manner of Smyth 2004
    (moderated t). Where the variance that one variant alone adds to a contrast, over the pooled variance of that
    contrast, exceeds a limit, the squared error is multiplied by (this ratio / the limit): with three seeds a sample
    variance is often far too small, so the excess may be the only sign that the variant is noisier.
    """
    freedom = sizes - 1
    pooled = ((variances * freedom).sum(-1) / np.maximum(freedom.sum(-1), 1))[:, None]
    moderated = np.where(freedom > 0, (1 - _OWN) * pooled + _OWN * variances, pooled)
    plain = pooled * ((1 / sizes) @ (weights**2).T)
    growth = np.ones_like(plain)
    limits = 1 - 1.6 / np.maximum(freedom, 2) ** 2  # 0.6 with three seeds, 1 with many
    with np.errstate(divide="ignore", invalid="ignore"):  # no variance at all: 0 / 0
        shares = np.where(freedom > 0, variances / sizes / limits, 0.0)
        for place, row in enumerate(weights):
            for variant in np.flatnonzero(row):
                share = row[variant] ** 2 * shares[:, variant] / plain[:, place]
                growth[:, place] = np.fmax(growth[:, place], share)
    return np.asarray(np.sqrt((moderated / sizes) @ (weights**2).T * growth))


def _p(gap: float, error: float, null: Array) -> float:
    """Share of simulated studies without a difference whose largest statistic is as large; never 0."""
    statistic = abs(gap) / error if error > 0 else (0.0 if gap == 0 else math.inf)
    beyond = null.size - int(np.searchsorted(null, statistic, side="left"))
    return (beyond + 1) / (null.size + 1)


def _critical(null: Array) -> float:
    """A statistic above it has a p below SIGNIFICANT, so an interval excludes 0 where the p-value says so."""
    return float(null[-round(SIGNIFICANT * null.size)])


def _matrix(contrasts: Sequence[Contrast], names: Sequence[str]) -> Array:
    return np.array([[contrast.get(name, 0.0) for name in names] for contrast in contrasts])


Key = tuple[tuple[float, ...], ...]


def _key(weights: Array) -> Key:
    return tuple(map(tuple, weights.tolist()))


def _simulated(sizes: tuple[int, ...], weights: Array) -> tuple[Array, Array]:
    """Contrasts [draws, contrasts] and their standard errors, of studies without any difference and an sd of 1."""
    rng = np.random.default_rng(0)  # the same for all, so that a report is the same whenever it is built
    n = np.asarray(sizes, dtype=float)
    means = rng.standard_normal((_DRAWS, n.size)) / np.sqrt(n)
    freedom = n - 1
    variances = 2 * rng.standard_gamma(freedom / 2, (_DRAWS, n.size)) / np.maximum(freedom, 1)
    return means @ weights.T, standard_errors(variances, np.array(sizes), weights)


@lru_cache(maxsize=256)
def _null(sizes: tuple[int, ...], key: Key) -> Array:
    """The largest |statistic| of each simulated study, sorted."""
    gaps, errors = _simulated(sizes, np.array(key))
    return np.sort((np.abs(gaps) / errors).max(1))


@lru_cache(maxsize=256)
def _minimum_detectable_effect(sizes: tuple[int, ...], key: Key) -> float:
    critical = _critical(_null(sizes, key))
    gaps, errors = _simulated(sizes, np.array(key))

    def power(effect: float) -> float:
        return float((np.abs(gaps + effect) > critical * errors).mean(0).min())

    return effect_of_power(power, start=1.0, xtol=1e-3)
