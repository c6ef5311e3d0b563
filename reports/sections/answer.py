"""The answer: the headline in sentences, every seed as a point, the comparisons with their intervals, and the looks of
adaptive seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator

from reports import figures, format, style
from reports.comparison import Comparison, compare, estimates, is_log, minimum_detectable_difference, progress
from reports.figures import Drawn
from reports.metrics import metric
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
    if rows:
        lost = []  # which runs a reader must know to be missing from the means
        for variant in results.variants:
            if ended := int(results.of(variant.name)["state"].isin(ENDED_EARLY).sum()):
                lost.append(f"{ended} of {results.to_run(variant.name)} runs of {variant.name}")
        return so_far + answer(rows, results) + (f" Collapsed or diverged: {', '.join(lost)}." if lost else "")
    if without := _without_baseline(results):
        return so_far + without
    if results.adaptive is not None:
        return f"{so_far}No answer yet: the first look is at {results.adaptive.first} seeds per variant."
    yet = "" if done == planned else " yet"
    return f"No answer{yet}: no seed has finished both for {results.baseline} and for another variant."


def answer(rows: list[Comparison], results: Results) -> str:
    """What these comparisons by the primary metric show, in a sentence or two."""
    shown = [row for row in rows if row.shown]
    said = "; ".join(_differences_shown(shown, results))
    if results.adaptive is not None:
        said = "; ".join(filter(None, (said, *_no_difference_shown(rows, results))))
        if not shown:
            references = {row.reference for row in rows}
            against = f" against {references.pop()}" if len(references) == 1 else ""
            label = results.label()
            said = f"{label[0].upper()}{label[1:]}{against}, with repeated 95 % intervals: {said}"
        return f"{said}."
    if shown:
        return f"{said}."
    if all(row.gap.p is None for row in rows):
        best = _better_first(rows, results)[0]
        than = "below" if best.gap.value < 0 else "above"
        return (
            f"By {results.label()}, {_name(best, results)} is {format.gap_size(best.gap)} {than} {best.reference} on "
            "one seed; one seed shows no interval."
        )
    counts = [len(own) for own in results.finished(results.metric).values() if own]
    sentence = f"No difference shown with n = {format.span(counts)} per variant."
    if found := minimum_detectable_difference(results):
        sentence += f" With 80 % power, this design would show {results.label()} {changed(found[0], found[1])}."
    return sentence


def _better_first(rows: list[Comparison], results: Results) -> list[Comparison]:
    sign = -1 if metric(results.metric).lower is False else 1
    return sorted(rows, key=lambda row: sign * row.gap.value)


def _differences_shown(shown: list[Comparison], results: Results) -> Iterator[str]:
    """ "feat16 lowers FD by 31 % against none (95 % interval 12 to 46 %), n = 8", "feat8 raises it by ...", ..."""
    counts, references = {row.gap.n for row in shown}, {row.reference for row in shown}
    for place, row in enumerate(_better_first(shown, results)):
        first = not place
        verb = "lowers" if row.gap.value < 0 else "raises"
        against = f" against {row.reference}" if first or len(references) > 1 else ""
        kind = "95 % interval " if row.decided_after is None else "repeated 95 % interval "
        interval = f"{kind if first else ''}{format.gap_size_interval(row.gap)}"
        n = f", n = {row.gap.n}" if first or len(counts) > 1 else ""
        if row.decided_after is not None:
            n = f", decided after {row.decided_after}{' seeds' if first else ''}"
        yield (f"{_name(row, results)} {verb} {results.label() if first else 'it'} by {format.gap_size(row.gap)}"
               f"{against} ({interval}){n}")  # fmt: skip


def _no_difference_shown(rows: list[Comparison], results: Results) -> Iterator[str]:
    """ "feat8 and feat32 equivalent to none within 10 %, decided after 10", "feat64 −4.2 % (−31 to 33) undecided after
    12 seeds": the interval says what is excluded all the same."""
    groups: dict[tuple[str, str, int | None], list[str]] = {}
    for row in rows:
        if not row.shown:
            name = f"{row.variant} {format.gap(row.gap)}" if row.verdict == "undecided" else row.variant
            groups.setdefault((row.verdict or "", row.reference, row.decided_after), []).append(name)
    one_reference = len({row.reference for row in rows}) == 1
    for (verdict, reference, n), names in groups.items():
        listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        if verdict == "equivalent":
            assert results.adaptive is not None and results.adaptive.margin is not None
            yield f"{listed} equivalent to {reference} within {100 * results.adaptive.margin:g} %, decided after {n}"
        else:
            yield f"{listed} undecided{'' if one_reference else f' against {reference}'} after {n} seeds"


def _name(row: Comparison, results: Results) -> str:
    """The variant; of a search, which trial its best is and of how many."""
    if results.search is not None and results.search.best is not None and row.variant == "best":
        return f"{results.search.best} (best of {len(results.search.trials)} trials)"
    return row.variant


def _without_baseline(results: Results) -> str:
    """The answer where every run of the baseline collapsed or diverged but others finished; "" elsewhere."""
    states = results.of(results.baseline)["state"]
    scored = {name: found for name, found in estimates(results, results.metric).items() if found}
    if not scored or not len(states) or not states.isin(ENDED_EARLY).all():
        return ""
    lower = metric(results.metric).lower is not False
    top = (min if lower else max)(scored, key=lambda name: scored[name].mean)
    found = scored[top]
    score = format.interval(found.mean, found.low, found.high, format.decimals([found.mean]))
    runs = "Its only run" if len(states) == 1 else f"All {len(states)} runs"
    return (
        f"{runs} of {results.baseline} collapsed or diverged, so no difference to it can be taken; of the others {top} "
        f"scores {'lowest' if lower else 'highest'}, {score} {results.label()}, n = {found.n}."
    )


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
