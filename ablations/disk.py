"""Detects full-disk errors and creates SQLite files atomically."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sagan.failure import FULL_DISK

_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}  # the second: no room for what readers of it share


def is_full_disk(error: BaseException) -> bool:
    """Whether `error` comes from a disk, or a quota, that has no room left for a file or a SQLite database."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL_DISK:
            return True
        if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", None) in _FULL:
            return True
        cause = cause.__cause__
    return False


@contextlib.contextmanager
def new_database(path: Path) -> Iterator[Path]:
    """A temporary path for a new SQLite file, which is moved to `path` once all its tables are there.

    Neither MLflow nor Optuna can use a file with only some of them, as a full disk or a killed process leaves it.
    """
    draft, copy = (path.with_name(f"{path.name}.{name}") for name in ("draft", "copy"))
    for rest in ("", "-journal"):  # of an attempt that ended early
        draft.with_name(f"{draft.name}{rest}").unlink(missing_ok=True)
    yield draft
    # Not the draft itself, which may still be open: to close a file drops all locks that this process has on it.
    shutil.copyfile(draft, copy)
    os.replace(copy, path)
    draft.unlink()
