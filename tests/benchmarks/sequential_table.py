"""How often the sequential rule errs and what it costs, beside AdaStop: prints the tables of reports/README.md.

python tests/benchmarks/sequential_table.py, in three minutes on one core. Studies are simulated: normal scores with an
sd of 1 over seeds, comparisons of all variants with one reference, every effect in units of the sd.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import sequential_adastop

from reports.sequential import Rule, looks, replay_many

STUDIES = 20_000
AGAINST = 2_000  # studies that both rules decide
DESIGNS = ((3, 4), (5, 2))  # AdaStop's scores per block and blocks: those with the fewest runs at an error of 5 %
ALPHAS = np.arange(0.014, 0.04, 0.001)


def rule_of(variants: int, most: int) -> Rule:
    return Rule(looks(3, most), tuple((f"v{k}", "v0") for k in range(1, variants)), None, False)


def ours(scores: np.ndarray, variants: int) -> tuple[np.ndarray, np.ndarray]:
    """[studies, pairs] claims and [studies] runs."""
    labels, seeds = replay_many(scores, [f"v{k}" for k in range(variants)], rule_of(variants, scores.shape[2]), True)
    return labels > 0, seeds.sum(1)


def adastop(scores: np.ndarray, n: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(0, k) for k in range(1, scores.shape[1])]
    found = [sequential_adastop.decide(own, pairs, n, alpha, seed, most=1_000) for seed, own in enumerate(scores)]
    return np.array([claims for claims, _ in found]), np.array([runs.sum() for _, runs in found])


def head(*columns: str) -> None:
    print(f"\n| {' | '.join(columns)} |")
    print("| --: " * len(columns) + "|")


def errors() -> None:
    head("variants, in all", "equal sds", "reference x2", "x3", "a variant x3", "collapsed 3 sd", "5 sd", "runs")
    for variants in (2, 4, 6, 8):
        rng = np.random.default_rng(1)
        scores = rng.standard_normal((STUDIES, variants, 12))
        is_collapsed = rng.random(scores.shape) < 0.1
        noisy = [np.eye(variants)[place][:, None] * (size - 1) + 1 for place, size in ((0, 2), (0, 3), (1, 3))]
        cases = [scores, *(scores * sd for sd in noisy), scores + 3 * is_collapsed, scores + 5 * is_collapsed]
        rates = [f"{100 * ours(case, variants)[0].any(1).mean():.1f}" for case in cases]
        print(f"| {variants} | {' | '.join(rates)} | {ours(scores, variants)[1].mean():.1f} of {12 * variants} |")


def calibrated(n: int, blocks: int) -> float:
    """The largest level at which AdaStop makes a false claim in 5 % of studies at most."""
    scores = np.random.default_rng(2).standard_normal((AGAINST, 4, n * blocks))
    low, high = 0, len(ALPHAS) - 1
    while low < high:
        middle = (low + high + 1) // 2
        is_safe = adastop(scores, n, ALPHAS[middle])[0].any(1).mean() <= 0.05
        low, high = (middle, high) if is_safe else (low, middle - 1)
    return float(ALPHAS[low])


def against(differing: Sequence[int]) -> None:
    """Rows for studies of a reference and three variants, of which these differ from it."""
    alphas = {design: calibrated(*design) for design in DESIGNS}
    places = [place - 1 for place in differing]
    for effect in (1.5, 2.0, 3.0):
        scores = np.random.default_rng(3).standard_normal((AGAINST, 4, 24))
        scores[:, list(differing)] -= effect
        known = {}
        for most in range(6, 25):
            claims, runs = ours(scores[:, :, :most], 4)
            known[most] = claims[:, places].mean(), runs.mean()
        for (n, blocks), alpha in alphas.items():
            claims, runs = adastop(scores[:, :, : n * blocks], n, alpha)
            power = claims[:, places].mean()
            most = next(most for most, (reached, _) in known.items() if reached >= power - 0.003)
            reached, needed = known[most]
            print(
                f"| {len(differing)} of 3 | {effect:g} | {n} x {blocks}, {alpha:.3f} | {power:.3f} | {runs.mean():.1f} "
                f"| {most} | {reached:.3f} | {needed:.1f} | {needed / runs.mean():.2f} |"
            )


if __name__ == "__main__":
    errors()
    head("differ", "by, in sd", "AdaStop: n x K, alpha", "power", "runs", "ours: `most`", "power", "runs", "ratio")
    against([1])
    against([1, 2, 3])
