"""What the store has of a cell, uploaded from the journals of attempts: each point once, whatever fails meanwhile."""

from __future__ import annotations

import json
import math
import os
import random
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image
from told import begin, describe, tell

from ablations.attempts import Attempt, UploadState, all_attempts
from ablations.plan import Study
from ablations.results import Result
from ablations.table import summary
from ablations.tracking.store import Source, Store, StoreUnreachable
from ablations.tracking.uploader import Uploader
from sagan import journal
from sagan.config import override
from sagan.journal import Record


class Unreliable:
    """A client whose calls fail at times, before they reach the store or after: then its answer is what got lost."""

    def __init__(self, client: Any, seed: int, before: float = 0.2, after: float = 0.2) -> None:
        self._client, self._random, self._before, self._after = client, random.Random(seed), before, after

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            chance = self._random.random()
            if chance < self._before:
                raise MlflowException("away")
            answer = getattr(self._client, name)(*arguments, **named)
            if chance > 1 - self._after:
                raise MlflowException("timed out")
            return answer

        return call


AWAY = Unreliable(None, 0, before=1.0)


def history(store: Store, run_id: str | None, key: str) -> list[tuple[int, float]]:
    assert run_id is not None
    return sorted((point.step, point.value) for point in store.client.get_metric_history(run_id, key))


def send(store: Store, attempt: Attempt, has_ended: bool = False) -> Any:
    """The run of the attempt, after all of it was sent."""
    store.send(store.client.get_experiment_by_name(attempt.cell.study).experiment_id, attempt, has_ended)
    run_id = attempt.upload_state.run_id
    return store.client.get_run(run_id) if run_id is not None else None


@pytest.fixture
def study(study: Study) -> Study:
    """Whose cells are scored by one evaluation."""
    return replace(study, base=override(study.base, {"eval.endpoint": 1}))


def test_a_cell_is_stored_with_everything_that_a_report_reads(store: Store, study: Study, tmp_path: Path) -> None:
    experiment_id = store.open_experiment(study)
    cell = study.cells()[1]
    attempt = begin(tmp_path, cell, {"device": "cpu", "git_commit": "abc"})
    describe(attempt, data="d", classes=["a", "b"])
    tell(attempt, 1, {"loss_g": 2.0, "loss_d": math.inf, "logit_real": math.nan})
    samples = np.arange(2 * 3 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 4, 3)
    maps = {f"attention/g32/{part}": np.ones((2, 2)) for part in ("images", "queries", "maps")}
    (attempt.folder / "generator.safetensors").write_bytes(b"weights")
    tell(attempt, 5, {}, ["generator.safetensors"], "finished", images={"samples": samples, **maps})
    stored = send(store, attempt, has_ended=True)

    expected = {
        "kind": "cell",
        "mlflow.source.name": f"ablations.run {study.name}",
        "mlflow.source.git.commit": "abc",
        "mlflow.runName": "feat32/seed0",
        "variant": "feat32",
        "seed": "0",
        "factor.attention": "feat32",
        "paper": "table1",
        "config_digest": cell.config_digest,
        "data_fingerprint": "d",
        "classes": '["a", "b"]',
        "outcome": "finished",
        "last_step": "5",
        "tile_px": "64",
        "device": "cpu",
    }
    assert expected.items() <= stored.data.tags.items()
    assert stored.info.status == "FINISHED" and stored.info.end_time >= stored.info.start_time
    assert stored.data.params["model.attention.at"] == "[32]"
    assert stored.data.metrics == {"loss_g": 2.0}, "infinite values would poison a mean"
    client, run_id = store.client, stored.info.run_id
    picture = np.asarray(Image.open(client.download_artifacts(run_id, "samples/step_0000005.png")))
    assert (picture[4:8, 8:12] == samples[1, 2]).all()
    arrays = np.load(client.download_artifacts(run_id, "attention/g32/step_0000005.npz"))
    assert set(arrays) == {"images", "queries", "maps"}
    paths = {file.path for file in client.list_artifacts(run_id)}
    assert paths == {"samples", "attention", "images", "generator.safetensors"}
    assert stored.data.tags["mlflow.user"]
    assert [(one.dataset.name, one.dataset.digest) for one in stored.inputs.dataset_inputs] == [("embedded 64 px", "d")]
    row = client.get_run(stored.data.tags["mlflow.parentRunId"])
    assert (row.info.run_name, row.data.tags["kind"]) == ("feat32", "variant")
    attempt.write_upload_state(UploadState())
    send(store, attempt, has_ended=True)
    images = [Path(file.path).name for file in client.list_artifacts(run_id, "images")]
    assert [name.split("+")[:3] for name in images] == [["samples", "step", "5"]] * 2, "as it is, and compressed, once"
    assert store.recorded(experiment_id, tmp_path).keys() == {cell.key}


@pytest.mark.parametrize("seed", range(3))
def test_whatever_fails_every_point_is_stored_once_in_one_run(
    store: Store, study: Study, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment_id, cell = store.open_experiment(study), study.cells()[0]
    attempt = begin(tmp_path, cell, {"device": "cpu"})
    chance = random.Random(seed)
    monkeypatch.setattr("ablations.tracking.store.time.sleep", lambda _seconds: None)
    with monkeypatch.context() as patch:
        patch.setattr(store, "client", Unreliable(store.client, seed))
        describe(attempt, data="d")
        for step in range(30):
            tell(attempt, step, {"loss_g": float(step), "loss_d": 1.0})
            if chance.random() < 0.1:
                attempt.write_upload_state(UploadState())  # as if a process died before it was written
            store.try_to_send(experiment_id, attempt, False)
        with attempt.journal.open("ab") as file:
            file.write(b'{"time": 17, "st')  # a process that died while it wrote
        (attempt.folder / "generator.safetensors").write_bytes(b"weights")
        tell(attempt, 30, {}, ["generator.safetensors"], "finished")
        while not store.try_to_send(experiment_id, attempt, True):
            pass

    (stored,) = store.runs(experiment_id, "tags.kind = 'cell'")
    assert history(store, stored.info.run_id, "loss_g") == [(step, float(step)) for step in range(30)]
    assert history(store, stored.info.run_id, "loss_d") == [(step, 1.0) for step in range(30)]
    assert {"data_fingerprint": "d", "outcome": "finished"}.items() <= stored.data.tags.items()
    assert stored.info.status == "FINISHED"
    paths = {file.path for file in store.client.list_artifacts(stored.info.run_id)}
    assert paths == {"generator.safetensors"}
    assert not attempt.has_unsent


def test_a_cell_that_ended_without_a_store_is_recorded_and_sent_later(
    store: Store, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment_id, cell = store.open_experiment(study), study.cells()[1]
    folder = tmp_path / study.name
    attempt = begin(tmp_path, cell)
    describe(attempt)
    points = [Record(1e9 + step, step, {"loss_g": float(step)}) for step in range(1, 1500)]  # too many for one call
    journal.write(attempt.journal, [*attempt.read()[0], *points])
    tell(attempt, 1500, {"fid": 2.0}, status="collapsed")
    monkeypatch.setattr("ablations.tracking.store._PATIENCE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(store, "client", AWAY)
        store.send_rest(experiment_id, folder, living=())
        assert store.is_unreachable
        found = store.recorded(experiment_id, folder)[cell.key]
        assert found == Result("collapsed", measured="data-v1; counting; 32 samples")
    assert [unsent.has_unsent for unsent in all_attempts(folder)] == [True]
    store.send_rest(experiment_id, folder, living={cell.key})
    assert attempt.has_unsent, "its launcher sends it"
    store.send_rest(experiment_id, folder, living=())
    assert not attempt.has_unsent
    (stored,) = store.runs(experiment_id, "tags.kind = 'cell'")
    assert stored.data.tags["outcome"] == "collapsed" and stored.info.status == "FINISHED"
    assert history(store, stored.info.run_id, "loss_g") == [(step, float(step)) for step in range(1, 1500)]


def test_calls_mean_what_they_say_whatever_the_environment_says(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points are stored when a call returns; it is not repeated; and a long value is cut, not refused."""
    for name, value in (("ENABLE_ASYNC_LOGGING", "true"), ("HTTP_REQUEST_MAX_RETRIES", "7")):
        monkeypatch.setenv(f"MLFLOW_{name}", value)
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    experiment_id = store.open_experiment(study)
    attempt = begin(tmp_path, study.cells()[0])
    describe(attempt)
    tell(attempt, 1, {"fid": 3.0}, images={"samples": np.zeros((1, 1, 4, 4, 3), np.uint8)})
    (attempt.folder / "failure.json").write_text(json.dumps({"reason": "x" * 9000, "traceback": "..."}))
    store.send(experiment_id, attempt, has_ended=True)
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        assert connection.execute("select value from metrics where key = 'fid'").fetchall() == [(3.0,)]
        assert connection.execute("select length(value) from tags where key = 'error'").fetchone() == (8000,)
    assert len(list(tmp_path.glob("mlruns/*/*/artifacts/images/*"))) == 4, "of the cell and of its row"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_a_run_that_is_gone_is_made_again_with_all_that_was_told(store: Store, study: Study, tmp_path: Path) -> None:
    store.open_experiment(study)
    attempt = begin(tmp_path, study.cells()[0])
    tell(attempt, 1, {"fid": 3.0})
    first = send(store, attempt).info.run_id
    store.client.delete_run(first)
    store._opened.clear()  # as a process that comes later
    tell(attempt, 2, {}, status="finished")
    again = send(store, attempt, has_ended=True)
    assert again.info.run_id != first
    assert history(store, again.info.run_id, "fid") == [(1, 3.0)]


def test_what_a_store_refuses_for_good_holds_up_nothing_else(store: Store, study: Study, tmp_path: Path) -> None:
    store.open_experiment(study)
    attempt = begin(tmp_path, study.cells()[0])
    tell(attempt, 1, {"not/a key?": 1.0}, ["no such file"])
    tell(attempt, 2, {}, status="finished")
    assert send(store, attempt, has_ended=True).data.tags["outcome"] == "finished"


def test_what_the_store_has_from_another_disk_is_not_overwritten(store: Store, study: Study, tmp_path: Path) -> None:
    experiment_id, cell = store.open_experiment(study), study.cells()[0]
    lost = begin(tmp_path / "here", cell)
    tell(lost, 1, {"fid": 9.0})
    other = begin(tmp_path / "another host", cell)
    tell(other, 1, {"fid": 3.0}, status="finished")
    stored = send(store, other, has_ended=True)
    store.send_rest(experiment_id, tmp_path / "here" / study.name, living=())
    assert history(store, stored.info.run_id, "fid") == [(1, 3.0)]
    assert not lost.has_unsent and store.client.get_run(stored.info.run_id).info.status == "FINISHED"


def test_an_attempt_goes_on_under_the_run_of_the_one_before_and_tells_newer_points(
    store: Store, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the clock was put back: of two points at one step the newer one counts."""
    store.open_experiment(study)
    cell = study.cells()[0]
    first = begin(tmp_path, cell)
    for step in (1, 2, 3):
        tell(first, step, {"fid": float(step)})
    paused = send(store, first, has_ended=True)
    assert paused.info.status == "KILLED"
    monkeypatch.setattr("time.time", lambda: 1e9)
    second = begin(tmp_path, cell)
    tell(first, 4, {"fid": 4.0})  # by a process whose launcher has lost the cell
    for step in (3, 4):
        tell(second, step, {"fid": 10.0 * step})
    running = send(store, second)
    assert (running.info.run_id, running.info.status) == (paused.info.run_id, "RUNNING")
    send(store, first)
    points = store.client.get_metric_history(running.info.run_id, "fid")
    newest = {point.step: point.value for point in sorted(points, key=lambda point: point.timestamp)}
    assert newest == {1: 1.0, 2: 2.0, 3: 30.0, 4: 40.0}
    assert 4.0 not in {point.value for point in points}


def share_with(store: Store, study: Study, name: str, tmp_path: Path) -> Attempt:
    """An attempt at another study's first cell, which is the same but for its study."""
    other = replace(study, name=f"{study.name}_{name}")
    store.open_experiment(other)
    attempt = begin(tmp_path, other.cells()[0], {"device": "cuda:0"})
    describe(attempt, study.name, "m")
    return attempt


def train(store: Store, study: Study, tmp_path: Path, outcome: str = "finished") -> Any:
    """The run of the study's first cell, trained. Its data are named as the study: all tests have one store."""
    store.open_experiment(study)
    attempt = begin(tmp_path, study.cells()[0], {"device": "cpu", "git_commit": "abc"})
    describe(attempt, study.name, "m")
    for step in (1, 2, 2):  # the last one replayed after a resume
        tell(attempt, step, {"fid": 10.0 / step, "loss_g": 1.0})
    tell(attempt, 2, {"fid": 5.0, "loss_g": 1.0}, status=outcome)
    return send(store, attempt, has_ended=True)


def source_of(store: Store, study: Study, attempt: Attempt) -> Source:
    found = store.find_source(attempt.cell, (study.name, "m"))
    assert found is not None
    return found


def recorded(store: Store, attempt: Attempt, tmp_path: Path, shared: bool = True) -> list[Result]:
    experiment = store.client.get_experiment_by_name(attempt.cell.study)
    return list(store.recorded(experiment.experiment_id, tmp_path, shared, metrics=("fid",)).values())


@pytest.mark.parametrize("outcome", ["finished", "collapsed"])
def test_a_shared_cell_holds_every_point_of_its_source_once(
    outcome: str, store: Store, study: Study, tmp_path: Path
) -> None:
    source = train(store, study, tmp_path, outcome)
    attempt = share_with(store, study, "copy", tmp_path)
    assert (study.name, "m") in store.find_shared(attempt.cell)
    found = source_of(store, study, attempt)
    send(store, attempt)  # as the uploader may before it is known that there is something to copy
    copy = attempt.become_copy(found.records, found.tags)
    stored = send(store, copy, has_ended=True)
    seconds = (stored.info.end_time - stored.info.start_time) / 1000
    assert seconds == pytest.approx(found.records[-1].time - found.records[0].time, abs=0.01)
    store.client.delete_tag(stored.info.run_id, "outcome")
    copy.write_upload_state(UploadState())  # whoever comes after a crash does it over
    stored = send(store, copy, has_ended=True)

    expected = {
        "shared_run": source.info.run_id,
        "shared_study": study.name,
        "outcome": outcome,
        "last_step": "2",
        "device": "cpu",
        "git_commit": "abc",
        "study": attempt.cell.study,
    }
    assert expected.items() <= stored.data.tags.items()
    assert stored.info.status == "FINISHED"
    assert stored.data.params["model.attention.at"] == "[]"
    for key in ("fid", "loss_g"):
        histories = [store.client.get_metric_history(run.info.run_id, key) for run in (source, stored)]
        first, second = (sorted((one.step, one.timestamp, one.value) for one in points) for points in histories)
        assert first == second
    (result,) = recorded(store, copy, tmp_path)
    assert (result.outcome, result.shared_study) == (outcome, study.name)
    assert result.scores == ({"fid": 5.0} if outcome == "finished" else {})
    assert recorded(store, copy, tmp_path, shared=False) == []


def test_a_cell_is_shared_only_where_all_that_decides_it_is_the_same(
    store: Store, study: Study, tmp_path: Path
) -> None:
    train(store, study, tmp_path)
    copy = share_with(store, study, "copy", tmp_path).cell
    assert store.find_source(copy, ("other data", "m")) is None
    assert store.find_source(copy, (study.name, "other metrics")) is None
    for cell in (study.cells()[1], study.cells()[2]):  # another config, another seed
        assert store.find_source(replace(cell, study="other"), (study.name, "m")) is None
    assert store.find_source(study.cells()[0], (study.name, "m")) is None, "the study itself is no other study"


def test_a_copy_and_a_run_that_failed_are_no_sources(store: Store, study: Study, tmp_path: Path) -> None:
    failed = share_with(store, study, "failed", tmp_path)
    (failed.folder / "failure.json").write_text('{"reason": "RuntimeError: no", "traceback": "..."}')
    send(store, failed, has_ended=True)
    waiting = share_with(store, study, "waiting", tmp_path)
    assert store.find_source(waiting.cell, (study.name, "m")) is None
    source = train(store, study, tmp_path)
    copy = share_with(store, study, "copy", tmp_path)
    found = source_of(store, study, copy)
    send(store, copy.become_copy(found.records, found.tags), has_ended=True)
    assert source_of(store, study, waiting).tags["shared_run"] == source.info.run_id
    store.client.delete_run(source.info.run_id)
    assert store.find_source(waiting.cell, (study.name, "m")) is None, "a copy is not copied: its pictures are gone"


def test_a_copy_is_not_taken_for_a_trained_run(store: Store, study: Study, tmp_path: Path) -> None:
    train(store, study, tmp_path)
    first = share_with(store, study, "copy", tmp_path)
    found = source_of(store, study, first)
    copied = send(store, first.become_copy(found.records, found.tags), has_ended=True)
    own = begin(tmp_path, first.cell)
    tell(own, 2, {"fid": 7.0}, status="finished")
    assert send(store, own, has_ended=True).info.run_id != copied.info.run_id
    (result,) = recorded(store, own, tmp_path)
    assert (result.scores, result.shared_study) == ({"fid": 7.0}, None), "what was trained counts, also beside a copy"


def test_runs_that_a_dead_process_or_a_slow_store_left_are_ended_or_deleted(
    store: Store, study: Study, tmp_path: Path
) -> None:
    experiment_id = store.open_experiment(study)
    dead, alive, doubled = (begin(tmp_path, cell) for cell in study.cells()[:3])
    runs = [send(store, attempt).info.run_id for attempt in (dead, alive)]
    tell(doubled, 1, {"fid": 3.0})
    run = send(store, doubled)
    twin = store.client.create_run(experiment_id, tags=run.data.tags, start_time=1).info.run_id
    tell(doubled, 2, {}, status="finished")
    send(store, doubled, has_ended=True)
    assert store.find_outcome(experiment_id, doubled.cell, shared=True) == "finished"
    store.end_abandoned(experiment_id, living={alive.cell.key})
    assert [store.client.get_run(run_id).info.status for run_id in runs] == ["KILLED", "RUNNING"]
    left = {found.info.run_id for found in store.runs(experiment_id, "tags.kind = 'cell'")}
    assert left == {*runs, run.info.run_id} and store.client.get_run(twin).info.lifecycle_stage == "deleted"


def test_a_failed_cell_keeps_its_traceback_until_it_is_run_again(store: Store, study: Study, tmp_path: Path) -> None:
    store.open_experiment(study)
    attempt = begin(tmp_path, study.cells()[0])
    failure = {"reason": "RuntimeError: out of memory", "traceback": "Traceback (most recent call last):\n ..."}
    (attempt.folder / "failure.json").write_text(json.dumps(failure))
    stored = send(store, attempt, has_ended=True)
    assert stored.info.status == "FAILED"
    assert stored.data.tags["error"] == "RuntimeError: out of memory"
    report = Path(store.client.download_artifacts(stored.info.run_id, "traceback.txt")).read_text()
    assert "most recent call" in report
    again = send(store, begin(tmp_path, study.cells()[0]))
    assert (again.info.run_id, again.info.status) == (stored.info.run_id, "RUNNING")
    assert "error" not in again.data.tags


def test_a_launch_survives_a_store_that_goes_away(
    store: Store, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablations.tracking.store._PATIENCE_SECONDS", 0.0)
    experiment_id, cell = store.open_experiment(study), study.cells()[0]
    attempt = begin(tmp_path, cell)
    tell(attempt, 1, {"fid": 1.0}, status="finished")
    send(store, attempt, has_ended=True)
    before = store.recorded(experiment_id, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(store, "client", AWAY)
        assert store.recorded(experiment_id, tmp_path) == before and store.is_unreachable
        assert not store.write_table(experiment_id, study, *summary(study, before), {"trials": 3})
        store.end_abandoned(experiment_id, set())
        assert store.find_shared(cell) == [] and store.find_outcome(experiment_id, cell, True) is None
        with pytest.raises(StoreUnreachable, match="does not answer .*away"):
            store.open_experiment(study)
    assert store.write_table(experiment_id, study, *summary(study, before), {"trials": 3}) and not store.is_unreachable


def test_the_uploader_sends_beside_its_caller_and_nothing_of_a_lost_cell(
    store: Store, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablations.tracking.uploader._INTERVAL_SECONDS", 0.01)
    experiment_id = store.open_experiment(study)
    done, lost = (begin(tmp_path, cell) for cell in study.cells()[:2])
    has_claims = False
    tables: list[int] = []
    uploader = Uploader(store, experiment_id, lambda: has_claims, lambda: tables.append(1))
    for attempt in (done, lost):
        uploader.follow(attempt)
        tell(attempt, 1, {"fid": 3.0}, status="finished")
    uploader.finish(done)
    assert uploader.take_ended() == [], "a launcher that was stopped for long sends nothing"
    uploader.drop(lost)
    has_claims = True
    while not (ended := uploader.take_ended()):
        pass
    assert ended == [done] and uploader.take_ended() == []
    uploader.close(10.0)
    assert tables == [1], "the table is written after a cell has ended"
    assert store.recorded(experiment_id, tmp_path).keys() == {done.cell.key}
    assert lost.upload_state.is_lost and not lost.has_unsent
    store.send_rest(experiment_id, tmp_path / study.name, living=())
    assert store.recorded(experiment_id, tmp_path / study.name).keys() == {done.cell.key}


def test_a_journal_is_replaced_only_when_no_upload_of_it_is_under_way(study: Study, tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        is_unreachable = False

        def try_to_send(self, _experiment_id: str, attempt: Attempt, _has_ended: bool) -> bool:
            begun.set()
            assert go_on.wait(10)
            attempt.write_upload_state(UploadState(offset=100))
            return True

    attempt = begin(tmp_path, study.cells()[0])
    uploader = Uploader(cast(Store, Slow()), "1", lambda: True, lambda: None)
    uploader.follow(attempt)
    assert begun.wait(10)
    thread = threading.Thread(target=lambda: (uploader.pause(attempt), attempt.reset_upload()))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    go_on.set()
    thread.join(10)
    uploader.close(10.0)
    assert attempt.upload_state == UploadState(), "all of the new journal is still to be uploaded"
