"""A launch on images that are not built in."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ablations.run import main
from sagan.config import Config, DataConfig, ModelConfig, digest
from sagan.data.preparation import prepare_images

WriteStudy = Callable[..., Path]
PICTURES = DataConfig(name="folder", resolution=32)
TINY = """
    name: tiny
    question: Does it run on a folder?
    preset: folder
    seeds: [0]
    baseline: none
    set:
      data.resolution: 32
      model.width_g: 4
      model.width_d: 4
      model.z_dim: 8
      optim.batch_size: 4
      optim.steps: 2
      optim.precision: fp32
      eval.every: 2
      eval.num_samples: 32
      eval.extractor: embedded-v2
    factors:
      attention:
        none:  {}
        feat8: {model.attention.at: [8]}
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twenty pictures of two classes, one of them greyscale."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    Image.new("L", (40, 40)).save(tmp_path / "pictures" / "cat" / "0.png")
    return tmp_path / "pictures"


def test_what_the_images_are_is_said_before_training(pictures: Path, tmp_path: Path) -> None:
    text = StringIO()
    flipped = Config(DataConfig(name="folder", resolution=32, h_flip=True))
    configs = [Config(PICTURES), flipped, Config(DataConfig(name="embedded"))]
    found = prepare_images(configs, pictures, tmp_path / "cache", Console(file=text, width=200))
    assert "folder: 20 images in 2 classes of 10\n" in text.getvalue()
    assert "  warning: 1 images are greyscale" in text.getvalue()
    assert text.getvalue().count("folder: 20") == 1, "mirrored or not, the pictures are the same"
    assert found.keys() == {digest(Config(PICTURES)), digest(flipped)}, "drawn ones need no preparation"


def test_networks_that_need_labels_are_refused_images_without(pictures: Path, tmp_path: Path) -> None:
    flat, quiet = pictures / "cat", Console(quiet=True)
    with pytest.raises(ValueError, match="without labels such as those of folder, got 'projection'"):
        prepare_images([Config(PICTURES)], flat, tmp_path / "cache", quiet)
    assert not (tmp_path / "cache").exists()
    unconditional = Config(PICTURES, ModelConfig(conditioning="none"))
    assert prepare_images([unconditional], flat, tmp_path / "cache", quiet)


@pytest.mark.slow
def test_a_study_runs_on_a_folder_and_refuses_to_go_on_with_other_images(
    pictures: Path, write_study: WriteStudy, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [str(write_study(text=TINY)), "--data-root", str(pictures), "--workers", "1"]
    assert main(command) == 0, capfd.readouterr().out
    with sqlite3.connect(work / "mlflow.db") as store:
        rows = store.execute("SELECT value FROM tags WHERE key = 'data_fingerprint'").fetchall()
    assert len(rows) == 2 and len(set(rows)) == 1
    Image.new("RGB", (40, 40), "red").save(pictures / "dog" / "3.png")
    assert main([*command, "--retry-failed"]) == 2
    assert re.match("tiny: .*/seed0 was trained on other images", capfd.readouterr().err)
