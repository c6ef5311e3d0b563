from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sagan.data import embedded
from sagan.metrics.relations import agreement, measure

TWINS = embedded.CLASSES.index("twins")


def twins(n: int, seed: int, resolution: int = 64, **broken: str) -> Tensor:
    return embedded.draw(torch.full((n,), TWINS), seed, resolution, **broken)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def real() -> Tensor:
    return measure(twins(2000, seed=0))


def discs(radii: tuple[float, float], heights: tuple[float, float], resolution: int) -> Tensor:
    """One picture with sharp discs, drawn here."""
    place = (torch.arange(resolution) + 0.5) * (64 / resolution) - 32
    y, x = torch.meshgrid(place, place, indexing="ij")
    inside = torch.zeros(resolution, resolution, dtype=torch.bool)
    for radius, middle_x, middle_y in zip(radii, (-16, 16), heights, strict=True):
        inside |= (x - middle_x) ** 2 + (y - middle_y) ** 2 < radius**2
    ink, ground = (torch.tensor(colour, dtype=torch.uint8)[:, None, None] for colour in (embedded.INK, embedded.GROUND))
    return torch.where(inside, ink, ground)[None]


@pytest.mark.parametrize("resolution", [64, 128])
def test_area_and_height_of_each_disc_are_read_off_a_picture(resolution: int) -> None:
    found = measure(discs((8, 10), (-9, 4), resolution))[0].tolist()
    inks = math.pi * 8**2 / (32 * 64), math.pi * 10**2 / (32 * 64)
    assert found == pytest.approx([*inks, -9, 4], rel=0.03, abs=0.05)


def test_haze_and_noise_of_the_ground_are_ink() -> None:
    images = twins(100, seed=4)
    noise = 13 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (images + noise).round().clamp(0, 255).to(torch.uint8)
    more = (measure(noisy) - measure(images))[:, :2]
    assert more.min() > 0


def test_an_empty_picture_has_no_ink_and_the_middle_height() -> None:
    ground = torch.tensor(embedded.GROUND, dtype=torch.uint8)[None, :, None, None].expand(1, 3, 64, 64)
    assert measure(ground).abs().max() < 1e-3


def test_error_equals_the_energy_distance_written_out(rng: torch.Generator) -> None:
    x, y = torch.randn(30, 4, generator=rng), torch.randn(40, 4, generator=rng) * 2
    one, other = (x / y.std(0)).double().tolist(), (y / y.std(0)).double().tolist()

    def distance(p: list[float], q: list[float]) -> float:
        ink_left, ink_right, height_left, height_right = (a - b for a, b in zip(p, q, strict=True))
        together = (ink_left + ink_right) ** 2 + (height_left + height_right) ** 2
        apart = (ink_left - ink_right) ** 2 + (height_left - height_right) ** 2
        return math.sqrt((together + apart / 0.3**2) / 2)

    def mean_distance(a: list[list[float]], b: list[list[float]]) -> float:
        return sum(distance(p, q) for p in a for q in b) / (len(a) * len(b))

    expected = 2 * mean_distance(one, other) - mean_distance(one, one) - mean_distance(other, other)
    assert agreement(x, y)["relation_error"] == pytest.approx(expected, rel=1e-4)


def test_real_twins_score_the_floor_on_average_and_agree_fully(real: Tensor) -> None:
    found = [agreement(measure(twins(300, seed)), real) for seed in range(1, 13)]
    for one in found:
        assert one["relation_correlation"] > 0.99 and one["relation_spread"] == pytest.approx(1, abs=0.1)
    mean = sum(one["relation_error"] for one in found) / len(found)
    assert mean == pytest.approx(found[0]["relation_floor"], rel=0.5)


def test_standard_error_is_the_spread_over_redraws(real: Tensor) -> None:
    """Of pictures with an error of their own; at the floor the first order vanishes."""
    found = [agreement(measure(twins(300, seed, broken="size")), real) for seed in range(1, 25)]
    spread = torch.tensor([one["relation_error"] for one in found]).std()
    mean = sum(one["relation_error_se"] for one in found) / len(found)
    assert mean == pytest.approx(float(spread), rel=0.5)


def test_disagreement_collapse_and_another_law_all_raise_the_error(real: Tensor, rng: torch.Generator) -> None:
    whole = measure(twins(600, seed=1))
    found = {
        name: agreement(parameters, real)
        for name, parameters in {
            "real": whole,
            "two sizes": measure(twins(600, seed=1, broken="size")),
            "two heights": measure(twins(600, seed=1, broken="height")),
            "collapsed": whole[:1] + 0.01 * real.std(0) * torch.randn(600, 4, generator=rng),
            "smaller": whole * torch.tensor([0.6, 0.6, 1, 1]),
            "one picture": whole[:1].expand(50, 4),
        }.items()
    }
    least = 10 * found["real"]["relation_error"]
    assert all(found[name]["relation_error"] > least for name in found if name != "real")
    for name in ("two sizes", "two heights"):  # the other pair still agrees
        assert abs(found[name]["relation_correlation"]) < 0.1
        assert 0.5 < found[name]["relation_error"] < found["one picture"]["relation_error"] / 2, "collapse is worse"
    assert found["collapsed"]["relation_spread"] < 0.1
    assert found["smaller"]["relation_spread"] == pytest.approx(0.6, abs=0.05), "the least of the four"
    same = found["one picture"]
    assert abs(same["relation_correlation"]) < 1e-6 and same["relation_spread"] < 1e-6 and same["relation_error"] > 0.3


def test_too_few_pictures_have_no_error(real: Tensor) -> None:
    assert agreement(real[:7], real) == {}
