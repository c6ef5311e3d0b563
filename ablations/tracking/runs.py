"""How the runs of a study are made, tagged and found in MLflow: those of cells, and those of variants, its rows."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities import Run

if TYPE_CHECKING:
    from ablations.plan import Cell

MAX_TAG = 8000  # characters; MLflow cuts off the rest


def cell_key(run: Run) -> str:
    """Cell.key, from the tags of a run."""
    tags = run.data.tags
    return "|".join(tags.get(name, "") for name in ("study", "protocol", "variant", "seed", "config_digest"))


def find_run(client: MlflowClient, experiment_id: str, cell: Cell, shared: bool) -> Run | None:
    """The run of this cell; a copy of another run is taken for it only if `shared`.

    A store that was too slow to answer may have made two. The one that holds something counts, then the older one.
    """
    condition = (
        f"tags.kind = 'cell' and tags.variant = '{cell.variant}' and tags.seed = '{cell.seed}' "
        f"and tags.config_digest = '{cell.config_digest}'"
    )
    runs = client.search_runs([experiment_id], condition, order_by=["attributes.start_time ASC"])
    same = [run for run in runs if cell_key(run) == cell.key and (shared or "shared_run" not in run.data.tags)]
    return max(same, key=lambda run: ("outcome" in run.data.tags, bool(run.data.metrics)), default=None)


def create_row(
    client: MlflowClient,
    experiment_id: str,
    variant: str,
    about: Mapping[str, str],
    commit: str | None,
    started: int | None = None,
) -> Run:
    tags = {"kind": "variant", "variant": variant, **about, **origin_tags(about["study"], commit)}
    run: Run = client.create_run(experiment_id, started, tags=tags, run_name=variant)
    return run


def origin_tags(study: str, commit: str | None) -> dict[str, str]:
    """Tags that MLflow shows as columns: who made a run, by which program and of which version."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        user = str(os.getuid())
    tags = {"mlflow.user": user, "mlflow.source.type": "LOCAL", "mlflow.source.name": f"ablations.run {study}"}
    return {**tags, **({"mlflow.source.git.commit": commit} if commit else {})}


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
