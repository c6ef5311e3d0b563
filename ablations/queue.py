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

GRACE = 120.0  # seconds without a heartbeat; only for launchers whose process cannot be looked up from here
# If this process has not polled for longer than this many seconds, it restarts its heartbeat timers instead of
# declaring other launchers dead: it may have been stopped itself, or the database was unreachable.
_BLIND = 60.0
MAX_DEATHS = 3  # after this many crashes without a new checkpoint the cell is marked as failed
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

    def is_dead(self) -> bool:
        """True where that is certain: the process belonged to this host and is gone."""
        return self.host == _host() and _started(self.pid) not in (self.token, "")


@dataclass(frozen=True)
class Claim:
    """A cell that is the claimer's to train."""

    trial_id: int
    cell: Cell = field(compare=False)


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

    def __init__(self, url: str, study: str, cells: Sequence[Cell], grace: float = GRACE) -> None:
        self._url = sqlalchemy.make_url(url)
        self._cells = {cell.key: cell for cell in cells}
        self._study = study
        self.grace = grace
        self._beats: dict[int, tuple[Any, float]] = {}
        self._looked = time.monotonic()
        with exclusive(self._url, "tables"):  # two processes that create them at once would both fail
            self._storage = open_storage(self._url)
            with contextlib.suppress(DuplicatedStudyError):
                self._storage.create_new_study([StudyDirection.MINIMIZE], study)
            self._study_id = self._storage.get_study_id_from_name(study)

    @retry_while_unreachable
    def enqueue(self, recorded: Container[str], retry_failed: bool = False) -> int:
        """Queues every cell that has no result yet; returns how many.

        `recorded` holds the keys of the cells whose outcome is in the tracking store, which decides, not the queue.
        """
        with self._exclusive():
            newest, added = self._newest(), 0
            for key in self._cells:
                if key in recorded:
                    continue
                trial = newest.get(key)
                if trial is None or (retry_failed and trial.state.is_finished() and "error" in trial.attrs):
                    self._add(key)
                # The record was lost, or a launcher was killed between the end of this trial and the next one.
                elif trial.state.is_finished() and "error" not in trial.attrs:
                    self._add(key, trial.attrs["deaths"], trial.attrs["reached"])
                else:
                    continue
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
    def release(self, claim: Claim) -> None:
        """Puts a cell back in the queue; whoever claims it next resumes it."""
        with self._exclusive(), _own(claim):
            attrs = self._storage.get_trial(claim.trial_id).user_attrs
            self._storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)
            self._add(claim.cell.key, attrs["deaths"], attrs["reached"])

    @retry_while_unreachable
    def release_crashed(self, claim: Claim) -> None:
        """Releases a cell whose process died, or marks it as failed after MAX_DEATHS."""
        with self._exclusive(), _own(claim):
            self._take_back(claim.trial_id, self._storage.get_trial(claim.trial_id).user_attrs)

    @retry_while_unreachable
    def reap(self) -> list[Cell]:
        """Releases the cells of launchers that are dead, or without a heartbeat for `grace` seconds; returns them."""
        if time.monotonic() - self._looked > _BLIND:  # see _BLIND
            self._beats.clear()
        self._looked = time.monotonic()
        running = trial_records(self._storage, self._study_id, {TrialState.RUNNING})
        suspects = [trial for trial in running if trial.attrs["cell"] in self._cells and self._is_stale(trial)]
        if not suspects:
            return []
        reaped = []
        with self._exclusive():
            for trial in suspects:
                with contextlib.suppress(UpdateFinishedTrialError):  # it ended while we looked
                    reaped.append(self._take_back(trial.trial_id, trial.attrs))
        return reaped

    @retry_while_unreachable
    def states(self) -> list[CellState]:
        names: dict[TrialState, State] = {
            TrialState.WAITING: "waiting",
            TrialState.RUNNING: "running",
            TrialState.COMPLETE: "done",
            TrialState.FAIL: "new",
        }
        newest, found = self._newest(), []
        for key, cell in self._cells.items():
            if (trial := newest.get(key)) is None:
                found.append(CellState(cell, "new"))
                continue
            attrs, error = trial.attrs, trial.attrs.get("error")
            launcher = LauncherProcess(**attrs["worker"]) if "worker" in attrs else None
            state = "failed" if error is not None and trial.state == TrialState.FAIL else names[trial.state]
            found.append(CellState(cell, state, attrs.get("progress", {}), attrs.get("outcome"), error, launcher))
        return found

    @retry_while_unreachable
    def living(self) -> dict[str, LauncherProcess]:
        """{key: launcher} of the cells of this study that are being trained, whichever launch asked for them."""
        running = trial_records(self._storage, self._study_id, {TrialState.RUNNING})
        launchers = {trial.attrs["cell"]: LauncherProcess(**trial.attrs["worker"]) for trial in running}
        return {key: launcher for key, launcher in launchers.items() if not launcher.is_dead()}

    def close(self) -> None:
        self._storage.engine.dispose()

    def _take_back(self, trial_id: int, attrs: Mapping[str, Any]) -> Cell:
        """Crashes before the last new checkpoint (at step `reached`) do not count: a run of a week may have three."""
        began = attrs.get("progress", {}).get("since", 0)
        deaths, reached = attrs["deaths"] + 1, attrs["reached"]
        if began > reached:
            deaths, reached = 1, began
        cell = self._cells[attrs["cell"]]
        if deaths >= MAX_DEATHS:
            message = f"its process died {deaths} times at step {reached}; its log says more"
            self._storage.set_trial_user_attr(trial_id, "error", message)
        self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        if deaths < MAX_DEATHS:
            self._add(cell.key, deaths, reached)
        return cell

    def _is_stale(self, trial: TrialRecord) -> bool:
        if LauncherProcess(**trial.attrs["worker"]).is_dead():
            return True
        # Timed by the monotonic clock of this process: clocks of hosts differ, and wall clocks jump.
        beat, now = trial.attrs.get("progress", {}).get("beat"), time.monotonic()
        if self._beats.get(trial.trial_id, (None, 0.0))[0] != beat or trial.trial_id not in self._beats:
            self._beats[trial.trial_id] = (beat, now)
        return now - self._beats[trial.trial_id][1] > self.grace

    def _newest(self) -> dict[str, TrialRecord]:
        trials = trial_records(self._storage, self._study_id)
        return {trial.attrs["cell"]: trial for trial in trials if trial.attrs["cell"] in self._cells}

    def _add(self, key: str, deaths: int = 0, reached: int = 0) -> None:
        attrs = {"cell": key, "deaths": deaths, "reached": reached}
        self._storage.create_new_trial(self._study_id, create_trial(state=TrialState.WAITING, user_attrs=attrs))

    def _exclusive(self) -> AbstractContextManager[None]:
        return exclusive(self._url, self._study)


@contextlib.contextmanager
def _own(claim: Claim) -> Iterator[None]:
    try:
        yield
    except UpdateFinishedTrialError:
        raise ClaimLost(claim.cell.name) from None


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
