"""The tables that every study gets. A new one is one function under @table; it returns None where it has nothing to
show. The paper's own tables are in paper_tables.py, those of single designs in plan_tables.py."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from reports import style
from reports.columns import (
    ABSENT,
    best,
    caption,
    count,
    differences,
    fixed,
    means,
    outcomes,
    p_text,
    seeds,
    texts,
)
from reports.summary import compare
from reports.unit import TRACES, Unit
from reports.writers import Row, Section, Table

Tabulate = Callable[[Unit], Table | None]
TABLES: list[tuple[str, Tabulate]] = []


def table(section: str) -> Callable[[Tabulate], Tabulate]:
    """Registers a table for a section of the page (see build.SECTIONS), in the order of its file."""

    def register(function: Tabulate) -> Tabulate:
        TABLES.append((section, function))
        return function

    return register


@table("Variants")
def variants(unit: Unit) -> Table:
    """One row a variant: the scores, the paired difference and how its runs ended."""
    rows = compare(unit, "fid")
    keys = ("fid", *(key for key in ("class_consistency", "intra_fid") if key in unit.finals))
    shown = [texts(unit, key) for key in keys]
    gaps = differences([row.difference for row in rows])
    top = best("fid", means(unit, "fid").values(), 0)
    body = []
    for place, variant in enumerate(unit.variants):
        score, *others = (found[variant.name] for found in shown)
        cells = (variant.name, score, gaps[place], seeds(unit, variant), *others, outcomes(unit, variant))
        body.append(Row(cells, frozenset({1}) if place in top else frozenset()))
    score, *others = (style.label(key, unit.fingerprint, arrow=True) for key in keys)
    return Table(
        name="variants",
        title="Scores",
        columns=("variant", score, f"difference to {unit.baseline}", "seeds", *others, "outcome"),
        sections=(Section(None, tuple(body)),),
        notes=(
            caption(unit),
            f"Differences are variant minus {unit.baseline}, paired by seed; below zero is better. Only finished cells "
            "enter a mean: a collapsed or diverged one is counted under outcome, never averaged.",
        ),
    )


@table("Variants")
def evidence(unit: Unit) -> Table | None:
    """How sure the differences are, with sampling error apart from the spread over seeds."""
    rows = compare(unit, "fid")
    if not any(row.difference for row in rows):
        return None
    name = style.label("fid", unit.fingerprint)
    sampling = means(unit, "fid_se")
    spreads = [row.estimate.sd if row.estimate else None for row in rows]
    errors = [sampling[row.variant] for row in rows]
    digits = style.decimals((value for value in (*spreads, *errors) if value), digits=2)
    gaps = differences([row.difference for row in rows])
    body = [
        Row((row.variant, gaps[place], str(row.difference.n) if row.difference else ABSENT, p_text(row.p),
             p_text(row.p_holm), fixed(row.improvement, 2), fixed(row.seeds_needed, 0), fixed(spreads[place], digits),
             fixed(errors[place], digits)))
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
            f"number of tests here ({sum(row.p is not None for row in rows)}). P(better) is the chance that a run of "
            "the variant scores better than a run of the baseline. Seeds needed: for a difference as large and as "
            "spread as the one observed, at 80 % power, from three pairs on. The sampling error is that of one run's "
            "score, from its finite number of samples; it says nothing about another training seed and enters no "
            "interval here.",
        ),
    )


@table("Variants")
def costs(unit: Unit) -> Table | None:
    """What a variant takes: two that differ in size or work are not compared by their idea alone."""
    counts = ("num_params_g", "num_params_d", "flops_per_image")
    measured = ("images_per_sec", "peak_memory_mib")
    keys = [key for key in (*counts, *measured) if key in unit.finals]
    if not keys:
        return None
    shown = {key: texts(unit, key) for key in measured}
    body = []
    for variant in unit.variants:
        # Speed and memory differ from machine to machine more than from seed to seed: no interval.
        figures = (count(unit, variant, key) if key in counts else shown[key][variant.name].partition(" ±")[0]
                   for key in keys)  # fmt: skip
        body.append(Row((variant.name, *figures)))
    return Table(
        name="costs",
        title="Costs",
        columns=("variant", *(style.label(key, unit.fingerprint, arrow=True) for key in keys)),
        sections=(Section(None, tuple(body)),),
        notes=("Parameters and operations are counted; images/s and memory are means over seeds, as measured.",),
    )


@table("Variants")
def best_of_run(unit: Unit) -> Table | None:
    """The other checkpoint rule, apart from the default and labelled."""
    found = compare(unit, "best/fid")
    if not any(row.estimate for row in found):
        return None
    keys = [key for key in ("best/fid", "best/is", "best/intra_fid") if key in unit.finals]
    shown = {key: texts(unit, key) for key in keys}
    last, steps = texts(unit, "fid"), means(unit, "best/step")
    top = best("best/fid", means(unit, "best/fid").values(), 0)
    body = [
        Row((item.name, last[item.name], *(shown[key][item.name] for key in keys), fixed(steps[item.name], 0)),
            frozenset({2}) if place in top else frozenset())
        for place, item in enumerate(unit.variants)
    ]  # fmt: skip
    name = style.label("fid", unit.fingerprint)
    labels = (style.label(key.removeprefix("best/"), unit.fingerprint, arrow=True) for key in keys)
    return Table(
        name="best_of_run",
        title="Best of run, scored again",
        columns=("variant", f"{name}, last step ↓", *(f"best of run: {label}" for label in labels), "at step (mean)"),
        sections=(Section(None, tuple(body)),),
        notes=(
            "Every other table is of the last step's weights, which no score has chosen. Here each run's weights are "
            f"those of its evaluation with the lowest {name}, scored again on fresh samples after the last step, so "
            "that the samples that chose them do not flatter them. ± is a 95 % t interval over training seeds.",
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
        gaps = differences([row.difference for row in compare(unit, key)])
        for row, text, difference in zip(cells, texts(unit, key).values(), gaps, strict=True):
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
    keys = [key for key in sorted(unit.finals.columns) if not key.startswith((*TRACES, "best/"))]
    rows = [Row((style.label(key, unit.fingerprint, arrow=True), *texts(unit, key).values())) for key in keys]
    if not rows:
        return None
    columns = ("metric", *(variant.name for variant in unit.variants))
    return Table("every_metric", "Every metric", columns, (Section(None, tuple(rows)),), (caption(unit),))


@table("Cells")
def cells(unit: Unit) -> Table:
    """Every planned cell and how far it is."""

    found = {(row["variant"], row["seed"]): row for row in unit.cells.to_dict("records")}

    def text(variant: str, seed: int) -> str:
        row = found[variant, seed]
        shared = "" if pd.isna(row["shared_study"]) else f", shared with {row['shared_study']}"
        if pd.isna(row["step"]) or row["state"] == "finished":
            return f"{row['state']}{shared}"
        of = "" if pd.isna(row["steps"]) else f" of {style.number(row['steps'], 0)}"
        return f"{row['state']} at {style.number(row['step'], 0)}{of}{shared}"

    rows = (Row((item.name, *(text(item.name, seed) for seed in unit.seeds))) for item in unit.variants)
    columns = ("variant", *(f"seed {seed}" for seed in unit.seeds))
    return Table("cells", "Cells", columns, (Section(None, tuple(rows)),), unit.notes)
