"""The client of the tracking store, and what brings a cell's spool to it, in order, whenever it answers."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.plan import Cell, show
from ablations.spool import Entry, Mark, Spool, held_unsent
from sagan.config import flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_RETRY_SECONDS = 10.0  # between attempts while the store does not answer
_MAX_BATCH = 1000  # metrics in one call, a limit of MLflow's
_log = logging.getLogger(__name__)


class Outbox:
    """Sends a spool to the run of its cell, which is found by its tags, or made, when the store first answers.

    `recorded` is the outcome that the store already had for a cell whose spool holds none: then nothing more is sent.
    """

    def __init__(self, client: MlflowClient, experiment_id: str, spool: Spool) -> None:
        self._client, self._experiment_id, self._spool = client, experiment_id, spool
        self._quiet_until = 0.0
        self._is_known = False  # whether the run that the mark names is still there
        self.recorded: str | None = None

    def send(self) -> bool:
        """False while the store does not have it all. Waits for the store during a tenth of the time, at most."""
        began = time.monotonic()
        if began < self._quiet_until:
            return not self._spool.has_unsent
        self._spool.sync()
        try:
            self._look_up()
            for entries, end in _together(self._spool.unsent()):
                if self.recorded is None:
                    self._say(entries)
                self._spool.put_mark(replace(self._spool.mark, sent=end))
        except Exception as error:  # training outlives its tracker
            now = time.monotonic()
            self._quiet_until = now + max(_RETRY_SECONDS, 10 * (now - began))
            _log.warning("tracking: not sent yet, trying again later: %s", str(error).splitlines()[:1])
            return False
        return True

    def _look_up(self) -> None:
        """A run that is gone (deleted, or left in another store) is made again, with all that the spool holds."""
        run_id = self._spool.mark.run_id
        if self._is_known or run_id is None:
            return
        if (run := self._get(run_id)) is None:
            self._spool.put_mark(Mark())
        else:
            self._note(run)

    def _get(self, run_id: str) -> Run | None:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _note(self, run: Run) -> None:
        self._is_known = True
        outcome = run.data.tags.get("outcome")
        if outcome is not None and "outcome" not in self._spool.summary().tags:
            self.recorded = outcome  # by a worker with another disk

    def _say(self, entries: list[Entry]) -> None:
        """Entries of one kind. One that the store will never take is left out, and said in the log."""
        from mlflow.exceptions import MlflowException

        say = {
            "start": self._start,
            "metrics": self._metrics,
            "tags": self._tags,
            "file": self._file,
            "text": self._text,
            "end": self._end,
        }
        try:
            say[entries[0]["kind"]](entries)
        except FileNotFoundError as error:
            _log.error("tracking: left out, because the file is gone: %s", error.filename)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                raise
            self._is_known = False
            if self._spool.mark.run_id is None or self._get(self._run_id) is None:
                raise
            self._is_known = True
            _log.error("tracking: the store refuses %s: %s", entries[0]["kind"], str(error).splitlines()[:1])

    @property
    def _run_id(self) -> str:
        assert self._spool.mark.run_id is not None, "every spool begins with a start"
        return self._spool.mark.run_id

    def _start(self, entries: list[Entry]) -> None:
        from mlflow.entities import Param

        (entry,) = entries
        cell = Cell.from_json(entry["cell"])
        known = self._spool.mark.run_id
        run = self._client.get_run(known) if known else self._find(cell, entry["shared"]) or self._create(cell, entry)
        run_id = str(run.info.run_id)
        self._spool.put_mark(replace(self._spool.mark, run_id=run_id))
        self._note(run)
        if self.recorded is not None:
            return
        values = flatten(cell.config)
        self._client.log_batch(run_id, params=[Param(name, show(value)) for name, value in values.items()])
        self._client.log_dict(run_id, _nested(values), "config.yaml")
        if run.info.status != "RUNNING" and "outcome" not in run.data.tags:
            self._client.update_run(run_id, status="RUNNING")
        if "error" in run.data.tags:
            self._client.delete_tag(run_id, "error")

    def _find(self, cell: Cell, shared: bool) -> Run | None:
        """The run of this cell; a copy of another run is taken for it only if `shared`.

        A store that was too slow to answer may have made two. The one that holds something counts, then the older one.
        """
        condition = (
            f"tags.kind = 'cell' and tags.variant = '{cell.variant}' and tags.seed = '{cell.seed}' "
            f"and tags.config_digest = '{cell.config_digest}'"
        )
        runs = self._client.search_runs([self._experiment_id], condition, order_by=["attributes.start_time ASC"])
        same = [run for run in runs if cell_key(run) == cell.key and (shared or "shared_run" not in run.data.tags)]
        return max(same, key=lambda run: ("outcome" in run.data.tags, bool(run.data.metrics)), default=None)

    def _create(self, cell: Cell, entry: Entry) -> Run:
        tags = {
            "kind": "cell",
            "mlflow.parentRunId": entry["parent"],
            "study": cell.study,
            "preset": cell.preset,
            "protocol": cell.protocol,
            "variant": cell.variant,
            "seed": str(cell.seed),
            "baseline": cell.baseline,
            "config_digest": cell.config_digest,
            **{f"factor.{name}": level for name, level in cell.factors.items()},
            **({"paper": cell.paper} if cell.paper else {}),
            **entry["about"],
        }
        run: Run = self._client.create_run(self._experiment_id, entry["time"], tags=tags, run_name=cell.name)
        return run

    def _metrics(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        points = [Metric(key, value, e["time"], e["step"]) for e in entries for key, value in e["values"].items()]
        self._client.log_batch(self._run_id, metrics=points)

    def _tags(self, entries: list[Entry]) -> None:
        from mlflow.entities import RunTag

        for entry in entries:
            self._client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in entry["tags"].items()])

    def _file(self, entries: list[Entry]) -> None:
        for entry in entries:
            folder = str(Path(entry["name"]).parent)
            path = self._spool.directory / entry["name"]
            self._client.log_artifact(self._run_id, str(path), folder if folder != "." else None)

    def _text(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._client.log_text(self._run_id, entry["text"], entry["name"])

    def _end(self, entries: list[Entry]) -> None:
        self._client.set_terminated(self._run_id, entries[-1]["status"], entries[-1]["time"])


def push(client: MlflowClient, experiment_id: str, folder: Path) -> bool:
    """Sends what earlier processes left in the spools below `folder`; False where the store does not take it."""
    return all(Outbox(client, experiment_id, spool).send() for spool in held_unsent(folder))


def _together(entries: Iterator[tuple[Entry, int]]) -> Iterator[tuple[list[Entry], int]]:
    """Neighbours that carry metrics in one list, as many as one call may bring; all others alone."""
    waiting: list[Entry] = []
    size = last = 0
    for entry, end in entries:
        more = len(entry["values"]) if entry["kind"] == "metrics" else 0
        if waiting and (not more or size + more > _MAX_BATCH):
            yield waiting, last
            waiting, size = [], 0
        if more:
            waiting, size, last = [*waiting, entry], size + more, end
        else:
            yield [entry], end
    if waiting:
        yield waiting, last


def cell_key(run: Run) -> str:
    """Cell.key, from the tags of a run."""
    tags = run.data.tags
    return "|".join(tags.get(name, "") for name in ("study", "protocol", "variant", "seed", "config_digest"))


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"optim.lr_g": 1} as {"optim": {"lr_g": 1}}, with lists for tuples, as YAML likes it."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        node = nested
        *parents, leaf = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = list(value) if isinstance(value, tuple) else value
    return nested


def open_client(uri: str) -> MlflowClient:
    """A client with bounded waits (MLflow's own are four minutes a call) that reports no usage to its makers."""
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # a spool tries again itself; repeating a creation makes two runs
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what it logs, with a traceback, it raises
    return MlflowClient(tracking_uri=uri)
