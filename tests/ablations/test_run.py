"""Bad input on the command line: one clear message, status 2, nothing written, and quickly."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ablations.generate import main as generate
from ablations.queue import CellQueue
from ablations.run import main
from ablations.study import read_study

WriteStudy = Callable[..., Path]

BAD = [
    (["--set", "optim.stepz=3"], "--set optim.stepz: no such field; did you mean 'optim.steps'?"),
    (["--set", "optim.steps"], "--set: must be KEY=VALUE"),
    (["--set", "model.width_g=1e15"], "--set model.width_g: must be 16384 at most, got 1"),
    (["--set", "data.name=cifar"], "data.name: must be one of embedded, cifar10, .*got 'cifar'"),
    (
        ["--set", "eval.extractor=incepton"],
        "eval.extractor: must be one of embedded-v2, inception, got 'incepton'; did you mean 'inception'",
    ),
    (["--seeds", "a,b"], "--seeds: must be different whole numbers, got 'a,b'"),
    (["--seeds", "2147483648"], "--seeds: must be 2147483647 at most, got 2147483648"),
    (["--seeds", "1,1"], "--seeds: must be different"),
    (["--until", "soon"], "--until: must be a time above 0, got 'soon'; write 45min, 2h or 90s"),
    (["--until", "0h"], "--until: must be a time above 0, got '0h'"),
    (["--most", "8"], "--most: needs adaptive seeds, but .*study.yaml has a list; remove one of them"),
    (["--only", "feat9"], "study.yaml: --only: no cell matches 'feat9'; variants are none, feat32, "),
    (["--only", "feat64"], r"feat64 \(needs 128 px\)"),
    (["--rerun", "feat9"], "--rerun: no cell matches 'feat9'; cells are none/seed0, feat32/seed0, none/seed1, "),
    (["--rerun", "none", "--only", "feat32"], "--rerun: no cell matches 'none'; cells are feat32/seed0, "),
    (["--rerun", "none", "--worker-only"], "--rerun: must go without --worker-only"),
    (["--workers", "many"], "--workers: must be a whole number above 0 or auto, got 'many'"),
    (["--data-root", "nowhere"], "--data-root: no such file or folder, got 'nowhere'"),
    (["--inception-weights", "no.pth"], "--inception-weights: no such file"),
    (["--storage", "postgresql+pg8000://h/q"], r"--storage: needs .* '.\[postgres\]'"),
    (["--storage", "sqlite:///no/optuna.db"], "--storage: must be in a folder that exists"),
    (["--storage", "mysql://me:secret@h/q"], r"--storage: must be a sqlite or .*, got 'mysql://me:\*\*\*@h/q'"),
    (["--tracking-uri", "./mlruns"], "--tracking-uri: must be a sqlite, postgresql or http URI"),
    (
        ["--tracking-uri", "http://me:secret@127.0.0.1:9"],
        r"--tracking-uri: does not answer, got 'http://me:\*\*\*@127.0.0.1:9' ",
    ),
    (["--preset", "embeded"], "--preset: must be one of .*did you mean 'embedded'?"),
    (["--preset", "folder"], "--data-root: must name the folder of data.name=folder, got none"),
    (["--preset", "folder", "--data-root", "."], "--data-root: .* holds no images"),
    (["--calibrate"], "--calibrate: must go with --dry-run, got it alone; add --dry-run"),
    (["--threads", "0"], "--threads: must be 1 or more, got 0"),
    (["--device", "gpu"], "--device: must be cpu, cuda or cuda:N, got 'gpu'"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_gives_one_message_and_writes_nothing(
    options: list[str], message: str, write_study: WriteStudy, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write_study()), *options]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert re.search(message, error), error
    assert "secret" not in error
    assert list(work.iterdir()) == []


def test_a_store_that_the_environment_names_is_told_by_its_variable(
    write_study: WriteStudy, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    message = "MLFLOW_TRACKING_URI: must be a sqlite, postgresql or http URI, got 'databricks'"
    for program, arguments in ((main, [str(write_study())]), (generate, ["0" * 32, "--out", "grid.png"])):
        assert program(arguments) == 2
        assert message in capsys.readouterr().err


def test_a_bound_on_adaptive_seeds_lies_within_their_plan(
    write_study: WriteStudy, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study({"[0, 1]": "{first: 3, most: 8}"})
    for most in ("2", "9"):
        assert main([str(path), "--most", most]) == 2
        assert f"--most: must be in 3..8, as {path} has it in seeds, got {most}" in capsys.readouterr().err
    assert list(work.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(
    write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir("/proc")  # even root makes no file there
    assert main([str(write_study())]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "name"), [("--storage", "optuna.db"), ("--tracking-uri", "mlflow.db")])
def test_a_file_that_is_no_database_is_refused(
    option: str, name: str, write_study: WriteStudy, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / name).write_text("a diary, perhaps\n" * 100)
    assert main([str(write_study()), option, f"sqlite:///{name}"]) == 2
    assert capsys.readouterr().err.startswith(f"{option}: does not answer")


def test_a_queue_that_is_damaged_is_named_with_what_to_do(
    write_study: WriteStudy, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, queue_file = write_study(), work / "optuna.db"
    with contextlib.closing(CellQueue("sqlite:///optuna.db", "position", read_study(path).cells())) as queue:
        queue.enqueue(set())
    with sqlite3.connect(queue_file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.truncate(queue_file, queue_file.stat().st_size // 2)
    assert main([str(path)]) == 2
    assert re.match("--storage: does not answer, .*malformed.*; delete it: results are in", capsys.readouterr().err)
    assert not (work / "mlflow.db").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    write_study: WriteStudy, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write_study()), "--dry-run", "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "feat32 changes against none: model.attention.at [] -> [32]" in shown
    assert "needs 128 px" in shown
    assert "4 cells: none/seed0, feat32/seed0, none/seed1, feat32/seed1" in shown
    assert "--calibrate measures it" in shown
    assert "What this could show with 80 % power (1 comparison, n = 2 per variant): " in shown
    assert list(work.iterdir()) == []


def test_the_mistakes_of_all_studies_are_told_at_once(
    write_study: WriteStudy, tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, twin = write_study(), tmp_path / "twin.yaml"
    twin.write_text(good.read_text())
    bad, worse = tmp_path / "bad.yaml", tmp_path / "worse.yaml"
    bad.write_text(good.read_text().replace("name: position", "name: bad").replace("embedded", "embeded"))
    worse.write_text(good.read_text().replace("name: position", "name: worse").replace("[0, 1]", "[]"))
    assert main([str(good), str(bad), str(worse), str(twin), "--set", "optim.stepz=1"]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("--set optim.stepz: no such field"), "once, not once a file"
    assert second.startswith(f"{bad}:3:9: preset")
    assert third.startswith(f"{worse}:5:8: seeds")
    assert main([str(good), str(twin)]) == 2
    expected = f"{twin}: name: 'position' is the name of {good} too; rename one, or give it once\n"
    assert capsys.readouterr().err == expected
    assert list(work.iterdir()) == []


def test_seeds_that_confirm_a_search_are_not_its_own(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "studies" / "ttur_search.yaml"
    assert main([str(path), "--seeds", "0,100"]) == 2
    assert capsys.readouterr().err == f"--seeds: 100 trains the trials of {path}; confirm with other seeds\n"


def test_a_dry_run_of_several_studies_skips_those_without_a_cell_and_ends_with_the_sum(
    write_study: WriteStudy, tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = Path(__file__).parents[2] / "studies" / "ttur_search.yaml"
    study, other = write_study(), tmp_path / "other.yaml"
    other.write_text(study.read_text().replace("name: position", "name: other"))
    assert main([str(search), str(study), "--only", "feat*", "--dry-run", str(other), "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert f"Skipped: {search}: --only: no cell matches 'feat*'" in shown
    assert "2 studies, 4 cells, 2 of them shared: " in shown
    assert main([str(search), "--dry-run", "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "6 trials at seed 100 for the lowest fid over optim.lr_g in 0.0001..0.002 (log), " in shown
    assert "12 cells: trial00/seed100, " in shown


@pytest.mark.parametrize("arguments", [["--help"], ["no_such_study.yaml"]])
def test_help_and_a_bad_file_answer_before_anything_slow_is_imported(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ablations.run", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == (0 if arguments == ["--help"] else 2)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "mlflow", "optuna", "pandas", "numpy"}


def test_ctrl_c_before_the_first_study_is_one_line(
    write_study: Callable[..., Path], work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ablations.launch.run_studies", interrupted)
    monkeypatch.setattr("ablations.trainers.start_server", lambda threads: None)
    assert main([str(write_study())]) == 130
    assert capsys.readouterr().err == "Stopped. The same command goes on from here.\n"
