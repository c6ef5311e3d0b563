from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import nursery
import pytest

STUDY = """
    name: position
    question: Where should attention sit?
    preset: embedded
    paper: table1
    seeds: [0, 1]
    baseline: none
    factors:
      attention:
        none:   {}
        feat32: {model.attention.at: [32]}
        feat64: {model.attention.at: [64]}
"""


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., Path]:
    """Writes a study of three variants, feat64 impossible, after replacing {old: new} in its text."""

    def write(changes: dict[str, str] | None = None, text: str = STUDY) -> Path:
        text = textwrap.dedent(text).strip() + "\n"
        for old, new in (changes or {}).items():
            assert old in text, f"{old!r} is not in the study"
            text = text.replace(old, new)
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="session")
def forked() -> Iterator[None]:
    """Opens the nursery, from which the launchers and workers of tests/ablations/lab.py are forked."""
    if sys.platform != "linux":
        pytest.skip("the nursery writes its children's command lines as Linux does")
    with nursery.nursery():
        yield
