"""When a comparison has enough seeds: looks at more and more of them, with one error rate for all looks together.

Pure functions of recorded scores; `ablations` asks which cells to run next, `reports` what they show, and both replay
the same looks. At a look each pair (variant, reference) is *better*, *worse*, *equivalent* or *undecided*. A variant
gets more seeds while a pair of it is open: undecided, and with a chance to be decided by the last look (`_hope`).

The statistic is that of `reports.statistics`: |difference of means| / standard error. Who looks often is misled by
chance more often, so a look's critical value is higher than that of a single test: of studies without any difference,
simulated with exactly these looks and pairs, 4.5 % exceed a critical value at some look for some pair. (4.5 and not 5:
with unequal sds it is up to half as much more.) The share that may exceed it at one look grows with its seeds
(`_GROWTH`). Difference +- critical value x standard error are then repeated confidence intervals (Jennison and Turnbull
2000, Group Sequential Methods, chapter 9): all of them, at all looks, hold the truth together with 95 % probability, so
they are valid whenever one stops and for whatever reason. reports/README.md has what simulation says of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reports.statistics import SIGNIFICANT, Array, Gap, standard_errors

LOOKS = (3, 4, 5, 6, 8, 10, 12)
FEWEST = 3  # scores of a variant that are tested: with two its spread is hardly known
_LEVEL = 0.045  # chance of any false claim with equal sds: leaves room for sds that differ (at most 7 %)
_GROWTH = 1.5  # the share that may exceed at a look is as seeds ** _GROWTH: by simulation, for power at 1.5 to 2 sd
_DRAWS = 20_000  # the error rate is then known to 0.15 %

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Pair = tuple[str, str]  # variant, reference
Label = Literal["undecided", "better", "worse", "equivalent"]
LABELS: tuple[Label, ...] = ("undecided", "better", "worse", "equivalent")


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
    """What `n` seeds say of every pair that was open before; pairs with too few scores are left out."""

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

    It is empty when no pair is open or the last look has been held.
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
    if missing := {name for pair in rule.pairs for name in pair} - set(names):
        raise ValueError(f"scores: must have every variant of the pairs, lacks {', '.join(sorted(missing))}")
    table = np.full((1, len(names), rule.looks[-1]), np.nan)
    for place, name in enumerate(names):
        for seed, score in enumerate(scores[name][: rule.looks[-1]]):
            if score is not None and not (math.isfinite(score) and (score > 0 or not rule.log)):
                must = "finite and above 0, as ratios are compared" if rule.log else "finite"
                raise ValueError(f"{name}: a score must be {must}, got {score}; give None for a cell without a score")
            table[0, place, seed] = math.nan if score is None else math.log(score) if rule.log else score
    ended = np.array([[len(scores[name]) for name in names]])
    verdicts = {pair: Verdict("undecided", 0, None) for pair in rule.pairs}
    held: list[Look] = []
    still = list(rule.pairs)
    for look in _course(table, ended, rule, names, lower_is_better):
        gaps = {pair: look.gap(place, rule.log) for place, pair in enumerate(rule.pairs) if look.tested[0, place]}
        held.append(Look(look.n, gaps))
        verdicts |= {
            pair: Verdict(LABELS[look.labels[0, place]], look.n, gaps[pair])
            for place, pair in enumerate(rule.pairs)
            if pair in gaps
        }
        still = [pair for place, pair in enumerate(rule.pairs) if look.still[0, place]]
    following = rule.looks[len(held) : len(held) + 1]  # none after the last
    wanted = [
        (name, seed)
        for n in following
        for seed in range(n)
        for name in names
        if seed >= len(scores[name]) and any(name in pair for pair in still)
    ]
    return Progress(held, verdicts, wanted)


def replay_many(scores: Array, names: Sequence[str], rule: Rule, lower_is_better: bool) -> tuple[Ints, Ints]:
    """`replay` of many simulated studies at once, [studies, variants, most seeds], as logs with `rule.log`.

    Returns [studies, pairs] indices of LABELS, and [studies, variants] seeds that each variant needs. Scores are nan
    where a cell has none.
    """
    ended = np.full(scores.shape[:2], scores.shape[2])
    labels = np.zeros((len(scores), len(rule.pairs)), dtype=np.int64)
    seeds = np.zeros(scores.shape[:2], dtype=np.int64)
    for look in _course(scores, ended, rule, names, lower_is_better):
        labels, seeds = np.where(look.tested, look.labels, labels), look.seeds
    return labels, seeds


@dataclass(frozen=True)
class _Held:
    """A look at many studies: `seeds` [studies, variants], all others [studies, pairs]."""

    n: int
    seeds: Ints
    tested: Bools  # open before, and with enough scores
    count: Ints  # scores of the side that has fewer
    value: Array
    error: Array
    null: Ints  # the row of the null distribution
    half: Array  # width of the interval to each side
    labels: Ints  # indices of LABELS
    still: Bools  # open after
    boundary: _Boundary

    def gap(self, place: int, log: bool) -> Gap:
        """Of the first study."""
        value, error, half = (float(array[0, place]) for array in (self.value, self.error, self.half))
        p = self.boundary.p(value, error, int(self.null[0, place]))
        return Gap(value, value - half, value + half, p, int(self.count[0, place]), log)


def _course(scores: Array, ended: Ints, rule: Rule, names: Sequence[str], lower_is_better: bool) -> Iterator[_Held]:
    """The looks, up to the first for which a study lacks a cell; scores [studies, variants, seeds] as compared."""
    weights = np.array([[(name == v) - (name == r) for name in names] for v, r in rule.pairs], dtype=float)
    boundary = _boundary(rule.looks, tuple(map(tuple, weights.tolist())))
    still, seeds = np.ones((len(scores), len(weights)), dtype=bool), np.zeros(scores.shape[:2], dtype=np.int64)
    for n in rule.looks:
        needed = (still[:, :, None] & (weights != 0)).any(1)
        if not needed.any() or (needed & (ended < n)).any():
            return
        seeds = np.where(needed, n, seeds)
        known = (np.arange(scores.shape[2]) < seeds[:, :, None]) & ~np.isnan(scores)
        sizes = known.sum(2)
        own = np.where(known, scores, 0.0)
        means = own.sum(2) / np.maximum(sizes, 1)
        squares = np.where(known, (scores - means[:, :, None]) ** 2, 0.0).sum(2)
        error = standard_errors(squares / np.maximum(sizes - 1, 1), np.maximum(sizes, 1), weights)
        value = means @ weights.T
        count = np.where(weights != 0, sizes[:, None], rule.looks[-1]).min(2)
        tested = still & (count >= rule.looks[0])
        null = np.maximum(np.searchsorted(rule.looks, count, side="right") - 1, 0)
        half = boundary.critical[null] * error
        margin = _margin(rule, means @ (weights < 0).T)
        equivalent = tested & (np.abs(value) + half <= margin)
        shown = tested & (np.abs(value) > half)
        better = (value < 0) == lower_is_better
        # Equivalence comes first: a difference that is there and does not matter is no reason for more seeds.
        labels = np.where(equivalent, 3, np.where(shown, np.where(better, 1, 2), 0))
        still = still & (labels == 0)
        yield _Held(n, seeds, tested, count, value, error, null, half, labels, still, boundary)


def _margin(rule: Rule, references: Array) -> Array:
    """Half-width of what does not matter, from the references' means; below 0 where there is no margin."""
    if rule.margin is None:
        return np.full_like(references, -1.0)
    return np.full_like(references, math.log1p(rule.margin)) if rule.log else rule.margin * np.abs(references)


@dataclass(frozen=True)
class _Boundary:
    """Of simulated studies without any difference: `null` [looks, studies] is the largest |statistic|, sorted.

    `rarest`, sorted, is how rare each study's most remarkable look is: the share of the studies whose statistic at this
    look is as large, in proportion to the share that may be.
    """

    null: Array
    rarest: Array
    shares: Array  # [looks]

    @property
    def critical(self) -> Array:
        """[looks]: the values that _LEVEL of the studies exceed at some look."""
        allowed = self.rarest[round(_LEVEL * _DRAWS) - 1] * self.shares
        return np.array([row[-max(1, round(share * _DRAWS))] for row, share in zip(self.null, allowed, strict=True)])

    def p(self, value: float, error: float, place: int) -> float:
        """Below SIGNIFICANT where the interval excludes 0; never 0."""
        statistic = abs(value) / error if error > 0 else (0.0 if value == 0 else math.inf)
        beyond = _DRAWS - int(np.searchsorted(self.null[place], statistic, side="left"))
        rarer = int(np.searchsorted(self.rarest, beyond / _DRAWS / self.shares[place], side="right"))
        return min(1.0, (rarer + 1) / (_DRAWS + 1) * SIGNIFICANT / _LEVEL)


@lru_cache(maxsize=64)
def _boundary(looks: tuple[int, ...], key: tuple[tuple[float, ...], ...]) -> _Boundary:
    rng = np.random.default_rng(0)  # the same for all, so that a verdict is the same wherever it is drawn
    weights = np.array(key)
    scores = rng.standard_normal((_DRAWS, weights.shape[1], looks[-1]))
    null = np.array([_largest(scores[:, :, :n], weights) for n in looks])
    shares = (np.array(looks) / looks[-1]) ** _GROWTH
    beyond = (_DRAWS - null.argsort(1).argsort(1)) / _DRAWS
    return _Boundary(np.sort(null, 1), np.sort((beyond / shares[:, None]).min(0)), shares)


def _largest(scores: Array, weights: Array) -> Array:
    n = scores.shape[2]
    error = standard_errors(scores.var(2, ddof=1), np.full(scores.shape[1], n), weights)
    return np.asarray((np.abs(scores.mean(2) @ weights.T) / error).max(1))
