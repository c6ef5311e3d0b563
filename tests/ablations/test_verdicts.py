"""Verdicts of recorded cells, and which cells are needed next, without a launch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ablations.display import progress_line, row_texts, verdict_table
from ablations.plan import PRIMARY_METRICS, UNDIRECTED, Study
from ablations.queue import CellState
from ablations.results import Result
from ablations.study import read_study
from ablations.table import answer
from ablations.verdicts import CellScores, cell_scores, comparisons, verdict_rows, wanted
from reports import statistics

WriteStudy = Callable[..., Path]
ADAPTIVE = {
    "[0, 1]": "{first: 3, most: 6}\nmargin: 20 %\nmetric: fid",
    "feat64: {model.attention.at: [64]}": "feat16: {model.attention.at: [16]}",
}


@pytest.fixture
def study(write_study: WriteStudy) -> Study:
    return read_study(write_study(ADAPTIVE))


def scored(study: Study, scores: Mapping[str, Sequence[float | None]]) -> CellScores:
    """`scores` are by variant, in the order of seeds."""
    cells = {(cell.variant, cell.seed): cell.key for cell in study.cells()}
    return {
        cells[name, seed]: score for name, own in scores.items() for seed, score in zip(study.seeds, own, strict=False)
    }


def finished(recorded: CellScores) -> dict[str, Result]:
    return {key: Result("finished", scores={"fid": score}) for key, score in recorded.items() if score}


def names(study: Study, recorded: CellScores, most: int | None = None) -> list[str]:
    return [cell.name for cell in wanted(study, recorded, most)]


def test_undecided_variants_are_wanted_seed_by_seed_with_their_reference(study: Study) -> None:
    three = [f"{name}/seed{seed}" for seed in (20, 21, 22) for name in ("none", "feat32", "feat16")]
    assert names(study, {}) == three
    first = scored(study, {"none": [10.0, 10.5, 9.8], "feat32": [11.0, 9.0], "feat16": [1.0, 1.02, 0.98]})
    assert names(study, first) == ["feat32/seed22"]
    decided = {**first, **scored(study, {"feat32": [11.0, 9.0, 10.0]})}
    assert names(study, decided) == ["none/seed23", "feat32/seed23"], "feat16 is better already"
    assert names(study, decided, most=3) == []
    assert [row.verdict for row in comparisons(study, decided)] == ["undecided", "better"]


def test_a_seed_that_is_still_to_come_hides_later_ones(study: Study) -> None:
    later = scored(study, {"none": [10.0, 10.0, 10.1], "feat16": [10.0, 9.9, 10.0], "feat32": [9.0, 9.1, 9.0, 9.2]})
    (gap,) = [key for key in later if "|feat32|21|" in key]
    assert names(study, {key: score for key, score in later.items() if key != gap}) == ["feat32/seed21"]


def test_a_variant_that_is_compared_with_nothing_gets_the_seeds_of_the_first_look(write_study: WriteStudy) -> None:
    study = read_study(write_study({**ADAPTIVE, "factors:": "contrasts: [[feat16, feat32]]\nfactors:"}))
    assert [name for name in names(study, {}) if "none" in name] == ["none/seed20", "none/seed21", "none/seed22"]
    done = scored(study, {"none": [1.0] * 3, "feat32": [9.0, 9.5, 9.2], "feat16": [8.0, 10.0, 9.0]})
    assert names(study, done) == ["feat32/seed23", "feat16/seed23"]


def test_cells_that_failed_or_collapsed_have_no_score_and_hold_up_no_look(study: Study) -> None:
    cells = {cell.name: cell.key for cell in study.cells()}
    results = {cells[f"none/seed{seed}"]: Result("finished", scores={"fid": 9.0 + seed}) for seed in (20, 21, 22)}
    results |= {cells[f"feat32/seed{seed}"]: Result("collapsed") for seed in (20, 21, 22)}
    failed = {cells[f"feat16/seed{seed}"] for seed in (20, 21, 22)}
    recorded = cell_scores(study, results, failed)
    assert len(recorded) == 9 and sum(score is None for score in recorded.values()) == 6
    assert {name.partition("/")[2] for name in names(study, recorded)} == {"seed23"}
    said = "So far (6 of 12 cells): FD embedded-v2: feat32 and feat16 not compared, for lack of scores."
    assert answer(study, results, failed) == said


def test_the_answer_says_what_was_decided_when(study: Study) -> None:
    scores = {"none": [10.0, 10.5, 9.8, 10.2], "feat32": [10.1, 10.4, 9.9], "feat16": [1.0, 1.02, 0.98]}
    better, rest = answer(study, finished(scored(study, scores))).split("; ")
    assert better.startswith("feat16 lowers FD embedded-v2 by 90 % against none (repeated 95 % interval ")
    assert (
        better.endswith("), decided after 3 seeds")
        and rest == "feat32 equivalent to none within 20 %, decided after 3."
    )


def test_a_study_with_a_list_of_seeds_has_the_verdicts_of_its_one_test(write_study: WriteStudy) -> None:
    study = read_study(write_study({"[0, 1]": "[0, 1, 2, 3]", "seeds:": "metric: is\nseeds:"}))
    chance = np.random.default_rng(3)
    for effect in (0.0, -8.0, 8.0):
        scores = {"none": chance.normal(10, 1, 4), "feat32": chance.normal(10 + effect, 1, 4)}
        (row,) = comparisons(study, scored(study, {name: list(map(float, own)) for name, own in scores.items()}))
        (gap,) = statistics.compare(scores, [statistics.pair("feat32", "none")])
        assert row.gap == gap
        assert row.verdict == {0.0: "undecided", -8.0: "worse", 8.0: "better"}[effect], "a higher IS is better"


def test_metrics_without_a_better_direction_are_those_of_the_report() -> None:
    assert UNDIRECTED == tuple(name for name in PRIMARY_METRICS if statistics.lower_is_better(name) is None)


def test_the_live_table_shows_verdicts_and_what_runs(study: Study) -> None:
    recorded = scored(study, {"none": [10.0, 10.5, 9.8], "feat32": [11.0, 9.0, 10.0], "feat16": [1.0, 1.02, 0.98]})
    cell = next(cell for cell in study.cells() if cell.name == "feat32/seed23")
    steps = cell.config.optim.steps
    running = CellState(cell, "running", {"step": steps // 4, "since": 0, "seconds": 60.0})
    console = Console(record=True, width=120)
    console.print(verdict_table(study, verdict_rows(study, recorded), [running]))
    lines = [line for line in console.export_text().splitlines() if line.startswith("│")]
    assert [line.split()[1] for line in lines] == ["none", "feat32", "feat16"]
    assert "undecided" in lines[1] and re.search("seed 23 .* 25% 3.0 min", lines[1])
    assert "better after 3" in lines[2] and "x 0.099 (0.0" in lines[2]
    assert progress_line([running], 1) == "0 of 1 cells done, 1 running, about 3.0 min left"


def test_a_variant_that_more_seeds_would_hardly_decide_gets_none(study: Study) -> None:
    scores = {"none": [10.0, 13.0, 8.0], "feat32": [13.0, 8.0, 10.0], "feat16": [1.0, 1.02, 0.98]}
    recorded = scored(study, scores)
    assert names(study, recorded) == []
    (row,) = (row for row in verdict_rows(study, recorded) if row.variant == "feat32")
    assert row_texts(row, "none")[-1] == "undecided after 3, stopped for futility"


def test_seeds_that_an_earlier_launch_recorded_count_in_the_answer_and_in_the_table(write_study: WriteStudy) -> None:
    study = read_study(write_study({"[0, 1]": "[0, 1, 2]", "seeds:": "metric: is\nseeds:"}))
    scores = {"none": [10.0, 10.2, 9.9], "feat32": [20.0, 20.1, 19.8]}
    cells = {(cell.variant, cell.seed): cell.key for cell in study.cells()}
    results = {
        cells[name, seed]: Result("finished", scores={"is": score})
        for name, own in scores.items()
        for seed, score in enumerate(own)
    }
    said = answer(study, results)
    assert said.startswith("feat32 raises IS embedded-v2 by ") and said.endswith(", n = 3.")
    other = study.at_seeds([7])
    assert answer(other, results) == f"So far (0 of 2 cells): {said}"
    assert [row.estimate and row.estimate.n for row in verdict_rows(other, cell_scores(other, results, ()))] == [3, 3]


def test_a_pair_without_scores_is_named_by_both_of_its_sides_where_there_are_several_references(
    write_study: WriteStudy,
) -> None:
    contrasts = "contrasts: [[feat16, none], [feat16, feat32]]\nfactors:"
    study = read_study(write_study({**ADAPTIVE, "factors:": contrasts}))
    recorded = scored(study, {"none": [10.0, 10.5, 9.8], "feat16": [1.0, 1.02, 0.98], "feat32": [None] * 3})
    assert answer(study, finished(recorded), [key for key, score in recorded.items() if score is None]).endswith(
        "decided after 3 seeds; feat16 against feat32 not compared, for lack of scores."
    )
