"""A launch under torchrun: two processes for each cell, on gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ablations.run import main
from ablations.study import read_study
from ablations.tracking import Store
from sagan.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "studies" / "smoke.yaml"
pytestmark = pytest.mark.slow


def test_torchrun_trains_every_cell_in_two_processes_and_one_of_them_logs(tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    command = (*torchrun, "-m", "ablations.run", str(SMOKE))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    logs = "".join(log.read_text() for log in tmp_path.glob("runs/smoke/logs/*.log"))
    assert done.returncode == 0, done.stderr + logs
    assert "2 cells: 2 " in done.stdout, "said once"
    for checkpoint in tmp_path.glob("runs/smoke/*/*/checkpoint.pt"):
        saved = load_checkpoint(checkpoint.parent)
        assert saved is not None and saved["processes"] == 2

    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    experiment_id = store.find_experiment(read_study(SMOKE))
    assert experiment_id is not None
    cells = store.runs(experiment_id, "tags.kind = 'cell'")
    assert sorted(run.info.run_name for run in cells) == ["feat16/seed0", "none/seed0"]
    assert all(run.info.status == "FINISHED" and "fid" in run.data.metrics for run in cells)


def test_several_workers_of_several_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main([str(SMOKE), "--workers", "2"]) == 2
    assert "--workers: must be 1 under torchrun, got 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
