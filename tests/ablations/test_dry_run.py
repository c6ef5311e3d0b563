from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from told import begin, tell

from ablations import dry_run
from ablations.machine import WorkerPool
from ablations.plan import Cell, Study, show
from ablations.study import read_study
from ablations.tracking.store import Store
from reports import statistics
from sagan.config import flatten
from sagan.cost import Cost

WriteStudy = Callable[..., Path]


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    """What reports/noise.yaml holds in this test: {(preset, metric): sd of the log}; nothing at first."""
    found: dict[tuple[str, str], float] = {}
    monkeypatch.setattr(statistics, "shipped_noise", lambda preset, metric: found.get((preset, metric)))
    return found


def said(study: Study, store: Store | None = None) -> str:
    return dry_run._power(study, study.with_all_trials().cells(), dry_run._noise(study, store))


def test_the_visible_difference_rests_on_the_shipped_noise_or_is_told_in_sds(
    write_study: WriteStudy, shipped: dict[tuple[str, str], float]
) -> None:
    study = read_study(write_study()).at_seeds(range(4))
    effect = statistics.minimum_detectable_effect({"none": 4, "feat32": 4}, [statistics.pair("feat32", "none")])
    assert effect is not None
    design = "What this could show with 80 % power (1 comparison, n = 4 per variant): "
    in_sds = f"a difference in relation_error of {effect:.1f} sds over seeds or more; no run has measured this sd."
    assert said(study) == design + in_sds
    shipped["embedded", "relation_error"] = 0.25
    lowered, raised = 100 * (1 - np.exp(-0.25 * effect)), 100 * (np.exp(0.25 * effect) - 1)
    size = f"relation_error lowered by {lowered:.0f} % or raised by {raised:.0f} %, or more"
    assert (
        said(study) == f"{design}{size}; sd of its log over seeds 0.25, as shipped for embedded in reports/noise.yaml."
    )


def test_one_seed_per_variant_shows_nothing_and_trials_of_a_search_are_no_seeds(write_study: WriteStudy) -> None:
    assert "no comparison has two seeds for both variants" in said(read_study(write_study()).at_seeds([0]))
    study = read_study(Path(__file__).parents[2] / "studies" / "ttur_search.yaml")
    assert f"(1 comparison, n = {len(study.seeds)} per variant)" in said(study.with_all_trials())


def test_the_noise_of_the_store_is_that_of_runs_as_long_and_scored_alike_in_any_study(
    write_study: WriteStudy, store: Store, tmp_path: Path, shipped: dict[tuple[str, str], float]
) -> None:
    def train(study: Study, cell: Cell, scores: Mapping[int, float], **tags: str) -> None:
        attempt, experiment_id = begin(tmp_path, cell, tags), store.open_experiment(study)
        for step, score in scores.items():
            tell(attempt, step, {study.metric: score}, status="finished" if step == max(scores) else None)
        store.send(experiment_id, attempt, has_ended=True)

    text = {"seeds:": "set: {eval.endpoint: 2}\nseeds:", "name: position": "name: earlier"}
    planned = replace(read_study(write_study(text)), name="planned")
    earlier = read_study(write_study({**text, "{model.attention.at: [32]}": "{model.attention.at: [16]}"}))
    shorter = replace(read_study(write_study(text), changes={"optim.steps": "400"}), name="shorter")
    shipped["embedded", "relation_error"] = 9.0
    cells = {cell.name: cell for cell in earlier.cells()}
    train(earlier, cells["none/seed0"], {600: 99.0, 800: 1.0, 1000: 4.0})  # geometric mean 2
    train(earlier, cells["none/seed1"], {600: 99.0, 800: 8.0, 1000: 8.0})
    train(earlier, cells["feat32/seed0"], {800: 3.0, 1000: 3.0}, shared_run="another's")
    train(earlier, cells["feat32/seed1"], {800: 900.0, 1000: 900.0})
    for cell in shorter.cells():
        train(shorter, cell, {200: 1.0 + cell.seed, 400: 100.0**cell.seed})
    sd = np.std(np.log([2.0, 8.0]), ddof=1)  # the one run of feat32 has none
    assert f"sd of its log over seeds {sd:.2g}, from 2 runs in the store." in said(planned, store)


def test_cells_take_as_long_as_earlier_runs_and_without_one_as_long_as_their_operations(
    write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(write_study())
    cells = {cell.variant: cell for cell in study.cells()}

    def ended(seconds: float, flops: float, changed: Mapping[str, str] = {}, **tags: str) -> SimpleNamespace:
        params = {name: show(value) for name, value in flatten(study.base).items()}
        params |= {"optim.batch_size": "10", "optim.d_steps": "1", **changed}
        data = SimpleNamespace(tags={"preset": "embedded"} | tags, params=params, metrics={"flops_per_image": flops})
        return SimpleNamespace(data=data, info=SimpleNamespace(start_time=5000, end_time=5000 + round(1000 * seconds)))

    digest = cells["none"].config_digest
    runs = [
        ended(10, 1e6, config_digest=digest, study="another"),
        ended(30, 1e6, config_digest=digest),
        ended(999, 1e6, config_digest=digest, shared_run="a copy"),
        ended(999, 1e6, preset="folder"),
        ended(999, 1e6, {"optim.steps": "6"}, study="smoke"),
        ended(50, 1e6, config_digest="a variant of another study"),
    ]
    store = cast(Store, SimpleNamespace(runs_of_all=lambda condition: runs))
    costs = {name: cast(Cost, SimpleNamespace(flops_per_image=3e6, flops_per_step=5e6)) for name in cells}
    pool = cast(WorkerPool, SimpleNamespace(devices=("cpu",), threads=1))
    monkeypatch.setattr(dry_run, "_flops_per_second", lambda device, threads: 1e6)
    seconds, _ = dry_run._estimated_seconds(study, list(cells.values()), store, costs, pool)
    assert seconds["none"] == 20.0, "the median of its own runs"
    optim = study.base.optim
    speed = 10 * optim.steps * 1e6 / 30  # of equal numbers of operations in 10, 30 and 50 seconds
    assert seconds["feat32"] == pytest.approx(optim.steps * optim.batch_size * optim.d_steps * 3e6 / speed)
    seconds, basis = dry_run._estimated_seconds(study, list(cells.values()), None, costs, pool)
    assert seconds == {"none": 5.0 * optim.steps, "feat32": 5.0 * optim.steps} and "convolution" in basis


def test_adaptive_seeds_cost_fewer_runs_where_there_is_more_to_find(write_study: WriteStudy) -> None:
    study = read_study(write_study({"[0, 1]": "{first: 3, most: 12}\nmargin: 30 %"}))
    table = dry_run._adaptive_cost(
        study, study.cells(), 12, {"none": 60.0, "feat32": 60.0}, 2, dry_run.Noise(0.2, True, "")
    )
    found = {title: int(runs) for title, runs in zip(*(column._cells for column in table.columns[:2]), strict=True)}
    assert list(found) == ["no difference", "10%", "20%", "40%", "all seeds"]
    assert found["40%"] < 14 < found["20%"] <= found["all seeds"] == 24
    assert list(table.columns[2]._cells)[-1] == "12 min", "both cells of a seed at once"
    bounded = dry_run._adaptive_cost(study, study.cells(), 6, {"none": 60.0}, 2, dry_run.Noise(None, True, ""))
    assert [list(column._cells)[-1] for column in bounded.columns[:3]] == ["all seeds", "6", "5.0 min"]
