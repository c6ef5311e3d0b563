"""Metrics of pairs of images, from one pass over all pairs: kernel distance, precision, recall, density and coverage.

The kernel Inception distance (Bińkowski et al. 2018) is unbiased at every sample size, where FID is not. It is the
squared MMD with the cubic kernel (x'y / d + 1)^3, as the full U-statistic: all pairs are used in place of an average
over random subsets.

For precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) the manifold of a set is
the union of balls around its members, each reaching its k-th nearest neighbour. A point on a ball's surface is inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

K_PRECISION = 3  # precision and recall
K_DENSITY = 5  # density and coverage
_ROWS = 128  # with 5,000 columns of float32 a block is 2.6 MB
_GROUPS = 20


@dataclass(frozen=True)
class Within:
    """Results for the pairs within one set."""

    mean_kernel: float  # over pairs of different rows
    radii: Tensor  # [2, n]: squared distance of each row to its 3rd and its 5th nearest other row


def within(features: Tensor) -> Within:
    """Of [n, d] features, n above 5."""
    assert len(features) > K_DENSITY, f"more than {K_DENSITY} rows, got {len(features)}"
    total, radii = 0.0, []
    for closeness, kernels in _blocks(features, features):
        total += kernels
        nearest = _largest(closeness, K_DENSITY + 1)  # column 0 is the row itself
        radii.append((-2 * nearest[:, [K_PRECISION, K_DENSITY]].T).clamp_(min=0))
    diagonal = float((features.double().square().mean(1) + 1).pow(3).sum())
    mean_kernel = (total - diagonal) / (len(features) * (len(features) - 1))
    return Within(mean_kernel, torch.cat(radii, 1))


def between(generated: Tensor, real: Tensor, reference: Within) -> dict[str, float]:
    """Scores of [n, d] features against the real ones [m, d], of which `reference` is `within(real)`.

    `kid` is the kernel distance. `precision` is the share of generated images within a ball of the real ones, `recall`
    that of real images within a ball of the generated ones; `density` the mean number of real balls around a generated
    image, over k, which may exceed 1; `coverage` the share of real balls that hold a generated image.
    """
    inside = within(generated)
    own, _ = -inside.radii / 2  # closeness from which on a ball holds a point
    near, wide = -reference.radii / 2
    total, start, precise, balls = 0.0, 0, 0, 0
    recalled = torch.zeros(len(real), dtype=torch.bool)
    closest = torch.full_like(wide, -torch.inf)
    for closeness, kernels in _blocks(generated, real):
        stop = start + len(closeness)
        total += kernels
        # The largest difference takes a third of the time of comparing all pairs and asking for any.
        precise += int((closeness - near).amax(1).ge(0).sum())
        recalled |= (closeness - own[start:stop, None]).amax(0) >= 0
        balls += int(torch.count_nonzero(closeness >= wide))
        torch.maximum(closest, closeness.amax(0), out=closest)
        start = stop
    mean_across = total / (len(generated) * len(real))
    return {
        "kid": inside.mean_kernel + reference.mean_kernel - 2 * mean_across,
        "precision": precise / len(generated),
        "recall": float(recalled.double().mean()),
        "density": balls / (K_DENSITY * len(generated)),
        "coverage": float((closest >= wide).double().mean()),
    }


def _blocks(one: Tensor, other: Tensor) -> Iterator[tuple[Tensor, float]]:
    """For b rows of [n, d] features at a time against all of [m, d]: their closeness [b, m], and the kernel's sum.

    Closeness is minus half the squared distance, so the nearest are the largest; the next block overwrites it. The
    product of all pairs is never stored.
    """
    # Distances are taken between features moved to the mean: far from the origin (mean 1,000, sd 1, float32) squared
    # lengths lose the digits of the differences (density came out halved). The kernel needs the lengths as they were.
    # Two more columns make the matrix product subtract the lengths, which would take passes over it.
    centre = other.mean(0, dtype=torch.float64)
    near, other_near = ((features - centre).to(features.dtype) for features in (one, other))
    minus, other_minus = -_half_lengths(near), -_half_lengths(other_near)
    left = torch.cat([near, minus, torch.ones_like(minus)], 1)
    right = torch.cat([other_near, torch.ones_like(other_minus), other_minus], 1).T
    width, lengths, other_lengths = one.shape[1], _half_lengths(one), _half_lengths(other)[:, 0]
    space = left.new_empty(min(_ROWS, len(left)), len(other))
    for rows, of_rows in zip(left.split(_ROWS), lengths.split(_ROWS), strict=True):
        closeness = torch.mm(rows, right, out=space[: len(rows)])
        # x'y + d, for x'y = |x|^2 / 2 + |y|^2 / 2 - |x - y|^2 / 2. Terms have the dtype of the features and rows are
        # added up in float64: float32 features moved the distance by up to 4e-7, as they do in torch-fidelity.
        terms = (closeness + (of_rows + width)).add_(other_lengths)
        yield closeness, float(terms.square().mul_(terms).sum(1).double().sum()) / width**3


def _half_lengths(features: Tensor) -> Tensor:
    return features.square().sum(1, keepdim=True) / 2


def _largest(values: Tensor, k: int) -> Tensor:
    """The k largest of each row of [b, m], in order: `topk`, three times as fast.

    A value among the k largest makes its group one of the k groups with the largest maxima, so only those are searched.
    """
    size = values.shape[1] // _GROUPS
    if size < k:
        return values.topk(k).values
    # Column c belongs to group c % size, which lets maxima be taken of whole vectors; the last columns to none.
    groups = values[:, : _GROUPS * size].unflatten(1, (_GROUPS, size))
    best = groups.amax(1).topk(k).indices
    members = groups.gather(2, best[:, None].expand(-1, _GROUPS, -1)).flatten(1)
    return torch.cat([members, values[:, _GROUPS * size :]], 1).topk(k).values
