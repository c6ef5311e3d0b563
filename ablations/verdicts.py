"""Verdicts from the recorded cells of a study, and the cells that adaptive seeds need next. Pure functions."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from ablations.plan import BEST, Cell, Study
from ablations.results import Result, label, usual_measurement
from reports import findings, sequential, statistics
from reports.findings import Comparison
from reports.sequential import Progress, Rule
from reports.statistics import Estimate
from sagan.config import digest

# The score by the primary metric, as in the report, of each cell that has ended, by key. None for a cell that failed,
# collapsed or diverged: it counts as one of its variant's seeds, and is left out of means and comparisons.
CellScores = Mapping[str, float | None]


@dataclass(frozen=True)
class VerdictRow:
    """A line of the table of verdicts: a variant and one comparison of it; None where it is compared with nothing."""

    variant: str
    estimate: Estimate | None
    comparison: Comparison | None = None


def cell_scores(study: Study, results: Mapping[str, Result], failed: Container[str]) -> CellScores:
    """`results` are by the key of their cell; `failed` are the keys of cells that will have none.

    Every recorded seed of a variant's present config counts, also one that this launch does not ask for. A cell that
    was not measured as most of the study's has no score: only scores of one measurement compare.
    """
    keys = dict.fromkeys(cell.key for cell in study.cells() if cell.key in results or cell.key in failed)
    for own in keys_by_variant(study, results).values():
        keys.update(dict.fromkeys(own))
    usual = usual_measurement(results[key] for key in keys if key in results)
    counted = {key: result.scores for key, result in results.items() if result.measured == usual}
    return {key: counted.get(key, {}).get(study.metric) for key in keys}


def keys_by_variant(study: Study, keys: Iterable[str]) -> dict[str, list[str]]:
    """{variant: those of these keys of cells that are of its present config, at any seed}, in plan order."""
    found: dict[tuple[str, str], list[str]] = {(one.name, digest(one.config)): [] for one in study.variants()}
    start = f"{study.name}|{study.protocol}|"
    for key in keys:
        if key.startswith(start):
            variant, _, config = key.removeprefix(start).split("|")
            if (variant, config) in found:
                found[variant, config].append(key)
    return {variant: own for (variant, _), own in found.items()}


def progress(study: Study, recorded: CellScores) -> Progress:
    """The looks of a study with adaptive seeds so far: a function of its recorded cells only."""
    scores: dict[str, list[float | None]] = {}
    has_gap = set[str]()  # variants of which an earlier seed is still to come
    for cell in study.cells():
        own = scores.setdefault(cell.variant, [])
        if cell.key not in recorded:
            has_gap.add(cell.variant)
        if cell.variant not in has_gap:
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
    """What is known of the study's comparisons, as in the report: of those that have a score on both sides."""
    looked = progress(study, recorded) if study.adaptive else None
    return findings.compare(_values(study, recorded), study.pairs, study.metric, looked)


def verdict_rows(study: Study, recorded: CellScores) -> list[VerdictRow]:
    """A line per comparison, and one per variant without, in plan order. No trials of a search."""
    compared, log = comparisons(study, recorded), _is_log(study, recorded)
    found = []
    for name, scores in _values(study, recorded).items():
        own: list[Comparison | None] = [one for one in compared if one.variant == name]
        found += [VerdictRow(name, statistics.estimate(scores, log), one) for one in own or [None]]
    return found


def in_words(study: Study, recorded: CellScores) -> str:
    """The comparisons as a sentence, as in the report; "" before there is one."""
    looked = progress(study, recorded) if study.adaptive else None
    margin = study.adaptive.margin if study.adaptive else None
    compared = comparisons(study, recorded)
    if study.search and study.search.best:
        best = findings.name_of_best(study.search.best, len(study.search.proposed))
        compared = [replace(one, variant=best) if one.variant == BEST else one for one in compared]
    return findings.in_words(compared, label(study, study.metric), study.metric, margin, looked)


def _values(study: Study, recorded: CellScores) -> dict[str, list[float]]:
    """{variant: its scores}, in plan order, without the trials of a search, which choose what is compared."""
    trials = study.search.proposed if study.search else {}
    planned = {cell.variant for cell in study.cells()} - trials.keys()
    return {
        variant: [score for key in keys if (score := recorded[key]) is not None]
        for variant, keys in keys_by_variant(study, recorded).items()
        if variant in planned
    }


def _is_log(study: Study, recorded: CellScores) -> bool:
    return statistics.on_log_scale(study.metric, (score for score in recorded.values() if score is not None))
