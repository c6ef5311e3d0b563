"""Data sets by name: labelled uint8 images of one size, in memory, with a hash of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from sagan.config import DataConfig
from sagan.data import embedded


@dataclass(frozen=True)
class ImageDataset:
    """`images` uint8 [N, 3, H, W]; `labels` int64 [N] index `classes`; `groups` names sets of labels, or is empty."""

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    groups: dict[str, tuple[int, ...]]
    fingerprint: str


def open_dataset(config: DataConfig, root: Path | None = None) -> ImageDataset:
    """The training images of `config.name`. Raises ValueError for a name that is not in DATASETS."""
    if config.name not in DATASETS:
        raise ValueError(f"data.name: must be one of {', '.join(DATASETS)}, got {config.name!r}")
    return DATASETS[config.name](config, root)


@lru_cache(maxsize=1)  # a worker trains many cells on the same pictures
def _open_embedded(config: DataConfig, root: Path | None) -> ImageDataset:
    labels = torch.arange(len(embedded.CLASSES) * embedded.IMAGES_PER_CLASS) % len(embedded.CLASSES)
    images = embedded.draw(labels, seed=0, resolution=config.resolution, difficulty=config.difficulty)
    return ImageDataset(
        name=config.name,
        images=images,
        labels=labels,
        classes=embedded.CLASSES,
        groups=embedded.GROUPS,
        fingerprint=_content_hash(images, labels),
    )


def _content_hash(images: Tensor, labels: Tensor) -> str:
    content = hashlib.sha256(images.numpy().tobytes())
    content.update(labels.numpy().tobytes())
    return content.hexdigest()[:16]


DATASETS: dict[str, Callable[[DataConfig, Path | None], ImageDataset]] = {"embedded": _open_embedded}

# Class counts of the sets that a preset names: parameters can be counted without the images.
NUM_CLASSES: dict[str, int] = {"embedded": len(embedded.CLASSES), "imagenet": 1000}
