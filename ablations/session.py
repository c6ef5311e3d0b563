"""One study of a launch: its experiment, its parent run, and cells handed to workers until each has ended.

Any number of launchers may run one study at once, on any number of hosts: they share its queue. What survives a
launcher that is killed is in the two stores, so the same command goes on from there. One that is there for its workers
only (`Order.worker_only`) works under the parent run of the launch that it finds, and leaves when no cell waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ablations.crew import Crew, Interrupt, Program
from ablations.display import LiveTable, PlainLines
from ablations.machine import git_commit
from ablations.plan import Cell, Study
from ablations.queue import MAX_DEATHS, CellQueue, CellState, Worker
from ablations.storage import exclusive
from ablations.tracking import Result, Store, plan_digest
from ablations.worker import Launch

TICK_SECONDS = 1.0
_LONGEST_TICK = 15.0  # where looking at all cells takes long
STOP_SECONDS = 60.0  # for workers to finish a step or an evaluation, and save


@dataclass(frozen=True)
class Order:
    """What the command line asks for, checked: one study, and how to run it."""

    study: Study
    only: str  # glob of cells
    storage: str
    tracking_uri: str
    runs: Path
    places: tuple[str, ...]  # devices that workers take in turn
    workers: int
    threads: int  # of torch, for each worker
    data_root: Path | None
    inception_weights: Path | None
    retry_failed: bool
    reuse: bool  # results of the same cell in another study
    worker_only: bool  # no launch of its own
    fingerprints: dict[str, str]  # of the images of a config, by its digest, where they are known


class Session:
    """Runs cells of one study, as often as asked. The parent run is made once there is something to run."""

    def __init__(self, order: Order, store: Store, interrupt: Interrupt, console: Console, program: Program) -> None:
        self.order = order
        self.states: dict[str, CellState] = {}  # of all cells that were asked for, by key
        self._store, self._interrupt = store, interrupt
        self._console, self._program = console, program
        self._experiment_id = store.open_experiment(order.study)
        self._parent: str | None = None
        self._documents: dict[str, dict[str, Any]] = {}
        self._beats: dict[str, Any] | None = None  # of cells elsewhere, when there was nothing left to claim

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if self._parent is not None and not self.order.worker_only:
            failed = kind is not None or any(state.state != "done" for state in self.states.values())
            status = "KILLED" if self._interrupt.status else "FAILED" if failed else "FINISHED"
            self._store.end_run(self._parent, status)

    @property
    def folder(self) -> Path:
        return self.order.runs / self.order.study.name

    @property
    def has_run(self) -> bool:
        return self._parent is not None

    def results(self) -> dict[str, Result]:
        return self._store.recorded(self._experiment_id, self.folder, self.order.reuse)

    def publish(self, documents: Mapping[str, dict[str, Any]]) -> None:
        """JSON artifacts of the parent run, by name; they wait for it where there is none yet."""
        for name, content in documents.items():
            if self._documents.get(name) != content:
                self._documents[name] = content
                if self._parent is not None:
                    self._store.log_document(self._parent, name, content)

    def run(self, cells: Sequence[Cell]) -> list[CellState]:
        """Until each of these cells has a result or has failed, or the launch is interrupted."""
        with contextlib.closing(CellQueue(self.order.storage, self.order.study.name, cells)) as queue:
            self.prepare(queue)
            states = _settled(queue.states(), self.results())
            if self._interrupt.status is None and any(state.state in ("waiting", "running") for state in states):
                self._train(queue, cells)
        return self.look(cells)

    def prepare(self, queue: CellQueue) -> int:
        """Puts what has no result in the queue, after clearing up behind the dead; returns how many cells wait."""
        self._bury(queue)
        queue.enqueue(self.results(), self.order.retry_failed)
        return sum(state.state == "waiting" for state in queue.states())

    def look(self, cells: Sequence[Cell]) -> list[CellState]:
        """How these cells stand, without running them."""
        with contextlib.closing(CellQueue(self.order.storage, self.order.study.name, cells)) as queue:
            states = _settled(queue.states(), self.results())
        self.states.update({state.cell.key: state for state in states})
        return states

    @property
    def is_settled(self) -> bool:
        """Every cell that was asked for has ended, well or not."""
        return all(state.state in ("done", "failed") for state in self.states.values())

    def _train(self, queue: CellQueue, cells: Sequence[Cell]) -> None:
        if self._parent is None:
            self._parent = self._join() if self.order.worker_only else self._start()
        parent = self._parent
        crew = Crew(self._launch(cells, parent), self.order.places, self._program)
        try:
            self._watch(queue, crew)
        finally:
            with contextlib.suppress(KeyboardInterrupt):
                crew.stop(STOP_SECONDS)
            crew.close()
            self._bury(queue)

    def _start(self) -> str:
        me = Worker.here("ablations.run")
        parent = self._store.start_launch(self._experiment_id, self.order.study, asdict(me), git_commit())
        for name, content in self._documents.items():
            self._store.log_document(parent, name, content)
        return parent

    def _join(self) -> str:
        """The parent run of a launch with this plan. One is made where none is, and ended at once: it is a record of
        the plan, and no process could be trusted to be there when the last of these workers leaves."""
        study, store = self.order.study, self._store
        with exclusive(self.order.storage, f"{study.name}/launch"):
            for run in store.runs(self._experiment_id, "tags.kind = 'launch'"):
                if run.data.tags.get("plan") == plan_digest(study):
                    return str(run.info.run_id)
            parent = self._start()
            store.end_run(parent, "FINISHED")
            return parent

    def _watch(self, queue: CellQueue, crew: Crew) -> None:
        """Until all have ended: show, take cells back from the dead, keep as many workers as there is work for."""
        workers, console = self.order.workers, self._console
        display = LiveTable(console) if console.is_terminal and not self.order.worker_only else PlainLines(console)
        ended, departures_before = 0, 0
        try:
            while self._interrupt.status is None:
                began = time.monotonic()
                crew.collect()
                if not crew.has_room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                queue.reap()
                states = queue.states()
                looking = time.monotonic() - began
                counts = Counter(state.state for state in states)
                if shown := [s for s in states if not self.order.worker_only or _is_of(s, crew)]:
                    display.update(shown, workers)
                if ended != (ended := counts["done"] + counts["failed"]):
                    departures_before = crew.departures
                if crew.departures - departures_before > MAX_DEATHS * workers:
                    said = f"Workers leave without ending a cell; see {crew.last_log}"
                    console.print(said, markup=False, highlight=False, soft_wrap=True)
                    return
                for _ in range(min(workers - len(crew), counts["waiting"])):
                    crew.start()
                if counts["waiting"] or len(crew):
                    self._beats = None
                elif not self._must_stay(states):
                    # A worker may have died between telling the queue and telling the store.
                    recorded = self.results()
                    # What other hosts have trained cannot be known while the store is away.
                    if self._store.is_away or not queue.enqueue(recorded):
                        return
                time.sleep(min(max(TICK_SECONDS, 10 * looking), _LONGEST_TICK))
        finally:
            display.close()

    def _must_stay(self, states: Sequence[CellState]) -> bool:
        """Whether cells that run elsewhere may come back. A launcher stays until they have ended; one that is there
        for its workers only, until each has shown that it is alive: so the cells of the dead wait for somebody."""
        beats = {state.cell.key: state.progress.get("beat") for state in states if state.state == "running"}
        if self._beats is None or not self.order.worker_only:
            self._beats = beats
            return bool(beats)
        return any(beats[key] == self._beats[key] for key in beats.keys() & self._beats.keys())

    def _bury(self, queue: CellQueue) -> None:
        """Takes the cells of dead workers back, sends what they left, and ends the runs that they left running."""
        queue.reap()
        self._store.push(self._experiment_id, self.folder, wait=self._interrupt.status is None)
        trained = queue.living()
        self._store.end_abandoned(self._experiment_id, trained)
        busy = {worker.host for worker in trained.values()}
        for run_id, process in self._store.running_launches(self._experiment_id).items():
            launcher = Worker.of(process)
            # Of another host its cells are the only sign of life. If it lives all the same, it tells its end itself.
            if launcher.is_dead() or (launcher.is_elsewhere and launcher.host not in busy):
                self._store.end_run(run_id, "KILLED")

    def _launch(self, cells: Sequence[Cell], parent: str) -> Launch:
        return Launch(
            storage=self.order.storage,
            tracking_uri=self.order.tracking_uri,
            experiment_id=self._experiment_id,
            parent_run=parent,
            study=self.order.study.name,
            cells=tuple(cells),
            runs=self.order.runs,
            launcher_pid=os.getpid(),
            threads=self.order.threads,
            reuse=self.order.reuse,
            data_root=self.order.data_root,
            inception_weights=self.order.inception_weights,
            git_commit=git_commit(),
        )


def _is_of(state: CellState, crew: Crew) -> bool:
    return state.worker is not None and state.worker.token in crew.tokens


def _settled(states: Sequence[CellState], recorded: Container[str]) -> list[CellState]:
    """A cell whose outcome is in the store is done, whatever the queue knows of it."""
    return [replace(state, state="done") if state.cell.key in recorded else state for state in states]
