"""How many workers this machine keeps busy, and what it may use."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


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


def workers_and_threads(asked: int | None, num_cells: int, places: tuple[str, ...]) -> tuple[int, int]:
    """How many workers, and torch threads for each. Unasked: one a core, or one a GPU, and never more than cells."""
    cores = usable_cores()
    wanted = asked if asked is not None else (cores if places == ("cpu",) else len(places))
    workers = max(1, min(wanted, num_cells))
    return workers, max(1, cores // workers)


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
