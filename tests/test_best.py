from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sagan import load_generator
from sagan.best import BestOfRun
from sagan.config import Config, override
from sagan.networks import Generator
from sagan.sampling import to_uint8
from sagan.streams import stream
from sagan.training import Event, Trainer

# The scores of the second evaluation are worse at such a rate, without a moving average.
WORSENING = {"optim.ema_decay": 0, "optim.lr_g": 1.0}


def run(trainer: Trainer) -> tuple[dict[int, float], Event]:
    """`fid` by step, and the last event."""
    events = list(trainer.run())
    assert not any(name.startswith("best/") for event in events[:-1] for name in event.metrics)
    return {event.step: event.metrics["fid"] for event in events if "fid" in event.metrics}, events[-1]


@pytest.fixture
def trainer(tiny: Config, tmp_path: Path, cache_dir: Path, request: pytest.FixtureRequest) -> Trainer:
    return Trainer(override(tiny, getattr(request, "param", {})), 0, tmp_path, cache_dir=cache_dir)


@pytest.mark.parametrize("trainer", [WORSENING], indirect=True)
def test_the_best_is_the_evaluation_of_lowest_fid_and_the_generator_file_the_last_step(
    trainer: Trainer, tmp_path: Path
) -> None:
    fid, last = run(trainer)
    assert fid[3] < fid[6]
    assert last.metrics["best/step"] == 3
    state = load_generator(tmp_path / "generator.safetensors")[0].state_dict()
    assert all(torch.equal(tensor, trainer.average.state_dict()[name]) for name, tensor in state.items())
    assert not torch.equal(state["out.weight"], trainer.scorer.best.weights["out.weight"])


def test_the_best_is_scored_again_on_noise_that_no_evaluation_has_seen(trainer: Trainer, tmp_path: Path) -> None:
    """The last evaluation is the best one here, so the generator file holds the weights to score by hand."""
    fid, last = run(trainer)
    assert last.metrics["best/step"] == 6
    generator, _ = load_generator(tmp_path / "generator.safetensors")
    labels = torch.arange(36) % 6
    images = to_uint8(generator(torch.randn(36, 8, generator=stream(0, "best")), labels))
    scores = trainer.scorer.evaluator([images], labels)
    names = ("fid", "is_mean", "intra_fid")
    assert {name: last.metrics[f"best/{name}"] for name in names} == {name: scores[name] for name in names}
    assert scores["fid"] != fid[6]


@pytest.mark.parametrize("trainer", [{"optim.steps": 9, "model.sn.g": False}], indirect=True)
def test_a_run_that_collapses_before_its_end_has_a_best(trainer: Trainer) -> None:
    trainer.scorer.highest_diversity = 1.0
    for event in trainer.run():
        last = event
        if event.step == 4:
            for network in (trainer.generator, trainer.average):
                torch.nn.init.zeros_(network.out.weight)  # grey pictures from here on
                network.out.weight.requires_grad_(False)
    assert (last.step, last.outcome, last.metrics["best/step"]) == (6, "collapsed", 3)


def test_a_run_that_diverges_has_no_best(trainer: Trainer) -> None:
    for event in trainer.run():
        last = event
        if event.step == 4:
            torch.nn.init.constant_(trainer.discriminator.linear.weight, float("nan"))
    assert (last.step, last.outcome) == (5, "diverged")
    assert trainer.scorer.best.step == 3
    assert not any(name.startswith("best/") for name in last.metrics)


def test_what_cannot_be_scored_is_never_the_best(tiny: Config) -> None:
    generator, best = Generator(tiny.model, 32, 6), BestOfRun()
    for fid in (math.nan, math.inf):
        best.offer(1, fid, generator)
    assert not best.weights
    best.offer(2, 5.0, generator)
    best.offer(3, 5.0, generator)
    assert best.step == 2


def test_the_best_is_a_copy_that_further_training_leaves_alone(tiny: Config) -> None:
    generator, best = Generator(tiny.model, 32, 6), BestOfRun()
    best.offer(1, 5.0, generator)
    torch.nn.init.zeros_(generator.out.weight)
    assert best.weights["out.weight"].abs().sum() > 0
