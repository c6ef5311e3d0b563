from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import made_studies
import numpy as np
import pandas as pd
import pytest
from made_studies import make_results

from reports import comparison, format, sequential, statistics
from reports.comparison import compare, improvement, mark_unneeded_cells, progress
from reports.frames import comparisons
from reports.page import PAGE
from reports.results import Results
from reports.sections import cells, paper_tables, variants
from reports.sections.answer import answer, headline, power_statement
from reports.tables import Table, caption
from reports.writers import latex, markdown


def scores() -> dict[str, dict[int, float]]:
    return {
        "none": {0: 24.0, 1: 26.0, 2: 25.0},
        "feat32": {0: 22.0, 1: 24.2, 2: 22.8},
        "feat8": {0: 23.5},
        "feat64": {},
    }


def test_table1_puts_the_papers_numbers_apart_beneath_ours() -> None:
    results = make_results(scores(), build_errors={"feat64": "needs 128 px"})
    table = paper_tables.table1(results)
    assert table is not None
    assert markdown(replace(table, notes=())) == (
        "### Table 1, with our numbers\n"
        "\n"
        "|  | no attention | feat32 | feat8 | feat64 |\n"
        "| :-- | --: | --: | --: | --: |\n"
        "| *ours: embedded, mean (95 % interval over training seeds)* |  |  |  |  |\n"
        "| seeds finished | 3 of 3 | 3 of 3 | 1 of 3 | – |\n"
        "| FD embedded-v1 ↓ | 25.0 (22.6 to 27.6) | **23.0 (20.4 to 25.9)** | 23.5 | needs 128 px |\n"
        "| *paper: ImageNet 128 px, 1M steps, one run, no interval* |  |  |  |  |\n"
        "| FID ↓ | 22.96 | **18.28** | 22.98 | 18.65 |\n"
        "| IS ↑ | 42.87 | 51.43 | 43.15 | **52.52** |\n"
    )


def test_every_cell_and_every_loss_is_accounted_for_in_the_outcomes() -> None:
    results = make_results(scores(), build_errors={"feat64": "needs 128 px"}, states={("none", 1): "collapsed"})
    outcome = {row.cells[0]: row.cells[-1] for row in variants.scores(results).blocks[0].rows}
    assert outcome == {
        "none": "2 finished, 1 collapsed at step 1,000",
        "feat32": "3 finished",
        "feat8": "1 finished, 2 missing",
        "feat64": "needs 128 px",
    }


@pytest.mark.parametrize(
    "fid, sentence",
    [
        ({"none": {0: 9.0}, "feat32": {}},
         "No answer yet: no comparison has a finished cell on both sides."),
        ({"none": {0: 9.0}, "feat32": {0: 8.0}}, "By FD embedded-v1, feat32 is 11 % below none on one seed; one "
                                                  "seed shows no interval."),
        ({"none": {0: 24.0, 1: 26.0, 2: 25.0}, "feat32": {0: 20.0, 1: 22.1, 2: 20.9}},
         "feat32 lowers FD embedded-v1 by 16 % against none (95 % interval 7.8 to 23.5 %), n = 3."),
        ({"none": {0: 24.0, 1: 26.0, 2: 25.0}, "feat32": {0: 22.0, 1: 28.0, 2: 23.0}},
         "No difference shown with n = 3 per variant. With 80 % power, this design would show FD embedded-v1 lowered "
         "by 26 % or raised by 34 %, or more."),
        ({"none": {0: 24.0, 1: 26.0, 2: 25.0}, "feat32": {0: 27.0, 1: 29.1, 2: 27.9}},
         "feat32 raises FD embedded-v1 by 12 % against none (95 % interval 3.5 to 21.2 %), n = 3."),
    ],
)  # fmt: skip
def test_the_headline_claims_what_the_seeds_show_and_no_more(fid: dict[str, dict[int, float]], sentence: str) -> None:
    assert headline(make_results(fid)).removeprefix("So far (2 of 2 cells): ") == sentence


def test_the_page_says_what_could_have_been_seen_by_its_own_spread_or_by_what_else_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shipped: dict[str, float] = {}
    monkeypatch.setattr(statistics, "shipped_noise", lambda preset, metric: shipped.get(metric))

    def expected(n: int, sd: float, by: str) -> str:
        effect = statistics.minimum_detectable_effect({"none": n, "feat8": n}, [statistics.pair("feat8", "none")])
        assert effect is not None
        lowered, raised = (100 * abs(np.expm1(sign * effect * sd)) for sign in (-1, 1))
        size = f"FD embedded-v1 lowered by {lowered:.0f} % or raised by {raised:.0f} %, or more"
        return f"With 80 % power, {n} seeds per variant and 1 comparison show {size}, {by}."

    results = make_results({"none": {0: 20.0, 1: 25.0, 2: 24.0}, "feat8": {0: 19.0, 1: 26.0, 2: 22.0}})
    variances = [np.var(np.log(list(own.values())), ddof=1) for own in results.finished("fid").values()]
    own = expected(3, float(np.sqrt(np.mean(variances))), "by its own spread over seeds")
    evidence = variants.evidence(results)
    assert evidence is not None and evidence.notes[-1] == power_statement(results) == own
    begun = make_results({"none": {0: 20.0}, "feat8": {0: 19.0, 1: 21.0, 2: 18.0}})
    begun = replace(begun, final_scores=begun.final_scores.where(begun.cells["seed"] == 0))
    assert power_statement(begun) is None
    shipped["fid"] = 0.4
    assert power_statement(begun) == expected(3, 0.4, "by the spread that the preset is known to have")
    begun = replace(begun, noise=0.2)
    assert power_statement(begun) == expected(3, 0.2, "by the spread of this preset's other studies")


def test_collapsed_runs_are_named_with_the_answer_and_a_baseline_that_always_collapses_is_one() -> None:
    sentence = headline(made_studies.ladder())
    assert sentence.endswith("Collapsed or diverged: 3 of 3 runs of sn_d, 1 of 3 runs of sn_g_d.")
    assert "sn_g_d_ttur lowers" in sentence  # the ladder's other step has its answer
    fid = {"none": {0: 24.0, 1: 26.0, 2: 25.0, 3: 25.5}, "feat32": {0: 20.0, 1: 22.1, 2: 20.9, 3: 900.0}}
    sentence = headline(make_results(fid, states={("feat32", 3): "collapsed"}))
    assert sentence.startswith("feat32 lowers FD embedded-v1 by 16 % against none"), "900 enters no mean"
    ended = {("none", seed): "collapsed" for seed in range(3)}
    sentence = headline(make_results({"none": {}, "feat8": {0: 9.0, 1: 9.0, 2: 9.0}, "feat32": {0: 8.0}}, states=ended))
    assert sentence.endswith(
        "No answer yet: no comparison has a finished cell on both sides. Collapsed or diverged: 3 of 3 runs of none."
    )


def test_a_search_claims_what_its_confirmation_found_and_not_what_it_saw() -> None:
    sentence = headline(made_studies.search())
    assert re.match(r"trial10 \(best of 12 trials\) lowers FD embedded-v1 by \d+ % against preset", sentence)
    waiting = headline(made_studies.search(confirmed=False))
    assert waiting.startswith("Nothing confirmed yet: 11 trials are done")


def test_a_claim_made_by_picking_among_many_is_taken_back() -> None:
    none, lucky = {0: 24.0, 1: 26.0, 2: 25.0}, {0: 20.3, 1: 22.9, 2: 21.6}
    others = {f"v{k}": {0: 25.0 + 2 * k, 1: 25.0, 2: 25.5 - 2 * k} for k in range(4)}
    assert "lucky lowers" in headline(make_results({"none": none, "lucky": lucky}))
    assert headline(make_results({"none": none, "lucky": lucky, **others})).startswith("No difference")


def random_study(rng: np.random.Generator) -> Results:
    """Of any number of variants, scored by a metric of either scale and direction, with effects of any size."""
    n = int(rng.integers(2, 5))
    names = ["none", *(f"v{k}" for k in range(rng.integers(1, 5)))]
    effects = rng.choice([-1.5, -0.4, 0.0, 0.0, 0.3, 1.2], len(names))
    fid = {
        name: {seed: float(np.exp(3 + effect + rng.normal(0, 0.2))) for seed in range(n)}
        for name, effect in zip(names, effects, strict=True)
    }
    results = make_results(fid)
    metric = str(rng.choice(["fid", "relation_error", "is", "coverage"]))
    contrasts = ((names[-1], "none"), ("none", names[1])) if rng.random() < 0.2 and len(names) > 2 else ()
    return replace(
        results, final_scores=results.final_scores.rename(columns={"fid": metric}), metric=metric, contrasts=contrasts
    )


def claims(sentence: str) -> dict[tuple[str, str], str]:
    """{(variant, reference): verb} of a headline."""
    found: dict[tuple[str, str], str] = {}
    reference = ""
    for clause in sentence.split("; "):
        match = re.match(r"(\w+) (lowers|raises) .*?by [\d.,× ]+(?: %)?(?: against (\w+))? \(", clause)
        if match:
            reference = match[3] or reference
            found[match[1], reference] = match[2]
    return found


@pytest.mark.parametrize("studies", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_sentence_contradicts_its_table(studies: int) -> None:
    rng = np.random.default_rng(11)
    shown = 0
    for _ in range(studies):
        results = random_study(rng)
        rows = compare(results, results.metric)
        expected = {
            (row.variant, row.reference): "lowers" if row.gap.value < 0 else "raises"
            for row in rows
            if row.gap.p is not None and row.gap.p < 0.05
        }
        assert claims(answer(rows, results)) == expected, answer(rows, results)
        assert bool(expected) == (not headline(results).startswith("No difference shown"))
        for row in rows:
            assert row.gap.low is not None and row.gap.high is not None
            assert (row.gap.low > 0 or row.gap.high < 0) == ((row.variant, row.reference) in expected)
        shown += len(expected)
    assert shown > studies / 4


def test_adaptive_seeds_are_answered_by_the_looks() -> None:
    results = made_studies.adaptive()
    looked = progress(results)
    assert looked is not None
    verdicts = {variant: verdict for (variant, _), verdict in looked.verdicts.items()}
    labels = {"feat8": "equivalent", "feat16": "better", "feat32": "undecided"}
    assert {name: verdict.label for name, verdict in verdicts.items()} == labels, "of each kind one"
    n = {name: verdict.n for name, verdict in verdicts.items()}
    assert re.fullmatch(
        r"feat16 lowers FD embedded-v1 by \d+ % against none \(repeated 95 % interval [\d.]+ to [\d.]+ %\), "
        rf"decided after {n['feat16']} seeds; feat8 equivalent to none within 20 %, decided after {n['feat8']}; "
        r"feat32 [+−][\d.]+ % \(−[\d.]+ to [\d.]+\) undecided after 12 seeds\. "
        r"Collapsed or diverged: 1 of 12 runs of feat32\.",
        headline(results),
    )
    table = variants.evidence(results)
    assert table is not None
    place = {name: table.columns.index(name) for name in ("verdict", "more seeds?", "seeds")}
    said = {row.cells[0]: [row.cells[where] for where in place.values()] for row in table.blocks[0].rows}
    assert said == {
        "feat8": ["equivalent", "no: interval within 20 %", str(n["feat8"])],
        "feat16": ["better", "no: interval without 0", str(n["feat16"])],
        "feat32": ["undecided", "no: none planned", "12"],
    }
    statement = power_statement(results) or ""
    assert statement.startswith("With 80 % power, at most 12 seeds per variant and 3 comparisons show ")
    assert cells.progress(results).endswith(f"; {24 - n['feat8'] - n['feat16']} not needed")


def test_a_launch_that_stopped_before_a_decision_says_how_far_it_is() -> None:
    begun = made_studies.adaptive(until=0)
    assert headline(begun) == "No result yet: 0 of 12 cells are done."
    assert cells.progress(begun) == "0 of 12 cells done: 12 missing; 36 later if needed"
    stopped = made_studies.adaptive(until=1)
    said = headline(stopped)
    assert re.match(
        r"So far \(12 of 16 cells\): FD embedded-v1 against none, with repeated 95 % intervals: "
        r"feat8 [^;]*\) and feat16 [^;]*\) undecided after 3 seeds; feat32 not compared, for lack of scores\.",
        said,
    ), said
    before = replace(stopped, cells=stopped.cells.assign(state=stopped.cells["state"].replace("collapsed", "running")))
    assert headline(before) == "So far (11 of 16 cells): No answer yet: the first look is at 3 seeds per variant."


def test_a_variant_that_waits_for_a_seed_of_its_reference_gets_more_seeds() -> None:
    stopped = made_studies.adaptive(until=1)
    states = stopped.cells["state"].replace(["later if needed", "not needed"], "missing")
    has_ended = (stopped.cells["variant"] == "feat8") & (stopped.cells["seed"] == 23)
    scores = stopped.final_scores.assign(fid=stopped.final_scores["fid"].where(~has_ended, 1.0))
    cells_now = stopped.cells.assign(state=states.where(~has_ended, "finished"))
    waiting = mark_unneeded_cells(replace(stopped, cells=cells_now, final_scores=scores))
    looked, table = progress(waiting), variants.evidence(waiting)
    assert looked is not None and table is not None and "feat8" not in {name for name, _ in looked.wanted}
    row = next(row for row in table.blocks[0].rows if row.cells[0] == "feat8")
    assert row.cells[table.columns.index("more seeds?")] == "yes"
    last = waiting.cells[(waiting.cells["variant"] == "feat8") & (waiting.cells["seed"] == 31)]
    assert list(last["state"]) == ["later if needed"]


def test_the_smallest_difference_that_looks_show_is_shown_in_four_of_five_studies() -> None:
    """And with any noise: in its units it is the same, where there is no margin."""
    pairs = (("a", "none"), ("b", "none"))
    rule, sd = sequential.Rule(sequential.looks(3, 8), pairs, None, log=True), 0.3
    effect = comparison._minimum_detectable_by_looks(rule, sd)
    assert comparison._minimum_detectable_by_looks(rule, 1.0) == pytest.approx(effect / sd, rel=0.05)
    rng = np.random.default_rng(1)
    scores = sd * rng.standard_normal((1000, 3, 8)) + np.array([[[effect], [0], [0]]])
    labels, _ = sequential.replay_many(scores, ["a", "none", "b"], rule, lower_is_better=True)
    assert (labels[:, 0] == sequential.LABELS.index("worse")).mean() == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("until", range(1, 8))
def test_the_headline_of_adaptive_seeds_claims_the_verdicts_and_no_more(until: int) -> None:
    results = made_studies.adaptive(until=until)
    rows = compare(results, results.metric)
    verbs = {"better": "lowers", "worse": "raises"}
    expected = {(row.variant, row.reference): verbs[str(row.verdict)] for row in rows if row.verdict in verbs}
    assert claims(answer(rows, results)) == expected
    looked = progress(results)
    assert looked is not None and {row.variant: (row.verdict, row.decided_after) for row in rows} == {
        variant: (verdict.label, verdict.n) for (variant, _), verdict in looked.verdicts.items() if verdict.gap
    }


def relations_study() -> Results:
    """A study by relation_error, which FD contradicts."""
    results = make_results({
        "none": {0: 0.8, 1: 1.0, 2: 1.25, 3: 0.9}, "feat8": {0: 0.7, 1: 1.2, 2: 1.0, 3: 0.9},
        "feat32": {0: 0.2, 1: 0.25, 2: 0.24, 3: 0.19}, "feat64": {},
    }, build_errors={"feat64": "needs 128 px"})  # fmt: skip
    error = results.final_scores["fid"]
    more = {"fid": 20 - 10 * error, "is": 1 + error, "relation_correlation": 1 - error / 2, "relation_spread": error}
    return replace(results, final_scores=pd.DataFrame({"relation_error": error, **more}), metric="relation_error")


def test_the_primary_metric_comes_first_and_the_others_are_said_to_be_secondary() -> None:
    table = variants.scores(relations_study())
    assert table.columns == (
        *("variant", "relation error ↓", "difference to none", "seeds", "FD embedded-v1 ↓", "IS embedded-v1 ↑"),
        *("relation correlation ↑", "outcome"),
    )
    rows = {row.cells[0]: row for row in table.blocks[0].rows}
    assert [name for name, row in rows.items() if row.bold] == ["feat32"]
    assert rows["none"].cells[1] == "0.97 (0.72 to 1.32)" and rows["none"].cells[2] == "–"
    assert re.fullmatch(r"−78 % \(−\d\d to −\d\d\)", rows["feat32"].cells[2])
    assert rows["feat64"].cells[1:3] == ("needs 128 px", "–")
    assert "relation error is the primary metric, by which the study answers; the others are secondary" in str(
        table.notes
    )
    assert "intervals over 2 comparisons; p" in str(table.notes)  # none of a variant that cannot be built
    assert headline(relations_study()).startswith("feat32 lowers relation error by 78 % against none")


def test_the_table_as_a_file_says_role_scale_and_reference_of_every_comparison() -> None:
    results = relations_study()
    frame = comparisons(results).set_index(["metric", "variant"])
    assert list(comparisons(results).columns) == [
        *("study", "protocol", "variant", "metric", "role", "scale", "mean", "low95", "high95", "sd", "n", "planned"),
        *("metric_fingerprint", "reference", "difference", "difference_low95", "difference_high95", "p_adjusted"),
        *("probability_of_improvement", "verdict", "decided_after"),
    ]
    roles = frame["role"].groupby(level="metric").unique().map(list)
    assert roles.to_dict() == {
        key: ["primary" if key == "relation_error" else "secondary"] for key in results.final_scores
    }
    assert frame["scale"].groupby(level="metric").first().to_dict() == {
        **dict.fromkeys(("relation_error", "fid"), "log"),
        **dict.fromkeys(("is", "relation_correlation", "relation_spread"), "linear"),
    }
    row, base = frame.loc[("relation_error", "feat32")], frame.loc[("relation_error", "none")]
    logs = {name: np.log(list(own.values())) for name, own in results.finished("relation_error").items() if own}
    assert row["mean"] == pytest.approx(np.exp(logs["feat32"].mean()))
    assert row["sd"] == pytest.approx(logs["feat32"].std(ddof=1))
    assert row["difference"] == pytest.approx(np.exp(logs["feat32"].mean() - logs["none"].mean()) - 1)
    assert -1 < row["difference_low95"] < row["difference"] < row["difference_high95"] < 0
    assert row["reference"] == "none" and row["p_adjusted"] < 0.05 and row["probability_of_improvement"] == 1
    assert row["verdict"] == "better" and pd.isna(frame.loc[("fid", "feat32"), "verdict"])  # of the primary alone
    assert pd.isna(base["reference"]) and pd.isna(base["difference"])
    assert "feat64" not in frame.index.get_level_values("variant")


def test_where_higher_is_better_so_is_a_higher_probability_of_improvement() -> None:
    results = make_results({"none": {0: 1.0, 1: 1.1, 2: 1.2}, "feat32": {0: 2.0, 1: 2.1, 2: 2.2}})
    results = replace(results, final_scores=results.final_scores.rename(columns={"fid": "is"}))
    assert [improvement(results, "is", row) for row in compare(results, "is")] == [1.0]


def tables_of(results: Results) -> list[Table]:
    made = (make(results) for section in PAGE for make in section.tables)
    return [table for table in made if table is not None]


def test_every_table_has_whole_rows_and_compiles_in_latex(tmp_path: Path) -> None:
    loaded = (make_results(scores(), build_errors={"feat64": "needs 128 px"}), *(make() for make in made_studies.ALL))
    every_table = [table for results in loaded for table in tables_of(results)]
    for table in every_table:
        assert {len(row.cells) for part in table.blocks for row in part.rows} == {len(table.columns)}, table.title
        assert latex(table).isascii(), "plain LaTeX cannot set it"
    if shutil.which("pdflatex"):
        body = "\\clearpage\n".join(map(latex, every_table))  # LaTeX holds few floats at a time
        source = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
        (tmp_path / "t.tex").write_text(source, encoding="utf-8")
        subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


def test_the_best_of_a_run_stands_beside_the_last_step_and_in_no_other_table() -> None:
    results = make_results({"none": {0: 20.0, 1: 22.0}, "feat32": {0: 19.0, 1: 21.0}})
    fid = results.final_scores["fid"]
    results = replace(results, final_scores=pd.DataFrame({"fid": fid, "best/fid": fid - 7, "best/step": 100 * fid}))
    table = variants.best_of_run(results)
    assert table is not None
    assert [row.cells for row in table.blocks[0].rows] == [
        ("none", "21.0 (11.4 to 38.4)", "14.0 (5.6 to 34.7)", "2,100"),
        ("feat32", "20.0 (10.6 to 37.7)", "13.0 (4.9 to 34.5)", "2,000"),
    ]
    others = "\n".join(markdown(other) for other in tables_of(results) if other.title != table.title)
    assert "21.0" in others and "14.0" not in others
    assert variants.best_of_run(make_results(scores())) is None


def test_shared_cells_are_marked_and_counted() -> None:
    results = make_results({"none": {0: 1.0, 1: 2.0}, "sagan": {0: 1.0}})
    origins = results.cells["variant"].map({"none": "attention_position"})
    results = replace(results, cells=results.cells.assign(shared_study=origins))
    none, sagan = cells.cells(results).blocks[0].rows
    assert none.cells == ("none", *["finished, shared with attention_position"] * 2)
    assert sagan.cells == ("sagan", "finished", "missing")
    assert "2 of the 3 cells are shared with attention_position" in caption(results)
    assert "shared" not in caption(make_results({"none": {0: 1.0}}))


def test_a_single_seed_is_said_to_have_no_interval() -> None:
    assert "n = 1. One seed has no interval." in caption(make_results({"none": {0: 1.0}, "feat8": {0: 2.0}}))
    assert "A figure without brackets is one seed's, which has no interval." in caption(make_results(scores()))
    assert "no interval" not in caption(make_results({"none": {0: 1.0, 1: 2.0}}))


def test_what_a_variant_takes_is_counted_once_and_measured_over_seeds() -> None:
    results = make_results({"none": {0: 1.0, 1: 3.0}, "feat8": {}})
    fid = results.final_scores["fid"]
    costs = {"num_params_g": 884_213.0, "flops_per_image": 66_500_000.0, "images_per_sec": 10 * fid}
    results = replace(results, final_scores=pd.DataFrame(costs)[fid.notna()].reindex(fid.index))
    table = variants.costs(results)
    assert table is not None
    assert table.columns == ("variant", "parameters of G", "operations per image, G + D", "images/s ↑")
    assert [row.cells for row in table.blocks[0].rows] == [
        ("none", "884 k", "66.5 M", "20.0"),
        ("feat8", "–", "–", "–"),
    ]


@pytest.mark.parametrize(
    "values, digits, decimals",
    [([123.4, 12.0], 3, 1), ([0.0123], 3, 4), ([5.0], 3, 2), ([], 3, 0), ([0.0], 3, 0), ([2500.0], 3, 0)],
)
def test_decimals_show_three_digits_of_the_smallest_value(values: list[float], digits: int, decimals: int) -> None:
    assert format.decimals(values, digits) == decimals
