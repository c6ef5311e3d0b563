from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.measure import bare_trainer
from torch.utils.flop_counter import FlopCounterMode

from sagan.config import Config, override
from sagan.cost import count
from sagan.networks import Discriminator, Generator
from sagan.presets import PRESETS


def test_memory_grows_with_the_batch_by_what_autograd_keeps(tiny: Config) -> None:
    """What a G step keeps of real tensors, counted one by one; meta tensors take other paths, hence 30 %."""
    config, batch = override(tiny, {"model.attention.at": []}), 64
    generator, discriminator = Generator(config.model, 32, 6), Discriminator(config.model, 32, 6)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    labels = torch.zeros(batch, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        discriminator(generator(torch.randn(batch, 8), labels), labels)
    measured = sum(storage.nbytes() for storage in kept.values()) / batch
    small, large = (count(override(config, {"optim.batch_size": n}), 6).memory_mib for n in (64, 128))
    assert (large - small) * 2**20 / 64 == pytest.approx(measured, rel=0.3)


def test_r1_costs_the_operations_that_it_adds_to_the_pass_of_d(tiny: Config, tmp_path: Path) -> None:
    """Forward and backward, counted while they are computed; the count takes two forward passes for each backward."""
    done, counted = [], []
    for gamma in (0, 1):
        config = override(tiny, {"model.attention.at": [], "optim.r1_gamma": gamma})
        trainer = bare_trainer(config, tmp_path)
        batch = (*trainer.batches(0), *trainer._noise("noise_d", 0))
        with FlopCounterMode(display=False) as flops:
            trainer.discriminator_pass(config, trainer.generator, trainer.discriminator, *batch)[0].backward()
        done.append(flops.get_total_flops())
        counted.append(count(config, 3).flops_per_step)
    assert counted[1] - counted[0] == pytest.approx(done[1] - done[0], rel=0.15)
    without, with_r1 = (count(override(tiny, {"optim.r1_gamma": gamma}), 3).memory_mib for gamma in (0, 1))
    assert with_r1 > without


def test_the_memory_of_attention_does_not_count_a_matrix_that_is_never_stored() -> None:
    """At feat64, batch 256, that matrix alone is 4 GiB in each network."""
    base = override(PRESETS["imagenet128"], {"optim.precision": "fp32"})
    attention, control = (
        count(override(base, {"model.attention.at": [64], "model.attention.kind": kind}), 1000).memory_mib
        for kind in ("self_attention", "residual")
    )
    assert attention - control < 2 * 2048


def test_the_memory_of_weights_is_counted_once_and_not_for_each_image() -> None:
    """Measured on an H200 at this size: 9,156 MiB at the peak of a step (tests/benchmarks/results_gpu.md)."""
    config = override(PRESETS["imagenet128"], {"model.attention.at": [32]})
    assert count(config, 3).memory_mib == pytest.approx(9156, rel=0.1)
