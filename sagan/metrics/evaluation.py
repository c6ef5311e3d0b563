"""All metrics of generated images. A new metric is one function under `@metric`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sagan.config import EvalConfig
from sagan.data import ImageDataset
from sagan.distributed import World
from sagan.metrics.diversity import COLLAPSED, class_diversity
from sagan.metrics.extractor import load_extractor
from sagan.metrics.features import Features, extract
from sagan.metrics.frechet import (
    RealGaussian,
    fit,
    frechet_distance,
    frechet_distance_few,
    frechet_extrapolated,
    frechet_standard_error,
)
from sagan.metrics.inception_score import inception_score
from sagan.metrics.pairs import Within, between
from sagan.metrics.reference import PAIRWISE_SAMPLES, Reference, load_reference, pairwise_subset, reference_size
from sagan.metrics.relations import agreement, measure_of

log = logging.getLogger(__name__)

MetricFunction = Callable[[Features, Reference], dict[str, float]]
METRIC_FUNCTIONS: list[MetricFunction] = []

_IS_SPLITS = 10
_MAX_CLASS_KEYS = 100  # a thousand keys per step would hide the others in a tracker


def metric(function: MetricFunction) -> MetricFunction:
    METRIC_FUNCTIONS.append(function)
    return function


class Evaluator:
    """Scores uint8 batches against the images of `dataset`.

    The reference is computed on the first use of a data set and an extractor, and then read from `cache_dir`.
    `weights` says which of G's weights the images come from, or is None for images of unknown origin; with
    `fingerprint` it distinguishes figures that must not share a table. Raises ValueError for an unknown extractor or
    weights that cannot be had.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        config: EvalConfig,
        device: torch.device,
        *,
        cache_dir: Path,
        inception_weights: Path | None = None,
        weights: Literal["raw", "ema"] | None = "raw",
    ):
        self._device = device
        self._extractor = load_extractor(
            config.extractor, device=device, cache_dir=cache_dir, inception_weights=inception_weights
        )
        per_class = config.num_samples // len(dataset.classes)
        self._reference = load_reference(dataset, self._extractor, cache_dir, device, per_class)
        if World.here().rank == 0:
            _log_classes_left_out(self._reference, per_class)
        self._measure = measure_of(dataset)
        few, all_of_them = reference_size(dataset), len(dataset.labels)
        compared = str(few) if few == all_of_them else f"{few}, by class {all_of_them},"
        self.fingerprint = "; ".join(
            [
                f"{self._extractor.name}@{self._extractor.sha256[:8]}",
                f"{config.num_samples} samples",
                f"reference {compared} train",
                f"pairs {PAIRWISE_SAMPLES} x {PAIRWISE_SAMPLES} at most",
                f"resize {self._extractor.resize}",
                *([f"bn {config.bn}", weights] if weights else ["images as they were given"]),
                *([f"mean of the last {config.endpoint}"] if config.endpoint > 1 else []),
                f"torch-fidelity {version('torch-fidelity')}",
            ]
        )

    def __call__(self, images: Iterable[Tensor], labels: Tensor, shard: slice | None = None) -> dict[str, float]:
        """All metrics of uint8 [B, 3, H, W] batches in the order of `labels` [N]; batches may differ in size.

        Where several processes score together, `images` are this one's, those of `labels[shard]`. Shards are
        in the order of ranks, and each process returns the metrics of all samples.
        """
        world = World.here()
        extracted = None
        if shard is None or shard.start < shard.stop:  # else there are fewer batches than processes
            extracted = extract(self._extractor, images, labels, self._device, shard, measure=self._measure)
        shares = [share for share in world.gather(extracted) if share is not None]
        found: dict[str, float] = {}
        if world.rank == 0:
            generated = shares[0]
            if len(shares) > 1:
                parts = {name: [vars(share)[name] for share in shares] for name in vars(generated)}
                generated = Features(**{name: torch.cat(tensors) for name, tensors in parts.items()})
            for one in METRIC_FUNCTIONS:
                found |= one(generated, self._reference)
        return world.broadcast(found)


def _log_classes_left_out(reference: Reference, per_class: int) -> None:
    """Log why a metric will be missing, or be measured for some of the classes only."""
    enough = reference.enough_of_class
    few = sum(min(size, per_class) < enough for size in reference.class_sizes.tolist())
    if len(reference.classes) > 1 and few:
        log.warning(
            f"intra_fid: {few} of {len(reference.classes)} classes are left out: {enough} real and {enough} generated "
            f"images or more are needed of each, got {int(reference.class_sizes.min())} or more real and {per_class} "
            f"generated; eval.num_samples={enough * len(reference.classes)} would generate enough"
        )


@metric
def fid_scores(generated: Features, reference: Reference) -> dict[str, float]:
    """`real_floor` is the expected score of as many real images: a generator gets below it by chance only."""
    split = torch.Generator().manual_seed(0)
    real, other = reference.pooled, fit(generated.features)
    local = RealGaussian(reference.tensors["local_mean"], reference.tensors["local_root"])
    distance = frechet_distance(real, other)
    return {
        "fid": distance,
        "fid_se": frechet_standard_error(real, other, generated.features, generated.labels),
        "fid_extrapolated": frechet_extrapolated(real, distance, generated.features, generated.labels, split),
        "fid_local": frechet_distance(local, fit(generated.local)),
        "real_floor": reference.floor(len(generated.labels)),
    }


@metric
def frechet_by_class(generated: Features, reference: Reference) -> dict[str, float]:
    """Intra-FID (Miyato & Koyama 2018): each class against all its real images; `intra_fid` is the mean.

    A class with too few images on either side is left out (`Reference.enough_of_class`); `intra_fid_n` is the smallest
    count on either side of those that are in. With 100 images per class the figure is about half bias, so compare it
    at equal counts only. Not computed for a data set with a single class.
    """
    if len(reference.classes) == 1:
        return {}
    distances, counts = {}, []
    for label, real_count in enumerate(reference.class_sizes.tolist()):
        rows = generated.features[generated.labels == label]
        if min(real_count, len(rows)) < reference.enough_of_class:
            continue
        real = reference.of_class(label)
        distances[label] = (
            frechet_distance(real, fit(rows)) if isinstance(real, RealGaussian) else frechet_distance_few(real, rows)
        )
        counts.append(min(real_count, len(rows)))
    if not distances:
        return {}
    found = {"intra_fid": sum(distances.values()) / len(distances), "intra_fid_n": float(min(counts))}
    if len(reference.classes) <= _MAX_CLASS_KEYS:
        found |= {f"fid_class/{reference.classes[label]}": value for label, value in distances.items()}
    return found


@metric
def frechet_by_group(generated: Features, reference: Reference) -> dict[str, float]:
    found = {}
    for name, real in reference.group_gaussians.items():
        rows = generated.features[reference.within(generated.labels, name)]
        if len(rows) > 1:
            found[f"fid_group/{name}"] = frechet_distance(real, fit(rows))
    return found


@metric
def relations(generated: Features, reference: Reference) -> dict[str, float]:
    """Whether distant parts of a picture agree (sagan/metrics/relations.py), for data whose distribution is known.

    For each class of the group `geometry`, and the mean over these. Pictures without labels are compared together, and
    their distribution is then the mixture of the classes.
    """
    real = reference.tensors["shape_parameters"]
    if not real.shape[1]:
        return {}
    found, means = {}, {}
    for label in reference.groups.get("geometry", (0,)):
        ours = generated.shape_parameters[generated.labels == label]
        if measured := agreement(ours, real[reference.labels == label]):
            means[reference.classes[label]] = {f"relation_{name}": value for name, value in asdict(measured).items()}
    for name in next(iter(means.values()), {}):
        found[name] = sum(of_class[name] for of_class in means.values()) / len(means)
        found |= {f"{name}/{label}": of_class[name] for label, of_class in means.items() if len(means) > 1}
    return found


@metric
def diversity_within(generated: Features, reference: Reference) -> dict[str, float]:
    """`class_diversity` is the mean over the classes, `collapsed_classes` the share of them that have collapsed.

    Without labels all pictures are of one class.
    """
    thumbnails = reference.tensors["thumbnails"]
    of_class = class_diversity(generated.thumbnails, generated.labels, thumbnails, reference.labels)
    if not of_class:
        return {}
    values = torch.tensor(list(of_class.values()), dtype=torch.float64)
    collapsed = (values < COLLAPSED).double()
    found = {"class_diversity": float(values.mean()), "collapsed_classes": float(collapsed.mean())}
    if 1 < len(reference.classes) <= _MAX_CLASS_KEYS:
        found |= {f"class_diversity/{reference.classes[label]}": value for label, value in of_class.items()}
    return found


@metric
def pairwise_metrics(generated: Features, reference: Reference) -> dict[str, float]:
    """KID, precision, recall, density and coverage, together because they use the same pairs.

    Where class counts are fixed and not drawn, images as good as real ones have a `kid` a little below 0: pairs within
    a set then hold slightly fewer of one class than pairs across (about -0.003 at 2,000 embedded samples). Recall and
    coverage rise with the number of generated images: compare at equal counts only.
    """
    few = generated.features[pairwise_subset(len(generated.labels))]
    kept = Within(float(reference.tensors["pairs"]), reference.tensors["radii"])
    kid, found = between(few, reference.pairwise, kept)
    return {"kid": kid, **asdict(found)}


@metric
def inception_scores(generated: Features, reference: Reference) -> dict[str, float]:
    """Left out where the extractor's classes do not fit the data: the score would then have no meaning.

    Inception fits natural images; a trained classifier fits the data that it was trained on. `is` is computed over all
    samples at once, as in SAGAN's code; the mean over ten splits, as in Salimans et al. 2016, is lower.
    """
    if not reference.scored_logits:
        return {}
    logits = _own_logits(generated, reference)
    score, _ = inception_score(logits, splits=1)
    found = {"is": score}
    if len(logits) >= _IS_SPLITS:
        mean, spread = inception_score(logits, _IS_SPLITS)
        found |= {"is_mean": mean, "is_std": spread}
    return found


@metric
def consistency(generated: Features, reference: Reference) -> dict[str, float]:
    """Share of images that the extractor assigns to the requested class; left out where its classes are others."""
    if not reference.named_logits:
        return {}
    predicted = _own_logits(generated, reference).argmax(1)
    return {"class_consistency": float((predicted == generated.labels).double().mean())}


def _own_logits(generated: Features, reference: Reference) -> Tensor:
    """The logits of the data's own classes, where the extractor has these and further ones."""
    return generated.logits[:, : len(reference.classes)] if reference.named_logits else generated.logits
