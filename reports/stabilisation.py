"""The paper's Figure 3: how spectral norm and two learning rates keep training stable."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reports import style
from reports.figures import (
    ENDINGS,
    Drawn,
    basis,
    curve,
    ended,
    figure,
    legend,
    log_where_ratio,
    looks,
    shown,
    step_axis,
)
from reports.paper import Published, published
from reports.unit import Unit

KEYS = ("is", "fid")


@figure("Training curves")
def figure3(unit: Unit) -> Iterator[Drawn]:
    """Our IS and FID curves side by side, and on axes of their own what the paper's were."""
    histories = {key: unit.history(key) for key in KEYS}
    if unit.paper != "figure3" or all(history.empty for history in histories.values()):
        return
    names = shown(unit, histories["fid"])
    fig, (ours, theirs) = plt.subplots(2, 2, figsize=(style.COLUMN, 3.7), height_ratios=(1.5, 1))
    for key, axes in zip(KEYS, ours, strict=True):
        history = histories[key]
        for name in shown(unit, history):
            curve(axes, history[history["variant"] == name], looks(unit)[name], ended(unit, name), band=False)
        log_where_ratio(axes, key, history["value"])
        step_axis(axes)
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10], integer=True))
        axes.set_title(style.label(key, unit.fingerprint, arrow=True), loc="left")
    records = [*published("figure3"), *published("figure4")]
    for key, axes in zip(KEYS, theirs, strict=True):
        _published(axes, unit, [record for record in records if record.metric == key])
        axes.set_title(f"the paper's {'FID' if key == 'fid' else 'IS'}", loc="left")
    legend(fig, unit, names, markers=True)
    caption = "Above, ours. Thin: a seed; thick: mean over seeds."
    if unit.cells["state"].isin(ENDINGS).any():
        caption += " A cross ends a run that collapsed or diverged; means are over the others."
    caption += f" {basis(unit, 'fid')} Below, the paper's Figures 3 and 4 on their own axes: {records[0].dataset}, "
    caption += "one run; filled points are printed there, open ones are read off its curves by eye."
    yield Drawn("figure3", caption, fig)


def _published(axes: Axes, unit: Unit, records: list[Published]) -> None:
    """The points of each variant, joined in order of steps; on a logarithmic axis of steps, in thousands."""
    drawn = looks(unit)
    for name in dict.fromkeys(record.variant for record in records):
        look = drawn.get(name, style.Look(style.BASELINE_COLOUR, "x", "-"))
        points = sorted((record.step or 0, record.value, record.certainty) for record in records
                        if record.variant == name)  # fmt: skip
        axes.plot([step / 1000 for step, *_ in points], [value for _, value, _ in points], color=look.colour, lw=0.7)
        for step, value, certainty in points:
            axes.plot(step / 1000, value, look.marker, color=look.colour, ms=4,
                      mfc=look.colour if certainty == "printed" else "white")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks([10, 100, 1000], ["10k", "100k", "1M"])
    axes.set_xlim(7, 1400)
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("generator step")
    if records and records[0].metric == "fid":
        axes.set_yscale("log")
        axes.set_yticks([25, 50, 100, 200], ["25", "50", "100", "200"])
        axes.yaxis.set_minor_formatter("")
