"""The folder of a cell: one folder per attempt at it, `attempt-N`, the folder of a run (sagan/run_folder.py).

Beside the run's own files a launcher writes there `attempt.json`, which names the cell, `log.txt`, what the training
process printed, and `mirror.json`: how much of the journal MLflow has (`UploadState`). An attempt whose launcher lost
the claim, or that `--rerun` set aside, has a file `lost`; it writes to its own folder only, so it can damage no other.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ablations.plan import Cell
from sagan import journal
from sagan.checkpoint import (
    has_checkpoint,
    has_undamaged_checkpoint,
    put_checkpoint,
    read_checkpoint,
    remove_checkpoints,
    take_checkpoints,
    write_atomically,
)
from sagan.config import is_prefix_of
from sagan.failure import Failure, read_failure
from sagan.journal import Record
from sagan.run_folder import CONFIG, PROTOCOL, Run, config_yaml

_NOTE, _UPLOAD_STATE, _LOST, LOG = "attempt.json", "mirror.json", "lost", "log.txt"
RERUN = "rerun"  # in the folder of a cell that --rerun trains from its first step: it becomes no copy of another result
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UploadState:
    """How much of an attempt MLflow has: `offset` bytes of its journal, in run `run_id`; with `has_end` its outcome.
    `is_lost`: its launcher lost the claim, or it was set aside; it is never uploaded."""

    run_id: str | None = None
    offset: int = 0
    has_end: bool = False
    is_lost: bool = False


@dataclass(frozen=True)
class ShorterRun:
    """A shorter run with the same first steps. `folders` are those of its attempts, oldest first.

    The longer one's folder gets its records up to that checkpoint and its pictures, so that the store has the complete
    history. The shorter one stays as it was.
    """

    step: int
    checkpoint: bytes
    records: list[Record]
    folders: list[Path]
    protocol: dict[str, Any]

    @property
    def origin(self) -> str:
        """The tag `resumed_from`: "attention_position/none/seed20-1a2b3c4d5e6f7081/attempt-1 at step 800"."""
        return f"{'/'.join(self.folders[-1].parts[-4:])} at step {self.step}"

    def copy(self, folder: Path, started: float) -> None:
        """All but the checkpoint, as if it had begun at `started`, in seconds since 1970."""
        late = started - self.records[0].time
        for name in {name for record in self.records for name in record.files if name != PROTOCOL}:
            source = next((each / name for each in reversed(self.folders) if (each / name).exists()), None)
            if source is not None and not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / name)
        (folder / PROTOCOL).write_text(json.dumps({**self.protocol, "step": self.step}))
        # Without PROTOCOL: the longer run uploads its own at its end, because eval.endpoint may differ.
        records = [
            replace(one, time=one.time + late, files=tuple(name for name in one.files if name != PROTOCOL))
            for one in self.records
        ]
        journal.write(folder / journal.NAME, records)


@dataclass(frozen=True)
class Attempt:
    """One attempt to train a cell, in a folder of its own.

    `tags` are those that its run in the tracking store has from the start; `copied` those that it ends with where
    its journal is a copy of another study's run: "shared_run", "shared_study" and others.
    `ends`: size in bytes of each earlier attempt's journal, by folder, when this attempt started. Later lines come from
    a launcher that lost its claim and are ignored.
    """

    folder: Path
    cell: Cell
    tags: dict[str, str]
    started: float  # seconds since 1970, later than all records of earlier attempts
    ends: dict[str, int] = field(default_factory=dict)
    copied: dict[str, str] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return _number(self.folder)

    @property
    def is_newest(self) -> bool:
        return _number(_folders(self.folder.parent)[-1]) == self.number

    @property
    def end(self) -> int | None:
        """The bytes of the journal that count: later lines came after the next attempt began. None for the newest."""
        later = [] if self.is_newest else attempts(self.folder.parent)
        return next((after.ends[self.folder.name] for after in later if self.folder.name in after.ends), None)

    @property
    def earlier(self) -> list[Attempt]:
        """The earlier attempts at this cell, oldest first."""
        return [one for one in attempts(self.folder.parent, self.cell.key) if one.number < self.number]

    @property
    def journal(self) -> Path:
        return self.folder / journal.NAME

    def read(self, offset: int = 0, end: int | None = None) -> tuple[list[Record], int]:
        """Lines of the journal between these bytes, and the offset after them, with times from `started` on, whatever
        the clock did meanwhile: of two points at one step the newer one counts.

        A damaged journal has no lines; the log says so.
        """
        try:
            records, after = journal.read(self.journal, offset, end)
            if not records:
                return [], after
            with self.journal.open("rb") as file:
                first = journal.read(self.journal, 0, len(file.readline()))[0][0]
        except ValueError as error:
            _log.error("%s", error)
            return [], self.journal.stat().st_size
        late = max(0.0, self.started - first.time)
        return [replace(record, time=record.time + late) for record in records], after

    @property
    def outcome(self) -> str | None:
        """The outcome of the run; None where it has not come to its end."""
        records = journal.current(self.read(0, self.end)[0])
        return records[-1].status if records else None

    @property
    def failure(self) -> Failure | None:
        return read_failure(self.folder)

    @property
    def protocol(self) -> dict[str, Any] | None:
        """protocol.json; None before the data set and the networks are open."""
        try:
            found = json.loads((self.folder / PROTOCOL).read_text())
            return found if isinstance(found, dict) else None
        except (FileNotFoundError, ValueError):
            return None

    @property
    def upload_state(self) -> UploadState:
        try:
            found = UploadState(**json.loads((self.folder / _UPLOAD_STATE).read_text()))
        except (OSError, ValueError, TypeError):  # then all is uploaded again, which is safe
            found = UploadState()
        return replace(found, is_lost=found.is_lost or (self.folder / _LOST).exists())

    def write_upload_state(self, state: UploadState) -> None:
        write_atomically(self.folder / _UPLOAD_STATE, json.dumps(asdict(state)).encode())

    def reset_upload(self) -> None:
        """All of it is uploaded again, to the run that its cell has then."""
        self.write_upload_state(UploadState())

    def disable_upload(self) -> None:
        (self.folder / _LOST).touch()  # not in that file, which another thread may be about to write

    def set_aside(self) -> None:
        """Its result no longer counts, and nothing is resumed from it."""
        self.disable_upload()
        remove_checkpoints(self.folder)

    @property
    def has_unsent(self) -> bool:
        state = self.upload_state
        if state.is_lost:
            return False
        size = self.journal.stat().st_size if self.journal.exists() else 0
        if size > state.offset and self.read(state.offset, self.end)[0]:
            return True
        return not state.has_end and self.is_newest and (self.failure is not None or self.outcome is not None)

    def become_copy(self, records: list[Record], tags: Mapping[str, str]) -> Attempt:
        """The same attempt with a copy of another run's journal."""
        journal.write(self.journal, records)
        copy = replace(self, copied=dict(tags), started=records[0].time)
        copy.write()
        copy.reset_upload()
        return copy

    def write(self) -> None:
        values = {name: value for name, value in vars(self).items() if name != "folder"}
        values["cell"] = self.cell.to_json()
        write_atomically(self.folder / _NOTE, json.dumps(values).encode())


def begin_attempt(
    runs: Path,
    cell: Cell,
    tags: Mapping[str, str],
    machine: dict[str, Any],
    find: Callable[[], ShorterRun | None] = lambda: None,
) -> Attempt:
    """A new attempt at `cell`, which goes on from the newest checkpoint of an earlier one that is not damaged, and
    where none has one, from the shorter run that `find` returns.

    `machine` are the options of sagan/run_folder.py.
    """
    directory = cell.directory(runs)
    directory.mkdir(parents=True, exist_ok=True)
    before = _folders(directory)
    for number in itertools.count(1 + max(map(_number, before), default=0)):
        folder = directory / f"attempt-{number}"
        with contextlib.suppress(FileExistsError):  # of a launcher that has lost its claim to the cell
            folder.mkdir()
            break
    # Checkpoints are moved, so that only one attempt of a cell has them; one that still runs does not need them. Where
    # all are damaged, the log of the training process says so.
    having = [earlier for earlier in reversed(before) if has_checkpoint(earlier)]
    if having:
        take_checkpoints(next(filter(has_undamaged_checkpoint, having), having[0]), folder)
    shorter = None if having else find()
    tags = {**tags, **({"resumed_from": shorter.origin} if shorter is not None else {})}
    (folder / CONFIG).write_bytes(config_yaml(Run(cell.config, cell.seed, machine)))
    latest, ends = 0.0, {}
    for earlier in attempts(directory):
        records, ends[earlier.folder.name] = earlier.read()
        latest = max([latest, *(record.time for record in records)])
    started = max(time.time(), latest + 1e-3)
    if shorter is not None:
        started -= shorter.records[-1].time - shorter.records[0].time
        shorter.copy(folder, started)
    attempt = Attempt(folder, cell, dict(tags), started, ends)
    attempt.write()
    if shorter is not None:  # last: an attempt that has a checkpoint has the records before it, too
        put_checkpoint(folder, shorter.checkpoint)
    return attempt


def find_shorter_run(runs: Path, cell: Cell, images: str | None) -> ShorterRun | None:
    """The longest run that differs from `cell` only in having fewer steps and has a checkpoint; None where
    there is none. `images` is the fingerprint of those that `cell` is trained on, where it is known."""
    found: list[ShorterRun] = []
    for directory in cell.directory(runs).parent.glob(f"seed{cell.seed}-*"):
        tried = [each for each in attempts(directory) if is_prefix_of(each.cell.config, cell.config)]
        tried = [each for each in tried if not each.upload_state.is_lost]
        checkpoint = None
        while tried and (checkpoint := read_checkpoint(tried[-1].folder)) is None:
            tried.pop()
        if checkpoint is None:
            continue
        content, state = checkpoint
        # Drop journal lines after the checkpoint: the resumed run writes them again, possibly with other values.
        records = journal.current(record for each in tried for record in each.read(0, each.end)[0])
        records = [one for one in records if one.step <= state.get("since", state["step"]) and one.status is None]
        protocol, is_complete = tried[-1].protocol, bool(records) and records[0].step == 0
        if protocol is not None and is_complete and images in (None, state.get("images", images)):
            found.append(ShorterRun(state["step"], content, records, [each.folder for each in tried], protocol))
    return max(found, key=lambda shorter: shorter.step, default=None)


def attempts(directory: Path, key: str | None = None) -> list[Attempt]:
    """The attempts at the cell `key` in the folder of a cell, oldest first: cells of two protocols with one config
    share a folder."""
    found = []
    for folder in _folders(directory):
        try:
            values = json.loads((folder / _NOTE).read_text())
        except (FileNotFoundError, ValueError):  # the launcher that made it was killed, or is making it
            continue
        values.pop("parent", None)  # the first version named the run of a launch
        attempt = Attempt(folder, **{**values, "cell": Cell.from_json(values["cell"])})
        if key is None or attempt.cell.key == key:
            found.append(attempt)
    return found


def all_attempts(study_folder: Path) -> Iterator[Attempt]:
    """All attempts of a study; the folder is runs/STUDY."""
    for directory in sorted({path.parent for path in study_folder.glob("*/*/attempt-*")}):
        yield from attempts(directory)


def _folders(directory: Path) -> list[Path]:
    found = (path for path in directory.glob("attempt-*") if path.name.rpartition("-")[2].isdecimal())
    return sorted(found, key=_number)


def _number(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
