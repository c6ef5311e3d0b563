"""Real images: what preparing them takes, and whether training waits for those that stay in a file."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest
import torch
from benchmarks.measure import bare_trainer, medians_in_turn, random_images, torch_threads
from benchmarks.results import Results
from PIL import Image
from torch import Tensor

from sagan.config import DataConfig, override
from sagan.data.prepared import ImageFile, prepare
from sagan.data.sources import find_source
from sagan.presets import PRESETS


@pytest.mark.parametrize(("resolution", "batch_size"), [(64, 8), (32, 64)])
def test_training_does_not_wait_for_images_in_a_file(
    resolution: int, batch_size: int, results: Results, tmp_path: Path
) -> None:
    config = override(PRESETS["embedded"], {"data.resolution": resolution, "optim.batch_size": batch_size})
    in_memory = random_images(20_000, resolution)
    assert isinstance(in_memory.images, Tensor)
    file = tmp_path / "images.u8"
    file.write_bytes(in_memory.images.numpy())
    in_file = dataclasses.replace(in_memory, images=ImageFile(file, (20_000, 3, resolution, resolution)))
    memory, stored = (bare_trainer(config, tmp_path, dataset) for dataset in (in_memory, in_file))
    steps = 6
    with torch_threads(1):
        fastest, ours = medians_in_turn(
            *(lambda t=trainer: [t._train_step() for _ in range(steps)] for trainer in (memory, stored)), rounds=15
        )
    shown = steps * batch_size
    share = fastest / ours
    case = f"{resolution} px, width 8, batch {batch_size}; 1 thread"
    speeds = (f"{shown / seconds:.1f} images/s" for seconds in (ours, fastest))
    results.add(
        "images in a file", case, next(speeds), f"in memory {next(speeds)}", f"{share:.1%}", "95 %", share >= 0.95
    )


def test_reading_batches_alone(results: Results, tmp_path: Path) -> None:
    """What a GPU could ask for at most: ImageNet's size of pictures, from a file that the page cache holds."""
    shape = (20_000, 3, 128, 128)
    file = tmp_path / "images.u8"
    file.write_bytes(os.urandom(1 << 20) * (shape[0] * 3 * 128 * 128 >> 20))
    images = ImageFile(file, shape)
    rows = torch.randperm(len(images) - 100, generator=torch.Generator().manual_seed(0))[:4096]
    (seconds,) = medians_in_turn(lambda: [images[part] for part in rows.split(256)], rounds=5)
    results.add(
        "reading batches", "128 px, batch 256; 1 thread", f"{len(rows) / seconds:.0f} images/s", "", "", "", None
    )


def test_preparing_photographs(results: Results, tmp_path: Path) -> None:
    noise = torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy()).resize((500, 375), Image.Resampling.BICUBIC)
    folder = tmp_path / "pictures" / "noise"
    folder.mkdir(parents=True)
    for number in range(1000):
        picture.save(folder / f"{number}.jpg", quality=90)
    source = find_source(DataConfig(name="folder"), folder.parent)
    started = time.perf_counter()
    for _ in prepare(source, 128, tmp_path / "cache"):
        pass
    speed = len(source.labels) / (time.perf_counter() - started)
    case = "JPEGs of 500 x 375 to 128 px, all cores"
    results.add(
        "preparing images", case, f"{speed:.0f} images/s", "", f"{1.28e6 / speed / 60:.0f} min for ImageNet", "", None
    )
