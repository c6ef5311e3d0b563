"""Spectral norm of all the layers of a network at once (Miyato et al. 2018; official ops.py)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sagan.device import autocast


class SpectralNormWeight(nn.Module):
    """A layer whose weight spectral norm may divide by its largest singular value; forward passes use the result,
    `effective_weight`, which without `spectral_norm` is the weight itself.

    With `spectral_norm`, the buffers `u` and `v` are the running estimates of the singular vectors of the weight as
    [rows, columns] (a kernel's columns in the order height, width, channel, as in the official code), and `normalized`
    is the weight that `apply_spectral_norm` divided for the current pass.
    """

    u: Tensor
    v: Tensor
    normalized: Tensor

    def __init__(self, shape: tuple[int, ...], *, spectral_norm: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.spectral_norm = spectral_norm
        if spectral_norm:
            rows = shape[0]
            self.register_buffer("u", torch.empty(rows))
            self.register_buffer("v", torch.empty(self.weight.numel() // rows))

    @property
    def effective_weight(self) -> Tensor:
        return self.normalized if self.spectral_norm else self.weight


def apply_spectral_norm(layers: Iterable[SpectralNormWeight], *, update: bool, eps: float) -> None:
    """Divide the weight of every layer that has spectral norm by its estimated largest singular value.

    With `update`, one power iteration first, stored in `u` and `v`, in the order of torch's parametrisation
    (u from v, then v from u); the official code starts with v from u and lets gradients flow through the iteration,
    torch and we do not. All layers are handled in few grouped operations: done one by one, spectral norm costs a
    small network more time than its convolutions.
    """
    normed: list[Any] = [layer for layer in layers if layer.spectral_norm]
    if normed:
        u, v = [layer.u for layer in normed], [layer.v for layer in normed]
        weights = [layer.weight for layer in normed]
        with autocast(weights[0].device, "fp32"):  # a power iteration in bf16 would not converge
            scaled = _DivideBySigma.apply(u, v, update, eps, *weights)
        for layer, weight in zip(normed, scaled, strict=True):
            layer.normalized = weight


class _DivideBySigma(torch.autograd.Function):
    """weights -> weights / sigma, sigma = u' W v with u and v held constant.

    The backward pass reads u and v as they are then: autograd raises an error if an update came in between.
    """

    @staticmethod
    def forward(ctx: Any, u: list[Tensor], v: list[Tensor], update: bool, eps: float, *weights: Tensor) -> Any:
        matrices = [_matrix(weight) for weight in weights]
        if update:
            sigmas = _iterate(matrices, u, v, eps)
        else:
            sigmas = [torch.dot(x, matrix.mv(y)) for x, matrix, y in zip(u, matrices, v, strict=True)]
        scaled = torch._foreach_div(weights, sigmas)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*scaled, *sigmas, *u, *v)
        return tuple(scaled)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        n = len(grads)
        scaled, sigmas = ctx.saved_tensors[:n], ctx.saved_tensors[n : 2 * n]
        u, v = ctx.saved_tensors[2 * n : 3 * n], ctx.saved_tensors[3 * n :]
        pulled = []
        for grad, w, x, y in zip(grads, scaled, u, v, strict=True):
            matrix = _matrix(grad)
            along = torch.dot(matrix.flatten(), _matrix(w).flatten())
            pulled.append(torch.addr(matrix, x * along, y, alpha=-1))
        torch._foreach_div_(pulled, sigmas)
        return None, None, None, None, *map(_weight, pulled, scaled)


def _iterate(matrices: list[Tensor], u: list[Tensor], v: list[Tensor], eps: float) -> list[Tensor]:
    """One power iteration in place: u = Wv / |Wv|, v = W'u / |W'u|; returns the sigmas u'Wv, which are |W'u|."""
    for matrix, x, y in zip(matrices, u, v, strict=True):
        torch.mv(matrix, y, out=x)
        torch.mv(matrix.t(), x, out=y)  # u is not yet divided by its length: all lengths are computed at once
    lengths_u, lengths_v = torch.stack(torch._foreach_norm(u + v)).view(2, -1)
    lengths_u = lengths_u.clamp_min(eps)
    sigmas = (lengths_v / lengths_u).clamp_min_(eps)
    torch._foreach_div_(u + v, torch.cat([lengths_u, lengths_u * sigmas]).unbind())
    return list(sigmas.unbind())


def _matrix(weight: Tensor) -> Tensor:
    """[rows, columns]: a view of a tensor in channels_last memory, not a copy."""
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight


def _weight(matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_matrix`."""
    if like.ndim == 2:
        return matrix
    rows, columns, height, width = like.shape
    return matrix.view(rows, height, width, columns).permute(0, 3, 1, 2)
