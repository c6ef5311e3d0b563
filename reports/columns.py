"""What stands in a table: one text a variant, and the sentences beneath. Shared by all modules of tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import pandas as pd

from reports import style
from reports.statistics import Gap
from reports.summary import counted, estimates, is_log
from reports.unit import Unit, Variant
from reports.writers import Row

ABSENT = "–"


def caption(unit: Unit) -> str:
    """By what, on how many samples, at which step, over what the interval is, and which cells are another study's."""
    counts = sorted({len(values) for values in unit.finished(unit.metric).values() if values})
    n = f", n = {counts[0]}" if len(counts) == 1 else ", n as stated" if counts else ""
    sentences = [
        f"Measured by {unit.fingerprint}, {at(unit)}." if unit.fingerprint else "Nothing measured yet.",
        f"In brackets: 95 % t interval over training seeds{n}.",
    ]
    if counts and counts[0] == 1:
        only = "One seed has" if counts == [1] else "A figure without brackets is one seed's, which has"
        sentences.append(f"{only} no interval.")
    ratios = "Scores that are compared as ratios have geometric means and intervals of the logarithm."
    return " ".join([*sentences, ratios, *_shared(unit)])


def at(unit: Unit) -> str:
    """At which steps the scores were taken: "at the last step (1,000)", "mean of the last 3 evaluations (to ...)"."""
    steps = sorted({int(step) for step in unit.cells.loc[unit.cells["state"] == "finished", "step"].dropna()})
    listed = " and ".join(style.number(step, 0) for step in steps)
    if unit.endpoint > 1:
        return f"mean of the last {unit.endpoint} evaluations{f' (to step {listed})' if steps else ''}"
    return f"at the last step{f' ({listed})' if steps else ''}"


def _shared(unit: Unit) -> list[str]:
    studies = unit.cells["shared_study"].dropna()
    if studies.empty:
        return []
    cells = "1 cell is" if len(studies) == 1 else f"{len(studies)} of the {unit.cells['run_id'].count()} cells are"
    were = "was" if len(studies) == 1 else "were"
    return [f"{cells} shared with {' and '.join(sorted(set(studies)))}, where the same config {were} trained."]


def outcomes(unit: Unit, variant: Variant) -> str:
    """ "2 finished, 1 collapsed at step 400", from the states of the planned cells."""
    if variant.obstacle:
        return variant.obstacle
    cells = unit.cells[unit.cells["variant"] == variant.name]
    found = []
    for state, number in Counter(cells["state"]).items():
        reached = cells.loc[cells["state"] == state, "step"].dropna()
        steps = dict.fromkeys(style.number(step, 0) for step in reached)
        where = f" at step {', '.join(steps)}" if steps and state != "finished" else ""
        found.append(f"{number} {state}{where}")
    return ", ".join(found)


def seeds(unit: Unit, variant: Variant) -> str:
    """ "2 of 3": how many seeds enter the means."""
    return ABSENT if variant.obstacle else f"{len(unit.finished(unit.metric)[variant.name])} of {len(unit.seeds)}"


def seeds_row(unit: Unit, variants: Iterable[Variant]) -> Row:
    return Row(("seeds finished", *(seeds(unit, variant) for variant in variants)))


def means(unit: Unit, key: str) -> dict[str, float | None]:
    """{variant: mean over the seeds that finished}; geometric where the metric is compared as a ratio."""
    return {name: found.mean if found else None for name, found in estimates(unit, key).items()}


def texts(unit: Unit, key: str) -> dict[str, str]:
    """{variant: "10.5 (9.3 to 11.9)"}; a variant without a score says why in the row of the primary score."""
    rows = estimates(unit, key)
    scale = style.METRICS[key].scale if key in style.METRICS else 1.0
    found = [row for row in rows.values() if row]
    ends = ((row.mean - row.low) for row in found if row.low is not None)
    smallest = min((scale * row.mean for row in found), default=1.0)
    few = is_log(unit, key) and smallest < 1  # such scores span decades: more digits would be noise in the others
    digits = max(
        style.decimals((scale * row.mean for row in found), digits=2 if few else 3),
        style.decimals((scale * size for size in ends if size), digits=1),
    )
    result = {}
    for variant in unit.variants:
        row = rows[variant.name]
        if row is None:
            result[variant.name] = why(unit, variant) if key in (unit.metric, "fid") else ABSENT
        else:
            low, high = (None if end is None else scale * end for end in (row.low, row.high))
            result[variant.name] = style.interval(scale * row.mean, low, high, digits)
    return result


def why(unit: Unit, variant: Variant) -> str:
    """Why there is no score: what most of its cells are."""
    states = unit.cells.loc[unit.cells["variant"] == variant.name, "state"]
    return variant.obstacle or str(states.mode().iat[0])


def gap_text(gap: Gap | None) -> str:
    """ "−31 % (−46 to −12)" where a ratio is compared, "+0.41 (0.10 to 0.72)" where a difference."""
    if gap is None:
        return ABSENT
    if gap.log:
        ends = [100 * math.expm1(end) for end in (gap.low, gap.high) if end is not None]
        if len(ends) < 2:
            return style.percent(math.exp(gap.value))
        digits = 1 if min(map(abs, ends)) < 9.95 else 0
        low, high = (f"{style.number(end, digits)}" for end in ends)
        return f"{style.percent(math.exp(gap.value))} ({low} to {high})"
    width = gap.value if gap.low is None or gap.high is None else gap.high - gap.low
    digits = style.decimals([width or gap.value], digits=2)
    text = style.number(gap.value, digits, signed=True)
    if gap.low is None or gap.high is None:
        return text
    return f"{text} ({style.number(gap.low, digits)} to {style.number(gap.high, digits)})"


def simultaneous(unit: Unit, key: str) -> str:
    """What p and the intervals of comparisons are; for the notes of a table that has some."""
    lower = style.lower_is_better(key)
    better = "" if lower is None else " Below zero is better." if lower else " Above zero is better."
    return (
        f"Differences are of means over seeds{', in per cent' if is_log(unit, key) else ''}, with simultaneous 95 % "
        f"intervals over {counted(len(unit.pairs), 'comparison')}; p is adjusted for them, by the same test "
        f"(reports/statistics.py).{better}"
    )


def best(key: str, figures: Iterable[float | None], offset: int) -> frozenset[int]:
    """Where the best of two or more figures stands; `offset` is the place of the first."""
    found = {place: figure for place, figure in enumerate(figures) if figure is not None}
    lower = style.lower_is_better(key)
    if len(found) < 2 or lower is None:
        return frozenset()
    top = (min if lower else max)(found.values())
    return frozenset(place + offset for place, figure in found.items() if figure == top)


def count(unit: Unit, variant: Variant, key: str) -> str:
    """ "884 k": a figure of the variant that no seed changes, such as its parameters."""
    if key not in unit.finals:
        return ABSENT
    found = unit.finals.loc[unit.cells["variant"] == variant.name, key].dropna()
    return style.count(float(found.to_numpy()[0])) if len(found) else ABSENT


def p_text(value: float | None) -> str:
    return ABSENT if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def fixed(value: float | None, digits: int) -> str:
    return ABSENT if value is None or pd.isna(value) else style.number(value, digits)
