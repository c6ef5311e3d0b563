"""One process that trains cells until none waits: claims from the queue, Trainer events to the tracker.

`python -m ablations.worker LAUNCH.json TOKEN`, started by the launcher. Exit status 0 when no cell waits any more, 143
or 130 when it was told to stop: then its cell is saved and back in the queue. NO_ROOM when a disk was full: then its
cell is back in the queue, with the last checkpoint for which there was room.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil

from ablations.cell_run import CellRun
from ablations.gpu_memory import free_gpu_memory, is_out_of_gpu_memory, out_of_gpu_memory
from ablations.outbox import open_client, push
from ablations.plan import Cell
from ablations.queue import CellQueue, Claim, ClaimLost, Worker
from ablations.room import is_full_disk

if TYPE_CHECKING:
    from sagan.training import Event, Trainer

BEAT_SECONDS = 2.0
NO_ROOM = 74  # EX_IOERR of sysexits.h
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """What a launcher tells its workers; paths are absolute."""

    storage: str
    tracking_uri: str
    experiment_id: str
    parent_run: str
    study: str
    cells: tuple[Cell, ...]
    runs: Path
    launcher_pid: int
    threads: int
    reuse: bool  # what another study has trained
    data_root: Path | None = None
    inception_weights: Path | None = None
    git_commit: str | None = None

    def write(self, path: Path) -> None:
        values = {**asdict(self), "cells": [cell.to_json() for cell in self.cells]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, default=str))

    @classmethod
    def read(cls, path: Path) -> Launch:
        values = json.loads(path.read_text())
        for name in ("runs", "data_root", "inception_weights"):
            values[name] = Path(values[name]) if values[name] else None
        return cls(**{**values, "cells": tuple(map(Cell.from_json, values["cells"]))})


class Stop:
    """Becomes true when a signal arrives or the launcher dies; the running step is finished first."""

    def __init__(self, launcher_pid: int) -> None:
        self._launcher_pid = launcher_pid
        self.status: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def __bool__(self) -> bool:
        if self.status is None and _starter() != self._launcher_pid:
            self.status = 128 + signal.SIGTERM  # nobody would start us again or show what we do
        return self.status is not None

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.status = 128 + number


def _starter() -> int:
    """The process that started this worker; torchrun stands in between where it has several processes."""
    parent = os.getppid()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return parent
    with contextlib.suppress(psutil.Error):
        return psutil.Process(parent).ppid()
    return 0


class Heartbeat:
    """Tells the queue every other second that the cell is being trained, and how far it is."""

    def __init__(self, queue: CellQueue, claim: Claim) -> None:
        self._queue, self._claim = queue, claim
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.progress: dict[str, Any] = {}
        self.lost = False  # the claim, because we were silent for too long

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self.lost:
            try:
                self._queue.beat(self._claim, dict(self.progress))
            except ClaimLost:
                self.lost = True
            except Exception as error:  # a storage that stumbles costs one beat, not the run
                _log.warning("heartbeat: %s", error)
            if self._ended.wait(BEAT_SECONDS):
                return


def work(launch: Launch, token: str, device: str, stop: Stop, trainer: Callable[..., Trainer]) -> None:
    """Trains cells until none waits or `stop` says so. Where a disk is full the cell is given back, and that raised."""
    queue = CellQueue(launch.storage, launch.study, launch.cells)
    client = open_client(launch.tracking_uri)
    about = {"device": device, **({"git_commit": launch.git_commit} if launch.git_commit else {})}
    me = Worker.here(token)
    while not stop and (claim := queue.claim(me)):
        _log.info("%s: claimed", claim.cell.name)
        run: CellRun | None = None
        is_out_of_memory = False
        try:
            with Heartbeat(queue, claim) as heartbeat:
                directory = claim.cell.directory(launch.runs)
                run = CellRun(
                    client, launch.experiment_id, launch.parent_run, claim.cell, about, directory, launch.reuse
                )
                if run.outcome is not None:  # recorded by a worker that died before it told the queue
                    queue.complete(claim, run.outcome)
                    continue
                _train(launch, claim, queue, run, heartbeat, stop, trainer, device)
        except ClaimLost:
            _log.warning("%s: taken over by another worker; this one was silent for too long", claim.cell.name)
        except Exception as error:  # fails this cell; the next one may well train
            report = traceback.format_exc()
            is_recorded = run is not None and run.outcome is not None
            if is_full_disk(error):  # the next cell would meet the same
                if run is not None and not is_recorded:
                    with contextlib.suppress(OSError):
                        run.pause()
                with contextlib.suppress(ClaimLost):
                    queue.release(claim)
                raise
            _log.error("%s: failed\n%s", claim.cell.name, report)
            is_out_of_memory = is_out_of_gpu_memory(error)
            reason = out_of_gpu_memory(error, device) if is_out_of_memory else f"{type(error).__name__}: {error}"
            with contextlib.suppress(ClaimLost):  # it had been taken over before it failed
                queue.fail(claim, reason[:500])
                if run is not None and not is_recorded:
                    run.fail(report)
        finally:
            if run is not None:
                run.close()
        if device != "cpu" or is_out_of_memory:
            free_gpu_memory()
        if run is not None and run.is_sent:  # the store answers: it may lack some of what was told before
            push(client, launch.experiment_id, launch.runs / launch.study)


def _train(
    launch: Launch,
    claim: Claim,
    queue: CellQueue,
    run: CellRun,
    heartbeat: Heartbeat,
    stop: Stop,
    trainer: Callable[..., Trainer],
    device: str,
) -> None:
    cell = claim.cell
    directory = cell.directory(launch.runs)
    training = trainer(
        cell.config,
        cell.seed,
        directory,
        device=device,
        data_root=launch.data_root,
        cache_dir=launch.runs / "cache",
        inception_weights=launch.inception_weights,
    )
    run.describe(
        {
            "data_fingerprint": training.data_fingerprint,
            "metric_fingerprint": training.metric_fingerprint,
        }
    )
    run.describe_classes(training.classes, training.groups)
    heartbeat.progress = {"since": training.step, "step": training.step}
    # Nothing of it trained here yet: half of one run and half of another would be neither.
    if (
        launch.reuse
        and training.step == 0
        and (source := run.find_source(training.data_fingerprint, training.metric_fingerprint))
    ):
        heartbeat.progress = {"step": int(source.about["last_step"]), "shared_study": source.study}
        queue.beat(claim, heartbeat.progress)
        run.share(source)
        queue.complete(claim, source.outcome)
        _log.info("%s: shared with %s", cell.name, source.study)
        return

    def leaves() -> bool:
        if heartbeat.lost:  # another worker trains it, perhaps in the same folder: leave without saving
            raise ClaimLost(cell.name)
        return bool(stop)

    with contextlib.closing(training.run(leaves)) as events:
        last = _follow(events, run, heartbeat)
    if last is None or last.outcome is None:
        run.pause()  # before the release: whoever claims the cell next sets the run going again
        queue.release(claim)
        _log.info("%s: stopped, saved, and back in the queue", cell.name)
        return
    queue.beat(claim, heartbeat.progress)  # whoever has lost the cell ends here, and records nothing
    # The store first: a cell that the queue calls done and the store does not know yet looks like a lost record.
    run.finish(last.outcome, last.step)
    queue.complete(claim, last.outcome)
    _log.info("%s: %s at step %d", cell.name, last.outcome, last.step)


def _follow(events: Iterator[Event], run: CellRun, heartbeat: Heartbeat) -> Event | None:
    """Hands events to the tracker; returns the last one."""
    event: Event | None = None
    started = time.monotonic()
    for event in events:
        run.log(event.step, event.metrics, now=bool(event.images) or event.done)
        if event.images:
            run.log_images(event.step, event.images)
        shown = {name: value for name, value in event.metrics.items() if name in ("images_per_sec", "fid")}
        seconds = time.monotonic() - started
        heartbeat.progress = {**heartbeat.progress, **shown, "step": event.step, "seconds": seconds}
    return event


def main(arguments: list[str], trainer: Callable[..., Trainer] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ablations.worker", description="Started by ablations.run.")
    parser.add_argument("launch", type=Path, metavar="LAUNCH.json")
    parser.add_argument("token", help="tells this process from all others")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    launch = Launch.read(options.launch)
    stop = Stop(launch.launcher_pid)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    several = trainer is None and "TORCHELASTIC_RUN_ID" in os.environ
    if trainer is None:
        import torch

        from sagan.training import Trainer

        torch.set_num_threads(launch.threads)
        trainer = Trainer
    try:
        if several:
            from ablations.torchrun import work_together

            work_together(launch, options.token, options.device, stop)
        else:
            work(launch, options.token, options.device, stop, trainer)
    except Exception as error:
        if not is_full_disk(error):
            raise
        _log.error("stopped, because a disk is full: %s", error)
        return NO_ROOM
    return stop.status or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
