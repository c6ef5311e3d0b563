"""The Optuna storage that queues and searches are kept in, made safe for many processes.

Optuna changes the state of a trial by compare-and-set: a row lock on PostgreSQL. On SQLite this needs BEGIN
IMMEDIATE, which Optuna does not use and `open_storage` adds.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
import zlib
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import filelock
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import TrialModel
from optuna.storages._rdb.models import TrialUserAttributeModel as _Attribute
from optuna.trial import TrialState

from ablations.disk import is_full_disk, new_database

logging.getLogger("optuna").setLevel(logging.WARNING)

PATIENCE_SECONDS = 300.0  # for a database that is restarted, or moves to another host
_RETRY_SECONDS = 3.0
_DELETE = "delete it: results are in the tracking store, and only trials of searches would be run again"
# Raised where a database does not answer.
UNREACHABLE_ERRORS = (sqlalchemy.exc.OperationalError, StorageInternalError)
_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

# A server accepts about a hundred connections: a launcher keeps one, and opens more only while it needs them.
_POOL: dict[str, Any] = {"pool_pre_ping": True, "pool_size": 1, "max_overflow": 4}


@dataclass(frozen=True)
class TrialRecord:
    """A trial of Optuna as a queue sees it; `attrs` are its user attributes."""

    trial_id: int
    state: TrialState
    attrs: dict[str, Any]


def open_storage(url: sqlalchemy.URL) -> RDBStorage:
    """Makes the tables of a new database: one process at a time may call this (see `exclusive`)."""
    if url.get_backend_name() != "sqlite":
        return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=_POOL)
    assert url.database, "options name a file"
    if not (path := Path(url.database)).exists():
        with new_database(path) as draft:
            RDBStorage(f"sqlite:///{draft}").engine.dispose()
    storage = RDBStorage(url.render_as_string(), engine_kwargs={"connect_args": {"timeout": 60}})

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @sqlalchemy.event.listens_for(storage.engine, "begin")
    def _begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    storage.engine.dispose()  # connections made before the listeners stood
    return storage


def retry_while_unreachable(method: Callable[P, T]) -> Callable[P, T]:
    """Retry `method` for up to PATIENCE_SECONDS while the database is unreachable; raise full-disk errors at once.

    Use only for idempotent methods: a database that becomes unreachable may have done the operation, and its answer is
    lost.
    """

    @functools.wraps(method)
    def patient(*args: P.args, **kwargs: P.kwargs) -> T:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return method(*args, **kwargs)
            except UNREACHABLE_ERRORS as error:
                if is_full_disk(error) or time.monotonic() > deadline:
                    raise
                reason = str(error.__cause__ or error).splitlines()[0]
                _log.warning("The queue's database does not answer, trying again: %s", reason)
                time.sleep(_RETRY_SECONDS)

    return patient


@contextlib.contextmanager
def exclusive(url: sqlalchemy.URL | str, name: str) -> Iterator[None]:
    """A lock between processes: one per `name` on PostgreSQL, one per database file on SQLite. It is released when the
    process that holds it ends."""
    url = sqlalchemy.make_url(url)
    if url.get_backend_name() == "sqlite":
        with filelock.FileLock(f"{url.database}.lock"):
            yield
    else:
        with _lock_engine(url).begin() as connection:
            lock = sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)")
            connection.execute(lock, {"key": zlib.crc32(name.encode())})
            yield


@functools.cache
def _lock_engine(url: sqlalchemy.URL) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)


def trial_records(
    storage: RDBStorage, study_id: int, states: Container[TrialState] = tuple(TrialState)
) -> list[TrialRecord]:
    """The trials of a study that are in one of `states`, in the order in which they were made.

    One query of Optuna's tables: its own function makes seven, and an object of each row, which is too slow for
    thousands of cells.
    """
    rows = (
        sqlalchemy.select(TrialModel.trial_id, TrialModel.state, _Attribute.key, _Attribute.value_json)
        .join(_Attribute, TrialModel.trial_id == _Attribute.trial_id)
        .where(TrialModel.study_id == study_id)
        .where(TrialModel.state.in_([state for state in TrialState if state in states]))
        .order_by(TrialModel.trial_id)
    )
    found: dict[int, TrialRecord] = {}
    with storage.engine.connect() as connection:
        for trial_id, state, key, value in connection.execute(rows):
            found.setdefault(trial_id, TrialRecord(trial_id, state, {})).attrs[key] = json.loads(value)
    return list(found.values())


def waiting(storage: RDBStorage, study_id: int) -> dict[str, int]:
    """{attribute "cell": trial id} of a study's waiting trials. Every claim calls this while it holds the queue's lock,
    so it reads no other attribute, to be fast."""
    rows = (
        sqlalchemy.select(_Attribute.value_json, TrialModel.trial_id)
        .join(_Attribute, TrialModel.trial_id == _Attribute.trial_id)
        .where(TrialModel.study_id == study_id, TrialModel.state == TrialState.WAITING, _Attribute.key == "cell")
        .order_by(TrialModel.trial_id)
    )
    with storage.engine.connect() as connection:
        return {json.loads(cell): trial_id for cell, trial_id in connection.execute(rows)}


def probe(url: str) -> None:
    """Raises ValueError where a database that should be at `url` does not answer; makes no SQLite file."""
    parsed = sqlalchemy.make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
        return
    try:
        with sqlalchemy.create_engine(parsed, poolclass=sqlalchemy.NullPool).connect() as connection:
            tables = set(sqlalchemy.inspect(connection).get_table_names())
        if "alembic_version" in tables and "version_info" not in tables:  # each of the two programs would take it over
            raise ValueError(f"must be a database of its own, got {_shown(parsed)!r}, which is MLflow's; name another")
        if "version_info" in tables:
            RDBStorage(parsed.render_as_string(hide_password=False), skip_table_creation=True).engine.dispose()
    except ImportError as error:
        driver = f"{error}; pip install '.[postgres]' and write postgresql+psycopg://HOST/NAME"
        raise ValueError(
            f"needs a database driver that is not installed, got {parsed.drivername!r} ({driver})"
        ) from None
    except RuntimeError as error:
        raise ValueError(
            f"was made by another version of Optuna, got {_shown(parsed)!r} ({error}); name another, or {_DELETE}"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        reason = str(error).splitlines()[0][:300]
        way_out = _DELETE if "malformed" in reason else "start the database or correct it"
        raise ValueError(f"does not answer, got {_shown(parsed)!r} ({reason}); {way_out}") from None


def _shown(url: sqlalchemy.URL) -> str:
    return url.render_as_string(hide_password=True)
