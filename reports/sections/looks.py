"""Adaptive seeds: the interval of every comparison at every look, and where it was decided."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from reports import figures, format, style
from reports.comparison import progress
from reports.figures import Drawn
from reports.results import Results


def looks(results: Results) -> Iterator[Drawn]:
    """One row of intervals per comparison, from the first look to the one that decided it."""
    looked = progress(results)
    if looked is None or results.adaptive is None or not any(look.gaps for look in looked.looks):
        return
    shown = [pair for pair in results.pairs if any(pair in look.gaps for look in looked.looks)]
    seeds, log = [look.n for look in looked.looks], next(iter(looked.looks[0].gaps.values())).log
    back = math.exp if log else float
    fig, axes = figures.new_axes(height=2.2, legend=[variant for variant, _ in shown])
    for place, pair in enumerate(shown):
        plot_style, label = figures.variant_styles(results)[pair[0]], looked.verdicts[pair].label
        found = [(number, held.gaps[pair]) for number, held in enumerate(looked.looks) if pair in held.gaps]
        shift = 0.6 * ((place + 0.5) / len(shown) - 0.5)
        for number, gap in found:
            assert gap.low is not None and gap.high is not None
            ends = back(gap.low), back(gap.high)
            axes.plot([number + shift] * 2, ends, color=plot_style.colour, lw=1.2)
            decided = number == found[-1][0] and label != "undecided"
            axes.plot(number + shift, back(gap.value), plot_style.marker, color=plot_style.colour, ms=4.5,
                      mfc=plot_style.colour if decided else "white")  # fmt: skip
    axes.axhline(1 if log else 0, color=style.BASELINE_COLOUR, lw=1)
    if results.adaptive.margin is not None and log:
        axes.axhspan(1 / (1 + results.adaptive.margin), 1 + results.adaptive.margin, color="#f1f3f5", zorder=0, lw=0)
    if log:
        figures.log_axis(axes, "y")
    axes.set_xticks(np.arange(len(seeds)), [str(n) for n in seeds])
    axes.set_xlim(-0.5, len(seeds) - 0.5)
    axes.set_xlabel("seeds at the look")
    one_reference = {reference for _, reference in shown} == {results.baseline}
    reference = results.baseline if one_reference else "the other"
    axes.set_ylabel(f"{results.label()}\n" + (f"over that of {reference}" if log else f"less that of {reference}"))
    figures.legend(fig, results, [variant for variant, _ in shown], dashes=False, markers=True)
    what = "Ratio of geometric means" if log else "Difference of means"
    caption = (
        f"{what} at each look, with its repeated 95 % interval; the intervals jointly cover the true values with 95 % "
        f"probability, over {format.counted(len(results.pairs), 'comparison')} and all looks. Filled: decided, and no "
        "seeds were added."
    )
    if results.adaptive.margin is not None and log:
        caption += f" Grey band: equivalent, a difference within {100 * results.adaptive.margin:g} %."
    yield Drawn("looks", f"{caption} {figures.basis(results, results.metric)}", fig)
