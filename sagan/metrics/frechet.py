"""Fréchet distance between Gaussians fitted to features (Heusel et al. 2017, section 2), its error and its bias.

All statistics are float64: float32 covariances cost up to 0.7 FID points at d = 2048. No matrix square root is taken
of the non-symmetric product C1 C2; with S = C1^(1/2), tr (C1 C2)^(1/2) is the sum of the roots of the eigenvalues of
the symmetric S C2 S, and S belongs to the real side, which is computed once. Values are not clamped: a distance of a
set to itself may come out as -1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 4096  # rows turned to float64 at a time
_STRIP = 512


@dataclass(frozen=True)
class Gaussian:
    mean: Tensor  # float64 [d]
    cov: Tensor  # float64 [d, d], divided by n - 1


@dataclass(frozen=True)
class RealGaussian:
    """The reference side, which is compared many times: its covariance is kept as the symmetric root S, C = S S."""

    mean: Tensor  # float64 [d]
    root: Tensor  # float64 [d, d]


def fit(features: Tensor) -> Gaussian:
    """Mean and covariance of [n, d] features, n >= 2."""
    assert features.ndim == 2 and len(features) >= 2, f"two rows or more, got {tuple(features.shape)}"
    mean = features.mean(0, dtype=torch.float64)
    scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for rows in torch.split(features, _ROWS):
        centred = rows.double() - mean
        _add_lower_product(scatter, centred.T, centred)
    for columns, below in _strips(len(mean)):
        scatter[columns, below] = scatter[below, columns].T
    return Gaussian(mean, scatter.div_(len(features) - 1))


def fit_in_parts(parts: Iterable[Tensor]) -> Gaussian:
    """As `fit` of all rows, of [n, d] parts that need not be in memory together; n >= 2 in total."""
    count = 0
    for part in parts:
        rows = part.double()
        if not count:  # sums about a value near the mean lose no digits where features lie far from 0
            near = rows.mean(0)
            total, scatter = torch.zeros_like(near), torch.zeros(len(near), len(near), dtype=torch.float64)
        centred = rows - near
        total += centred.sum(0)
        scatter.addmm_(centred.T, centred)
        count += len(rows)
    assert count >= 2, f"two rows or more, got {count}"
    shift = total / count
    return Gaussian(near + shift, (scatter - count * torch.outer(shift, shift)) / (count - 1))


def rooted(gaussian: Gaussian) -> RealGaussian:
    values, vectors = torch.linalg.eigh(gaussian.cov)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return RealGaussian(gaussian.mean, root)


def frechet_distance(real: RealGaussian, other: Gaussian) -> float:
    """|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)."""
    shared = torch.linalg.eigvalsh(_lower_product(real, other)).clamp(min=0).sqrt().sum()
    shift = (real.mean - other.mean).square().sum()
    return float(shift + real.root.square().sum() + other.cov.trace() - 2 * shared)


def frechet_distance_few(one: Tensor, other: Tensor) -> float:
    """The same distance straight from [n, d] and [m, d] features; exact and cheap where n or m is below d.

    With centred factors C1 = A'A and C2 = B'B, tr (C1 C2)^(1/2) is the nuclear norm of A B', and no d x d matrix is
    ever formed.
    """

    def factor(features: Tensor) -> Tensor:
        wide = features.double()
        return (wide - wide.mean(0)) / math.sqrt(len(wide) - 1)

    def short(factor: Tensor) -> Tensor:
        """At most d rows with the same A'A."""
        return factor if factor.shape[0] <= factor.shape[1] else torch.linalg.qr(factor, mode="r").R

    a, b = factor(one), factor(other)
    shared = torch.linalg.svdvals(short(a) @ short(b).T).sum()
    shift = (one.mean(0, dtype=torch.float64) - other.mean(0, dtype=torch.float64)).square().sum()
    return float(shift + a.square().sum() + b.square().sum() - 2 * shared)


def frechet_standard_error(real: RealGaussian, other: Gaussian, features: Tensor, labels: Tensor) -> float:
    """Standard error of the distance over the draw of the generated [n, d] features, at given labels and real side.

    `other` is `fit(features)`.

    Delta method: the distance moves by the mean of psi(x) = 2 (m2 - m1)'(x - m2) + (x - m2)'(I - T)(x - m2) - const,
    T = S (S C2 S)^(-1/2) S. Labels [n] are chosen, not drawn, so only the spread of psi within a class counts. It says
    how sure one generator's figure is; two trainings of the same generator differ by far more (26 times, measured with
    the `embedded` preset as first shipped).
    """
    values, vectors = torch.linalg.eigh(_lower_product(real, other))
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    inverse_root = torch.where(kept, values.clamp(min=0).rsqrt(), 0.0)
    transport = real.root @ (vectors * inverse_root) @ vectors.T @ real.root
    weight = torch.eye(len(values), dtype=torch.float64) - transport
    parts = []
    for rows in torch.split(features, _ROWS):
        centred = rows.double() - other.mean
        parts.append(2 * centred @ (other.mean - real.mean) + ((centred @ weight) * centred).sum(1))
    psi = torch.cat(parts)
    _, group, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    if len(counts) == len(labels):  # no class has two images
        return math.sqrt(float(psi.var()) / len(features))
    means = torch.zeros(len(counts), dtype=psi.dtype).index_add_(0, group, psi) / counts
    variance = float((psi - means[group]).square().sum()) / (len(psi) - len(counts))
    return math.sqrt(variance / len(features))


def frechet_extrapolated(real: RealGaussian, distance: float, features: Tensor, labels: Tensor) -> float:
    """2 FD(N) - mean FD(N/2), which removes the plug-in distance's bias of about c/N (Chong & Forsyth 2020).

    `distance` is FD(N), of the [n, d] features. The bias from the finite real side stays.
    """
    parts = [frechet_distance(real, fit(features[rows])) for rows in halves(labels)]
    return 2 * distance - sum(parts) / 2


def halves(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a fixed random split of [n] labels into two with the same class counts, give or take one.

    A split that ignores the labels differs in its class counts by chance, and where the classes lie far apart that
    would be most of the distance between the halves.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[labels[order].argsort(stable=True)]
    return order[0::2], order[1::2]


def _lower_product(real: RealGaussian, other: Gaussian) -> Tensor:
    """S C2 S with at least its lower triangle, which is the one that eigh and eigvalsh read."""
    product = torch.zeros_like(other.cov)
    _add_lower_product(product, real.root @ other.cov, real.root)
    return product


def _add_lower_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """Add the symmetric `one` @ `other` to `total`, except above the diagonal squares of `_strips`.

    At d = 2048 that takes five eighths of the multiplications of the full product.
    """
    for columns, _ in _strips(len(total)):
        total[columns.start :, columns].addmm_(one[columns.start :], other[:, columns])


def _strips(d: int) -> Iterator[tuple[slice, slice]]:
    """Columns of a symmetric [d, d] matrix a strip at a time, each with the rows below its square on the diagonal."""
    for start in range(0, d, _STRIP):
        stop = min(start + _STRIP, d)
        yield slice(start, stop), slice(stop, d)
