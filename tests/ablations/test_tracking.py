from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablations.cell_run import CellRun
from ablations.plan import Cell, Study
from ablations.sharing import find_source
from ablations.tracking import Store

WriteStudy = Callable[..., Path]
SitDown = Callable[..., CellRun]


@pytest.fixture
def sit_down(store: Store, tmp_path: Path) -> Callable[..., CellRun]:
    """The run of a cell in a folder of this test."""

    def sit_down(study: Study, cell: Cell, about: dict[str, str] | None = None, shared: bool = True) -> CellRun:
        experiment_id, directory = store.open_experiment(study), cell.directory(tmp_path)
        return CellRun(store.client, experiment_id, "parent", cell, about or {}, directory, shared)

    return sit_down


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


def test_a_cell_is_stored_with_everything_that_a_report_reads(
    store: Store, study: Study, sit_down: SitDown, tmp_path: Path
) -> None:
    experiment_id = store.open_experiment(study)
    cell = study.cells()[1]
    run = sit_down(study, cell, {"device": "cpu"})
    run.describe({"data_fingerprint": "d", "classes": '["a", "b"]'})
    run.log(1, {"loss_g": 2.0, "loss_d": math.inf, "logit_real": math.nan})
    samples = np.arange(2 * 3 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 4, 3)
    maps = {f"attention/g32/{part}": np.ones((2, 2)) for part in ("images", "queries", "maps")}
    run.log_images(5, {"samples": samples, **maps})
    (cell.directory(tmp_path) / "generator.safetensors").write_bytes(b"weights")
    assert run.finish("finished", 5)

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
    assert store.recorded(experiment_id, tmp_path).keys() == {cell.key}


def share_with(sit_down: SitDown, study: Study, name: str) -> CellRun:
    """The run of another study's first cell, which is the same but for its study."""
    other = replace(study, name=f"{study.name}_{name}")
    run = sit_down(other, other.cells()[0], {"device": "cuda:0"})
    run.describe({"data_fingerprint": study.name, "metric_fingerprint": "m"})
    return run


def train(sit_down: SitDown, study: Study, outcome: str = "finished") -> CellRun:
    run = sit_down(study, study.cells()[0], {"device": "cpu", "git_commit": "abc"})
    run.describe({"data_fingerprint": study.name, "metric_fingerprint": "m"})  # one store for all tests
    for step in (1, 2, 2):  # the last one replayed after a resume
        run.log(step, {"fid": 10.0 / step, "loss_g": 1.0}, now=True)
    run.finish(outcome, 2)
    return run


@pytest.mark.parametrize("outcome", ["finished", "collapsed"])
def test_a_shared_cell_holds_every_point_of_its_source_once(
    outcome: str, store: Store, study: Study, sit_down: SitDown, tmp_path: Path
) -> None:
    source = train(sit_down, study, outcome)
    copy = share_with(sit_down, study, "copy")
    found = copy.find_source(study.name, "m")
    assert found is not None and found.run_id == source.run_id
    copy.share(found)
    copy.close()
    store.client.delete_tag(copy.run_id, "outcome")
    again = share_with(sit_down, study, "copy")  # whoever comes after a crash does it over
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
    experiment_id = store.client.get_run(copy.run_id).info.experiment_id
    (result,) = store.recorded(experiment_id, tmp_path).values()
    assert (result.outcome, result.metrics["fid"], result.shared_study) == (outcome, 5.0, study.name)
    assert store.recorded(experiment_id, tmp_path, shared=False) == {}


def test_a_cell_is_shared_only_where_all_that_decides_it_is_the_same(
    store: Store, study: Study, sit_down: SitDown
) -> None:
    train(sit_down, study)
    copy = share_with(sit_down, study, "copy")
    assert copy.find_source("other data", "m") is None
    assert copy.find_source(study.name, "other metrics") is None
    for cell in (study.cells()[1], study.cells()[2]):  # another config, another seed
        assert find_source(store.client, replace(cell, study="other"), study.name, "m") is None
    assert find_source(store.client, study.cells()[0], study.name, "m") is None, "the study itself is no other study"


def test_a_copy_and_a_run_that_failed_are_no_sources(store: Store, study: Study, sit_down: SitDown) -> None:
    failed = share_with(sit_down, study, "failed")
    failed.fail("RuntimeError: out of memory")
    waiting = share_with(sit_down, study, "waiting")
    assert waiting.find_source(study.name, "m") is None
    source = train(sit_down, study)
    copy = share_with(sit_down, study, "copy")
    found = copy.find_source(study.name, "m")
    assert found is not None
    copy.share(found)
    second = waiting.find_source(study.name, "m")
    assert second is not None and second.run_id == source.run_id
    store.client.delete_run(source.run_id)
    assert waiting.find_source(study.name, "m") is None, "a copy is not copied: its pictures are gone"


def test_a_copy_is_not_taken_for_a_trained_run_where_none_may_be_shared(
    store: Store, study: Study, sit_down: SitDown, tmp_path: Path
) -> None:
    train(sit_down, study)
    copy = share_with(sit_down, study, "copy")
    found = copy.find_source(study.name, "m")
    assert found is not None
    copy.share(found)
    shared_run = copy.run_id
    copy.close()
    own = sit_down(replace(study, name=copy.cell.study), copy.cell, shared=False)
    assert own.run_id != shared_run
    own.log(2, {"fid": 7.0})
    own.finish("finished", 2)
    (result,) = store.recorded(store.client.get_run(own.run_id).info.experiment_id, tmp_path).values()
    assert (result.metrics["fid"], result.shared_study) == (7.0, None), "what was trained counts, also beside a copy"


def test_a_paused_cell_goes_on_under_its_own_run(store: Store, study: Study, sit_down: SitDown) -> None:
    first = sit_down(study, study.cells()[0])
    first.pause()
    first.close()
    assert store.client.get_run(first.run_id).info.status == "KILLED"
    second = sit_down(study, study.cells()[0])
    assert second.run_id == first.run_id
    assert store.client.get_run(first.run_id).info.status == "RUNNING"


def test_a_worker_with_another_disk_goes_on_under_the_same_run(
    store: Store, study: Study, sit_down: SitDown, tmp_path: Path
) -> None:
    cell = study.cells()[0]
    first = sit_down(study, cell)
    experiment_id = store.open_experiment(study)
    second = CellRun(store.client, experiment_id, "parent", cell, {}, tmp_path / "another host")
    assert second.run_id == first.run_id and second.outcome is None
    second.finish("finished", 3)
    third = CellRun(store.client, experiment_id, "parent", cell, {}, tmp_path / "a third")
    assert third.outcome == "finished"
    first.pause()  # taken for dead, it wakes up
    assert store.client.get_run(first.run_id).info.status == "KILLED"
    store.end_abandoned(experiment_id, set())
    assert store.recorded(experiment_id, tmp_path)[cell.key].outcome == "finished"


def test_a_run_that_a_dead_process_left_running_is_ended(store: Store, study: Study, sit_down: SitDown) -> None:
    dead, alive = (sit_down(study, cell) for cell in study.cells()[:2])
    store.end_abandoned(store.open_experiment(study), living={alive.cell.key})
    assert store.client.get_run(dead.run_id).info.status == "KILLED"
    assert store.client.get_run(alive.run_id).info.status == "RUNNING"


def test_a_failed_cell_keeps_its_traceback(store: Store, study: Study, sit_down: SitDown) -> None:
    run = sit_down(study, study.cells()[0])
    run.fail("Traceback (most recent call last):\n  ...\nRuntimeError: out of memory\n")
    stored = store.client.get_run(run.run_id)
    assert stored.info.status == "FAILED"
    assert stored.data.tags["error"] == "RuntimeError: out of memory"
    assert "most recent call" in Path(store.client.download_artifacts(run.run_id, "traceback.txt")).read_text()
