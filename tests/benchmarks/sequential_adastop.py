"""AdaStop's rule, written out: Mathieu et al. 2023 (arXiv 2306.10882), as its package does it (adastop 0.1.3 on PyPI).

Blocks of n scores per arm, at most K of them. Within each block the scores of a pair of arms are permuted; after every
block a pair is decided where the difference of its sums exceeds what permutations that were not decided before reach,
with alpha / K of the level spent per block and step-down over the pairs. The package takes about a second per study,
this a few milliseconds, and they decide alike (tests/reports/test_sequential.py).

The package compares |difference| with the permutations' signed differences, so its error is about twice `alpha`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TIE = 1e-9  # the scores as they came are one of the permutations: equal but for rounding


def decide(
    scores: Array, pairs: Sequence[tuple[int, int]], n: int, alpha: float, seed: int, most: int = 10_000
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Of one study with scores [arms, n K]: which pairs are claimed to differ, and how many runs each arm needed.

    `most` permutations are drawn where there are more (B of the package, which this needs above those of one block).
    """
    rng = np.random.default_rng(seed)
    blocks = scores.shape[1] // n
    count = math.comb(2 * n, n)
    every = np.array([[1 if place in chosen else -1 for place in range(2 * n)] for chosen in _halves(n)]) / n
    open_ = list(range(len(pairs)))
    claimed, runs = np.zeros(len(pairs), dtype=bool), np.zeros(scores.shape[0], dtype=np.int64)
    reached, spent, drawn = np.zeros((1, len(pairs))), 0.0, 1.0
    for block in range(blocks):
        runs[np.unique([pairs[place] for place in open_])] = (block + 1) * n
        here = scores[:, block * n : (block + 1) * n]
        both = np.array([np.concatenate([here[one], here[other]]) for one, other in pairs])
        if most > count ** (block + 1):
            reached = ((every @ both.T)[:, None] + reached[None]).reshape(-1, len(pairs))
            drawn = count ** (block + 1)
        else:
            picked = rng.integers(count, size=(len(reached), len(pairs)))
            picked[0] = 0  # the scores as they came
            reached = reached + np.einsum("dpi,pi->dp", every[picked], both)
            drawn = count ** math.floor(math.log(most) / math.log(count))
        seen = np.array([(block + 1) * (scores[a, : runs[a]].mean() - scores[b, : runs[b]].mean()) for a, b in pairs])
        level = alpha * (block + 1) / blocks
        while open_:
            largest = np.sort(reached[:, open_].max(1))
            beyond = np.arange(largest.size)[::-1] / drawn
            allowed = spent + beyond <= level
            bound, added = (largest[allowed][0], beyond[allowed][0]) if allowed.any() else (math.inf, 0.0)
            best = max(open_, key=lambda place: abs(seen[place]))
            if abs(seen[best]) <= bound + TIE:
                break
            claimed[best] = True
            open_.remove(best)
        spent += added
        if not open_:
            break
        reached = reached[np.abs(reached[:, open_]).max(1) <= bound + TIE]
    return claimed, runs


def _halves(n: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(2 * n), n))
