"""The Optuna storage that queues and searches are kept in, made safe for many processes.

Optuna changes the state of a trial by compare-and-set: a row lock on PostgreSQL, and BEGIN IMMEDIATE, which it does not
ask for itself, on SQLite.
"""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import sqlalchemy
from optuna.storages import RDBStorage

logging.getLogger("optuna").setLevel(logging.WARNING)


def open_storage(url: sqlalchemy.URL) -> RDBStorage:
    if url.get_backend_name() != "sqlite":
        return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs={"pool_pre_ping": True})
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


@contextlib.contextmanager
def exclusive(url: sqlalchemy.URL, name: str) -> Iterator[None]:
    """One process at a time in all that is kept under `name`. The lock falls with the process that holds it."""
    if url.get_backend_name() == "sqlite":
        with filelock.FileLock(f"{url.database}.lock"):
            yield
    else:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        with engine.begin() as connection:
            lock = sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)")
            connection.execute(lock, {"key": zlib.crc32(name.encode())})
            yield


def probe(url: str) -> None:
    """Raises ValueError where a database that should be at `url` does not answer; makes no SQLite file."""
    parsed = sqlalchemy.make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
        return
    try:
        with sqlalchemy.create_engine(parsed, poolclass=sqlalchemy.NullPool).connect() as connection:
            sqlalchemy.inspect(connection).get_table_names()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        reason = str(error).splitlines()[0][:300]
        shown = parsed.render_as_string(hide_password=True)
        raise ValueError(f"does not answer, got {shown!r} ({reason}); start the database or correct it") from None
