"""The tables that every study gets. A new one is one function under @table; it returns None where it has nothing to
show. The paper's own tables are in paper_tables.py, those of single designs in plan_tables.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from reports import style
from reports.columns import (
    at,
    best,
    caption,
    count,
    fixed,
    gap_text,
    means,
    outcomes,
    p_text,
    seeds,
    simultaneous,
    texts,
)
from reports.summary import compare, estimates, is_log, seen
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


# What stands beside the primary metric: the first three of these that the runs have. More fit no page, and all are in
# the table of every metric.
BESIDE = ("relation_error", "fid", "is", "relation_correlation", "class_consistency", "intra_fid")


@table("Variants")
def variants(unit: Unit) -> Table:
    """One row per variant: the scores, the difference to the baseline and how its runs ended."""
    beside = [key for key in BESIDE if key in unit.finals and key != unit.metric]
    keys = (unit.metric, *beside[:3])
    shown = [texts(unit, key) for key in keys]
    gaps = {row.variant: row.gap for row in compare(unit, unit.metric) if row.reference == unit.baseline}
    whole = all(reference == unit.baseline for _, reference in unit.pairs)
    top = best(unit.metric, means(unit, unit.metric).values(), 0)
    body = []
    for place, variant in enumerate(unit.variants):
        score, *others = (found[variant.name] for found in shown)
        gap = (gap_text(gaps.get(variant.name)),) if whole else ()
        cells = (variant.name, score, *gap, seeds(unit, variant), *others, outcomes(unit, variant))
        body.append(Row(cells, frozenset({1}) if place in top else frozenset()))
    score, *others = (style.label(key, unit.fingerprint, arrow=True) for key in keys)
    return Table(
        name="variants",
        title="Scores",
        columns=(
            "variant",
            score,
            *((f"difference to {unit.baseline}",) if whole else ()),
            "seeds",
            *others,
            "outcome",
        ),
        sections=(Section(None, tuple(body)),),
        notes=(
            caption(unit),
            _primary(unit, others),
            *((simultaneous(unit, unit.metric),) if whole else ()),
            "Only finished cells enter a mean: a collapsed or diverged one is counted under outcome, never averaged.",
        ),
    )


def _primary(unit: Unit, others: Sequence[str]) -> str:
    said = f"{style.label(unit.metric, unit.fingerprint)} is the primary metric, by which the study answers"
    secondary = "; the others are secondary, and no p-value is corrected for looking at them" if others else ""
    return f"{said}{secondary}."


@table("Variants")
def evidence(unit: Unit) -> Table | None:
    """How sure the comparisons are, one row each."""
    rows = compare(unit, unit.metric)
    if not rows:
        return None
    body = [
        Row(
            (
                row.variant,
                row.reference,
                gap_text(row.gap),
                str(row.gap.n),
                p_text(row.gap.p),
                fixed(row.improvement, 2),
            )
        )
        for row in rows
    ]
    return Table(
        name="evidence",
        title="How sure",
        columns=("variant", "against", f"difference in {style.label(unit.metric, unit.fingerprint)}", "seeds",
                 "p, adjusted", "P(better)"),
        sections=(Section(None, tuple(body)),),
        notes=(
            f"By the primary metric, {at(unit)}. {simultaneous(unit, unit.metric)} Seeds: of the side that has fewer. "
            "P(better) is the chance that a run of the variant scores better than a run of the other.",
            *((sentence,) if (sentence := seen(unit)) else ()),
        ),
    )  # fmt: skip


@table("Variants")
def spread(unit: Unit) -> Table | None:
    """The noise of each variant: over training seeds, and of one run's score over samples."""
    found = estimates(unit, unit.metric)
    if not any(row and row.sd is not None for row in found.values()):
        return None
    log = is_log(unit, unit.metric)
    spreads = {name: row.sd if row else None for name, row in found.items()}
    digits = style.decimals((value for value in spreads.values() if value), digits=2)
    sampling = means(unit, "fid_se")
    precise = style.decimals((value for value in sampling.values() if value), digits=2)
    has_error = unit.metric == "fid" and any(value is not None for value in sampling.values())
    body = [
        Row((name, fixed(spreads[name], digits), *((fixed(sampling[name], precise),) if has_error else ())))
        for name in spreads
    ]
    name = style.label(unit.metric, unit.fingerprint)
    error = (" The sampling error is that of one run's score, from its finite number of samples; it says nothing about "
             "another training seed and enters no interval here.")  # fmt: skip
    return Table(
        name="spread",
        title="Noise",
        columns=("variant", f"sd over seeds of {f'the log of {name}' if log else name}",
                 *(("sampling error",) if has_error else ())),
        sections=(Section(None, tuple(body)),),
        notes=(f"Between training seeds of one variant.{error if has_error else ''}",),
    )  # fmt: skip


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
        figures = (count(unit, variant, key) if key in counts else shown[key][variant.name].partition(" (")[0]
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
    if not any(estimates(unit, "best/fid").values()):
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
            "that the samples that chose them do not flatter them. In brackets: 95 % t interval over training seeds.",
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
        gaps = {row.variant: row.gap for row in compare(unit, key) if row.reference == unit.baseline}
        for row, (name, text) in zip(cells, texts(unit, key).items(), strict=True):
            row += [text, gap_text(gaps.get(name))]
    members = "; ".join(
        f"{name}: {', '.join(unit.classes[label] for label in labels)}" for name, labels in unit.groups.items()
    )
    return Table(
        name="geometry_texture",
        title="Geometry against texture",
        columns=tuple(columns),
        sections=(Section(None, tuple(Row(tuple(row)) for row in cells)),),
        notes=(caption(unit), f"{members}. Secondary metrics. {simultaneous(unit, keys[0])}"),
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
