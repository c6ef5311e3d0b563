"""Verdicts from the recorded cells of a study, and the cells that adaptive seeds need next. Pure functions."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from ablations.plan import Cell, Study
from ablations.results import Result, usual_measurement
from reports import sequential, statistics
from reports.sequential import Progress, Rule
from reports.statistics import Estimate, Gap

# The score by the primary metric, as in the report, of each cell that has ended, by key. None for a cell that failed,
# collapsed or diverged: it counts as one of its variant's seeds, and is left out of means and comparisons.
CellScores = Mapping[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """A variant, and what is known of it against `reference`; None where it is compared with nothing.

    `verdict` is better, worse, equivalent or undecided, by `n` seeds; for a metric of which neither more nor less is
    better, "lower" or "higher". The gap is that of the decision, or the newest. `stopped_for_futility`: undecided, and
    more seeds are unlikely to decide it.
    """

    variant: str
    estimate: Estimate | None
    reference: str | None = None
    gap: Gap | None = None
    verdict: str = ""
    n: int = 0
    stopped_for_futility: bool = False


def cell_scores(study: Study, results: Mapping[str, Result], failed: Container[str]) -> CellScores:
    """`results` are by the key of their cell; `failed` are the keys of cells that will have none.

    A cell that was not measured as most of the study's has no score: only scores of one measurement compare.
    """
    keys = [cell.key for cell in study.cells() if cell.key in results or cell.key in failed]
    usual = usual_measurement(results[key] for key in keys if key in results)
    counted = {key: result.scores for key, result in results.items() if result.measured == usual}
    return {key: counted.get(key, {}).get(study.metric) for key in keys}


def progress(study: Study, recorded: CellScores) -> Progress:
    """The looks of a study with adaptive seeds so far: a function of its recorded cells only."""
    scores: dict[str, list[float | None]] = {}
    broken = set[str]()  # variants of which an earlier seed is still to come
    for cell in study.cells():
        own = scores.setdefault(cell.variant, [])
        if cell.key not in recorded:
            broken.add(cell.variant)
        if cell.variant not in broken:
            own.append(recorded[cell.key])
    lower = statistics.lower_is_better(study.metric)
    assert lower is not None, "the study file is checked for it"
    return sequential.replay(scores, rule(study, _is_log(study, recorded)), lower)


def rule(study: Study, log: bool) -> Rule:
    assert study.adaptive is not None
    looks = sequential.looks(study.adaptive.first, study.adaptive.most)
    return Rule(looks, tuple(study.pairs), study.adaptive.margin, log)


def wanted(study: Study, recorded: CellScores, most: int | None = None) -> list[Cell]:
    """The cells that the next look needs, seed by seed; [] when all is decided, or the look has more than `most` seeds.

    A variant that is compared with nothing gets the seeds of the first look.
    """
    assert study.adaptive is not None
    paired = {name for pair in study.pairs for name in pair}
    cells = {(cell.variant, study.seeds.index(cell.seed)): cell for cell in study.cells()}
    places = progress(study, recorded).wanted
    if most is not None and any(place >= most for _, place in places):
        places = []
    places += [(name, place) for name, place in cells if name not in paired and place < study.adaptive.first]
    return [cells[place] for place in places if cells[place].key not in recorded]


def comparisons(study: Study, recorded: CellScores) -> list[Comparison]:
    """One per comparison, and one per variant that is compared with nothing, in plan order. No trials of a search."""
    trials = study.search.proposed if study.search else {}
    values: dict[str, list[float]] = {}
    for cell in study.cells():
        if cell.variant not in trials:
            own, score = values.setdefault(cell.variant, []), recorded.get(cell.key)
            own += [] if score is None else [score]
    log = _is_log(study, recorded)
    pairs = [pair for pair in study.pairs if set(pair) <= values.keys()]
    found: dict[tuple[str, str], tuple[Gap | None, str, int, bool]] = {}
    if study.adaptive:
        for pair, verdict in progress(study, recorded).verdicts.items():
            found[pair] = verdict.gap, verdict.label, verdict.n, verdict.stopped_for_futility
    else:
        gaps = statistics.compare(values, [statistics.pair(*pair) for pair in pairs], log)
        for pair, gap in zip(pairs, gaps, strict=True):
            label = gap.verdict(statistics.lower_is_better(study.metric)) if gap else "undecided"
            found[pair] = gap, label or ("lower" if gap and gap.value < 0 else "higher"), gap.n if gap else 0, False
    listed = []
    for name, scores in values.items():
        estimate = statistics.estimate(scores, log)
        compared = [Comparison(name, estimate, reference, *found[v, reference]) for v, reference in pairs if v == name]
        listed += compared or [Comparison(name, estimate)]
    return listed


def _is_log(study: Study, recorded: CellScores) -> bool:
    return statistics.on_log_scale(study.metric, (score for score in recorded.values() if score is not None))
