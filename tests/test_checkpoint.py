from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from sagan import checkpoint
from sagan.checkpoint import load_checkpoint, save_checkpoint


def saved_twice(directory: Path) -> Path:
    """Checkpoints 1 and 2; returns the newest file."""
    for value in (1, 2):
        save_checkpoint(directory, {"step": value, "weight": torch.full((3,), float(value))})
    return directory / "checkpoint.pt"


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved_twice(tmp_path)
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 2
    assert torch.equal(state["weight"], torch.full((3,), 2.0))


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "empty"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    newest = saved_twice(tmp_path)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"truncated": content[:100], "bit flipped": content, "empty": b""}[damage])
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 1
    assert "is damaged" in caplog.text


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_twice(tmp_path)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, {"step": 3})
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    save_checkpoint(tmp_path, {"step": Attack()})
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()
