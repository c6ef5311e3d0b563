"""A table of the page, and what several tables share: texts of scores and outcomes, and the notes beneath.

To add a table, write a function `Results -> Table | None` in a file of `reports/sections` (None: nothing to show) and
name it in `reports/page.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from reports import format
from reports.comparison import estimates, is_log
from reports.format import ABSENT
from reports.metrics import metric
from reports.results import Results, Variant


@dataclass(frozen=True)
class Row:
    """A row of a table. `cells` start with the row's name; `bold` holds the indices of the best figures."""

    cells: tuple[str, ...]
    bold: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Block:
    """Rows of one origin. `published` ones are the paper's and never to be taken for ours."""

    heading: str | None
    rows: tuple[Row, ...]
    published: bool = False


@dataclass(frozen=True)
class Table:
    """A table with plain text in every cell; it is escaped for each format when it is written."""

    title: str
    columns: tuple[str, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()


def caption(results: Results) -> str:
    """How scores were measured, at which step, what their intervals are, and which cells another study trained."""
    counts = sorted({len(values) for values in results.finished(results.metric).values() if values})
    n = f", n = {counts[0]}" if len(counts) == 1 else ", n as stated" if counts else ""
    sentences = [
        f"Measured by {results.fingerprint}, {taken_at(results)}." if results.fingerprint else "Nothing measured yet.",
        f"In brackets: 95 % t interval over training seeds{n}.",
    ]
    if counts and counts[0] == 1:
        only = "One seed has" if counts == [1] else "A figure without brackets is one seed's, which has"
        sentences.append(f"{only} no interval.")
    sentences.append("Scores that are compared as ratios have geometric means and intervals of the logarithm.")
    studies = results.cells["shared_study"].dropna()
    if len(studies):
        one = len(studies) == 1
        cells = "1 cell is" if one else f"{len(studies)} of the {results.cells['run_id'].count()} cells are"
        origin, them = " and ".join(sorted(set(studies))), "it" if one else "them"
        sentences.append(f"{cells} shared with {origin}, which trained {them} with the same config and seed.")
    return " ".join(sentences)


def taken_at(results: Results) -> str:
    """When scores were taken: "at the last step (1,000)", "mean of the last 3 evaluations (to step 1,000)"."""
    listed = " and ".join(format.number(step, 0) for step in results.last_steps)
    if results.endpoint > 1:
        return f"mean of the last {results.endpoint} evaluations{f' (to step {listed})' if listed else ''}"
    return f"at the last step{f' ({listed})' if listed else ''}"


def intervals_note(results: Results, key: str) -> str:
    """What p and the intervals of comparisons are; for the notes of a table that has some."""
    lower = metric(key).lower
    better = "" if lower is None else " Below zero is better." if lower else " Above zero is better."
    over = format.counted(len(results.pairs), "comparison")
    unit = ", in per cent" if is_log(results, key) else ""
    if results.adaptive is not None and key == results.metric:
        return (
            f"Differences are of means over the seeds of the look that decided them, or of the latest{unit}, with "
            f"repeated 95 % intervals: simultaneous over {over} and all looks, so they are valid at any stopping time. "
            f"p is adjusted for both (reports/sequential.py).{better}"
        )
    return (
        f"Differences are of means over seeds{unit}, with simultaneous 95 % intervals over {over}; p is adjusted for "
        f"them, by the same test (reports/statistics.py).{better}"
    )


def score_texts(results: Results, key: str) -> dict[str, str]:
    """{variant: "10.5 (9.3 to 11.9)"}; a variant without a score says why in the row of the primary score or of FD."""
    rows = estimates(results, key)
    found = [row for row in rows.values() if row]
    half_widths = (row.mean - row.low for row in found if row.low is not None)
    sizes = [row.mean for row in found]
    few = is_log(results, key) and min(sizes, default=1.0) < 1  # they span decades: more digits would be noise
    digits = max(format.decimals(sizes, digits=2 if few else 3), format.decimals(half_widths, digits=1))
    texts = {}
    for variant in results.variants:
        row = rows[variant.name]
        if row is not None:
            texts[variant.name] = format.interval(row.mean, row.low, row.high, digits)
        elif key in (results.metric, "fid"):  # why there is none: what most of its cells are
            texts[variant.name] = variant.build_error or str(results.of(variant.name)["state"].mode().iat[0])
        else:
            texts[variant.name] = ABSENT
    return texts


def outcomes(results: Results, variant: Variant) -> str:
    """ "2 finished, 1 collapsed at step 400", from the states of the planned cells."""
    if variant.build_error:
        return variant.build_error
    cells = results.of(variant.name)
    found = []
    for state, quantity in Counter(cells["state"]).items():
        reached = cells.loc[cells["state"] == state, "step"].dropna()
        steps = dict.fromkeys(format.number(step, 0) for step in reached)
        where = f" at step {', '.join(steps)}" if steps and state != "finished" else ""
        found.append(f"{quantity} {state}{where}")
    return ", ".join(found)


def seeds_finished(results: Results, variant: Variant) -> str:
    """ "2 of 3": how many seeds enter the means."""
    scored = results.finished(results.metric)[variant.name]
    return ABSENT if variant.build_error else f"{len(scored)} of {results.to_run(variant.name)}"


def best(key: str, figures: Iterable[float | None], offset: int = 0) -> frozenset[int]:
    """Where the best of two or more figures stands; `offset` is the place of the first."""
    found = {place: figure for place, figure in enumerate(figures) if figure is not None}
    lower = metric(key).lower
    if len(found) < 2 or lower is None:
        return frozenset()
    top = (min if lower else max)(found.values())
    return frozenset(place + offset for place, figure in found.items() if figure == top)


def setting(value: object) -> str:
    """The value of a config field, as a study file has it: "0.0002", "true", "[32]"."""
    if value is None:
        return ABSENT
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
