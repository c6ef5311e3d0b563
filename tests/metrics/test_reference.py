from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sagan.data import ImageDataset, embedded
from sagan.metrics import reference as module
from sagan.metrics.extractor import Extractor, load_extractor
from sagan.metrics.frechet import RealGaussian, fit, frechet_distance
from sagan.metrics.reference import Reference, load_reference

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return load_extractor("embedded-v2", device=CPU)


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    labels = torch.arange(60) % 2
    images = embedded.draw(labels, 3, 64)
    return ImageDataset("embedded", images, labels, embedded.CLASSES, embedded.GROUPS, "first")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """ "reference" for each reference that was computed rather than read, and the number of each such class."""
    calls: list[str] = []
    kept = module._kept

    def noted(file: Path, lock: Path, measure: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        def measured() -> dict[str, Tensor]:
            calls.append(file.stem.partition("-")[0])
            return measure()

        return kept(file, lock, measured)

    monkeypatch.setattr(module, "_kept", noted)
    return calls


def same(one: Reference, other: Reference) -> bool:
    return all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_of_two_that_come_at_once_one_builds_and_the_other_reads(
    dataset: ImageDataset, extractor: Extractor, tmp_path: Path, built: list[str]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: load_reference(dataset, extractor, tmp_path, CPU), range(2))
    assert same(one, other)
    assert built == ["reference"]


def test_changed_data_or_weights_make_a_new_entry(
    dataset: ImageDataset, extractor: Extractor, tmp_path: Path, built: list[str]
) -> None:
    load_reference(dataset, extractor, tmp_path, CPU)
    load_reference(dataclasses.replace(dataset, fingerprint="second"), extractor, tmp_path, CPU)
    load_reference(dataset, dataclasses.replace(extractor, sha256="other"), tmp_path, CPU)
    assert len(built) == len(list(tmp_path.glob("*.safetensors"))) == 3


@pytest.mark.parametrize("damage", ["truncated", "one byte flipped", "not safetensors"])
def test_damaged_entry_is_built_anew(
    damage: str, dataset: ImageDataset, extractor: Extractor, tmp_path: Path, built: list[str]
) -> None:
    intact = load_reference(dataset, extractor, tmp_path, CPU)
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes({"truncated": content[:-40], "one byte flipped": content, "not safetensors": b"x"}[damage])
    assert same(load_reference(dataset, extractor, tmp_path, CPU), intact)
    assert len(built) == 2


def test_large_sets_are_represented_by_a_fixed_subset(
    dataset: ImageDataset, extractor: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFERENCE_SAMPLES", 40)
    monkeypatch.setattr(module, "PAIRWISE_SAMPLES", 30)
    found = load_reference(dataset, extractor, tmp_path, CPU)
    assert found.features.shape == (40, 128) and found.pairwise.shape == (30, 128)
    assert same(load_reference(dataset, extractor, tmp_path / "other", CPU), found)


@pytest.fixture
def uneven() -> ImageDataset:
    """200 pictures of the first class and 50 of the second: more and fewer than the 128 features."""
    labels = (torch.arange(250) % 5 == 4).long()
    return ImageDataset("embedded", embedded.draw(labels, 3, 64), labels, embedded.CLASSES, embedded.GROUPS, "uneven")


def features_of(dataset: ImageDataset, label: int, extractor: Extractor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([extractor(batch)[0] for batch in dataset.images[dataset.labels == label].split(50)])


def close(found: RealGaussian | Tensor, features: Tensor) -> None:
    if isinstance(found, Tensor):
        assert len(features) <= 128
        torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-4)
    else:
        assert len(features) > 128
        assert frechet_distance(found, fit(features)) == pytest.approx(0, abs=1e-3)


def test_statistics_of_a_class_are_of_all_its_images_also_where_the_reference_is_a_part(
    uneven: ImageDataset, extractor: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_reference(uneven, extractor, tmp_path, CPU, 100)
    assert not list(tmp_path.glob("classes-*"))
    monkeypatch.setattr(module, "REFERENCE_SAMPLES", 60)
    part = load_reference(uneven, extractor, tmp_path, CPU, 100)
    assert len(part.features) == 60 and part.class_sizes.tolist() == whole.class_sizes.tolist() == [200, 50]
    for label in (0, 1):
        for reference in (whole, part):
            close(reference.of_class(label), features_of(uneven, label, extractor))


def test_classes_are_built_once_and_only_where_they_will_be_compared(
    uneven: ImageDataset, extractor: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: list[str]
) -> None:
    monkeypatch.setattr(module, "REFERENCE_SAMPLES", 60)
    few = dataclasses.replace(uneven, labels=torch.where(torch.arange(250) < 10, 1, 0), fingerprint="few")
    load_reference(uneven, extractor, tmp_path, CPU, 31)  # 32 of 128 features are enough
    load_reference(few, extractor, tmp_path, CPU, 32)
    assert built == ["reference", "reference", "0"]  # the other class has 10 images
    for _ in range(2):
        reference = load_reference(uneven, extractor, tmp_path, CPU, 32)
    assert built[3:] == ["0", "1"]
    (file,) = tmp_path.glob("classes-*/1.safetensors")
    file.write_bytes(file.read_bytes()[:-40])
    close(reference.of_class(1), features_of(uneven, 1, extractor))
    assert built[5:] == ["1"]


def test_real_floor_is_the_distance_that_real_images_score(extractor: Extractor, tmp_path: Path) -> None:
    labels = torch.arange(2400) % 2
    real = ImageDataset("embedded", embedded.draw(labels, 3, 64), labels, embedded.CLASSES, {}, "third")
    found = load_reference(real, extractor, tmp_path, CPU)
    distances = []
    for seed in range(4, 10):  # a single one is 0.5 to 2 times the mean
        fresh = embedded.draw(labels[:1200], seed, 64).split(50)
        with torch.inference_mode():
            distances.append(frechet_distance(found.pooled, fit(torch.cat([extractor(batch)[0] for batch in fresh]))))
    assert found.floor(1200) == pytest.approx(sum(distances) / 6, rel=0.5)
