"""A ladder, where each variant adds a change to the one before: its table, and its waterfall figure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from matplotlib.axes import Axes

from reports import figures, format, tables
from reports.comparison import compare, estimates, is_log, means
from reports.figures import Drawn
from reports.paper import Published, published
from reports.results import Results
from reports.statistics import Estimate
from reports.tables import Block, Row, Table


def ladder(results: Results) -> Table | None:
    """What each rung adds to the one above it: the variants of a ladder accumulate changes."""
    if results.design != "ladder":
        return None
    gaps = {row.variant: row.gap for row in compare(results, results.metric)}
    texts = tables.score_texts(results, results.metric)
    top = tables.best(results.metric, means(results, results.metric).values())
    rows = []
    for place, item in enumerate(results.variants):
        above = results.variants[place - 1].changes if place else {}
        new = {field: tables.setting(value) for field, value in item.changes.items() if above.get(field) != value}
        adds = ", ".join(f"{field} = {value}" for field, value in new.items()) if place else "where the ladder starts"
        gap = gaps.get(item.name)
        cells = (item.name, adds, texts[item.name], format.gap(gap), format.p_value(gap),
                 tables.seeds_finished(results, item), tables.outcomes(results, item))  # fmt: skip
        rows.append(Row(cells, frozenset({2}) if place in top else frozenset()))
    blocks = [Block(None, tuple(rows))]
    if ends := _published_ends(results):
        heading = f"published: {ends[0].dataset}, {ends[0].protocol}; {ends[0].source}"
        theirs = (Row((end.variant, "", f"FID {format.number(end.value, 2)}", "", "", "1 run", "")) for end in ends)
        blocks.append(Block(heading, tuple(theirs), published=True))
    order = "Each effect depends on the order of the steps."
    return Table(
        title="Step by step",
        columns=("rung", "adds", results.label(arrow=True), "to the rung above", "p, adjusted", "seeds", "outcome"),
        blocks=tuple(blocks),
        notes=(tables.caption(results), f"{tables.intervals_note(results, results.metric)} {order}"),
    )


def waterfall(results: Results) -> Iterator[Drawn]:
    """A ladder, rung by rung: what each step changes, between the totals of the first and the last rung."""
    totals = {name: found for name, found in estimates(results, results.metric).items() if found}
    if results.design != "ladder" or len(totals) < 2:
        return
    steps = {row.variant: row for row in compare(results, results.metric)}
    names, scored = [variant.name for variant in results.variants], list(totals)
    fig, axes = figures.new_axes(height=0.6 + 0.32 * (len(names) + 1))
    for place, variant in enumerate(results.variants):
        name, ended = variant.name, figures.ended_as(results, variant.name)
        if name not in totals:
            _write_beside(axes, place, variant.build_error or ended or "no result")
        elif name in steps and steps[name].reference in totals:
            # A bar from the mean of the rung before to this one's, and a line down to where the next begins.
            gap, before, level = steps[name].gap, totals[steps[name].reference].mean, totals[name].mean
            colour = figures.variant_styles(results)[name].colour
            axes.barh(place, level - before, left=before, height=0.5, color=colour)
            low, high = (None if end is None else before * math.exp(end) if gap.log else before + end
                         for end in (gap.low, gap.high))  # fmt: skip
            figures.whiskers(axes, level, low, high, place, color="#2b3038", lw=0.9, capsize=2)
            axes.plot([level, level], [place + 0.25, place + 0.75], color="#9aa1ab", lw=0.7)
            _write_beside(axes, place, format.gap(replace(gap, low=None, high=None)), ended)
        else:
            _draw_total(axes, results, totals[name], name, place, ended)
    _draw_total(axes, results, totals[scored[-1]], scored[-1], len(names))
    first = names.index(scored[0])
    figures.name_rows(axes, [*names[: first + 1], *(f"→ {name}" for name in names[first + 1 :]), scored[-1]])
    log = is_log(results, results.metric)
    if log:
        figures.log_axis(axes, "x")
    axes.set_xlabel(results.label(arrow=True))
    caption = (
        f"From the first rung to the last. Bar: what a step changes in the {'geometric ' if log else ''}mean, with its "
        f"simultaneous 95 % interval over {format.counted(len(results.pairs), 'step')}; diamond: mean of a rung, 95 % "
        f"t interval. {figures.basis(results, results.metric)}"
    )
    if ends := _published_ends(results):
        listed = ", ".join(f"{end.variant} {end.value:g}" for end in ends)
        caption += f" Published, on another protocol: FID {listed} ({ends[0].dataset}; {ends[0].source})."
    yield Drawn("waterfall", caption, fig)


def _published_ends(results: Results) -> list[Published]:
    """What others scored with the two ends of the recipe ladder; what lies between them nobody has measured."""
    records = published("recipe_gap") if results.paper == "recipe_gap" else ()
    return [replace(record, variant=record.variant.replace("_", " ")) for record in records if record.metric == "fid"]


def _draw_total(axes: Axes, results: Results, total: Estimate, name: str, place: int, ended: str = "") -> None:
    colour = figures.variant_styles(results)[name].colour
    figures.whiskers(axes, total.mean, total.low, total.high, place, fmt="D", color=colour, ms=4.5, lw=1.2, capsize=2)
    axes.plot(total.mean, place, "D", color=colour, ms=4.5)
    _write_beside(axes, place, format.number(total.mean, format.decimals([total.mean])), ended)


def _write_beside(axes: Axes, place: int, *lines: str) -> None:
    """In a column of its own at the right, where no bar can run into it."""
    axes.text(1.03, place, "\n".join(filter(None, lines)), transform=axes.get_yaxis_transform(), va="center",
              color="#2b3038", linespacing=1.15)  # fmt: skip
