"""Writes the table of a study to MLflow: a run per variant, the study's documents, and the experiment's description."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunTag

from ablations.plan import Study, show
from ablations.tracking.sending import MAX_TAG, create_row, milliseconds

if TYPE_CHECKING:
    from ablations.table import Row
    from ablations.tracking.store import Store

VIEW = "table"  # the key of the view that shows its columns
_MAX_DESCRIPTION = 5000  # characters of a tag of an experiment, a limit of MLflow's


def write_table(
    store: Store,
    experiment_id: str,
    study: Study,
    rows: Sequence[Row],
    description: str,
    search: Mapping[str, Any] | None,
    commit: str | None,
) -> None:
    """Brings the rows of the study's variants, its documents and the description of its experiment up to date.

    `rows` and the Markdown of `description` are those of ablations.table; `search` is the report of a search. Documents
    are artifacts of the baseline's row. Raises the client's error where the store is unreachable.
    """
    client, texts = store.client, store.texts
    stored = {
        run.data.tags.get("variant", ""): run
        for run in reversed(list(store.runs(experiment_id, "tags.kind = 'variant'")))  # the oldest counts
        if run.data.tags.get("protocol") == study.protocol
    }
    now = milliseconds(time.time())
    for place, row in enumerate(rows):
        name = row.variant.name
        if name not in stored:
            about = {"study": study.name, "protocol": study.protocol, "preset": study.preset}
            about["baseline"] = study.baseline
            # MLflow shows the newest run first.
            stored[name] = create_row(client, experiment_id, name, about, commit, now - place)
        _write_row(client, stored[name], study, row)
    documents = {"study.yaml": study.text, "plan.json": json.dumps(study.plan(), indent=1)}
    if search is not None:
        documents["search.json"] = json.dumps(search, indent=1)
    baseline = str(stored[study.baseline].info.run_id)
    for name, text in documents.items():
        if texts.get((baseline, name)) != text:
            client.log_text(baseline, text, name)
            texts[baseline, name] = text
    metrics = dict.fromkeys(metric for row in rows for metric in row.estimates)
    columns = [f"metrics.`{name}`" for name in (*metrics, "half_width", "n")] + ["tags.`verdict`", "tags.`note`"]
    tags = {
        "mlflow.note.content": description[:_MAX_DESCRIPTION],
        # As MLflow's own button "Share" stores a view of the table.
        f"mlflow.sharedViewState.{VIEW}": json.dumps({"selectedColumns": columns}),
    }
    for name, text in tags.items():
        if texts.get((experiment_id, name)) != text:
            client.set_experiment_tag(experiment_id, name, text)
            texts[experiment_id, name] = text


def _write_row(client: MlflowClient, run: Run, study: Study, row: Row) -> None:
    """What one variant's row shows. A figure that is no longer there becomes NaN: MLflow deletes none."""
    variant, primary = row.variant, row.estimates.get(study.metric)
    numbers = {metric: found.mean for metric, found in row.estimates.items()}
    numbers["n"] = float(primary.n if primary else 0)
    if primary and primary.low is not None and primary.high is not None:
        numbers |= {"low": primary.low, "high": primary.high, "half_width": (primary.high - primary.low) / 2}
    # MLflow's table shows all digits of a number.
    numbers = {
        **dict.fromkeys(run.data.metrics, math.nan),
        **{name: float(f"{x:.5g}") for name, x in numbers.items()},
    }
    tags = {
        "baseline": study.baseline,
        "metric": study.metric,
        "paper": study.paper or "",
        "changes": ", ".join(f"{name}={show(value)}" for name, value in variant.changes.items())[:MAX_TAG],
        "note": row.note,
        "verdict": row.verdict,
        **{f"factor.{name}": level for name, level in variant.factors.items()},
    }
    before = run.data
    is_same = numbers.keys() == before.metrics.keys() and all(
        before.metrics[name] == value or (math.isnan(value) and math.isnan(before.metrics[name]))
        for name, value in numbers.items()
    )
    if not is_same or not tags.items() <= before.tags.items():
        # The step counts the updates: whatever the clock does, the newest is the last.
        step = 1 + int(before.tags.get("updates", "0"))
        now = milliseconds(time.time())
        client.log_batch(
            str(run.info.run_id),
            metrics=[Metric(name, value, now, step) for name, value in numbers.items()],
            tags=[RunTag(key, value) for key, value in {**tags, "updates": str(step)}.items()],
        )
    status = "FINISHED" if row.ended >= row.planned else "SCHEDULED"
    if run.info.status != status:
        client.update_run(run.info.run_id, status=status)
