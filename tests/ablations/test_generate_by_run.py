"""`python -m ablations.generate`: the generator of a run in the store; what is drawn is tested in test_generate.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablations.generate import main
from ablations.tracking.store import open_client
from sagan import generate
from sagan.config import Config
from sagan.generator_file import save_generator
from sagan.networks import Generator


@pytest.fixture(scope="module")
def store(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str], Path]]:
    """Its URI, the ids of its runs, and the file of the one that was trained."""
    folder = tmp_path_factory.mktemp("store")
    file = folder / "generator.safetensors"
    save_generator(file, Generator(tiny.model, tiny.data.resolution, 2).eval(), tiny, ("grain", "twins"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        uri = f"sqlite:///{folder}/mlflow.db"
        client = open_client(uri)
        experiment = client.create_experiment("study")
        trained = client.create_run(experiment).info.run_id
        client.log_artifact(trained, str(file))
        copied = client.create_run(experiment, tags={"shared_run": trained}).info.run_id
        half = client.create_run(experiment).info.run_id
        yield uri, {"trained": trained, "copied": copied, "half": half}, file


@pytest.mark.slow
@pytest.mark.parametrize("run", ["trained", "copied"])
def test_a_run_is_drawn_as_the_file_that_it_keeps(
    run: str, store: tuple[str, dict[str, str], Path], tmp_path: Path
) -> None:
    uri, runs, file = store
    by_run, by_file = tmp_path / "run.png", tmp_path / "file.png"
    assert main([runs[run], "--tracking-uri", uri, "--n", "3", "--out", str(by_run)]) == 0
    assert generate.main([str(file), "--n", "3", "--out", str(by_file)]) == 0
    assert by_run.read_bytes() == by_file.read_bytes()


RUN_ID = "0123456789abcdef0123456789abcdef"
MISTAKES = [
    ([RUN_ID[1:]], "RUN_ID: must be the 32 hexadecimal digits of a run"),
    ([RUN_ID], "--tracking-uri: must be a store that exists, got 'sqlite:///mlflow.db'"),
    ([RUN_ID, "--out", "grid.jpg"], r"--out: must end in \.png"),
    ([RUN_ID, "--tracking-uri=STORE"], f"RUN_ID: must be a run of the store .*, got {RUN_ID}"),
    (["half", "--tracking-uri=STORE"], "whose generator.safetensors cannot be loaded"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_told_in_one_line_and_leaves_nothing(
    words: list[str],
    message: str,
    store: tuple[str, dict[str, str], Path],
    work: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri, runs, _ = store
    assert main(["--out", "grid.png", *(runs.get(word, word.replace("STORE", uri)) for word in words)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said)
    assert list(work.iterdir()) == []
