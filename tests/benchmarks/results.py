"""The table of what the benchmarks measured, and on what."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from ablations.machine import git_commit
from sagan.limits import usable_cores

COLUMNS = ("benchmark", "case", "ours", "compared with", "figure", "goal", "met")
PACKAGES = ("torch", "numpy", "torch-fidelity", "mlflow", "optuna")


@dataclass
class Results:
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, benchmark: str, case: str, ours: str, other: str, figure: str, goal: str, met: bool | None) -> None:
        """`figure` is what `goal` speaks of; `met` is None where there is no goal."""
        self.rows.append((benchmark, case, ours, other, figure, goal, {True: "yes", False: "**no**", None: ""}[met]))

    def markdown(self) -> str:
        lines = [COLUMNS, ("---",) * len(COLUMNS), *self.rows]
        return "\n".join([*_header(), "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def _header() -> list[str]:
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    vectors = torch.backends.cpu.get_cpu_capability()
    return [
        "# Benchmarks",
        "",
        "Written by `python -m pytest tests/benchmarks`; holds what its last run measured. Times are medians of runs",
        "in turn with what they are compared with. Those of a GPU are in results_gpu.md, from `tests/gpu/run.sh`.",
        "",
        f"- Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {(git_commit() or 'unknown')[:12]}",
        f"- Machine: {_processor()} ({vectors}), {usable_cores()} usable cores, {memory:.0f} GiB",
        f"- Versions: Python {platform.python_version()}, {versions}",
    ]


def _processor() -> str:
    """The processor's name where the system gives it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
