from __future__ import annotations

import pandas as pd
import pytest
import torch
from distortions import DAMAGES, effects, markdown, sds_of_seeds
from torch import Tensor

from sagan.data import embedded

LABELS = torch.arange(12) % 2


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_changes_pictures_and_keeps_their_form(name: str) -> None:
    images = embedded.draw(LABELS, 0, 64)
    found = DAMAGES[name](images, LABELS, torch.Generator().manual_seed(0))
    assert found.shape == images.shape and found.dtype == torch.uint8
    assert not torch.equal(found, images) and torch.equal(images, embedded.draw(LABELS, 0, 64))


def test_effects_are_shifts_in_units_of_the_sd_over_seeds() -> None:
    def evaluate(images: Tensor, labels: Tensor) -> dict[str, float]:
        grain, twins = (float(images[labels == label].double().std()) for label in (0, 1))
        return {"mean": float(images.double().mean()), "grain": grain, "twins": twins, "of no published run": 1.0}

    found = effects(evaluate, 12, 3, {"mean": 0.5, "grain": 1.0, "twins": 1.0})
    sets = [embedded.draw(LABELS, 1000 + i, 64) for i in range(3)]
    sd = torch.stack([images.double().mean() for images in sets]).std()
    shift = DAMAGES["dropped class"](sets[0], LABELS, torch.Generator()).double().mean() - sets[0].double().mean()
    assert found.keys() == {"mean", "grain", "twins"} and found["mean"]["sd of draws"] == pytest.approx(float(sd))
    assert found["mean"]["dropped class"] == pytest.approx(float(shift / 0.5))
    for column in ("twins of two sizes", "twins at two heights"):
        assert found["grain"][column] == 0 and found["twins"][column] != 0
    assert markdown(found).count("\n") == 5


def test_the_sd_over_seeds_is_pooled_within_variants_of_finished_runs_of_all_steps() -> None:
    rows = [("a", 0, 1.0), ("a", 1, 3.0), ("b", 0, 10.0), ("b", 1, 10.0), ("b", 2, 16.0)]
    cells = pd.DataFrame(rows + rows[:1], columns=["config_digest", "seed", "fid"])  # the first in two studies
    cells = cells.assign(state="finished", step=800, steps=800, endpoint=3)
    others = [
        cells.head(1).assign(state="collapsed", seed=7, fid=99.0),
        cells.head(1).assign(steps=200, seed=8, fid=9.0),
    ]
    assert sds_of_seeds(pd.concat([cells, *others])) == {"fid": pytest.approx(((2 + 24) / 3) ** 0.5)}


def test_shifts_beyond_all_noise_are_not_counted_out() -> None:
    unmoved = {"intact": 3.0, "sd of seeds": 0.0, "blur": 0.0, "noise": 0.0, "drop": 0.0}
    moved = {"intact": 1.0, "sd of seeds": 0.0, "blur": float("inf"), "noise": -2e7, "drop": -1.25}
    table = markdown({"real_floor": unmoved, "fid": moved})
    assert table.splitlines()[2:] == ["| `fid` | 1 | 0 | > 9999 | < -9999 | -1.2 |"]
