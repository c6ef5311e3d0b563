"""The answer: the headline in sentences, every seed as a point, the comparisons with their intervals, and the looks of
adaptive seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from reports import figures, format, style
from reports.comparison import compare, estimates, is_log, minimum_detectable_difference, progress
from reports.figures import Drawn
from reports.findings import Comparison, in_words, name_of_best
from reports.results import ENDED_EARLY, Results
from reports.statistics import changed


def headline(results: Results) -> str:
    """The answer, by the primary metric and the same comparisons as the tables; says so where there is none.

    Every comparison that the test shows is named, the better ones first. Of a search it is what the confirmation on
    fresh seeds found.
    """
    done = int(results.cells["state"].isin(["finished", *ENDED_EARLY]).sum())
    planned = sum(results.to_run(variant.name) for variant in results.variants)
    rows = compare(results, results.metric)
    if results.design == "search" and not rows:
        tried = results.search.tried if results.search else 0
        trials = f"{format.counted(tried, 'trial')} {'is' if tried == 1 else 'are'} done"
        return f"Nothing confirmed yet: {trials}; a search answers when its best has run on fresh seeds."
    if done == 0:
        return f"No result yet: 0 of {planned} cells are done."
    so_far = "" if done == planned else f"So far ({done} of {planned} cells): "
    said = answer(rows, results)  # with adaptive seeds also where they could compare none
    if not said and results.adaptive is not None:
        said = f"No answer yet: the first look is at {results.adaptive.first} seeds per variant."
    elif not said:
        yet = "" if done == planned else " yet"
        so_far, said = "", f"No answer{yet}: no comparison has a finished cell on both sides."
    lost = []  # which runs a reader must know to be missing from the means
    for variant in results.variants:
        if ended := int(results.of(variant.name)["state"].isin(ENDED_EARLY).sum()):
            lost.append(f"{ended} of {results.to_run(variant.name)} runs of {variant.name}")
    return so_far + said + (f" Collapsed or diverged: {', '.join(lost)}." if lost else "")


def answer(rows: list[Comparison], results: Results) -> str:
    """What these comparisons by the primary metric show, in a sentence or two."""
    named = [replace(row, variant=_name(row, results)) for row in rows]
    margin = results.adaptive.margin if results.adaptive else None
    sentence = in_words(named, results.label(), results.metric, margin, progress(results))
    if results.adaptive or any(row.shown for row in rows) or all(row.gap.p is None for row in rows):
        return sentence
    if found := minimum_detectable_difference(results):
        sentence += f" With 80 % power, this design would show {results.label()} {changed(found[0], found[1])}."
    return sentence


def _name(row: Comparison, results: Results) -> str:
    if results.search is not None and results.search.best is not None and row.variant == "best":
        return name_of_best(results.search.best, len(results.search.trials))
    return row.variant


def power_statement(results: Results) -> str | None:
    """The smallest difference that the design can show, as a sentence; None where nothing is known of its noise."""
    found = minimum_detectable_difference(results)
    if found is None:
        return None
    size, log, origin = found
    comparisons = format.counted(len(results.pairs), "comparison")
    most = len(results.adaptive.seeds) if results.adaptive else len(results.seeds)
    n = f"{most} seeds per variant" if most > 1 else "one seed per variant"
    n = f"at most {n}" if results.adaptive else n
    return f"With 80 % power, {n} and {comparisons} show {results.label()} {changed(size, log)}, {origin}."


def seeds(results: Results) -> Iterator[Drawn]:
    """Every seed as a point: with a handful of seeds the points are the distribution."""
    rows = estimates(results, results.metric)
    if not any(rows.values()):
        return
    values, log = results.finished(results.metric), is_log(results, results.metric)
    fig, axes = figures.new_axes(height=0.55 + 0.3 * len(rows))
    names = []
    for place, variant in enumerate(results.variants):
        plot_style, row = figures.variant_styles(results)[variant.name], rows[variant.name]
        fewer = row is not None and row.n != len(results.seeds)
        names.append(f"{variant.name}\nn = {row.n}" if row and fewer else variant.name)
        if row is None:
            text = variant.build_error or figures.ended_as(results, variant.name) or "nothing finished"
            axes.text(0.02, place, text, transform=axes.get_yaxis_transform(), va="center", color="#5f6670")
            continue
        figures.whiskers(axes, row.mean, row.low, row.high, place, color=plot_style.colour, capsize=2, lw=1.2)
        axes.plot(row.mean, place, "|", color=plot_style.colour, ms=13, mew=2)
        points = list(values[variant.name].values())
        axes.plot(
            points, [place] * len(points), plot_style.marker, color=plot_style.colour, ms=4.5, mec="white", mew=0.6
        )
    figures.name_rows(axes, names)
    if log:
        figures.log_axis(axes, "x")
    axes.set_xlabel(results.label(arrow=True))
    parts = ["One point per training seed", f"bar: {'geometric mean' if log else 'mean'}"]
    if any(row and row.low is not None for row in rows.values()):
        parts.append(f"whiskers: 95 % t interval{' of the logarithm' if log else ''}")
    yield Drawn("seeds", f"{'; '.join(parts)}. {figures.basis(results, results.metric)}", fig)


def differences(results: Results) -> Iterator[Drawn]:
    """The study's comparisons, with simultaneous intervals."""
    found = compare(results, results.metric)
    if not found:
        return
    one_reference = all(row.reference == results.baseline for row in found)
    fig, axes = figures.new_axes(height=0.55 + 0.3 * len(found))
    for place, row in enumerate(found):
        figures.difference_row(axes, results, row, place)
    figures.name_rows(axes, [row.variant if one_reference else f"{row.variant}\n− {row.reference}" for row in found])
    figures.difference_axis(axes, results, results.metric, results.baseline if one_reference else "the other")
    what = "Ratio of geometric means" if found[0].gap.log else "Difference of means"
    over = format.counted(len(results.pairs), "comparison")
    over += ", and over all looks, of the look that decided it" if results.adaptive else ""
    caption = f"{what}{figures.whisker_note(found, over)}."
    yield Drawn("differences", f"{caption} {figures.basis(results, results.metric)}", fig)


def looks(results: Results) -> Iterator[Drawn]:
    """Of every comparison the intervals from the first look to the one that decided it."""
    looked = progress(results)
    shown = [pair for pair, verdict in looked.verdicts.items() if verdict.gap] if looked else []
    if looked is None or results.adaptive is None or not shown:
        return
    log, margin, variants = is_log(results, results.metric), results.adaptive.margin, [name for name, _ in shown]
    back = math.exp if log else float
    fig, axes = figures.new_axes(height=2.2, legend=variants)
    for place, pair in enumerate(shown):
        plot_style, verdict = figures.variant_styles(results)[pair[0]], looked.verdicts[pair]
        for number, (n, gaps) in enumerate(looked.looks.items()):
            if (gap := gaps.get(pair)) is None:
                continue
            assert gap.low is not None and gap.high is not None
            x = number + 0.6 * ((place + 0.5) / len(shown) - 0.5)
            axes.plot([x, x], [back(gap.low), back(gap.high)], color=plot_style.colour, lw=1.2)
            decided = n == verdict.n and verdict.label != "undecided"
            axes.plot(x, back(gap.value), plot_style.marker, color=plot_style.colour, ms=4.5,
                      mfc=plot_style.colour if decided else "white")  # fmt: skip
    axes.axhline(1 if log else 0, color=style.BASELINE_COLOUR, lw=1)
    if log and margin is not None:
        axes.axhspan(1 / (1 + margin), 1 + margin, color="#f1f3f5", zorder=0, lw=0)
    if log:
        figures.log_axis(axes, "y")
    axes.set_xticks(range(len(looked.looks)), [str(n) for n in looked.looks])
    axes.set_xlim(-0.5, len(looked.looks) - 0.5)
    axes.set_xlabel("seeds at the look")
    reference = results.baseline if {name for _, name in shown} == {results.baseline} else "the other"
    axes.set_ylabel(f"{results.label()}\n{'over' if log else 'less'} that of {reference}")
    figures.legend(fig, results, variants, dashes=False, markers=True)
    caption = (
        f"{'Ratio of geometric means' if log else 'Difference of means'} at each look, with its repeated 95 % "
        "interval; the intervals jointly cover the true values with 95 % probability, over "
        f"{format.counted(len(results.pairs), 'comparison')} and all looks. Filled: decided, and no seeds were added."
    )
    if log and margin is not None:
        caption += f" Grey band: equivalent, a difference within {100 * margin:g} %."
    yield Drawn("looks", f"{caption} {figures.basis(results, results.metric)}", fig)
