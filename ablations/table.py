"""The table of a study: the results of each variant, by the statistics of the report.

Pure: the tracking store keeps the rows (tracking/), and a row equals that of the report's table.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from ablations import verdicts
from ablations.plan import Study, Variant
from ablations.results import Result, label, metrics_of, usual_measurement
from reports import statistics


@dataclass(frozen=True)
class VariantRow:
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


def rows(study: Study, results: Mapping[str, Result], failed: Container[str] = ()) -> list[VariantRow]:
    """One row per variant, in the order of the study; `results` are by the key of their cell."""
    recorded = verdicts.cell_scores(study, results, failed)
    found_verdicts = {one.variant: one.verdict for one in reversed(verdicts.comparisons(study, recorded))}
    own = _by_variant(study, results)
    scores = {metric: _scores(own, metric) for metric in metrics_of(study)}
    cells = study.cells()
    if study.adaptive:
        needed = {cell.key for cell in verdicts.wanted(study, recorded)} | recorded.keys()
        cells = [cell for cell in cells if cell.key in needed]
    planned = Counter(cell.variant for cell in cells)
    ended_cells = Counter(cell.variant for cell in cells if cell.key in results)
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
            VariantRow(
                variant,
                planned[variant.name],
                ended_cells[variant.name],
                estimates,
                variant.build_error or ended,
                found_verdicts.get(variant.name, ""),
            )
        )
    return found


def answer(study: Study, results: Mapping[str, Result], failed: Container[str] = ()) -> str:
    """The headline of the report, of what has been recorded so far."""
    found = rows(study, results, failed)
    planned, ended = sum(row.planned for row in found), sum(row.ended for row in found)
    so_far = "" if ended >= planned else f"So far ({ended} of {planned} cells): "
    said = verdicts.in_words(study, verdicts.cell_scores(study, results, failed))
    if not said and study.adaptive:
        said = f"No answer yet: the first look is at {study.adaptive.first} seeds per variant."
    return so_far + (said or "No answer: no comparison has a finished cell on both sides.")


def summary(study: Study, results: Mapping[str, Result], failed: Container[str] = ()) -> tuple[list[VariantRow], str]:
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
        texts = [_text(row.estimates.get(key)) for key in shown]
        n = row.estimates[study.metric].n if study.metric in row.estimates else 0
        lines.append("| " + " | ".join([row.variant.name, *texts, str(n), row.note]) + " |")
    return found, "\n".join(lines)


def _by_variant(study: Study, results: Mapping[str, Result]) -> dict[str, list[Result]]:
    """The results of each variant at every recorded seed, of its present config only. Those that were not measured as
    most of the study's are without scores."""
    keys = verdicts.keys_by_variant(study, results)
    found = {variant: [results[key] for key in own] for variant, own in keys.items()}
    usual = usual_measurement(one for own in found.values() for one in own)
    for own in found.values():
        for index, one in enumerate(own):
            if one.outcome == "finished" and one.measured != usual:
                own[index] = replace(one, outcome="measured otherwise", scores={})
    return found


def _scores(own: Mapping[str, Sequence[Result]], metric: str) -> dict[str, list[float]]:
    return {name: [one.scores[metric] for one in found if metric in one.scores] for name, found in own.items()}


def _text(found: statistics.Estimate | None) -> str:
    if found is None:
        return "–"
    interval = "" if found.low is None or found.high is None else f" ({found.low:.3g} to {found.high:.3g})"
    return f"{found.mean:.3g}{interval}"
