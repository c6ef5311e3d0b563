"""Cells that another study has trained: found in the tracking store by all that decides their result."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ablations.plan import Cell

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_ABOUT = ("last_step", "device", "git_commit", "tile_px")  # tags that say how and where the source was trained
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A finished run that stands for another cell too: its metric histories and what its tags say of its training."""

    run_id: str
    study: str
    outcome: str
    about: dict[str, str]
    points: list[Metric]


def find_source(client: MlflowClient, cell: Cell, data_fingerprint: str, metric_fingerprint: str) -> Source | None:
    """The oldest run of another study with the same config, seed, data and metrics that has ended with an outcome.

    Copies are passed over: they have no pictures, and the run that they were copied from is found itself. A store that
    does not answer has no source: training does not depend on it.
    """
    try:
        run = _find(client, cell, data_fingerprint, metric_fingerprint)
        return _read(client, run) if run is not None else None
    except Exception as error:
        _log.warning("%s: not looked up in other studies: %s", cell.name, str(error).splitlines()[:1])
        return None


def _find(client: MlflowClient, cell: Cell, data_fingerprint: str, metric_fingerprint: str) -> Run | None:
    same = {
        "config_digest": cell.config_digest,
        "seed": str(cell.seed),
        "data_fingerprint": data_fingerprint,
        "metric_fingerprint": metric_fingerprint,
    }
    experiments = [str(found.experiment_id) for found in client.search_experiments()]
    condition = (
        f"tags.kind = 'cell' and tags.config_digest = '{cell.config_digest}' and tags.seed = '{cell.seed}' "
        f"and attributes.status = 'FINISHED'"
    )
    runs = client.search_runs(experiments, condition, order_by=["attributes.start_time ASC"])
    sources = (run for run in runs if same.items() <= run.data.tags.items() and _can_be_shared(run, cell.study))
    return next(sources, None)


def _can_be_shared(run: Run, study: str) -> bool:
    tags = run.data.tags
    return tags.get("study") != study and "shared_run" not in tags and {"study", "outcome", "last_step"} <= tags.keys()


def _read(client: MlflowClient, run: Run) -> Source:
    tags = run.data.tags
    return Source(
        run_id=str(run.info.run_id),
        study=tags["study"],
        outcome=tags["outcome"],
        about={name: tags[name] for name in _ABOUT if name in tags},
        points=[point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key)],
    )
