"""Runs the cells of a study: fills the queue, keeps workers going, replaces dead ones, stops them all when told to.

Any number of launchers may run one study at once: they share its queue. What survives a launcher that is killed is in
the two stores, so the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from ablations.display import LiveTable, PlainLines
from ablations.machine import git_commit
from ablations.plan import Cell, Study
from ablations.queue import MAX_DEATHS, CellQueue, CellState, Worker, probe
from ablations.tracking import Store
from ablations.worker import Launch

TICK_SECONDS = 1.0
STOP_SECONDS = 60.0  # for workers to finish a step or an evaluation, and save
Program = Sequence[str]


@dataclass(frozen=True)
class Order:
    """What the command line asks for, checked."""

    study: Study
    cells: Sequence[Cell]
    storage: str
    tracking_uri: str
    runs: Path
    places: tuple[str, ...]  # devices that workers take in turn
    workers: int
    threads: int  # of torch, for each worker
    data_root: Path | None
    inception_weights: Path | None
    retry_failed: bool


class Crew:
    """The worker processes of one launch. Each has a session of its own, so that Ctrl-C reaches the launcher alone."""

    def __init__(self, launch: Launch, places: tuple[str, ...], program: Program) -> None:
        self._launch, self._places, self._program = launch, places, program
        self._logs = launch.runs / launch.study / "logs"
        self._file = self._logs / f"launch-{uuid.uuid4().hex[:12]}.json"
        launch.write(self._file)
        self._members: dict[str, subprocess.Popen[bytes]] = {}
        self._place_of: dict[str, str] = {}
        self.departures = 0
        self.last_log: Path | None = None

    def __len__(self) -> int:
        return len(self._members)

    def start(self) -> None:
        token = f"worker-{uuid.uuid4().hex[:12]}"
        # Where fewest are: in turn at first, and then where one has died.
        place = min(self._places, key=[self._place_of[member] for member in self._members].count)
        threads = str(self._launch.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        command = [*self._program, str(self._file), token, "--device", place]
        with (self._logs / f"{token}.log").open("wb") as log:
            self._members[token] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._place_of[token] = place

    def collect(self) -> None:
        """Forgets workers that have ended, and counts them."""
        for token, process in list(self._members.items()):
            if process.poll() is not None:
                del self._members[token]
                self.departures += 1
                self.last_log = self._logs / f"{token}.log"

    def stop(self, patience: float) -> None:
        """Asks all to save and leave; kills those that have not after `patience` seconds."""
        for process in self._members.values():
            process.terminate()
        give_up = time.monotonic() + patience
        for process in self._members.values():
            try:
                process.wait(max(0.0, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._members.clear()

    def close(self) -> None:
        self._file.unlink(missing_ok=True)


class Interrupt:
    """Remembers the first SIGINT or SIGTERM; a second one raises KeyboardInterrupt, for those in a hurry."""

    def __init__(self) -> None:
        self.status: int | None = None

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.status is not None:
            raise KeyboardInterrupt
        self.status = 128 + number


def run_cells(order: Order, console: Console, program: Program = (sys.executable, "-m", "ablations.worker")) -> int:
    """Exit status: 0 every cell has a result; 1 some cell failed; 130 or 143 interrupted, with everything saved.

    Raises ValueError, naming the option, where a store cannot be opened; nothing is written then.
    """
    with Interrupt() as interrupt:
        return _run(order, console, program, interrupt)


def _run(order: Order, console: Console, program: Program, interrupt: Interrupt) -> int:
    try:
        probe(order.storage)
    except ValueError as error:
        raise ValueError(f"--storage: {error}") from None
    try:
        store = Store(order.tracking_uri)
        experiment_id = store.open_experiment(order.study)
    except ValueError as error:
        raise ValueError(f"--tracking-uri: {error}") from None
    queue = CellQueue(order.storage, order.study.name, order.cells)
    _bury(store, queue, experiment_id)
    queue.enqueue(store.recorded(experiment_id), order.retry_failed)
    states = _settled(queue.states(), store.recorded(experiment_id))
    if not any(state.state in ("waiting", "running") for state in states):
        console.print("Nothing to run.", highlight=False)
        return _sum_up(states, console)
    me = Worker.here("ablations.run")
    parent = store.start_launch(experiment_id, order.study, asdict(me), git_commit())
    crew = Crew(_launch(order, experiment_id, parent), order.places, program)
    try:
        _watch(order, store, queue, crew, experiment_id, interrupt, console)
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            crew.stop(STOP_SECONDS)
        crew.close()
        _bury(store, queue, experiment_id)
        states = _settled(queue.states(), store.recorded(experiment_id))
        failed = any(state.state != "done" for state in states)
        store.end_run(parent, "KILLED" if interrupt.status else "FAILED" if failed else "FINISHED")
        queue.close()
    status = _sum_up(states, console)
    if interrupt.status:
        console.print("Stopped. The same command goes on from here.")
    return interrupt.status or status


def _watch(
    order: Order,
    store: Store,
    queue: CellQueue,
    crew: Crew,
    experiment_id: str,
    interrupt: Interrupt,
    console: Console,
) -> None:
    """Until every cell has ended: show, take cells back from the dead, keep as many workers as there is work for."""
    display = LiveTable(console) if console.is_terminal else PlainLines(console)
    ended, departures_before = 0, 0
    try:
        while interrupt.status is None:
            crew.collect()
            queue.reap()
            states = queue.states()
            counts = Counter(state.state for state in states)
            display.update(states, order.workers)
            if ended != (ended := counts["done"] + counts["failed"]):
                departures_before = crew.departures
            if crew.departures - departures_before > MAX_DEATHS * order.workers:
                said = f"Workers leave without ending a cell; see {crew.last_log}"
                console.print(said, markup=False, highlight=False, soft_wrap=True)
                return
            for _ in range(min(order.workers - len(crew), counts["waiting"])):
                crew.start()
            if not counts["waiting"] and not counts["running"] and not len(crew):
                # A worker may have died between telling the queue and telling the store.
                if not queue.enqueue(store.recorded(experiment_id)):
                    return
            time.sleep(TICK_SECONDS)
    finally:
        display.close()


def _bury(store: Store, queue: CellQueue, experiment_id: str) -> None:
    """Takes the cells of dead workers back, and ends the runs that dead processes left running."""
    queue.reap()
    store.end_abandoned(experiment_id, {state.cell.key for state in queue.states() if state.state == "running"})
    for run_id, process in store.running_launches(experiment_id).items():
        if Worker(**process).is_dead():
            store.end_run(run_id, "KILLED")


def _launch(order: Order, experiment_id: str, parent: str) -> Launch:
    return Launch(
        storage=order.storage,
        tracking_uri=order.tracking_uri,
        experiment_id=experiment_id,
        parent_run=parent,
        study=order.study.name,
        cells=tuple(order.cells),
        runs=order.runs,
        launcher_pid=os.getpid(),
        threads=order.threads,
        data_root=order.data_root,
        inception_weights=order.inception_weights,
        git_commit=git_commit(),
    )


def _settled(states: Sequence[CellState], recorded: set[str]) -> list[CellState]:
    """A cell whose outcome is in the store is done, whatever the queue knows of it."""
    return [replace(state, state="done") if state.cell.key in recorded else state for state in states]


def _sum_up(states: Sequence[CellState], console: Console) -> int:
    counts = Counter(state.outcome or state.state for state in states)
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    console.print(f"{len(states)} cells: {listed}.", highlight=False)
    for state in states:
        if state.state == "failed":
            console.print(f"{state.cell.name} failed: {state.error}", markup=False, highlight=False, soft_wrap=True)
    if counts["failed"]:
        console.print("--retry-failed runs them again; their tracebacks are in MLflow.", highlight=False)
    console.print("Look at the runs: mlflow ui      Build the report: python -m reports.build", highlight=False)
    return 0 if all(state.state == "done" for state in states) else 1
