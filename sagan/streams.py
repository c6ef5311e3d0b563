"""Random numbers as a function of (seed, purpose, step): a resumed run needs no stored state to draw the same."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from sagan.data import ImageDataset
from sagan.data.prepared import ImageFile

_AHEAD = 4  # batches that are read from a file in advance
_MOVED_AT_ONCE = 4096


def stream(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator that depends on these three alone: the same numbers on every device and after any other draw."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def seed_of_streams(seed: int, streams: int) -> int:
    """The seed of all random streams of a run: `seed` if `optim.streams` is 0, else a hash of both."""
    if streams == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/streams/{streams}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def noise(generator: torch.Generator, n: int, z_dim: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """z ~ N(0, I) and labels uniform over the classes, independent of the real ones: (n, z_dim), (n,)."""
    z = torch.randn(n, z_dim, generator=generator)
    return z, torch.randint(num_classes, (n,), generator=generator)


class Batches:
    """Batch k of an endless sequence of epochs; each epoch has a random order of its own, drawn from the seed.

    The images lie on `device` where they fill less than a quarter of its free memory. Those that stay in a file are
    read ahead, by threads, while earlier batches are trained on. Of each batch of `batch_size` only the rows `shard`
    are given.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        seed: int,
        h_flip: bool,
        device: torch.device,
        shard: slice | None = None,
    ) -> None:
        self._shard = shard or slice(None)
        self._batch_size, self._seed, self._h_flip, self._device = batch_size, seed, h_flip, device
        self._images: Tensor | ImageFile = dataset.images
        if _fits(dataset.images, device):
            self._images = torch.empty(tuple(dataset.images.shape), dtype=torch.uint8, device=device)
            for rows in torch.arange(len(dataset.images)).split(_MOVED_AT_ONCE):
                self._images[rows[0] : rows[-1] + 1] = dataset.images[rows].to(device)
        self._labels = dataset.labels.to(self._images.device if isinstance(self._images, Tensor) else "cpu")
        self._epoch, self._order = -1, dataset.labels[:0]
        self._readers = ThreadPoolExecutor(_AHEAD) if isinstance(self._images, ImageFile) else None
        self._coming: dict[int, tuple[Tensor, Future[Tensor]]] = {}  # row numbers and images of the next batches

    def __call__(self, k: int) -> tuple[Tensor, Tensor]:
        """uint8 images (B, 3, H, W) and labels (B,), on the device."""
        rows, images = self._read(k)
        images = to_device(images, self._device)
        if self._h_flip:
            flipped = torch.rand(self._batch_size, generator=stream(self._seed, "flip", k))[self._shard] < 0.5
            images = torch.where(to_device(flipped, self._device)[:, None, None, None], images.flip(3), images)
        return images, to_device(self._labels[rows], self._device)

    def _read(self, k: int) -> tuple[Tensor, Tensor]:
        if self._readers is None:
            rows = self._rows(k)
            return rows, self._images[rows]
        for later in range(k, k + 1 + _AHEAD):
            if later not in self._coming:
                rows = self._rows(later)
                self._coming[later] = rows, self._readers.submit(self._images.__getitem__, rows)
        rows, reading = self._coming.pop(k)
        return rows, reading.result()

    def _rows(self, k: int) -> Tensor:
        start, n = k * self._batch_size, len(self._labels)
        return torch.cat(
            [
                self._epoch_order(epoch)[max(start - epoch * n, 0) : start + self._batch_size - epoch * n]
                for epoch in range(start // n, (start + self._batch_size - 1) // n + 1)
            ]
        )[self._shard]

    def _epoch_order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            order = torch.randperm(len(self._labels), generator=stream(self._seed, "order", epoch))
            self._epoch, self._order = epoch, to_device(order, self._labels.device)
        return self._order


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; a copy to a GPU goes through pinned memory and does not wait for running kernels."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _fits(images: Tensor | ImageFile, device: torch.device) -> bool:
    return device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 4
