"""Scores of a run's averaged generator at one step: the metrics, the best evaluation so far, and signs of collapse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from sagan.data import ImageDataset
from sagan.metrics.diversity import COLLAPSED
from sagan.metrics.evaluation import Evaluator
from sagan.networks import Generator
from sagan.sampling import Sampler, diversity

# Samples have collapsed when their diversity is below this share of the real images', or when at least this share of
# the classes has collapsed. A run has collapsed when its samples have and those of an earlier evaluation had not (or at
# the last step): a generator that has not yet learnt to vary is no collapse. The limits are a convention, far below
# what a poor run without collapse shows.
_COLLAPSED_DIVERSITY = 0.1
_COLLAPSED_CLASSES = 0.5
DIVERSITY_SAMPLES = 1000  # enough to estimate it; fifty thousand would fill the memory


_BEST_SCORES = ("fid", "is", "intra_fid")


class Stopped(Exception):
    """The caller asked to stop."""


class BestOfRun:
    """Weights and buffers of the averaged generator at the evaluation of lowest `fid`."""

    def __init__(self) -> None:
        self.step = 0
        self.fid = math.inf
        self.weights: dict[str, Tensor] = {}

    def offer(self, step: int, fid: float, generator: Generator) -> None:
        """Keep a copy of `generator` if its `fid` is the lowest so far."""
        if fid < self.fid:
            self.step, self.fid = step, fid
            self.weights = {name: tensor.clone() for name, tensor in generator.state_dict().items()}


class Scorer:
    """Generates and scores the same samples at each step, each process its shard, and keeps the best weights.

    `stop` of the first process is called between batches. When it returns True, Stopped is raised in all processes and
    this evaluation leaves no trace.
    """

    def __init__(self, evaluator: Evaluator, sampler: Sampler, dataset: ImageDataset) -> None:
        self.evaluator, self.sampler, self._world = evaluator, sampler, sampler.world
        self.real_diversity = real_diversity(dataset)
        self.has_varied = self.has_varied_within = False
        self.best = BestOfRun()
        self.stop: Callable[[], bool] = lambda: False

    def score(self, step: int, average: Generator) -> dict[str, float]:
        """All metrics and `sample_diversity`, as a share of the real images'; `average` is left as it was scored.

        Weights whose samples have collapsed are never the best: repeated real pictures have a low FD.
        """
        self.sampler.prepare(average)
        first: list[Tensor] = []
        batches = with_copies(self.sampler.images(average), first, self.sampler.batches_within(DIVERSITY_SAMPLES))
        metrics = self._metrics(batches)
        gathered = [batch for batches in self._world.gather(first) for batch in batches]
        value = diversity(torch.cat(gathered)) / self.real_diversity if gathered else 0.0
        metrics = {**metrics, "sample_diversity": self._world.broadcast(value)}
        if metrics["sample_diversity"] >= _COLLAPSED_DIVERSITY and not _classes_have_collapsed(metrics):
            self.best.offer(step, metrics["fid"], average)
        return metrics

    def best_of_run(self, generator: Generator) -> dict[str, float]:
        """`best/step` and the scores of the best weights, which are loaded into `generator`; {} if there are none.
        New samples, because the lowest of many scores is partly chance: on the samples that chose it, it is too low."""
        if not self.best.weights:
            return {}
        generator.load_state_dict(self.best.weights)
        scores = self._metrics(self.sampler.images(generator.eval(), "best"))
        best = {f"best/{name}": scores[name] for name in _BEST_SCORES if name in scores}
        return {"best/step": float(self.best.step)} | best

    def has_collapsed(self, metrics: dict[str, float], is_last: bool) -> bool:
        """Whether samples with these metrics have collapsed, overall or within classes: earlier ones had not, or
        this is the last evaluation."""
        has_collapsed = metrics["sample_diversity"] < _COLLAPSED_DIVERSITY and (self.has_varied or is_last)
        has_collapsed |= _classes_have_collapsed(metrics) and (self.has_varied_within or is_last)
        # Twice the limit: a value that fluctuates around the limit does not count as varied.
        self.has_varied |= metrics["sample_diversity"] > 2 * _COLLAPSED_DIVERSITY
        self.has_varied_within |= not _classes_have_collapsed(metrics, 2 * COLLAPSED)
        return has_collapsed

    def state_dict(self) -> dict[str, Any]:
        varied = {"has_varied": self.has_varied, "has_varied_within": self.has_varied_within}
        return {"best": dict(vars(self.best)), **varied}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self.best).update(state["best"])
        self.has_varied, self.has_varied_within = state["has_varied"], state["has_varied_within"]

    def _metrics(self, batches: Iterable[Tensor]) -> dict[str, float]:
        def until_stopped() -> Iterator[Tensor]:
            for number, batch in enumerate(batches):
                # All processes must take part in the broadcast, and some have one batch more than others.
                if number < self.sampler.fewest_batches and self._world.broadcast(self.stop()):
                    raise Stopped
                yield batch

        return self.evaluator(until_stopped(), self.sampler.labels, self.sampler.shard)


def real_diversity(dataset: ImageDataset) -> float:
    """`diversity` of at most a thousand real images, evenly spaced over the data set, which may be sorted by class."""
    spread = torch.linspace(0, len(dataset.labels) - 1, min(len(dataset.labels), DIVERSITY_SAMPLES)).long()
    return diversity(dataset.images[spread])


def _classes_have_collapsed(metrics: dict[str, float], limit: float = COLLAPSED) -> bool:
    """Whether at least half of the classes vary less than `limit`; False where no class has two samples."""
    of_class = [value for name, value in metrics.items() if name.startswith("class_diversity/")]
    of_class = of_class or [metrics.get("class_diversity", math.inf)]  # only the mean of many classes is reported
    share = sum(value < limit for value in of_class) / len(of_class)
    return max(share, metrics.get("collapsed_classes", 0.0)) >= _COLLAPSED_CLASSES


def with_copies(batches: Iterable[Tensor], first: list[Tensor], count: int) -> Iterator[Tensor]:
    """The `batches`; the first `count` of them are also copied to the list `first`."""
    for number, batch in enumerate(batches):
        if number < count:
            first.append(batch.cpu())
        yield batch
