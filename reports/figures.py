"""The figures of a report, one column wide. A new one is one function under @figure that yields what it has to show.

Each panel is a figure of its own: a page lays them out for its width, and a paper picks the ones it wants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from reports import style
from reports.statistics import Estimate, on_log_scale
from reports.summary import Comparison, compare, counted, estimates, is_log
from reports.unit import Unit


@dataclass(frozen=True)
class Drawn:
    """A figure with its name, of which its file's is made, and the sentences beneath it."""

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
    rows = estimates(unit, unit.metric)
    if not any(rows.values()):
        return
    values, log = unit.finished(unit.metric), is_log(unit, unit.metric)
    fig, axes = new_axes(height=0.55 + 0.3 * len(rows))
    for place, variant in enumerate(unit.variants):
        look, row = looks(unit)[variant.name], rows[variant.name]
        if row is None:
            text = variant.obstacle or ended_as(unit, variant.name) or "nothing finished"
            axes.text(0.02, place, text, transform=axes.get_yaxis_transform(), va="center", color="#5f6670")
            continue
        whiskers(axes, row.mean, row.low, row.high, place, color=look.colour, capsize=2, lw=1.2)
        axes.plot(row.mean, place, "|", color=look.colour, ms=13, mew=2)
        points = list(values[variant.name].values())
        axes.plot(points, [place] * len(points), look.marker, color=look.colour, ms=4.5, mec="white", mew=0.6)
    name_rows(axes, [_counted(unit, name, row) for name, row in rows.items()])
    if log:
        log_axis(axes, "x")
    axes.set_xlabel(style.label(unit.metric, unit.fingerprint, arrow=True))
    parts = ["One point per training seed", f"bar: {'geometric mean' if log else 'mean'}"]
    if any(row and row.low is not None for row in rows.values()):
        parts.append(f"whiskers: 95 % t interval{' of the logarithm' if log else ''}")
    yield Drawn("seeds", f"{'; '.join(parts)}. {basis(unit, unit.metric)}", fig)


@figure("Answer")
def differences(unit: Unit) -> Iterator[Drawn]:
    """The study's comparisons, with simultaneous intervals."""
    found = compare(unit, unit.metric)
    if not found:
        return
    whole = all(row.reference == unit.baseline for row in found)
    fig, axes = new_axes(height=0.55 + 0.3 * len(found))
    for place, row in enumerate(found):
        difference_row(axes, unit, row, place)
    name_rows(axes, [row.variant if whole else f"{row.variant}\n− {row.reference}" for row in found])
    difference_axis(axes, unit, unit.metric, unit.baseline if whole else "the other")
    what = "Ratio of geometric means" if found[0].gap.log else "Difference of means"
    caption = f"{what}{intervals(found, counted(len(unit.pairs), 'comparison'))}."
    yield Drawn("differences", f"{caption} {basis(unit, unit.metric)}", fig)


def intervals(rows: Sequence[Comparison], over: str) -> str:
    """What the whiskers of a figure of comparisons are; "" where none has any, as with one seed per variant."""
    tested = any(row.gap.low is not None for row in rows)
    return f"; whiskers: simultaneous 95 % interval over {over}" if tested else ""


@figure("Training curves")
def curves(unit: Unit) -> Iterator[Drawn]:
    """Scores over training, with every seed as a thin line."""
    for key in dict.fromkeys((unit.metric, "relation_error", "fid", "is", "class_consistency")):
        history = unit.history(key)
        if history.empty:
            continue
        names = shown(unit, history)
        fig, axes = new_axes(height=2.2, legend=names)
        bands = len(names) <= 6  # more would hide each other
        for name in names:
            curve(axes, history[history["variant"] == name], looks(unit)[name], ended(unit, name), bands)
        step_axis(axes)
        log_where_ratio(axes, key, history["value"])
        axes.set_ylabel(style.label(key, unit.fingerprint, arrow=True))
        legend(fig, unit, names)
        name = style.label(key, unit.fingerprint)
        caption = f"{name[0].upper()}{name[1:]} while training. Thin: a seed; thick: mean over seeds"
        caption += "; band: lowest to highest seed." if bands else "."
        if unit.cells["state"].isin(ENDINGS).any():
            caption += " A cross ends a run that collapsed or diverged; means are over the others."
        yield Drawn(f"curve_{key}", f"{caption} {basis(unit, key)}", fig)


@figure("Inside the networks")
def traces(unit: Unit) -> Iterator[Drawn]:
    """Diagnostics over training: the gain of attention, how spread it is, singular values, logits."""
    kinds = (
        ("gamma", "gamma/", "gain γ", "Gain of the attention branch: 0 is no attention, its sign is arbitrary."),
        ("entropy", "attention_entropy/", "attention entropy", "Entropy of attention over that of uniform weights."),
        ("distance", "attention_distance/", "attention distance", "Mean distance of query and key; a map's side is 1."),
        ("sigma", "sigma_max/", "largest singular value", "Of a network's weights, before spectral norm."),
        ("logits", "logit_", "D's logit", "Mean logit of D on real and on generated images."),
    )
    for name, prefix, label, caption in kinds:
        history = unit.histories[unit.histories["key"].str.startswith(prefix) & unit.histories["value"].notna()]
        if history.empty:
            continue
        names = shown(unit, history)
        fig, axes = new_axes(height=2.0, legend=names)
        for variant in names:
            for key, lines in history[history["variant"] == variant].groupby("key", sort=False):
                second = str(key).removeprefix(prefix).startswith(("d", "fake"))
                look = replace(looks(unit)[variant], dash="--" if second else "-")
                if name == "gamma":  # its sign is arbitrary, so a mean over seeds would say nothing
                    _seed_lines(axes, lines, look, set(), thin=False)
                else:
                    curve(axes, lines, look, set(), band=False)
        step_axis(axes)
        axes.set_ylabel(label)
        legend(fig, unit, names, dashes=False)
        which = "Solid: real, dashed: fake" if name == "logits" else "Solid: G, dashed: D"
        count = history.groupby("variant")["seed"].nunique()
        seeds = "One line per seed" if name == "gamma" else "Thin: a seed; thick: mean over seeds"
        yield Drawn(name, f"{caption} {which}. {seeds}. n = {span(count)}.", fig)


def _counted(unit: Unit, name: str, estimate: Estimate | None) -> str:
    """The name, with its n where that is not all seeds."""
    return name if estimate is None or estimate.n == len(unit.seeds) else f"{name}\nn = {estimate.n}"


ENDINGS = ("collapsed", "diverged")


def new_axes(height: float, legend: Sequence[str] = ()) -> tuple[Figure, Axes]:
    """One panel, a column wide; `height` in inches, without the rows of a legend of these names."""
    rows = math.ceil(len(legend) / _columns(legend)) if legend else 0
    fig, axes = plt.subplots(figsize=(style.COLUMN, height + 0.14 * rows))
    return fig, axes


def looks(unit: Unit) -> dict[str, style.Look]:
    """A look for each variant of the plan, the same in every figure of it."""
    return style.looks((item.name for item in unit.variants), unit.baseline)


def basis(unit: Unit, key: str, n: int | None = None) -> str:
    """What the numbers of a figure rest on: "n = 2 to 3, embedded-v1 features, last step 2,000."."""
    counts = [n] if n else [len(values) for values in unit.finished(key).values() if values]
    extractor = "" if key.startswith("relation_") else style.extractor_of(unit.fingerprint)
    steps = unit.cells.loc[unit.cells["state"] == "finished", "step"].dropna()
    parts = [
        f"n = {span(counts)}" if counts else "No seed has finished yet",
        f"{extractor} features" if extractor else "",
        f"mean of the last {unit.endpoint} evaluations" if unit.endpoint > 1 else "",
        f"last step {int(steps.max()):,}" if len(steps) else "",
    ]
    return ", ".join(part for part in parts if part) + "."


def span(counts: Sequence[int] | pd.Series) -> str:
    """ "3", or "2 to 3" where not every variant has as many."""
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def shown(unit: Unit, history: pd.DataFrame) -> list[str]:
    """The variants that a history has, in the plan's order."""
    found = set(history["variant"])
    return [item.name for item in unit.variants if item.name in found]


def ended(unit: Unit, variant: str) -> set[int]:
    """The seeds whose run collapsed or diverged."""
    cells = unit.cells[(unit.cells["variant"] == variant) & unit.cells["state"].isin(ENDINGS)]
    return set(cells["seed"])


def ended_as(unit: Unit, variant: str) -> str:
    """ "1 of 3 collapsed", "2 diverged" where all did; "" where none ended early."""
    states = unit.cells.loc[unit.cells["variant"] == variant, "state"]
    counts = {state: int((states == state).sum()) for state in ENDINGS}
    of = "" if sum(counts.values()) == len(states) else f" of {len(states)}"
    return ", ".join(f"{count}{of} {state}" for state, count in counts.items() if count)


def curve(axes: Axes, history: pd.DataFrame, look: style.Look, ended: set[int], band: bool = True) -> None:
    """Seeds, and mean and range over those that did not end early, at the steps that all of them have reached."""
    _seed_lines(axes, history, look, ended)
    wide = history.pivot(index="step", columns="seed", values="value")
    going = wide.drop(columns=[seed for seed in wide if seed in ended]).dropna()
    if going.shape[1] and len(going):
        if band:
            axes.fill_between(going.index, going.min(axis=1), going.max(axis=1), color=look.colour, alpha=0.14, lw=0)
        axes.plot(going.index, going.mean(axis=1), color=look.colour, ls=look.dash)


def _seed_lines(axes: Axes, history: pd.DataFrame, look: style.Look, ended: set[int], thin: bool = True) -> None:
    """One line per seed, with a cross where a run ended early."""
    for seed, line in history.groupby("seed"):
        width, alpha = (0.6, 0.45) if thin else (1.0, 0.8)
        axes.plot(line["step"], line["value"], color=look.colour, ls=look.dash, lw=width, alpha=alpha)
        if seed in ended:
            axes.plot(line["step"].iloc[-1], line["value"].iloc[-1], "x", color=look.colour, ms=5, mew=1.4)


def step_axis(axes: Axes) -> None:
    axes.set_xlabel("generator step")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def log_where_ratio(axes: Axes, key: str, values: pd.Series) -> None:
    """A logarithmic y axis for a metric that is compared as a ratio, where all values are above 0."""
    if on_log_scale(key) and len(values) and values.min() > 0:
        log_axis(axes, "y")


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


def whiskers(axes: Axes, mean: float, low: float | None, high: float | None, place: float, **look: Any) -> None:
    """A horizontal interval, which need not be symmetric; nothing where there is none."""
    if low is not None and high is not None:
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], **look)


def name_rows(axes: Axes, names: Sequence[str], margin: float = 0.6) -> None:
    """One row per name, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 1 + margin, -margin)
    axes.grid(axis="y", visible=False)


def difference_axis(axes: Axes, unit: Unit, key: str, reference: str, measure: str = "") -> None:
    """Where the reference stands among what is compared with it, and what the axis is in.

    `measure` names what is shown where that is more than one metric, all compared as `key` is.
    """
    log = is_log(unit, key)
    axes.axvline(1 if log else 0, color=style.BASELINE_COLOUR, lw=1)
    if log:
        log_axis(axes, "x")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    lower, measure = style.lower_is_better(key), measure or style.label(key, unit.fingerprint)
    side = "" if lower is None else f" ({'left' if lower else 'right'} is better)"
    text = f"{measure} over that of {reference}{side}" if log else f"difference to {reference} in {measure}{side}"
    axes.set_xlabel(text if len(text) < 45 else text.replace(" over ", "\nover ", 1).replace(" in ", "\nin ", 1))


def difference_row(axes: Axes, unit: Unit, row: Comparison, place: float, marker: str | None = None,
                   face: str | None = None, size: float = 4.5) -> None:  # fmt: skip
    """A row: one marker for the ratio or difference, its simultaneous interval as whiskers."""
    look, back = looks(unit)[row.variant], math.exp if row.gap.log else float
    low, high = (None if end is None else back(end) for end in (row.gap.low, row.gap.high))
    whiskers(axes, back(row.gap.value), low, high, place, color=look.colour, capsize=2, lw=1.2)
    axes.plot(back(row.gap.value), place, marker or look.marker, color=look.colour, mfc=face or look.colour, ms=size,
              mew=0.8)  # fmt: skip


def legend(fig: Figure, unit: Unit, variants: Sequence[str], dashes: bool = True, markers: bool = False) -> None:
    drawn = looks(unit)
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
