"""Metrics of pairs of images, the kernel distance and the neighbours, from one pass over the pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sagan.metrics.blocks import blocks
from sagan.metrics.kernel import kernel_sum, mean_of_pairs
from sagan.metrics.neighbours import Neighbours, Overlap, squared_radii


@dataclass(frozen=True)
class Within:
    """Results for the pairs within one set."""

    mean_kernel: float  # over pairs of different rows
    radii: Tensor  # [2, n], see `squared_radii`


def within(features: Tensor) -> Within:
    """Of [n, d] features, n above 5."""
    total, radii = 0.0, []
    for block in blocks(features, features):
        total += kernel_sum(block, features.shape[1])
        radii.append(squared_radii(block))
    return Within(mean_of_pairs(total, features), torch.cat(radii, 1))


def between(generated: Tensor, real: Tensor, kept: Within | None = None) -> tuple[float, Neighbours]:
    """Kernel distance and neighbours of [n, d] and [m, d] features; `kept` is `within(real)` where there is one."""
    inside, reference = within(generated), kept or within(real)
    overlap, total = Overlap(inside.radii, reference.radii), 0.0
    for block in blocks(generated, real):
        total += kernel_sum(block, real.shape[1])
        overlap.add(block)
    mean_across = total / (len(generated) * len(real))
    return inside.mean_kernel + reference.mean_kernel - 2 * mean_across, overlap.neighbours()
