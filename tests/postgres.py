"""A PostgreSQL server of a test's own: its data in a temporary folder, reached on loopback only."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_FOLDERS = [Path("/usr/lib/postgresql"), Path("/usr/local/pgsql"), Path("/opt/homebrew/opt/postgresql")]


class Postgres:
    """`url("queue")` is a fresh database of that name."""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self._command, self._port, self._log = [*command, "-c", f"port={port}"], port, log
        self._made = set[str]()
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("wb") as output:
            self._server = subprocess.Popen(self._command, stdout=output, stderr=output)
        give_up = time.monotonic() + 120
        while not self.answers():
            assert self._server.poll() is None and time.monotonic() < give_up, self._log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)  # without waiting for its clients
            try:
                self._server.wait(20)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()

    def answers(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self._address("postgres"), connect_timeout=5).close()
            return True
        return False

    def url(self, name: str) -> str:
        if name not in self._made:
            self._made.add(name)
            import psycopg

            with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}".encode())
        return self._address(name).replace("postgresql://", "postgresql+psycopg://")

    def _address(self, name: str) -> str:
        return f"postgresql://tester@127.0.0.1:{self._port}/{name}"


def find(program: str) -> str | None:
    """On the path, or where Debian and others keep what their own scripts call."""
    found = (str(path) for folder in _FOLDERS for path in sorted(folder.glob(f"**/bin/{program}"), reverse=True))
    return shutil.which(program) or next(found, None)


@contextlib.contextmanager
def postgres_server(connections: int = 100) -> Iterator[Postgres]:
    """Skips the test, saying why, where there is no PostgreSQL or no driver for it."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install '.[postgres]'")
    initdb, postgres = find("initdb"), find("postgres")
    if initdb is None or postgres is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed")
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:  # in a short path: it holds a socket
        folder = Path(name)
        as_other = _as_other_than_root(folder)
        data, log = folder / "data", folder / "log"
        made = [*as_other, initdb, "-D", str(data), "-U", "tester", "--auth=trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(made, check=True, capture_output=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": folder,
            "max_connections": connections,
            "fsync": "off",  # nothing here outlives the machine
        }
        words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        server = Postgres([*as_other, postgres, "-D", str(data), *words], port, log)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _as_other_than_root(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root: the words that make a command run as somebody else, who owns `folder`."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("PostgreSQL does not run as root, and setpriv is not there to run it as nobody")
    import pwd

    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return [setpriv, f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
