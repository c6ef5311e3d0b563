from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from postgres import postgres_server

from ablations.plan import Study
from ablations.results import Result
from ablations.search import Trials
from ablations.study import read_study

SEARCH = """
    name: rates
    question: Which rates?
    preset: embedded
    seeds: [0, 1]
    baseline: preset
    set: {optim.ttur: true}
    search:
      seed: 100
      trials: 8
      fields:
        optim.lr_g: {low: 1e-4, high: 2e-3, log: true}
        optim.d_steps: [1, 2]
        model.attention.at: [[8], [16, 32]]
"""

OpenTrials = Callable[..., Trials]


@pytest.fixture
def study(write_study: Callable[..., Path]) -> Study:
    return read_study(write_study(text=SEARCH))


@pytest.fixture
def open_trials(tmp_path: Path, study: Study) -> Iterator[OpenTrials]:
    with ExitStack() as stack:
        url = f"sqlite:///{tmp_path}/optuna.db"
        yield lambda study=study: stack.enter_context(Trials(url, study))


def fid(changes: Mapping[str, Any]) -> float:
    """Best at a rate of 1e-3."""
    return 10 + abs(math.log(changes["optim.lr_g"] / 1e-3))


def results(study: Study, names: list[str], outcome: str = "finished") -> dict[str, Result]:
    changes = {variant.name: variant.changes for variant in study.variants()}
    cells = [cell for cell in study.cells() if cell.variant in names]
    return {cell.key: Result(outcome, scores={"fid": fid(changes[cell.variant])}) for cell in cells}


def answer(trials: Trials, names: list[str], outcome: str = "finished") -> None:
    trials.record(results(trials.study(), names, outcome), failed=())


def run_to_the_end(trials: Trials, count: int) -> None:
    while names := trials.propose(count):
        answer(trials, names)


def test_trials_become_cells_at_the_seed_of_the_search(open_trials: OpenTrials) -> None:
    trials = open_trials()
    assert trials.propose(3) == ["trial00", "trial01", "trial02"]
    study = trials.study()
    names = [cell.name for cell in study.cells()]
    assert names == ["trial00/seed100", "trial01/seed100", "trial02/seed100", "preset/seed0", "preset/seed1"]
    for variant in study.variants()[1:]:
        assert 1e-4 <= variant.config.optim.lr_g <= 2e-3
        assert variant.config.optim.d_steps in (1, 2)
        assert variant.config.model.attention.at in ((8,), (16, 32))
    assert len({cell.config_digest for cell in study.cells()}) == 4


def test_nothing_new_is_proposed_while_a_trial_has_no_answer(open_trials: OpenTrials) -> None:
    trials = open_trials()
    trials.propose(2)
    answer(trials, ["trial00"])
    assert trials.propose(2) == ["trial01"]
    assert open_trials().propose(5) == ["trial01"], "another launcher joins the round"


def test_a_search_that_was_stopped_goes_on_as_one_that_was_not(open_trials: OpenTrials, tmp_path: Path) -> None:
    stopped = open_trials()
    for _ in range(2):
        answer(stopped, stopped.propose(2))
    stopped.propose(2)
    resumed = open_trials()
    run_to_the_end(resumed, 2)
    with Trials(f"sqlite:///{tmp_path}/other.db", resumed._study) as whole:
        run_to_the_end(whole, 2)
        assert whole.report() == resumed.report()
    assert resumed.propose(2) == []


def test_the_best_trial_is_named_when_all_have_an_answer(open_trials: OpenTrials) -> None:
    trials = open_trials()
    answer(trials, trials.propose(7))
    assert trials.report()["best"] is None
    run_to_the_end(trials, 2)
    report, study = trials.report(), trials.study()
    values = {trial["variant"]: trial["value"] for trial in report["trials"]}
    assert report["best"] == min(values, key=lambda name: values[name])
    variants = {variant.name: variant for variant in study.variants()}
    assert variants["best"].config == variants[report["best"]].config
    assert [cell.seed for cell in study.cells("best")] == [0, 1]
    assert set(report["importances"]) == set(report["fields"])
    assert sum(report["importances"].values()) == pytest.approx(1)
    assert max(report["importances"], key=report["importances"].get) == "optim.lr_g"


def test_the_report_holds_fields_and_values_as_the_config_does(open_trials: OpenTrials) -> None:
    trials = open_trials()
    trials.propose(1)
    report = trials.report()
    assert (report["objective"], report["direction"], report["seed"]) == ("fid", "minimize", 100)
    assert report["fields"]["optim.lr_g"] == {"low": 1e-4, "high": 2e-3, "log": True}
    assert report["fields"]["model.attention.at"] == {"choices": [(8,), (16, 32)]}
    (trial,) = report["trials"]
    assert (trial["number"], trial["state"], trial["value"]) == (0, "running", None)
    assert trial["params"]["optim.d_steps"] in (1, 2)
    assert report["importances"] is None


def test_a_collapsed_trial_has_no_value_and_a_failed_one_may_be_tried_again(open_trials: OpenTrials) -> None:
    trials = open_trials()
    trials.propose(4)
    answers = results(trials.study(), ["trial00"], "collapsed") | results(trials.study(), ["trial01"], "diverged")
    trials.record({**answers, **results(trials.study(), ["trial02"])}, failed={"trial03"})
    states = {trial["variant"]: (trial["state"], trial["value"] is None) for trial in trials.report()["trials"]}
    assert states == {
        "trial00": ("collapsed", True),
        "trial01": ("diverged", True),
        "trial02": ("complete", False),
        "trial03": ("failed", True),
    }
    before = trials.study().variants()
    trials.retry_failed()
    assert trials.propose(9) == ["trial03"]
    assert trials.study().variants() == before


def test_a_search_without_a_value_has_no_best(open_trials: OpenTrials) -> None:
    trials = open_trials()
    answer(trials, trials.propose(8), "collapsed")
    assert trials.propose(1) == []
    assert trials.report()["best"] is None
    assert [cell.name for cell in trials.study().cells("*/seed0")] == ["preset/seed0"]


def test_trials_at_another_size_are_another_search(open_trials: OpenTrials, study: Study, tmp_path: Path) -> None:
    open_trials().propose(2)
    larger = read_study(study.path, changes={"model.width_g": "16"})
    assert open_trials(larger).propose(1) == ["trial00"]
    assert study.search is not None
    longer = replace(study, search=replace(study.search, trials=20))
    assert open_trials(longer).propose(9) == ["trial00", "trial01"], "more trials belong to the same search"


@pytest.mark.slow
def test_a_search_outlasts_a_database_that_is_started_anew(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.storage._RETRY_SECONDS", 0.1)

    def rest(trials: Trials) -> list[str]:
        while names := trials.propose(3):
            answer(trials, names)
        return trials.names()

    with postgres_server() as server, ThreadPoolExecutor() as pool:
        with Trials(server.url("search"), study) as trials:
            answer(trials, trials.propose(3))
            server.stop()
            at_work = [pool.submit(rest, trials), pool.submit(Trials, server.url("search"), study)]
            wait(at_work, timeout=0.5)
            assert not any(one.done() for one in at_work)
            server.start()
            assert at_work[0].result(60) == [f"trial{number:02}" for number in range(8)]
            with at_work[1].result(60) as again:
                assert again.report()["best"] == trials.report()["best"] is not None
