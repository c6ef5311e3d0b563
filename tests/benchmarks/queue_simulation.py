"""What the queue costs, without training: `python -m benchmarks.queue_simulation CELLS WORKERS SECONDS`, in tests/.

So many cells of so many seconds, claimed by so many processes from a PostgreSQL server of its own, each with
a sign of life, and with a launcher that looks on and takes cells back.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, quantiles

from postgres import postgres_server

from ablations.plan import Cell
from ablations.queue import CellQueue, LauncherProcess
from ablations.study import read_study

STUDY = Path(__file__).parents[2] / "studies" / "smoke.yaml"
_PROCESSES = multiprocessing.get_context("fork")  # so that they need not import everything again


@dataclass(frozen=True)
class Simulation:
    """All times in seconds. `claim`, `finish`: of each cell; `look`: of each time the launcher looked at all cells."""

    enqueueing: float
    wall: float
    claim: list[float]
    finish: list[float]
    look: list[float]
    runs: Counter[str]

    @property
    def duplicates(self) -> int:
        return sum(count - 1 for count in self.runs.values())


def simulate(url: str, num_cells: int, workers: int, seconds: float) -> Simulation:
    study = read_study(STUDY)
    model = study.cells()[0]
    cells = [dataclasses.replace(model, seed=seed) for seed in range(num_cells)]
    queue = CellQueue(url, study.name, cells)
    began = time.perf_counter()
    queue.enqueue(recorded=set())
    enqueueing = time.perf_counter() - began
    queue.close()  # connections do not survive a fork
    times: multiprocessing.Queue[tuple[str, float, float]] = _PROCESSES.Queue()
    arguments = (url, study.name, cells, seconds, times)
    processes = [_PROCESSES.Process(target=_claim_all, args=arguments, daemon=True) for _ in range(workers)]
    began = time.perf_counter()
    for process in processes:
        process.start()
    found: list[tuple[str, float, float]] = []
    look: list[float] = []
    wall, next_look = 0.0, 0.0
    while any(process.is_alive() for process in processes) or not times.empty():
        while not times.empty():
            found.append(times.get())
            wall = time.perf_counter() - began
        if time.perf_counter() >= next_look:
            looked = time.perf_counter()
            queue.release_stale()
            queue.states()
            look.append(time.perf_counter() - looked)
            next_look = time.perf_counter() + max(1.0, 10 * look[-1])
        time.sleep(0.01)
    queue.close()
    claim, finish = ([row[place] for row in found] for place in (1, 2))
    return Simulation(enqueueing, wall, claim, finish, look, Counter(row[0] for row in found))


def _claim_all(
    url: str, study: str, cells: list[Cell], seconds: float, times: multiprocessing.Queue[tuple[str, float, float]]
) -> None:
    queue = CellQueue(url, study, cells)
    me = LauncherProcess.here()
    while True:
        asked = time.perf_counter()
        claim = queue.claim(me)
        got = time.perf_counter() - asked
        if claim is None:
            break
        queue.beat({claim: {}})
        time.sleep(seconds)
        trained = time.perf_counter()
        queue.complete(claim, "finished")
        times.put((claim.cell.name, got, time.perf_counter() - trained))
    queue.close()


def main(num_cells: int, workers: int, seconds: float) -> Simulation:
    with postgres_server(connections=3 * workers + 20) as server:
        return simulate(server.url("queue"), num_cells, workers, seconds)


def describe(found: Simulation, num_cells: int, workers: int, seconds: float) -> str:
    ideal = num_cells * seconds / workers
    lines = {
        "cells run, of them twice": f"{len(found.runs)}, {found.duplicates}",
        "put in the queue": f"{found.enqueueing:.1f} s, {1000 * found.enqueueing / num_cells:.1f} ms a cell",
        "all run": f"{found.wall:.1f} s, {ideal:.1f} s of them in cells; {num_cells / found.wall:.1f} claims a second",
        "claim": f"median {1000 * median(found.claim):.0f} ms, 95 % {1000 * quantiles(found.claim, n=20)[-1]:.0f} ms",
        "finish": f"median {1000 * median(found.finish):.0f} ms",
        "a launcher's look at all": f"mean {1000 * mean(found.look):.0f} ms, longest {1000 * max(found.look):.0f} ms",
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


if __name__ == "__main__":
    size = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    print(describe(main(*size), *size))
