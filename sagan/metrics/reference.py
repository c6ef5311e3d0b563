"""The real side of every metric: computed once for a data set and an extractor, then read from a cache."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sagan.data import ImageDataset
from sagan.metrics.extractor import Extractor
from sagan.metrics.features import extract
from sagan.metrics.frechet import RealGaussian, fit, fit_in_parts, frechet_distance, halves, rooted
from sagan.metrics.pairs import within
from sagan.metrics.relations import FORMAT as RELATIONS_FORMAT
from sagan.metrics.relations import measure_of

REFERENCE_SAMPLES = 50_000  # the paper compares with 50,000 training images
PAIRWISE_SAMPLES = 5_000  # KID, precision, recall, density and coverage look at pairs: 5,000 by 5,000 at most
_FORMAT = 2  # raise it when a stored figure changes its meaning: old entries are then left alone
_BATCH = 100
# Images per class, on either side, below which its distance is left out: as a share of the features. The distance
# between two samples of one distribution is all bias. At a quarter of 1,024 features it is 0.5 of the variance within
# the class (Gaussians whose k-th variance is 1/k), and at a quarter of the built-in extractor's 128 it is 0.32 for
# grain and 0.18 for twins; at 50 images of 2,048 features, as 50,000 samples of ImageNet have, it is more than all of
# the variance.
_ENOUGH = 0.25


@dataclass(frozen=True)
class Reference:
    """Real features and all that is derived from them alone."""

    tensors: dict[str, Tensor]  # what the cache holds (see `_measure`); by the same names as in Features
    classes: tuple[str, ...]
    groups: dict[str, tuple[int, ...]]
    named_logits: bool  # the extractor's logits are those of the data's classes
    scored_logits: bool  # the extractor's classes fit the domain, so that an Inception score has a meaning
    class_sizes: Tensor  # int64 [classes], of all real images
    stored_class: Callable[[int], RealGaussian | Tensor] | None  # where `features` are those of some images only
    _gaussians: dict[int, RealGaussian] = field(default_factory=dict)  # of classes, once they are asked for

    @property
    def features(self) -> Tensor:
        return self.tensors["features"]

    @property
    def labels(self) -> Tensor:
        return self.tensors["labels"]

    @property
    def pooled(self) -> RealGaussian:
        return RealGaussian(self.tensors["mean"], self.tensors["root"])

    @property
    def pairwise(self) -> Tensor:
        return self.features[pairwise_subset(len(self.features))]

    @property
    def enough_of_class(self) -> int:
        """Images that a class must have on either side for a Fréchet distance of its own."""
        return max(2, math.ceil(_ENOUGH * self.features.shape[1]))

    def of_class(self, label: int) -> RealGaussian | Tensor:
        """All real images of a class: a Gaussian where there are more images than features, else features [n, d].

        With fewer images than features no d x d matrix is needed.
        """
        if self.stored_class:
            return self.stored_class(label)
        features = self.features[self.labels == label]
        if len(features) <= features.shape[1]:
            return features
        if label not in self._gaussians:
            self._gaussians[label] = rooted(fit(features))
        return self._gaussians[label]

    @cached_property
    def group_gaussians(self) -> dict[str, RealGaussian]:
        return {name: rooted(fit(self.features[self.within(self.labels, name)])) for name in self.groups}

    def within(self, labels: Tensor, group: str) -> Tensor:
        return torch.isin(labels, torch.tensor(self.groups[group]))

    def floor(self, num_samples: int) -> float:
        """The distance that `num_samples` real images would have: that of two halves, times the ratio of 1/n + 1/m.

        The distance between two samples of one distribution is all bias, and the bias is proportional to 1/n + 1/m.
        """
        n = len(self.features)
        return float(self.tensors["halves"]) * (1 / num_samples + 1 / n) / (4 / n)


def load_reference(
    dataset: ImageDataset, extractor: Extractor, cache_dir: Path, device: torch.device, per_class: int = 0
) -> Reference:
    """From the cache where it has an entry for this very content, else computed and stored.

    `per_class` is the number of generated images of each class that will be compared. Entries are named by a hash of
    data, weights and protocol, written atomically, and checked by a digest of their content when read; a damaged one is
    built again. Of several processes one builds and the others wait.
    """
    protocol = [_FORMAT, RELATIONS_FORMAT if measure_of(dataset) else 0]
    content = [*protocol, dataset.fingerprint, extractor.sha256, extractor.resize, reference_size(dataset)]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    file = cache_dir / f"reference-{key}.safetensors"
    tensors = _kept(file, file.with_suffix(".lock"), lambda: _measure(dataset, extractor, device))
    # An extractor may know further classes, such as broken relations; a metric of classes looks at the data's own.
    named = extractor.labels is not None and extractor.labels[: len(dataset.classes)] == dataset.classes
    natural = extractor.name == "inception" and dataset.name != "embedded"
    sizes = torch.bincount(dataset.labels, minlength=len(dataset.classes))
    stored = None
    if reference_size(dataset) < len(dataset.labels):
        folder = cache_dir / f"classes-{key}"
        stored = partial(_class_statistics, dataset, extractor, folder, device)
    found = Reference(tensors, dataset.classes, dataset.groups, named, named or natural, sizes, stored)
    if stored and len(dataset.classes) > 1 and per_class >= found.enough_of_class:
        for label in torch.where(sizes >= found.enough_of_class)[0].tolist():
            if not (folder / f"{label}.safetensors").is_file():
                stored(label)
    return found


def pairwise_subset(n: int) -> Tensor:
    """Rows that pairwise metrics look at: all of up to 5,000, else a fixed random 5,000."""
    return _fixed_order(n)[:PAIRWISE_SAMPLES] if n > PAIRWISE_SAMPLES else torch.arange(n)


def reference_size(dataset: ImageDataset) -> int:
    return min(len(dataset.labels), REFERENCE_SAMPLES)


def _class_statistics(
    dataset: ImageDataset, extractor: Extractor, folder: Path, device: torch.device, label: int
) -> RealGaussian | Tensor:
    """Statistics of all real images of a class, from its file in `folder`; a few images are in memory at a time."""

    def measure() -> dict[str, Tensor]:
        rows = torch.where(dataset.labels == label)[0]
        parts = (
            extract(extractor, [dataset.images[part]], dataset.labels[part], device).features
            for part in rows.split(_BATCH)
        )
        first = next(parts)
        if len(rows) <= first.shape[1]:
            return {"features": torch.cat([first, *parts])}
        gaussian = rooted(fit_in_parts(chain([first], parts)))
        return {"mean": gaussian.mean, "root": gaussian.root}

    tensors = _kept(folder / f"{label}.safetensors", folder / "lock", measure)
    return tensors["features"] if "features" in tensors else RealGaussian(tensors["mean"], tensors["root"])


def _measure(dataset: ImageDataset, extractor: Extractor, device: torch.device) -> dict[str, Tensor]:
    chosen = _fixed_order(len(dataset.labels))[: reference_size(dataset)].sort().values
    batches = (dataset.images[rows] for rows in torch.split(chosen, _BATCH))
    real = extract(extractor, batches, dataset.labels[chosen], device, measure=measure_of(dataset))
    pooled, local = rooted(fit(real.features)), rooted(fit(real.local))
    one, other = halves(real.labels)
    between_halves = frechet_distance(rooted(fit(real.features[one])), fit(real.features[other]))
    pairs = within(real.features[pairwise_subset(len(chosen))])
    return {
        "features": real.features,
        "labels": real.labels,
        "thumbnails": real.thumbnails,
        "shape_parameters": real.shape_parameters,
        "mean": pooled.mean,
        "root": pooled.root,
        "local_mean": local.mean,
        "local_root": local.root,
        "radii": pairs.radii,
        "pairs": torch.tensor(pairs.mean_kernel, dtype=torch.float64),
        "halves": torch.tensor(between_halves, dtype=torch.float64),
    }


def _fixed_order(n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _kept(file: Path, lock: Path, measure: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in `file`; where it is missing or damaged, those of `measure`, which are written to it first."""

    def digest(tensors: dict[str, Tensor]) -> str:
        content = hashlib.sha256()
        for name in sorted(tensors):
            content.update(name.encode())
            content.update(tensors[name].contiguous().numpy().tobytes())
        return content.hexdigest()

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        with suppress(FileNotFoundError, SafetensorError), safe_open(file, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
            if (stored.metadata() or {}).get("digest") == digest(tensors):
                return tensors
        tensors = measure()
        with tempfile.TemporaryDirectory(dir=file.parent, suffix=".partial") as folder:
            save_file(tensors, Path(folder) / file.name, {"digest": digest(tensors)})
            os.replace(Path(folder) / file.name, file)
    return tensors
