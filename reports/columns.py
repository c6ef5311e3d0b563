"""What stands in a table: one text a variant, and the sentences beneath. Shared by all modules of tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

from reports import style
from reports.statistics import Estimate
from reports.summary import estimates
from reports.unit import Unit, Variant
from reports.writers import Row

ABSENT = "–"


def caption(unit: Unit) -> str:
    """By what, on how many samples, at which step, over what the interval is, and which cells are another study's."""
    steps = sorted({int(step) for step in unit.cells.loc[unit.cells["state"] == "finished", "step"].dropna()})
    at = f"at the last step ({' and '.join(style.number(step, 0) for step in steps)})" if steps else "at the last step"
    counts = sorted({len(values) for values in unit.finished("fid").values() if values})
    n = f", n = {counts[0]}" if len(counts) == 1 else ", n as stated" if counts else ""
    sentences = [
        f"Measured by {unit.fingerprint}, {at}." if unit.fingerprint else "Nothing measured yet.",
        f"± is a 95 % t interval over training seeds{n}.",
    ]
    if counts and counts[0] == 1:
        only = "One seed has" if counts == [1] else "A figure without ± is one seed's, which has"
        sentences.append(f"{only} no interval.")
    return " ".join([*sentences, *_shared(unit)])


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
    return ABSENT if variant.obstacle else f"{len(unit.finished('fid')[variant.name])} of {len(unit.seeds)}"


def seeds_row(unit: Unit, variants: Iterable[Variant]) -> Row:
    return Row(("seeds finished", *(seeds(unit, variant) for variant in variants)))


def means(unit: Unit, key: str) -> dict[str, float | None]:
    """{variant: mean over the seeds that finished}."""
    return {name: found.mean if found else None for name, found in estimates(unit, key).items()}


def texts(unit: Unit, key: str) -> dict[str, str]:
    """{variant: "10.5 ± 1.2"}; a variant without a score says why in the row of the score."""
    rows = estimates(unit, key)
    scale = style.METRICS[key].scale if key in style.METRICS else 1.0
    found = [row for row in rows.values() if row]
    digits = max(
        style.decimals(scale * row.mean for row in found),
        style.decimals((scale * row.half_width for row in found if row.half_width), digits=1),
    )
    result = {}
    for variant in unit.variants:
        row = rows[variant.name]
        if row is None:
            result[variant.name] = why(unit, variant) if key == "fid" else ABSENT
        else:
            half = None if row.half_width is None else scale * row.half_width
            result[variant.name] = style.plus_minus(scale * row.mean, half, digits)
    return result


def why(unit: Unit, variant: Variant) -> str:
    """Why there is no score: what most of its cells are."""
    states = unit.cells.loc[unit.cells["variant"] == variant.name, "state"]
    return variant.obstacle or str(states.mode().iat[0])


def differences(gaps: Sequence[Estimate | None]) -> list[str]:
    """ "−1.9 ± 0.7", with the same decimals in the whole column."""
    digits = style.decimals((gap.half_width or gap.mean for gap in gaps if gap), digits=2)
    return [style.plus_minus(gap.mean, gap.half_width, digits, signed=True) if gap else ABSENT for gap in gaps]


def best(key: str, figures: Iterable[float | None], offset: int) -> frozenset[int]:
    """Where the best of two or more figures stands; `offset` is the place of the first."""
    found = {place: figure for place, figure in enumerate(figures) if figure is not None}
    metric = style.METRICS.get(key)
    if len(found) < 2 or metric is None or metric.lower is None:
        return frozenset()
    top = (min if metric.lower else max)(found.values())
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
