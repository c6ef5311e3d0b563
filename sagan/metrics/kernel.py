"""Kernel Inception distance (Bińkowski et al. 2018): unbiased at every sample size, where FID is not."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ROWS = 1024


def kernel_distance(generated: Tensor, real: Tensor, real_pairs: float | None = None) -> float:
    """Squared MMD between [n, d] and [m, d] features as the full U-statistic, cubic kernel (x'y / d + 1)^3.

    All pairs are used, a block of rows at a time, in place of an average over random subsets. `real_pairs` is
    `mean_of_pairs(real)` where the caller has kept it.
    """
    cross = _kernel_sum(generated, real) / (len(generated) * len(real))
    inside = mean_of_pairs(real) if real_pairs is None else real_pairs
    return mean_of_pairs(generated) + inside - 2 * cross


def kernel_distance_subsets(generated: Tensor, real: Tensor, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Mean and spread over random subsets: the published protocol, drawn in torch-fidelity's order.

    The spread is over overlapping subsets and so is not a standard error.
    """
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        one = torch.from_numpy(rng.choice(len(generated), size, replace=False))
        two = torch.from_numpy(rng.choice(len(real), size, replace=False))
        values.append(kernel_distance(generated[one], real[two]))
    return float(np.mean(values)), float(np.std(values))


def mean_of_pairs(features: Tensor) -> float:
    """Mean kernel over ordered pairs of different rows of [n, d], n >= 2."""
    wide = features.double()
    diagonal = float((wide.square().mean(1) + 1).pow(3).sum())
    return (_kernel_sum(features, features) - diagonal) / (len(features) * (len(features) - 1))


def _kernel_sum(one: Tensor, other: Tensor) -> float:
    width = one.shape[1]
    columns = other.double().T / width
    return sum(float((rows.double() @ columns).add_(1).pow_(3).sum()) for rows in torch.split(one, _ROWS))
