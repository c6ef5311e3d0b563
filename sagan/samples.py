"""Generated images of any origin, for scoring: a folder of pictures, or an .npz as other programs write it."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sagan.config import DataConfig
from sagan.data.prepared import ImageFile, open_prepared
from sagan.data.sources import Source, find_source

# Names of images and labels: guided-diffusion (uint8 [N, H, W, 3], labels optional) and BigGAN-PyTorch (uint8
# [N, 3, H, W]).
_ARRAYS = (("arr_0", "arr_1"), ("x", "y"))
FEWEST = 32  # of fewer images no statistics are taken


def open_samples(
    path: Path, classes: Sequence[str], resolution: int, folder: Path
) -> tuple[ImageFile, Tensor, Tensor | None, str]:
    """The images of a folder or an .npz, brought to `resolution` as the images of a data set are, and kept in `folder`.

    A folder has one folder for each class, named as one of `classes` or by its number from 0, or holds pictures without
    labels. `classes` are those of the data set; where it has none (fewer than two), labels are passed over. Raises
    ValueError for what cannot be read, and for labels that are none of the data set's.

    Returns images, their order int64 [N], their labels int64 [N] in that order or None, and what they were before, in
    words. Classes take turns in the order, as they do in samples of our generators: a score of consecutive parts, as
    `is_mean`, would else be one of single classes.
    """
    if path.suffix == ".npz":
        source = _from_npz(path, classes)
    else:
        try:
            source = replace(find_source(DataConfig(name="folder"), path), name="samples")
        except ValueError as error:  # whose words are those of an option that names such a folder
            raise ValueError(str(error).replace("--data-root", "SAMPLES")) from None
    if len(source.labels) < FEWEST:
        raise ValueError(f"SAMPLES: must be {FEWEST} images or more, got {len(source.labels)}; statistics need them")
    is_labelled = len(classes) > 1 and len(source.classes) > 0
    numbers = _numbers(source.classes, classes) if is_labelled else []
    sizes = set[tuple[int, int]]()

    def read(row: int) -> Image.Image:
        image = source.read(row)
        sizes.add(image.size)
        return image

    prepared = open_prepared(replace(source, read=read), resolution, folder)
    (width, height), largest = min(sizes), max(sizes)
    spread = f" to {largest[0]} x {largest[1]}" if len(sizes) > 1 else ""
    resized = f"cut to the central square and resized to {resolution} px with an antialiased bicubic filter"
    how = "px as they are" if sizes == {(resolution, resolution)} else f"px, {resized}"
    said = [f"{len(prepared.labels):,} of {path}, {width} x {height}{spread} {how}", *prepared.warnings]
    if not is_labelled:
        rows = torch.arange(len(prepared.labels))
        return prepared.images, rows, None, "; ".join([*said, "scored without labels"])
    labels = torch.tensor(numbers)[prepared.labels]
    turns = torch.empty_like(labels)  # the first image of each class comes first, then the second of each, and so on
    for label in labels.unique():
        turns[labels == label] = torch.arange(int((labels == label).sum()))
    rows = (turns * (int(labels.max()) + 1) + labels).argsort()
    return prepared.images, rows, labels[rows], "; ".join(said)


def _from_npz(path: Path, classes: Sequence[str]) -> Source:
    """Labels are numbers of `classes`."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no zip archive, which an .npz is, or a damaged one")
        with np.load(path, allow_pickle=False) as file:
            names = next((names for names in _ARRAYS if names[0] in file), None)
            if names is None:
                raise ValueError(f"it holds {', '.join(file.files) or 'nothing'}, and neither arr_0 nor x")
            images = file[names[0]]
            labels = file[names[1]] if names[1] in file else None
        if images.dtype != np.uint8 or images.ndim != 4 or 3 not in (images.shape[1], images.shape[3]):
            raise ValueError(f"{names[0]} is {images.dtype} {list(images.shape)}")
        if images.shape[3] != 3:
            images = images.transpose(0, 2, 3, 1)
        if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
            raise ValueError(f"{names[1]} is {labels.dtype} {list(labels.shape)} for {len(images)} images")
        if labels is not None and len(classes) > 1 and not 0 <= labels.min() <= labels.max() < len(classes):
            raise ValueError(
                f"{names[1]} holds labels from {labels.min()} to {labels.max()} for {len(classes)} classes"
            )
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"SAMPLES: must be an .npz with arr_0 uint8 [N, H, W, 3] or x uint8 [N, 3, H, W], and labels from 0 as "
            f"arr_1 or y where there are any, got {path}: {error}"
        ) from None
    return Source(
        name="samples",
        classes=() if labels is None else tuple(classes),
        labels=np.zeros(len(images), np.int64) if labels is None else labels.astype(np.int64),
        read=lambda row: Image.fromarray(np.ascontiguousarray(images[row])),
        title=lambda row: f"image {row}",
        digest=hashlib.sha256(str(path).encode()).hexdigest(),
    )


def _numbers(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The label in `classes` of each of `names`, which are all names of classes or all numbers of them."""
    known = {name: label for label, name in enumerate(classes)}
    if not any(name in known for name in names):
        known = {str(label): label for label in range(len(classes))}
        names = [str(int(name)) if name.isdecimal() else name for name in names]  # 007 is 7
    for name in names:
        if name not in known:
            listed = ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")
            raise ValueError(
                f"SAMPLES: classes must be those of the data set ({listed}), by name or by number from 0, got "
                f"{name!r}; rename it, or put all images into one folder, to score them without labels"
            )
    return [known[name] for name in names]
