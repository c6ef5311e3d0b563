"""What a folder of images, or a data set of torchvision's, is taken for, and what is refused."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from sagan import config
from sagan.config import DataConfig
from sagan.data import prepared
from sagan.data.prepared import open_prepared
from sagan.data.sources import SOURCES, Source, find_source
from sagan.options import existing

WriteImages = Callable[..., Path]
FOLDER = DataConfig(name="folder", resolution=32)


def test_every_name_of_the_config_has_a_source() -> None:
    assert config.DATASETS == ("embedded", *SOURCES)


def test_folders_are_classes_in_order_of_their_names_and_images_alone_have_no_labels(write_images: WriteImages) -> None:
    source = find_source(FOLDER, write_images({"dog": 2, "cat": 3}))
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [0, 0, 0, 1, 1]
    assert [source.title(row) for row in (0, 4)] == ["cat/0.png", "dog/1.png"]
    assert source.summary() == "folder: 5 images in 2 classes of 2 to 3"
    source = find_source(FOLDER, write_images({"": 4}, folder="alone"))
    assert source.classes == () and source.labels.tolist() == [0, 0, 0, 0]
    assert source.summary() == "folder: 4 images without labels"


def test_endings_may_be_capitals_and_files_that_macos_writes_beside_others_are_none(write_images: WriteImages) -> None:
    root = write_images({"": 2})
    (root / "0.png").rename(root / "0.JPEG")
    (root / "._0.JPEG").write_bytes(b"\0\5\x16\7")
    source = find_source(FOLDER, root)
    assert [source.title(row) for row in range(2)] == ["0.JPEG", "1.png"] and source.left_out == 0


WRONG = {
    "no folder": ({}, "must be a folder of images, but there is no folder .*pictures"),
    "nothing at all": ({"": 0}, "holds no images; their names must end in .jpg"),
    "images beside folders": ({"": 2, "cat": 1}, "holds 1 folders, such as cat, beside 2 images, such as 0.png"),
    "an empty class": ({"cat": 1, "dog": 0}, "1 of 2 folders in .* have none: dog; fill or remove them"),
    "the folder above": ({"train/cat": 1, "val/cat": 1}, "train holds folders, such as cat; .* --data-root .*train"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_layout_is_refused_and_never_read_as_one_class(case: str, write_images: WriteImages) -> None:
    counts, message = WRONG[case]
    with pytest.raises(ValueError, match=f"--data-root: .*{message}"):
        find_source(FOLDER, write_images(counts))


def test_warnings_tell_of_one_class_of_uneven_ones_and_of_other_files(write_images: WriteImages) -> None:
    one = write_images({"cat": 2}, folder="one")
    assert ["one class only, cat" in said for said in find_source(FOLDER, one).warnings()] == [True]
    uneven = write_images({"cat": 2, "dog": 5}, folder="uneven")
    (uneven / "cat" / "notes.txt").touch()
    others, classes = find_source(FOLDER, uneven).warnings()
    assert others.startswith("1 files are not images") and "cat has 2, dog 5" in classes
    assert find_source(FOLDER, write_images({"a": 2, "b": 3}, folder="even")).warnings() == []


CHANGES = {
    "added": lambda root: (root / "cat" / "9.png").write_bytes((root / "cat" / "0.png").read_bytes()),
    "removed": lambda root: (root / "cat" / "0.png").unlink(),
    "renamed": lambda root: (root / "cat" / "0.png").rename(root / "cat" / "7.png"),
    "rewritten": lambda root: os.utime(root / "cat" / "0.png", ns=(0, 0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_changes_the_digest(change: str, write_images: WriteImages) -> None:
    root = write_images({"cat": 2, "dog": 2})
    before = find_source(FOLDER, root).digest
    assert find_source(FOLDER, root).digest == before
    CHANGES[change](root)
    assert find_source(FOLDER, root).digest != before


def test_a_picture_that_cannot_be_reached_is_named_with_the_reason(
    write_images: WriteImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "_MAX_UNREADABLE", 0.5)
    root = write_images({"cat": 4, "dog": 4})
    (root / "cat" / "6\n\x1b[31m.png").symlink_to(tmp_path / "absent.png")
    (root / "cat" / "7.png").symlink_to(tmp_path / "absent.png")
    (root / "cat" / "8.png").symlink_to(root / "cat" / "8.png")
    os.mkfifo(root / "cat" / "9.png")
    found = open_prepared(find_source(FOLDER, root), 32, tmp_path / "cache")
    assert found.labels.tolist() == [0] * 4 + [1] * 4
    assert found.warnings == (
        "4 of 12 images cannot be read: cat/6??[31m.png (No such file or directory), cat/7.png (No such file or "
        "directory), cat/8.png (Too many levels of symbolic links), cat/9.png (not a regular file); they are left out",
    )


@pytest.mark.parametrize("target", ["absent", "bird"])
def test_a_link_to_an_absent_class_is_an_error_and_one_to_a_class_is_a_class(
    target: str, write_images: WriteImages, tmp_path: Path
) -> None:
    root = write_images({"cat": 1, "dog": 1})
    (root / "bird").symlink_to(target)  # "bird" leads to itself
    with pytest.raises(ValueError, match=f"every class must be there, but links in .* lead nowhere: bird to {target}"):
        find_source(FOLDER, root)
    (root / "bird").unlink()
    (root / "bird").symlink_to(write_images({"": 2}, folder="elsewhere"))
    assert find_source(FOLDER, root).classes == ("bird", "cat", "dog")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users reach too, in which the test is not root, for whom permissions do not count."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        if os.geteuid():
            yield folder
            return
        os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_folders_without_permission_are_told(mode: int, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any, names cannot be had; with names alone, no file can."""
    monkeypatch.setattr(prepared, "_MAX_UNREADABLE", 0.5)
    root = shared / "pictures"
    for name in ("cat/0.png", "dog/0.png", "dog/1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(root / name)
    (root / "cat").chmod(mode)
    try:
        with pytest.raises(ValueError, match="Permission denied") as error:
            open_prepared(find_source(FOLDER, root), 32, shared / "cache")
        said = str(error.value)
        assert str(root / "cat") in said or "cat/0.png (Permission denied); nothing is left of cat" in said
        with pytest.raises(ValueError, match="--data-root: no such file or folder"):
            existing("--data-root", root / "cat" / "inner")
    finally:
        (root / "cat").chmod(0o700)


def test_imagenet_must_be_whole(write_images: WriteImages) -> None:
    root = write_images({"train/n01440764": 1, "train/n01443537": 1})
    with pytest.raises(ValueError, match="imagenet is 1,000 class folders, got 2 in .*--preset folder"):
        find_source(DataConfig(name="imagenet"), root)


def test_imagenet_classes_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixel = Image.new("RGB", (1, 1))
    for number in range(1000):
        folder = tmp_path / "train" / f"n{number:08}"
        folder.mkdir(parents=True)
        pixel.save(folder / "0.bmp")
    source = find_source(DataConfig(name="imagenet"), tmp_path)
    assert source.classes[1] == "goldfish" and len(set(source.classes)) == 1000


def test_cifar10_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar = torchvision.datasets.CIFAR10
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    folder = tmp_path / cifar.base_folder
    folder.mkdir()
    batch = pickle.dumps({"data": pixels.reshape(6, -1), "labels": [3, 1, 4, 1, 5, 9]})
    meta = pickle.dumps({"label_names": [f"class {k}" for k in range(10)]})
    (folder / "batch").write_bytes(batch)
    (folder / "meta").write_bytes(meta)
    monkeypatch.setattr(cifar, "train_list", [["batch", hashlib.md5(batch).hexdigest()]])
    monkeypatch.setattr(cifar, "test_list", [])
    names = {"filename": "meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(cifar, "meta", names)
    source = find_source(DataConfig(name="cifar10", resolution=32), tmp_path)
    assert source.labels.tolist() == [3, 1, 4, 1, 5, 9] and source.classes[9] == "class 9"
    assert (np.asarray(source.read(2)).transpose(2, 0, 1) == pixels[2]).all()


def celeba(root: Path) -> None:
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    for number in (1, 2, 3):
        Image.new("RGB", (178, 218), (number, 0, 0)).save(folder / "img_align_celeba" / f"{number}.png")
    rows, signs = ("1.png", "2.png", "3.png"), ((1, -1), (-1, 1), (1, 1))
    (folder / "list_eval_partition.txt").write_text("1.png 0\n2.png 0\n3.png 2\n")
    (folder / "list_attr_celeba.txt").write_text(
        "3\nSmiling Young\n" + "".join(f"{name} {a} {b}\n" for name, (a, b) in zip(rows, signs, strict=True))
    )
    (folder / "identity_CelebA.txt").write_text("".join(f"{name} 1\n" for name in rows))
    (folder / "list_bbox_celeba.txt").write_text("3\nx y w h\n" + "".join(f"{name} 0 0 1 1\n" for name in rows))
    (folder / "list_landmarks_align_celeba.txt").write_text("3\na b\n" + "".join(f"{name} 0 0\n" for name in rows))


def test_celeba_has_two_classes_by_attribute_and_none_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    celeba(tmp_path)
    monkeypatch.setattr(torchvision.datasets.CelebA, "_check_integrity", lambda _: True)

    def found(attribute: str) -> Source:
        return find_source(DataConfig(name="celeba", resolution=64, attribute=attribute), tmp_path)

    assert found("Young").classes == ("not Young", "Young") and found("Young").labels.tolist() == [0, 1]
    assert found("Smiling").labels.tolist() == [1, 0] and found("Smiling").digest != found("Young").digest
    assert found("").classes == ()
    assert found("").read(1).getpixel((0, 0)) == (2, 0, 0), "the third is of the test split"
    with pytest.raises(ValueError, match="data.attribute: must be one of Smiling, Young, got 'Bald'"):
        found("Bald")


def test_what_cannot_be_downloaded_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fail)
    message = f"cifar10 is incomplete under {re.escape(str(tmp_path))} .*no route to host.*--data-root"
    with pytest.raises(ValueError, match=message):
        find_source(DataConfig(name="cifar10", resolution=32), tmp_path)
