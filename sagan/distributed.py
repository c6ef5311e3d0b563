"""Several processes for one run, each with its part of every batch; `torchrun` starts them and says who is who.

Gradients are averaged by hand, in one flat tensor after each backward pass. DistributedDataParallel ties communication
to a module's forward pass; here one compiled function runs both networks, G without gradients in one and D without them
in the other, and logged values travel in the same tensor for nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# Others wait while the first process scores and logs; a process that dies is noticed by torchrun, not by waiting.
_PATIENCE = timedelta(hours=1)
_LEAVING_SECONDS = 60.0  # for a process to save once its torchrun is gone


@dataclass(frozen=True)
class World:
    """The processes of this run. What a method says of all of them, all have to call."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> World:
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    def part(self, n: int) -> slice:
        """This process's part of n items in a row; the parts follow one another, as the ranks do."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all processes in the place of each tensor: the same bits everywhere."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])

    def gather(self, value: T) -> list[T]:
        """The value of each process by rank, at the first one; nothing at the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def broadcast(self, value: T) -> T:
        """The first process's value, everywhere."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def sharers(self, groups: int) -> dist.ProcessGroup | None:
        """Those processes whose images are in one of `groups` equal groups of the batch; None where each has whole
        groups of its own. One number divides the other (`Config.check_shared`)."""
        return None if groups % self.size == 0 else _neighbours(self.size // groups)


def in_step(world: World, events: Generator[T]) -> Generator[T]:
    """`events`, for the first process's caller. The others' callers see none of theirs, which are drawn all the same,
    and leave off where the first one does."""
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
def _neighbours(count: int) -> dist.ProcessGroup:
    """This process's group where the ranks are cut into runs of `count`."""
    everyone = dist.group.WORLD
    if everyone is not None and count == everyone.size():
        return everyone
    return dist.new_subgroups(count)[0]


def _leave_after(torchrun: int) -> None:
    """Without torchrun nobody ends a process that waits for a card, or for another process, which never answers."""
    while os.getppid() == torchrun:
        time.sleep(1)
    time.sleep(_LEAVING_SECONDS)
    os._exit(1)


def join(device: str) -> str:
    """Meet the other processes, if torchrun started this one; returns the device that is this process's own.

    "cuda" is then the card with the number of the process on its machine.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return device
    threading.Thread(target=_leave_after, args=(os.getppid(),), daemon=True).start()
    if torch.device(device).type == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if sys.platform == "linux":  # the machine's own name may lead to a network, and to its firewall
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(timeout=_PATIENCE)  # gloo for what is in memory, NCCL for what is on cards
    return device
