"""The packed file is the pictures again, smaller: within its limit, the same each time, and nothing goes unsaid."""

from __future__ import annotations

import io
import math
import subprocess
import sys
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
SCRIPT = Path(__file__).parent / "gpu" / "pack_pictures.py"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Smooth colours with a grey texture, as photographs have, stronger from picture to picture: 24 cats, 12 dogs."""
    rng = np.random.default_rng(0)
    root = tmp_path / "pictures"
    for name, count in {"dog": 12, "cat": 24}.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            coarse = Image.fromarray(rng.integers(50, 206, (8, 12, 3), dtype=np.uint8))
            colours = np.asarray(coarse.resize((120, 80), Image.Resampling.BICUBIC), dtype=float)
            texture = rng.normal(0, 1 + number, (80, 120, 1))
            Image.fromarray((colours + texture).clip(0, 255).astype(np.uint8)).save(root / name / f"{number:02}.png")
    return root


def pack(folder: Path, packed: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, folder, packed, "--side", SIDE, *options]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)


def refused(capsys: pytest.CaptureFixture[str], folder: Path, packed: Path, *options: object) -> str:
    """The one line that it says where it packs nothing; in this process, for it starts no other before it refuses."""
    assert main([str(part) for part in (folder, packed, *options)]) == 2
    assert not list(packed.parent.glob(f"{packed.name}*")), "something was left behind"
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("error: ") and error.count("\n") == 1, error
    return error


def test_an_unpacked_file_is_a_data_set_of_the_same_classes_and_all_but_the_same_pixels(
    pictures: Path, tmp_path: Path
) -> None:
    ended = pack(pictures, tmp_path / "packed.tar")
    assert ended.returncode == 0 and "36 pictures of 64 px in 2 classes, JPEG quality 95" in ended.stdout
    with tarfile.open(tmp_path / "packed.tar") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    source = find_source(DataConfig(name="folder", resolution=SIDE), tmp_path / "unpacked")
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [0] * 24 + [1] * 12
    assert (source.title(0), source.title(35), source.left_out) == ("cat/00.jpg", "dog/11.jpg", 0)
    packed = open_prepared(source, SIDE, tmp_path / "cache")
    assert not packed.warnings
    for row, file in enumerate(sorted(pictures.glob("*/*"))):
        with Image.open(file) as picture:
            expected, _ = to_square(picture, SIDE)
        found = packed.images[packed.labels.new_tensor([row])][0].numpy()
        assert np.abs(found.astype(int) - expected).mean() < 4, file  # another picture of these is some 20 away


@pytest.mark.parametrize("kib", (70, 60))
def test_the_quality_is_the_highest_whose_file_fits(pictures: Path, tmp_path: Path, kib: int) -> None:
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

    best = max(quality for quality in range(10, 96) if taken(quality) <= kib * 1024)
    assert 10 < best < 95, "a limit that decides nothing"
    ended = pack(pictures, tmp_path / "packed.tar", "--mib", kib / 1024)
    assert f"JPEG quality {best}," in ended.stdout
    assert (tmp_path / "packed.tar").stat().st_size == taken(best)


def test_equal_pictures_make_equal_bytes_whatever_their_times(pictures: Path, tmp_path: Path) -> None:
    for name in ("one.tar", "two.tar"):
        for file in pictures.glob("*/*"):
            file.touch()
        assert pack(pictures, tmp_path / name).returncode == 0
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_files_that_cannot_be_read_are_counted_named_and_left_out(pictures: Path, tmp_path: Path) -> None:
    (pictures / "cat" / "notes.txt").write_text("not a picture")
    whole = (pictures / "dog" / "03.png").read_bytes()
    (pictures / "dog" / "03.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "dog" / ".hidden").write_text("passed over")
    ended = pack(pictures, tmp_path / "packed.tar")
    assert ended.returncode == 0 and "35 pictures of 64 px in 2 classes" in ended.stdout
    said = ended.stdout.splitlines()[0]
    assert said.startswith("warning: 2 files ") and "cat/notes.txt" in said and "dog/03.png" in said
    with tarfile.open(tmp_path / "packed.tar") as tar:
        assert len(tar.getnames()) == 35 and "dog/03.jpg" not in tar.getnames()


def test_transparent_pictures_get_white_and_comments_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "odd").mkdir(parents=True)
    Image.new("RGBA", (40, 40), (200, 0, 0, 0)).save(tmp_path / "pictures" / "odd" / "transparent.png")
    Image.new("L", (40, 40), 77).save(tmp_path / "pictures" / "odd" / "grey.jpeg", comment=b"secret" * 1000)
    assert pack(tmp_path / "pictures", tmp_path / "packed.tar").returncode == 0
    with tarfile.open(tmp_path / "packed.tar") as tar:
        for name, colour in {"odd/transparent.jpg": (255, 255, 255), "odd/grey.jpg": (77, 77, 77)}.items():
            stream = tar.extractfile(name)
            assert stream is not None
            with Image.open(stream) as picture:
                assert picture.getpixel((32, 32)) == colour and "comment" not in picture.info


def test_what_does_not_fit_is_refused_and_an_earlier_file_is_kept(pictures: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.tar"
    packed.write_bytes(b"earlier")
    ended = pack(pictures, packed, "--mib", 0.01)
    assert ended.returncode == 2 and ended.stdout == ""
    assert "at the lowest quality, 10, got 0.01" in ended.stderr and ended.stderr.count("\n") == 1
    assert packed.read_bytes() == b"earlier" and not list(tmp_path.glob("packed.tar?*"))


def test_a_class_of_which_nothing_can_be_read_is_refused(pictures: Path, tmp_path: Path) -> None:
    (pictures / "bird").mkdir()
    (pictures / "bird" / "notes.txt").write_text("not a picture")
    ended = pack(pictures, tmp_path / "packed.tar")
    assert ended.returncode == 2 and "no picture can be read of bird" in ended.stderr
    assert not list(tmp_path.glob("packed.tar*"))


def test_each_wrong_layout_or_value_is_refused_in_one_line(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "packed.tar"
    assert "there is no folder" in refused(capsys, tmp_path / "absent", packed)
    assert "holds no folders" in refused(capsys, pictures / "cat", packed)
    assert "is a folder" in refused(capsys, tmp_path, packed)
    assert "--side: must be 1 or more, got 0" in refused(capsys, pictures, packed, "--side", 0)
    assert "--mib: must be a positive number, got nan" in refused(capsys, pictures, packed, "--mib", "nan")
    (pictures / "cat" / "00.bmp").write_bytes(b"")
    assert "would both be cat/00.jpg" in refused(capsys, pictures, packed)
    (pictures / "cat" / "00.bmp").unlink()
    (pictures / "bird").mkdir()
    assert "bird is empty" in refused(capsys, pictures, packed)
