"""Cells of more steps that go on from shorter ones, and finished cells that are trained again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, assert_same_results, sittings, steps, wait_until
from mlflow.entities import Run, ViewType
from test_kills import STUDY
from told import MACHINE, begin, describe, tell

from ablations.attempts import Attempt, attempts, begin_attempt, find_shorter_run
from ablations.plan import Cell
from ablations.study import read_study
from sagan import journal
from sagan.checkpoint import load_checkpoint, save_checkpoint

WriteStudy = Callable[..., Path]
ONE = ("--workers", "1")


@pytest.fixture
def shorter(write_study: WriteStudy, tmp_path: Path) -> Attempt:
    """A finished run of 800 steps, whose last checkpoint is of step 800, before it told of it."""
    attempt = begin(tmp_path, read_study(write_study()).cells()[0])
    describe(attempt)
    for step in (400, 784, 800):
        tell(attempt, step, {"fid": float(step)}, status="finished" if step == 800 else None)
    save_checkpoint(attempt.folder, {"step": 800, "since": 784, "images": "data-v1"})
    return attempt


def longer(cell: Cell, **changes: Any) -> Cell:
    optim = replace(cell.config.optim, steps=1600, **changes)
    return replace(cell, protocol="embedded + optim.steps=1600", config=replace(cell.config, optim=optim))


def go_on(runs: Path, cell: Cell, images: str | None = None) -> Attempt:
    return begin_attempt(runs, cell, {}, MACHINE, lambda: find_shorter_run(runs, cell, images))


def test_a_longer_cell_begins_with_all_that_the_shorter_one_told_up_to_its_checkpoint(
    shorter: Attempt, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in shorter.folder.iterdir()}
    attempt = go_on(tmp_path, longer(shorter.cell))
    assert {path.name: path.read_bytes() for path in shorter.folder.iterdir()} == before
    assert load_checkpoint(attempt.folder) == {"step": 800, "since": 784, "images": "data-v1"}
    records, wanted = attempt.read()[0], shorter.read()[0]
    assert [(one.step, one.metrics) for one in records] == [(one.step, one.metrics) for one in wanted[:-1]]
    assert attempt.outcome is None and attempt.protocol is not None and attempt.protocol["step"] == 800
    assert records == journal.read(attempt.journal)[0], "as it stands there, it is after all that was told before"
    assert records[0].time == attempt.started > wanted[0].time
    assert records[-1].time - records[0].time == pytest.approx(wanted[2].time - wanted[0].time)
    assert attempt.tags["resumed_from"].endswith("/attempt-1 at step 800")
    again = go_on(tmp_path, attempt.cell)
    assert (load_checkpoint(again.folder) or {})["step"] == 800 and not again.journal.exists(), "from its own attempt"


@pytest.mark.parametrize(
    ("change", "images"),
    [
        (lambda attempt: longer(attempt.cell, lr_equal=0.5), None),
        (lambda attempt: replace(longer(attempt.cell), seed=7), None),
        (lambda attempt: replace(longer(attempt.cell), variant="feat32"), None),
        (lambda attempt: longer(attempt.cell), "other images"),
        (lambda attempt: attempt.set_aside() or longer(attempt.cell), None),
        (lambda attempt: (attempt.folder / "checkpoint.pt").write_bytes(b"") or longer(attempt.cell), None),
        (lambda attempt: attempt.journal.unlink() or longer(attempt.cell), None),
    ],
    ids=["another field", "another seed", "another variant", "other images", "set aside", "damaged", "no journal"],
)
def test_a_cell_that_differs_otherwise_begins_anew(
    change: Callable[[Attempt], Cell], images: str | None, shorter: Attempt, tmp_path: Path
) -> None:
    cell = change(shorter)
    attempt = go_on(tmp_path, cell, images)
    assert load_checkpoint(attempt.folder) is None and not attempt.journal.exists() and attempt.tags == {}


def test_a_launcher_that_dies_while_it_copies_leaves_a_cell_that_begins_with_its_history(
    shorter: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = longer(shorter.cell)
    for place in ("journal.write", "attempts.config_yaml", "attempts.put_checkpoint"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"ablations.{place}" if place[0] != "j" else f"sagan.{place}", interrupt)
            go_on(tmp_path, cell)
        attempt = go_on(tmp_path, cell)
        assert [one.step for one in attempt.read()[0]] == [0, 400, 784]
        for folder in cell.directory(tmp_path).iterdir():
            folder.rename(tmp_path / f"{place}-{folder.name}")


def interrupt(*_arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_cells_that_go_on_end_in_the_bits_of_cells_that_had_their_steps_from_the_start(
    write_study: WriteStudy, tmp_path: Path, forked: None
) -> None:
    study = write_study({"[0, 1]": "[0]"}, text=STUDY)
    whole, parts = Lab(tmp_path / "whole"), Lab(tmp_path / "parts")
    assert whole.run(study, *ONE)[0] == 0
    for total in (3, 6):  # scored once and twice: eval.endpoint, 3 by default, is 1, 2 and 2
        assert parts.run(study, *ONE, "--set", f"optim.steps={total}")[0] == 0
    assert parts.run(study, *ONE)[0] == 0
    assert_same_results(parts.results(study, steps="8"), whole.results(study))
    begun = {run.data.params["optim.steps"]: run for run in parts.runs(study, "cell")}
    assert "resumed_from" not in begun["3"].data.tags and begun["8"].data.tags["resumed_from"].endswith("at step 6")
    (scored,) = {run.data.tags["metric_fingerprint"] for run in whole.runs(study, "cell")}
    assert begun["8"].data.tags["metric_fingerprint"] == scored


def trash(lab: Lab, study: Path) -> list[Run]:
    store = lab.store()
    experiment = store.find_experiment(read_study(study))
    assert experiment is not None
    return list(store.client.search_runs([experiment], "tags.kind = 'cell'", ViewType.DELETED_ONLY))


@pytest.mark.slow
def test_a_finished_cell_is_trained_again_and_an_interrupted_one_goes_on(
    write_study: WriteStudy, tmp_path: Path, forked: None
) -> None:
    lab = Lab(tmp_path / "lab", "fake")
    study, gate = write_study({"seeds:": "set: {optim.steps: 5}\nseeds:", "[0, 1]": "[0]"}), tmp_path / "gate"
    assert lab.run(study, *ONE)[0] == 0
    kept, first = lab.runs(study, "cell")
    assert first.info.run_name == "none/seed0"

    launcher = lab.start(study, *ONE, "--rerun", "none/*", FAKE_GATE=str(gate), FAKE_GATE_STEP="3")
    wait_until(lambda: 3 in steps(lab.folder))
    os.kill(launcher.pid, signal.SIGTERM)
    assert launcher.wait(60) == 143
    assert "The same command without --rerun goes on from here." in lab.said.read_text()
    assert [run.info.run_id for run in trash(lab, study)] == [first.info.run_id]
    assert lab.run(study, *ONE)[0] == 0
    assert sittings(lab.folder) == {"feat32/seed0": [0], "none/seed0": [0, 0, 3]}
    runs = {run.info.run_name: run for run in lab.runs(study, "cell")}
    assert runs["feat32/seed0"].info.run_id == kept.info.run_id
    again = runs["none/seed0"]
    assert again.info.run_id != first.info.run_id and again.data.tags["outcome"] == "finished"
    assert "Nothing to run." in lab.run(study, *ONE)[1]
    folder = lab.folder / "runs" / "position" / "none"
    assert [one.upload_state.is_lost for one in attempts(next(folder.iterdir()))] == [True, False, False]


@pytest.mark.slow
def test_a_cell_that_is_a_copy_is_trained_when_it_is_to_be_run_again(
    write_study: WriteStudy, tmp_path: Path, forked: None
) -> None:
    lab = Lab(tmp_path / "lab", "fake")
    study = write_study({"seeds:": "set: {optim.steps: 5}\nseeds:", "[0, 1]": "[0]"})
    copy = tmp_path / "copy.yaml"
    copy.write_text(study.read_text().replace("name: position", "name: copy"))
    assert lab.run(study, *ONE)[0] == 0 and lab.run(copy, *ONE)[0] == 0
    assert all("shared_run" in run.data.tags for run in lab.runs(copy, "cell"))
    # Also if the launch ends before the cell has begun, and the next one is without --rerun.
    assert lab.run(copy, *ONE, "--rerun", "feat32", "--until", "1s", FAKE_GATE="never")[0] == 0
    assert lab.run(copy, *ONE)[0] == 0
    assert ["shared_run" in run.data.tags for run in lab.runs(copy, "cell")] == [False, True]
    assert len(lab.runs(study, "cell")) == 2 and not trash(lab, study)
