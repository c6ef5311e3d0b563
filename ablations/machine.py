"""The resources of this machine, and how many workers it can run."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sagan.config import Config
from sagan.limits import free_memory_mib, threads_of_user, usable_cores

# Environment of processes that train. glibc returns freed memory at the heap's end to the kernel. Each step frees and
# allocates the same memory again, and with glibc's defaults some workers returned it to the kernel and got zeroed pages
# back at each step, which halved their speed.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31), "MALLOC_MMAP_THRESHOLD_": str(2**25)}

# Peak of a worker of the embedded preset without its networks: Python, torch, images, an evaluation.
_PROCESS_MIB = 1300.0


def find_devices(name: str) -> tuple[str, ...]:
    """The devices for workers: all GPUs for "cuda". Raises ValueError for a GPU that this machine lacks."""
    if name == "cpu":
        return ("cpu",)
    import torch

    device = torch.device(name)
    count = torch.cuda.device_count()
    if count == 0:
        raise ValueError(f"this machine has no CUDA device, got {name!r}; use --device cpu")
    if device.index is None:
        return tuple(f"cuda:{index}" for index in range(count))
    if device.index >= count:
        raise ValueError(f"must be one of cuda:0 to cuda:{count - 1} on this machine, got {name!r}")
    return (name,)


@dataclass(frozen=True)
class WorkerPool:
    """The number of worker processes, the torch threads of each, and the devices, which they take in turn."""

    workers: int
    threads: int
    devices: tuple[str, ...]
    note: str | None = None  # why "auto" chose fewer than the machine has cores or GPUs

    def __str__(self) -> str:
        workers, threads = "worker" + "s" * (self.workers > 1), "thread" + "s" * (self.threads > 1)
        return f"{self.workers} {workers} of {self.threads} {threads} on {', '.join(self.devices)}"


def choose_worker_pool(
    asked: int | None,
    configs: Sequence[Config],
    devices: tuple[str, ...],
    data_root: Path | None = None,
    threads: int | None = None,
) -> WorkerPool:
    """Workers for one cell per config: at most one per cell; by default one per core or GPU, as memory allows.

    On a CPU each worker then has one thread, which gives the most cells per hour (tests/benchmarks/test_studies.py).
    Without `threads`, workers share the cores evenly, and a worker takes OMP_NUM_THREADS threads at most.
    """
    cores = usable_cores()
    on_cpu = devices == ("cpu",)
    workers = max(1, min(asked or (cores if on_cpu else len(devices)), len(configs)))
    note = None
    if asked is None and workers > 1:
        free, need = free_memory_mib(), worker_memory_mib(configs, on_cpu, data_root)
        if (fitting := max(1, int(free // need))) < workers:
            note = (
                f"--workers auto takes {fitting}, not {workers}: {free / 1024:.1f} GiB of memory are free, and a "
                f"worker needs about {need / 1024:.1f}. To use more all the same, write --workers {workers}."
            )
            workers = fitting
    share = max(1, cores // workers)
    return WorkerPool(workers, threads or min(share, threads_of_user() or share), devices, note)


def worker_memory_mib(configs: Sequence[Config], on_cpu: bool, data_root: Path | None = None) -> float:
    """An estimate of one worker's host memory, for the largest of `configs`. On a GPU the networks are not in it."""
    if not on_cpu:
        return _PROCESS_MIB
    from sagan.cost import count
    from sagan.data import num_classes

    # In proportion to the activations of a step, and faster than counting the cost of each config.
    sizes = [(c.optim.batch_size * c.data.resolution**2 * (c.model.width_g + c.model.width_d), c) for c in configs]
    largest = max(sizes, key=lambda sized: sized[0])[1]
    return _PROCESS_MIB + count(largest, num_classes(largest.data, data_root)).memory_mib


def git_commit() -> str | None:
    """The git commit of this package's checkout, or None where it is not in one."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
