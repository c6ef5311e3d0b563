from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from sagan.data import ImageDataset, embedded
from sagan.metrics.extractor import load_extractor
from sagan.metrics.features import extract
from sagan.metrics.reference import load_reference
from sagan.metrics.relations import NAMES, measure, measure_of

CPU = torch.device("cpu")


def test_ink_and_its_centre_are_those_of_a_drawn_square() -> None:
    images = torch.full((1, 3, 64, 64), 20, dtype=torch.uint8)
    images[:, :, 8:16, 40:44] += 100  # 32 of the 2,048 pixels of the right half
    found = dict(zip(NAMES, measure(images)[0].tolist(), strict=True))
    assert found["ink left"] == found["x left"] == found["y left"] == 0
    assert found["ink right"] == pytest.approx(100 * 32 / 2048)
    assert (found["x right"], found["y right"]) == pytest.approx((42 - 32, 12 - 32))


def test_parts_of_real_twins_agree_and_the_size_of_the_picture_does_not_matter() -> None:
    for resolution in (32, 64):
        ink, _, y, other_ink, _, other_y = measure(embedded.draw(torch.full((60,), 3), 0, resolution, "easy")).T
        torch.testing.assert_close(ink, other_ink, rtol=0.02, atol=0.1)
        torch.testing.assert_close(y, other_y, rtol=0, atol=0.1)
        assert 5 < y.std() < 9  # uniform over 24 px


def test_parameters_follow_the_order_of_the_images_whoever_extracts_which_part() -> None:
    extractor, labels = load_extractor("embedded-v1", device=CPU), torch.arange(60) % 6
    images = embedded.draw(labels, 3, 64, "easy")
    whole = extract(extractor, [images], labels, CPU, measure=measure).shape_parameters
    torch.testing.assert_close(whole, measure(images))
    parts = [slice(0, 20), slice(20, 60)]
    shares = [extract(extractor, [images[part]], labels, CPU, part, measure=measure) for part in parts]
    torch.testing.assert_close(torch.cat([share.shape_parameters for share in shares]), whole)
    assert extract(extractor, [images], labels, CPU).shape_parameters.shape == (60, 0)


def test_the_reference_keeps_the_parameters_of_the_built_in_pictures_alone(tmp_path: Path) -> None:
    extractor, labels = load_extractor("embedded-v1", device=CPU), torch.arange(60) % 6
    images = embedded.draw(labels, 3, 64, "easy")
    dataset = ImageDataset("embedded", images, labels, embedded.CLASSES, {}, "relations")
    for _ in range(2):  # computed, then read
        torch.testing.assert_close(load_reference(dataset, extractor, tmp_path, CPU).shape_parameters, measure(images))
    other = dataclasses.replace(dataset, name="folder", fingerprint="other")
    assert measure_of(other) is None
    for _ in range(2):
        assert load_reference(other, extractor, tmp_path, CPU).shape_parameters.shape == (60, 0)
