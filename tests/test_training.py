from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from sagan import load_generator
from sagan.checkpoint import load_checkpoint
from sagan.config import Config, override
from sagan.scoring import BestOfRun
from sagan.training import Event, Trainer

TIMED = {"images_per_sec", "peak_memory_mib"}


def trained(config: Config, directory: Path, cache_dir: Path, seed: int = 0) -> tuple[Trainer, list[Event]]:
    directory.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, seed, directory, cache_dir=cache_dir, checkpoint_every=2)
    return trainer, list(trainer.run())


def state_of(directory: Path) -> dict[str, Any]:
    state = load_checkpoint(directory)
    assert state is not None
    return state


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        return {k: v for key, value in node.items() for k, v in leaves(value, f"{prefix}/{key}").items()}
    if isinstance(node, list):
        return leaves(dict(enumerate(node)), prefix)
    return {prefix: node}


def assert_same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = leaves(one), leaves(other)
    assert a.keys() == b.keys()
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, f"{name} differs"


def assert_same_metrics(found: Event, wanted: Event) -> None:
    """To the last bits but one: the library behind torch.linalg may round differently from call to call."""
    for name in wanted.metrics.keys() - TIMED:
        assert found.metrics[name] == pytest.approx(wanted.metrics[name], rel=1e-12, nan_ok=True), name


@pytest.mark.parametrize("stop_after", [1, 3, 5])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "optim.d_steps": 2,
            "optim.ema_decay": 0,
            "optim.loss": "non_saturating",
            "optim.r1_gamma": 1,
            "data.h_flip": True,
            "data.augment": ["color", "translation", "cutout"],
            "model.conditioning": "auxiliary_classifier",
            "model.attention.kind": "residual",
        },
    ],
    ids=["default", "changed"],
)
def test_resume_is_bit_identical_to_an_uninterrupted_run(
    tiny: Config,
    tmp_path: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: int,
    changes: dict[str, Any],
) -> None:
    # The first evaluation counts as the best, whatever it scores: resumed after it, the best is in the checkpoint.
    offer = BestOfRun.offer
    monkeypatch.setattr(BestOfRun, "offer", lambda best, step, _, generator: offer(best, step, step, generator))
    config = override(tiny, changes)
    _, undisturbed = trained(config, tmp_path / "undisturbed", cache_dir)

    part = tmp_path / "parts"
    part.mkdir()
    events = Trainer(config, 0, part, cache_dir=cache_dir).run()
    for event in events:
        if event.step == stop_after:
            break
    events.close()
    resumed = Trainer(config, 0, part, cache_dir=cache_dir)
    assert resumed.step == stop_after
    rest = list(resumed.run())

    assert_same_bits(state_of(tmp_path / "undisturbed"), state_of(part))
    files = [directory / "generator.safetensors" for directory in (tmp_path / "undisturbed", part)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert rest[-1].metrics["best/step"] == 3
    assert_same_metrics(rest[-1], undisturbed[-1])


@pytest.mark.parametrize("asked", [1, 4, 9], ids=["after a step", "in an evaluation", "in the last evaluation"])
def test_told_to_stop_a_run_leaves_at_once_and_resumes_to_the_same_bits(
    tiny: Config, tmp_path: Path, cache_dir: Path, asked: int
) -> None:
    """The third step is the first that is scored, in two batches, and the sixth the last."""
    config = override(tiny, {"eval.num_samples": 100})
    _, undisturbed = trained(config, tmp_path / "undisturbed", cache_dir)
    part = tmp_path / "parts"
    part.mkdir()
    answers = iter([False] * asked + [True])
    left = list(Trainer(config, 0, part, cache_dir=cache_dir).run(lambda: next(answers)))
    assert not any(event.done for event in left)
    assert next(answers, None) is None, "left when told, and asked no more"

    rest = list(Trainer(config, 0, part, cache_dir=cache_dir).run())
    files = [directory / "generator.safetensors" for directory in (tmp_path / "undisturbed", part)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [event.step for event in (*left, *rest)] == [event.step for event in undisturbed], "each logged once"
    for found, wanted in zip((*left, *rest), undisturbed, strict=True):
        assert_same_metrics(found, wanted)


def test_an_error_in_the_middle_of_a_step_leaves_the_checkpoint_from_before(
    tiny: Config, tmp_path: Path, cache_dir: Path
) -> None:
    """D has made its update and G has not: no run was ever in that state."""
    trainer = Trainer(tiny, 0, tmp_path, cache_dir=cache_dir, checkpoint_every=1)
    with (
        mock.patch.object(trainer.optimizer_g, "step", side_effect=[None, None, MemoryError]),
        pytest.raises(MemoryError),
    ):
        list(trainer.run())
    saved = state_of(tmp_path)
    assert saved["step"] == 2
    assert saved["optimizer_d"]["state"][0]["step"] == 2


def test_a_run_ends_with_one_event_that_has_an_outcome_and_scores(
    tiny: Config, tmp_path: Path, cache_dir: Path
) -> None:
    _, events = trained(tiny, tmp_path, cache_dir)
    assert [event.done for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].outcome in ("finished", "collapsed")
    assert [event.step for event in events if "fid" in event.metrics] == [3, 6]
    last = events[-1]
    assert {"gamma/g8", "gamma/d8", "attention_entropy/g8", "sigma_max/g", "peak_memory_mib"} <= last.metrics.keys()
    assert "loss_class" not in last.metrics
    assert last.images["samples"].shape == (2, 8, 32, 32, 3)
    assert last.images["attention/g8/maps"].shape == (2, 3, 4, 4)  # keys are pooled: half the query grid
    assert last.images["attention/g8/maps"].sum((2, 3)) == pytest.approx(1, abs=1e-5)


def test_a_finished_run_only_scores_again_and_gives_the_same_figures(
    tiny: Config, tmp_path: Path, cache_dir: Path
) -> None:
    _, events = trained(tiny, tmp_path, cache_dir)
    _, again = trained(tiny, tmp_path, cache_dir)
    assert [event.step for event in again] == [6]
    assert again[0].metrics["fid"] == events[-1].metrics["fid"]


def test_a_class_head_adds_its_loss_and_a_residual_control_has_a_gain_and_no_attention_to_show(
    tiny: Config, tmp_path: Path, cache_dir: Path
) -> None:
    changes = {"model.conditioning": "auxiliary_classifier", "model.attention.kind": "residual_flops"}
    _, events = trained(override(tiny, changes), tmp_path, cache_dir)
    assert all("loss_class" in event.metrics for event in events[1:])
    assert events[-1].metrics["gamma/g8"] != 0
    assert not any("attention" in name for name in (*events[-1].metrics, *events[-1].images))


def test_seeds_differ_and_the_same_seed_does_not(tiny: Config, tmp_path: Path, cache_dir: Path) -> None:
    losses = [
        trained(tiny, tmp_path / name, cache_dir, seed)[1][-1].metrics["loss_d"]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert losses[0] == losses[1] != losses[2]


def test_another_family_of_streams_changes_all_that_a_seed_decides_and_nothing_else(
    tiny: Config, tmp_path: Path, cache_dir: Path
) -> None:
    def drawn(streams: int, seed: int = 0) -> dict[str, torch.Tensor]:
        config = override(tiny, {"optim.streams": streams, "data.h_flip": True, "data.augment": ["color"]})
        trainer = Trainer(config, seed, tmp_path, cache_dir=cache_dir)
        images, labels = trainer.batches(0)
        z, fake_labels = trainer._noise("noise_g", 0)
        (draws,) = trainer._draws("augment_g", 0, 1)
        sampler = trainer.scorer.sampler
        samples = torch.cat(list(sampler.images(trainer.average.eval())))
        sampler.prepare(trainer.average)
        return {
            **{f"G.{name}": value for name, value in trainer.generator.named_parameters() if "linear" in name},
            **{f"D.{name}": value for name, value in trainer.discriminator.named_parameters() if "linear" in name},
            **{"batch": images, "labels": labels, "z": z, "labels of z": fake_labels, "samples": samples},
            "augmentation": draws,
            **{
                "standing": trainer.average.bn.running_mean,
                "labels of samples": sampler.labels,
                "grid": sampler.grid_z,
            },
        }

    first, placebo = drawn(0), drawn(1)
    same = {name for name, value in first.items() if torch.equal(value, placebo[name])}
    assert same == {"labels of samples", "grid", "G.linear.bias", "D.linear.bias"}
    again, others = drawn(1), (drawn(2), drawn(1, seed=1), drawn(0, seed=1))
    assert all(torch.equal(value, again[name]) for name, value in placebo.items())
    assert not any(torch.equal(placebo["z"], other["z"]) for other in others)


def test_a_checkpoint_of_another_config_is_refused_with_the_fields_that_differ(
    tiny: Config, tmp_path: Path, cache_dir: Path
) -> None:
    trained(tiny, tmp_path, cache_dir)
    with pytest.raises(ValueError, match=r"optim\.lr_g is 0\.\d+ there, 0\.1 here"):
        Trainer(override(tiny, {"optim.lr_g": 0.1}), 0, tmp_path, cache_dir=cache_dir)
    with pytest.raises(ValueError, match="seed is 0 there, 1 here"):
        Trainer(tiny, 1, tmp_path, cache_dir=cache_dir)


def test_a_run_whose_newest_checkpoint_is_truncated_ends_in_the_same_bits(
    tiny: Config, tmp_path: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tiny, tmp_path / "undisturbed", cache_dir)
    trained(tiny, tmp_path / "truncated", cache_dir)
    newest, before = (tmp_path / "truncated" / name for name in ("checkpoint.pt", "checkpoint.previous.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    again = Trainer(tiny, 0, tmp_path / "truncated", cache_dir=cache_dir)
    assert 0 < again.step < 6 and f"resuming from {before}" in caplog.text
    list(again.run())
    assert_same_bits(state_of(tmp_path / "undisturbed"), state_of(tmp_path / "truncated"))

    for path in (newest, before):
        path.write_bytes(b"")
    fresh = Trainer(tiny, 0, tmp_path / "truncated", cache_dir=cache_dir)
    assert fresh.step == 0 and "the run starts again from step 0" in caplog.text


def test_weights_that_become_nan_end_the_run_as_diverged(tiny: Config, tmp_path: Path, cache_dir: Path) -> None:
    trainer = Trainer(tiny, 0, tmp_path, cache_dir=cache_dir)
    events = []
    for event in trainer.run():
        events.append(event)
        if event.step == 2:
            torch.nn.init.constant_(trainer.discriminator.linear.weight, float("nan"))
    assert events[-1].outcome == "diverged"
    assert events[-1].step == 3
    assert all(value == value for value in events[-1].metrics.values())


def test_a_generator_that_paints_one_picture_ends_the_run_as_collapsed(
    tiny: Config, tmp_path: Path, cache_dir: Path
) -> None:
    # A zero weight has no singular vectors; a rate of next to 0 leaves it there for the step that follows.
    config = override(tiny, {"optim.ema_decay": 0, "model.sn.g": False, "optim.lr_g": 1e-7})
    trainer = Trainer(config, 0, tmp_path, cache_dir=cache_dir)
    for event in trainer.run():
        last = event
        if event.step == 5:
            torch.nn.init.zeros_(trainer.generator.out.weight)
    assert last.outcome == "collapsed"
    assert last.metrics["sample_diversity"] < 0.1
    assert last.metrics["collapsed_classes"] == 1


def test_a_config_that_no_network_can_carry_is_refused_before_any_work(tiny: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs 128 px"):
        Trainer(override(tiny, {"model.attention.at": [64]}), 0, tmp_path)


def test_the_generator_file_paints_what_was_scored(tiny: Config, tmp_path: Path, cache_dir: Path) -> None:
    trainer, events = trained(tiny, tmp_path, cache_dir)
    generator, classes = load_generator(tmp_path / "generator.safetensors")
    assert classes == trainer.classes
    pictures = trainer.scorer.sampler.pictures(generator, {})
    assert (pictures["samples"] == events[-1].images["samples"]).all()


def test_an_event_is_not_done_until_it_has_an_outcome() -> None:
    event = Event(1, {})
    assert not event.done
    assert dataclasses.replace(event, outcome="finished").done
