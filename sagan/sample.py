"""Pictures from a trained generator: `python -m sagan.sample RUN_ID --class twins --n 64 --out twins.png`."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sagan.checkpoint import write_atomically
from sagan.device import named_device
from sagan.generator_file import load_generator
from sagan.networks import Generator
from sagan.sampling import to_uint8
from sagan.streams import stream

_BATCH = 64
_ROWS_BY_DEFAULT = 10  # of different classes, and more where the grid has more rows by itself
_LISTED = 20  # class names in one message


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 written; 2 bad input, with one line on stderr and nothing written."""
    options = _parser().parse_args(arguments)
    try:
        shown = write_grid(**vars(options))
    except (ValueError, OSError) as error:
        print(f"sagan.sample: {error}", file=sys.stderr)
        return 2
    # A file from elsewhere may call its classes anything, also what moves a terminal's cursor.
    print(f"wrote {options.out}:", "".join(char if char.isprintable() else "?" for char in shown))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sagan.sample", description="Pictures from a trained generator.")
    add = parser.add_argument
    add("source", metavar="RUN_ID|FILE", help="a cell's run in the MLflow store, or its generator.safetensors")
    add("--class", dest="classes", action="append", default=[], metavar="NAME",
        help="repeatable; by default one row per class, ten classes at most")  # fmt: skip
    add("--n", type=int, default=64, help="pictures (default %(default)s)")
    add("--out", type=Path, required=True, metavar="FILE.png")
    add("--seed", type=int, default=0, help="the same seed draws the same picture (default %(default)s)")
    add("--device", default="cpu", help="cpu or cuda:N (default %(default)s)")
    add("--tracking-uri", default="sqlite:///mlflow.db", metavar="URI", help="the MLflow store (default %(default)s)")
    return parser


def write_grid(
    source: str, classes: Sequence[str], n: int, out: Path, seed: int, device: str, tracking_uri: str
) -> str:
    """Draws the picture that the options of the command ask for, and says in words what is in it."""
    torch.backends.cudnn.allow_tf32 = False  # a GPU then paints what the CPU does
    if n < 1:
        raise ValueError(f"--n: must be 1 or more, got {n}")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out: must end in .png, got {str(out)!r}; write --out grid.png")
    place = named_device(device)
    with _generator_file(source, tracking_uri) as path:
        generator, names = load_generator(path, place)
    chosen = _labels(classes, names) or _spread(max(1, len(names)), n)
    if len(chosen) > n:
        raise ValueError(f"--n: must be at least the number of classes, {len(chosen)}, got {n}")
    rows = _rows(chosen, n)
    picture = draw(generator, rows, n, seed)
    _write(picture, out)
    of = f" of {', '.join(names[label] for label in chosen)}" if names else ""
    return f"{n} pictures in {len(rows)} rows{of}"


@torch.inference_mode()
def draw(generator: Generator, rows: Tensor, n: int, seed: int) -> Tensor:
    """A grid (H, W, 3) in uint8, without gaps: picture i, of the class rows[i % len(rows)], in that row.

    It fills one column after the other; what is left of the last one is white. z is drawn at once from the seed.
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


def _write(picture: Tensor, out: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(picture.numpy()).save(content, "PNG")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, content.getvalue())
    except OSError as error:
        raise ValueError(f"--out: must be a file that can be written, got {str(out)!r} ({error.strerror})") from None


def _labels(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """The labels of the classes `wanted`, each once."""
    if wanted and not names:
        raise ValueError(
            f"--class: must be left out, got {wanted[0]!r}: this generator was trained without classes "
            f"(model.conditioning is none)"
        )
    for name in wanted:
        if name not in names:
            close = [repr(near) for near in difflib.get_close_matches(name, names)]
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
            raise ValueError(f"--class: must be a class of this generator ({listed}), got {name!r}{hint}")
    return [names.index(name) for name in dict.fromkeys(wanted)]


def _spread(num_classes: int, n: int) -> list[int]:
    """Labels when none were asked for: all where they are few, else some from the first to the last."""
    count = min(num_classes, n, max(_ROWS_BY_DEFAULT, math.isqrt(n)))
    return [index * num_classes // count for index in range(count)]


def _rows(chosen: Sequence[int], n: int) -> Tensor:
    """The label of each row: as many rows for every class as make the grid nearest to a square."""
    return torch.tensor(chosen).repeat_interleave(max(1, round(math.sqrt(n) / len(chosen))))


@contextlib.contextmanager
def _generator_file(source: str, tracking_uri: str) -> Iterator[Path]:
    """The file that `source` names, or that its run keeps, which is gone afterwards."""
    if Path(source).is_file():
        yield Path(source)
    elif re.fullmatch("[0-9a-f]{32}", source):
        with tempfile.TemporaryDirectory() as folder:
            yield _fetch(source, tracking_uri, folder)
    else:
        raise ValueError(
            f"RUN_ID|FILE: must be a run id of 32 hexadecimal digits, or a file that exists, got {source!r}; "
            f"`mlflow ui` shows ids, and files are runs/STUDY/VARIANT/SEED/generator.safetensors"
        )


def _fetch(run_id: str, uri: str, folder: str) -> Path:
    """Downloads the generator of a run, or of the run that a shared cell was copied from."""
    _check_store(uri)
    done = _download(run_id, uri, folder)
    if done.returncode:
        described = _mlflow(uri, "runs", "describe", "--run-id", run_id)
        if described.returncode:
            raise ValueError(
                f"RUN_ID: must be a run of the store of --tracking-uri, got {run_id} ({_reason(described)})"
            )
        trained = json.loads(described.stdout)["data"]["tags"].get("shared_run")
        if trained is not None:
            done = _download(trained, uri, folder)
    if done.returncode:
        raise ValueError(
            f"RUN_ID: must be a cell that was trained to its last step, got {run_id}, "
            f"of which no generator.safetensors can be had ({_reason(done)})"
        )
    return Path(folder) / "generator.safetensors"


def _check_store(uri: str) -> None:
    if not uri.startswith(("sqlite:///", "postgresql", "http://", "https://")):
        raise ValueError(f"--tracking-uri: must be a sqlite, postgresql or http URI, got {uri!r}")
    database = uri.removeprefix("sqlite:///")
    if database != uri and not Path(database).is_file():  # MLflow would make it
        raise ValueError(f"--tracking-uri: must be a store that exists, got {uri!r}; go to the folder of its mlflow.db")


def _download(run_id: str, uri: str, folder: str) -> subprocess.CompletedProcess[str]:
    what = ("--run-id", run_id, "--artifact-path", "generator.safetensors", "--dst-path", folder)
    return _mlflow(uri, "artifacts", "download", *what)


def _mlflow(uri: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """MLflow's own command line, in a process of its own: this package does without MLflow."""
    defaults = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}  # its own: four minutes
    environment = defaults | os.environ | {"MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-m", "mlflow", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a traceback, without the name of the exception."""
    last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
    return last.removeprefix("mlflow.exceptions.MlflowException: ")[:300]


if __name__ == "__main__":
    sys.exit(main())
