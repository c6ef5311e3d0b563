from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sagan.data import embedded
from sagan.metrics.diversity import COLLAPSED, class_diversity, thumbnails

LABELS = torch.arange(1200) % 2


@pytest.fixture(scope="module")
def real() -> Tensor:
    return thumbnails(embedded.draw(LABELS, 0, 64))


@pytest.fixture(scope="module")
def fresh() -> Tensor:
    return embedded.draw(LABELS, 4, 64)


def test_thumbnails_are_means_over_squares() -> None:
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[0, 1, :2, 2:4] = torch.tensor([[10, 20], [30, 41]], dtype=torch.uint8)
    expected = torch.zeros(3, 8, 8)
    expected[1, 0, 1] = 25  # 25.25 rounded
    assert torch.equal(thumbnails(images)[0], expected.to(torch.uint8).flatten())


def test_diversity_is_the_ratio_of_mean_distances_to_the_nearest_other(rng: torch.Generator) -> None:
    ours, theirs = (torch.randint(256, (n, 5), generator=rng).to(torch.uint8) for n in (12, 9))
    labels, other_labels = torch.arange(12) % 2, torch.arange(9) % 2

    def nearest(rows: Tensor) -> float:
        pairs = [[float((a.double() - b).norm()) for b in rows.double() if b is not a] for a in rows]
        return sum(sorted(row)[1] for row in pairs) / len(rows)  # the first is the row itself

    found = class_diversity(ours, labels, theirs, other_labels)
    for label, count in ((0, 5), (1, 4)):
        expected = nearest(ours[labels == label][:count]) / nearest(theirs[other_labels == label][:count])
        assert found[label] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("each", [200, 50, 20])
def test_other_real_pictures_are_as_diverse_however_many(each: int, real: Tensor, fresh: Tensor) -> None:
    found = class_diversity(thumbnails(fresh[: 2 * each]), LABELS[: 2 * each], real, LABELS)
    assert sum(found.values()) / 2 == pytest.approx(1, abs=0.1)


def test_pictures_that_repeat_are_collapsed_also_under_noise(real: Tensor, fresh: Tensor, rng: torch.Generator) -> None:
    for few in (1, 2, 5, 20):
        chosen = fresh[torch.arange(1200) % 2 + 2 * torch.randint(few, (1200,), generator=rng)]
        assert max(class_diversity(thumbnails(chosen), LABELS, real, LABELS).values()) < 0.5 * COLLAPSED
    noise = 5 * torch.randn(fresh.shape, generator=rng)
    noisy = (fresh[torch.arange(1200) % 2] + noise).round().clamp(0, 255).to(torch.uint8)
    assert max(class_diversity(thumbnails(noisy), LABELS, real, LABELS).values()) < COLLAPSED


def test_pictures_of_half_the_real_spread_are_not_collapsed(real: Tensor, fresh: Tensor) -> None:
    drawn = thumbnails(fresh).float()
    for label in range(2):
        rows = LABELS == label
        drawn[rows] = drawn[rows].mean(0) + 0.5 * (drawn[rows] - drawn[rows].mean(0))
    found = class_diversity(drawn.round().to(torch.uint8), LABELS, real, LABELS)
    assert min(found.values()) > 1.5 * COLLAPSED


def test_classes_without_two_pictures_on_either_side_and_repeated_real_ones_are_left_out(real: Tensor) -> None:
    labels, same = torch.tensor([0, 0, 1, 2, 2]), real[:1].expand(5, -1)
    assert class_diversity(same, labels, real[:5], torch.tensor([0, 0, 1, 1, 2])) == {0: 0.0}
    assert class_diversity(real[:5], labels, same, labels) == {}
