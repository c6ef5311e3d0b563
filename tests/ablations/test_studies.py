"""The study files that ship, at every preset."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ablations.study import read_study
from sagan.config import diff, override
from sagan.networks import Discriminator, Generator
from sagan.presets import PRESETS

HEADER = ("# Question", "# Expect", "# Cost")
FOLDER = Path(__file__).parents[2] / "studies"
FILES = sorted(FOLDER.rglob("*.yaml"))
NEEDS_64_PX = ("attention_vs_operations", "cifar10")  # this study compares at feat32 and feat64 only
PAIRS = [(file, preset) for file in FILES for preset in PRESETS if (file.stem, preset) != NEEDS_64_PX]


@pytest.mark.parametrize(("file", "preset"), PAIRS, ids=lambda value: getattr(value, "stem", value))
def test_variants_differ_in_the_fields_of_their_factors_and_lack_only_maps_that_a_network_lacks(
    file: Path, preset: str
) -> None:
    study = read_study(file, preset)
    variants = study.variants()
    baseline = next(variant for variant in variants if variant.name == study.baseline)
    assert len({variant.config for variant in variants}) == len(variants), "no two are the same run"
    for variant in variants:
        attention, resolution = variant.config.model.attention, variant.config.data.resolution
        limit = resolution if attention.networks == "G" else resolution // 2
        assert (variant.build_error is None) == (max(attention.at, default=0) <= limit), variant.name
        moved = [factor for factor, level in variant.factors.items() if level != baseline.factors[factor]]
        named = {field for factor in moved for changes in study.factors[factor].values() for field in changes}
        assert diff(baseline.config, variant.config).keys() <= named, variant.name
        assert (variant is baseline) == (not moved)


def test_a_study_of_maps_that_a_preset_lacks_says_so() -> None:
    with pytest.raises(ValueError, match="feat32 needs 64 px"):
        read_study(FOLDER / f"{NEEDS_64_PX[0]}.yaml", NEEDS_64_PX[1])


def test_the_networks_of_every_variant_judge_an_image() -> None:
    variants = [variant for file in FILES for variant in read_study(file, "embedded").variants()]
    configs = [override(v.config, {"model.width_g": 4, "model.width_d": 4}) for v in variants if not v.build_error]
    for model, resolution in {(config.model, config.data.resolution) for config in configs}:
        z, labels = torch.randn(2, model.z_dim), torch.tensor([0, 1])
        images = Generator(model, resolution, 2)(z, labels)
        assert Discriminator(model, resolution, 2)(images, labels).isfinite().all(), model


def test_a_file_is_named_as_its_study_and_opens_with_question_expectation_and_cost() -> None:
    for file in FILES:
        study = read_study(file)
        assert (study.name, len(study.seeds) < 3) == (file.stem, file.stem == "smoke")
        assert study.with_all_trials().cells()
        lines = file.read_text().splitlines()
        assert [line.split(":")[0] for line in lines if line.startswith(HEADER)] == list(HEADER), file.name


def test_the_recipe_ladder_takes_the_six_steps_between_two_public_sagans_and_no_other() -> None:
    """MMGeneration, configs/sagan: its StudioGAN form and its BigGAN-PyTorch form."""
    steps = {
        "model.sn.cbn": (True, False),
        "model.sn.eps": (1e-6, 1e-8),
        "model.bn_groups": (1, 2),
        "optim.ema_decay": (0.0, 0.9999),
        "model.init": ("orthogonal", "xavier"),
        "data.h_flip": (True, False),
    }
    first, *rungs = read_study(FOLDER / "imagenet" / "recipe_gap.yaml").variants()
    found = diff(first.config, rungs[-1].config)
    found.pop("optim.ema_start", None)  # belongs to the step of ema_decay
    assert found == steps
    assert first.config.model.cbn_init == "drawn"  # so that spectral norm is all that its rung takes away
    for variant in rungs:
        assert variant.config.eval == first.config.eval == PRESETS["imagenet128"].eval
