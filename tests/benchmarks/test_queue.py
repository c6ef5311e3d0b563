"""Cells claimed from a queue on PostgreSQL. At full size: queue_simulation.py."""

from __future__ import annotations

from statistics import median

from benchmarks.queue_simulation import main
from benchmarks.results import Results

CELLS, WORKERS, SECONDS = 500, 8, 1.0


def test_the_queue_alone(results: Results) -> None:
    found = main(CELLS, WORKERS, SECONDS)
    case = f"{CELLS} cells of {SECONDS:.0f} s, {WORKERS} workers, PostgreSQL"
    overhead = median(found.claim) + median(found.finish)
    results.add(
        "queue",
        case,
        f"claim {1000 * median(found.claim):.0f} ms, end {1000 * median(found.finish):.0f} ms",
        f"{CELLS / found.wall:.1f} cells a second, {WORKERS / SECONDS:.0f} at most",
        f"{1000 * overhead:.0f} ms a cell",
        "",
        None,
    )
    runs = f"{len(found.runs)} of {CELLS} run"
    results.add("queue, cells run twice", case, runs, "", str(found.duplicates), "0", found.duplicates == 0)
