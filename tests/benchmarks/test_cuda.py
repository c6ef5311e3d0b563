"""On a GPU: training at the paper's scale against the plain reference, and cells of a small preset on one card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks.measure import bare_trainer, medians_in_turn
from benchmarks.plain import PlainTrainer
from benchmarks.results import Results
from torch.utils.flop_counter import FlopCounterMode

from sagan.config import override
from sagan.presets import PRESETS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
STEPS = 4  # a turn


def finished(function: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        function()
        torch.cuda.synchronize()

    return run


def bf16_flops_per_second() -> float:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    (seconds,) = medians_in_turn(finished(lambda: a @ b), rounds=20)
    return 2 * 8192**3 / seconds


def test_training_at_the_papers_scale(results: Results, tmp_path: Path) -> None:
    config = override(PRESETS["imagenet128"], {"model.attention.at": [32]})
    fast = bare_trainer(config, tmp_path, device="cuda")
    plain = PlainTrainer(fast)
    with FlopCounterMode(display=False) as counter:
        plain.train_step()

    def in_amp() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            plain.train_step()

    torch.set_float32_matmul_precision("high")  # TF32: the usual form of the fp32 reference
    torch.backends.cudnn.allow_tf32 = True
    ours, amp, tf32 = medians_in_turn(
        *(
            finished(lambda step=step: [step() for _ in range(STEPS)])
            for step in (fast._train_step, in_amp, plain.train_step)
        ),
        rounds=5,
    )
    images = STEPS * config.optim.batch_size
    case = f"128 px, feat32, width 64, batch {config.optim.batch_size}, {torch.cuda.get_device_name()}"
    for name, theirs, goal in (("in bf16 AMP", amp, 2.5), ("in fp32 with TF32", tf32, None)):
        results.add(
            "training step, GPU",
            case,
            f"{images / ours:.0f} images/s",
            f"plain reference {name} {images / theirs:.0f} images/s",
            f"{theirs / ours:.2f}x",
            f"{goal}x" if goal else "",
            theirs / ours >= goal if goal else None,
        )
    share = STEPS * counter.get_total_flops() / ours / bf16_flops_per_second()
    results.add(
        "share of the bf16 matrix peak, GPU",
        case,
        f"{share:.0%}",
        "a product of 8192 x 8192",
        f"{share:.0%}",
        "40%",
        share >= 0.4,
    )


def test_a_step_never_waits_for_the_gpu(results: Results, tmp_path: Path) -> None:
    trainer = bare_trainer(override(PRESETS["embedded"], {"model.attention.at": [32]}), tmp_path, device="cuda")
    for _ in range(3):
        trainer._train_step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer._train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    results.add("host synchronisation inside a step, GPU", "embedded preset, feat32", "0", "", "0", "0", True)
