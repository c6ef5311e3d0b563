"""A search: its trials, their history, and what mattered in it, as the sampler's library computed it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.ticker import MaxNLocator

from reports import figures, format, tables
from reports.figures import Drawn
from reports.results import Results
from reports.tables import Block, Row, Table

TRIAL, BEST = "#0072b2", "#d55e00"


def trials(results: Results) -> Table | None:
    """Every trial of a search, best first. They chose what is confirmed, and enter no mean."""
    if results.search is None or not results.search.trials:
        return None
    search, rows, ranges = results.search, [], []
    digits = format.decimals(trial.value for trial in search.trials if trial.value is not None)
    for trial in sorted(search.trials, key=lambda one: (one.value is None, one.value or 0.0, one.number)):
        params = (tables.setting(trial.params.get(field)) for field in search.fields)
        bold = frozenset({0, len(search.fields) + 1}) if trial.variant == search.best else frozenset()
        rows.append(Row((trial.variant, *params, format.number_or_absent(trial.value, digits), trial.state), bold))
    for field, found in search.fields.items():
        if "choices" in found:
            ranges.append(f"{field} one of {', '.join(map(str, found['choices']))}")
        else:
            scale = ", log scale" if found.get("log") else ""
            ranges.append(f"{field} {tables.setting(found['low'])} to {tables.setting(found['high'])}{scale}")
    return Table(
        title="Trials of the search",
        columns=("trial", *search.fields, results.label(search.objective, arrow=True), "state"),
        blocks=(Block(None, tuple(rows)),),
        notes=(
            f"Searched: {'; '.join(ranges)}. A trial is one run on one seed. The lowest of many values is biased "
            f"downwards (selection bias), so the best is run again, as variant best, beside {results.baseline}, on "
            "seeds that the search did not see; the other tables hold these runs alone.",
        ),
    )


def history(results: Results) -> Iterator[Drawn]:
    """The objective of every trial and the best so far; trials without a value stand at the axis."""
    search = results.search
    if search is None or not search.trials:
        return
    in_order = sorted(search.trials, key=lambda trial: trial.number)
    scored = [(trial.number, trial.value) for trial in in_order if trial.value is not None]
    fig, axes = figures.new_axes(height=2.2)
    if scored:
        numbers, values = (list(column) for column in zip(*scored, strict=True))
        axes.step(numbers, np.minimum.accumulate(values), where="post", color=BEST, label="best so far")
        axes.plot(numbers, values, "o", color=TRIAL, ms=4, label="trial")
        if min(values) > 0 and max(values) > 10 * min(values):
            axes.set_yscale("log")
    for state, marker in (("failed", "x"), ("collapsed", "v"), ("diverged", "^"), ("running", "1")):
        places = [trial.number for trial in in_order if trial.state == state and trial.value is None]
        if places:
            axes.plot(places, [0.04] * len(places), marker, color="#2b3038", ms=5, ls="", label=state,
                      transform=axes.get_xaxis_transform(), clip_on=False)  # fmt: skip
    axes.margins(y=0.15)
    axes.set_xlim(-0.5, in_order[-1].number + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(results.label(search.objective, arrow=True))
    fig.legend(loc="outside upper left", ncols=3, handlelength=1.4, handletextpad=0.4, columnspacing=1.0,
               borderaxespad=0.1)  # fmt: skip
    count = f"{len(scored)} of {len(in_order)} trials have a value"
    yield Drawn("search_history", f"{results.label(search.objective)} by trial, one seed each; {count}.", fig)


def importances(results: Results) -> Iterator[Drawn]:
    """How much of the objective's variation over trials each field explains."""
    if results.search is None or not results.search.importances:
        return
    shares = sorted(results.search.importances.items(), key=lambda item: item[1])
    fig, axes = figures.new_axes(height=0.6 + 0.26 * len(shares))
    bars = axes.barh([name for name, _ in shares], [share for _, share in shares], height=0.6, color=TRIAL)
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    axes.set_xlim(0, 1.12 * shares[-1][1] or 1)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("importance (shares add up to 1)")
    complete = sum(trial.value is not None for trial in results.search.trials)
    caption = (
        f"Importance of each field for {results.label(results.search.objective)}, as Optuna computes it from "
        f"{complete} trials of one seed each; so few trials only hint."
    )
    yield Drawn("search_importances", caption, fig)
