from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteImages = Callable[..., Path]


@pytest.fixture
def write_images(tmp_path: Path) -> WriteImages:
    """Writes PNGs of random pixels: {"cat": 3, "dog": 2} makes cat/0.png and so on, {"": 4} no folders."""

    def write(counts: dict[str, int], size: tuple[int, int] = (40, 36), folder: str = "pictures") -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / folder
        for name, count in counts.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{number}.png")
        return root

    return write
