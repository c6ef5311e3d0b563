"""Cells and studies that share a folder, and what one of them may do to the others: nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Lab
from test_kills import STUDY

from ablations.attempts import all_attempts

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked")]


def test_a_cell_that_needs_more_memory_than_there_is_fails_with_its_traceback_and_the_others_are_trained(
    write_study: Callable[..., Path], tmp_path: Path
) -> None:
    study, lab = write_study({"feat16:": "huge: {optim.batch_size: 16384}\n    feat16:"}, STUDY), Lab(tmp_path / "lab")
    command = ("--workers", "1", "--seeds", "0")
    for begun, again in enumerate(((), ("--retry-failed",)), 1):
        assert lab.start(study, *command, *again, FAKE_MEMORY_MIB="600").wait(240) == 1, lab.said.read_text()
        feat16, huge, none = lab.runs(study, "cell")
        assert [run.info.status for run in (feat16, huge, none)] == ["FINISHED", "FAILED", "FINISHED"]
        assert "allocate memory" in huge.data.tags["error"]
        report = Path(lab.store().client.download_artifacts(huge.info.run_id, "traceback.txt")).read_text()
        assert "_train_step" in report and "allocate memory" in report
        begins = [attempt.cell.variant for attempt in all_attempts(lab.folder / "runs" / "kills")]
        assert Counter(begins) == {"none": 1, "huge": begun, "feat16": 1}


def test_two_studies_are_launched_in_one_new_folder_at_once(write_study: Callable[..., Path], tmp_path: Path) -> None:
    changes = {"seeds: [0, 1]": "set: {optim.steps: 20}\nseeds: [0, 1]"}
    studies = [write_study({**changes, "name: position": f"name: {name}"}).rename(tmp_path / name) for name in "ab"]
    labs = [Lab(tmp_path / "lab", "fake") for _ in studies]
    for lab, study in zip(labs, studies, strict=True):
        lab.said = study.with_suffix(".txt")
    launches = [lab.start(study, "--workers", "2") for lab, study in zip(labs, studies, strict=True)]
    assert [launch.wait(240) for launch in launches] == [0, 0], [lab.said.read_text() for lab in labs]
    # A cell that one study has finished before the other begins it is shared: on a busy machine some are.
    for lab, study in zip(labs, studies, strict=True):
        assert lab.said.read_text().count("4 cells: 4 finished") == 1
        results = lab.results(study)
        assert sorted(results) == ["feat32/seed0", "feat32/seed1", "none/seed0", "none/seed1"]
        assert {(outcome, weights) for outcome, _, weights in results.values()} == {("finished", b"weights")}
        assert {run.info.status for kind in ("cell", "variant") for run in lab.runs(study, kind)} == {"FINISHED"}
    assert lab.workers() == []
