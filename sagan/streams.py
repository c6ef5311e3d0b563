"""Randomness as a function of (seed, purpose, step): nothing to store, and a resumed run draws what it would have."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from sagan.data import ImageDataset


def stream(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator of its own for each triple: the same numbers on every device, whatever was drawn before."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def noise(generator: torch.Generator, n: int, z_dim: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """z ~ N(0, I) and labels uniform over the classes, independent of the real ones: (n, z_dim), (n,)."""
    z = torch.randn(n, z_dim, generator=generator)
    return z, torch.randint(num_classes, (n,), generator=generator)


@dataclass
class Batches:
    """Batch k of an endless run over the images, each epoch in an order of its own drawn from the seed."""

    dataset: ImageDataset
    batch_size: int
    seed: int
    h_flip: bool
    _epoch: int = -1
    _order: Tensor | None = None

    def __call__(self, k: int) -> tuple[Tensor, Tensor]:
        """uint8 images (B, 3, H, W) and labels (B,)."""
        start, n = k * self.batch_size, len(self.dataset.labels)
        picked = torch.cat(
            [
                self._epoch_order(epoch)[max(start - epoch * n, 0) : start + self.batch_size - epoch * n]
                for epoch in range(start // n, (start + self.batch_size - 1) // n + 1)
            ]
        )
        images = self.dataset.images[picked]
        if self.h_flip:
            flipped = torch.rand(len(picked), generator=stream(self.seed, "flip", k)) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(3), images)
        return images, self.dataset.labels[picked]

    def _epoch_order(self, epoch: int) -> Tensor:
        if epoch != self._epoch or self._order is None:
            generator = stream(self.seed, "order", epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.dataset.labels), generator=generator)
        return self._order
