"""The training processes of a launcher: each runs `sagan.train` on the folder of an attempt.

They are forked from a server process that has imported torch once (the standard library's forkserver), so that one
starts in milliseconds; a cell on several GPUs is trained by torchrun instead. Each has a session of its own, so that
Ctrl-C reaches the launcher alone, and ends within ten seconds of its launcher.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from ablations.attempts import LOG
from ablations.machine import KEEP_MEMORY

_IMPORTED = [__name__, "sagan.data.preparation", "sagan.metrics.extractor", "sagan.training", "torch._dynamo"]
_KILLED_SECONDS = 5.0  # for the kernel to end a process
_STOPPING = (signal.SIGINT, signal.SIGTERM)
Fingerprints = tuple[str, str]  # of data and metrics


class Trainers:
    """The training processes of one launcher.

    Each of `devices` is a device of torch, or with `processes` > 1 the numbers of GPUs ("0,1"), "" for a CPU.
    """

    def __init__(
        self, devices: Sequence[str], processes: int, threads: int, trainer: Callable[..., Any] | None = None
    ) -> None:
        self._devices, self._processes, self._threads, self._trainer = devices, processes, threads, trainer
        self._running: dict[Path, tuple[Process, str]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def next_device(self) -> str:
        """The device with the fewest processes: in turn at first, then where one has ended."""
        return min(self._devices, key=[device for _, device in self._running.values()].count)

    def machine(
        self, device: str, data_root: Path | None, inception_weights: Path | None, cache_dir: Path
    ) -> dict[str, Any]:
        """The options of sagan/run_folder.py for a run on `device`."""
        return {
            "device": device if self._processes == 1 else "cuda" if device else "cpu",
            "threads": max(1, self._threads // self._processes),
            "data_root": data_root and str(data_root),
            "inception_weights": inception_weights and str(inception_weights),
            "cache_dir": str(cache_dir),
        }

    def start(self, folder: Path, device: str, known: Collection[Fingerprints]) -> None:
        """Trains the run in `folder`; ends with EXIT_NOT_STARTED where its data and metrics are in `known`."""
        if self._processes == 1:
            process = start_process(folder, known, self._trainer, self._threads)
        else:
            cards = {"CUDA_VISIBLE_DEVICES": device} if device else {}
            process = _start_torchrun(folder, self._processes, {**_thread_limits(self._threads), **cards})
        self._running[folder] = process, device

    def ended(self) -> dict[Path, int]:
        """Statuses of the processes that have ended since the last call."""
        found = {
            folder: status for folder, (process, _) in self._running.items() if (status := process.poll()) is not None
        }
        for folder in found:
            del self._running[folder]
        return found

    def kill(self, folder: Path) -> None:
        """Kills the process of this folder, if it is running; it saves nothing."""
        if folder in self._running:
            process, _ = self._running.pop(folder)
            _kill(process)

    def stop(self, patience: float) -> None:
        """Asks all to save and leave; kills those that have not after `patience` seconds."""
        for process, _ in self._running.values():
            process.terminate()
        deadline = time.monotonic() + patience
        for process, _ in self._running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _kill(process)


def _kill(process: Process) -> None:
    """Ends a process and those that it started, as torchrun does."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait(_KILLED_SECONDS)


class _Forked:
    """A process of multiprocessing, with as much of subprocess.Popen as is used here."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self.pid: int = process.pid
        self._running: psutil.Process | None = None
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended already
            self._running = psutil.Process(process.pid)

    def poll(self) -> int | None:
        status: int | None = self._process.exitcode
        # If the server is killed (out of memory), all of its processes get this status, but they go on.
        if status == 255 and self._running is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._running.kill()
        return status

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (status := self.poll()) is None:
            raise subprocess.TimeoutExpired("a training process", timeout or 0.0)
        return status

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


Process = subprocess.Popen[bytes] | _Forked


def start_server(threads: int) -> None:
    """Starts the server that processes are forked from, unless it runs; it imports torch, which takes seconds.

    Called early, this is done while the launcher opens its stores. Processes have the environment of the first call.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(_IMPORTED)
    wanted = {**KEEP_MEMORY, **_thread_limits(threads), "PYTHONUNBUFFERED": "1"}
    wanted = {name: value for name, value in wanted.items() if name not in KEEP_MEMORY or name not in os.environ}
    before = {name: os.environ.get(name) for name in wanted}
    resource_tracker.ensure_running()  # before the signals are blocked, because its start unblocks them
    # The server must survive a signal to the process group: if it ends, all its processes seem to have ended.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    os.environ.update(wanted)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def start_process(
    folder: Path, known: Collection[Fingerprints], trainer: Callable[..., Any] | None, threads: int
) -> Process:
    """Fork a process that trains the run in `folder`."""
    start_server(threads)
    arguments = (folder, frozenset(known), os.getpid(), trainer)
    process = multiprocessing.get_context("forkserver").Process(target=train, args=arguments)
    process.start()
    return _Forked(process)


def _thread_limits(threads: int) -> dict[str, str]:
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))


def train(
    folder: Path, known: Collection[Fingerprints], launcher: int, trainer: Callable[..., Any] | None = None
) -> None:
    """What a forked process does; it ends in SystemExit with the status of `sagan.train`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)  # inherited from the server
    from sagan.train import main

    if os.getsid(0) != os.getpid():
        os.setsid()
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)

    def begin(training: Any) -> bool:
        # A run that is resumed is not replaced by a copy, which would be half of one run and half of another.
        return training.step > 0 or (training.data_fingerprint, training.metric_fingerprint) not in known

    sys.exit(main([str(folder), "--parent", str(launcher)], trainer, begin))


def _start_torchrun(folder: Path, processes: int, environment: dict[str, str]) -> Process:
    # Whatever the machine calls itself, torchrun's processes meet on the loopback interface.
    torchrun = ("torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={processes}")
    command = [sys.executable, "-m", *torchrun, "-m", "sagan.train", str(folder), "--parent", str(os.getpid())]
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**KEEP_MEMORY, **os.environ, **environment},
            start_new_session=True,
        )


class Interrupt:
    """Remembers the first SIGINT or SIGTERM; a second one raises KeyboardInterrupt.

    `status` is None while the launch may go on, 0 once `seconds` have passed, 128 + the number of a signal.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._signal: int | None = None
        self._deadline = math.inf if seconds is None else time.monotonic() + seconds

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = 128 + number

    @property
    def status(self) -> int | None:
        return 0 if self._signal is None and time.monotonic() > self._deadline else self._signal
