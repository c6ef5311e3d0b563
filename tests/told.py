"""Attempts at cells with the files that a training process would write, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations.attempts import Attempt, begin_attempt
from ablations.plan import Cell
from sagan.checkpoint import write_atomically
from sagan.journal import Journal
from sagan.pictures import write_pictures
from sagan.run_folder import CONFIG, PROTOCOL

MACHINE = {"device": "cpu", "threads": 1, "data_root": None, "inception_weights": None, "cache_dir": "cache"}


def begin(runs: Path, cell: Cell, tags: Mapping[str, str] | None = None) -> Attempt:
    return begin_attempt(runs, cell, tags or {}, MACHINE)


def describe(
    attempt: Attempt,
    data: str = "data-v1",
    metrics: str = "counting; 32 samples",
    classes: Sequence[str] = ("grain", "twins"),
    groups: Mapping[str, Sequence[int]] | None = None,
    step: int = 0,
) -> None:
    """Writes protocol.json, as a run does once data set and networks are open."""
    about = {"data_fingerprint": data, "metric_fingerprint": metrics, "classes": classes, "groups": groups or {}}
    write_atomically(attempt.folder / PROTOCOL, json.dumps({**about, "step": step}).encode())
    tell(attempt, step, {}, [CONFIG, PROTOCOL])


def tell(
    attempt: Attempt,
    step: int,
    metrics: Mapping[str, float],
    files: Sequence[str] = (),
    status: str | None = None,
    images: Mapping[str, Any] | None = None,
) -> None:
    with Journal(attempt.journal) as journal:
        journal.append(step, metrics, [*files, *write_pictures(attempt.folder, step, images or {})], status)
