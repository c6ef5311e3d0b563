"""Diversity within a class: how far apart the most similar pictures of a class are, as a share of the real figure.

If a generator has learnt one picture of each class, or a few, its samples do not vary within a class; over all classes
together they vary as the real ones do, a Gaussian fitted to their features is much like the real one, and an extractor
recognises every class (one real picture per class: FD 6.1 with `embedded-v2`; twins of two sizes: 16).

The spread about the class mean does not show it either: of two pictures repeated it is 0.6 of the real one, more than
that of some generators that do vary. Distances to the nearest other picture do: repeated pictures have none.
They are taken between thumbnails, in which noise averages out; an extractor's features may spread more for poor
pictures than for real ones. The figure shows collapse only: poor pictures can be more diverse than real ones. Twins
vary in two numbers only, and generated ones that deviate from these lie further apart, up to six times at the start.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Share of the real figure below which a class has collapsed. Measured at 64 px, 100 pictures per class, grain / twins:
# other real pictures 0.97 to 1.00 / 0.88 to 1.03; five generators of width 4 or 8 after 1,600 steps 0.53 to 0.64 /
# 1.0 to 1.5; one generator, scored eight times within its first 400 steps, 0.34 to 0.71 / 3.0 to 6.1. One picture
# repeated 0 / 0, under a noise of 2 % 0.02 / 0.17; twenty pictures repeated under that noise 0.02 / 0.19, fifty 0.15 /
# 0.33.
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
