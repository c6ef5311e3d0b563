"""The queue, kept in Optuna: cells claimed exactly once by any number of workers, and taken back from dead ones.

A trial is one attempt at a cell, and the newest trial of a cell decides its state. Optuna moves a trial from WAITING
to RUNNING and from RUNNING to COMPLETE or FAIL by compare-and-set (see storage.py). What takes more than one step
(look, then add or claim) runs under `exclusive`. Optuna's own `ask` and heartbeats are not used here: `ask` invents a
trial when none waits, and its heartbeats miss a worker that dies before the first of them.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
import uuid
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import sqlalchemy
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from ablations.plan import Cell
from ablations.storage import exclusive, open_storage

GRACE = 120.0  # seconds without a sign of life; only for workers whose process cannot be looked up from here
MAX_DEATHS = 3  # of workers at one cell; then it counts as failed, because the cell is what kills them

State = Literal["new", "waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class Worker:
    """Who claims. `token` stands in the worker's command line, which tells it from a later process of the same pid."""

    host: str
    pid: int
    token: str

    @classmethod
    def here(cls, token: str) -> Worker:
        return cls(_host(), os.getpid(), token)

    def is_dead(self) -> bool:
        """True where that is certain: the process belonged to this host and is gone."""
        if self.host != _host():
            return False
        try:
            return self.token not in psutil.Process(self.pid).cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            return True
        except psutil.AccessDenied:
            return False


@dataclass(frozen=True)
class Claim:
    trial_id: int
    cell: Cell


@dataclass(frozen=True)
class CellState:
    """A cell as the display shows it. `progress` is what its worker last said: step, images_per_sec, fid."""

    cell: Cell
    state: State
    progress: dict[str, Any] = field(default_factory=dict)
    outcome: str | None = None
    error: str | None = None
    worker: Worker | None = None


class ClaimLost(Exception):
    """The cell was taken from this worker, which had given no sign of life for too long."""


class CellQueue:
    """The cells of one study in an Optuna storage; `cells` are those that this launch asks for, in that order."""

    def __init__(self, url: str, study: str, cells: Sequence[Cell], grace: float = GRACE) -> None:
        self._url = sqlalchemy.make_url(url)
        self._cells = {cell.key: cell for cell in cells}
        self._order = {key: place for place, key in enumerate(self._cells)}
        self._study = study
        self._grace = grace
        self._beats: dict[int, tuple[Any, float]] = {}
        with self._exclusive():  # two processes that create the tables at once would both fail
            self._storage = open_storage(self._url)
            with contextlib.suppress(DuplicatedStudyError):
                self._storage.create_new_study([StudyDirection.MINIMIZE], study)
            self._study_id = self._storage.get_study_id_from_name(study)

    def enqueue(self, recorded: Container[str], retry_failed: bool = False) -> int:
        """Puts every cell in the queue that has no result yet; returns how many.

        `recorded` holds the keys of the cells whose outcome is in the tracking store: it, not the queue, is the truth.
        """
        added = 0
        with self._exclusive():
            newest = self._newest()
            for key, cell in self._cells.items():
                if key in recorded:
                    continue
                trial = newest.get(key)
                if trial is None or _is_open_again(trial, retry_failed):
                    deaths = 0 if trial is None or "error" in trial.user_attrs else trial.user_attrs["deaths"]
                    self._add(cell, deaths)
                    added += 1
        return added

    def claim(self, worker: Worker) -> Claim | None:
        """The first waiting cell, now this worker's own; None where no cell waits."""
        with self._exclusive():
            waiting = [trial for trial in self._newest().values() if trial.state == TrialState.WAITING]
            if not waiting:
                return None
            trial = min(waiting, key=lambda trial: self._order[trial.user_attrs["cell"]])
            self._storage.set_trial_user_attr(trial._trial_id, "worker", asdict(worker))
            claimed = self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
            assert claimed, "another process changed the queue under our lock"
        return Claim(trial._trial_id, Cell.from_json(trial.user_attrs["spec"]))

    def beat(self, claim: Claim, progress: dict[str, Any]) -> None:
        """A sign of life. Raises ClaimLost when the cell is not this worker's any more."""
        with _own(claim):
            self._storage.set_trial_user_attr(claim.trial_id, "progress", {**progress, "beat": uuid.uuid4().hex})

    def complete(self, claim: Claim, outcome: str) -> None:
        """Raises ClaimLost: then the result is another worker's to record."""
        with _own(claim):
            self._storage.set_trial_user_attr(claim.trial_id, "outcome", outcome)
            self._storage.set_trial_state_values(claim.trial_id, TrialState.COMPLETE)

    def fail(self, claim: Claim, error: str) -> None:
        with _own(claim):
            self._storage.set_trial_user_attr(claim.trial_id, "error", error)
            self._storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)

    def release(self, claim: Claim) -> None:
        """Gives a cell back, to be resumed by whoever claims it next."""
        with self._exclusive(), _own(claim):
            trial = self._storage.get_trial(claim.trial_id)
            self._storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)
            self._add(claim.cell, trial.user_attrs["deaths"])

    def reap(self) -> list[Cell]:
        """Takes cells back from dead workers, and from silent ones after the grace period; returns these cells."""
        suspects = [trial for trial in self._newest().values() if self._is_stale(trial)]
        if not suspects:
            return []
        reaped = []
        with self._exclusive():
            for trial in suspects:
                with contextlib.suppress(UpdateFinishedTrialError):  # it ended while we looked
                    reaped.append(self._take_back(trial))
        return reaped

    def states(self) -> list[CellState]:
        newest = self._newest()
        return [_state(cell, newest.get(key)) for key, cell in self._cells.items()]

    def close(self) -> None:
        self._storage.engine.dispose()

    def _take_back(self, trial: FrozenTrial) -> Cell:
        deaths = trial.user_attrs["deaths"] + 1
        cell = self._cells[trial.user_attrs["cell"]]
        if deaths >= MAX_DEATHS:
            message = f"its worker died {deaths} times; the worker's log says more"
            self._storage.set_trial_user_attr(trial._trial_id, "error", message)
        self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        if deaths < MAX_DEATHS:
            self._add(cell, deaths)
        return cell

    def _is_stale(self, trial: FrozenTrial) -> bool:
        if trial.state != TrialState.RUNNING:
            return False
        if Worker(**trial.user_attrs["worker"]).is_dead():
            return True
        # Our own monotonic clock times the silence: clocks of hosts differ, and wall clocks jump.
        beat, now = trial.user_attrs.get("progress", {}).get("beat"), time.monotonic()
        if self._beats.get(trial._trial_id, (None, 0.0))[0] != beat or trial._trial_id not in self._beats:
            self._beats[trial._trial_id] = (beat, now)
        return now - self._beats[trial._trial_id][1] > self._grace

    def _newest(self) -> dict[str, FrozenTrial]:
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return {trial.user_attrs["cell"]: trial for trial in trials if trial.user_attrs.get("cell") in self._cells}

    def _add(self, cell: Cell, deaths: int) -> None:
        attrs = {"cell": cell.key, "spec": cell.to_json(), "deaths": deaths}
        self._storage.create_new_trial(self._study_id, create_trial(state=TrialState.WAITING, user_attrs=attrs))

    def _exclusive(self) -> AbstractContextManager[None]:
        return exclusive(self._url, self._study)


@contextlib.contextmanager
def _own(claim: Claim) -> Iterator[None]:
    try:
        yield
    except UpdateFinishedTrialError:
        raise ClaimLost(claim.cell.name) from None


def _is_open_again(trial: FrozenTrial, retry_failed: bool) -> bool:
    """Complete yet not recorded (its record was lost), or ended without a successor: killed between the two."""
    if trial.state == TrialState.FAIL:
        return retry_failed or "error" not in trial.user_attrs
    return trial.state == TrialState.COMPLETE


def _state(cell: Cell, trial: FrozenTrial | None) -> CellState:
    if trial is None:
        return CellState(cell, "new")
    attrs = trial.user_attrs
    names: dict[TrialState, State] = {
        TrialState.WAITING: "waiting",
        TrialState.RUNNING: "running",
        TrialState.COMPLETE: "done",
        TrialState.FAIL: "failed" if "error" in attrs else "new",
    }
    worker = Worker(**attrs["worker"]) if "worker" in attrs else None
    return CellState(
        cell, names[trial.state], attrs.get("progress", {}), attrs.get("outcome"), attrs.get("error"), worker
    )


def _host() -> str:
    """This host and process namespace: containers may share a name, and their pids mean nothing to each other."""
    namespace = Path("/proc/self/ns/pid")
    machine = Path("/etc/machine-id")
    parts = [
        platform.node(),
        machine.read_text().strip() if machine.exists() else "",
        os.readlink(namespace) if namespace.is_symlink() else "",
    ]
    return " ".join(parts)
