"""The worker processes of a launch, and the signals that end it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType

from ablations.worker import NO_ROOM, Launch

Program = Sequence[str]  # a command that starts a worker

# glibc gives freed memory at the heap's end back to the kernel; a step frees and takes the same memory again, and some
# workers came into a state where they fetched all of it anew, zeroed, at each step: half as fast.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


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
        self.has_room = True  # as far as the workers that have left know
        self.last_log: Path | None = None

    def __len__(self) -> int:
        return len(self._members)

    @property
    def tokens(self) -> Collection[str]:
        """Of all workers so far, also of those that have left."""
        return self._place_of.keys()

    def start(self) -> None:
        token = f"worker-{uuid.uuid4().hex[:12]}"
        # Where fewest are: in turn at first, and then where one has died.
        place = min(self._places, key=[self._place_of[member] for member in self._members].count)
        threads = str(self._launch.threads)
        own = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        environment = {**_KEEP_MEMORY, **os.environ, **own}
        command = [*self._program, str(self._file), token, "--device", place]
        with (self._logs / f"{token}.log").open("wb") as log:
            self._members[token] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._place_of[token] = place

    def collect(self) -> None:
        """Forgets workers that have ended, and counts them."""
        for token, process in list(self._members.items()):
            if (status := process.poll()) is not None:
                self.has_room = self.has_room and status != NO_ROOM
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
