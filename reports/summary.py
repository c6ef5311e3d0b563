"""What the seeds of a unit say: each variant against the baseline, and the answer in one sentence."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from reports import statistics, style
from reports.statistics import Estimate
from reports.unit import Unit

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """One variant by one metric. All but `estimate` are None for the baseline and where nothing can be compared.

    `difference` is variant minus baseline, paired by seed; `improvement` is the probability that a run of the variant
    is better than a run of the baseline.
    """

    variant: str
    estimate: Estimate | None
    difference: Estimate | None = None
    p: float | None = None
    p_holm: float | None = None
    improvement: float | None = None
    seeds_needed: int | None = None


def estimates(unit: Unit, key: str) -> dict[str, Estimate | None]:
    """{variant: mean over its finished cells, with its interval}, in plan order; None where no cell has the metric."""
    return {name: statistics.estimate(list(values.values())) for name, values in unit.finished(key).items()}


def compare(unit: Unit, key: str) -> list[Comparison]:
    """Every variant in plan order, over finished cells. Holm's correction is over the variants of this unit."""
    values = unit.finished(key)
    baseline = values.get(unit.baseline, {})
    metric = style.METRICS.get(key)
    rows = {}
    for name, own in values.items():
        difference = None if name == unit.baseline else statistics.paired_difference(own, baseline)
        if difference is None:
            rows[name] = Comparison(name, statistics.estimate(list(own.values())))
            continue
        better = statistics.probability_of_improvement(list(own.values()), list(baseline.values()))
        if better is not None and metric is not None and metric.lower is False:
            better = 1 - better
        rows[name] = Comparison(
            variant=name,
            estimate=statistics.estimate(list(own.values())),
            difference=difference,
            p=statistics.p_value(difference),
            improvement=better if difference.n > 1 and metric is not None and metric.lower is not None else None,
            seeds_needed=statistics.seeds_needed(difference) if difference.n > 2 else None,
        )
    corrected = statistics.corrected({name: row.difference for name, row in rows.items()})
    return [
        Comparison(**{**vars(row), "p_holm": corrected.get(name)}) for name, row in rows.items()
    ]  # fmt: skip


ENDED = ("collapsed", "diverged")


def headline(unit: Unit) -> str:
    """The answer in one sentence, by the last FID (or FD); says so where the seeds cannot answer.

    Of a search it is what the confirmation on fresh seeds found.
    """
    done = int(unit.cells["state"].isin(["finished", *ENDED]).sum())
    feasible = sum(variant.obstacle is None for variant in unit.variants) * len(unit.seeds)
    rows = [row for row in compare(unit, "fid") if row.difference is not None]
    if unit.design == "search" and not rows:
        return f"Nothing confirmed yet: {_tried(unit)}; a search answers when its best has run on fresh seeds."
    if done == 0:
        return f"No result yet: 0 of {feasible} cells are done."
    prefix = "" if done == feasible else f"So far ({done} of {feasible} cells): "
    if not rows:
        yet = "" if done == feasible else " yet"
        return _without_baseline(unit, prefix) or (
            f"No answer{yet}: no seed has finished both for {unit.baseline} and for another variant."
        )
    return prefix + _answer(rows, unit)


def _tried(unit: Unit) -> str:
    ended = sum(trial.state != "running" for trial in unit.search.trials) if unit.search else 0
    return f"{ended} {'trial is' if ended == 1 else 'trials are'} done"


def _without_baseline(unit: Unit, prefix: str) -> str | None:
    """The answer where no run of the baseline came through but others did; None where that is not so."""
    states = unit.cells.loc[unit.cells["variant"] == unit.baseline, "state"]
    scored = [row for row in compare(unit, "fid") if row.estimate]
    if not scored or not len(states) or not states.isin(ENDED).all():
        return None
    top = min(scored, key=lambda row: row.estimate.mean if row.estimate else 0.0)
    assert top.estimate is not None
    score = _amount(top.estimate, style.label("fid", unit.fingerprint))
    runs = "Its only run" if len(states) == 1 else f"All {len(states)} runs"
    of = f"of {unit.baseline} collapsed or diverged, so no difference to it can be taken"
    return f"{prefix}{runs} {of}; of the others {top.variant} scores lowest, {score}, n = {top.estimate.n}."


def _answer(rows: list[Comparison], unit: Unit) -> str:
    name = style.label("fid", unit.fingerprint)
    rows = [row for row in rows if row.difference and row.difference.n > 1] or rows  # a lone seed outranks no interval
    best = min(rows, key=_gain)
    assert best.difference is not None
    gain = _amount(best.difference, name)
    said = _said(best, unit)
    if best.difference.n == 1:
        than = "below" if best.difference.mean < 0 else "above"
        return f"{said} is {gain} {than} {unit.baseline} on one seed; one seed shows no interval."
    if best.difference.mean < 0 and _shown(best, len(rows)):
        also = [row.variant for row in rows if row is not best and _gain(row) < 0 and _shown(row, len(rows))]
        others = f"; so {'does' if len(also) == 1 else 'do'} {_listed(also)}" if also else ""
        return f"{said} beats {unit.baseline} by {gain}, n = {best.difference.n}{others}."
    worse = [row for row in rows if _gain(row) > 0 and _shown(row, len(rows))]
    if worse:
        worst = max(worse, key=_gain)
        assert worst.difference is not None
        return (
            f"{unit.baseline} is not beaten; {_said(worst, unit)} is worse by {_amount(worst.difference, name)}, "
            f"n = {worst.difference.n}."
        )
    seeds = max(row.difference.n for row in rows if row.difference is not None)
    if best.difference.mean >= 0:
        return f"No difference that {seeds} seeds can show: {_nothing_below(unit)} scores below {unit.baseline}."
    needed = f"; about {best.seeds_needed} seeds would show a gap of this size" if best.seeds_needed else ""
    return (
        f"No difference that {seeds} seeds can show: the largest gain over {unit.baseline} is {gain}, by "
        f"{said}{needed}."
    )


def _said(row: Comparison, unit: Unit) -> str:
    """The variant, and what a reader must know of it: how many trials it is the best of, how many runs are missing."""
    states = unit.cells.loc[unit.cells["variant"] == row.variant, "state"]
    ended = int(states.isin(ENDED).sum())
    remarks = [f"{ended} of its {len(states)} runs collapsed or diverged"] if ended else []
    name = row.variant
    if unit.search is not None and unit.search.best is not None and name == "best":
        name, remarks = unit.search.best, [f"best of {len(unit.search.trials)} trials", *remarks]
    return f"{name} ({'; '.join(remarks)})" if remarks else name


def _nothing_below(unit: Unit) -> str:
    return "not even the best trial" if unit.design == "search" else "no variant"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _gain(row: Comparison) -> float:
    assert row.difference is not None
    return row.difference.mean


def _amount(difference: Estimate, name: str) -> str:
    digits = style.decimals([difference.half_width or difference.mean], digits=2)
    size = style.plus_minus(abs(difference.mean), difference.half_width, digits)
    return f"{size} {name}"


def _shown(row: Comparison, among: int) -> bool:
    """Significant after correction for picking `among` so many. Two pairs have the interval alone, which is not
    corrected, so they show something only where there was nothing to pick.
    """
    if row.p_holm is not None:
        return row.p_holm < SIGNIFICANT
    return among == 1 and row.difference is not None and row.difference.excludes_zero


def tidy(unit: Unit) -> pd.DataFrame:
    """One row a variant and metric: mean, half width, n, and the comparison; what table.csv holds."""
    planned = len(unit.seeds)
    rows = []
    for key in sorted(unit.finals.columns):
        for row in compare(unit, key):
            if row.estimate is None:
                continue
            gap = row.difference
            rows.append(
                {
                    "study": unit.study,
                    "protocol": unit.protocol,
                    "variant": row.variant,
                    "baseline": unit.baseline,
                    "metric": key,
                    "mean": row.estimate.mean,
                    "interval95": row.estimate.half_width,
                    "sd": row.estimate.sd,
                    "n": row.estimate.n,
                    "planned": planned,
                    "difference": gap.mean if gap else None,
                    "difference_interval95": gap.half_width if gap else None,
                    "pairs": gap.n if gap else None,
                    "p": row.p,
                    "p_holm": row.p_holm,
                    "probability_of_improvement": row.improvement,
                    "seeds_needed": row.seeds_needed,
                    "metric_fingerprint": unit.fingerprint,
                }
            )
    return pd.DataFrame(rows)
