"""Launches whose MLflow server, a process of its own, stops answering in the middle, hangs, or comes back."""

from __future__ import annotations

import contextlib
import io
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_trainer import FakeTrainer
from forks import forked_trainers
from lab import sittings, steps, wait_until
from mlflow_server import Server

from ablations.attempts import all_attempts
from ablations.run import main
from ablations.study import read_study
from ablations.tracking import store as tracking
from ablations.tracking.store import Store

STEPS = 40
START = [[0], [0]]  # of cells at which one process sat down, once
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, forked: None) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    server = Server(folder, f"sqlite:///{folder}/server.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ablations.launcher.TICK_SECONDS", 0.1)
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture
def study(write_study: Callable[..., Path], request: pytest.FixtureRequest) -> Path:
    """Two cells, at one seed."""
    name = f"s_{request.node.name.encode().hex()[-24:]}"
    return write_study(
        {"name: position": f"name: {name}", "seeds: [0, 1]": f"set: {{optim.steps: {STEPS}}}\nseeds: [0]"}
    )


def launch(folder: Path, study: Path, server: Server) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), forked_trainers():
        status = main([str(study), "--workers", "1", "--no-reuse", "--tracking-uri", server.uri], trainer=FakeTrainer)
    return status, " ".join(said.getvalue().split())


@contextlib.contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=action)
    thread.start()
    yield
    thread.join()


def outcomes(folder: Path) -> list[str]:
    """Of the cells whose journal has one."""
    found = [attempt.outcome for study in folder.glob("runs/*") for attempt in all_attempts(study)]
    return [outcome for outcome in found if outcome]


def assert_every_point_is_stored_once(study: Path, server: Server) -> None:
    store = Store(server.uri)
    experiment_id = store.find_experiment(read_study(study))
    assert experiment_id is not None
    runs = sorted(store.runs(experiment_id, "tags.kind = 'cell'"), key=lambda run: run.info.run_name)
    for run in runs:
        for key, at in {"loss_g": range(1, STEPS), "images_per_sec": range(1, STEPS), "fid": [STEPS]}.items():
            points = store.client.get_metric_history(run.info.run_id, key)
            assert sorted(point.step for point in points) == list(at), f"{run.info.run_name}: {key}"
            assert key != "loss_g" or all(point.value == 1.0 / point.step for point in points)
        paths = {file.path for file in store.client.list_artifacts(run.info.run_id)}
        assert paths == {"samples", "attention", "images", "generator.safetensors"}
    assert [run.info.run_name for run in runs] == ["feat32/seed0", "none/seed0"]
    assert {(run.info.status, run.data.tags["outcome"]) for run in runs} == {("FINISHED", "finished")}


def test_a_server_that_hangs_and_wakes_up_has_every_point_once(
    server: Server, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_PATIENCE_SECONDS", 240.0)

    def hang() -> None:
        wait_until(lambda: sum(steps(tmp_path)) >= STEPS // 8)
        server.signal(signal.SIGSTOP)
        wait_until(lambda: len(outcomes(tmp_path)) == 2)
        server.signal(signal.SIGCONT)

    with meanwhile(hang):
        status, said = launch(tmp_path, study, server)
    assert (status, "2 cells: 2 finished." in said) == (0, True), said
    assert "lacks" not in said
    assert list(sittings(tmp_path).values()) == START
    assert_every_point_is_stored_once(study, server)


def test_results_are_kept_while_the_server_is_gone_and_the_same_command_sends_them(
    server: Server, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_PATIENCE_SECONDS", 1.0)

    def die() -> None:
        wait_until(lambda: sum(steps(tmp_path)) >= STEPS // 8)
        server.stop()  # in the middle of the first cell, so the second begins without it

    with meanwhile(die):
        status, said = launch(tmp_path, study, server)
    assert (status, "2 cells: 2 finished." in said) == (1, True), said
    assert f"2 cells are not fully uploaded to MLflow; their data is in {tmp_path}/runs" in said
    assert list(sittings(tmp_path).values()) == START

    assert launch(tmp_path, study, server)[0] == 2, "a launch does not begin without its store"
    with next(tmp_path.glob("runs/*/feat32/*/*/journal.jsonl")).open("ab") as file:
        file.write(b'{"time": 17, "st')  # as if the machine had gone down too
    server.start()
    status, said = launch(tmp_path, study, server)
    assert (status, "Nothing to run." in said) == (0, True), said
    assert list(sittings(tmp_path).values()) == START
    assert_every_point_is_stored_once(study, server)
