"""What a calibration computes, against a trainer whose parts take known times; and calibrations that end badly."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from rich.console import Console

from ablations import machine, tracking
from ablations.calibration import Calibration, Speed, calibrate, kind, makespan, measure
from ablations.machine import Team
from ablations.run import main
from ablations.study import read_study
from sagan.config import Config, override
from sagan.presets import PRESETS

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "studies" / "smoke.yaml"
EMBEDDED = PRESETS["embedded"]
OPENING, STEP, EVALUATION, SCORING_ANEW, SAVING = 3.0, 0.25, 8.0, 7.0, 0.5


class TimedTrainer:
    """Trains nothing, and takes the seconds above for it, on a clock of its own. The first opening takes 100 more."""

    device = "cpu"
    now = 0.0

    def __init__(self, config: Config) -> None:
        self.config = config
        self._pass(OPENING + (100.0 if TimedTrainer.now == 0 else 0.0))

    @staticmethod
    def _pass(seconds: float) -> None:
        TimedTrainer.now += seconds

    def run(self) -> Iterator[Any]:
        steps, every = self.config.optim.steps, self.config.eval.every
        samples = self.config.eval.num_samples / EMBEDDED.eval.num_samples
        try:
            yield SimpleNamespace(step=0, images={}, outcome=None)
            for step in range(1, steps + 1):
                self._pass(STEP + (5 if step == 1 else 0))  # a cold start
                images = {"samples": 1} if step % every == 0 or step == steps else {}
                self._pass(EVALUATION * samples if images else 0.0)
                if step == steps:
                    self._pass(SCORING_ANEW * samples)
                yield SimpleNamespace(step=step, images=images, outcome="finished" if step == steps else None)
        finally:
            self._pass(SAVING)


@pytest.fixture(autouse=True)
def clock_at_zero() -> None:
    TimedTrainer.now = 0.0


def measured(config: Config) -> tuple[Speed, float]:
    return measure(config, cast(Any, TimedTrainer), lambda: TimedTrainer.now)


def test_the_parts_of_a_cell_are_told_apart() -> None:
    speed, first_opening = measured(EMBEDDED)
    assert (speed.opening, speed.step, speed.evaluation) == (OPENING, STEP, EVALUATION)
    assert speed.ending == EVALUATION + SCORING_ANEW + SAVING
    assert first_opening == 100 + OPENING
    assert speed.memory_mib > 50


@pytest.mark.parametrize(("steps", "every"), [(2000, 250), (1999, 250), (10, 3), (5, 50)])
def test_the_estimate_of_a_cell_is_what_the_whole_cell_takes(steps: int, every: int) -> None:
    config = override(EMBEDDED, {"optim.steps": steps, "eval.every": every})
    speed, _ = measured(config)
    started = TimedTrainer.now
    for _ in TimedTrainer(config).run():
        pass
    assert speed.seconds(config) == pytest.approx(TimedTrainer.now - started - 5)  # but for the cold start


def test_more_samples_than_a_measurement_scores_are_scaled_up() -> None:
    speed, _ = measured(override(EMBEDDED, {"eval.num_samples": 12_000}))
    assert speed.evaluation == pytest.approx(10 * EVALUATION)


def test_a_trainer_that_diverges_gives_no_estimate() -> None:
    class Diverging(TimedTrainer):
        def run(self) -> Iterator[Any]:
            yield SimpleNamespace(step=0, images={}, outcome=None)
            yield SimpleNamespace(step=1, images={}, outcome="diverged")

    with pytest.raises(ValueError, match="diverged at step 1; lower optim.lr_g"):
        measure(EMBEDDED, cast(Any, Diverging), lambda: 0.0)


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


def test_a_study_takes_its_start_and_its_longest_queue() -> None:
    small, large = EMBEDDED, override(EMBEDDED, {"model.attention.at": [32]})
    parts = {"opening": 0.0, "evaluation": 0.0, "ending": 0.0, "gpu_mib": 0.0}
    speeds = {
        kind(small): Speed(step=0.1, memory_mib=900, **parts),
        kind(large): Speed(step=0.2, memory_mib=1000, **parts),
    }
    calibration = Calibration(10.0, speeds)
    assert calibration.seconds([small, large, small, large], 2) == 10 + 2 * 0.2 * EMBEDDED.optim.steps
    assert calibration.memory_mib == 1000


def test_configs_are_of_one_kind_only_if_they_do_the_same_work() -> None:
    same = {
        "optim.lr_g": 1e-5,
        "optim.steps": 7,
        "eval.every": 3,
        "model.attention.gamma": 1.0,
        "model.init": "orthogonal",
    }
    assert kind(override(EMBEDDED, same)) == kind(EMBEDDED)
    for change in ({"model.attention.at": [8]}, {"optim.d_steps": 2}, {"model.sn.g": False}, {"eval.num_samples": 50}):
        assert kind(override(EMBEDDED, change)) != kind(EMBEDDED)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


@pytest.fixture
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of a new store take seconds to make."""
    monkeypatch.setattr(tracking, "Store", lambda _uri: None)


def calibrated_by(script: str, num_cells: int = 3) -> Calibration:
    """Two processes that run `script`, for `num_cells` cells of different kinds."""
    cell = read_study(SMOKE).cells()[0]
    cells = [replace(cell, config=override(cell.config, {"optim.batch_size": 4 + n})) for n in range(num_cells)]
    return calibrate(cells, Team(2, 1, ("cpu",)), Console(quiet=True), program=(sys.executable, "-c", script))


FIGURES = """
import json, pathlib, sys
file = pathlib.Path(sys.argv[1])
assignment = json.loads(file.read_text())
me = float(file.parent.name.removeprefix("member"))
assert (assignment["device"], assignment["threads"]) == ("cpu", 1)
for turn, config in enumerate(assignment["configs"]):
    speed = {name: 0.0 for name in ("opening", "evaluation", "ending", "memory_mib", "gpu_mib")}
    found = {"kind": str(config["optim.batch_size"]), "speed": {"step": me + 1, **speed}}
    if turn == 0:
        found["start"] = 10 * me
    file.with_name(f"measured{turn}.json").write_text(json.dumps(found))
"""


@pytest.mark.usefixtures("no_store")
def test_every_kind_is_measured_and_every_process_is_busy_to_the_end(temporary: Path) -> None:
    calibration = calibrated_by(FIGURES)
    assert {name: speed.step for name, speed in calibration.speeds.items()} == {
        "4": 1.5,  # by the first process, and by the second while the first had the third kind
        "5": 2.0,
        "6": 1.0,
    }
    assert calibration.start == pytest.approx(5.0, abs=0.5)
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("no_store")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "import sys; sys.exit('eval.extractor: no such one')",
            "some steps, but one ended with: eval.extractor: no such one",
        ),
        ("import os; os.kill(os.getpid(), 9)", "most likely for want of memory; give fewer --workers"),
    ],
)
def test_a_measurement_that_fails_is_told_and_leaves_nothing(script: str, message: str, temporary: Path) -> None:
    with pytest.raises(ValueError, match=f"^--calibrate: .*{message}"):
        calibrated_by(script)
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("no_store")
def test_an_interrupted_calibration_ends_its_processes_and_leaves_nothing(temporary: Path) -> None:
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(SystemExit) as stopped:
        calibrated_by("import time; time.sleep(600)")
    assert stopped.value.code == 130
    assert not [child for child in psutil.Process().children() if "assignment.json" in child.cmdline()[-1]]
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
    assert re.search(r"About \d+ (s|min) on 1 worker .*, \d\.\d GiB of memory each, \d\.\d GiB in all", shown), shown
    assert list(work.iterdir()) == []
    assert list(temporary.glob("calibration-*")) == []  # torch keeps a folder of its own there
