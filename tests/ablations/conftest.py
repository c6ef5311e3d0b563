from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import forks
import pytest

from ablations.plan import Study
from ablations.study import read_study
from ablations.tracking.store import Store

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


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a test: an empty one."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One store for the module, in a folder with a space and a letter that is not ASCII."""
    folder = tmp_path_factory.mktemp("två ord")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Store(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture
def study(write_study: Callable[..., Path], request: pytest.FixtureRequest) -> Study:
    """Under a name of the test's own, so that tests may share a store."""
    name = "s_" + request.node.name.encode().hex()[-24:]
    return read_study(write_study({"name: position": f"name: {name}"}))


@pytest.fixture(scope="session")
def forked() -> Iterator[None]:
    """Starts the server that forks the launchers and training processes of tests/ablations/lab.py."""
    if sys.platform != "linux":
        pytest.skip("the server writes its children's command lines as Linux does")
    with forks.fork_server():
        yield
