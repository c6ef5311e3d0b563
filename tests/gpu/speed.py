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

ROUNDS, STEPS = 3, 2  # of the large networks, in turn
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


def cases(tiny: bool) -> list[Case]:
    paper = override(PRESETS["imagenet128"], {"model.attention.at": [32], "model.bn_groups": 1})
    small = override(PRESETS["embedded128"], {"model.attention.at": [32]})
    if tiny:
        return [Case("tiny", override(small, TINY))]
    return [
        Case("embedded128, feat32", small),
        Case("128 px, width 64, batch 256, feat32", paper),
        Case("embedded128, feat32, in bf16", override(small, {"optim.precision": "bf16"})),
    ]


class Bench:
    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.folder = Path(tempfile.mkdtemp())
        print("| what | case | measured | compared with | ratio |\n| --- | --- | --- | --- | --- |", flush=True)

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


def steps_against_the_reference(bench: Bench, case: Case, peak: float) -> None:
    """Ours, eager and compiled, in the config's precision, in turn with the reference in AMP and in TF32."""
    batch, precision = case.config.optim.batch_size, case.config.optim.precision
    on_gpu = bench.device.type == "cuda"
    backend = "inductor" if on_gpu else "eager"  # code generation takes minutes on a CPU
    eager, compiled = bench.trainer(case.config, None), bench.trainer(case.config, backend)
    plain = PlainTrainer(bench.trainer(case.config, None))
    compile_seconds = bench.seconds(compiled._train_step) - bench.seconds(compiled._train_step)

    def in_amp() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=on_gpu):
            plain.train_step()

    def in_tf32() -> None:
        with tf32(on_gpu):
            plain.train_step()

    ours = {f"ours, {precision}, eager": eager._train_step, f"ours, {precision}, compiled": compiled._train_step}
    reference = {"plain reference, bf16 AMP": in_amp, "plain reference, TF32": in_tf32}
    memory: dict[str, float] = {}
    for name, step in (ours | reference).items():
        try:
            memory[name] = bench.peak_mib(step)
        except torch.OutOfMemoryError:
            bench.row("training step", case.name, f"{name}: out of memory", "", "")
            torch.cuda.empty_cache()
    steps = {name: step for name, step in (ours | reference).items() if name in memory}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS + 1):
        for name, step in steps.items():
            taken[name].append(bench.seconds(lambda step=step: [step() for _ in range(STEPS)]) / STEPS)
    found = {name: median(seconds[1:]) for name, seconds in taken.items()}

    speeds = {name: f"{batch / seconds:.0f} images/s, {1000 * seconds:.1f} ms" for name, seconds in found.items()}
    for name in (name for name in ours if name in found):
        said = f"{name}: {speeds[name]}, {memory[name]:.0f} MiB"
        for other in (name for name in reference if name in found):
            compared = f"{other}: {speeds[other]}, {memory[other]:.0f} MiB"
            bench.row("training step", case.name, said, compared, f"{found[other] / found[name]:.2f}x")
        share = count(case.config, 3).flops_per_step / found[name] / peak
        bench.row("share of the bf16 matrix peak", case.name, name, "", f"{share:.1%}")
    saved = found[f"ours, {precision}, eager"] - found[f"ours, {precision}, compiled"]
    for name in ours:
        profile(bench, f"{case.name}: {name}", ours[name])
    again = bench.trainer(case.config, backend)
    from_cache = bench.seconds(again._train_step) - bench.seconds(again._train_step)
    pays = f"pays after {compile_seconds / saved:.0f} steps" if saved > 0 else "never pays"
    said = f"{compile_seconds:.1f} s, {from_cache:.1f} s from torch's cache"
    bench.row("compiling both passes", f"{case.name}, {precision}", said, "", pays)


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
                "cells on one card", "embedded128, feat32, eager, without evaluations", f"{number} workers",
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
    for _ in range(3):
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
    bench.row("bf16 matrix peak", f"a product of {size}", f"{peak / 1e12:.3g} TFLOP/s", "", "")
    for case in cases(tiny):
        steps_against_the_reference(bench, case, peak)
    side_by_side(bench, tiny)


if __name__ == "__main__":
    main(sys.argv[1])
