"""The tables of a report. A new one is one function under @table; it returns None where it has nothing to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import pandas as pd

from reports import style
from reports.paper import published
from reports.summary import Comparison, compare
from reports.unit import TRACES, Unit, Variant
from reports.writers import Row, Section, Table

ABSENT = "–"


Tabulate = Callable[[Unit], Table | None]
TABLES: list[tuple[str, Tabulate]] = []


def table(section: str) -> Callable[[Tabulate], Tabulate]:
    """Registers a table for a section of the page (see build.SECTIONS), in the order of this file."""

    def register(function: Tabulate) -> Tabulate:
        TABLES.append((section, function))
        return function

    return register


@table("Answer")
def table1(unit: Unit) -> Table | None:
    """The paper's Table 1: a column a place of attention, FID and IS beneath each other, theirs under ours."""
    if unit.paper != "table1":
        return None
    variants = unit.variants
    ours = [_seeds_row(unit)]
    for key in ("fid", "is_mean"):
        estimates, texts = _estimates(unit, key)
        if key == "fid" or any(text not in (ABSENT, "") for text in texts):
            ours.append(Row((style.label(key, unit.fingerprint, arrow=True), *texts), _best(key, estimates, 1)))
    theirs = []
    for key in ("fid", "is_mean"):
        values = {record.variant: record.value for record in published("table1") if record.metric == key}
        texts = [style.number(values[item.name], 2) if item.name in values else ABSENT for item in variants]
        best = _best(key, [values.get(item.name) for item in variants], 1)
        theirs.append(Row((style.label(key, "inception", arrow=True), *texts), best))
    return Table(
        name="table1",
        title="Table 1, with our numbers",
        columns=("", *(_place(item) for item in variants)),
        sections=(
            Section(f"ours: {unit.protocol}, mean ± 95 % interval over training seeds", tuple(ours)),
            Section("paper: ImageNet 128 px, 1M steps, one run, no interval", tuple(theirs), published=True),
        ),
        notes=(
            caption(unit),
            "The paper's figures are another data set, budget and feature extractor: compare the order of the "
            "variants, never the figures. They are best over the run; ours are at the last step. "
            f"Source: {published('table1')[0].source}, Table 1.",
        ),
    )


@table("Variants")
def variants(unit: Unit) -> Table:
    """One row a variant: the score, the paired difference, and what the variant costs."""
    rows = compare(unit, "fid")
    keys = ("class_consistency", "intra_fid", "images_per_sec", "peak_memory_mib")
    shown = {key: _estimates(unit, key)[1] for key in keys}
    _, scores = _estimates(unit, "fid")
    differences = _differences(rows)
    best = _best("fid", [row.estimate.mean if row.estimate else None for row in rows], 0)
    body = []
    for place, variant in enumerate(unit.variants):
        params = " / ".join(_parameters(unit, variant, key) for key in ("num_params_g", "num_params_d"))
        cells = (variant.name, scores[place], differences[place], _seeds(unit, variant),
                 shown["class_consistency"][place], shown["intra_fid"][place], ABSENT if variant.obstacle else params,
                 *(shown[key][place].partition(" ±")[0] for key in ("images_per_sec", "peak_memory_mib")),
                 outcomes(unit, variant))  # fmt: skip
        body.append(Row(cells, frozenset({1}) if place in best else frozenset()))
    labels = {key: style.label(key, unit.fingerprint, arrow=True) for key in ("fid", *keys)}
    return Table(
        name="variants",
        title="Scores and costs",
        columns=(
            "variant",
            labels["fid"],
            f"difference to {unit.baseline}",
            "seeds",
            labels["class_consistency"],
            labels["intra_fid"],
            "parameters G / D",
            labels["images_per_sec"],
            labels["peak_memory_mib"],
            "outcome",
        ),  # fmt: skip
        sections=(Section(None, tuple(body)),),
        notes=(
            caption(unit),
            f"Differences are variant minus {unit.baseline}, paired by seed; below zero is better. Only finished cells "
            "enter a mean: a collapsed or diverged one is counted under outcome, never averaged. Images/s and memory "
            "are means over seeds.",
        ),
    )


@table("Variants")
def evidence(unit: Unit) -> Table | None:
    """How sure the differences are, with sampling error apart from the spread over seeds."""
    rows = compare(unit, "fid")
    if not any(row.difference for row in rows):
        return None
    name = style.label("fid", unit.fingerprint)
    sampling = {row.variant: row.estimate for row in compare(unit, "fid_se")}
    spreads = [row.estimate.sd if row.estimate else None for row in rows]
    errors = [item.mean if (item := sampling.get(row.variant)) else None for row in rows]
    digits = style.decimals((value for value in (*spreads, *errors) if value), digits=2)
    differences = _differences(rows)
    body = [
        Row((row.variant, differences[place], str(row.difference.n) if row.difference else ABSENT, _p(row.p),
             _p(row.p_holm), _fixed(row.improvement, 2), _whole(row.seeds_needed), _fixed(spreads[place], digits),
             _fixed(errors[place], digits)))
        for place, row in enumerate(rows)
    ]  # fmt: skip
    return Table(
        name="evidence",
        title="How sure",
        columns=(
            "variant",
            f"difference to {unit.baseline}",
            "pairs",
            "p",
            "p, Holm",
            "P(better)",
            "seeds needed",
            "sd over seeds",
            "sampling error",
        ),  # fmt: skip
        sections=(Section(None, tuple(body)),),
        notes=(
            f"By {name} at the last step. p is of a paired t test, from three pairs on; Holm corrects it for the "
            f"{sum(row.p is not None for row in rows)} tests here. P(better) is the chance that a run of the variant "
            "scores better than a run of the baseline. Seeds needed: for a difference as large and as spread as the "
            "one observed, at 80 % power, from three pairs on. The sampling error is that of one run's score, from its "
            "finite number of samples; it says nothing about another training seed and enters no interval here.",
        ),
    )


@table("Geometry against texture")
def geometry_texture(unit: Unit) -> Table | None:
    """The claim behind Figure 6: attention helps where distant parts must agree, not where local statistics do."""
    keys = [f"fid_group/{name}" for name in unit.groups if f"fid_group/{name}" in unit.finals]
    if len(keys) < 2:
        return None
    columns, cells = ["variant"], [[variant.name] for variant in unit.variants]
    for key in keys:
        columns += [style.label(key, unit.fingerprint, arrow=True), f"to {unit.baseline}"]
        _, texts = _estimates(unit, key)
        for row, text, difference in zip(cells, texts, _differences(compare(unit, key)), strict=True):
            row += [text, difference]
    members = "; ".join(
        f"{name}: {', '.join(unit.classes[label] for label in labels)}" for name, labels in unit.groups.items()
    )
    return Table(
        name="geometry_texture",
        title="Geometry against texture",
        columns=tuple(columns),
        sections=(Section(None, tuple(Row(tuple(row)) for row in cells)),),
        notes=(caption(unit), f"{members}. Differences are paired by seed; below zero is better."),
    )


@table("Every metric")
def every_metric(unit: Unit) -> Table | None:
    """All that was measured on samples at the last step, for who looks for a figure not shown above."""
    keys = [key for key in sorted(unit.finals.columns) if not key.startswith(TRACES)]
    rows = [Row((style.label(key, unit.fingerprint, arrow=True), *_estimates(unit, key)[1])) for key in keys]
    if not rows:
        return None
    columns = ("metric", *(variant.name for variant in unit.variants))
    return Table("every_metric", "Every metric", columns, (Section(None, tuple(rows)),), (caption(unit),))


@table("Cells")
def cells(unit: Unit) -> Table:
    """Every planned cell and how far it is."""

    def text(variant: str, seed: int) -> str:
        found = unit.cells[(unit.cells["variant"] == variant) & (unit.cells["seed"] == seed)]
        row = found.to_dict("records")[0]
        if pd.isna(row["step"]) or row["state"] == "finished":
            return str(row["state"])
        of = "" if pd.isna(row["steps"]) else f" of {style.number(row['steps'], 0)}"
        return f"{row['state']} at {style.number(row['step'], 0)}{of}"

    rows = (Row((item.name, *(text(item.name, seed) for seed in unit.seeds))) for item in unit.variants)
    columns = ("variant", *(f"seed {seed}" for seed in unit.seeds))
    return Table("cells", "Cells", columns, (Section(None, tuple(rows)),), unit.notes)


def caption(unit: Unit) -> str:
    """By what, on how many samples, at which step, and over what the interval is."""
    steps = sorted({int(step) for step in unit.cells.loc[unit.cells["state"] == "finished", "step"].dropna()})
    at = f"at the last step ({' and '.join(style.number(step, 0) for step in steps)})" if steps else "at the last step"
    counts = sorted({len(values) for values in unit.finished("fid").values() if values})
    n = f", n = {counts[0]}" if len(counts) == 1 else ", n as stated" if counts else ""
    measured = f"Measured by {unit.fingerprint}, {at}." if unit.fingerprint else "Nothing measured yet."
    single = " One seed has no interval." if counts and counts[0] == 1 else ""
    return f"{measured} ± is a 95 % t interval over training seeds{n}.{single}"


def outcomes(unit: Unit, variant: Variant) -> str:
    """ "2 finished, 1 collapsed at step 400", from the states of the planned cells."""
    if variant.obstacle:
        return variant.obstacle
    cells = unit.cells[unit.cells["variant"] == variant.name]
    texts = []
    for state, number in Counter(cells["state"]).items():
        steps = [style.number(step, 0) for step in cells.loc[cells["state"] == state, "step"].dropna()]
        where = f" at step {', '.join(steps)}" if steps and state != "finished" else ""
        texts.append(f"{number} {state}{where}")
    return ", ".join(texts)


def _place(variant: Variant) -> str:
    return "no attention" if variant.name == "none" else variant.name


def _seeds(unit: Unit, variant: Variant) -> str:
    return ABSENT if variant.obstacle else f"{len(unit.finished('fid')[variant.name])} of {len(unit.seeds)}"


def _seeds_row(unit: Unit) -> Row:
    return Row(("seeds finished", *(_seeds(unit, variant) for variant in unit.variants)))


def _estimates(unit: Unit, key: str) -> tuple[list[float | None], list[str]]:
    """Means and their texts by variant; a variant without a figure says why in the row of the score."""
    rows = compare(unit, key)
    scale = style.METRICS[key].scale if key in style.METRICS else 1.0
    found = [row.estimate for row in rows if row.estimate]
    digits = max(
        style.decimals(scale * item.mean for item in found),
        style.decimals((scale * item.half_width for item in found if item.half_width), digits=1),
    )
    texts = []
    for row, variant in zip(rows, unit.variants, strict=True):
        if row.estimate is None:
            texts.append(_why(unit, variant) if key == "fid" else ABSENT)
        else:
            half = row.estimate.half_width
            texts.append(style.plus_minus(scale * row.estimate.mean, None if half is None else scale * half, digits))
    return [row.estimate.mean if row.estimate else None for row in rows], texts


def _why(unit: Unit, variant: Variant) -> str:
    states = unit.cells.loc[unit.cells["variant"] == variant.name, "state"]
    return variant.obstacle or str(states.mode().iat[0])


def _differences(rows: list[Comparison]) -> list[str]:
    found = [row.difference for row in rows]
    digits = style.decimals((gap.half_width or gap.mean for gap in found if gap), digits=2)
    return [style.plus_minus(gap.mean, gap.half_width, digits, signed=True) if gap else ABSENT for gap in found]


def _best(key: str, means: Iterable[float | None], offset: int) -> frozenset[int]:
    """Where the best of two or more figures stands."""
    found = {place: mean for place, mean in enumerate(means) if mean is not None}
    metric = style.METRICS.get(key)
    if len(found) < 2 or metric is None or metric.lower is None:
        return frozenset()
    best = (min if metric.lower else max)(found.values())
    return frozenset(place + offset for place, mean in found.items() if mean == best)


def _parameters(unit: Unit, variant: Variant, key: str) -> str:
    if key not in unit.finals:
        return ABSENT
    found = unit.finals.loc[unit.cells["variant"] == variant.name, key].dropna()
    return style.count(float(found.to_numpy()[0])) if len(found) else ABSENT


def _p(value: float | None) -> str:
    return ABSENT if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _fixed(value: float | None, digits: int) -> str:
    return ABSENT if value is None or pd.isna(value) else style.number(value, digits)


def _whole(value: int | None) -> str:
    return ABSENT if value is None else str(value)
