"""Randomness as a function of (seed, purpose, step): nothing to store, and a resumed run draws what it would have."""

from __future__ import annotations

import hashlib

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


class Batches:
    """Batch k of an endless run over the images, each epoch in an order of its own drawn from the seed.

    The images lie on `device` where they fill less than a quarter of its free memory, else on the CPU.
    """

    def __init__(self, dataset: ImageDataset, batch_size: int, seed: int, h_flip: bool, device: torch.device) -> None:
        self._batch_size, self._seed, self._h_flip, self._device = batch_size, seed, h_flip, device
        home = device if _fits(dataset.images, device) else torch.device("cpu")
        self._images, self._labels = dataset.images.to(home), dataset.labels.to(home)
        self._epoch, self._order = -1, dataset.labels[:0]

    def __call__(self, k: int) -> tuple[Tensor, Tensor]:
        """uint8 images (B, 3, H, W) and labels (B,), on the device."""
        start, n = k * self._batch_size, len(self._labels)
        picked = torch.cat(
            [
                self._epoch_order(epoch)[max(start - epoch * n, 0) : start + self._batch_size - epoch * n]
                for epoch in range(start // n, (start + self._batch_size - 1) // n + 1)
            ]
        )
        images = to_device(self._images[picked], self._device)
        if self._h_flip:
            flipped = torch.rand(len(picked), generator=stream(self._seed, "flip", k)) < 0.5
            images = torch.where(to_device(flipped, self._device)[:, None, None, None], images.flip(3), images)
        return images, to_device(self._labels[picked], self._device)

    def _epoch_order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            order = torch.randperm(len(self._labels), generator=stream(self._seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(self._labels.device)
        return self._order


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; a copy to a GPU goes by pinned memory and so does not wait for what runs there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _fits(images: Tensor, device: torch.device) -> bool:
    return device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 4
