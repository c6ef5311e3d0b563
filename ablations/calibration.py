"""Seconds and memory of cells on this machine, by the journals of short runs, as many at once as there are workers.

They are started as a study starts its cells. All that they write is in a temporary folder, which is removed.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from ablations.display import duration
from ablations.machine import WorkerPool
from ablations.plan import Cell
from ablations.trainers import Trainers
from sagan import journal
from sagan.config import Config, digest, flatten, override
from sagan.failure import read_failure
from sagan.journal import Record
from sagan.run_folder import CONFIG, Run, config_yaml

STEPS, EVALUATED = 40, 20  # of a measured run, which is scored at both
_COLD_STEPS = 5  # the first, which load kernels and fill caches; on a GPU one of them is recorded as a CUDA graph
_MAX_SAMPLES = 2000  # scored in a measured run; the time for more is taken to grow with their number

# Fields that change numbers and not operations: configs that differ in these alone take equally long per step.
_SAME_SPEED_FIELDS = (
    *("optim.steps", "optim.ttur", "optim.lr_g", "optim.lr_d", "optim.lr_equal", "optim.ema_start", "optim.streams"),
    *("optim.beta1", "optim.beta2", "optim.adam_eps", "eval.every", "eval.endpoint", "data.h_flip", "model.init"),
    *("model.bn_momentum", "model.final_bn_momentum", "model.bn_eps", "model.attention.gamma", "model.sn.eps"),
)


@dataclass(frozen=True)
class Speed:
    """Seconds for the parts of a cell, and the peak memory of its training in MiB: resident, or of a GPU's tensors."""

    opening: float  # data, networks, and the reference of the metrics from a cache
    step: float
    evaluation: float
    ending: float  # the last evaluation, and the best of the run scored again
    memory_mib: float


@dataclass(frozen=True)
class Calibration:
    """Measured speeds. `start`: seconds that only the first cells take to begin, beyond those of each later cell."""

    start: float
    speeds: dict[str, Speed]  # by `kind`

    def cell_seconds(self, config: Config) -> float:
        speed, evaluations = self.speeds[kind(config)], (config.optim.steps - 1) // config.eval.every
        return speed.opening + config.optim.steps * speed.step + evaluations * speed.evaluation + speed.ending


def kind(config: Config) -> str:
    """A key that is equal for configs with the same time per step and per evaluation."""
    defaults = flatten(Config())
    return digest(override(config, {name: defaults[name] for name in _SAME_SPEED_FIELDS}))


def speed_of(config: Config, started: float, records: Sequence[Record]) -> Speed:
    """The speed of `config` from the journal of a measured run that began at `started` (seconds since 1970).

    Raises ValueError where the run did not reach its last step.
    """
    if records[-1].step < STEPS:
        raise ValueError(f"training {records[-1].status} at step {records[-1].step}; lower optim.lr_g and optim.lr_d")
    images = config.optim.batch_size * config.optim.d_steps
    pairs = list(itertools.pairwise(records))  # of the record before, from whose step this one's speed is measured
    step = mean(
        images / after.metrics["images_per_sec"]
        for before, after in pairs
        if before.step >= _COLD_STEPS and after.step not in (EVALUATED, STEPS)
    )
    scored, memory = [], 0.0
    for before, after in pairs:
        if after.step in (EVALUATED, STEPS):
            seconds = after.time - before.time - step * (after.step - before.step)
            scored.append(max(0.0, seconds) * max(1.0, config.eval.num_samples / _MAX_SAMPLES))
            memory = max(memory, after.metrics["peak_memory_mib"])
    # After so few steps no weights may be good enough to be scored again; in a cell they are.
    ending = scored[1] if "best/step" in records[-1].metrics else sum(scored)
    return Speed(records[0].time - started, step, scored[0], ending, memory)


def calibrate(
    cells: Sequence[Cell],
    pool: WorkerPool,
    console: Console,
    data_root: Path | None = None,
    inception_weights: Path | None = None,
    cache_dir: Path | None = None,
    trainer: Callable[..., Any] | None = None,
) -> Calibration:
    """Measures each kind of config among `cells`. `trainer` replaces sagan.training.Trainer.

    Prepared images and registered extractors are taken from `cache_dir`; statistics of real images are computed again.
    Raises ValueError where a run fails, with its message, and SystemExit (130) on Ctrl-C.
    """
    kinds = list({kind(cell.config): cell.config for cell in cells}.values())
    rounds = -(-len(kinds) // pool.workers)
    counted = "1 kind" if len(kinds) == 1 else f"{len(kinds)} kinds"
    console.out(f"Calibrating {counted} of cell on {pool}: about {duration(20 + 15 * rounds)}, longer at large scales.")
    # Kinds are repeated to fill the last round: all workers are busy to the end, as they will be in the study.
    measured = [kinds[number % len(kinds)] for number in range(rounds * pool.workers)]
    first = measured[: pool.workers]
    trainers = Trainers(pool.devices, 1, pool.threads, trainer)
    with tempfile.TemporaryDirectory(prefix="calibration-") as name:
        cache = Path(name, "cache")
        cache.mkdir()
        for kept in ("images", "extractors"):
            if cache_dir is not None and (cache_dir / kept).is_dir():
                (cache / kept).symlink_to(cache_dir / kept)

        def journals(configs: Sequence[Config], steps: int, every: int) -> list[tuple[float, list[Record]]]:
            """When a run of each config began, in seconds since 1970, and its journal."""
            began: dict[Path, float] = {}
            waiting = list(configs)
            while waiting or len(trainers):
                if waiting and len(trainers) < pool.workers:
                    samples = min(waiting[0].eval.num_samples, _MAX_SAMPLES)
                    changes = {"optim.steps": steps, "eval.every": every, "eval.num_samples": samples}
                    folder, device = Path(name, f"{steps}-{len(began)}"), trainers.next_device()
                    folder.mkdir()
                    machine = trainers.machine(device, data_root, inception_weights, cache)
                    (folder / CONFIG).write_bytes(config_yaml(Run(override(waiting.pop(0), changes), 0, machine)))
                    began[folder] = time.time()
                    trainers.start(folder, device, ())
                    continue
                for folder, status in trainers.ended().items():
                    if status == -9:
                        raise ValueError("a process was killed, most likely for lack of memory; give fewer --workers")
                    if status:
                        failure = read_failure(folder)
                        raise ValueError(failure.reason if failure else f"a process ended with status {status}")
                time.sleep(0.02)
            return [(start, journal.read(folder / journal.NAME)[0]) for folder, start in began.items()]

        try:
            cold = journals(first, 1, 1)  # to measure what only the first cells take
            found: dict[str, list[Speed]] = {}
            for config, (began, records) in zip(measured, journals(measured, STEPS, EVALUATED), strict=True):
                found.setdefault(kind(config), []).append(speed_of(config, began, records))
        except ValueError as error:
            raise ValueError(f"--calibrate: every kind of cell must train for some steps, but {error}") from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        finally:
            trainers.stop(0.0)
    speeds = {name: Speed(*map(mean, zip(*map(astuple, same), strict=True))) for name, same in found.items()}
    opened = mean(records[0].time - began for began, records in cold)
    return Calibration(max(0.0, opened - mean(speeds[kind(config)].opening for config in first)), speeds)
