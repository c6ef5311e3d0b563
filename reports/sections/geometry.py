"""Class by class: the paper's Figure 6 with intervals, textures and geometry apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D

from reports import figures, format, style, tables
from reports.comparison import against_baseline, estimates, is_log
from reports.figures import Drawn
from reports.paper import published
from reports.results import Results
from reports.tables import Block, Row, Table

MOST_CLASSES = 20  # more fit no column


def groups_table(results: Results) -> Table | None:
    """The claim behind Figure 6: attention helps where distant parts must agree, not where local statistics do."""
    keys = [f"fid_group/{name}" for name in results.groups if f"fid_group/{name}" in results.final_scores]
    if len(keys) < 2:
        return None
    columns, cells = ["variant"], [[variant.name] for variant in results.variants]
    for key in keys:
        columns += [results.label(key, arrow=True), f"to {results.baseline}"]
        found = against_baseline(results, key)
        for row, (name, text) in zip(cells, tables.score_texts(results, key).items(), strict=True):
            row += [text, format.gap(found[name].gap if name in found else None)]
    members = "; ".join(
        f"{name}: {', '.join(results.classes[label] for label in labels)}" for name, labels in results.groups.items()
    )
    return Table(
        title="Geometry against texture",
        columns=tuple(columns),
        blocks=(Block(None, tuple(Row(tuple(row)) for row in cells)),),
        notes=(tables.caption(results), f"{members}. Secondary metrics. {tables.intervals_note(results, keys[0])}"),
    )


def groups(results: Results) -> Iterator[Drawn]:
    """Differences to the baseline by group of classes."""
    keys = [f"fid_group/{group}" for group in results.groups]
    found = {key: against_baseline(results, key) for key in keys if key in results.final_scores}
    if len(found) < 2 or not any(found.values()):
        return
    others = [item.name for item in results.variants if any(item.name in rows for rows in found.values())]
    fig, axes = figures.new_axes(height=0.75 + 0.4 * len(others))
    marks = dict(zip(found, (("o", None), ("s", "white"), ("^", None), ("D", "white")), strict=False))
    for offset, (key, (marker, face)) in enumerate(marks.items()):
        for name, row in found[key].items():
            place = others.index(name) + 0.52 * ((offset + 0.5) / len(marks) - 0.5)
            figures.difference_row(axes, results, row, place, marker, face)
    figures.name_rows(axes, others, margin=0.5)
    figures.difference_axis(axes, results, next(iter(found)), results.baseline, f"{results.label('fid')} of a group")
    dark = "#4a515b"
    handles = [Line2D([], [], marker=marker, ls="", color=dark, mfc=face or dark, ms=5, label=key.partition("/")[2])
               for key, (marker, face) in marks.items()]  # fmt: skip
    fig.legend(handles=handles, loc="outside upper left", ncols=len(handles), handletextpad=0.3)
    rows = [row for of_key in found.values() for row in of_key.values()]
    text = f"By group of classes{figures.whisker_note(rows, 'the variants of a group')}. Secondary."
    yield Drawn("geometry_texture", f"{text} {figures.basis(results, next(iter(found)))}", fig)


def classes(results: Results) -> Iterator[Drawn]:
    """The paper's Figure 6 with intervals: which classes gain."""
    names = _scored(results)
    if all(len(labels) == 1 for labels in results.groups.values()) and results.groups:
        return  # each class is a group, and shown as such
    found = {name: against_baseline(results, f"fid_class/{name}") for name in names}
    variants = list(dict.fromkeys(variant for rows in found.values() for variant in rows))
    if not variants or len(names) > MOST_CLASSES:
        return
    key = f"fid_class/{names[0]}"
    fig, axes = figures.new_axes(height=0.6 + (0.16 + 0.1 * len(variants)) * len(names), legend=variants)
    for place, name in enumerate(names):
        for variant, row in found[name].items():
            y = place + 0.7 * ((variants.index(variant) + 0.5) / len(variants) - 0.5)
            figures.difference_row(axes, results, row, y, size=4)
    figures.name_rows(axes, names, margin=0.5)
    _group_bands(axes, results, names)
    figures.difference_axis(axes, results, key, results.baseline, f"{results.label('fid')} of a class")
    figures.legend(fig, results, variants, dashes=False, markers=True)
    rows = [row for of_class in found.values() for row in of_class.values()]
    text = f"Class by class{figures.whisker_note(rows, 'the variants of a class')}. Secondary."
    yield Drawn("classes", f"{text} {figures.basis(results, key)}", fig)


def class_scores(results: Results) -> Iterator[Drawn]:
    """Where each variant stands on each class: the level behind the differences."""
    keys = {name: f"fid_class/{name}" for name in _scored(results)}
    table = pd.DataFrame(
        {
            name: {variant: row.mean for variant, row in estimates(results, key).items() if row}
            for name, key in keys.items()
        }
    )
    if table.empty or table.shape[1] > MOST_CLASSES:
        return
    fig, axes = figures.new_axes(height=0.9 + 0.26 * len(table))
    values = table.to_numpy()
    digits = min(format.decimals(values.ravel()), 1 if values.max() >= 10 else 2)
    norm = LogNorm() if values.max() > 10 * values.min() > 0 else None
    sns.heatmap(table, annot=True, fmt=f".{digits}f", cmap="crest", cbar=False, norm=norm, linewidths=1, ax=axes,
                xticklabels=False, yticklabels=False)  # fmt: skip
    axes.set_xticks(np.arange(table.shape[1]) + 0.5, table.columns)
    axes.set_yticks(np.arange(table.shape[0]) + 0.5, table.index)
    axes.tick_params(length=0, rotation=0)
    if len(names := "".join(table.columns)) > 34:
        axes.tick_params(axis="x", rotation=40 if len(names) < 90 else 90)
    axes.set_xlabel(f"intra-class {results.label('fid', arrow=True)}")
    axes.set_ylabel("")
    mean = "geometric mean" if all(is_log(results, key) for key in keys.values()) else "mean"
    text = f"Class by class: {mean} over training seeds; lighter is better. Secondary."
    yield Drawn("class_scores", f"{text} {figures.basis(results, next(iter(keys.values())))}", fig)


def published_classes(results: Results) -> Iterator[Drawn]:
    """The paper's own Figure 6, where a study asks its question (Table 2): on axes of its own."""
    if results.paper != "table2":
        return
    records = published("figure6")
    score = {(record.variant, record.metric.partition("/")[2]): record.value for record in records}
    names = list(dict.fromkeys(name for _, name in score))
    gaps = np.array([score["sagan", name] - score["sngan_projection", name] for name in names])
    textures = {"stone wall", "geyser", "valley", "coral fungus"}
    fig, axes = figures.new_axes(height=0.5 + 0.17 * len(names))
    axes.axvline(0, color=style.BASELINE_COLOUR, lw=1)
    axes.barh(range(len(names)), gaps, height=0.6, color=["white" if name in textures else "#9aa1ab" for name in names],
              edgecolor="#5f6670", lw=0.8)  # fmt: skip
    figures.name_rows(axes, names)
    axes.set_xlabel("the paper's SAGAN minus its SNGAN-projection,\nintra-class FID (left is better)")
    origin = f"{records[0].source}, Figure 6; {records[0].dataset}, one run, so no interval."
    yield Drawn("published_classes", f"Filled: geometry, open: texture. {origin}", fig)


def _scored(results: Results) -> list[str]:
    """The classes that have a score of their own, group by group."""
    order = [results.classes[label] for labels in results.groups.values() for label in labels] or results.classes
    return [name for name in order if f"fid_class/{name}" in results.final_scores]


def _group_bands(axes: Axes, results: Results, names: list[str]) -> None:
    """Shades every second group of rows and names each at the right."""
    for number, (group, labels) in enumerate(results.groups.items()):
        places = [names.index(results.classes[label]) for label in labels if results.classes[label] in names]
        if not places:
            continue
        low, high = min(places) - 0.5, max(places) + 0.5
        if number % 2:
            axes.axhspan(low, high, color="#f1f3f5", zorder=0, lw=0)
        axes.text(1.01, (low + high) / 2, group, transform=axes.get_yaxis_transform(), rotation=270,
                  va="center", color="#4a515b")  # fmt: skip
