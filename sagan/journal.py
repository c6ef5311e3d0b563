"""journal.jsonl: the record of a run, one JSON object per line, to which a run only appends (format: sagan/README.md).

A run that is resumed from a checkpoint may write the same steps again: a line supersedes all lines before it of the
same step or a later one. `read` returns all lines; `current` applies the rule.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = "journal.jsonl"
_LEAST = 1e-3  # seconds between two lines: MLflow keeps milliseconds, and the order must survive there


@dataclass(frozen=True)
class Record:
    """One line. `status` is None, or the run's outcome: "finished", "collapsed" or "diverged"."""

    time: float  # seconds since 1970, greater than in any line before
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    status: str | None = None


class Journal:
    """The journal at `path`, open for appending by one process at a time; the file is created if there is none.

    Raises ValueError where another process has it open, and where a line of it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it when this process ends
            records, self._end = read(path)
        except (OSError, ValueError) as error:
            os.close(self._file)
            if not isinstance(error, BlockingIOError):
                raise
            raise ValueError(f"{path.parent}: another process trains in this folder; wait for it, or end it") from None
        self._time = max((record.time for record in records), default=0.0)

    def append(
        self, step: int, metrics: Mapping[str, float], files: Sequence[str] = (), status: str | None = None
    ) -> Record:
        """Write one line and flush it to the disk; removes a truncated last line first.

        An OSError, such as that of a full disk, leaves the file as it was.
        """
        # Later than every earlier line, even if the clock was set back.
        self._time = max(time.time(), self._time + _LEAST)
        record = Record(self._time, step, dict(metrics), tuple(files), status)
        os.ftruncate(self._file, self._end)
        line = _line(record)
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            os.fsync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)
        return record

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._file)


def read(path: Path, offset: int = 0, end: int | None = None) -> tuple[list[Record], int]:
    """The records from byte `offset` on (at most to byte `end`), and the offset for the next call. A file
    that does not exist has no records.

    An incomplete last line is neither returned nor counted: its process died while writing it, or is still writing.
    Raises ValueError, with file and line number, for any other damaged line.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            lines = file.read(-1 if end is None else max(0, end - offset)).splitlines(keepends=True)
    except FileNotFoundError:
        return [], offset
    records = []
    for index, line in enumerate(lines):
        try:
            records.append(_record(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if index == len(lines) - 1:
                break
            number = path.read_bytes()[:offset].count(b"\n") + 1
            raise ValueError(
                f"{path}:{number}: must be a line of a journal (JSON with time, step, metrics, files and status), but "
                f"is damaged ({error}); restore the file, or start in another folder"
            ) from None
        offset += len(line)
    return records, offset


def current(records: Iterable[Record]) -> list[Record]:
    """`records` in the order of the file, without those that a later one supersedes: steps then increase."""
    found: list[Record] = []
    for record in records:
        while found and found[-1].step >= record.step:
            found.pop()
        found.append(record)
    return found


def write(path: Path, records: Iterable[Record]) -> None:
    """A new journal of these records, in place of what was there."""
    path.write_bytes(b"".join(map(_line, records)))


def to_json(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """`metrics` with texts instead of NaN and infinities, which JSON does not have; float() reads both."""
    names = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    return {name: value if math.isfinite(value) else names[str(value)] for name, value in metrics.items()}


def _line(record: Record) -> bytes:
    content = {**vars(record), "metrics": to_json(record.metrics)}
    return json.dumps(content, allow_nan=False).encode() + b"\n"


def _record(line: bytes) -> Record:
    if not line.endswith(b"\n"):
        raise ValueError("the line does not end")
    content: Any = json.loads(line)
    status = content["status"]
    if not (status is None or isinstance(status, str)):
        raise TypeError(f"status is {status!r}")
    return Record(
        time=float(content["time"]),
        step=int(content["step"]),
        metrics={str(name): float(value) for name, value in content["metrics"].items()},
        files=tuple(map(str, content["files"])),
        status=status,
    )
