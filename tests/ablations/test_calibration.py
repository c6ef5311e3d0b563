"""What a calibration computes, from journals whose parts take known times; and calibrations that end badly."""

from __future__ import annotations

import multiprocessing.util
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_trainer import Event, FakeTrainer
from forks import forked_trainers
from lab import wait_until
from rich.console import Console

from ablations import machine
from ablations.calibration import EVALUATED, STEPS, Calibration, calibrate, kind, speed_of
from ablations.dry_run import makespan
from ablations.machine import WorkerPool
from ablations.run import main
from ablations.study import read_study
from sagan.config import Config, override
from sagan.journal import Record
from sagan.presets import PRESETS

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "studies" / "smoke.yaml"
EMBEDDED = PRESETS["embedded"]
STARTED, OPENING, STEP, EVALUATION, SCORING_ANEW = 1000.0, 3.0, 0.25, 8.0, 7.0


def journalled(config: Config, has_best: bool = True, told_every: int = 1) -> list[Record]:
    """The journal of a run that takes the seconds above, and five more for its first step, which is always told."""
    samples = config.eval.num_samples / EMBEDDED.eval.num_samples
    images = config.optim.batch_size * config.optim.d_steps
    now = STARTED + OPENING
    records = [Record(now, 0)]
    for step in range(1, config.optim.steps + 1):
        seconds = STEP + (5 if step == 1 else 0)
        metrics = {"images_per_sec": images / seconds}
        now += seconds
        is_last = step == config.optim.steps
        if step % config.eval.every == 0 or is_last:
            metrics["peak_memory_mib"] = 100.0 + step
            now += EVALUATION * samples
        if is_last and has_best:
            metrics["best/step"] = step
            now += SCORING_ANEW * samples
        if step % told_every == 0 or step == 1 or "peak_memory_mib" in metrics:
            records.append(Record(now, step, metrics, status="finished" if is_last else None))
    return records


SHORT = {"optim.steps": STEPS, "eval.every": EVALUATED}


@pytest.mark.parametrize("told_every", [1, 3])
def test_the_parts_of_a_cell_are_told_apart(told_every: int) -> None:
    speed = speed_of(EMBEDDED, STARTED, journalled(override(EMBEDDED, SHORT), told_every=told_every))
    assert (speed.opening, speed.evaluation) == pytest.approx((OPENING, EVALUATION))
    assert speed.step == pytest.approx(STEP)
    assert speed.ending == pytest.approx(EVALUATION + SCORING_ANEW)
    assert speed.memory_mib == 100 + STEPS


@pytest.mark.parametrize(("steps", "every"), [(2000, 250), (1999, 250), (10, 3), (5, 50)])
def test_the_estimate_of_a_cell_is_what_the_whole_cell_takes(steps: int, every: int) -> None:
    config = override(EMBEDDED, {"optim.steps": steps, "eval.every": every, "optim.d_steps": 2})
    speed = speed_of(config, STARTED, journalled(override(config, SHORT)))
    whole = journalled(config)[-1].time - STARTED - 5  # but for the cold start
    assert Calibration(0.0, {kind(config): speed}).cell_seconds(config) == pytest.approx(whole)


def test_more_samples_than_a_measured_run_scores_are_scaled_up() -> None:
    config = override(EMBEDDED, {"eval.num_samples": 12_000})
    speed = speed_of(config, STARTED, journalled(override(config, {**SHORT, "eval.num_samples": 2000})))
    assert speed.evaluation == pytest.approx(EVALUATION * 12_000 / EMBEDDED.eval.num_samples)


def test_a_run_that_is_too_short_to_have_a_best_is_taken_to_have_one() -> None:
    speed = speed_of(EMBEDDED, STARTED, journalled(override(EMBEDDED, SHORT), has_best=False))
    assert speed.ending == pytest.approx(2 * EVALUATION)


def test_a_run_that_diverges_gives_no_estimate() -> None:
    records = [Record(STARTED, 0), Record(STARTED, 1, status="diverged")]
    with pytest.raises(ValueError, match="diverged at step 1; lower optim.lr_g"):
        speed_of(EMBEDDED, STARTED, records)


@pytest.mark.parametrize(
    ("seconds", "workers", "expected"),
    [
        ([3, 1, 1, 4], 1, 9),
        ([3, 1, 1, 4], 2, 6),  # one worker: 3; the other: 1, 1, 4
        ([1, 1, 4, 3], 2, 5),  # 1, 4 and 1, 3
        ([5, 5, 5], 2, 10),
        ([5, 2], 8, 5),
    ],
)
def test_cells_are_worked_off_in_order_by_whoever_is_free(seconds: list[float], workers: int, expected: float) -> None:
    assert makespan(seconds, workers) == expected


def test_configs_are_of_one_kind_only_if_they_do_the_same_work() -> None:
    same = {
        "optim.lr_g": 1e-5,
        "optim.streams": 1,
        "optim.steps": 7,
        "eval.every": 3,
        "eval.endpoint": 2,
        "model.attention.gamma": 1.0,
        "model.init": "orthogonal",
    }
    assert kind(override(EMBEDDED, same)) == kind(EMBEDDED)
    for change in ({"model.attention.at": [8]}, {"optim.d_steps": 2}, {"model.sn.g": False}, {"eval.num_samples": 50}):
        assert kind(override(EMBEDDED, change)) != kind(EMBEDDED)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    multiprocessing.util.get_temp_dir()  # before the change, and kept: its sockets need a short path
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


class _Trainer(FakeTrainer):
    """The number of a run, which is that of its folder, sets its speed."""

    def __init__(self, config: Config, seed: int, directory: Path, **places: Any) -> None:
        super().__init__(config, seed, directory, **places)
        assert (str(places["device"]), os.environ["OMP_NUM_THREADS"]) == ("cpu", "1")

    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        batch, number = self.config.optim.batch_size, int(self.directory.name.rpartition("-")[2])
        steps = self.config.optim.steps
        metrics = {"images_per_sec": batch / (batch + number), "peak_memory_mib": 50.0}
        for step in range(steps + 1):
            yield Event(step, metrics, outcome="finished" if step == steps else None)


class _Failing(FakeTrainer):
    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        raise ValueError("eval.extractor: no such one")


class _Killed(FakeTrainer):
    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield Event(0, {})


class _Sleeping(FakeTrainer):
    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        Path(os.environ["SLEEPING"], str(os.getpid())).touch()
        time.sleep(600)
        yield Event(0, {})


@pytest.fixture
def forking(forked: None) -> Iterator[None]:
    with forked_trainers():
        yield


def calibrated_by(trainer: type[FakeTrainer], num_cells: int = 3) -> Calibration:
    """Two runs at once, for `num_cells` cells of different kinds."""
    cell = read_study(SMOKE).cells()[0]
    cells = [replace(cell, config=override(cell.config, {"optim.batch_size": 4 + n})) for n in range(num_cells)]
    return calibrate(cells, WorkerPool(2, 1, ("cpu",)), Console(quiet=True), trainer=trainer)


def test_every_kind_is_measured_and_every_worker_is_busy_to_the_end(forking: None, temporary: Path) -> None:
    calibration = calibrated_by(_Trainer)
    # Runs 0 to 3 measure kinds 4, 5, 6 and, to fill the round, 4 again.
    assert sorted(speed.step for speed in calibration.speeds.values()) == pytest.approx([(4 + 7) / 2, 5 + 1, 6 + 2])
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (_Failing, "for some steps, but ValueError: eval.extractor: no "),
        (_Killed, "most likely for lack of memory; give fewer --workers"),
    ],
)
def test_a_run_that_fails_is_told_and_leaves_nothing(
    trainer: type[FakeTrainer], message: str, forking: None, temporary: Path
) -> None:
    with pytest.raises(ValueError, match=f"^--calibrate: .*{message}"):
        calibrated_by(trainer)
    assert list(temporary.iterdir()) == []


def test_an_interrupted_calibration_ends_its_processes_and_leaves_nothing(
    forking: None, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeping = tmp_path / "sleeping"
    sleeping.mkdir()
    monkeypatch.setenv("SLEEPING", str(sleeping))

    def interrupt() -> None:
        wait_until(lambda: len(list(sleeping.iterdir())) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell starts its jobs in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(SystemExit) as stopped:
            calibrated_by(_Sleeping)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 130
    assert not any(psutil.pid_exists(int(note.name)) for note in sleeping.iterdir())
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_a_calibration_measures_the_real_thing_and_writes_nothing(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    assert main([str(SMOKE), "--only", "none", "--dry-run", "--calibrate"]) == 0
    shown = capsys.readouterr().out
    assert re.search("Calibrating 1 kind of cell on 1 worker of 1 thread on cpu", shown), shown
    assert re.search(r"About [\d.]+ (s|min) on 1 worker .*, \d\.\d GiB of memory each, \d\.\d GiB in all", shown), shown
    assert list(work.iterdir()) == []
    assert list(temporary.glob("calibration-*")) == []  # torch keeps a folder of its own there
