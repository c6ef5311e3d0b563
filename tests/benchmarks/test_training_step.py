"""What a training step takes against the plain reference, and where its time goes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from benchmarks.measure import Clock, bare_trainer, medians_in_turn, thread_counts, torch_threads
from benchmarks.plain import PlainTrainer
from benchmarks.results import Results

from sagan import networks, spectral_norm
from sagan.config import Config, override
from sagan.presets import PRESETS

# An event every ten steps, no evaluation in between, and an average of G in every case.
LONG = {"optim.steps": 500, "eval.endpoint": 1, "eval.every": 500, "optim.ema_decay": 0.999, "optim.ema_start": 0}
FP32 = {"optim.precision": "fp32"}
CASES: dict[str, tuple[Config, float, int]] = {  # config, goal against the plain reference, steps a turn
    "128 px, feat64, width 16, batch 8": (
        override(
            PRESETS["imagenet128"],
            {
                "model.width_g": 16,
                "model.width_d": 16,
                "model.attention.at": [64],
                "model.bn_groups": 1,
                "optim.batch_size": 8,
                **LONG,
                **FP32,
            },
        ),
        2.5,
        1,
    ),
    "64 px, feat32, width 8, batch 8": (
        override(PRESETS["embedded"], {"model.attention.at": [32], "optim.batch_size": 8, **LONG}),
        2.0,
        8,
    ),
    "64 px, feat32, width 8, batch 16": (
        override(PRESETS["embedded"], {"model.attention.at": [32], "optim.batch_size": 16, **LONG}),
        2.0,
        4,
    ),
}


@pytest.mark.parametrize("threads", thread_counts())
@pytest.mark.parametrize("case", CASES)
def test_training_step_against_the_plain_reference(case: str, threads: int, results: Results, tmp_path: Path) -> None:
    config, goal, steps = CASES[case]
    fast = bare_trainer(config, tmp_path)
    plain = PlainTrainer(fast)
    with torch_threads(threads):
        ours, theirs = medians_in_turn(
            lambda: [fast._train_step() for _ in range(steps)],
            lambda: [plain.train_step() for _ in range(steps)],
            rounds=7,
        )
    ratio = theirs / ours
    results.add(
        "training step",
        f"{case}; {threads} threads" if threads > 1 else f"{case}; 1 thread",
        f"{1000 * ours / steps:.0f} ms",
        f"plain reference {1000 * theirs / steps:.0f} ms",
        f"{ratio:.2f}x",
        f"{goal}x",
        ratio >= goal,
    )


PARTS = {  # part: (what is timed, goal)
    "spectral norm": ("apply_spectral_norm and its backward", 0.05),
    "optimiser and EMA": ("both Adam steps, zero_grad, the average of G", 0.05),
    "Python between steps": (
        "run() outside of steps: sums, events; and in them the drawing of batches and noise",
        0.02,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_shares_of_a_step(case: str, results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, clock = bare_trainer(CASES[case][0], tmp_path), Clock()

    def watch(owner: object, name: str, part: str) -> None:
        monkeypatch.setattr(owner, name, clock.timed(part, getattr(owner, name)))

    watch(networks, "apply_spectral_norm", "spectral norm")
    backward = clock.timed("spectral norm", spectral_norm._DivideBySigma.backward)
    monkeypatch.setattr(spectral_norm._DivideBySigma, "backward", staticmethod(backward))
    for optimizer in (trainer.optimizer_g, trainer.optimizer_d):
        watch(optimizer, "step", "optimiser and EMA")
        watch(optimizer, "zero_grad", "optimiser and EMA")
    watch(trainer, "_average_weights", "optimiser and EMA")
    watch(trainer, "batches", "drawing")
    watch(trainer, "_noise", "drawing")
    watch(trainer, "_train_step", "steps")

    with torch_threads(1):
        events = trainer.run()
        while next(events).step < 10:  # the first ten steps warm up
            pass
        clock.seconds.clear()
        started = time.perf_counter()
        while next(events).step < 40:
            pass
        whole = time.perf_counter() - started
        events.close()  # type: ignore[attr-defined]
    clock.seconds["Python between steps"] = whole - clock.seconds["steps"] + clock.seconds["drawing"]
    for part, (what, goal) in PARTS.items():
        share = clock.seconds[part] / whole
        results.add(
            f"share of a step: {part}",
            f"{case}; 1 thread",
            f"{1000 * clock.seconds[part] / 30:.2f} ms of {1000 * whole / 30:.0f} ms",
            what,
            f"{share:.1%}",
            f"< {goal:.0%}",
            share < goal,
        )
