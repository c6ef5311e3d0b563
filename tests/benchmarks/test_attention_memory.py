"""What attention needs beyond its input, against the form that stores the N x M matrix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.results import Results

ROOT = Path(__file__).parents[2]


def peak_extra(form: str, size: int) -> float:
    """MiB, in a process of its own: a peak cannot be taken back."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "benchmarks.attention_memory", form, str(size)]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_attention_memory(results: Results) -> None:
    ours, explicit = ({size: peak_extra(form, size) for size in (32, 64)} for form in ("ours", "explicit"))
    for size in (32, 64):
        share = ours[size] / explicit[size]
        results.add(
            "attention, peak extra memory",
            f"feat{size}, 64 channels, batch 64, forward and backward",
            f"{ours[size]:.0f} MiB",
            f"explicit form {explicit[size]:.0f} MiB",
            f"1/{1 / share:.1f}",
            "< 1/8" if size == 64 else "",
            share < 1 / 8 if size == 64 else None,
        )
    growth = ours[64] / ours[32]
    results.add(
        "attention, growth of that memory",
        "feat32 to feat64: four times the queries",
        f"{growth:.1f}x",
        f"explicit form {explicit[64] / explicit[32]:.1f}x",
        f"{growth:.1f}x",
        "about 4x",
        growth < 5,
    )
