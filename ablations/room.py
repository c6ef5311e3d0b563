"""What tells a full disk from other faults: it is no cell's fault, and passes when there is room again."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

_ERRORS = {errno.ENOSPC, errno.EDQUOT}
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}  # the second: no room for what readers of it share


def is_full_disk(error: BaseException) -> bool:
    """Whether `error` comes from a disk, or a quota, that has no room left for a file or a SQLite database."""
    return any(
        (isinstance(cause, OSError) and cause.errno in _ERRORS)
        or (isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", None) in _FULL)
        for cause in _causes(error)
    )


def fullest(folders: Iterable[Path]) -> Path:
    """The one of these folders whose disk has the least room."""
    return min(folders, key=lambda folder: shutil.disk_usage(folder).free)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
