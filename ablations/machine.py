"""How many workers this machine keeps busy, and what it may use."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from sagan.config import Config

# Environment of processes that train. glibc gives freed memory at the heap's end back to the kernel; a step frees and
# takes the same memory again, and some workers came into a state where they fetched all of it anew, zeroed, at each
# step: half as fast.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31), "MALLOC_MMAP_THRESHOLD_": str(2**25)}

# Of a worker of the embedded preset at its peak: Python, torch, MLflow, the images, an evaluation.
_PROCESS_MIB = 1300.0


def usable_cores() -> int:
    """Cores that this process may use: its affinity, cut to its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, int(limit) // int(period))
    return max(1, cores)


def devices(name: str) -> tuple[str, ...]:
    """The devices that workers take in turn: all GPUs for "cuda". Raises ValueError for one that is not here."""
    if name == "cpu":
        return ("cpu",)
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise ValueError(f"this machine has no CUDA device, got {name!r}; use --device cpu")
        if device.index is not None and device.index >= count:
            raise ValueError(f"this machine has cuda:0 to cuda:{count - 1}, got {name!r}")
        return (name,) if device.index is not None else tuple(f"cuda:{index}" for index in range(count))
    return (name,)


@dataclass(frozen=True)
class Team:
    """Worker processes, torch threads for each, and the devices that they take in turn."""

    workers: int
    threads: int
    places: tuple[str, ...]
    note: str | None = None  # why "auto" chose fewer than the machine has cores or GPUs

    def place(self, member: int) -> str:
        return self.places[member % len(self.places)]

    def __str__(self) -> str:
        workers, threads = _counted(self.workers, "worker"), _counted(self.threads, "thread")
        return f"{workers} of {threads} on {', '.join(self.places)}"


def choose_team(
    asked: int | None, configs: Sequence[Config], places: tuple[str, ...], data_root: Path | None = None
) -> Team:
    """Workers for cells of `configs`, no more than cells. By default one per core or per GPU, as far as memory allows.

    On a CPU one thread per worker is the rule: it is what gives most cells per hour (tests/benchmarks/test_studies.py).
    """
    cores = usable_cores()
    on_cpu = places == ("cpu",)
    workers = max(1, min(asked or (cores if on_cpu else len(places)), len(configs)))
    note = None
    if asked is None and workers > 1:
        free, need = free_memory_mib(), worker_memory_mib(configs, on_cpu, data_root)
        if (held := max(1, int(free // need))) < workers:
            note = (
                f"--workers auto takes {held}, not {workers}: {free / 1024:.1f} GiB of memory are free, and a worker "
                f"needs about {need / 1024:.1f}. --workers {workers} does it nevertheless."
            )
            workers = held
    return Team(workers, max(1, cores // workers), places, note)


def worker_memory_mib(configs: Sequence[Config], on_cpu: bool, data_root: Path | None = None) -> float:
    """About what one worker needs of the machine's memory. On a GPU the networks are elsewhere."""
    if not on_cpu:
        return _PROCESS_MIB
    from sagan.cost import count
    from sagan.data import num_classes

    largest = max(configs, key=_activations)
    return _PROCESS_MIB + count(largest, num_classes(largest.data, data_root)).memory_mib


def free_memory_mib() -> float:
    """Memory that can be had without swapping, cut to the limit of this process's container."""
    free = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()) != "max":
        counters = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # The page cache counts as used there, and is given up when asked for.
        used = int((group / "memory.current").read_text()) - int(counters["inactive_file"])
        free = min(free, int(limit) - used)
    return max(0.0, free) / 2**20


def _activations(config: Config) -> int:
    """In proportion to what a step keeps, for telling which of several configs keeps most."""
    model = config.model
    return config.optim.batch_size * config.data.resolution**2 * (model.width_g + model.width_d)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from; None where it is installed elsewhere."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
