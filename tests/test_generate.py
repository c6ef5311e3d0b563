from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sagan
from sagan.config import Config, override
from sagan.generate import main
from sagan.generator_file import save_generator
from sagan.networks import Generator
from sagan.sampling import to_uint8
from sagan.streams import stream

CLASSES = ("cat", "dog", "owl")


def saved(config: Config, path: Path, classes: tuple[str, ...] = CLASSES) -> Generator:
    """A generator that has seen batches, and whose classes look different, written to `path`."""
    generator = Generator(config.model, config.data.resolution, len(classes))
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if "gain" in name or "bias" in name:
                parameter.add_(torch.randn(parameter.shape, generator=stream(0, name)))
        for step in range(3):
            generator(
                torch.randn(8, config.model.z_dim, generator=stream(0, "z", step)), torch.arange(8) % len(classes)
            )
    save_generator(path, generator, config, classes)
    return generator.eval()


@pytest.fixture
def file(tiny: Config, tmp_path: Path) -> Path:
    saved(tiny, tmp_path / "generator.safetensors")
    return tmp_path / "generator.safetensors"


def drawn(source: Path | str, out: Path, *options: str) -> np.ndarray:
    assert main([str(source), "--out", str(out), *options]) == 0
    return np.asarray(Image.open(out))


def test_the_file_paints_what_the_generator_painted(tiny: Config, tmp_path: Path) -> None:
    before = saved(tiny, tmp_path / "g.safetensors")
    after, classes = sagan.load_generator(tmp_path / "g.safetensors")
    z, labels = torch.randn(6, after.z_dim), torch.arange(6) % 3
    assert classes == CLASSES
    assert torch.equal(after(z, labels), before(z, labels))


@pytest.mark.parametrize(
    ("options", "row_classes", "n"),
    [
        ([], ["cat", "dog", "owl"], 5),
        (["--class", "owl"], ["owl"] * 8, 70),
        (["--class", "owl", "--class", "cat"], ["owl", "owl", "cat", "cat"], 14),
        (["--class", "dog", "--class", "dog"], ["dog"], 1),
    ],
)
def test_each_row_of_the_grid_shows_its_class(
    file: Path, tmp_path: Path, options: list[str], row_classes: list[str], n: int
) -> None:
    grid = drawn(file, tmp_path / "grid.png", "--n", str(n), "--seed", "3", *options)
    columns = -(-n // len(row_classes))
    assert grid.shape == (32 * len(row_classes), 32 * columns, 3)
    generator, _ = sagan.load_generator(file)
    z = torch.randn(n, 8, generator=stream(3, "sample"))
    for index in range(n):
        column, row = divmod(index, len(row_classes))
        label = torch.tensor([CLASSES.index(row_classes[row])])
        expected = to_uint8(generator(z[index : index + 1], label))[0].permute(1, 2, 0).numpy()
        cell = grid[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        # Pictures drawn alone and in a batch may round apart.
        assert abs(cell.astype(int) - expected).max() <= 1, f"picture {index}"
    assert (grid.reshape(len(row_classes), 32, columns, 32, 3).swapaxes(1, 2)[-1, -1] == 255).all() == (
        n < columns * len(row_classes)
    )


def test_the_same_seed_draws_the_same_file_and_another_seed_another(file: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        drawn(file, tmp_path / f"{name}.png", "--n", "6", "--seed", seed)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_of_many_classes_ten_from_the_first_to_the_last_have_a_row(
    tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tiny, tmp_path / "g.safetensors", tuple(f"c{index}" for index in range(30)))
    drawn(tmp_path / "g.safetensors", tmp_path / "new" / "folder" / "grid.png", "--n", "20")
    assert "20 pictures in 10 rows of c0, c3, c6, c9, c12, c15, c18, c21, c24, c27" in capsys.readouterr().out


def test_a_generator_without_classes_has_no_names_and_takes_none(
    tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "g.safetensors"
    saved(override(tiny, {"model.conditioning": "none"}), path)
    assert sagan.load_generator(path)[1] == ()
    assert drawn(path, tmp_path / "grid.png", "--n", "9").shape == (96, 96, 3)
    assert main([str(path), "--class", "cat", "--out", str(tmp_path / "cat.png")]) == 2
    assert "trained without classes (model.conditioning is none)" in capsys.readouterr().err
    assert not (tmp_path / "cat.png").exists()


MISTAKES = {
    "a class that is none": (
        ["FILE", "--class", "catt"],
        r"--class: .*\(cat, dog, owl\), got 'catt'; did you mean 'cat'",
    ),
    "no pictures": (["FILE", "--n", "0"], "--n: must be 1 or more, got 0"),
    "fewer pictures than classes": (
        ["FILE", "--n", "1", "--class", "cat", "--class", "dog"],
        "--n: .* classes, 2, got 1",
    ),
    "a picture of another kind": (["FILE", "--out", "grid.jpg"], r"--out: must end in \.png, got 'grid\.jpg'"),
    "a picture in a file": (["FILE", "--out", "generator.safetensors/grid.png"], "--out: .* can be written, got"),
    "a device that is none": (["FILE", "--device", "gpu"], "--device: .* got 'gpu'"),
    "a file that is not there": (["missing.safetensors"], "got 'missing.safetensors', where there is no file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line_and_leaves_nothing(
    mistake: str, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    arguments, message = MISTAKES[mistake]
    named = [str(file) if argument == "FILE" else argument for argument in arguments]
    assert main(["--out", "grid.png", *named]) == 2
    message_shown = capsys.readouterr().err
    assert message_shown.count("\n") == 1
    assert re.search(message, message_shown)
    assert list(file.parent.iterdir()) == [file]


def test_a_picture_that_cannot_be_written_leaves_the_old_one(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "grid.png"
    out.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main([str(file), "--out", str(out), "--n", "3"]) == 2
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["generator.safetensors", "grid.png"]


def test_a_damaged_file_is_told_from_a_foreign_one_and_from_one_of_another_version(
    tiny: Config, tmp_path: Path
) -> None:
    path = tmp_path / "g.safetensors"
    generator = saved(tiny, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"g\.safetensors: .* damaged or something else"):
        sagan.load_generator(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="without the metadata 'sagan'"):
        sagan.load_generator(path)
    save_file({"weight": torch.zeros(1)}, path, {"sagan": '{"config": {"model.depth": 3}, "classes": []}'})
    with pytest.raises(ValueError, match=r"of this version, but model\.depth: no such field"):
        sagan.load_generator(path)
    save_file({"weight": torch.zeros(1)}, path, {"sagan": "[]"})
    with pytest.raises(ValueError, match="of this version, but"):
        sagan.load_generator(path)
    save_generator(path, generator, override(tiny, {"model.width_g": 8}), CLASSES)
    with pytest.raises(ValueError, match=r"of this version, but .* size mismatch for linear\.weight") as raised:
        sagan.load_generator(path)
    assert "\n" not in str(raised.value)


def test_the_package_is_imported_without_torch() -> None:
    program = "import sys, sagan, sagan.presets; print([name for name in ('torch', 'mlflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'load'"):
        sagan.load  # noqa: B018
