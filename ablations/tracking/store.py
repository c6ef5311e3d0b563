"""What a launcher reads from MLflow and writes to it (sending.py).

An experiment is a study. It has one run per variant, the rows of the study's table (kind "variant"), and beneath each
row one run per seed, the cells (kind "cell"). The run of a cell is found by its tags, so a launcher that resumes the
cell adds to the same run. What an attempt records is in its journal first; `Store.send` uploads what the store lacks.
A launch that has begun continues while the store is unreachable.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from ablations.attempts import Attempt, all_attempts
from ablations.disk import is_full_disk, new_database
from ablations.plan import Cell, Study
from ablations.preflight import sqlite_path, without_password
from ablations.results import Result, measured_by, scores_of
from ablations.tracking.sending import VIEW, Sender, cell_key, find_run, write_table
from sagan.journal import Record, current

if TYPE_CHECKING:
    from ablations.table import VariantRow

SCHEMA = "2"  # of what is in an experiment; the first version had a run per launch and no such tag
_PATIENCE_SECONDS = 60.0  # for a store that stops answering
_ABOUT = ("last_step", "device", "git_commit", "tile_px")  # tags that say how and where a run was trained
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A finished run of another study with the same result: records of its metrics, and the tags of its copy."""

    records: list[Record]
    tags: dict[str, str]


class StoreUnreachable(Exception):
    """The store stopped answering, and the launch cannot continue without it."""


class Store:
    """An MLflow store that answers. Creates the tables of a new SQLite file; raises ValueError where it cannot.

    If MLflow becomes unreachable, optional uploads are skipped and `is_unreachable` is True. With `read_only`
    no tables are made and no paths are updated; a database without write permission is read from a temporary copy.
    """

    def __init__(self, uri: str, read_only: bool = False) -> None:
        self.uri, path = uri, sqlite_path(uri)
        self.is_unreachable = False
        self._reason = ""
        self._last: dict[str, dict[str, Result]] = {}  # by experiment
        self._scores: dict[tuple[str, str], dict[str, float]] = {}  # of finished runs, by id and metric
        self.texts: dict[tuple[str, str], str] = {}  # documents and tags of tables, by run or experiment and name
        self._opened: set[tuple[Path, str | None]] = set()  # attempts whose run is known to be there
        writes = path is not None and not read_only
        # Two launchers that make the tables of one new file at once would both fail.
        with FileLock(f"{path}.lock") if writes else contextlib.nullcontext():
            try:
                if path and read_only:
                    self.client = self._open_for_reading(path)
                else:
                    if path and not path.exists():
                        with new_database(path) as draft:
                            open_client(f"sqlite:///{draft}").search_experiments(max_results=1)
                    self.client = open_client(uri)
                    self.client.search_experiments(max_results=1)
            except Exception as error:  # whatever the client, its driver or the network raises
                reason = first_line(error)
                if "database schema" in reason:
                    way_out = "back it up and run `mlflow db upgrade` with its URI, or name another"
                    raise ValueError(
                        f"was made by another version of MLflow, got {without_password(uri)!r}; {way_out}"
                    ) from None
                way_out = "make room on its disk" if is_full_disk(error) else "start the server or correct it"
                raise ValueError(f"does not answer, got {without_password(uri)!r} ({reason}); {way_out}") from None
            if path and writes:
                with contextlib.closing(sqlite3.connect(path)) as connection, connection:
                    connection.execute("PRAGMA journal_mode=WAL")  # kept in the file: readers do not block writers
                    _update_artifact_paths(connection, path.resolve().parent / "mlruns")

    def _open_for_reading(self, path: Path) -> MlflowClient:
        """A client of a copy of the file where the file or its folder cannot be written: SQLite reads a database in WAL
        mode only where it can make files beside it. MLflow makes a folder for artifacts in the current one."""
        self._scratch = tempfile.TemporaryDirectory(prefix="ablations-")  # gone with this object
        if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
            for end in ("", "-wal"):
                if (source := path.with_name(f"{path.name}{end}")).exists():
                    shutil.copyfile(source, Path(self._scratch.name, source.name))
            path = Path(self._scratch.name, path.name)
        with contextlib.chdir(self._scratch.name):
            client = open_client(f"sqlite:///{path}")
            client.search_experiments(max_results=1)
        return client

    def link(self, experiment_id: str) -> str:
        """The URL of the study's table, with a view: a new browser opens an experiment in a mode for traces, without a
        table, and shows a table without metrics unless the URL names a view."""
        server = self.uri.rstrip("/") if self.uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{without_password(server)}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}"

    def fetch(self, run_id: str, name: str, folder: Path) -> Path:
        """The path of an artifact of a run, or of its copy in `folder`. After a folder was moved or copied the store
        names the old place until the next launch, so the files beside a SQLite file come first."""
        path = sqlite_path(self.uri)
        if path is not None:
            place = Path(self.client.get_run(run_id).info.artifact_uri)
            beside = path.resolve().parent.joinpath("mlruns", *place.parts[-3:], name)
            if beside.is_file():
                return beside
        return Path(self.client.download_artifacts(run_id, name, str(folder)))

    def check_experiment(self, study: Study) -> None:
        """Raises ValueError where the study can have no experiment, or the store is one of the first version."""
        found = self.client.get_experiment_by_name(study.name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise ValueError(
                f"experiment {study.name!r} is deleted in this store; bring it back with `MLFLOW_TRACKING_URI="
                f"{without_password(self.uri)} mlflow experiments restore --experiment-id {found.experiment_id}`, or "
                f"rename the study"
            )
        found_all = self.client.search_experiments()
        older = [str(one.experiment_id) for one in found_all if one.tags.get("schema") != SCHEMA]
        launches = "tags.kind = 'launch' and tags.protocol LIKE '%'"
        if older and self.client.search_runs(older, launches, max_results=1):
            raise ValueError(
                f"holds runs of the first version of this project, got {without_password(self.uri)!r}; name another "
                f"store (sqlite:///new.db), or move this one away. reports.build reads either"
            )

    def check_seeds(self, study: Study) -> None:
        """Raises ValueError where the study started with another plan of adaptive seeds."""
        experiment_id = self.find_experiment(study)
        if study.adaptive is None or experiment_id is None:
            return
        plan = study.plan_of_seeds()
        before = {**plan, **json.loads(self.client.get_experiment(experiment_id).tags.get(_seeds_tag(study), "{}"))}
        if changed := [name for name in plan if before[name] != plan[name]]:
            listed = ", ".join(f"{name} was {before[name]}, now {plan[name]}" for name in changed)
            raise ValueError(
                f"{study.path}: the plan of adaptive seeds changed after the study started ({listed}); "
                f"restore the old values or rename the study, because the error rate is valid for one plan only. "
                f"To stop a launch early use --most."
            )

    def register_seeds(self, experiment_id: str, study: Study) -> None:
        """Stores the plan of adaptive seeds in a tag of the experiment, which `check_seeds` reads."""
        plan = json.dumps({"protocol": study.protocol, **study.plan_of_seeds()})
        self._call_with_patience(lambda: self.client.set_experiment_tag(experiment_id, _seeds_tag(study), plan))

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
        """The id of the study's experiment, made now if there is none. Raises StoreUnreachable."""

        def open_() -> str:
            self.check_experiment(study)
            experiment_id = self.find_experiment(study)
            if experiment_id is None:
                # MLflow's own place for artifacts is the folder that a command happens to run in.
                path = sqlite_path(self.uri)
                location = str(path.resolve().parent / "mlruns" / study.name) if path else None
                try:
                    experiment_id = str(self.client.create_experiment(study.name, location, {"schema": SCHEMA}))
                except MlflowException:  # another launcher was first
                    experiment_id = self.find_experiment(study)
                    if experiment_id is None:
                        raise
            for key, value in {"schema": SCHEMA, "question": study.question, "paper": study.paper}.items():
                if value is not None:
                    self.client.set_experiment_tag(experiment_id, key, value)
            return experiment_id

        return self._call_with_patience(open_)

    def find_experiment(self, study: Study) -> str | None:
        found = self.client.get_experiment_by_name(study.name)
        return str(found.experiment_id) if found and found.lifecycle_stage == "active" else None

    def write_table(
        self,
        experiment_id: str,
        study: Study,
        rows: Sequence[VariantRow],
        description: str,
        search: Mapping[str, Any] | None = None,
        commit: str | None = None,
    ) -> bool:
        """See sending.write_table. False where the store is unreachable. Makes missing rows: under `exclusive`, because
        two launchers that made them at once would make each twice."""

        return self._succeeds(lambda: write_table(self, experiment_id, study, rows, description, search, commit))

    def recorded(
        self, experiment_id: str, folder: Path, shared: bool = True, metrics: Sequence[str] = ()
    ) -> dict[str, Result]:
        """{cell's key: result} of the cells whose outcome is in the store, or in a journal that is not uploaded.

        `folder` is runs/STUDY; `shared` counts copies of other runs; `metrics` are those whose scores are needed. While
        the store is unreachable, all journals count, beside its last answer.
        """

        def look_up() -> dict[str, Result]:
            results: dict[str, Result] = {}
            for run in self.runs(experiment_id, "tags.kind = 'cell'"):
                tags, key = run.data.tags, cell_key(run)
                if "outcome" in tags and ("shared_run" not in tags or (shared and key not in results)):
                    scores = {name: value for metric in metrics for name, value in self.score(run, metric).items()}
                    measured = measured_by(tags.get("data_fingerprint", ""), tags.get("metric_fingerprint", ""))
                    results[key] = Result(tags["outcome"], tags.get("shared_study"), scores, measured)
            return results

        self._last[experiment_id] = self._call_or_default(look_up, self._last.get(experiment_id, {}))
        kept = {}
        for attempt in all_attempts(folder):
            study = attempt.copied.get("shared_study")
            if (
                (shared or study is None)
                and (self.is_unreachable or attempt.has_unsent)
                and not attempt.upload_state.is_lost
            ):
                if (outcome := attempt.outcome) is not None:
                    kept[attempt.cell.key] = _result_of_journal(attempt, outcome, study)
        return {**kept, **self._last[experiment_id]}

    def score(self, run: Run, metric: str) -> dict[str, float]:
        """The score of a finished run by one metric; {} where it has none."""
        place = str(run.info.run_id), metric
        if run.data.tags["outcome"] != "finished" or metric not in run.data.metrics:
            return {}
        if place not in self._scores:
            points = sorted(self.client.get_metric_history(*place), key=lambda point: point.timestamp)
            newest = {point.step: point.value for point in points}
            endpoint, last = run.data.params.get("eval.endpoint", "1"), run.data.tags.get("last_step", "-1")
            self._scores[place] = scores_of({metric: newest}, int(last), int(endpoint))
        return self._scores[place]

    def find_outcome(self, experiment_id: str, cell: Cell, shared: bool) -> str | None:
        """The outcome of a cell; None where no host has recorded one, and while the store is unreachable."""
        run = self._call_or_default(lambda: find_run(self.client, experiment_id, cell, shared), None)
        return run.data.tags.get("outcome") if run is not None else None

    def find_shared(self, cell: Cell) -> list[tuple[str, str]]:
        """Fingerprints of data and metrics of the results that other studies have of this config and seed; none while
        the store is unreachable: training does not depend on it."""
        return self._call_or_default(lambda: [_fingerprints(run) for run in self._shareable(cell)], [])

    def find_source(self, cell: Cell, fingerprints: tuple[str, str]) -> Source | None:
        """The oldest run of another study with the same config, seed, data and metrics that has ended with an outcome;
        None also while the store is unreachable."""

        def find() -> Source | None:
            run = next((run for run in self._shareable(cell) if _fingerprints(run) == fingerprints), None)
            if run is None:
                return None
            found: dict[tuple[int, int], dict[str, float]] = {}
            for key in run.data.metrics:
                for point in self.client.get_metric_history(run.info.run_id, key):
                    found.setdefault((point.timestamp, point.step), {})[point.key] = point.value
            records = [Record(time_ / 1000, step, found[time_, step]) for time_, step in sorted(found)]
            tags = run.data.tags
            records[-1] = replace(records[-1], status=tags["outcome"])
            about = {name: tags[name] for name in _ABOUT if name in tags}
            return Source(records, {**about, "shared_run": str(run.info.run_id), "shared_study": tags["study"]})

        return self._call_or_default(find, None)

    def _shareable(self, cell: Cell) -> list[Run]:
        """Copies are left out: they have no pictures, and the run that they were copied from is listed itself."""
        condition = (
            f"tags.kind = 'cell' and tags.config_digest = '{cell.config_digest}' and tags.seed = '{cell.seed}' "
            f"and attributes.status = 'FINISHED'"
        )
        needed = {"study", "outcome", "last_step", "data_fingerprint", "metric_fingerprint"}
        found = [
            run
            for run in self.runs_of_all(condition)
            if needed <= (tags := run.data.tags).keys() and "shared_run" not in tags and tags["study"] != cell.study
        ]
        return sorted(found, key=lambda run: run.info.start_time)

    def send(self, experiment_id: str, attempt: Attempt, has_ended: bool) -> None:
        """See Sender.send."""
        Sender(self.client, self._opened).send(experiment_id, attempt, has_ended)

    def try_to_send(self, experiment_id: str, attempt: Attempt, has_ended: bool) -> bool:
        """`send`; False where it fails, whatever the error: training does not depend on MLflow."""
        try:
            return self._succeeds(lambda: self.send(experiment_id, attempt, has_ended))
        except Exception:
            _log.exception("tracking: %s is not sent", attempt.cell.name)
            return False

    def send_rest(self, experiment_id: str, folder: Path, living: Container[str], wait: bool = True) -> None:
        """Uploads what earlier launches left below `folder`, runs/STUDY, except of `living` cells (by key), which some
        launcher trains now. `wait`: for the store, a minute at most."""
        rest = [attempt for attempt in all_attempts(folder) if attempt.has_unsent and attempt.cell.key not in living]
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while rest:
            if self._succeeds(lambda: self.send(experiment_id, rest[0], True)):
                rest.pop(0)
            elif not wait or time.monotonic() > deadline:
                return
            else:
                time.sleep(1.0)

    def delete_runs(self, experiment_id: str, cell: Cell) -> None:
        """Puts the runs of this cell in MLflow's trash. Raises StoreUnreachable."""

        def delete() -> None:
            while run := find_run(self.client, experiment_id, cell, shared=True):
                self.client.delete_run(run.info.run_id)

        self._call_with_patience(delete)
        self._last.get(experiment_id, {}).pop(cell.key, None)

    def end_abandoned(self, experiment_id: str, living: Container[str]) -> None:
        """Ends the runs still marked RUNNING of cells that are not `living` (by key): their launcher died.

        A second, empty run of a cell is deleted: the store made it on a request that it answered too late.
        """

        def end() -> None:
            cells = list(self.runs(experiment_id, "tags.kind = 'cell'"))
            keys = [cell_key(run) for run in cells if run.data.metrics or "outcome" in run.data.tags]
            for run in cells:
                if run.info.status != "RUNNING" or cell_key(run) in living:
                    continue
                if not run.data.metrics and cell_key(run) in keys:
                    self.client.delete_run(run.info.run_id)
                else:
                    ended = "FINISHED" if "outcome" in run.data.tags else "KILLED"
                    self.client.set_terminated(run.info.run_id, ended)

        self._succeeds(end)

    def runs_of_all(self, condition: str) -> Iterator[Run]:
        """The runs of all studies that meet `condition`."""
        return self.runs([str(found.experiment_id) for found in self.client.search_experiments()], condition)

    def runs(self, experiments: str | list[str], condition: str) -> Iterator[Run]:
        """The runs of one or several experiments that meet `condition`."""
        experiment_ids = [experiments] if isinstance(experiments, str) else experiments
        token: str | None = None
        while token != "":
            page = self.client.search_runs(experiment_ids, condition, max_results=1000, page_token=token)
            yield from page
            token = page.token or ""

    def _call(self, call: Callable[[], T]) -> T:
        """What `call` returns, after a second call if the first fails. Raises StoreUnreachable."""
        for pause in (0.0,) if self.is_unreachable else (0.0, 1.0):
            time.sleep(pause)
            try:
                answer = call()
            except (MlflowException, OSError) as error:
                self._reason = first_line(error)
                if not self.is_unreachable:
                    _log.warning("tracking: %s", self._reason)
            else:
                self.is_unreachable = False
                return answer
        self.is_unreachable = True
        raise StoreUnreachable(f"the tracking store does not answer ({self._reason})")

    def _succeeds(self, call: Callable[[], object]) -> bool:
        """False where the store is unreachable."""
        try:
            self._call(call)
        except StoreUnreachable:
            return False
        return True

    def _call_or_default(self, call: Callable[[], T], default: T) -> T:
        """What `call` returns; `default` where the store is unreachable."""
        try:
            return self._call(call)
        except StoreUnreachable:
            return default

    def _call_with_patience(self, call: Callable[[], T]) -> T:
        """What `call` returns, retried for _PATIENCE_SECONDS. Raises StoreUnreachable."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return self._call(call)
            except StoreUnreachable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(1.0)


def first_line(error: Exception) -> str:
    """The reason of an error in a line, without the password of a URI in it."""
    return without_password((str(error).splitlines() or [type(error).__name__])[0])[:300]


def _update_artifact_paths(connection: sqlite3.Connection, artifacts: Path) -> None:
    """Updates the paths of artifacts in the database after its folder was moved or copied: MLflow stores absolute
    paths. `artifacts` is the folder beside the database; where it does not exist, an old path that exists is kept."""
    ours = "SELECT experiment_id FROM experiment_tags WHERE key = 'schema'"
    experiments = f"SELECT experiment_id, artifact_location FROM experiments WHERE experiment_id IN ({ours})"
    for experiment_id, old in connection.execute(experiments).fetchall():
        new = artifacts / Path(old).name
        if old == str(new) or "://" in old or (Path(old).exists() and not new.exists()):
            continue
        place = "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?"
        connection.execute(place, (str(new), experiment_id))
        runs = (
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
            "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?"
        )
        connection.execute(runs, (str(new), len(old) + 1, experiment_id, len(old) + 1, f"{old}/"))


def _result_of_journal(attempt: Attempt, outcome: str, shared_study: str | None) -> Result:
    """The result of a cell, read from the journals of its attempts, of which `attempt` is the last."""
    lines = [record for one in (*attempt.earlier, attempt) for record in one.read(0, one.end)[0]]
    points: dict[str, dict[int, float]] = {}
    for record in (records := current(lines)):
        for name, value in record.metrics.items():
            if math.isfinite(value):
                points.setdefault(name, {})[record.step] = value
    endpoint = attempt.cell.config.eval.endpoint
    scores = scores_of(points, records[-1].step, endpoint) if outcome == "finished" else {}
    about = attempt.protocol or {}
    measured = measured_by(about.get("data_fingerprint", ""), about.get("metric_fingerprint", ""))
    return Result(outcome, shared_study, scores, measured)


def _seeds_tag(study: Study) -> str:
    """The name of the tag that has the plan of one protocol: each protocol of a study is decided by itself."""
    return f"adaptive.{hashlib.sha256(study.protocol.encode()).hexdigest()[:8]}"


def _fingerprints(run: Run) -> tuple[str, str]:
    return run.data.tags["data_fingerprint"], run.data.tags["metric_fingerprint"]


def open_client(uri: str) -> MlflowClient:
    """A client with bounded waits: MLflow's own are four minutes a call."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    # Whatever the user's environment says, these decide what a call means.
    os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = "false"  # a call returns when its data are stored
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # what fails is sent again later; two creations are two runs
    os.environ["MLFLOW_TRUNCATE_LONG_VALUES"] = "true"  # a long value is cut, not refused
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what it logs, with a traceback, it raises
    return MlflowClient(tracking_uri=uri)
