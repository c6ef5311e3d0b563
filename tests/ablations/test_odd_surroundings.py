"""A folder with an odd name, no home, a clock that jumps, and stores of other versions: fine, or one clear message."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver
from pathlib import Path

import pytest
from fake_trainer import FakeTrainer
from lab import sittings
from mlflow import MlflowClient
from mlflow.entities import Run
from told import begin, tell

from ablations.plan import Cell
from ablations.queue import CellQueue, LauncherProcess
from ablations.run import main
from ablations.study import read_study
from ablations.tracking.sending import Sender
from ablations.tracking.store import Store
from reports.build import main as build
from reports.loading import load_results
from reports.store import Store as Reader

WriteStudy = Callable[..., Path]
HERE = Path(__file__).parent
STUDY = HERE.parents[1] / "studies" / "smoke.yaml"
HOUR = 3600.0
MAD_CLOCK = f"""
import itertools, time
jumps, real = itertools.cycle((0.0, {HOUR}, -{HOUR}, {HOUR}, 0.0, -{HOUR})), time.time
time.time = lambda: real() + next(jumps)
"""


def launch(folder: Path, *options: str) -> tuple[int, str]:
    """Status and what was said, of a launch in this process with its training processes in theirs."""
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main([str(STUDY), "--workers", "1", *options], trainer=FakeTrainer)
    return status, said.getvalue()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which both cells of the smoke study were trained, as badly placed as can be: launcher and training
    processes have no home, and their clocks jump by an hour at each look."""
    folder = tmp_path_factory.mktemp("lab") / "Größe und % 'x' #1"
    site = folder.with_name("site")
    folder.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(MAD_CLOCK)
    jumps, real = itertools.cycle((0.0, HOUR, -HOUR)), time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{HERE.parents[1]}{os.pathsep}{site}")
        patch.setattr(time, "time", lambda: real() + next(jumps))
        patch.delenv("HOME", raising=False)
        forkserver._forkserver._stop()  # it keeps the surroundings that it was started in
        status, said = launch(folder)
        assert status == 0, said
        forkserver._forkserver._stop()
    yield folder


def test_an_odd_folder_without_a_home_and_with_a_mad_clock_gets_its_runs_and_its_report(odd: Path) -> None:
    with contextlib.chdir(odd):
        assert build(["--format", "md,csv"]) == 0
        (results,) = load_results(Reader())
    assert list(results.cells["state"]) == ["finished", "finished"]
    assert (results.cells["seconds"] >= 0).all(), "a run that ended before it began"
    assert [(picture.variant, picture.kind) for picture in results.pictures] == [
        (variant, kind) for variant in ("none", "feat16") for kind in ("samples", "attention")
    ]
    assert results.question == "Does everything run from end to end?", "the plan was found"
    assert {path.name for path in odd.iterdir()} >= {"mlflow.db", "mlruns", "optuna.db", "runs", "reports"}
    assert {path.name for path in odd.parent.iterdir()} == {odd.name, "site"}, "nothing lies beside the folder"
    status, said = launch(odd)
    assert (status, "Nothing to run." in said) == (0, True)


def test_a_terminal_without_the_characters_of_a_name_gets_escapes(odd: Path, tmp_path: Path) -> None:
    """As under PYTHONIOENCODING=ascii."""
    study = tmp_path / "Größe.yaml"
    study.write_text(STUDY.read_text().replace("end to end?", "Anfang bis zum Schluß?"))
    for options in (["--dry-run"], []):
        said = io.BytesIO()
        terminal = io.TextIOWrapper(said, encoding="ascii", write_through=True)
        with contextlib.chdir(odd), contextlib.redirect_stdout(terminal):
            assert main([str(study), "--workers", "1", *options], trainer=FakeTrainer) == 0
        assert (b"bis zum Schlu\\xdf?" in said.getvalue()) == ("--dry-run" in options)


@pytest.fixture
def old(odd: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may change."""
    folder = tmp_path / "old"
    shutil.copytree(odd, folder)
    return folder


@pytest.mark.parametrize("name", ["a%20b", "was?"])
def test_a_folder_whose_name_a_url_would_change_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    status, said = launch(folder)
    assert status == 2
    assert said.startswith("--storage: must be in a folder whose path has no ?") and said.count("\n") == 1
    assert list(tmp_path.rglob("*")) == [folder]


def test_points_and_ends_come_one_after_another_whatever_the_clock_does(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two points at one step the newer counts, and a process that resumes a run replays steps."""
    store = Store(f"sqlite:///{old}/mlflow.db")
    study = read_study(STUDY)
    experiment, cell = store.open_experiment(study), study.at_seeds([7]).cells()[0]
    now = time.time()
    for jump, value in ((HOUR, 1.0), (-HOUR, 2.0)):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        attempt = begin(tmp_path, cell)
        tell(attempt, 1, {"loss_d": value})
        tell(attempt, 2, {"loss_d": value + 10})
        store.send(experiment, attempt, has_ended=True)
    run_id = attempt.upload_state.run_id
    assert run_id is not None and not attempt.has_unsent
    points = store.client.get_metric_history(run_id, "loss_d")
    stamps = [point.timestamp for point in sorted(points, key=lambda point: (point.value % 10, point.step))]
    assert stamps == sorted(set(stamps))
    with contextlib.chdir(old):
        reader = Reader()
        (ours,) = [found for found in reader.runs() if found.id == run_id]
        assert ours.end is not None and ours.end >= ours.start
        assert list(reader.histories([ours])["value"]) == [2.0, 12.0]


def test_a_store_of_an_older_version_is_read_as_far_as_it_goes(old: Path) -> None:
    client, experiment, _ = opened(old)
    for kind in ("variant", "cell"):  # that say nothing more
        client.create_run(experiment, tags={"kind": kind})
    with sqlite3.connect(old / "mlflow.db") as connection:
        connection.execute("delete from tags where key in ('git_commit', 'device', 'classes', 'groups', 'updates')")
    with sqlite3.connect(old / "optuna.db") as connection:
        connection.execute("delete from trial_user_attributes where key = 'deaths'")
        connection.execute("delete from trial_user_attributes where trial_id = 1 and key = 'cell'")
    for options in ((), ("--dry-run",), ("--retry-failed",)):
        status, said = launch(old, *options)
        assert status == 0, said
        assert ("Nothing to run." in said) == ("--dry-run" not in options)
    with contextlib.chdir(old):
        assert build(["--format", "md"]) == 0
        (results,) = load_results(Reader())
    assert list(results.cells["state"]) == ["finished", "finished"]


def test_a_queue_of_an_older_version_is_worked_off(tmp_path: Path) -> None:
    url, cells = f"sqlite:///{tmp_path}/optuna.db", read_study(STUDY).cells()
    with contextlib.closing(CellQueue(url, "smoke", cells, timeout_seconds=-1.0)) as queue:
        assert queue.enqueue({}) == 2
        claim = queue.claim(LauncherProcess.here())
        assert claim is not None
        with sqlite3.connect(tmp_path / "optuna.db") as connection:
            connection.execute("delete from trial_user_attributes where key = 'deaths'")
            connection.execute("update trial_user_attributes set value_json = '{\"pid\": 1}' where key = 'worker'")
        assert queue.living().keys() == {claim.cell.key}, "who wrote less than we do is judged by silence"
        assert [cell.key for cell in queue.release_stale()] == [claim.cell.key]
        with sqlite3.connect(tmp_path / "optuna.db") as connection:
            connection.execute("delete from trial_user_attributes where key = 'worker'")
        claimed: list[Cell] = []
        while again := queue.claim(LauncherProcess.here()):
            claimed.append(again.cell)
            queue.complete(again, "finished")
        assert {cell.key for cell in claimed} == {cell.key for cell in cells}
        assert [state.state for state in queue.states()] == ["done", "done"]


MLFLOW, OPTUNA = ("--tracking-uri", "mlflow.db"), ("--storage", "optuna.db")


@pytest.mark.parametrize(
    ("option", "file", "version", "message"),
    [
        (*MLFLOW, "451aebb31d03", "was made by another version of MLflow"),
        (*MLFLOW, "ffffffffffff", "run `mlflow db upgrade`"),
        (*OPTUNA, "v0.9.0.a", "was made by another version of Optuna"),
        (*OPTUNA, "v99.0.0.a", "was made by another version of Optuna"),
    ],
)
def test_tables_of_another_version_are_one_message(
    old: Path, option: str, file: str, version: str, message: str
) -> None:
    with sqlite3.connect(old / file) as connection:
        connection.execute("update alembic_version set version_num = ?", [version])
    runs = sorted((old / "runs").rglob("*"))
    status, said = launch(old)
    assert status == 2, said
    assert said.startswith(f"{option}: ") and message in said and said.count("\n") == 1, said
    assert sorted((old / "runs").rglob("*")) == runs


def test_the_queue_and_the_store_are_never_one_database(old: Path) -> None:
    status, said = launch(old, "--storage", "sqlite:///mlflow.db")
    assert status == 2 and said.startswith("--storage: must be another database than --tracking-uri")
    status, said = launch(old, "--storage", "sqlite:///mlflow.db", "--tracking-uri", "sqlite:///other.db")
    assert status == 2 and said.startswith("--storage: must be a database of its own") and "is MLflow's" in said
    assert not (old / "other.db").exists()


def opened(folder: Path, file: str = "mlflow.db") -> tuple[MlflowClient, str, list[Run]]:
    """A client of the store, the experiment of the smoke study, and the runs of its cells."""
    client = Store(f"sqlite:///{folder}/{file}").client
    experiment = client.get_experiment_by_name("smoke").experiment_id
    return client, experiment, client.search_runs([experiment], "tags.kind = 'cell'")


def cells(folder: Path, file: str = "mlflow.db") -> dict[str, tuple[str | None, list[tuple[str, int, float]]]]:
    """{cell: (outcome, its points)}."""
    client, _, runs = opened(folder, file)
    found = {}
    for run in runs:
        histories = (client.get_metric_history(run.info.run_id, name) for name in run.data.metrics)
        points = sorted((point.key, point.step, point.value) for history in histories for point in history)
        found[f"{run.data.tags['variant']}/seed{run.data.tags['seed']}"] = run.data.tags.get("outcome"), points
    return found


DEEDS: dict[str, Callable[[MlflowClient, str, str], None]] = {
    "rename the experiment": lambda client, experiment, _run: client.rename_experiment(experiment, "another"),
    "delete an outcome": lambda client, _experiment, run: client.delete_tag(run, "outcome"),
    "change a variant": lambda client, _experiment, run: client.set_tag(run, "variant", "mine"),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_results_that_the_store_has_lost_are_sent_again_and_nothing_is_trained(old: Path, deed: str) -> None:
    before, begun = cells(old), sittings(old)
    client, experiment, runs = opened(old)
    DEEDS[deed](client, experiment, runs[0].info.run_id)
    status, said = launch(old)
    assert (status, "2 cells: 2 finished." in said) == (0, True), said
    assert {name: found for name, found in cells(old).items() if "mine" not in name} == before
    assert sittings(old) == begun


def test_a_launch_ends_though_the_store_keeps_no_result(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_tags = Sender._set_tags

    def without_outcome(sender: Sender, run_id: str, tags: Mapping[str, str]) -> None:
        set_tags(sender, run_id, {name: value for name, value in tags.items() if name != "outcome"})

    with sqlite3.connect(old / "mlflow.db") as connection:
        connection.execute("delete from tags where key = 'outcome'")
    monkeypatch.setattr(Sender, "_set_tags", without_outcome)
    status, said = launch(old)
    assert status == 1
    assert said.count("/seed0 failed: its result was uploaded 2 times but is not in MLflow; it is safe") == 2


def test_another_store_gets_what_the_folder_holds_and_hints_name_it(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, begun, uri = cells(old), sittings(old), f"sqlite:///{old}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    status, said = launch(old)
    assert status == 0, said
    assert f"mlflow ui --backend-store-uri {uri}, then\n" in said and f"reports.build --tracking-uri {uri}\n" in said
    assert cells(old, file="other.db") == before and sittings(old) == begun
    (results,) = load_results(Reader())
    assert list(results.cells["state"]) == ["finished", "finished"]
    status, said = launch(old, "--tracking-uri", "sqlite:///mlflow.db")
    assert "Nothing to run." in said and "mlflow ui, then\n" in said, "an option comes before the variable"


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_a_lab_keeps_its_artifacts_beside_its_store_wherever_it_goes(old: Path, tmp_path: Path, way: str) -> None:
    assert launch(old)[0] == 0, "itself a copy"
    second = tmp_path / "second"
    shutil.copytree(old, second) if way == "copied" else shutil.move(old, second)
    before = sorted(old.rglob("*"))
    status, said = launch(second, "--seeds", "5")
    assert status == 0, said
    assert sorted(old.rglob("*")) == before, "nothing goes to the old place"
    with contextlib.chdir(second):
        (results,) = load_results(Reader())
    assert len(results.pictures) == 8 and all(Path("mlruns") in picture.path.parents for picture in results.pictures)
    for run in opened(second)[2]:
        generator = Path(run.info.artifact_uri, "generator.safetensors")
        assert generator.is_relative_to(second) and generator.is_file()


def test_a_dry_run_reads_a_folder_that_nobody_may_write(old: Path) -> None:
    for command in (["mount", "--bind", old, old], ["mount", "-o", "remount,ro,bind", old]):
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("cannot mount")
    try:
        status, said = launch(old, "--dry-run")
        assert status == 0, said
        assert "at the speed of earlier runs in the store" in said
        assert launch(old)[0] == 2
    finally:
        subprocess.run(["umount", old], check=True)


def test_a_deleted_experiment_is_told_with_the_command_that_brings_it_back(old: Path) -> None:
    client, experiment, _ = opened(old)
    client.delete_experiment(experiment)
    for options in ((), ("--dry-run",)):
        status, said = launch(old, *options)
        assert status == 2 and said.count("\n") == 1
        assert f"=sqlite:///{old}/mlflow.db mlflow experiments restore --experiment-id {experiment}" in said


def test_a_store_of_the_first_version_is_told_and_still_read(old: Path) -> None:
    client, *_ = opened(old)
    tags = {"study": "position", "protocol": "embedded", "preset": "embedded", "baseline": "none"}
    launched = client.create_run(client.create_experiment("position"), tags={"kind": "launch", **tags}).info.run_id
    plan = {"question": "Where?", "baseline": "none", "seeds": [0], "variants": [{"name": "none"}, {"name": "feat8"}]}
    client.log_dict(launched, plan, "plan.json")
    for options in ((), ("--dry-run",)):
        status, said = launch(old, *options)
        assert status == 2 and said.count("\n") == 1
        assert said.startswith("--tracking-uri: holds runs of the first version of this project, got 'sqlite:///")
    with contextlib.chdir(old):
        found = {results.study: results for results in load_results(Reader())}
    assert list(found["position"].cells["state"]) == ["missing", "missing"]
