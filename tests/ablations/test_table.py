"""The rows of a study's table in the tracking store: they must equal what the report says of the same cells."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from told import begin, describe, tell

from ablations import table
from ablations.plan import Study
from ablations.results import Result, measured_by, metrics_of, scores_of
from ablations.study import read_study
from ablations.table import summary
from ablations.tracking.store import Store
from reports.comparison import compare, estimates
from reports.loading import load_results
from reports.sections.answer import headline
from reports.store import Store as Reader

SHOWN = ("relation_error", "fid", "is")


@pytest.fixture
def study(write_study: Callable[..., Path], request: pytest.FixtureRequest) -> Study:
    name = "t_" + request.node.name.encode().hex()[-24:]
    text = {"name: position": f"name: {name}", "seeds: [0, 1]": "set: {eval.endpoint: 2}\nseeds: [0, 1, 2, 3]"}
    return read_study(write_study(text))


def train(store: Store, study: Study, runs: Path, factor: float, sd: float) -> str:
    """Made scores of all cells, those of feat32 `factor` times the baseline's; its last seed collapses."""
    experiment, rng = store.open_experiment(study), np.random.default_rng(0)
    for cell in study.cells():
        attempt = begin(runs, cell)
        describe(attempt)
        for step in (600, 800, 1000):
            level = math.exp(sd * rng.standard_normal()) * (factor if cell.variant == "feat32" else 1.0)
            tell(attempt, step, {"relation_error": level, "fid": 9 * level, "is": 5 - level})
        outcome = "collapsed" if cell.name == "feat32/seed3" else "finished"
        tell(attempt, 1000, {"relation_error": level, "fid": 9 * level, "is": 5 - level}, status=outcome)
        store.send(experiment, attempt, has_ended=True)
    return experiment


def write(store: Store, experiment: str, study: Study, runs: Path) -> dict[str, Result]:
    results = store.recorded(experiment, runs / study.name, metrics=metrics_of(study))
    assert store.write_table(experiment, study, *summary(study, results))
    return results


@pytest.mark.parametrize(("factor", "sd"), [(0.3, 0.1), (1.05, 0.5)])
def test_a_row_and_the_answer_equal_those_of_the_report(
    store: Store, study: Study, tmp_path: Path, factor: float, sd: float
) -> None:
    experiment = train(store, study, tmp_path, factor, sd)
    recorded = write(store, experiment, study, tmp_path)
    (results,) = (found for found in load_results(Reader(store.uri)) if found.study == study.name)
    stored = {run.info.run_name: run for run in store.runs(experiment, "tags.kind = 'variant'")}
    for metric in SHOWN:
        for variant, found in estimates(results, metric).items():
            assert stored[variant].data.metrics.get(metric) == (pytest.approx(found.mean, rel=1e-4) if found else None)
    for variant, found in estimates(results, study.metric).items():
        metrics = stored[variant].data.metrics
        assert metrics["n"] == (found.n if found else 0)
        if found:
            assert (metrics["low"], metrics["high"]) == pytest.approx((found.low, found.high), rel=1e-4)
            assert metrics["half_width"] == pytest.approx((metrics["high"] - metrics["low"]) / 2, rel=1e-3)
    (row,) = compare(results, study.metric)
    said = table.answer(study, recorded)
    assert headline(results).startswith(said), "the report says the same, and without an effect what could be seen"
    assert ("feat32 lowers relation error by " in said) == row.shown


def test_the_table_stands_in_the_store_as_rows_and_in_words(store: Store, study: Study, tmp_path: Path) -> None:
    experiment = store.open_experiment(study)
    assert store.write_table(experiment, study, *summary(study, {}), {"trials": []}, "abc")
    rows = {run.info.run_name: run for run in store.runs(experiment, "tags.kind = 'variant'")}
    states = {name: (run.info.status, run.data.metrics["n"]) for name, run in rows.items()}
    assert states == {"none": ("SCHEDULED", 0.0), "feat32": ("SCHEDULED", 0.0), "feat64": ("FINISHED", 0.0)}
    assert rows["feat64"].data.tags["note"] == "needs 128 px"
    expected = {"changes": "model.attention.at=[32]", "metric": study.metric, "baseline": "none", "study": study.name}
    assert expected.items() <= rows["feat32"].data.tags.items()
    assert rows["none"].data.tags["mlflow.source.git.commit"] == "abc"
    documents = {
        name: Path(store.client.download_artifacts(rows["none"].info.run_id, name)).read_text()
        for name in ("study.yaml", "plan.json", "search.json")
    }
    assert documents["study.yaml"] == study.text and json.loads(documents["search.json"]) == {"trials": []}
    planned = json.loads(documents["plan.json"])["variants"]
    assert [variant["name"] for variant in planned] == ["none", "feat32", "feat64"]
    tags = store.client.get_experiment(experiment).tags
    said = tags["mlflow.note.content"].splitlines()
    assert tags["question"] == study.question and said[0] == f"**{study.question}**"
    assert said[2].startswith("So far (0 of 8 cells): No answer")
    assert said[-1] == "| feat64 | 0 | needs 128 px |"

    train(store, study, tmp_path, 0.3, 0.1)
    write(store, experiment, study, tmp_path)
    view = json.loads(store.client.get_experiment(experiment).tags["mlflow.sharedViewState.table"])
    shown = ["metrics.`half_width`", "metrics.`n`", "tags.`verdict`", "tags.`note`"]
    assert view["selectedColumns"][-4:] == shown
    said = store.client.get_experiment(experiment).tags["mlflow.note.content"].splitlines()
    assert said[2].startswith("feat32 lowers relation error by ")
    assert said[6] == "| variant | relation error | FD embedded-v2 | IS embedded-v2 | n |  |"
    assert said[-2].startswith("| feat32 | ") and said[-2].endswith(" | 3 | 1 collapsed |")


def test_the_row_of_a_variant_has_the_pictures_of_one_cell(store: Store, study: Study, tmp_path: Path) -> None:
    experiment = store.open_experiment(study)
    for cell in study.cells("none"):
        attempt = begin(tmp_path, cell)
        for step in (5, 10):
            tell(attempt, step, {}, images={"samples": np.zeros((1, 1, 4, 4, 3), np.uint8)})
        store.send(experiment, attempt, has_ended=False)
    (row,) = store.runs(experiment, "tags.kind = 'variant'")
    names = [Path(file.path).name for file in store.client.list_artifacts(row.info.run_id, "images")]
    assert sorted(name.split("+")[2] for name in names) == ["10", "10", "5", "5"], "as they are, and compressed"
    assert row.data.tags["pictures"] == "none/seed0"


def test_a_row_is_written_again_only_with_news_and_loses_what_is_gone(
    store: Store, study: Study, tmp_path: Path
) -> None:
    experiment = train(store, study, tmp_path, 1.0, 0.1)

    def row() -> dict[str, float]:
        (found,) = store.runs(experiment, "tags.kind = 'variant' and tags.variant = 'none'")
        return {**found.data.metrics, "updates": float(found.data.tags["updates"])}

    results = write(store, experiment, study, tmp_path)
    first = row()
    write(store, experiment, study, tmp_path)
    assert row() == first and first["n"] == 4
    few = {key: result for key, result in results.items() if "|none|0|" in key}
    assert store.write_table(experiment, study, *summary(study, few))
    later = row()
    assert (later["n"], later["updates"], math.isnan(later["half_width"])) == (1, first["updates"] + 1, True)
    assert len(list(store.runs(experiment, "tags.kind = 'variant'"))) == 3


def test_a_run_is_scored_by_its_last_evaluations_only_where_all_gave_a_value() -> None:
    assert scores_of({"fid": {10: 99.0, 20: 1.0, 30: 4.0}}, 30, 2) == {"fid": pytest.approx(2.0)}
    assert scores_of({"is": {20: 1.0, 30: 4.0}}, 30, 1) == {"is": 4.0}
    assert scores_of({"fid": {10: 1.0, 20: 2.0}, "is": {30: 1.0}}, 30, 2) == {}


def test_a_score_that_was_measured_otherwise_is_in_no_mean(study: Study) -> None:
    def result(value: float, metric: str = "embedded-v2; ema", data: str = "d") -> Result:
        return Result("finished", None, {"relation_error": value}, measured_by(data, metric))

    none, feat32 = ([cell.key for cell in study.cells(name)] for name in ("none", "feat32"))
    results = {none[0]: result(2.0), none[1]: result(8.0), none[2]: result(9.0, data="other"),
               none[3]: result(9.0, "inception; ema"), feat32[0]: result(3.0, "embedded-v2; raw")}  # fmt: skip
    first, second, _ = table.rows(study, results)
    assert first.estimates["relation_error"].mean == pytest.approx(4.0), "the geometric mean of two"
    assert first.note == "2 measured otherwise" and first.ended == 4
    assert second.estimates["relation_error"].n == 1, "variants may differ in the weights that are scored"


def test_results_of_another_config_or_protocol_are_in_no_row(study: Study) -> None:
    (cell,) = [one for one in study.cells() if one.name == "none/seed0"]
    found = Result("finished", scores={"relation_error": 1.0})
    others = (cell.key[:-1] + "!", cell.key.replace(f"|{cell.protocol}|", "|another|"))
    assert table.rows(study, dict.fromkeys(others, found))[0].ended == 0
    assert table.rows(study, {cell.key: found})[0].ended == 1
