"""Two factors crossed: the table of their levels, their effects, and learning rates as a heat map."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from reports import figures, format, statistics, tables
from reports.comparison import is_log, means
from reports.figures import Drawn
from reports.format import ABSENT
from reports.metrics import metric
from reports.results import Results
from reports.tables import Block, Row, Table

RATES = ("optim.lr_g", "optim.lr_d")
RATIOS = (1, 4)  # of D's rate to G's: equal ones, and the paper's TTUR


def grid(results: Results) -> Table | None:
    """Two factors crossed: the levels of the first go down, those of the second across."""
    if results.design != "grid" or len(results.factors) != 2:
        return None
    down, across = results.factors
    crossed = (item for item in results.variants if {down, across} <= item.factors.keys())
    at = {(item.factors[down], item.factors[across]): item for item in crossed}
    levels, columns = (list(dict.fromkeys(pair[place] for pair in at)) for place in (0, 1))
    texts, averages = tables.score_texts(results, results.metric), means(results, results.metric)
    best = {list(averages)[place] for place in tables.best(results.metric, averages.values())}
    rows = []
    for level in levels:
        found = [at.get((level, other)) for other in columns]
        bold = frozenset(place for place, item in enumerate(found, 1) if item and item.name in best)
        rows.append(Row((level, *(texts[item.name] if item else ABSENT for item in found)), bold))
    notes = [tables.caption(results)]
    rates = {item.rates for item in results.variants if item.params}
    if len(rates) == 1 and (rate := next(iter(rates))[0]) is not None and rates == {(rate, rate)}:
        notes.append(f"All variants train with lr_G = lr_D = {rate:g}; the paper does not publish the equal rate that "
                     "it used.")  # fmt: skip
    return Table(
        title=f"{down} by {across}",
        columns=(f"{down} \\ {across}", *columns),
        blocks=(Block(results.label(arrow=True), tuple(rows)),),
        notes=tuple(notes),
    )


def effects(results: Results) -> Table | None:
    """Two switches crossed: what each does on average over the other, and their interaction."""
    factors = results.factors
    levels = [list(dict.fromkeys(item.factors.get(name, "") for item in results.variants)) for name in factors]
    if results.design != "grid" or [len(found) for found in levels] != [2, 2] or len(results.variants) != 4:
        return None
    at = {tuple(item.factors[name] for name in factors): item.name for item in results.variants}
    (off, on), (low, high) = levels
    contrasts: dict[str, dict[tuple[str, str], float]] = {
        f"{factors[0]}: {on} against {off}": {(on, high): 0.5, (on, low): 0.5, (off, high): -0.5, (off, low): -0.5},
        f"{factors[1]}: {high} against {low}": {(on, high): 0.5, (off, high): 0.5, (on, low): -0.5, (off, low): -0.5},
        "interaction": {(on, high): 1, (off, low): 1, (on, low): -1, (off, high): -1},
    }
    log = is_log(results, results.metric)
    gaps = statistics.compare(
        {name: list(own.values()) for name, own in results.finished(results.metric).items()},
        [{at[pair]: weight for pair, weight in contrast.items()} for contrast in contrasts.values()],
        log,
    )
    rows = (
        Row((name, format.gap(gap), str(gap.n) if gap else ABSENT, format.p_value(gap)))
        for name, gap in zip(contrasts, gaps, strict=True)
    )
    beyond, zero = ("product of the two ratios", "0 %") if log else ("sum of the two", "0")
    return Table(
        title="Main effects and interaction",
        columns=("effect", f"in {results.label()}", "seeds", "p, adjusted"),
        blocks=(Block(None, tuple(rows)),),
        notes=(
            "Effects of one switch are averaged over the other. The interaction is what both do beyond the "
            f"{beyond}; at {zero} there is no interaction. p and the 95 % intervals are simultaneous over the three "
            "lines, by the test of the other tables; these lines are secondary to the study's own comparisons.",
        ),
    )


def rates(results: Results) -> Iterator[Drawn]:
    """The final score over both learning rates; cells that collapsed are hatched and say so."""
    pairs = _rates(results)
    values, averages = results.finished(results.metric), means(results, results.metric)
    if pairs is None or not any(values.values()):
        return
    rows = sorted({lr_g for lr_g, _ in pairs.values()}, reverse=True)  # the highest rate on top
    columns = sorted({lr_d for _, lr_d in pairs.values()})
    scores, texts = np.full((len(rows), len(columns)), np.nan), np.full((len(rows), len(columns)), "", dtype=object)
    digits = min(2, format.decimals(value for found in values.values() for value in found.values()))
    fig, axes = figures.new_axes(height=0.7 + 0.46 * len(rows))
    for name, (lr_g, lr_d) in pairs.items():
        place = rows.index(lr_g), columns.index(lr_d)
        state = figures.ended_as(results, name).replace(" collapsed", "\ncollapsed").replace(" diverged", "\ndiverged")
        if values[name]:
            scores[place] = averages[name]
            texts[place] = "\n".join(filter(None, (format.number(scores[place], digits), state)))
        if state:  # runs ended early
            axes.add_patch(Rectangle(place[::-1], 1, 1, fill=False, hatch="////", lw=0, alpha=0.4,
                                     ec="white" if values[name] else "#9aa1ab"))  # fmt: skip
        if not values[name]:  # why there is no score
            text = state or str(results.of(name)["state"].iloc[0]).replace(" ", "\n", 1)
            axes.text(place[1] + 0.5, place[0] + 0.5, text, ha="center", va="center", fontsize=7, color="#2b3038",
                      bbox={"fc": "white", "ec": "none", "pad": 0.8})  # fmt: skip
    norm = LogNorm() if np.nanmax(scores) > 10 * np.nanmin(scores) > 0 else None
    labels = {"xticklabels": [*map(_short, columns)], "yticklabels": [*map(_short, rows)]}
    sns.heatmap(scores, annot=texts, fmt="", cmap="crest", cbar=False, norm=norm, linewidths=1, ax=axes, **labels)
    drawn = [ratio for ratio in RATIOS if _ratio_line(axes, np.array(rows), np.array(columns), ratio)]
    axes.tick_params(length=0, rotation=0)
    axes.grid(visible=False)
    axes.set_xlabel("learning rate of D")
    axes.set_ylabel("learning rate of G")
    mean = "geometric mean" if is_log(results, results.metric) else "mean"
    better = "darker" if metric(results.metric).lower is False else "lighter"
    caption = f"{results.label()}, {mean} over the seeds that finished; {better} is better."
    if results.any_ended_early:
        caption += " Hatched: runs that collapsed or diverged."
    if drawn:
        caption += f" Lines: D's rate is {' or '.join(map(str, drawn))} times G's."
    yield Drawn("rates", f"{caption} {figures.basis(results, results.metric)}", fig)


def _rates(results: Results) -> dict[str, tuple[float, float]] | None:
    """Each variant's rates of G and D; None where the study is no grid over just these."""
    fields = {variant.name: {**variant.params, **variant.changes} for variant in results.variants}
    if results.design != "grid" or any(rate not in found for found in fields.values() for rate in RATES):
        return None
    pairs = {name: (float(found[RATES[0]]), float(found[RATES[1]])) for name, found in fields.items()}
    varied = all(len(set(line)) > 1 for line in zip(*pairs.values(), strict=True))
    return pairs if varied and len(set(pairs.values())) == len(pairs) else None


def _ratio_line(axes: Axes, rows: np.ndarray, columns: np.ndarray, ratio: float) -> bool:
    """Where D's rate is `ratio` times G's, by logarithms between cells; it leaves space for the numbers in them."""
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
