"""Two processes on this machine against one: gloo carries what NCCL carries between cards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from benchmarks.measure import bare_trainer

from sagan.config import Config, override
from sagan.training import Trainer

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
        torch.testing.assert_close(first[name], wanted, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
