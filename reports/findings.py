"""What a study shows by one metric: its comparisons, and the sentence that states them.

Pure, and used by `ablations` too: the last screen of a launch, the study's description in MLflow and the headline of
the report are the same words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from reports import format, statistics
from reports.metrics import metric
from reports.sequential import Pair, Progress
from reports.statistics import Gap


@dataclass(frozen=True)
class Comparison:
    """`variant` against `reference` by one metric; the gap is variant minus reference, of logs where it says `log`.

    `verdict` is better, worse, equivalent or undecided; of a metric of which neither direction is better, lower, higher
    or undecided. With adaptive seeds it is that of the look after `decided_after` seeds (of the newest look, while it
    is undecided), and the gap is too; `stopped_for_futility`: undecided, and more seeds are unlikely to decide it.
    """

    variant: str
    reference: str
    gap: Gap
    verdict: str
    decided_after: int | None = None
    stopped_for_futility: bool = False

    @property
    def shown(self) -> bool:
        """Whether the interval excludes "no difference", and does not lie within the margin."""
        return self.verdict not in ("undecided", "equivalent")


def compare(
    values: Mapping[str, Sequence[float]], pairs: Sequence[Pair], key: str, looked: Progress | None = None
) -> list[Comparison]:
    """The pairs by one metric, one family; without those that lack a value.

    `values` has the scores of each variant. With `looked`, the looks of adaptive seeds, these decide.
    """
    rows = []
    if looked is not None:
        for (variant, reference), found in looked.verdicts.items():
            if found.gap is not None:
                rows.append(Comparison(variant, reference, found.gap, found.label, found.n, found.stopped_for_futility))
        return rows
    log = statistics.on_log_scale(key, (value for own in values.values() for value in own))
    gaps = statistics.compare(values, [statistics.pair(*pair) for pair in pairs], log)
    for (variant, reference), gap in zip(pairs, gaps, strict=True):
        if gap is not None:
            rows.append(Comparison(variant, reference, gap, gap.verdict(metric(key).lower)))
    return rows


def in_words(
    rows: Sequence[Comparison], label: str, key: str, margin: float | None = None, looked: Progress | None = None
) -> str:
    """What these comparisons show, in a sentence; "" where there is none. All that show a difference are named.

    `label` is what the metric `key` is called; `margin` is that of adaptive seeds, whose looks are `looked`.
    """
    sign = -1 if metric(key).lower is False else 1
    better_first = sorted(rows, key=lambda row: sign * row.gap.value)
    shown = [row for row in better_first if row.shown]
    said = list(_differences_shown(shown, label))
    if looked is not None:
        said += [*_no_difference_shown(rows, margin), *_not_compared(looked)]
        if said and not shown:
            references = {row.reference for row in rows}
            against = f" against {references.pop()}" if len(references) == 1 else ""
            intervals = ", with repeated 95 % intervals" if rows else ""
            said[0] = f"{label[0].upper()}{label[1:]}{against}{intervals}: {said[0]}"
    elif rows and not shown and all(row.gap.p is None for row in rows):
        best = better_first[0]
        than = "below" if best.gap.value < 0 else "above"
        size = f"{best.variant} is {format.gap_size(best.gap)} {than} {best.reference} on one seed"
        said = [f"By {label}, {size}", "one seed shows no interval"]
    elif rows and not shown:
        said = [f"No difference shown with n = {format.span(row.gap.n for row in rows)} per variant"]
    return f"{'; '.join(said)}." if said else ""


def name_of_best(trial: str, trials: int) -> str:
    """How a sentence calls the variant that a search chose."""
    return f"{trial} (best of {trials} trials)"


def _differences_shown(shown: Sequence[Comparison], label: str) -> Iterator[str]:
    """ "feat16 lowers FD by 31 % against none (95 % interval 12 to 46 %), n = 8", "feat8 raises it by ...", ..."""
    counts, references = {row.gap.n for row in shown}, {row.reference for row in shown}
    for place, row in enumerate(shown):
        first = not place
        verb = "lowers" if row.gap.value < 0 else "raises"
        against = f" against {row.reference}" if first or len(references) > 1 else ""
        kind = "95 % interval " if row.decided_after is None else "repeated 95 % interval "
        interval = f"{kind if first else ''}{format.gap_size_interval(row.gap)}"
        n = f", n = {row.gap.n}" if first or len(counts) > 1 else ""
        if row.decided_after is not None:
            n = f", decided after {row.decided_after}{' seeds' if first else ''}"
        yield f"{row.variant} {verb} {label if first else 'it'} by {format.gap_size(row.gap)}{against} ({interval}){n}"


def _no_difference_shown(rows: Sequence[Comparison], margin: float | None) -> Iterator[str]:
    """ "feat8 and feat32 equivalent to none within 10 %, decided after 10", "feat64 −4.2 % (−31 to 33) undecided after
    12 seeds": its interval says which differences are excluded."""
    groups: dict[tuple[str, str, int | None], list[str]] = {}
    for row in rows:
        if not row.shown:
            name = f"{row.variant} {format.gap(row.gap)}" if row.verdict == "undecided" else row.variant
            groups.setdefault((row.verdict, row.reference, row.decided_after), []).append(name)
    one_reference = len({row.reference for row in rows}) == 1
    for (verdict, reference, n), names in groups.items():
        if verdict == "equivalent":
            assert margin is not None
            yield f"{_listed(names)} equivalent to {reference} within {100 * margin:g} %, decided after {n}"
        else:
            yield f"{_listed(names)} undecided{'' if one_reference else f' against {reference}'} after {n} seeds"


def _not_compared(looked: Progress) -> Iterator[str]:
    """The variants of which so many cells failed, collapsed or diverged that no look could test them."""
    pairs = [pair for pair, found in looked.verdicts.items() if found.gap is None] if looked.looks else []
    if pairs:
        several = len({reference for _, reference in looked.verdicts}) > 1
        names = [f"{variant} against {reference}" if several else variant for variant, reference in pairs]
        yield f"{_listed(names)} not compared, for lack of scores"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
