"""Cells per hour for two ways to use the cores, and what running a study costs beside training and evaluation.

The study that is run is the embedded preset's with a tenth of its steps, as many events and evaluations per cell,
and two cells per core, which take equally long: time in which one worker waits for another is no overhead. It is
extrapolated to the main job, twelve cells of the preset's length: ten times the seconds of the steps, the same
evaluations, and the same overhead for each cell, with start-up and end once per worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import pytest
import torch
from benchmarks.results import Results

from sagan.limits import usable_cores
from sagan.presets import PRESETS

HERE = Path(__file__).parent
SHORTER = 10
STUDY = """
name: short
question: What does a cell take?
preset: embedded
seeds: {seeds}
baseline: feat16
set: {{optim.steps: {steps}, eval.every: {every}, model.attention.at: [16]}}
factors:
  streams:
    feat16: {{}}
    other:  {{optim.streams: 1}}
"""
CELLS = 12
EVENTS_AN_HOUR = 360  # at 10 steps a second: one in 100 steps


@dataclass(frozen=True)
class Launch:
    workers: int
    started: float
    ended: float
    cells: list[dict[str, float]]  # what TimedTrainer noted of each

    @property
    def ends(self) -> float:
        """Seconds before the first cell begins and after the last has ended."""
        first, last = min(cell["began"] for cell in self.cells), max(cell["ended"] for cell in self.cells)
        return first - self.started + self.ended - last

    @property
    def between(self) -> float:
        """Seconds a cell that its steps and evaluations do not explain, with the way from one cell to the next."""
        first, last = min(cell["began"] for cell in self.cells), max(cell["ended"] for cell in self.cells)
        busy = sum(cell["steps"] + cell["evaluation"] for cell in self.cells)
        return ((last - first) * self.workers - busy) / len(self.cells)

    @property
    def overhead(self) -> float:
        """Seconds a cell of the main job."""
        return self.between + self.ends * self.workers / CELLS

    @property
    def full_cell(self) -> float:
        """Seconds that a cell of the main job takes a worker."""
        return self.overhead + mean(SHORTER * cell["steps"] + cell["evaluation"] for cell in self.cells)

    def of_a_cell(self, part: str) -> float:
        return mean(cell[part] for cell in self.cells)


def launch(folder: Path, workers: int, device: str = "cpu") -> Launch:
    folder.mkdir()
    preset, cores = PRESETS["embedded"], usable_cores()
    sizes = {"steps": preset.optim.steps // SHORTER, "every": preset.eval.every // SHORTER}
    (folder / "study.yaml").write_text(STUDY.format(seeds=list(range(cores)), **sizes))
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])
    command = [sys.executable, str(HERE / "timed_run.py"), "study.yaml", "--workers", str(workers), "--device", device]
    started = time.time()
    subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True)
    ended = time.time()
    cells = [json.loads(file.read_text()) for file in folder.glob("runs/short/*/*/*/seconds.json")]
    assert len(cells) == 2 * cores
    return Launch(workers, started, ended, cells)


@pytest.fixture(scope="module")
def one_thread_workers(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    return launch(tmp_path_factory.mktemp("studies") / "many", usable_cores())


def test_runner_overhead(one_thread_workers: Launch, results: Results) -> None:
    run = one_thread_workers
    share = run.overhead / run.full_cell
    parts = ", ".join(f"{part} {run.of_a_cell(part):.1f} s" for part in ("opening", "caller", "saving"))
    results.add(
        "runner overhead",
        f"main job, {run.workers} workers of one thread, extrapolated from a tenth of the steps",
        f"{run.overhead:.1f} s a cell: {parts}; start-up and end {run.ends:.0f} s a worker",
        f"{run.full_cell:.0f} s a cell in all",
        f"{share:.1%}",
        "< 5%",
        share < 0.05,
    )
    caller = run.of_a_cell("caller")
    hour = run.between + run.ends - caller + caller * EVENTS_AN_HOUR / run.of_a_cell("events")
    results.add(
        "runner overhead",
        "one cell of an hour at 10 steps a second",
        f"{hour:.1f} s",
        "3600 s",
        f"{hour / 3600:.2%}",
        "< 1%",
        hour < 36,
    )


@pytest.mark.skipif(usable_cores() < 2, reason="one core leaves nothing to choose")
def test_one_thread_workers_against_one_worker(one_thread_workers: Launch, results: Results, tmp_path: Path) -> None:
    cores = usable_cores()
    together = launch(tmp_path / "one", 1)
    many, one = cores * 3600 / one_thread_workers.full_cell, 3600 / together.full_cell
    results.add(
        "studies",
        f"cells per hour of the embedded preset on {cores} cores, extrapolated from a tenth of the steps",
        f"{cores} workers of one thread {many:.0f}",
        f"one worker of {cores} threads {one:.0f}",
        f"{many / one:.2f}x",
        "1.5x on 4 cores",
        many >= 1.5 * one if cores == 4 else None,
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_four_workers_on_one_gpu_against_one(results: Results, tmp_path: Path) -> None:
    four, one = (launch(tmp_path / str(workers), workers, "cuda:0") for workers in (4, 1))
    many, alone = 4 * 3600 / four.full_cell, 3600 / one.full_cell
    results.add(
        "studies, GPU",
        f"cells per hour of the embedded preset on one {torch.cuda.get_device_name()}, extrapolated as above",
        f"4 workers {many:.0f}",
        f"1 worker {alone:.0f}",
        f"{many / alone:.2f}x",
        "",
        None,
    )
