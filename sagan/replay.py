"""A function on a GPU's tensors as a CUDA graph: recorded once, then launched as one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UP_CALLS = 3  # in which libraries choose kernels and allocate memory; neither is possible while recording


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
