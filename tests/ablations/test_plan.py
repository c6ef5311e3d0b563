from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ablations.study import read_study
from sagan.config import diff

WriteStudy = Callable[..., Path]

TWO_FACTORS = """
    name: two
    question: Which of two?
    preset: embedded
    seeds: [0]
    set: {optim.ttur: true}
    design: grid
    baseline: off+slow
    factors:
      norm:
        off: {model.sn.g: false}
        both: {model.sn.g: true}
      rate:
        slow: {optim.lr_d: 1e-4}
        fast: {optim.lr_d: 4e-4}
"""


def test_cells_come_seed_by_seed_and_a_variant_that_cannot_be_built_stays_in_the_plan(write_study: WriteStudy) -> None:
    study = read_study(write_study())
    assert [cell.name for cell in study.cells()] == ["none/seed0", "feat32/seed0", "none/seed1", "feat32/seed1"]
    assert len(read_study(write_study(), preset="imagenet128").cells()) == 6
    plan = study.plan()
    assert [variant["obstacle"] for variant in plan["variants"]] == [None, None, "needs 128 px"]
    assert plan["seeds"] == [0, 1]
    assert (plan["design"], plan["factors"]) == ("one_at_a_time", ["attention"])


def test_only_selects_variants_or_single_cells(write_study: WriteStudy) -> None:
    study = read_study(write_study())
    assert [cell.name for cell in study.cells("feat*")] == ["feat32/seed0", "feat32/seed1"]
    assert [cell.name for cell in study.cells("*/seed1")] == ["none/seed1", "feat32/seed1"]
    assert study.cells("feat64") == []


def test_a_grid_is_the_product_of_its_factors(write_study: WriteStudy) -> None:
    study = read_study(write_study(text=TWO_FACTORS))
    variants, plan = study.variants(), study.plan()
    assert [variant.name for variant in variants] == ["off+slow", "off+fast", "both+slow", "both+fast"]
    assert variants[3].factors == {"norm": "both", "rate": "fast"}
    assert variants[3].changes == {"model.sn.g": True, "optim.lr_d": 4e-4}
    assert (plan["design"], plan["factors"]) == ("grid", ["norm", "rate"])


def test_a_ladder_adds_its_levels_up(write_study: WriteStudy) -> None:
    ladder = {
        "seeds:": "design: ladder\nseeds:",
        "feat64: {model.attention.at: [64]}": "two: {optim.ttur: true, optim.lr_d: 1e-3}",
    }
    variants = read_study(write_study(ladder)).variants()
    assert variants[2].changes == {"model.attention.at": (32,), "optim.ttur": True, "optim.lr_d": 1e-3}


def test_one_at_a_time_changes_one_factor_and_keeps_the_others_at_the_baseline(write_study: WriteStudy) -> None:
    one = {"design: grid\n": "", "off+slow": "home", "off:": "home:", "slow:": "home:"}
    variants = read_study(write_study(one, text=TWO_FACTORS)).variants()
    assert [variant.name for variant in variants] == ["home", "both", "fast"]
    assert set(diff(variants[0].config, variants[1].config)) == {"model.sn.g"}
    assert set(diff(variants[0].config, variants[2].config)) == {"optim.lr_d"}


def test_the_protocol_names_preset_and_changes_in_one_order(write_study: WriteStudy) -> None:
    study = read_study(write_study(), changes={"optim.steps": "500", "data.h_flip": "true", "optim.d_steps": "1"})
    assert study.protocol == "embedded + data.h_flip=true, optim.steps=500"


def test_the_outline_of_a_search_has_the_cells_that_it_will_have() -> None:
    study = read_study(Path(__file__).parents[2] / "studies" / "ttur_search.yaml")
    names = [cell.name for cell in study.with_all_trials().cells()]
    assert names[:2] == ["trial00/seed100", "trial01/seed100"]
    assert len(names) == 6 + 2 * 3
    assert study.plan()["design"] == "search"
    assert study.with_all_trials().cells("best/seed20")[0].name == "best/seed20"
