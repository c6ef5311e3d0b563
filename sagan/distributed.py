"""Several processes for one run, each with its shard of every batch; `torchrun` starts them and gives them ranks.

Gradients are averaged explicitly, in one flat tensor after each backward pass. DistributedDataParallel would tie
communication to one module's forward pass, but here one compiled function runs both networks, one of them without
gradients; and logged values are averaged in the same tensor at no further cost.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sagan.device import named_device

T = TypeVar("T")

# The other processes wait while the first one scores and logs, so this is long. torchrun ends them if one dies.
_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class World:
    """The processes of this run. `average`, `gather` and `broadcast` are collective: every process must call them."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> World:
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    def shard(self, n: int) -> slice:
        """The contiguous range of n items that belongs to this process; ranges are in the order of ranks."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, which has the same bits in all of them."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        means = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [mean.view(t.shape) for mean, t in zip(means, tensors, strict=True)])

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the order of ranks, in the first process; [] in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def broadcast(self, value: T) -> T:
        """The first process's value, in all processes."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def process_group(self, groups: int) -> dist.ProcessGroup | None:
        """The processes that share a batch-norm group, where a batch has `groups` equal ones; None where each process
        has complete groups of its own. One number divides the other (`Config.check_shared`)."""
        return None if groups % self.size == 0 else _subgroup(self.size // groups)


def for_first_process(world: World, events: Generator[T]) -> Generator[T]:
    """Yields the `events` in the first process and none in the others, which still compute theirs. Every process stops
    when the first one's caller closes the generator."""
    try:
        for event in events:
            goes_on = False
            try:
                if world.rank == 0:
                    yield event
                goes_on = True
            finally:
                goes_on = world.broadcast(goes_on)
            if not goes_on:
                return
    finally:
        events.close()


@cache
def _subgroup(count: int) -> dist.ProcessGroup:
    """The group of this process, where every `count` consecutive ranks are one."""
    everyone = dist.group.WORLD
    if everyone is not None and count == everyone.size():
        return everyone
    return dist.new_subgroups(count)[0]


def join(name: str) -> torch.device:
    """Join the other processes, if torchrun started this one; returns the device of this process.
    Under torchrun "cuda" is the GPU with the local rank as its number. Raises ValueError as `named_device` does."""
    is_one_of_several = "TORCHELASTIC_RUN_ID" in os.environ
    device = named_device(f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and is_one_of_several else name)
    if is_one_of_several:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if sys.platform == "linux":  # by default gloo takes the interface of the host name, which a firewall may block
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(timeout=_TIMEOUT)  # gloo for tensors in memory, NCCL for those on GPUs
    return device
