"""The table of a study: the results of each variant, by the statistics of the report.

Pure: the tracking store keeps the rows (tracking/), and a row equals that of the report's table.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from ablations import verdicts
from ablations.plan import Study, Variant
from ablations.results import Result, label, metrics_of, usual_measurement
from reports import statistics
from sagan.config import digest


@dataclass(frozen=True)
class Row:
    """One variant: the mean of each metric over its finished cells with the 95 % interval, the primary metric first.

    `planned` cells of it belong to the study (with adaptive seeds, as far as is known) and `ended` have an outcome.
    `note`: why it cannot be built, or how many of its runs collapsed. `verdict` is that against its first reference; ""
    where it has none.
    """

    variant: Variant
    planned: int
    ended: int
    estimates: dict[str, statistics.Estimate]
    note: str
    verdict: str


def rows(study: Study, results: Mapping[str, Result], failed: Container[str] = ()) -> list[Row]:
    """One row per variant, in the order of the study; `results` are by the key of their cell."""
    recorded = verdicts.cell_scores(study, results, failed)
    found_verdicts = {one.variant: one.verdict for one in reversed(verdicts.comparisons(study, recorded))}
    own = _by_variant(study, results)
    scores = {metric: _scores(own, metric) for metric in metrics_of(study)}
    planned = Counter(cell.variant for cell in study.cells())
    if study.adaptive:
        wanted = Counter(cell.variant for cell in verdicts.wanted(study, recorded))
        planned = Counter({name: len(found) + wanted[name] for name, found in own.items()})
    found = []
    for variant in study.variants():
        estimates = {}
        for metric, by_variant in scores.items():
            log = statistics.on_log_scale(metric, itertools.chain(*by_variant.values()))
            if (estimate := statistics.estimate(by_variant[variant.name], log)) is not None:
                estimates[metric] = estimate
        outcomes = Counter(result.outcome for result in own[variant.name] if result.outcome != "finished")
        ended = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        found.append(
            Row(
                variant,
                planned[variant.name],
                len(own[variant.name]),
                estimates,
                variant.build_error or ended,
                found_verdicts.get(variant.name, ""),
            )
        )
    return found


def answer(study: Study, results: Mapping[str, Result], failed: Container[str] = ()) -> str:
    """What the simultaneous test of the study's comparisons shows by the primary metric, in one line."""
    if study.adaptive:
        return _verdicts_in_words(study, verdicts.comparisons(study, verdicts.cell_scores(study, results, failed)))
    own = _by_variant(study, results)
    trials = study.search.proposed if study.search else {}  # they choose what is compared
    scores = {name: found for name, found in _scores(own, study.metric).items() if name not in trials}
    gaps = statistics.compare(
        scores,
        [statistics.pair(*names) for names in study.pairs],
        statistics.on_log_scale(study.metric, itertools.chain(*scores.values())),
    )
    compared = [(*names, gap) for names, gap in zip(study.pairs, gaps, strict=True) if gap is not None]
    metric = label(study, study.metric)
    shown = [_sentence(metric, *one) for one in compared if one[2].shown]
    missing = [cell for cell in study.cells() if cell.key not in results]
    so_far = f"So far ({len(missing)} cells are missing): " if missing else ""
    if shown:
        return f"{so_far}{'; '.join(shown)}."
    if any(gap.p is not None for *_, gap in compared):
        fewest = min(gap.n for *_, gap in compared)
        return f"{so_far}No difference in {metric} is shown, with {fewest} seeds per variant or more."
    return f"{so_far}No answer: it needs two seeds of {study.baseline} and of another variant."


def _verdicts_in_words(study: Study, compared: Sequence[verdicts.Comparison]) -> str:
    """ "feat16 lowers FID by 31 % against none (12 to 46 %), decided after 8 seeds; feat8 undecided after 12." """
    metric, clauses = label(study, study.metric), []
    for one in sorted(compared, key=lambda one: one.gap.value if one.gap else 0.0):
        if one.gap and one.reference and one.verdict in ("better", "worse"):
            sentence = _sentence(metric, one.variant, one.reference, one.gap).rpartition(", n = ")[0]
            clauses.append(f"{sentence}, decided after {one.n} seeds")
    undecided: dict[tuple[str, int, bool], list[str]] = {}
    for one in compared:
        if one.verdict in ("equivalent", "undecided"):
            name = one.variant if one.reference == study.baseline else f"{one.variant} against {one.reference}"
            undecided.setdefault((one.verdict, one.n, one.stopped_for_futility), []).append(name)
    for (verdict, n, stopped_for_futility), names in undecided.items():
        why = ", stopped for futility: more seeds are unlikely to decide it" if stopped_for_futility else ""
        listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        clauses.append(f"{listed} {verdict} after {n} seeds{why}")
    named = any(one.verdict in ("better", "worse") for one in compared)
    return f"{'' if named else f'{metric}: '}{'; '.join(clauses)}."


def summary(study: Study, results: Mapping[str, Result], failed: Container[str] = ()) -> tuple[list[Row], str]:
    """The rows, and the table in Markdown with question and answer above it."""
    found = rows(study, results, failed)
    shown = [metric for metric in metrics_of(study) if any(metric in row.estimates for row in found)]
    lines = [
        f"**{study.question}**",
        "",
        answer(study, results, failed),
        "",
        f"Protocol: {study.protocol}. Means over seeds with 95 % intervals; n of {label(study, study.metric)}.",
        "",
        "| " + " | ".join(["variant", *(label(study, metric) for metric in shown), "n", ""]) + " |",
        "| " + " | ".join([":--", *["--:"] * len(shown), "--:", ":--"]) + " |",
    ]
    for row in found:
        texts = [_text(row.estimates.get(metric)) for metric in shown]
        n = row.estimates[study.metric].n if study.metric in row.estimates else 0
        lines.append("| " + " | ".join([row.variant.name, *texts, str(n), row.note]) + " |")
    return found, "\n".join(lines)


def _by_variant(study: Study, results: Mapping[str, Result]) -> dict[str, list[Result]]:
    """The results of each variant at every recorded seed, of its present config only. Those that were not measured as
    most of the study's are without scores."""
    found = {}
    for variant in study.variants():
        before, after = f"{study.name}|{study.protocol}|{variant.name}|", f"|{digest(variant.config)}"
        found[variant.name] = [one for key, one in results.items() if key.startswith(before) and key.endswith(after)]
    usual = usual_measurement(one for own in found.values() for one in own)
    for own in found.values():
        for index, one in enumerate(own):
            if one.outcome == "finished" and one.measured != usual:
                own[index] = replace(one, outcome="measured otherwise", scores={})
    return found


def _scores(own: Mapping[str, Sequence[Result]], metric: str) -> dict[str, list[float]]:
    return {name: [one.scores[metric] for one in found if metric in one.scores] for name, found in own.items()}


def _sentence(metric: str, variant: str, reference: str, gap: statistics.Gap) -> str:
    """ "feat16 lowers fid against none by 31 % (12 to 46), n = 8"."""
    verb = "lowers" if gap.value < 0 else "raises"
    ends = [gap.value, gap.low or 0.0, gap.high or 0.0]
    size, *interval = [abs(100 * math.expm1(end)) if gap.log else abs(end) for end in ends]
    unit = " %" if gap.log else ""
    low, high = sorted(interval)
    return f"{variant} {verb} {metric} against {reference} by {size:.3g}{unit} ({low:.3g} to {high:.3g}), n = {gap.n}"


def _text(found: statistics.Estimate | None) -> str:
    if found is None:
        return "–"
    interval = "" if found.low is None or found.high is None else f" ({found.low:.3g} to {found.high:.3g})"
    return f"{found.mean:.3g}{interval}"
