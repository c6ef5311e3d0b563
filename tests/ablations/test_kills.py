"""`kill -9` of training processes, launchers and both, at chosen moments, and at random soon after."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import Popen
from lab import Lab, assert_same_results, wait_until

STUDY = """
    name: kills
    question: What does it take to lose a cell?
    preset: embedded
    seeds: [0, 1]
    baseline: none
    set:
      data.resolution: 32
      model.width_g: 4
      model.width_d: 4
      model.bn_groups: 1
      optim.batch_size: 4
      optim.steps: 8
      eval.every: 4
      eval.num_samples: 32
      eval.standing_images: 8
    factors:
      attention:
        none:   {}
        feat16: {model.attention.at: [16]}
"""
KILLS = 40  # at least
COMMAND = ("--workers", "2", "--retry-failed", "--no-reuse")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked")]


def _files(lab: Lab, name: str) -> set[Any]:
    found = set()
    for file in lab.folder.glob(f"runs/*/*/*/*/{name}"):
        with contextlib.suppress(FileNotFoundError):  # it has just been renamed
            found.add((file, file.stat().st_ino))
    return found


def _trained(lab: Lab) -> list[dict[str, Any]]:
    return [line for line in lab.told() if "loss_d" in line["metrics"]]


# What is looked at: when something new appears there, the moment has come. Then how many seconds it may last.
MOMENTS: dict[str, tuple[Callable[[Lab], set[Any]], float]] = {
    "start-up": (lambda lab: set(lab.workers()), 0.3),
    "claim": (lambda lab: _files(lab, "attempt.json"), 0.1),
    "training": (lambda lab: {line["time"] for line in _trained(lab)}, 0.1),
    "evaluation": (lambda lab: {line["time"] for line in _trained(lab) if line["step"] % 4 == 3}, 0.3),
    "checkpoint": (lambda lab: _files(lab, ".checkpoint*") | _files(lab, "checkpoint*"), 0.02),
    "end": (lambda lab: _files(lab, "generator.safetensors"), 0.3),
}


def kill(lab: Lab, launcher: Popen, draw: random.Random, moment: str) -> int:
    """Waits for the moment, kills somebody, and returns how many; 0 where the launch ended before it came."""
    look, lasts = MOMENTS[moment]
    before = look(lab)
    wait_until(lambda: launcher.poll() is not None or look(lab) - before)
    time.sleep(draw.uniform(0.0, lasts))
    who = draw.choice(["worker", "worker", "worker", "launcher", "both"])
    workers = lab.workers()
    victims = [launcher.pid] if who == "launcher" else [draw.choice(workers)] if who == "worker" and workers else []
    victims = [launcher.pid, *workers] if who == "both" else victims
    if launcher.poll() is not None:
        return 0
    killed = 0
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(victim, signal.SIGKILL)
            killed += 1
    return killed


def test_after_forty_kills_at_random_moments_every_cell_is_counted_once_and_equals_an_undisturbed_one(
    write_study: Callable[..., Path], tmp_path: Path
) -> None:
    study = write_study(text=STUDY)
    undisturbed, lab = Lab(tmp_path / "undisturbed"), Lab(tmp_path / "lab")
    assert undisturbed.start(study, *COMMAND).wait(240) == 0, undisturbed.said.read_text()
    expected = undisturbed.results(study)
    assert [outcome for outcome, _, _ in expected.values()] == ["finished"] * 4

    draw, kills = random.Random(6), Counter[str]()
    rounds = 0
    while kills.total() < KILLS:
        rounds += 1
        study = write_study({"name: kills": f"name: kills{rounds}"}, STUDY)
        status = None
        while status != 0:
            # 1: some cell had lost its third process at one step, and the command says to try again
            assert status in (None, 1, -signal.SIGKILL), lab.said.read_text()
            launcher = lab.start(study, *COMMAND)
            while launcher.poll() is None and kills.total() < KILLS:
                moment = draw.choice(list(MOMENTS))
                kills[moment] += kill(lab, launcher, draw, moment)
            status = launcher.wait(240)
            wait_until(lambda: not lab.workers(), 10)  # they leave where nobody would tell what they do
        assert_same_results(lab.results(study), expected)
        rows = lab.runs(study, "variant")
        assert len({run.info.run_name for run in rows}) == len(rows), "a variant has two rows"
        assert {run.info.status for run in [*rows, *lab.runs(study, "cell")]} == {"FINISHED"}


def test_a_launcher_that_is_killed_while_it_makes_its_databases_can_be_started_again(
    write_study: Callable[..., Path], tmp_path: Path
) -> None:
    study, draw = write_study({"seeds: [0, 1]": "set: {optim.steps: 4}\nseeds: [0]"}), random.Random(7)
    lab = Lab(tmp_path / "lab", "fake")
    for _ in range(4):
        launcher = lab.start(study)
        wait_until(lambda: any(lab.folder.glob("mlflow.db*")))
        time.sleep(draw.uniform(0.0, 0.5))
        launcher.kill()
        launcher.wait()
    assert lab.start(study).wait(240) == 0, lab.said.read_text()
    assert len(lab.results(study)) == 2
