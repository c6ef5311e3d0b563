"""Figures that a design calls for: a grid of learning rates as a heat map, a ladder as a waterfall."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from reports import style
from reports.columns import gap_text, means
from reports.figures import (
    ENDINGS,
    Drawn,
    basis,
    ended_as,
    figure,
    log_axis,
    looks,
    name_rows,
    new_axes,
    whiskers,
)
from reports.paper import published
from reports.statistics import Estimate
from reports.summary import Comparison, compare, counted, estimates, is_log
from reports.unit import Unit

RATES = ("optim.lr_g", "optim.lr_d")
RATIOS = (1, 4)  # of D's rate to G's: equal ones, and the paper's TTUR


@figure("Answer")
def rates(unit: Unit) -> Iterator[Drawn]:
    """The final score over both learning rates; cells that collapsed are hatched and say so."""
    pairs = _pairs(unit)
    values, averages = unit.finished(unit.metric), means(unit, unit.metric)
    if pairs is None or not any(values.values()):
        return
    rows = sorted({lr_g for lr_g, _ in pairs.values()}, reverse=True)  # the highest rate on top
    columns = sorted({lr_d for _, lr_d in pairs.values()})
    scores, texts = np.full((len(rows), len(columns)), np.nan), np.full((len(rows), len(columns)), "", dtype=object)
    digits = min(2, style.decimals(value for found in values.values() for value in found.values()))
    fig, axes = new_axes(height=0.7 + 0.46 * len(rows))
    for name, (lr_g, lr_d) in pairs.items():
        place = rows.index(lr_g), columns.index(lr_d)
        state = ended_as(unit, name).replace(" collapsed", "\ncollapsed").replace(" diverged", "\ndiverged")
        if values[name]:
            scores[place] = averages[name]
            texts[place] = "\n".join(filter(None, (style.number(scores[place], digits), state)))
        _hatch(axes, unit, name, place, state, scored=bool(values[name]))
    norm = LogNorm() if np.nanmax(scores) > 10 * np.nanmin(scores) > 0 else None
    labels = {"xticklabels": [*map(_short, columns)], "yticklabels": [*map(_short, rows)]}
    sns.heatmap(scores, annot=texts, fmt="", cmap="crest", cbar=False, norm=norm, linewidths=1, ax=axes, **labels)
    drawn = [ratio for ratio in RATIOS if _ratio_line(axes, np.array(rows), np.array(columns), ratio)]
    axes.tick_params(length=0, rotation=0)
    axes.grid(visible=False)
    axes.set_xlabel("learning rate of D")
    axes.set_ylabel("learning rate of G")
    mean = "geometric mean" if is_log(unit, unit.metric) else "mean"
    better = "darker" if style.lower_is_better(unit.metric) is False else "lighter"
    caption = f"{style.label(unit.metric, unit.fingerprint)}, {mean} over the seeds that finished; {better} is better."
    if unit.cells["state"].isin(ENDINGS).any():
        caption += " Hatched: runs that collapsed or diverged."
    if drawn:
        caption += f" Lines: D's rate is {' or '.join(map(str, drawn))} times G's."
    yield Drawn("rates", f"{caption} {basis(unit, unit.metric)}", fig)


def _pairs(unit: Unit) -> dict[str, tuple[float, float]] | None:
    """Each variant's rates of G and D; None where the study is no grid over just these."""
    fields = {variant.name: {**variant.params, **variant.changes} for variant in unit.variants}
    if unit.design != "grid" or any(rate not in found for found in fields.values() for rate in RATES):
        return None
    pairs = {name: (float(found[RATES[0]]), float(found[RATES[1]])) for name, found in fields.items()}
    varied = all(len(set(line)) > 1 for line in zip(*pairs.values(), strict=True))
    return pairs if varied and len(set(pairs.values())) == len(pairs) else None


def _hatch(axes: Axes, unit: Unit, name: str, place: tuple[int, int], state: str, scored: bool) -> None:
    """Marks a cell where runs ended early; one without a score says why it has none."""
    row, column = place
    if state:
        axes.add_patch(Rectangle((column, row), 1, 1, fill=False, hatch="////", ec="white" if scored else "#9aa1ab",
                                 lw=0, alpha=0.4))  # fmt: skip
    if not scored:
        text = state or str(unit.cells.loc[unit.cells["variant"] == name, "state"].iloc[0]).replace(" ", "\n", 1)
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color="#2b3038",
                  bbox={"fc": "white", "ec": "none", "pad": 0.8})  # fmt: skip


def _ratio_line(axes: Axes, rows: np.ndarray, columns: np.ndarray, ratio: float) -> bool:
    """Where D's rate is `ratio` times G's, by logarithms between cells; it leaves room for the numbers in them."""
    log_g, log_d = (np.concatenate([[1.5 * line[0] - 0.5 * line[1]], line, [1.5 * line[-1] - 0.5 * line[-2]]])
                    for line in (np.log(rows[::-1]), np.log(columns)))  # fmt: skip
    low, high = max(log_g[0], log_d[0] - np.log(ratio)), min(log_g[-1], log_d[-1] - np.log(ratio))
    if low >= high:
        return False
    along = np.linspace(low, high, 400)
    x, up = (np.interp(values, known, [0, *(np.arange(len(known) - 2) + 0.5), len(known) - 2])
             for values, known in ((along + np.log(ratio), log_d), (along, log_g)))  # fmt: skip
    y = len(rows) - up
    near_number = (abs(x % 1 - 0.5) < 0.32) & (abs(y % 1 - 0.5) < 0.28)
    axes.plot(np.where(near_number, np.nan, x), y, color="#d55e00", lw=1.2)
    axes.annotate(f"ratio {ratio:g}", (x[-1], y[-1]), (3, 2), textcoords="offset points", color="#d55e00",
                  va="center" if x[-1] >= len(columns) - 1e-6 else "bottom", annotation_clip=False)  # fmt: skip
    return True


def _short(rate: float) -> str:
    """ "2e-4", as a study file would name it."""
    digits, _, power = f"{rate:.1e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


@figure("Answer")
def waterfall(unit: Unit) -> Iterator[Drawn]:
    """A ladder, rung by rung: what each step changes, between the totals of the first and the last rung."""
    standing = {name: found for name, found in estimates(unit, unit.metric).items() if found}
    if unit.design != "ladder" or len(standing) < 2:
        return
    steps = {row.variant: row for row in compare(unit, unit.metric)}
    names, scored = [variant.name for variant in unit.variants], list(standing)
    fig, axes = new_axes(height=0.6 + 0.32 * (len(names) + 1))
    for place, variant in enumerate(unit.variants):
        name = variant.name
        if name not in standing:
            _beside(axes, place, variant.obstacle or ended_as(unit, name) or "no result")
        elif name in steps and steps[name].reference in standing:
            _step(axes, unit, standing, steps[name], place)
        else:
            _total(axes, unit, standing[name], name, place)
    _total(axes, unit, standing[scored[-1]], scored[-1], len(names))
    first = names.index(scored[0])
    name_rows(axes, [*names[: first + 1], *(f"→ {name}" for name in names[first + 1 :]), scored[-1]])
    log = is_log(unit, unit.metric)
    if log:
        log_axis(axes, "x")
    axes.set_xlabel(style.label(unit.metric, unit.fingerprint, arrow=True))
    caption = (
        f"From the first rung to the last. Bar: what a step changes in the {'geometric ' if log else ''}mean, with its "
        f"simultaneous 95 % interval over {counted(len(unit.pairs), 'step')}; diamond: mean of a rung, 95 % t interval."
    )
    yield Drawn("waterfall", f"{caption} {basis(unit, unit.metric)}{_published_ends(unit)}", fig)


def _total(axes: Axes, unit: Unit, total: Estimate, name: str, place: int) -> None:
    look = {"fmt": "D", "color": looks(unit)[name].colour, "ms": 4.5, "lw": 1.2, "capsize": 2}
    whiskers(axes, total.mean, total.low, total.high, place, **look)
    axes.plot(total.mean, place, "D", color=looks(unit)[name].colour, ms=4.5)
    digits = style.decimals([total.mean], digits=3)
    ended = ended_as(unit, name) if place < len(unit.variants) else ""
    _beside(axes, place, style.number(total.mean, digits), ended)


def _step(axes: Axes, unit: Unit, standing: dict[str, Estimate], row: Comparison, place: int) -> None:
    """A bar from the mean of the rung before to this one's, and a line down to where the next begins."""
    before, level = standing[row.reference].mean, standing[row.variant].mean
    axes.barh(place, level - before, left=before, height=0.5, color=looks(unit)[row.variant].colour)
    low, high = (None if end is None else before * math.exp(end) if row.gap.log else before + end
                 for end in (row.gap.low, row.gap.high))  # fmt: skip
    whiskers(axes, level, low, high, place, color="#2b3038", lw=0.9, capsize=2)
    axes.plot([level, level], [place + 0.25, place + 0.75], color="#9aa1ab", lw=0.7)
    _beside(axes, place, gap_text(replace(row.gap, low=None, high=None)), ended_as(unit, row.variant))


def _beside(axes: Axes, place: int, *lines: str) -> None:
    """In a column of its own at the right, where no bar can run into it."""
    axes.text(
        1.03,
        place,
        "\n".join(filter(None, lines)),
        transform=axes.get_yaxis_transform(),
        va="center",
        color="#2b3038",
        linespacing=1.15,
    )


def _published_ends(unit: Unit) -> str:
    """What others scored with the recipes at the ends of this ladder, as a sentence for the caption."""
    records = [record for record in published("recipe_gap") if record.metric == "fid" and unit.paper == "recipe_gap"]
    if not records:
        return ""
    listed = ", ".join(f"{record.variant.replace('_', ' ')} {record.value:g}" for record in records)
    return f" Published, on another protocol: FID {listed} ({records[0].dataset}; {records[0].source})."
