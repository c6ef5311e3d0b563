"""Diagnostics of the networks: gamma, entropy and distance of attention, singular values, peak memory."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from sagan.attention import ResidualControl, SelfAttention2d
from sagan.layers import BatchNormReLU
from sagan.networks import Discriminator, Generator
from sagan.spectral_norm import SpectralNormWeight


def gammas(generator: Generator, discriminator: Discriminator) -> dict[str, float]:
    """`gamma/g32` and `gamma/d32`: the gain of every attention block, or of the control in its place."""
    return {
        f"gamma/{letter}{size}": cast(SelfAttention2d | ResidualControl, block).gamma.item()
        for letter, network in (("g", generator), ("d", discriminator))
        for size, block in network.attention.items()
    }


def largest_singular_value(network: nn.Module) -> float:
    """The largest over convolutions, linear layers and D's embedding, of the weights before spectral norm divides them
    (exact, float64; not the running estimate)."""
    largest = 0.0
    tables = [table for norm in network.modules() if isinstance(norm, BatchNormReLU) for table in norm.children()]
    for layer in network.modules():
        if isinstance(layer, SpectralNormWeight) and layer not in tables:
            matrix = layer.weight.detach().flatten(1).double()
            gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
            largest = max(largest, float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt()))
    return largest


def attention_statistics(maps: Mapping[str, Tensor]) -> dict[str, float]:
    """Of attention (B, N, M) by feature-map size: mean entropy of a row over log M, where 1 is uniform, and mean
    distance between query and attended key in units of the map's side."""
    statistics = {}
    for size, attention in maps.items():
        queries, keys = _centres(attention.shape[1]), _centres(attention.shape[2])
        entropy = -torch.xlogy(attention, attention).sum(2).mean() / math.log(attention.shape[2])
        distance = (attention.cpu() * torch.cdist(queries, keys)).sum(2).mean()
        statistics[f"attention_entropy/g{size}"] = float(entropy)
        statistics[f"attention_distance/g{size}"] = float(distance)
    return statistics


def _centres(num_tokens: int) -> Tensor:
    """Centres of the cells of a square grid of `num_tokens` on the unit square: [num_tokens, 2]."""
    side = math.isqrt(num_tokens)
    line = (torch.arange(side) + 0.5) / side
    return torch.cartesian_prod(line, line)


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # outside Linux the peak is over the lifetime of the process


def peak_memory_mib(device: torch.device) -> float:
    """Peak since the last reset: of the GPU's allocations, or of this process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
