"""Precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020): fidelity and diversity apart.

The manifold of a set is the union of balls around its members, each reaching its k-th nearest neighbour. k follows
the papers: 3 for precision and recall, 5 for density and coverage. A point on a ball's surface is inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sagan.metrics.blocks import Block

K_PRECISION = 3  # precision and recall
K_DENSITY = 5  # density and coverage
_GROUPS = 20


@dataclass(frozen=True)
class Neighbours:
    precision: float  # share of generated images within a ball of the real ones
    recall: float  # share of real images within a ball of the generated ones
    density: float  # mean number of real balls around a generated image, over k; may exceed 1
    coverage: float  # share of real balls that hold a generated image


class Overlap:
    """Counts the images inside balls of the other set, from blocks of generated rows against all real ones.

    `generated` and `real` are the squared radii [2, n] and [2, m] of `squared_radii`.
    """

    def __init__(self, generated: Tensor, real: Tensor):
        own, _ = -generated / 2
        self._own = own[:, None]
        self._near, self._wide = -real / 2  # closeness from which on a real ball holds a point
        self._rows = self._inside = self._balls = 0
        self._recalled = torch.zeros(real.shape[1], dtype=torch.bool)
        self._closest = torch.full_like(self._wide, -torch.inf)

    def add(self, block: Block) -> None:
        """Blocks come in the order of the generated rows."""
        closeness = block.closeness
        own = self._own[self._rows : self._rows + len(closeness)]
        self._rows += len(closeness)
        # The largest difference takes a third of the time of comparing all pairs and asking for any.
        self._inside += int((closeness - self._near).amax(1).ge(0).sum())
        self._recalled |= (closeness - own).amax(0) >= 0
        self._balls += int(torch.count_nonzero(closeness >= self._wide))
        torch.maximum(self._closest, closeness.amax(0), out=self._closest)

    def neighbours(self) -> Neighbours:
        return Neighbours(
            precision=self._inside / self._rows,
            recall=float(self._recalled.double().mean()),
            density=self._balls / (K_DENSITY * self._rows),
            coverage=float((self._closest >= self._wide).double().mean()),
        )


def squared_radii(block: Block) -> Tensor:
    """[2, b]: squared distance of each row to its 3rd and its 5th nearest other row; a block of a set with itself."""
    assert block.closeness.shape[1] > K_DENSITY, f"more than {K_DENSITY} rows, got {block.closeness.shape[1]}"
    nearest = _largest(block.closeness, K_DENSITY + 1)  # column 0 is the row itself
    return (-2 * nearest[:, [K_PRECISION, K_DENSITY]].T).clamp_(min=0)


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
