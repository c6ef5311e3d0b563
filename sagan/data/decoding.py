"""One picture of any file as a square of one size: what is decided for odd formats, and what cannot be read and why."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

# Unusual properties of a picture, and what is done about each: the end of a warning that begins with how many have it.
KINDS = {
    "greyscale": "are greyscale; they were given three equal channels",
    "CMYK": "are CMYK; they were converted to RGB without a colour profile",
    "transparent": "have an alpha channel; what is transparent was made white",
    "16-bit": "are greyscale of 16 bits; they use {bits} of them, so 0 to {largest:,} became 0 to 255",
    "16-bit colour": "have 16 bits per colour channel; only the upper 8 are read, so that 12-bit colours come out dark",
    "frames": "have several frames or pages; the first was taken",
    "EXIF": "have EXIF data of which nothing can be read; they were taken as upright",
    "small": "are smaller than {resolution} px and were enlarged; a smaller data.resolution invents nothing",
}
_LARGEST = 2**29  # pixels; Pillow refuses more than 2**27.4 by default, which panoramas and scans exceed
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def relaxed_pillow_limits() -> Iterator[None]:
    """Within it, Pillow opens pictures of up to 2**29 pixels and with long texts, and logs nothing."""
    log = logging.getLogger("PIL")
    limits, level = (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK), log.level
    log.setLevel(logging.CRITICAL)
    Image.MAX_IMAGE_PIXELS = _LARGEST // 2  # beyond it Pillow warns, beyond twice of it it raises
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = limits
        log.setLevel(level)


def reason(error: Exception) -> str:
    """Why a picture could not be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "empty, damaged at its start, or of no format that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {_LARGEST:,} pixels"
    words = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(words.split())[:100]


def to_square(stored: Image.Image, resolution: int, bits: int = 16) -> tuple[NDArray[np.uint8], set[str]]:
    """A picture as uint8 [3, resolution, resolution], upright, and what was peculiar about it: keys of KINDS.

    It is cut to its central square and resized with an antialiased bicubic filter; transparent pixels become white.
    `bits` is how many of their bits greyscale pictures of 16 bits use (`used_bits`). Raises whatever a decoder does.
    """
    kinds, image = set(), stored
    if any(";16" in str(tile[3]) for tile in getattr(stored, "tile", ())) and not stored.mode.startswith("I"):
        kinds.add("16-bit colour")
    if isinstance(stored, TiffImagePlugin.TiffImageFile):
        # Pillow's `load_end` rotates a TIFF by its EXIF orientation. With damaged EXIF data it raises, after all pixels
        # are decoded, so it is replaced. `copy` has the stored size; the file object reports that after the rotation.
        vars(stored)["load_end"] = lambda: None
        image = stored.copy()
    image.load()
    turn = _turn(stored)
    if turn is None:
        kinds.add("EXIF")
    if image.mode == "F":
        raise ValueError("images of real numbers have no agreed range")
    if image.mode.startswith("I"):
        kinds.add("16-bit")
        scaled = _sixteen_bits(image) / ((2**bits - 1) / 255)
        image = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
    elif image.mode in ("1", "L", "LA"):
        kinds.add("greyscale")
    elif image.mode == "CMYK":
        kinds.add("CMYK")
    if turn in _TURNS:
        image = image.transpose(_TURNS[turn])
    if image.has_transparency_data:
        kinds.add("transparent")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    side = min(image.size)
    if side < resolution:
        kinds.add("small")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    square = image.crop(box).convert("RGB").resize((resolution, resolution), Image.Resampling.BICUBIC)
    with suppress(Exception):  # GIF looks for a second frame, when the pixels are there, and may fail at it
        if getattr(stored, "is_animated", False):
            kinds.add("frames")
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1)), kinds


def used_bits(image: Image.Image) -> int:
    """The fewest of 8, 10, 12, 14 and 16 bits that hold every pixel of a greyscale picture of 16 bits; 0 for others."""
    if not image.mode.startswith("I"):
        return 0
    largest = int(_sixteen_bits(image).max())
    return next(bits for bits in (8, 10, 12, 14, 16) if largest < 2**bits)


def _sixteen_bits(image: Image.Image) -> NDArray[Any]:
    """The pixels of a picture of integers; raises ValueError where they are not from 0 to 65,535."""
    pixels = np.asarray(image)
    if not 0 <= pixels.min() <= pixels.max() < 2**16:
        raise ValueError("integers outside 0 to 65,535 have no agreed range")
    return pixels


def _turn(image: Image.Image) -> int | None:
    """How a camera held the picture, as EXIF numbers it; 1 where nothing says so, None where it cannot be read.

    Pillow's ImageOps.exif_transpose also writes the EXIF data again, which fails in more ways than reading one number.
    """
    try:
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            return int(image.tag_v2.get(ExifTags.Base.Orientation, 1))
        tags = image.getexif()  # of a JPEG it is empty where opening the file has failed at them before
        return None if image.info.get("exif") and not tags else int(tags.get(ExifTags.Base.Orientation, 1))
    except Exception:
        return None
