"""A folder to launch studies in, with the processes of forks.py: what they do there, and what they leave."""

from __future__ import annotations

import json
import os
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import Popen, living
from mlflow.entities import Run

from ablations.attempts import all_attempts
from ablations.study import read_study
from ablations.tracking.store import Store
from sagan.checkpoint import load_checkpoint

_OF_THE_MACHINE = {"images_per_sec", "peak_memory_mib"}  # and not of the run
Point = tuple[str, int]  # metric, step
Results = dict[str, tuple[str | None, dict[Point, float], bytes]]


def wait_until(condition: Callable[[], Any], seconds: float = 240.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        time.sleep(0.03)


def sittings(folder: Path) -> dict[str, list[int]]:
    """{cell: steps at which a fake trainer began to train it in this folder, attempt after attempt}."""
    found: dict[str, list[int]] = {}
    for study in sorted(folder.glob("runs/*")):
        for attempt in all_attempts(study):
            file = attempt.folder / "sittings.txt"
            lines = file.read_text().splitlines() if file.exists() else []
            found.setdefault(attempt.cell.name, []).extend(int(line.split()[-1]) for line in lines)
    return {cell: begun for cell, begun in sorted(found.items()) if begun}


def steps(folder: Path) -> list[int]:
    """How far a fake trainer has come with each cell of this folder that it has saved."""
    return [load_checkpoint(file.parent)["step"] for file in folder.glob("runs/*/*/*/*/checkpoint.pt")]


def undisturbed(folder: Path, text: str, *options: str) -> Results:
    """The results of a study that nothing befell."""
    study = folder / "study.yaml"
    study.write_text(textwrap.dedent(text))
    lab = Lab(folder)
    assert lab.start(study, *options).wait(240) == 0, lab.said.read_text()
    return lab.results(study)


def assert_same_results(found: Results, wanted: Results) -> None:
    """Outcome, points, losses, logits and weights to the bit; scores but for their last bits.

    The library behind torch.linalg rounds differently with one thread than with two, and may itself take fewer than it
    is given.
    """
    assert found.keys() == wanted.keys()
    for cell, (outcome, points, weights) in wanted.items():
        assert (found[cell][0], found[cell][2] == weights) == (outcome, True), cell
        assert found[cell][1] == pytest.approx(points, rel=1e-12, nan_ok=True), cell
        for (name, step), value in points.items():
            is_score = not name.startswith(("loss", "logit", "r1"))
            assert is_score or found[cell][1][name, step] == value, (cell, name, step)


class Lab:
    def __init__(self, folder: Path, trainer: str = "real") -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.trainer = folder, trainer
        self.said = folder / "said.txt"
        self.uri = f"sqlite:///{folder}/mlflow.db"

    def start(self, study: Path, *options: str, **environment: str) -> Popen:
        """A launch, of which the newest says what it has to say in `said`."""
        with self.said.open("w") as said:
            command = ["ablations.run", self.trainer, str(study), *options]
            return Popen(command, cwd=self.folder, stdout=said, env={**os.environ, **environment})

    def run(self, study: Path, *options: str, **environment: str) -> tuple[int, str]:
        """Status of a launch, and what it said."""
        return self.start(study, *options, **environment).wait(240), self.said.read_text()

    def workers(self) -> list[int]:
        """The training processes."""
        return living("ablations.trainers", self.folder)

    def store(self) -> Store:
        return Store(self.uri)

    def runs(self, study: Path, kind: str) -> list[Run]:
        """Of the study's "cell"s or "variant"s, in order of their names."""
        store = self.store()
        experiment_id = store.find_experiment(read_study(study))
        assert experiment_id is not None
        return sorted(store.runs(experiment_id, f"tags.kind = '{kind}'"), key=lambda run: str(run.info.run_name))

    def store_contents(self, study: Path) -> dict[str, Any]:
        """All that the store has of each cell."""
        return {
            str(run.info.run_name): (run.info.status, run.info.end_time, run.data.tags, self._history(run))
            for run in self.runs(study, "cell")
        }

    def results(self, study: Path, steps: str = "") -> Results:
        """{cell: (outcome, the value of each metric at each step that counts, final weights)}, of cells of `steps`.

        The weights of a cell that another study in the store has trained lie with the run that it was copied from.
        """
        found = {}
        runs = [run for run in self.runs(study, "cell") if steps in ("", run.data.params["optim.steps"])]
        for run in runs:
            trained = run.data.tags.get("shared_run", run.info.run_id)
            weights = Path(self.store().client.download_artifacts(trained, "generator.safetensors"))
            found[str(run.info.run_name)] = run.data.tags.get("outcome"), self._history(run), weights.read_bytes()
        assert len(found) == len(runs), "a cell has two runs"
        return found

    def _history(self, run: Run) -> dict[Point, float]:
        client = self.store().client
        newest: dict[Point, tuple[int, float]] = {}
        for name in run.data.metrics.keys() - _OF_THE_MACHINE:
            for point in client.get_metric_history(run.info.run_id, name):
                place = name, point.step
                newest[place] = max(newest.get(place, (0, 0.0)), (point.timestamp, point.value))
        return {place: value for place, (_, value) in newest.items()}

    def told(self) -> list[dict[str, Any]]:
        """The lines of the journals of all attempts, whole ones only."""
        files = sorted(self.folder.glob("runs/*/*/*/*/journal.jsonl"))
        lines = [line for file in files for line in file.read_text().split("\n")[:-1]]
        return [json.loads(line) for line in lines]
