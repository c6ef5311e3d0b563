"""Writes to MLflow: the runs of cells, from the journals of their attempts, and the table of a study.

Both may be repeated without effect: a metric point is identified by its timestamp; tags and artifacts are overwritten.
"""

from __future__ import annotations

import getpass
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image

from ablations.plan import Cell, Study, show
from sagan.config import flatten
from sagan.journal import Record
from sagan.run_folder import CONFIG, PROTOCOL

if TYPE_CHECKING:
    from ablations.attempts import Attempt, UploadState
    from ablations.table import VariantRow
    from ablations.tracking.store import Store

VIEW = "table"  # the key of the view that shows its columns
# Limits of MLflow's: metrics in one call; characters of a tag, of one of an experiment, of the digest of a data set.
_MAX_BATCH, _MAX_TAG, _MAX_DESCRIPTION, _MAX_DIGEST = 1000, 8000, 5000, 36
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sender:
    """Uploads attempts. `opened` are those whose run is known to exist, by folder and run."""

    client: MlflowClient
    opened: set[tuple[Path, str | None]]

    def send(self, experiment_id: str, attempt: Attempt, has_ended: bool) -> None:
        """Uploads what the store lacks of an attempt, and how it ended if it `has_ended`.

        What the store refuses, and files that are gone, are left out with an error in the log. Where it has an outcome
        of the cell that this attempt lacks, nothing is uploaded. Raises the client's error if the store is unreachable.
        """
        state = attempt.upload_state
        if state.is_lost:
            return
        try:
            if (attempt.folder, state.run_id) not in self.opened:
                state = self._open_run(experiment_id, attempt, state)
            if state.is_lost:
                return
            run_id = state.run_id
            assert run_id is not None
            records, offset = attempt.read(state.offset, attempt.end)
            self._send_metrics(run_id, attempt, records)
            for record in records:
                for name in record.files:
                    self._send_or_leave_out(run_id, partial(self._send_file, run_id, attempt, name))
            state = replace(state, offset=offset)
            if records:
                attempt.write_upload_state(state)
            if has_ended and not state.has_end and attempt.is_newest:
                self._send_end(run_id, attempt)
                attempt.write_upload_state(replace(state, has_end=True))
        except Exception:
            self.opened.discard((attempt.folder, state.run_id))
            raise

    def _open_run(self, experiment_id: str, attempt: Attempt, state: UploadState) -> UploadState:
        """Finds or makes the run of an attempt, and says that it is running. One that is gone (deleted, or left in
        another experiment or store) is made again, with all that the journals of the cell hold."""
        run = self._get(state.run_id) if state.run_id is not None else None
        if run is None or str(run.info.experiment_id) != experiment_id or cell_key(run) != attempt.cell.key:
            run = find_run(self.client, experiment_id, attempt.cell, bool(attempt.copied))
            attempt.reset_upload()
            state = attempt.upload_state
        if run is None:
            run = self._create_run(experiment_id, attempt)
        if "outcome" in run.data.tags and attempt.outcome is None:
            attempt.disable_upload()
            return replace(state, is_lost=True)
        run_id = str(run.info.run_id)
        if state.run_id is None:
            values = flatten(attempt.cell.config)
            self.client.log_batch(run_id, params=[Param(name, show(value)) for name, value in values.items()])
            if run.info.status != "RUNNING" and "outcome" not in run.data.tags and attempt.is_newest:
                self.client.update_run(run_id, status="RUNNING")
            if "error" in run.data.tags and attempt.is_newest:
                self.client.delete_tag(run_id, "error")
            attempt.write_upload_state(state := replace(state, run_id=run_id))
        self.opened.add((attempt.folder, run_id))
        for earlier in attempt.earlier:
            if earlier.upload_state.run_id not in (None, run_id) and not earlier.upload_state.is_lost:
                earlier.reset_upload()
                self.send(experiment_id, earlier, True)
        return state

    def _get(self, run_id: str) -> Run | None:
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _create_run(self, experiment_id: str, attempt: Attempt) -> Run:
        cell, commit = attempt.cell, attempt.tags.get("git_commit")
        about = {name: str(getattr(cell, name)) for name in ("study", "protocol", "preset", "baseline")}
        condition = f"tags.kind = 'variant' and tags.variant = '{cell.variant}'"
        found = self.client.search_runs([experiment_id], condition, order_by=["attributes.start_time ASC"])
        row = next((run for run in found if run.data.tags.get("protocol") == cell.protocol), None)
        if row is None:  # of a variant that the study no longer has
            row = _create_row(self.client, experiment_id, cell.variant, about, commit)
        tags = {
            "kind": "cell",
            "mlflow.parentRunId": str(row.info.run_id),
            "variant": cell.variant,
            "seed": str(cell.seed),
            "config_digest": cell.config_digest,
            **about,
            **{f"factor.{name}": level for name, level in cell.factors.items()},
            **({"paper": cell.paper} if cell.paper else {}),
            **attempt.tags,
            **_origin_tags(cell.study, commit),
        }
        started = _milliseconds(attempt.started)
        run: Run = self.client.create_run(experiment_id, started, tags=tags, run_name=cell.name)
        return run

    def _send_metrics(self, run_id: str, attempt: Attempt, records: Sequence[Record]) -> None:
        """Only finite values are stored. Names of classes, which are folders of the user's, may have another key."""
        classes = attempt.protocol["classes"] if attempt.protocol is not None else []
        keys = {f"fid_class/{name}": f"fid_class/{key}" for name, key in zip(classes, storable(classes), strict=True)}
        points = [
            Metric(keys.get(name, name), value, _milliseconds(record.time), record.step)
            for record in records
            for name, value in record.metrics.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(points), _MAX_BATCH):
            batch = points[start : start + _MAX_BATCH]
            self._send_or_leave_out(run_id, partial(self.client.log_batch, run_id, batch))

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _send_or_leave_out(self, run_id: str, send: Callable[[], object]) -> None:
        try:
            send()
        except FileNotFoundError as error:
            _log.error("tracking: left out, because the file is gone: %s", error.filename)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                raise
            if self._get(run_id) is None:
                raise
            _log.error("tracking: left out, because the store refuses it: %s", str(error).splitlines()[:1])

    def _send_file(self, run_id: str, attempt: Attempt, name: str) -> None:
        if name == CONFIG:  # the store has its values as params: the file names paths of this machine
            return
        if name == PROTOCOL:
            return self._send_protocol(run_id, attempt)
        folder = str(Path(name).parent)
        self.client.log_artifact(run_id, str(attempt.folder / name), folder if folder != "." else None)
        if name.startswith("samples/"):
            self._set_tags(run_id, {"tile_px": str(attempt.cell.config.data.resolution)})
            self._log_image(run_id, attempt.folder / name)
            row = self._row_of(run_id)
            if row is not None and row.data.tags.get("pictures", attempt.cell.name) == attempt.cell.name:
                self._set_tags(row.info.run_id, {"pictures": attempt.cell.name})
                self._log_image(row.info.run_id, attempt.folder / name)

    def _log_image(self, run_id: str, file: Path) -> None:
        """A sample grid for the chart view, which shows those of several runs side by side at one step: variants by
        their rows, which have the grids of one cell each. MLflow gives each image a name of its own, so one that is
        there already is not sent again."""
        step = int(file.stem.removeprefix("step_"))
        names = [Path(found.path).name for found in self.client.list_artifacts(run_id, "images")]
        if not any(name.startswith(f"samples+step+{step}+") and "compressed" in name for name in names):
            with Image.open(file) as image:
                self.client.log_image(run_id, image, key="samples", step=step)

    def _row_of(self, run_id: str) -> Run | None:
        row = self.client.get_run(run_id).data.tags.get("mlflow.parentRunId")
        return self._get(row) if row is not None else None

    def _send_protocol(self, run_id: str, attempt: Attempt) -> None:
        """What the run was measured by, and its data set as an input, also of the variant's row."""
        protocol, data = attempt.protocol or {}, attempt.cell.config.data
        self._set_tags(run_id, _protocol_tags(protocol))
        name, digest = f"{data.name} {data.resolution} px", protocol["data_fingerprint"][:_MAX_DIGEST]
        dataset = Dataset(name, digest, "local", json.dumps({"data_fingerprint": protocol["data_fingerprint"]}))
        row = self._row_of(run_id)
        for target in (run_id, row.info.run_id) if row is not None else (run_id,):
            self.client.log_inputs(target, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _send_end(self, run_id: str, attempt: Attempt) -> None:
        records, _ = attempt.read()
        ended = _milliseconds(records[-1].time if records else attempt.started)
        if attempt.copied:  # its records are older than its run, which shows their duration
            ended += self.client.get_run(run_id).info.start_time - _milliseconds(records[0].time)
        if (outcome := attempt.outcome) is not None:
            # In one call: half a copy has no outcome.
            about = _protocol_tags(attempt.protocol) if attempt.protocol else {}  # a resumed run records none
            self._set_tags(run_id, {"last_step": str(records[-1].step), **about, **attempt.copied, "outcome": outcome})
            self.client.set_terminated(run_id, "FINISHED", ended)
        elif (failure := attempt.failure) is not None:
            self.client.log_text(run_id, failure.traceback, "traceback.txt")
            self._set_tags(run_id, {"error": failure.reason.splitlines()[0]})
            self.client.set_terminated(run_id, "FAILED", ended)
        else:
            self.client.set_terminated(run_id, "KILLED", ended)


def storable(names: Sequence[str]) -> list[str]:
    """`names` as keys of MLflow take them, each still different: one refused key would lose all scores of its step."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.\- :]", "_", name)[:200]
        while plain in found:
            plain += "_"
        found.append(plain)
    return found


def _protocol_tags(protocol: Mapping[str, Any]) -> dict[str, str]:
    """Without class names if they are longer than a tag can be, and then without groups, which refer to them."""
    tags = {name: protocol[name] for name in ("data_fingerprint", "metric_fingerprint")}
    classes = json.dumps(storable(protocol["classes"]))
    if len(classes) <= _MAX_TAG:
        tags |= {"classes": classes, "groups": json.dumps(protocol["groups"])}
    return tags


def write_table(
    store: Store,
    experiment_id: str,
    study: Study,
    rows: Sequence[VariantRow],
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
    now = _milliseconds(time.time())
    for place, row in enumerate(rows):
        name = row.variant.name
        if name not in stored:
            about = {"study": study.name, "protocol": study.protocol, "preset": study.preset}
            about["baseline"] = study.baseline
            # MLflow shows the newest run first.
            stored[name] = _create_row(client, experiment_id, name, about, commit, now - place)
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


def _write_row(client: MlflowClient, run: Run, study: Study, row: VariantRow) -> None:
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
        "changes": ", ".join(f"{name}={show(value)}" for name, value in variant.changes.items())[:_MAX_TAG],
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
        now = _milliseconds(time.time())
        client.log_batch(
            str(run.info.run_id),
            metrics=[Metric(name, value, now, step) for name, value in numbers.items()],
            tags=[RunTag(key, value) for key, value in {**tags, "updates": str(step)}.items()],
        )
    status = "FINISHED" if row.ended >= row.planned else "SCHEDULED"
    if run.info.status != status:
        client.update_run(run.info.run_id, status=status)


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


def _create_row(
    client: MlflowClient,
    experiment_id: str,
    variant: str,
    about: Mapping[str, str],
    commit: str | None,
    started: int | None = None,
) -> Run:
    tags = {"kind": "variant", "variant": variant, **about, **_origin_tags(about["study"], commit)}
    run: Run = client.create_run(experiment_id, started, tags=tags, run_name=variant)
    return run


def _origin_tags(study: str, commit: str | None) -> dict[str, str]:
    """Tags that MLflow shows as columns: who made a run, by which program and of which version."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        user = str(os.getuid())
    tags = {"mlflow.user": user, "mlflow.source.type": "LOCAL", "mlflow.source.name": f"ablations.run {study}"}
    return {**tags, **({"mlflow.source.git.commit": commit} if commit else {})}


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
