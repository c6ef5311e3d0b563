"""Training processes as users have them: forked from the server of the standard library, or started by torchrun."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from fake_trainer import FakeTrainer
from lab import wait_until

from ablations import trainers
from ablations.attempts import all_attempts
from ablations.run import main
from ablations.study import read_study
from ablations.tracking.store import Store
from sagan.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "studies" / "smoke.yaml"
SHARED = (str(SMOKE), "--only", "none", "--gpus-per-cell", "2", "--set", "optim.steps=100", "--set", "eval.every=20")


class Looking(FakeTrainer):
    """Writes down what it finds itself in."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        found = {
            "threads of the server": len(list(Path(f"/proc/{os.getppid()}/task").iterdir())),
            "has CUDA": torch.cuda.is_initialized(),
            "threads of torch": torch.get_num_threads(),
            "group": os.getpgid(0) == os.getpid(),
        }
        (self.directory / "found.json").write_text(json.dumps(found))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_is_forked_before_there_is_a_thread_or_a_cuda_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(SMOKE), "--workers", "1"], trainer=Looking) == 0
    found = [json.loads(file.read_text()) for file in tmp_path.glob("runs/*/*/*/*/found.json")]
    wanted = {"threads of the server": 1, "has CUDA": False, "threads of torch": 1, "group": True}
    assert len(found) == 2
    for one in found:
        assert one == wanted | {"threads of torch": one["threads of torch"]}


def processes(folder: Path) -> list[psutil.Process]:
    """Those that work in this folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    def start(*options: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "said").open("wb") as said:
            command = [sys.executable, "-m", "ablations.run", *(options or SHARED)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            return subprocess.Popen(
                command, cwd=tmp_path, stdout=said, stderr=said, env=environment, start_new_session=True
            )

    yield start
    for process in processes(tmp_path):
        process.kill()


def told(folder: Path) -> list[int]:
    return [record.step for attempt in all_attempts(folder / "runs" / "smoke") for record in attempt.read()[0]]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_cell_is_trained_by_two_processes_that_end_with_their_launcher_and_goes_on(
    launch: Callable[[], subprocess.Popen[bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = launch()
    wait_until(lambda: len(told(tmp_path)) > 5)
    first.kill()
    first.wait()
    wait_until(lambda: not processes(tmp_path), 10)

    second, before = launch(), len(told(tmp_path))
    wait_until(lambda: len(told(tmp_path)) > before + 2)
    (rank,) = [process for process in processes(tmp_path) if process.environ().get("RANK") == "1"]
    rank.kill()  # whose cell is given back, and claimed again
    wait_until(lambda: len(list(tmp_path.glob("runs/smoke/none/*/attempt-3"))) == 1)
    before = len(told(tmp_path))
    wait_until(lambda: len(told(tmp_path)) > before + 2)
    second.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert second.wait(60) == 130, (tmp_path / "said").read_text()
    assert time.monotonic() - began < 10 and not processes(tmp_path)
    saved = load_checkpoint(list(all_attempts(tmp_path / "runs" / "smoke"))[-1].folder)
    assert saved is not None and saved["processes"] == 2 and saved["step"] > 0

    assert launch().wait(240) == 0, (tmp_path / "said").read_text()
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    experiment_id = store.find_experiment(read_study(SMOKE))
    assert experiment_id is not None
    (run,) = store.runs(experiment_id, "tags.kind = 'cell'")
    assert (run.info.status, run.data.tags["last_step"], "fid" in run.data.metrics) == ("FINISHED", "100", True)

    other = tmp_path / "other.yaml"
    other.write_text(SMOKE.read_text().replace("name: smoke", "name: other"))
    with contextlib.chdir(tmp_path):
        assert main([str(other), *SHARED[1:]]) == 0
    assert "1 cells: 1 finished; 1 shared with smoke." in capsys.readouterr().out


def test_the_server_outlives_the_signals_that_end_a_launcher() -> None:
    trainers.start_server(1)
    server = psutil.Process(forkserver._forkserver._forkserver_pid)
    for number in (signal.SIGINT, signal.SIGTERM):
        server.send_signal(number)
    time.sleep(0.5)
    assert server.is_running() and server.status() != psutil.STATUS_ZOMBIE
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM}


@pytest.mark.slow
def test_no_process_outlives_a_server_that_was_killed() -> None:
    trainers.start_server(1)
    started = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(600,))
    started.start()
    process, own = trainers._Forked(started), psutil.Process(started.pid)
    psutil.Process(forkserver._forkserver._forkserver_pid).kill()
    wait_until(lambda: process.poll() is not None, 10)
    wait_until(lambda: not own.is_running() or own.status() == psutil.STATUS_ZOMBIE, 10)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_signal_to_the_whole_process_group_saves_the_cells(
    launch: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """As `timeout 2h` and Slurm send it: it reaches the server that training processes are forked from, too."""
    alone = (str(SMOKE), "--only", "none", "--set", "optim.steps=5000", "--set", "eval.every=5000")
    launcher = launch(*alone, "--workers", "1")
    wait_until(lambda: len(told(tmp_path)) > 3)
    os.killpg(launcher.pid, signal.SIGTERM)
    assert launcher.wait(60) == 143, (tmp_path / "said").read_text()
    wait_until(lambda: not processes(tmp_path), 5)
    (attempt,) = all_attempts(tmp_path / "runs" / "smoke")
    saved = load_checkpoint(attempt.folder)
    assert saved is not None and saved["step"] >= told(tmp_path)[-1] > 0


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--gpus-per-cell", "0"], "--gpus-per-cell: must be 1 or more, got 0"),
        (["--set", "optim.batch_size=5"], "optim.batch_size: must be a multiple of the 2 processes .*, got 5"),
        (
            ["--set", "optim.batch_size=6", "--set", "model.bn_groups=3"],
            "model.bn_groups: with 2 processes must divide that number or be a multiple of it, got 3",
        ),
        (["--launcher", "slurm", "--workers", "1"], "--launcher: must be local with --gpus-per-cell 2"),
        (["--dry-run", "--calibrate"], "--calibrate: must go without --gpus-per-cell"),
    ],
)
def test_what_several_processes_cannot_do_is_told_before_anything_is_written(
    options: list[str], rule: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "slurm" in options:
        options = [*options, "--storage", "postgresql+psycopg://h/q", "--tracking-uri", "http://h"]
    assert main([str(SMOKE), "--gpus-per-cell", "2", *options]) == 2
    assert re.search(rule, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
