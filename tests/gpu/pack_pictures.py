"""Packs a folder of pictures, one sub-folder a class, into one tar file of small JPEGs that is cheap to copy.

    python tests/gpu/pack_pictures.py ~/imagenette2-160/train pictures.tar --side 128 --mib 30

Each picture becomes its central square, resized. The JPEG quality is the highest at which, as far as a sample tells,
the whole file has at most `--mib` MiB. `tar xf pictures.tar -C DIR` gives a folder for `--preset folder --data-root
DIR`. Equal input gives equal bytes under one version of Pillow. Needs the standard library and Pillow alone. Exit
status: 0, or 2 for bad input.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
from collections import Counter
from functools import partial
from multiprocessing import Pool
from multiprocessing.pool import Pool as Workers
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps

MTIME = 1_000_000_000  # of all members; tar warns of times near 0
SAMPLE = 500  # pictures that the quality is chosen by
QUALITIES = range(10, 96)  # below 10 little more than the mean of each block is left; Pillow advises against over 95
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 16 bits a channel have no one meaning in 8


def find_pictures(folder: Path) -> dict[str, Path]:
    """All files of the class folders by their names in the tar, in order; names with a leading dot are passed over."""
    if not folder.is_dir():
        raise ValueError(f"FOLDER: must hold one folder of pictures a class, but there is no folder {folder}")
    classes = [path for path in _listing(folder) if path.is_dir()]
    if not classes:
        raise ValueError(f"FOLDER: must hold one folder of pictures a class, but {folder} holds no folders")
    found: dict[str, Path] = {}
    for inner in classes:
        files = _listing(inner)
        if not files:
            raise ValueError(f"FOLDER: every class needs pictures, but {inner} is empty; fill or remove it")
        for file in files:
            name = f"{inner.name}/{file.stem}.jpg"
            if file.is_dir():
                raise ValueError(
                    f"FOLDER: {inner} must hold pictures, but {file.name} in it is a folder; is {inner} meant?"
                )
            if name in found:
                raise ValueError(f"FOLDER: {found[name]} and {file} would both be {name}; rename one of them")
            found[name] = file
    return found


def _listing(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def shrink(side: int, quality: int, file: Path) -> bytes | None:
    """A picture as a small JPEG, or None if it cannot be read. What is transparent becomes white."""
    try:
        with Image.open(file) as opened:
            if opened.mode not in MODES:
                return None
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            short = min(image.size)
            left, top = (image.width - short) // 2, (image.height - short) // 2
            image = image.convert("RGB").crop((left, top, left + short, top + short))
            image = image.resize((side, side), Image.Resampling.BICUBIC)  # antialiased where it makes smaller
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # all that Pillow says of broken files
        return None
    image.info = {}  # comments would be kept
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, optimize=True)  # not progressive: at 128 px that takes 9 % more
    return stream.getvalue()


def write(
    pictures: dict[str, Path], workers: Workers, side: int, quality: int, stream: IO[bytes]
) -> tuple[int, set[str]]:
    """Writes a tar file; returns its bytes without the padding at its end, and the pictures that cannot be read."""
    unreadable = set()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        contents = workers.imap(partial(shrink, side, quality), pictures.values(), chunksize=16)
        for name, content in zip(pictures, contents, strict=True):
            if content is None:
                unreadable.add(name)
                continue
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), MTIME
            tar.addfile(info, io.BytesIO(content))
        return tar.offset, unreadable


def choose_quality(pictures: dict[str, Path], workers: Workers, side: int, limit: int) -> int:
    """The highest quality at which a sample says that all pictures fit into `limit` bytes, or the lowest of all."""
    step = -(-len(pictures) // SAMPLE)
    sample = dict(list(pictures.items())[::step])
    low, high = QUALITIES.start, QUALITIES.stop
    while high - low > 1:
        middle = (low + high) // 2
        size, _ = write(sample, workers, side, middle, io.BytesIO())
        low, high = (middle, high) if size * len(pictures) <= limit * len(sample) else (low, middle)
    return low


def pack(folder: Path, packed: Path, side: int, mib: float) -> tuple[str, list[Path]]:
    """Packs; what came of it in words, and the files left out. ValueError, and nothing left behind, where it cannot."""
    if side < 1:
        raise ValueError(f"--side: must be 1 or more, got {side}")
    if not 0 < mib < float("inf"):
        raise ValueError(f"--mib: must be a positive number, got {mib:g}")
    pictures, limit = find_pictures(folder), int(mib * 2**20)
    unfinished = packed.with_name(f"{packed.name}.unfinished")
    try:
        with Pool() as workers:
            quality, size = choose_quality(pictures, workers, side, limit) + 1, limit + 1
            while size > limit and quality > QUALITIES.start:  # again where the sample's pictures were smaller ones
                quality -= 1
                with unfinished.open("wb") as stream:
                    _, unreadable = write(pictures, workers, side, quality, stream)
                size = unfinished.stat().st_size
        classes = Counter(pictures[name].parent.name for name in pictures.keys() - unreadable)
        lost = {file.parent.name for file in pictures.values()} - classes.keys()
        if lost:
            raise ValueError(f"FOLDER: no picture can be read of {', '.join(sorted(lost))}; repair or remove them")
        found = f"{classes.total():,} pictures of {side} px in {len(classes):,} classes"
        if size > limit:
            raise ValueError(
                f"--mib: {found} take {size / 2**20:.2f} MiB at the lowest quality, {quality}, got {mib:g}; allow "
                f"more, or give a smaller --side"
            )
        os.replace(unfinished, packed)
    finally:
        unfinished.unlink(missing_ok=True)
    said = f"{packed}: {found}, JPEG quality {quality}, {size / 2**20:.2f} MiB of {mib:g}"
    return said, [file for name, file in pictures.items() if name in unreadable]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds one folder of pictures a class")
    parser.add_argument("packed", type=Path, metavar="PACKED.tar", help="the file to write")
    parser.add_argument("--side", type=int, default=128, help="pixels of each side (default: %(default)s)")
    parser.add_argument("--mib", type=float, default=30, help="the most that the file may take (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        said, left_out = pack(options.folder, options.packed, options.side, options.mib)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if left_out:
        named = ", ".join(map(str, left_out[:10])) + (", ..." if len(left_out) > 10 else "")
        print(f"warning: {len(left_out):,} files are no pictures that can be read, and are left out: {named}")
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
