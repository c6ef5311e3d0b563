"""A search's history and what mattered in it, as the sampler's library computed them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.ticker import MaxNLocator

from reports import style
from reports.figures import Drawn, figure, new_axes
from reports.unit import Unit

TRIAL, BEST = "#0072b2", "#d55e00"


@figure("Search")
def history(unit: Unit) -> Iterator[Drawn]:
    """The objective of every trial and the best so far; trials without a value stand at the axis."""
    search = unit.search
    if search is None or not search.trials:
        return
    trials = sorted(search.trials, key=lambda trial: trial.number)
    scored = [(trial.number, trial.value) for trial in trials if trial.value is not None]
    fig, axes = new_axes(height=2.2)
    if scored:
        numbers, values = (list(column) for column in zip(*scored, strict=True))
        axes.step(numbers, np.minimum.accumulate(values), where="post", color=BEST, label="best so far")
        axes.plot(numbers, values, "o", color=TRIAL, ms=4, label="trial")
        if min(values) > 0 and max(values) > 10 * min(values):
            axes.set_yscale("log")
    ended = [(state, marker) for state, marker in (("failed", "x"), ("collapsed", "v"), ("diverged", "^"),
                                                   ("running", "1"))
             if any(trial.state == state and trial.value is None for trial in trials)]  # fmt: skip
    for state, marker in ended:
        places = [trial.number for trial in trials if trial.state == state and trial.value is None]
        axes.plot(places, [0.04] * len(places), marker, color="#2b3038", ms=5, ls="", label=state,
                  transform=axes.get_xaxis_transform(), clip_on=False)  # fmt: skip
    axes.margins(y=0.15)
    axes.set_xlim(-0.5, trials[-1].number + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(style.label(search.objective, unit.fingerprint, arrow=True))
    fig.legend(loc="outside upper left", ncols=3, handlelength=1.4, handletextpad=0.4, columnspacing=1.0,
               borderaxespad=0.1)  # fmt: skip
    count = f"{len(scored)} of {len(trials)} trials have a value"
    caption = f"{style.label(search.objective, unit.fingerprint)} by trial, one seed each; {count}."
    yield Drawn("search_history", caption, fig)


@figure("Search")
def importances(unit: Unit) -> Iterator[Drawn]:
    """How much of the objective's variation over trials each field explains."""
    if unit.search is None or not unit.search.importances:
        return
    shares = sorted(unit.search.importances.items(), key=lambda item: item[1])
    fig, axes = new_axes(height=0.6 + 0.26 * len(shares))
    bars = axes.barh([name for name, _ in shares], [share for _, share in shares], height=0.6, color=TRIAL)
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    axes.set_xlim(0, 1.12 * shares[-1][1] or 1)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("importance (shares add up to 1)")
    complete = sum(trial.value is not None for trial in unit.search.trials)
    caption = (
        f"Importance of each field for {style.label(unit.search.objective, unit.fingerprint)}, as Optuna computes it "
        f"from {complete} trials of one seed each; so few trials only hint."
    )
    yield Drawn("search_importances", caption, fig)
