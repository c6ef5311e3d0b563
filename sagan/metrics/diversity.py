"""Diversity within a class: how far apart the most similar pictures of a class are, as a share of the real figure.

Neither FD nor the spread about the class mean shows a generator that has learnt a few pictures of each class: of two
pictures repeated that spread is 0.6 of the real one, more than that of some generators that do vary. Distances to the
nearest other picture do. They are taken between thumbnails, in which noise averages out. The figure shows collapse
only: poor pictures can be more diverse than real ones, generated twins up to six times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Share of the real figure below which a class has collapsed. Measured at 64 px, 100 pictures per class, grain / twins:
# other real pictures 0.97 to 1.00 / 0.88 to 1.03; generators in training 0.34 to 0.71 / 1.0 to 6.1; twenty pictures
# repeated under a noise of 2 % 0.02 / 0.19, fifty 0.15 / 0.33.
COLLAPSED = 0.25
_SIDE = 8  # pixels of a thumbnail
_ROWS = 100  # pictures of a class that are compared, at most


def thumbnails(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W], sides divisible by 8 -> uint8 [B, 192], the means over squares, on the same device."""
    small = F.avg_pool2d(images.float(), images.shape[-1] // _SIDE)
    return small.round_().to(torch.uint8).flatten(1)


def class_diversity(generated: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> dict[int, float]:
    """By label: mean distance of a picture to the nearest other one of its class, over that of real pictures.

    uint8 thumbnails [n, 192] and [m, 192] with their labels; 1 means as diverse as real pictures, 0 that every picture
    has a copy. The nearest of many is nearer than that of few, so as many pictures are taken on either side: the
    first 100, or as many as both have. Classes with fewer than two on either side are left out, and so are
    those whose real pictures are all repeated.
    """
    found = {}
    for label in labels.unique().tolist():
        ours, theirs = generated[labels == label], real[real_labels == label]
        n = min(len(ours), len(theirs), _ROWS)
        if n > 1 and (wanted := _nearest(theirs[:n])) > 0:
            found[int(label)] = _nearest(ours[:n]) / wanted
    return found


def _nearest(rows: Tensor) -> float:
    """Mean distance of [n, p] rows to the nearest other one."""
    values = rows.float()
    # Not by a matrix product, which leaves a distance between equal rows.
    distances = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")
    return float(distances.fill_diagonal_(torch.inf).amin(1).mean())
