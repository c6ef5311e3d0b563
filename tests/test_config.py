from __future__ import annotations

import contextlib

import pytest

from sagan.config import Config, diff, digest, flatten, override
from sagan.presets import PRESETS


def test_override_changes_the_named_field_and_no_other() -> None:
    changed = override(Config(), {"optim.lr_g": 3e-4})
    assert diff(Config(), changed) == {"optim.lr_g": (1e-4, 3e-4)}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optim.lr_g", "1e-4", 1e-4),
        ("optim.steps", "2000", 2000),
        ("optim.steps", "2e3", 2000),
        ("model.attention.at", "[8, 32]", (8, 32)),
        ("model.attention.at", [], ()),
        ("data.augment", "[color, cutout]", ("color", "cutout")),
        ("data.h_flip", "true", True),
        ("data.resolution", "64", 64),
    ],
)
def test_texts_from_files_and_command_lines_become_the_type_of_the_field(
    name: str, text: object, value: object
) -> None:
    changed = flatten(override(Config(), {name: text}))[name]
    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optim.lrg", 1, "no such field; did you mean 'optim.lr_g'"),
        ("optim.steps", 1.5, "optim.steps: must be a whole number, got 1.5"),
        ("optim.steps", True, "optim.steps: must be a whole number, got True"),
        ("optim.lr_g", "fast", "optim.lr_g: must be a finite number, got 'fast'"),
        ("optim.lr_g", "nan", "optim.lr_g: must be a finite number"),
        ("optim.lr_g", -1, "optim.lr_g: must be above 0, got -1"),
        ("optim.r1_gamma", -1, "optim.r1_gamma: must be 0 or more, got -1"),
        ("optim.loss", "hing", "optim.loss: must be one of hinge, non_saturating, got 'hing'; did you mean 'hinge'"),
        ("data.augment", ["flip"], "data.augment: must be one of color, translation, cutout, got 'flip'"),
        ("data.augment", True, "data.augment: must be a list such as .color., got True"),
        ("data.augment", "color,color", "data.augment: each value once, got"),
        ("optim.batch_size", 1, "batch norm needs 2 images or more, got 1"),
        ("eval.standing_images", 0, "eval.standing_images: must be above 0, got 0"),
        ("model.bn_groups", 0, "model.bn_groups: must be above 0, got 0"),
        ("data.resolution", 100, "data.resolution: must be one of 32, 64, 128, 256, got 100"),
        ("data.h_flip", "yes", "data.h_flip: must be true or false, got 'yes'"),
        ("eval.bn", "standin", "eval.bn: must be one of running, standing, got 'standin'; did you mean 'standing'"),
        ("model.attention.at", 8, "model.attention.at: must be a list such as"),
        ("model.attention.at", [8, 8], "model.attention.at: each value once, got"),
        ("model.attention.at", [9], "model.attention.at: must be one of 8, 16"),
    ],
)
def test_a_value_that_breaks_a_rule_is_told_with_field_rule_and_value(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(Config(), {name: value})


@pytest.mark.parametrize(
    ("ttur", "rates"), [(True, {"optim.lr_g", "optim.lr_d"}), (False, {"optim.lr_equal"})], ids=["two rates", "one"]
)
def test_a_rate_has_an_effect_exactly_where_training_reads_it(ttur: bool, rates: set[str]) -> None:
    config = override(Config(), {"optim.ttur": ttur})
    all_rates = ("optim.lr_g", "optim.lr_d", "optim.lr_equal")
    assert {name for name in all_rates if not config.no_effect(name)} == rates
    assert {name for name in all_rates if override(config, {name: 0.5}).optim.rates != config.optim.rates} == rates


def test_a_batch_that_cannot_be_cut_into_groups_of_two_is_not_buildable() -> None:
    configs = [override(Config(), {"optim.batch_size": 12, "model.bn_groups": n}) for n in (1, 6, 5, 12)]
    needs = "needs batches of {} equal parts of 2 images or more"
    assert [config.build_error() for config in configs] == [None, None, needs.format(5), needs.format(12)]


@pytest.mark.parametrize(
    ("batch_size", "groups", "processes", "rule"),
    [
        (12, 1, 3, None),
        (12, 2, 4, None),  # pairs of processes
        (16, 4, 2, None),  # two groups for each process
        (9, 1, 2, "optim.batch_size: must be a multiple of the 2 processes that share a batch, got 9"),
        (12, 3, 2, "model.bn_groups: with 2 processes must divide that number or be a multiple of it, got 3"),
        (24, 4, 6, "model.bn_groups: with 6 processes must divide"),
    ],
)
def test_a_batch_is_shared_in_equal_parts_that_do_not_cut_across_groups(
    batch_size: int, groups: int, processes: int, rule: str | None
) -> None:
    config = override(Config(), {"optim.batch_size": batch_size, "model.bn_groups": groups})
    with pytest.raises(ValueError, match=rule) if rule else contextlib.nullcontext():
        config.check_shared(processes)


def test_digests_differ_exactly_when_configs_do() -> None:
    configs = [*PRESETS.values(), override(Config(), {"optim.steps": 7})]
    assert len({digest(config) for config in configs}) == len(configs)
    assert digest(override(Config(), {"optim.steps": 1_000_000})) == digest(Config())


def test_the_official_recipe_is_what_the_defaults_say() -> None:
    """Rates, betas, batch and widths of the released code; beta2 is where the paper's text differs."""
    official, paper = flatten(PRESETS["imagenet128"]), flatten(PRESETS["paper128"])
    expected = {"optim.lr_g": 1e-4, "optim.lr_d": 4e-4, "optim.beta1": 0.0, "optim.beta2": 0.999}
    expected |= {"optim.batch_size": 256, "optim.d_steps": 1, "optim.ema_decay": 0.0, "model.width_g": 64}
    expected |= {"model.bn_groups": 4}
    assert {name: official[name] for name in expected} == expected
    changed = {name for name in official if official[name] != paper[name]}
    assert changed == {"optim.beta2", "model.attention.value_ratio", "model.attention.pool"}
