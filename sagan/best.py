"""The best of a run: the generator with the lowest `fid` of all evaluations, scored again on fresh samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from sagan.networks import Generator
from sagan.sampling import Sampler

Evaluate = Callable[[Iterable[Tensor], Tensor, slice], dict[str, float]]  # as Evaluator.__call__

_SCORES = ("fid", "is", "intra_fid")


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

    def score(self, generator: Generator, sampler: Sampler, evaluate: Evaluate) -> dict[str, float]:
        """`best/step` and the scores of the kept weights, which are loaded into `generator`; {} if none were kept.

        New samples, because the lowest of many scores is partly chance: on the samples that chose it, it is too low.
        """
        if not self.weights:
            return {}
        generator.load_state_dict(self.weights)
        scores = evaluate(sampler.images(generator.eval(), "best"), sampler.labels, sampler.shard)
        return {"best/step": float(self.step)} | {f"best/{name}": scores[name] for name in _SCORES if name in scores}

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
