"""DiffAugment against its definition, written out pixel by pixel (Zhao et al. 2020; DiffAugment_pytorch.py)."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from sagan.augmentation import NUM_DRAWS, augmented
from sagan.config import Config, override

SIZE = 12  # shifts of up to 2 pixels, squares of 6
DRAW = torch.Generator().manual_seed(0)
IMAGES = torch.rand(200, 3, SIZE, SIZE, generator=DRAW, dtype=torch.float64) * 2 - 1
DRAWS = torch.rand(200, NUM_DRAWS, generator=DRAW, dtype=torch.float64)


def test_color_changes_brightness_saturation_and_contrast_in_turn() -> None:
    for before, after, (brightness, saturation, contrast, *_) in zip(
        IMAGES, augmented(IMAGES, DRAWS, ["color"]), DRAWS, strict=True
    ):
        x = before + brightness - 0.5
        x = torch.stack([2 * saturation * channel + (1 - 2 * saturation) * x.mean(0) for channel in x])
        x = (contrast + 0.5) * x + (0.5 - contrast) * x.mean()
        torch.testing.assert_close(after, x)


def test_translation_takes_each_shift_of_an_eighth_or_less_equally_often() -> None:
    """Whole pixels down and right; what comes in is 0."""
    fifths = (torch.arange(5) + 0.5) / 5
    draws = torch.zeros(25, NUM_DRAWS)
    draws[:, 3:5] = torch.cartesian_prod(fifths, fifths)
    shifts = itertools.product(range(-2, 3), repeat=2)
    padded = F.pad(IMAGES[:25], (2, 2, 2, 2))
    moved = augmented(IMAGES[:25], draws, ["translation"])
    for before, after, (down, right) in zip(padded, moved, shifts, strict=True):
        assert torch.equal(after, before[:, 2 - down : 2 - down + SIZE, 2 - right : 2 - right + SIZE])


def test_cutout_blanks_a_square_of_half_the_side_centred_anywhere() -> None:
    """The centre is one of 13 x 13 corners of pixels: what lies outside the image is lost."""
    for before, after, draws in zip(IMAGES, augmented(IMAGES, DRAWS, ["cutout"]), DRAWS, strict=True):
        expected = before.clone()
        row, column = (int(13 * draw) for draw in draws[5:7])
        expected[:, max(0, row - 3) : row + 3, max(0, column - 3) : column + 3] = 0
        assert torch.equal(after, expected)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_the_largest_random_number_stays_within_the_ranges(size: int) -> None:
    """In float32, where 1 - 2^-24 times a range may be rounded to its end."""
    images = torch.ones(1, 3, size, size)
    draws = torch.full((1, NUM_DRAWS), 1 - 2**-24)
    assert augmented(images, draws, ["translation"]).sum() == 3 * (size - size // 8) ** 2
    assert augmented(images, draws, ["cutout"]).sum() == 3 * (size**2 - (size // 4) ** 2)


def test_transforms_are_applied_in_order_and_draw_the_same_numbers_alone_as_together() -> None:
    alone = IMAGES
    for name in ("translation", "color", "cutout"):
        alone = augmented(alone, DRAWS, [name])
    assert torch.equal(augmented(IMAGES, DRAWS, ["translation", "color", "cutout"]), alone)
    assert augmented(IMAGES, None, []) is IMAGES


def test_gradients_flow_through_all_transforms_twice() -> None:
    names = override(Config(), {"data.augment": "color, translation, cutout"}).data.augment
    few, draws = IMAGES[:2, :, :4, :4].clone().requires_grad_(), DRAWS[:2]
    assert torch.autograd.gradcheck(lambda images: augmented(images, draws, names), few)
    assert torch.autograd.gradgradcheck(lambda images: augmented(images, draws, names).square(), few)
