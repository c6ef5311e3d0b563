"""Data sets by name: labelled uint8 images of one size, with a hash of their content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from sagan.config import DataConfig
from sagan.data import embedded
from sagan.data.prepared import ImageFile, open_prepared
from sagan.data.sources import Source, find_source
from sagan.options import DEFAULT_CACHE

_UNLABELLED = ("all",)
# Known numbers of classes: parameters can be counted on machines without the images.
_NUM_CLASSES = {"embedded": 2, "cifar10": 10, "cifar100": 100, "stl10": 10, "imagenette": 10, "imagenet": 1000}


@dataclass(frozen=True)
class ImageDataset:
    """`images` uint8 [N, 3, H, W], read as `images[rows]`; `labels` int64 [N] index `classes`.

    `groups` names sets of labels, or is empty. Images without labels are all of one class, "all".
    """

    name: str
    images: Tensor | ImageFile
    labels: Tensor
    classes: tuple[str, ...]
    groups: dict[str, tuple[int, ...]]
    fingerprint: str

    def conditioned(self, by: str) -> ImageDataset:
        """The data set as networks of this `model.conditioning` use it: with "none", all images are of one class.

        Raises ValueError where they need labels that the images do not have.
        """
        check_labels(self.name, self.classes != _UNLABELLED, by)
        if by != "none" or self.classes == _UNLABELLED:
            return self
        labels, fingerprint = torch.zeros_like(self.labels), f"{self.fingerprint}-unlabelled"
        return replace(self, labels=labels, classes=_UNLABELLED, groups={}, fingerprint=fingerprint)


def open_dataset(config: DataConfig, root: Path | None = None, cache_dir: Path = DEFAULT_CACHE) -> ImageDataset:
    """The training images of `config.name`; those that are not built in are prepared in `cache_dir` the first time.

    Raises ValueError for images that cannot be had or read.
    """
    if config.name == "embedded":
        return _open_embedded(config)
    source = list_source(config, root)
    prepared = open_prepared(source, config.resolution, cache_dir)
    classes = source.classes or _UNLABELLED
    return ImageDataset(config.name, prepared.images, prepared.labels, classes, {}, prepared.fingerprint)


@lru_cache(maxsize=4)  # a process asks several times, and listing a million takes a while
def list_source(config: DataConfig, root: Path | None) -> Source:
    """The files of a data set that is not built in; downloads it where torchvision can."""
    if config.name == "folder" and root is None:
        raise ValueError("--data-root: must name the folder of data.name=folder, got none; add --data-root FOLDER")
    return find_source(config, root)


def check_labels(name: str, labelled: bool, conditioning: str) -> None:
    if not labelled and conditioning != "none":
        raise ValueError(
            f"model.conditioning: must be none for images without labels such as those of {name}, got "
            f"{conditioning!r}; put them into one folder for each class, or add --set model.conditioning=none"
        )


def num_classes(config: DataConfig, root: Path | None) -> int:
    """The number of classes; reads the files only for data sets where their name does not determine it."""
    if config.name == "celeba":
        return 2 if config.attribute else 1
    return _NUM_CLASSES[config.name] if config.name in _NUM_CLASSES else max(1, len(list_source(config, root).classes))


@lru_cache(maxsize=1)  # drawing takes seconds
def _open_embedded(config: DataConfig) -> ImageDataset:
    labels = torch.arange(len(embedded.CLASSES) * embedded.IMAGES_PER_CLASS) % len(embedded.CLASSES)
    images = embedded.draw(labels, seed=0, resolution=config.resolution)
    content = hashlib.sha256(images.numpy().data)
    content.update(labels.numpy().data)
    return ImageDataset(config.name, images, labels, embedded.CLASSES, embedded.GROUPS, content.hexdigest()[:16])
