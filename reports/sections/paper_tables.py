"""The paper's own tables, with our numbers above its own. They are never mixed: each block of rows has one origin."""

from __future__ import annotations

from collections.abc import Sequence

from reports import format, metrics, tables
from reports.comparison import compare, means
from reports.format import ABSENT
from reports.paper import Published, published
from reports.results import Results, Variant
from reports.tables import Block, Row, Table

COMPARE_ORDER_ONLY = (
    "The paper's numbers come from another data set, training budget and feature extractor: compare only the order of "
    "the variants, not the values."
)
NAMES = {"none": "no attention", "acgan": "AC-GAN", "sngan_projection": "SNGAN, projection", "sagan": "SAGAN"}
KIND = "model.attention.kind"
CONTROLS = {"residual": "residual, as many parameters", "residual_flops": "residual, as many operations"}


def table1(results: Results) -> Table | None:
    """The paper's Table 1: one column per place of attention or of its residual control, FID and IS beneath."""
    # The paper has no controls with as many operations; they stand in the table of attention against residual.
    columns = [item for item in results.variants if item.changes.get(KIND) != "residual_flops"]
    return _beside_published(results, "table1", "Table 1", columns, ("fid", "is"))


def table2(results: Results) -> Table | None:
    """The paper's Table 2 with models as columns, so that each block heads its scores by its own extractor."""
    remark = " Its FID of SNGAN was measured on that model's released weights."
    return _beside_published(results, "table2", "Table 2", results.variants, ("is", "intra_fid", "fid"), remark)


def _beside_published(
    results: Results, name: str, title: str, columns: Sequence[Variant], keys: Sequence[str], remark: str = ""
) -> Table | None:
    """Our scores of a study of one of the paper's tables, and the paper's beneath; None for any other study."""
    if results.paper != name:
        return None
    records = published(name)
    theirs = Block("paper: ImageNet 128 px, 1M steps, one run, no interval",
                   _published_rows(records, columns, keys), published=True)  # fmt: skip
    return Table(
        title=f"{title}, with our numbers",
        columns=("", *(NAMES.get(item.name, item.name) for item in columns)),
        blocks=(Block(_our_heading(results), _our_rows(results, columns, keys)), theirs),
        notes=(
            tables.caption(results),
            f"{COMPARE_ORDER_ONLY} They are best over the run; ours: {tables.taken_at(results)}.{remark} "
            f"Source: {records[0].source}, {title}.",
        ),
    )


def reimplementations(results: Results) -> Table | None:
    """What others got for the two ends of Table 2: each pair on one protocol, no two pairs on the same."""
    if results.paper != "table2":
        return None
    sources = ("studiogan", "studiogan_tiny", "studiogan_imagenet", "studiogan_benchmark", "studiogan_baby",
               "studiogan_papa", "studiogan_grandpa")  # fmt: skip
    rows, named = [], dict[str, None]()
    for records in map(published, sources):
        named[records[0].source] = None
        values = {(record.metric, record.variant): record.value for record in records}
        figures = [values.get((key, model)) for key in ("fid", "is") for model in ("sngan", "sagan")]
        bold = tables.best("fid", figures[:2], 1) | tables.best("is", figures[2:], 3)
        texts = (format.number_or_absent(figure, 2) for figure in figures)
        rows.append(Row((f"{records[0].dataset}: {records[0].protocol}", *texts), bold))
    return Table(
        title="SNGAN and SAGAN elsewhere",
        columns=("", "SNGAN FID ↓", "SAGAN FID ↓", "SNGAN IS ↑", "SAGAN IS ↑"),
        blocks=(Block("published by others, one run each, no interval", tuple(rows), published=True),),
        notes=(
            "Compare within a row only: the protocols differ, and the same weights scored by another protocol have "
            f"moved by 4 to 5 FID. The rates and D steps of a pair may differ too. Sources: {'; '.join(named)}.",
        ),
    )


def figure4(results: Results) -> Table | None:
    """The stabilisation study: how its runs ended, and the FID that the paper prints under its samples."""
    if results.paper not in ("figure3", "figure4"):
        return None
    variants, records = results.variants, published("figure4")
    rates = (" / ".join(ABSENT if rate is None else f"{rate:g}" for rate in item.rates) for item in variants)
    ours = (
        Row(("learning rate, G / D", *rates)),
        *_our_rows(results, variants, ("fid", "is")),
        Row(("outcome", *(tables.outcomes(results, item) for item in variants))),
    )
    theirs: list[Row] = []
    for step in sorted({record.step for record in records if record.step is not None}):
        at_step = [record for record in records if record.step == step]
        theirs += _published_rows(at_step, variants, ("fid",), f" at step {format.number(step, 0)}")
    equal: dict[str, list[str]] = {}
    for item in variants:
        lr_g, lr_d = item.rates
        if lr_g is not None and lr_g == lr_d:
            equal.setdefault(f"{lr_g:g}", []).append(item.name)
    here = "; ".join(f"lr_G = lr_D = {rate} in {' and '.join(names)}" for rate, names in equal.items())
    rate = f"The paper does not publish the equal learning rate of its arms without TTUR; here {here}. " if here else ""
    return Table(
        title="Stabilisation, with our numbers",
        columns=("", *(item.name for item in variants)),
        blocks=(
            Block(_our_heading(results), ours),
            Block("paper: ImageNet 128 px, one run, no interval", tuple(theirs), published=True),
        ),
        notes=(
            tables.caption(results),
            f"{rate}The study is run without attention and with one D step per G step.",
            f"{COMPARE_ORDER_ONLY} Source: {records[0].source}, Figure 4.",
        ),
    )


def attention_against_residual(results: Results) -> Table | None:
    """At each place, attention against a plain block of the same size or cost."""
    # {side of the feature map: {kind: variant}} of the variants with one block at one place, in both networks
    places: dict[int, dict[str, str]] = {}
    for item in results.variants:
        at = item.changes.get("model.attention.at")
        if isinstance(at, list) and len(at) == 1 and item.changes.keys() <= {"model.attention.at", KIND}:
            places.setdefault(at[0], {})[item.changes.get(KIND, "self_attention")] = item.name
    kinds = [kind for kind in CONTROLS if any(kind in row for row in places.values())]
    if not kinds:
        return None
    texts = tables.score_texts(results, results.metric)
    gaps = {(row.variant, row.reference): row.gap for row in compare(results, results.metric)}
    columns, rows = ["at", "self-attention"], []
    for kind in kinds:
        columns += [CONTROLS[kind], "attention against it", "p, adjusted"]
    for place, row in sorted(places.items()):
        attention = row.get("self_attention", "")
        cells = [f"{place} × {place}", texts.get(attention, ABSENT)]
        for kind in kinds:
            control = row.get(kind, "")
            gap = gaps.get((attention, control))
            cells += [texts.get(control, ABSENT), format.gap(gap), format.p_value(gap)]
        rows.append(Row(tuple(cells)))
    return Table(
        title="Attention against a residual block in its place",
        columns=tuple(columns),
        blocks=(Block(results.label(arrow=True), tuple(rows)),),
        notes=(tables.caption(results), tables.intervals_note(results, results.metric)),
    )


def _our_heading(results: Results) -> str:
    return f"ours: {results.protocol}, mean (95 % interval over training seeds)"


def _our_rows(results: Results, columns: Sequence[Variant], keys: Sequence[str]) -> tuple[Row, ...]:
    """The study's primary metric first, where the paper's table does not have it."""
    rows = [Row(("seeds finished", *(tables.seeds_finished(results, item) for item in columns)))]
    for key in dict.fromkeys((*([results.metric] if results.metric not in keys else []), *keys)):
        texts, figures = tables.score_texts(results, key), means(results, key)
        if key in (results.metric, "fid") or any(figure is not None for figure in figures.values()):
            top = tables.best(key, [figures[item.name] for item in columns], 1)
            rows.append(Row((results.label(key, arrow=True), *(texts[item.name] for item in columns)), top))
    return tuple(rows)


def _published_rows(
    records: Sequence[Published], columns: Sequence[Variant], keys: Sequence[str], suffix: str = ""
) -> tuple[Row, ...]:
    rows = []
    for key in keys:
        values = {record.variant: record.value for record in records if record.metric == key}
        figures = [values.get(item.name) for item in columns]
        texts = (format.number_or_absent(figure, 2) for figure in figures)
        rows.append(Row((metrics.heading(key, "inception", arrow=True) + suffix, *texts), tables.best(key, figures, 1)))
    return tuple(rows)
