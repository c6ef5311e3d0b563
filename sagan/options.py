"""Options that several commands have, read and checked without importing torch, which takes seconds."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sagan.config import Config, one_of
from sagan.presets import PRESETS

DEFAULT_CACHE = Path("runs/cache")  # prepared images, statistics of real images, extractors that users have trained
MAX_SEED = 2**31 - 1


class Parser(argparse.ArgumentParser):
    """An argument parser whose error is one line, without the usage: exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.removeprefix('python -m ')}: {message}\n")


def escape_unprintable_output() -> None:
    """Make stdout print a character that its encoding lacks as an escape (\\xe4), as stderr does by default.

    Names of folders, studies and classes are the user's, and so is PYTHONIOENCODING.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # tests put other streams in its place
        sys.stdout.reconfigure(errors="backslashreplace")


def add_shared(parser: argparse.ArgumentParser) -> None:
    """The options of both training and evaluation."""
    add = parser.add_argument
    add("--preset", metavar="NAME", help=", ".join(PRESETS))
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the preset; repeatable")
    add("--data-root", type=Path, metavar="DIR", help="where data sets are, or are downloaded to (default: data)")
    add("--inception-weights", type=Path, metavar="FILE", help="for machines without a network")
    add("--cache-dir", type=Path, metavar="DIR", help=f"kept from run to run (default: {DEFAULT_CACHE})")
    add("--device", help="cpu, cuda or cuda:N (default: cpu)")
    add("--threads", type=int, metavar="N", help="of the CPU (default: OMP_NUM_THREADS, or the cores)")


def preset_of(name: str) -> Config:
    """Raises ValueError for an unknown name, with the nearest known one."""
    return PRESETS[one_of("--preset", name, PRESETS)]


def changes_of(texts: Sequence[str]) -> dict[str, str]:
    """{"optim.steps": "500"} from ["optim.steps=500"], for `sagan.config.override`; raises ValueError."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set: must be KEY=VALUE, got {text!r}; write --set optim.steps=500")
        found[name.strip()] = value.strip()
    return found


def existing(option: str, path: Path | None) -> Path | None:
    """`path` as an absolute path. Raises ValueError where it does not exist."""
    if path is not None and not os.path.exists(path):  # Path.exists raises where a folder above has no permission
        raise ValueError(f"{option}: no such file or folder, got {str(path)!r}; check the path")
    return path.resolve() if path is not None else None


def check_machine(device: str, threads: int | None) -> None:
    """Raises ValueError for values that are invalid on any machine; sagan.device checks those of this one."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"--device: must be cpu, cuda or cuda:N, got {device!r}; write --device cpu")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads: must be 1 or more, got {threads}")


def check_folder(folder: Path) -> None:
    """Raises ValueError where no file can be created in `folder`, or in its nearest existing parent."""
    nearest = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{nearest.resolve()}: cannot be written ({reason}); work in a folder that can") from None
