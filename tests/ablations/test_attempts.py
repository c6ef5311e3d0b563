"""The folder of a cell: attempts that follow one another, and what each takes over from the one before."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from told import begin, describe, tell

from ablations.attempts import all_attempts, attempts
from ablations.plan import Cell
from ablations.study import read_study
from sagan.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def cell(write_study: Callable[..., Path]) -> Cell:
    return read_study(write_study()).cells()[0]


def test_the_next_attempt_goes_on_from_the_newest_checkpoint_that_is_not_damaged(cell: Cell, tmp_path: Path) -> None:
    first, second = begin(tmp_path, cell), begin(tmp_path, cell)
    save_checkpoint(first.folder, {"step": 3})
    save_checkpoint(second.folder, {"step": 5})
    third = begin(tmp_path, cell)
    assert [attempt.number for attempt in (first, second, third)] == [1, 2, 3]
    assert load_checkpoint(third.folder) == {"step": 5}
    (third.folder / "checkpoint.pt").write_bytes(b"SAGANCK1 and then the power went")
    assert load_checkpoint(begin(tmp_path, cell).folder) == {"step": 3}


def test_an_attempt_whose_cell_went_to_another_writes_to_its_own_folder_alone(cell: Cell, tmp_path: Path) -> None:
    first = begin(tmp_path, cell)
    save_checkpoint(first.folder, {"step": 3})
    tell(first, 3, {"fid": 1.0})
    second = begin(tmp_path, cell)
    before = {path.name: path.read_bytes() for path in second.folder.iterdir()}
    tell(first, 4, {"fid": 2.0}, status="finished")
    save_checkpoint(first.folder, {"step": 4})
    assert {path.name: path.read_bytes() for path in second.folder.iterdir()} == before
    assert [record.step for record in first.read(0, first.end)[0]] == [3] and first.outcome is None
    assert second.outcome is None and second.is_newest and not first.is_newest


def test_what_a_process_left_that_was_killed_while_it_made_an_attempt_is_passed_over(
    cell: Cell, tmp_path: Path
) -> None:
    first = begin(tmp_path, cell)
    (first.folder.parent / "attempt-2").mkdir()
    (first.folder.parent / "attempt-2" / "attempt.json").write_text('{"cell": "')
    assert [attempt.folder for attempt in attempts(first.folder.parent)] == [first.folder]
    assert begin(tmp_path, cell).number == 3


def test_cells_of_two_protocols_with_one_config_keep_their_attempts_apart(cell: Cell, tmp_path: Path) -> None:
    other = replace(cell, protocol="mine")
    one, two = begin(tmp_path, cell), begin(tmp_path, other)
    assert one.folder.parent == two.folder.parent
    assert [attempt.folder for attempt in attempts(one.folder.parent, cell.key)] == [one.folder]
    assert [attempt.cell for attempt in all_attempts(tmp_path / cell.study)] == [cell, other]


def test_a_damaged_journal_is_named_in_the_log_and_tells_nothing(
    cell: Cell, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = begin(tmp_path, cell)
    describe(attempt)
    for step in (1, 2):
        tell(attempt, step, {"fid": 1.0}, status="finished" if step == 2 else None)
    lines = attempt.journal.read_text().splitlines(keepends=True)
    attempt.journal.write_text("".join([lines[0], "#" + lines[1], *lines[2:]]))
    assert attempt.outcome is None and not attempt.has_unsent
    assert f"{attempt.journal}:2: " in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[]", '{"offset": 5, "other": 1}'])
def test_without_a_readable_mark_all_is_sent_again(cell: Cell, tmp_path: Path, content: str) -> None:
    attempt = begin(tmp_path, cell)
    tell(attempt, 1, {"fid": 1.0})
    attempt.write_upload_state(replace(attempt.upload_state, offset=attempt.journal.stat().st_size))
    assert not attempt.has_unsent
    (attempt.folder / "mirror.json").write_text(content)
    assert attempt.has_unsent


def test_a_claim_that_is_lost_stays_lost_whatever_is_sent_meanwhile(cell: Cell, tmp_path: Path) -> None:
    attempt = begin(tmp_path, cell)
    tell(attempt, 1, {"fid": 1.0}, status="finished")
    before = attempt.upload_state
    attempt.disable_upload()
    attempt.write_upload_state(before)  # by the thread that was sending it
    assert attempt.upload_state.is_lost and not attempt.has_unsent


def test_a_note_says_all_that_a_later_launch_needs(cell: Cell, tmp_path: Path) -> None:
    attempt = begin(tmp_path, cell, {"device": "cpu"})
    tell(attempt, 1, {"fid": 1.0})
    copy = attempt.become_copy(attempt.read()[0], {"shared_run": "r"})
    assert attempts(attempt.folder.parent) == [copy]
    assert json.loads((attempt.folder / "attempt.json").read_text())["copied"] == {"shared_run": "r"}
