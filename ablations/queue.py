"""The queue, kept in Optuna: cells claimed exactly once by any number of launchers, and released when a launcher dies.

A trial is one attempt at a cell, and the newest trial of a cell decides its state. Optuna moves a trial from WAITING
to RUNNING and from RUNNING to COMPLETE or FAIL by compare-and-set (see storage.py). What takes more than one step
(read, then add or claim) runs under `exclusive`. Optuna's own `ask` and heartbeats are not used here: `ask` invents a
trial when none waits, and its heartbeats miss a process that dies before the first of them.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import sqlalchemy
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from ablations.plan import Cell
from ablations.storage import TrialRecord, exclusive, open_storage, retry_while_unreachable, trial_records, waiting

HEARTBEAT_TIMEOUT_SECONDS = 120.0  # only for launchers whose process cannot be looked up from here
# If this process has not polled for longer than this many seconds, it restarts its heartbeat timers instead of
# declaring other launchers dead: it may have been stopped itself, or the database was unreachable.
_MAX_POLL_GAP_SECONDS = 60.0
_BATCH = 100  # cells that are put in the queue under one lock; others may claim between two batches
MAX_CRASHES = 3  # after this many crashes without a new checkpoint the cell is marked as failed
_FIRST_NAMESPACE = "pid:[4026531836]"  # Linux: of processes in no container

State = Literal["new", "waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class LauncherProcess:
    """The process of a launcher. `token` is when it started, which differs for a later process of the same pid."""

    host: str
    pid: int
    token: str

    @classmethod
    def here(cls) -> LauncherProcess:
        return cls(_host(), os.getpid(), _started(os.getpid()) or "")

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> LauncherProcess:
        """Read from a stored attribute. Those of older versions have no host; only their heartbeat timeout applies."""
        names = ("host", "pid", "token")
        return cls(*(stored[name] for name in names)) if stored.keys() >= set(names) else cls("", 0, "")

    def is_dead(self) -> bool:
        """True where that is certain: the process belonged to this host and is gone."""
        return self.host == _host() and _started(self.pid) not in (self.token, "")


@dataclass(frozen=True)
class Claim:
    """A cell that is the claimer's to train."""

    trial_id: int
    cell: Cell = field(compare=False)


@dataclass(frozen=True)
class History:
    """Number of consecutive process crashes of a cell since its last new checkpoint (at step `reached`).

    Copied from trial to trial. Crashes before that checkpoint do not count: a run of a week may well have three.
    """

    deaths: int = 0
    reached: int = 0

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> History:
        return cls(attrs.get("deaths", 0), attrs.get("reached", 0))  # absent in queues of earlier versions

    def with_crash(self, began: int) -> History:
        return History(1, began) if began > self.reached else History(self.deaths + 1, self.reached)


@dataclass(frozen=True)
class CellState:
    """A cell as the display shows it. `progress` is what its launcher last recorded: step, images_per_sec, fid."""

    cell: Cell
    state: State
    progress: dict[str, Any] = field(default_factory=dict)
    outcome: str | None = None
    error: str | None = None
    launcher: LauncherProcess | None = None


class ClaimLost(Exception):
    """Another launcher has taken the cell over, because this one sent no heartbeat for too long."""


class CellQueue:
    """The cells of one study in an Optuna storage; `cells` are those that this launch asks for, in that order.

    Every method retries while the database is unreachable. Repeating an operation is safe: a duplicate waiting trial is
    skipped, and a claim that nobody holds is released when its launcher exits.
    """

    def __init__(
        self, url: str, study: str, cells: Sequence[Cell], timeout_seconds: float = HEARTBEAT_TIMEOUT_SECONDS
    ) -> None:
        self._url = sqlalchemy.make_url(url)
        self._cells = {cell.key: cell for cell in cells}
        self._study = study
        self.timeout_seconds = timeout_seconds
        self._beats: dict[int, tuple[Any, float]] = {}
        self._polled_at = time.monotonic()
        self._open()

    @retry_while_unreachable
    def _open(self) -> None:
        with exclusive(self._url, "tables"):  # two processes that create them at once would both fail
            self._storage = open_storage(self._url)
            with contextlib.suppress(DuplicatedStudyError):
                self._storage.create_new_study([StudyDirection.MINIMIZE], self._study)
            self._study_id = self._storage.get_study_id_from_name(self._study)

    @retry_while_unreachable
    def enqueue(self, recorded: Container[str], retry_failed: bool = False, reopen_done: bool = True) -> int:
        """Queues every cell that has no result yet; returns how many.

        `recorded` holds the keys of the cells whose outcome is in the tracking store: such a cell is finished, whatever
        the queue says. With `reopen_done` also those that are done in the queue: the store has lost their outcome.
        """
        added = 0
        missing = list(self._missing(recorded, retry_failed, reopen_done))
        for start in range(0, len(missing), _BATCH):
            with self._exclusive():  # another launcher may have added some since the list was made
                still = self._missing(recorded, retry_failed, reopen_done)
                for key in filter(still.__contains__, missing[start : start + _BATCH]):
                    self._add(key, still[key])
                    added += 1
        return added

    @retry_while_unreachable
    def claim(self, launcher: LauncherProcess) -> Claim | None:
        """The first waiting cell, now this launcher's own; None where no cell waits."""
        with self._exclusive():
            trials = waiting(self._storage, self._study_id)
            key = next((key for key in self._cells if key in trials), None)
            if key is None:
                return None
            self._storage.set_trial_user_attr(trials[key], "worker", asdict(launcher))
            claimed = self._storage.set_trial_state_values(trials[key], TrialState.RUNNING)
            assert claimed, "another process changed the queue under our lock"
        return Claim(trials[key], self._cells[key])

    @retry_while_unreachable
    def beat(self, progress: Mapping[Claim, Mapping[str, Any]]) -> list[Claim]:
        """Records a heartbeat for all cells of this launcher; returns those that are no longer its own."""
        lost = []
        for claim, values in progress.items():
            try:
                beat = {**values, "beat": uuid.uuid4().hex}
                self._storage.set_trial_user_attr(claim.trial_id, "progress", beat)
            except UpdateFinishedTrialError:
                lost.append(claim)
        return lost

    @retry_while_unreachable
    def complete(self, claim: Claim, outcome: str) -> None:
        """Raises ClaimLost; then another launcher records the result."""
        with _own(claim):
            self._storage.set_trial_user_attr(claim.trial_id, "outcome", outcome)
            self._storage.set_trial_state_values(claim.trial_id, TrialState.COMPLETE)

    @retry_while_unreachable
    def fail(self, claim: Claim, error: str) -> None:
        with _own(claim):
            self._storage.set_trial_user_attr(claim.trial_id, "error", error)
            self._storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)

    @retry_while_unreachable
    def release(self, claim: Claim, has_crashed: bool = False) -> None:
        """Puts a cell back in the queue; whoever claims it next resumes it. A cell whose process `has_crashed`
        MAX_CRASHES times without a new checkpoint is marked as failed instead."""
        with self._exclusive(), _own(claim):
            trial = self._storage.get_trial(claim.trial_id)
            self._take_back(TrialRecord(claim.trial_id, trial.state, trial.user_attrs), has_crashed)

    @retry_while_unreachable
    def release_stale(self) -> list[Cell]:
        """Releases the cells of launchers that are dead, or without a heartbeat for `timeout_seconds`; returns them."""
        if time.monotonic() - self._polled_at > _MAX_POLL_GAP_SECONDS:
            self._beats.clear()
        self._polled_at = time.monotonic()
        suspects = [trial for trial in self._running() if trial.attrs["cell"] in self._cells and self._is_stale(trial)]
        if not suspects:
            return []
        reaped = []
        with self._exclusive():
            for trial in suspects:
                with contextlib.suppress(UpdateFinishedTrialError):  # it ended while we looked
                    reaped.append(self._take_back(trial, has_crashed=True))
        return reaped

    @retry_while_unreachable
    def states(self) -> list[CellState]:
        newest = self._newest()
        return [_state(cell, newest.get(key)) for key, cell in self._cells.items()]

    @retry_while_unreachable
    def living(self) -> dict[str, LauncherProcess]:
        """{key: launcher} of the cells of this study that are being trained, whichever launch asked for them."""
        launchers = {
            trial.attrs["cell"]: LauncherProcess.of(trial.attrs.get("worker", {})) for trial in self._running()
        }
        return {key: launcher for key, launcher in launchers.items() if not launcher.is_dead()}

    def close(self) -> None:
        self._storage.engine.dispose()

    def _take_back(self, trial: TrialRecord, has_crashed: bool) -> Cell:
        cell, history = self._cells[trial.attrs["cell"]], History.of(trial.attrs)
        if has_crashed:
            history = history.with_crash(trial.attrs.get("progress", {}).get("since", 0))
        if history.deaths >= MAX_CRASHES:
            crashes = (
                f"its process crashed {history.deaths} times after step {history.reached}, without a new checkpoint"
            )
            message = f"{crashes}; see log.txt in the folder of its last attempt"
            self._storage.set_trial_user_attr(trial.trial_id, "error", message)
        self._storage.set_trial_state_values(trial.trial_id, TrialState.FAIL)
        if history.deaths < MAX_CRASHES:
            self._add(cell.key, history)
        return cell

    def _is_stale(self, trial: TrialRecord) -> bool:
        if LauncherProcess.of(trial.attrs.get("worker", {})).is_dead():
            return True
        # Timed by the monotonic clock of this process: clocks of hosts differ, and wall clocks jump.
        beat, now = trial.attrs.get("progress", {}).get("beat"), time.monotonic()
        if self._beats.get(trial.trial_id, (None, 0.0))[0] != beat or trial.trial_id not in self._beats:
            self._beats[trial.trial_id] = (beat, now)
        return now - self._beats[trial.trial_id][1] > self.timeout_seconds

    def _missing(self, recorded: Container[str], retry_failed: bool, reopen_done: bool) -> dict[str, History]:
        """{key: history} of the cells that have neither a result nor a trial that can come to one."""
        newest = self._newest()
        missing = {}
        for key in self._cells:
            trial = newest.get(key)
            if key not in recorded and (trial is None or _is_open_again(trial, retry_failed, reopen_done)):
                missing[key] = History() if trial is None or "error" in trial.attrs else History.of(trial.attrs)
        return missing

    def _running(self) -> list[TrialRecord]:
        return self._trial_records({TrialState.RUNNING})

    def _newest(self) -> dict[str, TrialRecord]:
        return {trial.attrs["cell"]: trial for trial in self._trial_records() if trial.attrs["cell"] in self._cells}

    def _trial_records(self, states: Container[TrialState] = tuple(TrialState)) -> list[TrialRecord]:
        """Trials with a `cell` attribute. Trials without it can be listed but not claimed."""
        return [trial for trial in trial_records(self._storage, self._study_id, states) if "cell" in trial.attrs]

    def _add(self, key: str, history: History) -> None:
        waiting = create_trial(state=TrialState.WAITING, user_attrs={"cell": key, **asdict(history)})
        self._storage.create_new_trial(self._study_id, waiting)

    def _exclusive(self) -> AbstractContextManager[None]:
        return exclusive(self._url, self._study)


@contextlib.contextmanager
def _own(claim: Claim) -> Iterator[None]:
    try:
        yield
    except UpdateFinishedTrialError:
        raise ClaimLost(claim.cell.name) from None


def _is_open_again(trial: TrialRecord, retry_failed: bool, reopen_done: bool) -> bool:
    """Whether a cell without a result is queued again: its trial is complete but the record was lost, or a launcher was
    killed after it ended the trial and before it added the next one. Failed cells are, with `retry_failed`."""
    if trial.state == TrialState.FAIL:
        return retry_failed or "error" not in trial.attrs
    return reopen_done and trial.state == TrialState.COMPLETE


def _state(cell: Cell, trial: TrialRecord | None) -> CellState:
    if trial is None:
        return CellState(cell, "new")
    attrs = trial.attrs
    names: dict[TrialState, State] = {
        TrialState.WAITING: "waiting",
        TrialState.RUNNING: "running",
        TrialState.COMPLETE: "done",
        TrialState.FAIL: "failed" if "error" in attrs else "new",
    }
    launcher = LauncherProcess.of(attrs["worker"]) if "worker" in attrs else None
    return CellState(
        cell, names[trial.state], attrs.get("progress", {}), attrs.get("outcome"), attrs.get("error"), launcher
    )


def _started(pid: int) -> str | None:
    """When a process of this host started, in a form that no change of the clock alters; None where it has ended, and
    "" where that cannot be known."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return fields[19] if fields[0] not in "ZX" else None  # in ticks since the machine was started
    try:
        process = psutil.Process(pid)
        return str(process.create_time()) if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return ""


def _host() -> str:
    """This host and process namespace: containers may share a name, and their pids mean nothing to each other.

    A container's namespace number is unique only on its machine, so the number of that machine's boot goes with it.
    """
    namespace, machine = Path("/proc/self/ns/pid"), Path("/etc/machine-id")
    boot = Path("/proc/sys/kernel/random/boot_id")
    number = os.readlink(namespace) if namespace.is_symlink() else ""
    parts = [platform.node(), machine.read_text().strip() if machine.exists() else "", number]
    if number != _FIRST_NAMESPACE and boot.exists():
        parts.append(boot.read_text().strip())
    return " ".join(parts)
