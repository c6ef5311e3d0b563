"""What the tracker writes is what the report reads: the only thing that the two packages share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from told import begin, describe, tell

from ablations.study import read_study
from ablations.table import summary
from ablations.tracking import store as tracking
from reports.loading import load_results
from reports.store import Store

SMOKE = Path(__file__).parents[2] / "studies" / "smoke.yaml"


def test_a_study_and_its_cells_come_back_as_the_tracker_wrote_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "två ord"  # MLflow writes the artifacts of such a folder under a name of its own
    folder.mkdir()
    monkeypatch.chdir(folder)
    study = read_study(SMOKE)
    writer = tracking.Store("sqlite:///mlflow.db")
    experiment = writer.open_experiment(study)
    assert writer.write_table(experiment, study, *summary(study, {}), commit="0123abc")
    none, feat16 = study.cells()
    attempt = begin(tmp_path / "runs", none, {"device": "cpu"})
    describe(attempt, "data", "embedded-v1@1a2b; 32 samples")
    tell(attempt, 1, {"num_params_g": 33_000.0})
    tell(attempt, 3, {"fid": 12.5})
    images, queries = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((1, 2), int)
    arrays = {"images": images, "queries": queries, "maps": np.ones((2, 1, 4, 4))}
    pictures = {"samples": np.zeros((6, 2, 8, 8, 3), np.uint8), **{f"attention/g16/{k}": v for k, v in arrays.items()}}
    tell(attempt, 6, {"fid": 12.5, "loss_d": float("inf")}, status="finished", images=pictures)
    failed = begin(tmp_path / "runs", feat16)
    (failed.folder / "failure.json").write_text('{"reason": "ValueError: no", "traceback": "Traceback"}')
    for one in (attempt, failed):
        writer.send(experiment, one, has_ended=True)

    (results,) = load_results(Store())
    assert (results.study, results.protocol, results.baseline) == (study.name, study.protocol, study.baseline)
    assert (results.question, results.paper) == (study.question, study.paper)
    assert [variant.name for variant in results.variants] == ["none", "feat16"]
    assert list(results.cells["state"]) == ["finished", "failed"]
    assert results.finished("fid") == {"none": {none.seed: pytest.approx(12.5)}, "feat16": {}}
    assert results.fingerprint == "embedded-v1@1a2b; 32 samples"
    assert results.cells.loc[1, "error"] == "ValueError: no"
    assert results.cells.loc[0, ["step", "steps"]].tolist() == [6, none.config.optim.steps]
    assert [(picture.kind, picture.name, picture.step, picture.tile_px) for picture in results.pictures] == [
        ("samples", "samples", 6, none.config.data.resolution),
        ("attention", "g16", 6, none.config.data.resolution),
    ]
    with np.load(results.pictures[1].path) as loaded:
        assert all(np.array_equal(loaded[key], value) for key, value in arrays.items())
