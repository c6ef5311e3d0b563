"""Two processes on this machine against one: gloo carries what NCCL carries between cards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from benchmarks.measure import bare_trainer

from sagan.checkpoint import load_checkpoint
from sagan.config import Config, override
from sagan.training import Event, Trainer

pytestmark = pytest.mark.slow

# As in test_plain_reference.py: what is rounding alone must not be blown up by Adam, nor by ReLUs that it flips.
CALM = {"optim.adam_eps": 1e-2, "optim.lr_g": 2e-5, "optim.lr_d": 8e-5}
STEPS = 4
CASES: dict[str, dict[str, Any]] = {
    "synchronised": {},
    "per replica": {"model.bn_groups": 2},
    "four groups": {"model.bn_groups": 4},
    "class head and flips": {
        "model.conditioning": "auxiliary_classifier",
        "data.h_flip": True,
        "optim.d_steps": 2,
        "model.sn.g": False,
    },
}


def spawn(count: int, directory: Path, function: Callable[..., None], *arguments: Any) -> None:
    """Runs `function(rank, *arguments)` in processes that have met."""
    torch.multiprocessing.spawn(_meet, (count, directory / "meeting", function, arguments), count)


def _meet(rank: int, count: int, meeting: Path, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    function(rank, *arguments)
    dist.destroy_process_group()


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    networks = {"g": trainer.generator, "d": trainer.discriminator, "average": trainer.average}
    tensors = {f"{k}.{name}": t for k, network in networks.items() for name, t in network.state_dict().items()}
    return {**tensors, "sums": trainer.sums}


def train_all(rank: int, config: Config, directory: Path) -> None:
    """Saves the state after a few steps of every case, in float64."""
    torch.set_default_dtype(torch.float64)
    for name, changes in CASES.items():
        trainer = bare_trainer(override(config, changes), directory)
        for _ in range(STEPS):
            trainer._train_step()
        torch.save(state(trainer), directory / f"{name} {rank}.pt")


@pytest.fixture(scope="module")
def calm(tiny: Config) -> Config:
    return override(tiny, {**CALM, "optim.batch_size": 8})


@pytest.fixture(scope="module")
def states(calm: Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, torch.Tensor]]]:
    """By case, the states of two processes after training, and that of one alone."""
    together, alone = tmp_path_factory.mktemp("together"), tmp_path_factory.mktemp("alone")
    spawn(2, together, train_all, calm, together)
    try:
        train_all(0, calm, alone)
    finally:
        torch.set_default_dtype(torch.float32)
    files = (together / "{} 0.pt", together / "{} 1.pt", alone / "{} 0.pt")
    return lambda case: [torch.load(str(file).format(case)) for file in files]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_to_the_weights_of_one(states: Any, case: str) -> None:
    first, second, alone = states(case)
    for name, wanted in alone.items():
        assert torch.equal(first[name], second[name]), f"{name} differs between the processes"
        assert torch.allclose(first[name], wanted, rtol=1e-9, atol=1e-11), f"{name} differs from one process's"


def test_traced_passes_hold_what_processes_tell_each_other(calm: Config, tmp_path: Path) -> None:
    spawn(2, tmp_path, train_traced, calm, tmp_path)


def train_traced(_rank: int, config: Config, directory: Path) -> None:
    plain = bare_trainer(config, directory)
    traced = bare_trainer(config, directory, compile_backend="aot_eager")
    for _ in range(2):
        plain._train_step()
        traced._train_step()
    found = state(traced)
    assert all(torch.equal(tensor, found[name]) for name, tensor in state(plain).items())


def test_a_batch_that_cannot_be_shared_is_refused(calm: Config, tmp_path: Path) -> None:
    spawn(2, tmp_path, refuse, calm, tmp_path)


def refuse(_rank: int, config: Config, directory: Path) -> None:
    for changes, rule in (
        ({"optim.batch_size": 9}, "a multiple of the 2 processes that share a batch, got 9"),
        ({"optim.batch_size": 12, "model.bn_groups": 3}, "divide that number or be a multiple of it, got 3"),
    ):
        with pytest.raises(ValueError, match=rule):
            bare_trainer(override(config, changes), directory)


SCORED = {"eval.num_samples": 120, "eval.bn": "standing"}  # three batches: one for the first process, two for the other


def run_whole_and_in_parts(rank: int, config: Config, cache_dir: Path, directory: Path) -> None:
    """In `whole`, `parts` (left and resumed) and `left`."""
    world: dict[str, list[Event]] = {}
    world["whole"] = list(Trainer(config, 0, directory / "whole", cache_dir=cache_dir).run())
    events = Trainer(config, 0, directory / "parts", cache_dir=cache_dir).run()
    for event in events:
        if event.step == 3:
            break
    events.close()
    if rank == 0:
        shutil.copytree(directory / "parts", directory / "left")
    world["parts"] = list(Trainer(config, 0, directory / "parts", cache_dir=cache_dir).run())
    assert rank == 0 or world == {"whole": [], "parts": []}
    if rank == 0:
        torch.save({name: [event.metrics for event in events] for name, events in world.items()}, directory / "metrics")


@pytest.fixture(scope="module")
def runs(calm: Config, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, and one of a single one in `alone`."""
    directory = tmp_path_factory.mktemp("runs")
    for name in ("whole", "parts", "alone"):
        (directory / name).mkdir()
    config = override(calm, SCORED)
    alone = list(Trainer(config, 0, directory / "alone", cache_dir=cache_dir).run())
    torch.save([event.metrics for event in alone], directory / "alone metrics")
    spawn(2, directory, run_whole_and_in_parts, config, cache_dir, directory)
    return directory


def assert_near(found: dict[str, float], wanted: dict[str, float]) -> None:
    timed = {"images_per_sec", "peak_memory_mib"}
    assert found.keys() == wanted.keys()
    for name in wanted.keys() - timed:
        assert found[name] == pytest.approx(wanted[name], rel=2e-3, abs=1e-3), name


def test_what_two_processes_score_together_one_scores_alone(runs: Path) -> None:
    together, alone = torch.load(runs / "metrics")["whole"], torch.load(runs / "alone metrics")
    assert len(together) == len(alone)
    for found, wanted in zip(together, alone, strict=True):
        assert_near(found, wanted)


def test_two_processes_resume_to_the_bits_of_an_uninterrupted_run(runs: Path) -> None:
    files = [(runs / name / "generator.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
    fid = {name: metrics[-1]["fid"] for name, metrics in torch.load(runs / "metrics").items()}
    assert fid["whole"] == fid["parts"]


def test_one_process_goes_on_for_two_and_says_that_it_is_not_to_the_bit(
    calm: Config, cache_dir: Path, runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = load_checkpoint(runs / "left")
    assert saved is not None and saved["step"] == 3
    last = list(Trainer(override(calm, SCORED), 0, runs / "left", cache_dir=cache_dir).run())[-1]
    assert "of 2 processes and goes on with 1: equal to rounding, not to the bit" in caplog.text
    assert_near(last.metrics, torch.load(runs / "metrics")["whole"][-1])
