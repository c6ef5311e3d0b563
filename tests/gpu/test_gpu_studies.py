"""Studies launched as a user would, in processes of their own: several on one card, under torchrun, out of memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from card import DEVICE, IS_CARD
from rounding import CALM, differences
from safetensors.torch import load_file
from small_card import LARGE_BATCH

from sagan.distributed import World
from sagan.layers import BatchNormReLU

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SMOKE = str(ROOT / "studies" / "smoke.yaml")
CELLS = ("none/seed0", "feat16/seed0")
SETTINGS = tuple(word for name, value in CALM.items() for word in ("--set", f"{name}={value}"))
OUT_OF_MEMORY = f"""
name: room
question: Which batch fits?
preset: embedded
seeds: [0]
baseline: large
set:
  data.resolution: 32
  model.width_g: 4
  model.width_d: 4
  optim.batch_size: 4
  optim.steps: 2
  eval.every: 2
  eval.num_samples: 32
factors:
  batch:
    large: {{optim.batch_size: {LARGE_BATCH}}}
    small: {{}}
"""


class Launch:
    """A command in a folder of its own, begun at once, so that several of them import torch side by side."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.folder = folder
        self._said = (folder / "said.txt").open("w+")
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, stdout=self._said, stderr=subprocess.STDOUT, env=environment
        )

    def end(self) -> tuple[int, str]:
        """Its status, and what it said."""
        status = self._process.wait(240)  # a core that others use, too, imports for a minute
        self._said.seek(0)
        return status, self._said.read()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()  # it ends its workers
            self._process.wait(60)
        self._said.close()

    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        """{"none/seed0": the weights of its generator} of the cells that have ended."""
        files = self.folder.glob("runs/*/*/*/*/generator.safetensors")
        return {f"{file.parts[-4]}/{file.parts[-3].split('-')[0]}": load_file(file) for file in files}


pytestmark = pytest.mark.xdist_group("launches")  # one process starts them, and once


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Launch]]:
    of_one_card = ("--device", str(DEVICE))
    folders = {name: tmp_path_factory.mktemp(name) for name in ("shared", "room")}
    study = folders["room"] / "room.yaml"
    study.write_text(OUT_OF_MEMORY)
    started = {
        "room": Launch(folders["room"], str(HERE / "small_card.py"), str(study), *of_one_card, "--workers", "1"),
    }
    if IS_CARD:
        two_workers = ("-m", "ablations.run", SMOKE, *SETTINGS, *of_one_card, "--workers", "2")
        started["shared"] = Launch(folders["shared"], *two_workers)
    yield started
    for launch in started.values():
        launch.close()


@pytest.mark.skipif(not IS_CARD, reason="the fourth stage launches two workers")
def test_two_workers_share_a_card(launches: dict[str, Launch]) -> None:
    status, said = launches["shared"].end()
    assert status == 0, said
    assert launches["shared"].weights().keys() == set(CELLS)
    assert len(list(launches["shared"].folder.glob("runs/smoke/*/*/attempt-*"))) == len(CELLS)


@pytest.mark.skipif(not IS_CARD, reason="tests/test_train_command.py shows it on a CPU, and takes a minute")
def test_torchrun_with_one_process_trains_as_without_it(launches: dict[str, Launch], tmp_path: Path) -> None:
    """To rounding, with NCCL."""
    launches["shared"].end()
    (config,) = launches["shared"].folder.glob("runs/smoke/feat16/*/*/config.yaml")
    (tmp_path / "run").mkdir()
    shutil.copy(config, tmp_path / "run")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", "sagan.train", "run")
    status, said = Launch(tmp_path, *torchrun, "--device", "cuda").end()
    assert status == 0, said
    found, wanted = load_file(tmp_path / "run" / "generator.safetensors"), launches["shared"].weights()["feat16/seed0"]
    for name, difference in differences({name: (found[name], weight) for name, weight in wanted.items()}).items():
        assert difference < 1e-4, f"{name} differs by {difference:.1e}"


def test_out_of_memory_fails_one_cell_in_plain_words_and_the_next_one_trains(launches: dict[str, Launch]) -> None:
    status, said = launches["room"].end()
    assert status == 1, said
    (message,) = [line for line in said.splitlines() if line.startswith("large/seed0 failed: ")]
    assert "out of GPU memory" in message
    assert "smaller optim.batch_size" in message and "fewer --workers" in message
    assert re.search(r"cuda:\d+ has \d+\.\d GiB, of which this worker could have \d+\.\d GiB", message) or not IS_CARD
    assert launches["room"].weights().keys() == {"small/seed0"}, said


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[World]:
    """A group of this process alone, on NCCL, or on gloo in a rehearsal; and a World that takes it for two."""
    backend = "nccl" if IS_CARD else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        yield World(0, 2)
    finally:
        dist.destroy_process_group()


def test_gradients_and_statistics_travel_over_the_cards_own_transport(alone: World) -> None:
    """A process that is alone gets back what it sent: the mean over two of which one is missing is the half."""
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, 2, generator=draw).to(DEVICE), torch.randn(4, generator=draw).to(DEVICE)]
    halves = [tensor / 2 for tensor in tensors]
    alone.average(tensors)
    assert all(torch.equal(found, half) for found, half in zip(tensors, halves, strict=True))

    x = torch.randn(4, 8, 4, 4, generator=draw).to(DEVICE)
    labels, found = torch.arange(4, device=DEVICE) % 3, []
    for process_group in (None, dist.group.WORLD):
        norm = BatchNormReLU(8, 3, momentum=0.1, eps=1e-5).to(DEVICE)
        torch.nn.init.ones_(norm.gain.weight)
        torch.nn.init.zeros_(norm.bias.weight)
        norm.process_group = process_group
        of_x = x.clone().requires_grad_()
        y = norm(of_x, labels)
        y.square().sum().backward()
        found.append((y.detach(), of_x.grad, norm.running_var))
    for unshared, shared in zip(*found, strict=True):
        torch.testing.assert_close(shared, unshared)
