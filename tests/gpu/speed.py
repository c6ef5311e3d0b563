"""Stage 3: what a GPU makes of a training step, against the plain reference, and what of several cells at once.

`python tests/gpu/speed.py cuda` prints a Markdown table, each row when it is measured; "cpu" rehearses it at tiny
sizes. The figures also set the constants of `sagan.passes.pays_to_compile`.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from benchmarks.measure import bare_trainer
from benchmarks.plain import PlainTrainer

from sagan.config import Config, override
from sagan.cost import count
from sagan.presets import PRESETS
from sagan.training import Trainer

ROUNDS = 3
WARM_STEPS = 5  # after which a step is replayed
WORKERS = (1, 2, 4, 8)
SECONDS = 4.0  # that cells train side by side, for each number of workers
TINY = {
    "data.resolution": 32,
    "model.attention.at": [8],
    "model.width_g": 2,
    "model.width_d": 2,
    "optim.batch_size": 4,
    "optim.precision": "fp32",
}


@dataclass(frozen=True)
class Case:
    name: str
    config: Config
    compiles: bool


def cases(tiny: bool) -> list[Case]:
    paper = override(PRESETS["imagenet128"], {"model.attention.at": [32], "model.bn_groups": 1})
    small = override(PRESETS["embedded128"], {"model.attention.at": [32]})
    if tiny:
        return [Case("tiny", override(small, TINY), True)]
    in_fp32 = override(small, {"optim.precision": "fp32"})
    return [
        Case("128 px, width 64, batch 256, feat32", paper, True),
        Case("embedded128, feat32", small, False),
        Case("embedded128, feat32, in fp32", in_fp32, False),
    ]


class Bench:
    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.folder = Path(tempfile.mkdtemp())
        print(
            "| what | case | ours | measured, or compared with | figure |\n| --- | --- | --- | --- | --- |", flush=True
        )

    def row(self, *cells: str) -> None:
        print(f"| {' | '.join(cells)} |", flush=True)

    def seconds(self, function: Callable[[], object]) -> float:
        self.wait()
        started = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_mib(self, function: Callable[[], object]) -> float:
        if self.device.type == "cpu":
            return 0.0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() / 2**20

    def matrix_peak(self) -> float:
        side = 8192 if self.device.type == "cuda" else 64
        a, b = (torch.randn(side, side, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        taken = median(self.seconds(lambda: [a @ b for _ in range(10)]) for _ in range(5))
        return 20 * side**3 / taken

    def trainer(self, config: Config, backend: str | None) -> Trainer:
        return bare_trainer(config, self.folder, device=str(self.device), compile_backend=backend)


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def as_written(trainer: Trainer) -> Trainer:
    trainer.update = trainer._update
    return trainer


def in_amp(plain: PlainTrainer) -> None:
    with torch.autocast(plain.device.type, torch.bfloat16, enabled=plain.device.type == "cuda"):
        plain.train_step()


def in_tf32(plain: PlainTrainer) -> None:
    with tf32(plain.device.type == "cuda"):
        plain.train_step()


def steps_against_the_reference(bench: Bench, case: Case, peak: float) -> None:
    """Steps in the config's precision and the reference's, one form after another: a recorded step keeps the memory
    of its activations. A row for each form, and one for each comparison."""
    precision, batch = case.config.optim.precision, case.config.optim.batch_size
    new = partial(bench.trainer, case.config)
    backend = "inductor" if bench.device.type == "cuda" else "eager"  # code generation takes minutes on a CPU
    forms: dict[str, Callable[[], Callable[[], object]]] = {
        f"ours, {precision}, kernel by kernel": lambda: as_written(new(None))._train_step,
        f"ours, {precision}, replayed": lambda: new(None)._train_step,
        f"ours, {precision}, compiled and replayed": lambda: new(backend)._train_step,
        "plain reference, bf16 AMP": lambda: partial(in_amp, PlainTrainer(new(None))),
        "plain reference, TF32": lambda: partial(in_tf32, PlainTrainer(new(None))),
    }
    found: dict[str, float] = {}
    for name, build in forms.items():
        if "compiled" in name and not case.compiles:
            continue
        step = build()
        try:
            first = bench.seconds(step)
            memory = bench.peak_mib(lambda step=step: [step() for _ in range(WARM_STEPS)])
            steps = max(2, round(0.3 / bench.seconds(step)))
            taken = [bench.seconds(lambda step=step, n=steps: [step() for _ in range(n)]) for _ in range(ROUNDS)]
        except torch.OutOfMemoryError:
            bench.row("training step", case.name, name, "out of memory", "")
            del step
            torch.cuda.empty_cache()
            continue
        found[name] = seconds = median(taken) / steps
        said = f"{batch / seconds:.0f} images/s, {1000 * seconds:.1f} ms, {memory:.0f} MiB"
        share = count(case.config, 3).flops_per_step / seconds / peak
        bench.row("training step", case.name, name, said, f"{share:.1%} of the peak" if "ours" in name else "")
        if "compiled" in name:
            bench.row("compiling both passes", case.name, name, f"{first:.0f} s", "")
        profile(bench, f"{case.name}, {name}", step)
        del step
    for name in (name for name in found if "ours" in name):
        for other in (name for name in found if "ours" not in name):
            bench.row("training step", case.name, name, other, f"{found[other] / found[name]:.2f}x")


def profile(bench: Bench, name: str, step: Callable[[], object]) -> None:
    """Where the GPU's time goes, kernel by kernel."""
    if bench.device.type == "cpu":
        return
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        bench.seconds(lambda: [step() for _ in range(2)])
    kernels = [event for event in found.key_averages() if event.self_device_time_total > 0]
    kernels = [event for event in kernels if event.device_type == torch.autograd.DeviceType.CUDA]
    whole = sum(event.self_device_time_total for event in kernels)
    launched = sum(event.count for event in kernels)
    print(f"\n{name}: {whole / 2000:.1f} ms of {launched // 2} kernels a step", flush=True)
    for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:14]:
        print(f"    {event.self_device_time_total / whole:6.1%} {event.count // 2:5}  {event.key[:110]}", flush=True)
    print(flush=True)


def side_by_side(bench: Bench, tiny: bool) -> None:
    """Processes that train one cell each of `embedded128` on one card, without their evaluations."""
    config = override(PRESETS["embedded128"], {"model.attention.at": [32]})
    config = override(config, TINY) if tiny else config
    context = multiprocessing.get_context("spawn")
    workers = WORKERS if not tiny else (1, 2)
    barrier, results = context.Barrier(max(workers) + 1), context.Queue()
    seconds = SECONDS if not tiny else 0.5
    processes = [
        context.Process(target=train_in_turns, args=(n, workers, seconds, config, str(bench.device), barrier, results))
        for n in range(max(workers))
    ]
    for process in processes:
        process.start()
    try:
        for number in workers:
            barrier.wait(120)
            steps = sum(results.get(timeout=60) for _ in range(number)) / seconds
            cells = 3600 * steps / PRESETS["embedded128"].optim.steps
            bench.row(
                "cells on one card", "embedded128, feat32, without evaluations", f"{number} workers",
                f"{steps:.0f} steps/s", f"{cells:.0f} cells an hour",
            )  # fmt: skip
    finally:
        for process in processes:
            process.join(10)
            process.kill()


def train_in_turns(
    me: int, workers: tuple[int, ...], seconds: float, config: Config, device: str, barrier: Any, results: Any
) -> None:
    torch.set_num_threads(1)
    trainer = bare_trainer(config, Path(tempfile.mkdtemp()), device=device, compile_backend=None)
    for _ in range(WARM_STEPS):
        trainer._train_step()
    for number in workers:
        barrier.wait(120)
        if me < number:
            started, done = time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                trainer._train_step()
                if device != "cpu":
                    torch.cuda.synchronize()
                done += 1
            results.put(done)


def main(device: str) -> None:
    tiny = device == "cpu"
    bench = Bench(device)
    peak = bench.matrix_peak()
    size = "8192 x 8192" if not tiny else "64 x 64"
    bench.row("bf16 matrix peak", "", f"a product of {size}", f"{peak / 1e12:.3g} TFLOP/s", "")
    side_by_side(bench, tiny)
    for case in cases(tiny):
        steps_against_the_reference(bench, case, peak)


if __name__ == "__main__":
    main(sys.argv[1])
