"""The only reader of the MLflow store.

A database is read by SQL over a read-only connection: MLflow's own client may migrate an older database and creates
one where there is none. A server is read through the client.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlparse

import pandas as pd
from sqlalchemy import Engine, Executable, column, create_engine, inspect, select, table
from sqlalchemy.exc import SQLAlchemyError

DEFAULT_URI = "sqlite:///mlflow.db"
CHECK = "check --tracking-uri, or the variable MLFLOW_TRACKING_URI where the option is not given"
# Controls and halves of surrogate pairs, which no format can show; line ends and tabs are left.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# MLflow's databases cannot hold an infinity and store 1.797e308 in its place.
LARGEST = 1e300


@dataclass(frozen=True)
class Run:
    """One MLflow run, as stored. `start` and `end` are milliseconds since 1970; `end` is None while it runs."""

    id: str
    status: str
    start: int
    end: int | None
    artifact_uri: str
    experiment: str
    tags: dict[str, str]
    params: dict[str, str]


class Store:
    """Runs, metric histories and artifacts behind one tracking URI: `uri`, else MLFLOW_TRACKING_URI, else DEFAULT_URI.

    Anybody may have written them: all texts are made printable here, and escaped by what writes them to a format.
    Raises ValueError, saying what to do, for a store that is absent, does not answer or is no MLflow store.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
        self.shown_uri = shown_uri(self.uri)  # for pages and messages
        self._downloads: tempfile.TemporaryDirectory[str] | None = None
        self._source: _Database | _Server
        if re.match("https?:", self.uri):
            self._source = _Server(self.uri)
        elif re.match(r"(sqlite|postgresql|mysql|mssql)(\+.*)?:", self.uri):
            self._source = _Database(self.uri)
        else:
            raise ValueError(
                f"--tracking-uri (or MLFLOW_TRACKING_URI): must be a database or a server such as {DEFAULT_URI} or "
                f"http://host:5000, got {self.uri!r}"
            )

    def runs(self) -> list[Run]:
        """Every run that is not deleted and carries the tag `kind`, oldest first."""
        found = (Run(**_printable_all(vars(run))) for run in self._source.runs())
        return sorted(found, key=lambda run: (run.start, run.id))

    def histories(self, runs: list[Run]) -> pd.DataFrame:
        """Columns run_id, key, step, value; one row per point, ordered by step.

        A step that was replayed after a resume is stored twice: the newest entry counts. What overflowed is NaN.
        """
        points = self._source.points(runs)
        points["key"] = points["key"].map({key: printable(key) for key in points["key"].unique()})
        points["value"] = points["value"].where(points["value"].abs() < LARGEST)
        points = points.sort_values(["step", "timestamp"], kind="stable")
        points = points.drop_duplicates(["run_id", "key", "step"], keep="last")
        return points.drop(columns="timestamp").reset_index(drop=True)

    def artifacts(self, run: Run, folder: str) -> list[Path]:
        """The files under one artifact folder of a run, on this machine, by name; [] where there are none."""
        root = self._local(run, folder)
        return sorted(path for path in root.rglob("*") if path.is_file()) if root is not None else []

    def document(self, launch: Run, name: str) -> dict[str, Any] | None:
        """plan.json or search.json of a launch, or of the row of a baseline; None for a missing or truncated one."""
        path = self._local(launch, name)
        try:
            found = json.loads(path.read_bytes()) if path is not None and path.is_file() else None
        except ValueError:
            return None
        return _printable_all(found) if isinstance(found, dict) else None

    def _local(self, run: Run, name: str) -> Path | None:
        parsed = urlparse(run.artifact_uri)
        if parsed.scheme not in ("", "file"):
            return self._download(run, name)
        root = Path(unquote(parsed.path) if parsed.scheme else run.artifact_uri)
        if self.uri.startswith("sqlite:"):
            # Locations are stored as absolute paths; a folder that was moved or copied has them beside the file.
            beside = _sqlite_path(self.uri).parent / "mlruns" / Path(*root.parts[-3:])
            root = beside if beside.exists() or not root.exists() else root
        return root / name

    def _download(self, run: Run, name: str) -> Path | None:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        self._downloads = self._downloads or tempfile.TemporaryDirectory(prefix="reports-")
        target = tempfile.mkdtemp(dir=self._downloads.name)
        try:
            uri = f"{run.artifact_uri}/{name}"
            return Path(download_artifacts(artifact_uri=uri, dst_path=target, tracking_uri=self.uri))
        except (MlflowException, OSError):
            return None


def printable(text: str) -> str:
    return _UNPRINTABLE.sub("?", text)


def _printable_all(value: Any) -> Any:
    """The same lists and mappings with all of their texts printable."""
    if isinstance(value, dict):
        return {_printable_all(key): _printable_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable_all(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def shown_uri(uri: str) -> str:
    """The URI without its password."""
    return re.sub(r"(//[^:/@\s]*):\S*@", r"\1:***@", uri)


_POINT = {"run_id": str, "key": str, "step": int, "timestamp": int, "value": float}


class _Database:
    def __init__(self, uri: str) -> None:
        self._uri = uri
        try:
            self._engine = _sqlite_engine(_sqlite_path(uri)) if uri.startswith("sqlite:") else create_engine(uri)
            tables = set(inspect(self._engine).get_table_names())
        except (SQLAlchemyError, ModuleNotFoundError) as error:
            raise ValueError(f"the store {shown_uri(uri)} does not open ({_first_line(error)}): {CHECK}") from None
        if not {"experiments", "runs", "tags", "params", "metrics"} <= tables:
            raise ValueError(f"{shown_uri(uri)} is no MLflow store: it has no tables of runs; {CHECK}")

    def runs(self) -> list[Run]:
        names = dict(map(tuple, self._rows("experiments", "experiment_id", "name")))
        tags, params = self._mappings("tags"), self._mappings("params")
        columns = ("run_uuid", "status", "start_time", "end_time", "artifact_uri", "experiment_id")
        return [
            Run(id, status, start, end, uri, names[experiment], tags[id], params.get(id, {}))
            for id, status, start, end, uri, experiment, stage in self._rows("runs", *columns, "lifecycle_stage")
            if stage == "active" and "kind" in tags.get(id, {})
        ]

    def points(self, runs: list[Run]) -> pd.DataFrame:
        metrics = table("metrics", *map(column, ("run_uuid", "key", "step", "timestamp", "value", "is_nan")))
        rows: list[Any] = []
        for first in range(0, len(runs), 500):  # a database limits how many values one query may name
            ids = [run.id for run in runs[first : first + 500]]
            found = self._all(select(*metrics.columns).where(metrics.c.run_uuid.in_(ids)))
            rows += map(tuple, found)  # pandas takes ten times as long over SQLAlchemy's own rows
        frame = pd.DataFrame(rows, columns=[*_POINT, "is_nan"]).astype(_POINT)
        frame["value"] = frame["value"].where(frame["is_nan"].astype(int) == 0)  # a NaN is stored as 0 with a mark
        return frame.drop(columns="is_nan")

    def _mappings(self, name: str) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for run_id, key, value in self._rows(name, "run_uuid", "key", "value"):
            found.setdefault(run_id, {})[key] = value
        return found

    def _rows(self, name: str, *columns: str) -> list[Any]:
        return self._all(select(*map(column, columns)).select_from(table(name)))

    def _all(self, query: Executable) -> list[Any]:
        try:
            with self._engine.connect() as connection:
                return list(connection.execute(query).all())
        except SQLAlchemyError as error:
            raise ValueError(
                f"{shown_uri(self._uri)} cannot be read ({_first_line(error)}): where another version of MLflow has "
                "made it, back it up and run `mlflow db upgrade` with its URI"
            ) from None


def _sqlite_path(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").split("?", 1)[0])


def _sqlite_engine(path: Path) -> Engine:
    if not path.is_file():
        raise ValueError(
            f"no MLflow store at {path}: start a study here with `python -m ablations.run STUDY.yaml`, "
            "or name another store with --tracking-uri"
        )
    copied: tempfile.TemporaryDirectory[str] | None = None

    def connect() -> sqlite3.Connection:
        read = Path(copied.name) / path.name if copied is not None else path.resolve()
        return sqlite3.connect(f"file:{quote(str(read))}?mode=ro", uri=True, timeout=20)

    try:
        with contextlib.closing(connect()) as connection:
            connection.execute("select 1 from sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        # MLflow's databases are in WAL mode here, in which SQLite writes a file beside the database also for a reader
        # (https://sqlite.org/wal.html#read_only_databases). Where nobody may write, nobody changes it: a copy is read.
        if error.sqlite_errorname.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
            copied = tempfile.TemporaryDirectory(prefix="reports-")
            for name in (path.name, f"{path.name}-wal"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(path.with_name(name), Path(copied.name) / name)
    return create_engine("sqlite://", creator=connect)


class _Server:
    def __init__(self, uri: str) -> None:
        # Unbounded, a server that is down holds the reader up for four minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self._client = MlflowClient(uri)
        try:
            self._experiments = {item.experiment_id: item.name for item in self._client.search_experiments()}
        except MlflowException as error:
            raise ValueError(f"the store {shown_uri(uri)} does not answer ({_first_line(error)}): {CHECK}") from None
        self._keys: dict[str, list[str]] = {}

    def runs(self) -> list[Run]:
        found: list[Run] = []
        token = None
        while self._experiments:
            page = self._client.search_runs(list(self._experiments), max_results=1000, page_token=token)
            for run in page:
                info, data = run.info, run.data
                if "kind" in data.tags:
                    experiment = self._experiments[info.experiment_id]
                    found.append(Run(info.run_id, info.status, info.start_time, info.end_time, info.artifact_uri,
                                     experiment, data.tags, data.params))  # fmt: skip
                    self._keys[info.run_id] = list(data.metrics)
            token = page.token
            if not token:
                break
        return found

    def points(self, runs: list[Run]) -> pd.DataFrame:
        def read(request: tuple[str, str]) -> list[tuple[Any, ...]]:
            history = self._client.get_metric_history(*request)
            return [(*request, point.step, point.timestamp, point.value) for point in history]

        requests = [(run.id, key) for run in runs for key in self._keys[run.id]]
        with ThreadPoolExecutor(16) as pool:
            rows = [row for group in pool.map(read, requests) for row in group]
        return pd.DataFrame(rows, columns=list(_POINT)).astype(_POINT)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
