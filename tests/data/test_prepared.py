"""Preparation: the pixels are right, interruptions cost nothing, and nothing odd goes unsaid."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from sagan.config import DataConfig
from sagan.data import open_dataset
from sagan.data import prepared as module
from sagan.data.prepared import ImageFile, Prepared, open_prepared, prepare
from sagan.data.sources import Source, find_source

WriteImages = Callable[..., Path]
FOLDER = DataConfig(name="folder", resolution=32)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 3)


def made(root: Path, cache: Path) -> Prepared:
    return open_prepared(find_source(FOLDER, root), 32, cache)


def whole(images: ImageFile) -> torch.Tensor:
    return images[torch.arange(len(images))]


def test_pictures_are_the_central_square_resized_by_pillow(write_images: WriteImages, tmp_path: Path) -> None:
    root = write_images({"cat": 4, "dog": 4}, size=(60, 48))
    found = made(root, tmp_path)
    assert found.images.shape == (8, 3, 32, 32) and found.labels.tolist() == [0] * 4 + [1] * 4
    with Image.open(root / "dog" / "1.png") as picture:
        square = picture.crop((6, 0, 54, 48)).resize((32, 32), Image.Resampling.BICUBIC)
    assert (found.images[torch.tensor([5])][0].numpy() == np.asarray(square).transpose(2, 0, 1)).all()
    rows = torch.tensor([6, 0, 0, 3])
    assert (found.images[rows] == whole(found.images)[rows]).all(), "in the order asked for"


def test_the_second_opening_reads_no_picture(write_images: WriteImages, tmp_path: Path) -> None:
    source = find_source(FOLDER, write_images({"": 5}))
    first = open_prepared(source, 32, tmp_path)
    blind = dataclasses.replace(source, read=lambda _: pytest.fail("read again"))
    assert list(prepare(blind, 32, tmp_path)) == []
    assert open_prepared(blind, 32, tmp_path).fingerprint == first.fingerprint


def test_a_build_that_was_cut_off_goes_on_and_ends_in_the_same_bytes(write_images: WriteImages, tmp_path: Path) -> None:
    source = find_source(FOLDER, write_images({"cat": 5, "dog": 6}))
    undisturbed = open_prepared(source, 32, tmp_path / "one")
    seen: list[int] = []

    def read(row: int) -> Image.Image:
        seen.append(row)
        return source.read(row)

    watched = dataclasses.replace(source, read=read)
    steps = prepare(watched, 32, tmp_path / "two")
    assert [next(steps), next(steps), next(steps)] == [0, 3, 6]
    steps.close()
    (partial,) = (tmp_path / "two" / "images").glob("*.partial")
    with (partial / "images.u8").open("ab") as images, (partial / "log.jsonl").open("a") as log:
        images.write(b"half a chunk")
        log.write('{"rows": 3, "sha')
    assert list(prepare(watched, 32, tmp_path / "two")) == [6, 9, 11]
    assert sorted(seen) == list(range(11)), "each picture was read once"
    resumed = open_prepared(watched, 32, tmp_path / "two")
    assert resumed.fingerprint == undisturbed.fingerprint
    assert (whole(resumed.images) == whole(undisturbed.images)).all()


def test_the_fingerprint_is_of_pixels_labels_and_names(write_images: WriteImages, tmp_path: Path) -> None:
    root = write_images({"cat": 2, "dog": 2})
    first = made(root, tmp_path).fingerprint
    os.utime(root / "cat" / "0.png", ns=(0, 0))
    assert made(root, tmp_path).fingerprint == first, "another time, the same picture"
    (root / "cat").rename(root / "cow")
    assert made(root, tmp_path).fingerprint != first


def test_an_entry_that_was_tampered_with_is_made_anew(write_images: WriteImages, tmp_path: Path) -> None:
    root = write_images({"": 5})
    before = whole(made(root, tmp_path).images)
    (file,) = (tmp_path / "images").glob("*/images.u8")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    assert (whole(made(root, tmp_path).images) == before).all()


def test_unreadable_pictures_are_named_and_left_out_and_a_class_of_which_nothing_is_left_is_an_error(
    write_images: WriteImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_UNREADABLE", 0.6)
    root = write_images({"cat": 4, "dog": 3})
    (root / "cat" / "1.png").write_bytes((root / "cat" / "1.png").read_bytes()[:200])  # truncated
    (root / "dog" / "0.png").write_text("no picture")
    found = made(root, tmp_path)
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    assert found.warnings == (
        "2 of 7 images cannot be read: cat/1.png (image file is truncated), dog/0.png (empty, damaged at its "
        "start, or of no format that Pillow knows); they are left out",
    )
    for number in (1, 2):
        (root / "dog" / f"{number}.png").write_text("no picture")
    with pytest.raises(ValueError, match="nothing is left of dog"):
        made(root, tmp_path)


def test_too_many_unreadable_pictures_are_an_error_that_leaves_nothing(
    write_images: WriteImages, tmp_path: Path
) -> None:
    root = write_images({"": 8})
    (root / "5.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"1 of 8 images cannot be read: 5.png \(empty.*; more than one in a hundred"):
        made(root, tmp_path)
    assert [path.suffix for path in (tmp_path / "images").iterdir()] == [".lock"]


def test_repeats_are_told_and_those_in_another_class_apart(write_images: WriteImages, tmp_path: Path) -> None:
    root = write_images({"cat": 2, "dog": 2})
    for copy in ("cat/5.png", "dog/5.png"):
        (root / copy).write_bytes((root / "cat" / "0.png").read_bytes())
    said = "2 images repeat others, such as cat/5.png and cat/0.png; 1 of them in another class"
    assert made(root, tmp_path).warnings == (said,)


def test_a_disk_without_room_is_told_before_anything_is_read(
    write_images: WriteImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    source = dataclasses.replace(find_source(FOLDER, write_images({"": 3})), read=lambda _: pytest.fail("read"))
    with pytest.raises(ValueError, match="takes 0.0 GB in .*, where 0.0 are free; make room"):
        open_prepared(source, 32, tmp_path)


def test_networks_without_labels_see_one_class_and_others_need_labels(
    write_images: WriteImages, tmp_path: Path
) -> None:
    labelled = open_dataset(FOLDER, write_images({"cat": 2, "dog": 2}, folder="labelled"), tmp_path)
    assert labelled.conditioned("projection") is labelled
    without = labelled.conditioned("none")
    assert without.classes == ("all",) and not without.labels.any() and without.fingerprint != labelled.fingerprint
    flat = open_dataset(FOLDER, write_images({"": 4}, folder="flat"), tmp_path)
    assert flat.conditioned("none") is flat
    with pytest.raises(ValueError, match="--set model.conditioning=none"):
        flat.conditioned("projection")


def test_a_file_larger_than_memory_allows_is_read_within_it(tmp_path: Path) -> None:
    """Four gigabytes of holes: what is asked for comes to memory, and nothing stays there."""
    shape = (100_000, 3, 128, 128)
    with (tmp_path / "images.u8").open("wb") as file:
        file.truncate(int(np.prod(shape)))
    images = ImageFile(tmp_path / "images.u8", shape)
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    process = psutil.Process()
    before = process.memory_info().rss
    for part in rows[:10_000].split(256):
        assert not images[part].any()
    assert process.memory_info().rss - before < 300e6


def test_imagenette_is_what_it_is_known_for(tmp_path: Path) -> None:
    root = Path(__file__).parents[2] / "data"
    if not (root / "imagenette2-160").is_dir():
        pytest.skip("there is no data/imagenette2-160; it is downloaded by --preset imagenette64")
    source = find_source(DataConfig(name="imagenette", resolution=64), root)
    assert source.summary() == "imagenette: 9,469 images in 10 classes of 858 to 993"
    assert source.classes[0] == "tench" and isinstance(source, Source)
