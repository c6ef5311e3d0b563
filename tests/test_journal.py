from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagan import journal
from sagan.journal import Journal, Record, current, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / journal.NAME


def write(path: Path, *steps: int) -> None:
    with Journal(path) as book:
        for step in steps:
            book.append(step, {"fid": step / 2})


def steps(records: list[Record]) -> list[int]:
    return [record.step for record in records]


def test_what_is_written_is_read_back_and_every_line_is_json(path: Path) -> None:
    metrics = {"fid": 0.1, "loss_g": math.inf, "loss_d": -math.inf, "is": math.nan}
    with Journal(path) as book:
        written = book.append(100, metrics, ["samples/step_0000100.png"], "diverged")
    (found,), _ = read(path)
    assert math.isnan(found.metrics.pop("is")) and math.isnan(written.metrics.pop("is"))
    assert found == written
    assert found.files == ("samples/step_0000100.png",) and found.status == "diverged"

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["metrics"]["is"] == "NaN"


def test_a_reader_follows_from_offset_to_offset(path: Path) -> None:
    assert read(path) == ([], 0), "of no file there is nothing yet"
    seen, offset = [], 0
    with Journal(path) as book:
        for step in (1, 2, 3):
            book.append(step, {})
            records, offset = read(path, offset)
            seen += records
    assert steps(seen) == [1, 2, 3]
    assert offset == path.stat().st_size
    assert read(path, offset) == ([], offset)


@pytest.mark.parametrize("truncated", [b'{"time": 1, "st', b'{"time": 1}\n', b"\0\0\0\0\n", b"\xff"])
def test_a_truncated_last_line_is_ignored_and_removed_at_the_next_write(path: Path, truncated: bytes) -> None:
    write(path, 1, 2)
    complete = path.read_bytes()
    path.write_bytes(complete + truncated)
    assert (steps(read(path)[0]), read(path)[1]) == ([1, 2], len(complete))
    with Journal(path) as book:
        assert path.read_bytes() == complete + truncated, "a journal that is opened is not changed"
        book.append(3, {})
    assert steps(read(path)[0]) == [1, 2, 3]


def test_a_line_that_is_damaged_inside_is_named_also_by_a_reader_that_follows(path: Path) -> None:
    write(path, 1, 2, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b'"step"', b'"stop"') + lines[2])
    for offset in (0, len(lines[0])):
        with pytest.raises(ValueError, match=r"journal\.jsonl:2: must be .* damaged \('step'\)"):
            read(path, offset)
    with pytest.raises(ValueError, match=r"journal\.jsonl:2"):
        Journal(path)


def test_one_process_writes_at_a_time(path: Path) -> None:
    with Journal(path), pytest.raises(ValueError, match="another process trains in this folder"):
        Journal(path)
    write(path, 1)


def test_a_full_disk_leaves_whole_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, 1)
    before = path.read_bytes()
    with Journal(path) as book:
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OSError, match="No space left"):
                book.append(2, {})
        assert path.read_bytes() == before
        book.append(2, {})
    assert steps(read(path)[0]) == [1, 2]


def test_times_increase_also_where_the_clock_was_put_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, 1)
    monkeypatch.setattr("time.time", lambda: 0.0)
    write(path, 2, 3)
    times = [record.time for record in read(path)[0]]
    assert times == sorted(set(times))


@given(st.lists(st.integers(0, 6)))
def test_of_lines_that_log_a_step_again_the_last_pass_counts(told: list[int]) -> None:
    records = [Record(float(place), step) for place, step in enumerate(told)]
    # By definition: a line counts where no later one has its step or an earlier one.
    wanted = [one for one in records if all(later.step > one.step for later in records if later.time > one.time)]
    assert current(records) == wanted
