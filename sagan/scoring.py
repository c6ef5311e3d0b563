"""Scores of a run's averaged generator at one step: the metrics, the best evaluation so far, and signs of collapse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sagan.best import BestOfRun
from sagan.config import Config
from sagan.data import ImageDataset
from sagan.distributed import World
from sagan.metrics.diversity import COLLAPSED
from sagan.metrics.evaluation import Evaluator
from sagan.networks import Generator
from sagan.sampling import Sampler, diversity

# Samples have collapsed when they vary less than this share of the real images' variation, or when at least this
# share of the classes has collapsed within; a run has when its samples have after they once varied twice as much (or
# at the last step): a stated rule, far under what a poor but living run shows.
_COLLAPSED_DIVERSITY = 0.1
_COLLAPSED_CLASSES = 0.5
DIVERSITY_SAMPLES = 1000  # they tell it, and fifty thousand would fill the memory


class Stopped(Exception):
    """The caller wants to leave."""


class Scorer:
    """Draws and scores the same samples at each step, each process its part, and remembers the best weights.

    `stop` is asked between the batches, the first process's only; where it says so, Stopped is raised everywhere and
    nothing is remembered of the scoring.
    """

    def __init__(
        self,
        config: Config,
        dataset: ImageDataset,
        seed: int,
        *,
        device: torch.device,
        world: World,
        cache_dir: Path,
        inception_weights: Path | None,
    ) -> None:
        self.evaluator = Evaluator(
            dataset,
            config.eval,
            device=device,
            cache_dir=cache_dir,
            inception_weights=inception_weights,
            weights="ema" if config.optim.ema_decay else "raw",
        )
        self.sampler = Sampler(config, len(dataset.classes), seed, device, world)
        self.real_diversity = real_diversity(dataset)
        self.highest_diversity = self.highest_class_diversity = 0.0
        self.best = BestOfRun()
        self.stop: Callable[[], bool] = lambda: False
        self._world = world

    def score(self, step: int, average: Generator) -> dict[str, float]:
        """All metrics and `sample_diversity`, as a share of the real images'; `average` is left as it was scored.

        Weights whose samples have collapsed are never the best: repeated real pictures have a low FD.
        """
        self.sampler.prepare(average)
        first: list[Tensor] = []
        batches = noted(self.sampler.images(average), first, self.sampler.batches_within(DIVERSITY_SAMPLES))
        metrics = self._metrics(batches, self.sampler.labels, self.sampler.part)
        shown = [batch for share in self._world.gather(first) for batch in share]
        varied = diversity(torch.cat(shown)) / self.real_diversity if shown else 0.0
        metrics = {**metrics, "sample_diversity": self._world.broadcast(varied)}
        if not _vary_too_little(metrics) and not _repeat_themselves(metrics):
            self.best.offer(step, metrics["fid"], average)
        return metrics

    def best_of_run(self, generator: Generator) -> dict[str, float]:
        """As BestOfRun.score; the best weights are loaded into `generator`."""
        return self.best.score(generator, self.sampler, self._metrics)

    def has_collapsed(self, metrics: dict[str, float], is_last: bool) -> bool:
        """Whether the samples of these metrics have collapsed, overall or within their classes, and once had not."""
        self.highest_diversity = max(self.highest_diversity, metrics["sample_diversity"])
        self.highest_class_diversity = max(self.highest_class_diversity, metrics.get("class_diversity", 0.0))
        varied = self.highest_diversity > 2 * _COLLAPSED_DIVERSITY or is_last
        varied_within = self.highest_class_diversity > 2 * COLLAPSED or is_last
        return (varied and _vary_too_little(metrics)) or (varied_within and _repeat_themselves(metrics))

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best.state_dict(),
            "highest_diversity": self.highest_diversity,
            "highest_class_diversity": self.highest_class_diversity,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best.load_state_dict(state["best"])
        self.highest_diversity = state["highest_diversity"]
        self.highest_class_diversity = state.get("highest_class_diversity", 0.0)  # earlier versions had none

    def _metrics(self, images: Iterable[Tensor], labels: Tensor, part: slice) -> dict[str, float]:
        return self.evaluator(self._until_stopped(images), labels, part)

    def _until_stopped(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for number, batch in enumerate(batches):
            # All have to answer, and some have a batch more than others.
            if number < self.sampler.fewest_batches and self._world.broadcast(self.stop()):
                raise Stopped
            yield batch


def real_diversity(dataset: ImageDataset) -> float:
    """`diversity` of a thousand real images or fewer, from all over the set, which may be sorted by class."""
    spread = torch.linspace(0, len(dataset.labels) - 1, min(len(dataset.labels), 1000)).long()
    return diversity(dataset.images[spread])


def _vary_too_little(metrics: dict[str, float]) -> bool:
    return metrics["sample_diversity"] < _COLLAPSED_DIVERSITY


def _repeat_themselves(metrics: dict[str, float]) -> bool:
    """Not told where no class has two pictures."""
    return metrics.get("collapsed_classes", 0.0) >= _COLLAPSED_CLASSES


def noted(batches: Iterable[Tensor], first: list[Tensor], count: int) -> Iterator[Tensor]:
    """`batches`, of which `count` are put into `first` as they pass."""
    for number, batch in enumerate(batches):
        if number < count:
            first.append(batch.cpu())
        yield batch
