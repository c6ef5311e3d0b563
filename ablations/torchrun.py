"""A worker of several processes that train each cell together: the first claims and logs, the others follow it.

The launcher under torchrun starts its one worker with torchrun, too, so that a worker that died is started anew.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from ablations.worker import Launch, Stop, work
from sagan.distributed import World, join
from sagan.training import Event, Trainer

_RUN = "run"
_OUT_OF_STEP = 1  # exit status: torchrun then ends the other processes


def program(device: str) -> tuple[str, ...]:
    """The command that starts a worker of as many processes as torchrun started here; ValueError for too many."""
    processes = int(os.environ["LOCAL_WORLD_SIZE"])
    if device.startswith("cuda") and processes > torch.cuda.device_count():
        raise ValueError(
            f"--nproc-per-node: must be the number of this machine's GPUs at most ({torch.cuda.device_count()}), "
            f"got {processes}"
        )
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    return (*torchrun, "-m", "ablations.worker")


def work_together(launch: Launch, token: str, device: str, stop: Stop) -> None:
    """Trains cells until none waits, or the first process's `stop` says so."""
    torch.set_num_threads(max(1, launch.threads // int(os.environ["LOCAL_WORLD_SIZE"])))
    device = join(device)
    if World.here().rank > 0:
        _follow(device)
    else:
        lead = _Lead(stop)
        work(launch, token, device, stop, partial(_Leader, lead))
        if stop.status == _OUT_OF_STEP:
            return
        lead.tell(None)
    dist.destroy_process_group()


class _Lead:
    """What the first process tells the others: arguments of a Trainer to build, `_RUN`, and None at the end."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self.running: Generator[Event] | None = None

    def tell(self, message: object) -> None:
        if self.running is not None:  # its caller may have left it at an error
            self.running.close()
        World.here().from_first(message)

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """After an error in here nobody knows where the others are: the worker ends, and is started anew."""
        try:
            yield
        except Exception:
            self._stop.status = _OUT_OF_STEP
            raise


class _Leader(Trainer):
    """The first process's Trainer: the others build the same, and run it when it runs."""

    def __init__(self, lead: _Lead, *arguments: Any, **options: Any) -> None:
        self._lead = lead
        with lead.in_step():
            lead.tell((arguments, options))
            super().__init__(*arguments, **options)

    def run(self, stop: Callable[[], bool] = lambda: False) -> Generator[Event]:
        self._lead.tell(_RUN)
        self._lead.running = self._run_in_step(stop)
        return self._lead.running

    def _run_in_step(self, stop: Callable[[], bool]) -> Generator[Event]:
        with self._lead.in_step():
            yield from super().run(stop)


def _follow(device: str) -> None:
    training: Trainer | None = None
    while (message := World.here().from_first(None)) is not None:
        if message != _RUN:
            arguments, options = message
            training = Trainer(*arguments, **{**options, "device": device})
        elif training is not None:
            for _ in training.run():
                pass
