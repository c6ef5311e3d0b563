"""Checkpoints: written to another file and renamed, so that none is half written; checked by hash; read without running
code that they may contain.

A file is 8 fixed bytes, the SHA-256 of the rest, and the output of `torch.save`. The checkpoint before is kept as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_MAGIC = b"SAGANCK1"
_HEAD = len(_MAGIC) + hashlib.sha256().digest_size
_NAMES = ("checkpoint.pt", "checkpoint.previous.pt")

log = logging.getLogger(__name__)


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Make `state` (tensors and plain values) the newest checkpoint in `directory`. An OSError leaves the old ones."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    newest, previous = (directory / name for name in _NAMES)
    write_atomically(newest.with_suffix(".new"), _MAGIC + hashlib.sha256(content).digest() + content)
    if newest.exists():
        os.replace(newest, previous)
    os.replace(newest.with_suffix(".new"), newest)


def take_checkpoints(source: Path, directory: Path) -> None:
    """Move the checkpoints of `source` to `directory`, which has none; a process may still be writing to `source`."""
    for name in _NAMES:
        with contextlib.suppress(FileNotFoundError):
            os.replace(source / name, directory / name)


def has_checkpoint(directory: Path) -> bool:
    return any((directory / name).exists() for name in _NAMES)


def remove_checkpoints(directory: Path) -> None:
    for name in _NAMES:
        (directory / name).unlink(missing_ok=True)


def put_checkpoint(directory: Path, content: bytes) -> None:
    """Write a checkpoint that `read_checkpoint` returned."""
    write_atomically(directory / _NAMES[0], content)


def has_undamaged_checkpoint(directory: Path) -> bool:
    """Whether `load_checkpoint` would find one that is not damaged."""
    return any(is_undamaged for _, _, is_undamaged in _files(directory))


def read_checkpoint(directory: Path) -> tuple[bytes, dict[str, Any]] | None:
    """The newest undamaged checkpoint, as the bytes of its file and as its state; None where there is no checkpoint of
    this package.

    Changes nothing: it may be a run's that another process trains.
    """
    for path, content, is_undamaged in _files(directory):
        if is_undamaged:
            with contextlib.suppress(ValueError):
                return content, _state(path, content)
            return None
    return None


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """The newest undamaged checkpoint, or None if there is none; a damaged one is renamed, with a warning in the log.

    Raises ValueError for a file that no version of this package wrote: it may contain code, which is not run.
    """
    damaged = False
    for path, content, is_undamaged in _files(directory):
        if is_undamaged:
            if damaged:
                log.warning("resuming from %s", path)
            return _state(path, content)
        damaged = True
        aside = path.with_suffix(".damaged")
        os.replace(path, aside)  # otherwise the next save would replace the undamaged checkpoint by this one
        log.warning("%s is damaged (its checksum does not match); it is %s now", path, aside.name)
    if damaged:
        log.warning("no undamaged checkpoint in %s: the run starts again from step 0", directory)
    return None


def _files(directory: Path) -> Iterator[tuple[Path, bytes, bool]]:
    """The checkpoints, the newest first: path, content, and whether it is undamaged."""
    for path in (directory / name for name in _NAMES):
        with contextlib.suppress(FileNotFoundError):
            content = path.read_bytes()
            yield path, content, content[:_HEAD] == _MAGIC + hashlib.sha256(content[_HEAD:]).digest()


def _state(path: Path, content: bytes) -> dict[str, Any]:
    try:
        state = torch.load(io.BytesIO(content[_HEAD:]), map_location="cpu", weights_only=True)
        assert isinstance(state, dict)
        return state
    except Exception:  # torch raises many kinds here, and its messages advise to run the code
        raise ValueError(
            f"{path}: must hold tensors and plain values only, got other things, so no version of ours wrote it; "
            f"nothing of it was run; remove it"
        ) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write and flush `content` to `path`; a reader, or a crash, sees all of it or the file as it was."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
