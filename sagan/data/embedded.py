"""The built-in data set: pictures drawn from a seed, in two families after the paper's claim (section 1, Fig. 6).

*Texture* classes are stationary, so local statistics say all about them. In *geometry* classes parts that lie far
apart must agree: twins have the same size and height, rings and frames must close. The coordinates are those of a
64 px picture whatever the resolution.

Every machine draws the same bytes: the arithmetic is +, -, *, /, sqrt, floor and comparisons alone, which IEEE 754
rounds in one way only. Sines, matrix products and sums over an axis differ between processors; none is used.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CLASSES = ("stripes", "checks", "blobs", "twins", "rings", "frames")
GROUPS: dict[str, tuple[int, ...]] = {"texture": (0, 1, 2), "geometry": (3, 4, 5)}
IMAGES_PER_CLASS = 1000

_COLOURS = ((230, 70, 60), (80, 200, 100), (80, 130, 240), (240, 205, 70))
_GROUND = (24, 24, 32)

_Array = NDArray[Any]  # float32


def draw(labels: Tensor, seed: int, resolution: int, difficulty: Literal["easy", "hard"]) -> Tensor:
    """Pictures of the classes `labels` [N]: uint8 [N, 3, resolution, resolution].

    "easy": four colours on one dark ground, upright. "hard": free colours and orientation.
    """
    picture = np.random.Generator(np.random.Philox(seed))
    images = np.empty((len(labels), 3, resolution, resolution), dtype=np.uint8)
    for start in range(0, len(labels), 500):  # bounds the memory of the coordinate arrays
        chunk = labels[start : start + 500].numpy()
        images[start : start + 500] = _draw_chunk(chunk, picture, resolution, difficulty == "hard")
    return torch.from_numpy(images)


def _draw_chunk(labels: NDArray[np.int64], rng: np.random.Generator, resolution: int, hard: bool) -> NDArray[np.uint8]:
    pixels = ((np.arange(resolution) + 0.5) * (64 / resolution) - 32).astype(np.float32)
    coverage = np.empty((len(labels), resolution, resolution), dtype=np.float32)
    for label, shape in enumerate((_stripes, _checks, _blobs, _twins, _rings, _frames)):
        chosen = labels == label
        n = int(chosen.sum())
        t = rng.uniform(-1, 1, (n, 1, 1)).astype(np.float32) * np.float32(hard)
        cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)  # a rotation without a cosine
        x, y = pixels[None, None, :], pixels[None, :, None]
        signed = shape(cos * x + sin * y, cos * y - sin * x, rng)
        coverage[chosen] = np.clip(0.5 - signed * np.float32(resolution / 64), 0, 1)
    return _paint(coverage, rng, hard)


def _paint(coverage: _Array, rng: np.random.Generator, hard: bool) -> NDArray[np.uint8]:
    n = len(coverage)
    colour = np.asarray(_COLOURS, dtype=np.float32)[rng.integers(0, len(_COLOURS), n)]
    ground = np.broadcast_to(np.asarray(_GROUND, dtype=np.float32), (n, 3))
    if hard:
        colour = rng.uniform(90, 250, (n, 3)).astype(np.float32)
        ground = rng.uniform(10, 70, (n, 3)).astype(np.float32)
    ink = coverage[:, None]
    mixed = ground[:, :, None, None] * (1 - ink) + colour[:, :, None, None] * ink
    painted: NDArray[np.uint8] = np.floor(mixed + np.float32(0.5)).astype(np.uint8)
    return painted


# Each figure is a signed distance in pixels of the 64 px picture, negative inside: [n, h, w] from coordinates that
# run from -32 to 32.


def _uniform(rng: np.random.Generator, low: float, high: float, like: _Array) -> _Array:
    return rng.uniform(low, high, (len(like), 1, 1)).astype(np.float32)


def _wave(position: _Array, period: _Array, phase: _Array) -> _Array:
    """Distance to the edge of bars that fill half of every period."""
    turn = position / period + phase
    return (np.abs(turn - np.floor(turn) - np.float32(0.5)) - np.float32(0.25)) * period


def _stripes(x: _Array, y: _Array, rng: np.random.Generator) -> _Array:
    return _wave(x, _uniform(rng, 12, 18, x), _uniform(rng, 0, 1, x))


def _checks(x: _Array, y: _Array, rng: np.random.Generator) -> _Array:
    period = _uniform(rng, 22, 32, x)
    across = _wave(x, period, _uniform(rng, 0, 1, x))
    down = _wave(y, period, _uniform(rng, 0, 1, x))
    return np.where((across < 0) == (down < 0), -1, 1) * np.minimum(np.abs(across), np.abs(down))


def _blobs(x: _Array, y: _Array, rng: np.random.Generator) -> _Array:
    signed = np.full(np.broadcast_shapes(x.shape, y.shape), 64, dtype=np.float32)
    for row in range(-2, 3):
        for column in range(-2, 3):
            dx = x - (np.float32(18 * column) + _uniform(rng, -3, 3, x))
            dy = y - (np.float32(18 * row) + _uniform(rng, -3, 3, x))
            signed = np.minimum(signed, np.sqrt(dx * dx + dy * dy) - _uniform(rng, 5, 7, x))
    return signed


def _twins(x: _Array, y: _Array, rng: np.random.Generator) -> _Array:
    dx = np.abs(x) - _uniform(rng, 14, 18, x)
    dy = y - _uniform(rng, -12, 12, x)
    signed: _Array = np.sqrt(dx * dx + dy * dy) - _uniform(rng, 7, 11, x)
    return signed


def _rings(x: _Array, y: _Array, rng: np.random.Generator) -> _Array:
    dx, dy = x - _uniform(rng, -4, 4, x), y - _uniform(rng, -4, 4, x)
    return _outline(np.sqrt(dx * dx + dy * dy), rng)


def _frames(x: _Array, y: _Array, rng: np.random.Generator) -> _Array:
    dx, dy = x - _uniform(rng, -4, 4, x), y - _uniform(rng, -4, 4, x)
    return _outline(np.maximum(np.abs(dx), np.abs(dy)), rng)


def _outline(radius: _Array, rng: np.random.Generator) -> _Array:
    """The line where `radius`, a distance from the centre, has a certain value."""
    signed: _Array = np.abs(radius - _uniform(rng, 15, 20, radius)) - _uniform(rng, 3.5, 5, radius)
    return signed
