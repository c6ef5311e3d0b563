"""A trainer that notes where the time of a cell goes."""

import json
import os
import time
from collections.abc import Callable, Generator
from typing import Any

from benchmarks.measure import Clock

from sagan.training import Event, Trainer

PARTS = {"steps": ["_train_step"], "evaluation": ["_report"], "saving": ["_save"]}


class TimedTrainer(Trainer):
    """Leaves seconds.json in the cell's folder: of opening the data, steps, evaluations, saving, and of the caller."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.clock, self.events, self.began = Clock(), 0, time.time()
        self.clock.timed("opening", super().__init__)(*args, **options)
        for part, names in PARTS.items():
            for name in names:
                setattr(self, name, self.clock.timed(part, getattr(self, name)))

    def run(self, stop: Callable[[], bool] = lambda: False) -> Generator[Event]:
        for event in super().run(stop):
            self.events += 1
            handed_over = time.perf_counter()
            yield event
            self.clock.seconds["caller"] += time.perf_counter() - handed_over
        when = {"began": self.began, "ended": time.time()}
        found = {"process": os.getpid(), "events": self.events, **when, **self.clock.seconds}
        (self.directory / "seconds.json").write_text(json.dumps(found))
