"""Launches on a disk that fills up. To be run where file systems can be mounted: see test_full_disk.py."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Lab, Results, assert_same_results, undisturbed, wait_until
from test_kills import STUDY

pytestmark = pytest.mark.usefixtures("forked")
MIB = 2**20
COMMAND = ("--workers", "1", "--seeds", "0")


class Disk:
    """A file system of 32 MiB in memory, at `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], check=True)

    def fill(self, but: int = 0) -> None:
        """Leaves this many bytes."""
        with (self.folder / "ballast").open("wb", buffering=0) as file:
            for size in (MIB, 4096, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue
            file.truncate(file.tell() - but)

    def clear(self) -> None:
        (self.folder / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.folder)], check=True)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, forked: None) -> Results:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), STUDY, *COMMAND)


def fill_and_clear(disk: Disk, lab: Lab, study: Path, is_time: Callable[[], bool], *options: str) -> str:
    """Launches, fills the disk when it `is_time`, and makes room again for the same command; what was said between."""
    launcher = lab.start(study, *COMMAND, *options, FAKE_PATIENCE="1")
    wait_until(is_time)
    disk.fill()
    assert launcher.wait(240) == 1
    assert lab.workers() == []
    said = lab.said.read_text()
    disk.clear()
    assert lab.start(study, *COMMAND, *options).wait(240) == 0, lab.said.read_text()
    assert {run.info.status for kind in ("cell", "variant") for run in lab.runs(study, kind)} == {"FINISHED"}
    return said


@pytest.mark.parametrize("place", ["everything", "checkpoints"])
def test_training_goes_on_from_the_last_checkpoint_for_which_there_was_room(
    disk: Disk, write_study: Callable[..., Path], tmp_path: Path, expected: Results, place: str
) -> None:
    study = write_study(text=STUDY)
    lab = Lab(disk.folder / "lab" if place == "everything" else tmp_path / "lab")
    lab.said = tmp_path / "said.txt"
    if place == "checkpoints":
        (disk.folder / "runs").mkdir()
        (lab.folder / "runs").symlink_to(disk.folder / "runs")
    said = fill_and_clear(disk, lab, study, lambda: any(lab.folder.glob("runs/*/*/*/*/checkpoint.pt")))
    assert f"there is no room left on the disk of {disk.folder}" in said and "The same command goes on" in said
    assert "Traceback" not in said
    assert_same_results(lab.results(study), expected)
    sizes = [line for line in lab.told() if "num_params_g" in line["metrics"]]
    assert len(sizes) == 2, "each cell began once"


PLACES = {
    "the queue": ("--storage", "sqlite:///{disk}/optuna.db"),
    "the store": ("--tracking-uri", "sqlite:///{disk}/mlflow.db"),
    "artifacts": (),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_one_disk_had_no_room_for_is_told_later_and_not_trained_again(
    disk: Disk, write_study: Callable[..., Path], tmp_path: Path, place: str
) -> None:
    study = write_study({"seeds: [0, 1]": "set: {optim.steps: 40}\nseeds: [0]"})
    lab = Lab(tmp_path / "lab", "fake")
    if place == "artifacts":
        (disk.folder / "mlruns").mkdir()
        (lab.folder / "mlruns").symlink_to(disk.folder / "mlruns")
    if place == "the store":
        lab.uri = f"sqlite:///{disk.folder}/mlflow.db"
    options = [option.format(disk=disk.folder) for option in PLACES[place]]
    said = fill_and_clear(disk, lab, study, lambda: any(line.get("step") == 10 for line in lab.told()), *options)
    if place == "the queue":
        assert f"there is no room left on the disk of {disk.folder}" in said and "The same command goes on" in said
    else:
        assert f"2 cells are not fully uploaded to MLflow; their data is in {lab.folder}/runs" in said
        assert "Nothing to run." in lab.said.read_text()
    assert "Traceback" not in said
    assert {cell: points["loss_g", 39] for cell, (_, points, _) in lab.results(study).items()} == {
        "feat32/seed0": 1 / 39,
        "none/seed0": 1 / 39,
    }
    sat_down = "".join(file.read_text() for file in lab.folder.glob("runs/*/*/*/*/sittings.txt"))
    assert sat_down.count("from 0\n") == 2


@pytest.mark.parametrize("room", [300_000, 2_000_000])
def test_a_launch_that_finds_no_room_says_so_and_starts_once_there_is_some(
    disk: Disk, write_study: Callable[..., Path], tmp_path: Path, room: int
) -> None:
    study = write_study({"seeds: [0, 1]": "set: {optim.steps: 4}\nseeds: [0]"})
    lab = Lab(disk.folder / "lab", "fake")
    lab.said = tmp_path / "said.txt"
    disk.fill(room)
    assert lab.start(study, *COMMAND, FAKE_PATIENCE="1").wait(240) in (1, 2)
    assert "make room on its disk" in lab.said.read_text() or "no room left on the disk of" in lab.said.read_text()
    disk.clear()
    assert lab.start(study, *COMMAND).wait(240) == 0, lab.said.read_text()
    assert len(lab.results(study)) == 2
