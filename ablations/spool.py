"""What there is to tell the tracking store about a cell, kept in the cell's folder: written first, sent later.

A spool is a file of JSON lines, only ever appended to, and a mark beside it of how far the store has it. An entry may
be sent more than once (its answer got lost, the process died before the mark), so saying it twice must mean the same
as once: points carry the time at which they were written, tags and artifacts overwrite.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

Entry = dict[str, Any]  # "kind", and what that kind needs: see ablations/outbox.py
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mark:
    """How many bytes of a spool the store has, and in which run; None before it has one."""

    run_id: str | None = None
    sent: int = 0


@dataclass
class Summary:
    """What a spool comes to: the last value of each tag and metric, and the latest time of a point (ms since 1970)."""

    cell: str = ""  # as JSON
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    time: int = 0


class Spool:
    """The spool at `path`, which need not exist. A last line that was torn by a crash is cut off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._lock = FileLock(path.with_suffix(".lock"))
        self.mark = self._read_mark()

    @classmethod
    def of(cls, directory: Path, key: str) -> Spool:
        """That of the cell `key`: cells of two protocols with one config share a directory."""
        return cls(directory / f"spool-{zlib.crc32(key.encode()):08x}.jsonl")

    @property
    def directory(self) -> Path:
        return self._path.parent

    def hold(self, seconds: float) -> bool:
        """Keeps other processes from sending it until `release`; False where one of them holds on for so long."""
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        self.mark = self._read_mark()  # the last holder may have come further
        return True

    def release(self) -> None:
        self._lock.release()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def append(self, kind: str, **values: Any) -> None:
        """Adds an entry, which outlives this process and, after `sync`, a crash of the machine; or raises OSError."""
        line = json.dumps({"kind": kind, **values}).encode() + b"\n"
        file = self._open()
        size = os.fstat(file).st_size
        try:
            if os.write(file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        except OSError:
            os.ftruncate(file, size)
            raise

    def sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file)

    def unsent(self) -> Iterator[tuple[Entry, int]]:
        """Entries that the store may not have yet, each with what `Mark.sent` is after it."""
        return self._read(self.mark.sent)

    @property
    def has_unsent(self) -> bool:
        return next(self.unsent(), None) is not None

    def put_mark(self, mark: Mark) -> None:
        """Lost, it costs sending again what was sent."""
        self.mark = mark
        draft = self._path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(asdict(mark)))
        os.replace(draft, self._path.with_suffix(".sent"))

    def clear(self) -> None:
        """Forgets all entries."""
        self.put_mark(Mark())
        os.ftruncate(self._open(), 0)

    def summary(self) -> Summary:
        found = Summary()
        at: dict[str, tuple[int, int]] = {}
        for entry, _ in self._read(0):
            if entry["kind"] == "start":
                found.cell = entry["cell"]
            elif entry["kind"] == "tags":
                found.tags.update(entry["tags"])
            elif entry["kind"] == "metrics":
                place = entry["step"], entry["time"]
                found.time = max(found.time, entry["time"])
                newest = {key: value for key, value in entry["values"].items() if place >= at.get(key, place)}
                found.metrics.update(newest)
                at.update(dict.fromkeys(newest, place))
        return found

    def _open(self) -> int:
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            content = self._path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                _log.warning("%s: its last line was torn and is left out", self._path)
                os.ftruncate(self._file, whole)
        return self._file

    def _read(self, start: int) -> Iterator[tuple[Entry, int]]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(start)
            end = start
            for line in file:
                end += len(line)
                if not line.endswith(b"\n"):
                    return
                try:
                    yield json.loads(line), end
                except ValueError:  # a disk that lost power
                    _log.error("%s: the line that ends at byte %d is damaged and is left out", self._path, end)

    def _read_mark(self) -> Mark:
        try:
            return Mark(**json.loads(self._path.with_suffix(".sent").read_text()))
        except (OSError, ValueError, TypeError):
            return Mark()


def spools(folder: Path) -> Iterator[Spool]:
    """Those of the cells of one study; `folder` is runs/STUDY."""
    return map(Spool, sorted(folder.glob("*/*/spool-*.jsonl")))


def held_unsent(folder: Path) -> Iterator[Spool]:
    """Spools with something left to send, each held while it is looked at; those that others hold are passed over."""
    for spool in spools(folder):
        if spool.has_unsent and spool.hold(0.0):
            try:
                if spool.has_unsent:
                    yield spool
            finally:
                spool.release()
