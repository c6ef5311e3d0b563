from __future__ import annotations

from dataclasses import replace

import made_studies
import numpy as np
from made_studies import geometric, make_results

from reports.sections import grid, ladder, paper_tables, search
from reports.tables import Table


def column(table: Table | None, heading: str) -> dict[str, str]:
    assert table is not None
    place = table.columns.index(heading)
    return {row.cells[0]: row.cells[place] for part in table.blocks for row in part.rows}


def test_table1_has_the_papers_nine_columns_and_no_controls_of_equal_operations() -> None:
    table = paper_tables.table1(made_studies.residual())
    assert table is not None
    places = ("8", "16", "32", "64")
    assert table.columns == ("", "no attention", *(f"feat{k}" for k in places), *(f"residual{k}" for k in places))
    theirs = table.blocks[1].rows[0].cells
    assert theirs == ("FID ↓", "22.96", "22.98", "22.14", "18.28", "18.65", "42.13", "22.40", "27.33", "28.82")


def test_attention_is_compared_with_the_residual_block_of_its_own_place() -> None:
    results = made_studies.residual(contrasts=(("feat16", "residual16"),))
    table = paper_tables.attention_against_residual(results)
    assert table is not None
    fid = results.finished("fid")
    ratio = geometric(fid["feat16"]) / geometric(fid["residual16"])
    rows = {row.cells[0]: row.cells for row in table.blocks[0].rows}
    assert list(rows) == ["8 × 8", "16 × 16", "32 × 32", "64 × 64"]
    assert rows["16 × 16"][3].startswith(f"−{100 - 100 * ratio:.0f} % (−")
    assert rows["64 × 64"] == ("64 × 64", "needs 128 px", "needs 128 px", "–", "–", "needs 128 px", "–", "–")
    attention_alone = made_studies.described(make_results({"none": {0: 1.0}, "feat8": {0: 1.0}}),
                                             changes={"feat8": {"model.attention.at": [8]}})  # fmt: skip
    assert paper_tables.attention_against_residual(attention_alone) is None


def test_table2_heads_each_block_by_its_own_extractor() -> None:
    table = paper_tables.table2(made_studies.comparison())
    assert table is not None
    ours, theirs = table.blocks
    assert [row.cells[0] for row in ours.rows[1:]] == ["IS embedded-v1 ↑", "intra-FD embedded-v1 ↓", "FD embedded-v1 ↓"]
    assert [row.cells for row in theirs.rows] == [
        ("IS ↑", "28.50", "36.80", "52.52"),
        ("intra-FID ↓", "260.00", "92.40", "83.70"),
        ("FID ↓", "–", "27.62", "18.65"),
    ]


def test_later_reimplementations_are_compared_within_a_protocol_only() -> None:
    table = paper_tables.reimplementations(made_studies.comparison())
    assert table is not None and all(part.published for part in table.blocks)
    # SNGAN without attention scores better in all but one of them.
    assert sum(1 in row.bold for row in table.blocks[0].rows) == len(table.blocks[0].rows) - 1


def test_the_rate_that_the_paper_leaves_out_is_read_from_what_was_run() -> None:
    table = paper_tables.figure4(made_studies.ladder())
    assert table is not None
    assert "here lr_G = lr_D = 0.0002 in sn_d and sn_g_d." in " ".join(table.notes)
    assert table.blocks[0].rows[0].cells[1:] == ("0.0002 / 0.0002", "0.0002 / 0.0002", "0.0001 / 0.0004")
    assert column(table, "sn_d")["outcome"] == "3 collapsed at step 500, 750, 1,000"
    table = grid.grid(made_studies.switches())
    assert table is not None and "lr_G = lr_D = 0.0002" in table.notes[-1]
    not_started = made_studies.described(made_studies.ladder(), params=dict.fromkeys(made_studies.LADDER, {}))
    table = paper_tables.figure4(not_started)
    assert table is not None and "learning rate of its arms" not in " ".join(table.notes)


def test_a_ladder_says_what_each_rung_adds_and_what_it_brings() -> None:
    results = made_studies.recipe()
    table = ladder.ladder(results)
    adds, change = column(table, "adds"), column(table, "to the rung above")
    assert (adds["sn_cbn"], adds["sn_eps"]) == ("model.sn.cbn = false", "model.sn.eps = 1e-08")
    fid = results.finished("fid")
    ratio = geometric(fid["ema"]) / geometric(fid["bn_statistics"])
    assert change["public"] == "–" and change["ema"].startswith(f"−{100 - 100 * ratio:.0f} % (−")
    assert table is not None and table.blocks[1].published
    assert [row.cells[2] for row in table.blocks[1].rows] == ["FID 34.78", "FID 12.83"]
    assert ladder.ladder(replace(results, design="one_at_a_time")) is None


def test_a_grid_puts_each_variant_at_its_levels() -> None:
    results = made_studies.rate_grid()
    table = grid.grid(results)
    assert table is not None
    assert table.columns == ("lr_g \\ lr_d", "d1e-4", "d2e-4", "d4e-4", "d8e-4")
    fid = {name: geometric(own) for name, own in results.finished("fid").items() if own}
    assert column(table, "d1e-4")["g2e-4"].startswith(f"{fid['g2e-4+d1e-4']:.1f} (")
    best = min(fid, key=lambda name: fid[name])
    (bold,) = [(row.cells[0], table.columns[place]) for row in table.blocks[0].rows for place in row.bold]
    assert "+".join(bold) == best


def test_two_switches_whose_ratios_multiply_have_no_effect_beyond_that() -> None:
    rng = np.random.default_rng(3)
    fid = {f"{g}+{d}": dict(enumerate(40 * 0.9 ** (g == "g_on") * 0.7 ** (d == "d_on") * rng.lognormal(0, 0.01, 6)))
           for g in ("g_off", "g_on") for d in ("d_off", "d_on")}  # fmt: skip
    template = made_studies.switches()
    results = replace(made_studies.described(make_results(fid), factors={v.name: v.factors for v in template.variants}),
                   design="grid", factors=template.factors)  # fmt: skip
    table = grid.effects(results)
    shown, p = column(table, "in FD embedded-v1"), column(table, "p, adjusted")
    assert shown["sn_g: g_on against g_off"].startswith(("−10 %", "−9.", "−11 %"))
    assert shown["sn_d: d_on against d_off"].startswith(("−30 %", "−29 %", "−31 %"))
    assert p["sn_d: d_on against d_off"] == "< 0.001" and float(p["interaction"]) > 0.05


def test_trials_are_listed_best_first_and_enter_no_other_table() -> None:
    results = made_studies.search()
    table = search.trials(results)
    assert table is not None and results.search is not None
    assert table.columns == ("trial", "optim.lr_g", "optim.d_steps", "FD embedded-v1 ↓", "state")
    values = {trial.variant: trial.value for trial in results.search.trials if trial.value is not None}
    scored = sorted(values, key=lambda name: values[name])
    assert [row.cells[0] for row in table.blocks[0].rows] == [*scored, "trial03", "trial05", "trial11"]
    rows = {row.cells[0]: row for row in table.blocks[0].rows}
    assert rows["trial10"].bold and rows["trial03"].cells[3:] == ("–", "failed")
    assert "optim.lr_g 0.0001 to 0.001, log scale; optim.d_steps one of 1, 2" in table.notes[0]
