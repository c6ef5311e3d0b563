"""Images from a trained generator: samples to score, grids to look at, and attention maps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sagan.config import Config
from sagan.distributed import World
from sagan.layers import BatchNormReLU
from sagan.networks import Generator
from sagan.streams import noise, stream

AT_ONCE = 50  # images per batch of scored samples, whose z is drawn together
_STANDING_AT_ONCE = 64  # images whose batch-norm statistics are measured together
_GRID_CLASSES = 10  # rows of a sample grid, spread over the classes
_GRID_COLUMNS = 8
_QUERIES = ((0.25, 0.25), (0.5, 0.3), (0.75, 0.75))  # row, column on the unit square, as in the paper's Fig. 5


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 -> float -1..1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float -1..1 -> uint8 0..255, rounded."""
    return ((images + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)


def diversity(images: Tensor) -> float:
    """Standard deviation of a pixel over uint8 images (N, 3, H, W), averaged over pixels: 0 when all are the same."""
    return float(images.float().std(0).mean())


class Sampler:
    """Generates the images that every evaluation of a run needs, from the same z and labels at each step.

    Scored samples take their z from the run's seed, with labels that cycle through the classes, so that all have
    equally many samples. The grid and the attention maps take theirs from a seed that all runs share, so that variants
    can be compared by eye.

    Of the scored samples, whose classes are `labels`, each process draws its `shard`, which consists of
    complete batches.
    """

    def __init__(
        self, config: Config, num_classes: int, seed: int, device: torch.device, world: World | None = None
    ) -> None:
        self.config, self.num_classes, self.seed, self.device = config, num_classes, seed, device
        self.world = world or World()
        n = config.eval.num_samples
        self.labels = torch.arange(n) % num_classes
        starts = range(0, n, AT_ONCE)
        self._starts = starts[self.world.shard(len(starts))]
        self.shard = slice(self._starts.start, min(self._starts.stop, n))
        self.fewest_batches = len(starts) // self.world.size  # of any process
        rows = min(num_classes, _GRID_CLASSES)
        self.grid_labels = (torch.arange(rows) * num_classes // rows).repeat_interleave(_GRID_COLUMNS)
        self.grid_z = torch.randn(len(self.grid_labels), config.model.z_dim, generator=stream(0, "grid"))

    @torch.no_grad()
    def prepare(self, generator: Generator) -> None:
        """Put `generator` in evaluation mode, its batch-norm statistics measured again where the config says so."""
        if self.config.eval.bn == "standing":
            norms = [module for module in generator.modules() if isinstance(module, BatchNormReLU)]
            momenta = [norm.momentum for norm in norms]
            generator.train()
            # A multiple of the training batch size, so that batch-norm groups and processes divide it.
            at_once = min(_STANDING_AT_ONCE, self.config.eval.standing_images)
            size = self.config.optim.batch_size * max(1, at_once // self.config.optim.batch_size)
            shard = self.world.shard(size)
            for turn in range(math.ceil(self.config.eval.standing_images / size)):
                for norm in norms:
                    norm.momentum = 1 / (turn + 1)  # the plain mean over the batches
                draw = stream(self.seed, "standing", turn)
                z, labels = noise(draw, size, self.config.model.z_dim, self.num_classes)
                generator(z[shard].to(self.device), labels[shard].to(self.device))
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            self.world.average(generator.running_statistics())
        generator.eval()

    @torch.no_grad()
    def images(self, generator: Generator, purpose: str = "scored") -> Iterator[Tensor]:
        """uint8 batches (B, 3, R, R) of the classes `labels[shard]`; another `purpose` draws another z."""
        for start in self._starts:
            labels = self.labels[start : start + AT_ONCE]
            z = torch.randn(len(labels), self.config.model.z_dim, generator=stream(self.seed, purpose, start))
            yield to_uint8(generator(z.to(self.device), labels.to(self.device)))

    def batches_within(self, n: int) -> int:
        """How many of the batches of `images` are among the first `n` samples of all."""
        return sum(start < n for start in self._starts)

    @torch.no_grad()
    def attention_maps(self, generator: Generator) -> dict[str, Tensor]:
        """Maps of the first picture of every row of the grid, on the CPU: {"32": (rows, N, M)}."""
        z, labels = self.grid_z[::_GRID_COLUMNS], self.grid_labels[::_GRID_COLUMNS]
        maps = generator.attention_maps(z.to(self.device), labels.to(self.device))
        return {size: attention.cpu() for size, attention in maps.items()}

    @torch.no_grad()
    def pictures(self, generator: Generator, maps: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
        """The sample grid as "samples" and, for each map, the images, query points and their attention."""
        images = to_uint8(generator(self.grid_z.to(self.device), self.grid_labels.to(self.device)))
        grid = images.permute(0, 2, 3, 1).unflatten(0, (-1, _GRID_COLUMNS)).cpu().numpy()
        pictures: dict[str, NDArray[Any]] = {"samples": grid}
        for size, attention in maps.items():
            side, keys = int(size), round(attention.shape[2] ** 0.5)
            queries = np.array([(int(row * side), int(column * side)) for row, column in _QUERIES])
            chosen = attention[:, queries[:, 0] * side + queries[:, 1]].unflatten(2, (keys, keys))
            pictures[f"attention/g{size}/images"] = grid[:, 0]
            pictures[f"attention/g{size}/queries"] = queries
            pictures[f"attention/g{size}/maps"] = chosen.numpy()
        return pictures
