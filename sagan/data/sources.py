"""Data sets as they lie on the disk: torchvision's, which it downloads where it can, and folders of one's own.

torchvision is imported where it is needed: it takes as long as torch, and the built-in pictures do without.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sagan.config import DataConfig

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_UNEVEN = 2.0  # ratio of the largest class to the smallest that gives a warning, because labels are drawn evenly


@dataclass(frozen=True)
class Source:
    """What a data set holds before any picture is read; `labels` [N] index `classes`, which is empty without labels."""

    name: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    read: Callable[[int], Image.Image]  # as stored, in whatever mode
    title: Callable[[int], str]  # of a picture, for messages
    digest: str  # of the names, sizes and times of its files: it changes when one of them does
    left_out: int = 0  # files that are no images

    def summary(self) -> str:
        """For example "imagenette: 9,469 images in 10 classes of 858 to 993"."""
        said = f"{self.name}: {len(self.labels):,} images"
        if not self.classes:
            return f"{said} without labels"
        if len(self.classes) == 1:
            return f"{said} in one class, {self.classes[0]}"
        counts = np.bincount(self.labels, minlength=len(self.classes))
        spread = f"{counts.min():,}" + (f" to {counts.max():,}" if counts.max() > counts.min() else "")
        return f"{said} in {len(self.classes):,} classes of {spread}"

    def warnings(self) -> list[str]:
        said = []
        if self.left_out:
            said.append(f"{self.left_out:,} files are not images by their names, and are left out")
        if len(self.classes) == 1:
            said.append(
                f"there is one class only, {self.classes[0]}: labels teach nothing; model.conditioning=none leaves "
                f"them out of the networks"
            )
        counts = np.bincount(self.labels, minlength=len(self.classes))
        few, many = int(counts.argmin()), int(counts.argmax())
        if counts[many] > _UNEVEN * counts[few]:
            said.append(
                f"classes are uneven: {self.classes[few]} has {counts[few]:,}, {self.classes[many]} "
                f"{counts[many]:,}; labels of generated images are drawn uniformly, as in the paper, so FID also "
                f"measures this difference"
            )
        return said


def find_source(config: DataConfig, root: Path | None) -> Source:
    """The training pictures of `config.name` under `root` ("data" in the current folder if None).

    Raises ValueError for a failed download, and for folders that cannot be read or whose layout is another.
    """
    try:
        return SOURCES[config.name](config, root or Path("data"))
    except OSError as error:
        raise ValueError(
            f"--data-root: all folders must be readable, got {error.strerror or error} for {error.filename}; change "
            f"the permissions or give another folder"
        ) from error


def _cifar(config: DataConfig, root: Path) -> Source:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR100 if config.name == "cifar100" else CIFAR10
    with _fetching(config.name, root):
        found = kind(root, train=True, download=True)
    return _from_arrays(config.name, found.data, found.targets, found.classes, root / kind.base_folder)


def _stl10(config: DataConfig, root: Path) -> Source:
    """The 5,000 training and 8,000 test pictures, all that have labels; the 100,000 others are not read."""
    from torchvision.datasets import STL10

    with _fetching(config.name, root):
        parts = [STL10(root, split=split, download=True) for split in ("train", "test")]
    images = np.concatenate([part.data for part in parts]).transpose(0, 2, 3, 1)
    labels = np.concatenate([part.labels for part in parts]).tolist()
    return _from_arrays(config.name, images, labels, parts[0].classes, root / STL10.base_folder)


def _celeba(config: DataConfig, root: Path) -> Source:
    """Without labels, or in two classes by `data.attribute`: those without it, and those with it."""
    from torchvision.datasets import CelebA

    with _fetching(config.name, root):
        found = CelebA(root, "train", target_type="attr", download=True)
    names = [name for name in found.attr_names if name]
    folder = root / CelebA.base_folder
    files = [folder / "img_align_celeba" / name for name in found.filename]
    if not config.attribute:
        return _from_files(config.name, (), np.zeros(len(files), np.int64), files, folder)
    if config.attribute not in names:
        raise ValueError(f"data.attribute: must be one of {', '.join(names)}, got {config.attribute!r}")
    labels = found.attr[:, names.index(config.attribute)].numpy().astype(np.int64)
    return _from_files(config.name, (f"not {config.attribute}", config.attribute), labels, files, folder)


def _imagenette(config: DataConfig, root: Path) -> Source:
    """fast.ai's ten classes of ImageNet, from its smallest copy whose short side reaches the resolution."""
    from torchvision.datasets import Imagenette

    size = "160px" if config.resolution <= 128 else "320px"
    folder = root / f"imagenette2-{size.removesuffix('px')}"
    with _fetching(config.name, root):
        found = Imagenette(root, "train", size, download=not folder.is_dir())
    return _from_folder(config.name, folder / "train", tuple(names[0] for names in found.classes))


def _imagenet(config: DataConfig, root: Path) -> Source:
    from torchvision.models import ResNet50_Weights  # its 1,000 class names stand in the order of the folders' names

    names = tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    folder = root / "train" if (root / "train").is_dir() else root
    source = _from_folder(config.name, folder)
    if len(source.classes) != len(names):
        raise ValueError(
            f"data.name: imagenet is {len(names):,} class folders, got {len(source.classes):,} in {folder}; train on "
            f"a part of it with --preset folder"
        )
    return replace(source, classes=names)


SOURCES: dict[str, Callable[[DataConfig, Path], Source]] = {
    "cifar10": _cifar,
    "cifar100": _cifar,
    "stl10": _stl10,
    "celeba": _celeba,
    "imagenette": _imagenette,
    "imagenet": _imagenet,
    "folder": lambda config, root: _from_folder(config.name, root),
}


@contextmanager
def _fetching(name: str, root: Path) -> Iterator[None]:
    """Around what torchvision reads or downloads."""
    try:
        yield
    except (OSError, RuntimeError, ImportError) as error:
        raise ValueError(
            f"data.name: {name} is incomplete under {root.resolve()} and could not be downloaded ({error}); put it "
            f"there as torchvision lays it out, or name its place with --data-root"
        ) from error


def _from_arrays(
    name: str, images: NDArray[np.uint8], labels: Sequence[int], classes: Sequence[str], folder: Path
) -> Source:
    """uint8 images [N, H, W, 3] that torchvision has read from the files of `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return Source(
        name=name,
        classes=tuple(classes),
        labels=np.asarray(labels, dtype=np.int64),
        read=lambda row: Image.fromarray(images[row]),
        title=lambda row: f"picture {row}",
        digest=_digest((str(path.relative_to(folder)) for path in files), files),
    )


def _from_files(
    name: str, classes: tuple[str, ...], labels: NDArray[np.int64], files: list[Path], folder: Path, left_out: int = 0
) -> Source:
    titles = [str(file.relative_to(folder)) for file in files]

    def read(row: int) -> Image.Image:
        if not stat.S_ISREG(files[row].stat().st_mode):  # a pipe would be waited for without an end
            raise OSError("not a regular file")
        return Image.open(files[row])

    def title(row: int) -> str:
        """On one line, and without codes that a terminal obeys."""
        return "".join(char if char.isprintable() else "?" for char in titles[row])

    # The digest includes the labels: those of CelebA are in another file than the pictures.
    digest = hashlib.sha256(_digest(titles, files).encode() + labels.tobytes()).hexdigest()
    return Source(name, classes, labels, read, title, digest, left_out)


def _from_folder(name: str, folder: Path, names: tuple[str, ...] | None = None) -> Source:
    """One folder for each class, named by `names` or by the folders; or pictures alone, which have no labels."""
    folders, images, others = _listing(folder)
    dangling = [entry.name for entry in others if entry.is_symlink() and not os.path.exists(entry)]
    if dangling:
        raise ValueError(
            f"--data-root: every class must be there, but links in {folder} lead nowhere: "
            f"{', '.join(f'{name} to {os.readlink(folder / name)}' for name in dangling[:10])}; mend or remove them"
        )
    if folders and images:
        raise ValueError(
            f"--data-root: must hold class folders or images, but {folder} holds {len(folders):,} folders, such as "
            f"{folders[0].name}, beside {len(images):,} images, such as {images[0].name}; move one or the other away"
        )
    if not folders and not images:
        raise ValueError(f"--data-root: {folder} holds no images; their names must end in {', '.join(EXTENSIONS)}")
    groups, empty, left_out = [], [], len(others)
    for entry in folders:
        nested, inside, others = _listing(Path(entry.path))
        if nested:
            raise ValueError(
                f"--data-root: must hold one folder of images for each class, but {entry.path} holds folders, such as "
                f"{nested[0].name}; if {entry.name} is a split such as train, give --data-root {entry.path}"
            )
        groups.append(inside)
        left_out += len(others)
        if not inside:
            empty.append(entry.name)
    if empty:
        raise ValueError(
            f"--data-root: every class needs images, but {len(empty):,} of {len(folders):,} folders in {folder} "
            f"have none: {', '.join(empty[:10])}; fill or remove them"
        )
    groups = groups or [images]
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    files = [Path(entry.path) for group in groups for entry in group]
    return _from_files(name, names or tuple(entry.name for entry in folders), labels, files, folder, left_out)


def _listing(folder: Path) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """Folders, images by name, whatever they are, and all else in a folder; names that start with a dot are ignored."""
    try:
        with os.scandir(folder) as entries:
            seen = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"--data-root: must be a folder of images, but there is no folder {folder}") from None
    folders, images, others = list[os.DirEntry[str]](), list[os.DirEntry[str]](), list[os.DirEntry[str]]()
    for entry in seen:
        if any("\ud800" <= char <= "\udfff" for char in entry.name):  # how Python reads bytes that are no UTF-8
            raise ValueError(
                f"--data-root: names must be UTF-8, got {os.fsencode(entry.name)!r} in {folder}; rename it"
            )
        found = images if entry.name.lower().endswith(EXTENSIONS) else others
        with suppress(OSError):  # a link to itself, or into a folder without permission
            found = folders if entry.is_dir() else found
        found.append(entry)
    return folders, images, others


def _digest(names: Iterable[str], files: Iterable[Path]) -> str:
    """Of names, sizes and times; of a file that cannot be reached, why."""
    content = hashlib.sha256()
    for name, path in zip(names, files, strict=True):
        try:
            status = path.stat()
            content.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except OSError as error:
            content.update(f"{name}\0{error.errno}\n".encode())
    return content.hexdigest()
