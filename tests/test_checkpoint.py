from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sagan import checkpoint, load_generator
from sagan.checkpoint import load_checkpoint, save_checkpoint
from sagan.config import DataConfig
from sagan.data import open_dataset
from sagan.metrics.extractor import load_extractor
from sagan.metrics.inception import load_inception
from sagan.metrics.reference import load_reference


def saved_twice(directory: Path) -> Path:
    """Checkpoints 1 and 2; returns the newest file."""
    for value in (1, 2):
        save_checkpoint(directory, {"step": value, "weight": torch.full((3,), float(value))})
    return directory / "checkpoint.pt"


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    saved_twice(tmp_path)
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 2
    assert torch.equal(state["weight"], torch.full((3,), 2.0))


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
    assert "checkpoint.pt is damaged" in caplog.text and "resuming from" in caplog.text

    save_checkpoint(tmp_path, {"step": 3})
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    state = load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 1, "the undamaged one was kept"


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


class Attack:
    """Unpickled, it touches a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def test_a_pickle_that_would_run_code_is_refused_though_its_checksum_is_right(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    saved_twice(tmp_path)
    save_checkpoint(tmp_path, {"step": Attack(mark)})
    with pytest.raises(
        ValueError, match="checkpoint.pt: must hold tensors and plain values only, .*; nothing of it was run"
    ):
        load_checkpoint(tmp_path)
    bare = pickle.dumps(Attack(mark))
    (tmp_path / "checkpoint.pt").write_bytes(b"SAGANCK1" + hashlib.sha256(bare).digest() + bare)
    with pytest.raises(ValueError, match="nothing of it was run"):
        load_checkpoint(tmp_path)
    assert not mark.exists()
    pickle.loads(bare)
    assert mark.exists(), "the attack is one"


def test_no_file_that_is_read_back_runs_a_pickle(tmp_path: Path) -> None:
    """Generators, extractors, reference statistics and prepared images, each in the place where it is looked for."""
    mark, cache = tmp_path / "ran", tmp_path / "cache"
    evil = pickle.dumps(Attack(mark))
    file = tmp_path / "generator.safetensors"
    file.write_bytes(evil)
    with pytest.raises(ValueError, match="must be a generator.safetensors, got a file that is damaged"):
        load_generator(file)

    (cache / "extractors").mkdir(parents=True)
    name = f"mine-{hashlib.sha256(evil).hexdigest()[:8]}"
    (cache / "extractors" / f"{name}.safetensors").write_bytes(evil)
    with pytest.raises(ValueError, match=f"{name}.safetensors is no classifier of ours"):
        load_extractor(name, device="cpu", cache_dir=cache)
    for weights in (file, file.with_suffix(".pth")):
        weights.write_bytes(evil)
        with pytest.raises(ValueError, match="does not hold Inception's state dict"):
            load_inception(weights)

    (tmp_path / "pictures").mkdir()
    for number in range(12):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / "pictures" / f"{number}.png")
    dataset = open_dataset(DataConfig(name="folder", resolution=32), tmp_path / "pictures", cache)
    (labels,) = (cache / "images").glob("*/labels.npy")
    for content in (evil, as_array(Attack(mark))):
        labels.write_bytes(content)
        again = open_dataset(DataConfig(name="folder", resolution=32), tmp_path / "pictures", cache)
        assert again.fingerprint == dataset.fingerprint and again.labels.tolist() == [0] * 12

    extractor = load_extractor("embedded-v2", device="cpu")
    for _ in range(2):
        reference = load_reference(dataset, extractor, cache, torch.device("cpu"))
        assert reference.labels.tolist() == [0] * 12
        (stored,) = cache.glob("reference-*.safetensors")
        stored.write_bytes(evil)
    assert not mark.exists()


def as_array(attack: Attack) -> bytes:
    """A .npy file of one object."""
    content = io.BytesIO()
    np.save(content, np.array([attack]), allow_pickle=True)
    return content.getvalue()
