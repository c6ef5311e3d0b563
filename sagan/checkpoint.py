"""Checkpoints that are whole or absent: written aside and renamed, checked by hash, read without running code.

A file is 8 bytes of magic, the SHA-256 of the rest, and what `torch.save` wrote. The last but one is kept beside it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import torch

_MAGIC = b"SAGANCK1"
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


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, or None where there is none; a damaged one is said in the log and passed over."""
    for name in _NAMES:
        path = directory / name
        if not path.exists():
            continue
        content = path.read_bytes()
        magic, expected, payload = content[:8], content[8:40], content[40:]
        if magic != _MAGIC or hashlib.sha256(payload).digest() != expected:
            log.warning("%s is damaged (its checksum does not match); trying the one before it", path)
            continue
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    return None


def check_same_run(directory: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raises ValueError that names what differs between this run and the one whose checkpoint is there."""
    names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if names:
        changes = "; ".join(f"{name} is {theirs.get(name)} there, {ours.get(name)} here" for name in names)
        raise ValueError(f"{directory} holds a checkpoint of another run: {changes}. Use another folder, or remove it.")


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
