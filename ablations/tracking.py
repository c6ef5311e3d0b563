"""What a launch tells MLflow and asks it: an experiment a study, a parent run a launch, a child run a cell.

The cells' own runs are written by their workers (cell_run.py, outbox.py). A launch that has begun goes on while the
store is away.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock

from ablations.outbox import cell_key, open_client, push
from ablations.plan import Cell, Study
from ablations.preflight import sqlite_path
from ablations.room import is_full_disk, whole
from ablations.spool import spools

if TYPE_CHECKING:
    from mlflow.entities import Run

_PATIENCE_SECONDS = 60.0  # with a store that stops answering
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What the store says of a cell that has ended; `shared_study` is the study that trained it, if not its own."""

    outcome: str
    metrics: dict[str, float]  # last values
    shared_study: str | None = None


class StoreAway(Exception):
    """The store stopped answering, and what is asked of it cannot wait."""


class Store:
    """An MLflow store that answers. Creates the tables of a new SQLite file; raises ValueError where it cannot.

    Should it stop answering later, what only informs it is left out, and `is_away` says so.
    """

    def __init__(self, uri: str) -> None:
        path = sqlite_path(uri)
        self.is_away = False
        self._reason = ""
        self._last: dict[str, dict[str, Result]] = {}  # by experiment
        self._late: dict[tuple[str, str], dict[str, Any]] = {}  # documents that it did not take, by run and name
        # Two launchers that make the tables of one new file at once would both fail.
        with FileLock(f"{path}.lock") if path else contextlib.nullcontext():
            try:
                if path and not path.exists():
                    with whole(path) as draft:
                        open_client(f"sqlite:///{draft}").search_experiments(max_results=1)
                self.client = open_client(uri)
                self.client.search_experiments(max_results=1)
            except Exception as error:  # whatever the client, its driver or the network raises
                reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
                if "database schema" in reason:
                    way_out = "back it up and run `mlflow db upgrade` with its URI, or name another"
                    raise ValueError(f"was made by another version of MLflow, got {uri!r}; {way_out}") from None
                way_out = "make room on its disk" if is_full_disk(error) else "start the server or correct it"
                raise ValueError(f"does not answer, got {uri!r} ({reason}); {way_out}") from None
            if path:
                with contextlib.closing(sqlite3.connect(path)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")  # kept in the file: readers do not block writers

    def check_experiment(self, study: Study) -> None:
        """Raises ValueError where the study can have no experiment."""
        found = self.client.get_experiment_by_name(study.name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise ValueError(f"experiment {study.name!r} is deleted in this store; restore it, or rename the study")

    def check_images(self, study: Study, fingerprints: Mapping[str, str]) -> None:
        """Raises ValueError where cells of the study were trained on other images than these, by config digest."""
        experiment_id = self.find_experiment(study)
        if experiment_id is None or not fingerprints:
            return
        for run in self.runs(experiment_id, "tags.kind = 'cell'"):
            tags = run.data.tags
            before, now = tags.get("data_fingerprint"), fingerprints.get(tags.get("config_digest", ""))
            if before and now and before != now:
                raise ValueError(
                    f"{study.name}: {run.info.run_name} was trained on other images ({before}) than are there now "
                    f"({now}); bring the old ones back, or start in another folder or store"
                )

    def open_experiment(self, study: Study) -> str:
        """The id of the study's experiment, made now if there is none, with its question as description.

        Raises StoreAway, as `start_launch` does.
        """
        return self._patiently(lambda: self._open_experiment(study))

    def _open_experiment(self, study: Study) -> str:
        self.check_experiment(study)
        experiment_id = self.find_experiment(study) or self._create_experiment(study)
        tags = {"question": study.question, "mlflow.note.content": study.question, "paper": study.paper}
        for key, value in tags.items():
            if value is not None:
                self.client.set_experiment_tag(experiment_id, key, value)
        return experiment_id

    def _create_experiment(self, study: Study) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.create_experiment(study.name))
        except MlflowException:  # another launcher was first
            experiment_id = self.find_experiment(study)
            if experiment_id is None:
                raise
            return experiment_id

    def find_experiment(self, study: Study) -> str | None:
        found = self.client.get_experiment_by_name(study.name)
        return str(found.experiment_id) if found and found.lifecycle_stage == "active" else None

    def start_launch(self, experiment_id: str, study: Study, process: Mapping[str, Any], commit: str | None) -> str:
        """The parent run of a launch; `process` says who launches, for whoever finds the run orphaned."""
        tags = {
            "kind": "launch",
            "study": study.name,
            "preset": study.preset,
            "protocol": study.protocol,
            "baseline": study.baseline,
            "metric": study.metric,
            "plan": plan_digest(study),
            "process": json.dumps(process),
            **({"git_commit": commit} if commit else {}),
        }
        name = f"launch {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())}"
        run_id = self._patiently(
            lambda: str(self.client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)
        )
        self._patiently(lambda: self.client.log_text(run_id, study.text, "study.yaml"))
        self._patiently(lambda: self.client.log_dict(run_id, study.plan(), "plan.json"))
        return run_id

    def log_document(self, run_id: str, name: str, content: dict[str, Any]) -> None:
        """A JSON artifact, in place of an earlier one of that name."""
        self._late[run_id, name] = content
        self._send_documents()

    def _send_documents(self) -> None:
        for (run_id, name), content in list(self._late.items()):
            if not self._told(self.client.log_dict, run_id, content, name):
                return
            del self._late[run_id, name]

    def end_run(self, run_id: str, status: str) -> None:
        """Where the store is away, the next launch ends the run."""
        self._send_documents()
        self._told(self.client.set_terminated, run_id, status)

    def push(self, experiment_id: str, folder: Path, wait: bool = True) -> None:
        """Sends what is left in the spools below `folder`, runs/STUDY; `wait`s a minute at most for the store."""
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while not push(self.client, experiment_id, folder) and wait and time.monotonic() < give_up:
            time.sleep(1.0)

    def recorded(self, experiment_id: str, folder: Path, shared: bool = True) -> dict[str, Result]:
        """{cell's key: result} of the cells whose outcome stands in the store, or in a spool that is not sent.

        `folder` of the spools is runs/STUDY; `shared` counts copies of other runs. While the store is away, all spools
        count, beside what it said last.
        """
        self._told(self._look_up_results, experiment_id, shared)
        kept = {}
        for spool in spools(folder):
            if self.is_away or spool.has_unsent:
                said = spool.summary()
                study = said.tags.get("shared_study")
                if "outcome" in said.tags and (shared or study is None):
                    kept[Cell.from_json(said.cell).key] = Result(said.tags["outcome"], said.metrics, study)
        return {**kept, **self._last.get(experiment_id, {})}

    def _look_up_results(self, experiment_id: str, shared: bool) -> None:
        results: dict[str, Result] = {}
        for run in self.runs(experiment_id, "tags.kind = 'cell'"):
            tags, key = run.data.tags, cell_key(run)
            trained = "shared_run" not in tags
            if "outcome" in tags and (trained or (shared and key not in results)):
                results[key] = Result(tags["outcome"], run.data.metrics, tags.get("shared_study"))
        self._last[experiment_id] = results

    def end_abandoned(self, experiment_id: str, living: Container[str]) -> None:
        """Ends the runs still marked RUNNING whose cell (by key) nobody trains: their process died.

        A second, empty run of a cell is deleted: the store made it on a request that it answered too late.
        """
        self._told(self._end_abandoned, experiment_id, living)

    def _end_abandoned(self, experiment_id: str, living: Container[str]) -> None:
        cells = list(self.runs(experiment_id, "tags.kind = 'cell'"))
        keys = [cell_key(run) for run in cells if run.data.metrics or "outcome" in run.data.tags]
        for run in cells:
            if run.info.status != "RUNNING" or cell_key(run) in living:
                continue
            if not run.data.metrics and cell_key(run) in keys:
                self.client.delete_run(run.info.run_id)
            else:
                self.client.set_terminated(run.info.run_id, "FINISHED" if "outcome" in run.data.tags else "KILLED")

    def running_launches(self, experiment_id: str) -> dict[str, dict[str, Any]]:
        """{run id: process} of the launches that have not ended, as far as the store knows."""
        condition = "tags.kind = 'launch' and attributes.status = 'RUNNING'"
        found: list[Run] = []
        self._told(lambda: found.extend(self.runs(experiment_id, condition)))
        return {run.info.run_id: json.loads(run.data.tags.get("process", "{}")) for run in found}

    def runs(self, experiment_id: str, condition: str) -> Iterator[Run]:
        token: str | None = None
        while token != "":
            page = self.client.search_runs([experiment_id], condition, max_results=1000, page_token=token)
            yield from page
            token = page.token or ""

    def _told(self, call: Callable[..., Any], *arguments: Any) -> bool:
        """Calls, twice if need be; False where the store is away."""
        from mlflow.exceptions import MlflowException

        for pause in (0.0,) if self.is_away else (0.0, 1.0):
            time.sleep(pause)
            try:
                call(*arguments)
            except (MlflowException, OSError) as error:
                self._reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
                _log.warning("tracking: %s", self._reason)
            else:
                self.is_away = False
                return True
        self.is_away = True
        return False

    def _patiently(self, call: Callable[[], T]) -> T:
        """What `call` returns, for a launch that cannot go on without. Raises StoreAway."""
        answers: list[T] = []
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while not self._told(lambda: answers.append(call())):
            if time.monotonic() > give_up:
                raise StoreAway(f"the tracking store does not answer ({self._reason})")
            time.sleep(1.0)
        return answers[0]


def plan_digest(study: Study) -> str:
    """16 hexadecimal digits: launches of the same variants at the same seeds and protocol have the same."""
    return hashlib.sha256(json.dumps(study.plan(), sort_keys=True).encode()).hexdigest()[:16]
