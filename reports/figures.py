"""A figure of the page, and what several figures share: axes, legends, curves, comparisons and captions.

To add a figure, write a function in a file of `reports/sections` that yields one `Drawn` per panel (none where it has
nothing to show) and name it in `reports/page.py`. Each panel is a column wide and a figure of its own: a page lays them
out for its width, and a paper picks the ones it wants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from reports import format, style
from reports.comparison import is_log
from reports.findings import Comparison
from reports.metrics import extractor_of, metric
from reports.results import ENDED_EARLY, Results
from reports.statistics import on_log_scale


@dataclass(frozen=True)
class Drawn:
    """A figure with its name, of which its file's is made, and the sentences beneath it."""

    name: str
    caption: str
    figure: Figure


def new_axes(height: float, legend: Sequence[str] = ()) -> tuple[Figure, Axes]:
    """One panel, a column wide; `height` in inches, without the rows of a legend of these names."""
    rows = math.ceil(len(legend) / _columns(legend)) if legend else 0
    return plt.subplots(figsize=(style.COLUMN, height + 0.14 * rows))


def variant_styles(results: Results) -> dict[str, style.PlotStyle]:
    """A style for each variant of the plan, the same in every figure."""
    return style.variant_styles((item.name for item in results.variants), results.baseline)


# Captions.


def basis(results: Results, key: str) -> str:
    """What the numbers of a figure rest on: "n = 2 to 3, embedded-v2 features, last step 2,000."."""
    counts = [len(values) for values in results.finished(key).values() if values]
    extractor = "" if key.startswith("relation_") else extractor_of(results.fingerprint)
    parts = [
        f"n = {format.span(counts)}" if counts else "No seed has finished yet",
        f"{extractor} features" if extractor else "",
        f"mean of the last {results.endpoint} evaluations" if results.endpoint > 1 else "",
        f"last step {results.last_steps[-1]:,}" if results.last_steps else "",
    ]
    return ", ".join(part for part in parts if part) + "."


def ended_as(results: Results, variant: str) -> str:
    """ "1 of 3 collapsed", "2 diverged" where all did; "" where none ended early."""
    states = results.of(variant)["state"]
    counts = {state: int((states == state).sum()) for state in ENDED_EARLY}
    planned = results.to_run(variant)
    of = "" if sum(counts.values()) == planned else f" of {planned}"
    return ", ".join(f"{count}{of} {state}" for state, count in counts.items() if count)


def cross_note(results: Results) -> str:
    """What the crosses of `curve` mean, where there are some."""
    sentence = " A cross ends a run that collapsed or diverged; means are over the others."
    return sentence if results.any_ended_early else ""


def whisker_note(rows: Sequence[Comparison], over: str) -> str:
    """What the whiskers of a figure of comparisons are; "" where none has any, as with one seed per variant."""
    tested = any(row.gap.low is not None for row in rows)
    return f"; whiskers: simultaneous 95 % interval over {over}" if tested else ""


# Curves over training.


def variants_in(results: Results, history: pd.DataFrame) -> list[str]:
    """The variants that a history has, in the plan's order."""
    found = set(history["variant"])
    return [item.name for item in results.variants if item.name in found]


def curves(axes: Axes, results: Results, key: str, band: bool) -> None:
    """A metric over training: each seed of each variant, and their means; a logarithmic axis for a ratio."""
    history = results.history(key)
    for name in variants_in(results, history):
        cells = results.of(name)
        ended = set(cells.loc[cells["state"].isin(ENDED_EARLY), "seed"])
        curve(axes, history[history["variant"] == name], variant_styles(results)[name], ended, band)
    step_axis(axes)
    if on_log_scale(key) and len(history) and history["value"].min() > 0:
        log_axis(axes, "y")


def curve(axes: Axes, history: pd.DataFrame, plot_style: style.PlotStyle, ended: set[int], band: bool = True) -> None:
    """Seeds, and mean and range over those that did not end early, at the steps that all of them have reached."""
    seed_lines(axes, history, plot_style, ended)
    wide = history.pivot(index="step", columns="seed", values="value")
    going = wide.drop(columns=[seed for seed in wide if seed in ended]).dropna()
    if going.shape[1] and len(going):
        if band:
            axes.fill_between(
                going.index, going.min(axis=1), going.max(axis=1), color=plot_style.colour, alpha=0.14, lw=0
            )
        axes.plot(going.index, going.mean(axis=1), color=plot_style.colour, ls=plot_style.dash)


def seed_lines(
    axes: Axes, history: pd.DataFrame, plot_style: style.PlotStyle, ended: set[int], thin: bool = True
) -> None:
    """One line per seed, with a cross where a run ended early."""
    width, alpha = (0.6, 0.45) if thin else (1.0, 0.8)
    for seed, line in history.groupby("seed"):
        axes.plot(line["step"], line["value"], color=plot_style.colour, ls=plot_style.dash, lw=width, alpha=alpha)
        if seed in ended:
            axes.plot(line["step"].iloc[-1], line["value"].iloc[-1], "x", color=plot_style.colour, ms=5, mew=1.4)


def step_axis(axes: Axes) -> None:
    axes.set_xlabel("generator step")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Logarithmic, with a few round numbers also where it spans less than a decade."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low)
    subs = (1,) if decades > 3 else (1, 2, 5) if decades > 0.9 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    narrow = decades <= 0.3  # within a factor of two a logarithm is nearly linear, and so are round numbers
    axis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


# Rows of names with an interval each.


def name_rows(axes: Axes, names: Sequence[str], margin: float = 0.6) -> None:
    """One row per name, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 1 + margin, -margin)
    axes.grid(axis="y", visible=False)


def whiskers(axes: Axes, mean: float, low: float | None, high: float | None, place: float, **options: Any) -> None:
    """A horizontal interval, which need not be symmetric; nothing where there is none."""
    if low is not None and high is not None:
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], **options)


def difference_row(axes: Axes, results: Results, row: Comparison, place: float, marker: str | None = None,
                   face: str | None = None, size: float = 4.5) -> None:  # fmt: skip
    """A row: one marker for the ratio or difference, its simultaneous interval as whiskers."""
    plot_style, back = variant_styles(results)[row.variant], math.exp if row.gap.log else float
    value, colour = back(row.gap.value), plot_style.colour
    low, high = (None if end is None else back(end) for end in (row.gap.low, row.gap.high))
    whiskers(axes, value, low, high, place, color=colour, capsize=2, lw=1.2)
    axes.plot(value, place, marker or plot_style.marker, color=colour, mfc=face or colour, ms=size, mew=0.8)


def difference_axis(axes: Axes, results: Results, key: str, reference: str, measure: str = "") -> None:
    """Draws the line of no difference from the reference, and labels the axis with what it shows.

    `measure` names what is shown where that is more than one metric, all compared as `key` is.
    """
    log = is_log(results, key)
    axes.axvline(1 if log else 0, color=style.BASELINE_COLOUR, lw=1)
    if log:
        log_axis(axes, "x")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    lower, measure = metric(key).lower, measure or results.label(key)
    side = "" if lower is None else f" ({'left' if lower else 'right'} is better)"
    text = f"{measure} over that of {reference}{side}" if log else f"difference to {reference} in {measure}{side}"
    axes.set_xlabel(text if len(text) < 45 else text.replace(" over ", "\nover ", 1).replace(" in ", "\nin ", 1))


def bare(axes: Axes) -> None:
    """No ticks, grid or frame, as around an image."""
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def legend(fig: Figure, results: Results, variants: Sequence[str], dashes: bool = True, markers: bool = False) -> None:
    drawn = variant_styles(results)
    handles = [
        Line2D([], [], color=drawn[name].colour, lw=1.6, label=name, ls=drawn[name].dash if dashes else "-",
               marker=drawn[name].marker if markers else "", ms=4)
        for name in variants
    ]  # fmt: skip
    fig.legend(handles=handles, loc="outside upper left", ncols=_columns(variants), handlelength=2.0,
               handletextpad=0.4, columnspacing=1.0, borderaxespad=0.1)  # fmt: skip


def _columns(names: Sequence[str]) -> int:
    """As many columns of a legend as fit a column of the page, by the longest name (inches, at 7 points)."""
    return min(len(names), max(1, int(style.COLUMN / (0.38 + 0.056 * max(map(len, names))))))
