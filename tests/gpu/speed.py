"""Stage 3: what a GPU makes of a training step, against the plain reference, and of several cells at once.

`python tests/gpu/speed.py cuda` prints a Markdown table, each row when it is measured, with the kernels that take the
time between; "cpu" rehearses it at tiny sizes. Compiling comes last: it takes longer than all else together. The
figures set the constants of `sagan.passes.pays_to_compile`.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measure import bare_trainer
from benchmarks.plain import PlainTrainer

from sagan.config import Config, override
from sagan.cost import count
from sagan.presets import PRESETS
from sagan.training import Trainer

ROUNDS = 3
WARM_STEPS = 5  # after which a step is replayed
CELL = override(PRESETS["embedded128"], {"model.attention.at": [32]})
TINY = {
    "data.resolution": 32,
    "model.attention.at": [8],
    "model.width_g": 2,
    "model.width_d": 2,
    "optim.batch_size": 4,
    "optim.precision": "fp32",
}


def cases(is_rehearsal: bool) -> dict[str, Config]:
    if is_rehearsal:
        return {"tiny": override(CELL, TINY)}
    # As the reference, which knows no groups of batch norm; the preset has four.
    paper = override(PRESETS["imagenet128"], {"model.attention.at": [32], "model.bn_groups": 1})
    return {
        "128 px, width 64, batch 256, feat32": paper,
        "embedded128, feat32": CELL,
        "embedded128, feat32, in fp32": override(CELL, {"optim.precision": "fp32"}),
    }


class Bench:
    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self._folder = Path(tempfile.mkdtemp())

    def row(self, *cells: str) -> None:
        print(f"| {' | '.join(cells)} |", flush=True)

    def seconds(self, function: Callable[[], object], times: int = 1) -> float:
        """Of one call, to the end of its work on the device."""
        self._wait()
        started = time.perf_counter()
        for _ in range(times):
            function()
        self._wait()
        return (time.perf_counter() - started) / times

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def flops_per_second(self, side: int) -> float:
        """Of a bf16 product of two square matrices."""
        a, b = (torch.randn(side, side, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return 2 * side**3 / median(self.seconds(lambda: a @ b, 10) for _ in range(5))

    def trainer(self, config: Config, backend: str | None = None) -> Trainer:
        return bare_trainer(config, self._folder, device=str(self.device), compile_backend=backend)

    def step(self, case: str, config: Config, name: str, step: Callable[[], object], peak: float) -> float | None:
        """Seconds of one, with a row and the kernels that take them; None where memory gives out."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            self.seconds(step, WARM_STEPS)
            times = max(2, round(0.3 / self.seconds(step)))
            seconds = median(self.seconds(step, times) for _ in range(ROUNDS))
        except torch.OutOfMemoryError:
            self.row("training step", case, name, "out of memory", "")
            return None
        said = f"{config.optim.batch_size / seconds:.0f} images/s, {1000 * seconds:.1f} ms"
        share = count(config, 3).flops_per_step / seconds / peak
        if self.on_gpu:
            said += f", {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
        self.row("training step", case, name, said, f"{share:.1%} of the peak" if name in OURS else "")
        if self.on_gpu:
            self._show_kernels(f"{case}: {name}", step)
        return seconds

    def _show_kernels(self, name: str, step: Callable[[], object]) -> None:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as found:
            self.seconds(step)
        kernels = [event for event in found.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
        whole = sum(event.self_device_time_total for event in kernels)
        print(f"\n{name}: {whole / 1000:.1f} ms of {sum(event.count for event in kernels)} kernels a step")
        for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:14]:
            print(f"    {event.self_device_time_total / whole:6.1%} {event.count:5}  {event.key[:100]}")
        print(flush=True)


WRITTEN, REPLAYED, COMPILED = "ours, kernel by kernel", "ours, replayed", "ours, compiled and replayed"
OURS = (WRITTEN, REPLAYED, COMPILED)


def unrecorded(trainer: Trainer) -> Trainer:
    trainer.replay = None
    return trainer


def in_amp(plain: PlainTrainer) -> None:
    with torch.autocast(plain.device.type, torch.bfloat16, enabled=plain.device.type == "cuda"):
        plain.train_step()


def in_tf32(plain: PlainTrainer) -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        plain.train_step()
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False  # as a Trainer sets it


def steps_against_the_reference(bench: Bench, case: str, config: Config, peak: float) -> None:
    """One form after another, for a recorded step keeps the memory of its activations."""
    build: dict[str, Callable[[], Callable[[], object]]] = {
        WRITTEN: lambda: unrecorded(bench.trainer(config))._train_step,
        REPLAYED: lambda: bench.trainer(config)._train_step,
        "plain reference, bf16 AMP": lambda: partial(in_amp, PlainTrainer(bench.trainer(config))),
        "plain reference, TF32": lambda: partial(in_tf32, PlainTrainer(bench.trainer(config))),
    }
    taken = {name: seconds for name, new in build.items() if (seconds := bench.step(case, config, name, new(), peak))}
    for ours in (name for name in taken if name in OURS):
        for other in (name for name in taken if name not in OURS):
            bench.row("training step", case, ours, other, f"{taken[other] / taken[ours]:.2f}x")


def compiling(bench: Bench, case: str, config: Config, peak: float) -> None:
    trainer = bench.trainer(config, "inductor" if bench.on_gpu else "eager")  # a CPU's code takes minutes
    bench.row("compiling both passes", case, COMPILED, f"{bench.seconds(trainer._train_step):.0f} s", "")
    bench.step(case, config, COMPILED, trainer._train_step, peak)


def side_by_side(bench: Bench, config: Config, workers: tuple[int, ...], seconds: float) -> None:
    """Processes that train one cell of `config` each on one card, without their evaluations."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(max(workers) + 1), context.Queue()
    plan = workers, seconds, config, str(bench.device), barrier, results
    processes = [context.Process(target=train_in_turns, args=(number, *plan)) for number in range(max(workers))]
    for process in processes:
        process.start()
    try:
        for number in workers:
            barrier.wait(120)
            steps = sum(results.get(timeout=60) for _ in range(number)) / seconds
            cells = f"{3600 * steps / config.optim.steps:.0f} cells an hour"
            bench.row("cells on one card", "embedded128, feat32", f"{number} at once", f"{steps:.0f} steps/s", cells)
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
    bench, is_rehearsal = Bench(device), device == "cpu"
    print("| what | case | ours | measured, or compared with | figure |\n| --- | --- | --- | --- | --- |")
    peak = bench.flops_per_second(64 if is_rehearsal else 8192)
    bench.row("bf16 matrix peak", "", "a large product", f"{peak / 1e12:.3g} TFLOP/s", "")
    if is_rehearsal:
        side_by_side(bench, override(CELL, TINY), (1, 2), 0.5)
    else:
        side_by_side(bench, CELL, (1, 2, 4, 8), 4.0)
    for case, config in cases(is_rehearsal).items():
        steps_against_the_reference(bench, case, config, peak)
    compiling(bench, *next(iter(cases(is_rehearsal).items())), peak)


if __name__ == "__main__":
    main(sys.argv[1])
