"""All metrics of generated images. A new metric is one function under `@metric`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sagan.config import EvalConfig
from sagan.data import ImageDataset
from sagan.distributed import World
from sagan.metrics.diversity import COLLAPSED, class_diversity
from sagan.metrics.extractor import load_extractor
from sagan.metrics.features import Features, extract, joined
from sagan.metrics.frechet import (
    RealGaussian,
    fit,
    frechet_distance,
    frechet_distance_few,
    frechet_extrapolated,
    frechet_standard_error,
)
from sagan.metrics.pairs import Within, between
from sagan.metrics.reference import PAIRWISE_SAMPLES, Reference, load_reference, pairwise_subset, reference_size
from sagan.metrics.relations import VERSION as RELATIONS_VERSION
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
    """Scores uint8 batches against the images of `dataset`, whose statistics are kept in `cache_dir`.

    `weights` says which of G's weights the images come from, or is None for images of unknown origin. Figures of
    different `fingerprint` must not share a table. Raises ValueError for an unknown extractor or weights that cannot be
    had.
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
        enough, sizes, classes = self._reference.enough_of_class, self._reference.class_sizes, len(dataset.classes)
        few = int((sizes.clamp(max=per_class) < enough).sum())
        if classes > 1 and few and World.here().rank == 0:
            log.warning(
                f"intra_fid: {few} of {classes} classes are left out: {enough} real and {enough} generated images or "
                f"more are needed of each, got {int(sizes.min())} or more real and {per_class} generated; "
                f"eval.num_samples={enough * classes} would generate enough"
            )
        self._measure = measure_of(dataset)
        size, all_of_them = reference_size(dataset), len(dataset.labels)
        compared = str(size) if size == all_of_them else f"{size}, by class {all_of_them},"
        self.fingerprint = "; ".join(
            [
                f"{self._extractor.name}@{self._extractor.sha256[:8]}",
                f"{config.num_samples} samples",
                f"reference {compared} train",
                f"pairs {PAIRWISE_SAMPLES} x {PAIRWISE_SAMPLES} at most",
                f"resize {self._extractor.resize}",
                *([f"bn {config.bn}", weights] if weights else ["images as they were given"]),
                *([f"mean of the last {config.endpoint}"] if config.endpoint > 1 else []),
                *([f"relations v{RELATIONS_VERSION}"] if self._measure else []),
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
            generated = joined(shares) if len(shares) > 1 else shares[0]
            for one in METRIC_FUNCTIONS:
                found |= one(generated, self._reference)
        return world.broadcast(found)


@metric
def fid_scores(generated: Features, reference: Reference) -> dict[str, float]:
    """`real_floor` is the expected score of as many real images: a generator gets below it by chance only."""
    real, other = reference.pooled, fit(generated.features)
    local = RealGaussian(reference.tensors["local_mean"], reference.tensors["local_root"])
    distance = frechet_distance(real, other)
    return {
        "fid": distance,
        "fid_se": frechet_standard_error(real, other, generated.features, generated.labels),
        "fid_extrapolated": frechet_extrapolated(real, distance, generated.features, generated.labels),
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
    found, measured = {}, {}
    for label in reference.groups.get("geometry", (0,)):
        ours = generated.shape_parameters[generated.labels == label]
        if of_class := agreement(ours, real[reference.labels == label]):
            measured[reference.classes[label]] = of_class
    for name in next(iter(measured.values()), {}):
        found[name] = sum(of_class[name] for of_class in measured.values()) / len(measured)
        found |= {f"{name}/{label}": of_class[name] for label, of_class in measured.items() if len(measured) > 1}
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
    return between(few, reference.pairwise, Within(float(reference.tensors["pairs"]), reference.tensors["radii"]))


@metric
def class_scores(generated: Features, reference: Reference) -> dict[str, float]:
    """Inception scores, and the share of images that the extractor assigns to the requested class.

    Both are left out where the extractor's classes do not fit the data: Inception fits natural images, whose score it
    gives; a trained classifier the data that it was trained on. `is` is computed over all samples at once, as in
    SAGAN's code; the mean over ten splits, as in Salimans et al. 2016, is lower.
    """
    found: dict[str, float] = {}
    logits = generated.logits
    if reference.named_logits:  # the data's own classes come first, where the extractor has further ones
        logits = logits[:, : len(reference.classes)]
    if reference.scored_logits:
        found["is"], _ = inception_score(logits, splits=1)
        if len(logits) >= _IS_SPLITS:
            found["is_mean"], found["is_std"] = inception_score(logits, _IS_SPLITS)
    if reference.named_logits:
        found["class_consistency"] = float((logits.argmax(1) == generated.labels).double().mean())
    return found


def inception_score(logits: Tensor, splits: int) -> tuple[float, float]:
    """Mean and standard deviation over `splits` of exp E KL(p(y|x) || p(y)) from [N, k] logits; N >= splits.

    Salimans et al. 2016. Small splits score lower: with Inception's thousand classes ten splits cost 2 % at 50,000
    samples, 10 % at 10,000. Rows are shuffled first, in torch-fidelity's order, for samples often come sorted by class.
    On images of another domain than the extractor's the score has no meaning (it even rises with blur).
    """
    order = np.random.RandomState(2020).permutation(len(logits))
    log_p = logits[torch.from_numpy(order)].double().log_softmax(1)
    scores = []
    for i in range(splits):
        rows = log_p[i * len(log_p) // splits : (i + 1) * len(log_p) // splits]
        marginal = rows.logsumexp(0) - math.log(len(rows))
        scores.append(float((rows.exp() * (rows - marginal)).sum(1).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))
