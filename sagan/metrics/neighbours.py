"""Precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020): fidelity and diversity apart.

The manifold of a set is the union of balls around its members, each reaching its k-th nearest neighbour. Distances
are taken a block of rows at a time, in the dtype of the features; N x N is never stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

K_PRECISION = 3  # precision and recall
K_DENSITY = 5  # density and coverage
_ROWS = 512


@dataclass(frozen=True)
class Neighbours:
    precision: float  # share of generated images within a ball of the real ones
    recall: float  # share of real images within a ball of the generated ones
    density: float  # mean number of real balls around a generated image, over k; may exceed 1
    coverage: float  # share of real balls that hold a generated image


def neighbours(generated: Tensor, real: Tensor, radii: Tensor | None = None) -> Neighbours:
    """All four from [n, d] and [m, d] features, n and m above 5. `radii` is `squared_radii(real)` where kept.

    k follows the papers: 3 for precision and recall, 5 for density and coverage. A point on a ball's surface is
    inside.
    """
    real_radii = squared_radii(real) if radii is None else radii
    near, wide = real_radii
    own, _ = squared_radii(generated)
    inside = 0
    balls = 0
    recalled = torch.zeros(len(real), dtype=torch.bool)
    closest = torch.full_like(wide, torch.inf)
    for rows, squared in _blocks(generated, real):
        inside += int((squared <= near).any(1).sum())
        balls += int((squared <= wide).sum())
        recalled |= (squared <= own[rows, None]).any(0)
        closest = torch.minimum(closest, squared.amin(0))
    return Neighbours(
        precision=inside / len(generated),
        recall=float(recalled.double().mean()),
        density=balls / (K_DENSITY * len(generated)),
        coverage=float((closest <= wide).double().mean()),
    )


def squared_radii(features: Tensor) -> Tensor:
    """[2, n]: squared distance of each row to its 3rd and its 5th nearest other row."""
    assert len(features) > K_DENSITY, f"more than {K_DENSITY} rows, got {len(features)}"
    found = []
    for _, squared in _blocks(features, features):
        nearest = squared.topk(K_DENSITY + 1, largest=False).values  # column 0 is the row itself
        found.append(nearest[:, [K_PRECISION, K_DENSITY]])
    return torch.cat(found).T.contiguous()


def _blocks(one: Tensor, other: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Row slices of `one`, each with its squared distances [rows, m] to `other`."""
    centre = other.mean(0)  # short vectors lose fewer digits in |x|^2 + |y|^2 - 2 x'y
    x, y = one - centre, other - centre
    lengths = y.square().sum(1)
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        squared = torch.addmm(lengths[None], rows, y.T, alpha=-2).add_(rows.square().sum(1)[:, None])
        yield slice(start, start + len(rows)), squared.clamp_(min=0)
