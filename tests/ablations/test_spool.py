from __future__ import annotations

import os
from pathlib import Path

import pytest

from ablations.spool import Mark, Spool, held_unsent, spools


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "none" / "seed0-1a2b"
    folder.mkdir(parents=True)
    return folder / "spool-00000000.jsonl"


def told(spool: Spool) -> list[str]:
    return [entry["name"] for entry, _ in spool.unsent()]


def tell(spool: Spool, *names: str) -> None:
    for name in names:
        spool.append("file", name=name)


def test_another_process_finds_in_order_what_the_store_lacks(path: Path) -> None:
    spool = Spool(path)
    tell(spool, "a", "b", "ö\n")
    ends = [end for _, end in spool.unsent()]
    spool.put_mark(Mark("run", ends[0]))
    assert told(spool) == told(Spool(path)) == ["b", "ö\n"]
    assert Spool(path).mark.run_id == "run"
    spool.put_mark(Mark("run", ends[-1]))
    assert not Spool(path).has_unsent


def test_a_torn_last_line_is_left_out_and_the_next_entry_is_whole(path: Path) -> None:
    tell(Spool(path), "a", "b")
    whole = path.read_bytes()
    for cut in range(1, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        assert told(Spool(path)) == ["a"]
    resumed = Spool(path)
    tell(resumed, "c")
    assert told(Spool(path)) == ["a", "c"]


def test_a_damaged_line_costs_itself_alone(path: Path) -> None:
    tell(Spool(path), "a", "b", "c")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[2])
    assert told(Spool(path)) == ["a", "c"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"sent": 5, "other": 1}'])
def test_without_a_readable_mark_all_is_sent_again(path: Path, content: bytes) -> None:
    tell(Spool(path), "a", "b")
    path.with_suffix(".sent").write_bytes(content)
    assert told(Spool(path)) == ["a", "b"]


def test_a_full_disk_is_told_and_costs_nothing_that_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(path)
    tell(spool, "a")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
        with pytest.raises(OSError, match="No space left"):
            tell(spool, "b")
    tell(spool, "c")
    assert told(spool) == ["a", "c"]


def test_a_spool_that_is_held_is_not_sent_by_others(path: Path, tmp_path: Path) -> None:
    worker = Spool(path)
    assert worker.hold(1.0)
    tell(worker, "a")
    assert not Spool(path).hold(0.0)
    assert list(held_unsent(tmp_path)) == []
    worker.release()
    assert [told(spool) for spool in held_unsent(tmp_path)] == [["a"]]
    assert worker.hold(0.0), "whoever looked has let it go"


def test_of_a_replayed_step_the_newer_point_counts(path: Path) -> None:
    spool = Spool(path)
    for step, time, fid in ((1, 10, 5.0), (2, 20, 4.0), (3, 30, 3.0), (2, 40, 9.0), (3, 50, 8.0)):
        spool.append("metrics", step=step, time=time, values={"fid": fid})
    spool.append("metrics", step=1, time=60, values={"fid": 1.0, "kid": 0.5})
    spool.append("tags", tags={"outcome": "collapsed", "last_step": "3"})
    found = Spool(path).summary()
    assert (found.metrics, found.time) == ({"fid": 8.0, "kid": 0.5}, 60)
    assert found.tags == {"outcome": "collapsed", "last_step": "3"}


def test_a_cleared_spool_has_forgotten_everything(path: Path) -> None:
    spool = Spool(path)
    tell(spool, "a")
    spool.put_mark(Mark("run", 10))
    spool.clear()
    tell(spool, "b")
    assert told(Spool(path)) == ["b"] and Spool(path).mark == Mark()


def test_cells_that_share_a_directory_have_spools_of_their_own(path: Path, tmp_path: Path) -> None:
    for key in ("study|embedded|none|0|1a2b", "study|mine|none|0|1a2b"):
        tell(Spool.of(path.parent, key), key)
    assert len([told(spool) for spool in spools(tmp_path)]) == 2
