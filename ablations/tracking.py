"""All that is told to MLflow and asked of it: an experiment per study, a run per launch, a child run per cell.

The run of a cell is found again by its tags, so whoever goes on with the cell goes on with its run. What an attempt has
to tell is in its journal; `Store.send` brings it to the store from a mark on. To send something twice is to send it
once: points carry the time at which they were told, tags and artifacts replace what was there.
A launch that has begun goes on while the store is away.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import sqlite3
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock

from ablations.attempts import Attempt, Mark, all_attempts
from ablations.disk import is_full_disk, new_database
from ablations.plan import Cell, Study, show
from ablations.preflight import sqlite_path
from sagan.config import flatten
from sagan.journal import Record, current
from sagan.run_folder import CONFIG, PROTOCOL

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_PATIENCE_SECONDS = 60.0  # with a store that stops answering
_MAX_BATCH = 1000  # metrics in one call, a limit of MLflow's
_MAX_TAG = 8000  # characters; MLflow cuts off the rest
_ABOUT = ("last_step", "device", "git_commit", "tile_px")  # tags that say how and where a run was trained
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What the store says of a cell that has ended; `shared_study` is the study that trained it, if not its own."""

    outcome: str
    metrics: dict[str, float]  # last values
    shared_study: str | None = None


@dataclass(frozen=True)
class Source:
    """A finished run of another study that stands for a cell, too: records of its metrics, and the tags of the copy."""

    study: str
    records: list[Record]
    tags: dict[str, str]


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
        self._opened: set[tuple[Path, str | None]] = set()  # attempts whose run is known to be there
        self._late: dict[tuple[str, str], dict[str, Any]] = {}  # documents that it did not take, by run and name
        # Two launchers that make the tables of one new file at once would both fail.
        with FileLock(f"{path}.lock") if path else contextlib.nullcontext():
            try:
                if path and not path.exists():
                    with new_database(path) as draft:
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

    def recorded(self, experiment_id: str, folder: Path, shared: bool = True) -> dict[str, Result]:
        """{cell's key: result} of the cells whose outcome stands in the store, or in a journal that is not sent.

        `folder` is runs/STUDY; `shared` counts copies of other runs. While the store is away, all journals count,
        beside what it said last.
        """
        self._told(self._look_up_results, experiment_id, shared)
        kept = {}
        for attempt in all_attempts(folder):
            study = attempt.copied.get("shared_study")
            if (shared or study is None) and (self.is_away or attempt.has_unsent) and not attempt.mark.is_lost:
                if (outcome := attempt.outcome) is not None:
                    records = current(attempt.read()[0])
                    metrics = {name: value for record in records for name, value in record.metrics.items()}
                    kept[attempt.cell.key] = Result(outcome, metrics, study)
        return {**kept, **self._last.get(experiment_id, {})}

    def _look_up_results(self, experiment_id: str, shared: bool) -> None:
        results: dict[str, Result] = {}
        for run in self.runs(experiment_id, "tags.kind = 'cell'"):
            tags, key = run.data.tags, cell_key(run)
            trained = "shared_run" not in tags
            if "outcome" in tags and (trained or (shared and key not in results)):
                results[key] = Result(tags["outcome"], run.data.metrics, tags.get("shared_study"))
        self._last[experiment_id] = results

    def find_outcome(self, experiment_id: str, cell: Cell, shared: bool) -> str | None:
        """That of a cell, where some host has recorded it; None also while the store is away."""
        found: list[str | None] = []

        def look() -> None:
            run = self._find_run(experiment_id, cell, shared)
            found.append(run.data.tags.get("outcome") if run is not None else None)

        self._told(look)
        return found[0] if found else None

    def find_shared(self, cell: Cell) -> list[tuple[str, str]]:
        """Fingerprints of data and metrics of the results that other studies have of this config and seed; none while
        the store is away: training does not depend on it."""
        found: list[Run] = []
        self._told(lambda: found.extend(self._shareable(cell)))
        return [_fingerprints(run) for run in found]

    def find_source(self, cell: Cell, fingerprints: tuple[str, str]) -> Source | None:
        """The oldest run of another study with the same config, seed, data and metrics that has ended with an outcome;
        None also while the store is away."""
        found: list[Source] = []

        def look() -> None:
            run = next((run for run in self._shareable(cell) if _fingerprints(run) == fingerprints), None)
            if run is not None:
                histories = [self.client.get_metric_history(run.info.run_id, key) for key in run.data.metrics]
                found.append(_source(run, [point for points in histories for point in points]))

        self._told(look)
        return found[0] if found else None

    def _shareable(self, cell: Cell) -> list[Run]:
        """Copies are passed over: they have no pictures, and the run that they were copied from is found itself."""
        experiments = [str(found.experiment_id) for found in self.client.search_experiments()]
        condition = (
            f"tags.kind = 'cell' and tags.config_digest = '{cell.config_digest}' and tags.seed = '{cell.seed}' "
            f"and attributes.status = 'FINISHED'"
        )
        needed = {"study", "outcome", "last_step", "data_fingerprint", "metric_fingerprint"}
        found = []
        for run in self.client.search_runs(experiments, condition, order_by=["attributes.start_time ASC"]):
            tags = run.data.tags
            if needed <= tags.keys() and "shared_run" not in tags and tags["study"] != cell.study:
                found.append(run)
        return found

    def send(self, experiment_id: str, attempt: Attempt, has_ended: bool) -> None:
        """Brings to the store what it lacks of an attempt, and where it `has_ended`, how.

        What the store will never take, and files that are gone, are left out and said in the log. Where it has an
        outcome of the cell from another disk, nothing is sent. Raises what the client raises where the store is away.
        """
        mark = attempt.mark
        if mark.is_lost:
            return
        try:
            if (attempt.folder, mark.run_id) not in self._opened:
                mark = self._open_run(experiment_id, attempt, mark)
            if mark.is_lost:
                return
            run_id = mark.run_id
            assert run_id is not None
            records, offset = attempt.read(mark.offset, attempt.end)
            for points in _batches(records, _stored_names(attempt.protocol)):
                self._send_or_leave_out(run_id, partial(self._log_batch, run_id, metrics=points))
            for record in records:
                for name in record.files:
                    self._send_or_leave_out(run_id, partial(self._send_file, run_id, attempt, name))
            mark = replace(mark, offset=offset)
            if records:
                attempt.put_mark(mark)
            if has_ended and not mark.has_end and attempt.is_newest:
                self._send_end(run_id, attempt)
                attempt.put_mark(replace(mark, has_end=True))
        except Exception:
            self._opened.discard((attempt.folder, mark.run_id))
            raise

    def try_to_send(self, experiment_id: str, attempt: Attempt, has_ended: bool) -> bool:
        """`send`; False where the store does not take it, whatever the error: training outlives its tracker."""
        try:
            return self._told(self.send, experiment_id, attempt, has_ended)
        except Exception:
            _log.exception("tracking: %s is not sent", attempt.cell.name)
            return False

    def send_rest(self, experiment_id: str, folder: Path, living: Container[str], wait: bool = True) -> None:
        """Sends what processes that are gone left below `folder`, runs/STUDY, unless somebody trains the cell now;
        `wait`s a minute at most for the store."""
        rest = [attempt for attempt in all_attempts(folder) if attempt.has_unsent and attempt.cell.key not in living]
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while rest:
            if self._told(self.send, experiment_id, rest[0], True):
                rest = rest[1:]
            elif not wait or time.monotonic() > give_up:
                return
            else:
                time.sleep(1.0)

    def _open_run(self, experiment_id: str, attempt: Attempt, mark: Mark) -> Mark:
        """Finds or makes the run of an attempt, and says that it is running. One that is gone (deleted, or left in
        another store) is made again, with all that the journal holds."""
        run = self._get(mark.run_id) if mark.run_id is not None else None
        if run is None:
            run = self._find_run(experiment_id, attempt.cell, bool(attempt.copied))
            mark = Mark()
        if run is None:
            run = self._create_run(experiment_id, attempt)
        if "outcome" in run.data.tags and attempt.outcome is None:
            attempt.put_mark(mark := replace(mark, is_lost=True))
            return mark
        run_id = str(run.info.run_id)
        if mark.run_id is None:
            from mlflow.entities import Param

            values = flatten(attempt.cell.config)
            self._log_batch(run_id, params=[Param(name, show(value)) for name, value in values.items()])
            self.client.log_dict(run_id, _nested(values), "config.yaml")
            if run.info.status != "RUNNING" and "outcome" not in run.data.tags and attempt.is_newest:
                self.client.update_run(run_id, status="RUNNING")
            if "error" in run.data.tags and attempt.is_newest:
                self.client.delete_tag(run_id, "error")
            attempt.put_mark(mark := replace(mark, run_id=run_id))
        self._opened.add((attempt.folder, run_id))
        return mark

    def _get(self, run_id: str) -> Run | None:
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _find_run(self, experiment_id: str, cell: Cell, shared: bool) -> Run | None:
        """The run of this cell; a copy of another run is taken for it only if `shared`.

        A store that was too slow to answer may have made two. The one that holds something counts, then the older one.
        """
        condition = (
            f"tags.kind = 'cell' and tags.variant = '{cell.variant}' and tags.seed = '{cell.seed}' "
            f"and tags.config_digest = '{cell.config_digest}'"
        )
        runs = self.client.search_runs([experiment_id], condition, order_by=["attributes.start_time ASC"])
        same = [run for run in runs if cell_key(run) == cell.key and (shared or "shared_run" not in run.data.tags)]
        return max(same, key=lambda run: ("outcome" in run.data.tags, bool(run.data.metrics)), default=None)

    def _create_run(self, experiment_id: str, attempt: Attempt) -> Run:
        cell = attempt.cell
        tags = {
            "kind": "cell",
            "mlflow.parentRunId": attempt.parent,
            "study": cell.study,
            "preset": cell.preset,
            "protocol": cell.protocol,
            "variant": cell.variant,
            "seed": str(cell.seed),
            "baseline": cell.baseline,
            "config_digest": cell.config_digest,
            **{f"factor.{name}": level for name, level in cell.factors.items()},
            **({"paper": cell.paper} if cell.paper else {}),
            **attempt.tags,
        }
        started = _milliseconds(attempt.started)
        run: Run = self.client.create_run(experiment_id, started, tags=tags, run_name=cell.name)
        return run

    def _log_batch(self, run_id: str, **content: Any) -> None:
        self.client.log_batch(run_id, **content, synchronous=True)  # whatever MLFLOW_ENABLE_ASYNC_LOGGING says

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _send_or_leave_out(self, run_id: str, send: Callable[[], None]) -> None:
        from mlflow.exceptions import MlflowException

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
        if name == CONFIG:  # the store has the values alone, nested: the file names paths of this machine
            return
        if name == PROTOCOL:
            return self._set_tags(run_id, _protocol_tags(attempt.protocol or {}))
        folder = str(Path(name).parent)
        self.client.log_artifact(run_id, str(attempt.folder / name), folder if folder != "." else None)
        if name.startswith("samples/"):
            self._set_tags(run_id, {"tile_px": str(attempt.cell.config.data.resolution)})

    def _send_end(self, run_id: str, attempt: Attempt) -> None:
        records, _ = attempt.read()
        ended = _milliseconds(records[-1].time if records else attempt.started)
        if (outcome := attempt.outcome) is not None:
            # In one call: half a copy has no outcome.
            about = _protocol_tags(attempt.protocol) if attempt.protocol else {}  # not told by a run that went on
            self._set_tags(run_id, {"last_step": str(records[-1].step), **about, **attempt.copied, "outcome": outcome})
            self.client.set_terminated(run_id, "FINISHED", ended)
        elif (failure := attempt.failure) is not None:
            self.client.log_text(run_id, failure.traceback, "traceback.txt")
            self._set_tags(run_id, {"error": failure.reason.splitlines()[0]})
            self.client.set_terminated(run_id, "FAILED", ended)
        else:
            self.client.set_terminated(run_id, "KILLED", ended)

    def delete_runs(self, experiment_id: str, cell: Cell) -> None:
        """Puts the runs of this cell in MLflow's trash. Raises StoreAway."""

        def delete() -> None:
            while run := self._find_run(experiment_id, cell, shared=True):
                self.client.delete_run(run.info.run_id)

        self._patiently(delete)
        self._last.get(experiment_id, {}).pop(cell.key, None)

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
                if not self.is_away:
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


def storable(names: Sequence[str]) -> list[str]:
    """`names` as keys of MLflow take them, each still different: one refused key would lose all scores of its step."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.\- :]", "_", name)[:200]
        while plain in found:
            plain += "_"
        found.append(plain)
    return found


def _stored_names(protocol: Mapping[str, Any] | None) -> dict[str, str]:
    """{metric: its key in the store}, where these differ: names of classes are folders of the user's."""
    classes = protocol["classes"] if protocol is not None else []
    names = zip(classes, storable(classes), strict=True)
    return {f"fid_class/{name}": f"fid_class/{stored}" for name, stored in names}


def _protocol_tags(protocol: Mapping[str, Any]) -> dict[str, str]:
    """So many names of classes that no tag holds them are left out, and with them the groups."""
    tags = {name: protocol[name] for name in ("data_fingerprint", "metric_fingerprint")}
    classes = json.dumps(storable(protocol["classes"]))
    if len(classes) <= _MAX_TAG:
        tags |= {"classes": classes, "groups": json.dumps(protocol["groups"])}
    return tags


def _batches(records: Sequence[Record], stored: Mapping[str, str]) -> Iterator[list[Metric]]:
    """Metrics of as many records as one call may bring. Only finite values are stored."""
    from mlflow.entities import Metric

    batch: list[Metric] = []
    for record in records:
        milliseconds = _milliseconds(record.time)
        points = [
            Metric(stored.get(key, key), value, milliseconds, record.step)
            for key, value in record.metrics.items()
            if math.isfinite(value)
        ]
        if batch and len(batch) + len(points) > _MAX_BATCH:
            yield batch
            batch = []
        batch += points
    if batch:
        yield batch


def _fingerprints(run: Run) -> tuple[str, str]:
    return run.data.tags["data_fingerprint"], run.data.tags["metric_fingerprint"]


def _source(run: Run, points: Sequence[Metric]) -> Source:
    def place(point: Metric) -> tuple[int, int]:
        return point.timestamp, point.step

    tags = run.data.tags
    records = [
        Record(milliseconds / 1000, step, {point.key: point.value for point in same})
        for (milliseconds, step), same in groupby(sorted(points, key=place), key=place)
    ]
    records[-1] = replace(records[-1], status=tags["outcome"])
    about = {name: tags[name] for name in _ABOUT if name in tags}
    return Source(tags["study"], records, {**about, "shared_run": str(run.info.run_id), "shared_study": tags["study"]})


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


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
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # what fails is sent again later; repeating a creation makes two runs
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what it logs, with a traceback, it raises
    return MlflowClient(tracking_uri=uri)
