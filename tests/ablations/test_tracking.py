from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ablations import outbox
from ablations.outbox import Outbox
from ablations.plan import Study
from ablations.sharing import find_source
from ablations.study import read_study
from ablations.tracking import CellRun, Store

WriteStudy = Callable[..., Path]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One store for the module, in a folder with a space and a letter that is not ASCII."""
    folder = tmp_path_factory.mktemp("två ord")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Store(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture
def study(write_study: WriteStudy, request: pytest.FixtureRequest) -> Study:
    name = "s_" + request.node.name.encode().hex()[-24:]
    return read_study(write_study({"name: position": f"name: {name}"}))


def test_a_launch_keeps_the_study_and_its_whole_plan(store: Store, study: Study) -> None:
    experiment_id = store.open_experiment(study)
    run_id = store.start_launch(experiment_id, study, {"pid": 1}, "abc")
    tags = store.client.get_run(run_id).data.tags
    assert (tags["kind"], tags["protocol"], tags["baseline"], tags["git_commit"]) == (
        "launch",
        "embedded",
        "none",
        "abc",
    )
    plan = json.loads(Path(store.client.download_artifacts(run_id, "plan.json")).read_text())
    assert [variant["name"] for variant in plan["variants"]] == ["none", "feat32", "feat64"]
    assert Path(store.client.download_artifacts(run_id, "study.yaml")).read_text() == study.text
    assert store.client.get_experiment(experiment_id).tags["question"] == study.question
    assert store.running_launches(experiment_id) == {run_id: {"pid": 1}}


def test_a_cell_is_stored_with_everything_that_a_report_reads(store: Store, study: Study, tmp_path: Path) -> None:
    experiment_id = store.open_experiment(study)
    cell = study.cells()[1]
    run = CellRun(store.client, experiment_id, "parent", cell, {"device": "cpu"})
    run.describe({"data_fingerprint": "d", "classes": '["a", "b"]'})
    run.log(1, {"loss_g": 2.0, "loss_d": math.inf, "logit_real": math.nan})
    samples = np.arange(2 * 3 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 4, 3)
    maps = {f"attention/g32/{part}": np.ones((2, 2)) for part in ("images", "queries", "maps")}
    run.log_images(5, {"samples": samples, **maps}, tmp_path)
    (tmp_path / "generator.safetensors").write_bytes(b"weights")
    assert run.finish("finished", 5, tmp_path)

    stored = store.client.get_run(run.run_id)
    expected = {
        "kind": "cell",
        "mlflow.parentRunId": "parent",
        "mlflow.runName": "feat32/seed0",
        "variant": "feat32",
        "seed": "0",
        "factor.attention": "feat32",
        "paper": "table1",
        "config_digest": cell.config_digest,
        "data_fingerprint": "d",
        "outcome": "finished",
        "last_step": "5",
        "tile_px": "4",
        "device": "cpu",
    }
    assert expected.items() <= stored.data.tags.items()
    assert stored.info.status == "FINISHED"
    assert stored.data.params["model.attention.at"] == "[32]"
    assert stored.data.metrics == {"loss_g": 2.0}, "infinite values would poison a mean"
    picture = np.asarray(Image.open(store.client.download_artifacts(run.run_id, "samples/step_0000005.png")))
    assert (picture[4:8, 8:12] == samples[1, 2]).all()
    arrays = np.load(store.client.download_artifacts(run.run_id, "attention/g32/step_0000005.npz"))
    assert set(arrays) == {"images", "queries", "maps"}
    assert store.recorded(experiment_id).keys() == {cell.key}


def share_with(store: Store, study: Study, name: str) -> tuple[CellRun, str]:
    """The run of another study's first cell, which is the same but for its study, and that study's experiment."""
    other = replace(study, name=f"{study.name}_{name}")
    experiment_id = store.open_experiment(other)
    run = CellRun(store.client, experiment_id, "parent", other.cells()[0], {"device": "cuda:0"})
    run.describe({"data_fingerprint": study.name, "metric_fingerprint": "m"})
    return run, experiment_id


def train(store: Store, study: Study, directory: Path, outcome: str = "finished") -> CellRun:
    experiment_id = store.open_experiment(study)
    run = CellRun(store.client, experiment_id, "parent", study.cells()[0], {"device": "cpu", "git_commit": "abc"})
    run.describe({"data_fingerprint": study.name, "metric_fingerprint": "m"})  # one store for all tests
    for step in (1, 2, 2):  # the last one replayed after a resume
        run.log(step, {"fid": 10.0 / step, "loss_g": 1.0}, now=True)
    run.finish(outcome, 2, directory)
    return run


@pytest.mark.parametrize("outcome", ["finished", "collapsed"])
def test_a_shared_cell_holds_every_point_of_its_source_once(
    outcome: str, store: Store, study: Study, tmp_path: Path
) -> None:
    source = train(store, study, tmp_path, outcome)
    copy, experiment_id = share_with(store, study, "copy")
    found = copy.find_source(study.name, "m")
    assert found is not None and found.run_id == source.run_id
    copy.share(found)
    again, _ = share_with(store, study, "copy")  # whoever comes after a crash does it over
    assert again.run_id == copy.run_id
    again.share(found)

    stored = store.client.get_run(copy.run_id)
    expected = {
        "shared_run": source.run_id,
        "shared_study": study.name,
        "outcome": outcome,
        "last_step": "2",
        "device": "cpu",
        "git_commit": "abc",
        "study": f"{study.name}_copy",
        "metric_fingerprint": "m",
    }
    assert expected.items() <= stored.data.tags.items()
    assert stored.info.status == "FINISHED"
    assert stored.data.params["model.attention.at"] == "[]"
    for key in ("fid", "loss_g"):
        points = [
            sorted((point.step, point.timestamp, point.value) for point in store.client.get_metric_history(run_id, key))
            for run_id in (source.run_id, copy.run_id)
        ]
        assert points[0] == points[1]
    (result,) = store.recorded(experiment_id).values()
    assert (result.outcome, result.metrics["fid"], result.shared_study) == (outcome, 5.0, study.name)
    assert store.recorded(experiment_id, shared=False) == {}


def test_a_cell_is_shared_only_where_all_that_decides_it_is_the_same(
    store: Store, study: Study, tmp_path: Path
) -> None:
    train(store, study, tmp_path)
    copy, _ = share_with(store, study, "copy")
    assert copy.find_source("other data", "m") is None
    assert copy.find_source(study.name, "other metrics") is None
    for cell in (study.cells()[1], study.cells()[2]):  # another config, another seed
        assert find_source(store.client, replace(cell, study="other"), study.name, "m") is None
    assert find_source(store.client, study.cells()[0], study.name, "m") is None, "the study itself is no other study"


def test_a_copy_and_a_run_that_failed_are_no_sources(store: Store, study: Study, tmp_path: Path) -> None:
    failed, _ = share_with(store, study, "failed")
    failed.fail("RuntimeError: out of memory")
    waiting, _ = share_with(store, study, "waiting")
    assert waiting.find_source(study.name, "m") is None
    source = train(store, study, tmp_path)
    copy, _ = share_with(store, study, "copy")
    found = copy.find_source(study.name, "m")
    assert found is not None
    copy.share(found)
    second = waiting.find_source(study.name, "m")
    assert second is not None and second.run_id == source.run_id
    store.client.delete_run(source.run_id)
    assert waiting.find_source(study.name, "m") is None, "a copy is not copied: its pictures are gone"


def test_a_copy_is_not_taken_for_a_trained_run_where_none_may_be_shared(
    store: Store, study: Study, tmp_path: Path
) -> None:
    train(store, study, tmp_path)
    copy, experiment_id = share_with(store, study, "copy")
    found = copy.find_source(study.name, "m")
    assert found is not None
    copy.share(found)
    own = CellRun(store.client, experiment_id, "parent", copy.cell, {}, shared=False)
    assert own.run_id != copy.run_id
    own.log(2, {"fid": 7.0})
    own.finish("finished", 2, tmp_path)
    (result,) = store.recorded(experiment_id).values()
    assert (result.metrics["fid"], result.shared_study) == (7.0, None), "what was trained counts, also beside a copy"


def test_a_paused_cell_goes_on_under_its_own_run(store: Store, study: Study) -> None:
    experiment_id = store.open_experiment(study)
    cell = study.cells()[0]
    first = CellRun(store.client, experiment_id, "parent", cell, {})
    first.pause()
    assert store.client.get_run(first.run_id).info.status == "KILLED"
    second = CellRun(store.client, experiment_id, "another", cell, {})
    second.describe({})
    assert second.run_id == first.run_id
    assert store.client.get_run(first.run_id).info.status == "RUNNING"


def test_a_run_that_a_dead_process_left_running_is_ended(store: Store, study: Study) -> None:
    experiment_id = store.open_experiment(study)
    dead, alive = (CellRun(store.client, experiment_id, "parent", cell, {}) for cell in study.cells()[:2])
    store.end_abandoned(experiment_id, living={alive.cell.key})
    assert store.client.get_run(dead.run_id).info.status == "KILLED"
    assert store.client.get_run(alive.run_id).info.status == "RUNNING"


def test_a_failed_cell_keeps_its_traceback(store: Store, study: Study) -> None:
    run = CellRun(store.client, store.open_experiment(study), "parent", study.cells()[0], {})
    run.fail("Traceback (most recent call last):\n  ...\nRuntimeError: out of memory\n")
    stored = store.client.get_run(run.run_id)
    assert stored.info.status == "FAILED"
    assert stored.data.tags["error"] == "RuntimeError: out of memory"
    assert "most recent call" in Path(store.client.download_artifacts(run.run_id, "traceback.txt")).read_text()


class Flaky:
    """A client that refuses its first calls."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.taken: list[Any] = []

    def log(self, value: int) -> None:
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError("away")
        self.taken.append(value)


def test_calls_that_the_store_refused_arrive_later_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_RETRY_SECONDS", 0.0)
    client = Flaky(refusals=2)
    calls = Outbox(client)  # type: ignore[arg-type]
    for value in range(3):
        calls.put("log", value=value)
        calls.send()
    assert calls.close()
    assert client.taken == [0, 1, 2]


def test_training_does_not_wait_for_a_store_that_was_just_away() -> None:
    client = Flaky(refusals=1)
    calls = Outbox(client)  # type: ignore[arg-type]
    calls.put("log", value=0)
    assert not calls.send()
    assert not calls.send()
    assert client.taken == [], "the second attempt comes after a pause, not at once"
