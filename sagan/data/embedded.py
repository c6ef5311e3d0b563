"""The built-in data set: pictures drawn from a seed, one class for each side of the paper's claim (section 1, Fig. 6).

What the two classes are and why is in sagan/README.md (The built-in data set). The coordinates are those of a 64 px
picture whatever the resolution.

Every machine draws the same bytes: the arithmetic is +, -, *, /, sqrt, floor and comparisons alone, which IEEE 754
rounds in one way only. Sines, matrix products and sums over an axis differ between processors; none is used.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CLASSES = ("grain", "twins")
GROUPS: dict[str, tuple[int, ...]] = {"texture": (0,), "geometry": (1,)}
IMAGES_PER_CLASS = 3000

INK = (236, 196, 92)
GROUND = (28, 28, 40)
BROKEN: tuple[Literal["size", "height"], ...] = ("size", "height")

# Of the twins, in pixels of the 64 px picture.
_APART = 16.0  # from the middle of the picture to the middle of a disc, to either side
_RADII = (5.0, 12.0)
_HEIGHTS = (-14.0, 14.0)
_EDGE = 4.0  # width over which the disc fades into the background: small generators are worst at sharp edges
_LATTICE = 10.0  # of the grain

_Array = NDArray[Any]  # float32


def draw(labels: Tensor, seed: int, resolution: int, broken: Literal["size", "height"] | None = None) -> Tensor:
    """Pictures of the classes `labels` [N]: uint8 [N, 3, resolution, resolution].

    `broken` removes a relation of the twins: each disc has a size or a height of its own, with the same distribution.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    images = np.empty((len(labels), 3, resolution, resolution), dtype=np.uint8)
    pixels = ((np.arange(resolution) + 0.5) * (64 / resolution) - 32).astype(np.float32)
    ground, ink = (np.asarray(colour, dtype=np.float32)[None, :, None, None] for colour in (GROUND, INK))
    for start in range(0, len(labels), 500):  # bounds the memory of the coordinate arrays
        chunk = labels[start : start + 500].numpy()
        coverage = np.empty((len(chunk), 1, resolution, resolution), dtype=np.float32)
        grain, twins = chunk == CLASSES.index("grain"), chunk == CLASSES.index("twins")
        coverage[grain, 0] = _grain(pixels, int(grain.sum()), rng)
        coverage[twins, 0] = _twins(pixels, int(twins.sum()), rng, broken)
        for few in range(0, len(chunk), 20):  # faster: they stay in the processor's cache
            covered = coverage[few : few + 20]
            painted = ground * (1 - covered) + ink * covered + np.float32(0.5)
            images[start + few : start + few + 20][: len(covered)] = painted  # cut off to whole numbers
    return torch.from_numpy(images)


def _grain(pixels: _Array, n: int, rng: np.random.Generator) -> _Array:
    """Random values on a lattice that lies anywhere, and a smooth cubic between them: coverage [n, h, w]."""
    knots = int(64 / _LATTICE) + 3
    values = rng.uniform(-0.25, 1.25, (n, knots, knots)).astype(np.float32)
    (below_y, part_y), (below_x, part_x) = (_between_knots(pixels, n, rng) for _ in range(2))
    left, right = (np.take_along_axis(values, below_x[:, None, :] + step, 2) for step in (0, 1))
    rows = left * (1 - part_x[:, None, :]) + right * part_x[:, None, :]  # [n, knots, w]
    upper, lower = (np.take_along_axis(rows, below_y[:, :, None] + step, 1) for step in (0, 1))
    mixed: _Array = np.clip(upper * (1 - part_y[:, :, None]) + lower * part_y[:, :, None], 0, 1)
    return mixed


def _between_knots(pixels: _Array, n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], _Array]:
    """The knot before each pixel and the weight of the one after it, [n, pixels] each."""
    place = (pixels[None] + np.float32(32)) / np.float32(_LATTICE) + rng.uniform(0, 1, (n, 1)).astype(np.float32)
    below = np.floor(place)
    part = place - below
    return below.astype(np.int64), part * part * (3 - 2 * part)


def _twins(pixels: _Array, n: int, rng: np.random.Generator, broken: Literal["size", "height"] | None) -> _Array:
    """Two discs: coverage [n, h, w]."""
    x, y = pixels[None, None, :], pixels[None, :, None]
    radii, heights = (rng.uniform(*limits, (2, n, 1, 1)).astype(np.float32) for limits in (_RADII, _HEIGHTS))
    if broken != "size":
        radii[1] = radii[0]
    if broken != "height":
        heights[1] = heights[0]
    left, right = (
        radius - np.sqrt((x - np.float32(middle)) * (x - np.float32(middle)) + (y - height) * (y - height))
        for middle, radius, height in zip((-_APART, _APART), radii, heights, strict=True)
    )
    inside: _Array = np.clip(np.maximum(left, right) / np.float32(_EDGE) + np.float32(0.5), 0, 1)
    return inside
