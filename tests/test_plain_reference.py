"""The fast path against `tests/benchmarks/plain.py`: the same outputs, gradients and training, to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from benchmarks.measure import bare_trainer
from benchmarks.plain import PlainTrainer, pairs
from rounding import CALM, Named, differences, perturb

from sagan.config import Config, override
from sagan.training import Trainer

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
CASES: dict[str, dict[str, Any]] = {
    "32 px": {"data.resolution": 32},
    "32 px with attention": {"data.resolution": 32, "model.attention.at": [8, 16]},
    "64 px": {"data.resolution": 64, "model.width_g": 2, "model.width_d": 2},
    "64 px with attention": {
        "data.resolution": 64,
        "model.width_g": 2,
        "model.width_d": 2,
        "model.attention.at": [32],
    },
    "the paper's attention": {
        "data.resolution": 32,
        "model.attention.at": [16],
        "model.attention.pool": False,
        "model.attention.value_ratio": 8,
        "model.attention.scale": True,
    },
    "other switches": {
        "data.resolution": 32,
        "data.h_flip": True,
        "optim.d_steps": 2,
        "optim.ema_decay": 0,
        "model.sn.g": False,
    },
    "non-saturating loss and R1": {
        "data.resolution": 32,
        "model.attention.at": [8, 16],
        "optim.loss": "non_saturating",
        "optim.r1_gamma": 10,
    },
    "spectral norm of cBN": {"data.resolution": 32, "model.sn.cbn": True},
}
Build = Callable[[str, torch.dtype], tuple[Trainer, PlainTrainer]]

both_precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def build(tiny: Config, tmp_path: Path) -> Iterator[Build]:
    """Makes both trainers of a case, computing in `dtype` throughout, at the same weights; none of these is 0."""

    def build(case: str, dtype: torch.dtype) -> tuple[Trainer, PlainTrainer]:
        torch.set_default_dtype(dtype)
        fast = bare_trainer(override(tiny, {"model.attention.at": [], **CALM, **CASES[case]}), tmp_path)
        perturb(fast)
        return fast, PlainTrainer(fast)

    yield build
    torch.set_default_dtype(torch.float32)


def assert_equal_to_rounding(named: Named) -> None:
    for name, difference in differences(named).items():
        assert difference < TOLERANCE[named[name][1].dtype], f"{name} differs by {difference:.1e}"


@both_precisions
@every_case
def test_the_fast_networks_equal_the_plain_ones_in_output_and_every_gradient(
    build: Build, case: str, dtype: torch.dtype
) -> None:
    fast, plain = build(case, dtype)
    draw = torch.Generator().manual_seed(2)
    # A ReLU whose input float32 rounds across 0 moves gradients by far more than rounding: half of the draws may.
    # Up to 6 of 40 draws did; which ones differs between processors, and of nine hardly ever five do.
    draws = 1 if dtype == torch.float64 else 9
    found = [gradient_differences(fast, plain, draw, dtype) for _ in range(draws)]
    for name in found[0]:
        middle = median(differences[name] for differences in found)
        assert middle < TOLERANCE[dtype], f"{name} differs by {middle:.1e}"


def gradient_differences(
    fast: Trainer, plain: PlainTrainer, draw: torch.Generator, dtype: torch.dtype
) -> dict[str, float]:
    """Of images and logits, which must be equal, and of every parameter's gradient."""
    z, labels = torch.randn(4, 8, generator=draw, dtype=dtype), torch.tensor([0, 2, 1, 2])
    images, plain_images = fast.generator(z, labels), plain.generator(z, labels)
    logits = fast.discriminator(images, labels, update=True)
    plain_logits = plain.discriminator(plain_images, labels)
    outputs = {"images": (images, plain_images), "logits": (logits, plain_logits)}
    assert_equal_to_rounding({name: (a.detach(), b.detach()) for name, (a, b) in outputs.items()})

    pull = torch.randn(4, generator=draw, dtype=dtype)
    logits.backward(pull)
    plain_logits.backward(pull)
    found: dict[str, float] = {}
    for letter, (theirs, ours) in zip("GDA", plain.networks(fast), strict=True):
        gradients = {name: (found.grad, wanted.grad) for name, wanted, found in pairs(theirs, ours)}
        both = {name: (a, b) for name, (a, b) in gradients.items() if a is not None and b is not None}
        trained = [name for name, parameter in ours.named_parameters() if parameter.requires_grad]
        assert list(both) == trained
        if trained:
            found |= {f"{letter}.{name}": value for name, value in differences(both).items()}
        theirs.zero_grad()
        ours.zero_grad()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, torch.float64) for case in CASES), *((case, torch.float32) for case in list(CASES)[:4])],
)
def test_twenty_steps_of_fast_training_equal_twenty_plain_ones(build: Build, case: str, dtype: torch.dtype) -> None:
    fast, plain = build(case, dtype)
    for _ in range(20):
        fast._train_step()
        plain.train_step()
    plain_losses = torch.tensor(plain.losses).sum(0)
    assert_equal_to_rounding({"losses": (fast.sums[:2].flip(0), plain_losses)})
    for theirs, ours in plain.networks(fast):
        assert_equal_to_rounding({n: (found.detach(), wanted.detach()) for n, wanted, found in pairs(theirs, ours)})
