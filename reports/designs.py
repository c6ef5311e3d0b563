"""Figures that a design calls for: a grid of learning rates as a heat map, a ladder as a waterfall."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from reports import style
from reports.figures import ENDINGS, Drawn, basis, ended_as, figure, looks, name_rows, new_axes
from reports.paper import published
from reports.statistics import Estimate, estimate, paired_difference
from reports.unit import Unit

RATES = ("optim.lr_g", "optim.lr_d")
RATIOS = (1, 4)  # of D's rate to G's: equal ones, and the paper's TTUR


@figure("Answer")
def rates(unit: Unit) -> Iterator[Drawn]:
    """The final score over both learning rates; cells that collapsed are hatched and say so."""
    pairs = _pairs(unit)
    values = unit.finished("fid")
    if pairs is None or not any(values.values()):
        return
    rows = sorted({lr_g for lr_g, _ in pairs.values()}, reverse=True)  # the highest rate on top
    columns = sorted({lr_d for _, lr_d in pairs.values()})
    scores = np.full((len(rows), len(columns)), np.nan)
    fig, axes = new_axes(height=0.7 + 0.42 * len(rows))
    for name, (lr_g, lr_d) in pairs.items():
        row, column = rows.index(lr_g), columns.index(lr_d)
        if values[name]:
            scores[row, column] = np.mean(list(values[name].values()))
        _state(axes, unit, name, row, column, scored=bool(values[name]))
    known = scores[~np.isnan(scores)]
    digits = min(2, style.decimals(known))
    sns.heatmap(
        pd.DataFrame(scores, [f"{rate:.3g}" for rate in rows], [f"{rate:.3g}" for rate in columns]),
        annot=[["" if np.isnan(score) else style.number(score, digits) for score in line] for line in scores],
        fmt="", cmap="crest", cbar=False, norm=LogNorm() if known.max() > 10 * known.min() else None, linewidths=1,
        ax=axes,
    )  # fmt: skip
    drawn = [ratio for ratio in RATIOS if _ratio_line(axes, np.array(rows), np.array(columns), ratio)]
    axes.tick_params(length=0, rotation=0)
    axes.set_xlabel("learning rate of D")
    axes.set_ylabel("learning rate of G")
    caption = f"{style.label('fid', unit.fingerprint)}, mean over the seeds that finished; lighter is better."
    if unit.cells["state"].isin(ENDINGS).any():
        caption += " Hatched: runs that collapsed or diverged."
    if drawn:
        caption += f" Dashed: D's rate is {' or '.join(map(str, drawn))} times G's."
    yield Drawn("rates", f"{caption} {basis(unit, 'fid')}", fig)


def _pairs(unit: Unit) -> dict[str, tuple[float, float]] | None:
    """Each variant's rates of G and D; None where the study is no grid over just these."""
    fields = {variant.name: {**variant.params, **variant.changes} for variant in unit.variants}
    if unit.design != "grid" or any(rate not in found for found in fields.values() for rate in RATES):
        return None
    pairs = {name: (float(found[RATES[0]]), float(found[RATES[1]])) for name, found in fields.items()}
    varied = all(len(set(line)) > 1 for line in zip(*pairs.values(), strict=True))
    return pairs if varied and len(set(pairs.values())) == len(pairs) else None


def _state(axes: Axes, unit: Unit, name: str, row: int, column: int, scored: bool) -> None:
    """Hatches a cell where runs ended early, and says what became of them; under the score where there is one."""
    text = ended_as(unit, name)
    if text:
        axes.add_patch(Rectangle((column, row), 1, 1, fill=False, hatch="////", ec="white" if scored else "#9aa1ab",
                                 lw=0, alpha=0.5))  # fmt: skip
    if not scored:
        text = text or str(unit.cells.loc[unit.cells["variant"] == name, "state"].iloc[0])
        text = text.replace(" ", "\n", 1)
    if text:
        axes.text(column + 0.5, row + (0.83 if scored else 0.5), text, ha="center", va="center", fontsize=5.5,
                  color="#2b3038", bbox={"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.85})  # fmt: skip


def _ratio_line(axes: Axes, rows: np.ndarray, columns: np.ndarray, ratio: float) -> bool:
    """Where D's rate is `ratio` times G's, through the centres of cells, and between them by logarithms."""
    low, high = max(rows[-1], columns[0] / ratio), min(rows[0], columns[-1] / ratio)
    if low >= high:
        return False
    lr_g = np.unique(np.clip([*rows, *(columns / ratio)], low, high))
    x = np.interp(np.log(lr_g * ratio), np.log(columns), np.arange(len(columns)) + 0.5)
    y = np.interp(np.log(lr_g), np.log(rows[::-1]), len(rows) - 0.5 - np.arange(len(rows)))
    axes.plot(x, y, "--", color="#d55e00", lw=1.1)
    axes.text(x[-1], y[-1], f"ratio {ratio}", color="#d55e00", ha="left", va="bottom")
    return True


@figure("Answer")
def waterfall(unit: Unit) -> Iterator[Drawn]:
    """A ladder, rung by rung: what each step changes, between the totals of the first and the last rung."""
    scored = {name: scores for name, scores in unit.finished("fid").items() if scores}
    seeds = sorted(set(unit.seeds).intersection(*scores) if (scores := list(scored.values())) else ())
    if unit.design != "ladder" or len(scored) < 2 or not seeds:
        return
    standing = {name: {seed: values[seed] for seed in seeds} for name, values in scored.items()}
    names = [variant.name for variant in unit.variants]
    fig, axes = new_axes(height=0.6 + 0.28 * (len(names) + 1))
    before: str | None = None
    for place, variant in enumerate(unit.variants):
        if variant.name not in standing:
            _beside(axes, place, variant.obstacle or ended_as(unit, variant.name) or "no result")
        elif before is None:
            _total(axes, unit, standing, variant.name, place)
        else:
            _step(axes, unit, standing, before, variant.name, place)
        before = variant.name if variant.name in standing else before
    _total(axes, unit, standing, list(standing)[-1], len(names))
    name_rows(axes, [names[0], *(f"→ {name}" for name in names[1:]), list(standing)[-1]])
    axes.set_xlabel(style.label("fid", unit.fingerprint, arrow=True))
    caption = (
        "From the first rung to the last. Bar: what a step changes in the mean, paired by seed, with its 95 % t "
        "interval; diamond: mean of a rung with its own."
    )
    if len(seeds) < len(unit.seeds):
        caption += f" Over seed {', '.join(map(str, seeds))}, which every rung shown here has finished."
    yield Drawn("waterfall", f"{caption} {basis(unit, 'fid', len(seeds))}{_published_ends(unit)}", fig)


def _total(axes: Axes, unit: Unit, standing: dict[str, dict[int, float]], name: str, place: int) -> None:
    total = estimate(list(standing[name].values()))
    assert total is not None
    axes.errorbar(total.mean, place, xerr=total.half_width, fmt="D", color=looks(unit)[name].colour, ms=4.5, lw=1.2,
                  capsize=2)  # fmt: skip
    _beside(axes, place, _amount(total))


def _step(axes: Axes, unit: Unit, standing: dict[str, dict[int, float]], before: str, name: str, place: int) -> None:
    """A bar from the mean of the rung before to this one's, and a line down to where the next begins."""
    step = paired_difference(standing[name], standing[before])
    level = float(np.mean(list(standing[name].values())))
    assert step is not None
    axes.barh(place, step.mean, left=level - step.mean, height=0.5, color=looks(unit)[name].colour)
    axes.errorbar(level, place, xerr=step.half_width, color="#2b3038", lw=0.9, capsize=2)
    axes.plot([level, level], [place + 0.25, place + 0.75], color="#9aa1ab", lw=0.7)
    _beside(axes, place, "\n".join(filter(None, (_amount(step, signed=True), ended_as(unit, name)))))


def _beside(axes: Axes, place: int, text: str) -> None:
    """In a column of its own at the right, where no bar can run into it."""
    axes.text(1.03, place, text, transform=axes.get_yaxis_transform(), va="center", color="#2b3038", linespacing=1.0)


def _amount(value: Estimate, signed: bool = False) -> str:
    digits = style.decimals([value.half_width or value.mean], digits=2)
    return style.plus_minus(value.mean, value.half_width, digits, signed)


def _published_ends(unit: Unit) -> str:
    """What others scored with the recipes at the ends of this ladder, as a sentence for the caption."""
    records = [record for record in published("recipe_gap") if record.metric == "fid" and unit.paper == "recipe_gap"]
    if not records:
        return ""
    listed = ", ".join(f"{record.variant.replace('_', ' ')} {record.value:g}" for record in records)
    return f" Published, on another protocol: FID {listed} ({records[0].dataset}; {records[0].source})."
