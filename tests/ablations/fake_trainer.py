"""A fake Trainer: it counts steps and keeps the count in a checkpoint.

`optim.d_steps` chooses its fate: 7 raises, 9 collapses at half way. `fid` rises with the distance of `optim.lr_g` from
that of the embedded preset. Where FAKE_GATE is set, no step after FAKE_GATE_STEP (0 by default) is made before that
file exists.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sagan.checkpoint import load_checkpoint, save_checkpoint
from sagan.config import Config
from sagan.distributed import World
from sagan.presets import PRESETS


@dataclass(frozen=True)
class Event:
    step: int
    metrics: dict[str, float]
    images: dict[str, Any] = field(default_factory=dict)
    outcome: str | None = None

    @property
    def done(self) -> bool:
        return self.outcome is not None


class FakeTrainer:
    data_fingerprint = "data-v1"
    metric_fingerprint = "counting; 32 samples"
    classes = ("grain", "twins")
    groups = {"texture": (0,), "geometry": (1,)}
    device, world = "cpu", World()

    def __init__(self, config: Config, seed: int, directory: Path, **_places: Any) -> None:
        self.config, self.seed, self.directory = config, seed, directory
        self.step = int((load_checkpoint(directory) or {"step": 0})["step"])

    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        steps, fate = self.config.optim.steps, self.config.optim.d_steps
        with (self.directory / "sittings.txt").open("a") as file:
            file.write(f"{os.getpid()} from {self.step}\n")
        gate, gate_step = os.environ.get("FAKE_GATE"), int(os.environ.get("FAKE_GATE_STEP", "0"))
        try:
            if self.step == 0:
                yield Event(0, {})
            while self.step < steps:
                while gate and self.step >= gate_step and not Path(gate).exists():
                    if stop():
                        self._save()
                        return
                    time.sleep(0.05)
                time.sleep(0.03)
                self.step += 1
                if fate == 7:
                    raise RuntimeError("the fake trainer was told to fail")
                if fate == 9 and self.step > steps // 2:
                    yield Event(self.step, {}, outcome="collapsed")
                    return
                if self.step < steps:
                    yield Event(self.step, {"loss_g": 1.0 / self.step, "images_per_sec": 100.0})
                self._save()
                if stop():
                    return
            size = self.config.data.resolution
            samples = np.full((2, 3, size, size, 3), self.seed, dtype=np.uint8)
            maps = {
                "attention/g32/images": np.zeros((2, 8, 8, 3), np.uint8),
                "attention/g32/queries": np.zeros((1, 2), np.int64),
                "attention/g32/maps": np.full((2, 1, 2, 2), 0.25, np.float32),
            }
            (self.directory / "generator.safetensors").write_bytes(b"weights")
            fid = 100.0 + self.seed + abs(math.log(self.config.optim.lr_g / PRESETS["embedded"].optim.lr_g))
            yield Event(self.step, {"fid": fid, "kid": float("inf")}, {"samples": samples, **maps}, "finished")
        except OSError:  # what the caller could not tell is told again
            raise
        except BaseException:
            self._save()
            raise
        self._save()

    def _save(self) -> None:
        save_checkpoint(self.directory, {"step": self.step})
