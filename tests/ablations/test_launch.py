"""Whole launches in processes of their own, with a trainer that only counts; some of them are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Lab, sittings, steps, wait_until

from ablations.study import read_study
from ablations.tracking.store import Store

WriteStudy = Callable[..., Path]
ROOT = Path(__file__).parents[2]
TWO, ONE = ("--workers", "2"), ("--workers", "1")
pytestmark = pytest.mark.slow


@pytest.fixture
def lab(tmp_path: Path, forked: None) -> Lab:
    return Lab(tmp_path / "lab", "fake")


def short(write_study: WriteStudy, steps: int = 5) -> Path:
    return write_study({"seeds:": f"set: {{optim.steps: {steps}}}\nseeds:"})


def results(lab: Lab, study: Path) -> list[tuple[str, str, float]]:
    """(cell, outcome, fid) of every recorded cell, in order."""
    runs = lab.runs(study, "cell")
    return sorted((run.info.run_name, run.data.tags.get("outcome"), run.data.metrics.get("fid", -1.0)) for run in runs)


def statuses(lab: Lab, study: Path) -> list[str]:
    """Status of every cell's run in the store."""
    return [run.info.status for run in lab.runs(study, "cell")]


ALL = [
    ("feat32/seed0", "finished", 100.0),
    ("feat32/seed1", "finished", 101.0),
    ("none/seed0", "finished", 100.0),
    ("none/seed1", "finished", 101.0),
]


def test_a_study_runs_to_its_end_and_started_again_runs_nothing(lab: Lab, write_study: WriteStudy) -> None:
    study = short(write_study)
    status, said = lab.run(study, *TWO)
    assert status == 0, said
    assert (
        "4 cells: 4 finished." in said
        and "mlflow ui, then\nhttp://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=table\n" in said
    )
    assert results(lab, study) == ALL
    assert sittings(lab.folder) == {name: [0] for name, _, _ in ALL}

    started = time.monotonic()
    status, said = lab.run(study, *TWO)
    assert (status, "Nothing to run." in said) == (0, True)
    assert time.monotonic() - started < 15
    assert set(statuses(lab, study)) == {"FINISHED"}

    (lab.folder / "optuna.db").unlink()  # the queue is not where results are
    assert "Nothing to run." in lab.run(study, *TWO)[1]


def test_each_cell_meets_its_own_fate_and_a_failed_one_is_run_again_when_asked(
    lab: Lab, write_study: WriteStudy
) -> None:
    study = write_study(
        {
            "seeds:": "set: {optim.steps: 4}\nseeds:",
            "feat32: {model.attention.at: [32]}": "raises: {optim.d_steps: 7}",
            "feat64: {model.attention.at: [64]}": "collapses: {optim.d_steps: 9}",
        }
    )
    status, said = lab.run(study, *TWO, "--seeds", "0")
    assert status == 1
    assert "raises/seed0 failed: RuntimeError: the fake trainer was told to fail" in said
    assert results(lab, study) == [
        ("collapses/seed0", "collapsed", -1.0),
        ("none/seed0", "finished", 100.0),
        ("raises/seed0", None, -1.0),
    ]
    assert "RUNNING" not in statuses(lab, study)
    status, said = lab.run(study, *TWO, "--seeds", "0")
    assert (status, "Nothing to run." in said) == (1, True)
    assert lab.run(study, *TWO, "--seeds", "0", "--only", "raises", "--retry-failed")[0] == 1
    assert sittings(lab.folder)["raises/seed0"] == [0, 1]
    assert sittings(lab.folder)["none/seed0"] == [0]


def test_killed_workers_are_replaced_and_every_cell_is_counted_once(
    lab: Lab, write_study: WriteStudy, tmp_path: Path
) -> None:
    study, gate = short(write_study), tmp_path / "gate"
    launcher = lab.start(study, *TWO, FAKE_GATE=str(gate))
    wait_until(lambda: len(lab.workers()) == 2 and len(sittings(lab.folder)) == 2)
    for worker in lab.workers():
        os.kill(worker, signal.SIGKILL)
    gate.touch()
    assert launcher.wait(240) == 0, lab.said.read_text()
    assert results(lab, study) == ALL
    assert set(statuses(lab, study)) == {"FINISHED"}
    assert sorted(map(len, sittings(lab.folder).values())) == [1, 1, 2, 2]


def test_after_a_killed_launcher_the_same_command_finishes(lab: Lab, write_study: WriteStudy) -> None:
    study = short(write_study, steps=60)
    launcher = lab.start(study, *TWO)
    wait_until(lambda: any(steps(lab.folder)))
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not lab.workers(), 10)  # no orphan stays
    status, said = lab.run(study, *TWO)
    assert status == 0, said
    assert results(lab, study) == ALL
    assert any(starts[-1] > 0 for starts in sittings(lab.folder).values()), "a cell went on from its checkpoint"
    assert statuses(lab, study) == ["FINISHED"] * 4


def test_an_interrupted_launch_saves_its_cells_and_says_so(lab: Lab, write_study: WriteStudy) -> None:
    study = short(write_study, steps=1000)
    for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        before = sum(steps(lab.folder))
        launcher = lab.start(study, *TWO, "--only", "none/seed0")
        wait_until(lambda before=before: len(lab.workers()) == 1 and sum(steps(lab.folder)) > before)
        launcher.send_signal(number)
        assert launcher.wait(120) == expected
        assert "The same command goes on from here" in lab.said.read_text()
        assert not lab.workers()
        assert set(statuses(lab, study)) == {"KILLED"}
    (first, second), (saved,) = sittings(lab.folder)["none/seed0"], steps(lab.folder)
    assert first == 0 < second < saved


def test_two_launchers_share_one_study(lab: Lab, write_study: WriteStudy) -> None:
    study = short(write_study, steps=20)
    both = [lab.start(study, *ONE), lab.start(study, *ONE)]
    assert [process.wait(240) for process in both] == [0, 0], lab.said.read_text()
    assert results(lab, study) == ALL
    assert all(starts == [0] for starts in sittings(lab.folder).values())


def test_studies_run_one_after_another_and_share_what_they_have_in_common(lab: Lab, write_study: WriteStudy) -> None:
    study = write_study(
        {
            "seeds:": "set: {optim.steps: 4}\nseeds:",
            "feat32: {model.attention.at: [32]}": "raises: {optim.d_steps: 7}",
            "feat64: {model.attention.at: [64]}": "collapses: {optim.d_steps: 9}",
        }
    )
    other = study.with_name("other.yaml")
    other.write_text(study.read_text().replace("name: position", "name: other"))
    status, said = lab.run(study, *TWO, str(other), "--seeds", "0")
    assert status == 1, said
    assert "other: 3 cells: 1 finished, 1 failed, 1 collapsed; 2 shared with position." in said
    assert results(lab, other) == results(lab, study)
    sat_down = {path.parts[-4] for path in (lab.folder / "runs" / "other").glob("*/*/*/sittings.txt")}
    assert sat_down == {"raises"}, "what failed is trained again, the rest is not"

    assert lab.run(other, *TWO, "--seeds", "0", "--only", "none")[1].count("Nothing to run.") == 1
    status, said = lab.run(other, *TWO, "--seeds", "0", "--only", "none", "--no-reuse")
    assert (status, "1 cells: 1 finished.\n" in said) == (0, True)
    assert len(list((lab.folder / "runs" / "other" / "none").glob("*/*/sittings.txt"))) == 1


SEARCH = """
    name: rates
    question: Which rates?
    preset: embedded
    seeds: [0]
    baseline: preset
    set: {optim.steps: 5, optim.ttur: true}
    search:
      seed: 100
      trials: 3
      fields:
        optim.lr_g: {low: 1e-4, high: 2e-3, log: true}
"""


def test_a_search_whose_launcher_is_killed_goes_on_and_confirms_its_best_trial(
    lab: Lab, write_study: WriteStudy
) -> None:
    study = write_study(text=SEARCH)
    launcher = lab.start(study, *TWO, FAKE_GATE="never")
    wait_until(lambda: len(sittings(lab.folder)) == 2)
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not lab.workers())
    status, said = lab.run(study, *TWO)
    assert status == 0, said
    assert "5 cells: 5 finished." in said

    (baseline,) = [run.info.run_id for run in lab.runs(study, "variant") if run.info.run_name == "preset"]
    search, plan = (
        json.loads(Path(lab.store().client.download_artifacts(baseline, name)).read_text())
        for name in ("search.json", "plan.json")
    )
    fids = {name: fid for name, _, fid in results(lab, study)}
    assert {f"{trial['variant']}/seed100": trial["value"] for trial in search["trials"]} == {
        name: fid for name, fid in fids.items() if name.startswith("trial")
    }
    assert fids[f"{search['best']}/seed100"] == min(fid for name, fid in fids.items() if name.startswith("trial"))
    names = [variant["name"] for variant in plan["variants"]]
    assert names == ["preset", "best", "trial00", "trial01", "trial02"]
    changes = {variant["name"]: variant["changes"] for variant in plan["variants"]}
    assert changes["best"] == changes[search["best"]]
    assert fids["preset/seed0"] == 100.0
    assert fids["best/seed0"] == pytest.approx(fids[f"{search['best']}/seed100"] - 100)
    assert "Nothing to run." in lab.run(study, *TWO)[1]


def test_the_smoke_study_trains_for_real(tmp_path: Path) -> None:
    """On the very commands that users and launches give, in processes that have imported nothing."""
    path = ROOT / "studies" / "smoke.yaml"
    command = [sys.executable, "-m", "ablations.run", str(path), "--only", "feat16", *ONE]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    experiment_id = store.find_experiment(read_study(path))
    assert experiment_id is not None
    (run,) = store.runs(experiment_id, "tags.kind = 'cell'")
    assert run.data.metrics["fid"] > 0 and "gamma/g16" in run.data.metrics
    assert {"data_fingerprint", "metric_fingerprint", "tile_px", "classes"} <= set(run.data.tags)
    names = {file.path for file in store.client.list_artifacts(run.info.run_id)}
    assert names == {"samples", "attention", "images", "generator.safetensors"}
