from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_studies import make_results

from ablations.plan import show
from reports.comparison import compare
from reports.loading import load_results, score_cells
from reports.results import Adaptive, Results, Variant, by_measurement
from reports.store import Store
from sagan.config import flatten, override
from sagan.presets import PRESETS


def only(fake: Any) -> Results:
    (results,) = load_results(Store(fake.uri))
    return results


def state(results: Results, variant: str, seed: int) -> str:
    cells = results.cells
    return str(cells.loc[(cells["variant"] == variant) & (cells["seed"] == seed), "state"].item())


def test_every_planned_cell_has_its_state_and_its_score(store: Any) -> None:
    results = only(store)
    assert len(results.cells) == 5 * 3
    states = {("feat32", 1): "finished", ("feat8", 2): "collapsed", ("feat16", 2): "running"}
    assert {cell: state(results, *cell) for cell in states} == states
    joined = results.cells.join(results.final_scores).set_index(["variant", "seed"])
    run = store.client().get_run(joined.loc[("feat32", 0), "run_id"])
    assert joined.loc[("feat32", 0), "fid"] == run.data.metrics["fid"]
    assert (joined.loc["feat64", "state"] == "needs 128 px").all() and joined.loc["feat64", "fid"].isna().all()
    # The last good value of a collapsed cell is kept, but not averaged.
    assert joined.loc[("feat8", 2), "step"] == 420 and 0 < joined.loc[("feat8", 2), "fid"] < 1000
    assert set(results.finished("fid")["feat8"]) == {0, 1}


def test_cells_that_failed_were_interrupted_or_have_not_started_are_told_apart(fake: Any) -> None:
    fake.launch("s", ("none", "feat8", "feat16", "feat64"), (0,))
    fake.cell("s", "none", 0, [("fid", 9.0, 100)], outcome=None, status="FAILED", error="ValueError: no")
    fake.cell("s", "feat8", 0, [("fid", 9.0, 100)], outcome=None, status="KILLED")
    results = only(fake)
    assert list(results.cells["state"]) == ["failed", "interrupted", "missing", "needs 128 px"]
    assert not any(results.finished("fid").values())
    assert results.baseline == "none" and results.question.startswith("Which feature map")


def test_a_finished_cell_without_a_last_evaluation_has_no_final_score(fake: Any) -> None:
    fake.launch("s", ("none",), (0, 1))
    fake.cell("s", "none", 0, [("fid", 90.0, 200), ("loss_d", 1.0, 390)], last_step="400")
    fake.cell("s", "none", 1, [("fid", 50.0, 400), ("loss_d", 1.0, 390)], last_step="400")
    results = only(fake)
    assert results.finished("fid") == {"none": {1: 50.0}}
    assert results.finished("loss_d") == {"none": {0: 1.0, 1: 1.0}}


def test_of_the_runs_of_a_cell_the_one_with_an_outcome_counts_and_none_of_an_earlier_config(fake: Any) -> None:
    fake.launch("s", ("none", "feat8"), (0,))
    fake.cell("s", "none", 0, [("fid", 7.0, 100)])
    fake.cell("s", "none", 0, [("fid", 99.0, 50)], outcome=None, status="KILLED")
    fake.cell("s", "feat8", 0, [("fid", 7.0, 100)], config_digest="an earlier one")
    results = only(fake)
    assert results.finished("fid") == {"none": {0: 7.0}, "feat8": {}} and state(results, "feat8", 0) == "missing"
    assert set(results.histories["value"]) == {7.0}
    assert results.notes == ("1 run of an earlier config is left out: the study file has changed since.",)


def test_launches_of_one_protocol_are_one_result_and_other_protocols_are_another(fake: Any) -> None:
    fake.launch("s", ("none", "feat8"), (0,))
    fake.launch("s", ("none", "feat16"), (0, 1))
    fake.launch("s", ("none",), (0,), protocol="embedded + optim.steps=500")
    one, other = load_results(Store(fake.uri))
    assert {variant.name for variant in one.variants} == {"none", "feat8", "feat16"}
    assert one.seeds == (0, 1)
    assert other.protocol == "embedded + optim.steps=500" and len(other.cells) == 1


def test_numbers_of_different_fingerprints_never_share_a_part(fake: Any) -> None:
    fake.launch("s", ("none", "feat8"), (0, 1))
    fake.cell("s", "none", 0, [("fid", 1.0, 100)])
    fake.cell("s", "none", 1, [("fid", 2.0, 100)])
    fake.cell("s", "feat8", 0, [("fid", 3.0, 100)], metric_fingerprint="inception-v3@ffff; 50000 samples")
    one, other = by_measurement(only(fake))
    assert one.finished("fid") == {"none": {0: 1.0, 1: 2.0}, "feat8": {}}
    assert other.finished("fid") == {"none": {}, "feat8": {0: 3.0}}
    assert one.fingerprint.startswith("embedded-v1") and other.fingerprint.startswith("inception")
    assert set(other.histories["variant"]) == {"feat8"}
    assert state(one, "feat8", 0) == "measured otherwise" and state(one, "feat8", 1) == "missing"
    assert any("measured in 2 ways" in note for note in one.notes)


def test_a_cell_that_is_not_scored_yet_is_not_measured_otherwise() -> None:
    states = {("feat8", 0): "running", ("feat8", 1): "running"}
    results = make_results({"none": {0: 1.0, 1: 2.0}, "feat8": {0: 1.0, 1: 1.0}}, states=states)
    going = results.cells["state"] == "running"
    unscored = results.cells.assign(metric_fingerprint=results.cells["metric_fingerprint"].mask(going, None))
    (only_way,) = by_measurement(replace(results, cells=unscored))
    assert state(only_way, "feat8", 0) == "running"
    elsewhere = (results.cells["variant"] == "feat8") & (results.cells["seed"] == 1)
    one, other = by_measurement(
        replace(results, cells=unscored.assign(data_fingerprint=unscored["data_fingerprint"].mask(elsewhere, "moved")))
    )
    assert [state(one, "feat8", seed) for seed in (0, 1)] == ["running", "measured otherwise"]
    assert [state(other, "feat8", seed) for seed in (0, 1)] == ["measured otherwise", "running"]
    assert one.finished("fid")["none"] == {0: 1.0, 1: 2.0} and other.finished("fid")["none"] == {}


def test_a_shared_cell_shows_the_pictures_of_the_run_that_trained_it(fake: Any) -> None:
    trained = fake.cell("attention_position", "feat32", 0, [("fid", 9.0, 100)], pictures=True)
    fake.launch("attention_where", ("none", "both"), (0,))
    fake.cell("attention_where", "both", 0, [("fid", 9.0, 100)], shared_run=trained,
              shared_study="attention_position")  # fmt: skip
    (results,) = (found for found in load_results(Store(fake.uri)) if found.study == "attention_where")
    assert {(item.variant, item.kind) for item in results.pictures} == {("both", "samples"), ("both", "attention")}
    assert all(picture.path.is_file() for picture in results.pictures)
    assert results.finished("fid") == {"none": {}, "both": {0: 9.0}}
    assert results.cells.set_index("variant")["shared_study"].dropna().to_dict() == {"both": "attention_position"}


def test_trials_of_a_search_are_read_but_never_compared(fake: Any) -> None:
    trials = [{"number": number, "variant": f"trial0{number}", "params": {"optim.lr_g": rate}, "value": value,
               "state": state} for number, (rate, value, state) in
              enumerate([(1e-4, 25.0, "complete"), (2e-4, 14.0, "complete"), (3e-4, None, "running")])]  # fmt: skip
    stored = {"objective": "fid", "direction": "minimize", "seed": 100, "trials": trials, "importances": None,
              "fields": {"optim.lr_g": {"low": 1e-4, "high": 1e-3, "log": True}}, "best": None}  # fmt: skip
    plan = {"design": "search", "factors": [], "baseline": "official"}
    launch = fake.launch("s", ("official", "trial00", "trial01", "trial02"), (0, 1), **plan)
    fake.client().log_dict(launch, stored, "search.json")
    for number in range(3):  # the last one has started since search.json was written
        fake.cell("s", f"trial0{number}", 100, [("fid", 20.0, 100)], config_digest=f"digest-trial0{number}")
    waiting = only(fake)
    assert [variant.name for variant in waiting.variants] == ["official"] and waiting.seeds == (0, 1)
    assert waiting.search is not None and [trial.value for trial in waiting.search.trials] == [25.0, 14.0, None]

    launch = fake.launch("s", ("official", "best", "trial00", "trial01"), (0, 1), **plan)
    fake.client().log_dict(launch, {**stored, "best": "trial01"}, "search.json")
    fake.cell("s", "best", 0, [("fid", 15.0, 100)])
    confirmed = only(fake)
    assert confirmed.finished("fid") == {"official": {}, "best": {0: 15.0}}
    assert confirmed.design == "search" and confirmed.search is not None and confirmed.search.best == "trial01"
    assert not set(confirmed.histories["variant"]) & {"trial00", "trial01", "trial02"}


def test_results_have_the_design_of_its_newest_plan_and_the_params_of_its_runs(fake: Any) -> None:
    fake.launch("s", ("none", "feat8"), (0,))
    assert (only(fake).design, only(fake).factors) == ("one_at_a_time", ())
    fake.launch("s", ("none", "feat8"), (0,), design="ladder", factors=["recipe"])
    fake.cell("s", "feat8", 0, [("fid", 9.0, 100)])
    results = only(fake)
    assert (results.design, results.factors) == ("ladder", ("recipe",))
    assert [variant.params for variant in results.variants] == [{}, {"optim.steps": "1000"}]


def test_adaptive_seeds_come_with_the_plan_and_no_more_cells_are_missing_than_the_next_look_lacks(fake: Any) -> None:
    plan = {"adaptive": {"first": 3, "most": 6, "margin": 0.1}}
    fake.launch("s", ("none", "feat8"), tuple(range(20, 26)), **plan)
    for place, value in enumerate([1.0, 1.1, 0.9]):
        fake.cell("s", "none", 20 + place, [("fid", value, 1000)])
        fake.cell("s", "feat8", 20 + place, [("fid", value / 50, 1000)])
    fake.cell("s", "none", 3, [("fid", 500.0, 1000)])  # another launch, of seeds that are not adaptive
    results = only(fake)
    assert results.adaptive == Adaptive(3, tuple(range(20, 26)), 0.1)
    (row,) = compare(results, "fid")
    assert (row.verdict, row.decided_after) == ("better", 3) and row.gap.value == pytest.approx(np.log(1 / 50))
    assert {state(results, name, seed) for name in ("none", "feat8") for seed in (23, 24, 25)} == {"not needed"}


def test_adaptive_seeds_that_no_version_has_written_are_a_list(fake: Any) -> None:
    right = {"first": 3, "most": 6, "margin": 1}
    wrong = ({"first": 9}, {"most": 5}, {"first": "3"}, {"margin": "1"}, {"margin": -1})
    for number, stored in enumerate((right, None, 3, {}, *(right | changed for changed in wrong))):
        fake.launch(f"s{number}", ("none", "feat8"), tuple(range(20, 26)), adaptive=stored)
    assert [bool(results.adaptive) for results in load_results(Store(fake.uri))] == [True, *[False] * 8]


@pytest.mark.parametrize(("ttur", "rates"), [(True, (7e-4, 1.4e-3)), (False, (1e-3, 1e-3))])
def test_rates_are_those_that_the_stored_config_trained_with(ttur: bool, rates: tuple[float, float]) -> None:
    rates_set = {"optim.lr_g": 7e-4, "optim.lr_d": 1.4e-3, "optim.lr_equal": 1e-3}
    config = override(PRESETS["embedded"], {**rates_set, "optim.ttur": ttur})
    assert Variant("any", params={name: show(value) for name, value in flatten(config).items()}).rates == rates


def test_a_score_is_the_mean_of_the_last_evaluations_that_the_config_says() -> None:
    run = {"run_id": "r", "state": "finished", "step": 300, "endpoint": 2}
    points = [("fid", 100, 9.0), ("fid", 200, 8.0), ("fid", 300, 2.0), ("kid", 200, 3.0), ("kid", 300, 1.0),
              ("recall", 300, 0.5), ("best/fid", 300, 2.0), ("loss_d", 300, 7.0)]  # fmt: skip
    frame = pd.DataFrame([{"run_id": "r", "key": key, "step": step, "value": value} for key, step, value in points])
    found = score_cells(pd.DataFrame([run]), frame).iloc[0]
    assert found["fid"] == pytest.approx(4.0) and found["kid"] == 2.0  # geometric where it is compared as a ratio
    assert pd.isna(found["recall"]) and (found["best/fid"], found["loss_d"]) == (2.0, 7.0)
    alone = score_cells(pd.DataFrame([{**run, "endpoint": 1}]), frame).iloc[0]
    assert (alone["fid"], alone["recall"]) == (2.0, 0.5)


def test_fid_stands_in_where_no_run_of_an_old_store_has_the_primary_metric(fake: Any) -> None:
    fake.launch("s", ("none", "feat8"), (0,), metric="relation_error")
    assert only(fake).metric == "relation_error"
    fake.cell("s", "none", 0, [("fid", 9.0, 1000)])
    results = only(fake)
    assert results.metric == "fid"
    assert results.notes == ("No run has the primary metric relation_error; fid stands in its place.",)
    fake.cell("s", "feat8", 0, [("fid", 9.0, 1000), ("relation_error", 0.4, 1000)])
    assert (only(fake).metric, only(fake).notes) == ("relation_error", ())


def test_noise_of_other_studies_is_that_of_runs_as_long_and_measured_alike(fake: Any) -> None:
    for study, found in {"mine": [5.0], "alike": [2.0, 8.0], "otherwise": [1.0, 900.0]}.items():
        fake.launch(study, ("none",), tuple(range(len(found))))
        for seed, value in enumerate(found):
            tags = {"metric_fingerprint": "inception@1"} if study == "otherwise" else {}
            fake.cell(study, "none", seed, [("fid", value, 1000)], **tags)
    noise = {results.study: results.noise for results in load_results(Store(fake.uri))}
    assert noise["mine"] == pytest.approx(np.std(np.log([2.0, 8.0]), ddof=1)) and noise["otherwise"] is None
