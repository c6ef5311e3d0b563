"""All pairs of two sets of features, a block of rows at a time: one matrix product serves every metric of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 128  # with 5,000 columns of float32 a block is 2.6 MB


@dataclass(frozen=True)
class Block:
    """b rows of one set against all m rows of another, in the dtype of the features.

    `closeness` is minus half the squared distance, so the nearest are the largest; the next block overwrites it.
    """

    closeness: Tensor  # [b, m]
    lengths: Tensor  # [b, 1], half the squared lengths of the rows
    other_lengths: Tensor  # [m]

    def inner_products(self, shift: float) -> Tensor:
        """x'y + shift [b, m], for x'y = |x|^2 / 2 + |y|^2 / 2 - |x - y|^2 / 2."""
        return (self.closeness + (self.lengths + shift)).add_(self.other_lengths)


def blocks(one: Tensor, other: Tensor) -> Iterator[Block]:
    """[n, d] and [m, d] features; the product of all pairs is never stored."""
    # Two more columns make the matrix product subtract the lengths, which would take passes over its result. Features
    # are not centred: with the built-in ones that kept digits of the distances and lost more in the kernel's sum.
    lengths, other_lengths = _half_lengths(one), _half_lengths(other)
    left = torch.cat([one, -lengths, torch.ones_like(lengths)], 1)
    right = torch.cat([other, torch.ones_like(other_lengths), -other_lengths], 1).T
    space = left.new_empty(min(_ROWS, len(left)), len(other))
    for rows, of_rows in zip(left.split(_ROWS), lengths.split(_ROWS), strict=True):
        yield Block(torch.mm(rows, right, out=space[: len(rows)]), of_rows, other_lengths[:, 0])


def _half_lengths(features: Tensor) -> Tensor:
    return features.square().sum(1, keepdim=True) / 2
