from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sagan.data import ImageDataset
from sagan.data.prepared import ImageFile
from sagan.streams import Batches, seed_of_streams

CPU = torch.device("cpu")


@pytest.fixture
def datasets(tmp_path: Path) -> tuple[ImageDataset, ImageDataset]:
    """The same ten images in memory and in a file."""
    images = torch.randint(256, (10, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (tmp_path / "images.u8").write_bytes(images.numpy().tobytes())
    stored = ImageFile(tmp_path / "images.u8", (10, 3, 4, 4))
    labels = torch.arange(10)
    in_memory, in_file = (ImageDataset("few", kept, labels, ("a",) * 10, {}, "") for kept in (images, stored))
    return in_memory, in_file


@pytest.mark.parametrize("batch_size", [3, 10, 24])  # less than an epoch, one, and more
@pytest.mark.parametrize("start", [0, 5])  # from the beginning, and resumed
def test_batches_from_a_file_equal_those_from_memory(
    datasets: tuple[ImageDataset, ImageDataset], batch_size: int, start: int
) -> None:
    memory, file = (Batches(dataset, batch_size, seed=1, h_flip=True, device=CPU) for dataset in datasets)
    for k in range(start, start + 9):
        for one, other in zip(memory(k), file(k), strict=True):
            assert (one == other).all()


def test_every_epoch_shows_each_image_once_in_an_order_of_its_own(datasets: tuple[ImageDataset, ImageDataset]) -> None:
    batches = Batches(datasets[1], 5, seed=1, h_flip=False, device=CPU)
    epochs = [torch.cat([batches(k)[1] for k in (2 * epoch, 2 * epoch + 1)]) for epoch in range(3)]
    assert all(epoch.sort().values.tolist() == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_images_carry_their_labels(datasets: tuple[ImageDataset, ImageDataset]) -> None:
    images, labels = Batches(datasets[1], 7, seed=1, h_flip=False, device=CPU)(1)
    assert (images == datasets[0].images[labels]).all()


def test_families_of_streams_name_seeds_that_never_meet_and_the_first_is_the_seed_itself() -> None:
    seeds = [seed_of_streams(seed, streams) for streams in range(4) for seed in range(100)]
    assert seeds[:100] == list(range(100))
    assert len(set(seeds)) == 400 and min(seeds[100:]) > 2**31
