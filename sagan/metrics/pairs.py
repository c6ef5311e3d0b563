"""Metrics of pairs of images, the kernel distance and the neighbours, from one pass over the pairs.

The kernel Inception distance (Bińkowski et al. 2018) is unbiased at every sample size, where FID is not. It is the
squared MMD with the cubic kernel (x'y / d + 1)^3, as the full U-statistic: all pairs are used in place of an average
over random subsets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sagan.metrics.blocks import Block, blocks
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
        total += _kernel_sum(block, features.shape[1])
        radii.append(squared_radii(block))
    return Within(_mean_of_pairs(total, features), torch.cat(radii, 1))


def between(generated: Tensor, real: Tensor, kept: Within | None = None) -> tuple[float, Neighbours]:
    """Kernel distance and neighbours of [n, d] and [m, d] features; `kept` is `within(real)` where there is one."""
    inside, reference = within(generated), kept or within(real)
    overlap, total = Overlap(inside.radii, reference.radii), 0.0
    for block in blocks(generated, real):
        total += _kernel_sum(block, real.shape[1])
        overlap.add(block)
    mean_across = total / (len(generated) * len(real))
    return inside.mean_kernel + reference.mean_kernel - 2 * mean_across, overlap.neighbours()


def _kernel_sum(block: Block, width: int) -> float:
    """Sum of the kernel over the pairs of a block of features of `width` columns.

    Terms have the dtype of the features and rows are added up in float64: float32 features moved the distance by up to
    4e-7, as they do in torch-fidelity, far below what it varies by between samples.
    """
    terms = block.inner_products(shift=width)
    return float(terms.square().mul_(terms).sum(1).double().sum()) / width**3


def _mean_of_pairs(total: float, features: Tensor) -> float:
    """Mean kernel over ordered pairs of different rows of [n, d], n >= 2, from the sum over all pairs."""
    diagonal = float((features.double().square().mean(1) + 1).pow(3).sum())
    return (total - diagonal) / (len(features) * (len(features) - 1))
