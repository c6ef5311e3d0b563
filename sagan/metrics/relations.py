"""Do distant parts of a picture agree? Measured on the pixels, without a network, for data of a known distribution.

For the built-in twins (sagan/data/embedded.py) four parameters can be measured in a picture: for each half, how much of
it is covered by the disc (its *ink*) and the height of the disc. The error is the distance between the generated and
the real distribution of these four numbers, not the disagreement of the halves: a generator that paints one pair of
equal twins over and over has no disagreement and has learnt nothing. In that distance disagreement has a unit of its
own: in units of the real spread, twins without any relation are closer to real ones than trained generators are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sagan.data import ImageDataset, embedded

FORMAT = 4  # raise it when `measure` changes: parameters of real pictures are cached
VERSION = 2  # of the error, in the metrics' fingerprint. 1 had _DISAGREEMENT = 1.
_PAIRS = ((0, 1), (2, 3))  # parameters, numbered as `measure` gives them, that agree in a real picture
# The unit of disagreement, which has no spread in real pictures, as a share of the real sd of the parts. With 0.3 twins
# of independent sizes score 0.6; with 1 they would score 0.07, where trained generators score 0.2. A single picture
# over and over scores 2 to 4 with any unit, and with 0.1 that would be no more than independent sizes (3.4).
_DISAGREEMENT = 0.3
_FEWEST = 8  # pictures; of fewer no distance is taken
_LEAST_SD = 1e-3  # in units of the real sd; a parameter that varies less counts as constant, without correlation


def measure(images: Tensor) -> Tensor:
    """Of images uint8 [B, 3, H, W] the ink left and right, and the height left and right: float32 [B, 4].

    Ink is the share of a half that is covered, 0 to 1; height the mean row of the ink in pixels of a 64 px picture,
    -32 to 32 from its middle. A half without ink has height 0. Everything brighter than the background is ink: haze
    and noise, which real pictures have none of, count too.
    """
    side = images.shape[3]
    ground, ink = (sum(colour) / 3 for colour in (embedded.GROUND, embedded.INK))
    covered = ((images.float().mean(1) - ground) / (ink - ground)).clamp(0, 1)
    covered_BSHW = torch.stack([covered[:, :, : side // 2], covered[:, :, side // 2 :]], 1)
    rows = (torch.arange(images.shape[2], device=images.device) + 0.5) * (64 / side) - 32
    height_BS = (covered_BSHW.sum(3) * rows).sum(2) / covered_BSHW.sum((2, 3)).clamp(min=1)
    return torch.cat([covered_BSHW.mean((2, 3)), height_BS], 1)


def measure_of(dataset: ImageDataset) -> Callable[[Tensor], Tensor] | None:
    """`measure` for the built-in pictures, whose distribution is known; None for others."""
    return measure if dataset.name == "embedded" else None


def agreement(generated: Tensor, real: Tensor) -> dict[str, float]:
    """How closely parameters [n, 4] follow the real ones [m, 4]; {} for fewer than eight on either side.

    `relation_error` is the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Székely & Rizzo 2013, section 2) of
    the sums and differences of parts that must agree, both over sqrt(2), in units of the real standard deviation of the
    parts; the differences in units of 0.3 of it. It is 0 only for equal distributions, so it counts disagreement,
    collapse and wrong proportions at once. Pairs of a picture with itself are included, which keeps it above 0:
    `relation_floor` is what as many real pictures score on average. `relation_error_se` is its standard error from the
    choice of the generated pictures, that of the mean of each one's share (the first order of the V statistic).
    `relation_correlation` is that of parts that must agree: the smallest over the pairs, 1 in real twins.
    `relation_spread` is the sd within the generated pictures over the real one: the smallest over the parameters.
    """
    if min(len(generated), len(real)) < _FEWEST:
        return {}
    sd = real.std(0)
    x, y = _sums_and_differences(generated / sd), _sums_and_differences(real / sd)
    across, within_x, within_y = torch.cdist(x, y), torch.cdist(x, x), torch.cdist(y, y)
    spread_real = float(within_y.sum() / (len(y) * (len(y) - 1)))  # of different pictures
    share = 2 * (across.mean(1) - within_x.mean(1))
    centred = (generated - generated.mean(0)) / sd
    centred = centred / centred.square().mean(0).sqrt().clamp(min=_LEAST_SD)
    return {
        "relation_error": float(2 * across.mean() - within_x.mean() - within_y.mean()),
        "relation_error_se": float(share.std() / len(x) ** 0.5),
        "relation_floor": spread_real * (1 / len(x) + 1 / len(y)),
        "relation_correlation": float(torch.stack([(centred[:, a] * centred[:, b]).mean() for a, b in _PAIRS]).min()),
        "relation_spread": float((generated.std(0) / sd).min()),
    }


def _sums_and_differences(parameters: Tensor) -> Tensor:
    first, second = (parameters[:, list(indices)] for indices in zip(*_PAIRS, strict=True))
    return torch.cat([first + second, (first - second) / _DISAGREEMENT], 1) / 2**0.5
