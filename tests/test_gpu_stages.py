"""`tests/gpu/run.sh`, which works through everything that needs a GPU, rehearsed without one; and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

RUN = Path(__file__).parent / "gpu" / "run.sh"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(["bash", str(RUN), *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ([], {}, "OUT and MINUTES must be given"),
        (["OUT"], {}, "OUT and MINUTES must be given"),
        (["OUT", "0"], {}, "MINUTES must be a whole number of 1 to 999, got '0'"),
        (["OUT", "0.2"], {}, "MINUTES must be a whole number of 1 to 999, got '0.2'"),
        (["OUT", "5", "6"], {}, "a STAGE must be a number of 1 to 5, got '6'"),
        (["OUT", "5"], {"PYTHON": "no-python"}, "PYTHON must be a Python interpreter, got 'no-python'"),
        (["OUT", "5"], {"DEVICE": "tpu"}, "DEVICE must be cuda or cpu, got 'tpu'"),
        (["/proc/out", "5"], {}, "OUT must be a folder that can be written, got '/proc/out'"),
        (
            ["OUT", "5"],
            {"PICTURES": "none.tar", "EXTRACTOR": __file__},
            "PICTURES must be a file that pack_pictures.py made, got 'none.tar'",
        ),
        (
            ["OUT", "5"],
            {"EXTRACTOR": "none"},
            "PICTURES and EXTRACTOR must be given together, got PICTURES='' and EXTRACTOR='none'",
        ),
        (
            ["OUT", "5"],
            {"PICTURES": __file__, "EXTRACTOR": "none"},
            "EXTRACTOR must be a classifier's weights, got 'none'",
        ),
        (["OUT", "08"], {}, "MINUTES must be a whole number of 1 to 999, got '08'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: list[str], environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    arguments = [str(tmp_path / "out") if word == "OUT" else word for word in arguments]
    found = run(*arguments, **{"DEVICE": "cpu", **environment})
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.startswith(f"run.sh: {said}") and found.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the message says is missing")
def test_a_machine_without_a_card_is_told_how_to_rehearse(tmp_path: Path) -> None:
    found = run(str(tmp_path / "out"), "5", DEVICE="cuda")
    assert found.returncode == 2 and not (tmp_path / "out").exists()
    assert found.stderr == "run.sh: this machine has no CUDA device; DEVICE=cpu rehearses every stage at tiny sizes\n"


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    """An interpreter that finds the standard library alone."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    found = run(str(tmp_path / "out"), "5", DEVICE="cpu", PYTHON=str(bare))
    assert found.returncode == 2 and not (tmp_path / "out").exists()
    assert "Python packages are missing: torch, " in found.stderr and found.stderr.count("\n") == 1


def test_what_a_folder_holds_is_never_mixed_with_new_results(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    found = run(str(tmp_path), "5", DEVICE="cpu")
    assert found.returncode == 2 and "OUT must be an empty folder or a new one" in found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_every_stage_runs_from_start_to_end_without_a_card(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    for label in ("cats", "dogs"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(60):
            pixels = torch.randint(256, (40, 40, 3), generator=draw, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    packed = tmp_path / "pictures.tar"
    pack = [sys.executable, str(RUN.with_name("pack_pictures.py")), str(tmp_path / "photos"), str(packed)]
    subprocess.run(pack, check=True)
    (tmp_path / "unpacked").mkdir()
    with tarfile.open(packed) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    train = [sys.executable, "-m", "sagan.metrics.extractor", "train", "--preset", "folder", "--steps", "2"]
    subprocess.run([*train, "--set", "data.resolution=64", "--data-root", "unpacked"], cwd=tmp_path, check=True)
    (weights,) = (tmp_path / "runs" / "cache" / "extractors").iterdir()

    out = tmp_path / "out"
    found = run(str(out), "30", DEVICE="cpu", PICTURES=str(packed), EXTRACTOR=str(weights))
    assert found.returncode == 0, found.stdout + found.stderr
    stages = ("1-surroundings", "2-correctness", "3-speed", "4-study", "5-photographs")
    summary = (out / "summary.txt").read_text().splitlines()
    assert [line.split(" after ")[0] for line in summary] == [f"{stage}: passed" for stage in stages]
    names = {f"{stage}.txt" for stage in stages} | {f"{stage}.tar.gz" for stage in stages[3:]} | {"summary.txt"}
    assert {path.name for path in out.iterdir()} == names, "eight files at most come back"
    assert all(path.stat().st_size < 2**24 for path in out.iterdir())
    for stage, study in (("4-study", "attention_position"), ("5-photographs", "photographs")):
        with tarfile.open(out / f"{stage}.tar.gz") as tar:
            assert {"mlflow.db", f"report/{study}/table.md"} <= set(tar.getnames())
