"""Cores and memory that this process may use: what its affinity and the limits of its containers leave of the machine.

Linux limits a process by control groups, which lie in one another; each of them, and not only the innermost, counts.
They are directories of version 2 (`cpu.max`, `memory.max`) or of version 1 (`cpu.cfs_quota_us`,
`memory.limit_in_bytes`). Where they are mounted, and which of them is ours, is in /proc/self/mountinfo and
/proc/self/cgroup (man 7 cgroups, man 5 proc).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_SELF = Path("/proc/self")


def usable_cores(process: Path = _SELF) -> int:
    """Cores that this process may use, 1 or more: the smallest of its CPU affinity and its quotas, rounded down."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu", process):
        first = f"{_text(group / 'cpu.cfs_quota_us')} {_text(group / 'cpu.cfs_period_us')}"
        quota = (_text(group / "cpu.max") or first).split()
        if len(quota) == 2 and all(map(str.isdecimal, quota)):  # "max" and -1 are no quota
            cores = min(cores, int(quota[0]) // int(quota[1]))
    return max(1, cores)


def threads_of_user() -> int | None:
    """What OMP_NUM_THREADS allows a process: of "4,2" it is 4 (2 is for nested loops); None where it is no number."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def set_threads(threads: int | None = None) -> None:
    """Lets torch use so many threads of the CPU; by default as many as OMP_NUM_THREADS and the quotas allow."""
    import torch  # its default number of threads follows the variable, but no quota

    torch.set_num_threads(threads or min(torch.get_num_threads(), usable_cores()))


def free_memory_mib(process: Path = _SELF) -> float:
    """Memory that is available without swapping, of the machine and within each limit."""
    free = float(psutil.virtual_memory().available)
    for group in _groups("memory", process):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            numbers = f"{_text(group / limit)} {_text(group / used)}".split()
            if len(numbers) == 2 and all(map(str.isdecimal, numbers)):
                counters = _text(group / "memory.stat").split()
                # The page cache is counted as used, but is released on demand.
                released = int(counters[counters.index(cache) + 1]) if cache in counters else 0
                free = min(free, int(numbers[0]) - int(numbers[1]) + released)
    return max(0.0, free) / 2**20


def _groups(controller: str, process: Path) -> Iterator[Path]:
    """The directories of the control groups that limit `controller` for this process, the innermost first."""
    # "" for version 2, and for version 1 several controllers by their names.
    ours = [line.split(":", 2)[1:] for line in _text(process / "cgroup").splitlines()]
    for line in _text(process / "mountinfo").splitlines():
        mount, _, about = line.partition(" - ")
        root, point = map(Path, mount.split()[3:5])
        kind, *_, options = about.split()
        is_second = kind == "cgroup2"
        if not is_second and (kind != "cgroup" or controller not in options.split(",")):
            continue
        for controllers, name in ours:
            if controllers == "" if is_second else controller in controllers.split(","):
                path = Path(name)
                # A container may see the machine's path of its group, of which only the end, or nothing, is mounted.
                inner = path.relative_to(root) if path.is_relative_to(root) else Path()
                for group in (inner, *inner.parents):
                    yield point / group


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # not Linux; or of a group that has no such limit
        return ""
