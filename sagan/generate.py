"""Pictures from a generator file: `python -m sagan.generate generator.safetensors --n 64 --out grid.png`."""

from __future__ import annotations

import argparse
import difflib
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sagan.checkpoint import write_atomically
from sagan.device import named_device
from sagan.generator_file import load_generator
from sagan.limits import set_threads
from sagan.networks import Generator
from sagan.options import Parser, escape_unprintable_output
from sagan.sampling import to_uint8
from sagan.streams import stream

_BATCH = 64
_ROWS_BY_DEFAULT = 10  # one class each; more for more than 100 pictures, whose square grid has more rows
_LISTED = 20  # class names in one message


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 written; 2 bad input, with one line on stderr and nothing written."""
    escape_unprintable_output()
    parser = Parser(prog="python -m sagan.generate", description="Pictures from a generator file.")
    parser.add_argument("file", metavar="FILE", type=Path, help="a generator.safetensors")
    add_picture(parser)
    options = parser.parse_args(arguments)
    try:
        print(write_grid(options.file, **picture_options(options)))
    except (ValueError, OSError) as error:
        print(f"sagan.generate: {error}", file=sys.stderr)
        return 2
    return 0


def add_picture(parser: argparse.ArgumentParser) -> None:
    """The options that say what is drawn, and where it is written."""
    add = parser.add_argument
    add("--class", dest="classes", action="append", default=[], metavar="NAME",
        help="repeatable; by default all classes, at most 10 or sqrt(n) of them, whichever is more")  # fmt: skip
    add("--n", type=int, default=64, help="pictures (default %(default)s)")
    add("--out", type=Path, required=True, metavar="FILE.png")
    add("--seed", type=int, default=0, help="the same seed draws the same picture (default %(default)s)")
    add("--device", default="cpu", help="cpu or cuda:N (default %(default)s)")


def picture_options(options: argparse.Namespace) -> dict[str, Any]:
    """Those of `add_picture`, checked as far as this can be done without the file. Raises ValueError."""
    if options.n < 1:
        raise ValueError(f"--n: must be 1 or more, got {options.n}")
    if options.out.suffix.lower() != ".png":
        raise ValueError(f"--out: must end in .png, got {str(options.out)!r}; write --out grid.png")
    return {name: getattr(options, name) for name in ("classes", "n", "out", "seed", "device")}


def write_grid(path: Path, classes: Sequence[str], n: int, out: Path, seed: int, device: str) -> str:
    """Draw `n` pictures with the generator in the file `path`, write them to `out` as a grid, and say what it shows.

    Without `classes`, all are drawn; where there are more than max(10, sqrt(n)), as many of them, evenly spaced.
    Raises ValueError for a name that is no class, fewer pictures than classes, a device that is not there, and files
    that cannot be read or written.
    """
    set_threads()
    torch.backends.cudnn.allow_tf32 = False  # so that a GPU gives the same images as a CPU
    if not path.is_file():
        raise ValueError(f"FILE: must be a generator.safetensors, got {str(path)!r}, where there is no file")
    generator, names = load_generator(path, named_device(device))
    chosen = _labels(classes, names)
    if not chosen:
        known = max(1, len(names))
        count = min(known, n, max(_ROWS_BY_DEFAULT, math.isqrt(n)))
        chosen = [index * known // count for index in range(count)]
    if len(chosen) > n:
        raise ValueError(f"--n: must be at least the number of classes, {len(chosen)}, got {n}")
    # Every class has as many rows as make the grid most nearly square.
    rows = torch.tensor(chosen).repeat_interleave(max(1, round(math.sqrt(n) / len(chosen))))
    content = io.BytesIO()
    Image.fromarray(draw(generator, rows, n, seed).numpy()).save(content, "PNG")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, content.getvalue())
    except OSError as error:
        raise ValueError(f"--out: must be a file that can be written, got {str(out)!r} ({error.strerror})") from None
    of = f" of {', '.join(names[label] for label in chosen)}" if names else ""
    # Class names of an unknown file may contain control characters for the terminal.
    return "".join(char if char.isprintable() else "?" for char in f"wrote {out}: {n} pictures in {len(rows)} rows{of}")


@torch.inference_mode()
def draw(generator: Generator, rows: Tensor, n: int, seed: int) -> Tensor:
    """A grid (H, W, 3) in uint8, without gaps: picture i, of the class rows[i % len(rows)], in that row.

    It fills one column after the other; the rest of the last one is white. All z are drawn from the seed in one call.
    """
    columns = math.ceil(n / len(rows))
    device = next(generator.parameters()).device
    z = torch.randn(n, generator.z_dim, generator=stream(seed, "sample")).to(device)
    labels = rows.repeat(columns)[:n].to(device)
    batches = zip(z.split(_BATCH), labels.split(_BATCH), strict=True)
    pictures = torch.cat([to_uint8(generator(*batch)).cpu() for batch in batches])
    cells = torch.full((columns * len(rows), *pictures.shape[1:]), 255, dtype=torch.uint8)
    cells[:n] = pictures
    grid: Tensor = cells.unflatten(0, (columns, len(rows))).permute(1, 3, 0, 4, 2)
    return grid.flatten(2, 3).flatten(0, 1)


def _labels(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """The labels of the classes `wanted`, each once."""
    if wanted and not names:
        without = "this generator was trained without classes (model.conditioning is none)"
        raise ValueError(f"--class: must be left out, got {wanted[0]!r}: {without}")
    for name in wanted:
        if name not in names:
            close = [repr(near) for near in difflib.get_close_matches(name, names)]
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
            raise ValueError(f"--class: must be a class of this generator ({listed}), got {name!r}{hint}")
    return [names.index(name) for name in dict.fromkeys(wanted)]


if __name__ == "__main__":
    sys.exit(main())
