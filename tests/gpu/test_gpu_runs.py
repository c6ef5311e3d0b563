"""Whole runs on the card, with checkpoints and scores: interrupted, and gone on with."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from card import CPU, DEVICE, IS_CARD
from rounding import CALM, differences
from safetensors.torch import load_file

from sagan.config import Config, override
from sagan.training import Trainer

# Of the machine; and shares of few images, of which one moves a share by more than rounding.
_NOT_COMPARED = {"images_per_sec", "peak_memory_mib", "precision", "recall", "density", "coverage", "class_consistency"}


@dataclass(frozen=True)
class Ended:
    """A run at its last step."""

    weights: dict[str, torch.Tensor]
    metrics: dict[str, float]


@pytest.fixture(scope="module")
def calm(tiny: Config) -> Config:
    return override(tiny, CALM)


@pytest.fixture(scope="module", autouse=True)
def deterministic() -> Iterator[None]:
    """cuDNN's choice among its algorithms is then the same each time. That the bits are the same is not asked: fused
    attention and others add up in an order of their own where they please."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def run(config: Config, folder: Path, cache_dir: Path, device: torch.device, until: int | None = None) -> Ended:
    """Goes on with the run in this folder to its last step, or leaves it after the step `until`."""
    folder.mkdir(exist_ok=True)
    trainer = Trainer(config, 0, folder, device=device, cache_dir=cache_dir, compile_backend=None)
    with contextlib.closing(trainer.run()) as events:
        for event in events:
            if event.step == until:
                break
    file = folder / "generator.safetensors"
    return Ended(load_file(file) if file.exists() else {}, event.metrics)


@pytest.fixture(scope="module")
def whole(calm: Config, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return run(calm, tmp_path_factory.mktemp("runs") / "whole", cache_dir, DEVICE)


@pytest.fixture(scope="module")
def left(calm: Config, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left on the card after its third step of six, where it was scored."""
    folder = tmp_path_factory.mktemp("runs") / "left"
    run(calm, folder, cache_dir, DEVICE, until=3)
    return folder


def assert_near(found: Ended, wanted: Ended) -> None:
    for name, difference in differences({n: (found.weights[n], w) for n, w in wanted.weights.items()}).items():
        assert difference < 1e-4, f"{name} differs by {difference:.1e}"
    assert found.metrics.keys() == wanted.metrics.keys()
    for name in wanted.metrics.keys() - _NOT_COMPARED:
        assert found.metrics[name] == pytest.approx(wanted.metrics[name], rel=2e-3, abs=1e-3), name


@pytest.mark.parametrize("device", [DEVICE, CPU], ids=["the card", "the CPU"])
def test_a_run_that_was_left_on_the_card_goes_on_to_the_same_end(
    calm: Config, cache_dir: Path, left: Path, whole: Ended, tmp_path: Path, device: torch.device
) -> None:
    """To rounding, on the card and on the CPU."""
    folder = shutil.copytree(left, tmp_path / "resumed")
    resumed = run(calm, folder, cache_dir, device)
    assert_near(resumed, whole)
    same = all(torch.equal(resumed.weights[name], weight) for name, weight in whole.weights.items())
    print(f"resumed on {device}, the weights have {'the same bits' if same else 'other bits'}")
    assert same or IS_CARD


def test_a_run_on_the_cpu_ends_as_one_on_the_card(calm: Config, cache_dir: Path, whole: Ended, tmp_path: Path) -> None:
    assert_near(run(calm, tmp_path / "on the CPU", cache_dir, CPU), whole)
