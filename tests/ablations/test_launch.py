"""Whole launches in processes of their own, with a trainer that only counts; some of them are killed."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from nursery import crews_that_fork

from ablations.run import main
from ablations.study import read_study
from ablations.tracking import Store

WriteStudy = Callable[..., Path]
HERE = Path(__file__).parent
OPTIONS = ("--workers", "2")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def workers_import_this_checkout() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE.parents[1]))
        yield


class Lab:
    """A folder to launch studies in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launchers: list[subprocess.Popen[str]] = []

    def start(self, study: Path, *options: str) -> subprocess.Popen[str]:
        """A launch in a process of its own, which can be killed."""
        command = [sys.executable, str(HERE / "fake_run.py"), str(study), *OPTIONS, *options]
        pipe = subprocess.PIPE
        launcher = subprocess.Popen(command, cwd=self.folder, stdout=pipe, stderr=pipe, text=True)
        self.launchers.append(launcher)
        return launcher

    def run(self, study: Path, *options: str) -> tuple[int, str]:
        """A launch in this process, which has imported MLflow already, with its workers forked."""
        said = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(said), crews_that_fork():
            status = main([str(study), *OPTIONS, *options], program=("ablations.worker", "fake"))
        return status, said.getvalue()

    def workers(self) -> list[psutil.Process]:
        """Workers of this folder that are alive."""
        found = []
        for process in psutil.process_iter():
            try:
                if "fake_worker.py" in " ".join(process.cmdline()) and process.cwd() == str(self.folder):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def sittings(self) -> dict[str, list[int]]:
        """{cell: steps at which a process sat down to train it}."""
        files = self.folder.glob("runs/*/*/*/sittings.txt")
        return {
            f"{file.parts[-3]}/{file.parts[-2].split('-')[0]}": [
                int(line.split()[-1]) for line in file.read_text().splitlines()
            ]
            for file in files
        }

    def statuses(self, study: Path) -> list[str]:
        """Status of every run in the store, launches too."""
        store = Store(f"sqlite:///{self.folder}/mlflow.db")
        experiment_id = store.find_experiment(read_study(study))
        assert experiment_id is not None
        return [run.info.status for run in store.runs(experiment_id, "")]

    def wait_until(self, condition: Callable[[], bool], seconds: float = 240.0) -> None:
        give_up = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up, "it never happened"
            time.sleep(0.05)


@pytest.fixture
def lab(tmp_path: Path, forked: None) -> Iterator[Lab]:
    folder = tmp_path / "lab"
    folder.mkdir()
    lab = Lab(folder)
    yield lab
    for launcher in lab.launchers:  # what a failed test left; the workers notice
        launcher.kill()
        launcher.wait()


def short(write_study: WriteStudy, steps: int = 5, extra: str = "") -> Path:
    return write_study({"seeds:": f"set: {{optim.steps: {steps}{extra}}}\nseeds:"})


def results(lab: Lab, study: Path) -> list[tuple[str, str, float]]:
    """(cell, outcome, fid) of every recorded cell, in order."""
    store = Store(f"sqlite:///{lab.folder}/mlflow.db")
    experiment_id = store.find_experiment(read_study(study))
    assert experiment_id is not None
    runs = store.runs(experiment_id, "tags.kind = 'cell'")
    return sorted((run.info.run_name, run.data.tags.get("outcome"), run.data.metrics.get("fid", -1.0)) for run in runs)


ALL = [
    ("feat32/seed0", "finished", 100.0),
    ("feat32/seed1", "finished", 101.0),
    ("none/seed0", "finished", 100.0),
    ("none/seed1", "finished", 101.0),
]


def test_a_study_runs_to_its_end_and_started_again_runs_nothing(lab: Lab, write_study: WriteStudy) -> None:
    study = short(write_study)
    status, said = lab.run(study)
    assert status == 0, said
    assert "4 cells: 4 finished." in said and "mlflow ui" in said
    assert results(lab, study) == ALL
    assert lab.sittings() == {name: [0] for name, _, _ in ALL}

    started = time.monotonic()
    status, said = lab.run(study)
    assert (status, "Nothing to run." in said) == (0, True)
    assert time.monotonic() - started < 15
    assert set(lab.statuses(study)) == {"FINISHED"}

    (lab.folder / "optuna.db").unlink()  # the queue is not where results are
    assert "Nothing to run." in lab.run(study)[1]


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
    status, said = lab.run(study, "--seeds", "0")
    assert status == 1
    assert "raises/seed0 failed: RuntimeError: the fake trainer was told to fail" in said
    assert results(lab, study) == [
        ("collapses/seed0", "collapsed", -1.0),
        ("none/seed0", "finished", 100.0),
        ("raises/seed0", None, -1.0),
    ]
    assert "RUNNING" not in lab.statuses(study)
    status, said = lab.run(study, "--seeds", "0")
    assert (status, "Nothing to run." in said) == (1, True)
    assert lab.run(study, "--seeds", "0", "--only", "raises", "--retry-failed")[0] == 1
    assert lab.sittings()["raises/seed0"] == [0, 1]
    assert lab.sittings()["none/seed0"] == [0]


def test_killed_workers_are_replaced_and_every_cell_is_counted_once(lab: Lab, write_study: WriteStudy) -> None:
    study = short(write_study, steps=60)
    launcher = lab.start(study)
    lab.wait_until(lambda: len(lab.workers()) == 2 and len(lab.sittings()) == 2)
    for worker in lab.workers():
        worker.kill()
    out, error = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, out + error
    assert results(lab, study) == ALL
    assert set(lab.statuses(study)) == {"FINISHED"}


def test_after_a_killed_launcher_the_same_command_finishes(lab: Lab, write_study: WriteStudy) -> None:
    study = short(write_study, steps=80)
    launcher = lab.start(study)
    lab.wait_until(lambda: len(lab.sittings()) > 0)
    time.sleep(0.5)
    launcher.kill()
    launcher.communicate()
    lab.wait_until(lambda: not lab.workers())  # no orphan stays
    status, said = lab.run(study)
    assert status == 0, said
    assert results(lab, study) == ALL
    assert any(sittings[-1] > 0 for sittings in lab.sittings().values()), "a cell went on from its checkpoint"
    assert sorted(lab.statuses(study)) == ["FINISHED"] * 5 + ["KILLED"]


def test_an_interrupted_launch_saves_its_cells_and_says_so(lab: Lab, write_study: WriteStudy) -> None:
    study = short(write_study, steps=1000)
    for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        launcher = lab.start(study, "--only", "none/seed0")
        lab.wait_until(lambda: len(lab.workers()) == 1 and len(lab.sittings()) == 1)
        time.sleep(0.5)
        launcher.send_signal(number)
        out, _ = launcher.communicate(timeout=120)
        assert launcher.returncode == expected
        assert "The same command goes on from here" in out
        assert not lab.workers()
        assert set(lab.statuses(study)) == {"KILLED"}


def test_two_launchers_share_one_study(lab: Lab, write_study: WriteStudy) -> None:
    study = short(write_study, steps=20)
    both = [lab.start(study, "--workers", "1"), lab.start(study, "--workers", "1")]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert results(lab, study) == ALL
    assert all(sittings == [0] for sittings in lab.sittings().values())


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
    status, said = lab.run(study, str(other), "--seeds", "0")
    assert status == 1, said
    assert "other: 3 cells: 1 finished, 1 failed, 1 collapsed; 2 shared with position." in said
    assert results(lab, other) == results(lab, study)
    sat_down = {path.parts[-3] for path in (lab.folder / "runs" / "other").glob("*/*/sittings.txt")}
    assert sat_down == {"raises"}, "what failed is trained again, the rest is not"

    assert lab.run(other, "--seeds", "0", "--only", "none")[1].count("Nothing to run.") == 1
    status, said = lab.run(other, "--seeds", "0", "--only", "none", "--no-reuse")
    assert (status, "1 cells: 1 finished.\n" in said) == (0, True)
    assert len(list((lab.folder / "runs" / "other" / "none").glob("*/sittings.txt"))) == 1


SEARCH = """
    name: rates
    question: Which rates?
    preset: embedded
    seeds: [0]
    baseline: preset
    set: {optim.steps: 25}
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
    launcher = lab.start(study)
    lab.wait_until(lambda: len(lab.sittings()) == 2)
    launcher.kill()
    launcher.communicate()
    lab.wait_until(lambda: not lab.workers())
    status, said = lab.run(study)
    assert status == 0, said
    assert "5 cells: 5 finished." in said

    store = Store(f"sqlite:///{lab.folder}/mlflow.db")
    experiment_id = store.find_experiment(read_study(study))
    assert experiment_id is not None
    launches = store.runs(experiment_id, "tags.kind = 'launch' and attributes.status = 'FINISHED'")
    (launch,) = [run.info.run_id for run in launches]
    search, plan = (
        json.loads(Path(store.client.download_artifacts(launch, name)).read_text())
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
    assert "Nothing to run." in lab.run(study)[1]


def test_the_smoke_study_trains_for_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = HERE.parents[1] / "studies" / "smoke.yaml"
    assert main([str(path), "--only", "feat16", "--workers", "1"]) == 0, capsys.readouterr().out
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    experiment_id = store.find_experiment(read_study(path))
    assert experiment_id is not None
    (run,) = store.runs(experiment_id, "tags.kind = 'cell'")
    assert run.data.metrics["fid"] > 0 and "gamma/g16" in run.data.metrics
    assert {"data_fingerprint", "metric_fingerprint", "tile_px", "classes"} <= set(run.data.tags)
    names = {file.path for file in store.client.list_artifacts(run.info.run_id)}
    assert names == {"config.yaml", "samples", "attention", "generator.safetensors"}
