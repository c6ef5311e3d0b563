"""The packed file is the pictures again, smaller: within its limit, and the same each time."""

from __future__ import annotations

import io
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
from gpu.pack_pictures import main
from PIL import Image

from sagan.config import DataConfig
from sagan.data.prepared import open_prepared, to_square
from sagan.data.sources import find_source

SIDE = 64


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth colours with a grey texture, as photographs have, stronger from picture to picture: 24 cats, 12 dogs."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("photographs")
    for name, count in {"dog": 12, "cat": 24}.items():
        (root / name).mkdir()
        for number in range(count):
            coarse = Image.fromarray(rng.integers(50, 206, (8, 12, 3), dtype=np.uint8))
            colours = np.asarray(coarse.resize((120, 80), Image.Resampling.BICUBIC), dtype=float)
            texture = rng.normal(0, 1 + number, (80, 120, 1))
            Image.fromarray((colours + texture).clip(0, 255).astype(np.uint8)).save(root / name / f"{number:02}.png")
    return root


def pack(folder: Path, packed: Path, *options: object) -> int:
    return main([str(part) for part in (folder, packed, "--side", SIDE, *options)])


def test_an_unpacked_file_is_a_data_set_of_the_same_classes_and_all_but_the_same_pixels(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(pictures, tmp_path / "packed.tar") == 0
    assert "36 pictures of 64 px in 2 classes, JPEG quality 95" in capsys.readouterr().out
    with tarfile.open(tmp_path / "packed.tar") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    source = find_source(DataConfig(name="folder", resolution=SIDE), tmp_path / "unpacked")
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [0] * 24 + [1] * 12
    packed = open_prepared(source, SIDE, tmp_path / "cache")
    assert not packed.warnings
    for row, file in enumerate(sorted(pictures.glob("*/*"))):
        with Image.open(file) as picture:
            expected, _ = to_square(picture, SIDE)
        found = packed.images[packed.labels.new_tensor([row])][0].numpy()
        assert np.abs(found.astype(int) - expected).mean() < 4, file  # another picture of these is some 20 away


def test_the_quality_is_the_highest_whose_file_fits_and_equal_pictures_make_equal_bytes(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    squares = []
    for file in pictures.glob("*/*"):
        with Image.open(file) as picture:
            squares.append(Image.fromarray(to_square(picture, SIDE)[0].transpose(1, 2, 0)))

    def taken(quality: int) -> int:
        """Bytes of a tar file: blocks of 512, one before each member and two at the end, in records of 20 blocks."""
        blocks = 2
        for square in squares:
            stream = io.BytesIO()
            square.save(stream, "JPEG", quality=quality, optimize=True)
            blocks += 1 + math.ceil(stream.tell() / 512)
        return math.ceil(blocks / 20) * 20 * 512

    for kib in (70, 60):
        best = max(quality for quality in range(10, 96) if taken(quality) <= kib * 1024)
        assert 10 < best < 95, "a limit that decides nothing"
        for name in ("one.tar", "two.tar"):
            for file in pictures.glob("*/*"):
                file.touch()
            assert pack(pictures, tmp_path / name, "--mib", kib / 1024) == 0
            assert f"JPEG quality {best}," in capsys.readouterr().out
        assert (tmp_path / "one.tar").stat().st_size == taken(best)
        assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_what_cannot_be_packed_is_refused_and_an_earlier_file_is_kept(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "packed.tar"
    packed.write_bytes(b"earlier")
    for folder, message in {
        tmp_path / "absent": "--data-root",
        pictures / "cat": "put them into one folder for each class",
        pictures: "at the lowest quality, 10, got 0.01",
    }.items():
        assert pack(folder, packed, "--mib", 0.01) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
        assert packed.read_bytes() == b"earlier" and [*tmp_path.iterdir()] == [packed]
