"""How many workers, on which devices: machines of all sizes, none of which is here."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

from ablations import machine, trainers
from ablations.machine import choose_worker_pool, find_devices, worker_memory_mib
from ablations.trainers import Process, Trainers
from sagan.config import override
from sagan.presets import PRESETS

EMBEDDED = PRESETS["embedded"]
MIB = {"much": 1e6, "little": 3000.0, "none": 0.0}


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Sixteen cores, two GPUs, a terabyte."""
    monkeypatch.setattr(machine, "usable_cores", lambda: 16)
    monkeypatch.setattr(machine, "free_memory_mib", lambda: MIB["much"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("asked", "device", "cells", "workers", "threads", "places"),
    [
        (None, "cpu", 60, 16, 1, ("cpu",)),
        (None, "cpu", 4, 4, 4, ("cpu",)),
        (3, "cpu", 60, 3, 5, ("cpu",)),
        (32, "cpu", 60, 32, 1, ("cpu",)),
        (None, "cuda", 60, 2, 8, ("cuda:0", "cuda:1")),
        (None, "cuda:1", 60, 1, 16, ("cuda:1",)),
        (4, "cuda:0", 60, 4, 4, ("cuda:0",)),
    ],
)
def test_workers_take_all_cores_and_the_devices_that_were_named(
    box: pytest.MonkeyPatch,
    asked: int | None,
    device: str,
    cells: int,
    workers: int,
    threads: int,
    places: tuple[str, ...],
) -> None:
    team = choose_worker_pool(asked, [EMBEDDED] * cells, find_devices(device))
    assert (team.workers, team.threads, team.devices, team.note) == (workers, threads, places, None)


def test_a_worker_takes_no_more_threads_than_the_user_allows_and_as_many_as_are_asked_for(
    box: pytest.MonkeyPatch,
) -> None:
    for variable, asked, threads in (("2", None, 2), ("9", None, 8), ("2", 5, 5), ("2", 20, 20)):
        box.setenv("OMP_NUM_THREADS", variable)
        assert choose_worker_pool(2, [EMBEDDED] * 60, ("cpu",), threads=asked).threads == threads


def test_a_gpu_that_is_not_there_is_refused(box: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="must be one of cuda:0 to cuda:1 on this machine, got 'cuda:2'"):
        find_devices("cuda:2")


def test_auto_takes_no_more_workers_than_memory_holds_and_says_so(box: pytest.MonkeyPatch) -> None:
    need = worker_memory_mib([EMBEDDED], on_cpu=True)
    box.setattr(machine, "free_memory_mib", lambda: 5.5 * need)
    team = choose_worker_pool(None, [EMBEDDED] * 60, ("cpu",))
    assert (team.workers, team.threads) == (5, 3)
    assert team.note is not None and "auto takes 5, not 16" in team.note
    box.setattr(machine, "free_memory_mib", lambda: MIB["none"])
    assert choose_worker_pool(None, [EMBEDDED] * 60, ("cpu",)).workers == 1
    assert choose_worker_pool(7, [EMBEDDED] * 60, ("cpu",)).workers == 7, "who asks for seven gets seven"


def test_the_cell_that_needs_most_decides_how_many_fit(box: pytest.MonkeyPatch) -> None:
    large = override(EMBEDDED, {"optim.batch_size": 1024})
    both = [EMBEDDED, large]
    assert worker_memory_mib(both, on_cpu=True) == worker_memory_mib([large], on_cpu=True)
    assert worker_memory_mib([large], on_cpu=True) > worker_memory_mib([EMBEDDED], on_cpu=True) + 500


def test_training_processes_share_the_devices_evenly_also_after_one_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[Path, int] = {}

    def start_idle(folder: Path, _known: object, _trainer: object, threads: int) -> Process:
        started[folder] = threads
        return subprocess.Popen(["sleep", "600"])

    monkeypatch.setattr(trainers, "start_process", start_idle)
    team = Trainers(("cuda:0", "cuda:1"), processes=1, threads=4)
    places: dict[Path, str] = {}

    def start(name: str) -> None:
        places[tmp_path / name] = team.next_device()
        team.start(tmp_path / name, places[tmp_path / name], ())

    try:
        for name in "abcd":
            start(name)
        assert Counter(places.values()) == {"cuda:0": 2, "cuda:1": 2}
        assert set(started.values()) == {4}
        dying, _ = team._running[tmp_path / "b"]
        dying.kill()
        dying.wait(5)
        assert team.ended() == {tmp_path / "b": -signal.SIGKILL} and team.ended() == {}
        start("e")
        assert (len(team), places[tmp_path / "e"]) == (4, "cuda:1")
    finally:
        team.stop(5)
    assert set(team.ended().values()) == {-signal.SIGTERM}
