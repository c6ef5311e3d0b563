"""When a comparison has enough seeds: looks at more and more of them, with one error rate for all looks together.

Pure functions of recorded scores. A look is a test of the study at a planned number of seeds; `ablations` uses looks to
decide which cells to run next, `reports` to show the results, and both replay the same ones. At a look each pair
(variant, reference) is *better*, *worse*, *equivalent* or *undecided*, by its interval. A variant gets more seeds while
one of its pairs is open: undecided, and with a predictive power of 10 % or more, which is the probability that the last
look decides it (`_predictive_power`).

The statistic is that of `reports.statistics`: |difference of means| / standard error. Repeated testing
increases the false-positive rate, so the critical value of a look is higher than that of a single test: of simulated
studies without any difference, with exactly these looks and pairs, 4.5 % exceed a critical value at some look for some
pair. The share that may exceed it at one look grows with the number of seeds (`_SPENDING_EXPONENT`). The intervals,
difference +- critical value x standard error, are then repeated confidence intervals (Jennison and Turnbull 2000, Group
Sequential Methods, chapter 9): all intervals of all looks jointly cover the true values with 95 % probability, so they
are valid at any stopping time and for any reason to stop; a rule that stops earlier can only make fewer false claims.
reports/README.md has the measured error rates and power.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from reports.statistics import SIGNIFICANT, Array, Gap, standard_errors

LOOKS = (3, 4, 5, 6, 8, 10, 12)
FEWEST = 3  # scores of a variant that are tested: estimating a spread needs at least three
_LEVEL = 0.045  # chance of any false claim with equal sds; with unequal ones it is up to 1.5 times as high
_SPENDING_EXPONENT = 2  # error spent by a look ~ seeds ** 2; chosen by simulation, for power at 1.5 to 2 sd
_MIN_PREDICTIVE_POWER = 0.1  # below this probability of being decided by the last look, a pair gets no more seeds
_DRAWS = 50_000  # the error rate is then known to 0.1 %

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
        raise ValueError(f"first: must be {FEWEST} or more, got {first}; estimating a spread needs at least 3 seeds")
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
class Verdict:
    """What the looks say of one pair.

    `gap` and `n`, the number of seeds, are those of the decision, or of the last look of an undecided pair. `chance` is
    the probability that the last look decides an undecided pair; None after it, and before there is a gap.
    """

    label: Label
    n: int
    gap: Gap | None
    chance: float | None = None

    @property
    def stopped_for_futility(self) -> bool:
        """Undecided, and gets no more of the planned seeds: they are unlikely to decide it."""
        return self.label == "undecided" and self.chance is not None and self.chance < _MIN_PREDICTIVE_POWER

    @property
    def is_open(self) -> bool:
        """Gets more of the planned seeds, if there are any."""
        return self.label == "undecided" and not self.stopped_for_futility


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    `looks` is {number of seeds: {pair: gap}}, of the pairs that were open before and have enough scores.

    `wanted` has (variant, index of its seed) of every cell that the next look lacks, seed by seed. It is empty when no
    pair is open or the last look is done.
    """

    looks: dict[int, dict[Pair, Gap]]
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
    held: dict[int, dict[Pair, Gap]] = {}
    open_pairs = list(rule.pairs)
    for look in _hold_looks(table, ended, rule, names, lower_is_better):
        held[look.n] = {}
        for place, pair in enumerate(rule.pairs):
            if look.tested[0, place]:
                gap, label = look.gap(place, rule.log), LABELS[look.labels[0, place]]
                goes_on = label == "undecided" and look.n < rule.looks[-1]
                verdicts[pair] = Verdict(label, look.n, gap, float(look.chance[0, place]) if goes_on else None)
                held[look.n][pair] = gap
        open_pairs = [pair for pair, is_open in zip(rule.pairs, look.is_open[0], strict=True) if is_open]
    needed = {name for pair in open_pairs for name in pair}
    seeds = range(rule.looks[len(held)] if len(held) < len(rule.looks) else 0)
    wanted = [(name, seed) for seed in seeds for name in names if name in needed and seed >= len(scores[name])]
    return Progress(held, verdicts, wanted)


def replay_many(scores: Array, names: Sequence[str], rule: Rule, lower_is_better: bool) -> tuple[Ints, Ints]:
    """`replay` of many simulated studies at once, [studies, variants, most seeds], as logs with `rule.log`.

    Returns [studies, pairs] indices of LABELS, and [studies, variants] seeds that each variant needs. Scores are nan
    where a cell has none.
    """
    ended = np.full(scores.shape[:2], scores.shape[2])
    labels = np.zeros((len(scores), len(rule.pairs)), dtype=np.int64)
    seeds = np.zeros(scores.shape[:2], dtype=np.int64)
    for look in _hold_looks(scores, ended, rule, names, lower_is_better):
        labels, seeds = np.where(look.tested, look.labels, labels), look.seeds
    return labels, seeds


@dataclass(frozen=True)
class _LookResult:
    """A look at many studies: `seeds` [studies, variants], all others [studies, pairs]."""

    n: int
    seeds: Ints
    tested: Bools  # open before, and with enough scores
    scores: Ints  # of the side that has fewer
    value: Array
    error: Array
    row: Ints  # of `boundary`
    half_width: Array  # of the interval, to each side of `value`
    labels: Ints  # indices of LABELS
    chance: Array
    is_open: Bools  # after this look
    boundary: _Boundary

    def gap(self, place: int, log: bool) -> Gap:
        """The gap of one pair, of the first study."""
        value, error, half_width = (float(array[0, place]) for array in (self.value, self.error, self.half_width))
        p = self.boundary.p(value, error, int(self.row[0, place]))
        return Gap(value, value - half_width, value + half_width, p, int(self.scores[0, place]), log)


def _hold_looks(
    scores: Array, ended: Ints, rule: Rule, names: Sequence[str], lower_is_better: bool
) -> Iterator[_LookResult]:
    """The looks, up to the first for which a study lacks a cell; scores [studies, variants, seeds] as compared."""
    weights = np.array([[(name == v) - (name == r) for name in names] for v, r in rule.pairs], dtype=float)
    boundary = _boundary(rule.looks, tuple(map(tuple, weights.tolist())))
    is_open, seeds = np.ones((len(scores), len(weights)), dtype=bool), np.zeros(scores.shape[:2], dtype=np.int64)
    for n in rule.looks:
        needed = (is_open[:, :, None] & (weights != 0)).any(1)
        if not needed.any() or (needed & (ended < n)).any():
            return
        seeds = np.where(needed, n, seeds)
        known = (np.arange(scores.shape[2]) < seeds[:, :, None]) & ~np.isnan(scores)
        sizes = known.sum(2)
        means = np.where(known, scores, 0.0).sum(2) / np.maximum(sizes, 1)
        squares = np.where(known, (scores - means[:, :, None]) ** 2, 0.0).sum(2)
        error = standard_errors(squares / np.maximum(sizes - 1, 1), np.maximum(sizes, 1), weights)
        value = means @ weights.T
        fewest = np.where(weights != 0, sizes[:, None], n).min(2)
        tested = is_open & (fewest >= rule.looks[0])
        # Where cells have no score, the critical value is that of the last look for which both sides have enough.
        row = np.maximum(np.searchsorted(rule.looks, fewest, side="right") - 1, 0)
        half_width = boundary.critical[row] * error
        margin = np.full_like(value, -1.0)  # below 0: nothing is equivalent
        if rule.margin is not None:
            references = np.abs(means @ (weights < 0).T)
            margin = np.full_like(value, math.log1p(rule.margin)) if rule.log else rule.margin * references
        equivalent, shown = np.abs(value) + half_width <= margin, np.abs(value) > half_width
        direction = np.where((value < 0) == lower_is_better, 1, 2)
        # Equivalence comes first: a difference that is there and does not matter is no reason for more seeds.
        labels = np.where(tested & equivalent, 3, np.where(tested & shown, direction, 0))
        chance = _predictive_power(n, rule.looks[-1], value, error, boundary.critical[-1], margin)
        is_open = is_open & (labels == 0) & ~(tested & (chance < _MIN_PREDICTIVE_POWER))
        yield _LookResult(n, seeds, tested, fewest, value, error, row, half_width, labels, chance, is_open, boundary)


def _predictive_power(n: int, most: int, value: Array, error: Array, critical: float, margin: Array) -> Array:
    """The probability that the last look decides a pair, given the first `n` of `most` seeds; nan without any spread.

    The mean of `most` seeds is normal around that of the first `n`, with variance error^2 (1 - n / most), and its
    standard error will be error x sqrt(n / most): predictive power (Spiegelhalter, Freedman and Blackburn 1986).
    """
    half_width, spread = critical * error * math.sqrt(n / most), error * math.sqrt(1 - n / most)
    within = np.maximum(margin - half_width, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shown = special.ndtr((value - half_width) / spread) + special.ndtr((-value - half_width) / spread)
        equivalent = special.ndtr((within - value) / spread) - special.ndtr((-within - value) / spread)
    return np.asarray(shown + equivalent)


@dataclass(frozen=True)
class _Boundary:
    """The largest |statistic| of simulated studies without any difference, and the critical values made of it."""

    null: Array  # [looks, studies], each row sorted
    shares: Array  # [looks]: which share of the studies may exceed the critical value, in proportion to the last look's
    min_scaled_share: Array  # [studies], sorted: min over looks of (share with a statistic as large) / `shares`
    critical: Array  # [looks]: _LEVEL of the studies exceed one of them

    def p(self, value: float, error: float, row: int) -> float:
        """Below SIGNIFICANT where the interval excludes 0, and never 0: the share of studies as remarkable as this."""
        statistic = abs(value) / error if error > 0 else (0.0 if value == 0 else math.inf)
        beyond = _DRAWS - int(np.searchsorted(self.null[row], statistic, side="left"))
        fewer = int(np.searchsorted(self.min_scaled_share, beyond / _DRAWS / self.shares[row], side="right"))
        return min(1.0, (fewer + 1) / (_DRAWS + 1) * SIGNIFICANT / _LEVEL)


@lru_cache(maxsize=64)
def _boundary(looks: tuple[int, ...], key: tuple[tuple[float, ...], ...]) -> _Boundary:
    rng = np.random.default_rng(0)  # the same for all, so that a verdict is the same wherever it is drawn
    weights = np.array(key)
    sums = squares = np.zeros((_DRAWS, weights.shape[1]))
    null = np.empty((len(looks), _DRAWS))
    for row, (before, n) in enumerate(zip((0, *looks), looks, strict=False)):
        scores = rng.standard_normal((n - before, *sums.shape))
        sums, squares = sums + scores.sum(0), squares + (scores**2).sum(0)
        variances = (squares - sums**2 / n) / (n - 1)
        errors = standard_errors(variances, np.full(sums.shape[1], n), weights)
        null[row] = (np.abs(sums / n @ weights.T) / errors).max(1)
    shares = (np.array(looks) / looks[-1]) ** _SPENDING_EXPONENT
    exceeding = (_DRAWS - null.argsort(1).argsort(1)) / _DRAWS  # share of studies with as large a statistic
    min_scaled_share = np.sort((exceeding / shares[:, None]).min(0))
    null.sort(1)
    counts = np.ceil(min_scaled_share[round(_LEVEL * _DRAWS) - 1] * shares * _DRAWS - 1e-6).astype(int)  # less rounding
    return _Boundary(null, shares, min_scaled_share, null[np.arange(len(looks)), -counts])
