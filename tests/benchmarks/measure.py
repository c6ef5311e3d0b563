"""How the benchmarks measure: functions in turn and their medians, clocks, trainers that score nothing, threads."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

from sagan import training
from sagan.config import Config
from sagan.data import ImageDataset
from sagan.limits import usable_cores
from sagan.training import Trainer


def medians_in_turn(*functions: Callable[[], object], rounds: int) -> list[float]:
    """Median seconds of each function over `rounds` in which all take their turn; a first round does not count.

    What slows the machine for a while then slows all of them.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, taken in zip(functions, seconds, strict=True):
            started = time.perf_counter()
            function()
            taken.append(time.perf_counter() - started)
    return [median(taken[1:]) for taken in seconds]


class Clock:
    """Adds up the seconds spent in functions that it wraps. On a CPU an operation is done when its call returns."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - started

        return wrapper


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_counts() -> list[int]:
    """1, 2 and 4, as far as this machine has cores."""
    return [count for count in (1, 2, 4) if count <= usable_cores()]


def bare_trainer(config: Config, directory: Path, dataset: ImageDataset | None = None, **options: Any) -> Trainer:
    """A Trainer for taking steps, on forty random images of three classes unless others are given: it cannot score."""
    dataset = dataset or random_images(40, config.data.resolution)
    no_scores = mock.patch.object(training, "Evaluator", _NoEvaluator)
    with no_scores, mock.patch.object(training, "open_dataset", lambda *_: dataset):
        return Trainer(config, 0, directory, **options)


class _NoEvaluator:
    fingerprint = ""

    def __init__(self, *_: object, **__: object) -> None:
        pass


def random_images(n: int, resolution: int) -> ImageDataset:
    shape = (n, 3, resolution, resolution)
    images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageDataset("random", images, torch.arange(n) % 3, ("a", "b", "c"), {}, "")
