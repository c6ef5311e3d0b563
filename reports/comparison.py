"""What the seeds say: means with intervals, comparisons of variants, and the smallest difference that would show."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from reports import statistics
from reports.metrics import metric
from reports.results import ENDED_EARLY, Results
from reports.statistics import Estimate, Gap


@dataclass(frozen=True)
class Comparison:
    """`variant` against `reference` by one metric; the gap is variant minus reference, of logs where it says `log`.

    `improvement` is the probability that a run of the variant is better than a run of the reference; None where no
    direction is better, or each has one run.
    """

    variant: str
    reference: str
    gap: Gap
    improvement: float | None = None


def is_log(results: Results, key: str) -> bool:
    """Whether the values of a metric are compared as ratios: the metric asks for it, and all are above 0."""
    values = [value for own in results.finished(key).values() for value in own.values()]
    return statistics.on_log_scale(key) and all(value > 0 for value in values)


def estimates(results: Results, key: str) -> dict[str, Estimate | None]:
    """{variant: mean over its finished cells, with its interval}, in plan order; None where no cell has the metric."""
    log = is_log(results, key)
    return {name: statistics.estimate(list(values.values()), log) for name, values in results.finished(key).items()}


def means(results: Results, key: str) -> dict[str, float | None]:
    """{variant: mean over the seeds that finished}; geometric where the metric is compared as a ratio."""
    return {name: found.mean if found else None for name, found in estimates(results, key).items()}


def compare(results: Results, key: str) -> list[Comparison]:
    """The pairs of the study (`Results.pairs`) over finished cells, one family; without those that lack a value."""
    values = {name: list(own.values()) for name, own in results.finished(key).items()}
    pairs = results.pairs
    gaps = statistics.compare(values, [statistics.pair(*names) for names in pairs], is_log(results, key))
    lower = metric(key).lower
    rows = []
    for (variant, reference), gap in zip(pairs, gaps, strict=True):
        if gap is None:
            continue
        better = statistics.probability_of_improvement(values[variant], values[reference])
        if better is not None and lower is False:
            better = 1 - better
        known = lower is not None and gap.p is not None
        rows.append(Comparison(variant, reference, gap, better if known else None))
    return rows


def against_baseline(results: Results, key: str) -> dict[str, Comparison]:
    """{variant: its comparison with the baseline}, of those that the study makes."""
    return {row.variant: row for row in compare(results, key) if row.reference == results.baseline}


def smallest_visible(results: Results) -> tuple[float, bool, str] | None:
    """The smallest difference by the primary metric that the whole design shows with 80 % power; None where unknown.

    (size, log, origin): a distance of logs where `log`, else of the metric itself. The design is every planned seed of
    every variant that can run, without runs that collapsed or diverged; the sd is the study's own, else that of the
    preset's other studies, else the shipped one.
    """
    sizes = {
        variant.name: len(results.seeds) - int(results.of(variant.name)["state"].isin(ENDED_EARLY).sum())
        for variant in results.variants
        if variant.unsupported is None
    }
    effect = statistics.visible(sizes, [statistics.pair(*pair) for pair in results.pairs])
    log = is_log(results, results.metric)
    sd = statistics.pooled_sd([list(own.values()) for own in results.finished(results.metric).values()], log)
    origin = "by its own spread over seeds"
    if sd is None and log:
        sd, origin = results.noise.get(results.metric), "by the spread of this preset's other studies"
    if sd is None and log:
        sd = statistics.shipped_noise(results.preset, results.metric)
        origin = "by the spread that the preset is known to have"
    return None if effect is None or sd is None else (effect * sd, log, origin)


def tidy(results: Results) -> pd.DataFrame:
    """One row per metric, variant and comparison of it; what table.csv holds.

    A variant that is compared with nothing, such as the baseline, has one row without a comparison. On the log scale
    `mean` is geometric, `sd` is of the log, and `difference` and its ends are ratios less one.
    """
    rows = []
    for key in sorted(results.finals.columns):
        log, compared = is_log(results, key), compare(results, key)
        for name, own in estimates(results, key).items():
            if own is None:
                continue
            estimate = {
                "study": results.study,
                "protocol": results.protocol,
                "variant": name,
                "metric": key,
                "role": "primary" if key == results.metric else "secondary",
                "scale": "log" if log else "linear",
                "mean": own.mean,
                "low95": own.low,
                "high95": own.high,
                "sd": own.sd,
                "n": own.n,
                "planned": len(results.seeds),
                "metric_fingerprint": results.fingerprint,
            }
            own_rows: list[Comparison | None] = [row for row in compared if row.variant == name]
            rows += [{**estimate, **_tidy_comparison(row)} for row in own_rows or [None]]
    return pd.DataFrame(rows)


def _tidy_comparison(row: Comparison | None) -> dict[str, object]:
    if row is None:
        return dict.fromkeys(("reference", "difference", "difference_low95", "difference_high95", "p_adjusted",
                              "probability_of_improvement"))  # fmt: skip
    back = math.expm1 if row.gap.log else float
    low, high = (None if end is None else back(end) for end in (row.gap.low, row.gap.high))
    return {
        "reference": row.reference,
        "difference": back(row.gap.value),
        "difference_low95": low,
        "difference_high95": high,
        "p_adjusted": row.gap.p,
        "probability_of_improvement": row.improvement,
    }
