"""The pictures of an evaluation as files: a grid of samples as PNG, attention maps as npz."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sagan.checkpoint import write_atomically

_PARTS = ("images", "queries", "maps")  # of an attention map's file


def write_pictures(folder: Path, step: int, images: Mapping[str, NDArray[Any]]) -> list[str]:
    """Write "samples/step_0000500.png", "attention/g32/step_0000500.npz" and so on below `folder`; returns their names.

    Each is written completely or not at all. `images` are those of `Sampler.pictures`.
    """
    files = {}
    if "samples" in images:
        rows, columns, height, width, channels = images["samples"].shape
        tiles = images["samples"].transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
        picture = io.BytesIO()
        Image.fromarray(tiles).save(picture, "PNG")
        files[f"samples/step_{step:07d}.png"] = picture.getvalue()
    for name in sorted({key.rpartition("/")[0] for key in images if key.startswith("attention/")}):
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **{part: images[f"{name}/{part}"] for part in _PARTS})
        files[f"{name}/step_{step:07d}.npz"] = file.getvalue()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, content)
    return list(files)
