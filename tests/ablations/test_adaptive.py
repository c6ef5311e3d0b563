"""Launches with adaptive seeds: what they find, when they stop, and that interrupts and kills do not change it."""

from __future__ import annotations

import random
import re
import signal
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from lab import Lab, sittings, steps, wait_until

from ablations.study import read_study

# The fake trainer scores 100 + seed + |log of the rate over the preset's|: so `rate` is found at the first look, and
# `small` at none, though it could be.
STUDY = """
    name: adaptive
    question: Which variant differs?
    preset: embedded
    metric: fid
    seeds: {first: 3, most: 6}
    baseline: none
    set: {optim.steps: 3, optim.ttur: true, eval.every: 3, eval.endpoint: 1}
    factors:
      variant:
        none:    {}
        small:   {optim.lr_g: 0.01}
        rate:    {optim.lr_g: 1}
"""
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked")]
ALL = {"none": 6, "small": 6, "rate": 3}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab", "fake")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(textwrap.dedent(STUDY))
    return path


def trained(lab: Lab) -> Counter[str]:
    """Cells that were trained, by variant."""
    return Counter(cell.partition("/")[0] for cell in sittings(lab.folder))


def verdicts(lab: Lab, study: Path) -> dict[str, str]:
    """As the variants' runs in the store have them."""
    return {str(run.info.run_name): run.data.tags["verdict"] for run in lab.runs(study, "variant")}


def test_a_made_effect_is_found_early_and_what_stays_undecided_runs_to_the_most_seeds(lab: Lab, study: Path) -> None:
    status, said = lab.run(study, "--workers", "2")
    assert status == 0, said
    assert trained(lab) == ALL
    assert verdicts(lab, study) == {"none": "", "small": "undecided", "rate": "worse"}
    assert "Next look at 4 seeds; cells to train: 1 of none, 1 of small." in said
    assert re.search(r"rate raises .* decided after 3 seeds; small .* undecided after 6 seeds\.", said)
    assert "15 cells: 15 finished." in said
    status, said = lab.run(study, "--workers", "2")
    assert (status, "Nothing to run." in said, "15 cells: 15 finished." in said) == (0, True, True)


def test_a_bound_ends_a_launch_and_the_same_command_goes_on(lab: Lab, study: Path) -> None:
    status, said = lab.run(study, "--workers", "2", "--most", "4")
    assert (status, trained(lab)) == (0, Counter({"none": 4, "small": 4, "rate": 3})), said
    status, said = lab.run(study, "--workers", "2", "--until", "2s", FAKE_GATE="never")
    assert status == 0 and "The time is up. The same command goes on from here." in said
    assert (lab.run(study, "--workers", "2")[0], trained(lab)) == (0, ALL)


def test_a_plan_that_was_changed_is_refused_and_nothing_is_written(lab: Lab, study: Path) -> None:
    assert lab.run(study, "--most", "3", "--workers", "2")[0] == 0
    before = {path: path.stat().st_mtime for path in lab.folder.rglob("*") if path.is_file() and path != lab.said}
    study.write_text(study.read_text().replace("most: 6", "most: 8").replace("metric: fid", "metric: kid"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(lab.folder)
        with pytest.raises(
            ValueError, match=r"most was 6, now 8, metric was fid, now kid\); restore the old values or rename"
        ):
            lab.store().check_seeds(read_study(study))
    assert lab.run(study)[0] == 2
    after = {path: path.stat().st_mtime for path in lab.folder.rglob("*") if path.is_file() and path != lab.said}
    assert {path.name for path in after.keys() - before.keys()} <= {"mlflow.db-wal", "mlflow.db-shm"}


def test_failed_and_collapsed_cells_count_as_seeds_without_a_score(lab: Lab, study: Path) -> None:
    fates = "raises: {optim.d_steps: 7}\n    collapses: {optim.d_steps: 9}"
    study.write_text(study.read_text().replace("small:   {optim.lr_g: 0.01}", fates))
    status, said = lab.run(study, "--workers", "2")
    assert status == 1, said
    assert trained(lab) == {"none": 6, "raises": 6, "collapses": 6, "rate": 3}
    assert "raises and collapses not compared, for lack of scores." in said
    assert "decided after 3 seeds" in said, "they hold up nobody"


def test_launches_that_are_killed_at_random_train_and_find_what_an_undisturbed_one_does(lab: Lab, study: Path) -> None:
    chance = random.Random(1)
    options = ("--workers", "2")
    for _ in range(5):
        launch = lab.start(study, *options)
        saved = sum(steps(lab.folder)) + chance.randrange(1, 9)
        wait_until(lambda saved=saved, launch=launch: sum(steps(lab.folder)) >= saved or launch.poll() is not None)
        launch.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        launch.wait(120)
        wait_until(lambda: not lab.workers(), 20)
    status, said = lab.run(study, *options)
    assert status == 0, said
    assert (trained(lab), verdicts(lab, study)) == (ALL, {"none": "", "small": "undecided", "rate": "worse"})


def test_two_launchers_and_a_worker_share_one_plan(lab: Lab, study: Path) -> None:
    launches = [lab.start(study, "--workers", "1", *more) for more in ([], [], ["--worker-only"])]
    assert [launch.wait(240) for launch in launches] == [0, 0, 0], lab.said.read_text()
    assert trained(lab) == ALL
    assert all(begun == [0] for begun in sittings(lab.folder).values())
    assert verdicts(lab, study)["rate"] == "worse"


def test_cells_of_another_study_count(lab: Lab, study: Path) -> None:
    other = study.with_name("other.yaml")
    other.write_text(study.read_text().replace("name: adaptive", "name: other").replace("small", "slight"))
    status, said = lab.run(study, "--workers", "2", str(other))
    assert status == 0, said
    assert trained(lab) == ALL, "the second trains nothing"
    assert re.search("other: 15 cells: 15 finished; 15 shared with adaptive", said)
