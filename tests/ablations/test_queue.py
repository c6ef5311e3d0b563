from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy
from optuna.trial import TrialState
from postgres import postgres_server

from ablations.plan import Cell
from ablations.queue import MAX_CRASHES, CellQueue, Claim, ClaimLost, LauncherProcess
from ablations.storage import open_storage, trial_records, waiting
from ablations.study import read_study

WriteStudy = Callable[..., Path]
HERE = Path(__file__).parent


@pytest.fixture
def cells(write_study: WriteStudy) -> list[Cell]:
    return read_study(write_study()).cells()


@pytest.fixture
def open_queue(tmp_path: Path, cells: list[Cell]) -> Callable[..., CellQueue]:
    return lambda **options: CellQueue(f"sqlite:///{tmp_path}/optuna.db", "position", cells, **options)


@pytest.fixture
def queue(open_queue: Callable[..., CellQueue]) -> CellQueue:
    """In which every cell waits."""
    queue = open_queue()
    queue.enqueue(recorded=set())
    return queue


def dead_worker() -> LauncherProcess:
    """Our own process id, as a worker would have had it that is gone and whose id was given out again."""
    return replace(LauncherProcess.here(), token="an earlier start")


def claim(queue: CellQueue, worker: LauncherProcess | None = None) -> Claim:
    found = queue.claim(worker or LauncherProcess.here())
    assert found is not None
    return found


def test_cells_are_claimed_in_the_order_of_the_plan(queue: CellQueue, cells: list[Cell]) -> None:
    assert [claim(queue).cell for _ in cells] == cells
    assert queue.claim(LauncherProcess.here()) is None


def test_enqueueing_twice_adds_nothing(open_queue: Callable[..., CellQueue], cells: list[Cell]) -> None:
    assert open_queue().enqueue(recorded=set()) == len(cells)
    assert open_queue().enqueue(recorded=set()) == 0


def test_a_recorded_cell_is_not_enqueued_and_a_lost_record_is(
    open_queue: Callable[..., CellQueue], cells: list[Cell]
) -> None:
    queue = open_queue()
    assert queue.enqueue(recorded={cells[0].key}) == len(cells) - 1
    done = claim(queue)
    queue.complete(done, "finished")
    assert queue.enqueue(recorded={cells[0].key, done.cell.key}) == 0
    assert queue.enqueue(recorded={cells[0].key}, reopen_done=False) == 0, "the store may only be unreachable"
    assert queue.enqueue(recorded={cells[0].key}) == 1


def test_a_dead_workers_cell_waits_again_at_once(queue: CellQueue, cells: list[Cell]) -> None:
    lost = claim(queue, dead_worker())
    kept = claim(queue, LauncherProcess.here())
    assert queue.release_stale() == [lost.cell]
    states = {state.cell.name: state.state for state in queue.states()}
    assert (states[lost.cell.name], states[kept.cell.name]) == ("waiting", "running")


def test_a_silent_worker_elsewhere_loses_its_cell_after_the_grace_period(open_queue: Callable[..., CellQueue]) -> None:
    patient, hasty = open_queue(timeout_seconds=1000.0), open_queue(timeout_seconds=0.0)
    patient.enqueue(recorded=set())
    lost = claim(patient, replace(LauncherProcess.here(), host="another host"))
    assert patient.release_stale() == []
    assert hasty.release_stale() == []  # seen for the first time
    assert hasty.release_stale() == [lost.cell]


def test_workers_that_nobody_could_hear_are_given_the_grace_period_again(
    open_queue: Callable[..., CellQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the database was away: then no worker could give a sign of life."""
    now = 1000.0
    monkeypatch.setattr("ablations.queue.time.monotonic", lambda: now)
    queue = open_queue(timeout_seconds=100.0)
    queue.enqueue(recorded=set())
    lost = claim(queue, replace(LauncherProcess.here(), host="another host"))
    for seconds, taken_back in ((0, []), (500, []), (50, []), (49, []), (2, [lost.cell])):
        now += seconds
        assert queue.release_stale() == taken_back


def test_a_worker_that_was_taken_for_dead_cannot_complete_its_cell(queue: CellQueue) -> None:
    lost = claim(queue, dead_worker())
    queue.release_stale()
    assert queue.beat({lost: {}}) == [lost]
    for act in (lambda: queue.complete(lost, "finished"), lambda: queue.release(lost)):
        with pytest.raises(ClaimLost):
            act()
    assert claim(queue).cell == lost.cell


def test_a_cell_that_kills_its_workers_fails(queue: CellQueue) -> None:
    for _ in range(MAX_CRASHES):
        deadly = claim(queue, dead_worker())
        queue.release_stale()
    state = next(state for state in queue.states() if state.cell == deadly.cell)
    assert state.state == "failed"
    assert state.error is not None and "crashed 3 times" in state.error


def test_a_cell_that_comes_further_between_deaths_is_not_blamed_for_them(queue: CellQueue) -> None:
    for began in (0, 500, 500, 1000, 1000, 1500):
        claimed = claim(queue, dead_worker())
        assert not queue.beat({claimed: {"since": began, "step": began + 100}})
        assert queue.release_stale() == [claimed.cell]
    state = next(state for state in queue.states() if state.cell == claimed.cell)
    assert state.state == "waiting"


def test_a_cell_whose_process_dies_waits_again_until_it_has_killed_three(queue: CellQueue) -> None:
    for deaths in range(1, MAX_CRASHES + 1):
        claimed = claim(queue)
        queue.release(claimed, has_crashed=True)
        state = next(state for state in queue.states() if state.cell == claimed.cell)
        assert state.state == ("failed" if deaths == MAX_CRASHES else "waiting")


def test_a_failed_cell_is_run_again_only_when_asked(queue: CellQueue) -> None:
    queue.fail(claim(queue), "RuntimeError: out of memory")
    assert queue.enqueue(recorded=set()) == 0
    assert queue.enqueue(recorded=set(), retry_failed=True) == 1


def test_a_released_cell_waits_for_the_next_worker(queue: CellQueue) -> None:
    first = claim(queue)
    queue.release(first)
    assert claim(queue).cell == first.cell


def test_a_launch_claims_only_its_own_cells(
    tmp_path: Path, open_queue: Callable[..., CellQueue], cells: list[Cell]
) -> None:
    open_queue().enqueue(recorded=set())
    only = CellQueue(f"sqlite:///{tmp_path}/optuna.db", "position", cells[2:3])
    assert claim(only).cell == cells[2]
    assert only.claim(LauncherProcess.here()) is None


@pytest.mark.slow
def test_four_processes_claim_forty_cells_exactly_once(tmp_path: Path, write_study: WriteStudy) -> None:
    seeds = str(list(range(20)))
    path = write_study({"[0, 1]": seeds})
    study = read_study(path)
    url, log = f"sqlite:///{tmp_path}/optuna.db", tmp_path / "claims.txt"
    CellQueue(url, study.name, study.cells()).enqueue(recorded=set())
    command = [sys.executable, str(HERE / "claimer.py"), url, str(path), str(log)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    claims = Counter(log.read_text().split())
    assert claims == Counter(cell.name for cell in study.cells())
    assert len(claims) == 40


def test_our_reading_of_trials_equals_optunas(queue: CellQueue, tmp_path: Path, cells: list[Cell]) -> None:
    queue.complete(claim(queue), "finished")
    queue.fail(claim(queue), "out of memory")
    assert not queue.beat({claim(queue): {"step": 3}})
    storage = open_storage(sqlalchemy.make_url(f"sqlite:///{tmp_path}/optuna.db"))
    study_id = storage.get_study_id_from_name("position")
    trials = storage.get_all_trials(study_id)
    expected = [(trial._trial_id, trial.state, trial.user_attrs) for trial in trials]
    assert [(found.trial_id, found.state, found.attrs) for found in trial_records(storage, study_id)] == expected
    wait = {trial.user_attrs["cell"]: trial._trial_id for trial in trials if trial.state == TrialState.WAITING}
    assert [found.trial_id for found in trial_records(storage, study_id, {TrialState.WAITING})] == list(wait.values())
    assert waiting(storage, study_id) == wait and wait


def test_a_cell_of_another_launch_that_is_being_trained_is_known_to_be(
    tmp_path: Path, queue: CellQueue, cells: list[Cell]
) -> None:
    kept, _ = claim(queue), claim(queue, dead_worker())
    others = CellQueue(f"sqlite:///{tmp_path}/optuna.db", "position", cells[2:])
    assert others.living().keys() == {kept.cell.key}
    assert others.release_stale() == [], "its own launch takes it back"


def test_processes_of_two_containers_are_never_taken_for_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their numbers of processes mean nothing to each other, though name and number of namespace may be the same."""
    monkeypatch.setattr("ablations.queue.os.readlink", lambda _path: "pid:[4026532299]")
    monkeypatch.setattr("ablations.queue.Path.is_symlink", lambda _path: True)
    here, read_text = LauncherProcess.here(), Path.read_text
    monkeypatch.setattr(
        "ablations.queue.Path.read_text",
        lambda path: "another boot" if path.name == "boot_id" else read_text(path),
    )
    assert LauncherProcess.here().host != here.host


@pytest.mark.slow
def test_a_queue_outlasts_a_database_that_is_started_anew(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ablations.storage._RETRY_SECONDS", 0.1)
    with postgres_server() as server:
        queue = CellQueue(server.url("queue"), "position", cells)
        queue.enqueue(recorded=set())
        claimed = claim(queue)
        server.stop()
        with ThreadPoolExecutor() as pool:
            answers = [
                pool.submit(queue.complete, claimed, "finished"),
                pool.submit(queue.claim, LauncherProcess.here()),
            ]
            wait(answers, timeout=0.5)
            assert not any(answer.done() for answer in answers)
            server.start()
            answers[0].result(60)
            second = answers[1].result(60)
        assert "does not answer, trying again" in caplog.text
        states = {state.cell.name: state.state for state in queue.states()}
        assert (states[claimed.cell.name], states[second.cell.name]) == ("done", "running")

        server.stop()
        monkeypatch.setattr("ablations.storage.PATIENCE_SECONDS", 0.3)
        with pytest.raises(sqlalchemy.exc.OperationalError):
            queue.states()
        queue.close()
