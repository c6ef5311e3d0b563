"""Workers on several hosts: folders of their own and names that tell them apart, one PostgreSQL and one MLflow
server. Some die."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest
from fake_trainer import FakeTrainer
from forks import forked_trainers
from lab import Lab, sittings, steps, wait_until
from mlflow_server import Server
from postgres import Postgres, postgres_server

from ablations.plan import Study
from ablations.queue import CellQueue, CellState
from ablations.run import main
from ablations.slurm import open_executor, submit
from ablations.study import read_study
from ablations.tracking.store import Store

WriteStudy = Callable[..., Path]
HERE = Path(__file__).parent
GRACE = 6.0  # seconds that a host may be silent
pytestmark = pytest.mark.slow


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def server(postgres: Postgres, tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder, postgres.url("store"))
    yield server
    server.stop()


class Host(Lab):
    """A folder, and a launcher or its like that takes itself to be on a host of that name."""

    def __init__(self, folder: Path, *words: object, **environment: str) -> None:
        super().__init__(folder, "fake")
        study, *options = words
        own = {"FAKE_HOST": folder.name, "FAKE_GRACE": str(GRACE)}
        self.process = self.start(Path(str(study)), *map(str, options), **own, **environment)

    def die(self) -> None:
        """As a host does whose power fails: all at once."""
        for process in (self.process.pid, *self.workers()):
            os.kill(process, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not self.workers())

    def trained(self) -> int:
        """How often a worker of it sat down to train a cell."""
        return sum(map(len, sittings(self.folder).values()))


def recorded(uri: str, study: Study) -> list[tuple[str, str, float]]:
    """(cell, outcome, fid) of every run of a cell, in order."""
    store = Store(uri)
    experiment_id = store.find_experiment(study)
    assert experiment_id is not None
    runs = store.runs(experiment_id, "tags.kind = 'cell'")
    return sorted((run.info.run_name, run.data.tags.get("outcome"), run.data.metrics.get("fid", -1.0)) for run in runs)


def rows(uri: str, study: Study) -> list[tuple[str, str, float]]:
    """(variant, status, n) of the rows of the study's table, in order."""
    store = Store(uri)
    experiment_id = store.find_experiment(study)
    assert experiment_id is not None
    found = store.runs(experiment_id, "tags.kind = 'variant'")
    return sorted((run.info.run_name, run.info.status, run.data.metrics["n"]) for run in found)


def test_workers_of_two_hosts_train_each_cell_once_though_one_host_and_some_workers_die(
    forked: None, postgres: Postgres, server: Server, write_study: WriteStudy, tmp_path: Path
) -> None:
    path = write_study({"seeds:": "set: {optim.steps: 5}\nseeds:", "[0, 1]": str(list(range(8)))})
    study = read_study(path)
    gate = tmp_path / "gate"  # until it is open all workers have a cell and none has ended one
    server.start()
    queue_url, store_url = postgres.url("queue"), server.uri
    words = (path, "--worker-only", "--workers", 4, "--storage", queue_url, "--tracking-uri", store_url)
    # Nobody has made anything yet.
    first, second = (Host(tmp_path / name, *words, FAKE_GATE=str(gate)) for name in ("first", "second"))
    wait_until(lambda: first.trained() == second.trained() == 4)
    with contextlib.closing(CellQueue(queue_url, study.name, study.cells())) as queue:
        for worker in first.workers()[:2]:
            os.kill(worker, signal.SIGKILL)  # noticed at once by those on the same host
        second.die()
        died = time.monotonic()

        def orphans() -> list[CellState]:
            return [state for state in queue.states() if _runs_on(state, "second")]

        assert len(orphans()) == 4
        gate.touch()
        wait_until(lambda: not orphans())
        assert GRACE / 2 < time.monotonic() - died < GRACE + 20
        assert first.process.wait(300) == 0, first.said.read_text()
        assert [state.state for state in queue.states()] == ["done"] * 16
    expected = sorted((cell.name, "finished", 100.0 + cell.seed) for cell in study.cells())
    assert recorded(store_url, study) == expected
    assert [row[:2] for row in rows(store_url, study)] == [(name, "FINISHED") for name in ("feat32", "feat64", "none")]
    assert first.trained() + second.trained() == 16 + 2 + 4, "nobody but the dead was followed by another"


def _runs_on(state: CellState, host: str) -> bool:
    return state.state == "running" and state.launcher is not None and state.launcher.host == host


def test_a_launch_whose_queue_stays_away_says_so_and_the_same_command_finishes(
    forked: None,
    postgres: Postgres,
    write_study: WriteStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ablations.launcher.TICK_SECONDS", 0.1)
    monkeypatch.setattr("ablations.storage.PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr("ablations.launcher.STOP_SECONDS", 1.0)
    # Both launches are in this process, so the second waits for the first one's heartbeat to be late.
    monkeypatch.setattr("ablations.launcher.CellQueue", partial(CellQueue, timeout_seconds=GRACE))
    path = write_study({"seeds:": "set: {optim.steps: 60}\nseeds:", "[0, 1]": "[0]"})
    command = [str(path), "--workers", "1", "--storage", postgres.url("queue")]

    def lose_it() -> None:
        wait_until(lambda: steps(tmp_path))
        postgres.stop()

    with ThreadPoolExecutor() as pool, forked_trainers():
        lost = pool.submit(lose_it)
        assert main(command, trainer=FakeTrainer) == 1
        lost.result()
    said = " ".join(capsys.readouterr().out.split())
    assert "position: not run to its end, because the queue's database does not answer (" in said
    postgres.start()
    with forked_trainers():
        assert main(command, trainer=FakeTrainer) == 0
    assert [row[1] for row in recorded(f"sqlite:///{tmp_path}/mlflow.db", read_study(path))] == ["finished"] * 2


def test_workers_alone_go_on_with_what_a_launch_has_left(forked: None, write_study: WriteStudy, tmp_path: Path) -> None:
    path = write_study({"seeds:": "set: {optim.steps: 5}\nseeds:"})
    study = read_study(path)
    stores = ("--storage", f"sqlite:///{tmp_path}/optuna.db", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    launcher = Host(tmp_path / "launcher", path, "--workers", 1, *stores, FAKE_GATE="never")
    wait_until(launcher.trained)
    launcher.process.terminate()
    assert launcher.process.wait(120) == 143
    there = Host(tmp_path / "there", path, "--worker-only", "--workers", 2, *stores)
    assert there.process.wait(300) == 0, there.said.read_text()
    assert len(recorded(stores[3], study)) == 4
    assert [row[0] for row in rows(stores[3], study)] == ["feat32", "feat64", "none"]
    again = Host(tmp_path / "there", path, "--worker-only", "--workers", 1, *stores)
    assert again.process.wait(300) == 0
    assert again.said.read_text().splitlines() == ["Nothing to run.", "4 cells: 4 finished."]


def test_a_job_that_slurm_is_about_to_end_saves_its_cell_and_is_requeued(
    write_study: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed: pip install '.[slurm]'")
    path, gate = write_study({"seeds:": "set: {optim.steps: 40}\nseeds:", "[0, 1]": "[0]"}), tmp_path / "gate"
    study = read_study(path)
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[1]))
    monkeypatch.setenv("FAKE_GATE", str(gate))
    monkeypatch.setenv("FAKE_GATE_STEP", "20")
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, str(HERE / "fake_run.py"), str(path), "--worker-only", "--workers", "1"]
    jobs = submit(open_executor(tmp_path / "slurm", on_gpu=False, cluster="local"), command, workers=2)
    wait_until(lambda: steps(tmp_path) == [20, 20])
    (runner,) = _runners(jobs[0]._process.pid)
    runner.send_signal(signal.SIGUSR2)  # what Slurm sends ahead of a time limit, or of a pre-emption

    def said() -> str:
        return "".join(file.read_text() for file in (tmp_path / "slurm").glob("*.out"))

    wait_until(lambda: "Requeued job" in said())
    gate.touch()
    wait_until(lambda: all(job.done() for job in jobs))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert recorded(uri, study) == sorted((cell.name, "finished", 100.0) for cell in study.cells())
    starts = sorted(start for cell in sittings(tmp_path).values() for start in cell)
    assert starts == [0, 0, 20], "one went on from where it was saved"


def _runners(controller: int) -> list[psutil.Process]:
    """The process that submitit runs a job in."""
    processes = psutil.Process(controller).children(recursive=True)
    return [process for process in processes if "submitit.core._submit" in process.cmdline()]


BAD = {
    "a queue in a file": ([], "--storage: must be a server that all nodes reach, got 'sqlite:///optuna.db'"),
    "a store in a file": (["--storage", "postgresql+psycopg://h/q"], "--tracking-uri: must be a server that all nodes"),
    "no number of jobs": (
        ["--storage", "postgresql+psycopg://h/q", "--tracking-uri", "http://h"],
        "--workers: must be a number of jobs",
    ),
    "no Slurm": (
        ["--storage", "postgresql+psycopg://h/q", "--tracking-uri", "http://h", "--workers", "2"],
        "--launcher slurm: ",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_nodes_cannot_share_is_not_submitted(
    case: str,
    write_study: WriteStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    options, message = BAD[case]
    assert main([str(write_study()), "--launcher", "slurm", *options]) == 2
    assert capsys.readouterr().err.startswith(message)
    search = HERE.parents[1] / "studies" / "ttur_search.yaml"
    assert main([str(search), "--worker-only", *options]) == 2
    assert "launcher proposes and runs trials" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["study.yaml"]
