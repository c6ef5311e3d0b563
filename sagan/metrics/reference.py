"""The real side of every metric: computed once for a data set and an extractor, then read from a cache."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sagan.data import ImageDataset
from sagan.metrics.extractor import Extractor
from sagan.metrics.features import extract
from sagan.metrics.frechet import RealGaussian, fit, fit_real, frechet_distance, halves
from sagan.metrics.pairs import Within, within
from sagan.metrics.relations import FORMAT as RELATIONS_FORMAT
from sagan.metrics.relations import measure_of

REFERENCE_SAMPLES = 50_000  # the paper compares with 50,000 training images
PAIRWISE_SAMPLES = 5_000  # KID, precision, recall, density and coverage look at pairs: 5,000 by 5,000 at most
_FORMAT = 2  # raise it when a stored figure changes its meaning: old entries are then left alone
_BATCH = 100


@dataclass(frozen=True)
class Reference:
    """Real features and all that is derived from them alone."""

    tensors: dict[str, Tensor]  # what the cache holds; see `_measure`
    classes: tuple[str, ...]
    groups: dict[str, tuple[int, ...]]
    named_logits: bool  # the extractor's logits are those of the data's classes
    scored_logits: bool  # the extractor's classes fit the domain, so that an Inception score has a meaning

    @property
    def features(self) -> Tensor:
        return self.tensors["features"]

    @property
    def labels(self) -> Tensor:
        return self.tensors["labels"]

    @property
    def thumbnails(self) -> Tensor:
        """As in Features."""
        return self.tensors["thumbnails"]

    @property
    def shape_parameters(self) -> Tensor:
        """As in Features."""
        return self.tensors["shape_parameters"]

    @property
    def pooled(self) -> RealGaussian:
        return RealGaussian(self.tensors["mean"], self.tensors["root"])

    @property
    def local(self) -> RealGaussian:
        return RealGaussian(self.tensors["local_mean"], self.tensors["local_root"])

    @property
    def pairwise(self) -> Tensor:
        return self.features[pairwise_subset(len(self.features))]

    @property
    def within_pairwise(self) -> Within:
        return Within(float(self.tensors["pairs"]), self.tensors["radii"])

    @cached_property
    def by_class(self) -> dict[int, Tensor]:
        """Features of each class that has two images or more."""
        found = {label: self.features[self.labels == label] for label in range(len(self.classes))}
        return {label: rows for label, rows in found.items() if len(rows) > 1}

    @cached_property
    def class_gaussians(self) -> dict[int, RealGaussian]:
        """For classes with more images than features; the others have no need of a d x d matrix."""
        return {label: fit_real(rows) for label, rows in self.by_class.items() if len(rows) > rows.shape[1]}

    @cached_property
    def group_gaussians(self) -> dict[str, RealGaussian]:
        return {name: fit_real(self.features[self.within(self.labels, name)]) for name in self.groups}

    def within(self, labels: Tensor, group: str) -> Tensor:
        return torch.isin(labels, torch.tensor(self.groups[group]))

    def floor(self, num_samples: int) -> float:
        """The distance that `num_samples` real images would have: that of two halves, times the ratio of 1/n + 1/m.

        The distance of two sets from one law is all bias, and the bias goes with 1/n + 1/m.
        """
        n = len(self.features)
        return float(self.tensors["halves"]) * (1 / num_samples + 1 / n) / (4 / n)


def load_reference(dataset: ImageDataset, extractor: Extractor, cache_dir: Path, device: torch.device) -> Reference:
    """From the cache where it has an entry for this very content, else computed and stored.

    Entries are named by a hash of data, weights and protocol, written whole or not at all, and checked by a digest of
    their content when read; a damaged one is built anew. Of several processes one builds and the others wait.
    """
    tensors = _cached(dataset, extractor, cache_dir, device)
    # An extractor may know further classes, such as broken relations; a metric of classes looks at the data's own.
    named = extractor.labels is not None and extractor.labels[: len(dataset.classes)] == dataset.classes
    natural = extractor.name == "inception" and dataset.name != "embedded"
    return Reference(tensors, dataset.classes, dataset.groups, named, named or natural)


def pairwise_subset(n: int) -> Tensor:
    """Rows that pairwise metrics look at: all of up to 5,000, else a fixed random 5,000."""
    return _fixed_order(n)[:PAIRWISE_SAMPLES] if n > PAIRWISE_SAMPLES else torch.arange(n)


def reference_size(dataset: ImageDataset) -> int:
    return min(len(dataset.labels), REFERENCE_SAMPLES)


def _cached(dataset: ImageDataset, extractor: Extractor, cache_dir: Path, device: torch.device) -> dict[str, Tensor]:
    protocol = [_FORMAT, RELATIONS_FORMAT if measure_of(dataset) else 0]
    key = json.dumps([*protocol, dataset.fingerprint, extractor.sha256, extractor.resize, reference_size(dataset)])
    file = cache_dir / f"reference-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        tensors = _read(file)
        if tensors is None:
            tensors = _measure(dataset, extractor, device)
            _write(tensors, file)
    return tensors


def _measure(dataset: ImageDataset, extractor: Extractor, device: torch.device) -> dict[str, Tensor]:
    chosen = _fixed_order(len(dataset.labels))[: reference_size(dataset)].sort().values
    batches = (dataset.images[rows] for rows in torch.split(chosen, _BATCH))
    real = extract(extractor, batches, dataset.labels[chosen], device, measure=measure_of(dataset))
    pooled, local = fit_real(real.features), fit_real(real.local)
    one, other = halves(real.labels, torch.Generator().manual_seed(0))
    between_halves = frechet_distance(fit_real(real.features[one]), fit(real.features[other]))
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


def _digest(tensors: dict[str, Tensor]) -> str:
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(name.encode())
        content.update(tensors[name].contiguous().numpy().tobytes())
    return content.hexdigest()


def _read(file: Path) -> dict[str, Tensor] | None:
    try:
        with safe_open(file, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
            metadata = stored.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return None
    return tensors if metadata.get("digest") == _digest(tensors) else None


def _write(tensors: dict[str, Tensor], file: Path) -> None:
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".partial")
    os.close(handle)
    try:
        save_file(tensors, temporary, {"digest": _digest(tensors)})
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
