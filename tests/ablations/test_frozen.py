"""A launcher that is stopped for longer than the grace period (SIGSTOP), and continues (SIGCONT)."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest
from fake_trainer import Event, FakeTrainer
from forks import forked_trainers
from lab import Lab, Results, assert_same_results, undisturbed, wait_until
from test_kills import MOMENTS, STUDY

from ablations import queue
from ablations.attempts import all_attempts
from ablations.queue import CellQueue
from ablations.run import main
from ablations.study import read_study
from ablations.tracking.store import Store

GRACE = 3.0  # seconds
COMMAND = ("--workers", "1", "--only", "none/seed0")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked")]


def freeze(lab: Lab, launcher: int) -> None:
    """Stops it where it holds no lock of a database, for which everybody would wait."""
    while True:
        os.kill(launcher, signal.SIGSTOP)
        with contextlib.suppress(filelock.Timeout, sqlite3.OperationalError):
            with filelock.FileLock(lab.folder / "optuna.db.lock", timeout=0.1):
                for name in ("optuna.db", "mlflow.db"):
                    with contextlib.closing(sqlite3.connect(lab.folder / name, timeout=0.1)) as connection:
                        connection.execute("BEGIN IMMEDIATE")
            return
        os.kill(launcher, signal.SIGCONT)
        time.sleep(0.01)


def attempts(lab: Lab) -> int:
    return len(list(lab.folder.glob("runs/*/*/*/attempt-*")))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, forked: None) -> Results:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), STUDY, *COMMAND)


@pytest.mark.parametrize("trainer_too", [True, False], ids=["with its training process", "alone"])
@pytest.mark.parametrize("moment", ["training", "checkpoint"])
def test_a_frozen_launchers_cell_is_taken_over_from_another_host_and_counted_once(
    write_study: Callable[..., Path], tmp_path: Path, expected: Results, moment: str, trainer_too: bool
) -> None:
    study, lab = write_study(text=STUDY), Lab(tmp_path / "lab")
    first = lab.start(study, *COMMAND, FAKE_HOST="first", FAKE_GRACE=str(GRACE))
    look, _ = MOMENTS[moment]
    before = look(lab)
    wait_until(lambda: look(lab) - before)
    (training,) = lab.workers()
    if trainer_too:
        os.kill(training, signal.SIGSTOP)
    freeze(lab, first.pid)
    second = lab.start(study, *COMMAND, FAKE_HOST="second", FAKE_GRACE=str(GRACE))
    assert second.wait(240) == 0, lab.said.read_text()
    assert first.poll() is None
    assert attempts(lab) == (2 if trainer_too else 1), "what is trained to its end is recorded, and not trained again"
    told = lab.store_contents(study)
    os.kill(first.pid, signal.SIGCONT)
    if trainer_too:
        assert lab.workers() == [training]
        os.kill(training, signal.SIGCONT)
    assert first.wait(240) == 0
    assert lab.workers() == []
    assert lab.store_contents(study) == told, "it records nothing"
    assert_same_results(lab.results(study), expected)
    assert {run.info.status for run in lab.runs(study, "cell")} == {"FINISHED"}


class Late(FakeTrainer):
    """Fails once there is a file "late" in the current folder."""

    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        yield Event(1, {"loss_g": 1.0})
        wait_until(Path("late").exists)
        raise RuntimeError("too late to matter")


def test_a_run_that_fails_after_its_launcher_has_lost_the_cell_leaves_it_to_the_next_one(
    write_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_study({"seeds: [0, 1]": "seeds: [0]"})
    study = read_study(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ablations.launcher.TICK_SECONDS", 0.1)
    elsewhere = CellQueue(f"sqlite:///{tmp_path}/optuna.db", study.name, study.cells("none"), timeout_seconds=0.0)
    another = queue.LauncherProcess("elsewhere", 1, "another")

    def take_over() -> None:
        wait_until(lambda: any(attempt.read()[0] for attempt in all_attempts(tmp_path / "runs" / study.name)))
        wait_until(elsewhere.release_stale)
        claim = elsewhere.claim(another)
        assert claim is not None
        (tmp_path / "late").touch()
        wait_until(
            lambda: any(attempt.upload_state.is_lost for attempt in all_attempts(tmp_path / "runs" / study.name))
        )
        elsewhere.fail(claim, "of the other one")

    thread = threading.Thread(target=take_over)
    thread.start()
    with forked_trainers():
        main([str(path), "--workers", "1", "--only", "none"], trainer=Late)
    thread.join()
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    experiment_id = store.find_experiment(study)
    assert experiment_id is not None
    for run in store.runs(experiment_id, "tags.kind = 'cell'"):
        assert "error" not in run.data.tags
    (state,) = elsewhere.states()
    assert (state.state, state.error) == ("failed", "of the other one")
