from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sagan import load_generator
from sagan.config import Config, override
from sagan.data import embedded
from sagan.networks import Generator
from sagan.sampling import to_uint8
from sagan.scoring import BestOfRun
from sagan.streams import stream
from sagan.training import Trainer


@pytest.fixture
def trainer(tiny: Config, tmp_path: Path, cache_dir: Path, request: pytest.FixtureRequest) -> Trainer:
    return Trainer(override(tiny, getattr(request, "param", {})), 0, tmp_path, cache_dir=cache_dir)


def copied(network: Generator) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(("fids", "best"), [((1.0, 2.0), 3), ((2.0, 1.0), 6)], ids=["gets worse", "gets better"])
def test_the_best_is_the_evaluation_of_lowest_fid_and_the_generator_file_the_last_step(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fids: tuple[float, float], best: int
) -> None:
    """The `fid` are given: which evaluation scores better after so few steps depends on the processor."""
    evaluate, given = trainer.scorer.evaluator, iter(fids)

    def scores(*arguments: Any) -> dict[str, float]:
        found = evaluate(*arguments)
        return {**found, "fid": next(given, found["fid"])}  # the best is scored again last

    monkeypatch.setattr(trainer.scorer, "evaluator", scores)
    scored: dict[int, dict[str, Tensor]] = {}
    for event in trainer.run():
        assert event.outcome or not any(name.startswith("best/") for name in event.metrics)
        if "fid" in event.metrics:
            assert event.metrics["fid"] == fids[len(scored)]
            scored[event.step] = copied(trainer.average)
    assert list(scored) == [3, 6] and not equal(scored[3], scored[6])
    assert event.metrics["best/step"] == best
    assert equal(trainer.scorer.best.weights, scored[best])
    assert equal(load_generator(tmp_path / "generator.safetensors")[0].state_dict(), scored[6])


def test_the_best_is_scored_again_on_noise_that_no_evaluation_has_seen(trainer: Trainer, tmp_path: Path) -> None:
    events = list(trainer.run())
    generator, _ = load_generator(tmp_path / "generator.safetensors")
    generator.load_state_dict(trainer.scorer.best.weights)
    labels = torch.arange(36) % 2
    images = to_uint8(generator(torch.randn(36, 8, generator=stream(0, "best")), labels))
    scores = trainer.scorer.evaluator([images], labels)
    names = ("fid", "is")  # 18 pictures a class are too few for a distance by class
    assert {name: events[-1].metrics[f"best/{name}"] for name in names} == {name: scores[name] for name in names}
    assert scores["fid"] not in [event.metrics.get("fid") for event in events]


@pytest.mark.parametrize("trainer", [{"optim.steps": 9, "model.sn.g": False}], indirect=True)
def test_a_run_that_collapses_before_its_end_has_a_best(trainer: Trainer) -> None:
    trainer.scorer.has_varied = True
    for event in trainer.run():
        last = event
        if event.step == 4:
            for network in (trainer.generator, trainer.average):
                torch.nn.init.zeros_(network.out.weight)  # grey pictures from here on
                network.out.weight.requires_grad_(False)
    assert (last.step, last.outcome, last.metrics["best/step"]) == (6, "collapsed", 3)
    assert last.metrics["sample_diversity"] < 0.1 and last.metrics["collapsed_classes"] == 1


def test_a_run_collapses_only_after_an_evaluation_that_had_not(trainer: Trainer) -> None:
    """At its first evaluations a generator may paint one class alike, and another of noise that varies a lot."""
    alike = {"sample_diversity": 0.05, "class_diversity": 0.05}
    assert not trainer.scorer.has_collapsed(alike, is_last=False)
    assert trainer.scorer.has_collapsed(alike, is_last=True), "a run that ends so has collapsed, whatever came before"
    found = []
    for grain in (0.2, 0.35, 0.2, 0.6, 0.35, 0.2):  # 0.25 is the limit; a class has varied from twice that on
        scores = {"class_diversity": (grain + 3.6) / 2, "class_diversity/grain": grain, "class_diversity/twins": 3.6}
        scores |= {"sample_diversity": 1.0, "collapsed_classes": float(grain < 0.25) / 2}
        found.append(trainer.scorer.has_collapsed(scores, is_last=False))
    assert found == [False, False, False, False, False, True]


@pytest.mark.parametrize("trainer", [{"eval.num_samples": 120}], indirect=True)
def test_one_real_picture_a_class_ends_a_run_as_collapsed_and_is_never_its_best(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real pictures are scored in place of the generator's: 120 at step 3, two of them repeated at step 6."""
    evaluate, real = trainer.scorer.evaluator, embedded.draw(torch.arange(120) % 2, 9, 32)
    shown = iter([real, real[:2].repeat(60, 1, 1, 1)])

    def scores(images: Iterable[Tensor], labels: Tensor, shard: slice) -> dict[str, float]:
        batches = list(images)
        return evaluate([next(shown, torch.cat(batches))], labels, shard)

    monkeypatch.setattr(trainer.scorer, "evaluator", scores)
    scored = [event for event in trainer.run() if "fid" in event.metrics]
    assert [event.metrics["collapsed_classes"] for event in scored] == [0, 1]
    assert scored[-1].metrics["fid"] > 0 and scored[-1].outcome == "collapsed"
    assert scored[-1].metrics["best/step"] == 3


def test_a_run_that_diverges_has_no_best(trainer: Trainer) -> None:
    for event in trainer.run():
        last = event
        if event.step == 4:
            torch.nn.init.constant_(trainer.discriminator.linear.weight, float("nan"))
    assert (last.step, last.outcome) == (5, "diverged")
    assert all(math.isfinite(value) for value in last.metrics.values())
    assert trainer.scorer.best.step == 3
    assert not any(name.startswith("best/") for name in last.metrics)


def test_the_best_is_a_copy_of_the_first_that_scores_lowest_and_never_of_what_cannot_be_scored(tiny: Config) -> None:
    generator, best = Generator(tiny.model, 32, 2), BestOfRun()
    for fid in (math.nan, math.inf):
        best.offer(1, fid, generator)
    assert not best.weights
    best.offer(2, 5.0, generator)
    best.offer(3, 5.0, generator)
    torch.nn.init.zeros_(generator.out.weight)
    assert best.step == 2 and best.weights["out.weight"].abs().sum() > 0
