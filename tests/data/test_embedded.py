from __future__ import annotations

import torch

from sagan.config import DataConfig
from sagan.data import embedded, open_dataset


def pictures(label: int, n: int = 40, resolution: int = 64) -> torch.Tensor:
    return embedded.draw(torch.full((n,), label), seed=3, resolution=resolution, difficulty="easy").float()


def test_every_machine_draws_the_same_bytes() -> None:
    """The fingerprints were recorded once; the drawing uses only operations that IEEE 754 rounds in one way."""
    easy, hard = (open_dataset(DataConfig(name="embedded", resolution=64, difficulty=d)) for d in ("easy", "hard"))
    assert (easy.fingerprint, hard.fingerprint) == ("09ecfd8c1dbd3bf8", "0d3972894c2b0af6")


def test_classes_are_equally_many_and_groups_share_them_out() -> None:
    dataset = open_dataset(DataConfig(name="embedded", resolution=32))
    assert dataset.labels.bincount().tolist() == [embedded.IMAGES_PER_CLASS] * len(dataset.classes)
    assert sorted(label for group in dataset.groups.values() for label in group) == list(range(len(dataset.classes)))
    assert dataset.images.shape == (len(dataset.labels), 3, 32, 32)


def test_another_seed_draws_other_pictures() -> None:
    labels = torch.arange(6)
    one, other = (embedded.draw(labels, seed, 32, "easy") for seed in (0, 1))
    assert (one != other).flatten(1).any(1).all()


def test_twins_are_mirror_images_and_blobs_are_not() -> None:
    """What makes twins a geometry: both halves must agree. The claim that attention helps is about this."""
    mirror_error = {name: (p - p.flip(3)).abs().mean() for name, p in (("twins", pictures(3)), ("blobs", pictures(2)))}
    assert mirror_error["twins"] < 1
    assert mirror_error["blobs"] > 20


def test_textures_look_alike_everywhere_and_geometries_do_not() -> None:
    """Stationarity: over many pictures, no place of a texture is brighter than another."""

    def unevenness(label: int) -> float:
        brightness = torch.nn.functional.avg_pool2d(pictures(label, 400).mean((0, 1))[None, None], 16)
        return float(brightness.std() / brightness.mean())

    assert max(map(unevenness, embedded.GROUPS["texture"])) < 0.05
    assert min(map(unevenness, embedded.GROUPS["geometry"])) > 0.1
