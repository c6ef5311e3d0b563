from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
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
CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "changed": {
        "optim.d_steps": 2,
        "optim.ema_decay": 0,
        "optim.loss": "non_saturating",
        "optim.r1_gamma": 1,
        "data.h_flip": True,
        "data.augment": ["color", "translation", "cutout"],
        "model.conditioning": "auxiliary_classifier",
        "model.attention.kind": "residual",
    },
    "scored in two batches": {"eval.num_samples": 100},
}
Run = tuple[Trainer, list[Event]]


@pytest.fixture(scope="module", autouse=True)
def first_evaluation_is_the_best() -> Iterator[None]:
    """Whatever it scores: in a run that is resumed after it, the best is in the checkpoint."""
    offer = BestOfRun.offer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BestOfRun, "offer", lambda best, step, _, generator: offer(best, step, step, generator))
        yield


@pytest.fixture(scope="module")
def undisturbed(tiny: Config, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A run with these of the CHANGES, from its first step to its last."""

    @functools.cache
    def run(name: str) -> Run:
        return trained(override(tiny, CHANGES[name]), tmp_path_factory.mktemp("undisturbed"), cache_dir)

    return run


def trained(config: Config, directory: Path, cache_dir: Path, seed: int = 0) -> Run:
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


def assert_same_end(found: Trainer, events: list[Event], wanted: Run) -> None:
    """Of a run that is resumed: generator, steps that are logged, and metrics."""
    files = [trainer.directory / "generator.safetensors" for trainer in (found, wanted[0])]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [event.step for event in events] == [event.step for event in wanted[1]], "each logged once"
    for one, other in zip(events, wanted[1], strict=True):
        assert_same_metrics(one, other)
    assert events[-1].metrics["best/step"] == 3


@pytest.mark.parametrize("stop_after", [1, 3, 5])
@pytest.mark.parametrize("name", ["default", "changed"])
def test_resume_is_bit_identical_to_an_uninterrupted_run(
    undisturbed: Callable[[str], Run], tmp_path: Path, cache_dir: Path, stop_after: int, name: str
) -> None:
    whole, _ = undisturbed(name)
    events = Trainer(whole.config, 0, tmp_path, cache_dir=cache_dir).run()
    left = [next(events) for _ in range(stop_after + 1)]
    events.close()
    resumed = Trainer(whole.config, 0, tmp_path, cache_dir=cache_dir)
    assert resumed.step == left[-1].step == stop_after
    assert_same_end(resumed, [*left, *resumed.run()], undisturbed(name))
    assert_same_bits(state_of(whole.directory), state_of(tmp_path))


@pytest.mark.parametrize("asked", [1, 4, 9], ids=["after a step", "in an evaluation", "in the last evaluation"])
def test_told_to_stop_a_run_leaves_at_once_and_resumes_to_the_same_bits(
    undisturbed: Callable[[str], Run], tmp_path: Path, cache_dir: Path, asked: int
) -> None:
    """The third step is the first that is scored, in two batches, and the sixth the last."""
    wanted = undisturbed("scored in two batches")
    config = wanted[0].config
    answers = iter([False] * asked + [True])
    left = list(Trainer(config, 0, tmp_path, cache_dir=cache_dir).run(lambda: next(answers)))
    assert all(event.outcome is None for event in left)
    assert next(answers, None) is None, "left when told, and asked no more"
    resumed = Trainer(config, 0, tmp_path, cache_dir=cache_dir)
    assert_same_end(resumed, [*left, *resumed.run()], wanted)


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


def test_a_run_ends_with_one_event_that_has_an_outcome_and_scores(undisturbed: Callable[[str], Run]) -> None:
    trainer, events = undisturbed("default")
    last = events[-1]
    assert all(event.outcome is None for event in events[:-1]) and last.outcome in ("finished", "collapsed")
    assert [event.step for event in events if "fid" in event.metrics] == [3, 6]
    assert {"gamma/g8", "gamma/d8", "attention_entropy/g8", "sigma_max/g", "peak_memory_mib"} <= last.metrics.keys()
    assert "loss_class" not in last.metrics
    assert last.images["samples"].shape == (2, 8, 32, 32, 3)
    assert last.images["attention/g8/maps"].shape == (2, 3, 4, 4)  # keys are pooled: half the query grid
    assert last.images["attention/g8/maps"].sum((2, 3)) == pytest.approx(1, abs=1e-5)
    generator, classes = load_generator(trainer.directory / "generator.safetensors")
    assert classes == trainer.classes
    pictures = trainer.scorer.sampler.pictures(generator, {})
    assert (pictures["samples"] == last.images["samples"]).all(), "the file paints what was scored"


def test_a_finished_run_only_scores_again_and_gives_the_same_figures(
    undisturbed: Callable[[str], Run], cache_dir: Path
) -> None:
    trainer, events = undisturbed("default")
    _, again = trained(trainer.config, trainer.directory, cache_dir)
    assert [event.step for event in again] == [6]
    assert again[0].metrics["fid"] == events[-1].metrics["fid"]


def test_a_class_head_adds_its_loss_and_a_residual_control_has_a_gain_and_no_attention_to_show(
    undisturbed: Callable[[str], Run],
) -> None:
    _, events = undisturbed("changed")
    assert all("loss_class" in event.metrics for event in events[1:])
    assert events[-1].metrics["gamma/g8"] != 0
    assert not any("attention" in name for name in (*events[-1].metrics, *events[-1].images))


def test_seeds_differ(undisturbed: Callable[[str], Run], tmp_path: Path, cache_dir: Path) -> None:
    trainer, events = undisturbed("default")
    _, others = trained(trainer.config, tmp_path, cache_dir, seed=1)
    assert others[-1].metrics["loss_d"] != events[-1].metrics["loss_d"]


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
    undisturbed: Callable[[str], Run], cache_dir: Path
) -> None:
    trainer, _ = undisturbed("default")
    with pytest.raises(ValueError, match=r"optim\.lr_g is 0\.\d+ there, 0\.1 here"):
        Trainer(override(trainer.config, {"optim.lr_g": 0.1}), 0, trainer.directory, cache_dir=cache_dir)
    with pytest.raises(ValueError, match="seed is 0 there, 1 here"):
        Trainer(trainer.config, 1, trainer.directory, cache_dir=cache_dir)


def test_a_run_whose_newest_checkpoint_is_truncated_ends_in_the_same_bits(
    undisturbed: Callable[[str], Run], tmp_path: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, _ = undisturbed("default")
    folder = shutil.copytree(trainer.directory, tmp_path / "truncated")
    newest, before = (folder / name for name in ("checkpoint.pt", "checkpoint.previous.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    again = Trainer(trainer.config, 0, folder, cache_dir=cache_dir)
    assert 0 < again.step < 6 and f"resuming from {before}" in caplog.text
    list(again.run())
    assert_same_bits(state_of(trainer.directory), state_of(folder))

    for path in (newest, before):
        path.write_bytes(b"")
    fresh = Trainer(trainer.config, 0, folder, cache_dir=cache_dir)
    assert fresh.step == 0
    assert f"no undamaged checkpoint in {folder}: the run starts again from step 0" in caplog.text


def test_a_config_that_no_network_can_carry_is_refused_before_any_work(tiny: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs 128 px"):
        Trainer(override(tiny, {"model.attention.at": [64]}), 0, tmp_path)
