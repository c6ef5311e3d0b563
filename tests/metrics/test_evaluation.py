from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import distortions
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch_fidelity.metric_isc import isc_features_to_metric

from sagan.config import EvalConfig
from sagan.data import ImageDataset, embedded
from sagan.metrics.evaluation import Evaluator, frechet_by_class, inception_score
from sagan.metrics.features import Features
from sagan.metrics.frechet import RealGaussian
from sagan.metrics.reference import Reference

CPU = torch.device("cpu")
CONFIG = EvalConfig(every=1, num_samples=600, extractor="embedded-v2", bn="standing")
LABELS = torch.arange(600) % 2
Damage = Callable[[Tensor, float], Tensor]


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    labels = torch.arange(1200) % 2
    images = embedded.draw(labels, 3, 64)
    return ImageDataset("embedded", images, labels, embedded.CLASSES, embedded.GROUPS, "1200 pictures")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def evaluate(dataset: ImageDataset, cache: Path) -> Evaluator:
    return Evaluator(dataset, CONFIG, device=CPU, cache_dir=cache)


@pytest.fixture(scope="module")
def fresh() -> Tensor:
    return embedded.draw(LABELS, 4, 64)


def score(evaluate: Evaluator, images: Tensor, labels: Tensor = LABELS) -> dict[str, float]:
    return evaluate(torch.split(images, 100), labels)


@pytest.fixture(scope="module")
def intact(evaluate: Evaluator, fresh: Tensor) -> dict[str, float]:
    return score(evaluate, fresh)


def test_every_promised_key_is_there_and_finite(intact: dict[str, float]) -> None:
    assert set(intact) == {
        *("fid", "fid_se", "fid_extrapolated", "fid_local", "real_floor", "kid", "is", "is_mean", "is_std"),
        *("precision", "recall", "density", "coverage", "intra_fid", "intra_fid_n", "class_consistency"),
        *("fid_group/texture", "fid_group/geometry", "class_diversity", "collapsed_classes"),
        *("relation_error", "relation_error_se", "relation_floor", "relation_correlation", "relation_spread"),
        *(f"class_diversity/{name}" for name in embedded.CLASSES),
        *(f"fid_class/{name}" for name in embedded.CLASSES),
    }
    assert torch.tensor(list(intact.values())).isfinite().all()


def test_fresh_real_pictures_score_as_real(evaluate: Evaluator, fresh: Tensor, intact: dict[str, float]) -> None:
    assert intact["fid"] < 3 * intact["real_floor"]
    assert intact["class_consistency"] > 0.99 and intact["is"] == pytest.approx(2, abs=0.1)
    assert intact["is_mean"] < intact["is"]
    assert intact["precision"] > 0.8 and intact["recall"] > 0.8 and intact["coverage"] > 0.8
    assert abs(intact["kid"]) < 0.05 * score(evaluate, shuffle(fresh, 8))["kid"]
    assert intact["fid"] > intact["fid_extrapolated"]


@pytest.mark.parametrize(("n", "splits"), [(1000, 10), (1003, 10), (500, 1)])
def test_inception_score_equals_torch_fidelity(n: int, splits: int, rng: torch.Generator) -> None:
    logits = 3 * torch.randn(n, 20, generator=rng)
    published = isc_features_to_metric(logits, splits=splits)
    mean, spread = inception_score(logits, splits=splits)
    assert mean == pytest.approx(published["inception_score_mean"], rel=1e-6)
    assert spread == pytest.approx(published["inception_score_std"], rel=1e-6, abs=1e-12)


def test_missing_images_are_noticed(evaluate: Evaluator, fresh: Tensor) -> None:
    with pytest.raises(AssertionError, match="500 images for 600 labels"):
        score(evaluate, fresh[:500])


def test_a_few_real_pictures_a_class_are_called_collapsed_though_their_distance_is_small(
    evaluate: Evaluator, fresh: Tensor, intact: dict[str, float], rng: torch.Generator
) -> None:
    for few in (1, 2, 5):
        chosen = torch.arange(600) % 2 + 2 * torch.randint(few, (600,), generator=rng)
        found = score(evaluate, fresh[chosen])
        assert found["collapsed_classes"] == 1 and found["class_diversity"] < 0.01
        assert found["class_consistency"] == 1 and found["fid"] < 10  # which a trained generator is glad of
        assert found["intra_fid"] > 3 * intact["intra_fid"] and found["recall"] < 0.3
    found = score(evaluate, fresh[:1].expand(600, -1, -1, -1))
    assert torch.tensor(list(found.values())).isfinite().all()
    assert found["recall"] < 0.1 and found["coverage"] < 0.1
    assert found["class_diversity"] == 0 and found["collapsed_classes"] == 1


def test_one_collapsed_class_is_named_and_leaves_the_others_alone(
    evaluate: Evaluator, fresh: Tensor, intact: dict[str, float]
) -> None:
    twins = fresh.clone()
    twins[LABELS == 1] = fresh[1]
    found = score(evaluate, twins)
    assert found["class_diversity/twins"] == 0 and found["collapsed_classes"] == 1 / 2
    assert found["class_diversity/grain"] == intact["class_diversity/grain"]
    assert found["class_diversity"] == pytest.approx(intact["class_diversity/grain"] / 2)


def test_without_labels_all_pictures_are_one_class(dataset: ImageDataset, tmp_path: Path, fresh: Tensor) -> None:
    evaluate = Evaluator(dataset.conditioned("none"), CONFIG, device=CPU, cache_dir=tmp_path)
    none = torch.zeros(600, dtype=torch.int64)
    found = score(evaluate, fresh, none)
    assert found["class_diversity"] == pytest.approx(1, abs=0.1)
    assert not any("/" in key for key in found)
    assert score(evaluate, fresh[torch.arange(600) % 2], none)["collapsed_classes"] == 1


def test_classes_without_a_quarter_as_many_images_as_features_are_said_and_have_no_distance(
    evaluate: Evaluator, dataset: ImageDataset, cache: Path, fresh: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    enough, too_few = (score(evaluate, fresh[:n], LABELS[:n]) for n in (64, 62))  # of 128 features
    assert enough["intra_fid_n"] == 32 and "intra_fid" in enough
    assert not any(key.startswith(("intra_fid", "fid_class")) for key in too_few)
    rows = torch.arange(0, 600, 2)[:40].tolist() + [1]  # forty of grain, one of twins
    found = score(evaluate, fresh[rows], LABELS[rows])
    assert found["intra_fid"] == found["fid_class/grain"] and found["intra_fid_n"] == 40
    assert "fid_class/twins" not in found and "fid_group/geometry" not in found
    Evaluator(dataset, CONFIG, device=CPU, cache_dir=cache)
    assert not caplog.text
    Evaluator(dataset, dataclasses.replace(CONFIG, num_samples=62), device=CPU, cache_dir=cache)
    assert (
        "intra_fid: 2 of 2 classes are left out: 32 real and 32 generated images or more are needed of each, got 600 "
        "or more real and 31 generated; eval.num_samples=64 would generate enough" in caplog.text
    )


def gaussians(
    n: int, d: int, shift: float, sizes: tuple[int, ...], draw: torch.Generator
) -> tuple[Features, Reference, list[int]]:
    """`n` standard normal features of each class, moved by `shift`, and a reference whose classes are standard normal;
    the classes that were asked for are noted."""
    asked: list[int] = []

    def stored(label: int) -> RealGaussian:
        asked.append(label)
        return RealGaussian(torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))

    labels = torch.arange(n * len(sizes)) % len(sizes)
    drawn = torch.randn(len(labels), d, generator=draw)
    drawn[:, 0] += shift
    none = torch.empty(len(labels), 0)
    names = tuple(f"class {label}" for label in range(len(sizes)))
    reference = Reference({"features": drawn[:2]}, names, {}, False, False, torch.tensor(sizes), stored)
    return Features(drawn, none, none, labels, none, none), reference, asked


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_distance_of_a_class_is_that_of_the_laws_and_a_known_bias(shift: float, rng: torch.Generator) -> None:
    """Of n samples of N(0, I) to N(0, I) the distance is (d + d (d + 1) / 4) / n in the mean, to first order."""
    n, d = 4000, 16
    found = frechet_by_class(*gaussians(n, d, shift, (5000, 5000), rng)[:2])
    assert found["intra_fid"] == pytest.approx(shift**2 + (d + d * (d + 1) / 4) / n, rel=0.2 if shift == 0 else 0.03)
    assert found["intra_fid_n"] == n


def test_statistics_of_a_class_with_too_few_real_images_are_not_asked_for(rng: torch.Generator) -> None:
    generated, reference, asked = gaussians(100, 16, 0.0, (5000, 3, 90, 0), rng)
    found = frechet_by_class(generated, reference)
    assert asked == [0, 2] and found["intra_fid_n"] == 90
    assert set(found) == {"intra_fid", "intra_fid_n", "fid_class/class 0", "fid_class/class 2"}
    generated, reference, asked = gaussians(3, 16, 0.0, (5000, 5000), rng)
    assert frechet_by_class(generated, reference) == {} and not asked


def test_other_class_names_leave_out_what_reads_the_classes(
    dataset: ImageDataset, tmp_path: Path, fresh: Tensor
) -> None:
    renamed = dataclasses.replace(dataset, name="other", classes=tuple("ab"), groups={})
    found = score(Evaluator(renamed, CONFIG, device=CPU, cache_dir=tmp_path), fresh)
    assert not {"class_consistency", "is", "is_mean", "is_std"} & set(found)
    assert "fid_class/a" in found and not any(key.startswith("fid_group") for key in found)


def test_fingerprint_names_all_that_a_figure_depends_on(
    dataset: ImageDataset, cache: Path, evaluate: Evaluator
) -> None:
    for part in ("embedded-v2@", "600 samples", "reference 1200 train", "resize ", "bn standing", "raw", "0.4.0"):
        assert part in evaluate.fingerprint
    averaged = Evaluator(dataset, CONFIG, device=CPU, cache_dir=cache, weights="ema")
    assert averaged.fingerprint == evaluate.fingerprint.replace("; raw;", "; ema;")


# Damages of growing strength; each must cost more than the one before it and many times what real pictures score.


def noise(images: Tensor, deviation: float) -> Tensor:
    return distortions.noise(images, LABELS, torch.Generator().manual_seed(0), deviation)


def blur(images: Tensor, times: int) -> Tensor:
    smooth = images.float()
    for _ in range(times):
        smooth = avg_pool2d(smooth, 3, stride=1, padding=1, count_include_pad=False)
    return smooth.round().to(torch.uint8)


def shuffle(images: Tensor, tiles: int) -> Tensor:
    return distortions.patch_shuffle(images, LABELS, torch.Generator().manual_seed(0), tiles)


def half_swap(images: Tensor, share: float) -> Tensor:
    """Right halves from another picture of the same class."""
    swapped, n = images.clone(), int(share * len(images))
    swapped[:n, :, :, 32:] = images.roll(2, 0)[:n, :, :, 32:]
    return swapped


def drop(images: Tensor, share: float) -> Tensor:
    return distortions.dropped_class(images, LABELS, torch.Generator(), share)


@pytest.mark.parametrize(
    ("damage", "strengths", "least"),
    [
        (noise, (0.2, 0.4, 0.8), 3),
        (blur, (4, 8, 16), 3),
        (shuffle, (2, 4), 100),
        (half_swap, (0.2, 0.6, 1.0), 30),
        (drop, (0.4, 0.7, 1.0), 30),
    ],
)
def test_distance_grows_with_the_damage(
    evaluate: Evaluator,
    fresh: Tensor,
    intact: dict[str, float],
    damage: Damage,
    strengths: tuple[float, ...],
    least: int,
) -> None:
    costs = [score(evaluate, damage(fresh, strength))["fid"] for strength in strengths]
    assert costs == sorted(costs)
    assert costs[0] > least * intact["real_floor"]


def test_local_distance_sees_noise_but_hardly_a_half_swap(
    evaluate: Evaluator, fresh: Tensor, intact: dict[str, float]
) -> None:
    """A strength of noise is taken that costs as much FD as the swap."""
    noisy, swapped = (score(evaluate, images) for images in (noise(fresh, 0.8), half_swap(fresh, 1.0)))
    assert 0.5 < swapped["fid"] / noisy["fid"] < 2
    assert noisy["fid_local"] > 3 * swapped["fid_local"]
    assert swapped["fid"] / intact["fid"] > 30 * swapped["fid_local"] / intact["fid_local"]
