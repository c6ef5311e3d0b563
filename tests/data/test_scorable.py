"""Images with which no evaluation could be made are an error before training; the smallest valid number works."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagan import journal
from sagan.train import main

WriteImages = Callable[..., Path]
TINY = {
    "data.resolution": 32, "model.width_g": 4, "model.width_d": 4, "model.z_dim": 8, "optim.batch_size": 4,
    "optim.steps": 2, "optim.precision": "fp32", "eval.every": 2, "eval.num_samples": 32, "eval.standing_images": 8,
    "eval.extractor": "embedded-v2",
}  # fmt: skip


def train(folder: Path, pictures: Path, *options: str) -> int:
    changes = [f"--set={name}={value}" for name, value in TINY.items()]
    return main([str(folder / "run"), "--preset=folder", f"--data-root={pictures}", f"--cache-dir={folder / 'cache'}",
                 *changes, *options])  # fmt: skip


def equal(pictures: Path) -> None:
    """Makes the pictures equal in all but their size."""
    for number, path in enumerate(sorted(pictures.rglob("*.png"))):
        Image.new("RGB", (40 + number, 40), "red").save(path)


def test_too_few_pictures_and_equal_ones_are_told(
    write_images: WriteImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = write_images({"cat": 2, "dog": 2})
    assert train(tmp_path, pictures) == 2
    assert "folder: must be 6 images or more, got 4; density and coverage" in capsys.readouterr().err
    equal(write_images({"cat": 10, "dog": 10}))
    assert train(tmp_path, pictures) == 2
    assert re.search("two images or more must differ, but the 20 .* are all equal", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


SMALLEST = {
    "two classes of three": {"cat": 3, "dog": 3},
    "two that differ": {"cat": 3, "dog": 3},
    "one in a class": {"cat": 5, "dog": 1},
    "without labels": {"": 6},
}


@pytest.mark.parametrize("case", SMALLEST)
def test_the_smallest_number_that_works_works(case: str, write_images: WriteImages, tmp_path: Path) -> None:
    pictures = write_images(SMALLEST[case])
    if case == "two that differ":
        equal(pictures)
        Image.new("RGB", (40, 40), "blue").save(pictures / "dog" / "2.png")
    options = ["--set=model.conditioning=none"] if case == "without labels" else []
    assert train(tmp_path, pictures, *options) == 0
    (last,) = (record for record in journal.read(tmp_path / "run" / journal.NAME)[0] if record.status)
    assert last.status == "finished" or last.status == "collapsed"
    assert np.isfinite([last.metrics[name] for name in ("fid", "kid", "precision", "density", "real_floor")]).all()
