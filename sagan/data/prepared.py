"""Pictures brought to one size once, and kept in a file that every run and every metric reads.

An entry of the cache is a folder: `images.u8` (uint8 [N, 3, R, R]), `labels.npy` and `manifest.json`. Its name carries
a digest of the listing it was made from, so a file that is added, removed or changed gives another entry. It is built
in another folder, in chunks that are logged when they are on the disk, and renamed when complete: a build that was
killed is resumed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from sagan.data.decoding import KINDS, reason, relaxed_pillow_limits, to_square, used_bits
from sagan.data.sources import Source

_FORMAT = 2  # raise it when the same files would be prepared otherwise: old entries are then left alone
_CHUNK = 512
_MAX_UNREADABLE = 0.01
_LARGE = 2**26  # pixels; larger pictures are decoded one at a time, because each takes 4 bytes per pixel or more
_one_large = Lock()


class ImageFile:
    """uint8 images [N, 3, R, R] in a file, of which only what is asked for comes to memory: `images[rows]`."""

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        self.shape = shape
        self._file = path.open("rb", buffering=0)
        self._row_bytes = shape[1] * shape[2] * shape[3]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self._row_bytes

    def __getitem__(self, rows: Tensor) -> Tensor:
        """A copy of these rows, in their order; safe from several threads at once."""
        images = torch.empty(len(rows), *self.shape[1:], dtype=torch.uint8)
        places = images.numpy().reshape(len(rows), self._row_bytes)
        for place, row in zip(places, rows.tolist(), strict=True):
            assert 0 <= row < len(self), f"row {row} of {len(self)}"
            read = os.preadv(self._file.fileno(), [place.data], row * self._row_bytes)
            if read != self._row_bytes:
                raise OSError(f"{self._file.name}: ends within image {row}")
        return images


@dataclass(frozen=True)
class Prepared:
    """An entry of the cache, opened."""

    images: ImageFile
    labels: Tensor  # int64 [N], all 0 where the source has none
    fingerprint: str  # of pixels, labels and class names
    warnings: tuple[str, ...]  # about unusual files


def prepare(source: Source, resolution: int, cache_dir: Path) -> Iterator[int]:
    """Bring the pictures of `source` to `resolution` in the cache, on all cores; yields how many have been read.

    Unreadable ones are left out, and `Prepared.warnings` names them with the reason. Yields nothing where the entry is
    there already; waits for another process that builds it. Raises ValueError where more than one picture in a hundred,
    or all pictures of a class, cannot be read.
    """
    entry = _entry(source, resolution, cache_dir)
    building = entry.with_suffix(".partial")
    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(entry.with_suffix(".lock")):
        if _is_undamaged(entry, resolution):
            return
        building.mkdir(exist_ok=True)
        chunks: list[_Chunk] = []
        yield from _build(source, resolution, building, chunks)
        try:
            _finish(source, resolution, building, chunks)
        except ValueError:
            shutil.rmtree(building)
            raise
        shutil.rmtree(entry, ignore_errors=True)
        os.replace(building, entry)


def open_prepared(source: Source, resolution: int, cache_dir: Path) -> Prepared:
    """The pictures of `source` at `resolution`, prepared first where they are not."""
    for _ in prepare(source, resolution, cache_dir):
        pass
    entry = _entry(source, resolution, cache_dir)
    manifest = json.loads((entry / "manifest.json").read_text())
    images = ImageFile(entry / "images.u8", (manifest["images"], 3, resolution, resolution))
    labels = torch.from_numpy(np.load(entry / "labels.npy", allow_pickle=False))
    return Prepared(images, labels, manifest["fingerprint"], tuple(manifest["warnings"]))


@dataclass
class _Chunk:
    """One entry of a build's log: some consecutive pictures."""

    rows: int  # pictures read
    sha256: str  # of the bytes that they became
    kept: list[int]
    digests: list[str]  # of the kept ones, each
    kinds: dict[str, int]
    unreadable: list[str]  # each with why
    bits: int  # of the 16-bit pictures, or 0 where none had been met


def _entry(source: Source, resolution: int, cache_dir: Path) -> Path:
    key = json.dumps([_FORMAT, source.name, source.classes, source.digest, resolution])
    return cache_dir / "images" / f"{source.name}-{resolution}px-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _build(source: Source, resolution: int, building: Path, chunks: list[_Chunk]) -> Iterator[int]:
    """Append to the images, and after them to the log and to `chunks`, until all of the source is in them."""
    log = building / "log.jsonl"
    with suppress(OSError, ValueError):  # there is no log yet, or its last line is incomplete
        for line in log.read_text().splitlines():
            chunks.append(_Chunk(**json.loads(line)))
    log.write_text("".join(f"{json.dumps(asdict(chunk))}\n" for chunk in chunks))
    row_bytes = 3 * resolution * resolution
    done, kept = sum(chunk.rows for chunk in chunks), sum(len(chunk.kept) for chunk in chunks)
    needed, free = (len(source.labels) - kept) * row_bytes, shutil.disk_usage(building).free
    if needed > free:
        raise ValueError(
            f"{source.name} at {resolution} px takes {needed / 1e9:.1f} GB in {building.parent.resolve()}, where "
            f"{free / 1e9:.1f} are free; make room, or run in a folder on a larger disk"
        )
    yield done
    bits = max((chunk.bits for chunk in chunks), default=0)
    with (
        (building / "images.u8").open("ab") as images,
        log.open("a") as record,
        relaxed_pillow_limits(),
        ThreadPoolExecutor() as pool,
    ):
        images.truncate(kept * row_bytes)
        for start in range(done, len(source.labels), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(source.labels)))
            found = list(pool.map(partial(_read, source, resolution, bits or 16), rows))
            if not bits and any("16-bit" in kinds for _, kinds, _ in found):
                # 12-bit cameras store 0 to 4,095 in 16 bits. One scale holds for the complete source, because a dark
                # picture alone looks as if it had fewer bits.
                bits = max(pool.map(partial(_used_bits, source), range(len(source.labels))))
                found = list(pool.map(partial(_read, source, resolution, bits), rows))
            pictures = {row: picture for row, (picture, *_) in zip(rows, found, strict=True) if picture is not None}
            parts = [picture.tobytes() for picture in pictures.values()]
            content = b"".join(parts)
            images.write(content)
            images.flush()
            os.fsync(images.fileno())
            chunk = _Chunk(
                rows=len(rows),
                sha256=hashlib.sha256(content).hexdigest(),
                kept=list(pictures),
                digests=[hashlib.blake2b(part, digest_size=8).hexdigest() for part in parts],
                kinds=dict(Counter(kind for _, kinds, _ in found for kind in kinds)),
                unreadable=[why for *_, why in found if why],
                bits=bits,
            )
            record.write(f"{json.dumps(asdict(chunk))}\n")
            record.flush()
            chunks.append(chunk)
            yield rows.stop


def _finish(source: Source, resolution: int, building: Path, chunks: list[_Chunk]) -> None:
    """Write labels and manifest."""
    kept = [row for chunk in chunks for row in chunk.kept]
    labels = source.labels[kept]
    warnings = _left_out(source, labels, chunks)
    totals = sum((Counter(chunk.kinds) for chunk in chunks), Counter[str]())
    bits = max(chunk.bits for chunk in chunks)
    for kind, text in KINDS.items():
        if totals[kind]:
            text = text.format(resolution=resolution, bits=bits, largest=2**bits - 1)
            warnings.append(f"{totals[kind]:,} images {text}")
    digests = np.array([digest for chunk in chunks for digest in chunk.digests])
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    original = first[inverse]  # of each picture the first that is equal to it
    again = np.flatnonzero(original != np.arange(len(digests)))
    if len(again):
        one, other = source.title(kept[again[0]]), source.title(kept[original[again[0]]])
        elsewhere = int((labels[again] != labels[original[again]]).sum())
        in_others = f"; {elsewhere:,} of them in another class" if elsewhere else ""
        warnings.append(f"{len(again):,} images repeat others, such as {one} and {other}{in_others}")
    np.save(building / "labels.npy", labels)
    manifest = {
        "images": len(kept),
        "classes": source.classes,
        "fingerprint": _fingerprint(source.classes, resolution, [chunk.sha256 for chunk in chunks], labels),
        "warnings": warnings,
        "chunks": [[len(chunk.kept), chunk.sha256] for chunk in chunks],
        "written_ns": (building / "images.u8").stat().st_mtime_ns,
    }
    (building / "log.jsonl").unlink()
    (building / "manifest.json").write_text(json.dumps(manifest))


def _left_out(source: Source, labels: NDArray[np.int64], chunks: list[_Chunk]) -> list[str]:
    """A warning about unreadable pictures, if there are any. Raises ValueError where they are too many."""
    lost = [why for chunk in chunks for why in chunk.unreadable]
    if not lost:
        return []
    named = ", ".join(lost[:10]) + (", ..." if len(lost) > 10 else "")
    message = f"{len(lost):,} of {len(source.labels):,} images cannot be read: {named}"
    if len(lost) > _MAX_UNREADABLE * len(source.labels):
        raise ValueError(f"{source.name}: {message}; more than one in a hundred is missing: repair or remove them")
    empty = [name for label, name in enumerate(source.classes) if not (labels == label).any()]
    if empty:
        raise ValueError(f"{source.name}: {message}; nothing is left of {', '.join(empty)}: repair or remove them")
    return [f"{message}; they are left out"]


def _fingerprint(classes: Sequence[str], resolution: int, chunks: Sequence[str], labels: NDArray[np.int64]) -> str:
    # The 1 stands for this list. Pictures that come out as they did keep their fingerprint when _FORMAT is raised.
    content = hashlib.sha256(json.dumps([1, classes, resolution, chunks]).encode())
    content.update(labels.tobytes())
    return content.hexdigest()[:16]


def _is_undamaged(entry: Path, resolution: int) -> bool:
    """Whether the entry holds what was written: the images are read again where their file's time says otherwise."""
    try:
        manifest = json.loads((entry / "manifest.json").read_text())
        labels = np.load(entry / "labels.npy", allow_pickle=False)
        chunks = [sha256 for _, sha256 in manifest["chunks"]]
        if manifest["fingerprint"] != _fingerprint(manifest["classes"], resolution, chunks, labels):
            return False
        images = entry / "images.u8"
        if images.stat().st_mtime_ns == manifest["written_ns"]:
            return True
        row_bytes = images.stat().st_size // max(1, manifest["images"])
        with images.open("rb") as stream:
            return all(
                hashlib.sha256(stream.read(rows * row_bytes)).hexdigest() == sha256
                for rows, sha256 in manifest["chunks"]
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError):  # absent, truncated, not ours
        return False


def _read(source: Source, resolution: int, bits: int, row: int) -> tuple[NDArray[np.uint8] | None, set[str], str]:
    """A picture, its peculiarities, and, where it cannot be read, None and why."""
    try:
        with source.read(row) as image, _one_large if image.width * image.height > _LARGE else nullcontext():
            return *to_square(image, resolution, bits), ""
    except Exception as error:  # decoders of damaged files raise anything: struct.error, TypeError, RuntimeError
        return None, set(), f"{source.title(row)} ({reason(error)})"


def _used_bits(source: Source, row: int) -> int:
    try:
        with source.read(row) as image:
            return used_bits(image)
    except Exception:  # the error is reported when the picture is read to be kept
        return 0
