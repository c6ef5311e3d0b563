"""What cells take on this machine, from seconds of the real thing on as many processes as there will be workers.

`calibrate` starts the processes, `python -m ablations.calibration ASSIGNMENT.json` is one of them. All that they write
is in a temporary folder, which is removed.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ablations.display import duration
from ablations.machine import Team
from ablations.plan import Cell
from sagan.config import Config, digest, flatten, override

if TYPE_CHECKING:
    from ablations.trainers import Interrupt
    from sagan.training import Trainer

STEP_SECONDS = 5.0  # of steps that are timed in one measurement
_MAX_STEPS = 99  # the most at which a trainer tells of every single step
_COLD_STEPS = 5  # the first, which load kernels and fill caches; on a GPU one of them is recorded
_MAX_SAMPLES = 2000  # scored in one measurement; the time for more is taken to grow with their number
_MEASURED = "member*/measured*.json"

# Fields that change numbers and not operations: configs that differ in these alone take equally long a step.
_FREE = (
    *("optim.steps", "optim.ttur", "optim.lr_g", "optim.lr_d", "optim.lr_equal", "optim.ema_start"),
    *("optim.beta1", "optim.beta2", "optim.adam_eps", "eval.every", "data.h_flip", "model.init"),
    *("model.bn_momentum", "model.final_bn_momentum", "model.bn_eps", "model.attention.gamma", "model.sn.eps"),
)


@dataclass(frozen=True)
class Speed:
    """Seconds for the parts of a cell, and peaks of its process: MiB resident, MiB of tensors on a GPU."""

    opening: float  # data, networks, and the reference of the metrics from a cache
    step: float
    evaluation: float
    ending: float  # all that follows the last step: scoring, saving
    memory_mib: float
    gpu_mib: float

    def seconds(self, config: Config) -> float:
        """Of a cell of `config`, from its claim to its end."""
        steps = config.optim.steps
        on_the_way = (steps - 1) // config.eval.every
        return self.opening + steps * self.step + on_the_way * self.evaluation + self.ending


@dataclass(frozen=True)
class Calibration:
    """`start`: seconds before the first cells open, with making the stores and the reference of the metrics."""

    start: float
    speeds: dict[str, Speed]  # by `kind`

    def cell_seconds(self, config: Config) -> float:
        return self.speeds[kind(config)].seconds(config)

    def seconds(self, configs: Iterable[Config], workers: int) -> float:
        """From the command to the end of the last cell."""
        return self.start + makespan(map(self.cell_seconds, configs), workers)

    @property
    def memory_mib(self) -> float:
        return max(speed.memory_mib for speed in self.speeds.values())

    @property
    def gpu_mib(self) -> float:
        return max(speed.gpu_mib for speed in self.speeds.values())


def makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last task ends, if each in turn goes to the worker that is free first: as the queue is worked off."""
    free_at = [0.0] * workers
    for task in seconds:
        heapq.heapreplace(free_at, free_at[0] + task)
    return max(free_at)


def kind(config: Config) -> str:
    """Equal for configs that differ in the number of steps and evaluations, or in no time at all."""
    defaults = flatten(Config())
    return digest(override(config, {name: defaults[name] for name in _FREE}))


def calibrate(
    cells: Sequence[Cell],
    team: Team,
    console: Console,
    data_root: Path | None = None,
    inception_weights: Path | None = None,
    kept: Path | None = None,
    program: Sequence[str] = (sys.executable, "-m", "ablations.calibration"),
) -> Calibration:
    """Measures each kind of config among `cells`; `program` is the command of a process that does.

    `kept` is a cache with prepared images and registered extractors: they are made once, and are no part of what a
    study takes.

    Raises ValueError where a measurement fails, with what it said, and SystemExit (130, 143) when told to stop.
    """
    from ablations.tracking import Store
    from ablations.trainers import Interrupt

    kinds = list({kind(cell.config): flatten(cell.config) for cell in cells}.values())
    rounds = math.ceil(len(kinds) / team.workers)
    counted = "1 kind" if len(kinds) == 1 else f"{len(kinds)} kinds"
    said = f"Calibrating {counted} of cell on {team}: about {duration(20 + 15 * rounds)}, longer at large scales."
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="calibration-") as name, Interrupt() as interrupt:
        folder = Path(name)
        (folder / "cache").mkdir()
        for made_once in ("images", "extractors"):
            if kept is not None and (kept / made_once).is_dir():
                (folder / "cache" / made_once).symlink_to(kept / made_once)
        uri = f"sqlite:///{folder}/mlflow.db"
        shared = {
            "threads": team.threads,
            "tracking_uri": uri,
            "cache": folder / "cache",
            "data_root": data_root,
            "inception_weights": inception_weights,
            "parent": os.getpid(),
        }
        started = time.perf_counter()
        Store(uri)  # as the launcher does before it starts workers
        opening = time.perf_counter() - started
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for member in range(team.workers):
                # Where kinds run out they come again: all are busy to the end, as they will be in the study.
                turns = [kinds[(turn * team.workers + member) % len(kinds)] for turn in range(rounds)]
                assignment = {**shared, "configs": turns, "device": team.place(member), "started": time.time()}
                processes.append(_start(program, folder / f"member{member}", assignment))
            _wait(processes, folder, rounds * team.workers, interrupt, console)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return _gathered(folder, opening)


def _start(program: Sequence[str], folder: Path, assignment: dict[str, Any]) -> subprocess.Popen[bytes]:
    folder.mkdir()
    file = folder / "assignment.json"
    file.write_text(json.dumps(assignment, default=str))
    threads = str(assignment["threads"])
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    with (folder / "log").open("wb") as log:
        # A session of its own, so that Ctrl-C reaches the parent alone.
        return subprocess.Popen(
            [*program, str(file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def _wait(
    processes: Sequence[subprocess.Popen[bytes]], folder: Path, expected: int, interrupt: Interrupt, console: Console
) -> None:
    """Until all processes have ended well."""
    with console.status("") as status:
        while any([process.poll() is None for process in processes]):
            status.update(f"{len(list(folder.glob(_MEASURED)))} of {expected} measurements")
            if interrupt.status:
                raise SystemExit(interrupt.status)
            if any(process.returncode for process in processes):
                break
            time.sleep(0.2)
    for member, process in enumerate(processes):
        if process.returncode == -signal.SIGKILL:
            raise ValueError("--calibrate: a process was killed, most likely for want of memory; give fewer --workers")
        if process.returncode:
            log = (folder / f"member{member}" / "log").read_text(errors="replace").strip()
            reason = log.splitlines()[-1] if log else f"status {process.returncode}"
            raise ValueError(f"--calibrate: every kind of cell must train for some steps, but one ended with: {reason}")


def _gathered(folder: Path, opening: float) -> Calibration:
    """The means of what all processes measured."""
    found = [json.loads(file.read_text()) for file in sorted(folder.glob(_MEASURED))]
    speeds: dict[str, list[Speed]] = defaultdict(list)
    for measured in found:
        speeds[measured["kind"]].append(Speed(**measured["speed"]))
    start = opening + mean(measured["start"] for measured in found if "start" in measured)
    means = {name: Speed(*map(mean, zip(*map(astuple, same), strict=True))) for name, same in speeds.items()}
    return Calibration(start, means)


@dataclass(frozen=True)
class Times:
    """When a run was started, when its step k ended (`at[k]`; 0: it opened), when all had ended; and its peaks."""

    started: float
    at: list[float]
    ended: float
    memory_mib: float
    gpu_mib: float

    @property
    def opening(self) -> float:
        return self.at[0] - self.started


def measure(
    config: Config, open_trainer: Callable[[Config], Trainer], clock: Callable[[], float] = time.perf_counter
) -> tuple[Speed, float]:
    """The speed of `config`, and the seconds of its first opening, when nothing was in a cache.

    Two runs: one from end to end with two evaluations and hardly a step, and one of some seconds of steps. These are
    not compiled, as those of long runs on a GPU are, which then take less time than is foreseen.
    """
    samples = min(config.eval.num_samples, _MAX_SAMPLES)
    scored = override(config, {"eval.num_samples": samples})
    short = _timed(override(scored, {"optim.steps": 4, "eval.every": 2}), open_trainer, clock)
    long = _timed(override(scored, {"optim.steps": _MAX_STEPS, "eval.every": _MAX_STEPS}), open_trainer, clock)
    warm = long.at[_COLD_STEPS:]
    step = (warm[-1] - warm[0]) / (len(warm) - 1)
    more = config.eval.num_samples / samples
    speed = Speed(
        opening=long.opening,
        step=step,
        evaluation=max(0.0, short.at[2] - short.at[1] - step) * more,
        ending=max(0.0, short.ended - short.at[3] - step) * more,
        memory_mib=max(short.memory_mib, long.memory_mib),
        gpu_mib=max(short.gpu_mib, long.gpu_mib),
    )
    return speed, short.opening


def _timed(config: Config, open_trainer: Callable[[Config], Trainer], clock: Callable[[], float]) -> Times:
    """Runs to the end, or until steps have been timed for long enough."""
    import torch

    from sagan.diagnostics import peak_memory_mib

    started, at = clock(), list[float]()
    trainer = open_trainer(config)
    cpu, device = torch.device("cpu"), torch.device(trainer.device)
    peak = peak_memory_mib(cpu)  # of the opening: training starts to count anew
    events = trainer.run()
    for event in events:
        if event.outcome == "diverged":
            raise ValueError(f"training diverged at step {event.step}; lower optim.lr_g and optim.lr_d")
        assert event.step == len(at), "a trainer of so few steps tells of each"
        at.append(clock())
        seconds = at[-1] - at[_COLD_STEPS] if len(at) > _COLD_STEPS + 1 else 0.0
        if not event.images and (seconds > STEP_SECONDS or event.step == _MAX_STEPS - 1):
            break
    events.close()
    gpu = peak_memory_mib(device) if device.type == "cuda" else 0.0
    return Times(started, at, clock(), max(peak, peak_memory_mib(cpu)), gpu)


def main(arguments: Sequence[str]) -> int:
    """What a worker does, but for the queue: measures the assigned configs in turn."""
    file = Path(arguments[0])
    assignment = json.loads(file.read_text())
    import torch

    from ablations.tracking import open_client
    from sagan.training import Trainer

    torch.set_num_threads(assignment["threads"])
    client = open_client(assignment["tracking_uri"])
    client.search_experiments(max_results=1)
    imported = time.time() - assignment["started"]
    data_root, weights = (
        Path(assignment[name]) if assignment[name] else None for name in ("data_root", "inception_weights")
    )

    def open_trainer(config: Config) -> Trainer:
        if os.getppid() != assignment["parent"]:
            sys.exit(143)  # nobody waits for the figures
        return Trainer(
            config,
            0,
            Path(tempfile.mkdtemp(dir=file.parent)),
            device=assignment["device"],
            data_root=data_root,
            cache_dir=Path(assignment["cache"]),
            inception_weights=weights,
        )

    for turn, values in enumerate(assignment["configs"]):
        config = override(Config(), values)
        speed, first_opening = measure(config, open_trainer)
        measured = {"kind": kind(config), "speed": asdict(speed)}
        if turn == 0:
            measured["start"] = imported + first_opening - speed.opening
        partial = file.with_name("partial")
        partial.write_text(json.dumps(measured))
        partial.rename(file.with_name(f"measured{turn}.json"))  # whole, or not there
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
