"""Class by class: the paper's Figure 6 with noise bars, textures and geometry apart."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D

from reports import style
from reports.figures import (
    Drawn,
    basis,
    difference_axis,
    difference_row,
    figure,
    intervals,
    legend,
    name_rows,
    new_axes,
)  # fmt: skip
from reports.paper import published
from reports.summary import Comparison, compare, estimates, is_log
from reports.unit import Unit

LARGEST = 20  # more classes than this fit no column
AT_ONCE = 4  # variants a panel


@figure("Geometry against texture")
def geometry_texture(unit: Unit) -> Iterator[Drawn]:
    """Differences to the baseline by group of classes."""
    keys = [f"fid_group/{group}" for group in unit.groups]
    found = {key: _against_baseline(unit, key) for key in keys if key in unit.finals}
    if len(found) < 2 or not any(found.values()):
        return
    compared = {row.variant for rows in found.values() for row in rows}
    others = [item.name for item in unit.variants if item.name in compared]
    fig, axes = new_axes(height=0.75 + 0.4 * len(others))
    marks = dict(zip(found, (("o", None), ("s", "white"), ("^", None), ("D", "white")), strict=False))
    for offset, (key, (marker, face)) in enumerate(marks.items()):
        for row in found[key]:
            place = others.index(row.variant) + 0.52 * ((offset + 0.5) / len(marks) - 0.5)
            difference_row(axes, unit, row, place, marker, face)
    name_rows(axes, others, margin=0.5)
    measure = f"{style.label('fid', unit.fingerprint)} of a group"
    difference_axis(axes, unit, next(iter(found)), unit.baseline, measure)
    dark = "#4a515b"
    handles = [Line2D([], [], marker=marker, ls="", color=dark, mfc=face or dark, ms=5, label=key.partition("/")[2])
               for key, (marker, face) in marks.items()]  # fmt: skip
    fig.legend(handles=handles, loc="outside upper left", ncols=len(handles), handletextpad=0.3)
    shown = [row for rows in found.values() for row in rows]
    caption = f"By group of classes{intervals(shown, 'the variants of a group')}. Secondary."
    yield Drawn("geometry_texture", f"{caption} {basis(unit, next(iter(found)))}", fig)


@figure("Geometry against texture")
def classes(unit: Unit) -> Iterator[Drawn]:
    """The paper's Figure 6 with noise bars: which classes gain."""
    names = _scored(unit)
    if all(len(labels) == 1 for labels in unit.groups.values()) and unit.groups:
        return  # each class is a group, and shown as such
    rows = {name: _against_baseline(unit, f"fid_class/{name}") for name in names}
    variants = list(dict.fromkeys(row.variant for group in rows.values() for row in group))
    if not variants or len(names) > LARGEST:
        return
    panels = math.ceil(len(variants) / AT_ONCE)
    for number, chosen in enumerate(np.array_split(variants, panels), 1):
        chosen = chosen.tolist()
        fig, axes = new_axes(height=0.6 + (0.16 + 0.1 * len(chosen)) * len(names), legend=chosen)
        for place, name in enumerate(names):
            for row in rows[name]:
                if row.variant in chosen:
                    y = place + 0.7 * ((chosen.index(row.variant) + 0.5) / len(chosen) - 0.5)
                    difference_row(axes, unit, row, y, size=4)
        name_rows(axes, names, margin=0.5)
        _group_bands(axes, unit, names)
        measure = f"{style.label('fid', unit.fingerprint)} of a class"
        difference_axis(axes, unit, f"fid_class/{names[0]}", unit.baseline, measure)
        legend(fig, unit, chosen, dashes=False, markers=True)
        shown = [row for name in names for row in rows[name]]
        caption = f"Class by class{intervals(shown, 'the variants of a class')}. Secondary."
        yield Drawn(
            "classes" if panels == 1 else f"classes_{number}", f"{caption} {basis(unit, f'fid_class/{names[0]}')}", fig
        )


@figure("Geometry against texture")
def class_scores(unit: Unit) -> Iterator[Drawn]:
    """Where each variant stands on each class: the level behind the differences."""
    table = pd.DataFrame(
        {
            name: {variant: row.mean for variant, row in estimates(unit, f"fid_class/{name}").items() if row}
            for name in _scored(unit)
        }
    )
    if table.empty or table.shape[1] > LARGEST:
        return
    fig, axes = new_axes(height=0.9 + 0.26 * len(table))
    digits = min(style.decimals(table.to_numpy().ravel()), 1 if table.to_numpy().max() >= 10 else 2)
    norm = LogNorm() if table.to_numpy().max() > 10 * table.to_numpy().min() > 0 else None
    sns.heatmap(table, annot=True, fmt=f".{digits}f", cmap="crest", cbar=False, norm=norm, linewidths=1, ax=axes)
    axes.tick_params(length=0, rotation=0)
    if len(names := "".join(table.columns)) > 34:
        axes.tick_params(axis="x", rotation=40 if len(names) < 90 else 90)
    axes.set_xlabel(f"intra-class {style.label('fid', unit.fingerprint, arrow=True)}")
    axes.set_ylabel("")
    mean = "geometric mean" if all(is_log(unit, f"fid_class/{name}") for name in table.columns) else "mean"
    caption = f"Class by class: {mean} over training seeds; lighter is better. Secondary."
    yield Drawn("class_scores", f"{caption} {basis(unit, f'fid_class/{table.columns[0]}')}", fig)


@figure("Geometry against texture")
def published_classes(unit: Unit) -> Iterator[Drawn]:
    """The paper's own Figure 6, where a study asks its question (Table 2): on axes of its own."""
    records = published("figure6") if unit.paper == "table2" else ()
    if not records:
        return
    score = {(record.variant, record.metric.partition("/")[2]): record.value for record in records}
    names = list(dict.fromkeys(name for _, name in score))
    gaps = np.array([score["sagan", name] - score["sngan_projection", name] for name in names])
    textures = {"stone wall", "geyser", "valley", "coral fungus"}
    fig, axes = new_axes(height=0.5 + 0.17 * len(names))
    axes.axvline(0, color=style.BASELINE_COLOUR, lw=1)
    axes.barh(range(len(names)), gaps, height=0.6, color=["white" if name in textures else "#9aa1ab" for name in names],
              edgecolor="#5f6670", lw=0.8)  # fmt: skip
    name_rows(axes, names)
    axes.set_xlabel("the paper's SAGAN minus its SNGAN-projection,\nintra-class FID (left is better)")
    origin = f"{records[0].source}, Figure 6; {records[0].dataset}, one run, so no interval."
    yield Drawn("published_classes", f"Filled: geometry, open: texture. {origin}", fig)


def _against_baseline(unit: Unit, key: str) -> list[Comparison]:
    return [row for row in compare(unit, key) if row.reference == unit.baseline]


def _scored(unit: Unit) -> list[str]:
    """The classes that have a score of their own, group by group."""
    order = [unit.classes[label] for labels in unit.groups.values() for label in labels] or list(unit.classes)
    return [name for name in order if f"fid_class/{name}" in unit.finals]


def _group_bands(axes: Axes, unit: Unit, names: list[str]) -> None:
    """Shades every second group of rows and names each at the right."""
    for number, (group, labels) in enumerate(unit.groups.items()):
        places = [names.index(unit.classes[label]) for label in labels if unit.classes[label] in names]
        if not places:
            continue
        low, high = min(places) - 0.5, max(places) + 0.5
        if number % 2:
            axes.axhspan(low, high, color="#f1f3f5", zorder=0, lw=0)
        axes.text(1.01, (low + high) / 2, group, transform=axes.get_yaxis_transform(), rotation=270,
                  va="center", color="#4a515b")  # fmt: skip
