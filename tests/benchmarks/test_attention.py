"""What the core of attention takes on a CPU, against torch's fused kernel."""

from __future__ import annotations

import pytest
import torch
from benchmarks.measure import medians_in_turn, torch_threads
from benchmarks.results import Results

from sagan import attention

BATCH, KEY, VALUE = 16, 8, 4  # of the embedded preset


@pytest.mark.parametrize("size", [8, 16, 32])
def test_attention_of_one_image_at_a_time(size: int, results: Results) -> None:
    n, m = size**2, size**2 // 4
    q, k, v = (torch.randn(BATCH, t, w, requires_grad=True) for t, w in ((n, KEY), (m, KEY), (m, VALUE)))

    def times(attend: object) -> None:
        for _ in range(4):
            attend(q, k, v, 1.0).square().sum().backward()  # type: ignore[operator]

    with torch_threads(1):
        ours, fused = medians_in_turn(
            lambda: times(attention._attend_by_image), lambda: times(attention._attend_fused), rounds=15
        )
    results.add(
        "attention, one image at a time",
        f"feat{size}, {KEY} key and {VALUE} value channels, batch {BATCH}, forward and backward; 1 thread",
        f"{250 * ours:.2f} ms",
        f"torch's fused kernel {250 * fused:.2f} ms",
        f"{fused / ours:.2f}x",
        "1.5x" if size == 32 else "",
        fused / ours >= 1.5 if size == 32 else None,
    )
