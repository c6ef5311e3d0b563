"""Results as data: tidy tables of every study of a store, or of the CSV files of a report."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from reports.comparison import compare, estimates, improvement, is_log
from reports.findings import Comparison
from reports.loading import load_results
from reports.results import CELL_TAGS, Results, by_measurement
from reports.store import Store, shown_uri

CELLS, COMPARISONS = "results.csv", "table.csv"  # the files of a report


@dataclass(frozen=True)
class Frames:
    """One or several studies, each at one or several protocols; every row says of which it is.

    `cells` has one row per planned cell: study, protocol, variant, seed, state, step (reached), steps (asked for),
    endpoint, run_id, seconds, config_digest, data_fingerprint, metric_fingerprint, device, git_commit, error,
    shared_study, and each metric's score (of a cell that did not finish, its last value). It is what results.csv holds.
    `metrics` has one row per value: study, protocol, variant, seed, key, step, value. Empty where CSV files were read.
    `comparisons` is what table.csv holds: see `comparisons`.
    """

    cells: pd.DataFrame
    metrics: pd.DataFrame
    comparisons: pd.DataFrame


def load(study: str | None = None, source: str | os.PathLike[str] | None = None) -> Frames:
    """All studies of `source`, or one.

    `source` is a tracking URI, a folder with the mlflow.db of a launch, or a folder (or CSV file) of reports; by
    default the variable MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in this folder. Raises ValueError, saying what to
    do, where there are no results there, or none of `study`.
    """
    path = None if source is None or ":" in str(source) and not Path(source).exists() else Path(source)
    if path is not None and (path / "mlflow.db").is_file():
        source, path = f"sqlite:///{path / 'mlflow.db'}", None
    if path is None:
        loaded = load_results(Store(None if source is None else str(source)))
        loaded = [results for results in loaded if study in (None, results.study)] or loaded
        found = Frames(*(_joined(make(results) for results in loaded) for make in (cells, histories, comparisons)))
    else:
        folder = path.parent if path.is_file() else path
        paths = [sorted(folder.rglob(f"*{name}")) for name in (CELLS, COMPARISONS)]
        if not all(paths):
            raise ValueError(
                f"{path} has no results: it must be a tracking URI, a folder with mlflow.db, or a folder of reports "
                f"with {CELLS} and {COMPARISONS}"
            )
        none = pd.DataFrame(columns=["study", "protocol", "variant", "seed", "key", "step", "value"])
        found = Frames(_joined(map(_read, paths[0])), none, _joined(map(_read, paths[1])))
    check_study(study, found.cells["study"].unique(), "the default store" if source is None else shown_uri(str(source)))
    of_study = (frame if study is None else frame[frame["study"] == study].reset_index(drop=True)
                for frame in (found.cells, found.metrics, found.comparisons))  # fmt: skip
    return Frames(*of_study)


def check_study(study: str | None, names: Iterable[str], where: str) -> None:
    """Raises ValueError for a study that is not there; None stands for any."""
    names = list(names)
    if not names:
        raise ValueError(f"the store {where} has no study: start one with `python -m ablations.run STUDY.yaml`")
    if study is not None and study not in names:
        close = difflib.get_close_matches(study, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
        raise ValueError(f"--study: no study {study!r} in {where}; {hint}")


_TEXTS = ("study", "protocol", "variant", "state", "run_id", *CELL_TAGS, "metric", "role", "scale", "reference",
          "verdict")  # fmt: skip


def _read(path: Path) -> pd.DataFrame:
    """A CSV file as it was written: a variant named NA is one, and every number has all of its digits."""
    try:
        frame = pd.read_csv(path, dtype=object, keep_default_na=False, na_values=[""])
        frame = frame.astype({name: float for name in frame if name not in _TEXTS})
    except ValueError as error:
        raise ValueError(f"{path} is no file of a report: {error}") from None
    if missing := {"study", "protocol", "variant"} - set(frame):
        raise ValueError(f"{path} is no file of a report: it has no column {min(missing)}; build the report again")
    return frame.astype({name: int for name in ("seed", "n", "planned") if name in frame})


def _joined(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=["study", "protocol"])


def _named(frame: pd.DataFrame, results: Results) -> pd.DataFrame:
    for name in ("protocol", "study"):
        frame.insert(0, name, getattr(results, name))
    return frame


def cells(results: Results) -> pd.DataFrame:
    """One row per planned cell, with its scores. A metric that is called as a column is renamed."""
    same_name = {key: f"{key} (metric)" for key in results.final_scores if key in {"study", "protocol", *results.cells}}
    return _named(results.cells.join(results.final_scores.rename(columns=same_name)), results)


def histories(results: Results) -> pd.DataFrame:
    """One row per value of a metric at a step of a cell."""
    return _named(results.histories.reset_index(drop=True), results)


def comparisons(results: Results) -> pd.DataFrame:
    """One row per metric, variant and comparison of it; a variant that is compared with nothing has one row too.

    On the log scale `mean` is geometric, `sd` is of the log, and `difference` and its ends are ratios less one; `low95`
    and `high95` are the t interval of the mean, those of the difference simultaneous. `n` seeds are in the mean, of
    `planned`. Only the primary metric has a `verdict`, better, worse, equivalent or undecided: that of the test, of
    adaptive seeds that of the looks after `decided_after` seeds, with the repeated interval.
    """
    rows: list[dict[str, object]] = []
    for part in by_measurement(results):
        for key in sorted(part.final_scores.columns):
            log, compared = is_log(part, key), compare(part, key)
            for name, own in estimates(part, key).items():
                if own is None:
                    continue
                estimate = {
                    "variant": name,
                    "metric": key,
                    "role": "primary" if key == part.metric else "secondary",
                    "scale": "log" if log else "linear",
                    "mean": own.mean,
                    "low95": own.low,
                    "high95": own.high,
                    "sd": own.sd,
                    "n": own.n,
                    "planned": len(part.seeds),
                    "metric_fingerprint": part.fingerprint,
                }
                found: list[Comparison | None] = [row for row in compared if row.variant == name]
                rows += [{**estimate, **_difference(row, part, key)} for row in found or [None]]
    return _named(pd.DataFrame(rows), results)


def _difference(row: Comparison | None, results: Results, key: str) -> dict[str, object]:
    gap = row.gap if row else None
    back = math.expm1 if gap and gap.log else float
    return {
        "reference": row and row.reference,
        "difference": back(gap.value) if gap else None,
        "difference_low95": back(gap.low) if gap and gap.low is not None else None,
        "difference_high95": back(gap.high) if gap and gap.high is not None else None,
        "p_adjusted": gap and gap.p,
        "probability_of_improvement": row and improvement(results, key, row),
        "verdict": row.verdict if row and key == results.metric else None,
        "decided_after": row and row.decided_after,
    }
