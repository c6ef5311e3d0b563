"""DiffAugment (Zhao et al. 2020, arXiv 2006.10738): random transforms of every image that D sees, real or fake.

Without them D learns a small set of pictures by heart. Because G's gradient flows through the transforms, and fake
images get them as real ones do, G does not learn to draw transformed pictures. Transforms and their ranges are those
of the paper's code (mit-han-lab/data-efficient-gans, DiffAugment_pytorch.py); its random numbers are passed in here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NUM_DRAWS = 7  # for each image: three of color, two of translation, two of cutout
_LARGEST_SHIFT = 1 / 8  # of the image's side
_CUTOUT_SIDE = 1 / 2


def augmented(images: Tensor, draws: Tensor | None, names: Sequence[str]) -> Tensor:
    """`images` (B, 3, R, R) in [-1, 1] after the transforms `names`, in this order; color may leave the range.

    `draws` (B, 7) are uniform in [0, 1). Each transform has columns of its own: with or without the others, it does the
    same to an image.
    """
    for name in names:
        assert draws is not None
        images = _TRANSFORMS[name](images, draws)
    return images


def _color(images: Tensor, draws: Tensor) -> Tensor:
    """Add -0.5 to 0.5; then scale by 0 to 2 around each pixel's mean, and by 0.5 to 1.5 around the image's mean."""
    brightness, saturation, contrast = draws[:, :3, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    level = images.mean((1, 2, 3), keepdim=True)
    return level + (images - level) * (contrast + 0.5)


def _translation(images: Tensor, draws: Tensor) -> Tensor:
    """Move down and right by whole pixels, up to an eighth of the side either way; zeros (grey) come in."""
    size = images.shape[-1]
    limit = int(size * _LARGEST_SHIFT + 0.5)
    shifts = (draws[:, 3:5] * (2 * limit + 1)).long() - limit
    for dim, shift in ((2, shifts[:, 0]), (3, shifts[:, 1])):
        source = torch.arange(size, device=images.device) - shift[:, None]
        source = source[:, None, :, None] if dim == 2 else source[:, None, None, :]
        is_inside = (source >= 0) & (source < size)
        images = images.gather(dim, source.clamp(0, size - 1).expand_as(images)) * is_inside
    return images


def _cutout(images: Tensor, draws: Tensor) -> Tensor:
    """Set a square of half the side to 0 (grey). Its centre may be anywhere, so part of it may lie outside."""
    size = images.shape[-1]
    side = int(size * _CUTOUT_SIDE + 0.5)
    first = (draws[:, 5:7, None] * (size + 1 - side % 2)).long() - side // 2
    line = torch.arange(size, device=images.device)
    is_cut = (line >= first) & (line < first + side)  # (B, 2, R): rows, columns
    return images * ~(is_cut[:, 0, None, :, None] & is_cut[:, 1, None, None, :])


_TRANSFORMS = {"color": _color, "translation": _translation, "cutout": _cutout}
