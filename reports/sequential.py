"""When a comparison has enough seeds: looks at more and more of them, with one error rate for all looks together.

Pure functions of recorded scores; `ablations` asks which cells to run next, `reports` what they show, and both replay
the same looks. At a look each pair (variant, reference) is *better*, *worse*, *equivalent* or *undecided*. A variant
all of whose pairs are decided gets no more seeds; a reference gets as many as its undecided variants have.

The statistic is that of `reports.statistics`: |difference of means| / standard error. Looking often gives chance more
opportunities, so the critical value of a look is higher than that of a single test: under "no difference", simulated
with exactly these looks and pairs, 5 % of the studies exceed a critical value at any look for any pair. At each look
the same share of them does (as in Pocock 1977). Difference +- critical value x standard error are then repeated
confidence intervals (Jennison and Turnbull 2000, chapter 9): all of them, at all looks, hold the truth together with
95 % probability, so they are valid whenever one stops and for whatever reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reports import statistics
from reports.statistics import SIGNIFICANT, Array, Gap

LOOKS = (3, 4, 5, 6, 8, 10, 12)
FEWEST = 3  # scores of a variant that are tested: with two its spread is hardly known
_DRAWS = 20_000  # the error rate at 5 % is then known to 0.15 %

Pair = tuple[str, str]  # variant, reference
Label = Literal["better", "worse", "equivalent", "undecided"]


def looks(first: int, most: int) -> tuple[int, ...]:
    """Numbers of seeds at which a study is looked at: `first`, `most`, and between them LOOKS, beyond 12 every second.

    ValueError unless 3 <= first <= most.
    """
    if first < FEWEST:
        raise ValueError(f"first: must be {FEWEST} or more, got {first}; with fewer seeds their spread is hardly known")
    if most < first:
        raise ValueError(f"most: must be first ({first}) or more, got {most}")
    between = (*LOOKS, *range(LOOKS[-1] + 2, most, 2))
    return tuple(sorted({first, most, *(n for n in between if first < n < most)}))


@dataclass(frozen=True)
class Rule:
    """How a study is decided, fixed before its first seed.

    `margin` is the difference that does not matter: 0.1 is 10 %. With `log`, scores are compared as ratios, and a pair
    is equivalent where its interval lies within 1 / (1 + margin) and 1 + margin; that is the same whichever of the two
    is the reference. Otherwise where it lies within `margin` times the |mean| of the reference. None: nothing is ever
    equivalent.
    """

    looks: tuple[int, ...]
    pairs: tuple[Pair, ...]
    margin: float | None
    log: bool


@dataclass(frozen=True)
class Look:
    """What `n` seeds say of every pair that was undecided before; pairs with too few scores are left out."""

    n: int
    gaps: dict[Pair, Gap]


@dataclass(frozen=True)
class Verdict:
    """`gap` and `n`, the number of seeds, are those of the decision, or of the last look of an undecided pair."""

    label: Label
    n: int
    gap: Gap | None


@dataclass(frozen=True)
class Progress:
    """`wanted` has (variant, index of its seed) of every cell that the next look lacks, seed by seed.

    It is empty when all pairs are decided or the last look has been held.
    """

    looks: list[Look]
    verdicts: dict[Pair, Verdict]
    wanted: list[tuple[str, int]]


def replay(scores: Mapping[str, Sequence[float | None]], rule: Rule, lower_is_better: bool) -> Progress:
    """All looks that these scores allow, one after the other.

    `scores` has a variant's cells in the order of its seeds, up to the first that has not ended: its score, above 0
    with `rule.log`, or None where the cell ended without one. The result is a function of these alone, and no score
    beyond the look at which a variant stopped changes it: so it does not matter who ran the cells, and when.
    ValueError for a score that is not finite, or not above 0 where logs are compared.
    """
    names = [name for name in scores if any(name in pair for pair in rule.pairs)]
    missing = {name for pair in rule.pairs for name in pair} - set(names)
    if missing:
        raise ValueError(f"scores: must have every variant of the pairs, lacks {', '.join(sorted(missing))}")
    _check(scores, rule)
    weights = np.array([[(name == v) - (name == r) for name in names] for v, r in rule.pairs], dtype=float)
    boundary = _boundary(rule.looks, tuple(map(tuple, weights.tolist())))
    used = dict.fromkeys(names, 0)  # seeds that a variant had at its last look
    verdicts = {pair: Verdict("undecided", 0, None) for pair in rule.pairs}
    held: list[Look] = []
    for n in rule.looks:
        undecided = [pair for pair, verdict in verdicts.items() if verdict.label == "undecided"]
        needed = [name for name in names if any(name in pair for pair in undecided)]
        wanted = [(name, seed) for seed in range(n) for name in needed if seed >= len(scores[name])]
        if wanted or not undecided:
            return Progress(held, verdicts, wanted)
        used |= dict.fromkeys(needed, n)
        found = {name: [score for score in scores[name][: used[name]] if score is not None] for name in names}
        held.append(Look(n, _gaps(found, rule, boundary, weights, undecided)))
        for pair, gap in held[-1].gaps.items():
            verdicts[pair] = Verdict(_label(gap, _margin(found[pair[1]], rule), lower_is_better), n, gap)
    return Progress(held, verdicts, [])


def _check(scores: Mapping[str, Sequence[float | None]], rule: Rule) -> None:
    for name, own in scores.items():
        for score in own:
            if score is not None and not (math.isfinite(score) and (score > 0 or not rule.log)):
                must = "finite and above 0, as ratios are compared" if rule.log else "finite"
                raise ValueError(f"{name}: a score must be {must}, got {score}; give None for a cell without a score")


def _margin(reference: Sequence[float], rule: Rule) -> float | None:
    if rule.margin is None:
        return None
    return math.log1p(rule.margin) if rule.log else rule.margin * abs(float(np.mean(reference)))


def _label(gap: Gap, margin: float | None, lower_is_better: bool) -> Label:
    """Equivalence comes first: a difference that is there and does not matter is no reason for more seeds."""
    assert gap.low is not None and gap.high is not None
    if margin is not None and -margin <= gap.low and gap.high <= margin:
        return "equivalent"
    if gap.low <= 0 <= gap.high:
        return "undecided"
    return "better" if (gap.value < 0) == lower_is_better else "worse"


def _gaps(
    found: Mapping[str, Sequence[float]],
    rule: Rule,
    boundary: tuple[Array, Array],
    weights: Array,
    undecided: Sequence[Pair],
) -> dict[Pair, Gap]:
    null, worst = boundary
    groups = [np.log(own) if rule.log else np.asarray(own, dtype=float) for own in found.values()]
    sizes = np.array([own.size for own in groups])
    means = np.array([own.mean() if own.size else 0.0 for own in groups])
    variances = np.array([[own.var(ddof=1) if own.size > 1 else 0.0 for own in groups]])
    errors = statistics._standard_errors(variances, np.maximum(sizes, 1).tolist(), weights)[0]
    gaps = {}
    for place, pair in enumerate(rule.pairs):
        n = int(sizes[weights[place] != 0].min())
        if pair not in undecided or n < max(FEWEST, rule.looks[0]):
            continue
        row = null[np.searchsorted(rule.looks, n, side="right") - 1]  # of the last look that both sides have scores for
        value, error = float(weights[place] @ means), float(errors[place])
        half = _critical(row, worst) * error
        gaps[pair] = Gap(value, value - half, value + half, _p(value, error, row, worst), n, rule.log)
    return gaps


def _critical(row: Array, worst: Array) -> float:
    level = worst[round(SIGNIFICANT * worst.size) - 1]
    return float(row[-round(level * row.size)])


def _p(value: float, error: float, row: Array, worst: Array) -> float:
    """Share of simulated studies in which some look shows as much as this one does; never 0."""
    statistic = abs(value) / error if error > 0 else (0.0 if value == 0 else math.inf)
    level = (row.size - int(np.searchsorted(row, statistic, side="left"))) / row.size
    return (int(np.searchsorted(worst, level, side="right")) + 1) / (worst.size + 1)


@lru_cache(maxsize=64)
def _boundary(looks: tuple[int, ...], key: tuple[tuple[float, ...], ...]) -> tuple[Array, Array]:
    """Of simulated studies without any difference: [looks, studies] largest |statistic|, sorted, and what is rarest.

    The second, sorted too, is how rare each study's most remarkable look is: the share of studies that have as large a
    statistic at this look.
    """
    rng = np.random.default_rng(0)  # the same for all, so that a verdict is the same wherever it is drawn
    weights = np.array(key)
    scores = rng.standard_normal((_DRAWS, weights.shape[1], looks[-1]), dtype=np.float32)
    largest = np.array([_largest(scores[:, :, :n], weights) for n in looks])
    ranks = largest.argsort(1).argsort(1)
    worst = ((_DRAWS - ranks) / _DRAWS).min(0)
    return np.sort(largest, 1), np.sort(worst)


def _largest(scores: NDArray[np.float32], weights: Array) -> Array:
    variances = scores.var(2, ddof=1, dtype=np.float64)
    errors = statistics._standard_errors(variances, [scores.shape[2]] * scores.shape[1], weights)
    return np.asarray((np.abs(scores.mean(2, dtype=np.float64) @ weights.T) / errors).max(1))
