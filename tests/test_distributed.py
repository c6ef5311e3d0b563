"""Two processes on this machine against one: gloo carries what NCCL carries between cards."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from benchmarks.measure import bare_trainer
from filelock import FileLock
from rounding import CALM

from sagan.checkpoint import load_checkpoint
from sagan.config import Config, ModelConfig, SpectralNormConfig, override
from sagan.distributed import World
from sagan.layers import GeneratorBlock
from sagan.sampling import Sampler
from sagan.spectral_norm import SpectralNormWeight, apply_spectral_norm
from sagan.training import Event, Trainer

pytestmark = pytest.mark.slow

STEPS = 4
CASES: dict[str, dict[str, Any]] = {
    "synchronised": {},
    "per replica, with R1 and augmented images": {
        "model.bn_groups": 2,
        "optim.loss": "non_saturating",
        "optim.r1_gamma": 1,
        "data.augment": ["color", "translation"],
    },
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
    weights = {f"{k}.{name}": w for k, network in networks.items() for name, w in network.named_parameters()}
    gradients = {f"gradient of {name}": w.grad for name, w in weights.items() if w.grad is not None}
    return {**tensors, **gradients, "sums": trainer.sums}


def train_all(rank: int, config: Config, directory: Path) -> None:
    """Saves the state after a few steps of every case, and the last gradients, in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        for name, changes in CASES.items():
            trainer = bare_trainer(override(config, changes), directory)
            for _ in range(STEPS):
                trainer._train_step()
            torch.save(state(trainer), directory / f"{name} {rank}.pt")
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def calm(tiny: Config) -> Config:
    return override(tiny, {**CALM, "optim.batch_size": 8})


SCORED = {"eval.num_samples": 120, "eval.bn": "standing"}  # three batches: one for the first process, two for the other


def once(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]) -> Path:
    """The folder `name`, filled by that process of pytest-xdist that asks first."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            fill(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="module")
def together(calm: Config, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two processes that have done all that is asked of them below: a start takes longer than that."""
    return once(tmp_path_factory, "together", lambda folder: spawn(2, folder, do_all, calm, cache_dir, folder))


def do_all(rank: int, config: Config, cache_dir: Path, directory: Path) -> None:
    train_all(rank, config, directory)
    run_whole_and_in_parts(rank, override(config, SCORED), cache_dir, directory)
    trace(rank, directory)


@pytest.fixture(scope="module")
def alone(calm: Config, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one process that has done the same."""

    def fill(folder: Path) -> None:
        train_all(0, calm, folder)
        events = list(Trainer(override(calm, SCORED), 0, folder, cache_dir=cache_dir).run())
        torch.save([event.metrics for event in events], folder / "metrics")

    return once(tmp_path_factory, "alone", fill)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_gradients_of_one_and_train_to_its_weights(
    together: Path, alone: Path, case: str
) -> None:
    files = (together / f"{case} 0.pt", together / f"{case} 1.pt", alone / f"{case} 0.pt")
    first, second, single = map(torch.load, files)
    for name, wanted in single.items():
        assert torch.equal(first[name], second[name]), f"{name} differs between the processes"
        assert torch.allclose(first[name], wanted, rtol=1e-9, atol=1e-11), f"{name} differs from one process's"


def trace(rank: int, directory: Path) -> None:
    """Saves the outputs, gradients and statistics of a block whose batch norms talk to the other process, as written
    and as traced for a compiler: the one place where a compiled pass does."""
    found = []
    for compiler in (lambda function: function, torch.compile(backend="aot_eager", fullgraph=True, dynamic=False)):
        torch.manual_seed(0)
        block = GeneratorBlock(4, 6, 3, ModelConfig(bn_momentum=0.1, sn=SpectralNormConfig(g=False)))
        for norm in (block.bn1, block.bn2):
            norm.process_group = dist.group.WORLD
        layers = [layer for layer in block.modules() if isinstance(layer, SpectralNormWeight)]
        for layer in layers:
            torch.nn.init.normal_(layer.weight)
        apply_spectral_norm(layers, update=False, eps=1e-12)
        x = torch.randn(2, 4, 4, 4, 4)[rank].requires_grad_()  # not what the other process has
        y = compiler(block)(x, torch.arange(4) % 3)
        y.square().sum().backward()
        gradients = [layer.weight.grad for layer in layers]
        found.append([y.detach(), x.grad, *gradients, *(norm.running_var for norm in (block.bn1, block.bn2))])
    torch.save(found, directory / f"traced {rank}.pt")


def test_a_traced_block_holds_what_processes_tell_each_other(together: Path) -> None:
    """To the bit. That whole passes are traced exactly is shown in test_passes.py."""
    of_both = [torch.load(together / f"traced {rank}.pt") for rank in (0, 1)]
    for plain, traced in of_both:
        assert all(torch.equal(a, b) for a, b in zip(plain, traced, strict=True))
    assert torch.equal(of_both[0][1][-1], of_both[1][1][-1]), "statistics are those of both"
    assert not torch.equal(of_both[0][1][0], of_both[1][1][0])


def run_whole_and_in_parts(rank: int, config: Config, cache_dir: Path, directory: Path) -> None:
    """In `whole`, and in `parts`, which the first process leaves twice; `left` is what it leaves the second time."""

    for name in ("whole", "parts"):
        (directory / name).mkdir(exist_ok=True)

    def run(name: str, stop: Callable[[], bool] = lambda: False, until: int | None = None) -> list[Event]:
        seen = []
        with contextlib.closing(Trainer(config, 0, directory / name, cache_dir=cache_dir).run(stop)) as events:
            for event in events:
                seen.append(event)
                if event.step == until:
                    break
        return seen

    runs = {"whole": run("whole")}
    answers = iter([False, False, False, True])  # after three steps, and in the evaluation that follows
    runs["told"] = run("parts", stop=lambda: next(answers) if rank == 0 else False)
    runs["left"] = run("parts", until=3)
    if rank == 0:
        shutil.copytree(directory / "parts", directory / "left")
    runs["parts"] = run("parts")
    assert rank == 0 or not any(runs.values()), "the first process has the events"
    if rank == 0:
        torch.save({name: [event.metrics for event in seen] for name, seen in runs.items()}, directory / "metrics")


@pytest.mark.parametrize(("samples", "processes"), [(32, 2), (120, 2), (120, 5), (1201, 8)])
def test_every_sample_is_drawn_by_one_process(tiny: Config, samples: int, processes: int) -> None:
    config = override(tiny, {"eval.num_samples": samples})
    worlds = [World(rank, processes) for rank in range(processes)]
    samplers = [Sampler(config, 3, 0, torch.device("cpu"), world) for world in worlds]
    assert [i for sampler in samplers for i in range(samples)[sampler.shard]] == list(range(samples))
    assert {sampler.fewest_batches for sampler in samplers} == {min(s.batches_within(samples) for s in samplers)}


def assert_near(found: dict[str, float], wanted: dict[str, float]) -> None:
    timed = {"images_per_sec", "peak_memory_mib"}
    assert found.keys() == wanted.keys()
    for name in wanted.keys() - timed:
        assert found[name] == pytest.approx(wanted[name], rel=2e-3, abs=1e-3), name


def test_what_two_processes_score_together_one_scores_alone(together: Path, alone: Path) -> None:
    found, wanted = torch.load(together / "metrics")["whole"], torch.load(alone / "metrics")
    assert len(found) == len(wanted)
    for metrics, same in zip(found, wanted, strict=True):
        assert_near(metrics, same)


def test_two_processes_resume_to_the_bits_of_an_uninterrupted_run(together: Path) -> None:
    files = [(together / name / "generator.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
    metrics = torch.load(together / "metrics")
    assert metrics["whole"][-1]["fid"] == metrics["parts"][-1]["fid"]
    assert len(metrics["whole"]) == sum(len(metrics[name]) for name in ("told", "left", "parts")), "each logged once"


def test_one_process_goes_on_for_two_and_says_that_it_is_not_to_the_bit(
    calm: Config, cache_dir: Path, together: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = load_checkpoint(together / "left")
    assert saved is not None and saved["step"] == 3
    last = list(Trainer(override(calm, SCORED), 0, together / "left", cache_dir=cache_dir).run())[-1]
    assert "of 2 processes and is resumed with 1: equal to rounding, not to the bit" in caplog.text
    assert_near(last.metrics, torch.load(together / "metrics")["whole"][-1])
