from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from sagan.config import DataConfig
from sagan.data import embedded, open_dataset

GRAIN, TWINS = (embedded.CLASSES.index(name) for name in ("grain", "twins"))


def pictures(label: int, n: int = 40, broken: Literal["size", "height"] | None = None) -> Tensor:
    return embedded.draw(torch.full((n,), label), seed=3, resolution=64, broken=broken).float()


def mirror_error(images: Tensor) -> float:
    return float((images - images.flip(3)).abs().mean())


def test_every_machine_draws_the_same_bytes() -> None:
    """The fingerprint was recorded once; the drawing uses only operations that IEEE 754 rounds in one way."""
    assert open_dataset(DataConfig(name="embedded", resolution=64)).fingerprint == "99816408c682c0cd"


def test_classes_are_equally_many_and_groups_share_them_out() -> None:
    dataset = open_dataset(DataConfig(name="embedded", resolution=32))
    assert dataset.labels.bincount().tolist() == [embedded.IMAGES_PER_CLASS] * len(dataset.classes)
    assert sorted(label for group in dataset.groups.values() for label in group) == list(range(len(dataset.classes)))
    assert dataset.images.shape == (len(dataset.labels), 3, 32, 32)


def test_twins_are_mirror_images_and_grain_is_not() -> None:
    """What makes twins a geometry: both halves must agree. The claim that attention helps is about this."""
    assert mirror_error(pictures(TWINS)) < 1
    assert mirror_error(pictures(GRAIN)) > 20


@pytest.mark.parametrize("broken", embedded.BROKEN)
def test_broken_twins_are_no_mirror_images_and_each_half_keeps_its_distribution(
    broken: Literal["size", "height"],
) -> None:
    """Only the relation is gone: over many pictures either half looks as it did."""
    whole, other = pictures(TWINS, 3000), pictures(TWINS, 3000, broken)
    assert mirror_error(other[:40]) > 5
    for half in (slice(None, 32), slice(32, None)):
        difference = whole[..., half].mean(0) - other[..., half].mean(0)
        assert difference.abs().max() < 8


def test_textures_look_alike_everywhere_and_geometries_do_not() -> None:
    """Stationarity: over many pictures, no place of a texture is brighter than another."""

    def unevenness(label: int) -> float:
        brightness = torch.nn.functional.avg_pool2d(pictures(label, 400).mean((0, 1))[None, None], 16)
        return float(brightness.std() / brightness.mean())

    assert max(map(unevenness, embedded.GROUPS["texture"])) < 0.05
    assert min(map(unevenness, embedded.GROUPS["geometry"])) > 0.1
