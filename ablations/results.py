"""The result of a cell, and the score that it has in tables: as in the report. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reports import statistics
from reports.metrics import heading

if TYPE_CHECKING:
    from ablations.plan import Study

_SECONDARY = ("relation_error", "fid", "is")  # shown beside the primary metric, where the runs have them
_SCORED = ("ema", "raw", "bn running", "bn standing")  # parts of a metric fingerprint that say what is scored
Points = Mapping[str, Mapping[int, float]]  # {metric: {step: value}}, finite values of one run


@dataclass(frozen=True)
class Result:
    """A cell that has ended. `scores` are those that a report gives a finished run, `measured` says by what
    (`measured_by`); `shared_study` is the study that trained it, if not its own."""

    outcome: str
    shared_study: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    measured: str = ""


def measured_by(data_fingerprint: str, metric_fingerprint: str) -> str:
    """Only what has the same may share a table. Variants of a study may differ in which weights are scored."""
    parts = [part for part in metric_fingerprint.split("; ") if part not in _SCORED]
    return "; ".join([data_fingerprint, *parts])


def usual_measurement(results: Iterable[Result]) -> str:
    """How most of the finished ones were measured: scores of the others compare with none of these."""
    ways = Counter(one.measured for one in results if one.outcome == "finished")
    return ways.most_common(1)[0][0] if ways else ""


def metrics_of(study: Study) -> list[str]:
    """The metrics of the table, the primary one first, and a search's objective."""
    objective = [study.search.objective] if study.search else []
    return list(dict.fromkeys((study.metric, *objective, *_SECONDARY)))


def scores_of(points: Points, last_step: int, endpoint: int) -> dict[str, float]:
    """The scores of a finished run: of each metric the mean over its last `endpoint` evaluations.

    As in reports/loading.py, a metric has no score where the evaluation at `last_step` gave no value, or too few did.
    """
    found = {}
    for name, values in points.items():
        last = [values[step] for step in sorted(values)][-endpoint:]
        if last_step in values and len(last) == endpoint:
            found[name] = statistics.run_score(name, last)
    return found


def label(study: Study, metric: str) -> str:
    """What a metric is called, as in the report."""
    return heading(metric, study.base.eval.extractor)
