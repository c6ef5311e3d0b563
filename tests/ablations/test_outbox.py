from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from ablations import outbox
from ablations.cell_run import CellRun
from ablations.outbox import Outbox, push
from ablations.plan import Study
from ablations.spool import Spool, spools
from ablations.tracking import Store, StoreAway


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


class Away(Unreliable):
    def __init__(self) -> None:
        super().__init__(None, 0, before=1.1)


def history(store: Store, run_id: str | None, key: str) -> list[tuple[int, float]]:
    assert run_id is not None
    return sorted((point.step, point.value) for point in store.client.get_metric_history(run_id, key))


@pytest.mark.parametrize("seed", range(3))
def test_whatever_fails_every_point_is_stored_once_in_one_run(
    store: Store, study: Study, tmp_path: Path, seed: int
) -> None:
    experiment_id, cell = store.open_experiment(study), study.cells()[0]
    unreliable: Any = Unreliable(store.client, seed)
    run = CellRun(unreliable, experiment_id, "parent", cell, {"device": "cpu"}, tmp_path)
    chance = random.Random(seed)
    for step in range(30):
        run.log(step, {"loss_g": float(step), "loss_d": 1.0}, now=True)
        spool = Spool.of(tmp_path, cell.key)
        if chance.random() < 0.1:
            for mark in tmp_path.glob("*.sent"):
                mark.unlink()  # as if it died before it was written
        Outbox(unreliable, experiment_id, spool).send()  # a process that begins where the last one died
    run.describe({"data_fingerprint": "d"})
    (tmp_path / "generator.safetensors").write_bytes(b"weights")
    run.finish("finished", 30)
    while not Outbox(unreliable, experiment_id, Spool.of(tmp_path, cell.key)).send():
        pass

    (stored,) = store.runs(experiment_id, "tags.kind = 'cell'")
    assert history(store, stored.info.run_id, "loss_g") == [(step, float(step)) for step in range(30)]
    assert history(store, stored.info.run_id, "loss_d") == [(step, 1.0) for step in range(30)]
    assert {"data_fingerprint": "d", "outcome": "finished"}.items() <= stored.data.tags.items()
    assert stored.info.status == "FINISHED"
    assert {file.path for file in store.client.list_artifacts(stored.info.run_id)} == {
        "config.yaml",
        "generator.safetensors",
    }


def test_a_cell_trains_without_a_store_and_is_pushed_later(store: Store, study: Study, tmp_path: Path) -> None:
    experiment_id, cell = store.open_experiment(study), study.cells()[1]
    away: Any = Away()
    folder = tmp_path / study.name
    directory = cell.directory(tmp_path)
    run = CellRun(away, experiment_id, "parent", cell, {}, directory)
    run.describe({"data_fingerprint": "d"})
    assert run.outcome is None and run.find_source("d", "m") is None
    for step in range(1500):  # more than one call may bring
        run.log(step, {"loss_g": float(step)})
    assert not run.finish("collapsed", 1500)
    assert (run.run_id, run.is_sent) == (None, False)
    run.close()

    (result,) = store.recorded(experiment_id, folder).values()
    assert (result.outcome, result.metrics) == ("collapsed", {"loss_g": 1499.0})
    again = CellRun(away, experiment_id, "parent", cell, {}, directory)
    assert again.outcome == "collapsed", "a cell with a result is not trained again"
    again.close()

    assert not push(away, experiment_id, folder)
    assert push(store.client, experiment_id, folder)
    assert not any(spool.has_unsent for spool in spools(folder))
    (stored,) = store.runs(experiment_id, "tags.kind = 'cell'")
    assert stored.data.tags["outcome"] == "collapsed" and stored.info.status == "FINISHED"
    assert history(store, stored.info.run_id, "loss_g") == [(step, float(step)) for step in range(1500)]
    assert stored.info.end_time - stored.info.start_time < 60_000, "the times are those of training, not of sending"


def test_a_run_that_is_gone_is_made_again_with_all_that_was_told(store: Store, study: Study, tmp_path: Path) -> None:
    experiment_id, cell = store.open_experiment(study), study.cells()[0]
    run = CellRun(store.client, experiment_id, "parent", cell, {}, tmp_path)
    run.log(1, {"fid": 3.0}, now=True)
    run.close()
    store.client.delete_run(run.run_id)
    again = CellRun(store.client, experiment_id, "parent", cell, {}, tmp_path)
    assert again.run_id != run.run_id and again.finish("finished", 1)
    assert history(store, again.run_id, "fid") == [(1, 3.0)]


def test_what_a_store_refuses_for_good_holds_up_nothing_else(store: Store, study: Study, tmp_path: Path) -> None:
    experiment_id, cell = store.open_experiment(study), study.cells()[0]
    run = CellRun(store.client, experiment_id, "parent", cell, {}, tmp_path)
    run.log(1, {"not/a key?": 1.0}, now=True)
    run.describe({"data_fingerprint": "d"})
    (tmp_path / "generator.safetensors").write_bytes(b"weights")
    assert run.finish("finished", 2)
    assert store.client.get_run(run.run_id).data.tags["outcome"] == "finished"


def test_what_the_store_has_from_another_disk_is_not_overwritten(store: Store, study: Study, tmp_path: Path) -> None:
    experiment_id, cell = store.open_experiment(study), study.cells()[0]
    away: Any = Away()
    lost = CellRun(away, experiment_id, "parent", cell, {}, tmp_path / study.name / "none" / "seed0")
    lost.log(1, {"fid": 9.0})
    lost.fail("ValueError: no")
    lost.close()
    other = CellRun(store.client, experiment_id, "parent", cell, {}, tmp_path / "another host")
    other.log(1, {"fid": 3.0})
    other.finish("finished", 1)
    assert push(store.client, experiment_id, tmp_path / study.name)
    stored = store.client.get_run(other.run_id)
    assert stored.info.status == "FINISHED" and "error" not in stored.data.tags
    assert history(store, other.run_id, "fid") == [(1, 3.0)]


def test_a_second_run_that_a_slow_store_made_is_deleted(store: Store, study: Study, tmp_path: Path) -> None:
    experiment_id, cell = store.open_experiment(study), study.cells()[0]
    run = CellRun(store.client, experiment_id, "parent", cell, {}, tmp_path)
    tags = store.client.get_run(run.run_id).data.tags
    twin = store.client.create_run(experiment_id, tags=tags, start_time=1).info.run_id  # on the first, lost request
    run.log(1, {"fid": 3.0})
    run.finish("finished", 1)
    run.close()
    late = CellRun(store.client, experiment_id, "parent", cell, {}, tmp_path / "another host")
    assert late.outcome == "finished"
    store.end_abandoned(experiment_id, set())
    assert [found.info.run_id for found in store.runs(experiment_id, "")] == [run.run_id]
    assert store.client.get_run(twin).info.lifecycle_stage == "deleted"


def test_training_waits_a_tenth_of_the_time_for_a_store_that_hangs(
    store: Store, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    class Hanging(Away):
        def __getattr__(self, name: str) -> Callable[..., Any]:
            clock[0] += 10.0
            return super().__getattr__(name)

    monkeypatch.setattr(outbox.time, "monotonic", lambda: clock[0])
    spool = Spool.of(tmp_path, "key")
    spool.append("text", name="a", text="b")
    hanging: Any = Hanging()
    box = Outbox(hanging, "1", spool)
    waited = 0.0
    for _ in range(1000):
        began = clock[0]
        assert not box.send()
        waited += clock[0] - began
        clock[0] += 1.0
    assert 0 < waited / clock[0] < 0.11


def test_a_launch_survives_a_store_that_goes_away(
    store: Store, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablations.tracking._PATIENCE_SECONDS", 0.0)
    experiment_id, cell = store.open_experiment(study), study.cells()[0]
    run = CellRun(store.client, experiment_id, "parent", cell, {}, tmp_path)
    run.finish("finished", 1)
    before = store.recorded(experiment_id, tmp_path)
    launch = store.start_launch(experiment_id, study, {"pid": 1}, None)
    with monkeypatch.context() as patch:
        patch.setattr(store, "client", Away())
        assert store.recorded(experiment_id, tmp_path) == before and store.is_away
        store.log_document(launch, "search.json", {"trials": 3})
        store.end_abandoned(experiment_id, set())
        assert store.running_launches(experiment_id) == {}
        with pytest.raises(StoreAway, match="does not answer .*away"):
            store.open_experiment(study)
    store.end_run(launch, "FINISHED")
    assert store.client.get_run(launch).info.status == "FINISHED" and not store.is_away
    assert "search.json" in {file.path for file in store.client.list_artifacts(launch)}
