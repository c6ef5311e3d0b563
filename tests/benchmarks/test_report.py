"""How long a report takes to read a large store. The store is filled by SQL: MLflow's client would take minutes."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from statistics import median

from benchmarks.results import Results

from reports.loading import load_results
from reports.store import Store

RUNS, METRICS, STEPS = 200, 20, 100
SEEDS = 5


def fill(folder: Path) -> str:
    """One study of RUNS finished cells; returns its URI."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{folder}/mlflow.db"
    experiment = MlflowClient(uri).create_experiment("large", artifact_location=(folder / "mlruns").as_uri())
    run = ("insert into runs (run_uuid, name, status, start_time, end_time, lifecycle_stage, artifact_uri, "
           "experiment_id) values (?, ?, 'FINISHED', ?, ?, 'active', '', ?)")  # fmt: skip
    point = "insert into metrics (key, value, timestamp, run_uuid, step, is_nan) values (?, ?, ?, ?, ?, 0)"
    with sqlite3.connect(folder / "mlflow.db") as connection:
        for place in range(RUNS):
            name = f"{place:032x}"
            connection.execute(run, (name, name, place, place + 1, experiment))
            tags = {"kind": "cell", "study": "large", "variant": f"v{place // SEEDS}", "seed": str(place % SEEDS),
                    "outcome": "finished", "protocol": "embedded", "preset": "embedded",
                    "classes": json.dumps(["rings"]), "metric_fingerprint": "embedded-v1@1a2b"}  # fmt: skip
            rows = [(key, value, name) for key, value in tags.items()]
            connection.executemany("insert into tags (key, value, run_uuid) values (?, ?, ?)", rows)
            keys = ["fid", *(f"metric{number}" for number in range(1, METRICS))]
            points = ((key, step * 0.5, step, name, step) for key in keys for step in range(STEPS))
            connection.executemany(point, points)
    return uri


def test_reading_a_large_store(results: Results, tmp_path: Path) -> None:
    uri = fill(tmp_path)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        (loaded,) = load_results(Store(uri))
        seconds.append(time.perf_counter() - started)
        assert len(loaded.histories) == RUNS * METRICS * STEPS
        assert all(len(values) == SEEDS for values in loaded.finished("fid").values())
    took = median(seconds)
    results.add(
        "report",
        f"reading {RUNS} runs of {METRICS} metrics and {STEPS} steps",
        f"{took:.1f} s",
        "",
        f"{took:.1f} s",
        "< 10 s",
        took < 10,
    )
