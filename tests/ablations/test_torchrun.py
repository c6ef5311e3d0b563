"""A launch under torchrun: two processes for each cell, on gloo; some of them are killed."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import psutil
import pytest
import torch.distributed as dist

from ablations import torchrun
from ablations.run import main
from ablations.study import read_study
from ablations.tracking import Store
from sagan.checkpoint import load_checkpoint
from sagan.distributed import World

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "studies" / "smoke.yaml"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
STUDY = (str(SMOKE), "--set", "optim.steps=100", "--set", "eval.every=100")


class Lab:
    """A folder to launch the smoke study in, with steps enough to be interrupted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._launches: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "said").open("wb") as said:
            command = (*TORCHRUN, "-m", "ablations.run", *STUDY)
            launch = subprocess.Popen(command, cwd=self.folder, stdout=said, stderr=said)
        self._launches.append(launch)
        return launch

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    def logged(self, words: str) -> int:
        """How often workers did."""
        return sum(log.read_text().count(words) for log in self.folder.glob("runs/smoke/logs/*.log"))

    def processes(self, module: str | None = None) -> list[psutil.Process]:
        """Of this folder's launches, torchruns too; or those that run `module`, by rank."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                runs_it = module is None or (module in words and "torch.distributed.run" not in words)
                if runs_it and process.cwd() == str(self.folder):
                    found[process] = process.environ().get("RANK", "")
        return sorted(found, key=lambda process: found[process])

    def wait_until(self, condition: Callable[[], object], seconds: float = 240.0) -> None:
        give_up = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up, f"it never happened; {self.said}"
            time.sleep(0.05)

    def wait_for(self, words: str, times: int = 1) -> tuple[psutil.Process, psutil.Process]:
        """Both processes of the worker that has just logged this; the second is stopped, so the first has to wait."""
        self.wait_until(lambda: self.logged(words) == times)
        first, second = self.processes("ablations.worker")
        second.suspend()
        return first, second

    def checkpoint(self, variant: str) -> dict[str, Any] | None:
        folders = list(self.folder.glob(f"runs/smoke/{variant}/*"))
        return load_checkpoint(folders[0]) if folders else None

    def runs(self, kind: str) -> dict[str, tuple[str, bool]]:
        """{name: status, whether it is scored} of the runs of that kind in the store."""
        store = Store(f"sqlite:///{self.folder}/mlflow.db")
        experiment_id = store.find_experiment(read_study(SMOKE))
        assert experiment_id is not None
        found = store.runs(experiment_id, f"tags.kind = '{kind}'")
        return {run.info.run_name: (run.info.status, "fid" in run.data.metrics) for run in found}

    def close(self) -> None:
        """Ends what a failed test left."""
        for process in self.processes():
            process.kill()
        for launch in self._launches:
            launch.wait()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    lab = Lab(tmp_path)
    yield lab
    lab.close()


@pytest.mark.slow
def test_cells_of_two_processes_survive_kills_and_ctrl_c(lab: Lab) -> None:
    launch = lab.start()
    first, second = lab.wait_for("none/seed0: claimed")
    second.kill()
    _, second = lab.wait_for("none/seed0: claimed", times=2)  # by a new worker
    assert not first.is_running(), "one that is left alone does not stay"
    assert lab.checkpoint("none") is None, "the middle of a step is not saved"

    launcher, *_ = lab.processes("ablations.run")
    launcher.kill()
    second.resume()
    lab.wait_until(lambda: not lab.processes())
    saved = lab.checkpoint("none")
    assert saved is not None and 0 < saved["step"] < 100

    launch = lab.start()
    _, second = lab.wait_for("feat16/seed0: claimed")
    assert lab.runs("cell")["none/seed0"] == ("FINISHED", True), "and one process logged it"
    launch.send_signal(signal.SIGINT)
    lab.wait_until(lambda: lab.logged("closing signal"))
    second.resume()
    launch.wait()
    lab.wait_until(lambda: not lab.processes())
    assert "2 cells: 1 finished, 1 waiting." in lab.said
    assert "The same command goes on from here" in lab.said
    assert lab.runs("cell")["feat16/seed0"] == ("KILLED", False)
    assert {status for status, _ in lab.runs("launch").values()} == {"KILLED"}

    with contextlib.chdir(lab.folder):
        assert main([*STUDY, "--workers", "1"]) == 0
    assert lab.logged("of 2 processes and goes on with 1: equal to rounding, not to the bit") == 1
    assert lab.runs("cell") == {"none/seed0": ("FINISHED", True), "feat16/seed0": ("FINISHED", True)}
    processes = {variant: (lab.checkpoint(variant) or {})["processes"] for variant in ("none", "feat16")}
    assert processes == {"none": 2, "feat16": 1}


@pytest.mark.parametrize(
    ("options", "environment", "rule"),
    [
        (["--workers", "2"], {}, "--workers: must be 1 under torchrun, got 2"),
        (["--set", "optim.batch_size=5"], {}, "optim.batch_size: must be a multiple of the 2 processes .*, got 5"),
        (
            ["--set", "optim.batch_size=6", "--set", "model.bn_groups=3"],
            {},
            "model.bn_groups: with 2 processes must divide that number or be a multiple of it, got 3",
        ),
        (["--device", "cuda:0"], {}, "--device: must be cuda under torchrun"),
        (["--device", "cuda"], {"LOCAL_WORLD_SIZE": "99", "WORLD_SIZE": "99"}, "--nproc-per-node: must be .*, got 99"),
        (["--launcher", "slurm", "--workers", "1"], {}, "--launcher: must be local under torchrun"),
        (["--dry-run", "--calibrate"], {}, "--calibrate: must go without torchrun"),
        ([], {"WORLD_SIZE": "4"}, "--nnodes: must be 1, got 4 processes, 2 of them here"),
    ],
)
def test_what_several_processes_cannot_do_is_told_before_anything_is_written(
    options: list[str],
    environment: dict[str, str],
    rule: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    started = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
    for name, value in (started | environment).items():
        monkeypatch.setenv(name, value)
    assert main([str(SMOKE), *options]) == 2
    assert re.search(rule, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def lead(monkeypatch: pytest.MonkeyPatch) -> torchrun._Lead:
    """Of one process that is gone, and of a board that both could see."""
    board = dist.HashStore()
    monkeypatch.setattr(torchrun, "_board", lambda: board)
    gone = subprocess.Popen(["sleep", "1000"])
    other = psutil.Process(gone.pid)
    gone.kill()
    return torchrun._Lead(SimpleNamespace(status=None), [other])


def test_an_error_of_another_process_fails_the_cell_in_its_own_words(
    lead: torchrun._Lead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchrun, "Trainer", mock.Mock(side_effect=MemoryError("none left")))
    monkeypatch.setattr(World, "broadcast", lambda *_: ((), {}))
    with pytest.raises(MemoryError):
        torchrun._follow("cpu")
    with pytest.raises(RuntimeError, match="process 0: MemoryError: none left"), lead.in_step():
        raise RuntimeError("Connection closed by peer")
    assert lead.is_lost


def test_a_killed_process_ends_the_worker_and_fails_no_cell(lead: torchrun._Lead) -> None:
    with pytest.raises(SystemExit), lead.in_step():
        raise RuntimeError("Connection closed by peer")


def test_an_error_of_the_first_process_fails_the_cell_and_ends_the_worker(lead: torchrun._Lead) -> None:
    with pytest.raises(ValueError, match="of its own"), lead.in_step():
        raise ValueError("of its own")
    assert lead.is_lost
