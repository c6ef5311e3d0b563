"""All pairs of two sets of features, a block of rows at a time: one matrix product serves all metrics of pairs."""

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
    lengths: Tensor  # [b, 1], half the squared lengths of the rows as they were given
    other_lengths: Tensor  # [m]

    def inner_products(self, shift: float) -> Tensor:
        """x'y + shift [b, m], for x'y = |x|^2 / 2 + |y|^2 / 2 - |x - y|^2 / 2: it changes where features are moved."""
        return (self.closeness + (self.lengths + shift)).add_(self.other_lengths)


def blocks(one: Tensor, other: Tensor) -> Iterator[Block]:
    """[n, d] and [m, d] features; the product of all pairs is never stored."""
    # Distances are taken between features moved to the mean: far from the origin (mean 1,000, sd 1, float32) squared
    # lengths lose the digits of the differences (density came out halved). Inner products need the lengths
    # as they were. Two more columns make the matrix product subtract the lengths, which would take passes over it.
    centre = other.mean(0, dtype=torch.float64)
    near, other_near = _moved(one, centre), _moved(other, centre)
    minus, other_minus = -_half_lengths(near), -_half_lengths(other_near)
    left = torch.cat([near, minus, torch.ones_like(minus)], 1)
    right = torch.cat([other_near, torch.ones_like(other_minus), other_minus], 1).T
    lengths, other_lengths = _half_lengths(one), _half_lengths(other)[:, 0]
    space = left.new_empty(min(_ROWS, len(left)), len(other))
    for rows, of_rows in zip(left.split(_ROWS), lengths.split(_ROWS), strict=True):
        yield Block(torch.mm(rows, right, out=space[: len(rows)]), of_rows, other_lengths)


def _moved(features: Tensor, centre: Tensor) -> Tensor:
    return (features - centre).to(features.dtype)  # float64 in between


def _half_lengths(features: Tensor) -> Tensor:
    return features.square().sum(1, keepdim=True) / 2
