"""Images that are kept on the card, and images that are streamed to it: the same batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from benchmarks.measure import random_images
from card import CPU, DEVICE, IS_CARD

from sagan import streams
from sagan.data import ImageDataset
from sagan.data.prepared import ImageFile
from sagan.streams import Batches


@pytest.fixture
def in_memory() -> ImageDataset:
    return random_images(10, 8)


@pytest.fixture
def in_a_file(in_memory: ImageDataset, tmp_path: Path) -> ImageDataset:
    (tmp_path / "images.u8").write_bytes(in_memory.images.numpy().tobytes())
    return replace(in_memory, images=ImageFile(tmp_path / "images.u8", (10, 3, 8, 8)))


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "streamed"])
@pytest.mark.parametrize("source", ["in_memory", "in_a_file"])
def test_batches_on_the_card_equal_the_cpus(
    in_memory: ImageDataset, source: str, kept: bool, request: pytest.FixtureRequest
) -> None:
    """Mirrored ones too, from the middle of the run, and over the ends of epochs, of which one is in a batch."""
    wanted = Batches(in_memory, 4, seed=1, h_flip=True, device=CPU)
    with mock.patch.object(streams, "_fits", lambda *_: kept):
        found = Batches(request.getfixturevalue(source), 4, seed=1, h_flip=True, device=DEVICE)
    if IS_CARD:
        assert (isinstance(found._images, torch.Tensor) and found._images.device == DEVICE) == kept
    for k in range(3, 12):
        for ours, theirs in zip(found(k), wanted(k), strict=True):
            assert ours.device == DEVICE and torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize(("times", "fits"), [(4, False), (5, True)])
def test_images_are_kept_that_fill_less_than_a_quarter_of_the_free_memory(
    in_memory: ImageDataset, times: int, fits: bool
) -> None:
    free = times * in_memory.images.nbytes
    with mock.patch.object(torch.cuda, "mem_get_info", return_value=(free, 10 * free)):
        assert streams._fits(in_memory.images, torch.device("cuda", 0)) == fits


def test_few_images_are_kept_on_a_card(in_memory: ImageDataset) -> None:
    assert streams._fits(in_memory.images, DEVICE) == IS_CARD, "a CPU has them already"
