"""Damaged and malicious checkpoints, met by a training process that trains for real."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import pytest
from told import begin

from ablations.run import main
from ablations.study import read_study
from ablations.tracking.store import Store
from sagan.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "studies" / "smoke.yaml"
pytestmark = pytest.mark.slow


class Attack:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_run_starts_anew_after_torn_checkpoints_and_runs_no_code_of_a_malicious_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    torn, attacked = (begin(tmp_path / "runs", cell).folder for cell in read_study(STUDY).cells())
    (torn / "checkpoint.pt").write_bytes(b"")
    (torn / "checkpoint.previous.pt").write_bytes(b"SAGANCK1 and then the power went")
    save_checkpoint(attacked, {"step": 3, "weights": Attack(tmp_path / "ran")})

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([str(STUDY), "--workers", "1"]) == 1
    assert (
        "feat16/seed0 failed: ValueError: " in said.getvalue() and "nothing of it was run; remove it" in said.getvalue()
    )
    assert not (tmp_path / "ran").exists()
    again = torn.with_name("attempt-2")
    text = (again / "log.txt").read_text()
    assert text.count("is damaged (its checksum does not match)") == 2
    assert f"no undamaged checkpoint in {again}: the run starts again from step 0" in text
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = store.find_experiment(read_study(STUDY))
    assert experiment is not None
    outcomes = {run.info.run_name: run.data.tags.get("outcome") for run in store.runs(experiment, "tags.kind = 'cell'")}
    assert outcomes == {"none/seed0": "finished", "feat16/seed0": None}
