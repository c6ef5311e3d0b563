"""A worker that stands still for longer than the grace period (SIGSTOP), and goes on (SIGCONT)."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
from fake_trainer import Event, FakeTrainer
from lab import Lab, undisturbed, wait_until
from test_kills import MOMENTS, STUDY

from ablations import queue
from ablations.queue import CellQueue
from ablations.study import read_study
from ablations.tracking import Store
from ablations.worker import Launch, work

GRACE = 3.0  # seconds
COMMAND = ("--workers", "1", "--only", "none/seed0")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked")]


def freeze(lab: Lab, worker: int) -> None:
    """Stops it where it holds no lock of a database, for which everybody would wait."""
    while True:
        os.kill(worker, signal.SIGSTOP)
        with contextlib.suppress(filelock.Timeout, sqlite3.OperationalError):
            with filelock.FileLock(lab.folder / "optuna.db.lock", timeout=0.1):
                for name in ("optuna.db", "mlflow.db"):
                    with contextlib.closing(sqlite3.connect(lab.folder / name, timeout=0.1)) as connection:
                        connection.execute("BEGIN IMMEDIATE")
            return
        os.kill(worker, signal.SIGCONT)
        time.sleep(0.01)


def sittings(lab: Lab) -> int:
    return sum(line["kind"] == "start" for line in lab.told())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, forked: None) -> dict[str, Any]:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), STUDY, *COMMAND)


@pytest.mark.parametrize("moment", ["training", "checkpoint"])
def test_a_frozen_workers_cell_is_left_to_it_on_its_host_taken_over_from_another_and_counted_once(
    write_study: Callable[..., Path], tmp_path: Path, expected: dict[str, Any], moment: str
) -> None:
    study, lab = write_study(text=STUDY), Lab(tmp_path / "lab")
    first = lab.start(study, *COMMAND, FAKE_HOST="first", FAKE_GRACE=str(GRACE))
    look, _ = MOMENTS[moment]
    before = look(lab)
    wait_until(lambda: look(lab) - before)
    (frozen,) = lab.workers()
    freeze(lab, frozen)
    time.sleep(1.5 * GRACE)
    assert sittings(lab) == 1, "a process that is there is not taken for dead"

    second = lab.start(study, *COMMAND, FAKE_HOST="second", FAKE_GRACE=str(GRACE))
    assert second.wait(240) == 0, lab.said.read_text()
    assert (first.poll(), lab.workers()) == (None, [frozen])
    assert sittings(lab) > 1
    os.kill(frozen, signal.SIGCONT)
    assert first.wait(240) == 0
    assert lab.results(study) == expected
    assert [run.info.status for kind in ("cell", "launch") for run in lab.runs(study, kind)] == ["FINISHED"] * 3


def test_a_worker_that_fails_after_it_has_lost_its_cell_leaves_it_to_the_next_one(
    write_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(write_study({"seeds: [0, 1]": "seeds: [0]"}))
    storage, uri = f"sqlite:///{tmp_path}/optuna.db", f"sqlite:///{tmp_path}/mlflow.db"
    experiment_id = Store(uri).open_experiment(study)
    elsewhere = CellQueue(storage, study.name, cells := study.cells("none"), grace=0.0)
    elsewhere.enqueue(recorded=())

    class Late(FakeTrainer):
        def run(self, stop: Callable[[], bool]) -> Iterator[Event]:
            monkeypatch.setattr(queue, "_host", lambda: "elsewhere")
            wait_until(elsewhere.reap)
            assert elsewhere.claim(queue.Worker.here("another"))
            yield Event(1, {"loss_g": 1.0})
            raise RuntimeError("too late to matter")

    launch = Launch(storage, uri, experiment_id, "parent", study.name, tuple(cells), tmp_path, 0, 1, reuse=False)
    work(launch, "late", "cpu", stop=False, trainer=Late)
    (state,) = elsewhere.states()
    assert (state.state, state.worker.token) == ("running", "another")
    (run,) = Store(uri).runs(experiment_id, "tags.kind = 'cell'")
    assert "error" not in run.data.tags
