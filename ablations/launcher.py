"""Cells of one study on this host: claimed from the queue, trained, one process for each, until all have ended.

Any number of launchers may run one study at once, on any number of hosts: they share its queue. Only a launcher talks
to queue and store; its training processes write to the folders of their attempts (attempts.py), which it reads. What
survives a launcher that is killed is in the two stores and in these folders, so the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ablations.attempts import RERUN, Attempt, attempts, begin_attempt, find_shorter_run
from ablations.display import LiveTable, PlainLines
from ablations.machine import WorkerPool, git_commit
from ablations.plan import Cell, Study
from ablations.queue import CellQueue, CellState, Claim, ClaimLost, LauncherProcess
from ablations.results import Result, metrics_of
from ablations.storage import UNREACHABLE_ERRORS, exclusive, retry_while_unreachable
from ablations.table import summary
from ablations.tracking.store import Store
from ablations.tracking.uploader import Uploader
from ablations.trainers import Interrupt, Trainers
from ablations.verdicts import CellScores, VerdictRow, cell_scores, verdict_rows
from sagan.train import EXIT_DISK_FULL, EXIT_NOT_STARTED

BEAT_SECONDS = 2.0
TICK_SECONDS = 1.0  # between two reads of the queue
STOP_SECONDS = 60.0  # for training processes to finish a step or an evaluation, and save
_LONGEST_TICK = 15.0  # where reading all cells takes long
_POLL_SECONDS = 0.1
_SENDING_SECONDS = 5.0  # for the uploader to send the rest when all processes have ended
_MAX_UPLOADS = 2  # a cell fails if its result is not in MLflow after so many uploads
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What the command line asks for, checked; paths are absolute."""

    only: str  # glob of cells
    storage: str
    tracking_uri: str
    runs: Path
    data_root: Path | None
    inception_weights: Path | None
    retry_failed: bool
    reuse: bool  # results of the same cell in another study, and checkpoints of shorter runs
    worker_only: bool  # claim and train until no cell waits
    fingerprints: dict[str, str]  # of the images of a config, by its digest, where they are known
    processes: int = 1  # for each cell: so many GPUs train it together
    rerun: str = ""  # glob of cells that are trained again, if they have a result
    most: int | None = None  # adaptive seeds, where this launch is to stop earlier than the study
    until_seconds: float | None = None  # after which the launch saves and stops


@dataclass
class _Claimed:
    """A cell of this launcher. `end` is recorded in the queue once MLflow has how the attempt ended."""

    claim: Claim
    attempt: Attempt
    device: str
    known: list[tuple[str, str]]
    progress: dict[str, Any] = field(default_factory=dict)
    end: Literal["done", "stopped", "died"] | None = None
    _offset: int = 0
    _began: float | None = None

    @property
    def fingerprints(self) -> tuple[str, str] | None:
        """The fingerprints of data and metrics of a run that began at its first step; None before it is open."""
        protocol = self.attempt.protocol
        if protocol is None or protocol["step"] > 0:
            return None
        return protocol["data_fingerprint"], protocol["metric_fingerprint"]

    def read_progress(self) -> dict[str, Any]:
        """The progress for the queue, from the lines that the journal currently has."""
        if self._began is None:
            if (protocol := self.attempt.protocol) is None:
                return self.progress
            self._began = time.monotonic()
            self.progress = {"since": protocol["step"], "step": protocol["step"]}
        records, self._offset = self.attempt.read(self._offset)
        for record in records:
            shown = {name: value for name, value in record.metrics.items() if name in ("images_per_sec", "fid")}
            seconds = time.monotonic() - self._began
            self.progress = {**self.progress, **shown, "step": record.step, "seconds": seconds}
        return self.progress


class Launcher:
    """Runs cells of one study, and keeps its table in the tracking store.

    `trainer` replaces sagan.training.Trainer in the training processes.
    """

    def __init__(
        self,
        study: Study,
        pool: WorkerPool,
        options: Options,
        store: Store,
        interrupt: Interrupt,
        console: Console,
        trainer: Callable[..., Any] | None = None,
    ) -> None:
        self.study, self.pool, self.options = study, pool, options
        self.states: dict[str, CellState] = {}  # of all cells that were asked for, by key
        self.has_run = False  # whether there was a cell to run
        self._store, self._interrupt, self._console, self._trainer = store, interrupt, console, trainer
        self._experiment_id, self._folder = store.open_experiment(study), options.runs / study.name
        self._search: dict[str, Any] | None = None  # its report; `study` then has its trials
        self._others: dict[str, Any] | None = None  # beats of cells elsewhere, when there was nothing left to claim
        self._claimed: dict[Path, _Claimed] = {}  # by the attempt's folder
        self.failed = set[str]()  # keys of cells that have no result and will have none
        self._uploads: Counter[str] = Counter()  # of cells, by key
        self._beat_at = time.monotonic()
        self._me, self._commit = LauncherProcess.here(), git_commit()
        # Of the cells that are being run.
        self._queue: CellQueue
        self._trainers: Trainers
        self._uploader: Uploader

    @property
    def link(self) -> str:
        """The URL of the study's table in MLflow's pages."""
        return self._store.link(self._experiment_id)

    @property
    def have_all_ended(self) -> bool:
        """Every cell that was asked for has ended, well or not."""
        return all(state.state in ("done", "failed") for state in self.states.values())

    def trained_by_others(self) -> set[str]:
        """The keys of the study's cells that other launchers train now."""
        with self._open_queue([]) as queue:
            return {key for key, launcher in queue.living().items() if launcher != self._me}

    def results(self) -> dict[str, Result]:
        return self._store.recorded(self._experiment_id, self._folder, self.options.reuse, metrics_of(self.study))

    def set_aside(self, cells: Sequence[Cell]) -> None:
        """Forgets the results of those cells that have one, so that they are trained again from their first step.

        Their runs go to MLflow's trash; their folders keep all but the checkpoints. Raises StoreUnreachable.
        """
        finished = self.results()
        for cell in cells:
            if cell.key in finished:
                # The folder first: if this process is killed in between, the store still has the result.
                directory = cell.directory(self.options.runs)
                directory.mkdir(parents=True, exist_ok=True)
                (directory / RERUN).touch()
                for attempt in attempts(directory, cell.key):
                    attempt.set_aside()
                self._store.delete_runs(self._experiment_id, cell)

    @retry_while_unreachable
    def register_seeds(self) -> None:
        """Registers the plan of adaptive seeds. Raises ValueError where another plan was registered first."""
        with exclusive(self.options.storage, f"{self.study.name}/seeds"):
            self._store.check_seeds(self.study)
            self._store.register_seeds(self._experiment_id, self.study)

    def cell_scores(self) -> CellScores:
        """The scores of the study's cells that have ended, on any host.

        Cells that failed before this launch are left out where they are to be run again.
        """
        with self._open_queue(self.study.cells()) as queue:
            states = list(self.states.values()) if self.options.retry_failed else queue.states()
        failed = {state.cell.key for state in states if state.state == "failed"}
        if failed != self.failed:
            self.failed = failed
            self._bring_table_up_to_date()
        return cell_scores(self.study, self.results(), self.failed)

    def publish(self, study: Study, search: dict[str, Any]) -> None:
        """The study with the trials of its search so far, and their report: what its table shows from now on."""
        self.study, self._search = study, search
        self._bring_table_up_to_date()

    def run(self, cells: Sequence[Cell]) -> list[CellState]:
        """Trains these cells until each has a result or has failed, or the launch is interrupted."""
        with self._open_queue(cells) as self._queue:
            self._prepare()
            states, recorded = self._queue.states(), self.results()
            # A running cell is not done even if it has an outcome: its launcher, or the one that takes the cell over,
            # must still upload the rest of its journal.
            left = [s for s in states if s.state == "running" or s.state == "waiting" and s.cell.key not in recorded]
            if self._interrupt.status is None and left:
                self.has_run = True
                self._train()
        return self.refresh_states(cells)

    def enqueue(self, cells: Sequence[Cell]) -> int:
        """Queues those of these cells that have no result; returns how many of them wait."""
        with self._open_queue(cells) as self._queue:
            self._prepare()
            return sum(state.state == "waiting" for state in self._queue.states())

    def refresh_states(self, cells: Sequence[Cell]) -> list[CellState]:
        """The current states of these cells, without running them."""
        recorded = self.results()
        with self._open_queue(cells) as queue:  # a cell that has an outcome is done, whatever the queue knows of it
            states = [replace(s, state="done") if s.cell.key in recorded else s for s in queue.states()]
        self.states.update({state.cell.key: state for state in states})
        return states

    def _open_queue(self, cells: Sequence[Cell]) -> contextlib.closing[CellQueue]:
        return contextlib.closing(CellQueue(self.options.storage, self.study.name, cells))

    def _prepare(self) -> None:
        """Makes the rows of the table, releases the cells of dead launchers, and queues the cells without a result."""
        self._bring_table_up_to_date()
        self._clear_up()
        recorded = self.results()
        # While the store is unreachable, what other hosts have trained cannot be known.
        self._queue.enqueue(recorded, self.options.retry_failed, reopen_done=not self._store.is_unreachable)

    @retry_while_unreachable
    def _bring_table_up_to_date(self) -> None:
        """Under a lock, so that two launchers do not both create a row; the uploader updates rows without it."""
        with exclusive(self.options.storage, f"{self.study.name}/table"):
            self._write_table()

    def _write_table(self) -> None:
        try:
            rows, description = summary(self.study, self.results(), self.failed)
            self._store.write_table(self._experiment_id, self.study, rows, description, self._search, self._commit)
        except Exception:  # training does not depend on MLflow
            _log.exception("tracking: the table of %s is not uploaded", self.study.name)

    def _train(self) -> None:
        self._trainers = Trainers(self.pool.devices, self.options.processes, self.pool.threads, self._trainer)
        longest = max(1.0, self._queue.timeout_seconds / 2)
        self._uploader = Uploader(
            self._store, self._experiment_id, lambda: time.monotonic() - self._beat_at < longest, self._write_table
        )
        try:
            self._watch()
        finally:
            with contextlib.suppress(KeyboardInterrupt):
                self._leave()
            self._clear_up()
        self._bring_table_up_to_date()

    def _watch(self) -> None:
        """Until all cells have ended: claim and train, send heartbeats, release cells of dead launchers, display."""
        display: LiveTable | PlainLines = PlainLines(self._console, self.study)
        if self._console.is_terminal and not self.options.worker_only:

            def rows(states: Sequence[CellState]) -> list[VerdictRow]:
                failed = self.failed | {state.cell.key for state in states if state.state == "failed"}
                return verdict_rows(self.study, cell_scores(self.study, self.results(), failed))

            display = LiveTable(self._console, self.study, rows)
        read_at, tick = -_LONGEST_TICK, TICK_SECONDS
        try:
            while self._interrupt.status is None:
                if time.monotonic() - self._beat_at > BEAT_SECONDS:
                    self._beat()
                    for cell in self._claimed.values():
                        # `known` cannot be passed through torchrun, so these processes begin to train.
                        if self.options.processes > 1 and cell.end is None and cell.fingerprints in cell.known:
                            self._trainers.kill(cell.attempt.folder)
                            self._copy(cell)
                has_news = self._collect()
                if has_news or time.monotonic() - read_at > tick:
                    began = time.monotonic()
                    self._queue.release_stale()
                    states = self._queue.states()
                    tick = min(max(TICK_SECONDS, 10 * (time.monotonic() - began)), _LONGEST_TICK)
                    shown = [s for s in states if not self.options.worker_only or s.launcher == self._me]
                    if shown:
                        display.update(shown, self.pool.workers)
                    if not self._claim_waiting(states):
                        return
                    read_at = time.monotonic()
                time.sleep(_POLL_SECONDS)
        finally:
            display.close()

    def _claim_waiting(self, states: Sequence[CellState]) -> bool:
        """Claims as many waiting cells as there are processes free; False where there is nothing left to do."""
        counts = Counter(state.state for state in states)
        for _ in range(min(self.pool.workers - len(self._trainers), counts["waiting"])):
            if (claim := self._queue.claim(self._me)) is None:
                break
            try:
                self._begin(claim)
            except ClaimLost:  # this host was silent for too long meanwhile
                continue
            except Exception:
                for cell in [cell for cell in self._claimed.values() if cell.claim == claim]:
                    self._uploader.pause(cell.attempt)
                    del self._claimed[cell.attempt.folder]
                with contextlib.suppress(ClaimLost, *UNREACHABLE_ERRORS):
                    self._queue.release(claim)
                raise
            if time.monotonic() - self._beat_at > BEAT_SECONDS:  # a store that does not answer takes seconds per cell
                self._beat()
        if counts["waiting"] or self._claimed:
            self._others = None
            return True
        if self._must_stay(states):
            return True
        # A launcher may have died between its write to the queue and that to the store. What other hosts have trained
        # cannot be known while the store is unreachable.
        recorded = self.results()
        return not self._store.is_unreachable and bool(self._queue.enqueue(recorded))

    def _must_stay(self, states: Sequence[CellState]) -> bool:
        """A launcher waits until all running cells end. With `--worker-only` it exits once every remaining cell has
        sent a heartbeat: cells of dead launchers send none, and this launcher can still train them."""
        beats = {state.cell.key: state.progress.get("beat") for state in states if state.state == "running"}
        # Adaptive seeds go on where all cells of a look have ended: then there is more to claim.
        if self._others is None or not self.options.worker_only or self.study.adaptive:
            self._others = beats
            return bool(beats)
        return any(beats[key] == self._others[key] for key in beats.keys() & self._others.keys())

    def _begin(self, claim: Claim) -> None:
        """Trains a cell that was claimed, unless it has a result: in the store, from a launcher that died before it
        updated the queue, or only in its folder, where the store has lost it or never had it."""
        cell, options = claim.cell, self.options
        if outcome := self._store.find_outcome(self._experiment_id, cell, options.reuse):
            self._queue.complete(claim, outcome)
            return
        if self._uploads[cell.key] >= _MAX_UPLOADS:
            where = f"it is safe in {cell.directory(options.runs)}; see the cell's run in MLflow"
            self._queue.fail(claim, f"its result was uploaded {_MAX_UPLOADS} times but is not in MLflow; {where}")
            return
        for attempt in attempts(cell.directory(options.runs), cell.key):
            if attempt.outcome is not None and not attempt.copied and not attempt.upload_state.is_lost:
                self._claimed[attempt.folder] = _Claimed(claim, attempt, "", [], end="done")
                attempt.reset_upload()
                self._uploader.follow(attempt)
                self._uploader.finish(attempt)
                return
        device = self._trainers.next_device()
        machine = self._trainers.machine(device, options.data_root, options.inception_weights, options.runs / "cache")
        tags = {"device": machine["device"], **({"git_commit": self._commit} if self._commit else {})}
        may_reuse = options.reuse and not (cell.directory(options.runs) / RERUN).exists()
        known = self._store.find_shared(cell) if may_reuse else []
        find = partial(find_shorter_run, options.runs, cell, options.fingerprints.get(cell.config_digest))
        # A copy is cheaper than resuming.
        attempt = begin_attempt(options.runs, cell, tags, machine, find if may_reuse and not known else lambda: None)
        self._claimed[attempt.folder] = _Claimed(claim, attempt, device, known)
        self._uploader.follow(attempt)
        self._trainers.start(attempt.folder, device, known)
        _log.info("%s: claimed", cell.name)

    def _beat(self) -> None:
        """Sends a heartbeat for all cells; drops those that another launcher took over, without recording anything."""
        claimed = {cell.claim: cell for cell in self._claimed.values()}
        for claim in self._queue.beat({claim: cell.read_progress() for claim, cell in claimed.items()}):
            self._lose(claimed[claim])
        self._beat_at = time.monotonic()

    def _lose(self, cell: _Claimed) -> None:
        _log.warning("%s: taken over by another launcher; this one was silent for too long", cell.claim.cell.name)
        self._trainers.kill(cell.attempt.folder)
        self._uploader.drop(cell.attempt)
        del self._claimed[cell.attempt.folder]

    def _collect(self, is_leaving: bool = False) -> bool:
        """Handles processes that have ended and uploads that are complete; whether there was one."""
        ended = self._trainers.ended()
        full = False
        for folder, status in ended.items():
            try:
                full |= self._end(self._claimed[folder], status, is_leaving)
            except ClaimLost:
                self._lose(self._claimed[folder])
        uploaded = self._uploader.take_ended()
        for attempt in uploaded:
            cell = self._claimed.pop(attempt.folder, None)
            if cell is None:  # it failed, which the queue knows
                continue
            with contextlib.suppress(ClaimLost):  # then another launcher records the result
                if cell.end == "done":
                    self._uploads[cell.claim.cell.key] += 1
                    self._queue.complete(cell.claim, attempt.outcome or "")
                else:
                    self._queue.release(cell.claim, has_crashed=cell.end == "died")
        if full and not is_leaving:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return bool(ended or uploaded)

    def _end(self, cell: _Claimed, status: int, is_leaving: bool) -> bool:
        """Records how a training process ended; returns whether a disk was full. Raises ClaimLost."""
        attempt, name = cell.attempt, cell.claim.cell.name
        if self._queue.beat({cell.claim: cell.read_progress()}):  # before anything is recorded
            raise ClaimLost(name)
        if status == EXIT_NOT_STARTED and not is_leaving:
            self._copy(cell)
            return False
        if attempt.outcome is not None:
            cell.end = "done"
        elif (failure := attempt.failure) is not None:
            self._queue.fail(cell.claim, failure.reason)
            del self._claimed[attempt.folder]
            _log.info("%s: failed: %s", name, failure.reason)
        else:
            was_told_to = is_leaving or status in (130, 143, EXIT_DISK_FULL)
            cell.end = "stopped" if was_told_to else "died"
        # The exit status of torchrun does not contain those of its processes.
        if self.options.processes > 1 and cell.end == "died" and shutil.disk_usage(attempt.folder).free < 2**20:
            cell.end, status = "stopped", EXIT_DISK_FULL
        # The store first: a cell that is done in the queue and missing in the store looks like a lost record.
        self._uploader.finish(attempt)
        return status == EXIT_DISK_FULL

    def _copy(self, cell: _Claimed) -> None:
        """Ends as a copy of another study's result, or trains where that result is gone."""
        attempt, fingerprints = cell.attempt, cell.fingerprints
        source = self._store.find_source(cell.claim.cell, fingerprints) if fingerprints is not None else None
        cell.known = []
        if source is None:
            self._trainers.start(attempt.folder, cell.device, ())
            return
        self._uploader.pause(attempt)
        cell.attempt = attempt.become_copy(source.records, source.tags)
        cell.progress = {"step": source.records[-1].step, "shared_study": source.tags["shared_study"]}
        cell.end = "done"
        self._uploader.finish(cell.attempt)

    def _leave(self) -> None:
        """Lets all processes save, uploads their records, and releases their cells; where the queue does not answer,
        the next launcher releases them."""
        self._trainers.stop(STOP_SECONDS)
        with contextlib.suppress(*UNREACHABLE_ERRORS, OSError):
            self._beat()
            self._collect(is_leaving=True)
            deadline = time.monotonic() + _SENDING_SECONDS
            while self._claimed and time.monotonic() < deadline:
                time.sleep(0.02)
                self._collect(is_leaving=True)
            for cell in self._claimed.values():
                with contextlib.suppress(ClaimLost):
                    self._queue.release(cell.claim)
        self._uploader.close(_SENDING_SECONDS)
        self._claimed.clear()

    def _clear_up(self) -> None:
        """Releases the cells of dead launchers, uploads what they left, and ends their runs that are still RUNNING."""
        self._queue.release_stale()
        living = self._queue.living()
        self._store.send_rest(self._experiment_id, self._folder, living, wait=self._interrupt.status is None)
        self._store.end_abandoned(self._experiment_id, living)
