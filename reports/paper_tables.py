"""The paper's own tables, with our numbers above its own. They are never mixed: each block of rows has one origin."""

from __future__ import annotations

from collections.abc import Sequence

from reports import style
from reports.columns import ABSENT, at, best, caption, means, outcomes, seeds_row, texts
from reports.paper import Published, published
from reports.tables import table
from reports.unit import Unit, Variant
from reports.writers import Row, Section, Table

NEVER_FIGURES = (
    "The paper's figures are another data set, budget and feature extractor: compare the order of the variants, never "
    "the figures."
)
NAMES = {"none": "no attention", "acgan": "AC-GAN", "sngan_projection": "SNGAN, projection", "sagan": "SAGAN"}


@table("Answer")
def table1(unit: Unit) -> Table | None:
    """The paper's Table 1: a column a place of attention or of its residual control, FID and IS beneath each other."""
    if unit.paper != "table1":
        return None
    # The paper has no controls with as many operations; they stand in the table of attention against residual.
    shown = [item for item in unit.variants if item.changes.get("model.attention.kind") != "residual_flops"]
    keys = ("fid", "is")
    return Table(
        name="table1",
        title="Table 1, with our numbers",
        columns=("", *(NAMES.get(item.name, item.name) for item in shown)),
        sections=(_ours(unit, shown, keys), _theirs(published("table1"), shown, keys)),
        notes=(caption(unit), f"{NEVER_FIGURES} {_taken(unit)} Source: {published('table1')[0].source}, Table 1."),
    )


@table("Answer")
def table2(unit: Unit) -> Table | None:
    """The paper's Table 2 with models as columns, so that each block heads its scores by its own extractor."""
    if unit.paper != "table2":
        return None
    keys = ("is", "intra_fid", "fid")
    return Table(
        name="table2",
        title="Table 2, with our numbers",
        columns=("", *(NAMES.get(item.name, item.name) for item in unit.variants)),
        sections=(_ours(unit, unit.variants, keys), _theirs(published("table2"), unit.variants, keys)),
        notes=(
            caption(unit),
            f"{NEVER_FIGURES} {_taken(unit)} Its FID of SNGAN was measured on that model's released weights. "
            f"Source: {published('table2')[0].source}, Table 2.",
        ),
    )


@table("Answer")
def reimplementations(unit: Unit) -> Table | None:
    """What others got for the two ends of Table 2: each pair on one protocol, no two pairs on the same."""
    if unit.paper != "table2":
        return None
    models, keys = ("sngan", "sagan"), ("fid", "is")
    sources = ("studiogan", "studiogan_tiny", "studiogan_imagenet", "studiogan_benchmark", "studiogan_baby",
               "studiogan_papa", "studiogan_grandpa")  # fmt: skip
    rows, named = [], dict[str, None]()
    for records in map(published, sources):
        named[records[0].source] = None
        values = {(record.metric, record.variant): record.value for record in records}
        figures = [values.get((key, model)) for key in keys for model in models]
        bold = best("fid", figures[:2], 1) | best("is", figures[2:], 3)
        rows.append(Row((f"{records[0].dataset}: {records[0].protocol}", *map(_published_text, figures)), bold))
    return Table(
        name="reimplementations",
        title="SNGAN and SAGAN elsewhere",
        columns=("", "SNGAN FID ↓", "SAGAN FID ↓", "SNGAN IS ↑", "SAGAN IS ↑"),
        sections=(Section("published by others, one run each, no interval", tuple(rows), published=True),),
        notes=(
            "Compare within a row only: the protocols differ, and the same weights scored by another protocol have "
            f"moved by 4 to 5 FID. The rates and D steps of a pair may differ too. Sources: {'; '.join(named)}.",
        ),
    )


@table("Answer")
def figure4(unit: Unit) -> Table | None:
    """The stabilisation study: how its runs ended, and the FID that the paper prints under its samples."""
    if unit.paper not in ("figure3", "figure4"):
        return None
    shown = unit.variants
    ours = _ours(unit, shown, ("fid", "is"))
    ended = Row(("outcome", *(outcomes(unit, item) for item in shown)))
    rates = Row(("learning rate, G / D", *(_rates_text(item) for item in shown)))
    records = published("figure4")
    theirs = []
    for step in sorted({record.step for record in records if record.step is not None}):
        at = [record for record in records if record.step == step]
        theirs += _published_rows(at, shown, ("fid",), f" at step {style.number(step, 0)}")
    return Table(
        name="figure4",
        title="Stabilisation, with our numbers",
        columns=("", *(item.name for item in shown)),
        sections=(
            Section(ours.heading, (rates, *ours.rows, ended)),
            Section("paper: ImageNet 128 px, one run, no interval", tuple(theirs), published=True),
        ),
        notes=(
            caption(unit),
            f"{_equal_rate(unit)}The study is run without attention and with one D step a G step.",
            f"{NEVER_FIGURES} Source: {records[0].source}, Figure 4.",
        ),
    )


def _equal_rate(unit: Unit) -> str:
    """What the paper leaves out: which rate its arms without TTUR share."""
    equal: dict[str, list[str]] = {}
    for item in unit.variants:
        lr_g, lr_d = item.rates
        if lr_g is not None and lr_g == lr_d:
            equal.setdefault(f"{lr_g:g}", []).append(item.name)
    here = "; ".join(f"lr_G = lr_D = {rate} in {' and '.join(names)}" for rate, names in equal.items())
    if not here:
        return ""
    return f"The paper does not publish the equal learning rate of its arms without TTUR; here {here}. "


def _rates_text(variant: Variant) -> str:
    return " / ".join(ABSENT if rate is None else f"{rate:g}" for rate in variant.rates)


def _taken(unit: Unit) -> str:
    """When the paper's figures were taken, and when ours."""
    return f"They are best over the run; ours: {at(unit)}."


def _ours(unit: Unit, shown: Sequence[Variant], keys: Sequence[str]) -> Section:
    """The study's primary metric first, where the paper's table does not have it."""
    rows = [seeds_row(unit, shown)]
    for key in dict.fromkeys((*([unit.metric] if unit.metric not in keys else []), *keys)):
        found, figures = texts(unit, key), means(unit, key)
        if key in (unit.metric, "fid") or any(figure is not None for figure in figures.values()):
            top = best(key, [figures[item.name] for item in shown], 1)
            label = style.label(key, unit.fingerprint, arrow=True)
            rows.append(Row((label, *(found[item.name] for item in shown)), top))
    return Section(f"ours: {unit.protocol}, mean (95 % interval over training seeds)", tuple(rows))


def _theirs(records: Sequence[Published], shown: Sequence[Variant], keys: Sequence[str]) -> Section:
    heading = "paper: ImageNet 128 px, 1M steps, one run, no interval"
    return Section(heading, tuple(_published_rows(records, shown, keys)), published=True)


def _published_rows(
    records: Sequence[Published], shown: Sequence[Variant], keys: Sequence[str], suffix: str = ""
) -> list[Row]:
    rows = []
    for key in keys:
        values = {record.variant: record.value for record in records if record.metric == key}
        figures = [values.get(item.name) for item in shown]
        label = style.label(key, "inception", arrow=True) + suffix
        rows.append(Row((label, *map(_published_text, figures)), best(key, figures, 1)))
    return rows


def _published_text(figure: float | None) -> str:
    return ABSENT if figure is None else style.number(figure, 2)
