"""Two computations of the same thing, compared as far as rounding allows."""

from __future__ import annotations

import torch
from torch import Tensor

from sagan.training import Trainer

# Adam divides a gradient by its own size: one that is rounding alone, as of a bias before batch norm, would move its
# weight by the whole rate and at random. An eps above float32's rounding stills it. Rates are low because a ReLU that
# rounding flips is amplified by the steps that follow.
CALM = {"optim.ttur": True, "optim.adam_eps": 1e-2, "optim.lr_g": 2e-5, "optim.lr_d": 8e-5}
Named = dict[str, tuple[Tensor, Tensor]]


def perturb(trainer: Trainer) -> None:
    """Moves all weights: some start at 0, and nothing behind them has a gradient. The same on every device."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for network in (trainer.generator, trainer.discriminator):
            for parameter in network.parameters():
                parameter += (0.1 * torch.randn(parameter.shape, generator=draw)).to(parameter.device)
    trainer.average.load_state_dict(trainer.generator.state_dict())


def differences(named: Named) -> dict[str, float]:
    """Of (found, wanted), in units of the wanted tensor's largest magnitude, or of a tenth of the largest of all:
    what should be 0 is rounding, and rounding is not compared with rounding."""
    largest = max(float(wanted.abs().max()) for _, wanted in named.values())
    return {
        name: float((found - wanted).abs().max()) / max(float(wanted.abs().max()), largest / 10)
        for name, (found, wanted) in named.items()
    }
