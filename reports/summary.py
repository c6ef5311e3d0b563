"""What the seeds of a unit say: its comparisons, the answer in sentences, and what it could not have seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from reports import statistics, style
from reports.statistics import Estimate, Gap
from reports.unit import Unit


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


def is_log(unit: Unit, key: str) -> bool:
    """Whether the unit's values of a metric are compared as ratios: the metric asks for it, and all are above 0."""
    values = [value for own in unit.finished(key).values() for value in own.values()]
    return statistics.on_log_scale(key) and all(value > 0 for value in values)


def estimates(unit: Unit, key: str) -> dict[str, Estimate | None]:
    """{variant: mean over its finished cells, with its interval}, in plan order; None where no cell has the metric."""
    log = is_log(unit, key)
    return {name: statistics.estimate(list(values.values()), log) for name, values in unit.finished(key).items()}


def compare(unit: Unit, key: str) -> list[Comparison]:
    """The unit's pairs (`Unit.pairs`) over finished cells, one family; without those of which a side has no value."""
    values = {name: list(own.values()) for name, own in unit.finished(key).items()}
    pairs = unit.pairs
    gaps = statistics.compare(values, [statistics.pair(*names) for names in pairs], is_log(unit, key))
    rows = []
    for (variant, reference), gap in zip(pairs, gaps, strict=True):
        if gap is None:
            continue
        lower = style.lower_is_better(key)
        better = statistics.probability_of_improvement(values[variant], values[reference])
        if better is not None and lower is False:
            better = 1 - better
        known = lower is not None and gap.p is not None
        rows.append(Comparison(variant, reference, gap, better if known else None))
    return rows


ENDED = ("collapsed", "diverged")


def counted(number: int, noun: str) -> str:
    """ "1 comparison", "3 comparisons"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def headline(unit: Unit) -> str:
    """The answer, by the primary metric and the same comparisons as the tables; says so where there is none.

    Every comparison that the test shows is named, the better ones first. Of a search it is what the confirmation on
    fresh seeds found.
    """
    done = int(unit.cells["state"].isin(["finished", *ENDED]).sum())
    feasible = sum(variant.obstacle is None for variant in unit.variants) * len(unit.seeds)
    rows = compare(unit, unit.metric)
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
    return f"{prefix}{answer(rows, unit)}{_endings(unit)}"


def answer(rows: list[Comparison], unit: Unit) -> str:
    """What these comparisons by the primary metric show, in a sentence or two."""
    shown = [row for row in rows if row.gap.shown]
    if shown:
        return _listing(shown, unit)
    if all(row.gap.p is None for row in rows):
        return _single(rows, unit)
    return f"No difference shown with {_seeds(unit)}.{_seen(unit)}"


def _listing(shown: list[Comparison], unit: Unit) -> str:
    """ "feat16 lowers FD by 31 % against none (95 % interval 12 to 46), n = 8; feat8 raises it by ..."."""
    lower = style.lower_is_better(unit.metric) is not False
    shown = sorted(shown, key=lambda row: row.gap.value * (1 if lower else -1))
    counts = {row.gap.n for row in shown}
    references = {row.reference for row in shown}
    name = style.label(unit.metric, unit.fingerprint)
    clauses = []
    for place, row in enumerate(shown):
        verb = "lowers" if row.gap.value < 0 else "raises"
        against = f" against {row.reference}" if not place or len(references) > 1 else ""
        first = "95 % interval " if not place else ""
        n = f", n = {row.gap.n}" if not place or len(counts) > 1 else ""
        clauses.append(f"{_said(row, unit)} {verb} {name if not place else 'it'} by {_amount(row.gap)}{against} "
                       f"({first}{_range(row.gap)}){n}")  # fmt: skip
    return f"{'; '.join(clauses)}."


def _amount(gap: Gap) -> str:
    """How much: "31 %" of a ratio, "0.41" of a difference; without a sign."""
    if gap.log:
        return style.percent(math.exp(gap.value), signed=False)
    return style.number(abs(gap.value), _digits(gap))


def _range(gap: Gap) -> str:
    """The interval of `_amount`, smaller end first; an end on the other side of "no difference" is below 0."""
    assert gap.low is not None and gap.high is not None
    sign = -1 if gap.value < 0 else 1
    ends = [sign * (100 * math.expm1(end) if gap.log else end) for end in (gap.low, gap.high)]
    digits = (1 if min(map(abs, ends)) < 9.95 else 0) if gap.log else _digits(gap)
    low, high = (style.number(end, digits) for end in sorted(ends))
    return f"{low} to {high}{' %' if gap.log else ''}"


def _digits(gap: Gap) -> int:
    width = gap.value if gap.low is None or gap.high is None else gap.high - gap.low
    return style.decimals([width or gap.value], digits=2)


def _single(rows: list[Comparison], unit: Unit) -> str:
    """What one seed each has to say: the best variant, and that it shows nothing."""
    lower = style.lower_is_better(unit.metric) is not False
    best = min(rows, key=lambda row: row.gap.value * (1 if lower else -1))
    than = "below" if best.gap.value < 0 else "above"
    name = style.label(unit.metric, unit.fingerprint)
    return (
        f"By {name}, {_said(best, unit)} is {_amount(best.gap)} {than} {best.reference} on one seed; one seed shows no "
        f"interval."
    )


def visible(unit: Unit) -> tuple[float, bool, str] | None:
    """The smallest difference by the primary metric that the whole design shows with 80 % power; None where unknown.

    (size, log, origin): a distance of logs where `log`, else of the metric itself. The design is every planned seed of
    every variant that can run, without runs that collapsed or diverged; the sd is the unit's own, else that of the
    preset's other studies, else the shipped one.
    """
    ended = unit.cells[unit.cells["state"].isin(ENDED)].groupby("variant").size()
    sizes = {variant.name: len(unit.seeds) - int(ended.get(variant.name, 0))
             for variant in unit.variants if variant.obstacle is None}  # fmt: skip
    effect = statistics.visible(sizes, [statistics.pair(*pair) for pair in unit.pairs])
    log = is_log(unit, unit.metric)
    sd = statistics.pooled_sd([list(own.values()) for own in unit.finished(unit.metric).values()], log)
    origin = "by its own spread over seeds"
    if sd is None and log:
        sd, origin = unit.noise.get(unit.metric), "by the spread of this preset's other studies"
    if sd is None and log:
        sd, origin = (
            statistics.shipped_noise(unit.preset, unit.metric),
            "by the spread that the preset is known to have",
        )
    return None if effect is None or sd is None else (effect * sd, log, origin)


def seen(unit: Unit) -> str | None:
    """What the design can show, as a sentence for the page; None where nothing is known of its noise."""
    found = visible(unit)
    if found is None:
        return None
    size, log, origin = found
    name = style.label(unit.metric, unit.fingerprint)
    comparisons = counted(len(unit.pairs), "comparison")
    n = f"{len(unit.seeds)} seeds per variant" if len(unit.seeds) > 1 else "one seed per variant"
    return f"With 80 % power, {n} and {comparisons} show {name} {statistics.changed(size, log)}, {origin}."


def _seen(unit: Unit) -> str:
    found = visible(unit)
    if found is None:
        return ""
    name = style.label(unit.metric, unit.fingerprint)
    return f" With 80 % power, this design would show {name} {statistics.changed(found[0], found[1])}."


def _seeds(unit: Unit) -> str:
    counts = {len(own) for own in unit.finished(unit.metric).values() if own}
    low, high = min(counts), max(counts)
    return f"n = {low} per variant" if low == high else f"n = {low} to {high} per variant"


def _tried(unit: Unit) -> str:
    ended = sum(trial.state != "running" for trial in unit.search.trials) if unit.search else 0
    return f"{ended} {'trial is' if ended == 1 else 'trials are'} done"


def _without_baseline(unit: Unit, prefix: str) -> str | None:
    """The answer where no run of the baseline came through but others did; None where that is not so."""
    states = unit.cells.loc[unit.cells["variant"] == unit.baseline, "state"]
    scored = {name: found for name, found in estimates(unit, unit.metric).items() if found}
    if not scored or not len(states) or not states.isin(ENDED).all():
        return None
    lower = style.lower_is_better(unit.metric) is not False
    top = (min if lower else max)(scored, key=lambda name: scored[name].mean)
    found = scored[top]
    score = _score(found, style.label(unit.metric, unit.fingerprint))
    runs = "Its only run" if len(states) == 1 else f"All {len(states)} runs"
    of = f"of {unit.baseline} collapsed or diverged, so no difference to it can be taken"
    return (
        f"{prefix}{runs} {of}; of the others {top} scores {'lowest' if lower else 'highest'}, {score}, n = {found.n}."
    )


def _score(found: Estimate, name: str) -> str:
    digits = style.decimals([found.mean], digits=3)
    return f"{style.interval(found.mean, found.low, found.high, digits)} {name}"


def _endings(unit: Unit) -> str:
    """Which runs a reader must know to be missing from the means."""
    found = []
    for variant in unit.variants:
        states = unit.cells.loc[unit.cells["variant"] == variant.name, "state"]
        if ended := int(states.isin(ENDED).sum()):
            found.append(f"{ended} of {len(states)} runs of {variant.name}")
    return f" Collapsed or diverged: {', '.join(found)}." if found else ""


def _said(row: Comparison, unit: Unit) -> str:
    """The variant; of a search, which trial its best is and of how many."""
    if unit.search is not None and unit.search.best is not None and row.variant == "best":
        return f"{unit.search.best} (best of {len(unit.search.trials)} trials)"
    return row.variant


def tidy(unit: Unit) -> pd.DataFrame:
    """One row per metric, variant and comparison of it; what table.csv holds.

    A variant that is compared with nothing, such as the baseline, has one row without a comparison. On the log scale
    `mean` is geometric, `sd` is of the log, and `difference` and its ends are ratios less one.
    """
    rows = []
    for key in sorted(unit.finals.columns):
        log, compared = is_log(unit, key), compare(unit, key)
        for name, own in estimates(unit, key).items():
            if own is None:
                continue
            own_rows: list[Comparison | None] = [row for row in compared if row.variant == name]
            for row in own_rows or [None]:
                rows.append({**_tidy_estimate(unit, key, name, own, log), **_tidy_gap(row)})
    return pd.DataFrame(rows)


def _tidy_estimate(unit: Unit, key: str, name: str, own: Estimate, log: bool) -> Mapping[str, object]:
    return {
        "study": unit.study,
        "protocol": unit.protocol,
        "variant": name,
        "metric": key,
        "role": "primary" if key == unit.metric else "secondary",
        "scale": "log" if log else "linear",
        "mean": own.mean,
        "low95": own.low,
        "high95": own.high,
        "sd": own.sd,
        "n": own.n,
        "planned": len(unit.seeds),
        "metric_fingerprint": unit.fingerprint,
    }


def _tidy_gap(row: Comparison | None) -> Mapping[str, object]:
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
