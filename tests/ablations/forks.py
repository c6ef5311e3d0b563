"""Launchers and their training processes forked from a process that has imported everything, so that one starts in
milliseconds.

Importing torch and MLflow takes seconds: with a start each, forty kills would take minutes. Each child is a process of
its own that does what the command would, under a command line that says which: `Popen(["ablations.run", TRAINER, ...])`
and, from there, `Popen(["ablations.trainers", FOLDER])`. TRAINER is "real" or "fake".

In the environment of a launch, FAKE_HOST and FAKE_GRACE stand for fake_host.py, FAKE_PATIENCE for the seconds that it
waits for its tracking store, and FAKE_MEMORY_MIB for the memory that a training process may take beyond what it begins
with.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import importlib
import json
import os
import pickle
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

HERE = Path(__file__).parent
_ROOM = 4096  # bytes that the command line of a child may have
_ADDRESS = "FORK_SERVER"
_IMPORTED = (
    "ablations.launch",
    "ablations.trainers",
    "sagan.data.preparation",
    "fake_trainer",
    "mlflow.store.artifact.local_artifact_repo",
    "mlflow.store.tracking.sqlalchemy_store",
    "sagan.training",
    "torch._dynamo",  # which the first optimizer imports
)


@contextlib.contextmanager
def fork_server() -> Iterator[None]:
    """While it is open, Popen works, here and in the children, of whom none outlives it."""
    with tempfile.TemporaryDirectory(prefix="forks-") as folder:  # a short path: it holds a socket
        address = f"{folder}/socket"
        python_path = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
        own = {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", _ADDRESS: address}
        server = subprocess.Popen([sys.executable, __file__, "x" * _ROOM], env={**os.environ, **own})
        os.environ[_ADDRESS] = address
        try:
            give_up = time.monotonic() + 240
            while not os.path.exists(address):
                assert server.poll() is None and time.monotonic() < give_up, "the server of forks did not start"
                time.sleep(0.05)
            yield
        finally:
            del os.environ[_ADDRESS]
            server.kill()
            server.wait()
            for note in Path(folder).glob("child-*"):  # what failed tests left
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(note.name.removeprefix("child-")), signal.SIGKILL)


class Popen:
    """As much of subprocess.Popen as a launcher uses. The child is in a session of its own."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdout: IO[Any],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        job: str = "",
    ) -> None:
        wanted = {"command": list(command), "log": stdout.name, "cwd": str(cwd or Path.cwd()), "job": job}
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(os.environ[_ADDRESS])
        self._answers = self._socket.makefile("rw")
        self._answers.write(json.dumps({**wanted, "env": dict(env or os.environ)}) + "\n")
        self._answers.flush()
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._socket.settimeout(None)
            if timeout is not None and not _is_readable(self._socket, timeout):
                raise subprocess.TimeoutExpired("child", timeout)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._socket.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def forked_trainers() -> Iterator[None]:
    """Launches of this process have training processes from the server."""
    from ablations import trainers

    def start_process(folder: Path, known: Any, trainer: Any, threads: int) -> Popen:
        job = base64.b64encode(pickle.dumps((folder, known, os.getpid(), trainer))).decode()
        with (folder / trainers.LOG).open("ab") as log:
            command = ["ablations.trainers", str(folder)]
            return Popen(command, stdout=log, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, job=job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers, "start_server", lambda threads: None)
        patch.setattr(trainers, "start_process", start_process)
        yield


def living(what: str, cwd: Path) -> list[int]:
    """Process ids of the launchers ("ablations.run") or training processes ("ablations.trainers") in a folder, in order
    of birth."""
    found = []
    for file in Path(os.environ[_ADDRESS]).parent.glob("child-*"):
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            child, born = json.loads(file.read_text()), file.stat().st_ctime_ns
            if (child["command"][0], child["cwd"]) == (what, str(cwd)):
                found.append((born, int(file.name.removeprefix("child-"))))
    return [pid for _, pid in sorted(found)]


def _is_readable(connection: socket.socket, seconds: float) -> bool:
    return bool(select.select([connection], [], [], seconds)[0])


def _serve() -> None:
    """Until the process that started it is gone."""
    owner = os.getppid()
    for module in _IMPORTED:
        importlib.import_module(module)
    _draw_pictures()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # attendants leave nothing behind
    address = os.environ[_ADDRESS]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen(64)
        os.rename(f"{address}.new", address)  # it is there when it answers
        listener.settimeout(1.0)
        while os.getppid() == owner:
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                if os.fork() == 0:
                    listener.close()
                    _attend(connection)
                connection.close()


def _draw_pictures() -> None:
    """Those of the built-in data set at 32 px, which each process would draw for itself."""
    import torch

    from sagan.data import open_dataset
    from sagan.presets import PRESETS

    torch.set_num_threads(1)
    open_dataset(replace(PRESETS["embedded"].data, resolution=32))


def _attend(connection: socket.socket) -> None:
    """Forks one child, tells its pid, and its exit status once it has one."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.settimeout(None)
    try:
        wanted = json.loads(connection.makefile().readline())
    except ValueError:  # who asked was killed while it spoke
        os._exit(0)
    if (pid := os.fork()) == 0:
        connection.close()
        _live(wanted)
    draft = Path(os.environ[_ADDRESS]).with_name(f"draft-{pid}")
    draft.write_text(json.dumps(wanted))
    note = draft.rename(draft.with_name(f"child-{pid}"))
    _answer(connection, pid)
    _, status = os.waitpid(pid, 0)
    note.unlink()
    _answer(connection, os.waitstatus_to_exitcode(status))
    os._exit(0)


def _answer(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # who asked has been killed
        connection.sendall(f"{number}\n".encode())


def _live(wanted: dict[str, Any]) -> None:
    status = 1
    try:
        os.setsid()
        os.chdir(wanted["cwd"])
        log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(wanted["env"])
        _rename(wanted["command"])
        status = _obey(wanted["command"], wanted["job"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _obey(command: list[str], job: str) -> int:
    import torch
    from fake_host import pretend

    from ablations import launcher, trainers
    from ablations.tracking import store as tracking

    pretend()
    if command[0] == "ablations.run":
        from ablations.run import main

        _, trainer, *arguments = command
        launcher.TICK_SECONDS = 0.1
        tracking._PATIENCE_SECONDS = float(os.environ.get("FAKE_PATIENCE", tracking._PATIENCE_SECONDS))
        with forked_trainers():
            return main(arguments, trainer=_trainer(trainer))
    if room := os.environ.get("FAKE_MEMORY_MIB"):  # that a process may take beyond what it begins with
        most = psutil.Process().memory_info().vms + int(room) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    torch.set_num_threads(1)
    torch.set_num_threads = lambda _threads: None  # more would wait for each other on a busy machine
    try:
        trainers.train(*pickle.loads(base64.b64decode(job)))
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def _trainer(name: str) -> Any:
    if name == "fake":
        from fake_trainer import FakeTrainer

        return FakeTrainer
    from functools import partial

    from sagan.training import Trainer

    return partial(Trainer, checkpoint_every=2)


def _rename(command: Sequence[str]) -> None:
    """Writes `command` where the kernel looks for the words of this process's command line."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    words = "\0".join(command).encode()
    assert len(words) < end - start
    ctypes.memmove(start, words.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    _serve()
