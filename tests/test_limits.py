"""Cores and memory within the limits of containers, read from trees of control groups that are made here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sagan import limits
from sagan.limits import free_memory_mib, threads_of_user, usable_cores

MIB = 2**20


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 cores, and a tebibyte that is free."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)), raising=False)
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**20 * MIB}))


def process(folder: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A made /proc/self; control groups are mounted below `folder`, which {} stands for in `mounts`."""
    (folder / "proc").mkdir()
    (folder / "proc" / "cgroup").write_text(groups)
    (folder / "proc" / "mountinfo").write_text(
        f"22 1 0:20 / / rw - ext4 /dev/vda rw\n{mounts.replace('{}', str(folder))}"
    )
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder / "proc"


SECOND = "31 23 0:28 / {}/v2 rw,relatime - cgroup2 cgroup2 rw\n"
FIRST = (
    "32 31 0:29 ROOT {}/v1/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 ROOT {}/v1/mem rw - cgroup cgroup rw,memory\n"
)
SCOPE = "0::/user.slice/job.scope\n"
OURS = "3:cpu,cpuacct:/docker/1f\n2:memory:/docker/1f\n"
QUOTAS = {
    "none": (SCOPE, SECOND, {"v2/user.slice/cpu.max": "max 100000"}, 64),
    "a container of version 2": ("0::/\n", SECOND, {"v2/cpu.max": "600000 100000"}, 6),
    "a nested scope": (SCOPE, SECOND, {"v2/user.slice/job.scope/cpu.max": "300000 100000"}, 3),
    "a slice around a wider scope": (
        SCOPE,
        SECOND,
        {"v2/user.slice/cpu.max": "200000 100000", "v2/user.slice/job.scope/cpu.max": "1000000 100000"},
        2,
    ),
    "less than a core": ("0::/\n", SECOND, {"v2/cpu.max": "50000 100000"}, 1),
    "a core and a half": ("0::/\n", SECOND, {"v2/cpu.max": "150000 100000"}, 1),
    "more than the machine has": ("0::/\n", SECOND, {"v2/cpu.max": "9900000 100000"}, 64),
    "version 1": (
        OURS,
        FIRST.replace("ROOT", "/"),
        {"v1/cpu/docker/1f/cpu.cfs_quota_us": "400000\n", "v1/cpu/docker/1f/cpu.cfs_period_us": "100000\n"},
        4,
    ),
    "version 1, seen from inside the container": (
        OURS,
        FIRST.replace("ROOT", "/docker/1f"),
        {"v1/cpu/cpu.cfs_quota_us": "250000", "v1/cpu/cpu.cfs_period_us": "50000"},
        5,
    ),
    "version 1 without a quota": (
        OURS,
        FIRST.replace("ROOT", "/"),
        {"v1/cpu/docker/1f/cpu.cfs_quota_us": "-1", "v1/cpu/docker/1f/cpu.cfs_period_us": "100000"},
        64,
    ),
    "both versions": (
        OURS + "0::/\n",
        FIRST.replace("ROOT", "/") + SECOND,
        {"v1/cpu/cpu.cfs_quota_us": "700000", "v1/cpu/cpu.cfs_period_us": "100000", "v2/cpu.max": "800000 100000"},
        7,
    ),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_the_smallest_quota_from_the_innermost_group_to_the_outermost_counts(case: str, tmp_path: Path) -> None:
    groups, mounts, files, cores = QUOTAS[case]
    assert usable_cores(process(tmp_path, groups, mounts, files)) == cores


def test_a_smaller_affinity_counts_before_a_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 5}, raising=False)
    assert usable_cores(process(tmp_path, "0::/\n", SECOND, {"v2/cpu.max": "600000 100000"})) == 2


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "mib"),
    [
        (SCOPE, SECOND, {"v2/user.slice/memory.max": "max", "v2/user.slice/memory.current": "7"}, 2**20),
        (
            SCOPE,
            SECOND,
            {
                "v2/user.slice/memory.max": str(900 * MIB),
                "v2/user.slice/memory.current": str(500 * MIB),
                "v2/user.slice/memory.stat": f"anon 5\ninactive_file {100 * MIB}\n",
                "v2/user.slice/job.scope/memory.max": str(800 * MIB),
                "v2/user.slice/job.scope/memory.current": str(100 * MIB),
            },
            500,  # of the slice: its page cache is released on demand
        ),
        (
            OURS,
            FIRST.replace("ROOT", "/docker/1f"),
            {
                "v1/mem/memory.limit_in_bytes": f"{600 * MIB}\n",
                "v1/mem/memory.usage_in_bytes": f"{250 * MIB}\n",
                "v1/mem/memory.stat": f"inactive_file 1\ntotal_inactive_file {50 * MIB}\n",
            },
            400,
        ),
    ],
    ids=["no limit", "version 2", "version 1"],
)
def test_free_memory_is_that_of_the_narrowest_group(
    groups: str, mounts: str, files: dict[str, str], mib: float, tmp_path: Path
) -> None:
    assert free_memory_mib(process(tmp_path, groups, mounts, files)) == mib


def test_without_control_groups_the_machine_is_the_limit(tmp_path: Path) -> None:
    assert (usable_cores(tmp_path), free_memory_mib(tmp_path)) == (64, 2**20)


@pytest.mark.parametrize(
    ("value", "threads"), [("3", 3), ("4,2", 4), (" 2 ", 2), ("", None), ("0", None), ("many", None)]
)
def test_the_users_variable_is_read_as_openmp_reads_it(
    value: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads_of_user() == threads
