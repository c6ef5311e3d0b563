"""The figures of a report, one column wide. A new one is one function under @figure that yields what it has to show.

Each panel is a figure of its own: a page lays them out for its width, and a paper picks the ones it wants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from reports import style
from reports.summary import Comparison, compare
from reports.unit import Unit


@dataclass(frozen=True)
class Drawn:
    """A figure with its file name (no suffix) and the sentences beneath it."""

    name: str
    caption: str
    figure: Figure


Draw = Callable[[Unit], Iterator[Drawn]]
FIGURES: list[tuple[str, Draw]] = []


def figure(section: str) -> Callable[[Draw], Draw]:
    """Registers a drawing function for a section of the page (see build.SECTIONS), in the order of this file."""

    def register(function: Draw) -> Draw:
        FIGURES.append((section, function))
        return function

    return register


@figure("Answer")
def seeds(unit: Unit) -> Iterator[Drawn]:
    """Every seed as a point: with a handful of seeds the points are the distribution."""
    rows = compare(unit, "fid")
    if not any(row.estimate for row in rows):
        return
    values = unit.finished("fid")
    fig, axes = new_axes(height=0.55 + 0.3 * len(rows))
    markers = style.markers(item.name for item in unit.variants)
    for place, (row, variant) in enumerate(zip(rows, unit.variants, strict=True)):
        colour = colours(unit)[row.variant]
        if row.estimate is None:
            state = variant.obstacle or "nothing finished"
            axes.text(0.02, place, state, transform=axes.get_yaxis_transform(), va="center", color="#8a919c")
            continue
        if row.estimate.half_width is not None:
            axes.errorbar(row.estimate.mean, place, xerr=row.estimate.half_width, color=colour, capsize=2, lw=1.2)
        axes.plot(row.estimate.mean, place, "|", color=colour, ms=13, mew=2)
        points = list(values[row.variant].values())
        axes.plot(points, [place] * len(points), markers[row.variant], color=colour, ms=4.5, mec="white", mew=0.6)
    axes.set_yticks(range(len(rows)), [row.variant for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(style.label("fid", unit.fingerprint, arrow=True))
    yield Drawn("seeds", "One point a training seed at the last step; bar: mean, whiskers: 95 % t interval.", fig)


@figure("Answer")
def differences(unit: Unit) -> Iterator[Drawn]:
    """The same, as what each variant changes on a seed: luck that a seed brings to both arms cancels."""
    found = [row for row in compare(unit, "fid") if row.difference]
    if not found:
        return
    values = unit.finished("fid")
    fig, axes = new_axes(height=0.55 + 0.3 * len(unit.variants))
    _zero_line(axes, unit)
    markers = style.markers(item.name for item in unit.variants)
    for place, row in enumerate(found):
        _difference(axes, unit, row, values, place, markers[row.variant])
    axes.set_yticks(range(len(found)), [row.variant for row in found])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"difference to {unit.baseline} in {style.label('fid', unit.fingerprint)} (left is better)")
    yield Drawn("differences", "Variant minus baseline on the same seed; bar: mean, whiskers: 95 % t interval.", fig)


@figure("Training curves")
def curves(unit: Unit) -> Iterator[Drawn]:
    """Scores over training, with every seed as a thin line."""
    for key in ("fid", "is_mean", "class_consistency"):
        history = unit.history(key)
        if history.empty:
            continue
        fig, axes = new_axes(height=2.3)
        for variant in _shown(unit, history):
            _curve(axes, history[history["variant"] == variant], colours(unit)[variant], _ended(unit, variant))
        positive = history["value"][history["value"] > 0]
        if key == "fid" and len(positive) and positive.max() > 10 * positive.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.set_xlabel("generator step")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.set_ylabel(style.label(key, unit.fingerprint, arrow=True))
        _legend(fig, unit, _shown(unit, history))
        name = style.label(key, unit.fingerprint)
        caption = f"{name[0].upper()}{name[1:]} while training. Line: mean over seeds; band: lowest to highest seed."
        if unit.cells["state"].isin(_ENDINGS).any():
            caption += " A cross ends a run that collapsed or diverged."
        yield Drawn(f"curve_{key}", caption, fig)


@figure("Geometry against texture")
def geometry_texture(unit: Unit) -> Iterator[Drawn]:
    """Differences to the baseline by group of classes."""
    keys = [f"fid_group/{group}" for group in unit.groups]
    found = {key: [row for row in compare(unit, key) if row.difference] for key in keys if key in unit.finals}
    if len(found) < 2 or not any(found.values()):
        return
    compared = {row.variant for rows in found.values() for row in rows}
    others = [item.name for item in unit.variants if item.name in compared]
    fig, axes = new_axes(height=0.75 + 0.4 * len(others))
    _zero_line(axes, unit)
    for offset, (key, marker, face) in enumerate(zip(found, "os", (None, "white"), strict=False)):
        for row in found[key]:
            place = others.index(row.variant) + 0.26 * offset - 0.13
            _difference(axes, unit, row, unit.finished(key), place, marker, face)
    axes.set_yticks(range(len(others)), others)
    axes.set_ylim(len(others) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"difference to {unit.baseline} in {style.label('fid', unit.fingerprint)} (left is better)")
    handles = [Line2D([], [], marker=marker, ls="", color="#4a515b", mfc=face or "#4a515b", ms=5,
                      label=key.partition("/")[2]) for key, marker, face in zip(found, "os", (None, "white"),
                                                                               strict=False)]  # fmt: skip
    fig.legend(handles=handles, loc="outside upper left", ncols=2, handletextpad=0.3)
    yield Drawn("geometry_texture", "By group of classes, paired by seed; bar: mean, whiskers: 95 % t interval.", fig)


@figure("Geometry against texture")
def classes(unit: Unit) -> Iterator[Drawn]:
    """The paper's Figure 6 with noise bars: which classes gain."""
    order = [unit.classes[label] for labels in unit.groups.values() for label in labels] or list(unit.classes)
    keys = [f"fid_class/{name}" for name in order if f"fid_class/{name}" in unit.finals]
    rows = {key: [row for row in compare(unit, key) if row.difference] for key in keys}
    variants = list(dict.fromkeys(row.variant for group in rows.values() for row in group))
    if not variants or len(keys) > 20:
        return
    fig, axes = new_axes(height=0.7 + (0.16 + 0.1 * len(variants)) * len(keys))
    _zero_line(axes, unit)
    markers = style.markers(item.name for item in unit.variants)
    for place, key in enumerate(keys):
        for row in rows[key]:
            assert row.difference is not None
            y = place + 0.7 * ((variants.index(row.variant) + 0.5) / len(variants) - 0.5)
            axes.errorbar(row.difference.mean, y, xerr=row.difference.half_width, fmt=markers[row.variant],
                          color=colours(unit)[row.variant], ms=4, lw=1)  # fmt: skip
    axes.set_yticks(range(len(keys)), [key.partition("/")[2] for key in keys])
    axes.set_ylim(len(keys) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"difference to {unit.baseline} in intra-class {style.label('fid', unit.fingerprint)}")
    _legend(fig, unit, variants)
    yield Drawn("classes", "Class by class, paired by seed: mean and 95 % t interval; left of zero is better.", fig)


@figure("Geometry against texture")
def class_scores(unit: Unit) -> Iterator[Drawn]:
    """Where each variant stands on each class: the level behind the differences."""
    order = [unit.classes[label] for labels in unit.groups.values() for label in labels] or list(unit.classes)
    table = pd.DataFrame(
        {
            name: {row.variant: row.estimate.mean for row in compare(unit, f"fid_class/{name}") if row.estimate}
            for name in order
            if f"fid_class/{name}" in unit.finals
        }
    )
    if table.empty or table.shape[1] > 20:
        return
    fig, axes = new_axes(height=0.9 + 0.26 * len(table))
    digits = style.decimals(table.to_numpy().ravel())
    sns.heatmap(table, annot=True, fmt=f".{digits}f", cmap="crest", cbar=False, linewidths=1, ax=axes)
    axes.tick_params(length=0, rotation=0)
    axes.set_xlabel(f"intra-class {style.label('fid', unit.fingerprint, arrow=True)}")
    axes.set_ylabel("")
    yield Drawn("class_scores", "Class by class at the last step: mean over training seeds; lighter is better.", fig)


@figure("Inside the networks")
def traces(unit: Unit) -> Iterator[Drawn]:
    """Diagnostics over training: the gain of attention, how spread it is, singular values, logits."""
    kinds = (
        ("gamma", "gamma/", "gain γ", "Gain of the attention branch: 0 is no attention."),
        ("entropy", "attention_entropy/", "attention entropy", "Entropy of attention over that of uniform weights."),
        ("distance", "attention_distance/", "attention distance", "Mean distance of query and key; a map's side is 1."),
        ("sigma", "sigma_max/", "largest singular value", "Of a network's weights, before spectral norm."),
        ("logits", "logit_", "D's logit", "Mean logit of D on real and on generated images."),
    )
    for name, prefix, label, caption in kinds:
        history = unit.histories[unit.histories["key"].str.startswith(prefix) & unit.histories["value"].notna()]
        if history.empty:
            continue
        fig, axes = new_axes(height=2.1)
        dashed = {"real": "-", "fake": "--"} if name == "logits" else {"g": "-", "d": "--"}
        for (variant, _, key), line in history.groupby(["variant", "seed", "key"], sort=False):
            first = str(key).removeprefix(prefix)
            linestyle = dashed.get(first, dashed.get(first[:1], "-"))
            axes.plot(line["step"], line["value"], linestyle, color=colours(unit)[str(variant)], lw=0.9, alpha=0.8)
        axes.set_xlabel("generator step")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.set_ylabel(label)
        _legend(fig, unit, _shown(unit, history))
        lines = "Solid: real, dashed: fake" if name == "logits" else "Solid: G, dashed: D"
        yield Drawn(name, f"{caption} {lines}; one line a seed.", fig)


_ENDINGS = ("collapsed", "diverged")


def new_axes(height: float) -> tuple[Figure, Axes]:
    """One panel, a column wide; `height` in inches."""
    fig, axes = plt.subplots(figsize=(style.COLUMN, height))
    return fig, axes


def colours(unit: Unit) -> dict[str, str]:
    """A colour for each variant of the plan, the same in every figure of it."""
    return style.colours((item.name for item in unit.variants), unit.baseline)


def _shown(unit: Unit, history: pd.DataFrame) -> list[str]:
    found = set(history["variant"])
    return [item.name for item in unit.variants if item.name in found]


def _ended(unit: Unit, variant: str) -> set[int]:
    cells = unit.cells[(unit.cells["variant"] == variant) & unit.cells["state"].isin(_ENDINGS)]
    return set(cells["seed"])


def _curve(axes: Axes, history: pd.DataFrame, colour: str, ended: set[int]) -> None:
    """Seeds, and mean and range over those that did not end early, at the steps that all of them have reached."""
    wide = history.pivot(index="step", columns="seed", values="value")
    for seed in wide:
        line = wide[seed].dropna()
        axes.plot(line.index, line, color=colour, lw=0.6, alpha=0.45)
        if seed in ended:
            axes.plot(line.index[-1], line.iloc[-1], "x", color=colour, ms=5, mew=1.4)
    going = wide.drop(columns=[seed for seed in wide if seed in ended]).dropna()
    if going.shape[1] and len(going):
        axes.fill_between(going.index, going.min(axis=1), going.max(axis=1), color=colour, alpha=0.14, lw=0)
        axes.plot(going.index, going.mean(axis=1), color=colour)


def _difference(
    axes: Axes,
    unit: Unit,
    row: Comparison,
    values: dict[str, dict[int, float]],
    place: float,
    marker: str,
    face: str | None = None,
) -> None:
    """A row: one marker a pair of runs, the mean as a bar, its interval as whiskers."""
    assert row.difference is not None
    own, baseline = values[row.variant], values[unit.baseline]
    pairs = [own[seed] - baseline[seed] for seed in own if seed in baseline]
    colour = colours(unit)[row.variant]
    if row.difference.half_width is not None:
        axes.errorbar(row.difference.mean, place, xerr=row.difference.half_width, color=colour, capsize=2, lw=1.2)
    axes.plot(row.difference.mean, place, "|", color=colour, ms=10, mew=2)
    axes.plot(pairs, [place] * len(pairs), marker, color=colour, mfc=face or colour, ms=4, mew=0.8)


def _legend(fig: Figure, unit: Unit, variants: list[str]) -> None:
    handles = [Line2D([], [], color=colours(unit)[name], lw=2, label=name) for name in variants]
    fig.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4), handlelength=1.1,
               handletextpad=0.4, columnspacing=1.0, borderaxespad=0.1)  # fmt: skip


def _zero_line(axes: Axes, unit: Unit) -> None:
    axes.axvline(0, color=colours(unit)[unit.baseline], lw=1)
