"""A worker of several processes that train each cell together: the first claims and logs, the others follow it.

The launcher under torchrun starts its one worker with torchrun, too, so that a worker that died is started anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import psutil
import torch
import torch.distributed as dist

from ablations.worker import Launch, Stop, work
from sagan.config import Config
from sagan.distributed import World, join
from sagan.training import Event, Trainer

_log = logging.getLogger(__name__)
_RUN = "run"
_OUT_OF_STEP = 1  # exit status: torchrun then ends the other processes
_FAILED = "failed"  # key of what a process that failed leaves for the first one to report
_PATIENCE = timedelta(seconds=5)  # with torchrun
_DYING_SECONDS = 2.0  # from a broken connection to a process that is gone


def program(device: str, configs: Sequence[Config]) -> tuple[str, ...]:
    """The command that starts a worker of as many processes as torchrun started here.

    Raises ValueError where these cannot be had, or cannot share a batch of `configs`.
    """
    processes = int(os.environ["LOCAL_WORLD_SIZE"])
    if os.environ["WORLD_SIZE"] != os.environ["LOCAL_WORLD_SIZE"]:
        raise ValueError(
            f"--nnodes: must be 1, got {os.environ['WORLD_SIZE']} processes, {processes} of them here; let each "
            f"machine's torchrun train cells of its own, with one --storage (README, Cloud hosts)"
        )
    if device.startswith("cuda:"):
        raise ValueError(
            f"--device: must be cuda under torchrun, a card for each process, got {device}; CUDA_VISIBLE_DEVICES "
            f"chooses among them"
        )
    if device == "cuda" and processes > torch.cuda.device_count():
        raise ValueError(
            f"--nproc-per-node: must be the number of this machine's GPUs at most ({torch.cuda.device_count()}), "
            f"got {processes}"
        )
    for config in configs:
        config.check_shared(processes)
    torchrun = (sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}")
    here = ("--standalone", "--local-addr=127.0.0.1")  # whatever the machine calls itself
    return (*torchrun, *here, "-m", "ablations.worker")


def work_together(launch: Launch, token: str, device: str, stop: Stop) -> None:
    """Trains cells until none waits, or the first process's `stop` says so."""
    torch.set_num_threads(max(1, launch.threads // int(os.environ["LOCAL_WORLD_SIZE"])))
    device = join(device)
    pids = World.here().gather(os.getpid())
    if World.here().rank > 0:
        _follow(device)
    else:
        lead = _Lead(stop, [psutil.Process(pid) for pid in pids[1:]])
        work(launch, token, device, stop, partial(_Leader, lead))
        if lead.is_lost:
            return
        lead.tell(None)
    dist.destroy_process_group()


def _board() -> Any:
    """Where processes leave word; torchrun keeps it, so it outlives them. RuntimeError where torchrun is gone."""
    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(*where, is_master=False, timeout=_PATIENCE)  # type: ignore[attr-defined]


def _word() -> str | None:
    with contextlib.suppress(RuntimeError):
        board = _board()
        if board.check([_FAILED]):
            return str(board.get(_FAILED).decode())
    return None


class _Lead:
    """What the first process tells the others: arguments of a Trainer to build, `_RUN`, and None at the end."""

    def __init__(self, stop: Stop, others: Sequence[psutil.Process]) -> None:
        self._stop, self._others = stop, others
        self.running: Generator[Event] | None = None
        self.is_lost = False  # where the others are

    def tell(self, message: object) -> None:
        if self.running is not None:  # its caller may have left it at an error
            self.running.close()
        World.here().broadcast(message)

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """After an error in here nobody knows where the others are: the worker ends, and is started anew.

        An error of another process fails the cell in its own words; one that was killed takes the worker with it, whose
        cell goes back to the queue.
        """
        try:
            yield
        except Exception as error:
            self.is_lost, self._stop.status = True, _OUT_OF_STEP
            # As a broken connection is, of gloo or of NCCL.
            if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
                if word := _word():
                    raise RuntimeError(word) from error
                if self._has_lost_one():
                    _log.warning("a process of this worker was killed; all of them leave")
                    raise SystemExit(_OUT_OF_STEP) from error
            raise

    def _has_lost_one(self) -> bool:
        give_up = time.monotonic() + _DYING_SECONDS
        while not any(map(_is_gone, self._others)):
            if time.monotonic() > give_up:
                return False
            time.sleep(0.05)
        return True


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class _Leader(Trainer):
    """The first process's Trainer: the others build the same, and run it when it runs."""

    def __init__(self, lead: _Lead, *arguments: Any, **options: Any) -> None:
        self._lead = lead
        with lead.in_step():
            lead.tell((arguments, options))
            super().__init__(*arguments, **options)

    def run(self, stop: Callable[[], bool] = lambda: False) -> Generator[Event]:
        self._lead.running = self._run_in_step(stop)
        return self._lead.running

    def _run_in_step(self, stop: Callable[[], bool]) -> Generator[Event]:
        with self._lead.in_step():
            World.here().broadcast(_RUN)
            yield from super().run(stop)


def _follow(device: str) -> None:
    training: Trainer | None = None
    try:
        while (message := World.here().broadcast(None)) is not None:
            if message != _RUN:
                arguments, options = message
                training = None  # its memory is the next one's
                training = Trainer(*arguments, **{**options, "device": device})
            elif training is not None:
                for _ in training.run():
                    pass
    except Exception as error:
        with contextlib.suppress(RuntimeError):
            _board().set(_FAILED, f"process {World.here().rank}: {type(error).__name__}: {error}")
        raise
