"""The device that a command line names, which operations run in bf16 on it, and a step as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

_WARM_UP_CALLS = 3  # in which libraries choose kernels and allocate memory; neither is possible while recording


def named_device(name: str) -> torch.device:
    """Raises ValueError for an invalid name, and for a device that this machine or this build of torch lacks."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # an invalid name; torch built without that device
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--device: must be one that torch has here, got {name!r} ({reason}); write cpu") from None
    return torch.device(name)


def autocast(device: torch.device, precision: Literal["fp32", "bf16"]) -> AbstractContextManager[object]:
    """A context with activations in bf16, or for "fp32" without autocast; an inner context overrides an outer one."""
    if device.type == "meta":
        return nullcontext()  # on the meta device, where cost.py counts operations
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class Replay:
    """Calls a function that returns nothing and only writes to tensors which keep their memory between calls.

    A training step of small networks is some 2,400 kernels of 5 microseconds, and Python takes five times as long to
    launch them (tests/benchmarks/results_gpu.md). So the kernels of one call are recorded, with the addresses that they
    read and write, and for later calls they are launched together: the same kernels on the same numbers. The arguments
    are first copied to the memory of the recorded ones, so they must have the same shapes in each call.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._stream = torch.cuda.Stream()  # warm-up and recording must not use the default stream
        self._graph = torch.cuda.CUDAGraph()
        self._given: tuple[Tensor, ...] = ()

    def __call__(self, function: Callable[..., None], *given: Tensor) -> None:
        self._calls += 1
        if self._calls <= _WARM_UP_CALLS:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                function(*given)
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if not self._given:
            self._given = tuple(tensor.clone() for tensor in given)
            with torch.cuda.graph(self._graph, stream=self._stream):
                function(*self._given)
        torch._foreach_copy_(list(self._given), list(given))
        self._graph.replay()
