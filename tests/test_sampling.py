"""Batch-norm statistics that are measured again before samples are scored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sagan.config import Config, override
from sagan.networks import Generator
from sagan.presets import PRESETS
from sagan.sampling import Sampler
from sagan.streams import noise, stream

CPU = torch.device("cpu")


def batches(config: Config) -> tuple[list[int], Sampler, Generator]:
    """Sizes of the batches that a generator is given to measure its statistics on, and the two afterwards."""
    sampler, generator = Sampler(config, 3, 5, CPU), Generator(config.model, config.data.resolution, 3)
    sizes: list[int] = []

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        sizes.append(len(given[0]))

    handle = generator.register_forward_pre_hook(note)
    sampler.prepare(generator)
    handle.remove()
    return sizes, sampler, generator


@pytest.mark.parametrize(
    ("batch_size", "images", "expected"),
    [
        (8, 1024, [64] * 16),  # small batches of training are measured several at a time
        (96, 200, [96] * 3),
        (24, 50, [48] * 2),
        (4, 1, [4]),
    ],
)
def test_standing_statistics_take_as_many_images_as_asked_for_in_whole_batches_of_training(
    tiny: Config, batch_size: int, images: int, expected: list[int]
) -> None:
    changes = {"optim.batch_size": batch_size, "eval.standing_images": images}
    assert batches(override(tiny, changes))[0] == expected


def test_standing_statistics_are_the_mean_over_the_batches_and_forget_what_was_there(tiny: Config) -> None:
    config = override(tiny, {"optim.batch_size": 32, "eval.standing_images": 160})
    _, sampler, generator = batches(config)
    first = generator.blocks[0].bn1
    assert not generator.training and first.momentum == config.model.bn_momentum
    drawn = [noise(stream(5, "standing", turn), 64, config.model.z_dim, 3) for turn in range(3)]
    with torch.no_grad():
        maps = [generator.linear(z).view(64, -1, 4, 4) for z, _ in drawn]
    assert first.running_mean.allclose(torch.stack([h.mean((0, 2, 3)) for h in maps]).mean(0), atol=1e-3)
    assert first.running_var.allclose(torch.stack([h.var((0, 2, 3)) for h in maps]).mean(0), rtol=1e-2)
    before = first.running_mean.clone()
    first.running_mean.fill_(1e6)
    sampler.prepare(generator)
    assert first.running_mean.allclose(before, atol=1e-3)


def test_presets_but_the_official_ones_are_scored_with_standing_statistics() -> None:
    running = {name for name, config in PRESETS.items() if config.eval.bn == "running"}
    assert running == {"imagenet128", "paper128"}
    assert all(config.eval.standing_images >= 1000 for config in PRESETS.values())
