"""Figures that a design calls for: a grid of learning rates as a heat map, a ladder as a waterfall."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
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
    values = {name: list(found.values()) for name, found in unit.finished("fid").items()}
    if pairs is None or not any(values.values()):
        return
    rows = sorted({lr_g for lr_g, _ in pairs.values()}, reverse=True)  # the highest rate on top
    columns = sorted({lr_d for _, lr_d in pairs.values()})
    scores, texts = np.full((len(rows), len(columns)), np.nan), np.full((len(rows), len(columns)), "", dtype=object)
    digits = min(2, style.decimals(value for found in values.values() for value in found))
    fig, axes = new_axes(height=0.7 + 0.46 * len(rows))
    for name, (lr_g, lr_d) in pairs.items():
        place = rows.index(lr_g), columns.index(lr_d)
        state = ended_as(unit, name).replace(" collapsed", "\ncollapsed").replace(" diverged", "\ndiverged")
        if values[name]:
            scores[place] = np.mean(values[name])
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
    caption = f"{style.label('fid', unit.fingerprint)}, mean over the seeds that finished; lighter is better."
    if unit.cells["state"].isin(ENDINGS).any():
        caption += " Hatched: runs that collapsed or diverged."
    if drawn:
        caption += f" Lines: D's rate is {' or '.join(map(str, drawn))} times G's."
    yield Drawn("rates", f"{caption} {basis(unit, 'fid')}", fig)


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
    scored = {name: scores for name, scores in unit.finished("fid").items() if scores}
    seeds = sorted(set(unit.seeds).intersection(*scores) if (scores := list(scored.values())) else ())
    if unit.design != "ladder" or len(scored) < 2 or not seeds:
        return
    standing = {name: {seed: values[seed] for seed in seeds} for name, values in scored.items()}
    names = [variant.name for variant in unit.variants]
    fig, axes = new_axes(height=0.6 + 0.32 * (len(names) + 1))
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
    first, last = names.index(next(iter(standing))), list(standing)[-1]
    name_rows(axes, [*names[: first + 1], *(f"→ {name}" for name in names[first + 1 :]), last])
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
    _beside(axes, place, _amount(total), ended_as(unit, name) if place < len(unit.variants) else "")


def _step(axes: Axes, unit: Unit, standing: dict[str, dict[int, float]], before: str, name: str, place: int) -> None:
    """A bar from the mean of the rung before to this one's, and a line down to where the next begins."""
    step = paired_difference(standing[name], standing[before])
    level = float(np.mean(list(standing[name].values())))
    assert step is not None
    axes.barh(place, step.mean, left=level - step.mean, height=0.5, color=looks(unit)[name].colour)
    axes.errorbar(level, place, xerr=step.half_width, color="#2b3038", lw=0.9, capsize=2)
    axes.plot([level, level], [place + 0.25, place + 0.75], color="#9aa1ab", lw=0.7)
    _beside(axes, place, _amount(step, signed=True), ended_as(unit, name))


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
