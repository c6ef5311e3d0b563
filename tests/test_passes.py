from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.measure import bare_trainer

from sagan.config import Config, override
from sagan.device import autocast
from sagan.passes import pays_to_compile
from sagan.presets import PRESETS
from sagan.training import Trainer

ALL = ("color", "translation", "cutout")


def in_bf16(config: Config) -> Config:
    return override(config, {"optim.precision": "bf16"})


def aims(trainer: Trainer) -> dict[str, torch.Tensor]:
    """What both networks minimise in the first step, computed in the trainer's precision, with gradients taken."""
    batch = (*trainer.batches(0), *trainer._noise("noise_d", 0), *trainer._draws("augment_d", 0, 2))
    config = trainer.config
    with autocast(trainer.device, config.optim.precision):
        objective_d, _ = trainer.discriminator_pass(config, trainer.generator, trainer.discriminator, *batch)
    objective_d.backward()
    with autocast(trainer.device, config.optim.precision):
        draw = (*trainer._noise("noise_g", 0), *trainer._draws("augment_g", 0, 1))
        objective_g, _ = trainer.generator_pass(config, trainer.generator, trainer.discriminator, *draw)
    (gradient_g,) = torch.autograd.grad(objective_g, [trainer.generator.linear.weight])
    gradient_d = trainer.discriminator.blocks[0].conv1.weight.grad
    assert gradient_d is not None
    return {
        "objective_d": objective_d.detach(),
        "objective_g": objective_g.detach(),
        "gradient_d": gradient_d,
        "gradient_g": gradient_g,
    }


def after_three_steps(config: Config, directory: Path) -> tuple[Trainer, Trainer]:
    """A trainer whose passes are as written and one whose passes are traced, after three steps each."""
    plain = bare_trainer(config, directory)
    compiled = bare_trainer(config, directory, compile_backend="aot_eager")
    for _ in range(3):
        plain._train_step()
        compiled._train_step()
    return plain, compiled


@pytest.mark.slow
def test_compiled_passes_train_to_the_same_bits_as_those_that_are_not(tiny: Config, tmp_path: Path) -> None:
    """The tracing, the custom gradients and the buffers that change in place; code generation is left out, and so is
    attention, which the next test compares."""
    changes = {"data.augment": ALL, "model.attention.at": []}
    plain, compiled = after_three_steps(override(tiny, changes), tmp_path)
    assert torch.equal(plain.sums, compiled.sums)
    for network in ("generator", "discriminator", "average"):
        found = getattr(compiled, network).state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in getattr(plain, network).state_dict().items())


@pytest.mark.slow
def test_compiled_attention_differs_by_rounding_alone(tiny: Config, tmp_path: Path) -> None:
    config = override(tiny, {"model.attention.gamma": 0.5})
    expected = aims(bare_trainer(config, tmp_path))
    found = aims(bare_trainer(config, tmp_path, compile_backend="aot_eager"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    plain, compiled = after_three_steps(config, tmp_path)
    torch.testing.assert_close(compiled.sums, plain.sums, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiled_passes_in_bf16_differ_by_its_rounding_alone(tiny: Config, tmp_path: Path) -> None:
    """What is traced rounds in other places."""
    plain, compiled = after_three_steps(in_bf16(tiny), tmp_path)
    torch.testing.assert_close(compiled.sums, plain.sums, rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_a_process_compiles_for_more_variants_than_torch_keeps_of_one_function(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)  # not 8, to be done sooner
    for z_dim in (8, 9):
        config = override(tiny, {"model.z_dim": z_dim, "model.attention.at": []})
        bare_trainer(config, tmp_path, compile_backend="eager")._train_step()


@pytest.mark.parametrize("changes", [{}, {"optim.r1_gamma": 5, "model.sn.d": False, "data.augment": ALL}])
def test_bf16_passes_are_near_those_of_fp32(tiny: Config, tmp_path: Path, changes: dict[str, Any]) -> None:
    """bf16 has three digits: losses agree to a few hundredths, gradients point the same way."""
    config = override(tiny, changes)
    exact, rounded = (aims(bare_trainer(one, tmp_path)) for one in (config, in_bf16(config)))
    for name in ("objective_d", "objective_g"):
        torch.testing.assert_close(rounded[name], exact[name], rtol=0.05, atol=0.05)
    for name in ("gradient_d", "gradient_g"):
        similarity = torch.cosine_similarity(rounded[name].flatten(), exact[name].flatten(), dim=0)
        assert 0.98 < similarity < 1 - 1e-9  # 1 would mean that nothing was rounded
    assert all(tensor.dtype == torch.float32 for tensor in rounded.values())


def test_weights_statistics_and_moments_stay_fp32_in_bf16_training(tiny: Config, tmp_path: Path) -> None:
    trainer = bare_trainer(in_bf16(tiny), tmp_path)
    trainer._train_step()
    for network in (trainer.generator, trainer.discriminator, trainer.average):
        assert all(tensor.dtype == torch.float32 for tensor in network.state_dict().values())
    for optimizer in (trainer.optimizer_g, trainer.optimizer_d):
        assert all(state["exp_avg"].dtype == torch.float32 for state in optimizer.state.values())
    assert trainer.sums.dtype == torch.float32


def test_spectral_norm_iterates_in_fp32_whatever_the_precision_of_activations(tiny: Config, tmp_path: Path) -> None:
    exact, rounded = bare_trainer(tiny, tmp_path), bare_trainer(in_bf16(tiny), tmp_path)
    for trainer in (exact, rounded):
        aims(trainer)
    found = rounded.generator.state_dict()
    vectors = {name: v for name, v in exact.generator.state_dict().items() if name.endswith((".u", ".v"))}
    assert vectors and all(torch.equal(vector, found[name]) for name, vector in vectors.items())


def test_compiling_pays_for_long_runs_of_large_networks_and_for_no_cell_of_a_minute() -> None:
    million_steps = PRESETS["imagenet128"]
    assert pays_to_compile(million_steps, 1000)
    assert not pays_to_compile(override(million_steps, {"optim.steps": 5000}), 1000)
    assert not pays_to_compile(PRESETS["embedded128"], 2)
    assert not pays_to_compile(override(million_steps, {"optim.r1_gamma": 1}), 1000), "torch cannot compile R1"
