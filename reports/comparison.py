"""Means with intervals, comparisons and the smallest difference that would show, from the results of a study."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from reports import findings, sequential, statistics
from reports.findings import Comparison
from reports.metrics import metric
from reports.results import ENDED_EARLY, LATER, NOT_NEEDED, Results
from reports.sequential import Progress, Rule
from reports.statistics import Estimate


def is_log(results: Results, key: str) -> bool:
    """Whether the values of a metric are compared as ratios."""
    return statistics.on_log_scale(key, (value for own in results.finished(key).values() for value in own.values()))


def estimates(results: Results, key: str) -> dict[str, Estimate | None]:
    """{variant: mean over its finished cells, with its interval}, in plan order; None where no cell has the metric."""
    log = is_log(results, key)
    return {name: statistics.estimate(list(values.values()), log) for name, values in results.finished(key).items()}


def means(results: Results, key: str) -> dict[str, float | None]:
    """{variant: mean over the seeds that finished}; geometric where the metric is compared as a ratio."""
    return {name: found.mean if found else None for name, found in estimates(results, key).items()}


def compare(results: Results, key: str) -> list[Comparison]:
    """The pairs of the study (`Results.pairs`) over finished cells, one family; without those that lack a value.

    By the primary metric of a study with adaptive seeds, what the looks have shown (`progress`).
    """
    values = {name: list(own.values()) for name, own in results.finished(key).items()}
    return findings.compare(values, results.pairs, key, progress(results) if key == results.metric else None)


def improvement(results: Results, key: str, row: Comparison) -> float | None:
    """The probability that a run of the variant is better than a run of the reference; None where no direction is
    better, or one of them has a single run."""
    values, lower = results.finished(key), metric(key).lower
    own, other = (list(values[name].values()) for name in (row.variant, row.reference))
    below = statistics.probability_of_improvement(own, other)
    return None if below is None or lower is None or row.gap.p is None else below if lower else 1 - below


def progress(results: Results) -> Progress | None:
    """What the looks of a study with adaptive seeds have shown, from its cells alone; None where seeds are a list,
    or no direction of the metric is better.

    A cell that failed, collapsed or diverged counts as a seed without a score.
    """
    adaptive, lower = results.adaptive, metric(results.metric).lower
    if adaptive is None or lower is None:
        return None
    scores = {}
    for name, own in results.finished(results.metric).items():
        states = results.of(name).set_index("seed")["state"]
        has_ended = states.reindex(adaptive.seeds).isin(["finished", "failed", *ENDED_EARLY])
        scores[name] = [own.get(seed) for seed in has_ended.index[has_ended.cumprod().astype(bool)]]
    return sequential.replay(scores, _rule(results), lower)


def _rule(results: Results) -> Rule:
    assert results.adaptive is not None
    looks = sequential.looks(results.adaptive.first, len(results.adaptive.seeds))
    return Rule(looks, tuple(results.pairs), results.adaptive.margin, is_log(results, results.metric))


def mark_unneeded_cells(results: Results) -> Results:
    """With adaptive seeds: marks missing cells as "not needed" or "later if needed", following the looks."""
    looked = progress(results)
    if results.adaptive is None or looked is None:
        return results
    wanted = {(name, results.adaptive.seeds[place]) for name, place in looked.wanted}
    lacking = {name for name, _ in looked.wanted}
    going_on = [pair for pair, found in looked.verdicts.items() if found.is_open and lacking.intersection(pair)]
    waiting = {name for pair in going_on for name in pair}
    cells = results.cells
    states = [
        state if state != "missing" or (name, seed) in wanted else LATER if name in waiting else NOT_NEEDED
        for name, seed, state in zip(cells["variant"], cells["seed"], cells["state"], strict=True)
    ]
    return replace(results, cells=cells.assign(state=states))


def against_baseline(results: Results, key: str) -> dict[str, Comparison]:
    """{variant: its comparison with the baseline}, of those that the study makes."""
    return {row.variant: row for row in compare(results, key) if row.reference == results.baseline}


def minimum_detectable_difference(results: Results) -> tuple[float, bool, str] | None:
    """The smallest difference by the primary metric that the complete design shows with 80 % power; None where unknown.

    (size, log, origin): a distance of logs where `log`, else of the metric itself. The design is every planned seed of
    every variant that can run, without runs that collapsed or diverged; of adaptive seeds, the looks as planned. The
    sd is the study's own, else that of the preset's other studies, else the shipped one.
    """
    log = is_log(results, results.metric)
    sd = statistics.pooled_sd([list(own.values()) for own in results.finished(results.metric).values()], log)
    origin = "by its own spread over seeds"
    if sd is None and log:
        sd, origin = results.noise, "by the spread of this preset's other studies"
    if sd is None and log:
        sd = statistics.shipped_noise(results.preset, results.metric)
        origin = "by the spread that the preset is known to have"
    if sd is None:
        return None
    if results.adaptive is not None:
        effect = _minimum_detectable_by_looks(_rule(results), sd) if results.pairs else None
        return None if effect is None else (effect, log, origin)
    sizes = {
        variant.name: len(results.seeds) - int(results.of(variant.name)["state"].isin(ENDED_EARLY).sum())
        for variant in results.variants
        if variant.build_error is None
    }
    effect = statistics.minimum_detectable_effect(sizes, [statistics.pair(*pair) for pair in results.pairs])
    return None if effect is None else (effect * sd, log, origin)


@lru_cache
def _minimum_detectable_by_looks(rule: Rule, sd: float) -> float:
    """The smallest effect on the variant of the first pair that some look shows in 80 % of simulated studies."""
    names = list(dict.fromkeys(name for pair in rule.pairs for name in pair))
    noise = sd * np.random.default_rng(0).standard_normal((2000, len(names), rule.looks[-1]))
    rule = rule if rule.log else replace(rule, margin=None)  # without a mean there is no share of it

    def power(effect: float) -> float:
        scores = noise.copy()
        scores[:, names.index(rule.pairs[0][0])] -= effect
        labels, _ = sequential.replay_many(scores, names, rule, lower_is_better=True)
        return float((labels[:, 0] == sequential.LABELS.index("better")).mean())

    return statistics.effect_of_power(power, start=sd, xtol=sd / 50)
